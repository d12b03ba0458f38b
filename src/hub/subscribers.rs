//! The subscribers of one channel on one shard: a dense array, walked in the order of the
//! connections' records.

/// A place in the array that nobody has.
const TOMBSTONE: u32 = u32::MAX;

/// One subscriber: 8 bytes, what a write needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscriber {
    /// The connection's slot on this shard. A connection that goes leaves its lists first, so no
    /// generation is needed.
    pub conn: u32,
    /// Its position in the channel is watched: it is told of a gap.
    pub positioned: bool,
}

/// Subscribers, added behind and removed by place.
///
/// While a fan-out is on its way (`held`), places stay what they are: removal leaves a tombstone.
/// Otherwise the last one moves into the gap, and whoever keeps places is told.
#[derive(Debug, Default)]
pub struct Subscribers {
    list: Vec<Subscriber>,
    tombstones: u32,
    /// The list may be out of the order of the connections' slots.
    unordered: bool,
}

impl Subscribers {
    /// Subscribers at this moment.
    pub fn len(&self) -> usize {
        self.list.len() - self.tombstones as usize
    }

    /// Nobody is subscribed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Places in use, tombstones included: the end of a fan-out that begins now.
    pub fn places(&self) -> u32 {
        self.list.len() as u32
    }

    /// Who is at the places `range`, without the ones that have gone.
    pub fn at(&self, range: std::ops::Range<u32>) -> impl Iterator<Item = Subscriber> + '_ {
        let range = range.start as usize..(range.end as usize).min(self.list.len());
        self.list[range].iter().filter(|s| s.conn != TOMBSTONE).copied()
    }

    /// Everyone.
    pub fn iter(&self) -> impl Iterator<Item = Subscriber> + '_ {
        self.at(0..self.places())
    }

    /// Adds one behind all others and answers its place.
    pub fn add(&mut self, subscriber: Subscriber) -> u32 {
        if self.list.is_empty() {
            // A channel of one: no spare room.
            self.list.reserve_exact(1);
        } else {
            self.unordered |= self.list.last().is_some_and(|last| last.conn > subscriber.conn);
        }
        self.list.push(subscriber);
        (self.list.len() - 1) as u32
    }

    /// Removes the one at `place`. Without `held`, the answer is who has moved to that place.
    pub fn remove(&mut self, place: u32, held: bool) -> Option<Subscriber> {
        let place = place as usize;
        assert!(self.list[place].conn != TOMBSTONE, "removed twice");
        if held {
            self.list[place].conn = TOMBSTONE;
            self.tombstones += 1;
            return None;
        }
        debug_assert_eq!(self.tombstones, 0);
        self.list.swap_remove(place);
        let moved = self.list.get(place).copied();
        self.unordered |= moved.is_some();
        if self.list.len() * 4 < self.list.capacity() {
            self.list.shrink_to(self.list.len() * 2);
        }
        moved
    }

    /// When no fan-out is on its way: takes tombstones out and puts all in the order of their
    /// records, if there are enough of them that it pays. Calls `moved` for each new place.
    pub fn settle(&mut self, mut moved: impl FnMut(Subscriber, u32)) {
        let sort = self.unordered && self.list.len() >= SORT_MIN;
        if self.tombstones == 0 && !sort {
            return;
        }
        self.list.retain(|s| s.conn != TOMBSTONE);
        self.tombstones = 0;
        if sort {
            self.list.sort_unstable_by_key(|s| s.conn);
            self.unordered = false;
        }
        for (place, subscriber) in self.list.iter().enumerate() {
            moved(*subscriber, place as u32);
        }
        if self.list.len() * 4 < self.list.capacity() {
            self.list.shrink_to(self.list.len() * 2);
        }
    }
}

/// Below this many, the order of the walk doesn't matter: the records are in the cache anyway.
const SORT_MIN: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subscriber(conn: u32) -> Subscriber {
        Subscriber { conn, positioned: conn.is_multiple_of(2) }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Add,
        Remove(usize),
        Hold,
        Release,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => Just(Op::Add),
            3 => any::<usize>().prop_map(Op::Remove),
            1 => Just(Op::Hold),
            1 => Just(Op::Release),
        ]
    }

    proptest! {
        // Against a model that keeps who is there and the place of each.
        #[test]
        fn places_stay_true(ops in proptest::collection::vec(op(), 1..400)) {
            let mut list = Subscribers::default();
            let mut model: Vec<(u32, u32)> = Vec::new();
            let mut held = None;
            let mut next = 1000u32;
            for op in ops {
                match op {
                    Op::Add => {
                        next = next.wrapping_mul(7919) % 100_003;
                        if model.iter().any(|(c, _)| *c == next) { continue }
                        let place = list.add(subscriber(next));
                        model.push((next, place));
                    }
                    Op::Remove(at) if !model.is_empty() => {
                        let (_, place) = model.swap_remove(at % model.len());
                        if let Some(moved) = list.remove(place, held.is_some()) {
                            let entry = model.iter_mut().find(|(c, _)| *c == moved.conn).unwrap();
                            entry.1 = place;
                        }
                    }
                    Op::Remove(_) => {}
                    Op::Hold => if held.is_none() { held = Some(list.places()) },
                    Op::Release => {
                        held = None;
                        list.settle(|s, place| {
                            model.iter_mut().find(|(c, _)| *c == s.conn).unwrap().1 = place;
                        });
                    }
                }
                prop_assert_eq!(list.len(), model.len());
                for (conn, place) in &model {
                    let found: Vec<_> = list.at(*place..*place + 1).collect();
                    prop_assert_eq!(found, vec![subscriber(*conn)]);
                }
            }
        }
    }

    #[test]
    fn settling_puts_many_in_order() {
        let mut list = Subscribers::default();
        for conn in (0..200).rev() {
            list.add(subscriber(conn));
        }
        list.settle(|_, _| {});
        assert!(list.iter().map(|s| s.conn).eq(0..200));
    }
}
