//! Calls of the server API as values, and their results. A front reads a call from its own encoding and
//! writes the reply in it.

use std::sync::Arc;

use compact_str::CompactString;

use super::error::{ApiError, Result};
use super::work::{Work, is_nested_deeper};
use crate::base::bytes::SharedBytes;
use crate::base::frame::SharedFrame;
use crate::base::limits::{API_NESTING_MAX, API_SPARED_MAX, API_TAGS_MAX};
use crate::base::tags::Tags;
use crate::edge::jwt::Overrides;
use crate::hub::history::Since;
use crate::node::info::NodeInfo;
use crate::node::orders::Target;
use crate::proto::client;
use crate::shard::mail::PublishOptions;

/// A payload that may go to clients.
#[derive(Clone, Debug, Default)]
pub(in crate::node) struct Payload {
    bytes: SharedBytes,
    is_json: bool,
}

impl Payload {
    /// A JSON text, or nothing. Fronts have parsed it.
    ///
    /// # Errors
    /// It is nested too deep: a client's parser may recurse.
    pub(in crate::node) fn json(text: &str) -> Result<Self> {
        match is_nested_deeper(text, API_NESTING_MAX) {
            true => Err(ApiError::TooDeep),
            false => Ok(Self { bytes: text.as_bytes().into(), is_json: true }),
        }
    }

    /// Any bytes, JSON among them.
    ///
    /// # Errors
    /// They are JSON, nested too deep.
    pub(in crate::node) fn bytes(bytes: &[u8]) -> Result<Self> {
        let is_json = client::is_json(bytes);
        // In what isn't JSON brackets in a row mean nothing.
        let text = std::str::from_utf8(bytes).ok().filter(|_| is_json);
        match text.is_some_and(|text| is_nested_deeper(text, API_NESTING_MAX)) {
            true => Err(ApiError::TooDeep),
            false => Ok(Self { bytes: bytes.into(), is_json }),
        }
    }

    /// An owned copy, for what is kept with a subscription.
    pub(super) fn into_owned(self) -> Box<[u8]> {
        (&*self.bytes).into()
    }
}

/// The published content, for any channel. A clone shares payload, tags and options.
#[derive(Clone, Debug)]
pub(in crate::node) struct Content {
    pub(super) data: SharedBytes,
    pub(super) is_json: bool,
    /// Packed.
    pub(super) tags: SharedBytes,
    pub(super) options: Option<Arc<PublishOptions>>,
}

impl Content {
    /// A payload with tags and options.
    ///
    /// # Errors
    /// There are too many tags.
    pub(in crate::node) fn new<'t>(
        payload: Payload,
        tags: impl ExactSizeIterator<Item = (&'t str, &'t str)>,
        options: PublishOptions,
    ) -> Result<Self> {
        let tags = match tags.len() {
            0 => SharedBytes::default(),
            1..=API_TAGS_MAX => (&*Tags::pack(tags)).into(),
            _ => return Err(ApiError::TooMuch),
        };
        let options = (options != PublishOptions::default()).then(|| Arc::new(options));
        Ok(Self { data: payload.bytes, is_json: payload.is_json, tags, options })
    }

    /// Bytes that each channel gets, about.
    pub(super) fn len(&self) -> usize {
        let keys = self
            .options
            .as_ref()
            .map_or(0, |options| options.idempotency_key.len() + options.version_epoch.len());
        self.data.len() + self.tags.len() + keys
    }
}

/// Publishes into one channel.
#[derive(Clone, Debug)]
pub(in crate::node) struct PublishCall {
    pub(in crate::node) channel: String,
    pub(in crate::node) content: Content,
    /// The result has the number of subscribers.
    pub(in crate::node) counts: bool,
}

/// Publishes the same into many channels.
#[derive(Clone, Debug)]
pub(in crate::node) struct BroadcastCall {
    pub(in crate::node) channels: Vec<String>,
    pub(in crate::node) content: Content,
}

