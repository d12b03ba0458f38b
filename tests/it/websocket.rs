//! RFC 6455 against the running server: `/echo` for the frames, and a healthy client beside every
//! fault.

use std::io::{ErrorKind, Write};
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::harness::*;

const ECHO: &[&str] = &["--echo"];

/// Faults behind a good upgrade, and their closes.
fn faults() -> Vec<(&'static str, Vec<u8>, u16)> {
    let plain = |first: u8, payload: &[u8]| [&[first, payload.len() as u8][..], payload].concat();
    let long = vec![b'x'; 126];
    vec![
        ("reserved bit 1", frame(0xc1, b"x"), 1002),
        ("reserved bit 2", frame(0xa1, b"x"), 1002),
        ("reserved bit 3", frame(0x91, b"x"), 1002),
        ("reserved opcode 3", frame(0x83, b"x"), 1002),
        ("reserved opcode 15", frame(0x8f, b""), 1002),
        ("not masked", plain(TEXT, b"x"), 1002),
        ("a ping of 126 bytes", frame(PING, &long), 1002),
        ("a fragmented ping", frame(0x09, b""), 1002),
        ("a fragmented close", frame(0x08, b""), 1002),
        ("nothing to continue", frame(0x80, b"x"), 1002),
        ("a message inside a message", [frame(0x01, b"a"), frame(TEXT, b"b")].concat(), 1002),
        ("a length not minimal", [&[0x82, 0xfe, 0, 1][..], &[0; 5]].concat(), 1002),
        ("a length over 63 bits", [&[0x82, 0xff, 0xff][..], &[0; 11]].concat(), 1002),
        ("a close payload of 1 byte", frame(CLOSE, &[3]), 1002),
        ("close code 999", frame(CLOSE, &close_payload(999, "")), 1002),
        ("close code 1005", frame(CLOSE, &close_payload(1005, "")), 1002),
        ("close code 1006", frame(CLOSE, &close_payload(1006, "")), 1002),
        ("close code 2000", frame(CLOSE, &close_payload(2000, "")), 1002),
        ("close code 5000", frame(CLOSE, &close_payload(5000, "")), 1002),
        ("a close reason not UTF-8", frame(CLOSE, b"\x03\xe8\xff"), 1002),
        ("text not UTF-8", frame(TEXT, b"a\xff"), 1007),
        ("text cut inside a character", frame(TEXT, "ä".as_bytes().split_at(1).0), 1007),
        ("a surrogate", frame(TEXT, b"\xed\xa0\x80"), 1007),
        (
            "bad UTF-8 in the second fragment",
            { [frame(0x01, b"\xc3"), frame(0x80, b"\x28")].concat() },
            1007,
        ),
        ("a message over the limit", header_of(1001), 1009),
        (
            "fragments over the limit",
            { [frame(0x02, &[0; 600]), frame(0x80, &[0; 600])].concat() },
            1009,
        ),
        ("a length of 62 bits", header_of(1 << 62), 1009),
    ]
}

/// The header of a binary frame, with a key of zeros, which masks nothing.
fn header_of(len: usize) -> Vec<u8> {
    [&frame_header(BINARY, len)[..], &[0; 4]].concat()
}

#[test]
fn every_fault_has_its_close_code_and_costs_only_its_own_connection() {
    let node = Node::open(&["--echo", "--websocket.message_size_limit", "1000"]);
    let mut healthy = node.connected();
    healthy.subscribe("beside");
    for path in ["/echo", CLIENTS] {
        for (number, (what, bytes, code)) in faults().into_iter().enumerate() {
            // As one piece, and each byte for itself.
            for size in [bytes.len(), 1] {
                let mut raw = node.upgraded(path);
                println!("{what} at {path}, {size} bytes at a time");
                for piece in bytes.chunks(size) {
                    // The fault may be seen before its last byte.
                    let _ = raw.stream.write_all(piece);
                }
                let (got, reason) = raw.closed();
                assert_eq!(got, code, "{what} at {path}: {reason}");
                assert!(!reason.is_empty(), "{what}");
                raw.ends();
            }
            healthy.pub_sub("beside", number as u32 + 2);
        }
    }
    healthy.close();
    let (all, twice) = (faults(), 4);
    let count = |code| all.iter().filter(|(_, _, c)| *c == code).count() as u64 * twice;
    let figures = node.until_is("slots_in_use", 0);
    assert_eq!(figures["faults_protocol"], count(1002));
    assert_eq!(figures["faults_utf8"], count(1007));
    assert_eq!(figures["faults_too_long"], count(1009));
}

