//! Events for the application: which connections ended and why, which channels got their first subscriber here
//! and which lost their last.
//!
//! A shard collects the events of a turn and sends them to the control thread, which posts them
//! (`node/hooks.rs`). While its mailbox has no room they wait here, within a bound of bytes; an event beyond it
//! is lost, and the number of lost ones travels with the next batch.

use std::net::IpAddr;

use compact_str::CompactString;

use crate::base::heap::{HeapBytes, heap_bytes_of};
use crate::base::limits::APP_EVENTS_WAITING_BYTES_MAX;

/// Something that the application gets notice of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppEvent {
    /// A connected client has ended.
    Disconnect {
        /// Client id.
        client: CompactString,
        /// User id; empty for an anonymous client.
        user: CompactString,
        /// Its address, where it is known.
        address: Option<IpAddr>,
        /// Code of the client protocol; 3000 where the client or the network ended it.
        code: u16,
        /// The reason that belongs to the code.
        reason: CompactString,
    },
    /// A channel got its first subscriber on this node.
    Occupied(CompactString),
    /// A channel lost its last subscriber on this node.
    Vacated(CompactString),
}

impl AppEvent {
    /// As options, metrics and the application name it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Disconnect { .. } => "disconnect",
            Self::Occupied(_) => "occupied",
            Self::Vacated(_) => "vacated",
        }
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Disconnect { client, user, reason, .. } => {
                    heap_bytes_of!(client, user, reason)
                }
                Self::Occupied(channel) | Self::Vacated(channel) => channel.heap_bytes(),
            }
    }
}

/// Events of one shard, in order.
#[derive(Debug, Default)]
pub struct AppEvents {
    /// The events.
    pub events: Vec<AppEvent>,
    /// Events that were lost before these, for lack of room.
    pub lost: u64,
    bytes: usize,
}

impl AppEvents {
    /// Adds one, or counts it as lost when there is no room.
    pub(crate) fn push(&mut self, event: AppEvent) {
        let bytes = event.bytes();
        if self.bytes + bytes > APP_EVENTS_WAITING_BYTES_MAX {
            self.lost += 1;
            return;
        }
        self.bytes += bytes;
        self.events.push(event);
    }

    /// There is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.lost == 0
    }
}

impl HeapBytes for AppEvents {
    fn heap_bytes(&self) -> usize {
        let unused = self.events.capacity() - self.events.len();
        self.bytes + unused * size_of::<AppEvent>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_beyond_the_bound_are_counted_and_not_kept() {
        let mut events = AppEvents::default();
        assert!(events.is_empty());
        let name = CompactString::new("c".repeat(APP_EVENTS_WAITING_BYTES_MAX / 3));
        let large = [AppEvent::Occupied, AppEvent::Vacated, AppEvent::Occupied];
        large.into_iter().for_each(|event| events.push(event(name.clone())));
        events.push(AppEvent::Occupied("small".into()));
        assert_eq!((events.events.len(), events.lost), (3, 1));
        assert!(events.bytes <= APP_EVENTS_WAITING_BYTES_MAX);
    }
}
