//! What the control thread wants done with connections of a user, and with channels of a home.
//!
//! ```text
//!  Order -> connections of the user here -> some in each turn -> a Pass to every home that got mail
//!  because of them -> all Passed -> Ordered
//! ```
//! Mail between two shards arrives in order, so when a home has passed it has taken all that the order
//! caused: who publishes or reads behind the answer meets what was ordered.
//!
//! The other way round, a publish that was answered before the order was sent reaches its subscribers
//! before the order does. Its deliveries are in this shard's mailbox or in its mail to itself by then, or
//! wait in a fan-out: an order waits for the mail to itself that was there when it came
//! (`Underway::behind`), and fan-outs hand out what they hold for a connection before its subscriptions end
//! (`Shard::deliver_pending`).

use compact_str::CompactString;
use slab::Slab;

use super::mail::shard_set::ShardSet;
use super::mail::{
    AdminCommand, Asker, Inspect, Inspected, List, ListOf, Listed, Mail, Order, Seen, SeenSub,
};
use crate::base::expiry::Expiry;
use crate::base::id::{ConnKey, ShardId};
use crate::io::Driver;
use crate::proto::client::{Disconnect, Push, Unsubscribed};
use crate::session::{ServerSub, Stop, SubState};
use crate::shard::Shard;
use crate::shard::outlets::outlets;

/// An order that is being carried out.
#[derive(Debug)]
pub(crate) struct Underway {
    order: Box<Order>,
    from: ShardId,
    /// Connections that the order has not reached yet.
    left: Vec<ConnKey>,
    /// Connections that the order was carried out on.
    connections: u32,
    /// Homes that got mail because of it; later those that have not answered [`Mail::Pass`].
    homes: ShardSet,
    /// Another part of the shard has to go on first: a lane to empty, a `connect` to end.
    blocked: bool,
    /// Batches of this shard's mail to itself that were there before the order.
    behind: usize,
}

/// Result of a step.
enum Step {
    /// The order was carried out on the connection.
    Done,
    /// The order doesn't apply to the connection.
    Spared,
    /// Later: there is no room for the mail, or the connection is in the middle of its `connect`.
    Blocked,
}

/// What an order needs when the shard has nothing left to do for it.
#[derive(Debug)]
enum Next {
    /// It has connections left, and waits for the next turn.
    Later,
    /// Homes got mail because of it: each has to pass the order, which has this number.
    Pass { order: u32, homes: ShardSet },
    /// It is carried out: its sender gets the answer.
    Answer(Box<Underway>),
}

/// Orders of the control thread that are being carried out.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    underway: Slab<Underway>,
}

impl Orders {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.underway.len()
    }

    /// Whether an order has something to do at once.
    pub(crate) fn has_work(&self) -> bool {
        self.underway.iter().any(|(_, order)| !order.left.is_empty() && !order.blocked)
    }

    /// Adds an order for the connections `left`, behind so many batches of the shard's mail to itself.
    fn insert(&mut self, from: ShardId, order: Box<Order>, left: Vec<ConnKey>, behind: usize) {
        let (homes, connections, blocked) = (ShardSet::default(), 0, false);
        self.underway.insert(Underway { order, from, left, connections, homes, blocked, behind });
    }

    /// So many batches of the shard's mail to itself were opened.
    pub(crate) fn batches_opened(&mut self, opened: usize) {
        for (_, underway) in &mut self.underway {
            underway.behind = underway.behind.saturating_sub(opened);
        }
    }

    /// Takes the order in a slot out, if it can be carried out now. It goes back by [`Self::end_or_keep`].
    fn take(&mut self, at: usize) -> Option<Underway> {
        let underway = self.underway.get(at)?;
        // An order that waits for homes has no connections left.
        let waits = underway.left.is_empty() && !underway.homes.is_empty();
        if waits || underway.behind > 0 {
            return None;
        }
        let mut underway = self.underway.try_remove(at)?;
        underway.blocked = false;
        Some(underway)
    }

    /// Keeps an order until it has reached all its connections and all homes have passed it.
    fn end_or_keep(&mut self, underway: Underway) -> Next {
        if !underway.left.is_empty() {
            self.underway.insert(underway);
            return Next::Later;
        }
        let homes = underway.homes;
        if homes.is_empty() {
            return Next::Answer(Box::new(underway));
        }
        let order = self.underway.insert(underway) as u32;
        Next::Pass { order, homes }
    }

    /// A home has taken all mail that an order caused. Yields the order when that was the last one.
    fn passed(&mut self, home: ShardId, order: u32) -> Option<Box<Underway>> {
        let underway = self.underway.get_mut(order as usize)?;
        underway.homes.remove(home);
        if !underway.homes.is_empty() {
            return None;
        }
        self.underway.try_remove(order as usize).map(Box::new)
    }
}

