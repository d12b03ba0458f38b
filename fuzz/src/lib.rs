//! What the targets for commands share: a command is written again, in both encodings, and has to be
//! read as the same.

use std::collections::BTreeMap;

use prost::Message as _;
use roost::base::filter::FilterNode;
use roost::proto::client::{
    Command, Payload, Request, SubscribeRequest, binary_commands, commands, is_json,
};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

#[allow(dead_code, missing_docs, reason = "made by a tool, of all messages")]
#[path = "../../src/proto/client/schema.rs"]
mod schema;

/// More than a filter may have, and fewer than make JSON's reader refuse.
const FILTER_LEVELS_MAX: usize = 40;

/// Writes a command in Protobuf and, where JSON can say it, in JSON; reads it, and compares.
///
/// # Panics
/// When one of them is read as anything but this command.
pub fn check(command: &Command<'_>) {
    let frame = protobuf(command).encode_length_delimited_to_vec();
    let mut all = binary_commands(&frame);
    let Some(Ok(again)) = all.next() else { panic!("no Protobuf: {command:?}") };
    assert_eq!(&again, command, "Protobuf");
    assert!(all.is_done());
    let Some(line) = json(command) else { return };
    let mut all = commands(&line);
    let Some(Ok(again)) = all.next() else { panic!("no JSON: {line}") };
    assert_eq!(&again, command, "JSON: {line}");
    assert!(all.is_done());
}

fn protobuf(command: &Command<'_>) -> schema::Command {
    let mut message = schema::Command { id: command.id, ..<_>::default() };
    match &command.request {
        Request::Pong | Request::Unknown => {}
        Request::Ping => message.ping = Some(schema::PingRequest {}),
        Request::Connect(request) => {
            let subs = request.subs.iter();
            let headers = request.headers.iter();
            message.connect = Some(schema::ConnectRequest {
                token: request.token.to_string(),
                data: bytes(request.data.as_ref()),
                subs: subs.map(|(name, sub)| (name.to_string(), subscribe(sub))).collect(),
                name: request.name.to_string(),
                version: request.version.to_string(),
                headers: headers.map(|(k, v)| (k.to_string(), v.to_string())).collect(),
                flag: request.flag,
                ..<_>::default()
            });
        }
        Request::Subscribe(request) => message.subscribe = Some(subscribe(request)),
        Request::Unsubscribe(request) => {
            let channel = request.channel.to_string();
            message.unsubscribe = Some(schema::UnsubscribeRequest { channel });
        }
        Request::Publish(request) => {
            message.publish = Some(schema::PublishRequest {
                channel: request.channel.to_string(),
                data: bytes(request.data.as_ref()),
                r#type: request.kind,
                key: request.key.to_string(),
                removed: request.removed,
            });
        }
        Request::Presence(request) => {
            let channel = request.channel.to_string();
            message.presence = Some(schema::PresenceRequest { channel });
        }
        Request::PresenceStats(request) => {
            let channel = request.channel.to_string();
            message.presence_stats = Some(schema::PresenceStatsRequest { channel });
        }
        Request::History(request) => {
            message.history = Some(schema::HistoryRequest {
                channel: request.channel.to_string(),
                limit: request.limit,
                since: request.since.as_ref().map(|since| schema::StreamPosition {
                    offset: since.offset,
                    epoch: since.epoch.to_string(),
                }),
                reverse: request.reverse,
            });
        }
        Request::Rpc(request) => {
            let method = request.method.to_string();
            message.rpc = Some(schema::RpcRequest { data: bytes(request.data.as_ref()), method });
        }
        Request::Send(request) => {
            message.send = Some(schema::SendRequest { data: bytes(request.data.as_ref()) });
        }
        Request::Refresh(request) => {
            message.refresh = Some(schema::RefreshRequest { token: request.token.to_string() });
        }
        Request::SubRefresh(request) => {
            message.sub_refresh = Some(schema::SubRefreshRequest {
                channel: request.channel.to_string(),
                token: request.token.to_string(),
                r#type: request.kind,
                track: vec![<_>::default(); request.track],
                untrack: vec![String::new(); request.untrack],
            });
        }
    }
    message
}

fn bytes(payload: Option<&Payload<'_>>) -> Vec<u8> {
    payload.map(|payload| payload.bytes().to_vec()).unwrap_or_default()
}

fn subscribe(request: &SubscribeRequest<'_>) -> schema::SubscribeRequest {
    schema::SubscribeRequest {
        channel: request.channel.to_string(),
        token: request.token.to_string(),
        recover: request.recover,
        epoch: request.epoch.to_string(),
        offset: request.offset,
        data: bytes(request.data.as_ref()),
        positioned: request.positioned,
        recoverable: request.recoverable,
        join_leave: request.join_leave,
        delta: request.delta.to_string(),
        tf: request.tf.as_ref().map(filter),
        flag: request.flag,
        r#type: request.kind,
        phase: request.phase,
        cursor: request.cursor.to_string(),
        limit: request.limit,
        asc: request.asc,
    }
}

