//! Parcels that homes send: queued for the subscribers of their channels, or a gap.

use std::sync::Arc;

use super::LocalSide;
use crate::hub::local::{Delivery, Sending};
use crate::hub::parcel::{Parcel, ParcelKind};
use crate::hub::subscribers::Subscriber;
use crate::shard::context::Cx;

/// Result of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// The fan-out has it, or nobody needs it.
    Yes,
    /// The parcel doesn't follow on the last one: subscriptions with a position have to end before the rest
    /// can have it.
    Broken,
    /// No room: the publication is lost for everybody here.
    Gap,
}

impl LocalSide {
    /// Queues a parcel for the subscribers of a channel.
    pub(crate) fn deliver(&mut self, cx: &Cx, local: u32, parcel: &Arc<Parcel>) -> Taken {
        let Some(namespace) = self.locals.get(local).map(|local| local.namespace) else {
            return Taken::Yes;
        };
        let rules = cx.channels_with(namespace);
        let rules = rules.namespace(namespace);
        let due = (rules.write_delay_ms > 0).then(|| cx.now.after(rules.write_delay_ms));
        let sending = Sending { drops: rules.slow_policy.drops(), due };
        match self.locals.deliver(local, parcel, sending) {
            Delivery::Broken => Taken::Broken,
            Delivery::Refused if parcel.kind == ParcelKind::Presence => {
                // A join or leave is no publication: presence has it all the same.
                cx.counters().events_lost.add(1);
                Taken::Yes
            }
            Delivery::Refused => {
                cx.counters().gaps_fanout.add(1);
                Taken::Gap
            }
            _ => Taken::Yes,
        }
    }

    /// Connections whose subscriptions to a channel have a position.
    pub(crate) fn with_position(&mut self, local: u32) -> Vec<u32> {
        let Some(record) = self.locals.get(local) else { return Vec::new() };
        let is_told = |s: &Subscriber| s.traits.positioned() && !s.traits.has_lapsed();
        record.subscribers.iter().filter(is_told).map(|s| s.conn).collect()
    }

    /// Subscriptions to a channel that have a position get nothing any more. Their connections.
    pub(crate) fn lapse_all(&mut self, local: u32) -> Vec<u32> {
        let Some(record) = self.locals.get(local) else { return Vec::new() };
        let mut conns = Vec::new();
        for subscriber in record.subscribers.at_mut(0..u32::MAX) {
            let traits = subscriber.traits;
            if traits.positioned() && !traits.has_lapsed() {
                subscriber.traits = traits.lapse();
                conns.push(subscriber.conn);
            }
        }
        conns
    }

    /// The same with one subscription, if it has a position.
    pub(crate) fn lapse(&mut self, local: u32, place: u32) {
        let Some(record) = self.locals.get(local) else { return };
        if record.subscribers.get(place).is_some_and(|s| s.traits.positioned()) {
            record.subscribers.lapse(place);
        }
    }

    /// A subscription gets nothing any more.
    pub(crate) fn is_lapsed(&mut self, local: u32, place: u32) -> bool {
        let subscriber = self.locals.get(local).and_then(|record| record.subscribers.get(place));
        subscriber.is_some_and(|s| s.traits.has_lapsed())
    }

    /// How many subscriptions to a channel have none.
    pub(crate) fn without_position(&mut self, local: u32) -> usize {
        let Some(record) = self.locals.get(local) else { return 0 };
        record.subscribers.iter().filter(|s| !s.traits.positioned()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::form::Form;
    use crate::base::frame::SharedFrame;
    use crate::base::tags::Tags;
    use crate::hub::parcel::{Frames, Parcel, ParcelKind};

    use crate::shard::fixture::{Plan, channel, parcel};

    #[test]
    fn a_parcel_out_of_order_ends_subscriptions_with_a_position_first() {
        let cx = Plan::default().cx();
        let mut local = LocalSide::new(&cx);
        let at = channel(&mut local, "a", 4);
        assert_eq!(local.deliver(&cx, at, &parcel(1, "x")), Taken::Yes);
        assert_eq!(local.deliver(&cx, at, &parcel(3, "x")), Taken::Broken);
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
        assert_eq!(local.deliver(&cx, at + 1, &parcel(1, "x")), Taken::Yes);
    }
}
