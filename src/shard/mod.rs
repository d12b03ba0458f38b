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
mod copying;
pub mod crypto;
mod dispatch;
#[cfg(test)]
pub(crate) mod fixture;
mod flow;
pub mod freeze;
pub mod handover;
mod home;
mod http;
mod inspecting;
mod life;
mod local;
pub mod mail;
mod memory;
mod net;
mod node_state;
mod notices;
mod options;
mod orders;
mod outlets;
#[cfg(test)]
mod samples;
pub mod settle;
mod shedding;
mod stats;
mod tls;

pub use self::clients::{proxies, signatures};
pub use self::home::handover::ChannelNames;
pub use self::http::endpoint::{CodeResponse, Endpoint, EndpointKind, UniWebSocketOptions};
pub use self::memory::Memory;
pub use self::net::record::CONN_BYTES;
pub use self::net::timers;
pub use self::node_state::{NodeParts, NodeState};
pub use self::notices::{Cut, Fields, Notices};
pub use self::options::{AddressSources, Broker, Options, Presence};
pub use self::stats::{NamespaceCounters, ShardCounters};
pub use self::tls::Secured;

use std::sync::Arc;

use self::clients::Clients;
use self::codec::Codec;
use self::context::Cx;
use self::home::Home;
use self::life::Life;
use self::local::LocalSide;
use self::mail::post::Post;
use self::mail::{Letterbox, Mailbox, Outside};
use self::net::Net;
use self::orders::{Orders, Subjects};
use self::shedding::Givers;
use crate::base::id::ShardId;
use crate::base::limits::SENDS_MAX;
use crate::base::rng::Rng;
use crate::base::time::Millis;
use crate::io::Driver;
use crate::proto::client::Disconnect;

