//! Commands: what is read, what is malformed, and that both encodings read the same.

use proptest::prelude::*;
use serde_json::{Map, Value};

use super::super::*;
use super::{any_json, parse, protobuf_frame};
use crate::base::filter::FilterNode;

/// A readable form of what was parsed.
fn shown(line: &str) -> String {
    match parse(line) {
        Ok(command) => format!("{command:?}"),
        Err(malformed) => malformed.to_string(),
    }
}

#[test]
fn every_field_is_read() {
    let line = r#"{"id":9,"connect":{"token":"t","data":{"a":[1]},"subs":{"s":{"recover":true,"offset":3,"epoch":"e"},"gone":null},"name":"n","version":"v","headers":{"h":"x","none":null},"flag":1,"dict":"d","profile":"p"}}"#;
    let Request::Connect(connect) = parse(line).unwrap().request else { panic!() };
    assert_eq!((&*connect.token, &*connect.name, &*connect.version), ("t", "n", "v"));
    assert_eq!(connect.data.as_ref().unwrap().bytes(), br#"{"a":[1]}"#);
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
    assert_eq!(sub.data.unwrap().bytes(), b"[]");
    assert_eq!(sub.tf.unwrap(), FilterNode { op: "and".into(), ..<_>::default() });

    let line = r#"{"id":9,"publish":{"channel":"c","data":"x","type":1,"key":"k","removed":true}}"#;
    let Request::Publish(publish) = parse(line).unwrap().request else { panic!() };
    assert_eq!((publish.kind, &*publish.key, publish.removed), (1, "k", true));
    assert_eq!(publish.data.unwrap().bytes(), br#""x""#);

    let line = r#"{"id":9,"history":{"channel":"c","limit":-1,"since":{"offset":5,"epoch":"e"},"reverse":true}}"#;
    let Request::History(history) = parse(line).unwrap().request else { panic!() };
    let since = history.since.unwrap();
    assert_eq!((since.offset, &*since.epoch, history.reverse), (5, "e", true));

    let line = r#"{"id":9,"sub_refresh":{"channel":"c","token":"t","type":1,"track":[{"signature":"s","items":[{"key":"k"}]}],"untrack":["a","b"]}}"#;
    let Request::SubRefresh(refresh) = parse(line).unwrap().request else { panic!() };
    assert_eq!((&*refresh.channel, &*refresh.token, refresh.kind), ("c", "t", 1));
    assert_eq!((refresh.track, refresh.untrack), (1, 2));

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
            "Rpc(RpcRequest { data: Some(Payload(1)), method: \"m\" })",
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
    let nulls = r#"{"id":1,"connect":null,"publish":{"channel":null,"type":null,"key":null,"removed":null}}"#;
    let empty = r#"{"id":1,"publish":{}}"#;
    assert_eq!(shown(nulls), shown(empty));
    let publish = shown(r#"{"id":1,"publish":{"data":null}}"#);
    assert!(publish.contains("data: Some(Payload(null))"), "{publish}");
    assert_eq!(shown(r#"{"id":null}"#), shown("{}"));
    assert_eq!(
        shown(r#"{"id":1,"connect":{"subs":null,"headers":null,"data":null}}"#),
        shown(r#"{"id":1,"connect":{}}"#)
    );
    assert_eq!(shown(r#"{"id":1,"history":{"since":null}}"#), shown(r#"{"id":1,"history":{}}"#));
    assert_eq!(shown(r#"{"id":1,"subscribe":{"tf":null}}"#), shown(r#"{"id":1,"subscribe":{}}"#));
    assert_eq!(
        shown(r#"{"id":1,"subscribe":{"tf":{"op":null,"vals":null,"nodes":null}}}"#),
        shown(r#"{"id":1,"subscribe":{"tf":{}}}"#)
    );
    assert_eq!(
        shown(r#"{"id":1,"sub_refresh":{"track":null,"untrack":null}}"#),
        shown(r#"{"id":1,"sub_refresh":{}}"#)
    );
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
        "{\"id\":1,\"subscribe\":{\"tf\":[]}}",
        "{\"id\":1,\"subscribe\":{\"tf\":{\"op\":1}}}",
        "{\"id\":1,\"subscribe\":{\"tf\":{\"nodes\":[[\"and\"]]}}}",
        "{\"id\":1,\"subscribe\":{\"tf\":{\"nodes\":[null]}}}",
        "{\"id\":1,\"sub_refresh\":{\"track\":{}}}",
        "{\"id\":1,\"sub_refresh\":{\"track\":[[]]}}",
        "{\"id\":1,\"sub_refresh\":{\"track\":[{\"items\":[{\"version\":-1}]}]}}",
        "{\"id\":1,\"sub_refresh\":{\"untrack\":[1]}}",
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
    // A filter is read, not passed on: it may be so deep and no deeper.
    let filter = |depth: usize| {
        let nested = |inner: String, _| format!(r#"{{"op":"not","nodes":[{inner}]}}"#);
        let tree = (0..depth).fold("{}".into(), nested);
        format!(r#"{{"id":1,"subscribe":{{"channel":"c","tf":{tree}}}}}"#)
    };
    assert!(parse(&filter(50)).is_ok());
    assert!(parse(&filter(200)).is_err());
    assert!(parse(&filter(3_000)).is_err());
}

/// Ids until the end, `x` for malformed.
fn ids<'a>(commands: impl IntoIterator<Item = Result<Command<'a>, Malformed>>) -> String {
    commands
        .into_iter()
        .map(|command| command.map_or_else(|_| "x".into(), |command| command.id.to_string()))
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn lines_are_split_at_line_feeds() {
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
        assert_eq!(ids(commands(frame)), wanted, "{frame:?}");
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

#[test]
fn messages_stand_behind_their_length() {
    for (frame, wanted) in [
        (&b""[..], "x"),
        (b"\0", "0"),
        (b"\0\0", "0 0"),
        (b"\x02\x08\x01\x02\x08\x02", "1 2"),
        (b"\x02\x08\x01\0", "1 0"),
        // A length of more bytes than it needs.
        (b"\x82\x80\x00\x08\x01", "1"),
        // The frame ends in the message, in its length.
        (b"\x02\x08\x01\x02\x08", "1 x"),
        (b"\x02\x08\x01\x02", "1 x"),
        (b"\x80", "x"),
        (b"\x02\x08\x01\xff", "1 x"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "x"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "x"),
        // A field without its value; the rest isn't looked at.
        (b"\x01\x08\x02\x08\x01", "x"),
        (b"\x02\x08\x01\x01\x08\x02\x08\x02", "1 x"),
    ] {
        assert_eq!(ids(binary_commands(frame)), wanted, "{frame:?}");
    }
}

#[test]
fn malformed_messages() {
    for (what, message) in [
        ("field number 0", &b"\x00\x01"[..]),
        ("id as bytes", b"\x0a\x01\x01"),
        ("connect as a number", b"\x20\x01"),
        ("connect longer than the message", b"\x22\x05\x0a\x01a"),
        ("token not UTF-8", b"\x22\x03\x0a\x01\xff"),
        ("wire type 7", b"\x0f"),
        ("end of a group that didn't begin", b"\x0c"),
    ] {
        let mut frame = vec![message.len() as u8];
        frame.extend_from_slice(message);
        let all: Vec<_> = binary_commands(&frame).collect();
        assert_eq!(all, [Err(Malformed::Protobuf)], "{what}");
    }
    assert_eq!(binary_commands(b"").next(), Some(Err(Malformed::Blank)));
    assert_eq!(binary_commands(b"\x05").next(), Some(Err(Malformed::Length)));
    for malformed in [Malformed::Protobuf, Malformed::Length] {
        assert_eq!(malformed.disconnect().code(), 3501);
    }
}

#[test]
fn unknown_fields_are_skipped() {
    // Field 99 of each wire type, then an id.
    for unknown in [
        &b"\x98\x06\x01"[..],
        b"\x99\x06\x01\x02\x03\x04\x05\x06\x07\x08",
        b"\x9a\x06\x02ab",
        b"\x9b\x06\x08\x01\x9c\x06",
        b"\x9d\x06\x01\x02\x03\x04",
    ] {
        let mut message = unknown.to_vec();
        message.extend_from_slice(b"\x08\x07");
        let mut frame = vec![message.len() as u8];
        frame.append(&mut message);
        let all: Vec<_> = binary_commands(&frame).collect();
        assert_eq!(all, [Ok(Command { id: 7, request: Request::Unknown })], "{unknown:?}");
    }
}

#[test]
fn deep_messages_cost_no_stack() {
    let filter = |depth: usize| {
        let nested = |inner, _| schema::FilterNode { nodes: vec![inner], ..<_>::default() };
        let tf = (0..depth).fold(schema::FilterNode::default(), nested);
        let subscribe = schema::SubscribeRequest { tf: Some(tf), ..<_>::default() };
        protobuf_frame(&schema::Command { id: 1, subscribe: Some(subscribe), ..<_>::default() })
    };
    assert_eq!(ids(binary_commands(&filter(50))), "1");
    assert_eq!(ids(binary_commands(&filter(200))), "x");
    // Groups that begin and don't end.
    let frame = [&b"\xe0\xd4\x03"[..], &b"\x9b\x06".repeat(30_000)].concat();
    let mut rest = &frame[..];
    assert_eq!(prost::decode_length_delimiter(&mut rest), Ok(rest.len()));
    assert_eq!(ids(binary_commands(&frame)), "x");
}

#[test]
fn of_several_requests_in_a_message_the_first_in_order_counts() {
    let several = schema::Command {
        id: 3,
        rpc: Some(schema::RpcRequest { method: "m".into(), data: b"\0".into() }),
        send: Some(<_>::default()),
        sub_refresh: Some(<_>::default()),
        ..<_>::default()
    };
    let frame = protobuf_frame(&several);
    let Some(Ok(Command { id: 3, request: Request::Rpc(rpc) })) = binary_commands(&frame).next()
    else {
        panic!("{frame:?}")
    };
    assert_eq!((&*rpc.method, rpc.data.unwrap().bytes()), ("m", &b"\0"[..]));
    let pong = protobuf_frame(&schema::Command { id: 0, send: None, ..several.clone() });
    let pong = binary_commands(&pong).next().unwrap().unwrap();
    assert_eq!(pong, Command { id: 0, request: Request::Pong });
    let send = protobuf_frame(&schema::Command { id: 0, ..several });
    let send = binary_commands(&send).next().unwrap().unwrap();
    assert_eq!(send, Command { id: 0, request: Request::Send(SendRequest { data: None }) });
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), any::<String>()]
}

/// A payload that is JSON, so that both encodings can carry it; or none.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    any_json().prop_map(|value| match value {
        Value::Null => Vec::new(),
        value => value.to_string().into(),
    })
}

fn any_filter() -> impl Strategy<Value = schema::FilterNode> {
    let texts = || (text(), text(), text(), text(), prop::collection::vec(text(), 0..3));
    let node =
        |((op, key, cmp, val, vals), nodes)| schema::FilterNode { op, key, cmp, val, vals, nodes };
    let leaf = texts().prop_map(move |texts| node((texts, Vec::new())));
    leaf.prop_recursive(3, 8, 3, move |inner| {
        (texts(), prop::collection::vec(inner, 0..3)).prop_map(node)
    })
}

prop_compose! {
    fn any_subscribe()(
        (channel, token, epoch, delta, cursor) in (text(), text(), text(), text(), text()),
        (recover, positioned, recoverable, join_leave, asc) in any::<(bool, bool, bool, bool, bool)>(),
        (offset, flag) in any::<(u64, i64)>(),
        (r#type, phase, limit) in any::<(i32, i32, i32)>(),
        data in payload(),
        tf in prop::option::of(any_filter()),
    ) -> schema::SubscribeRequest {
        schema::SubscribeRequest {
            channel, token, recover, epoch, offset, data, positioned, recoverable, join_leave, delta,
            tf, flag, r#type, phase, cursor, limit, asc,
        }
    }
}

prop_compose! {
    fn any_connect()(
        (token, name, version, dict, profile) in (text(), text(), text(), text(), text()),
        data in payload(),
        subs in prop::collection::btree_map(text(), any_subscribe(), 0..3),
        headers in prop::collection::btree_map(text(), text(), 0..3),
        flag in any::<i64>(),
    ) -> schema::ConnectRequest {
        schema::ConnectRequest { token, data, subs, name, version, headers, flag, dict, profile }
    }
}

prop_compose! {
    fn any_history()(
        channel in text(),
        limit in any::<i32>(),
        since in prop::option::of((any::<u64>(), text())),
        reverse in any::<bool>(),
    ) -> schema::HistoryRequest {
        let since = since.map(|(offset, epoch)| schema::StreamPosition { offset, epoch });
        schema::HistoryRequest { channel, limit, since, reverse }
    }
}

prop_compose! {
    fn any_sub_refresh()(
        (channel, token, r#type) in (text(), text(), any::<i32>()),
        track in prop::collection::vec(
            (text(), prop::collection::vec((text(), any::<u64>()), 0..3)),
            0..3,
        ),
        untrack in prop::collection::vec(text(), 0..3),
    ) -> schema::SubRefreshRequest {
        let item = |(key, version)| schema::KeyedItem { key, version };
        let batch = |(signature, items): (_, Vec<_>)| schema::TrackBatch {
            signature,
            items: items.into_iter().map(item).collect(),
        };
        let track = track.into_iter().map(batch).collect();
        schema::SubRefreshRequest { channel, token, r#type, track, untrack }
    }
}

prop_compose! {
    fn any_publish()(
        (channel, data, r#type, key, removed) in
            (text(), payload(), any::<i32>(), text(), any::<bool>()),
    ) -> schema::PublishRequest {
        schema::PublishRequest { channel, data, r#type, key, removed }
    }
}

/// A command with one request, or none, as every client sends it.
fn any_command() -> impl Strategy<Value = schema::Command> {
    use schema::Command as C;
    let request = prop_oneof![
        Just(C::default()),
        Just(C { ping: Some(schema::PingRequest {}), ..C::default() }),
        any_connect().prop_map(|connect| C { connect: Some(connect), ..C::default() }),
        any_subscribe().prop_map(|subscribe| C { subscribe: Some(subscribe), ..C::default() }),
        any_history().prop_map(|history| C { history: Some(history), ..C::default() }),
        any_sub_refresh().prop_map(|request| C { sub_refresh: Some(request), ..C::default() }),
        any_publish().prop_map(|publish| C { publish: Some(publish), ..C::default() }),
        text().prop_map(|channel| C {
            unsubscribe: Some(schema::UnsubscribeRequest { channel }),
            ..C::default()
        }),
        text().prop_map(|channel| C {
            presence: Some(schema::PresenceRequest { channel }),
            ..C::default()
        }),
        text().prop_map(|channel| C {
            presence_stats: Some(schema::PresenceStatsRequest { channel }),
            ..C::default()
        }),
        text().prop_map(|token| C {
            refresh: Some(schema::RefreshRequest { token }),
            ..C::default()
        }),
        payload().prop_map(|data| C { send: Some(schema::SendRequest { data }), ..C::default() }),
        (payload(), text()).prop_map(|(data, method)| C {
            rpc: Some(schema::RpcRequest { data, method }),
            ..C::default()
        }),
    ];
    (prop_oneof![1 => Just(0), 4 => any::<u32>()], request)
        .prop_map(|(id, command)| C { id, ..command })
}

/// The object of some fields; those that are `null` are left out if `sparse`.
fn object(sparse: bool, fields: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let fields = fields.into_iter().filter(|(_, value)| !sparse || !value.is_null());
    Value::Object(fields.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}

/// The text that a JSON client sends for a command.
fn in_json(command: &schema::Command, sparse: bool) -> String {
    let fields = |fields: &[(&'static str, Value)]| object(sparse, fields.iter().cloned());
    let channel = |channel: &String| fields(&[("channel", channel.clone().into())]);
    let data = |data: &Vec<u8>| match &data[..] {
        b"" => Value::Null,
        data => serde_json::from_slice(data).unwrap(),
    };
    let subscribe = |s: &schema::SubscribeRequest| {
        fields(&[
            ("channel", s.channel.clone().into()),
            ("token", s.token.clone().into()),
            ("recover", s.recover.into()),
            ("epoch", s.epoch.clone().into()),
            ("offset", s.offset.into()),
            ("data", data(&s.data)),
            ("positioned", s.positioned.into()),
            ("recoverable", s.recoverable.into()),
            ("join_leave", s.join_leave.into()),
            ("delta", s.delta.clone().into()),
            ("tf", s.tf.as_ref().map_or(Value::Null, filter_in_json)),
            ("flag", s.flag.into()),
            ("type", s.r#type.into()),
            ("phase", s.phase.into()),
            ("cursor", s.cursor.clone().into()),
            ("limit", s.limit.into()),
            ("asc", s.asc.into()),
        ])
    };
    let connect = |c: &schema::ConnectRequest| {
        let subs: Map<_, _> = c.subs.iter().map(|(at, s)| (at.clone(), subscribe(s))).collect();
        fields(&[
            ("token", c.token.clone().into()),
            ("data", data(&c.data)),
            ("subs", subs.into()),
            ("name", c.name.clone().into()),
            ("version", c.version.clone().into()),
            ("headers", serde_json::to_value(&c.headers).unwrap()),
            ("flag", c.flag.into()),
            ("dict", c.dict.clone().into()),
            ("profile", c.profile.clone().into()),
        ])
    };
    let since = |since: &schema::StreamPosition| {
        fields(&[("offset", since.offset.into()), ("epoch", since.epoch.clone().into())])
    };
    let history = |h: &schema::HistoryRequest| {
        fields(&[
            ("channel", h.channel.clone().into()),
            ("limit", h.limit.into()),
            ("since", h.since.as_ref().map_or(Value::Null, since)),
            ("reverse", h.reverse.into()),
        ])
    };
    let publish = |p: &schema::PublishRequest| {
        let rest = fields(&[
            ("channel", p.channel.clone().into()),
            ("type", p.r#type.into()),
            ("key", p.key.clone().into()),
            ("removed", p.removed.into()),
        ]);
        // `null` would be a payload.
        match (rest, &p.data[..]) {
            (Value::Object(mut rest), sent @ [_, ..]) => {
                rest.insert("data".into(), serde_json::from_slice(sent).unwrap());
                Value::Object(rest)
            }
            (rest, _) => rest,
        }
    };
    let item = |item: &schema::KeyedItem| {
        fields(&[("key", item.key.clone().into()), ("version", item.version.into())])
    };
    let batch = |batch: &schema::TrackBatch| {
        let items: Vec<_> = batch.items.iter().map(item).collect();
        fields(&[("signature", batch.signature.clone().into()), ("items", items.into())])
    };
    let sub_refresh = |r: &schema::SubRefreshRequest| {
        fields(&[
            ("channel", r.channel.clone().into()),
            ("token", r.token.clone().into()),
            ("type", r.r#type.into()),
            ("track", r.track.iter().map(batch).collect::<Vec<_>>().into()),
            ("untrack", r.untrack.clone().into()),
        ])
    };
    let rpc = |r: &schema::RpcRequest| {
        fields(&[("data", data(&r.data)), ("method", r.method.clone().into())])
    };
    let c = command;
    fields(&[
        ("id", c.id.into()),
        ("connect", c.connect.as_ref().map_or(Value::Null, connect)),
        ("ping", c.ping.map_or(Value::Null, |_| fields(&[]))),
        ("subscribe", c.subscribe.as_ref().map_or(Value::Null, subscribe)),
        ("unsubscribe", c.unsubscribe.as_ref().map_or(Value::Null, |r| channel(&r.channel))),
        ("publish", c.publish.as_ref().map_or(Value::Null, publish)),
        ("presence", c.presence.as_ref().map_or(Value::Null, |r| channel(&r.channel))),
        ("presence_stats", c.presence_stats.as_ref().map_or(Value::Null, |r| channel(&r.channel))),
        ("history", c.history.as_ref().map_or(Value::Null, history)),
        ("rpc", c.rpc.as_ref().map_or(Value::Null, rpc)),
        ("send", c.send.as_ref().map_or(Value::Null, |r| fields(&[("data", data(&r.data))]))),
        (
            "refresh",
            c.refresh
                .as_ref()
                .map_or(Value::Null, |r| fields(&[("token", r.token.clone().into())])),
        ),
        ("sub_refresh", c.sub_refresh.as_ref().map_or(Value::Null, sub_refresh)),
    ])
    .to_string()
}

fn filter_in_json(node: &schema::FilterNode) -> Value {
    let nodes: Vec<_> = node.nodes.iter().map(filter_in_json).collect();
    object(
        false,
        [
            ("op", node.op.clone().into()),
            ("key", node.key.clone().into()),
            ("cmp", node.cmp.clone().into()),
            ("val", node.val.clone().into()),
            ("vals", node.vals.clone().into()),
            ("nodes", nodes.into()),
        ],
    )
}

/// The ids of a frame that is left after some commands, and read on from there.
fn resumed<'f, F: ?Sized>(
    frame: &'f F,
    stop: usize,
    read: impl Fn(&'f F, usize) -> Commands<'f>,
) -> String {
    let mut iterator = read(frame, 0);
    let mut seen: Vec<_> = iterator.by_ref().take(stop).collect();
    if !iterator.is_done() {
        seen.extend(read(frame, iterator.consumed()));
    }
    ids(seen)
}

proptest! {
    #[test]
    fn both_encodings_read_the_same(command in any_command(), sparse in any::<bool>()) {
        let frame = protobuf_frame(&command);
        let line = in_json(&command, sparse);
        let from_protobuf: Vec<_> = binary_commands(&frame).collect();
        let from_json: Vec<_> = commands(&line).collect();
        prop_assert_eq!(from_json.len(), 1);
        prop_assert!(from_json[0].is_ok(), "{}: {:?}", line, from_json);
        prop_assert_eq!(from_protobuf, from_json, "{}", line);
    }

    /// Whatever the frame, stopping after any command and coming back with the rest is the same as
    /// not stopping.
    #[test]
    fn lines_can_be_left_and_resumed(
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
        let resumed = resumed(&*frame, stop, |frame, at| commands(&frame[at..]));
        prop_assert_eq!(resumed, ids(commands(&frame)));
    }

    /// The same for messages, which here may be broken, cut off, or have a wrong length.
    #[test]
    fn messages_can_be_left_and_resumed(
        messages in prop::collection::vec(
            prop_oneof![
                4 => (0u32..9).prop_map(|id| {
                    protobuf_frame(&schema::Command { id, ..<_>::default() })
                }),
                1 => prop::collection::vec(any::<u8>(), 0..4),
            ],
            0..6,
        ),
        stop in 0usize..7,
    ) {
        let frame = messages.concat();
        let resumed = resumed(&*frame, stop, |frame, at| binary_commands(&frame[at..]));
        prop_assert_eq!(resumed, ids(binary_commands(&frame)));
    }

    #[test]
    fn no_text_makes_it_panic(frame in any::<String>()) {
        let mut iterator = commands(&frame);
        let count = iterator.by_ref().count();
        prop_assert!(count >= 1 && count <= frame.len().max(1));
        prop_assert!(iterator.consumed() <= frame.len());
    }

    #[test]
    fn no_bytes_make_it_panic(frame in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut iterator = binary_commands(&frame);
        let count = iterator.by_ref().count();
        prop_assert!(count >= 1 && count <= frame.len().max(1));
        prop_assert!(iterator.consumed() <= frame.len());
    }

    /// Nearly valid input gets further than random input.
    #[test]
    fn no_damage_makes_it_panic(
        command in any_command(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut frame = protobuf_frame(&command);
        let place = at.index(frame.len());
        frame[place] = byte;
        frame.truncate(cut.index(frame.len()) + 1);
        prop_assert!(binary_commands(&frame).count() >= 1);
    }
}
