//! `connect` and `refresh`: the user of a connection, and the subscriptions that the server makes for it.
//!
//! ```text
//!  token, header or anonymous -> session -> [count the user's connections] -> [subscriptions that
//!  the server makes, each requested of its home] -> reply, then the frames that were held
//! ```
//! Both steps in brackets are rare. While they last the session is *connecting*: no command of it is
//! handled, and its answers find it by [`Connecting`].

use std::sync::Arc;
use std::sync::atomic::Ordering;

use compact_str::CompactString;
use slab::Slab;

use crate::base::form::Transport;
use crate::base::id::ConnKey;
use crate::base::software::SoftwareId;
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
use crate::shard::clients::Clients;
use crate::shard::clients::aside::Admin;
use crate::shard::clients::commands::ErrorReply;
use crate::shard::clients::due::ping_times;
use crate::shard::context::Cx;
use crate::shard::flow::Flow;
use crate::shard::local::LocalSide;
use crate::shard::mail::{Asker, Mail, Method, UserConn};
use crate::shard::net::Net;
use crate::shard::net::record::Phase;
use crate::shard::net::timers::ticks;
use crate::shard::outlets::Outlets;

/// Sessions as the user index sees them.
pub(crate) struct SessionTable<'a> {
    pub(crate) sessions: &'a mut Slab<Session>,
    pub(crate) names: &'a NameHasher,
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

