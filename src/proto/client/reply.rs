//! Replies and pushes, as values that an encoding writes. They borrow; nothing here is kept.
//!
//! Payloads are as they came: JSON writes them raw, so whoever writes to a JSON connection must know
//! that they are JSON, by [`is_json`](super::is_json) where nothing else says so. An empty one is
//! absent.

use super::codes::ErrorCode;
use crate::base::form::{Data, Form};
use crate::base::info::ClientInfo;
use crate::base::tags::Tags;

/// The answer to one Command (protocol, sections 9.1 and 9.3).
#[derive(Clone, Copy, Debug)]
pub enum Reply<'a> {
    /// The command failed.
    Error {
        /// Why.
        code: ErrorCode,
        /// The SDK shall try again by itself; see [`Reply::error`].
        temporary: bool,
    },
    /// The command failed by what the application said.
    AppError {
        /// 100 and above.
        code: u32,
        /// For people.
        message: &'a str,
        /// The SDK shall try again by itself.
        temporary: bool,
    },
    /// Result of `connect`.
    Connect(ConnectResult<'a>),
    /// Result of `subscribe`.
    Subscribe(SubscribeResult<'a>),
    /// Result of `unsubscribe`.
    Unsubscribe,
    /// Result of `publish`.
    Publish,
    /// Result of `presence`, as [`Encoding::put_presence`](super::Encoding::put_presence) makes it.
    Presence(Body<'a>),
    /// Result of `presence_stats`.
    PresenceStats {
        /// Clients in the channel.
        clients: u32,
        /// Different users among them.
        users: u32,
    },
    /// Result of `history`, as [`Encoding::put_history`](super::Encoding::put_history) makes it.
    History(Body<'a>),
    /// Result of `rpc`.
    Rpc {
        /// From the application.
        data: &'a [u8],
    },
    /// Result of `refresh`.
    Refresh {
        /// Seconds; none when the connection no longer expires.
        ttl: Option<u32>,
    },
    /// Result of `sub_refresh`.
    SubRefresh {
        /// Seconds; none when the subscription no longer expires.
        ttl: Option<u32>,
    },
}

impl Reply<'_> {
    /// An error that is temporary if its code says so. Another one is so by where it happens: the
    /// answer to a `sub_refresh` with an expired token, after which SDKs come back with a new one.
    pub fn error(code: ErrorCode) -> Self {
        Self::Error { code, temporary: code.temporary() }
    }
}

/// Encoded bytes that stand inside a reply. Those of many replies can so be made once and shared.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// These. None stand for an empty result or list.
    Here(&'a [u8]),
    /// So many, which the caller writes to the place that
    /// [`Encoding::put_reply`](super::Encoding::put_reply) names.
    Elsewhere(usize),
}

impl Body<'_> {
    /// Bytes of it, wherever they are.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Here(bytes) => bytes.len(),
            Self::Elsewhere(len) => *len,
        }
    }
}

impl Default for Body<'_> {
    fn default() -> Self {
        Self::Here(b"")
    }
}

/// Result of `connect`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectResult<'a> {
    /// Client id.
    pub client: &'a str,
    /// Version of the server, which SDKs only show.
    pub version: &'a str,
    /// The connection expires, and the client is the one to refresh it.
    pub expires: bool,
    /// Seconds until then.
    pub ttl: u32,
    /// From the connect proxy.
    pub data: &'a [u8],
    /// Server-side subscriptions, by channel. Their publications are [`Body::Here`].
    pub subs: &'a [(&'a str, SubscribeResult<'a>)],
    /// Seconds between pings; 0 without pings.
    pub ping: u32,
    /// Pongs are wanted.
    pub pong: bool,
    /// Secret of the up-link, for transports that have a separate one; else `""`.
    pub session: &'a str,
    /// This node, for transports with a separate up-link; else `""`.
    pub node: &'a str,
    /// Unix milliseconds, or 0.
    pub time: i64,
}

