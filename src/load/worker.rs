//! A thread of the load client: its loop over readiness, orders and deadlines.
//!
//! ```text
//!  coordinator --orders + waker--> [ orders | dial | send what is due | wait | read ] --> Live
//! ```

use super::conn::State;
use super::figures::{self, Busy, Live, Outcome};
use super::file::Role;
use super::fleet::Fleet;
use super::http::{self, UP_LINK};
use super::output::{OUTPUT_BYTES_MAX, plain};
use super::pace::Segment;
use super::plan::{EchoPace, Plan, Population, Share};
use super::series::Slice;
use super::speech::Memo;
use super::upgrade::Pauses;
use crate::base::form::Transport;
use crate::proto::tls::Opener;
use crate::proto::ws::{self, Event, Inflater, ReadRules};
use crate::sys::tables;
use crossbeam_channel::{Receiver, Sender};
use mio::event::Event as Readiness;
use mio::{Events, Poll, Token};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// The token of the thread's waker; connections have smaller ones.
pub(crate) const WAKER: Token = Token(usize::MAX);

/// Bytes read at once. One buffer for each thread, whatever it holds.
const BUFFER_BYTES: usize = 64 * 1024;

/// Bytes read from one connection before the others get their turn.
const TURN_BYTES_MAX: usize = 1 << 20;

/// Readiness events taken at once.
const EVENTS_MAX: usize = 512;

/// Messages of echo sent in one turn; what is due beyond that waits for the next.
const TURN_SENDS_MAX: u32 = 1024;

/// A wait that is shorter is done to the microsecond: epoll itself only knows milliseconds.
const PRECISE_WAIT: Duration = Duration::from_millis(20);

const SECOND_NS: u64 = 1_000_000_000;

/// How long to wait when nothing is due.
const IDLE_WAIT: Duration = Duration::from_millis(500);

/// The maximum of one message of a server.
const RULES: ReadRules =
    ReadRules { masked: false, deflate: false, message_bytes_max: http::BODY_BYTES_MAX };

/// The orders of the coordinator for a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Open the connections of the share up to this number, as soon as it goes or evenly over a time.
    OpenTo { target: u32, over: Duration },
    /// Close those behind this number, evenly over a time.
    CloseTo { target: u32, over: Duration },
    /// Close all of them and begin anew.
    CloseAll,
    /// Messages will be sent now: count processor time, and let the slow ones stop reading.
    Measure,
    /// Echo: send from now on, until that moment (nanoseconds since the origin).
    Echo { pace: EchoPace, until_ns: u64 },
    /// Connections leave and come back at this rate until that moment.
    Churn { rate: f64, until_ns: u64 },
    /// Nothing more is sent: the end of what [`Order::Measure`] began.
    Quiet,
    /// Drop the share of a storm.
    DropShare(f64),
    /// The server is replaced from now on: note the longest pause of each connection.
    WatchPauses,
    /// So many messages of each channel, or more, had left at that moment, by publishers of all machines.
    #[serde(skip)]
    Published { at_ns: u64, counts: Arc<[u32]> },
    /// Judge what came, given how many messages each channel had, and end.
    #[serde(skip)]
    Finish(Arc<[u32]>),
}

/// The parts of a worker; built by the coordinator before any table is unshared.
pub(crate) struct Worker {
    pub(crate) plan: Arc<Plan>,
    pub(crate) share: Share,
    pub(crate) origin: Instant,
    pub(crate) poll: Poll,
    pub(crate) orders: Receiver<Order>,
    pub(crate) live: Arc<Live>,
    /// Where the latencies of each second go.
    pub(crate) slices: Sender<Slice>,
}

