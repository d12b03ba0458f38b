//! The command connection to a server: everything pipelined over one, in order.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::task::Poll;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hashbrown::HashMap;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::backoff::Backoff;
use super::lateness::Lateness;
use super::queue::Queued;
use super::wire::{Link, Unreachable};
use super::{Connected, Settings, Shared};
use crate::base::rng::Rng;
use crate::cluster::operations::{Awaited, Fresh, Reply, Request, Settled};
use crate::cluster::tops::TopRead;
use crate::hub::broker::{BrokerEvent, Command, FailureCause};
use crate::hub::history::Epoch;
use crate::node::broker_mail::{cost, failure};
use crate::node::broker_threads::ControlEvent;
use crate::node::broker_threads::Figures;
use crate::node::log_limit::LogLimit;

/// Requests in one write at most, and their bytes.
const BATCH_MAX: usize = 512;
const BATCH_BYTES_MAX: usize = 256 << 10;

/// Bytes of a stream's node above which memory is wasted on short histories.
const STREAM_NODE_BYTES_GOOD: u64 = 1_024;

/// Commands wait so long for a connection after the one before them has ended.
const PATIENCE: Duration = Duration::from_secs(1);

/// An idle connection is tried after so long.
const IDLE: Duration = Duration::from_secs(1);

/// Lines about replies that are errors: a server in trouble has one for each command.
static ERRORS: LogLimit = LogLimit::new();

/// Errors of a server that can't be used now: a replica, one whose master is lost, one that loads its data, one
/// that does not own a slot any more.
const USELESS: [&str; 4] = ["READONLY", "MASTERDOWN", "LOADING", "MOVED"];

type Sent = Pin<Box<dyn Future<Output = (u64, Result<Vec<Reply>, Unreachable>)>>>;

/// Puts a command into the queue of a server, or fails it.
pub(super) fn take(shared: &Shared, server: &Connected, home: usize, command: Command) {
    let mut left = cost(&command);
    if !server.queue.takes_commands() {
        Figures::add(&shared.figures.refused, 1);
        server.queue.settled(left);
        if let Some(event) = failure(&command) {
            shared.events.take(home, vec![event]);
        }
        return;
    }
    let epoch = epoch();
    if let Command::Presence(update) = &command {
        // Before the entries: none is without its member of the set.
        let requests = shared.settings.operations.entries_of_update(&shared.settings.uid, update);
        for request in requests {
            server.queue.push(Queued::new(home, request, Awaited::Nothing, 0));
        }
    }
    let made = shared.settings.operations.requests(command, fresh(&epoch), |request, awaited| {
        // The first one carries all of the command's bytes.
        let cost = std::mem::take(&mut left);
        server.queue.push(Queued::new(home, request, awaited, cost));
    });
    server.queue.settled(left);
    if let Err(Some(event)) = made {
        shared.events.take(home, vec![event]);
    }
}

/// Puts reads that positions most often answer into the queue, or fails them. `cost`: their bytes in the account of
/// the thread.
pub(super) fn take_tops(
    shared: &Shared,
    server: &Connected,
    home: usize,
    (reads, mut cost): (Vec<TopRead>, usize),
) {
    let mut failed = Vec::new();
    if server.queue.takes_commands() {
        shared.settings.operations.tops(reads, &mut failed, |request, awaited| {
            let cost = std::mem::take(&mut cost);
            server.queue.push(Queued::new(home, request, awaited, cost));
        });
    } else {
        Figures::add(&shared.figures.refused, reads.len() as u64);
        failed.extend(reads.into_iter().map(|read| {
            let cause = FailureCause::Unavailable;
            BrokerEvent::Failed { ticket: read.ticket, cause }
        }));
    }
    server.queue.settled(cost);
    if !failed.is_empty() {
        shared.events.take(home, failed);
    }
}

/// Removes the presence entries of a node that is dead from a server, in the name of one home.
pub(super) fn take_entries(shared: &Shared, server: &Connected, uid: &str) {
    push(shared, server, shared.settings.operations.take_entries(uid));
}

/// The set of this node's entries is kept for another while.
pub(super) fn keep_entries(shared: &Shared, server: &Connected) {
    let request = shared.settings.operations.keep_entries(&shared.settings.uid);
    push(shared, server, (request, Awaited::Nothing));
}

/// Queues a request of the first home, where the server can be reached.
fn push(shared: &Shared, server: &Connected, (request, awaited): (Request, Awaited)) {
    if server.queue.is_open.get() {
        server.queue.push(Queued::new(shared.first, request, awaited, 0));
    }
}

