//! A node that shares a NATS with another one is replaced: what the other one publishes all the time comes once and in
//! order, with offsets and without, and the other one notices nothing.

use rustix::process::Signal;
use serde_json::json;

use crate::harness::Node;
use crate::nats::{NatsServer, OPTIONS};
use crate::nats_history::{NAMESPACES, server};
use crate::takeover_shared::{
    Shared, a_new_process_dies, commands_are_carried_out, refused_without_its_server,
    replaces_under_load, unnoticed,
};

/// With streams and presence by nodes.
impl Shared for NatsServer {
    fn file(&self) -> String {
        let namespaces = NAMESPACES.replace("STORAGE", "").replacen(
            "allow_subscribe_for_client = true",
            "allow_subscribe_for_client = true\nallow_publish_for_client = true\n\
             allow_publish_for_anonymous = true",
            1,
        );
        format!(
            "broker.enabled = true\nbroker.type = \"nats\"\npresence_manager.enabled = true\n\
             presence_manager.type = \"nodes\"\n{OPTIONS}\n[broker.nats]\n\
             url = \"nats://127.0.0.1:{}\"\n{namespaces}",
            self.port
        )
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

    /// A publication is taken when all is subscribed: both go by one connection.
    fn until_back(&self, _: &Node) {}
}

/// Each publication is kept once: offsets say nothing about their number.
fn are_kept(node: &Node, written: u64) {
    let params = json!({"channel": "stream:own", "limit": -1, "reverse": true});
    let history = node.call("history", params);
    let kept = history["result"]["publications"].as_array().unwrap();
    let kept: Vec<u64> = kept.iter().map(|of| of["data"].as_u64().unwrap()).collect();
    assert_eq!(kept, (written - 9..=written).rev().collect::<Vec<_>>(), "each is kept once");
}

fn replaces(name: &str, flags: &[&str]) {
    let Some(server) = server() else { return };
    replaces_under_load(&server, (name, flags), are_kept);
}

#[test]
fn publications_of_another_node_come_once_and_in_order() {
    replaces("nats-order", &[]);
}

#[test]
fn the_same_with_several_broker_threads() {
    replaces("nats-threads", &["--broker-threads", "2"]);
}

#[test]
fn the_same_with_one_subscription_of_all_channels() {
    replaces("nats-all", &["--nats-interest", "all"]);
}

#[test]
fn the_other_node_notices_nothing() {
    let Some(server) = server() else { return };
    unnoticed(&server, "nats-nodes");
}

#[test]
fn commands_of_another_node_are_carried_out() {
    let Some(server) = server() else { return };
    commands_are_carried_out(&server, "nats-commands");
}

#[test]
fn a_new_process_that_dies_changes_nothing() {
    let Some(server) = server() else { return };
    a_new_process_dies(&server, "nats-dies");
}

#[test]
fn without_its_server_a_node_is_not_taken_over() {
    let Some(server) = server() else { return };
    refused_without_its_server(server, "nats-away");
}
