//! A circuit breaker: an endpoint that fails is left alone for a while.
//!
//! ```text
//!  closed --failures in a row--> open --pause--> half-open --success--> closed
//!                                 ^                  | one call at a time
//!                                 '----- failure ----'
//! ```
//! Time is an argument.

use std::time::Duration;

use tokio::time::Instant;

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::node) enum State {
    /// Calls go.
    Closed,
    /// No call goes.
    Open,
    /// One call goes, and decides.
    HalfOpen,
}

impl State {
    /// As metrics and the admin page name it.
    pub(in crate::node) fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Breaker {
    /// Failures in a row that open it; 0: nothing does.
    failures_max: u32,
    pause: Duration,
    failures: u32,
    open_until: Option<Instant>,
    probing: bool,
}

impl Breaker {
    /// Closed.
    pub(super) fn new(failures_max: u32, pause: Duration) -> Self {
        Self { failures_max, pause, failures: 0, open_until: None, probing: false }
    }

    /// How it stands.
    pub(super) fn state(&self, now: Instant) -> State {
        match self.open_until {
            None => State::Closed,
            Some(until) if now < until => State::Open,
            Some(_) => State::HalfOpen,
        }
    }

    /// May a call go now? Whatever comes of it is to be told.
    pub(super) fn admits(&mut self, now: Instant) -> bool {
        match self.state(now) {
            State::Closed => true,
            State::Open => false,
            State::HalfOpen => !std::mem::replace(&mut self.probing, true),
        }
    }

    /// A call got an answer. True when that closes it.
    pub(super) fn succeeded(&mut self) -> bool {
        self.failures = 0;
        self.probing = false;
        self.open_until.take().is_some()
    }

    /// A call failed. True when that opens it.
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        self.failures = self.failures.saturating_add(1);
        match self.state(now) {
            State::Closed if self.failures_max > 0 && self.failures >= self.failures_max => {
                self.open_until = Some(now + self.pause);
                true
            }
            State::HalfOpen => {
                self.probing = false;
                self.open_until = Some(now + self.pause);
                false
            }
            // One that was on its way when it opened says nothing new.
            State::Closed | State::Open => false,
        }
    }

    /// A call was given up before it went.
    pub(super) fn given_up(&mut self) {
        self.probing = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_on_failures_in_a_row_and_closes_by_a_probe() {
        let pause = Duration::from_secs(2);
        let mut breaker = Breaker::new(3, pause);
        let start = Instant::now();
        for _ in 0..2 {
            assert!(breaker.admits(start) && !breaker.failed(start));
        }
        assert!(!breaker.succeeded());
        for opens in [false, false, true] {
            assert!(breaker.admits(start));
            assert_eq!(breaker.failed(start), opens);
        }
        assert_eq!(breaker.state(start), State::Open);
        assert!(!breaker.admits(start));
        // One that was on its way fails, too: the pause is no longer for it.
        assert!(!breaker.failed(start + pause / 2));
        let later = start + pause;
        assert_eq!(breaker.state(later), State::HalfOpen);
        assert!(breaker.admits(later) && !breaker.admits(later), "one probe at a time");
        assert!(!breaker.failed(later));
        assert_eq!(breaker.state(later), State::Open);
        let later = later + pause;
        assert!(breaker.admits(later));
        breaker.given_up();
        assert!(breaker.admits(later), "a probe that never went decides nothing");
        assert!(breaker.succeeded());
        assert_eq!(breaker.state(later), State::Closed);
        assert!(!breaker.failed(later), "counted anew");
    }

    #[test]
    fn never_opens_without_a_number() {
        let mut breaker = Breaker::new(0, Duration::from_secs(2));
        let now = Instant::now();
        assert!((0..100).all(|_| breaker.admits(now) && !breaker.failed(now)));
    }
}
