//! New connections: taken in bounded batches, passed on when this shard is full, refused when the
//! node is.

use std::num::NonZeroU32;
use std::sync::atomic::Ordering;

use crate::base::frame::SharedFrame;
use crate::base::id::{ConnKey, ShardId};
use crate::base::limits::{HEAD_BYTES_MAX, TURN_ACCEPTS_MAX};
use crate::base::notices::Reason;
use crate::io::{Accepted, Driver, Received};
use crate::shard::context::Cx;
use crate::shard::mail::post::Post;
use crate::shard::net::Net;
use crate::shard::net::record::Conn;

impl<D: Driver> Net<D> {
    /// Takes some of the connections that wait at the listener or were passed by other shards.
    pub(crate) fn accept_some(&mut self, cx: &Cx, post: &mut Post) {
        if self.accept_again_at.is_some_and(|at| at <= cx.now) {
            self.accept_again_at = None;
            self.acceptable = true;
        }
        let mut first = None;
        for _ in 0..TURN_ACCEPTS_MAX {
            // Those that came in this turn have not been read yet: they don't replace each other. Nor is there a slot
            // before the dead ones of earlier turns are gone.
            let fresh = first.is_some() && self.replaceable.first() == first;
            if fresh && self.is_full(cx) {
                return;
            }
            if self.conns.len() >= cx.node.options.slots_max() {
                return self.accept_later(cx);
            }
            if self.passed {
                match self.driver.take_passed() {
                    Some(socket) => {
                        let seated = self.seat(cx, post, socket, false);
                        first = first.or(seated);
                    }
                    None => self.passed = false,
                }
                continue;
            }
            if !self.acceptable {
                return;
            }
            match self.driver.accept() {
                Accepted::Socket(socket) => {
                    let seated = self.seat(cx, post, socket, true);
                    first = first.or(seated);
                }
                Accepted::Blocked => self.acceptable = false,
                Accepted::Failed => cx.counters().accept_failed.add(1),
                // The next turn finds a descriptor free.
                Accepted::Full if !fresh && self.replace_one(cx, post) => return,
                // Nothing here to refuse it with: it waits until a descriptor is free.
                Accepted::Full => return self.accept_later(cx),
            }
        }
    }

    /// While the shard settles: gives slots to the connections that its driver has accepted before, and to
    /// those that other shards have passed. None is accepted.
    pub(crate) fn seat_accepted(&mut self, cx: &Cx, post: &mut Post) {
        while self.conns.len() < cx.node.options.slots_max() {
            let (accepted, may_pass) = match self.driver.take_passed() {
                Some(socket) => (Some(socket), false),
                None => (self.driver.take_accepted(), true),
            };
            let Some(socket) = accepted else { return };
            self.seat(cx, post, socket, may_pass);
        }
    }

    /// Leaves what waits at the listener there for a moment.
    fn accept_later(&mut self, cx: &Cx) {
        cx.counters().accepts_put_off.add(1);
        self.acceptable = false;
        self.accept_again_at = Some(cx.now.after(ACCEPT_AGAIN_MS));
    }

