//! The brokers of this node: their threads, and the ways between them, the homes and the control thread.
//!
//! ```text
//!  home (shard) --lane--> mailbox of its broker thread          node/redis
//!  home <--mailbox-- lane of the thread <-- BrokerEvents -----------'
//!  control thread <-- ControlEvents -------------------------------'
//! ```
//! Mail goes between a shard and the thread that serves it: never through the control thread, and without a
//! lock. A thread sends all events that it has for a home as one batch. A mailbox without room holds up
//! nothing: reading from Redis goes on, and what comes waits here ([`BROKER_WAITING_BYTES_MAX`]). A publication beyond
//! that is dropped, and once there is room its channel begins anew, so that the home reads what is missing.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use compact_str::CompactString;
use tokio::sync::mpsc;

use super::StartFault;
use super::broker_threads::{self, Begin, ControlEvent, Events, Figures, Recipient, Service};
use super::cluster::Transmit;
use super::log_limit::LogLimit;
use super::redis::Joining;
use super::{nats, presence_nodes, redis};
use crate::base::id::ShardId;
use crate::base::limits::BROKER_WAITING_BYTES_MAX;
use crate::base::times::Times;
use crate::cluster::control::Message;
use crate::cluster::names::{Layout, Names};
use crate::cluster::nats::streams::Streams;
use crate::cluster::nats::subjects::Subjects;
use crate::cluster::operations::Operations;
use crate::cluster::servers::Server;
use crate::config::{Brokers as BrokerOptions, NatsOptions, RedisOptions};
use crate::edge::channels::ChannelRules;
use crate::hub::broker::{BrokerEvent, Command, Ticket};
use crate::shard::mail::{BROKER, Flushed, Letterbox, Mail, MailLane, Outside, PRESENCE_BROKER};
use crate::shard::{Broker, Presence};

/// Events of the control channel that wait for the control thread at most.
const CONTROL_EVENTS_MAX: usize = 1 << 16;

/// Bytes of commands that wait or are under way in a thread at most.
pub(super) const QUEUE_BYTES_MAX: usize = 64 << 20;

/// Lines about messages without room: each one more is dropped.
static LOST: LogLimit = LogLimit::new();

/// The interval of the probes of a PUB/SUB connection.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// A broker by its kind.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Redis.
    Redis(Arc<redis::Settings>),
    /// NATS.
    Nats(Arc<nats::Settings>),
    /// Each node keeps its own clients, and others ask it: presence alone.
    Nodes(Arc<presence_nodes::Settings>),
}

impl Kind {
    fn check(&self) -> Result<(), String> {
        match self {
            Self::Redis(settings) => redis::check(settings),
            Self::Nats(settings) => nats::check(settings),
            Self::Nodes(_) => Ok(()),
        }
    }
}

impl Service for Kind {
    fn servers(&self) -> usize {
        match self {
            Self::Redis(settings) => settings.servers(),
            Self::Nats(settings) => settings.servers(),
            Self::Nodes(settings) => settings.servers(),
        }
    }

    fn divided(&self) -> usize {
        match self {
            Self::Redis(settings) => settings.divided(),
            Self::Nats(settings) => settings.divided(),
            Self::Nodes(settings) => settings.divided(),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Redis(settings) => settings.name(),
            Self::Nats(settings) => settings.name(),
            Self::Nodes(settings) => settings.name(),
        }
    }

    fn threads(&self) -> usize {
        match self {
            Self::Redis(settings) => settings.threads(),
            Self::Nats(settings) => settings.threads(),
            Self::Nodes(settings) => settings.threads(),
        }
    }

    fn figures(&self) -> Figures {
        match self {
            Self::Redis(settings) => settings.figures(),
            Self::Nats(settings) => settings.figures(),
            Self::Nodes(settings) => settings.figures(),
        }
    }

    fn probe_interval(&self) -> Duration {
        match self {
            Self::Redis(settings) => settings.probe_interval(),
            Self::Nats(settings) => settings.probe_interval(),
            Self::Nodes(settings) => settings.probe_interval(),
        }
    }

    async fn run(self: Arc<Self>, begin: Begin) {
        match &*self {
            Self::Redis(settings) => Arc::clone(settings).run(begin).await,
            Self::Nats(settings) => Arc::clone(settings).run(begin).await,
            Self::Nodes(settings) => Arc::clone(settings).run(begin).await,
        }
    }
}

