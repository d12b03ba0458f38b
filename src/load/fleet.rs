//! One thread's connections: their lives from dialling to the end, what they are told, and the
//! verdict on it.

use super::agenda::{Act, Agenda};
use super::batch::{Batch, Written};
use super::conn::{Conn, Spill, State};
use super::connects::{Connects, Step};
use super::dial::{self, Dialer};
use super::figures::{self, Latency, Reasons};
use super::file::Role;
use super::http::{self as requests, Side, UpLink};
use super::hub;
use super::oracle::Verdict;
use super::output::{OUTPUT_BYTES_MAX, mask_key, plain, write_some};
use super::payload::{PayloadWriter, Stamp};
use super::plan::{Plan, Population, Share, picked};
use super::recovery::Positions;
use super::speech::{self, CONNECT_ID, REFRESH_ID, SUBSCRIBE_ID, Said};
use super::tls::{Layer, Shaken};
use super::token::{self, Signer};
use super::upgrade::Pauses;
use crate::base::form::Transport;
use crate::base::rng::Rng;
use crate::proto::http;
use crate::proto::ws;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// The connections of one thread, and what was counted about them.
pub(crate) struct Fleet {
    pub(crate) plan: Arc<Plan>,
    pub(crate) share: Share,
    pub(crate) conns: Vec<Conn>,
    pub(crate) dialer: Dialer,
    pub(crate) counts: Counts,
    /// From the intended send time, in the current second.
    pub(crate) latency: Latency,
    pub(crate) latency_raw: Latency,
    /// By population and by channel, where there are several; empty else.
    pub(crate) by_population: Vec<Latency>,
    pub(crate) by_channel: Vec<Latency>,
    pub(crate) connects: Connects,
    /// Only once the server is being replaced.
    pub(crate) pauses: Option<Pauses>,
    pub(crate) reasons: Reasons,
    /// Frames to be written when what was read is dealt with.
    pub(crate) out: Vec<u8>,
    /// Writes that go out together, if they do.
    batch: Option<Batch>,
    /// TLS of the connections, if the server speaks it.
    pub(crate) tls: Option<Layer>,
    /// Whether messages are being sent and measured.
    pub(crate) measuring: bool,
    /// Closed-loop echo: until when a new message follows one that came back.
    pub(crate) echo_until_ns: u64,
    /// Text of a message or command on its way into a frame.
    text: Vec<u8>,
    payloads: PayloadWriter,
    signer: Option<Signer>,
    rng: Rng,
    up: UpLink,
    pub(crate) positions: Positions,
    /// Acts of connections at times of their own.
    pub(crate) agenda: Agenda,
    /// Connections that are away on purpose, or have joined while messages are sent and got none yet. Nothing for
    /// others.
    joins: HashMap<u32, Join>,
    /// The channels among them whose first message is not known.
    joining: u64,
}

/// A connection that is away, or came while messages are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Join {
    /// It is away on purpose.
    Away,
    /// It joined when its channel had so many messages.
    Behind(u32),
    /// It joined at that moment; how many messages its channel had then is known to the machine that publishes.
    At(u64),
}

/// [`Conn::joined`] of a response without chunks: it ends with the connection.
const ENDLESS: u8 = 0x80;

/// The part of a token's time after which a new one is sent.
const REFRESH_AFTER: f64 = 0.6;

/// Plain numbers of one thread; [`figures::Live`] says what they mean.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) open: u64,
    pub(crate) opened: u64,
    pub(crate) failed: u64,
    pub(crate) dropped: u64,
    pub(crate) pending: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) duplicated: u64,
    pub(crate) out_of_order: u64,
    pub(crate) absent: u64,
    pub(crate) refreshed: u64,
    pub(crate) left: u64,
    pub(crate) pinged: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) last_ns: u64,
    pub(crate) ready_ns: u64,
}

impl Fleet {
    pub(crate) fn new(plan: Arc<Plan>, share: Share) -> Self {
        let dialer = Dialer::new(&plan, share);
        // Reserved at once, so that growth never copies; untouched pages cost nothing.
        let conns = Vec::with_capacity(share.count as usize);
        let seed = u64::from(plan.run) << 32 | u64::from(share.base);
        Self {
            share,
            conns,
            dialer,
            counts: Counts::default(),
            latency: figures::latency(),
            latency_raw: figures::latency(),
            by_population: several(plan.populations.len()),
            by_channel: several(plan.channels.len()),
            connects: Connects::default(),
            pauses: None,
            reasons: Reasons::default(),
            out: Vec::new(),
            batch: if plan.has_echoes() { Batch::new() } else { None },
            tls: plan.tls.clone().map(Layer::new),
            measuring: false,
            echo_until_ns: 0,
            text: Vec::new(),
            payloads: PayloadWriter::of(plan.payload_bytes, plan.template.as_ref()),
            signer: plan.secret.as_deref().map(Signer::new),
            rng: Rng::new(seed),
            up: UpLink::default(),
            positions: Positions::new(plan.populations.iter().any(|of| of.recovers)),
            agenda: Agenda::default(),
            joins: HashMap::new(),
            joining: 0,
            plan,
        }
    }

    /// Number of connection `index` among those of all threads.
    pub(crate) fn global(&self, index: u32) -> u32 {
        self.share.base + index
    }

    /// The population of connection `index`.
    pub(crate) fn population(&self, index: u32) -> &Population {
        self.plan.population(self.share.base + index)
    }

    /// Whether the connection comes back when it ends, and recovers.
    fn recovers(&self, index: u32) -> bool {
        self.positions.is_on() && self.population(index).recovers
    }

    /// Wants the first `target` connections of the share open: as soon as it goes, or evenly over a time.
    pub(crate) fn open_to(&mut self, target: u32, over_ns: u64, now_ns: u64) {
        let more = self.dialer.open_to(target);
        if over_ns > 0 {
            self.dialer.spread(more, over_ns, now_ns);
        }
        self.counts.pending += u64::from(more);
        self.note_ready(now_ns);
    }

