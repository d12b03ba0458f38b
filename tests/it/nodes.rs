//! Nodes among themselves: what they know of each other, calls of the server API for clients of another node,
//! questions, and the up-link to a session elsewhere. A raw client of Redis stands in for nodes of another kind.

use std::collections::VecDeque;
use std::time::Instant;

use redis::Commands;
use roost::cluster::control::{
    Command, Disconnect, Message, Node as NodeState, Refresh, Subscribe, SurveyRequest, Unsubscribe,
};
use roost::cluster::survey::{Code, channels_in, put_channel, response};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{BOUND, Client, KEY, Node, Raw, post, token};
use crate::redis::{RedisServer, node_with};

/// A node on this server with the transports that have an up-link, of this name.
fn named(server: &RedisServer, name: &str) -> Node {
    node_with(&format!(
        "engine.redis.address = \"127.0.0.1:{}\"\nnode.name = \"{name}\"\n\
         http_stream.enabled = true\nsse.enabled = true\nlong_poll.enabled = true",
        server.port
    ))
}

/// What `info` of a node says, by the names of nodes.
fn info(node: &Node) -> Vec<Value> {
    let mut nodes = node.call("info", json!({}))["result"]["nodes"].take();
    let nodes = nodes.as_array_mut().unwrap();
    nodes.sort_by_key(|node| node["name"].to_string());
    std::mem::take(nodes)
}

fn names(node: &Node) -> Vec<String> {
    info(node).iter().map(|node| node["name"].as_str().unwrap().to_owned()).collect()
}

/// Calls at `far` for a client of `near`: messages between the two go by whichever server.
pub(crate) fn reach_each_other(near: &Node, far: &Node) {
    until("nodes know each other", || [near, far].iter().all(|node| info(node).len() == 2));
    let done = |method, params| {
        assert_eq!(far.call(method, params), json!({"result": {}}), "{method}");
    };
    for number in 0..8 {
        let user = format!("user{number}");
        let (mut client, _) = connected_as(near, &user);
        for n in 0..5 {
            let channel = format!("stream:of{n}");
            done("subscribe", json!({"user": user, "channel": channel}));
            done("unsubscribe", json!({"user": user, "channel": channel}));
            while client.push()["unsubscribe"]["code"] != 2000 {}
        }
        let channel = format!("stream:stays{number}");
        done("subscribe", json!({"user": user, "channel": channel}));
        assert!(!client.push()["subscribe"].is_null());
        let found = far.call("channels", json!({"pattern": channel}));
        assert_eq!(found["result"]["channels"][&channel]["num_clients"], 1, "{found}");
        done("disconnect", json!({"user": user}));
        client.is_closed(3503, "force disconnect");
    }
}

fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let began = Instant::now();
    while !reached() {
        assert!(began.elapsed() < BOUND, "{what}");
        std::thread::park_timeout(std::time::Duration::from_millis(5));
    }
}

fn until_known(nodes: &[&Node], expected: &[&str]) {
    for node in nodes {
        until("nodes know each other", || names(node) == expected);
    }
}

/// Subscribes by the API of one node and by that of the other, and so on: `near` has the client.
fn connected_as(node: &Node, user: &str) -> (Client, String) {
    let mut client = node.client();
    let token = token(json!({"sub": user}));
    client.send(&json!({"id": 1, "connect": {"token": token}}).to_string());
    let reply: Value = serde_json::from_str(&client.line()).unwrap();
    let id = reply["connect"]["client"].as_str().unwrap().to_owned();
    (client, id)
}

/// Another node, as bytes: a client of the same Redis.
struct Stranger {
    uid: &'static str,
    connection: redis::Connection,
    listening: redis::Connection,
}

impl Stranger {
    fn join(server: &RedisServer, uid: &'static str) -> Self {
        let mut listening = server.connection();
        listening.set_read_timeout(Some(BOUND)).unwrap();
        let names = ["centrifugo.control".to_owned(), format!("centrifugo.node.{uid}")];
        let mut subscribed = listening.as_pubsub();
        names.iter().for_each(|name| subscribed.subscribe(name).unwrap());
        drop(subscribed);
        let names = names.to_vec();
        let mut stranger = Self { uid, connection: server.connection(), listening };
        // `as_pubsub` unsubscribes at its end.
        let mut subscribe = redis::cmd("SUBSCRIBE");
        names.iter().for_each(|name| _ = subscribe.arg(name));
        stranger.listening.send_packed_command(&subscribe.get_packed_command()).unwrap();
        stranger.say(Message::Node(NodeState {
            uid: uid.into(),
            name: uid.into(),
            version: "6.9.1 OSS".into(),
            num_clients: 7,
            ..NodeState::default()
        }));
        stranger
    }

