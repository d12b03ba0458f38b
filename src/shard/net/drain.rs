//! Draining: the node is to end, and closes its connections at a set pace. Clients go first, in the order
//! of their slots; connections that only requests come over go last, when no request is on its way.

use std::sync::atomic::Ordering;

use crate::base::limits::TURN_LEAVERS_MAX;
use crate::io::Driver;
use crate::shard::context::Cx;
use crate::shard::mail::post::Post;
use crate::shard::net::record::Phase;
use crate::shard::net::timers::ticks;
use crate::shard::net::{Draining, Net};

impl<D: Driver> Net<D> {
    /// Whether the node closes its connections.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// Takes the list of [`Self::list_to_drain`]. It goes back by [`Self::after_drain`], which keeps its
    /// room.
    pub(crate) fn take_to_drain(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.listed)
    }

    /// While the node drains: puts the clients whose turn it is, at the set pace, on the list `listed`. They
    /// are closed in the order of their slots.
    pub(crate) fn list_to_drain(&mut self, cx: &Cx) {
        let now = cx.now;
        let Some(draining) = &mut self.draining else { return };
        let due = now.since(draining.since).saturating_mul(u64::from(draining.per_second)) / 1000;
        // A client that connects while the node drains is refused, so the walk needs one round.
        while draining.closed < due
            && draining.cursor < self.conns.capacity()
            && self.listed.len() < TURN_LEAVERS_MAX
        {
            let index = draining.cursor;
            draining.cursor += 1;
            let Some(conn) = self.conns.get(index) else { continue };
            if matches!(conn.phase, Phase::Client | Phase::Echo | Phase::Unusable) {
                draining.closed += 1;
                self.listed.push(index as u32);
            }
        }
    }

    /// Behind [`Self::list_to_drain`], when the listed clients are closed: idle connections go last. The node
    /// counts the shard as drained when its last connection has gone.
    pub(crate) fn after_drain(&mut self, cx: &Cx, post: &mut Post, mut emptied: Vec<u32>) {
        emptied.clear();
        self.listed = emptied;
        let Some(draining) = &self.draining else { return };
        if draining.cursor >= self.conns.capacity() {
            self.close_idle_requesters(cx, post);
        }
        let open = cx.counters().connections_open.get();
        if let Some(draining) = &mut self.draining
            && open == 0
            && !draining.counted
        {
            draining.counted = true;
            cx.node.drained.fetch_add(1, Ordering::Release);
        }
    }

    /// All clients are told: connections that requests came over, and none is on its way, go last; with
    /// them those that browsers open before they need them, once a request had time to come.
    fn close_idle_requesters(&mut self, cx: &Cx, post: &mut Post) {
        let now = cx.now;
        let began = self.draining.as_ref().map_or(now, |draining| draining.since);
        let is_late = now.since(began) >= UNUSED_MS;
        let long_ago = cx.tick().saturating_sub(ticks(UNUSED_MS));
        let idle = self.conns.iter().filter(|(_, conn)| {
            let unused = conn.flags.served() || is_late && conn.since_tick <= long_ago;
            conn.phase == Phase::Head && unused && conn.rx.is_none()
        });
        self.listed.extend(idle.map(|(index, _)| index as u32));
        let mut listed = std::mem::take(&mut self.listed);
        listed.drain(..).for_each(|index| self.linger(cx, post, index));
        self.listed = listed;
    }

    /// Begins to drain.
    pub(crate) fn drain(&mut self, cx: &Cx, per_second: u32) {
        let since = cx.now;
        if cx.node.options.listeners_stay {
            self.driver.close_listener();
        }
        self.draining.get_or_insert(Draining {
            per_second,
            since,
            closed: 0,
            cursor: 0,
            counted: false,
        });
    }
}

/// While draining: a connection over which no request has come for so long is not waited for.
const UNUSED_MS: u64 = 2000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::fixture::{Plan, Wired};

    #[test]
    fn clients_are_listed_at_the_set_pace_in_the_order_of_their_slots() {
        let mut of = Wired::new(Plan::default());
        let keys: Vec<_> = (0..3).map(|_| of.connect_client().1).collect();
        of.net.drain(&of.cx, 2);
        of.net.list_to_drain(&of.cx);
        assert!(of.net.listed.is_empty());
        of.after(1_000);
        of.net.list_to_drain(&of.cx);
        assert_eq!(of.net.take_to_drain(), [keys[0].index, keys[1].index]);
        of.after(1_000);
        of.net.list_to_drain(&of.cx);
        assert_eq!(of.net.take_to_drain(), [keys[2].index]);
        assert_eq!(of.end(), []);
    }

    #[test]
    fn a_shard_without_connections_has_drained_once() {
        let mut of = Wired::new(Plan::default());
        of.net.drain(&of.cx, 2);
        of.net.after_drain(&of.cx, &mut of.posts.post, Vec::new());
        of.net.after_drain(&of.cx, &mut of.posts.post, Vec::new());
        assert_eq!(of.cx.node.drained.load(Ordering::Relaxed), 1);
    }
}
