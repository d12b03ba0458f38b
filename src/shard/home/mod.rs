//! The home role: the one writer of its channels, and the keeper of its users and tokens.

pub(crate) mod answers;
pub(crate) mod homes;
pub(crate) mod reading;

use slab::Slab;

use self::answers::Answers;
use self::homes::Event;
use super::clients::tokens::Question;
use super::context::Cx;
use super::mail::Mail;
use super::mail::post::Post;
use crate::base::limits::{GOOD_TOKENS_MAX, RESULTS_BYTES_MAX, RESULTS_MAX};
use crate::base::rng::Rng;
use crate::edge::good_tokens::GoodTokens;
use crate::hub::delta::Patcher;
use crate::hub::home::Homes;
use crate::hub::results::Results;
use crate::hub::user_conns::UserConns;
use crate::shard::stats::ShardCounters;

/// Channels, users and tokens whose home is this shard.
pub(crate) struct Home {
    pub(crate) homes: Homes,
    pub(crate) patcher: Patcher,
    /// Connections of users.
    pub(crate) user_conns: UserConns,
    /// Results of publishes with an idempotency key.
    pub(crate) results: Results,
    /// Joins and leaves of this turn that are not published yet.
    pub(crate) events: Vec<Event>,
    /// Encoded answers that others may want, too.
    pub(crate) answers: Answers,
    /// Tokens with a good signature.
    pub(crate) good_tokens: GoodTokens,
    /// Signatures that the pool checks.
    pub(crate) questions: Slab<(Question, u64)>,
}

impl Home {
    /// Sends the gaps of channels to shards that have room again.
    pub(crate) fn send_gaps(&mut self, out: &mut Post) {
        for to in out.receivers() {
            for channel in out.take_gaps(to) {
                let interests = self.homes.interests_mut(channel);
                // The channel may have lost that shard, or be another one by now.
                if let Some(interest) = interests.iter_mut().find(|i| i.shard == to && i.gap) {
                    interest.gap = false;
                    out.lane(to).push(Mail::Gap { local: interest.local });
                }
            }
        }
    }

    /// No channels. The home of one of `shards` shards.
    pub(crate) fn new(cx: &Cx, shards: usize, rng: &mut Rng) -> Self {
        let homes_rng = Rng::new(rng.next_u64());
        let patcher = Patcher::new(rng.next_u64());
        let (names, idle_max) = (cx.node.names.clone(), cx.node.options.channels_idle_max);
        Self {
            homes: Homes::new(names, homes_rng, idle_max),
            patcher,
            user_conns: UserConns::default(),
            results: Results::new(RESULTS_MAX.div_ceil(shards), RESULTS_BYTES_MAX.div_ceil(shards)),
            events: Vec::new(),
            answers: Answers::default(),
            good_tokens: GoodTokens::new(GOOD_TOKENS_MAX.div_ceil(shards)),
            questions: Slab::new(),
        }
    }

    /// Once a second: forgets what has expired, a bounded number each time.
    pub(crate) fn housekeeping(&mut self, cx: &Cx) {
        self.homes.sweep(cx.now, SWEEP_CHANNELS);
        self.answers.clear();
        self.good_tokens.sweep(cx.unix, SWEEP_TOKENS);
        self.results.expire(cx.now);
    }

    /// Gauges that are cheaper to read off than to keep.
    pub(crate) fn set_gauges(&self, counters: &ShardCounters) {
        counters.channels_home.set(self.homes.len() as u64);
        counters.channels_idle.set(self.homes.idle() as u64);
        let kept = self.homes.kept();
        counters.history_publications.set(kept.publications as u64);
        counters.history_bytes.set(kept.bytes as u64);
        counters.tokens_remembered.set(self.good_tokens.len() as u64);
        counters.publishes_remembered.set(self.results.len() as u64);
    }

    /// Everything that has to be empty when all connections have gone, and how much is in it.
    pub(crate) fn left(&self) -> [(&'static str, usize); 5] {
        [
            ("channels with interested shards", self.homes.len() - self.homes.idle()),
            ("members", self.homes.members_of_all()),
            ("connections of users", self.user_conns.len()),
            ("joins and leaves", self.events.len()),
            ("checks in the pool", self.questions.len()),
        ]
    }
}

/// Channels that one housekeeping looks at.
const SWEEP_CHANNELS: usize = 4096;

/// Remembered tokens that one housekeeping looks at.
const SWEEP_TOKENS: usize = 4096;
