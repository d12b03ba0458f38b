//! permessage-deflate (RFC 7692), seen from a client that has its own inflater.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use serde_json::{Value, json};

use crate::harness::*;

const COMPRESSED: &str = r#"
[websocket]
compression = true
[http_api]
key = "k"
[[channel.namespaces]]
name = "plain"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
roost = { compression = false }
[[channel.namespaces]]
name = "kept"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
force_recovery = true
history_size = 300
history_ttl = "10m"
"#;

const DEFLATE: &str = "Sec-WebSocket-Extensions: permessage-deflate";
/// First bytes of a deflated message: FIN, RSV1.
const DEFLATED_TEXT: u8 = 0xc1;
const DEFLATED_BINARY: u8 = 0xc2;
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

fn deflate(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 100);
    let mut compress = Compress::new(Compression::best(), false);
    compress.compress_vec(message, &mut out, FlushCompress::Sync).unwrap();
    assert_eq!(compress.total_in(), message.len() as u64);
    assert!(out.ends_with(&TAIL));
    out.truncate(out.len() - TAIL.len());
    out
}

/// A message that was deflated with a window of so many bits at most.
fn inflate(payload: &[u8], window_bits: u8) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 << 20);
    let input = [payload, &TAIL].concat();
    let mut inflate = Decompress::new_with_window_bits(false, window_bits);
    inflate.decompress_vec(&input, &mut out, FlushDecompress::Sync).unwrap();
    assert_eq!(inflate.total_in(), input.len() as u64);
    out
}

/// A connection that has agreed on compression, or not, with the answer.
fn upgraded(node: &Node, path: &str, headers: &[&str]) -> (Raw, Option<String>) {
    let mut raw = node.raw();
    raw.send(upgrade(path, headers).as_bytes());
    let response = raw.response();
    assert_eq!(response.status, 101);
    (raw, response.header("sec-websocket-extensions").map(str::to_owned))
}

/// A client that is connected and subscribed, past the replies.
fn subscribed(node: &Node, offer: &str, channel: &str) -> Raw {
    let (mut raw, _) = upgraded(node, CLIENTS, &[offer]);
    let commands = format!(
        "{{\"id\":1,\"connect\":{{}}}}\n{{\"id\":2,\"subscribe\":{{\"channel\":\"{channel}\"}}}}"
    );
    raw.send(&frame(TEXT, commands.as_bytes()));
    let mut text = String::new();
    while !text.contains("\"subscribe\"") {
        text += &message(&mut raw, 15).1;
    }
    raw
}

/// The next message, and whether it came deflated.
fn message(raw: &mut Raw, window_bits: u8) -> (bool, String) {
    let (first, payload) = raw.frame().expect("a message");
    match first {
        DEFLATED_TEXT => (true, String::from_utf8(inflate(&payload, window_bits)).unwrap()),
        TEXT => (false, String::from_utf8(payload).unwrap()),
        other => panic!("{other:x}: {payload:?}"),
    }
}

fn publish(node: &Node, channel: &str, data: &Value) {
    let mut raw = node.raw();
    let body = json!({"channel": channel, "data": data}).to_string();
    assert_eq!(raw.post("/api/publish", &[KEY], &body).status, 200);
}

/// JSON that is shorter deflated, of about so many bytes.
fn text(bytes: usize) -> Value {
    let mut all = Vec::new();
    for n in 0.. {
        all.push(json!({"id": n, "name": format!("the number {n}"), "square": n * n}));
        if all.len() * 45 > bytes {
            break;
        }
    }
    Value::Array(all)
}

#[test]
fn negotiation_of_compression() {
    const PLAIN: &str =
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
    let node = Node::open_with(COMPRESSED, &["--echo"]);
    for (offers, more) in [
        (&["permessage-deflate; client_max_window_bits"][..], Some("")),
        (&["permessage-deflate; server_max_window_bits=10"], Some("; server_max_window_bits=10")),
        (&["permessage-deflate; client_max_window_bits=9"], Some("; client_max_window_bits=9")),
        (&["permessage-deflate; server_max_window_bits=8"], None),
        (&["permessage-deflate; server_max_window_bits=8, permessage-deflate"], Some("")),
        (&["permessage-deflate; server_max_window_bits=8", "permessage-deflate"], Some("")),
        (&["permessage-deflate; server_no_context_takeover; server_no_context_takeover"], None),
        (&["permessage-deflate; shrink"], None),
        (&["x-webkit-deflate-frame"], None),
        (&[], None),
    ] {
        let headers: Vec<String> =
            offers.iter().map(|offer| format!("Sec-WebSocket-Extensions: {offer}")).collect();
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        for path in [CLIENTS, "/echo"] {
            let (_, agreed) = upgraded(&node, path, &headers);
            let expected = more.map(|more| format!("{PLAIN}{more}"));
            assert_eq!(agreed, expected, "{offers:?}");
        }
    }
    // Where it is off nobody gets it.
    let node = Node::open(&["--echo"]);
    for path in [CLIENTS, "/echo"] {
        assert_eq!(upgraded(&node, path, &[DEFLATE]).1, None);
    }
}

