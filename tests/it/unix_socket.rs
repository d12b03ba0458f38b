//! Listening on a Unix socket.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::json;
use tungstenite::{Message, WebSocket};

use crate::harness::*;

/// A path for a socket of one test.
fn path(name: &str) -> (PathBuf, String) {
    let path = std::env::temp_dir().join(format!("roost-it-{}-{name}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let address = format!("unix:{}", path.display());
    (path, address)
}

fn connect(path: &PathBuf) -> WebSocket<UnixStream> {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    let (mut socket, response) =
        tungstenite::client(format!("ws://localhost{CLIENTS}"), stream).unwrap();
    assert_eq!(response.status(), 101);
    let reply = ask(&mut socket, json!({"id": 1, "connect": {}}));
    assert!(reply.contains("\"client\""), "{reply}");
    socket
}

fn ask(socket: &mut WebSocket<UnixStream>, command: serde_json::Value) -> String {
    socket.send(Message::text(command.to_string())).unwrap();
    socket.read().unwrap().into_text().unwrap().to_string()
}

fn get(path: &PathBuf, target: &str) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    write!(stream, "GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn clients_are_served_on_every_shard() {
    let (path, address) = path("clients");
    let node = Node::open(&["-a", &address]);
    assert!(node.errors().contains(&format!("listening on {address} with 2 shards (mode 0660)")));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let mut clients: Vec<_> = (0..20).map(|_| connect(&path)).collect();
    for socket in &mut clients {
        let reply = ask(socket, json!({"id": 2, "subscribe": {"channel": "room"}}));
        assert!(reply.contains("\"subscribe\""), "{reply}");
    }
    // The one that accepts keeps half of them.
    let figures = node.figures();
    assert_eq!((figures["connections_passed"], figures["connections_open"]), (10, 20));
    clients[0].send(Message::text(r#"{"publish":{"channel":"room","data":1},"id":3}"#)).unwrap();
    for socket in &mut clients {
        while !socket.read().unwrap().into_text().unwrap().contains("\"pub\"") {}
    }
    // Another node is told, and takes nothing away.
    let ended = Node::launch(&[], "", "0", &["-a", &address]).err().unwrap();
    assert_eq!(ended.code, Some(1));
    assert!(ended.errors.contains(&format!("cannot listen on {address}")), "{}", ended.errors);
    connect(&path);
    drop(clients);
    node.signal(Signal::TERM);
    assert_eq!(node.ended().code, Some(0));
    assert!(!path.exists(), "the file is left behind");
}

#[test]
fn the_socket_of_a_node_that_was_killed_is_taken_over() {
    let (path, address) = path("killed");
    let node = Node::open(&["-a", &address]);
    node.signal(Signal::KILL);
    node.ended();
    assert!(path.exists());
    let node = Node::open_with("[roost]\nsocket_mode = \"0600\"", &["-a", &address]);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    connect(&path);
    drop(node);
    // Whatever else is there isn't touched.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    let ended = Node::launch(&[], "", "0", &["-a", &address]).err().unwrap();
    assert!(ended.code == Some(1) && ended.errors.contains("no socket"), "{ended:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn internal_endpoints_on_a_unix_socket() {
    let (path, address) = path("internal");
    let file = format!("[http_server]\ninternal_address = \"{address}\"\n[health]\nenabled = true");
    let node = Node::open_with(&file, &[]);
    assert!(get(&path, "/health").starts_with("HTTP/1.1 200"));
    let mut raw = node.raw();
    raw.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(raw.response().status, 404);
    node.signal(Signal::TERM);
    node.ended();
    assert!(!path.exists());
}

#[test]
fn paths_that_can_not_be_are_named() {
    let long = format!("unix:/{}", "x".repeat(107));
    for (address, expected) in [
        (long.as_str(), "a path of at most 107 bytes, it has 108"),
        ("unix:", "a path behind \"unix:\""),
        ("unix:@roost", "abstract sockets"),
    ] {
        let ended = Node::launch(&[], "", "0", &["-a", address]).err().unwrap();
        assert_eq!(ended.code, Some(2));
        assert!(ended.errors.contains(expected), "{}", ended.errors);
    }
}

#[test]
fn a_proxy_names_the_client_over_a_unix_socket() {
    let (path, address) = path("forwarded");
    let options = "[roost]\nconnections_per_address = 1\nclient_address_header = \"Forwarded\"";
    let _node = Node::open_with(options, &["-a", &address]);
    let come = |client: &str| {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        let head = upgrade(CLIENTS, &[&format!("Forwarded: for={client}")]);
        stream.write_all(head.as_bytes()).unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        (String::from_utf8_lossy(&status[9..]).into_owned(), stream)
    };
    let one = come("203.0.113.7");
    assert_eq!(one.0, "101");
    assert_eq!(come("203.0.113.7").0, "429");
    assert_eq!(come("203.0.113.8").0, "101");
    // Nobody is named: a Unix socket has no address that a limit could hold for.
    let _two = [connect(&path), connect(&path)];
}