fn filter(node: &FilterNode) -> schema::FilterNode {
    let FilterNode { op, key, cmp, val, vals, nodes } = node.clone();
    schema::FilterNode { op, key, cmp, val, vals, nodes: nodes.iter().map(filter).collect() }
}

/// The command as a line; `None` when a payload or a filter of it is none that JSON can say.
fn json(command: &Command<'_>) -> Option<String> {
    let (name, request) = match &command.request {
        Request::Pong | Request::Unknown => return Some(json!({ "id": command.id }).to_string()),
        Request::Ping => ("ping", object(json!({}), None)?),
        Request::Connect(request) => {
            let mut subs = BTreeMap::new();
            for (channel, sub) in &request.subs {
                subs.insert(channel, subscribe_json(sub)?);
            }
            let fields = json!({
                "token": request.token,
                "name": request.name,
                "version": request.version,
                "headers": request.headers,
                "flag": request.flag,
            });
            let mut fields = raw_fields(fields, request.data.as_ref())?;
            fields.insert("subs".to_owned(), to_raw_value(&subs).ok()?);
            ("connect", to_raw_value(&fields).ok()?)
        }
        Request::Subscribe(request) => ("subscribe", subscribe_json(request)?),
        Request::Unsubscribe(request) => {
            ("unsubscribe", object(json!({ "channel": request.channel }), None)?)
        }
        Request::Publish(request) => {
            let fields = json!({
                "channel": request.channel,
                "type": request.kind,
                "key": request.key,
                "removed": request.removed,
            });
            ("publish", object(fields, request.data.as_ref())?)
        }
        Request::Presence(request) => {
            ("presence", object(json!({ "channel": request.channel }), None)?)
        }
        Request::PresenceStats(request) => {
            ("presence_stats", object(json!({ "channel": request.channel }), None)?)
        }
        Request::History(request) => {
            let since = request.since.as_ref();
            let fields = json!({
                "channel": request.channel,
                "limit": request.limit,
                "since": since.map(|at| json!({ "offset": at.offset, "epoch": at.epoch })),
                "reverse": request.reverse,
            });
            ("history", object(fields, None)?)
        }
        Request::Rpc(request) => {
            ("rpc", object(json!({ "method": request.method }), request.data.as_ref())?)
        }
        Request::Send(request) => ("send", object(json!({}), request.data.as_ref())?),
        Request::Refresh(request) => ("refresh", object(json!({ "token": request.token }), None)?),
        Request::SubRefresh(request) => {
            let fields = json!({
                "channel": request.channel,
                "token": request.token,
                "type": request.kind,
                "track": vec![json!({}); request.track],
                "untrack": vec![""; request.untrack],
            });
            ("sub_refresh", object(fields, None)?)
        }
    };
    Some(format!(r#"{{"{name}":{request},"id":{}}}"#, command.id))
}

fn subscribe_json(request: &SubscribeRequest<'_>) -> Option<Box<RawValue>> {
    if request.tf.as_ref().is_some_and(|node| levels(node) > FILTER_LEVELS_MAX) {
        return None;
    }
    let fields = json!({
        "channel": request.channel,
        "token": request.token,
        "recover": request.recover,
        "epoch": request.epoch,
        "offset": request.offset,
        "positioned": request.positioned,
        "recoverable": request.recoverable,
        "join_leave": request.join_leave,
        "delta": request.delta,
        "tf": request.tf.as_ref().map(filter_json),
        "flag": request.flag,
        "type": request.kind,
        "phase": request.phase,
        "cursor": request.cursor,
        "limit": request.limit,
        "asc": request.asc,
    });
    object(fields, request.data.as_ref())
}

fn levels(node: &FilterNode) -> usize {
    1 + node.nodes.iter().map(levels).max().unwrap_or(0)
}

fn filter_json(node: &FilterNode) -> Value {
    json!({
        "op": node.op,
        "key": node.key,
        "cmp": node.cmp,
        "val": node.val,
        "vals": node.vals,
        "nodes": node.nodes.iter().map(filter_json).collect::<Vec<_>>(),
    })
}

/// The object of these fields and, as `data`, a payload.
fn object(fields: Value, data: Option<&Payload<'_>>) -> Option<Box<RawValue>> {
    to_raw_value(&raw_fields(fields, data)?).ok()
}

fn raw_fields(
    fields: Value,
    data: Option<&Payload<'_>>,
) -> Option<BTreeMap<String, Box<RawValue>>> {
    let Value::Object(fields) = fields else { return None };
    let mut raw = BTreeMap::new();
    for (name, value) in fields {
        raw.insert(name, to_raw_value(&value).ok()?);
    }
    if let Some(data) = data {
        raw.insert("data".to_owned(), payload_json(data.bytes())?);
    }
    Some(raw)
}

/// A payload that JSON says byte for byte: one text, in one line, and something.
fn payload_json(bytes: &[u8]) -> Option<Box<RawValue>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let is_exact = is_json(bytes) && text.trim_ascii() == text && text != "null";
    (is_exact && !text.contains('\n')).then(|| RawValue::from_string(text.to_owned()).ok())?
}
