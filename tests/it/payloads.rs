//! What publications carry: patches (section 21 of the protocol), what filters keep back (22), and
//! bytes that aren't JSON (2.1).

use serde_json::{Value, json};

use crate::harness::*;
use crate::protobuf::unhex;

const NAMESPACES: &str = r#"
[[channel.namespaces]]
name = "delta"
history_size = 10
history_ttl = "10m"
force_recovery = true
allowed_delta_types = ["fossil"]
delta_publish = true
allow_tags_filter = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
[[channel.namespaces]]
name = "loose"
history_size = 10
history_ttl = "10m"
allow_positioning = true
allowed_delta_types = ["fossil"]
delta_publish = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
[[channel.namespaces]]
name = "bytes"
publication_data_format = "binary"
history_size = 10
history_ttl = "10m"
force_recovery = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_history_for_client = true
allow_history_for_anonymous = true
[[channel.namespaces]]
name = "room"
presence = true
join_leave = true
force_push_join_leave = true
allow_publish_for_client = true
allow_subscribe_for_client = true
allow_presence_for_client = true
"#;

/// A client that holds what patches build on, as SDKs do.
struct Patched {
    client: Client,
    speech: Speech,
    base: Vec<u8>,
}

impl Patched {
    /// Subscribes with delta, and more in the request. The result without its publications, and what
    /// they were: data, and whether it was a patch.
    fn subscribe(
        node: &Node,
        speech: Speech,
        request: Value,
    ) -> (Self, Value, Vec<(String, bool)>) {
        let mut request = request;
        request["delta"] = json!("fossil");
        let mut client = node.connected_in(speech);
        let mut answer = client.ask("subscribe", request);
        let list = answer["subscribe"].as_object_mut().unwrap().remove("publications");
        let mut patched = Self { client, speech, base: vec![] };
        let list = list.iter().flat_map(|list| list.as_array().unwrap());
        let list = list.map(|publication| patched.data(publication)).collect();
        (patched, answer["subscribe"].take(), list)
    }

    /// The text of the next publication, and whether it came as a patch.
    fn next(&mut self) -> (String, bool) {
        let push = self.client.push();
        self.data(&push["pub"])
    }

    fn data(&mut self, publication: &Value) -> (String, bool) {
        let data = &publication["data"];
        let patch = publication["delta"] == true;
        let bytes = match (self.speech, data.as_str()) {
            // In JSON a string, whatever it is.
            (Speech::Json, text) => text.expect("a string").as_bytes().to_vec(),
            (Speech::Protobuf, Some(text)) if patch => match text.strip_prefix("hex:") {
                Some(hex) => unhex(hex),
                None => panic!("a patch that is JSON"),
            },
            (Speech::Protobuf, _) => data.to_string().into_bytes(),
        };
        self.base = match patch {
            true => fossil_delta::apply(&self.base, &bytes).unwrap(),
            false => bytes,
        };
        (String::from_utf8(self.base.clone()).unwrap(), patch)
    }
}

/// A document that differs from others little. Keys sorted, so that its text is what comes back.
fn document(count: u32) -> Value {
    json!({"count": count, "items": [1, 2, 3, 4, 5, 6, 7, 8, 9], "title": "hello world, hello"})
}

fn full(data: &Value) -> (String, bool) {
    (data.to_string(), false)
}

fn patch(data: &Value) -> (String, bool) {
    (data.to_string(), true)
}

