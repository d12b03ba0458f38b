//! What the server has refused. Its errors name a subject and no command, and come beside the probes: an error is about
//! a command of some group that was sent before the error came.

use std::collections::HashMap;

/// Subjects that are remembered at most; beyond that all is in doubt.
const SUBJECTS_MAX: usize = 4_096;

/// What became of a command that the server has carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Done,
    Refused,
    /// Errors may have been lost.
    InDoubt,
}

/// Errors that may be about commands which are not answered yet.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// Subjects, and the number of the last group that an error may be about.
    subjects: HashMap<String, u64>,
    /// Of groups up to this one errors may be missing.
    doubt: u64,
    /// Of groups up to this one some subscriptions are not made: the server takes no more of them.
    limit: u64,
}

impl Refusals {
    /// An error about this subject. `last`: the last group of which something was sent.
    pub(super) fn add(&mut self, subject: &str, last: u64) {
        if self.subjects.len() < SUBJECTS_MAX {
            self.subjects.insert(subject.to_owned(), last);
        } else {
            self.doubt(last);
        }
    }

    /// There may have been other errors.
    pub(super) fn doubt(&mut self, last: u64) {
        self.doubt = last;
    }

    /// The server takes no more subscriptions; the error doesn't say which one that is about.
    pub(super) fn limit(&mut self, last: u64) {
        self.limit = last;
    }

    /// The fate of a subscription. `is_alone`: no other one is in its group.
    pub(super) fn fate_of_subscription(
        &self,
        group: u64,
        is_alone: bool,
        subject: impl Fn() -> String,
    ) -> Fate {
        match self.fate(group, subject) {
            Fate::Done if group <= self.limit && is_alone => Fate::Refused,
            Fate::Done if group <= self.limit => Fate::InDoubt,
            fate => fate,
        }
    }

    /// Subscriptions of that group may not be made, for want of room.
    pub(super) fn is_at_limit(&self, group: u64) -> bool {
        group <= self.limit
    }

    /// The fate of a command in a group.
    pub(super) fn fate(&self, group: u64, subject: impl Fn() -> String) -> Fate {
        if !self.subjects.is_empty() && self.subjects.contains_key(&subject()) {
            Fate::Refused
        } else if group <= self.doubt {
            Fate::InDoubt
        } else {
            Fate::Done
        }
    }

    /// Groups up to this one are answered.
    pub(super) fn forget(&mut self, group: u64) {
        if self.limit <= group {
            self.limit = 0;
        }
        if !self.subjects.is_empty() {
            self.subjects.retain(|_, last| *last > group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_about_the_groups_before_it() {
        let mut refusals = Refusals::default();
        let fate =
            |refusals: &Refusals, group, subject: &str| refusals.fate(group, || subject.to_owned());
        refusals.add("a", 2);
        assert_eq!(fate(&refusals, 1, "a"), Fate::Refused);
        assert_eq!(fate(&refusals, 1, "b"), Fate::Done);
        refusals.forget(1);
        assert_eq!(fate(&refusals, 2, "a"), Fate::Refused, "it may be about this one");
        refusals.forget(2);
        assert_eq!(fate(&refusals, 3, "a"), Fate::Done);
    }

    #[test]
    fn at_the_limit_a_subscription_is_refused_if_it_is_alone() {
        let mut refusals = Refusals::default();
        let fate = |refusals: &Refusals, group, is_alone| {
            refusals.fate_of_subscription(group, is_alone, || "a".to_owned())
        };
        assert_eq!(fate(&refusals, 1, true), Fate::Done);
        refusals.limit(2);
        assert_eq!(fate(&refusals, 2, true), Fate::Refused);
        assert_eq!(fate(&refusals, 2, false), Fate::InDoubt);
        assert_eq!(fate(&refusals, 3, false), Fate::Done);
        assert_eq!(refusals.fate(2, || "a".to_owned()), Fate::Done, "a publication");
        refusals.forget(2);
        assert_eq!(fate(&refusals, 2, true), Fate::Done);
    }

    #[test]
    fn lost_errors_leave_all_before_them_in_doubt() {
        let mut refusals = Refusals::default();
        for number in 0..=SUBJECTS_MAX {
            refusals.add(&number.to_string(), 3);
        }
        assert_eq!(refusals.fate(3, || "x".to_owned()), Fate::InDoubt);
        assert_eq!(refusals.fate(3, || "0".to_owned()), Fate::Refused);
        assert_eq!(refusals.fate(4, || "x".to_owned()), Fate::Done);
    }
}
