//! The plan of a run with several nodes, from its seed.

use arc_swap::ArcSwap;
use roost::base::rng::Rng;
use roost::cluster::names::{Layout, Names, Partitions};
use roost::cluster::operations::Operations;
use roost::edge::channels::{ChannelRules, ChannelSyntax, Namespace};
use roost::edge::client_id::ClientIdSealer;
use roost::edge::jwt::{TokenKeys, TokenOptions};
use roost::edge::origin::OriginRules;
use roost::io::sim::{Faults, Sizes};
use roost::session::{ClientOptions, Rules};
use roost::shard::{Broker, Options};

use crate::plan::{Plan, SECRET};

/// A fault of a run. Each may come several times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// PUB/SUB connections end, commands work.
    PubSubCut,
    /// PUB/SUB connections carry nothing, and don't end.
    PubSubDeaf,
    /// Command connections end, PUB/SUB works. What was sent is carried out or not; its replies are lost.
    CommandsCut,
    /// Redis does nothing for longer than commands wait, and carries them out afterwards.
    Freeze,
    /// Redis is slow.
    Slow,
    /// Messages to one node are late.
    Lag,
    /// Messages come twice.
    Double,
    /// Redis is away for a while, and comes back with its data.
    Away,
    /// The same, but as a copy that lacks the latest writes.
    FailOver,
    /// The same, but without data.
    Empty,
    /// The position or the history of a channel is evicted.
    Evict,
    /// A node dies, and its clients go to others. It comes back as another one.
    Kill,
    /// A node is paused for up to 20 s.
    Pause,
    /// A node is drained: its clients go to others.
    Drain,
    /// A home has no room for publications for a while: its broker thread drops them, and lets the channels
    /// begin anew.
    HomeFull,
}

impl Fault {
    pub(crate) const ALL: [Self; 15] = [
        Self::PubSubCut,
        Self::PubSubDeaf,
        Self::CommandsCut,
        Self::Freeze,
        Self::Slow,
        Self::Lag,
        Self::Double,
        Self::Away,
        Self::FailOver,
        Self::Empty,
        Self::Evict,
        Self::Kill,
        Self::Pause,
        Self::Drain,
        Self::HomeFull,
    ];

    /// Redis may lose something that it had.
    fn loses_data(self) -> bool {
        matches!(self, Self::FailOver | Self::Empty | Self::Evict)
    }

    /// Join and leave events may be lost: a slow Redis lets them wait for too long, too.
    fn loses_events(self) -> bool {
        !matches!(self, Self::Double | Self::HomeFull)
    }
}

/// Something wrong between a node and its clients or Redis: each breaks a rule of the checker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sabotage {
    DropPublication,
    RepeatPublication,
    FalseRecovery,
    DropLastPublications,
    ForgetPublication,
    StoreTwice,
    CloseConnection,
    PermanentError,
    DropReply,
    DropPresence,
    RepeatJoin,
    ReadTwice,
    DropUnlisten,
    ForgetPosition,
}

/// Channels, each of another kind. All but `plain` have history.
pub(crate) const CHANNELS: [&str; 6] = ["rec:a", "rec:b", "pos:a", "small:a", "delta:a", "plain"];

/// The channel of clients whose tokens name one.
pub(crate) const BY_TOKEN: &str = "rec:b";

pub(crate) struct NodesPlan {
    pub(crate) nodes: usize,
    /// Shards of each node.
    pub(crate) shards: Vec<usize>,
    pub(crate) clients: usize,
    pub(crate) faults: Vec<Fault>,
    /// One fault in so many milliseconds, about.
    pub(crate) fault_every_ms: u64,
    pub(crate) faults_ms: u64,
    /// Milliseconds between two actions of a client, at most.
    pub(crate) think_ms: u64,
    /// Publications of the server API: one in so many milliseconds, about.
    pub(crate) api_every_ms: u64,
    pub(crate) net: Faults,
    pub(crate) pipe_bytes: usize,
    pub(crate) mailbox_batches: usize,
    pub(crate) queue_max: usize,
    /// It is so small in the beginning that commands fail, those without an answer too.
    pub(crate) has_full_queues: bool,
    /// Milliseconds to and from Redis at most.
    pub(crate) redis_delay: u64,
    pub(crate) operations: Operations,
    pub(crate) options: Options,
    pub(crate) client: ClientOptions,
    pub(crate) namespaces: Vec<Namespace>,
    pub(crate) slow_clients: usize,
    pub(crate) sabotage: Option<Sabotage>,
    pub(crate) kind: &'static super::broker::Broker,
}