/// The place of one shard in its node: its number, its mailboxes, its seed.
pub struct Seat {
    /// Number of the shard.
    pub shard: ShardId,
    /// Its incoming mail.
    pub mailbox: Mailbox,
    /// Outgoing mail to each shard.
    pub letterboxes: Vec<Letterbox>,
    /// Outgoing mail to others than shards.
    pub outside: Outside,
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
            post: Post::new(seat.mailbox, seat.letterboxes, seat.outside, unanswered_max),
            local: LocalSide::new(&cx),
            clients: Clients::new(&cx),
            codec: Codec::new(&cx),
            orders: Orders::default(),
            life: Life::new(cx.now, collect),
            net: Net::new(&cx, driver, rng),
            cx,
        }
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
        if let Some(us) = self.net.wait(until) {
            self.cx.node.loop_lag[self.cx.id.index()].record(us);
        }
        self.post.awake();
        self.home.begin_turn();
        let (now, unix) = self.net.time();
        self.cx.begin_turn(now, unix);
        self.take_completions();
        if self.life.settling.is_some() {
            self.settle_some();
        } else {
            self.net.accept_some(&self.cx, &mut self.post);
            self.clients.continue_answered(&mut outlets!(self), &mut self.local);
            self.read_some();
        }
        self.open_mail();
        self.carry_out_orders();
        self.open_own_mail();
        self.home.send_events(&self.cx, &mut self.post, &mut self.codec);
        if self.life.settling.is_none() {
            self.clients.fire_timers(&mut outlets!(self), &mut self.local);
        }
        self.clients.end_lapsed(&mut outlets!(self), &mut self.local, self.cx.settles);
        self.drain_some();
        self.clients.clean_up_leavers(&mut outlets!(self), &mut self.local);
        self.clients.fan_out(&mut outlets!(self), &mut self.local);
        self.clients.mark_positions(&mut outlets!(self), &mut self.local);
        self.write_dirty();
        self.home.send_gaps(&mut self.post);
        self.post.flush(&self.cx);
        self.clients.resume_waiting(&mut outlets!(self), &mut self.local);
        self.keep_to_memory();
        self.housekeeping();
        if self.life.is_stopped() {
            self.end();
        }
        !self.life.is_stopped()
    }

    /// When the next wait has to end: at once if anything is left to do, never for `None`. The
    /// first half of a turn: from here on mail wakes the shard.
    pub fn wait_until(&mut self) -> Option<Millis> {
        let now = self.cx.now;
        let work = self.net.has_work()
            || self.post.own_batches() > 0
            || self.local.has_work()
            || self.orders.has_work()
            || (self.net.leavers() > 0 && !self.post.is_blocked())
            || self.life.shedding.goes_on
            // Mail behind the turn's sending leaves with the next turn.
            || self.has_unsent_mail()
            || !self.post.sleep(&self.cx);
        if work {
            return Some(now);
        }
        // Nothing is left to do: other threads read the gauges of a sleeping shard, too.
        self.set_gauges();
        // A shard without room rings when it has some; the retry is for those that ended meanwhile.
        let retry = self.post.is_blocked().then(|| now.after(MAIL_RETRY_MS));
        let is_idle = self.net.is_empty() && self.home.is_empty();
        let housekeeping = self.life.next_housekeeping(now, is_idle);
        let lapses = self.clients.lapses.next_due();
        let dues = [retry, self.local.next_due(), self.net.next_due(now), lapses, housekeeping];
        dues.into_iter().flatten().min()
    }

    /// Mail is here that nothing keeps from leaving: no shard sleeps then.
    pub fn has_unsent_mail(&self) -> bool {
        self.post.has_unsent()
    }

    /// Takes the driver's completions. A peer that has gone while its `connect` waits is released at once:
    /// nobody would get the reply, and its place and the check of its token are of use to others. A connected
    /// client's commands are carried out first, since it sent them before it went; so is a `connect` that its
    /// FIN came along with, since that peer may have closed one way only.
    fn take_completions(&mut self) {
        while let Some(index) = self.net.next_gone(&self.cx, &mut self.post) {
            self.clients.peer_gone(&mut outlets!(self), index);
        }
    }

    /// Reads connections with input, within the input of a turn.
    fn read_some(&mut self) {
        let mut reads = self.net.begin_reads(&self.cx);
        while let Some(key) = self.net.next_read(&self.cx, &mut reads) {
            self.clients.read(&mut outlets!(self), &mut self.local, key);
        }
    }

    /// Carries orders of the control thread out on some connections.
    fn carry_out_orders(&mut self) {
        let mut subjects = Subjects { clients: &mut self.clients, side: &mut self.local };
        self.orders.carry_out(&mut outlets!(self), &mut subjects);
    }

    /// Gives up memory above the limits.
    fn keep_to_memory(&mut self) {
        if self.life.shedding.has_to_collect(&self.cx) {
            self.life.collect();
        }
        let mut givers = Givers { home: &mut self.home, clients: &self.clients };
        self.life.shedding.keep_to_limits(&mut outlets!(self), &mut givers);
    }

    /// Once a second: expired history, gauges, memory.
    fn housekeeping(&mut self) {
        if !self.life.end_turn(self.cx.now, self.net.queued_bytes()) {
            return;
        }
        self.home.housekeeping(&self.cx);
        self.codec.housekeeping();
        self.net.housekeeping();
        self.life.housekeeping(self.net.queued_bytes());
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
        if !self.net.is_draining() {
            return;
        }
        self.net.list_to_drain(&self.cx);
        let to_drain = self.net.take_to_drain();
        let out = &mut outlets!(self);
        for index in &to_drain {
            self.clients.deliver_pending(out, &mut self.local, *index, None);
            out.cx.counters().closed_shutdown.add(1);
            self.clients.disconnect(out, &mut self.local, *index, Disconnect::Shutdown);
        }
        self.net.after_drain(&self.cx, &mut self.post, to_drain);
    }

    /// Writes to every connection that got something in this turn.
    fn write_dirty(&mut self) {
        let dirty = self.net.take_dirty();
        for keys in dirty.chunks(SENDS_MAX) {
            for key in keys {
                if !self.net.list_to_write(*key) {
                    self.net.after_write(&self.cx, &mut self.codec, &mut self.post, *key);
                    self.clients.after_net(&mut outlets!(self), &mut self.local);
                }
            }
            self.net.send_listed();
            for at in 0.. {
                if !self.net.take_sent(&self.cx, &mut self.codec, &mut self.post, at) {
                    break;
                }
                self.clients.after_net(&mut outlets!(self), &mut self.local);
            }
        }
        self.net.end_writes(dirty);
        self.close_worn();
    }

    /// Closes clients whose TLS keys will soon seal no more: they connect again.
    fn close_worn(&mut self) {
        while let Some(key) = self.net.next_worn() {
            self.cx.counters().tls_worn.add(1);
            let why = Disconnect::ForceReconnect;
            let out = &mut outlets!(self);
            let detail = "the key of TLS 1.2 is worn";
            self.clients.disconnect_because(out, &mut self.local, key.index, why, detail);
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

    /// Refuses the connections that wait in the listener, and closes it.
    fn end(&mut self) {
        self.net.close_listener(&self.cx);
        self.set_gauges();
    }
}

/// Mail that found a full mailbox is sent again after so long even if nobody rings.
const MAIL_RETRY_MS: u64 = 20;

#[cfg(test)]
mod tests {
    use super::fixture::{Plan, shard};
    use super::*;

    /// A turn that doesn't wait, as the simulated driver demands.
    fn turn(shard: &mut Shard<crate::io::sim::SimDriver>) {
        shard.wait_until();
        shard.turn_after(Some(Millis(0)));
    }

    #[test]
    fn a_connection_is_served_within_one_turn_and_leaves_nothing_behind() {
        let (mut shard, _, world) = shard(Plan::default());
        assert_eq!(shard.wait_until(), Some(shard.cx.now), "the listener is tried first");
        turn(&mut shard);
        let link = world.borrow_mut().connect_to(ShardId(0));
        world.borrow_mut().write(link, b"nonsense\r\n\r\n");
        let now = world.borrow().now();
        world.borrow_mut().advance_to(now.after(10));
        turn(&mut shard);
        turn(&mut shard);
        world.borrow_mut().advance_to(now.after(20));
        let answer = world.borrow_mut().read(link, 100);
        assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&answer));
        assert!(shard.is_quiescent().is_err(), "the peer's FIN is awaited");
        world.borrow_mut().shut(link);
        world.borrow_mut().advance_to(now.after(30));
        turn(&mut shard);
        turn(&mut shard);
        assert_eq!(shard.is_quiescent(), Ok(()));
    }

    /// The operations of a connection's life, each of which is a system call of the driver for epoll:
    /// `docs/design/connections.md` has them with their reasons.
    #[test]
    fn the_life_of_a_connection_takes_these_operations() {
        let mut alone = freeze::tests::Alone::new();
        alone.turns();
        alone.world.borrow_mut().keep_events();
        let link = alone.connect();
        assert!(alone.hears(link).starts_with("HTTP/1.1 101 "));
        alone.says(link, "{\"id\":1,\"connect\":{}}\n{\"id\":2,\"subscribe\":{\"channel\":\"a\"}}");
        assert!(alone.hears(link).contains(r#""id":2,"subscribe""#));
        // A close frame without a code, then the FIN.
        alone.world.borrow_mut().write(link, &[0x88, 0x80, 0, 0, 0, 0]);
        alone.turns();
        alone.world.borrow_mut().shut(link);
        alone.turns();
        assert_eq!(alone.shard.is_quiescent(), Ok(()));
        let events = alone.world.borrow_mut().take_events();
        let ops = events.iter().map(ToString::to_string).filter_map(|event| {
            let op = event.split_whitespace().nth(2)?.to_owned();
            (!op.starts_with("Client") && op != "Wait" && op != "Connect").then_some(op)
        });
        let expected = [
            "Accept", "Read", "Send", "Read", "Send", // subscribed
            "Read", "Send", "Finish", "Close",
        ];
        assert_eq!(ops.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn an_idle_shard_sleeps_until_something_comes() {
        let (mut shard, _, _) = shard(Plan::default());
        turn(&mut shard);
        turn(&mut shard);
        assert_eq!(shard.wait_until(), None);
        assert!(!shard.has_unsent_mail());
    }
}
