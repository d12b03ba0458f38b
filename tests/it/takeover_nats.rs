//! A node that shares a NATS with another one is replaced: what the other one publishes all the time comes once and in
//! order, with offsets and without, and the other one notices nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use serde_json::json;

use crate::harness::{Client, Ended, Node};
use crate::nats::{NatsServer, OPTIONS};
use crate::nats_history::{NAMESPACES, server};
use crate::redis::subscribe;
use crate::takeover::{Socket, at, until_stopped};
use crate::takeover_redis::{CHANNELS, gets_all, publish_until, reader, until, user};

/// A node on this server, with streams and presence by nodes.
fn file(server: &NatsServer) -> String {
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
        server.port
    )
}

fn start(
    server: &NatsServer,
    socket: &Socket,
    wrapper: &[String],
    flags: &[&str],
) -> Result<Node, Ended> {
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let own = socket.flags();
    let flags: Vec<&str> = own.iter().map(String::as_str).chain(flags.iter().copied()).collect();
    Node::launch(&wrapper, &file(server), "0", &flags)
}

fn other(server: &NatsServer) -> Node {
    Node::start(&file(server), &[])
}

fn replaced(server: &NatsServer, socket: &Socket, old: Node, flags: &[&str]) -> Node {
    let new = match start(server, socket, &[], flags) {
        Ok(new) => new.in_place_of(&old),
        Err(ended) => panic!("{}\n{}", ended.errors, old.errors()),
    };
    let ended = old.ended();
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    new
}

fn replaces_under_load(flags: &[&str], name: &str) {
    let Some(server) = server() else { return };
    let socket = Socket::new(name);
    let other = other(&server);
    let own = start(&server, &socket, &[], flags).expect("the first node starts");
    let mut clients: Vec<Client> = (0..5).map(|_| reader(&own)).collect();
    let mut elsewhere = reader(&other);
    let mut writer = own.connected();
    let ends = AtomicBool::new(false);
    let (own, count, written) = std::thread::scope(|scope| {
        let publishing = scope.spawn(|| publish_until(&other, &ends));
        // A client of the node that is replaced publishes, too; each is acknowledged.
        let writing = scope.spawn(|| {
            let mut written = 0;
            while !ends.load(Ordering::Relaxed) {
                written += 1;
                writer.publish("stream:own", json!(written));
            }
            written
        });
        let own = (0..3).fold(own, |own, _| replaced(&server, &socket, own, flags));
        ends.store(true, Ordering::Relaxed);
        (own, publishing.join().unwrap(), writing.join().unwrap())
    });
    assert!(count > 20 && written > 20, "{count} {written}");
    clients.iter_mut().for_each(|client| gets_all(client, count));
    gets_all(&mut elsewhere, count);
    let params = json!({"channel": "stream:own", "limit": -1, "reverse": true});
    let history = other.call("history", params);
    let kept = history["result"]["publications"].as_array().unwrap();
    let kept: Vec<u64> = kept.iter().map(|of| of["data"].as_u64().unwrap()).collect();
    assert_eq!(kept, (written - 9..=written).rev().collect::<Vec<_>>(), "each is kept once");
    assert_eq!(own.figures()["connections_open"], 6, "none was closed");
    own.is_healthy();
}

#[test]
fn publications_of_another_node_come_once_and_in_order() {
    replaces_under_load(&[], "nats-order");
}

#[test]
fn the_same_with_several_broker_threads() {
    replaces_under_load(&["--broker-threads", "2"], "nats-threads");
}

#[test]
fn the_same_with_one_subscription_of_all_channels() {
    replaces_under_load(&["--nats-interest", "all"], "nats-all");
}

