//! The home role: the one writer of its channels, and the keeper of its users and tokens.

pub(crate) mod answers;
pub(crate) mod homes;
pub(crate) mod reading;

use slab::Slab;

use self::answers::Answers;
use self::homes::Event;
use super::clients::tokens::Question;
use super::context::Cx;
use crate::base::limits::{GOOD_TOKENS_MAX, RESULTS_BYTES_MAX, RESULTS_MAX};
use crate::base::rng::Rng;
use crate::edge::good_tokens::GoodTokens;
use crate::hub::delta::Patcher;
use crate::hub::home::Homes;
use crate::hub::results::Results;
use crate::hub::user_conns::UserConns;

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
}
