//! A `connect` that is good but not answered: subscriptions that the server makes are asked for at
//! their homes first, and what their channels have for the client meanwhile waits behind the reply.

use compact_str::CompactString;

use crate::base::expiry::Expiry;
use crate::base::frame::SharedFrame;
use crate::edge::channels::Asked;
use crate::edge::jwt::Overrides;
use crate::hub::history::Since;
use crate::proto::client::{Body, SubscribeResult};

/// A subscription that the server makes for a client, to be asked for.
#[derive(Clone, Debug, Default)]
pub struct ServerSub {
    /// The channel.
    pub channel: CompactString,
    /// Its namespace's number.
    pub namespace: u16,
    /// `chan_info`, empty for none.
    pub info: Box<[u8]>,
    /// Data for the result, empty for none.
    pub data: Box<[u8]>,
    /// Options that replace those of the namespace.
    pub overrides: Overrides,
    /// When it expires; `None` is never.
    pub expires: Option<Expiry>,
    /// The connection's token named it.
    pub by_token: bool,
    /// What the client has of it, if it wants the rest.
    pub since: Option<Since>,
    /// It asked for delta compression.
    pub delta: bool,
    /// It asked for position checks, for recovery, for join and leave events.
    pub asked: Asked,
}

/// One that is made: a subscribe result, owned.
#[derive(Debug)]
pub struct Made {
    /// The channel.
    pub channel: CompactString,
    /// Recovery is on.
    pub recoverable: bool,
    /// Positions are checked.
    pub positioned: bool,
    /// The stream's life; empty without a position.
    pub epoch: CompactString,
    /// Where it stands, or from where the publications are.
    pub offset: u64,
    /// The client asked for what it missed.
    pub was_recovering: bool,
    /// And that is all here.
    pub recovered: bool,
    /// The encoded list.
    pub publications: Option<SharedFrame>,
    /// Delta compression was granted.
    pub delta: bool,
    /// From the token.
    pub data: Box<[u8]>,
}

impl Made {
    /// As a subscribe result, with its publications in it.
    pub fn result(&self) -> SubscribeResult<'_> {
        SubscribeResult {
            recoverable: self.recoverable,
            epoch: &self.epoch,
            publications: Body::Here(self.publications.as_ref().map_or(b"", |list| list.bytes())),
            recovered: self.recovered,
            offset: self.offset,
            positioned: self.positioned,
            data: &self.data,
            was_recovering: self.was_recovering,
            delta: self.delta,
            ..SubscribeResult::default()
        }
    }
}

/// How far a `connect` is.
#[derive(Debug, Default)]
pub struct Connecting {
    /// The command's id.
    pub command: u32,
    /// The user's connections have to be counted first.
    pub to_count: bool,
    /// They are being counted.
    pub counting: bool,
    /// Subscriptions that are to be asked for, the last first.
    pub to_ask: Vec<ServerSub>,
    /// Answers that are to come.
    pub awaited: u32,
    /// Subscriptions that are made.
    pub made: Vec<Made>,
    /// When it came: the low bits of the shard's clock, milliseconds.
    pub began_ms: u16,
    /// Data for the result, from the application; empty for none.
    pub data: Box<[u8]>,
    /// Seconds until the connection expires, when the client refreshes it.
    pub ttl: Option<u32>,
}
