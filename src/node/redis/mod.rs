//! Redis as the broker of this node: threads of their own, between the homes and the servers.
//!
//! ```text
//!  home --mail: Commands--> thread: inlet --> queue of a server --> command connection (pipelined)
//!                                        '--> wishes of a home ---> its PUB/SUB connection
//!  home <--mail: BrokerEvents-------------------------------------------'
//! ```
//! A thread serves some homes, with a command connection to each server, and a PUB/SUB connection to each
//! server for each home, so that no connection carries the messages of all channels. A channel belongs to
//! one server, by the jump hash of its name.
//!
//! With sharded PUB/SUB the channels of a server are in partitions, and a home has a PUB/SUB connection for each
//! of them, to the node of the Cluster that owns its slot. When the slot moves, or its owner is another one
//! after a failover, the connection ends and is made anew to the owner of then.
//!
//! A command whose reply is lost fails, since it may have taken effect, unless it does no harm to carry it out
//! twice: then it is sent again, once. One that is still in the queue was not sent, and waits for another
//! connection. When attempts to connect have failed for [`commands`]' patience, the server is lost: commands
//! fail at once until it is back. So they do while it answers late ([`lateness`]).

mod backoff;
mod burst;
mod commands;
mod control;
mod fence;
mod inlet;
mod lateness;
mod pubsub;
mod queue;
mod reconnect;
mod slots;
mod wire;

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::{Notify, mpsc};
use tokio::task::LocalSet;

use self::control::Outgoing;
pub use self::control::{ControlEvent, Recipient};
pub use self::fence::Joining;
use self::fence::{Awaits, Part};
use self::pubsub::Wishes;
use self::queue::Queue;
use crate::base::limits::MAILBOX_BATCHES;
use crate::base::times::Times;
use crate::cluster::control::{Command as ControlCommand, Message};
use crate::cluster::operations::Operations;
use crate::cluster::servers::{Address, Server};
use crate::hub::broker::{BrokerEvent, Ticket};
use crate::io::Alarm;
use crate::node::control_mail::Bell;
use crate::shard::mail::{Letterbox, Mailbox};
use crate::sys;

/// Where the news of a thread go. Each thread has one of its own. Nothing here blocks.
pub trait Events: 'static {
    /// Takes news for a home, in their order.
    fn take(&self, home: usize, events: Vec<BrokerEvent>);

    /// Takes news of the control channel, in their order.
    fn control(&self, events: Vec<ControlEvent>);

    /// Sends news on that found no room before. True if some still wait.
    fn flush(&self) -> bool;

    /// A home found no room for its commands, and there is room again.
    fn has_room(&self, home: usize);
}

/// Where the broker is, and what it keeps to.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Servers in their order: channels are divided among them.
    pub servers: Vec<Server>,
    /// Names and options of all nodes.
    pub operations: Operations,
    /// Channels and messages between nodes; else presence alone.
    pub has_channels: bool,
    /// The name of this node.
    pub uid: String,
    /// Homes of this node.
    pub homes: usize,
    /// Threads, at least one.
    pub threads: usize,
    /// Bytes of commands that wait or are under way in a thread at most; beyond it they fail.
    pub queue_bytes_max: usize,
    /// Time for a connection to be made.
    pub connect_timeout: Duration,
    /// Time for a reply, and for a command to wait in the queue.
    pub io_timeout: Duration,
    /// A server whose replies take longer counts as away.
    pub late_after: Duration,
    /// Interval of the probes of a PUB/SUB connection; one that misses two is made anew.
    pub probe_interval: Duration,
}

impl Settings {
    /// The same servers are used in the same way: one broker can do for both.
    pub fn is_same_place(&self, other: &Self) -> bool {
        let key = |of: &Self| (of.servers.clone(), of.connect_timeout, of.io_timeout);
        let (names, other_names) = (&self.operations.names, &other.operations.names);
        key(self) == key(other) && names.control() == other_names.control()
    }
}

