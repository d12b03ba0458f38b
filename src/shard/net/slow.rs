//! Clients that are too slow for what comes: closed, or spared publications, as the namespace says.
//!
//! A publication that another may take the place of waits with its channel's place beside it. What has
//! begun to go, or is with the driver, goes whole; replies and events are never dropped. Who takes
//! patches gets what follows a drop in full. The newest of a channel isn't dropped where only the newest
//! waits: a client for which too much else waits is closed.

use crate::base::frame::SharedFrame;
use crate::hub::fanout::Outgoing;
use crate::io::Driver;
use crate::session::{SubState, Subs};
use crate::shard::context::Cx;
use crate::shard::local::LocalSide;
use crate::shard::net::Net;
use crate::shard::net::effects::Effect;
use crate::shard::net::queue::{Droppable, Dropped, Kind};
use crate::shard::net::record::Conn;

impl<D: Driver> Net<D> {
    /// Queues publications of a channel of which only the newest waits. Returns the bytes that wait then.
    pub(crate) fn enqueue_latest(
        &mut self,
        cx: &Cx,
        index: u32,
        channel: u32,
        namespace: u16,
        outgoing: &Outgoing,
    ) -> usize {
        let (Some(all), Some(last)) = (&outgoing.frame, &outgoing.last) else { return 0 };
        let Some(conn) = self.open_conn(index) else { return 0 };
        let (flags, queue) = (conn.flags, conn.queue);
        if flags.held() {
            return self.enqueue(cx, index, all.clone());
        }
        let stalled = flags.blocked() || flags.sending();
        let (frame, messages) = if stalled { (last, 1) } else { (all, outgoing.messages) };
        if stalled {
            let conflated = self.queues.drop_channel(queue, channel) + outgoing.messages - 1;
            cx.of_namespace(namespace).conflated.add(u64::from(conflated));
        }
        self.push_droppable(index, frame, Droppable { channel, messages, kind: Kind::Kept })
    }

    /// Queues publications of a channel that drops the oldest rather than close a client. Those that made
    /// room, or found none, are listed until [`Self::take_dropped`]. True: the subscriber takes patches, and
    /// the next patch can build on this delivery.
    pub(crate) fn enqueue_or_drop(
        &mut self,
        cx: &Cx,
        index: u32,
        channel: u32,
        outgoing: &Outgoing,
    ) -> bool {
        let mut dropped = std::mem::take(&mut self.dropped);
        let is_based = self.enqueue_dropping(cx, index, channel, outgoing, &mut dropped);
        self.dropped = dropped;
        is_based
    }

    /// Whether [`Self::enqueue_or_drop`] has dropped publications.
    pub(crate) fn has_dropped(&self) -> bool {
        !self.dropped.is_empty()
    }

    /// Takes the list of dropped publications. It goes back by [`Self::give_back_dropped`], which keeps its
    /// room.
    pub(crate) fn take_dropped(&mut self) -> Vec<Dropped> {
        std::mem::take(&mut self.dropped)
    }

    /// Clears the list of dropped publications.
    pub(crate) fn give_back_dropped(&mut self, mut dropped: Vec<Dropped>) {
        dropped.clear();
        self.dropped = dropped;
    }

    fn enqueue_dropping(
        &mut self,
        cx: &Cx,
        index: u32,
        channel: u32,
        outgoing: &Outgoing,
        dropped: &mut Vec<Dropped>,
    ) -> bool {
        let bytes_max = cx.client.queue_bytes_max;
        let (Some(all), Some(last)) = (&outgoing.frame, &outgoing.last) else { return false };
        let Some(conn) = self.open_conn(index) else { return false };
        let (flags, queue, delta) = (conn.flags, conn.queue, outgoing.delta);
        let (mut frame, mut messages, mut patch) = (all, outgoing.messages, outgoing.patch);
        if flags.held() {
            // Frames behind the reply to `connect` aren't dropped again: what is too much is refused here.
            if self.held_bytes(index) + frame.len() > bytes_max {
                dropped.push(Dropped { channel, messages, baseless: delta });
            } else {
                self.enqueue(cx, index, frame.clone());
            }
            return false;
        }
        let mut fits = self.queues.make_room(queue, frame.len(), bytes_max, dropped);
        if fits && patch && dropped.iter().any(|of| of.channel == channel && of.baseless) {
            // The publication that it builds on has gone: the last one alone, in full, which may be longer.
            dropped.push(Dropped { channel, messages: messages - 1, baseless: false });
            (frame, messages, patch) = (last, 1, false);
            fits = self.queues.make_room(queue, frame.len(), bytes_max, dropped);
        }
        if !fits {
            dropped.push(Dropped { channel, messages, baseless: delta });
            return false;
        }
        let kind = match (delta, patch) {
            (false, _) => Kind::Oldest,
            (true, false) => Kind::OldestFull,
            (true, true) => Kind::OldestPatch,
        };
        self.push_droppable(index, frame, Droppable { channel, messages, kind });
        delta
    }

