//! The agents of a run, as the coordinator has them: connections, orders, figures.
//!
//! ```text
//!  Party: connections that are proved, with clocks --Start--> Agents
//!    order:  at = now + lead, for all at the same moment of the run, by the clock of each
//!    reader: one thread for each agent: status -> Seen, slices -> Recorder
//! ```
//! An agent that goes takes its connections along, and the others go on; the report says so.

use super::agent::SILENCE_MAX;
use super::clock::{Clock, ClockReport};
use super::figures::{self, Latency, Sum, Tally, merge};
use super::flags::Flags;
use super::hands::Finished;
use super::host::Usage;
use super::output::plain;
use super::pace::Segment;
use super::plan::{Place, Plan, Room};
use super::report::{AgentReport, Client, Summary, round};
use super::series::{AgentSecond, Slice};
use super::wire::{
    self, Claim, FRAME_BYTES_MAX, FromAgent, Greeting, HELLO_BYTES_MAX, Offer, PORT, PROTOCOL,
    Side, Start, ToAgent, Token, Welcome,
};
use super::worker::Order;
use crossbeam_channel::Sender;
use std::io;
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long an agent may take to answer before the run.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// How long an agent may be busy with the run before.
const BUSY_MAX: Duration = Duration::from_secs(3);

/// Exchanges about the clock before a run.
const EXCHANGES: u32 = 40;

/// How often agents are pinged.
const PING_EVERY: Duration = Duration::from_secs(1);

/// How often published messages are counted, while connections join.
const COUNT_EVERY: Duration = Duration::from_millis(100);

/// Time that an order has beside its way to the agent.
const SLACK: Duration = Duration::from_millis(10);

/// The connection to an agent that has proved itself.
pub(crate) struct Link {
    name: String,
    stream: TcpStream,
    offer: Offer,
    clock: Clock,
    /// Our clock for this agent.
    base: Instant,
    /// The time of day at that moment, nanoseconds since 1970.
    day_ns: u64,
}

impl Link {
    /// Connects, and estimates the clock.
    ///
    /// # Errors
    /// Text for the user.
    fn open(name: &str, token: &Token) -> Result<Self, String> {
        let until = Instant::now() + BUSY_MAX;
        loop {
            match Self::try_open(name, token) {
                // The run before this one may be about to end.
                Err(fault) if fault.starts_with("busy") && Instant::now() < until => {
                    std::thread::sleep(SLACK);
                }
                result => return result,
            }
        }
    }

    fn try_open(name: &str, token: &Token) -> Result<Self, String> {
        let fault = |error: io::Error| plain(&error);
        let found = match name.to_socket_addrs() {
            Ok(found) => found,
            Err(_) => (name, PORT).to_socket_addrs().map_err(fault)?,
        };
        let mut stream = Err("no such host".to_owned());
        for address in found {
            stream = TcpStream::connect_timeout(&address, CONNECT_MAX).map_err(fault);
            if stream.is_ok() {
                break;
            }
        }
        let stream = stream?;
        stream.set_nodelay(true).map_err(fault)?;
        stream.set_read_timeout(Some(CONNECT_MAX)).map_err(fault)?;
        stream.set_write_timeout(Some(CONNECT_MAX)).map_err(fault)?;
        let offer = prove(&stream, token)?;
        let day = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (base, day_ns) = (Instant::now(), day.as_nanos() as u64);
        let name = name.to_owned();
        let mut link = Self { name, stream, offer, clock: Clock::default(), base, day_ns };
        link.compare_clocks().map_err(|error| format!("the clock: {}", plain(&error)))?;
        Ok(link)
    }

    fn now_ns(&self) -> u64 {
        self.base.elapsed().as_nanos() as u64
    }

    fn compare_clocks(&mut self) -> io::Result<()> {
        let until = self.base + CONNECT_MAX / 5;
        for _ in 0..EXCHANGES {
            wire::write(&mut &self.stream, &ToAgent::Ping { sent_ns: self.now_ns() })?;
            if let FromAgent::Pong { sent_ns, clock } =
                wire::read(&mut &self.stream, HELLO_BYTES_MAX)?
            {
                self.clock.note(sent_ns, self.now_ns(), self.day_ns, clock);
            }
            if Instant::now() > until {
                break;
            }
        }
        self.clock.begin();
        Ok(())
    }
}

