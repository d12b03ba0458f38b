//! Connections: accepted, read, written, timed and closed.

pub(crate) mod accept;
pub(crate) mod addresses;
pub(crate) mod admit;
pub(crate) mod drain;
pub(crate) mod effects;
pub(crate) mod ending;
pub(crate) mod holders;
pub(crate) mod image;
mod known;
pub(crate) mod liveness;
pub(crate) mod places;
pub(crate) mod queue;
pub(crate) mod read;
pub(crate) mod record;
pub(crate) mod send;
pub(crate) mod slow;
pub mod timers;
pub(crate) mod turn;
pub(crate) mod write;

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::ops::{Index, IndexMut};
use std::time::Duration;

use slab::Slab;

use self::effects::Effect;
use self::known::Addresses;
use self::places::Replaceable;
use self::queue::{Dropped, SendQueues};
use self::record::Conn;
use self::timers::{LinkTable, Links, List, TimerTable, Wheel};
use super::context::Cx;
use super::http::HttpState;
use crate::base::form::Form;
use crate::base::frame::SharedFrame;
use crate::base::id::ConnKey;
use crate::base::rng::Rng;
use crate::base::time::Millis;
use crate::io::{Completion, Driver, Sent};
use crate::proto::client::Encoding;
use crate::proto::http::HttpDate;
use crate::shard::by_slot::BySlot;
use crate::shard::stats::ShardCounters;

/// The connections of one shard, and its driver.
pub(crate) struct Net<D: Driver> {
    pub(crate) driver: D,
    pub(crate) conns: Slab<Conn<D::Socket>>,
    pub(crate) addresses: Addresses,
    next_generation: NonZeroU32,
    queues: SendQueues,
    /// Frames that wait for the reply to `connect`, by slot.
    held: BySlot<Held>,
    wheel: Wheel,
    leaving: List,
    leaving_count: u64,
    /// Connections that may lose their places to new ones.
    pub(crate) replaceable: Replaceable,
    completions: Vec<Completion>,
    /// Completions of the turn that are taken.
    completed: usize,
    /// Connections to read, each at most once.
    ready: VecDeque<ConnKey>,
    /// Connections to write, each at most once.
    dirty: Vec<ConnKey>,
    /// Connections whose writes the driver has, and the results.
    writing: Vec<ConnKey>,
    sent: Vec<Sent>,
    /// Connections of this turn with too much in their queues, and the namespace that filled them.
    over: Vec<(u32, u16)>,
    /// Publications that one delivery has dropped.
    dropped: Vec<Dropped>,
    pub(crate) acceptable: bool,
    /// No descriptor was left: the listener is tried again then, since no edge reports it.
    accept_again_at: Option<Millis>,
    pub(crate) passed: bool,
    /// Connections whose positions go behind what this turn has for them.
    to_mark: Vec<ConnKey>,
    /// HTTP requests.
    pub(crate) http: HttpState,
    /// Set while the node closes its connections.
    pub(crate) draining: Option<Draining>,
    /// Spreads over time what many clients would do at the same moment: first pings, and coming back.
    rng: Rng,
    /// What requests have come to that isn't Net's, in order.
    effects: VecDeque<Effect>,
    /// Slots that a walk over all connections has found; empty between walks.
    listed: Vec<u32>,
}

/// The state of a drain.
pub(crate) struct Draining {
    per_second: u32,
    since: Millis,
    closed: u64,
    /// The slot that the walk over all connections goes on at.
    cursor: usize,
    /// The node has counted this shard as drained.
    counted: bool,
}

/// Frames that have to go behind the reply to `connect`.
#[derive(Debug, Default)]
pub(crate) struct Held {
    frames: Vec<SharedFrame>,
    bytes: usize,
}

