//! The plan of a run, all drawn from the seed.

use arc_swap::ArcSwap;
use std::collections::BTreeMap;

use roost::base::rng::Rng;
use std::sync::Arc;

use roost::edge::address_limits::AddressOptions;
use roost::edge::channels::{
    Asked, ChannelRules, ChannelSyntax, DataFormat, Namespace, RecoveryMode, SlowPolicy,
};
use roost::edge::client_id::ClientIdSealer;
use roost::edge::host::HostRules;
use roost::edge::jwt::{TokenKeys, TokenOptions};
use roost::edge::origin::OriginRules;
use roost::edge::proxy::{ClientProxies, ProxyOptions};
use roost::io::sim::{Faults, Sizes};
use roost::proto::ws::DeflateOptions;
use roost::session::{ClientOptions, PersonalChannel, Rules};
use roost::shard::{
    AddressSources, Broker, Endpoint, EndpointKind, Options, Presence, UniWebSocketOptions,
};

use crate::client::Over;

/// The key of connection tokens.
pub(crate) const SECRET: &str = "simulation";

/// The public key of [`signed_token`].
const KEY: &str = include_str!("key.pem");

/// A token that is signed with ES256. Such signatures are random, so they were made once: one for each
/// of `user0` to `user19`, one `expired` and one `forged`.
pub(crate) fn signed_token(name: &str) -> Option<&'static str> {
    let mut tokens = include_str!("tokens.txt").lines().filter_map(|line| line.split_once(' '));
    tokens.find(|(known, _)| *known == name).map(|(_, token)| token)
}

/// A channel of which some publications are no JSON.
pub(crate) const BINARY: &str = "bin:x";

/// How a client behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Does what it should, and must be served.
    Normal,
    /// Comes and goes, in the middle of things too.
    Flaky,
    /// Reads late and little.
    Slow,
    /// Never answers a ping.
    Mute,
    /// Never says `connect`.
    Stale,
    /// Never finishes its request head.
    Loris,
    /// Breaks a rule.
    Hostile,
    /// Its request is no upgrade.
    Lost,
    /// Its token is not good, or not for long.
    Stranger,
    /// Stops reading and writing, and stays.
    Frozen,
    /// Speaks plain WebSocket to `/echo`.
    Echo,
}

pub(crate) struct Plan {
    pub(crate) sizes: Sizes,
    pub(crate) faults: Faults,
    pub(crate) options: Options,
    pub(crate) client: ClientOptions,
    /// The channels without a namespace.
    open: Namespace,
    namespaces: Vec<Namespace>,
    pub(crate) mailbox_batches: Vec<usize>,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) channels: Vec<String>,
    /// Milliseconds between two actions of a client, at most.
    pub(crate) think_ms: u64,
    /// Bytes added to a publication, at most.
    pub(crate) pad_bytes: u64,
    /// The text that they are cut out of. Nothing in it repeats, so that patches are made fast.
    pub(crate) pad: String,
    /// A shard isn't run for a while, now and then.
    pub(crate) starve_one_in: u64,
    pub(crate) starve_ms: u64,
    /// The process stands still, or one of its threads does: one in so many steps, 0 for never.
    pub(crate) standstill_one_in: u64,
    /// How long, about.
    pub(crate) standstill_ms: u64,
    /// So many steps take a millisecond.
    pub(crate) work_one_in: u64,
    /// How long things go wrong.
    pub(crate) faults_ms: u64,
    /// It ends by draining, not by clients going.
    pub(crate) drains: bool,
    /// A client that does what it should is never closed: nothing here is tight enough for that.
    pub(crate) roomy: bool,
    /// There may be more clients than connections that are allowed, or too little memory.
    pub(crate) crowded: bool,
    /// Although a shard is soon full there is room for all: nobody may be refused.
    pub(crate) ample: bool,
    /// Memory is short for a while, now and then.
    pub(crate) short_of_memory: bool,
    /// Bytes of history that the node may have.
    pub(crate) memory_limit: u64,
    /// Some tokens have signatures that are checked at their home.
    pub(crate) signed: bool,
    /// Data that is no JSON is published, too.
    pub(crate) binary: bool,
    /// The control side publishes once in so many steps.
    pub(crate) control_one_in: u64,
    /// Clients come over TLS: the seed of their ends.
    pub(crate) tls: Option<u64>,
    /// The node is replaced while it runs.
    pub(crate) is_replaced: bool,
    /// The limits of an address. Clients come from few.
    pub(crate) address_limits: AddressOptions,
}

