//! The simulated driver: a network and a clock made of one seed, under which whole shards run.
//!
//! ```text
//!  client --write--> [ in flight, late, in segments ] --> readable --recv--> shard
//!  client <--read--- readable <-- [ in flight, late ] <--- bounded buffer <--send-- shard
//! ```
//! A [`World`] holds both directions of every connection, the listeners, and the queues in which
//! shards pass sockets. Nothing happens by itself: whoever runs the simulation moves the clock
//! ([`World::advance_to`]), plays the clients, and lets a shard have its turn when
//! [`World::is_ready`] says that a wait of it would return. Readiness is edge-triggered with the
//! same promises as epoll, and no more: an event tells what is true when it is taken, one event may
//! stand for several edges, and events for connections that are gone do come.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Accepted, Completion, Driver, Received, Sent, Wake};
use crate::base::frame::SharedFrame;
use crate::base::id::{ConnKey, ShardId};
use crate::base::rng::Rng;
use crate::base::time::{Millis, UnixSeconds};

/// What goes wrong, and how often: `one_in` n operations, 0 for never.
#[derive(Clone, Debug)]
pub struct Faults {
    /// Bytes and FINs travel so long at most, in milliseconds.
    pub delay_ms_max: u64,
    /// What is written at once arrives in segments of so many bytes at most.
    pub segment_bytes_max: usize,
    /// A read yields fewer bytes than there are.
    pub partial_read_one_in: u64,
    /// A write takes fewer bytes than there is room for.
    pub partial_write_one_in: u64,
    /// A write finds the socket full for a moment, though there is room.
    pub blocked_write_one_in: u64,
    /// A read or write of a shard finds the connection reset by the network.
    pub reset_one_in: u64,
    /// Accepting fails: the peer has gone.
    pub accept_failed_one_in: u64,
    /// Accepting finds no free descriptor.
    pub accept_full_one_in: u64,
    /// A wait reports events that are about nothing: of dead connections, or untrue.
    pub spurious_one_in: u64,
}

impl Faults {
    /// A network without faults, which takes no time.
    pub const NONE: Self = Self {
        delay_ms_max: 0,
        segment_bytes_max: usize::MAX,
        partial_read_one_in: 0,
        partial_write_one_in: 0,
        blocked_write_one_in: 0,
        reset_one_in: 0,
        accept_failed_one_in: 0,
        accept_full_one_in: 0,
        spurious_one_in: 0,
    };
}

/// Sizes of a world.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Shards, each with a listener.
    pub shards: usize,
    /// Bytes on their way in one direction of a connection at most, the peer's unread ones included.
    pub pipe_bytes: usize,
    /// Bytes that a shard's read buffer holds.
    pub read_buffer_bytes: usize,
    /// Sockets passed to a shard that wait there at most.
    pub passing: usize,
    /// Events reported by one wait at most.
    pub events: usize,
}

/// A connection, as the client knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(u32);

/// What a client can see of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// So many bytes can be read.
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// The server has closed its side, and all is read.
    Ended,
    /// The connection is broken.
    Reset,
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Pipe {
    /// Segments on their way, each with the time of its arrival; in order.
    in_flight: VecDeque<(u64, Vec<u8>)>,
    /// Arrived and not read.
    arrived: VecDeque<u8>,
    /// Bytes in both.
    bytes: usize,
    /// When the FIN arrives, if it was sent.
    fin_at: Option<u64>,
    fin_arrived: bool,
    last_at: u64,
}

impl Pipe {
    fn settle(&mut self, now: u64) -> bool {
        let mut changed = false;
        while self.in_flight.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, bytes)) = self.in_flight.pop_front() else { break };
            self.arrived.extend(bytes);
            changed = true;
        }
        if !self.fin_arrived && self.fin_at.is_some_and(|at| at <= now) {
            self.fin_arrived = true;
            changed = true;
        }
        changed
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        self.bytes -= count;
        self.arrived.drain(..count).collect()
    }

    fn clear(&mut self) {
        self.in_flight.clear();
        self.arrived.clear();
        self.bytes = 0;
    }
}

