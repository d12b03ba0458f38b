//! Bytes that several owners share: a payload that goes to many channels is in memory once.

use std::fmt;
use std::ops::Deref;

use triomphe::ThinArc;

/// Bytes that never change. A clone shares them.
///
/// Shape: one pointer, 8 bytes; one allocation holds count, length and bytes. No bytes need no allocation.
#[derive(Clone, Default)]
pub struct SharedBytes(Option<ThinArc<(), u8>>);

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |bytes| &bytes.slice)
    }
}

impl From<&[u8]> for SharedBytes {
    fn from(bytes: &[u8]) -> Self {
        match bytes {
            [] => Self::default(),
            _ => Self(Some(ThinArc::from_header_and_slice((), bytes))),
        }
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBytes({} bytes)", self.len())
    }
}

const _: () = assert!(size_of::<SharedBytes>() == 8);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::heap::HeapBytes;

    #[test]
    fn clones_share_their_bytes() {
        let bytes = SharedBytes::from(&b"payload"[..]);
        assert_eq!(bytes.clone().as_ptr(), bytes.as_ptr());
        assert_eq!(&*bytes, b"payload");
    }

    #[test]
    fn no_bytes_take_no_memory() {
        let empty = SharedBytes::from(&[][..]);
        assert!(empty.0.is_none());
        assert_eq!((empty.len(), empty.heap_bytes()), (0, 0));
    }
}
