//! The messages by which a new process takes over the connections of a running node. No socket, no clock:
//! bytes and facts in, messages out.
//!
//! ```text
//!  new process                               running node
//!    Hello (formats, shards, options)   -->
//!                                       <--  Welcome (identity, addresses) | Refused (why)
//!    Prepared  + one link for each shard -->
//!                                       <--  Channels, AllChannels   (twice, of a node with a broker)
//!    Listening                          -->
//!                                       <--  Others (nodes beside this one)
//!                                       <--  Frozen (counts)  + listeners of the control thread
//!    Ready (counts)                     -->
//!                                       <--  Go
//!  at any time: Failed (why)            -->
//!                                       <--  Abort (why)
//! ```
//! Beside these, each shard sends its state to its counterpart on a link of its own ([`link`]). The design
//! page has the sequence, and what happens when it ends at any point.
//!
//! A message is an image ([`crate::base::image`]) with one record, its length before it ([`framing`]): so it
//! has a format number, a checksum, and bounds. A changed message is a record of another kind.

pub mod framing;
pub mod link;
mod messages;

pub use self::messages::{
    Channels, Counts, Go, Hello, Identity, Message, Others, PROTOCOL, Purpose, ShardCounts, Status,
    Welcome,
};