impl<D: Driver> Net<D> {
    /// No connections.
    pub(crate) fn new(cx: &Cx, mut driver: D, rng: Rng) -> Self {
        driver.spin_for(Duration::from_micros(cx.node.options.spin_us));
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
            completed: 0,
            ready: VecDeque::new(),
            dirty: Vec::new(),
            writing: Vec::new(),
            sent: Vec::new(),
            over: Vec::new(),
            dropped: Vec::new(),
            acceptable: true,
            accept_again_at: None,
            passed: false,
            to_mark: Vec::new(),
            http: HttpState::default(),
            listed: Vec::new(),
            draining: None,
            rng,
            effects: VecDeque::new(),
            driver,
        }
    }

    /// Once a second: ends connections whose TLS records are late, and gives memory back that a burst took.
    pub(crate) fn housekeeping(&mut self) {
        self.replaceable.give_back();
        let conns = &self.conns;
        self.driver.housekeeping(&|index| {
            let conn = conns.get(index as usize);
            conn.is_some_and(|conn| !conn.flags.paused() && !conn.flags.ready())
        });
        while let Some(index) = self.driver.next_late() {
            if let Some(conn) = self.conns.get(index as usize) {
                let key = conn.key(index);
                self.mark_ready(key);
            }
        }
    }

    /// Gauges that are cheaper to read off than to keep.
    pub(crate) fn set_gauges(&self, counters: &ShardCounters) {
        counters.slots_in_use.set(self.conns.len() as u64);
        counters.connections_leaving.set(self.leaving_count);
        counters.connections_replaceable.set(self.replaceable.len() as u64);
        counters.queued_bytes.set(self.queues.bytes());
        counters.queues.set(self.queues.in_use() as u64);
        self.http.set_gauges(counters);
        counters.timers.set(self.wheel.len() as u64);
        self.driver.set_gauges();
    }

    /// Everything that has to be empty when all connections have gone, and how much is in it.
    pub(crate) fn left(&self) -> Vec<(&'static str, usize)> {
        let mut left = vec![
            ("connections", self.conns.len()),
            ("addresses", self.addresses.len()),
            ("send queues", self.queues.in_use()),
            ("frames held for a reply", self.held.len()),
            ("bytes queued", self.queues.bytes() as usize),
            ("timers", self.wheel.len()),
            ("leaving connections", self.leaving_count as usize),
            ("connections to read", self.ready.len()),
            ("connections to write", self.dirty.len()),
        ];
        left.extend(self.http.left());
        left.extend(self.driver.left());
        left
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
        self.http.date(cx)
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

    /// The connection in a slot.
    pub(crate) fn at(&self, index: u32) -> Option<&Conn<D::Socket>> {
        self.conns.get(index as usize)
    }

    /// The end of the table of connections: no slot in use is beyond.
    pub(crate) fn slots_end(&self) -> u32 {
        u32::try_from(self.conns.capacity()).unwrap_or(u32::MAX)
    }

    /// The last slot in use; 0 where none is.
    fn slots_last(&self) -> usize {
        self.conns.iter().next_back().map_or(0, |(at, _)| at)
    }

    /// The connection in a slot, to change it.
    pub(crate) fn at_mut(&mut self, index: u32) -> Option<&mut Conn<D::Socket>> {
        self.conns.get_mut(index as usize)
    }

    /// A random number below a bound, to spread over time what many clients would do at once.
    pub(crate) fn random_below(&mut self, bound: u64) -> u64 {
        self.rng.below(bound)
    }

    /// Adds an effect that another group has to carry out.
    pub(crate) fn effect(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }

    /// Takes the next effect that another group has to carry out.
    pub(crate) fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Takes the list of [`Self::list_to_mark`]. It goes back by [`Self::give_back_to_mark`], which keeps its
    /// room.
    pub(crate) fn take_to_mark(&mut self) -> Vec<ConnKey> {
        std::mem::take(&mut self.to_mark)
    }

    /// Keeps the room of an emptied list, unless new connections were listed meanwhile.
    pub(crate) fn give_back_to_mark(&mut self, emptied: Vec<ConnKey>) {
        if self.to_mark.is_empty() {
            self.to_mark = emptied;
        }
    }

    /// Lists a connection whose position is sent behind the frames of this turn.
    pub(crate) fn list_to_mark(&mut self, index: u32) {
        if let Some(conn) = self.conns.get(index as usize) {
            self.to_mark.push(conn.key(index));
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

/// The connection in a slot that the caller knows to be taken.
impl<D: Driver> Index<u32> for Net<D> {
    type Output = Conn<D::Socket>;

    fn index(&self, index: u32) -> &Self::Output {
        &self.conns[index as usize]
    }
}

impl<D: Driver> IndexMut<u32> for Net<D> {
    fn index_mut(&mut self, index: u32) -> &mut Self::Output {
        &mut self.conns[index as usize]
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
impl<D: Driver> Net<D> {
    /// The keys of all connections.
    pub(crate) fn keys(&self) -> Vec<ConnKey> {
        self.conns.iter().map(|(index, conn)| conn.key(index as u32)).collect()
    }

    /// The listener has connections.
    pub(crate) fn set_acceptable(&mut self) {
        self.acceptable = true;
    }

    /// Empties the lists of a turn.
    pub(crate) fn forget_turn(&mut self) {
        self.ready.clear();
        self.dirty.clear();
        self.http.take_answered();
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
