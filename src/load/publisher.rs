//! The connection that publishes, on a thread of its own: open-loop, by a schedule that is fixed
//! before the first message leaves.
//!
//! ```text
//!  message n leaves at start + n / rate, whatever became of those before it
//!     intended -------- lag --------> actual (written) ----- the server ----> arrived
//!     '------------------ latency_us ------------------------------------------'
//!                                     '------------ latency_raw_us ------------'
//! ```

use super::figures::{self, Busy, Latency, Reasons};
use super::headers::numbered;
use super::output::{OUTPUT_BYTES_MAX, mask_key, plain};
use super::pace::Segment;
use super::payload::{PayloadWriter, Stamp};
use super::plan::Plan;
use super::speech::{self, CONNECT_ID, Said};
use super::stream::Stream;
use super::token::{Signer, publisher_id};
use crate::base::rng::Rng;
use crate::proto::http;
use crate::proto::ws::{self, Event, ReadRules, Reader};
use crate::sys::tables;
use crossbeam_channel::{Receiver, TryRecvError};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Bytes written at once, about; what is due beyond that goes with the next write.
const BATCH_BYTES: usize = 64 * 1024;

/// How often the thread looks for orders when nothing happens.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(20);

const RULES: ReadRules = ReadRules { masked: false, deflate: false, message_bytes_max: 32 << 20 };

/// The orders of the coordinator for a publisher.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// Publish these messages, behind those of earlier orders. `first`: messages of all publishers before them.
    Start { segment: Segment, first: u32 },
    /// Publish nothing more.
    Stop,
    /// End.
    Finish,
}

/// The figures of the running publisher.
#[derive(Debug, Default)]
pub(crate) struct Live {
    /// Messages given to the socket.
    pub(crate) sent: AtomicU64,
    /// Arrivals of those messages, if nobody drops.
    pub(crate) expected: AtomicU64,
    /// Orders to publish that are carried out.
    pub(crate) finished: AtomicU32,
    /// When the last message was written, nanoseconds since the origin.
    pub(crate) last_ns: AtomicU64,
}

/// The results that it hands over at the end.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Messages sent, by channel.
    pub(crate) sent: Vec<u32>,
    /// How late messages left although the socket would have taken them.
    pub(crate) lag: Latency,
    /// Why messages were refused, or the connection ended.
    pub(crate) reasons: Reasons,
    /// Between the first message and the last.
    pub(crate) busy: Busy,
}

/// An open connection to publish over.
pub(crate) struct Publisher {
    plan: Arc<Plan>,
    origin: Instant,
    stream: Stream,
    reader: Reader,
    input: Vec<u8>,
    /// Frames that the socket has not taken yet: `out[..written]` it has.
    out: Vec<u8>,
    written: usize,
    rng: Rng,
    payloads: PayloadWriter,
    payload: Vec<u8>,
    command: Vec<u8>,
    /// Its number among the publishers.
    number: u32,
    /// Steps of a profile that are done.
    steps: u8,
    /// Channels that it is not yet a member of and has to be.
    joining: usize,
    /// Id of the next publish command.
    id: u32,
    sent: Vec<u32>,
    lag: Latency,
    reasons: Reasons,
    live: Arc<Live>,
    /// Whether the connection is still there.
    open: bool,
    /// The server's answer to `connect`.
    connected: Option<Result<(), String>>,
}

