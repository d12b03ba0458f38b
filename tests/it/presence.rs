//! Presence, join and leave events (section 17 of the protocol), in both encodings.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::harness::*;

const NAMESPACES: &str = r#"
[[channel.namespaces]]
name = "room"
presence = true
join_leave = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_presence_for_subscriber = true
allow_presence_for_anonymous = true
[[channel.namespaces]]
name = "forced"
presence = true
join_leave = true
force_push_join_leave = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_presence_for_client = true
allow_presence_for_anonymous = true
[[channel.namespaces]]
name = "mute"
presence = true
join_leave = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
[[channel.namespaces]]
name = "users"
presence = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_presence_for_client = true
[[channel.namespaces]]
name = "quiet"
presence = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_presence_for_client = true
allow_presence_for_anonymous = true
"#;

/// A client of a user, and its id.
fn client(node: &Node, speech: Speech, user: &str) -> (Client, String) {
    let token = token(json!({"sub": user, "info": {"name": user}}));
    let (client, result) = node.connected_by(speech, json!({"token": token}));
    (client, result["client"].as_str().unwrap().to_owned())
}

/// How many are in a channel, and how many users.
fn stats(client: &mut Client, channel: &str) -> (u64, u64) {
    let answer = client.ask("presence_stats", json!({"channel": channel}));
    let stats = &answer["presence_stats"];
    (stats["num_clients"].as_u64().unwrap(), stats["num_users"].as_u64().unwrap())
}

#[test]
fn presence_lists_members() {
    let node = Node::open_with(NAMESPACES, &["--shards", "3"]);
    for speech in BOTH {
        let channel = format!("quiet:{speech:?}");
        let mut asking = node.connected_in(speech);
        let empty = asking.ask("presence", json!({"channel": channel}));
        assert_eq!(empty, json!({"presence": {"presence": {}}}));
        assert_eq!(stats(&mut asking, &channel), (0, 0));

        // Exact right behind each reply, for every client.
        let mut here = vec![];
        for (count, user) in ["1", "2", "1", "3", "1"].into_iter().enumerate() {
            let (mut client, id) = client(&node, BOTH[count % 2], user);
            client.subscribe(&channel);
            here.push((client, id, user));
            let users = [1, 2, 2, 3, 3][count];
            assert_eq!(stats(&mut asking, &channel), (count as u64 + 1, users));
        }
        let all = |here: &[(Client, String, &str)]| {
            let entry = |(_, id, user): &(Client, String, &str)| {
                let info = json!({"user": user, "client": id, "conn_info": {"name": user}});
                (id.clone(), info)
            };
            Value::Object(here.iter().map(entry).collect())
        };
        let answer = asking.ask("presence", json!({"channel": channel}));
        assert_eq!(answer["presence"]["presence"], all(&here));

        // One unsubscribes, one subscribes again.
        let (mut gone, id, user) = here.swap_remove(3);
        gone.ask("unsubscribe", json!({"channel": channel}));
        assert_eq!(stats(&mut asking, &channel), (4, 2));
        gone.subscribe(&channel);
        here.push((gone, id, user));
        assert_eq!(stats(&mut asking, &channel), (5, 3));
        // One closes, one is cut off.
        let (closing, ..) = here.swap_remove(0);
        closing.close();
        let (killed, ..) = here.swap_remove(1);
        let stream = killed.socket.get_ref().try_clone().unwrap();
        drop(killed);
        Raw::new(stream).reset();
        let since = Instant::now();
        while stats(&mut asking, &channel).0 > 3 {
            assert!(since.elapsed() < BOUND, "they never went");
            std::thread::park_timeout(Duration::from_millis(5));
        }
        let answer = asking.ask("presence", json!({"channel": channel}));
        assert_eq!(answer["presence"]["presence"], all(&here));
    }
}

