//! Connections: accepted, read, written, timed and closed.

pub(crate) mod accept;
pub(crate) mod addresses;
pub(crate) mod admit;
pub(crate) mod drain;
pub(crate) mod effects;
pub(crate) mod ending;
pub(crate) mod image;
pub(crate) mod liveness;
pub(crate) mod places;
pub(crate) mod queue;
pub(crate) mod read;
pub(crate) mod record;
pub(crate) mod send;
pub(crate) mod slow;
pub mod timers;
pub(crate) mod write;

use std::collections::VecDeque;
use std::num::NonZeroU32;

use slab::Slab;

use self::addresses::Addresses;
use self::drain::Draining;
use self::effects::Effect;
use self::places::Replaceable;
use self::queue::{Dropped, SendQueues};
use self::record::Conn;
use self::send::Held;
use self::timers::{LinkTable, Links, List, TimerTable, Wheel};
use super::context::Cx;
use super::http::bodies::Bodies;
use super::http::polls::Poll;
use super::http::stream::UnsentHead;
use crate::base::form::Form;
use crate::base::id::ConnKey;
use crate::base::rng::Rng;
use crate::base::time::Millis;
use crate::io::{Completion, Driver, Sent};
use crate::proto::client::Encoding;
use crate::proto::http::{DateCache, HttpDate};
use crate::shard::by_slot::BySlot;
use crate::shard::stats::ShardCounters;

/// The connections of one shard, and its driver.
pub(crate) struct Net<D: Driver> {
    pub(crate) driver: D,
    pub(crate) conns: Slab<Conn<D::Socket>>,
    pub(crate) addresses: Addresses,
    pub(crate) next_generation: NonZeroU32,
    pub(crate) queues: SendQueues,
    /// Frames that wait for the reply to `connect`, by slot.
    pub(crate) held: BySlot<Held>,
    pub(crate) wheel: Wheel,
    pub(crate) leaving: List,
    pub(crate) leaving_count: u64,
    /// Connections that may lose their places to new ones.
    pub(crate) replaceable: Replaceable,
    pub(crate) completions: Vec<Completion>,
    /// Connections to read, each at most once.
    pub(crate) ready: VecDeque<ConnKey>,
    /// Connections to write, each at most once.
    pub(crate) dirty: Vec<ConnKey>,
    /// Connections whose writes the driver has, and the results.
    pub(crate) writing: Vec<ConnKey>,
    pub(crate) sent: Vec<Sent>,
    /// Connections of this turn with too much in their queues, and the namespace that filled them.
    pub(crate) over: Vec<(u32, u16)>,
    /// What is being dropped for one of them.
    pub(crate) dropped: Vec<Dropped>,
    pub(crate) acceptable: bool,
    /// No descriptor was left: the listener is tried again then, since no edge reports it.
    pub(crate) accept_again_at: Option<Millis>,
    pub(crate) passed: bool,
    /// Bodies of requests that are not all here.
    pub(crate) bodies: Bodies,
    /// Heads of responses that wait for the result of the `connect`, by slot.
    pub(crate) heads: BySlot<UnsentHead>,
    /// Connections with a request that was answered at once: bytes behind it are next.
    pub(crate) answered: Vec<ConnKey>,
    /// Requests that wait for publications, by slot.
    pub(crate) polls: BySlot<Box<Poll>>,
    /// Connections whose positions go behind what this turn has for them.
    pub(crate) to_mark: Vec<ConnKey>,
    /// The `Date` of answers.
    pub(crate) date: DateCache,
    /// Set while the node closes its connections.
    pub(crate) draining: Option<Draining>,
    /// Spreads over time what many clients would do at the same moment: first pings, and coming back.
    pub(crate) rng: Rng,
    /// What requests have come to that isn't Net's, in order.
    pub(crate) effects: VecDeque<Effect>,
    /// Slots that a walk over all connections has found; empty between walks.
    pub(crate) listed: Vec<u32>,
}

impl<D: Driver> Net<D> {
    /// No connections.
    pub(crate) fn new(cx: &Cx, driver: D, rng: Rng) -> Self {
        Self {
            // Untouched pages cost nothing, and growing would copy.
            conns: Slab::with_capacity(cx.node.options.slots_max()),
            addresses: Addresses::default(),
            next_generation: NonZeroU32::MIN,
            queues: SendQueues::default(),
            held: Default::default(),
            wheel: Wheel::new(driver.now()),
            leaving: List::new(),
            leaving_count: 0,
            replaceable: Replaceable::default(),
            completions: Vec::with_capacity(1024),
            ready: VecDeque::new(),
            dirty: Vec::new(),
            writing: Vec::new(),
            sent: Vec::new(),
            over: Vec::new(),
            dropped: Vec::new(),
            acceptable: true,
            accept_again_at: None,
            passed: false,
            bodies: Bodies::default(),
            heads: Default::default(),
            answered: Vec::new(),
            polls: Default::default(),
            to_mark: Vec::new(),
            date: DateCache::default(),
            listed: Vec::new(),
            draining: None,
            rng,
            effects: VecDeque::new(),
            driver,
        }
    }