impl Publisher {
    /// Connects and, with the client protocol, logs in.
    ///
    /// # Errors
    /// Text for the user: what of it went wrong.
    pub(crate) fn open(
        plan: Arc<Plan>,
        number: u32,
        origin: Instant,
        live: Arc<Live>,
    ) -> Result<Self, String> {
        let failed = |error: std::io::Error| plain(&error);
        let stream = TcpStream::connect_timeout(&plan.target.address, plan.connect_timeout)
            .map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        stream.set_read_timeout(Some(plan.connect_timeout)).map_err(failed)?;
        stream.set_write_timeout(Some(plan.connect_timeout)).map_err(failed)?;
        let stream = Stream::new(stream, plan.target.tls.as_ref())?;
        let mut publisher = Self {
            origin,
            stream,
            reader: Reader::new(),
            input: vec![0; 64 * 1024],
            out: Vec::new(),
            written: 0,
            rng: Rng::new(!(u64::from(plan.run) << 8 | u64::from(number))),
            number,
            steps: 0,
            joining: 0,
            payloads: PayloadWriter::of(plan.payload_bytes, plan.template.as_ref()),
            payload: Vec::new(),
            command: Vec::new(),
            id: CONNECT_ID + 1,
            sent: vec![0; plan.channels.len().max(1)],
            lag: figures::latency(),
            reasons: Reasons::default(),
            live,
            open: true,
            connected: None,
            plan,
        };
        publisher.upgrade()?;
        if publisher.plan.centrifugo {
            publisher.log_in()?;
        } else if publisher.plan.profile.is_some() {
            publisher.wait_until_connected()?;
        }
        publisher.stream.set_nonblocking().map_err(failed)?;
        Ok(publisher)
    }

