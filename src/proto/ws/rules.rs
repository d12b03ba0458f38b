//! The rules of one side of a connection.

/// How frames are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRules {
    /// True in a server: every frame must be masked. False in a client: none may be.
    pub masked: bool,
    /// permessage-deflate was agreed on: messages may be deflated.
    pub deflate: bool,
    /// Payload bytes of a message at most, over all its fragments. More is
    /// [`Fault::MessageTooLong`](super::Fault::MessageTooLong) as soon as a header says so.
    pub message_bytes_max: usize,
}
