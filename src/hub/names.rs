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

    /// The home shard of a channel with this hash.
    pub fn home(&self, hash: u64) -> ShardId {
        // The high bits pick the shard, the low ones the bucket in its table.
        ShardId(((u128::from(hash) * u128::from(self.shards)) >> 64) as u8)
    }
}
