//! The bytes that many connections send: encoded once, pointed at by each.

use triomphe::ThinArc;

/// Encoded wire bytes (a frame, several joined, or a part of one), shared by every connection that
/// sends them.
///
/// Shape: one pointer, 8 bytes; one allocation holds count, length and bytes. Made by copying out
/// of a scratch buffer, so that its allocation is exactly as long as the bytes.
#[derive(Clone)]
pub struct SharedFrame(ThinArc<bool, u8>);

impl SharedFrame {
    /// Copies `bytes`, which begin a frame of the transport, into an allocation of their own.
    pub fn new(bytes: &[u8]) -> Self {
        Self(ThinArc::from_header_and_slice(false, bytes))
    }

    /// The same for bytes that go on with a frame which others began: who has sent the beginning has
    /// to send these, too. The answer to an upgrade, with which all begins, is such bytes as well.
    pub fn part(bytes: &[u8]) -> Self {
        Self(ThinArc::from_header_and_slice(true, bytes))
    }

    /// Whether these go on with what stands before them.
    pub fn is_part(&self) -> bool {
        self.0.header.header
    }

    /// The bytes, as they go on the wire.
    pub fn bytes(&self) -> &[u8] {
        &self.0.slice
    }

    /// Length in bytes; never changes.
    pub fn len(&self) -> usize {
        self.0.slice.len()
    }

    /// True for a frame without bytes, which is never queued.
    pub fn is_empty(&self) -> bool {
        self.0.slice.is_empty()
    }
}

impl std::fmt::Debug for SharedFrame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedFrame({} bytes)", self.len())
    }
}

const _: () = assert!(size_of::<Option<SharedFrame>>() == 8);
