//! The record that there is one of for each connection, and what exists only while it is needed.
//!
//! ```text
//!   Head --> Echo ------------------.
//!     |  \-> Client --> Unusable ---+--> Closing --> Lingering --> (Leaving) --> free
//!     |--> Lingering                     our close    FIN sent,     socket closed,
//!     |    (refused)                     frame sent   wait for EOF  homes not yet told
//!     |--> Body --> Asked --> Head ...
//!     |--> Body --> Client --> Lingering  (its messages are the body of a response)
//!     '--> Body --> Client --> Asked --> Head ...  (a poll: one answer)
//! ```

use std::collections::VecDeque;
use std::num::NonZeroU32;

use crate::base::flags::flags;
use crate::base::form::Form;
use crate::base::id::ConnKey;
use crate::base::image::durable_enum;
use crate::proto::ws;
use crate::session::WaitsFor;
use crate::shard::http::bodies::Incoming;
use crate::shard::mail::emulation::{Emulated, Emulating};
use crate::shard::net::timers::Links;

/// No entry in a side table.
pub(crate) const NONE: u32 = u32::MAX;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Waiting for the whole request head.
    Head,
    /// Waiting for the whole body of a request for the control thread.
    Body,
    /// The control thread has the request; nothing is read until it has answered.
    Asked,
    /// A WebSocket whose messages go back.
    Echo,
    /// Speaks the client protocol: a WebSocket, or a response that goes on.
    Client,
    /// `connect` was answered with an error: the client shall close.
    Unusable,
    /// A close frame of ours is out or waits; the peer's is awaited.
    Closing,
    /// Nothing more will be said: when all is sent comes the FIN, then we wait for the peer's.
    Lingering,
    /// The socket is closed; homes are still to be told of its subscriptions.
    Leaving,
}

flags! {
    /// Yes-or-no facts of a connection.
    pub(crate) struct Flags(u16) {
        /// On the list of connections to read.
        ready, set_ready = 0;
        /// On the list of connections to write.
        dirty, set_dirty = 1;
        /// The socket is full: wait for it to become writable.
        blocked, set_blocked = 2;
        /// The peer's FIN is behind what can be read.
        ended, set_ended = 3;
        /// Not read until something comes back: an answer, a credit, room in the socket.
        paused, set_paused = 4;
        /// Counted in the node's number of clients.
        counted, set_counted = 5;
        /// The FIN is out.
        finished, set_finished = 6;
        /// What comes in is thrown away.
        deaf, set_deaf = 7;
        /// An idle connection was pinged and didn't answer yet.
        probed, set_probed = 8;
        /// Pings are RFC 6455 frames, not messages (`cf_ws_frame_ping_pong`).
        frame_ping, set_frame_ping = 9;
        /// A send that the driver has not ended holds frames of the queue.
        sending, set_sending = 10;
        /// On a list of connections that wait for credit.
        waiting, set_waiting = 11;
        /// Frames for it wait in a side table, to go behind the reply to its `connect`.
        held, set_held = 12;
        /// A request of it was answered by the control thread.
        served, set_served = 13;
    }
}

/// One connection. What fan-out touches of a subscriber fits one cache line.
#[derive(Debug)]
pub(crate) struct Conn<S> {
    /// The socket; `None` while leaving.
    pub(crate) socket: Option<S>,
    /// Which tenant of the slot this is.
    pub(crate) generation: NonZeroU32,
    /// In the timer wheel, or on the list of the leaving.
    pub(crate) links: Links,
    /// When its timer fires.
    pub(crate) deadline_tick: u32,
    /// When the phase began; for an echo connection when something came last.
    pub(crate) since_tick: u32,
    /// Frames that wait, or [`NONE`].
    pub(crate) queue: u32,
    /// The client's session, or [`NONE`].
    pub(crate) session: u32,
    /// What was read and isn't handled; nothing for an idle connection.
    pub(crate) rx: Option<Box<Rx>>,
    pub(crate) phase: Phase,
    /// How messages are written to it.
    pub(crate) form: Form,
    pub(crate) flags: Flags,
    /// The answer for which its commands have stopped; it is paused then.
    pub(crate) waits: Option<WaitsFor>,
}

