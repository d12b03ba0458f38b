//! Channels that nobody is subscribed to, in the order in which they are forgotten: those that hold
//! no publications first, each kind by how long it is there. The links are in the channels' records: a
//! channel changes its place without a search.

/// No neighbour.
const NONE: u32 = (1 << 31) - 1;

/// In place of the one before: in no list. Shards have far fewer channels than this.
const UNLINKED: u32 = NONE - 1;

/// Which list a channel is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// None: somebody is subscribed.
    InUse,
    /// Idle, without publications: only where its stream stands is kept.
    Bare,
    /// Idle, with publications.
    Holding,
}

/// A channel's part: 8 bytes.
#[derive(Debug)]
pub(super) struct Seat {
    /// Top bit: it was used since it came to the end of its list, and is passed over once.
    prev: u32,
    /// Top bit: it is among those with publications.
    next: u32,
}

const _: () = assert!(size_of::<Seat>() == 8);

/// The top bit of a neighbour's number.
const FLAG: u32 = 1 << 31;

impl Default for Seat {
    fn default() -> Self {
        Self { prev: UNLINKED, next: NONE }
    }
}

impl Seat {
    fn linked(prev: u32, holding: bool) -> Self {
        Self { prev, next: NONE | if holding { FLAG } else { 0 } }
    }

    fn prev(&self) -> u32 {
        self.prev & !FLAG
    }

    pub(super) fn next(&self) -> u32 {
        self.next & !FLAG
    }

    fn set_prev(&mut self, prev: u32) {
        self.prev = self.prev & FLAG | prev;
    }

    fn set_next(&mut self, next: u32) {
        self.next = self.next & FLAG | next;
    }

    /// The channel is being used.
    pub(super) fn mark_used(&mut self) {
        self.prev |= FLAG;
    }

    pub(super) fn is_used(&self) -> bool {
        self.prev & FLAG != 0
    }

    pub(super) fn place(&self) -> Place {
        match (self.prev(), self.next & FLAG) {
            (UNLINKED, _) => Place::InUse,
            (_, 0) => Place::Bare,
            _ => Place::Holding,
        }
    }
}

/// Where the channels' parts are.
pub(super) trait Seats {
    fn seat(&mut self, at: u32) -> &mut Seat;
}

#[derive(Debug)]
struct List {
    first: u32,
    last: u32,
    len: usize,
}

impl Default for List {
    fn default() -> Self {
        Self { first: NONE, last: NONE, len: 0 }
    }
}

/// Both lists.
#[derive(Debug, Default)]
pub(super) struct Idle {
    bare: List,
    holding: List,
}

impl Idle {
    /// Channels in both.
    pub(super) fn len(&self) -> usize {
        self.bare.len + self.holding.len
    }

    /// The channels of a list, the first that is forgotten first.
    pub(super) fn order(&self, place: Place, next: impl Fn(u32) -> u32) -> Vec<u32> {
        let first = match place {
            Place::InUse => NONE,
            Place::Bare => self.bare.first,
            Place::Holding => self.holding.first,
        };
        let some = |at: u32| (at != NONE).then_some(at);
        std::iter::successors(some(first), |at| some(next(*at))).collect()
    }

    fn list(&mut self, place: Place) -> Option<&mut List> {
        match place {
            Place::InUse => None,
            Place::Bare => Some(&mut self.bare),
            Place::Holding => Some(&mut self.holding),
        }
    }

    /// Moves a channel to the end of a list, or out of all.
    pub(super) fn put(&mut self, seats: &mut impl Seats, at: u32, place: Place) {
        let seat = std::mem::take(seats.seat(at));
        let (prev, next) = (seat.prev(), seat.next());
        if let Some(list) = self.list(seat.place()) {
            match prev {
                NONE => list.first = next,
                prev => seats.seat(prev).set_next(next),
            }
            match next {
                NONE => list.last = prev,
                next => seats.seat(next).set_prev(prev),
            }
            list.len -= 1;
        }
        if let Some(list) = self.list(place) {
            let last = std::mem::replace(&mut list.last, at);
            match last {
                NONE => list.first = at,
                last => seats.seat(last).set_next(at),
            }
            list.len += 1;
            *seats.seat(at) = Seat::linked(last, place == Place::Holding);
        }
    }

    /// The channel that is to be forgotten next, other than `spare`. One that was used meanwhile goes to
    /// the end of its list instead, so many in one call at most.
    pub(super) fn next(&mut self, seats: &mut impl Seats, spare: Option<u32>) -> Option<u32> {
        for place in [Place::Bare, Place::Holding] {
            let mut passed = 0;
            while let Some(first) = self.list(place).map(|list| list.first).filter(|at| *at != NONE)
            {
                let is_used = seats.seat(first).is_used() && passed < PASSED_OVER_MAX;
                if Some(first) != spare && !is_used {
                    return Some(first);
                }
                if Some(first) == spare && seats.seat(first).next() == NONE {
                    break;
                }
                self.put(seats, first, place);
                passed += 1;
            }
        }
        None
    }
}

/// Used channels that are passed over in one search.
const PASSED_OVER_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Seats for Vec<Seat> {
        fn seat(&mut self, at: u32) -> &mut Seat {
            &mut self[at as usize]
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Put(u32, Place),
        Use(u32),
        Forget(Option<u32>),
    }

    fn op() -> impl Strategy<Value = Op> {
        let place = prop_oneof![Just(Place::InUse), Just(Place::Bare), Just(Place::Holding)];
        prop_oneof![
            4 => (0..8u32, place).prop_map(|(at, place)| Op::Put(at, place)),
            2 => (0..8u32).prop_map(Op::Use),
            2 => proptest::option::of(0..8u32).prop_map(Op::Forget),
        ]
    }

    proptest! {
        // Against two plain lists.
        #[test]
        fn the_order_is_that_of_plain_lists(ops in proptest::collection::vec(op(), 1..200)) {
            let mut seats: Vec<Seat> = (0..8).map(|_| Seat::default()).collect();
            let mut idle = Idle::default();
            let mut model: [Vec<u32>; 2] = Default::default();
            let mut used = [false; 8];
            for op in ops {
                match op {
                    Op::Put(at, place) => {
                        idle.put(&mut seats, at, place);
                        model.iter_mut().for_each(|list| list.retain(|other| *other != at));
                        match place {
                            Place::InUse => {}
                            Place::Bare => model[0].push(at),
                            Place::Holding => model[1].push(at),
                        }
                        used[at as usize] = false;
                    }
                    Op::Use(at) => {
                        seats[at as usize].mark_used();
                        used[at as usize] = true;
                    }
                    Op::Forget(spare) => {
                        let mut expected = None;
                        for list in &mut model {
                            while expected.is_none() && list.iter().any(|at| Some(*at) != spare) {
                                let first = list.remove(0);
                                if Some(first) == spare || used[first as usize] {
                                    list.push(first);
                                    used[first as usize] = false;
                                } else {
                                    list.insert(0, first);
                                    expected = Some(first);
                                }
                            }
                        }
                        prop_assert_eq!(idle.next(&mut seats, spare), expected);
                    }
                }
                prop_assert_eq!(idle.len(), model[0].len() + model[1].len());
                for (list, of) in [(&idle.bare, &model[0]), (&idle.holding, &model[1])] {
                    let mut found = Vec::new();
                    let mut at = list.first;
                    while at != NONE {
                        found.push(at);
                        at = seats[at as usize].next();
                    }
                    prop_assert_eq!(&found, of);
                    prop_assert_eq!(list.len, of.len());
                }
            }
        }
    }
}
