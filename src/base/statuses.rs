//! Responses of HTTP, counted by status: a fixed set, so that no peer makes it grow.

use super::counters::Counter;

/// Statuses that are counted by themselves.
const STATUSES: [u16; 23] = [
    101, 200, 204, 206, 303, 304, 308, 400, 401, 403, 404, 405, 408, 413, 414, 415, 421, 426, 429,
    431, 500, 503, 504,
];

/// Responses by status, written by one thread and read by any.
///
/// Shape: 192 bytes.
#[derive(Debug, Default)]
pub struct Statuses {
    counts: [Counter; STATUSES.len()],
    others: Counter,
}

impl Statuses {
    /// Counts a response. Only the owner may call it.
    pub fn count(&self, status: u16) {
        match STATUSES.binary_search(&status) {
            Ok(at) => self.counts[at].inc(),
            Err(_) => self.others.inc(),
        }
    }

    /// Each status with its number of responses; those of all other statuses are the last, as `None`.
    pub fn each(&self) -> impl Iterator<Item = (Option<u16>, u64)> {
        let known = STATUSES.iter().zip(&self.counts);
        let known = known.map(|(status, count)| (Some(*status), count.get()));
        known.chain([(None, self.others.get())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_counted_by_status_and_unknown_ones_together() {
        assert!(STATUSES.is_sorted());
        let statuses = Statuses::default();
        for status in [200, 599, 200, 418] {
            statuses.count(status);
        }
        let counted: Vec<_> = statuses.each().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [(Some(200), 2), (None, 2)]);
    }
}
