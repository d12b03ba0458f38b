//! The messages of a link, on which a shard sends its state to its counterpart in the new process. A link
//! keeps the borders of messages; descriptors go beside their bytes.
//!
//! ```text
//!  Listeners (count, moment)             + as many listeners: times are distances from the moment
//!  Gone (keys)                             their sockets came, and they have ended
//!  Sockets (keys of their connections)   + as many sockets
//!  Part (length)                         + one file with a part of the image of the shard
//!    again and again; the shard runs
//!  Copied                                  what follows has changed since
//!                           <-- Caught up  all before it is taken
//!    again, once the shard has settled
//!  End (length, connections)               all of it was sent
//! ```

use crate::base::id::ConnKey;

/// Descriptors that the kernel passes in one message (`SCM_MAX_FD`).
pub const DESCRIPTORS_MAX: usize = 253;

/// Bytes of a message at most.
pub const MESSAGE_BYTES_MAX: usize = 1 + 8 * DESCRIPTORS_MAX;

/// A message of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkMessage {
    /// Listeners, in the order of the shard's addresses.
    Listeners {
        /// How many.
        count: u8,
        /// The moment from which times in the image are distances, by the machine's monotonic clock, nanoseconds.
        moment: u64,
    },
    /// The sockets of these connections, in their order.
    Sockets(Vec<ConnKey>),
    /// These connections, whose sockets were sent, have ended.
    Gone(Vec<ConnKey>),
    /// A part of the image, of so many bytes.
    Part(u64),
    /// The shard was written once. What follows has changed since.
    Copied,
    /// From the other end: all before [`LinkMessage::Copied`] is taken.
    CaughtUp,
    /// The end of the shard's state: so long were all parts of its image, and so many connections are in it.
    End {
        /// Bytes of the parts.
        bytes: u64,
        /// Connections.
        connections: u64,
    },
}

const LISTENERS: u8 = 1;
const SOCKETS: u8 = 2;
const GONE: u8 = 3;
const PART: u8 = 4;
const COPIED: u8 = 5;
const CAUGHT_UP: u8 = 6;
const END: u8 = 7;

fn with_keys(kind: u8, keys: &[ConnKey]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + 8 * keys.len());
    bytes.push(kind);
    keys.iter().for_each(|key| bytes.extend_from_slice(&key.pack().to_le_bytes()));
    bytes
}

impl LinkMessage {
    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Listeners { count, moment } => {
                [&[LISTENERS][..], &moment.to_le_bytes(), &[*count]].concat()
            }
            Self::Sockets(keys) => with_keys(SOCKETS, keys),
            Self::Gone(keys) => with_keys(GONE, keys),
            Self::Part(bytes) => [&[PART][..], &bytes.to_le_bytes()].concat(),
            Self::Copied => vec![COPIED],
            Self::CaughtUp => vec![CAUGHT_UP],
            Self::End { bytes, connections } => {
                [&[END][..], &bytes.to_le_bytes(), &connections.to_le_bytes()].concat()
            }
        }
    }

    /// The message of some bytes; `None` if they are none.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (kind, body) = bytes.split_first()?;
        let (numbers, rest) = body.as_chunks::<8>();
        match (*kind, numbers, rest) {
            (LISTENERS, [moment], [count]) => {
                Some(Self::Listeners { count: *count, moment: u64::from_le_bytes(*moment) })
            }
            (SOCKETS | GONE, keys, []) if keys.len() <= DESCRIPTORS_MAX => {
                let keys = keys.iter().map(|key| ConnKey::unpack(u64::from_le_bytes(*key)));
                let keys = keys.collect::<Option<_>>()?;
                Some(if *kind == GONE { Self::Gone(keys) } else { Self::Sockets(keys) })
            }
            (PART, [bytes], []) => Some(Self::Part(u64::from_le_bytes(*bytes))),
            (COPIED, [], []) => Some(Self::Copied),
            (CAUGHT_UP, [], []) => Some(Self::CaughtUp),
            (END, [bytes, connections], []) => Some(Self::End {
                bytes: u64::from_le_bytes(*bytes),
                connections: u64::from_le_bytes(*connections),
            }),
            _ => None,
        }
    }

    /// Descriptors that come along.
    pub fn descriptors(&self) -> usize {
        match self {
            Self::Listeners { count, .. } => usize::from(*count),
            Self::Sockets(keys) => keys.len(),
            Self::Part(_) => 1,
            Self::Gone(_) | Self::Copied | Self::CaughtUp | Self::End { .. } => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;

    fn key(index: u32, generation: u32) -> ConnKey {
        ConnKey { index, generation: NonZeroU32::new(generation).unwrap() }
    }

    #[test]
    fn messages_are_read_as_they_were_written() {
        let keys: Vec<ConnKey> = (0..DESCRIPTORS_MAX as u32).map(|n| key(n, n + 1)).collect();
        for message in [
            LinkMessage::Listeners { count: 2, moment: 1 << 60 },
            LinkMessage::Sockets(Vec::new()),
            LinkMessage::Gone(keys.clone()),
            LinkMessage::Sockets(keys),
            LinkMessage::Part(1 << 33),
            LinkMessage::Copied,
            LinkMessage::CaughtUp,
            LinkMessage::End { bytes: 1 << 40, connections: 7 },
        ] {
            let bytes = message.to_bytes();
            assert!(bytes.len() <= MESSAGE_BYTES_MAX);
            assert_eq!(LinkMessage::from_bytes(&bytes), Some(message.clone()));
            for end in 0..bytes.len() {
                // A whole number of keys is a message of its own; a link keeps the borders of messages.
                let shorter = LinkMessage::from_bytes(&bytes[..end]);
                let has_keys =
                    |of: &LinkMessage| matches!(of, LinkMessage::Sockets(_) | LinkMessage::Gone(_));
                assert!(shorter.is_none_or(|of| has_keys(&of)));
            }
        }
    }

    #[test]
    fn keys_without_a_generation_and_too_many_are_none() {
        assert_eq!(LinkMessage::from_bytes(&[SOCKETS, 1, 0, 0, 0, 0, 0, 0, 0]), None);
        let many = vec![1; 1 + 8 * (DESCRIPTORS_MAX + 1)];
        assert_eq!(LinkMessage::from_bytes(&[&[SOCKETS], &many[1..]].concat()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(message) = LinkMessage::from_bytes(&bytes) {
                prop_assert_eq!(message.to_bytes(), bytes);
            }
        }
    }
}
