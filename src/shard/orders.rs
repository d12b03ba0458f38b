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

use super::clients::commands::Stop;
use super::mail::sending::ShardSet;
use super::mail::{
    Act, Asker, Inspect, Inspected, List, ListOf, Listed, Mail, Order, Seen, SeenSub,
};
use crate::base::expiry::Expiry;
use crate::base::id::{ConnKey, ShardId};
use crate::io::Driver;
use crate::proto::client::{Disconnect, Push, Unsubscribed};
use crate::session::{ServerSub, SubState};
use crate::shard::Shard;
use crate::shard::net::conn::NONE;

/// An order that is being carried out.
#[derive(Debug)]
pub(super) struct Underway {
    order: Box<Order>,
    from: ShardId,
    /// Connections that are still to be looked at.
    left: Vec<ConnKey>,
    /// Connections that it was about.
    connections: u32,
    /// Homes that got mail because of it; then those that have not passed.
    homes: ShardSet,
    /// Nothing can be done before somebody else has done something.
    blocked: bool,
    /// Batches of this shard's mail to itself that were there before the order.
    behind: usize,
}

/// What came of a step.
enum Step {
    /// The connection is done with; it was one that the order is about.
    Done,
    /// It is none of those.
    Spared,
    /// Later: there is no room for the mail, or the connection is in the middle of its `connect`.
    Blocked,
}

impl<D: Driver> Shard<D> {
    /// An order has come.
    pub(crate) fn take_order(&mut self, from: ShardId, order: Box<Order>) {
        let (user, client, session) = (&order.user, &order.client, &order.session);
        let left = self.connections_of(user, client, session, usize::MAX);
        let homes = ShardSet::default();
        let behind = self.post.loopback.len();
        let (connections, blocked) = (0, false);
        self.orders.insert(Underway { order, from, left, connections, homes, blocked, behind });
    }

    /// So many batches of the mail to itself were opened.
    pub(crate) fn orders_wait_less(&mut self, opened: usize) {
        for (_, underway) in &mut self.orders {
            underway.behind = underway.behind.saturating_sub(opened);
        }
    }

    /// Connections here that an order may be about.
    fn connections_of(
        &mut self,
        user: &str,
        client: &str,
        session: &str,
        max: usize,
    ) -> Vec<ConnKey> {
        if !client.is_empty() || !session.is_empty() {
            let rules = &self.cx.node.rules;
            let by_client = rules.client_ids.open(client);
            let by_session = rules.session_ids.open_secret(session);
            let found = match (client.is_empty(), session.is_empty()) {
                (false, true) => by_client,
                (true, _) => by_session.filter(|of| self.has_session_id(*of)),
                (false, false) => by_client.filter(|of| by_session == Some(*of)),
            };
            let key = found.filter(|(shard, _)| *shard == self.cx.id).map(|(_, key)| key);
            let is_theirs = |key: &ConnKey| {
                let conn = self.net.conns.get(key.index as usize);
                let conn = conn.filter(|conn| conn.generation == key.generation);
                let session =
                    conn.and_then(|conn| self.clients.sessions.get(conn.session as usize));
                session.is_some_and(|session| session.user == user)
            };
            return key.filter(is_theirs).into_iter().collect();
        }
        let hash = self.cx.node.names.hash(user);
        let sessions = &self.clients.sessions;
        let first = self.clients.users.first(hash, |at| sessions[*at as usize].user == user);
        let chain = std::iter::successors(first, |at| {
            Some(sessions[*at as usize].user_links.next).filter(|next| *next != NONE)
        });
        chain
            .take(max)
            .filter_map(|at| {
                let index = sessions[at as usize].conn;
                Some(self.net.conns.get(index as usize)?.key(index))
            })
            .collect()
    }

    /// Whether a connection's session has an id: not over a two-way WebSocket.
    fn has_session_id(&self, (shard, key): (ShardId, ConnKey)) -> bool {
        let conn = self.net.conns.get(key.index as usize).filter(|_| shard == self.cx.id);
        conn.is_some_and(|conn| conn.form.transport().has_session_ids())
    }

