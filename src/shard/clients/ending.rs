//! Endings of sessions: a session leaves its channels, and its connection says why it ends and then lingers.

use std::sync::Arc;

use crate::base::frame::SharedFrame;
use crate::base::limits::TURN_LEAVERS_MAX;
use crate::edge::proxy::AppDisconnect;
use crate::io::Driver;
use crate::proto::client::{Disconnect, ErrorCode, Push};
use crate::proto::ws::{self, Fault};
use crate::shard::clients::Clients;
use crate::shard::clients::leave::End;
use crate::shard::http::endpoint::UniWebSocketOptions;
use crate::shard::local::LocalSide;
use crate::shard::net::record::Phase;
use crate::shard::notices::reason_of_close;
use crate::shard::outlets::Outlets;

/// The end of a session, as its client and the log are to have it.
struct SessionEnd<'a> {
    code: u16,
    reason: &'a str,
    /// The channel that it is about, for the log; empty for none.
    channel: &'a str,
    /// The detail for the log.
    detail: &'a str,
}

impl Clients {
    /// Ends a client's session with a code of the client protocol.
    pub(crate) fn disconnect<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        why: Disconnect,
    ) {
        self.disconnect_because(out, side, index, why, "");
    }

    /// The same with a detail for the log.
    pub(crate) fn disconnect_because<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        why: Disconnect,
        detail: &'static str,
    ) {
        self.disconnect_in(out, side, index, why, "", detail);
    }

    /// The same for something about a channel.
    pub(crate) fn disconnect_in<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        why: Disconnect,
        channel: &str,
        detail: &'static str,
    ) {
        let (code, reason) = (why.code(), why.reason());
        self.end_session_with(out, side, index, &SessionEnd { code, reason, channel, detail });
    }

    /// Ends a session with a code, after what is queued: a WebSocket by a close frame, whose answer is
    /// awaited, a response by a push.
    pub(crate) fn end_session<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        code: u16,
        reason: &str,
    ) {
        // The application's reason is for the client and for the log.
        let end = SessionEnd { code, reason, channel: "", detail: reason };
        self.end_session_with(out, side, index, &end);
    }

    fn end_session_with<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        end: &SessionEnd<'_>,
    ) {
        let SessionEnd { code, reason, channel, detail } = *end;
        let Some(conn) = out.net.at(index) else { return };
        if !matches!(conn.phase, Phase::Echo | Phase::Client | Phase::Unusable) {
            return;
        }
        out.cx.counters().count_disconnect(code);
        self.notice(
            out,
            index,
            reason_of_close(code),
            code.into(),
            channel,
            format_args!("{detail}"),
        );
        let about = if detail.is_empty() { channel } else { detail };
        self.remember_close(out, index, (code, false), about);
        let Some(conn) = out.net.at(index) else { return };
        let form = conn.form;
        if code == Disconnect::ConnectionClosed.code() {
            // The connection is to end, and nothing is to be said about it.
            self.detach(out, side, index, End { code, reason });
            out.net.take_held(index);
            return out.net.linger(out.cx, out.post, index);
        }
        if form.is_poll() {
            return self.end_poll_session(out, side, index, code, reason);
        }
        if !form.framing().is_websocket() {
            return self.end_stream(out, side, index, code, reason);
        }
        self.detach(out, side, index, End { code, reason });
        // Frames held for the reply to `connect` go with the session.
        out.net.take_held(index);
        if form.is_one_way() {
            let UniWebSocketOptions { tells_end, closes, .. } = out.cx.node.options.uni_websocket;
            // Codes below are RFC 6455's, and no client's business but in the close frame.
            if tells_end && code >= Disconnect::ConnectionClosed.code() {
                self.push(out, side, index, "", &Push::Disconnect { code, reason });
            }
            if !closes {
                return out.net.linger(out.cx, out.post, index);
            }
        }
        let mut frame = Vec::new();
        ws::close_frame(&mut frame, Some(code), reason);
        out.net.enqueue(out.cx, index, SharedFrame::new(&frame));
        let tick = out.cx.tick();
        let Some(conn) = out.net.at_mut(index) else { return };
        conn.phase = Phase::Closing;
        conn.since_tick = tick;
        conn.go_on();
        if let Some(rx) = &mut conn.rx {
            rx.commands = Vec::new();
        }
        let key = conn.key(index);
        out.net.set_replaceable(index);
        // Unread input may hold the peer's close frame, or its end.
        out.net.mark_ready(key);
        self.schedule(out, index);
    }

    /// The peer broke a rule of RFC 6455: close frame, FIN, and nothing of it is read any more.
    pub(crate) fn fault<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        fault: Fault,
    ) {
        let counters = out.cx.counters();
        match fault.close_code() {
            1007 => counters.faults_utf8.add(1),
            1009 => counters.faults_too_long.add(1),
            _ => counters.faults_protocol.add(1),
        }
        self.end_session(out, side, index, fault.close_code(), fault.reason());
        if let Some(conn) = out.net.at_mut(index) {
            conn.flags.set_deaf(true);
            conn.rx = None;
        }
        out.net.linger(out.cx, out.post, index);
    }

    /// The peer's close frame has come.
    pub(crate) fn peer_closed<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        code: Option<u16>,
    ) {
        let Some(conn) = out.net.at(index) else { return };
        if conn.phase != Phase::Closing {
            self.notice_gone(out, index, code.unwrap_or(0), "");
            self.detach(out, side, index, End::closed());
            let mut frame = Vec::new();
            ws::close_frame(&mut frame, code, "");
            out.net.take_held(index);
            out.net.enqueue(out.cx, index, SharedFrame::new(&frame));
        }
        out.net.linger(out.cx, out.post, index);
    }

    /// The peer has gone, or its connection is broken.
    pub(crate) fn peer_gone<D: Driver>(&mut self, out: &mut Outlets<'_, D>, index: u32) {
        self.notice_gone(out, index, 0, "the connection ended without a close frame");
        out.net.release(out.cx, out.post, index, false);
    }

    /// The driver has refused the peer's input, and answered it: the session is over, and the FIN follows.
    pub(crate) fn peer_refused<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
    ) {
        self.notice_gone(out, index, 0, "invalid input below the WebSocket");
        self.detach(out, side, index, End::closed());
        out.net.take_held(index);
        out.net.linger(out.cx, out.post, index);
    }

    /// Frees the slots of closed connections, a bounded number in a turn.
    pub(crate) fn clean_up_leavers<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
    ) {
        for _ in 0..out.net.leavers().min(TURN_LEAVERS_MAX) {
            let Some(index) = out.net.next_leaver() else { break };
            self.forget_client(out, index);
            self.detach(out, side, index, End::closed());
            if !out.net.free_slot(index) {
                // Some home has no room for the mail: behind all others, once more.
                break;
            }
        }
    }

    /// The `connect` of a one-way client is an error: no reply can say so, it is closed for it (client
    /// protocol, 8).
    pub(crate) fn one_way_error<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        code: u32,
    ) {
        if out.net.answer_code(out.cx, out.post, index, code) {
            return self.detach(out, side, index, End::closed());
        }
        let client = Arc::clone(&out.cx.client);
        let special = client.one_way_disconnects.iter().find(|(of, _)| *of == code);
        if let Some((_, AppDisconnect { code, reason })) = special {
            return self.end_session(out, side, index, *code, reason);
        }
        let known = |error: ErrorCode| u32::from(error.code()) == code;
        let why = match code {
            _ if known(ErrorCode::TokenExpired) || known(ErrorCode::Expired) => {
                Disconnect::ConnectionExpired
            }
            _ if known(ErrorCode::TooManyRequests) => Disconnect::TooManyRequests,
            _ if known(ErrorCode::PermissionDenied) => Disconnect::PermissionDenied,
            _ => Disconnect::InternalError,
        };
        self.disconnect(out, side, index, why);
    }

    /// Ends a response: says why, and that nothing more comes.
    pub(crate) fn end_stream<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        code: u16,
        reason: &str,
    ) {
        if out.net.answer_code(out.cx, out.post, index, code.into()) {
            return self.detach(out, side, index, End { code, reason });
        }
        // Before the head, which would be held, and dropped with the session.
        out.net.take_held(index);
        out.net.send_head(out.cx, index);
        self.detach(out, side, index, End { code, reason });
        self.push(out, side, index, "", &Push::Disconnect { code, reason });
        out.net.finish_response(out.cx, out.post, index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::ConnKey;
    use crate::io::sim::LinkId;
    use crate::proto::client::ConnectRequest;
    use crate::shard::clients::testing::Scene;
    use crate::shard::fixture::Plan;
    use crate::shard::flow::Flow;
    use crate::shard::http::endpoint::{CodeResponse, Endpoint, EndpointKind};
    use crate::shard::mail::Asker;
    use crate::shard::net::effects::Effect;

    #[test]
    fn a_websocket_ends_with_a_close_frame_and_waits_for_the_peers() {
        let mut scene = Scene::new(Plan::default());
        let (link, key, channel) = scene.subscriber("alice", "news");
        scene.with(|clients, out, side| {
            clients.disconnect(out, side, key.index, Disconnect::ForceReconnect);
        });
        let sent = scene.wired.received(link);
        assert!(sent.ends_with("force reconnect"), "{sent}");
        assert_eq!(scene.phase(key), Some(Phase::Closing));
        assert!(scene.session(key).is_none() && scene.side.locals.get(channel).is_some());
        // A second ending sends nothing.
        scene.with(|clients, out, side| {
            clients.disconnect(out, side, key.index, Disconnect::Stale);
        });
        assert_eq!(scene.wired.received(link), "");
        scene.with(|clients, out, side| clients.peer_closed(out, side, key.index, Some(1000)));
        assert_eq!(scene.phase(key), Some(Phase::Lingering));
        assert_eq!(scene.end(), []);
    }

    #[test]
    fn a_peer_that_has_closed_gets_its_answer_and_one_fin() {
        let mut scene = Scene::new(Plan::default());
        let (link, key) = scene.client("alice");
        scene.wired.world.borrow_mut().keep_events();
        // A close frame without a code, and the FIN behind it.
        scene.wired.world.borrow_mut().write(link, &[0x88, 0x80, 1, 2, 3, 4]);
        scene.wired.world.borrow_mut().shut(link);
        scene.wired.after(1);
        scene.wired.net.conn(key).unwrap().flags.set_ended(true);
        scene.with(|clients, out, side| clients.read(out, side, key));
        let events = scene.wired.world.borrow_mut().take_events();
        let ops: Vec<String> = events.iter().map(ToString::to_string).collect();
        let count = |op: &str| ops.iter().filter(|event| event.contains(op)).count();
        assert_eq!((count("Send"), count("Finish"), count("Close")), (1, 0, 1), "{ops:#?}");
        assert_eq!(scene.end(), []);
    }

    #[test]
    fn a_broken_rule_of_websockets_is_counted_and_nothing_more_is_read() {
        let mut scene = Scene::new(Plan::default());
        let (link, key) = scene.client("alice");
        scene.with(|clients, out, side| {
            clients.fault(out, side, key.index, Fault::MessageTooLong { bytes: 9 });
        });
        assert_eq!(scene.wired.cx.counters().faults_too_long.get(), 1);
        assert!(!scene.wired.received(link).is_empty());
        let conn = scene.wired.net.conn(key).unwrap();
        assert!(conn.flags.deaf() && conn.phase == Phase::Lingering);
        assert_eq!(scene.end(), []);
    }

    #[test]
    fn a_connection_that_goes_frees_its_slot_when_its_homes_know() {
        let mut scene = Scene::new(Plan::default());
        let (_, key, _) = scene.subscriber("alice", "news");
        scene.with(|clients, out, _| clients.peer_gone(out, key.index));
        assert_eq!(scene.wired.net.leavers(), 1);
        let home = crate::base::id::ShardId(0);
        let post = &mut scene.wired.posts.post;
        while !post.is_full(home) {
            post.send(&scene.wired.cx, home, crate::shard::mail::Mail::Gap { local: 0 });
        }
        scene.with(|clients, out, side| clients.clean_up_leavers(out, side));
        assert_eq!(scene.wired.net.leavers(), 1, "a home has no room");
        scene.carry_mail();
        scene.with(|clients, out, side| clients.clean_up_leavers(out, side));
        assert_eq!(scene.wired.net.leavers(), 0);
        assert_eq!(scene.end(), []);
    }

    /// A one-way stream whose `connect` waits until the user's connections are counted.
    fn connecting(responses: Vec<CodeResponse>) -> (Scene, LinkId, ConnKey) {
        let mut plan = Plan::default();
        plan.client.user_connection_limit = 1;
        let endpoint = Endpoint::new("/x", EndpointKind::UniHttpStream);
        plan.options.endpoints = vec![Endpoint { body_bytes_max: 100, responses, ..endpoint }];
        let mut scene = Scene::new(plan);
        let (link, key) = scene.wired.connect();
        let head = "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}";
        scene.wired.request(key, head);
        let last = std::iter::from_fn(|| scene.wired.net.next_effect()).last();
        assert!(matches!(last, Some(Effect::Message { .. })));
        scene.clients.asides.entry(key.index).header_user = "alice".into();
        let flow = scene.with(|clients, out, side| {
            let result = clients.connect(out, side, key.index, 0, &ConnectRequest::default());
            clients.finish_command(out, side, key.index, 0, "", result)
        });
        assert_eq!(flow, Flow::On);
        (scene, link, key)
    }

    /// The home of the user has one connection too many.
    fn refuse(scene: &mut Scene, key: ConnKey) {
        scene.with(|clients, out, side| clients.user_entered(out, side, Asker::of(key), false));
    }

    #[test]
    fn an_error_before_the_reply_to_connect_keeps_the_head_of_the_response() {
        let (mut scene, link, key) = connecting(Vec::new());
        refuse(&mut scene, key);
        let sent = scene.wired.received(link);
        assert!(sent.starts_with("HTTP/1.1 200 "), "{sent}");
        assert!(sent.contains(r#""disconnect":{"code":3504,"#), "{sent}");
        assert!(scene.session(key).is_none());
        assert_eq!(scene.phase(key), Some(Phase::Lingering));
    }

    #[test]
    fn an_error_before_the_reply_to_connect_has_the_configured_status() {
        let code = u32::from(Disconnect::ConnectionLimit.code());
        let response = CodeResponse { code, status: 429, body: "too many".to_owned() };
        let (mut scene, link, key) = connecting(vec![response]);
        refuse(&mut scene, key);
        let sent = scene.wired.received(link);
        assert!(sent.starts_with("HTTP/1.1 429 ") && sent.ends_with("too many"), "{sent}");
        assert!(scene.session(key).is_none());
        assert_eq!(scene.phase(key), Some(Phase::Lingering));
    }
}
