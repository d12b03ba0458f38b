//! A rate that threads share, without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// How many came in the present second. The second is the latest that any of the threads has seen, and never goes
/// back: a thread whose clock is behind, since its turn is long, counts in the second that others are in.
#[derive(Debug, Default)]
pub struct SharedRate(AtomicU64);

impl SharedRate {
    /// One that nothing has come for.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Whether one more may come, at a second that the caller has read at some time; it is counted if so.
    pub fn admit(&self, second: u64, per_second: u64) -> bool {
        let per_second = per_second.min(u64::from(u32::MAX));
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
                let (at, count) = (packed >> 32, packed & u64::from(u32::MAX));
                let second = second & u64::from(u32::MAX);
                let (at, count) = if second > at { (second, 0) } else { (at, count) };
                (count < per_second).then_some(at << 32 | (count + 1))
            })
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        // Shards whose turns began at different times.
        #[test]
        fn clocks_that_differ_let_no_more_in(
            per_second in 0..5u64,
            seconds in proptest::collection::vec(0..6u64, 1..200),
        ) {
            let rate = SharedRate::new();
            let mut admitted: BTreeMap<u64, u64> = BTreeMap::new();
            let mut latest = 0;
            for second in seconds {
                latest = latest.max(second);
                let count = admitted.entry(latest).or_default();
                let admits = rate.admit(second, per_second);
                prop_assert_eq!(admits, *count < per_second);
                *count += u64::from(admits);
            }
        }
    }

    #[test]
    fn a_turn_over_the_edge_of_a_second_counts_once() {
        let rate = SharedRate::new();
        // One shard is in second 5; the turn of another one began in 4 and goes on.
        let admitted = (0..1000).filter(|n| rate.admit(4 + n % 2, 10)).count();
        // The one call of before the first that knew of second 5, and ten in that.
        assert_eq!(admitted, 11);
    }
}
