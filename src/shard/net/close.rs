//! Endings: ours, the peer's, faults, time; and what a dead connection leaves to be done.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::base::form::Form;
use crate::base::frame::SharedFrame;
use crate::base::id::ConnKey;
use crate::base::limits::{TURN_LEAVERS_MAX, TURN_TIMERS_MAX};
use crate::base::notices::Reason;
use crate::base::time::Millis;
use crate::io::Driver;
use crate::proto::client::{Disconnect, Push, Unsubscribed};
use crate::proto::http::Refusal;
use crate::proto::ws::{self, Fault};
use crate::session::{Renewal, Session, Sub, SubState, WaitsFor};
use crate::shard::clients::aside::{Admin, Check};
use crate::shard::http::requests::UniWebSocketOptions;
use crate::shard::mail::Mail;
use crate::shard::net::record::{Conn, NONE, Phase};
use crate::shard::net::timers::TICK_MS;
use crate::shard::notices::reason_of_close;
use crate::shard::{Shard, ticks};

impl<D: Driver> Shard<D> {
    /// Ends a client's session with a code of the client protocol.
    pub(crate) fn disconnect(&mut self, index: u32, why: Disconnect) {
        self.disconnect_because(index, why, "");
    }

    /// The same with a detail for the log.
    pub(crate) fn disconnect_because(&mut self, index: u32, why: Disconnect, detail: &'static str) {
        self.disconnect_in(index, why, "", detail);
    }

    /// The same for something about a channel.
    pub(crate) fn disconnect_in(
        &mut self,
        index: u32,
        why: Disconnect,
        channel: &str,
        detail: &'static str,
    ) {
        self.end_session_because(index, why.code(), why.reason(), channel, detail);
    }

    /// Ends a session with a code, after what is queued: a WebSocket by a close frame, whose answer is
    /// awaited, a response by a push.
    pub(crate) fn end_session(&mut self, index: u32, code: u16, reason: &str) {
        // What the application gives as its reason is for the client and for the log.
        self.end_session_because(index, code, reason, "", reason);
    }

    fn end_session_because(
        &mut self,
        index: u32,
        code: u16,
        reason: &str,
        channel: &str,
        detail: &str,
    ) {
        let Some(conn) = self.net.conns.get(index as usize) else { return };
        if !matches!(conn.phase, Phase::Echo | Phase::Client | Phase::Unusable) {
            return;
        }
        self.notice(index, reason_of_close(code), code.into(), channel, format_args!("{detail}"));
        let form = conn.form;
        if code == Disconnect::ConnectionClosed.code() {
            // The connection is to end, and nothing is to be said about it.
            self.detach(index);
            self.net.take_held(index);
            return self.linger(index);
        }
        if form.is_poll() {
            return self.break_off_poll(index, code, reason);
        }
        if !form.framing().is_websocket() {
            return self.end_stream(index, code, reason);
        }
        self.detach(index);
        // What was to go behind the reply to `connect` has gone with the session.
        self.net.take_held(index);
        if form.is_one_way() {
            let UniWebSocketOptions { tells_end, closes, .. } = self.cx.node.options.uni_websocket;
            // Codes below are RFC 6455's, and no client's business but in the close frame.
            if tells_end && code >= Disconnect::ConnectionClosed.code() {
                self.push(index, "", &Push::Disconnect { code, reason });
            }
            if !closes {
                return self.linger(index);
            }
        }
        let mut frame = Vec::new();
        ws::close_frame(&mut frame, Some(code), reason);
        self.net.enqueue(&self.cx, index, SharedFrame::new(&frame));
        let tick = self.cx.tick();
        let Some(conn) = self.net.conns.get_mut(index as usize) else { return };
        conn.phase = Phase::Closing;
        conn.since_tick = tick;
        conn.go_on();
        if let Some(rx) = &mut conn.rx {
            rx.commands = Vec::new();
        }
        let key = conn.key(index);
        self.net.set_replaceable(index);
        // What was held back may hold the peer's close frame, or its end.
        self.net.mark_ready(key);
        self.schedule(index);
    }

