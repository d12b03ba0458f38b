//! The loop: one shard, its connections, its channels, its mail.
//!
//! ```text
//!   turn:  wait -> completions -> accept -> read -> mail -> mail to itself -> events -> timers
//!          -> leavers -> fan-out -> write what is queued -> send mail -> (again)
//! ```
//! A shard never blocks but in its driver's wait, takes no lock, and shares nothing with other
//! shards but mail, shared frames and counters. Each step of a turn is bounded; what is over its
//! bound stays on a list for the next turn.
//!
//! Two roles meet here and talk by mail only, even when both are this shard: the *home* of channels
//! (`homes.rs`, `reading.rs`) and the *subscribers' side* (`subscribe.rs`, `deliver.rs`).

mod accept;
mod acks;
mod addresses;
mod answers;
mod bodies;
mod close;
mod commands;
mod conn;
mod connect;
mod deliver;
mod emulation;
mod homes;
pub mod mail;
mod memory;
mod notices;
mod orders;
mod outbox;
mod places;
mod polls;
pub mod proxies;
mod read;
mod reading;
mod refusals;
mod requests;
mod sending;
pub mod signatures;
mod slow;
mod stats;
mod subscribe;
pub mod timers;
mod tokens;
mod web;
mod write;

pub use self::addresses::AddressSources;
pub use self::conn::CONN_BYTES;
pub use self::memory::Memory;
pub use self::notices::{Cut, Fields, Notices};
pub use self::requests::{CodeResponse, Endpoint, EndpointKind, UniWebSocketOptions};
pub use self::slow::SlowCounters;
pub use self::stats::ShardCounters;

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use compact_str::CompactString;
use slab::Slab;

use self::acks::Acks;
use self::addresses::Addresses;
use self::answers::{Answers, Pieces};
use self::bodies::Bodies;
use self::conn::{Conn, NONE, Phase};
use self::homes::Event;
use self::mail::{Batch, Letterbox, Mailbox, Outgoing};
use self::memory::Shedding;
use self::orders::Underway;
use self::outbox::{Dropped, Outboxes};
use self::places::Replaceable;
use self::polls::Poll;
use self::proxies::{Kept, Parked, Unasked};
use self::requests::UnsentHead;
use self::signatures::Signatures;
use self::timers::{LinkTable, Links, List, TICK_MS, TimerTable, Wheel};
use self::tokens::{Check, Question};
use crate::base::counters::Counter;
use crate::base::form::Form;
use crate::base::frame::SharedFrame;
use crate::base::id::{ConnKey, ShardId};
use crate::base::limits::*;
use crate::base::rate::SharedRate;
use crate::base::rng::Rng;
use crate::base::time::Millis;
use crate::base::times::Times;
use crate::edge::address_limits::AddressLimits;
use crate::edge::channels::ChannelRules;
use crate::edge::good_tokens::GoodTokens;
use crate::edge::host::HostRules;
use crate::hub::delta::Patcher;
use crate::hub::fanout::Walk;
use crate::hub::filter::Filters;
use crate::hub::home::Homes;
use crate::hub::local::Locals;
use crate::hub::names::NameHasher;
use crate::hub::results::Results;
use crate::hub::user_conns::UserConns;
use crate::hub::users::Users;
use crate::io::{Completion, Driver, Sent};
use crate::proto::client::Encoding;
use crate::proto::http::DateCache;
use crate::proto::ws::{DeflateOptions, Deflaters, Inflater};
use crate::proto::{framing, ws};
use crate::session::{ClientOptions, Headers, Rules, Session};

