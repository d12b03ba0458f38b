//! Subscriptions that the server makes (section 20 of the protocol), and what a user may have of
//! connections.

use serde_json::{Value, json};

use crate::harness::*;

const NAMESPACES: &str = r#"
[[channel.namespaces]]
name = "rec"
history_size = 10
history_ttl = "10m"
force_recovery = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
[[channel.namespaces]]
name = "room"
presence = true
join_leave = true
force_push_join_leave = true
allow_presence_for_client = true
allow_presence_for_anonymous = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
[[channel.namespaces]]
name = "limited"
allow_user_limited_channels = true
"#;

/// Personal channels in a namespace that has presence.
const PERSONAL: &str = r#"
[client.subscribe_to_user_personal_channel]
enabled = true
personal_channel_namespace = "room"
"#;

/// Connects with these claims.
fn connect(node: &Node, speech: Speech, claims: Value) -> (Client, Value) {
    node.connected_by(speech, json!({"token": token(claims)}))
}

#[test]
fn tokens_name_channels() {
    for speech in BOTH {
        let node = Node::open_with(NAMESPACES, &[]);
        let claims = json!({
            "sub": "42",
            "channels": ["a", "room:a", "closed"],
            "subs": {
                "rec:a": {"data": {"hi": 1}},
                "room:b": {"info": {"seat": 7}, "override": {
                    "join_leave": {"value": false},
                    "presence": {"value": true},
                }},
                // Without a subscription token, since the connection's token says so.
                "$gold": {},
            },
        });
        let (mut client, result) = connect(&node, speech, claims);
        let epoch = &result["subs"]["rec:a"]["epoch"];
        assert!(epoch.is_string(), "{result}");
        // Where both name channels, `subs` alone counts.
        assert_eq!(
            result["subs"],
            json!({
                "rec:a": {
                    "recoverable": true, "epoch": epoch, "positioned": true, "data": {"hi": 1},
                },
                "room:b": {},
                "$gold": {},
            }),
        );
        let id = result["client"].as_str().unwrap();
        let answer = client.ask("presence", json!({"channel": "room:b"}));
        let info = json!({"user": "42", "client": id, "chan_info": {"seat": 7}});
        assert_eq!(answer["presence"]["presence"], json!({ id: info }));
        // It is subscribed, and can't do so once more.
        for channel in ["rec:a", "room:b", "$gold"] {
            let answer = client.ask("subscribe", json!({"channel": channel}));
            assert_eq!(answer["error"]["code"], 105, "{channel}");
        }
        // Publications come as in any channel.
        let mut publisher = node.connected();
        publisher.publish("room:b", json!(1));
        assert_eq!(client.push()["pub"]["data"], 1);
        // If a client unsubscribes, that holds.
        client.ask("unsubscribe", json!({"channel": "room:b"}));
        publisher.publish("room:b", json!(2));
        publisher.publish("rec:a", json!(3));
        assert_eq!(client.push()["pub"]["data"], 3);

        // A list of names alone, with the namespaces' options.
        let claims = json!({"sub": "43", "channels": ["a", "room:c"]});
        let (mut client, result) = connect(&node, speech, claims);
        assert_eq!(result["subs"], json!({"a": {}, "room:c": {}}));
        let push = client.push();
        assert_eq!(
            (&push["channel"], &push["join"]["info"]["user"]),
            (&json!("room:c"), &json!("43"))
        );
    }
}

