//! Liveness: the deadlines of each phase, and of writes that don't get through. A session's own deadlines
//! (pings, expiry) come in as a tick, so that one timer serves both.

use crate::base::notices::Reason;
use crate::base::time::Millis;
use crate::io::Driver;
use crate::proto::http::Refusal;
use crate::session::WaitsFor;
use crate::shard::codec::Codec;
use crate::shard::context::Cx;
use crate::shard::mail::post::Post;
use crate::shard::net::Net;
use crate::shard::net::record::{Conn, NONE, Phase};
use crate::shard::net::timers::TICK_MS;
use crate::shard::net::timers::ticks;

/// The result of a deadline that has passed, where Net alone can't draw the consequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    /// Net has done what was to be done.
    Nothing,
    /// Nothing is over: the next deadline is to be set.
    Next,
    /// The connection is to be closed without a word, for this reason, with this code and detail in the log.
    Close(Reason, u32, &'static str),
    /// No `connect` has come: the session ends before it has begun.
    Stale,
    /// The session has something to do.
    Session,
}

impl<D: Driver> Net<D> {
    /// The next connection whose timer has fired; `budget` bounds the steps of a turn.
    pub(crate) fn next_timer(&mut self, cx: &Cx, budget: &mut usize) -> Option<u32> {
        self.wheel.pop_expired(cx.now, &mut self.conns, budget)
    }

    /// Whether a connection is late with something that its peer sends. `session_is_late` is what its session
    /// says, if there is one.
    pub(crate) fn is_late(&self, index: u32, session_is_late: Option<bool>) -> bool {
        let Some(conn) = self.conns.get(index as usize) else { return false };
        match conn.phase {
            Phase::Client => session_is_late.unwrap_or(true),
            Phase::Echo => conn.flags.probed(),
            Phase::Leaving => false,
            _ => true,
        }
    }

    /// Writes once more before the peer of a full socket is judged: the event that reports room may not have
    /// been read yet.
    pub(crate) fn try_blocked(&mut self, cx: &Cx, codec: &mut Codec, post: &mut Post, index: u32) {
        let ends = |phase| matches!(phase, Phase::Unusable | Phase::Closing | Phase::Lingering);
        let stuck = self.takes_nothing(cx, index);
        if let Some(conn) = self.conns.get_mut(index as usize)
            && conn.flags.blocked()
            && (stuck || ends(conn.phase))
        {
            conn.flags.set_blocked(false);
            let key = conn.key(index);
            self.write(cx, codec, post, key);
        }
    }

    /// Whether a deadline is found so late that the shard, which was not there, can't know what the peer did. A shard
    /// that settled read nothing: what passed meanwhile it has missed as well, and no more than that, since a process
    /// may be replaced again and again. A pong over HTTP may still wait in a request of its own.
    pub(crate) fn was_away(cx: &Cx, deadline: u32) -> bool {
        let missed = |at: u32| deadline <= at.saturating_add(1);
        cx.tick() - deadline >= LATE_TICKS || cx.resumed_tick.is_some_and(missed)
    }

    /// Moves deadlines of a connection that the shard has missed: the peer has a little longer, and the turns
    /// until then decide. Whether any was moved.
    pub(crate) fn put_off(&mut self, cx: &Cx, index: u32) -> bool {
        let tick = cx.tick();
        let ends = grace_ends(cx);
        let limit = ticks(cx.node.options.write_timeout_ms);
        let Some(conn) = self.conns.get(index as usize) else { return false };
        let (phase_ms, queue) = (self.phase_ms(cx, conn), conn.queue);
        let mut is_put_off = false;
        if let Some(ms) = phase_ms
            && let Some(conn) = self.conns.get_mut(index as usize)
            && conn.since_tick.saturating_add(ticks(ms)) <= tick
        {
            conn.since_tick = ends.saturating_sub(ticks(ms));
            is_put_off = true;
        }
        if let Some(queue) = self.queues.get_mut(queue)
            && let Some(since) = &mut queue.blocked_tick
            && since.saturating_add(limit) <= tick
        {
            *since = ends.saturating_sub(limit);
            is_put_off = true;
        }
        is_put_off
    }

