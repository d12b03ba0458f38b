//! The allocator, how many bytes it has handed out, and the process's pages.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, Ordering};

/// Bytes that allocations take, without the sums that the threads have not reported yet.
static ALLOCATED: AtomicI64 = AtomicI64::new(0);

/// A thread reports its sum when that reaches so many bytes, so that most allocations touch memory of their
/// own thread only. The total is off by at most so much a thread.
const REPORT_BYTES: i64 = 32 * 1024;

thread_local! {
    /// Bytes that this thread has allocated less those that it has freed, since its last report, above
    /// `REPORT_BYTES`: one comparison finds a sum that is out of range at either end. Const, and nothing to
    /// drop: neither the first access nor the end of a thread allocates.
    static UNREPORTED: Cell<i64> = const { Cell::new(REPORT_BYTES) };
}

/// Bytes that allocations of the whole process take now, to within 32 KiB a thread. One load. Always 0
/// in a program whose global allocator isn't [`Counted`].
pub fn allocated_bytes() -> u64 {
    u64::try_from(ALLOCATED.load(Ordering::Relaxed)).unwrap_or(0)
}

#[cfg(test)]
thread_local! {
    static REQUESTED: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

/// Bytes that this thread has allocated and not freed, for tests of what something holds.
#[cfg(test)]
pub fn requested_bytes() -> i64 {
    REQUESTED.get()
}

/// The largest [`requested_bytes`] since the last call, for tests of what a step needs meanwhile.
#[cfg(test)]
pub fn take_peak_bytes() -> i64 {
    PEAK.replace(REQUESTED.get())
}

/// The size class of an allocation: mimalloc has four of them between two powers of two, and steps of
/// sixteen bytes below 64.
#[inline(always)]
fn class_bytes(size: usize) -> i64 {
    // Written so that it takes nine instructions: a quarter of the highest power of two in the size.
    let step = (1usize << 61) >> (size | 64).leading_zeros();
    // The size of a layout is at most isize::MAX, so the sum doesn't wrap.
    (size.wrapping_add(step - 1) & step.wrapping_neg()) as i64
}

/// Counts bytes of size classes as allocated, or as freed where they are negative. Whether the thread has
/// to report its sum.
///
/// Each allocation is counted twice, and a request has dozens: every instruction here shows in the cost of a
/// publish. So the check of the sum comes before the call of the allocator, which stays a jump.
#[inline(always)]
fn count(bytes: i64, requested: i64) -> bool {
    #[cfg(test)]
    let _ = REQUESTED.try_with(|sum| {
        sum.set(sum.get() + requested);
        PEAK.try_with(|peak| peak.set(peak.get().max(sum.get())))
    });
    #[cfg(not(test))]
    let _ = requested;
    // Fails only in a thread that has ended: what it frees then is small.
    let counted = UNREPORTED.try_with(|unreported| {
        let sum = unreported.get().wrapping_add(bytes);
        unreported.set(sum);
        sum as u64 > 2 * REPORT_BYTES as u64
    });
    counted.unwrap_or(false)
}

fn report() {
    let _ = UNREPORTED.try_with(|unreported| {
        let sum = unreported.replace(REPORT_BYTES) - REPORT_BYTES;
        ALLOCATED.fetch_add(sum, Ordering::Relaxed);
    });
}

/// mimalloc, with a count of the bytes that it has handed out ([`allocated_bytes`]): two additions in memory
/// of the thread for each allocation.
#[derive(Debug)]
pub struct Counted;

/// Every block of mimalloc has this alignment, so that most requests need not say theirs: without it a small
/// block is found in half as many instructions.
const NATURAL_ALIGN: usize = 8;

// SAFETY: a block of `mi_malloc`, `mi_zalloc` or `mi_realloc` has at least the size asked for, and alignment 8
// (`MI_MAX_ALIGN_SIZE` is 16; blocks below that are of 8 bytes). The others take the alignment of the layout.
// All fail with a null pointer; any block may be freed by `mi_free`, in any thread. Counting neither
// allocates nor panics.
unsafe impl GlobalAlloc for Counted {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        match count(class_bytes(size), size as i64) {
            // SAFETY: as above.
            false => unsafe { allocated(size, align) },
            true => alloc_and_report(size, align),
        }
    }

    #[inline]
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let size = layout.size();
        match count(class_bytes(size).wrapping_neg(), -(size as i64)) {
            // SAFETY: `at` is a block of this allocator, since the caller keeps the contract of `dealloc`.
            false => unsafe { libmimalloc_sys::mi_free(at.cast()) },
            true => free_and_report(at),
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        if count(class_bytes(size), size as i64) {
            report();
        }
        // SAFETY: as above.
        unsafe {
            match align <= NATURAL_ALIGN {
                true => libmimalloc_sys::mi_zalloc(size).cast(),
                false => libmimalloc_sys::mi_zalloc_aligned(size, align).cast(),
            }
        }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let align = layout.align();
        let (more, requested) =
            (class_bytes(size) - class_bytes(layout.size()), size as i64 - layout.size() as i64);
        if count(more, requested) {
            report();
        }
        // SAFETY: as above, and `at` is a block of this allocator with the alignment of the layout.
        unsafe {
            match align <= NATURAL_ALIGN {
                true => libmimalloc_sys::mi_realloc(at.cast(), size).cast(),
                false => libmimalloc_sys::mi_realloc_aligned(at.cast(), size, align).cast(),
            }
        }
    }
}

