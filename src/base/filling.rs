//! A table that is filled by slot, in any order, before it is known which slots will be in use.
//!
//! Slots that nothing has come for yet hold a placeholder, so that an entry never moves: entries are built in
//! the table in which they stay.

use std::marker::PhantomData;

use slab::Slab;

use super::chunks::Chunks;
use super::image::{Broken, Slots};

/// A table that gives the lowest number to the first entry, the next one to the second.
pub trait Table<T> {
    /// An empty table with room for so many slots, untouched as long as they are not used.
    fn with_room(slots: usize) -> Self;
    /// Entries.
    fn count(&self) -> usize;
    /// Adds an entry.
    fn add(&mut self, entry: T);
    /// The entry of a slot.
    fn entry(&mut self, slot: usize) -> Option<&mut T>;
    /// Takes the entry of a slot out; the slot is the next that is used.
    fn take_out(&mut self, slot: usize);
}

impl<T> Table<T> for Slab<T> {
    fn with_room(slots: usize) -> Self {
        Self::with_capacity(slots)
    }

    fn count(&self) -> usize {
        self.len()
    }

    fn add(&mut self, entry: T) {
        self.insert(entry);
    }

    fn entry(&mut self, slot: usize) -> Option<&mut T> {
        self.get_mut(slot)
    }

    fn take_out(&mut self, slot: usize) {
        self.remove(slot);
    }
}

impl<T> Table<T> for Chunks<T> {
    fn with_room(_: usize) -> Self {
        Self::default()
    }

    fn count(&self) -> usize {
        self.len()
    }

    fn add(&mut self, entry: T) {
        self.insert(entry);
    }

    fn entry(&mut self, slot: usize) -> Option<&mut T> {
        self.get_mut(slot)
    }

    fn take_out(&mut self, slot: usize) {
        self.remove(slot);
    }
}

/// The table, while it is filled.
pub struct Filling<T, S = Slab<T>> {
    table: S,
    /// Slots whose entries have come: a bit for each.
    present: Vec<u8>,
    placeholder: fn() -> T,
    entries: PhantomData<T>,
}

impl<T, S: Table<T>> Filling<T, S> {
    /// An empty table with room for so many slots, untouched as long as they are not used.
    pub fn new(slots: usize, placeholder: fn() -> T) -> Self {
        let (table, present) = (S::with_room(slots), Vec::new());
        Self { table, present, placeholder, entries: PhantomData }
    }

    /// Whether the entry of a slot has come.
    pub fn has(&self, slot: usize) -> bool {
        self.present.get(slot / 8).is_some_and(|bits| bits & 1 << (slot % 8) != 0)
    }

    /// The entry of a slot.
    pub fn get_mut(&mut self, slot: usize) -> Option<&mut T> {
        if self.has(slot) { self.table.entry(slot) } else { None }
    }

    /// The table, with placeholders where nothing has come.
    pub fn table(&mut self) -> &mut S {
        &mut self.table
    }

    /// Sets the entry of a slot, and returns the one of before. The slots before it get placeholders: the caller
    /// bounds the number.
    pub fn put(&mut self, slot: usize, entry: T) -> Option<T> {
        // Nothing is removed before the end: the next key is the length.
        while self.table.count() < slot {
            self.table.add((self.placeholder)());
        }
        let had = self.has(slot);
        if self.present.len() <= slot / 8 {
            self.present.resize(slot / 8 + 1, 0);
        }
        self.present[slot / 8] |= 1 << (slot % 8);
        match self.table.entry(slot) {
            Some(place) => Some(std::mem::replace(place, entry)).filter(|_| had),
            None => {
                self.table.add(entry);
                None
            }
        }
    }

    /// Takes the entry of a slot out.
    pub fn take(&mut self, slot: usize) -> Option<T> {
        if !self.has(slot) {
            return None;
        }
        self.present[slot / 8] &= !(1 << (slot % 8));
        let place = self.table.entry(slot)?;
        Some(std::mem::replace(place, (self.placeholder)()))
    }

    /// Slots whose entries have come and that are not in use.
    pub fn beside<'a>(&'a self, slots: &'a Slots) -> impl Iterator<Item = usize> + 'a {
        let bytes = self.present.iter().enumerate().filter(|(_, bits)| **bits != 0);
        let each = bytes.flat_map(|(at, _)| 8 * at..8 * at + 8);
        each.filter(|slot| self.has(*slot) && !slots.has(*slot))
    }

    /// The table with the entries of these slots.
    ///
    /// # Errors
    /// The entry of one hasn't come.
    pub fn end(self, slots: &Slots) -> Result<S, Broken> {
        let Self { mut table, present, .. } = self;
        let is_there =
            |slot: usize| present.get(slot / 8).is_some_and(|b| b & 1 << (slot % 8) != 0);
        let last = (0..slots.bound()).rev().find(|slot| slots.has(*slot));
        // From the end, so that the lowest free slots are used first.
        for slot in (0..table.count().max(last.map_or(0, |last| last + 1))).rev() {
            match (slots.has(slot), is_there(slot)) {
                (true, true) => {}
                (true, false) => return Err(Broken::Value("a slot that is in use")),
                (false, _) => table.take_out(slot),
            }
        }
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries_come_in_any_order<S: Table<i32>>() -> S {
        let mut filling: Filling<i32, S> = Filling::new(8, || 0);
        assert_eq!(filling.put(4, 14), None);
        assert_eq!(filling.put(1, 11), None);
        assert_eq!((filling.has(2), filling.get_mut(2)), (false, None));
        assert_eq!(filling.put(4, 24), Some(14));
        assert_eq!(filling.put(9, 19), None);
        assert_eq!((filling.take(9), filling.take(9)), (Some(19), None));
        assert_eq!(filling.put(6, 16), None);
        let slots = Slots::of([1, 4].into_iter());
        assert_eq!(filling.beside(&slots).collect::<Vec<_>>(), [6]);
        filling.end(&slots).unwrap()
    }

    #[test]
    fn others_take_the_places_that_are_left() {
        let mut table: Slab<i32> = entries_come_in_any_order();
        assert_eq!(table.iter().collect::<Vec<_>>(), [(1, &11), (4, &24)]);
        assert_eq!((table.insert(7), table.insert(8)), (0, 2));
        let mut table: Chunks<i32> = entries_come_in_any_order();
        assert_eq!(table.iter().collect::<Vec<_>>(), [(1, &11), (4, &24)]);
        assert_eq!((table.insert(7), table.insert(8)), (0, 2));
    }

    #[test]
    fn an_entry_that_has_not_come_is_missed() {
        for slot in [0, 3] {
            let mut filling: Filling<i32> = Filling::new(0, || 0);
            filling.put(1, 1);
            assert!(filling.end(&Slots::of([1, slot].into_iter())).is_err(), "{slot}");
        }
        let empty: Filling<u8> = Filling::new(0, || 0);
        assert!(empty.end(&Slots::default()).unwrap().is_empty());
    }
}