    /// Whether an order has something to do at once.
    pub(crate) fn has_orders(&self) -> bool {
        self.orders.iter().any(|(_, order)| !order.left.is_empty() && !order.blocked)
    }

    /// Carries out some of what was ordered.
    pub(crate) fn carry_out_orders(&mut self) {
        if self.orders.is_empty() {
            return;
        }
        let mut budget = self.cx.node.options.turn_ordered_max;
        for at in 0..self.orders.capacity() {
            let Some(underway) = self.orders.get_mut(at) else { continue };
            // Those whose homes have to pass yet have nothing left.
            if underway.left.is_empty() && !underway.homes.is_empty() || underway.behind > 0 {
                continue;
            }
            let Some(mut underway) = self.orders.try_remove(at) else { continue };
            underway.blocked = false;
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
            self.end_or_keep(underway);
        }
    }

    /// All connections are done with: every home that got mail has to pass; nobody is left: the answer.
    fn end_or_keep(&mut self, underway: Underway) {
        if !underway.left.is_empty() {
            self.orders.insert(underway);
            return;
        }
        let homes = underway.homes;
        if homes.is_empty() {
            return self.answer_order(&underway);
        }
        let order = self.orders.insert(underway) as u32;
        homes.iter().for_each(|home| self.post.send(&self.cx, home, Mail::Pass { order }));
    }