/// Options of a shard. Times in milliseconds.
#[derive(Clone, Debug)]
pub struct Options {
    /// From so many connections on, new ones are passed to the emptiest shard, if that has fewer.
    pub conns_soft: u32,
    /// Connections here at most.
    pub conns_max: u32,
    /// The request head has to be there so soon.
    pub handshake_timeout_ms: u64,
    /// A peer that doesn't answer our close frame is dropped then.
    pub close_timeout_ms: u64,
    /// A client whose socket takes nothing for so long is dropped.
    pub write_timeout_ms: u64,
    /// An echo connection that is silent for so long is pinged, and dropped when it stays silent.
    pub idle_timeout_ms: u64,
    /// Bytes of a message from a client at most.
    pub message_bytes_max: usize,
    /// What a message from a client may come to when it is inflated, bytes.
    pub inflated_bytes_max: usize,
    /// What shards serve themselves.
    pub endpoints: Vec<Endpoint>,
    /// How messages are deflated for two-way WebSockets whose clients offer it; `None`: they aren't.
    pub deflate: Option<DeflateOptions>,
    /// One-way WebSockets.
    pub uni_websocket: UniWebSocketOptions,
    /// A poll for which nothing comes is answered so late, or up to an eighth earlier.
    pub poll_wait_ms: u64,
    /// One shard accepts for all: each connection goes to the emptiest.
    pub one_accepts: bool,
    /// How clients' addresses become known.
    pub addresses: AddressSources,
    /// Where paths begin that the control thread serves on the public port: each for itself and for
    /// what is below it; `/` only for itself.
    pub web: Vec<String>,
    /// Channels kept for their history alone, at most.
    pub channels_idle_max: usize,
    /// Requests to one home that may be unanswered.
    pub requests_unanswered_max: u32,
    /// Deliveries in one turn.
    pub turn_deliveries_max: u32,
    /// Connections that orders are carried out on in one turn.
    pub turn_ordered_max: usize,
    /// Hosts under which the node may be reached.
    pub hosts: HostRules,
}

impl Options {
    /// Whether the control thread serves a path.
    fn is_web(&self, path: &str) -> bool {
        self.web.iter().any(|prefix| {
            path.strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') && prefix != "/")
        })
    }
}

/// What all shards of a node share: facts that don't change, and a few atomics.
pub struct Node {
    /// What sessions go by.
    pub rules: Rules,
    /// Options of the shards.
    pub options: Options,
    /// Hashes names; says which shard is a channel's home.
    pub names: NameHasher,
    /// Counters, one set for each shard.
    pub counters: Vec<ShardCounters>,
    /// What became of slow clients, for each shard by namespace; the last ones are of namespaces that
    /// came later.
    pub slow: Vec<Vec<SlowCounters>>,
    /// How long turns work, for each shard.
    pub loop_lag: Vec<Times>,
    /// From a publication at its home to the write for its last subscriber, for each shard with some; to
    /// within a turn and a millisecond.
    pub fan_out: Vec<Times>,
    /// How many subscribers on a shard such a publication had, for each shard.
    pub fan_out_size: Vec<Times>,
    /// From a command to its answer, for each shard by [`mail::Method`]; to within a turn and a millisecond.
    pub commands: Vec<[Times; mail::Method::NAMES.len()]>,
    /// Where signatures are checked that are too expensive for a shard.
    pub signatures: Signatures,
    /// Open connections of each shard: whoever is full passes new ones to the emptiest.
    pub open: Vec<AtomicU32>,
    /// Clients of the node, for `client.connection_limit`.
    pub clients: AtomicU64,
    /// Administrators that are connected: without any, nobody wants figures.
    pub admins: AtomicU32,
    /// Distinct users of all shards, as they were counted last.
    pub users: AtomicU64,
    /// New clients of all shards, for `client.connection_rate_limit`.
    pub client_rate: SharedRate,
    /// What it may have in memory, and has.
    pub memory: Memory,
    /// What each address has of the node.
    pub addresses: AddressLimits,
    /// The node closes its connections, and ends.
    pub draining: AtomicBool,
    /// Shards that have drained.
    pub drained: AtomicU32,
    /// Log lines about refusals.
    pub notices: Notices,
}

/// Seeds and addresses of one shard.
pub struct Seat {
    /// Which one it is.
    pub shard: ShardId,
    /// Where its mail comes in.
    pub mailbox: Mailbox,
    /// Where the mail of every shard goes in.
    pub letterboxes: Vec<Letterbox>,
    /// Where the mail of the control thread goes in.
    pub control: Letterbox,
    /// For spreading pings, and for epochs.
    pub seed: u64,
}

/// A side table for the few connections that have such a thing, by slot.
type BySlot<T> = hashbrown::HashMap<u32, T, foldhash::fast::FixedState>;

struct Draining {
    per_second: u32,
    since: Millis,
    closed: u64,
    cursor: usize,
    told: bool,
}