/// Keeps a connection to a server until the process ends. `begins` is dropped after the first attempt.
pub(super) async fn run(shared: Rc<Shared>, at: usize, server: Rc<Connected>, begins: Sender<()>) {
    let mut begins = Some(begins);
    let settings = &shared.settings;
    let mut backoff = Backoff::new(seed());
    let mut is_up = false;
    // Since the last connection ended.
    let mut without = Instant::now();
    loop {
        let link = async {
            let link = Link::connect(&settings.servers[at], settings.io_timeout).await?;
            takes_writes(settings, &link).await?;
            Ok(link)
        };
        match timeout(settings.connect_timeout, link).await {
            Ok(Ok(mut link)) => {
                if shared.figures.connects.load(Ordering::Relaxed) == 0 {
                    warn_of_settings(shared.settings.operations.use_lists, at, &mut link).await;
                }
                Figures::add(&shared.figures.connects, 1);
                server.made.set(server.made.get() + 1);
                server.is_back.notify_waiters();
                if !is_up {
                    is_up = true;
                    server.queue.is_open.set(true);
                    shared.figures.servers_away.fetch_sub(1, Ordering::Relaxed);
                    shared.up.set(shared.up.get() + 1);
                    if shared.up.get() == 1 {
                        shared.tell_all(&BrokerEvent::Connected);
                    }
                }
                begins = None;
                let began = Instant::now();
                let error = serve(&shared, at, &server, link).await;
                without = Instant::now();
                tracing::warn!("redis: server {at}: the command connection is lost: {error}");
                if began.elapsed() > IDLE {
                    backoff.reset();
                    // At once: most often the server is there.
                    continue;
                }
            }
            Ok(Err(error)) => failed(&shared, at, &server, (&mut is_up, without), &error),
            Err(_) => {
                failed(&shared, at, &server, (&mut is_up, without), &Unreachable::Timeout);
            }
        }
        drop(begins.take());
        sleep(backoff.pause()).await;
    }
}

/// A connection counts when the server takes writes: one that refuses them would otherwise be connected to again
/// and again, while commands fail one by one and the node says that all is well.
pub(super) async fn takes_writes(settings: &Settings, link: &Link) -> Result<(), Unreachable> {
    if link.is_of_cluster() {
        // It shows the state of one of its masters only.
        return Ok(());
    }
    let write = settings.operations.keep_entries(&settings.uid);
    // A node of a Cluster that is used as a single server has a name of its own for that fault.
    let is_useless =
        |text: &str| !text.starts_with("MOVED") && USELESS.iter().any(|of| text.starts_with(of));
    match link.send(std::iter::once(&write)).await?.first() {
        Some(Reply::Error(text)) if is_useless(text) => Err(Unreachable::Useless(text.clone())),
        _ => Ok(()),
    }
}

/// A server that evicts keys loses histories and positions one by one; one with large nodes of streams needs
/// several kilobytes for a history of one short publication.
async fn warn_of_settings(use_lists: bool, at: usize, link: &mut Link) {
    if let Some(policy) = link.setting("maxmemory-policy").await
        && policy != "noeviction"
    {
        tracing::warn!(
            "redis: server {at} has maxmemory-policy {policy}: it may drop histories, positions and \
             presence when its memory is full; noeviction is safe"
        );
    }
    if let Some(bytes) = link.setting("stream-node-max-bytes").await
        && !use_lists
        && !bytes.parse().is_ok_and(|bytes: u64| (1..=STREAM_NODE_BYTES_GOOD).contains(&bytes))
    {
        tracing::warn!(
            "redis: server {at} has stream-node-max-bytes {bytes}: it reserves that much for each channel \
             with history, however short the history is; {STREAM_NODE_BYTES_GOOD} needs a fraction of it"
        );
    }
}

/// An attempt to connect failed. What was not sent waits for the next one, for a while.
fn failed(
    shared: &Shared,
    at: usize,
    server: &Connected,
    (is_up, without): (&mut bool, Instant),
    error: &Unreachable,
) {
    Figures::add(&shared.figures.connects_failed, 1);
    if *is_up && without.elapsed() < PATIENCE {
        tracing::warn!("redis: server {at}: {error}: what is not sent waits");
        return;
    }
    lost(shared, at, server, is_up, error);
}

/// There has been no connection for too long: nothing waits for one.
fn lost(shared: &Shared, at: usize, server: &Connected, is_up: &mut bool, error: &Unreachable) {
    server.queue.is_open.set(false);
    let mut events = Outcome::new(shared);
    for queued in server.queue.drain() {
        Figures::add(&shared.figures.refused, 1);
        events.fail(server, &queued);
    }
    events.deliver();
    if std::mem::take(is_up) {
        tracing::error!("redis: server {at} is away: {error}");
        Figures::add(&shared.figures.servers_away, 1);
        shared.up.set(shared.up.get() - 1);
        if shared.up.get() == 0 {
            // Homes begin anew, with all of their wishes.
            shared.wishes.borrow().iter().for_each(|wishes| wishes.forget());
            shared.tell_all(&BrokerEvent::Lost);
        }
    } else {
        tracing::debug!("redis: server {at}: {error}");
    }
}

