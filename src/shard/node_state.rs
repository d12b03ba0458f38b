//! The state that all shards of a node share: facts that don't change, and a few atomics.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use super::crypto::Crypto;
use super::mail::Method;
use super::memory::Memory;
use super::notices::Notices;
use super::options::Options;
use super::stats::{ShardCounters, SlowCounters};
use crate::base::rate::SharedRate;
use crate::base::times::Times;
use crate::edge::address_limits::AddressLimits;
use crate::hub::names::NameHasher;
use crate::session::Rules;

/// The state that all shards of a node share: facts that don't change, and a few atomics.
pub struct NodeState {
    /// Rules of sessions.
    pub rules: Rules,
    /// Options of the shards.
    pub options: Options,
    /// Hashes names, and so decides which shard is the home of a channel, user or token.
    pub names: NameHasher,
    /// Counters of each shard.
    pub counters: Vec<ShardCounters>,
    /// Counters of slow clients, for each shard by namespace; the last entry of a shard is for
    /// namespaces that a reload has added.
    pub slow: Vec<Vec<SlowCounters>>,
    /// Working time of turns, for each shard.
    pub loop_lag: Vec<Times>,
    /// Time from a publication at its home to the write for its last subscriber on a shard, for each
    /// shard; precise to a turn and a millisecond.
    pub fan_out: Vec<Times>,
    /// Number of a publication's subscribers on a shard, for each shard.
    pub fan_out_size: Vec<Times>,
    /// Time from a command to its answer, for each shard by [`Method`]; precise to a turn and a
    /// millisecond.
    pub commands: Vec<[Times; Method::NAMES.len()]>,
    /// Executor of cryptography that takes too long for a shard.
    pub crypto: Crypto,
    /// Open connections of each shard: a full shard passes new ones to the least loaded.
    pub open: Vec<AtomicU32>,
    /// Clients of the node, for `client.connection_limit`.
    pub clients: AtomicU64,
    /// Connected administrators: without any, no figures are computed for them.
    pub admins: AtomicU32,
    /// Distinct users of all shards, by the last count.
    pub users: AtomicU64,
    /// New clients of all shards, for `client.connection_rate_limit`.
    pub client_rate: SharedRate,
    /// Memory: limit and use.
    pub memory: Memory,
    /// Connections and rates by client address.
    pub addresses: AddressLimits,
    /// The node closes its connections, and ends.
    pub draining: AtomicBool,
    /// Number of shards that have drained.
    pub drained: AtomicU32,
    /// Log lines about refusals and closed connections.
    pub notices: Notices,
}
