//! The upgrade, and what is refused before it (RFC 9110, 9112, RFC 6455 4.2).

use std::net::TcpStream;

use tungstenite::handshake::derive_accept_key;

use crate::harness::*;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// One request head and what it is answered with.
struct Case {
    what: &'static str,
    request: String,
    status: u16,
    header: Option<(&'static str, &'static str)>,
    counter: &'static str,
}

fn request(line: &str, headers: &[&str]) -> String {
    let mut request = format!("{line}\r\nHost: localhost\r\n");
    for header in headers {
        request += &format!("{header}\r\n");
    }
    request + "\r\n"
}

/// A good upgrade with one header replaced; without one, if nothing stands behind the colon.
fn but(header: &str) -> String {
    let name = header.split(':').next().unwrap();
    let mut lines: Vec<String> = upgrade(CLIENTS, &[]).trim_end().lines().map(Into::into).collect();
    lines.retain(|line| !line.starts_with(name));
    if !header.ends_with(':') {
        lines.push(header.to_owned());
    }
    lines.join("\r\n") + "\r\n\r\n"
}

fn cases() -> Vec<Case> {
    let version = Some(("sec-websocket-version", "13"));
    let case = |what, request: String, status, header, counter| Case {
        what,
        request,
        status,
        header,
        counter,
    };
    let good = "GET /connection/websocket HTTP/1.1";
    vec![
        case(
            "another method",
            upgrade(CLIENTS, &[]).replace("GET", "POST"),
            405,
            Some(("allow", "GET")),
            "refused_upgrade",
        ),
        case("a plain request", request(good, &[]), 400, version, "refused_upgrade"),
        case("Connection", but("Connection: keep-alive"), 400, version, "refused_upgrade"),
        case("Upgrade", but("Upgrade: h2c"), 400, version, "refused_upgrade"),
        case("an old version", but("Sec-WebSocket-Version: 8"), 400, version, "refused_upgrade"),
        case("no version", but("Sec-WebSocket-Version:"), 400, version, "refused_upgrade"),
        case("a short key", but("Sec-WebSocket-Key: c2hvcnQ="), 400, version, "refused_upgrade"),
        case("no key", but("Sec-WebSocket-Key:"), 400, version, "refused_upgrade"),
        case("a body", but("Content-Length: 3"), 400, None, "refused_upgrade"),
        case(
            "HTTP/1.0",
            upgrade(CLIENTS, &[]).replace("HTTP/1.1", "HTTP/1.0"),
            400,
            version,
            "refused_upgrade",
        ),
        case("no host", but("Host:"), 400, None, "refused_malformed"),
        case("two hosts", request(good, &["Host: a"]), 400, None, "refused_malformed"),
        case("no valid host", but("Host: a/b"), 400, None, "refused_malformed"),
        case("FTP", request("GET / FTP/1.1", &[]), 400, None, "refused_malformed"),
        case("HTTP/1.x", request("GET / HTTP/1.x", &[]), 400, None, "refused_malformed"),
        case(
            "a space in the target",
            request("GET /a b HTTP/1.1", &[]),
            400,
            None,
            "refused_malformed",
        ),
        case("no path", request("GET a HTTP/1.1", &[]), 400, None, "refused_malformed"),
        case("HTTP/3", request("GET / HTTP/3.0", &[]), 505, None, "refused_malformed"),
        case("no HTTP", "hello\r\n\r\n".into(), 400, None, "refused_malformed"),
        case("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 505, None, "refused_malformed"),
        case("a path of nobody's", upgrade("/nobody", &[]), 404, None, "refused_not_found"),
        case("the echo, off", upgrade("/echo", &[]), 404, None, "refused_not_found"),
        case("the root", request("GET / HTTP/1.1", &[]), 404, None, "refused_not_found"),
        case(
            "an origin",
            upgrade(CLIENTS, &["Origin: https://evil.example"]),
            403,
            None,
            "refused_origin",
        ),
        case(
            "a long target",
            upgrade(&format!("{CLIENTS}?{}", "x".repeat(25 << 10)), &[]),
            414,
            None,
            "refused_too_long",
        ),
        case(
            "a long header",
            upgrade(CLIENTS, &[&format!("Cookie: {}", "x".repeat(25 << 10))]),
            431,
            None,
            "refused_too_long",
        ),
        case("many headers", upgrade(CLIENTS, &["X: y"; 70]), 431, None, "refused_too_long"),
    ]
}

#[test]
fn refusals() {
    let node = Node::open(&["--client.allowed_origins", "https://app.example"]);
    for case in cases() {
        let before = node.figures()[case.counter];
        let mut raw = node.raw();
        raw.send(case.request.as_bytes());
        let response = raw.response();
        assert_eq!(response.status, case.status, "{}", case.what);
        if let Some((name, value)) = case.header {
            assert_eq!(response.header(name), Some(value), "{}", case.what);
        }
        assert_eq!(response.header("connection"), Some("close"), "{}", case.what);
        assert!(response.header("date").is_some(), "{}", case.what);
        raw.ends();
        assert_eq!(node.figures()[case.counter], before + 1, "{}", case.what);
        node.is_healthy();
    }
    node.until_is("slots_in_use", 0);
}

#[test]
fn a_good_upgrade_is_answered_with_accept_and_nothing_that_was_not_offered() {
    let node = Node::open(&[]);
    // Offered, answered.
    for (offers, answer) in [
        (&[][..], None),
        (&["Sec-WebSocket-Protocol: centrifuge-json"], Some("centrifuge-json")),
        (&["Sec-WebSocket-Protocol: x, centrifuge-json, y"], Some("centrifuge-json")),
        (
            &["Sec-WebSocket-Protocol: x", "Sec-WebSocket-Protocol: centrifuge-json"],
            Some("centrifuge-json"),
        ),
        (&["Sec-WebSocket-Protocol: centrifuge-protobuf"], Some("centrifuge-protobuf")),
        (
            &["Sec-WebSocket-Protocol: centrifuge-protobuf, centrifuge-json"],
            Some("centrifuge-protobuf"),
        ),
        (&["Sec-WebSocket-Protocol: chat"], None),
        (&["Sec-WebSocket-Extensions: permessage-deflate"], None),
    ] {
        let mut raw = node.raw();
        raw.send(upgrade(CLIENTS, offers).as_bytes());
        let response = raw.response();
        assert_eq!(response.status, 101, "{offers:?}");
        let accept = derive_accept_key(KEY.as_bytes());
        assert_eq!(response.header("sec-websocket-accept"), Some(accept.as_str()));
        assert_eq!(response.header("upgrade"), Some("websocket"));
        assert_eq!(response.header("connection"), Some("Upgrade"));
        assert_eq!(response.header("sec-websocket-protocol"), answer, "{offers:?}");
        assert_eq!(response.header("sec-websocket-extensions"), None);
    }
}

/// Which encoding a client gets: by what it asks for, whatever frames it sends.
#[test]
fn encodings() {
    let node = Node::open(&[]);
    let protobuf = "Sec-WebSocket-Protocol: centrifuge-protobuf";
    for (query, headers, first) in [
        ("", &[][..], TEXT),
        ("?format=json", &[], TEXT),
        ("?format=protobuf", &[], BINARY),
        ("?a=b&format=protobuf", &[], BINARY),
        ("?cf_protocol=protobuf", &[], BINARY),
        ("?cf_protocol=json", &[], TEXT),
        ("?xformat=protobuf", &[], TEXT),
        ("", &[protobuf], BINARY),
        ("", &["Sec-WebSocket-Protocol: centrifuge-json"], TEXT),
        ("", &["Sec-WebSocket-Protocol: centrifuge-json, centrifuge-protobuf"], TEXT),
    ] {
        let mut raw = node.raw();
        raw.send(upgrade(&format!("{CLIENTS}{query}"), headers).as_bytes());
        assert_eq!(raw.response().status, 101, "{query} {headers:?}");
        let connect = match first {
            TEXT => frame(BINARY, br#"{"id":1,"connect":{}}"#),
            _ => frame(BINARY, b"\x04\x08\x01\x22\x00"),
        };
        raw.send(&connect);
        assert_eq!(raw.frame().unwrap().0, first, "{query} {headers:?}");
    }
}

#[test]
fn origins() {
    // Patterns, origin, allowed.
    for (patterns, table) in [
        ("", &[(None, true), (Some("https://a.example"), false), (Some("null"), false)][..]),
        ("*", &[(None, true), (Some("https://a.example"), true), (Some("null"), true)]),
        (
            "https://*.app.example http://localhost:3000",
            &[
                (None, true),
                (Some("https://www.app.example"), true),
                (Some("HTTPS://WWW.App.Example"), true),
                (Some("https://app.example.evil"), false),
                (Some("http://localhost:3000"), true),
                (Some("http://localhost:3001"), false),
            ],
        ),
    ] {
        let file = patterns.split_whitespace().map(|p| format!("{p:?}")).collect::<Vec<_>>();
        let node = Node::start(&format!("client.allowed_origins = [{}]", file.join(",")), &[]);
        for (origin, allowed) in table {
            let header = origin.map(|origin| format!("Origin: {origin}"));
            let headers: Vec<&str> = header.as_deref().into_iter().collect();
            let mut raw = node.raw();
            raw.send(upgrade(CLIENTS, &headers).as_bytes());
            let expected = if *allowed { 101 } else { 403 };
            assert_eq!(raw.response().status, expected, "{origin:?} against {patterns:?}");
        }
    }
}

#[test]
fn a_head_may_come_byte_by_byte() {
    let node = Node::open(&[]);
    let mut raw = node.raw();
    for byte in upgrade(CLIENTS, &[]).bytes() {
        raw.send(&[byte]);
    }
    assert_eq!(raw.response().status, 101);
    raw.send(&frame(TEXT, br#"{"id":1,"connect":{}}"#));
    assert_eq!(raw.frame().unwrap().0, TEXT);
}

#[test]
fn frames_may_follow_the_head_at_once() {
    // Bytes are counted as they come.
    if over_tls() {
        return;
    }
    let node = Node::open(&[]);
    let mut bytes = upgrade(CLIENTS, &[]).into_bytes();
    bytes.extend(frame(TEXT, br#"{"id":1,"connect":{}}"#));
    bytes.extend(frame(TEXT, br#"{"id":2,"subscribe":{"channel":"a"}}"#));
    bytes.extend(frame(PING, b"x"));
    // In one segment, in every two, and with the last frame cut short.
    for cut in [bytes.len(), 10, 100, 180, bytes.len() - 30, bytes.len() - 1] {
        let before = node.figures()["bytes_received"];
        let mut raw = node.raw();
        raw.send(&bytes[..cut]);
        if cut < bytes.len() {
            // The bytes so far are read on their own.
            node.until_is("bytes_received", before + cut as u64);
            raw.send(&bytes[cut..]);
        }
        assert_eq!(raw.response().status, 101);
        let mut text = String::new();
        let mut pongs = 0;
        while pongs == 0 || !text.contains("subscribe") {
            match raw.frame().unwrap() {
                (TEXT, payload) => text += &(String::from_utf8(payload).unwrap() + "\n"),
                (PONG, payload) => pongs += usize::from(payload == b"x"),
                other => panic!("{other:?}"),
            }
        }
        assert!(like(&text, "{\"id\":1,\"connect\":{*}}\n{\"id\":2,\"subscribe\":{}}\n"), "{text}");
    }
}

#[test]
fn heads_that_do_not_come_are_answered_with_408() {
    let node = Node::open(&["--handshake-timeout", "1s", "--close-timeout", "300ms"]);
    let parts = ["G", "GET / HTTP/1.1\r\nHost: x\r\n"].map(|part| {
        let mut raw = node.raw();
        raw.send(part.as_bytes());
        (part, raw)
    });
    for (part, mut raw) in parts {
        assert_eq!(raw.response().status, 408, "{part:?}");
        raw.ends();
    }
    // Bytes that keep coming don't put it off.
    let mut raw = node.raw();
    let dripping = raw.stream.try_clone().unwrap();
    let dripper = std::thread::spawn(move || drip(dripping));
    assert_eq!(raw.response().status, 408);
    raw.ends();
    drop(raw);
    dripper.join().unwrap();
    assert_eq!(node.figures()["refused_timeout"], 3);
    // An answer to no request would be taken for that of the next one.
    let mut raw = node.raw();
    assert_eq!(raw.rest(), b"", "closed without a word");
    assert_eq!(node.figures()["closed_unused"], 1);
    node.is_healthy();
    node.until_is("slots_in_use", 0);
}

/// The answer to a HEAD is the head alone, from every endpoint.
#[test]
fn answers_to_head_have_no_body() {
    let more = "[health]\nenabled = true\n[http_api]\nkey = \"k\"";
    let node = Node::open_with(more, &[]);
    for (path, status) in [("/nobody", 404), (CLIENTS, 405), ("/health", 200), ("/api/info", 405)] {
        let mut raw = node.raw();
        raw.send(request(&format!("HEAD {path} HTTP/1.1"), &["Connection: close"]).as_bytes());
        let bytes = String::from_utf8(raw.rest()).unwrap();
        let (head, body) = bytes.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {head}");
        assert!(head.contains("\r\nDate: ") || head.contains("\r\ndate: "), "{path}: {head}");
        assert_eq!(body, "", "{path}");
    }
}

/// Clients that speak HTTP/1.0 keep a connection only when the answer says so.
#[test]
fn a_kept_connection_is_said_to_be_kept_where_that_is_not_the_rule() {
    let more = "[health]\nenabled = true\n[init]\nenabled = true";
    let node = Node::open_with(more, &[]);
    for path in ["/health", "/connection/init"] {
        let mut raw = node.raw();
        for _ in 0..3 {
            raw.send(format!("GET {path} HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").as_bytes());
            let answer = raw.response();
            assert_eq!((answer.status, answer.header("connection")), (200, Some("keep-alive")));
            assert!(answer.header("content-length").is_some() && answer.header("date").is_some());
        }
        raw.send(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes());
        assert_eq!(raw.response().header("connection"), Some("close"));
        raw.ends();
        // In HTTP/1.1 it is the rule.
        let mut raw = node.raw();
        for _ in 0..2 {
            raw.send(request(&format!("GET {path} HTTP/1.1"), &[]).as_bytes());
            assert_eq!(raw.response().header("connection"), None);
        }
    }
}

#[test]
fn options_of_the_server_as_a_whole() {
    let node = Node::open(&[]);
    let mut raw = node.raw();
    for _ in 0..2 {
        raw.send(request("OPTIONS * HTTP/1.1", &[]).as_bytes());
        let answer = raw.response();
        assert_eq!((answer.status, answer.body.as_str()), (200, ""));
        assert_eq!(answer.header("allow"), Some("GET, HEAD, POST, OPTIONS"));
    }
}

/// Input behind a refused request is read and dropped: a reset would destroy the answer
/// before it is read.
#[test]
fn a_refusal_arrives_however_much_was_sent() {
    let node = Node::open(&[]);
    for size in [1, 100_000, 2_000_000] {
        let mut raw = node.raw();
        let head = format!("POST /nobody HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n");
        raw.send(head.as_bytes());
        raw.send(&vec![b'x'; size]);
        assert_eq!(raw.response().status, 404, "{size}");
        raw.ends();
    }
    node.until_is("slots_in_use", 0);
}

/// Writes a head that never ends until that fails.
fn drip(mut stream: TcpStream) {
    use std::io::Write;
    for byte in "GET / HTTP/1.1\r\nX: ".bytes().chain(std::iter::repeat_n(b'x', 10_000)) {
        if stream.write_all(&[byte]).is_err() {
            return;
        }
        std::thread::park_timeout(std::time::Duration::from_millis(10));
    }
    panic!("10,000 bytes were taken");
}