#[derive(Debug, Default)]
struct Link {
    up: Pipe,
    down: Pipe,
    reset: bool,
    /// Who watches it on the server's side.
    watched: Option<(usize, ConnKey)>,
    /// On its shard's list of edges.
    edge: bool,
    /// The shard was told that the socket is full, and not yet that it has room.
    wants_room: bool,
    /// Told to be full though there is room, until then.
    full_until: u64,
    server_closed: bool,
    client_closed: bool,
    /// It was a fault of the network that broke it.
    injected: bool,
}

#[derive(Debug)]
struct Seat {
    waiting: VecDeque<u32>,
    acceptable: bool,
    listening: bool,
    passing: VecDeque<u32>,
    passed: bool,
    edges: VecDeque<u32>,
    woken: Arc<Flag>,
    /// Keys of connections that were closed, for events that come too late.
    dead: VecDeque<ConnKey>,
}

#[derive(Debug, Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// What happened, for the trace.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
enum Op {
    Connect = 1,
    Accept,
    Pass,
    Read,
    Send,
    Finish,
    Close,
    Reset,
    ClientRead,
    ClientWrite,
    ClientEnd,
    Wait,
}

/// A network, its clock and its faults, all drawn from one seed.
pub struct World {
    rng: Rng,
    now: u64,
    unix: i64,
    faults: Faults,
    sizes: Sizes,
    links: Vec<Link>,
    seats: Vec<Seat>,
    /// When something arrives, and on which link.
    agenda: BTreeMap<(u64, u64), u32>,
    sequence: u64,
    trace: u64,
}

/// A world that its shards share.
pub type SharedWorld = Rc<RefCell<World>>;

impl World {
    /// A world without connections. The first shard's clock is not 0, as in a process that runs.
    pub fn new(seed: u64, sizes: Sizes, faults: Faults) -> SharedWorld {
        let seat = || Seat {
            waiting: VecDeque::new(),
            acceptable: false,
            listening: true,
            passing: VecDeque::new(),
            passed: false,
            edges: VecDeque::new(),
            woken: Arc::default(),
            dead: VecDeque::new(),
        };
        let mut rng = Rng::new(seed);
        let now = rng.below(10_000);
        Rc::new(RefCell::new(Self {
            now,
            rng,
            unix: 1_700_000_000,
            faults,
            links: Vec::new(),
            seats: (0..sizes.shards).map(|_| seat()).collect(),
            sizes,
            agenda: BTreeMap::new(),
            sequence: 0,
            trace: seed,
        }))
    }

    /// The moment.
    pub fn now(&self) -> Millis {
        Millis(self.now)
    }

    /// The same by the wall clock.
    pub fn unix(&self) -> UnixSeconds {
        UnixSeconds(self.unix + (self.now / 1000) as i64)
    }

    /// A number that two runs share exactly if the same happened in both, in the same order.
    pub fn trace(&self) -> u64 {
        self.trace
    }

    /// From now on other things go wrong.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// What wakes a shard.
    pub fn waker(&self, shard: ShardId) -> Arc<dyn Wake> {
        self.seats[shard.index()].woken.clone()
    }

    /// Whether a wait of this shard until `until` would return now.
    pub fn is_ready(&self, shard: ShardId, until: Option<Millis>) -> bool {
        let seat = &self.seats[shard.index()];
        seat.acceptable
            || seat.passed
            || !seat.edges.is_empty()
            || seat.woken.0.load(Ordering::SeqCst)
            || until.is_some_and(|until| until.0 <= self.now)
    }

    /// When something arrives next.
    pub fn next_arrival(&self) -> Option<Millis> {
        self.agenda.first_key_value().map(|((at, _), _)| Millis(*at))
    }

