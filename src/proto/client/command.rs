//! What a client may ask, as values that borrow from its frame.
//!
//! Every field of the schema is here, also those of features that are built later, so that a client
//! which sends them is understood. Absent and `null` are the field's zero value, as in proto3.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::parse::{absent, headers, object, subs, text};

/// One request and the number its Reply must carry.
#[derive(Debug)]
pub struct Command<'a> {
    /// Copied into the Reply; 0 only in a pong and in a `send`.
    pub id: u32,
    /// What is asked.
    pub request: Request<'a>,
}

/// The request of a Command.
///
/// Where a Command holds several, the first in this order counts: connect, ping, subscribe,
/// unsubscribe, publish, presence, presence_stats, history, rpc, send, refresh, sub_refresh.
#[derive(Debug)]
pub enum Request<'a> {
    /// Anything with id 0 that is not a `send`: the answer to a ping.
    Pong,
    /// Who the client is; must come first, and once.
    Connect(ConnectRequest<'a>),
    /// Only answered in older protocols: a client that sends it is closed with 3501.
    Ping,
    /// Join a channel.
    Subscribe(SubscribeRequest<'a>),
    /// Leave a channel.
    Unsubscribe(ChannelRequest<'a>),
    /// Put a message into a channel.
    Publish(PublishRequest<'a>),
    /// Who is in a channel.
    Presence(ChannelRequest<'a>),
    /// How many are in a channel.
    PresenceStats(ChannelRequest<'a>),
    /// What was published in a channel.
    History(HistoryRequest<'a>),
    /// A call to the application.
    Rpc(RpcRequest<'a>),
    /// A message to the application, never answered.
    Send(SendRequest<'a>),
    /// A new connection token.
    Refresh(RefreshRequest<'a>),
    /// A new subscription token.
    SubRefresh(SubRefreshRequest<'a>),
    /// An id and no request that we know.
    Unknown,
}

/// `connect`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ConnectRequest<'a> {
    /// Connection JWT, `""` when there is none.
    #[serde(borrow, deserialize_with = "text")]
    pub token: Cow<'a, str>,
    /// The application's own data, for the connect proxy.
    #[serde(borrow)]
    pub data: Option<&'a RawValue>,
    /// Server-side subscriptions to make or to recover, by channel.
    #[serde(borrow, deserialize_with = "subs")]
    pub subs: BTreeMap<Cow<'a, str>, SubscribeRequest<'a>>,
    /// Name of the SDK.
    #[serde(borrow, deserialize_with = "text")]
    pub name: Cow<'a, str>,
    /// Version of the SDK.
    #[serde(borrow, deserialize_with = "text")]
    pub version: Cow<'a, str>,
    /// Emulated request headers, for proxies.
    #[serde(borrow, deserialize_with = "headers")]
    pub headers: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
    /// Bit 0: dictionary compression. Not used.
    #[serde(deserialize_with = "absent")]
    pub flag: i64,
}

/// `subscribe`, and a value of [`ConnectRequest::subs`] (where `channel` is empty).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct SubscribeRequest<'a> {
    /// Which channel; empty is a bad request.
    #[serde(borrow, deserialize_with = "text")]
    pub channel: Cow<'a, str>,
    /// Subscription JWT, `""` when there is none.
    #[serde(borrow, deserialize_with = "text")]
    pub token: Cow<'a, str>,
    /// Send what was missed since `offset` and `epoch`.
    #[serde(deserialize_with = "absent")]
    pub recover: bool,
    /// The stream's life in which `offset` holds; `""` is any.
    #[serde(borrow, deserialize_with = "text")]
    pub epoch: Cow<'a, str>,
    /// Offset of the last publication that the client has.
    #[serde(deserialize_with = "absent")]
    pub offset: u64,
    /// The application's own data, for the subscribe proxy.
    #[serde(borrow)]
    pub data: Option<&'a RawValue>,
    /// Asks for position checks.
    #[serde(deserialize_with = "absent")]
    pub positioned: bool,
    /// Asks for recovery.
    #[serde(deserialize_with = "absent")]
    pub recoverable: bool,
    /// Asks for join and leave pushes.
    #[serde(deserialize_with = "absent")]
    pub join_leave: bool,
    /// `"fossil"` or `""`.
    #[serde(borrow, deserialize_with = "text")]
    pub delta: Cow<'a, str>,
    /// Tag filter, as it came.
    #[serde(borrow)]
    pub tf: Option<&'a RawValue>,
    /// Bit 0: knows numeric channel ids; bit 1: Error 112 where recovery fails.
    #[serde(deserialize_with = "absent")]
    pub flag: i64,
    /// 0 stream, 1 map, 2 map of clients, 3 map of users, 4 shared poll.
    #[serde(rename = "type", deserialize_with = "absent")]
    pub kind: i32,
    /// 0 live, 1 stream, 2 state (maps).
    #[serde(deserialize_with = "absent")]
    pub phase: i32,
    /// Where the next page of a map begins.
    #[serde(borrow, deserialize_with = "text")]
    pub cursor: Cow<'a, str>,
    /// Entries in a page of a map.
    #[serde(deserialize_with = "absent")]
    pub limit: i32,
    /// Order of a map's pages.
    #[serde(deserialize_with = "absent")]
    pub asc: bool,
}

/// `unsubscribe`, `presence` and `presence_stats`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ChannelRequest<'a> {
    /// Which channel; empty is a bad request.
    #[serde(borrow, deserialize_with = "text")]
    pub channel: Cow<'a, str>,
}

/// `publish`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct PublishRequest<'a> {
    /// Which channel; empty is a bad request.
    #[serde(borrow, deserialize_with = "text")]
    pub channel: Cow<'a, str>,
    /// The payload, of any JSON type but `null`, which counts as none.
    #[serde(borrow)]
    pub data: Option<&'a RawValue>,
    /// 0 stream, 1 map.
    #[serde(rename = "type", deserialize_with = "absent")]
    pub kind: i32,
    /// Key in a map.
    #[serde(borrow, deserialize_with = "text")]
    pub key: Cow<'a, str>,
    /// Removes the key.
    #[serde(deserialize_with = "absent")]
    pub removed: bool,
}

/// `history`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct HistoryRequest<'a> {
    /// Which channel; empty is a bad request.
    #[serde(borrow, deserialize_with = "text")]
    pub channel: Cow<'a, str>,
    /// Publications at most; 0 asks for the position only, below 0 for as many as allowed.
    #[serde(deserialize_with = "absent")]
    pub limit: i32,
    /// Where to start; none is the oldest, or the newest when `reverse`.
    #[serde(borrow, deserialize_with = "object")]
    pub since: Option<StreamPosition<'a>>,
    /// Newest first.
    #[serde(deserialize_with = "absent")]
    pub reverse: bool,
}

/// A place in a channel's stream.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct StreamPosition<'a> {
    /// Offset of a publication, from 1.
    #[serde(deserialize_with = "absent")]
    pub offset: u64,
    /// The stream's life in which `offset` holds; `""` is any.
    #[serde(borrow, deserialize_with = "text")]
    pub epoch: Cow<'a, str>,
}

/// `rpc`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct RpcRequest<'a> {
    /// The application's own data.
    #[serde(borrow)]
    pub data: Option<&'a RawValue>,
    /// What to call; may be empty.
    #[serde(borrow, deserialize_with = "text")]
    pub method: Cow<'a, str>,
}

/// `send`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct SendRequest<'a> {
    /// The application's own data.
    #[serde(borrow)]
    pub data: Option<&'a RawValue>,
}

/// `refresh`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct RefreshRequest<'a> {
    /// The new connection JWT; empty is a bad request.
    #[serde(borrow, deserialize_with = "text")]
    pub token: Cow<'a, str>,
}

/// `sub_refresh`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct SubRefreshRequest<'a> {
    /// Which channel; empty is a bad request.
    #[serde(borrow, deserialize_with = "text")]
    pub channel: Cow<'a, str>,
    /// The new subscription JWT.
    #[serde(borrow, deserialize_with = "text")]
    pub token: Cow<'a, str>,
    /// 0 refresh, 1 track, 2 untrack (shared poll).
    #[serde(rename = "type", deserialize_with = "absent")]
    pub kind: i32,
    /// Signed keys to track, as they came.
    #[serde(borrow)]
    pub track: Option<&'a RawValue>,
    /// Keys no longer tracked, as they came.
    #[serde(borrow)]
    pub untrack: Option<&'a RawValue>,
}
