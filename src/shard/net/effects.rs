//! Results that are not Net's business: a connection has become a client's, has brought the first message
//! of one, or is too slow. Net puts them on a list in order; the shard carries them out as soon as the
//! call that led to them has returned, so that nothing happens in between.

use std::sync::Arc;

use compact_str::CompactString;

use crate::base::id::ConnKey;
use crate::session::Headers;
use crate::shard::net::queue::Dropped;

/// Something that the shard has to do for a connection.
#[derive(Debug)]
pub(crate) enum Effect {
    /// A request of a client was accepted, and had these in its head.
    Client {
        /// The connection's slot.
        index: u32,
        /// The user that a header names.
        user: Option<CompactString>,
        /// Headers that proxies take over.
        headers: Option<Arc<Headers>>,
    },
    /// More waits for this client than may: it is to be closed.
    Slow(u32),
    /// Publications were dropped that waited for this connection: those that follow them go in full.
    Lost(u32, Vec<Dropped>),
    /// The connection in this slot is an administrator's, who has yet to show a token.
    Admin(u32),
    /// The body of a client's request is its first message.
    Message {
        /// The connection.
        key: ConnKey,
        /// The message: a frame of commands, or a connect request.
        message: Vec<u8>,
    },
}