    /// The peer broke a rule of RFC 6455: close frame, FIN, and nothing of it is read any more.
    pub(crate) fn fault(&mut self, index: u32, fault: Fault) {
        let counters = self.cx.counters();
        match fault.close_code() {
            1007 => counters.faults_utf8.add(1),
            1009 => counters.faults_too_long.add(1),
            _ => counters.faults_protocol.add(1),
        }
        self.end_session(index, fault.close_code(), fault.reason());
        if let Some(conn) = self.net.conns.get_mut(index as usize) {
            conn.flags.set_deaf(true);
            conn.rx = None;
        }
        self.linger(index);
    }

    /// The peer's close frame has come.
    pub(crate) fn peer_closed(&mut self, index: u32, code: Option<u16>) {
        let Some(conn) = self.net.conns.get(index as usize) else { return };
        if conn.phase != Phase::Closing {
            self.notice_gone(index);
            self.detach(index);
            let mut frame = Vec::new();
            ws::close_frame(&mut frame, code, "");
            self.net.take_held(index);
            self.net.enqueue(&self.cx, index, SharedFrame::new(&frame));
        }
        self.linger(index);
    }

    /// Lets what is queued out, sends the FIN, and waits for the peer's: closing at once with bytes
    /// unread would reset the connection and destroy what the peer has not read yet.
    pub(crate) fn linger(&mut self, index: u32) {
        let tick = self.cx.tick();
        let Some(conn) = self.net.conns.get_mut(index as usize) else { return };
        if conn.socket.is_none() {
            return;
        }
        conn.phase = Phase::Lingering;
        conn.since_tick = tick;
        conn.flags.set_deaf(true);
        conn.go_on();
        let rx = conn.rx.take();
        let key = conn.key(index);
        self.forget_rx(rx);
        self.leave_client_place(index);
        self.net.set_replaceable(index);
        self.net.mark_ready(key);
        self.net.mark_dirty(key);
        self.schedule(index);
    }

    /// Takes a session apart: out of the subscriber lists and the user index; homes are told as far
    /// as there is room for mail, the rest stays owed.
    pub(crate) fn detach(&mut self, index: u32) {
        self.leave_client_place(index);
        let Some(conn) = self.net.conns.get(index as usize) else { return };
        let (at, key) = (conn.session, conn.key(index));
        let Some(session) = self.clients.sessions.get_mut(at as usize) else { return };
        let subs = std::mem::take(&mut session.subs);
        if !session.flags.detached() {
            session.flags.set_detached(true);
            let extra = session.extra.take();
            for sub in extra.iter().flat_map(|extra| &extra.subs) {
                if let Some(filter) = sub.filter {
                    self.local.filters.release(filter);
                }
            }
            self.forget_user(at);
        }
        for sub in subs.as_slice() {
            let mut sub = *sub;
            self.leave_list(&mut sub);
            if self.tell_home(index, &sub).is_err()
                && let Some(session) = self.clients.sessions.get_mut(at as usize)
            {
                session.subs.push(sub);
            }
        }
        self.leave_user(at, key);
        let done = |session: &Session| session.subs.is_empty() && !session.flags.user_counted();
        if self.clients.sessions.get(at as usize).is_some_and(done) {
            self.clients.sessions.remove(at as usize);
            if let Some(conn) = self.net.conns.get_mut(index as usize) {
                conn.session = NONE;
            }
        }
    }

    /// Tells the home of a user that one of its connections has gone, if there is room.
    fn leave_user(&mut self, session: u32, conn: ConnKey) {
        let Some(session) = self.clients.sessions.get_mut(session as usize) else { return };
        let home = self.cx.node.names.home(self.cx.node.names.hash(&session.user));
        if !session.flags.user_counted() || self.post.is_full(home) {
            return;
        }
        session.flags.set_user_counted(false);
        let user = session.user.as_str().into();
        self.post.send(&self.cx, home, Mail::UserLeave { user, conn });
    }

