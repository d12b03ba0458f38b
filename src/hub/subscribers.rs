//! The subscribers of one channel on one shard: a dense array, walked in the order of the
//! connections' records.

use crate::base::form::Form;
use crate::base::image::{Broken, Durable, ImageReader, ImageWriter, durable};
use crate::base::limits::FILTERS_MAX;

/// Bits of the number of a filter.
const FILTER_BITS: u32 = u32::BITS - FILTERS_MAX.leading_zeros();

/// The number of a filter that nothing passes: no filter has it.
const NOTHING: u32 = (1 << FILTER_BITS) - 1;
const _: () = assert!(FILTERS_MAX < NOTHING);

/// A place in the array that nobody has.
const TOMBSTONE: u32 = u32::MAX;

/// One subscriber: 8 bytes, what a write needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscriber {
    /// The connection's slot on this shard. A connection that goes leaves its lists first, so no
    /// generation is needed.
    pub conn: u32,
    /// Its traits.
    pub traits: Traits,
}

/// The share of a subscriber in its channel. 4 bytes.
///
/// ```text
///  bit 0..8: form   8: positioned   9: takes joins   10: fresh   11..32: number of its filter, or 0
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Traits(u32);

impl Traits {
    const POSITIONED: u32 = 1 << 8;
    const TAKES_JOINS: u32 = 1 << 9;
    const FRESH: u32 = 1 << 10;
    const FILTER_SHIFT: u32 = 32 - FILTER_BITS;

    /// Takes plain JSON, and nothing more.
    pub const JSON: Self = Self::new(Form::JSON);

    /// A subscriber of this form, with nothing more.
    pub const fn new(form: Form) -> Self {
        Self(form.number() as u32)
    }

    /// Its position in the channel is watched: it is notified of a gap.
    pub fn with_positioned(self, on: bool) -> Self {
        self.with(Self::POSITIONED, on)
    }

    /// It gets join and leave events.
    pub fn with_joins(self, on: bool) -> Self {
        self.with(Self::TAKES_JOINS, on)
    }

    /// It has no base yet: the next publication goes to it in full.
    pub fn with_fresh(self, on: bool) -> Self {
        self.with(Self::FRESH, on)
    }

    /// It gets publications that pass this filter (its number; 0: all of them).
    pub fn with_filter(self, filter: u32) -> Self {
        debug_assert!(filter < 1 << FILTER_BITS);
        Self(self.0 & ((1 << Self::FILTER_SHIFT) - 1) | filter << Self::FILTER_SHIFT)
    }

    /// It gets no publications any more: it is out of position, and its subscription is about to end.
    pub fn lapse(self) -> Self {
        self.with_filter(NOTHING)
    }

    /// See [`Self::lapse`].
    pub fn has_lapsed(self) -> bool {
        self.filter() == NOTHING
    }

    /// See [`Form`].
    pub fn form(self) -> Form {
        Form::from_u8(self.0 as u8)
    }

    /// See [`Self::with_positioned`].
    pub fn positioned(self) -> bool {
        self.0 & Self::POSITIONED != 0
    }

    /// See [`Self::with_joins`].
    pub fn takes_joins(self) -> bool {
        self.0 & Self::TAKES_JOINS != 0
    }

    /// See [`Self::with_fresh`].
    pub fn fresh(self) -> bool {
        self.0 & Self::FRESH != 0
    }

    /// See [`Self::with_filter`].
    pub fn filter(self) -> u32 {
        self.0 >> Self::FILTER_SHIFT
    }

    fn with(self, bit: u32, on: bool) -> Self {
        if on { Self(self.0 | bit) } else { Self(self.0 & !bit) }
    }
}

const _: () = assert!(size_of::<Subscriber>() == 8);

durable!(Subscriber { conn, traits });

impl Durable for Traits {
    fn write(&self, out: &mut ImageWriter) {
        out.field(&self.form());
        out.field(&(self.0 >> Form::BITS));
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        let form: Form = from.field("Traits.form")?;
        let bits: u32 = from.field("Traits.bits")?;
        if bits.leading_zeros() < Form::BITS {
            return Err(Broken::Value("traits"));
        }
        Ok(Self(bits << Form::BITS | u32::from(form.number())))
    }
}