    /// Lists a connection for which more waits than may, and the namespace that filled its queue.
    pub(crate) fn list_overfull(&mut self, index: u32, namespace: u16) {
        self.over.push((index, namespace));
    }

    /// More waits for a connection than may: whether dropping what may be dropped was enough.
    pub(crate) fn made_room(&mut self, cx: &Cx, index: u32, queue: u32) -> bool {
        let mut dropped = Vec::new();
        let enough = self.queues.make_room(queue, 0, cx.client.queue_bytes_max, &mut dropped);
        if !dropped.is_empty() {
            self.effects.push_back(Effect::Lost(index, dropped));
        }
        enough
    }

    fn open_conn(&self, index: u32) -> Option<&Conn<D::Socket>> {
        let conn = self.conns.get(index as usize)?;
        (conn.socket.is_some() && !conn.flags.finished()).then_some(conn)
    }

    fn push_droppable(&mut self, index: u32, frame: &SharedFrame, what: Droppable) -> usize {
        let Some(conn) = self.conns.get_mut(index as usize) else { return 0 };
        let waits = self.queues.push(&mut conn.queue, frame.clone(), Some(what));
        let key = conn.key(index);
        self.mark_dirty(key);
        waits
    }
}

impl LocalSide {
    /// Publications that a connection won't get are counted, and those that follow them go in full.
    pub(crate) fn lost(&mut self, cx: &Cx, subs: Option<&Subs>, dropped: &[Dropped]) {
        for Dropped { channel, messages, baseless } in dropped {
            let namespace = self.locals.get(*channel).map_or(u16::MAX, |local| local.namespace);
            cx.of_namespace(namespace).dropped.add(u64::from(*messages));
            if *baseless {
                self.set_fresh(subs, *channel, true);
            }
        }
    }

    /// Whether the next publication of a channel goes in full to a subscriber that takes patches.
    pub(crate) fn set_fresh(&mut self, subs: Option<&Subs>, channel: u32, fresh: bool) {
        let sub = subs.and_then(|subs| subs.as_slice().iter().find(|sub| sub.channel == channel));
        let Some(sub) = sub.filter(|sub| sub.state == SubState::Live) else { return };
        if let Some(local) = self.locals.get(channel) {
            local.subscribers.set_fresh(sub.place, fresh);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::fixture::{Plan, Wired};

    fn outgoing(bytes: usize) -> Outgoing {
        let frame = SharedFrame::new(&vec![b'x'; bytes]);
        Outgoing {
            frame: Some(frame.clone()),
            messages: 1,
            unfit: false,
            marks: false,
            collected: false,
            delta: false,
            patch: false,
            last: Some(frame),
        }
    }

    #[test]
    fn the_newest_replaces_the_queued_publication() {
        let mut of = Wired::new(Plan::default());
        let (_, key) = of.connect_client();
        of.net.conns[key.index as usize].flags.set_blocked(true);
        for _ in 0..3 {
            assert_eq!(of.net.enqueue_latest(&of.cx, key.index, 5, 0, &outgoing(100)), 100);
        }
        assert_eq!(of.cx.of_namespace(0).conflated.get(), 2);
        assert_eq!(of.end(), []);
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut plan = Plan::default();
        plan.client.queue_bytes_max = 250;
        let mut of = Wired::new(plan);
        let (_, key) = of.connect_client();
        for _ in 0..3 {
            of.net.enqueue_or_drop(&of.cx, key.index, 5, &outgoing(100));
        }
        assert!(of.net.has_dropped());
        let dropped = of.net.take_dropped();
        assert_eq!(dropped, [Dropped { channel: 5, messages: 1, baseless: false }]);
        assert_eq!(of.net.queues.bytes(), 200);
        let mut local = LocalSide::new(&of.cx);
        local.lost(&of.cx, None, &dropped);
        assert_eq!(of.cx.of_namespace(u16::MAX).dropped.get(), 1);
        assert_eq!(of.end(), []);
    }
}