    /// Takes a subscription out of its channel's list.
    pub(crate) fn leave_list(&mut self, sub: &mut Sub) {
        if sub.state == SubState::Live {
            let held = self.local.locals.held(sub.channel);
            if let Some(local) = self.local.locals.get(sub.channel)
                && let Some(moved) = local.subscribers.remove(sub.place, held)
            {
                self.moved(sub.channel, moved.conn, sub.place);
            }
        }
        if sub.state != SubState::Owed && !sub.flags.hidden() {
            self.cx.counters().subscriptions.sub(1);
        }
        sub.state = SubState::Owed;
    }

    /// A subscriber has a new place in its channel's list.
    pub(crate) fn moved(&mut self, channel: u32, conn: u32, place: u32) {
        let Some(conn) = self.net.conns.get(conn as usize) else { return };
        if let Some(session) = self.clients.sessions.get_mut(conn.session as usize)
            && let Some(sub) = session.subs.find(channel)
        {
            sub.place = place;
        }
    }

    /// Tells the home that a subscription of a dead session has ended, if there is room.
    fn tell_home(&mut self, index: u32, sub: &Sub) -> Result<(), ()> {
        let Some(local) = self.local.locals.get(sub.channel) else { return Ok(()) };
        if self.post.is_full(local.home) {
            return Err(());
        }
        self.leave_home(index, sub, None);
        Ok(())
    }

    /// Closes the socket and frees what the connection had. The slot is free when all homes are
    /// told.
    pub(crate) fn release(&mut self, index: u32, reset: bool) {
        let Some(conn) = self.net.conns.get_mut(index as usize) else { return };
        let Some(socket) = conn.socket.take() else { return };
        let key = conn.key(index);
        let rx = conn.rx.take();
        conn.phase = Phase::Leaving;
        self.net.queues.release(&mut conn.queue);
        self.net.take_held(index);
        self.net.wheel.remove(&mut self.net.conns, index);
        self.forget_address(index);
        self.net.set_busy(index);
        self.net.driver.close(key, socket, reset);
        self.forget_rx(rx);
        self.cx.node.open[self.cx.id.index()].fetch_sub(1, Ordering::Relaxed);
        self.forget_client(index);
        self.cx.counters().connections_open.sub(1);
        self.cx.counters().connections_closed.add(1);
        self.net.leaving.push_back(&mut self.net.conns, index);
        self.net.leaving_count += 1;
    }

    /// The peer has gone while its `connect` waits for an answer: nobody would get the result, and the
    /// check of its token, or its place, is of use to others. A connected client's commands are
    /// carried out first, since it sent them before it went. So is a `connect` whose FIN came along
    /// with it: that peer has closed one way only, and reads on.
    pub(crate) fn leave_before_connected(&mut self, index: u32) {
        self.notice_gone(index);
        self.release(index, false);
    }

    /// A connection is no client's any more: what is kept of one beside its session goes.
    pub(crate) fn forget_client(&mut self, index: u32) {
        self.leave_client_place(index);
        if let Some(aside) = self.clients.asides.remove(index) {
            if let Some(Check::Requested(interest)) = aside.check {
                interest.withdraw();
                self.cx.counters().tokens_withdrawn.add(1);
            }
            if aside.admin == Some(Admin::Connected) {
                self.cx.node.admins.fetch_sub(1, Ordering::Relaxed);
            }
        }
        if !self.net.heads.is_empty() {
            self.net.heads.remove(&index);
        }
        if !self.net.polls.is_empty() {
            self.net.polls.remove(&index);
        }
    }

    /// Frees the slots of closed connections, a bounded number in a turn.
    pub(crate) fn clean_up_leavers(&mut self) {
        for _ in 0..self.net.leaving_count.min(TURN_LEAVERS_MAX as u64) {
            let Some(index) = self.net.leaving.pop_front(&mut self.net.conns) else { break };
            self.net.leaving_count -= 1;
            self.detach(index);
            if self.net.conns[index as usize].session == NONE {
                self.net.conns.remove(index as usize);
            } else {
                // Some home has no room for the mail: behind all others, once more.
                self.net.leaving.push_back(&mut self.net.conns, index);
                self.net.leaving_count += 1;
                break;
            }
        }
    }

