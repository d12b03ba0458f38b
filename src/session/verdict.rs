//! Kinds of tokens, and results of checks that are made elsewhere: values that facts and stops carry.

/// The use of a token: each kind may have keys of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TokenKind {
    /// A connection token.
    Connection,
    /// A subscription token.
    Subscription,
}

/// Result of the check of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signed {
    /// The signature is good.
    Good {
        /// The token's `exp`, Unix seconds: no home has to remember it for longer.
        until: Option<i64>,
    },
    /// The token is not accepted.
    Bad,
    /// The keys could not be fetched: a later attempt may find them.
    Unavailable,
    /// Not checked: the client's address has as many checks open as it may have.
    TooMany,
}

/// The result for one token, kept until the command that stopped for it is handled again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Hash of the token.
    pub hash: u64,
    /// Result of the check.
    pub signed: Signed,
}
