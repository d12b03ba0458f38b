//! History, and getting back what was missed (sections 15 and 18 of the protocol), in both encodings.

use std::sync::Barrier;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::harness::*;

const FILE: &str = r#"
client.allow_anonymous_connect_without_token = true
client.allowed_origins = ["*"]
client.ping_interval = "10m"
[channel.without_namespace]
allow_publish_for_client = true
allow_publish_for_anonymous = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
[[channel.namespaces]]
name = "log"
history_size = 10
history_ttl = "10m"
allow_publish_for_client = true
allow_publish_for_anonymous = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_history_for_client = true
allow_history_for_anonymous = true
[[channel.namespaces]]
name = "closed"
history_size = 10
history_ttl = "10m"
[[channel.namespaces]]
name = "members"
history_size = 10
history_ttl = "10m"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_history_for_subscriber = true
allow_history_for_anonymous = true
[[channel.namespaces]]
name = "users"
history_size = 10
history_ttl = "10m"
allow_history_for_client = true
[[channel.namespaces]]
name = "rec"
history_size = 5
history_ttl = "10m"
force_recovery = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
[[channel.namespaces]]
name = "ask"
history_size = 5
history_ttl = "10m"
allow_recovery = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
[[channel.namespaces]]
name = "cache"
history_size = 3
history_ttl = "10m"
force_recovery = true
force_recovery_mode = "cache"
allow_publish_for_client = true
allow_publish_for_anonymous = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
[[channel.namespaces]]
name = "auto"
history_size = 3
history_ttl = "10m"
force_recovery = true
force_recovery_mode = "cache"
auto_cache_recover = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
[[channel.namespaces]]
name = "brief"
history_size = 3
history_ttl = "200ms"
history_meta_ttl = "10m"
force_recovery = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_history_for_client = true
allow_history_for_anonymous = true
[[channel.namespaces]]
name = "gone"
history_size = 3
history_ttl = "200ms"
history_meta_ttl = "200ms"
force_recovery = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
"#;

/// Publishes these numbers.
fn publish(node: &Node, channel: &str, numbers: std::ops::RangeInclusive<u64>) {
    let mut publisher = node.connected();
    numbers.for_each(|number| publisher.publish(channel, json!(number)));
}

/// Offsets of a list, each of which is what was published there.
fn offsets(list: &Value) -> Vec<u64> {
    let offset = |publication: &Value| {
        assert_eq!(publication["data"], publication["offset"], "{publication}");
        assert_eq!(publication["info"]["user"], "", "{publication}");
        let fields: Vec<&String> = publication.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["data", "info", "offset"], "no more in a list than that");
        publication["offset"].as_u64().unwrap()
    };
    list.as_array().unwrap().iter().map(offset).collect()
}

fn epoch(answer: &Value) -> String {
    answer["epoch"].as_str().unwrap().to_owned()
}

/// Where the namespace asks for it, results of history requests have times; pushes and recoveries don't.
#[test]
fn a_namespace_may_keep_times() {
    let file = FILE.replacen("name = \"log\"\n", "name = \"log\"\nroost.history_time = true\n", 1);
    assert_ne!(file, FILE);
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let node = Node::start(&file, &[]);
    let before = now();
    publish(&node, "log:a", 1..=2);
    let mut client = node.connected();
    let answer = client.ask("history", json!({"channel": "log:a", "limit": 5}));
    let publications = answer["history"]["publications"].as_array().unwrap().clone();
    assert_eq!(publications.len(), 2, "{answer}");
    for publication in &publications {
        let time = publication["time"].as_u64().unwrap();
        assert!((before..=now()).contains(&(time / 1_000)), "{publication}");
        assert_eq!(time % 1_000, 0);
    }
    // A push has none.
    client.subscribe("log:a");
    publish(&node, "log:a", 3..=3);
    assert_eq!(offsets(&json!([client.push()["pub"].take()])), [3]);
}

