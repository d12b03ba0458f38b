//! Commands that are on their way: the server carries out what a connection sends in its order, so a message of the
//! thread to itself, a probe, comes back once all before it has taken effect. One probe answers a group of commands.
//!
//! The next group ends when fewer than [`PROBES_MAX`] probes are under way: a thread with little to do sends one behind
//! each command, a busy one few of them, whatever the distance of the server.

use std::collections::VecDeque;

use compact_str::CompactString;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::hub::broker::Ticket;

/// Probes that are under way at most.
const PROBES_MAX: usize = 4;

/// What a probe answers.
#[derive(Debug)]
pub(super) enum Pending {
    /// Subscriptions of channels are made.
    Listening {
        /// Their numbers.
        numbers: Vec<u64>,
        /// It is one, and no other one is under way: an error without a subject is about it.
        is_alone: bool,
        /// Whether all of them are made.
        done: oneshot::Sender<bool>,
    },
    /// The subscription that takes all channels is made.
    ListeningToAll,
    /// A publication without history is taken.
    Published {
        /// Of this home.
        home: usize,
        ticket: Ticket,
        channel: CompactString,
        since: Instant,
    },
    /// A message to other nodes is taken.
    Control { ticket: Ticket },
    /// Messages of other nodes come.
    ControlListening,
}

/// What one probe answers.
#[derive(Debug)]
pub(super) struct Group {
    /// The number of its probe.
    pub(super) number: u64,
    /// When it was sent.
    since: Instant,
    pub(super) all: Vec<Pending>,
    /// Bytes that leave the account of the thread with it.
    pub(super) cost: usize,
}

/// Groups in their order, the last one without its probe.
#[derive(Debug, Default)]
pub(super) struct Groups {
    sent: VecDeque<Group>,
    all: Vec<Pending>,
    cost: usize,
    /// The last one wants a probe though nothing in it is answered.
    probes: bool,
    /// The number of the newest probe.
    last: u64,
}

impl Groups {
    pub(super) fn add(&mut self, pending: Pending) {
        self.all.push(pending);
    }

    /// Bytes that are in the account of the thread until the next probe is back.
    pub(super) fn count(&mut self, cost: usize) {
        self.cost += cost;
    }

    /// The server is to show that it is there, unless it is to anyway.
    pub(super) fn probe(&mut self) {
        self.probes |= self.sent.is_empty();
    }

    /// The number of the probe to send behind the last group, if it is time for one.
    pub(super) fn next(&self) -> Option<u64> {
        let waits = !self.all.is_empty() || self.cost > 0 || self.probes;
        (waits && self.sent.len() < PROBES_MAX).then_some(self.last + 1)
    }

    /// That probe is sent.
    pub(super) fn end(&mut self, since: Instant) {
        self.last += 1;
        self.probes = false;
        let (all, cost) = (std::mem::take(&mut self.all), std::mem::take(&mut self.cost));
        self.sent.push_back(Group { number: self.last, since, all, cost });
    }

    /// The next group that a probe with this number answers.
    pub(super) fn answered(&mut self, number: u64) -> Option<Group> {
        self.sent.pop_front_if(|group| group.number <= number)
    }

    /// The number of the last group: its probe may be on its way, or not sent yet.
    pub(super) fn last(&self) -> u64 {
        self.last + 1
    }

    /// When the oldest probe was sent that is not back.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.sent.front().map(|group| group.since)
    }

    /// All of them, when the connection has ended: their bytes, and what they were.
    pub(super) fn take_all(&mut self) -> (usize, Vec<Pending>) {
        let rest = std::mem::take(&mut *self);
        let mut cost = rest.cost;
        let mut all = Vec::new();
        for group in rest.sent {
            cost += group.cost;
            all.extend(group.all);
        }
        all.extend(rest.all);
        (cost, all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(number: u64) -> Pending {
        Pending::Control { ticket: Ticket(number) }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_probe_answers_what_came_before_it() {
        let now = Instant::now();
        let mut groups = Groups::default();
        assert_eq!(groups.next(), None, "nothing waits");
        groups.add(control(1));
        groups.count(10);
        assert_eq!(groups.next(), Some(1));
        groups.end(now);
        groups.add(control(2));
        groups.count(5);
        groups.end(now);
        let first = groups.answered(1).unwrap();
        assert_eq!((first.all.len(), first.cost), (1, 10));
        assert!(groups.answered(1).is_none() && groups.oldest().is_some());
        assert!(groups.answered(2).is_some() && groups.oldest().is_none());
        groups.probe();
        assert_eq!(groups.next(), Some(3));
        groups.end(now);
        groups.probe();
        assert_eq!(groups.next(), None, "a probe is under way");
        groups.add(control(3));
        groups.count(1);
        let (cost, all) = groups.take_all();
        assert_eq!((cost, all.len()), (1, 1));
        assert!(groups.oldest().is_none());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_late_probe_answers_all_before_it() {
        let mut groups = Groups::default();
        for number in 1..=3 {
            groups.add(control(number));
            groups.end(Instant::now());
        }
        let answered = std::iter::from_fn(|| groups.answered(2)).count();
        assert_eq!(answered, 2);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn few_probes_are_under_way() {
        let mut groups = Groups::default();
        for number in 1..=10 {
            groups.add(control(number));
            if groups.next().is_some() {
                groups.end(Instant::now());
            }
        }
        assert_eq!(groups.sent.len(), PROBES_MAX);
        assert_eq!(groups.all.len(), 10 - PROBES_MAX);
        groups.answered(1);
        assert_eq!(groups.next(), Some(PROBES_MAX as u64 + 1));
    }
}
