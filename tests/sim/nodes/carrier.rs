//! The broker thread of a node, as `src/node/redis` behaves: it takes commands of homes, and keeps a command
//! connection and a PUB/SUB connection for each home to the simulated [`Redis`]. The requests and the meaning
//! of replies are those of `src/cluster/operations.rs` itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use compact_str::CompactString;
use roost::base::rng::Rng;
use roost::cluster::operations::{Awaited, Fresh, Operations, Reply, Request, Settled};
use roost::hub::broker::{BrokerEvent, Command, FailureCause, Ticket};
use roost::hub::history::{Epoch, Position};
use roost::node::nats::fence::{Kind, Seam, Sign, digest};
use roost::shard::ChannelNames;

use super::broker::{Broker, REDIS};
use super::plan::Sabotage;
use super::redis::{ConnId, Push, Redis};
use super::truth::{Broken, Rule};

/// Time for a reply, and for a command to wait in the queue.
const IO_TIMEOUT_MS: u64 = 4_000;

/// Time for a connection to be made.
const CONNECT_TIMEOUT_MS: u64 = 1_000;

/// Interval of the probes of a PUB/SUB connection.
const PROBE_MS: u64 = 3_000;

/// An idle connection is tried after so long.
const IDLE_MS: u64 = 1_000;

/// Requests under way at most.
const WINDOW: usize = 64;

/// A request that waits, or whose reply is awaited.
#[derive(Debug)]
struct Queued {
    home: usize,
    request: Request,
    awaited: Awaited,
    since: u64,
}

