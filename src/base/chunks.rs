//! Tables that grow in chunks, so that neither growth nor its rest costs memory.
//!
//! A `Vec` that doubles is on average a quarter empty, and the copies of its growth stay with the allocator for a
//! while: a third of what a channel cost, when its records were in one. It also copies all of them at once, which
//! takes a shard with a million channels tens of milliseconds. Here no entry ever moves to another chunk.

use std::ops::{Index, IndexMut};

use slab::Slab;

/// Bytes of a chunk, at most: one size class of the allocator.
const CHUNK_BYTES: usize = 32 * 1024;

/// The growth of a chunk that is not of the full size: by doubling, from four entries on, for small nodes.
fn more(len: usize, chunk: usize) -> usize {
    len.max(4).min(chunk - len)
}

/// The place of an entry in another table, or none: 4 bytes, where a box takes 8 and what the allocator adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link(u32);

impl Link {
    /// There is no entry.
    pub const NONE: Self = Self(u32::MAX);

    /// The entry at a place.
    pub fn to(at: usize) -> Self {
        Self(at as u32)
    }

    /// The place of the entry.
    pub fn get(self) -> Option<usize> {
        (self != Self::NONE).then_some(self.0 as usize)
    }
}

/// A [`Slab`] in chunks. A chunk whose last entry goes is given back.
#[derive(Debug)]
pub struct Chunks<T> {
    chunks: Vec<Slab<T>>,
    /// Chunks with free places; the next entry goes to the last one of these.
    free: Vec<u32>,
    len: usize,
}

impl<T> Default for Chunks<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), free: Vec::new(), len: 0 }
    }
}

impl<T> Chunks<T> {
    /// Entries of a chunk. The entries of a slab are as large as those of an `Option`, or larger.
    pub const CHUNK: usize = CHUNK_BYTES / size_of::<Option<T>>();

    /// Entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No entry is here.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The places of entries are below this.
    pub fn end(&self) -> usize {
        let last = self.chunks.last().map_or(0, Slab::capacity).min(Self::CHUNK);
        self.chunks.len().saturating_sub(1) * Self::CHUNK + last
    }

    /// Adds an entry, and answers its place.
    pub fn insert(&mut self, entry: T) -> usize {
        let at = match self.free.last() {
            Some(at) => *at as usize,
            None => self.add_chunk(),
        };
        let chunk = &mut self.chunks[at];
        if chunk.len() == chunk.capacity() {
            chunk.reserve_exact(more(chunk.len(), Self::CHUNK));
        }
        let place = chunk.insert(entry);
        if chunk.len() == Self::CHUNK {
            self.free.pop();
        }
        self.len += 1;
        at * Self::CHUNK + place
    }

    fn add_chunk(&mut self) -> usize {
        let at = self.chunks.len();
        self.chunks.push(if at == 0 { Slab::new() } else { Slab::with_capacity(Self::CHUNK) });
        self.free.push(at as u32);
        at
    }

    /// Takes out the entry at a place, which has to be there.
    pub fn remove(&mut self, at: usize) -> T {
        let (number, place) = (at / Self::CHUNK, at % Self::CHUNK);
        let chunk = &mut self.chunks[number];
        let was_full = chunk.len() == Self::CHUNK;
        let entry = chunk.remove(place);
        if chunk.is_empty() {
            *chunk = Slab::new();
        }
        if was_full {
            self.free.push(number as u32);
        }
        self.len -= 1;
        entry
    }

    /// The entry at a place.
    pub fn get(&self, at: usize) -> Option<&T> {
        self.chunks.get(at / Self::CHUNK)?.get(at % Self::CHUNK)
    }

    /// The entry at a place, to change.
    pub fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        self.chunks.get_mut(at / Self::CHUNK)?.get_mut(at % Self::CHUNK)
    }

    /// All entries in the order of their places.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (usize, &T)> {
        let chunks = self.chunks.iter().enumerate();
        chunks.flat_map(|(at, chunk)| {
            chunk.iter().map(move |(place, entry)| (at * Self::CHUNK + place, entry))
        })
    }
}

impl<T> Index<usize> for Chunks<T> {
    type Output = T;

    fn index(&self, at: usize) -> &T {
        &self.chunks[at / Self::CHUNK][at % Self::CHUNK]
    }
}

impl<T> IndexMut<usize> for Chunks<T> {
    fn index_mut(&mut self, at: usize) -> &mut T {
        &mut self.chunks[at / Self::CHUNK][at % Self::CHUNK]
    }
}

/// A stack in chunks, the entries of which have numbers without gaps.
#[derive(Debug)]
pub struct Stack<T>(Vec<Vec<T>>);

impl<T> Default for Stack<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Stack<T> {
    const CHUNK: usize = CHUNK_BYTES / size_of::<T>();

    /// Entries.
    pub fn len(&self) -> usize {
        let before = self.0.len().saturating_sub(1) * Self::CHUNK;
        before + self.0.last().map_or(0, Vec::len)
    }

