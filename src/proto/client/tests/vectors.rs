//! The protocol's test vectors (section 27), byte for byte.

use prost::Message as _;

use super::super::*;
use super::{parse, protobuf_frame, protobuf_reply, written};

/// A line of JSON replies as a frame carries it.
fn json_reply(id: u32, reply: &Reply<'_>) -> String {
    String::from_utf8(written(|out| _ = Encoding::Json.put_reply(out, id, reply))).unwrap()
}

#[test]
fn transcript_in_json() {
    let frame = "{\"id\":1,\"connect\":{\"name\":\"js\"}}\n\
                 {\"id\":2,\"subscribe\":{\"channel\":\"test\",\"flag\":1}}";
    let batch: Vec<_> = commands(frame).map(Result::unwrap).collect();
    let wanted = [
        Command {
            id: 1,
            request: Request::Connect(ConnectRequest { name: "js".into(), ..<_>::default() }),
        },
        Command {
            id: 2,
            request: Request::Subscribe(SubscribeRequest {
                channel: "test".into(),
                flag: 1,
                ..<_>::default()
            }),
        },
    ];
    assert_eq!(batch, wanted);
    let connected = ConnectResult {
        client: "3f1c...",
        version: "1.0.0",
        ping: 25,
        pong: true,
        ..<_>::default()
    };
    assert_eq!(
        json_reply(1, &Reply::Connect(connected)),
        r#"{"id":1,"connect":{"client":"3f1c...","version":"1.0.0","ping":25,"pong":true}}"#
    );
    let subscribed = SubscribeResult {
        recoverable: true,
        epoch: "QwErTyUi",
        positioned: true,
        ..<_>::default()
    };
    assert_eq!(
        json_reply(2, &Reply::Subscribe(subscribed)),
        r#"{"id":2,"subscribe":{"recoverable":true,"epoch":"QwErTyUi","positioned":true}}"#
    );

    let command = parse(r#"{"id":3,"publish":{"channel":"test","data":{"a":1}}}"#).unwrap();
    let Request::Publish(publish) = command.request else { panic!("{command:?}") };
    let data = publish.data.unwrap();
    assert_eq!((&*publish.channel, data.bytes()), ("test", &br#"{"a":1}"#[..]));
    let publication = Publication {
        data: data.bytes(),
        info: Some(ClientInfo { client: "3f1c...", ..<_>::default() }),
        offset: 1,
        ..Publication::DEFAULT
    };
    let live = Publication { epoch: Some("QwErTyUi"), ..publication };
    let frame = written(|out| {
        Encoding::Json.put_push(out, "test", &Push::Publication(live));
        out.push(b'\n');
        Encoding::Json.put_reply(out, 3, &Reply::Publish);
    });
    assert_eq!(
        String::from_utf8(frame).unwrap(),
        "{\"push\":{\"channel\":\"test\",\"pub\":{\"data\":{\"a\":1},\
         \"info\":{\"user\":\"\",\"client\":\"3f1c...\"},\"offset\":1,\"epoch\":\"QwErTyUi\"}}}\n\
         {\"id\":3,\"publish\":{}}"
    );

    assert_eq!(Encoding::Json.ping(), b"{}");
    assert_eq!(parse("{}").unwrap(), Command { id: 0, request: Request::Pong });

    let command = parse(r#"{"id":4,"history":{"channel":"test","limit":10}}"#).unwrap();
    let wanted = HistoryRequest { channel: "test".into(), limit: 10, ..<_>::default() };
    assert_eq!(command, Command { id: 4, request: Request::History(wanted) });
    let history = written(|out| Encoding::Json.put_history(out, [publication], "QwErTyUi", 1));
    assert_eq!(
        json_reply(4, &Reply::History(Body::Here(&history))),
        r#"{"id":4,"history":{"publications":[{"data":{"a":1},"info":{"user":"","client":"3f1c..."},"offset":1}],"epoch":"QwErTyUi","offset":1}}"#
    );

    let command = parse(r#"{"id":5,"subscribe":{"channel":"nope:x"}}"#).unwrap();
    let wanted = SubscribeRequest { channel: "nope:x".into(), ..<_>::default() };
    assert_eq!(command, Command { id: 5, request: Request::Subscribe(wanted) });
    assert_eq!(
        json_reply(5, &Reply::error(ErrorCode::UnknownChannel)),
        r#"{"id":5,"error":{"code":102,"message":"unknown channel"}}"#
    );
}

fn hex(text: &str) -> Vec<u8> {
    text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

#[test]
fn commands_in_protobuf() {
    let command = |id| schema::Command { id, ..<_>::default() };
    let js = schema::ConnectRequest { name: "js".into(), ..<_>::default() };
    let test = schema::SubscribeRequest { channel: "test".into(), ..<_>::default() };
    let rows = [
        (
            "04 08 01 22 00",
            Command { id: 1, request: Request::Connect(<_>::default()) },
            schema::Command { connect: Some(<_>::default()), ..command(1) },
        ),
        (
            "08 08 01 22 04 22 02 6a 73",
            Command {
                id: 1,
                request: Request::Connect(ConnectRequest { name: "js".into(), ..<_>::default() }),
            },
            schema::Command { connect: Some(js), ..command(1) },
        ),
        (
            "0a 08 02 2a 06 0a 04 74 65 73 74",
            Command {
                id: 2,
                request: Request::Subscribe(SubscribeRequest {
                    channel: "test".into(),
                    ..<_>::default()
                }),
            },
            schema::Command { subscribe: Some(test), ..command(2) },
        ),
        ("00", Command { id: 0, request: Request::Pong }, command(0)),
    ];
    for (frame, wanted, message) in rows {
        let frame = hex(frame);
        assert_eq!(protobuf_frame(&message), frame);
        let all: Vec<_> = binary_commands(&frame).collect();
        assert_eq!(all, [Ok(wanted)]);
    }
}

#[test]
fn replies_in_protobuf() {
    let connected = ConnectResult {
        client: "3f1c2a9e-0000-4000-8000-000000000001",
        version: "1.0.0",
        ping: 25,
        pong: true,
        ..<_>::default()
    };
    let publication = Publication { data: b"{}", offset: 1, ..Publication::DEFAULT };
    let encoding = Encoding::Protobuf;
    let rows = [
        (
            "19 08 02 12 15 08 67 12 11 70 65 72 6d 69 73 73 69 6f 6e 20 64 65 6e 69 65 64",
            written(|out| {
                encoding.put_reply(out, 2, &Reply::error(ErrorCode::PermissionDenied));
            }),
        ),
        (
            "10 22 0e 12 04 74 65 73 74 22 06 22 02 7b 7d 30 01",
            written(|out| encoding.put_push(out, "test", &Push::Publication(publication))),
        ),
        ("00", encoding.ping().to_vec()),
        (
            "35 08 01 2a 31 0a 24 33 66 31 63 32 61 39 65 2d 30 30 30 30 2d 34 30 30 30 2d 38 30 \
             30 30 2d 30 30 30 30 30 30 30 30 30 30 30 31 12 05 31 2e 30 2e 30 38 19 40 01",
            written(|out| {
                encoding.put_reply(out, 1, &Reply::Connect(connected));
            }),
        ),
    ];
    for (wanted, frame) in rows {
        assert_eq!(frame, hex(wanted));
        // And back: nothing in them is unknown.
        assert_eq!(protobuf_reply(&frame).encode_length_delimited_to_vec(), frame);
    }
}