/// The command connection.
#[derive(Debug, Default)]
struct Commands {
    conn: Option<ConnId>,
    /// It is being made, until that moment: its first reply is awaited.
    making_until: Option<u64>,
    /// Homes have heard that the broker is there.
    is_up: bool,
    retry_at: u64,
    attempts: u32,
    queue: VecDeque<Queued>,
    sent: VecDeque<Queued>,
    idle_since: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Actual {
    Off,
    Changing,
    On,
}

#[derive(Clone, Copy, Debug)]
struct Wish {
    wished: bool,
    actual: Actual,
}

/// The PUB/SUB connection of a home.
#[derive(Debug, Default)]
struct PubSub {
    conn: Option<ConnId>,
    retry_at: u64,
    attempts: u32,
    wishes: BTreeMap<CompactString, Wish>,
    /// SUBSCRIBE of the name of the probes is answered.
    is_ready: bool,
    probe_at: u64,
    unanswered: u32,
    heard: u64,
}

/// The part of a PUB/SUB connection's messages that is this process's, as in `src/node/redis/fence.rs`; with NATS it is
/// that of `src/node/nats/fence.rs`.
#[derive(Debug, Default)]
enum Part {
    #[default]
    All,
    /// Those behind a fence that has not come.
    Behind,
    /// Those before a fence are held until it comes, and later ones until it is clear whose they are.
    Before { held: Vec<BrokerEvent>, is_fenced: bool },
    /// What a seam says, and the signs of this turn.
    Divided(Box<Seam<BrokerEvent>>, Vec<Sign>),
}

/// The payload of a fence, before its key.
const FENCE: &str = "fence ";

/// Of a sign, before its bytes.
const SIGN: &[u8] = b"sign ";

/// The broker thread of a process that takes over from another one.
#[derive(Debug, Default)]
struct Joining {
    key: u64,
    /// Homes get events from now on.
    is_open: bool,
    /// A connection was lost before its fence.
    is_lost: bool,
    /// Channels that the process before has given up meanwhile, by home.
    ended: BTreeSet<(usize, CompactString)>,
}

pub(crate) struct Carrier {
    node: usize,
    /// The name of the process.
    pub(crate) uid: String,
    operations: Operations,
    rng: Rng,
    commands: Commands,
    pubsub: Vec<PubSub>,
    /// Events for homes, in their order.
    pub(crate) events: Vec<VecDeque<BrokerEvent>>,
    /// Requests that wait at most: beyond it commands fail.
    pub(crate) queue_max: usize,
    /// Reads of lines that are open, by ticket: the channel, and since when.
    reads: BTreeMap<Ticket, (CompactString, u64)>,
    /// When deliveries of a channel began or ended last, and the connection itself.
    interrupted: BTreeMap<CompactString, u64>,
    begun: u64,
    sabotage: Option<Sabotage>,
    /// What the broker is like.
    pub(crate) kind: &'static Broker,
    /// Unix milliseconds at the zero of the simulation's time: clocks of nodes are not those of Redis.
    clock: u64,
    /// A rule that the home has broken.
    pub(crate) broken: Option<Broken>,
    /// Publications for homes are dropped until then.
    pub(crate) full_until: u64,
    /// Channels of homes of which one was dropped.
    missed: BTreeSet<(usize, CompactString)>,
    /// What is this process's of each home's connection, and the fence that the home awaits.
    parts: Vec<(Part, Option<u64>)>,
    /// Homes whose messages are this process's from now on, where seams divide them.
    passed: BTreeSet<usize>,
    /// Another process still runs in its place.
    joining: Option<Joining>,
    pub(crate) figures: BTreeMap<&'static str, u64>,
}

/// The ticket of a command that has an answer.
fn ticket(command: &Command) -> Option<Ticket> {
    match command {
        Command::Publish(publishing) => Some(publishing.ticket),
        Command::Presence(update) => update.ticket,
        Command::Read { ticket, .. }
        | Command::Renew { ticket, .. }
        | Command::Drop { ticket, .. }
        | Command::Members { ticket, .. } => Some(*ticket),
        Command::Listen { .. }
        | Command::Unlisten { .. }
        | Command::Announce { .. }
        | Command::Hold
        | Command::Fence { .. }
        | Command::Resume => None,
    }
}

fn failed(ticket: Ticket) -> BrokerEvent {
    BrokerEvent::Failed { ticket, cause: FailureCause::Unavailable }
}

/// Milliseconds before another attempt.
fn pause(rng: &mut Rng, attempts: &mut u32) -> u64 {
    let most = (100 << (*attempts).min(6)).min(5_000);
    *attempts += 1;
    most / 2 + rng.below(most / 2 + 1)
}

impl Carrier {
    pub(crate) fn new(
        node: usize,
        uid: String,
        homes: usize,
        operations: Operations,
        (queue_max, sabotage): (usize, Option<Sabotage>),
        mut rng: Rng,
    ) -> Self {
        Self {
            clock: 1_700_000_000_000 + rng.below(180_000) - 90_000,
            node,
            uid,
            operations,
            rng,
            commands: Commands::default(),
            pubsub: (0..homes).map(|_| PubSub::default()).collect(),
            events: (0..homes).map(|_| VecDeque::new()).collect(),
            queue_max,
            reads: BTreeMap::new(),
            interrupted: BTreeMap::new(),
            begun: 0,
            sabotage,
            kind: &REDIS,
            broken: None,
            full_until: 0,
            missed: BTreeSet::new(),
            parts: (0..homes).map(|_| Default::default()).collect(),
            passed: BTreeSet::new(),
            joining: None,
            figures: BTreeMap::new(),
        }
    }

    /// The same of a process that is to take over from another one, in the attempt of this key.
    pub(crate) fn join(mut self, key: u64) -> Self {
        self.joining = Some(Joining { key, ..Joining::default() });
        for (part, _) in &mut self.parts {
            *part = match self.kind.has_order {
                true => Part::Behind,
                false => Part::Divided(Box::new(Seam::new(true)), Vec::new()),
            };
        }
        self
    }

    /// A home of the process before listens to some channels, and to others no more.
    pub(crate) fn share(&mut self, home: usize, names: ChannelNames) {
        let Some(joining) = &mut self.joining else { return };
        joining.ended.extend(names.ended.into_iter().map(|name| (home, name)));
        for channel in names.begun {
            if !joining.ended.remove(&(home, channel.clone())) {
                self.pubsub[home].listen(channel, &mut self.events[home]);
            }
        }
    }

    /// Whether it listens to all channels that it is to listen to.
    pub(crate) fn listens(&mut self) -> bool {
        let has_all = |of: &PubSub| {
            let is_on = |wish: &Wish| !wish.wished || wish.actual == Actual::On;
            of.conn.is_some() && of.is_ready && of.wishes.values().all(is_on)
        };
        let is_done = self.commands.is_up && self.pubsub.iter().all(has_all);
        self.joining.iter_mut().for_each(|joining| joining.is_open |= is_done);
        is_done
    }

