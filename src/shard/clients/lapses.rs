//! Subscriptions that are out of position for good, since publications of their channel can't be had any more:
//! they end spread over some seconds, so that clients of a large channel, or of all channels of a broker that
//! came back empty, don't subscribe again all at once.
//!
//! Nothing is delivered to such a subscription from the gap on ([`Traits::lapse`]), so that its client still
//! knows where it stands when it hears of the gap. Event sources know one position for all of their channels,
//! which the next publication of any of them moves: they get nothing with a position until they are closed.
//! Polls carry the positions of all channels in each answer, and end at once.
//!
//! [`Traits::lapse`]: crate::hub::subscribers::Traits::lapse

use std::collections::VecDeque;

use crate::base::form::Transport;
use crate::base::id::ConnKey;
use crate::base::time::Millis;
use crate::io::Driver;
use crate::proto::client::Unsubscribed;
use crate::session::SubState;
use crate::shard::clients::Clients;
use crate::shard::local::LocalSide;
use crate::shard::outlets::Outlets;

/// Interval between two batches, in milliseconds.
const INTERVAL_MS: u64 = 100;

/// Batches in which those that wait at one moment are ended: over five seconds.
const BATCHES: usize = 50;

/// Subscriptions that are to end, in the order in which they lapsed.
#[derive(Debug, Default)]
pub(crate) struct Lapses {
    waiting: VecDeque<(ConnKey, u32)>,
    /// How many end at a time.
    batch: usize,
    /// When the next ones may end.
    next: Millis,
}

impl Lapses {
    fn push(&mut self, conn: ConnKey, channel: u32, batch_min: usize) {
        self.waiting.push_back((conn, channel));
        self.batch = self.batch.max(batch_min).max(self.waiting.len().div_ceil(BATCHES));
    }

    /// Those whose turn it is; all of them if that is wished.
    fn take(&mut self, now: Millis, all: bool) -> Vec<(ConnKey, u32)> {
        if self.waiting.is_empty() || !all && now < self.next {
            return Vec::new();
        }
        let count = if all { self.waiting.len() } else { self.batch.min(self.waiting.len()) };
        let taken = self.waiting.drain(..count).collect();
        self.next = now.after(INTERVAL_MS);
        if self.waiting.is_empty() {
            (self.waiting, self.batch) = (VecDeque::new(), 0);
        }
        taken
    }

    /// When the next ones are to end.
    pub(crate) fn next_due(&self) -> Option<Millis> {
        (!self.waiting.is_empty()).then_some(self.next)
    }

    /// Subscriptions that wait for their end.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }
}

