//! roost: an edge node that holds very many WebSocket connections and delivers channel messages to
//! them. One thread for each shard, each with its own loop, connections, channels and descriptors.
//!
//! ```text
//!  sockets <-> io driver <-> SHARD LOOP <-> session <-> proto, edge     one thread per shard
//!                 mail --------^   '--> hub (channels, subscribers, history) --> outboxes
//!  control thread (signals, figures) --> mail, <-- counters
//! ```
//!
//! Layers: a module uses modules of lower numbers only; modules of one number don't see each other.
//! `tests/layers.rs` reads the imports and holds them against this table.
//!
//! | layer | modules | what it is |
//! | --- | --- | --- |
//! | 0 | [`base`], [`sys`] | shared words and bounds; the only unsafe code |
//! | 1 | [`proto`], [`hub`], [`edge`], [`handover`], [`io`] | pure protocol; channels as data; policy; messages of a live upgrade; drivers |
//! | 2 | [`session`], [`cluster`] | one client's protocol life; what nodes that share a broker agree on |
//! | 3 | [`shard`] | the loop |
//! | 4 | [`config`], [`host`] | options of every layer; what the machine allows |
//! | 5 | [`node`], [`load`] | threads, wiring, draining; the load client |
//! | 6 | [`cli`] | command lines of both programs |

pub mod base;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod edge;
pub mod handover;
pub mod host;
pub mod hub;
pub mod io;
pub mod load;
pub mod node;
pub mod proto;
pub mod session;
pub mod shard;
pub mod sys;

/// So that tests can say what something holds.
#[cfg(test)]
#[global_allocator]
static ALLOCATOR: sys::memory::Counted = sys::memory::Counted;
