//! What isn't the client protocol costs its own connection, with 3501, and a healthy client beside
//! it never notices.

use std::time::{Duration, Instant};

use crate::harness::*;

/// Frames that are no commands.
const NONSENSE: &[&str] = &[
    "",
    "\n",
    "\n\n",
    " ",
    "x",
    "null",
    "0",
    "\"connect\"",
    "[]",
    "[{\"id\":1,\"connect\":{}}]",
    "{",
    "}",
    "{\"id\":1,\"connect\":{}",
    "{\"id\":1,\"connect\":{}}}",
    "{\"id\":1,\"connect\":{}} {\"id\":2}",
    "{\"id\":1,\"connect\":[]}",
    "{\"id\":1,\"connect\":\"\"}",
    "{\"id\":1,\"connect\":{\"token\":1}}",
    "{\"id\":-1,\"connect\":{}}",
    "{\"id\":1.5,\"connect\":{}}",
    "{\"id\":\"1\",\"connect\":{}}",
    "{\"id\":4294967296,\"connect\":{}}",
    "{\"id\":1,\"connect\":{\"data\":nothing}}",
    "{\"id\":1,\"connect\":{\"name\":\"\\ud800\"}}",
    "{\"id\":1,\"connect\":{\"name\":\"a\tb\"}}",
    "\u{feff}{\"id\":1,\"connect\":{}}",
    "\n{\"id\":1,\"connect\":{}}",
    "{\"id\":1,\"connect\":{}}\n\n{\"id\":2,\"rpc\":{}}",
    "{\"id\":1,\"connect\":{}}\n\n",
    "{\"id\":1,\"connect\":{}}\nx",
];

/// The close of a raw connection, behind whatever was answered before it.
fn close_of(raw: &mut Raw) -> (u16, String) {
    loop {
        match raw.frame().expect("a close frame") {
            (TEXT, _) => {}
            (CLOSE, payload) => {
                let code = u16::from_be_bytes([payload[0], payload[1]]);
                return (code, String::from_utf8(payload[2..].to_vec()).unwrap());
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn nonsense_is_closed_with_3501() {
    let node = Node::open(&[]);
    let mut healthy = node.connected();
    healthy.subscribe("beside");
    for (number, text) in NONSENSE.iter().enumerate() {
        for connected in [false, true] {
            let mut raw = node.upgraded(CLIENTS);
            if connected {
                raw.send(&frame(TEXT, br#"{"id":9,"connect":{}}"#));
                assert_eq!(raw.frame().unwrap().0, TEXT);
            }
            raw.send(&frame(TEXT, text.as_bytes()));
            assert_eq!(close_of(&mut raw), (3501, "bad request".into()), "{text:?}");
            raw.send(&frame(CLOSE, &close_payload(3501, "")));
            raw.ends();
        }
        healthy.pub_sub("beside", number as u32 + 2);
    }
    // Text is checked; a binary frame with bad text is still no command.
    let mut raw = node.upgraded(CLIENTS);
    raw.send(&frame(BINARY, b"{\"id\":1,\"connect\":{\"name\":\"\xff\"}}"));
    assert_eq!(close_of(&mut raw).0, 3501);
    let figures = node.figures();
    assert_eq!(figures["faults_bad_request"], NONSENSE.len() as u64 * 2 + 1);
    healthy.close();
}

#[test]
fn deep_and_long_input_is_bounded() {
    let node = Node::open(&["--websocket.message_size_limit", "1000000"]);
    // As deep as a message is long: refused, not a stack that overflows.
    for open in ["[", "{\"a\":"] {
        let mut raw = node.upgraded(CLIENTS);
        raw.send(&frame(TEXT, br#"{"id":1,"connect":{}}"#));
        raw.frame().unwrap();
        let deep = open.repeat(100_000);
        let text = format!("{{\"id\":2,\"publish\":{{\"channel\":\"a\",\"data\":{deep}");
        raw.send(&frame(TEXT, text.as_bytes()));
        assert_eq!(close_of(&mut raw).0, 3501);
    }
    // Many commands in one frame: each is answered.
    let mut client = node.connected();
    let batch: Vec<String> =
        (2..10_002).map(|id| format!("{{\"id\":{id},\"rpc\":{{}}}}")).collect();
    client.send(&batch.join("\n"));
    for id in 2..10_002 {
        client.expect(&format!("{{\"id\":{id},\"error\":{{\"code\":108,*}}}}"));
    }
    node.is_healthy();
}

/// One connection that floods the server doesn't keep another waiting: both are in turn.
#[test]
fn a_flood_does_not_starve_the_others() {
    let node = Node::open(&["--shards", "1"]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut flooding = node.upgraded(CLIENTS);
        flooding.send(&frame(TEXT, br#"{"id":1,"connect":{}}"#));
        flooding.frame().unwrap();
        let mut reading = Raw::new(flooding.stream.try_clone().unwrap());
        let stop = &stop;
        scope.spawn(move || {
            let pings = frame(PING, b"flood").repeat(10_000);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                flooding.send(&pings);
            }
            flooding.finish();
        });
        scope.spawn(move || while reading.frame().is_some() {});
        let since = Instant::now();
        let mut healthy = node.connected();
        healthy.subscribe("beside");
        for id in 2..102 {
            healthy.pub_sub("beside", id);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        // A hang would be `BOUND` long for each answer; this is no measurement.
        assert!(since.elapsed() < Duration::from_secs(100));
    });
    node.until_is("slots_in_use", 0);
}
