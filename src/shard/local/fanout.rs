//! The fan-out of a turn: channels in turn, a slice of each, within the turn's deliveries.
//!
//! ```text
//!  LocalSide::fan_out --> a slice of a channel (hub) --> frames into send queues (net)
//!        ^ called again           '--> FanOutEvent: the consequences that need a session
//! ```
//! The hub walks the subscribers and joins frames. A delivery mostly ends in a send queue; where it
//! concerns the session of a subscriber, the fan-out returns, and goes on behind that subscriber with
//! the next call. So a subscriber that is disconnected here gets no more of the same slice.

use super::{LocalSide, Slice, Target};
use crate::base::time::Millis;
use crate::edge::channels::SlowPolicy;
use crate::hub::fanout::Outgoing;
use crate::io::Driver;
use crate::proto::framing;
use crate::shard::outlets::Outlets;

/// A consequence of the fan-out for sessions.
#[derive(Debug)]
pub(crate) enum FanOutEvent {
    /// A delivery had consequences for its subscriber.
    Delivery(Consequence),
    /// Subscriptions to this channel have other places now: connections, and their places.
    Moved(u32, Vec<(u32, u32)>),
}

/// The consequences of one delivery for its subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Consequence {
    /// The connection.
    pub(crate) conn: u32,
    /// The channel.
    pub(crate) channel: u32,
    /// Publications were dropped, which [`Net`](crate::shard::net::Net) has listed.
    pub(crate) dropped: bool,
    /// The subscriber takes patches, and the next one can build on this delivery.
    pub(crate) based: bool,
    /// The next publication can't be shown to it: it isn't JSON.
    pub(crate) unfit: bool,
}

impl Consequence {
    fn is_any(self) -> bool {
        self.dropped || self.based || self.unfit
    }
}

/// Frames that fan-outs hold for one subscription.
pub(crate) struct Pending {
    of: Option<Target>,
    frames: std::vec::IntoIter<Outgoing>,
}

impl Pending {
    /// Queues them for the connection of the subscription, until one has a consequence; `None` behind the
    /// last.
    pub(crate) fn queue<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        conn: u32,
    ) -> Option<Consequence> {
        let to = self.of?;
        self.frames.find_map(|outgoing| {
            let (_, consequence) = queue_outgoing(out, conn, to, &outgoing);
            out.cx.counters().deliveries.add(outgoing.messages.into());
            out.cx.of_namespace(to.namespace).deliveries.add(outgoing.messages.into());
            out.cx.counters().messages_sent.add(outgoing.messages.into());
            consequence.is_any().then_some(consequence)
        })
    }
}

impl LocalSide {
    /// Begins the fan-outs of a turn.
    pub(crate) fn begin_fan_outs<D: Driver>(&mut self, out: &Outlets<'_, D>) {
        self.locals.wake_due(out.cx.now);
        self.fan_outs.left = out.cx.node.options.turn_deliveries_max;
    }

    /// Queues frames for subscribers until a delivery concerns a session; `None` when all is queued or the
    /// turn has had its deliveries.
    pub(crate) fn fan_out<D: Driver>(&mut self, out: &mut Outlets<'_, D>) -> Option<FanOutEvent> {
        loop {
            let mut slice = match self.fan_outs.slice.take() {
                Some(slice) => slice,
                None => {
                    let channel = match self.fan_outs.left {
                        0 => return None,
                        _ => self.locals.next_active()?,
                    };
                    match self.next_slice(out, channel) {
                        Some(slice) => slice,
                        None => match self.fan_out_done(channel) {
                            Some(event) => return Some(event),
                            None => continue,
                        },
                    }
                }
            };
            if let Some(consequence) = self.queue_slice(out, &mut slice) {
                self.fan_outs.slice = Some(slice);
                return Some(FanOutEvent::Delivery(consequence));
            }
            let channel = slice.to.channel;
            if self.end_slice(out, slice)
                && let Some(event) = self.fan_out_done(channel)
            {
                return Some(event);
            }
        }
    }

    /// Walks some subscribers of a channel. `None`: nothing waits for any.
    fn next_slice<D: Driver>(&mut self, out: &mut Outlets<'_, D>, channel: u32) -> Option<Slice> {
        let Self { locals, filters, fan_outs, .. } = self;
        let (left, walk, scratch) = (fan_outs.left, &mut fan_outs.walk, &mut out.codec.scratch);
        let is_walked = locals.walk(channel, left, filters, walk, framing::join, scratch);
        let to = self.target(out, channel).filter(|_| is_walked)?;
        Some(Slice { to, walk: std::mem::take(&mut self.fan_outs.walk), done: 0 })
    }

    /// Looks up where deliveries of a channel go to.
    fn target<D: Driver>(&mut self, out: &Outlets<'_, D>, channel: u32) -> Option<Target> {
        let namespace = self.locals.get(channel)?.namespace;
        let policy = out.cx.channels_with(namespace).namespace(namespace).slow_policy;
        Some(Target { channel, namespace, policy })
    }

