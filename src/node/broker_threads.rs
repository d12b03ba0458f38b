//! Threads of their own between the homes and a broker: what wakes them, where their news go, their figures. What a
//! thread does is its broker's ([`Service::run`]).
//!
//! ```text
//!  home --mail: Commands--> mailbox of a thread --> the broker's protocol
//!  home <--mail: BrokerEvents-- Events <------------------'
//! ```

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use super::control_mail::Bell;
use super::presence_nodes::PresenceRead;
use super::redis::Joining;
use crate::base::limits::MAILBOX_BATCHES;
use crate::base::times::Times;
use crate::cluster::control::{Command, Message};
use crate::edge::channels::ChannelRules;
use crate::hub::broker::{BrokerEvent, Ticket};
use crate::io::Alarm;
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

/// A broker, as its threads need it.
pub trait Service: Send + Sync + 'static {
    /// Begins the names of its threads.
    fn name(&self) -> &'static str;

    /// Threads, at least one.
    fn threads(&self) -> usize;

    /// Figures of all threads, before the first attempt to connect.
    fn figures(&self) -> Figures;

    /// Interval of the probes that show that it delivers.
    fn probe_interval(&self) -> Duration;

    /// Servers by which nodes reach each other.
    fn servers(&self) -> usize {
        1
    }

    /// Connections whose messages a takeover divides between two processes.
    fn divided(&self) -> usize {
        0
    }

    /// The work of a thread, until its node ends.
    fn run(self: Arc<Self>, begin: Begin) -> impl Future<Output = ()>;
}

/// Runs what a broker does before its threads begin.
///
/// # Errors
/// There is no runtime for it, or it fails: why.
pub(super) fn run_once(future: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    LocalSet::new().block_on(&runtime.map_err(|error| error.to_string())?, future)
}

/// What a thread begins with.
pub struct Begin {
    /// The number of the thread.
    pub at: usize,
    /// Where its news go.
    pub events: Box<dyn Events>,
    /// Figures of all threads.
    pub figures: Arc<Figures>,
    /// Bytes of its commands that wait or are under way.
    pub bytes: Arc<AtomicUsize>,
    /// What it gets beside commands, and what has woken it.
    pub inbox: mpsc::Receiver<Inbound>,
    /// Commands of homes.
    pub(super) mail: (Mailbox, Arc<Bell>),
    /// The process takes over from another one.
    pub joining: Option<Arc<Joining>>,
    /// Dropped after the first attempt to connect.
    pub begins: Sender<()>,
}

/// News of the control channel.
#[derive(Clone, Debug, PartialEq)]
pub enum ControlEvent {
    /// Messages come from now on, from one server more.
    Listening,
    /// Messages of one server don't come any more.
    Interrupted,
    /// Another node says something.
    Message(Box<Command>),
    /// Messages of one server that come behind this are another process's: they are held.
    Fenced {
        /// Names the attempt.
        key: u64,
    },
    /// A home reads presence, which other nodes have.
    Presence(PresenceRead),
    /// A message of this node was sent, or not: then other nodes may have got it.
    Sent {
        /// Names the message.
        ticket: Ticket,
        /// It was.
        is_sent: bool,
    },
}

/// To whom a message goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recipient {
    /// All nodes.
    All,
    /// The node of this uid.
    Node(String),
}

/// A message on its way.
#[derive(Debug)]
pub struct Outgoing {
    /// To whom.
    pub to: Recipient,
    /// Names it in [`ControlEvent::Sent`].
    pub ticket: Ticket,
    /// Its content.
    pub message: Message,
}

impl ControlEvent {
    /// What became of a message.
    pub(super) fn of(event: &BrokerEvent) -> Option<Self> {
        match event {
            BrokerEvent::Done { ticket } => Some(Self::Sent { ticket: *ticket, is_sent: true }),
            BrokerEvent::Failed { ticket, .. } => {
                Some(Self::Sent { ticket: *ticket, is_sent: false })
            }
            _ => None,
        }
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
    /// Times that the server dropped messages since this node was too slow.
    pub slow_consumers: AtomicU64,
}

impl Figures {
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
            slow_consumers: zero(),
        }
    }

    /// Something came by the connection of a home to a server, or for a partition of one: there are `homes`.
    pub(super) fn heard(&self, server: usize, home: usize, homes: usize) {
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
    pub(super) const NAMES: [&str; 16] = [
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
        "nats_slow_consumers",
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
            &self.slow_consumers,
        ];
        let values = all.map(|value| value.load(Ordering::Relaxed));
        Self::NAMES.into_iter().zip(values).for_each(|(name, value)| each(name, value));
    }

    pub(super) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// Threads that are to run: all that wakes them is there, and they have opened nothing.
