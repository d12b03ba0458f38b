//! `connect` and `refresh`: who a connection belongs to, and what it gets before it asks.
//!
//! ```text
//!  token, header or anonymous -> session -> [count the user's connections] -> [subscriptions that
//!  the server makes, each asked for at its home] -> reply, what came meanwhile behind it
//! ```
//! Both steps in brackets are rare. While they last the session is *connecting*: no command of it is
//! handled, and its answers find it by [`Connecting`].

use crate::shard::clients::due::ping_times;
use crate::shard::outlets::outlets;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use compact_str::CompactString;
use slab::Slab;

use crate::base::form::Transport;
use crate::base::id::ConnKey;
use crate::hub::names::NameHasher;
use crate::hub::users::{Sessions, UserLinks};
use crate::io::Driver;
use crate::proto::client::{
    ConnectRequest, ConnectResult, Disconnect, ErrorCode, Push, Reply, SubscribePush,
    SubscribeResult,
};
use crate::session::app::AppRequest;
use crate::session::{
    self, Arrival, Connecting, Facts, Made, NO_MEMORY, NewSession, Opening, Session, Step, Stop,
    WaitsFor,
};
use crate::shard::Shard;
use crate::shard::clients::aside::Admin;
use crate::shard::flow::Flow;
use crate::shard::mail::{Asker, Mail, Method, UserConn};
use crate::shard::net::record::Phase;
use crate::shard::net::timers::ticks;

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
    /// Handles a `connect`: a session begins, or the connection is of no use any more.
    pub(crate) fn connect(
        &mut self,
        index: u32,
        id: u32,
        request: &ConnectRequest<'_>,
    ) -> Result<Flow, Stop> {
        // Kept for all proxies; once more is the same.
        self.keep_emulated_headers(index, request);
        let key = self.net.conns[index as usize].key(index);
        let answer = self.clients.asides.answer(index);
        let arrival = Arrival {
            header_user: self.clients.asides.header_user(index).map(CompactString::as_str),
            is_poll: self.net.form(index).is_poll(),
            is_admin: self.clients.asides.is_admin(index),
            admin: self.cx.node.rules.admin.as_ref(),
        };
        let is_short = self.cx.node.memory.is_short();
        let facts = Facts { is_short, ..self.facts(key) };
        let is_checked = facts.verdict.is_some();
        let decided = session::connect(request, answer.as_deref(), arrival, &facts);
        if is_checked && !request.token.is_empty() {
            self.clients.asides.take(index, |aside| aside.check.take());
        }
        let stop = match decided {
            Ok(Opening::Session(new)) => return Ok(self.begin_session(index, id, new)),
            Ok(Opening::Unfit) => {
                self.inappropriate(index);
                return Ok(Flow::End);
            }
            Err(Stop::Verify(kind)) => self.request_check(index, &request.token, kind),
            Err(Stop::Call(proxy)) => {
                self.call_application(index, id, &proxy, || AppRequest::connect(request))
            }
            Err(stop) => stop,
        };
        // The connection is of no use any more after an error: its client has to close it.
        match stop {
            Stop::NoMemory => {
                self.cx.counters().short_connect.inc();
                Ok(self.unusable(index, id, ErrorCode::Internal, NO_MEMORY))
            }
            Stop::Error(code, why) => Ok(self.unusable(index, id, code, why)),
            Stop::AppError(error) => {
                self.reply_app_error(index, id, "", &error);
                Ok(self.make_unusable(index))
            }
            stop => Err(stop),
        }
    }

    /// Begins a session, and the steps before its reply.
    fn begin_session(&mut self, index: u32, id: u32, mut new: NewSession) -> Flow {
        if !new.is_admin && self.net.take_client_place(&self.cx, index).is_err() {
            let why = "no place for another client";
            return self.unusable(index, id, ErrorCode::TooManyRequests, why);
        }
        new.connecting.command = id;
        new.connecting.began_ms = self.began_ms(index);
        let headers = self.clients.asides.take(index, |aside| {
            aside.header_user = CompactString::default();
            aside.headers.take()
        });
        let is_admin = new.is_admin;
        if is_admin {
            self.clients.asides.entry(index).admin = Some(Admin::Connected);
            self.cx.node.admins.fetch_add(1, Ordering::Relaxed);
        }
        let due_tick = self.first_ping(index);
        let (session, at_once) = Session::begin(new, headers, index, due_tick);
        let at = self.clients.sessions.insert(session) as u32;
        self.net.conns[index as usize].session = at;
        self.net.set_busy(index);
        // An administrator is no user of the application: orders and counts leave it out.
        if !is_admin {
            let names = &self.cx.node.names;
            let mut table = SessionTable { sessions: &mut self.clients.sessions, names };
            self.clients.users.insert(at, &mut table);
        }
        self.schedule(index);
        match at_once {
            Some(connecting) => self.reply_connect(index, connecting),
            None => {
                self.net.begin_holding(index);
                self.go_on_connecting(index);
            }
        }
        Flow::On
    }

    /// The tick of the first ping: after half an interval to a whole one, so that a million clients
    /// that came together are not pinged together.
    fn first_ping(&mut self, index: u32) -> u32 {
        let conn = &self.net.conns[index as usize];
        let (interval, _) = ping_times(&self.cx, conn.form, conn.flags.frame_ping());
        let spread = match conn.form.is_poll() {
            // As little as may be: it is how long a poll may wait.
            true => interval / 8,
            false => interval / 2,
        };
        let first = interval - self.net.rng.below(spread);
        self.cx.tick().saturating_add(ticks(first))
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
        self.session_of(index).is_some_and(|session| session.is_connecting())
    }

    /// Does the steps of a `connect` that can be done; without credit it waits for some, and comes back.
    pub(crate) fn go_on_connecting(&mut self, index: u32) {
        loop {
            let key = self.net.conns[index as usize].key(index);
            let Some(session) = self.session_of(index) else { return };
            let command = session.connecting().map_or(0, |connecting| connecting.command);
            let asker = Asker { command, ..Asker::of(key) };
            match session.next_step() {
                Step::Wait => return,
                Step::Reply(connecting) => return self.connected(index, *connecting),
                Step::Count => return self.request_count(index, asker),
                Step::Subscribe(sub) => {
                    let requested = self.subscribe_by_server(index, asker, &sub);
                    if let Err(Stop::Wait(WaitsFor::Credit(home))) = requested {
                        if let Some(session) = self.session_of(index) {
                            session.give_back(sub);
                        }
                        return outlets!(self).wait_for_credit(index, home);
                    }
                }
            }
        }
    }

    /// Has the home of the user count this connection.
    fn request_count(&mut self, index: u32, asker: Asker) {
        let Some(session) = self.session_of(index) else { return };
        let user = session.user.clone();
        let home = self.cx.node.names.home(self.cx.node.names.hash(&user));
        let Ok(credits) = outlets!(self).spend(home, 1) else {
            return outlets!(self).wait_for_credit(index, home);
        };
        if let Some(session) = self.session_of(index) {
            session.count_requested();
        }
        let conn = UserConn { user, asker: Asker { credits, ..asker } };
        self.post.send(&self.cx, home, Mail::UserEnter(Box::new(conn)));
    }

    /// A subscription that the server makes is there.
    pub(crate) fn made(&mut self, index: u32, made: Made) {
        let Some(session) = self.session_of(index) else { return };
        match session.sub_made(made) {
            Ok(()) => self.go_on_connecting(index),
            Err(made) => self.tell_subscribed(index, &made),
        }
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
        if !session.counted() {
            return;
        }
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

    /// All is there: the reply, and behind it the frames that were held.
    fn connected(&mut self, index: u32, connecting: Connecting) {
        let held = self.net.take_held(index);
        self.reply_connect(index, connecting);
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
        let (interval, pong_timeout) = ping_times(&self.cx, form, frame_ping);
        let pings = client.ping_interval_ms.is_some() && !frame_ping;
        let client_id = self.client_id(key).text();
        let node = Arc::clone(&self.cx.node);
        let transport = form.transport();
        let session = transport
            .has_session_ids()
            .then(|| node.rules.session_ids.seal(self.cx.id, key).text());
        self.net.send_head(&self.cx, index);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::users::Users;
    use crate::session::testing::session;

    #[test]
    fn sessions_of_a_user_are_one_chain_of_the_index() {
        let names = NameHasher::new(1, 1);
        let mut sessions = Slab::new();
        let mut users = Users::default();
        let ats: Vec<u32> =
            ["alice", "bob", "alice"].map(|user| sessions.insert(session(user)) as u32).into();
        for at in &ats {
            users.insert(*at, &mut SessionTable { sessions: &mut sessions, names: &names });
        }
        assert_eq!(users.len(), 2);
        let first = |users: &Users, sessions: &Slab<Session>| {
            users.first(names.hash("alice"), |at| sessions[*at as usize].user == "alice")
        };
        users.remove(ats[2], &mut SessionTable { sessions: &mut sessions, names: &names });
        assert_eq!(first(&users, &sessions), Some(ats[0]));
        users.remove(ats[0], &mut SessionTable { sessions: &mut sessions, names: &names });
        assert_eq!((first(&users, &sessions), users.len()), (None, 1));
    }
}
