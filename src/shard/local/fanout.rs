//! The fan-out of a turn: channels in turn, a slice of each, within the turn's deliveries.
//!
//! The hub walks the subscribers and joins frames; here is which channel is next, and the bookkeeping of a
//! slice. Queueing the frames is the connections' affair (`net`).

use super::LocalSide;
use crate::edge::channels::SlowPolicy;
use crate::hub::fanout::Walk;
use crate::proto::framing;
use crate::shard::context::Cx;

/// What is next in a fan-out.
pub(crate) enum Step {
    /// The fan-out of this channel is over.
    Ended(u32),
    /// Some subscribers of a channel, and what each of them gets.
    Slice(Slice),
}

/// Some subscribers of a channel.
pub(crate) struct Slice {
    /// The channel.
    pub(crate) channel: u32,
    pub(crate) namespace: u16,
    /// What happens to publications for slow consumers.
    pub(crate) policy: SlowPolicy,
    /// The subscribers and their frames. It goes back by [`LocalSide::end_slice`], which keeps its buffers.
    pub(crate) walk: Walk,
}

impl LocalSide {
    /// Begins the fan-outs of a turn. Yields how many deliveries the turn may have.
    pub(crate) fn begin_fan_outs(&mut self, cx: &Cx) -> u32 {
        self.locals.wake_due(cx.now);
        cx.node.options.turn_deliveries_max
    }

    /// The next step, with at most `left` deliveries; none when all is sent or the turn has had its share.
    pub(crate) fn next_step(&mut self, cx: &Cx, left: u32, scratch: &mut Vec<u8>) -> Option<Step> {
        if left == 0 {
            return None;
        }
        let channel = self.locals.next_active()?;
        let Self { locals, filters, walk, .. } = self;
        let is_walked = locals.walk(channel, left, filters, walk, framing::join, scratch);
        let namespace = self.locals.get(channel).filter(|_| is_walked).map(|local| local.namespace);
        let Some(namespace) = namespace else { return Some(Step::Ended(channel)) };
        let policy = cx.channels_with(namespace).namespace(namespace).slow_policy;
        let walk = std::mem::take(&mut self.walk);
        Some(Step::Slice(Slice { channel, namespace, policy, walk }))
    }

    /// Ends a slice, whose frames are queued. Whether the channel's fan-out is over with it.
    pub(crate) fn end_slice(&mut self, cx: &Cx, channel: u32, walk: Walk) -> bool {
        if let Some((taken_at, subscribers)) = walk.ended {
            let ms = cx.now.since(taken_at);
            let us = u32::try_from(ms.saturating_mul(1000)).unwrap_or(u32::MAX);
            cx.node.fan_out[cx.id.index()].record(us);
            cx.node.fan_out_size[cx.id.index()].record(subscribers);
        }
        self.walk = walk;
        let is_over = self.locals.is_walked(channel);
        if !is_over {
            self.locals.still_active(channel);
        }
        is_over
    }

