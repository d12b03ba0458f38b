//! How names that come from clients are hashed: one seed for a process.

use std::hash::BuildHasher;

use foldhash::SharedSeed;
use foldhash::fast::SeedableRandomState;

use crate::base::id::ShardId;

/// Hashes channel names and user ids. Every shard of a process has the same one, so that all agree
/// on a channel's home; processes differ, so that nobody can choose names that collide.
#[derive(Clone)]
pub struct NameHasher {
    state: SeedableRandomState,
    shards: u64,
}

impl NameHasher {
    /// A hasher for `shards` shards. The simulation gives a fixed `seed`.
    pub fn new(seed: u64, shards: usize) -> Self {
        // foldhash derives its shared part from a seed that lives as long as the process.
        let shared = Box::leak(Box::new(SharedSeed::from_u64(seed)));
        Self { state: SeedableRandomState::with_seed(seed, shared), shards: shards as u64 }
    }

    /// The hash of a name.
    pub fn hash(&self, name: &str) -> u64 {
        self.state.hash_one(name)
    }

    /// Number of shards.
    pub fn shards(&self) -> usize {
        self.shards as usize
    }

    /// The home shard of a channel with this hash.
    pub fn home(&self, hash: u64) -> ShardId {
        // A table of names takes its buckets from the low bits, and from the top seven the tag that spares it
        // most comparisons. All names of a home would have one tag, or two, if those picked the shard as well: the
        // bits below them do.
        let bits = hash.rotate_left(TAG_BITS);
        ShardId(((u128::from(bits) * u128::from(self.shards)) >> 64) as u8)
    }
}

/// Bits of a hash that `hashbrown` has for tags, from the top.
const TAG_BITS: u32 = 7;

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use hashbrown::HashTable;

    use super::*;

    /// Keys that are compared for a name that isn't there, on average, in tables as homes have them.
    fn compared_for_a_miss(shards: usize, home: usize, names_here: usize) -> f64 {
        let names = NameHasher::new(7, shards);
        let mut of_home = (0..u32::MAX).map(|n| names.hash(&format!("channel:{n}")));
        let mut of_home = of_home.by_ref().filter(|hash| names.home(*hash).index() == home);
        let mut table: HashTable<u64> = HashTable::new();
        for hash in of_home.by_ref().take(names_here) {
            table.insert_unique(hash, hash, |hash| *hash);
        }
        let compared = Cell::new(0);
        for hash in of_home.take(names_here) {
            let found = table.find(hash, |other| {
                compared.set(compared.get() + 1);
                *other == hash
            });
            assert_eq!(found, None);
        }
        f64::from(compared.get()) / names_here as f64
    }

    #[test]
    fn the_home_leaves_the_bits_that_tables_use() {
        for shards in [1, 2, 8, 106, 255] {
            for home in [0, shards - 1] {
                let compared = compared_for_a_miss(shards, home, 700);
                assert!(compared < 0.3, "{compared} with {shards} shards at {home}");
            }
        }
    }

    #[test]
    fn names_spread_over_homes() {
        for shards in [1, 3, 106, 255] {
            let names = NameHasher::new(3, shards);
            let mut homes = vec![0; shards];
            for n in 0..shards * 200 {
                homes[names.home(names.hash(&format!("news:{n}"))).index()] += 1;
            }
            let (least, most) = (homes.iter().min().unwrap(), homes.iter().max().unwrap());
            assert!(*least > 120 && *most < 290, "{least} to {most} of {shards}");
        }
    }
}
