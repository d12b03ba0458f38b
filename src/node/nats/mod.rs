//! NATS as the broker of this node: threads of their own, each with one connection that carries all.
//!
//! ```text
//!  home --mail: Commands--> thread: inlet --> output of the connection --> server
//!  home <--mail: BrokerEvents-- subscriptions, replies, PONGs <-- input <-----'
//! ```
//! A thread serves some homes. A channel that is listened to is one subscription, or one takes them all. A server
//! carries out what a connection sends in its order, so a message of the thread to itself comes back when all before it
//! has taken effect: that answers publications without history, and makes a subscription complete before its subscriber
//! joins.
//!
//! Nothing is kept for a server that is away: commands fail at once. When a connection ends, its channels are
//! interrupted, and the thread connects to another server of the cluster at once; only when none has answered for
//! [`PATIENCE`] do homes begin anew.

mod client;
mod connection;
pub mod fence;
mod history;
mod interest;
mod news;
mod pending;
mod receive;
mod refusals;
mod requests;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use async_nats::{Client, HeaderMap, PublishError};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use self::client::{Dialer, Link, Unreachable, at_once, is_impossible};
pub(super) use self::fence::SIGNS_APART;
use self::fence::{Kind, Seam, Sign};
use self::history::Lives;
use self::interest::{Begun, Interests};
use self::news::News;
use self::pending::{Groups, Pending};
use self::receive::{Source, Subscriptions};
use self::refusals::Refusals;
use self::requests::Requests;
use super::broker_mail::{self, cost, failure, failure_for};
use super::broker_threads::{
    Begin, ControlEvent, Events, Figures, Inbound, Outgoing, Recipient, Service, run_once,
};
use super::redis::{Backoff, Burst, Joining};
use crate::cluster::control::{Command as ControlCommand, Message, Notification};
use crate::cluster::entries::ENTRIES_REMOVED;
use crate::cluster::nats::streams::Streams;
use crate::cluster::nats::subjects::Subjects;
use crate::cluster::nats::{Credentials, Place, payload};
use crate::cluster::servers::Security;
use crate::edge::channels::ChannelRules;
use crate::hub::broker::{BrokerEvent, Command, FailureCause, Publishing, Ticket};
use crate::shard::mail::{Batch, Mail};
use crate::sys;

/// Homes keep their wishes for so long while there is no connection.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where the broker is, and what it keeps to.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Servers of one cluster: each of them does.
    pub servers: Vec<(Place, Credentials)>,
    /// TLS, where it is wanted; else only if the server needs it.
    pub security: Option<Security>,
    /// Names.
    pub subjects: Subjects,
    /// One subscription takes all channels; else each that is listened to has one.
    pub takes_all: bool,
    /// Streams of JetStream for histories; none: nothing is kept.
    pub streams: Option<Streams>,
    /// The name of this node.
    pub uid: String,
    /// Homes of this node.
    pub homes: usize,
    /// Threads, at least one.
    pub threads: usize,
    /// Bytes of commands that are under way in a thread at most; beyond it they fail.
    pub queue_bytes_max: usize,
    /// Time for a connection to be made.
    pub dial_timeout: Duration,
    /// Time for the server to take what is sent.
    pub write_timeout: Duration,
    /// Interval of the probes; a server that answers none for two of them is left.
    pub probe_interval: Duration,
}

impl Service for Settings {
    fn name(&self) -> &'static str {
        "nats"
    }

    fn threads(&self) -> usize {
        self.threads.max(1)
    }

    fn figures(&self) -> Figures {
        let threads = self.threads.max(1);
        Figures::sized(threads, threads, threads)
    }

    fn probe_interval(&self) -> Duration {
        self.probe_interval
    }

    /// Homes, and the messages between nodes.
    fn divided(&self) -> usize {
        self.homes + 1
    }

    async fn run(self: Arc<Self>, begin: Begin) {
        run(self, begin).await;
    }
}

