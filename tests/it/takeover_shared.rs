//! A node that shares a server with another one is replaced: the same for Redis and for NATS.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{BOUND, Client, Ended, Node, token};
use crate::redis::subscribe;
use crate::takeover::{Socket, at, until_stopped};

/// With history, without, and without but with presence.
const CHANNELS: [&str; 3] = ["stream:s", "plain", "room:r"];

/// The server that nodes share.
pub(crate) trait Shared: Sync {
    /// The configuration of a node.
    fn file(&self) -> String;
    fn signal(&self, signal: Signal);
    /// Waits until it is gone.
    fn end(&mut self);
    fn restart(&mut self);
    /// The node delivers again.
    fn until_back(&self, node: &Node);
}

/// A node that can be taken over.
pub(crate) fn start(
    server: &impl Shared,
    socket: &Socket,
    wrapper: &[String],
    flags: &[&str],
) -> Result<Node, Ended> {
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let own = socket.flags();
    let flags: Vec<&str> = own.iter().map(String::as_str).chain(flags.iter().copied()).collect();
    Node::launch(&wrapper, &server.file(), "0", &flags)
}

/// The other node.
fn other(server: &impl Shared) -> Node {
    Node::start(&server.file(), &[])
}

fn replaced(server: &impl Shared, socket: &Socket, old: Node, flags: &[&str]) -> Node {
    let new = match start(server, socket, &[], flags) {
        Ok(new) => new.in_place_of(&old),
        Err(ended) => panic!("{}\n{}", ended.errors, old.errors()),
    };
    let ended = old.ended();
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    new
}

fn reader(node: &Node) -> Client {
    let mut client = node.connected();
    for (id, channel) in (10..).zip(CHANNELS) {
        client.send(&json!({"id": id, "subscribe": {"channel": channel}}).to_string());
        while !client.line().contains(&format!("\"id\":{id},")) {}
    }
    client
}

/// Publishes numbers to all channels until `ends`, and then a text. How many each has got.
fn publish_until(node: &Node, ends: &AtomicBool) -> u64 {
    let mut count = 0;
    while !ends.load(Ordering::Relaxed) {
        count += 1;
        for channel in CHANNELS {
            let answer = node.call("publish", json!({"channel": channel, "data": count}));
            assert!(answer["error"].is_null(), "{answer}");
        }
    }
    for channel in CHANNELS {
        node.call("publish", json!({"channel": channel, "data": "end"}));
    }
    count
}

/// Reads all channels to their ends: each number once, in order.
fn gets_all(client: &mut Client, count: u64) {
    let mut next = CHANNELS.map(|_| 1);
    let mut ended = 0;
    while ended < CHANNELS.len() {
        let push = client.push();
        let Some(at) = CHANNELS.iter().position(|channel| push["channel"] == *channel) else {
            panic!("{push}");
        };
        let data = &push["pub"]["data"];
        if data.is_null() {
            assert!(!push["join"].is_null() && push["channel"] == "room:r", "{push}");
        } else if data == "end" {
            ended += 1;
        } else {
            assert_eq!(*data, next[at], "{} of {count}: {push}", CHANNELS[at]);
            next[at] += 1;
        }
    }
    assert_eq!(next, CHANNELS.map(|_| count + 1));
}

/// Both nodes publish while one is replaced three times. `kept`: what the history of a channel with as many
/// publications is, seen from the other node.
pub(crate) fn replaces_under_load(
    server: &impl Shared,
    (name, flags): (&str, &[&str]),
    kept: impl FnOnce(&Node, u64),
) {
    let socket = Socket::new(name);
    let other = other(server);
    let own = start(server, &socket, &[], flags).expect("the first node starts");
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
        let own = (0..3).fold(own, |own, _| replaced(server, &socket, own, flags));
        ends.store(true, Ordering::Relaxed);
        (own, publishing.join().unwrap(), writing.join().unwrap())
    });
    assert!(count > 20 && written > 20, "{count} {written}");
    clients.iter_mut().for_each(|client| gets_all(client, count));
    gets_all(&mut elsewhere, count);
    kept(&other, written);
    assert_eq!(own.figures()["connections_open"], 6, "none was closed");
    own.is_healthy();
}

