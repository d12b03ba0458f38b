//! Long polling: each request is answered with what was missed, or with what comes next, and with the positions
//! that the next request sends back.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::harness::*;

const POLLS: &str = r#"
[long_poll]
enabled = true
[http_api]
key = "k"
[[channel.namespaces]]
name = "kept"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
force_recovery = true
history_size = 5
history_ttl = "10m"
presence = true
join_leave = true
force_push_join_leave = true
[[channel.namespaces]]
name = "latest"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_anonymous = true
force_recovery = true
force_recovery_mode = "cache"
history_size = 1
history_ttl = "10m"
[[channel.namespaces]]
name = "locked"
force_recovery = true
history_size = 5
history_ttl = "10m"
"#;

fn node() -> Node {
    Node::open_with(POLLS, &[])
}

/// A GET with a connect request.
fn get(asked: &Value, headers: &[&str]) -> String {
    let encoded: String = asked.to_string().bytes().map(|byte| format!("%{byte:02x}")).collect();
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    format!(
        "GET /connection/long_poll?cf_connect={encoded} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"
    )
}

/// A client as a script would be: it has nothing but the positions of the last answer.
struct Poller {
    raw: Raw,
    request: Value,
    /// Received publications, by channel.
    got: BTreeMap<String, Vec<Value>>,
    /// Client ids of its polls.
    ids: BTreeSet<String>,
}

impl Poller {
    /// One that begins with these channels; its first answer has their positions.
    fn new(node: &Node, channels: &[&str]) -> Self {
        let subs: BTreeMap<_, _> = channels.iter().map(|channel| (*channel, json!({}))).collect();
        let request = json!({ "subs": subs });
        let mut poller =
            Self { raw: node.raw(), request, got: BTreeMap::new(), ids: BTreeSet::new() };
        let first = poller.poll();
        for channel in channels {
            let sub = &first["subs"][channel];
            assert!(sub["publications"].is_null() && sub["recovered"].is_null(), "{first}");
            assert!(sub["offset"].is_u64() && sub["epoch"].is_string(), "{first}");
        }
        poller
    }

    fn ask(&mut self) {
        self.raw.send(get(&self.request, &[]).as_bytes());
    }

    /// The answer to what was asked. Its positions are the next request's.
    fn answer(&mut self) -> Value {
        let response = self.raw.response();
        assert_eq!(response.status, 200, "{}", response.body);
        assert_eq!(response.header("content-type"), Some("application/json"));
        assert_eq!(response.header("cache-control"), Some("private, no-store"));
        let answer: Value = serde_json::from_str(&response.body).unwrap();
        let id = answer["client"].as_str().unwrap_or_default();
        assert!(!id.is_empty() && answer["ping"].is_null(), "{answer}");
        assert!(self.ids.insert(id.to_owned()), "each poll has an id of its own: {answer}");
        assert!(answer["session"].is_null() && answer["node"].is_null(), "{answer}");
        for (channel, sub) in answer["subs"].as_object().into_iter().flatten() {
            let position = json!({"offset": sub["offset"], "epoch": sub["epoch"]});
            self.request["subs"][channel] = position;
            let got = self.got.entry(channel.clone()).or_default();
            let publications = sub["publications"].as_array().cloned().unwrap_or_default();
            if let Some(last) = publications.last() {
                assert_eq!(last["offset"], sub["offset"], "{answer}");
            }
            got.extend(publications.iter().map(|publication| publication["data"].clone()));
        }
        answer
    }

    fn poll(&mut self) -> Value {
        self.ask();
        self.answer()
    }

    /// Asks, and waits until the node has the request and lets it wait.
    fn wait(&mut self, node: &Node) {
        let before = node.figures()["clients_long_poll"];
        self.ask();
        node.until_is("clients_long_poll", before + 1);
    }
}

/// The list of one channel in an answer: data of publications.
fn data(answer: &Value, channel: &str) -> Vec<Value> {
    let list = answer["subs"][channel]["publications"].as_array().cloned().unwrap_or_default();
    list.iter().map(|publication| publication["data"].clone()).collect()
}