/// The brokers that a node has: none, one for both uses, or one for each.
#[derive(Debug, Default)]
pub struct BrokerSettings {
    /// Keeps channels, carries messages between nodes, and keeps presence unless another one does.
    pub channels: Option<Kind>,
    /// Keeps presence alone.
    pub presence: Option<Kind>,
    /// Seconds for which entries of presence are kept; of no meaning where no broker keeps them.
    presence_ttl_s: u64,
}

impl BrokerSettings {
    /// The brokers that the options name, for a node of this name with so many homes.
    pub(super) fn new(
        options: &BrokerOptions,
        channels: &ChannelRules,
        uid: &str,
        homes: usize,
    ) -> Self {
        let rules = channels;
        let BrokerOptions { broker, nats, presence, presence_by_nodes, threads } = options;
        let threads = (*threads).clamp(1, homes.max(1));
        let settings = |options: &RedisOptions, has_channels| {
            let is_cluster = matches!(options.servers.first(), Some(Server::Cluster { .. }));
            let layout = match &options.partitions {
                Some(partitions) if is_cluster => Layout::Sharded(partitions.clone()),
                _ if is_cluster => Layout::Cluster,
                _ => Layout::Plain,
            };
            redis::Settings {
                servers: options.servers.clone(),
                operations: Operations {
                    names: Names::new(&options.prefix, layout),
                    use_lists: options.use_lists,
                    presence_ttl_s: options.presence_ttl_s,
                    presence_users: options.presence_users,
                    presence_field_ttl: options.presence_field_ttl,
                },
                has_channels,
                uid: uid.to_owned(),
                homes,
                threads,
                queue_bytes_max: QUEUE_BYTES_MAX,
                connect_timeout: Duration::from_millis(options.connect_timeout_ms),
                io_timeout: Duration::from_millis(options.io_timeout_ms),
                late_after: Duration::from_millis(options.io_timeout_ms) / 2,
                probe_interval: PROBE_INTERVAL,
            }
        };
        let mut channels = broker.as_ref().map(|options| settings(options, true));
        let mut presence = presence.as_ref().map(|options| settings(options, false));
        if let (Some(channels), Some(apart)) = (&mut channels, &presence)
            && channels.is_same_place(apart)
        {
            let redis::Settings { operations: Operations { presence_ttl_s, .. }, .. } = apart;
            channels.operations.presence_ttl_s = *presence_ttl_s;
            channels.operations.presence_users = apart.operations.presence_users;
            channels.operations.presence_field_ttl = apart.operations.presence_field_ttl;
            presence = None;
        }
        let keeper = presence.as_ref().or(channels.as_ref());
        let presence_ttl_s = keeper.map_or(0, |keeper| keeper.operations.presence_ttl_s);
        let redis = |settings: redis::Settings| Kind::Redis(Arc::new(settings));
        let nats =
            nats.as_ref().map(|options| nats_settings(options, rules, uid, (homes, threads)));
        let channels =
            nats.map(|settings| Kind::Nats(Arc::new(settings))).or_else(|| channels.map(redis));
        if *presence_by_nodes {
            // Nothing expires.
            let presence = Some(Kind::Nodes(Arc::new(presence_nodes::Settings { homes })));
            return Self { channels, presence, presence_ttl_s: u64::from(u32::MAX) };
        }
        Self { channels, presence: presence.map(redis), presence_ttl_s }
    }

    /// Connects to each server once.
    ///
    /// # Errors
    /// One of them can't be reached.
    pub(super) fn check(&self) -> Result<(), StartFault> {
        let mut all = self.channels.iter().chain(&self.presence);
        all.try_for_each(Kind::check).map_err(|why| StartFault::Broker { why })
    }

    /// The servers by which nodes reach each other, in their order, and how channels are divided beside that;
    /// `None` where this node is alone. Nodes where either differs don't hear each other. Servers of NATS are one
    /// cluster, whichever of them a node names.
    pub(super) fn servers_of_nodes(&self) -> Option<(Vec<Server>, String)> {
        let channels = match self.channels.as_ref()? {
            Kind::Redis(settings) => settings,
            Kind::Nats(settings) => {
                return Some((Vec::new(), format!(" in NATS, {}", settings.subjects.prefix())));
            }
            Kind::Nodes(_) => return None,
        };
        let partitions = match channels.operations.names.layout() {
            Layout::Sharded(partitions) => {
                let tags = if partitions.is_balanced() { "balanced" } else { "numbers" };
                format!(" in {} partitions, {tags}", partitions.count())
            }
            Layout::Plain | Layout::Cluster => String::new(),
        };
        Some((channels.servers.clone(), partitions))
    }