    fn say(&mut self, message: Message) {
        let bytes = Command { uid: self.uid.into(), message }.write();
        self.say_bytes(&bytes);
    }

    fn say_bytes(&mut self, bytes: &[u8]) {
        let _: i64 = self.connection.publish("centrifugo.control", bytes).unwrap();
    }

    /// Waits for a message of a node.
    fn hear<T>(&mut self, mut wanted: impl FnMut(String, Message) -> Option<T>) -> T {
        loop {
            let value = self.listening.recv_response().unwrap();
            let parts: Vec<redis::Value> = redis::from_redis_value(value).unwrap_or_default();
            let Some(redis::Value::BulkString(payload)) = parts.last() else { continue };
            let Ok(command) = Command::read(payload) else { continue };
            if command.uid == self.uid {
                continue;
            }
            if let Some(found) = wanted(command.uid, command.message) {
                return found;
            }
        }
    }

    fn ask(&mut self, id: u64, op: &str, data: &[u8]) -> (u32, Vec<u8>) {
        self.say(Message::SurveyRequest(SurveyRequest { id, op: op.into(), data: data.into() }));
        self.hear(|_, message| match message {
            Message::SurveyResponse(response) if response.id == id => {
                Some((response.code, response.data))
            }
            _ => None,
        })
    }
}

#[test]
fn nodes_are_in_the_info_of_all_others() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let (a, b) = (named(&server, "a"), named(&server, "b"));
    until_known(&[&a, &b], &["a", "b"]);
    let c = named(&server, "c");
    until_known(&[&a, &b, &c], &["a", "b", "c"]);
    let _client = c.connected();
    until("counters arrive", || info(&a)[2]["num_clients"] == 1);
    let of_c = &info(&a)[2];
    let own = &info(&c)[2];
    for field in ["uid", "name", "version"] {
        assert_eq!(of_c[field], own[field], "{field}");
    }
    assert!(of_c["version"].as_str().unwrap().ends_with(" roost"), "{of_c}");
    assert!(of_c["data"]["bytes_per_connection"].as_u64().unwrap() > 0, "{of_c}");
    assert!(of_c["metrics"]["items"]["turns"].as_u64().is_some(), "{of_c}");
    // One that ends in order is gone at once.
    c.signal(Signal::TERM);
    until_known(&[&a, &b], &["a", "b"]);
    a.until_logged(&["node has ended"]);
    assert!(!a.errors().contains("node is silent"));
}

#[test]
fn a_killed_node_is_forgotten_and_a_stopped_one_holds_up_no_list() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let (a, b) = (named(&server, "a"), named(&server, "b"));
    let c = named(&server, "c");
    until_known(&[&a, &b, &c], &["a", "b", "c"]);
    let mut client = b.connected();
    client.subscribe("news");
    let channels = |node: &Node| node.call("channels", json!({}));
    let expected = json!({"result": {"channels": {"news": {"num_clients": 1}}}});
    assert_eq!(channels(&a), expected);
    c.signal(Signal::STOP);
    let began = Instant::now();
    let answer = channels(&a);
    // Either the node is forgotten in time, or its silence is said.
    assert!(answer == expected || answer["error"]["code"] == 100, "{answer}");
    assert!(began.elapsed().as_secs() < 12, "{:?}", began.elapsed());
    until_known(&[&a, &b], &["a", "b"]);
    a.until_logged(&["node is silent"]);
    assert_eq!(channels(&a), expected);
    c.signal(Signal::CONT);
    until_known(&[&a, &b, &c], &["a", "b", "c"]);
}