fn publish(node: &Node, channel: &str, data: u64) {
    let answer = node.call("publish", json!({"channel": channel, "data": data}));
    assert!(answer["result"].is_object(), "{answer}");
}

#[test]
fn a_poll_returns_missed_publications_at_once_and_later_ones_as_they_come() {
    let node = node();
    // Homes on both shards.
    let channels = ["kept:a", "kept:b", "kept:c", "kept:d"];
    let mut poller = Poller::new(&node, &channels);
    publish(&node, "kept:a", 1);
    publish(&node, "kept:a", 2);
    publish(&node, "kept:c", 3);
    let answer = poller.poll();
    assert_eq!(
        (data(&answer, "kept:a"), data(&answer, "kept:c")),
        (vec![json!(1), json!(2)], vec![json!(3)])
    );
    for channel in channels {
        let sub = &answer["subs"][channel];
        assert_eq!((&sub["recovered"], &sub["was_recovering"]), (&json!(true), &json!(true)));
    }
    // Nothing is missing: it waits for what comes.
    poller.wait(&node);
    publish(&node, "kept:d", 4);
    let answer = poller.answer();
    assert_eq!(data(&answer, "kept:d"), [json!(4)]);
    assert_eq!(answer["subs"]["kept:d"]["publications"][0]["offset"], 1);
    assert_eq!(answer["subs"]["kept:a"]["offset"], 2);
    // Publications between two requests are missed, and come with the next one.
    publish(&node, "kept:d", 5);
    assert_eq!(data(&poller.poll(), "kept:d"), [json!(5)]);
    node.until_is("clients_long_poll", 0);
    node.until_is("subscriptions", 0);
    node.until_is("clients", 0);
    assert_eq!(node.figures()["gaps_told"], 0);
}

#[test]
fn a_poll_is_answered_when_its_time_is_over() {
    let node = Node::open_with(POLLS, &["--long_poll.timeout", "1s"]);
    let mut poller = Poller::new(&node, &["kept:a", "latest:a"]);
    publish(&node, "kept:a", 1);
    poller.poll();
    let answer = poller.poll();
    assert_eq!(answer["subs"]["kept:a"]["offset"], 1);
    assert_eq!(answer["subs"]["latest:a"]["offset"], 0);
    assert!(data(&answer, "kept:a").is_empty());
    // One without channels has nothing to wait for but its time.
    let mut none = node.raw();
    none.send(get(&json!({}), &[]).as_bytes());
    assert_eq!(none.response().status, 200);
    assert_eq!(node.figures()["polls_empty"], 3);
}

#[test]
fn a_poll_reports_lost_publications() {
    let node = node();
    let mut poller = Poller::new(&node, &["kept:a", "kept:b"]);
    for number in 0..6 {
        publish(&node, "kept:a", number);
    }
    let answer = poller.poll();
    let sub = &answer["subs"]["kept:a"];
    assert_eq!(
        (&sub["recovered"], &sub["was_recovering"], &sub["offset"]),
        (&json!(false), &json!(true), &json!(6))
    );
    assert!(sub["publications"].is_null());
    assert_eq!(answer["subs"]["kept:b"]["recovered"], true);
    // The position goes on from there.
    publish(&node, "kept:a", 7);
    assert_eq!(data(&poller.poll(), "kept:a"), [json!(7)]);
    // Another life of the stream.
    poller.request["subs"]["kept:a"]["epoch"] = json!("another");
    let answer = poller.poll();
    assert_eq!(answer["subs"]["kept:a"]["recovered"], false);
    assert_eq!(answer["subs"]["kept:a"]["offset"], 7);
}

#[test]
fn only_the_latest_of_a_cache() {
    let node = node();
    let mut poller = Poller::new(&node, &["latest:a"]);
    // It has nothing yet, and isn't told so again and again.
    poller.wait(&node);
    publish(&node, "latest:a", 1);
    assert_eq!(data(&poller.answer(), "latest:a"), [json!(1)]);
    for number in 2..5 {
        publish(&node, "latest:a", number);
    }
    assert_eq!(data(&poller.poll(), "latest:a"), [json!(4)]);
    poller.wait(&node);
    publish(&node, "latest:a", 5);
    assert_eq!(data(&poller.answer(), "latest:a"), [json!(5)]);
}

