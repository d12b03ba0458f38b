//! Replies and pushes: how each is spelled in both encodings.

use super::super::*;
use super::{any_json, protobuf_reply, written};
use crate::base::tags::Tags;
use proptest::prelude::*;
use serde_json::{Value, json};

const ENCODINGS: [Encoding; 2] = [Encoding::Json, Encoding::Protobuf];

/// `put` writes `text` in JSON, and `message` in Protobuf.
fn spelled(put: impl Fn(Encoding, &mut Vec<u8>), text: &str, message: &schema::Reply) {
    let line = String::from_utf8(written(|out| put(Encoding::Json, out))).unwrap();
    assert_eq!(line, text);
    serde_json::from_str::<Value>(&line).unwrap();
    let frame = written(|out| put(Encoding::Protobuf, out));
    assert_eq!(protobuf_reply(&frame), *message, "{text}");
}

/// The same for a reply without a body from elsewhere.
fn reply(id: u32, reply: Reply<'_>, text: &str, message: schema::Reply) {
    let put = |encoding: Encoding, out: &mut Vec<u8>| {
        assert_eq!(encoding.put_reply(out, id, &reply), None);
    };
    spelled(put, text, &schema::Reply { id, ..message });
}

/// The same for a push.
fn push(channel: &str, push: Push<'_>, text: &str, message: schema::Push) {
    let message = schema::Push { channel: channel.into(), ..message };
    spelled(
        |encoding, out| encoding.put_push(out, channel, &push),
        text,
        &schema::Reply { push: Some(message), ..<_>::default() },
    );
}

/// A publication with all that it can have, and what it is in Protobuf.
fn full_publication(tags: &[u8]) -> (Publication<'_>, schema::Publication) {
    let info = ClientInfo {
        user: "u",
        client: "c",
        conn_info: b"{\"n\":\n1}",
        chan_info: b"[]",
        subscribed_at: 7,
    };
    let publication = Publication {
        channel: "",
        data: b"{\n\"x\": 2\n}",
        form: DataForm::Plain,
        info: Some(info),
        offset: 9,
        tags: Tags::packed(tags),
        epoch: Some("e"),
        time_ms: 0,
    };
    let message = schema::Publication {
        data: b"{\n\"x\": 2\n}".into(),
        info: Some(full_info()),
        offset: 9,
        tags: [("a\"".into(), "b".into())].into(),
        epoch: "e".into(),
        ..<_>::default()
    };
    (publication, message)
}

fn full_info() -> schema::ClientInfo {
    schema::ClientInfo {
        user: "u".into(),
        client: "c".into(),
        conn_info: b"{\"n\":\n1}".into(),
        chan_info: b"[]".into(),
        subscribed_at: 7,
    }
}

const FULL_INFO: &str =
    r#"{"user":"u","client":"c","conn_info":{"n":1},"chan_info":[],"subscribed_at":7}"#;

fn full_publication_text() -> String {
    format!(
        r#"{{"data":{{"x": 2}},"info":{FULL_INFO},"offset":9,"tags":{{"a\"":"b"}},"epoch":"e"}}"#
    )
}

/// A SubscribeResult with all that it can have, and what it is in both encodings.
fn full_subscribe(list: &[u8]) -> (SubscribeResult<'_>, &'static str, schema::SubscribeResult) {
    let result = SubscribeResult {
        expires: true,
        ttl: 60,
        recoverable: true,
        epoch: "e",
        publications: Body::Here(list),
        recovered: true,
        offset: 7,
        positioned: true,
        data: b"[ 1 ]",
        was_recovering: true,
        delta: true,
    };
    let publication =
        |data: &[u8], offset| schema::Publication { data: data.into(), offset, ..<_>::default() };
    let message = schema::SubscribeResult {
        expires: true,
        ttl: 60,
        recoverable: true,
        epoch: "e".into(),
        publications: vec![publication(b"1", 8), publication(b"2", 9)],
        recovered: true,
        offset: 7,
        positioned: true,
        data: b"[ 1 ]".into(),
        was_recovering: true,
        delta: true,
        ..<_>::default()
    };
    let text = r#"{"expires":true,"ttl":60,"recoverable":true,"epoch":"e","publications":[{"data":1,"offset":8},{"data":2,"offset":9}],"recovered":true,"offset":7,"positioned":true,"data":[ 1 ],"was_recovering":true,"delta":true}"#;
    (result, text, message)
}