#[test]
fn patches() {
    let node = Node::open_with(NAMESPACES, &[]);
    for speech in BOTH {
        let channel = format!("delta:{speech:?}");
        let (mut patched, result, _) =
            Patched::subscribe(&node, speech, json!({"channel": channel}));
        let epoch = result["epoch"].as_str().unwrap().to_owned();
        let whole = json!({"recoverable": true, "epoch": epoch, "positioned": true, "delta": true});
        assert_eq!(result, whole);
        let mut plain = node.connected_in(speech);
        plain.subscribe(&channel);
        let mut publisher = node.connected();
        let long = document(3);
        let sent =
            [document(1), document(2), json!({}), json!({"a": 1}), long.clone(), document(4)];
        for data in &sent {
            publisher.publish(&channel, data.clone());
            assert_eq!(plain.push()["pub"]["data"], *data);
        }
        let got: Vec<_> = sent.iter().map(|_| patched.next()).collect();
        let [one, two, short, other, three, four] = &sent;
        // The first; then a patch unless that is no shorter.
        let expected = [full(one), patch(two), full(short), full(other), full(three), patch(four)];
        assert_eq!(got, expected);

        // A new subscriber begins with a full one, although the others get a patch.
        let (mut late, _, _) = Patched::subscribe(&node, speech, json!({"channel": channel}));
        publisher.publish(&channel, document(5));
        assert_eq!(patched.next(), patch(&document(5)));
        assert_eq!(late.next(), full(&document(5)));
        publisher.publish(&channel, document(6));
        for client in [&mut patched, &mut late] {
            assert_eq!(client.next(), patch(&document(6)));
        }

        // A recovered publication is a base: the first full, then patches, and so live.
        let request = json!({"channel": channel, "recover": true, "offset": 5, "epoch": epoch});
        let (mut back, result, list) = Patched::subscribe(&node, speech, request);
        assert_eq!((&result["recovered"], &result["delta"]), (&json!(true), &json!(true)));
        let expected = [full(four), patch(&document(5)), patch(&document(6))];
        assert_eq!(list, expected);
        publisher.publish(&channel, document(7));
        assert_eq!(back.next(), patch(&document(7)));
        // Nothing was missed: nothing is there to build on.
        let request = json!({"channel": channel, "recover": true, "offset": 9, "epoch": epoch});
        let (mut same, result, list) = Patched::subscribe(&node, speech, request);
        assert_eq!((&result["recovered"], list), (&json!(true), vec![]));
        publisher.publish(&channel, document(8));
        assert_eq!(same.next(), full(&document(8)));
        assert_eq!(back.next(), patch(&document(8)));
    }
}

/// Server-side subscriptions have patches, too, by token or by client (21.1).
#[test]
fn patches_where_the_server_subscribes() {
    let node = Node::open_with(NAMESPACES, &[]);
    for (speech, by_token) in BOTH.into_iter().flat_map(|speech| [(speech, false), (speech, true)])
    {
        let channel = format!("delta:{speech:?}-{by_token}");
        let connect = |asked: Value| {
            let mut subs = json!({});
            subs[&channel] = asked;
            let mut request = json!({ "subs": subs });
            if by_token {
                request["token"] = json!(token(json!({"sub": "42", "channels": [channel]})));
            }
            let (client, mut result) = node.connected_by(speech, request);
            let result = result["subs"][&channel].take();
            assert_eq!(result["delta"], true, "{result}");
            (Patched { client, speech, base: vec![] }, result)
        };
        let (mut patched, result) = connect(json!({"delta": "fossil"}));
        let mut publisher = node.connected();
        (1..=3).for_each(|count| publisher.publish(&channel, document(count)));
        let got = [patched.next(), patched.next(), patched.next()];
        assert_eq!(got, [full(&document(1)), patch(&document(2)), patch(&document(3))]);
        // It comes back, and what it missed is what it builds on.
        let (mut back, result) = connect(json!({
            "delta": "fossil", "recover": true, "offset": 1, "epoch": result["epoch"],
        }));
        let list = result["publications"].as_array().unwrap();
        let list: Vec<_> = list.iter().map(|publication| back.data(publication)).collect();
        assert_eq!(list, [full(&document(2)), patch(&document(3))]);
        publisher.publish(&channel, document(4));
        assert_eq!(back.next(), patch(&document(4)));
        assert_eq!(patched.next(), patch(&document(4)));
    }
}

