//! The seam between the home of a channel and a broker that keeps channels for several nodes: values only.
//!
//! ```text
//!  home --Command--> broker (its connection, its thread, or a simulation)
//!  home <--BrokerEvent-- broker
//! ```
//! A command that has an answer carries a ticket. The answer comes as an event with that ticket, at any later
//! time, or never: [`BrokerEvent::Lost`] says that no earlier ticket will be answered. It is not known then
//! whether the commands took effect. A home gives up after a while, and ignores an answer that is too late.
//!
//! The order that a home may rely on: commands of one channel take effect in the order in which they were
//! sent, and publications of one channel are delivered in their order, except that some may come twice or
//! be missing. Between channels, and between answers and deliveries, there is no order. A read sees all that
//! was published before it was sent; a stream that lacks some of that has gone back ([`Command::Renew`]).
//!
//! The same publication has the same [`Entry`] wherever it appears, but for `delta`: homes compare
//! fingerprints of what was delivered and what is read.
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
    /// Deliver the publications of a channel from now on. Answer: [`BrokerEvent::Listening`], each time that
    /// deliveries begin, until [`BrokerEvent::Lost`] or [`Command::Unlisten`].
    Listen {
        /// The channel.
        channel: CompactString,
    },
    /// No subscriber on this node needs a channel any more: none has for a second. Not answered.
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
        /// Which publications; a limit of 0 reads the position only. The epoch of `since` is not compared.
        page: Page,
        /// Time for which the position is kept from now on; 0: for ever.
        meta_ttl_ms: u64,
        /// The offset that the position most likely has: the home stands there, and looks whether it still does.
        expects: Option<u64>,
    },
    /// The stream of this epoch went back, as after a failover to a copy that lacked its end, and its offsets
    /// are given out again: give it another epoch, unless it has another one already. Its publications, its
    /// top and its versions stay. Answer: [`BrokerEvent::History`] with the position behind that and the
    /// newest publication.
    Renew {
        /// Names the answer.
        ticket: Ticket,
        /// The channel.
        channel: CompactString,
        /// The epoch that the stream had.
        epoch: Epoch,
        /// Time for which the position is kept from now on; 0: for ever.
        meta_ttl_ms: u64,
    },
    /// Drop the publications of a channel; position and epoch stay. Answer: [`BrokerEvent::Done`].
    Drop {
        /// Names the answer.
        ticket: Ticket,
        /// The channel.
        channel: CompactString,
    },
    /// Change who is present. Answer, if it has a ticket: [`BrokerEvent::Done`].
    Presence(Box<PresenceUpdate>),
    /// Read who is present. Answer: [`BrokerEvent::Members`], or [`BrokerEvent::MemberCounts`].
    Members {
        /// Names the answer.
        ticket: Ticket,
        /// The channel.
        channel: CompactString,
        /// The counts are enough.
        counts: bool,
    },
    /// Send a join or leave event to the subscribers of all nodes. Not answered.
    Announce {
        /// The channel.
        channel: CompactString,
        /// It joined; else it left.
        joined: bool,
        /// Its packed `ClientInfo`.
        info: Box<[u8]>,
    },
    /// Hold what is to be delivered to this home: another process is to take this node's place. Answers are not held.
    /// Not answered.
    Hold,
    /// Divide what is delivered to this home into a part before and a part behind this command, for both processes.
    /// Answer: [`BrokerEvent::Fenced`], behind the first part; the second one is held.
    Fence {
        /// Names the attempt: the other process gets the second part by it.
        key: u64,
    },
    /// The process goes on: deliver what is held. Not answered.
    Resume,
}

/// Changes of those who are present in a channel: of one turn, in any order, at most one for each client.
#[derive(Clone, Debug)]
pub struct PresenceUpdate {
    /// The channel.
    pub channel: CompactString,
    /// Names the answer, if one is awaited.
    pub ticket: Option<Ticket>,
    /// What changes, and the packed `ClientInfo` of the client. Its client id is the key: presence of several
    /// nodes knows neither shards nor connections.
    pub changes: Vec<(PresenceChange, Box<[u8]>)>,
}

