//! Faults of Redis, seen by clients of two nodes: no connection closes, nothing is lost, comes twice or out of
//! order, and what can't be done now gets an error with which clients try again.

use std::time::Instant;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{BOUND, Client, Node};
use crate::redis::{RedisServer, data, node, node_with, subscribe};

/// Publishes until it is taken: while Redis is away the answer is error 100.
fn publish_until_taken(node: &Node, channel: &str, n: u64) -> Value {
    let since = Instant::now();
    loop {
        let mut answer = node.call("publish", json!({"channel": channel, "data": n}));
        if answer["error"].is_null() {
            return answer["result"].take();
        }
        assert_eq!(answer["error"]["code"], 100, "{answer}");
        assert!(since.elapsed() < BOUND, "never taken");
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
}

/// Waits until a node says that its server is away.
fn until_away(node: &Node) {
    let since = Instant::now();
    loop {
        let answer = node.call("publish", json!({"channel": "elsewhere", "data": 1}));
        if answer["error"]["code"] == 100 {
            let message = answer["error"]["message"].as_str().unwrap();
            assert!(message.ends_with("the broker can't be reached, try again"), "{message}");
            return;
        }
        assert!(since.elapsed() < BOUND, "it is not away");
    }
}

/// A subscriber that notes what comes.
fn follower(node: &Node, channel: &str) -> Client {
    let mut client = node.connected();
    subscribe(&mut client, 2, json!({"channel": channel}));
    client
}

#[test]
fn a_killed_pubsub_connection_loses_nothing() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let (a, b) = (node(&server), node(&server));
    let mut clients = [follower(&a, "stream:x"), follower(&b, "stream:x")];
    for n in 0..60u64 {
        if n % 20 == 10 {
            // The homes of both nodes, and their control connections.
            let since = Instant::now();
            while server.kill_connections("pubsub") == 0 {
                assert!(since.elapsed() < BOUND, "nobody comes back");
            }
        }
        b.call("publish", json!({"channel": "stream:x", "data": n}));
    }
    let all: Vec<u64> = (0..60).collect();
    for client in &mut clients {
        assert_eq!(data(client, "stream:x", 60), all);
    }
    // The connection ends, and the last publication comes while it is away: nothing later shows the gap.
    server.kill_connections("pubsub");
    b.call("publish", json!({"channel": "stream:x", "data": 60}));
    for client in &mut clients {
        assert_eq!(data(client, "stream:x", 1), [60]);
    }
}

#[test]
fn a_killed_command_connection_costs_an_error_at_most() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let (a, b) = (node(&server), node(&server));
    let mut client = follower(&a, "stream:x");
    for n in 0..20 {
        if n % 5 == 2 {
            server.kill_connections("normal");
        }
        publish_until_taken(&b, "stream:x", n);
    }
    let mut last = None;
    while last != Some(19) {
        let next = data(&mut client, "stream:x", 1)[0].as_u64();
        // One whose answer was lost may have been taken twice.
        assert!(next == last || next == Some(last.map_or(0, |last| last + 1)), "{last:?} {next:?}");
        last = next;
    }
}

#[test]
fn redis_that_is_gone_and_back_empty_closes_nothing() {
    let Some(mut server) = RedisServer::start(&[]) else { return };
    let engine =
        format!("engine.redis.address = \"127.0.0.1:{}\"\nhealth.enabled = true", server.port);
    let (a, b) = (node_with(&engine), node(&server));
    let mut follower_of_plain = follower(&a, "plain");
    let mut follower_of_stream = follower(&a, "stream:x");
    publish_until_taken(&b, "stream:x", 1);
    assert_eq!(data(&mut follower_of_stream, "stream:x", 1), [1]);
    server.end();
    until_away(&a);
    until_away(&b);
    // What needs Redis gets an error that is temporary; the connection stays.
    let mut client = b.connected();
    let answer = client.ask("subscribe", json!({"channel": "stream:y"}));
    assert_eq!(
        answer["error"],
        json!({"code": 100, "message": "internal server error", "temporary": true})
    );
    let answer = client.ask("publish", json!({"channel": "stream:x", "data": 1}));
    assert_eq!(answer["error"]["code"], 100);
    let mut raw = a.raw();
    raw.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(raw.response().status, 200);
    server.restart();
    publish_until_taken(&b, "plain", 2);
    let since = Instant::now();
    // Both nodes follow again.
    while server.query::<(String, u64)>("PUBSUB NUMSUB centrifugo.client.plain").1 == 0 {
        assert!(since.elapsed() < BOUND, "nobody listens");
    }
    publish_until_taken(&a, "plain", 3);
    while data(&mut follower_of_plain, "plain", 1) != [3] {}
    // The history is another one: subscribers with a position are sent away to come again.
    let push = follower_of_stream.push();
    assert_eq!(push["unsubscribe"]["code"], 2500, "{push}");
    let answer = client.ask("subscribe", json!({"channel": "stream:y"}));
    assert!(answer["subscribe"].is_object(), "{answer}");
}

#[test]
fn frozen_redis_closes_nothing_and_loses_nothing() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let engine = format!(
        "engine.redis = {{ address = \"127.0.0.1:{}\", io_timeout = \"500ms\", \
         connect_timeout = \"500ms\" }}",
        server.port
    );
    let (a, b) = (node_with(&engine), node_with(&engine));
    let mut clients = [follower(&a, "stream:x"), follower(&b, "stream:x")];
    publish_until_taken(&b, "stream:x", 0);
    server.signal(Signal::STOP);
    until_away(&a);
    until_away(&b);
    let mut client = a.connected();
    let answer = client.ask("history", json!({"channel": "stream:x", "limit": 1}));
    assert_eq!(answer["error"]["code"], 100);
    server.signal(Signal::CONT);
    for n in 1..10 {
        publish_until_taken(&b, "stream:x", n);
    }
    for client in &mut clients {
        let mut last = 0;
        assert_eq!(data(client, "stream:x", 1), [0]);
        while last != 9 {
            let next = data(client, "stream:x", 1)[0].as_u64().unwrap();
            assert!(next == last || next == last + 1, "{last} {next}");
            last = next;
        }
    }
}
