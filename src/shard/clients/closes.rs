//! The last closes of a shard, for the admin page: whose connection ended, when, and why.
//!
//! A ring of a fixed number of records with texts of bounded length, kept only where there is an admin page. What it
//! takes is a gauge and a class of memory.

use std::collections::VecDeque;

use compact_str::CompactString;

use crate::base::heap::HeapBytes;
use crate::shard::mail::{Close, ClosesOf};

/// Closes that all shards of a node remember together.
pub(crate) const CLOSES_MAX: usize = 10_000;

/// Bytes of a text at most.
const TEXT_BYTES_MAX: usize = 96;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Closes {
    ring: VecDeque<Close>,
    heap_bytes: usize,
}

impl Closes {
    /// Adds one; the oldest one beyond `max` goes.
    pub(crate) fn push(&mut self, max: usize, close: Close) {
        self.heap_bytes += close.heap_bytes();
        self.ring.push_back(close);
        while self.ring.len() > max {
            let gone = self.ring.pop_front();
            self.heap_bytes -= gone.map_or(0, |gone| gone.heap_bytes());
        }
    }

    /// Bytes of it.
    pub(crate) fn bytes(&self) -> usize {
        self.ring.capacity() * size_of::<Close>() + self.heap_bytes
    }

    /// The latest ones that are wanted, newest first, and the number of all that are.
    pub(crate) fn find(&self, of: &ClosesOf, max: usize) -> (Vec<Close>, u64) {
        let found = || self.ring.iter().rev().filter(|close| of.has(close));
        (found().take(max).cloned().collect(), found().count() as u64)
    }
}

/// A text, cut to a whole number of characters.
pub(crate) fn cut(text: &str) -> CompactString {
    let end = (0..=text.len().min(TEXT_BYTES_MAX)).rev().find(|at| text.is_char_boundary(*at));
    text[..end.unwrap_or(0)].into()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::num::NonZeroU32;

    use super::*;
    use crate::base::form::Transport;
    use crate::base::id::ConnKey;
    use crate::base::software::SoftwareId;

    fn close(user: &str, code: u16) -> Close {
        Close {
            at: 1,
            conn: ConnKey { index: 1, generation: NonZeroU32::MIN },
            was_connected: true,
            user: cut(user),
            address: Some(IpAddr::from([192, 0, 2, code as u8])),
            transport: Transport::WebSocket,
            software: SoftwareId::UNNAMED,
            lasted_s: 1,
            code,
            by_client: false,
            detail: cut(&"long ".repeat(50)),
        }
    }

    #[test]
    fn a_ring_keeps_the_latest_and_counts_their_bytes() {
        let mut closes = Closes::default();
        (1..=50).for_each(|code| closes.push(10, close("a user with a name that is long", code)));
        let (found, count) = closes.find(&ClosesOf::default(), 3);
        assert_eq!(found.iter().map(|close| close.code).collect::<Vec<_>>(), [50, 49, 48]);
        assert_eq!(count, 10);
        let heap: usize = closes.ring.iter().map(HeapBytes::heap_bytes).sum();
        assert!(heap > 0 && closes.heap_bytes == heap);
        assert!(closes.bytes() >= 10 * size_of::<Close>() + heap);
    }

    #[test]
    fn closes_are_found_by_user_address_and_code() {
        let mut closes = Closes::default();
        for (user, code) in [("anna", 1), ("ben", 2), ("anna", 3)] {
            closes.push(10, close(user, code));
        }
        let found = |of: ClosesOf| closes.find(&of, 10).1;
        assert_eq!(found(ClosesOf { user: "anna".into(), ..ClosesOf::default() }), 2);
        let address = Some(IpAddr::from([192, 0, 2, 2]));
        assert_eq!(found(ClosesOf { address, ..ClosesOf::default() }), 1);
        assert_eq!(found(ClosesOf { user: "anna".into(), code: 2, ..ClosesOf::default() }), 0);
    }

    #[test]
    fn texts_are_cut_at_a_character() {
        assert_eq!(cut("short"), "short");
        let text = "é".repeat(TEXT_BYTES_MAX);
        assert_eq!(cut(&text[..]).len(), TEXT_BYTES_MAX);
        assert_eq!(cut(&format!("a{text}")).len(), TEXT_BYTES_MAX - 1);
    }
}