#[test]
fn clients_name_channels() {
    let node = Node::open_with(NAMESPACES, &[]);
    let mut publisher = node.connected();
    (1..=3).for_each(|number| publisher.publish("rec:a", json!(number)));
    for speech in BOTH {
        // Only those that it could subscribe to by itself; the others are passed over.
        let subs = json!({
            "a": {}, "rec:a": {}, "room:a": {}, "$gold": {}, "limited:b#7": {}, "grün": {},
        });
        let (mut client, result) = node.connected_by(speech, json!({ "subs": subs }));
        let epoch = result["subs"]["rec:a"]["epoch"].clone();
        assert_eq!(
            result["subs"],
            json!({
                "a": {},
                "rec:a": {"recoverable": true, "epoch": epoch, "offset": 3, "positioned": true},
            })
        );
        assert_eq!(client.ask("subscribe", json!({"channel": "a"}))["error"]["code"], 105);
        let token = token(json!({"sub": "7"}));
        let request = json!({"token": token, "subs": {"limited:b#7": {}, "limited:b#8": {}}});
        let (_, result) = node.connected_by(speech, request);
        assert_eq!(result["subs"], json!({"limited:b#7": {}}));

        // Recovery, of one's own and of the token's.
        for by_token in [false, true] {
            for (offset, named, expected) in
                [(1, epoch.clone(), Some(2)), (3, epoch.clone(), Some(0)), (1, json!("x"), None)]
            {
                let mut request = json!({
                    "subs": {"rec:a": {"recover": true, "offset": offset, "epoch": named}},
                });
                if by_token {
                    request["token"] = json!(token_of("42", json!(["rec:a"])));
                }
                let (mut client, result) = node.connected_by(speech, request);
                let result = &result["subs"]["rec:a"];
                assert_eq!(result["was_recovering"], true, "{result}");
                assert_eq!(result["recovered"], json!(expected.map(|_| true)), "{result}");
                let list = result["publications"].as_array().map_or(0, Vec::len);
                assert_eq!(list, expected.unwrap_or(0), "{result}");
                let top = if expected.is_some() { offset } else { 3 };
                assert_eq!(result["offset"], top, "{result}");
                assert_eq!(client.ask("rpc", json!({}))["error"]["code"], 108);
            }
        }
        // One of an unknown namespace.
        let mut client = node.client_in(speech);
        client.talk("> {\"id\":1,\"connect\":{\"subs\":{\"nope:a\":{}}}}\nx 3501 bad request");
    }
}

fn token_of(user: &str, channels: Value) -> String {
    token(json!({"sub": user, "channels": channels}))
}