    /// The node's timers: when this connection has to be looked at next.
    pub(crate) fn schedule(&mut self, index: u32) {
        let Some(deadline) = self.deadline(index) else { return };
        let Some(conn) = self.net.conns.get(index as usize) else { return };
        if conn.socket.is_none() {
            return;
        }
        // A later deadline is found when the earlier one fires: cheaper than moving it.
        if conn.deadline_tick == 0 || conn.deadline_tick > deadline {
            let at = Millis(u64::from(deadline) * TICK_MS);
            self.net.wheel.set(&mut self.net.conns, index, at);
        }
    }

    /// The next tick at which something of a connection is due.
    fn deadline(&self, index: u32) -> Option<u32> {
        let conn = self.net.conns.get(index as usize)?;
        let options = &self.cx.node.options;
        let phase_ends = || Some(conn.since_tick.saturating_add(ticks(self.phase_ms(conn)?)));
        let blocked = || {
            let tick = self.net.queues.get(conn.queue)?.blocked_tick?;
            Some(tick.saturating_add(ticks(options.write_timeout_ms)))
        };
        let first = |deadlines: [Option<u32>; 3]| deadlines.into_iter().flatten().min();
        match conn.phase {
            Phase::Head | Phase::Body | Phase::Asked => first([phase_ends(), blocked(), None]),
            Phase::Echo | Phase::Unusable | Phase::Closing | Phase::Lingering => phase_ends(),
            Phase::Client => match self.clients.sessions.get(conn.session as usize) {
                None => first([phase_ends(), blocked(), None]),
                Some(session) => first([Some(session.due_tick), blocked(), self.expiry(session)]),
            },
            Phase::Leaving => None,
        }
    }

    /// How long a connection may be in its phase, where that has an end: a client's session has times of its own.
    fn phase_ms(&self, conn: &Conn<D::Socket>) -> Option<u64> {
        let options = &self.cx.node.options;
        match conn.phase {
            Phase::Head if conn.flags.served() && conn.rx.is_none() => {
                Some(options.idle_timeout_ms)
            }
            Phase::Head => Some(options.handshake_timeout_ms),
            Phase::Body => {
                let incoming = conn.rx.as_ref().and_then(|rx| rx.incoming.as_ref());
                Some(incoming.map_or(0, |incoming| incoming.allowed_ms()))
            }
            Phase::Echo => Some(options.idle_timeout_ms),
            Phase::Unusable | Phase::Closing | Phase::Lingering => Some(options.close_timeout_ms),
            Phase::Client if conn.session == NONE => self.cx.client.stale_close_delay_ms,
            Phase::Client | Phase::Asked | Phase::Leaving => None,
        }
    }

    /// The tick at which a session or one of its subscriptions has been expired for too long.
    fn expiry(&self, session: &Session) -> Option<u32> {
        let client = &self.cx.client;
        // What the application refreshes is asked about at once, and not again until it has answered.
        let delay = match client.proxies.refresh {
            Some(_) => 0,
            None => seconds(client.expired_close_delay_ms),
        };
        let of_connection = session
            .expires
            .filter(|_| !session.flags.refreshing())
            .map(|at| i64::from(at.seconds()).saturating_add(delay));
        let delay = seconds(client.expired_sub_close_delay_ms);
        let of_subs = session
            .extra
            .as_ref()
            .and_then(|extra| extra.subs.iter().filter_map(|sub| sub.due(delay)).min());
        let at = [of_connection, of_subs].into_iter().flatten().min()?;
        let left = u64::try_from(at.saturating_sub(self.cx.unix.0)).unwrap_or(0);
        Some(match left {
            0 => self.cx.tick(),
            left => self.cx.tick().saturating_add(ticks(left.saturating_mul(1000))),
        })
    }

    /// How often a session is pinged, and how soon the pong has to come; from one-way connections none does.
    pub(crate) fn ping_times(&self, form: Form, frame_ping: bool) -> (u64, Option<u64>) {
        let client = Arc::clone(&self.cx.client);
        match client.ping_interval_ms {
            _ if form.is_poll() => (self.cx.node.options.poll_wait_ms, None),
            _ if frame_ping => (FRAME_PING_INTERVAL_MS, Some(FRAME_PONG_TIMEOUT_MS)),
            Some(interval) => (interval, client.pong_timeout_ms.filter(|_| !form.is_one_way())),
            None => (NO_PING_MS, None),
        }
    }