    /// A home has taken what an order caused.
    pub(crate) fn passed(&mut self, home: ShardId, order: u32) {
        let Some(underway) = self.orders.get_mut(order as usize) else { return };
        underway.homes.remove(home);
        if underway.homes.is_empty() {
            let underway = self.orders.remove(order as usize);
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
        let Some(session) = self.session_of(index) else { return Step::Spared };
        if session.flags.detached() || session.user != order.user {
            return Step::Spared;
        }
        let is_connecting = session.connecting().is_some();
        match &order.act {
            Act::Disconnect { code, reason, spare } => {
                let id = self.client_id(key).text();
                if spare.binary_search_by(|spared| spared.as_str().cmp(id.as_str())).is_ok() {
                    return Step::Spared;
                }
                if !self.has_room_at_homes(index, None, homes) {
                    return Step::Blocked;
                }
                self.deliver_pending(index, None);
                self.cx.counters().closed_by_api.add(1);
                self.end_session(index, *code, reason);
                Step::Done
            }
            _ if is_connecting => Step::Blocked,
            Act::Unsubscribe { channel } => {
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
                let Some(session) = self.session_of(index) else { return Step::Done };
                let subs = session.subs.as_slice().iter();
                let subs: Vec<u32> = subs
                    .map(|sub| sub.channel)
                    .filter(|at| only.is_none_or(|only| only == *at))
                    .collect();
                subs.into_iter().for_each(|at| self.take_away(index, at, Unsubscribed::Server));
                Step::Done
            }
            Act::Subscribe(sub) => self.subscribe_by_order(key, sub, homes),
            Act::Refresh { expired: true, .. } => {
                if !self.has_room_at_homes(index, None, homes) {
                    return Step::Blocked;
                }
                self.deliver_pending(index, None);
                self.cx.counters().closed_expired.add(1);
                self.disconnect(index, Disconnect::ConnectionExpired);
                Step::Done
            }
            Act::Refresh { expire_at, info, .. } => {
                if !info.is_empty() && self.reinform(index, info.clone()).is_err() {
                    return Step::Blocked;
                }
                let now = self.cx.unix;
                let Some(session) = self.session_of(index) else { return Step::Done };
                session.expires = Expiry::of_positive(*expire_at);
                let ttl = session.expires.map(|expires| expires.ttl(now));
                self.push(index, "", &Push::Refresh { ttl });
                self.schedule(index);
                Step::Done
            }
        }
    }

    fn subscribe_by_order(&mut self, key: ConnKey, sub: &ServerSub, homes: &mut ShardSet) -> Step {
        let index = key.index;
        let known = self.local.locals.find(&sub.channel);
        let limit = self.cx.client.channel_limit;
        let Some(session) = self.session_of(index) else { return Step::Spared };
        let subs = session.subs.as_slice();
        let has = known.is_some_and(|at| subs.iter().any(|sub| sub.channel == at));
        if has || subs.len() >= limit {
            return Step::Done;
        }
        let home = self.cx.node.names.home(self.cx.node.names.hash(&sub.channel));
        let asker = Asker::of(key);
        match self.subscribe_by_server(index, asker, sub) {
            Ok(()) => {
                homes.insert(home);
                Step::Done
            }
            Err(Stop::NoCredit(_)) => Step::Blocked,
            Err(_) => Step::Done,
        }
    }

    /// Whether what ends the subscriptions of a connection (to one channel, or all) can be told now.
    /// Then their homes are added.
    fn has_room_at_homes(&mut self, index: u32, only: Option<u32>, homes: &mut ShardSet) -> bool {
        let Some(session) = self.session_of(index) else { return true };
        let subs = session.subs.as_slice().iter();
        let subs = subs.filter(|sub| only.is_none_or(|only| only == sub.channel));
        let channels: Vec<u32> = subs.map(|sub| sub.channel).collect();
        let of = |shard: &mut Self, at| shard.local.locals.get(at).map(|local| local.home);
        let concerned: Vec<ShardId> = channels.into_iter().filter_map(|at| of(self, at)).collect();
        if concerned.iter().any(|home| self.post.mail[*home].is_full()) {
            return false;
        }
        concerned.into_iter().for_each(|home| homes.insert(home));
        true
    }

    /// Connections of a user here, as they are now.
    pub(crate) fn inspect(&mut self, from: ShardId, inspect: &Inspect) {
        // A user may have more connections than are named, the anonymous one a million.
        let mut keys = self.connections_of(&inspect.user, "", "", INSPECTED_MAX + 1);
        let more = keys.len() > INSPECTED_MAX;
        keys.truncate(INSPECTED_MAX);
        let found = keys.into_iter().filter_map(|key| self.seen(key)).collect();
        let inspected = Box::new(Inspected { connections: found, more });
        self.post.send(&self.cx, from, Mail::Inspected { asker: inspect.asker, inspected });
    }

    fn seen(&mut self, key: ConnKey) -> Option<Seen> {
        let client = CompactString::new(self.client_id(key).text().as_str());
        let conn = self.net.conn(key)?;
        let (form, paused, outbox) = (conn.form, conn.flags.paused(), conn.outbox);
        let queued_bytes = self.net.outboxes.get(outbox).map_or(0, |outbox| outbox.bytes());
        let session = self.session_of(key.index)?;
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
        let address = self.client_address(key.index);
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

    /// Some channels of this home that somebody is subscribed to.
    pub(crate) fn home_list(&mut self, from: ShardId, list: List) {
        let mut listed = Listed::default();
        if let ListOf::Users { zeros } = list.of {
            self.list_users(list.cursor, zeros, &mut listed);
            return self.post.send(
                &self.cx,
                from,
                Mail::Listed { asker: list.asker, listed: Box::new(listed) },
            );
        }
        listed.next = self.home.homes.list(list.cursor, TURN_LISTED_MAX, |name, count| {
            listed.channels.push((CompactString::new(name), count));
        });
        self.post.send(
            &self.cx,
            from,
            Mail::Listed { asker: list.asker, listed: Box::new(listed) },
        );
    }

    /// Hashes of some users with connections here: of those whose first session is in the next slots.
    fn list_users(&self, cursor: u32, zeros: u32, listed: &mut Listed) {
        let end = cursor.saturating_add(TURN_LISTED_MAX as u32);
        for at in cursor..end.min(self.clients.sessions.capacity() as u32) {
            let Some(session) = self.clients.sessions.get(at as usize) else { continue };
            let flags = session.flags;
            if flags.detached() || flags.hidden() || session.user_links.prev != NONE {
                continue;
            }
            let hash = self.cx.node.names.hash(&session.user);
            if hash.trailing_zeros() >= zeros {
                listed.users.push(hash);
            }
        }
        listed.next = ((end as usize) < self.clients.sessions.capacity()).then_some(end);
    }
}

/// Connections told of at a time, and subscriptions of each.
const INSPECTED_MAX: usize = 100;

/// Channels looked at for one list.
const TURN_LISTED_MAX: usize = 4096;
