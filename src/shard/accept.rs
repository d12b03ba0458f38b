//! New connections: taken in bounded batches, passed on when this shard is full, refused when the
//! node is.

use super::notices::reason_of_refusal;
use super::*;
use crate::base::notices::Reason;
use crate::io::Accepted;
use crate::proto::http::{self, Refusal};

impl<D: Driver> Shard<D> {
    /// Takes some of the connections that wait at the listener or were passed by other shards.
    pub(super) fn accept_some(&mut self) {
        if self.accept_again_at.is_some_and(|at| at <= self.driver.now()) {
            self.accept_again_at = None;
            self.acceptable = true;
        }
        for _ in 0..TURN_ACCEPTS_MAX {
            if self.passed {
                match self.driver.take_passed() {
                    Some(socket) => self.seat(socket, false),
                    None => self.passed = false,
                }
                continue;
            }
            if !self.acceptable {
                return;
            }
            match self.driver.accept() {
                Accepted::Socket(socket) => self.seat(socket, true),
                Accepted::Blocked => self.acceptable = false,
                Accepted::Failed => self.counters().accept_failed.add(1),
                Accepted::Full => {
                    // Nothing here to refuse it with: it waits until a descriptor is free.
                    self.counters().accepts_put_off.add(1);
                    self.acceptable = false;
                    self.accept_again_at = Some(self.driver.now().after(ACCEPT_AGAIN_MS));
                    return;
                }
            }
        }
    }

    /// Gives a connection a slot, here or on the emptiest shard.
    fn seat(&mut self, socket: D::Socket, may_pass: bool) {
        let conns_max = self.node.options.conns_max as usize;
        let conns_soft = self.node.options.conns_soft as usize;
        let mut socket = socket;
        if may_pass
            && (self.node.options.one_accepts || self.conns.len() >= conns_soft)
            && let Some(to) = self.emptiest()
        {
            match self.driver.pass(to, socket) {
                Ok(()) => {
                    // Counted from here on, so that a burst isn't passed to one shard alone.
                    self.node.open[to.index()].fetch_add(1, Ordering::Relaxed);
                    return self.counters().connections_passed.add(1);
                }
                Err(back) => socket = back,
            }
        }
        // Who was passed is counted already.
        if may_pass {
            self.node.open[self.id.index()].fetch_add(1, Ordering::Relaxed);
        }
        if self.conns.len() < conns_max {
            match self.arrival(&socket) {
                Ok(arrival) => match self.begin(socket) {
                    Some(key) => self.arrived(key.index, arrival),
                    None => self.turned_back(arrival),
                },
                Err(refusal) => {
                    self.node.open[self.id.index()].fetch_sub(1, Ordering::Relaxed);
                    self.turn_away(socket, refusal);
                }
            }
            return;
        }
        self.counters().connections_refused_full.add(1);
        if self.conns.len() >= conns_max + CONNS_SPARE {
            self.node.open[self.id.index()].fetch_sub(1, Ordering::Relaxed);
        } else if let Some(key) = self.begin(socket) {
            self.refuse_for_now(key.index, Reason::HttpFull);
        }
    }

    /// The other shard with the fewest connections, if it has room and fewer than this one.
    fn emptiest(&self) -> Option<ShardId> {
        let here = self.node.open[self.id.index()].load(Ordering::Relaxed);
        let others = self.node.open.iter().enumerate().filter(|(at, _)| *at != self.id.index());
        let (at, open) = others
            .map(|(at, open)| (at, open.load(Ordering::Relaxed)))
            .min_by_key(|(_, open)| *open)?;
        (open < self.node.options.conns_max && open < here).then_some(ShardId(at as u8))
    }

    /// Gives a connection, which is counted as open here, a slot.
    fn begin(&mut self, socket: D::Socket) -> Option<ConnKey> {
        let generation = self.take_generation();
        let tick = self.tick();
        let index = self.conns.insert(Conn::new(socket, generation, tick)) as u32;
        let key = ConnKey { index, generation };
        let conn = &self.conns[index as usize];
        self.counters().connections_accepted.add(1);
        self.counters().connections_open.add(1);
        let watched = match &conn.socket {
            Some(socket) => self.driver.watch(key, socket).is_ok(),
            None => false,
        };
        if !watched {
            self.counters().accept_failed.add(1);
            self.release(index, true);
            return None;
        }
        self.schedule(index);
        Some(key)
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
    pub(super) fn renew_key(&mut self, index: u32) -> Option<ConnKey> {
        let generation = self.take_generation();
        let conn = self.conns.get_mut(index as usize)?;
        let (old, new) = (conn.key(index), ConnKey { index, generation });
        self.driver.rename(old, new, conn.socket.as_ref()?).ok()?;
        conn.generation = generation;
        // No verdict and no credit comes for it any more; its places on the lists go with the old key.
        conn.flags.set_pending(false);
        conn.flags.set_waiting(false);
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

    /// Counts one more client, if the node's limits allow it.
    ///
    /// # Errors
    /// The limit that is reached.
    pub(super) fn admit(&mut self) -> Result<(), Reason> {
        let client = Arc::clone(&self.client);
        if client.connection_rate_limit > 0 {
            let second = self.driver.now().0 / 1000;
            let rate = &self.node.client_rate;
            let taken = rate.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
                let (at, count) = (packed >> 32, packed & 0xffff_ffff);
                let count = if at == second & 0xffff_ffff { count } else { 0 };
                (count < client.connection_rate_limit)
                    .then_some((second & 0xffff_ffff) << 32 | (count + 1))
            });
            if taken.is_err() {
                return Err(Reason::HttpConnectionRate);
            }
        }
        let before = self.node.clients.fetch_add(1, Ordering::Relaxed);
        if client.connection_limit > 0 && before >= client.connection_limit {
            self.node.clients.fetch_sub(1, Ordering::Relaxed);
            return Err(Reason::HttpConnectionLimit);
        }
        Ok(())
    }