    /// Whether all fences have come to a process that takes over.
    pub(crate) fn is_fenced(&self) -> bool {
        self.parts.iter().enumerate().all(|(home, (part, _))| match part {
            Part::Divided(..) => self.passed.contains(&home),
            part => matches!(part, Part::All),
        })
    }

    /// Whether it can't take over any more.
    pub(crate) fn is_lost(&self) -> bool {
        self.joining.as_ref().is_some_and(|joining| joining.is_lost)
    }

    /// Homes don't get what came before they were this process's.
    pub(crate) fn drop_early(&mut self) {
        if self.joining.as_ref().is_some_and(|joining| !joining.is_open) {
            self.events.iter_mut().for_each(VecDeque::clear);
        }
    }

    /// It has taken over.
    pub(crate) fn joined(&mut self) {
        let Some(joining) = self.joining.take() else { return };
        joining.ended.iter().for_each(|(home, channel)| self.pubsub[*home].unlisten(channel));
    }

    /// What it listens to, and which part of that is this process's.
    pub(crate) fn show(&self) -> String {
        format!("{} {:?} {:?} {:?}", self.uid, self.commands.is_up, self.parts, self.pubsub)
    }

    /// Whether it can be replaced.
    pub(crate) fn is_up(&self) -> bool {
        self.commands.is_up
    }

    /// Whether nothing is on its way to Redis or to a home.
    pub(crate) fn is_quiet(&self) -> bool {
        self.commands.queue.is_empty()
            && self.commands.sent.is_empty()
            && self.events.iter().all(VecDeque::is_empty)
    }

    /// Another process is to take over soon. False where a fence is enough.
    pub(crate) fn mark(&mut self, now: u64, key: u64) -> bool {
        if self.kind.has_order {
            return false;
        }
        for home in 0..self.parts.len() {
            let mut seam = Box::new(Seam::new(false));
            seam.mark(key);
            self.parts[home].0 = Part::Divided(seam, Vec::new());
            self.publish_sign(now, &Sign::new(Kind::Mark, key, home));
        }
        true
    }

    /// The other process is to keep what comes.
    pub(crate) fn keep(&mut self, now: u64, key: u64) {
        for home in 0..self.parts.len() {
            self.publish_sign(now, &Sign::new(Kind::Keep, key, home));
        }
    }

    /// Publishes a sign on the name of the connection of its home.
    fn publish_sign(&mut self, now: u64, sign: &Sign) {
        let home = usize::from(sign.home);
        self.publish_probe(now, home, [SIGN, &sign.write()].concat());
    }

    /// All that came by the connection of a home in this turn is there.
    fn end_turn(&mut self, now: u64, home: usize) {
        let Part::Divided(seam, signs) = &mut self.parts[home].0 else { return };
        let turn = seam.end_turn(home, &std::mem::take(signs), |_| 1);
        self.events[home].extend(turn.own);
        if let (true, Some(joining)) = (turn.is_lost, &mut self.joining) {
            joining.is_lost = true;
        }
        if let Some((key, signs)) = turn.fenced {
            self.events[home].push_back(BrokerEvent::Fenced { key });
            signs.iter().for_each(|sign| self.publish_sign(now, sign));
        }
        if turn.passed.is_some() {
            self.passed.insert(home);
        }
    }

    /// Has a fence published on the name of a home's connection.
    fn publish_fence(&mut self, now: u64, home: usize, key: u64) {
        if !self.kind.has_order {
            return self.publish_sign(now, &Sign::new(Kind::Fence, key, home));
        }
        self.parts[home].1 = Some(key);
        self.publish_probe(now, home, format!("{FENCE}{key:016x}").into_bytes());
    }

    fn publish_probe(&mut self, now: u64, home: usize, payload: Vec<u8>) {
        let probe = self.operations.names.probe(&self.uid, home);
        let arguments = vec![probe.into_bytes(), payload];
        let request = Request::Plain { name: self.operations.names.publish_command(), arguments };
        let queued = Queued { home, request, awaited: Awaited::Nothing, since: now };
        self.commands.queue.push_back(queued);
    }