#[test]
fn commands_before_a_fault_are_answered() {
    let node = Node::open(ECHO);
    let mut raw = node.upgraded("/echo");
    raw.send(&[frame(TEXT, b"one"), frame(TEXT, b"two"), frame(0x83, b"")].concat());
    assert_eq!(raw.frame(), Some((TEXT, b"one".to_vec())));
    assert_eq!(raw.frame(), Some((TEXT, b"two".to_vec())));
    assert_eq!(raw.closed().0, 1002);
    raw.ends();
}

#[test]
fn a_close_is_answered_with_its_code() {
    let node = Node::open(ECHO);
    for path in ["/echo", CLIENTS] {
        for code in [1000, 1001, 1003, 1007, 1011, 1012, 1014, 3000, 3999, 4000, 4999] {
            let mut raw = node.upgraded(path);
            raw.send(&frame(CLOSE, &close_payload(code, "bye")));
            assert_eq!(raw.closed().0, code, "{path}");
            raw.ends();
        }
        // Without a code there is none in the answer.
        let mut raw = node.upgraded(path);
        raw.send(&frame(CLOSE, b""));
        assert_eq!(raw.frame(), Some((CLOSE, vec![])));
        raw.ends();
        // Input behind a close has no effect.
        let mut raw = node.upgraded(path);
        raw.send(&[frame(CLOSE, &close_payload(1000, "")), frame(TEXT, b"late")].concat());
        assert_eq!(raw.closed().0, 1000);
        raw.ends();
    }
    node.until_is("slots_in_use", 0);
}

