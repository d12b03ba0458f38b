//! When a certificate is obtained: at once where there is none, renewed when two thirds of its time have gone,
//! and again behind a failure, later each time.

use crate::base::rng::Rng;

/// Seconds until the second attempt. A server lets a host fail some times in an hour.
const WAIT_MIN: i64 = 120;

/// Seconds between attempts at most.
const WAIT_MAX: i64 = 6 * 60 * 60;

/// One host's.
pub(super) struct Schedule {
    failures: u32,
    /// Unix time.
    not_before: i64,
    /// A share of the certificate's time, thousandths, so that nodes and hosts don't all renew at once.
    spread: i64,
}

impl Schedule {
    pub(super) fn new(rng: &mut Rng) -> Self {
        Self { failures: 0, not_before: i64::MIN, spread: rng.below(20) as i64 }
    }

    /// Attempts that failed since the last success.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether it is time. `validity`: the first and the last second of the certificate in use.
    pub(super) fn is_due(&self, validity: Option<(i64, i64)>, now: i64) -> bool {
        let renewal = validity.map(|(first, last)| {
            let life = last.saturating_sub(first).max(0);
            first.saturating_add(life / 3 * 2).saturating_add(life / 1000 * self.spread)
        });
        now >= self.not_before && renewal.is_none_or(|renewal| now >= renewal)
    }

    /// An attempt has failed. Returns the seconds until the next one.
    pub(super) fn failed(&mut self, now: i64, rng: &mut Rng) -> i64 {
        let wait = WAIT_MIN.checked_shl(self.failures.min(16)).unwrap_or(WAIT_MAX).min(WAIT_MAX);
        let wait = wait + rng.below(wait as u64 / 5) as i64;
        self.failures += 1;
        self.not_before = now.saturating_add(wait);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    #[test]
    fn a_certificate_is_renewed_when_two_thirds_of_its_time_have_gone() {
        for seed in 0..50 {
            let schedule = Schedule::new(&mut Rng::new(seed));
            assert!(schedule.is_due(None, 0));
            let validity = Some((1000 * DAY, 1090 * DAY));
            assert!(!schedule.is_due(validity, 1060 * DAY - 1));
            assert!(schedule.is_due(validity, 1062 * DAY));
            assert!(schedule.is_due(validity, 2000 * DAY));
            // An hour, as a test's authority may give it.
            assert!(
                !schedule.is_due(Some((0, 3600)), 2399) && schedule.is_due(Some((0, 3600)), 2472)
            );
        }
    }

    #[test]
    fn failures_make_the_next_attempt_later_within_bounds() {
        let mut rng = Rng::new(1);
        let mut schedule = Schedule::new(&mut rng);
        let mut before = 0;
        for failures in 0..60 {
            let wait = schedule.failed(1000, &mut rng);
            let least = (WAIT_MIN << failures.min(10)).min(WAIT_MAX);
            assert!((least..=least * 6 / 5).contains(&wait), "{failures}: {wait}");
            assert!(!schedule.is_due(None, 1000 + wait - 1) && schedule.is_due(None, 1000 + wait));
            assert!(wait >= before * 4 / 5);
            before = wait;
        }
        assert_eq!(schedule.failures(), 60);
    }
}
