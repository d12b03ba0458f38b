//! `subscribe` and `unsubscribe`, and subscriptions that the server makes: permissions, and the
//! properties of a new subscription (client protocol, 14).

use std::sync::Arc;

use compact_str::CompactString;

use crate::base::expiry::Expiry;
use crate::base::filter::FilterNode;
use crate::edge::channels::{
    Asked, ChannelRules, Granted, Namespace, OWN_CHANNEL, RecoveryMode, Subscriber,
};
use crate::edge::jwt::{SubOptions, SubscriptionClaims, TokenFault};
use crate::hub::filter::Filter;
use crate::hub::history::Since;
use crate::proto::client::{Disconnect, ErrorCode, Reply, SubscribeRequest};
use crate::session::app::{AppAnswer, AppResult};
use crate::session::effects::{Effect, NewSub};
use crate::session::facts::Facts;
use crate::session::stop::Stop;
use crate::session::{Renewal, ServerSub, Session, SubFlags};

/// `SubscribeRequest.type` of channels that the server polls for its subscribers.
const KIND_SHARED_POLL: i32 = 4;

/// Bit 1 of `SubscribeRequest.flag`: error 112 instead of a result that isn't recovered.
const FLAG_STRICT_RECOVERY: i64 = 2;

/// A token's claims, or its fault.
type Token = Result<SubscriptionClaims, TokenFault>;

