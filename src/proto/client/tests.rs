//! Transcripts, tables and properties of the whole folder.

use proptest::prelude::*;
use prost::Message as _;
use serde_json::Value;

use super::json::parse;
use super::*;

mod commands;
mod replies;
mod vectors;

fn written(put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out);
    out
}

/// A Protobuf frame with one command.
fn protobuf_frame(command: &schema::Command) -> Vec<u8> {
    command.encode_length_delimited_to_vec()
}

/// The one Reply in a Protobuf frame.
fn protobuf_reply(frame: &[u8]) -> schema::Reply {
    let (message, rest) = protobuf::split(frame).unwrap();
    assert_eq!(rest, b"", "one message and no more");
    schema::Reply::decode(message).unwrap()
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