/// Proves both sides to each other.
fn prove(stream: &TcpStream, token: &Token) -> Result<Offer, String> {
    let (mut from, mut to) = (stream, stream);
    let none = |_| "nothing there that greets as an agent does".to_owned();
    let greeting: Greeting = wire::read(&mut from, HELLO_BYTES_MAX).map_err(none)?;
    let own = env!("CARGO_PKG_VERSION");
    if greeting.protocol != PROTOCOL || greeting.version != own {
        return Err(format!("it is version {}, and this is {own}", greeting.version));
    }
    let nonce = wire::nonce().map_err(|error| plain(&error))?;
    let proof = token.prove(Side::Controller, &greeting.nonce, &nonce);
    let claim = Claim { protocol: PROTOCOL, version: own.to_owned(), nonce, proof };
    wire::write(&mut to, &claim).map_err(|error| plain(&error))?;
    match wire::read(&mut from, HELLO_BYTES_MAX).map_err(|error| plain(&error))? {
        Welcome::Refused(reason) => Err(reason),
        Welcome::Accepted(offer) => {
            match token.is_proved(Side::Agent, &greeting.nonce, &nonce, &offer.proof) {
                true => Ok(*offer),
                false => Err("it does not have the token".to_owned()),
            }
        }
    }
}

/// The agents that answer, before a run.
pub(crate) struct Party {
    links: Vec<Link>,
    /// Agents that don't, and why.
    missing: Vec<(String, String)>,
    /// The flags as agents get them.
    flags: Flags,
    pub(crate) room: Room,
}

impl Party {
    /// Connects to the agents that flags name; nothing without any.
    ///
    /// # Errors
    /// None answers, or a file can't be read: text for the user.
    pub(crate) fn gather(flags: &Flags) -> Result<Option<Self>, String> {
        if flags.agents.is_empty() {
            return Ok(None);
        }
        let text = flags.token.clone().unwrap_or_default();
        super::agent::check_token(&text)?;
        let packed = super::plan::pack(flags).map_err(|error| error.to_string())?;
        let token = Token::new(&text);
        let opened: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = flags
                .agents
                .iter()
                .map(|name| (name, scope.spawn(|| Link::open(name, &token))))
                .collect();
            let ended = threads.into_iter().map(|(name, thread)| {
                (name.clone(), thread.join().unwrap_or_else(|_| Err("a thread panicked".into())))
            });
            ended.collect()
        });
        let (mut links, mut missing) = (Vec::new(), Vec::new());
        for (name, result) in opened {
            match result {
                Ok(link) => links.push(link),
                Err(fault) => missing.push((name, fault)),
            }
        }
        let offers = links.iter().map(|link| &link.offer);
        let Some(descriptors) = offers.clone().map(|of| of.descriptors).min() else {
            let faults = missing.iter().map(|(name, fault)| format!("agent {name}: {fault}"));
            return Err(faults.collect::<Vec<_>>().join("; "));
        };
        let processors = offers.map(|of| of.machine.processors).max().unwrap_or(1);
        let room = Room { descriptors, processors, machines: links.len() };
        Ok(Some(Self { links, missing, flags: packed, room }))
    }
}

/// State of an agent while it runs.
struct Seen {
    sum: Sum,
    usage: Usage,
    clock: Clock,
    latency: Latency,
    started: Option<u32>,
    publishers: Option<Option<String>>,
    count: Option<(u64, Vec<u32>)>,
    sent: Option<Vec<u32>>,
    tally: Option<Box<Tally>>,
    /// Why it is gone.
    fault: Option<String>,
}

/// [`Seen`], and who waits for it to change.
struct Shared {
    seen: Mutex<Seen>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `done`, or until the agent is gone.
    fn wait(&self, done: impl Fn(&Seen) -> bool) -> MutexGuard<'_, Seen> {
        let seen = self.lock();
        let wait = |seen: &mut Seen| !done(seen) && seen.fault.is_none();
        self.changed.wait_while(seen, wait).unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self, fault: &str) {
        let mut seen = self.lock();
        // An agent that has said everything may go.
        if seen.fault.is_none() && seen.tally.is_none() {
            seen.fault = Some(fault.to_owned());
            seen.sum.abandon();
        }
        drop(seen);
        self.changed.notify_all();
    }
}

