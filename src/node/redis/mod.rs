//! Redis as the broker of this node: threads of their own, between the homes and the servers.
//!
//! ```text
//!  home --Commands--> thread: dispatcher --> queue of a server --> command connection (pipelined)
//!                                       '--> wishes of a home ---> its PUB/SUB connection
//!  home <--BrokerEvents------------------------------------------------'
//! ```
//! A thread serves some homes, with a command connection to each server, and a PUB/SUB connection to each
//! server for each home, so that no connection carries the messages of all channels. A channel belongs to
//! one server, by the jump hash of its name.
//!
//! A command whose reply is lost fails: it may have taken effect. One that is still in the queue was not
//! sent, and waits for another connection. When the first attempt to connect again fails, the broker is
//! lost: commands fail at once until it is back.

mod backoff;
mod commands;
mod control;
mod pubsub;
mod queue;
mod wire;

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::LocalSet;

use self::control::Outgoing;
pub use self::control::{ControlEvent, Recipient};
use self::pubsub::Wishes;
use self::queue::Queue;
use crate::base::heap::HeapBytes as _;
use crate::cluster::control::Message;
use crate::cluster::hash::jump;
use crate::cluster::operations::Operations;
use crate::cluster::servers::Server;
use crate::hub::broker::{BrokerEvent, Command, FailureCause, Ticket};

/// Takes what the broker says to a home.
pub trait Events: Send + Sync + 'static {
    /// Takes news, in their order. It must not block.
    fn take(&self, home: usize, events: Vec<BrokerEvent>);

    /// Takes news of the control channel, in their order. It must not block.
    fn control(&self, events: Vec<ControlEvent>);
}

/// Where the broker is, and what it keeps to.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Servers in their order: channels are divided among them.
    pub servers: Vec<Server>,
    /// Names and options of all nodes.
    pub operations: Operations,
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
    /// Interval of the probes of a PUB/SUB connection; one that misses two is made anew.
    pub probe_interval: Duration,
}

/// Figures of all threads.
#[derive(Debug, Default)]
pub struct Figures {
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
}

impl Figures {
    fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// The running broker. Ends when it is dropped.
pub struct Broker {
    threads: Vec<Worker>,
    events: Arc<dyn Events>,
    figures: Arc<Figures>,
    queue_bytes_max: usize,
}

struct Worker {
    inbox: mpsc::UnboundedSender<Inbound>,
    bytes: Arc<AtomicUsize>,
    _thread: JoinHandle<()>,
}

impl Broker {
    /// Starts the threads. Descriptors that wake them are made before this returns.
    ///
    /// # Errors
    /// The system has no thread, or no descriptor.
    #[expect(clippy::disallowed_methods, reason = "they share the descriptor table of the process")]
    pub fn start(settings: Settings, events: Arc<dyn Events>) -> io::Result<Self> {
        let figures = Arc::new(Figures::default());
        let settings = Arc::new(settings);
        let mut threads = Vec::new();
        for at in 0..settings.threads.max(1) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (inbox, received) = mpsc::unbounded_channel();
            let bytes = Arc::new(AtomicUsize::new(0));
            let (settings, events) = (settings.clone(), events.clone());
            let (figures, queued) = (figures.clone(), bytes.clone());
            let begin = move || {
                let shared = Shared {
                    settings,
                    events,
                    figures,
                    bytes: queued,
                    up: Cell::new(0),
                    wishes: RefCell::default(),
                    first: at,
                };
                LocalSet::new().block_on(&runtime, run(Rc::new(shared), received));
            };
            let name = format!("roost-redis-{at}");
            let thread = std::thread::Builder::new().name(name).spawn(begin)?;
            threads.push(Worker { inbox, bytes, _thread: thread });
        }
        let queue_bytes_max = settings.queue_bytes_max;
        Ok(Self { threads, events, figures, queue_bytes_max })
    }

    /// Figures of all threads.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Bytes of commands that wait or are under way.
    pub fn queued_bytes(&self) -> usize {
        self.threads.iter().map(|thread| thread.bytes.load(Ordering::Relaxed)).sum()
    }

    /// Takes commands of a home. Those for which there is no room fail at once; wishes to listen have room
    /// always, since a home has one for each channel.
    pub fn send(&self, home: usize, mut commands: Vec<Command>) {
        let thread = &self.threads[home % self.threads.len()];
        let mut failed = Vec::new();
        commands.retain(|command| {
            if matches!(command, Command::Listen { .. } | Command::Unlisten { .. }) {
                return true;
            }
            let bytes = cost(command);
            let waiting = thread.bytes.fetch_add(bytes, Ordering::Relaxed);
            if waiting + bytes <= self.queue_bytes_max {
                return true;
            }
            thread.bytes.fetch_sub(bytes, Ordering::Relaxed);
            failed.extend(failure(command));
            Figures::add(&self.figures.refused, 1);
            false
        });
        if !failed.is_empty() {
            self.events.take(home, failed);
        }
        // A thread that is gone ends the process: it panicked.
        let _ = thread.inbox.send(Inbound::Commands(home, commands));
    }

    /// Sends a message to other nodes; [`ControlEvent::Sent`] says what became of it.
    pub fn send_control(&self, to: Recipient, ticket: Ticket, message: Message) {
        let outgoing = Box::new(Outgoing { to, ticket, message });
        // As above.
        let _ = self.threads[0].inbox.send(Inbound::Control(outgoing));
    }