    /// Wants only the first `target` connections of the share open: closes the others evenly over a time.
    pub(crate) fn close_to(&mut self, target: u32, over_ns: u64, now_ns: u64) {
        self.dialer.lower(target);
        let count = (self.conns.len() as u32).saturating_sub(target);
        for (nth, index) in (target..self.conns.len() as u32).rev().enumerate() {
            let after_ns = over_ns * nth as u64 / u64::from(count.max(1));
            let generation = self.conns[index as usize].generation;
            self.agenda.push(now_ns + after_ns, index, generation, Act::Leave);
        }
    }

    /// Closes everything on purpose and forgets it, failures too.
    pub(crate) fn close_all(&mut self) {
        self.dialer.forget_all();
        self.say_goodbye();
        for conn in &mut self.conns {
            let generation = conn.generation;
            *conn = Conn { generation, ..Conn::default() };
        }
        self.tls = self.plan.tls.clone().map(Layer::new);
        self.agenda.clear();
        self.joins.clear();
        self.joining = 0;
        self.counts = Counts::default();
        self.reasons = Reasons::default();
    }

    /// Ends the connections that the storm drops, without a word, and dials them again.
    pub(crate) fn drop_share(&mut self, share: f64) {
        for index in 0..self.conns.len() as u32 {
            let is_open = self.conns[index as usize].state == State::Open;
            if is_open && picked(self.global(index), share) {
                self.depart(index);
                self.counts.pending += 1;
                self.dialer.open_again(index);
            }
        }
    }

    /// Closes an open connection on purpose. What is published until it is back is not lost.
    fn depart(&mut self, index: u32) {
        self.close(index, State::Unopened);
        let is_echo = self.population(index).role == Role::Echoes;
        let conn = &mut self.conns[index as usize];
        conn.tries = 0;
        self.counts.open -= 1;
        if is_echo {
            let next = conn.sent.saturating_add(1);
            self.counts.absent += u64::from(conn.seen.skip_to(next));
        } else if self.measuring {
            self.set_join(index, Some(Join::Away));
        }
    }

    /// Closes an open connection politely; it comes back after a while, if it is to be open then.
    pub(crate) fn leave(&mut self, index: u32, away: Duration, now_ns: u64) {
        if self.conns[index as usize].state != State::Open {
            return;
        }
        if self.population(index).transport == Transport::WebSocket {
            self.put_control(ws::CLOSE, &1000_u16.to_be_bytes());
            self.flush(index, now_ns);
            self.flush_batch(now_ns);
        }
        let generation = self.conns[index as usize].generation;
        if self.conns[index as usize].state != State::Open {
            return;
        }
        self.depart(index);
        self.counts.left += 1;
        if self.dialer.wants(index) {
            let due_ns = now_ns + away.as_nanos() as u64;
            self.agenda.push(due_ns, index, generation, Act::Return);
        }
    }

    /// Does what is due.
    pub(crate) fn act(&mut self, now_ns: u64) {
        // An act that another one puts on the agenda is for a later turn, even if it is due at once.
        for _ in 0..self.agenda.len() {
            let Some((due_ns, index, generation, act)) = self.agenda.pop_due(now_ns) else {
                return;
            };
            let conn = &self.conns[index as usize];
            if conn.generation != generation {
                continue;
            }
            match act {
                Act::Leave => {
                    let away = self.population(index).away;
                    let away = away.draw(self.rng.next_u64());
                    self.leave(index, away, now_ns);
                }
                Act::Return if conn.state == State::Unopened && self.dialer.wants(index) => {
                    self.counts.pending += 1;
                    self.dialer.open_again(index);
                }
                Act::Send if conn.state == State::Open && now_ns < self.echo_until_ns => {
                    self.put_echo(index, due_ns, now_ns);
                    self.flush(index, now_ns);
                }
                Act::Refresh if conn.state == State::Open => self.refresh(index, now_ns),
                Act::Return | Act::Send | Act::Refresh => {}
            }
        }
    }

    /// Sends a new token.
    fn refresh(&mut self, index: u32, now_ns: u64) {
        match self.token(index) {
            Ok(Some(token)) => {
                self.text.clear();
                speech::put_refresh(&token, &mut self.text);
                self.put_text();
                self.flush(index, now_ns);
                self.schedule_refresh(index, now_ns);
            }
            Ok(None) => {}
            Err(error) => self.reject(index, &error, now_ns),
        }
    }

    fn schedule_refresh(&mut self, index: u32, now_ns: u64) {
        let Population { token_ttl, refreshes, transport, .. } = *self.population(index);
        if let Some(ttl) = token_ttl.filter(|_| refreshes && transport == Transport::WebSocket) {
            let due_ns = now_ns + ttl.mul_f64(REFRESH_AFTER).as_nanos() as u64;
            self.agenda.push(due_ns, index, self.conns[index as usize].generation, Act::Refresh);
        }
    }

    /// Pings a connection, if it is an open WebSocket. Its pong brings the time back.
    pub(crate) fn ping(&mut self, index: u32, now_ns: u64) {
        let conn = self.conns.get(index as usize);
        let is_open =
            conn.is_some_and(|of| of.state == State::Open && of.output_bytes() <= OUTPUT_BYTES_MAX);
        if is_open && self.population(index).transport == Transport::WebSocket {
            let mut payload = [0; 12];
            payload[..4].copy_from_slice(&self.plan.run.to_be_bytes());
            payload[4..].copy_from_slice(&now_ns.to_be_bytes());
            self.put_control(ws::PING, &payload);
            self.flush(index, now_ns);
        }
    }

