//! The agreement between nodes that share a Redis: names, payloads, messages and scripts, as values.
//!
//! ```text
//!  names::Names ----> keys and PUB/SUB names of a channel        hash: address, partition, slot
//!  payload::Payload <--> bytes of a PUB/SUB message or a history entry
//!  operations: commands of homes <--> requests and replies of Redis, with scripts
//!  check, tops: reads that most often find nothing new, without a script for each
//!  entries: the presence entries of each node, for when it dies
//!  control::Command <--> bytes of a message between nodes;  peers, survey: what nodes do with them
//! ```
//! Nodes of Centrifugo v6 use the same Redis at the same time, so each byte here is given. Nothing in this
//! module knows a connection, a clock or a thread: that is `node/redis`.

pub mod check;
pub mod control;
pub mod entries;
pub mod hash;
pub mod names;
pub mod nats;
pub mod operations;
pub mod payload;
pub mod peers;
pub mod presence;
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    dead_code,
    reason = "made by a tool of control.proto, which has the words"
)]
mod schema;
pub mod scripts;
pub mod servers;
pub mod survey;
mod tags;
pub mod tops;
