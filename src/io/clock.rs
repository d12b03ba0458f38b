//! The clock of a shard: both clocks at the end of its last wait.

use std::time::{Duration, Instant, SystemTime};

use crate::base::time::{Millis, UnixSeconds};

/// The moment of a turn, read once behind its wait.
///
/// The time of day is read now and then and goes on by the other clock in between: a clock read less in each
/// turn, and who sets the system's clock is followed within [`DAY_EVERY`].
pub(super) struct Clock {
    /// The process's zero of time.
    started: Instant,
    /// Since then, when the last wait ended.
    woken: Duration,
    /// The same by the wall clock.
    unix: Duration,
    day: Day,
}

/// The time of day, and when it was read.
#[derive(Clone, Copy, Debug)]
struct Day {
    unix: Duration,
    read: Duration,
}

/// So long the time of day goes on by the other clock.
const DAY_EVERY: Duration = Duration::from_millis(250);

impl Day {
    /// The time of day at a moment of the other clock. `read` is called where it has to be read anew.
    fn at(&mut self, now: Duration, read: impl FnOnce() -> Duration) -> Duration {
        let passed = now.saturating_sub(self.read);
        if passed < DAY_EVERY {
            return self.unix + passed;
        }
        *self = Self { unix: read(), read: now };
        self.unix
    }
}

impl Clock {
    /// Reads both clocks.
    pub(super) fn new(started: Instant) -> Self {
        let mut clock = Self {
            started,
            woken: Duration::ZERO,
            unix: Duration::ZERO,
            day: Day { unix: time_of_day(), read: Duration::ZERO },
        };
        clock.woken = clock.look();
        clock.day.read = clock.woken;
        clock.unix = clock.day.unix;
        clock
    }

    /// The time since the process's zero.
    #[expect(clippy::disallowed_methods, reason = "the one place where a shard reads the clock")]
    pub(super) fn look(&self) -> Duration {
        Instant::now().saturating_duration_since(self.started)
    }

    /// A wait has ended.
    pub(super) fn read(&mut self) {
        self.woken = self.look();
        self.unix = self.day.at(self.woken, time_of_day);
    }

    /// When the last wait ended.
    pub(super) fn now(&self) -> Millis {
        Millis(self.woken.as_millis() as u64)
    }

    /// The same by the wall clock.
    pub(super) fn unix(&self) -> UnixSeconds {
        UnixSeconds(self.unix.as_secs() as i64)
    }

    /// Microseconds from the end of the last wait until now.
    pub(super) fn worked_us(&self, now: Duration) -> u32 {
        u32::try_from(now.saturating_sub(self.woken).as_micros()).unwrap_or(u32::MAX)
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place where a shard reads the time of day")]
fn time_of_day() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_day_goes_on_and_a_step_of_it_is_followed() {
        let ms = Duration::from_millis;
        let mut day = Day { unix: ms(1_000_900), read: ms(70) };
        let unread = || panic!("it was read a moment ago");
        assert_eq!(day.at(ms(70), unread), ms(1_000_900));
        assert_eq!(day.at(ms(319), unread), ms(1_001_149));
        // Set back by an hour.
        assert_eq!(day.at(ms(320), || ms(997_402)), ms(997_402));
        assert_eq!(day.at(ms(569), unread), ms(997_651));
        assert_eq!(day.at(ms(9_000_000), || ms(5)), ms(5));
    }

    #[test]
    fn the_clocks_are_those_of_the_system() {
        #[expect(clippy::disallowed_methods, reason = "a zero of time")]
        let started = Instant::now();
        let before = time_of_day().as_secs() as i64;
        let mut clock = Clock::new(started);
        clock.read();
        let now = clock.look();
        assert!(clock.now().0 <= now.as_millis() as u64);
        assert!(clock.unix().0 >= before && clock.unix().0 <= time_of_day().as_secs() as i64);
        assert_eq!(clock.worked_us(clock.woken + Duration::from_micros(7)), 7);
    }
}