/// Connects once, as a node does before it starts.
///
/// # Errors
/// No server can be reached, or it refuses: why.
pub fn check(settings: &Settings) -> Result<(), String> {
    run_once(async {
        let dialer = settings.dialer().map_err(|error| error.to_string())?;
        let mut faults = Vec::new();
        for (place, credentials) in &settings.servers {
            match dialer.dial(place, credentials).await {
                Ok(link) => return link.check(settings).map_err(|error| error.to_string()),
                Err(error) => faults.push(format!("{place}: {error}")),
            }
        }
        Err(faults.join("; "))
    })
}

impl Settings {
    fn dialer(&self) -> Result<Dialer, Unreachable> {
        let name = format!("roost-{}", self.uid);
        Dialer::new(self.security.as_ref(), self.dial_timeout, self.probe_interval, &name)
    }
}

/// What the tasks of a thread share.
struct Shared {
    settings: Arc<Settings>,
    events: Box<dyn Events>,
    figures: Arc<Figures>,
    bytes: Arc<AtomicUsize>,
    /// The number of the thread, which is its first home's; its others follow in steps of the number of threads.
    at: usize,
    interests: RefCell<Interests>,
    /// Wakes what subscribes channels.
    wanted: Notify,
    /// The connection's, while there is one.
    output: RefCell<Option<Output>>,
    subscriptions: Subscriptions,
    news: RefCell<News>,
    /// By home: which messages are this process's.
    seams: RefCell<Vec<Seam<BrokerEvent>>>,
    /// The same of those between nodes.
    control_seam: RefCell<Seam<ControlCommand>>,
    /// The process takes over from another one.
    joining: Option<Arc<Joining>>,
    /// Requests that wait for replies.
    requests: RefCell<Requests>,
    /// Streams as namespaces say by now.
    streams: RefCell<Option<Rc<Streams>>>,
    /// What is known of them.
    lives: Lives,
    /// The subjects of replies begin with it.
    inbox: String,
    /// The subject of messages to itself.
    probes: String,
    /// The streams are known, so that commands are taken.
    is_ready: Cell<bool>,
    /// The server answers late: commands fail at once.
    is_late: Cell<bool>,
    /// The server takes no more subscriptions: they are made one by one, so that its errors name them.
    is_at_limit: Cell<bool>,
    /// Homes know of a connection.
    is_known: Cell<bool>,
    /// Commands and messages so far.
    handled: Cell<u64>,
    /// Dropped when it is known what came of the first attempts.
    begins: Cell<Option<Sender<()>>>,
}

/// Commands that are sent, and those that wait for an answer.
struct Output {
    client: Client,
    groups: Groups,
    refusals: Refusals,
    /// Messages of other nodes come.
    is_control_on: bool,
}

impl Shared {
    fn homes(&self) -> impl Iterator<Item = usize> + use<> {
        (self.at..self.settings.homes).step_by(self.settings.threads.max(1))
    }

    /// So many commands or messages more.
    fn handle(&self, count: u64) {
        self.handled.set(self.handled.get() + count);
    }

    fn to_all(&self, event: &BrokerEvent) {
        self.homes().for_each(|home| self.events.take(home, vec![event.clone()]));
    }

    /// Uses the connection, if there is one.
    fn with_output<T>(&self, use_it: impl FnOnce(&mut Output) -> T) -> Option<T> {
        self.output.borrow_mut().as_mut().map(use_it)
    }

    fn client(&self) -> Option<Client> {
        self.with_output(|output| output.client.clone())
    }

