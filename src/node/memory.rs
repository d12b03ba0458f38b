//! How much memory the process has, and how much of that is in use.

use std::collections::VecDeque;

use crate::host::plan::{KERNEL_BYTES_PER_CONNECTION, KERNEL_BYTES_PER_QUEUE};
use crate::shard::Memory;

/// Resident bytes of this process.
pub(super) fn rss_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// An estimate of the kernel's memory for open connections, bytes: `queues` of them have bytes that wait, in the kernel
/// as well as here.
pub(super) fn kernel_bytes(connections: u64, queues: u64) -> u64 {
    connections * KERNEL_BYTES_PER_CONNECTION + queues * KERNEL_BYTES_PER_QUEUE
}

/// Looks up what memory costs beside what the allocator has handed out, for [`Memory`].
///
/// The process is larger than what is in use: by its code and stacks, by fragments, and by memory that was
/// freed and that the allocator keeps for a while. Only the first two count, since what was freed is used again
/// before the process grows: so the least of the last looks is taken. And of what came since the start not more
/// than half of the limit: what is fragmented for good must not keep a node from serving that holds little.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// The differences that were seen last.
    seen: VecDeque<i64>,
    /// The first of all: code and stacks, less what was set aside and never touched.
    base: Option<i64>,
    /// Looks until freed memory is to be given back to the system again.
    pause: u32,
    /// How long the pause was that came before.
    paused: u32,
    short: bool,
}

/// The outcome of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Looked {
    /// The limit was crossed: it is exceeded, or no longer.
    pub(super) short: Option<bool>,
    /// The allocator keeps much that isn't in use, and the limit is near.
    pub(super) collect: bool,
}

impl Watch {
    /// The process has so many resident bytes, and its sockets cost the kernel so many.
    pub(super) fn look(&mut self, memory: &Memory, rss: Option<u64>, sockets: u64) -> Looked {
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let allocated = memory.allocated();
        let difference = rss.map_or(0, |rss| signed(rss) - signed(allocated));
        self.seen.push_back(difference);
        if self.seen.len() > LOOKS {
            self.seen.pop_front();
        }
        let least = self.seen.iter().copied().min().unwrap_or(0);
        let base = *self.base.get_or_insert(difference);
        let grown = (least - base).min(signed(memory.limit() / 2));
        memory.set_beside(base.saturating_add(grown).saturating_add(signed(sockets)));
        memory.forget_wanted();
        let is_near = rss.unwrap_or(0).saturating_add(sockets) > memory.history_max();
        let keeps = difference - base > signed(memory.limit() / 16);
        Looked { short: self.crossed(memory), collect: self.is_due(is_near && keeps) }
    }

    /// Whether memory is to be given back now. Where that doesn't help it is tried less and less often.
    fn is_due(&mut self, wanted: bool) -> bool {
        if !wanted {
            (self.pause, self.paused) = (0, 0);
            return false;
        }
        if self.pause > 0 {
            self.pause -= 1;
            return false;
        }
        self.paused = (2 * self.paused).clamp(COLLECT_LOOKS_MIN, COLLECT_LOOKS_MAX);
        self.pause = self.paused;
        true
    }

    /// The report: not each time that the limit is crossed by a little.
    fn crossed(&mut self, memory: &Memory) -> Option<bool> {
        let (used, limit) = (memory.used(), memory.limit());
        let short = match self.short {
            true => used > limit - (limit - memory.history_max()) / 4,
            false => used > limit,
        };
        (std::mem::replace(&mut self.short, short) != short).then_some(short)
    }
}

/// Looks that count.
const LOOKS: usize = 16;

/// Looks between two collections, at least and at most.
const COLLECT_LOOKS_MIN: u32 = 5;
const COLLECT_LOOKS_MAX: u32 = 320;

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn freed_memory_that_the_process_keeps_does_not_count() {
        let memory = Memory::simulated(160 * MIB);
        let mut watch = Watch::default();
        memory.set_allocated(100 * MIB);
        // Code and fragments: 10 MiB. Then half is freed, and the system doesn't have it back.
        let _ = watch.look(&memory, Some(110 * MIB), 0);
        assert_eq!(memory.used(), 110 * MIB);
        memory.set_allocated(50 * MIB);
        for _ in 1..LOOKS {
            let _ = watch.look(&memory, Some(110 * MIB), 0);
            assert_eq!(memory.used(), 60 * MIB);
        }
        // Memory that stays for long is fragmented.
        let _ = watch.look(&memory, Some(110 * MIB), 0);
        assert_eq!(memory.used(), 110 * MIB);
    }

    #[test]
    fn an_empty_node_is_never_short() {
        let memory = Memory::simulated(160 * MIB);
        let mut watch = Watch::default();
        memory.set_allocated(10 * MIB);
        let _ = watch.look(&memory, Some(20 * MIB), 0);
        for _ in 0..2 * LOOKS {
            let _ = watch.look(&memory, Some(300 * MIB), 0);
        }
        assert_eq!((memory.used(), memory.is_short()), (100 * MIB, false));
    }

    #[test]
    fn memory_that_was_never_touched_does_not_count() {
        let memory = Memory::simulated(160 * MIB);
        memory.set_allocated(500 * MIB);
        let _ = Watch::default().look(&memory, Some(20 * MIB), kernel_bytes(1000, 10));
        assert_eq!(memory.used(), 20 * MIB + 1000 * 4_000 + 10 * 21_000);
    }

    #[test]
    fn the_limit_is_crossed_once_each_way() {
        let memory = Memory::simulated(160 * MIB);
        let mut watch = Watch::default();
        let mut short = |bytes| {
            memory.set_allocated(bytes);
            watch.look(&memory, Some(bytes), 0).short
        };
        assert_eq!(short(160 * MIB), None);
        assert_eq!(short(160 * MIB + 1), Some(true));
        // Below it, but not by much.
        assert_eq!(short(159 * MIB), None);
        assert_eq!(short(157 * MIB), Some(false));
        assert_eq!(short(159 * MIB), None);
    }

    #[test]
    fn memory_is_given_back_while_the_limit_is_near_and_less_often_when_it_does_not_help() {
        let memory = Memory::simulated(160 * MIB);
        let mut watch = Watch::default();
        memory.set_allocated(100 * MIB);
        let _ = watch.look(&memory, Some(105 * MIB), 0);
        let due: Vec<usize> =
            (0..100).filter(|_| watch.look(&memory, Some(155 * MIB), 0).collect).collect();
        assert_eq!(due, [0, 6, 17, 38, 79]);
        assert!(!watch.look(&memory, Some(140 * MIB), 0).collect);
        assert!(watch.look(&memory, Some(155 * MIB), 0).collect);
        // Memory in use cannot be given back.
        memory.set_allocated(150 * MIB);
        assert!((0..100).all(|_| !watch.look(&memory, Some(155 * MIB), 0).collect));
    }
}