#[test]
fn pages() {
    let node = Node::start(FILE, &["--client.history_max_publication_limit", "4"]);
    // Kept are 3 to 12.
    publish(&node, "log:a", 1..=12);
    for speech in BOTH {
        let mut client = node.connected_in(speech);
        let top = client.ask("history", json!({"channel": "log:a"}));
        let current = epoch(&top["history"]);
        assert_eq!(top, json!({"history": {"publications": [], "epoch": current, "offset": 12}}));
        let since = |offset: u64| json!({"offset": offset, "epoch": current});
        for (request, expected) in [
            (json!({"limit": 0}), Ok(&[][..])),
            (json!({"limit": 2}), Ok(&[3, 4])),
            (json!({"limit": 4}), Ok(&[3, 4, 5, 6])),
            (json!({"limit": -1}), Ok(&[3, 4, 5, 6])),
            (json!({"limit": -2_147_483_648}), Ok(&[3, 4, 5, 6])),
            (json!({"limit": 2_147_483_647}), Ok(&[3, 4, 5, 6])),
            (json!({"limit": 3, "reverse": true}), Ok(&[12, 11, 10])),
            (json!({"limit": -1, "reverse": true}), Ok(&[12, 11, 10, 9])),
            (json!({"limit": 0, "reverse": true}), Ok(&[])),
            (json!({"limit": 2, "since": since(5)}), Ok(&[6, 7])),
            (json!({"limit": 2, "since": since(0)}), Ok(&[3, 4])),
            (json!({"limit": 2, "since": since(2)}), Ok(&[3, 4])),
            (json!({"limit": 9, "since": since(11)}), Ok(&[12])),
            (json!({"limit": 9, "since": since(12)}), Ok(&[])),
            (json!({"limit": 9, "since": since(99)}), Ok(&[])),
            (json!({"limit": 2, "since": {"offset": 5}}), Ok(&[6, 7])),
            (json!({"limit": 9, "since": since(5), "reverse": true}), Ok(&[4, 3])),
            (json!({"limit": 1, "since": since(5), "reverse": true}), Ok(&[4])),
            (json!({"limit": 9, "since": since(3), "reverse": true}), Ok(&[])),
            (json!({"limit": 2, "since": since(99), "reverse": true}), Ok(&[12, 11])),
            (json!({"limit": 2, "since": since(0), "reverse": true}), Err(107)),
            (json!({"limit": 2, "since": {}, "reverse": true}), Err(107)),
            (json!({"limit": 2, "since": {"offset": 5, "epoch": "xxxxxxxx"}}), Err(112)),
            (json!({"limit": 0, "since": {"offset": 5, "epoch": "xxxxxxxx"}}), Err(112)),
            (
                json!({"limit": 2, "since": {"offset": 5, "epoch": "xxxxxxxx"}, "reverse": true}),
                Err(112),
            ),
        ] {
            let mut whole = request.clone();
            whole["channel"] = json!("log:a");
            let answer = client.ask("history", whole);
            match expected {
                Ok(expected) => {
                    let page = &answer["history"];
                    assert_eq!(offsets(&page["publications"]), expected, "{request}: {answer}");
                    assert_eq!((epoch(page), &page["offset"]), (current.clone(), &json!(12)));
                }
                Err(code) => assert_eq!(answer["error"]["code"], code, "{request}: {answer}"),
            }
        }
    }
}

#[test]
fn history_needs_permission() {
    let node = Node::start(FILE, &[]);
    for speech in BOTH {
        let mut client = node.connected_in(speech);
        let error = |client: &mut Client, channel: &str| {
            let answer = client.ask("history", json!({"channel": channel, "limit": 1}));
            answer["error"].clone()
        };
        let denied = json!({"code": 103, "message": "permission denied"});
        for (channel, expected) in [
            ("nope:a", json!({"code": 102, "message": "unknown channel"})),
            ("a", json!({"code": 108, "message": "not available"})),
            ("grün", json!({"code": 107, "message": "bad request"})),
            ("closed:a", denied.clone()),
            ("users:a", denied.clone()),
            ("members:a", denied),
            ("log:never", Value::Null),
        ] {
            assert_eq!(error(&mut client, channel), expected, "{channel}");
        }
        client.subscribe("members:a");
        assert_eq!(error(&mut client, "members:a"), Value::Null);
        // Features that permission for history grants, too.
        let answer = client.ask("subscribe", json!({"channel": "log:b", "recoverable": true}));
        assert_eq!(
            answer["subscribe"],
            json!({"recoverable": true, "epoch": epoch(&answer["subscribe"]), "positioned": true})
        );
    }
    // A position that was read is one that lasts.
    let mut client = node.connected();
    let read = client.ask("history", json!({"channel": "log:c"}));
    let had = client.ask("subscribe", json!({"channel": "log:c", "positioned": true}));
    assert_eq!(epoch(&read["history"]), epoch(&had["subscribe"]));
}

