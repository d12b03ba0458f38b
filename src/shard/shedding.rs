//! Giving memory up, a slice in each turn, and refusing what would need more.
//!
//! Over the limit, new connections, subscriptions, publications and API calls are refused, and memory
//! is given up in this order until the rest is below the limit: encoded answers that are kept for
//! others; unfinished bodies of requests, the largest first; connections with the largest queues;
//! history of idle channels, the least recently used first; remembered tokens and publishes; history of
//! channels with subscribers.

use std::cmp::Reverse;

use crate::base::counters::Counter;
use crate::base::notices::Reason;
use crate::base::time::Millis;
use crate::hub::home::Shed;
use crate::io::Driver;
use crate::shard::Shard;
use crate::shard::context::Cx;
use crate::shard::outlets::outlets;
use crate::shard::stats::ShardCounters;

/// The state of giving memory up.
#[derive(Debug)]
pub(crate) struct Shedding {
    /// More is to be given up in the next turn, which comes at once.
    pub(crate) goes_on: bool,
    /// Next search of all connections for large queues.
    search_at: Millis,
    /// Number of [`Memory::collect`](crate::shard::Memory::collect) calls that this shard has obeyed.
    collections: u32,
}

impl Shedding {
    pub(crate) fn new(now: Millis) -> Self {
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
    pub(crate) fn keep_to_memory(&mut self) {
        let counters = self.cx.counters();
        self.home.set_history_gauges(counters);
        self.life.shedding.goes_on = false;
        let memory = &self.cx.node.memory;
        let wanted = memory.wanted();
        let (over_history, excess) = (memory.history_excess(wanted), memory.excess());
        let collections = memory.collections();
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
                self.clients.notice(&outlets!(self), index, Reason::CloseMemory, 0, "", why);
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
    use crate::shard::Memory;
    use crate::shard::fixture::Plan;

    #[test]
    fn a_shard_gives_up_its_share_of_idle_history() {
        let cx = Plan::default().cx();
        assert_eq!(cx.share_of_history(100), 0, "no shard has history");
        cx.node.counters[0].history_bytes.set(300);
        cx.node.counters[1].history_bytes.set(100);
        assert_eq!(cx.share_of_history(100), 75);
        // An idle channel counts even without publications.
        cx.node.counters[1].channels_idle.set(1);
        assert_eq!(cx.share_of_history(100), 50);
    }

    #[test]
    fn refusals_for_memory_are_counted() {
        let cx = Plan { memory: Memory::simulated(1600), ..Plan::default() }.cx();
        assert!(!cx.is_short_for(|counters| &counters.short_publish));
        assert!(cx.has_room_for_patches(1500) && !cx.has_room_for_patches(1501));
        cx.node.memory.set_allocated(1601);
        assert!(cx.is_short_for(|counters| &counters.short_publish));
        assert!(!cx.has_room_for_patches(0));
        assert_eq!(cx.counters().short_publish.get(), 1);
    }
}
