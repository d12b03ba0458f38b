//! Health and readiness of a node whose broker goes and comes.

use rustix::process::Signal;
use serde_json::json;

use crate::harness::*;
use crate::redis::{RedisServer, free_port, node_with};

const HEALTH: &str = "health.enabled = true\n";

fn answer(node: &Node, path: &str) -> (u16, String) {
    let mut raw = node.raw();
    raw.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
    let response = raw.response();
    (response.status, response.body)
}

fn until(node: &Node, path: &str, expected: (u16, &str)) {
    node.until(path, |_| answer(node, path) == (expected.0, expected.1.to_owned()));
}

fn options(server: &RedisServer, more: &str) -> String {
    format!("engine.redis.address = \"127.0.0.1:{}\"\n{HEALTH}{more}", server.port)
}

#[test]
fn a_node_without_a_broker_is_ready_while_it_is_healthy() {
    let node = Node::open(&["--health.enabled"]);
    assert_eq!(answer(&node, "/ready"), (200, "{}".to_owned()));
    let elsewhere = Node::open(&["--health.enabled", "--ready-prefix", "/up"]);
    assert_eq!((answer(&elsewhere, "/up").0, answer(&elsewhere, "/ready").0), (200, 404));
}

#[test]
fn a_broker_that_is_away_makes_a_node_unready_and_not_unhealthy() {
    let Some(mut server) = RedisServer::start(&[]) else { return };
    let node = node_with(&options(&server, ""));
    let strict = node_with(&options(&server, "roost.health_broker = true"));
    until(&node, "/ready", (200, "{}"));
    until(&strict, "/health", (200, "{}"));
    let client = node.connected();
    server.signal(Signal::STOP);
    until(&node, "/ready", (503, r#"{"reason":"the broker does not deliver"}"#));
    server.signal(Signal::CONT);
    until(&node, "/ready", (200, "{}"));
    server.end();
    let away = r#"{"reason":"the broker is unreachable"}"#;
    until(&node, "/ready", (503, away));
    until(&node, "/health", (200, r#"{"broker":"the broker is unreachable"}"#));
    until(
        &strict,
        "/health",
        (503, r#"{"broker":"the broker is unreachable","reason":"the broker is unreachable"}"#),
    );
    server.restart();
    until(&node, "/ready", (200, "{}"));
    until(&node, "/health", (200, "{}"));
    until(&strict, "/health", (200, "{}"));
    client.close();
}

#[test]
fn a_node_starts_without_its_broker_by_option_only() {
    let port = free_port();
    let engine = format!("engine.type = \"redis\"\nengine.redis.address = \"127.0.0.1:{port}\"\n");
    let Err(ended) = Node::launch(&[], &engine, "0", &[]) else { panic!("it started") };
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for words in ["the broker is unreachable", "server 0 (127.0.0.1:", "start_without_broker"] {
        assert!(ended.errors.contains(words), "{ended:?}");
    }
    let address = format!("engine.redis.address = \"127.0.0.1:{port}\"\n{HEALTH}");
    let node = node_with(&format!("{address}roost.start_without_broker = true"));
    assert_eq!(answer(&node, "/ready").0, 503);
    let mut client = node.connected();
    // An error with which clients try again.
    let refused = client.ask("subscribe", json!({"channel": "stream:news"}));
    assert_eq!(
        refused["error"],
        json!({"code": 100, "message": "internal server error", "temporary": true})
    );
    let Some(_server) = RedisServer::start_on(port, &[]) else { return };
    until(&node, "/ready", (200, "{}"));
    client.subscribe("stream:news");
}