/// Subscribes as a client that has all up to an offset.
fn recover(client: &mut Client, channel: &str, offset: u64, epoch: &str) -> Value {
    let request = json!({"channel": channel, "recover": true, "offset": offset, "epoch": epoch});
    let mut answer = client.ask("subscribe", request);
    let left = client.ask("unsubscribe", json!({"channel": channel}));
    assert_eq!(left, json!({"unsubscribe": {}}));
    answer["subscribe"].take()
}

/// Where the channel is.
fn position(node: &Node, channel: &str) -> (u64, String) {
    let answer = node.connected().ask("subscribe", json!({"channel": channel}));
    let result = &answer["subscribe"];
    (result["offset"].as_u64().unwrap_or(0), epoch(result))
}

#[test]
fn recovery_is_complete_or_none() {
    let node = Node::start(FILE, &["--client.recovery_max_publication_limit", "4"]);
    publish(&node, "rec:a", 1..=3);
    let (_, current) = position(&node, "rec:a");
    let check = |top: u64, cases: &[(u64, &str, Option<&[u64]>)]| {
        for speech in BOTH {
            let mut client = node.connected_in(speech);
            for (offset, named, expected) in cases {
                let mut result = recover(&mut client, "rec:a", *offset, named);
                let list = result.as_object_mut().unwrap().remove("publications");
                let mut whole = json!({
                    "recoverable": true,
                    "epoch": current,
                    "positioned": true,
                    "was_recovering": true,
                });
                match expected {
                    Some(expected) => {
                        let got = list.as_ref().map(offsets).unwrap_or_default();
                        assert_eq!(got, *expected, "from {offset} {named}");
                        whole["recovered"] = json!(true);
                        if *offset > 0 {
                            whole["offset"] = json!(offset);
                        }
                    }
                    None => {
                        assert_eq!(list, None, "from {offset} {named}");
                        whole["offset"] = json!(top);
                    }
                }
                assert_eq!(result, whole, "from {offset} {named}");
            }
        }
    };
    let current: &str = &current;
    check(
        3,
        &[
            (0, current, Some(&[1, 2, 3])),
            (0, "", Some(&[1, 2, 3])),
            (1, current, Some(&[2, 3])),
            (2, "", Some(&[3])),
            (3, current, Some(&[])),
            (4, current, None),
            (u64::from(u32::MAX), current, None),
            (1, "xxxxxxxx", None),
            (3, "_", None),
        ],
    );
    // Kept are 4 to 8, and 4 of them may come at once.
    publish(&node, "rec:a", 4..=8);
    check(
        8,
        &[
            (2, current, None),
            (3, current, None),
            (4, current, Some(&[5, 6, 7, 8])),
            (7, current, Some(&[8])),
            (8, current, Some(&[])),
        ],
    );
    let figures = node.figures();
    assert_eq!((figures["recoveries"], figures["recovered"]), (28, 16));
}

#[test]
fn a_client_may_want_an_error_instead() {
    let node = Node::start(FILE, &[]);
    publish(&node, "rec:a", 1..=7);
    let (_, current) = position(&node, "rec:a");
    for speech in BOTH {
        let mut client = node.connected_in(speech);
        let mut ask = |offset: u64, epoch: &str| {
            let request = json!({
                "channel": "rec:a", "recover": true, "offset": offset, "epoch": epoch, "flag": 3,
            });
            client.ask("subscribe", request)
        };
        let error = json!({"error": {"code": 112, "message": "unrecoverable position"}});
        assert_eq!(ask(1, &current), error);
        assert_eq!(ask(7, "xxxxxxxx"), error);
        // It isn't subscribed, and may do so.
        let answer = ask(6, &current);
        assert_eq!(offsets(&answer["subscribe"]["publications"]), [7]);
        assert_eq!(ask(6, &current)["error"]["code"], 105);
        node.until_is("subscriptions", 1);
        drop(client);
        node.until_is("subscriptions", 0);
    }
    // Behind the error nothing is delivered.
    let mut client = node.connected();
    let request = json!({"channel": "rec:b", "recover": true, "offset": 9, "flag": 2});
    assert_eq!(client.ask("subscribe", request)["error"]["code"], 112);
    client.publish("rec:b", json!(1));
    assert_eq!(client.ask("unsubscribe", json!({"channel": "rec:b"})), json!({"unsubscribe": {}}));
}

