//! The loop: one shard, its connections, its channels, its mail.
//!
//! ```text
//!   turn:  wait -> completions -> accept -> read -> mail -> mail to itself -> events -> timers
//!          -> leavers -> fan-out -> write what is queued -> send mail -> (again)
//! ```
//! A shard never blocks but in its driver's wait, takes no lock, and shares nothing with other
//! shards but mail, shared frames and counters. Each step of a turn is bounded; what is over its
//! bound stays on a list for the next turn.
//!
//! Two roles meet here and talk by mail only, even when both are this shard: the *home* of channels
//! (`home`) and the *subscribers' side* (`local`).

use crate::shard::outlets::outlets;

mod by_slot;
mod clients;
mod codec;
mod context;
pub mod crypto;
#[cfg(test)]
pub(crate) mod fixture;
mod flow;
pub mod freeze;
mod home;
mod http;
mod life;
mod liveness;
mod local;
pub mod mail;
mod memory;
mod net;
mod node_state;
mod notices;
mod options;
mod orders;
mod outlets;
pub mod settle;
mod shedding;
mod stats;

pub use self::clients::{proxies, signatures};
pub use self::http::endpoint::{CodeResponse, Endpoint, EndpointKind, UniWebSocketOptions};
pub use self::memory::Memory;
pub use self::net::record::CONN_BYTES;
pub use self::net::timers;
pub use self::node_state::{NodeParts, NodeState};
pub use self::notices::{Cut, Fields, Notices};
pub use self::options::{AddressSources, Broker, Options};
pub use self::stats::{ShardCounters, SlowCounters};

use std::sync::Arc;

use self::clients::Clients;
use self::clients::aside::Admin;
use self::codec::Codec;
use self::context::Cx;
use self::home::Home;
use self::life::Life;
use self::local::LocalSide;
use self::mail::post::Post;
use self::mail::{Letterbox, Mailbox};
use self::net::Net;
use self::net::effects::Effect;
use self::net::record::NONE;
use self::orders::Orders;
use crate::base::id::ShardId;
use crate::base::limits::{SENDS_MAX, TURN_INPUT_BYTES_MAX, TURN_READS_MAX};
use crate::base::rng::Rng;
use crate::base::time::Millis;
use crate::io::{Completion, Driver};
use crate::proto::client::Disconnect;

/// The place of one shard in its node: its number, its mailboxes, its seed.
pub struct Seat {
    /// Number of the shard.
    pub shard: ShardId,
    /// Its incoming mail.
    pub mailbox: Mailbox,
    /// Outgoing mail to each shard.
    pub letterboxes: Vec<Letterbox>,
    /// Outgoing mail to the control thread.
    pub control: Letterbox,
    /// Seed of its randomness: it spreads pings, and makes epochs.
    pub seed: u64,
}

/// One shard on its driver.
pub struct Shard<D: Driver> {
    /// What a turn reads and doesn't change.
    cx: Cx,
    /// Connections: sockets, records, queues, timers, and HTTP.
    net: Net<D>,
    /// Mail of this shard, both ways.
    post: Post,
    /// Channels, users and tokens whose home is here.
    home: Home,
    /// Channels that connections here subscribe to.
    local: LocalSide,
    /// Sessions, and commands that wait.
    clients: Clients,
    /// Encoders and buffers that all of these share.
    codec: Codec,
    /// Orders of the control thread that are being carried out.
    orders: Orders,
    /// Whether the shard goes on, and what it looks after once in a while.
    life: Life,
}

impl<D: Driver> Shard<D> {
    /// A shard with no connections.
    pub fn new(node: Arc<NodeState>, seat: Seat, driver: D, collect: fn()) -> Self {
        let mut rng = Rng::new(seat.seed);
        let cx = Cx::new(node, seat.shard, driver.now(), driver.unix());
        let shards = seat.letterboxes.len();
        let unanswered_max = cx.node.options.requests_unanswered_max;
        Self {
            home: Home::new(&cx, shards, &mut rng),
            post: Post::new(seat.mailbox, seat.letterboxes, seat.control, unanswered_max),
            local: LocalSide::new(&cx),
            clients: Clients::new(&cx),
            codec: Codec::new(&cx),
            orders: Orders::default(),
            life: Life::new(cx.now, collect),
            net: Net::new(&cx, driver, rng),
            cx,
        }
    }

    /// Runs until it is told to stop.
    pub fn run(mut self) {
        while self.turn() {}
    }

    /// One turn of the loop: waits for something to do, and does it. False when the shard has
    /// stopped.
    pub fn turn(&mut self) -> bool {
        let until = self.wait_until();
        self.turn_after(until)
    }