impl<D: Driver> Shard<D> {
    /// An order has come.
    pub(crate) fn take_order(&mut self, from: ShardId, order: Box<Order>) {
        let (user, client, session) = (&order.user, &order.client, &order.session);
        let left =
            self.clients.connections_of(&self.cx, &self.net, user, client, session, usize::MAX);
        self.orders.insert(from, order, left, self.post.own_batches());
    }

    /// Carries out some of what was ordered.
    pub(crate) fn carry_out_orders(&mut self) {
        if self.orders.len() == 0 {
            return;
        }
        let mut budget = self.cx.node.options.turn_ordered_max;
        for at in 0..self.orders.underway.capacity() {
            let Some(mut underway) = self.orders.take(at) else { continue };
            while budget > 0 && !underway.blocked {
                let Some(key) = underway.left.pop() else { break };
                budget -= 1;
                match self.carry_out(&underway.order, key, &mut underway.homes) {
                    Step::Done => underway.connections += 1,
                    Step::Spared => {}
                    Step::Blocked => {
                        underway.left.push(key);
                        underway.blocked = true;
                    }
                }
            }
            match self.orders.end_or_keep(underway) {
                Next::Later => {}
                Next::Pass { order, homes } => homes
                    .iter()
                    .for_each(|home| self.post.send(&self.cx, home, Mail::Pass { order })),
                Next::Answer(underway) => self.answer_order(&underway),
            }
        }
    }

    /// A home has taken what an order caused.
    pub(crate) fn passed(&mut self, home: ShardId, order: u32) {
        if let Some(underway) = self.orders.passed(home, order) {
            self.answer_order(&underway);
        }
    }

    fn answer_order(&mut self, underway: &Underway) {
        let (asker, connections) = (underway.order.asker, underway.connections);
        self.post.send(&self.cx, underway.from, Mail::Ordered { asker, connections });
    }

    fn carry_out(&mut self, order: &Order, key: ConnKey, homes: &mut ShardSet) -> Step {
        let index = key.index;
        // The session may have ended since the order came. Its key is no other session's, which names
        // client and session; the user is compared all the same: nobody is to get another one's order.
        if self.net.conn(key).is_none() {
            return Step::Spared;
        }
        let Some(session) = self.clients.session_of(&self.net, index) else { return Step::Spared };
        if session.flags.detached() || session.user != order.user {
            return Step::Spared;
        }
        let is_connecting = session.connecting().is_some();
        match &order.command {
            AdminCommand::Disconnect { code, reason, spare } => {
                let id = self.cx.client_id(key).text();
                if spare.binary_search_by(|spared| spared.as_str().cmp(id.as_str())).is_ok() {
                    return Step::Spared;
                }
                if !self.has_room_at_homes(index, None, homes) {
                    return Step::Blocked;
                }
                self.deliver_pending(index, None);
                self.cx.counters().closed_by_api.add(1);
                self.clients.end_session(
                    &mut outlets!(self),
                    &mut self.local,
                    index,
                    *code,
                    reason,
                );
                Step::Done
            }
            _ if is_connecting => Step::Blocked,
            AdminCommand::Unsubscribe { channel } => {
                let only = match channel.as_str() {
                    "" => None,
                    name => match self.local.locals.find(name) {
                        Some(local) => Some(local),
                        None => return Step::Done,
                    },
                };
                if !self.has_room_at_homes(index, only, homes) {
                    return Step::Blocked;
                }
                self.deliver_pending(index, only);
                let Some(session) = self.clients.session_of(&self.net, index) else {
                    return Step::Done;
                };
                let subs = session.subs.as_slice().iter();
                let subs: Vec<u32> = subs
                    .map(|sub| sub.channel)
                    .filter(|at| only.is_none_or(|only| only == *at))
                    .collect();
                subs.into_iter().for_each(|at| {
                    self.clients.take_away(
                        &mut outlets!(self),
                        &mut self.local,
                        index,
                        at,
                        Unsubscribed::Server,
                    )
                });
                Step::Done
            }
            AdminCommand::Subscribe(sub) => self.subscribe_by_order(key, sub, homes),
            AdminCommand::Refresh { expired: true, .. } => {
                if !self.has_room_at_homes(index, None, homes) {
                    return Step::Blocked;
                }
                self.deliver_pending(index, None);
                self.cx.counters().closed_expired.add(1);
                self.clients.disconnect(
                    &mut outlets!(self),
                    &mut self.local,
                    index,
                    Disconnect::ConnectionExpired,
                );
                Step::Done
            }
            AdminCommand::Refresh { expire_at, info, .. } => {
                if !info.is_empty()
                    && self
                        .clients
                        .reinform(&mut outlets!(self), &mut self.local, index, info.clone())
                        .is_err()
                {
                    return Step::Blocked;
                }
                let now = self.cx.unix;
                let Some(session) = self.clients.session_of(&self.net, index) else {
                    return Step::Done;
                };
                session.expires = Expiry::of_positive(*expire_at);
                let ttl = session.expires.map(|expires| expires.ttl(now));
                self.clients.push(
                    &mut outlets!(self),
                    &mut self.local,
                    index,
                    "",
                    &Push::Refresh { ttl },
                );
                self.clients.schedule(&mut outlets!(self), index);
                Step::Done
            }
        }
    }