    /// Seconds for which entries of presence are kept; of no meaning where no broker keeps them.
    pub(super) fn presence_ttl_s(&self) -> u32 {
        u32::try_from(self.presence_ttl_s).unwrap_or(u32::MAX)
    }

    /// A broker keeps entries of presence, which outlive their node.
    fn keeps_entries(&self) -> bool {
        let keeper = self.presence.as_ref().or(self.channels.as_ref());
        matches!(keeper, Some(Kind::Redis(_)))
    }

    /// The keepers of channels and presence, as homes see them. `shares_presence`: a broker keeps it.
    pub(super) fn keepers(&self, shares_presence: bool) -> (Broker, Presence) {
        let broker = if self.channels.is_some() { Broker::Remote } else { Broker::Memory };
        let presence = match (shares_presence, &self.presence) {
            (_, Some(_)) => Presence::Apart,
            (true, None) => Presence::WithChannels,
            (false, None) => Presence::Memory,
        };
        (broker, presence)
    }
}

/// NATS as the options say.
fn nats_settings(
    options: &NatsOptions,
    rules: &ChannelRules,
    uid: &str,
    (homes, threads): (usize, usize),
) -> nats::Settings {
    let NatsOptions { prefix, wildcards, raw, .. } = options;
    let subjects = match raw {
        Some((raw_prefix, replacements)) => {
            Subjects::raw(prefix, *wildcards, raw_prefix, replacements.clone())
        }
        None => Subjects::new(prefix, *wildcards),
    };
    let streams = options.history.clone().map(|keeping| {
        // As they are at the start: streams are made then.
        Streams::new(prefix, keeping, Arc::new(rules.clone()))
    });
    nats::Settings {
        servers: options.servers.clone(),
        streams,
        security: options.security.clone(),
        subjects,
        takes_all: options.takes_all,
        uid: uid.to_owned(),
        homes,
        threads,
        queue_bytes_max: QUEUE_BYTES_MAX,
        dial_timeout: Duration::from_millis(options.dial_timeout_ms),
        write_timeout: Duration::from_millis(options.write_timeout_ms),
        probe_interval: PROBE_INTERVAL,
    }
}

/// Brokers whose threads have not started.
pub(super) struct PreparedBrokers {
    channels: Option<Prepared>,
    presence: Option<Prepared>,
    keeps_entries: bool,
    counts: bool,
}

type Prepared = broker_threads::Prepared<Kind>;

impl PreparedBrokers {
    /// Makes what the threads are woken with, before the descriptor tables of shards part.
    pub(super) fn new(settings: BrokerSettings) -> Result<Self, StartFault> {
        let prepare = |settings: Option<Kind>| {
            let prepared = settings.map(Prepared::new).transpose();
            prepared.map_err(super::system("a runtime for a broker"))
        };
        let keeps_entries = settings.keeps_entries();
        let counts = matches!(settings.channels, Some(Kind::Nats(_)));
        let (channels, presence) = (prepare(settings.channels)?, prepare(settings.presence)?);
        Ok(Self { channels, presence, keeps_entries, counts })
    }

    /// The receivers of a shard's mail that are no shards.
    pub(super) fn outside(&self, shard: ShardId, control: Letterbox) -> Outside {
        let of = |broker: &Option<Prepared>| {
            broker.as_ref().map(|broker| broker.letterbox(shard.index()))
        };
        Outside { control, broker: of(&self.channels), presence: of(&self.presence) }
    }