/// Writes whose replies are missing: by number, the requests beside the futures, so that they can fail
/// without them.
#[derive(Default)]
struct InFlight {
    replies: FuturesUnordered<Sent>,
    /// With the moments at which they were sent.
    batches: HashMap<u64, (Instant, Vec<Queued>), foldhash::fast::RandomState>,
    next: u64,
}

impl InFlight {
    /// Hands a batch to the connection, in this step: batches are sent in the order of these calls.
    async fn send(&mut self, link: &Link, batch: Vec<Queued>) {
        if batch.is_empty() {
            return;
        }
        let number = self.next;
        self.next += 1;
        let replies = link.send(batch.iter().map(|queued| &queued.request));
        self.batches.insert(number, (Instant::now(), batch));
        let mut sent: Sent = Box::pin(async move { (number, replies.await) });
        match poll_fn(|context| Poll::Ready(sent.as_mut().poll(context))).await {
            Poll::Ready(done) => self.replies.push(Box::pin(std::future::ready(done))),
            Poll::Pending => self.replies.push(sent),
        }
    }

    /// A batch whose replies have come, and how long that took.
    fn take(&mut self, number: u64) -> (Duration, Vec<Queued>) {
        let taken = self.batches.remove(&number);
        taken.map_or_else(Default::default, |(sent, batch)| (sent.elapsed(), batch))
    }

    /// When the oldest one was sent.
    fn oldest(&self) -> Option<Instant> {
        self.batches.values().map(|(sent, _)| *sent).min()
    }

    fn len(&self) -> usize {
        self.batches.len()
    }
}

/// Sends and receives until the connection fails: why.
async fn serve(shared: &Shared, at: usize, server: &Connected, mut link: Link) -> Unreachable {
    let mut in_flight = InFlight::default();
    let lateness = Lateness::new(shared, at, server);
    let mut unknown_scripts = Vec::new();
    let error = loop {
        if !unknown_scripts.is_empty() && in_flight.len() == 0 {
            server.queue.put_back(std::mem::take(&mut unknown_scripts));
            if let Err(error) = link.load_scripts().await {
                break error;
            }
        }
        while unknown_scripts.is_empty()
            && in_flight.len() < link.window()
            && !server.queue.is_empty()
        {
            let batch = unexpired(shared, server, server.queue.batch(BATCH_MAX, BATCH_BYTES_MAX));
            in_flight.send(&link, batch).await;
        }
        let due = lateness.due(in_flight.oldest());
        tokio::select! {
            biased;
            Some((number, replies)) = in_flight.replies.next() => match replies {
                Ok(replies) => {
                    let (took, batch) = in_flight.take(number);
                    lateness.answered(took);
                    let useless = settle(shared, server, batch, replies, &mut unknown_scripts);
                    if let Some(error) = useless {
                        break error;
                    }
                }
                Err(error) => break error,
            },
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => lateness.begin(),
            () = server.queue.pushed.notified() => {}
            () = sleep(IDLE) => {
                let request = Request::Plain { name: "PING", arguments: vec![] };
                let ping = Queued::new(0, request, Awaited::Nothing, 0);
                in_flight.send(&link, vec![ping]).await;
            }
        }
    };
    // Refused for their scripts: they had no effect, and wait like those that were never sent.
    server.queue.put_back(unknown_scripts);
    resend(shared, server, in_flight.batches);
    error
}

/// Without those that have waited for too long: they fail.
fn unexpired(shared: &Shared, server: &Connected, batch: Vec<Queued>) -> Vec<Queued> {
    let now = Instant::now();
    let expired = |queued: &Queued| now.duration_since(queued.since) > shared.settings.io_timeout;
    if !batch.iter().any(expired) {
        return batch;
    }
    let (late, batch): (Vec<Queued>, Vec<Queued>) = batch.into_iter().partition(expired);
    let mut events = Outcome::new(shared);
    for queued in &late {
        Figures::add(&shared.figures.refused, 1);
        events.fail(server, queued);
    }
    events.deliver();
    batch
}