    fn upgrade(&mut self) -> Result<(), String> {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&self.rng.next_u64().to_ne_bytes());
        key[8..].copy_from_slice(&self.rng.next_u64().to_ne_bytes());
        let target = &self.plan.target;
        let mut request = Vec::new();
        // The number behind those of the connections.
        let number = self.plan.connections + self.number;
        let path = numbered(&self.plan.websocket_path, number);
        let own = self.plan.headers.of(number);
        let headers: Vec<(&str, &str)> =
            own.iter().map(|(name, of)| (*name, of.as_str())).collect();
        http::put_upgrade_request(&mut request, &target.host, &path, &key, None, &headers);
        self.stream.write_all(&request).map_err(|error| plain(&error))?;
        let mut answer = Vec::new();
        loop {
            let count = self.stream.read(&mut self.input).map_err(|error| plain(&error))?;
            if count == 0 {
                return Err("the server ended the connection".to_owned());
            }
            answer.extend_from_slice(&self.input[..count]);
            match http::parse_upgrade_response(&answer, &key) {
                Ok(None) => {}
                Ok(Some(head)) => return self.take(&mut answer[head..]),
                Err(refused) => return Err(format!("upgrade: {refused}")),
            }
        }
    }

    fn log_in(&mut self) -> Result<(), String> {
        let signer = self.plan.secret.as_deref().map(Signer::new);
        let user = publisher_id(self.number);
        let token = signer.map(|signer| signer.sign(&user, None)).transpose()?;
        self.command.clear();
        speech::put_connect(token.as_deref(), None, None, &mut self.command);
        ws::put_masked(&mut self.out, ws::TEXT, &self.command, mask_key(&mut self.rng));
        self.wait_until_connected()
    }

    /// The kind of frames that messages go in.
    fn opcode(&self) -> ws::OpCode {
        let is_binary = self.plan.profile.map_or(self.plan.is_binary, |of| of.is_binary);
        if is_binary { ws::BINARY } else { ws::TEXT }
    }

    fn wait_until_connected(&mut self) -> Result<(), String> {
        while self.connected.is_none() {
            self.write()?;
            let count = self.stream.read(&mut self.input).map_err(|error| plain(&error))?;
            if count == 0 {
                return Err("the server ended the connection".to_owned());
            }
            let mut input = std::mem::take(&mut self.input);
            let taken = self.take(&mut input[..count]);
            self.input = input;
            taken?;
        }
        self.connected.take().unwrap_or(Ok(()))
    }

    /// Publishes as ordered, and keeps the connection alive, until [`Order::Finish`].
    pub(crate) fn run(mut self, orders: &Receiver<Order>) -> Outcome {
        // Signals are for the main thread, which waits for them.
        let _ = tables::block_signals();
        let mut schedules = Schedules::new(&self.plan, self.number);
        let (mut busy, mut busy_from) = (Busy::default(), None);
        loop {
            match orders.try_recv() {
                Ok(Order::Start { segment, first }) => {
                    busy_from.get_or_insert_with(Busy::of_this_thread);
                    schedules.push(segment, first);
                }
                Ok(Order::Stop) => schedules.stop(),
                Ok(Order::Finish) | Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {}
            }
            if let Some(schedule) = &mut schedules.current {
                self.publish_due(schedule);
                let over = schedule.until_ns.is_some_and(|until_ns| self.now_ns() >= until_ns);
                if schedule.is_done() || over || !self.open {
                    schedules.next();
                    let since = busy_from.unwrap_or_default();
                    busy = Busy::of_this_thread().since(since);
                }
            }
            if !self.is_blocked() {
                self.live.finished.store(schedules.finished, Relaxed);
            }
            self.exchange(schedules.current.as_ref());
        }
        Outcome { sent: self.sent, lag: self.lag, reasons: self.reasons, busy }
    }

    fn now_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// Puts what is due into frames, as far as the socket can be expected to take it.
    fn publish_due(&mut self, schedule: &mut Schedule) {
        let full = self.is_blocked();
        while self.open && !schedule.is_done() && self.out.len() - self.written < BATCH_BYTES {
            let blocked = self.is_blocked();
            let now_ns = self.now_ns();
            if let Some(window) = &self.plan.closed_loop {
                let sequence = schedule.sent + 1;
                if full || now_ns < schedule.start_ns || !window.may_leave(sequence) {
                    break;
                }
                self.put_message(schedule.channel(), now_ns, now_ns);
                schedule.advance();
                continue;
            }
            let intended_ns = schedule.next_ns();
            if intended_ns > now_ns || (blocked && self.out.len() > OUTPUT_BYTES_MAX) {
                break;
            }
            if !blocked && !schedule.was_blocked {
                self.lag.saturating_record(((now_ns - intended_ns) / 1000).max(1));
            }
            schedule.was_blocked = false;
            self.put_message(schedule.channel(), intended_ns, now_ns);
            schedule.advance();
            // Its own write for each message, unless several are due already.
            if schedule.is_done() || schedule.next_ns() > now_ns {
                break;
            }
        }
        self.flush();
        schedule.was_blocked |= self.is_blocked();
    }

    fn put_message(&mut self, channel: u32, intended_ns: u64, actual_ns: u64) {
        let count = &mut self.sent[channel as usize];
        *count += 1;
        let (run, sequence) = (self.plan.run, *count);
        let stamp = Stamp { run, channel, sequence, intended_ns, actual_ns };
        self.payloads.write(&stamp, &mut self.payload);
        let opcode = self.opcode();
        let mut text = &self.payload;
        if let Some(profile) = self.plan.profile {
            let name = self.plan.channels.get(channel as usize).map_or("", String::as_str);
            profile.put_publish(name, &self.payload, &mut self.command);
            text = &self.command;
        } else if let Some(name) = self.plan.channels.get(channel as usize) {
            self.command.clear();
            speech::put_publish(self.id, name, &self.payload, &mut self.command);
            self.id = self.id.wrapping_add(1).max(CONNECT_ID + 1);
            text = &self.command;
        }
        ws::put_masked(&mut self.out, opcode, text, mask_key(&mut self.rng));
        self.plan.published.set(channel, sequence);
        self.live.note(&self.plan, channel, actual_ns);
    }

    /// Whether the socket has not taken all of it.
    fn is_blocked(&self) -> bool {
        self.written < self.out.len() || self.stream.is_blocked()
    }

    fn flush(&mut self) {
        if let Err(error) = self.write() {
            self.ended(&error);
        }
    }

    fn write(&mut self) -> Result<(), String> {
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(plain(&error)),
            }
        }
        self.out.clear();
        self.written = 0;
        match self.stream.flush() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(plain(&error)),
            _ => Ok(()),
        }
    }

    fn ended(&mut self, reason: &str) {
        if std::mem::replace(&mut self.open, false) {
            self.reasons.add(&format!("publisher: {reason}"));
            self.out.clear();
            self.written = 0;
        }
    }

    /// Waits for the next message's time, an order, or the socket; reads and writes.
    fn exchange(&mut self, schedule: Option<&Schedule>) {
        let window = self.plan.closed_loop.clone();
        let until = match schedule {
            Some(schedule) if window.is_none() && !schedule.is_done() => {
                let left_ns = schedule.next_ns().saturating_sub(self.now_ns());
                Duration::from_nanos(left_ns).min(LOOK_EVERY)
            }
            _ => LOOK_EVERY,
        };
        if !self.open {
            std::thread::sleep(LOOK_EVERY);
            return;
        }
        let blocked = self.is_blocked();
        // A due message cannot leave while the socket is full: wait for the socket, not for the time.
        let until = if blocked { LOOK_EVERY } else { until };
        let wait = Timespec { tv_sec: 0, tv_nsec: until.subsec_nanos().into() };
        let interest = if blocked { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let stream = PollFd::new(&self.stream, interest);
        let bell =
            window.as_ref().map(|window| PollFd::from_borrowed_fd(window.bell(), PollFlags::IN));
        let mut polled: Vec<_> = std::iter::once(stream).chain(bell).collect();
        match rustix::event::poll(&mut polled, Some(&wait)) {
            Ok(0) | Err(Errno::INTR) => return,
            Ok(_) => {}
            Err(error) => return self.ended(&plain(&error.into())),
        }
        let ready = polled[0].revents();
        if let (Some(window), Some(bell)) = (&window, polled.get(1))
            && bell.revents().contains(PollFlags::IN)
        {
            window.heard();
        }
        if ready.contains(PollFlags::OUT) {
            self.flush();
        }
        if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            self.read_once();
            while self.open && self.stream.has_unread() {
                self.read_once();
            }
        }
    }

    fn read_once(&mut self) {
        match self.stream.read(&mut self.input) {
            Ok(0) => self.ended("the server ended the connection"),
            Ok(count) => {
                let mut input = std::mem::take(&mut self.input);
                if let Err(error) = self.take(&mut input[..count]) {
                    self.ended(&error);
                }
                self.input = input;
                self.flush();
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => self.ended(&plain(&error)),
        }
    }

    /// Takes what the server sent; an error ends the connection.
    fn take(&mut self, input: &mut [u8]) -> Result<(), String> {
        let mut reader = std::mem::take(&mut self.reader);
        let mut at = 0;
        let mut said = Vec::new();
        loop {
            match reader.next(&RULES, input, &mut at) {
                Ok(None) => break,
                Ok(Some(Event::Message { data, .. })) => {
                    let Ok(text) = simdutf8::basic::from_utf8(data) else { continue };
                    match self.plan.profile {
                        Some(profile) => profile.read(text, self.plan.run, &mut said),
                        None if self.plan.centrifugo => {
                            speech::read_replies(text, self.plan.run, &mut said);
                        }
                        None => {}
                    }
                }
                Ok(Some(Event::Ping(payload))) => {
                    ws::put_masked(&mut self.out, ws::PONG, payload, mask_key(&mut self.rng));
                }
                Ok(Some(Event::Pong(_))) => {}
                Ok(Some(Event::Close { code, reason })) => {
                    let code = code.unwrap_or(1005);
                    return Err(format!("closed by the server: {code} {reason}"));
                }
                Err(fault) => return Err(format!("a frame that is none: {fault}")),
            }
        }
        self.reader = reader;
        for said in said {
            self.handle_said(said)?;
        }
        Ok(())
    }

    fn handle_said(&mut self, said: Said) -> Result<(), String> {
        match said {
            Said::Text(text) if self.connected.is_none() => self.step(&text),
            Said::Ping => {
                let pong = self.plan.profile.map_or(speech::PONG, |of| of.pong());
                self.put_text(pong);
            }
            Said::Done(CONNECT_ID) | Said::Session(..) => self.connected = Some(Ok(())),
            Said::Refused(CONNECT_ID, reason) => {
                self.connected = Some(Err(format!("connect refused: {reason}")));
            }
            Said::Refused(_, reason) => self.reasons.add(&format!("publish refused: {reason}")),
            Said::Ended(reason) | Said::Unsubscribed(_, reason) => return Err(reason.to_string()),
            Said::Malformed => return Err("a reply that is no JSON object".to_owned()),
            Said::Done(_) | Said::Subscribed(_) | Said::Message(..) => {}
            Said::Text(_) | Said::Other => {}
        }
        Ok(())
    }

    /// A text came while the connection opens by a profile.
    fn step(&mut self, text: &str) {
        let Some(profile) = self.plan.profile else { return };
        if self.joining > 0 {
            self.joining -= usize::from(profile.has_joined(text));
            if self.joining == 0 {
                self.connected = Some(Ok(()));
            }
            return;
        }
        let Some((answer, is_open)) = profile.step(self.steps, text, None) else { return };
        self.steps += 1;
        if !answer.is_empty() {
            self.put_text(&answer);
        }
        if !is_open {
            return;
        }
        let plan = Arc::clone(&self.plan);
        let own = plan.channels.iter().skip(self.number as usize);
        for channel in own.step_by(plan.publishers.max(1) as usize) {
            if let Some(join) = profile.join(channel) {
                self.put_text(&join);
                self.joining += 1;
            }
        }
        if self.joining == 0 {
            self.connected = Some(Ok(()));
        }
    }

    fn put_text(&mut self, text: &str) {
        let (opcode, key) = (self.opcode(), mask_key(&mut self.rng));
        ws::put_masked(&mut self.out, opcode, text.as_bytes(), key);
    }
}