#[test]
fn features_without_polls_are_an_error() {
    let node = node();
    let refused = |request: Value| {
        let mut raw = node.raw();
        raw.send(get(&request, &["Origin: http://localhost"]).as_bytes());
        let response = raw.response();
        assert_eq!(response.header("cache-control"), Some("private, no-store"), "{response:?}");
        // The connection goes on.
        let healthy = json!({"subs": {"kept:a": {}}});
        raw.send(get(&healthy, &[]).as_bytes());
        assert_eq!(raw.response().status, 200);
        (response.status, serde_json::from_str::<Value>(&response.body).unwrap())
    };
    let error = |code: u16, message: &str| json!({"error": {"code": code, "message": message}});
    let subs = |channel: &str| json!({"subs": {"kept:a": {}, channel: {"recover": true}}});
    for (request, status, body) in [
        (subs("plain"), 400, error(108, "not available")),
        (subs("locked:a"), 403, error(103, "permission denied")),
        (subs("none:a"), 404, error(102, "unknown channel")),
        (
            json!({"token": token(json!({"sub": "ann", "exp": 1}))}),
            401,
            error(109, "token expired"),
        ),
        (
            json!({"token": token(json!({"sub": "ann", "channels": ["plain"]}))}),
            400,
            error(108, "not available"),
        ),
        (
            json!({"token": token_by("other", json!({}))}),
            401,
            json!({"disconnect": {"code": 3500, "reason": "invalid token"}}),
        ),
    ] {
        assert_eq!(refused(request), (status, body));
    }
    for path in
        ["cf_connect=%7B", "cf_connect=[]", "cf_connect=%7B%22subs%22:%5B%5D%7D", "cf_connect=%ff"]
    {
        let mut raw = node.raw();
        raw.send(
            format!("GET /connection/long_poll?{path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes(),
        );
        assert_eq!(raw.response().status, 400, "{path}");
    }
    let mut raw = node.raw();
    raw.send(b"DELETE /connection/long_poll HTTP/1.1\r\nHost: a\r\n\r\n");
    let response = raw.response();
    assert_eq!((response.status, response.header("allow")), (405, Some("GET, POST, OPTIONS")));
    drop(raw);
    let answer = node.raw().post("/connection/long_poll", &[], &" ".repeat(65_537));
    assert_eq!(answer.status, 413);
    let limited = Node::open_with(POLLS, &["--client.connection_limit", "1"]);
    let mut poller = Poller::new(&limited, &["kept:a"]);
    poller.wait(&limited);
    let mut raw = limited.raw();
    raw.send(get(&json!({}), &[]).as_bytes());
    assert_eq!(raw.response().status, 503);
    node.until_is("slots_in_use", 0);
    node.is_healthy();
}

#[test]
fn channels_of_tokens_and_of_users_are_polled() {
    let node = Node::open_with(
        &format!(
            "{POLLS}\n[client.subscribe_to_user_personal_channel]\nenabled = true\n\
                  personal_channel_namespace = \"kept\"\n"
        ),
        &[],
    );
    let token = token(json!({"sub": "ann", "subs": {"locked:a": {}}, "exp": now() + 600}));
    let mut poller = Poller {
        raw: node.raw(),
        request: json!({"token": token, "subs": {}}),
        got: BTreeMap::new(),
        ids: BTreeSet::new(),
    };
    let first = poller.poll();
    assert!(first["subs"]["locked:a"]["epoch"].is_string());
    assert!(first["subs"]["kept:#ann"]["epoch"].is_string());
    assert_eq!(first["expires"], true);
    assert!(first["ttl"].as_u64().is_some_and(|ttl| (590..=600).contains(&ttl)), "{first}");
    poller.wait(&node);
    publish(&node, "kept:#ann", 1);
    assert_eq!(data(&poller.answer(), "kept:#ann"), [json!(1)]);
    publish(&node, "locked:a", 2);
    assert_eq!(data(&poller.poll(), "locked:a"), [json!(2)]);
}

#[test]
fn requests_follow_each_other_on_a_connection() {
    let node = node();
    let mut poller = Poller::new(&node, &["kept:a"]);
    // One that waits, one behind it, and a pre-flight request: answers in that order.
    let waits = get(&poller.request, &[]);
    let first = json!({"subs": {"kept:b": {}}});
    let preflight =
        "OPTIONS /connection/long_poll HTTP/1.1\r\nHost: a\r\nOrigin: http://localhost\r\n\r\n";
    poller.raw.send(waits.as_bytes());
    node.until_is("clients_long_poll", 1);
    poller.raw.send([&get(&first, &[]), preflight].concat().as_bytes());
    publish(&node, "kept:a", 1);
    assert_eq!(data(&poller.answer(), "kept:a"), [json!(1)]);
    let second: Value = serde_json::from_str(&poller.raw.response().body).unwrap();
    assert_eq!(second["subs"]["kept:b"]["offset"], 0);
    assert_eq!(poller.raw.response().status, 204);
    // All at once.
    let many = get(&first, &[]).repeat(50);
    poller.raw.send([&many, preflight].concat().as_bytes());
    for _ in 0..50 {
        assert_eq!(poller.raw.response().status, 200);
    }
    assert_eq!(poller.raw.response().status, 204);
    // A body, and a connection that is not to go on.
    let answer =
        poller.raw.post("/connection/long_poll", &["Connection: close"], &first.to_string());
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    poller.raw.ends();
    let mut old = node.raw();
    old.send(
        b"GET /connection/long_poll?cf_connect={%22subs%22:{%22kept:a%22:{}}} HTTP/1.0\r\n\r\n",
    );
    assert_eq!(old.response().status, 200);
    old.ends();
    drop((poller, old));
    node.until_is("slots_in_use", 0);
}

#[test]
fn a_waiting_poll_that_ends_leaves_nothing() {
    let node = node();
    for reset in [false, true] {
        let mut poller = Poller::new(&node, &["kept:a", "kept:b"]);
        poller.wait(&node);
        match reset {
            true => poller.raw.reset(),
            false => drop(poller),
        }
        node.until_is("clients_long_poll", 0);
        node.until_is("slots_in_use", 0);
        node.until_is("subscriptions", 0);
    }
    // Not even one with more behind it.
    let mut poller = Poller::new(&node, &["kept:a"]);
    poller.wait(&node);
    poller.ask();
    poller.raw.reset();
    publish(&node, "kept:a", 1);
    node.until_is("slots_in_use", 0);
    node.is_healthy();
}

#[test]
fn nobody_sees_it_come_and_go() {
    let node = node();
    let mut ann = node.connected();
    ann.subscribe("kept:a");
    // Its own coming.
    assert!(ann.push()["join"].is_object());
    let mut poller = Poller::new(&node, &["kept:a"]);
    poller.wait(&node);
    let others = node.call("presence_stats", json!({"channel": "kept:a"}));
    assert_eq!(others["result"], json!({"num_clients": 1, "num_users": 1}));
    // It isn't told who comes.
    let mut bob = node.connected();
    bob.subscribe("kept:a");
    assert!(ann.push()["join"].is_object());
    publish(&node, "kept:a", 1);
    assert_eq!(poller.answer()["subs"]["kept:a"]["publications"][0]["data"], 1);
    assert_eq!(ann.push()["pub"]["data"], 1);
}

#[test]
fn each_end_of_a_session_ends_its_poll() {
    let node = node();
    let token = token(json!({"sub": "ann"}));
    let mut poller = Poller::new(&node, &["kept:a"]);
    poller.request["token"] = json!(token);
    publish(&node, "kept:a", 1);
    poller.poll();
    // The application closes it for good.
    poller.wait(&node);
    node.call("disconnect", json!({"user": "ann"}));
    let response = poller.raw.response();
    let body: Value = serde_json::from_str(&response.body).unwrap();
    assert_eq!(body, json!({"disconnect": {"code": 3503, "reason": "force disconnect"}}));
    assert_eq!(response.status, 403);
    // It is to come back, or its subscriptions change: an answer with nothing in it.
    for (method, body) in [
        ("disconnect", json!({"user": "ann", "disconnect": {"code": 4000, "reason": "again"}})),
        ("unsubscribe", json!({"user": "ann", "channel": "kept:a"})),
        ("refresh", json!({"user": "ann", "expire_at": now() + 60})),
        ("subscribe", json!({"user": "ann", "channel": "kept:z"})),
    ] {
        poller.wait(&node);
        node.call(method, body);
        let answer = poller.answer();
        assert!(data(&answer, "kept:a").is_empty(), "{method}");
        assert_eq!(answer["subs"]["kept:a"]["offset"], 1, "{method}");
    }
    publish(&node, "kept:a", 2);
    assert_eq!(data(&poller.poll(), "kept:a"), [json!(2)]);
    node.until_is("subscriptions", 0);
}

#[test]
fn a_draining_node_answers_waiting_polls() {
    let node = node();
    let mut poller = Poller::new(&node, &["kept:a"]);
    publish(&node, "kept:a", 1);
    poller.poll();
    poller.wait(&node);
    node.signal(rustix::process::Signal::TERM);
    let response = poller.raw.response();
    assert_eq!((response.status, response.header("connection")), (200, Some("close")));
    let answer: Value = serde_json::from_str(&response.body).unwrap();
    assert_eq!(answer["subs"]["kept:a"]["offset"], 1);
    poller.raw.ends();
    drop(poller);
    assert_eq!(node.ended().code, Some(0));
}

#[test]
fn an_answer_has_a_bound_and_the_rest_comes_next() {
    // Each publication fits twice into what may wait for a client, and four of them don't.
    let node = Node::open_with(POLLS, &["--client.queue_max_size", "4000"]);
    let channels = ["kept:a", "kept:b", "kept:c", "kept:d"];
    let mut poller = Poller::new(&node, &channels);
    let text = "x".repeat(1200);
    for channel in channels {
        let answer = node.call("publish", json!({"channel": channel, "data": text}));
        assert!(answer["result"].is_object());
    }
    let mut answers = 0;
    while channels.iter().any(|channel| poller.got.get(*channel).is_none_or(Vec::is_empty)) {
        let answer = poller.poll();
        for channel in channels {
            assert_eq!(answer["subs"][channel]["recovered"], true, "{answer}");
        }
        answers += 1;
    }
    assert_eq!(answers, 2);
    assert!(channels.iter().all(|channel| poller.got[*channel] == [json!(text)]));
    // While it waits: too much in one turn is found again in history.
    poller.wait(&node);
    let body = json!({"channels": ["kept:a", "kept:b", "kept:c", "kept:d"], "data": text});
    node.call("broadcast", body);
    poller.answer();
    while channels.iter().any(|channel| poller.got[*channel].len() < 2) {
        let answer = poller.poll();
        assert!(channels.iter().all(|channel| answer["subs"][channel]["recovered"] == true));
    }
    assert!(channels.iter().all(|channel| poller.got[*channel].len() == 2));
}

#[test]
fn nothing_is_lost_and_nothing_comes_twice() {
    let file = POLLS.replace("history_size = 5", "history_size = 1000");
    let node = Node::open_with(&file, &[]);
    let channels = ["kept:a", "kept:b", "kept:c"];
    let mut pollers: Vec<Poller> = (0..4).map(|_| Poller::new(&node, &channels)).collect();
    let count = 300;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = node.connected();
            for number in 0..count {
                writer.publish(channels[number as usize % 3], json!(number));
            }
        });
        for poller in &mut pollers {
            scope.spawn(move || {
                while poller.got.values().map(Vec::len).sum::<usize>() < count as usize {
                    let answer = poller.poll();
                    for channel in channels {
                        assert_eq!(answer["subs"][channel]["recovered"], true, "{answer}");
                    }
                }
            });
        }
    });
    for poller in &pollers {
        for (at, channel) in channels.iter().enumerate() {
            let expected: Vec<Value> =
                (0..count).filter(|number| number % 3 == at as u64).map(Value::from).collect();
            assert_eq!(poller.got[*channel], expected);
        }
    }
    let figures = node.until_is("subscriptions", 0);
    assert_eq!((figures["gaps_told"], figures["gaps_mail"]), (0, 0));
}