/// An agent that takes part.
struct Member {
    name: String,
    stream: TcpStream,
    offer: Offer,
    base: Instant,
    shared: Arc<Shared>,
}

impl Member {
    fn send(&self, word: &ToAgent) {
        if !self.is_gone()
            && let Err(error) = wire::write(&mut &self.stream, word)
        {
            self.shared.lose(&plain(&error));
        }
    }

    fn is_gone(&self) -> bool {
        self.shared.lock().fault.is_some()
    }
}

/// See the module.
pub(super) struct Agents {
    plan: Arc<Plan>,
    origin: Instant,
    members: Vec<Member>,
    missing: Vec<(String, String)>,
    lead: Duration,
    pinged: Instant,
    counted: Instant,
    /// Counts of published messages are on their way here.
    is_counting: bool,
    /// Orders besides those of the coordinator.
    own_orders: u64,
}

impl Agents {
    /// Begins a run with the agents that answered.
    pub(super) fn start(
        plan: &Arc<Plan>,
        party: Party,
        origin: Instant,
        slices: &Sender<Slice>,
    ) -> Self {
        let Party { links, missing, flags, room } = party;
        let slowest = links.iter().map(|link| link.clock.one_way_ns()).max().unwrap_or_default();
        let mut members = Vec::new();
        for (machine, link) in links.into_iter().enumerate() {
            let place = Place { machine, machines: room.machines };
            let here_ns = origin.saturating_duration_since(link.base).as_nanos() as u64;
            let origin_ns = link.clock.there_ns(here_ns);
            let start = Start { flags: flags.clone(), room, place, run: plan.run, origin_ns };
            let member = join(link, slices.clone());
            member.send(&ToAgent::Start(Box::new(start)));
            members.push(member);
        }
        let own = |machine| plan.connections_of(machine);
        for (machine, member) in members.iter().enumerate() {
            let started = member.shared.wait(|seen| seen.started.is_some()).started;
            if started.is_some_and(|count| count != own(machine)) {
                member.shared.lose("it makes another plan of the same scenario");
            }
        }
        let now = Instant::now();
        Self {
            plan: Arc::clone(plan),
            origin,
            members,
            missing,
            lead: Duration::from_nanos(slowest * 2) + SLACK,
            pinged: now,
            counted: now,
            is_counting: false,
            own_orders: 0,
        }
    }

    pub(super) fn lead(&self) -> Duration {
        self.lead
    }

    pub(super) fn is_gone(&self) -> bool {
        self.members.iter().all(Member::is_gone)
    }

    fn send(&self, word: &ToAgent) {
        self.members.iter().for_each(|member| member.send(word));
    }

    pub(super) fn order(&self, at: Duration, order: impl Fn(usize) -> Order) {
        let at = at.max(self.origin.elapsed() + self.lead);
        let at_ns = at.as_nanos() as u64;
        for (machine, member) in self.members.iter().enumerate() {
            let orders = self.plan.threads_of(machine).map(&order).collect();
            member.send(&ToAgent::Order { at_ns, orders });
        }
    }

    pub(super) fn sum(&self) -> Sum {
        let mut sum = Sum::none();
        self.members.iter().for_each(|member| sum.add(&member.shared.lock().sum));
        sum.order = sum.order.saturating_sub(self.own_orders);
        sum
    }

    pub(super) fn usage(&self) -> Usage {
        let mut all = Usage::default();
        for member in &self.members {
            let of = member.shared.lock().usage;
            all.rss_bytes += of.rss_bytes;
            all.cpu_s += of.cpu_s;
        }
        all
    }

    pub(super) fn seconds(&self) -> Vec<AgentSecond> {
        let of = self.members.iter().map(|member| {
            let sum = member.shared.lock().sum;
            let sent = sum.sent + sum.published;
            AgentSecond { open: sum.open, sent, received: sum.received }
        });
        of.collect()
    }

