//! The log says why a request, a command or a connection was refused, and whose it was.

use crate::harness::*;

#[test]
fn a_refused_origin_is_logged_with_the_allowed_ones() {
    let file = "client.allowed_origins = [\"https://good.example\"]";
    let node = Node::start(file, &[]);
    let mut raw = node.raw();
    raw.send(upgrade(CLIENTS, &["Origin: https://evil.example\u{1b}[2J"]).as_bytes());
    assert_eq!(raw.response().status, 400);
    node.until_logged(&["http.malformed", "code=400"]);
    let mut raw = node.raw();
    raw.send(upgrade(CLIENTS, &["Origin: https://evil.example"]).as_bytes());
    assert_eq!(raw.response().status, 403);
    let line = node.until_logged(&["request refused", "reason=\"http.origin\"", "code=403"]);
    assert!(line.contains("https://evil.example is not in client.allowed_origins"), "{line}");
    assert!(line.contains("(https://good.example)"), "{line}");
}

#[test]
fn a_flood_of_refusals_is_ten_lines_a_second_and_a_number() {
    let node = Node::open(&[]);
    for _ in 0..100 {
        let mut raw = node.raw();
        raw.send(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(raw.response().status, 404);
    }
    // Nothing more of the kind comes, and the number does all the same.
    node.until("all requests are accounted for", |_| {
        let errors = node.errors();
        let lines = errors.lines().filter(|line| line.contains("http.not_found"));
        let counts = lines.map(|line| match line.split_once("left_out=") {
            Some((_, count)) => count.trim().parse::<u64>().unwrap(),
            None => 1,
        });
        counts.sum::<u64>() == 100
    });
    let written = node.errors().matches("request refused").count();
    assert!(written < 100, "{}", node.errors());
}

#[test]
fn ordinary_connects_and_disconnects_are_logged_at_debug_only() {
    let node = Node::open(&["--log.level", "debug"]);
    let client = node.connected_as("42");
    let line = node.until_logged(&["client connected", "user=\"42\"", "client="]);
    assert!(line.contains("DEBUG"), "{line}");
    client.close();
    node.until_logged(&["client disconnected", "user=\"42\"", "client="]);

    let node = Node::open(&[]);
    node.connected_as("42").close();
    let mut raw = node.raw();
    raw.send(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n");
    node.until_logged(&["http.not_found"]);
    assert!(!node.errors().contains("client connected"));
}
