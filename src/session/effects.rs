//! The effects that a command may have: decided here, carried out by the shard.

use crate::base::expiry::Expiry;
use crate::base::limits::LARGE_ANSWER_CREDITS;
use crate::edge::channels::Granted;
use crate::hub::filter::Filter;
use crate::hub::history::{Page, Since};
use crate::proto::client::Reply;
use crate::session::app::AppResult;
use crate::session::{Renewal, SubFlags};

/// The one effect of a command.
#[derive(Debug)]
pub enum Effect<'a> {
    /// A pong has come.
    Pong,
    /// The reply is known.
    Reply(Reply<'a>),
    /// The data is not JSON, and the client speaks JSON: the connection is closed.
    Unfit,
    /// To the channel's home: publish. The home answers.
    Publish(Publication<'a>),
    /// To the channel's home: read something. The home answers.
    Read {
        /// The channel.
        channel: &'a str,
        /// Its namespace's number.
        namespace: u16,
        /// The part of its state.
        reading: Reading,
    },
    /// To the channel's home: one more subscriber. The home answers.
    Subscribe(NewSub<'a>),
    /// A subscription ends. The home answers.
    Unsubscribe {
        /// The channel.
        channel: &'a str,
        /// Its place on the shard.
        local: u32,
    },
    /// A new token of the connection: expiry, `conn_info` and `meta` change. Homes that have no room
    /// for the news stop it.
    Refresh {
        /// When the connection expires; `None` is never.
        expires: Option<Expiry>,
        /// Seconds until then.
        ttl: Option<u32>,
        /// `conn_info`, empty for none.
        info: Box<[u8]>,
        /// `meta`, empty for none.
        meta: Box<[u8]>,
    },
    /// A new token of a subscription: its expiry changes.
    SubRefresh {
        /// The channel's place on the shard.
        local: u32,
        /// When the subscription expires; `None` is never.
        expires: Option<Expiry>,
        /// Seconds until then.
        ttl: Option<u32>,
    },
}

/// Something to publish.
#[derive(Debug)]
pub struct Publication<'a> {
    /// The channel.
    pub channel: &'a str,
    /// Its namespace's number.
    pub namespace: u16,
    /// Its place on the shard, if connections here are subscribed to it.
    pub local: Option<u32>,
    /// The payload.
    pub data: &'a [u8],
    /// It is a JSON text.
    pub is_json: bool,
    /// The result of the application, where that decides.
    pub result: Option<&'a AppResult>,
}

/// The part of a channel's state that a command reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Members.
    Presence,
    /// Their number.
    PresenceStats,
    /// Publications.
    History(Page),
}

impl Reading {
    /// Credits that the answer may need: they bound the bytes of answers that are on their way.
    pub fn credits(&self) -> u8 {
        match self {
            Self::PresenceStats => 1,
            Self::History(page) if page.limit == 0 => 1,
            Self::Presence | Self::History(_) => LARGE_ANSWER_CREDITS,
        }
    }
}

/// A subscription that is about to be made.
#[derive(Debug)]
pub struct NewSub<'a> {
    /// The channel.
    pub channel: &'a str,
    /// Its namespace's number.
    pub namespace: u16,
    /// Granted by namespace, token and application.
    pub granted: Granted,
    /// The subscription's flags.
    pub flags: SubFlags,
    /// `chan_info`, empty for none.
    pub info: Box<[u8]>,
    /// Data for the result, empty for none.
    pub data: Box<[u8]>,
    /// When it expires; `None` is never.
    pub expires: Option<Expiry>,
    /// The renewal of one that expires.
    pub renewal: Renewal,
    /// The filter of the client.
    pub filter: Option<Filter>,
    /// The position from which publications were missed, where they are wanted.
    pub since: Option<Since>,
    /// Recovery means the latest publication alone.
    pub latest: bool,
    /// There will be no reply: missed publications go as pushes.
    pub as_pushes: bool,
}

impl NewSub<'_> {
    /// Credits that the home's answer may need.
    pub fn credits(&self) -> u8 {
        if self.since.is_some() { LARGE_ANSWER_CREDITS } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_may_be_large_take_more_credits() {
        let page = |limit| Reading::History(Page { limit, ..Page::default() });
        for (reading, credits) in [
            (Reading::PresenceStats, 1),
            (page(0), 1),
            (page(1), LARGE_ANSWER_CREDITS),
            (Reading::Presence, LARGE_ANSWER_CREDITS),
        ] {
            assert_eq!(reading.credits(), credits, "{reading:?}");
        }
    }
}
