//! Places of connections, and who loses one when all are taken.
//!
//! A connection that does nothing for a client is *replaceable*: it is in its request head, kept for another request,
//! sending a client's body, upgraded but not connected, or closing. The others are busy: clients, and requests that
//! are being answered. Where no place is left, the connection that has been replaceable for longest makes room for
//! the new one (`admit.rs`); so sockets that say nothing can't lock anybody out, however many there are.
//!
//! [`Replaceable`] is a list in the order in which they became so. Its links are in a table of their own and not in
//! the connection's record, so that a client pays nothing for it; joining, leaving and taking the first are O(1).

use crate::shard::by_slot::BySlot;
use crate::shard::net::timers::{LinkTable, Links, List};

/// Links of the members of a list, by slot.
#[derive(Default)]
struct LinksBySlot(BySlot<Links>);

impl LinkTable for LinksBySlot {
    fn links(&mut self, index: u32) -> &mut Links {
        self.0.entry(index).or_default()
    }
}

/// Connections that may lose their places, the longest idle first.
#[derive(Default)]
pub(crate) struct Replaceable {
    list: List,
    links: LinksBySlot,
}

impl Replaceable {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.links.0.len()
    }

    /// All of them, the longest idle first.
    pub(crate) fn order(&self) -> Vec<u32> {
        let next = |at: &u32| {
            self.links
                .0
                .get(at)
                .map(|links| links.next())
                .filter(|next| Some(*next) != self.first())
        };
        std::iter::successors(self.first(), next).collect()
    }

    /// The one that has been here for longest.
    pub(crate) fn first(&self) -> Option<u32> {
        self.list.head()
    }

    /// Makes a connection the last one, also if it is a member already.
    pub(crate) fn insert(&mut self, index: u32) {
        self.remove(index);
        self.list.push_back(&mut self.links, index);
    }

    /// Takes a connection out, if it is a member.
    pub(crate) fn remove(&mut self, index: u32) {
        if !self.links.0.contains_key(&index) {
            return;
        }
        self.list.remove(&mut self.links, index);
        self.links.0.remove(&index);
    }

    /// Gives back what a burst of new connections left behind: as many clients later own nothing here.
    pub(crate) fn give_back(&mut self) {
        let links = &mut self.links.0;
        if links.capacity() > 4 * links.len() + LINKS_KEPT {
            links.shrink_to(2 * links.len());
        }
    }
}

/// Links that are kept however few are in use.
const LINKS_KEPT: usize = 256;

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_leaves_nothing_behind() {
        let mut replaceable = Replaceable::default();
        (0..10_000).for_each(|index| replaceable.insert(index));
        replaceable.give_back();
        assert_eq!((replaceable.len(), replaceable.first()), (10_000, Some(0)));
        (0..9_999).for_each(|index| replaceable.remove(index));
        replaceable.give_back();
        assert!(replaceable.links.0.capacity() <= LINKS_KEPT);
        assert_eq!((replaceable.len(), replaceable.first()), (1, Some(9_999)));
    }

    proptest! {
        // As a plain queue has it, in which each is once.
        #[test]
        fn the_longest_idle_is_first(steps in proptest::collection::vec((0..3u8, 0..20u32), 0..200)) {
            let mut replaceable = Replaceable::default();
            let mut queue: VecDeque<u32> = VecDeque::new();
            for (step, index) in steps {
                match step {
                    0 | 1 => {
                        replaceable.insert(index);
                        queue.retain(|at| *at != index);
                        queue.push_back(index);
                    }
                    _ => {
                        replaceable.remove(index);
                        queue.retain(|at| *at != index);
                    }
                }
                prop_assert_eq!(replaceable.len(), queue.len());
                prop_assert_eq!(replaceable.first(), queue.front().copied());
            }
            while let Some(index) = replaceable.first() {
                prop_assert_eq!(Some(index), queue.pop_front());
                replaceable.remove(index);
            }
            prop_assert!(queue.is_empty());
            prop_assert_eq!(replaceable.links.0.len(), 0);
        }
    }
}