    /// Once a second: gives memory back that a burst of connections took.
    pub(crate) fn housekeeping(&mut self) {
        self.replaceable.give_back();
    }

    /// Gauges that are cheaper to read off than to keep.
    pub(crate) fn set_gauges(&self, counters: &ShardCounters) {
        counters.slots_in_use.set(self.conns.len() as u64);
        counters.connections_leaving.set(self.leaving_count);
        counters.connections_replaceable.set(self.replaceable.len() as u64);
        counters.queued_bytes.set(self.queues.bytes());
        counters.queues.set(self.queues.in_use() as u64);
        counters.unfinished_bytes.set(self.bodies.bytes() as u64);
        counters.timers.set(self.wheel.len() as u64);
    }

    /// Everything that has to be empty when all connections have gone, and how much is in it.
    pub(crate) fn left(&self) -> [(&'static str, usize); 13] {
        [
            ("connections", self.conns.len()),
            ("addresses", self.addresses.len()),
            ("send queues", self.queues.in_use()),
            ("frames held for a reply", self.held.len()),
            ("bytes queued", self.queues.bytes() as usize),
            ("timers", self.wheel.len()),
            ("leaving connections", self.leaving_count as usize),
            ("connections to read", self.ready.len()),
            ("connections to write", self.dirty.len()),
            ("heads of responses", self.heads.len()),
            ("requests just answered", self.answered.len()),
            ("polls", self.polls.len()),
            ("bytes of bodies", self.bodies.bytes()),
        ]
    }
}

impl<D: Driver> Net<D> {
    /// The connection with this key, unless it has gone: its slot may have another tenant.
    pub(crate) fn conn(&mut self, key: ConnKey) -> Option<&mut Conn<D::Socket>> {
        self.conns.get_mut(key.index as usize).filter(|conn| conn.generation == key.generation)
    }

    /// How messages are written to a connection.
    pub(crate) fn form(&self, index: u32) -> Form {
        self.conns.get(index as usize).map_or(Form::JSON, |conn| conn.form)
    }

    /// The encoding of a connection's messages.
    pub(crate) fn encoding(&self, index: u32) -> Encoding {
        self.form(index).into()
    }

    /// The `Date` of what is answered in this turn.
    pub(crate) fn date(&mut self, cx: &Cx) -> HttpDate {
        self.date.at(cx.unix.0)
    }

    /// Puts a connection on the list of those to read. A paused one comes onto it when it is resumed.
    pub(crate) fn mark_ready(&mut self, key: ConnKey) {
        if let Some(conn) = self.conn(key)
            && !conn.flags.ready()
            && !conn.flags.paused()
        {
            conn.flags.set_ready(true);
            self.ready.push_back(key);
        }
    }

    /// Puts a connection on the list of those to write.
    pub(crate) fn mark_dirty(&mut self, key: ConnKey) {
        if let Some(conn) = self.conn(key)
            && !conn.flags.dirty()
        {
            conn.flags.set_dirty(true);
            self.dirty.push(key);
        }
    }
}

impl<S> LinkTable for Slab<Conn<S>> {
    fn links(&mut self, index: u32) -> &mut Links {
        &mut self[index as usize].links
    }
}

impl<S> TimerTable for Slab<Conn<S>> {
    fn deadline_tick(&mut self, index: u32) -> &mut u32 {
        &mut self[index as usize].deadline_tick
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::fixture::{Plan, Wired};

    #[test]
    fn an_old_key_finds_nobody_and_lists_name_a_connection_once() {
        let mut of = Wired::new(Plan::default());
        let (_, key) = of.connect();
        let old = ConnKey { generation: NonZeroU32::MAX, ..key };
        assert!(of.net.conn(old).is_none());
        for key in [old, key, key] {
            of.net.mark_ready(key);
            of.net.mark_dirty(key);
        }
        assert_eq!((of.net.ready.len(), of.net.dirty.len()), (1, 1));
        assert_eq!(of.end(), []);
    }
}
