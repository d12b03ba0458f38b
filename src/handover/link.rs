//! The messages of a link, on which a shard sends its state to its counterpart in the new process. A link
//! keeps the borders of messages; descriptors go beside their bytes.
//!
//! ```text
//!  Listeners (count)                     + as many listeners
//!  Sockets (keys of their connections)   + as many sockets, again and again
//!  Image (length, connections)           + one file with the image of the shard
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
    Listeners(u8),
    /// The sockets of these connections, in their order.
    Sockets(Vec<ConnKey>),
    /// The end of the shard's state: so long is its image, and so many connections are in it.
    Image {
        /// Bytes of the image.
        bytes: u64,
        /// Connections.
        connections: u64,
    },
}

const LISTENERS: u8 = 1;
const SOCKETS: u8 = 2;
const IMAGE: u8 = 3;

impl LinkMessage {
    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Listeners(count) => vec![LISTENERS, *count],
            Self::Sockets(keys) => {
                let mut bytes = vec![SOCKETS];
                keys.iter().for_each(|key| bytes.extend_from_slice(&key.pack().to_le_bytes()));
                bytes
            }
            Self::Image { bytes, connections } => {
                [&[IMAGE][..], &bytes.to_le_bytes(), &connections.to_le_bytes()].concat()
            }
        }
    }

    /// The message of some bytes; `None` if they are none.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (kind, body) = bytes.split_first()?;
        let (numbers, rest) = body.as_chunks::<8>();
        match (*kind, numbers, rest) {
            (LISTENERS, [], [count]) => Some(Self::Listeners(*count)),
            (SOCKETS, keys, []) if keys.len() <= DESCRIPTORS_MAX => {
                let keys = keys.iter().map(|key| ConnKey::unpack(u64::from_le_bytes(*key)));
                Some(Self::Sockets(keys.collect::<Option<_>>()?))
            }
            (IMAGE, [bytes, connections], []) => Some(Self::Image {
                bytes: u64::from_le_bytes(*bytes),
                connections: u64::from_le_bytes(*connections),
            }),
            _ => None,
        }
    }

    /// Descriptors that come along.
    pub fn descriptors(&self) -> usize {
        match self {
            Self::Listeners(count) => usize::from(*count),
            Self::Sockets(keys) => keys.len(),
            Self::Image { .. } => 1,
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
            LinkMessage::Listeners(2),
            LinkMessage::Sockets(Vec::new()),
            LinkMessage::Sockets(keys),
            LinkMessage::Image { bytes: 1 << 40, connections: 7 },
        ] {
            let bytes = message.to_bytes();
            assert!(bytes.len() <= MESSAGE_BYTES_MAX);
            assert_eq!(LinkMessage::from_bytes(&bytes), Some(message.clone()));
            for end in 0..bytes.len() {
                // A whole number of keys is a message of its own: its descriptors don't fit it.
                if let Some(shorter) = LinkMessage::from_bytes(&bytes[..end]) {
                    assert!(shorter.descriptors() < message.descriptors());
                }
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