    /// Queues the frames of a slice, until one of the deliveries has a consequence.
    fn queue_slice<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        slice: &mut Slice,
    ) -> Option<Consequence> {
        let queue_bytes_max = out.cx.client.queue_bytes_max;
        let Slice { to, walk, done } = slice;
        let mut messages = 0;
        let found = walk.to[*done..].iter().enumerate().find_map(|(at, (conn, outgoing))| {
            let outgoing = &walk.outgoing[*outgoing as usize];
            messages += u64::from(outgoing.messages);
            let (waits, consequence) = queue_outgoing(out, *conn, *to, outgoing);
            if waits > queue_bytes_max {
                out.net.list_overfull(*conn, to.namespace);
            }
            consequence.is_any().then_some((at, consequence))
        });
        let consequence = found.map(|(at, consequence)| {
            *done += at + 1;
            consequence
        });
        out.cx.counters().deliveries.add(messages);
        out.cx.of_namespace(to.namespace).deliveries.add(messages);
        out.cx.counters().messages_sent.add(messages);
        consequence
    }

    /// Ends a slice, whose frames are queued. Whether the channel's fan-out is over with it.
    fn end_slice<D: Driver>(&mut self, out: &Outlets<'_, D>, slice: Slice) -> bool {
        let Slice { to: Target { channel, .. }, walk, .. } = slice;
        let cx = out.cx;
        if let Some((taken_at, subscribers)) = walk.ended {
            let ms = cx.now.since(taken_at);
            let us = u32::try_from(ms.saturating_mul(1000)).unwrap_or(u32::MAX);
            cx.node.fan_out[cx.id.index()].record(us);
            cx.node.fan_out_size[cx.id.index()].record(subscribers);
        }
        self.fan_outs.left = self.fan_outs.left.saturating_sub(walk.places.max(1));
        self.fan_outs.walk = walk;
        let is_over = self.locals.is_walked(channel);
        if !is_over {
            self.locals.still_active(channel);
        }
        is_over
    }

    /// Ends a channel's fan-out: places may change again, and those of subscribers behind a gap in the
    /// list do.
    fn fan_out_done(&mut self, channel: u32) -> Option<FanOutEvent> {
        self.locals.fan_out_done(channel);
        let mut moves = Vec::new();
        if let Some(local) = self.locals.get(channel) {
            local.subscribers.settle(|subscriber, place| moves.push((subscriber.conn, place)));
        }
        self.locals.release(channel);
        (!moves.is_empty()).then_some(FanOutEvent::Moved(channel, moves))
    }

    /// Whether a fan-out has something to do at once.
    pub(crate) fn has_work(&self) -> bool {
        self.locals.active() > 0
    }

    /// The next moment at which a delayed fan-out begins.
    pub(crate) fn next_due(&self) -> Option<Millis> {
        self.locals.next_due()
    }

    /// Frames that fan-outs hold for one subscription. They are queued at once where it is about to end by an
    /// order or because the node drains: they may follow a publish whose caller has its answer, and fan-outs
    /// come later in the turn, go in slices, or wait for `write_delay`. The price is a look at each group; the
    /// bytes are those of the fan-out.
    pub(crate) fn pending<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        channel: u32,
        place: u32,
    ) -> Pending {
        let Self { locals, filters, .. } = self;
        let scratch = &mut out.codec.scratch;
        let frames = locals.pending_for(channel, place, filters, framing::join, scratch);
        Pending { of: self.target(out, channel), frames: frames.into_iter() }
    }
}

