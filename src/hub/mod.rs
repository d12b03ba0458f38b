//! Channels as data: no sockets, no wire, no clock, no threads.
//!
//! [`home`] is a channel's one owner (offset, epoch, history, which shards are interested);
//! [`local`] is what a shard keeps of a channel that its own connections are subscribed to;
//! [`users`] finds the connections of a user, [`members`] is who is in a channel; [`filter`] and
//! [`delta`] decide what of a publication a subscriber gets.

pub mod broker;
pub mod delta;
pub mod fanout;
pub mod filter;
pub mod history;
pub mod home;
mod idle;
pub mod local;
pub mod members;
pub mod names;
pub mod parcel;
pub mod results;
pub mod subscribers;
pub mod user_conns;
pub mod users;