fn missed(encoding: Encoding) -> Vec<u8> {
    let publications = [
        Publication { data: b"1", offset: 8, ..Publication::DEFAULT },
        Publication { data: b"2", offset: 9, ..Publication::DEFAULT },
    ];
    written(|out| encoding.put_publications(out, publications))
}

#[test]
fn small_replies() {
    let none = schema::Reply::default;
    let error = |temporary| schema::Error { code: 109, message: "token expired".into(), temporary };
    let expired = ErrorCode::TokenExpired;
    reply(
        7,
        Reply::error(expired),
        r#"{"id":7,"error":{"code":109,"message":"token expired"}}"#,
        schema::Reply { error: Some(error(false)), ..none() },
    );
    reply(
        7,
        Reply::Error { code: expired, temporary: true },
        r#"{"id":7,"error":{"code":109,"message":"token expired","temporary":true}}"#,
        schema::Reply { error: Some(error(true)), ..none() },
    );
    assert!(matches!(Reply::error(ErrorCode::Internal), Reply::Error { temporary: true, .. }));
    reply(
        4,
        Reply::Unsubscribe,
        r#"{"id":4,"unsubscribe":{}}"#,
        schema::Reply { unsubscribe: Some(<_>::default()), ..none() },
    );
    reply(
        u32::MAX,
        Reply::Publish,
        r#"{"id":4294967295,"publish":{}}"#,
        schema::Reply { publish: Some(<_>::default()), ..none() },
    );
    reply(
        1,
        Reply::PresenceStats { clients: 0, users: 0 },
        r#"{"id":1,"presence_stats":{"num_clients":0,"num_users":0}}"#,
        schema::Reply { presence_stats: Some(<_>::default()), ..none() },
    );
    reply(
        1,
        Reply::PresenceStats { clients: 3, users: 2 },
        r#"{"id":1,"presence_stats":{"num_clients":3,"num_users":2}}"#,
        schema::Reply {
            presence_stats: Some(schema::PresenceStatsResult { num_clients: 3, num_users: 2 }),
            ..none()
        },
    );
    reply(
        1,
        Reply::Rpc { data: b"" },
        r#"{"id":1,"rpc":{}}"#,
        schema::Reply { rpc: Some(<_>::default()), ..none() },
    );
    reply(
        1,
        Reply::Rpc { data: b"{\"a\":\n1}" },
        r#"{"id":1,"rpc":{"data":{"a":1}}}"#,
        schema::Reply { rpc: Some(schema::RpcResult { data: b"{\"a\":\n1}".into() }), ..none() },
    );
    for (ttl, fields, expires, seconds) in
        [(Some(9), r#"{"expires":true,"ttl":9}"#, true, 9), (None, "{}", false, 0)]
    {
        let refresh = schema::RefreshResult { expires, ttl: seconds, ..<_>::default() };
        reply(
            5,
            Reply::Refresh { ttl },
            &format!(r#"{{"id":5,"refresh":{fields}}}"#),
            schema::Reply { refresh: Some(refresh), ..none() },
        );
        let sub_refresh = schema::SubRefreshResult { expires, ttl: seconds, items: vec![] };
        reply(
            6,
            Reply::SubRefresh { ttl },
            &format!(r#"{{"id":6,"sub_refresh":{fields}}}"#),
            schema::Reply { sub_refresh: Some(sub_refresh), ..none() },
        );
    }
}

#[test]
fn a_subscription_with_nothing_to_say_is_there_all_the_same() {
    let mut out = Vec::new();
    let subs = &[("a", SubscribeResult::default())];
    let result = ConnectResult { subs, ..ConnectResult::default() };
    Encoding::Protobuf.put_reply(&mut out, 1, &Reply::Connect(result));
    // Reply 1: connect { subs { key: "a", value: {} } }
    assert_eq!(out, b"\x0b\x08\x01\x2a\x07\x32\x05\x0a\x01a\x12\x00");
}

#[test]
fn subscribe_and_connect_replies() {
    let none = schema::Reply::default;
    reply(
        2,
        Reply::Subscribe(<_>::default()),
        r#"{"id":2,"subscribe":{}}"#,
        schema::Reply { subscribe: Some(<_>::default()), ..none() },
    );
    reply(
        2,
        Reply::Connect(<_>::default()),
        r#"{"id":2,"connect":{}}"#,
        schema::Reply { connect: Some(<_>::default()), ..none() },
    );
    let subscribe = |encoding: Encoding, out: &mut Vec<u8>| {
        let list = missed(encoding);
        let (result, ..) = full_subscribe(&list);
        assert_eq!(encoding.put_reply(out, 3, &Reply::Subscribe(result)), None);
    };
    let (_, text, message) = full_subscribe(b"");
    spelled(
        subscribe,
        &format!(r#"{{"id":3,"subscribe":{text}}}"#),
        &schema::Reply { id: 3, subscribe: Some(message.clone()), ..none() },
    );

    let connect_message = schema::ConnectResult {
        client: "c".into(),
        version: "v".into(),
        expires: true,
        ttl: 5,
        data: b"\"hi\"".into(),
        subs: [("news".into(), message), ("a\nb".into(), <_>::default())].into(),
        ping: 25,
        pong: true,
        session: "s".into(),
        node: "n".into(),
        time: 1_700_000_000_000,
        ..<_>::default()
    };
    let fields = format!(
        r#"{{"client":"c","version":"v","expires":true,"ttl":5,"data":"hi","subs":{{"news":{text},"a\nb":{{}}}},"ping":25,"pong":true,"session":"s","node":"n","time":1700000000000}}"#
    );
    let with_connect = |encoding: Encoding, put: &mut dyn FnMut(ConnectResult<'_>)| {
        let list = missed(encoding);
        let (result, ..) = full_subscribe(&list);
        put(ConnectResult {
            client: "c",
            version: "v",
            expires: true,
            ttl: 5,
            data: b"\"hi\"",
            subs: &[("news", result), ("a\nb", SubscribeResult::default())],
            ping: 25,
            pong: true,
            session: "s",
            node: "n",
            time: 1_700_000_000_000,
        });
    };
    spelled(
        |encoding, out| {
            with_connect(encoding, &mut |result| {
                assert_eq!(encoding.put_reply(out, 1, &Reply::Connect(result)), None);
            });
        },
        &format!(r#"{{"id":1,"connect":{fields}}}"#),
        &schema::Reply { id: 1, connect: Some(connect_message.clone()), ..none() },
    );
    let connect: schema::Connect = connect_message.into();
    spelled(
        |encoding, out| {
            with_connect(encoding, &mut |result| {
                encoding.put_push(out, "", &Push::Connect(result));
            });
        },
        &format!(r#"{{"push":{{"connect":{fields}}}}}"#),
        &schema::Reply {
            push: Some(schema::Push { connect: Some(connect), ..<_>::default() }),
            ..none()
        },
    );
}

#[test]
fn history_and_presence() {
    let none = schema::Reply::default;
    let tags = Tags::pack([("a\"", "b")]);
    let (publication, message) = full_publication(&tags);
    let text = full_publication_text();

    let full = |encoding: Encoding, out: &mut Vec<u8>| {
        let body = written(|out| {
            encoding.put_history(out, [publication, Publication::DEFAULT], "e", 9);
        });
        encoding.put_reply(out, 4, &Reply::History(Body::Here(&body)));
    };
    let history = schema::HistoryResult {
        publications: vec![message, <_>::default()],
        epoch: "e".into(),
        offset: 9,
    };
    spelled(
        full,
        &format!(r#"{{"id":4,"history":{{"publications":[{text},{{}}],"epoch":"e","offset":9}}}}"#),
        &schema::Reply { id: 4, history: Some(history), ..none() },
    );
    let empty = |encoding: Encoding, out: &mut Vec<u8>| {
        let body = written(|out| encoding.put_history(out, [], "", 0));
        encoding.put_reply(out, 4, &Reply::History(Body::Here(&body)));
    };
    spelled(
        empty,
        r#"{"id":4,"history":{"publications":[],"epoch":"","offset":0}}"#,
        &schema::Reply { id: 4, history: Some(<_>::default()), ..none() },
    );

    let info = publication.info.unwrap();
    let nobody = ClientInfo { client: "d", ..<_>::default() };
    let full = |encoding: Encoding, out: &mut Vec<u8>| {
        let body = written(|out| encoding.put_presence(out, [info, nobody]));
        encoding.put_reply(out, 4, &Reply::Presence(Body::Here(&body)));
    };
    let presence = [
        ("c".into(), full_info()),
        ("d".into(), schema::ClientInfo { client: "d".into(), ..<_>::default() }),
    ];
    spelled(
        full,
        &format!(
            r#"{{"id":4,"presence":{{"presence":{{"c":{FULL_INFO},"d":{{"user":"","client":"d"}}}}}}}}"#
        ),
        &schema::Reply {
            id: 4,
            presence: Some(schema::PresenceResult { presence: presence.into() }),
            ..none()
        },
    );
    let empty = |encoding: Encoding, out: &mut Vec<u8>| {
        let body = written(|out| encoding.put_presence(out, []));
        encoding.put_reply(out, 4, &Reply::Presence(Body::Here(&body)));
    };
    spelled(
        empty,
        r#"{"id":4,"presence":{"presence":{}}}"#,
        &schema::Reply { id: 4, presence: Some(<_>::default()), ..none() },
    );
}

#[test]
fn pushes() {
    let none = schema::Push::default;
    let tags = Tags::pack([("a\"", "b")]);
    let (publication, message) = full_publication(&tags);
    push(
        "c",
        Push::Publication(publication),
        &format!(r#"{{"push":{{"channel":"c","pub":{}}}}}"#, full_publication_text()),
        schema::Push { r#pub: Some(message), ..none() },
    );
    push(
        "c",
        Push::Publication(Publication::DEFAULT),
        r#"{"push":{"channel":"c","pub":{}}}"#,
        schema::Push { r#pub: Some(<_>::default()), ..none() },
    );
    let info = publication.info.unwrap();
    push(
        "c",
        Push::Join(info),
        &format!(r#"{{"push":{{"channel":"c","join":{{"info":{FULL_INFO}}}}}}}"#),
        schema::Push { join: Some(schema::Join { info: Some(full_info()) }), ..none() },
    );
    push(
        "c",
        Push::Leave(<_>::default()),
        r#"{"push":{"channel":"c","leave":{"info":{"user":"","client":""}}}}"#,
        schema::Push { leave: Some(schema::Leave { info: Some(<_>::default()) }), ..none() },
    );
    let ended = schema::Unsubscribe { code: 2500, reason: "insufficient state".into() };
    push(
        "c",
        Push::Unsubscribe { code: 2500, reason: Unsubscribed::InsufficientState.reason() },
        r#"{"push":{"channel":"c","unsubscribe":{"code":2500,"reason":"insufficient state"}}}"#,
        schema::Push { unsubscribe: Some(ended), ..none() },
    );
    let made =
        SubscribePush { recoverable: true, epoch: "e", offset: 3, positioned: true, data: b"{\n}" };
    push(
        "c",
        Push::Subscribe(made),
        r#"{"push":{"channel":"c","subscribe":{"recoverable":true,"epoch":"e","offset":3,"positioned":true,"data":{}}}}"#,
        schema::Push {
            subscribe: Some(schema::Subscribe {
                recoverable: true,
                epoch: "e".into(),
                offset: 3,
                positioned: true,
                data: b"{\n}".into(),
            }),
            ..none()
        },
    );
    push(
        "",
        Push::Message(b"[1]"),
        r#"{"push":{"message":{"data":[1]}}}"#,
        schema::Push { message: Some(schema::Message { data: b"[1]".into() }), ..none() },
    );
    let why = Disconnect::Shutdown;
    push(
        "",
        Push::Disconnect { code: why.code(), reason: why.reason() },
        r#"{"push":{"disconnect":{"code":3001,"reason":"shutdown"}}}"#,
        schema::Push {
            disconnect: Some(schema::Disconnect {
                code: 3001,
                reason: "shutdown".into(),
                ..<_>::default()
            }),
            ..none()
        },
    );
    for (ttl, fields, expires, seconds) in
        [(Some(9), r#"{"expires":true,"ttl":9}"#, true, 9), (None, "{}", false, 0)]
    {
        push(
            "",
            Push::Refresh { ttl },
            &format!(r#"{{"push":{{"refresh":{fields}}}}}"#),
            schema::Push { refresh: Some(schema::Refresh { expires, ttl: seconds }), ..none() },
        );
    }
}

#[test]
fn data_has_three_forms() {
    let data = "{\"a\":\n\"é\"}".as_bytes();
    for (form, text, delta) in [
        (DataForm::Plain, r#"{"data":{"a":"é"}}"#, false),
        (DataForm::Text, r#"{"data":"{\"a\":\n\"é\"}"}"#, false),
        (DataForm::Patch, r#"{"data":"{\"a\":\n\"é\"}","delta":true}"#, true),
    ] {
        push(
            "c",
            Push::Publication(Publication { data, form, ..Publication::DEFAULT }),
            &format!(r#"{{"push":{{"channel":"c","pub":{text}}}}}"#),
            schema::Push {
                r#pub: Some(schema::Publication { data: data.into(), delta, ..<_>::default() }),
                ..<_>::default()
            },
        );
    }
    // A patch that cuts a character is a fault of the caller, and still JSON.
    let cut = Publication { data: b"\xc3", form: DataForm::Patch, ..Publication::DEFAULT };
    let line = written(|out| Encoding::Json.put_push(out, "c", &Push::Publication(cut)));
    assert!(is_json(&line));
}

#[test]
fn an_empty_body_is_an_empty_result() {
    for body in [Body::Here(b""), Body::Elsewhere(0)] {
        let empty = schema::Reply::default;
        reply(
            4,
            Reply::History(body),
            r#"{"id":4,"history":{}}"#,
            schema::Reply { history: Some(<_>::default()), ..empty() },
        );
        let subscribe = SubscribeResult { publications: body, ..<_>::default() };
        reply(
            4,
            Reply::Subscribe(subscribe),
            r#"{"id":4,"subscribe":{}}"#,
            schema::Reply { subscribe: Some(<_>::default()), ..empty() },
        );
    }
    for encoding in ENCODINGS {
        assert_eq!(written(|out| encoding.put_publications(out, [])), b"");
    }
}

#[test]
fn json_texts_are_recognised() {
    for (data, wanted) in [
        (&b"{}"[..], true),
        (b" [1,\n2] ", true),
        (b"null", true),
        (b"-1.5e3", true),
        (b"\"\\ud800\"", true),
        ("\"é\"".as_bytes(), true),
        (b"", false),
        (b" ", false),
        (b"{", false),
        (b"{}{}", false),
        (b"{},", false),
        (b"01", false),
        (b"'a'", false),
        (b"\"\n\"", false),
        (b"\"\xff\"", false),
        (b"\xef\xbb\xbf{}", false),
        (b"\0", false),
    ] {
        assert_eq!(is_json(data), wanted, "{}", data.escape_ascii());
    }
    let deep = [vec![b'['; 60_000], vec![b']'; 60_000]].concat();
    assert!(is_json(&deep));
    assert!(!is_json(&deep[1..]));
}

/// Writes a reply that has a body.
type PutWithBody<'a> = dyn Fn(Body<'_>, &mut Vec<u8>) -> Option<usize> + 'a;

fn any_form() -> impl Strategy<Value = DataForm> {
    prop_oneof![Just(DataForm::Plain), Just(DataForm::Text), Just(DataForm::Patch)]
}

proptest! {
    #[test]
    fn pushes_read_back(
        channel in any::<String>(),
        data in any_json(),
        form in any_form(),
        user in any::<String>(),
        conn_info in prop::option::of(any_json()),
        offset in any::<u64>(),
        epoch in prop::option::of("[a-z]{1,8}"),
        tags in prop::collection::btree_map(any::<String>(), any::<String>(), 0..3),
        pretty in any::<bool>(),
    ) {
        let text = |value: &Value| match pretty {
            true => serde_json::to_string_pretty(value).unwrap(),
            false => value.to_string(),
        };
        let payload = text(&data);
        prop_assert!(is_json(payload.as_bytes()));
        let conn_info_text = conn_info.as_ref().map(text).unwrap_or_default();
        let packed = Tags::pack(tags.iter().map(|(name, value)| (&**name, &**value)));
        let publication = Publication {
            channel: "",
            data: payload.as_bytes(),
            form,
            info: Some(ClientInfo {
                user: &user,
                client: "client",
                conn_info: conn_info_text.as_bytes(),
                ..<_>::default()
            }),
            offset,
            tags: Tags::packed(&packed),
            epoch: epoch.as_deref(),
            time_ms: 0,
        };
        let push = Push::Publication(publication);

        let line = written(|out| Encoding::Json.put_push(out, &channel, &push));
        prop_assert!(!line.contains(&b'\n'));
        let mut wanted_info = json!({"user": user, "client": "client"});
        if let Some(conn_info) = conn_info {
            wanted_info["conn_info"] = conn_info;
        }
        let wanted_data = if form == DataForm::Plain { data } else { payload.clone().into() };
        let mut wanted = json!({"push": {"pub": {"data": wanted_data, "info": wanted_info}}});
        if !channel.is_empty() {
            wanted["push"]["channel"] = channel.clone().into();
        }
        if offset > 0 {
            wanted["push"]["pub"]["offset"] = offset.into();
        }
        if !tags.is_empty() {
            wanted["push"]["pub"]["tags"] = json!(tags);
        }
        if form == DataForm::Patch {
            wanted["push"]["pub"]["delta"] = true.into();
        }
        if let Some(epoch) = &epoch {
            wanted["push"]["pub"]["epoch"] = epoch.clone().into();
        }
        prop_assert_eq!(serde_json::from_slice::<Value>(&line).unwrap(), wanted);

        let frame = written(|out| Encoding::Protobuf.put_push(out, &channel, &push));
        let wanted = schema::Publication {
            data: payload.into(),
            info: Some(schema::ClientInfo {
                user,
                client: "client".into(),
                conn_info: conn_info_text.into(),
                ..<_>::default()
            }),
            offset,
            tags,
            delta: form == DataForm::Patch,
            epoch: epoch.unwrap_or_default(),
            ..<_>::default()
        };
        let wanted = schema::Push { channel, r#pub: Some(wanted), ..<_>::default() };
        prop_assert_eq!(protobuf_reply(&frame).push, Some(wanted));
    }

    /// A body put in by the caller is the same as one given.
    #[test]
    fn bodies_from_elsewhere_are_spliced(
        before in prop::collection::vec(any::<u8>(), 0..9),
        id in any::<u32>(),
        payloads in prop::collection::vec(any_json(), 1..9),
        epoch in "[a-z]{0,8}",
        delta in any::<bool>(),
    ) {
        let payloads: Vec<_> = payloads.iter().map(Value::to_string).collect();
        let publications = || payloads.iter().zip(1..).map(|(data, offset)| Publication {
            data: data.as_bytes(),
            offset,
            ..Publication::DEFAULT
        });
        let clients: Vec<_> = (0..payloads.len()).map(|at| at.to_string()).collect();
        let entries = clients.iter().map(|client| ClientInfo { client, ..<_>::default() });
        for encoding in ENCODINGS {
            let list = written(|out| encoding.put_publications(out, publications()));
            let history = written(|out| encoding.put_history(out, publications(), &epoch, 9));
            let presence = written(|out| encoding.put_presence(out, entries.clone()));
            let replies: [(_, &PutWithBody<'_>); 3] = [
                (list, &|body, out| {
                    let epoch = epoch.as_str();
                    let result = SubscribeResult {
                        publications: body, epoch, delta, recovered: true, ..<_>::default()
                    };
                    encoding.put_reply(out, id, &Reply::Subscribe(result))
                }),
                (history, &|body, out| encoding.put_reply(out, id, &Reply::History(body))),
                (presence, &|body, out| encoding.put_reply(out, id, &Reply::Presence(body))),
            ];
            for (body, put) in replies {
                let mut here = before.clone();
                prop_assert_eq!(put(Body::Here(&body), &mut here), None);
                let mut spliced = before.clone();
                let at = put(Body::Elsewhere(body.len()), &mut spliced).unwrap();
                spliced.splice(at..at, body);
                prop_assert_eq!(spliced, here);
            }
        }
    }
}
