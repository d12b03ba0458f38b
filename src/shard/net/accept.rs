//! New connections: taken in bounded batches, passed on when this shard is full, refused when the
//! node is.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::base::id::{ConnKey, ShardId};
use crate::base::limits::{TURN_ACCEPTS_MAX, TURN_LEAVERS_MAX};
use crate::base::notices::Reason;
use crate::io::{Accepted, Driver};
use crate::shard::life::Draining;
use crate::shard::net::record::{Conn, Phase};
use crate::shard::{CONNS_SPARE, Options, Shard, ticks};

impl<D: Driver> Shard<D> {
    /// Takes some of the connections that wait at the listener or were passed by other shards.
    pub(crate) fn accept_some(&mut self) {
        if self.net.accept_again_at.is_some_and(|at| at <= self.cx.now) {
            self.net.accept_again_at = None;
            self.net.acceptable = true;
        }
        let mut first = None;
        for _ in 0..TURN_ACCEPTS_MAX {
            // Those that came in this turn have not been read yet: they don't replace each other. Nor is there a slot
            // before the dead ones of earlier turns are gone.
            let fresh = first.is_some() && self.net.replaceable.first() == first;
            if fresh && self.net.is_full(&self.cx) {
                return;
            }
            if self.net.conns.len() >= slots_max(&self.cx.node.options) {
                return self.accept_later();
            }
            if self.net.passed {
                match self.net.driver.take_passed() {
                    Some(socket) => {
                        let seated = self.seat(socket, false);
                        first = first.or(seated);
                    }
                    None => self.net.passed = false,
                }
                continue;
            }
            if !self.net.acceptable {
                return;
            }
            match self.net.driver.accept() {
                Accepted::Socket(socket) => {
                    let seated = self.seat(socket, true);
                    first = first.or(seated);
                }
                Accepted::Blocked => self.net.acceptable = false,
                Accepted::Failed => self.cx.counters().accept_failed.add(1),
                // The next turn finds a descriptor free.
                Accepted::Full if !fresh && self.replace_one() => return,
                // Nothing here to refuse it with: it waits until a descriptor is free.
                Accepted::Full => return self.accept_later(),
            }
        }
    }

    /// Leaves what waits at the listener there for a moment.
    fn accept_later(&mut self) {
        self.cx.counters().accepts_put_off.add(1);
        self.net.acceptable = false;
        self.net.accept_again_at = Some(self.cx.now.after(ACCEPT_AGAIN_MS));
    }