    /// A pong came: the answer to a ping of ours, or nothing of interest.
    pub(crate) fn ponged(&mut self, payload: &[u8], now_ns: u64) {
        if let Some((run, sent)) = payload.split_first_chunk::<4>()
            && u32::from_be_bytes(*run) == self.plan.run
            && let Ok(sent) = sent.try_into()
        {
            self.connects.ponged(u64::from_be_bytes(sent), now_ns);
        }
    }

    /// Closes any connection of this thread that is open.
    pub(crate) fn leave_any(&mut self, now_ns: u64) {
        let count = self.conns.len() as u64;
        for _ in 0..16 {
            let index = self.rng.below(count) as u32;
            let is_open = count > 0 && self.conns[index as usize].state == State::Open;
            if is_open && !self.population(index).is_slow {
                return self.leave(index, Duration::ZERO, now_ns);
            }
        }
    }

    /// A connection is open while messages are sent: it gets those that follow, unless it recovers the others.
    fn note_join(&mut self, index: u32, is_back: bool, now_ns: u64) {
        if !self.measuring || self.population(index).role == Role::Echoes {
            return;
        }
        if is_back && self.recovers(index) && self.positions.of(index).is_some() {
            return self.set_join(index, None);
        }
        if is_back && !self.joins.contains_key(&index) {
            return;
        }
        let channel = self.channel_number(index);
        let join = match self.plan.published.of(channel) {
            _ if self.plan.is_published_elsewhere(channel) => Some(Join::At(now_ns)),
            0 => None,
            count => Some(Join::Behind(count)),
        };
        self.set_join(index, join);
    }

    fn set_join(&mut self, index: u32, join: Option<Join>) {
        let is_open = |of: Option<Join>| u64::from(matches!(of, Some(Join::At(_))));
        self.joining += is_open(join);
        let before = match join {
            Some(join) => self.joins.insert(index, join),
            None => self.joins.remove(&index),
        };
        self.joining -= is_open(before);
    }

    /// Connections that wait for [`Self::note_published`].
    pub(crate) fn joining(&self) -> u64 {
        self.joining
    }

    /// So many messages, or more, had left at a moment: those who joined before it get what follows. What left in
    /// between may have come or not.
    pub(crate) fn note_published(&mut self, at_ns: u64, counts: &[u32]) {
        let known: Vec<u32> = self
            .joins
            .iter()
            .filter(|(_, join)| matches!(join, Join::At(since_ns) if *since_ns <= at_ns))
            .map(|(index, _)| *index)
            .collect();
        for index in known {
            let count = counts.get(self.channel_number(index) as usize).copied();
            self.set_join(index, count.filter(|count| *count > 0).map(Join::Behind));
        }
    }

    /// A connection without a schedule of its own begins to echo.
    pub(crate) fn begin_echo(&mut self, index: u32, window: u32, now_ns: u64) {
        let Population { role, think, .. } = *self.population(index);
        let conn = &self.conns[index as usize];
        if conn.state != State::Open || role != Role::Echoes {
            return;
        }
        for _ in 0..window {
            match think {
                Some(think) => {
                    let due_ns = now_ns + think.draw(self.rng.next_u64()).as_nanos() as u64;
                    let generation = self.conns[index as usize].generation;
                    self.agenda.push(due_ns, index, generation, Act::Send);
                }
                None => self.put_echo(index, now_ns, now_ns),
            }
        }
        self.flush(index, now_ns);
    }

    /// Dials what is due. Returns whether there may be more at once.
    pub(crate) fn dial_due(&mut self, registry: &Registry, now_ns: u64) {
        while let Some(index) = self.dialer.poll_dial(now_ns) {
            self.dial(registry, index, now_ns);
        }
        loop {
            let conns = &self.conns;
            let late = self.dialer.poll_late(now_ns, |index, generation| {
                let conn = &conns[index as usize];
                conn.generation == generation && conn.state.is_opening()
            });
            let Some(index) = late else { return };
            self.open_failed(index, "no answer in time", true, now_ns);
        }
    }

    fn dial(&mut self, registry: &Registry, index: u32, now_ns: u64) {
        if index as usize == self.conns.len() {
            self.conns.push(Conn::default());
        }
        let conn = &mut self.conns[index as usize];
        conn.state = State::Dialing;
        conn.generation = conn.generation.wrapping_add(1);
        self.dialer.began(index, conn.generation, now_ns);
        self.connects.begin(index, now_ns);
        let dialled = dial::dial(&self.plan, self.share.base + index).and_then(|(socket, up)| {
            let token = Token((conn.generation as usize) << 32 | index as usize);
            let both = Interest::READABLE | Interest::WRITABLE;
            registry.register(&mut SourceFd(&socket.as_raw_fd()), token, both)?;
            conn.fd = Some(OwnedFd::from(socket));
            Ok(up)
        });
        match dialled {
            Ok(true) => self.connected(index, now_ns),
            Ok(false) => {}
            Err(error) => self.open_failed(index, &plain(&error), true, now_ns),
        }
    }

    /// The socket can be written to, or has failed: goes on where the connection stands.
    pub(crate) fn handle_writable(&mut self, index: u32, now_ns: u64) {
        let conn = &mut self.conns[index as usize];
        let Some(fd) = &conn.fd else { return };
        if conn.state == State::Dialing {
            match socket2::SockRef::from(fd).take_error() {
                Ok(None) => self.connected(index, now_ns),
                Ok(Some(error)) | Err(error) => {
                    self.open_failed(index, &plain(&error), true, now_ns);
                }
            }
        } else if conn.is_blocked() {
            self.flush(index, now_ns);
        }
    }

    /// The socket is connected: TLS begins, or the request is sent.
    fn connected(&mut self, index: u32, now_ns: u64) {
        self.connects.lap(index, Step::Tcp, now_ns);
        let is_secure = self.population(index).target.tls.is_some();
        let Some(tls) = self.tls.as_mut().filter(|_| is_secure) else {
            return self.ask_upgrade(index, now_ns);
        };
        self.conns[index as usize].state = State::Securing;
        match tls.begin(index) {
            Ok(()) => self.flush(index, now_ns),
            Err(error) => self.open_failed(index, &error, false, now_ns),
        }
    }