    /// A deadline of a connection has passed.
    pub(crate) fn passed(
        &mut self,
        cx: &Cx,
        codec: &mut Codec,
        post: &mut Post,
        index: u32,
    ) -> Passed {
        let blocked = self.takes_nothing(cx, index);
        let Some(conn) = self.conns.get_mut(index as usize) else { return Passed::Nothing };
        match conn.phase {
            Phase::Head | Phase::Body | Phase::Asked | Phase::Client if blocked => {
                // 3009 by its name; no close frame gets through to this peer.
                cx.counters().closed_write_timeout.add(1);
                return Passed::Close(Reason::CloseWriteTimeout, 3009, "reset");
            }
            Phase::Head => self.head_passed(cx, post, index),
            // The rest of its body may be here, and is read in the next turns. It has a bound.
            Phase::Body if conn.flags.ready() => return Passed::Next,
            Phase::Body => self.body_is_late(cx, post, index),
            // The client is not late: the application has yet to say who it is, or a home has no credit for
            // the check of its token.
            Phase::Client
                if conn.session == NONE && conn.waits.is_some_and(WaitsFor::is_of_the_node) =>
            {
                conn.since_tick = cx.tick();
                return Passed::Next;
            }
            Phase::Client if conn.session == NONE => {
                cx.counters().closed_stale.add(1);
                return Passed::Stale;
            }
            Phase::Client => return Passed::Session,
            Phase::Echo => return self.echo_passed(cx, codec, index),
            Phase::Unusable if !conn.form.framing().is_websocket() => {
                self.finish_response(cx, post, index);
            }
            Phase::Unusable | Phase::Closing | Phase::Lingering => {
                cx.counters().close_timeouts.add(1);
                self.release(cx, post, index, false);
            }
            Phase::Asked | Phase::Leaving => {}
        }
        Passed::Nothing
    }

    /// No request has come in time.
    fn head_passed(&mut self, cx: &Cx, post: &mut Post, index: u32) {
        let Some(conn) = self.conns.get(index as usize) else { return };
        match (conn.flags.served(), conn.rx.is_none()) {
            // It was served and waits for nothing: kept alive for long enough.
            (true, true) => self.linger(cx, post, index),
            // Nothing came over it: an answer to no request would be taken for that of the next one.
            (false, true) => {
                cx.counters().closed_unused.add(1);
                self.release(cx, post, index, false);
            }
            (_, false) => self.refuse(cx, post, index, Refusal::Timeout),
        }
    }

    /// An echo connection was silent: it is pinged, and closed when it stays silent.
    fn echo_passed(&mut self, cx: &Cx, codec: &mut Codec, index: u32) -> Passed {
        let Some(conn) = self.conns.get_mut(index as usize) else { return Passed::Nothing };
        if !conn.flags.probed() {
            conn.flags.set_probed(true);
            conn.since_tick = cx.tick();
            let frame = codec.constants.ws_ping.clone();
            self.enqueue(cx, index, frame);
            return Passed::Next;
        }
        if conn.flags.blocked() || conn.flags.paused() {
            // It doesn't read, so it can't answer: keep-alive decides whether it lives.
            conn.since_tick = cx.tick();
            return Passed::Next;
        }
        cx.counters().closed_idle.add(1);
        Passed::Close(Reason::CloseIdle, 0, "roost.idle_timeout")
    }

    /// Sets the timer of a connection to the next of its deadlines that Net knows.
    pub(crate) fn schedule(&mut self, cx: &Cx, index: u32) {
        self.schedule_with(cx, index, None);
    }

    /// The same, with the tick at which its session has something to do.
    pub(crate) fn schedule_with(&mut self, cx: &Cx, index: u32, due: Option<u32>) {
        let Some(deadline) = self.deadline(cx, index, due) else { return };
        let Some(conn) = self.conns.get(index as usize) else { return };
        if conn.socket.is_none() {
            return;
        }
        // A later deadline is found when the earlier one fires: cheaper than moving it.
        if conn.deadline_tick == 0 || conn.deadline_tick > deadline {
            let at = Millis(u64::from(deadline) * TICK_MS);
            self.wheel.set(&mut self.conns, index, at);
        }
    }

    /// Moves the timer of a connection, which has one, to the next of its deadlines.
    pub(crate) fn postpone(&mut self, cx: &Cx, index: u32, due: Option<u32>) {
        let Some(deadline) = self.deadline(cx, index, due) else { return };
        if self.conns.get(index as usize).is_some_and(|conn| conn.deadline_tick > 0) {
            let at = Millis(u64::from(deadline) * TICK_MS);
            self.wheel.set(&mut self.conns, index, at);
        }
    }

    /// The next tick at which something of a connection is due. `due` is its session's.
    pub(crate) fn deadline(&self, cx: &Cx, index: u32, due: Option<u32>) -> Option<u32> {
        let conn = self.conns.get(index as usize)?;
        let options = &cx.node.options;
        let phase_ends = || Some(conn.since_tick.saturating_add(ticks(self.phase_ms(cx, conn)?)));
        let blocked = || {
            let tick = self.queues.get(conn.queue)?.blocked_tick?;
            Some(tick.saturating_add(ticks(options.write_timeout_ms)))
        };
        let first = |a: Option<u32>, b: Option<u32>| a.into_iter().chain(b).min();
        match conn.phase {
            Phase::Head | Phase::Body | Phase::Asked => first(phase_ends(), blocked()),
            Phase::Echo | Phase::Unusable | Phase::Closing | Phase::Lingering => phase_ends(),
            Phase::Client => first(due.or_else(phase_ends), blocked()),
            Phase::Leaving => None,
        }
    }

