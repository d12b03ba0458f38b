//! `connect`: the user of a connection, and the subscriptions that come with it (client protocol, 20).

use std::collections::BTreeSet;
use std::sync::Arc;

use compact_str::CompactString;

use crate::base::expiry::Expiry;
use crate::base::steps;
use crate::edge::channels::{ChannelRules, NameFault, OWN_CHANNEL, Subscriber};
use crate::edge::jwt::{ConnectionClaims, SubOptions, TokenFault};
use crate::proto::client::{ConnectRequest, Disconnect, ErrorCode};
use crate::session::app::AppAnswer;
use crate::session::facts::Facts;
use crate::session::rules::AdminRules;
use crate::session::stop::Stop;
use crate::session::subscribe::{asked_by, since_of};
use crate::session::{Connecting, ServerSub};

/// The way on which a connection came.
#[derive(Clone, Copy, Default)]
pub struct Arrival<'f> {
    /// The user that a header of its request names.
    pub header_user: Option<&'f str>,
    /// It is a poll: it gets publications behind positions alone.
    pub is_poll: bool,
    /// It came to the endpoint of administrators.
    pub is_admin: bool,
    /// Rules for administrators, where there are some.
    pub admin: Option<&'f AdminRules>,
}

/// The result of a good `connect`.
#[derive(Debug)]
pub enum Opening {
    /// A session begins.
    Session(NewSession),
    /// The data for the client is not JSON, and the client speaks JSON: the connection is closed.
    Unfit,
}

/// A session that is about to begin.
#[derive(Debug)]
pub struct NewSession {
    /// User id; empty is anonymous.
    pub user: CompactString,
    /// When the connection expires; `None` is never.
    pub expires: Option<Expiry>,
    /// `conn_info`, for others.
    pub info: Option<Box<[u8]>>,
    /// `meta`, for proxies.
    pub meta: Option<Box<[u8]>>,
    /// The steps before the reply.
    pub connecting: Connecting,
    /// An administrator's: in no index of users.
    pub is_admin: bool,
}

/// The user of a connection.
struct Identified {
    claims: ConnectionClaims,
    by: By,
    /// Data for the result; empty for none.
    data: Box<[u8]>,
}

/// The source of an identity.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// A token.
    Token,
    /// The connect proxy.
    Application,
    /// A header, or no source at all: the user is anonymous.
    Nobody,
    /// A token of an administrator's.
    Admin,
}

/// Decides about a `connect`. Nothing is changed, so one that stops can be handled again. An error
/// leaves the connection of no use: its client has to close it.
///
/// # Errors
/// No session begins, or not now.
pub fn connect(
    request: &ConnectRequest<'_>,
    answer: Option<&AppAnswer>,
    arrival: Arrival<'_>,
    facts: &Facts<'_>,
) -> Result<Opening, Stop> {
    // An operator who looks for the cause may come.
    if facts.is_short && !arrival.is_admin {
        return Err(Stop::NoMemory);
    }
    let channel_limit = facts.client.channel_limit;
    // Before work is done for each of them, or the application gets their names.
    if request.subs.len() > channel_limit {
        return Err(Disconnect::ChannelLimit.into());
    }
    let Identified { claims, by, data } = identify(request, answer, arrival, facts)?;
    if !facts.may_show(&data) {
        return Ok(Opening::Unfit);
    }
    if claims.subs.len() > channel_limit {
        return Err(Disconnect::ChannelLimit.into());
    }
    let ConnectionClaims { user, expire_at, info, meta, subs } = claims;
    let client = facts.client;
    let expires = expire_at.filter(|_| !client.insecure).map(Expiry::at);
    let mut to_request = granted_subs(subs, by, &user, facts)?;
    add_requested_subs(request, arrival.is_poll, by, &user, facts, &mut to_request)?;
    let is_past = |at: Expiry| at.is_past(facts.now);
    if expires.is_some_and(is_past) || to_request.iter().any(|sub| sub.expires.is_some_and(is_past))
    {
        return Err(Stop::Error(ErrorCode::Expired, "expire_at: past"));
    }
    if to_request.len() > channel_limit {
        let why = "subscriptions that the server makes, over client.channel_limit";
        return Err(Stop::Close(Disconnect::ChannelLimit, why));
    }
    let to_count =
        !user.is_empty() && (client.user_connection_limit > 0 || client.single_connection());
    // Where the application renews connections, a client needn't know when.
    let renewed_by_client = expires.filter(|_| client.proxies.refresh.is_none());
    let ttl = renewed_by_client.map(|expires| expires.ttl(facts.now));
    let connecting = Connecting { to_count, to_request, ttl, data, ..Connecting::default() };
    let is_admin = by == By::Admin;
    Ok(Opening::Session(NewSession { user, expires, info, meta, connecting, is_admin }))
}

