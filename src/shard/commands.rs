//! Commands of clients: who may do what, and what the home is asked.

use super::mail::{Asker, Mail, Publish, Subscribe};
use super::read::Flow;
use super::*;
use crate::base::time::UnixSeconds;
use crate::edge::channels::{Asked, NameFault, Namespace, Refusal, Subscriber};
use crate::edge::client_id::ClientId;
use crate::edge::jwt::{SubscriptionClaims, TokenFault};
use crate::hub::users::{Sessions, UserLinks};
use crate::proto::client::{
    self, Command, ConnectRequest, ConnectResult, Disconnect, ErrorCode, PublishRequest,
    RefreshRequest, Request, SubRefreshRequest, SubscribeRequest,
};
use crate::session::{Sub, SubState};

/// How a command ends that isn't simply answered.
enum Stop {
    /// An error in the reply; the connection goes on.
    Error(ErrorCode),
    /// The connection is closed.
    Close(Disconnect),
    /// Nothing was done: the home has no credit for us now.
    NoCredit(ShardId),
}

impl From<NameFault> for Stop {
    fn from(fault: NameFault) -> Self {
        Self::Error(match fault {
            NameFault::Unknown => ErrorCode::UnknownChannel,
            NameFault::TooLong | NameFault::BadName => ErrorCode::BadRequest,
        })
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::PermissionDenied => Self::Error(ErrorCode::PermissionDenied),
            Refusal::BadRequest => Self::Error(ErrorCode::BadRequest),
            Refusal::TokenExpired => Self::Error(ErrorCode::TokenExpired),
            Refusal::Expired => Self::Error(ErrorCode::Expired),
            Refusal::InvalidToken => Self::Close(Disconnect::InvalidToken),
        }
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
    /// Handles the commands of one message, as far as may be.
    pub(super) fn commands(&mut self, index: u32, text: &str) -> Flow {
        let mut commands = client::commands(text);
        loop {
            let handled = commands.consumed();
            let Some(command) = commands.next() else { return Flow::On };
            let command = match command {
                Ok(command) => command,
                Err(_) => return self.bad_request(index),
            };
            match self.command(index, command) {
                Flow::On => {}
                Flow::Pause(_) => return Flow::Pause(handled),
                Flow::Skip => return Flow::On,
                Flow::End => return Flow::End,
            }
        }
    }

    fn bad_request(&mut self, index: u32) -> Flow {
        self.counters().faults_bad_request.add(1);
        self.disconnect(index, Disconnect::BadRequest);
        Flow::End
    }

    fn command(&mut self, index: u32, command: Command<'_>) -> Flow {
        let conn = &self.conns[index as usize];
        let id = command.id;
        self.counters().commands.add(1);
        let Some(session) = self.sessions.get_mut(conn.session as usize) else {
            return match command.request {
                Request::Connect(request) if conn.phase == Phase::Client && id > 0 => {
                    self.connect(index, id, &request)
                }
                _ => self.bad_request(index),
            };
        };
        if let Request::Pong = command.request {
            if !session.pong_due || conn.flags.frame_ping() {
                return self.bad_request(index);
            }
            session.pong_due = false;
            self.counters().pongs.add(1);
            return Flow::On;
        }
        if session.unanswered >= COMMANDS_UNANSWERED_MAX {
            return self.pause(index);
        }
        let asker = Asker { conn: conn.key(index), command: id };
        let result = match &command.request {
            Request::Subscribe(request) => self.subscribe(index, asker, request),
            Request::Unsubscribe(request) => self.unsubscribe(index, asker, &request.channel),
            Request::Publish(request) => self.publish(index, asker, request),
            Request::Presence(request) | Request::PresenceStats(request) => {
                self.not_available(&request.channel)
            }
            Request::History(request) => self.not_available(&request.channel),
            Request::Rpc(_) => Err(Stop::Error(ErrorCode::NotAvailable)),
            Request::Send(_) => Err(Stop::Close(Disconnect::NotAvailable)),
            Request::Refresh(request) => self.refresh(index, id, request),
            Request::SubRefresh(request) => self.sub_refresh(index, id, request),
            Request::Connect(_) | Request::Ping | Request::Unknown | Request::Pong => {
                Err(Stop::Close(Disconnect::BadRequest))
            }
        };
        match result {
            Ok(()) => Flow::On,
            Err(Stop::Error(code)) => {
                self.reply_error(index, id, code);
                Flow::On
            }
            Err(Stop::Close(Disconnect::BadRequest)) => self.bad_request(index),
            Err(Stop::Close(why)) => {
                if why == Disconnect::InvalidToken {
                    self.counters().faults_token.add(1);
                }
                self.disconnect(index, why);
                Flow::End
            }
            Err(Stop::NoCredit(home)) => {
                let conn = &mut self.conns[index as usize];
                if !conn.flags.waiting() {
                    conn.flags.set_waiting(true);
                    let key = conn.key(index);
                    self.waiting[home.index()].push_back(key);
                }
                self.pause(index)
            }
        }
    }

