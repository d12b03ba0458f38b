//! The node is replaced while it runs: all shards settle, are written to bytes, and go on as shards that
//! were made of these bytes, of a new node, and of the same sockets. Its clock begins anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use roost::base::counters::Kind;
use roost::base::id::ShardId;
use roost::base::image::ImageReader;
use roost::base::rng::Rng;
use roost::base::time::Millis;
use roost::edge::proxy::ProxyEvent;
use roost::io::Alarm;
use roost::io::sim::SimDriver;
use roost::shard::mail::{MailLane, Mailbox, Outside};
use roost::shard::settle::CALLS_MS;
use roost::shard::{Seat, Secured, Shard, ShardCounters};

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
        });
        run
    }

    /// Whether it is time for another node.
    pub(super) fn is_to_be_replaced(&mut self) -> bool {
        let may = self.phase <= Phase::Quiet && !self.draining;
        let Some(replacing) = &mut self.replacing else { return false };
        may && replacing.rng.one_in(replacing.one_in)
    }

    /// Settles all shards, freezes them, and goes on with others.
    pub(super) fn replace(&mut self) -> Result<(), String> {
        for runner in &mut self.shards {
            runner.shard.settle()?;
        }
        if let Some(turns) = self.fails_early() {
            self.settle(turns)?;
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
        let mut frozen = Vec::new();
        for runner in std::mem::take(&mut self.shards) {
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
        let now = self.world.borrow().now().0;
        replacing.clock = 1 + replacing.rng.below(CLOCKS_APART_MS) as i64 - now as i64;
        let (beside, draining) =
            (self.node.memory.used(), self.node.draining.load(Ordering::Relaxed));
        debug_assert!(!draining);
        let names = self.names;
        self.node = node_of(&self.plan, names, replacing.rng.next_u64());
        if self.plan.short_of_memory && beside > self.node.memory.limit() {
            self.node.memory.set_beside(i64::MAX / 2);
        }
        let ids: Vec<ShardId> = (0..self.plan.sizes.shards).map(|at| ShardId(at as u8)).collect();
        let mut mailboxes = Vec::new();
        self.letterboxes.clear();
        for id in &ids {
            let alarm = Alarm::new(self.world.borrow().waker(*id));
            let (letterbox, mailbox) = Mailbox::new(self.plan.mailbox_batches[id.index()], alarm);
            self.letterboxes.push(letterbox);
            mailboxes.push(mailbox);
        }
        let (control, mailbox) =
            Mailbox::new(self.plan.mailbox_batches[0], Alarm::new(Arc::new(Awake)));
        self.control.mailbox = mailbox;
        self.control.outboxes = self.letterboxes.iter().cloned().map(MailLane::new).collect();
        for ((id, mailbox), frozen) in ids.into_iter().zip(mailboxes).zip(frozen) {
            let seat = Seat {
                shard: id,
                mailbox,
                letterboxes: self.letterboxes.clone(),
                outside: Outside::new(control.clone()),
                seed: replacing.rng.next_u64(),
            };
            let driver = SimDriver::with_clock(&self.world, id, replacing.clock);
            let driver = Secured::new(driver, &self.node, id);
            let moment = super::shifted(Millis(now), replacing.clock);
            let image = match &replacing.forget {
                None => ImageReader::new(&frozen.image, moment),
                Some(field) => ImageReader::forgetting(&frozen.image, moment, field),
            };
            let mut image = image.map_err(|broken| broken.to_string())?;
            let node = Arc::clone(&self.node);
            let shard = Shard::thaw(node, seat, driver, || {}, &mut image, frozen.sockets);
            replacing.fields.extend(image.fields_met());
            let shard = shard.map_err(|broken| format!("not thawed: {broken}"));
            match shard {
                Ok(shard) => self.shards.push(Runner {
                    shard,
                    waits: None,
                    starved_until: 0,
                    stopped: false,
                }),
                Err(fault) => {
                    self.replacing = Some(replacing);
                    return Err(fault);
                }
            }
        }
        self.replacing = Some(replacing);
        Ok(())
    }
}
