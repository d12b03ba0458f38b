//! When a session has something to do by itself: a ping, a pong that is overdue, a token that expires.

use crate::base::form::Form;
use crate::io::Driver;
use crate::session::{RoundTrip, Session};
use crate::shard::clients::Clients;
use crate::shard::context::Cx;
use crate::shard::net::timers::ticks;
use crate::shard::outlets::Outlets;

/// Facts of a connection that decide about pings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) form: Form,
    /// Pings are RFC 6455 frames.
    pub(crate) frame_ping: bool,
    /// Something of it is not read or not handled yet: the pong may be there.
    pub(crate) is_unread: bool,
    /// The reply to its `connect` isn't there: a ping would wait behind it.
    pub(crate) awaits_reply: bool,
}

/// The result of a session's timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beat {
    /// Nothing now.
    Rest,
    /// A poll has waited for long enough.
    AnswerPoll,
    /// No pong has come.
    NoPong,
    /// It is time for a ping.
    Ping,
}

impl Clients {
    /// The timer of a session has fired: sets the next time that something is due, and says what is due now.
    pub(crate) fn beat(&mut self, cx: &Cx, session: u32, peer: Peer) -> Beat {
        let tick = cx.tick();
        let pings = cx.client.ping_interval_ms.is_some();
        let (interval, pong_timeout) = ping_times(cx, peer.form, peer.frame_ping);
        let Some(session) = self.sessions.get_mut(session as usize) else { return Beat::Rest };
        if session.due_tick > tick {
            return Beat::Rest;
        }
        let mut next = |ms| session.due_tick = tick.saturating_add(ticks(ms));
        if peer.awaits_reply {
            next(interval);
            return Beat::Rest;
        }
        if peer.form.is_poll() {
            // One whose homes have not answered waits for them.
            next(interval);
            return Beat::AnswerPoll;
        }
        if session.flags.pong_window() {
            if session.flags.pong_due() && peer.is_unread {
                next(pong_timeout.unwrap_or(interval));
                // The time of the ping was counted from the deadline that is moved.
                session.round_trip = RoundTrip::UNKNOWN;
                return Beat::Rest;
            }
            if session.flags.pong_due() {
                return Beat::NoPong;
            }
            // The pong has come, to a process that left the deadline where it was: the rest of the interval.
            next(interval.saturating_sub(pong_timeout.unwrap_or(0)));
            session.flags.set_pong_window(false);
            return Beat::Rest;
        }
        next(pong_timeout.unwrap_or(interval));
        session.flags.set_pong_window(pong_timeout.is_some());
        session.flags.set_pong_due(pong_timeout.is_some());
        if pong_timeout.is_some() {
            session.round_trip = RoundTrip::begin(cx.now);
        }
        match peer.frame_ping || pings {
            true => Beat::Ping,
            false => Beat::Rest,
        }
    }

    /// Whether a session is late with something that its client sends; `None` without a session.
    pub(crate) fn is_late(&self, cx: &Cx, session: u32) -> Option<bool> {
        let session = self.sessions.get(session as usize)?;
        let no_pong = session.flags.pong_window() && session.flags.pong_due();
        Some(no_pong || expiry(cx, session).is_some_and(|at| at <= cx.tick()))
    }

    /// Moves the deadline of a pong that the shard has missed to `ends`. Whether it was moved.
    pub(crate) fn put_off(&mut self, cx: &Cx, session: u32, ends: u32) -> bool {
        let Some(session) = self.sessions.get_mut(session as usize) else { return false };
        let awaits = session.flags.pong_window() && session.flags.pong_due();
        let is_over = awaits && session.due_tick <= cx.tick();
        if is_over {
            session.due_tick = ends;
            session.round_trip = RoundTrip::UNKNOWN;
        }
        is_over
    }

    /// The next tick at which a session has something to do; `None` without a session.
    pub(crate) fn due(&self, cx: &Cx, session: u32) -> Option<u32> {
        let session = self.sessions.get(session as usize)?;
        Some(expiry(cx, session).map_or(session.due_tick, |at| at.min(session.due_tick)))
    }
}

