//! Cryptography that takes too long for a shard's thread, tens of microseconds and more: a pool of threads
//! does it, and the shard goes on meanwhile.
//!
//! ```text
//!  shard -- CryptoJob --> pool of threads -- mail with the result --> the same shard
//! ```
//! A kind of work is a variant of [`CryptoJob`] and a mail for its result.

use crossbeam_channel::Sender;

use crate::base::id::ShardId;
use crate::shard::clients::signatures::SignatureJob;

/// Work for the pool.
#[derive(Debug)]
pub enum CryptoJob {
    /// The signature of a token is to be checked. Result: [`Mail::Signed`](crate::shard::mail::Mail::Signed).
    Signature(SignatureJob),
}

impl CryptoJob {
    /// The shard that waits for the result.
    pub fn shard(&self) -> ShardId {
        match self {
            Self::Signature(job) => job.home,
        }
    }
}

/// Where jobs go.
#[derive(Debug)]
pub enum Crypto {
    /// Nowhere: the shard does the work at once. For the simulation, where nothing runs beside.
    Inline,
    /// To a pool of threads. The queue has no bound of its own, since each job holds a credit of the shard
    /// that waits until it is answered, and a shard has a bounded number of those.
    Pool(Sender<CryptoJob>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::clients::signatures::{Interest, TokenKind};

    #[test]
    fn a_job_names_the_shard_that_waits_for_it() {
        let job = CryptoJob::Signature(SignatureJob {
            token: "a.b.c".into(),
            kind: TokenKind::Connection,
            home: ShardId(3),
            ticket: 7,
            interest: Interest::default(),
        });
        assert_eq!(job.shard(), ShardId(3));
    }
}