    /// Starts the threads, which send to these shards, and waits for their first attempts to connect. The
    /// events of the control channel come out of the receiver. `takes_over`: the shards are another process's until
    /// that has handed them over.
    pub(super) fn start(
        self,
        shards: &[Letterbox],
        takes_over: bool,
    ) -> Result<(Arc<Brokers>, mpsc::Receiver<ControlEvent>), StartFault> {
        let (sender, control_events) = mpsc::channel(CONTROL_EVENTS_MAX);
        let listens = self.channels.as_ref().filter(|_| takes_over).map(|channels| {
            let lanes = (0..shards.len()).map(|home| MailLane::new(channels.letterbox(home)));
            Mutex::new(Listens { lanes: lanes.collect(), ended: HashSet::default(), count: 0 })
        });
        let mut joinings = Vec::new();
        let mut start = |prepared: Option<Prepared>, from| {
            let Some(mut prepared) = prepared else { return Ok(None) };
            let (shards, sender) = (shards.to_vec(), sender.clone());
            let figures = prepared.figures();
            let joining = takes_over.then(|| prepared.join());
            joinings.extend(joining.clone());
            let started = prepared.start(move |_| {
                let control = ToControl::new(sender.clone(), Arc::clone(&figures));
                let homes = ToHomes::new(from, &shards, control, Arc::clone(&figures));
                homes.joining.replace(joining.clone());
                homes
            });
            started.map(Some).map_err(super::system("a thread for a broker"))
        };
        let channels = start(self.channels, BROKER)?;
        let presence = start(self.presence, PRESENCE_BROKER)?;
        channels.iter().chain(&presence).for_each(broker_threads::Broker::wait_for_first_attempts);
        let Self { keeps_entries, counts, .. } = self;
        let brokers = Brokers { channels, presence, keeps_entries, counts, joinings, listens };
        Ok((Arc::new(brokers), control_events))
    }
}

/// The running brokers of a node; none of them where it keeps all itself.
pub(super) struct Brokers {
    channels: Option<broker_threads::Broker>,
    presence: Option<broker_threads::Broker>,
    /// One of them keeps entries of presence, which outlive their node.
    keeps_entries: bool,
    /// In a takeover what is delivered is counted: a fence alone divides nothing.
    counts: bool,
    /// Where this process takes over from another one: how far the connections are.
    joinings: Vec<Arc<Joining>>,
    /// And the channels that it is to listen to.
    listens: Option<Mutex<Listens>>,
}

/// Wishes to listen in the name of homes that are another process's.
struct Listens {
    /// To the thread of each home.
    lanes: Vec<MailLane>,
    /// Channels that homes need no more.
    ended: HashSet<(usize, CompactString), foldhash::fast::RandomState>,
    /// Channels so far.
    count: usize,
}

impl Listens {
    fn send(&mut self, home: usize, command: Command) {
        let Some(lane) = self.lanes.get_mut(home) else { return };
        while lane.is_full() && lane.flush(ShardId(home as u8)) == Flushed::Full {
            // Its thread takes all mail at once.
            std::thread::park_timeout(LISTENS_AGAIN);
        }
        lane.push(Mail::Command(Box::new(command)));
    }

    fn flush(&mut self) {
        for (home, lane) in self.lanes.iter_mut().enumerate() {
            while lane.flush(ShardId(home as u8)) == Flushed::Full {
                std::thread::park_timeout(LISTENS_AGAIN);
            }
        }
    }
}

/// A takeover, as brokers take part in it. In the new process the main thread calls these, and waits.
impl Brokers {
    /// This process belongs to this attempt of the running node.
    pub(super) fn join(&self, key: u64) {
        self.joinings.iter().for_each(|joining| joining.begin(key));
    }

    /// A home of the running node listens to some channels, and to others no more.
    pub(super) fn listen(&self, home: usize, begun: Vec<CompactString>, ended: Vec<CompactString>) {
        let Some(listens) = &self.listens else { return };
        let mut listens = listens.lock().unwrap_or_else(PoisonError::into_inner);
        listens.ended.extend(ended.into_iter().map(|channel| (home, channel)));
        for channel in begun {
            // One that is there again is still listened to.
            if !listens.ended.remove(&(home, channel.clone())) {
                listens.count += 1;
                listens.send(home, Command::Listen { channel });
            }
        }
        listens.flush();
    }

    /// Waits until all channels are listened to.
    ///
    /// # Errors
    /// Why they are not.
    pub(super) fn wait_for_channels(&self) -> Result<(), String> {
        let count = match &self.listens {
            Some(listens) => listens.lock().unwrap_or_else(PoisonError::into_inner).count,
            None => 0,
        };
        for (at, joining) in self.joinings.iter().enumerate() {
            // The first one has channels, if one has.
            let count = if at == 0 { count } else { 0 };
            joining.wait_for_channels(count, CHANNELS_WITHIN)?;
        }
        // Figures follow the first messages of a connection.
        let tries = CHANNELS_WITHIN.as_millis() / LISTENS_AGAIN.as_millis();
        let mut faults = (0..tries).map_while(|_| self.fault());
        while faults.by_ref().next().is_some() && !self.is_lost() {
            std::thread::park_timeout(LISTENS_AGAIN);
        }
        self.fault().map_or(Ok(()), |why| Err(why.to_owned()))
    }