fn pick<T: Clone>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.below(from.len() as u64) as usize].clone()
}

impl NodesPlan {
    pub(crate) fn draw(seed: u64, rng: &mut Rng) -> Self {
        let nodes = 2 + rng.below(3) as usize;
        let shards = (0..nodes).map(|_| 1 + rng.below(3) as usize).collect();
        // One run in eight has no faults at all: nobody misses anything there.
        let is_calm = seed.is_multiple_of(8);
        let count = if is_calm { 0 } else { 1 + rng.below(4) as usize };
        let faults: Vec<Fault> = (0..count).map(|_| pick(rng, &Fault::ALL)).collect();
        let net = Faults {
            delay_ms_max: pick(rng, &[0, 2, 15]),
            segment_bytes_max: pick(rng, &[40, 1_400, 65_536]),
            partial_read_one_in: pick(rng, &[0, 5]),
            partial_write_one_in: pick(rng, &[0, 5]),
            blocked_write_one_in: pick(rng, &[0, 10]),
            late_send_one_in: pick(rng, &[0, 3]),
            read_ahead_one_in: pick(rng, &[0, 5]),
            reset_one_in: if is_calm { 0 } else { pick(rng, &[0, 0, 2_000]) },
            ..Faults::NONE
        };
        // Options of shards and clients as the runs of one node draw them; what clients here rely on is set.
        let drawn = Plan::draw(rng);
        let options = Options {
            broker: Broker::Remote,
            broker_window_bytes: pick(rng, &[0, 3_000, 1 << 20]),
            conns_soft: 500,
            conns_max: 500,
            requests_unanswered_max: pick(rng, &[2, 50, 4_096]),
            turn_deliveries_max: pick(rng, &[1, 20, 2_048]),
            turn_ordered_max: pick(rng, &[1, 3, 256]),
            channels_idle_max: pick(rng, &[0, 100]),
            handshake_timeout_ms: 10_000,
            close_timeout_ms: 5_000,
            write_timeout_ms: 30_000,
            idle_timeout_ms: 60_000,
            ..drawn.options
        };
        let client = ClientOptions {
            proxies: Default::default(),
            concurrency: pick(rng, &[0, 2]),
            ping_interval_ms: Some(10_000),
            pong_timeout_ms: Some(8_000),
            stale_close_delay_ms: Some(20_000),
            queue_bytes_max: 1 << 20,
            connection_limit: 0,
            user_connection_limit: 0,
            history_publications_max: 300,
            recovery_publications_max: pick(rng, &[3, 20, 300]),
            personal_channel: None,
            ..drawn.client
        };
        let layout = match rng.below(4) {
            0 => Layout::Cluster,
            1 => Layout::Sharded(Partitions::balanced(16).unwrap()),
            _ => Layout::Plain,
        };
        let use_lists = rng.one_in(4);
        let operations = Operations {
            names: Names::new("centrifugo", layout),
            use_lists,
            presence_ttl_s: 60,
            presence_users: rng.one_in(2),
            presence_field_ttl: rng.one_in(3),
        };
        let slow_clients = if rng.one_in(3) { 1 + rng.below(2) as usize } else { 0 };
        let queue_max = if is_calm { 10_000 } else { pick(rng, &[5, 10_000, 10_000]) };
        Self {
            has_full_queues: queue_max < 1_000,
            nodes,
            shards,
            clients: 3 + rng.below(8) as usize,
            faults,
            fault_every_ms: pick(rng, &[1_000, 2_500, 5_000]),
            faults_ms: if is_calm { 5_000 } else { 5_000 + rng.below(12_000) },
            think_ms: pick(rng, &[150, 400, 1_500]),
            api_every_ms: pick(rng, &[50, 200, 1_000]),
            net,
            pipe_bytes: pick(rng, &[4_096, 65_536]),
            mailbox_batches: pick(rng, &[1, 3, 256]),
            queue_max,
            redis_delay: pick(rng, &[0, 1, 8]),
            operations,
            options,
            client,
            namespaces: namespaces(rng),
            slow_clients,
            sabotage: None,
            kind: &super::broker::REDIS,
        }
    }