/// The user of a connection; that of a header comes last.
fn identify(
    request: &ConnectRequest<'_>,
    answer: Option<&AppAnswer>,
    arrival: Arrival<'_>,
    facts: &Facts<'_>,
) -> Result<Identified, Stop> {
    let client = facts.client;
    if arrival.is_admin {
        return identify_admin(request, arrival, facts);
    }
    if !request.token.is_empty() {
        // A token that comes has to be good, with `client.insecure`, too.
        return match facts.connection_claims(&request.token)? {
            Ok(claims) if claims.user.is_empty() && client.disallow_anonymous_tokens => {
                let why = "sub: empty, and client.disallow_anonymous_connection_tokens is on";
                Err(Stop::Close(Disconnect::PermissionDenied, why))
            }
            Ok(claims) => Ok(Identified { claims, by: By::Token, data: Box::default() }),
            Err(TokenFault::Expired(why)) => Err(Stop::Error(ErrorCode::TokenExpired, why)),
            Err(TokenFault::Invalid(why)) => Err(Stop::Close(Disconnect::InvalidToken, why)),
        };
    }
    if let Some(proxy) = &client.proxies.connect {
        let answer = answer.ok_or_else(|| Stop::Call(Arc::clone(proxy)))?;
        // Without a result it is as if there were no proxy.
        if let Some(result) = answer.result()? {
            let data = result.data.clone().unwrap_or_default();
            let claims = result.claims.clone();
            return Ok(Identified { claims, by: By::Application, data });
        }
    }
    let user = match arrival.header_user {
        _ if client.allow_anonymous || client.insecure => CompactString::default(),
        Some(user) => user.into(),
        None => {
            let why = "connect without a token, and anonymous clients aren't allowed";
            return Err(Stop::Close(Disconnect::BadRequest, why));
        }
    };
    let claims = ConnectionClaims { user, ..ConnectionClaims::default() };
    Ok(Identified { claims, by: By::Nobody, data: Box::default() })
}

/// An administrator's connection gets the events that the node publishes about itself.
fn identify_admin(
    request: &ConnectRequest<'_>,
    arrival: Arrival<'_>,
    facts: &Facts<'_>,
) -> Result<Identified, Stop> {
    let is_good = arrival.admin.is_some_and(|admin| {
        admin.insecure || matches!(admin.keys.connection(&request.token, facts.now), Some(Ok(_)))
    });
    match is_good {
        true => Ok(Identified {
            claims: ConnectionClaims::default(),
            by: By::Admin,
            data: Box::default(),
        }),
        false => Err(Stop::Close(Disconnect::InvalidToken, "no token of the admin page")),
    }
}