#[test]
fn calls_reach_clients_of_the_other_node() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let (a, b) = (named(&server, "a"), named(&server, "b"));
    until_known(&[&a, &b], &["a", "b"]);
    for (near, far) in [(&a, &b), (&b, &a)] {
        let done = |method, params| {
            assert_eq!(far.call(method, params), json!({"result": {}}), "{method}");
        };
        let (mut ann, id) = connected_as(near, "ann");
        let (mut other, other_id) = connected_as(near, "ann");
        let (mut bob, _) = connected_as(near, "bob");
        let mut anonymous = near.connected();
        // One connection of the user, by its client id.
        let subscribe =
            json!({"user": "ann", "client": id, "channel": "stream:s", "data": {"a": 1}});
        done("subscribe", subscribe);
        let push = ann.push();
        assert_eq!(push["channel"], "stream:s");
        assert_eq!(
            (&push["subscribe"]["data"], &push["subscribe"]["recoverable"]),
            (&json!({"a": 1}), &json!(true))
        );
        far.call("publish", json!({"channel": "stream:s", "data": 1}));
        let push = ann.push();
        assert_eq!(push["pub"]["data"], 1, "{push}");
        // What is missed since a position comes behind it.
        let position = far.call("history", json!({"channel": "stream:s"}))["result"].clone();
        let epoch = position["epoch"].clone();
        let offset = position["offset"].as_u64().unwrap();
        let since = json!({"offset": offset - 1, "epoch": epoch});
        done("subscribe", json!({"user": "bob", "channel": "stream:s", "recover_since": since}));
        assert!(!bob.push()["subscribe"].is_null());
        let missed = bob.push();
        assert_eq!(missed["pub"]["offset"], offset, "{missed}");
        // The order of two calls for one user is kept: the subscription always ends.
        for n in 0..20 {
            let channel = format!("stream:c{n}");
            done("subscribe", json!({"user": "bob", "channel": channel}));
            done("unsubscribe", json!({"user": "bob", "channel": channel}));
            let ended = json!({"channel": channel, "unsubscribe": {"code": 2000, "reason": "server unsubscribe"}});
            while bob.push() != ended {}
        }
        done("refresh", json!({"user": "bob", "expire_at": 4_000_000_000u32}));
        loop {
            let push = bob.push();
            if !push["refresh"].is_null() {
                assert!(push["refresh"]["ttl"].as_u64().unwrap() > 1_000_000, "{push}");
                break;
            }
        }
        done("unsubscribe", json!({"user": "ann", "channel": "stream:s"}));
        assert_eq!(ann.push()["unsubscribe"]["code"], 2000);
        let whitelist = [other_id];
        let code = json!({"code": 4001, "reason": "out"});
        done("disconnect", json!({"user": "ann", "whitelist": whitelist, "disconnect": code}));
        ann.is_closed(4001, "out");
        done("disconnect", json!({"user": ""}));
        anonymous.is_closed(3503, "force disconnect");
        done("refresh", json!({"user": "ann", "expired": true}));
        other.is_closed(3005, "connection expired");
        done("disconnect", json!({"user": "bob"}));
        bob.is_closed(3503, "force disconnect");
    }
}