/// Where a channel stands with a publication; offset 0 and no epoch where it keeps none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::node) struct Published {
    pub(in crate::node) offset: u64,
    pub(in crate::node) epoch: CompactString,
    /// Subscribers on all nodes, where the call requested their number and all nodes have answered.
    pub(in crate::node) subscribers: Option<u32>,
}

/// Subscribes connections to a channel.
#[derive(Clone, Debug, Default)]
pub(in crate::node) struct SubscribeCall {
    pub(in crate::node) target: Target,
    pub(in crate::node) channel: String,
    pub(in crate::node) info: Payload,
    pub(in crate::node) data: Payload,
    /// Unix seconds; 0 or less is never.
    pub(in crate::node) expire_at: i64,
    pub(in crate::node) overrides: Overrides,
    pub(in crate::node) since: Option<Since>,
}

/// Ends subscriptions to a channel, or all when its name is empty.
#[derive(Clone, Debug, Default)]
pub(in crate::node) struct UnsubscribeCall {
    pub(in crate::node) target: Target,
    pub(in crate::node) channel: String,
}

/// Closes connections.
#[derive(Clone, Debug, Default)]
pub(in crate::node) struct DisconnectCall {
    pub(in crate::node) target: Target,
    /// Code and reason of the close; code 0 is the usual one.
    pub(in crate::node) code: u32,
    pub(in crate::node) reason: String,
    /// Client ids of connections that stay.
    pub(in crate::node) spare: Vec<CompactString>,
}

/// Changes when connections expire, and their info.
#[derive(Clone, Debug, Default)]
pub(in crate::node) struct RefreshCall {
    pub(in crate::node) target: Target,
    pub(in crate::node) expired: bool,
    /// Unix seconds; 0 or less is never.
    pub(in crate::node) expire_at: i64,
    pub(in crate::node) info: Payload,
}

/// Reads publications that a channel keeps.
#[derive(Clone, Debug, Default)]
pub(in crate::node) struct HistoryCall {
    pub(in crate::node) channel: String,
    /// Publications at most; below 0: no limit.
    pub(in crate::node) limit: i64,
    pub(in crate::node) since: Option<Since>,
    pub(in crate::node) reverse: bool,
}

/// A call to a map or a polled channel, which no namespace has.
#[derive(Clone, Debug, Default)]
pub(in crate::node) struct Keyed {
    pub(in crate::node) channel: String,
    pub(in crate::node) key: String,
    pub(in crate::node) version: u64,
}

/// How many are in a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::node) struct PresenceStats {
    pub(in crate::node) clients: u32,
    pub(in crate::node) users: u32,
}

/// Any call.
#[derive(Clone, Debug)]
pub(in crate::node) enum Call {
    Publish(PublishCall),
    Broadcast(BroadcastCall),
    Subscribe(Box<SubscribeCall>),
    Unsubscribe(UnsubscribeCall),
    Disconnect(DisconnectCall),
    Refresh(RefreshCall),
    /// Of a channel.
    Presence(String),
    /// Of a channel.
    PresenceStats(String),
    History(HistoryCall),
    /// Of a channel.
    HistoryRemove(String),
    /// By a pattern.
    Channels(String),
    Info,
    /// By the name of the procedure.
    Rpc(String),
    /// A call to a map that needs a key.
    MapKey(Keyed),
    /// A call to a whole map.
    Map(Keyed),
    SharedPoll(Keyed),
}

impl Call {
    /// The name of its method, or of the group that it belongs to, for log lines.
    pub(super) fn method(&self) -> &'static str {
        match self {
            Self::Publish(_) => "publish",
            Self::Broadcast(_) => "broadcast",
            Self::Subscribe(_) => "subscribe",
            Self::Unsubscribe(_) => "unsubscribe",
            Self::Disconnect(_) => "disconnect",
            Self::Refresh(_) => "refresh",
            Self::Presence(_) => "presence",
            Self::PresenceStats(_) => "presence_stats",
            Self::History(_) => "history",
            Self::HistoryRemove(_) => "history_remove",
            Self::Channels(_) => "channels",
            Self::Info => "info",
            Self::Rpc(_) => "rpc",
            Self::MapKey(_) | Self::Map(_) => "map",
            Self::SharedPoll(_) => "shared_poll_publish",
        }
    }

    /// The work that it takes.
    pub(in crate::node) fn work(&self) -> Work {
        let (entries, bytes) = match self {
            Self::Publish(publish) => (0, publish.content.len()),
            Self::Broadcast(broadcast) => return broadcast.work(),
            Self::Disconnect(disconnect) => (disconnect.spare.len(), 0),
            _ => (0, 0),
        };
        Work { commands: 1, entries, bytes }
    }
}