impl Clients {
    /// Handles a `connect`: a session begins, or the connection is of no use any more.
    pub(crate) fn connect<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        id: u32,
        request: &ConnectRequest<'_>,
    ) -> Result<Flow, Stop> {
        // Kept for all proxies; once more is the same.
        self.keep_emulated_headers(out, index, request);
        let key = out.net[index].key(index);
        let answer = self.asides.answer(index);
        let arrival = Arrival {
            header_user: self.asides.header_user(index).map(CompactString::as_str),
            is_poll: out.net.form(index).is_poll(),
            is_admin: self.asides.is_admin(index),
            admin: out.cx.node.rules.admin.as_ref(),
        };
        let is_short = out.cx.node.memory.is_short();
        let facts = Facts { is_short, ..self.facts(out.cx, side, key, out.net.encoding(index)) };
        let is_checked = facts.verdict.is_some();
        let decided = session::connect(request, answer.as_deref(), arrival, &facts);
        if is_checked && !request.token.is_empty() {
            self.asides.take(index, |aside| aside.check.take());
        }
        let stop = match decided {
            Ok(Opening::Session(new)) => {
                let software = out.cx.node.software.id(&request.name, &request.version);
                return Ok(self.begin_session(out, side, index, (id, software), new));
            }
            Ok(Opening::Unfit) => {
                self.inappropriate(out, side, index);
                return Ok(Flow::End);
            }
            Err(Stop::Verify(kind)) => self.request_check(out, index, &request.token, kind),
            Err(Stop::Call(proxy)) => {
                self.call_application(out, index, id, &proxy, || AppRequest::connect(request))
            }
            Err(stop) => stop,
        };
        // The connection is of no use any more after an error: its client has to close it.
        match stop {
            Stop::NoMemory => {
                out.cx.counters().short_connect.inc();
                Ok(self.fail_connect(out, side, index, id, ErrorCode::Internal, NO_MEMORY))
            }
            Stop::Error(code, why) => Ok(self.fail_connect(out, side, index, id, code, why)),
            Stop::AppError(error) => {
                self.reply_app_error(out, side, index, id, "", &error);
                Ok(self.await_close(out, index))
            }
            stop => Err(stop),
        }
    }

    /// Begins a session, and the steps before its reply.
    fn begin_session<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        (id, software): (u32, SoftwareId),
        mut new: NewSession,
    ) -> Flow {
        if !new.is_admin && out.net.take_client_place(out.cx, index).is_err() {
            let why = "no place for another client";
            return self.fail_connect(out, side, index, id, ErrorCode::TooManyRequests, why);
        }
        new.connecting.command = id;
        new.connecting.began_ms = self.began_ms(out.cx, index);
        let headers = self.asides.take(index, |aside| {
            aside.header_user = CompactString::default();
            aside.headers.take()
        });
        let is_admin = new.is_admin;
        if is_admin {
            self.asides.entry(index).admin = Some(Admin::Connected);
            out.cx.node.admins.fetch_add(1, Ordering::Relaxed);
        }
        let due_tick = first_ping(out, index);
        let (mut session, at_once) = Session::begin(new, headers, index, due_tick);
        session.software = software;
        let at = self.sessions.insert(session) as u32;
        out.net[index].session = at;
        out.net.set_busy(index);
        // An administrator is no user of the application: orders and counts leave it out.
        if !is_admin {
            let names = &out.cx.node.names;
            let mut table = SessionTable { sessions: &mut self.sessions, names };
            self.users.insert(at, &mut table);
            out.cx.software_clients(software).add(1);
        }
        self.schedule(out, index);
        match at_once {
            Some(connecting) => self.reply_connect(out, side, index, connecting),
            None => {
                out.net.begin_holding(index);
                self.go_on_connecting(out, side, index);
            }
        }
        Flow::On
    }

    /// Takes a session out of the user index.
    pub(crate) fn forget_user(&mut self, cx: &Cx, session: u32) {
        let Some(ended) = self.sessions.get(session as usize) else { return };
        if ended.flags.hidden() {
            return;
        }
        cx.software_clients(ended.software).sub(1);
        let mut table = SessionTable { sessions: &mut self.sessions, names: &cx.node.names };
        self.users.remove(session, &mut table);
    }

    /// `connect` failed: the error goes out, nothing more is taken, the client shall close.
    fn fail_connect<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        id: u32,
        code: ErrorCode,
        why: &'static str,
    ) -> Flow {
        self.reply_error(out, side, index, id, ErrorReply::new(code, "", why));
        self.await_close(out, index)
    }

    /// The error is out.
    fn await_close<D: Driver>(&mut self, out: &mut Outlets<'_, D>, index: u32) -> Flow {
        let tick = out.cx.tick();
        let Some(conn) = out.net.at_mut(index) else { return Flow::End };
        if conn.phase != Phase::Client {
            return Flow::End;
        }
        conn.phase = Phase::Unusable;
        conn.since_tick = tick;
        out.net.set_replaceable(index);
        self.schedule(out, index);
        // The rest of that message is dropped; a further one is a fault.
        Flow::Skip
    }

    /// Whether a session's `connect` is not answered yet.
    pub(crate) fn is_connecting<D: Driver>(&mut self, net: &Net<D>, index: u32) -> bool {
        self.session_of(net, index).is_some_and(|session| session.is_connecting())
    }

    /// Does the steps of a `connect` that can be done; without credit it waits for some, and comes back.
    pub(crate) fn go_on_connecting<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
    ) {
        loop {
            let key = out.net[index].key(index);
            let Some(session) = self.session_of(out.net, index) else { return };
            let command = session.connecting().map_or(0, |connecting| connecting.command);
            let asker = Asker { command, ..Asker::of(key) };
            match session.next_step() {
                Step::Wait => return,
                Step::Reply(connecting) => return self.connected(out, side, index, *connecting),
                Step::Count => return self.request_count(out, index, asker),
                Step::Subscribe(sub) => {
                    let requested = self.subscribe_by_server(out, side, index, asker, &sub);
                    if let Err(Stop::Wait(WaitsFor::Credit(home))) = requested {
                        if let Some(session) = self.session_of(out.net, index) {
                            session.give_back(sub);
                        }
                        return out.wait_for_credit(index, home);
                    }
                }
            }
        }
    }

    /// Has the home of the user count this connection.
    fn request_count<D: Driver>(&mut self, out: &mut Outlets<'_, D>, index: u32, asker: Asker) {
        let Some(session) = self.session_of(out.net, index) else { return };
        let user = session.user.clone();
        let home = out.cx.node.names.home(out.cx.node.names.hash(&user));
        let Ok(credits) = out.spend(home, 1) else {
            return out.wait_for_credit(index, home);
        };
        if let Some(session) = self.session_of(out.net, index) {
            session.count_requested();
        }
        let conn = UserConn { user, asker: Asker { credits, ..asker } };
        out.post.send(out.cx, home, Mail::UserEnter(Box::new(conn)));
    }

    /// A subscription that the server makes is there.
    pub(crate) fn server_sub_done<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        made: Made,
    ) {
        let Some(session) = self.session_of(out.net, index) else { return };
        match session.sub_made(made) {
            Ok(()) => self.go_on_connecting(out, side, index),
            Err(made) => self.push_subscribed(out, side, index, &made),
        }
    }

    /// A subscription that the server made while the client was connected.
    fn push_subscribed<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        made: &Made,
    ) {
        let Made { recoverable, positioned, epoch, offset, data, .. } = made;
        let push = Push::Subscribe(SubscribePush {
            recoverable: *recoverable,
            positioned: *positioned,
            epoch,
            offset: *offset,
            data,
        });
        self.push(out, side, index, &made.channel, &push);
        if let Some(missed) = &made.publications {
            out.net.enqueue(out.cx, index, missed.clone());
        }
    }

    /// The home of the user has counted this connection.
    pub(crate) fn user_entered<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        asker: Asker,
        admitted: bool,
    ) {
        let index = asker.conn.index;
        if out.net.conn(asker.conn).is_none() {
            return;
        }
        let Some(session) = self.session_of(out.net, index) else { return };
        if !session.counted() {
            return;
        }
        if admitted {
            return self.go_on_connecting(out, side, index);
        }
        out.cx.counters().closed_user_limit.add(1);
        let why = "the user has client.user_connection_limit connections already";
        self.disconnect_because(out, side, index, Disconnect::ConnectionLimit, why);
    }

    /// A newer connection of the user takes this one's place.
    pub(crate) fn evict<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        key: ConnKey,
    ) {
        if out.net.conn(key).is_some() {
            out.cx.counters().closed_user_limit.add(1);
            let why = "a newer connection of the user takes its place";
            self.disconnect_because(out, side, key.index, Disconnect::ConnectionLimit, why);
        }
    }

    /// All is there: the reply, and behind it the frames that were held.
    fn connected<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        connecting: Connecting,
    ) {
        let held = out.net.take_held(index);
        self.reply_connect(out, side, index, connecting);
        for frame in held {
            out.net.enqueue(out.cx, index, frame);
        }
        let conn = &out.net[index];
        if conn.phase == Phase::Client && conn.waits == Some(WaitsFor::Broker) {
            let key = conn.key(index);
            out.net.resume(key);
        }
    }

    fn reply_connect<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        connecting: Connecting,
    ) {
        out.cx.time_answer(Method::Connect, connecting.began_ms);
        self.notice_connected(out, index);
        if out.net.form(index).is_poll() {
            return self.poll_begun(out, side, index, connecting);
        }
        let client = Arc::clone(&out.cx.client);
        let conn = &out.net[index];
        let (frame_ping, form, key) = (conn.flags.frame_ping(), conn.form, conn.key(index));
        let (interval, pong_timeout) = ping_times(out.cx, form, frame_ping);
        let pings = client.ping_interval_ms.is_some() && !frame_ping;
        let client_id = out.cx.client_id(key).text();
        let node = Arc::clone(&out.cx.node);
        let transport = form.transport();
        let session =
            transport.has_session_ids().then(|| node.rules.session_ids.seal(out.cx.id, key).text());
        out.net.send_head(out.cx, index);
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
            time: if client.include_server_time { out.cx.unix.0 * 1000 } else { 0 },
        };
        match form.is_one_way() {
            true => self.push(out, side, index, "", &Push::Connect(result)),
            false => {
                out.net.reply(out.cx, out.codec, index, connecting.command, &Reply::Connect(result))
            }
        }
        if transport == Transport::UniSse && !connecting.made.is_empty() {
            out.net.list_to_mark(index);
        }
    }

    /// Sets `chan_info` of one subscription. A home without room gets it with the next change.
    pub(crate) fn reinform_in<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        at: u32,
        chan_info: Box<[u8]>,
    ) {
        let key = out.net[index].key(index);
        let Some(session) = self.session_of(out.net, index) else { return };
        let is_member = session.subs.find(at).is_some_and(|sub| sub.flags.member());
        session.sub_extra_or_new(at).info = chan_info.clone();
        let Some(local) = side.locals.get(at).filter(|_| is_member) else { return };
        let (home, channel) = (local.home, local.name.as_str().into());
        if !out.post.is_full(home) {
            let info = self.client_info(out, key, &chan_info);
            out.post.send(out.cx, home, Mail::Reinform { channel, conn: key, info });
        }
    }

    /// `conn_info` from a new token: those who see the client see that.
    pub(crate) fn reinform<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        info: Box<[u8]>,
    ) -> Result<(), Stop> {
        let key = out.net[index].key(index);
        let Some(session) = self.session_of(out.net, index) else { return Ok(()) };
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
            let Some(local) = side.locals.get(*at) else { continue };
            let home = local.home;
            if out.post.is_full(home) {
                return Err(Stop::Wait(WaitsFor::Credit(home)));
            }
        }
        if let Some(session) = self.session_of(out.net, index) {
            session.extra().info = info;
        }
        for at in members {
            let Some(session) = self.session_of(out.net, index) else { break };
            let chan_info = session.sub_extra(at).map(|sub| sub.info.clone()).unwrap_or_default();
            let info = self.client_info(out, key, &chan_info);
            let Some(local) = side.locals.get(at) else { continue };
            let (home, channel) = (local.home, local.name.as_str().into());
            out.post.send(out.cx, home, Mail::Reinform { channel, conn: key, info });
        }
        Ok(())
    }
}

/// The tick of the first ping: after half an interval to a whole one, so that a million clients
/// that came together are not pinged together.
fn first_ping<D: Driver>(out: &mut Outlets<'_, D>, index: u32) -> u32 {
    let conn = &out.net[index];
    let (interval, _) = ping_times(out.cx, conn.form, conn.flags.frame_ping());
    let spread = match conn.form.is_poll() {
        // As little as may be: it is how long a poll may wait.
        true => interval / 8,
        false => interval / 2,
    };
    let first = interval - out.net.random_below(spread);
    out.cx.tick().saturating_add(ticks(first))
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
