//! What is remembered of clients' addresses, by slot, and its byte form.

use crate::base::address::Peer;
use crate::base::image::{Broken, Durable, ImageReader, ImageWriter, durable, kind};
use crate::edge::address_limits::Counted;
use crate::shard::by_slot::BySlot;
use crate::shard::context::Cx;

/// What is remembered of a connection.
#[derive(Debug)]
pub(super) struct Known {
    /// The last peer that is known without the request's head: of the socket, or of the PROXY header.
    pub(super) peer: Option<Peer>,
    /// Its client.
    pub(super) client: Option<Peer>,
    /// It counts among the connections of its client's address.
    pub(super) is_counted: bool,
    /// Bytes of it that count as unfinished.
    pub(super) unfinished: u64,
}

durable!(Known { peer, client, is_counted, unfinished });

/// What is known of clients' addresses beside the kernel.
#[derive(Default)]
pub(crate) struct Addresses {
    pub(super) known: BySlot<Known>,
    /// Connections that have to begin with a PROXY header, and didn't yet.
    pub(super) unannounced: BySlot<()>,
}

impl Addresses {
    /// Connections that something is remembered of.
    pub(crate) fn len(&self) -> usize {
        self.known.len() + self.unannounced.len()
    }

    /// Connections that something is remembered of.
    pub(crate) fn indexes(&self) -> impl Iterator<Item = u32> {
        self.known.keys().chain(self.unannounced.keys()).copied()
    }

    /// Whether a connection has to begin with a PROXY header, and didn't yet.
    pub(crate) fn awaits_header(&self, index: u32) -> bool {
        !self.unannounced.is_empty() && self.unannounced.contains_key(&index)
    }
}

/// The byte form.
impl Addresses {
    /// Writes a record for each connection of which something is known, or is to be.
    pub(crate) fn write_image(&self, out: &mut ImageWriter) {
        let Self { known, unannounced } = self;
        for (index, known) in known {
            out.record(kind::ADDRESS, |out| {
                out.field(index);
                out.field(&true);
                out.field(known);
            });
        }
        for index in unannounced.keys() {
            out.record(kind::ADDRESS, |out| {
                out.field(index);
                out.field(&false);
            });
        }
    }

    /// Reads the next record of these. What an address has is counted anew.
    pub(crate) fn read(&mut self, cx: &Cx, from: &mut ImageReader<'_>) -> Result<(), Broken> {
        let index = u32::read(from)?;
        let known: Option<Known> = from.field("Addresses.known")?;
        let Some(mut known) = known else {
            self.unannounced.insert(index, ());
            return Ok(());
        };
        if let Some(Peer::Ip(address)) = known.client {
            let limits = &cx.node.addresses;
            known.is_counted = known.is_counted && limits.connection_began(address) == Counted::Yes;
            if known.unfinished > 0 && limits.bytes_began(address, known.unfinished) != Counted::Yes
            {
                known.unfinished = 0;
            }
        }
        match self.known.insert(index, known) {
            None => Ok(()),
            Some(_) => Err(from.misplaced()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_without_its_header_is_remembered() {
        let mut addresses = Addresses::default();
        assert!(!addresses.awaits_header(3));
        addresses.unannounced.insert(3, ());
        let known = Known { peer: None, client: None, is_counted: false, unfinished: 0 };
        addresses.known.insert(5, known);
        assert!(addresses.awaits_header(3) && !addresses.awaits_header(5));
        assert_eq!(addresses.len(), 2);
        assert_eq!(addresses.indexes().collect::<Vec<_>>(), [5, 3]);
    }
}
