//! The context of a turn: what every group of a shard reads and none of them changes.
//!
//! It is taken anew behind each wait, so that a turn sees one moment and one set of rules, and is
//! passed down as `&Cx`.

use std::ops::Deref;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use crate::base::counters::Gauge;
use crate::base::id::{ConnKey, ShardId};
use crate::base::software::SoftwareId;
use crate::base::time::{Millis, UnixSeconds};
use crate::edge::channels::ChannelRules;
use crate::edge::client_id::ClientId;
use crate::session::ClientOptions;
use crate::shard::http::endpoint::EndpointKind;
use crate::shard::mail::Method;
use crate::shard::net::timers::tick_of;
use crate::shard::node_state::NodeState;
use crate::shard::stats::{NamespaceCounters, ShardCounters};

/// Facts of the node and rules of this turn.
pub(crate) struct Cx {
    /// What all shards share.
    pub(crate) node: Arc<NodeState>,
    /// Number of this shard.
    pub(crate) id: ShardId,
    /// The rules of channels.
    pub(crate) channels: Arc<ChannelRules>,
    /// The rules of channels that are in force, and options of clients, as all shards share them: a look at
    /// each costs one load as long as nobody replaces it.
    latest_channels: Cache<ChannelsOf, Arc<ChannelRules>>,
    latest_client: Cache<ClientOf, Arc<ClientOptions>>,
    /// The options that `client` is a copy of: its address tells whether they have changed.
    client_rules: Arc<ClientOptions>,
    /// A copy of them whose references no other shard counts: cloning it writes to no shared cache line.
    pub(crate) client: Arc<ClientOptions>,
    /// The moment of this turn.
    pub(crate) now: Millis,
    /// The same by the wall clock.
    pub(crate) unix: UnixSeconds,
    /// No command is begun: the shard is to be written to bytes.
    pub(crate) settles: bool,
    /// The next turn is the first one behind a time in which the shard settled or was handed over.
    pub(crate) resumes: bool,
    /// When it went on last.
    pub(crate) resumed_tick: Option<u32>,
}

/// Where the rules of channels of a node are.
struct ChannelsOf(Arc<NodeState>);

impl Deref for ChannelsOf {
    type Target = ArcSwap<ChannelRules>;

    fn deref(&self) -> &Self::Target {
        &self.0.rules.channels
    }
}

/// Where the options of clients of a node are.
struct ClientOf(Arc<NodeState>);

impl Deref for ClientOf {
    type Target = ArcSwap<ClientOptions>;

    fn deref(&self) -> &Self::Target {
        &self.0.rules.client
    }
}

impl Cx {
    /// The context before the first turn.
    pub(crate) fn new(node: Arc<NodeState>, id: ShardId, now: Millis, unix: UnixSeconds) -> Self {
        let mut latest_channels = Cache::new(ChannelsOf(Arc::clone(&node)));
        let mut latest_client = Cache::new(ClientOf(Arc::clone(&node)));
        let client_rules = Arc::clone(latest_client.load());
        Self {
            id,
            channels: Arc::clone(latest_channels.load()),
            client: Arc::new(ClientOptions::clone(&client_rules)),
            client_rules,
            latest_channels,
            latest_client,
            now,
            unix,
            settles: false,
            resumes: false,
            resumed_tick: None,
            node,
        }
    }

    /// Begins a turn: its moment, and the rules that a reload may have replaced.
    pub(crate) fn begin_turn(&mut self, now: Millis, unix: UnixSeconds) {
        (self.now, self.unix) = (now, unix);
        if std::mem::take(&mut self.resumes) {
            self.resumed_tick = Some(self.tick());
        }
        self.look_at_rules();
    }