    /// Waits until what comes is this process's by each connection.
    ///
    /// # Errors
    /// Why it is not.
    pub(super) fn wait_for_fences(&self) -> Result<(), String> {
        if let Some(listens) = &self.listens {
            let mut listens = listens.lock().unwrap_or_else(PoisonError::into_inner);
            for (home, channel) in std::mem::take(&mut listens.ended) {
                listens.send(home, Command::Unlisten { channel });
            }
            listens.flush();
        }
        self.joinings.iter().try_for_each(|joining| joining.wait_for_fences(FENCES_WITHIN))
    }

    /// A connection was lost before its fence.
    fn is_lost(&self) -> bool {
        self.joinings.iter().any(|joining| joining.is_lost())
    }

    /// Where a fence alone divides nothing: has brokers count what they deliver, and keep it in the other process.
    pub(super) async fn mark(&self, key: u64) {
        let Some(channels) = self.channels.as_ref().filter(|_| self.counts) else { return };
        channels.mark(key).await;
        tokio::time::sleep(nats::SIGNS_APART).await;
        channels.keep(key).await;
        tokio::time::sleep(nats::SIGNS_APART).await;
    }

    /// Commands that wait or are under way, in bytes.
    pub(super) fn queued_bytes(&self) -> usize {
        self.all().map(broker_threads::Broker::queued_bytes).sum()
    }

    /// Messages on the control connections are held.
    pub(super) async fn hold_control(&self) {
        if let Some(channels) = &self.channels {
            channels.hold_control().await;
        }
    }

    /// Has a fence come on the control connections: messages before it are handled, and those behind it held.
    pub(super) async fn fence_control(&self, key: u64) {
        if let Some(channels) = &self.channels {
            channels.fence_control(key).await;
        }
    }

    /// This process goes on: what was held on the control connections is handled.
    pub(super) async fn resume_control(&self) {
        if let Some(channels) = &self.channels {
            channels.resume_control().await;
        }
    }

    /// Servers by which nodes reach each other.
    pub(super) fn servers(&self) -> usize {
        self.channels.as_ref().map_or(0, broker_threads::Broker::servers)
    }

    /// A broker keeps channels.
    pub(super) fn keep_channels(&self) -> bool {
        self.channels.is_some()
    }
}

/// The running node's channels are listened to so soon.
const CHANNELS_WITHIN: Duration = Duration::from_secs(30);

/// Fences come so soon behind the one of the running node.
const FENCES_WITHIN: Duration = Duration::from_secs(1);

/// A thread without room for wishes is tried again after so long.
const LISTENS_AGAIN: Duration = Duration::from_millis(1);

impl Brokers {
    fn all(&self) -> impl Iterator<Item = &broker_threads::Broker> {
        self.channels.iter().chain(&self.presence)
    }

    /// Namespaces are others by now.
    pub(super) fn follow(&self, rules: &Arc<ChannelRules>) {
        if self.channels.as_ref().is_some_and(|channels| !channels.follow(rules)) {
            tracing::warn!("reload: the broker is busy: histories follow at the next reload");
        }
    }

    /// This node keeps all itself.
    pub(super) fn is_empty(&self) -> bool {
        self.all().next().is_none()
    }

    /// Why requests for a broker fail, or publications may be missing until it has recovered.
    pub(super) fn fault(&self) -> Option<&'static str> {
        self.all().find_map(broker_threads::Broker::fault)
    }

    /// Time since something came by the PUB/SUB connection that has been silent for longest.
    pub(super) fn probe_age(&self) -> Duration {
        self.all().map(|broker| broker.figures().probe_age()).max().unwrap_or_default()
    }

    /// For each thread: time from a command of a home to its answer.
    pub(super) fn latency(&self) -> impl Iterator<Item = &Times> {
        self.all().flat_map(|broker| &broker.figures().latency)
    }

    /// Figures of all of them together, by name; all zero where there is none.
    pub(super) fn figures(&self) -> BTreeMap<&'static str, u64> {
        let mut sums: BTreeMap<_, _> = Figures::NAMES.map(|name| (name, 0)).into();
        sums.insert("redis_queue_bytes", 0);
        for broker in self.all() {
            broker.figures().each(|name, value| *sums.entry(name).or_insert(0) += value);
            *sums.entry("redis_queue_bytes").or_insert(0) += broker.queued_bytes() as u64;
        }
        sums
    }
}