/// Figures of all threads.
#[derive(Debug)]
pub struct Figures {
    /// Servers without a command connection, counted for each thread.
    pub servers_away: AtomicU64,
    /// PUB/SUB connections of homes that are not made, or don't deliver all wished channels yet.
    pub resubscribing: AtomicU64,
    /// For each of these connections the moment at which something came last, in milliseconds since `began`.
    heard_ms: Box<[AtomicU64]>,
    began: Instant,
    /// For each thread: time from a command of a home to its answer.
    pub latency: Box<[Times]>,
    /// Command connections made, the first ones too.
    pub connects: AtomicU64,
    /// Attempts that failed.
    pub connects_failed: AtomicU64,
    /// PUB/SUB connections made, the first ones too.
    pub pubsub_connects: AtomicU64,
    /// Commands that failed since their reply is missing.
    pub replies_lost: AtomicU64,
    /// Commands that failed without being sent.
    pub refused: AtomicU64,
    /// Errors in replies.
    pub errors: AtomicU64,
    /// PUB/SUB messages.
    pub messages: AtomicU64,
    /// PUB/SUB messages that are malformed.
    pub malformed: AtomicU64,
    /// Milliseconds that the last complete subscription of a connection took.
    pub resubscribe_ms: AtomicU64,
    /// PUB/SUB connections that missed their probes.
    pub probes_missed: AtomicU64,
    /// Publications that found no room at their home: their channels are read again.
    pub deliveries_lost: AtomicU64,
    /// Joins and leaves that found no room at their home.
    pub announcements_lost: AtomicU64,
    /// Messages of other nodes that found no room in this one.
    pub control_lost: AtomicU64,
}

impl Figures {
    /// All servers are away, and all connections missing.
    fn new(settings: &Settings) -> Self {
        let (servers, threads) = (settings.servers.len(), settings.threads.max(1));
        let partitions = usize::from(settings.operations.names.partitions());
        let connections = servers * partitions * settings.homes;
        let connections = if settings.has_channels { connections } else { 0 };
        Self::sized(servers * threads, connections, threads)
    }