    /// Answers a request with a refusal; the connection ends with it.
    pub(super) fn refuse(&mut self, index: u32, refusal: Refusal) {
        self.refuse_because(index, refusal, reason_of_refusal(refusal), "", format_args!(""));
    }

    /// Answers a request with 503: the client should come back.
    pub(super) fn refuse_for_now(&mut self, index: u32, reason: Reason) {
        self.refuse_because(index, Refusal::Unavailable, reason, "", format_args!(""));
    }

    /// Answers a request with a refusal and more header lines, and logs the reason and its detail.
    pub(super) fn refuse_because(
        &mut self,
        index: u32,
        refusal: Refusal,
        reason: Reason,
        more: &str,
        why: std::fmt::Arguments<'_>,
    ) {
        let label = match refusal {
            Refusal::Unavailable => "",
            refusal => refusal.label(),
        };
        let sep = if label.is_empty() || why.as_str() == Some("") { "" } else { ": " };
        let code = refusal.status().into();
        self.notice(index, reason, code, "", format_args!("{label}{sep}{why}"));
        self.count_refusal(refusal);
        let mut answer = Vec::new();
        http::put_refusal(&mut answer, refusal, more);
        self.enqueue(index, SharedFrame::new(&answer));
        self.linger(index);
    }

    /// A connection or request is refused.
    pub(super) fn count_refusal(&self, refusal: Refusal) {
        let counters = self.counters();
        let counter = match refusal.status() {
            _ if refusal == Refusal::ForeignHost => &counters.refused_host,
            _ if refusal == Refusal::Repeated => &counters.refused_repeated,
            403 => &counters.refused_origin,
            404 => &counters.refused_not_found,
            408 => &counters.refused_timeout,
            413 | 414 | 431 => &counters.refused_too_long,
            503 => &counters.refused_unavailable,
            429 if refusal == Refusal::AddressConnections => &counters.refused_address_connections,
            429 if refusal == Refusal::AddressRate => &counters.refused_address_rate,
            429 => &counters.refused_address_bytes,
            _ if matches!(
                refusal,
                Refusal::Method
                    | Refusal::NotUpgrade
                    | Refusal::WebSocketVersion
                    | Refusal::WebSocketKey
                    | Refusal::UpgradeBody
                    | Refusal::Protobuf
            ) =>
            {
                &counters.refused_upgrade
            }
            _ => &counters.refused_malformed,
        };
        counter.add(1);
    }

    /// The shard ends: what still waits at the listener is answered.
    pub(super) fn refuse_waiting(&mut self) {
        let mut answer = Vec::new();
        http::put_refusal(&mut answer, Refusal::Unavailable, "");
        let frame = SharedFrame::new(&answer);
        let nobody = ConnKey { index: u32::MAX, generation: NonZeroU32::MAX };
        for _ in 0..REFUSALS_AT_END_MAX {
            match self.driver.accept() {
                Accepted::Socket(socket) => {
                    self.counters().refused_unavailable.add(1);
                    self.driver.send(nobody, &socket, std::iter::once(&frame), 0);
                    self.driver.finish(&socket);
                    self.driver.close(nobody, socket, false);
                }
                Accepted::Failed => {}
                Accepted::Blocked | Accepted::Full => return,
            }
        }
    }

    /// The node drains: closes connections at the set pace.
    pub(super) fn drain_some(&mut self) {
        let now = self.driver.now();
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
        let walked = draining.cursor >= self.conns.capacity();
        let mut listed = std::mem::take(&mut self.listed);
        for index in listed.drain(..) {
            self.counters().closed_shutdown.add(1);
            self.disconnect(index, crate::proto::client::Disconnect::Shutdown);
        }
        self.listed = listed;
        if walked {
            self.close_idle_requesters();
        }
        let open = self.counters().connections_open.get();
        if let Some(draining) = &mut self.draining
            && open == 0
            && !draining.told
        {
            draining.told = true;
            self.node.drained.fetch_add(1, Ordering::Release);
        }
    }

    /// All clients are told: connections that requests came over, and none is on its way, go last; with
    /// them those that browsers open before they need them, once a request had time to come.
    fn close_idle_requesters(&mut self) {
        let now = self.driver.now();
        let began = self.draining.as_ref().map_or(now, |draining| draining.since);
        let is_late = now.since(began) >= UNUSED_MS;
        let long_ago = self.tick().saturating_sub(ticks(UNUSED_MS));
        let idle = self.conns.iter().filter(|(_, conn)| {
            let unused = conn.flags.served() || is_late && conn.since_tick <= long_ago;
            conn.phase == Phase::Head && unused && conn.rx.is_none()
        });
        self.listed.extend(idle.map(|(index, _)| index as u32));
        let mut listed = std::mem::take(&mut self.listed);
        listed.drain(..).for_each(|index| self.linger(index));
        self.listed = listed;
    }

    /// Begins to drain.
    pub(super) fn drain(&mut self, per_second: u32) {
        let since = self.driver.now();
        self.draining.get_or_insert(Draining {
            per_second,
            since,
            closed: 0,
            cursor: 0,
            told: false,
        });
    }
}

/// Milliseconds until a listener is asked again for which no descriptor was free.
const ACCEPT_AGAIN_MS: u64 = 20;

/// Connections answered with 503 when the shard ends; a listener's queue isn't longer.
const REFUSALS_AT_END_MAX: usize = 65_536;

/// While draining: a connection over which no request has come for so long is not waited for.
const UNUSED_MS: u64 = 2000;