    fn subscribe_by_order(&mut self, key: ConnKey, sub: &ServerSub, homes: &mut ShardSet) -> Step {
        let index = key.index;
        let known = self.local.locals.find(&sub.channel);
        let limit = self.cx.client.channel_limit;
        let Some(session) = self.clients.session_of(&self.net, index) else { return Step::Spared };
        let subs = session.subs.as_slice();
        let has = known.is_some_and(|at| subs.iter().any(|sub| sub.channel == at));
        if has || subs.len() >= limit {
            return Step::Done;
        }
        let home = self.cx.node.names.home(self.cx.node.names.hash(&sub.channel));
        let asker = Asker::of(key);
        match self.clients.subscribe_by_server(
            &mut outlets!(self),
            &mut self.local,
            index,
            asker,
            sub,
        ) {
            Ok(()) => {
                homes.insert(home);
                Step::Done
            }
            Err(Stop::Wait(_)) => Step::Blocked,
            Err(_) => Step::Done,
        }
    }

    /// Whether what ends the subscriptions of a connection (to one channel, or all) can be told now.
    /// Then their homes are added.
    fn has_room_at_homes(&mut self, index: u32, only: Option<u32>, homes: &mut ShardSet) -> bool {
        let Some(session) = self.clients.session_of(&self.net, index) else { return true };
        let subs = session.subs.as_slice().iter();
        let subs = subs.filter(|sub| only.is_none_or(|only| only == sub.channel));
        let channels: Vec<u32> = subs.map(|sub| sub.channel).collect();
        let of = |shard: &mut Self, at| shard.local.locals.get(at).map(|local| local.home);
        let concerned: Vec<ShardId> = channels.into_iter().filter_map(|at| of(self, at)).collect();
        if concerned.iter().any(|home| self.post.is_full(*home)) {
            return false;
        }
        concerned.into_iter().for_each(|home| homes.insert(home));
        true
    }

    /// Connections of a user here, as they are now.
    pub(crate) fn inspect(&mut self, from: ShardId, inspect: &Inspect) {
        // A user may have more connections than are named, the anonymous one a million.
        let mut keys = self.clients.connections_of(
            &self.cx,
            &self.net,
            &inspect.user,
            "",
            "",
            INSPECTED_MAX + 1,
        );
        let more = keys.len() > INSPECTED_MAX;
        keys.truncate(INSPECTED_MAX);
        let found = keys.into_iter().filter_map(|key| self.seen(key)).collect();
        let inspected = Box::new(Inspected { connections: found, more });
        self.post.send(&self.cx, from, Mail::Inspected { asker: inspect.asker, inspected });
    }

