//! Addresses of clients behind balancers and proxies, and limits per address.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};

use serde_json::json;

use crate::harness::*;

/// An application that lets everybody connect; each call's head, in lower case, comes out of the channel.
pub(crate) fn application() -> (u16, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (heads, calls) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(stream);
            let (mut head, mut len) = (String::new(), 0);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                let line = line.to_lowercase();
                if let Some(value) = line.strip_prefix("content-length:") {
                    len = value.trim().parse().unwrap();
                }
                head += &line;
                if line.trim().is_empty() {
                    break;
                }
            }
            reader.read_exact(&mut vec![0; len]).unwrap();
            let body = json!({"result": {"user": "x"}}).to_string();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
            let _ = heads.send(head);
        }
    });
    (port, calls)
}

fn node_with_application(options: &str) -> (Node, Receiver<String>) {
    let (port, calls) = application();
    let more = format!(
        "[client.proxy.connect]\nenabled = true\nendpoint = \"http://127.0.0.1:{port}/\"\n\
         [roost]\n{options}"
    );
    (Node::open_with(&more, &[]), calls)
}

/// Connects a client whose connection begins with `before` and whose upgrade has these headers, and
/// returns the address that the application was told.
fn told(node: &Node, calls: &Receiver<String>, before: &[u8], headers: &[&str]) -> String {
    let mut raw = node.raw();
    let mut bytes = before.to_vec();
    bytes.extend(upgrade(CLIENTS, headers).as_bytes());
    raw.send(&bytes);
    assert_eq!(raw.response().status, 101);
    raw.send(&frame(0x81, br#"{"id":1,"connect":{}}"#));
    assert!(raw.frame().is_some());
    let head = calls.recv_timeout(BOUND).unwrap();
    let value = |name: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim().to_owned()
    };
    assert_eq!(value("x-real-ip:"), value("x-forwarded-for:"));
    value("x-real-ip:")
}

/// A version 2 header for a client 203.0.113.`host`.
fn version_2(host: u8) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x10".to_vec();
    header.extend([203, 0, 113, host, 127, 0, 0, 1, 0, 80, 0, 80]);
    header.extend(*b"\x04\x00\x01x");
    header
}

#[test]
fn the_application_gets_the_peer_address() {
    let (node, calls) = node_with_application("");
    assert_eq!(told(&node, &calls, b"", &["X-Forwarded-For: 203.0.113.7"]), "127.0.0.1");
}

#[test]
fn a_proxy_header_names_the_client() {
    // A tunnel has no PROXY header before its handshake: tls_node.rs has one.
    if over_tls() {
        return;
    }
    let (node, calls) = node_with_application("proxy_protocol = true");
    let v1 = b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 80\r\n";
    assert_eq!(told(&node, &calls, v1, &[]), "203.0.113.7");
    assert_eq!(told(&node, &calls, b"PROXY TCP6 2001:db8::7 ::1 4711 80\r\n", &[]), "2001:db8::7");
    assert_eq!(told(&node, &calls, &version_2(9), &[]), "203.0.113.9");
    assert_eq!(told(&node, &calls, b"PROXY UNKNOWN\r\n", &[]), "127.0.0.1");
    // In pieces.
    let mut raw = node.raw();
    for byte in &version_2(1) {
        raw.send(&[*byte]);
    }
    raw.send(upgrade(CLIENTS, &[]).as_bytes());
    assert_eq!(raw.response().status, 101);
    let figures = node.until_is("proxy_headers", 5);
    assert_eq!(figures["proxy_headers_refused"], 0);
    // A peer that has to announce its client and doesn't.
    for bytes in
        [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"PROXY TCP4 1.2.3.4\r\n", b"\r\n\r\n\r\n"]
    {
        let mut raw = node.raw();
        raw.send(bytes);
        assert!(raw.response_or_end().is_none());
    }
    node.until_is("proxy_headers_refused", 3);
}

#[test]
fn a_proxy_header_of_a_stranger_is_refused() {
    for options in ["", "proxy_protocol = true\ntrusted_proxies = [\"10.0.0.0/8\"]"] {
        let (node, calls) = node_with_application(options);
        assert_eq!(told(&node, &calls, b"", &[]), "127.0.0.1");
        for header in [b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 80\r\n".to_vec(), version_2(1)] {
            let mut raw = node.raw();
            raw.send(&[&header[..], upgrade(CLIENTS, &[]).as_bytes()].concat());
            assert_eq!(raw.response().status, 400);
        }
        node.until_is("proxy_headers_refused", 2);
    }
}

#[test]
fn a_header_of_a_request_names_the_client() {
    let list = "client_address_header = \"X-Forwarded-For\"\n\
                trusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\"]";
    let (node, calls) = node_with_application(list);
    let told = |header: &str| told(&node, &calls, b"", &[header]);
    assert_eq!(told("X-Forwarded-For: 6.6.6.6, 203.0.113.7"), "203.0.113.7");
    assert_eq!(told("X-Forwarded-For: 6.6.6.6, 203.0.113.7, 10.1.2.3"), "203.0.113.7");
    assert_eq!(told("X-Forwarded-For: nobody"), "127.0.0.1");
    assert_eq!(told("Forwarded: for=203.0.113.7"), "127.0.0.1");
    let (node, calls) = node_with_application("client_address_header = \"Forwarded\"");
    assert_eq!(
        self::told(&node, &calls, b"", &["Forwarded: for=\"[2001:db8::7]:80\";proto=https"]),
        "2001:db8::7"
    );
}