    /// With so many missing connections for commands and for PUB/SUB.
    #[expect(clippy::disallowed_methods, reason = "the zero of the ages of probes")]
    pub(super) fn sized(servers: usize, connections: usize, threads: usize) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            servers_away: AtomicU64::new(servers as u64),
            resubscribing: AtomicU64::new(connections as u64),
            heard_ms: (0..connections).map(|_| zero()).collect(),
            began: Instant::now(),
            latency: (0..threads).map(|_| Times::default()).collect(),
            connects: zero(),
            connects_failed: zero(),
            pubsub_connects: zero(),
            replies_lost: zero(),
            refused: zero(),
            errors: zero(),
            messages: zero(),
            malformed: zero(),
            resubscribe_ms: zero(),
            probes_missed: zero(),
            deliveries_lost: zero(),
            announcements_lost: zero(),
            control_lost: zero(),
        }
    }

    /// Something came by the connection of a home to a server, or for a partition of one: there are `homes`.
    fn heard(&self, server: usize, home: usize, homes: usize) {
        let now = self.began.elapsed().as_millis() as u64;
        if let Some(heard) = self.heard_ms.get(server * homes + home) {
            heard.store(now, Ordering::Relaxed);
        }
    }

    /// Time since something came by the PUB/SUB connection that has been silent for longest: each sees its own
    /// probes, one in each interval. Zero without such connections.
    pub fn probe_age(&self) -> Duration {
        let heard = self.heard_ms.iter().map(|heard| heard.load(Ordering::Relaxed)).min();
        let age = |oldest| self.began.elapsed().saturating_sub(Duration::from_millis(oldest));
        heard.map_or(Duration::ZERO, age)
    }

    /// The names of all figures that are numbers.
    pub(super) const NAMES: [&str; 15] = [
        "redis_servers_away",
        "redis_resubscribing",
        "redis_connects",
        "redis_connects_failed",
        "redis_pubsub_connects",
        "redis_replies_lost",
        "redis_refused",
        "redis_errors",
        "redis_messages",
        "redis_malformed",
        "redis_resubscribe_ms",
        "redis_probes_missed",
        "redis_deliveries_lost",
        "redis_announcements_lost",
        "redis_control_lost",
    ];

    /// Calls `each` with every figure, by its name.
    pub(super) fn each(&self, mut each: impl FnMut(&'static str, u64)) {
        // In the order of the names.
        let all = [
            &self.servers_away,
            &self.resubscribing,
            &self.connects,
            &self.connects_failed,
            &self.pubsub_connects,
            &self.replies_lost,
            &self.refused,
            &self.errors,
            &self.messages,
            &self.malformed,
            &self.resubscribe_ms,
            &self.probes_missed,
            &self.deliveries_lost,
            &self.announcements_lost,
            &self.control_lost,
        ];
        let values = all.map(|value| value.load(Ordering::Relaxed));
        Self::NAMES.into_iter().zip(values).for_each(|(name, value)| each(name, value));
    }

    pub(super) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// Threads that are to run: all that wakes them is there, and they have opened nothing.
pub struct Prepared {
    settings: Arc<Settings>,
    figures: Arc<Figures>,
    threads: Vec<Parts>,
    joining: Option<Arc<Joining>>,
}

/// What a thread begins with.
struct Parts {
    runtime: Runtime,
    mailbox: Mailbox,
    letterbox: Letterbox,
    bell: Arc<Bell>,
}

impl Prepared {
    /// Makes what the threads are woken with. Other threads have it, too, if their descriptor tables part
    /// from the process's after this and before [`Self::start`].
    ///
    /// # Errors
    /// The system has no descriptor.
    pub fn new(settings: Settings) -> io::Result<Self> {
        let mut threads = Vec::new();
        for _ in 0..settings.threads.max(1) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let bell = Arc::new(Bell::default());
            let (letterbox, mailbox) = Mailbox::new(MAILBOX_BATCHES, Alarm::new(bell.clone()));
            threads.push(Parts { runtime, mailbox, letterbox, bell });
        }
        let figures = Arc::new(Figures::new(&settings));
        Ok(Self { settings: Arc::new(settings), figures, threads, joining: None })
    }

    /// Figures of all threads.
    pub fn figures(&self) -> Arc<Figures> {
        Arc::clone(&self.figures)
    }

    /// The process takes over from another one: connections deliver from the fence of that one on.
    pub fn join(&mut self) -> Arc<Joining> {
        let Settings { has_channels, servers, operations, homes, .. } = &*self.settings;
        let each = servers.len() * (usize::from(operations.names.partitions()) * homes + 1);
        let joining = Arc::new(Joining::new(if *has_channels { each } else { 0 }));
        Arc::clone(self.joining.insert(joining))
    }

    /// Where a home's commands go: [`crate::shard::mail::Mail::Command`].
    pub fn letterbox(&self, home: usize) -> Letterbox {
        self.threads[home % self.threads.len()].letterbox.clone()
    }

    /// Starts the threads. `events` makes the outlet of each, by its number.
    ///
    /// # Errors
    /// The system has no thread.
    #[expect(clippy::disallowed_methods, reason = "they share the descriptor table of the process")]
    pub fn start<E: Events>(
        self,
        events: impl Fn(usize) -> E + Clone + Send + 'static,
    ) -> io::Result<Broker> {
        let Self { settings, figures, threads: parts, joining } = self;
        let (begins, begun) = std::sync::mpsc::channel();
        let mut threads = Vec::new();
        for (at, Parts { runtime, mailbox, bell, .. }) in parts.into_iter().enumerate() {
            let (inbox, received) = mpsc::channel(CONTROL_MESSAGES_MAX);
            let bytes = Arc::new(AtomicUsize::new(0));
            let (settings, events) = (settings.clone(), events.clone());
            let joining = joining.clone();
            let (figures, queued, begins) = (figures.clone(), bytes.clone(), begins.clone());
            let begin = move || {
                // A signal is the main thread's.
                let _ = sys::tables::block_signals();
                let shared = Shared {
                    settings,
                    events: Box::new(events(at)),
                    figures,
                    bytes: queued,
                    up: Cell::new(0),
                    handled: Cell::new(0),
                    wishes: RefCell::default(),
                    fences: RefCell::default(),
                    control_fence: Cell::new(None),
                    joining,
                    first: at,
                };
                let run = run(Rc::new(shared), received, (mailbox, bell), begins);
                LocalSet::new().block_on(&runtime, run);
            };
            let name = format!("roost-redis-{at}");
            let thread = std::thread::Builder::new().name(name).spawn(begin)?;
            threads.push(Worker { inbox, bytes, _thread: thread });
        }
        let (servers, probe_interval) = (settings.servers.len(), settings.probe_interval);
        Ok(Broker { threads, figures, servers, probe_interval, begun: Mutex::new(begun) })
    }
}