    fn pause(&mut self, index: u32) -> Flow {
        self.counters().commands_paused.add(1);
        self.conns[index as usize].flags.set_paused(true);
        Flow::Pause(0)
    }

    fn reply_error(&mut self, index: u32, id: u32, code: ErrorCode) {
        self.counters().command_errors.add(1);
        self.scratch.clear();
        json::put_error(&mut self.scratch, id, code);
        self.enqueue_scratch(index);
    }

    /// Whose connection it is; a header's user is asked last.
    fn connect(&mut self, index: u32, id: u32, request: &ConnectRequest<'_>) -> Flow {
        let node = Arc::clone(&self.node);
        let client = &node.rules.client;
        let now = self.driver.unix();
        let key = self.conns[index as usize].key(index);
        let header_user = self.header_users.remove(&index);
        let mut expire_at = None;
        let mut info = None;
        let user = if !request.token.is_empty() {
            let verdict = match node.rules.keys.verify_connection(&request.token, now) {
                // Development: a token that was good once is good.
                Err(TokenFault::Expired) if client.insecure => {
                    node.rules.keys.verify_connection(&request.token, UnixSeconds(0))
                }
                verdict => verdict,
            };
            match verdict {
                Ok(claims) if claims.user.is_empty() && client.disallow_anonymous_tokens => {
                    self.disconnect(index, Disconnect::PermissionDenied);
                    return Flow::End;
                }
                // Server-side subscriptions are not built: a client that relies on them must not
                // believe that it has them.
                Ok(claims) if claims.has_subscriptions => {
                    return self.unusable(index, id, ErrorCode::NotAvailable);
                }
                Ok(claims) => {
                    expire_at = claims.expire_at.filter(|_| !client.insecure);
                    info = claims.info;
                    claims.user
                }
                Err(TokenFault::Expired) => {
                    return self.unusable(index, id, ErrorCode::TokenExpired);
                }
                Err(TokenFault::Invalid) => {
                    self.counters().faults_token.add(1);
                    self.disconnect(index, Disconnect::InvalidToken);
                    return Flow::End;
                }
            }
        } else if client.allow_anonymous || client.insecure {
            CompactString::default()
        } else if let Some(user) = header_user {
            user
        } else {
            return self.bad_request(index);
        };
        if expire_at.is_some_and(|at| at <= now.0) {
            return self.unusable(index, id, ErrorCode::Expired);
        }
        let frame_ping = self.conns[index as usize].flags.frame_ping();
        let (interval, pong_timeout) = self.ping_times(frame_ping);
        // The first ping comes after half an interval to a whole one, so that a million clients
        // that came together are not pinged together.
        let first = interval - self.rng.below(interval / 2);
        let session = Session {
            user,
            user_links: UserLinks::default(),
            subs: Default::default(),
            extra: info.map(|info| {
                Box::new(crate::session::Extra { info: Some(info), ..Default::default() })
            }),
            conn: index,
            due_tick: self.tick().saturating_add(ticks(first)),
            expires: expire_at.map_or(0, |at| u32::try_from(at).unwrap_or(u32::MAX)),
            unanswered: 0,
            pong_due: false,
            pong_window: false,
            detached: false,
        };
        let at = self.sessions.insert(session) as u32;
        self.conns[index as usize].session = at;
        let mut table = SessionTable { sessions: &mut self.sessions, names: &node.names };
        self.users.insert(at, &mut table);
        let pings = client.ping_interval_ms.is_some() && !frame_ping;
        let ttl = expire_at.map(|at| u32::try_from(at - now.0).unwrap_or(u32::MAX));
        let client_id = self.client_id(key);
        self.scratch.clear();
        let result = ConnectResult {
            client: &client_id.to_string(),
            version: &client.version,
            expires: ttl.is_some(),
            ttl: ttl.unwrap_or(0),
            ping: if pings { (interval / 1000).max(1) as u32 } else { 0 },
            pong: pings && pong_timeout.is_some(),
            time: if client.include_server_time { now.0 * 1000 } else { 0 },
            ..ConnectResult::default()
        };
        json::put_connect(&mut self.scratch, id, &result);
        self.enqueue_scratch(index);
        self.schedule(index);
        Flow::On
    }