#[test]
fn recovery_needs_a_recoverable_subscription() {
    let node = Node::start(FILE, &[]);
    publish(&node, "ask:a", 1..=2);
    publish(&node, "a", 1..=1);
    for speech in BOTH {
        let mut client = node.connected_in(speech);
        // Not granted is no error.
        let request = json!({"channel": "ask:a", "recover": true, "offset": 1});
        let answer = client.ask("subscribe", request);
        assert_eq!(answer, json!({"subscribe": {"was_recovering": true}}));
        client.ask("unsubscribe", json!({"channel": "ask:a"}));
        let request =
            json!({"channel": "ask:a", "recover": true, "offset": 1, "recoverable": true});
        let answer = client.ask("subscribe", request);
        assert_eq!(offsets(&answer["subscribe"]["publications"]), [2]);
        // Nor where there is no history.
        let request = json!({"channel": "a", "recover": true, "offset": 1, "recoverable": true});
        let answer = client.ask("subscribe", request);
        assert_eq!(answer, json!({"subscribe": {"was_recovering": true}}));
    }
}

#[test]
fn the_latest_alone() {
    let node = Node::start(FILE, &[]);
    for (channel, speech) in [("cache:a", Speech::Json), ("cache:b", Speech::Protobuf)] {
        let (_, current) = position(&node, channel);
        let mut client = node.connected_in(speech);
        let whole = |more: Value| {
            let mut whole = json!({
                "recoverable": true,
                "epoch": current,
                "positioned": true,
                "was_recovering": true,
            });
            whole.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            whole
        };
        // Nothing was ever there.
        assert_eq!(recover(&mut client, channel, 0, ""), whole(json!({})));
        publish(&node, channel, 1..=5);
        for (offset, named, comes) in [
            (0, "", true),
            (1, &current[..], true),
            (4, &current, true),
            (5, "xxxxxxxx", true),
            (99, &current, true),
            (5, &current, false),
        ] {
            let mut result = recover(&mut client, channel, offset, named);
            let list = result.as_object_mut().unwrap().remove("publications");
            let expected: &[u64] = if comes { &[5] } else { &[] };
            assert_eq!(list.as_ref().map(offsets).unwrap_or_default(), expected, "{offset}");
            // It stands where the client was: what comes brings it to the top.
            let mut expected = json!({"recovered": true});
            if offset > 0 {
                expected["offset"] = offset.into();
            }
            assert_eq!(result, whole(expected), "{offset} {named}");
        }
        // Only for who asks.
        let answer = client.ask("subscribe", json!({"channel": channel}));
        let mut plain = whole(json!({"offset": 5}));
        plain.as_object_mut().unwrap().remove("was_recovering");
        assert_eq!(answer["subscribe"], plain);
    }

    // Or for all.
    publish(&node, "auto:a", 1..=5);
    for speech in BOTH {
        let mut client = node.connected_in(speech);
        let answer = client.ask("subscribe", json!({"channel": "auto:a"}));
        let result = &answer["subscribe"];
        assert_eq!(offsets(&result["publications"]), [5]);
        assert_eq!((&result["recovered"], &result["was_recovering"]), (&json!(true), &json!(true)));
        // A client that requests an error gets one.
        client.ask("unsubscribe", json!({"channel": "auto:a"}));
        let result = recover(&mut client, "auto:a", 5, &epoch(result));
        assert_eq!((&result["recovered"], &result["publications"]), (&json!(true), &Value::Null));
    }
}

#[test]
fn expired_history_cannot_be_recovered() {
    let node = Node::start(FILE, &[]);
    publish(&node, "brief:a", 1..=2);
    let (_, current) = position(&node, "brief:a");
    node.until_is("history_publications", 0);
    for speech in BOTH {
        let mut client = node.connected_in(speech);
        let page = client.ask("history", json!({"channel": "brief:a", "limit": -1}));
        let expected = json!({"publications": [], "epoch": current, "offset": 2});
        assert_eq!(page["history"], expected);
        // A client that has all of it needs nothing.
        for (offset, recovered) in [(2, json!(true)), (1, Value::Null), (0, Value::Null)] {
            let result = recover(&mut client, "brief:a", offset, &current);
            assert_eq!(result["recovered"], recovered, "{result}");
            assert_eq!(result["offset"], json!(2), "{result}");
            assert_eq!(result["publications"], Value::Null, "{result}");
        }
    }
    // Offsets go on.
    publish(&node, "brief:a", 3..=3);
    assert_eq!(position(&node, "brief:a"), (3, current));

    // When the position is forgotten, too, another life begins.
    let node = Node::start(FILE, &[]);
    publish(&node, "gone:a", 1..=2);
    let (top, before) = position(&node, "gone:a");
    assert_eq!(top, 2);
    node.until_is("channels_home", 0);
    let result = recover(&mut node.connected(), "gone:a", 2, &before);
    assert_eq!((&result["recovered"], &result["offset"]), (&Value::Null, &Value::Null));
    assert_ne!(epoch(&result), before);
}

