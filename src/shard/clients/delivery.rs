//! Publications for clients: the consequences of deliveries, gaps and fan-outs for their sessions.

use std::sync::Arc;

use crate::hub::parcel::Parcel;
use crate::io::Driver;
use crate::session::{Sub, SubState};
use crate::shard::clients::Clients;
use crate::shard::local::LocalSide;
use crate::shard::local::arrival::Taken;
use crate::shard::local::fanout::{Consequence, FanOutEvent};
use crate::shard::outlets::Outlets;

impl Clients {
    /// Gives a parcel to the subscribers of a channel. Subscriptions with a position end before one that
    /// doesn't follow the last.
    pub(crate) fn deliver<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        channel: u32,
        parcel: &Arc<Parcel>,
    ) {
        let mut taken = side.deliver(out.cx, channel, parcel);
        if taken == Taken::Broken {
            // The gap was counted where it arose.
            self.end_positioned(out, side, channel);
            taken = side.deliver(out.cx, channel, parcel);
        }
        if taken == Taken::Gap {
            self.gap(out, side, channel);
        }
    }

    /// Publications of a channel were lost on their way to this shard: subscriptions with a position end,
    /// and their clients recover from history; the others have lost them.
    pub(crate) fn gap<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        channel: u32,
    ) {
        out.cx.counters().gaps_untold.add(side.without_position(channel) as u64);
        self.end_positioned(out, side, channel);
    }

    /// Sends some of the publications that wait for subscribers: channels in turn, a slice of each.
    pub(crate) fn fan_out<D: Driver>(&mut self, out: &mut Outlets<'_, D>, side: &mut LocalSide) {
        side.begin_fan_outs(out);
        while let Some(event) = side.fan_out(out) {
            match event {
                FanOutEvent::Delivery(consequence) => self.delivered(out, side, consequence),
                FanOutEvent::Moved(channel, moves) => {
                    for (conn, place) in moves {
                        self.set_place(out.net, channel, conn, place);
                    }
                }
            }
        }
    }

    /// Draws the consequences of a delivery for the session of its subscriber.
    fn delivered<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        of: Consequence,
    ) {
        if of.dropped || of.based {
            let dropped = out.net.take_dropped();
            let subs = self.session_of(out.net, of.conn).map(|session| &session.subs);
            side.lost(out.cx, subs, &dropped);
            if of.based {
                side.set_fresh(subs, of.channel, false);
            }
            out.net.give_back_dropped(dropped);
        }
        if of.unfit {
            self.inappropriate(out, side, of.conn);
        }
    }

    /// Queues at once the frames that fan-outs hold for a connection whose subscriptions (to one channel, or
    /// all) are about to end by an order or because the node drains.
    ///
    /// A poll gets nothing: it leaves publications to the next request. Before the reply to `connect` a
    /// client knows of no subscriptions.
    pub(crate) fn deliver_pending<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        only: Option<u32>,
    ) {
        let is_poll = out.net.form(index).is_poll();
        let Some(session) = self.session_of(out.net, index) else { return };
        if is_poll || session.connecting().is_some() {
            return;
        }
        let live =
            |sub: &&Sub| sub.state == SubState::Live && only.is_none_or(|only| only == sub.channel);
        let subs: Vec<_> = session.subs.as_slice().iter().filter(live).copied().collect();
        for sub in subs {
            let mut pending = side.pending(out, sub.channel, sub.place);
            while let Some(consequence) = pending.queue(out, index) {
                self.delivered(out, side, consequence);
                if consequence.unfit {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::form::Form;

    use crate::base::id::ConnKey;

    use crate::hub::subscribers::{Subscriber, Traits};
    use crate::io::sim::LinkId;
    use crate::session::SubFlags;
    use crate::session::testing::session;
    use crate::shard::fixture::{Plan, Wired, parcel};

    /// A client with a subscription to `channel`.
    fn subscriber(
        of: &mut Wired,
        clients: &mut Clients,
        side: &mut LocalSide,
        (channel, positioned): (&str, bool),
    ) -> (LinkId, ConnKey, u32) {
        let (link, key) = of.connect_client();
        let at = side.locals.find_or_insert(channel, 0);
        let record = side.locals.get(at).unwrap();
        record.claims += 1;
        let traits = Traits::new(Form::JSON.subscriber(false, false)).with_positioned(positioned);
        let place = record.subscribers.add(Subscriber { conn: key.index, traits });
        let mut flags = SubFlags::default();
        flags.set_positioned(positioned);
        of.cx.counters().subscriptions.add(1);
        let mut session = session("alice");
        session.conn = key.index;
        session.subs.push(Sub { channel: at, place, state: SubState::Live, flags });
        of.net.conn(key).unwrap().session = clients.sessions.insert(session) as u32;
        (link, key, at)
    }

    #[test]
    fn a_gap_ends_subscriptions_with_a_position_and_the_others_get_what_follows() {
        let mut of = Wired::new(Plan::default());
        let (mut clients, mut side) = (Clients::new(&of.cx), LocalSide::new(&of.cx));
        let (link, key, at) = subscriber(&mut of, &mut clients, &mut side, ("a", true));
        let (other, ..) = subscriber(&mut of, &mut clients, &mut side, ("a", false));
        for (offset, text) in [(1, "one"), (3, "three")] {
            clients.deliver(&mut of.outlets(), &mut side, at, &parcel(offset, text));
            clients.fan_out(&mut of.outlets(), &mut side);
        }
        let session = clients.session_of(&of.net, key.index).unwrap();
        assert!(session.subs.is_empty(), "the client has to recover");
        assert!(of.received(link).contains(r#""unsubscribe":{"code":2500"#));
        assert_eq!(of.received(other), "onethree");
    }

    #[test]
    fn a_client_gets_what_waits_for_it_before_its_subscription_ends() {
        let mut of = Wired::new(Plan::default());
        let (mut clients, mut side) = (Clients::new(&of.cx), LocalSide::new(&of.cx));
        let (link, key, at) = subscriber(&mut of, &mut clients, &mut side, ("a", false));
        clients.deliver(&mut of.outlets(), &mut side, at, &parcel(1, "one"));
        clients.deliver_pending(&mut of.outlets(), &mut side, key.index, Some(at + 1));
        assert_eq!(of.received(link), "", "another channel");
        clients.deliver_pending(&mut of.outlets(), &mut side, key.index, None);
        assert_eq!(of.received(link), "one");
    }
}
