//! What stands between a client and its connection: bytes that the client writes and reads become others on the
//! way, as with TLS.
//!
//! ```text
//!   client --write--> ClientEnd --out--> pipe up
//!   client <--plain-- ClientEnd <--feed-- pipe down
//! ```
//! Before it is open it takes all that arrives by itself; then only what the client reads, so that a client
//! which doesn't read fills the pipe.

use std::fmt::Debug;

use super::world::World;
use super::{LinkId, Seen};

/// The end of a connection at the client.
pub trait ClientEnd: Debug {
    /// Whether the client may write.
    fn is_open(&self) -> bool;
    /// The client writes.
    fn write(&mut self, plain: &[u8]);
    /// Bytes for the server.
    fn out(&mut self) -> &mut Vec<u8>;
    /// Bytes of the server.
    fn feed(&mut self, bytes: &[u8]);
    /// What the client may read.
    fn plain(&mut self) -> &mut Vec<u8>;
    /// How much that is.
    fn plain_bytes(&self) -> usize;
    /// The client ends its side. Whether a FIN follows what is in `out`.
    fn shut(&mut self);
    /// The server has ended its side. `was_cut`: it gave up a socket that was full.
    fn ended(&self, was_cut: bool);
}

/// Makes the end of a new connection; the number is that of the connection.
pub type MakeEnd = Box<dyn FnMut(u32) -> Box<dyn ClientEnd>>;

impl World {
    /// Connections from now on have such ends.
    pub fn set_ends(&mut self, make: MakeEnd) {
        self.make_end = Some(make);
    }

    /// Moves bytes between the end of a connection and its pipes.
    pub(super) fn pump(&mut self, at: u32) {
        let Some(mut end) = self.links[at as usize].end.take() else { return };
        let link = &mut self.links[at as usize];
        if !link.reset && !end.is_open() && !link.down.arrived.is_empty() {
            let bytes = self.take_arrived(at, usize::MAX);
            end.feed(&bytes);
        }
        let link = &self.links[at as usize];
        let room = self.sizes.pipe_bytes.saturating_sub(link.up.bytes);
        let is_cut = link.reset || link.up.fin_at.is_some();
        let out = end.out();
        if is_cut {
            out.clear();
        } else if !out.is_empty() && room > 0 {
            let bytes: Vec<u8> = out.drain(..room.min(out.len())).collect();
            self.write_up(at, &bytes);
        }
        let link = &self.links[at as usize];
        if link.client_closed && link.up.fin_at.is_none() && end.out().is_empty() && !link.reset {
            self.fin(at, false);
        }
        self.links[at as usize].end = Some(end);
    }

    /// What a client sees of a connection with an end.
    pub(super) fn look_through(&self, link: LinkId, end: &dyn ClientEnd) -> Seen {
        let link = &self.links[link.index()];
        match (end.plain_bytes(), link.down.arrived.len()) {
            _ if link.reset => Seen::Reset,
            (0, 0) if link.down.fin_arrived => {
                end.ended(link.was_cut);
                Seen::Ended
            }
            (0, 0) => Seen::Nothing,
            (0, bytes) | (bytes, _) => Seen::Bytes(bytes),
        }
    }

    /// A client reads through its end.
    pub(super) fn read_through(&mut self, at: u32, bytes_max: usize) -> Vec<u8> {
        let has_plain =
            self.links[at as usize].end.as_ref().is_some_and(|end| end.plain_bytes() > 0);
        if !has_plain {
            let bytes = self.take_arrived(at, bytes_max);
            if let Some(end) = &mut self.links[at as usize].end {
                end.feed(&bytes);
            }
            self.pump(at);
        }
        let Some(end) = &mut self.links[at as usize].end else { return Vec::new() };
        let plain = end.plain();
        let count = plain.len().min(bytes_max);
        plain.drain(..count).collect()
    }

    /// A client writes through its end: as much as fits a pipe, when everything before has left.
    pub(super) fn write_through(&mut self, at: u32, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.sizes.pipe_bytes);
        let Some(end) = &mut self.links[at as usize].end else { return 0 };
        if !end.is_open() || !end.out().is_empty() {
            return 0;
        }
        end.write(&bytes[..count]);
        self.pump(at);
        count
    }
}