    /// Sends a message, without a wait. An error: nothing was sent.
    fn send(
        &self,
        send: impl AsyncFnOnce(&Client) -> Result<(), PublishError>,
    ) -> Result<(), FailureCause> {
        let sent = self.with_output(|output| at_once(send(&output.client)));
        match sent.flatten() {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) if is_impossible(error.kind()) => Err(FailureCause::Unsupported),
            Some(Err(_)) | None => Err(FailureCause::Unavailable),
        }
    }

    /// Counts bytes of the thread. False, and nothing is counted, where there is no room for them.
    fn admit(&self, bytes: usize) -> bool {
        let waiting = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let is_admitted = waiting + bytes <= self.settings.queue_bytes_max;
        if !is_admitted {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        is_admitted
    }

    /// Commands are taken; else they fail at once.
    fn is_open(&self) -> bool {
        self.is_ready.get() && !self.is_late.get() && self.output.borrow().is_some()
    }

    /// Sends a request; its number is the end of the subject of its replies. An error: nothing was sent.
    fn send_request(
        &self,
        subject: &str,
        number: u64,
        headers: HeaderMap,
        payload: Vec<u8>,
    ) -> Result<(), FailureCause> {
        let (subject, inbox) = (subject.to_owned(), format!("{}.{number}", self.inbox));
        self.send(async |client| {
            client.publish_with_reply_and_headers(subject, inbox, headers, payload.into()).await
        })
    }

    /// Sends a probe behind what was sent, if it is time for one.
    fn probe(&self) {
        let next = self.with_output(|output| output.groups.next()).flatten();
        if let Some(number) = next {
            let (subject, payload) = (self.probes.clone(), number.to_string());
            let sent = self.send(async |client| client.publish(subject, payload.into()).await);
            // Else a later one answers.
            if sent.is_ok() {
                self.with_output(|output| output.groups.end(Instant::now()));
            }
        }
    }

    /// A command took so long.
    fn took(&self, since: Instant) {
        let took = u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX);
        self.figures.latency[self.at].record(took);
    }

    /// A command is carried out.
    fn settle(&self, home: usize, cost: usize, event: BrokerEvent) {
        self.bytes.fetch_sub(cost, Ordering::Relaxed);
        self.events.take(home, vec![event]);
    }

    fn open(self: &Rc<Self>, batch: Batch) {
        let home = batch.from.index();
        self.handle(batch.mail.len() as u64);
        let mut events = Vec::new();
        for mail in batch.mail {
            // Homes send nothing else here.
            let Mail::Command(command) = mail else { continue };
            match *command {
                Command::Listen { channel } => {
                    let rules = self.settings.subjects.rules();
                    let is_pattern = rules.wildcards && rules.is_pattern(&channel);
                    let begun = self.interests.borrow_mut().listen(home, &channel, is_pattern);
                    match begun {
                        Begun::New => self.wanted.notify_one(),
                        Begun::On => events.push(BrokerEvent::Listening { channel }),
                        Begun::UnderWay => {}
                    }
                }
                Command::Unlisten { channel } => {
                    self.interests.borrow_mut().unlisten(&channel);
                }
                Command::Hold => self.seams.borrow_mut()[home].hold(),
                Command::Fence { key } => self.send_sign(&Sign::new(Kind::Fence, key, home)),
                Command::Resume => {
                    let (held, is_over) = self.seams.borrow_mut()[home].resume();
                    events.extend(held);
                    if is_over {
                        self.begin_anew(home, &mut events);
                    }
                }
                command => events.extend(self.carry_out(home, command)),
            }
        }
        self.probe();
        if !events.is_empty() {
            self.events.take(home, events);
        }
    }

    /// Sends a command. The event, if its fate is known at once.
    fn carry_out(self: &Rc<Self>, home: usize, command: Command) -> Option<BrokerEvent> {
        let refused = |command: &Command| {
            Figures::add(&self.figures.refused, 1);
            failure(command)
        };
        let bytes = cost(&command);
        if !self.is_open() || !self.admit(bytes) {
            return refused(&command);
        }
        let stream = self.stream_of(&command);
        let sent = match (&command, stream) {
            (Command::Publish(publishing), Some(stream)) => {
                match history::publish(self, (home, publishing, bytes), stream) {
                    Ok(()) => return None,
                    Err(cause) => Err(cause),
                }
            }
            (Command::Read { .. } | Command::Renew { .. } | Command::Drop { .. }, Some(stream)) => {
                history::carry_out(self, (home, command, bytes), stream);
                return None;
            }
            (Command::Publish(publishing), None) if !self.keeps(publishing) => {
                self.publish(home, publishing)
            }
            (Command::Announce { channel, joined, info }, _) => {
                self.announce(channel, *joined, info)
            }
            // Where nothing is kept, nothing can be read.
            _ => Err(FailureCause::Unsupported),
        };
        match sent {
            Ok(()) => self.with_output(|output| output.groups.count(bytes))?,
            Err(cause) => {
                self.bytes.fetch_sub(bytes, Ordering::Relaxed);
                return failure_for(&command, cause);
            }
        }
        None
    }

    /// The stream that a command is about; none without one.
    fn stream_of(&self, command: &Command) -> Option<usize> {
        let streams = self.streams()?;
        let is_of_stream = match command {
            Command::Publish(publishing) => publishing.options.kept(),
            Command::Read { .. } | Command::Renew { .. } | Command::Drop { .. } => true,
            _ => false,
        };
        is_of_stream.then(|| streams.of(broker_mail::channel(command))).flatten()
    }

    /// A publication is to get a place in a stream.
    fn keeps(&self, publishing: &Publishing) -> bool {
        self.settings.streams.is_some() && publishing.options.kept()
    }

    fn publish(&self, home: usize, publishing: &Publishing) -> Result<(), FailureCause> {
        let Publishing { ticket, channel, record, .. } = publishing;
        let subjects = &self.settings.subjects;
        if !subjects.rules().carries(channel) || subjects.rules().is_pattern(channel) {
            return Err(FailureCause::Unsupported);
        }
        let payload = match subjects.is_raw() {
            true => record.data().to_vec(),
            false => payload::publication(publishing, now_ms()),
        };
        let (subject, since) = (subjects.messages(channel), Instant::now());
        let pending = Pending::Published { home, ticket: *ticket, channel: channel.clone(), since };
        self.send(async |client| client.publish(subject, payload.into()).await)?;
        self.with_output(|output| output.groups.add(pending));
        Ok(())
    }

    fn announce(&self, channel: &str, joined: bool, info: &[u8]) -> Result<(), FailureCause> {
        let subjects = &self.settings.subjects;
        // Raw messages are data of publications.
        if !subjects.is_raw()
            && subjects.rules().carries(channel)
            && !subjects.rules().is_pattern(channel)
        {
            let payload = payload::presence(channel, joined, info);
            let subject = subjects.messages(channel);
            // Nobody waits for it.
            let _ = self.send(async |client| client.publish(subject, payload.into()).await);
        }
        Ok(())
    }

    /// Sends a message to other nodes.
    fn send_control(&self, outgoing: Outgoing) {
        let Outgoing { to, ticket, message } = outgoing;
        let settings = &self.settings;
        let subject = match to {
            Recipient::All => settings.subjects.control(),
            Recipient::Node(uid) => settings.subjects.node(&uid),
        };
        let payload = ControlCommand { uid: settings.uid.clone(), message }.write();
        let bytes = payload.len();
        if self.is_open() && self.admit(bytes) {
            let sent = self.send(async |client| client.publish(subject, payload.into()).await);
            if sent.is_ok() {
                self.with_output(|output| {
                    output.groups.count(bytes);
                    output.groups.add(Pending::Control { ticket });
                });
                return self.probe();
            }
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        self.events.control(vec![ControlEvent::Sent { ticket, is_sent: false }]);
    }

    /// The streams, if there are any.
    fn streams(&self) -> Option<Rc<Streams>> {
        self.streams.borrow().clone()
    }

    /// Namespaces have changed: streams follow.
    fn follow(&self, rules: Arc<ChannelRules>) {
        let Some(streams) = self.streams() else { return };
        let streams = streams.following(self.settings.subjects.prefix(), rules);
        self.streams.replace(Some(Rc::new(streams)));
        self.lives.change();
    }

    /// Another process is to take over.
    fn mark(&self, key: u64) {
        self.homes().for_each(|home| self.seams.borrow_mut()[home].mark(key));
        if self.at == 0 {
            self.control_seam.borrow_mut().mark(key);
        }
        self.sign(Kind::Mark, key);
    }

    /// Sends a sign for each home, and one for the messages between nodes.
    fn sign(&self, kind: Kind, key: u64) {
        let between_nodes = (self.at == 0).then_some(self.settings.homes);
        for home in self.homes().chain(between_nodes) {
            self.send_sign(&Sign::new(kind, key, home));
        }
    }

    /// Says something to the other process of a takeover, which fails without it.
    fn send_sign(&self, sign: &Sign) {
        let (subject, payload) = (self.settings.subjects.fences(&self.settings.uid), sign.write());
        let _ = self.send(async |client| client.publish(subject, payload.into()).await);
    }

    /// Publications of a home are missing: its channels are read again.
    fn begin_anew(&self, of: usize, events: &mut Vec<BrokerEvent>) {
        self.interests.borrow().on(|home, channel| {
            if home == of {
                let channel = channel.clone();
                events.push(BrokerEvent::Interrupted { channel: channel.clone() });
                events.push(BrokerEvent::Listening { channel });
            }
        });
    }

    /// The connection is there.
    async fn begin(self: &Rc<Self>, link: &Link) -> Result<(), Unreachable> {
        let settings = &self.settings;
        let fences = settings.subjects.fences(&settings.uid);
        let mut own = vec![(self.probes.clone(), Source::Probes), (fences, Source::Fences)];
        if self.at == 0 {
            own.push((settings.subjects.control(), Source::Control));
            own.push((settings.subjects.node(&settings.uid), Source::Control));
        }
        if settings.streams.is_some() {
            own.push((format!("{}.*", self.inbox), Source::Replies));
        }
        for (subject, source) in own {
            let subscriber = link.client.subscribe(subject).await?;
            self.subscriptions.add(self, source, subscriber);
        }
        let mut groups = Groups::default();
        // Its answer shows that all is subscribed, also where nothing is.
        groups.probe();
        if self.at == 0 {
            groups.add(Pending::ControlListening);
        }
        let (client, refusals) = (link.client.clone(), Refusals::default());
        *self.output.borrow_mut() = Some(Output { client, groups, refusals, is_control_on: false });
        self.is_late.set(false);
        Figures::add(&self.figures.connects, 1);
        Figures::add(&self.figures.pubsub_connects, 1);
        if settings.streams.is_none() {
            self.ready().await?;
        }
        self.probe();
        Ok(())
    }

    /// All is known that commands need: channels are subscribed, and homes know of the connection.
    async fn ready(self: &Rc<Self>) -> Result<(), Unreachable> {
        if self.settings.takes_all {
            let Some(client) = self.client() else { return Err(Unreachable::Closed) };
            let subscriber = client.subscribe(self.settings.subjects.all()).await?;
            self.subscriptions.add(self, Source::All, subscriber);
            self.with_output(|output| output.groups.add(Pending::ListeningToAll));
        }
        self.is_ready.set(true);
        self.wanted.notify_one();
        if !self.is_known.replace(true) {
            self.figures.servers_away.fetch_sub(1, Ordering::Relaxed);
            self.to_all(&BrokerEvent::Connected);
        }
        // Its answer shows whether all is subscribed.
        self.with_output(|output| output.groups.probe());
        self.probe();
        self.begins.take();
        Ok(())
    }

    /// The connection has ended: what was under way fails, and channels are interrupted.
    fn end(&self) {
        let Some(mut output) = self.output.borrow_mut().take() else { return };
        let mut events = vec![Vec::new(); self.settings.homes];
        let mut control = Vec::new();
        let (bytes, all) = output.groups.take_all();
        self.news.replace(News::new(self.settings.homes));
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        for pending in all {
            match pending {
                Pending::Published { home, ticket, .. } => {
                    Figures::add(&self.figures.replies_lost, 1);
                    let cause = FailureCause::Unavailable;
                    events[home].push(BrokerEvent::Failed { ticket, cause });
                }
                Pending::Control { ticket } => {
                    control.push(ControlEvent::Sent { ticket, is_sent: false });
                }
                Pending::Listening { .. } | Pending::ListeningToAll | Pending::ControlListening => {
                }
            }
        }
        let publications = self.requests.borrow_mut().expire(true);
        self.fail(publications, |home, event| events[home].push(event));
        if output.is_control_on {
            control.push(ControlEvent::Interrupted);
        }
        for (home, seam) in self.seams.borrow_mut().iter_mut().enumerate() {
            let (held, is_lost) = seam.cut();
            events[home].extend(held);
            if is_lost && let Some(joining) = &self.joining {
                joining.lose();
            }
        }
        let (held, _) = self.control_seam.borrow_mut().cut();
        control.splice(0..0, held.into_iter().map(news::between_nodes));
        self.interests.borrow_mut().interrupt(|home, event| events[home].push(event));
        for (home, events) in events.into_iter().enumerate().filter(|(_, all)| !all.is_empty()) {
            self.events.take(home, events);
        }
        if !control.is_empty() {
            self.events.control(control);
        }
    }

    /// Publications whose answers are missing: they may have been taken.
    fn fail(
        &self,
        publications: Vec<requests::Publication>,
        mut each: impl FnMut(usize, BrokerEvent),
    ) {
        for publication in publications {
            Figures::add(&self.figures.replies_lost, 1);
            self.bytes.fetch_sub(publication.cost, Ordering::Relaxed);
            let (ticket, cause) = (publication.ticket, FailureCause::Unavailable);
            each(publication.home, BrokerEvent::Failed { ticket, cause });
        }
    }

    /// There has been no connection for too long.
    fn lose(&self) {
        if self.is_known.replace(false) {
            tracing::error!("nats: no server can be reached");
            Figures::add(&self.figures.servers_away, 1);
            self.interests.borrow_mut().forget();
            self.subscriptions.forget();
            self.to_all(&BrokerEvent::Lost);
        }
    }
}