impl Live {
    /// A message was handed over.
    pub(super) fn note(&self, plan: &Plan, channel: u32, actual_ns: u64) {
        self.sent.fetch_add(1, Relaxed);
        let receivers = plan.receivers.get(channel as usize).copied().unwrap_or_default();
        self.expected.fetch_add(receivers.into(), Relaxed);
        self.last_ns.store(actual_ns, Relaxed);
    }
}

/// When which message leaves, in one phase. Each publisher knows the messages of all, and sends those of its
/// own channels: the channel of a message doesn't depend on their number.
#[derive(Debug)]
pub(super) struct Schedule {
    plan: Arc<Plan>,
    segment: Segment,
    /// Messages of the run before this phase.
    first: u32,
    /// The publisher.
    number: u32,
    /// The next message of the phase, its channel with it.
    at: u32,
    channel: u32,
    /// Messages whose turn has come.
    pub(super) sent: u32,
    start_ns: u64,
    /// When publishing ends, if it isn't for the number of messages.
    until_ns: Option<u64>,
    /// Whether the socket was full since the last message: its lateness is then not ours.
    was_blocked: bool,
}

impl Schedule {
    pub(super) fn new(plan: &Arc<Plan>, number: u32, segment: Segment, first: u32) -> Self {
        let until_ns = plan.closed_loop.is_some().then(|| segment.end_ns());
        let mut schedule = Self {
            plan: Arc::clone(plan),
            segment,
            first,
            number,
            at: 0,
            channel: 0,
            sent: 0,
            start_ns: segment.start_ns,
            until_ns,
            was_blocked: false,
        };
        schedule.find();
        schedule
    }

