//! Protobuf replies: values in, one Reply each out with its length in front, appended to a buffer.
//!
//! Messages are built and prost writes them. What is spliced stands last in its message, behind
//! fields of higher numbers: their order means nothing, and so it needs no second buffer.

use prost::Message;
use prost::encoding::{
    WireType, encode_key, encode_varint, encoded_len_varint, key_len, string, uint32,
};

use super::super::reply::{
    Body, ConnectResult, DataForm, Publication, Push, Reply, SubscribePush, SubscribeResult,
};
use super::super::schema;
use crate::base::info::ClientInfo;

/// Numbers of fields of `Reply` that are not written by prost as a whole.
const ID: u32 = 1;
const PUSH: u32 = 4;
const CONNECT: u32 = 5;
const SUBSCRIBE: u32 = 6;
const PRESENCE: u32 = 9;
const HISTORY: u32 = 11;
/// And of others: the push, and `subs` in it and in the connect result.
const PUSH_CONNECT: u32 = 10;
const CONNECT_PUSH_SUBS: u32 = 4;
const CONNECT_RESULT_SUBS: u32 = 6;

/// See [`Encoding::put_reply`](super::super::Encoding::put_reply).
pub(crate) fn put_reply(out: &mut Vec<u8>, id: u32, reply: &Reply<'_>) -> Option<usize> {
    let mut message = schema::Reply { id, ..<_>::default() };
    match *reply {
        Reply::Error { code, temporary } => {
            message.error = Some(schema::Error {
                code: code.code().into(),
                message: code.message().into(),
                temporary,
            });
        }
        Reply::AppError { code, message: text, temporary } => {
            message.error = Some(schema::Error { code, message: text.into(), temporary });
        }
        Reply::Connect(result) => {
            let mut subs = Vec::new();
            put_subs(&mut subs, CONNECT_RESULT_SUBS, result.subs);
            let fields = connect_fields(&result);
            return put_with_body(out, id, CONNECT, &fields, Body::Here(&subs));
        }
        Reply::Subscribe(result) => {
            let fields = subscribe_fields(&result);
            return put_with_body(out, id, SUBSCRIBE, &fields, result.publications);
        }
        Reply::Unsubscribe => message.unsubscribe = Some(schema::UnsubscribeResult {}),
        Reply::Publish => message.publish = Some(schema::PublishResult {}),
        Reply::Presence(body) => return put_with_body(out, id, PRESENCE, &(), body),
        Reply::PresenceStats { clients, users } => {
            message.presence_stats =
                Some(schema::PresenceStatsResult { num_clients: clients, num_users: users });
        }
        Reply::History(body) => return put_with_body(out, id, HISTORY, &(), body),
        Reply::Rpc { data } => message.rpc = Some(schema::RpcResult { data: data.into() }),
        Reply::Refresh { ttl } => {
            let (expires, ttl) = expiry(ttl);
            message.refresh = Some(schema::RefreshResult { expires, ttl, ..<_>::default() });
        }
        Reply::SubRefresh { ttl } => {
            let (expires, ttl) = expiry(ttl);
            message.sub_refresh = Some(schema::SubRefreshResult { expires, ttl, items: vec![] });
        }
    }
    put_with_length(out, &message);
    None
}