impl Session {
    pub(super) fn subscribe<'a>(
        &self,
        request: &'a SubscribeRequest<'_>,
        answer: Option<&'a AppAnswer>,
        facts: &Facts<'_>,
    ) -> Result<Effect<'a>, Stop> {
        let channel: &'a str = &request.channel;
        let namespace = self.may_join(request, facts)?;
        let token = match request.token.is_empty() {
            true => None,
            false => Some(facts.subscription_claims(&request.token)?),
        };
        let proxy = facts.channels.subscribe_proxy(namespace, channel, &self.user);
        let (options, by_application) = match proxy.filter(|_| token.is_none()) {
            None => {
                self.permits(namespace, channel, token.as_ref(), facts)?;
                (token.and_then(Result::ok).map(options_of_token), false)
            }
            Some(proxy) => {
                let answer = answer.ok_or_else(|| Stop::Call(Arc::clone(proxy)))?;
                (Some(options_of_result(answer.permission()?)), true)
            }
        };
        let is_past = |at: i64| Expiry::at(at).is_past(facts.now);
        let expire_at = options.as_ref().and_then(|options| options.expire_at);
        if by_application && expire_at.is_some_and(is_past) {
            return Err(Stop::Error(ErrorCode::Expired, "expire_at of the proxy: past"));
        }
        let filter = match &request.tf {
            Some(node) => Some(filter(namespace, node)?),
            None => None,
        };
        let overrides = options.as_ref().map(|options| &options.overrides);
        // Where the application decides, the client's wishes don't count.
        let asked = if by_application { Asked::default() } else { asked_by(request) };
        let granted = namespace.grant(asked, &self.user, facts.client.insecure, overrides);
        let mut flags = SubFlags::default();
        // A patch can't build on a publication that a filter keeps back.
        flags.set_delta(
            request.delta == "fossil" && namespace.delta_allowed && request.tf.is_none(),
        );
        flags.set_recovering(request.recover);
        flags.set_strict(request.flag & FLAG_STRICT_RECOVERY != 0);
        let SubOptions { expire_at, info, data, .. } = options.unwrap_or_default();
        if !facts.may_show(data.as_deref().unwrap_or_default()) {
            return Ok(Effect::Unfit);
        }
        let mut sub = NewSub {
            info: info.unwrap_or_default(),
            data: data.unwrap_or_default(),
            expires: expire_at.map(Expiry::at),
            filter,
            since: request.recover.then(|| since_of(request)),
            ..NewSub::of(channel, namespace.index, granted, flags)
        };
        sub.take_over(namespace);
        Ok(Effect::Subscribe(sub))
    }

    /// The checks that stand before tokens and proxy calls. Returns the namespace of the channel.
    fn may_join<'f>(
        &self,
        request: &SubscribeRequest<'_>,
        facts: &Facts<'f>,
    ) -> Result<&'f Namespace, Stop> {
        let channel: &str = &request.channel;
        if channel.is_empty() {
            return Err(Stop::Close(Disconnect::BadRequest, "a channel without a name"));
        }
        if request.kind == KIND_SHARED_POLL {
            return Err(Stop::Error(ErrorCode::NotAvailable, "shared polls"));
        }
        if !request.delta.is_empty() && request.delta != "fossil" {
            return Err(Stop::Close(Disconnect::BadRequest, "delta: only fossil is known"));
        }
        facts.channels.check_length(channel)?;
        if facts.is_reserved || self.subscribed_at(facts.locals.find(channel)).is_some() {
            return Err(Stop::Error(ErrorCode::AlreadySubscribed, ""));
        }
        if facts.is_short {
            return Err(Stop::NoMemory);
        }
        if self.subs.len() >= facts.client.channel_limit {
            return Err(Stop::Error(ErrorCode::LimitExceeded, "client.channel_limit"));
        }
        let namespace = facts.channels.resolve(channel)?;
        // Maps: no namespace here is one.
        match request.kind {
            0 => Ok(namespace),
            _ => Err(Stop::Error(ErrorCode::PermissionDenied, "no namespace is a map")),
        }
    }

    /// Whether namespace and token permit a subscription.
    fn permits(
        &self,
        namespace: &Namespace,
        channel: &str,
        token: Option<&Token>,
        facts: &Facts<'_>,
    ) -> Result<(), Stop> {
        // Sealed only for the few tokens that name a client.
        let client = match token {
            Some(Ok(claims)) if !claims.client.is_empty() => Some(facts.client_id()),
            _ => None,
        };
        let client = client.as_ref().map_or("", |client| client.as_str());
        let subscriber = Subscriber { user: &self.user, client, insecure: facts.client.insecure };
        Ok(facts.channels.may_subscribe(namespace, channel, subscriber, token, facts.now)?)
    }

    pub(super) fn unsubscribe<'a>(
        &self,
        channel: &'a str,
        facts: &Facts<'_>,
    ) -> Result<Effect<'a>, Stop> {
        if channel.is_empty() {
            return Err(Stop::Close(Disconnect::BadRequest, "a channel without a name"));
        }
        Ok(match self.subscribed_at(facts.locals.find(channel)) {
            Some(local) => Effect::Unsubscribe { channel, local },
            None => Effect::Reply(Reply::Unsubscribe),
        })
    }

    /// A subscription that the server makes. `polls`: the connection is a poll, which comes and goes
    /// with each request, so no other client sees it.
    pub fn server_sub<'a>(
        &self,
        sub: &'a ServerSub,
        channels: &ChannelRules,
        insecure: bool,
        polls: bool,
    ) -> NewSub<'a> {
        let namespace = channels.namespace(sub.namespace);
        let mut granted = namespace.grant(sub.asked, &self.user, insecure, Some(&sub.overrides));
        if polls {
            (granted.presence, granted.announces, granted.join_leave) = (false, false, false);
        }
        let mut flags = SubFlags::default();
        flags.set_server(true);
        flags.set_hidden(sub.channel == OWN_CHANNEL);
        flags.set_token(sub.by_token);
        flags.set_delta(sub.delta && namespace.delta_allowed);
        flags.set_recovering(sub.since.is_some());
        let mut new = NewSub {
            info: sub.info.clone(),
            data: sub.data.clone(),
            expires: sub.expires,
            since: sub.since.clone(),
            as_pushes: !self.is_connecting(),
            ..NewSub::of(&sub.channel, namespace.index, granted, flags)
        };
        new.take_over(namespace);
        new
    }
}

