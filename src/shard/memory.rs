//! Memory: how much of it the node uses, what is refused when that is too much, and what goes then.
//!
//! ```text
//!  0 ----------------------------- history's bound ------------------- limit
//!    everything is served          | history grows by the history of   | nothing grows, see below
//!                                  | idle channels, or not at all;     |
//!                                  | the rest is served                |
//! ```
//! Over the limit new connections, subscriptions, publications and calls are refused, and what is held goes in
//! this order, until what is left is below it: encoded answers that are kept for others; unfinished bodies of
//! requests, the largest first; connections with the largest queues; history of idle channels, those first
//! that nobody used for longest; remembered tokens and publishes; history of channels with subscribers.
//!
//! In use is what the allocator has handed out, which is known at every moment, and what it takes beside that
//! (fragments, code, the kernel's part of sockets), which the control thread looks up several times a second.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};

use crate::base::counters::Counter;
use crate::base::notices::Reason;
use crate::base::time::Millis;
use crate::hub::home::Shed;
use crate::io::Driver;
use crate::shard::Shard;
use crate::shard::context::Cx;
use crate::shard::stats::ShardCounters;

/// What a node may have in memory, and has.
#[derive(Debug)]
pub struct Memory {
    limit: u64,
    allocated: Allocated,
    beside: AtomicI64,
    /// Room that publications were refused for: shards that have idle history make it.
    wanted: AtomicU64,
    /// Times that freed memory was to be given back to the system.
    collections: AtomicU32,
}

#[derive(Debug)]
enum Allocated {
    /// Says how many bytes the allocator has handed out.
    By(fn() -> u64),
    /// What was set last: in a simulation, where only what is kept counts.
    Set(AtomicU64),
}

impl Memory {
    /// `limit` bytes; `allocated` says how many the allocator has handed out.
    pub fn new(limit: u64, allocated: fn() -> u64) -> Self {
        Self::of(limit, Allocated::By(allocated))
    }

    /// `limit` bytes, of which only those count that [`Self::set_allocated`] names.
    pub fn simulated(limit: u64) -> Self {
        Self::of(limit, Allocated::Set(AtomicU64::new(0)))
    }

    fn of(limit: u64, allocated: Allocated) -> Self {
        let (beside, wanted) = (AtomicI64::new(0), AtomicU64::new(0));
        Self { limit, allocated, beside, wanted, collections: AtomicU32::new(0) }
    }

    /// Bytes that the node may use.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes up to which history grows: a sixteenth below the limit, 64 MiB at most. That is the room of
    /// those who come and speak while somebody fills history.
    pub fn history_max(&self) -> u64 {
        self.limit - (self.limit / 16).min(RESERVE_BYTES_MAX)
    }

    /// Bytes that the allocator has handed out.
    pub fn allocated(&self) -> u64 {
        match &self.allocated {
            Allocated::By(allocated) => allocated(),
            Allocated::Set(bytes) => bytes.load(Ordering::Relaxed),
        }
    }

    /// Names the bytes that count in a simulation.
    pub fn set_allocated(&self, bytes: u64) {
        if let Allocated::Set(allocated) = &self.allocated {
            allocated.store(bytes, Ordering::Relaxed);
        }
    }

    /// Names the bytes beside those that the allocator has handed out; negative where some of those were
    /// never touched.
    pub fn set_beside(&self, bytes: i64) {
        self.beside.store(bytes, Ordering::Relaxed);
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.allocated().saturating_add_signed(self.beside.load(Ordering::Relaxed))
    }

    /// More is in use than the limit: nothing may grow.
    pub fn is_short(&self) -> bool {
        self.used() > self.limit
    }

    /// Bytes over the limit.
    fn excess(&self) -> u64 {
        self.used().saturating_sub(self.limit)
    }

    /// Bytes over history's bound when so many more are kept.
    pub(crate) fn history_excess(&self, more: u64) -> u64 {
        self.used().saturating_add(more).saturating_sub(self.history_max())
    }

    /// Publications are refused for want of room: others are to make some. Whether nobody had said so yet.
    pub(crate) fn want_room(&self, bytes: u64) -> bool {
        let bytes = (16 * bytes).max(self.limit / 256);
        self.wanted.fetch_max(bytes, Ordering::Relaxed) == 0
    }