    /// Goes on with the TLS handshake of a connection, if one is under way. Returns whether data follows.
    pub(crate) fn shake(&mut self, index: u32, input: &[u8], at: &mut usize, now_ns: u64) -> bool {
        let Some(tls) = &mut self.tls else { return true };
        match tls.shake(index, input, at) {
            Ok(Shaken::Before) => true,
            Ok(Shaken::NotYet) => {
                self.flush(index, now_ns);
                false
            }
            Ok(Shaken::Done) => {
                self.connects.lap(index, Step::Tls, now_ns);
                self.ask_upgrade(index, now_ns);
                true
            }
            Err(reason) => {
                // The alert says to the server what is wrong.
                self.flush(index, now_ns);
                self.ended_by_tls(index, &reason, now_ns);
                false
            }
        }
    }

    /// TLS has ended a connection, unless it was closed meanwhile.
    pub(crate) fn ended_by_tls(&mut self, index: u32, reason: &str, now_ns: u64) {
        if self.conns[index as usize].fd.is_none() {
            return;
        }
        match self.conns[index as usize].state {
            State::Securing => self.open_failed(index, reason, false, now_ns),
            _ => self.ended(index, reason, now_ns),
        }
    }

    /// Closes a connection.
    fn close(&mut self, index: u32, state: State) {
        self.conns[index as usize].close(state);
        self.tls.iter_mut().for_each(|tls| tls.end(index));
    }

    fn ask_upgrade(&mut self, index: u32, now_ns: u64) {
        let key = self.key(index);
        self.conns[index as usize].state = State::Upgrading;
        let plan = Arc::clone(&self.plan);
        let population = plan.population(self.global(index));
        let Population { target, compression, transport, .. } = population;
        if *transport != Transport::WebSocket {
            return self.ask(index, now_ns);
        }
        let offer = [("Sec-WebSocket-Extensions", OFFER)];
        let offer = if *compression { &offer[..] } else { &[] };
        let number = self.global(index);
        let (path, own) = (plan.path_of(number), plan.headers.of(number));
        let own = own.iter().map(|(name, value)| (*name, value.as_str()));
        let headers: Vec<(&str, &str)> = offer.iter().copied().chain(own).collect();
        http::put_upgrade_request(&mut self.out, &target.host, &path, &key, None, &headers);
        self.flush(index, now_ns);
    }

    /// Sends the request that a connection without a WebSocket begins with, or polls with.
    pub(crate) fn ask(&mut self, index: u32, now_ns: u64) {
        match self.write_connect(index) {
            Ok(()) => {
                let number = self.global(index);
                requests::put_request(&self.plan, number, &self.text, &mut self.out);
                self.flush(index, now_ns);
            }
            Err(error) => self.open_failed(index, &error, false, now_ns),
        }
    }

    /// Writes what a connection begins with, or polls with, into `text`.
    ///
    /// # Errors
    /// Its token can't be signed: text for the user.
    fn write_connect(&mut self, index: u32) -> Result<(), String> {
        let global = self.global(index);
        let token = self.token(index)?;
        let Population { transport, receives, .. } = *self.population(index);
        let channel = self.plan.channels.get(self.plan.channel_of(global) as usize);
        let channel = channel.filter(|_| receives).map(String::as_str);
        self.text.clear();
        if transport == Transport::LongPoll {
            let side = self.conns[index as usize].side.as_ref();
            let position = side.and_then(|side| side.position.as_ref());
            let channel = channel.unwrap_or_default();
            speech::put_poll(token.as_deref(), channel, position, &mut self.text);
        } else {
            let position = self.positions.of(index);
            speech::put_connect(token.as_deref(), channel, position, &mut self.text);
        }
        Ok(())
    }

    /// A new token for a connection, if it has one.
    fn token(&self, index: u32) -> Result<Option<String>, String> {
        let ttl = self.population(index).token_ttl;
        let user = token::user_id(self.global(index));
        self.signer.as_ref().map(|signer| signer.sign(&user, ttl)).transpose()
    }

    /// The response that a connection goes on with has begun.
    pub(crate) fn begun(&mut self, index: u32, head: requests::Head, now_ns: u64) {
        let status = head.status;
        let is_hub = self.population(index).hub.is_some();
        if status == 200 && (is_hub || head.is_chunked) {
            self.connects.lap(index, Step::Upgrade, now_ns);
            let conn = &mut self.conns[index as usize];
            conn.state = State::Joining;
            if is_hub {
                conn.joined = if head.is_chunked { 0 } else { ENDLESS };
                self.opened(index, now_ns);
            }
            return;
        }
        if status == 200 {
            return self.open_failed(index, "an answer that is not in chunks", false, now_ns);
        }
        let may_pass = matches!(status, 429 | 500..=599);
        self.open_failed(index, &format!("request: status {status}"), may_pass, now_ns);
    }

    /// Whether the response of a connection has no chunks.
    pub(crate) fn is_endless(&self, index: u32) -> bool {
        self.conns[index as usize].joined == ENDLESS
    }

    /// The answer to a poll: what came with it, and the next poll.
    pub(crate) fn polled(&mut self, index: u32, status: u16, body: &[u8], now_ns: u64) {
        if matches!(status, 429 | 500..=599) {
            return self.ended(index, &format!("poll: status {status}"), now_ns);
        }
        let polled = match speech::read_polled(body, self.plan.run) {
            Ok(polled) => polled,
            Err(reason) => return self.reject(index, &reason, now_ns),
        };
        let conn = &mut self.conns[index as usize];
        conn.side.get_or_insert_default().position = Some(polled.position);
        if conn.state.is_opening() {
            self.opened(index, now_ns);
        }
        if polled.lost {
            self.reasons.add("an answer says that something was lost");
        }
        for said in &polled.said {
            self.handle_said(index, said, now_ns);
        }
        self.ask(index, now_ns);
    }

