//! Publishes that are taken and not acknowledged: their deliveries are not all in their receivers' mailboxes.
//!
//! A flush takes all that is there for a shard, so that it is enough to know which publish was the last before it.
//! A turn looks at each publish once, however many shards there are and however often it flushes.

use std::collections::VecDeque;

use crate::base::id::ShardId;
use crate::base::steps;
use crate::hub::history::Position;
use crate::shard::mail::Asker;
use crate::shard::mail::shard_set::ShardSet;

/// A publish that is taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ack {
    /// Who asked, and where it is.
    pub(crate) to: ShardId,
    pub(crate) asker: Asker,
    pub(crate) position: Position,
}

#[derive(Debug)]
struct Waiting {
    ack: Ack,
    /// Its place in the order of all publishes.
    number: u64,
    /// The shards in whose mailboxes its deliveries may not be yet.
    shards: ShardSet,
}

/// Those that wait, in order.
#[derive(Debug)]
pub(crate) struct Acks {
    waiting: VecDeque<Waiting>,
    /// The number of the next one.
    next: u64,
    /// For each shard: deliveries of publishes before that number are in its mailbox.
    delivered: Vec<u64>,
}

impl Acks {
    pub(crate) fn new(shards: usize) -> Self {
        Self { waiting: VecDeque::new(), next: 0, delivered: vec![0; shards] }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A publish is taken; its deliveries to these shards have not left.
    pub(crate) fn push(&mut self, ack: Ack, shards: ShardSet) {
        self.waiting.push_back(Waiting { ack, number: self.next, shards });
        self.next += 1;
    }

    /// All that was there for a shard has left.
    pub(crate) fn delivered_to(&mut self, shard: ShardId) {
        steps::take(1);
        // The control thread gets no deliveries.
        if let Some(delivered) = self.delivered.get_mut(shard.index()) {
            *delivered = self.next;
        }
    }

    /// Takes out those whose deliveries have all left. Some mail for the shards `held` has not; all mail for others
    /// has.
    pub(crate) fn take_done(&mut self, held: ShardSet, mut each: impl FnMut(Ack)) {
        let mut waiting = std::mem::take(&mut self.waiting);
        for mut of in waiting.drain(..) {
            steps::take(1);
            of.shards.keep(held);
            // What is held may be newer. A shard is taken off once for each publish at most.
            while let Some(shard) = of.shards.first()
                && self.delivered.get(shard.index()).is_none_or(|before| of.number < *before)
            {
                steps::take(1);
                of.shards.remove(shard);
            }
            match of.shards.is_empty() {
                true => each(of.ack),
                false => self.waiting.push_back(of),
            }
        }
        if self.waiting.is_empty() && waiting.capacity() <= SPARE_MAX {
            self.waiting = waiting;
        }
    }
}

/// Places that are kept when nothing waits.
const SPARE_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;
    use crate::base::id::ConnKey;

    fn ack(number: u32) -> Ack {
        let conn = ConnKey { index: number, generation: NonZeroU32::MIN };
        Ack {
            to: ShardId(0),
            asker: Asker::of(conn),
            position: Position { offset: 0, epoch: None },
        }
    }

    fn set(shards: impl IntoIterator<Item = usize>) -> ShardSet {
        let mut set = ShardSet::default();
        shards.into_iter().for_each(|shard| set.insert(ShardId(shard as u8)));
        set
    }

    fn done(acks: &mut Acks, held: ShardSet) -> Vec<u32> {
        let mut done = Vec::new();
        acks.take_done(held, |ack| done.push(ack.asker.conn.index));
        done
    }

    proptest! {
        // Publishes, flushes within a turn, and turns whose ends some shards have no room at; against a set for
        // each publish that every flush takes its shard out of.
        #[test]
        fn each_is_done_when_all_its_deliveries_have_left(
            ops in proptest::collection::vec((0..4u8, any::<[bool; 5]>()), 1..80),
        ) {
            let mut acks = Acks::new(5);
            let mut model: Vec<(u32, [bool; 5])> = Vec::new();
            let mut held = [false; 5];
            let mut number = 0;
            for (op, shards) in ops {
                match op {
                    0 | 1 => {
                        acks.push(ack(number), set((0..5).filter(|at| shards[*at])));
                        model.push((number, shards));
                        (0..5).for_each(|at| held[at] |= shards[at]);
                        number += 1;
                    }
                    _ => {
                        for at in (0..5).filter(|at| shards[*at]) {
                            acks.delivered_to(ShardId(at as u8));
                            held[at] = false;
                            model.iter_mut().for_each(|(_, waits)| waits[at] = false);
                        }
                    }
                }
                if op == 3 {
                    let expected: Vec<u32> =
                        model.extract_if(.., |(_, waits)| *waits == [false; 5]).map(|of| of.0).collect();
                    let held = set((0..5).filter(|at| held[*at]));
                    prop_assert_eq!(done(&mut acks, held), expected);
                    prop_assert_eq!(acks.len(), model.len());
                }
            }
        }
    }

    #[test]
    fn a_turn_takes_a_step_for_each_publish_and_one_for_each_flush() {
        let (publishes, shards) = (2_000, 200);
        let mut acks = Acks::new(shards);
        let ((), steps) = steps::of(|| {
            for number in 0..publishes {
                acks.push(ack(number), set(0..shards));
            }
            (0..shards).for_each(|shard| acks.delivered_to(ShardId(shard as u8)));
            assert_eq!(done(&mut acks, ShardSet::default()).len(), publishes as usize);
        });
        assert_eq!(steps, u64::from(publishes) + shards as u64);
        // One shard has no room for many turns.
        (0..publishes).for_each(|number| acks.push(ack(number), set(0..shards)));
        let ((), steps) = steps::of(|| {
            for _ in 0..10 {
                (1..shards).for_each(|shard| acks.delivered_to(ShardId(shard as u8)));
                assert!(done(&mut acks, set([0])).is_empty());
            }
        });
        assert_eq!(steps, 10 * (u64::from(publishes) + shards as u64 - 1));
    }
}
