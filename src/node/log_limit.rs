//! A bound for log lines about other peers' mistakes: anybody on the same Redis can cause any number of them.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines of one kind are this far apart at least.
const INTERVAL: Duration = Duration::from_secs(1);

/// Lines of one kind: one a second at most, which says how many were left out since the last one.
#[derive(Debug)]
pub(crate) struct LogLimit(Mutex<State>);

#[derive(Debug)]
struct State {
    last: Option<Instant>,
    left_out: u64,
}

impl LogLimit {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(State { last: None, left_out: 0 }))
    }

    /// Whether a line may be written: with the number of those left out before it.
    #[expect(clippy::disallowed_methods, reason = "the age of the last log line")]
    pub(crate) fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now.saturating_duration_since(last) < INTERVAL) {
            state.left_out += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "some moment to count from")]
    fn one_line_a_second_counts_those_left_out() {
        let (limit, began) = (LogLimit::new(), Instant::now());
        let at = |ms| limit.admit_at(began + Duration::from_millis(ms));
        let admitted = [0, 1, 999, 1_000, 1_500, 3_000, 4_000].map(at);
        assert_eq!(admitted, [Some(0), None, None, Some(2), None, Some(1), Some(0)]);
    }
}
