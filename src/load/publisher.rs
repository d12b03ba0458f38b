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
use super::payload::{PayloadWriter, Stamp};
use super::plan::Plan;
use super::speech::{self, CONNECT_ID, Said};
use super::stream::Stream;
use super::token::{PUBLISHER_ID, Signer};
use crate::base::rng::Rng;
use crate::proto::http;
use crate::proto::ws::{self, Event, ReadRules, Reader};
use crate::sys::tables;
use crossbeam_channel::{Receiver, TryRecvError};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Bytes written at once, about; what is due beyond that goes with the next write.
const BATCH_BYTES: usize = 64 * 1024;

/// How often the thread looks for orders when nothing happens.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(20);

const RULES: ReadRules = ReadRules { masked: false, deflate: false, message_bytes_max: 32 << 20 };

/// The orders of the coordinator for the publisher.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// Publish everything, the first message at this moment (nanoseconds since the origin).
    Start(u64),
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
    /// Nothing more will be sent.
    pub(crate) done: AtomicBool,
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
    pub(crate) fn open(plan: Arc<Plan>, origin: Instant, live: Arc<Live>) -> Result<Self, String> {
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
            rng: Rng::new(!u64::from(plan.run)),
            payloads: PayloadWriter::new(plan.payload_bytes),
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
        let number = self.plan.connections;
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
        let token = signer.map(|signer| signer.sign(PUBLISHER_ID)).transpose()?;
        self.command.clear();
        speech::put_connect(token.as_deref(), None, None, &mut self.command);
        ws::put_masked(&mut self.out, ws::TEXT, &self.command, mask_key(&mut self.rng));
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
        let mut schedule: Option<Schedule> = None;
        let (mut busy, mut busy_from) = (Busy::default(), Busy::default());
        let mut begun = false;
        loop {
            match orders.try_recv() {
                Ok(Order::Start(start_ns)) => {
                    begun = true;
                    busy_from = Busy::of_this_thread();
                    schedule = Some(Schedule::new(&self.plan, start_ns));
                }
                Ok(Order::Stop) => schedule = None,
                Ok(Order::Finish) | Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {}
            }
            if let Some(plan) = &mut schedule {
                self.publish_due(plan);
                let over = plan.until_ns.is_some_and(|until_ns| self.now_ns() >= until_ns);
                if plan.is_done() || over || !self.open {
                    schedule = None;
                    busy = Busy::of_this_thread().since(busy_from);
                }
            }
            if schedule.is_none() && begun && !self.is_blocked() {
                self.live.done.store(true, Relaxed);
            }
            self.exchange(schedule.as_ref());
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
                schedule.sent = sequence;
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
            schedule.sent += 1;
            // Its own write for each message, unless several are due already.
            if schedule.next_ns() > now_ns {
                break;
            }
        }
        self.flush();
        schedule.was_blocked |= self.is_blocked();
    }

    fn put_message(&mut self, channel: u32, intended_ns: u64, actual_ns: u64) {
        let count = &mut self.sent[channel as usize];
        *count += 1;
        let run = self.plan.run;
        let stamp = Stamp { run, channel, sequence: *count, intended_ns, actual_ns };
        self.payloads.write(&stamp, &mut self.payload);
        let mut text = &self.payload;
        if let Some(name) = self.plan.channels.get(channel as usize) {
            self.command.clear();
            speech::put_publish(self.id, name, &self.payload, &mut self.command);
            self.id = self.id.wrapping_add(1).max(CONNECT_ID + 1);
            text = &self.command;
        }
        ws::put_masked(&mut self.out, ws::TEXT, text, mask_key(&mut self.rng));
        self.live.sent.fetch_add(1, Relaxed);
        self.live.last_ns.store(actual_ns, Relaxed);
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
            Some(schedule) if window.is_none() => {
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
                    if self.plan.centrifugo
                        && let Ok(text) = simdutf8::basic::from_utf8(data)
                    {
                        speech::read_replies(text, self.plan.run, &mut said);
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
            Said::Ping => {
                let key = mask_key(&mut self.rng);
                ws::put_masked(&mut self.out, ws::TEXT, speech::PONG.as_bytes(), key);
            }
            Said::Done(CONNECT_ID) | Said::Session(..) => self.connected = Some(Ok(())),
            Said::Refused(CONNECT_ID, reason) => {
                self.connected = Some(Err(format!("connect refused: {reason}")));
            }
            Said::Refused(_, reason) => self.reasons.add(&format!("publish refused: {reason}")),
            Said::Ended(reason) | Said::Unsubscribed(_, reason) => return Err(reason.to_string()),
            Said::Malformed => return Err("a reply that is no JSON object".to_owned()),
            Said::Done(_) | Said::Subscribed(_) | Said::Message(..) | Said::Other => {}
        }
        Ok(())
    }
}

/// When which message leaves.
#[derive(Debug)]
pub(super) struct Schedule {
    start_ns: u64,
    interval_ns: f64,
    total: u32,
    channels: u32,
    /// Messages whose turn has come.
    pub(super) sent: u32,
    /// When publishing ends, if it isn't for the number of messages.
    until_ns: Option<u64>,
    /// Whether the socket was full since the last message: its lateness is then not ours.
    was_blocked: bool,
}

impl Schedule {
    pub(super) fn new(plan: &Plan, start_ns: u64) -> Self {
        Self {
            start_ns,
            interval_ns: plan.rate.map_or(0.0, |rate| 1e9 / rate),
            total: plan.publish,
            channels: plan.channels.len().max(1) as u32,
            until_ns: plan.closed_loop.is_some().then(|| {
                start_ns + u64::try_from(plan.duration.as_nanos()).unwrap_or(u64::MAX / 2)
            }),
            sent: 0,
            was_blocked: false,
        }
    }

    /// The next message's time.
    pub(super) fn next_ns(&self) -> u64 {
        self.at_ns(self.sent)
    }

    /// The time of a channel's message that has so many before it in that channel.
    pub(super) fn time_of(&self, before: u32, channel: u32) -> u64 {
        self.at_ns(before * self.channels + channel)
    }

    /// A product, not a sum: no rounding piles up.
    fn at_ns(&self, message: u32) -> u64 {
        self.start_ns + (f64::from(message) * self.interval_ns) as u64
    }

    /// The next message's channel: each in turn.
    pub(super) fn channel(&self) -> u32 {
        self.sent % self.channels
    }

    pub(super) fn is_done(&self) -> bool {
        self.sent >= self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_is_fixed_beforehand() {
        let mut schedule = Schedule {
            start_ns: 1000,
            interval_ns: 1e9 / 3.0,
            total: 3_000_000,
            channels: 4,
            until_ns: None,
            sent: 0,
            was_blocked: false,
        };
        assert_eq!(schedule.next_ns(), 1000);
        schedule.sent = 5;
        assert_eq!(schedule.channel(), 1);
        assert_eq!(schedule.next_ns(), schedule.time_of(1, 1));
        schedule.sent = 2_999_999;
        assert!(!schedule.is_done());
        schedule.sent = 3_000_000;
        assert_eq!(schedule.next_ns(), 1000 + 1_000_000 * 1_000_000_000);
        assert!(schedule.is_done());
    }
}