impl Transmit for Brokers {
    fn send_control(&self, to: Recipient, ticket: Ticket, message: Message) -> bool {
        self.channels.as_ref().is_some_and(|broker| broker.send_control(to, ticket, message))
    }

    fn take_entries(&self, uid: &str) {
        if !self.keeps_entries {
            return;
        }
        if let Some(channels) = &self.channels {
            channels.notify_removed(uid);
        }
        if let Some(keeper) = self.presence.as_ref().or(self.channels.as_ref()) {
            keeper.take_entries(uid);
        }
    }

    fn answer_presence(&self, home: usize, event: BrokerEvent) {
        if let Some(presence) = &self.presence {
            presence.answer_presence(home, event);
        }
    }
}

/// The way of a thread's events to the control thread.
struct ToControl {
    sender: mpsc::Sender<ControlEvent>,
    /// Some event found no room.
    missed: Cell<bool>,
    figures: Arc<Figures>,
}

impl ToControl {
    fn new(sender: mpsc::Sender<ControlEvent>, figures: Arc<Figures>) -> Self {
        Self { sender, missed: Cell::new(false), figures }
    }

    fn send(&self, event: ControlEvent) {
        if self.missed.get()
            && let Ok(room) = self.sender.try_reserve_many(2)
        {
            room.zip([ControlEvent::Interrupted, ControlEvent::Listening])
                .for_each(|(permit, event)| permit.send(event));
            self.missed.set(false);
        }
        if self.sender.try_send(event).is_err() {
            self.missed.set(true);
            Figures::add(&self.figures.control_lost, 1);
        }
    }
}

/// The mail of one thread to all homes that it serves, and its events for the control thread.
struct ToHomes {
    /// The homes are another process's until this is over.
    joining: RefCell<Option<Arc<Joining>>>,
    from: ShardId,
    lanes: Vec<RefCell<HomeLane>>,
    control: ToControl,
    figures: Arc<Figures>,
}

/// Mail to one home.
struct HomeLane {
    /// What leaves next, as one batch.
    lane: MailLane,
    /// What doesn't go into that batch, and its bytes.
    waiting: VecDeque<Mail>,
    waiting_bytes: usize,
    /// Channels of which a publication found no room.
    missed: HashSet<CompactString, foldhash::fast::RandomState>,
}

impl ToHomes {
    fn new(from: ShardId, shards: &[Letterbox], control: ToControl, figures: Arc<Figures>) -> Self {
        let lane = |letterbox: &Letterbox| RefCell::new(HomeLane::new(letterbox.clone()));
        let (joining, lanes) = (RefCell::default(), shards.iter().map(lane).collect());
        Self { joining, from, lanes, control, figures }
    }

    /// The events that a home is to get: while it is another process's, none of before that is settled.
    fn admitted(&self, mut events: Vec<BrokerEvent>) -> Vec<BrokerEvent> {
        let mut joining = self.joining.borrow_mut();
        if let Some(of) = &*joining {
            events.retain(|event| of.admits(event));
            if of.is_over() {
                *joining = None;
            }
        }
        events
    }
}

impl Events for ToHomes {
    fn take(&self, home: usize, events: Vec<BrokerEvent>) {
        let Some(lane) = self.lanes.get(home) else { return };
        let lane = &mut *lane.borrow_mut();
        let events = self.admitted(events);
        events.into_iter().for_each(|event| lane.push(event, &self.figures));
        lane.flush(self.from);
    }

    fn control(&self, events: Vec<ControlEvent>) {
        events.into_iter().for_each(|event| self.control.send(event));
    }

    fn flush(&self) -> bool {
        let flush =
            |blocked, lane: &RefCell<HomeLane>| lane.borrow_mut().flush(self.from) | blocked;
        self.lanes.iter().fold(false, flush)
    }