    /// Sends pongs over the up-link.
    pub(crate) fn drive_up(&mut self, registry: &Registry) {
        if let Err(reason) = self.up.drive(&self.plan, registry) {
            self.reasons.add(&reason);
        }
    }

    /// Something is to be done for the up-link, if the event is about this one.
    pub(crate) fn up_ready(&mut self, generation: u32, buffer: &mut [u8]) {
        if self.up.is(generation)
            && let Err(reason) = self.up.ready(buffer)
        {
            self.reasons.add(&reason);
        }
    }

    /// How what comes is read.
    pub(crate) fn reading(&self, index: u32) -> impl Fn(&[u8], &mut Vec<Said>) + use<> {
        let run = self.plan.run;
        let Population { centrifugo, transport, profile, hub, .. } = *self.population(index);
        move |bytes, said| {
            speech::as_text(bytes, said, |text, said| match transport {
                _ if hub.is_some() => hub::read_lines(text, run, said),
                Transport::Sse => speech::read_events(text, run, said),
                _ if centrifugo => {
                    // In a response a line feed ends each, in a frame it stands between two.
                    speech::read_replies(text.strip_suffix('\n').unwrap_or(text), run, said);
                }
                _ => match profile {
                    Some(profile) => profile.read(text, run, said),
                    None => speech::read_raw(text, run, said),
                },
            });
        }
    }

    /// The handshake key: made again from what is known rather than kept.
    fn key(&self, index: u32) -> [u8; 16] {
        let generation = self.conns[index as usize].generation;
        let seed = u64::from(self.global(index)) << 32 | u64::from(generation);
        let mut rng = Rng::new(seed ^ u64::from(self.plan.run) << 16);
        let mut key = [0; 16];
        key[..8].copy_from_slice(&rng.next_u64().to_ne_bytes());
        key[8..].copy_from_slice(&rng.next_u64().to_ne_bytes());
        key
    }

    /// Takes the answer to the upgrade. Returns how much of `bytes` it was, once it is whole and
    /// frames may follow; until then the bytes are kept.
    pub(crate) fn handle_answer(
        &mut self,
        index: u32,
        bytes: &mut Vec<u8>,
        now_ns: u64,
    ) -> Option<usize> {
        let key = self.key(index);
        match http::parse_upgrade_response(bytes, &key) {
            Ok(Some(head)) => {
                if let Err(reason) = agreed(&bytes[..head], &self.plan, self.population(index)) {
                    self.open_failed(index, reason, false, now_ns);
                    return None;
                }
                self.upgraded(index, now_ns);
                Some(head)
            }
            Ok(None) => {
                let conn = &mut self.conns[index as usize];
                conn.spill.get_or_insert_default().input = std::mem::take(bytes);
                None
            }
            Err(refused) => {
                // A server at its limit says 503, which may pass; all else will be the same again.
                let may_pass = matches!(refused, http::UpgradeRefused::Status(429 | 500..=599));
                self.open_failed(index, &format!("upgrade: {refused}"), may_pass, now_ns);
                None
            }
        }
    }

    fn upgraded(&mut self, index: u32, now_ns: u64) {
        self.connects.lap(index, Step::Upgrade, now_ns);
        let Population { centrifugo, profile, .. } = *self.population(index);
        if profile.is_some() {
            self.conns[index as usize].state = State::Joining;
            return;
        }
        if !centrifugo {
            self.opened(index, now_ns);
            return;
        }
        self.conns[index as usize].state = State::Joining;
        match self.write_connect(index) {
            Ok(()) => self.put_text(),
            Err(error) => self.open_failed(index, &error, false, now_ns),
        }
    }

    fn opened(&mut self, index: u32, now_ns: u64) {
        let conn = &mut self.conns[index as usize];
        conn.state = State::Open;
        conn.tries = 0;
        self.counts.open += 1;
        self.counts.pending -= 1;
        let is_back = std::mem::replace(&mut conn.was_open, true);
        let generation = conn.generation;
        let Population { centrifugo, profile, .. } = *self.population(index);
        if centrifugo || profile.is_some() {
            self.connects.lap(index, Step::Protocol, now_ns);
        }
        self.connects.end(index, now_ns);
        self.counts.opened += u64::from(!is_back);
        self.dialer.ended();
        self.note_join(index, is_back, now_ns);
        if let Some(stay) = self.population(index).stay {
            let due_ns = now_ns + stay.draw(self.rng.next_u64()).as_nanos() as u64;
            self.agenda.push(due_ns, index, generation, Act::Leave);
        }
        self.schedule_refresh(index, now_ns);
        if is_back && self.echo_until_ns > now_ns {
            self.begin_echo(index, self.plan.window, now_ns);
        }
        self.note_ready(now_ns);
    }

    /// A connection could not be opened this time.
    pub(crate) fn open_failed(&mut self, index: u32, reason: &str, may_pass: bool, now_ns: u64) {
        let recovers = self.recovers(index);
        self.connects.forget(index);
        let conn = &mut self.conns[index as usize];
        conn.tries = conn.tries.saturating_add(1);
        self.dialer.ended();
        let comes_back = recovers && conn.was_open;
        if comes_back || may_pass && conn.tries < self.plan.tries {
            let tries = conn.tries;
            self.close(index, State::Waiting);
            self.dialer.retry(index, tries, now_ns);
            return;
        }
        self.close(index, State::Failed);
        self.counts.failed += 1;
        self.counts.pending -= 1;
        self.reasons.add(reason);
        self.note_ready(now_ns);
    }

    /// The connection was ended, not by us.
    pub(crate) fn ended(&mut self, index: u32, reason: &str, now_ns: u64) {
        match self.conns[index as usize].state {
            State::Open if self.recovers(index) => self.come_back(index, reason, now_ns),
            State::Open => self.dropped(index, reason),
            state if state.is_opening() => self.open_failed(index, reason, true, now_ns),
            _ => {}
        }
    }

