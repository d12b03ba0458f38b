//! The agreement between nodes that share a Redis: names, payloads, messages and scripts, as values.
//!
//! ```text
//!  names::Names ----> keys and PUB/SUB names of a channel        hash: address, partition, slot
//!  payload::Payload <--> bytes of a PUB/SUB message or a history entry
//! ```
//! Nodes of Centrifugo v6 use the same Redis at the same time, so each byte here is given. Nothing in this
//! module knows a connection, a clock or a thread: that is `node/redis`.

pub mod hash;
pub mod names;
pub mod payload;
mod tags;