    /// Forgets the room that was wanted: who still wants it says so again.
    pub fn forget_wanted(&self) {
        self.wanted.store(0, Ordering::Relaxed);
    }

    /// Has every shard give freed memory back to the system.
    pub fn collect(&self) {
        self.collections.fetch_add(1, Ordering::Relaxed);
    }
}

/// How far history stays below the limit at most, bytes.
const RESERVE_BYTES_MAX: u64 = 64 << 20;

/// A shard's part in it.
#[derive(Debug)]
pub(super) struct Shedding {
    /// Something is left to be given up at once.
    pub(super) goes_on: bool,
    /// Connections aren't looked through again before.
    search_at: Millis,
    /// Collections that this shard has taken part in.
    collections: u32,
}

impl Shedding {
    pub(super) fn new(now: Millis) -> Self {
        Self { goes_on: false, search_at: now, collections: 0 }
    }
}

impl Cx {
    /// Whether patches of so many bytes may be kept beside publications: nothing is shed for them.
    pub(crate) fn has_room_for_patches(&self, bytes: usize) -> bool {
        !self.node.memory.is_short() && self.node.memory.history_excess(bytes as u64) == 0
    }

    /// Nothing may grow now; counts what is refused for it.
    pub(crate) fn is_short_for(&self, refused: fn(&ShardCounters) -> &Counter) -> bool {
        let short = self.node.memory.is_short();
        if short {
            refused(self.counters()).inc();
        }
        short
    }

    /// This shard's part of so many bytes of idle history: as large as what it has of it.
    pub(crate) fn share_of_history(&self, bytes: u64) -> usize {
        let weight = |counters: &ShardCounters| {
            counters.history_bytes.get() + IDLE_CHANNEL_BYTES * counters.channels_idle.get()
        };
        let all: u64 = self.node.counters.iter().map(weight).sum();
        let share = u128::from(bytes) * u128::from(weight(self.counters()));
        usize::try_from(share.div_ceil(u128::from(all.max(1)))).unwrap_or(usize::MAX)
    }

    pub(crate) fn count_shed(&self, shed: Shed) {
        let counters = self.counters();
        counters.shed_channels.add(shed.channels as u64);
        counters.shed_publications.add(shed.publications as u64);
    }
}

impl<D: Driver> Shard<D> {
    /// Gives up what is too much, a slice in each turn.
    pub(super) fn keep_to_memory(&mut self) {
        let counters = self.cx.counters();
        self.home.set_history_gauges(counters);
        self.life.shedding.goes_on = false;
        let memory = &self.cx.node.memory;
        let wanted = memory.wanted.load(Ordering::Relaxed);
        let (over_history, excess) = (memory.history_excess(wanted), memory.excess());
        let collections = memory.collections.load(Ordering::Relaxed);
        if collections != self.life.shedding.collections {
            self.life.shedding.collections = collections;
            (self.life.collect)();
        }
        if over_history == 0 {
            return;
        }
        if excess > 0 {
            let share = excess.div_ceil(self.cx.node.counters.len() as u64);
            self.give_up(usize::try_from(share).unwrap_or(usize::MAX));
            return;
        }
        self.home.shed_idle(&self.cx, self.cx.share_of_history(over_history));
        let left = self.cx.node.memory.history_excess(wanted);
        self.life.shedding.goes_on = left > 0 && left < over_history && self.home.has_idle();
    }

    /// Gives up so many bytes, in the order that the module states.
    fn give_up(&mut self, bytes: usize) {
        let mut left = bytes;
        let mut gave = |bytes: usize| {
            left = left.saturating_sub(bytes);
            left
        };
        if gave(self.forget_answers()) == 0 {
            return;
        }
        let left = gave(self.close_largest(bytes));
        if left == 0 {
            return;
        }
        let idle = self.home.shed_idle(&self.cx, left);
        self.life.shedding.goes_on = idle > 0;
        let left = left.saturating_sub(idle);
        if left == 0 || idle > 0 {
            return;
        }
        let left = left.saturating_sub(self.home.forget_remembered(&self.cx, left));
        if left > 0 {
            self.life.shedding.goes_on = self.home.shed_in_use(&self.cx, left) > 0;
        }
    }

