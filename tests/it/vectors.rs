//! The test vectors of the specification (section 27), byte for byte over real connections.

use serde_json::{Value, json};

use crate::harness::*;
use crate::protobuf::unhex;

/// With what the vectors' channel has.
const FILE: &str = r#"
client.allow_anonymous_connect_without_token = true
client.token.hmac_secret_key = "secret"
[channel.without_namespace]
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
allow_history_for_client = true
allow_history_for_anonymous = true
force_recovery = true
history_size = 10
history_ttl = "10m"
"#;

/// The next `count` messages of a JSON connection, from as many frames as they come in.
fn lines(raw: &mut Raw, count: usize) -> Vec<String> {
    let mut lines = vec![];
    while lines.len() < count {
        let (first, payload) = raw.frame().unwrap();
        assert_eq!(first, TEXT);
        let text = String::from_utf8(payload).unwrap();
        lines.extend(text.split('\n').map(String::from));
    }
    assert_eq!(lines.len(), count, "{lines:?}");
    lines
}

/// The same bytes of a Protobuf connection, as they stand in frames.
fn messages(raw: &mut Raw, bytes: usize) -> Vec<u8> {
    let mut messages = vec![];
    while messages.len() < bytes {
        let (first, payload) = raw.frame().unwrap();
        assert_eq!(first, BINARY);
        messages.extend(payload);
    }
    messages
}

/// A field with bytes, shorter than 128.
fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
    assert!(bytes.len() < 128);
    [&[tag, bytes.len() as u8], bytes].concat()
}

/// A message with its length before it, shorter than 128.
fn prefixed(bytes: &[u8]) -> Vec<u8> {
    assert!(bytes.len() < 128);
    [&[bytes.len() as u8], bytes].concat()
}