    /// Gives a connection a slot, here or on the emptiest shard. Yields the one that it has here.
    fn seat(&mut self, cx: &Cx, post: &mut Post, socket: D::Socket, may_pass: bool) -> Option<u32> {
        let conns_soft = cx.node.options.conns_soft as usize;
        let mut socket = socket;
        if may_pass
            && (cx.node.options.one_accepts || self.connections() >= conns_soft)
            && let Some(to) = self.emptiest(cx)
        {
            match self.driver.pass(to, socket) {
                Ok(()) => {
                    // Counted from here on, so that a burst isn't passed to one shard alone.
                    cx.node.open[to.index()].fetch_add(1, Ordering::Relaxed);
                    cx.counters().connections_passed.add(1);
                    return None;
                }
                Err(back) => socket = back,
            }
        }
        // Who was passed is counted already.
        if may_pass {
            cx.node.open[cx.id.index()].fetch_add(1, Ordering::Relaxed);
        }
        let arrival = match self.arrival(cx, &socket) {
            Ok(arrival) => arrival,
            Err(refusal) => {
                cx.node.open[cx.id.index()].fetch_sub(1, Ordering::Relaxed);
                self.turn_away(cx, socket, refusal);
                return None;
            }
        };
        if self.is_full(cx) && !self.replace_one(cx, post) {
            // Nobody here may lose its place. Without an answer: it has sent nothing that one could be for.
            cx.counters().connections_refused_full.add(1);
            self.turned_back(cx, arrival);
            cx.node.open[cx.id.index()].fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let seated = self.begin(cx, post, socket);
        match seated {
            Some(index) => self.arrived(index, arrival),
            None => self.turned_back(cx, arrival),
        }
        seated
    }

    /// The other shard with the fewest connections, if it has room and fewer than this one.
    fn emptiest(&self, cx: &Cx) -> Option<ShardId> {
        let here = cx.node.open[cx.id.index()].load(Ordering::Relaxed);
        let others = cx.node.open.iter().enumerate().filter(|(at, _)| *at != cx.id.index());
        let (at, open) = others
            .map(|(at, open)| (at, open.load(Ordering::Relaxed)))
            .min_by_key(|(_, open)| *open)?;
        (open < cx.node.options.conns_max && open < here).then_some(ShardId(at as u8))
    }

    /// Gives a connection, which is counted as open here, a slot.
    fn begin(&mut self, cx: &Cx, post: &mut Post, socket: D::Socket) -> Option<u32> {
        let generation = self.take_generation();
        let tick = cx.tick();
        let index = self.conns.insert(Conn::new(socket, generation, tick)) as u32;
        let key = ConnKey { index, generation };
        let conn = &self.conns[index as usize];
        cx.counters().connections_accepted.add(1);
        cx.counters().connections_open.add(1);
        let watched = match &conn.socket {
            Some(socket) => self.driver.watch(key, socket).is_ok(),
            None => false,
        };
        if !watched {
            cx.counters().accept_failed.add(1);
            self.release(cx, post, index, true);
            return None;
        }
        self.set_replaceable(index);
        self.schedule(cx, index);
        Some(index)
    }

    /// A generation that no other key of a connection here has.
    fn take_generation(&mut self) -> NonZeroU32 {
        let generation = self.next_generation;
        self.next_generation =
            NonZeroU32::new(generation.get().wrapping_add(1)).unwrap_or(NonZeroU32::MIN);
        generation
    }

    /// Gives a connection whose session has ended another key, so that it can have a new session. A key,
    /// and so a client id, is one session's: whatever is kept for that session, or is on its way to it,
    /// finds nobody. None: it can't have one, and is to be closed.
    pub(crate) fn renew_key(&mut self, index: u32) -> Option<ConnKey> {
        let generation = self.take_generation();
        let conn = self.conns.get_mut(index as usize)?;
        let (old, new) = (conn.key(index), ConnKey { index, generation });
        self.driver.rename(old, new, conn.socket.as_ref()?).ok()?;
        conn.generation = generation;
        // No verdict and no credit comes for it any more; its places on the lists go with the old key.
        conn.flags.set_waiting(false);
        conn.waits = None;
        let (ready, dirty) = (conn.flags.ready(), conn.flags.dirty());
        conn.flags.set_ready(false);
        conn.flags.set_dirty(false);
        if ready {
            self.mark_ready(new);
        }
        if dirty {
            self.mark_dirty(new);
        }
        Some(new)
    }
}

impl<D: Driver> Net<D> {
    /// The shard ends: connections that still wait at the listener are answered by what they have sent. One that
    /// has sent nothing is closed without an answer, since it may be an event source, which survives that.
    pub(crate) fn refuse_waiting(&mut self, cx: &Cx) {
        let nobody = ConnKey { index: u32::MAX, generation: NonZeroU32::MAX };
        for _ in 0..REFUSALS_AT_END_MAX {
            match self.driver.accept() {
                Accepted::Socket(socket) => {
                    let mut answer = Vec::new();
                    if self.driver.watch(nobody, &socket).is_ok()
                        && let Received::Bytes { lease, .. } =
                            self.driver.recv(nobody, &socket, HEAD_BYTES_MAX)
                    {
                        self.put_last_answer(cx, &mut answer, &lease);
                        self.driver.give_back(lease);
                    }
                    self.count_busy(cx, Reason::HttpDraining);
                    if !answer.is_empty() {
                        let frame = SharedFrame::new(&answer);
                        self.driver.send(nobody, &socket, std::iter::once(&frame), 0);
                    }
                    self.driver.finish(nobody, &socket);
                    self.driver.close(nobody, socket, false);
                }
                Accepted::Failed => {}
                Accepted::Blocked | Accepted::Full => return,
            }
        }
    }
}

/// Connections answered when the shard ends; a listener's queue isn't longer.
const REFUSALS_AT_END_MAX: usize = 65_536;

/// Milliseconds until a listener is asked again for which no descriptor was free.
const ACCEPT_AGAIN_MS: u64 = 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::fixture::{Plan, Wired};
    use crate::shard::net::record::Phase;

    #[test]
    fn a_connection_gets_a_slot_and_a_key_of_its_own() {
        let mut of = Wired::new(Plan::default());
        let ((_, a), (_, b)) = (of.connect(), of.connect());
        assert_ne!(a.generation, b.generation);
        assert_eq!((of.net.connections(), of.net.replaceable.len()), (2, 2));
        let renewed = of.net.renew_key(a.index).unwrap();
        assert!(of.net.conn(a).is_none() && of.net.conn(renewed).is_some());
        assert_eq!(of.end(), []);
    }

    #[test]
    fn without_a_place_the_longest_idle_connection_makes_room() {
        let mut plan = Plan::default();
        plan.options.conns_max = 1;
        let mut of = Wired::new(plan);
        let keys: Vec<ConnKey> =
            (0..of.cx.node.options.places_max()).map(|_| of.connect().1).collect();
        assert!(of.net.is_full(&of.cx));
        of.connect();
        assert!(of.net.conn(keys[0]).is_some_and(|conn| conn.phase == Phase::Leaving));
        assert!(of.net.is_full(&of.cx) && of.net.conn(keys[1]).is_some());
        assert_eq!(of.end(), []);
    }
}
