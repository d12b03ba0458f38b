//! Orders of the control thread for the connections of a user, and its questions about users.
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
//! (`Clients::deliver_pending`).
//!
//! Orders about one connection are carried out on it in their order of arrival. One that can't go on holds up
//! later orders for the same user, but not those that end a connection: what comes before them has no effect.

use std::collections::{BTreeSet, VecDeque};

use compact_str::CompactString;
use slab::Slab;

use super::mail::shard_set::ShardSet;
use super::mail::{AdminCommand, Asker, ListOf, Listed, Mail, Order};
use crate::base::expiry::Expiry;
use crate::base::id::{ConnKey, ShardId};
use crate::io::Driver;
use crate::proto::client::{Disconnect, Push, Unsubscribed};
use crate::session::{ServerSub, Stop};
use crate::shard::clients::Clients;
use crate::shard::local::LocalSide;
use crate::shard::outlets::Outlets;

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
    /// It has connections left, and waits for the next turn in this slot.
    Later(usize),
    /// Homes got mail because of it: each has to pass the order, which has this number.
    Pass { order: u32, homes: ShardSet },
    /// It is carried out: its sender gets the answer.
    Answer(Box<Underway>),
}

/// Orders of the control thread that are being carried out.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    underway: Slab<Underway>,
    /// Those that have connections left, in their order of arrival.
    arrived: VecDeque<usize>,
}

/// Users whose orders have to wait in this turn, since an earlier one can't go on.
#[derive(Debug, Default)]
struct HeldUp {
    users: BTreeSet<CompactString>,
    /// One that is about all users can't go on.
    all: bool,
}

impl HeldUp {
    /// Whether an order has to wait for earlier ones.
    fn holds(&self, order: &Order) -> bool {
        let is_any = self.all || !self.users.is_empty();
        is_any
            && !order.command.ends_connections()
            && (self.all || order.all_users || self.users.contains(&order.user))
    }

    fn add(&mut self, order: &Order) {
        match order.all_users {
            true => self.all = true,
            false => _ = self.users.insert(order.user.clone()),
        }
    }
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
        let underway = Underway { order, from, left, connections, homes, blocked, behind };
        self.arrived.push_back(self.underway.insert(underway));
    }

    /// So many batches of the shard's mail to itself were opened.
    pub(crate) fn batches_opened(&mut self, opened: usize) {
        for (_, underway) in &mut self.underway {
            underway.behind = underway.behind.saturating_sub(opened);
        }
    }

    /// Takes the order in a slot out, if it can be carried out now. It goes back by [`Self::end_or_keep`].
    fn take(&mut self, at: usize, held_up: &HeldUp) -> Option<Underway> {
        let underway = self.underway.get_mut(at)?;
        if underway.behind > 0 {
            return None;
        }
        // Not something to do until the earlier one goes on.
        underway.blocked = held_up.holds(&underway.order);
        if underway.blocked { None } else { self.underway.try_remove(at) }
    }

    /// Keeps an order until it has reached all its connections and all homes have passed it.
    fn end_or_keep(&mut self, underway: Underway) -> Next {
        if !underway.left.is_empty() {
            return Next::Later(self.underway.insert(underway));
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

impl Orders {
    /// Handles mail of the control thread about users and their connections.
    pub(crate) fn handle_mail<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        subjects: &mut Subjects<'_>,
        from: ShardId,
        mail: Mail,
    ) {
        match mail {
            Mail::Order(order) => {
                let left = subjects.clients.connections_for(out.cx, out.net, &order);
                self.insert(from, order, left, out.post.own_batches());
            }
            Mail::Passed { order } => {
                if let Some(underway) = self.passed(from, order) {
                    underway.answer(out);
                }
            }
            Mail::Inspect(inspect) => {
                let inspected = Box::new(subjects.inspect(out, &inspect));
                let asker = inspect.asker;
                out.post.send(out.cx, from, Mail::Inspected { asker, inspected });
            }
            Mail::List(list) => {
                let mut listed = Box::<Listed>::default();
                if let ListOf::Users { zeros } = list.of {
                    subjects.clients.list_users(out.cx, list.cursor, zeros, &mut listed);
                }
                out.post.send(out.cx, from, Mail::Listed { asker: list.asker, listed });
            }
            _ => debug_assert!(false, "this mail is for another group: {mail:?}"),
        }
    }

    /// Carries orders out on some of their connections.
    pub(crate) fn carry_out<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        subjects: &mut Subjects<'_>,
    ) {
        if self.len() == 0 {
            return;
        }
        let mut budget = out.cx.node.options.turn_ordered_max;
        let mut held_up = HeldUp::default();
        for _ in 0..self.arrived.len() {
            // Each goes back to the end: those that stay keep their order.
            let Some(at) = self.arrived.pop_front() else { break };
            let Some(mut underway) = self.take(at, &held_up) else {
                if let Some(underway) = self.underway.get(at) {
                    held_up.add(&underway.order);
                    self.arrived.push_back(at);
                }
                continue;
            };
            while budget > 0 && !underway.blocked {
                let Some(key) = underway.left.pop() else { break };
                budget -= 1;
                match subjects.carry_out(out, &underway.order, key, &mut underway.homes) {
                    Step::Done => underway.connections += 1,
                    Step::Spared => {}
                    Step::Blocked => {
                        underway.left.push(key);
                        underway.blocked = true;
                    }
                }
            }
            match self.end_or_keep(underway) {
                Next::Later(at) => {
                    if let Some(underway) = self.underway.get(at) {
                        held_up.add(&underway.order);
                    }
                    self.arrived.push_back(at);
                }
                Next::Pass { order, homes } => {
                    homes.iter().for_each(|home| out.post.send(out.cx, home, Mail::Pass { order }))
                }
                Next::Answer(underway) => underway.answer(out),
            }
        }
    }
}

