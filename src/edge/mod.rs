//! Policy as pure functions: facts in, verdict out. Who a token says someone is, which origins may
//! open a connection, what a channel's namespace lets a user do.
//!
//! Called by sessions on every connect, subscribe and publish; built once from the configuration
//! and shared by all shards. Knows no socket, no clock (time is an argument) and no message format:
//! a verdict carries the protocol's number, the session writes the answer.

pub mod address_limits;
pub mod api_key;
pub mod channels;
pub mod client_id;
pub mod glob;
pub mod good_tokens;
pub mod host;
pub mod jwt;
pub mod origin;
pub mod proxy;
pub mod subjects;
pub mod trusted;