/// Turns replies into events. An error that makes the connection useless is returned.
fn settle(
    shared: &Shared,
    server: &Connected,
    batch: Vec<Queued>,
    replies: Vec<Reply>,
    unknown_scripts: &mut Vec<Queued>,
) -> Option<Unreachable> {
    let operations = &shared.settings.operations;
    let mut events = Outcome::new(shared);
    let mut useless = None;
    let epoch = epoch();
    // The clocks are asked once for all of them.
    let (fresh, now) = (fresh(&epoch), Instant::now());
    let mut replies = replies.into_iter();
    for mut queued in batch {
        let reply = replies.next().unwrap_or_else(|| Reply::Error("no reply".into()));
        if let Reply::Error(text) = &reply {
            if text.starts_with("NOSCRIPT") && !queued.again {
                queued.again = true;
                unknown_scripts.push(queued);
                continue;
            }
            if USELESS.iter().any(|of| text.starts_with(of)) {
                useless = Some(Unreachable::Useless(text.clone()));
            }
        }
        let Queued { home, awaited, since, cost, .. } = queued;
        if awaited.ticket().is_some() {
            let took = u32::try_from(now.duration_since(since).as_micros()).unwrap_or(u32::MAX);
            shared.figures.latency[shared.first].record(took);
        }
        match operations.settle(awaited, reply, fresh) {
            Settled::Nothing => {}
            Settled::Event(event) => events.add(home, event),
            Settled::Again(request, awaited) => {
                server.queue.push(Queued { since, ..Queued::new(home, request, awaited, cost) });
                continue;
            }
            Settled::Several(several, requests) => {
                several.into_iter().for_each(|event| events.add(home, event));
                for (request, awaited) in requests {
                    server.queue.push(Queued::new(home, request, awaited, 0));
                }
            }
            Settled::Faulty(failed, text) => {
                Figures::add(&shared.figures.errors, 1);
                if let Some(left_out) = ERRORS.admit() {
                    tracing::warn!(left_out, "redis: {text}");
                }
                failed.into_iter().for_each(|event| events.add(home, event));
            }
        }
        server.queue.settled(cost);
    }
    events.deliver();
    useless
}

/// The replies to these are lost. Those that may be carried out twice are sent again, before all others and in
/// their order; once, since one of them may be what ends the connection.
fn resend(
    shared: &Shared,
    server: &Connected,
    batches: HashMap<u64, (Instant, Vec<Queued>), foldhash::fast::RandomState>,
) {
    let mut batches: Vec<_> = batches.into_iter().collect();
    batches.sort_unstable_by_key(|(number, _)| *number);
    let all = batches.into_iter().flat_map(|(_, (_, batch))| batch);
    let (mut again, lost): (Vec<Queued>, Vec<Queued>) =
        all.partition(|queued| !queued.resent && queued.request.is_repeatable());
    again.iter_mut().for_each(|queued| queued.resent = true);
    server.queue.put_back(again);
    fail(shared, server, &lost);
}

/// The replies to these are lost.
fn fail(shared: &Shared, server: &Connected, batch: &[Queued]) {
    let mut events = Outcome::new(shared);
    for queued in batch {
        Figures::add(&shared.figures.replies_lost, 1);
        events.fail(server, queued);
    }
    events.deliver();
}

/// Events by home, until they are delivered together. The place behind the homes is the control channel's.
struct Outcome<'a> {
    shared: &'a Shared,
    homes: Vec<Vec<BrokerEvent>>,
}

impl<'a> Outcome<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self { shared, homes: vec![Vec::new(); shared.settings.homes + 1] }
    }

    fn add(&mut self, home: usize, event: BrokerEvent) {
        self.homes[home].push(event);
    }

    fn fail(&mut self, server: &Connected, queued: &Queued) {
        server.queue.settled(queued.cost);
        let failed = queued.awaited.failed(FailureCause::Unavailable);
        failed.into_iter().for_each(|event| self.add(queued.home, event));
    }

    fn deliver(self) {
        for (home, events) in self.homes.into_iter().enumerate() {
            if events.is_empty() {
                continue;
            }
            if home == self.shared.settings.homes {
                let control = events.iter().filter_map(ControlEvent::of).collect();
                self.shared.events.control(control);
            } else {
                self.shared.events.take(home, events);
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "publications carry the wall clock of their node")]
fn fresh(epoch: &Epoch) -> Fresh<'_> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Fresh { now_ms: now.as_millis() as u64, epoch: epoch.as_str() }
}

/// A number that no other connection of this machine begins with.
pub(in crate::node) fn seed() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::thread::current().id())
}

/// Eight random letters.
fn epoch() -> Epoch {
    thread_local! {
        static RNG: std::cell::RefCell<Rng> = std::cell::RefCell::new(Rng::new(seed()));
    }
    RNG.with_borrow_mut(Epoch::new)
}

/// Sends a probe of a PUB/SUB connection, where the server can be reached.
pub(super) fn probe(
    server: &Connected,
    home: usize,
    (command, name): (&'static str, &str),
) -> bool {
    let arguments = vec![name.into(), b"probe".into()];
    let request = Request::Plain { name: command, arguments };
    let is_open = server.queue.is_open.get();
    if is_open {
        server.queue.push(Queued::new(home, request, Awaited::Nothing, 0));
    }
    is_open
}