impl Worker {
    /// Runs until [`Order::Finish`], or until the coordinator is gone.
    ///
    /// # Errors
    /// When the thread can't have its own table, or can't wait: text for the user.
    pub(crate) fn run(self) -> Result<Outcome, String> {
        tables::block_signals().map_err(|error| format!("blocking signals: {error}"))?;
        tables::unshare_files().map_err(|error| format!("a table of its own: {error}"))?;
        Running {
            fleet: Fleet::new(self.plan, self.share),
            origin: self.origin,
            poll: self.poll,
            orders: self.orders,
            live: self.live,
            slices: self.slices,
            tick_ns: SECOND_NS,
            pinging: None,
            memo: Memo::new(),
            inflater: Inflater::default(),
            buffer: vec![0; BUFFER_BYTES],
            unread: VecDeque::new(),
            pace: None,
            churn: None,
            busy_from: Busy::default(),
            busy: Busy::default(),
            lag: figures::latency(),
        }
        .run()
    }
}

struct Running {
    fleet: Fleet,
    origin: Instant,
    poll: Poll,
    orders: Receiver<Order>,
    live: Arc<Live>,
    slices: Sender<Slice>,
    /// When the current second ends.
    tick_ns: u64,
    /// The connection to be pinged next, and when.
    pinging: Option<(u32, f64)>,
    memo: Memo,
    inflater: Inflater,
    buffer: Vec<u8>,
    /// Connections that were not read to the end in their turn: no edge will tell of them again.
    unread: VecDeque<u32>,
    pace: Option<Pace>,
    churn: Option<Churn>,
    busy_from: Busy,
    busy: Busy,
    lag: figures::Latency,
}

/// The schedule of open-loop echo in one thread.
#[derive(Debug)]
struct Pace {
    segment: Segment,
    /// The next message; threads begin at different parts of one, so that they don't send at once.
    n: f64,
    until_ns: u64,
    /// The connections that echo, where not all do.
    indexes: Option<Vec<u32>>,
    /// The one whose turn it is.
    turn: u32,
}

impl Pace {
    fn next_ns(&self) -> u64 {
        self.segment.at_ns(self.n)
    }

    /// The connection whose turn it is, of `count`; the next message is another one's.
    fn take(&mut self, count: u32) -> Option<u32> {
        self.n += 1.0;
        let count = self.indexes.as_ref().map_or(count, |of| of.len() as u32);
        let turn = self.turn;
        self.turn = (turn + 1) % count.max(1);
        match &self.indexes {
            Some(indexes) => indexes.get(turn as usize).copied(),
            None => Some(turn),
        }
    }
}

/// Connections of one thread that leave and come back.
#[derive(Debug)]
struct Churn {
    interval_ns: f64,
    next_ns: f64,
    until_ns: u64,
}

