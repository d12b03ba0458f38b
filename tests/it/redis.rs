//! Two nodes on one Redis: what one takes the other delivers. Each test starts a server for itself; without
//! `redis-server` in the path they do nothing, unless `ROOST_TEST_REDIS` is set.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::harness::{BOUND, Client, Node};

/// A `redis-server` on a free port.
pub(crate) struct RedisServer {
    child: Child,
    pub(crate) port: u16,
    folder: PathBuf,
    flags: Vec<String>,
}

impl RedisServer {
    /// On a free port. None where there is no such program.
    pub(crate) fn start(flags: &[&str]) -> Option<Self> {
        Self::start_on(free_port(), flags)
    }

    /// The same on this port.
    pub(crate) fn start_on(port: u16, flags: &[&str]) -> Option<Self> {
        if Command::new("redis-server").arg("--version").output().is_err() {
            assert!(std::env::var_os("ROOST_TEST_REDIS").is_none(), "no redis-server");
            eprintln!("skipped: no redis-server");
            return None;
        }
        let made = Command::new("mktemp").arg("-d").output().unwrap().stdout;
        let folder = PathBuf::from(String::from_utf8(made).unwrap().trim());
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let mut server = Self { child: run(port, &folder, &flags), port, folder, flags };
        server.wait();
        Some(server)
    }

    fn wait(&mut self) {
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(self.child.try_wait().unwrap().is_none(), "redis-server has ended");
            assert!(began.elapsed() < BOUND, "redis-server does not listen");
            std::thread::park_timeout(Duration::from_millis(5));
        }
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
        kill_process(Pid::from_raw(self.child.id() as i32).unwrap(), signal).unwrap();
    }

    pub(crate) fn end(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on the same port, with nothing in it.
    pub(crate) fn restart(&mut self) {
        self.child = run(self.port, &self.folder, &self.flags);
        self.wait();
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn run(port: u16, folder: &PathBuf, flags: &Vec<String>) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--save", "", "--appendonly", "no", "--dir"])
        .arg(folder)
        .args(flags)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// What all nodes of these tests allow.
const OPTIONS: &str = r#"
http_api.key = "k"
[channel.without_namespace]
presence = true
join_leave = true
force_push_join_leave = true
allow_presence_for_subscriber = true
allow_presence_for_client = true
allow_history_for_client = true
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

#[test]
fn what_one_node_takes_the_other_delivers() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let (a, b) = (node(&server), node(&server));
    let mut client = a.connected();
    let subscribed = subscribe(&mut client, 2, json!({"channel": "stream:news"}));
    let published = b.call("publish", json!({"channel": "stream:news", "data": {"n": 1}}));
    assert_eq!(published["result"]["offset"], 1);
    assert_eq!(published["result"]["epoch"], subscribed["epoch"]);
    client.talk(
        "< {\"push\":{\"channel\":\"stream:news\",\"pub\":{\"data\":{\"n\":1},\"offset\":1,*}}}",
    );
}
