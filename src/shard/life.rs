//! Whether a shard goes on or has stopped, and what it looks after once in a while.

use super::settle::Settling;
use super::shedding::Shedding;
use crate::base::time::Millis;

/// The life of one shard.
pub(crate) struct Life {
    pub(crate) stopped: bool,
    /// Nothing new is taken, until what lives for a turn is nothing.
    pub(crate) settling: Option<Settling>,
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
            stopped: false,
            settling: None,
            housekeeping_at: now,
            shedding: Shedding::new(now),
            queued_peak: 0,
            collect,
        }
    }
}