    /// Fires what is due, a bounded number in a turn.
    pub(crate) fn fire_timers(&mut self) {
        let now = self.cx.now;
        let mut budget = TURN_TIMERS_MAX;
        while let Some(index) = self.net.wheel.pop_expired(now, &mut self.net.conns, &mut budget) {
            self.timer(index);
        }
    }

    /// Whether a connection is late with something that its peer sends.
    fn overdue(&self, index: u32) -> bool {
        let Some(conn) = self.net.conns.get(index as usize) else { return false };
        match conn.phase {
            Phase::Client => match self.clients.sessions.get(conn.session as usize) {
                Some(session) => {
                    let tick = self.cx.tick();
                    session.flags.pong_window() && session.flags.pong_due()
                        || self.expiry(session).is_some_and(|at| at <= tick)
                }
                None => true,
            },
            Phase::Echo => conn.flags.probed(),
            Phase::Leaving => false,
            _ => true,
        }
    }

    /// Whether nothing that waits for a connection has been taken for too long.
    fn takes_nothing(&self, index: u32) -> bool {
        let Some(conn) = self.net.conns.get(index as usize) else { return false };
        let limit = ticks(self.cx.node.options.write_timeout_ms);
        self.net.queues.get(conn.queue).is_some_and(|queue| {
            queue.blocked_tick.is_some_and(|since| since.saturating_add(limit) <= self.cx.tick())
        })
    }

    /// A shard that was busy, or a process that stood still, may not have read yet what came in time, nor heard that
    /// a socket has room: both are tried before the peer is judged.
    fn look_before_judging(&mut self, index: u32) {
        if self.overdue(index)
            && let Some(conn) = self.net.conns.get(index as usize)
        {
            let key = conn.key(index);
            self.read(key);
        }
        let ends = |phase| matches!(phase, Phase::Unusable | Phase::Closing | Phase::Lingering);
        let stuck = self.takes_nothing(index);
        if let Some(conn) = self.net.conns.get_mut(index as usize)
            && conn.flags.blocked()
            && (stuck || ends(conn.phase))
        {
            conn.flags.set_blocked(false);
            let key = conn.key(index);
            self.write(key);
        }
    }

    /// A deadline is found long after it was over: the shard was not there to see what the peer did. Whether the
    /// peer has a little longer; what the turns until then bring decides.
    fn put_off(&mut self, index: u32, deadline: u32) -> bool {
        let tick = self.cx.tick();
        let Some(conn) = self.net.conns.get(index as usize) else { return false };
        if tick - deadline < LATE_TICKS {
            return false;
        }
        let ends = tick.saturating_add(ticks(GRACE_MS));
        let limit = ticks(self.cx.node.options.write_timeout_ms);
        let phase_ms = self.phase_ms(conn);
        let (session, queue) = (conn.session, conn.queue);
        let mut is_put_off = false;
        if let Some(ms) = phase_ms
            && let Some(conn) = self.net.conns.get_mut(index as usize)
            && conn.since_tick.saturating_add(ticks(ms)) <= tick
        {
            conn.since_tick = ends.saturating_sub(ticks(ms));
            is_put_off = true;
        }
        if let Some(queue) = self.net.queues.get_mut(queue)
            && let Some(since) = &mut queue.blocked_tick
            && since.saturating_add(limit) <= tick
        {
            *since = ends.saturating_sub(limit);
            is_put_off = true;
        }
        if let Some(session) = self.clients.sessions.get_mut(session as usize)
            && session.flags.pong_window()
            && session.flags.pong_due()
            && session.due_tick <= tick
        {
            session.due_tick = ends;
            is_put_off = true;
        }
        is_put_off
    }

