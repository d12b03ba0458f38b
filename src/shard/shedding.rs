//! Giving memory up, a slice in each turn, and refusing what would need more.
//!
//! Over the limit, new connections, subscriptions, publications and API calls are refused, and memory
//! is given up in this order until the rest is below the limit: encoded answers that are kept for
//! others; unfinished bodies of requests, the largest first; connections with the largest queues;
//! history of idle channels, the least recently used first; remembered tokens and publishes; history of
//! channels with subscribers.

use crate::base::counters::Counter;
use crate::base::notices::Reason;
use crate::base::time::Millis;
use crate::hub::home::Shed;
use crate::io::Driver;
use crate::shard::clients::Clients;
use crate::shard::context::Cx;
use crate::shard::home::Home;
use crate::shard::net::holders::Holder;
use crate::shard::outlets::Outlets;
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

/// The groups that give memory up.
pub(crate) struct Givers<'a> {
    pub(crate) home: &'a mut Home,
    pub(crate) clients: &'a Clients,
}

impl Shedding {
    /// Gives up memory above the limits, a slice in each turn.
    pub(crate) fn keep_to_limits<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        givers: &mut Givers<'_>,
    ) {
        givers.home.set_history_gauges(out.cx.counters());
        self.goes_on = false;
        let memory = &out.cx.node.memory;
        let wanted = memory.wanted();
        let (over_history, excess) = (memory.history_excess(wanted), memory.excess());
        if over_history == 0 {
            return;
        }
        if excess > 0 {
            let share = excess.div_ceil(out.cx.node.counters.len() as u64);
            self.give_up(out, givers, usize::try_from(share).unwrap_or(usize::MAX));
            return;
        }
        givers.home.shed_idle(out.cx, out.cx.share_of_history(over_history));
        let left = out.cx.node.memory.history_excess(wanted);
        self.goes_on = left > 0 && left < over_history && givers.home.has_idle();
    }

    /// Whether freed memory has to be given back to the system, at the control thread's command.
    pub(crate) fn has_to_collect(&mut self, cx: &Cx) -> bool {
        let collections = cx.node.memory.collections();
        std::mem::replace(&mut self.collections, collections) != collections
    }

    /// Gives up so many bytes, in the order that the module states.
    fn give_up<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        givers: &mut Givers<'_>,
        bytes: usize,
    ) {
        let left = bytes.saturating_sub(forget_answers(out, givers.home));
        if left == 0 {
            return;
        }
        let left = left.saturating_sub(self.close_largest(out, givers.clients, bytes));
        if left == 0 {
            return;
        }
        let idle = givers.home.shed_idle(out.cx, left);
        self.goes_on = idle > 0;
        let left = left.saturating_sub(idle);
        if left == 0 || idle > 0 {
            return;
        }
        let left = left.saturating_sub(givers.home.forget_remembered(out.cx, left));
        if left > 0 {
            self.goes_on = givers.home.shed_in_use(out.cx, left) > 0;
        }
    }

    /// Ends requests with unfinished bodies and then connections with large queues, until that gives
    /// `bytes` back. Returns the bytes that it gave.
    fn close_largest<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        clients: &Clients,
        bytes: usize,
    ) -> usize {
        let now = out.cx.now;
        if now < self.search_at {
            return 0;
        }
        // The search looks at all connections: it may take a small part of the time.
        self.search_at = now.after(SEARCH_MS + out.net.slots() as u64 / SEARCHED_IN_MS);
        let mut given = 0;
        for Holder { index, bytes: held, is_body } in out.net.holders().into_iter().take(CLOSED_MAX)
        {
            if given >= bytes {
                break;
            }
            given += held;
            if is_body {
                out.cx.counters().shed_bodies.inc();
                out.net.refuse_unfinished(out.cx, out.post, index, Reason::HttpMemory);
            } else {
                out.cx.counters().closed_memory.add(1);
                let why = format_args!("{held} bytes were held for it");
                clients.notice(out, index, Reason::CloseMemory, 0, "", why);
                out.net.release(out.cx, out.post, index, true);
            }
        }
        given
    }
}

/// Forgets encoded answers: the next request for one costs its encoding again. Returns their bytes.
fn forget_answers<D: Driver>(out: &mut Outlets<'_, D>, home: &mut Home) -> usize {
    let bytes = home.forget_answers() + out.codec.pieces.bytes();
    if bytes > 0 {
        out.cx.counters().shed_answers.inc();
        out.codec.pieces.clear();
    }
    bytes
}

/// An idle channel without publications, about.
const IDLE_CHANNEL_BYTES: u64 = 200;

/// Connections closed in one step at most.
const CLOSED_MAX: usize = 64;

/// Connections are looked through so seldom at least, milliseconds, and later where there are many.
const SEARCH_MS: u64 = 10;

/// Connections for which a search waits a millisecond longer: looking at one takes some nanoseconds.
const SEARCHED_IN_MS: u64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::frame::SharedFrame;
    use crate::base::rng::Rng;
    use crate::shard::Memory;
    use crate::shard::fixture::{Plan, Wired};

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
    fn over_the_limit_the_largest_queue_goes() {
        let mut of = Wired::new(Plan { memory: Memory::simulated(1 << 20), ..Plan::default() });
        let (_, small) = of.connect_client();
        let (_, large) = of.connect_client();
        for (key, bytes) in [(small, 70_000), (large, 90_000)] {
            of.net.enqueue(&of.cx, key.index, SharedFrame::new(&vec![b'x'; bytes]));
        }
        of.cx.node.memory.set_allocated((1 << 20) + 100);
        let mut home = Home::new(&of.cx, 2, &mut Rng::new(1));
        let clients = Clients::new(&of.cx);
        let mut shedding = Shedding::new(of.cx.now);
        let mut givers = Givers { home: &mut home, clients: &clients };
        shedding.keep_to_limits(&mut of.outlets(), &mut givers);
        assert!(of.net.conn(large).is_some_and(|conn| conn.socket.is_none()));
        assert!(of.net.conn(small).is_some_and(|conn| conn.socket.is_some()));
        assert_eq!(of.cx.counters().closed_memory.get(), 1);
        // All connections are looked at again only after a while.
        shedding.keep_to_limits(&mut of.outlets(), &mut givers);
        assert_eq!(of.cx.counters().closed_memory.get(), 1);
        assert_eq!(of.end(), []);
    }

    #[test]
    fn memory_goes_back_to_the_system_once_for_each_command() {
        let cx = Plan::default().cx();
        let mut shedding = Shedding::new(cx.now);
        assert!(!shedding.has_to_collect(&cx));
        cx.node.memory.collect();
        assert!(shedding.has_to_collect(&cx) && !shedding.has_to_collect(&cx));
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