/// Servers in the order in which they are tried: those of the options, and those that they have named.
struct Servers {
    all: Vec<(Place, Credentials)>,
    at: usize,
}

impl Servers {
    fn new(settings: &Settings) -> Self {
        Self { all: settings.servers.clone(), at: 0 }
    }

    /// Other servers of the cluster are those that this one names and those of the options.
    fn learn(&mut self, settings: &Settings, link: &Link) {
        let Some((current, credentials)) = self.all.get(self.at).cloned() else { return };
        let named = link.info.connect_urls.iter().filter_map(|url| Place::read(url));
        let mut all = settings.servers.clone();
        for place in named.chain([current.clone()]) {
            if all.len() < SERVERS_MAX && !all.iter().any(|(known, _)| *known == place) {
                all.push((place, credentials.clone()));
            }
        }
        self.at = all.iter().position(|(place, _)| *place == current).unwrap_or(0);
        self.all = all;
    }

    fn next(&mut self) {
        self.at = (self.at + 1) % self.all.len().max(1);
    }
}

/// Servers that are known at most.
const SERVERS_MAX: usize = 256;

async fn run(settings: Arc<Settings>, begin: Begin) {
    let Begin { at, events, figures, bytes, mut inbox, mail, joining, begins } = begin;
    // In a takeover there are two processes of one name.
    let process = format!("{:016x}", super::redis::seed());
    let of_replies = format!("_INBOX.{}.{at}.{process}", settings.uid);
    let probes = settings.subjects.probes(&settings.uid, at, &process);
    let seams = (0..settings.homes).map(|home| {
        let is_own = home % settings.threads.max(1) == at;
        Seam::new(joining.is_some() && is_own)
    });
    let seams = RefCell::new(seams.collect());
    let streams = RefCell::new(settings.streams.clone().map(Rc::new));
    let control_seam = RefCell::new(Seam::new(joining.is_some() && at == 0));
    let interests = RefCell::new(Interests::new(settings.takes_all));
    let news = RefCell::new(News::new(settings.homes));
    let shared = Rc::new(Shared {
        settings,
        events,
        figures,
        bytes,
        at,
        interests,
        wanted: Notify::new(),
        output: RefCell::default(),
        subscriptions: Subscriptions::default(),
        news,
        seams,
        control_seam,
        joining,
        requests: RefCell::default(),
        streams,
        lives: Lives::default(),
        inbox: of_replies,
        probes,
        is_ready: Cell::new(false),
        begins: Cell::new(Some(begins)),
        is_late: Cell::new(false),
        is_at_limit: Cell::new(false),
        is_known: Cell::new(false),
        handled: Cell::new(0),
    });
    let of_mail = shared.clone();
    tokio::task::spawn_local(async move {
        broker_mail::take(mail, &*of_mail.events, |batch| of_mail.open(batch)).await;
    });
    tokio::task::spawn_local(stay_connected(shared.clone()));
    let mut burst = Burst::default();
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let inbound = tokio::select! {
            inbound = inbox.recv() => inbound,
            _ = second.tick() => {
                if burst.is_over(shared.handled.get()) {
                    sys::memory::collect();
                }
                continue;
            }
        };
        let Some(inbound) = inbound else { return };
        carry_out(&shared, inbound);
    }
}