/// Patches are bytes: one that cuts a letter in two is no JSON string.
#[test]
fn a_patch_that_is_no_text() {
    let node = Node::open_with(NAMESPACES, &[]);
    let text = |letter: &str| json!(format!("{}{letter}{}", "a".repeat(40), "b".repeat(40)));
    let (mut json, ..) = Patched::subscribe(&node, Speech::Json, json!({"channel": "delta:a"}));
    let (mut protobuf, ..) =
        Patched::subscribe(&node, Speech::Protobuf, json!({"channel": "delta:a"}));
    let mut publisher = node.connected();
    for letter in ["é", "è", "é"] {
        publisher.publish("delta:a", text(letter));
    }
    let got = [json.next(), json.next(), json.next()];
    assert_eq!(got, [full(&text("é")), full(&text("è")), full(&text("é"))]);
    let got = [protobuf.next(), protobuf.next(), protobuf.next()];
    assert_eq!(got, [full(&text("é")), patch(&text("è")), patch(&text("é"))]);
}

#[test]
fn without_positions_all_is_full() {
    let node = Node::open_with(NAMESPACES, &[]);
    for speech in BOTH {
        let channel = format!("loose:{speech:?}");
        let request = json!({"channel": channel});
        let (mut loose, result, _) = Patched::subscribe(&node, speech, request);
        assert_eq!(result, json!({"delta": true}));
        let request = json!({"channel": channel, "positioned": true});
        let (mut positioned, _, _) = Patched::subscribe(&node, speech, request);
        let mut publisher = node.connected();
        (1..=3).for_each(|count| publisher.publish(&channel, document(count)));
        let got = [loose.next(), loose.next(), loose.next()];
        assert_eq!(got, [1, 2, 3].map(|count| full(&document(count))));
        let got = [positioned.next(), positioned.next(), positioned.next()];
        assert_eq!(got, [full(&document(1)), patch(&document(2)), patch(&document(3))]);
    }
}

#[test]
fn capabilities_not_granted_are_left_out() {
    let node = Node::open_with(NAMESPACES, &[]);
    for speech in BOTH {
        let mut client = node.connected_in(speech);
        let filter = json!({"key": "k", "cmp": "nex"});
        for request in [
            // Where delta isn't allowed.
            json!({"channel": "a", "delta": "fossil"}),
            json!({"channel": "bytes:a", "delta": "fossil"}),
            // With a filter.
            json!({"channel": "delta:a", "delta": "fossil", "tf": filter}),
        ] {
            let answer = client.ask("subscribe", request);
            assert_eq!(answer["error"], Value::Null);
            assert_eq!(answer["subscribe"]["delta"], Value::Null, "{answer}");
        }
        // Then all is as usual.
        for count in [1, 2] {
            client.command("publish", json!({"channel": "delta:a", "data": document(count)}));
            let mut lines = [client.line(), client.line()];
            lines.sort();
            let push: Value = serde_json::from_str(&lines[1]).unwrap();
            assert_eq!(push["push"]["pub"]["data"], document(count));
            assert_eq!(push["push"]["pub"]["delta"], Value::Null);
        }
    }
    // Also where the server subscribes.
    for speech in BOTH {
        let subs = json!({"delta:a": {"delta": "fossil"}, "a": {"delta": "fossil"}});
        let (_, result) = node.connected_by(speech, json!({ "subs": subs }));
        assert_eq!(result["subs"]["delta:a"]["delta"], true);
        assert_eq!(result["subs"]["a"], json!({}));
    }
}