    fn has_room(&self, home: usize) {
        if let Some(lane) = self.lanes.get(home) {
            lane.borrow().lane.ring();
        }
    }
}

impl HomeLane {
    fn new(letterbox: Letterbox) -> Self {
        Self {
            lane: MailLane::new(letterbox),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            missed: HashSet::default(),
        }
    }

    fn push(&mut self, event: BrokerEvent, figures: &Figures) {
        let is_full = self.waiting_bytes >= BROKER_WAITING_BYTES_MAX;
        match &event {
            BrokerEvent::Delivered(delivered) => {
                let channel = &delivered.channel;
                if is_full || self.missed.contains(channel) {
                    Figures::add(&figures.deliveries_lost, 1);
                    warn_of_loss("publication", channel);
                    self.missed.insert(channel.clone());
                    return;
                }
            }
            BrokerEvent::Announced { channel, .. } if is_full => {
                warn_of_loss("join or leave", channel);
                return Figures::add(&figures.announcements_lost, 1);
            }
            // The channel begins anew, or will.
            BrokerEvent::Listening { channel } | BrokerEvent::Interrupted { channel } => {
                self.missed.remove(channel);
            }
            BrokerEvent::Lost => self.missed.clear(),
            _ => {}
        }
        self.wait(Mail::BrokerEvent(Box::new(event)));
    }

    /// Puts mail behind all other.
    fn wait(&mut self, mail: Mail) {
        if self.waiting.is_empty() && !self.lane.is_full() {
            return self.lane.push(mail);
        }
        self.waiting_bytes += mail.bytes();
        self.waiting.push_back(mail);
    }

    /// True if something waits for room.
    fn flush(&mut self, from: ShardId) -> bool {
        loop {
            while !self.lane.is_full()
                && let Some(mail) = self.waiting.pop_front()
            {
                self.waiting_bytes -= mail.bytes();
                self.lane.push(mail);
            }
            match self.lane.flush(from) {
                Flushed::Full => return true,
                Flushed::Gone => {}
                Flushed::Nothing if self.missed.is_empty() => {
                    self.waiting.shrink_to(WAITING_KEPT);
                    return false;
                }
                Flushed::Nothing => {
                    for channel in std::mem::take(&mut self.missed) {
                        let begins = BrokerEvent::Interrupted { channel: channel.clone() };
                        self.wait(Mail::BrokerEvent(Box::new(begins)));
                        self.wait(Mail::BrokerEvent(Box::new(BrokerEvent::Listening { channel })));
                    }
                }
            }
        }
    }
}

/// A message finds no room.
fn warn_of_loss(kind: &'static str, channel: &str) {
    if let Some(left_out) = LOST.admit() {
        tracing::warn!(
            left_out,
            "messages of the broker come faster than a shard takes them: a {kind} of channel {channel:?} is \
             dropped; publications are read from the history once there is room"
        );
    }
}

