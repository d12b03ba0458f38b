//! Faults of a frame that holds no commands.

use super::codes::Disconnect;

/// A frame that is not a batch of commands. The peer is closed with [`Disconnect::BadRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// An empty frame, or a blank line in one.
    #[error("an empty command")]
    Blank,
    /// Not JSON, not an object, a field of the wrong type, a number out of range, a field twice.
    #[error("not a command, at byte {column} of its line")]
    Json {
        /// Where in the line, from 1.
        column: usize,
    },
    /// A length that is no number, or runs past the end of the frame.
    #[error("a message longer than its frame")]
    Length,
    /// Not Protobuf, a field of the wrong type, a string that isn't UTF-8.
    #[error("not a command in Protobuf")]
    Protobuf,
}

impl Malformed {
    /// The words for the peer.
    pub fn disconnect(self) -> Disconnect {
        Disconnect::BadRequest
    }
}
