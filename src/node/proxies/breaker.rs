//! A circuit breaker: an endpoint that fails is left alone for a while.
//!
//! ```text
//!  closed --failures are half of the calls--> open --pause--> half-open --an answer--> closed
//!                                              ^                  | some calls of different clients
//!                                              '---- failures ----'
//! ```
//! A client shapes what its own calls bring, so nothing that one client does decides alone: a status of 4xx
//! is an answer, failures count as a share of all calls, and probes are of different clients. Time is an
//! argument.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::base::address::network;
use crate::base::id::{ConnKey, ShardId};

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::node) enum State {
    /// Calls go.
    Closed,
    /// No call goes.
    Open,
    /// Some calls go, and decide.
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

/// The client of a call. Half-open calls are one at a time for each of them, so it must be expensive to
/// have many: an address where there is one, since a client opens as many connections as it likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The network of an address.
    Network(IpAddr),
    /// A connection whose address is unknown: it came over a Unix socket.
    Connection(ShardId, ConnKey),
}

impl Source {
    /// The source of a call for a connection of a shard.
    pub(super) fn new(address: Option<IpAddr>, shard: ShardId, conn: ConnKey) -> Self {
        address.map_or(Self::Connection(shard, conn), |address| Self::Network(network(address)))
    }
}

/// The outcome of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// An answer.
    Answer,
    /// A status of 4xx: an answer to this client, which says little about others.
    Rejection,
    /// None in time, a status of 5xx, or an answer that can't be understood.
    Failure,
    /// No connection: no client can cause that.
    Unreachable,
    /// The call never went.
    GivenUp,
}

/// A call that may go. What comes of it is given back with it.
#[derive(Debug)]
pub(super) struct Permit {
    /// In which of the breaker's periods it began.
    period: u64,
    source: Source,
}

/// The change by a call's outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    Opened,
    Closed,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Breaker {
    /// Failures without which it doesn't open; 0: it never does.
    failures_min: u32,
    pause: Duration,
    window: Window,
    phase: Phase,
    /// Counts changes of the phase: outcomes of calls from before one say nothing about it.
    period: u64,
}

#[derive(Debug)]
enum Phase {
    Closed,
    /// Until then it is open; from then on half-open.
    Open {
        until: Instant,
        probes: Probes,
    },
}

/// The outcomes of half-open calls.
#[derive(Debug, Default)]
struct Probes {
    /// Clients whose calls are on their way.
    running: Vec<Source>,
    /// Clients whose calls failed.
    failed: Vec<Source>,
    rejections: usize,
}

impl Breaker {
    /// Closed.
    pub(super) fn new(failures_min: u32, pause: Duration) -> Self {
        Self { failures_min, pause, window: Window::default(), phase: Phase::Closed, period: 0 }
    }

    /// How it stands.
    pub(super) fn state(&self, now: Instant) -> State {
        match &self.phase {
            Phase::Closed => State::Closed,
            Phase::Open { until, .. } if now < *until => State::Open,
            Phase::Open { .. } => State::HalfOpen,
        }
    }

    /// Whether a call of this client may go now.
    pub(super) fn admits(&mut self, source: Source, now: Instant) -> Option<Permit> {
        if let Phase::Open { until, probes } = &mut self.phase {
            let has_place = probes.running.len() < PROBES_MAX && !probes.running.contains(&source);
            if now < *until || !has_place {
                return None;
            }
            probes.running.push(source);
        }
        Some(Permit { period: self.period, source })
    }

    /// The outcome of a call.
    pub(super) fn ended(&mut self, permit: &Permit, came: Came, now: Instant) -> Change {
        if permit.period != self.period {
            return Change::None;
        }
        let fails = matches!(came, Came::Failure | Came::Unreachable);
        match &mut self.phase {
            Phase::Closed => {
                if came != Came::GivenUp {
                    self.window.add(fails, now);
                }
                let opens = fails
                    && self.failures_min > 0
                    && self.window.fails(u64::from(self.failures_min), now);
                if opens { self.open(now) } else { Change::None }
            }
            Phase::Open { until, probes } => {
                probes.running.retain(|source| *source != permit.source);
                match came {
                    Came::GivenUp => Change::None,
                    Came::Answer => self.close(),
                    Came::Rejection => {
                        probes.rejections += 1;
                        if probes.rejections >= PROBES_MAX { self.close() } else { Change::None }
                    }
                    Came::Failure | Came::Unreachable => {
                        if !probes.failed.contains(&permit.source) {
                            probes.failed.push(permit.source);
                        }
                        // One client alone decides only when no other has called for a whole pause.
                        let is_certain = came == Came::Unreachable
                            || probes.failed.len() >= PROBES_FAILED_MIN
                            || now >= *until + self.pause;
                        if is_certain {
                            // It was open before, and that was said.
                            self.open(now);
                        }
                        Change::None
                    }
                }
            }
        }
    }

