//! What the server API counts: how long calls take and how they fail, by method. The control thread writes it.

use std::time::Duration;

use super::error::ApiError;
use crate::base::counters::Counter;
use crate::base::times::Times;

/// Methods, and groups of them that are answered alike; see [`super::calls::Call::method`].
const METHODS: [&str; 15] = [
    "publish",
    "broadcast",
    "subscribe",
    "unsubscribe",
    "disconnect",
    "refresh",
    "presence",
    "presence_stats",
    "history",
    "history_remove",
    "channels",
    "info",
    "rpc",
    "map",
    "shared_poll_publish",
];

/// Codes of errors.
const CODES: [u16; 7] = [100, 102, 104, 106, 107, 108, 112];

/// See the module.
#[derive(Debug, Default)]
pub(in crate::node) struct ApiFigures([OfMethod; METHODS.len()]);

/// Calls of one method.
#[derive(Debug, Default)]
struct OfMethod {
    times: Times,
    errors: [Counter; CODES.len()],
}

impl ApiFigures {
    /// A call has ended.
    pub(super) fn took(&self, method: &str, time: Duration) {
        if let Some(of) = self.of(method) {
            of.times.record(u32::try_from(time.as_micros()).unwrap_or(u32::MAX));
        }
    }

    /// A call has failed.
    pub(super) fn failed(&self, method: &str, error: ApiError) {
        let code = CODES.iter().position(|code| *code == error.code());
        if let (Some(of), Some(code)) = (self.of(method), code) {
            of.errors[code].inc();
        }
    }

    fn of(&self, method: &str) -> Option<&OfMethod> {
        let at = METHODS.iter().position(|known| *known == method);
        // The front names maps one by one.
        let at = at.or_else(|| method.starts_with("map_").then_some(METHODS.len() - 2));
        at.map(|at| &self.0[at])
    }

    /// Each method with the durations of its calls.
    pub(in crate::node) fn times(&self) -> impl Iterator<Item = (&'static str, &Times)> {
        METHODS.into_iter().zip(self.0.iter().map(|of| &of.times))
    }

    /// Each method and code with the number of errors.
    pub(in crate::node) fn errors(&self) -> impl Iterator<Item = (&'static str, u16, u64)> {
        METHODS.into_iter().zip(&self.0).flat_map(|(method, of)| {
            CODES.into_iter().zip(&of.errors).map(move |(code, count)| (method, code, count.get()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::times::Counts;

    #[test]
    fn calls_are_counted_by_method() {
        let figures = ApiFigures::default();
        figures.took("publish", Duration::from_micros(300));
        figures.took("no such method", Duration::from_micros(300));
        figures.failed("map_publish", ApiError::BadRequest);
        figures.failed("history", ApiError::NotAvailable);
        let (mut counts, mut publish) = (Counts::default(), Counts::default());
        figures.times().for_each(|(_, times)| times.add_to(&mut counts));
        figures.times().next().unwrap().1.add_to(&mut publish);
        assert_eq!((counts.count(), publish.count()), (1, 1));
        let errors: Vec<_> = figures.errors().filter(|(_, _, count)| *count > 0).collect();
        assert_eq!(errors, [("history", 108, 1), ("map", 107, 1)]);
    }

    #[test]
    fn each_code_of_an_error_has_a_counter() {
        for error in [
            ApiError::Internal,
            ApiError::UnknownChannel,
            ApiError::NotFound,
            ApiError::LimitExceeded,
            ApiError::BadRequest,
            ApiError::NotAvailable,
            ApiError::UnrecoverablePosition,
        ] {
            assert!(CODES.contains(&error.code()), "{error}");
        }
    }
}
