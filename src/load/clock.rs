//! The clock of an agent, as seen from here.
//!
//! ```text
//!  here    sent ------------------ back      offset      = there - (sent + back) / 2
//!  there          there                      uncertainty = (back - sent) / 2
//! ```
//! Of several exchanges the one that took least says most. Clocks are those that nobody sets (since the process began);
//! the offset of the clocks of day is only shown.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Exchanges whose best one is the newest estimate.
const RECENT: usize = 10;

/// The clocks of an agent at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reading {
    /// Nanoseconds since its process began.
    pub(super) ns: u64,
    /// Nanoseconds since 1970.
    pub(super) day_ns: u64,
}

/// The outcome of one exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Estimate {
    /// The agent's clock when ours was 0.
    offset_ns: i64,
    /// Its clock of day before ours.
    day_ns: i64,
    uncertainty_ns: u64,
}

/// The clock of an agent in the report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct ClockReport {
    /// Its clock of day before ours, microseconds.
    pub(crate) offset_us: f64,
    /// The offset is known to within this, as half of the shortest round trip.
    pub(crate) uncertainty_us: f64,
    /// By how much its clock went faster than ours during the run, with its own uncertainty; null for short runs.
    pub(crate) drift_us: Option<f64>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Clock {
    first: Option<Estimate>,
    recent: VecDeque<Estimate>,
}

impl Clock {
    /// An exchange: when it began and ended here, our clock of day at our 0, and the agent's answer.
    pub(super) fn note(&mut self, sent_ns: u64, back_ns: u64, day_ns: u64, there: Reading) {
        let taken_ns = back_ns.saturating_sub(sent_ns);
        let middle_ns = (sent_ns + taken_ns / 2) as i64;
        let estimate = Estimate {
            offset_ns: there.ns as i64 - middle_ns,
            day_ns: there.day_ns as i64 - day_ns as i64 - middle_ns,
            uncertainty_ns: taken_ns.div_ceil(2),
        };
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(estimate);
    }

    /// The run begins: what was estimated so far is its clock.
    pub(super) fn begin(&mut self) {
        self.first = self.best();
        self.recent.clear();
    }

    fn best(&self) -> Option<Estimate> {
        self.recent.iter().min_by_key(|of| of.uncertainty_ns).copied()
    }

    /// The agent's clock when ours was this.
    pub(super) fn there_ns(&self, here_ns: u64) -> u64 {
        let offset_ns = self.first.or_else(|| self.best()).map_or(0, |of| of.offset_ns);
        here_ns.saturating_add_signed(offset_ns)
    }

    /// How long a message takes to the agent, about.
    pub(super) fn one_way_ns(&self) -> u64 {
        self.first.or_else(|| self.best()).map_or(0, |of| of.uncertainty_ns)
    }

    pub(super) fn report(&self) -> ClockReport {
        let us = |ns: i64| super::report::round(ns as f64 / 1e3);
        let Some(first) = self.first.or_else(|| self.best()) else { return ClockReport::default() };
        let last = self.best().filter(|_| self.recent.len() == RECENT);
        ClockReport {
            offset_us: us(first.day_ns),
            uncertainty_us: us(first.uncertainty_ns as i64),
            drift_us: last.map(|last| us(last.offset_ns - first.offset_ns)),
        }
    }
}

impl ClockReport {
    /// How far times of this clock may be off in a run.
    pub(super) fn error_us(&self) -> f64 {
        self.uncertainty_us + self.drift_us.unwrap_or_default().abs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent whose clock is `ahead` of ours, behind a path with these times there and back.
    fn exchange(clock: &mut Clock, sent_ns: u64, ahead: u64, there: u64, back: u64) {
        let ns = sent_ns + there + ahead;
        let reading = Reading { ns, day_ns: 5_000 + ns };
        clock.note(sent_ns, sent_ns + there + back, 4_000, reading);
    }

    #[test]
    fn the_shortest_exchange_counts() {
        let mut clock = Clock::default();
        exchange(&mut clock, 1_000, 70_000, 900, 100);
        exchange(&mut clock, 9_000, 70_000, 40, 60);
        exchange(&mut clock, 20_000, 70_000, 100, 9_000);
        clock.begin();
        // Off by half of the difference of the two ways, which is within the uncertainty.
        assert_eq!((clock.there_ns(500), clock.one_way_ns()), (70_490, 50));
        let report = clock.report();
        let expected = ClockReport { offset_us: 70.99, uncertainty_us: 0.05, drift_us: None };
        assert_eq!(report, expected);
    }

    #[test]
    fn a_clock_that_runs_away_is_seen() {
        let mut clock = Clock::default();
        exchange(&mut clock, 0, 1_000, 50, 50);
        clock.begin();
        for n in 1..=RECENT as u64 {
            exchange(&mut clock, n * 1_000_000, 31_000, 50, 50);
        }
        assert_eq!(clock.there_ns(0), 1_000);
        let report = clock.report();
        assert_eq!((report.drift_us, report.error_us()), (Some(30.0), 30.05));
    }
}
