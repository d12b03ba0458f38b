//! When something expires.

use std::num::NonZeroU32;

use super::image::{Broken, Durable, ImageReader, ImageWriter};
use super::time::UnixSeconds;

/// The moment at which a connection or a subscription expires, in Unix seconds.
///
/// Shape: 4 bytes, and `Option<Expiry>` is no longer. Whatever a token or an application says becomes one: a
/// moment before 1970 is long past, and one behind the year 2106, where 32 bits end, is then. So nothing
/// that is computed from it overflows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expiry(NonZeroU32);

impl Expiry {
    /// The moment `seconds` after 1970, or the next to it that there is.
    pub fn at(seconds: i64) -> Self {
        let seconds = u32::try_from(seconds.max(1)).unwrap_or(u32::MAX);
        Self(NonZeroU32::new(seconds).unwrap_or(NonZeroU32::MIN))
    }

    /// The same for a value of which 0 and less mean that nothing expires.
    pub fn of_positive(seconds: i64) -> Option<Self> {
        (seconds > 0).then(|| Self::at(seconds))
    }

    /// Seconds since 1970.
    pub fn seconds(self) -> u32 {
        self.0.get()
    }

    /// The moment has come.
    pub fn is_past(self, now: UnixSeconds) -> bool {
        i64::from(self.seconds()) <= now.0
    }

    /// The `ttl` of replies to clients: the seconds that are left, from 1 to one year. The timers of all SDKs
    /// can count a year; a client with that `ttl` renews earlier than it has to, and the expiry itself stays.
    pub fn ttl(self, now: UnixSeconds) -> u32 {
        let left = i64::from(self.seconds()).saturating_sub(now.0);
        u32::try_from(left.clamp(1, TTL_MAX_S)).unwrap_or(1)
    }
}

/// A moment by the wall clock: the same in every process.
impl Durable for Expiry {
    fn write(&self, out: &mut ImageWriter) {
        out.field(&self.0);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        NonZeroU32::read(from).map(Self)
    }
}

/// A year, in seconds.
const TTL_MAX_S: i64 = 365 * 24 * 60 * 60;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: UnixSeconds = UnixSeconds(1_700_000_000);

    #[test]
    fn moments_that_applications_give() {
        let year = 365 * 24 * 60 * 60;
        for (at, past, ttl) in [
            (i64::MIN, true, 1),
            (-1, true, 1),
            (0, true, 1),
            (NOW.0 - 1, true, 1),
            (NOW.0, true, 1),
            (NOW.0 + 1, false, 1),
            (NOW.0 + 600, false, 600),
            (NOW.0 + i64::from(year), false, year),
            (NOW.0 + i64::from(year) + 1, false, year),
            // Behind 32 bits; in milliseconds; the largest there is.
            (9_999_999_999, false, year),
            (NOW.0 * 1000, false, year),
            (i64::MAX, false, year),
        ] {
            let expiry = Expiry::at(at);
            assert_eq!((expiry.is_past(NOW), expiry.ttl(NOW)), (past, ttl), "{at}");
        }
        assert_eq!(Expiry::of_positive(0), None);
        assert_eq!(Expiry::of_positive(-7), None);
        assert_eq!(Expiry::of_positive(7), Some(Expiry::at(7)));
        assert_eq!(size_of::<Option<Expiry>>(), 4);
    }

    proptest! {
        #[test]
        fn a_ttl_is_the_time_left(at in any::<i64>(), now in any::<i64>()) {
            let (expiry, now) = (Expiry::at(at), UnixSeconds(now));
            let ttl = expiry.ttl(now);
            prop_assert!((1..=365 * 24 * 60 * 60).contains(&ttl));
            let left = i64::from(expiry.seconds()).saturating_sub(now.0);
            prop_assert!(i64::from(ttl) == left || !(1..=365 * 24 * 60 * 60).contains(&left));
            prop_assert_eq!(expiry.is_past(now), left <= 0);
        }
    }
}
