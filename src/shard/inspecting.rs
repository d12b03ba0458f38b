//! Connections as the control thread looks at them: by user, client id, channel or address, the largest queues, the
//! newest, and the last closes.
//!
//! What no index answers is looked for in slices: one question looks at a bounded number of connections and returns
//! where to go on, so that a shard with a million of them has its turns in between. The best of a slice come back,
//! and the control thread says with the next question what would be too little.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;

use compact_str::CompactString;

use crate::base::expiry::Expiry;
use crate::base::id::ConnKey;
use crate::io::Driver;
use crate::session::SubState;
use crate::shard::mail::{Inspect, Inspected, Inspecting, Seen, SeenSub};
use crate::shard::net::timers::seconds_of;
use crate::shard::orders::Subjects;
use crate::shard::outlets::Outlets;

/// Connections in one answer, and subscriptions of each.
const INSPECTED_MAX: usize = 100;

/// Connections that one question looks at.
const SLICE_CONNECTIONS: u32 = 4096;

/// The same where the kernel has to say the address of each.
const SLICE_ADDRESSES: u32 = 512;

/// Places of connections, free ones included, that one question passes.
const SLICE_PLACES: u32 = 65_536;

impl Subjects<'_> {
    /// Answers a question.
    pub(crate) fn inspect<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        inspect: &Inspect,
    ) -> Inspected {
        let max = usize::from(inspect.max).min(INSPECTED_MAX);
        match &inspect.of {
            Inspecting::User(user) => {
                // A user may have more connections than are wanted, the anonymous one a million.
                let keys =
                    self.clients.connections_of(out.cx, out.net, Some(user), "", "", max + 1);
                self.seen(out, keys, max)
            }
            Inspecting::Client(client) => {
                let keys = self.clients.connections_of(out.cx, out.net, None, client, "", 1);
                self.seen(out, keys, max)
            }
            Inspecting::Channel(channel) => self.subscribers(out, channel, inspect.cursor, max),
            Inspecting::Closes(of) => {
                let (closes, found) = self.clients.closes.find(of, max);
                Inspected { closes, found, ..Inspected::default() }
            }
            Inspecting::Address(_) | Inspecting::Queues | Inspecting::Newest => {
                self.best(out, inspect, max)
            }
        }
    }

    /// Connections that an index has found.
    fn seen<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        mut keys: Vec<ConnKey>,
        max: usize,
    ) -> Inspected {
        let found = keys.len() as u64;
        keys.truncate(max);
        let connections = keys.into_iter().filter_map(|key| self.inspect_one(out, key)).collect();
        Inspected { connections, found, ..Inspected::default() }
    }

    /// Subscribers of a channel here, from a place of its list on.
    fn subscribers<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        channel: &str,
        cursor: u32,
        max: usize,
    ) -> Inspected {
        let local = self.side.locals.find(channel).and_then(|at| self.side.locals.get(at));
        let Some(local) = local else { return Inspected::default() };
        let places = local.subscribers.places();
        let end = cursor.saturating_add(SLICE_CONNECTIONS).min(places);
        let mut conns = Vec::new();
        let mut at = cursor;
        while at < end && conns.len() < max {
            conns.extend(local.subscribers.get(at).map(|subscriber| subscriber.conn));
            at += 1;
        }
        let keys = conns.into_iter().filter_map(|conn| Some(out.net.at(conn)?.key(conn))).collect();
        let next = Some(at).filter(|at| *at < places);
        Inspected { next, ..self.seen(out, keys, max) }
    }

    /// The connections of a slice that rank highest.
    fn best<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        inspect: &Inspect,
        max: usize,
    ) -> Inspected {
        let slots = out.net.slots_end();
        let slice = match inspect.of {
            Inspecting::Address(_) => SLICE_ADDRESSES,
            _ => SLICE_CONNECTIONS,
        };
        let end = inspect.cursor.saturating_add(SLICE_PLACES).min(slots);
        let (mut best, mut found, mut looked) = (BinaryHeap::new(), 0, 0);
        let mut at = inspect.cursor;
        while at < end && looked < slice {
            looked += u32::from(out.net.at(at).is_some());
            if let Some(rank) = self.rank(out, at, &inspect.of) {
                found += 1;
                best.push(Reverse((rank, at)));
                if best.len() > max || rank < inspect.floor {
                    best.pop();
                }
            }
            at += 1;
        }
        let best = best.into_sorted_vec();
        let keys = best.into_iter().filter_map(|Reverse((_, at))| Some(out.net.at(at)?.key(at)));
        let keys = keys.collect();
        let next = Some(at).filter(|at| *at < slots);
        Inspected { next, found, ..self.seen(out, keys, max) }
    }

    /// How far up a connection stands; `None`: it isn't wanted.
    fn rank<D: Driver>(
        &mut self,
        out: &Outlets<'_, D>,
        index: u32,
        of: &Inspecting,
    ) -> Option<u64> {
        let since = out.net.at(index)?.since_tick;
        let session = self.clients.session_of(out.net, index)?;
        if session.flags.hidden() || session.flags.detached() {
            return None;
        }
        match of {
            Inspecting::Address(address) => {
                let is_theirs = out.net.client_address(index) == Some(*address);
                is_theirs.then_some(since.into())
            }
            Inspecting::Queues => Some(out.net.queued_for(index) as u64).filter(|bytes| *bytes > 0),
            _ => Some(since.into()),
        }
    }

    fn inspect_one<D: Driver>(&mut self, out: &mut Outlets<'_, D>, key: ConnKey) -> Option<Seen> {
        let client = CompactString::new(out.cx.client_id(key).text().as_str());
        let conn = out.net.conn(key)?;
        let (form, paused, since) = (conn.form, conn.flags.paused(), conn.since_tick);
        let queued_bytes = out.net.queued_for(key.index);
        let address: Option<IpAddr> = out.net.client_address(key.index);
        let session = self.clients.session_of(out.net, key.index)?;
        // While a pong is due the byte is the beginning of the ping.
        let round_trip = Some(session.round_trip).filter(|_| !session.flags.pong_due());
        let subs = session.subs.as_slice().iter().take(INSPECTED_MAX);
        let named = subs.filter_map(|sub| {
            let channel = self.side.locals.get(sub.channel)?.name.clone();
            let (server, positioned) = (sub.flags.server(), sub.flags.positioned());
            Some(SeenSub { channel, live: sub.state == SubState::Live, server, positioned })
        });
        let named = named.collect();
        Some(Seen {
            client,
            user: session.user.clone(),
            address,
            form,
            software: session.software,
            since_tick: since,
            age_s: seconds_of(out.cx.tick().saturating_sub(since)),
            round_trip_ms: round_trip.and_then(|trip| trip.millis()),
            paused,
            queued_bytes,
            unanswered: session.unanswered,
            expires: session.expires.map_or(0, Expiry::seconds),
            subscriptions: session.subs.len(),
            named,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::clients::testing::Scene;
    use crate::shard::fixture::Plan;
    use crate::shard::mail::Asker;

    fn look(scene: &mut Scene, key: ConnKey, of: Inspecting, cursor: u32, floor: u64) -> Inspected {
        let inspect = Inspect { asker: Asker::of(key), of, cursor, floor, max: 2 };
        scene.with(|clients, out, side| Subjects { clients, side }.inspect(out, &inspect))
    }

    fn users(inspected: &Inspected) -> Vec<&str> {
        inspected.connections.iter().map(|seen| seen.user.as_str()).collect()
    }

    #[test]
    fn connections_are_found_by_user_client_and_channel() {
        let mut scene = Scene::new(Plan::default());
        let (_, key, _) = scene.subscriber("alice", "news");
        scene.client("bob");
        let alice = look(&mut scene, key, Inspecting::User("alice".into()), 0, 0);
        assert_eq!(users(&alice), ["alice"]);
        assert_eq!(alice.connections[0].named[0].channel, "news");
        let client = alice.connections[0].client.clone();
        assert_eq!(users(&look(&mut scene, key, Inspecting::Client(client), 0, 0)), ["alice"]);
        let unknown = Inspecting::Client("unknown".into());
        assert_eq!(look(&mut scene, key, unknown, 0, 0).found, 0);
        let news = look(&mut scene, key, Inspecting::Channel("news".into()), 0, 0);
        assert_eq!((users(&news), news.next), (vec!["alice"], None));
        assert_eq!(look(&mut scene, key, Inspecting::Channel("other".into()), 0, 0).found, 0);
    }

    #[test]
    fn the_newest_come_first_and_all_are_counted() {
        let mut scene = Scene::new(Plan::default());
        let mut last = None;
        for (at, user) in ["a", "b", "c"].into_iter().enumerate() {
            let (_, key) = scene.client(user);
            scene.wired.net.conn(key).unwrap().since_tick = 10 + at as u32;
            last = Some(key);
        }
        let key = last.unwrap();
        let newest = look(&mut scene, key, Inspecting::Newest, 0, 0);
        assert_eq!((users(&newest), newest.found), (vec!["c", "b"], 3));
        // What would be too little stays away.
        assert_eq!(users(&look(&mut scene, key, Inspecting::Newest, 0, 12)), ["c"]);
        assert_eq!(look(&mut scene, key, Inspecting::Queues, 0, 0).found, 0);
    }
}