    /// A node was forgotten, since it is silent or has ended: its presence entries are removed, and their
    /// leaves announced ([`BrokerEvent::Orphaned`]). All nodes that are left call this, and share the work.
    /// If that node is alive, it hears of it, and enters all again ([`BrokerEvent::EntriesRemoved`]).
    pub fn take_entries(&self, uid: &str) {
        // As above.
        let _ = self.threads[0].inbox.send(Inbound::TakeEntries(uid.into()));
    }
}

/// Interval at which the set of this node's presence entries is kept for another while.
const KEEP_ENTRIES: Duration = Duration::from_secs(60);

/// What a thread is given.
enum Inbound {
    /// Commands of a home.
    Commands(usize, Vec<Command>),
    /// A message to other nodes: the first thread alone gets them.
    Control(Box<Outgoing>),
    /// This node is dead: the first thread removes its presence entries.
    TakeEntries(String),
}

/// Bytes that a command counts in the queue.
fn cost(command: &Command) -> usize {
    size_of::<Command>() + command.heap_bytes()
}

/// The event of a command that is not sent; none if no answer is expected.
fn failure(command: &Command) -> Option<BrokerEvent> {
    let ticket = match command {
        Command::Publish(publishing) => publishing.ticket,
        Command::Read { ticket, .. }
        | Command::Renew { ticket, .. }
        | Command::Drop { ticket, .. }
        | Command::Members { ticket, .. } => *ticket,
        Command::Listen { .. }
        | Command::Unlisten { .. }
        | Command::Presence(_)
        | Command::Announce { .. } => return None,
    };
    Some(BrokerEvent::Failed { ticket, cause: FailureCause::Unavailable })
}

/// What the tasks of a thread share.
struct Shared {
    settings: Arc<Settings>,
    events: Arc<dyn Events>,
    figures: Arc<Figures>,
    bytes: Arc<AtomicUsize>,
    /// Servers with a command connection.
    up: Cell<usize>,
    /// The wishes at all servers.
    wishes: RefCell<Vec<Rc<Wishes>>>,
    /// The first home of this thread; its others follow in steps of the number of threads.
    first: usize,
}

impl Shared {
    fn homes(&self) -> impl Iterator<Item = usize> + use<> {
        (self.first..self.settings.homes).step_by(self.settings.threads.max(1))
    }

    fn tell_all(&self, event: &BrokerEvent) {
        self.homes().for_each(|home| self.events.take(home, vec![event.clone()]));
    }
}

/// A server, as the tasks of a thread see it.
struct Connected {
    queue: Queue,
    /// For each home of the thread.
    wishes: Vec<Rc<Wishes>>,
}

async fn run(shared: Rc<Shared>, mut inbox: mpsc::UnboundedReceiver<Inbound>) {
    let threads = shared.settings.threads.max(1);
    let mut servers = Vec::new();
    for at in 0..shared.settings.servers.len() {
        let wishes: Vec<_> = shared.homes().map(|_| Rc::new(Wishes::default())).collect();
        shared.wishes.borrow_mut().extend(wishes.iter().cloned());
        let server = Rc::new(Connected { queue: Queue::new(shared.bytes.clone()), wishes });
        tokio::task::spawn_local(commands::run(shared.clone(), at, server.clone()));
        for (place, home) in shared.homes().enumerate() {
            tokio::task::spawn_local(pubsub::run(shared.clone(), at, server.clone(), place, home));
        }
        if shared.first == 0 {
            tokio::task::spawn_local(control::run(shared.clone(), at, server.clone()));
        }
        servers.push(server);
    }
    let mut turn = 0;
    let mut keep = tokio::time::interval(KEEP_ENTRIES);
    keep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let inbound = tokio::select! {
            inbound = inbox.recv() => inbound,
            _ = keep.tick(), if shared.first == 0 => {
                servers.iter().for_each(|server| commands::keep_entries(&shared, server));
                continue;
            }
        };
        let Some(inbound) = inbound else { return };
        let (home, commands) = match inbound {
            Inbound::Commands(home, commands) => (home, commands),
            Inbound::TakeEntries(uid) => {
                control::notify_removed(&shared, &servers, &mut turn, &uid);
                servers.iter().for_each(|server| commands::take_entries(&shared, server, &uid));
                continue;
            }
            Inbound::Control(outgoing) => {
                control::send(&shared, &servers, &mut turn, *outgoing);
                continue;
            }
        };
        for command in commands {
            let server = jump(channel(&command), servers.len() as u32) as usize;
            let server = &servers[server];
            match command {
                Command::Listen { channel } => server.wishes[home / threads].listen(channel),
                Command::Unlisten { channel } => server.wishes[home / threads].unlisten(&channel),
                command => commands::take(&shared, server, home, command),
            }
        }
    }
}

fn channel(command: &Command) -> &str {
    match command {
        Command::Publish(publishing) => &publishing.channel,
        Command::Presence(update) => &update.channel,
        Command::Listen { channel }
        | Command::Unlisten { channel }
        | Command::Read { channel, .. }
        | Command::Renew { channel, .. }
        | Command::Drop { channel, .. }
        | Command::Members { channel, .. }
        | Command::Announce { channel, .. } => channel,
    }
}