    /// Moves the clock, and lets arrive what is due.
    pub fn advance_to(&mut self, at: Millis) {
        self.now = self.now.max(at.0);
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(entry) = self.agenda.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let at = entry.remove();
            let now = self.now;
            let link = &mut self.links[at as usize];
            link.down.settle(now);
            let arrived = link.up.settle(now);
            if arrived && link.server_closed && !link.up.arrived.is_empty() {
                // Nobody is there to read it: the kernel answers with a reset.
                self.break_link(at);
                continue;
            }
            let room = link.wants_room && link.full_until <= now;
            if arrived || (room && link.down.bytes < self.sizes.pipe_bytes) {
                self.edge(at);
            }
        }
    }

    /// Puts a connection on its shard's list of those with news.
    fn edge(&mut self, at: u32) {
        let link = &mut self.links[at as usize];
        if let Some((shard, _)) = link.watched
            && !link.edge
        {
            link.edge = true;
            self.seats[shard].edges.push_back(at);
        }
    }

    fn note(&mut self, op: Op, at: u32, value: u64) {
        let word = u64::from(op as u8) << 56 ^ u64::from(at) << 24 ^ value;
        self.trace = (self.trace ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    }

    fn happens(&mut self, one_in: u64) -> bool {
        one_in > 0 && self.rng.one_in(one_in)
    }

    fn later(&mut self, at: u64, link: u32) {
        self.sequence += 1;
        self.agenda.insert((at, self.sequence), link);
    }

    /// Sends bytes on their way, in order, in segments.
    fn travel(&mut self, at: u32, down: bool, mut bytes: &[u8]) {
        let mut segments = 0;
        while !bytes.is_empty() {
            segments += 1;
            let max = self.faults.segment_bytes_max.min(bytes.len());
            let mut count = 1 + self.rng.below(max as u64) as usize;
            if segments == SEGMENTS_MAX || (max == bytes.len() && self.rng.one_in(2)) {
                count = bytes.len();
            }
            let (segment, rest) = bytes.split_at(count);
            bytes = rest;
            let delay = self.rng.below(self.faults.delay_ms_max + 1);
            let link = &mut self.links[at as usize];
            let pipe = if down { &mut link.down } else { &mut link.up };
            let arrives = pipe.last_at.max(self.now + delay);
            pipe.last_at = arrives;
            pipe.bytes += segment.len();
            pipe.in_flight.push_back((arrives, segment.to_vec()));
            self.later(arrives, at);
        }
        self.settle();
    }

    fn fin(&mut self, at: u32, down: bool) {
        let delay = self.rng.below(self.faults.delay_ms_max + 1);
        let link = &mut self.links[at as usize];
        let pipe = if down { &mut link.down } else { &mut link.up };
        if pipe.fin_at.is_none() {
            let arrives = pipe.last_at.max(self.now + delay);
            pipe.fin_at = Some(arrives);
            self.later(arrives, at);
            self.settle();
        }
    }

    /// Both ends find the connection broken. What has arrived at the server may still be read, as
    /// on Linux; what the client has not read is lost.
    fn break_link(&mut self, at: u32) {
        self.note(Op::Reset, at, 0);
        let lose = self.rng.one_in(2);
        let link = &mut self.links[at as usize];
        link.reset = true;
        link.down.clear();
        link.up.in_flight.clear();
        if lose {
            link.up.arrived.clear();
        }
        link.up.bytes = link.up.arrived.len();
        self.edge(at);
    }

    // ---- The clients' side.

    /// A client connects: one of the listeners gets it. `None` when none listens.
    pub fn connect(&mut self) -> Option<LinkId> {
        let listening: Vec<usize> =
            (0..self.seats.len()).filter(|at| self.seats[*at].listening).collect();
        let shard = *listening.get(self.rng.below(listening.len() as u64) as usize)?;
        let at = self.links.len() as u32;
        self.links.push(Link::default());
        self.seats[shard].waiting.push_back(at);
        self.seats[shard].acceptable = true;
        self.note(Op::Connect, at, shard as u64);
        Some(LinkId(at))
    }

    /// What a client sees of its connection.
    pub fn look(&self, link: LinkId) -> Seen {
        let link = &self.links[link.0 as usize];
        match link.down.arrived.len() {
            _ if link.reset => Seen::Reset,
            0 if link.down.fin_arrived => Seen::Ended,
            0 => Seen::Nothing,
            bytes => Seen::Bytes(bytes),
        }
    }

    /// A client reads at most `bytes_max` of what has arrived.
    pub fn read(&mut self, link: LinkId, bytes_max: usize) -> Vec<u8> {
        let at = link.0;
        let link = &mut self.links[at as usize];
        let count = link.down.arrived.len().min(bytes_max);
        let bytes = link.down.take(count);
        let room = link.wants_room && link.full_until <= self.now;
        if count > 0 && room {
            self.edge(at);
        }
        self.note(Op::ClientRead, at, count as u64);
        bytes
    }

    /// A client writes; the answer is how many bytes its socket took.
    pub fn write(&mut self, link: LinkId, bytes: &[u8]) -> usize {
        let at = link.0;
        let room = {
            let link = &self.links[at as usize];
            if link.reset || link.client_closed {
                return bytes.len();
            }
            self.sizes.pipe_bytes.saturating_sub(link.up.bytes)
        };
        let count = room.min(bytes.len());
        self.note(Op::ClientWrite, at, count as u64);
        self.travel(at, false, &bytes[..count]);
        count
    }

    /// Whether a client's socket has room.
    pub fn has_room(&self, link: LinkId) -> bool {
        let link = &self.links[link.0 as usize];
        link.reset || link.up.bytes < self.sizes.pipe_bytes
    }

    /// A client sends its FIN; it may go on reading.
    pub fn shut(&mut self, link: LinkId) {
        self.note(Op::ClientEnd, link.0, 0);
        self.links[link.0 as usize].client_closed = true;
        self.fin(link.0, false);
    }

    /// A client, or something between, resets the connection.
    pub fn reset(&mut self, link: LinkId) {
        self.break_link(link.0);
    }

    /// Whether it was a fault of the network that broke this connection.
    pub fn is_injected(&self, link: LinkId) -> bool {
        self.links[link.0 as usize].injected
    }

    /// Whether the server still holds this connection's socket (or has not accepted it yet).
    pub fn is_held(&self, link: LinkId) -> bool {
        !self.links[link.0 as usize].server_closed
    }

    /// Connections whose socket a shard holds, or that wait to be accepted or passed.
    pub fn held(&self) -> usize {
        self.links.iter().filter(|link| !link.server_closed).count()
    }

    // ---- The shards' side.

    fn wait(&mut self, shard: usize, completions: &mut Vec<Completion>) {
        if self.seats[shard].woken.0.swap(false, Ordering::SeqCst) {
            completions.push(Completion::Woken);
        }
        if std::mem::take(&mut self.seats[shard].acceptable) {
            completions.push(Completion::Acceptable);
        }
        if std::mem::take(&mut self.seats[shard].passed) {
            completions.push(Completion::Passed);
        }
        for _ in 0..self.sizes.events {
            let Some(at) = self.seats[shard].edges.pop_front() else { break };
            self.report(at, completions);
        }
        if self.happens(self.faults.spurious_one_in) {
            self.report_nonsense(shard, completions);
        }
        self.note(Op::Wait, shard as u32, completions.len() as u64);
    }

    /// Reports a connection as it is now.
    fn report(&mut self, at: u32, completions: &mut Vec<Completion>) {
        let extra = self.rng.one_in(2);
        let link = &mut self.links[at as usize];
        link.edge = false;
        let Some((_, key)) = link.watched else { return };
        let ended = link.up.fin_arrived || link.reset;
        let room = link.down.bytes < self.sizes.pipe_bytes && link.full_until <= self.now;
        if link.reset || (room && (link.wants_room || extra)) {
            link.wants_room = false;
            completions.push(Completion::Writable { key });
        }
        if ended || !link.up.arrived.is_empty() {
            completions.push(Completion::Readable { key, ended });
        }
    }

    /// Events that come too late, or tell what isn't so (any more).
    fn report_nonsense(&mut self, shard: usize, completions: &mut Vec<Completion>) {
        let watched = |link: &Link| link.watched.filter(|(s, _)| *s == shard);
        let alive: Vec<ConnKey> =
            self.links.iter().filter_map(watched).map(|(_, key)| key).collect();
        let dead = &self.seats[shard].dead;
        let pick = self.rng.below((alive.len() + dead.len()) as u64) as usize;
        let Some(key) = alive.get(pick).or_else(|| dead.get(pick - alive.len())).copied() else {
            return;
        };
        let is_dead = pick >= alive.len();
        completions.push(match self.rng.below(3) {
            0 => Completion::Readable { key, ended: false },
            1 if is_dead => Completion::Readable { key, ended: true },
            2 if is_dead => Completion::Sent { key, bytes: None },
            _ => Completion::Writable { key },
        });
    }

    fn maybe_reset(&mut self, at: u32) {
        if self.happens(self.faults.reset_one_in) {
            self.links[at as usize].injected = true;
            self.break_link(at);
        }
    }

    fn recv(&mut self, at: u32, bytes_max: usize) -> Received<Lease> {
        self.maybe_reset(at);
        let partial = self.happens(self.faults.partial_read_one_in);
        let want = bytes_max.min(self.sizes.read_buffer_bytes);
        let link = &mut self.links[at as usize];
        let there = link.up.arrived.len();
        if there == 0 {
            return match (link.reset, link.up.fin_arrived) {
                (true, _) => Received::Failed,
                (false, true) => Received::Ended,
                (false, false) => Received::Blocked,
            };
        }
        let mut count = there.min(want);
        if partial {
            count = 1 + self.rng.below(count as u64) as usize;
        }
        let bytes = link.up.take(count);
        self.note(Op::Read, at, count as u64);
        Received::Bytes { lease: Lease(bytes), short: count == there && count < want }
    }

    fn send<'f>(
        &mut self,
        at: u32,
        frames: impl ExactSizeIterator<Item = &'f SharedFrame>,
        skip: usize,
    ) -> Sent {
        self.maybe_reset(at);
        let link = &self.links[at as usize];
        assert!(!link.server_closed, "sent on a closed socket");
        assert!(link.down.fin_at.is_none(), "sent behind the FIN");
        if link.reset {
            return Sent::Failed;
        }
        let mut room = self.sizes.pipe_bytes.saturating_sub(link.down.bytes);
        if link.full_until > self.now {
            room = 0;
        } else if room > 0 && self.happens(self.faults.blocked_write_one_in) {
            room = 0;
            let until = self.now + 1 + self.rng.below(self.faults.delay_ms_max + 1);
            self.links[at as usize].full_until = until;
            self.later(until, at);
        }
        if room == 0 {
            self.links[at as usize].wants_room = true;
            self.note(Op::Send, at, 0);
            return Sent::Blocked;
        }
        let mut bytes = Vec::new();
        for frame in frames.take(SEND_FRAMES_MAX) {
            bytes.extend_from_slice(frame.bytes());
        }
        bytes.drain(..skip);
        let asked = bytes.len();
        bytes.truncate(room);
        if self.happens(self.faults.partial_write_one_in) {
            bytes.truncate(1 + self.rng.below(bytes.len() as u64) as usize);
        }
        self.note(Op::Send, at, bytes.len() as u64);
        if bytes.len() < asked {
            self.links[at as usize].wants_room = true;
            // Where there is room, the promised event comes at once.
            self.later(self.now, at);
        }
        self.travel(at, true, &bytes);
        Sent::Bytes(bytes.len())
    }

    fn close(&mut self, at: u32, key: Option<ConnKey>, reset: bool) {
        let link = &mut self.links[at as usize];
        if std::mem::replace(&mut link.server_closed, true) {
            return;
        }
        if let Some((shard, watched)) = link.watched.take() {
            assert!(key.is_none_or(|key| key == watched), "closed under another key");
            let dead = &mut self.seats[shard].dead;
            dead.push_back(watched);
            if dead.len() > DEAD_KEYS_MAX {
                dead.pop_front();
            }
            self.seats[shard].edges.retain(|edge| *edge != at);
        }
        let (unread, broken) = (!link.up.arrived.is_empty(), link.reset);
        self.note(Op::Close, at, u64::from(reset));
        // Closing with bytes unread resets the connection.
        if broken {
        } else if reset || unread {
            self.break_link(at);
        } else {
            self.fin(at, true);
        }
    }

    fn accept(&mut self, shard: usize) -> Accepted<u32> {
        if self.seats[shard].waiting.is_empty() {
            return Accepted::Blocked;
        }
        if self.happens(self.faults.accept_full_one_in) {
            return Accepted::Full;
        }
        let Some(at) = self.seats[shard].waiting.pop_front() else { return Accepted::Blocked };
        if self.happens(self.faults.accept_failed_one_in) {
            self.links[at as usize].injected = true;
            self.close(at, None, true);
            return Accepted::Failed;
        }
        self.note(Op::Accept, at, shard as u64);
        Accepted::Socket(at)
    }

    fn pass(&mut self, to: usize, at: u32) -> bool {
        if self.seats[to].passing.len() >= self.sizes.passing {
            return false;
        }
        self.note(Op::Pass, at, to as u64);
        self.seats[to].passing.push_back(at);
        self.seats[to].passed = true;
        true
    }

    fn watch(&mut self, shard: usize, key: ConnKey, at: u32) -> bool {
        if self.happens(self.faults.accept_failed_one_in) {
            self.links[at as usize].injected = true;
            return false;
        }
        let link = &mut self.links[at as usize];
        assert!(link.watched.is_none(), "watched twice");
        link.watched = Some((shard, key));
        if link.reset || link.up.fin_arrived || !link.up.arrived.is_empty() {
            self.edge(at);
        }
        true
    }
}

