//! Deadlines of connections with their sessions: fired, judged, and carried out on both.

use std::sync::Arc;

use crate::base::limits::TURN_TIMERS_MAX;
use crate::base::notices::Reason;
use crate::io::Driver;
use crate::proto::client::{Disconnect, Unsubscribed};
use crate::session::{Renewal, SubState};
use crate::shard::Shard;
use crate::shard::clients::due::{Beat, Peer, seconds};
use crate::shard::net::Net;
use crate::shard::net::liveness::{Passed, grace_ends};

impl<D: Driver> Shard<D> {
    /// Fires the timers that are due, a bounded number in a turn.
    pub(crate) fn fire_timers(&mut self) {
        let mut budget = TURN_TIMERS_MAX;
        while let Some(index) = self.net.next_timer(&self.cx, &mut budget) {
            self.look_before_judging(index);
            self.timer(index);
        }
    }

    /// A shard that was busy, or a process that stood still, may not have read yet what came in time, nor the
    /// event that a socket has room: both are tried before the peer is judged.
    fn look_before_judging(&mut self, index: u32) {
        let Some(conn) = self.net.conns.get(index as usize) else { return };
        let key = conn.key(index);
        let session_is_late = self.clients.is_late(&self.cx, conn.session);
        if self.net.is_late(index, session_is_late) {
            self.read(key);
        }
        self.net.try_blocked(&self.cx, &mut self.codec, &mut self.post, index);
        self.after_net();
    }

    fn timer(&mut self, index: u32) {
        let Some(session) = self.net.conns.get(index as usize).map(|conn| conn.session) else {
            return;
        };
        let due = self.clients.due(&self.cx, session);
        let deadline = self.net.deadline(&self.cx, index, due);
        let Some(deadline) = deadline.filter(|deadline| *deadline <= self.cx.tick()) else {
            return self.schedule(index);
        };
        if Net::<D>::was_away(&self.cx, deadline) {
            let ends = grace_ends(&self.cx);
            let of_net = self.net.put_off(&self.cx, index);
            if self.clients.put_off(&self.cx, session, ends) || of_net {
                self.cx.counters().deadlines_put_off.add(1);
                // Other deadlines that have passed are found in the next turn.
                return self.schedule(index);
            }
        }
        match self.net.passed(&self.cx, &mut self.codec, &mut self.post, index) {
            Passed::Nothing => {}
            Passed::Next => self.schedule(index),
            Passed::Close(reason, code, why) => {
                self.notice(index, reason, code, "", format_args!("{why}"));
                let reset = reason == Reason::CloseWriteTimeout;
                self.net.release(&self.cx, &mut self.post, index, reset);
            }
            Passed::Stale => self.disconnect(index, Disconnect::Stale),
            Passed::Session => {
                self.ping_or_close(index);
                self.schedule(index);
            }
        }
    }

    /// A session's timer: is it expired, did the pong come, is it time for a ping?
    fn ping_or_close(&mut self, index: u32) {
        if !self.goes_on(index) {
            return;
        }
        self.expire_subs(index);
        let conn = &self.net.conns[index as usize];
        let form = conn.form;
        let unhandled = conn.rx.as_ref().is_some_and(|rx| rx.has_leftover());
        let peer = Peer {
            form,
            frame_ping: conn.flags.frame_ping(),
            is_unread: conn.flags.paused() || conn.flags.ready() || unhandled,
            awaits_reply: conn.flags.held() && !form.is_poll(),
        };
        match self.clients.beat(&self.cx, conn.session, peer) {
            Beat::Rest => {}
            Beat::AnswerPoll => self.answer_poll(index),
            Beat::NoPong => {
                self.cx.counters().closed_no_pong.add(1);
                self.disconnect(index, Disconnect::NoPong);
            }
            Beat::Ping => {
                let frame = match peer.frame_ping {
                    true => self.codec.constants.ws_ping.clone(),
                    false => self.codec.constants.ping(form),
                };
                self.cx.counters().pings.add(1);
                self.cx.counters().messages_sent.add(1);
                self.net.enqueue(&self.cx, index, frame);
            }
        }
    }

    /// Whether a session goes on: one that has been expired for too long is closed, or the application is
    /// asked to refresh it.
    fn goes_on(&mut self, index: u32) -> bool {
        let now = self.cx.unix;
        let client = Arc::clone(&self.cx.client);
        let expired_delay = match client.proxies.refresh {
            Some(_) => 0,
            None => seconds(client.expired_close_delay_ms),
        };
        let at = self.net.conns[index as usize].session;
        let Some(session) = self.clients.sessions.get_mut(at as usize) else { return false };
        let is_over = session
            .expires
            .is_some_and(|at| now.0 >= i64::from(at.seconds()).saturating_add(expired_delay));
        if !is_over {
            return true;
        }
        match &client.proxies.refresh {
            Some(proxy) => {
                if !session.flags.refreshing() && session.connecting().is_none() {
                    self.ask_to_refresh(index, proxy);
                }
                true
            }
            None => {
                self.cx.counters().closed_expired.add(1);
                self.disconnect(index, Disconnect::ConnectionExpired);
                false
            }
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