/// Queues a subscriber's share of a group. Returns the bytes that wait for the connection then, where the
/// policy of the channel limits them later, and the consequences.
#[inline]
fn queue_outgoing<D: Driver>(
    out: &mut Outlets<'_, D>,
    conn: u32,
    to: Target,
    outgoing: &Outgoing,
) -> (usize, Consequence) {
    let Target { channel, namespace, policy } = to;
    let mut consequence =
        Consequence { conn, channel, dropped: false, based: false, unfit: outgoing.unfit };
    let Outlets { cx, net, .. } = out;
    let waits = match (policy, &outgoing.last, &outgoing.frame) {
        (_, _, frame) if outgoing.collected => {
            net.collect_for_poll(cx, conn, channel, frame.as_ref());
            0
        }
        (SlowPolicy::Latest, Some(_), _) => {
            net.enqueue_latest(cx, conn, channel, namespace, outgoing)
        }
        (SlowPolicy::DropOldest, Some(_), _) => {
            consequence.based = net.enqueue_or_drop(cx, conn, channel, outgoing);
            consequence.dropped = net.has_dropped();
            0
        }
        (_, _, Some(frame)) => net.enqueue(cx, conn, frame.clone()),
        _ => 0,
    };
    if outgoing.marks && outgoing.messages > 0 {
        net.list_to_mark(conn);
    }
    (waits, consequence)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    use crate::base::tags::Tags;
    use crate::hub::parcel::{Parcel, ParcelKind};

    use crate::io::sim::LinkId;
    use crate::shard::fixture::{Plan, Wired, channel, parcel};
    use crate::shard::local::arrival::Taken;

    /// As many clients as `channel` has subscribers, and their links.
    fn clients(of: &mut Wired, count: usize) -> Vec<LinkId> {
        (0..count).map(|_| of.connect_client().0).collect()
    }

    /// Fans out in one turn with so many deliveries, and returns the events.
    fn turn(of: &mut Wired, local: &mut LocalSide, deliveries: u32) -> Vec<FanOutEvent> {
        let mut out = of.outlets();
        local.begin_fan_outs(&out);
        local.fan_outs.left = deliveries;
        std::iter::from_fn(|| local.fan_out(&mut out)).collect()
    }

    fn got(of: &mut Wired, links: &[LinkId]) -> Vec<String> {
        links.iter().map(|link| of.received(*link)).collect()
    }

    #[test]
    fn channels_have_slices_in_turn_until_the_turn_has_had_its_deliveries() {
        let mut of = Wired::new(Plan::default());
        let links = clients(&mut of, 3);
        let mut local = LocalSide::new(&of.cx);
        let (a, b) = (channel(&mut local, "a", 3), channel(&mut local, "b", 1));
        assert_eq!(local.deliver(&of.cx, a, &parcel(1, "a")), Taken::Yes);
        assert_eq!(local.deliver(&of.cx, b, &parcel(1, "b")), Taken::Yes);
        assert!(turn(&mut of, &mut local, 2).is_empty());
        assert_eq!(got(&mut of, &links), ["a", "a", ""]);
        // The rest of a channel goes behind the others.
        assert!(turn(&mut of, &mut local, 1).is_empty());
        assert_eq!(got(&mut of, &links), ["b", "", ""]);
        assert!(turn(&mut of, &mut local, 0).is_empty() && local.has_work());
        assert!(turn(&mut of, &mut local, 2).is_empty() && !local.has_work());
        assert_eq!(got(&mut of, &links), ["", "", "a"]);
        assert_eq!(of.cx.counters().deliveries.get(), 4);
        assert_eq!(of.end(), []);
    }

    #[test]
    fn a_place_left_during_a_fan_out_is_closed_up_behind_it() {
        let mut of = Wired::new(Plan::default());
        let links = clients(&mut of, 3);
        let mut local = LocalSide::new(&of.cx);
        let at = channel(&mut local, "a", 3);
        local.deliver(&of.cx, at, &parcel(1, "a"));
        assert!(turn(&mut of, &mut local, 1).is_empty());
        let held = local.locals.held(at);
        assert!(held);
        local.locals.get(at).unwrap().subscribers.remove(0, held);
        let events = turn(&mut of, &mut local, 9);
        assert_eq!(got(&mut of, &links), ["a", "a", "a"]);
        let [FanOutEvent::Moved(channel, moves)] = &events[..] else { panic!("{events:?}") };
        assert_eq!((*channel, &moves[..]), (at, &[(1, 0), (2, 1)][..]));
        assert_eq!(of.end(), []);
    }

    #[test]
    fn a_client_that_cannot_read_a_publication_is_named_before_the_next_one_gets_it() {
        let mut of = Wired::new(Plan::default());
        let links = clients(&mut of, 2);
        let mut local = LocalSide::new(&of.cx);
        let at = channel(&mut local, "a", 2);
        let mut unfit = Parcel::new(ParcelKind::Publication, 1, Tags::NONE);
        unfit.unfit_for_json = true;
        local.deliver(&of.cx, at, &Arc::new(unfit));
        let mut out = of.outlets();
        local.begin_fan_outs(&out);
        for conn in 0..2 {
            let Some(FanOutEvent::Delivery(of)) = local.fan_out(&mut out) else { panic!() };
            let expected =
                Consequence { conn, channel: at, dropped: false, based: false, unfit: true };
            assert_eq!(of, expected);
        }
        assert!(local.fan_out(&mut out).is_none());
        assert_eq!(got(&mut of, &links), ["", ""]);
        assert_eq!(of.end(), []);
    }

    #[test]
    fn what_waits_for_one_subscription_goes_ahead_of_the_others() {
        let mut of = Wired::new(Plan::default());
        let links = clients(&mut of, 2);
        let mut local = LocalSide::new(&of.cx);
        let at = channel(&mut local, "a", 2);
        local.deliver(&of.cx, at, &parcel(1, "a"));
        let mut out = of.outlets();
        let mut pending = local.pending(&mut out, at, 1);
        assert!(pending.queue(&mut out, 1).is_none());
        assert_eq!(got(&mut of, &links), ["", "a"]);
        assert_eq!(of.end(), []);
    }
}
