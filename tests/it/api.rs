//! The server API over HTTP (server API, sections 1 to 5), on the public port and on the internal one.

use std::collections::BTreeSet;
use std::net::TcpStream;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::*;

const OPTIONS: &str = r#"
[http_api]
key = "k"
[health]
enabled = true
[[channel.namespaces]]
name = "full"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
presence = true
join_leave = true
force_push_join_leave = true
history_size = 10
history_ttl = "10m"
force_recovery = true
[[channel.namespaces]]
name = "objects"
publication_data_format = "json_object"
[[channel.namespaces]]
name = "patched"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
history_size = 10
history_ttl = "10m"
force_positioning = true
allowed_delta_types = ["fossil"]
delta_publish = true
"#;

fn node() -> Node {
    Node::open_with(OPTIONS, &[])
}

impl Node {
    /// Calls a method, which has to give a result.
    fn result(&self, method: &str, params: Value) -> Value {
        let mut answer = self.call(method, params);
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].take()
    }
}

fn error(code: u16, message: &str) -> Value {
    json!({"error": {"code": code, "message": message}})
}

#[test]
fn keys() {
    let node = node();
    let body = r#"{"channel":"a","data":1}"#;
    for (path, headers, status) in [
        ("/api/publish", &[][..], 401),
        ("/api/publish", &[KEY], 200),
        ("/api/publish", &["x-api-key: wrong"], 401),
        ("/api/publish", &["Authorization: apikey k"], 200),
        ("/api/publish", &["Authorization: APIKEY k"], 200),
        ("/api/publish", &["Authorization: bearer k"], 401),
        ("/api/publish?api_key=k", &[], 200),
        ("/api/publish?api_key=x", &[], 401),
        ("/api/publish", &["X-API-Key: x", "Authorization: apikey k"], 401),
        ("/api/publish", &["X-API-Key:", "Authorization: apikey k"], 200),
        ("/api/publish", &["X-API-Key:"], 401),
        ("/api/publish?api_key=k", &["X-API-Key: x"], 200),
        ("/api/publish", &["X-API-Key;: k", "X-API-Key: kk"], 400),
    ] {
        let response = node.raw().post(path, headers, body);
        assert_eq!(response.status, status, "{path} {headers:?}");
        if status == 401 {
            assert_eq!(response.body, "");
        }
    }
    for (options, status) in [("", 401), ("[http_api]\ninsecure = true", 200)] {
        let node = Node::open_with(options, &[]);
        assert_eq!(node.raw().post("/api/publish", &[], body).status, status, "{options:?}");
    }
    let node = Node::open_with("[http_api]\ndisabled = true\ninsecure = true", &[]);
    assert_eq!(node.raw().post("/api/publish", &[], body).status, 404);
}