/// Subscribers, added behind and removed by place.
///
/// While a fan-out is on its way (`held`), places stay what they are: removal leaves a tombstone.
/// Otherwise the last one moves into the free place, and the owner of its place is notified.
///
/// Shape: 16 bytes, since most channels have one subscriber.
#[derive(Debug, Default)]
pub struct Subscribers(Held);

#[derive(Debug, Default)]
enum Held {
    /// Nobody.
    #[default]
    None,
    /// One, and no tombstone.
    One(Subscriber),
    /// Several, or what is left of them while a fan-out holds their places.
    Several(Box<Several>),
}

#[derive(Debug, Default)]
struct Several {
    list: Vec<Subscriber>,
    tombstones: u32,
    /// The list may be out of the order of the connections' slots.
    unordered: bool,
}

const _: () = assert!(size_of::<Subscribers>() == 16);
const _: () = assert!(size_of::<Several>() == 32);

impl Durable for Subscribers {
    // Nobody leaves a tombstone but in a fan-out, and none is on its way when an image is written.
    fn write(&self, out: &mut ImageWriter) {
        out.count(self.list().len());
        Subscriber::write_all(self.list(), out);
        out.field(&matches!(&self.0, Held::Several(several) if several.unordered));
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        let list = from.field("Subscribers.list")?;
        let unordered = from.field("Subscribers.unordered")?;
        let mut subscribers =
            Self(Held::Several(Box::new(Several { list, tombstones: 0, unordered })));
        subscribers.shrink();
        Ok(subscribers)
    }
}

impl Subscribers {
    fn list(&self) -> &[Subscriber] {
        match &self.0 {
            Held::None => &[],
            Held::One(one) => std::slice::from_ref(one),
            Held::Several(several) => &several.list,
        }
    }

    fn list_mut(&mut self) -> &mut [Subscriber] {
        match &mut self.0 {
            Held::None => &mut [],
            Held::One(one) => std::slice::from_mut(one),
            Held::Several(several) => &mut several.list,
        }
    }

    /// As several, whatever the number.
    fn several(&mut self) -> &mut Several {
        if let Held::None | Held::One(_) = &self.0 {
            let several = Several { list: self.list().to_vec(), ..Several::default() };
            self.0 = Held::Several(Box::new(several));
        }
        match &mut self.0 {
            Held::Several(several) => several,
            Held::None | Held::One(_) => unreachable!("made above"),
        }
    }

    /// Gives back memory that is not needed, unless there are tombstones.
    fn shrink(&mut self) {
        let Held::Several(several) = &mut self.0 else { return };
        match several.list[..] {
            _ if several.tombstones > 0 => {}
            [] => self.0 = Held::None,
            [one] => self.0 = Held::One(one),
            _ if several.list.len() * 4 < several.list.capacity() => {
                several.list.shrink_to(several.list.len() * 2);
            }
            _ => {}
        }
    }

    /// Subscribers at this moment.
    pub fn len(&self) -> usize {
        let tombstones = if let Held::Several(several) = &self.0 { several.tombstones } else { 0 };
        self.list().len() - tombstones as usize
    }

    /// Nobody is subscribed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Places in use, tombstones included: the end of a fan-out that begins now.
    pub fn places(&self) -> u32 {
        self.list().len() as u32
    }