    /// The rest of a turn behind [`Self::wait_until`]: waits, at most until then, and works. Apart
    /// so that a simulation can leave the shard waiting while others have their turns.
    pub fn turn_after(&mut self, until: Option<Millis>) -> bool {
        self.cx.counters().turns.add(1);
        self.net.completions.clear();
        self.net.driver.wait(until, &mut self.net.completions);
        if let Some(us) = self.net.driver.worked_us() {
            self.cx.node.loop_lag[self.cx.id.index()].record(us);
        }
        self.post.awake();
        self.home.begin_turn();
        self.cx.begin_turn(self.net.driver.now(), self.net.driver.unix());
        self.take_completions();
        if self.life.settling.is_some() {
            self.settle_some();
        } else {
            self.net.accept_some(&self.cx, &mut self.post);
            self.go_on_answered();
            self.read_some();
        }
        self.open_mail();
        self.carry_out_orders();
        self.open_own_mail();
        self.home.send_events(&self.cx, &mut self.post, &mut self.codec);
        if self.life.settling.is_none() {
            self.fire_timers();
        }
        self.drain_some();
        self.clients.clean_up_leavers(&mut outlets!(self), &mut self.local);
        self.fan_out_some();
        self.mark_positions();
        self.write_dirty();
        self.home.send_gaps(&mut self.post);
        self.post.flush(&self.cx);
        self.clients.resume_waiting(&mut outlets!(self), &mut self.local);
        self.keep_to_memory();
        self.housekeeping();
        if self.life.stopped {
            self.end();
        }
        !self.life.stopped
    }

    /// When the next wait has to end: at once if anything is left to do, never for `None`. The
    /// first half of a turn: from here on mail wakes the shard.
    pub fn wait_until(&mut self) -> Option<Millis> {
        let now = self.cx.now;
        let work = !self.net.ready.is_empty()
            || self.net.acceptable
            || self.net.passed
            || self.post.own_batches() > 0
            || self.local.locals.active() > 0
            || !self.net.dirty.is_empty()
            || !self.net.answered.is_empty()
            || self.orders.has_work()
            || (self.net.leaving_count > 0 && !self.post.is_blocked())
            || self.life.shedding.goes_on
            // What was posted behind the turn's sending goes with the next one.
            || self.has_unsent_mail()
            || !self.post.sleep(&self.cx);
        if work {
            return Some(now);
        }
        // Nothing is left to do: what is read of a shard that sleeps has to be true.
        self.set_gauges();
        // Whoever has no room rings when it has; the rest is for shards that ended meanwhile.
        let retry = self.post.is_blocked().then(|| now.after(MAIL_RETRY_MS));
        let delayed = self.local.locals.next_due();
        let drain = self.net.draining.is_some().then(|| now.after(10));
        let accept = self.net.accept_again_at.map(|at| at.max(now));
        // An idle shard sleeps as long as nothing happens.
        let busy = !self.net.conns.is_empty() || !self.home.is_empty() || self.life.queued_peak > 0;
        let housekeeping = busy.then(|| self.life.housekeeping_at.max(now));
        let timer = self.net.wheel.next_deadline();
        [retry, delayed, drain, accept, housekeeping, timer].into_iter().flatten().min()
    }

    /// Mail is here that nothing keeps from leaving: no shard sleeps then.
    pub fn has_unsent_mail(&self) -> bool {
        self.post.has_unsent()
    }

    fn take_completions(&mut self) {
        for at in 0..self.net.completions.len() {
            match self.net.completions[at] {
                Completion::Acceptable => self.net.acceptable = true,
                Completion::Passed => self.net.passed = true,
                Completion::Woken => {}
                Completion::Readable { key, ended } => match self.net.conn(key) {
                    Some(conn) => {
                        if ended {
                            conn.flags.set_ended(true);
                        }
                        match ended && conn.waits.is_some() && conn.session == NONE {
                            true => {
                                self.clients.leave_before_connected(&mut outlets!(self), key.index)
                            }
                            false => self.net.mark_ready(key),
                        }
                    }
                    None => self.cx.counters().stale_events.add(1),
                },
                Completion::Writable { key } => {
                    if let Some(conn) = self.net.conn(key)
                        && conn.flags.blocked()
                    {
                        conn.flags.set_blocked(false);
                        self.net.mark_dirty(key);
                    }
                }
                Completion::Sent { key, bytes } => {
                    self.net.sent(&self.cx, &mut self.post, key, bytes)
                }
            }
        }
    }

    fn read_some(&mut self) {
        let ahead = self.net.driver.fetch_max();
        let before = self.cx.counters().bytes_received.get();
        for at in 0..self.net.ready.len().min(TURN_READS_MAX) {
            if self.cx.counters().bytes_received.get() - before >= TURN_INPUT_BYTES_MAX {
                break;
            }
            if ahead > 0 && at % ahead == 0 {
                self.read_ahead(ahead);
            }
            let Some(key) = self.net.ready.pop_front() else { break };
            let Some(conn) = self.net.conn(key) else { continue };
            conn.flags.set_ready(false);
            self.read(key);
        }
    }

