//! Commands that are on their way: the server answers a `PING` once it has carried out all that came before it, so
//! one `PONG` answers a group of them.

use std::collections::VecDeque;

use compact_str::CompactString;
use tokio::time::Instant;

use crate::hub::broker::Ticket;

/// What a `PONG` answers.
#[derive(Debug)]
pub(super) enum Pending {
    /// A subscription is made.
    Listening {
        /// Its number.
        sid: u64,
    },
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

/// What one `PONG` answers.
#[derive(Debug)]
pub(super) struct Group {
    /// When its `PING` was sent.
    pub(super) since: Instant,
    pub(super) all: Vec<Pending>,
    /// Bytes that leave the account of the thread with it.
    pub(super) cost: usize,
}

/// Groups in their order, the last one without its `PING`.
#[derive(Debug, Default)]
pub(super) struct Groups {
    sent: VecDeque<Group>,
    all: Vec<Pending>,
    cost: usize,
    /// The last one wants a `PING` though nothing in it is answered.
    probes: bool,
}

impl Groups {
    pub(super) fn add(&mut self, pending: Pending) {
        self.all.push(pending);
    }

    /// Bytes that are in the account of the thread until the next `PONG`.
    pub(super) fn count(&mut self, cost: usize) {
        self.cost += cost;
    }

    /// The server is to show that it is there, unless it is to anyway.
    pub(super) fn probe(&mut self) {
        self.probes |= self.sent.is_empty();
    }

    /// The last group ends: whether a `PING` is to be sent.
    pub(super) fn end(&mut self, since: Instant) -> bool {
        let probes = std::mem::take(&mut self.probes);
        if self.all.is_empty() && self.cost == 0 && !probes {
            return false;
        }
        let (all, cost) = (std::mem::take(&mut self.all), std::mem::take(&mut self.cost));
        self.sent.push_back(Group { since, all, cost });
        true
    }

    /// A `PONG` has come.
    pub(super) fn pong(&mut self) -> Option<Group> {
        self.sent.pop_front()
    }

    /// When the oldest `PING` was sent that has no answer.
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
    async fn a_pong_answers_what_came_before_its_ping() {
        let now = Instant::now();
        let mut groups = Groups::default();
        assert!(!groups.end(now), "nothing waits");
        groups.add(control(1));
        groups.count(10);
        assert!(groups.end(now));
        groups.add(control(2));
        groups.count(5);
        let first = groups.pong().unwrap();
        assert_eq!((first.all.len(), first.cost), (1, 10));
        assert!(groups.pong().is_none() && groups.oldest().is_none());
        groups.probe();
        assert!(groups.end(now) && groups.oldest().is_some());
        groups.probe();
        assert!(!groups.end(now), "a PING is under way");
        groups.add(control(3));
        groups.count(1);
        let (cost, all) = groups.take_all();
        assert_eq!((cost, all.len()), (6, 2));
        assert!(groups.oldest().is_none());
    }
}