    fn client_id(&self, key: ConnKey) -> ClientId {
        self.node.rules.client_ids.seal(self.id, key)
    }

    /// Takes a session out of the user index.
    pub(super) fn forget_user(&mut self, session: u32) {
        let mut table = SessionTable { sessions: &mut self.sessions, names: &self.node.names };
        self.users.remove(session, &mut table);
    }

    /// `connect` failed: the error goes out, nothing more is taken, the client shall close.
    fn unusable(&mut self, index: u32, id: u32, code: ErrorCode) -> Flow {
        self.reply_error(index, id, code);
        let tick = self.tick();
        let conn = &mut self.conns[index as usize];
        conn.phase = Phase::Unusable;
        conn.since_tick = tick;
        self.schedule(index);
        // The rest of that message is dropped; a further one is a fault.
        Flow::Skip
    }

    /// The namespace of a channel that a command names.
    fn namespace<'n>(node: &'n Node, channel: &str) -> Result<&'n Namespace, Stop> {
        if channel.is_empty() {
            return Err(Stop::Close(Disconnect::BadRequest));
        }
        Ok(node.rules.channels.resolve(channel)?)
    }

    /// A command whose feature isn't on for any channel.
    fn not_available(&mut self, channel: &str) -> Result<(), Stop> {
        Self::namespace(&self.node, channel)?;
        Err(Stop::Error(ErrorCode::NotAvailable))
    }

    fn subscription_claims(&self, token: &str) -> Result<SubscriptionClaims, TokenFault> {
        let rules = &self.node.rules;
        let keys = rules.subscription_keys.as_ref().unwrap_or(&rules.keys);
        keys.verify_subscription(token, self.driver.unix())
    }

    fn session_of(&mut self, index: u32) -> Option<&mut Session> {
        let conn = self.conns.get(index as usize)?;
        self.sessions.get_mut(conn.session as usize)
    }

    fn subscribe(
        &mut self,
        index: u32,
        asker: Asker,
        request: &SubscribeRequest<'_>,
    ) -> Result<(), Stop> {
        let node = Arc::clone(&self.node);
        let channel: &str = &request.channel;
        if channel.is_empty() || !(request.delta.is_empty() || request.delta == "fossil") {
            return Err(Stop::Close(Disconnect::BadRequest));
        }
        match request.kind {
            0 => {}
            4 => return Err(Stop::Error(ErrorCode::NotAvailable)),
            _ => return Err(Stop::Error(ErrorCode::PermissionDenied)),
        }
        node.rules.channels.check_length(channel)?;
        let known = self.locals.find(channel);
        let limit = node.rules.client.channel_limit;
        let Some(session) = self.session_of(index) else { return Ok(()) };
        if known.is_some_and(|at| session.subs.find(at).is_some()) {
            return Err(Stop::Error(ErrorCode::AlreadySubscribed));
        }
        if session.subs.len() >= limit {
            return Err(Stop::Error(ErrorCode::LimitExceeded));
        }
        let namespace = node.rules.channels.resolve(channel)?;
        let user = session.user.clone();
        let insecure = node.rules.client.insecure;
        let now = self.driver.unix();
        let verdict = (!request.token.is_empty()).then(|| self.subscription_claims(&request.token));
        let client_id = match &verdict {
            Some(Ok(claims)) if !claims.client.is_empty() => self.client_id(asker.conn).to_string(),
            _ => String::new(),
        };
        let subscriber = Subscriber { user: &user, client: &client_id, insecure };
        node.rules.channels.may_subscribe(namespace, channel, subscriber, verdict.as_ref(), now)?;
        let claims = verdict.and_then(Result::ok);
        if request.tf.is_some() {
            return Err(Stop::Error(ErrorCode::BadRequest));
        }
        let asked = Asked { positioned: request.positioned, ..Asked::default() };
        let overrides = claims.as_ref().map(|claims| &claims.overrides);
        let positioned = namespace.grant(asked, &user, insecure, overrides).positioned;
        let hash = node.names.hash(channel);
        let home = node.names.home(hash);
        self.spend(home)?;

        let local = self.locals.find_or_insert(channel);
        let serial = self.next_serial;
        self.next_serial = serial.wrapping_add(1);
        if let Some(record) = self.locals.get(local) {
            record.claims += 1;
            record.asked += 1;
        }
        let state = SubState::Joining;
        let Some(session) = self.session_of(index) else { return Ok(()) };
        session.subs.push(Sub { channel: local, place: serial, state, positioned });
        session.unanswered += 1;
        if let Some(claims) = claims {
            if let Some(at) = claims.expire_at {
                session.extra().sub_expiries.push((local, at));
            }
            if let Some(info) = claims.info {
                session.extra().sub_infos.push((local, info));
            }
            if let Some(data) = claims.data {
                session.extra().sub_data.push((local, data));
            }
        }
        self.schedule(index);
        self.counters().subscriptions.add(1);
        self.post(
            home,
            Mail::Subscribe(Box::new(Subscribe {
                channel: CompactString::new(channel),
                hash,
                namespace: namespace.index,
                local,
                asker,
                serial,
            })),
        );
        Ok(())
    }

    /// Takes a credit for a request to `home`.
    fn spend(&mut self, home: ShardId) -> Result<(), Stop> {
        let max = self.node.options.requests_unanswered_max;
        match self.mail[home.index()].spend(max) {
            true => Ok(()),
            false => Err(Stop::NoCredit(home)),
        }
    }

    fn unsubscribe(&mut self, index: u32, asker: Asker, channel: &str) -> Result<(), Stop> {
        if channel.is_empty() {
            return Err(Stop::Close(Disconnect::BadRequest));
        }
        let known = self.locals.find(channel);
        let Some(session) = self.session_of(index) else { return Ok(()) };
        let Some(local) = known.filter(|at| session.subs.find(*at).is_some()) else {
            self.scratch.clear();
            json::put_unsubscribe(&mut self.scratch, asker.command);
            self.enqueue_scratch(index);
            return Ok(());
        };
        let hash = self.node.names.hash(channel);
        let home = self.node.names.home(hash);
        self.spend(home)?;
        // Out of the list at once; a subscribe in flight is undone behind its answer.
        let Some(session) = self.session_of(index) else { return Ok(()) };
        let Some(mut sub) = session.subs.remove(local) else { return Ok(()) };
        session.unanswered += 1;
        session.forget_sub(local);
        self.leave_list(&mut sub);
        if let Some(record) = self.locals.get(local) {
            record.claims -= 1;
            record.asked += 1;
        }
        self.post(home, Mail::Unsubscribe { local, channel: channel.into(), asker: Some(asker) });
        Ok(())
    }

    fn publish(
        &mut self,
        index: u32,
        asker: Asker,
        request: &PublishRequest<'_>,
    ) -> Result<(), Stop> {
        let node = Arc::clone(&self.node);
        let channel: &str = &request.channel;
        let namespace = Self::namespace(&node, channel)?;
        if request.kind != 0 {
            return Err(Stop::Error(ErrorCode::NotAvailable));
        }
        let data = request.data.map_or("", |data| data.get()).as_bytes();
        let insecure = node.rules.client.insecure;
        let known = self.locals.find(channel);
        let Some(session) = self.session_of(index) else { return Ok(()) };
        let sub = known.and_then(|at| session.subs.find(at)).map(|sub| (sub.channel, sub.state));
        let subscribed = matches!(sub, Some((_, SubState::Live | SubState::Joining)));
        namespace.may_publish(&session.user, subscribed, insecure, data)?;
        let hash = node.names.hash(channel);
        let home = node.names.home(hash);
        self.spend(home)?;
        let client_id = self.client_id(asker.conn).to_string();
        let Some(session) = self.session_of(index) else { return Ok(()) };
        session.unanswered += 1;
        let chan_info = session.extra.as_ref().and_then(|extra| {
            let (channel, _) = sub?;
            extra.sub_infos.iter().find(|(c, _)| *c == channel).map(|(_, info)| &info[..])
        });
        let mut info = Vec::new();
        json::put_client_info(&mut info, &session.user, &client_id, session.info(), chan_info);
        self.post(
            home,
            Mail::Publish(Box::new(Publish {
                channel: CompactString::new(channel),
                hash,
                namespace: namespace.index,
                asker,
                data: data.into(),
                info: info.into(),
            })),
        );
        Ok(())
    }

    fn refresh(&mut self, index: u32, id: u32, request: &RefreshRequest<'_>) -> Result<(), Stop> {
        if request.token.is_empty() {
            return Err(Stop::Close(Disconnect::BadRequest));
        }
        let now = self.driver.unix();
        let claims =
            self.node.rules.keys.verify_connection(&request.token, now).map_err(|fault| {
                Stop::Close(match fault {
                    TokenFault::Expired => Disconnect::ConnectionExpired,
                    TokenFault::Invalid => Disconnect::InvalidToken,
                })
            })?;
        let Some(session) = self.session_of(index) else { return Ok(()) };
        if claims.user != session.user {
            return Err(Stop::Close(Disconnect::InvalidToken));
        }
        if claims.has_subscriptions {
            return Err(Stop::Close(Disconnect::InsufficientState));
        }
        if claims.expire_at.is_some_and(|at| at <= now.0) {
            return Err(Stop::Error(ErrorCode::Expired));
        }
        session.expires = claims.expire_at.map_or(0, |at| u32::try_from(at).unwrap_or(u32::MAX));
        if claims.info.is_some() || session.extra.is_some() {
            session.extra().info = claims.info;
        }
        let ttl = claims.expire_at.map(|at| u32::try_from(at - now.0).unwrap_or(u32::MAX));
        self.scratch.clear();
        json::put_refresh(&mut self.scratch, id, ttl);
        self.enqueue_scratch(index);
        self.schedule(index);
        Ok(())
    }

    fn sub_refresh(
        &mut self,
        index: u32,
        id: u32,
        request: &SubRefreshRequest<'_>,
    ) -> Result<(), Stop> {
        if request.channel.is_empty() {
            return Err(Stop::Close(Disconnect::BadRequest));
        }
        let known = self.locals.find(&request.channel);
        let Some(session) = self.session_of(index) else { return Ok(()) };
        let Some(local) = known.filter(|at| session.subs.find(*at).is_some()) else {
            return Err(Stop::Error(ErrorCode::PermissionDenied));
        };
        if request.kind != 0 {
            return Err(Stop::Error(ErrorCode::NotAvailable));
        }
        if request.token.is_empty() {
            return Err(Stop::Error(ErrorCode::BadRequest));
        }
        let now = self.driver.unix();
        let claims = match self.subscription_claims(&request.token) {
            Ok(claims) => claims,
            Err(TokenFault::Expired) => {
                // Said to be temporary, so that the client comes back with a new token.
                self.scratch.clear();
                json::put_temporary_error(&mut self.scratch, id, ErrorCode::TokenExpired);
                self.counters().command_errors.add(1);
                self.enqueue_scratch(index);
                return Ok(());
            }
            Err(TokenFault::Invalid) => return Err(Stop::Close(Disconnect::InvalidToken)),
        };
        let key = self.conns[index as usize].key(index);
        let client_id = self.client_id(key).to_string();
        let Some(session) = self.session_of(index) else { return Ok(()) };
        let for_client = claims.client.is_empty() || claims.client == client_id;
        if claims.user != session.user || claims.channel != request.channel || !for_client {
            return Err(Stop::Close(Disconnect::InvalidToken));
        }
        if claims.is_past(now) {
            return Err(Stop::Error(ErrorCode::Expired));
        }
        if claims.expire_at.is_some() || session.extra.is_some() {
            let expiries = &mut session.extra().sub_expiries;
            expiries.retain(|(channel, _)| *channel != local);
            expiries.extend(claims.expire_at.map(|at| (local, at)));
        }
        let ttl = claims.expire_at.map(|at| u32::try_from(at - now.0).unwrap_or(u32::MAX));
        self.scratch.clear();
        json::put_sub_refresh(&mut self.scratch, id, ttl);
        self.enqueue_scratch(index);
        self.schedule(index);
        Ok(())
    }
}
