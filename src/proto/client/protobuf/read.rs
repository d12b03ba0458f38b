//! Protobuf commands: a binary frame in, [`Command`]s out.
//!
//! prost bounds how deep messages may nest, skips what it doesn't know, and takes the last of a field
//! that comes twice, as proto3 wants.

use std::borrow::Cow;

use prost::Message as _;

use super::super::command::{
    ChannelRequest, Command, ConnectRequest, EmulationRequest, HistoryRequest, Payload,
    PublishRequest, RefreshRequest, Request, RpcRequest, SendRequest, StreamPosition,
    SubRefreshRequest, SubscribeRequest,
};
use super::super::malformed::Malformed;
use super::super::schema;
use crate::base::filter::FilterNode;

/// The first message of a frame, and what stands behind it.
pub(crate) fn split(frame: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    if frame.is_empty() {
        return Err(Malformed::Blank);
    }
    let mut rest = frame;
    let bytes = prost::decode_length_delimiter(&mut rest).map_err(|_| Malformed::Length)?;
    rest.split_at_checked(bytes).ok_or(Malformed::Length)
}

/// See [`emulation_request`](super::super::emulation_request).
pub(crate) fn emulation_request<'a>(message: &[u8]) -> Result<EmulationRequest<'a>, Malformed> {
    let message = schema::EmulationRequest::decode(message).map_err(|_| Malformed::Protobuf)?;
    let schema::EmulationRequest { node, session, data } = message;
    Ok(EmulationRequest { node: node.into(), session: session.into(), data: data.into() })
}

/// Reads one command, without its length. No bytes are the empty command, a pong.
pub(crate) fn parse<'a>(message: &[u8]) -> Result<Command<'a>, Malformed> {
    let message = schema::Command::decode(message).map_err(|_| Malformed::Protobuf)?;
    let id = message.id;
    Ok(Command { id, request: if id == 0 { unnumbered(message) } else { request(message) } })
}

/// Without an id nothing but a `send` is a request.
fn unnumbered<'a>(message: schema::Command) -> Request<'a> {
    message.send.map_or(Request::Pong, send)
}

/// Of several the first in the schema's order.
fn request<'a>(message: schema::Command) -> Request<'a> {
    if let Some(request) = message.connect {
        Request::Connect(request.into())
    } else if message.ping.is_some() {
        Request::Ping
    } else if let Some(request) = message.subscribe {
        Request::Subscribe(request.into())
    } else if let Some(request) = message.unsubscribe {
        Request::Unsubscribe(channel(request.channel))
    } else if let Some(request) = message.publish {
        Request::Publish(request.into())
    } else if let Some(request) = message.presence {
        Request::Presence(channel(request.channel))
    } else if let Some(request) = message.presence_stats {
        Request::PresenceStats(channel(request.channel))
    } else if let Some(request) = message.history {
        Request::History(request.into())
    } else if let Some(request) = message.rpc {
        Request::Rpc(request.into())
    } else if let Some(request) = message.send {
        send(request)
    } else if let Some(request) = message.refresh {
        Request::Refresh(RefreshRequest { token: request.token.into() })
    } else if let Some(request) = message.sub_refresh {
        Request::SubRefresh(request.into())
    } else {
        Request::Unknown
    }
}

fn send<'a>(request: schema::SendRequest) -> Request<'a> {
    Request::Send(SendRequest { data: payload(request.data) })
}

/// A payload that is empty is none: proto3 doesn't tell them apart.
fn payload<'a>(bytes: Vec<u8>) -> Option<Payload<'a>> {
    (!bytes.is_empty()).then_some(Payload(Cow::Owned(bytes)))
}

fn channel<'a>(channel: String) -> ChannelRequest<'a> {
    ChannelRequest { channel: channel.into() }
}

impl From<schema::ConnectRequest> for ConnectRequest<'_> {
    fn from(request: schema::ConnectRequest) -> Self {
        let subs = request.subs.into_iter();
        let headers = request.headers.into_iter();
        Self {
            token: request.token.into(),
            data: payload(request.data),
            subs: subs.map(|(channel, request)| (channel.into(), request.into())).collect(),
            name: request.name.into(),
            version: request.version.into(),
            headers: headers.map(|(name, value)| (name.into(), value.into())).collect(),
            flag: request.flag,
        }
    }
}

impl From<schema::SubscribeRequest> for SubscribeRequest<'_> {
    fn from(request: schema::SubscribeRequest) -> Self {
        Self {
            channel: request.channel.into(),
            token: request.token.into(),
            recover: request.recover,
            epoch: request.epoch.into(),
            offset: request.offset,
            data: payload(request.data),
            positioned: request.positioned,
            recoverable: request.recoverable,
            join_leave: request.join_leave,
            delta: request.delta.into(),
            tf: request.tf.map(Into::into),
            flag: request.flag,
            kind: request.r#type,
            phase: request.phase,
            cursor: request.cursor.into(),
            limit: request.limit,
            asc: request.asc,
        }
    }
}

impl From<schema::FilterNode> for FilterNode {
    fn from(node: schema::FilterNode) -> Self {
        let schema::FilterNode { op, key, cmp, val, vals, nodes } = node;
        Self { op, key, cmp, val, vals, nodes: nodes.into_iter().map(Into::into).collect() }
    }
}

impl From<schema::PublishRequest> for PublishRequest<'_> {
    fn from(request: schema::PublishRequest) -> Self {
        Self {
            channel: request.channel.into(),
            data: payload(request.data),
            kind: request.r#type,
            key: request.key.into(),
            removed: request.removed,
        }
    }
}

impl From<schema::HistoryRequest> for HistoryRequest<'_> {
    fn from(request: schema::HistoryRequest) -> Self {
        let position = |since: schema::StreamPosition| StreamPosition {
            offset: since.offset,
            epoch: since.epoch.into(),
        };
        Self {
            channel: request.channel.into(),
            limit: request.limit,
            since: request.since.map(position),
            reverse: request.reverse,
        }
    }
}

impl From<schema::RpcRequest> for RpcRequest<'_> {
    fn from(request: schema::RpcRequest) -> Self {
        Self { data: payload(request.data), method: request.method.into() }
    }
}

impl From<schema::SubRefreshRequest> for SubRefreshRequest<'_> {
    fn from(request: schema::SubRefreshRequest) -> Self {
        Self {
            channel: request.channel.into(),
            token: request.token.into(),
            kind: request.r#type,
            track: request.track.len(),
            untrack: request.untrack.len(),
        }
    }
}
