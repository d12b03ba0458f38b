//! Transcripts, bad input and properties of the whole folder.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A readable form of what was parsed.
fn shown(line: &str) -> String {
    match parse(line) {
        Ok(command) => format!("{command:?}"),
        Err(malformed) => malformed.to_string(),
    }
}

fn written(put: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut out = Vec::new();
    put(&mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn transcript_of_a_session() {
    let frame = "{\"id\":1,\"connect\":{\"name\":\"js\"}}\n\
                 {\"id\":2,\"subscribe\":{\"channel\":\"test\",\"flag\":1}}";
    let batch: Vec<_> = commands(frame).map(Result::unwrap).collect();
    let [
        Command { id: 1, request: Request::Connect(connect) },
        Command { id: 2, request: Request::Subscribe(subscribe) },
    ] = &batch[..]
    else {
        panic!("{batch:?}")
    };
    assert_eq!(connect.name, "js");
    assert_eq!((&*subscribe.channel, subscribe.flag, subscribe.recover), ("test", 1, false));

    let connected = ConnectResult {
        client: "3f1c...",
        version: "1.0.0",
        ping: 25,
        pong: true,
        ..<_>::default()
    };
    assert_eq!(
        written(|out| put_connect(out, 1, &connected)),
        r#"{"id":1,"connect":{"client":"3f1c...","version":"1.0.0","ping":25,"pong":true}}"#
    );
    let subscribed = SubscribeResult {
        recoverable: true,
        epoch: "QwErTyUi",
        positioned: true,
        ..SubscribeResult::default()
    };
    assert_eq!(
        written(|out| put_subscribe(out, 2, &subscribed)),
        r#"{"id":2,"subscribe":{"recoverable":true,"epoch":"QwErTyUi","positioned":true}}"#
    );

    let command = parse(r#"{"id":3,"publish":{"channel":"test","data":{"a":1}}}"#).unwrap();
    let Request::Publish(publish) = command.request else { panic!("{command:?}") };
    let data = publish.data.unwrap().get();
    assert_eq!((&*publish.channel, data), ("test", r#"{"a":1}"#));

    let info = written(|out| put_client_info(out, "", "3f1c...", None, None));
    let publication = Publication {
        data: data.as_bytes(),
        info: Some(info.as_bytes()),
        offset: 1,
        epoch: Some("QwErTyUi"),
        ..Publication::default()
    };
    assert_eq!(
        written(|out| {
            put_push_publication(out, "test", &publication);
            out.push(b'\n');
            put_publish(out, 3);
        }),
        "{\"push\":{\"channel\":\"test\",\"pub\":{\"data\":{\"a\":1},\
         \"info\":{\"user\":\"\",\"client\":\"3f1c...\"},\"offset\":1,\"epoch\":\"QwErTyUi\"}}}\n\
         {\"id\":3,\"publish\":{}}"
    );

    assert_eq!(PING, b"{}");
    assert!(matches!(parse("{}").unwrap(), Command { id: 0, request: Request::Pong }));

    let command = parse(r#"{"id":4,"history":{"channel":"test","limit":10}}"#).unwrap();
    let Request::History(history) = command.request else { panic!("{command:?}") };
    assert_eq!((&*history.channel, history.limit, history.since.is_some()), ("test", 10, false));

    assert_eq!(
        written(|out| put_error(out, 5, ErrorCode::UnknownChannel)),
        r#"{"id":5,"error":{"code":102,"message":"unknown channel"}}"#
    );
}

#[test]
fn replies_are_spelled_so() {
    let recovered = SubscribeResult {
        expires: true,
        ttl: 60,
        recoverable: true,
        epoch: "e",
        publications: &[
            Publication { data: b"1", offset: 8, ..Publication::DEFAULT },
            Publication {
                data: b"{\n\"x\": 2\n}",
                offset: 9,
                tags: &[("a\"", "b")],
                ..Publication::DEFAULT
            },
        ],
        recovered: true,
        offset: 7,
        positioned: true,
        data: Some(b"[ 1 ]"),
        was_recovering: true,
        delta: true,
    };
    let everything = ConnectResult {
        client: "c",
        version: "v",
        expires: true,
        ttl: 5,
        data: Some(b"\"hi\""),
        subs: &[("news", recovered), ("a\nb", SubscribeResult::default())],
        ping: 25,
        pong: true,
        session: "s",
        node: "n",
        time: 1_700_000_000_000,
    };
    let subscribe = r#"{"expires":true,"ttl":60,"recoverable":true,"epoch":"e","publications":[{"data":1,"offset":8},{"data":{"x": 2},"offset":9,"tags":{"a\"":"b"}}],"recovered":true,"offset":7,"positioned":true,"data":[ 1 ],"was_recovering":true,"delta":true}"#;
    let rows = [
        (
            written(|out| put_connect(out, 1, &everything)),
            format!(
                r#"{{"id":1,"connect":{{"client":"c","version":"v","expires":true,"ttl":5,"data":"hi","subs":{{"news":{subscribe},"a\nb":{{}}}},"ping":25,"pong":true,"session":"s","node":"n","time":1700000000000}}}}"#
            ),
        ),
        (
            written(|out| put_subscribe(out, u32::MAX, &recovered)),
            format!(r#"{{"id":4294967295,"subscribe":{subscribe}}}"#),
        ),
        (
            written(|out| put_subscribe(out, 2, &SubscribeResult::default())),
            r#"{"id":2,"subscribe":{}}"#.into(),
        ),
        (
            written(|out| put_connect(out, 2, &ConnectResult::default())),
            r#"{"id":2,"connect":{}}"#.into(),
        ),
        (written(|out| put_unsubscribe(out, 4)), r#"{"id":4,"unsubscribe":{}}"#.into()),
        (
            written(|out| put_refresh(out, 5, Some(9))),
            r#"{"id":5,"refresh":{"expires":true,"ttl":9}}"#.into(),
        ),
        (written(|out| put_refresh(out, 5, None)), r#"{"id":5,"refresh":{}}"#.into()),
        (
            written(|out| put_sub_refresh(out, 6, Some(9))),
            r#"{"id":6,"sub_refresh":{"expires":true,"ttl":9}}"#.into(),
        ),
        (written(|out| put_sub_refresh(out, 6, None)), r#"{"id":6,"sub_refresh":{}}"#.into()),
        (
            written(|out| put_error(out, 7, ErrorCode::Internal)),
            r#"{"id":7,"error":{"code":100,"message":"internal server error","temporary":true}}"#
                .into(),
        ),
        (
            written(|out| put_push_unsubscribe(out, "c", Unsubscribed::InsufficientState)),
            r#"{"push":{"channel":"c","unsubscribe":{"code":2500,"reason":"insufficient state"}}}"#
                .into(),
        ),
        (
            written(|out| put_push_publication(out, "c", &Publication::DEFAULT)),
            r#"{"push":{"channel":"c","pub":{}}}"#.into(),
        ),
        (
            written(|out| put_client_info(out, "u", "c", Some(b"{\"n\":\n1}"), Some(b"[]"))),
            r#"{"user":"u","client":"c","conn_info":{"n":1},"chan_info":[]}"#.into(),
        ),
        (
            written(|out| put_client_info(out, "", "", None, None)),
            r#"{"user":"","client":""}"#.into(),
        ),
    ];
    for (got, wanted) in rows {
        assert_eq!(got, wanted);
        serde_json::from_str::<Value>(&got).unwrap();
    }
}

#[test]
fn every_field_is_read() {
    let line = r#"{"id":9,"connect":{"token":"t","data":{"a":[1]},"subs":{"s":{"recover":true,"offset":3,"epoch":"e"},"gone":null},"name":"n","version":"v","headers":{"h":"x","none":null},"flag":1,"dict":"d","profile":"p"}}"#;
    let Request::Connect(connect) = parse(line).unwrap().request else { panic!() };
    assert_eq!((&*connect.token, &*connect.name, &*connect.version), ("t", "n", "v"));
    assert_eq!(connect.data.unwrap().get(), r#"{"a":[1]}"#);
    assert_eq!(connect.flag, 1);
    assert_eq!(connect.headers.len(), 1);
    assert_eq!(connect.headers["h"], "x");
    assert_eq!(connect.subs.len(), 1);
    let sub = &connect.subs["s"];
    assert_eq!((sub.recover, sub.offset, &*sub.epoch), (true, 3, "e"));

    let line = r#"{"id":9,"subscribe":{"channel":"c","token":"t","recover":true,"epoch":"e","offset":18446744073709551615,"data":[],"positioned":true,"recoverable":true,"join_leave":true,"delta":"fossil","tf":{"op":"and","nodes":[]},"flag":3,"type":4,"phase":2,"cursor":"k","limit":-1,"asc":true}}"#;
    let Request::Subscribe(sub) = parse(line).unwrap().request else { panic!() };
    let texts = [&sub.channel, &sub.token, &sub.epoch, &sub.delta, &sub.cursor];
    assert_eq!(texts, ["c", "t", "e", "fossil", "k"]);
    assert_eq!([sub.recover, sub.positioned, sub.recoverable, sub.join_leave, sub.asc], [true; 5]);
    assert_eq!((sub.offset, sub.flag), (u64::MAX, 3));
    assert_eq!((sub.kind, sub.phase, sub.limit), (4, 2, -1));
    assert_eq!(sub.data.unwrap().get(), "[]");
    assert_eq!(sub.tf.unwrap().get(), r#"{"op":"and","nodes":[]}"#);

    let line = r#"{"id":9,"publish":{"channel":"c","data":"x","type":1,"key":"k","removed":true}}"#;
    let Request::Publish(publish) = parse(line).unwrap().request else { panic!() };
    assert_eq!((publish.kind, &*publish.key, publish.removed), (1, "k", true));
    assert_eq!(publish.data.unwrap().get(), r#""x""#);

    let line = r#"{"id":9,"history":{"channel":"c","limit":-1,"since":{"offset":5,"epoch":"e"},"reverse":true}}"#;
    let Request::History(history) = parse(line).unwrap().request else { panic!() };
    let since = history.since.unwrap();
    assert_eq!((since.offset, &*since.epoch, history.reverse), (5, "e", true));

    let line = r#"{"id":9,"sub_refresh":{"channel":"c","token":"t","type":1,"track":[{"signature":"s","items":[{"key":"k"}]}],"untrack":["a"]}}"#;
    let Request::SubRefresh(refresh) = parse(line).unwrap().request else { panic!() };
    assert_eq!((&*refresh.channel, &*refresh.token, refresh.kind), ("c", "t", 1));
    assert!(refresh.track.is_some_and(|track| track.get().contains("\"k\"")));
    assert_eq!(refresh.untrack.unwrap().get(), r#"["a"]"#);

    for (line, wanted) in [
        (
            r#"{"id":1,"unsubscribe":{"channel":"c"}}"#,
            "Unsubscribe(ChannelRequest { channel: \"c\" })",
        ),
        (r#"{"id":1,"presence":{"channel":"c"}}"#, "Presence(ChannelRequest { channel: \"c\" })"),
        (
            r#"{"id":1,"presence_stats":{"channel":"c"}}"#,
            "PresenceStats(ChannelRequest { channel: \"c\" })",
        ),
        (r#"{"id":1,"ping":{}}"#, "Ping"),
        (r#"{"id":1,"send":{}}"#, "Send(SendRequest { data: None })"),
        (
            r#"{"id":1,"rpc":{"method":"m","data":1}}"#,
            "Rpc(RpcRequest { data: Some(RawValue(1)), method: \"m\" })",
        ),
        (r#"{"id":1,"refresh":{"token":"t"}}"#, "Refresh(RefreshRequest { token: \"t\" })"),
        (r#"{"id":1}"#, "Unknown"),
        (r#"{"id":1,"teleport":{"to":[1,{"x":null}]}}"#, "Unknown"),
    ] {
        assert_eq!(shown(line), format!("Command {{ id: 1, request: {wanted} }}"), "{line}");
    }
}

#[test]
fn null_is_absent() {
    let nulls = r#"{"id":1,"connect":null,"publish":{"channel":null,"data":null,"type":null,"key":null,"removed":null}}"#;
    let empty = r#"{"id":1,"publish":{}}"#;
    assert_eq!(shown(nulls), shown(empty));
    assert_eq!(shown(r#"{"id":null}"#), shown("{}"));
    assert_eq!(
        shown(r#"{"id":1,"connect":{"subs":null,"headers":null,"data":null}}"#),
        shown(r#"{"id":1,"connect":{}}"#)
    );
    assert_eq!(shown(r#"{"id":1,"history":{"since":null}}"#), shown(r#"{"id":1,"history":{}}"#));
}

#[test]
fn a_pong_is_anything_without_an_id_but_a_send() {
    for line in ["{}", r#"{"id":0}"#, r#"{"publish":{"channel":"c"}}"#, r#"{"connect":{}}"#] {
        assert!(matches!(parse(line).unwrap().request, Request::Pong), "{line}");
    }
    assert!(matches!(parse(r#"{"send":{"data":1}}"#).unwrap().request, Request::Send(_)));
}

#[test]
fn of_several_requests_the_first_in_order_counts() {
    let order = [
        "connect",
        "ping",
        "subscribe",
        "unsubscribe",
        "publish",
        "presence",
        "presence_stats",
        "history",
        "rpc",
        "send",
        "refresh",
        "sub_refresh",
    ];
    let variant = |request: &Request<'_>| match request {
        Request::Connect(_) => "connect",
        Request::Ping => "ping",
        Request::Subscribe(_) => "subscribe",
        Request::Unsubscribe(_) => "unsubscribe",
        Request::Publish(_) => "publish",
        Request::Presence(_) => "presence",
        Request::PresenceStats(_) => "presence_stats",
        Request::History(_) => "history",
        Request::Rpc(_) => "rpc",
        Request::Send(_) => "send",
        Request::Refresh(_) => "refresh",
        Request::SubRefresh(_) => "sub_refresh",
        Request::Pong | Request::Unknown => "none",
    };
    for (at, first) in order.iter().enumerate() {
        // Last in the text, with all that comes after it before it.
        let mut names = order[at..].to_vec();
        names.reverse();
        let fields: Vec<_> = names.iter().map(|name| format!(r#""{name}":{{}}"#)).collect();
        let line = format!(r#"{{"id":1,{}}}"#, fields.join(","));
        assert_eq!(variant(&parse(&line).unwrap().request), *first, "{line}");
    }
}

#[test]
fn malformed_lines() {
    for line in [
        " ",
        "\t\r",
        "x",
        "null",
        "true",
        "1",
        "\"\"",
        "[]",
        "[1]",
        "{",
        "}",
        "{}}",
        "{}{}",
        "{} {}",
        "{\"id\":}",
        "{'id':1}",
        "{\"id\":1,}",
        "{\"id\":-1}",
        "{\"id\":1.5}",
        "{\"id\":4294967296}",
        "{\"id\":\"1\"}",
        "{\"id\":1,\"id\":2}",
        "{\"id\":01}",
        "{\"id\":1,\"connect\":[]}",
        "{\"id\":1,\"connect\":1}",
        "{\"id\":1,\"connect\":\"{}\"}",
        "{\"id\":1,\"connect\":{\"token\":1}}",
        "{\"id\":1,\"connect\":{\"subs\":[]}}",
        "{\"id\":1,\"connect\":{\"subs\":{\"a\":[]}}}",
        "{\"id\":1,\"connect\":{\"headers\":{\"a\":1}}}",
        "{\"id\":1,\"connect\":{}",
        "{\"id\":1,\"connect\":{},\"connect\":{}}",
        "{\"id\":1,\"ping\":1}",
        "{\"id\":1,\"ping\":[]}",
        "{\"id\":1,\"subscribe\":[\"channel\"]}",
        "{\"id\":1,\"subscribe\":{\"channel\":\"\u{1}\"}}",
        "{\"id\":1,\"subscribe\":{\"channel\":\"\\ud800\"}}",
        "{\"id\":1,\"subscribe\":{\"channel\":\"\\x\"}}",
        "{\"id\":1,\"subscribe\":{\"offset\":-1}}",
        "{\"id\":1,\"subscribe\":{\"offset\":18446744073709551616}}",
        "{\"id\":1,\"subscribe\":{\"type\":2147483648}}",
        "{\"id\":1,\"subscribe\":{\"recover\":1}}",
        "{\"id\":1,\"publish\":{\"data\":}}",
        "{\"id\":1,\"publish\":{\"data\":{]}}}",
        "{\"id\":1,\"publish\":{\"data\":nul}}",
        "{\"id\":1,\"history\":{\"since\":[5,\"e\"]}}",
        "{\"id\":1,\"teleport\":}",
        "\u{feff}{}",
    ] {
        let malformed = parse(line).expect_err(line);
        assert!(matches!(malformed, Malformed::Json { .. }), "{line}: {malformed}");
        assert_eq!(malformed.disconnect().code(), 3501);
    }
    assert_eq!(parse("").unwrap_err(), Malformed::Blank);
    assert_eq!(Malformed::Blank.disconnect().code(), 3501);
}

#[test]
fn deep_nesting_costs_no_stack() {
    let deep = "[".repeat(60_000);
    let line = format!("{{\"id\":1,\"publish\":{{\"data\":{deep}");
    assert!(parse(&line).is_err());
    let line = format!("{{\"id\":1,\"publish\":{{\"data\":{deep}{}}}}}", "]".repeat(60_000));
    assert!(parse(&line).is_ok());
}

/// For each frame: ids until the end, `x` for malformed.
fn ids(frame: &str) -> String {
    commands(frame)
        .map(|command| command.map_or_else(|_| "x".into(), |command| command.id.to_string()))
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn batches_are_split_at_line_feeds() {
    for (frame, wanted) in [
        ("", "x"),
        ("\n", "x"),
        ("\n\n", "x"),
        ("{}", "0"),
        ("{}\n", "0"),
        ("{}\r\n{}\r\n", "0 0"),
        ("{}\n\n", "0 x"),
        ("{\"id\":1}\n{\"id\":2}", "1 2"),
        ("{\"id\":1}\n{\"id\":2}\n", "1 2"),
        ("{\"id\":1}\n\n{\"id\":2}", "1 x"),
        ("\n{\"id\":1}", "x"),
        ("{\"id\":1}\n{\"id\":\n2}\n{\"id\":3}", "1 x"),
        ("{\"id\":1}\n ", "1 x"),
    ] {
        assert_eq!(ids(frame), wanted, "{frame:?}");
    }
}

#[test]
fn strings_borrow_unless_escaped() {
    use std::borrow::Cow;
    let line = r#"{"id":1,"subscribe":{"channel":"plain \u0041"}}"#;
    let Request::Subscribe(sub) = parse(line).unwrap().request else { panic!() };
    assert!(matches!(&sub.channel, Cow::Owned(text) if text == "plain A"));
    let line = r#"{"id":1,"subscribe":{"channel":"plainé"}}"#;
    let Request::Subscribe(sub) = parse(line).unwrap().request else { panic!() };
    assert!(matches!(sub.channel, Cow::Borrowed("plainé")));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn pushes_parse_back(
        channel in any::<String>(),
        data in any_json(),
        user in any::<String>(),
        conn_info in proptest::option::of(any_json()),
        offset in any::<u64>(),
        epoch in proptest::option::of("[a-z]{1,8}"),
        tags in prop::collection::btree_map(any::<String>(), any::<String>(), 0..3),
        pretty in any::<bool>(),
    ) {
        let text = |value: &Value| {
            if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) }
                .unwrap()
        };
        let payload = text(&data);
        prop_assert!(serde_json::from_str::<Value>(&payload).is_ok());
        let conn_info_text = conn_info.as_ref().map(text);
        let info = written(|out| {
            let conn_info = conn_info_text.as_deref().map(str::as_bytes);
            put_client_info(out, &user, "client", conn_info, None);
        });
        let tag_list: Vec<_> = tags.iter().map(|(key, value)| (&**key, &**value)).collect();
        let publication = Publication {
            data: payload.as_bytes(),
            info: Some(info.as_bytes()),
            offset,
            tags: &tag_list,
            epoch: epoch.as_deref(),
        };
        let push = written(|out| put_push_publication(out, &channel, &publication));
        prop_assert!(!push.contains('\n'));

        let mut wanted_info = json!({"user": user, "client": "client"});
        if let Some(conn_info) = conn_info {
            wanted_info["conn_info"] = conn_info;
        }
        let mut wanted = json!({"push": {"pub": {"data": data, "info": wanted_info}}});
        if !channel.is_empty() {
            wanted["push"]["channel"] = channel.into();
        }
        if offset > 0 {
            wanted["push"]["pub"]["offset"] = offset.into();
        }
        if !tags.is_empty() {
            wanted["push"]["pub"]["tags"] = json!(tags);
        }
        if let Some(epoch) = epoch {
            wanted["push"]["pub"]["epoch"] = epoch.into();
        }
        prop_assert_eq!(serde_json::from_str::<Value>(&push).unwrap(), wanted);
    }

    #[test]
    fn commands_parse_back(id in 1..=u32::MAX, channel in any::<String>(), data in any_json()) {
        let line = json!({"id": id, "publish": {"channel": channel, "data": data}}).to_string();
        let command = parse(&line).unwrap();
        prop_assert_eq!(command.id, id);
        let Request::Publish(publish) = command.request else { panic!("{line}") };
        prop_assert_eq!(&*publish.channel, &channel);
        let got = publish.data.map(|data| serde_json::from_str::<Value>(data.get()).unwrap());
        prop_assert_eq!(got.unwrap_or_default(), data);
    }

    /// Whatever the frame, stopping after any command and coming back with the rest is the same as
    /// not stopping.
    #[test]
    fn a_batch_can_be_left_and_resumed(
        lines in prop::collection::vec(
            prop_oneof![4 => (0u32..9).prop_map(|id| format!("{{\"id\":{id}}}")), 1 => "[ x]?"],
            0..6,
        ),
        trailing in any::<bool>(),
        stop in 0usize..7,
    ) {
        let mut frame = lines.join("\n");
        if trailing {
            frame.push('\n');
        }
        let whole = ids(&frame);
        let mut iterator = commands(&frame);
        let mut seen: Vec<_> = iterator.by_ref().take(stop).collect();
        prop_assert!(iterator.consumed() <= frame.len());
        if !iterator.is_done() {
            seen.extend(commands(&frame[iterator.consumed()..]));
        }
        let seen: Vec<_> = seen
            .into_iter()
            .map(|command| command.map_or_else(|_| "x".into(), |command| command.id.to_string()))
            .collect();
        prop_assert_eq!(seen.join(" "), whole);
    }

    #[test]
    fn nothing_panics(frame in any::<String>()) {
        let mut iterator = commands(&frame);
        let count = iterator.by_ref().count();
        prop_assert!(count >= 1 && count <= frame.len().max(1));
    }
}