    fn seen(&mut self, key: ConnKey) -> Option<Seen> {
        let client = CompactString::new(self.cx.client_id(key).text().as_str());
        let conn = self.net.conn(key)?;
        let (form, paused, queue) = (conn.form, conn.flags.paused(), conn.queue);
        let queued_bytes = self.net.queues.get(queue).map_or(0, |queue| queue.bytes());
        let session = self.clients.session_of(&self.net, key.index)?;
        let (unanswered, expires) =
            (session.unanswered, session.expires.map_or(0, Expiry::seconds));
        let subs: Vec<_> = session.subs.as_slice().iter().take(INSPECTED_MAX).copied().collect();
        let subscriptions = session.subs.len();
        let named = subs.into_iter().filter_map(|sub| {
            let channel = self.local.locals.get(sub.channel)?.name.clone();
            let (server, positioned) = (sub.flags.server(), sub.flags.positioned());
            Some(SeenSub { channel, live: sub.state == SubState::Live, server, positioned })
        });
        let named = named.collect();
        let address = self.net.client_address(key.index);
        Some(Seen {
            client,
            address,
            form,
            paused,
            queued_bytes,
            unanswered,
            expires,
            subscriptions,
            named,
        })
    }

    /// Hashes of some users with connections here.
    pub(crate) fn list_users(&mut self, from: ShardId, list: List) {
        let mut listed = Box::<Listed>::default();
        if let ListOf::Users { zeros } = list.of {
            self.clients.list_users(&self.cx, list.cursor, zeros, &mut listed);
        }
        self.post.send(&self.cx, from, Mail::Listed { asker: list.asker, listed });
    }
}

/// Connections in one answer, and subscriptions of each.
const INSPECTED_MAX: usize = 100;

/// Channels or users that one list looks at.
pub(crate) const TURN_LISTED_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn key(index: u32) -> ConnKey {
        ConnKey { index, generation: NonZeroU32::MIN }
    }

    fn order() -> Box<Order> {
        let (user, client, session) = Default::default();
        let command = AdminCommand::Unsubscribe { channel: CompactString::default() };
        Box::new(Order { asker: Asker::of(key(9)), user, client, session, command })
    }

    fn orders(connections: u32, behind: usize) -> Orders {
        let mut orders = Orders::default();
        orders.insert(ShardId(3), order(), (0..connections).map(key).collect(), behind);
        orders
    }

    #[test]
    fn an_order_waits_for_the_mail_that_was_there_before_it() {
        let mut orders = orders(1, 2);
        assert!(orders.has_work());
        orders.batches_opened(1);
        assert!(orders.take(0).is_none());
        orders.batches_opened(1);
        assert_eq!(orders.take(0).unwrap().left, [key(0)]);
        assert_eq!(orders.len(), 0);
    }

    #[test]
    fn an_order_is_answered_when_all_homes_that_got_mail_have_passed_it() {
        let mut orders = orders(2, 0);
        let mut underway = orders.take(0).unwrap();
        underway.homes.insert(ShardId(0));
        underway.homes.insert(ShardId(1));
        let last = underway.left.pop();
        assert!(matches!(orders.end_or_keep(underway), Next::Later));
        assert_eq!(last, Some(key(1)));

        let mut underway = orders.take(0).unwrap();
        underway.left.clear();
        let Next::Pass { order, homes } = orders.end_or_keep(underway) else { panic!() };
        assert_eq!(homes.iter().collect::<Vec<_>>(), [ShardId(0), ShardId(1)]);
        assert!(!orders.has_work() && orders.take(0).is_none());
        assert!(orders.passed(ShardId(1), order).is_none());
        // An answer that nobody waits for changes nothing.
        assert!(orders.passed(ShardId(1), order).is_none());
        assert!(orders.passed(ShardId(0), order + 1).is_none());
        assert_eq!(orders.passed(ShardId(0), order).unwrap().from, ShardId(3));
        assert_eq!(orders.len(), 0);
    }

    #[test]
    fn an_order_without_mail_is_answered_at_once_and_a_blocked_one_has_no_work() {
        let mut orders = orders(1, 0);
        let mut underway = orders.take(0).unwrap();
        underway.blocked = true;
        assert!(matches!(orders.end_or_keep(underway), Next::Later));
        assert!(!orders.has_work());
        let mut underway = orders.take(0).unwrap();
        assert!(!underway.blocked);
        underway.left.clear();
        assert!(matches!(orders.end_or_keep(underway), Next::Answer(_)));
    }
}
