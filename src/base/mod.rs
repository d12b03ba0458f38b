//! Words that every layer uses: bounds, keys, time, shared frames, random numbers, counters, and the
//! neutral forms of what comes in one encoding and goes out in another.

pub mod address;
pub mod bytes;
pub mod chunks;
pub mod counters;
pub mod expiry;
pub mod filling;
pub mod filter;
pub mod flags;
pub mod form;
pub mod frame;
pub mod heap;
pub mod id;
pub mod image;
pub mod info;
pub mod limits;
pub mod notices;
pub mod rate;
pub mod rng;
pub mod software;
pub mod statuses;
pub mod steps;
pub mod tags;
pub mod time;
pub mod times;
pub mod url;
pub mod uuid;
