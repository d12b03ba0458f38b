//! Clients that are too slow for what comes: closed, or spared publications, as the namespace says.
//!
//! A publication that another may take the place of waits with its channel's place beside it. What has
//! begun to go, or is with the driver, goes whole; replies and events are never dropped. Who takes
//! patches gets what follows a drop in full. The newest of a channel isn't dropped where only the newest
//! waits: a client for which too much else waits is closed.

use crate::base::counters::Counter;
use crate::base::frame::SharedFrame;
use crate::hub::fanout::Outgoing;
use crate::io::Driver;
use crate::session::SubState;
use crate::shard::Shard;
use crate::shard::net::queue::{Droppable, Dropped, Kind};
use crate::shard::net::record::Conn;

/// Figures of one namespace on one shard.
#[derive(Debug, Default)]
pub struct SlowCounters {
    /// Clients closed because its publications were too much for them.
    pub closed: Counter,
    /// Publications dropped to make room (`drop_oldest`).
    pub dropped: Counter,
    /// Publications that a newer one took the place of (`latest`).
    pub conflated: Counter,
}

impl<D: Driver> Shard<D> {
    /// Queues publications of a channel of which only the newest waits. What waits then is the answer,
    /// in bytes.
    pub(crate) fn enqueue_latest(
        &mut self,
        index: u32,
        channel: u32,
        outgoing: &Outgoing,
    ) -> usize {
        let (Some(all), Some(last)) = (&outgoing.frame, &outgoing.last) else { return 0 };
        let Some(conn) = self.open_conn(index) else { return 0 };
        let (flags, queue) = (conn.flags, conn.queue);
        if flags.held() {
            return self.net.enqueue(&self.cx, index, all.clone());
        }
        let stalled = flags.blocked() || flags.sending();
        let (frame, messages) = if stalled { (last, 1) } else { (all, outgoing.messages) };
        if stalled {
            let conflated = self.net.queues.drop_channel(queue, channel) + outgoing.messages - 1;
            self.slow_of(channel).conflated.add(u64::from(conflated));
        }
        self.push_droppable(index, frame, Droppable { channel, messages, kind: Kind::Kept })
    }

    /// Queues publications of a channel that drops the oldest rather than close a client.
    pub(crate) fn enqueue_or_drop(&mut self, index: u32, channel: u32, outgoing: &Outgoing) {
        let bytes_max = self.cx.client.queue_bytes_max;
        let (Some(all), Some(last)) = (&outgoing.frame, &outgoing.last) else { return };
        let Some(conn) = self.open_conn(index) else { return };
        let (flags, queue, delta) = (conn.flags, conn.queue, outgoing.delta);
        let (mut frame, mut messages, mut patch) = (all, outgoing.messages, outgoing.patch);
        if flags.held() {
            // Behind the reply to `connect` nothing is dropped again: it is refused here.
            if self.net.held_bytes(index) + frame.len() > bytes_max {
                return self.lost(index, &[Dropped { channel, messages, baseless: delta }]);
            }
            self.net.enqueue(&self.cx, index, frame.clone());
            return;
        }
        let mut dropped = std::mem::take(&mut self.net.dropped);
        let mut fits = self.net.queues.make_room(queue, frame.len(), bytes_max, &mut dropped);
        if fits && patch && dropped.iter().any(|of| of.channel == channel && of.baseless) {
            // What it builds on has gone: the last one alone, in full, which may be longer.
            dropped.push(Dropped { channel, messages: messages - 1, baseless: false });
            (frame, messages, patch) = (last, 1, false);
            fits = self.net.queues.make_room(queue, frame.len(), bytes_max, &mut dropped);
        }
        if !fits {
            dropped.push(Dropped { channel, messages, baseless: delta });
        }
        self.lost(index, &dropped);
        dropped.clear();
        self.net.dropped = dropped;
        if !fits {
            return;
        }
        if delta {
            // With this one it has a base.
            self.set_fresh(index, channel, false);
        }
        let kind = match (delta, patch) {
            (false, _) => Kind::Oldest,
            (true, false) => Kind::OldestFull,
            (true, true) => Kind::OldestPatch,
        };
        self.push_droppable(index, frame, Droppable { channel, messages, kind });
    }

    fn open_conn(&self, index: u32) -> Option<&Conn<D::Socket>> {
        let conn = self.net.conns.get(index as usize)?;
        (conn.socket.is_some() && !conn.flags.finished()).then_some(conn)
    }

    fn push_droppable(&mut self, index: u32, frame: &SharedFrame, what: Droppable) -> usize {
        let Some(conn) = self.net.conns.get_mut(index as usize) else { return 0 };
        let waits = self.net.queues.push(&mut conn.queue, frame.clone(), Some(what));
        let key = conn.key(index);
        self.net.mark_dirty(key);
        waits
    }

    /// More waits for a connection than may: whether dropping what may be dropped was enough.
    pub(crate) fn made_room(&mut self, index: u32, queue: u32) -> bool {
        let bytes_max = self.cx.client.queue_bytes_max;
        let mut dropped = std::mem::take(&mut self.net.dropped);
        let enough = self.net.queues.make_room(queue, 0, bytes_max, &mut dropped);
        self.lost(index, &dropped);
        dropped.clear();
        self.net.dropped = dropped;
        enough
    }

    /// Publications that a connection won't get: they are counted, and the next ones go in full.
    fn lost(&mut self, index: u32, dropped: &[Dropped]) {
        for Dropped { channel, messages, baseless } in dropped {
            self.slow_of(*channel).dropped.add(u64::from(*messages));
            if *baseless {
                self.set_fresh(index, *channel, true);
            }
        }
    }

    fn set_fresh(&mut self, index: u32, channel: u32, fresh: bool) {
        let Some(session) = self.session_of(index) else { return };
        let Some(sub) = session.subs.find(channel).filter(|sub| sub.state == SubState::Live) else {
            return;
        };
        let place = sub.place;
        if let Some(local) = self.local.locals.get(channel) {
            local.subscribers.set_fresh(place, fresh);
        }
    }

    fn slow_of(&mut self, channel: u32) -> &SlowCounters {
        let namespace = self.local.locals.get(channel).map_or(u16::MAX, |local| local.namespace);
        self.slow_in(namespace)
    }

    /// The figures of a namespace. The last ones are of those that came later.
    pub(crate) fn slow_in(&self, namespace: u16) -> &SlowCounters {
        let counters = &self.cx.node.slow[self.cx.id.index()];
        &counters[usize::from(namespace).min(counters.len() - 1)]
    }
}
