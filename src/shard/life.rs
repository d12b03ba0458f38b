//! Whether a shard goes on or has stopped, and its work of once a second.

use std::collections::VecDeque;

use super::copying::Copying;
use super::mail::HandoverStep;
use super::shedding::Shedding;
use crate::base::id::ConnKey;
use crate::base::time::Millis;

/// The life of one shard.
pub(crate) struct Life {
    stopped: bool,
    /// Nothing new is taken, until what lives for a turn is nothing.
    pub(crate) settling: Option<Settling>,
    /// What of the shard is written for another process.
    pub(crate) copying: Option<Box<Copying>>,
    /// Steps of a handover to another process, in the order in which they came.
    pub(crate) steps: VecDeque<HandoverStep>,
    housekeeping_at: Millis,
    pub(crate) shedding: Shedding,
    /// Most bytes in send queues since memory was last given back to the system.
    queued_peak: u64,
    /// Gives freed memory back to the system; a no-op in simulation.
    collect: fn(),
}

/// The state of a shard that settles.
#[derive(Debug)]
pub(crate) struct Settling {
    /// The first turn of it: the time of the turn before may be long ago.
    pub(super) since: Option<Millis>,
    /// Connections whose calls of the application were given up.
    pub(super) given_up: Vec<ConnKey>,
}

impl Life {
    /// A shard that has just begun.
    pub(crate) fn new(now: Millis, collect: fn()) -> Self {
        Self {
            stopped: false,
            settling: None,
            copying: None,
            steps: VecDeque::new(),
            housekeeping_at: now,
            shedding: Shedding::new(now),
            queued_peak: 0,
            collect,
        }
    }

    /// The shard has to stop at the end of this turn.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
    }

    /// Whether it has stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// At the end of a turn, with so many bytes in send queues: whether housekeeping is due now.
    pub(crate) fn end_turn(&mut self, now: Millis, queued: u64) -> bool {
        self.queued_peak = self.queued_peak.max(queued);
        let is_due = now >= self.housekeeping_at;
        if is_due {
            self.housekeeping_at = now.after(HOUSEKEEPING_MS);
        }
        is_due
    }

    /// Once a second: gives memory back to the system when a burst of frames has gone out.
    pub(crate) fn housekeeping(&mut self, queued: u64) {
        if queued == 0 {
            if self.queued_peak > COLLECT_AFTER_BYTES {
                self.collect();
            }
            self.queued_peak = 0;
        }
    }

    /// Gives freed memory back to the system.
    pub(crate) fn collect(&self) {
        (self.collect)();
    }

    /// The next housekeeping. An idle shard needs none: `is_idle` of all that the shard has beside its queues.
    pub(crate) fn next_housekeeping(&self, now: Millis, is_idle: bool) -> Option<Millis> {
        (!is_idle || self.queued_peak > 0).then(|| self.housekeeping_at.max(now))
    }
}

/// Milliseconds between two housekeepings.
const HOUSEKEEPING_MS: u64 = 1000;

/// A burst of so many queued bytes makes it worthwhile to give memory back.
const COLLECT_AFTER_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    static COLLECTED: AtomicU32 = AtomicU32::new(0);

    #[test]
    fn housekeeping_is_due_once_a_second_and_not_for_an_idle_shard() {
        let mut life = Life::new(Millis(5_000), || ());
        assert!(life.end_turn(Millis(5_000), 0) && !life.end_turn(Millis(5_999), 0));
        assert_eq!(life.next_housekeeping(Millis(5_999), false), Some(Millis(6_000)));
        assert_eq!(life.next_housekeeping(Millis(7_000), false), Some(Millis(7_000)));
        assert_eq!(life.next_housekeeping(Millis(5_999), true), None);
        assert!(!life.is_stopped());
        life.stop();
        assert!(life.is_stopped());
    }

    #[test]
    fn memory_goes_back_when_a_burst_has_gone_out() {
        let collect = || _ = COLLECTED.fetch_add(1, Ordering::Relaxed);
        let mut life = Life::new(Millis(0), collect);
        life.end_turn(Millis(0), COLLECT_AFTER_BYTES + 1);
        life.housekeeping(1);
        assert_eq!(COLLECTED.load(Ordering::Relaxed), 0, "some of it still waits");
        assert!(life.next_housekeeping(Millis(1), true).is_some());
        life.housekeeping(0);
        life.housekeeping(0);
        assert_eq!(COLLECTED.load(Ordering::Relaxed), 1);
        assert_eq!(life.next_housekeeping(Millis(1), true), None);
    }
}