/// The server's end of a connection. Closed when it is dropped, as a descriptor is.
pub struct Socket {
    at: u32,
    world: SharedWorld,
    /// It goes on living elsewhere: another shard has it.
    passed: bool,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.passed {
            self.world.borrow_mut().close(self.at, None, false);
        }
    }
}

/// Bytes that were read.
pub struct Lease(Vec<u8>);

impl Deref for Lease {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// The driver of one shard in a [`World`].
pub struct SimDriver {
    world: SharedWorld,
    shard: usize,
    now: Millis,
    unix: UnixSeconds,
    /// The one read buffer is with the shard.
    lent: bool,
}

impl SimDriver {
    /// The driver of `shard`.
    pub fn new(world: &SharedWorld, shard: ShardId) -> Self {
        let (now, unix) = (world.borrow().now(), world.borrow().unix());
        Self { world: Rc::clone(world), shard: shard.index(), now, unix, lent: false }
    }

    fn socket(&self, at: u32) -> Socket {
        Socket { at, world: Rc::clone(&self.world), passed: false }
    }
}

impl Driver for SimDriver {
    type Socket = Socket;
    type Lease = Lease;

    fn now(&self) -> Millis {
        self.now
    }

    fn unix(&self) -> UnixSeconds {
        self.unix
    }

