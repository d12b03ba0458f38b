//! Two nodes on one NATS: what one takes the other delivers. Each test starts a server for itself; without
//! `nats-server` in the path they do nothing, unless `ROOST_TEST_NATS` is set. `ROOST_NATS_SERVER` is the path of
//! a newer server than that of the path.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{BOUND, Client, Node, token};
use crate::redis::{data, free_port, subscribe};
use crate::server_process::ServerProcess;

/// A `nats-server` on a free port.
pub(crate) struct NatsServer {
    process: ServerProcess,
    program: String,
    pub(crate) port: u16,
    flags: Vec<String>,
}

impl NatsServer {
    /// The newest one that there is. None where there is no such program.
    pub(crate) fn start(flags: &[&str]) -> Option<Self> {
        let newest = std::env::var("ROOST_NATS_SERVER");
        Self::start_program(newest.as_deref().unwrap_or("nats-server"), flags)
    }

    /// That of the path.
    pub(crate) fn start_old(flags: &[&str]) -> Option<Self> {
        Self::start_program("nats-server", flags)
    }

    fn start_program(program: &str, flags: &[&str]) -> Option<Self> {
        if Command::new(program).arg("--version").output().is_err() {
            assert!(std::env::var_os("ROOST_TEST_NATS").is_none(), "no nats-server");
            eprintln!("skipped: no nats-server");
            return None;
        }
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        // Another process may take the port before the server does.
        let started = (0..50).find_map(|_| {
            let (port, flags) = (free_port(), flags.clone());
            let process = ServerProcess::run(|folder| run(program, port, folder, &flags));
            let mut server = Self { process, program: program.to_owned(), port, flags };
            server.listens().then_some(server)
        });
        Some(started.expect("no free port"))
    }

    /// Waits until it greets; false when it has ended before.
    fn listens(&mut self) -> bool {
        let port = self.port;
        self.process.listens(|| {
            let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
            stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).is_ok() && line.starts_with("INFO")
        })
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    pub(crate) fn end(&mut self) {
        self.process.end();
    }

    /// Waits until it has ended.
    pub(crate) fn wait(&mut self) {
        self.process.child.wait().unwrap();
    }

    /// Starts it again on the same port.
    pub(crate) fn restart(&mut self) {
        self.process.child = run(&self.program, self.port, &self.process.folder, &self.flags);
        assert!(self.listens(), "nats-server has ended");
    }

    /// A client that speaks the protocol line by line.
    pub(crate) fn client(&self) -> Lines {
        let mut lines = self.try_client().expect("it greets");
        lines.0.get_ref().set_read_timeout(Some(BOUND)).unwrap();
        lines.flush();
        lines
    }

    /// The same, if the server is there.
    pub(crate) fn try_client(&self) -> Option<Lines> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut lines = Lines(BufReader::new(stream));
        let mut greeting = String::new();
        lines.0.read_line(&mut greeting).ok().filter(|count| *count > 0)?;
        assert!(greeting.starts_with("INFO"), "{greeting}");
        lines.send(b"CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\n");
        Some(lines)
    }
}

