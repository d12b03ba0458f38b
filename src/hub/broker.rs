//! The seam between the home of a channel and a broker that keeps channels for several nodes: values only.
//!
//! ```text
//!  home --Command--> broker (its connection, its thread, or a simulation)
//!  home <--BrokerEvent-- broker
//! ```
//! A command that has an answer carries a ticket. The answer comes as an event with that ticket, at any later
//! time, or never: [`BrokerEvent::Lost`] says that no earlier ticket will be answered. It is not known then
//! whether the commands took effect.
//!
//! The order that a home may rely on: commands of one channel take effect in the order in which they were
//! sent, and publications of one channel are delivered in their order, except that some may come twice or
//! be missing. Between channels, and between answers and deliveries, there is no order.
//!
//! Without a broker a home keeps its channels itself ([`super::home::Homes`]): each operation is done in the
//! step that requests it, and none of these values is made.

use compact_str::CompactString;

use super::history::{Epoch, Page, Position, Record, StreamOptions};
use crate::base::heap::{HeapBytes, heap_bytes_of};

/// Names an operation that waits for an answer of the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// A request of a home to its broker.
#[derive(Clone, Debug)]
pub enum Command {
    /// Deliver the publications of a channel from now on. Answer: [`BrokerEvent::Listening`].
    Listen {
        /// The channel.
        channel: CompactString,
    },
    /// Nobody on this node is interested in a channel any more. Not answered.
    Unlisten {
        /// The channel.
        channel: CompactString,
    },
    /// Take a publication. Answer: [`BrokerEvent::Published`].
    Publish(Box<Publishing>),
    /// Read the position of a channel, and publications. Answer: [`BrokerEvent::History`].
    Read {
        /// Names the answer.
        ticket: Ticket,
        /// The channel.
        channel: CompactString,
        /// Which publications; a limit of 0 reads the position only.
        page: Page,
    },
    /// Drop the publications of a channel; position and epoch stay. Answer: [`BrokerEvent::Done`].
    Drop {
        /// Names the answer.
        ticket: Ticket,
        /// The channel.
        channel: CompactString,
    },
    /// Add a client to those present, or replace its info. Not answered.
    Enter {
        /// The channel.
        channel: CompactString,
        /// The client id: presence of several nodes knows neither shards nor connections.
        client: CompactString,
        /// Its packed `ClientInfo`.
        info: Box<[u8]>,
    },
    /// Remove a client from those present. Not answered.
    Leave {
        /// The channel.
        channel: CompactString,
        /// The client id.
        client: CompactString,
    },
    /// Read who is present. Answer: [`BrokerEvent::Members`].
    Members {
        /// Names the answer.
        ticket: Ticket,
        /// The channel.
        channel: CompactString,
    },
    /// Tell the subscribers of all nodes that a client joined or left. Not answered.
    Announce {
        /// The channel.
        channel: CompactString,
        /// It joined; else it left.
        joined: bool,
        /// Its packed `ClientInfo`.
        info: Box<[u8]>,
    },
}

/// A publication for the broker.
#[derive(Clone, Debug)]
pub struct Publishing {
    /// Names the answer.
    pub ticket: Ticket,
    /// The channel.
    pub channel: CompactString,
    /// The publication, without an offset.
    pub record: Record,
    /// How much history the channel keeps; none: the publication gets no position.
    pub options: StreamOptions,
    /// A second publication with this key does nothing, for a while; empty: no key.
    pub idempotency_key: CompactString,
    /// Dropped unless greater than the channel's version; 0 disables the check.
    pub version: u64,
    /// The life of the versions; empty: any.
    pub version_epoch: CompactString,
}

/// A publication with its place in the stream.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The offset of the publication before it in this stream. Offsets of a channel grow; whether they are
    /// consecutive is the broker's affair.
    pub after: u64,
    /// The publication. Its offset is 0 without history.
    pub record: Record,
}

