//! The send times of messages: fixed before the first one leaves, at a constant rate or along a ramp.
//!
//! ```text
//!  rate at t:      from + k t           k = (to - from) / span
//!  messages at t:  n = from t + k t^2 / 2
//!  message n:      t = 2 n / (from + sqrt(from^2 + 2 k n))
//! ```

use serde::{Deserialize, Serialize};

/// The messages of one phase.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Segment {
    /// When it begins, nanoseconds since the origin.
    pub(crate) start_ns: u64,
    /// Messages per second at its beginning.
    pub(crate) from: f64,
    /// Messages per second at its end.
    pub(crate) to: f64,
    /// Seconds between the two.
    pub(crate) span_s: f64,
    /// Its messages; the last of them may leave after the span.
    pub(crate) count: u32,
}

impl Segment {
    /// `count` messages at a constant rate.
    pub(crate) fn constant(rate: f64, count: u32) -> Self {
        let span_s = f64::from(count) / rate;
        Self { start_ns: 0, from: rate, to: rate, span_s, count }
    }

    /// As many messages as a ramp has in its span; at least one.
    pub(crate) fn ramp(from: f64, to: f64, span_s: f64) -> Self {
        let count = ((from + to) / 2.0 * span_s).ceil().clamp(1.0, f64::from(u32::MAX / 2)) as u32;
        Self { start_ns: 0, from, to, span_s, count }
    }

    /// The same one, beginning at a moment.
    pub(crate) fn starting(self, start_ns: u64) -> Self {
        Self { start_ns, ..self }
    }

    /// The same one with a share of the rate: what a thread has to send of it.
    pub(crate) fn part(self, share: f64) -> Self {
        Self { from: self.from * share, to: self.to * share, ..self }
    }

    /// The time of message `n`, from 0. A closed form, not a sum: rounding errors don't pile up.
    pub(crate) fn at_ns(&self, n: f64) -> u64 {
        if n <= 0.0 {
            return self.start_ns;
        }
        if self.from == self.to {
            return self.start_ns + (n * (1e9 / self.from)) as u64;
        }
        let slope = (self.to - self.from) / self.span_s;
        // Below zero only behind the end of a ramp that falls, by rounding.
        let root = (self.from * self.from + 2.0 * slope * n).max(0.0).sqrt();
        let seconds = 2.0 * n / (self.from + root);
        self.start_ns + (seconds.min(self.span_s) * 1e9) as u64
    }

    /// When its span ends.
    pub(crate) fn end_ns(&self) -> u64 {
        self.start_ns + (self.span_s * 1e9) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_rate_has_equal_intervals() {
        let segment = Segment::constant(3.0, 3_000_001).starting(1000);
        assert_eq!(segment.at_ns(0.0), 1000);
        assert_eq!(segment.at_ns(3_000_000.0), 1000 + 1_000_000 * 1_000_000_000);
    }

    #[test]
    fn a_ramp_has_as_many_messages_as_its_area() {
        for (from, to) in [(0.0, 100.0), (100.0, 0.0), (20.0, 80.0)] {
            let ramp = Segment::ramp(from, to, 10.0);
            assert_eq!(ramp.count, 500);
            let times: Vec<u64> = (0..ramp.count).map(|n| ramp.at_ns(f64::from(n))).collect();
            assert!(times.is_sorted() && times[499] <= ramp.end_ns(), "{from} to {to}");
            // In each second as many as the mean rate there, give or take one.
            for second in 0..10u64 {
                let within = |ns: &&u64| **ns / 1_000_000_000 == second;
                let count = times.iter().filter(within).count() as f64;
                let mean = from + (to - from) * (second as f64 + 0.5) / 10.0;
                assert!((count - mean).abs() <= 1.5, "{from} to {to}: {count} in second {second}");
            }
        }
    }
}