    /// Forgets encoded answers: whoever asks next costs their encoding again.
    fn forget_answers(&mut self) -> usize {
        let bytes = self.home.forget_answers() + self.codec.pieces.bytes();
        if bytes > 0 {
            self.cx.counters().shed_answers.inc();
            self.codec.pieces.clear();
        }
        bytes
    }

    /// Ends requests with unfinished bodies and then connections with large queues, until that gives
    /// `bytes` back. What it gave.
    fn close_largest(&mut self, bytes: usize) -> usize {
        let now = self.cx.now;
        if now < self.life.shedding.search_at {
            return 0;
        }
        // All connections are looked at: that is to take a small part of the time.
        self.life.shedding.search_at =
            now.after(SEARCH_MS + self.net.conns.len() as u64 / SEARCHED_IN_MS);
        let mut found: Vec<(bool, usize, u32)> = Vec::new();
        for (index, conn) in self.net.conns.iter().filter(|(_, conn)| conn.socket.is_some()) {
            let waits = self.net.queues.get(conn.queue).map_or(0, |queue| queue.bytes());
            let (is_body, kept) = conn.rx.as_ref().map_or((false, 0), |rx| {
                let body = rx.incoming.as_ref().map_or(0, |incoming| incoming.bytes());
                let held = rx.reader.bytes_held() + rx.emulated_bytes();
                (body > 0, rx.raw.capacity() + rx.commands.capacity() + held + body)
            });
            let least = if is_body { BODY_BYTES_MIN } else { QUEUE_BYTES_MIN };
            if waits + kept >= least {
                found.push((is_body, waits + kept, index as u32));
            }
        }
        found.sort_unstable_by_key(|(is_body, bytes, _)| (!is_body, Reverse(*bytes)));
        let mut given = 0;
        for (is_body, held, index) in found.into_iter().take(CLOSED_MAX) {
            if given >= bytes {
                break;
            }
            given += held;
            if is_body {
                self.cx.counters().shed_bodies.inc();
                self.net.refuse_unfinished(&self.cx, &mut self.post, index, Reason::HttpMemory);
            } else {
                self.cx.counters().closed_memory.add(1);
                let why = format_args!("{held} bytes were held for it");
                self.notice(index, Reason::CloseMemory, 0, "", why);
                self.net.release(&self.cx, &mut self.post, index, true);
            }
        }
        given
    }
}

/// An idle channel without publications, about.
const IDLE_CHANNEL_BYTES: u64 = 200;

/// Ending a request with a body of less than this doesn't help.
const BODY_BYTES_MIN: usize = 4 * 1024;

/// Closing a connection with less than this doesn't help.
const QUEUE_BYTES_MIN: usize = 64 * 1024;

/// Connections closed in one step at most.
const CLOSED_MAX: usize = 64;

/// Connections are looked through so seldom at least, milliseconds, and later where there are many.
const SEARCH_MS: u64 = 10;

/// Connections for which a search waits a millisecond longer: looking at one takes some nanoseconds.
const SEARCHED_IN_MS: u64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_stays_below_the_limit() {
        let max = |limit| Memory::simulated(limit).history_max();
        assert_eq!((max(0), max(160), max(u64::MAX)), (0, 150, u64::MAX - RESERVE_BYTES_MAX));
        assert_eq!(max(100 << 30), (100 << 30) - (64 << 20));
    }

    #[test]
    fn in_use_is_what_was_handed_out_and_what_is_beside_it() {
        let memory = Memory::simulated(1600);
        memory.set_allocated(1000);
        memory.set_beside(500);
        assert_eq!((memory.used(), memory.is_short(), memory.excess()), (1500, false, 0));
        assert_eq!((memory.history_excess(0), memory.history_excess(7)), (0, 7));
        memory.set_beside(601);
        assert_eq!((memory.is_short(), memory.excess()), (true, 1));
        memory.set_beside(-2000);
        assert_eq!(memory.used(), 0);
        assert!(memory.want_room(1) && !memory.want_room(2));
        memory.forget_wanted();
        assert!(memory.want_room(1));
    }
}
