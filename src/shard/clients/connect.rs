//! `connect` and `refresh`: who a connection belongs to, and what it gets before it asks.
//!
//! ```text
//!  token, header or anonymous -> session -> [count the user's connections] -> [subscriptions that
//!  the server makes, each asked for at its home] -> reply, what came meanwhile behind it
//! ```
//! Both steps in brackets are rare. While they last the session is *connecting*: no command of it is
//! handled, and its answers find it by [`Connecting`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use compact_str::CompactString;
use slab::Slab;

use crate::base::expiry::Expiry;
use crate::base::form::Transport;
use crate::base::id::ConnKey;
use crate::base::steps;
use crate::base::time::UnixSeconds;
use crate::edge::channels::{Asked, ChannelRules, NameFault, OWN_CHANNEL, Subscriber};
use crate::edge::jwt::{ConnectionClaims, TokenFault};
use crate::hub::history::Since;
use crate::hub::names::NameHasher;
use crate::hub::users::{Sessions, UserLinks};
use crate::io::Driver;
use crate::proto::client::{
    ConnectRequest, ConnectResult, Disconnect, ErrorCode, Push, RefreshRequest, Reply,
    SubscribePush, SubscribeRequest, SubscribeResult,
};
use crate::session::{Connecting, Extra, Made, ServerSub, Session, SessionFlags, Sub, WaitsFor};
use crate::shard::clients::aside::Admin;
use crate::shard::clients::commands::Stop;
use crate::shard::clients::proxies::{AppRequest, verdict};
use crate::shard::http::polls::may_poll;
use crate::shard::mail::{Asker, Mail, Method, UserConn};
use crate::shard::memory::NO_MEMORY;
use crate::shard::net::read::Flow;
use crate::shard::net::record::Phase;
use crate::shard::{Shard, ticks};

/// Who a connection belongs to.
struct Identified {
    claims: ConnectionClaims,
    by: By,
    /// Data for the result; empty for none.
    data: Box<[u8]>,
}

/// Who says so.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// A token.
    Token,
    /// The connect proxy.
    Application,
    /// Nobody: it is anonymous, or a header names it.
    Nobody,
    /// A token of an administrator's.
    Admin,
}

/// What the application is asked about a `connect`.
fn call_of(request: &ConnectRequest<'_>) -> AppRequest {
    AppRequest::Connect {
        data: request.data.as_ref().map_or(&b""[..], |data| data.bytes()).into(),
        name: CompactString::new(&request.name),
        version: CompactString::new(&request.version),
        channels: request.subs.keys().map(CompactString::new).collect(),
    }
}

/// Sessions as the user index sees them.
struct SessionTable<'a> {
    sessions: &'a mut Slab<Session>,
    names: &'a NameHasher,
}

impl Sessions for SessionTable<'_> {
    fn user_hash(&self, session: u32) -> u64 {
        self.names.hash(&self.sessions[session as usize].user)
    }
    fn same_user(&self, a: u32, b: u32) -> bool {
        self.sessions[a as usize].user == self.sessions[b as usize].user
    }
    fn links(&mut self, session: u32) -> &mut UserLinks {
        &mut self.sessions[session as usize].user_links
    }
}