    /// A fence has come by the connection of a home.
    fn fence_arrives(&mut self, home: usize, key: u64) {
        let (part, awaited) = &mut self.parts[home];
        match part {
            Part::Behind => {
                if self.joining.as_ref().is_some_and(|joining| joining.key == key) {
                    *part = Part::All;
                }
            }
            Part::All | Part::Before { is_fenced: false, .. } if *awaited == Some(key) => {
                let fenced = Part::Before { held: Vec::new(), is_fenced: true };
                if let Part::Before { held, .. } = std::mem::replace(part, fenced) {
                    self.events[home].extend(held);
                }
                self.events[home].push_back(BrokerEvent::Fenced { key });
            }
            Part::All | Part::Before { .. } | Part::Divided(..) => {}
        }
    }

    /// A message for a home, as far as it is this process's.
    fn admit(&mut self, home: usize, (channel, payload): (&str, &[u8]), event: BrokerEvent) {
        match &mut self.parts[home].0 {
            Part::All => self.events[home].push_back(event),
            Part::Behind => {}
            Part::Before { held, .. } => held.push(event),
            Part::Divided(seam, _) => seam.add(digest(channel, "", 0, payload), event),
        }
    }

    /// The connection of a home is lost: its fence may be lost with it.
    fn lose_fence(&mut self, home: usize) {
        let is_lost = match &mut self.parts[home].0 {
            Part::Behind => true,
            Part::Divided(seam, _) => {
                let (held, is_lost) = seam.cut();
                self.events[home].extend(held);
                is_lost
            }
            Part::All | Part::Before { .. } => false,
        };
        if let (true, Some(joining)) = (is_lost, &mut self.joining) {
            joining.is_lost = true;
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.figures.entry(what).or_default() += 1;
    }

    fn tell_all(&mut self, event: &BrokerEvent) {
        self.events.iter_mut().for_each(|events| events.push_back(event.clone()));
    }

    fn fresh_epoch(&mut self) -> Epoch {
        Epoch::new(&mut self.rng)
    }

    /// A command of a home, as a run with a sabotage passes it on.
    pub(crate) fn take(&mut self, now: u64, home: usize, command: Command) {
        let (sabotage, one) = (self.sabotage, self.rng.one_in(10));
        match command {
            Command::Presence(_) if sabotage == Some(Sabotage::DropPresence) && one => {}
            Command::Unlisten { .. } if sabotage == Some(Sabotage::DropUnlisten) => {}
            Command::Publish(of) if sabotage == Some(Sabotage::ForgetPublication) && one => {
                let (ticket, position) = (of.ticket, Position { offset: 0, epoch: None });
                self.events[home].push_back(BrokerEvent::Published { ticket, position });
            }
            Command::Publish(of)
                if sabotage == Some(Sabotage::StoreTwice)
                    && of.options.kept()
                    && !of.idempotency_key.is_empty() =>
            {
                let mut without = of.clone();
                without.idempotency_key = CompactString::default();
                self.command(now, home, Command::Publish(without));
                self.command(now, home, Command::Publish(of));
            }
            command => {
                if sabotage == Some(Sabotage::ReadTwice) {
                    self.check_read(now, &command);
                }
                self.check_read(now, &command);
                self.command(now, home, command);
            }
        }
    }

    /// A line has one read open at most; one that it has given up may be there beside it. Clients read
    /// backwards from an offset, or forwards from the beginning, and lines don't.
    fn check_read(&mut self, now: u64, command: &Command) {
        let (ticket, channel) = match command {
            Command::Read { ticket, channel, page, .. } if page.reverse != page.since.is_some() => {
                (ticket, channel)
            }
            Command::Renew { ticket, channel, .. } => (ticket, channel),
            // The line that had it is forgotten.
            Command::Unlisten { channel } => {
                return self.reads.retain(|_, (of, _)| of != channel);
            }
            _ => return,
        };
        self.count("reads_of_lines");
        self.reads.retain(|_, (_, since)| now < *since + 5_000);
        // One that the line sent before it knew of an interruption, or of a lost broker, is of no use to it.
        let of_channel = self.interrupted.get(channel).copied().unwrap_or_default();
        let useless_until = of_channel.max(self.begun) + 1_000;
        if self.reads.values().any(|(of, since)| of == channel && *since > useless_until) {
            let text = format!("{channel} has two reads open");
            self.broken.get_or_insert((Rule::Reads, text));
        }
        self.reads.insert(*ticket, (channel.clone(), now));
    }

    /// Takes the events for a home. Publications that find no room are dropped, and their channels begin anew.
    pub(crate) fn events_of(&mut self, now: u64, home: usize) -> Vec<BrokerEvent> {
        let mut events = Vec::new();
        for event in self.events[home].drain(..) {
            match &event {
                BrokerEvent::Delivered(of) => {
                    let key = (home, of.channel.clone());
                    if now < self.full_until || self.missed.contains(&key) {
                        self.missed.insert(key);
                        continue;
                    }
                }
                BrokerEvent::Listening { channel } | BrokerEvent::Interrupted { channel } => {
                    self.missed.remove(&(home, channel.clone()));
                    // The answer to a read from before that is of no use to the line.
                    self.reads.retain(|_, (of, _)| of != channel);
                    self.interrupted.insert(channel.clone(), now);
                }
                BrokerEvent::History { ticket, .. } | BrokerEvent::Failed { ticket, .. } => {
                    self.reads.remove(ticket);
                }
                BrokerEvent::Connected | BrokerEvent::Lost => {
                    self.missed.retain(|(of, _)| *of != home);
                    self.reads.clear();
                    self.begun = now;
                }
                _ => {}
            }
            events.push(event);
        }
        if now >= self.full_until {
            for (_, channel) in self.missed.extract_if(.., |(of, _)| *of == home) {
                self.reads.retain(|_, (of, _)| *of != channel);
                self.interrupted.insert(channel.clone(), now);
                events.push(BrokerEvent::Interrupted { channel: channel.clone() });
                events.push(BrokerEvent::Listening { channel });
            }
        }
        events
    }

    fn command(&mut self, now: u64, home: usize, command: Command) {
        match command {
            Command::Listen { channel } => {
                self.pubsub[home].listen(channel, &mut self.events[home])
            }
            Command::Unlisten { channel } => self.pubsub[home].unlisten(&channel),
            Command::Hold => match &mut self.parts[home].0 {
                part @ Part::All => *part = Part::Before { held: Vec::new(), is_fenced: false },
                Part::Divided(seam, _) => seam.hold(),
                Part::Behind | Part::Before { .. } => {}
            },
            Command::Fence { key } => self.publish_fence(now, home, key),
            Command::Resume => {
                let held = match std::mem::take(&mut self.parts[home]).0 {
                    Part::Before { held, .. } => held,
                    Part::Divided(mut seam, _) => seam.resume().0,
                    Part::All | Part::Behind => Vec::new(),
                };
                self.events[home].extend(held);
            }
            command => {
                let is_full = self.commands.queue.len() >= self.queue_max;
                if is_full {
                    self.count("queue_full");
                }
                let is_away = self.commands.conn.is_none() || self.commands.making_until.is_some();
                let is_refused = is_away && !self.kind.keeps_commands;
                if !self.commands.is_up || is_full || is_refused {
                    self.events[home].extend(ticket(&command).map(failed));
                    return;
                }
                let command = self.kind.command(command);
                let entries = match &command {
                    Command::Presence(of) => self.operations.entries_of_update(&self.uid, of),
                    _ => Vec::new(),
                };
                let epoch = self.fresh_epoch();
                let fresh = Fresh { now_ms: self.clock + now, epoch: epoch.as_str() };
                let queue = &mut self.commands.queue;
                queue.extend(entries.into_iter().map(|request| Queued {
                    home,
                    request,
                    awaited: Awaited::Nothing,
                    since: now,
                }));
                let made = self.operations.requests(command, fresh, |request, awaited| {
                    queue.push_back(Queued { home, request, awaited, since: now });
                });
                if let Err(Some(event)) = made {
                    self.events[home].push_back(event);
                }
            }
        }
    }

    /// A node is taken for dead: its entries of presence are removed.
    pub(crate) fn take_entries(&mut self, now: u64, uid: &str) {
        if self.commands.is_up {
            let (request, awaited) = self.operations.take_entries(uid);
            self.commands.queue.push_back(Queued { home: 0, request, awaited, since: now });
        }
    }

    /// Others have taken this node for dead, and it hears of it.
    pub(crate) fn entries_removed(&mut self) {
        self.tell_all(&BrokerEvent::EntriesRemoved);
    }

    /// When there is something to do without a command.
    pub(crate) fn next_at(&self, redis: &Redis) -> Option<u64> {
        let of = &self.commands;
        let full = if self.missed.is_empty() { u64::MAX } else { self.full_until };
        let mut all = vec![full];
        all.push(match (of.conn, of.making_until) {
            (None, _) => of.retry_at,
            (Some(conn), Some(until)) => redis.readable_at(conn).unwrap_or(u64::MAX).min(until),
            (Some(conn), None) => {
                let late = of
                    .sent
                    .front()
                    .map_or(of.idle_since + IDLE_MS, |first| first.since + IO_TIMEOUT_MS);
                let room = of.sent.len() < WINDOW && !of.queue.is_empty();
                let readable = redis.readable_at(conn).unwrap_or(u64::MAX);
                if room { 0 } else { late.min(readable) }
            }
        });
        for of in &self.pubsub {
            all.push(match of.conn {
                None => of.retry_at,
                Some(_) if of.is_ready && of.has_changes() => 0,
                Some(conn) => redis.readable_at(conn).unwrap_or(u64::MAX).min(of.probe_at),
            });
        }
        all.into_iter().min()
    }

    /// Does what is due.
    pub(crate) fn step(&mut self, now: u64, redis: &mut Redis) {
        self.step_commands(now, redis);
        for home in 0..self.pubsub.len() {
            self.step_pubsub(now, redis, home);
        }
    }

    fn step_commands(&mut self, now: u64, redis: &mut Redis) {
        let Some(conn) = self.commands.conn else {
            if now >= self.commands.retry_at {
                self.connect(now, redis);
            }
            return;
        };
        if let Some(until) = self.commands.making_until {
            if redis.reply(now, conn).is_some() {
                self.connected(now);
            } else if !redis.is_open(conn) || now >= until {
                redis.give_up(conn);
                self.commands.conn = None;
                self.unreachable(now);
            }
            return;
        }
        while let Some(reply) = redis.reply(now, conn) {
            self.commands.idle_since = now;
            let Some(queued) = self.commands.sent.pop_front() else { continue };
            if !self.settle(now, queued, reply) {
                return self.cut(now, redis, conn);
            }
        }
        let is_late =
            self.commands.sent.front().is_some_and(|first| now >= first.since + IO_TIMEOUT_MS);
        if is_late {
            self.count("io_timeouts");
        }
        if is_late || !redis.is_open(conn) {
            return self.cut(now, redis, conn);
        }
        if self.commands.sent.is_empty()
            && self.commands.queue.is_empty()
            && now >= self.commands.idle_since + IDLE_MS
        {
            let request = Request::Plain { name: "PING", arguments: vec![] };
            let queued = Queued { home: 0, request, awaited: Awaited::Nothing, since: now };
            self.commands.queue.push_back(queued);
        }
        while self.commands.sent.len() < WINDOW
            && let Some(mut queued) = self.commands.queue.pop_front()
        {
            if now >= queued.since + IO_TIMEOUT_MS {
                self.fail(&queued);
                continue;
            }
            // The time for its reply begins now.
            queued.since = now;
            redis.request(now, conn, queued.request.clone());
            self.commands.sent.push_back(queued);
        }
    }

    fn fail(&mut self, queued: &Queued) {
        self.events[queued.home].extend(queued.awaited.failed(FailureCause::Unavailable));
    }

    fn connect(&mut self, now: u64, redis: &mut Redis) {
        let Some(conn) = redis.connect(now, self.node, false) else {
            return self.unreachable(now);
        };
        // As the scripts are loaded.
        redis.request(now, conn, Request::Plain { name: "PING", arguments: vec![] });
        self.commands.conn = Some(conn);
        self.commands.making_until = Some(now + CONNECT_TIMEOUT_MS);
    }

    fn connected(&mut self, now: u64) {
        self.commands.making_until = None;
        self.commands.attempts = 0;
        self.commands.idle_since = now;
        if !std::mem::replace(&mut self.commands.is_up, true) {
            self.tell_all(&BrokerEvent::Connected);
            self.count("connected");
        }
    }

    /// An attempt to connect failed: nothing waits for the next one.
    fn unreachable(&mut self, now: u64) {
        self.commands.making_until = None;
        self.commands.retry_at = now + pause(&mut self.rng, &mut self.commands.attempts);
        while let Some(queued) = self.commands.queue.pop_front() {
            self.fail(&queued);
        }
        if std::mem::take(&mut self.commands.is_up) {
            self.count("lost");
            self.pubsub.iter_mut().for_each(PubSub::forget);
            (0..self.pubsub.len()).for_each(|home| self.lose_fence(home));
            self.tell_all(&BrokerEvent::Lost);
        }
    }

    /// The connection is lost: what was sent fails, and what waits is sent by the next one.
    fn cut(&mut self, now: u64, redis: &mut Redis, conn: ConnId) {
        redis.give_up(conn);
        self.commands.conn = None;
        self.commands.retry_at = now;
        self.count("replies_lost");
        while let Some(queued) = self.commands.sent.pop_front() {
            self.fail(&queued);
        }
        if !self.kind.keeps_commands {
            while let Some(queued) = self.commands.queue.pop_front() {
                self.fail(&queued);
            }
        }
        if !self.kind.has_apart {
            // They are one connection.
            self.pubsub.iter().filter_map(|of| of.conn).for_each(|conn| redis.give_up(conn));
        }
    }

    /// What a reply means. False when the connection is useless.
    fn settle(&mut self, now: u64, queued: Queued, reply: Reply) -> bool {
        let epoch = self.fresh_epoch();
        let fresh = Fresh { now_ms: self.clock + now, epoch: epoch.as_str() };
        let Queued { home, awaited, .. } = queued;
        match self.operations.settle(awaited, reply, fresh) {
            Settled::Nothing => {}
            Settled::Event(event) => self.events[home].push_back(self.kind.event(event)),
            Settled::Again(request, awaited) => {
                self.commands.queue.push_front(Queued { home, request, awaited, since: now });
            }
            Settled::Several(event, requests) => {
                let kind = self.kind;
                self.events[home].extend(event.into_iter().map(|event| kind.event(event)));
                self.commands.queue.extend(requests.into_iter().map(|(request, awaited)| Queued {
                    home,
                    request,
                    awaited,
                    since: now,
                }));
            }
            Settled::Faulty(event, text) => {
                self.count("errors");
                assert!(!text.contains("attempt to"), "a script is wrong: {text}");
                self.events[home].extend(event);
            }
        }
        true
    }

    fn step_pubsub(&mut self, now: u64, redis: &mut Redis, home: usize) {
        let of = &mut self.pubsub[home];
        let probe = self.operations.names.probe(&self.uid, home);
        let Some(conn) = of.conn else {
            if now < of.retry_at {
                return;
            }
            match redis.connect(now, self.node, true) {
                None => of.retry_at = now + pause(&mut self.rng, &mut of.attempts),
                Some(conn) => {
                    of.conn = Some(conn);
                    (of.is_ready, of.unanswered, of.heard) = (false, 0, now);
                    of.probe_at = now + PROBE_MS;
                    redis.change(now, conn, vec![probe], true);
                }
            }
            return;
        };
        while let Some(push) = redis.push(now, conn) {
            self.pubsub_push(now, home, &probe, push);
        }
        self.end_turn(now, home);
        let of = &mut self.pubsub[home];
        let mut ends = !redis.is_open(conn);
        if now >= of.probe_at {
            of.probe_at = now + PROBE_MS;
            ends |= of.unanswered >= 2 && now > of.heard + PROBE_MS;
            if self.commands.is_up {
                of.unanswered += 1;
                let name = self.operations.names.publish_command();
                let arguments = vec![probe.into_bytes(), b"probe".into()];
                let request = Request::Plain { name, arguments };
                let queued = Queued { home, request, awaited: Awaited::Nothing, since: now };
                self.commands.queue.push_back(queued);
            }
        }
        if ends {
            redis.give_up(conn);
            of.conn = None;
            of.retry_at = now + pause(&mut self.rng, &mut of.attempts);
            of.interrupt(&mut self.events[home]);
            self.lose_fence(home);
            self.count("interrupted");
            if let Some(conn) = self.commands.conn.filter(|_| !self.kind.has_apart)
                && self.commands.making_until.is_none()
            {
                self.cut(now, redis, conn);
            }
            return;
        }
        if of.is_ready {
            let names = &self.operations.names;
            for (names, is_on) in of.changes(|channel| names.messages(channel)) {
                redis.change(now, conn, names, is_on);
            }
        }
    }

    fn pubsub_push(&mut self, now: u64, home: usize, probe: &str, push: Push) {
        let of = &mut self.pubsub[home];
        of.heard = now;
        match push {
            Push::Changed { names, .. } if names == [probe] => {
                (of.is_ready, of.attempts) = (true, 0)
            }
            Push::Changed { names, is_on } => {
                for name in &names {
                    let channel = self.operations.names.channel_of(name.as_bytes()).unwrap();
                    of.changed(channel, is_on, &mut self.events[home]);
                }
            }
            Push::Message { name, payload, .. } if name == probe => {
                of.unanswered = 0;
                if let (Part::Divided(_, signs), Some(sign)) =
                    (&mut self.parts[home].0, payload.strip_prefix(SIGN))
                {
                    return signs.extend(Sign::read(sign));
                }
                let text = std::str::from_utf8(&payload).unwrap_or_default();
                let key =
                    text.strip_prefix(FENCE).and_then(|key| u64::from_str_radix(key, 16).ok());
                if let Some(key) = key {
                    self.fence_arrives(home, key);
                }
            }
            Push::Message { name, payload, .. } => {
                let channel = self.operations.names.channel_of(name.as_bytes()).unwrap();
                match self.operations.message(channel, &payload) {
                    Ok(event) => {
                        let (channel, event) = (channel.to_owned(), self.kind.event(event));
                        self.admit(home, (&channel, &payload), event);
                    }
                    Err(_) => self.count("malformed"),
                }
            }
        }
    }

    /// Channels that are subscribed or are to be, of a home.
    pub(crate) fn listened(&self, home: usize) -> impl Iterator<Item = &str> {
        self.pubsub[home].wishes.keys().map(CompactString::as_str)
    }

    /// The process ends: connections close.
    pub(crate) fn end(&mut self, redis: &mut Redis) {
        let conns = self.pubsub.iter().map(|of| of.conn).chain([self.commands.conn]);
        conns.flatten().for_each(|conn| redis.give_up(conn));
    }
}

impl PubSub {
    fn listen(&mut self, channel: CompactString, events: &mut VecDeque<BrokerEvent>) {
        let off = Wish { wished: false, actual: Actual::Off };
        let wish = self.wishes.entry(channel.clone()).or_insert(off);
        wish.wished = true;
        if wish.actual == Actual::On {
            events.push_back(BrokerEvent::Listening { channel });
        }
    }