#[test]
fn presence_needs_permission() {
    let node = Node::open_with(NAMESPACES, &[]);
    for speech in BOTH {
        let mut anonymous = node.connected_in(speech);
        let (mut user, _) = client(&node, speech, "42");
        let denied = json!({"code": 103, "message": "permission denied"});
        let unavailable = json!({"code": 108, "message": "not available"});
        let unknown = json!({"code": 102, "message": "unknown channel"});
        let mut check = |channel: &str, for_anonymous: &Value, for_user: &Value| {
            for name in ["presence", "presence_stats"] {
                let answer = anonymous.ask(name, json!({"channel": channel}));
                assert_eq!(answer["error"], *for_anonymous, "{channel}");
                let answer = user.ask(name, json!({"channel": channel}));
                assert_eq!(answer["error"], *for_user, "{channel}");
            }
        };
        check("a", &unavailable, &unavailable);
        check("nope:a", &unknown, &unknown);
        check("mute:a", &denied, &denied);
        check("users:a", &denied, &Value::Null);
        check("quiet:a", &Value::Null, &Value::Null);
        check("room:a", &denied, &denied);
        // With a subscription.
        for client in [&mut anonymous, &mut user] {
            for channel in ["room:a", "mute:a", "users:a"] {
                client.subscribe(channel);
            }
        }
        let mut check = |channel: &str, allowed: bool| {
            for (client, always) in [(&mut anonymous, false), (&mut user, channel == "users:a")] {
                let answer = client.ask("presence_stats", json!({"channel": channel}));
                assert_eq!(answer["error"].is_null(), allowed || always, "{channel}");
            }
        };
        check("room:a", true);
        check("mute:a", false);
        check("users:a", false);
    }
}

#[test]
fn members_join_and_leave() {
    let node = Node::open_with(NAMESPACES, &[]);
    for (speech, forced) in BOTH.into_iter().flat_map(|speech| [(speech, false), (speech, true)]) {
        let channel = format!("{}:{speech:?}", if forced { "forced" } else { "room" });
        let subscribe = |client: &mut Client| {
            let request = json!({"channel": channel, "join_leave": !forced});
            assert_eq!(client.ask("subscribe", request), json!({"subscribe": {}}));
        };
        let event = |name: &str, user: &str, id: &str| {
            let info = json!({"user": user, "client": id, "conn_info": {"name": user}});
            json!({"channel": channel, name: {"info": info}})
        };
        let (mut watching, own) = client(&node, speech, "1");
        subscribe(&mut watching);
        // Its own, behind the reply.
        assert_eq!(watching.push(), event("join", "1", &own));
        let (mut other, id) = client(&node, BOTH[0], "2");
        other.subscribe(&channel);
        assert_eq!(watching.push(), event("join", "2", &id));
        let left = |client: &mut Client| {
            // Behind its own join, if it gets those, and the answer to a subscribe.
            loop {
                match client.line() {
                    line if line.contains("\"unsubscribe\":{}") => return,
                    line => assert!(!line.contains("error"), "{line}"),
                }
            }
        };
        other.command("unsubscribe", json!({"channel": channel}));
        left(&mut other);
        assert_eq!(watching.push(), event("leave", "2", &id));
        // A join goes before the leave of the same client, also when both come in one frame.
        other.send(&format!(
            "{}\n{}",
            json!({"id": 8, "subscribe": {"channel": channel}}),
            json!({"id": 9, "unsubscribe": {"channel": channel}})
        ));
        left(&mut other);
        assert_eq!(watching.push(), event("join", "2", &id));
        assert_eq!(watching.push(), event("leave", "2", &id));
        // Whatever way it goes.
        other.command("subscribe", json!({"channel": channel}));
        assert_eq!(watching.push(), event("join", "2", &id));
        drop(other);
        assert_eq!(watching.push(), event("leave", "2", &id));
        assert_eq!(watching.ask("rpc", json!({}))["error"]["code"], 108);
    }
}

