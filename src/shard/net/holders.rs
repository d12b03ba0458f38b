//! The connections that hold the most memory: the first to go when the node has too little.

use std::cmp::Reverse;

use crate::io::Driver;
use crate::shard::net::Net;

/// A connection that holds much memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    /// Its slot.
    pub(crate) index: u32,
    /// Bytes of its send queue and of its unhandled input.
    pub(crate) bytes: usize,
    /// It is a request with an unfinished body.
    pub(crate) is_body: bool,
}

impl<D: Driver> Net<D> {
    /// Slots of connections, which a search looks at.
    pub(crate) fn slots(&self) -> usize {
        self.conns.len()
    }

    /// Connections that hold much memory: unfinished bodies first, then the largest. Looks at all
    /// connections.
    pub(crate) fn holders(&self) -> Vec<Holder> {
        let mut found: Vec<Holder> = Vec::new();
        for (index, conn) in self.conns.iter().filter(|(_, conn)| conn.socket.is_some()) {
            let waits = self.queues.get(conn.queue).map_or(0, |queue| queue.bytes());
            let (is_body, kept) = conn.rx.as_ref().map_or((false, 0), |rx| {
                let body = rx.incoming.as_ref().map_or(0, |incoming| incoming.bytes());
                let held = rx.reader.bytes_held() + rx.emulated_bytes();
                (body > 0, rx.raw.capacity() + rx.commands.capacity() + held + body)
            });
            let least = if is_body { BODY_BYTES_MIN } else { QUEUE_BYTES_MIN };
            if waits + kept >= least {
                found.push(Holder { index: index as u32, bytes: waits + kept, is_body });
            }
        }
        found.sort_unstable_by_key(|holder| (!holder.is_body, Reverse(holder.bytes), holder.index));
        found
    }
}

/// Ending a request with a body of less than this doesn't help.
const BODY_BYTES_MIN: usize = 4 * 1024;

/// Closing a connection with less than this doesn't help.
const QUEUE_BYTES_MIN: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::frame::SharedFrame;
    use crate::shard::fixture::{Plan, Wired};

    #[test]
    fn the_largest_queues_come_first_and_small_ones_not_at_all() {
        let mut of = Wired::new(Plan::default());
        let keys: Vec<_> = (0..3).map(|_| of.connect_client().1).collect();
        for (key, bytes) in keys.iter().zip([QUEUE_BYTES_MIN, 100, 2 * QUEUE_BYTES_MIN]) {
            of.net.enqueue(&of.cx, key.index, SharedFrame::new(&vec![b'x'; bytes]));
        }
        let holders: Vec<u32> = of.net.holders().iter().map(|holder| holder.index).collect();
        assert_eq!(holders, [keys[2].index, keys[0].index]);
        assert_eq!(of.net.slots(), 3);
        assert_eq!(of.end(), []);
    }
}