/// Does what the node has ordered beside commands of homes.
fn carry_out(shared: &Shared, inbound: Inbound) {
    match inbound {
        Inbound::Control(outgoing) => shared.send_control(*outgoing),
        Inbound::NotifyRemoved(uid) => {
            let notification = Notification { op: ENTRIES_REMOVED.into(), ..<_>::default() };
            let (to, message) = (Recipient::Node(uid), Message::Notification(notification));
            shared.send_control(Outgoing { to, ticket: UNHEARD, message });
        }
        // It keeps none.
        Inbound::TakeEntries(_) | Inbound::Answer(..) => {}
        Inbound::Follow(rules) => shared.follow(rules),
        Inbound::Mark(key) => shared.mark(key),
        Inbound::Keep(key) => shared.sign(Kind::Keep, key),
        Inbound::Hold => shared.control_seam.borrow_mut().hold(),
        Inbound::Fence(key) => {
            shared.send_sign(&Sign::new(Kind::Fence, key, shared.settings.homes));
        }
        Inbound::Resume => {
            // Homes that hold messages say so themselves.
            shared.seams.borrow_mut().iter_mut().for_each(Seam::forget);
            let (held, is_over) = shared.control_seam.borrow_mut().resume();
            news::hand_out(shared, held, is_over);
        }
    }
}

