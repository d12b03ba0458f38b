//! The allocator, how many bytes it has handed out, and the process's pages.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, Ordering};

/// Bytes that allocations take, without what the threads have not reported yet.
static ALLOCATED: AtomicI64 = AtomicI64::new(0);

/// A thread reports what it allocated and freed when the difference is so large, so that most
/// allocations touch memory of their own thread only. The figure is off by at most so much a thread.
const REPORT_BYTES: i64 = 32 * 1024;

thread_local! {
    /// Bytes that this thread has allocated and freed, and not reported. Const, and nothing to drop: neither
    /// the first access nor the end of a thread allocates.
    static UNREPORTED: Cell<i64> = const { Cell::new(0) };
}

/// Bytes that allocations of the whole process take now, to within 32 KiB a thread. One load. Always 0
/// in a program whose global allocator isn't [`Counted`].
pub fn allocated_bytes() -> u64 {
    u64::try_from(ALLOCATED.load(Ordering::Relaxed)).unwrap_or(0)
}

#[cfg(test)]
thread_local! {
    static REQUESTED: Cell<i64> = const { Cell::new(0) };
}

/// Bytes that this thread has allocated and not freed, for tests of what something holds.
#[cfg(test)]
pub fn requested_bytes() -> i64 {
    REQUESTED.get()
}

/// The size class of an allocation: mimalloc has four of them between two powers of two.
#[inline]
fn class_bytes(size: usize) -> i64 {
    // The size of a layout is at most isize::MAX, so the sum doesn't wrap.
    let below = (1usize << ((size | 64).ilog2() - 2)) - 1;
    (size.wrapping_add(below) & !below) as i64
}

/// Counts bytes of size classes as allocated, or as freed where they are negative.
///
/// An API request makes about seventy allocations, each counted twice. Inlined, with one size where there
/// is one, that is a dozen instructions instead of forty.
#[inline(always)]
fn count(bytes: i64, requested: i64) {
    #[cfg(test)]
    let _ = REQUESTED.try_with(|sum| sum.set(sum.get() + requested));
    #[cfg(not(test))]
    let _ = requested;
    // Fails only in a thread that has ended: what it frees then is small.
    let _ = UNREPORTED.try_with(|unreported| {
        let sum = unreported.get() + bytes;
        unreported.set(sum);
        // One comparison for both ends of the range.
        if (sum + REPORT_BYTES) as u64 > 2 * REPORT_BYTES as u64 {
            report(unreported);
        }
    });
}

#[cold]
#[inline(never)]
fn report(unreported: &Cell<i64>) {
    ALLOCATED.fetch_add(unreported.take(), Ordering::Relaxed);
}

#[inline(always)]
fn count_allocated(size: usize) {
    count(class_bytes(size), size as i64);
}

#[inline(always)]
fn count_freed(size: usize) {
    count(-class_bytes(size), -(size as i64));
}

/// An allocator that counts what it has handed out ([`allocated_bytes`]): two additions in memory of the
/// thread for each allocation.
#[derive(Debug)]
pub struct Counted<A>(pub A);

// SAFETY: every call goes to the inner allocator as it came, and its answer back; counting neither
// allocates nor panics.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Counted<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_allocated(layout.size());
        // SAFETY: as above.
        unsafe { self.0.alloc(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count_freed(layout.size());
        // SAFETY: as above.
        unsafe { self.0.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count_allocated(layout.size());
        // SAFETY: as above.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(class_bytes(size) - class_bytes(layout.size()), size as i64 - layout.size() as i64);
        // SAFETY: as above.
        unsafe { self.0.realloc(at, layout, size) }
    }
}

/// Keeps huge pages off this process: with them a slab's first touch costs 2 MiB.
pub fn disable_huge_pages() {
    // SAFETY: PR_SET_THP_DISABLE takes no pointers and changes only how this process's memory is
    // backed. Neither rustix nor std has a call for it. A refusal (old kernel) changes nothing.
    unsafe {
        libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
    }
}

/// Gives memory that this thread has freed back to the system. Takes milliseconds: for idle moments
/// after a burst.
pub fn collect() {
    // SAFETY: `mi_collect` may be called at any time by any thread; it acts on the calling thread's
    // heap. The mimalloc crate has no wrapper for it.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_as_the_allocator_rounds_them() {
        for (size, expected) in
            [(0, 0), (1, 16), (16, 16), (17, 32), (64, 64), (65, 80), (96, 96), (97, 112)]
        {
            assert_eq!(class_bytes(size), expected, "{size}");
        }
        assert_eq!(class_bytes(60_000), 65_536);
        assert_eq!(class_bytes(1 << 20), 1 << 20);
        assert_eq!(class_bytes((1 << 20) + 1), (1 << 20) + (1 << 18));
    }

    #[test]
    fn what_is_allocated_is_counted_until_it_is_freed() {
        let before = requested_bytes();
        let mut bytes = vec![0u8; 1 << 20];
        assert_eq!(requested_bytes() - before, 1 << 20);
        bytes.resize(3 << 20, 1);
        assert_eq!(requested_bytes() - before, bytes.capacity() as i64);
        bytes.truncate(1 << 16);
        bytes.shrink_to_fit();
        assert_eq!(requested_bytes() - before, 1 << 16);
        drop(bytes);
        assert_eq!(requested_bytes(), before);
    }

    #[test]
    fn what_another_thread_frees_is_not_counted_any_more() {
        let before = allocated_bytes();
        let boxes: Vec<Box<[u8]>> = (0..64).map(|_| vec![0; 1 << 16].into()).collect();
        assert!(allocated_bytes() >= before + (60 << 16));
        std::thread::scope(|scope| _ = scope.spawn(move || drop(boxes)));
        assert!(allocated_bytes() < before + (4 << 16));
    }
}