/// The running broker. Ends when it is dropped.
pub struct Broker {
    threads: Vec<Worker>,
    figures: Arc<Figures>,
    servers: usize,
    probe_interval: Duration,
    /// Ends when each thread has tried to connect to each server.
    begun: Mutex<Receiver<()>>,
}

struct Worker {
    /// Messages to other nodes: the first thread alone gets them.
    inbox: mpsc::Sender<Inbound>,
    bytes: Arc<AtomicUsize>,
    _thread: JoinHandle<()>,
}

impl Broker {
    /// Figures of all threads.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Why requests for the broker fail, or publications may be missing until it has recovered.
    pub fn fault(&self) -> Option<&'static str> {
        if self.figures.servers_away.load(Ordering::Relaxed) > 0 {
            Some("the broker is unreachable")
        } else if self.figures.probe_age() > 2 * self.probe_interval {
            Some("the broker does not deliver")
        } else if self.figures.resubscribing.load(Ordering::Relaxed) > 0 {
            Some("channels are being subscribed again at the broker")
        } else {
            None
        }
    }

    /// Waits until each thread has tried to connect to each server, and homes know what came of it.
    pub fn wait_for_first_attempts(&self) {
        let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        while begun.recv().is_ok() {}
    }

    /// Bytes of commands that wait or are under way.
    pub fn queued_bytes(&self) -> usize {
        self.threads.iter().map(|thread| thread.bytes.load(Ordering::Relaxed)).sum()
    }

    /// Servers.
    pub fn servers(&self) -> usize {
        self.servers
    }

    /// Another process is to take this node's place: messages of other nodes are held.
    pub async fn hold_control(&self) {
        // A thread that is gone ends the process: it panicked.
        let _ = self.threads[0].inbox.send(Inbound::Hold).await;
    }

    /// Messages of other nodes before this are handled ([`ControlEvent::Fenced`] for each server), and those behind it
    /// held.
    pub async fn fence_control(&self, key: u64) {
        let _ = self.threads[0].inbox.send(Inbound::Fence(key)).await;
    }

    /// The process goes on: what was held is handled.
    pub async fn resume_control(&self) {
        let _ = self.threads[0].inbox.send(Inbound::Resume).await;
    }

    /// Sends a message to other nodes; [`ControlEvent::Sent`] says what became of it. False when there is no
    /// room for it.
    pub fn send_control(&self, to: Recipient, ticket: Ticket, message: Message) -> bool {
        // A thread that is gone ends the process: it panicked.
        let outgoing = Box::new(Outgoing { to, ticket, message });
        self.threads[0].inbox.try_send(Inbound::Control(outgoing)).is_ok()
    }

    /// A node was forgotten, since it is silent or has ended: its presence entries are removed, and their
    /// leaves announced ([`BrokerEvent::Orphaned`]). All nodes that are left call this, and share the work.
    pub fn take_entries(&self, uid: &str) {
        // Without room their time runs out.
        let _ = self.threads[0].inbox.try_send(Inbound::TakeEntries(uid.into()));
    }

    /// The entries of that node are removed: if it is alive, it hears of it, and enters all again
    /// ([`BrokerEvent::EntriesRemoved`]).
    pub fn notify_removed(&self, uid: &str) {
        // Without room it writes them when it refreshes them.
        let _ = self.threads[0].inbox.try_send(Inbound::NotifyRemoved(uid.into()));
    }
}