impl Clients {
    /// Publications of a channel can't be had any more: subscriptions with a position get nothing from now on,
    /// and are to end; the others have lost them.
    pub(crate) fn lapse<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        channel: u32,
    ) {
        let counters = out.cx.counters();
        counters.gaps_untold.add(side.without_position(channel) as u64);
        let conns = side.lapse_all(channel);
        counters.gaps_told.add(conns.len() as u64);
        for index in conns {
            let form = out.net.form(index);
            if form.is_poll() {
                self.end_sub(out, side, index, channel, Unsubscribed::InsufficientState);
                continue;
            }
            let Some(key) = out.net.at(index).map(|conn| conn.key(index)) else { continue };
            if form.transport() == Transport::UniSse
                && let Some(session) = self.session_of(out.net, index)
            {
                let live = session.subs.as_slice().iter().filter(|sub| sub.state == SubState::Live);
                live.for_each(|sub| side.lapse(sub.channel, sub.place));
            }
            self.lapses.push(key, channel, out.cx.node.options.lapsed_batch);
        }
    }

    /// Ends the subscriptions whose turn it is, or `all` of them.
    pub(crate) fn end_lapsed<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        all: bool,
    ) {
        for (key, channel) in self.lapses.take(out.cx.now, all) {
            if out.net.conn(key).is_none() {
                continue;
            }
            let sub =
                self.session_of(out.net, key.index).and_then(|of| of.subs.find(channel).copied());
            // The client may have left the channel meanwhile, and be there again.
            if sub.is_some_and(|sub| {
                sub.state == SubState::Live && side.is_lapsed(channel, sub.place)
            }) {
                self.end_sub(out, side, key.index, channel, Unsubscribed::InsufficientState);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::clients::testing::Scene;
    use crate::shard::fixture::{Plan, parcel};

    fn conn(index: u32) -> ConnKey {
        ConnKey { index, generation: std::num::NonZeroU32::MIN }
    }

    #[test]
    fn a_few_end_at_once_and_many_over_five_seconds() {
        let mut lapses = Lapses::default();
        (0..100).for_each(|index| lapses.push(conn(index), 7, 100));
        assert_eq!((lapses.take(Millis(0), false).len(), lapses.next_due()), (100, None));
        (0..100_000).for_each(|index| lapses.push(conn(index), 7, 100));
        let (mut now, mut sizes) = (Millis(5), Vec::new());
        while let Some(due) = lapses.next_due() {
            assert!(lapses.take(now, false).is_empty() || due <= now);
            now = lapses.next_due().unwrap_or(due).max(due);
            sizes.push(lapses.take(now, false).len());
        }
        assert_eq!(sizes.iter().sum::<usize>(), 100_000);
        assert!(sizes.iter().all(|size| *size <= 2_000), "{sizes:?}");
        assert!(now <= Millis(5_200), "{now:?}");
        // At the end of the process all of them end.
        (0..1_000).for_each(|index| lapses.push(conn(index), 7, 1));
        assert_eq!((lapses.take(now, true).len(), lapses.len()), (1_000, 0));
    }

    /// Three subscribers, of whom one ends at a time.
    fn scene() -> (Scene, Vec<crate::io::sim::LinkId>, u32) {
        let mut plan = Plan::default();
        plan.options.lapsed_batch = 1;
        plan.channels.force_positioning = true;
        plan.channels.history_size = 10;
        plan.channels.history_ttl_ms = 60_000;
        let mut scene = Scene::new(plan);
        let subscribers = ["ann", "bob", "cid"].map(|user| scene.subscriber(user, "news"));
        let channel = subscribers[0].2;
        let links = subscribers.map(|(link, ..)| link);
        links.iter().for_each(|link| drop(scene.wired.received(*link)));
        (scene, links.to_vec(), channel)
    }

    fn ended(scene: &mut Scene, links: &[crate::io::sim::LinkId]) -> usize {
        let ended = |link: &&crate::io::sim::LinkId| {
            scene.wired.received(**link).contains(r#""unsubscribe":{"code":2500,"#)
        };
        links.iter().filter(ended).count()
    }

    #[test]
    fn subscriptions_out_of_position_get_nothing_and_end_in_turn() {
        let (mut scene, links, channel) = scene();
        scene.with(|clients, out, side| clients.lapse(out, side, channel));
        assert_eq!(scene.wired.cx.counters().gaps_told.get(), 3);
        // The next life of the stream.
        let (dan, ..) = scene.subscriber("dan", "news");
        scene.wired.received(dan);
        scene.with(|clients, out, side| {
            clients.deliver(out, side, channel, &parcel(1, "later"));
            clients.fan_out(out, side);
        });
        assert_eq!(scene.wired.received(dan), "later");
        for waiting in [2, 1, 0] {
            scene.with(|clients, out, side| clients.end_lapsed(out, side, false));
            assert_eq!((ended(&mut scene, &links), scene.clients.lapses.len()), (1, waiting));
            scene.with(|clients, out, side| clients.end_lapsed(out, side, false));
            assert_eq!(ended(&mut scene, &links), 0, "too early");
            scene.wired.after(INTERVAL_MS);
        }
        assert_eq!(scene.wired.cx.counters().gaps_told.get(), 3);
        scene.carry_mail();
        assert_eq!(scene.end(), []);
    }

    #[test]
    fn a_client_that_came_back_by_itself_stays() {
        let (mut scene, links, channel) = scene();
        scene.with(|clients, out, side| clients.lapse(out, side, channel));
        let (link, key) = (links[0], conn(0));
        let key = scene.wired.net.at(key.index).unwrap().key(key.index);
        scene.commands(key, r#"{"id":3,"unsubscribe":{"channel":"news"}}"#);
        scene.commands(key, r#"{"id":4,"subscribe":{"channel":"news"}}"#);
        scene.carry_mail();
        assert!(scene.wired.received(link).contains(r#"{"id":4,"subscribe":{"#));
        scene.with(|clients, out, side| clients.end_lapsed(out, side, true));
        assert_eq!(ended(&mut scene, &links), 2);
        assert!(scene.sub(key, channel).is_some());
        scene.carry_mail();
        assert_eq!(scene.end(), []);
    }
}