/// Publications of clients have no tags: filters see that they are missing.
#[test]
fn filters() {
    let node = Node::open_with(NAMESPACES, &[]);
    let leaf = |cmp: &str| json!({"key": "k", "cmp": cmp});
    let with = |cmp: &str, val: &str| json!({"key": "k", "cmp": cmp, "val": val});
    let among = |cmp: &str, vals: &[&str]| json!({"key": "k", "cmp": cmp, "vals": vals});
    let of = |op: &str, nodes: &[Value]| json!({"op": op, "nodes": nodes});
    let passing = [
        (leaf("nex"), true),
        (leaf("ex"), false),
        (with("eq", "1"), false),
        (with("neq", "1"), true),
        (among("in", &["1", "2"]), false),
        (among("in", &["1", ""]), true),
        (among("nin", &["1", "2"]), true),
        (with("lt", "1"), false),
        (with("sw", "1"), false),
        (of("not", &[leaf("ex")]), true),
        (of("and", &[leaf("nex"), with("neq", "1")]), true),
        (of("and", &[leaf("nex"), leaf("ex")]), false),
        (of("or", &[leaf("nex"), leaf("ex")]), true),
        (of("or", &[leaf("ex"), of("not", &[leaf("nex")])]), false),
    ];
    for speech in BOTH {
        let channel = format!("delta:{speech:?}");
        let mut publisher = node.connected();
        publisher.publish(&channel, json!(1));
        let mut clients = vec![];
        for (filter, passes) in &passing {
            let mut client = node.connected_in(speech);
            let request = json!({"channel": channel, "tf": filter, "recover": true, "offset": 0});
            let answer = client.ask("subscribe", request);
            let result = &answer["subscribe"];
            // A withheld publication counts as received.
            assert_eq!(result["recovered"], true, "{filter}: {answer}");
            let list = result["publications"].as_array().map_or(0, Vec::len);
            assert_eq!(list, usize::from(*passes), "{filter}: {answer}");
            clients.push(client);
        }
        assert_eq!(node.until_is("filters", passing.len() as u64)["filters"], 14);
        for number in 2..5 {
            publisher.publish(&channel, json!(number));
        }
        for (mut client, (filter, passes)) in clients.into_iter().zip(&passing) {
            if *passes {
                for number in 2..5 {
                    let push = client.push();
                    assert_eq!(push["pub"]["data"], number, "{filter}");
                    assert_eq!(push["pub"]["offset"], number, "{filter}");
                }
            }
            // No gap, and nothing more.
            let answer = client.ask("unsubscribe", json!({"channel": channel}));
            assert_eq!(answer, json!({"unsubscribe": {}}), "{filter}");
        }
        node.until_is("filters", 0);
    }

    for filter in [
        with("eq", ""),
        leaf("eq"),
        among("eq", &["1"]),
        json!({"key": "k", "cmp": "eq", "val": "1", "vals": ["1"]}),
        with("in", "1"),
        leaf("in"),
        among("nin", &[]),
        with("ex", "1"),
        among("nex", &["1"]),
        with("near", "1"),
        json!({"key": "k", "val": "1"}),
        json!({"cmp": "eq", "val": "1"}),
        json!({}),
        of("xor", &[leaf("ex")]),
        of("and", &[]),
        of("or", &[]),
        of("not", &[]),
        of("not", &[leaf("ex"), leaf("ex")]),
        of("and", &[leaf("ex"), leaf("near")]),
    ] {
        for speech in BOTH {
            let mut client = node.connected_in(speech);
            let bad = json!({"error": {"code": 107, "message": "bad request"}});
            let answer = client.ask("subscribe", json!({"channel": "delta:a", "tf": filter}));
            assert_eq!(answer, bad, "{filter}");
            // Where there are no filters, no filter is good.
            let answer = client.ask("subscribe", json!({"channel": "a", "tf": leaf("ex")}));
            assert_eq!(answer, bad, "{filter}");
            client.subscribe("delta:a");
        }
    }
}

