//! One run: shards, clients, a clock, and who is next; all from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwap;
use compact_str::CompactString;
use roost::base::id::{ConnKey, ShardId};
use roost::base::limits::{TURN_INPUT_BYTES_MAX, TURN_READ_BYTES_MAX};
use roost::base::rng::Rng;
use roost::base::tags::Tags;
use roost::base::time::Millis;
use roost::hub::names::NameHasher;

use roost::edge::address_limits::AddressLimits;
use roost::edge::proxy::ProxyEvent;
use roost::io::sim::{Event, Faults, SharedWorld, SimDriver, Sizes, World};
use roost::io::{Alarm, Wake};
use roost::proto::client::ErrorCode;
use roost::proto::tls::simulated::Simulated;
use roost::shard::crypto::Crypto;
use roost::shard::mail::{
    AdminCommand, Answer, Asker, CONTROL, Letterbox, Mail, MailLane, Mailbox, Order, Outside,
    Publish,
};
use roost::shard::proxies::{AppAnswer, AppCall, AppReply};
use roost::shard::{Memory, NodeParts, NodeState, Notices, Options, Seat, Secured, Shard};

use crate::checker::History;
use crate::client::{Client, Phase, Scene, TALKATIVE};
use crate::orders::{Target, USERS};
use crate::plan::{Kind, Plan};
use crate::tls;

mod replace;

use self::replace::Replacing;

/// Steps in a row without a moment in which all sleep, at most: beyond it something spins.
const STANDSTILL_STEPS: u64 = 100_000;

/// Events of one run that are written as lines at most: some 50 MB.
const LINES_MAX: usize = 1_000_000;

/// Turns of shards in a row after which clients must have had a chance.
const HEAL_MS: u64 = 90_000;

struct Runner {
    shard: Shard<Secured<SimDriver>>,
    /// Until when it waits; `None` while it hasn't been asked.
    waits: Option<Option<Millis>>,
    starved_until: u64,
    stopped: bool,
}

pub(crate) struct Run {
    plan: Plan,
    rng: Rng,
    world: SharedWorld,
    node: Arc<NodeState>,
    letterboxes: Vec<Letterbox>,
    control: Control,
    shards: Vec<Runner>,
    clients: Vec<Client>,
    history: History,
    phase: Phase,
    draining: bool,
    standstill: u64,
    /// The node's replacements, in the runs that have some.
    replacing: Option<Replacing>,
    /// The seed of the hashes of names.
    names: u64,
    /// Where the events go, for a trace that is to be read.
    lines: Option<Lines>,
}

/// The events of a run as lines: the step's number, the virtual time, the operation and its digest.
pub(crate) struct Lines {
    text: String,
    count: usize,
}

impl Lines {
    fn add(&mut self, step: u64, events: &[Event]) {
        for event in events {
            if self.count < LINES_MAX {
                let _ = writeln!(self.text, "step {step}  {event}");
            }
            self.count += 1;
        }
    }
}

/// The control side: its mail both ways.
struct Control {
    mailbox: Mailbox,
    outboxes: Vec<MailLane>,
    /// Orders and publishes that are to be answered, by the number in place of a connection.
    asked: BTreeSet<u32>,
    /// The publications among them.
    publishes: BTreeMap<u32, usize>,
    next: u32,
    /// The answers of the application, and their times, ms.
    telling: Vec<(u64, ShardId, AppReply)>,
}

/// Nobody sleeps at the control side.
struct Awake;

impl Wake for Awake {
    fn wake(&self) {}
}

/// The result of a run.
#[derive(Debug, PartialEq)]
pub(crate) struct Report {
    pub(crate) trace: u64,
    pub(crate) steps: u64,
    pub(crate) summary: String,
    pub(crate) figures: BTreeMap<&'static str, u64>,
}

/// The application has nothing against anything, and knows nobody.
fn answer_of_application(question: &AppCall) -> AppReply {
    let event = question.call.event();
    let answer = match event {
        ProxyEvent::Connect => AppAnswer::Nothing,
        _ => AppAnswer::Result(Box::default()),
    };
    AppReply { asker: question.asker, local: 0, ticket: question.ticket, event, answer }
}

