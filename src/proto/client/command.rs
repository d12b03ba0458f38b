//! Commands of clients, as values of no encoding; from JSON they borrow where they can.
//!
//! The fields of the schema are here also where the feature is built later, so that a client which
//! sends them is understood. Absent and `null` are the field's zero value, as in proto3.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::json::fields::{absent, filter, object, objects, present, text, texts, track, untrack};
use crate::base::filter::FilterNode;

/// One request and the number its Reply must carry.
#[derive(Debug, PartialEq, Eq)]
pub struct Command<'a> {
    /// Copied into the Reply; 0 only in a pong and in a `send`.
    pub id: u32,
    /// The request.
    pub request: Request<'a>,
}

/// The request of a Command.
///
/// Where a Command holds several, the first in this order counts: connect, ping, subscribe,
/// unsubscribe, publish, presence, presence_stats, history, rpc, send, refresh, sub_refresh.
#[derive(Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Anything with id 0 that is not a `send`: the answer to a ping.
    Pong,
    /// Identifies the client; must come first, and once.
    Connect(ConnectRequest<'a>),
    /// Only answered in older protocols: a client that sends it is closed with 3501.
    Ping,
    /// Join a channel.
    Subscribe(SubscribeRequest<'a>),
    /// Leave a channel.
    Unsubscribe(ChannelRequest<'a>),
    /// Put a message into a channel.
    Publish(PublishRequest<'a>),
    /// The clients in a channel.
    Presence(ChannelRequest<'a>),
    /// How many are in a channel.
    PresenceStats(ChannelRequest<'a>),
    /// The publications of a channel.
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

/// A payload as it came: JSON text from a JSON client, bytes of any kind from a Protobuf one. JSON's
/// `null` and no bytes are no payload.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload<'a>(pub(super) Cow<'a, [u8]>);

impl Payload<'_> {
    /// The bytes of it, at least one.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Payload<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({})", self.0.escape_ascii())
    }
}

/// JSON as it stands in the frame.
impl<'de: 'a, 'a> Deserialize<'de> for Payload<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        Ok(Self(Cow::Borrowed(raw.get().as_bytes())))
    }
}

/// A request of the separate up-link (client protocol, 7): commands for a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmulationRequest<'a> {
    /// The node that has the connection.
    pub node: Cow<'a, str>,
    /// The connection's session.
    pub session: Cow<'a, str>,
    /// Commands, as one frame.
    pub data: Cow<'a, [u8]>,
}

/// `connect`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ConnectRequest<'a> {
    /// Connection JWT, `""` when there is none.
    #[serde(borrow, deserialize_with = "text")]
    pub token: Cow<'a, str>,
    /// The application's own data, for the connect proxy.
    #[serde(borrow)]
    pub data: Option<Payload<'a>>,
    /// Server-side subscriptions to make or to recover, by channel.
    #[serde(borrow, deserialize_with = "objects")]
    pub subs: BTreeMap<Cow<'a, str>, SubscribeRequest<'a>>,
    /// Name of the SDK.
    #[serde(borrow, deserialize_with = "text")]
    pub name: Cow<'a, str>,
    /// Version of the SDK.
    #[serde(borrow, deserialize_with = "text")]
    pub version: Cow<'a, str>,
    /// Emulated request headers, for proxies.
    #[serde(borrow, deserialize_with = "texts")]
    pub headers: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
    /// Bit 0: dictionary compression. Not used.
    #[serde(deserialize_with = "absent")]
    pub flag: i64,
}

/// `subscribe`, and a value of [`ConnectRequest::subs`] (where `channel` is empty).
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
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
    pub data: Option<Payload<'a>>,
    /// Requests position checks.
    #[serde(deserialize_with = "absent")]
    pub positioned: bool,
    /// Requests recovery.
    #[serde(deserialize_with = "absent")]
    pub recoverable: bool,
    /// Requests join and leave pushes.
    #[serde(deserialize_with = "absent")]
    pub join_leave: bool,
    /// `"fossil"` or `""`.
    #[serde(borrow, deserialize_with = "text")]
    pub delta: Cow<'a, str>,
    /// Tag filter, not checked yet.
    #[serde(deserialize_with = "filter")]
    pub tf: Option<FilterNode>,
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
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ChannelRequest<'a> {
    /// Which channel; empty is a bad request.
    #[serde(borrow, deserialize_with = "text")]
    pub channel: Cow<'a, str>,
}

/// `publish`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PublishRequest<'a> {
    /// Which channel; empty is a bad request.
    #[serde(borrow, deserialize_with = "text")]
    pub channel: Cow<'a, str>,
    /// The payload; in JSON of any type, `null` among them.
    #[serde(borrow, deserialize_with = "present")]
    pub data: Option<Payload<'a>>,
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
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HistoryRequest<'a> {
    /// Which channel; empty is a bad request.
    #[serde(borrow, deserialize_with = "text")]
    pub channel: Cow<'a, str>,
    /// Maximum of publications; 0 requests the position only, below 0 as many as allowed.
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
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
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
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RpcRequest<'a> {
    /// The application's own data.
    #[serde(borrow)]
    pub data: Option<Payload<'a>>,
    /// The called method; may be empty.
    #[serde(borrow, deserialize_with = "text")]
    pub method: Cow<'a, str>,
}

/// `send`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SendRequest<'a> {
    /// The application's own data.
    #[serde(borrow)]
    pub data: Option<Payload<'a>>,
}

/// `refresh`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RefreshRequest<'a> {
    /// The new connection JWT; empty is a bad request.
    #[serde(borrow, deserialize_with = "text")]
    pub token: Cow<'a, str>,
}

/// `sub_refresh`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
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
    /// How many batches of signed keys to track came. Shared poll is not built, so no more is kept.
    #[serde(deserialize_with = "track")]
    pub track: usize,
    /// How many keys came that are no longer tracked.
    #[serde(deserialize_with = "untrack")]
    pub untrack: usize,
}
