//! Tokens of a command: claims that can be read at once, and signatures that are checked elsewhere.

use crate::edge::jwt::{ConnectionClaims, SubscriptionClaims, TokenFault};
use crate::proto::client::ErrorCode;
use crate::session::facts::Facts;
use crate::session::stop::Stop;
use crate::session::verdict::{Signed, TokenKind};

/// No configured key made the signature.
const NOT_SIGNED: TokenFault = TokenFault::Invalid("signature: not made with a configured key");

impl Facts<'_> {
    /// The claims of a connection token, or its fault.
    ///
    /// # Errors
    /// The signature has to be checked first, or could not be.
    pub(super) fn connection_claims(
        &self,
        token: &str,
    ) -> Result<Result<ConnectionClaims, TokenFault>, Stop> {
        let keys = self.connection_keys;
        if let Some(claims) = keys.connection(token, self.now) {
            return Ok(claims);
        }
        Ok(match self.is_signed(token, TokenKind::Connection)? {
            true => keys.connection_signed(token, self.now),
            false => Err(NOT_SIGNED),
        })
    }

    /// The claims of a subscription token, or its fault.
    ///
    /// # Errors
    /// The signature has to be checked first, or could not be.
    pub(super) fn subscription_claims(
        &self,
        token: &str,
    ) -> Result<Result<SubscriptionClaims, TokenFault>, Stop> {
        let keys = self.subscription_keys;
        if let Some(claims) = keys.subscription(token, self.now) {
            return Ok(claims);
        }
        Ok(match self.is_signed(token, TokenKind::Subscription)? {
            true => keys.subscription_signed(token, self.now),
            false => Err(NOT_SIGNED),
        })
    }

    /// Whether a configured key made a token's signature. A verdict about another token is of no use:
    /// this one is checked, too.
    fn is_signed(&self, token: &str, kind: TokenKind) -> Result<bool, Stop> {
        let verdict = self.verdict.filter(|verdict| verdict.hash == self.names.hash(token));
        match verdict.ok_or(Stop::Verify(kind))?.signed {
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Verdict;
    use crate::session::testing::Scene;

    #[test]
    fn a_verdict_holds_for_its_token_alone() {
        let scene = Scene::default();
        let hash = |token| scene.names.hash(token);
        let kind = TokenKind::Subscription;
        let signed = |verdict: Option<Verdict>| {
            let facts = Facts { verdict, ..scene.facts() };
            facts.is_signed("a.b.c", kind)
        };
        let of = |token, signed| Some(Verdict { hash: hash(token), signed });
        assert_eq!(signed(None), Err(Stop::Verify(kind)));
        assert_eq!(signed(of("x.y.z", Signed::Bad)), Err(Stop::Verify(kind)));
        assert_eq!(signed(of("a.b.c", Signed::Bad)), Ok(false));
        assert_eq!(signed(of("a.b.c", Signed::Good { until: None })), Ok(true));
        for (result, code) in [
            (Signed::Unavailable, ErrorCode::Internal),
            (Signed::TooMany, ErrorCode::TooManyRequests),
        ] {
            let stop = signed(of("a.b.c", result));
            assert!(matches!(stop, Err(Stop::Error(of, _)) if of == code), "{stop:?}");
        }
    }
}
