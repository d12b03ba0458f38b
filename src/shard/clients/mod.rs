//! Clients: their sessions, their commands, and what these wait for.

pub(crate) mod aside;
pub(crate) mod closes;
pub(crate) mod commands;
pub(crate) mod connect;
pub(crate) mod delivery;
pub(crate) mod due;
pub(crate) mod effects;
pub(crate) mod ending;
pub(crate) mod finding;
pub(crate) mod ids;
pub(crate) mod image;
pub(crate) mod lapses;
pub(crate) mod leave;
pub(crate) mod liveness;
pub(crate) mod mail;
pub(crate) mod notices;
pub(crate) mod polls;
pub(crate) mod positions;
pub mod proxies;
pub(crate) mod reading;
pub mod signatures;
pub(crate) mod subscribe;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod tokens;

use std::collections::VecDeque;
use std::sync::Arc;

use compact_str::CompactString;
use slab::Slab;

use self::aside::Asides;
use self::closes::Closes;
use self::ids::SealedIds;
use self::lapses::Lapses;
use super::context::Cx;
use crate::base::id::ConnKey;
use crate::edge::proxy::ProxyOptions;
use crate::hub::users::Users;
use crate::session::Session;
use crate::session::app::AppRequest;
use crate::shard::stats::ShardCounters;

/// The clients of one shard.
pub(crate) struct Clients {
    pub(crate) sessions: Slab<Session>,
    pub(crate) users: Users,
    /// Ids of those that publish.
    pub(crate) ids: SealedIds,
    /// The parts that few connections have, by slot.
    pub(crate) asides: Asides,
    /// Calls of the application that wait until others are answered.
    pub(crate) delayed: VecDeque<DelayedCall>,
    /// Commands that wait for the application while others of their connection go on.
    pub(crate) deferred: Slab<DeferredCommand>,
    /// Calls of the application that are not answered.
    pub(crate) calls: usize,
    /// The last closes, for the admin page.
    pub(crate) closes: Closes,
    /// Subscriptions that are out of position, and end soon.
    pub(crate) lapses: Lapses,
}

/// A command that waits for the application while others of its connection go on.
#[derive(Debug)]
pub(crate) struct DeferredCommand {
    conn: ConnKey,
    /// The channel that it is to subscribe to; empty for what is no subscribe.
    channel: CompactString,
    bytes: Box<[u8]>,
}

/// A call about a connection or a subscription that expires, which waits until others are answered.
#[derive(Debug)]
pub(crate) struct DelayedCall {
    conn: ConnKey,
    proxy: Arc<ProxyOptions>,
    call: AppRequest,
}

impl DeferredCommand {
    /// Whose it is.
    pub(crate) fn conn(&self) -> ConnKey {
        self.conn
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Clients {
    /// No clients.
    pub(crate) fn new(cx: &Cx) -> Self {
        Self {
            sessions: Slab::with_capacity(cx.node.options.slots_max()),
            users: Users::default(),
            ids: SealedIds::default(),
            asides: Asides::default(),
            delayed: VecDeque::new(),
            deferred: Slab::new(),
            calls: 0,
            closes: Closes::default(),
            lapses: Lapses::default(),
        }
    }

    /// Gauges that are cheaper to read off than to keep.
    pub(crate) fn set_gauges(&self, counters: &ShardCounters) {
        counters.sessions_open.set(self.sessions.len() as u64);
        counters.users.set(self.users.len() as u64);
        counters.subscriptions_lapsed.set(self.lapses.len() as u64);
    }

    /// Everything that has to be empty when all connections have gone, and how much is in it.
    pub(crate) fn left(&self) -> [(&'static str, usize); 6] {
        [
            ("sessions", self.sessions.len()),
            ("users", self.users.len()),
            ("kept beside sessions", self.asides.len()),
            ("delayed calls", self.delayed.len()),
            ("deferred commands", self.deferred.len()),
            ("calls not answered", self.calls),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::testing::session;
    use crate::shard::fixture::Plan;

    #[test]
    fn leftovers_of_clients_are_named() {
        let cx = Plan::default().cx();
        let mut clients = Clients::new(&cx);
        assert!(clients.left().iter().all(|(_, count)| *count == 0));
        clients.sessions.insert(session("alice"));
        clients.asides.entry(3).call = true;
        clients.calls += 1;
        let left: Vec<_> = clients.left().into_iter().filter(|(_, count)| *count > 0).collect();
        let expected = [("sessions", 1), ("kept beside sessions", 1), ("calls not answered", 1)];
        assert_eq!(left, expected);
        clients.set_gauges(cx.counters());
        assert_eq!(cx.counters().sessions_open.get(), 1);
    }
}
