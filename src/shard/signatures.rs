//! Signatures that take too long to be checked on a shard: RSA and EC, tens of microseconds each.
//!
//! ```text
//!  shard -- SignatureJob --> pool of threads -- Mail::Signed --> the same shard
//!                              |        ^
//!                              '- keys -' fetched by the control thread, when a token names new ones
//! ```
//! The shard goes on meanwhile; the connection that waits is not read further.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::Sender;

use crate::base::id::ShardId;

/// A token whose signature shall be checked away from the shards.
#[derive(Debug)]
pub struct SignatureJob {
    /// The token as it came.
    pub token: Box<str>,
    /// Which keys it is held against.
    pub kind: TokenKind,
    /// Who is told.
    pub home: ShardId,
    /// What the shard knows the job by.
    pub ticket: u64,
    /// Whether somebody still waits for it.
    pub interest: Interest,
}

/// Whether the connection that a signature is checked for is still there. Clones share it: the shard of the
/// connection withdraws it, and the pool looks at it before it works.
#[derive(Clone, Debug, Default)]
pub struct Interest(Arc<AtomicBool>);

impl Interest {
    /// Bytes of heap, two counts of clones included.
    pub const HEAP_BYTES: usize = 3 * size_of::<usize>();

    /// The connection has gone.
    pub fn withdraw(&self) {
        // Whoever misses it checks a signature in vain, and nothing else depends on it.
        self.0.store(true, Ordering::Relaxed);
    }

    /// Nobody waits any more.
    pub fn is_withdrawn(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a token is for: each kind may have keys of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TokenKind {
    /// A connection token.
    Connection,
    /// A subscription token.
    Subscription,
}

/// What came of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signed {
    /// The signature is good.
    Good {
        /// The token's `exp`, Unix seconds: nobody has to remember it for longer.
        until: Option<i64>,
    },
    /// The token is not to be accepted.
    Bad,
    /// The keys could not be fetched: a later attempt may find them.
    Unavailable,
}

/// Where jobs go.
#[derive(Debug)]
pub enum Signatures {
    /// Nowhere: whoever has one checks it at once. For the simulation, where nothing runs beside.
    Inline,
    /// To a pool of threads. Without a bound of its own, since each job holds a credit of the shard
    /// that asks until it is answered, and a shard has a bounded number of those.
    Pool(Sender<SignatureJob>),
}