/// How the entry of a client changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PresenceChange {
    /// It is added, or its info replaced.
    Enter {
        /// Its leave is announced: also by another node, if this one dies.
        announces: bool,
    },
    /// Its time is prolonged; [`BrokerEvent::EntriesMissing`] follows if the broker has lost it.
    Refresh,
    /// It is removed.
    Leave,
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
    /// Subscribers that take patches may get it as one, on all nodes.
    pub delta: bool,
}

/// A publication with its place in the stream.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The offset of the publication before it in this stream, 0 for the first. Offsets of a channel grow;
    /// they need not be consecutive (with JetStream they are sequences of a stream with many channels).
    pub after: u64,
    /// When its node published it, in Unix milliseconds; 0: not known.
    pub time_ms: u64,
    /// Its publisher wants it to go as a patch where a subscriber takes patches.
    pub delta: bool,
    /// The channel that it was published to, where the subscribers have a pattern instead.
    pub source: Option<Box<str>>,
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
    /// Publications of a channel are not delivered, though the home wishes it: the connection that carries
    /// them is lost, or the broker refuses. [`BrokerEvent::Listening`] follows when they are again.
    Interrupted {
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
    /// How many are present, on all nodes.
    MemberCounts {
        /// Names the request.
        ticket: Ticket,
        /// Clients.
        clients: u32,
        /// Distinct users.
        users: u32,
    },
    /// A request is carried out.
    Done {
        /// Names the request.
        ticket: Ticket,
    },
    /// A request failed.
    Failed {
        /// Names the request.
        ticket: Ticket,
        /// The reason.
        cause: FailureCause,
    },
    /// A publication of a channel that this node listens to, whichever node it came from.
    Delivered(Box<Delivered>),
    /// Entries of a channel that were to be prolonged were not there. They have been written, but what the
    /// broker keeps beside them may be missing: the home enters all of the channel's entries again.
    EntriesMissing {
        /// The channel.
        channel: CompactString,
    },
    /// Other nodes took this one for dead, and removed its entries: the home enters all of them again, and
    /// announces them.
    EntriesRemoved,
    /// An entry of a node that is dead was removed: the home announces the leave, whichever home it is.
    Orphaned {
        /// The channel.
        channel: CompactString,
        /// The packed `ClientInfo`.
        info: Box<[u8]>,
    },
    /// All that is delivered before the fence has been, and nothing follows until [`Command::Resume`].
    Fenced {
        /// Names the attempt.
        key: u64,
    },
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

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureCause {
    /// The broker is away, busy or in error: a later attempt may succeed. Whether the request took effect is
    /// not known.
    Unavailable,
    /// The broker can't do that at all: it had no effect.
    Unsupported,
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
            Self::Renew { channel, epoch, .. } => heap_bytes_of!(channel, epoch),
            Self::Presence(update) => {
                let PresenceUpdate { channel, changes, ticket: _ } = &**update;
                let infos: usize = changes.iter().map(|(_, info)| info.heap_bytes()).sum();
                let list = changes.capacity() * size_of::<(PresenceChange, Box<[u8]>)>();
                size_of::<PresenceUpdate>() + channel.heap_bytes() + list + infos
            }
            Self::Announce { channel, info, .. } => heap_bytes_of!(channel, info),
            Self::Hold | Self::Fence { .. } | Self::Resume => 0,
        }
    }
}

impl HeapBytes for BrokerEvent {
    fn heap_bytes(&self) -> usize {
        match self {
            Self::Connected
            | Self::Lost
            | Self::Done { .. }
            | Self::Failed { .. }
            | Self::EntriesRemoved
            | Self::Fenced { .. }
            | Self::MemberCounts { .. } => 0,
            Self::Listening { channel }
            | Self::Interrupted { channel }
            | Self::EntriesMissing { channel } => channel.heap_bytes(),
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
            Self::Announced { channel, info, .. } | Self::Orphaned { channel, info } => {
                heap_bytes_of!(channel, info)
            }
        }
    }
}
