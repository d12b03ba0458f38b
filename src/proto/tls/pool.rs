//! The record layers of a shard's connections.

use std::num::NonZeroU32;

use hashbrown::HashMap;
use zeroize::Zeroize as _;

use super::packed::{Malformed, Packed};
use super::records::Records;
use super::state::{State, state_bytes};
use super::suite::Suite;
use super::unfinished::Unfinished;

/// Bytes of one allocation at most: a size class of the allocator, which rounds others up by as much as a fifth.
/// Slots never move, so no copy of a secret is left behind.
const CHUNK_BYTES: usize = 32 * 1024;

/// Slots of one allocation, by the bytes of each: 163 to 448.
fn chunk_slots(bytes: usize) -> usize {
    CHUNK_BYTES / bytes
}

/// Connections of one suite at most: what the bits of a key can number.
const SLOTS_MAX: usize = 1 << 28;

/// A free slot begins with a byte that no state has, then the number of the next free slot.
const FREE: u8 = 0;

/// End of the list of free slots.
const NONE: u32 = u32::MAX;

/// The place of a connection in its pool. Shape: 4 bytes, also as an `Option`. There is one for each
/// connection and it can't be copied, so a slot isn't used behind its end.
#[derive(Debug, PartialEq, Eq)]
pub struct Key(NonZeroU32);

const _: () = assert!(size_of::<Option<Key>>() == 4);

impl Key {
    fn new(suite: Suite, slot: u32) -> Self {
        Self(NonZeroU32::MIN.saturating_add(slot) | (suite as u32) << 29)
    }

    /// Whether its connection is among these.
    pub fn is_one_of(&self, late: &Late) -> bool {
        late.0.binary_search(&self.0.get()).is_ok()
    }

    fn suite_and_slot(&self) -> (usize, usize) {
        let bits = self.0.get();
        ((bits >> 29) as usize, (bits & ((1 << 29) - 1)) as usize - 1)
    }
}

/// Connections whose records are late: see [`Pool::late`].
#[derive(Debug)]
pub struct Late(Vec<u32>);

impl Late {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Record layers by key. Price: 73 to 201 bytes for each connection; what is unfinished beside that.
#[derive(Default)]
pub struct Pool {
    slots: [Slots; Suite::ALL.len()],
    unfinished: UnfinishedByKey,
}

/// Only of connections that have something unfinished. Their states have a bit for it, so others aren't
/// looked for.
pub(super) type UnfinishedByKey = HashMap<u32, Unfinished, foldhash::fast::RandomState>;

/// The slots of one suite.
struct Slots {
    chunks: Vec<Box<[u8]>>,
    free: u32,
    used: usize,
}

impl Default for Slots {
    fn default() -> Self {
        Self { chunks: Vec::new(), free: NONE, used: 0 }
    }
}

impl Pool {
    /// Takes over a connection. Its state goes on here, so `packed` is consumed.
    ///
    /// # Errors
    /// There are 2^28 connections of this suite, or the state is malformed, which one that was made by this
    /// module isn't.
    pub fn insert(&mut self, mut packed: Packed) -> Result<Key, Malformed> {
        let (state, unfinished) = packed.split()?;
        let suite = state.suite();
        let slots = &mut self.slots[suite as usize];
        let slot = slots.take(state_bytes(suite)).ok_or(Malformed)?;
        slots.bytes(slot as usize, state_bytes(suite)).copy_from_slice(state.bytes());
        let key = Key::new(suite, slot);
        if let Some(unfinished) = unfinished {
            self.unfinished.insert(key.0.get(), unfinished);
        }
        Ok(key)
    }

    /// The record layer of a connection. `None`: the key is another pool's.
    pub fn records(&mut self, key: &Key) -> Option<Records<'_>> {
        let (suite, slot) = key.suite_and_slot();
        let slots = self.slots.get_mut(suite)?;
        let bytes = state_bytes(*Suite::ALL.get(suite)?);
        let state = State::of(slots.get(slot, bytes)?)?;
        Some(Records::new(state, key.0.get(), &mut self.unfinished))
    }

