//! The network and its clock: what the shards and the clients share.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Lease;
use super::ends::{ClientEnd, MakeEnd};
use crate::base::address::Peer;
use crate::base::id::{ConnKey, ShardId};
use crate::base::rng::Rng;
use crate::base::time::{Millis, UnixSeconds};
use crate::io::{Accepted, Completion, Piece, Received, Sent, Wake};

/// The faults and their frequency: `one_in` n operations, 0 for never.
#[derive(Clone, Debug)]
pub struct Faults {
    /// Bytes and FINs travel so long at most, in milliseconds.
    pub delay_ms_max: u64,
    /// A write arrives in segments of so many bytes at most.
    pub segment_bytes_max: usize,
    /// A read yields fewer bytes than there are.
    pub partial_read_one_in: u64,
    /// A write takes fewer bytes than there is room for.
    pub partial_write_one_in: u64,
    /// A write finds the socket full for a moment, though there is room.
    pub blocked_write_one_in: u64,
    /// A write ends later, as a completion.
    pub late_send_one_in: u64,
    /// A connection that is to be read next is read ahead.
    pub read_ahead_one_in: u64,
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
        late_send_one_in: 0,
        read_ahead_one_in: 0,
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

impl LinkId {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// The state of its connection that a client can see.
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
pub(super) struct Pipe {
    /// Segments on their way, each with the time of its arrival; in order.
    in_flight: VecDeque<(u64, Vec<u8>)>,
    /// Arrived and not read.
    pub(super) arrived: VecDeque<u8>,
    /// Bytes in both.
    pub(super) bytes: usize,
    /// When the FIN arrives, if it was sent.
    pub(super) fin_at: Option<u64>,
    pub(super) fin_arrived: bool,
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
pub(super) struct Link {
    pub(super) up: Pipe,
    pub(super) down: Pipe,
    pub(super) reset: bool,
    /// What stands between it and its client.
    pub(super) end: Option<Box<dyn ClientEnd>>,
    /// The server closed it while its socket was full.
    pub(super) was_cut: bool,
    /// The watcher on the server's side.
    watched: Option<(usize, ConnKey)>,
    /// On its shard's list of edges.
    edge: bool,
    /// The shard knows that the socket is full, and not yet that it has room.
    wants_room: bool,
    /// A send that goes on: what it is to write, and when it can end.
    sending: Option<Vec<u8>>,
    sending_until: u64,
    /// Reported as full though there is room, until then.
    full_until: u64,
    server_closed: bool,
    pub(super) client_closed: bool,
    /// It was a fault of the network that broke it.
    injected: bool,
}

impl Link {
    /// Whether room in the socket is news for its shard.
    fn waits_for_room(&self, now: u64) -> bool {
        (self.wants_room && self.full_until <= now)
            || (self.sending.is_some() && self.sending_until <= now)
    }
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

/// The operations that a trace consists of.
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

/// One entry of a trace: an operation on a connection (for `Wait`: of a shard), its time, and the
/// bytes that it moved.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    now: u64,
    op: Op,
    at: u32,
    value: u64,
    digest: u64,
}

impl Display for Event {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { now, op, at, value, digest } = self;
        write!(f, "{now} ms  {op:?} {at}  {value}")?;
        match digest {
            0 => Ok(()),
            _ => write!(f, "  {digest:016x}"),
        }
    }
}

/// FNV-1a: traces of two builds are compared, so the digest has to be the same in every process.
fn digest(bytes: &[u8]) -> u64 {
    let mixed = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, mixed)
}

/// A network, its clock and its faults, all drawn from one seed.
pub struct World {
    rng: Rng,
    now: u64,
    unix: i64,
    faults: Faults,
    pub(super) sizes: Sizes,
    pub(super) links: Vec<Link>,
    /// Makes the ends of new connections at their clients.
    pub(super) make_end: Option<MakeEnd>,
    seats: Vec<Seat>,
    /// When something arrives, and on which link.
    agenda: BTreeMap<(u64, u64), u32>,
    sequence: u64,
    trace: u64,
    /// The events since they were last taken, if somebody takes them.
    events: Option<Vec<Event>>,
    failed_sends: usize,
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
            make_end: None,
            seats: (0..sizes.shards).map(|_| seat()).collect(),
            sizes,
            agenda: BTreeMap::new(),
            sequence: 0,
            trace: seed,
            events: None,
            failed_sends: 0,
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

