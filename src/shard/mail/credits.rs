//! Credits: how many requests to one receiver may be unanswered, and which connections wait for some.
//!
//! A request spends credits and its answer gives them back, so that an answer always finds room. A
//! request that finds too few leaves its connection on the waiting list of that receiver; the end of a
//! turn lets as many of them try again as there are credits for.

use std::collections::VecDeque;

use crate::base::id::{ConnKey, ShardId};

/// The credits of one sender at one receiver.
#[derive(Debug)]
pub(crate) struct Credits {
    /// Of requests that are not answered.
    spent: u32,
    /// Requests of up-links that are not answered. They wait for commands of other connections, so
    /// they must not take the credits that those need.
    emulating: u32,
    /// See [`Credits::refused`].
    refused: u8,
}

impl Default for Credits {
    fn default() -> Self {
        Self { spent: 0, emulating: 0, refused: 1 }
    }
}

impl Credits {
    /// Takes the credits of a request, or refuses it. A request that costs more than there are in all
    /// takes all of them.
    pub(crate) fn spend(&mut self, credits: u8, unanswered_max: u32) -> Option<u8> {
        self.refused = credits;
        let credits = u32::from(credits).min(unanswered_max);
        if self.left(unanswered_max) < credits.max(1) {
            return None;
        }
        self.refused = 1;
        self.spent += credits;
        // Not more than the request named.
        Some(credits as u8)
    }

    /// The price of the request that was refused last; 1 when none was refused since.
    pub(crate) fn refused(&self) -> u8 {
        self.refused
    }

    /// Credits that are left.
    pub(crate) fn left(&self, unanswered_max: u32) -> u32 {
        unanswered_max.saturating_sub(self.spent)
    }

    /// The answer to a request has come.
    pub(crate) fn earn(&mut self, credits: u8) {
        self.spent -= u32::from(credits);
    }

    /// Unanswered requests, weighed by their credits, and those of up-links.
    pub(crate) fn spent(&self) -> u32 {
        self.spent + self.emulating
    }

    /// Counts the request of an up-link, or refuses it.
    pub(crate) fn begin_emulation(&mut self, unanswered_max: u32) -> bool {
        let may = self.emulating < unanswered_max;
        self.emulating += u32::from(may);
        may
    }

    /// The request of an up-link is answered.
    pub(crate) fn end_emulation(&mut self) {
        self.emulating -= 1;
    }
}

/// Connections that wait for credit, first come, first served: one queue for each shard, and the last one
/// for calls of the application.
#[derive(Debug)]
pub(crate) struct WaitingList(Vec<VecDeque<(ConnKey, u8)>>);

/// Where a connection waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    /// For credit at a shard.
    Shard(ShardId),
    /// For a call of the application.
    Application,
}

/// The connections of one queue that may try again in this turn.
///
/// The first in the queue tries only when there is as much as its request was refused. Otherwise it would be
/// refused in every turn again, for as long as the receiver has no time.
#[derive(Debug)]
pub(crate) struct Allowance {
    credits: u32,
    left: u32,
    unanswered_max: u32,
}

impl Allowance {
    pub(crate) fn new(credits: u32, unanswered_max: u32) -> Self {
        Self { credits, left: credits.min(RESUMED_MAX), unanswered_max }
    }

    /// A connection tries again: it may spend what it waited for.
    pub(crate) fn use_up(&mut self, needed: u8) {
        self.left = self.left.saturating_sub(u32::from(needed).max(1));
    }

    fn admits(&self, needed: u8) -> bool {
        self.left > 0 && u32::from(needed).min(self.unanswered_max).max(1) <= self.credits
    }
}

impl WaitingList {
    /// Nobody waits at any of so many shards.
    pub(crate) fn new(shards: usize) -> Self {
        Self((0..=shards).map(|_| VecDeque::new()).collect())
    }

    /// The queues, in order.
    pub(crate) fn queues(&self) -> impl Iterator<Item = Queue> + use<> {
        let shards = self.0.len() - 1;
        let shards = (0..shards).map(|at| Queue::Shard(ShardId(at as u8)));
        shards.chain([Queue::Application])
    }

    fn queue(&mut self, queue: Queue) -> &mut VecDeque<(ConnKey, u8)> {
        let at = self.place(queue);
        &mut self.0[at]
    }