    fn wait(&mut self, until: Option<Millis>, completions: &mut Vec<Completion>) {
        let mut world = self.world.borrow_mut();
        let ready = world.is_ready(ShardId(self.shard as u8), until);
        assert!(ready, "shard {} would sleep: who runs the world lets it wait", self.shard);
        world.wait(self.shard, completions);
        (self.now, self.unix) = (world.now(), world.unix());
    }

    fn accept(&mut self) -> Accepted<Socket> {
        let accepted = self.world.borrow_mut().accept(self.shard);
        match accepted {
            Accepted::Socket(at) => Accepted::Socket(self.socket(at)),
            Accepted::Blocked => Accepted::Blocked,
            Accepted::Failed => Accepted::Failed,
            Accepted::Full => Accepted::Full,
        }
    }

    fn take_passed(&mut self) -> Option<Socket> {
        let at = self.world.borrow_mut().seats[self.shard].passing.pop_front()?;
        Some(self.socket(at))
    }

    fn pass(&mut self, to: ShardId, mut socket: Socket) -> Result<(), Socket> {
        if !self.world.borrow_mut().pass(to.index(), socket.at) {
            return Err(socket);
        }
        socket.passed = true;
        Ok(())
    }

    fn watch(&mut self, key: ConnKey, socket: &Socket) -> std::io::Result<()> {
        let watched = self.world.borrow_mut().watch(self.shard, key, socket.at);
        watched.then_some(()).ok_or_else(|| std::io::ErrorKind::OutOfMemory.into())
    }

