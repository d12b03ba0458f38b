//! `refresh` and `sub_refresh`: new tokens in place of those that expire.

use std::collections::BTreeSet;

use crate::base::expiry::Expiry;
use crate::base::steps;
use crate::edge::jwt::{ConnectionClaims, TokenFault};
use crate::proto::client::{Disconnect, ErrorCode, RefreshRequest, SubRefreshRequest};
use crate::session::effects::Effect;
use crate::session::facts::Facts;
use crate::session::stop::Stop;
use crate::session::{Renewal, Session, Sub};

impl Session {
    pub(super) fn refresh(
        &self,
        request: &RefreshRequest<'_>,
        facts: &Facts<'_>,
    ) -> Result<Effect<'static>, Stop> {
        // Where the application renews connections, a client can't.
        if request.token.is_empty() || facts.client.proxies.refresh.is_some() {
            let why = "refresh without a token, or where a proxy refreshes";
            return Err(Stop::Close(Disconnect::BadRequest, why));
        }
        let claims = facts.connection_claims(&request.token)?.map_err(|fault| {
            let close = match fault {
                TokenFault::Expired(_) => Disconnect::ConnectionExpired,
                TokenFault::Invalid(_) => Disconnect::InvalidToken,
            };
            Stop::Close(close, fault.flaw())
        })?;
        if claims.user != self.user {
            let why = "sub: the new token is for another user";
            return Err(Stop::Close(Disconnect::InvalidToken, why));
        }
        if !self.has_token_subs(&claims, facts) {
            let why = "subs: the new token has other channels";
            return Err(Stop::Close(Disconnect::InsufficientState, why));
        }
        let expires = claims.expire_at.map(Expiry::at);
        if expires.is_some_and(|expires| expires.is_past(facts.now)) {
            return Err(Stop::Error(ErrorCode::Expired, "expire_at: past"));
        }
        Ok(Effect::Refresh {
            expires,
            ttl: expires.map(|expires| expires.ttl(facts.now)),
            info: claims.info.unwrap_or_default(),
            meta: claims.meta.unwrap_or_default(),
        })
    }

    /// Whether the channels of a new token are those of the old one: nothing new, nothing missing.
    fn has_token_subs(&self, claims: &ConnectionClaims, facts: &Facts<'_>) -> bool {
        if claims.subs.len() > facts.client.channel_limit {
            return false;
        }
        let named = claims.subs.iter().map(|(channel, _)| facts.locals.find(channel));
        let named: Option<BTreeSet<u32>> = named.collect();
        named.is_some_and(|named| has_all(self.subs.as_slice(), &named))
    }

    pub(super) fn sub_refresh(
        &self,
        request: &SubRefreshRequest<'_>,
        facts: &Facts<'_>,
    ) -> Result<Effect<'static>, Stop> {
        if request.channel.is_empty() {
            return Err(Stop::Close(Disconnect::BadRequest, "a channel without a name"));
        }
        let Some(local) = self.subscribed_at(facts.locals.find(&request.channel)) else {
            return Err(Stop::Error(ErrorCode::PermissionDenied, "not subscribed"));
        };
        if request.kind != 0 {
            return Err(Stop::Error(ErrorCode::NotAvailable, "subscriptions of that type"));
        }
        // Where the application renews subscriptions, a client can't.
        let extra = self.sub_extra(local);
        if extra.is_some_and(|extra| extra.renewal != Renewal::Client) {
            let why = "sub_refresh where a proxy refreshes";
            return Err(Stop::Close(Disconnect::BadRequest, why));
        }
        if request.token.is_empty() {
            return Err(Stop::Error(ErrorCode::BadRequest, "sub_refresh without a token"));
        }
        let claims = facts.subscription_claims(&request.token)?.map_err(|fault| match fault {
            // Temporary, so that the client comes back with a new token.
            TokenFault::Expired(why) => Stop::TemporaryError(ErrorCode::TokenExpired, why),
            TokenFault::Invalid(why) => Stop::Close(Disconnect::InvalidToken, why),
        })?;
        let is_for_client = claims.client.is_empty() || claims.client == facts.client_id().as_str();
        if claims.user != self.user || claims.channel != request.channel || !is_for_client {
            let why = "sub, channel or client: the token is for another one";
            return Err(Stop::Close(Disconnect::InvalidToken, why));
        }
        if claims.is_past(facts.now) {
            return Err(Stop::Error(ErrorCode::Expired, "expire_at: past"));
        }
        let expires = claims.expire_at.map(Expiry::at);
        let ttl = expires.map(|expires| expires.ttl(facts.now));
        Ok(Effect::SubRefresh { local, expires, ttl })
    }
}