/// Bytes of the record with a descriptor as its socket.
pub const CONN_BYTES: usize = 48;
const _: () = assert!(size_of::<Conn<std::os::fd::OwnedFd>>() == CONN_BYTES);
// The slab adds nothing: a vacant slot hides where no phase is.
const _: () = assert!(size_of::<Option<Conn<std::os::fd::OwnedFd>>>() == CONN_BYTES);

impl<S> Conn<S> {
    /// A new tenant of slot `index`.
    pub(crate) fn new(socket: impl Into<Option<S>>, generation: NonZeroU32, tick: u32) -> Self {
        Self {
            socket: socket.into(),
            generation,
            links: Links::default(),
            deadline_tick: 0,
            since_tick: tick,
            queue: NONE,
            session: NONE,
            rx: None,
            phase: Phase::Head,
            form: Form::JSON,
            flags: Flags::default(),
            waits: None,
        }
    }

    /// Lets it be read, and its commands be handled: whatever they waited for.
    pub(crate) fn go_on(&mut self) {
        self.flags.set_paused(false);
        self.waits = None;
    }

    /// Whether input that was read before waits. An unfinished request head doesn't count: it needs more
    /// bytes.
    pub(crate) fn has_leftover(&self) -> bool {
        self.rx.as_ref().is_some_and(|rx| rx.has_leftover()) && self.phase != Phase::Head
    }

    /// Its key, in slot `index`.
    pub(crate) fn key(&self, index: u32) -> ConnKey {
        ConnKey { index, generation: self.generation }
    }
}

durable_enum!(Phase {
    Head = 0,
    Body = 1,
    Asked = 2,
    Echo = 3,
    Client = 4,
    Unusable = 5,
    Closing = 6,
    Lingering = 7,
    Leaving = 8,
});

/// What was read of a connection and isn't handled yet. Exists only while there is something.
#[derive(Debug, Default)]
pub(crate) struct Rx {
    /// A frame or message that has begun.
    pub(crate) reader: ws::Reader,
    /// Commands of a message that was interrupted: whole lines, the last without its line feed.
    pub(crate) commands: Vec<u8>,
    /// How much of them is handled.
    pub(crate) commands_at: usize,
    /// Bytes behind it, or an unfinished request head.
    pub(crate) raw: Vec<u8>,
    /// How far the head was searched for its end.
    pub(crate) scanned: usize,
    /// A request whose body is not all here.
    pub(crate) incoming: Option<Box<Incoming>>,
    /// Messages that came up the separate up-link and wait for those before them.
    pub(crate) emulated: VecDeque<Emulated>,
    /// Who waits for `commands` to be handled, where these came that way.
    pub(crate) waiting: Option<Emulating>,
}

impl Rx {
    /// Nothing is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.reader.is_idle()
            && self.commands.is_empty()
            && self.raw.is_empty()
            && self.emulated.is_empty()
    }

    /// Bytes of the messages that wait.
    pub(crate) fn emulated_bytes(&self) -> usize {
        self.emulated.iter().map(Emulated::bytes).sum()
    }

    /// Something can be handled without reading more.
    pub(crate) fn has_leftover(&self) -> bool {
        !self.commands.is_empty() || !self.raw.is_empty() || !self.emulated.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_input_is_one_of_which_nothing_can_be_handled() {
        let mut rx = Rx::default();
        assert!(rx.is_empty() && !rx.has_leftover());
        rx.raw.push(0);
        assert!(!rx.is_empty() && rx.has_leftover());
    }

    #[test]
    fn a_connection_that_goes_on_waits_for_nothing() {
        let mut conn = Conn::<()>::new(Some(()), NonZeroU32::MIN, 0);
        conn.flags.set_paused(true);
        conn.waits = Some(WaitsFor::TokenCheck);
        conn.go_on();
        assert!(!conn.flags.paused() && conn.waits.is_none());
    }
}