/// The state of a node that runs by this plan: with nothing in it. Its names are hashed with that seed.
fn node_of(plan: &Plan, names: u64, addresses: u64) -> Arc<NodeState> {
    Arc::new(NodeState::new(NodeParts {
        rules: plan.rules(),
        options: plan.options.clone(),
        names: NameHasher::new(names, plan.sizes.shards),
        crypto: Crypto::Inline,
        memory: Memory::simulated(plan.memory_limit),
        addresses: AddressLimits::new(plan.address_limits, addresses, 500),
        notices: Notices::new(zero_of_time()),
        tls: plan.tls.map(|_| Arc::new(ArcSwap::from_pointee(Simulated::settings()))),
    }))
}

impl Control {
    fn asker(&mut self) -> Asker {
        let conn = ConnKey { index: self.next, generation: NonZeroU32::MIN };
        self.next += 1;
        Asker::of(conn)
    }
}

/// A moment by another clock.
fn shifted(at: Millis, by: i64) -> Millis {
    Millis(at.0.saturating_add_signed(by))
}

/// The zero of time of the control thread, which a simulation doesn't have.
#[expect(clippy::disallowed_methods, reason = "no shard reads it")]
fn zero_of_time() -> std::time::Instant {
    std::time::Instant::now()
}

impl Run {
    /// Everything that `seed` means.
    pub(crate) fn of(seed: u64) -> Result<Report, String> {
        Self::new(seed).report()
    }

    /// The same, but each order is noted for another session than it is given for.
    pub(crate) fn misdirected(seed: u64) -> Result<Report, String> {
        let mut run = Self::new(seed);
        run.history.orders.misdirected = true;
        run.report()
    }

    /// The same with its events as lines, also when it fails.
    pub(crate) fn written(seed: u64) -> (Result<Report, String>, String) {
        let mut run = Self::new(seed);
        run.world.borrow_mut().keep_events();
        run.lines = Some(Lines { text: String::new(), count: 0 });
        let report = catch_unwind(AssertUnwindSafe(|| run.report()));
        run.write_events();
        let mut lines = run.lines.take().map(|lines| lines.text).unwrap_or_default();
        let report = report.unwrap_or_else(|_| Err("it panicked".into()));
        if let Err(fault) = &report {
            let _ = writeln!(lines, "the run failed: {fault}");
        }
        (report, lines)
    }