    /// Takes the rules that a reload has replaced.
    pub(crate) fn look_at_rules(&mut self) {
        let current = self.latest_channels.load();
        if !Arc::ptr_eq(current, &self.channels) {
            self.channels = Arc::clone(current);
        }
        let current = self.latest_client.load();
        if !Arc::ptr_eq(current, &self.client_rules) {
            self.client_rules = Arc::clone(current);
            self.client = Arc::new(ClientOptions::clone(current));
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

    /// Counters of a namespace on this shard. Those of namespaces that a reload has added are together.
    pub(crate) fn of_namespace(&self, namespace: u16) -> &NamespaceCounters {
        let counters = &self.node.namespaces[self.id.index()];
        &counters[usize::from(namespace).min(counters.len() - 1)]
    }

    /// Clients of this shard with a software.
    pub(crate) fn software_clients(&self, software: SoftwareId) -> &Gauge {
        self.node.software_clients[self.id.index()].of(software)
    }

    /// Counts a response to a request for the endpoint at this place of the options; `None`: for a path without one.
    pub(crate) fn count_response(&self, endpoint: Option<usize>, status: u16) {
        let of_shard = &self.node.responses[self.id.index()];
        let at = endpoint.unwrap_or(usize::MAX).min(of_shard.len() - 1);
        of_shard[at].count(status);
    }

    /// The place of an endpoint in the options, by its path.
    pub(crate) fn endpoint_at(&self, path: &str) -> Option<usize> {
        self.node.options.endpoints.iter().position(|endpoint| endpoint.path == path)
    }

    /// The same by its kind.
    pub(crate) fn endpoint_of(&self, kind: EndpointKind) -> Option<usize> {
        self.node.options.endpoints.iter().position(|endpoint| endpoint.kind == kind)
    }

    /// The low bits of the clock: a command that takes longer than they count is a wrong figure, no more.
    pub(crate) fn low_ms(&self) -> u16 {
        self.now.0 as u16
    }

    /// Takes the time of a command that is answered; `began_ms`: the low bits of the clock when it came.
    pub(crate) fn time_answer(&self, method: Method, began_ms: u16) {
        if let Some(times) = self.node.commands[self.id.index()].get(method as usize) {
            let ms = self.low_ms().wrapping_sub(began_ms);
            times.record(u32::from(ms) * 1000);
        }
    }

    /// The client id of a connection of this shard.
    pub(crate) fn client_id(&self, key: ConnKey) -> ClientId {
        self.node.rules.client_ids.seal(self.id, key)
    }

    /// The timer tick of this turn.
    pub(crate) fn tick(&self) -> u32 {
        tick_of(self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::times::Counts;
    use crate::shard::fixture::Plan;

    #[test]
    fn times_of_commands_are_differences_of_low_bits() {
        let mut cx = Plan::default().cx();
        cx.now = Millis(65_530);
        let began_ms = cx.low_ms();
        cx.now = Millis(65_540);
        cx.time_answer(Method::Publish, began_ms);
        // A method that isn't timed changes nothing.
        cx.time_answer(Method::Other, began_ms);
        let mut times = Counts::default();
        cx.node.commands[0].iter().for_each(|method| method.add_to(&mut times));
        assert_eq!((times.count(), times.total_us()), (1, 10_000));
    }

    #[test]
    fn a_turn_begins_with_the_rules_that_a_reload_has_replaced() {
        let mut cx = Plan::default().cx();
        let (channels, client) = (Arc::clone(&cx.channels), Arc::clone(&cx.client));
        cx.begin_turn(Millis(2_000), UnixSeconds(1_000_001));
        assert!(Arc::ptr_eq(&cx.channels, &channels) && Arc::ptr_eq(&cx.client, &client));
        assert_eq!((cx.now, cx.unix.0, cx.tick()), (Millis(2_000), 1_000_001, 20));
        let changed = ClientOptions { channel_limit: 7, ..ClientOptions::clone(&client) };
        cx.node.rules.client.store(Arc::new(changed));
        assert_ne!(cx.client.channel_limit, 7, "a turn sees one set of rules");
        cx.begin_turn(Millis(2_001), UnixSeconds(1_000_001));
        assert_eq!(cx.client.channel_limit, 7);
    }
}
