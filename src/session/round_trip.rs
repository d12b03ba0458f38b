//! The round trip of a session's pings, in one byte.
//!
//! While a pong is due the byte is the part of the ping's time that ticks leave out; the tick itself follows from
//! the deadline of the pong. Once the pong has come it is the bucket of the round trip, a quarter wide.

use crate::base::time::{Millis, TICK_MS};
use crate::base::times::{self, Times};

/// See the module.
///
/// Shape: 1 byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundTrip(u8);

const _: () = assert!(TICK_MS < u8::MAX as u64);

impl Default for RoundTrip {
    fn default() -> Self {
        Self::UNKNOWN
    }
}

impl RoundTrip {
    /// No pong has come yet, or the time of its ping is lost.
    pub const UNKNOWN: Self = Self(u8::MAX);

    /// A ping goes now.
    pub fn begin(now: Millis) -> Self {
        Self((now.0 % TICK_MS) as u8)
    }

    /// The pong has come for a ping of this tick: counts the time between.
    pub fn end(&mut self, sent_tick: u32, now: Millis, times: &Times) {
        let part = std::mem::replace(self, Self::UNKNOWN).0;
        let sent_ms = u64::from(sent_tick) * TICK_MS + u64::from(part);
        // Options of pings that a reload has changed meanwhile give another tick.
        let Some(ms) = now.0.checked_sub(sent_ms).filter(|_| part != u8::MAX) else { return };
        let us = u32::try_from(ms.saturating_mul(1000)).unwrap_or(u32::MAX);
        times.record(us);
        *self = Self(times::bucket(us));
    }

    /// Milliseconds that the last ping took; `None`: unknown. Not to be called while a pong is due.
    pub fn millis(self) -> Option<u32> {
        let us = (self != Self::UNKNOWN).then(|| times::upper(self.0))?;
        u32::try_from(us.div_ceil(1000)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::times::Counts;

    #[test]
    fn a_round_trip_is_measured_to_a_millisecond_and_kept_to_a_quarter() {
        let times = Times::default();
        let mut trip = RoundTrip::begin(Millis(12_345));
        trip.end(123, Millis(12_385), &times);
        assert!((40..=50).contains(&trip.millis().unwrap()), "{trip:?}");
        let mut counts = Counts::default();
        times.add_to(&mut counts);
        assert_eq!((counts.count(), counts.total_us()), (1, 40_000));
    }

    #[test]
    fn a_lost_beginning_counts_nothing() {
        let times = Times::default();
        let mut trip = RoundTrip::UNKNOWN;
        trip.end(0, Millis(5), &times);
        assert_eq!(trip.millis(), None);
        // A tick that lies ahead, since the options have changed.
        trip = RoundTrip::begin(Millis(1_000));
        trip.end(90, Millis(1_050), &times);
        assert_eq!(trip, RoundTrip::UNKNOWN);
        let mut counts = Counts::default();
        times.add_to(&mut counts);
        assert_eq!(counts.count(), 0);
    }
}