/// Payloads that are the same for all.
struct Constants {
    /// Pings as messages, for each form of connection that was pinged.
    pings: Vec<(Form, SharedFrame)>,
    ws_ping: SharedFrame,
}

impl Constants {
    /// The ping for a form of connection.
    fn ping(&mut self, form: Form) -> SharedFrame {
        if let Some((_, ping)) = self.pings.iter().find(|(of, _)| *of == form) {
            return ping.clone();
        }
        let mut out = Vec::new();
        framing::put(&mut out, form, Encoding::from(form).ping());
        if form.is_one_way() && form.framing().is_websocket() {
            //= client protocol, 8: one-way WebSockets are pinged by frames, too
            ws::put_frame(&mut out, ws::PING, b"");
        }
        let ping = SharedFrame::new(&out);
        self.pings.push((form, ping.clone()));
        ping
    }
}

/// One shard on its driver.
pub struct Shard<D: Driver> {
    node: Arc<Node>,
    id: ShardId,
    driver: D,
    rng: Rng,
    /// The rules of channels, as of this turn.
    channels: Arc<ChannelRules>,
    /// Options of clients, as of this turn; and a copy that no other shard counts references of.
    client_rules: Arc<ClientOptions>,
    client: Arc<ClientOptions>,
    conns: Slab<Conn<D::Socket>>,
    addresses: Addresses,
    next_generation: NonZeroU32,
    sessions: Slab<Session>,
    users: Users,
    outboxes: Outboxes,
    wheel: Wheel,
    leaving: List,
    leaving_count: u64,
    /// Connections that may lose their places.
    replaceable: Replaceable,

    completions: Vec<Completion>,
    /// Connections to read, each at most once.
    ready: VecDeque<ConnKey>,
    /// Connections to write, each at most once.
    dirty: Vec<ConnKey>,
    /// What is being written, and what came of it.
    writing: Vec<ConnKey>,
    sent: Vec<Sent>,
    /// Connections that wait for credit at a home, by home, and for how much; the last for a question to the
    /// application.
    waiting: Vec<VecDeque<(ConnKey, u8)>>,
    acceptable: bool,
    /// No descriptor was left: the listener is asked again then, since no edge tells.
    accept_again_at: Option<Millis>,
    passed: bool,

    mailbox: Mailbox,
    /// Mail of this shard to itself.
    loopback: VecDeque<Box<Batch>>,
    loopback_bytes: usize,
    mail: Outgoing,
    mail_blocked: bool,
    acks: Acks,

    homes: Homes,
    patcher: Patcher,
    locals: Locals,
    next_serial: u32,
    /// Users named by a request header, by slot, until the client connects.
    header_users: BySlot<CompactString>,
    /// Heads of responses that wait for what comes of the `connect`, by slot.
    heads: BySlot<UnsentHead>,
    /// Connections with a request that was answered at once: what is behind it is next.
    answered: Vec<ConnKey>,
    /// Requests that wait for publications, by slot.
    polls: BySlot<Box<Poll>>,
    /// Connections whose positions go behind what this turn has for them.
    to_mark: Vec<ConnKey>,
    /// What was kept of the headers of connections for proxies, by slot, until the client connects.
    headers: BySlot<Arc<Headers>>,
    /// What the application has said about commands that connections are paused for, by slot.
    told: BySlot<VecDeque<Kept>>,
    /// What is to be asked of the application when others are answered.
    unasked: VecDeque<Unasked>,
    /// Commands that wait for the application while others of their connection go on, and how many of each.
    parked: Slab<Parked>,
    parked_of: BySlot<u32>,
    /// Connections of administrators, by slot; true once they are connected.
    admins: BySlot<bool>,
    /// Questions to the application that are not answered.
    proxy_questions: usize,
    /// Checks about tokens that connections are paused for, by slot.
    checks: BySlot<Check>,
    /// Filters of subscriptions here.
    filters: Filters,
    walk: Walk,
    /// Connections of this turn for which too much waits, and by which namespace.
    over: Vec<(u32, u16)>,
    /// What is being dropped for one of them.
    dropped: Vec<Dropped>,

