//! Whether a shard goes on, drains or has stopped, and what it looks after once in a while.

use super::memory::Shedding;
use crate::base::time::Millis;

/// The state of a drain: clients are closed at a set pace.
pub(crate) struct Draining {
    pub(crate) per_second: u32,
    pub(crate) since: Millis,
    pub(crate) closed: u64,
    /// The slot that the walk over all connections goes on at.
    pub(crate) cursor: usize,
    /// The node knows that this shard has drained.
    pub(crate) told: bool,
}

/// The life of one shard.
pub(crate) struct Life {
    pub(crate) draining: Option<Draining>,
    pub(crate) stopped: bool,
    pub(crate) housekeeping_at: Millis,
    pub(crate) shedding: Shedding,
    /// Most bytes that waited since memory was last given back.
    pub(crate) queued_peak: u64,
    /// Gives freed memory back to the system; a no-op in simulation.
    pub(crate) collect: fn(),
}

impl Life {
    /// A shard that has just begun.
    pub(crate) fn new(now: Millis, collect: fn()) -> Self {
        Self {
            draining: None,
            stopped: false,
            housekeeping_at: now,
            shedding: Shedding::new(now),
            queued_peak: 0,
            collect,
        }
    }
}