#[test]
fn connections_of_an_address() {
    // Without keys there is no answer: over TLS these are closed.
    if over_tls() {
        return;
    }
    let node = Node::open_with("[roost]\nconnections_per_address = 3", &[]);
    let mut clients: Vec<_> = (0..3).map(|_| node.connected()).collect();
    for _ in 0..5 {
        let response = node.raw().response();
        assert_eq!((response.status, response.header("retry-after")), (429, Some("1")));
    }
    let figures = node.figures();
    assert_eq!((figures["refused_address_connections"], figures["connections_open"]), (5, 3));
    clients.pop().unwrap().close();
    node.until_is("connections_open", 2);
    clients.push(node.connected());
    drop(clients);
    node.until_is("connections_open", 0);
    node.is_healthy();
}

#[test]
fn new_connections_of_an_address_in_a_second() {
    let node = Node::open_with("[roost]\nconnection_rate_per_address = 10", &[]);
    let before = node.figures()["uptime_ms"];
    let mut raws: Vec<_> = (0..100).map(|_| node.raw()).collect();
    let figures = node.until("refused and accepted", |figures| {
        figures["refused_address_rate"] + figures["connections_accepted"] == 100
    });
    let seconds = (figures["uptime_ms"] - before).div_ceil(1000) + 1;
    let accepted = figures["connections_accepted"];
    assert!((10..=10 * (seconds + 1)).contains(&accepted), "{accepted} in {seconds} s");
    let last = raws.last_mut().unwrap().response_or_end();
    assert!(last.is_none_or(|response| response.status == 429));
}

#[test]
fn limits_hold_for_the_client_that_a_proxy_names() {
    let options = "[roost]\nconnections_per_address = 2\nclient_address_header = \"X-Forwarded-For\"\n\
                   [http_stream]\nenabled = true";
    let node = Node::open_with(options, &[]);
    let come = |address: &str| {
        let mut raw = node.raw();
        raw.send(upgrade(CLIENTS, &[&format!("X-Forwarded-For: {address}")]).as_bytes());
        (raw.response().status, raw)
    };
    let ok = [come("203.0.113.7"), come("203.0.113.7"), come("203.0.113.8"), come("203.0.113.8")];
    assert!(ok.iter().all(|(status, _)| *status == 101));
    assert_eq!(come("203.0.113.7").0, 429);
    assert_eq!(come("203.0.113.9").0, 101);
    // One of IPv6 is a network of 64 bits.
    let _three = [come("2001:db8::1"), come("2001:db8::2")];
    assert_eq!(come("2001:db8::3").0, 429);
    assert_eq!(come("2001:db8:0:1::3").0, 101);
    // Requests one after the other over a connection that a proxy keeps are each its client's, and the
    // proxy itself has no limit.
    let mut kept = node.raw();
    for host in 20..30 {
        for _ in 0..3 {
            let head = format!("X-Forwarded-For: 203.0.113.{host}");
            assert_eq!(kept.post("/emulation", &[&head], "").status, 400);
        }
    }
    let _unnamed: Vec<_> = (0..5).map(|_| node.connected()).collect();
    drop(ok);
    node.until("the first are gone", |figures| figures["connections_open"] <= 9);
    assert_eq!(come("203.0.113.7").0, 101);
}

#[test]
fn limits_hold_for_the_client_of_a_proxy_header() {
    // A tunnel has no PROXY header before its handshake: tls_node.rs has one.
    if over_tls() {
        return;
    }
    let options = "[roost]\nconnections_per_address = 1\nproxy_protocol = true";
    let node = Node::open_with(options, &[]);
    let come = |host: u8| {
        let mut raw = node.raw();
        raw.send(&[&version_2(host)[..], upgrade(CLIENTS, &[]).as_bytes()].concat());
        (raw.response().status, raw)
    };
    let _one = come(1);
    assert_eq!((_one.0, come(1).0, come(2).0), (101, 429, 101));
}

#[test]
fn unfinished_bytes_of_an_address() {
    let node = Node::open_with(
        "[roost]\nunfinished_bytes_per_address = 100000\n[http_stream]\nenabled = true",
        &[],
    );
    let begin = |bytes: usize| {
        let mut raw = node.raw();
        let head = "POST /emulation HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n";
        raw.send(head.as_bytes());
        raw.send(&vec![b'x'; bytes]);
        raw
    };
    let mut first = begin(50_000);
    node.until("the first is here", |figures| figures["bytes_received"] >= 50_000);
    let mut second = begin(55_000);
    let response = second.response();
    assert_eq!((response.status, response.header("retry-after")), (429, Some("1")));
    second.finish();
    // A whole one takes nothing.
    first.send(&vec![b'x'; 10_000]);
    assert_eq!(first.response().status, 400);
    let figures = node.until_is("connections_open", 1);
    assert_eq!(figures["refused_address_bytes"], 1);
    // Heads count, too.
    let head = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}", "x".repeat(20_000));
    let mut heads: Vec<Raw> = (0..5).map(|_| node.raw()).collect();
    for raw in &mut heads {
        raw.send(head.as_bytes());
    }
    node.until_is("refused_address_bytes", 2);
    drop(heads);
    node.until_is("connections_open", 1);
    let mut again = begin(55_000);
    again.send(&vec![b'x'; 5_000]);
    assert_eq!(again.response().status, 400);
}