    fn unlisten(&mut self, channel: &str) {
        let Some(wish) = self.wishes.get_mut(channel) else { return };
        wish.wished = false;
        if wish.actual == Actual::Off {
            self.wishes.remove(channel);
        }
    }

    /// The broker is lost to the home: it begins anew with all of its wishes.
    fn forget(&mut self) {
        self.wishes.clear();
        // The connection is made anew, too: what is on its way is for nobody.
        (self.probe_at, self.unanswered, self.heard) = (0, 2, 0);
    }

    fn has_changes(&self) -> bool {
        self.wishes.values().any(|wish| {
            matches!((wish.wished, wish.actual), (true, Actual::Off) | (false, Actual::On))
        })
    }

    /// The next names to subscribe and to unsubscribe.
    fn changes(&mut self, name: impl Fn(&str) -> String) -> Vec<(Vec<String>, bool)> {
        let (mut on, mut off) = (Vec::new(), Vec::new());
        for (channel, wish) in &mut self.wishes {
            match (wish.wished, wish.actual) {
                (true, Actual::Off) => on.push(name(channel)),
                (false, Actual::On) => off.push(name(channel)),
                _ => continue,
            }
            wish.actual = Actual::Changing;
        }
        [(on, true), (off, false)].into_iter().filter(|(names, _)| !names.is_empty()).collect()
    }

    fn changed(&mut self, channel: &str, is_on: bool, events: &mut VecDeque<BrokerEvent>) {
        let Some(wish) = self.wishes.get_mut(channel) else { return };
        wish.actual = if is_on { Actual::On } else { Actual::Off };
        match (wish.wished, is_on) {
            (true, true) => {
                events.push_back(BrokerEvent::Listening { channel: channel.into() });
            }
            (false, false) => drop(self.wishes.remove(channel)),
            _ => {}
        }
    }

    /// The connection is lost.
    fn interrupt(&mut self, events: &mut VecDeque<BrokerEvent>) {
        self.wishes.retain(|_, wish| wish.wished);
        for (channel, wish) in &mut self.wishes {
            if std::mem::replace(&mut wish.actual, Actual::Off) == Actual::On {
                events.push_back(BrokerEvent::Interrupted { channel: channel.clone() });
            }
        }
    }
}