/// See [`Encoding::put_push`](super::super::Encoding::put_push).
pub(crate) fn put_push(out: &mut Vec<u8>, channel: &str, push: &Push<'_>) {
    let mut message = schema::Push { channel: channel.into(), ..<_>::default() };
    match *push {
        Push::Publication(publication) => message.r#pub = Some(publication_message(&publication)),
        Push::Join(info) => message.join = Some(schema::Join { info: Some(client_info(&info)) }),
        Push::Leave(info) => message.leave = Some(schema::Leave { info: Some(client_info(&info)) }),
        Push::Unsubscribe { code, reason } => {
            message.unsubscribe =
                Some(schema::Unsubscribe { code: code.into(), reason: reason.into() });
        }
        Push::Subscribe(SubscribePush { recoverable, epoch, offset, positioned, data }) => {
            message.subscribe = Some(schema::Subscribe {
                recoverable,
                epoch: epoch.into(),
                offset,
                positioned,
                data: data.into(),
            });
        }
        Push::Message(data) => message.message = Some(schema::Message { data: data.into() }),
        Push::Connect(result) => {
            let mut connect = schema::Connect::from(connect_fields(&result)).encode_to_vec();
            put_subs(&mut connect, CONNECT_PUSH_SUBS, result.subs);
            let mut push = Vec::new();
            put_nested(&mut push, PUSH_CONNECT, &connect);
            let mut reply = Vec::new();
            put_nested(&mut reply, PUSH, &push);
            encode_varint(reply.len() as u64, out);
            return out.extend_from_slice(&reply);
        }
        Push::Disconnect { code, reason } => {
            message.disconnect = Some(schema::Disconnect {
                code: code.into(),
                reason: reason.into(),
                ..<_>::default()
            });
        }
        Push::Refresh { ttl } => {
            let (expires, ttl) = expiry(ttl);
            message.refresh = Some(schema::Refresh { expires, ttl });
        }
    }
    put_with_length(out, &schema::Reply { push: Some(message), ..<_>::default() });
}

/// See [`Encoding::put_publications`](super::super::Encoding::put_publications).
pub(crate) fn put_publications<'p>(
    out: &mut Vec<u8>,
    publications: impl IntoIterator<Item = Publication<'p>>,
) {
    for publication in publications {
        let publications = vec![publication_message(&publication)];
        put(out, &schema::SubscribeResult { publications, ..<_>::default() });
    }
}

/// See [`Encoding::put_history`](super::super::Encoding::put_history).
pub(crate) fn put_history<'p>(
    out: &mut Vec<u8>,
    publications: impl IntoIterator<Item = Publication<'p>>,
    epoch: &str,
    offset: u64,
) {
    for publication in publications {
        let publications = vec![publication_message(&publication)];
        put(out, &schema::HistoryResult { publications, ..<_>::default() });
    }
    put(out, &schema::HistoryResult { publications: vec![], epoch: epoch.into(), offset });
}

/// See [`Encoding::put_presence`](super::super::Encoding::put_presence).
pub(crate) fn put_presence<'p>(
    out: &mut Vec<u8>,
    entries: impl IntoIterator<Item = ClientInfo<'p>>,
) {
    for info in entries {
        let presence = [(info.client.into(), client_info(&info))].into();
        put(out, &schema::PresenceResult { presence });
    }
}

/// A Reply with one result: the fields given, and behind them the body's bytes, which count also
/// where they are elsewhere.
fn put_with_body(
    out: &mut Vec<u8>,
    id: u32,
    result: u32,
    fields: &impl Message,
    body: Body<'_>,
) -> Option<usize> {
    let result_bytes = fields.encoded_len() + body.len();
    let id_bytes = if id == 0 { 0 } else { uint32::encoded_len(ID, &id) };
    let reply_bytes =
        id_bytes + key_len(result) + encoded_len_varint(result_bytes as u64) + result_bytes;
    encode_varint(reply_bytes as u64, out);
    if id != 0 {
        uint32::encode(ID, &id, out);
    }
    encode_key(result, WireType::LengthDelimited, out);
    encode_varint(result_bytes as u64, out);
    put(out, fields);
    match body {
        Body::Here(bytes) => {
            out.extend_from_slice(bytes);
            None
        }
        Body::Elsewhere(0) => None,
        Body::Elsewhere(_) => Some(out.len()),
    }
}

/// Appends a message. Messages one behind the other are one message, whose lists are joined.
fn put(out: &mut Vec<u8>, message: &impl Message) {
    // It fails only where the buffer has no room, and a Vec grows.
    message.encode(out).expect("a Vec has room");
}

fn put_with_length(out: &mut Vec<u8>, message: &impl Message) {
    // As in `put`.
    message.encode_length_delimited(out).expect("a Vec has room");
}