    fn timer(&mut self, index: u32) {
        self.look_before_judging(index);
        let tick = self.cx.tick();
        let deadline = self.deadline(index).filter(|deadline| *deadline <= tick);
        let Some(deadline) = deadline else { return self.schedule(index) };
        if self.put_off(index, deadline) {
            self.cx.counters().deadlines_put_off.add(1);
            // What else is due comes with the next turn.
            return self.schedule(index);
        }
        let blocked = self.takes_nothing(index);
        let Some(conn) = self.net.conns.get(index as usize) else { return };
        match conn.phase {
            Phase::Head | Phase::Body | Phase::Asked | Phase::Client if blocked => {
                // 3009 by its name; no close frame gets through to this peer.
                self.cx.counters().closed_write_timeout.add(1);
                self.notice(index, Reason::CloseWriteTimeout, 3009, "", format_args!("reset"));
                self.release(index, true);
            }
            // It was served and waits for nothing: kept alive for long enough.
            Phase::Head if conn.flags.served() && conn.rx.is_none() => self.linger(index),
            // Nothing came over it: an answer to no request would be taken for that of the next one.
            Phase::Head if conn.rx.is_none() => {
                self.cx.counters().closed_unused.add(1);
                self.release(index, false);
            }
            Phase::Head => self.refuse(index, Refusal::Timeout),
            // The rest of its body may be here, and is read in the next turns. It has a bound.
            Phase::Body if conn.flags.ready() => self.schedule(index),
            Phase::Body => self.body_is_late(index),
            // The application is asked who it is, or a home has no credit for its token: it is not the client that
            // is late.
            Phase::Client
                if conn.session == NONE && conn.waits.is_some_and(WaitsFor::is_of_the_node) =>
            {
                self.net.conns[index as usize].since_tick = tick;
                self.schedule(index);
            }
            Phase::Client if conn.session == NONE => {
                self.cx.counters().closed_stale.add(1);
                self.disconnect(index, Disconnect::Stale);
            }
            Phase::Client => {
                self.ping_or_close(index);
                self.schedule(index);
            }
            Phase::Echo if !conn.flags.probed() => {
                let frame = self.codec.constants.ws_ping.clone();
                self.net.enqueue(&self.cx, index, frame);
                let conn = &mut self.net.conns[index as usize];
                conn.since_tick = tick;
                conn.flags.set_probed(true);
                self.schedule(index);
            }
            Phase::Echo if conn.flags.blocked() || conn.flags.paused() => {
                // It doesn't read, so it can't answer: keep-alive decides whether it lives.
                self.net.conns[index as usize].since_tick = tick;
                self.schedule(index);
            }
            Phase::Echo => {
                self.cx.counters().closed_idle.add(1);
                self.notice(index, Reason::CloseIdle, 0, "", format_args!("roost.idle_timeout"));
                self.release(index, false);
            }
            Phase::Unusable if !conn.form.framing().is_websocket() => self.finish_response(index),
            Phase::Unusable | Phase::Closing | Phase::Lingering => {
                self.cx.counters().close_timeouts.add(1);
                self.release(index, false);
            }
            Phase::Asked | Phase::Leaving => {}
        }
    }