#[test]
fn after_our_close_the_peers_is_awaited() {
    let node = Node::open(&["--close-timeout", "10m"]);
    let mut raw = node.upgraded(CLIENTS);
    raw.send(&frame(TEXT, b"{}"));
    assert_eq!(raw.closed(), (3501, "bad request".to_owned()));
    // All but the close frame is too late, and the connection is still there.
    raw.send(&frame(TEXT, br#"{"id":1,"connect":{}}"#));
    raw.send(&frame(PING, b""));
    let figures = node.figures();
    assert_eq!((figures["connections_open"], figures["sessions_open"]), (1, 0));
    raw.send(&frame(CLOSE, &close_payload(3501, "")));
    raw.ends();
    drop(raw);
    node.until_is("slots_in_use", 0);

    // Its end without a close frame will do, too.
    let mut raw = node.upgraded(CLIENTS);
    raw.send(&frame(TEXT, b"{}"));
    assert_eq!(raw.closed().0, 3501);
    raw.finish();
    raw.ends();
    let figures = node.until_is("slots_in_use", 0);
    assert_eq!(figures["close_timeouts"], 0);
}

#[test]
fn a_peer_that_does_not_answer_our_close_is_dropped() {
    let node = Node::open(&["--close-timeout", "200ms", "--echo"]);
    for (path, bytes, code) in
        [(CLIENTS, frame(TEXT, b"{}"), 3501), ("/echo", frame(0x83, b""), 1002)]
    {
        let mut raw = node.upgraded(path);
        raw.send(&bytes);
        assert_eq!(raw.closed().0, code);
        raw.ends();
        // Our end is still open: only the time was up.
        node.until_is("connections_open", 0);
    }
    assert_eq!(node.figures()["close_timeouts"], 2);
}

#[test]
fn pings_are_answered_in_their_turn() {
    let node = Node::open(ECHO);
    for path in ["/echo", CLIENTS] {
        let mut raw = node.upgraded(path);
        let payload = [7; 125];
        raw.send(&[frame(PING, b""), frame(PING, &payload), frame(PONG, b"not asked")].concat());
        assert_eq!(raw.frame(), Some((PONG, vec![])));
        assert_eq!(raw.frame(), Some((PONG, payload.to_vec())));
        raw.send(&frame(CLOSE, &close_payload(1000, "")));
        assert_eq!(raw.closed().0, 1000);
    }
}

#[test]
fn messages_of_every_length_come_back() {
    let node = Node::open(ECHO);
    let mut raw = node.upgraded("/echo");
    for len in [0, 1, 125, 126, 127, 65_535, 65_536] {
        let payload: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        raw.send(&frame(BINARY, &payload));
        assert_eq!(raw.frame(), Some((BINARY, payload)), "{len}");
    }
    // In pieces of all sizes, so that every border between reads is met.
    let bytes = frame(TEXT, "grün, 緑, 🟢".repeat(10).as_bytes());
    for size in [1, 2, 3, 5, 7, 11, 64] {
        bytes.chunks(size).for_each(|piece| raw.send(piece));
        assert_eq!(raw.frame(), Some((TEXT, "grün, 緑, 🟢".repeat(10).into_bytes())), "{size}");
    }
}

#[test]
fn fragments_are_joined_and_control_frames_may_come_between() {
    let node = Node::open(ECHO);
    let mut raw = node.upgraded("/echo");
    let green = "🟢".as_bytes();
    raw.send(&frame(0x01, &green[..1]));
    raw.send(&frame(PING, b"between"));
    assert_eq!(raw.frame(), Some((PONG, b"between".to_vec())));
    raw.send(&frame(0x00, &green[1..3]));
    raw.send(&frame(0x00, b""));
    raw.send(&[frame(PONG, b""), frame(0x80, &green[3..])].concat());
    assert_eq!(raw.frame(), Some((TEXT, green.to_vec())));

    // The same for commands.
    let mut raw = node.upgraded(CLIENTS);
    let command = br#"{"id":1,"connect":{}}"#;
    raw.send(&frame(0x01, &command[..9]));
    raw.send(&frame(PING, b""));
    raw.send(&frame(0x80, &command[9..]));
    assert_eq!(raw.frame(), Some((PONG, vec![])));
    let (first, reply) = raw.frame().unwrap();
    assert_eq!(first, TEXT);
    assert!(like(std::str::from_utf8(&reply).unwrap(), "{\"id\":1,\"connect\":{*}}"));
}

#[test]
fn a_message_may_be_as_long_as_the_limit() {
    let node = Node::open(&["--echo", "--websocket.message_size_limit", "100000"]);
    let mut raw = node.upgraded("/echo");
    raw.send(&frame(BINARY, &vec![1; 100_000]));
    assert_eq!(raw.frame().unwrap().1.len(), 100_000);
    raw.send(&[frame(0x02, &vec![2; 99_999]), frame(0x80, &[2])].concat());
    assert_eq!(raw.frame().unwrap().1.len(), 100_000);
    raw.send(&header_of(100_001));
    assert_eq!(raw.closed().0, 1009);
}

#[test]
fn an_idle_echo_peer_is_pinged_and_stays_while_it_answers() {
    let node = Node::open(&["--echo", "--idle-timeout", "200ms"]);
    let mut raw = node.upgraded("/echo");
    for _ in 0..3 {
        assert_eq!(raw.frame(), Some((PING, vec![])));
        raw.send(&frame(PONG, b""));
    }
    // Now it doesn't.
    assert_eq!(raw.frame(), Some((PING, vec![])));
    raw.ends();
    assert_eq!(node.until_is("slots_in_use", 0)["closed_idle"], 1);
}

/// The peer writes as much as it can without reading: the server stops taking it in, keeps little
/// of it, and doesn't call it slow. Then everything comes back, in order.
#[test]
fn echo_holds_back_a_peer_that_does_not_read() {
    const MESSAGES: usize = 1024;
    const BYTES: usize = 64 * 1024;
    let message = |number: usize| vec![(number % 251) as u8; BYTES];

    let node = Node::open(ECHO);
    let before = node.figures();
    let mut raw = node.upgraded("/echo");
    let mut writing = raw.stream.try_clone().unwrap();
    let (stalled, is_stalled) = channel();
    let writer = std::thread::spawn(move || {
        writing.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        for number in 0..MESSAGES {
            let mut bytes = header_of(BYTES);
            bytes.extend(message(number));
            let mut written = 0;
            while written < bytes.len() {
                match writing.write(&bytes[written..]) {
                    Ok(count) => written += count,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        let _ = stalled.send(number);
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    });
    let taken = is_stalled.recv_timeout(BOUND).expect("the writer never had to wait");
    let held = node.until("waiting", |figures| figures["queued_bytes"] > 0);
    assert!(taken < MESSAGES / 2, "{taken} messages taken from a peer that reads none");
    assert!(held["queued_bytes"] < 1 << 20, "{held:#?}");
    let grown = held["rss_bytes"].saturating_sub(before["rss_bytes"]);
    assert!(grown < 4 << 20, "{grown} bytes more for one peer that does not read");
    assert_eq!((held["connections_open"], held["closed_slow"]), (1, 0));
    assert_eq!(held["closed_write_timeout"], 0);

    for number in 0..MESSAGES {
        let (first, payload) = raw.frame().expect("still open");
        assert!(first == BINARY && payload == message(number), "message {number}");
    }
    writer.join().unwrap();
    raw.send(&frame(CLOSE, &close_payload(1000, "")));
    assert_eq!(raw.closed().0, 1000);
    drop(raw);
    node.until("empty", |figures| figures["queued_bytes"] == 0 && figures["slots_in_use"] == 0);
}