    /// Keeps agents company, and tells each what the others have published where somebody has to know.
    pub(super) fn tend(&mut self) {
        if self.pinged.elapsed() >= PING_EVERY {
            self.pinged = Instant::now();
            for member in &self.members {
                member.send(&ToAgent::Ping { sent_ns: member.base.elapsed().as_nanos() as u64 });
            }
        }
        if self.is_counting {
            self.spread_counts();
        } else if self.counted.elapsed() >= COUNT_EVERY {
            self.counted = Instant::now();
            let joining: u64 = self.members.iter().map(|of| of.shared.lock().sum.joining).sum();
            if joining > 0 {
                self.is_counting = true;
                self.members.iter().for_each(|of| of.shared.lock().count = None);
                self.send(&ToAgent::Count);
            }
        }
    }

    /// Once every agent has said what it has published: all of it, to all.
    fn spread_counts(&mut self) {
        let mut all = vec![0; self.plan.channels.len().max(1)];
        let mut at_ns = u64::MAX;
        for member in &self.members {
            let seen = member.shared.lock();
            match &seen.count {
                Some((at, counts)) => {
                    at_ns = at_ns.min(*at);
                    all.iter_mut().zip(counts).for_each(|(all, one)| *all += one);
                }
                None if seen.fault.is_none() => return,
                None => {}
            }
        }
        self.is_counting = false;
        self.own_orders += 1;
        self.send(&ToAgent::Counted { at_ns, counts: all });
    }

    pub(super) fn open_publishers(&self) -> Option<String> {
        self.send(&ToAgent::OpenPublishers);
        let mut first = None;
        for member in &self.members {
            let seen = member.shared.wait(|seen| seen.publishers.is_some());
            let fault = seen.publishers.clone().flatten();
            if let (None, Some(fault)) = (&first, fault) {
                first = Some(format!("{fault} (agent {})", member.name));
            }
        }
        first
    }

    pub(super) fn start_publishing(&self, segment: Segment, first: u32) {
        self.send(&ToAgent::Publish { segment, first });
    }

    pub(super) fn stop_publishing(&self) {
        self.send(&ToAgent::StopPublishing);
    }

    /// Messages that all have sent, by channel. The count of an agent that is gone is not known: of its channels only
    /// gaps count.
    fn end_publishers(&self) -> Vec<u32> {
        self.send(&ToAgent::EndPublishers);
        let mut sent = vec![0; self.plan.channels.len().max(1)];
        for member in &self.members {
            let seen = member.shared.wait(|seen| seen.sent.is_some());
            let own = seen.sent.as_deref().unwrap_or_default();
            sent.iter_mut().zip(own).for_each(|(all, one)| *all += one);
        }
        sent
    }

    pub(super) fn finish(&mut self, span_s: f64) -> Finished {
        let sent = self.end_publishers();
        self.send(&ToAgent::Finish { sent });
        let mut finished = Finished {
            tally: Tally::default(),
            bottleneck: None,
            agents: Vec::new(),
            troubles: Vec::new(),
        };
        for (name, fault) in &self.missing {
            finished.troubles.push(format!("agent {name}: {fault}: it took no part"));
        }
        for (machine, member) in self.members.iter().enumerate() {
            let seen = member.shared.wait(|seen| seen.tally.is_some());
            if let Some(fault) = &seen.fault {
                let gone = format!("agent {}: {fault}: its part was not judged", member.name);
                finished.troubles.push(gone);
            }
            let report = self.report_of(machine, member, &seen, span_s);
            finished.bottleneck = finished.bottleneck.or(report.bottleneck);
            finished.agents.push(report);
            seen.tally.iter().for_each(|tally| finished.tally.merge(tally));
        }
        self.close();
        finished
    }

    fn report_of(&self, machine: usize, member: &Member, seen: &Seen, span_s: f64) -> AgentReport {
        let Seen { sum, usage, clock, latency, fault, .. } = seen;
        let plan = &self.plan;
        let publishers = plan.publishers_of(machine).count() as u32;
        let publishes = plan.phases.iter().any(|of| of.messages.is_some());
        let processors = member.offer.machine.processors;
        AgentReport {
            name: member.name.clone(),
            machine: member.offer.machine.clone(),
            connections: plan.connections_of(machine),
            share: round(plan.connections_of(machine) as f64 / f64::from(plan.connections)),
            publishers: if publishes { publishers } else { 0 },
            opened: sum.opened,
            failed: sum.failed,
            dropped: sum.dropped,
            sent: sum.sent + sum.published,
            received: sum.received,
            lost: seen.tally.as_ref().map(|of| of.lost),
            latency_us: Summary::of(latency),
            is_latency_corrected: publishes && publishers < plan.publishers,
            client: Client { rss_bytes: usage.rss_bytes, cpu_s: round(usage.cpu_s) },
            bottleneck: seen
                .tally
                .as_ref()
                .and_then(|of| super::run::bottleneck(of, span_s, processors)),
            clock: clock.report(),
            fault: fault.clone(),
        }
    }

