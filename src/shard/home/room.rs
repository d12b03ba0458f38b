//! Memory that a home gives back when the node has too little: see `shard/memory.rs` for the order.

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