/// Bytes of memory that no run needs.
const PLENTY: u64 = 1 << 40;

fn pick<T: Clone>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.below(from.len() as u64) as usize].clone()
}

/// 0 (never) half of the time.
fn sometimes(rng: &mut Rng, one_in: &[u64]) -> u64 {
    if rng.one_in(2) { 0 } else { pick(rng, one_in) }
}

impl Plan {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        // Large publications and a shard that isn't run for long: mail that has to be given up.
        let large = rng.one_in(8);
        // In the others a client that does what it should may be closed: too slow, too late.
        let roomy = !large && rng.one_in(2);
        let shards = 1 + rng.below(5) as usize + usize::from(large);
        let calm = rng.one_in(4);
        let faults = if calm {
            Faults { delay_ms_max: rng.below(20), segment_bytes_max: 4096, ..Faults::NONE }
        } else {
            Faults {
                delay_ms_max: pick(rng, if roomy { &[0, 1, 5, 20] } else { &[0, 1, 5, 20, 60] }),
                segment_bytes_max: pick(rng, &[1, 7, 50, 1400, 65536]),
                partial_read_one_in: sometimes(rng, &[2, 5, 50]),
                partial_write_one_in: sometimes(rng, &[2, 5, 50]),
                blocked_write_one_in: sometimes(rng, &[3, 10, 50]),
                late_send_one_in: sometimes(rng, &[1, 3, 20]),
                read_ahead_one_in: sometimes(rng, &[1, 2, 10]),
                reset_one_in: sometimes(rng, &[100, 1000, 5000]),
                accept_failed_one_in: sometimes(rng, &[5, 30]),
                accept_full_one_in: sometimes(rng, &[1, 3, 20]),
                spurious_one_in: sometimes(rng, &[2, 10]),
            }
        };
        let sizes = Sizes {
            shards,
            pipe_bytes: match (large, roomy) {
                (true, _) => 400_000,
                (_, true) => pick(rng, &[4096, 65536]),
                _ => pick(rng, &[500, 4096, 65536]),
            },
            read_buffer_bytes: pick(rng, if roomy { &[200, 4096] } else { &[1, 13, 4096, 65536] }),
            passing: pick(rng, &[1, 3, 64]),
            events: pick(rng, &[1, 3, 1024]),
        };
        // Large publications through small doors would take the run's whole time.
        let sizes = if large { Sizes { read_buffer_bytes: 65536, ..sizes } } else { sizes };
        let faults = if large { Faults { segment_bytes_max: 65536, ..faults } } else { faults };
        let clients = if large { 5 + rng.below(7) } else { 2 + rng.below(18) } as usize;
        let short_of_memory = !roomy && rng.one_in(4);
        let full = rng.one_in(4);
        let crowded = full || short_of_memory;
        let conns_max = if full { 1 + rng.below(16) as u32 } else { 500 };
        let ample = full
            && !short_of_memory
            && conns_max > 1
            && conns_max as usize * shards >= 2 * clients
            && shards > 1;
        let conns_soft = if full || rng.one_in(2) { rng.below(4) as u32 } else { 500 };
        let starve_one_in = match (large, roomy) {
            (true, _) => 100,
            (_, true) => 0,
            _ => sometimes(rng, &[20, 200]),
        };
        let queue_bytes_max = match (large, roomy) {
            (true, _) => 1 << 25,
            (_, true) => 1 << 20,
            _ => pick(rng, &[2_000, 20_000, 1 << 20]),
        };
        let options = Options {
            conns_soft: conns_soft.min(conns_max),
            conns_max,
            handshake_timeout_ms: pick(rng, &[2_000, 10_000]),
            close_timeout_ms: pick(rng, &[1_000, 5_000]),
            write_timeout_ms: pick(rng, &[1_000, 3_000]),
            idle_timeout_ms: pick(rng, &[2_000, 20_000]),
            message_bytes_max: 65_536,
            inflated_bytes_max: 655_360,
            endpoints: Over::endpoints()
                .into_iter()
                .chain([Endpoint::new("/echo", EndpointKind::Echo)])
                .collect(),
            deflate: Some(DeflateOptions { level: 1, bytes_min: pick(rng, &[0, 200]) }),
            uni_websocket: UniWebSocketOptions {
                joins: rng.one_in(2),
                ..UniWebSocketOptions::default()
            },
            poll_wait_ms: pick(rng, &[2_000, 20_000]),
            spin_us: 0,
            one_accepts: false,
            listeners_stay: false,
            addresses: AddressSources::default(),
            web: Vec::new(),
            channels_idle_max: pick(rng, &[0, 1, 100]),
            requests_unanswered_max: match (large, roomy) {
                (true, _) => 4096,
                (_, true) => pick(rng, &[5, 4096]),
                _ => pick(rng, &[1, 2, 5, 4096]),
            },
            turn_deliveries_max: if large { 1 } else { pick(rng, &[1, 3, 20, 2048]) },
            turn_ordered_max: pick(rng, &[1, 1, 3, 256]),
            hosts: HostRules::default(),
            broker: Broker::Memory,
            presence: Presence::WithChannels,
            presence_ttl_s: 60,
            broker_window_bytes: 1 << 20,
            lapsed_batch: pick(rng, &[1, 100]),
            tls_handshakes_max: 100,
        };
        let counted = rng.one_in(4);
        let personal_channel = rng.one_in(3).then(|| PersonalChannel {
            namespace: "mine".into(),
            single_connection: counted && rng.one_in(2),
        });
        let limited = counted && !personal_channel.as_ref().is_some_and(|p| p.single_connection);
        let client = ClientOptions {
            proxies: Default::default(),
            concurrency: pick(rng, &[0, 0, 2, 8]),
            one_way_disconnects: Vec::new(),
            disconnect_events: false,
            insecure: false,
            allow_anonymous: true,
            disallow_anonymous_tokens: false,
            user_id_http_header: String::new(),
            ping_interval_ms: Some(pick(rng, &[3_000, 5_000])),
            pong_timeout_ms: Some(pick(rng, &[1_500, 2_500])),
            stale_close_delay_ms: Some(pick(rng, &[3_000, 8_000])),
            expired_close_delay_ms: 2_000,
            expired_sub_close_delay_ms: 2_000,
            channel_limit: 128,
            queue_bytes_max,
            connection_limit: 0,
            connection_rate_limit: 0,
            user_connection_limit: if limited { 1 + rng.below(2) as u32 } else { 0 },
            history_publications_max: pick(rng, &[3, 300]),
            recovery_publications_max: pick(rng, &[2, 10, 300]),
            personal_channel,
            include_server_time: false,
            version: "sim".into(),
        };
        let proxied = rng.one_in(3);
        let proxies = ClientProxies { connect: proxied.then(proxy), ..ClientProxies::default() };
        let client = ClientOptions { proxies, ..client };
        let mut namespaces = namespaces(rng);
        for namespace in
            namespaces.iter_mut().filter(|namespace| proxied && namespace.name != "deny")
        {
            namespace.publish_proxy = Some(proxy());
            // Where what the client asks for doesn't count.
            let is_forced = namespace.force_positioning || namespace.force_recovery;
            let is_told = namespace.force_push_join_leave || !namespace.join_leave;
            namespace.subscribe_proxy = (is_forced && is_told).then(proxy);
        }
        let kinds: Vec<Kind> = (0..clients).map(|at| kind(rng, at)).collect();
        let channels: &[&str] = match large {
            true => &["plain", "hist:a", "pos:a", "pos:b", "rec:a"],
            false => &[
                "plain", "more", "hist:a", "pos:a", "pos:b", "rec:a", "rec:b", "ask:a", "ask:b",
                "last:a",
            ],
        };
        let count = if large { 1 + rng.below(2) as usize } else { 1 + rng.below(6) as usize };
        let mut channels: Vec<String> = channels.iter().map(|c| (*c).to_owned()).collect();
        while channels.len() > count {
            channels.remove(rng.below(channels.len() as u64) as usize);
        }
        let pad_bytes = if large { 60_000 } else { pick(rng, &[0, 20, 300]) };
        let pad = (0..pad_bytes + 40).map(|_| char::from(b'a' + rng.below(26) as u8)).collect();
        let mailbox_batches =
            (0..shards).map(|_| if large { 1 } else { pick(rng, &[1, 1, 2, 5, 256]) }).collect();
        let think_ms = if large { 40 } else { pick(rng, &[50, 200, 1_000]) };
        let work_one_in = if large { 3 } else { pick(rng, &[10, 200]) };
        let starve_ms = if large { 3_000 } else { pick(rng, &[20, 300]) };
        let faults_ms = if large { 5_000 } else { 2_000 + rng.below(6_000) };
        let (drains, signed, binary) = (rng.one_in(3), rng.one_in(3), rng.one_in(4));
        let control_one_in = pick(rng, &[100, 1_000]);
        let scarce = !roomy && rng.one_in(3);
        let memory_limit = if scarce { pick(rng, &[3_000, 10_000, 40_000]) } else { PLENTY };
        let memory_limit = if large && scarce { 40 * memory_limit } else { memory_limit };
        // The last thing that is drawn of a crowd.
        let address_limits = match crowded && !ample && rng.one_in(2) {
            true => AddressOptions {
                connections: pick(rng, &[0, 1, 3, 10]),
                connections_per_second: pick(rng, &[0, 1, 5, 30]),
                unfinished_bytes: pick(rng, &[0, 50, 1_000, 100_000]),
                ..AddressOptions::default()
            },
            false => AddressOptions::default(),
        };
        // In a crowd nobody waits until all are back.
        let still = rng.one_in(4) && !crowded && !scarce;
        Self {
            sizes,
            faults,
            options,
            client,
            open: Namespace { presence: true, join_leave: true, ..open() },
            namespaces,
            mailbox_batches,
            kinds,
            channels,
            think_ms,
            pad_bytes,
            pad,
            starve_one_in,
            work_one_in,
            starve_ms,
            faults_ms,
            drains,
            roomy,
            crowded: crowded || scarce,
            ample: ample && !scarce,
            short_of_memory,
            memory_limit,
            signed,
            binary,
            control_one_in,
            tls: None,
            is_replaced: false,
            address_limits,
            standstill_one_in: if still { pick(rng, &[2_000, 10_000]) } else { 0 },
            standstill_ms: if still { 20_000 } else { 0 },
        }
    }

    /// Lets the application decide about some more, if nothing asks it yet: publications and subscriptions
    /// of clients, and connects.
    pub(crate) fn proxy_some(&mut self, rng: &mut Rng) {
        self.is_replaced = true;
        let is_on = self.namespaces.iter().any(|namespace| namespace.publish_proxy.is_some());
        if is_on || rng.one_in(2) {
            return;
        }
        for namespace in self.namespaces.iter_mut().filter(|namespace| namespace.name != "deny") {
            namespace.publish_proxy = Some(proxy());
        }
    }

    /// Clients come over TLS in some runs. An answer to a connection that gets no slot has no keys, so nobody is
    /// turned away by its address there.
    pub(crate) fn with_tls(mut self, seed: u64) -> Self {
        if crate::tls::is_for(seed) {
            self.tls = Some(seed);
            self.address_limits = AddressOptions::default();
        }
        self
    }

    /// Namespaces whose publications may be dropped, and whether the newest comes all the same.
    pub(crate) fn dropping(&self) -> BTreeMap<String, bool> {
        let dropping = self.namespaces.iter().filter(|namespace| namespace.slow_policy.drops());
        dropping
            .map(|namespace| {
                (namespace.name.to_string(), namespace.slow_policy == SlowPolicy::Latest)
            })
            .collect()
    }

    /// History may go before its time, and what grows may be refused with error 100.
    pub(crate) fn sheds(&self) -> bool {
        self.short_of_memory || self.memory_limit < PLENTY
    }

    /// The options of a channel.
    pub(crate) fn namespace(&self, channel: &str) -> &Namespace {
        let Some((name, _)) = channel.split_once(':') else { return &self.open };
        self.namespaces.iter().find(|namespace| namespace.name == name).unwrap()
    }

    /// Whether a client may go on in a channel wherever it is.
    pub(crate) fn can_be_polled(&self, channel: &str) -> bool {
        let namespace = self.namespace(channel);
        let asked = Asked { recoverable: true, ..Asked::default() };
        namespace.grant(asked, "", false, None).recoverable
    }

    /// Connections of a user are counted: one too many is closed.
    pub(crate) fn counts_users(&self) -> bool {
        let single = self.client.personal_channel.as_ref().is_some_and(|p| p.single_connection);
        single || self.client.user_connection_limit > 0
    }

    /// Bytes of one answer that the server doesn't exceed, on purpose.
    pub(crate) fn answer_bytes_max(&self) -> u64 {
        (self.client.queue_bytes_max - self.client.queue_bytes_max / 8).min(4 << 20) as u64
    }

    /// The maximum bytes of one publication in an answer.
    pub(crate) fn publication_bytes_max(&self) -> u64 {
        2 * self.pad_bytes + 800
    }

    pub(crate) fn rules(&self) -> Rules {
        Rules {
            api: ArcSwap::from_pointee(None),
            client: ArcSwap::from_pointee(self.client.clone()),
            keys: TokenKeys::new(&TokenOptions {
                hmac_secret_key: SECRET.into(),
                ecdsa_public_key: KEY.into(),
                ..TokenOptions::default()
            })
            .unwrap(),
            subscription_keys: None,
            channels: ChannelRules::new(
                self.open.clone(),
                self.namespaces.clone(),
                ChannelSyntax::default(),
            )
            .into_shared(),
            origins: ArcSwap::from_pointee(OriginRules::new(&["*".to_string()]).unwrap()),
            client_ids: ClientIdSealer::new(&[7; 32]),
            session_ids: ClientIdSealer::new(&[8; 32]),
            node_id: "node".to_owned(),
            rpc: Default::default(),
            admin: None,
        }
    }
}

