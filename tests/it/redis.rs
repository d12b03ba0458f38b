//! Two nodes on one Redis: what one takes the other delivers. Each test starts a server for itself; without
//! `redis-server` in the path they do nothing, unless `ROOST_TEST_REDIS` is set.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{BOTH, BOUND, Client, Node};
use crate::server_process::ServerProcess;

/// A `redis-server` on a free port.
pub(crate) struct RedisServer {
    process: ServerProcess,
    pub(crate) port: u16,
    flags: Vec<String>,
}

impl RedisServer {
    /// On a free port. None where there is no such program.
    ///
    /// Another process may take the port before the server does: then another port is tried.
    pub(crate) fn start(flags: &[&str]) -> Option<Self> {
        (0..50).find_map(|_| Self::launch(free_port(), flags)).expect("no free port")
    }

    /// The same on this port.
    pub(crate) fn start_on(port: u16, flags: &[&str]) -> Option<Self> {
        // Another process may have the port for a moment.
        let launched = (0..100).find_map(|_| {
            let launched = Self::launch(port, flags);
            if launched.is_none() {
                std::thread::park_timeout(Duration::from_millis(20));
            }
            launched
        });
        launched.expect("redis-server has ended")
    }

    /// `None`: the server has ended before it listened; `Some(None)`: there is no such program.
    fn launch(port: u16, flags: &[&str]) -> Option<Option<Self>> {
        if Command::new("redis-server").arg("--version").output().is_err() {
            assert!(std::env::var_os("ROOST_TEST_REDIS").is_none(), "no redis-server");
            eprintln!("skipped: no redis-server");
            return Some(None);
        }
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let process = ServerProcess::run(|folder| run(port, folder, &flags));
        let mut server = Self { process, port, flags };
        server.listens().then_some(Some(server))
    }

    /// A Sentinel with this configuration.
    pub(crate) fn start_sentinel(config: &std::path::Path) -> Option<Self> {
        let file = config.display().to_string();
        Self::start(&[&file, "--sentinel"])
    }

    fn wait(&mut self) {
        assert!(self.listens(), "redis-server has ended");
    }

    /// Waits until it listens; false when it has ended before.
    fn listens(&mut self) -> bool {
        let port = self.port;
        // A server of a Cluster listens before it knows whether it can have its second port: it has begun when it
        // answers, whatever that is.
        self.process.listens(|| {
            let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
            stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            stream.write_all(b"PING\r\n").is_ok() && stream.read(&mut [0; 64]).is_ok_and(|n| n > 0)
        })
    }

    pub(crate) fn connection(&self) -> redis::Connection {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
        client.get_connection().unwrap()
    }

    pub(crate) fn query<T: redis::FromRedisValue>(&self, command: &str) -> T {
        let mut words = command.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        words.for_each(|word| _ = command.arg(word));
        command.query(&mut self.connection()).unwrap()
    }