/// An answer is never what makes a client slow.
#[test]
fn answers_fit_the_send_queue() {
    const BYTES: usize = 5000;
    let node = Node::start(FILE, &["--client.queue_max_size", "20000"]);
    let mut publisher = node.connected();
    for number in 1..=5 {
        let data = json!({"number": number, "text": "x".repeat(BYTES)});
        publisher.publish("rec:a", data.clone());
        publisher.publish("log:a", data);
    }
    let (_, current) = position(&node, "rec:a");
    for speech in BOTH {
        let mut client = node.connected_in(speech);
        // As if it couldn't be recovered.
        let result = recover(&mut client, "rec:a", 0, &current);
        assert_eq!(
            result,
            json!({
                "recoverable": true,
                "epoch": current,
                "offset": 5,
                "positioned": true,
                "was_recovering": true,
            })
        );
        let request = json!({"channel": "rec:a", "recover": true, "epoch": current, "flag": 2});
        assert_eq!(client.ask("subscribe", request)["error"]["code"], 112);
        let result = recover(&mut client, "rec:a", 3, &current);
        assert_eq!(result["publications"].as_array().unwrap().len(), 2);

        // A page ends early; the rest can be asked for.
        let mut since = 0;
        let mut pages = vec![];
        while since < 5 {
            let request = json!({"channel": "log:a", "limit": -1, "since": {"offset": since}});
            let page = client.ask("history", request);
            assert_eq!(page["history"]["offset"], 5);
            let list = page["history"]["publications"].as_array().unwrap().clone();
            for publication in &list {
                since += 1;
                assert_eq!(publication["offset"], since);
                assert_eq!(publication["data"]["number"], since);
            }
            pages.push(list.len());
        }
        assert_eq!(pages, [3, 2]);
    }
    assert_eq!(node.figures()["closed_slow"], 0);
}

/// A storm: all come back at once, from the same place, while more is published. Each gets exactly
/// what it lacks, in order, and once.
#[test]
fn a_storm_that_recovers() {
    const CLIENTS: usize = 50;
    const KEPT: u64 = 200;
    const FROM: u64 = 20;
    const LIVE: u64 = 50;
    let node = Node::start(
        &format!(
            "{FILE}\n[[channel.namespaces]]\nname = \"storm\"\nhistory_size = 1000\n\
             history_ttl = \"10m\"\nforce_recovery = true\nallow_publish_for_client = true\n\
             allow_publish_for_anonymous = true\nallow_subscribe_for_client = true\n\
             allow_subscribe_for_anonymous = true"
        ),
        &["--client.recovery_max_publication_limit", "1000", "--shards", "3"],
    );
    publish(&node, "storm:a", 1..=KEPT);
    let (_, current) = position(&node, "storm:a");
    let everyone = Barrier::new(CLIENTS + 1);
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (node, everyone, current) = (&node, &everyone, &current);
            scope.spawn(move || {
                let mut client = node.connected_in(BOTH[number % 2]);
                everyone.wait();
                let answer = client.ask(
                    "subscribe",
                    json!({"channel": "storm:a", "recover": true, "offset": FROM, "epoch": current}),
                );
                let result = &answer["subscribe"];
                assert_eq!((&result["recovered"], &result["offset"]), (&json!(true), &json!(FROM)));
                let mut got = offsets(&result["publications"]);
                while got.last() != Some(&(KEPT + LIVE)) {
                    let push = client.push();
                    assert_eq!(push["pub"]["data"], push["pub"]["offset"]);
                    got.push(push["pub"]["offset"].as_u64().unwrap());
                }
                assert_eq!(got, (FROM + 1..=KEPT + LIVE).collect::<Vec<_>>());
            });
        }
        let mut publisher = node.connected();
        everyone.wait();
        for number in KEPT + 1..=KEPT + LIVE {
            publisher.publish("storm:a", json!(number));
        }
    });
    let figures = node.figures();
    assert_eq!((figures["recoveries"], figures["recovered"]), (CLIENTS as u64, CLIENTS as u64));
}