/// The subscriptions that token, application and configuration give.
fn granted_subs(
    subs: Vec<(CompactString, SubOptions)>,
    by: By,
    user: &str,
    facts: &Facts<'_>,
) -> Result<Vec<ServerSub>, Stop> {
    let channels = facts.channels;
    let mut to_request = Vec::new();
    for (channel, options) in subs {
        let namespace = match channels.resolve_trusted(&channel) {
            Ok(namespace) => namespace,
            Err(NameFault::Unknown) => {
                let why = "a channel of the token or the proxy: no such namespace";
                return Err(Stop::Error(ErrorCode::UnknownChannel, why));
            }
            Err(fault) => return Err(fault.into()),
        };
        to_request.push(ServerSub {
            channel,
            namespace: namespace.index,
            info: options.info.unwrap_or_default(),
            data: options.data.unwrap_or_default(),
            overrides: options.overrides,
            expires: options.expire_at.map(Expiry::at),
            by_token: by == By::Token,
            ..ServerSub::default()
        });
    }
    if let Some(personal) = facts.client.personal_channel.as_ref().filter(|_| !user.is_empty()) {
        let channel = CompactString::new(personal.channel(user, channels.syntax()));
        // The configuration was checked for its namespace.
        if let Ok(namespace) = channels.resolve_trusted(&channel)
            && !to_request.iter().any(|sub: &ServerSub| sub.channel == channel)
        {
            let namespace = namespace.index;
            to_request.push(ServerSub { channel, namespace, ..ServerSub::default() });
        }
    }
    if by == By::Admin {
        let (channel, namespace) = (OWN_CHANNEL.into(), channels.own().index);
        to_request.push(ServerSub { channel, namespace, ..ServerSub::default() });
    }
    Ok(to_request)
}

/// The subscriptions that the client names.
fn add_requested_subs(
    request: &ConnectRequest<'_>,
    is_poll: bool,
    by: By,
    user: &str,
    facts: &Facts<'_>,
    to_request: &mut Vec<ServerSub>,
) -> Result<(), Stop> {
    let (channels, insecure) = (facts.channels, facts.client.insecure);
    let also_others = matches!(by, By::Token | By::Nobody);
    let added = add_unasked(channels, insecure, user, request, also_others, to_request);
    if !is_poll {
        return added;
    }
    // A poll has no close codes: each of its faults is an error.
    let checked = match added {
        Err(_) => Err(ErrorCode::UnknownChannel),
        Ok(()) => may_poll(channels, insecure, user, request, to_request),
    };
    checked.map_err(|code| Stop::Error(code, "subs: a channel that polls can't have"))
}

/// The channels that a client names when it connects: positions of those that it gets anyway, and
/// others that it could subscribe to by itself.
fn add_unasked(
    channels: &ChannelRules,
    insecure: bool,
    user: &str,
    request: &ConnectRequest<'_>,
    also_others: bool,
    to_request: &mut Vec<ServerSub>,
) -> Result<(), Stop> {
    // Both may be as many as `client.channel_limit`.
    let mut known: Vec<usize> = (0..to_request.len()).collect();
    known.sort_unstable_by(|a, b| to_request[*a].channel.cmp(&to_request[*b].channel));
    for (channel, asked) in &request.subs {
        let is_at = |at: &usize| {
            steps::take(1);
            to_request[*at].channel.as_str().cmp(channel)
        };
        let at = match known.binary_search_by(is_at).ok().map(|at| known[at]) {
            Some(at) => at,
            None if !also_others => continue,
            None => {
                let namespace = match channels.resolve(channel) {
                    Ok(namespace) => namespace,
                    Err(NameFault::Unknown) => {
                        let why = "subs: a channel of a namespace that isn't configured";
                        return Err(Stop::Close(Disconnect::BadRequest, why));
                    }
                    Err(_) => continue,
                };
                let subscriber = Subscriber { user, client: "", insecure };
                if !channels.may_subscribe_unasked(namespace, channel, subscriber) {
                    continue;
                }
                to_request.push(ServerSub {
                    channel: CompactString::new(channel),
                    namespace: namespace.index,
                    asked: asked_by(asked),
                    ..ServerSub::default()
                });
                to_request.len() - 1
            }
        };
        let sub = &mut to_request[at];
        sub.since = asked.recover.then(|| since_of(asked));
        sub.delta = asked.delta == "fossil";
    }
    Ok(())
}