pub struct Prepared<S> {
    settings: Arc<S>,
    figures: Arc<Figures>,
    threads: Vec<Parts>,
    joining: Option<Arc<Joining>>,
}

/// What wakes a thread.
struct Parts {
    runtime: Runtime,
    mailbox: Mailbox,
    letterbox: Letterbox,
    bell: Arc<Bell>,
}

impl<S: Service> Prepared<S> {
    /// Makes what the threads are woken with. Other threads have it, too, if their descriptor tables part
    /// from the process's after this and before [`Self::start`].
    ///
    /// # Errors
    /// The system has no descriptor.
    pub fn new(settings: S) -> io::Result<Self> {
        let mut threads = Vec::new();
        for _ in 0..settings.threads().max(1) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let bell = Arc::new(Bell::default());
            let (letterbox, mailbox) = Mailbox::new(MAILBOX_BATCHES, Alarm::new(bell.clone()));
            threads.push(Parts { runtime, mailbox, letterbox, bell });
        }
        let figures = Arc::new(settings.figures());
        Ok(Self { settings: Arc::new(settings), figures, threads, joining: None })
    }

    /// Figures of all threads.
    pub fn figures(&self) -> Arc<Figures> {
        Arc::clone(&self.figures)
    }

    /// The process takes over from another one: connections deliver from the fence of that one on.
    pub fn join(&mut self) -> Arc<Joining> {
        let joining = Arc::new(Joining::new(self.settings.divided()));
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
        let name_of_all = settings.name();
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
                let (events, mail) = (Box::new(events(at)), (mailbox, bell));
                let begin = Begin {
                    at,
                    events,
                    figures,
                    bytes: queued,
                    inbox: received,
                    mail,
                    joining,
                    begins,
                };
                LocalSet::new().block_on(&runtime, settings.run(begin));
            };
            let name = format!("roost-{}-{at}", name_of_all);
            let thread = std::thread::Builder::new().name(name).spawn(begin)?;
            threads.push(Worker { inbox, bytes, _thread: thread });
        }
        let (servers, probe_interval) = (settings.servers(), settings.probe_interval());
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

    /// Namespaces are others by now. False when a thread has no room for that.
    pub fn follow(&self, rules: &Arc<ChannelRules>) -> bool {
        let follow = |thread: &Worker| thread.inbox.try_send(Inbound::Follow(rules.clone()));
        self.threads.iter().all(|thread| follow(thread).is_ok())
    }

    /// Another process is to take this node's place in the end: threads that need it begin to count what they deliver.
    pub async fn mark(&self, key: u64) {
        self.send_to_all(|| Inbound::Mark(key)).await;
    }

    /// The other process is to keep what comes.
    pub async fn keep(&self, key: u64) {
        self.send_to_all(|| Inbound::Keep(key)).await;
    }

    async fn send_to_all(&self, inbound: impl Fn() -> Inbound) {
        for thread in &self.threads {
            // A thread that is gone ends the process: it panicked.
            let _ = thread.inbox.send(inbound()).await;
        }
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
        self.send_to_all(|| Inbound::Resume).await;
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

    /// A read of presence by survey is answered.
    pub fn answer_presence(&self, home: usize, event: BrokerEvent) {
        // Without room the home gives up after a while.
        let _ = self.threads[0].inbox.try_send(Inbound::Answer(home, event));
    }

    /// The entries of that node are removed: if it is alive, it hears of it, and enters all again
    /// ([`BrokerEvent::EntriesRemoved`]).
    pub fn notify_removed(&self, uid: &str) {
        // Without room it writes them when it refreshes them.
        let _ = self.threads[0].inbox.try_send(Inbound::NotifyRemoved(uid.into()));
    }
}

/// Messages to other nodes that wait for the thread at most.
const CONTROL_MESSAGES_MAX: usize = 4_096;

/// What the first thread is given beside commands.
pub enum Inbound {
    /// A message to other nodes.
    Control(Box<Outgoing>),
    /// This node is dead: its presence entries are removed.
    TakeEntries(String),
    /// If that node is alive, it is to know of this.
    NotifyRemoved(String),
    /// Namespaces are others by now: to all threads.
    Follow(Arc<ChannelRules>),
    /// Another process is to take over soon: to all threads.
    Mark(u64),
    /// The other process is to keep what comes: to all threads.
    Keep(u64),
    /// Messages are held.
    Hold,
    /// Those behind this are another process's.
    Fence(u64),
    /// They are not.
    Resume,
    /// A read of presence by survey is answered, for a home.
    Answer(usize, BrokerEvent),
}