    /// The next message's time.
    pub(super) fn next_ns(&self) -> u64 {
        self.segment.at_ns(f64::from(self.at))
    }

    /// The next message's channel.
    pub(super) fn channel(&self) -> u32 {
        self.channel
    }

    pub(super) fn is_done(&self) -> bool {
        self.at >= self.segment.count
    }

    /// The next message has left.
    pub(super) fn advance(&mut self) {
        self.at += 1;
        self.sent += 1;
        self.find();
    }

    /// Goes to the next message of this publisher's channels.
    fn find(&mut self) {
        while !self.is_done() {
            self.channel = self.plan.channel_of_message(self.first.wrapping_add(self.at));
            if self.channel % self.plan.publishers == self.number {
                return;
            }
            self.at += 1;
        }
    }
}

/// The schedules of a run, phase by phase.
#[derive(Debug)]
pub(super) struct Schedules {
    plan: Arc<Plan>,
    number: u32,
    pub(super) current: Option<Schedule>,
    waiting: VecDeque<(Segment, u32)>,
    /// How many are over.
    pub(super) finished: u32,
}

impl Schedules {
    pub(super) fn new(plan: &Arc<Plan>, number: u32) -> Self {
        let plan = Arc::clone(plan);
        Self { plan, number, current: None, waiting: VecDeque::new(), finished: 0 }
    }

