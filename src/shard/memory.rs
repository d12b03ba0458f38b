//! The memory of a node: its limit, its use, and the part of it that history may fill.
//!
//! ```text
//!  0 --------------------------- bound of history -------------------- limit
//!    everything is served          | history grows by the history of   | nothing grows, and shards
//!                                  | idle channels, or not at all;     | give memory up (shedding.rs)
//!                                  | the rest is served                |
//! ```
//! Use is the sum of allocated bytes, which are known at every moment, and of bytes beside them
//! (fragments, code, the kernel's part of sockets), which the control thread reads several times a
//! second.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};

/// The memory of a node: limit and use.
#[derive(Debug)]
pub struct Memory {
    limit: u64,
    allocated: Allocated,
    beside: AtomicI64,
    /// Room that publications were refused for: shards with idle history make it.
    wanted: AtomicU64,
    /// Number of [`Self::collect`] calls.
    collections: AtomicU32,
}

#[derive(Debug)]
enum Allocated {
    /// Read from the allocator.
    By(fn() -> u64),
    /// Set from outside: in a simulation, where only kept bytes count.
    Set(AtomicU64),
}

impl Memory {
    /// A limit of so many bytes; `allocated` reads the bytes that the allocator has handed out.
    pub fn new(limit: u64, allocated: fn() -> u64) -> Self {
        Self::of(limit, Allocated::By(allocated))
    }

    /// A limit of so many bytes, against which [`Self::set_allocated`] counts alone.
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

    /// Bytes up to which history grows: a sixteenth below the limit, 64 MiB at most. The rest is for
    /// connections and messages while somebody fills history.
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

    /// Sets the allocated bytes of a simulation.
    pub fn set_allocated(&self, bytes: u64) {
        if let Allocated::Set(allocated) = &self.allocated {
            allocated.store(bytes, Ordering::Relaxed);
        }
    }

    /// Sets the bytes beside the allocated ones; negative where some of these were never touched.
    pub fn set_beside(&self, bytes: i64) {
        self.beside.store(bytes, Ordering::Relaxed);
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.allocated().saturating_add_signed(self.beside.load(Ordering::Relaxed))
    }

    /// Whether use is above the limit: nothing may grow.
    pub fn is_short(&self) -> bool {
        self.used() > self.limit
    }

    /// Bytes over the limit.
    pub(crate) fn excess(&self) -> u64 {
        self.used().saturating_sub(self.limit)
    }

    /// Bytes over history's bound when so many more are kept.
    pub(crate) fn history_excess(&self, more: u64) -> u64 {
        self.used().saturating_add(more).saturating_sub(self.history_max())
    }

    /// Publications are refused for want of room: shards with idle history have to make some. True for the
    /// first such call.
    pub(crate) fn want_room(&self, bytes: u64) -> bool {
        let bytes = (16 * bytes).max(self.limit / 256);
        self.wanted.fetch_max(bytes, Ordering::Relaxed) == 0
    }

    /// Bytes of room that publications were refused for.
    pub(crate) fn wanted(&self) -> u64 {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Number of calls of [`Self::collect`]: a shard that has seen fewer gives memory back.
    pub(crate) fn collections(&self) -> u32 {
        self.collections.load(Ordering::Relaxed)
    }

    /// Forgets the wanted room: a shard that still wants it repeats its call.
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
    fn memory_in_use_is_allocations_and_kernel_buffers() {
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