#[test]
fn publications_go_deflated_where_that_is_shorter() {
    let node = Node::open_with(COMPRESSED, &[]);
    let offers: Vec<(String, u8)> = (9..=15)
        .map(|bits| (format!("{DEFLATE}; server_max_window_bits={bits}"), bits))
        .chain([(DEFLATE.to_owned(), 15)])
        .collect();
    let mut clients: Vec<(Raw, u8)> =
        offers.iter().map(|(offer, bits)| (subscribed(&node, offer, "news"), *bits)).collect();
    let mut plain = subscribed(&node, "X: y", "news");
    for (data, pays) in [
        (text(200), true),
        (text(20_000), true),
        (json!("x".repeat(60_000)), true),
        (json!(1), false),
        (
            json!(
                (0..2000)
                    .map(|n| char::from(b'a' + (n * n % 7919 * n % 26) as u8))
                    .collect::<String>()
            ),
            true,
        ),
    ] {
        publish(&node, "news", &data);
        let (deflated, expected) = message(&mut plain, 15);
        assert!(!deflated);
        for (client, bits) in &mut clients {
            let (deflated, got) = message(client, *bits);
            assert_eq!((deflated, &got), (pays, &expected), "{bits} bits");
        }
    }
}

#[test]
fn a_namespace_may_stay_plain() {
    let node = Node::open_with(COMPRESSED, &[]);
    let mut client = subscribed(&node, DEFLATE, "plain:x");
    client.send(&frame(TEXT, b"{\"id\":3,\"subscribe\":{\"channel\":\"news\"}}"));
    message(&mut client, 15);
    for (channel, deflated) in [("plain:x", false), ("news", true), ("plain:x", false)] {
        publish(&node, channel, &text(1000));
        assert_eq!(message(&mut client, 15).0, deflated, "{channel}");
    }
    // And so may short messages.
    let flags =
        COMPRESSED.replace("compression = true", "compression = true\ncompression_min_size = 5000");
    let node = Node::open_with(&flags, &[]);
    let mut client = subscribed(&node, DEFLATE, "news");
    for (bytes, deflated) in [(1000, false), (10_000, true)] {
        publish(&node, "news", &text(bytes));
        assert_eq!(message(&mut client, 15).0, deflated, "{bytes}");
    }
}

#[test]
fn recovered_publications_come_deflated() {
    let node = Node::open_with(COMPRESSED, &[]);
    for n in 0..100 {
        publish(&node, "kept:a", &json!({"number": n, "text": "about the same".repeat(n % 7)}));
    }
    let mut plain = subscribed(&node, "X: y", "kept:b");
    let command = json!({"id": 3, "subscribe": {"channel": "kept:a", "recover": true}}).to_string();
    let ask = |client: &mut Raw, window_bits| {
        client.send(&frame(TEXT, command.as_bytes()));
        let (deflated, reply) = message(client, window_bits);
        let reply: Value = serde_json::from_str(&reply).unwrap();
        assert_eq!(reply["subscribe"]["publications"].as_array().unwrap().len(), 100);
        (deflated, reply)
    };
    let (deflated, expected) = ask(&mut plain, 15);
    assert!(!deflated);
    // The list is the same for all, and the second time it is known.
    for bits in [15, 15, 9] {
        let offer = format!("{DEFLATE}; server_max_window_bits={bits}");
        let mut client = subscribed(&node, &offer, "kept:b");
        assert_eq!(ask(&mut client, bits), (true, expected.clone()), "{bits}");
    }
}

#[test]
fn commands_may_come_deflated() {
    let node = Node::open_with(COMPRESSED, &["--websocket.message_size_limit", "65536"]);
    let (mut raw, _) = upgraded(&node, CLIENTS, &[DEFLATE]);
    let deflated =
        deflate(b"{\"id\":1,\"connect\":{}}\n{\"id\":2,\"subscribe\":{\"channel\":\"a\"}}");
    raw.send(&frame(DEFLATED_TEXT, &deflated));
    let mut text = String::new();
    while !text.contains("\"subscribe\"") {
        text += &message(&mut raw, 15).1;
    }
    // In pieces: RSV1 is on the first only, and control frames come between.
    let data = "y".repeat(100_000);
    let publish = json!({"id": 3, "publish": {"channel": "a", "data": data}}).to_string();
    let deflated = deflate(publish.as_bytes());
    let (first, rest) = deflated.split_at(deflated.len() / 2);
    raw.send(&frame(0x41, first));
    raw.send(&frame(0x89, b"ping"));
    raw.send(&frame(0x80, rest));
    assert_eq!(raw.frame(), Some((0x8a, b"ping".to_vec())));
    let got = [message(&mut raw, 15), message(&mut raw, 15)];
    assert!(got.iter().any(|(deflated, text)| *deflated && text.contains(&data)));
    // And plain, any time.
    raw.send(&frame(TEXT, b"{\"id\":4,\"unsubscribe\":{\"channel\":\"a\"}}"));
    assert_eq!(message(&mut raw, 15), (false, "{\"id\":4,\"unsubscribe\":{}}".into()));
    assert_eq!(node.figures()["messages_inflated"], 2);
}

