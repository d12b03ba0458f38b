//! How many bytes a value holds beside its own: what a bound on bytes has to count.

use std::sync::Arc;

use compact_str::CompactString;

use super::bytes::SharedBytes;
use super::frame::SharedFrame;

/// Bytes behind a value's pointers, as far as they go. What is shared counts in full: who holds it may be
/// the last.
pub trait HeapBytes {
    /// See the trait.
    fn heap_bytes(&self) -> usize;
}

/// Sum of what several values hold.
macro_rules! heap_bytes_of {
    ($($value:expr),* $(,)?) => {
        0 $(+ $crate::base::heap::HeapBytes::heap_bytes($value))*
    };
}
pub(crate) use heap_bytes_of;

impl HeapBytes for CompactString {
    fn heap_bytes(&self) -> usize {
        if self.is_heap_allocated() { self.capacity() } else { 0 }
    }
}

impl HeapBytes for String {
    fn heap_bytes(&self) -> usize {
        self.capacity()
    }
}

impl HeapBytes for Box<str> {
    fn heap_bytes(&self) -> usize {
        self.len()
    }
}

impl HeapBytes for Box<[u8]> {
    fn heap_bytes(&self) -> usize {
        self.len()
    }
}

impl HeapBytes for SharedBytes {
    fn heap_bytes(&self) -> usize {
        if self.is_empty() { 0 } else { self.len() + SHARED_BYTES_BYTES }
    }
}

/// Count, length, and what the size is rounded up by.
const SHARED_BYTES_BYTES: usize = 3 * size_of::<usize>();

impl HeapBytes for SharedFrame {
    fn heap_bytes(&self) -> usize {
        self.len() + SHARED_FRAME_BYTES
    }
}

/// Count, length, a flag, and what the size is rounded up by.
const SHARED_FRAME_BYTES: usize = 4 * size_of::<usize>();

impl<T: HeapBytes> HeapBytes for Option<T> {
    fn heap_bytes(&self) -> usize {
        self.as_ref().map_or(0, T::heap_bytes)
    }
}

impl<T: HeapBytes> HeapBytes for Box<T> {
    fn heap_bytes(&self) -> usize {
        size_of::<T>() + (**self).heap_bytes()
    }
}

impl<T: HeapBytes> HeapBytes for Arc<T> {
    fn heap_bytes(&self) -> usize {
        2 * size_of::<usize>() + size_of::<T>() + (**self).heap_bytes()
    }
}

impl<T: HeapBytes> HeapBytes for Vec<T> {
    fn heap_bytes(&self) -> usize {
        self.capacity() * size_of::<T>() + self.iter().map(T::heap_bytes).sum::<usize>()
    }
}

impl<A: HeapBytes, B: HeapBytes> HeapBytes for (A, B) {
    fn heap_bytes(&self) -> usize {
        self.0.heap_bytes() + self.1.heap_bytes()
    }
}

impl HeapBytes for u32 {
    fn heap_bytes(&self) -> usize {
        0
    }
}