    fn dropped(&mut self, index: u32, reason: &str) {
        self.close(index, State::Dropped);
        self.counts.open -= 1;
        // Connections that do not read are closed by the server, as expected.
        if !(self.measuring && self.plan.is_slow(self.global(index))) {
            self.counts.dropped += 1;
        }
        self.reasons.add(reason);
    }

    /// Connects again, as SDKs do, and recovers what is published meanwhile.
    fn come_back(&mut self, index: u32, reason: &str, now_ns: u64) {
        self.close(index, State::Waiting);
        self.conns[index as usize].tries = 1;
        self.counts.open -= 1;
        self.counts.pending += 1;
        self.positions.returns.reconnected += 1;
        self.reasons.add(reason);
        self.dialer.retry(index, 1, now_ns);
    }

    /// The server ended the subscription with this code.
    fn unsubscribed(&mut self, index: u32, code: u32, reason: &str, now_ns: u64) {
        let conn = &self.conns[index as usize];
        // With these codes a client subscribes again.
        if !(self.recovers(index) && conn.state == State::Open && code >= 2500) {
            return self.reject(index, reason, now_ns);
        }
        self.reasons.add(reason);
        self.positions.returns.resubscribed += 1;
        self.text.clear();
        if let Some(channel) = self.plan.channels.get(self.channel_number(index) as usize) {
            speech::put_subscribe(channel, self.positions.of(index), &mut self.text);
            self.put_text();
        }
    }

    /// The server closed the connection with this code.
    pub(crate) fn closed(&mut self, index: u32, code: u16, reason: &str, now_ns: u64) {
        // Codes that tell a client to stay away: trying again would be refused again.
        if matches!(code, 3500..=3999 | 4500..=4999) {
            match self.conns[index as usize].state {
                State::Open => self.dropped(index, reason),
                _ => self.reject(index, reason, now_ns),
            }
        } else {
            self.ended(index, reason, now_ns);
        }
    }

    fn note_ready(&mut self, now_ns: u64) {
        if self.counts.pending == 0 {
            self.counts.ready_ns = now_ns;
        }
    }

    /// Deals with one thing that the server said.
    pub(crate) fn handle_said(&mut self, index: u32, said: &Said, now_ns: u64) {
        match said {
            Said::Message(stamp, offset) => {
                if self.recovers(index) {
                    self.positions.moved(index, *offset);
                }
                self.judge(index, stamp, now_ns);
            }
            Said::Ping => self.answer_ping(index),
            Said::Done(REFRESH_ID) => self.counts.refreshed += 1,
            Said::Done(id) => self.joined(index, *id, now_ns),
            Said::Subscribed(joined) => {
                if self.recovers(index) {
                    self.positions.joined(index, joined);
                }
                self.joined(index, SUBSCRIBE_ID, now_ns);
            }
            Said::Unsubscribed(code, reason) => self.unsubscribed(index, *code, reason, now_ns),
            Said::Session(session, node) => {
                let (session, node) = (session.clone(), node.clone());
                if self.population(index).transport.has_up_link() {
                    let side = Side { session, node, ..Side::default() };
                    self.conns[index as usize].side = Some(Box::new(side));
                }
                self.joined(index, CONNECT_ID, now_ns);
            }
            Said::Refused(id, reason) => {
                let what = match *id {
                    CONNECT_ID => "connect",
                    SUBSCRIBE_ID => "subscribe",
                    REFRESH_ID => "refresh",
                    _ => "command",
                };
                self.reject(index, &format!("{what} refused: {reason}"), now_ns);
            }
            Said::Ended(reason) => self.reject(index, reason, now_ns),
            Said::Malformed => self.reject(index, "a reply that is no JSON object", now_ns),
            Said::Text(text) => self.step(index, text, now_ns),
            Said::Other => {}
        }
    }

    /// A text came while a connection opens by a profile.
    fn step(&mut self, index: u32, text: &str, now_ns: u64) {
        let Population { profile, receives, .. } = *self.population(index);
        let channel = self.plan.channels.get(self.channel_number(index) as usize);
        let channel = channel.filter(|_| receives).map(String::as_str);
        let conn = &mut self.conns[index as usize];
        if conn.state != State::Joining {
            return;
        }
        let step = profile.and_then(|of| of.step(conn.joined, text, channel));
        let Some((answer, is_open)) = step else { return };
        conn.joined += 1;
        if !answer.is_empty() {
            self.text.clear();
            self.text.extend_from_slice(answer.as_bytes());
            self.put_text_of(index);
        }
        if is_open {
            self.opened(index, now_ns);
        }
    }

    /// Puts a text of a profile, or a raw message, into a frame of its kind.
    fn put_text_of(&mut self, index: u32) {
        let profile = self.population(index).profile;
        let is_binary = profile.map_or(self.plan.is_binary, |of| of.is_binary);
        let opcode = if is_binary { ws::BINARY } else { ws::TEXT };
        let key = mask_key(&mut self.rng);
        ws::put_masked(&mut self.out, opcode, &self.text, key);
    }

    /// Ends a connection whose server said something that leaves it useless.
    fn reject(&mut self, index: u32, reason: &str, now_ns: u64) {
        if self.conns[index as usize].state.is_opening() {
            self.open_failed(index, reason, false, now_ns);
        } else {
            self.ended(index, reason, now_ns);
        }
    }

    fn joined(&mut self, index: u32, id: u32, now_ns: u64) {
        let subscribes = self.population(index).receives;
        let conn = &mut self.conns[index as usize];
        if conn.state != State::Joining {
            return;
        }
        conn.joined |= match id {
            CONNECT_ID => 1,
            SUBSCRIBE_ID => 2,
            _ => 0,
        };
        let wanted = if subscribes { 3 } else { 1 };
        if conn.joined == wanted {
            self.opened(index, now_ns);
        }
    }

