//! Keys: how layers name a connection or a shard without pointing at it.

use std::num::NonZeroU32;

use super::image::{Broken, Durable, ImageReader, ImageWriter, durable};

/// Which shard: 0..=254.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u8);

impl ShardId {
    /// As an index into tables with one entry for each shard.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A connection on its shard: slot and the generation of its tenant. At most one session is ever named by
/// it: a connection that has another session gets another generation.
///
/// Shape: 8 bytes; packs into the 64-bit token that the kernel gives back with an event. An event
/// for a slot that has a new tenant shows another generation, and is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnKey {
    /// Slot in the shard's slab.
    pub index: u32,
    /// Which tenant of the slot, from 1.
    pub generation: NonZeroU32,
}

durable!(ConnKey { index, generation });

impl Durable for ShardId {
    fn write(&self, out: &mut ImageWriter) {
        out.field(&self.0);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        u8::read(from).map(Self)
    }
}

impl ConnKey {
    /// The key as the 64 bits that travel through the kernel.
    pub fn pack(self) -> u64 {
        u64::from(self.generation.get()) << 32 | u64::from(self.index)
    }

    /// The key of a token, `None` for tokens that are not connections (generation 0).
    pub fn unpack(token: u64) -> Option<Self> {
        let generation = NonZeroU32::new((token >> 32) as u32)?;
        Some(Self { index: token as u32, generation })
    }
}
