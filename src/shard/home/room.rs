//! Memory that a home gives back when the node has too little: see `shard/shedding.rs` for the order.

use super::Home;
use crate::shard::context::Cx;
use crate::shard::mail::post::Post;

impl Home {
    /// Whether a publication may be kept that adds so many bytes to the history of the channel `at`.
    /// Where there is no room idle channels make some: a bounded number, so that the turn stays short.
    pub(super) fn may_keep(&mut self, cx: &Cx, at: Option<u32>, bytes: usize, out: &Post) -> bool {
        let excess = cx.node.memory.history_excess(bytes as u64);
        if excess == 0 || bytes == 0 {
            return true;
        }
        // More than it needs, so that an excess becomes less with each publication.
        let wanted =
            (4 * bytes).max(SHED_BYTES_MIN).min(usize::try_from(excess).unwrap_or(usize::MAX));
        let shed = self.channels.shed_idle(wanted, SHED_CHANNELS_MAX, at);
        cx.count_shed(shed);
        if shed.bytes >= bytes.min(wanted) {
            return true;
        }
        if cx.node.memory.want_room(bytes as u64) {
            // Shards that sleep may have idle history.
            out.ring_others(cx);
        }
        false
    }

    /// Forgets idle channels until that gives `bytes` back, a bounded number of them. Returns the bytes.
    pub(crate) fn shed_idle(&mut self, cx: &Cx, bytes: usize) -> usize {
        let shed = self.channels.shed_idle(bytes, SHED_CHANNELS_MAX, None);
        cx.count_shed(shed);
        shed.bytes
    }

    /// Drops history of channels with subscribers until that gives `bytes` back, looking at a bounded number
    /// of them. Returns the bytes.
    pub(crate) fn shed_in_use(&mut self, cx: &Cx, bytes: usize) -> usize {
        let shed = self.channels.shed_in_use(bytes, SHED_CHANNELS_MAX);
        cx.count_shed(shed);
        shed.bytes
    }

    /// Channels that could be forgotten.
    pub(crate) fn has_idle(&self) -> bool {
        self.channels.idle() > 0
    }

    /// Forgets encoded answers, and returns their bytes: the next request costs their encoding again.
    pub(crate) fn forget_answers(&mut self) -> usize {
        let bytes = self.answers.bytes();
        self.answers.clear();
        bytes
    }

    /// Forgets the oldest good tokens and results of publishes, a bounded number. Returns the bytes.
    pub(crate) fn forget_remembered(&mut self, cx: &Cx, bytes: usize) -> usize {
        let tokens = (bytes / TOKEN_BYTES + 1).min(SHED_ENTRIES_MAX);
        let tokens = self.good_tokens.forget_oldest(tokens);
        cx.counters().shed_tokens.add(tokens as u64);
        let given = tokens * TOKEN_BYTES;
        let left = bytes.saturating_sub(given);
        let (results, more) = self.results.forget_oldest(left, SHED_ENTRIES_MAX);
        cx.counters().shed_results.add(results as u64);
        given + more
    }
}

/// Channels forgotten in one step at most.
const SHED_CHANNELS_MAX: usize = 1024;

/// A publication that finds no room makes so much at least.
const SHED_BYTES_MIN: usize = 64 * 1024;

/// Remembered tokens and publishes forgotten in one step at most.
const SHED_ENTRIES_MAX: usize = 4096;

/// A remembered token, about.
const TOKEN_BYTES: usize = 100;

#[cfg(test)]
mod tests {
    use crate::shard::fixture::Plan;
    use crate::shard::home::driven::{Driven, texts, with_history};
    use crate::shard::memory::Memory;

    #[test]
    fn a_publication_takes_the_room_of_idle_channels() {
        let memory = Memory::simulated(1_000_000);
        let mut driven = Driven::of(Plan { memory, channels: with_history(), ..Plan::default() });
        let large = format!("\"{}\"", "x".repeat(100_000));
        driven.publishes("idle", &large);
        driven.subscribes("news", 1);
        driven.sent_to(1);
        assert!(driven.home.has_idle());
        // History is at its bound: the idle channel goes, the one with a subscriber stays.
        driven.cx.node.memory.set_allocated(driven.cx.node.memory.history_max());
        driven.publishes("news", "1");
        assert!(!driven.home.has_idle());
        driven.publishes("news", "2");
        let mail = texts(&driven.sent_to(1));
        assert_eq!(mail[1..], ["error Internal", "published 1"], "{mail:?}");
        assert_eq!(driven.cx.counters().shed_channels.get(), 1);
    }

    #[test]
    fn shedding_returns_the_freed_bytes() {
        let mut driven = Driven::with(with_history());
        driven.subscribes("news", 1);
        let large = format!("\"{}\"", "x".repeat(10_000));
        driven.publishes("news", &large);
        driven.publishes("idle", &large);
        assert!(driven.home.shed_idle(&driven.cx, 1) >= 10_000);
        assert_eq!(driven.home.shed_idle(&driven.cx, 1), 0);
        assert!(driven.home.shed_in_use(&driven.cx, 1) >= 10_000);
        assert_eq!(driven.home.shed_in_use(&driven.cx, 1), 0);
        assert_eq!(driven.home.forget_answers(), 0);
    }
}