    /// Ends a channel's fan-out: places may change again. Yields the connections whose subscriptions have
    /// another place now.
    pub(crate) fn fan_out_done(&mut self, channel: u32) -> Vec<(u32, u32)> {
        self.locals.fan_out_done(channel);
        let Some(local) = self.locals.get(channel) else { return Vec::new() };
        let mut moves = Vec::new();
        local.subscribers.settle(|subscriber, place| moves.push((subscriber.conn, place)));
        moves
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::base::form::Form;
    use crate::base::frame::SharedFrame;
    use crate::base::tags::Tags;
    use crate::hub::parcel::{Frames, Parcel, ParcelKind};
    use crate::hub::subscribers::{Subscriber, Traits};
    use crate::shard::fixture::Plan;
    use crate::shard::local::arrival::Taken;

    fn parcel(offset: u64) -> Arc<Parcel> {
        let frames = Frames { full: Some(SharedFrame::new(b"x")), patch: None };
        let mut parcel = Parcel::new(ParcelKind::Publication, offset, Tags::NONE);
        parcel.frames.push((Form::JSON.subscriber(false, false), frames));
        Arc::new(parcel)
    }

    /// A channel with subscribers on this shard; the even ones have a position.
    fn channel(local: &mut LocalSide, name: &str, subscribers: u32) -> u32 {
        let at = local.locals.find_or_insert(name, 0);
        let record = local.locals.get(at).unwrap();
        record.claims = subscribers;
        for conn in 0..subscribers {
            let traits = Traits::new(Form::JSON.subscriber(false, false));
            let traits = traits.with_positioned(conn % 2 == 0);
            record.subscribers.add(Subscriber { conn, traits });
        }
        at
    }

    /// The connections of the next slice and whether the fan-out is over with it.
    fn slice(local: &mut LocalSide, cx: &Cx, left: u32) -> Option<(u32, Vec<u32>, bool)> {
        let Step::Slice(mut slice) = local.next_step(cx, left, &mut Vec::new())? else {
            panic!("an end without a slice")
        };
        let conns = slice.walk.to.drain(..).map(|(conn, _)| conn).collect();
        Some((slice.channel, conns, local.end_slice(cx, slice.channel, slice.walk)))
    }

    #[test]
    fn channels_have_slices_in_turn_until_the_turn_has_had_its_deliveries() {
        let cx = Plan::default().cx();
        let mut local = LocalSide::new(&cx);
        let (a, b) = (channel(&mut local, "a", 3), channel(&mut local, "b", 1));
        assert_eq!(local.deliver(&cx, a, &parcel(1)), Taken::Yes);
        assert_eq!(local.deliver(&cx, b, &parcel(1)), Taken::Yes);
        assert_eq!(slice(&mut local, &cx, 2), Some((a, vec![0, 1], false)));
        // The rest of a channel goes behind the others.
        assert_eq!(slice(&mut local, &cx, 2), Some((b, vec![0], true)));
        assert_eq!(local.fan_out_done(b), []);
        assert_eq!(slice(&mut local, &cx, 0), None);
        assert_eq!(slice(&mut local, &cx, 2), Some((a, vec![2], true)));
        assert_eq!(slice(&mut local, &cx, 2), None);
    }

    #[test]
    fn a_place_left_during_a_fan_out_is_closed_up_behind_it() {
        let cx = Plan::default().cx();
        let mut local = LocalSide::new(&cx);
        let at = channel(&mut local, "a", 3);
        local.deliver(&cx, at, &parcel(1));
        assert_eq!(slice(&mut local, &cx, 1), Some((at, vec![0], false)));
        let held = local.locals.held(at);
        assert!(held);
        local.locals.get(at).unwrap().subscribers.remove(0, held);
        assert_eq!(slice(&mut local, &cx, 9), Some((at, vec![1, 2], true)));
        assert_eq!(local.fan_out_done(at), [(1, 0), (2, 1)]);
    }

    #[test]
    fn a_parcel_out_of_order_ends_subscriptions_with_a_position_first() {
        let cx = Plan::default().cx();
        let mut local = LocalSide::new(&cx);
        let at = channel(&mut local, "a", 4);
        assert_eq!(local.deliver(&cx, at, &parcel(1)), Taken::Yes);
        assert_eq!(local.deliver(&cx, at, &parcel(3)), Taken::Broken);
        assert_eq!((local.with_position(at), local.without_position(at)), (vec![0, 2], 2));
    }

    #[test]
    fn a_parcel_without_room_is_a_gap() {
        let cx = Plan::default().cx();
        let mut local = LocalSide::new(&cx);
        let at = channel(&mut local, "a", 1);
        let large = |offset| {
            let frames = Frames { full: Some(SharedFrame::new(&[0; 1 << 20])), patch: None };
            let mut parcel = Parcel::new(ParcelKind::Publication, offset, Tags::NONE);
            parcel.frames.push((Form::JSON.subscriber(false, false), frames));
            Arc::new(parcel)
        };
        let gap = (1..1_000).find(|offset| local.deliver(&cx, at, &large(*offset)) == Taken::Gap);
        assert!(gap.is_some());
        assert_eq!(cx.counters().gaps_fanout.get(), 1);
        // A channel without subscribers here, or that has gone, needs nothing.
        assert_eq!(local.deliver(&cx, at + 1, &parcel(1)), Taken::Yes);
    }
}