    fn answer_ping(&mut self, index: u32) {
        let Population { centrifugo, transport, profile, hub, .. } = *self.population(index);
        if hub.is_some() {
            return self.count_ping(index);
        }
        if let Some(profile) = profile {
            self.text.clear();
            self.text.extend_from_slice(profile.pong().as_bytes());
            self.put_text_of(index);
            return self.count_ping(index);
        }
        if !centrifugo {
            return;
        }
        if transport.has_up_link() {
            let number = self.global(index);
            if let Some(side) = &self.conns[index as usize].side {
                self.up.push(&self.plan, number, side, speech::PONG);
            }
        } else {
            self.text.clear();
            self.text.extend_from_slice(speech::PONG.as_bytes());
            self.put_text();
        }
        self.count_ping(index);
    }

    /// Counts an answered ping.
    pub(crate) fn count_ping(&mut self, index: u32) {
        let conn = &mut self.conns[index as usize];
        conn.pings = conn.pings.saturating_add(1);
        if conn.pings == self.plan.pings {
            self.counts.pinged += 1;
        }
    }

    /// A message of ours arrived: counts it, and its latencies if it came as it should.
    fn judge(&mut self, index: u32, stamp: &Stamp, now_ns: u64) {
        let Population { role, is_slow, think, .. } = *self.population(index);
        let echo = role == Role::Echoes;
        let expected = if echo { self.global(index) } else { self.channel_number(index) };
        self.counts.received += 1;
        self.counts.last_ns = now_ns;
        if stamp.channel != expected {
            self.counts.duplicated += 1;
            self.reasons.add("a message of another channel or connection");
            return;
        }
        // Recovered with the reply to subscribe, after the connection has left on purpose: its latency is ours.
        let is_recovered = !self.joins.is_empty() && self.skip_absent(index, stamp.sequence);
        let seen = &mut self.conns[index as usize].seen;
        if self.positions.take_announced_gap(index) {
            self.positions.returns.announced += u64::from(seen.skip_to(stamp.sequence));
        }
        match seen.see(stamp.sequence) {
            Verdict::Duplicate => {
                self.counts.duplicated += 1;
                return;
            }
            Verdict::Late => self.counts.out_of_order += 1,
            Verdict::New => {}
        }
        if let Some(window) = &self.plan.closed_loop
            && !is_slow
        {
            window.arrived(stamp.sequence);
        }
        if is_recovered {
            return;
        }
        // Rounded up, so that nothing takes no time.
        let us = |since_ns: u64| now_ns.saturating_sub(since_ns).div_ceil(1000);
        let latency_us = us(stamp.intended_ns);
        self.latency.saturating_record(latency_us);
        if let Some(of) = self.by_channel.get_mut(expected as usize).filter(|_| !echo) {
            of.saturating_record(latency_us);
        }
        if !self.by_population.is_empty() {
            let of = self.plan.population_number(self.share.base + index);
            self.by_population[of].saturating_record(latency_us);
        }
        if let Some(pauses) = &mut self.pauses {
            pauses.record(index, latency_us);
        }
        self.latency_raw.saturating_record(us(stamp.actual_ns));
        if echo && now_ns < self.echo_until_ns {
            match think {
                None => self.put_echo(index, now_ns, now_ns),
                Some(think) => {
                    let due_ns = now_ns + think.draw(self.rng.next_u64()).as_nanos() as u64;
                    let generation = self.conns[index as usize].generation;
                    self.agenda.push(due_ns, index, generation, Act::Send);
                }
            }
        }
    }

    /// Leaves out what was published before a connection joined, now that message `sequence` is its first one.
    /// Returns whether it is away: then the message was recovered.
    fn skip_absent(&mut self, index: u32, sequence: u32) -> bool {
        let first = match self.joins.get(&index) {
            None => return false,
            Some(Join::Away) => return true,
            Some(Join::Behind(before)) => sequence.min(before.saturating_add(1)),
            Some(Join::At(_)) => sequence,
        };
        let skipped = self.conns[index as usize].seen.skip_to(first);
        self.counts.absent += u64::from(skipped);
        self.set_join(index, None);
        false
    }

    fn channel_number(&self, index: u32) -> u32 {
        self.plan.channel_of(self.global(index))
    }

    /// Whether a connection sends to itself.
    pub(crate) fn echoes(&self, index: u32) -> bool {
        self.population(index).role == Role::Echoes
    }

    /// Appends the next message of an echoing connection to what is to be written.
    pub(crate) fn put_echo(&mut self, index: u32, intended_ns: u64, now_ns: u64) {
        let channel = self.global(index);
        let conn = &mut self.conns[index as usize];
        conn.sent += 1;
        self.counts.sent += 1;
        let sequence = conn.sent;
        let run = self.plan.run;
        let stamp = Stamp { run, channel, sequence, intended_ns, actual_ns: now_ns };
        self.payloads.write(&stamp, &mut self.text);
        self.put_text_of(index);
    }

    fn put_text(&mut self) {
        let key = mask_key(&mut self.rng);
        ws::put_masked(&mut self.out, ws::TEXT, &self.text, key);
    }

    /// Appends a control frame to what is to be written.
    pub(crate) fn put_control(&mut self, opcode: ws::OpCode, payload: &[u8]) {
        let key = mask_key(&mut self.rng);
        ws::put_masked(&mut self.out, opcode, payload, key);
    }

