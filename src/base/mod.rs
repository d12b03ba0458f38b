//! Words that every layer uses: bounds, keys, time, shared frames, random numbers, counters.

pub mod counters;
pub mod frame;
pub mod id;
pub mod limits;
pub mod rng;
pub mod time;
