//! The record of one connection, of which there may be a million.

use super::http::Side;
use super::oracle::Sequence;
use crate::proto::ws::Reader;
use std::os::fd::OwnedFd;

/// Where a connection is in its life.
///
/// ```text
///  Unopened -> Dialing -> (Securing) -> Upgrading -> (Joining) -> Open -> Dropped
///     ^  '--------'-----------'------------'------------'---> Failed
///     '--- Waiting (to try again) <--- the same
///     '--- closed on purpose (settling, a storm) <--- Open
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    /// Not dialled, or closed on purpose.
    #[default]
    Unopened,
    /// `connect` is under way.
    Dialing,
    /// The TLS handshake is under way.
    Securing,
    /// The upgrade was requested.
    Upgrading,
    /// `connect` and `subscribe` of the client protocol were sent.
    Joining,
    /// Ready.
    Open,
    /// Could not be opened; will be tried again.
    Waiting,
    /// Could not be opened.
    Failed,
    /// Was open, and the other side or an error ended it.
    Dropped,
}

impl State {
    /// Whether a handshake is under way.
    pub(crate) fn is_opening(self) -> bool {
        matches!(self, Self::Dialing | Self::Securing | Self::Upgrading | Self::Joining)
    }
}

/// One connection. Shape: 64 bytes; heap only while a frame, a write or a gap is unfinished, and where it
/// is no WebSocket.
#[derive(Debug, Default)]
pub(crate) struct Conn {
    pub(crate) fd: Option<OwnedFd>,
    /// Which socket of this slot: stale events show another one.
    pub(crate) generation: u32,
    pub(crate) reader: Reader,
    /// Bytes that a full socket did not take, or an unfinished head, chunk or answer.
    pub(crate) spill: Option<Box<Spill>>,
    /// Its state where it is no WebSocket.
    pub(crate) side: Option<Box<Side>>,
    /// The seen messages of its channel, or its own echoes.
    pub(crate) seen: Sequence,
    /// Echo: number of the last message that was sent.
    pub(crate) sent: u32,
    /// Pings answered.
    pub(crate) pings: u16,
    pub(crate) state: State,
    /// Failed tries so far.
    pub(crate) tries: u8,
    /// Commands of joining that are answered: bit 0 connect, bit 1 subscribe.
    pub(crate) joined: u8,
    /// Whether it was open before (and is not counted again).
    pub(crate) was_open: bool,
    /// Whether it stands in the list of those that have more to read.
    pub(crate) listed: bool,
    /// Whether a write of it is collected to go out with others.
    pub(crate) deferred: bool,
}

const _: () = assert!(size_of::<Conn>() == 64);

/// Bytes in between.
#[derive(Debug, Default)]
pub(crate) struct Spill {
    pub(crate) input: Vec<u8>,
    pub(crate) output: Vec<u8>,
}

impl Conn {
    /// Whether bytes wait for the socket to take more.
    pub(crate) fn is_blocked(&self) -> bool {
        self.output_bytes() > 0
    }

    /// How many bytes wait for the socket.
    pub(crate) fn output_bytes(&self) -> usize {
        self.spill.as_ref().map_or(0, |spill| spill.output.len())
    }

    /// Gives the spill back once it is empty.
    pub(crate) fn trim(&mut self) {
        if self.spill.as_ref().is_some_and(|s| s.input.is_empty() && s.output.is_empty()) {
            self.spill = None;
        }
    }

    /// Closes the socket and forgets what was unfinished. What was seen and sent stays.
    pub(crate) fn close(&mut self, state: State) {
        self.fd = None;
        self.reader = Reader::new();
        self.spill = None;
        if let Some(side) = &mut self.side {
            side.session = Default::default();
            side.line.clear();
        }
        self.joined = 0;
        self.deferred = false;
        self.state = state;
    }
}