    fn open(&mut self, now: Instant) -> Change {
        self.period += 1;
        self.phase = Phase::Open { until: now + self.pause, probes: Probes::default() };
        Change::Opened
    }

    fn close(&mut self) -> Change {
        self.period += 1;
        self.phase = Phase::Closed;
        self.window = Window::default();
        Change::Closed
    }
}

/// Calls of the last seconds, by second; the newest last.
#[derive(Debug, Default)]
struct Window(VecDeque<Second>);

#[derive(Debug)]
struct Second {
    began: Instant,
    calls: u64,
    failures: u64,
}

impl Window {
    fn add(&mut self, fails: bool, now: Instant) {
        let second = match self.0.back_mut() {
            Some(newest) if now < newest.began + SECOND => newest,
            _ => {
                if self.0.len() == WINDOW_SECONDS {
                    self.0.pop_front();
                }
                self.0.push_back(Second { began: now, calls: 0, failures: 0 });
                let Some(newest) = self.0.back_mut() else { return };
                newest
            }
        };
        second.calls += 1;
        second.failures += u64::from(fails);
    }

    /// Whether at least so many calls failed, and at least half of all. The newest seconds count that have
    /// calls enough, so that it is seen soon when an endpoint with many calls goes away.
    fn fails(&self, failures_min: u64, now: Instant) -> bool {
        let window = SECOND * WINDOW_SECONDS as u32;
        let recent = self.0.iter().rev().take_while(|second| now < second.began + window);
        let (mut calls, mut failures) = (0, 0);
        for second in recent {
            calls += second.calls;
            failures += second.failures;
            if calls >= failures_min * 2 {
                break;
            }
        }
        failures >= failures_min && failures * 2 >= calls
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// Seconds that are looked back at most.
const WINDOW_SECONDS: usize = 10;

/// Calls at a time while half-open, each of another client; so many rejections close it.
const PROBES_MAX: usize = 3;

/// Clients whose calls have to fail while half-open, so that it opens again.
const PROBES_FAILED_MIN: usize = 2;

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;

    const PAUSE: Duration = Duration::from_secs(2);

    /// A client with an address of its own.
    fn client(number: u64) -> Source {
        let address = IpAddr::from((number as u32).to_be_bytes());
        Source::new(Some(address), ShardId(0), connection(7))
    }

    fn connection(index: u32) -> ConnKey {
        ConnKey { index, generation: NonZeroU32::MIN }
    }

    fn call(breaker: &mut Breaker, source: u64, came: Came, now: Instant) -> Option<Change> {
        let permit = breaker.admits(client(source), now)?;
        Some(breaker.ended(&permit, came, now))
    }

    /// One that has just opened, and when it is half-open.
    fn opened() -> (Breaker, Instant) {
        let now = Instant::now();
        let mut breaker = Breaker::new(1, PAUSE);
        assert_eq!(call(&mut breaker, 0, Came::Unreachable, now), Some(Change::Opened));
        assert_eq!(breaker.state(now), State::Open);
        assert!(breaker.admits(client(0), now).is_none());
        assert_eq!(breaker.state(now + PAUSE), State::HalfOpen);
        (breaker, now + PAUSE)
    }

    #[test]
    fn opens_when_half_of_the_calls_fail() {
        let now = Instant::now();
        let mut breaker = Breaker::new(3, PAUSE);
        for (came, change) in [
            (Came::Failure, Change::None),
            (Came::Answer, Change::None),
            (Came::Answer, Change::None),
            (Came::Rejection, Change::None),
            (Came::Failure, Change::None),
            (Came::Failure, Change::Opened),
        ] {
            assert_eq!(call(&mut breaker, 1, came, now), Some(change), "{came:?}");
        }
    }

    #[test]
    fn failures_open_the_circuit_soon_after_many_successes() {
        let start = Instant::now();
        let mut breaker = Breaker::new(10, PAUSE);
        for at in 0..5000 {
            call(&mut breaker, at, Came::Answer, start + Duration::from_millis(at));
        }
        let gone = start + Duration::from_secs(6);
        let before = (0..100)
            .take_while(|at| call(&mut breaker, *at, Came::Failure, gone) == Some(Change::None))
            .count();
        assert!(before < 20, "{before}");
    }

    #[test]
    fn old_failures_are_forgotten() {
        let start = Instant::now();
        let mut breaker = Breaker::new(3, PAUSE);
        for at in 0..20 {
            let now = start + Duration::from_secs(at * 6);
            assert_eq!(call(&mut breaker, 1, Came::Failure, now), Some(Change::None));
        }
    }

    #[test]
    fn one_client_alone_decides_nothing_while_half_open() {
        let (mut breaker, now) = opened();
        let hostile = breaker.admits(client(1), now).unwrap();
        assert!(breaker.admits(client(1), now).is_none(), "one call of a client at a time");
        let honest = breaker.admits(client(2), now).unwrap();
        assert!(
            breaker.admits(client(3), now).is_some() && breaker.admits(client(4), now).is_none()
        );
        assert_eq!(breaker.ended(&hostile, Came::Failure, now), Change::None);
        assert_eq!(call(&mut breaker, 1, Came::Failure, now), Some(Change::None));
        assert_eq!(breaker.state(now), State::HalfOpen);
        assert_eq!(breaker.ended(&honest, Came::Answer, now), Change::Closed);
        assert_eq!(breaker.state(now), State::Closed);
    }

    #[test]
    fn connections_of_one_address_are_one_client() {
        let of = |address: &str, index| {
            let address = Some(address.parse().unwrap());
            Source::new(address, ShardId(index as u8), connection(index))
        };
        for (one, others) in [
            ("192.0.2.1", ["192.0.2.1", "::ffff:192.0.2.1"]),
            ("2001:db8::1", ["2001:db8::1", "2001:db8::ffff:1"]),
        ] {
            let (mut breaker, now) = opened();
            let hostile = breaker.admits(of(one, 1), now).unwrap();
            for (index, other) in (2..).zip(others) {
                assert!(breaker.admits(of(other, index), now).is_none(), "{other}");
            }
            assert_eq!(breaker.ended(&hostile, Came::Failure, now), Change::None);
            for (index, other) in (2..).zip(others) {
                let next = breaker.admits(of(other, index), now).unwrap();
                assert_eq!(breaker.ended(&next, Came::Failure, now), Change::None);
                assert_eq!(breaker.state(now), State::HalfOpen, "{other}");
            }
            assert!(breaker.admits(of("192.0.2.2", 9), now).is_some());
        }
        // Over a Unix socket there are only connections.
        let (mut breaker, now) = opened();
        for index in 0..3 {
            let source = Source::new(None, ShardId(0), connection(index));
            assert!(breaker.admits(source, now).is_some(), "{index}");
            assert!(breaker.admits(source, now).is_none(), "{index}");
        }
    }

    #[test]
    fn opens_again_when_calls_of_two_clients_fail() {
        let (mut breaker, now) = opened();
        for source in [1, 1, 2] {
            assert_eq!(breaker.state(now), State::HalfOpen);
            assert_eq!(call(&mut breaker, source, Came::Failure, now), Some(Change::None));
        }
        assert_eq!(breaker.state(now), State::Open);
        let (mut breaker, now) = opened();
        call(&mut breaker, 1, Came::Unreachable, now);
        assert_eq!(breaker.state(now), State::Open, "no client can cause that");
        let (mut breaker, now) = opened();
        call(&mut breaker, 1, Came::Failure, now);
        assert_eq!(breaker.state(now), State::HalfOpen);
        call(&mut breaker, 1, Came::Failure, now + PAUSE);
        assert_eq!(breaker.state(now + PAUSE), State::Open, "nobody else has called");
    }

    #[test]
    fn rejections_of_several_calls_are_an_answer() {
        let (mut breaker, now) = opened();
        for change in [Change::None, Change::None, Change::Closed] {
            assert_eq!(call(&mut breaker, 1, Came::Rejection, now), Some(change));
        }
    }

    #[test]
    fn calls_begun_before_the_circuit_opened_do_not_count() {
        let now = Instant::now();
        let mut breaker = Breaker::new(1, PAUSE);
        let early = breaker.admits(client(1), now).unwrap();
        let other = breaker.admits(client(2), now).unwrap();
        assert_eq!(breaker.ended(&other, Came::Failure, now), Change::Opened);
        assert_eq!(breaker.ended(&early, Came::Answer, now), Change::None);
        assert_eq!(breaker.state(now), State::Open);
        let given_up = breaker.admits(client(3), now + PAUSE).unwrap();
        breaker.ended(&given_up, Came::GivenUp, now + PAUSE);
        assert!(breaker.admits(client(3), now + PAUSE).is_some(), "its place is free again");
    }

    proptest! {
        /// Whatever strangers make the application reject, and as long as fewer than half of the calls fail,
        /// everybody is served.
        #[test]
        fn is_closed_while_most_calls_are_answered(
            calls in proptest::collection::vec((any::<bool>(), 0u64..5, 0u64..900), 1..400),
        ) {
            let mut now = Instant::now();
            let mut breaker = Breaker::new(2, PAUSE);
            for (rejected, source, ms) in calls {
                now += Duration::from_millis(ms);
                let well = if rejected { Came::Rejection } else { Came::Answer };
                // A second may begin between any two of them.
                for came in [well, Came::Failure, well, well] {
                    prop_assert_ne!(call(&mut breaker, source, came, now), Some(Change::Opened));
                }
            }
        }

        #[test]
        fn never_opens_without_a_number(failures in 1usize..200) {
            let now = Instant::now();
            let mut breaker = Breaker::new(0, PAUSE);
            for _ in 0..failures {
                prop_assert_eq!(call(&mut breaker, 1, Came::Unreachable, now), Some(Change::None));
            }
        }
    }
}