    /// Ends a connection: its secrets are wiped, its unsent bytes are gone.
    pub fn remove(&mut self, key: Key) {
        let (suite, slot) = key.suite_and_slot();
        self.unfinished.remove(&key.0.get());
        if let (Some(slots), Some(suite)) = (self.slots.get_mut(suite), Suite::ALL.get(suite)) {
            slots.release(slot, state_bytes(*suite));
        }
    }

    /// Packs a connection and ends it here: it goes on elsewhere.
    ///
    /// # Errors
    /// The key is another pool's, or sealed bytes of the connection are in a batch, for which
    /// [`Records::sent`] hasn't been called. The key comes back.
    pub fn take(&mut self, key: Key) -> Result<Packed, Key> {
        let packed = self.records(&key).and_then(|records| records.pack());
        match packed {
            None => Err(key),
            Some(packed) => {
                self.remove(key);
                Ok(packed)
            }
        }
    }

    /// Gives back what a burst has left: room for pieces, and the slots of suites that no connection has.
    /// Slots of a suite stay while one of them is used, since none of them moves.
    pub fn shrink(&mut self) {
        self.unfinished.shrink_to_fit();
        for slots in self.slots.iter_mut().filter(|slots| slots.used == 0) {
            *slots = Slots::default();
        }
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.slots.iter().map(|slots| slots.used).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many connections have pieces or a tail.
    pub fn unfinished(&self) -> usize {
        self.unfinished.len()
    }

    /// Bytes of slots, free ones too.
    pub fn slot_bytes(&self) -> usize {
        self.slots.iter().flat_map(|slots| &slots.chunks).map(|chunk| chunk.len()).sum()
    }

    /// Connections with a record or message that has been incomplete for more than `ms_max`, by their keys:
    /// see [`Key::is_one_of`]. To be called again and again, with a clock of the caller's: what is first seen by a
    /// call has its time from then on. Price: a look at each connection that has something unfinished.
    pub fn late(&mut self, now: u64, ms_max: u64) -> Late {
        let late = self
            .unfinished
            .iter_mut()
            .filter_map(|(key, pieces)| pieces.is_late(now, ms_max).then_some(*key));
        let mut keys: Vec<u32> = late.collect();
        keys.sort_unstable();
        Late(keys)
    }

    /// Bytes of pieces and tails. Price: a look at each that has some.
    pub fn unfinished_bytes(&self) -> usize {
        self.unfinished.values().map(Unfinished::heap_bytes).sum()
    }
}

impl Slots {
    /// A free slot of `bytes` bytes.
    fn take(&mut self, bytes: usize) -> Option<u32> {
        if self.free == NONE {
            self.grow(bytes)?;
        }
        let slot = self.free;
        let next = self.bytes(slot as usize, bytes);
        self.free = u32::from_be_bytes([next[1], next[2], next[3], next[4]]);
        self.used += 1;
        Some(slot)
    }

    fn grow(&mut self, bytes: usize) -> Option<()> {
        let slots = chunk_slots(bytes);
        let first = self.chunks.len() * slots;
        if first + slots > SLOTS_MAX {
            return None;
        }
        self.chunks.push(vec![0; slots * bytes].into_boxed_slice());
        // The first of them is taken first.
        for slot in (first..first + slots).rev() {
            self.link(slot, bytes);
        }
        Some(())
    }

    fn link(&mut self, slot: usize, bytes: usize) {
        let next = self.free.to_be_bytes();
        let place = self.bytes(slot, bytes);
        place[0] = FREE;
        place[1..5].copy_from_slice(&next);
        // Below SLOTS_MAX.
        self.free = slot as u32;
    }

    fn release(&mut self, slot: usize, bytes: usize) {
        let Some(place) = self.get(slot, bytes) else { return };
        if place[0] == FREE {
            return;
        }
        place.zeroize();
        self.link(slot, bytes);
        self.used -= 1;
    }