    /// A session's timer: is it expired, did the pong come, is it time for a ping?
    fn ping_or_close(&mut self, index: u32) {
        let tick = self.cx.tick();
        let now = self.cx.unix;
        let client = Arc::clone(&self.cx.client);
        let pings = client.ping_interval_ms.is_some();
        let expired_delay = match client.proxies.refresh {
            Some(_) => 0,
            None => seconds(client.expired_close_delay_ms),
        };
        let conn = &self.net.conns[index as usize];
        let (frame_ping, form) = (conn.flags.frame_ping(), conn.form);
        let (interval, pong_timeout) = self.ping_times(form, frame_ping);
        let Some(session) = self.clients.sessions.get_mut(conn.session as usize) else { return };
        let is_over = session
            .expires
            .is_some_and(|at| now.0 >= i64::from(at.seconds()).saturating_add(expired_delay));
        match &client.proxies.refresh {
            Some(proxy)
                if is_over && !session.flags.refreshing() && session.connecting().is_none() =>
            {
                self.ask_to_refresh(index, proxy);
            }
            None if is_over => {
                self.cx.counters().closed_expired.add(1);
                return self.disconnect(index, Disconnect::ConnectionExpired);
            }
            _ => {}
        }
        self.expire_subs(index);
        let conn = &self.net.conns[index as usize];
        let unhandled = conn.rx.as_ref().is_some_and(|rx| rx.has_leftover());
        let unread = conn.flags.paused() || conn.flags.ready() || unhandled;
        let held = conn.flags.held() && !form.is_poll();
        let Some(session) = self.clients.sessions.get_mut(conn.session as usize) else { return };
        if session.due_tick > tick {
            return;
        }
        if held {
            // Its reply isn't there, and a ping would wait behind it.
            session.due_tick = tick.saturating_add(ticks(interval));
            return;
        }
        if form.is_poll() {
            // One whose homes have not answered waits for them.
            session.due_tick = tick.saturating_add(ticks(interval));
            return self.answer_poll(index);
        }
        if session.flags.pong_window() {
            if session.flags.pong_due() && unread {
                // It is not read while a question of its is out, or a home has no credit, and what is read may
                // wait: the pong may be there.
                session.due_tick = tick.saturating_add(ticks(pong_timeout.unwrap_or(interval)));
                return;
            }
            if session.flags.pong_due() {
                self.cx.counters().closed_no_pong.add(1);
                return self.disconnect(index, Disconnect::NoPong);
            }
            // The pong has come: the rest of the interval.
            session.flags.set_pong_window(false);
            let rest = interval.saturating_sub(pong_timeout.unwrap_or(0));
            session.due_tick = tick.saturating_add(ticks(rest));
            return;
        }
        session.flags.set_pong_window(pong_timeout.is_some());
        session.flags.set_pong_due(pong_timeout.is_some());
        session.due_tick = tick.saturating_add(ticks(pong_timeout.unwrap_or(interval)));
        if frame_ping || pings {
            let frame = match frame_ping {
                true => self.codec.constants.ws_ping.clone(),
                false => self.codec.constants.ping(form),
            };
            self.cx.counters().pings.add(1);
            self.cx.counters().messages_sent.add(1);
            self.net.enqueue(&self.cx, index, frame);
        }
    }

    /// Ends subscriptions whose token has expired.
    fn expire_subs(&mut self, index: u32) {
        let delay = seconds(self.cx.client.expired_sub_close_delay_ms);
        let now = self.cx.unix.0;
        let conn = &self.net.conns[index as usize];
        let Some(session) = self.clients.sessions.get(conn.session as usize) else { return };
        let Some(extra) = &session.extra else { return };
        // One whose subscribe isn't answered yet waits for that: the push comes behind the reply.
        let live = |channel: u32| {
            let mut subs = session.subs.as_slice().iter();
            subs.any(|sub| sub.channel == channel && sub.state == SubState::Live)
        };
        let over: Vec<(u32, Renewal)> = extra
            .subs
            .iter()
            .filter(|sub| sub.due(delay).is_some_and(|at| now >= at) && live(sub.channel))
            .map(|sub| (sub.channel, sub.renewal))
            .collect();
        for (channel, renewal) in over {
            match renewal {
                Renewal::Server => self.ask_to_sub_refresh(index, channel),
                _ => self.end_sub(index, channel, Unsubscribed::Expired),
            }
        }
    }
}

/// A deadline that is found so much later than it was over was missed by the shard, not by the peer: a second.
const LATE_TICKS: u32 = 10;
/// So much longer the peer then has.
const GRACE_MS: u64 = 2000;
/// Milliseconds between two pings as RFC 6455 frames.
const FRAME_PING_INTERVAL_MS: u64 = 25_000;
/// The answer to one has to come so soon.
const FRAME_PONG_TIMEOUT_MS: u64 = 10_000;
/// With pings off: how often a session's timer fires although nothing is due.
const NO_PING_MS: u64 = 3_600_000;

/// A delay as tokens count, in whole seconds.
fn seconds(ms: u64) -> i64 {
    i64::try_from(ms / 1000).unwrap_or(i64::MAX / 4)
}