    /// Connections of the users whose home is here.
    user_conns: UserConns,
    /// Results of publishes with an idempotency key.
    results: Results,
    /// Who came to channels of this home and left them in this turn.
    events: Vec<Event>,
    answers: Answers,
    /// Those that went deflated to connections here.
    pieces: Pieces,
    /// Tokens whose home is here.
    good_tokens: GoodTokens,
    questions: Slab<(Question, u64)>,
    /// Orders of the control thread that are being carried out.
    orders: Slab<Underway>,
    /// Bodies of requests that are not all here.
    bodies: Bodies,

    /// Compressors, and what inflates.
    deflaters: Deflaters,
    inflater: Inflater,
    /// What was inflated last.
    inflated: Vec<u8>,

    /// The `Date` of answers.
    date: DateCache,
    constants: Constants,
    scratch: Vec<u8>,
    replies: Vec<u8>,
    listed: Vec<u32>,
    draining: Option<Draining>,
    stopped: bool,
    housekeeping_at: Millis,
    shedding: Shedding,
    /// Most bytes that waited since memory was last given back.
    queued_peak: u64,
    /// Gives freed memory back to the system; a no-op in simulation.
    collect: fn(),
}

impl<S> LinkTable for Slab<Conn<S>> {
    fn links(&mut self, index: u32) -> &mut Links {
        &mut self[index as usize].links
    }
}

impl<S> TimerTable for Slab<Conn<S>> {
    fn deadline_tick(&mut self, index: u32) -> &mut u32 {
        &mut self[index as usize].deadline_tick
    }
}

impl<D: Driver> Shard<D> {
    /// A shard with no connections.
    pub fn new(node: Arc<Node>, seat: Seat, driver: D, collect: fn()) -> Self {
        let mut rng = Rng::new(seat.seed);
        let shards = seat.letterboxes.len();
        let homes_rng = Rng::new(rng.next_u64());
        let patcher = Patcher::new(rng.next_u64());
        let capacity = accept::slots_max(&node.options);
        Self {
            id: seat.shard,
            // Untouched pages cost nothing, and growing would copy.
            conns: Slab::with_capacity(capacity),
            addresses: Addresses::default(),
            next_generation: NonZeroU32::MIN,
            sessions: Slab::with_capacity(capacity),
            users: Users::default(),
            channels: node.rules.channels.load_full(),
            client_rules: node.rules.client.load_full(),
            client: Arc::new(ClientOptions::clone(&node.rules.client.load())),
            outboxes: Outboxes::default(),
            wheel: Wheel::new(driver.now()),
            leaving: List::new(),
            leaving_count: 0,
            replaceable: Replaceable::default(),
            completions: Vec::with_capacity(1024),
            ready: VecDeque::new(),
            dirty: Vec::new(),
            writing: Vec::new(),
            sent: Vec::new(),
            waiting: (0..=shards).map(|_| VecDeque::new()).collect(),
            acceptable: true,
            accept_again_at: None,
            passed: false,
            mailbox: seat.mailbox,
            loopback: VecDeque::new(),
            loopback_bytes: 0,
            mail: Outgoing::new(seat.letterboxes, seat.control),
            mail_blocked: false,
            acks: Acks::new(shards),
            homes: Homes::new(node.names.clone(), homes_rng, node.options.channels_idle_max),
            patcher,
            locals: Locals::new(node.names.clone()),
            next_serial: 0,
            header_users: Default::default(),
            headers: Default::default(),
            heads: Default::default(),
            answered: Vec::new(),
            polls: Default::default(),
            to_mark: Vec::new(),
            told: Default::default(),
            unasked: VecDeque::new(),
            parked: Slab::new(),
            parked_of: Default::default(),
            admins: Default::default(),
            proxy_questions: 0,
            checks: Default::default(),
            filters: Filters::default(),
            walk: Walk::default(),
            over: Vec::new(),
            dropped: Vec::new(),
            user_conns: UserConns::default(),
            results: Results::new(RESULTS_MAX.div_ceil(shards), RESULTS_BYTES_MAX.div_ceil(shards)),
            events: Vec::new(),
            answers: Answers::default(),
            pieces: Pieces::default(),
            good_tokens: GoodTokens::new(GOOD_TOKENS_MAX.div_ceil(shards)),
            questions: Slab::new(),
            orders: Slab::new(),
            bodies: Bodies::default(),
            deflaters: Deflaters::new(
                node.options.deflate.unwrap_or_default(),
                node.options.uni_websocket.deflate.unwrap_or_default(),
            ),
            inflater: Inflater::default(),
            inflated: Vec::new(),
            date: DateCache::default(),
            constants: Constants { pings: Vec::new(), ws_ping: ws::frame(ws::PING, b"") },
            scratch: Vec::new(),
            replies: Vec::new(),
            listed: Vec::new(),
            draining: None,
            stopped: false,
            housekeeping_at: driver.now(),
            shedding: Shedding::new(driver.now()),
            queued_peak: 0,
            collect,
            node,
            driver,
            rng,
        }
    }