    /// Writes what was put, behind what the socket has not taken yet.
    pub(crate) fn flush(&mut self, index: u32, now_ns: u64) {
        if self.conns[index as usize].deferred {
            // Behind what is on its way already.
            let out = std::mem::take(&mut self.out);
            self.flush_batch(now_ns);
            self.out = out;
        }
        let conn = &mut self.conns[index as usize];
        if let Some(tls) = self.tls.as_mut().filter(|_| conn.fd.is_some()) {
            tls.seal(index, &mut self.out);
        }
        self.counts.bytes_sent += self.out.len() as u64;
        if let Some(batch) = &mut self.batch
            && conn.state == State::Open
            && conn.fd.is_some()
            && !conn.is_blocked()
        {
            if self.out.is_empty() {
                return;
            }
            conn.deferred = true;
            let full = batch.push(index, conn.generation, &self.out);
            self.out.clear();
            if full {
                self.flush_batch(now_ns);
            }
            return;
        }
        let written = match &mut conn.spill {
            _ if conn.fd.is_none() => Ok(()),
            Some(spill) if !spill.output.is_empty() => {
                spill.output.append(&mut self.out);
                write_some(conn.fd.as_ref(), &spill.output).map(|count| {
                    spill.output.drain(..count);
                })
            }
            _ if self.out.is_empty() => Ok(()),
            _ => write_some(conn.fd.as_ref(), &self.out).map(|count| {
                if count < self.out.len() {
                    let spill = conn.spill.get_or_insert_with(|| Box::new(Spill::default()));
                    spill.output.extend_from_slice(&self.out[count..]);
                }
            }),
        };
        self.out.clear();
        conn.trim();
        if let Err(error) = written {
            self.ended(index, &plain(&error.into()), now_ns);
        }
    }

    /// Writes what was collected.
    pub(crate) fn flush_batch(&mut self, now_ns: u64) {
        if self.batch.as_ref().is_none_or(Batch::is_empty) {
            return;
        }
        let Some(mut batch) = self.batch.take() else { return };
        let conns = &self.conns;
        batch.run(|index, generation| {
            let conn = &conns[index as usize];
            conn.fd.as_ref().filter(|_| conn.generation == generation).map(AsFd::as_fd)
        });
        let mut broken = Vec::new();
        batch.take(|Written { index, bytes, result }| {
            let conn = &mut self.conns[index as usize];
            conn.deferred = false;
            let count = match result {
                0.. => result as usize,
                _ if -result == Errno::AGAIN.raw_os_error() => 0,
                errno => return broken.push((index, -errno)),
            };
            if count < bytes.len() {
                let spill = conn.spill.get_or_insert_with(|| Box::new(Spill::default()));
                spill.output.extend_from_slice(&bytes[count..]);
            }
        });
        self.batch = Some(batch);
        for (index, errno) in broken {
            let error = std::io::Error::from_raw_os_error(errno);
            self.ended(index, &plain(&error), now_ns);
        }
    }

    /// Messages that never came, when `sent` is how many went out on each channel.
    pub(crate) fn lost(&mut self, sent: &[u32]) -> u64 {
        let mut lost = 0;
        for index in 0..self.conns.len() as u32 {
            let Population { role, is_slow, receives, .. } = *self.population(index);
            let of_channel = sent.get(self.channel_number(index) as usize).copied();
            let conn = &mut self.conns[index as usize];
            let last = if role == Role::Echoes {
                conn.sent
            } else if is_slow || !receives || !conn.was_open {
                0
            } else {
                of_channel.unwrap_or_default()
            };
            if let Some(join) = self.joins.get(&index) {
                // It got nothing since it joined, or is away: what was published before is not lost.
                let before = if let Join::Behind(before) = join { *before } else { last };
                let next = last.min(before).saturating_add(1);
                self.counts.absent += u64::from(conn.seen.skip_to(next));
            }
            lost += conn.seen.lost(last);
        }
        lost
    }

    /// Closes what is open, politely.
    pub(crate) fn say_goodbye(&mut self) {
        for (index, conn) in (0..).zip(&mut self.conns) {
            let population = self.plan.population(self.share.base + index);
            let frames = population.transport == Transport::WebSocket;
            let mut out = Vec::with_capacity(64);
            if frames {
                let code = 1000_u16.to_be_bytes();
                ws::put_masked(&mut out, ws::CLOSE, &code, mask_key(&mut self.rng));
            }
            if conn.state == State::Open && !conn.is_blocked() {
                if let Some(tls) = &mut self.tls {
                    tls.seal(index, &mut out);
                    tls.close_notify(index, &mut out);
                }
                // The socket goes in any case.
                let _ = write_some(conn.fd.as_ref(), &out);
            }
            conn.fd = None;
        }
    }
}

/// Channels, or populations, that have a histogram of their own: the first ones, which are the largest where they
/// differ. Price: 68 KiB each of address space, in each thread.
const HISTOGRAMS_MAX: usize = 32;

/// A histogram for each of several.
fn several(count: usize) -> Vec<Latency> {
    let count = if count > 1 { count.min(HISTOGRAMS_MAX) } else { 0 };
    (0..count).map(|_| figures::latency()).collect()
}

/// The requested compression: each message for itself, so that one that many get is inflated once.
const OFFER: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover; client_max_window_bits";

/// Whether the answer to an upgrade accepts the requested compression, and no other subprotocol than requested.
fn agreed(head: &[u8], plan: &Plan, population: &Population) -> Result<(), &'static str> {
    let text = String::from_utf8_lossy(head);
    let subprotocol = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-protocol").then(|| value.trim())
    });
    if subprotocol.is_some_and(|name| !plan.headers.agree(name)) {
        return Err("the server answers with a subprotocol that was not requested");
    }
    let text = text.to_ascii_lowercase();
    let extensions = text.lines().find_map(|line| line.strip_prefix("sec-websocket-extensions:"));
    match (population.compression, extensions) {
        (false, _) => Ok(()),
        (true, Some(of)) if !of.contains("permessage-deflate") => {
            Err("the server doesn't compress")
        }
        (true, Some(of)) if of.contains("server_no_context_takeover") => Ok(()),
        (true, Some(_)) => Err("the server compresses with context takeover"),
        (true, None) => Err("the server doesn't compress"),
    }
}