/// Result of `subscribe`, stream type.
#[derive(Clone, Copy, Debug, Default)]
pub struct SubscribeResult<'a> {
    /// The subscription expires, and the client is the one to refresh it.
    pub expires: bool,
    /// Seconds until then.
    pub ttl: u32,
    /// Recovery is on.
    pub recoverable: bool,
    /// The stream's life, with `positioned`.
    pub epoch: &'a str,
    /// What was missed, oldest first, with `recovered`: a list as
    /// [`Encoding::put_publications`](super::Encoding::put_publications) makes it.
    pub publications: Body<'a>,
    /// All missed publications are here.
    pub recovered: bool,
    /// Where the client stands, with `positioned`.
    pub offset: u64,
    /// Positions are checked.
    pub positioned: bool,
    /// From the token or the proxy.
    pub data: &'a [u8],
    /// The request wanted recovery.
    pub was_recovering: bool,
    /// Delta was granted.
    pub delta: bool,
}

/// Pushes of the server (protocol, section 9.4).
#[derive(Clone, Copy, Debug)]
pub enum Push<'a> {
    /// A message in the channel.
    Publication(Publication<'a>),
    /// Somebody came.
    Join(ClientInfo<'a>),
    /// Somebody left.
    Leave(ClientInfo<'a>),
    /// The server ended the subscription.
    Unsubscribe {
        /// Usually one of [`Unsubscribed`](super::Unsubscribed).
        code: u16,
        /// For people.
        reason: &'a str,
    },
    /// The server made a subscription.
    Subscribe(SubscribePush<'a>),
    /// A message for this connection alone, without a channel.
    Message(&'a [u8]),
    /// The first push of a one-way connection, without a channel.
    Connect(ConnectResult<'a>),
    /// The end of a connection whose transport has no close frame, without a channel.
    Disconnect {
        /// As of a close frame.
        code: u16,
        /// As of a close frame.
        reason: &'a str,
    },
    /// The connection's expiry changed, without a channel.
    Refresh {
        /// Seconds; none when the connection no longer expires.
        ttl: Option<u32>,
    },
}

/// A server-side subscription made while connected (protocol, section 20).
#[derive(Clone, Copy, Debug, Default)]
pub struct SubscribePush<'a> {
    /// Recovery is on.
    pub recoverable: bool,
    /// The stream's life, with `positioned`.
    pub epoch: &'a str,
    /// Where the client stands, with `positioned`.
    pub offset: u64,
    /// Positions are checked.
    pub positioned: bool,
    /// From the side that subscribed the client.
    pub data: &'a [u8],
}

/// One publication, in a push or in a list.
#[derive(Clone, Copy, Debug, Default)]
pub struct Publication<'a> {
    /// The payload, or a patch to one.
    pub data: &'a [u8],
    /// How the payload is written.
    pub form: DataForm,
    /// The publisher.
    pub info: Option<ClientInfo<'a>>,
    /// Place in the stream, from 1; 0 without history.
    pub offset: u64,
    /// Names of values for filters.
    pub tags: Tags<'a>,
    /// The stream's life: only on the live push with offset 1, never in a list.
    pub epoch: Option<&'a str>,
    /// The channel that it was published to, where the subscription is to a pattern; else empty.
    pub channel: &'a str,
    /// When it was published, in milliseconds since 1970: only in the result of a history request, where the
    /// namespace keeps times; else 0.
    pub time_ms: u64,
}

impl Publication<'_> {
    /// Nothing in it: what [`Default`] gives, for constants.
    pub const DEFAULT: Self = Self {
        data: b"",
        form: DataForm::Plain,
        info: None,
        offset: 0,
        tags: Tags::NONE,
        epoch: None,
        channel: "",
        time_ms: 0,
    };
}

/// How the data of a publication is written (protocol, section 21.2). In Protobuf it is bytes in all
/// forms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DataForm {
    /// Full. JSON as it is, less its line feeds.
    #[default]
    Plain,
    /// Full, for a subscription with delta. In JSON a string that holds the text.
    Text,
    /// A patch to the publication before, for a subscription with delta. In JSON a string: only a
    /// patch that is UTF-8 can be one.
    Patch,
}

impl DataForm {
    /// How a publication in full is written for a subscriber of that form.
    pub fn full(form: Form) -> Self {
        match form.data() {
            Data::Text | Data::Delta if !form.is_protobuf() => Self::Text,
            _ => Self::Plain,
        }
    }
}