/// News from the broker.
#[derive(Clone, Debug)]
pub enum BrokerEvent {
    /// There is a connection: commands may be sent.
    Connected,
    /// The connection is lost: no open ticket is answered any more, no channel is delivered.
    Lost,
    /// Publications of a channel are delivered from now on.
    Listening {
        /// The channel.
        channel: CompactString,
    },
    /// A publication is taken, or nothing was to be done. The channel's position.
    Published {
        /// Names the request.
        ticket: Ticket,
        /// Where the channel stands; offset 0 and no epoch without history.
        position: Position,
    },
    /// A channel's position, and publications.
    History {
        /// Names the request.
        ticket: Ticket,
        /// Where the channel stands.
        top: Position,
        /// The part of the requested publications that the broker has.
        entries: Vec<Entry>,
    },
    /// Packed infos of those present, on all nodes.
    Members {
        /// Names the request.
        ticket: Ticket,
        /// One for each client.
        infos: Vec<Box<[u8]>>,
    },
    /// A request is carried out.
    Done {
        /// Names the request.
        ticket: Ticket,
    },
    /// A request is refused: it had no effect.
    Failed {
        /// Names the request.
        ticket: Ticket,
    },
    /// A publication of a channel that this node listens to, whichever node it came from.
    Delivered(Box<Delivered>),
    /// A client of some node joined or left a channel that this node listens to.
    Announced {
        /// The channel.
        channel: CompactString,
        /// It joined; else it left.
        joined: bool,
        /// Its packed `ClientInfo`.
        info: Box<[u8]>,
    },
}

/// A publication that the broker delivers.
#[derive(Clone, Debug)]
pub struct Delivered {
    /// The channel.
    pub channel: CompactString,
    /// The life of the stream; `None` without history.
    pub epoch: Option<Epoch>,
    /// The publication.
    pub entry: Entry,
}

impl HeapBytes for Command {
    fn heap_bytes(&self) -> usize {
        match self {
            Self::Listen { channel }
            | Self::Unlisten { channel }
            | Self::Drop { channel, .. }
            | Self::Members { channel, .. } => channel.heap_bytes(),
            Self::Publish(publishing) => {
                let Publishing { channel, record, idempotency_key, version_epoch, .. } =
                    &**publishing;
                size_of::<Publishing>()
                    + heap_bytes_of!(channel, idempotency_key, version_epoch)
                    + record.bytes()
            }
            Self::Read { channel, page, .. } => heap_bytes_of!(channel, &page.since),
            Self::Enter { channel, client, info } => heap_bytes_of!(channel, client, info),
            Self::Leave { channel, client } => heap_bytes_of!(channel, client),
            Self::Announce { channel, info, .. } => heap_bytes_of!(channel, info),
        }
    }
}

impl HeapBytes for BrokerEvent {
    fn heap_bytes(&self) -> usize {
        match self {
            Self::Connected | Self::Lost | Self::Done { .. } | Self::Failed { .. } => 0,
            Self::Listening { channel } => channel.heap_bytes(),
            Self::Published { position, .. } => position.heap_bytes(),
            Self::History { top, entries, .. } => {
                let records: usize = entries.iter().map(|entry| entry.record.bytes()).sum();
                top.heap_bytes() + entries.capacity() * size_of::<Entry>() + records
            }
            Self::Members { infos, .. } => {
                let bytes: usize = infos.iter().map(HeapBytes::heap_bytes).sum();
                infos.capacity() * size_of::<Box<[u8]>>() + bytes
            }
            Self::Delivered(delivered) => {
                let Delivered { channel, epoch, entry } = &**delivered;
                let epoch = epoch.as_ref().map_or(0, Epoch::heap_bytes);
                size_of::<Delivered>() + channel.heap_bytes() + epoch + entry.record.bytes()
            }
            Self::Announced { channel, info, .. } => heap_bytes_of!(channel, info),
        }
    }
}
