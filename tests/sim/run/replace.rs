//! The node is replaced while it runs: all shards settle, are written to bytes, and go on as shards that
//! were made of these bytes, of a new node, and of the same sockets. Its clock begins anew. In some runs most of
//! the bytes are written and read before, in slices between turns, and only what has changed since follows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use roost::base::counters::Kind;
use roost::base::id::ShardId;
use roost::base::image::{Frames, ImageReader};
use roost::base::rng::Rng;
use roost::base::time::Millis;
use roost::edge::proxy::ProxyEvent;
use roost::io::Alarm;
use roost::io::sim::SimDriver;
use roost::shard::freeze::Thawing;
use roost::shard::handover::SliceMax;
use roost::shard::mail::{Letterbox, MailLane, Mailbox, Outside};
use roost::shard::settle::CALLS_MS;
use roost::shard::{NodeState, Seat, Secured, ShardCounters};

use super::{Awake, Report, Run, Runner, node_of};
use crate::client::Phase;
use crate::plan::Plan;

/// Milliseconds in which a node settles at most: the bound on calls, and time for what follows.
const SETTLE_MS: u64 = 3 * CALLS_MS;

/// Milliseconds by which the clock of the simulation is ahead of that of a new node at most.
const CLOCKS_APART_MS: u64 = 20_000;

/// The replacements of a run.
pub(super) struct Replacing {
    /// They are drawn apart, so that the rest of the run is as it would be without them.
    rng: Rng,
    /// One in so many steps.
    one_in: u64,
    /// What the node's clock is ahead of the simulation's, ms.
    pub(super) clock: i64,
    /// Counters of nodes before this one, and the number of replacements.
    pub(super) past: BTreeMap<&'static str, u64>,
    /// The field of the image that is forgotten, in an experiment.
    forget: Option<String>,
    /// The fields that images had.
    fields: BTreeSet<&'static str>,
    /// The next node, while its shards are made of slices.
    next: Option<Box<Next>>,
}

/// A node that is being made.
struct Next {
    node: Arc<NodeState>,
    clock: i64,
    letterboxes: Vec<Letterbox>,
    control: Mailbox,
    shards: Vec<Arriving>,
    /// Steps until it takes over, whatever has been copied.
    steps: u64,
}

/// A shard that is made of slices.
struct Arriving {
    thawing: Thawing<Secured<SimDriver>>,
    /// The moment from which times in the image are distances, by its own clock.
    moment: Millis,
    frames: Frames,
}

impl Arriving {
    /// Reads slices of a shard until there are no more, or `count`.
    fn take(&mut self, runner: &mut Runner, max: SliceMax, count: u64) -> Result<u64, String> {
        let mut bytes = 0;
        for _ in 0..count {
            let Some(slice) = runner.shard.handing_over().next_slice(max) else { break };
            // Sockets of a simulation have no copies: they come at the end.
            if slice.part.is_empty() {
                continue;
            }
            bytes += slice.part.len() as u64;
            let text = |broken: roost::base::image::Broken| format!("a slice: {broken}");
            let from = ImageReader::new(&slice.part, self.moment).map_err(text)?;
            let mut from = from.with_frames(std::mem::take(&mut self.frames));
            self.thawing.part(&mut from).map_err(text)?;
            self.frames = from.into_frames();
        }
        Ok(bytes)
    }
}

/// The result of a run in which a field of each image was forgotten.
pub(crate) struct Forgotten {
    /// Whether nothing was noticed.
    pub(crate) result: Result<Report, String>,
    /// The fields that images had.
    pub(crate) fields: BTreeSet<&'static str>,
}

impl Run {
    /// Everything that `seed` means, with replacements.
    pub(crate) fn replaced(seed: u64) -> Result<Report, String> {
        Self::with_replacements(seed, None).report()
    }