/// Without its subscriptions.
fn connect_fields(result: &ConnectResult<'_>) -> schema::ConnectResult {
    schema::ConnectResult {
        client: result.client.into(),
        version: result.version.into(),
        expires: result.expires,
        ttl: result.ttl,
        data: result.data.into(),
        ping: result.ping,
        pong: result.pong,
        session: result.session.into(),
        node: result.node.into(),
        time: result.time,
        ..<_>::default()
    }
}

/// The push has the fields of the reply, with numbers of its own.
impl From<schema::ConnectResult> for schema::Connect {
    fn from(result: schema::ConnectResult) -> Self {
        Self {
            client: result.client,
            version: result.version,
            data: result.data,
            subs: result.subs,
            expires: result.expires,
            ttl: result.ttl,
            ping: result.ping,
            pong: result.pong,
            session: result.session,
            node: result.node,
            time: result.time,
        }
    }
}

/// The entries of a map of subscribe results. Not prost's, which leaves a value out that has nothing
/// in it: readers made by other tools take that for no value at all.
fn put_subs(out: &mut Vec<u8>, field: u32, subs: &[(&str, SubscribeResult<'_>)]) {
    let mut entry = Vec::new();
    for (channel, result) in subs {
        let Body::Here(publications) = result.publications else {
            debug_assert!(false, "what put_publications made must be here");
            continue;
        };
        let mut value = subscribe_fields(result).encode_to_vec();
        value.extend_from_slice(publications);
        entry.clear();
        string::encode(1, &(*channel).to_owned(), &mut entry);
        put_nested(&mut entry, 2, &value);
        put_nested(out, field, &entry);
    }
}

/// A message, encoded already, as a field of another one.
fn put_nested(out: &mut Vec<u8>, field: u32, message: &[u8]) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(message.len() as u64, out);
    out.extend_from_slice(message);
}

/// Without its publications.
fn subscribe_fields(result: &SubscribeResult<'_>) -> schema::SubscribeResult {
    schema::SubscribeResult {
        expires: result.expires,
        ttl: result.ttl,
        recoverable: result.recoverable,
        epoch: result.epoch.into(),
        recovered: result.recovered,
        offset: result.offset,
        positioned: result.positioned,
        data: result.data.into(),
        was_recovering: result.was_recovering,
        delta: result.delta,
        ..<_>::default()
    }
}

fn publication_message(publication: &Publication<'_>) -> schema::Publication {
    let tags = publication.tags.iter().map(|(name, value)| (name.into(), value.into()));
    schema::Publication {
        data: publication.data.into(),
        info: publication.info.as_ref().map(client_info),
        offset: publication.offset,
        tags: tags.collect(),
        delta: publication.form == DataForm::Patch,
        channel: publication.channel.into(),
        epoch: publication.epoch.unwrap_or_default().into(),
        time: i64::try_from(publication.time_ms).unwrap_or(i64::MAX),
        ..<_>::default()
    }
}

fn client_info(info: &ClientInfo<'_>) -> schema::ClientInfo {
    schema::ClientInfo {
        user: info.user.into(),
        client: info.client.into(),
        conn_info: info.conn_info.into(),
        chan_info: info.chan_info.into(),
        subscribed_at: info.subscribed_at,
    }
}

/// `expires` and `ttl` of a result.
fn expiry(ttl: Option<u32>) -> (bool, u32) {
    (ttl.is_some(), ttl.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Their keys, as prost writes them, are those that `put_with_body` writes.
    #[test]
    fn field_numbers_are_the_schemas() {
        let replies = [
            (ID, schema::Reply { id: 1, ..<_>::default() }),
            (SUBSCRIBE, schema::Reply { subscribe: Some(<_>::default()), ..<_>::default() }),
            (PRESENCE, schema::Reply { presence: Some(<_>::default()), ..<_>::default() }),
            (HISTORY, schema::Reply { history: Some(<_>::default()), ..<_>::default() }),
        ];
        for (number, reply) in replies {
            let bytes = reply.encode_to_vec();
            let (got, _) = prost::encoding::decode_key(&mut &bytes[..]).unwrap();
            assert_eq!(got, number);
        }
    }
}
