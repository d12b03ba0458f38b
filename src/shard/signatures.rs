//! Signatures that are too expensive for a shard: what is asked, and where it goes.

use crossbeam_channel::Sender;

use crate::base::id::ShardId;

/// Which keys a token is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenKind {
    /// A connection token.
    Connection,
    /// A subscription token.
    Subscription,
}

/// A token whose signature shall be checked away from the shards. Answer: `Mail::Signed`.
#[derive(Debug)]
pub struct SignatureJob {
    /// The token.
    pub token: Box<str>,
    /// Which keys it is held against.
    pub kind: TokenKind,
    /// Who is told.
    pub home: ShardId,
    /// Names the question there.
    pub ticket: u64,
}

/// What came of checking a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signed {
    /// One of the keys made it.
    Good {
        /// When the token expires, Unix seconds; `None` is never.
        until: Option<i64>,
    },
    /// None of them did.
    Bad,
    /// The keys can't be had now.
    Unavailable,
}

/// Where jobs go in.
#[derive(Debug)]
pub enum Signatures {
    /// Nowhere: whoever asks checks it at once (simulation).
    Inline,
    /// To threads that check one after the other. The queue has no bound of its own: each job holds a
    /// credit of the shard that asks.
    Pool(Sender<SignatureJob>),
}