    /// Runs until it is told to stop.
    pub fn run(mut self) {
        while self.turn() {}
    }

    /// One turn of the loop: waits for something to do, and does it. False when the shard has
    /// stopped.
    pub fn turn(&mut self) -> bool {
        let until = self.wait_until();
        self.turn_after(until)
    }

    /// The rest of a turn behind [`Self::wait_until`]: waits, at most until then, and works. Apart
    /// so that a simulation can leave the shard waiting while others have their turns.
    pub fn turn_after(&mut self, until: Option<Millis>) -> bool {
        self.counters().turns.add(1);
        self.completions.clear();
        self.driver.wait(until, &mut self.completions);
        if let Some(us) = self.driver.worked_us() {
            self.node.loop_lag[self.id.index()].record(us);
        }
        self.mailbox.awake();
        self.patcher.begin_turn();
        self.look_at_rules();
        self.take_completions();
        self.accept_some();
        self.go_on_answered();
        self.read_some();
        self.open_mail();
        self.carry_out_orders();
        self.open_own_mail();
        self.tell_events();
        self.fire_timers();
        self.drain_some();
        self.clean_up_leavers();
        self.fan_out_some();
        self.mark_positions();
        self.write_dirty();
        self.send_mail();
        self.resume_waiting();
        self.keep_to_memory();
        self.housekeeping();
        if self.stopped {
            self.end();
        }
        !self.stopped
    }

