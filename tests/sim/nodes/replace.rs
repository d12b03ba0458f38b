//! A node is replaced by another process while clients, Redis and other nodes go on: that one listens to all channels
//! beside it, a fence divides what Redis delivers to both, and shards are made of what they were. The order is that
//! of `src/node/takeover/outgoing.rs`. Everything that goes wrong meanwhile ends the attempt, and the node goes on.

use std::collections::BTreeMap;
use std::sync::Arc;

use roost::base::image::{Broken as BrokenImage, Frames, ImageReader};
use roost::base::rng::Rng;
use roost::base::time::Millis;
use roost::io::sim::SimDriver;
use roost::shard::freeze::Thawing;
use roost::shard::handover::SliceMax;
use roost::shard::settle::CALLS_MS;

use super::node::{Begun, Node, Runner};
use super::plan::NodesPlan;
use super::redis::Redis;
use super::truth::{Broken, Rule, broken};

/// Milliseconds in which the next process listens to all channels, shards settle, and fences come.
const LISTENING_MS: u64 = 30_000;
const SETTLED_MS: u64 = 3 * CALLS_MS;
const CHANGES_MS: u64 = 2_000;

/// Signs are so far apart.
const SIGNS_APART_MS: u64 = 50;

/// How far an attempt has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The next process begins to listen to all channels.
    Listens,
    /// Shards are written while they run: so many slices are left.
    Copies(u64),
    /// Messages are counted from now on: where a fence alone divides nothing.
    Marks,
    /// The next process keeps them.
    Keeps,
    Settles,
    /// The next process listens to channels that came since.
    ListensAgain,
    /// Fences, and all that came before them.
    Fences,
}

/// A shard that is made of slices.
struct Arriving {
    thawing: Thawing<SimDriver>,
    moment: Millis,
    frames: Frames,
}

/// A process that is to take the place of another one.
pub(crate) struct Next {
    begun: Begun,
    shards: Vec<Arriving>,
    stage: Stage,
    until: u64,
    signed_until: u64,
    key: u64,
    /// Shards are written while they run.
    is_copied: bool,
    rng: Rng,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The next process runs. Figures of the one before.
    Replaced(BTreeMap<&'static str, u64>),
    /// The node goes on.
    GoesOn,
}

impl Node {
    /// Another process begins to take this one's place.
    pub(crate) fn begin_next(&mut self, plan: &NodesPlan, now: u64, rng: &mut Rng) {
        if self.next.is_some() || self.is_draining || !self.carrier.is_up() {
            return;
        }
        let mut begun = Begun::new(plan, (self.at, self.process), &self.world, self.names, rng);
        let key = 1 + rng.below(u64::MAX - 1);
        begun.carrier = begun.carrier.join(key);
        let shards = std::mem::take(&mut begun.seats).into_iter().map(|seat| {
            let driver = SimDriver::new(&self.world, seat.shard);
            let thawing = Thawing::new(Arc::clone(&begun.state), seat, driver, || {});
            Arriving { thawing, moment: Millis(now), frames: Frames::default() }
        });
        let (shards, is_copied) = (shards.collect(), rng.below(3) > 0);
        let (stage, until, rng) = (Stage::Listens, now + LISTENING_MS, Rng::new(rng.next_u64()));
        let signed_until = 0;
        let next = Next { begun, shards, stage, until, signed_until, key, is_copied, rng };
        self.next = Some(Box::new(next));
        self.share_names();
    }

    /// The next process listens to what the homes listen to.
    fn share_names(&mut self) {
        let Some(next) = &mut self.next else { return };
        for (home, runner) in self.shards.iter_mut().enumerate() {
            next.begun.carrier.share(home, runner.shard.handing_over().channel_names());
        }
    }

    /// Goes on with an attempt; its outcome, once.
    pub(crate) fn step_next(
        &mut self,
        now: u64,
        redis: &mut Redis,
    ) -> Result<Option<Outcome>, Broken> {
        let Some(next) = &mut self.next else { return Ok(None) };
        let carrier = &mut next.begun.carrier;
        if carrier.next_at(redis).is_some_and(|at| at <= now) {
            carrier.step(now, redis);
        }
        carrier.drop_early();
        if self.paused_until > now {
            return Ok(None);
        }
        let fails = now >= next.until || carrier.is_lost() || next.rng.one_in(2_000);
        if fails || self.is_draining || !self.carrier.is_up() {
            self.drop_next(now, redis);
            return Ok(Some(Outcome::GoesOn));
        }
        let (is_ready, is_fenced) = (carrier.listens(), carrier.is_fenced());
        let (stage, is_copied) = (next.stage, next.is_copied);
        match stage {
            Stage::Listens if !is_ready => {}
            Stage::Listens if is_copied => self.begin_copies(),
            Stage::Listens | Stage::Copies(0) => {
                let key = self.go_to(Stage::Marks, now + LISTENING_MS);
                if !self.carrier.mark(now, key) {
                    return self.settle_for_next(now, redis);
                }
                self.wait_for_next(now);
            }
            Stage::Marks | Stage::Keeps if now < next.signed_until => {}
            Stage::Marks => {
                let key = self.go_to(Stage::Keeps, now + LISTENING_MS);
                self.carrier.keep(now, key);
                self.wait_for_next(now);
            }
            Stage::Keeps => return self.settle_for_next(now, redis),
            Stage::Copies(left) => self.copy_some(left)?,
            // The shards have turns in any stage from here on: they are probed.
            Stage::Settles => {
                if self.has_settled(now) {
                    self.share_names();
                    self.go_to(Stage::ListensAgain, now + CHANGES_MS);
                }
            }
            Stage::ListensAgain => {
                self.has_settled(now);
                if is_ready {
                    let key = self.go_to(Stage::Fences, now + SETTLED_MS);
                    self.shards.iter_mut().for_each(|of| of.shard.handing_over().fence(key));
                }
            }
            Stage::Fences => {
                if self.has_settled(now) && is_fenced {
                    return self.freeze_for_next(now, redis).map(Some);
                }
            }
        }
        Ok(None)
    }

