//! Deadlines of clients: judged, and carried out on session and connection.

use std::sync::Arc;

use crate::base::limits::TURN_TIMERS_MAX;
use crate::base::notices::Reason;
use crate::io::Driver;
use crate::proto::client::{Disconnect, Unsubscribed};
use crate::session::{Renewal, SubState};
use crate::shard::clients::Clients;
use crate::shard::clients::due::{Beat, Peer, seconds};
use crate::shard::local::LocalSide;
use crate::shard::net::Net;
use crate::shard::net::liveness::{Passed, grace_ends};
use crate::shard::net::record::Phase;
use crate::shard::outlets::Outlets;

impl Clients {
    /// Fires the timers that are due, a bounded number in a turn.
    pub(crate) fn fire_timers<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
    ) {
        let mut budget = TURN_TIMERS_MAX;
        while let Some(index) = out.net.next_timer(out.cx, &mut budget) {
            self.read_before_judging(out, side, index);
            self.timer(out, side, index);
        }
    }

    /// A shard that was busy, or a process that stood still, may not have read yet what came in time, nor the
    /// event that a socket has room: both are tried before the peer is judged.
    fn read_before_judging<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
    ) {
        let Some(conn) = out.net.at(index) else { return };
        let key = conn.key(index);
        let session_is_late = self.is_late(out.cx, conn.session);
        if out.net.is_late(index, session_is_late) {
            self.read(out, side, key);
        }
        out.net.try_blocked(out.cx, out.codec, out.post, index);
        self.after_net(out, side);
    }

    fn timer<D: Driver>(&mut self, out: &mut Outlets<'_, D>, side: &mut LocalSide, index: u32) {
        let Some(session) = out.net.at(index).map(|conn| conn.session) else {
            return;
        };
        let due = self.due(out.cx, session);
        let deadline = out.net.deadline(out.cx, index, due);
        let Some(deadline) = deadline.filter(|deadline| *deadline <= out.cx.tick()) else {
            return self.schedule(out, index);
        };
        if Net::<D>::was_away(out.cx, deadline) {
            let ends = grace_ends(out.cx);
            let of_net = out.net.put_off(out.cx, index);
            if self.put_off(out.cx, session, ends) || of_net {
                out.cx.counters().deadlines_put_off.add(1);
                // Other deadlines that have passed are found in the next turn.
                return self.schedule(out, index);
            }
        }
        match out.net.passed(out.cx, out.codec, out.post, index) {
            Passed::Nothing => {}
            Passed::Next => self.schedule(out, index),
            Passed::Close(reason, code, why) => {
                self.notice(out, index, reason, code, "", format_args!("{why}"));
                let is_client = out.net.at(index).is_some_and(|conn| conn.phase == Phase::Client);
                if let Some(code) = u16::try_from(code).ok().filter(|code| is_client && *code > 0) {
                    out.cx.counters().count_disconnect(code);
                    self.remember_close(out, index, (code, false), why);
                }
                let reset = reason == Reason::CloseWriteTimeout;
                out.net.release(out.cx, out.post, index, reset);
            }
            Passed::Stale => self.disconnect(out, side, index, Disconnect::Stale),
            Passed::Session => {
                self.ping_or_close(out, side, index);
                self.schedule(out, index);
            }
        }
    }

    /// A session's timer: is it expired, did the pong come, is it time for a ping?
    fn ping_or_close<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
    ) {
        if !self.goes_on(out, side, index) {
            return;
        }
        self.expire_subs(out, side, index);
        let conn = &out.net[index];
        let form = conn.form;
        let unhandled = conn.rx.as_ref().is_some_and(|rx| rx.has_leftover());
        let peer = Peer {
            form,
            frame_ping: conn.flags.frame_ping(),
            is_unread: conn.flags.paused() || conn.flags.ready() || unhandled,
            awaits_reply: conn.flags.held() && !form.is_poll(),
        };
        match self.beat(out.cx, conn.session, peer) {
            Beat::Rest => {}
            Beat::AnswerPoll => self.answer_poll(out, side, index),
            Beat::NoPong => {
                out.cx.counters().closed_no_pong.add(1);
                self.disconnect(out, side, index, Disconnect::NoPong);
            }
            Beat::Ping => {
                let frame = match peer.frame_ping {
                    true => out.codec.constants.ws_ping.clone(),
                    false => out.codec.constants.ping(form),
                };
                out.cx.counters().pings.add(1);
                out.cx.counters().messages_sent.add(1);
                out.net.enqueue(out.cx, index, frame);
            }
        }
    }

    /// Whether a session goes on: one that has been expired for too long is closed, or the application is
    /// called to refresh it.
    fn goes_on<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
    ) -> bool {
        let now = out.cx.unix;
        let client = Arc::clone(&out.cx.client);
        let expired_delay = match client.proxies.refresh {
            Some(_) => 0,
            None => seconds(client.expired_close_delay_ms),
        };
        let at = out.net[index].session;
        let Some(session) = self.sessions.get_mut(at as usize) else { return false };
        let is_over = session
            .expires
            .is_some_and(|at| now.0 >= i64::from(at.seconds()).saturating_add(expired_delay));
        if !is_over {
            return true;
        }
        match &client.proxies.refresh {
            Some(proxy) => {
                if !session.flags.refreshing() && session.connecting().is_none() {
                    self.request_refresh(out, index, proxy);
                }
                true
            }
            None => {
                out.cx.counters().closed_expired.add(1);
                self.disconnect(out, side, index, Disconnect::ConnectionExpired);
                false
            }
        }
    }

    /// Ends subscriptions whose token has expired.
    fn expire_subs<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
    ) {
        let delay = seconds(out.cx.client.expired_sub_close_delay_ms);
        let now = out.cx.unix.0;
        let conn = &out.net[index];
        let Some(session) = self.sessions.get(conn.session as usize) else { return };
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
                Renewal::Server => self.request_sub_refresh(out, side, index, channel),
                _ => self.end_sub(out, side, index, channel, Unsubscribed::Expired),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::expiry::Expiry;
    use crate::base::id::ConnKey;
    use crate::session::testing::proxy;
    use crate::shard::clients::testing::Scene;
    use crate::shard::fixture::Plan;
    use crate::shard::mail::{CONTROL, Mail};
    use crate::shard::net::record::Phase;

    /// Seconds pass, and the timer of a connection fires.
    fn fire_after(scene: &mut Scene, key: ConnKey, seconds: u64) {
        scene.wired.after(seconds * 1000);
        scene.wired.cx.unix.0 += seconds as i64;
        scene.with(|clients, out, side| clients.timer(out, side, key.index));
    }

    /// A client whose connection expires in 10 s; the plan closes it 2 s later.
    fn expiring(plan: Plan) -> (Scene, crate::io::sim::LinkId, ConnKey) {
        let mut scene = Scene::new(plan);
        let (link, key) = scene.client("alice");
        let at = Expiry::at(scene.wired.cx.unix.0 + 10);
        scene.session(key).unwrap().expires = Some(at);
        scene.with(|clients, out, _| clients.schedule(out, key.index));
        (scene, link, key)
    }

    #[test]
    fn an_expired_session_has_its_delay_and_then_it_ends() {
        let (mut scene, link, key) = expiring(Plan::default());
        fire_after(&mut scene, key, 11);
        assert_eq!(scene.phase(key), Some(Phase::Client));
        fire_after(&mut scene, key, 1);
        assert_eq!(scene.phase(key), Some(Phase::Closing));
        assert!(scene.wired.received(link).contains("connection expired"));
        assert_eq!(scene.wired.cx.counters().closed_expired.get(), 1);
        assert_eq!(scene.end(), []);
    }

    #[test]
    fn a_session_that_the_application_refreshes_goes_on_with_one_call() {
        let mut plan = Plan::default();
        plan.client.proxies.refresh = Some(proxy());
        let (mut scene, _, key) = expiring(plan);
        fire_after(&mut scene, key, 11);
        fire_after(&mut scene, key, 60);
        assert_eq!(scene.phase(key), Some(Phase::Client));
        scene.wired.posts.post.flush(&scene.wired.cx);
        let mail = scene.wired.posts.sent_to(CONTROL.0);
        assert!(matches!(&mail[..], [Mail::AppCall(call)] if call.user == "alice"));
    }

    #[test]
    fn an_expired_subscription_ends_alone() {
        let mut scene = Scene::new(Plan::default());
        let (link, key, channel) = scene.subscriber("alice", "news");
        let at = Expiry::at(scene.wired.cx.unix.0 + 10);
        let extra = scene.session(key).unwrap().sub_extra_or_new(channel);
        (extra.expires, extra.renewal) = (Some(at), Renewal::Client);
        scene.with(|clients, out, _| clients.schedule(out, key.index));
        fire_after(&mut scene, key, 12);
        assert!(scene.wired.received(link).contains(r#""unsubscribe":{"code":2501,"#));
        assert_eq!(scene.phase(key), Some(Phase::Client));
        assert!(scene.sub(key, channel).is_none());
        scene.carry_mail();
        assert_eq!(scene.end(), []);
    }

    /// A ping every 10 s, whose pong has to come within 4 s.
    fn pinging() -> Plan {
        let mut plan = Plan::default();
        plan.client.ping_interval_ms = Some(10_000);
        plan.client.pong_timeout_ms = Some(4_000);
        plan
    }

    #[test]
    fn a_client_is_pinged_and_ends_without_its_pong() {
        let mut scene = Scene::new(pinging());
        let (link, key) = scene.client("alice");
        fire_after(&mut scene, key, 10);
        assert!(scene.wired.received(link).ends_with("{}"), "a ping");
        assert_eq!(scene.wired.cx.counters().pings.get(), 1);
        fire_after(&mut scene, key, 4);
        assert_eq!(scene.phase(key), Some(Phase::Closing));
        assert!(scene.wired.received(link).contains("no pong"));
        assert_eq!(scene.end(), []);
    }

    #[test]
    fn a_pong_moves_the_timer_to_the_next_ping() {
        let mut scene = Scene::new(pinging());
        let (_, key) = scene.client("alice");
        scene.wired.after(10_000);
        scene.with(|clients, out, side| clients.fire_timers(out, side));
        let pinged = scene.wired.cx.tick();
        let timer = |scene: &mut Scene| scene.wired.net.conn(key).unwrap().deadline_tick;
        assert_eq!(timer(&mut scene), pinged + 40, "the deadline of the pong");
        scene.commands(key, "{}");
        assert_eq!(scene.wired.cx.counters().pongs.get(), 1);
        assert_eq!(timer(&mut scene), pinged + 100, "the next ping");
        assert_eq!(scene.end(), []);
    }
}