    /// A slot that exists.
    fn bytes(&mut self, slot: usize, bytes: usize) -> &mut [u8] {
        let start = slot % chunk_slots(bytes) * bytes;
        &mut self.chunks[slot / chunk_slots(bytes)][start..start + bytes]
    }

    fn get(&mut self, slot: usize, bytes: usize) -> Option<&mut [u8]> {
        let start = slot % chunk_slots(bytes) * bytes;
        self.chunks.get_mut(slot / chunk_slots(bytes))?.get_mut(start..start + bytes)
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        for chunk in &mut self.chunks {
            chunk.zeroize();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} connections)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::pair;
    use super::*;

    #[test]
    fn slots_are_used_again_and_hold_nothing_of_before() {
        let mut pool = Pool::default();
        for suite in Suite::ALL {
            let (server, _) = pair(suite);
            let secrets = server.as_bytes().to_vec();
            let first = pool.insert(server).unwrap();
            assert_eq!(pool.records(&first).unwrap().pack().unwrap().as_bytes(), secrets);
            let place = first.suite_and_slot();
            pool.remove(first);
            let bytes = pool.slots[place.0].bytes(place.1, state_bytes(suite));
            assert!(bytes[5..].iter().all(|byte| *byte == 0));
            let second = pool.insert(pair(suite).0).unwrap();
            assert_eq!(second.suite_and_slot(), place);
            let packed = pool.take(second).unwrap();
            assert_eq!(packed.as_bytes().len(), state_bytes(suite));
        }
        assert!(pool.is_empty());
        // One chunk of each, which fills its size class but for a part of a slot.
        let chunks = Suite::ALL.map(|suite| chunk_slots(state_bytes(suite)) * state_bytes(suite));
        assert!(chunks.iter().all(|bytes| (CHUNK_BYTES - 201..=CHUNK_BYTES).contains(bytes)));
        assert_eq!(pool.slot_bytes(), chunks.iter().sum::<usize>());
    }

    #[test]
    fn many_connections_have_slots_of_their_own() {
        let mut pool = Pool::default();
        let suite = Suite::Tls12ChaCha20;
        let chunk = chunk_slots(105);
        let count = 2 * chunk + 1;
        let packed: Vec<Packed> = (0..count).map(|_| pair(suite).0).collect();
        let bytes: Vec<Vec<u8>> = packed.iter().map(|packed| packed.as_bytes().to_vec()).collect();
        let keys: Vec<Key> = packed.into_iter().map(|one| pool.insert(one).unwrap()).collect();
        assert_eq!((pool.len(), pool.slot_bytes()), (count, 3 * chunk * 105));
        for (key, bytes) in keys.into_iter().zip(bytes) {
            assert_eq!(pool.take(key).unwrap().as_bytes(), bytes);
        }
        assert!(pool.is_empty());
    }

    #[test]
    fn a_pool_without_connections_shrinks_to_nothing() {
        let mut pool = Pool::default();
        let keys = Suite::ALL.map(|suite| pool.insert(pair(suite).0).unwrap());
        let [first, rest @ ..] = keys;
        for key in rest {
            pool.records(&key).unwrap().close_notify();
            pool.remove(key);
        }
        pool.shrink();
        assert_eq!((pool.slot_bytes(), pool.unfinished.capacity()), (chunk_slots(137) * 137, 0));
        assert!(pool.records(&first).is_some());
        pool.remove(first);
        pool.shrink();
        assert_eq!(pool.slot_bytes(), 0);
        assert!(pool.insert(pair(Suite::Tls13ChaCha20).0).is_ok());
    }

    #[test]
    fn a_key_of_another_pool_finds_nothing() {
        let mut pool = Pool::default();
        let key = pool.insert(pair(Suite::Tls13Aes128Gcm).0).unwrap();
        let mut other = Pool::default();
        assert!(other.records(&key).is_none());
        let key = other.take(key).unwrap_err();
        other.remove(key);
        assert_eq!((pool.len(), other.len()), (1, 0));
    }
}
