//! Sets of shards, one bit each.

use crate::base::id::ShardId;

/// A set of shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ShardSet([u64; 4]);

impl ShardSet {
    /// Adds a shard.
    pub(crate) fn insert(&mut self, shard: ShardId) {
        self.0[shard.index() / 64] |= 1 << (shard.index() % 64);
    }

    /// Removes a shard.
    pub(crate) fn remove(&mut self, shard: ShardId) {
        self.0[shard.index() / 64] &= !(1 << (shard.index() % 64));
    }

    /// No shard is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    /// Its shards by number.
    pub(crate) fn iter(mut self) -> impl Iterator<Item = ShardId> {
        std::iter::from_fn(move || self.pop())
    }

    /// The shard with the lowest number.
    pub(crate) fn first(&self) -> Option<ShardId> {
        let word = self.0.iter().position(|word| *word != 0)?;
        Some(ShardId((word * 64) as u8 + self.0[word].trailing_zeros() as u8))
    }

    /// Removes the shard with the lowest number.
    pub(crate) fn pop(&mut self) -> Option<ShardId> {
        let shard = self.first()?;
        self.remove(shard);
        Some(shard)
    }

    /// Keeps the shards that are in the other set as well.
    pub(crate) fn keep(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(word, other)| *word &= other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(shards: &[u8]) -> ShardSet {
        let mut set = ShardSet::default();
        shards.iter().for_each(|shard| set.insert(ShardId(*shard)));
        set
    }

    #[test]
    fn shards_come_out_by_number() {
        let mut all = set(&[255, 3, 64, 63]);
        assert_eq!(all.iter().map(|shard| shard.0).collect::<Vec<_>>(), [3, 63, 64, 255]);
        all.remove(ShardId(63));
        all.keep(set(&[64, 63, 9]));
        assert_eq!(
            (all.first(), all.pop(), all.pop()),
            (Some(ShardId(64)), Some(ShardId(64)), None)
        );
        assert!(all.is_empty());
    }
}
