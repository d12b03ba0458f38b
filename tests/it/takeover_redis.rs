//! A node that shares a Redis with another one is replaced: what the other one publishes all the time comes once and
//! in order, with offsets and without, and the other one notices nothing.

use rustix::process::Signal;
use serde_json::json;

use crate::harness::Node;
use crate::redis::{OPTIONS, RedisServer};
use crate::takeover_shared::{
    Shared, a_new_process_dies, commands_are_carried_out, refused_without_its_server,
    replaces_under_load, unnoticed,
};

impl Shared for RedisServer {
    fn file(&self) -> String {
        let address = format!("engine.redis.address = \"127.0.0.1:{}\"", self.port);
        format!("engine.type = \"redis\"\n{address}\n{OPTIONS}")
    }

    fn signal(&self, signal: Signal) {
        Self::signal(self, signal);
    }

    fn end(&mut self) {
        Self::end(self);
    }

    fn restart(&mut self) {
        Self::restart(self);
    }

    fn until_back(&self, node: &Node) {
        node.until_is("redis_servers_away", 0);
        node.until_is("redis_resubscribing", 0);
    }
}

/// Each publication is kept once.
fn are_kept(node: &Node, written: u64) {
    let history = node.call("history", json!({"channel": "stream:own", "limit": 0}));
    assert_eq!(history["result"]["offset"], written, "each publication is kept once");
}

/// Not with the figures of a node in between: its clients are those of the first.
#[test]
fn publications_of_another_node_come_once_and_in_order() {
    let Some(server) = RedisServer::start(&[]) else { return };
    replaces_under_load(&server, ("redis-order", &[]), are_kept);
}

#[test]
fn the_same_with_several_broker_threads() {
    let Some(server) = RedisServer::start(&[]) else { return };
    replaces_under_load(&server, ("redis-threads", &["--broker-threads", "2"]), are_kept);
}

#[test]
fn the_other_node_notices_nothing() {
    let Some(server) = RedisServer::start(&[]) else { return };
    unnoticed(&server, "redis-nodes");
}

#[test]
fn commands_of_another_node_are_carried_out() {
    let Some(server) = RedisServer::start(&[]) else { return };
    commands_are_carried_out(&server, "redis-commands");
}

#[test]
fn a_new_process_that_dies_changes_nothing() {
    let Some(server) = RedisServer::start(&[]) else { return };
    a_new_process_dies(&server, "redis-dies");
}

#[test]
fn without_its_redis_a_node_is_not_taken_over() {
    let Some(server) = RedisServer::start(&[]) else { return };
    refused_without_its_server(server, "redis-away");
}