#[test]
fn faults_cost_their_sender_the_connection() {
    let limits =
        "compression = true\nmessage_size_limit = 1000\ndecompressed_message_size_limit = 20000";
    let node = Node::open_with(&COMPRESSED.replace("compression = true", limits), &["--echo"]);
    let bomb = deflate(&vec![b'x'; 200_000]);
    assert!(bomb.len() < 1000);
    let long = deflate(&vec![b'x'; 20_001]);
    let most = deflate(&vec![b'x'; 20_000]);
    for (what, frames, code) in [
        ("a bomb", frame(DEFLATED_TEXT, &bomb), 1009),
        ("one byte too much", frame(DEFLATED_TEXT, &long), 1009),
        ("too long as it comes", frame(DEFLATED_BINARY, &[0; 1001]), 1009),
        ("no DEFLATE", frame(DEFLATED_BINARY, &[0xff; 20]), 1007),
        ("no text", frame(DEFLATED_TEXT, &deflate(b"\xff\xfe")), 1007),
        ("RSV1 on a control frame", frame(0xc9, b""), 1002),
        ("RSV1 on a continuation", [frame(0x41, b"\x00"), frame(0xc0, b"\x00")].concat(), 1002),
        ("RSV2", frame(0xa1, b""), 1002),
    ] {
        for path in [CLIENTS, "/echo"] {
            let (mut raw, _) = upgraded(&node, path, &[DEFLATE]);
            raw.send(&frames);
            assert_eq!(raw.closed().0, code, "{what}");
        }
    }
    // Without an agreement RSV1 means nothing.
    let (mut raw, _) = upgraded(&node, CLIENTS, &[]);
    raw.send(&frame(DEFLATED_TEXT, &most));
    assert_eq!(raw.closed().0, 1002);
    // The most that may be, and no message at all.
    let (mut raw, _) = upgraded(&node, "/echo", &[DEFLATE]);
    raw.send(&frame(DEFLATED_TEXT, &most));
    let (first, payload) = raw.frame().unwrap();
    assert_eq!((first, inflate(&payload, 15)), (DEFLATED_TEXT, vec![b'x'; 20_000]));
    raw.send(&frame(DEFLATED_BINARY, &[0]));
    assert_eq!(raw.frame(), Some((0x82, Vec::new())));
    node.is_healthy();
}

#[test]
fn protobuf_and_one_way_connections() {
    let file = "[uni_websocket]\nenabled = true\ncompression = true\n";
    let node = Node::open_with(&(COMPRESSED.to_owned() + file), &[]);
    let (mut binary, agreed) = upgraded(&node, PROTOBUF_CLIENTS, &[DEFLATE]);
    assert!(agreed.is_some());
    // connect, subscribe {channel: "test"} (client protocol, 27).
    let asked = b"\x04\x08\x01\x22\x00\x0a\x08\x02\x2a\x06\x0a\x04test";
    binary.send(&frame(DEFLATED_BINARY, &deflate(asked)));
    let mut got = Vec::new();
    while !got.ends_with(b"\x04\x08\x02\x32\x00") {
        let (first, payload) = binary.frame().unwrap();
        got.extend(if first == DEFLATED_BINARY { inflate(&payload, 15) } else { payload });
    }
    let (mut one_way, agreed) = upgraded(
        &node,
        "/connection/uni_websocket?cf_connect=%7B%22subs%22%3A%7B%22test%22%3A%7B%7D%7D%7D",
        &[DEFLATE],
    );
    assert!(agreed.is_some());
    assert!(message(&mut one_way, 15).1.starts_with("{\"connect\":"));
    let data = text(2000);
    publish(&node, "test", &data);
    let (first, payload) = binary.frame().unwrap();
    assert_eq!(first, DEFLATED_BINARY);
    let inner = data.to_string();
    let inflated = inflate(&payload, 15);
    assert!(inflated.windows(inner.len()).any(|part| part == inner.as_bytes()));
    let (deflated, push) = message(&mut one_way, 15);
    assert!(deflated);
    let push: Value = serde_json::from_str(&push).unwrap();
    assert_eq!(push, json!({"channel": "test", "pub": {"data": data}}));
}