    /// Gives a connection a slot, here or on the emptiest shard. Yields the one that it has here.
    fn seat(&mut self, socket: D::Socket, may_pass: bool) -> Option<u32> {
        let conns_soft = self.cx.node.options.conns_soft as usize;
        let mut socket = socket;
        if may_pass
            && (self.cx.node.options.one_accepts || self.net.connections() >= conns_soft)
            && let Some(to) = self.emptiest()
        {
            match self.net.driver.pass(to, socket) {
                Ok(()) => {
                    // Counted from here on, so that a burst isn't passed to one shard alone.
                    self.cx.node.open[to.index()].fetch_add(1, Ordering::Relaxed);
                    self.cx.counters().connections_passed.add(1);
                    return None;
                }
                Err(back) => socket = back,
            }
        }
        // Who was passed is counted already.
        if may_pass {
            self.cx.node.open[self.cx.id.index()].fetch_add(1, Ordering::Relaxed);
        }
        let arrival = match self.arrival(&socket) {
            Ok(arrival) => arrival,
            Err(refusal) => {
                self.cx.node.open[self.cx.id.index()].fetch_sub(1, Ordering::Relaxed);
                self.turn_away(socket, refusal);
                return None;
            }
        };
        if self.net.is_full(&self.cx) && !self.replace_one() {
            // Nobody here may lose its place. Without an answer: it has sent nothing that one could be for.
            self.cx.counters().connections_refused_full.add(1);
            self.turned_back(arrival);
            self.cx.node.open[self.cx.id.index()].fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let seated = self.begin(socket);
        match seated {
            Some(index) => self.arrived(index, arrival),
            None => self.turned_back(arrival),
        }
        seated
    }

    /// The other shard with the fewest connections, if it has room and fewer than this one.
    fn emptiest(&self) -> Option<ShardId> {
        let here = self.cx.node.open[self.cx.id.index()].load(Ordering::Relaxed);
        let others =
            self.cx.node.open.iter().enumerate().filter(|(at, _)| *at != self.cx.id.index());
        let (at, open) = others
            .map(|(at, open)| (at, open.load(Ordering::Relaxed)))
            .min_by_key(|(_, open)| *open)?;
        (open < self.cx.node.options.conns_max && open < here).then_some(ShardId(at as u8))
    }

    /// Gives a connection, which is counted as open here, a slot.
    fn begin(&mut self, socket: D::Socket) -> Option<u32> {
        let generation = self.take_generation();
        let tick = self.cx.tick();
        let index = self.net.conns.insert(Conn::new(socket, generation, tick)) as u32;
        let key = ConnKey { index, generation };
        let conn = &self.net.conns[index as usize];
        self.cx.counters().connections_accepted.add(1);
        self.cx.counters().connections_open.add(1);
        let watched = match &conn.socket {
            Some(socket) => self.net.driver.watch(key, socket).is_ok(),
            None => false,
        };
        if !watched {
            self.cx.counters().accept_failed.add(1);
            self.release(index, true);
            return None;
        }
        self.net.set_replaceable(index);
        self.schedule(index);
        Some(index)
    }

    /// A generation that no other key of a connection here has.
    fn take_generation(&mut self) -> NonZeroU32 {
        let generation = self.net.next_generation;
        self.net.next_generation =
            NonZeroU32::new(generation.get().wrapping_add(1)).unwrap_or(NonZeroU32::MIN);
        generation
    }

    /// Gives a connection whose session has ended another key, so that it can have a new session. A key,
    /// and so a client id, is one session's: whatever is kept for that session, or is on its way to it,
    /// finds nobody. None: it can't have one, and is to be closed.
    pub(crate) fn renew_key(&mut self, index: u32) -> Option<ConnKey> {
        let generation = self.take_generation();
        let conn = self.net.conns.get_mut(index as usize)?;
        let (old, new) = (conn.key(index), ConnKey { index, generation });
        self.net.driver.rename(old, new, conn.socket.as_ref()?).ok()?;
        conn.generation = generation;
        // No verdict and no credit comes for it any more; its places on the lists go with the old key.
        conn.flags.set_waiting(false);
        conn.waits = None;
        let (ready, dirty) = (conn.flags.ready(), conn.flags.dirty());
        conn.flags.set_ready(false);
        conn.flags.set_dirty(false);
        if ready {
            self.net.mark_ready(new);
        }
        if dirty {
            self.net.mark_dirty(new);
        }
        Some(new)
    }

    /// Whether one more client may come. It is counted when it is connected.
    ///
    /// # Errors
    /// Why not now.
    pub(crate) fn admit(&mut self) -> Result<(), Reason> {
        if let Some(reason) = self.takes_no_clients() {
            return Err(reason);
        }
        let client = Arc::clone(&self.cx.client);
        if client.connection_rate_limit > 0 {
            let second = self.cx.now.0 / 1000;
            if !self.cx.node.client_rate.admit(second, client.connection_rate_limit) {
                return Err(Reason::HttpConnectionRate);
            }
        }
        if client.connection_limit > 0
            && self.cx.node.clients.load(Ordering::Relaxed) >= client.connection_limit
        {
            return Err(Reason::HttpConnectionLimit);
        }
        self.has_client_place()
    }

    /// Whether a client finds a place on this shard.
    ///
    /// # Errors
    /// When others have them all.
    pub(crate) fn has_client_place(&self) -> Result<(), Reason> {
        match self.net.is_full_of_clients(&self.cx) {
            true => Err(Reason::HttpFull),
            false => Ok(()),
        }
    }

    /// A connection is a client's from now on, until [`leave_client_place`](Self::leave_client_place): it counts for
    /// `client.connection_limit`. The limit is held here, since many may have been admitted before one of them
    /// connects.
    ///
    /// # Errors
    /// Why not now.
    pub(crate) fn take_client_place(&mut self, index: u32) -> Result<(), Reason> {
        let limit = self.cx.client.connection_limit;
        let taken = self.has_client_place().and_then(|()| {
            let before = self.cx.node.clients.fetch_add(1, Ordering::Relaxed);
            if limit > 0 && before >= limit {
                self.cx.node.clients.fetch_sub(1, Ordering::Relaxed);
                return Err(Reason::HttpConnectionLimit);
            }
            Ok(())
        });
        if let Err(reason) = taken {
            self.count_busy(reason);
            return Err(reason);
        }
        if let Some(conn) = self.net.conns.get_mut(index as usize) {
            conn.flags.set_counted(true);
            let transport = conn.form.transport();
            self.cx.counters().clients(transport).add(1);
        }
        Ok(())
    }

    /// A connection is no client's any more: its session is over, whatever is still to be said on it.
    pub(crate) fn leave_client_place(&mut self, index: u32) {
        let Some(conn) = self.net.conns.get_mut(index as usize) else { return };
        if conn.flags.counted() {
            conn.flags.set_counted(false);
            let transport = conn.form.transport();
            self.cx.counters().clients(transport).sub(1);
            self.cx.node.clients.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The node drains: closes connections at the set pace.
    pub(crate) fn drain_some(&mut self) {
        let now = self.cx.now;
        let Some(draining) = &mut self.life.draining else { return };
        let due = now.since(draining.since).saturating_mul(u64::from(draining.per_second)) / 1000;
        // A client that connects while the node drains is refused, so the walk needs one round.
        while draining.closed < due
            && draining.cursor < self.net.conns.capacity()
            && self.net.listed.len() < TURN_LEAVERS_MAX
        {
            let index = draining.cursor;
            draining.cursor += 1;
            let Some(conn) = self.net.conns.get(index) else { continue };
            if matches!(conn.phase, Phase::Client | Phase::Echo | Phase::Unusable) {
                draining.closed += 1;
                self.net.listed.push(index as u32);
            }
        }
        let walked = draining.cursor >= self.net.conns.capacity();
        let mut listed = std::mem::take(&mut self.net.listed);
        for index in listed.drain(..) {
            self.deliver_pending(index, None);
            self.cx.counters().closed_shutdown.add(1);
            self.disconnect(index, crate::proto::client::Disconnect::Shutdown);
        }
        self.net.listed = listed;
        if walked {
            self.close_idle_requesters();
        }
        let open = self.cx.counters().connections_open.get();
        if let Some(draining) = &mut self.life.draining
            && open == 0
            && !draining.told
        {
            draining.told = true;
            self.cx.node.drained.fetch_add(1, Ordering::Release);
        }
    }

    /// All clients are told: connections that requests came over, and none is on its way, go last; with
    /// them those that browsers open before they need them, once a request had time to come.
    fn close_idle_requesters(&mut self) {
        let now = self.cx.now;
        let began = self.life.draining.as_ref().map_or(now, |draining| draining.since);
        let is_late = now.since(began) >= UNUSED_MS;
        let long_ago = self.cx.tick().saturating_sub(ticks(UNUSED_MS));
        let idle = self.net.conns.iter().filter(|(_, conn)| {
            let unused = conn.flags.served() || is_late && conn.since_tick <= long_ago;
            conn.phase == Phase::Head && unused && conn.rx.is_none()
        });
        self.net.listed.extend(idle.map(|(index, _)| index as u32));
        let mut listed = std::mem::take(&mut self.net.listed);
        listed.drain(..).for_each(|index| self.linger(index));
        self.net.listed = listed;
    }

    /// Begins to drain.
    pub(crate) fn drain(&mut self, per_second: u32) {
        let since = self.cx.now;
        self.life.draining.get_or_insert(Draining {
            per_second,
            since,
            closed: 0,
            cursor: 0,
            told: false,
        });
    }
}

/// Slots of a shard: those of connections, and of dead ones that leave in the same turn.
pub(crate) fn slots_max(options: &Options) -> usize {
    options.conns_max as usize + CONNS_SPARE + TURN_ACCEPTS_MAX
}

/// Milliseconds until a listener is asked again for which no descriptor was free.
const ACCEPT_AGAIN_MS: u64 = 20;

/// While draining: a connection over which no request has come for so long is not waited for.
const UNUSED_MS: u64 = 2000;