#[test]
fn presence_events_need_permission() {
    let node = Node::open_with(NAMESPACES, &[]);
    for (channel, asked) in [
        // A client that requests no events.
        ("room:a", false),
        // A client that may not read presence.
        ("mute:a", true),
        // Where there are none.
        ("quiet:a", true),
        ("a", true),
    ] {
        let mut client = node.connected();
        let request = json!({"channel": channel, "join_leave": asked});
        assert_eq!(client.ask("subscribe", request), json!({"subscribe": {}}));
        let mut other = node.connected();
        other.subscribe(channel);
        other.ask("unsubscribe", json!({"channel": channel}));
        // Mail and events are in order: theirs would be here before this answer.
        other.subscribe(channel);
        client.ask("unsubscribe", json!({"channel": channel}));
        assert_eq!(client.ask("rpc", json!({}))["error"]["code"], 108);
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Where the namespace asks for it, entries have the time of the subscription, which another info of the same
/// subscription doesn't change.
#[test]
fn a_namespace_may_keep_the_time_of_subscriptions() {
    let namespace = r#"
[http_api]
key = "k"
[[channel.namespaces]]
name = "timed"
presence = true
join_leave = true
allow_subscribe_for_client = true
allow_presence_for_subscriber = true
roost.subscribed_at = true
"#;
    let node = Node::open_with(namespace, &[]);
    let (mut watching, _) = client(&node, Speech::Json, "1");
    let before = unix_seconds();
    watching.ask("subscribe", json!({"channel": "timed:a", "join_leave": true}));
    watching.push();
    let (mut second, id) = client(&node, Speech::Protobuf, "2");
    second.ask("subscribe", json!({"channel": "timed:a"}));
    let joined = watching.push()["join"]["info"].clone();
    let at = joined["subscribed_at"].as_u64().unwrap();
    assert!((before..=unix_seconds()).contains(&at), "{joined}");
    let entry = |node: &Node| {
        let answer = node.call("presence", json!({"channel": "timed:a"}));
        answer["result"]["presence"][&id].clone()
    };
    assert_eq!(entry(&node), joined);
    // Another `conn_info` of the same connection.
    let renewed = token(json!({"sub": "2", "info": {"name": "new"}, "exp": 4_000_000_000_u64}));
    second.ask("refresh", json!({"token": renewed}));
    node.until("another info", |_| entry(&node)["conn_info"] == json!({"name": "new"}));
    assert_eq!(entry(&node)["subscribed_at"], at);
    let in_channel = watching.ask("presence", json!({"channel": "timed:a"}));
    assert_eq!(in_channel["presence"]["presence"][&id]["subscribed_at"], at);
}

/// Infos of a client and its subscription in tokens.
#[test]
fn presence_shows_client_info() {
    let node = Node::open_with(NAMESPACES, &[]);
    for speech in BOTH {
        let channel = format!("room:{speech:?}");
        let (mut watching, _) = client(&node, speech, "1");
        watching.ask("subscribe", json!({"channel": channel, "join_leave": true}));
        watching.push();
        let (mut client, id) = client(&node, Speech::Json, "2");
        let claims = json!({"sub": "2", "channel": channel, "info": {"seat": 7}});
        let request = json!({"channel": channel, "token": token(claims)});
        assert_eq!(client.ask("subscribe", request), json!({"subscribe": {}}));
        let info = json!({
            "user": "2", "client": id, "conn_info": {"name": "2"}, "chan_info": {"seat": 7},
        });
        assert_eq!(watching.push(), json!({"channel": channel, "join": {"info": info}}));
        let answer = watching.ask("presence", json!({"channel": channel}));
        assert_eq!(answer["presence"]["presence"][&id], info);
        // A token may hide its client.
        let claims = json!({"sub": "1", "channel": format!("forced:{speech:?}"), "override": {
            "presence": {"value": false},
            "join_leave": {"value": false},
        }});
        let channel = claims["channel"].clone();
        let request = json!({"channel": channel, "token": token(claims)});
        assert_eq!(watching.ask("subscribe", request), json!({"subscribe": {}}));
        assert_eq!(stats(&mut watching, channel.as_str().unwrap()), (0, 0));
    }
}
