//! The allocator and the process's pages.

#![allow(unsafe_code)]

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