    fn recv(&mut self, key: ConnKey, socket: &Socket, bytes_max: usize) -> Received<Lease> {
        assert!(!self.lent, "the read buffer was not given back");
        assert!(bytes_max > 0, "a read of nothing looks like the end");
        let mut world = self.world.borrow_mut();
        let watched = world.links[socket.at as usize].watched;
        assert_eq!(watched, Some((self.shard, key)), "read under another key");
        let received = world.recv(socket.at, bytes_max);
        self.lent = matches!(received, Received::Bytes { .. });
        received
    }

    fn give_back(&mut self, _lease: Lease) {
        assert!(std::mem::take(&mut self.lent), "given back twice");
    }

    fn send<'f>(
        &mut self,
        _key: ConnKey,
        socket: &Socket,
        frames: impl ExactSizeIterator<Item = &'f SharedFrame>,
        skip: usize,
    ) -> Sent {
        assert!(frames.len() > 0, "a write of nothing");
        self.world.borrow_mut().send(socket.at, frames, skip)
    }

    fn finish(&mut self, socket: &Socket) {
        let mut world = self.world.borrow_mut();
        world.note(Op::Finish, socket.at, 0);
        if !world.links[socket.at as usize].reset {
            world.fin(socket.at, true);
        }
    }

    fn close(&mut self, key: ConnKey, socket: Socket, reset: bool) {
        // A connection that was never watched is closed under any key.
        let mut world = self.world.borrow_mut();
        let key = world.links[socket.at as usize].watched.map(|_| key);
        world.close(socket.at, key, reset);
    }

