//! Signatures that take too long to be checked on a shard: RSA and EC, tens of microseconds each.
//!
//! ```text
//!  shard -- CryptoJob::Signature --> pool of threads -- Mail::Signed --> the same shard
//!                                      |        ^
//!                                      '- keys -' fetched by the control thread, when a token names new ones
//! ```
//! The shard goes on meanwhile; the connection that waits is not read further.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::base::id::ShardId;
pub use crate::session::{Signed, TokenKind};

/// A token whose signature shall be checked away from the shards.
#[derive(Debug)]
pub struct SignatureJob {
    /// The token as it came.
    pub token: Box<str>,
    /// Which keys it is held against.
    pub kind: TokenKind,
    /// The home that gets the result.
    pub home: ShardId,
    /// The number of the job at that home.
    pub ticket: u64,
    /// Whether somebody still waits for it.
    pub interest: Interest,
}

/// The connection that a signature is checked for: its address, and whether it is still there. Clones share
/// it: the shard of the connection withdraws it, the home of the token counts its address, and the pool looks
/// at it before it works.
#[derive(Clone, Debug, Default)]
pub struct Interest(Arc<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    withdrawn: AtomicBool,
    address: Option<IpAddr>,
}

impl Interest {
    /// Bytes of heap, two counts of clones included.
    pub const HEAP_BYTES: usize =
        2 * size_of::<usize>() + size_of::<Waiting>().next_multiple_of(size_of::<usize>());

    /// A connection's. The address is of use where checks of one address are limited.
    pub fn new(address: Option<IpAddr>) -> Self {
        Self(Arc::new(Waiting { withdrawn: AtomicBool::new(false), address }))
    }

    /// The address whose checks this one counts among.
    pub fn address(&self) -> Option<IpAddr> {
        self.0.address
    }

    /// The connection has gone.
    pub fn withdraw(&self) {
        // A worker that misses it checks a signature in vain, and nothing else depends on it.
        self.0.withdrawn.store(true, Ordering::Relaxed);
    }

    /// No connection waits any more.
    pub fn is_withdrawn(&self) -> bool {
        self.0.withdrawn.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_clones_see_that_the_connection_has_gone() {
        let address = Some("192.0.2.1".parse().unwrap());
        let interest = Interest::new(address);
        let (home, pool) = (interest.clone(), interest.clone());
        assert!(!home.is_withdrawn() && home.address() == address);
        interest.withdraw();
        assert!(home.is_withdrawn() && pool.is_withdrawn());
    }
}
