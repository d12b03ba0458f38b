//! The home role: the one writer of its channels, and the keeper of its users and tokens.
//!
//! A home gets mail and sends mail: [`Home::handle`]. It knows neither connections nor sockets. Both halves
//! of a channel talk by mail only, also when home and subscribers are on one shard.

pub(crate) mod answers;
#[cfg(test)]
mod driven;
mod events;
mod followed;
pub(crate) mod handover;
pub(crate) mod image;
mod line;
mod occupancy;
mod operations;
mod ops;
mod presence;
mod publish;
mod reading;
mod remote;
mod room;
mod seam;
#[cfg(test)]
mod simulated;
mod subscribe;
mod tokens;
mod users;

use std::net::IpAddr;

use compact_str::CompactString;
use slab::Slab;

use self::answers::Answers;
use self::followed::Remote;
use self::seam::Turn;
use super::codec::Codec;
use super::context::Cx;
use super::mail::post::Post;
use super::mail::{Asker, List, Listed, Mail};
use crate::base::id::ShardId;
use crate::base::limits::{GOOD_TOKENS_MAX, RESULTS_BYTES_MAX, RESULTS_MAX};
use crate::base::rng::Rng;
use crate::edge::good_tokens::{GoodTokens, TokenDigest};
use crate::hub::broker::PresenceChange;
use crate::hub::delta::Patcher;
use crate::hub::home::Homes;
use crate::hub::results::Results;
use crate::hub::user_conns::UserConns;
use crate::shard::clients::signatures::{Interest, TokenKind};
use crate::shard::stats::ShardCounters;

/// Channels, users and tokens whose home is this shard.
pub(crate) struct Home {
    pub(crate) channels: Homes,
    patcher: Patcher,
    /// Connections of users.
    user_conns: UserConns,
    /// Results of publishes with an idempotency key.
    results: Results,
    /// Joins and leaves of this turn whose events are not sent yet.
    events: Vec<Event>,
    /// Encoded answers that more clients may need.
    answers: Answers,
    /// Tokens with a good signature.
    good_tokens: GoodTokens,
    /// Checks of signatures that the pool carries out.
    checks: Slab<OpenCheck>,
    /// Channels, or presence alone, that a broker beside this node keeps. `None`: this home keeps all itself,
    /// and every operation is done in the step that requests it.
    remote: Option<Box<Remote>>,
}

/// A client joined a channel or left it, and the subscribers have no event of it yet.
#[derive(Debug)]
struct Event {
    channel: CompactString,
    joined: bool,
    /// The client's packed info.
    info: Box<[u8]>,
}

/// A check of a signature that has begun.
#[derive(Debug)]
struct OpenCheck {
    from: ShardId,
    asker: Asker,
    /// The hash of the token.
    hash: u64,
    digest: TokenDigest,
    /// The keys that it was begun with.
    generation: u64,
    /// The address among whose checks it counts.
    counted: Option<IpAddr>,
}

/// A token whose signature is to be checked.
struct Verify {
    token: Box<str>,
    kind: TokenKind,
    asker: Asker,
    interest: Interest,
}

impl Home {
    /// No channels. The home of one of `shards` shards.
    pub(crate) fn new(cx: &Cx, shards: usize, rng: &mut Rng) -> Self {
        let homes_rng = Rng::new(rng.next_u64());
        let patcher = Patcher::new(rng.next_u64());
        let (names, idle_max) = (cx.node.names.clone(), cx.node.options.channels_idle_max);
        Self {
            channels: Homes::new(names, homes_rng, idle_max),
            patcher,
            user_conns: UserConns::default(),
            results: Results::new(RESULTS_MAX.div_ceil(shards), RESULTS_BYTES_MAX.div_ceil(shards)),
            events: Vec::new(),
            answers: Answers::default(),
            good_tokens: GoodTokens::new(GOOD_TOKENS_MAX.div_ceil(shards)),
            checks: Slab::new(),
            remote: Remote::new(&cx.node.options),
        }
    }

    /// Handles mail for a home. Other mail is ignored.
    pub(crate) fn handle(
        &mut self,
        cx: &Cx,
        from: ShardId,
        mail: Mail,
        out: &mut Post,
        codec: &mut Codec,
    ) {
        let mail = match &self.remote {
            None => mail,
            Some(_) => match self.take_operation(&mut Turn { cx, out, codec }, from, mail) {
                Some(mail) => mail,
                None => return,
            },
        };
        match mail {
            Mail::Subscribe(subscribe) => self.subscribe(cx, from, *subscribe, out),
            Mail::Unsubscribe(unsubscribe) => self.unsubscribe(cx, from, &unsubscribe, out),
            Mail::Publish(publish) => self.publish(cx, from, &publish, out, codec),
            Mail::Read(read) => self.read(cx, from, &read, out, codec),
            Mail::Reinform { channel, conn, info } => {
                if let Some((announces, info)) = self.reinform(cx, from, &channel, conn, &info) {
                    let entered = PresenceChange::Enter { announces };
                    self.share_presence(&CompactString::new(channel), entered, &info);
                }
            }
            Mail::Pass { order } => self.pass(cx, from, order, out),
            Mail::UserEnter(conn) => self.user_enter(cx, from, &conn, out),
            Mail::UserLeave { user, conn } => self.user_leave(from, &user, conn),
            Mail::Verify { token, kind, asker, interest } => {
                self.verify(cx, from, Verify { token, kind, asker, interest }, out);
            }
            Mail::Signed { ticket, signed } => self.signed(cx, ticket, signed, out),
            Mail::List(list) => self.list(cx, from, list, out),
            Mail::BrokerEvent(event) => {
                self.broker_event(&mut Turn { cx, out, codec }, from, *event);
            }
            other => debug_assert!(false, "not for a home: {other:?}"),
        }
    }