#[test]
fn the_other_node_notices_nothing() {
    let Some(server) = server() else { return };
    let socket = Socket::new("nats-nodes");
    let other = other(&server);
    let own = start(&server, &socket, &[], &[]).expect("the first node starts");
    let names = |of: &Node| -> Vec<String> {
        let mut info = of.call("info", json!({}))["result"]["nodes"].take();
        let nodes = info.as_array_mut().unwrap();
        let mut uids: Vec<_> = nodes.iter().map(|node| node["uid"].to_string()).collect();
        uids.sort();
        uids
    };
    until("nodes know each other", || names(&own).len() == 2 && names(&other).len() == 2);
    let before = names(&own);
    let mut watcher = other.connected();
    subscribe(&mut watcher, 2, json!({"channel": "room:r"}));
    assert!(!watcher.push()["join"].is_null());
    let mut members: Vec<Client> = (0..5).map(|_| own.connected()).collect();
    for member in &mut members {
        member.send(r#"{"id":2,"subscribe":{"channel":"room:r"}}"#);
        assert!(!watcher.push()["join"].is_null());
    }
    let keyed = json!({"channel": "stream:k", "data": 1, "idempotency_key": "once"});
    let first = own.call("publish", keyed.clone())["result"]["offset"].take();
    let own = replaced(&server, &socket, own, &[]);
    assert_eq!(names(&own), before);
    assert_eq!(names(&other), before);
    for node in [&own, &other] {
        let channels = node.call("channels", json!({}));
        let channels = &channels["result"]["channels"];
        assert_eq!(channels["room:r"]["num_clients"], 6, "{channels}");
        let presence = node.call("presence_stats", json!({"channel": "room:r"}));
        assert_eq!(presence["result"]["num_clients"], 6, "{presence}");
        // A publication that is sent once more is the same one.
        assert_eq!(node.call("publish", keyed.clone())["result"]["offset"], first);
    }
    // No leaves, no joins: the next push is of the client that leaves now.
    drop(members.remove(0));
    assert!(!watcher.push()["leave"].is_null());
    until("it is gone", || {
        let presence = other.call("presence_stats", json!({"channel": "room:r"}));
        presence["result"]["num_clients"] == 5
    });
    let log = other.errors();
    assert!(!log.contains("node has ended") && !log.contains("node is silent"), "{log}");
    drop(own);
}

/// Commands of another node come all the time: each is carried out by one of the processes.
#[test]
fn commands_of_another_node_are_carried_out() {
    const USERS: usize = 150;
    let Some(server) = server() else { return };
    let socket = Socket::new("nats-commands");
    let other = other(&server);
    let own = start(&server, &socket, &[], &[]).expect("the first node starts");
    let mut clients: Vec<Client> = (0..USERS).map(|n| user(&own, n)).collect();
    let own = std::thread::scope(|scope| {
        let disconnecting = scope.spawn(|| {
            for number in 0..USERS {
                let user = json!({"user": format!("user{number}")});
                assert_eq!(other.call("disconnect", user), json!({"result": {}}));
            }
        });
        let mut own = replaced(&server, &socket, own, &[]);
        while !disconnecting.is_finished() {
            own = replaced(&server, &socket, own, &[]);
        }
        disconnecting.join().unwrap();
        own
    });
    clients.iter_mut().for_each(|client| client.is_closed(3503, "force disconnect"));
    own.until_is("connections_open", 0);
}

/// The new process is killed at each point: nothing is lost or comes twice, also behind the fence.
#[test]
fn a_new_process_that_dies_changes_nothing() {
    let Some(server) = server() else { return };
    let socket = Socket::new("nats-dies");
    let other = other(&server);
    let own = start(&server, &socket, &[], &[]).expect("the first node starts");
    let mut clients: Vec<Client> = (0..3).map(|_| reader(&own)).collect();
    let ends = AtomicBool::new(false);
    let count = std::thread::scope(|scope| {
        let publishing = scope.spawn(|| publish_until(&other, &ends));
        for point in ["prepared", "listening", "listeners", "image", "frozen", "ready"] {
            let ended = start(&server, &socket, &at(&format!("kill:{point}")), &[]);
            assert_eq!(ended.err().expect("it was killed").code, None, "{point}");
        }
        ends.store(true, Ordering::Relaxed);
        publishing.join().unwrap()
    });
    clients.iter_mut().for_each(|client| gets_all(client, count));
    // And another one can still take over.
    let own = replaced(&server, &socket, own, &[]);
    own.is_healthy();
    own.call("publish", json!({"channel": CHANNELS[1], "data": "later"}));
    clients.iter_mut().for_each(|client| assert_eq!(client.push()["pub"]["data"], "later"));
}

#[test]
fn without_its_server_a_node_is_not_taken_over() {
    let Some(mut server) = server() else { return };
    let socket = Socket::new("nats-away");
    let own = start(&server, &socket, &at("stop:old-shared"), &[]).expect("the first node starts");
    let mut client = own.connected();
    subscribe(&mut client, 2, json!({"channel": "plain"}));
    // The server ends in the middle.
    let ended = std::thread::scope(|scope| {
        let new = scope.spawn(|| start(&server, &socket, &[], &[]).err().expect("it fails"));
        until_stopped(own.pid());
        server.signal(Signal::KILL);
        own.signal(Signal::CONT);
        new.join().unwrap()
    });
    assert_eq!(ended.code, Some(1), "{}", ended.errors);
    own.until_logged(&["takeover failed"]);
    server.wait();
    until("it is refused", || {
        let refused = start(&server, &socket, &[], &[]).err().expect("it is refused");
        refused.errors.contains("could not go on from here")
    });
    server.restart();
    until("publications come again", || {
        own.call("publish", json!({"channel": "plain", "data": "again"}))["error"].is_null()
    });
    assert_eq!(client.push()["pub"]["data"], "again");
}