/// # Safety
/// None but that of the calls: any size and power of two will do.
#[inline(always)]
unsafe fn allocated(size: usize, align: usize) -> *mut u8 {
    // SAFETY: mimalloc takes any size, and any power of two as the alignment, which that of a layout is.
    unsafe {
        match align <= NATURAL_ALIGN {
            true => libmimalloc_sys::mi_malloc(size).cast(),
            false => libmimalloc_sys::mi_malloc_aligned(size, align).cast(),
        }
    }
}

// Apart, with the same arguments, so that the way without a report keeps no register for it.
#[cold]
#[inline(never)]
fn alloc_and_report(size: usize, align: usize) -> *mut u8 {
    report();
    // SAFETY: as above.
    unsafe { allocated(size, align) }
}

#[cold]
#[inline(never)]
fn free_and_report(at: *mut u8) {
    report();
    // SAFETY: called by `dealloc` alone, with a block of this allocator.
    unsafe { libmimalloc_sys::mi_free(at.cast()) }
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
        for (size, expected) in [
            (0, 0),
            (1, 16),
            (16, 16),
            (17, 32),
            (64, 64),
            (65, 80),
            (96, 96),
            (97, 112),
            (128, 128),
        ] {
            assert_eq!(class_bytes(size), expected, "{size}");
        }
        assert_eq!(class_bytes(60_000), 65_536);
        assert_eq!(class_bytes(1 << 20), 1 << 20);
        assert_eq!(class_bytes((1 << 20) + 1), (1 << 20) + (1 << 18));
    }

    #[test]
    fn blocks_have_the_alignment_of_their_layout() {
        for align in (0..13).map(|shift| 1 << shift) {
            for size in [1, 7, 8, 9, 24, 100, 1000, 5000] {
                let layout = Layout::from_size_align(size, align).unwrap();
                let larger = Layout::from_size_align(size + 3000, align).unwrap();
                // SAFETY: no size is 0; each block is freed once, with the layout it has then.
                unsafe {
                    let blocks: Vec<*mut u8> = (0..20).map(|_| Counted.alloc(layout)).collect();
                    for at in blocks {
                        assert!((at as usize).is_multiple_of(align), "{size} {align}");
                        let at = Counted.realloc(at, layout, larger.size());
                        assert!((at as usize).is_multiple_of(align), "{size} {align}");
                        Counted.dealloc(at, larger);
                    }
                    let at = Counted.alloc_zeroed(layout);
                    assert!((at as usize).is_multiple_of(align), "{size} {align}");
                    assert!(std::slice::from_raw_parts(at, size).iter().all(|byte| *byte == 0));
                    Counted.dealloc(at, layout);
                }
            }
        }
    }

    #[test]
    fn allocations_are_counted_until_they_are_freed() {
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
    fn frees_of_another_thread_are_counted() {
        let before = allocated_bytes();
        let boxes: Vec<Box<[u8]>> = (0..64).map(|_| vec![0; 1 << 16].into()).collect();
        assert!(allocated_bytes() >= before + (60 << 16));
        std::thread::scope(|scope| _ = scope.spawn(move || drop(boxes)));
        assert!(allocated_bytes() < before + (4 << 16));
    }
}