#[test]
fn messages_of_a_node_of_another_kind_are_carried_out() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let a = named(&server, "a");
    let mut stranger = Stranger::join(&server, "stranger");
    // Each knows the other after one round trip.
    let state = stranger.hear(|_, message| match message {
        Message::Node(node) => Some(node),
        _ => None,
    });
    assert_eq!(state.name, "a");
    until_known(&[&a], &["a", "stranger"]);
    assert_eq!(info(&a)[1]["num_clients"], 7);
    let (mut ann, id) = connected_as(&a, "ann");
    let (mut bob, _) = connected_as(&a, "bob");
    // Bytes that are no message, operations that are not known, and captured messages about nobody here.
    stranger.say_bytes(b"\xff\xff");
    stranger.say(Message::Unknown);
    for line in include_str!("../vectors/redis/control-vectors.jsonl").lines() {
        let vector: Value = serde_json::from_str(line).unwrap();
        let hex = vector["hex"].as_str().unwrap();
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        stranger.say_bytes(&bytes);
    }
    let (user, channel) = (String::from("ann"), String::from("stream:x"));
    let subscribe = Subscribe { user, channel, position: true, recover: true, ..<_>::default() };
    let (client, data) = (id.clone(), b"{\"d\":1}".to_vec());
    stranger.say(Message::Subscribe(Subscribe { client, data, ..subscribe }));
    let push = loop {
        let push = ann.push();
        if push["channel"] == "stream:x" {
            break push;
        }
    };
    assert_eq!(push["subscribe"]["data"], json!({"d": 1}));
    assert_eq!(
        (&push["subscribe"]["recoverable"], &push["subscribe"]["positioned"]),
        (&json!(true), &json!(true))
    );
    let (user, reason) = (String::from("ann"), String::from("why"));
    stranger.say(Message::Unsubscribe(Unsubscribe { user, code: 2100, reason, ..<_>::default() }));
    assert_eq!(ann.push()["unsubscribe"], json!({"code": 2100, "reason": "why"}));
    stranger.say(Message::Refresh(Refresh {
        user: "ann".into(),
        expire_at: 4_000_000_000,
        ..<_>::default()
    }));
    assert!(!ann.push()["refresh"]["ttl"].is_null());
    let disconnect =
        Disconnect { code: 4000, reason: "all".into(), all_users: true, ..<_>::default() };
    stranger.say(Message::Disconnect(Disconnect { whitelist: vec![id], ..disconnect }));
    bob.is_closed(4000, "all");
    ann.publish("free", json!(1));
    // Questions: each is answered.
    ann.subscribe("news");
    let (code, data) = stranger.ask(1, "channels", b"");
    assert_eq!((code, channels_in(&data).collect()), (0, Ok(vec![("news", 1)])));
    assert_eq!(stranger.ask(2, "channels", b"\x0a\x02x*"), (0, vec![]));
    assert_eq!(stranger.ask(3, "channels", b"\x0a\x01[").0, 2);
    assert_eq!(stranger.ask(4, "other", b"").0, 3);
    assert_eq!(stranger.ask(5, "centrifuge_emulation", b"\x12\x01s\x1a\x02{}").0, 2);
    // The number of subscribers is that of all nodes; a node that fails to answer takes only the number away.
    let mut counted = |code: Code| {
        std::thread::scope(|scope| {
            let params = json!({"channel": "news", "data": 2, "count_subscribers": true});
            let published = scope.spawn(|| a.call("publish", params));
            let (id, data) = stranger.hear(|_, message| match message {
                Message::SurveyRequest(request) => Some((request.id, request.data)),
                _ => None,
            });
            assert_eq!(data, b"\x0a\x04news");
            let mut data = Vec::new();
            put_channel(&mut data, "news", 4);
            stranger.say(Message::SurveyResponse(response(id, code, data)));
            published.join().unwrap()["result"].take()
        })
    };
    assert_eq!(counted(Code::Ok)["subscribers"], 5);
    let without = counted(Code::Internal);
    assert!(without.is_object() && without.get("subscribers").is_none(), "{without}");
    // Questions of roost are answered by it.
    let asked = std::thread::scope(|scope| {
        let asked = scope.spawn(|| a.call("channels", json!({"pattern": "n*"})));
        let (id, data) = stranger.hear(|_, message| match message {
            Message::SurveyRequest(request) => Some((request.id, request.data)),
            _ => None,
        });
        assert_eq!(data, b"\x0a\x02n*");
        let mut data = Vec::new();
        [("news", 2), ("night", 1)].iter().for_each(|(name, n)| put_channel(&mut data, name, *n));
        stranger.say(Message::SurveyResponse(response(id, Code::Ok, data)));
        asked.join().unwrap()
    });
    let channels = &asked["result"]["channels"];
    assert_eq!(
        (&channels["news"]["num_clients"], &channels["night"]["num_clients"]),
        (&json!(3), &json!(1))
    );
    assert_eq!(a.call("channels", json!({"pattern": "["}))["error"]["code"], 100);
    stranger.say(Message::Shutdown);
    until_known(&[&a], &["a"]);
}

/// A session over a response.
struct Session {
    raw: Raw,
    messages: VecDeque<Value>,
    /// Of the connect result.
    connect: Value,
}

impl Session {
    fn open(node: &Node, path: &str) -> Self {
        let mut raw = node.raw();
        let asked = "{\"id\":1,\"connect\":{}}";
        let encoded: String = asked.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let get = format!("GET /connection/sse?cf_connect={encoded} HTTP/1.1\r\nHost: a\r\n\r\n");
        let request = match path {
            "sse" => get,
            _ => post("/connection/http_stream", &[], asked),
        };
        raw.send(request.as_bytes());
        assert_eq!(raw.response().status, 200);
        let mut session = Self { raw, messages: VecDeque::new(), connect: Value::Null };
        session.connect = session.message()["connect"].take();
        session
    }

    /// The next message.
    fn message(&mut self) -> Value {
        while self.messages.is_empty() {
            let chunk = self.raw.chunk().expect("the response goes on");
            let chunk = String::from_utf8(chunk).unwrap();
            let lines = chunk.lines().map(|line| line.strip_prefix("data: ").unwrap_or(line));
            self.messages.extend(lines.filter_map(|line| serde_json::from_str(line).ok()));
        }
        self.messages.pop_front().unwrap()
    }
}