impl Underway {
    fn answer<D: Driver>(&self, out: &mut Outlets<'_, D>) {
        let (asker, connections) = (self.order.asker, self.connections);
        out.post.send(out.cx, self.from, Mail::Ordered { asker, connections });
    }
}

/// The groups that orders are about.
pub(crate) struct Subjects<'a> {
    pub(crate) clients: &'a mut Clients,
    pub(crate) side: &'a mut LocalSide,
}

impl Subjects<'_> {
    /// Carries an order out on one connection. Homes that get mail because of it are added.
    fn carry_out<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        order: &Order,
        key: ConnKey,
        homes: &mut ShardSet,
    ) -> Step {
        let index = key.index;
        // The session may have ended since the order came. Its key is no other session's, which names
        // client and session; the user is compared all the same: no order may reach another user.
        if out.net.conn(key).is_none() {
            return Step::Spared;
        }
        let Some(session) = self.clients.session_of(out.net, index) else { return Step::Spared };
        let is_theirs = order.all_users || session.user == order.user;
        if session.flags.detached() || !is_theirs {
            return Step::Spared;
        }
        let is_connecting = session.connecting().is_some();
        match &order.command {
            AdminCommand::Disconnect { code, reason, spare } => {
                let id = out.cx.client_id(key).text();
                if spare.binary_search_by(|spared| spared.as_str().cmp(id.as_str())).is_ok() {
                    return Step::Spared;
                }
                if !self.make_ready_to_end(out, index, None, homes) {
                    return Step::Blocked;
                }
                out.cx.counters().closed_by_api.add(1);
                self.clients.end_session(out, self.side, index, *code, reason);
                Step::Done
            }
            _ if is_connecting => Step::Blocked,
            AdminCommand::Unsubscribe { channel, why } => {
                self.unsubscribe(out, index, channel, why.as_ref(), homes)
            }
            AdminCommand::Subscribe(sub) => self.subscribe(out, key, sub, homes),
            AdminCommand::Refresh { expired: true, .. } => {
                if !self.make_ready_to_end(out, index, None, homes) {
                    return Step::Blocked;
                }
                out.cx.counters().closed_expired.add(1);
                let why = Disconnect::ConnectionExpired;
                self.clients.disconnect(out, self.side, index, why);
                Step::Done
            }
            AdminCommand::Refresh { expire_at, info, .. } => {
                self.refresh(out, index, *expire_at, info)
            }
        }
    }

    /// Ends subscriptions of a connection: to one channel, or all where the name is empty.
    fn unsubscribe<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        index: u32,
        channel: &str,
        why: Option<&(u16, CompactString)>,
        homes: &mut ShardSet,
    ) -> Step {
        let only = match channel {
            "" => None,
            name => match self.side.locals.find(name) {
                Some(channel) => Some(channel),
                None => return Step::Done,
            },
        };
        if !self.make_ready_to_end(out, index, only, homes) {
            return Step::Blocked;
        }
        for channel in self.channels_of(out, index, only) {
            let usual = (Unsubscribed::Server.code(), Unsubscribed::Server.reason());
            let (code, reason) = why.map_or(usual, |(code, reason)| (*code, reason.as_str()));
            self.clients.take_away_with(out, self.side, index, channel, code, reason);
        }
        Step::Done
    }

    fn subscribe<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        key: ConnKey,
        sub: &ServerSub,
        homes: &mut ShardSet,
    ) -> Step {
        let index = key.index;
        let known = self.side.locals.find(&sub.channel);
        let limit = out.cx.client.channel_limit;
        let Some(session) = self.clients.session_of(out.net, index) else { return Step::Spared };
        let subs = session.subs.as_slice();
        let has = known.is_some_and(|at| subs.iter().any(|sub| sub.channel == at));
        if has || subs.len() >= limit {
            return Step::Done;
        }
        let home = out.cx.node.names.home(out.cx.node.names.hash(&sub.channel));
        match self.clients.subscribe_by_server(out, self.side, index, Asker::of(key), sub) {
            Ok(()) => {
                homes.insert(home);
                Step::Done
            }
            Err(Stop::Wait(_)) => Step::Blocked,
            Err(_) => Step::Done,
        }
    }

    /// Sets another expiry, and other info unless it is empty.
    fn refresh<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        index: u32,
        expire_at: i64,
        info: &[u8],
    ) -> Step {
        if !info.is_empty() && self.clients.reinform(out, self.side, index, info.into()).is_err() {
            return Step::Blocked;
        }
        let Some(session) = self.clients.session_of(out.net, index) else { return Step::Done };
        session.expires = Expiry::of_positive(expire_at);
        let ttl = session.expires.map(|expires| expires.ttl(out.cx.unix));
        self.clients.push(out, self.side, index, "", &Push::Refresh { ttl });
        self.clients.schedule(out, index);
        Step::Done
    }

    /// Channels that a connection has subscriptions to: one channel, or all.
    fn channels_of<D: Driver>(
        &mut self,
        out: &Outlets<'_, D>,
        index: u32,
        only: Option<u32>,
    ) -> Vec<u32> {
        let Some(session) = self.clients.session_of(out.net, index) else { return Vec::new() };
        let channels = session.subs.as_slice().iter().map(|sub| sub.channel);
        channels.filter(|at| only.is_none_or(|only| only == *at)).collect()
    }

    /// Subscriptions of a connection (to one channel, or all) are about to end: adds their homes, and queues
    /// the publications that wait for the connection. False, and nothing is done, while a home has no room
    /// for the mail.
    fn make_ready_to_end<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        index: u32,
        only: Option<u32>,
        homes: &mut ShardSet,
    ) -> bool {
        let channels = self.channels_of(out, index, only);
        let home = |at: &u32| self.side.locals.get(*at).map(|local| local.home);
        let concerned: Vec<ShardId> = channels.iter().filter_map(home).collect();
        if concerned.iter().any(|home| out.post.is_full(*home)) {
            return false;
        }
        concerned.into_iter().for_each(|home| homes.insert(home));
        self.clients.deliver_pending(out, self.side, index, only);
        true
    }
}