#[test]
fn paths_methods_and_bad_bodies() {
    let node = node();
    let mut raw = node.raw();
    assert_eq!(raw.post("/api/nobody", &[KEY], "{}").status, 404);
    assert_eq!(raw.post("/api/update_user_status", &[KEY], "{}").status, 404);
    for body in ["", " ", "{", "[]", "1", r#"{"channel":1}"#, r#"{"channel":"a","tags":[]}"#] {
        let response = raw.post("/api/publish", &[KEY], body);
        assert_eq!((response.status, response.body.as_str()), (400, "Bad Request"), "{body:?}");
    }
    // Unknown fields and nulls are nothing.
    let body = r#"{"channel":"a","data":1,"x":{},"tags":null,"delta":null}"#;
    assert_eq!(raw.post("/api/publish", &[KEY], body).body, r#"{"result":{}}"#);
    for method in ["GET", "PUT", "DELETE"] {
        for key in ["", "X-API-Key: k\r\n"] {
            raw.send(format!("{method} /api/publish HTTP/1.1\r\nHost: x\r\n{key}\r\n").as_bytes());
            let response = raw.response();
            assert_eq!(
                (response.status, response.header("allow")),
                (405, Some("POST")),
                "{method}"
            );
        }
    }
    raw.send(b"GET /apix HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(raw.response().status, 404);
    raw.ends();
}

#[test]
fn publish_is_taken_with_position_and_reaches_subscribers() {
    let node = node();
    let mut client = node.connected();
    client.subscribe("full:a");
    client.push();
    let mut plain = node.connected();
    plain.subscribe("a");
    let published = node.result("publish", json!({"channel": "full:a", "data": {"n": 1}}));
    let epoch = published["epoch"].clone();
    assert_eq!(published, json!({"offset": 1, "epoch": epoch}));
    assert_eq!(
        client.push(),
        json!({"channel": "full:a", "pub": {"data": {"n": 1}, "offset": 1, "epoch": epoch}})
    );
    let tagged = json!({"channel": "full:a", "data": null, "tags": {"t": "x"}});
    assert_eq!(node.result("publish", tagged), json!({"offset": 2, "epoch": epoch}));
    assert_eq!(client.push()["pub"], json!({"data": null, "offset": 2, "tags": {"t": "x"}}));
    assert_eq!(node.result("publish", json!({"channel": "a", "data": "x"})), json!({}));
    assert_eq!(plain.push()["pub"], json!({"data": "x"}));
    // In base64, which wins.
    let b64 = json!({"channel": "a", "data": 1, "b64data": "eyJiIjoyfQ=="});
    assert_eq!(node.result("publish", b64), json!({}));
    assert_eq!(plain.push()["pub"], json!({"data": {"b": 2}}));
    // Delivered and not kept.
    let skipped = json!({"channel": "full:a", "data": 3, "skip_history": true});
    assert_eq!(node.result("publish", skipped), json!({}));
    assert_eq!(client.push()["pub"], json!({"data": 3}));
    let next = json!({"channel": "full:a", "data": 4});
    assert_eq!(node.result("publish", next)["offset"], 3);
    assert_eq!(client.push()["pub"], json!({"data": 4, "offset": 3}));
}

#[test]
fn errors_of_publish() {
    let node = node();
    for (params, expected) in [
        (json!({"data": 1}), error(107, "bad request")),
        (json!({"channel": "", "data": 1}), error(107, "bad request")),
        (json!({"channel": "nope:x", "data": 1}), error(102, "unknown channel")),
        (json!({"channel": "a"}), error(107, "bad request")),
        (json!({"channel": "a", "b64data": "?"}), error(107, "bad request")),
        (json!({"channel": "objects:a", "data": 1}), error(107, "bad request")),
        (json!({"channel": "x".repeat(256), "data": 1}), error(107, "bad request")),
    ] {
        assert_eq!(node.call("publish", params.clone()), expected, "{params}");
    }
    let mode = "X-Centrifugo-Error-Mode: transport";
    let response = node.raw().post("/api/publish", &[KEY, mode], "{}");
    assert_eq!(response.status, 400);
    assert_eq!(response.body, r#"{"code":107,"message":"bad request"}"#);
    let unknown = r#"{"channel":"nope:x","data":1}"#;
    assert_eq!(node.raw().post("/api/publish", &[KEY, mode], unknown).status, 404);
    let node = Node::open_with("[http_api]\nkey = \"k\"\nerror_mode = \"transport\"", &[]);
    assert_eq!(node.raw().post("/api/publish", &[KEY], unknown).status, 404);
}

#[test]
fn a_publish_with_a_key_is_taken_once() {
    let node = node();
    let mut client = node.connected();
    client.subscribe("full:a");
    client.push();
    let params = json!({"channel": "full:a", "data": 1, "idempotency_key": "x"});
    let first = node.result("publish", params.clone());
    assert_eq!(node.result("publish", params.clone()), first);
    let mut other = params.clone();
    other["channel"] = json!("full:b");
    assert_eq!(node.result("publish", other)["offset"], 1);
    other = params;
    other["idempotency_key"] = json!("y");
    assert_eq!(node.result("publish", other)["offset"], 2);
    assert_eq!([client.push(), client.push()].map(|p| p["pub"]["offset"].clone()), [1, 2]);
    // Without history the result is empty.
    let params = json!({"channel": "a", "data": 1, "idempotency_key": "x"});
    assert_eq!([(); 2].map(|()| node.result("publish", params.clone())), [json!({}), json!({})]);
    assert_eq!(node.figures()["publications"], 4);
}

#[test]
fn versions_not_newer_are_not_published() {
    let node = node();
    let mut client = node.connected();
    client.subscribe("full:a");
    client.push();
    // Version, its life, the offset behind it, whether it is delivered.
    for (version, life, offset, delivered) in [
        (5, "a", 1, true),
        (5, "a", 1, false),
        (4, "", 1, false),
        (6, "", 2, true),
        (1, "b", 3, true),
        (1, "b", 3, false),
        (0, "", 4, true),
        (2, "b", 5, true),
    ] {
        let params = json!({
            "channel": "full:a", "data": version, "version": version, "version_epoch": life,
        });
        let result = node.result("publish", params);
        assert_eq!(result["offset"], offset, "{version} {life}");
        if delivered {
            let publication = client.push();
            assert_eq!(publication["pub"]["offset"], offset, "{version} {life}: {publication}");
        }
    }
}

/// Subscribers hold patches against what they got last, kept or not.
#[test]
fn no_patch_builds_on_a_skipped_publication() {
    let node = node();
    let mut client = node.connected();
    let request = json!({"channel": "patched:a", "delta": "fossil"});
    assert_eq!(client.ask("subscribe", request)["subscribe"]["delta"], true);
    let text = |number: u32| json!({"text": "x".repeat(200), "number": number});
    let mut publish = |number: u32, skip: bool| {
        let params = json!({"channel": "patched:a", "data": text(number), "skip_history": skip});
        node.result("publish", params);
        client.push()["pub"].clone()
    };
    assert!(publish(1, false)["delta"].is_null());
    assert_eq!(publish(2, false)["delta"], true);
    assert!(publish(3, true)["delta"].is_null());
    let publication = publish(4, false);
    assert!(publication["delta"].is_null(), "{publication}");
    let data: Value = serde_json::from_str(publication["data"].as_str().unwrap()).unwrap();
    assert_eq!(data, text(4));
    assert_eq!(publish(5, false)["delta"], true);
}

#[test]
fn broadcast_answers_for_each_channel() {
    let node = node();
    let mut client = node.connected();
    client.subscribe("a");
    let channels = ["a", "nope:b", "", "full:c"];
    let result = node.result("broadcast", json!({"channels": channels, "data": 1}));
    let responses = result["responses"].as_array().unwrap();
    assert_eq!(responses[0], json!({"result": {}}));
    assert_eq!(responses[1], error(102, "unknown channel"));
    assert_eq!(responses[2], error(107, "bad request"));
    assert_eq!(responses[3]["result"]["offset"], 1);
    assert_eq!(client.push()["pub"], json!({"data": 1}));
    for params in [json!({"data": 1}), json!({"channels": [], "data": 1})] {
        assert_eq!(node.call("broadcast", params), error(107, "bad request"));
    }
    let many: Vec<String> = (0..3000).map(|number| format!("full:{number}")).collect();
    let result = node.result("broadcast", json!({"channels": many, "data": 1}));
    let offsets = result["responses"].as_array().unwrap().iter().map(|r| &r["result"]["offset"]);
    assert_eq!(offsets.filter(|offset| **offset == 1).count(), 3000);
}

#[test]
fn presence_and_history() {
    let node = node();
    let mut client = node.connected_as("42");
    client.subscribe("full:a");
    let joined = client.push();
    let id = joined["join"]["info"]["client"].as_str().unwrap().to_owned();
    assert_eq!(
        node.result("presence", json!({"channel": "full:a"})),
        json!({"presence": {&id: {"user": "42", "client": id}}})
    );
    let stats = node.result("presence_stats", json!({"channel": "full:a"}));
    assert_eq!(stats, json!({"num_clients": 1, "num_users": 1}));
    let nobody = node.result("presence", json!({"channel": "full:nobody"}));
    assert_eq!(nobody, json!({"presence": {}}));
    let stats = node.result("presence_stats", json!({"channel": "full:nobody"}));
    assert_eq!(stats, json!({"num_clients": 0, "num_users": 0}));
    for method in ["presence", "presence_stats", "history", "history_remove"] {
        assert_eq!(node.call(method, json!({})), error(107, "bad request"), "{method}");
        let unknown = node.call(method, json!({"channel": "nope:x"}));
        assert_eq!(unknown, error(102, "unknown channel"), "{method}");
        let without = node.call(method, json!({"channel": "a"}));
        assert_eq!(without, error(108, "not available"), "{method}");
    }
    let epoch = node.result("publish", json!({"channel": "full:a", "data": 1}))["epoch"].clone();
    for number in 2..=3 {
        node.result("publish", json!({"channel": "full:a", "data": number}));
    }
    let page = |more: Value| {
        let mut params = json!({"channel": "full:a"});
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let result = node.result("history", params);
        assert_eq!((&result["epoch"], &result["offset"]), (&epoch, &json!(3)));
        let publications = result["publications"].as_array().unwrap();
        publications.iter().map(|p| p["data"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert!(page(json!({})).is_empty());
    assert_eq!(page(json!({"limit": -1})), [1, 2, 3]);
    assert_eq!(page(json!({"limit": 2})), [1, 2]);
    assert_eq!(page(json!({"limit": 2, "reverse": true})), [3, 2]);
    assert_eq!(page(json!({"limit": 9, "since": {"offset": 1, "epoch": epoch}})), [2, 3]);
    let other = json!({"channel": "full:a", "limit": 1, "since": {"offset": 1, "epoch": "other"}});
    assert_eq!(node.call("history", other), error(112, "unrecoverable position"));
    assert_eq!(node.result("history_remove", json!({"channel": "full:a"})), json!({}));
    assert!(page(json!({"limit": -1})).is_empty());
    let next = node.result("publish", json!({"channel": "full:a", "data": 4}));
    assert_eq!(next, json!({"offset": 4, "epoch": epoch}));
}

#[test]
fn channels_and_info() {
    let node = Node::open_with(OPTIONS, &["--shards", "3"]);
    assert_eq!(node.result("channels", json!({})), json!({"channels": {}}));
    let mut clients = [node.connected_as("1"), node.connected_as("2")];
    for client in &mut clients {
        client.subscribe("chat.a");
    }
    for number in 0..20 {
        clients[0].subscribe(&format!("room.{number}"));
    }
    node.result("publish", json!({"channel": "full:nobody", "data": 1}));
    let names = |pattern: &str| -> BTreeSet<String> {
        let result = node.result("channels", json!({"pattern": pattern}));
        result["channels"].as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(names("").len(), 21);
    assert_eq!(names("room.*").len(), 20);
    assert_eq!(names("room.1?").len(), 10);
    assert_eq!(names("{chat,room}.[a1]").len(), 2);
    let chat = node.result("channels", json!({"pattern": "chat.*"}));
    assert_eq!(chat, json!({"channels": {"chat.a": {"num_clients": 2}}}));
    assert_eq!(node.call("channels", json!({"pattern": "["})), error(107, "bad request"));
    node.until("counted", |figures| figures["channels_home"] == 22);
    let info = node.result("info", json!({}));
    let info = &info["nodes"][0];
    for (name, value) in
        [("num_clients", 2), ("num_users", 2), ("num_channels", 21), ("num_subs", 22)]
    {
        assert_eq!(info[name], value, "{name}: {info}");
    }
    assert!(info["uptime"].is_u64() && info["version"] == env!("CARGO_PKG_VERSION"));
    assert!(like(info["uid"].as_str().unwrap(), "*-*-4*-*-*"), "{info}");
    let (interval, items) = (&info["metrics"]["interval"], &info["metrics"]["items"]);
    assert!(interval.as_f64().is_some_and(|seconds| seconds > 0.0), "{info}");
    assert!(items["connections_accepted"].as_u64().is_some_and(|count| count >= 2), "{info}");
    let name = info["name"].as_str().unwrap();
    assert!(name.ends_with(&format!("_{}", node.listens_at().port())), "{name}");
    let named = Node::open_with("[http_api]\nkey = \"k\"\n[node]\nname = \"n1\"", &[]);
    assert_eq!(named.result("info", json!({}))["nodes"][0]["name"], "n1");
}

/// Connections of one user are spread over all shards.
#[test]
fn users_are_counted_once() {
    let node = Node::open_with(OPTIONS, &["--shards", "4"]);
    let clients: Vec<Client> =
        (0..40).map(|number| node.connected_as(["41", "42", "43"][number % 3])).collect();
    let anonymous = node.connected();
    node.until("all here", |figures| figures["sessions_open"] == 41 && figures["users"] >= 4);
    let info = node.result("info", json!({}));
    assert_eq!(
        (&info["nodes"][0]["num_users"], &info["nodes"][0]["num_clients"]),
        (&json!(4), &json!(41))
    );
    drop((clients, anonymous));
}

#[test]
fn a_server_side_subscription_is_there_when_it_is_answered() {
    let node = Node::open_with(OPTIONS, &["--shards", "4"]);
    let mut clients: Vec<Client> = (0..8).map(|_| node.connected_as("42")).collect();
    let mut other = node.connected_as("43");
    let params = json!({"channel": "full:a", "user": "42", "info": {"i": 1}, "data": {"d": 1}});
    assert_eq!(node.result("subscribe", params.clone()), json!({}));
    let published = node.result("publish", json!({"channel": "full:a", "data": "first"}));
    let presence = node.result("presence", json!({"channel": "full:a"}));
    let presence = presence["presence"].as_object().unwrap();
    assert_eq!(presence.len(), 8);
    assert!(presence.values().all(|who| who["chan_info"] == json!({"i": 1})), "{presence:?}");
    for client in &mut clients {
        let subscribed = client.push();
        let subscribe = &subscribed["subscribe"];
        assert_eq!(subscribe["data"], json!({"d": 1}), "{subscribed}");
        assert_eq!(subscribe["epoch"], published["epoch"]);
        assert_eq!(subscribe["recoverable"], true);
        let publication =
            std::iter::from_fn(|| Some(client.push())).find(|push| push["join"].is_null()).unwrap();
        assert_eq!(publication["pub"]["data"], "first");
    }
    // A client that has it already is left alone; an override replaces the namespace's option.
    assert_eq!(node.result("subscribe", params), json!({}));
    let silent = json!({
        "channel": "full:silent", "user": "43",
        "override": {"presence": {"value": false}, "force_push_join_leave": {"value": false}},
    });
    assert_eq!(node.result("subscribe", silent), json!({}));
    assert_eq!(other.push()["subscribe"]["recoverable"], true);
    let presence = node.result("presence", json!({"channel": "full:silent"}));
    assert_eq!(presence, json!({"presence": {}}));
    // Missed publications come behind the push, in order.
    let epoch = node.result("publish", json!({"channel": "full:c", "data": 1}))["epoch"].clone();
    (2..=3).for_each(|n| drop(node.result("publish", json!({"channel": "full:c", "data": n}))));
    let mut late = node.connected_as("44");
    let since = json!({"offset": 1, "epoch": epoch});
    let params = json!({"channel": "full:c", "user": "44", "recover_since": since});
    assert_eq!(node.result("subscribe", params), json!({}));
    assert_eq!(late.push()["subscribe"]["offset"], 1);
    let mut offsets = Vec::new();
    while offsets.len() < 2 {
        let push = late.push();
        offsets.extend(push["pub"]["offset"].as_u64());
    }
    assert_eq!(offsets, [2, 3]);
    for (params, expected) in [
        (json!({"user": "42"}), error(107, "bad request")),
        (json!({"channel": "nope:x", "user": "42"}), error(102, "unknown channel")),
        (json!({"channel": "a", "user": "nobody"}), json!({"result": {}})),
    ] {
        assert_eq!(node.call("subscribe", params), expected);
    }
}

#[test]
fn unsubscribe_ends_the_named_subscription() {
    let node = node();
    let mut clients: Vec<(Client, String)> = (0..2)
        .map(|_| {
            let token = token(json!({"sub": "42"}));
            let (mut client, result) = node.connected_by(Speech::Json, json!({"token": token}));
            client.subscribe("a");
            client.subscribe("b");
            (client, result["client"].as_str().unwrap().to_owned())
        })
        .collect();
    let ended = |channel: &str| json!({"channel": channel, "unsubscribe": {"code": 2000, "reason": "server unsubscribe"}});
    // One connection of the user, one channel.
    let id = clients[0].1.clone();
    let params = json!({"channel": "a", "user": "42", "client": id});
    assert_eq!(node.result("unsubscribe", params), json!({}));
    assert_eq!(clients[0].0.push(), ended("a"));
    let a = node.result("channels", json!({"pattern": "a"}));
    assert_eq!(a, json!({"channels": {"a": {"num_clients": 1}}}));
    // A connection of another user.
    node.result("unsubscribe", json!({"user": "43", "client": id}));
    // All channels of all connections.
    assert_eq!(node.result("unsubscribe", json!({"user": "42"})), json!({}));
    assert_eq!(clients[0].0.push(), ended("b"));
    let mut both = [clients[1].0.push(), clients[1].0.push()];
    both.sort_by_key(|push| push["channel"].to_string());
    assert_eq!(both, [ended("a"), ended("b")]);
    assert_eq!(node.result("channels", json!({})), json!({"channels": {}}));
    clients[0].0.subscribe("a");
}

#[test]
fn disconnect_closes_and_spares() {
    let node = node();
    let token = token(json!({"sub": "42"}));
    let mut clients: Vec<(Client, String)> = (0..3)
        .map(|_| {
            let (client, result) = node.connected_by(Speech::Json, json!({"token": token}));
            (client, result["client"].as_str().unwrap().to_owned())
        })
        .collect();
    for (client, _) in &mut clients {
        client.subscribe("full:a");
    }
    let mut anonymous = node.connected();
    // Earlier publications are sent before the close.
    node.result("publish", json!({"channel": "full:a", "data": "last"}));
    let id = |at: usize| clients[at].1.clone();
    let params = json!({
        "user": "42", "client": id(0), "disconnect": {"code": 4001, "reason": "enough"},
    });
    assert_eq!(node.result("disconnect", params), json!({}));
    let spared = json!({"user": "42", "whitelist": [id(1)]});
    assert_eq!(node.result("disconnect", spared), json!({}));
    let presence = node.result("presence", json!({"channel": "full:a"}));
    assert_eq!(presence["presence"].as_object().unwrap().len(), 1);
    let ends = [(0, 4001, "enough"), (2, 3503, "force disconnect")];
    for (at, code, reason) in ends {
        let client = &mut clients[at].0;
        let mut got = Vec::new();
        let end = loop {
            match client.next() {
                Got::Line(line) => got.push(line),
                end => break end,
            }
        };
        assert_eq!(end, Got::Close(code, reason.to_owned()));
        assert!(got.iter().any(|line| line.contains("last")), "{got:?}");
    }
    // With 3000 the connection ends, and nothing is said: neither a frame nor a push nor the end of a body.
    let (mut silent, _) = node.connected_by(Speech::Json, json!({"token": token}));
    let cut = json!({"user": "42", "disconnect": {"code": 3000, "reason": "x"}});
    assert_eq!(node.result("disconnect", cut), json!({}));
    assert_eq!(silent.next(), Got::Lost);
    let bad = json!({"user": "42", "disconnect": {"code": 1, "reason": ""}});
    assert_eq!(node.call("disconnect", bad), error(107, "bad request"));
    assert_eq!(node.result("disconnect", json!({"user": "nobody"})), json!({}));
    // The anonymous ones are those with an empty id.
    node.result("disconnect", json!({"user": ""}));
    anonymous.is_closed(3503, "force disconnect");
    assert_eq!(node.figures()["closed_by_api"], 5);
}

#[test]
fn nothing_overtakes_a_publish_that_was_answered() {
    // Publications wait at their subscribers' shard for as long as calls take, or longer.
    let late = r#"
        [http_api]
        key = "k"
        [[channel.namespaces]]
        name = "late"
        allow_subscribe_for_client = true
        allow_subscribe_for_anonymous = true
        roost.write_delay = "1s"
    "#;
    let node = Node::open_with(late, &[]);
    let mut client = node.connected();
    client.subscribe("late:a");
    client.subscribe("late:b");
    let publish = |data: Value| {
        node.result("broadcast", json!({"channels": ["late:a", "late:b"], "data": data}));
    };
    let publication =
        |channel: &str, data: Value| json!({"channel": channel, "pub": {"data": data}});
    publish(json!(1));
    node.result("unsubscribe", json!({"user": "", "channel": "late:a"}));
    assert_eq!(client.push(), publication("late:a", json!(1)));
    assert_eq!(client.push()["unsubscribe"]["code"], 2000);
    publish(json!(2));
    node.result("disconnect", json!({"user": "", "disconnect": {"code": 4001, "reason": "x"}}));
    assert_eq!(client.push(), publication("late:b", json!(1)));
    assert_eq!(client.push(), publication("late:b", json!(2)));
    client.is_closed(4001, "x");
    // An end of the node isn't quicker, either.
    let mut last = node.connected();
    last.subscribe("late:a");
    publish(json!(3));
    node.signal(Signal::TERM);
    assert_eq!(last.push(), publication("late:a", json!(3)));
    last.is_closed(3001, "shutdown");
}

#[test]
fn refresh_changes_expiry_and_ends() {
    let node = node();
    let token = token(json!({"sub": "42", "exp": now() + 600}));
    let (mut client, result) = node.connected_by(Speech::Json, json!({"token": token}));
    client.subscribe("full:a");
    client.push();
    let params = json!({"user": "42", "expire_at": now() + 100, "info": {"i": 2}});
    assert_eq!(node.result("refresh", params), json!({}));
    let refresh = client.push();
    let ttl = refresh["refresh"]["ttl"].as_u64().unwrap();
    assert!(refresh["refresh"]["expires"] == true && (90..=100).contains(&ttl), "{refresh}");
    let presence = node.result("presence", json!({"channel": "full:a"}));
    let id = result["client"].as_str().unwrap();
    assert_eq!(presence["presence"][id]["conn_info"], json!({"i": 2}));
    // Whatever the application means by it, a client can count that far.
    for expire_at in [9_999_999_999, now() * 1000, i64::MAX] {
        let params = json!({"user": "42", "expire_at": expire_at});
        assert_eq!(node.result("refresh", params), json!({}));
        assert_eq!(client.push(), json!({"refresh": {"expires": true, "ttl": 31_536_000}}));
    }
    assert_eq!(node.result("refresh", json!({"user": "42", "expire_at": 0})), json!({}));
    assert_eq!(client.push(), json!({"refresh": {}}));
    node.result("refresh", json!({"user": "42", "expired": true}));
    client.is_closed(3005, "connection expired");
}

#[test]
fn a_server_side_subscription_may_expire() {
    let node = Node::open_with(OPTIONS, &["--client.expired_sub_close_delay", "0s"]);
    let mut client = node.connected_as("42");
    let params = json!({"channel": "a", "user": "42", "expire_at": now() - 1});
    assert_eq!(node.result("subscribe", params), json!({}));
    assert_eq!(client.push()["channel"], "a");
    client.is_closed(3006, "subscription expired");
}

#[test]
fn the_old_form_takes_many_commands() {
    let node = node();
    let mut raw = node.raw();
    let body = r#"{"id":1,"method":"publish","params":{"channel":"a","data":1}}
        {"method":"PUBLISH","params":{"channel":"nope:x","data":1}} {"id":3,"method":6,"params":{"channel":"a"}}
        {"id":4,"method":99}{"id":5,"method":"publish","params":{"channel":7}}{"method":"rpc","params":{"method":"x"}}
        {"id":6,"method":"channels"}"#;
    for path in ["/api", "/api/"] {
        let response = raw.post(path, &[KEY], body);
        assert_eq!(response.status, 200);
        let replies: Vec<&str> = response.body.split('\n').collect();
        assert_eq!(
            replies,
            [
                r#"{"id":1,"result":{}}"#,
                r#"{"error":{"code":102,"message":"unknown channel"}}"#,
                r#"{"id":3,"error":{"code":108,"message":"not available"}}"#,
                r#"{"id":4,"error":{"code":104,"message":"not found"}}"#,
                r#"{"id":5,"error":{"code":107,"message":"bad request"}}"#,
                r#"{"error":{"code":104,"message":"not found"}}"#,
                r#"{"id":6,"result":{"channels":{}}}"#,
            ]
        );
    }
    let unknown = r#"{"method":"info"}{"method":"nobody"}"#;
    for body in ["", "{", r#"{"method":"info"}{"#, "[]", unknown] {
        assert_eq!(raw.post("/api", &[KEY], body).status, 400, "{body:?}");
    }
}

#[test]
fn a_batch_answers_in_order() {
    let node = node();
    for parallel in [false, true] {
        let commands = json!([
            {"publish": {"channel": "a", "data": 1}},
            {"broadcast": {"channels": ["a"], "data": 1}},
            {"publish": {"channel": "nope:x", "data": 1}},
            {"presence": {"channel": "full:a"}},
            {},
            {"send_push_notification": {}},
            null,
            {"history": {"channel": "a"}},
        ]);
        let answer = node.call("batch", json!({"commands": commands, "parallel": parallel}));
        assert_eq!(
            answer,
            json!({"replies": [
                {"publish": {}},
                {"broadcast": {"responses": [{"result": {}}]}},
                {"error": {"code": 102, "message": "unknown channel"}},
                {"presence": {"presence": {}}},
                {"error": {"code": 104, "message": "not found"}},
                {"error": {"code": 104, "message": "not found"}},
                {"error": {"code": 107, "message": "bad request"}},
                {"error": {"code": 108, "message": "not available"}},
            ]})
        );
    }
    assert_eq!(node.call("batch", json!({})), json!({"replies": []}));
    assert_eq!(node.raw().post("/api/batch", &[KEY], r#"{"commands":1}"#).status, 400);
}

#[test]
fn maps_and_polled_channels_are_none_here() {
    let node = node();
    for (method, params, expected) in [
        ("map_publish", json!({"channel": "a", "key": "k", "data": 1}), error(107, "bad request")),
        ("map_publish", json!({"channel": "nope:a", "key": "k"}), error(102, "unknown channel")),
        ("map_remove", json!({"channel": "a", "key": "k"}), error(107, "bad request")),
        ("map_read_state", json!({"channel": "a"}), error(107, "bad request")),
        ("map_read_stream", json!({"channel": "a"}), error(107, "bad request")),
        ("map_stats", json!({"channel": "nope:a"}), error(102, "unknown channel")),
        ("map_clear", json!({"channel": "a"}), error(107, "bad request")),
        ("shared_poll_publish", json!({"channel": "a"}), error(107, "bad request")),
        ("rpc", json!({}), error(107, "bad request")),
        ("rpc", json!({"method": "x"}), error(104, "not found")),
    ] {
        assert_eq!(node.call(method, params), expected, "{method}");
    }
}

/// Requests and upgrades over connections as a proxy uses them.
#[test]
fn connections_are_kept_and_requests_may_be_sent_ahead() {
    let node = node();
    let mut raw = node.raw();
    let publish = |number: u32| format!(r#"{{"channel":"full:a","data":{number}}}"#);
    // A burst, the last of it an upgrade.
    let mut burst: String =
        (1..=20).map(|number| post("/api/publish", &[KEY], &publish(number))).collect();
    burst += &upgrade(CLIENTS, &[]);
    raw.send(burst.as_bytes());
    for number in 1..=20 {
        let response = raw.response();
        assert!(response.body.contains(&format!(r#""offset":{number},"#)), "{response:?}");
    }
    assert_eq!(raw.response().status, 101);
    raw.send(&frame(TEXT, br#"{"id":1,"connect":{}}"#));
    assert_eq!(raw.frame().unwrap().0, TEXT);
    // Byte by byte, in chunks, and with a body that waits to be asked for.
    let mut raw = node.raw();
    for byte in post("/api/publish", &[KEY], &publish(21)).bytes() {
        raw.send(&[byte]);
    }
    assert_eq!(raw.response().status, 200);
    let head = format!("POST /api/publish HTTP/1.1\r\nHost: x\r\n{KEY}\r\n");
    let body = publish(22);
    let (first, rest) = body.split_at(7);
    let chunks = format!("7\r\n{first}\r\n{:x}\r\n{rest}\r\n0\r\n\r\n", rest.len());
    raw.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunks}").as_bytes());
    assert!(raw.response().body.contains(r#""offset":22"#));
    let length = body.len();
    raw.send(format!("{head}Content-Length: {length}\r\nExpect: 100-continue\r\n\r\n").as_bytes());
    assert_eq!(raw.response().status, 100);
    raw.send(body.as_bytes());
    assert!(raw.response().body.contains(r#""offset":23"#));
    // The client ends it, one way or another.
    let last = post("/api/info", &[KEY, "Connection: close"], "{}");
    raw.send(last.as_bytes());
    assert_eq!(raw.response().header("connection"), Some("close"));
    raw.ends();
    drop(raw);
    let mut old = node.raw();
    old.send(last.replace("HTTP/1.1", "HTTP/1.0").replace("Connection: close\r\n", "").as_bytes());
    assert_eq!(old.response().header("connection"), Some("close"));
    old.ends();
    drop(old);
    let mut half = node.raw();
    half.send(post("/api/info", &[KEY], "{}").as_bytes());
    half.finish();
    assert_eq!(half.response().status, 200);
    half.ends();
    node.until_is("slots_in_use", 1);
}

/// Without the key the head is all that is read: nobody can make the node keep a body.
#[test]
fn the_key_is_looked_at_before_the_body() {
    let node = node();
    let head =
        |key: &str, more: &str| format!("POST /api/publish HTTP/1.1\r\nHost: x\r\n{key}{more}\r\n");
    for (key, more) in [
        ("", "Content-Length: 16000000\r\n"),
        ("X-API-Key: wrong\r\n", "Content-Length: 16000000\r\n"),
        ("", "Content-Length: 16000000\r\nExpect: 100-continue\r\n"),
        ("", "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n"),
    ] {
        let before = node.figures()["refused_api_key"];
        let mut raw = node.raw();
        raw.send(head(key, more).as_bytes());
        let answer = raw.response();
        assert_eq!((answer.status, answer.header("connection")), (401, Some("close")), "{more}");
        raw.ends();
        assert_eq!(node.figures()["refused_api_key"], before + 1);
    }
    // A whole request leaves the connection as it is.
    let mut raw = node.raw();
    let body = r#"{"channel":"full:a","data":1}"#;
    for _ in 0..2 {
        let answer = raw.post("/api/publish", &[], body);
        assert_eq!((answer.status, answer.header("connection")), (401, None));
        assert_eq!(raw.post("/api/publish", &[KEY], body).status, 200);
        // An empty header of its own, as a proxy may leave it, hides no other.
        let given = ["X-API-Key: ", "Authorization: apikey k"];
        assert_eq!(raw.post("/api/publish", &given, body).status, 200);
    }
    // Another method is 405 for every sender, and its body isn't read either.
    let mut raw = node.raw();
    raw.send(
        head(&format!("{KEY}\r\n"), "Content-Length: 9\r\n").replace("POST", "PUT").as_bytes(),
    );
    let answer = raw.response();
    assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
    assert_eq!(node.figures()["unfinished_bytes"], 0);
}

/// Bodies that never end, of clients, leave the API's room alone, and have a grace and a least rate.
#[test]
fn bodies_of_strangers_have_a_room_of_their_own() {
    let more =
        format!("{OPTIONS}\n[http_stream]\nenabled = true\nmax_request_body_size = 20000000");
    let node = Node::open_with(&more, &["--shards", "1"]);
    let half = 9 << 20;
    let begin = || {
        let mut raw = node.raw();
        let length = half + 1;
        let head = "POST /connection/http_stream HTTP/1.1\r\nHost: x\r\n";
        raw.send(format!("{head}Content-Length: {length}\r\n\r\n").as_bytes());
        let _ = std::io::Write::write_all(&mut raw.stream, &vec![b' '; half]);
        raw
    };
    let mut held = Vec::new();
    for bodies in 1..=3 {
        held.push(begin());
        // Bytes that wait in sockets aren't counted yet.
        let bytes = bodies * half as u64;
        node.until("they are counted", |figures| figures["unfinished_bytes"] >= bytes);
    }
    // The fourth is too much.
    assert_eq!(begin().response().status, 503);
    let mut raw = node.raw();
    let body = r#"{"channel":"full:a","data":1}"#;
    let length = body.len();
    let head = format!("POST /api/publish HTTP/1.1\r\nHost: x\r\n{KEY}\r\n");
    raw.send(format!("{head}Content-Length: {length}\r\n\r\n").as_bytes());
    node.figures();
    for byte in body.as_bytes() {
        raw.send(&[*byte]);
    }
    assert_eq!(raw.response().status, 200);
    drop(held);
    node.until_is("unfinished_bytes", 0);
}

#[test]
fn bodies_have_bounds_in_size_and_time() {
    let node = node();
    let head = format!("POST /api/publish HTTP/1.1\r\nHost: x\r\n{KEY}\r\n");
    let mut raw = node.raw();
    raw.send(format!("{head}Content-Length: 16777217\r\n\r\n").as_bytes());
    assert_eq!(raw.response().status, 413);
    raw.ends();
    let mut raw = node.raw();
    raw.send(format!("{head}Transfer-Encoding: chunked\r\n\r\nx\r\n").as_bytes());
    assert_eq!(raw.response().status, 400);
    raw.ends();
    // A large one arrives whole.
    let data = "x".repeat(3_000_000);
    let body = json!({"channel": "full:large", "data": data}).to_string();
    assert_eq!(node.raw().post("/api/publish", &[KEY], &body).status, 200);
    let history = node.result("history", json!({"channel": "full:large", "limit": 1}));
    assert_eq!(history["publications"][0]["data"].as_str().unwrap().len(), data.len());
    // Connections that wait for nothing end in time.
    let node = Node::open_with(OPTIONS, &["--idle-timeout", "300ms"]);
    let mut raw = node.raw();
    assert_eq!(raw.post("/api/info", &[KEY], "{}").status, 200);
    raw.ends();
}

#[test]
fn the_internal_port_serves_endpoints_that_are_not_external() {
    let more = format!("{OPTIONS}\n[http_server]\ninternal_port = \"0\"");
    let internal = |node: &Node| {
        let errors = node.errors();
        let line = errors.lines().find(|line| line.contains("internal endpoints are at")).unwrap();
        let address = line.rsplit("http://").next().unwrap().to_owned();
        Raw::new(TcpStream::connect(address).unwrap())
    };
    let node = Node::open_with(&more, &[]);
    let body = r#"{"channel":"full:a","data":1}"#;
    assert_eq!(node.raw().post("/api/publish", &[KEY], body).status, 404);
    let mut raw = internal(&node);
    assert_eq!(raw.post("/api/publish", &[], body).status, 401);
    assert!(raw.post("/api/publish", &[KEY], body).body.contains(r#""offset":1"#));
    let health = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    raw.send(health.as_bytes());
    assert_eq!(raw.response().status, 200);
    let mut public = node.raw();
    public.send(health.as_bytes());
    assert_eq!(public.response().status, 404);
    raw.send(upgrade(CLIENTS, &[]).as_bytes());
    assert_eq!(raw.response().status, 404);
    let node = Node::open_with(&more, &["--http_api.external"]);
    assert_eq!(node.raw().post("/api/publish", &[KEY], body).status, 200);
    assert_eq!(internal(&node).post("/api/publish", &[KEY], body).status, 200);
}

#[test]
fn health() {
    // Without keys there is no answer: over TLS these are closed.
    if over_tls() {
        return;
    }
    let ask = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    let answer = |node: &Node| {
        let mut raw = node.raw();
        raw.send(ask.as_bytes());
        let response = raw.response();
        (response.status, response.body)
    };
    assert_eq!(answer(&node()), (200, "{}".to_owned()));
    let closed = Node::open(&[]);
    assert_eq!(answer(&closed).0, 404);
    let full = Node::open_with(OPTIONS, &["--client.connection_limit", "1"]);
    let client = full.connected();
    let why = r#"{"reason":"at the connection limit"}"#.to_owned();
    assert_eq!(answer(&full), (503, why));
    client.close();
    full.until_is("clients", 0);
    assert_eq!(answer(&full).0, 200);
    let flags = ["--client.connection_limit", "10", "--health-connections", "20"];
    let half = Node::open_with(OPTIONS, &flags);
    let _one = half.connected();
    assert_eq!(answer(&half).0, 200);
    let _two = half.connected();
    assert_eq!(answer(&half).0, 503);
}

/// The node says what it counts, in both formats, and stops for nobody.
#[test]
fn metrics() {
    let more = format!("{OPTIONS}\n[prometheus]\nenabled = true");
    let node = Node::open_with(&more, &[]);
    let mut client = node.connected();
    client.subscribe("a");
    node.result("publish", json!({"channel": "a", "data": 1}));
    client.push();
    node.raw().post("/nobody", &[], "");
    let refused = client.ask("subscribe", json!({"channel": "nope:x"}));
    assert_eq!(refused["error"]["code"], 102);
    let scrape = |accept: &str| {
        let mut raw = node.raw();
        raw.send(format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{accept}\r\n").as_bytes());
        let response = raw.response();
        assert_eq!(response.status, 200);
        (response.header("content-type").unwrap().to_owned(), response.body)
    };
    let (kind, text) = scrape("");
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    let value = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    };
    assert_eq!(value("roost_publications_total"), 1.0);
    assert_eq!(value("roost_clients"), 1.0);
    assert_eq!(value(r#"roost_requests_refused_total{reason="not_found"}"#), 1.0);
    assert_eq!(value(r#"roost_limits{limit="clients"}"#), 0.0);
    assert_eq!(value(r#"roost_client_commands_total{method="subscribe"}"#), 2.0);
    assert_eq!(value(r#"roost_client_errors_total{code="102"}"#), 1.0);
    assert_eq!(value(r#"roost_client_errors_total{code="103"}"#), 0.0);
    assert!(value(r#"roost_memory_bytes{class="resident"}"#) > 1e6);
    assert_eq!(value("roost_healthy"), 1.0);
    assert!(value("roost_loop_lag_seconds_count") > 0.0);
    // Two replies, a delivery and an error.
    assert_eq!(value("roost_messages_sent_total"), 4.0);
    assert_eq!(value("roost_fan_out_seconds_count"), 1.0);
    assert_eq!(value(r#"roost_fan_out_subscribers_bucket{le="1.0"}"#), 1.0);
    assert_eq!(value(r#"roost_command_seconds_count{method="connect"}"#), 1.0);
    assert_eq!(value(r#"roost_command_seconds_count{method="subscribe"}"#), 2.0);
    assert_eq!(value(r#"roost_command_seconds_count{method="publish"}"#), 0.0);
    assert_eq!(value(r#"roost_api_call_seconds_count{method="publish"}"#), 1.0);
    assert_eq!(
        value(r#"roost_http_requests_total{path="/connection/websocket",status="101"}"#),
        1.0
    );
    assert_eq!(value(r#"roost_http_requests_total{path="/api/{method}",status="200"}"#), 1.0);
    assert_eq!(value(r#"roost_http_requests_total{path="other",status="404"}"#), 1.0);
    assert_eq!(value(r#"roost_namespace_publications_total{namespace=""}"#), 1.0);
    assert_eq!(value(r#"roost_namespace_deliveries_total{namespace=""}"#), 1.0);
    assert_eq!(value(r#"roost_clients_by_software{name="",version=""}"#), 1.0);
    assert_eq!(value(r#"roost_build_info{version="VERSION"}"#.replace("VERSION", env!("CARGO_PKG_VERSION")).as_str()), 1.0);
    assert!(value("process_cpu_seconds_total") > 0.0 && value("process_open_fds") > 8.0);
    assert!(value("process_start_time_seconds") > 1e9);
    let by_shard = |transport: &str| -> f64 {
        let name = |at| format!(r#"roost_connections{{transport="{transport}",shard="{at}"}}"#);
        (0..2).map(|at| value(&name(at))).sum()
    };
    assert_eq!((by_shard("websocket"), by_shard("http") >= 1.0), (1.0, true));
    let deliveries = (0..2).map(|at| value(&format!(r#"roost_deliveries_total{{shard="{at}"}}"#)));
    assert_eq!(deliveries.sum::<f64>(), 1.0);
    // Every value is described, by the name that it has.
    let described: BTreeSet<&str> =
        (text.lines()).filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split([' ', '{']).next().unwrap();
        let histogram =
            ["_bucket", "_sum", "_count"].into_iter().find_map(|e| name.strip_suffix(e));
        let known = described.contains(name) || histogram.is_some_and(|n| described.contains(n));
        let is_named = name.starts_with("roost_") || name.starts_with("process_");
        assert!(known && is_named, "{line}");
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
    }
    // The document names each of them, and nothing else, with the help text that scrapers get.
    let document = include_str!("../../docs/metrics.md");
    let helps = text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' '));
    for (name, help) in helps {
        let help = help.trim_end_matches('.');
        let row = document.lines().find(|line| line.starts_with(&format!("| `{name}` |"))).unwrap();
        assert!(row.ends_with(&format!(" | {help} |")), "{name}: {help}: {row}");
    }
    let named: BTreeSet<&str> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .filter(|name| name.starts_with("roost_") || name.starts_with("process_"))
        .collect();
    assert_eq!(named, described);
    // And the dashboard shows nothing else.
    let dashboard = include_str!("../../tools/grafana/roost.json");
    let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let shown: BTreeSet<&str> =
        dashboard.split(|c| !is_letter(c)).filter(|word| word.starts_with("roost_")).collect();
    assert!(shown.len() > 30, "{shown:?}");
    for name in shown {
        let of = ["_bucket", "_sum", "_count"].into_iter().find_map(|e| name.strip_suffix(e));
        let known = described.contains(name) || of.is_some_and(|of| described.contains(of));
        assert!(known, "the dashboard shows {name}");
    }
    // Rules for alerts are about nothing else either.
    let rules = include_str!("../../tools/grafana/alerts.yml");
    let exprs = rules.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
    let about: BTreeSet<&str> = exprs
        .flat_map(|expr| expr.split(|c| !is_letter(c)))
        .filter(|word| word.starts_with("roost_") || word.starts_with("process_"))
        .collect();
    assert!(about.len() > 15, "{about:?}");
    for name in about {
        let name = name.strip_suffix("_bucket").unwrap_or(name);
        assert!(described.contains(name), "an alert is about {name}");
    }
    let (kind, open) = scrape("Accept: application/openmetrics-text;version=1.0.0\r\n");
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    assert!(open.ends_with("# EOF\n") && open.contains("# TYPE roost_publications counter"));
    assert!(!text.contains("secret") && !text.contains("\"k\""));
}

/// The same figures under the names that boards of Centrifugo use, only where they are wanted.
#[test]
fn metrics_under_the_names_of_centrifugo() {
    let more = format!("{OPTIONS}\n[prometheus]\nenabled = true\ncentrifugo_names = true");
    let node = Node::open_with(&more, &[]);
    let mut client = node.connected();
    client.subscribe("a");
    node.result("publish", json!({"channel": "a", "data": 1}));
    client.push();
    client.ask("subscribe", json!({"channel": "nope:x"}));
    let scrape = |accept: &str| {
        let mut raw = node.raw();
        raw.send(format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{accept}\r\n").as_bytes());
        raw.response().body
    };
    let text = scrape("");
    let value = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    };
    assert_eq!(value("centrifugo_node_num_clients"), 1.0);
    assert_eq!(value("centrifugo_node_num_channels"), 1.0);
    for name in [
        "node_num_users",
        "node_num_subscriptions",
        "node_num_nodes",
        "node_messages_received_count",
        "node_broadcast_duration_seconds",
        "client_subscriptions_inflight",
        "client_command_duration_seconds",
        "client_num_server_unsubscribes",
        "client_recover",
        "client_ping_pong_duration_seconds",
        "transport_messages_sent",
        "transport_messages_sent_size",
        "transport_messages_received",
        "transport_messages_received_size",
        "api_command_duration_seconds",
        "api_command_errors_total",
        "proxy_duration_seconds",
        "proxy_errors",
        "proxy_inflight_requests",
    ] {
        assert!(text.contains(&format!("# TYPE centrifugo_{name} ")), "{name}: {text}");
    }
    let publications = r#"{type="publication",channel_namespace=""}"#;
    assert_eq!(value(&format!("centrifugo_node_messages_sent_count{publications}")), 1.0);
    let connections = r#"{transport="websocket",client_name="",client_version=""}"#;
    assert_eq!(value(&format!("centrifugo_client_connections_inflight{connections}")), 1.0);
    assert_eq!(value(&format!("centrifugo_client_connections_accepted{connections}")), 1.0);
    let error = r#"{method="",code="102",channel_namespace=""}"#;
    assert_eq!(value(&format!("centrifugo_client_num_reply_errors{error}")), 1.0);
    assert_eq!(value(r#"centrifugo_client_num_server_disconnects{code="3012"}"#), 0.0);
    let call = r#"{protocol="http",method="publish"}"#;
    let histogram = "centrifugo_api_command_duration_seconds_histogram";
    assert_eq!(value(&format!("{histogram}_count{call}")), 1.0);
    assert!(text.contains("# TYPE centrifugo_client_num_reply_errors counter\n"));
    let open = scrape("Accept: application/openmetrics-text;version=1.0.0\r\n");
    assert!(open.contains("# TYPE centrifugo_client_num_reply_errors unknown\n"));
    assert!(open.ends_with("\n# EOF\n") && open.matches("# EOF").count() == 1);
    let plain = Node::open_with(&format!("{OPTIONS}\n[prometheus]\nenabled = true"), &[]);
    let mut raw = plain.raw();
    raw.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(!raw.response().body.contains("centrifugo"));
}

/// Requests that ask for too much are refused as a whole: nothing of them is carried out.
#[test]
fn requests_over_the_bounds_are_refused_before_any_work() {
    let node = node();
    let post = |path: &str, body: &str| node.raw().post(path, &[KEY], body);
    let offset = || node.result("history", json!({"channel": "full:a"}))["offset"].clone();
    assert_eq!(offset(), 0);
    let list = |entry: &str, count: usize| vec![entry; count].join(",");
    let publish = r#"{"publish":{"channel":"full:a","data":1}}"#;
    let old = r#"{"method":"publish","params":{"channel":"full:a","data":1}}"#;
    let broadcast = |count| {
        format!(r#"{{"channels":[{}],"data":1,"skip_history":true}}"#, list(r#""full:a""#, count))
    };
    let tags: Vec<_> = (0..257).map(|at| format!(r#""{at}":"""#)).collect();
    for (path, body) in [
        ("/api/broadcast", broadcast(100_001)),
        ("/api/batch", format!(r#"{{"commands":[{}]}}"#, list(publish, 10_001))),
        // The last command can't be read.
        ("/api/batch", format!(r#"{{"commands":[{publish},{{"publish":{{"channel":7}}}}]}}"#)),
        ("/api/batch", format!(r#"{{"parallel":true,"commands":[{publish},7]}}"#)),
        // Each is within its bound, all together aren't.
        (
            "/api/batch",
            format!(
                r#"{{"commands":[{publish},{0},{0}]}}"#,
                format!(r#"{{"broadcast":{}}}"#, broadcast(60_000))
            ),
        ),
        ("/api", list(old, 10_001).replace("},{", "}\n{")),
        ("/api", format!("{old}{old}{{")),
        (
            "/api/publish",
            format!(r#"{{"channel":"full:a","data":1,"tags":{{{}}}}}"#, tags.join(",")),
        ),
        ("/api/disconnect", format!(r#"{{"user":"u","whitelist":[{}]}}"#, list(r#""x""#, 1025))),
    ] {
        assert_eq!(post(path, &body).status, 400, "{path} {}", &body[..60]);
    }
    let deep = format!("{}{}", "[".repeat(513), "]".repeat(513));
    let long = format!(r#""{}""#, "x".repeat(1 << 20));
    for (method, body) in [
        ("publish", format!(r#"{{"channel":"full:a","data":{deep}}}"#)),
        ("broadcast", format!(r#"{{"channels":["full:a"],"data":{deep}}}"#)),
        ("broadcast", format!(r#"{{"channels":[{}],"data":{long}}}"#, list(r#""full:a""#, 300))),
        ("channels", format!(r#"{{"pattern":"{}"}}"#, "*".repeat(4097))),
    ] {
        let response = post(&format!("/api/{method}"), &body);
        let error: Value = serde_json::from_str(&response.body).unwrap();
        assert_eq!(
            (response.status, &error["error"]["code"]),
            (200, &json!(107)),
            "{method}: {error}"
        );
    }
    assert_eq!(offset(), 0, "something was carried out");
    let most = node.result("broadcast", serde_json::from_str(&broadcast(100_000)).unwrap());
    assert_eq!(most["responses"].as_array().map(Vec::len), Some(100_000));
    let commands = format!(r#"{{"commands":[{}]}}"#, list(publish, 10_000));
    assert_eq!(post("/api/batch", &commands).status, 200);
    assert_eq!(offset(), 10_000);
}

/// Results that don't fit into the answer are errors in their places: the answer is never thrown away.
#[test]
fn an_answer_that_would_be_too_long_is_known_before_it_is_made() {
    let node = node();
    let data = "x".repeat(2 << 20);
    for _ in 0..5 {
        node.result("publish", json!({"channel": "full:a", "data": data}));
    }
    for parallel in [false, true] {
        let read = json!({"history": {"channel": "full:a", "limit": -1}});
        let batch = json!({"parallel": parallel, "commands": vec![read; 3]}).to_string();
        let response = node.raw().post("/api/batch", &[KEY], &batch);
        assert_eq!(response.status, 200);
        let replies: Value = serde_json::from_str(&response.body).unwrap();
        let replies = replies["replies"].as_array().unwrap();
        assert_eq!(replies.len(), 3);
        let whole = replies[0]["history"]["publications"].as_array().unwrap();
        assert_eq!(whole.len(), 5);
    }
}