#[test]
fn json() {
    let node = Node::start(FILE, &[]);
    let mut raw = node.upgraded(CLIENTS);
    let send = |raw: &mut Raw, text: &str| raw.send(&frame(TEXT, text.as_bytes()));
    send(
        &mut raw,
        "{\"id\":1,\"connect\":{\"name\":\"js\"}}\n\
         {\"id\":2,\"subscribe\":{\"channel\":\"test\",\"flag\":1}}",
    );
    let got = lines(&mut raw, 2);
    let reply: Value = serde_json::from_str(&got[0]).unwrap();
    let client = reply["connect"]["client"].as_str().unwrap();
    let version = reply["connect"]["version"].as_str().unwrap();
    assert_eq!(
        got[0],
        format!(
            r#"{{"id":1,"connect":{{"client":"{client}","version":"{version}","ping":25,"pong":true}}}}"#
        )
    );
    let reply: Value = serde_json::from_str(&got[1]).unwrap();
    let epoch = reply["subscribe"]["epoch"].as_str().unwrap();
    assert_eq!(
        got[1],
        format!(
            r#"{{"id":2,"subscribe":{{"recoverable":true,"epoch":"{epoch}","positioned":true}}}}"#
        )
    );
    send(&mut raw, r#"{"id":3,"publish":{"channel":"test","data":{"a":1}}}"#);
    let mut got = lines(&mut raw, 2);
    got.sort();
    let info = format!(r#""info":{{"user":"","client":"{client}"}}"#);
    assert_eq!(
        got,
        [
            r#"{"id":3,"publish":{}}"#.to_owned(),
            format!(
                r#"{{"push":{{"channel":"test","pub":{{"data":{{"a":1}},{info},"offset":1,"epoch":"{epoch}"}}}}}}"#
            ),
        ]
    );
    send(&mut raw, r#"{"id":4,"history":{"channel":"test","limit":10}}"#);
    assert_eq!(
        lines(&mut raw, 1),
        [format!(
            r#"{{"id":4,"history":{{"publications":[{{"data":{{"a":1}},{info},"offset":1}}],"epoch":"{epoch}","offset":1}}}}"#
        )]
    );
    send(&mut raw, r#"{"id":5,"subscribe":{"channel":"nope:x"}}"#);
    assert_eq!(
        lines(&mut raw, 1),
        [r#"{"id":5,"error":{"code":102,"message":"unknown channel"}}"#]
    );
}

#[test]
fn protobuf() {
    let node = Node::start(FILE, &[]);
    let (_, result) = node.connected_by(Speech::Json, json!({}));
    let version = result["version"].as_str().unwrap().as_bytes();

    let reply = |id: &[u8]| {
        let result = [&field(0x0a, id)[..], &field(0x12, version), b"\x38\x19\x40\x01"];
        prefixed(&[&b"\x08\x01"[..], &field(0x2a, &result.concat())].concat())
    };
    // `connect {}`, then `connect {name:"js"}`: the reply is the vector's, but for id and version.
    for (top, connect) in [(0, "04 08 01 22 00"), (1, "08 08 01 22 04 22 02 6a 73")] {
        let mut raw = node.upgraded(PROTOBUF_CLIENTS);
        raw.send(&frame(BINARY, &unhex(connect)));
        let example = b"3f1c2a9e-0000-4000-8000-000000000001";
        let got = messages(&mut raw, reply(example).len());
        let id = got[7..7 + example.len()].to_vec();
        assert_eq!(got, reply(&id));

        // Into the same channel as itself: the vector's push, with who published it and, at first,
        // the epoch.
        raw.send(&frame(BINARY, &unhex("0a 08 02 2a 06 0a 04 74 65 73 74")));
        let (first, got) = raw.frame().unwrap();
        assert_eq!(first, BINARY);
        // id 2, subscribe, recoverable; then the epoch.
        let at = got.windows(2).position(|two| two == b"\x32\x08").unwrap() + 2;
        let epoch = got[at..at + 8].to_vec();
        let position: &[u8] = if top == 0 { b"" } else { &[0x48, top] };
        let result = [b"\x18\x01", &field(0x32, &epoch)[..], position, b"\x50\x01"].concat();
        assert_eq!(got, prefixed(&[b"\x08\x02", &field(0x32, &result)[..]].concat()));

        // publish {channel:"test", data:{}} id 3
        raw.send(&frame(BINARY, &unhex("0e 08 03 3a 0a 0a 04 74 65 73 74 12 02 7b 7d")));
        let mut publication = unhex("22 02 7b 7d");
        publication.extend(field(0x2a, &field(0x12, &id)));
        publication.extend([0x30, top + 1]);
        if top == 0 {
            publication.extend(field(0x72, &epoch));
        }
        let push = [&unhex("12 04 74 65 73 74")[..], &field(0x22, &publication)].concat();
        let push = prefixed(&field(0x22, &push));
        let taken = unhex("04 08 03 42 00");
        let got = messages(&mut raw, push.len() + taken.len());
        let orders = [[&push[..], &taken].concat(), [&taken[..], &push].concat()];
        assert!(orders.contains(&got), "{got:02x?} is not {push:02x?} and {taken:02x?}");
    }

    // An error.
    let node = Node::start("client.allow_anonymous_connect_without_token = true", &[]);
    let mut raw = node.upgraded(PROTOBUF_CLIENTS);
    // Both in one frame.
    raw.send(&frame(BINARY, &unhex("04 08 01 22 00 0a 08 02 2a 06 0a 04 74 65 73 74")));
    let error =
        unhex("19 08 02 12 15 08 67 12 11 70 65 72 6d 69 73 73 69 6f 6e 20 64 65 6e 69 65 64");
    let connected = reply(&[b'x'; 36]);
    let got = messages(&mut raw, connected.len() + error.len());
    assert_eq!(got[connected.len()..], error);
}

#[test]
fn pings_and_pongs() {
    let node = Node::open(&["--client.ping_interval", "1s", "--client.pong_timeout", "900ms"]);
    for (path, first, connect, ping) in [
        (CLIENTS, TEXT, &br#"{"id":1,"connect":{}}"#[..], &b"{}"[..]),
        (PROTOBUF_CLIENTS, BINARY, b"\x04\x08\x01\x22\x00", b"\x00"),
    ] {
        let mut raw = node.upgraded(path);
        raw.send(&frame(first, connect));
        assert_eq!(raw.frame().unwrap().0, first);
        // The answer is what lets the second one come.
        for _ in 0..2 {
            assert_eq!(raw.frame(), Some((first, ping.to_vec())));
            raw.send(&frame(first, ping));
        }
        // One too many.
        raw.send(&frame(first, ping));
        assert_eq!(raw.closed(), (3501, "bad request".into()));
    }
}

#[test]
fn tokens() {
    let node = Node::start(FILE, &[]);
    let user = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiI0MiJ9.\
                79CVgMIG_JB921dVUeJDWNJubJojFodH3-XtC_1C408";
    let gold = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiI0MiIsImNoYW5uZWwiOiIkZ29sZCJ9.\
                81YXj8b_s_YPRjLD-miSj2TZW8MsdOeIDqCdikgZKbI";
    for speech in BOTH {
        let (mut client, _) = node.connected_by(speech, json!({"token": user}));
        let answer = client.ask("subscribe", json!({"channel": "$gold", "token": gold}));
        assert_eq!(answer["subscribe"]["recoverable"], true, "{answer}");
    }
}