/// The pong to the last ping has come, and the next ping is due. The deadline of the pong gives the tick of the
/// ping.
fn take_pong(cx: &Cx, session: &mut Session, form: Form, frame_ping: bool) {
    cx.counters().pongs.add(1);
    let was_due = session.flags.pong_due();
    session.flags.set_pong_due(false);
    if let (true, (interval, Some(timeout))) = (was_due, ping_times(cx, form, frame_ping)) {
        let sent_tick = session.due_tick.saturating_sub(ticks(timeout));
        session.round_trip.end(sent_tick, cx.now, &cx.node.round_trips[cx.id.index()]);
        session.due_tick = sent_tick.saturating_add(ticks(interval));
        session.flags.set_pong_window(false);
    }
}

/// The tick at which a session or one of its subscriptions has been expired for too long.
pub(crate) fn expiry(cx: &Cx, session: &Session) -> Option<u32> {
    let client = &cx.client;
    // A refresh by the application is requested at once, and not again until the reply.
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
    let left = u64::try_from(at.saturating_sub(cx.unix.0)).unwrap_or(0);
    Some(match left {
        0 => cx.tick(),
        left => cx.tick().saturating_add(ticks(left.saturating_mul(1000))),
    })
}

/// How often a session is pinged, and how soon the pong has to come; from one-way connections none does.
pub(crate) fn ping_times(cx: &Cx, form: Form, frame_ping: bool) -> (u64, Option<u64>) {
    let client = &cx.client;
    match client.ping_interval_ms {
        _ if form.is_poll() => (cx.node.options.poll_wait_ms, None),
        _ if frame_ping => (FRAME_PING_INTERVAL_MS, Some(FRAME_PONG_TIMEOUT_MS)),
        Some(interval) => (interval, client.pong_timeout_ms.filter(|_| !form.is_one_way())),
        None => (NO_PING_MS, None),
    }
}

/// Milliseconds between two pings as RFC 6455 frames.
const FRAME_PING_INTERVAL_MS: u64 = 25_000;
/// The answer to one has to come so soon.
const FRAME_PONG_TIMEOUT_MS: u64 = 10_000;
/// With pings off: how often a session's timer fires although nothing is due.
const NO_PING_MS: u64 = 3_600_000;

/// A delay as tokens count, in whole seconds.
pub(crate) fn seconds(ms: u64) -> i64 {
    i64::try_from(ms / 1000).unwrap_or(i64::MAX / 4)
}

impl Clients {
    /// A pong has come: the timer moves to the next ping at once. Now the session, the record and its neighbours in
    /// the wheel are in a cache; when the deadline of the pong passes they are not.
    pub(crate) fn pong<D: Driver>(&mut self, out: &mut Outlets<'_, D>, index: u32) {
        let Some(conn) = out.net.at(index) else { return };
        let (at, form, frame_ping) = (conn.session, conn.form, conn.flags.frame_ping());
        let Some(session) = self.sessions.get_mut(at as usize) else { return };
        take_pong(out.cx, session, form, frame_ping);
        let due = self.due(out.cx, at);
        out.net.postpone(out.cx, index, due);
    }