/// Places for waiting mail that are kept.
const WAITING_KEPT: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::OUTBOX_BYTES_MAX;
    use crate::hub::broker::{Delivered, Entry};
    use crate::hub::history::{Published, Record};
    use crate::io::Alarm;
    use crate::node::control_mail::Bell;
    use crate::shard::mail::Mailbox;

    fn home(batches: usize) -> (ToHomes, Mailbox, mpsc::Receiver<ControlEvent>) {
        let (letterbox, mailbox) = Mailbox::new(batches, Alarm::new(Arc::new(Bell::default())));
        let (sender, events) = mpsc::channel(4);
        let figures = Arc::new(Figures::sized(1, 1, 1));
        let control = ToControl::new(sender, figures.clone());
        (ToHomes::new(BROKER, &[letterbox], control, figures), mailbox, events)
    }

    fn delivered(channel: &str, bytes: usize) -> BrokerEvent {
        let data = vec![b'1'; bytes];
        let published = Published { data: &data, is_json: true, ..Published::default() };
        let record = Record::new(1, &published);
        let entry = Entry { after: 0, time_ms: 0, delta: false, source: None, record };
        BrokerEvent::Delivered(Box::new(Delivered { channel: channel.into(), epoch: None, entry }))
    }

    fn received(mailbox: &Mailbox) -> Vec<String> {
        let mut names = Vec::new();
        while let Some(batch) = mailbox.take() {
            assert_eq!(batch.from, BROKER);
            for mail in batch.mail {
                let Mail::BrokerEvent(event) = mail else { panic!("{mail:?}") };
                names.push(match *event {
                    BrokerEvent::Delivered(of) => of.channel.to_string(),
                    BrokerEvent::Listening { channel } => format!("on {channel}"),
                    BrokerEvent::Interrupted { channel } => format!("off {channel}"),
                    BrokerEvent::Done { ticket } => format!("done {}", ticket.0),
                    other => panic!("{other:?}"),
                });
            }
        }
        names
    }

    #[test]
    fn events_of_a_call_are_one_batch() {
        let (homes, mailbox, _events) = home(8);
        homes.take(0, vec![delivered("a", 1), delivered("b", 1)]);
        assert_eq!(mailbox.waiting().0, 1);
        assert_eq!(received(&mailbox), ["a", "b"]);
    }

    #[test]
    fn what_finds_no_room_waits_and_leaves_in_order_in_batches() {
        let (homes, mailbox, _events) = home(1);
        homes.take(0, vec![delivered("first", 1)]);
        let large = |name| delivered(name, OUTBOX_BYTES_MAX);
        homes.take(0, vec![large("a"), large("b"), BrokerEvent::Done { ticket: Ticket(1) }]);
        homes.take(0, vec![delivered("c", 1)]);
        assert!(homes.flush());
        for batch in [&["first"][..], &["a"], &["b"], &["done 1", "c"]] {
            assert_eq!(received(&mailbox), batch);
            homes.flush();
        }
        assert_eq!(homes.figures.deliveries_lost.load(std::sync::atomic::Ordering::Relaxed), 0);
        assert!(!homes.flush() && received(&mailbox).is_empty());
    }

    #[test]
    fn a_publication_without_room_makes_its_channel_begin_anew() {
        let (homes, mailbox, _events) = home(1);
        homes.take(0, vec![delivered("first", 1)]);
        // The first one leaves with the next batch, so that all others wait for it.
        homes.take(
            0,
            vec![delivered("a", OUTBOX_BYTES_MAX), delivered("a", BROKER_WAITING_BYTES_MAX)],
        );
        homes.take(0, vec![delivered("b", 1), BrokerEvent::Done { ticket: Ticket(1) }]);
        assert_eq!(homes.figures.deliveries_lost.load(std::sync::atomic::Ordering::Relaxed), 1);
        // A publication of the same channel would come behind what is missing.
        homes.take(0, vec![delivered("b", 1)]);
        assert_eq!(homes.figures.deliveries_lost.load(std::sync::atomic::Ordering::Relaxed), 2);
        for batch in [&["first"][..], &["a"], &["a"], &["done 1"], &["off b", "on b"]] {
            assert_eq!(received(&mailbox), batch);
            homes.flush();
        }
        homes.take(0, vec![delivered("b", 1)]);
        assert_eq!(received(&mailbox), ["b"]);
    }

    #[test]
    fn a_channel_that_begins_anew_anyway_does_so_once() {
        let (homes, mailbox, _events) = home(1);
        homes.take(0, vec![delivered("first", 1)]);
        homes.take(
            0,
            vec![delivered("a", 2 * OUTBOX_BYTES_MAX), delivered("a", BROKER_WAITING_BYTES_MAX)],
        );
        homes.take(0, vec![delivered("b", 1)]);
        let off = BrokerEvent::Interrupted { channel: "b".into() };
        homes.take(0, vec![off]);
        for batch in [&["first"][..], &["a"], &["a"], &["off b"]] {
            assert_eq!(received(&mailbox), batch);
            homes.flush();
        }
        assert!(!homes.flush() && received(&mailbox).is_empty());
    }

    #[test]
    fn control_events_without_room_make_the_channel_begin_anew() {
        let (homes, _mailbox, mut events) = home(1);
        let sent = |of| ControlEvent::Sent { ticket: Ticket(of), is_sent: true };
        homes.control((0..6).map(sent).collect());
        let mut all = Vec::new();
        while let Ok(event) = events.try_recv() {
            all.push(event);
        }
        assert_eq!(all, [sent(0), sent(1), sent(2), sent(3)]);
        homes.control(vec![sent(9)]);
        let next: Vec<_> = (0..3).map(|_| events.try_recv().unwrap()).collect();
        assert_eq!(next, [ControlEvent::Interrupted, ControlEvent::Listening, sent(9)]);
    }
}