fn kind(rng: &mut Rng, at: usize) -> Kind {
    // Two at least that must be served.
    if at < 2 {
        return Kind::Normal;
    }
    let others = [
        Kind::Flaky,
        Kind::Flaky,
        Kind::Slow,
        Kind::Mute,
        Kind::Stale,
        Kind::Loris,
        Kind::Hostile,
        Kind::Hostile,
        Kind::Lost,
        Kind::Stranger,
        Kind::Frozen,
        Kind::Echo,
    ];
    if rng.one_in(2) { Kind::Normal } else { pick(rng, &others) }
}

/// Anybody may do anything that is on.
fn open() -> Namespace {
    Namespace {
        allow_subscribe_for_client: true,
        allow_subscribe_for_anonymous: true,
        allow_publish_for_client: true,
        allow_publish_for_anonymous: true,
        allow_presence_for_client: true,
        allow_presence_for_anonymous: true,
        ..Namespace::default()
    }
}

/// Some proxy: what it is like doesn't matter to shards.
fn proxy() -> Arc<ProxyOptions> {
    Arc::new(ProxyOptions {
        name: "app".into(),
        endpoint: "http://app".into(),
        timeout_ms: 1_000,
        http_headers: Vec::new(),
        emulated_headers: Vec::new(),
        static_headers: Vec::new(),
        binary_encoding: false,
        include_connection_meta: true,
        transforms: Vec::new(),
        tls: None,
        concurrency: 1,
        breaker_failures: 0,
        breaker_pause_ms: 0,
    })
}

