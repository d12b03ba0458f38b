//! The subscribers' side: channels that connections of this shard subscribe to.

pub(crate) mod arrival;
pub(crate) mod fanout;
pub(crate) mod image;
pub(crate) mod leaving;
pub(crate) mod traits;

use super::context::Cx;
use crate::edge::channels::SlowPolicy;
use crate::hub::fanout::Walk;
use crate::hub::filter::Filters;
use crate::hub::local::Locals;
use crate::shard::stats::ShardCounters;

/// Channels with subscribers on this shard.
pub(crate) struct LocalSide {
    pub(crate) locals: Locals,
    /// Number of the next attempt to subscribe: it tells a late answer from that to a newer attempt.
    pub(crate) next_serial: u32,
    /// Filters of subscriptions here.
    pub(crate) filters: Filters,
    fan_outs: FanOuts,
}

/// A fan-out between two calls.
#[derive(Default)]
struct FanOuts {
    /// Deliveries that the turn may still have.
    left: u32,
    /// The slice in which the last call has returned.
    slice: Option<Slice>,
    /// Buffers of the slice before.
    walk: Walk,
}

/// The channel of deliveries, as the send queues need it.
#[derive(Clone, Copy, Debug)]
struct Target {
    channel: u32,
    namespace: u16,
    /// The policy for publications that slow consumers don't take.
    policy: SlowPolicy,
}

/// Some subscribers of a channel, and their shares of a group.
struct Slice {
    to: Target,
    walk: Walk,
    /// Deliveries that are made.
    done: usize,
}

impl LocalSide {
    /// No channels.
    pub(crate) fn new(cx: &Cx) -> Self {
        Self {
            locals: Locals::new(cx.node.names.clone()),
            next_serial: 0,
            filters: Filters::default(),
            fan_outs: FanOuts::default(),
        }
    }

    /// Gauges that are cheaper to read off than to keep.
    pub(crate) fn set_gauges(&self, counters: &ShardCounters) {
        counters.channels_local.set(self.locals.len() as u64);
        counters.filters.set(self.filters.len() as u64);
        counters.filters_bytes.set(self.filters.bytes() as u64);
    }

    /// Everything that has to be empty when all connections have gone, and how much is in it.
    pub(crate) fn left(&self) -> [(&'static str, usize); 3] {
        [
            ("channels here", self.locals.len()),
            ("fan-outs", self.locals.active()),
            ("filters", self.filters.len()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::fixture::Plan;

    #[test]
    fn channels_here_are_counted_and_named_as_left() {
        let cx = Plan::default().cx();
        let mut side = LocalSide::new(&cx);
        assert!(side.left().iter().all(|(_, count)| *count == 0));
        let channel = side.locals.find_or_insert("news", 0);
        side.set_gauges(cx.counters());
        assert_eq!(cx.counters().channels_local.get(), 1);
        assert_eq!(side.left()[0], ("channels here", 1));
        side.locals.release(channel);
        assert_eq!(side.left()[0], ("channels here", 0));
    }
}