impl<'a> NewSub<'a> {
    fn of(channel: &'a str, namespace: u16, granted: Granted, flags: SubFlags) -> Self {
        Self {
            channel,
            namespace,
            granted,
            flags,
            info: Box::default(),
            data: Box::default(),
            expires: None,
            renewal: Renewal::Client,
            filter: None,
            since: None,
            latest: false,
            as_pushes: false,
        }
    }

    /// Takes over what the namespace and the grant decide for all of its subscriptions.
    fn take_over(&mut self, namespace: &Namespace) {
        let Granted { positioned, recoverable, join_leave, presence, announces } = self.granted;
        self.flags.set_positioned(positioned);
        self.flags.set_recoverable(recoverable);
        self.flags.set_joins(join_leave);
        self.flags.set_member(presence || announces);
        self.flags.set_plain(namespace.uncompressed);
        if namespace.sub_refresh_proxy.is_some() {
            self.renewal = Renewal::Server;
        }
        self.latest = namespace.recovery_mode == RecoveryMode::Cache;
        self.since = match self.since.take() {
            None if recoverable && self.latest && namespace.auto_cache_recover => {
                self.flags.set_recovering(true);
                Some(Since::default())
            }
            since => since.filter(|_| recoverable),
        };
    }
}

fn options_of_token(claims: SubscriptionClaims) -> SubOptions {
    let SubscriptionClaims { info, data, overrides, expire_at, .. } = claims;
    SubOptions { info, data, overrides, expire_at }
}

fn options_of_result(result: &AppResult) -> SubOptions {
    SubOptions {
        info: result.claims.info.clone(),
        data: result.data.clone(),
        overrides: result.overrides,
        expire_at: result.claims.expire_at,
    }
}

/// The filter that a request carries (client protocol, section 22).
fn filter(namespace: &Namespace, node: &FilterNode) -> Result<Filter, Stop> {
    if !namespace.allow_tags_filter {
        let why = "tf: allow_tags_filter is off in the namespace";
        return Err(Stop::Error(ErrorCode::BadRequest, why));
    }
    Filter::new(node).map_err(|_| Stop::Error(ErrorCode::BadRequest, "tf: no valid filter"))
}

/// The position that a request names.
pub(super) fn since_of(request: &SubscribeRequest<'_>) -> Since {
    Since { offset: request.offset, epoch: CompactString::new(&request.epoch) }
}