    fn close_listener(&mut self) {
        let mut world = self.world.borrow_mut();
        world.seats[self.shard].listening = false;
        while let Some(at) = world.seats[self.shard].waiting.pop_front() {
            world.close(at, None, true);
        }
    }
}

/// Frames taken by one simulated system call.
const SEND_FRAMES_MAX: usize = 4;

/// Segments in which one write arrives at most: the last one holds the rest.
const SEGMENTS_MAX: usize = 12;

/// Keys remembered of a shard's closed connections.
const DEAD_KEYS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    const SIZES: Sizes =
        Sizes { shards: 2, pipe_bytes: 10, read_buffer_bytes: 4, passing: 1, events: 8 };
    const KEY: ConnKey = ConnKey { index: 3, generation: NonZeroU32::MIN };

    fn begin() -> (SharedWorld, SimDriver, LinkId, Socket) {
        let world = World::new(1, SIZES, Faults::NONE);
        let mut driver = SimDriver::new(&world, ShardId(0));
        loop {
            let link = world.borrow_mut().connect().unwrap();
            if let Accepted::Socket(socket) = driver.accept() {
                driver.watch(KEY, &socket).unwrap();
                world.borrow_mut().seats[0].acceptable = false;
                return (world, driver, link, socket);
            }
        }
    }

    /// What a wait tells, without what epoll may add.
    fn wait(driver: &mut SimDriver) -> Vec<Completion> {
        let mut completions = Vec::new();
        let now = driver.world.borrow().now();
        driver.wait(Some(now), &mut completions);
        completions.retain(|c| !matches!(c, Completion::Writable { .. }));
        completions
    }

    fn recv(driver: &mut SimDriver, socket: &Socket) -> Option<(Vec<u8>, bool)> {
        match driver.recv(KEY, socket, 100) {
            Received::Bytes { lease, short } => {
                let bytes = lease.to_vec();
                driver.give_back(lease);
                Some((bytes, short))
            }
            _ => None,
        }
    }

    #[test]
    fn an_edge_comes_once_for_what_is_new() {
        let (world, mut driver, link, socket) = begin();
        assert_eq!(wait(&mut driver), []);
        world.borrow_mut().write(link, b"abcdef");
        assert_eq!(wait(&mut driver), [Completion::Readable { key: KEY, ended: false }]);
        assert_eq!(recv(&mut driver, &socket), Some((b"abcd".to_vec(), false)));
        // Two bytes are left, and no edge tells of them.
        assert_eq!(wait(&mut driver), []);
        assert_eq!(recv(&mut driver, &socket), Some((b"ef".to_vec(), true)));
        // Data and FIN in one event.
        world.borrow_mut().write(link, b"g");
        world.borrow_mut().shut(link);
        assert_eq!(wait(&mut driver), [Completion::Readable { key: KEY, ended: true }]);
        assert_eq!(wait(&mut driver), []);
        assert_eq!(recv(&mut driver, &socket), Some((b"g".to_vec(), true)));
        assert!(matches!(driver.recv(KEY, &socket, 100), Received::Ended));
    }

    #[test]
    fn room_is_told_after_a_full_socket() {
        let (world, mut driver, link, socket) = begin();
        let frame = SharedFrame::new(b"0123456789abcdef");
        let mut send = |skip| driver.send(KEY, &socket, [&frame].into_iter(), skip);
        assert_eq!(send(0), Sent::Bytes(10));
        assert_eq!(send(10), Sent::Blocked);
        assert_eq!(world.borrow().look(link), Seen::Bytes(10));
        assert!(!world.borrow().is_ready(ShardId(0), None));
        assert_eq!(world.borrow_mut().read(link, 3), b"012");
        let mut completions = Vec::new();
        driver.wait(None, &mut completions);
        assert_eq!(completions, [Completion::Writable { key: KEY }]);
        assert_eq!(driver.send(KEY, &socket, [&frame].into_iter(), 10), Sent::Bytes(3));
    }

    #[test]
    fn closing_with_bytes_unread_resets() {
        let (world, mut driver, link, socket) = begin();
        driver.close(KEY, socket, false);
        assert_eq!(world.borrow().look(link), Seen::Ended);
        world.borrow_mut().write(link, b"too late");
        assert_eq!(world.borrow().look(link), Seen::Reset);
    }

    #[test]
    fn a_passed_socket_belongs_to_the_other_shard() {
        let (world, mut driver, link, socket) = begin();
        world.borrow_mut().links[link.0 as usize].watched = None;
        assert!(driver.pass(ShardId(1), socket).is_ok());
        assert!(world.borrow().is_held(link));
        let mut other = SimDriver::new(&world, ShardId(1));
        let socket = other.take_passed().unwrap();
        assert!(other.take_passed().is_none());
        drop(socket);
        assert!(!world.borrow().is_held(link));
    }
}