fn namespaces(rng: &mut Rng) -> Vec<Namespace> {
    let open = Namespace {
        history_size: 1 + rng.below(20) as u32,
        history_ttl_ms: pick(rng, &[500, 60_000]),
        history_meta_ttl_ms: pick(rng, &[1_000, 120_000]),
        ..open()
    };
    let open = Namespace { write_delay_ms: pick(rng, &[0, 0, 1, 20]), ..open };
    // With presence, history to be read, patches and filters.
    let rich = Namespace {
        presence: true,
        join_leave: true,
        allow_history_for_client: true,
        allow_history_for_anonymous: true,
        delta_allowed: true,
        delta_publish: rng.below(4) > 0,
        allow_tags_filter: true,
        history_size: pick(rng, &[5, 50, 400]),
        history_ttl_ms: pick(rng, &[2_000, 60_000, 60_000]),
        history_meta_ttl_ms: 120_000,
        ..open.clone()
    };
    let small = Namespace { history_size: 1 + rng.below(4) as u32, ..rich.clone() };
    vec![
        Namespace { name: "hist".into(), allow_positioning: true, ..open.clone() },
        Namespace { name: "pos".into(), force_positioning: true, ..open },
        Namespace { name: "deny".into(), ..Namespace::default() },
        Namespace {
            name: "rec".into(),
            force_recovery: true,
            force_push_join_leave: true,
            ..rich.clone()
        },
        Namespace { name: "ask".into(), allow_recovery: true, ..small },
        Namespace {
            name: "last".into(),
            force_recovery: true,
            recovery_mode: RecoveryMode::Cache,
            auto_cache_recover: rng.one_in(2),
            slow_policy: pick(
                rng,
                &[SlowPolicy::Disconnect, SlowPolicy::DropOldest, SlowPolicy::Latest],
            ),
            ..rich.clone()
        },
        Namespace { name: "mine".into(), force_recovery: true, ..rich.clone() },
        Namespace { name: "bin".into(), data_format: DataFormat::Binary, ..rich },
    ]
}