    /// Ends the connections of a kind: `normal` or `pubsub`.
    pub(crate) fn kill_connections(&self, kind: &str) -> u64 {
        self.query(&format!("CLIENT KILL TYPE {kind} SKIPME yes"))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    pub(crate) fn end(&mut self) {
        self.process.end();
    }

    /// Starts it again on the same port, with nothing in it.
    pub(crate) fn restart(&mut self) {
        self.process.child = run(self.port, &self.process.folder, &self.flags);
        self.wait();
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn run(port: u16, folder: &PathBuf, flags: &[String]) -> Child {
    // A file comes before all options.
    let (file, flags) = match flags.first() {
        Some(first) if !first.starts_with("--") => flags.split_at(1),
        _ => flags.split_at(0),
    };
    let is_sentinel = flags.iter().any(|flag| flag == "--sentinel");
    let data = ["--save", "", "--appendonly", "no"];
    Command::new("redis-server")
        .args(file)
        .args(["--port", &port.to_string(), "--dir"])
        .arg(folder)
        .args(data.iter().filter(|_| !is_sentinel))
        .args(flags)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// What all nodes of these tests allow.
pub(crate) const OPTIONS: &str = r#"
http_api.key = "k"
[channel.without_namespace]
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
[[channel.namespaces]]
name = "stream"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
allow_history_for_client = true
allow_history_for_anonymous = true
force_positioning = true
force_recovery = true
history_size = 100
history_ttl = "10m"
allowed_delta_types = ["fossil"]
[[channel.namespaces]]
name = "room"
presence = true
join_leave = true
force_push_join_leave = true
allow_presence_for_client = true
allow_presence_for_anonymous = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
[[channel.namespaces]]
name = "cache"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
force_recovery = true
force_recovery_mode = "cache"
history_size = 1
history_ttl = "10m"
[client]
allowed_origins = ["*"]
allow_anonymous_connect_without_token = true
ping_interval = "10m"
[client.token]
hmac_secret_key = "secret"
"#;

/// A node whose channels are in this Redis.
pub(crate) fn node(server: &RedisServer) -> Node {
    node_with(&format!("engine.redis.address = \"127.0.0.1:{}\"", server.port))
}

/// The same, with these options of the engine.
pub(crate) fn node_with(engine: &str) -> Node {
    Node::start(&format!("engine.type = \"redis\"\n{engine}\n{OPTIONS}"), &[])
}

/// Subscribes a client, and returns the result.
pub(crate) fn subscribe(client: &mut Client, id: u32, request: Value) -> Value {
    client.send(&json!({"id": id, "subscribe": request}).to_string());
    let reply = client.expect(&format!("{{\"id\":{id},\"subscribe\":{{*}}}}"));
    serde_json::from_str::<Value>(&reply).unwrap()["subscribe"].take()
}

/// The data of the publications that come next, which all are of this channel.
pub(crate) fn data(client: &mut Client, channel: &str, count: usize) -> Vec<Value> {
    let next = |_| {
        let mut push = client.push();
        assert_eq!(push["channel"], channel, "{push}");
        push["pub"]["data"].take()
    };
    (0..count).map(next).collect()
}

/// Two nodes on one server.
fn pair() -> Option<(RedisServer, Node, Node)> {
    let server = RedisServer::start(&[])?;
    let (a, b) = (node(&server), node(&server));
    Some((server, a, b))
}

#[test]
fn what_one_node_takes_the_other_delivers() {
    let Some((_server, a, b)) = pair() else { return };
    let mut client = a.connected();
    let subscribed = subscribe(&mut client, 2, json!({"channel": "stream:news"}));
    let published = b.call("publish", json!({"channel": "stream:news", "data": {"n": 1}}));
    assert_eq!(published["result"]["offset"], 1);
    assert_eq!(published["result"]["epoch"], subscribed["epoch"]);
    client.expect(
        "{\"push\":{\"channel\":\"stream:news\",\"pub\":{\"data\":{\"n\":1},\"offset\":1*}}}",
    );
    // From a client of the other node, with its info; and to its own subscriber as well.
    let mut publisher = b.connected_as("ann");
    publisher.publish("stream:news", json!(2));
    let push = client.push();
    assert_eq!((&push["pub"]["data"], &push["pub"]["offset"]), (&json!(2), &json!(2)));
    assert_eq!(push["pub"]["info"]["user"], "ann");
    // Without history there is no position.
    subscribe(&mut client, 3, json!({"channel": "plain"}));
    let params = json!({"channel": "plain", "data": 3, "tags": {"k": "v"}});
    assert_eq!(b.call("publish", params), json!({"result": {}}));
    let push = client.push();
    assert_eq!(push["pub"], json!({"data": 3, "tags": {"k": "v"}}));
}

#[test]
fn broadcasts_and_batches_reach_the_other_node() {
    let Some((_server, a, b)) = pair() else { return };
    let mut client = a.connected();
    subscribe(&mut client, 2, json!({"channel": "stream:x"}));
    subscribe(&mut client, 3, json!({"channel": "y"}));
    let answer = b.call("broadcast", json!({"channels": ["stream:x", "y"], "data": 1}));
    let responses = &answer["result"]["responses"];
    assert_eq!(responses[0]["result"]["offset"], 1);
    assert_eq!(responses[1]["result"], json!({}));
    let mut channels: Vec<Value> = (0..2).map(|_| client.push()["channel"].take()).collect();
    channels.sort_by_key(Value::to_string);
    assert_eq!(channels, ["stream:x", "y"]);
    let publish = |n: u32| json!({"publish": {"channel": "stream:x", "data": n}});
    let commands: Vec<Value> = (2..102).map(publish).collect();
    let answer = b.call("batch", json!({"commands": commands}));
    let replies = answer["replies"].as_array().unwrap();
    assert_eq!(replies.len(), 100);
    assert_eq!(replies[99]["publish"]["offset"], 101);
    assert_eq!(data(&mut client, "stream:x", 100), (2..102).collect::<Vec<_>>());
}

#[test]
fn a_publication_is_taken_once_and_old_versions_never() {
    let Some((_server, a, b)) = pair() else { return };
    let mut client = a.connected();
    subscribe(&mut client, 2, json!({"channel": "stream:x"}));
    let once = json!({"channel": "stream:x", "data": 1, "idempotency_key": "key"});
    let (first, second) = (a.call("publish", once.clone()), b.call("publish", once));
    assert_eq!(first, second);
    let version = |node: &Node, version: u64, epoch: &str| {
        let params = json!({
            "channel": "stream:x", "data": version, "version": version, "version_epoch": epoch,
        });
        node.call("publish", params)["result"]["offset"].take()
    };
    assert_eq!(version(&a, 5, ""), 2);
    assert_eq!(version(&b, 4, ""), 2, "suppressed");
    assert_eq!(version(&b, 1, "another life"), 3);
    // It has no position, and is no part of the history.
    let skips = json!({"channel": "stream:x", "data": "skips", "skip_history": true});
    assert_eq!(b.call("publish", skips), json!({"result": {}}));
    assert_eq!(data(&mut client, "stream:x", 4), [json!(1), json!(5), json!(1), json!("skips")]);
    let history = a.call("history", json!({"channel": "stream:x", "limit": -1}));
    assert_eq!(history["result"]["publications"].as_array().unwrap().len(), 3);
    // The same without a history.
    subscribe(&mut client, 3, json!({"channel": "plain"}));
    let once = json!({"channel": "plain", "data": 7, "idempotency_key": "key"});
    assert_eq!(a.call("publish", once.clone()), b.call("publish", once));
    b.call("publish", json!({"channel": "plain", "data": 8}));
    assert_eq!(data(&mut client, "plain", 2), [7, 8]);
}

#[test]
fn subscribers_that_take_patches_get_them_from_the_other_node() {
    let Some((_server, a, b)) = pair() else { return };
    let mut client = a.connected();
    let subscribed = subscribe(&mut client, 2, json!({"channel": "stream:x", "delta": "fossil"}));
    assert_eq!(subscribed["delta"], true);
    let body = |n: u32| json!({"text": "the same words again and again ".repeat(20), "n": n});
    let mut base = String::new();
    for n in 1..=4 {
        let params = json!({"channel": "stream:x", "data": body(n), "delta": true});
        b.call("publish", params);
        let mut push = client.push();
        let Value::String(text) = push["pub"]["data"].take() else { panic!("{push}") };
        let patched = push["pub"]["delta"] == true;
        assert_eq!(patched, n > 1, "{push}");
        base = match patched {
            true => {
                let bytes = fossil_delta::apply(base.as_bytes(), text.as_bytes()).unwrap();
                String::from_utf8(bytes).unwrap()
            }
            false => text,
        };
        assert_eq!(serde_json::from_str::<Value>(&base).unwrap(), body(n));
    }
}

#[test]
fn histories_are_read_recovered_and_removed_on_either_node() {
    let Some((_server, a, b)) = pair() else { return };
    let mut client = a.connected();
    let subscribed = subscribe(&mut client, 2, json!({"channel": "stream:x"}));
    let epoch = subscribed["epoch"].clone();
    (1..=5).for_each(|n| {
        b.call("publish", json!({"channel": "stream:x", "data": n}));
    });
    assert_eq!(data(&mut client, "stream:x", 5), [1, 2, 3, 4, 5]);
    let read = |node: &Node, more: Value| {
        let mut params = json!({"channel": "stream:x"});
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut result = node.call("history", params)["result"].take();
        assert_eq!((&result["epoch"], &result["offset"]), (&epoch, &json!(5)));
        let publications = result["publications"].take();
        let publications = publications.as_array().cloned().unwrap_or_default();
        publications.iter().map(|of| of["data"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(read(&a, json!({"limit": 2})), [1, 2]);
    assert_eq!(read(&a, json!({"limit": 2, "reverse": true})), [5, 4]);
    let since = json!({"offset": 2, "epoch": epoch});
    assert_eq!(read(&b, json!({"limit": -1, "since": since})), [3, 4, 5]);
    assert_eq!(read(&b, json!({"limit": 0})), [0u64; 0]);
    let answer = client.ask("history", json!({"channel": "stream:x", "limit": 1, "reverse": true}));
    assert_eq!(answer["history"]["publications"][0]["data"], 5);
    // A client comes back on the other node.
    let recover = |node: &Node, offset: u64, epoch: &Value| {
        let mut client = node.connected();
        let request = json!({
            "channel": "stream:x", "recover": true, "offset": offset, "epoch": epoch,
        });
        let result = subscribe(&mut client, 2, request);
        let publications = result["publications"].as_array().cloned().unwrap_or_default();
        let offsets: Vec<_> = publications.iter().map(|of| of["offset"].clone()).collect();
        (result["recovered"] == true, offsets)
    };
    assert_eq!(recover(&b, 3, &epoch), (true, vec![json!(4), json!(5)]));
    assert_eq!(recover(&a, 3, &epoch), (true, vec![json!(4), json!(5)]));
    assert_eq!(recover(&b, 5, &epoch), (true, vec![]));
    assert!(!recover(&b, 5, &json!("another life")).0);
    b.call("history_remove", json!({"channel": "stream:x"}));
    assert_eq!(read(&a, json!({"limit": -1})), [0u64; 0]);
    assert!(!recover(&b, 3, &epoch).0);
    b.call("publish", json!({"channel": "stream:x", "data": 6}));
    assert_eq!(client.push()["pub"]["offset"], 6);
    // A cache gives out its newest publication.
    a.call("publish", json!({"channel": "cache:x", "data": 1}));
    a.call("publish", json!({"channel": "cache:x", "data": 2}));
    let result = subscribe(&mut client, 3, json!({"channel": "cache:x", "recover": true}));
    assert_eq!(result["recovered"], true);
    assert_eq!(result["publications"][0]["data"], 2);
}

#[test]
fn each_node_knows_who_is_present_on_all() {
    let Some((_server, a, b)) = pair() else { return };
    let mut ann = a.connected_as("ann");
    subscribe(&mut ann, 2, json!({"channel": "room:x"}));
    assert_eq!(ann.push()["join"]["info"]["user"], "ann");
    let mut bob = b.connected_as("bob");
    subscribe(&mut bob, 2, json!({"channel": "room:x"}));
    assert_eq!(ann.push()["join"]["info"]["user"], "bob");
    assert_eq!(bob.push()["join"]["info"]["user"], "bob");
    for node in [&a, &b] {
        let presence = node.call("presence", json!({"channel": "room:x"}));
        let clients = presence["result"]["presence"].as_object().unwrap();
        let mut users: Vec<_> = clients.values().map(|of| of["user"].clone()).collect();
        users.sort_by_key(Value::to_string);
        assert_eq!(users, ["ann", "bob"]);
        let stats = node.call("presence_stats", json!({"channel": "room:x"}));
        assert_eq!(stats["result"], json!({"num_clients": 2, "num_users": 2}));
    }
    // It is present as soon as it is subscribed, and no more as soon as it is not.
    let answer = bob.ask("presence_stats", json!({"channel": "room:x"}));
    assert_eq!(answer["presence_stats"], json!({"num_clients": 2, "num_users": 2}));
    bob.close();
    assert_eq!(ann.push()["leave"]["info"]["user"], "bob");
    let stats = b.call("presence_stats", json!({"channel": "room:x"}));
    assert_eq!(stats["result"], json!({"num_clients": 1, "num_users": 1}));
}

#[test]
fn subscribers_of_all_forms_on_both_nodes_get_the_same() {
    let Some((_server, a, b)) = pair() else { return };
    let nodes = [&a, &b];
    let mut clients: Vec<Client> = Vec::new();
    for node in nodes {
        for speech in BOTH {
            for _ in 0..3 {
                let mut client = node.connected_in(speech);
                subscribe(&mut client, 2, json!({"channel": "stream:x"}));
                clients.push(client);
            }
        }
    }
    for n in 0..50 {
        nodes[n % 2].call("publish", json!({"channel": "stream:x", "data": {"n": n}}));
    }
    let expected: Vec<Value> = (0..50).map(|n| json!({"n": n})).collect();
    for client in &mut clients {
        assert_eq!(data(client, "stream:x", 50), expected);
    }
}

#[test]
fn interest_ends_a_second_after_the_last_subscriber() {
    let Some((server, a, _b)) = pair() else { return };
    let interest = || -> u64 {
        let (_, count): (String, u64) = server.query("PUBSUB NUMSUB centrifugo.client.stream:x");
        count
    };
    let mut clients: Vec<Client> = (0..3).map(|_| a.connected()).collect();
    for client in &mut clients {
        subscribe(client, 2, json!({"channel": "stream:x"}));
    }
    assert_eq!(interest(), 1);
    clients.clear();
    let since = Instant::now();
    while interest() > 0 {
        assert!(since.elapsed() < BOUND, "never unsubscribed");
    }
    assert!(since.elapsed() > Duration::from_millis(500), "clients come back soon");
}

#[test]
fn presence_and_channels_may_be_in_different_places() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let address = format!("\"127.0.0.1:{}\"", server.port);
    let presence_only = format!(
        "presence_manager = {{ enabled = true, type = \"redis\", redis = {{ address = {address} }} }}"
    );
    let start = |text: &str| Node::start(&format!("{text}\n{OPTIONS}"), &[]);
    let (a, b) = (start(&presence_only), start(&presence_only));
    let mut ann = a.connected_as("ann");
    let mut bob = b.connected_as("bob");
    for client in [&mut ann, &mut bob] {
        subscribe(client, 2, json!({"channel": "room:x"}));
        client.push();
    }
    let stats =
        |node: &Node| node.call("presence_stats", json!({"channel": "room:x"}))["result"].take();
    let two = json!({"num_clients": 2, "num_users": 2});
    // The reply to a subscribe doesn't wait for presence where channels are the node's own.
    let since = Instant::now();
    while (stats(&a), stats(&b)) != (two.clone(), two.clone()) {
        assert!(since.elapsed() < BOUND, "{} {}", stats(&a), stats(&b));
    }
    // Channels are each node's own.
    subscribe(&mut ann, 3, json!({"channel": "stream:x"}));
    b.call("publish", json!({"channel": "stream:x", "data": 1}));
    a.call("publish", json!({"channel": "stream:x", "data": 2}));
    assert_eq!(data(&mut ann, "stream:x", 1), [2]);
    bob.close();
    let since = Instant::now();
    while stats(&a) != json!({"num_clients": 1, "num_users": 1}) {
        assert!(since.elapsed() < BOUND, "it is still there");
    }
    drop((a, b, ann));

    let channels_only = format!(
        "broker = {{ enabled = true, type = \"redis\", redis = {{ address = {address} }} }}"
    );
    let (a, b) = (start(&channels_only), start(&channels_only));
    assert!(a.errors().contains("every node shows its own clients only"));
    let mut ann = a.connected_as("ann");
    subscribe(&mut ann, 2, json!({"channel": "room:x"}));
    assert_eq!(ann.push()["join"]["info"]["user"], "ann");
    subscribe(&mut ann, 3, json!({"channel": "stream:x"}));
    b.call("publish", json!({"channel": "stream:x", "data": 1}));
    assert_eq!(data(&mut ann, "stream:x", 1), [1]);
    assert_eq!(stats(&a), json!({"num_clients": 1, "num_users": 1}));
    assert_eq!(stats(&b), json!({"num_clients": 0, "num_users": 0}));
    drop((a, b, ann));

    // Both in Redis, in different ones.
    let Some(other) = RedisServer::start(&[]) else { return };
    let apart = format!(
        "engine.type = \"redis\"\nengine.redis.address = {address}\n\
         presence_manager = {{ enabled = true, type = \"redis\", \
         redis = {{ address = \"127.0.0.1:{}\" }} }}",
        other.port
    );
    let (a, b) = (start(&apart), start(&apart));
    let mut ann = a.connected_as("ann");
    subscribe(&mut ann, 2, json!({"channel": "room:apart"}));
    assert_eq!(ann.push()["join"]["info"]["user"], "ann");
    assert_eq!(
        b.call("presence_stats", json!({"channel": "room:apart"}))["result"].take(),
        json!({"num_clients": 1, "num_users": 1})
    );
    let keys: Vec<String> = other.query("KEYS centrifugo.presence.*");
    assert_eq!(keys.len(), 2, "{keys:?}");
    let keys: Vec<String> = server.query("KEYS centrifugo.presence.data.room:apart");
    assert!(keys.is_empty(), "{keys:?}");
}

#[test]
fn names_that_would_mean_something_else_are_refused() {
    let Some((_server, a, _b)) = pair() else { return };
    let publish = |channel: &str| a.call("publish", json!({"channel": channel, "data": 1}));
    // The stream of `meta.x` would be the position of `x`; without history the name is good.
    assert_eq!(publish("meta.x"), json!({"result": {}}));
}
