//! Endings of connections that have both halves: a session, which leaves its channels, and a connection, which
//! says why it ends and then lingers.

use crate::base::frame::SharedFrame;
use crate::base::limits::TURN_LEAVERS_MAX;
use crate::io::Driver;
use crate::proto::client::{Disconnect, Push};
use crate::proto::ws::{self, Fault};
use crate::shard::Shard;
use crate::shard::http::endpoint::UniWebSocketOptions;
use crate::shard::net::record::{NONE, Phase};
use crate::shard::notices::reason_of_close;

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
            return self.net.linger(&self.cx, &mut self.post, index);
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
                return self.net.linger(&self.cx, &mut self.post, index);
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
        self.net.linger(&self.cx, &mut self.post, index);
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
        self.net.linger(&self.cx, &mut self.post, index);
    }

    /// The peer has gone while its `connect` waits for an answer: nobody would get the result, and the
    /// check of its token, or its place, is of use to others. A connected client's commands are
    /// carried out first, since it sent them before it went. So is a `connect` whose FIN came along
    /// with it: that peer has closed one way only, and reads on.
    pub(crate) fn leave_before_connected(&mut self, index: u32) {
        self.notice_gone(index);
        self.net.release(&self.cx, &mut self.post, index, false);
    }

    /// Frees the slots of closed connections, a bounded number in a turn.
    pub(crate) fn clean_up_leavers(&mut self) {
        for _ in 0..self.net.leaving_count.min(TURN_LEAVERS_MAX as u64) {
            let Some(index) = self.net.leaving.pop_front(&mut self.net.conns) else { break };
            self.net.leaving_count -= 1;
            self.forget_client(index);
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
}
