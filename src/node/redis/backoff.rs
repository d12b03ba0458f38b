//! Pauses between attempts to connect: they double, and are spread, so that nodes don't come all at once.

use std::time::Duration;

use crate::base::rng::Rng;

const FIRST_MS: u64 = 100;
const LAST_MS: u64 = 5_000;

/// The pauses of a connection.
pub(in crate::node) struct Backoff {
    rng: Rng,
    next_ms: u64,
}

impl Backoff {
    /// None so far.
    pub(in crate::node) fn new(seed: u64) -> Self {
        Self { rng: Rng::new(seed), next_ms: FIRST_MS }
    }

    /// The connection works.
    pub(in crate::node) fn reset(&mut self) {
        self.next_ms = FIRST_MS;
    }

    /// The connection has worked for a while and has ended: most often the server is there, so the next attempt
    /// follows at once. When it fails, pauses begin.
    pub(in crate::node) fn begin_at_once(&mut self) {
        self.next_ms = 0;
    }

    /// The pause before the next attempt: between half of it and all of it.
    pub(in crate::node) fn pause(&mut self) -> Duration {
        let half = self.next_ms / 2;
        let pause = half + self.rng.below(half + 1);
        self.next_ms = (self.next_ms * 2).clamp(FIRST_MS, LAST_MS);
        Duration::from_millis(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_begin_anew() {
        let mut backoff = Backoff::new(1);
        let pauses: Vec<u128> = (0..12).map(|_| backoff.pause().as_millis()).collect();
        assert!((50..=100).contains(&pauses[0]) && (100..=200).contains(&pauses[1]), "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= u128::from(LAST_MS)), "{pauses:?}");
        assert!(pauses[11] >= u128::from(LAST_MS / 2), "{pauses:?}");
        backoff.reset();
        assert!(backoff.pause().as_millis() <= 100);
    }

    #[test]
    fn one_attempt_follows_at_once_and_then_pauses_begin() {
        let mut backoff = Backoff::new(1);
        let _: Vec<Duration> = (0..5).map(|_| backoff.pause()).collect();
        backoff.begin_at_once();
        assert_eq!(backoff.pause(), Duration::ZERO);
        let pauses: Vec<u128> = (0..2).map(|_| backoff.pause().as_millis()).collect();
        assert!((50..=100).contains(&pauses[0]) && (100..=200).contains(&pauses[1]), "{pauses:?}");
    }
}
