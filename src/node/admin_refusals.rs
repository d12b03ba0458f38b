//! Refusals of the admin page, counted by reason: the page adds, metrics read.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why the page stays closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The password is wrong.
    Wrong,
    /// It is wrong, and so were too many just now: there is no delay for one more.
    TooMany,
    /// The token is wrong, or has expired.
    Token,
}

impl Refused {
    pub(super) const ALL: [Self; 3] = [Self::Wrong, Self::TooMany, Self::Token];

    pub(super) fn status(self) -> u16 {
        match self {
            Self::Wrong => 400,
            Self::TooMany => 429,
            Self::Token => 401,
        }
    }

    /// Label of the metric.
    fn name(self) -> &'static str {
        match self {
            Self::Wrong => "password",
            Self::TooMany => "too_many_passwords",
            Self::Token => "token",
        }
    }
}

/// Refused passwords and tokens, by reason.
#[derive(Debug, Default)]
pub(super) struct AdminRefusals([AtomicU64; Refused::ALL.len()]);

impl AdminRefusals {
    pub(super) fn add(&self, why: Refused) {
        self.0[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The reasons by name, with their numbers.
    pub(super) fn counts(&self) -> [(&'static str, u64); Refused::ALL.len()] {
        Refused::ALL.map(|why| (why.name(), self.0[why as usize].load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_by_reason() {
        let refusals = AdminRefusals::default();
        for why in [Refused::Token, Refused::Wrong, Refused::Token] {
            refusals.add(why);
        }
        assert_eq!(refusals.counts(), [("password", 1), ("too_many_passwords", 0), ("token", 2)]);
        assert_eq!(Refused::ALL.map(Refused::status), [400, 429, 401]);
    }
}