#[test]
fn commands_reach_a_session_on_another_node() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let (a, b) = (named(&server, "a"), named(&server, "b"));
    until_known(&[&a, &b], &["a", "b"]);
    for path in ["http_stream", "sse"] {
        let mut session = Session::open(&a, path);
        let connect = session.connect.clone();
        let body = |data: &str| {
            json!({"session": connect["session"], "node": connect["node"], "data": data})
                .to_string()
        };
        let mut up = b.raw();
        let subscribe = "{\"id\":2,\"subscribe\":{\"channel\":\"up\"}}\n{\"id\":3,\"rpc\":{}}";
        assert_eq!(up.post("/emulation", &[], &body(subscribe)).status, 204);
        // The one that needs no broker may be answered first.
        let mut ids = [session.message(), session.message()].map(|reply| reply["id"].as_u64());
        ids.sort_unstable();
        assert_eq!(ids, [Some(2), Some(3)]);
        // In the order of the requests of one connection.
        for n in 10..30 {
            let publish = json!({"id": n, "publish": {"channel": "up", "data": n}}).to_string();
            up.send(post("/emulation", &[], &body(&publish)).as_bytes());
        }
        (10..30).for_each(|_| assert_eq!(up.response().status, 204));
        let mut data = Vec::new();
        while data.len() < 20 {
            let push = session.message()["push"]["pub"]["data"].take();
            data.extend(push.as_i64());
        }
        assert_eq!(data, (10..30).collect::<Vec<_>>());
        // A session that has ended is no error, and an unknown node is.
        let other = connect["node"].as_str().unwrap().replace(|c: char| c.is_ascii_digit(), "0");
        let of = |node: &str, session: &str| {
            json!({"session": session, "node": node, "data": "{}"}).to_string()
        };
        let own = connect["node"].as_str().unwrap();
        assert_eq!(up.post("/emulation", &[], &of(own, "nobody")).status, 204);
        let unknown = up.post("/emulation", &["Origin: http://localhost"], &of(&other, "x"));
        assert_eq!(unknown.status, 404);
    }
    assert_eq!(b.raw().post("/emulation", &[KEY], "{").status, 400);
}

#[test]
fn a_poll_goes_on_at_any_node() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let (a, b) = (named(&server, "a"), named(&server, "b"));
    let poll = |node: &Node, sub: Value| {
        let body = json!({"subs": {"stream:p": sub}}).to_string();
        let answer = node.raw().post("/connection/long_poll", &[], &body);
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_str::<Value>(&answer.body).unwrap()["subs"]["stream:p"].take()
    };
    let begun = poll(&a, json!({}));
    b.call("publish", json!({"channel": "stream:p", "data": "missed"}));
    let offset = begun["offset"].as_u64().unwrap_or(0);
    let next = poll(&b, json!({"recover": true, "epoch": begun["epoch"], "offset": offset}));
    assert_eq!(next["publications"][0]["data"], "missed", "{next}");
    assert_eq!(next["epoch"], begun["epoch"]);
}

#[test]
fn a_call_without_a_broker_is_carried_out_here_and_says_so() {
    let Some(mut server) = RedisServer::start(&[]) else { return };
    let (a, b) = (named(&server, "a"), named(&server, "b"));
    until_known(&[&a, &b], &["a", "b"]);
    let (mut ann, _) = connected_as(&a, "ann");
    let Session { connect, raw: _raw, .. } = Session::open(&b, "http_stream");
    server.end();
    let refused = |method: &str, params: Value| {
        let answer = a.call(method, params);
        assert_eq!(answer["error"]["code"], 100, "{method}: {answer}");
    };
    refused("disconnect", json!({"user": "ann"}));
    ann.is_closed(3503, "force disconnect");
    refused("unsubscribe", json!({"user": "ann", "channel": "x"}));
    refused("refresh", json!({"user": "ann", "expire_at": 0}));
    refused("channels", json!({}));
    assert!(names(&a).contains(&"a".to_owned()));
    let body = json!({"session": connect["session"], "node": connect["node"], "data": "{}"});
    let status = a.raw().post("/emulation", &[], &body.to_string()).status;
    assert!(status == 500 || status == 404, "{status}: not reached, or forgotten by now");
    server.restart();
    until_known(&[&a, &b], &["a", "b"]);
    let mut client = b.connected();
    until("channels are reached again", || {
        client.ask("subscribe", json!({"channel": "stream:s"})).get("error").is_none()
    });
    until("calls are carried out again", || {
        a.call("disconnect", json!({"user": ""})) == json!({"result": {}})
    });
    client.is_closed(3503, "force disconnect");
}