    /// Who is present changes in a channel that this home keeps itself, where a broker keeps presence.
    fn share_presence(&mut self, channel: &CompactString, change: PresenceChange, info: &[u8]) {
        if let Some(remote) = &mut self.remote {
            remote.changes.presence(channel, change, info);
        }
    }

    /// Answers with some of the channels here that have subscribers.
    fn list(&mut self, cx: &Cx, from: ShardId, list: List, out: &mut Post) {
        let mut listed = Box::<Listed>::default();
        listed.next = self.channels.list(list.cursor, CHANNELS_LISTED_MAX, |name, count| {
            listed.channels.push((CompactString::new(name), count));
        });
        out.send(cx, from, Mail::Listed { asker: list.asker, listed });
    }

    /// Begins a turn: patches have a budget for each.
    pub(crate) fn begin_turn(&mut self) {
        self.patcher.begin_turn();
    }

    /// No channel is known: nothing expires.
    pub(crate) fn is_empty(&self) -> bool {
        self.channels.is_empty() && self.remote.as_ref().is_none_or(|remote| remote.len() == 0)
    }

    /// Once a second: forgets what has expired, a bounded number each time.
    pub(crate) fn housekeeping(&mut self, cx: &Cx) {
        self.channels.sweep(cx.now, SWEEP_CHANNELS);
        self.answers.clear();
        self.good_tokens.sweep(cx.unix, SWEEP_TOKENS);
        self.results.expire(cx.now);
        self.mark_second();
    }

    /// Gauges that are cheaper to read off than to keep.
    pub(crate) fn set_gauges(&self, counters: &ShardCounters) {
        counters.channels_home.set(self.channels.len() as u64);
        counters.channels_idle.set(self.channels.idle() as u64);
        let kept = self.channels.kept();
        counters.history_publications.set(kept.publications as u64);
        counters.history_bytes.set(kept.bytes as u64);
        counters.tokens_remembered.set(self.good_tokens.len() as u64);
        counters.publishes_remembered.set(self.results.len() as u64);
        if let Some(remote) = &self.remote {
            counters.broker_channels.set(remote.len() as u64);
            counters.broker_waiting.set(remote.waiting.len() as u64);
            counters.broker_window_bytes.set(remote.window_bytes() as u64);
        }
    }

    /// The gauges of history, which decide which shard gives up how much.
    pub(crate) fn set_history_gauges(&self, counters: &ShardCounters) {
        counters.history_bytes.set(self.channels.kept().bytes as u64);
        counters.channels_idle.set(self.channels.idle() as u64);
    }

    /// Everything that has to be empty when all connections have gone, and how much is in it.
    pub(crate) fn left(&self) -> [(&'static str, usize); 6] {
        [
            ("channels with interested shards", self.channels.len() - self.channels.idle()),
            ("members", self.channels.members_of_all()),
            ("connections of users", self.user_conns.len()),
            ("joins and leaves", self.events.len()),
            ("checks in the pool", self.checks.len()),
            ("operations at the broker", self.remote.as_ref().map_or(0, |of| of.waiting.len())),
        ]
    }
}

/// Channels that one list looks at.
const CHANNELS_LISTED_MAX: usize = 4096;

/// Channels that one housekeeping looks at.
const SWEEP_CHANNELS: usize = 4096;

/// Remembered tokens that one housekeeping looks at.
const SWEEP_TOKENS: usize = 4096;

#[cfg(test)]
mod tests {
    use super::driven::{Driven, conn, with_history};
    use super::*;
    use crate::shard::mail::{Asker, ListOf};

    #[test]
    fn a_list_names_the_channels_with_subscribers() {
        let mut driven = Driven::with(with_history());
        driven.subscribes("news", 1);
        driven.subscribes("other", 2);
        driven.publishes("idle", "1");
        driven.sent_to(1);
        let list = List { asker: Asker::of(conn(9)), cursor: 0, of: ListOf::Channels };
        driven.handle(1, Mail::List(list));
        let Some(Mail::Listed { listed, .. }) = driven.sent_to(1).pop() else { panic!() };
        let mut channels = listed.channels;
        channels.sort();
        assert_eq!(channels, [("news".into(), 1), ("other".into(), 1)]);
        assert_eq!(listed.next, None);
    }

    #[test]
    fn housekeeping_forgets_expired_entries() {
        let mut driven = Driven::with(with_history());
        driven.publishes("news", "1");
        driven.sent_to(1);
        driven.home.set_gauges(driven.cx.counters());
        assert_eq!(driven.cx.counters().history_publications.get(), 1);
        driven.cx.now = driven.cx.now.after(700_000);
        driven.home.housekeeping(&driven.cx);
        driven.home.set_gauges(driven.cx.counters());
        assert!(driven.home.is_empty());
        assert_eq!(driven.cx.counters().history_publications.get(), 0);
    }
}
