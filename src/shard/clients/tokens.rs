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

use crate::base::limits::LARGE_ANSWER_CREDITS;
use crate::edge::jwt::TokenKeys;
use crate::io::Driver;
use crate::session::{Stop, Verdict, WaitsFor};
use crate::shard::clients::Clients;
use crate::shard::clients::aside::Check;
use crate::shard::clients::signatures::{Interest, Signed, TokenKind};
use crate::shard::mail::{Asker, Mail};
use crate::shard::node_state::NodeState;
use crate::shard::outlets::Outlets;

impl NodeState {
    /// The keys of this kind of token: connection tokens' for both, unless subscription tokens have
    /// their own.
    pub fn keys(&self, kind: TokenKind) -> &TokenKeys {
        match (kind, &self.rules.subscription_keys) {
            (TokenKind::Subscription, Some(keys)) => keys,
            _ => &self.rules.keys,
        }
    }
}

impl Clients {
    /// Has a token's signature checked by the token's home, for a command that stops meanwhile.
    pub(crate) fn request_check<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        index: u32,
        token: &str,
        kind: TokenKind,
    ) -> Stop {
        // A deferred command may come before the one whose check is out.
        if self.asides.is_pending(index) {
            return Stop::Wait(WaitsFor::TokenCheck);
        }
        let hash = out.cx.node.names.hash(token);
        let home = out.cx.node.names.home(hash);
        let credits = match out.spend(home, LARGE_ANSWER_CREDITS) {
            Ok(credits) => credits,
            Err(stop) => return stop,
        };
        let asker = Asker { credits, ..Asker::of(out.net[index].key(index)) };
        // Asked of the kernel only where it counts.
        let is_limited = out.cx.node.addresses.limits_checks();
        let interest = Interest::new(if is_limited { out.net.client_address(index) } else { None });
        self.asides.entry(index).check = Some(Check::Requested(interest.clone()));
        out.post.send(out.cx, home, Mail::Verify { token: token.into(), kind, asker, interest });
        Stop::Wait(WaitsFor::TokenCheck)
    }

    /// The verdict has come: the command goes on.
    pub(crate) fn verified<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        asker: Asker,
        hash: u64,
        signed: Signed,
    ) {
        let Some(conn) = out.net.conn(asker.conn) else { return };
        if conn.socket.is_none() {
            return;
        }
        let check = Check::Done(Verdict { hash, signed });
        self.asides.entry(asker.conn.index).check = Some(check);
        out.net.resume(asker.conn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::fixture::Plan;

    #[test]
    fn subscription_tokens_have_the_keys_of_connection_tokens_without_their_own() {
        let cx = Plan::default().cx();
        let (connection, subscription) =
            (cx.node.keys(TokenKind::Connection), cx.node.keys(TokenKind::Subscription));
        assert!(std::ptr::eq(connection, subscription));
        assert!(std::ptr::eq(connection, &cx.node.rules.keys));
    }
}
