//! Clients that read too slowly: what each policy of a namespace makes of it, and publications that
//! wait for others.

use serde_json::{Value, json};
use tungstenite::Message;

use crate::harness::{CLIENTS, Figures, Node, Raw, TEXT, frame};

/// Little room on the way to a client that doesn't read, and time for it.
const NARROW: [&str; 8] = [
    "--send-buffer",
    "4096",
    "--notsent-lowat",
    "4096",
    "--websocket.write_timeout",
    "60s",
    "--client.queue_max_size",
    "60000",
];

/// Publications of a test, each longer than 2 kB.
const COUNT: u64 = 2000;

fn node(namespace: &str) -> Node {
    let file = format!(
        "[[channel.namespaces]]\nname = 'ns'\nallow_subscribe_for_client = true\n\
         allow_publish_for_client = true\n\
         allow_subscribe_for_anonymous = true\nallow_publish_for_anonymous = true\n{namespace}\n"
    );
    Node::open_with(&file, &NARROW)
}

/// A client that subscribes to `ns:a` and then reads nothing.
fn stalled(node: &Node, request: &str) -> Raw {
    let mut raw = node.upgraded(CLIENTS);
    raw.send(&frame(TEXT, br#"{"id":1,"connect":{}}"#));
    let subscribe = format!("{{\"id\":2,\"subscribe\":{{\"channel\":\"ns:a\"{request}}}}}");
    raw.send(&frame(TEXT, subscribe.as_bytes()));
    node.until_is("subscriptions", 1);
    raw
}

fn data(number: u64) -> Value {
    // The change is small, so that a patch is short.
    json!({"n": number, "pad": "x".repeat(2000), "again": number * 7})
}

fn publish(node: &Node) {
    let mut publisher = node.connected();
    for number in 1..=COUNT {
        publisher.publish("ns:a", data(number));
    }
    publisher.close();
}

/// Reads on until the publication with the last number has come: all publications, in order.
fn read_to_the_end(raw: &mut Raw) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    loop {
        let (first, payload) = raw.frame().expect("the connection stays");
        assert_eq!(first, TEXT, "{}", String::from_utf8_lossy(&payload));
        for line in std::str::from_utf8(&payload).unwrap().split('\n') {
            let mut message: Value = serde_json::from_str(line).unwrap();
            if let Some(publication) = message.pointer_mut("/push/pub") {
                all.push(publication.take());
            }
        }
        if all.last().is_some_and(|last| last["data"].to_string().contains(&COUNT.to_string())) {
            return all;
        }
    }
}

fn rises(numbers: &[u64]) {
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
}

fn numbers(publications: &[Value]) -> Vec<u64> {
    publications.iter().map(|publication| publication["data"]["n"].as_u64().unwrap()).collect()
}

fn of(figures: &Figures, what: &str) -> u64 {
    figures.get(&format!("{what}{{namespace=\"ns\"}}")).copied().unwrap_or(0)
}

fn nothing_is_left(node: &Node) -> Figures {
    node.until("nothing waits", |figures| figures["queued_bytes"] == 0 && figures["queues"] == 0)
}

#[test]
fn the_newest_waits() {
    let node = node("roost.slow_policy = 'latest'");
    let mut raw = stalled(&node, "");
    publish(&node);
    // Beside the frame that has begun to go, a few publications if some came together, only one waits.
    assert!(node.figures()["queued_bytes"] < 64_000, "{:?}", node.figures());
    let seen = numbers(&read_to_the_end(&mut raw));
    rises(&seen);
    let figures = nothing_is_left(&node);
    assert_eq!(of(&figures, "conflated") + seen.len() as u64, COUNT);
    assert_eq!((of(&figures, "dropped_oldest"), figures["closed_slow"]), (0, 0));
    // From here on it keeps up, and gets everything.
    let before = of(&figures, "conflated");
    let mut publisher = node.connected();
    for number in [3000, 3001] {
        publisher.publish("ns:a", data(number));
        let (_, payload) = raw.frame().unwrap();
        assert!(String::from_utf8(payload).unwrap().contains(&format!("\"n\":{number},")));
    }
    assert_eq!(of(&node.figures(), "conflated"), before);
}

#[test]
fn the_oldest_make_room() {
    let node = node("roost.slow_policy = 'drop_oldest'");
    let mut raw = stalled(&node, "");
    publish(&node);
    let waiting = node.figures()["queued_bytes"];
    assert!((50_000..=60_000).contains(&waiting), "{waiting}");
    let seen = numbers(&read_to_the_end(&mut raw));
    rises(&seen);
    // The newest of them without a gap, as many as there is room for.
    let newest: Vec<u64> = (COUNT - 20..=COUNT).collect();
    assert!(seen.ends_with(&newest), "{seen:?}");
    let figures = nothing_is_left(&node);
    assert_eq!(of(&figures, "dropped_oldest") + seen.len() as u64, COUNT);
    assert_eq!((of(&figures, "conflated"), figures["closed_slow"]), (0, 0));
}

#[test]
fn a_positioned_slow_client_is_closed() {
    let node = node("");
    let mut raw = stalled(&node, "");
    publish(&node);
    let figures = node.until_is("closed_slow", 1);
    assert_eq!((of(&figures, "closed_slow"), of(&figures, "dropped_oldest")), (1, 0));
    while let Some((first, _)) = raw.frame() {
        if first != TEXT {
            break;
        }
    }
    drop(raw);
    nothing_is_left(&node);
}

#[test]
fn patches_after_a_drop_go_full() {
    for policy in ["latest", "drop_oldest"] {
        let node = node(&format!(
            "history_size = 10\nhistory_ttl = '1m'\nforce_recovery = true\n\
             force_recovery_mode = 'cache'\nallowed_delta_types = ['fossil']\n\
             delta_publish = true\nroost.slow_policy = '{policy}'"
        ));
        let mut raw = stalled(&node, ",\"delta\":\"fossil\"");
        // Patches alone are too short to fill what is on the way: the padding changes, too.
        let mut publisher = node.connected();
        let text = |number: u64| {
            let pad: String = (0..3000u64)
                .map(|at| char::from(b'a' + ((at * 31 + number * 17 + at * number) % 23) as u8))
                .collect();
            json!({"n": number, "pad": pad, "tail": "the same in all of them, and long enough"})
        };
        for number in 1..=COUNT {
            publisher.publish("ns:a", text(number));
        }
        publisher.close();
        let mut base: Option<String> = None;
        let (mut patches, mut fulls) = (0, 0);
        let mut seen = Vec::new();
        for publication in read_to_the_end(&mut raw) {
            let data = publication["data"].as_str().expect("a string, where deltas were asked for");
            let full = match publication.get("delta") {
                Some(Value::Bool(true)) => {
                    patches += 1;
                    let base = base.take().expect("something to build on");
                    let full = fossil_delta::apply(base.as_bytes(), data.as_bytes());
                    String::from_utf8(full.expect("a patch on its own base")).unwrap()
                }
                _ => {
                    fulls += 1;
                    data.to_owned()
                }
            };
            let document: Value = serde_json::from_str(&full).expect("JSON");
            let number = document["n"].as_u64().unwrap();
            assert_eq!(document, text(number), "{policy}");
            seen.push(number);
            base = Some(full);
        }
        rises(&seen);
        assert!(patches > 0 && fulls > 1, "{policy}: {patches} patches, {fulls} in full");
        let figures = nothing_is_left(&node);
        let lost = of(&figures, "conflated") + of(&figures, "dropped_oldest");
        assert_eq!(lost + seen.len() as u64, COUNT, "{policy}");
    }
}

#[test]
fn delayed_publications_go_out_together() {
    let node = node("roost.write_delay = '300ms'");
    let mut subscriber = node.connected();
    subscriber.subscribe("ns:a");
    let mut publisher = node.connected();
    for number in 1..=20 {
        publisher.publish("ns:a", json!({ "n": number }));
    }
    // Two frames, since one has 16 messages at most.
    let mut lines = Vec::new();
    for count in [16, 4] {
        let Message::Text(text) = subscriber.socket.read().unwrap() else { panic!("no text") };
        let in_frame: Vec<_> = text.split('\n').map(String::from).collect();
        assert_eq!(in_frame.len(), count, "{text}");
        lines.extend(in_frame);
    }
    for (number, line) in (1..).zip(lines) {
        assert!(line.contains(&format!("\"data\":{{\"n\":{number}}}")), "{line}");
    }
    // A client that left before they are sent gets none of them.
    publisher.publish("ns:a", json!(1));
    let id = subscriber.command("unsubscribe", json!({"channel": "ns:a"}));
    subscriber.expect(&format!("{{\"id\":{id},\"unsubscribe\":{{}}}}"));
    // Nothing came behind the answer: it is the next one that comes.
    assert_eq!(subscriber.ask("rpc", json!({}))["error"]["code"], 108);
    nothing_is_left(&node);
}