impl BroadcastCall {
    /// The work that it takes.
    pub(super) fn work(&self) -> Work {
        let entries = self.channels.len();
        Work { commands: 1, entries, bytes: entries.saturating_mul(self.content.len()) }
    }
}

impl DisconnectCall {
    /// # Errors
    /// Too many connections stay.
    pub(super) fn check(&self) -> Result<()> {
        if self.spare.len() > API_SPARED_MAX { Err(ApiError::TooMuch) } else { Ok(()) }
    }
}

/// The result of a call.
#[derive(Debug)]
pub(in crate::node) enum Reply {
    Published(Published),
    /// In the order of channels.
    Broadcast(Vec<Result<Published>>),
    PresenceStats(PresenceStats),
    /// Presence or history, as the channel's home has encoded it.
    Encoded(SharedFrame),
    /// Names and subscribers, in the order of names.
    Channels(Vec<(CompactString, u32)>),
    /// This node's, and those of the others.
    Info(Vec<NodeInfo>),
    /// It is done, and there is nothing to say.
    Done,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(depth: usize) -> String {
        format!("{}{}", "[".repeat(depth), "]".repeat(depth))
    }

    #[test]
    fn json_is_nested_no_deeper_than_clients_can_read() {
        let (fits, deep) = (nested(API_NESTING_MAX), nested(API_NESTING_MAX + 1));
        assert!(Payload::json(&fits).is_ok() && Payload::bytes(fits.as_bytes()).is_ok());
        assert_eq!(Payload::json(&deep).unwrap_err(), ApiError::TooDeep);
        assert_eq!(Payload::bytes(deep.as_bytes()).unwrap_err(), ApiError::TooDeep);
        // Brackets of something else are bytes as any.
        let brackets = Payload::bytes("[".repeat(API_NESTING_MAX + 1).as_bytes()).unwrap();
        assert!(!brackets.is_json);
        assert!(Payload::bytes(b"{}").unwrap().is_json);
    }

    #[test]
    fn tags_are_bounded_and_a_clone_shares_its_content() {
        let names: Vec<String> = (0..=API_TAGS_MAX).map(|at| at.to_string()).collect();
        let content = |tags: usize| {
            let tags = names[..tags].iter().map(|name| (name.as_str(), "x"));
            let payload = Payload::json("{}").unwrap();
            Content::new(payload, tags, PublishOptions::default())
        };
        assert_eq!(content(API_TAGS_MAX + 1).unwrap_err(), ApiError::TooMuch);
        let content = content(API_TAGS_MAX).unwrap();
        let clone = content.clone();
        assert_eq!(clone.data.as_ptr(), content.data.as_ptr());
        assert_eq!(clone.tags.as_ptr(), content.tags.as_ptr());
        assert!(clone.options.is_none());
    }

    #[test]
    fn a_broadcast_counts_its_content_once_for_each_channel() {
        let options = PublishOptions { idempotency_key: "key".into(), ..Default::default() };
        let payload = Payload::json("\"0123\"").unwrap();
        let content = Content::new(payload, std::iter::empty(), options).unwrap();
        let channels = vec![String::new(); 5];
        let call = Call::Broadcast(BroadcastCall { channels, content });
        assert_eq!(call.work(), Work { commands: 1, entries: 5, bytes: 5 * 9 });
        assert_eq!(Call::Info.work(), Work::COMMAND);
    }
}