/// Connects to each server once, as a node does before it starts.
///
/// # Errors
/// One of them can't be reached, or refuses: which, and why.
pub fn check(settings: &Settings) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    LocalSet::new().block_on(&runtime, async {
        for (at, server) in settings.servers.iter().enumerate() {
            let link = wire::Link::connect(server, settings.io_timeout);
            let made = tokio::time::timeout(settings.connect_timeout, link).await;
            let made = made.unwrap_or(Err(wire::Unreachable::Timeout));
            let link = made.map_err(|error| format!("server {at} ({server}): {error}"))?;
            let written = commands::takes_writes(settings, &link).await;
            written.map_err(|error| format!("server {at} ({server}): {error}"))?;
            if let Some(fault) = misuse(settings, server, link).await {
                return Err(format!("server {at} ({server}): {fault}"));
            }
        }
        Ok(())
    })
}

/// Why a server that can be reached can't be used as the options say.
async fn misuse(
    settings: &Settings,
    server: &Server,
    mut link: wire::Link,
) -> Option<&'static str> {
    if !matches!(server, Server::Cluster { .. }) && link.is_cluster().await {
        return Some("it is part of a Redis Cluster, whose nodes belong into cluster_address");
    }
    if settings.operations.presence_field_ttl && !link.has_field_ttl().await {
        return Some("it has no HEXPIRE, which presence_hash_field_ttl needs (Redis 7.4)");
    }
    let names = &settings.operations.names;
    if names.is_sharded() && !link.takes_sharded(names.service(0)).await {
        return Some("it has no SPUBLISH, which roost.broker_partitions needs (Redis 7)");
    }
    None
}

/// Interval at which the set of this node's presence entries is kept for another while.
const KEEP_ENTRIES: Duration = Duration::from_secs(60);

/// Messages to other nodes that wait for the thread at most.
const CONTROL_MESSAGES_MAX: usize = 4_096;

/// What the first thread is given beside commands.
enum Inbound {
    /// A message to other nodes.
    Control(Box<Outgoing>),
    /// This node is dead: its presence entries are removed.
    TakeEntries(String),
    /// If that node is alive, it is to know of this.
    NotifyRemoved(String),
    /// Messages are held.
    Hold,
    /// Those behind this are another process's.
    Fence(u64),
    /// They are not.
    Resume,
}

/// What the tasks of a thread share.
struct Shared {
    settings: Arc<Settings>,
    events: Box<dyn Events>,
    figures: Arc<Figures>,
    bytes: Arc<AtomicUsize>,
    /// Servers with a command connection.
    up: Cell<usize>,
    /// Commands and messages so far.
    handled: Cell<u64>,
    /// The wishes at all servers.
    wishes: RefCell<Vec<Rc<Wishes>>>,
    /// Fences that have not come by each connection, by home.
    fences: RefCell<BTreeMap<usize, Awaits>>,
    /// The fence of the control connections.
    control_fence: Cell<Option<u64>>,
    /// The process has taken over from another one.
    joining: Option<Arc<Joining>>,
    /// The first home of this thread; its others follow in steps of the number of threads.
    first: usize,
}

impl Shared {
    fn homes(&self) -> impl Iterator<Item = usize> + use<> {
        (self.first..self.settings.homes).step_by(self.settings.threads.max(1))
    }

    /// So many commands or messages more.
    fn handle(&self, count: usize) {
        self.handled.set(self.handled.get() + count as u64);
    }

    fn tell_all(&self, event: &BrokerEvent) {
        self.homes().for_each(|home| self.events.take(home, vec![event.clone()]));
    }
}