/// Nobody waits for what becomes of a message with this ticket.
const UNHEARD: Ticket = Ticket(u64::MAX);

/// Keeps a connection until the process ends.
async fn stay_connected(shared: Rc<Shared>) {
    let settings = shared.settings.clone();
    let dialer = match settings.dialer() {
        Ok(dialer) => dialer,
        Err(error) => return tracing::error!("nats: {error}"),
    };
    let mut servers = Servers::new(&settings);
    let mut backoff = Backoff::new(super::redis::seed());
    let mut failed = 0;
    let mut without = Instant::now();
    loop {
        let Some((place, credentials)) = servers.all.get(servers.at).cloned() else { return };
        let error = match dialer.dial(&place, &credentials).await {
            Ok(link) => {
                servers.learn(&settings, &link);
                let began = Instant::now();
                let error = use_link(&shared, link).await;
                // One that was never of use is no end of a wait.
                if shared.is_ready.take() {
                    (without, failed) = (Instant::now(), 0);
                } else {
                    failed += 1;
                }
                if began.elapsed() > PATIENCE {
                    backoff.reset();
                }
                error
            }
            Err(error) => {
                Figures::add(&shared.figures.connects_failed, 1);
                failed += 1;
                error
            }
        };
        tracing::warn!("nats: server {place}: {error}");
        if without.elapsed() >= PATIENCE {
            shared.lose();
        }
        servers.next();
        if failed > 0 && failed % servers.all.len() == 0 {
            shared.begins.take();
            sleep(backoff.pause()).await;
            if without.elapsed() >= PATIENCE {
                shared.lose();
            }
        }
    }
}

/// Serves a connection until it ends: why. All of it has ended then.
async fn use_link(shared: &Rc<Shared>, mut link: Link) -> Unreachable {
    if let Err(error) = link.check(&shared.settings) {
        return error;
    }
    let error = match shared.begin(&link).await {
        Ok(()) => connection::serve(shared, &mut link.events).await,
        Err(error) => error,
    };
    let Link { client, mut events, .. } = link;
    drop(client);
    shared.end();
    // A client that is gone takes no more commands: else each subscription would send one.
    let gone = async { while events.recv().await.is_some() {} };
    let _ = timeout(CLIENT_ENDS, gone).await;
    shared.subscriptions.end();
    error
}

/// Time for a client to end.
const CLIENT_ENDS: Duration = Duration::from_millis(100);

#[expect(clippy::disallowed_methods, reason = "publications carry the wall clock of their node")]
fn now_ms() -> u64 {
    use std::time::{SystemTime, UNIX_EPOCH};
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_millis() as u64
}
