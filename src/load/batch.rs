//! Writes of many connections that go out with one system call, where the kernel has an io_uring:
//! a client that is to keep a server busy has to be faster than it.

use crate::sys::uring::Ring;
use std::os::fd::BorrowedFd;

/// Writes that are collected at most.
const WRITES_MAX: usize = 256;

/// The pending writes, and their outcomes.
pub(crate) struct Batch {
    ring: Ring,
    bytes: Vec<u8>,
    /// Connection, generation, and where its bytes end.
    writes: Vec<(u32, u32, usize)>,
    results: Vec<i32>,
}

/// The outcome of one write.
pub(crate) struct Written<'a> {
    pub(crate) index: u32,
    pub(crate) bytes: &'a [u8],
    /// Bytes that the socket took, or an errno with its sign turned.
    pub(crate) result: i32,
}

impl Batch {
    /// For the calling thread; nothing where the kernel has no ring for it.
    pub(crate) fn new() -> Option<Self> {
        let ring = Ring::new().ok()?;
        Some(Self { ring, bytes: Vec::new(), writes: Vec::new(), results: Vec::new() })
    }

    /// Adds a write. Whether it is time to run.
    pub(crate) fn push(&mut self, index: u32, generation: u32, bytes: &[u8]) -> bool {
        self.bytes.extend_from_slice(bytes);
        self.writes.push((index, generation, self.bytes.len()));
        self.writes.len() >= WRITES_MAX
    }

    /// Nothing is to be written.
    pub(crate) fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Writes all of it; `socket` says where, or that the connection has gone.
    pub(crate) fn run<'a>(&mut self, socket: impl Fn(u32, u32) -> Option<BorrowedFd<'a>>) {
        let Self { ring, bytes, writes, results } = self;
        let mut batch = ring.batch();
        let mut from = 0;
        for (index, generation, end) in writes.iter_mut() {
            match socket(*index, *generation) {
                Some(socket) => batch.send(socket, std::iter::once(&bytes[from..*end])),
                None => *index = GONE,
            }
            from = *end;
        }
        batch.run(results);
    }

    /// The outcome of each write, in order; then the list is empty.
    pub(crate) fn take(&mut self, mut each: impl FnMut(Written<'_>)) {
        let mut results = self.results.drain(..);
        let mut from = 0;
        for (index, _, end) in self.writes.drain(..) {
            if index != GONE
                && let Some(result) = results.next()
            {
                each(Written { index, bytes: &self.bytes[from..end], result });
            }
            from = end;
        }
        drop(results);
        self.bytes.clear();
    }
}

/// A connection that was closed before its write.
const GONE: u32 = u32::MAX;