    fn place(&self, queue: Queue) -> usize {
        let last = self.0.len() - 1;
        if let Queue::Shard(shard) = queue { shard.index().min(last) } else { last }
    }

    /// Adds a connection whose request of that price was refused.
    pub(crate) fn push(&mut self, queue: Queue, key: ConnKey, needed: u8) {
        self.queue(queue).push_back((key, needed));
    }

    /// Takes the first connection of a queue, if it may try again, and the price of its request.
    pub(crate) fn next(&mut self, queue: Queue, allowance: &Allowance) -> Option<(ConnKey, u8)> {
        let queue = self.queue(queue);
        let (_, needed) = queue.front()?;
        if allowance.admits(*needed) { queue.pop_front() } else { None }
    }

    /// Nobody waits in a queue.
    pub(crate) fn is_empty_at(&self, queue: Queue) -> bool {
        self.0[self.place(queue)].is_empty()
    }

    /// Connections that wait.
    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(VecDeque::len).sum()
    }
}

/// Connections that try again in one turn, for each queue.
const RESUMED_MAX: u32 = 64;

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn key(index: u32) -> ConnKey {
        ConnKey { index, generation: NonZeroU32::MIN }
    }

    #[test]
    fn a_request_takes_its_price_or_is_refused() {
        let mut credits = Credits::default();
        assert_eq!(credits.refused(), 1);
        assert_eq!((credits.spend(2, 3), credits.spend(2, 3)), (Some(2), None));
        assert_eq!((credits.refused(), credits.left(3), credits.spent()), (2, 1, 2));
        assert_eq!(credits.spend(1, 3), Some(1));
        assert_eq!(credits.refused(), 1);
        credits.earn(2);
        // More than there are in all: it waits for all of them.
        assert_eq!(credits.spend(9, 3), None);
        credits.earn(1);
        assert_eq!((credits.spend(9, 3), credits.left(3)), (Some(3), 0));
    }

    #[test]
    fn up_links_have_a_bound_of_their_own() {
        let mut credits = Credits::default();
        assert_eq!(credits.spend(2, 2), Some(2));
        assert!(credits.begin_emulation(1) && !credits.begin_emulation(1));
        assert_eq!(credits.spent(), 3);
        credits.end_emulation();
        assert!(credits.begin_emulation(1));
    }

    #[test]
    fn the_first_of_a_queue_waits_for_its_price() {
        let mut waiting = WaitingList::new(2);
        let (shard, other) = (Queue::Shard(ShardId(1)), Queue::Shard(ShardId(0)));
        waiting.push(shard, key(1), 4);
        waiting.push(shard, key(2), 1);
        waiting.push(Queue::Application, key(3), 1);
        assert_eq!(waiting.queues().collect::<Vec<_>>(), [other, shard, Queue::Application]);
        assert!(waiting.is_empty_at(other) && !waiting.is_empty_at(shard));
        // Three credits are too few for the first one, and nobody overtakes it.
        assert_eq!(waiting.next(shard, &Allowance::new(3, 8)), None);
        let mut allowance = Allowance::new(4, 8);
        assert_eq!(waiting.next(shard, &allowance), Some((key(1), 4)));
        allowance.use_up(4);
        assert_eq!(waiting.next(shard, &allowance), None);
        // With fewer credits in all than the price, all of them are enough.
        waiting.push(other, key(4), 9);
        assert_eq!(waiting.next(other, &Allowance::new(2, 2)), Some((key(4), 9)));
        assert_eq!(waiting.len(), 2);
        assert_eq!(waiting.next(Queue::Application, &Allowance::new(1, 8)), Some((key(3), 1)));
    }

    #[test]
    fn a_turn_lets_a_bounded_number_try() {
        let mut waiting = WaitingList::new(1);
        let queue = Queue::Shard(ShardId(0));
        (0..2 * RESUMED_MAX).for_each(|at| waiting.push(queue, key(at), 1));
        let mut allowance = Allowance::new(u32::MAX, u32::MAX);
        let mut tried = 0;
        while let Some((_, needed)) = waiting.next(queue, &allowance) {
            allowance.use_up(needed);
            tried += 1;
        }
        assert_eq!(tried, RESUMED_MAX);
    }
}