    /// A phase begins, or will when the one before it is over.
    pub(super) fn push(&mut self, segment: Segment, first: u32) {
        self.waiting.push_back((segment, first));
        if self.current.is_none() {
            self.begin();
        }
    }

    /// The current one is over.
    pub(super) fn next(&mut self) {
        self.finished += 1;
        self.begin();
    }

    fn begin(&mut self) {
        let next = self.waiting.pop_front();
        self.current =
            next.map(|(segment, first)| Schedule::new(&self.plan, self.number, segment, first));
    }

    /// All of them are over.
    pub(super) fn stop(&mut self) {
        self.finished += u32::from(self.current.take().is_some()) + self.waiting.len() as u32;
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::flags::Flags;
    use clap::Parser;

    fn plan(more: &str) -> Arc<Plan> {
        let url = "ws://127.0.0.1:1/connection/websocket";
        let line = format!("roost-load channels --url {url} --connections 8 {more}");
        let flags = Flags::try_parse_from(line.split_whitespace()).unwrap();
        Arc::new(Plan::new(flags, 20_000, 1).unwrap())
    }

    #[test]
    fn the_schedule_is_fixed_beforehand() {
        let plan = plan("--channels 4");
        let segment = Segment::constant(3.0, 3_000_000).starting(1000);
        let mut schedule = Schedule::new(&plan, 0, segment, 0);
        assert_eq!(schedule.next_ns(), 1000);
        (0..5).for_each(|_| schedule.advance());
        assert_eq!((schedule.channel(), schedule.sent), (1, 5));
        assert_eq!(schedule.next_ns(), segment.at_ns(5.0));
        // A later phase goes on with the channels where the one before it ended.
        assert_eq!(Schedule::new(&plan, 0, segment, 7).channel(), 3);
    }

    #[test]
    fn publishers_share_the_messages_by_channel() {
        let mut plan = Arc::unwrap_or_clone(plan("--channels 4"));
        plan.publishers = 3;
        let plan = Arc::new(plan);
        let segment = Segment::constant(1000.0, 100);
        let mut times = Vec::new();
        for number in 0..3 {
            let mut schedule = Schedule::new(&plan, number, segment, 0);
            while !schedule.is_done() {
                assert_eq!(schedule.channel() % 3, number);
                times.push(schedule.next_ns());
                schedule.advance();
            }
        }
        times.sort_unstable();
        let expected: Vec<u64> = (0..100).map(|n| segment.at_ns(f64::from(n))).collect();
        assert_eq!(times, expected);
    }

    #[test]
    fn phases_follow_each_other() {
        let mut schedules = Schedules::new(&plan(""), 0);
        schedules.push(Segment::constant(1.0, 2), 0);
        schedules.push(Segment::constant(1.0, 3), 2);
        schedules.next();
        assert_eq!(schedules.current.as_ref().unwrap().segment.count, 3);
        schedules.stop();
        assert_eq!((schedules.finished, schedules.current.is_none()), (2, true));
    }
}