impl<D: Driver> Shard<D> {
    pub(crate) fn connect(
        &mut self,
        index: u32,
        id: u32,
        request: &ConnectRequest<'_>,
    ) -> Result<Flow, Stop> {
        // Whoever looks what is wrong may come.
        let admin = self.clients.asides.is_admin(index);
        if !admin && self.cx.is_short_for(|counters| &counters.short_connect) {
            return Ok(self.unusable(index, id, ErrorCode::Internal, NO_MEMORY));
        }
        let client = Arc::clone(&self.cx.client);
        let now = self.cx.unix;
        // Before anything is done for each of them, or the application is told their names.
        if request.subs.len() > client.channel_limit {
            return Err(Disconnect::ChannelLimit.into());
        }
        self.keep_emulated_headers(index, request);
        let identified = match self.identify(index, id, request, now) {
            Ok(identified) => identified,
            // The connection is of no use any more: the client shall close it.
            Err(Stop::Error(code, why)) => return Ok(self.unusable(index, id, code, why)),
            Err(Stop::AppError(error)) => {
                self.reply_app_error(index, id, "", &error);
                return Ok(self.make_unusable(index));
            }
            Err(other) => return Err(other),
        };
        let Identified { claims, by, data } = identified;
        if !self.may_show(index, &data) {
            self.inappropriate(index);
            return Ok(Flow::End);
        }
        self.clients.asides.take(index, |aside| std::mem::take(&mut aside.header_user));
        let ConnectionClaims { user, expire_at, info, meta, subs } = claims;
        if subs.len() > client.channel_limit {
            return Err(Disconnect::ChannelLimit.into());
        }
        let expires = expire_at.filter(|_| !client.insecure).map(Expiry::at);
        let channels = Arc::clone(&self.cx.channels);
        let mut to_ask = Vec::new();
        for (channel, options) in subs {
            let namespace = match channels.resolve_trusted(&channel) {
                Ok(namespace) => namespace.index,
                Err(_) => {
                    let why = "a channel of the token or the proxy: no such namespace";
                    return Ok(self.unusable(index, id, ErrorCode::UnknownChannel, why));
                }
            };
            to_ask.push(ServerSub {
                channel,
                namespace,
                info: options.info.unwrap_or_default(),
                data: options.data.unwrap_or_default(),
                overrides: options.overrides,
                expires: options.expire_at.map(Expiry::at),
                by_token: by == By::Token,
                ..ServerSub::default()
            });
        }
        if let Some(personal) = client.personal_channel.as_ref().filter(|_| !user.is_empty()) {
            let channel = personal.channel(&user, channels.syntax());
            let channel = CompactString::new(channel);
            // The configuration checked that its namespace is there.
            if let Ok(namespace) = channels.resolve_trusted(&channel)
                && !to_ask.iter().any(|sub: &ServerSub| sub.channel == channel)
            {
                let namespace = namespace.index;
                to_ask.push(ServerSub { channel, namespace, ..ServerSub::default() });
            }
        }
        if by == By::Admin {
            let (channel, namespace) = (OWN_CHANNEL.into(), channels.own().index);
            to_ask.push(ServerSub { channel, namespace, ..ServerSub::default() });
            self.clients.asides.entry(index).admin = Some(Admin::Connected);
            self.cx.node.admins.fetch_add(1, Ordering::Relaxed);
        }
        let also_others = matches!(by, By::Token | By::Nobody);
        let asked =
            ask_unasked(&channels, client.insecure, &user, request, also_others, &mut to_ask);
        if self.net.form(index).is_poll() {
            let may = match asked {
                Err(_) => Err(ErrorCode::UnknownChannel),
                Ok(()) => may_poll(&channels, client.insecure, &user, request, &mut to_ask),
            };
            if let Err(code) = may {
                let why = "subs: a channel that polls can't have";
                return Ok(self.unusable(index, id, code, why));
            }
        } else {
            asked?;
        }
        let is_past = |at: Expiry| at.is_past(now);
        if expires.is_some_and(is_past) || to_ask.iter().any(|sub| sub.expires.is_some_and(is_past))
        {
            return Ok(self.unusable(index, id, ErrorCode::Expired, "expire_at: past"));
        }
        if to_ask.len() > client.channel_limit {
            let why = "subscriptions that the server makes, over client.channel_limit";
            return Err(Stop::Close(Disconnect::ChannelLimit, why));
        }
        let to_count =
            !user.is_empty() && (client.user_connection_limit > 0 || client.single_connection());
        let ttl =
            expires.filter(|_| client.proxies.refresh.is_none()).map(|expires| expires.ttl(now));
        let headers = self.clients.asides.take(index, |aside| aside.headers.take());
        let began_ms = self.began_ms(index);
        let connecting = Connecting {
            command: id,
            to_count,
            to_ask,
            ttl,
            data,
            began_ms,
            ..Connecting::default()
        };
        let few = info.is_some() || meta.is_some() || headers.is_some();
        let wait = to_count || !connecting.to_ask.is_empty();
        let (connecting, at_once) = match wait {
            true => (Some(Box::new(connecting)), None),
            false => (None, Some(connecting)),
        };
        let extra = (few || wait).then(|| {
            let (info, meta) = (info.unwrap_or_default(), meta.unwrap_or_default());
            Box::new(Extra { info, meta, headers, connecting, ..Extra::default() })
        });
        if by != By::Admin && self.take_client_place(index).is_err() {
            let why = "no place for another client";
            return Ok(self.unusable(index, id, ErrorCode::TooManyRequests, why));
        }
        self.begin_session(index, user, expires, extra);
        match at_once {
            Some(connecting) => self.reply_connect(index, connecting),
            None => {
                self.net.begin_holding(index);
                self.go_on_connecting(index);
            }
        }
        Ok(Flow::On)
    }

