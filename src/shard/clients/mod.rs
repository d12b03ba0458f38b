//! Clients: their sessions, their commands, and what these wait for.

pub(crate) mod commands;
pub(crate) mod connect;
pub(crate) mod finding;
pub mod proxies;
pub mod signatures;
pub(crate) mod subscribe;
pub(crate) mod tokens;

use std::collections::VecDeque;
use std::sync::Arc;

use compact_str::CompactString;
use slab::Slab;

use self::proxies::{Kept, Parked, Unasked};
use self::tokens::Check;
use super::context::Cx;
use super::net::accept::slots_max;
use crate::base::rng::Rng;
use crate::hub::users::Users;
use crate::session::{Headers, Session};
use crate::shard::BySlot;
use crate::shard::stats::ShardCounters;

/// The clients of one shard.
pub(crate) struct Clients {
    pub(crate) sessions: Slab<Session>,
    pub(crate) users: Users,
    /// Users named by a request header, by slot, until the client connects.
    pub(crate) header_users: BySlot<CompactString>,
    /// Headers of connections that proxies forward, by slot, until the client connects.
    pub(crate) headers: BySlot<Arc<Headers>>,
    /// Answers of the application to commands that connections are paused for, by slot.
    pub(crate) told: BySlot<VecDeque<Kept>>,
    /// Calls of the application that wait until others are answered.
    pub(crate) unasked: VecDeque<Unasked>,
    /// Commands that wait for the application while others of their connection go on, and how many of each.
    pub(crate) parked: Slab<Parked>,
    pub(crate) parked_of: BySlot<u32>,
    /// Connections of administrators, by slot; true once they are connected.
    pub(crate) admins: BySlot<bool>,
    /// Calls of the application that are not answered.
    pub(crate) proxy_questions: usize,
    /// Checks of tokens that connections are paused for, by slot.
    pub(crate) checks: BySlot<Check>,
    /// Spreads the first pings.
    pub(crate) rng: Rng,
}

impl Clients {
    /// No clients.
    pub(crate) fn new(cx: &Cx, rng: Rng) -> Self {
        Self {
            sessions: Slab::with_capacity(slots_max(&cx.node.options)),
            users: Users::default(),
            header_users: Default::default(),
            headers: Default::default(),
            told: Default::default(),
            unasked: VecDeque::new(),
            parked: Slab::new(),
            parked_of: Default::default(),
            admins: Default::default(),
            proxy_questions: 0,
            checks: Default::default(),
            rng,
        }
    }

    /// Gauges that are cheaper to read off than to keep.
    pub(crate) fn set_gauges(&self, counters: &ShardCounters) {
        counters.sessions_open.set(self.sessions.len() as u64);
        counters.users.set(self.users.len() as u64);
    }

    /// Everything that has to be empty when all connections have gone, and how much is in it.
    pub(crate) fn left(&self) -> [(&'static str, usize); 10] {
        [
            ("sessions", self.sessions.len()),
            ("users", self.users.len()),
            ("users by header", self.header_users.len()),
            ("token checks", self.checks.len()),
            ("administrators", self.admins.len()),
            ("headers kept", self.headers.len()),
            ("calls not sent", self.unasked.len()),
            ("parked commands", self.parked.len() + self.parked_of.len()),
            ("answers of the application", self.told.len()),
            ("calls not answered", self.proxy_questions),
        ]
    }
}
