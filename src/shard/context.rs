//! The context of a turn: what every group of a shard reads and none of them changes.
//!
//! It is taken anew behind each wait, so that a turn sees one moment and one set of rules, and is
//! passed down as `&Cx`.

use std::sync::Arc;

use crate::base::id::ShardId;
use crate::base::time::{Millis, UnixSeconds};
use crate::edge::channels::ChannelRules;
use crate::session::ClientOptions;
use crate::shard::net::timers::tick_of;
use crate::shard::node_state::NodeState;
use crate::shard::stats::ShardCounters;

/// Facts of the node and rules of this turn.
pub(crate) struct Cx {
    /// What all shards share.
    pub(crate) node: Arc<NodeState>,
    /// Number of this shard.
    pub(crate) id: ShardId,
    /// The rules of channels.
    pub(crate) channels: Arc<ChannelRules>,
    /// Options of clients, as all shards share them: its address tells whether they have changed.
    client_rules: Arc<ClientOptions>,
    /// A copy of them whose references no other shard counts: cloning it writes to no shared cache line.
    pub(crate) client: Arc<ClientOptions>,
    /// The moment of this turn.
    pub(crate) now: Millis,
    /// The same by the wall clock.
    pub(crate) unix: UnixSeconds,
}

impl Cx {
    /// The context before the first turn.
    pub(crate) fn new(node: Arc<NodeState>, id: ShardId, now: Millis, unix: UnixSeconds) -> Self {
        Self {
            id,
            channels: node.rules.channels.load_full(),
            client_rules: node.rules.client.load_full(),
            client: Arc::new(ClientOptions::clone(&node.rules.client.load())),
            now,
            unix,
            node,
        }
    }

    /// Begins a turn: its moment, and the rules that a reload may have replaced.
    pub(crate) fn begin_turn(&mut self, now: Millis, unix: UnixSeconds) {
        (self.now, self.unix) = (now, unix);
        self.look_at_rules();
    }

    /// Takes the rules that a reload has replaced.
    pub(crate) fn look_at_rules(&mut self) {
        let current = self.node.rules.channels.load();
        if !Arc::ptr_eq(&current, &self.channels) {
            self.channels = Arc::clone(&current);
        }
        let current = self.node.rules.client.load();
        if !Arc::ptr_eq(&current, &self.client_rules) {
            self.client_rules = Arc::clone(&current);
            self.client = Arc::new(ClientOptions::clone(&current));
        }
    }

    /// The rules of channels, with the namespace that a message names by number: another shard may
    /// know newer ones than this turn began with.
    pub(crate) fn channels_with(&self, namespace: u16) -> Arc<ChannelRules> {
        if usize::from(namespace) < self.channels.namespaces().len() {
            return Arc::clone(&self.channels);
        }
        self.node.rules.channels.load_full()
    }

    /// Counters of this shard.
    pub(crate) fn counters(&self) -> &ShardCounters {
        &self.node.counters[self.id.index()]
    }

    /// The timer tick of this turn.
    pub(crate) fn tick(&self) -> u32 {
        tick_of(self.now)
    }
}