    /// Whose connection it is; a header's user is asked last.
    fn identify(
        &mut self,
        index: u32,
        id: u32,
        request: &ConnectRequest<'_>,
        now: UnixSeconds,
    ) -> Result<Identified, Stop> {
        let client = Arc::clone(&self.cx.client);
        if self.clients.asides.is_admin(index) {
            return self.identify_admin(request, now);
        }
        if !request.token.is_empty() {
            // Without `client.insecure`, and with it: one that is given has to be good.
            return match self.connection_claims(index, &request.token, now)? {
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
            let answer = self.ask_application(index, id, proxy, || call_of(request))?;
            // Without a result it is as if nobody had been asked.
            if let Some(result) = verdict(&answer)? {
                let data = result.data.clone().unwrap_or_default();
                let claims = result.claims.clone();
                return Ok(Identified { claims, by: By::Application, data });
            }
        }
        let user = if client.allow_anonymous || client.insecure {
            CompactString::default()
        } else if let Some(user) = self.clients.asides.header_user(index) {
            user.clone()
        } else {
            let why = "connect without a token, and anonymous clients aren't allowed";
            return Err(Stop::Close(Disconnect::BadRequest, why));
        };
        let (expire_at, info, meta, subs) = (None, None, None, Vec::new());
        let claims = ConnectionClaims { user, expire_at, info, meta, subs };
        Ok(Identified { claims, by: By::Nobody, data: Box::default() })
    }

    /// An administrator's connection gets what the node publishes of itself.
    fn identify_admin(
        &self,
        request: &ConnectRequest<'_>,
        now: UnixSeconds,
    ) -> Result<Identified, Stop> {
        let admin = self.cx.node.rules.admin.as_ref();
        let is_good = admin.is_some_and(|admin| {
            admin.insecure || matches!(admin.keys.connection(&request.token, now), Some(Ok(_)))
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

    fn begin_session(
        &mut self,
        index: u32,
        user: CompactString,
        expires: Option<Expiry>,
        extra: Option<Box<Extra>>,
    ) {
        let node = Arc::clone(&self.cx.node);
        let conn = &self.net.conns[index as usize];
        let (interval, _) = self.ping_times(conn.form, conn.flags.frame_ping());
        // The first ping comes after half an interval to a whole one, so that a million clients
        // that came together are not pinged together.
        let first = match conn.form.is_poll() {
            // The same, as little as may be: it is how long a poll may wait.
            true => interval - self.clients.rng.below(interval / 8),
            false => interval - self.clients.rng.below(interval / 2),
        };
        let session = Session {
            user,
            user_links: UserLinks::default(),
            subs: Default::default(),
            extra,
            conn: index,
            due_tick: self.cx.tick().saturating_add(ticks(first)),
            expires,
            unanswered: 0,
            flags: SessionFlags::default(),
        };
        let at = self.clients.sessions.insert(session) as u32;
        self.net.conns[index as usize].session = at;
        self.net.set_busy(index);
        if self.clients.asides.is_admin(index) {
            // It is nobody's of the application: orders and counts go past it.
            self.clients.sessions[at as usize].flags.set_hidden(true);
        } else {
            let mut table =
                SessionTable { sessions: &mut self.clients.sessions, names: &node.names };
            self.clients.users.insert(at, &mut table);
        }
        self.schedule(index);
    }

    /// Takes a session out of the user index.
    pub(crate) fn forget_user(&mut self, session: u32) {
        if self.clients.sessions.get(session as usize).is_some_and(|session| session.flags.hidden())
        {
            return;
        }
        let mut table =
            SessionTable { sessions: &mut self.clients.sessions, names: &self.cx.node.names };
        self.clients.users.remove(session, &mut table);
    }

    /// `connect` failed: the error goes out, nothing more is taken, the client shall close.
    fn unusable(&mut self, index: u32, id: u32, code: ErrorCode, why: &'static str) -> Flow {
        self.reply_error_because(index, id, code, code.temporary(), "", why);
        self.make_unusable(index)
    }

    /// The error is out.
    fn make_unusable(&mut self, index: u32) -> Flow {
        let tick = self.cx.tick();
        let Some(conn) = self.net.conns.get_mut(index as usize) else { return Flow::End };
        if conn.phase != Phase::Client {
            return Flow::End;
        }
        conn.phase = Phase::Unusable;
        conn.since_tick = tick;
        self.net.set_replaceable(index);
        self.schedule(index);
        // The rest of that message is dropped; a further one is a fault.
        Flow::Skip
    }

    /// Whether a session's `connect` is not answered yet.
    pub(crate) fn is_connecting(&mut self, index: u32) -> bool {
        self.session_of(index).is_some_and(|session| session.connecting().is_some())
    }

    /// Does what can be done of a `connect`; without credit it waits for some, and comes back.
    pub(crate) fn go_on_connecting(&mut self, index: u32) {
        loop {
            let key = self.net.conns[index as usize].key(index);
            let Some(session) = self.session_of(index) else { return };
            let user = session.user.clone();
            let Some(connecting) = session.connecting() else { return };
            let asker = Asker { command: connecting.command, ..Asker::of(key) };
            if connecting.to_count {
                let home = self.cx.node.names.home(self.cx.node.names.hash(&user));
                let credits = match self.spend(home, 1) {
                    Ok(credits) => credits,
                    Err(_) => return self.wait_for_credit(index, home),
                };
                let Some(session) = self.session_of(index) else { return };
                session.flags.set_user_counted(true);
                if let Some(connecting) = session.connecting() {
                    connecting.to_count = false;
                    connecting.counting = true;
                }
                let asker = Asker { credits, ..asker };
                return self.post.send(
                    &self.cx,
                    home,
                    Mail::UserEnter(Box::new(UserConn { user, asker })),
                );
            }
            // Nothing is asked for as long as the user may be one too many.
            if connecting.counting {
                return;
            }
            let Some(sub) = connecting.to_ask.pop() else {
                if connecting.awaited == 0 {
                    self.connected(index);
                }
                return;
            };
            match self.subscribe_by_server(index, asker, &sub) {
                Ok(()) => {}
                Err(Stop::Wait(WaitsFor::Credit(home))) => {
                    if let Some(session) = self.session_of(index)
                        && let Some(connecting) = session.connecting()
                    {
                        connecting.to_ask.push(sub);
                    }
                    return self.wait_for_credit(index, home);
                }
                Err(_) => {}
            }
        }
    }

    /// A subscription that the server makes is there.
    pub(crate) fn made(&mut self, index: u32, made: Made) {
        let Some(session) = self.session_of(index) else { return };
        let Some(connecting) = session.connecting() else {
            return self.tell_subscribed(index, &made);
        };
        connecting.made.push(made);
        connecting.awaited -= 1;
        self.go_on_connecting(index);
    }

    /// A subscription that the server made while the client was connected.
    fn tell_subscribed(&mut self, index: u32, made: &Made) {
        let Made { recoverable, positioned, epoch, offset, data, .. } = made;
        let push = Push::Subscribe(SubscribePush {
            recoverable: *recoverable,
            positioned: *positioned,
            epoch,
            offset: *offset,
            data,
        });
        self.push(index, &made.channel, &push);
        if let Some(missed) = &made.publications {
            self.net.enqueue(&self.cx, index, missed.clone());
        }
    }

    /// The home of the user has counted this connection.
    pub(crate) fn user_entered(&mut self, asker: Asker, admitted: bool) {
        let index = asker.conn.index;
        if self.net.conn(asker.conn).is_none() {
            return;
        }
        let Some(session) = self.session_of(index) else { return };
        let Some(connecting) = session.connecting() else { return };
        connecting.counting = false;
        if admitted {
            return self.go_on_connecting(index);
        }
        self.cx.counters().closed_user_limit.add(1);
        let why = "the user has client.user_connection_limit connections already";
        self.disconnect_because(index, Disconnect::ConnectionLimit, why);
    }

    /// A newer connection of the user takes this one's place.
    pub(crate) fn evicted(&mut self, key: ConnKey) {
        if self.net.conn(key).is_some() {
            self.cx.counters().closed_user_limit.add(1);
            let why = "a newer connection of the user takes its place";
            self.disconnect_because(key.index, Disconnect::ConnectionLimit, why);
        }
    }

    /// All is there: the reply, and behind it what came meanwhile.
    fn connected(&mut self, index: u32) {
        let Some(session) = self.session_of(index) else { return };
        let Some(extra) = &mut session.extra else { return };
        let Some(connecting) = extra.connecting.take() else { return };
        let is_empty = extra.info.is_empty() && extra.meta.is_empty() && extra.subs.is_empty();
        if is_empty && extra.headers.is_none() {
            session.extra = None;
        }
        let held = self.net.take_held(index);
        self.reply_connect(index, *connecting);
        for frame in held {
            self.net.enqueue(&self.cx, index, frame);
        }
        let conn = &self.net.conns[index as usize];
        if conn.phase == Phase::Client && conn.waits == Some(WaitsFor::Broker) {
            let key = conn.key(index);
            self.net.resume(key);
        }
    }

    fn reply_connect(&mut self, index: u32, connecting: Connecting) {
        self.time_answer(Method::Connect, connecting.began_ms);
        self.notice_connected(index);
        if self.net.form(index).is_poll() {
            return self.poll_begun(index, connecting);
        }
        let client = Arc::clone(&self.cx.client);
        let conn = &self.net.conns[index as usize];
        let (frame_ping, form, key) = (conn.flags.frame_ping(), conn.form, conn.key(index));
        let (interval, pong_timeout) = self.ping_times(form, frame_ping);
        let pings = client.ping_interval_ms.is_some() && !frame_ping;
        let client_id = self.client_id(key).text();
        let node = Arc::clone(&self.cx.node);
        let transport = form.transport();
        let session = transport
            .has_session_ids()
            .then(|| node.rules.session_ids.seal(self.cx.id, key).text());
        self.send_head(index);
        let subs: Vec<(&str, SubscribeResult<'_>)> =
            connecting.made.iter().map(|made| (made.channel.as_str(), made.result())).collect();
        let result = ConnectResult {
            client: client_id.as_str(),
            version: &client.version,
            expires: connecting.ttl.is_some(),
            ttl: connecting.ttl.unwrap_or(0),
            data: &connecting.data,
            subs: &subs,
            ping: if pings { (interval / 1000).max(1) as u32 } else { 0 },
            pong: pings && pong_timeout.is_some(),
            session: session.as_ref().map_or("", |session| session.as_str()),
            node: if transport.has_up_link() { &node.rules.node_id } else { "" },
            time: if client.include_server_time { self.cx.unix.0 * 1000 } else { 0 },
        };
        match form.is_one_way() {
            true => self.push(index, "", &Push::Connect(result)),
            false => self.net.reply(
                &self.cx,
                &mut self.codec,
                index,
                connecting.command,
                &Reply::Connect(result),
            ),
        }
        if transport == Transport::UniSse && !connecting.made.is_empty() {
            self.net.to_mark.push(key);
        }
    }

    pub(crate) fn refresh(
        &mut self,
        index: u32,
        id: u32,
        request: &RefreshRequest<'_>,
    ) -> Result<Flow, Stop> {
        // What the application refreshes is not the client's business.
        if request.token.is_empty() || self.cx.client.proxies.refresh.is_some() {
            let why = "refresh without a token, or where a proxy refreshes";
            return Err(Stop::Close(Disconnect::BadRequest, why));
        }
        let now = self.cx.unix;
        let claims = self.connection_claims(index, &request.token, now)?.map_err(|fault| {
            let close = match fault {
                TokenFault::Expired(_) => Disconnect::ConnectionExpired,
                TokenFault::Invalid(_) => Disconnect::InvalidToken,
            };
            Stop::Close(close, fault.flaw())
        })?;
        let Some(session) = self.session_of(index) else { return Ok(Flow::On) };
        if claims.user != session.user {
            let why = "sub: the new token is for another user";
            return Err(Stop::Close(Disconnect::InvalidToken, why));
        }
        if !self.has_token_subs(index, &claims) {
            let why = "subs: the new token has other channels";
            return Err(Stop::Close(Disconnect::InsufficientState, why));
        }
        let expires = claims.expire_at.map(Expiry::at);
        if expires.is_some_and(|expires| expires.is_past(now)) {
            return Err(Stop::Error(ErrorCode::Expired, "expire_at: past"));
        }
        self.reinform(index, claims.info.unwrap_or_default())?;
        let Some(session) = self.session_of(index) else { return Ok(Flow::On) };
        session.expires = expires;
        let meta = claims.meta.unwrap_or_default();
        if !meta.is_empty() || session.extra.is_some() {
            session.extra().meta = meta;
        }
        let ttl = expires.map(|expires| expires.ttl(now));
        self.net.reply(&self.cx, &mut self.codec, index, id, &Reply::Refresh { ttl });
        self.schedule(index);
        Ok(Flow::On)
    }

    /// Whether the channels of a new token are those of the old one: nothing new, nothing missing.
    fn has_token_subs(&mut self, index: u32, claims: &ConnectionClaims) -> bool {
        if claims.subs.len() > self.cx.client.channel_limit {
            return false;
        }
        let named = claims.subs.iter().map(|(channel, _)| self.local.locals.find(channel));
        let Some(named) = named.collect::<Option<BTreeSet<u32>>>() else { return false };
        self.session_of(index).is_some_and(|session| has_all(session.subs.as_slice(), &named))
    }

    /// Other `chan_info` of one subscription. Not told where the home has no room: it comes with the next.
    pub(crate) fn reinform_in(&mut self, index: u32, at: u32, chan_info: Box<[u8]>) {
        let key = self.net.conns[index as usize].key(index);
        let Some(session) = self.session_of(index) else { return };
        let is_member = session.subs.find(at).is_some_and(|sub| sub.flags.member());
        session.sub_extra_or_new(at).info = chan_info.clone();
        let Some(local) = self.local.locals.get(at).filter(|_| is_member) else { return };
        let (home, channel) = (local.home, local.name.as_str().into());
        if !self.post.is_full(home) {
            let info = self.client_info(key, &chan_info);
            self.post.send(&self.cx, home, Mail::Reinform { channel, conn: key, info });
        }
    }

    /// `conn_info` from a new token: those who see the client see that.
    pub(crate) fn reinform(&mut self, index: u32, info: Box<[u8]>) -> Result<(), Stop> {
        let key = self.net.conns[index as usize].key(index);
        let Some(session) = self.session_of(index) else { return Ok(()) };
        if session.info() == &*info {
            return Ok(());
        }
        let members: Vec<u32> = session
            .subs
            .as_slice()
            .iter()
            .filter(|sub| sub.flags.member())
            .map(|sub| sub.channel)
            .collect();
        for at in &members {
            let Some(local) = self.local.locals.get(*at) else { continue };
            let home = local.home;
            if self.post.is_full(home) {
                return Err(Stop::Wait(WaitsFor::Credit(home)));
            }
        }
        if let Some(session) = self.session_of(index) {
            session.extra().info = info;
        }
        for at in members {
            let Some(session) = self.session_of(index) else { break };
            let chan_info = session.sub_extra(at).map(|sub| sub.info.clone()).unwrap_or_default();
            let info = self.client_info(key, &chan_info);
            let Some(local) = self.local.locals.get(at) else { continue };
            let (home, channel) = (local.home, local.name.as_str().into());
            self.post.send(&self.cx, home, Mail::Reinform { channel, conn: key, info });
        }
        Ok(())
    }
}

/// Whether the channels that a new token names are all there by the server, and no others by the token before.
fn has_all(subs: &[Sub], named: &BTreeSet<u32>) -> bool {
    steps::take(subs.len());
    let by_server = subs.iter().filter(|sub| sub.flags.server() && named.contains(&sub.channel));
    let by_token = subs.iter().filter(|sub| sub.flags.token());
    by_server.count() == named.len() && by_token.into_iter().all(|sub| named.contains(&sub.channel))
}

/// The channels that a client names when it connects: what it has of those that it gets anyway, and
/// others that it could subscribe to by itself (client protocol, section 20).
fn ask_unasked(
    channels: &ChannelRules,
    insecure: bool,
    user: &str,
    request: &ConnectRequest<'_>,
    also_others: bool,
    to_ask: &mut Vec<ServerSub>,
) -> Result<(), Stop> {
    // Both may be as many as `client.channel_limit`.
    let mut known: Vec<usize> = (0..to_ask.len()).collect();
    known.sort_unstable_by(|a, b| to_ask[*a].channel.cmp(&to_ask[*b].channel));
    for (channel, asked) in &request.subs {
        let is_at = |at: &usize| {
            steps::take(1);
            to_ask[*at].channel.as_str().cmp(channel)
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
                to_ask.push(ServerSub {
                    channel: CompactString::new(channel),
                    namespace: namespace.index,
                    asked: asked_by(asked),
                    ..ServerSub::default()
                });
                to_ask.len() - 1
            }
        };
        let sub = &mut to_ask[at];
        sub.since = asked.recover.then(|| since_of(asked));
        sub.delta = asked.delta == "fossil";
    }
    Ok(())
}

/// What a request says that the client has.
pub(crate) fn since_of(request: &SubscribeRequest<'_>) -> Since {
    Since { offset: request.offset, epoch: CompactString::new(&request.epoch) }
}

/// What a request asks for on top.
pub(crate) fn asked_by(request: &SubscribeRequest<'_>) -> Asked {
    Asked {
        positioned: request.positioned,
        recoverable: request.recoverable,
        join_leave: request.join_leave,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::channels::{ChannelSyntax, Namespace};
    use crate::session::{SubFlags, SubState};

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
    fn what_a_client_has_is_found_in_steps_for_each_and_not_for_each_pair() {
        let channels =
            ChannelRules::new(Namespace::default(), Vec::new(), ChannelSyntax::default());
        for count in [100, 1_000, 10_000] {
            let mut to_ask = server_subs(0..count);
            let request = request(0..count);
            let (result, steps) =
                steps::of(|| ask_unasked(&channels, false, "", &request, false, &mut to_ask));
            assert!(result.is_ok());
            assert!(to_ask.len() == count as usize && to_ask.iter().all(|sub| sub.since.is_some()));
            assert!(steps <= u64::from(count) * 16, "{steps} for {count}");
            let (may, steps) =
                steps::of(|| may_poll(&channels, false, "", &request, &mut to_ask[1..]));
            assert_eq!(may, Err(ErrorCode::PermissionDenied));
            assert!(steps <= u64::from(count), "{steps} for {count}");
        }
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
