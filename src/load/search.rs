//! `--search`: the highest rate, or the most connections, at which no condition of `--until` holds.
//!
//! ```text
//!  1000 fine -> 2000 fine -> 4000 fails -> 3000 fine -> 3500 fails -> 3250 ... until the step is small
//! ```
//! Each probe is a run of its own. One in which this client was the limit says nothing of the server, so the
//! search ends there and says so.

use super::report::Report;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What is searched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// Messages per second.
    Rate,
    /// Connections.
    Connections,
}

/// Probes at most.
const PROBES_MAX: usize = 40;

/// The search ends when the next probe would be nearer than this part to the best one.
const PRECISION: f64 = 0.05;

/// One run of a search.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Probe {
    pub(crate) value: u32,
    /// No condition holds, and no message and no connection was lost.
    pub(crate) is_fine: bool,
    /// Conditions that hold, and what was lost.
    pub(crate) faults: Vec<String>,
}

/// The outcome of a search.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Found {
    pub(crate) goal: Goal,
    /// The highest value of a probe that was fine; null when none was.
    pub(crate) best: Option<u32>,
    /// Why the search didn't go further up.
    pub(crate) limit: Option<&'static str>,
    pub(crate) probes: Vec<Probe>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.goal {
            Goal::Rate => "messages per second",
            Goal::Connections => "connections",
        };
        for Probe { value, is_fine, faults } in &self.probes {
            let verdict = if *is_fine { "fine".to_owned() } else { faults.join(", ") };
            writeln!(f, "  probe        {value} {unit}: {verdict}")?;
        }
        match self.best {
            Some(best) => writeln!(f, "  FOUND        {best} {unit}")?,
            None => writeln!(f, "  FOUND        nothing: not even the first probe was fine")?,
        }
        match self.limit {
            Some(limit) => writeln!(f, "  WARNING: {limit}: the server may take more"),
            None => Ok(()),
        }
    }
}

/// Which value is probed next.
#[derive(Debug)]
pub(crate) struct Search {
    goal: Goal,
    best: Option<u32>,
    /// The lowest value that was not fine.
    worst: Option<u32>,
    next: u32,
    limit: Option<&'static str>,
    probes: Vec<Probe>,
}

impl Search {
    /// Begins with this value.
    pub(crate) fn new(goal: Goal, first: u32) -> Self {
        Self { goal, best: None, worst: None, next: first.max(1), limit: None, probes: Vec::new() }
    }

    /// The next value; nothing when the search is over.
    pub(crate) fn next(&self) -> Option<u32> {
        let is_over = self.limit.is_some() || self.probes.len() >= PROBES_MAX || self.is_near();
        (!is_over).then_some(self.next)
    }

    fn is_near(&self) -> bool {
        let low = self.best.unwrap_or(0);
        self.worst.is_some_and(|worst| {
            worst <= low + 1 || f64::from(worst - low) <= f64::from(worst) * PRECISION
        })
    }

    /// The run with the newest value is over. Returns whether it is the best one so far.
    pub(crate) fn note(&mut self, report: &Report) -> bool {
        let holding = report.thresholds.iter().filter(|of| of.holds);
        let faults: Vec<String> =
            holding.map(|of| of.condition.clone()).chain(report.problems()).collect();
        let value = self.next;
        let is_fine = faults.is_empty();
        self.probes.push(Probe { value, is_fine, faults });
        if is_fine {
            self.best = Some(value);
        } else {
            self.worst = Some(value);
        }
        // At a condition that holds the client may be slow because it waits for the server.
        self.limit = report.bottleneck_text().filter(|_| is_fine || report.bottleneck_is_own());
        self.next = match (self.best, self.worst) {
            (Some(best), None) => best.saturating_mul(2),
            (best, Some(worst)) => u32::midpoint(best.unwrap_or(0), worst).max(1),
            (None, None) => value,
        };
        is_fine
    }

    pub(crate) fn found(self) -> Found {
        let Self { goal, best, limit, probes, .. } = self;
        Found { goal, best, limit, probes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A search with a server that can do so much.
    fn search(first: u32, most: u32) -> Found {
        let mut search = Search::new(Goal::Rate, first);
        while let Some(value) = search.next() {
            let mut report = Report::default();
            report.messages.lost = u64::from(value > most);
            search.note(&report);
        }
        search.found()
    }

    #[test]
    fn the_highest_value_that_is_fine_is_found() {
        for (first, most) in [(10, 3456), (100_000, 3456), (3456, 3456), (1, 1), (10, 1_000_000)] {
            let found = search(first, most);
            let best = found.best.unwrap();
            assert!(best <= most && f64::from(best) >= f64::from(most) * 0.9, "{best} of {most}");
            assert!(found.probes.len() <= PROBES_MAX);
        }
        assert_eq!(search(8, 0).best, None);
    }

    #[test]
    fn a_client_at_its_limit_ends_the_search() {
        let mut search = Search::new(Goal::Connections, 100);
        let mut report = Report::default();
        assert!(search.note(&report));
        report.bottleneck = Some(super::super::report::CLIENT_CPU);
        assert!(search.note(&report));
        assert_eq!(search.next(), None);
        let found = search.found();
        assert_eq!((found.best, found.limit.is_some()), (Some(200), true));
        assert!(found.to_string().contains("FOUND        200 connections"));
    }
}
