//! The state that all shards of a node share: facts that don't change, and a few atomics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use arc_swap::ArcSwap;

use super::crypto::Crypto;
use super::mail::Method;
use super::memory::Memory;
use super::notices::Notices;
use super::options::Options;
use super::stats::{NamespaceCounters, ShardCounters};
use crate::base::rate::SharedRate;
use crate::base::software::{SoftwareClients, SoftwareTable};
use crate::base::statuses::Statuses;
use crate::base::times::Times;
use crate::edge::address_limits::AddressLimits;
use crate::hub::names::NameHasher;
use crate::proto::tls::handshake::ServerSettings;
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
    /// Counters of namespaces, for each shard by namespace; the last entry of a shard is for
    /// namespaces that a reload has added.
    pub namespaces: Vec<Vec<NamespaceCounters>>,
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
    /// Time from a ping to its pong, for each shard; precise to a turn and a millisecond.
    pub round_trips: Vec<Times>,
    /// Responses to requests that shards answer, for each shard by endpoint; the last entry of a shard is for paths
    /// without an endpoint.
    pub responses: Vec<Vec<Statuses>>,
    /// Names and versions of clients.
    pub software: SoftwareTable,
    /// Clients by name and version, for each shard.
    pub software_clients: Vec<SoftwareClients>,
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
    /// TLS of the public listeners; `None`: they speak plain text. A reload stores other settings, and the
    /// next handshake begins with them.
    pub tls: Option<Arc<ArcSwap<ServerSettings>>>,
}

/// The parts of a node that are made for it.
pub struct NodeParts {
    /// Rules of sessions.
    pub rules: Rules,
    /// Options of the shards.
    pub options: Options,
    /// Hashes names; knows the number of shards.
    pub names: NameHasher,
    /// Executor of cryptography.
    pub crypto: Crypto,
    /// Memory: limit and use.
    pub memory: Memory,
    /// Connections and rates by client address.
    pub addresses: AddressLimits,
    /// Log lines about refusals and closed connections.
    pub notices: Notices,
    /// TLS of the public listeners.
    pub tls: Option<Arc<ArcSwap<ServerSettings>>>,
}

impl NodeState {
    /// The state of a node that begins: nothing is counted yet.
    pub fn new(parts: NodeParts) -> Self {
        let NodeParts { rules, options, names, crypto, memory, addresses, notices, tls } = parts;
        let namespaces = rules.channels.load().namespaces().len();
        let of_namespaces = || (0..=namespaces).map(|_| NamespaceCounters::default()).collect();
        // One more for paths without an endpoint.
        let endpoints = options.endpoints.len() + 1;
        let responses = || (0..endpoints).map(|_| Statuses::default()).collect();
        let shards = names.shards();
        let times = || (0..shards).map(|_| Times::default()).collect();
        Self {
            rules,
            options,
            names,
            counters: (0..shards).map(|_| ShardCounters::default()).collect(),
            namespaces: (0..shards).map(|_| of_namespaces()).collect(),
            loop_lag: times(),
            fan_out: times(),
            fan_out_size: times(),
            commands: (0..shards).map(|_| Default::default()).collect(),
            round_trips: times(),
            responses: (0..shards).map(|_| responses()).collect(),
            software: SoftwareTable::default(),
            software_clients: (0..shards).map(|_| SoftwareClients::default()).collect(),
            crypto,
            open: (0..shards).map(|_| AtomicU32::new(0)).collect(),
            clients: AtomicU64::new(0),
            admins: AtomicU32::new(0),
            users: AtomicU64::new(0),
            client_rate: SharedRate::default(),
            memory,
            addresses,
            draining: AtomicBool::new(false),
            drained: AtomicU32::new(0),
            notices,
            tls,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::shard::fixture::Plan;

    #[test]
    fn each_shard_has_its_counters() {
        let node = Plan { shards: 3, ..Plan::default() }.node();
        let lengths =
            [node.counters.len(), node.namespaces.len(), node.loop_lag.len(), node.commands.len()];
        assert_eq!((lengths, node.open.len()), ([3; 4], 3));
        // One namespace, and the place for those that a reload adds.
        assert_eq!(node.namespaces[0].len(), node.rules.channels.load().namespaces().len() + 1);
    }
}
