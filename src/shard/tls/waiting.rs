//! Handshakes that wait for a turn with a step to spare.
//!
//! A turn reports as many of them as it can make steps, so a long queue costs a turn nothing, and each keeps
//! its place in it. Handshakes that have begun come first: they hold memory until they are done.

use std::collections::VecDeque;
use std::num::NonZeroU32;

use crate::base::id::ConnKey;
use crate::base::limits::TURN_HANDSHAKES_MAX;
use crate::shard::by_slot::BySlot;

/// Steps of a turn that handshakes may take which have not begun.
pub(super) const TURN_BEGINNINGS_MAX: usize = TURN_HANDSHAKES_MAX / 2;

/// Connections that wait for a step of their handshake.
#[derive(Default)]
pub(super) struct Waiting {
    begun: VecDeque<ConnKey>,
    new: VecDeque<ConnKey>,
    /// The generations of those that wait, by slot. Queues may have entries of connections that have closed.
    by_slot: BySlot<NonZeroU32>,
}

impl Waiting {
    /// Puts a connection at the end of its queue, if it isn't in one.
    pub(super) fn push(&mut self, key: ConnKey, has_begun: bool) {
        if self.by_slot.insert(key.index, key.generation) != Some(key.generation) {
            let queue = if has_begun { &mut self.begun } else { &mut self.new };
            queue.push_back(key);
        }
    }

    /// Takes those out that a turn can make a step for.
    pub(super) fn take(&mut self, mut each: impl FnMut(ConnKey)) {
        let Self { begun, new, by_slot } = self;
        let mut take = |queue: &mut VecDeque<ConnKey>, max: usize| {
            let mut taken = 0;
            while taken < max
                && let Some(key) = queue.pop_front()
            {
                if by_slot.get(&key.index) == Some(&key.generation) {
                    by_slot.remove(&key.index);
                    each(key);
                    taken += 1;
                }
            }
            taken
        };
        let steps = TURN_HANDSHAKES_MAX - take(begun, TURN_HANDSHAKES_MAX);
        take(new, steps.min(TURN_BEGINNINGS_MAX));
    }

    /// Forgets a connection that is closed.
    pub(super) fn remove(&mut self, index: u32) {
        if self.by_slot.is_empty() || self.by_slot.remove(&index).is_none() {
            return;
        }
        // Entries of closed ones are at most as many as those of others, and some.
        let entries = self.begun.len() + self.new.len();
        if entries > 2 * self.by_slot.len() + 64 {
            let by_slot = &self.by_slot;
            let waits = |key: &ConnKey| by_slot.get(&key.index) == Some(&key.generation);
            self.begun.retain(waits);
            self.new.retain(waits);
        }
    }

    /// A connection has another key.
    pub(super) fn rename(&mut self, old: ConnKey, new: ConnKey) {
        if self.by_slot.get(&old.index) == Some(&old.generation) {
            self.by_slot.remove(&old.index);
            self.by_slot.insert(new.index, new.generation);
            let queues = self.begun.iter_mut().chain(&mut self.new);
            queues.filter(|key| **key == old).for_each(|key| *key = new);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_slot.is_empty()
    }

    /// Gives back what a burst has left.
    pub(super) fn shrink(&mut self) {
        if self.by_slot.is_empty() && self.by_slot.capacity() > 0 {
            *self = Self::default();
        }
    }

    /// Connections that wait, for tests of what is left.
    pub(super) fn len(&self) -> usize {
        self.by_slot.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: u32, generation: u32) -> ConnKey {
        ConnKey { index, generation: NonZeroU32::new(generation).unwrap() }
    }

    fn taken(waiting: &mut Waiting) -> Vec<ConnKey> {
        let mut taken = Vec::new();
        waiting.take(|key| taken.push(key));
        taken
    }

    #[test]
    fn those_that_have_begun_come_first_and_each_once() {
        let mut waiting = Waiting::default();
        for index in 0..3 {
            waiting.push(key(index, 1), false);
            waiting.push(key(index, 1), false);
        }
        waiting.push(key(9, 1), true);
        let beginnings = TURN_BEGINNINGS_MAX.min(TURN_HANDSHAKES_MAX - 1);
        let first = taken(&mut waiting);
        assert_eq!(first[0], key(9, 1));
        assert_eq!(first.len(), 1 + beginnings);
        let mut rest = first[1..].to_vec();
        while !waiting.is_empty() {
            rest.extend(taken(&mut waiting));
        }
        assert_eq!(rest, [key(0, 1), key(1, 1), key(2, 1)]);
    }

    #[test]
    fn a_closed_connection_leaves_its_place_and_its_slot() {
        let mut waiting = Waiting::default();
        waiting.push(key(1, 1), false);
        waiting.remove(1);
        assert!(waiting.is_empty() && taken(&mut waiting).is_empty());
        waiting.push(key(1, 2), true);
        waiting.rename(key(1, 2), key(1, 3));
        assert_eq!(taken(&mut waiting), [key(1, 3)]);
        assert!(waiting.is_empty());
        // Connections that come and go leave no queue behind.
        waiting.push(key(0, 1), false);
        for generation in 1..10_000 {
            waiting.push(key(1, generation), false);
            waiting.remove(1);
        }
        assert!(waiting.new.len() < 100, "{}", waiting.new.len());
        assert_eq!(taken(&mut waiting), [key(0, 1)]);
        waiting.shrink();
        assert_eq!((waiting.new.capacity(), waiting.by_slot.capacity()), (0, 0));
    }
}