    fn close(&self) {
        for member in &self.members {
            let _ = member.stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        self.close();
    }
}

/// How far latencies between agents may be off: that of two clocks. Nothing where none is between agents.
pub(super) fn uncertainty_us(agents: &[AgentReport]) -> Option<f64> {
    let mut errors: Vec<f64> = agents.iter().map(|of| ClockReport::error_us(&of.clock)).collect();
    errors.sort_by(f64::total_cmp);
    let is_corrected = agents.iter().any(|of| of.is_latency_corrected);
    is_corrected.then(|| round(errors.iter().rev().take(2).sum()))
}

/// The link of a run that begins, with a thread that reads it.
fn join(link: Link, slices: Sender<Slice>) -> Member {
    let Link { name, stream, offer, clock, base, day_ns } = link;
    let seen = Seen {
        sum: Sum { order: 0, finished: 0, ..Sum::default() },
        usage: Usage::default(),
        clock,
        latency: figures::latency(),
        started: None,
        publishers: None,
        count: None,
        sent: None,
        tally: None,
        fault: None,
    };
    let shared = Arc::new(Shared { seen: Mutex::new(seen), changed: Condvar::new() });
    let (known, from) = (Arc::clone(&shared), stream.try_clone());
    let read = move || match from {
        Ok(stream) => {
            let set = stream
                .set_read_timeout(Some(SILENCE_MAX))
                .and_then(|()| stream.set_write_timeout(Some(SILENCE_MAX)));
            let fault = match set {
                Ok(()) => read_all(&stream, &known, &slices, base, day_ns),
                Err(error) => error,
            };
            known.lose(&match fault.kind() {
                io::ErrorKind::UnexpectedEof => "it ended the connection".to_owned(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    format!("nothing came from it for {} s", SILENCE_MAX.as_secs())
                }
                _ => plain(&fault),
            });
        }
        Err(error) => known.lose(&plain(&error)),
    };
    let thread = std::thread::Builder::new().name("load-agents".to_owned()).spawn(read);
    if let Err(error) = thread {
        shared.lose(&plain(&error));
    }
    Member { name, stream, offer, base, shared }
}

/// Takes what an agent says, until it says no more. Returns why.
fn read_all(
    stream: &TcpStream,
    shared: &Shared,
    slices: &Sender<Slice>,
    base: Instant,
    day_ns: u64,
) -> io::Error {
    loop {
        let word = match wire::read(&mut &*stream, FRAME_BYTES_MAX) {
            Ok(word) => word,
            Err(error) => return error,
        };
        let mut seen = shared.lock();
        match word {
            FromAgent::Pong { sent_ns, clock } => {
                seen.clock.note(sent_ns, base.elapsed().as_nanos() as u64, day_ns, clock);
            }
            FromAgent::Started { connections } => seen.started = Some(connections),
            FromAgent::Status { .. } if seen.fault.is_some() => {}
            FromAgent::Status { sum, usage } => (seen.sum, seen.usage) = (sum, usage),
            FromAgent::Slice { second, latency } => {
                merge(&mut seen.latency, &latency);
                // Without a recorder nobody needs it.
                let _ = slices.send((second, latency));
            }
            FromAgent::PublishersOpen { fault } => seen.publishers = Some(fault),
            FromAgent::Count { at_ns, counts } => seen.count = Some((at_ns, counts)),
            FromAgent::PublishersEnded { sent } => seen.sent = Some(sent),
            FromAgent::Finished(tally) => seen.tally = Some(tally),
            FromAgent::Failed(reason) => {
                drop(seen);
                shared.lose(&reason);
                continue;
            }
        }
        drop(seen);
        shared.changed.notify_all();
    }
}