/// The wishes of a client on top of a subscription.
pub(super) fn asked_by(request: &SubscribeRequest<'_>) -> Asked {
    Asked {
        positioned: request.positioned,
        recoverable: request.recoverable,
        join_leave: request.join_leave,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::proto::client::{ChannelRequest, Request};
    use crate::session::testing::{NOW, Scene, proxy, session, token};

    fn request() -> SubscribeRequest<'static> {
        SubscribeRequest { channel: "news".into(), ..SubscribeRequest::default() }
    }

    /// Flags, expiry and `chan_info` of a subscription.
    type Requested = (SubFlags, Option<Expiry>, Box<[u8]>);

    /// The subscription that comes of a request, without its borrows.
    fn subscribe(
        scene: &Scene,
        request: SubscribeRequest<'_>,
        answer: Option<&AppAnswer>,
    ) -> Result<Requested, Stop> {
        let request = Request::Subscribe(request);
        match session("alice").handle(&request, answer, &scene.facts())? {
            Effect::Subscribe(sub) => Ok((sub.flags, sub.expires, sub.info)),
            other => panic!("{other:?}"),
        }
    }

    fn code<T: std::fmt::Debug>(result: Result<T, Stop>) -> ErrorCode {
        match result {
            Err(Stop::Error(code, _)) => code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn bounds_stand_before_permissions() {
        let mut scene = Scene::default();
        assert_eq!(code(subscribe(&scene, request(), None)), ErrorCode::PermissionDenied);
        scene.is_short = true;
        assert_eq!(subscribe(&scene, request(), None).err(), Some(Stop::NoMemory));
        scene.is_short = false;
        scene.client.channel_limit = 0;
        assert_eq!(code(subscribe(&scene, request(), None)), ErrorCode::LimitExceeded);
        scene.is_reserved = true;
        assert_eq!(code(subscribe(&scene, request(), None)), ErrorCode::AlreadySubscribed);
        let polled = SubscribeRequest { kind: KIND_SHARED_POLL, ..request() };
        assert_eq!(code(subscribe(&scene, polled, None)), ErrorCode::NotAvailable);
    }

    #[test]
    fn a_channel_is_subscribed_to_once_and_left_once() {
        let mut scene = Scene::default();
        let mut session = session("alice");
        let leave = Request::Unsubscribe(ChannelRequest { channel: "news".into() });
        let effect = session.handle(&leave, None, &scene.facts());
        assert!(matches!(effect, Ok(Effect::Reply(Reply::Unsubscribe))), "{effect:?}");
        let at = scene.subscribe(&mut session, "news");
        let effect = session.handle(&leave, None, &scene.facts());
        assert!(matches!(effect, Ok(Effect::Unsubscribe { local, .. }) if local == at));
        let join = Request::Subscribe(request());
        let stop = session.handle(&join, None, &scene.facts());
        assert_eq!(code(stop), ErrorCode::AlreadySubscribed);
    }

    #[test]
    fn a_token_permits_its_user_and_its_channel() {
        let scene = Scene::default();
        let with = |claims| SubscribeRequest { token: token(&claims).into(), ..request() };
        let good = json!({"sub": "alice", "channel": "news", "exp": NOW.0 + 9, "info": 1});
        let (_, expires, info) = subscribe(&scene, with(good), None).unwrap();
        assert_eq!((expires, &*info), (Some(Expiry::at(NOW.0 + 9)), &b"1"[..]));
        let other = json!({"sub": "bob", "channel": "news"});
        let stop = subscribe(&scene, with(other), None).err();
        assert!(matches!(stop, Some(Stop::Close(Disconnect::InvalidToken, _))), "{stop:?}");
    }

    #[test]
    fn the_application_decides_in_place_of_the_client() {
        let mut scene = Scene::default();
        scene.namespace(|of| {
            of.subscribe_proxy = Some(proxy());
            (of.history_size, of.history_ttl_ms) = (5, 1000);
            of.allow_positioning = true;
        });
        let wishes = || SubscribeRequest { positioned: true, ..request() };
        assert_eq!(subscribe(&scene, wishes(), None).err(), Some(Stop::Call(proxy())));
        let answer = |expire_at| {
            let mut result = AppResult::default();
            result.claims.expire_at = expire_at;
            AppAnswer::Result(Box::new(result))
        };
        let (flags, ..) = subscribe(&scene, wishes(), Some(&answer(None))).unwrap();
        assert!(!flags.positioned());
        let late = answer(Some(NOW.0 - 1));
        assert_eq!(code(subscribe(&scene, wishes(), Some(&late))), ErrorCode::Expired);
        scene.namespace(|of| {
            (of.history_size, of.history_ttl_ms) = (5, 1000);
            of.allow_positioning = true;
            of.allow_subscribe_for_client = true;
        });
        let (flags, ..) = subscribe(&scene, wishes(), None).unwrap();
        assert!(flags.positioned());
    }

    #[test]
    fn a_subscription_of_the_servers_is_marked_and_a_poll_is_not_seen() {
        let mut scene = Scene::default();
        scene.namespace(|of| (of.presence, of.join_leave) = (true, true));
        let sub = ServerSub { channel: "news".into(), by_token: true, ..ServerSub::default() };
        let session = session("alice");
        let of = |polls| session.server_sub(&sub, &scene.channels, false, polls);
        let flags = of(false).flags;
        assert!(flags.server() && flags.token() && flags.member() && !flags.hidden());
        assert!(!of(true).flags.member());
        // No connect waits for it, so no reply announces it.
        assert!(of(false).as_pushes);
    }
}