    /// Takes other rules of channels, if there are any.
    fn look_at_rules(&mut self) {
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
    /// know of newer ones.
    fn channels_with(&mut self, namespace: u16) -> Arc<ChannelRules> {
        if usize::from(namespace) >= self.channels.namespaces().len() {
            self.look_at_rules();
        }
        Arc::clone(&self.channels)
    }

    fn counters(&self) -> &ShardCounters {
        &self.node.counters[self.id.index()]
    }

    fn tick(&self) -> u32 {
        tick_of(self.driver.now())
    }

    fn conn(&mut self, key: ConnKey) -> Option<&mut Conn<D::Socket>> {
        self.conns.get_mut(key.index as usize).filter(|conn| conn.generation == key.generation)
    }

    /// When the next wait has to end: at once if anything is left to do, never for `None`. The
    /// first half of a turn: from here on mail wakes the shard.
    pub fn wait_until(&mut self) -> Option<Millis> {
        let now = self.driver.now();
        let work = !self.ready.is_empty()
            || self.acceptable
            || self.passed
            || !self.loopback.is_empty()
            || self.locals.active() > 0
            || !self.dirty.is_empty()
            || !self.answered.is_empty()
            || self.has_orders()
            || (self.leaving_count > 0 && !self.mail_blocked)
            || self.shedding.goes_on
            // What was posted behind the turn's sending goes with the next one.
            || self.has_unsent_mail()
            || !self.mailbox.sleep()
            // After arming the alarm: who rang before that was not heard.
            || (self.mail_blocked && self.mail.iter().any(|outbox| outbox.may_retry(self.id)));
        if work {
            return Some(now);
        }
        // Nothing is left to do: what is read of a shard that sleeps has to be true.
        self.set_gauges();
        // Whoever has no room rings when it has; the rest is for shards that ended meanwhile.
        let retry = self.mail_blocked.then(|| now.after(MAIL_RETRY_MS));
        let delayed = self.locals.next_due();
        let drain = self.draining.is_some().then(|| now.after(10));
        let accept = self.accept_again_at.map(|at| at.max(now));
        // An idle shard sleeps as long as nothing happens.
        let busy = !self.conns.is_empty() || !self.homes.is_empty() || self.queued_peak > 0;
        let housekeeping = busy.then(|| self.housekeeping_at.max(now));
        let timer = self.wheel.next_deadline();
        [retry, delayed, drain, accept, housekeeping, timer].into_iter().flatten().min()
    }

    /// Mail is here that nothing keeps from leaving: no shard sleeps then.
    pub fn has_unsent_mail(&self) -> bool {
        !self.mail_blocked && self.mail.iter().any(|outbox| !outbox.is_empty())
    }

    fn take_completions(&mut self) {
        for at in 0..self.completions.len() {
            match self.completions[at] {
                Completion::Acceptable => self.acceptable = true,
                Completion::Passed => self.passed = true,
                Completion::Woken => {}
                Completion::Readable { key, ended } => match self.conn(key) {
                    Some(conn) => {
                        if ended {
                            conn.flags.set_ended(true);
                        }
                        self.mark_ready(key);
                    }
                    None => self.counters().stale_events.add(1),
                },
                Completion::Writable { key } => {
                    if let Some(conn) = self.conn(key)
                        && conn.flags.blocked()
                    {
                        conn.flags.set_blocked(false);
                        self.mark_dirty(key);
                    }
                }
                Completion::Sent { key, bytes } => self.sent(key, bytes),
            }
        }
    }

    /// Puts a connection on the list of those to read.
    fn mark_ready(&mut self, key: ConnKey) {
        if let Some(conn) = self.conn(key)
            && !conn.flags.ready()
            && !conn.flags.paused()
        {
            conn.flags.set_ready(true);
            self.ready.push_back(key);
        }
    }

    /// Puts a connection on the list of those to write.
    fn mark_dirty(&mut self, key: ConnKey) {
        if let Some(conn) = self.conn(key)
            && !conn.flags.dirty()
        {
            conn.flags.set_dirty(true);
            self.dirty.push(key);
        }
    }

    fn read_some(&mut self) {
        let ahead = self.driver.fetch_max();
        let before = self.counters().bytes_received.get();
        for at in 0..self.ready.len().min(TURN_READS_MAX) {
            if self.counters().bytes_received.get() - before >= TURN_INPUT_BYTES_MAX {
                break;
            }
            if ahead > 0 && at % ahead == 0 {
                self.read_ahead(ahead);
            }
            let Some(key) = self.ready.pop_front() else { break };
            let Some(conn) = self.conn(key) else { continue };
            conn.flags.set_ready(false);
            self.read(key);
        }
    }

    /// Lets the driver read what the next `count` connections have.
    fn read_ahead(&mut self, count: usize) {
        let Self { driver, ready, conns, .. } = self;
        driver.fetch(ready.iter().take(count).filter_map(|key| {
            let conn = conns.get(key.index as usize)?;
            let reads = conn.generation == key.generation && !conn.flags.paused();
            Some((*key, conn.socket.as_ref().filter(|_| reads)?))
        }));
    }

    /// Once a second: expired history, gauges, memory.
    fn housekeeping(&mut self) {
        self.queued_peak = self.queued_peak.max(self.outboxes.bytes());
        let now = self.driver.now();
        if now < self.housekeeping_at {
            return;
        }
        self.housekeeping_at = now.after(HOUSEKEEPING_MS);
        self.homes.sweep(now, SWEEP_CHANNELS);
        self.answers.clear();
        self.pieces.clear();
        self.deflaters.sweep();
        self.good_tokens.sweep(self.driver.unix(), SWEEP_TOKENS);
        self.results.expire(now);
        self.replaceable.give_back();
        if self.outboxes.bytes() == 0 {
            if self.queued_peak > COLLECT_AFTER_BYTES {
                (self.collect)();
            }
            self.queued_peak = 0;
        }
        self.set_gauges();
    }

    /// Gauges that are cheaper to read off than to keep.
    fn set_gauges(&self) {
        let counters = self.counters();
        counters.slots_in_use.set(self.conns.len() as u64);
        counters.connections_leaving.set(self.leaving_count);
        counters.sessions_open.set(self.sessions.len() as u64);
        counters.users.set(self.users.len() as u64);
        counters.channels_local.set(self.locals.len() as u64);
        counters.channels_home.set(self.homes.len() as u64);
        counters.channels_idle.set(self.homes.idle() as u64);
        counters.queued_bytes.set(self.outboxes.bytes());
        counters.queues.set(self.outboxes.in_use() as u64);
        let kept = self.homes.kept();
        counters.history_publications.set(kept.publications as u64);
        counters.history_bytes.set(kept.bytes as u64);
        counters.filters.set(self.filters.len() as u64);
        counters.filters_bytes.set(self.filters.bytes() as u64);
        counters.tokens_remembered.set(self.good_tokens.len() as u64);
        counters.connections_replaceable.set(self.replaceable.len() as u64);
        counters.unfinished_bytes.set(self.bodies.bytes() as u64);
        counters.timers.set(self.wheel.len() as u64);
        let (batches, bytes) = self.mailbox.waiting();
        counters.mailbox_batches.set(batches as u64);
        counters.mailbox_bytes.set(bytes as u64);
        counters.publishes_remembered.set(self.results.len() as u64);
    }

    /// Whether nothing is left of connections that came and went: no slot, no credit, no mail, no
    /// interest in a channel. What is left, if not.
    pub fn is_quiescent(&self) -> Result<(), String> {
        let left = [
            ("connections", self.conns.len()),
            ("addresses", self.addresses.len()),
            ("sessions", self.sessions.len()),
            ("users", self.users.len()),
            ("outboxes", self.outboxes.in_use()),
            ("bytes queued", self.outboxes.bytes() as usize),
            ("timers", self.wheel.len()),
            ("leaving", self.leaving_count as usize),
            ("to read", self.ready.len()),
            ("to write", self.dirty.len()),
            ("waiting for credit", self.waiting.iter().map(VecDeque::len).sum()),
            ("mail to itself", self.loopback.len()),
            ("unsent mail", self.mail.iter().filter(|outbox| !outbox.is_empty()).count()),
            ("credits", self.mail.iter().map(|outbox| outbox.spent() as usize).sum()),
            ("acknowledgements", self.acks.len()),
            ("channels here", self.locals.len()),
            ("fan-outs", self.locals.active()),
            ("interested shards", self.homes.len() - self.homes.idle()),
            ("members", self.homes.members_of_all()),
            ("users by header", self.header_users.len()),
            ("checks", self.checks.len()),
            ("administrators", self.admins.len()),
            ("headers kept", self.headers.len()),
            ("heads of responses", self.heads.len()),
            ("requests just answered", self.answered.len()),
            ("polls", self.polls.len()),
            ("unasked questions", self.unasked.len()),
            ("parked commands", self.parked.len() + self.parked_of.len()),
            ("told by the application", self.told.len()),
            ("questions to the application", self.proxy_questions),
            ("filters", self.filters.len()),
            ("connections of users", self.user_conns.len()),
            ("events", self.events.len()),
            ("questions to the pool", self.questions.len()),
            ("orders", self.orders.len()),
            ("replaceable connections", self.replaceable.len()),
            ("bytes of bodies", self.bodies.bytes()),
        ];
        let left: Vec<_> = left.iter().filter(|(_, count)| *count > 0).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("shard {}: {left:?}", self.id.0)) }
    }

    /// What waits in the listener is told that the node is gone, then the listener goes.
    fn end(&mut self) {
        self.refuse_waiting();
        self.driver.close_listener();
        self.set_gauges();
    }
}

/// Places beyond those that clients may take: requests are read in them, health checks and calls of the API
/// answered, and clients refused.
const CONNS_SPARE: usize = 64;

/// Milliseconds between two housekeepings.
const HOUSEKEEPING_MS: u64 = 1000;

/// Mail that found a full mailbox is sent again after so long even if nobody rings.
const MAIL_RETRY_MS: u64 = 20;

/// Channels looked at in one housekeeping.
const SWEEP_CHANNELS: usize = 4096;

/// Remembered tokens looked at in one housekeeping.
const SWEEP_TOKENS: usize = 4096;

/// A burst of so many queued bytes makes it worthwhile to give memory back.
const COLLECT_AFTER_BYTES: u64 = 1 << 20;

/// The timer tick of a moment.
fn tick_of(at: Millis) -> u32 {
    (at.0 / TICK_MS) as u32
}

/// Milliseconds as ticks, rounded up, at least one.
fn ticks(ms: u64) -> u32 {
    u32::try_from(ms.div_ceil(TICK_MS)).unwrap_or(u32::MAX / 4).clamp(1, u32::MAX / 4)
}