    /// The subscribers at the places `range`, without those that have gone.
    pub fn at(&self, range: std::ops::Range<u32>) -> impl Iterator<Item = Subscriber> + '_ {
        let list = self.list();
        let range = range.start as usize..(range.end as usize).min(list.len());
        list[range].iter().filter(|s| s.conn != TOMBSTONE).copied()
    }

    /// Everyone.
    pub fn iter(&self) -> impl Iterator<Item = Subscriber> + '_ {
        self.at(0..self.places())
    }

    /// The one at a place.
    pub fn get(&self, place: u32) -> Option<Subscriber> {
        self.list().get(place as usize).filter(|s| s.conn != TOMBSTONE).copied()
    }

    /// The subscribers at the places `range`, to change.
    pub fn at_mut(
        &mut self,
        range: std::ops::Range<u32>,
    ) -> impl Iterator<Item = &mut Subscriber> + '_ {
        let list = self.list_mut();
        let range = range.start as usize..(range.end as usize).min(list.len());
        list[range].iter_mut().filter(|s| s.conn != TOMBSTONE)
    }

    /// The one at a place has no base any more, so that the next publication goes to it in full; or it
    /// has one again.
    pub fn set_fresh(&mut self, place: u32, fresh: bool) {
        if let Some(subscriber) = self.list_mut().get_mut(place as usize) {
            subscriber.traits = subscriber.traits.with_fresh(fresh);
        }
    }

    /// The one at a place gets no publications any more.
    pub fn lapse(&mut self, place: u32) {
        if let Some(subscriber) = self.list_mut().get_mut(place as usize) {
            subscriber.traits = subscriber.traits.lapse();
        }
    }

    /// Adds one behind all others and answers its place.
    pub fn add(&mut self, subscriber: Subscriber) -> u32 {
        if let Held::None = self.0 {
            self.0 = Held::One(subscriber);
            return 0;
        }
        let several = self.several();
        several.unordered |= several.list.last().is_some_and(|last| last.conn > subscriber.conn);
        several.list.push(subscriber);
        (several.list.len() - 1) as u32
    }

    /// Removes the one at `place`. Without `held`, the answer is who has moved to that place.
    pub fn remove(&mut self, place: u32, held: bool) -> Option<Subscriber> {
        let place = place as usize;
        assert!(self.list()[place].conn != TOMBSTONE, "removed twice");
        if let (Held::One(_), false) = (&self.0, held) {
            self.0 = Held::None;
            return None;
        }
        let several = self.several();
        if held {
            several.list[place].conn = TOMBSTONE;
            several.tombstones += 1;
            return None;
        }
        debug_assert_eq!(several.tombstones, 0);
        several.list.swap_remove(place);
        let moved = several.list.get(place).copied();
        several.unordered |= moved.is_some();
        self.shrink();
        moved
    }

    /// When no fan-out is on its way: takes tombstones out and puts all in the order of their
    /// records, if there are enough of them that it pays. Calls `moved` for each new place.
    pub fn settle(&mut self, mut moved: impl FnMut(Subscriber, u32)) {
        let Held::Several(several) = &mut self.0 else { return };
        let sort = several.unordered && several.list.len() >= SORT_MIN;
        if several.tombstones == 0 && !sort {
            return;
        }
        several.list.retain(|s| s.conn != TOMBSTONE);
        several.tombstones = 0;
        if sort {
            several.list.sort_unstable_by_key(|s| s.conn);
            several.unordered = false;
        }
        for (place, subscriber) in several.list.iter().enumerate() {
            moved(*subscriber, place as u32);
        }
        self.shrink();
    }
}

/// Below this many, the order of the walk doesn't matter: the records are in the cache anyway.
const SORT_MIN: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subscriber(conn: u32) -> Subscriber {
        let form = [Form::JSON, Form::BINARY][conn as usize % 2];
        Subscriber { conn, traits: Traits::new(form).with_positioned(conn.is_multiple_of(2)) }
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
    fn traits_keep_apart() {
        for form in [Form::JSON, Form::BINARY, Form::from_u8(u8::MAX)] {
            for bits in 0..8u32 {
                let on = |bit: u32| bits & bit != 0;
                let traits = Traits::new(form)
                    .with_filter((1 << FILTER_BITS) - 1)
                    .with_positioned(on(1))
                    .with_joins(on(2))
                    .with_fresh(on(4));
                let read = (traits.positioned(), traits.takes_joins(), traits.fresh());
                assert_eq!(read, (on(1), on(2), on(4)));
                assert_eq!((traits.form(), traits.filter()), (form, (1 << FILTER_BITS) - 1));
                assert_eq!(traits.with_filter(0).filter(), 0);
                assert!(traits.with_filter(0).lapse().has_lapsed());
                assert!(!traits.with_filter(FILTERS_MAX).has_lapsed());
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