/// The other node notices nothing: names, lists, presence, keys of publications.
pub(crate) fn unnoticed(server: &impl Shared, name: &str) {
    let socket = Socket::new(name);
    let other = other(server);
    let own = start(server, &socket, &[], &[]).expect("the first node starts");
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
    assert!(first.is_u64(), "{first}");
    let own = replaced(server, &socket, own, &[]);
    // At once: the nodes that the process before knew, and lists of all of them.
    assert_eq!(names(&own), before);
    assert_eq!(names(&other), before);
    let mut elsewhere = other.connected();
    subscribe(&mut elsewhere, 2, json!({"channel": "stream:there"}));
    let members_of = |node: &Node| {
        let presence = node.call("presence_stats", json!({"channel": "room:r"}));
        presence["result"]["num_clients"].as_u64().unwrap_or_else(|| panic!("{presence}"))
    };
    for node in [&own, &other] {
        let channels = node.call("channels", json!({}));
        let channels = &channels["result"]["channels"];
        assert_eq!(channels["room:r"]["num_clients"], 6, "{channels}");
        assert_eq!(channels["stream:there"]["num_clients"], 1, "{channels}");
        assert_eq!(members_of(node), 6);
        // A publication that is sent once more is the same one.
        assert_eq!(node.call("publish", keyed.clone())["result"]["offset"], first);
    }
    // No leaves, no joins: the next push is of the client that leaves now.
    drop(members.remove(0));
    assert!(!watcher.push()["leave"].is_null());
    until("it is gone", || members_of(&other) == 5);
    let log = other.errors();
    assert!(!log.contains("node has ended") && !log.contains("node is silent"), "{log}");
    drop(own);
}

/// Commands of another node come all the time: each is carried out by one of the processes.
pub(crate) fn commands_are_carried_out(server: &impl Shared, name: &str) {
    const USERS: usize = 150;
    let socket = Socket::new(name);
    let other = other(server);
    let own = start(server, &socket, &[], &[]).expect("the first node starts");
    let mut clients: Vec<Client> = (0..USERS).map(|n| user(&own, n)).collect();
    let own = std::thread::scope(|scope| {
        let disconnecting = scope.spawn(|| {
            for number in 0..USERS {
                let user = json!({"user": format!("user{number}")});
                assert_eq!(other.call("disconnect", user), json!({"result": {}}));
            }
        });
        let mut own = replaced(server, &socket, own, &[]);
        while !disconnecting.is_finished() {
            own = replaced(server, &socket, own, &[]);
        }
        disconnecting.join().unwrap();
        own
    });
    clients.iter_mut().for_each(|client| client.is_closed(3503, "force disconnect"));
    own.until_is("connections_open", 0);
}

fn user(node: &Node, number: usize) -> Client {
    let mut client = node.client();
    let token = token(json!({"sub": format!("user{number}")}));
    client.send(&json!({"id": 1, "connect": {"token": token}}).to_string());
    let reply: Value = serde_json::from_str(&client.line()).unwrap();
    assert!(reply["connect"].is_object(), "{reply}");
    client
}

/// The new process is killed at each point: nothing is lost or comes twice, also behind the fence.
pub(crate) fn a_new_process_dies(server: &impl Shared, name: &str) {
    let socket = Socket::new(name);
    let other = other(server);
    let own = start(server, &socket, &[], &[]).expect("the first node starts");
    let mut clients: Vec<Client> = (0..3).map(|_| reader(&own)).collect();
    let ends = AtomicBool::new(false);
    let count = std::thread::scope(|scope| {
        let publishing = scope.spawn(|| publish_until(&other, &ends));
        for point in ["prepared", "listening", "listeners", "image", "frozen", "ready"] {
            let ended = start(server, &socket, &at(&format!("kill:{point}")), &[]);
            assert_eq!(ended.err().expect("it was killed").code, None, "{point}");
        }
        ends.store(true, Ordering::Relaxed);
        publishing.join().unwrap()
    });
    clients.iter_mut().for_each(|client| gets_all(client, count));
    // And another one can still take over.
    let own = replaced(server, &socket, own, &[]);
    own.is_healthy();
    own.call("publish", json!({"channel": "plain", "data": "later"}));
    clients.iter_mut().for_each(|client| assert_eq!(client.push()["pub"]["data"], "later"));
}

/// The server ends in the middle of a takeover, which fails; the node goes on when it is back.
pub(crate) fn refused_without_its_server(mut server: impl Shared, name: &str) {
    let socket = Socket::new(name);
    let own = start(&server, &socket, &at("stop:old-shared"), &[]).expect("the first node starts");
    let mut client = own.connected();
    subscribe(&mut client, 2, json!({"channel": "plain"}));
    let ended = std::thread::scope(|scope| {
        let new = scope.spawn(|| start(&server, &socket, &[], &[]).err().expect("it fails"));
        until_stopped(own.pid());
        server.signal(Signal::KILL);
        own.signal(Signal::CONT);
        new.join().unwrap()
    });
    assert_eq!(ended.code, Some(1), "{}", ended.errors);
    own.until_logged(&["takeover failed"]);
    server.end();
    until("it is refused", || {
        let refused = start(&server, &socket, &[], &[]).err().expect("it is refused");
        refused.errors.contains("could not go on from here")
    });
    server.restart();
    server.until_back(&own);
    until("publications come again", || {
        own.call("publish", json!({"channel": "plain", "data": "again"}))["error"].is_null()
    });
    assert_eq!(client.push()["pub"]["data"], "again");
}

fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let began = Instant::now();
    while !reached() {
        assert!(began.elapsed() < BOUND, "{what}");
        std::thread::park_timeout(std::time::Duration::from_millis(5));
    }
}