#[test]
fn an_unknown_namespace_in_a_token() {
    let node = Node::open_with(NAMESPACES, &[]);
    for speech in BOTH {
        for claims in [
            json!({"sub": "42", "channels": ["a", "nope:a"]}),
            json!({"sub": "42", "subs": {"nope:a": {}}}),
        ] {
            let mut client = node.client_in(speech);
            let connect = json!({"id": 1, "connect": {"token": token(claims)}});
            client.talk(&format!(
                "> {connect}
                 < {{\"id\":1,\"error\":{{\"code\":102,\"message\":\"unknown channel\"}}}}
                 > {{\"id\":2,\"rpc\":{{}}}}
                 x 3501 bad request"
            ));
        }
    }
    let figures = node.until_is("slots_in_use", 0);
    assert_eq!((figures["subscriptions"], figures["channels_home"]), (0, 0));
}

#[test]
fn channel_limit() {
    let node = Node::open_with(NAMESPACES, &["--client.channel_limit", "2"]);
    for speech in BOTH {
        let mut client = node.client_in(speech);
        let token = token_of("42", json!(["a", "b", "c"]));
        let connect = json!({"id": 1, "connect": {"token": token}});
        client.talk(&format!("> {connect}\nx 3505 channel limit"));
        // With those that the client names.
        let token = token_of("42", json!(["a", "b"]));
        let mut client = node.client_in(speech);
        let connect = json!({"id": 1, "connect": {"token": token, "subs": {"c": {}}}});
        client.talk(&format!("> {connect}\nx 3505 channel limit"));
        // Named twice it is one.
        let request = json!({"token": token, "subs": {"b": {}}});
        let (mut client, result) = node.connected_by(speech, request);
        assert_eq!(result["subs"], json!({"a": {}, "b": {}}));
        // They count against the client's own.
        let error = client.ask("subscribe", json!({"channel": "c"}));
        assert_eq!(error, json!({"error": {"code": 106, "message": "limit exceeded"}}));
        client.ask("unsubscribe", json!({"channel": "a"}));
        client.subscribe("c");
    }
}

#[test]
fn personal_channels() {
    for (file, channel) in [
        ("client.subscribe_to_user_personal_channel.enabled = true", "#42"),
        (PERSONAL, "room:#42"),
    ] {
        // These keys belong to the root, the namespaces don't.
        let node = match file.starts_with("client") {
            true => Node::open_with(
                NAMESPACES,
                &["--client.subscribe_to_user_personal_channel.enabled"],
            ),
            false => Node::open_with(&format!("{NAMESPACES}\n{file}"), &[]),
        };
        for speech in BOTH {
            let (mut client, result) = connect(&node, speech, json!({"sub": "42"}));
            assert_eq!(result["subs"], json!({ channel: {} }));
            if channel.starts_with("room") {
                assert_eq!(client.push()["join"]["info"]["user"], "42");
            }
            node.connected().publish(channel, json!("for you"));
            let push = client.push();
            assert_eq!(
                (&push["channel"], &push["pub"]["data"]),
                (&json!(channel), &json!("for you"))
            );
            // Not for who has no id.
            let (_, result) = node.connected_by(speech, json!({}));
            assert_eq!(result["subs"], Value::Null);
            // Beside those of the token.
            let (_, result) = connect(&node, speech, json!({"sub": "43", "channels": ["a"]}));
            assert_eq!(result["subs"], json!({"a": {}, channel.replace("42", "43"): {}}));
            client.close();
            node.until_is("subscriptions", 0);
        }
    }
}

#[test]
fn a_single_connection() {
    let node = Node::open_with(&format!("{NAMESPACES}\n{PERSONAL}\nsingle_connection = true"), &[]);
    let (mut before, result) = connect(&node, Speech::Json, json!({"sub": "42"}));
    let id = result["client"].clone();
    let (mut other, _) = connect(&node, Speech::Json, json!({"sub": "7"}));
    for speech in [Speech::Protobuf, Speech::Json, Speech::Json] {
        let (after, _) = connect(&node, speech, json!({"sub": "42"}));
        loop {
            match before.next() {
                // Join and leave events there.
                Got::Line(line) => assert!(line.starts_with("{\"push\":"), "{line}"),
                end => {
                    assert_eq!(end, Got::Close(3504, "connection limit".into()));
                    break;
                }
            }
        }
        before = after;
    }
    // The others have their own.
    assert_eq!(other.push()["join"]["info"]["user"], "7");
    assert_eq!(other.ask("rpc", json!({}))["error"]["code"], 108);
    let figures = node.until_is("sessions_open", 2);
    assert_eq!(figures["closed_user_limit"], 3);
    // A closed client is no longer present.
    node.until_is("subscriptions", 2);
    let answer = other.ask("presence", json!({"channel": "room:#42"}));
    let here = answer["presence"]["presence"].as_object().unwrap();
    assert_eq!(here.len(), 1);
    assert!(!here.contains_key(id.as_str().unwrap()));
}

#[test]
fn user_connection_limit() {
    let node = Node::open(&["--client.user_connection_limit", "2", "--shards", "3"]);
    let connect_42 = json!({"id": 1, "connect": {"token": token(json!({"sub": "42"}))}});
    let mut clients: Vec<Client> = (0..2).map(|_| node.connected_as("42")).collect();
    for speech in BOTH {
        let mut client = node.client_in(speech);
        client.talk(&format!("> {connect_42}\nx 3504 connection limit"));
    }
    // That is another user, and nobody in particular.
    let _others = (node.connected_as("7"), node.connected_as("7"));
    let _nobody: Vec<Client> = (0..5).map(|_| node.connected()).collect();
    // Room comes back, however one goes.
    for way in 0..2 {
        let gone = clients.pop().unwrap();
        match way {
            0 => gone.close(),
            _ => drop(gone),
        }
        node.until("room", |_| {
            let mut client = node.client();
            client.send(&connect_42.to_string());
            match client.next() {
                Got::Line(line) => {
                    assert!(like(&line, "{\"id\":1,\"connect\":{*}}"), "{line}");
                    clients.push(client);
                    true
                }
                other => {
                    assert_eq!(other, Got::Close(3504, "connection limit".into()));
                    false
                }
            }
        });
    }
    assert_eq!(clients.len(), 2);
    node.client().talk(&format!("> {connect_42}\nx 3504 connection limit"));
    for client in &mut clients {
        assert_eq!(client.ask("rpc", json!({}))["error"]["code"], 108);
    }
}

#[test]
fn a_refresh_holds_the_channels_to_those_of_before() {
    let node = Node::open_with(NAMESPACES, &[]);
    let exp = now() + 3600;
    for speech in BOTH {
        let claims = json!({"sub": "42", "exp": exp, "channels": ["a", "b"]});
        for (changed, good) in [
            (json!({"channels": ["b", "a"]}), true),
            (json!({"subs": {"a": {}, "b": {"data": 1}}}), true),
            (json!({"channels": ["a"]}), false),
            (json!({"channels": ["a", "b", "c"]}), false),
            (json!({"channels": ["a", "c"]}), false),
            (json!({}), false),
            // Its own subscription is none of the token's.
            (json!({"channels": ["a", "b", "own"]}), false),
        ] {
            let (mut client, _) = connect(&node, speech, claims.clone());
            client.subscribe("own");
            let mut new = json!({"sub": "42", "exp": exp});
            new.as_object_mut().unwrap().extend(changed.as_object().unwrap().clone());
            let id = client.command("refresh", json!({"token": token(new)}));
            match good {
                true => drop(client.expect(&format!(
                    "{{\"id\":{id},\"refresh\":{{\"expires\":true,\"ttl\":*}}}}"
                ))),
                false => client.is_closed(3010, "insufficient state"),
            }
        }
    }
}

/// Others see the info of a client's latest token.
#[test]
fn a_refresh_changes_client_info() {
    let node = Node::open_with(NAMESPACES, &[]);
    for speech in BOTH {
        let room = format!("room:{speech:?}");
        let claims = |name: &str| json!({"sub": "42", "exp": now() + 3600, "info": {"name": name}, "channels": [room]});
        let (mut client, result) = connect(&node, speech, claims("Ann"));
        let id = result["client"].as_str().unwrap();
        let info = |name: &str| json!({"user": "42", "client": id, "conn_info": {"name": name}});
        assert_eq!(client.push()["join"]["info"], info("Ann"));
        let answer = client.ask("refresh", json!({"token": token(claims("Eve"))}));
        assert_eq!(answer["refresh"]["expires"], true);
        let answer = client.ask("presence", json!({"channel": room}));
        assert_eq!(answer["presence"]["presence"], json!({ id: info("Eve") }));
        // And what it publishes.
        client.command("publish", json!({"channel": room, "data": 1}));
        let mut lines = [client.line(), client.line()];
        lines.sort();
        let push: Value = serde_json::from_str(&lines[1]).unwrap();
        assert_eq!(push["push"]["pub"]["info"], info("Eve"));
    }
}

#[test]
fn a_client_may_unsubscribe_during_a_server_subscribe() {
    let node = Node::open_with("[http_api]\nkey = \"k\"\n", &[]);
    let mut ann = node.connected_as("ann");
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut raw = node.raw();
            for n in 0..500 {
                let body = json!({"user": "ann", "channel": format!("c{}", n % 8)});
                let answer = raw.post("/api/subscribe", &[KEY], &body.to_string());
                assert_eq!(answer.status, 200);
            }
            done.store(true, std::sync::atomic::Ordering::Release);
        });
        let mut n = 0;
        while !done.load(std::sync::atomic::Ordering::Acquire) {
            let id = ann.command("unsubscribe", json!({"channel": format!("c{}", n % 8)}));
            n += 1;
            // Pushes tell of subscriptions; nothing but them and this reply comes.
            loop {
                let line: Value = serde_json::from_str(&ann.line()).unwrap();
                if line["push"].is_null() {
                    assert_eq!(line, json!({"id": id, "unsubscribe": {}}));
                    break;
                }
            }
        }
    });
    // Its commands are answered as before.
    ann.send("{\"id\":7,\"publish\":{\"channel\":\"plain\",\"data\":1}}");
    while !like(&ann.line(), "{\"id\":7,\"publish\":{}}") {}
}