/// Data that isn't JSON ends the JSON connections that would get it, and no others.
#[test]
fn bytes() {
    let node = Node::open_with(NAMESPACES, &[]);
    let inappropriate = "inappropriate protocol";
    let mut publisher = node.connected_in(Speech::Protobuf);
    let mut watching = node.connected_in(Speech::Protobuf);
    let mut victim = node.connected();
    let mut bystander = node.connected();
    watching.subscribe("bytes:a");
    victim.subscribe("bytes:a");
    bystander.subscribe("bytes:b");
    publisher.publish("bytes:a", json!({"good": 1}));
    // A line feed between JSON's tokens is none of them, and would end a line.
    publisher.publish("bytes:a", json!("hex:7b0a2262223a20310a7d"));
    publisher.publish("bytes:a", json!("hex:00ff0a"));
    publisher.publish("bytes:a", json!(""));
    for (offset, data) in
        [(1, json!({"good": 1})), (2, json!({"b": 1})), (3, json!("hex:00ff0a")), (4, json!(""))]
    {
        let push = watching.push();
        assert_eq!((&push["pub"]["data"], &push["pub"]["offset"]), (&data, &json!(offset)));
    }
    assert_eq!(victim.push()["pub"]["data"]["good"], 1);
    let line = victim.line();
    assert!(line.contains("\"data\":{\"b\": 1},"), "{line}");
    victim.is_closed(3506, inappropriate);

    // In a list, too.
    for (name, request) in [
        ("history", json!({"channel": "bytes:a", "limit": 3})),
        ("history", json!({"channel": "bytes:a", "limit": 2, "reverse": true})),
        ("subscribe", json!({"channel": "bytes:a", "recover": true})),
        ("subscribe", json!({"channel": "bytes:a", "recover": true, "flag": 2})),
    ] {
        let mut client = node.connected();
        client.command(name, request.clone());
        client.is_closed(3506, inappropriate);
        let answer = publisher.ask(name, request);
        let list = &answer[name]["publications"];
        assert!(list.to_string().contains("hex:00ff0a"), "{answer}");
        publisher.ask("unsubscribe", json!({"channel": "bytes:a"}));
    }
    let mut client = node.connected();
    // Of what can be shown nothing is lost.
    let page = client.ask("history", json!({"channel": "bytes:a", "limit": 2}));
    assert_eq!(page["history"]["publications"].as_array().unwrap().len(), 2);
    client.subscribe("bytes:a");
    publisher.publish("bytes:a", json!(5));
    assert_eq!(client.push()["pub"]["data"], 5);
    publisher.publish("bytes:b", json!(6));
    assert_eq!(bystander.push()["pub"]["data"], 6);
    assert_eq!(node.figures()["closed_inappropriate"], 5);
}

/// The info of a client in a token may be bytes.
#[test]
fn bytes_about_a_client() {
    let node = Node::open_with(NAMESPACES, &[]);
    // 00 ff.
    let bytes = token(json!({"sub": "7", "b64info": "AP8="}));
    let plain = token(json!({"sub": "42"}));
    let connect = |speech, token: &str| node.connected_by(speech, json!({"token": token})).0;
    let mut watching = connect(Speech::Protobuf, &plain);
    watching.subscribe("room:a");
    assert_eq!(watching.push()["join"]["info"]["user"], "42");
    let mut victim = connect(Speech::Json, &plain);
    victim.subscribe("room:a");
    assert_eq!(victim.push()["join"]["info"]["user"], "42");
    watching.push();
    // Its coming can't be told to a JSON connection; what it publishes can't either.
    let mut client = connect(Speech::Protobuf, &bytes);
    client.subscribe("room:a");
    victim.is_closed(3506, "inappropriate protocol");
    let mut infos = [watching.push(), watching.push()];
    infos.sort_by_key(|push| push["leave"].is_null());
    assert_eq!(infos[0]["leave"]["info"]["user"], "42");
    assert_eq!(infos[1]["join"]["info"]["conn_info"], "hex:00ff");
    let mut asking = connect(Speech::Json, &plain);
    asking.command("presence", json!({"channel": "room:a"}));
    asking.is_closed(3506, "inappropriate protocol");
    let mut late = connect(Speech::Json, &plain);
    late.subscribe("room:a");
    late.push();
    connect(Speech::Protobuf, &bytes).publish("room:a", json!(1));
    late.is_closed(3506, "inappropriate protocol");
}