    /// A quiet system of two nodes with so many clients.
    pub(crate) fn calm(clients: usize) -> Self {
        let mut plan = Self::draw(0, &mut Rng::new(0));
        (plan.nodes, plan.shards, plan.clients) = (2, vec![2, 2], clients);
        (plan.slow_clients, plan.net) = (0, Faults::NONE);
        plan.options.broker_window_bytes = 1 << 20;
        plan.client.recovery_publications_max = 300;
        plan.namespaces.iter_mut().for_each(|of| of.history_size = 300);
        plan
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.faults.is_empty()
    }

    pub(crate) fn sizes(&self, node: usize) -> Sizes {
        Sizes {
            shards: self.shards[node],
            pipe_bytes: self.pipe_bytes,
            read_buffer_bytes: 4_096,
            passing: 64,
            events: 64,
        }
    }

    /// The rules of a process: no two have the same keys of client ids.
    pub(crate) fn rules(&self, node: usize, process: u8) -> Rules {
        Rules {
            api: ArcSwap::from_pointee(None),
            client: ArcSwap::from_pointee(self.client.clone()),
            keys: TokenKeys::new(&TokenOptions {
                hmac_secret_key: SECRET.into(),
                ..TokenOptions::default()
            })
            .unwrap(),
            subscription_keys: None,
            channels: ChannelRules::new(open(), self.namespaces.clone(), ChannelSyntax::default())
                .into_shared(),
            origins: ArcSwap::from_pointee(OriginRules::new(&["*".to_string()]).unwrap()),
            client_ids: ClientIdSealer::new(&[process; 32]),
            session_ids: ClientIdSealer::new(&[process.wrapping_add(128); 32]),
            node_id: format!("node{node}"),
            rpc: Default::default(),
            admin: None,
        }
    }

    /// Whether histories of channels but `small` lack nothing, so that nobody may be told of a gap.
    pub(crate) fn keeps_all(&self) -> bool {
        !self.faults.iter().any(|fault| fault.loses_data())
            && self.namespaces.iter().all(|of| of.name == "small" || of.history_size >= 300)
    }

    /// Whether no event is lost, so that joins and leaves of a client alternate.
    pub(crate) fn keeps_events(&self) -> bool {
        !self.faults.iter().any(|fault| fault.loses_events()) && !self.has_full_queues
    }

    /// Whether a channel has positions.
    pub(crate) fn has_history(channel: &str) -> bool {
        channel != "plain"
    }

    /// Publications that a recovery in a channel may have.
    pub(crate) fn recovered_max(&self, channel: &str) -> u64 {
        let name = channel.split(':').next();
        let namespace = self.namespaces.iter().find(|of| Some(&*of.name) == name);
        let kept = namespace.map_or(0, |of| of.history_size as usize);
        kept.min(self.client.recovery_publications_max) as u64
    }

    /// Whether a client recovers in a channel.
    pub(crate) fn recovers(channel: &str) -> bool {
        ["rec", "small", "delta"].iter().any(|name| channel.starts_with(name))
    }
}

fn open() -> Namespace {
    Namespace {
        allow_subscribe_for_client: true,
        allow_subscribe_for_anonymous: true,
        allow_publish_for_client: true,
        allow_publish_for_anonymous: true,
        allow_presence_for_client: true,
        allow_presence_for_anonymous: true,
        allow_history_for_client: true,
        allow_history_for_anonymous: true,
        presence: true,
        join_leave: true,
        force_push_join_leave: true,
        ..Namespace::default()
    }
}

fn namespaces(rng: &mut Rng) -> Vec<Namespace> {
    let history = Namespace {
        history_size: pick(rng, &[20, 300]),
        history_ttl_ms: 300_000,
        history_meta_ttl_ms: pick(rng, &[0, 3_600_000]),
        ..open()
    };
    vec![
        Namespace { name: "rec".into(), force_recovery: true, ..history.clone() },
        Namespace { name: "pos".into(), force_positioning: true, ..history.clone() },
        Namespace {
            name: "delta".into(),
            force_recovery: true,
            delta_allowed: true,
            delta_publish: true,
            ..history.clone()
        },
        Namespace {
            name: "small".into(),
            history_size: 1 + rng.below(4) as u32,
            force_recovery: true,
            ..history
        },
    ]
}