/// Whether somebody gets all the channels of a poll, and can go on in each of them.
///
/// # Errors
/// 103 where one can't be had, 108 where one keeps no positions.
fn may_poll(
    channels: &ChannelRules,
    insecure: bool,
    user: &str,
    request: &ConnectRequest<'_>,
    subs: &mut [ServerSub],
) -> Result<(), ErrorCode> {
    let had: BTreeSet<&str> = subs.iter().map(|sub| sub.channel.as_str()).collect();
    let has = |channel: &str| {
        steps::take(1);
        had.contains(channel)
    };
    if !request.subs.keys().all(|channel| has(channel)) {
        return Err(ErrorCode::PermissionDenied);
    }
    for sub in subs {
        sub.asked.recoverable = true;
        let namespace = channels.namespace(sub.namespace);
        let granted = namespace.grant(sub.asked, user, insecure, Some(&sub.overrides));
        if !granted.recoverable {
            return Err(ErrorCode::NotAvailable);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::edge::channels::{ChannelSyntax, Namespace};
    use crate::proto::client::SubscribeRequest;
    use crate::session::PersonalChannel;
    use crate::session::app::AppResult;
    use crate::session::testing::{NOW, Scene, proxy, token};

    fn open(scene: &Scene, request: &ConnectRequest<'_>) -> Result<NewSession, Stop> {
        match connect(request, None, Arrival::default(), &scene.facts())? {
            Opening::Session(new) => Ok(new),
            Opening::Unfit => panic!("unfit"),
        }
    }

    fn by_token(claims: &serde_json::Value) -> ConnectRequest<'static> {
        ConnectRequest { token: token(claims).into(), ..ConnectRequest::default() }
    }

    fn close(result: Result<NewSession, Stop>) -> Disconnect {
        match result {
            Err(Stop::Close(close, _)) => close,
            other => panic!("{other:?}"),
        }
    }

    fn code(result: Result<NewSession, Stop>) -> ErrorCode {
        match result {
            Err(Stop::Error(code, _)) => code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_user_comes_by_a_token_a_header_or_not_at_all() {
        let mut scene = Scene::default();
        let nobody = ConnectRequest::default();
        let new = open(&scene, &by_token(&json!({"sub": "alice", "exp": NOW.0 + 5}))).unwrap();
        assert_eq!((&*new.user, new.connecting.ttl), ("alice", Some(5)));
        assert_eq!(close(open(&scene, &nobody)), Disconnect::BadRequest);
        let arrival = Arrival { header_user: Some("carol"), ..Arrival::default() };
        let by_header = connect(&nobody, None, arrival, &scene.facts());
        assert!(matches!(by_header, Ok(Opening::Session(new)) if new.user == "carol"));
        scene.client.allow_anonymous = true;
        assert_eq!(open(&scene, &nobody).unwrap().user, "");
        // A token that comes has to be good all the same.
        let bad = ConnectRequest { token: "a.b.c".into(), ..ConnectRequest::default() };
        assert_eq!(close(open(&scene, &bad)), Disconnect::InvalidToken);
        let late = by_token(&json!({"sub": "alice", "exp": NOW.0 - 1}));
        assert_eq!(code(open(&scene, &late)), ErrorCode::TokenExpired);
        scene.client.disallow_anonymous_tokens = true;
        let anonymous = open(&scene, &by_token(&json!({"sub": ""})));
        assert_eq!(close(anonymous), Disconnect::PermissionDenied);
    }

    #[test]
    fn the_application_identifies_a_client_without_a_token() {
        let mut scene = Scene::default();
        scene.client.proxies.connect = Some(proxy());
        let request = ConnectRequest::default();
        let with = |scene: &Scene, answer: Option<&AppAnswer>| {
            connect(&request, answer, Arrival::default(), &scene.facts())
        };
        assert_eq!(with(&scene, None).err(), Some(Stop::Call(proxy())));
        let mut result = AppResult { data: Some(Box::new(*b"{}")), ..AppResult::default() };
        result.claims.user = "alice".into();
        let answer = AppAnswer::Result(Box::new(result.clone()));
        let Ok(Opening::Session(new)) = with(&scene, Some(&answer)) else { panic!() };
        assert_eq!((&*new.user, &*new.connecting.data), ("alice", &b"{}"[..]));
        result.data = Some(Box::new(*b"\xff"));
        let answer = AppAnswer::Result(Box::new(result));
        assert!(matches!(with(&scene, Some(&answer)), Ok(Opening::Unfit)));
        // Without a result it is as if there were no proxy.
        let stop = with(&scene, Some(&AppAnswer::Nothing)).err();
        assert!(matches!(stop, Some(Stop::Close(Disconnect::BadRequest, _))), "{stop:?}");
    }

    #[test]
    fn an_administrator_needs_a_token_of_its_own() {
        let scene = Scene { is_short: true, ..Scene::default() };
        let keys = Scene::default().keys;
        let rules = AdminRules { keys, insecure: false };
        let arrival = Arrival { is_admin: true, admin: Some(&rules), ..Arrival::default() };
        let with = |arrival, request| connect(&request, None, arrival, &scene.facts());
        let good = by_token(&json!({"sub": "admin"}));
        let Ok(Opening::Session(new)) = with(arrival, good) else { panic!() };
        assert!(new.is_admin && new.connecting.to_request[0].channel == OWN_CHANNEL);
        let stop = with(arrival, ConnectRequest::default()).err();
        assert!(matches!(stop, Some(Stop::Close(Disconnect::InvalidToken, _))), "{stop:?}");
        let nowhere = Arrival { admin: None, ..arrival };
        assert!(with(nowhere, by_token(&json!({"sub": "admin"}))).is_err());
        // Others have to wait until there is memory.
        let stop = with(Arrival::default(), by_token(&json!({"sub": "alice"}))).err();
        assert_eq!(stop, Some(Stop::NoMemory));
    }

    #[test]
    fn subscriptions_of_the_servers_come_from_token_and_configuration() {
        let mut scene = Scene::default();
        scene.client.personal_channel = Some(PersonalChannel::default());
        scene.client.user_connection_limit = 1;
        let claims = json!({"sub": "alice", "channels": ["news"]});
        let new = open(&scene, &by_token(&claims)).unwrap();
        let names: Vec<_> = new.connecting.to_request.iter().map(|sub| &*sub.channel).collect();
        assert_eq!(names, ["news", "#alice"]);
        assert!(new.connecting.to_count && new.connecting.to_request[0].by_token);
        scene.client.channel_limit = 1;
        assert_eq!(close(open(&scene, &by_token(&claims))), Disconnect::ChannelLimit);
        let unknown = json!({"sub": "alice", "channels": ["nowhere:news"]});
        assert_eq!(code(open(&scene, &by_token(&unknown))), ErrorCode::UnknownChannel);
    }

    fn request(names: std::ops::Range<u32>) -> ConnectRequest<'static> {
        let one =
            |n| (format!("news:{n}").into(), SubscribeRequest { recover: true, ..<_>::default() });
        ConnectRequest { subs: names.map(one).collect(), ..ConnectRequest::default() }
    }

    fn server_subs(names: std::ops::Range<u32>) -> Vec<ServerSub> {
        let one = |n| ServerSub { channel: format!("news:{n}").into(), ..ServerSub::default() };
        names.map(one).collect()
    }

    #[test]
    fn subscriptions_are_found_in_linear_steps() {
        let channels =
            ChannelRules::new(Namespace::default(), Vec::new(), ChannelSyntax::default());
        for count in [100, 1_000, 10_000] {
            let mut to_request = server_subs(0..count);
            let request = request(0..count);
            let (result, steps) =
                steps::of(|| add_unasked(&channels, false, "", &request, false, &mut to_request));
            assert!(result.is_ok());
            assert!(
                to_request.len() == count as usize
                    && to_request.iter().all(|sub| sub.since.is_some())
            );
            assert!(steps <= u64::from(count) * 16, "{steps} for {count}");
            let (may, steps) =
                steps::of(|| may_poll(&channels, false, "", &request, &mut to_request[1..]));
            assert_eq!(may, Err(ErrorCode::PermissionDenied));
            assert!(steps <= u64::from(count), "{steps} for {count}");
        }
    }
}