    /// Keeps events from now on, for [`Self::take_events`]. The trace is the same with and without.
    pub fn keep_events(&mut self) {
        self.events.get_or_insert_default();
    }

    /// The events since the last call; none unless they are kept.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.events.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// From now on other things go wrong.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// The causes that wake a shard.
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
            let waits = link.waits_for_room(now);
            if arrived || (waits && link.down.bytes < self.sizes.pipe_bytes) {
                self.edge(at);
            }
            self.pump(at);
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
        self.enter(Event { now: self.now, op, at, value, digest: 0 });
    }

    /// An operation that moves bytes.
    fn note_bytes(&mut self, op: Op, at: u32, bytes: &[u8]) {
        let (value, digest) = (bytes.len() as u64, digest(bytes));
        self.enter(Event { now: self.now, op, at, value, digest });
    }

    fn enter(&mut self, event: Event) {
        let Event { now, op, at, value, digest } = event;
        let word = u64::from(op as u8) << 56 ^ u64::from(at) << 24 ^ value;
        for word in [word, digest, now] {
            self.trace = (self.trace ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
        }
        if let Some(events) = &mut self.events {
            events.push(event);
        }
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

    pub(super) fn fin(&mut self, at: u32, down: bool) {
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

    /// The other end of a connection, as the server sees it.
    pub(super) fn peer(&self, at: u32) -> Option<Peer> {
        (!self.links[at as usize].reset).then(|| Peer::of(address_of(at)))
    }

    // ---- The clients' side.

    /// A client connects: one of the listeners gets it. `None` when none listens.
    pub fn connect(&mut self) -> Option<LinkId> {
        let listening: Vec<usize> =
            (0..self.seats.len()).filter(|at| self.seats[*at].listening).collect();
        let shard = *listening.get(self.rng.below(listening.len() as u64) as usize)?;
        Some(self.connect_to(ShardId(shard as u8)))
    }

    /// A client connects, and the listener of this shard gets it.
    pub fn connect_to(&mut self, shard: ShardId) -> LinkId {
        let shard = shard.index();
        let at = self.links.len() as u32;
        self.links.push(Link::default());
        self.seats[shard].waiting.push_back(at);
        self.seats[shard].acceptable = true;
        self.note(Op::Connect, at, shard as u64);
        if let Some(make) = &mut self.make_end {
            self.links[at as usize].end = Some(make(at));
            self.pump(at);
        }
        LinkId(at)
    }

    /// The client's view of its connection.
    pub fn look(&self, link: LinkId) -> Seen {
        if let Some(end) = &self.links[link.0 as usize].end {
            return self.look_through(link, &**end);
        }
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
        match self.links[link.0 as usize].end {
            None => self.take_arrived(link.0, bytes_max),
            Some(_) => self.read_through(link.0, bytes_max),
        }
    }

    pub(super) fn take_arrived(&mut self, at: u32, bytes_max: usize) -> Vec<u8> {
        let link = &mut self.links[at as usize];
        let count = link.down.arrived.len().min(bytes_max);
        let bytes = link.down.take(count);
        if count > 0 && link.waits_for_room(self.now) {
            self.edge(at);
        }
        self.note_bytes(Op::ClientRead, at, &bytes);
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
        if self.links[at as usize].end.is_some() {
            return self.write_through(at, bytes);
        }
        let count = room.min(bytes.len());
        self.write_up(at, &bytes[..count]);
        count
    }

    pub(super) fn write_up(&mut self, at: u32, bytes: &[u8]) {
        self.note_bytes(Op::ClientWrite, at, bytes);
        self.travel(at, false, bytes);
    }

    /// Whether a client's socket has room.
    pub fn has_room(&self, link: LinkId) -> bool {
        let link = &self.links[link.0 as usize];
        let is_open = link.end.as_ref().is_none_or(|end| end.is_open());
        link.reset || (is_open && link.up.bytes < self.sizes.pipe_bytes)
    }

    /// A client sends its FIN; it may go on reading.
    pub fn shut(&mut self, link: LinkId) {
        self.note(Op::ClientEnd, link.0, 0);
        self.links[link.0 as usize].client_closed = true;
        match &mut self.links[link.0 as usize].end {
            None => self.fin(link.0, false),
            Some(end) => {
                end.shut();
                self.pump(link.0);
            }
        }
    }

    /// A client, or something between, resets the connection.
    pub fn reset(&mut self, link: LinkId) {
        self.break_link(link.0);
    }

    /// Sends on connections that were reset.
    pub fn failed_sends(&self) -> usize {
        self.failed_sends
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

    pub(super) fn wait(&mut self, shard: usize, completions: &mut Vec<Completion>) {
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
        if link.reset && link.sending.take().is_some() {
            completions.push(Completion::Sent { key, bytes: None });
        }
        let room = self.sizes.pipe_bytes.saturating_sub(link.down.bytes);
        if room > 0
            && link.sending_until <= self.now
            && let Some(mut bytes) = link.sending.take()
        {
            bytes.truncate(room);
            completions.push(Completion::Sent { key, bytes: Some(bytes.len() as u32) });
            self.travel(at, true, &bytes);
        }
        let link = &mut self.links[at as usize];
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

    /// Connections that a shard names before it reads them.
    pub(super) fn fetch_max(&self) -> usize {
        if self.faults.read_ahead_one_in > 0 { FETCH_MAX } else { 0 }
    }

    /// Whether one of them is read at that moment.
    pub(super) fn reads_ahead(&mut self) -> bool {
        self.happens(self.faults.read_ahead_one_in)
    }

    pub(super) fn recv(&mut self, at: u32, bytes_max: usize) -> Received<Lease> {
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
        // Its client may have more to send.
        self.pump(at);
        Received::Bytes { lease: Lease(bytes), short: count == there && count < want }
    }

    pub(super) fn send<'f, P: Piece + ?Sized + 'f>(
        &mut self,
        at: u32,
        frames: impl ExactSizeIterator<Item = &'f P>,
        skip: usize,
    ) -> Sent {
        self.maybe_reset(at);
        let link = &self.links[at as usize];
        assert!(!link.server_closed, "sent on a closed socket");
        assert!(link.down.fin_at.is_none(), "sent behind the FIN");
        assert!(link.sending.is_none(), "two sends at a time");
        if link.reset {
            self.failed_sends += 1;
            return Sent::Failed;
        }
        let mut room = self.sizes.pipe_bytes.saturating_sub(link.down.bytes);
        let mut bytes = Vec::new();
        for frame in frames.take(SEND_FRAMES_MAX) {
            bytes.extend_from_slice(frame.bytes());
        }
        if link.watched.is_some() && self.happens(self.faults.late_send_one_in) {
            let until = self.now + self.rng.below(self.faults.delay_ms_max + 1);
            let link = &mut self.links[at as usize];
            bytes.drain(..skip);
            let digest = digest(&bytes);
            link.sending = Some(bytes);
            link.sending_until = until;
            self.enter(Event { now: self.now, op: Op::Send, at, value: u64::MAX >> 40, digest });
            self.later(until, at);
            return Sent::Pending;
        }
        let link = &self.links[at as usize];
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
        bytes.drain(..skip);
        let asked = bytes.len();
        bytes.truncate(room);
        if self.happens(self.faults.partial_write_one_in) {
            bytes.truncate(1 + self.rng.below(bytes.len() as u64) as usize);
        }
        self.note_bytes(Op::Send, at, &bytes);
        if bytes.len() < asked {
            self.links[at as usize].wants_room = true;
            // Where there is room, the promised event comes at once.
            self.later(self.now, at);
        }
        self.travel(at, true, &bytes);
        Sent::Bytes(bytes.len())
    }

    pub(super) fn close(&mut self, at: u32, key: Option<ConnKey>, reset: bool) {
        let link = &mut self.links[at as usize];
        if std::mem::replace(&mut link.server_closed, true) {
            return;
        }
        link.was_cut = link.wants_room || link.sending.is_some();
        if let Some((shard, watched)) = link.watched.take() {
            assert!(key.is_none_or(|key| key == watched), "closed under another key");
            self.bury(shard, watched);
            self.seats[shard].edges.retain(|edge| *edge != at);
        }
        let link = &mut self.links[at as usize];
        link.sending = None;
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

    /// The watcher of a connection, and its key.
    pub(super) fn watched(&self, at: u32) -> Option<(usize, ConnKey)> {
        self.links[at as usize].watched
    }

    pub(super) fn finish(&mut self, at: u32) {
        self.note(Op::Finish, at, 0);
        if !self.links[at as usize].reset {
            self.fin(at, true);
        }
    }

    pub(super) fn take_passed(&mut self, shard: usize) -> Option<u32> {
        self.seats[shard].passing.pop_front()
    }

    pub(super) fn close_listener(&mut self, shard: usize) {
        self.seats[shard].listening = false;
        while let Some(at) = self.seats[shard].waiting.pop_front() {
            self.close(at, None, true);
        }
    }

    pub(super) fn accept(&mut self, shard: usize) -> Accepted<u32> {
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

    pub(super) fn pass(&mut self, to: usize, at: u32) -> bool {
        if self.seats[to].passing.len() >= self.sizes.passing {
            return false;
        }
        self.note(Op::Pass, at, to as u64);
        self.seats[to].passing.push_back(at);
        self.seats[to].passed = true;
        true
    }

    pub(super) fn watch(&mut self, shard: usize, key: ConnKey, at: u32) -> bool {
        if self.happens(self.faults.accept_failed_one_in) {
            self.links[at as usize].injected = true;
            return false;
        }
        let link = &mut self.links[at as usize];
        assert!(link.watched.is_none(), "watched twice");
        link.watched = Some((shard, key));
        self.edge_if_readable(at);
        true
    }

    /// The driver of another process takes over a connection: the kernel reports what is there.
    pub(super) fn adopt(&mut self, shard: usize, key: ConnKey, at: u32) {
        assert_eq!(self.links[at as usize].watched, Some((shard, key)), "another connection");
        self.edge_if_readable(at);
    }

    /// Sends that go on end now, with as much as there is room for.
    pub(super) fn end_sends(&mut self, shard: usize, completions: &mut Vec<Completion>) {
        for at in 0..self.links.len() as u32 {
            let link = &mut self.links[at as usize];
            let Some((_, key)) = link.watched.filter(|(of, _)| *of == shard) else { continue };
            let Some(mut bytes) = link.sending.take() else { continue };
            if link.reset {
                completions.push(Completion::Sent { key, bytes: None });
                continue;
            }
            bytes.truncate(self.sizes.pipe_bytes.saturating_sub(link.down.bytes));
            completions.push(Completion::Sent { key, bytes: Some(bytes.len() as u32) });
            self.travel(at, true, &bytes);
        }
    }

    pub(super) fn rename(&mut self, shard: usize, old: ConnKey, new: ConnKey, at: u32) -> bool {
        if self.happens(self.faults.accept_failed_one_in) {
            return false;
        }
        let watched = self.links[at as usize].watched.replace((shard, new));
        assert_eq!(watched, Some((shard, old)), "watched under another key");
        self.bury(shard, old);
        self.edge_if_readable(at);
        true
    }

    /// A connection that is watched anew is reported if there is something to read.
    fn edge_if_readable(&mut self, at: u32) {
        let link = &self.links[at as usize];
        if link.reset || link.up.fin_arrived || !link.up.arrived.is_empty() {
            self.edge(at);
        }
    }

    /// Events may still come for a key that is no connection's any more.
    fn bury(&mut self, shard: usize, key: ConnKey) {
        let dead = &mut self.seats[shard].dead;
        dead.push_back(key);
        if dead.len() > DEAD_KEYS_MAX {
            dead.pop_front();
        }
    }
}

/// Connections read ahead at once.
const FETCH_MAX: usize = 4;

/// Frames taken by one simulated system call.
const SEND_FRAMES_MAX: usize = 4;

/// Segments in which one write arrives at most: the last one holds the rest.
const SEGMENTS_MAX: usize = 12;

/// Keys remembered of a shard's closed connections.
const DEAD_KEYS_MAX: usize = 16;

/// The address that a connection comes from: some come from one host, some from networks of IPv6.
fn address_of(at: u32) -> IpAddr {
    let host = (at.wrapping_mul(0x9e37_79b1) >> 29) as u16;
    match host % 4 {
        0 => Ipv6Addr::new(0x2001, 0xdb8, 0, host, 0, 0, 0, at as u16).into(),
        _ => Ipv4Addr::new(192, 0, 2, host as u8).into(),
    }
}