    /// Lets the driver read what the next `count` connections have.
    fn read_ahead(&mut self, count: usize) {
        let Net { driver, ready, conns, .. } = &mut self.net;
        driver.fetch(ready.iter().take(count).filter_map(|key| {
            let conn = conns.get(key.index as usize)?;
            let reads = conn.generation == key.generation && !conn.flags.paused();
            Some((*key, conn.socket.as_ref().filter(|_| reads)?))
        }));
    }

    /// Once a second: expired history, gauges, memory.
    fn housekeeping(&mut self) {
        self.life.queued_peak = self.life.queued_peak.max(self.net.queues.bytes());
        let now = self.cx.now;
        if now < self.life.housekeeping_at {
            return;
        }
        self.life.housekeeping_at = now.after(HOUSEKEEPING_MS);
        self.home.housekeeping(&self.cx);
        self.codec.housekeeping();
        self.net.housekeeping();
        if self.net.queues.bytes() == 0 {
            if self.life.queued_peak > COLLECT_AFTER_BYTES {
                (self.life.collect)();
            }
            self.life.queued_peak = 0;
        }
        self.set_gauges();
    }

    /// Gauges that are cheaper to read off than to keep.
    fn set_gauges(&self) {
        let counters = self.cx.counters();
        self.net.set_gauges(counters);
        self.post.set_gauges(counters);
        self.home.set_gauges(counters);
        self.local.set_gauges(counters);
        self.clients.set_gauges(counters);
    }

    /// Closes the clients whose turn it is while the node drains.
    fn drain_some(&mut self) {
        self.net.list_to_drain(&self.cx);
        let mut listed = std::mem::take(&mut self.net.listed);
        for index in listed.drain(..) {
            self.deliver_pending(index, None);
            self.cx.counters().closed_shutdown.add(1);
            self.clients.disconnect(
                &mut outlets!(self),
                &mut self.local,
                index,
                Disconnect::Shutdown,
            );
        }
        self.net.listed = listed;
        self.net.after_drain(&self.cx, &mut self.post);
    }

    /// Writes to every connection that got something in this turn.
    fn write_dirty(&mut self) {
        let dirty = self.net.take_dirty();
        for keys in dirty.chunks(SENDS_MAX) {
            for key in keys {
                if !self.net.list_to_write(*key) {
                    self.net.after_write(&self.cx, &mut self.codec, &mut self.post, *key);
                    self.after_net();
                }
            }
            self.net.send_listed();
            for at in 0.. {
                if !self.net.take_sent(&self.cx, &mut self.codec, &mut self.post, at) {
                    break;
                }
                self.after_net();
            }
        }
        self.net.end_writes(dirty);
    }

    /// Carries out what Net has come to, behind each call that may have effects.
    pub(crate) fn after_net(&mut self) {
        while let Some(effect) = self.net.effects.pop_front() {
            match effect {
                Effect::Client { index, user, headers } => {
                    let aside = self.clients.asides.entry(index);
                    aside.header_user = user.unwrap_or_default();
                    aside.headers = headers;
                }
                Effect::Slow(index) => self.clients.disconnect(
                    &mut outlets!(self),
                    &mut self.local,
                    index,
                    Disconnect::Slow,
                ),
                Effect::Lost(index, dropped) => {
                    let conn = self.net.conns.get(index as usize);
                    let session =
                        conn.and_then(|conn| self.clients.sessions.get(conn.session as usize));
                    self.local.lost(&self.cx, session.map(|session| &session.subs), &dropped);
                }
                Effect::Admin(index) => {
                    self.clients.asides.entry(index).admin = Some(Admin::Upgraded);
                }
                Effect::Message { key, message } => self.first_message(key, &message),
            }
        }
    }

    /// Whether nothing is left of connections that came and went: no slot, no credit, no mail, no
    /// interest in a channel.
    ///
    /// # Errors
    /// Names each list that still has entries, and how many.
    pub fn is_quiescent(&self) -> Result<(), String> {
        let mut left = vec![("orders", self.orders.len())];
        left.extend(self.net.left());
        left.extend(self.post.left());
        left.extend(self.home.left());
        left.extend(self.local.left());
        left.extend(self.clients.left());
        left.retain(|(_, count)| *count > 0);
        if left.is_empty() { Ok(()) } else { Err(format!("shard {}: {left:?}", self.cx.id.0)) }
    }

    /// What waits in the listener is told that the node is gone, then the listener goes.
    fn end(&mut self) {
        self.net.refuse_waiting(&self.cx);
        self.net.driver.close_listener();
        self.set_gauges();
    }
}

/// Milliseconds between two housekeepings.
const HOUSEKEEPING_MS: u64 = 1000;

/// Mail that found a full mailbox is sent again after so long even if nobody rings.
const MAIL_RETRY_MS: u64 = 20;

/// A burst of so many queued bytes makes it worthwhile to give memory back.
const COLLECT_AFTER_BYTES: u64 = 1 << 20;
