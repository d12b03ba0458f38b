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
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::Sender;
use std::time::Duration;

use tokio::sync::Notify;

pub(super) use self::backoff::Backoff;
pub(super) use self::burst::Burst;
pub(super) use self::commands::seed;
pub use self::fence::Joining;
use self::fence::{Awaits, Part};
use self::pubsub::Wishes;
use self::queue::Queue;
use crate::cluster::control::Command as ControlCommand;
use crate::cluster::operations::Operations;
use crate::cluster::servers::{Address, Server};
use crate::hub::broker::BrokerEvent;
use crate::node::broker_threads::{Begin, Events, Figures, Inbound, Service, run_once};
use crate::sys;

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

impl Service for Settings {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn threads(&self) -> usize {
        self.threads.max(1)
    }

    /// All servers are away, and all connections missing.
    fn figures(&self) -> Figures {
        let (servers, threads) = (self.servers.len(), self.threads.max(1));
        let partitions = usize::from(self.operations.names.partitions());
        let connections = servers * partitions * self.homes;
        let connections = if self.has_channels { connections } else { 0 };
        Figures::sized(servers * threads, connections, threads)
    }

    fn probe_interval(&self) -> Duration {
        self.probe_interval
    }

    fn servers(&self) -> usize {
        self.servers.len()
    }

    fn divided(&self) -> usize {
        let partitions = usize::from(self.operations.names.partitions());
        let each = self.servers.len() * (partitions * self.homes + 1);
        if self.has_channels { each } else { 0 }
    }

    async fn run(self: Arc<Self>, begin: Begin) {
        run(self, begin).await;
    }
}

/// Connects to each server once, as a node does before it starts.
///
/// # Errors
/// One of them can't be reached, or refuses: which, and why.
pub fn check(settings: &Settings) -> Result<(), String> {
    run_once(async {
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

async fn run(settings: Arc<Settings>, begin: Begin) {
    let Begin { at, events, figures, bytes, mut inbox, mail, joining, begins } = begin;
    let shared = Rc::new(Shared {
        settings,
        events,
        figures,
        bytes,
        up: Cell::new(0),
        handled: Cell::new(0),
        wishes: RefCell::default(),
        fences: RefCell::default(),
        control_fence: Cell::new(None),
        joining,
        first: at,
    });
    let servers = 0..shared.settings.servers.len();
    let servers: Rc<[_]> = servers.map(|at| connected(&shared, at, &begins)).collect();
    drop(begins);
    tokio::task::spawn_local(inlet::run(shared.clone(), servers.clone(), mail));
    let mut turn = 0;
    let mut keep = tokio::time::interval(KEEP_ENTRIES);
    keep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut burst = Burst::default();
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

/// Begins the connections to a server.
fn connected(shared: &Rc<Shared>, at: usize, begins: &Sender<()>) -> Rc<Connected> {
    let has_channels = shared.settings.has_channels;
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
    server
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
        // A fence is in the same order in both processes.
        Inbound::Answer(..) | Inbound::Mark(_) | Inbound::Keep(_) | Inbound::Follow(_) => {}
    }
}