    fn report(&mut self) -> Result<Report, String> {
        let result = self.play();
        if result.is_err() && TALKATIVE.load(Ordering::Relaxed) {
            self.clients.iter().for_each(Client::show);
        }
        result?;
        let trace = self.world.borrow().trace();
        let (steps, summary) = (self.history.step, self.history.summary());
        Ok(Report { trace, steps, summary, figures: self.figures() })
    }

    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(&mut rng).with_tls(seed);
        Self::with(plan, rng)
    }

    fn with(plan: Plan, mut rng: Rng) -> Self {
        let world = World::new(rng.next_u64(), plan.sizes.clone(), plan.faults.clone());
        if let Some(seed) = plan.tls {
            world.borrow_mut().set_ends(tls::ends(seed));
        }
        let ids: Vec<ShardId> = (0..plan.sizes.shards).map(|at| ShardId(at as u8)).collect();
        let (letterboxes, mailboxes): (Vec<_>, Vec<_>) = ids
            .iter()
            .map(|id| {
                let alarm = Alarm::new(world.borrow().waker(*id));
                Mailbox::new(plan.mailbox_batches[id.index()], alarm)
            })
            .unzip();
        let (names, addresses) = (rng.next_u64(), rng.next_u64());
        let node = node_of(&plan, names, addresses);
        let (control, mailbox) = Mailbox::new(plan.mailbox_batches[0], Alarm::new(Arc::new(Awake)));
        let shards = ids
            .iter()
            .zip(mailboxes)
            .map(|(id, mailbox)| {
                let (letterboxes, outside) = (letterboxes.clone(), Outside::new(control.clone()));
                let seat = Seat { shard: *id, mailbox, letterboxes, outside, seed: rng.next_u64() };
                let driver = Secured::new(SimDriver::new(&world, *id), &node, *id);
                let shard = Shard::new(Arc::clone(&node), seat, driver, || {});
                Runner { shard, waits: None, starved_until: 0, stopped: false }
            })
            .collect();
        let now = world.borrow().now().0;
        // All at once, as behind a balancer that was restarted.
        let storm = rng.one_in(2);
        let clients = plan
            .kinds
            .iter()
            .enumerate()
            .map(|(at, kind)| Client::new(at, *kind, Rng::new(rng.next_u64()), now, storm, &plan))
            .collect();
        let dropping = plan.dropping();
        let outboxes = letterboxes.iter().cloned().map(MailLane::new).collect();
        let control = Control {
            mailbox,
            outboxes,
            asked: BTreeSet::new(),
            publishes: BTreeMap::new(),
            next: 0,
            telling: Vec::new(),
        };
        Self {
            plan,
            rng,
            world,
            node,
            letterboxes,
            control,
            shards,
            clients,
            history: History::new(dropping),
            phase: Phase::Faults,
            draining: false,
            standstill: 0,
            replacing: None,
            names,
            lines: None,
        }
    }

    fn play(&mut self) -> Result<(), String> {
        // Faults.
        if self.plan.short_of_memory {
            for _ in 0..3 {
                self.run_for(self.plan.faults_ms / 4, |_| false)?;
                let beside = if self.node.memory.is_short() { 0 } else { i64::MAX / 2 };
                self.node.memory.set_beside(beside);
            }
            self.node.memory.set_beside(0);
        }
        self.run_for(self.plan.faults_ms, |_| false)?;

        // Heal.
        self.phase = Phase::Heal;
        let delay_ms_max = self.plan.faults.delay_ms_max.min(5);
        let segment_bytes_max = self.plan.faults.segment_bytes_max.max(1000);
        let faults = Faults { delay_ms_max, segment_bytes_max, ..Faults::NONE };
        self.world.borrow_mut().set_faults(faults);
        self.plan.starve_one_in = 0;
        self.each_client(Client::behave);
        // Earlier orders are carried out, and the closed clients are back.
        let begun = self.world.borrow().now().0;
        let all_subscribed = |run: &Self| {
            // A client closed by an order knows it by then.
            run.world.borrow().now().0 > begun + 500
                && run.control.asked.is_empty()
                && run.served().all(|client| client.is_settled(&run.plan))
        };
        let heal_ms = if self.plan.crowded { HEAL_MS / 9 } else { HEAL_MS };
        let healed = self.run_for(heal_ms, all_subscribed)?;
        if !healed && !self.plan.crowded {
            return Err("not all that must be served are subscribed again".into());
        }

        // Progress: what each publishes now reaches all.
        self.phase = Phase::Quiet;
        for at in 0..self.clients.len() {
            if self.clients[at].is_served() && self.clients[at].is_online() {
                self.with_client(at, |client, scene| {
                    client.publish_to_all(scene);
                    Ok(())
                })?;
            }
        }
        self.run_for(10_000, |_| false)?;
        let waits: Vec<usize> = self.served().map(Client::unanswered).collect();
        if !self.plan.crowded && waits.iter().any(|count| *count > 0) {
            return Err(format!("commands are unanswered: {waits:?}"));
        }
        let served: Vec<usize> = (0..self.clients.len())
            .filter(|at| self.clients[*at].is_served() && self.clients[*at].is_online())
            .collect();
        let events_lost = self.figures()["events_lost"] > 0;
        self.history.verify(self.is_lossy(), events_lost, &served)?;

        // The end.
        if self.plan.drains {
            self.drain()?;
        } else {
            self.phase = Phase::Leave;
            self.each_client(Client::go);
        }
        let empty = self.run_for(HEAL_MS, |run| run.world.borrow().held() == 0)?;
        if !empty {
            let held = self.world.borrow().held();
            return Err(format!("{held} sockets are held, and nobody is there"));
        }
        // Two housekeepings, and all mail.
        self.run_for(3_000, |_| false)?;
        self.check_quiescence()?;
        self.stop()
    }

    fn served(&self) -> impl Iterator<Item = &Client> {
        self.clients.iter().filter(|client| client.is_served())
    }

    /// Deliveries were lost, and counted.
    fn is_lossy(&self) -> bool {
        let figures = self.figures();
        figures["gaps_mail"] + figures["gaps_fanout"] > 0
    }

    fn figures(&self) -> BTreeMap<&'static str, u64> {
        let mut sums =
            self.replacing.as_ref().map_or_else(BTreeMap::new, |replacing| replacing.past.clone());
        for counters in &self.node.counters {
            counters.each(|name, value| *sums.entry(name).or_insert(0) += value);
        }
        sums
    }

    fn post_to_all(&mut self, mail: fn() -> Mail) -> Result<(), String> {
        for at in 0..self.letterboxes.len() {
            let mut left = Some(mail());
            while let Some(mail) = left {
                left = self.letterboxes[at].try_post(mail).err();
                if left.is_some() {
                    self.run_for(1, |_| false)?;
                }
            }
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), String> {
        // The last ones before it reach everybody.
        (0..20).for_each(|_| self.publish_by_control());
        self.run_for(2, |run| run.control.asked.is_empty())?;
        self.draining = true;
        self.phase = Phase::Leave;
        self.history.drains = Some(self.history.step);
        self.post_to_all(|| Mail::Drain { per_second: 50 })?;
        let shards = self.shards.len() as u32;
        let drained = |run: &Self| run.node.drained.load(Ordering::Acquire) == shards;
        match self.run_for(HEAL_MS, drained)? {
            true => self.history.nothing_overtaken(self.is_lossy()),
            false => Err("the shards never drained".into()),
        }
    }

    fn stop(&mut self) -> Result<(), String> {
        self.post_to_all(|| Mail::Stop)?;
        match self.run_for(1_000, |run| run.shards.iter().all(|runner| runner.stopped))? {
            true => Ok(()),
            false => Err("a shard doesn't stop".into()),
        }
    }

    fn check_quiescence(&self) -> Result<(), String> {
        for runner in &self.shards {
            runner.shard.is_quiescent()?;
        }
        let counted = self.node.addresses.counted();
        if counted != (0, 0) {
            return Err(format!("connections and bytes that count for addresses: {counted:?}"));
        }
        if !self.control.asked.is_empty() {
            return Err(format!("the control side waits for {:?}", self.control.asked));
        }
        let figures = self.figures();
        for name in [
            "connections_open",
            "slots_in_use",
            "connections_leaving",
            "sessions_open",
            "users",
            "subscriptions",
            "channels_local",
            "queued_bytes",
            "queues",
            "filters",
        ] {
            if figures[name] != 0 {
                return Err(format!("{name} is {} in the end", figures[name]));
            }
        }
        if figures["connections_accepted"] != figures["connections_closed"] {
            return Err("not all that were accepted were closed".into());
        }
        if figures["channels_home"] != figures["channels_idle"] {
            return Err("homes know channels that are neither idle nor subscribed".into());
        }
        if self.node.clients.load(Ordering::Relaxed) != 0 {
            return Err("clients are counted that are gone".into());
        }
        let open = self.node.open.iter().map(|open| open.load(Ordering::Relaxed)).sum::<u32>();
        if open != 0 {
            return Err(format!("{open} connections are counted as open"));
        }
        Ok(())
    }

    fn each_client(&mut self, act: fn(&mut Client, &mut Scene<'_>)) {
        for at in 0..self.clients.len() {
            let _ = self.with_client(at, |client, scene| {
                act(client, scene);
                Ok(())
            });
        }
    }

    fn with_client(
        &mut self,
        at: usize,
        act: impl FnOnce(&mut Client, &mut Scene<'_>) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut world = self.world.borrow_mut();
        let mut scene = Scene {
            world: &mut world,
            history: &mut self.history,
            plan: &self.plan,
            phase: self.phase,
            draining: self.draining,
        };
        act(&mut self.clients[at], &mut scene)
    }

    /// Runs until `done`, for so much virtual time at most. Whether it was done.
    fn run_for(&mut self, ms: u64, done: impl Fn(&Self) -> bool) -> Result<bool, String> {
        let end = self.world.borrow().now().0 + ms;
        let mut looked_at = u64::MAX;
        loop {
            let now = self.world.borrow().now().0;
            if now != looked_at && done(self) {
                return Ok(true);
            }
            looked_at = now;
            if now >= end {
                return Ok(false);
            }
            let result = self.step(end);
            self.write_events();
            result?;
        }
    }

    fn write_events(&mut self) {
        if let Some(lines) = &mut self.lines {
            lines.add(self.history.step, &self.world.borrow_mut().take_events());
        }
    }

    /// One shard or one client has its turn; when none can, time passes.
    fn step(&mut self, end: u64) -> Result<(), String> {
        self.history.step += 1;
        self.standstill += 1;
        if self.standstill > STANDSTILL_STEPS {
            return Err(format!("nothing ever sleeps: {:?}", self.figures()));
        }
        let now = self.world.borrow().now().0;
        self.history.now_ms = now;
        if self.phase <= Phase::Heal && self.rng.one_in(self.plan.control_one_in) {
            self.publish_by_control();
        }
        if self.phase == Phase::Faults && self.rng.one_in(self.plan.control_one_in * 20) {
            self.order();
        }
        if self.rng.one_in(3) {
            self.answers_to_control()?;
        }
        let mut ready: Vec<usize> = Vec::new();
        for at in 0..self.shards.len() {
            let runner = &mut self.shards[at];
            if runner.stopped || runner.starved_until > now {
                continue;
            }
            let clock = self.replacing.as_ref().map_or(0, |replacing| replacing.clock);
            let until = *runner
                .waits
                .get_or_insert_with(|| runner.shard.wait_until().map(|at| shifted(at, -clock)));
            if self.world.borrow().is_ready(ShardId(at as u8), until) {
                ready.push(at);
            }
        }
        let shards = self.shards.len();
        {
            let world = self.world.borrow();
            let clients = self.clients.iter().enumerate();
            ready.extend(
                clients.filter(|(_, client)| client.is_ready(&world)).map(|(at, _)| shards + at),
            );
        }
        if ready.is_empty() {
            return self.pass_time(end);
        }
        if self.rng.one_in(self.plan.work_one_in) {
            // Work takes time, too.
            self.world.borrow_mut().advance_to(Millis(now + 1));
        }
        if self.phase == Phase::Faults
            && self.plan.standstill_one_in > 0
            && self.rng.one_in(self.plan.standstill_one_in)
        {
            let one = next_of(&mut self.rng, shards);
            let one = Some(one).filter(|_| self.rng.one_in(2));
            let ms = self.plan.standstill_ms / 10 + self.rng.below(self.plan.standstill_ms);
            self.stand_still(one, ms);
            return Ok(());
        }
        if self.is_to_be_replaced()? {
            return self.replace();
        }
        let next = ready[self.rng.below(ready.len() as u64) as usize];
        if next >= shards {
            return self.with_client(next - shards, |client, scene| client.step(scene));
        }
        let runner = &mut self.shards[next];
        if self.plan.starve_one_in > 0 && self.rng.one_in(self.plan.starve_one_in) {
            runner.starved_until = now + 1 + self.rng.below(self.plan.starve_ms);
        }
        let clock = self.replacing.as_ref().map_or(0, |replacing| replacing.clock);
        let until = runner.waits.take().flatten().map(|at| shifted(at, clock));
        runner.stopped = !runner.shard.turn_after(until);
        // Only history counts: what else there is would make a run depend on the allocator.
        let kept = self.node.counters.iter().map(|counters| counters.history_bytes.get());
        self.node.memory.set_allocated(kept.sum());
        if self.rng.one_in(100) {
            self.node.memory.forget_wanted();
        }
        Ok(())
    }

    /// One shard, or all of them, are not run for so long: the process is paused, or its quota is used up.
    fn stand_still(&mut self, shard: Option<usize>, ms: u64) {
        let until = self.world.borrow().now().0 + ms;
        for (_, runner) in
            self.shards.iter_mut().enumerate().filter(|(at, _)| shard.is_none_or(|one| one == *at))
        {
            runner.starved_until = until;
        }
    }

    /// Publishes as the control side does, with tags.
    fn publish_by_control(&mut self) {
        let at = self.rng.below(self.plan.channels.len() as u64) as usize;
        let channel = self.plan.channels[at].clone();
        let mut tags = BTreeMap::new();
        for name in ["t", "u"] {
            if self.rng.below(4) > 0 {
                tags.insert(name.to_owned(), self.rng.below(3).to_string());
            }
        }
        let packed = Tags::pack(tags.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let number = self.history.publish(&channel, None, tags, |number| {
            format!(r#"{{"n":{number},"pad":"by the control side"}}"#).into_bytes()
        });
        let hash = self.node.names.hash(&channel);
        let publish = Publish {
            channel: channel.as_str().into(),
            hash,
            namespace: self.node.rules.channels.load().resolve(&channel).unwrap().index,
            asker: Some(self.control.asker()),
            data: self.history.data(number).into(),
            info: Box::default(),
            tags: (&*packed).into(),
            is_json: true,
            options: None,
        };
        let asked = self.control.next - 1;
        let home = self.node.names.home(hash).index();
        // One that finds the mailbox full was never published.
        if self.letterboxes[home].try_post(Mail::Publish(Box::new(publish))).is_ok() {
            self.history.posted(number);
            self.control.asked.insert(asked);
            self.control.publishes.insert(asked, number);
        }
    }

    /// Closes all sessions of a user, or one, as the server API does: their clients come again.
    fn order(&mut self) {
        let at = self.rng.below(self.clients.len() as u64) as usize;
        let session = self.clients[at].session().filter(|_| self.rng.one_in(3));
        let (user, client) = match session {
            None => (format!("user{}", self.rng.below(USERS)), String::new()),
            Some(session) => session,
        };
        let target = match client.is_empty() {
            true => Target::User(user.clone()),
            false => Target::Session(client.clone()),
        };
        let step = self.history.step;
        let Some(code) = self.history.orders.code_for(target, step) else { return };
        for outbox in &mut self.control.outboxes {
            let conn = ConnKey { index: self.control.next, generation: NonZeroU32::MIN };
            let asker = Asker::of(conn);
            self.control.asked.insert(self.control.next);
            self.control.next += 1;
            let command =
                AdminCommand::Disconnect { code, reason: "again".into(), spare: Vec::new() };
            let (user, client) = (user.as_str().into(), client.as_str().into());
            let (session, all_users) = (CompactString::default(), false);
            let order = Order { asker, user, all_users, client, session, command };
            outbox.push(Mail::Order(Box::new(order)));
        }
    }

    /// The control side sends what it has, and opens its mail.
    fn answers_to_control(&mut self) -> Result<(), String> {
        let now = self.world.borrow().now().0;
        let Control { mailbox, outboxes, asked, publishes, telling, .. } = &mut self.control;
        for (_, to, told) in telling.extract_if(.., |(due, _, _)| *due <= now) {
            outboxes[to.index()].push(Mail::AppReply(Box::new(told)));
        }
        outboxes.iter_mut().for_each(|outbox| _ = outbox.flush(CONTROL));
        while let Some(batch) = mailbox.take() {
            for mail in batch.mail {
                if let Mail::AppCall(question) = mail {
                    let told = answer_of_application(&question);
                    telling.push((now + self.rng.below(20), batch.from, told));
                    continue;
                }
                let asker = match mail {
                    Mail::Published { asker, .. } => {
                        if let Some(number) = publishes.get(&asker.conn.index) {
                            self.history.acked(*number);
                        }
                        asker
                    }
                    Mail::Ordered { asker, .. } => asker,
                    Mail::Answer { asker, answer: Answer::Error(failure) }
                        if self.plan.sheds() && failure.code == ErrorCode::Internal =>
                    {
                        if let Some(number) = publishes.get(&asker.conn.index) {
                            self.history.refused(*number);
                        }
                        asker
                    }
                    mail => return Err(format!("the control side got {mail:?}")),
                };
                if !asked.remove(&asker.conn.index) {
                    return Err(format!("{asker:?} was not asked for, or is there twice"));
                }
            }
        }
        mailbox.take_turned(|shard| outboxes[shard.index()].ring());
        Ok(())
    }

    /// Moves the clock to the next moment at which anything happens.
    fn pass_time(&mut self, end: u64) -> Result<(), String> {
        let mut world = self.world.borrow_mut();
        let now = world.now().0;
        let mut next = end;
        for (due, _, _) in &self.control.telling {
            next = next.min(*due);
        }
        if let Some(at) = world.next_arrival() {
            next = next.min(at.0);
        }
        for runner in self.shards.iter().filter(|runner| !runner.stopped) {
            let sleeps =
                matches!(runner.waits, Some(until) if until.is_none_or(|until| until.0 > now));
            if sleeps && runner.shard.has_unsent_mail() {
                return Err("a shard sleeps, and has mail to send".into());
            }
            if runner.starved_until > now {
                next = next.min(runner.starved_until);
            } else if let Some(Some(until)) = runner.waits {
                next = next.min(until.0);
            }
        }
        for client in &self.clients {
            client.check_patience(now, &self.plan)?;
            if let Some(at) = client.next_at(&world) {
                next = next.min(at);
            }
        }
        world.advance_to(Millis(next.max(now + 1)));
        self.standstill = 0;
        Ok(())
    }
}

fn next_of(rng: &mut Rng, count: usize) -> usize {
    rng.below(count as u64) as usize
}

#[test]
fn a_standstill_closes_no_client_that_reads_and_answers() {
    let mut met = BTreeMap::new();
    for seed in 1..=6 {
        let mut rng = Rng::new(seed);
        let mut plan = Plan::draw(&mut rng);
        while !plan.roomy || plan.crowded {
            plan = Plan::draw(&mut rng);
        }
        plan.faults = Faults { late_send_one_in: 3, ..Faults::NONE };
        plan.sizes = Sizes { pipe_bytes: 1_000, events: 1, ..plan.sizes };
        plan.kinds = vec![Kind::Normal; 12];
        plan.think_ms = 300;
        (plan.standstill_one_in, plan.standstill_ms) = (0, 30_000);
        let mut run = Run::with(plan, rng);
        for _ in 0..2 {
            run.run_for(2_000, |_| false).unwrap();
            let one = next_of(&mut run.rng, run.shards.len() + 1);
            let one = Some(one).filter(|one| *one < run.shards.len());
            // Longer than a client has for anything.
            run.stand_still(one, 30_000);
            run.run_for(34_000, |_| false).unwrap();
        }
        let figures = run.figures();
        // Clients over up-links are checked against their own rules, as each that is closed.
        for name in ["closed_write_timeout", "closed_stale", "closed_slow"] {
            assert_eq!(figures[name], 0, "seed {seed}: {name}");
        }
        for name in ["refused_timeout", "close_timeouts", "closed_idle"] {
            assert_eq!(figures[name], 0, "seed {seed}: {name}");
        }
        figures.into_iter().for_each(|(name, value)| *met.entry(name).or_insert(0) += value);
    }
    assert!(met["writes_blocked"] > 0 && met["pongs"] > 0, "{met:?}");
}

#[test]
fn a_turn_reads_so_many_bytes_and_no_more() {
    let mut rng = Rng::new(1);
    let mut plan = Plan::draw(&mut rng);
    let (shards, pipe_bytes, read_buffer_bytes, events) = (1, 65_536, 65_536, 1024);
    plan.sizes = Sizes { shards, pipe_bytes, read_buffer_bytes, events, ..plan.sizes };
    plan.mailbox_batches = vec![1];
    plan.faults = Faults::NONE;
    plan.options = Options { conns_soft: 500, conns_max: 500, ..plan.options };
    plan.kinds.clear();
    let mut run = Run::with(plan, rng);
    for _ in 0..120 {
        let link = run.world.borrow_mut().connect_to(ShardId(0));
        run.world.borrow_mut().write(link, &[b'x'; 60_000]);
    }
    let (mut before, mut most) = (0, 0);
    while before < 120 * 60_000 {
        run.shards[0].shard.turn();
        let read = run.figures()["bytes_received"];
        most = most.max(read - before);
        before = read;
    }
    assert!(most <= TURN_INPUT_BYTES_MAX + TURN_READ_BYTES_MAX as u64, "{most}");
}

#[test]
fn a_burst_is_spread_over_all_that_have_room() {
    let mut rng = Rng::new(1);
    let mut plan = Plan::draw(&mut rng);
    plan.sizes = Sizes { shards: 3, passing: 64, ..plan.sizes };
    plan.mailbox_batches = vec![1; 3];
    plan.faults = Faults::NONE;
    plan.options = Options { conns_soft: 1, conns_max: 4, ..plan.options };
    plan.kinds.clear();
    let mut run = Run::with(plan, rng);
    for _ in 0..12 {
        run.world.borrow_mut().connect_to(ShardId(0));
    }
    // All that wait are accepted and passed on before the other shards know of it.
    for at in [0, 1, 2] {
        run.shards[at].shard.turn();
    }
    let open: Vec<u32> = run.node.open.iter().map(|open| open.load(Ordering::Relaxed)).collect();
    assert_eq!((open, run.figures()["connections_refused_full"]), (vec![4, 4, 4], 0));
}
