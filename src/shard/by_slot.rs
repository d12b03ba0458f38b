//! Side tables by slot.

/// A side table for the few connections that have such an entry, by slot.
pub(crate) type BySlot<T> = hashbrown::HashMap<u32, T, foldhash::fast::FixedState>;