impl Running {
    fn run(mut self) -> Result<Outcome, String> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        loop {
            if let Some(sent) = self.take_orders() {
                return Ok(self.finish(&sent));
            }
            let now_ns = self.now_ns();
            self.fleet.dial_due(self.poll.registry(), now_ns);
            self.fleet.drive_up(self.poll.registry());
            if now_ns >= self.tick_ns {
                self.tick(now_ns);
            }
            self.fleet.act(now_ns);
            self.churn_due(now_ns);
            self.ping_due(now_ns);
            self.send_due(now_ns);
            self.read_unread();
            self.fleet.flush_batch(now_ns);
            self.show();
            self.wait(&mut events)?;
            for event in &events {
                if event.token() != WAKER {
                    self.handle(event);
                }
            }
            let now_ns = self.now_ns();
            self.fleet.flush_batch(now_ns);
        }
    }

    fn now_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// Carries out what was ordered. Returns what [`Order::Finish`] brought.
    fn take_orders(&mut self) -> Option<Arc<[u32]>> {
        loop {
            let order = match self.orders.try_recv() {
                Ok(order) => order,
                Err(crossbeam_channel::TryRecvError::Empty) => return None,
                // The coordinator is gone: nobody needs figures any more.
                Err(crossbeam_channel::TryRecvError::Disconnected) => return Some(Arc::new([])),
            };
            let now_ns = self.now_ns();
            match order {
                Order::OpenTo { target, over } => {
                    self.fleet.open_to(target, over.as_nanos() as u64, now_ns);
                }
                Order::CloseTo { target, over } => {
                    self.fleet.close_to(target, over.as_nanos() as u64, now_ns);
                }
                Order::CloseAll => self.fleet.close_all(),
                Order::Measure => {
                    self.fleet.measuring = true;
                    (self.fleet.counts.bytes_sent, self.fleet.counts.bytes_received) = (0, 0);
                    self.busy_from = Busy::of_this_thread();
                }
                Order::Echo { pace, until_ns } => self.start_echo(pace, until_ns),
                Order::Churn { rate, until_ns } => {
                    let interval_ns = 1e9 / rate;
                    let next_ns = now_ns as f64 + interval_ns;
                    self.churn = (rate > 0.0).then_some(Churn { interval_ns, next_ns, until_ns });
                }
                Order::Quiet => {
                    self.fleet.echo_until_ns = 0;
                    self.pace = None;
                    self.busy = Busy::of_this_thread().since(self.busy_from);
                }
                Order::DropShare(share) => self.fleet.drop_share(share),
                Order::WatchPauses => {
                    self.fleet.pauses = Some(Pauses::new(self.fleet.conns.len()));
                }
                Order::Published { at_ns, counts } => self.fleet.note_published(at_ns, &counts),
                Order::Finish(sent) => return Some(sent),
            }
            self.show();
            self.live.order.fetch_add(1, Relaxed);
        }
    }

    fn start_echo(&mut self, pace: EchoPace, until_ns: u64) {
        let plan = Arc::clone(&self.fleet.plan);
        let share = self.fleet.share;
        let now_ns = self.now_ns();
        let all = 0..self.fleet.conns.len() as u32;
        if let EchoPace::Open(segment) = pace {
            let is_mixed = plan.populations.iter().any(|of| of.role != Role::Echoes);
            let indexes =
                is_mixed.then(|| all.filter(|index| self.fleet.echoes(*index)).collect::<Vec<_>>());
            if indexes.as_ref().is_some_and(Vec::is_empty) {
                return;
            }
            let part = f64::from(share.count) / f64::from(plan.connections);
            let segment = segment.part(part).starting(now_ns);
            let n = f64::from(share.base) / f64::from(plan.connections);
            self.pace = Some(Pace { segment, n, until_ns, indexes, turn: 0 });
            return;
        }
        self.fleet.echo_until_ns = until_ns;
        for index in all {
            let now_ns = self.now_ns();
            self.fleet.begin_echo(index, plan.window, now_ns);
        }
    }

    /// A second is over: its latencies are handed over.
    fn tick(&mut self, now_ns: u64) {
        let second = (self.tick_ns / SECOND_NS - 1) as u32;
        self.tick_ns = (now_ns / SECOND_NS + 1) * SECOND_NS;
        if !self.fleet.latency.is_empty() {
            let latency = std::mem::replace(&mut self.fleet.latency, figures::latency());
            // Without a coordinator nobody needs it.
            let _ = self.slices.send((second, latency));
        }
    }

    /// Pings the connections whose turn it is: all of them evenly within the time.
    fn ping_due(&mut self, now_ns: u64) {
        let Some(every) = self.fleet.plan.ping_every else { return };
        let interval_ns = every.as_nanos() as f64 / f64::from(self.fleet.share.count.max(1));
        let (mut index, mut next_ns) = self.pinging.unwrap_or((0, now_ns as f64 + interval_ns));
        // A thread that was kept busy leaves out what it missed.
        next_ns = next_ns.max(now_ns as f64 - SECOND_NS as f64);
        // More pings than a thread can send must not keep it from its orders.
        for _ in 0..TURN_SENDS_MAX {
            if next_ns > now_ns as f64 {
                break;
            }
            self.fleet.ping(index, now_ns);
            index = (index + 1) % self.fleet.share.count.max(1);
            next_ns += interval_ns;
        }
        self.pinging = Some((index, next_ns));
    }

    /// Lets connections leave whose turn it is.
    fn churn_due(&mut self, now_ns: u64) {
        let Some(churn) = &mut self.churn else { return };
        if now_ns >= churn.until_ns {
            self.churn = None;
            return;
        }
        let mut due = 0;
        while churn.next_ns <= now_ns as f64 && due < TURN_SENDS_MAX {
            churn.next_ns += churn.interval_ns;
            due += 1;
        }
        (0..due).for_each(|_| self.fleet.leave_any(now_ns));
    }

    /// Open-loop echo: sends what the schedule has for now.
    fn send_due(&mut self, now_ns: u64) {
        let Some(mut pace) = self.pace.take() else { return };
        for _ in 0..TURN_SENDS_MAX {
            let intended_ns = pace.next_ns();
            if intended_ns > now_ns {
                break;
            }
            if intended_ns >= pace.until_ns {
                return;
            }
            let Some(index) = pace.take(self.fleet.share.count) else { continue };
            let Some(conn) = self.fleet.conns.get(index as usize) else { continue };
            if conn.state != State::Open {
                continue;
            }
            if conn.output_bytes() > OUTPUT_BYTES_MAX {
                self.fleet.reasons.add("a message was not sent: the server does not read");
                continue;
            }
            let now_ns = self.now_ns();
            let late_us = now_ns.saturating_sub(intended_ns) / 1000;
            self.lag.saturating_record(late_us.max(1));
            self.fleet.put_echo(index, intended_ns, now_ns);
            self.fleet.flush(index, now_ns);
        }
        self.pace = Some(pace);
    }

    fn read_unread(&mut self) {
        for _ in 0..self.unread.len() {
            let Some(index) = self.unread.pop_front() else { return };
            self.fleet.conns[index as usize].listed = false;
            self.read(index, true);
        }
    }

    fn wait(&mut self, events: &mut Events) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("waiting for sockets: {}", plain(&error));
        let mut timeout = self.timeout();
        if !timeout.is_zero() && timeout < PRECISE_WAIT {
            let wait = Timespec { tv_sec: 0, tv_nsec: timeout.subsec_nanos().into() };
            // An epoll descriptor is readable when it has events to give.
            let mut epoll = [PollFd::new(self.poll.registry(), PollFlags::IN)];
            match rustix::event::poll(&mut epoll, Some(&wait)) {
                Ok(_) | Err(Errno::INTR) => timeout = Duration::ZERO,
                Err(error) => return Err(failed(error.into())),
            }
        }
        match self.poll.poll(events, Some(timeout)) {
            Err(error) if error.kind() != std::io::ErrorKind::Interrupted => Err(failed(error)),
            _ => {
                if self.spins() && events.is_empty() {
                    // Another thread of this client may share the core.
                    rustix::thread::sched_yield();
                }
                Ok(())
            }
        }
    }

    fn spins(&self) -> bool {
        self.fleet.plan.spin && self.fleet.measuring
    }

    fn timeout(&self) -> Duration {
        if !self.unread.is_empty() || self.spins() {
            return Duration::ZERO;
        }
        let send = self.pace.as_ref().map(Pace::next_ns);
        let churn = self.churn.as_ref().map(|churn| churn.next_ns as u64);
        let dial = self.fleet.dialer.next_deadline();
        let ping = self.pinging.map(|(_, next_ns)| next_ns as u64);
        let due = [dial, self.fleet.agenda.next_ns(), send, churn, ping];
        let Some(due_ns) = due.into_iter().flatten().min() else {
            return IDLE_WAIT;
        };
        Duration::from_nanos(due_ns.saturating_sub(self.now_ns())).min(IDLE_WAIT)
    }

    fn handle(&mut self, event: &Readiness) {
        let Token(token) = event.token();
        let (index, generation) = (token as u32, (token >> 32) as u32);
        if index == UP_LINK {
            return self.fleet.up_ready(generation, &mut self.buffer);
        }
        let Some(conn) = self.fleet.conns.get(index as usize) else { return };
        if conn.generation != generation || conn.fd.is_none() {
            return;
        }
        if event.is_writable() || event.is_error() {
            let now_ns = self.now_ns();
            self.fleet.handle_writable(index, now_ns);
        }
        if event.is_readable() || event.is_read_closed() {
            self.read(index, event.is_read_closed());
        }
    }

    /// Reads what has come, up to a turn's share. `closing`: the peer's end may be in it, so that a
    /// short read is no proof that nothing is left.
    fn read(&mut self, index: u32, closing: bool) {
        if self.fleet.measuring && self.fleet.plan.is_slow(self.fleet.global(index)) {
            return;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut turn_bytes = 0;
        while let Some(fd) = &self.fleet.conns[index as usize].fd {
            match rustix::io::read(fd, &mut buffer[..]) {
                Ok(0) => {
                    let now_ns = self.now_ns();
                    self.fleet.ended(index, "the server ended the connection", now_ns);
                }
                Ok(count) => {
                    self.fleet.counts.bytes_received += count as u64;
                    self.received(index, &mut buffer[..count]);
                    turn_bytes += count;
                    if count < BUFFER_BYTES && !closing {
                        break;
                    }
                    if turn_bytes >= TURN_BYTES_MAX {
                        let conn = &mut self.fleet.conns[index as usize];
                        if conn.fd.is_some() && !std::mem::replace(&mut conn.listed, true) {
                            self.unread.push_back(index);
                        }
                        break;
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => {
                    let now_ns = self.now_ns();
                    self.fleet.ended(index, &plain(&error.into()), now_ns);
                }
            }
        }
        self.buffer = buffer;
    }

    /// Takes bytes off a socket: through TLS, where the server speaks it.
    fn received(&mut self, index: u32, bytes: &mut [u8]) {
        if self.fleet.tls.is_none() || self.fleet.population(index).target.tls.is_none() {
            return self.take(index, bytes);
        }
        let now_ns = self.now_ns();
        let generation = self.fleet.conns[index as usize].generation;
        let mut at = 0;
        if !self.fleet.shake(index, bytes, &mut at, now_ns) {
            return;
        }
        let mut opener = Opener::new();
        while let Some(tls) = &mut self.fleet.tls {
            match tls.open(index, &mut opener, bytes, &mut at) {
                Ok(Some(data)) => self.take(index, data),
                Ok(None) => break,
                Err(reason) => {
                    self.fleet.flush(index, now_ns);
                    self.fleet.ended_by_tls(index, &reason, now_ns);
                }
            }
            let conn = &self.fleet.conns[index as usize];
            if conn.fd.is_none() || conn.generation != generation {
                return;
            }
        }
        // A KeyUpdate that was requested.
        self.fleet.flush(index, now_ns);
    }

    /// Takes bytes of a connection, and writes what they led to.
    fn take(&mut self, index: u32, bytes: &mut [u8]) {
        let now_ns = self.now_ns();
        if self.fleet.population(index).transport != Transport::WebSocket {
            self.take_response(index, bytes, now_ns);
        } else if self.fleet.conns[index as usize].state != State::Upgrading {
            self.take_frames(index, bytes, now_ns);
        } else {
            let spill = self.fleet.conns[index as usize].spill.as_mut();
            let mut whole = spill.map(|s| std::mem::take(&mut s.input)).unwrap_or_default();
            whole.extend_from_slice(bytes);
            if let Some(head) = self.fleet.handle_answer(index, &mut whole, now_ns) {
                self.take_frames(index, &mut whole[head..], now_ns);
            }
        }
        self.fleet.flush(index, now_ns);
        if let Some(window) = &self.fleet.plan.closed_loop {
            window.ring();
        }
    }

    /// Bytes of responses: answers to polls, or heads and chunks of what goes on.
    fn take_response(&mut self, index: u32, bytes: &[u8], now_ns: u64) {
        let polls = self.fleet.population(index).transport == Transport::LongPoll;
        let conn = &mut self.fleet.conns[index as usize];
        let generation = conn.generation;
        let mut whole =
            conn.spill.as_mut().map(|s| std::mem::take(&mut s.input)).unwrap_or_default();
        let input = match whole.is_empty() {
            true => bytes,
            false => {
                whole.extend_from_slice(bytes);
                &whole[..]
            }
        };
        let mut at = 0;
        loop {
            let rest = &input[at..];
            let taken = if polls {
                self.take_answer(index, rest, now_ns)
            } else if self.fleet.conns[index as usize].state == State::Upgrading {
                http::head(rest).map(|head| {
                    let head = head?;
                    self.fleet.begun(index, head, now_ns);
                    Some(head.bytes)
                })
            } else if self.fleet.is_endless(index) {
                let taken = self.take_lines(index, rest, now_ns);
                taken.map(|()| Some(rest.len()).filter(|count| *count > 0))
            } else {
                self.take_chunk(index, rest, now_ns)
            };
            let conn = &mut self.fleet.conns[index as usize];
            if conn.fd.is_none() || conn.generation != generation {
                return;
            }
            match taken {
                Ok(Some(taken)) => at += taken,
                Ok(None) if at == input.len() => return,
                Ok(None) => {
                    let input = input[at..].to_vec();
                    conn.spill.get_or_insert_default().input = input;
                    return;
                }
                Err(fault) => return self.fleet.ended(index, fault, now_ns),
            }
        }
    }

    /// The chunk that a response goes on with, if it is all here.
    fn take_chunk(
        &mut self,
        index: u32,
        bytes: &[u8],
        now_ns: u64,
    ) -> Result<Option<usize>, &'static str> {
        let Some((content, end)) = http::chunk(bytes)? else { return Ok(None) };
        if self.fleet.population(index).hub.is_none() {
            self.take_text(index, &bytes[content], now_ns);
        } else if content.is_empty() {
            return Err("the server ended the response");
        } else {
            self.take_lines(index, &bytes[content], now_ns)?;
        }
        Ok(Some(end))
    }

    /// A part of a stream of events: its whole lines, behind what is left of the part before it.
    fn take_lines(&mut self, index: u32, part: &[u8], now_ns: u64) -> Result<(), &'static str> {
        let side = self.fleet.conns[index as usize].side.as_mut();
        let mut line = side.map(|side| std::mem::take(&mut side.line)).unwrap_or_default();
        let text = match line.is_empty() {
            true => part,
            false => {
                line.extend_from_slice(part);
                &line[..]
            }
        };
        let end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if text.len() - end > http::BODY_BYTES_MAX {
            return Err("a line that is too long");
        }
        if end > 0 {
            self.take_text(index, &text[..end], now_ns);
        }
        let conn = &mut self.fleet.conns[index as usize];
        if end < text.len() && conn.fd.is_some() {
            conn.side.get_or_insert_default().line = text[end..].to_vec();
        }
        Ok(())
    }

    /// The answer to a poll, if it is all here.
    fn take_answer(
        &mut self,
        index: u32,
        bytes: &[u8],
        now_ns: u64,
    ) -> Result<Option<usize>, &'static str> {
        let Some(http::Head { bytes: head, status, length, .. }) = http::head(bytes)? else {
            return Ok(None);
        };
        let end = head + length.ok_or("an answer in chunks")?;
        let Some(body) = bytes.get(head..end) else { return Ok(None) };
        self.fleet.polled(index, status, body, now_ns);
        Ok(Some(end))
    }

    fn take_frames(&mut self, index: u32, input: &mut [u8], now_ns: u64) {
        let Population { compression, centrifugo, profile, .. } = *self.fleet.population(index);
        let conn = &mut self.fleet.conns[index as usize];
        let generation = conn.generation;
        let mut reader = std::mem::take(&mut conn.reader);
        let rules = ReadRules { deflate: compression, ..RULES };
        let mut at = 0;
        loop {
            match reader.next(&rules, input, &mut at) {
                Ok(None) => break,
                Ok(Some(Event::Message { deflated: true, data, .. })) => {
                    self.take_deflated(index, data, now_ns);
                }
                Ok(Some(Event::Message { data, .. })) => self.take_text(index, data, now_ns),
                Ok(Some(Event::Ping(payload))) => {
                    self.fleet.put_control(ws::PONG, payload);
                    if !centrifugo && profile.is_none() {
                        self.fleet.count_ping(index);
                    }
                }
                Ok(Some(Event::Pong(payload))) => self.fleet.ponged(payload, now_ns),
                Ok(Some(Event::Close { code, reason })) => {
                    let code = code.unwrap_or(1005);
                    let reason = format!("closed by the server: {code} {reason}");
                    self.fleet.put_control(ws::CLOSE, &1000_u16.to_be_bytes());
                    self.fleet.flush(index, now_ns);
                    self.fleet.closed(index, code, reason.trim_end(), now_ns);
                }
                Err(fault) => {
                    self.fleet.ended(index, &format!("a frame that is none: {fault}"), now_ns);
                }
            }
            let conn = &self.fleet.conns[index as usize];
            if conn.fd.is_none() || conn.generation != generation {
                return;
            }
        }
        self.fleet.conns[index as usize].reader = reader;
    }

    fn take_text(&mut self, index: u32, text: &[u8], now_ns: u64) {
        let read = self.fleet.reading(index);
        let said = if self.fleet.echoes(index) {
            self.memo.read_afresh(text, read)
        } else {
            self.memo.read(text, read)
        };
        for said in said {
            self.fleet.handle_said(index, said, now_ns);
        }
    }

    /// A message that came deflated: one that many got is inflated once.
    fn take_deflated(&mut self, index: u32, deflated: &[u8], now_ns: u64) {
        let (read, inflater) = (self.fleet.reading(index), &mut self.inflater);
        let mut fault = false;
        let said = self.memo.read(deflated, |deflated, said| {
            let mut text = Vec::new();
            fault = inflater.inflate(deflated, RULES.message_bytes_max, &mut text).is_err();
            read(&text, said);
        });
        for said in said {
            self.fleet.handle_said(index, said, now_ns);
        }
        if fault {
            self.fleet.ended(index, "a message that can't be inflated", now_ns);
        }
    }

    /// Shows the coordinator how things stand.
    fn show(&self) {
        let counts = &self.fleet.counts;
        for (shown, value) in [
            (&self.live.open, counts.open),
            (&self.live.opened, counts.opened),
            (&self.live.failed, counts.failed),
            (&self.live.dropped, counts.dropped),
            (&self.live.pending, counts.pending),
            (&self.live.sent, counts.sent),
            (&self.live.received, counts.received),
            (&self.live.duplicated, counts.duplicated),
            (&self.live.absent, counts.absent),
            (&self.live.pinged, counts.pinged),
            (&self.live.bytes_sent, counts.bytes_sent),
            (&self.live.bytes_received, counts.bytes_received),
            (&self.live.joining, self.fleet.joining()),
            (&self.live.last_ns, counts.last_ns),
            (&self.live.ready_ns, counts.ready_ns),
        ] {
            shown.store(value, Relaxed);
        }
    }

    fn finish(mut self, sent: &[u32]) -> Outcome {
        let lost = self.fleet.lost(sent);
        self.show();
        let now_ns = self.now_ns();
        self.tick(now_ns);
        self.fleet.say_goodbye();
        Outcome {
            latency_raw: self.fleet.latency_raw,
            by_population: self.fleet.by_population,
            by_channel: self.fleet.by_channel,
            steps: self.fleet.connects.steps,
            pauses: self.fleet.pauses.as_ref().map(Pauses::histogram),
            lag: self.lag,
            lost,
            out_of_order: self.fleet.counts.out_of_order,
            absent: self.fleet.counts.absent,
            refreshed: self.fleet.counts.refreshed,
            left: self.fleet.counts.left,
            returns: self.fleet.positions.returns,
            reasons: self.fleet.reasons,
            busy: self.busy,
        }
    }
}
