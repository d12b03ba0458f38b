//! The client protocol as clients speak it: one set of messages, in JSON and in Protobuf. Fields that
//! the server may not send are left out, so that one of them in JSON is a fault.

use std::collections::BTreeMap;

use prost::Message;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Payloads are JSON in JSON.
fn put_raw<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    let raw: &RawValue = serde_json::from_slice(bytes).map_err(serde::ser::Error::custom)?;
    raw.serialize(to)
}

fn raw<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    Ok(Box::<RawValue>::deserialize(from)?.get().as_bytes().to_vec())
}

/// A struct that is both.
macro_rules! requests {
    ($($(#[$attr:meta])* $name:ident { $($(#[$field_attr:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$attr])*
            #[derive(Clone, PartialEq, Message, Serialize)]
            pub(crate) struct $name {
                $(
                    $(#[$field_attr])*
                    #[serde(skip_serializing_if = "is_default")]
                    pub(crate) $field: $type,
                )*
            }
        )*
    };
}

requests! {
    Command {
        #[prost(uint32, tag = "1")]
        id: u32,
        #[prost(message, optional, tag = "4")]
        connect: Option<ConnectRequest>,
        #[prost(message, optional, tag = "5")]
        subscribe: Option<SubscribeRequest>,
        #[prost(message, optional, tag = "6")]
        unsubscribe: Option<ChannelRequest>,
        #[prost(message, optional, tag = "7")]
        publish: Option<PublishRequest>,
        #[prost(message, optional, tag = "8")]
        presence: Option<ChannelRequest>,
        #[prost(message, optional, tag = "9")]
        presence_stats: Option<ChannelRequest>,
        #[prost(message, optional, tag = "10")]
        history: Option<HistoryRequest>,
        #[prost(message, optional, tag = "13")]
        rpc: Option<RpcRequest>,
        #[prost(message, optional, tag = "14")]
        refresh: Option<RefreshRequest>,
    }
    ConnectRequest {
        #[prost(string, tag = "1")]
        token: String,
        #[prost(btree_map = "string, message", tag = "3")]
        subs: BTreeMap<String, SubscribeRequest>,
    }
    SubscribeRequest {
        #[prost(string, tag = "1")]
        channel: String,
        #[prost(bool, tag = "3")]
        recover: bool,
        #[prost(string, tag = "6")]
        epoch: String,
        #[prost(uint64, tag = "7")]
        offset: u64,
        #[prost(bool, tag = "9")]
        positioned: bool,
        #[prost(bool, tag = "10")]
        recoverable: bool,
        #[prost(bool, tag = "11")]
        join_leave: bool,
        #[prost(string, tag = "12")]
        delta: String,
        #[prost(message, optional, tag = "13")]
        tf: Option<FilterNode>,
        #[prost(int64, tag = "14")]
        flag: i64,
    }
    FilterNode {
        #[prost(string, tag = "1")]
        op: String,
        #[prost(string, tag = "2")]
        key: String,
        #[prost(string, tag = "3")]
        cmp: String,
        #[prost(string, tag = "4")]
        val: String,
        #[prost(string, repeated, tag = "5")]
        vals: Vec<String>,
        #[prost(message, repeated, tag = "6")]
        nodes: Vec<FilterNode>,
    }
    ChannelRequest {
        #[prost(string, tag = "1")]
        channel: String,
    }
    PublishRequest {
        #[prost(string, tag = "1")]
        channel: String,
        #[prost(bytes = "vec", tag = "2")]
        #[serde(serialize_with = "put_raw")]
        data: Vec<u8>,
    }
    HistoryRequest {
        #[prost(string, tag = "1")]
        channel: String,
        #[prost(int32, tag = "7")]
        limit: i32,
        #[prost(message, optional, tag = "8")]
        since: Option<StreamPosition>,
        #[prost(bool, tag = "9")]
        reverse: bool,
    }
    StreamPosition {
        #[prost(uint64, tag = "1")]
        offset: u64,
        #[prost(string, tag = "2")]
        epoch: String,
    }
    RpcRequest {
        #[prost(bytes = "vec", tag = "1")]
        #[serde(serialize_with = "put_raw")]
        data: Vec<u8>,
    }
    RefreshRequest {
        #[prost(string, tag = "1")]
        token: String,
    }
}

macro_rules! answers {
    ($($(#[$attr:meta])* $name:ident { $($(#[$field_attr:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$attr])*
            #[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
            #[serde(default, deny_unknown_fields)]
            pub(crate) struct $name {
                $(
                    $(#[$field_attr])*
                    #[serde(skip_serializing_if = "is_default")]
                    pub(crate) $field: $type,
                )*
            }
        )*
    };
}

answers! {
    Reply {
        #[prost(uint32, tag = "1")]
        id: u32,
        #[prost(message, optional, tag = "2")]
        error: Option<Error>,
        #[prost(message, optional, tag = "4")]
        push: Option<Push>,
        #[prost(message, optional, tag = "5")]
        connect: Option<ConnectResult>,
        #[prost(message, optional, tag = "6")]
        subscribe: Option<SubscribeResult>,
        #[prost(message, optional, tag = "7")]
        unsubscribe: Option<Empty>,
        #[prost(message, optional, tag = "8")]
        publish: Option<Empty>,
        #[prost(message, optional, tag = "9")]
        presence: Option<PresenceResult>,
        #[prost(message, optional, tag = "10")]
        presence_stats: Option<PresenceStatsResult>,
        #[prost(message, optional, tag = "11")]
        history: Option<HistoryResult>,
        #[prost(message, optional, tag = "14")]
        refresh: Option<Empty>,
    }
    Push {
        #[prost(string, tag = "2")]
        channel: String,
        #[prost(message, optional, tag = "4")]
        r#pub: Option<Publication>,
        #[prost(message, optional, tag = "5")]
        join: Option<Event>,
        #[prost(message, optional, tag = "6")]
        leave: Option<Event>,
        #[prost(message, optional, tag = "7")]
        unsubscribe: Option<Unsubscribe>,
        #[prost(message, optional, tag = "11")]
        disconnect: Option<Disconnect>,
    }
    Disconnect {
        #[prost(uint32, tag = "1")]
        code: u32,
        #[prost(string, tag = "2")]
        reason: String,
    }
    Empty {}
    Error {
        #[prost(uint32, tag = "1")]
        code: u32,
        #[prost(string, tag = "2")]
        message: String,
        #[prost(bool, tag = "3")]
        temporary: bool,
    }
    ClientInfo {
        #[prost(string, tag = "1")]
        user: String,
        #[prost(string, tag = "2")]
        client: String,
    }
    Publication {
        #[prost(bytes = "vec", tag = "4")]
        #[serde(serialize_with = "put_raw", deserialize_with = "raw")]
        data: Vec<u8>,
        #[prost(message, optional, tag = "5")]
        info: Option<ClientInfo>,
        #[prost(uint64, tag = "6")]
        offset: u64,
        #[prost(btree_map = "string, string", tag = "7")]
        tags: BTreeMap<String, String>,
        #[prost(bool, tag = "8")]
        delta: bool,
        #[prost(string, tag = "14")]
        epoch: String,
    }
    ConnectResult {
        #[prost(string, tag = "1")]
        client: String,
        #[prost(string, tag = "2")]
        version: String,
        #[prost(bool, tag = "3")]
        expires: bool,
        #[prost(uint32, tag = "4")]
        ttl: u32,
        #[prost(btree_map = "string, message", tag = "6")]
        subs: BTreeMap<String, SubscribeResult>,
        #[prost(uint32, tag = "7")]
        ping: u32,
        #[prost(bool, tag = "8")]
        pong: bool,
        #[prost(string, tag = "9")]
        session: String,
        #[prost(string, tag = "10")]
        node: String,
    }
    SubscribeResult {
        #[prost(bool, tag = "3")]
        recoverable: bool,
        #[prost(string, tag = "6")]
        epoch: String,
        #[prost(message, repeated, tag = "7")]
        publications: Vec<Publication>,
        #[prost(bool, tag = "8")]
        recovered: bool,
        #[prost(uint64, tag = "9")]
        offset: u64,
        #[prost(bool, tag = "10")]
        positioned: bool,
        #[prost(bool, tag = "12")]
        was_recovering: bool,
        #[prost(bool, tag = "13")]
        delta: bool,
    }
    PresenceResult {
        #[prost(btree_map = "string, message", tag = "1")]
        presence: BTreeMap<String, ClientInfo>,
    }
    PresenceStatsResult {
        #[prost(uint32, tag = "1")]
        num_clients: u32,
        #[prost(uint32, tag = "2")]
        num_users: u32,
    }
    HistoryResult {
        #[prost(message, repeated, tag = "1")]
        publications: Vec<Publication>,
        #[prost(string, tag = "2")]
        epoch: String,
        #[prost(uint64, tag = "3")]
        offset: u64,
    }
    Event {
        #[prost(message, optional, tag = "1")]
        info: Option<ClientInfo>,
    }
    Unsubscribe {
        #[prost(uint32, tag = "2")]
        code: u32,
        #[prost(string, tag = "3")]
        reason: String,
    }
}

/// A push as one-way clients get it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct BarePush {
    pub(crate) channel: String,
    pub(crate) r#pub: Option<Publication>,
    pub(crate) join: Option<Event>,
    pub(crate) leave: Option<Event>,
    pub(crate) unsubscribe: Option<Unsubscribe>,
    pub(crate) connect: Option<ConnectResult>,
    pub(crate) disconnect: Option<Disconnect>,
}

/// The answer to a poll: a result, an error, or the end.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PollAnswer {
    pub(crate) client: String,
    version: String,
    pub(crate) subs: BTreeMap<String, SubscribeResult>,
    pub(crate) error: Option<Error>,
    pub(crate) disconnect: Option<Disconnect>,
}

/// Where a client stands, by channel.
pub(crate) type Positions = BTreeMap<String, Position>;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Position {
    pub(crate) offset: u64,
    pub(crate) epoch: String,
}

/// Requests of the up-link (client protocol, 7).
#[derive(Clone, PartialEq, Message)]
pub(crate) struct UpRequest {
    #[prost(string, tag = "1")]
    pub(crate) node: String,
    #[prost(string, tag = "2")]
    pub(crate) session: String,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) data: Vec<u8>,
}

impl UpRequest {
    /// As the body of a request.
    pub(crate) fn encode(&self, protobuf: bool) -> Vec<u8> {
        if protobuf {
            return self.encode_to_vec();
        }
        let data = String::from_utf8_lossy(&self.data);
        let Self { node, session, .. } = self;
        serde_json::json!({"node": node, "session": session, "data": data}).to_string().into_bytes()
    }
}

impl Command {
    /// As it stands in a frame.
    pub(crate) fn encode(&self, protobuf: bool) -> Vec<u8> {
        match protobuf {
            true => self.encode_length_delimited_to_vec(),
            false => serde_json::to_vec(self).unwrap(),
        }
    }
}

/// The replies of a frame, each with its bytes.
pub(crate) fn replies(protobuf: bool, frame: &[u8]) -> Result<Vec<(Vec<u8>, Reply)>, String> {
    let mut replies = Vec::new();
    if !protobuf {
        for line in frame.split(|byte| *byte == b'\n') {
            let reply = serde_json::from_slice(line);
            let reply: Reply =
                reply.map_err(|fault| format!("{fault} in {:?}", String::from_utf8_lossy(line)))?;
            replies.push((line.to_vec(), reply));
        }
        return Ok(replies);
    }
    let mut rest = frame;
    while !rest.is_empty() {
        let before = rest;
        let reply = Reply::decode_length_delimited(&mut rest);
        let reply = reply.map_err(|fault| format!("{fault} in {before:?}"))?;
        replies.push((before[..before.len() - rest.len()].to_vec(), reply));
    }
    Ok(replies)
}

/// Messages as one reads them.
pub(crate) fn shown(protobuf: bool, mark: &str, messages: &[u8]) -> String {
    if !protobuf {
        return String::from_utf8_lossy(messages).into_owned();
    }
    let mut rest = messages;
    let mut shown = Vec::new();
    while !rest.is_empty() {
        let json = match mark {
            ">" => Command::decode_length_delimited(&mut rest).map(|m| serde_json::to_string(&m)),
            _ => Reply::decode_length_delimited(&mut rest).map(|m| serde_json::to_string(&m)),
        };
        match json {
            Ok(json) => shown.push(json.unwrap_or_else(|_| "no JSON".into())),
            Err(_) => break,
        }
    }
    shown.join("\n")
}

impl FilterNode {
    /// Whether tags pass (client protocol, section 22), for the comparisons that clients use here.
    pub(crate) fn matches(&self, tags: &BTreeMap<String, String>) -> bool {
        let tag = tags.get(&self.key);
        match (self.op.as_str(), self.cmp.as_str()) {
            ("and", _) => self.nodes.iter().all(|node| node.matches(tags)),
            ("or", _) => self.nodes.iter().any(|node| node.matches(tags)),
            ("not", _) => !self.nodes[0].matches(tags),
            (_, "eq") => tag == Some(&self.val),
            (_, "neq") => tag != Some(&self.val),
            (_, "in") => self.vals.iter().any(|val| val == tag.map_or("", String::as_str)),
            (_, "ex") => tag.is_some(),
            (_, other) => panic!("no client uses {other}"),
        }
    }
}