    /// No entry is here.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds an entry behind the last.
    pub fn push(&mut self, entry: T) {
        match self.0.last_mut() {
            Some(last) if last.len() < Self::CHUNK => {
                if last.len() == last.capacity() {
                    last.reserve_exact(more(last.len(), Self::CHUNK));
                }
                last.push(entry);
            }
            last => {
                let room = if last.is_some() { Self::CHUNK } else { 4 };
                let mut chunk = Vec::with_capacity(room);
                chunk.push(entry);
                self.0.push(chunk);
            }
        }
    }

    /// Takes out the last entry.
    pub fn pop(&mut self) -> Option<T> {
        let last = self.0.last_mut()?;
        let entry = last.pop();
        if last.is_empty() {
            self.0.pop();
        }
        entry
    }

    /// Takes out an entry, which has to be there. The last one moves to its place.
    pub fn swap_remove(&mut self, at: usize) -> Option<T> {
        let last = self.pop()?;
        if at == self.len() { Some(last) } else { Some(std::mem::replace(&mut self[at], last)) }
    }

    /// All entries in their order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flatten()
    }

    /// Takes all entries out, in their order.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + use<T> {
        std::mem::take(&mut self.0).into_iter().flatten()
    }
}

impl<T> Index<usize> for Stack<T> {
    type Output = T;

    fn index(&self, at: usize) -> &T {
        &self.0[at / Self::CHUNK][at % Self::CHUNK]
    }
}

impl<T> IndexMut<usize> for Stack<T> {
    fn index_mut(&mut self, at: usize) -> &mut T {
        &mut self.0[at / Self::CHUNK][at % Self::CHUNK]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Three of these fill a chunk of a table, four one of a stack.
    #[derive(Debug, PartialEq)]
    struct Wide(u64, [u64; 1023]);

    fn wide(value: u64) -> Wide {
        Wide(value, [value; 1023])
    }

    #[derive(Clone, Debug)]
    enum Op {
        Add,
        Remove(usize),
        RemoveMany(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => Just(Op::Add),
            3 => any::<usize>().prop_map(Op::Remove),
            1 => any::<usize>().prop_map(Op::RemoveMany),
        ]
    }

    proptest! {
        #[test]
        fn a_table_in_chunks_equals_a_plain_map(ops in proptest::collection::vec(op(), 1..120)) {
            prop_assert_eq!(Chunks::<Wide>::CHUNK, 3);
            let mut table = Chunks::default();
            let mut model = BTreeMap::new();
            for (value, op) in ops.into_iter().enumerate() {
                let gone = match op {
                    Op::Add => {
                        let at = table.insert(wide(value as u64));
                        prop_assert_eq!(model.insert(at, value as u64), None);
                        0..0
                    }
                    Op::Remove(at) => at..at + 1,
                    Op::RemoveMany(at) => at..at.saturating_add(5),
                };
                for at in gone {
                    let Some(at) = model.keys().nth(at % model.len().max(1)).copied() else { continue };
                    prop_assert_eq!(table.remove(at).0, model.remove(&at).unwrap());
                    prop_assert!(table.get(at).is_none() && table.get_mut(at).is_none());
                }
                prop_assert_eq!(table.len(), model.len());
                prop_assert_eq!(table.is_empty(), model.is_empty());
                let known: Vec<_> = model.iter().map(|(at, value)| (*at, *value)).collect();
                let found: Vec<_> = table.iter().map(|(at, entry)| (at, entry.0)).collect();
                prop_assert_eq!(&found, &known);
                let last = table.iter().next_back().map(|(at, entry)| (at, entry.0));
                prop_assert_eq!(last, known.last().copied());
                prop_assert!(last.is_none_or(|(at, _)| at < table.end()));
                prop_assert!(known.iter().all(|(at, value)| table[*at].0 == *value));
            }
        }

        #[test]
        fn a_stack_in_chunks_equals_a_list(ops in proptest::collection::vec(op(), 1..120)) {
            let (mut stack, mut model) = (Stack::default(), Vec::new());
            for (value, op) in ops.into_iter().enumerate() {
                match op {
                    Op::Add => {
                        stack.push(wide(value as u64));
                        model.push(value as u64);
                    }
                    Op::Remove(_) if model.is_empty() => {}
                    Op::Remove(at) => {
                        let at = at % model.len();
                        let gone = stack.swap_remove(at).map(|entry| entry.0);
                        prop_assert_eq!(gone, Some(model.swap_remove(at)));
                    }
                    Op::RemoveMany(_) => {
                        prop_assert_eq!(stack.pop().map(|entry| entry.0), model.pop());
                    }
                }
                prop_assert_eq!((stack.len(), stack.is_empty()), (model.len(), model.is_empty()));
                prop_assert_eq!(&stack.iter().map(|entry| entry.0).collect::<Vec<_>>(), &model);
                prop_assert!((0..model.len()).all(|at| stack[at].0 == model[at]));
            }
            prop_assert_eq!(stack.drain().map(|entry| entry.0).collect::<Vec<_>>(), model);
            prop_assert!(stack.is_empty());
        }
    }
}
