//! Presence by survey: each node knows its own clients, and a read shows those of all nodes, whatever the broker is.

use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::{BOUND, Node};
use crate::redis::subscribe;
use crate::{nats, redis};

const NODES: &str = "[presence_manager]\nenabled = true\ntype = \"nodes\"";

/// Two nodes by each broker that there is. What keeps the server stands beside them.
fn pairs() -> Vec<(Box<dyn std::any::Any>, Node, Node)> {
    let mut pairs: Vec<(Box<dyn std::any::Any>, Node, Node)> = Vec::new();
    if let Some(server) = nats::NatsServer::start(&[]) {
        let (a, b) = (nats::node_with(&server, NODES), nats::node_with(&server, NODES));
        pairs.push((Box::new(server), a, b));
    }
    if let Some(server) = redis::RedisServer::start(&[]) {
        let engine = format!(
            "engine.redis.address = \"127.0.0.1:{}\"\npresence_manager = {{ enabled = true, type = \"nodes\" }}",
            server.port
        );
        let (a, b) = (redis::node_with(&engine), redis::node_with(&engine));
        pairs.push((Box::new(server), a, b));
    }
    for (_, a, b) in &pairs {
        let since = Instant::now();
        let known = |node: &Node| {
            node.call("info", json!({}))["result"]["nodes"].as_array().map_or(0, Vec::len)
        };
        while known(a) < 2 || known(b) < 2 {
            assert!(since.elapsed() < BOUND, "they do not know each other");
        }
    }
    pairs
}

fn stats(node: &Node) -> Value {
    node.call("presence_stats", json!({"channel": "room:x"}))["result"].take()
}

#[test]
fn presence_is_that_of_all_nodes() {
    for (_server, a, b) in pairs() {
        let mut clients = [a.connected_as("ann"), b.connected_as("bob"), b.connected_as("ann")];
        for client in &mut clients {
            subscribe(client, 2, json!({"channel": "room:x"}));
        }
        for node in [&a, &b] {
            let answer = node.call("presence", json!({"channel": "room:x"}));
            let presence = answer["result"]["presence"].as_object().unwrap();
            let mut users: Vec<&str> =
                presence.values().map(|of| of["user"].as_str().unwrap()).collect();
            users.sort_unstable();
            assert_eq!(users, ["ann", "ann", "bob"]);
            assert_eq!(stats(node), json!({"num_clients": 3, "num_users": 2}));
        }
        // A client that leaves is gone at once.
        let [first, mut second, third] = clients;
        drop((first, third));
        let since = Instant::now();
        while stats(&a) != json!({"num_clients": 1, "num_users": 1}) {
            assert!(since.elapsed() < BOUND, "{}", stats(&a));
        }
        // A client of the other node reads it, too; joins and leaves stand before the answer.
        second.send(&json!({"id": 9, "presence_stats": {"channel": "room:x"}}).to_string());
        loop {
            let reply: Value = serde_json::from_str(&second.line()).unwrap();
            if reply["id"] == 9 {
                assert_eq!(reply["presence_stats"]["num_clients"], 1, "{reply}");
                break;
            }
        }
    }
}

#[test]
fn clients_of_a_node_that_is_silent_are_missing_and_counted() {
    for (_server, a, b) in pairs() {
        let mut clients = [a.connected_as("ann"), b.connected_as("bob")];
        for client in &mut clients {
            subscribe(client, 2, json!({"channel": "room:x"}));
        }
        b.signal(rustix::process::Signal::STOP);
        assert_eq!(stats(&a)["num_clients"], 1, "in time, with what there is");
        a.until_logged(&["presence is partial"]);
        b.signal(rustix::process::Signal::CONT);
        let since = Instant::now();
        while stats(&a)["num_clients"] != 2 {
            assert!(since.elapsed() < BOUND, "{}", stats(&a));
        }
    }
}

/// Its clients are known to it alone, so it is the one that says who leaves.
#[test]
fn a_node_that_ends_in_good_order_publishes_the_leaves_of_its_clients() {
    for (_server, a, b) in pairs() {
        let mut watcher = a.connected_as("ann");
        subscribe(&mut watcher, 2, json!({"channel": "room:x"}));
        assert_eq!(watcher.push()["join"]["info"]["user"], "ann");
        let mut member = b.connected_as("bob");
        subscribe(&mut member, 2, json!({"channel": "room:x"}));
        assert_eq!(watcher.push()["join"]["info"]["user"], "bob");
        b.signal(rustix::process::Signal::TERM);
        assert_eq!(watcher.push()["leave"]["info"]["user"], "bob");
        assert_eq!(stats(&a), json!({"num_clients": 1, "num_users": 1}));
    }
}