fn run(program: &str, port: u16, folder: &PathBuf, flags: &[String]) -> Child {
    Command::new(program)
        .args(["-a", "127.0.0.1", "-p", &port.to_string(), "-sd"])
        .arg(folder)
        .args(flags)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// A foreign client.
pub(crate) struct Lines(BufReader<TcpStream>);

impl Lines {
    fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The server has carried out what was sent.
    pub(crate) fn flush(&mut self) {
        self.send(b"PING\r\n");
        while self.line() != "PONG" {}
    }

    pub(crate) fn publish(&mut self, subject: &str, payload: &[u8]) {
        self.send(format!("PUB {subject} {}\r\n", payload.len()).as_bytes());
        self.send(&[payload, b"\r\n"].concat());
        self.flush();
    }

    pub(crate) fn subscribe(&mut self, subject: &str) {
        self.send(format!("SUB {subject} 1\r\n").as_bytes());
        self.flush();
    }

    /// The same, if one comes.
    pub(crate) fn try_request(&mut self, subject: &str) -> Option<Vec<u8>> {
        self.0.get_ref().set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        self.send(format!("SUB _INBOX.test 1\r\nPUB {subject} _INBOX.test 0\r\n\r\n").as_bytes());
        let mut line = String::new();
        loop {
            line.clear();
            self.0.read_line(&mut line).ok().filter(|count| *count > 0)?;
            let size = line.strip_prefix("MSG ").and_then(|of| of.trim_end().rsplit(' ').next());
            if let Some(size) = size.and_then(|size| size.parse::<usize>().ok()) {
                let mut payload = vec![0; size];
                return self.0.read_exact(&mut payload).ok().map(|()| payload);
            }
            if line.starts_with("HMSG") {
                return None;
            }
        }
    }

    /// The reply to a request.
    pub(crate) fn request(&mut self, subject: &str, payload: &[u8]) -> Vec<u8> {
        self.subscribe("_INBOX.test");
        self.send(format!("PUB {subject} _INBOX.test {}\r\n", payload.len()).as_bytes());
        self.send(&[payload, b"\r\n"].concat());
        self.message().1
    }

    /// The next message: its subject and its bytes.
    pub(crate) fn message(&mut self) -> (String, Vec<u8>) {
        let mut line = self.line();
        while line == "PING" {
            self.send(b"PONG\r\n");
            line = self.line();
        }
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!(words[0], "MSG", "{line}");
        let mut payload = vec![0; words[words.len() - 1].parse::<usize>().unwrap() + 2];
        self.0.read_exact(&mut payload).unwrap();
        payload.truncate(payload.len() - 2);
        (words[1].to_owned(), payload)
    }
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
name = "room"
presence = true
join_leave = true
force_push_join_leave = true
allow_presence_for_client = true
allow_presence_for_anonymous = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
[[channel.namespaces]]
name = "dnoh"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allowed_delta_types = ["fossil"]
delta_publish = true
[client]
allowed_origins = ["*"]
allow_anonymous_connect_without_token = true
ping_interval = "10m"
[client.token]
hmac_secret_key = "secret"
"#;

/// A node whose channels are in this NATS.
pub(crate) fn node(server: &NatsServer) -> Node {
    node_with(server, "")
}

/// The same, with these options of the section, and others behind them.
pub(crate) fn node_with(server: &NatsServer, more: &str) -> Node {
    Node::start(&file_with(server, more), &[])
}

/// Its file.
pub(crate) fn file_with(server: &NatsServer, more: &str) -> String {
    let url = format!("nats://127.0.0.1:{}", server.port);
    let broker = "broker.enabled = true\nbroker.type = \"nats\"";
    let section = format!("[broker.nats]\nurl = \"{url}\"");
    format!("{broker}\n{OPTIONS}\n{section}\n{more}")
}

fn pair() -> Option<(NatsServer, Node, Node)> {
    let server = NatsServer::start(&[])?;
    let (a, b) = (node(&server), node(&server));
    Some((server, a, b))
}

/// The error of a request of a client.
fn error_of(client: &mut Client, method: &str, channel: &str) -> Value {
    let request = match method {
        "publish" => json!({"channel": channel, "data": 1}),
        _ => json!({"channel": channel}),
    };
    client.ask(method, request)["error"]["code"].take()
}

/// Publishes until it is taken: while NATS is away the answer is error 100.
fn publish_until_taken(node: &Node, channel: &str, n: u64) {
    let since = Instant::now();
    loop {
        let answer = node.call("publish", json!({"channel": channel, "data": n}));
        if answer["error"].is_null() {
            return;
        }
        assert_eq!(answer["error"]["code"], 100, "{answer}");
        assert!(since.elapsed() < BOUND, "never taken");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

#[test]
fn what_one_node_takes_the_other_delivers() {
    for start in [NatsServer::start, NatsServer::start_old] {
        let Some(server) = start(&[]) else { return };
        let (a, b) = (node(&server), node(&server));
        let mut client = a.connected();
        subscribe(&mut client, 2, json!({"channel": "plain"}));
        let params = json!({"channel": "plain", "data": 3, "tags": {"k": "v"}});
        assert_eq!(b.call("publish", params), json!({"result": {}}));
        assert_eq!(client.push()["pub"], json!({"data": 3, "tags": {"k": "v"}}));
        // From a client of the other node, with its info; and to its own subscriber as well.
        let mut publisher = b.connected_as("ann");
        subscribe(&mut publisher, 2, json!({"channel": "plain"}));
        publisher.send(&json!({"id": 3, "publish": {"channel": "plain", "data": 4}}).to_string());
        for client in [&mut client, &mut publisher] {
            loop {
                let line = client.line();
                let value: Value = serde_json::from_str(&line).unwrap();
                let Some(publication) = value["push"]["pub"].as_object() else { continue };
                assert_eq!(
                    (&publication["data"], &publication["info"]["user"]),
                    (&json!(4), &json!("ann"))
                );
                break;
            }
        }
        let answer = a.call("history", json!({"channel": "plain", "limit": 1}));
        assert_eq!(answer["error"]["code"], 108, "{answer}");
    }
}

#[test]
fn a_subscriber_gets_what_is_published_behind_its_reply() {
    let Some((_server, a, b)) = pair() else { return };
    let mut client = a.connected();
    for n in 0..100 {
        let channel = format!("c{n}");
        subscribe(&mut client, n + 2, json!({"channel": channel}));
        b.call("publish", json!({"channel": channel, "data": n}));
        assert_eq!(data(&mut client, &channel, 1), [n]);
    }
}

#[test]
fn joins_leaves_and_deltas_cross_nodes() {
    let Some((_server, a, b)) = pair() else { return };
    let mut client = a.connected_as("ann");
    subscribe(&mut client, 2, json!({"channel": "room:x"}));
    assert_eq!(client.push()["join"]["info"]["user"], "ann");
    let mut other = b.connected_as("bob");
    subscribe(&mut other, 2, json!({"channel": "room:x"}));
    assert_eq!(client.push()["join"]["info"]["user"], "bob");
    drop(other);
    assert_eq!(client.push()["leave"]["info"]["user"], "bob");
    let subscribed = subscribe(&mut client, 3, json!({"channel": "dnoh:x", "delta": "fossil"}));
    assert_eq!(subscribed["delta"], true);
    for n in 1..=3 {
        b.call("publish", json!({"channel": "dnoh:x", "data": {"n": n}}));
        let push = client.push();
        assert_eq!(push["pub"]["data"], json!(format!("{{\"n\":{n}}}")), "{push}");
    }
}

#[test]
fn names_that_nats_cannot_carry_are_refused_and_the_connection_stays() {
    let Some((server, a, b)) = pair() else { return };
    let mut client = a.connected();
    for name in ["with space", "tab\there", ".a", "a.", "a..b", "news.*", ">", "room:a b"] {
        assert_eq!(error_of(&mut client, "subscribe", name), 107, "{name}");
        assert_eq!(error_of(&mut client, "publish", name), 107, "{name}");
        let answer = b.call("publish", json!({"channel": name, "data": 1}));
        assert_eq!(answer["error"]["code"], 107, "{name}: {answer}");
    }
    // A token that names one: the connection is refused, and does not come back again and again.
    let claims = json!({"sub": "ann", "channels": ["a b"]});
    let mut named = a.client();
    named.send(&json!({"id": 1, "connect": {"token": token(claims)}}).to_string());
    let reply: Value = serde_json::from_str(&named.line()).unwrap();
    assert_eq!(reply["error"]["code"], 107, "{reply}");
    subscribe(&mut client, 90, json!({"channel": "plain"}));
    b.call("publish", json!({"channel": "plain", "data": 1}));
    assert_eq!(data(&mut client, "plain", 1), [1]);
    // What others send there is counted, and harms nobody.
    let mut foreign = server.client();
    for payload in [&b"\x22\x7f"[..], b"", b"nonsense", &[0xff; 100]] {
        foreign.publish("centrifugo.client.plain", payload);
        foreign.publish("centrifugo.control", payload);
    }
    // A publication with a position of its own, as nodes with a history elsewhere send it.
    let positioned =
        b"\x12\x05plain\x22\x26\x22\x02{}0\x07:\x1e\x0a\x12__centrifugo_epoch\x12\x08abcdefgh";
    foreign.publish("centrifugo.client.plain", positioned);
    let push = client.push();
    assert_eq!(push["pub"]["data"], json!({}));
    assert!(push["pub"]["tags"].is_null(), "{push}");
}

#[test]
fn patterns_get_the_publications_of_all_their_channels() {
    let Some(server) = NatsServer::start(&[]) else { return };
    let more = "allow_wildcards = true";
    let (a, b) = (node_with(&server, more), node_with(&server, more));
    let mut client = a.connected();
    for (id, channel) in (2..).zip(["news.*", "news.>", "news.a"]) {
        subscribe(&mut client, id, json!({"channel": channel}));
    }
    let publish = |channel: &str| {
        b.call("publish", json!({"channel": channel, "data": 1, "tags": {"t": "1"}}))
    };
    publish("news.a");
    let mut got: Vec<Value> = (0..3).map(|_| client.push()).collect();
    got.sort_by_key(|push| push["channel"].to_string());
    let channel = |push: &Value| (push["channel"].clone(), push["pub"]["channel"].clone());
    assert_eq!(channel(&got[0]), (json!("news.*"), json!("news.a")));
    assert_eq!(channel(&got[1]), (json!("news.>"), json!("news.a")));
    assert_eq!(channel(&got[2]), (json!("news.a"), Value::Null));
    publish("news.a.b");
    assert_eq!(channel(&client.push()), (json!("news.>"), json!("news.a.b")));
    assert_eq!(publish("news.*")["error"]["code"], 107);
    assert_eq!(error_of(&mut client, "publish", "news.>"), 107);
    assert_eq!(error_of(&mut client, "subscribe", "news.>.a"), 107);
}

/// Subscriptions of all clients of the server, as its monitoring shows them.
fn subscriptions(monitor: u16) -> u64 {
    let mut stream = TcpStream::connect(("127.0.0.1", monitor)).unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    stream.write_all(b"GET /connz HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let body: Value = serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap();
    let all = body["connections"].as_array().unwrap();
    all.iter().map(|of| of["subscriptions"].as_u64().unwrap()).sum()
}

/// How many nodes this one knows, itself included.
fn nodes(node: &Node) -> usize {
    node.call("info", json!({}))["result"]["nodes"].as_array().unwrap().len()
}

#[test]
fn one_subscription_takes_all_channels() {
    let monitor = free_port().to_string();
    let Some(mut server) = NatsServer::start(&["-m", &monitor]) else { return };
    let monitor: u16 = monitor.parse().unwrap();
    let more = "allow_wildcards = true\n[roost]\nnats_interest = \"all\"";
    let (a, b) = (node_with(&server, more), node(&server));
    let mut client = a.connected();
    // All that nodes subscribe to from the start is there.
    let since = Instant::now();
    while [&a, &b].iter().any(|node| nodes(node) != 2) {
        assert!(since.elapsed() < BOUND, "they don't know each other");
    }
    subscribe(&mut client, 2, json!({"channel": "c0"}));
    publish_until_taken(&b, "c0", 0);
    assert_eq!(data(&mut client, "c0", 1), [0]);
    let before = subscriptions(monitor);
    for n in 1..20 {
        subscribe(&mut client, n + 2, json!({"channel": format!("c{n}")}));
    }
    assert_eq!(subscriptions(monitor), before);
    subscribe(&mut client, 30, json!({"channel": "c1.*"}));
    assert_eq!(subscriptions(monitor), before + 1, "a pattern has one of its own");
    // Of no interest here, to a channel and to a channel of the pattern.
    for channel in ["other", "c1", "c1.x"] {
        b.call("publish", json!({"channel": channel, "data": channel}));
    }
    let push = client.push();
    assert_eq!((&push["channel"], &push["pub"]["data"]), (&json!("c1"), &json!("c1")));
    let push = client.push();
    assert_eq!((&push["channel"], &push["pub"]["channel"]), (&json!("c1.*"), &json!("c1.x")));
    // Nor is one that has been left.
    assert!(client.ask("unsubscribe", json!({"channel": "c2"}))["error"].is_null());
    b.call("publish", json!({"channel": "c2", "data": 2}));
    publish_until_taken(&b, "c3", 3);
    assert_eq!(data(&mut client, "c3", 1), [3]);
    // On the next connection it takes them again.
    server.end();
    server.restart();
    let since = Instant::now();
    for n in 4.. {
        publish_until_taken(&b, "c4", n);
        let answer = a.call("channels", json!({}));
        if answer["result"].is_object()
            && a.call("publish", json!({"channel": "c4", "data": 0}))["error"].is_null()
        {
            break;
        }
        assert!(since.elapsed() < BOUND, "{answer}");
    }
    publish_until_taken(&b, "c4", 1_000);
    while data(&mut client, "c4", 1) != [1_000] {}
}

#[test]
fn refused_subjects_are_errors_however_many_there_are() {
    let config = "authorization { users = [ { user: u, password: p, permissions: {\
        publish: { deny: \"centrifugo.client.no.>\" }, subscribe: { deny: \"centrifugo.client.no.>\" }\
        } } ] }";
    let made = Command::new("mktemp").output().unwrap().stdout;
    let file = String::from_utf8(made).unwrap().trim().to_owned();
    std::fs::write(&file, config).unwrap();
    let server = NatsServer::start(&["-c", &file]);
    std::fs::remove_file(&file).unwrap();
    let Some(server) = server else { return };
    let url = format!("nats://u:p@127.0.0.1:{}", server.port);
    let node = Node::start(
        &format!(
            "broker = {{enabled = true, type = \"nats\", nats = {{url = \"{url}\"}}}}\n{OPTIONS}"
        ),
        &[],
    );
    let mut client = node.connected();
    // More than errors that the client of NATS keeps.
    let many = 1_000;
    for n in 0..many {
        let request = json!({"id": n + 2, "publish": {"channel": format!("no.{n}"), "data": 1}});
        client.send(&request.to_string());
    }
    for _ in 0..many {
        let reply: Value = serde_json::from_str(&client.line()).unwrap();
        assert!(reply["error"].is_object(), "{reply}");
    }
    assert_eq!(error_of(&mut client, "subscribe", "no.x"), 100);
    subscribe(&mut client, 5_000, json!({"channel": "yes"}));
    node.call("publish", json!({"channel": "yes", "data": 1}));
    assert_eq!(data(&mut client, "yes", 1), [1]);
}

/// The server's error names no subscription: those that are made deliver, and all others are errors.
#[test]
fn more_subscriptions_than_the_server_takes_are_errors() {
    let file = std::env::temp_dir().join(format!("roost-it-nats-subs-{}", std::process::id()));
    std::fs::write(&file, "max_subs: 30").unwrap();
    let server = NatsServer::start(&["-c", &file.display().to_string()]);
    std::fs::remove_file(&file).unwrap();
    let Some(server) = server else { return };
    let node = node(&server);
    let mut client = node.connected();
    let many = 60;
    for n in 0..many {
        let request = json!({"id": n + 2, "subscribe": {"channel": format!("c{n}")}});
        client.send(&request.to_string());
    }
    let mut made = Vec::new();
    for _ in 0..many {
        let reply: Value = serde_json::from_str(&client.line()).unwrap();
        match reply["error"]["code"].as_u64() {
            None => made.push(reply["id"].as_u64().unwrap() - 2),
            Some(code) => assert_eq!(code, 100, "{reply}"),
        }
    }
    assert!((15..30).contains(&made.len()), "{made:?}");
    for n in &made {
        node.call("publish", json!({"channel": format!("c{n}"), "data": n}));
        assert_eq!(data(&mut client, &format!("c{n}"), 1), [*n]);
    }
    // One that is left makes room for another one.
    assert!(
        client.ask("unsubscribe", json!({"channel": format!("c{}", made[0])}))["error"].is_null()
    );
    let since = Instant::now();
    while client.ask("subscribe", json!({"channel": "other"}))["subscribe"].is_null() {
        assert!(since.elapsed() < BOUND, "no room");
    }
    node.call("publish", json!({"channel": "other", "data": 1}));
    assert_eq!(data(&mut client, "other", 1), [1]);
}

#[test]
fn raw_mode_carries_data_alone() {
    let Some(server) = NatsServer::start(&[]) else { return };
    let more = "raw_mode = { enabled = true, prefix = \"raw.\", channel_replacements = { \":\" = \".\" } }";
    let node = node_with(&server, more);
    let mut client = node.connected();
    subscribe(&mut client, 2, json!({"channel": "room:x"}));
    let (mut foreign, mut publisher) = (server.client(), server.client());
    foreign.subscribe("raw.>");
    publisher.publish("raw.room.x", b"{\"n\":1}");
    assert_eq!(client.push(), json!({"channel": "room:x", "pub": {"data": {"n": 1}}}));
    assert_eq!(foreign.message(), ("raw.room.x".to_owned(), b"{\"n\":1}".to_vec()));
    node.call("publish", json!({"channel": "room:x", "data": {"n": 2}, "tags": {"k": "v"}}));
    assert_eq!(foreign.message(), ("raw.room.x".to_owned(), b"{\"n\":2}".to_vec()));
    assert_eq!(client.push()["pub"], json!({"data": {"n": 2}}));
}

#[test]
fn nodes_know_each_other_and_orders_cross_them() {
    let Some((_server, a, b)) = pair() else { return };
    let since = Instant::now();
    while [&a, &b].iter().any(|node| {
        node.call("info", json!({}))["result"]["nodes"].as_array().map_or(0, Vec::len) < 2
    }) {
        assert!(since.elapsed() < BOUND, "they do not know each other");
    }
    let mut client = a.connected_as("ann");
    assert_eq!(
        b.call("subscribe", json!({"user": "ann", "channel": "plain"})),
        json!({"result": {}})
    );
    assert!(client.push()["subscribe"].is_object());
    let answer = b.call("channels", json!({}));
    assert_eq!(answer["result"]["channels"], json!({"plain": {"num_clients": 1}}));
    b.call("unsubscribe", json!({"user": "ann", "channel": "plain"}));
    assert_eq!(client.push()["unsubscribe"]["code"], 2000);
    b.call("disconnect", json!({"user": "ann"}));
    client.is_closed(3503, "force disconnect");
}

#[test]
fn nats_that_is_gone_closes_nothing() {
    let Some((mut server, a, b)) = pair() else { return };
    let mut follower = a.connected();
    subscribe(&mut follower, 2, json!({"channel": "plain"}));
    server.end();
    let since = Instant::now();
    while b.call("publish", json!({"channel": "plain", "data": 1}))["error"]["code"] != 100 {
        assert!(since.elapsed() < BOUND, "it is not away");
    }
    let mut client = b.connected();
    let answer = client.ask("subscribe", json!({"channel": "plain"}));
    assert_eq!(
        answer["error"],
        json!({"code": 100, "message": "internal server error", "temporary": true})
    );
    assert_eq!(error_of(&mut client, "publish", "plain"), 100);
    server.restart();
    publish_until_taken(&b, "plain", 2);
    // Both nodes follow again; what was published before that is lost, since there is no history.
    let mut n = 2;
    follower.send(&json!({"id": 9, "ping": {}}).to_string());
    let since = Instant::now();
    loop {
        n += 1;
        publish_until_taken(&b, "plain", n);
        let answer = a.call("channels", json!({}));
        if answer["result"].is_object() {
            break;
        }
        assert!(since.elapsed() < BOUND, "{answer}");
    }
    subscribe(&mut client, 5, json!({"channel": "plain"}));
    publish_until_taken(&a, "plain", 1_000);
    while data(&mut client, "plain", 1) != [1_000] {}
}

#[test]
fn a_frozen_server_closes_nothing() {
    let Some((server, a, b)) = pair() else { return };
    let mut follower = a.connected();
    subscribe(&mut follower, 2, json!({"channel": "plain"}));
    server.signal(Signal::STOP);
    let answer = b.call("publish", json!({"channel": "plain", "data": 1}));
    assert_eq!(answer["error"]["code"], 100, "{answer}");
    server.signal(Signal::CONT);
    publish_until_taken(&b, "plain", 2);
    let since = Instant::now();
    loop {
        assert!(since.elapsed() < BOUND, "never delivered");
        publish_until_taken(&b, "plain", 3);
        if a.call("channels", json!({}))["result"].is_object() {
            break;
        }
    }
    publish_until_taken(&b, "plain", 4);
    while data(&mut follower, "plain", 1) != [4] {}
}

#[test]
fn credentials_of_the_url_are_used() {
    let Some(server) = NatsServer::start(&["--user", "u", "--pass", "p w"]) else { return };
    let url = |credentials: &str| {
        format!(
            "broker.enabled = true\nbroker.type = \"nats\"\nbroker.nats.url = \"nats://{credentials}127.0.0.1:{}\"\n{OPTIONS}",
            server.port
        )
    };
    let node = Node::start(&url("u:p%20w@"), &[]);
    assert_eq!(node.call("publish", json!({"channel": "x", "data": 1})), json!({"result": {}}));
    let Err(ended) = Node::launch(&[], &url(""), "0", &[]) else { panic!("it started") };
    // Once: the client's own lines are left out.
    let lines = ended.errors.lines().filter(|line| line.contains("authorization violation"));
    assert_eq!(lines.count(), 1, "{ended:?}");
    assert!(!ended.errors.contains("p w"));
}