    /// The same with a field of each image forgotten.
    pub(crate) fn forgetting(seed: u64, field: &str) -> Forgotten {
        let mut run = Self::with_replacements(seed, Some(field.to_owned()));
        let report = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run.report()));
        let result = report.unwrap_or_else(|_| Err("it panicked".into()));
        let fields = run.replacing.take().map(|replacing| replacing.fields).unwrap_or_default();
        Forgotten { result, fields }
    }

    fn with_replacements(seed: u64, forget: Option<String>) -> Self {
        let mut rng = Rng::new(seed);
        let mut plan = Plan::draw(&mut rng).with_tls(seed);
        let mut apart = Rng::new(seed ^ 0x7265_706c_6163_6564);
        // Filters, deltas and expiring tokens are in each plan; what only some have is drawn once more.
        plan.proxy_some(&mut apart);
        let mut run = Self::with(plan, rng);
        let one_in = [300, 1_000, 4_000][apart.below(3) as usize];
        run.replacing = Some(Replacing {
            rng: apart,
            one_in,
            clock: 0,
            past: BTreeMap::new(),
            forget,
            fields: BTreeSet::new(),
            next: None,
        });
        run
    }

    /// Whether it is time for another node. One whose shards are made of slices gets a few in each step before.
    pub(super) fn is_to_be_replaced(&mut self) -> Result<bool, String> {
        let may = self.phase <= Phase::Quiet && !self.draining;
        let Some(replacing) = &mut self.replacing else { return Ok(false) };
        if !may {
            self.drop_next();
            return Ok(false);
        }
        if let Some(next) = &mut replacing.next {
            let rng = &mut replacing.rng;
            let at = rng.below(self.shards.len() as u64) as usize;
            let bytes = [1, 500, 10_000][rng.below(3) as usize];
            let max = SliceMax { entries: 1 + rng.below(20) as usize, sockets: 5, bytes };
            let copied = next.shards[at].take(&mut self.shards[at], max, rng.below(4))?;
            *replacing.past.entry("copied_bytes").or_insert(0) += copied;
            if rng.one_in(50) {
                self.shards[at].shard.handing_over().begin_again();
            }
            next.steps = next.steps.saturating_sub(1);
            return Ok(next.steps == 0);
        }
        if !replacing.rng.one_in(replacing.one_in) {
            return Ok(false);
        }
        // An experiment forgets a field of one image.
        if replacing.forget.is_some() || replacing.rng.one_in(3) {
            return Ok(true);
        }
        self.begin_next();
        Ok(false)
    }

    /// A new process begins, and shards begin to be written for it.
    fn begin_next(&mut self) {
        let Some(mut replacing) = self.replacing.take() else { return };
        let now = self.world.borrow().now().0;
        let clock = 1 + replacing.rng.below(CLOCKS_APART_MS) as i64 - now as i64;
        let steps = 1 + replacing.rng.below(400);
        let mut next = self.next_node(&mut replacing, clock, steps);
        for (runner, arriving) in self.shards.iter_mut().zip(&mut next.shards) {
            let moment = runner.shard.handing_over().begin_copy();
            // By the clock of the simulation, and by its own.
            let moment = moment.0 as i64 - replacing.clock + clock;
            arriving.moment = Millis(moment.max(0) as u64);
        }
        replacing.next = Some(Box::new(next));
        self.replacing = Some(replacing);
    }

    /// The new process fails while its shards are made.
    fn drop_next(&mut self) {
        if let Some(replacing) = &mut self.replacing
            && replacing.next.take().is_some()
        {
            self.shards.iter_mut().for_each(|runner| runner.shard.go_on());
        }
    }

    /// A node of which nothing has come.
    fn next_node(&self, replacing: &mut Replacing, clock: i64, steps: u64) -> Next {
        let now = self.world.borrow().now().0;
        let node = node_of(&self.plan, self.names, replacing.rng.next_u64());
        let ids: Vec<ShardId> = (0..self.plan.sizes.shards).map(|at| ShardId(at as u8)).collect();
        let (letterboxes, mailboxes): (Vec<_>, Vec<_>) = ids
            .iter()
            .map(|id| {
                let alarm = Alarm::new(self.world.borrow().waker(*id));
                Mailbox::new(self.plan.mailbox_batches[id.index()], alarm)
            })
            .unzip();
        let (outside, control) =
            Mailbox::new(self.plan.mailbox_batches[0], Alarm::new(Arc::new(Awake)));
        let shards = ids.into_iter().zip(mailboxes).map(|(id, mailbox)| {
            let seat = Seat {
                shard: id,
                mailbox,
                letterboxes: letterboxes.clone(),
                outside: Outside::new(outside.clone()),
                seed: replacing.rng.next_u64(),
            };
            let driver = Secured::new(SimDriver::with_clock(&self.world, id, clock), &node, id);
            let thawing = Thawing::new(Arc::clone(&node), seat, driver, || {});
            let moment = super::shifted(Millis(now), clock);
            Arriving { thawing, moment, frames: Frames::default() }
        });
        let shards = shards.collect();
        Next { node, clock, letterboxes, control, shards, steps }
    }

    /// Settles all shards, freezes them, and goes on with others.
    pub(super) fn replace(&mut self) -> Result<(), String> {
        for runner in &mut self.shards {
            runner.shard.settle()?;
        }
        if let Some(turns) = self.fails_early() {
            self.settle(turns)?;
            self.replacing.iter_mut().for_each(|replacing| replacing.next = None);
            self.shards.iter_mut().for_each(|runner| runner.shard.go_on());
            return Ok(());
        }
        let slow = self.replacing.as_mut().is_some_and(|replacing| replacing.rng.one_in(3));
        if slow {
            // The application doesn't answer in time.
            self.control.telling.iter_mut().for_each(|(due, _, _)| *due += 60_000);
        }
        let begun = self.world.borrow().now().0;
        let has_settled = self.settle(u64::MAX)?;
        // Later on calls have failed, and their connections are closed by those that go on.
        let is_early = self.world.borrow().now().0 < begun + CALLS_MS;
        match has_settled {
            true if is_early && !slow && self.is_given_up() => self.go_on(),
            true => self.freeze_and_thaw(),
            false => Err(format!(
                "the node doesn't settle: {:?}",
                self.shards.iter().map(|runner| runner.shard.unsettled()).collect::<Vec<_>>()
            )),
        }
    }

    /// The new process fails before the node has settled: after so many turns, if it does.
    fn fails_early(&mut self) -> Option<u64> {
        let replacing = self.replacing.as_mut()?;
        if replacing.forget.is_some() || !replacing.rng.one_in(6) {
            return None;
        }
        *replacing.past.entry("given_up_early").or_insert(0) += 1;
        Some(replacing.rng.below(6))
    }

    /// Whether the new process fails before it has taken over.
    fn is_given_up(&mut self) -> bool {
        let replacing = self.replacing.as_mut();
        // A forgotten field shows only where an image is read.
        replacing.is_some_and(|replacing| replacing.forget.is_none() && replacing.rng.one_in(4))
    }

    /// All shards are written, and go on themselves.
    fn go_on(&mut self) -> Result<(), String> {
        // What was made of slices is dropped.
        self.replacing.iter_mut().for_each(|replacing| replacing.next = None);
        for runner in &mut self.shards {
            let image = runner
                .shard
                .handing_over()
                .image()
                .map_err(|left| format!("not written: {left:?}"))?;
            let again = runner
                .shard
                .handing_over()
                .image()
                .map_err(|left| format!("not written: {left:?}"))?;
            if image != again {
                return Err("a shard changes when it is written".into());
            }
        }
        self.shards.iter_mut().for_each(|runner| runner.shard.go_on());
        if let Some(replacing) = &mut self.replacing {
            *replacing.past.entry("given_up").or_insert(0) += 1;
        }
        Ok(())
    }

    /// Gives the shards turns until they have settled, so many at most. Clients go on meanwhile.
    fn settle(&mut self, turns_max: u64) -> Result<bool, String> {
        let begun = self.world.borrow().now().0;
        let mut turns = 0;
        loop {
            let now = self.world.borrow().now().0;
            turns += 1;
            if now >= begun + SETTLE_MS || turns > turns_max {
                return Ok(false);
            }
            let clock = self.replacing.as_ref().map_or(0, |replacing| replacing.clock);
            for runner in &mut self.shards {
                runner.shard.turn_after(Some(super::shifted(Millis(now), clock)));
                (runner.waits, runner.starved_until) = (None, 0);
            }
            self.answers_to_control()?;
            let shards = self.shards.iter().all(|runner| runner.shard.unsettled().is_empty());
            let lanes = self.control.outboxes.iter().all(MailLane::is_empty);
            if shards && lanes && self.control.asked.is_empty() {
                return Ok(true);
            }
            let Some(replacing) = &mut self.replacing else { return Ok(false) };
            if replacing.rng.one_in(3) {
                self.world.borrow_mut().advance_to(Millis(now + 1));
            }
            let Some(replacing) = &mut self.replacing else { return Ok(false) };
            let at = replacing.rng.below(self.clients.len() as u64) as usize;
            if self.clients[at].is_ready(&self.world.borrow()) {
                self.with_client(at, |client, scene| client.step(scene))?;
            }
        }
    }

    fn freeze_and_thaw(&mut self) -> Result<(), String> {
        let Some(mut replacing) = self.replacing.take() else { return Ok(()) };
        for counters in &self.node.counters {
            let mut kinds = ShardCounters::FIGURES.iter();
            counters.each(|name, value| {
                if kinds.next().is_some_and(|figure| figure.kind == Kind::Counter) {
                    *replacing.past.entry(name).or_insert(0) += value;
                }
            });
        }
        *replacing.past.entry("replacements").or_insert(0) += 1;
        let is_copied = replacing.next.is_some();
        let mut next = match replacing.next.take() {
            Some(next) => *next,
            None => {
                let now = self.world.borrow().now().0;
                let clock = 1 + replacing.rng.below(CLOCKS_APART_MS) as i64 - now as i64;
                self.next_node(&mut replacing, clock, 0)
            }
        };
        if is_copied {
            *replacing.past.entry("copied").or_insert(0) += 1;
        }
        let mut frozen = Vec::new();
        for (mut runner, arriving) in
            std::mem::take(&mut self.shards).into_iter().zip(&mut next.shards)
        {
            if is_copied {
                let begun = runner.shard.handing_over().begin_last();
                begun.map_err(|left| format!("not frozen: {left:?}"))?;
                arriving.take(&mut runner, SliceMax::NONE, u64::MAX)?;
            }
            let shard =
                runner.shard.freeze().map_err(|(_, left)| format!("not frozen: {left:?}"))?;
            *replacing.past.entry("replaced_bytes").or_insert(0) += shard.image.len() as u64;
            *replacing.past.entry("replaced_sockets").or_insert(0) += shard.sockets.len() as u64;
            frozen.push(shard);
        }
        // What the application says to the old node is lost with that.
        self.control.telling.retain(|(_, _, told)| {
            !matches!(
                told.event,
                ProxyEvent::Connect
                    | ProxyEvent::Subscribe
                    | ProxyEvent::Publish
                    | ProxyEvent::Rpc
                    | ProxyEvent::Refresh
                    | ProxyEvent::SubRefresh
            )
        });
        let (beside, draining) =
            (self.node.memory.used(), self.node.draining.load(Ordering::Relaxed));
        debug_assert!(!draining);
        let Next { node, clock, letterboxes, control, shards, .. } = next;
        (replacing.clock, self.node, self.letterboxes) = (clock, node, letterboxes);
        if self.plan.short_of_memory && beside > self.node.memory.limit() {
            self.node.memory.set_beside(i64::MAX / 2);
        }
        self.control.mailbox = control;
        self.control.outboxes = self.letterboxes.iter().cloned().map(MailLane::new).collect();
        for (mut arriving, frozen) in shards.into_iter().zip(frozen) {
            let made = (|| {
                for (key, socket) in frozen.sockets {
                    arriving.thawing.socket(key, socket)?;
                }
                if !is_copied {
                    let mut image = match &replacing.forget {
                        None => ImageReader::new(&frozen.image, arriving.moment),
                        Some(field) => {
                            ImageReader::forgetting(&frozen.image, arriving.moment, field)
                        }
                    }?;
                    let read = arriving.thawing.part(&mut image);
                    replacing.fields.extend(image.fields_met());
                    read?;
                }
                arriving.thawing.end()
            })();
            match made {
                Ok(shard) => self.shards.push(Runner {
                    shard,
                    waits: None,
                    starved_until: 0,
                    stopped: false,
                }),
                Err(broken) => {
                    self.replacing = Some(replacing);
                    return Err(format!("not thawed: {broken}"));
                }
            }
        }
        self.replacing = Some(replacing);
        Ok(())
    }
}