/// A server, as the tasks of a thread see it.
struct Connected {
    queue: Queue,
    /// Command connections made so far.
    made: Cell<u64>,
    /// For each partition, those of each home of the thread.
    wishes: Vec<Rc<Wishes>>,
    /// Nodes of a Cluster that others have named: they are tried when those of the options don't answer.
    known: RefCell<Vec<Address>>,
    /// Wakes PUB/SUB connections that pause between attempts: the command connection is made.
    is_back: Notify,
    /// The part of messages between nodes that is this process's.
    control_part: RefCell<Part<ControlCommand>>,
}

impl Connected {
    /// The wishes of a home for a partition.
    fn wishes_of(&self, shared: &Shared, home: usize, partition: u16) -> &Rc<Wishes> {
        let place = home / shared.settings.threads.max(1);
        &self.wishes[usize::from(partition) * shared.homes().count() + place]
    }
}

async fn run(
    shared: Rc<Shared>,
    mut inbox: mpsc::Receiver<Inbound>,
    mail: (Mailbox, Arc<Bell>),
    begins: Sender<()>,
) {
    let has_channels = shared.settings.has_channels;
    let mut servers = Vec::new();
    for at in 0..shared.settings.servers.len() {
        let partitions = shared.settings.operations.names.partitions();
        let places = (0..partitions).flat_map(|partition| {
            shared.homes().map(move |home| pubsub::Place { server: at, partition, home })
        });
        let places: Vec<_> = places.collect();
        let joining = shared.joining.as_ref();
        let wishes = |_| Rc::new(Wishes::with(fence::first_part(joining)));
        let wishes: Vec<_> = places.iter().map(wishes).collect();
        shared.wishes.borrow_mut().extend(wishes.iter().cloned());
        let (queue, is_back) = (Queue::new(shared.bytes.clone()), Notify::new());
        let (made, known) = (Cell::new(0), RefCell::default());
        let control_part = RefCell::new(fence::first_part(joining));
        let server = Rc::new(Connected { queue, wishes, known, made, is_back, control_part });
        let (of_server, begins) = (server.clone(), begins.clone());
        tokio::task::spawn_local(commands::run(shared.clone(), at, of_server, begins));
        for (place, wishes) in places.into_iter().zip(&server.wishes).filter(|_| has_channels) {
            let wishes = wishes.clone();
            tokio::task::spawn_local(pubsub::run(shared.clone(), server.clone(), place, wishes));
        }
        if shared.first == 0 && has_channels {
            tokio::task::spawn_local(control::run(shared.clone(), at, server.clone()));
        }
        servers.push(server);
    }
    drop(begins);
    let servers: Rc<[Rc<Connected>]> = servers.into();
    tokio::task::spawn_local(inlet::run(shared.clone(), servers.clone(), mail));
    let mut turn = 0;
    let mut keep = tokio::time::interval(KEEP_ENTRIES);
    keep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut burst = burst::Burst::default();
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let inbound = tokio::select! {
            inbound = inbox.recv() => inbound,
            _ = keep.tick(), if shared.first == 0 => {
                servers.iter().for_each(|server| commands::keep_entries(&shared, server));
                continue;
            }
            _ = second.tick() => {
                if burst.is_over(shared.handled.get()) {
                    sys::memory::collect();
                }
                continue;
            }
        };
        match inbound {
            None => return,
            Some(inbound) => take(&shared, &servers, &mut turn, inbound),
        }
    }
}

/// Does what the node has ordered beside commands of homes.
fn take(shared: &Shared, servers: &[Rc<Connected>], turn: &mut usize, inbound: Inbound) {
    match inbound {
        Inbound::NotifyRemoved(uid) => control::notify_removed(shared, servers, turn, &uid),
        Inbound::TakeEntries(uid) => {
            servers.iter().for_each(|server| commands::take_entries(shared, server, &uid));
        }
        Inbound::Hold => control::hold(servers),
        Inbound::Fence(key) => fence::publish_control(shared, servers, key),
        Inbound::Resume => control::resume(shared, servers),
        Inbound::Control(outgoing) => control::send(shared, servers, turn, *outgoing),
    }
}