    /// The next sign comes some time behind the last one.
    fn wait_for_next(&mut self, now: u64) {
        if let Some(next) = &mut self.next {
            next.signed_until = now + SIGNS_APART_MS;
        }
    }

    /// Goes to a stage that ends in time. Returns the key of the attempt.
    fn go_to(&mut self, stage: Stage, until: u64) -> u64 {
        let Some(next) = &mut self.next else { return 0 };
        (next.stage, next.until) = (stage, until);
        next.key
    }

    fn begin_copies(&mut self) {
        let Some(next) = &mut self.next else { return };
        (next.stage, next.until) = (Stage::Copies(1 + next.rng.below(300)), u64::MAX);
        for (runner, arriving) in self.shards.iter_mut().zip(&mut next.shards) {
            arriving.moment = runner.shard.handing_over().begin_copy();
        }
    }

    /// A few slices of some shard.
    fn copy_some(&mut self, left: u64) -> Result<(), Broken> {
        let Some(next) = &mut self.next else { return Ok(()) };
        next.stage = Stage::Copies(left - 1);
        let at = next.rng.below(self.shards.len() as u64) as usize;
        let (count, bytes) = (next.rng.below(4), [1, 500, 10_000][left as usize % 3]);
        let max = SliceMax { entries: 1 + next.rng.below(20) as usize, sockets: 5, bytes };
        next.shards[at].take(&mut self.shards[at], max, count)?;
        if next.rng.one_in(50) {
            self.shards[at].shard.handing_over().begin_again();
        }
        Ok(())
    }

    fn settle_for_next(&mut self, now: u64, redis: &mut Redis) -> Result<Option<Outcome>, Broken> {
        self.hold_requests();
        if self.shards.iter_mut().any(|runner| runner.shard.settle().is_err()) {
            self.drop_next(now, redis);
            return Ok(Some(Outcome::GoesOn));
        }
        self.go_to(Stage::Settles, now + SETTLED_MS);
        Ok(None)
    }

    /// Gives each shard a turn. Whether nothing is under way then.
    fn has_settled(&mut self, now: u64) -> bool {
        for runner in &mut self.shards {
            runner.shard.turn_after(Some(Millis(now)));
            runner.waits = None;
        }
        self.is_quiet()
    }

    /// The next process fails, and this one goes on.
    pub(super) fn drop_next(&mut self, now: u64, redis: &mut Redis) {
        let Some(mut next) = self.next.take() else { return };
        next.begun.carrier.end(redis);
        for runner in &mut self.shards {
            runner.shard.go_on();
            runner.waits = None;
        }
        self.release_requests(now);
    }

    /// The next process is made of this one, and runs.
    fn freeze_for_next(&mut self, now: u64, redis: &mut Redis) -> Result<Outcome, Broken> {
        let Some(next) = self.next.take() else { return Ok(Outcome::GoesOn) };
        let Next { mut begun, shards, is_copied, .. } = *next;
        let mut past = self.figures();
        self.carrier.figures.iter().for_each(|(name, value)| _ = past.insert(name, *value));
        let mut made = Vec::new();
        for (mut runner, mut arriving) in std::mem::take(&mut self.shards).into_iter().zip(shards) {
            if is_copied {
                let last = runner.shard.handing_over().begin_last();
                last.map_err(|left| (Rule::Rest, format!("not frozen: {left:?}")))?;
                arriving.take(&mut runner, SliceMax::NONE, u64::MAX)?;
            }
            let frozen = runner.shard.freeze();
            let frozen =
                frozen.map_err(|(_, left)| (Rule::Rest, format!("not frozen: {left:?}")))?;
            let thaw = || -> Result<_, BrokenImage> {
                for (key, socket) in frozen.sockets {
                    arriving.thawing.socket(key, socket)?;
                }
                if !is_copied {
                    let mut from = ImageReader::new(&frozen.image, Millis(now))?;
                    arriving.thawing.part(&mut from)?;
                }
                arriving.thawing.end()
            };
            match thaw() {
                Ok(shard) => made.push(Runner { shard, waits: None, stopped: false }),
                Err(why) => return broken(Rule::Rest, format!("not thawed: {why}")),
            }
        }
        begun.carrier.joined();
        self.become_next(begun, made).end(redis);
        self.release_requests(now);
        Ok(Outcome::Replaced(past))
    }
}

impl Arriving {
    /// Reads slices of a shard until there are no more, or `count`.
    fn take(&mut self, runner: &mut Runner, max: SliceMax, count: u64) -> Result<(), Broken> {
        for _ in 0..count {
            let Some(slice) = runner.shard.handing_over().next_slice(max) else { break };
            // Sockets of a simulation have no copies: they come at the end.
            if slice.part.is_empty() {
                continue;
            }
            let text = |why: BrokenImage| (Rule::Rest, format!("a slice: {why}"));
            let from = ImageReader::new(&slice.part, self.moment).map_err(text)?;
            let mut from = from.with_frames(std::mem::take(&mut self.frames));
            self.thawing.part(&mut from).map_err(text)?;
            self.frames = from.into_frames();
        }
        Ok(())
    }
}