/// Whether the channels that a new token names are all there by the server, and no others by the token before.
fn has_all(subs: &[Sub], named: &BTreeSet<u32>) -> bool {
    steps::take(subs.len());
    let by_server = subs.iter().filter(|sub| sub.flags.server() && named.contains(&sub.channel));
    let by_token = subs.iter().filter(|sub| sub.flags.token());
    by_server.count() == named.len() && by_token.into_iter().all(|sub| named.contains(&sub.channel))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::proto::client::Request;
    use crate::session::testing::{NOW, Scene, proxy, session, token};
    use crate::session::{SubFlags, SubState};

    fn refresh(scene: &Scene, session: &Session, claims: &Value) -> Result<Option<u32>, Stop> {
        let request = Request::Refresh(RefreshRequest { token: token(claims).into() });
        match session.handle(&request, None, &scene.facts())? {
            Effect::Refresh { ttl, .. } => Ok(ttl),
            other => panic!("{other:?}"),
        }
    }

    fn sub_refresh(scene: &Scene, session: &Session, claims: &Value) -> Result<Option<u32>, Stop> {
        let token = if claims.is_null() { String::new() } else { token(claims) };
        let channel = "news".into();
        let request = SubRefreshRequest { channel, token: token.into(), ..<_>::default() };
        match session.handle(&Request::SubRefresh(request), None, &scene.facts())? {
            Effect::SubRefresh { ttl, .. } => Ok(ttl),
            other => panic!("{other:?}"),
        }
    }

    fn close(result: Result<Option<u32>, Stop>) -> Disconnect {
        match result {
            Err(Stop::Close(close, _)) => close,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_connection_is_renewed_by_a_token_of_its_user() {
        let (mut scene, session) = (Scene::default(), session("alice"));
        let good = json!({"sub": "alice", "exp": NOW.0 + 60});
        assert_eq!(refresh(&scene, &session, &good), Ok(Some(60)));
        assert_eq!(refresh(&scene, &session, &json!({"sub": "alice"})), Ok(None));
        let other = refresh(&scene, &session, &json!({"sub": "bob"}));
        assert_eq!(close(other), Disconnect::InvalidToken);
        let late = refresh(&scene, &session, &json!({"sub": "alice", "exp": NOW.0 - 1}));
        assert_eq!(close(late), Disconnect::ConnectionExpired);
        let more = refresh(&scene, &session, &json!({"sub": "alice", "channels": ["news"]}));
        assert_eq!(close(more), Disconnect::InsufficientState);
        scene.client.proxies.refresh = Some(proxy());
        assert_eq!(close(refresh(&scene, &session, &good)), Disconnect::BadRequest);
    }

    #[test]
    fn a_subscription_is_renewed_by_a_token_of_its_user_and_channel() {
        let (mut scene, mut session) = (Scene::default(), session("alice"));
        let claims = json!({"sub": "alice", "channel": "news", "exp": NOW.0 + 60});
        let stop = sub_refresh(&scene, &session, &claims);
        assert!(matches!(stop, Err(Stop::Error(ErrorCode::PermissionDenied, _))), "{stop:?}");
        let local = scene.subscribe(&mut session, "news");
        assert_eq!(sub_refresh(&scene, &session, &claims), Ok(Some(60)));
        let stop = sub_refresh(&scene, &session, &Value::Null);
        assert!(matches!(stop, Err(Stop::Error(ErrorCode::BadRequest, _))), "{stop:?}");
        for other in [
            json!({"sub": "bob", "channel": "news"}),
            json!({"sub": "alice", "channel": "other"}),
            json!({"sub": "alice", "channel": "news", "client": "other"}),
        ] {
            let stop = sub_refresh(&scene, &session, &other);
            assert_eq!(close(stop), Disconnect::InvalidToken, "{other}");
        }
        let late = json!({"sub": "alice", "channel": "news", "exp": NOW.0 - 1});
        let stop = sub_refresh(&scene, &session, &late);
        assert!(matches!(stop, Err(Stop::TemporaryError(ErrorCode::TokenExpired, _))), "{stop:?}");
        session.sub_extra_or_new(local).renewal = Renewal::Server;
        let stop = sub_refresh(&scene, &session, &claims);
        assert_eq!(close(stop), Disconnect::BadRequest);
    }

    #[test]
    fn the_channels_of_a_new_token_are_those_of_the_old_one() {
        let sub = |channel, server, token| {
            let mut flags = SubFlags::default();
            flags.set_server(server);
            flags.set_token(token);
            Sub { channel, place: 0, state: SubState::Live, flags }
        };
        // Of the token, of the server alone, and of the client.
        let subs = [sub(1, true, true), sub(2, true, false), sub(3, false, false)];
        for (named, expected) in [
            (&[1][..], true),
            (&[1, 2], true),
            (&[2], false),
            (&[], false),
            (&[1, 3], false),
            (&[1, 4], false),
        ] {
            let named = named.iter().copied().collect();
            assert_eq!(has_all(&subs, &named), expected, "{named:?}");
        }
        let many: Vec<Sub> = (0..5_000).map(|channel| sub(channel, true, true)).collect();
        let (all, steps) = steps::of(|| has_all(&many, &(0..5_000).collect()));
        assert!(all && steps <= 5_000);
    }
}
