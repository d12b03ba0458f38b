//! Tokens: what is cheap is checked here; signatures that are not go to the token's home, which
//! remembers the good ones, and from there to the pool.
//!
//! ```text
//!  command with a token -> [cheap?] -> claims
//!        '-> paused, Verify --> home(hash(token)) -> [known?] --> Verified -> the command again
//!                                   '-> job -> pool --> Signed --^
//! ```
//! A paused connection keeps the command that it stopped at; with the verdict at hand it is simply
//! handled once more, so that nothing of a half-done command has to be kept.

use std::sync::Arc;

use crate::base::limits::LARGE_ANSWER_CREDITS;
use crate::base::time::UnixSeconds;
use crate::edge::jwt::{ConnectionClaims, SubscriptionClaims, TokenFault, TokenKeys};
use crate::io::Driver;
use crate::proto::client::ErrorCode;
use crate::session::WaitsFor;
use crate::shard::clients::aside::Check;
use crate::shard::clients::commands::Stop;
use crate::shard::clients::signatures::{Interest, Signed, TokenKind};
use crate::shard::mail::{Asker, Mail};
use crate::shard::{Node, Shard};

/// None of the public keys made the signature.
const NOT_SIGNED: TokenFault = TokenFault::Invalid("signature: not made with a configured key");

/// An answer about the signature of the token that a connection is paused for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Verdict {
    /// Which token it is about.
    hash: u64,
    signed: Signed,
}

impl Node {
    /// The keys of this kind of token: connection tokens' for both, unless subscription tokens have
    /// their own.
    pub fn keys(&self, kind: TokenKind) -> &TokenKeys {
        match (kind, &self.rules.subscription_keys) {
            (TokenKind::Subscription, Some(keys)) => keys,
            _ => &self.rules.keys,
        }
    }
}

impl<D: Driver> Shard<D> {
    /// The claims of a connection token.
    pub(crate) fn connection_claims(
        &mut self,
        index: u32,
        token: &str,
        now: UnixSeconds,
    ) -> Result<Result<ConnectionClaims, TokenFault>, Stop> {
        let node = Arc::clone(&self.cx.node);
        let keys = node.keys(TokenKind::Connection);
        if let Some(claims) = keys.connection(token, now) {
            return Ok(claims);
        }
        Ok(match self.is_signed(index, token, TokenKind::Connection)? {
            true => keys.connection_signed(token, now),
            false => Err(NOT_SIGNED),
        })
    }

    /// The claims of a subscription token.
    pub(crate) fn subscription_claims(
        &mut self,
        index: u32,
        token: &str,
    ) -> Result<Result<SubscriptionClaims, TokenFault>, Stop> {
        let node = Arc::clone(&self.cx.node);
        let now = self.cx.unix;
        let keys = node.keys(TokenKind::Subscription);
        if let Some(claims) = keys.subscription(token, now) {
            return Ok(claims);
        }
        Ok(match self.is_signed(index, token, TokenKind::Subscription)? {
            true => keys.subscription_signed(token, now),
            false => Err(NOT_SIGNED),
        })
    }

    /// Whether one of the keys made a token's signature; asks for it and stops the command when that
    /// isn't known.
    fn is_signed(&mut self, index: u32, token: &str, kind: TokenKind) -> Result<bool, Stop> {
        let hash = self.cx.node.names.hash(token);
        if self.clients.asides.is_pending(index) {
            return Err(Stop::Wait(WaitsFor::TokenCheck));
        }
        if let Some(Check::Done(verdict)) = self.clients.asides.take(index, |of| of.check.take())
            && verdict.hash == hash
        {
            return match verdict.signed {
                Signed::Good { .. } => Ok(true),
                Signed::Bad => Ok(false),
                Signed::Unavailable => Err(Stop::Error(
                    ErrorCode::Internal,
                    "kid: unknown, and the JWKS endpoint has no such key or doesn't answer",
                )),
                Signed::TooMany => Err(Stop::Error(
                    ErrorCode::TooManyRequests,
                    "roost.signature_checks_per_address is reached",
                )),
            };
        }
        let home = self.cx.node.names.home(hash);
        let credits = self.spend(home, LARGE_ANSWER_CREDITS)?;
        let asker = Asker { credits, ..Asker::of(self.net.conns[index as usize].key(index)) };
        // Asked of the kernel only where it counts.
        let is_limited = self.cx.node.addresses.limits_checks();
        let interest =
            Interest::new(if is_limited { self.net.client_address(index) } else { None });
        self.clients.asides.entry(index).check = Some(Check::Requested(interest.clone()));
        self.post.send(&self.cx, home, Mail::Verify { token: token.into(), kind, asker, interest });
        Err(Stop::Wait(WaitsFor::TokenCheck))
    }

    /// The verdict has come: the command goes on.
    pub(crate) fn verified(&mut self, asker: Asker, hash: u64, signed: Signed) {
        let Some(conn) = self.net.conn(asker.conn) else { return };
        if conn.socket.is_none() {
            return;
        }
        let check = Check::Done(Verdict { hash, signed });
        self.clients.asides.entry(asker.conn.index).check = Some(check);
        self.net.resume(asker.conn);
    }
}