/// Channels or users that one list looks at.
pub(crate) const TURN_LISTED_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn key(index: u32) -> ConnKey {
        ConnKey { index, generation: NonZeroU32::MIN }
    }

    fn order_of(user: &str, command: AdminCommand) -> Box<Order> {
        let (client, session) = Default::default();
        let (asker, user, all_users) = (Asker::of(key(9)), user.into(), false);
        Box::new(Order { asker, user, all_users, client, session, command })
    }

    fn unsubscribe() -> AdminCommand {
        AdminCommand::Unsubscribe { channel: CompactString::default(), why: None }
    }

    fn order() -> Box<Order> {
        order_of("", unsubscribe())
    }

    fn orders(connections: u32, behind: usize) -> Orders {
        let mut orders = Orders::default();
        orders.insert(ShardId(3), order(), (0..connections).map(key).collect(), behind);
        orders
    }

    /// The first order, if nothing holds it up.
    fn take(orders: &mut Orders) -> Option<Underway> {
        orders.take(0, &HeldUp::default())
    }

    #[test]
    fn an_order_waits_for_the_mail_that_was_there_before_it() {
        let mut orders = orders(1, 2);
        assert!(orders.has_work());
        orders.batches_opened(1);
        assert!(take(&mut orders).is_none());
        orders.batches_opened(1);
        assert_eq!(take(&mut orders).unwrap().left, [key(0)]);
        assert_eq!(orders.len(), 0);
    }

    #[test]
    fn an_order_waits_for_earlier_ones_of_its_user_unless_it_ends_connections() {
        let disconnect = || {
            let (reason, spare) = (CompactString::default(), Vec::new());
            AdminCommand::Disconnect { code: 3503, reason, spare }
        };
        let mut held_up = HeldUp::default();
        assert!(!held_up.holds(&order_of("a", unsubscribe())));
        held_up.add(&order_of("a", disconnect()));
        for (user, command, holds) in
            [("a", unsubscribe(), true), ("a", disconnect(), false), ("b", unsubscribe(), false)]
        {
            assert_eq!(held_up.holds(&order_of(user, command)), holds, "{user}");
        }
        let all = Order { all_users: true, ..*order_of("b", unsubscribe()) };
        assert!(held_up.holds(&all));
        held_up.add(&all);
        assert!(held_up.holds(&order_of("b", unsubscribe())));
        // A held up order has no work of its own.
        let mut orders = orders(1, 0);
        assert!(orders.take(0, &held_up).is_none() && !orders.has_work());
        assert!(take(&mut orders).is_some());
    }

    #[test]
    fn an_order_is_answered_when_all_homes_that_got_mail_have_passed_it() {
        let mut orders = orders(2, 0);
        let mut underway = take(&mut orders).unwrap();
        underway.homes.insert(ShardId(0));
        underway.homes.insert(ShardId(1));
        let last = underway.left.pop();
        assert!(matches!(orders.end_or_keep(underway), Next::Later(0)));
        assert_eq!(last, Some(key(1)));

        let mut underway = take(&mut orders).unwrap();
        underway.left.clear();
        let Next::Pass { order, homes } = orders.end_or_keep(underway) else { panic!() };
        assert_eq!(homes.iter().collect::<Vec<_>>(), [ShardId(0), ShardId(1)]);
        assert!(!orders.has_work());
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
        let mut underway = take(&mut orders).unwrap();
        underway.blocked = true;
        assert!(matches!(orders.end_or_keep(underway), Next::Later(0)));
        assert!(!orders.has_work());
        let mut underway = take(&mut orders).unwrap();
        assert!(!underway.blocked);
        underway.left.clear();
        assert!(matches!(orders.end_or_keep(underway), Next::Answer(_)));
    }
}