    /// Sets the timer of a connection to the next of its deadlines, those of its session included.
    pub(crate) fn schedule<D: Driver>(&mut self, out: &mut Outlets<'_, D>, index: u32) {
        let Some(conn) = out.net.at(index) else { return };
        let due = self.due(out.cx, conn.session);
        out.net.schedule_with(out.cx, index, due);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time::Millis;
    use crate::base::times::Counts;
    use crate::shard::fixture::Plan;

    fn clients(cx: &Cx, due_tick: u32) -> (Clients, u32) {
        let mut clients = Clients::new(cx);
        let at = clients.sessions.insert(Session {
            user: Default::default(),
            user_links: Default::default(),
            subs: Default::default(),
            extra: None,
            conn: 0,
            due_tick,
            expires: None,
            unanswered: 0,
            flags: Default::default(),
            software: Default::default(),
            round_trip: Default::default(),
        });
        (clients, at as u32)
    }

    fn cx_at(ms: u64) -> Cx {
        let mut plan = Plan::default();
        plan.client.ping_interval_ms = Some(10_000);
        plan.client.pong_timeout_ms = Some(4_000);
        let mut cx = plan.cx();
        cx.now = Millis(ms);
        cx
    }

    const PEER: Peer =
        Peer { form: Form::JSON, frame_ping: false, is_unread: false, awaits_reply: false };

    #[test]
    fn the_round_trip_of_a_ping_is_measured_to_a_millisecond() {
        let mut cx = cx_at(10_130);
        let (mut clients, at) = clients(&cx, 101);
        assert_eq!(clients.beat(&cx, at, PEER), Beat::Ping);
        cx.now = Millis(10_172);
        let session = &mut clients.sessions[at as usize];
        take_pong(&cx, session, Form::JSON, false);
        assert!((42..=53).contains(&session.round_trip.millis().unwrap()));
        // A second pong is no answer to a ping.
        take_pong(&cx, session, Form::JSON, false);
        // One whose deadline was moved isn't measured: the time of its ping is lost.
        session.due_tick = 200;
        session.flags.set_pong_window(false);
        cx.now = Millis(20_000);
        assert_eq!(clients.beat(&cx, at, PEER), Beat::Ping);
        cx.now = Millis(24_100);
        let unread = Peer { is_unread: true, ..PEER };
        assert_eq!(clients.beat(&cx, at, unread), Beat::Rest);
        let session = &mut clients.sessions[at as usize];
        take_pong(&cx, session, Form::JSON, false);
        assert_eq!(session.round_trip.millis(), None);
        let mut counts = Counts::default();
        cx.node.round_trips[0].add_to(&mut counts);
        assert_eq!((counts.count(), counts.total_us()), (1, 42_000));
    }

    #[test]
    fn a_ping_goes_when_it_is_due_and_its_pong_is_awaited() {
        let mut cx = cx_at(10_000);
        let (mut clients, at) = clients(&cx, 101);
        assert_eq!(clients.beat(&cx, at, PEER), Beat::Rest, "a tick too early");
        cx.now = Millis(10_100);
        assert_eq!(clients.beat(&cx, at, PEER), Beat::Ping);
        assert_eq!((clients.due(&cx, at), clients.is_late(&cx, at)), (Some(141), Some(true)));
        cx.now = Millis(14_100);
        let unread = Peer { is_unread: true, ..PEER };
        assert_eq!(clients.beat(&cx, at, unread), Beat::Rest, "the pong may be there");
        cx.now = Millis(18_100);
        assert_eq!(clients.beat(&cx, at, PEER), Beat::NoPong);
    }

    #[test]
    fn behind_a_pong_the_rest_of_the_interval_passes() {
        let mut cx = cx_at(10_000);
        let (mut clients, at) = clients(&cx, 100);
        assert_eq!(clients.beat(&cx, at, PEER), Beat::Ping);
        cx.now = Millis(10_070);
        take_pong(&cx, &mut clients.sessions[at as usize], Form::JSON, false);
        assert_eq!((clients.due(&cx, at), clients.is_late(&cx, at)), (Some(200), Some(false)));
        // From a process that left the deadline of the pong where it was.
        let session = &mut clients.sessions[at as usize];
        session.due_tick = 140;
        session.flags.set_pong_window(true);
        cx.now = Millis(14_000);
        assert_eq!(clients.beat(&cx, at, PEER), Beat::Rest);
        assert_eq!((clients.due(&cx, at), clients.is_late(&cx, at)), (Some(200), Some(false)));
    }

    #[test]
    fn a_missed_pong_is_put_off_once() {
        let mut cx = cx_at(10_000);
        let (mut clients, at) = clients(&cx, 100);
        assert!(!clients.put_off(&cx, at, 170), "no pong is awaited");
        assert_eq!(clients.beat(&cx, at, PEER), Beat::Ping);
        cx.now = Millis(15_000);
        assert!(clients.put_off(&cx, at, 170));
        assert!(!clients.put_off(&cx, at, 190), "it isn't over yet");
        assert_eq!(clients.due(&cx, at), Some(170));
    }

    #[test]
    fn before_the_reply_to_connect_nothing_is_pinged() {
        let cx = cx_at(10_000);
        let (mut clients, at) = clients(&cx, 100);
        assert_eq!(clients.beat(&cx, at, Peer { awaits_reply: true, ..PEER }), Beat::Rest);
        assert_eq!(clients.due(&cx, at), Some(200));
        assert_eq!(clients.due(&cx, 9), None, "no session");
    }
}
