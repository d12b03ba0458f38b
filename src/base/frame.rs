//! The bytes that many connections send: encoded once, pointed at by each.

use triomphe::ThinArc;

/// An encoded wire frame (or several, joined), shared by every connection that sends it.
///
/// Shape: one pointer, 8 bytes; one allocation holds count, length and bytes. Made by copying out
/// of a scratch buffer, so that its allocation is exactly as long as the frame.
#[derive(Clone)]
pub struct SharedFrame(ThinArc<(), u8>);

impl SharedFrame {
    /// Copies `bytes` into a frame of their own.
    pub fn new(bytes: &[u8]) -> Self {
        Self(ThinArc::from_header_and_slice((), bytes))
    }

    /// The frame's bytes, as they go on the wire.
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
