//! How much memory the node uses, its sockets in the kernel included.

use crate::host::plan::KERNEL_BYTES_PER_CONNECTION;

/// Resident bytes of this process.
pub(super) fn rss_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Resident bytes and what `connections` sockets cost the kernel.
pub(super) fn used_bytes(connections: u64) -> u64 {
    rss_bytes().unwrap_or(0) + connections * KERNEL_BYTES_PER_CONNECTION
}