    /// How long a connection may be in its phase, where that has an end: a client's session has times of its own.
    fn phase_ms(&self, cx: &Cx, conn: &Conn<D::Socket>) -> Option<u64> {
        let options = &cx.node.options;
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
            Phase::Client if conn.session == NONE => cx.client.stale_close_delay_ms,
            Phase::Client | Phase::Asked | Phase::Leaving => None,
        }
    }

    /// Whether nothing that waits for a connection has been taken for too long.
    fn takes_nothing(&self, cx: &Cx, index: u32) -> bool {
        let Some(conn) = self.conns.get(index as usize) else { return false };
        let limit = ticks(cx.node.options.write_timeout_ms);
        self.queues.get(conn.queue).is_some_and(|queue| {
            queue.blocked_tick.is_some_and(|since| since.saturating_add(limit) <= cx.tick())
        })
    }
}

/// A deadline that is found so much later than it was over was missed by the shard, not by the peer: a second.
const LATE_TICKS: u32 = 10;
/// So much longer the peer then has.
const GRACE_MS: u64 = 2000;

/// The tick until which a peer has time whose deadline the shard has missed.
pub(crate) fn grace_ends(cx: &Cx) -> u32 {
    cx.tick().saturating_add(ticks(GRACE_MS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::fixture::{Plan, Wired};

    fn passed(of: &mut Wired, index: u32) -> Passed {
        of.net.passed(&of.cx, &mut of.codec, &mut of.posts.post, index)
    }

    #[test]
    fn the_timer_fires_at_the_first_deadline() {
        let mut of = Wired::new(Plan::default());
        let (_, key) = of.connect();
        assert_eq!(of.net.next_timer(&of.cx, &mut 1000), None);
        of.after(1_200);
        assert_eq!(of.net.next_timer(&of.cx, &mut 1000), Some(key.index));
        let deadline = of.net.deadline(&of.cx, key.index, None).unwrap();
        assert!(
            deadline <= of.cx.tick()
                && !Net::<crate::io::sim::SimDriver>::was_away(&of.cx, deadline)
        );
        assert_eq!(passed(&mut of, key.index), Passed::Nothing);
        assert_eq!(of.cx.counters().closed_unused.get(), 1);
        assert_eq!(of.end(), []);
    }

    #[test]
    fn what_passes_while_a_shard_settles_is_missed_by_it() {
        type Here = Net<crate::io::sim::SimDriver>;
        let mut of = Wired::new(Plan::default());
        of.after(10_000);
        let tick = of.cx.tick();
        assert!(!Here::was_away(&of.cx, tick));
        of.cx.resumes = true;
        of.cx.begin_turn(of.cx.now, of.cx.unix);
        assert!(Here::was_away(&of.cx, tick), "it was not there");
        let later = Millis(of.cx.now.0 + 2 * GRACE_MS);
        of.cx.begin_turn(later, of.cx.unix);
        assert!(!Here::was_away(&of.cx, of.cx.tick()), "it is there again");
        assert_eq!(of.end(), []);
    }

    #[test]
    fn a_missed_deadline_is_put_off_once() {
        let mut of = Wired::new(Plan::default());
        let (_, key) = of.connect();
        of.after(10_000);
        assert!(of.net.put_off(&of.cx, key.index));
        assert!(!of.net.put_off(&of.cx, key.index), "it isn't over yet");
        assert_eq!(of.net.deadline(&of.cx, key.index, None), Some(grace_ends(&of.cx)));
        assert_eq!(of.end(), []);
    }

    #[test]
    fn a_silent_echo_connection_is_pinged_and_then_closed() {
        let mut of = Wired::new(Plan::default());
        let (_, key) = of.connect();
        of.net.conns[key.index as usize].phase = Phase::Echo;
        assert!(!of.net.is_late(key.index, None));
        assert_eq!(passed(&mut of, key.index), Passed::Next);
        assert!(of.net.is_late(key.index, None), "it was pinged");
        let why = Passed::Close(Reason::CloseIdle, 0, "roost.idle_timeout");
        assert_eq!(passed(&mut of, key.index), why);
        assert_eq!(of.end(), []);
    }

    #[test]
    fn a_session_decides_about_its_client() {
        let mut of = Wired::new(Plan::default());
        let (_, key) = of.connect_client();
        assert_eq!(passed(&mut of, key.index), Passed::Stale);
        of.net.conns[key.index as usize].session = 0;
        assert_eq!(passed(&mut of, key.index), Passed::Session);
        assert_eq!(of.net.deadline(&of.cx, key.index, Some(77)), Some(77));
        assert_eq!(of.end(), []);
    }
}
