//! A run: nodes, clients, Redis, one clock, and a seed that decides whose turn it is and what goes wrong.

use std::collections::{BTreeMap, BTreeSet};

use roost::base::rng::Rng;
use roost::base::time::Millis;
use roost::io::sim::Faults;

use roost::cluster::names::{Layout, Names};

use super::broker::NATS;
use super::client::{Client, PATIENCE_MS, Phase, Scene};
use super::node::Node;
use super::plan::{CHANNELS, Fault, NodesPlan, Sabotage};
use super::redis::Redis;
use super::replace::Outcome;
use super::truth::{Broken, Rule, Truth, broken};

/// Steps in a row in which no time passes, at most: beyond it something spins.
const STANDSTILL_STEPS: u64 = 200_000;

/// Time in which all clients have all of their channels again.
const HEAL_MS: u64 = 90_000;

/// Entries of presence expire after so long, and nodes refresh theirs before.
const PRESENCE_MS: u64 = 65_000;

/// Attempts to replace a node in a system without faults, at most: one in some fails by itself.
const REPLACEMENTS_MAX: u32 = 20;

/// A failure that ends by itself.
#[derive(Clone, Debug)]
enum Undo {
    Slow,
    Lag(usize),
    Start(usize),
    /// The other nodes take a process for dead.
    Forget(String),
}

pub(crate) struct Run {
    seed: u64,
    plan: NodesPlan,
    rng: Rng,
    now: u64,
    phase: Phase,
    /// Processes by the number of their node; none while a node is not there.
    nodes: Vec<Option<Node>>,
    processes: u8,
    redis: Redis,
    clients: Vec<Client>,
    truth: Truth,
    orders: BTreeMap<u16, String>,
    drains: bool,
    /// The start, or the end of what went wrong, is a short while ago until then.
    troubled_until: u64,
    undo: Vec<(u64, Undo)>,
    fault_at: u64,
    api_at: u64,
    copy_at: u64,
    /// Nodes are replaced by other processes: drawn apart, so that the rest is as it would be without.
    replacing: Option<Rng>,
    replace_at: u64,
    standstill: u64,
    steps: u64,
    figures: BTreeMap<&'static str, u64>,
    /// Figures of processes that have ended.
    past: BTreeMap<&'static str, u64>,
}

impl Run {
    pub(crate) fn new(seed: u64, sabotage: Option<Sabotage>, log: bool) -> Self {
        let mut rng = Rng::new(seed);
        let mut plan = NodesPlan::draw(seed, &mut rng);
        plan.sabotage = sabotage;
        Self::with(seed, plan, rng, log)
    }

    /// The same with NATS as the broker. Every second run replaces nodes all the time.
    pub(crate) fn on_nats(seed: u64, sabotage: Option<Sabotage>, log: bool) -> Self {
        let mut rng = Rng::new(seed);
        let mut plan = NodesPlan::draw(seed, &mut rng);
        (plan.sabotage, plan.kind) = (sabotage, &NATS);
        plan.operations.names = Names::new("centrifugo", Layout::Plain);
        let mut run = Self::with(seed, plan, rng, log);
        run.replacing = seed.is_multiple_of(2).then(|| Rng::new(seed ^ 0x6e61_7473));
        run
    }

    pub(crate) fn with(seed: u64, plan: NodesPlan, mut rng: Rng, log: bool) -> Self {
        let now = 10_000;
        let mut redis = Redis::new(rng.next_u64(), plan.nodes, &plan.operations, &CHANNELS);
        (redis.delay, redis.kind) = (plan.redis_delay, plan.kind);
        let clients = (0..plan.clients)
            .map(|at| Client::new(at, Rng::new(rng.next_u64()), &plan, now, log))
            .collect();
        let mut run = Self {
            seed,
            now,
            phase: Phase::Faults,
            nodes: (0..plan.nodes).map(|_| None).collect(),
            processes: 0,
            redis,
            clients,
            truth: Truth::default(),
            orders: BTreeMap::new(),
            drains: false,
            troubled_until: now + 3_000,
            undo: Vec::new(),
            fault_at: now + plan.fault_every_ms,
            api_at: now,
            copy_at: now,
            replacing: None,
            replace_at: now,
            standstill: 0,
            steps: 0,
            figures: BTreeMap::new(),
            past: BTreeMap::new(),
            rng,
            plan,
        };
        (0..run.plan.nodes).for_each(|at| run.start(at));
        run
    }

    /// The same, in which nodes are replaced by other processes all the time.
    pub(crate) fn replaced(seed: u64, sabotage: Option<Sabotage>, log: bool) -> Self {
        let mut run = Self::new(seed, sabotage, log);
        run.replacing = Some(Rng::new(seed ^ 0x7265_706c_6163_6564));
        run
    }

    fn start(&mut self, at: usize) {
        self.processes += 1;
        let node = Node::start(&self.plan, at, self.processes, self.now, &mut self.rng);
        self.nodes[at] = Some(node);
    }

    fn count(&mut self, what: &'static str) {
        *self.figures.entry(what).or_default() += 1;
    }

    /// Everything that the seed means: what it met.
    pub(crate) fn play(&mut self) -> Result<BTreeMap<&'static str, u64>, Broken> {
        self.run_for(self.plan.faults_ms, |_| false)?;
        self.heal()?;
        let all_there = |run: &Self| {
            run.clients.iter().all(Client::is_settled)
                && run.nodes.iter().flatten().all(Node::is_settled)
        };
        if !self.run_for(HEAL_MS, all_there)? {
            let lost = self.clients.iter().find(|client| !client.is_settled());
            let text = lost.map_or_else(|| "the control side waits".to_owned(), Client::show);
            return broken(Rule::Answer, format!("not all are subscribed again: {text}"));
        }
        self.replace_each()?;
        self.quiet()?;
        self.leave()?;
        Ok(self.met())
    }

    /// What each client sent and got last.
    pub(crate) fn show(&self) {
        println!("faults: {:?}", self.plan.faults);
        self.clients.iter().for_each(|client| println!("{}", client.show()));
        for node in self.nodes.iter().flatten() {
            println!("{}", node.carrier.show());
        }
    }

    /// All clients of a quiet system have all of their channels.
    fn settle(&mut self) -> Result<(), Broken> {
        self.phase = Phase::Heal;
        match self.run_for(20_000, |run| run.clients.iter().all(Client::is_settled))? {
            true => Ok(()),
            false => broken(Rule::Answer, "not all are subscribed"),
        }
    }

    fn publish_some(&mut self) -> Result<(), Broken> {
        for _ in 0..60 {
            let at = self.any_node();
            if let Some(node) = &mut self.nodes[at] {
                node.publish(self.now, &mut self.truth);
            }
        }
        self.run_for(40, |_| false).map(|_| ())
    }

    fn has_newest(&self) -> bool {
        let histories = CHANNELS.iter().filter(|channel| NodesPlan::has_history(channel));
        let newest: Vec<_> =
            histories.map(|of| (of, self.redis.log(of).all.last().copied())).collect();
        self.clients.iter().all(|client| {
            let has = |(of, newest): &(&&str, Option<u64>)| {
                newest.is_none_or(|newest| client.has_newest(of, newest))
            };
            newest.iter().all(has)
        })
    }

    /// Reads of lines while something happens to a quiet system, and how many clients were told of a gap.
    fn cost_of(
        &mut self,
        happens: impl FnOnce(&mut Self) -> Result<(), Broken>,
    ) -> Result<(u64, u64), Broken> {
        self.settle()?;
        self.publish_some()?;
        self.run_for(5_000, Self::has_newest)?;
        let figures = |run: &Self| {
            let met = run.met();
            let of = |name| met.get(name).copied().unwrap_or_default();
            (of("reads_of_lines"), of("told") + of("unrecovered"))
        };
        let before = figures(self);
        happens(self)?;
        self.settle()?;
        if !self.run_for(5_000, Self::has_newest)? {
            return broken(Rule::End, "not all have the newest publications");
        }
        let after = figures(self);
        Ok((after.0 - before.0, after.1 - before.1))
    }

    /// All clients go, miss publications, and come back at once.
    pub(crate) fn cost_of_return(&mut self) -> Result<(u64, u64), Broken> {
        self.cost_of(|run| {
            run.phase = Phase::Leave;
            run.clients.iter_mut().for_each(|client| client.leave(run.now));
            // Until the nodes don't follow the channels any more.
            run.run_for(3_000, |_| false)?;
            run.publish_some()?;
            run.phase = Phase::Heal;
            run.clients.iter_mut().for_each(|client| client.return_at(run.now));
            Ok(())
        })
    }

    /// The PUB/SUB connections of all nodes end, and publications are missed.
    pub(crate) fn cost_of_cut(&mut self) -> Result<(u64, u64), Broken> {
        self.cost_of(|run| {
            run.redis.disconnect(true, None, false);
            run.publish_some()?;
            run.run_for(1_000, |_| false).map(|_| ())
        })
    }

    /// Nothing goes wrong any more.
    fn heal(&mut self) -> Result<(), Broken> {
        self.phase = Phase::Heal;
        self.redis.frozen_until = self.redis.frozen_until.min(self.now);
        self.redis.away_until = self.redis.away_until.min(self.now);
        (self.redis.slowness, self.redis.doubles) = (0, 0);
        self.redis.lag.iter_mut().for_each(|lag| *lag = 0);
        self.undo.retain(|(_, undo)| matches!(undo, Undo::Forget(_)));
        self.plan.queue_max = usize::MAX;
        self.plan.net = Faults { delay_ms_max: 2, ..Faults::NONE };
        for at in 0..self.nodes.len() {
            if let Some(node) = &mut self.nodes[at] {
                node.paused_until = node.paused_until.min(self.now);
                node.carrier.queue_max = usize::MAX;
                node.world.borrow_mut().set_faults(self.plan.net.clone());
                if node.is_draining {
                    self.kill(at);
                }
            }
            if self.nodes[at].is_none() {
                self.start(at);
            }
        }
        self.troubled_until = self.now + 30_000;
        // What comes late has come, too: a PUB/SUB connection that carries nothing is noticed.
        self.run_for(20_000, |_| false).map(|_| ())
    }

    /// Each node is replaced while clients publish: where nothing goes wrong, that succeeds.
    fn replace_each(&mut self) -> Result<(), Broken> {
        if self.replacing.is_none() {
            return Ok(());
        }
        let replaced = |run: &Self| run.figures.get("replaced").copied().unwrap_or_default();
        for at in 0..self.nodes.len() {
            let (before, mut tries) = (replaced(self), 0);
            while replaced(self) == before {
                tries += 1;
                if tries > REPLACEMENTS_MAX {
                    return broken(Rule::Answer, format!("node {at} is never replaced"));
                }
                self.begin_next(at);
                while self.nodes[at].as_ref().is_some_and(|node| node.next.is_some()) {
                    // A publication may show that a stream went back: some connect again then.
                    if self.clients.iter().all(Client::is_settled) {
                        self.publish_to_each();
                    }
                    self.run_for(20, |_| false)?;
                }
            }
        }
        self.run_for(10_000, |run| run.clients.iter().all(Client::is_settled)).map(|_| ())
    }

    /// Another process is to take the place of a node.
    fn begin_next(&mut self, at: usize) {
        if let (Some(rng), Some(node)) = (&mut self.replacing, &mut self.nodes[at])
            && node.paused_until <= self.now
        {
            node.begin_next(&self.plan, self.now, rng);
        }
    }

    /// Those that are replaced go on with it.
    fn step_next(&mut self) -> Result<(), Broken> {
        for at in 0..self.nodes.len() {
            let Some(node) = &mut self.nodes[at] else { continue };
            match node.step_next(self.now, &mut self.redis)? {
                None => {}
                Some(Outcome::GoesOn) => self.count("not_replaced"),
                Some(Outcome::Replaced(past)) => {
                    self.count("replaced");
                    past.into_iter().for_each(|(name, value)| {
                        *self.past.entry(name).or_default() += value;
                    });
                }
            }
        }
        Ok(())
    }

    /// A client publishes to each channel: the numbers of the publications.
    fn publish_to_each(&mut self) -> Vec<(&'static str, u64)> {
        let publish = |channel: &&'static str| {
            let at = self.rng.below(self.clients.len() as u64) as usize;
            (*channel, self.with_client(at, |client, scene| client.publish(scene, channel)))
        };
        CHANNELS.iter().map(publish).collect()
    }

    /// A publication to each channel reaches all, and all are present.
    fn quiet(&mut self) -> Result<(), Broken> {
        self.phase = Phase::Quiet;
        self.troubled_until = self.now;
        // The first ones show where a stream went back: who learns it may have to connect again.
        self.publish_to_each();
        self.run_for(2_000, |_| false)?;
        self.run_for(10_000, |run| run.clients.iter().all(Client::is_settled))?;
        let numbers = self.publish_to_each();
        // One whose channel turns out to have gone back subscribes anew, and has it by that.
        let has_all = |run: &Self| {
            let has = |client: &Client| {
                numbers.iter().all(|(channel, number)| client.has_newest(channel, *number))
            };
            run.clients.iter().all(|client| has(client) && !client.has_pending())
        };
        if !self.run_for(10_000, has_all)? {
            let of = |client: &&Client| {
                numbers.iter().any(|(channel, number)| !client.has_newest(channel, *number))
            };
            let text = self.clients.iter().find(of).map(Client::show).unwrap_or_default();
            return broken(Rule::End, format!("{numbers:?} did not reach all: {text}"));
        }
        self.run_for(if self.plan.is_calm() { 3_000 } else { PRESENCE_MS }, |_| false)?;
        self.check_presence()
    }

    /// Exactly the clients are present, at Redis and as each node shows it.
    fn check_presence(&mut self) -> Result<(), Broken> {
        let ids: BTreeSet<String> = self.clients.iter().map(|client| client.id.clone()).collect();
        for channel in CHANNELS {
            for at in 0..self.clients.len() {
                self.with_client(at, |client, scene| client.ask_presence(scene, channel));
            }
            self.run_for(5_000, |run| !run.clients.iter().any(Client::has_pending))?;
            for client in &self.clients {
                let shown = client.shown.get(channel);
                if shown != Some(&ids) {
                    let text = format!("node {} shows {shown:?} in {channel}", client.node);
                    return broken(Rule::Presence, format!("{text}, clients are {ids:?}"));
                }
            }
            // A read removes what has expired.
            let key = self.plan.operations.names.presence(channel);
            let present: BTreeSet<String> = self.redis.fields(self.now, &key).into_keys().collect();
            if present != ids {
                let text = format!("{channel} at Redis: {present:?}, clients are {ids:?}");
                return broken(Rule::Presence, text);
            }
        }
        Ok(())
    }

    /// All go, and nothing is left.
    fn leave(&mut self) -> Result<(), Broken> {
        self.phase = Phase::Leave;
        self.clients.iter_mut().for_each(|client| client.leave(self.now));
        self.run_for(20_000, |_| false)?;
        if let Some(client) = self.clients.iter().find(|client| !client.is_offline()) {
            return broken(Rule::Rest, client.show());
        }
        for node in self.nodes.iter().flatten() {
            node.check_rest()?;
        }
        for channel in CHANNELS {
            let key = self.plan.operations.names.presence(channel);
            let present = self.redis.fields(self.now, &key);
            if !present.is_empty() {
                return broken(Rule::Presence, format!("{channel}: {:?}", present.keys()));
            }
        }
        let met = self.met();
        let is_lossy = met["gaps_mail"] + met["gaps_fanout"] > 0;
        if let (false, Some(text)) = (is_lossy, &self.truth.needless) {
            let logs: Vec<_> = self.clients.iter().map(Client::show).collect();
            return broken(Rule::Needless, format!("{text}\n{}", logs.join("\n")));
        }
        // A mailbox without room loses events, and counts them.
        if let (0, Some(text)) = (met["events_lost"] + met["cut"], &self.truth.repeated_event) {
            return broken(Rule::Events, text.clone());
        }
        self.truth.check_stored(|channel| self.redis.log(channel).all)
    }

    fn met(&self) -> BTreeMap<&'static str, u64> {
        let mut met = self.figures.clone();
        let mut add = |of: &BTreeMap<&'static str, u64>| {
            of.iter().for_each(|(name, value)| *met.entry(name).or_insert(0) += value);
        };
        add(&self.past);
        add(&self.truth.figures);
        for node in self.nodes.iter().flatten() {
            add(&node.carrier.figures);
            add(&node.figures());
        }
        met.insert("cut", self.redis.cut);
        met.insert("steps", self.steps);
        met
    }

    fn with_client<T>(
        &mut self,
        at: usize,
        act: impl FnOnce(&mut Client, &mut Scene<'_>) -> T,
    ) -> T {
        let takes =
            |of: &(usize, &Node)| of.1.paused_until <= self.now || self.seed.is_multiple_of(2);
        let live = self.nodes.iter().enumerate();
        let live = live.filter_map(|(at, node)| Some((at, node.as_ref()?))).filter(takes);
        let nodes: Vec<_> = live.map(|(at, node)| (at, node.world.clone())).collect();
        let is_troubled =
            self.now < self.troubled_until || (self.phase == Phase::Faults && !self.plan.is_calm());
        let mut scene = Scene {
            now: self.now,
            phase: self.phase,
            plan: &self.plan,
            truth: &mut self.truth,
            nodes: &nodes,
            orders: &self.orders,
            drains: self.drains,
            is_troubled,
        };
        act(&mut self.clients[at], &mut scene)
    }

    fn run_for(&mut self, ms: u64, done: impl Fn(&Self) -> bool) -> Result<bool, Broken> {
        let end = self.now + ms;
        let mut looked_at = u64::MAX;
        loop {
            if self.now != looked_at && done(self) {
                return Ok(true);
            }
            looked_at = self.now;
            if self.now >= end {
                return Ok(false);
            }
            self.step(end)?;
        }
    }

    /// One has its turn; when none can, time passes.
    fn step(&mut self, end: u64) -> Result<(), Broken> {
        self.steps += 1;
        self.standstill += 1;
        if self.standstill > STANDSTILL_STEPS {
            return broken(Rule::Answer, format!("nothing ever sleeps at {}", self.now));
        }
        self.happen()?;
        if self.rng.one_in(3) {
            self.step_beside()?;
        }
        let mut ready = self.ready();
        if ready.is_empty() {
            self.step_beside()?;
            ready = self.ready();
        }
        if ready.is_empty() {
            return self.pass_time(end);
        }
        if self.rng.one_in(30) {
            // Work takes time, too.
            self.advance_to(self.now + 1);
        }
        match ready[self.rng.below(ready.len() as u64) as usize] {
            Next::Shard(node, shard) => {
                if let Some(node) = &mut self.nodes[node] {
                    node.turn(shard);
                }
                Ok(())
            }
            Next::Client(at) => self.with_client(at, Client::step),
            Next::Redis => {
                (0..=self.rng.below(3)).for_each(|_| self.redis.step(self.now));
                self.redis.facts.drain(..).for_each(|fact| self.truth.note(fact));
                Ok(())
            }
        }
    }

    fn step_beside(&mut self) -> Result<(), Broken> {
        self.step_next()?;
        for node in self.nodes.iter_mut().flatten() {
            match node.step_beside(self.now, &mut self.redis, &mut self.truth) {
                // Behind an interruption, an older read of no use may be open beside the new one.
                Err((Rule::Reads, _)) if !self.plan.is_calm() => self.truth.count("reads_beside"),
                result => result?,
            }
        }
        Ok(())
    }

    fn ready(&mut self) -> Vec<Next> {
        let mut ready = Vec::new();
        for (at, node) in self.nodes.iter_mut().enumerate() {
            let Some(node) = node else { continue };
            ready.extend(node.ready(self.now).into_iter().map(|shard| Next::Shard(at, shard)));
        }
        let clients = self.clients.iter().enumerate();
        let due = clients.filter(|(_, client)| client.next_at() <= self.now);
        ready.extend(due.map(|(at, _)| Next::Client(at)));
        if self.redis.next_at().is_some_and(|at| at <= self.now) {
            ready.extend([Next::Redis, Next::Redis]);
        }
        ready
    }

    fn advance_to(&mut self, now: u64) {
        self.now = now;
        for node in self.nodes.iter().flatten() {
            node.world.borrow_mut().advance_to(Millis(now));
        }
    }

    fn pass_time(&mut self, end: u64) -> Result<(), Broken> {
        let mut next = end;
        if self.phase == Phase::Faults {
            next = next.min(self.fault_at).min(self.api_at).min(self.copy_at);
            if self.replacing.is_some() {
                next = next.min(self.replace_at);
            }
        }
        next = self.undo.iter().map(|(at, _)| *at).fold(next, u64::min);
        next = next.min(self.redis.next_at().unwrap_or(u64::MAX));
        for node in self.nodes.iter().flatten() {
            next = next.min(node.next_at(&self.redis));
            node.check_patience(self.now, PATIENCE_MS)?;
        }
        for client in &self.clients {
            next = next.min(client.next_at());
            // A node may be paused several times in a row.
            client.check_patience(self.now, if self.plan.is_calm() { 0 } else { 60_000 })?;
        }
        self.standstill = 0;
        self.advance_to(next.max(self.now + 1));
        Ok(())
    }

    /// What comes from outside: faults, and calls of the server API.
    fn happen(&mut self) -> Result<(), Broken> {
        for (_, undo) in self.undo.extract_if(.., |(at, _)| *at <= self.now).collect::<Vec<_>>() {
            match undo {
                Undo::Slow => self.redis.slowness = 0,
                Undo::Lag(node) => self.redis.lag[node] = 0,
                Undo::Start(node) => self.start(node),
                Undo::Forget(uid) => self.forget(&uid),
            }
        }
        for at in 0..self.nodes.len() {
            if self.nodes[at].as_ref().is_some_and(Node::is_drained) {
                self.kill(at);
                self.undo.push((self.now + 500, Undo::Start(at)));
            }
        }
        if self.phase != Phase::Faults {
            return Ok(());
        }
        if self.now >= self.api_at {
            self.api_at = self.now + 1 + self.rng.below(2 * self.plan.api_every_ms);
            self.call_api();
        }
        if self.plan.sabotage == Some(Sabotage::ForgetPosition) && self.rng.one_in(300) {
            self.evict();
        }
        if self.now >= self.copy_at {
            self.copy_at = self.now + 200 + self.rng.below(3_000);
            self.redis.copy();
        }
        if let Some(rng) = &mut self.replacing
            && self.now >= self.replace_at
        {
            self.replace_at = self.now + 1 + rng.below(2_000);
            let at = rng.below(self.plan.nodes as u64) as usize;
            self.begin_next(at);
        }
        if self.now >= self.fault_at && !self.plan.faults.is_empty() {
            self.fault_at = self.now + 1 + self.rng.below(2 * self.plan.fault_every_ms);
            let at = self.rng.below(self.plan.faults.len() as u64) as usize;
            self.fail(self.plan.faults[at]);
        }
        Ok(())
    }

    fn any_node(&mut self) -> usize {
        self.rng.below(self.plan.nodes as u64) as usize
    }

    /// A call of the server API, on some node.
    fn call_api(&mut self) {
        let at = self.any_node();
        let is_order = self.rng.one_in(40) && self.orders.len() < 300;
        let code = 4_600 + self.orders.len() as u16;
        let user = format!("user{}", self.rng.below(4));
        if is_order {
            // The message of one node reaches all: here it does at once.
            self.orders.insert(code, user.clone());
            self.nodes.iter_mut().flatten().for_each(|of| of.disconnect(self.now, &user, code));
        } else if let Some(node) = &mut self.nodes[at] {
            node.publish(self.now, &mut self.truth);
        }
    }

    fn kill(&mut self, at: usize) {
        if let Some(mut node) = self.nodes[at].take() {
            node.drop_next(self.now, &mut self.redis);
            node.carrier.end(&mut self.redis);
            for name in ["gaps_mail", "gaps_fanout", "events_lost"] {
                *self.past.entry(name).or_default() += node.figures()[name];
            }
            let forgotten_at = self.now + 7_000 + self.rng.below(9_000);
            self.undo.push((forgotten_at, Undo::Forget(node.carrier.uid.clone())));
            for client in self.clients.iter_mut().filter(|client| client.node == at) {
                client.lose_node(self.now);
            }
        }
    }

    /// The other nodes take a process for dead. It may be alive, and mostly hears of it.
    fn forget(&mut self, uid: &str) {
        let hears = self.rng.below(4) > 0;
        for node in self.nodes.iter_mut().flatten() {
            if node.carrier.uid != uid {
                node.carrier.take_entries(self.now, uid);
            } else if hears {
                node.carrier.entries_removed();
            }
        }
    }

    fn fail(&mut self, fault: Fault) {
        let (node, now) = (self.any_node(), self.now);
        let one = if self.rng.one_in(2) { Some(node) } else { None };
        let live = self.nodes.iter().flatten().count();
        let below = |rng: &mut Rng, most: u64| 1 + rng.below(most);
        match fault {
            Fault::PubSubCut => self.redis.disconnect(true, one, false),
            Fault::PubSubDeaf => self.redis.deafen(node),
            Fault::CommandsCut => {
                let arrive = self.rng.one_in(2);
                self.redis.disconnect(false, one, arrive);
            }
            Fault::Freeze => self.redis.frozen_until = now + below(&mut self.rng, 12_000),
            Fault::Slow => {
                self.redis.slowness = below(&mut self.rng, 40);
                self.undo.push((now + below(&mut self.rng, 5_000), Undo::Slow));
            }
            Fault::Lag => {
                self.redis.lag[node] = below(&mut self.rng, 2_000);
                self.undo.push((now + below(&mut self.rng, 8_000), Undo::Lag(node)));
            }
            Fault::Double => self.redis.doubles = below(&mut self.rng, 20),
            Fault::Away | Fault::FailOver | Fault::Empty => {
                match fault {
                    Fault::FailOver => self.redis.fail_over(),
                    Fault::Empty => self.redis.forget_all(),
                    _ => self.redis.disconnect_all(),
                }
                self.redis.away_until = now + self.rng.below(6_000);
            }
            Fault::Evict => self.evict(),
            Fault::Kill if live > 1 => {
                self.kill(node);
                self.undo.push((now + below(&mut self.rng, 5_000), Undo::Start(node)));
            }
            Fault::Pause => {
                let until = now + below(&mut self.rng, 20_000);
                let Some(node) = &mut self.nodes[node] else { return };
                node.paused_until = until;
                let forgotten_at = now + 7_000 + self.rng.below(3_000);
                if forgotten_at < until {
                    self.undo.push((forgotten_at, Undo::Forget(node.carrier.uid.clone())));
                }
            }
            Fault::Drain if live > 1 => {
                self.drains = true;
                let waits = |node: &&mut Node| !node.is_draining && node.next.is_none();
                self.nodes[node].iter_mut().filter(waits).for_each(Node::drain);
            }
            Fault::HomeFull => {
                let until = now + below(&mut self.rng, 1_000);
                self.nodes[node].iter_mut().for_each(|node| node.carrier.full_until = until);
            }
            Fault::Kill | Fault::Drain => return,
        }
        self.count(fault_name(fault));
        self.redis.facts.drain(..).for_each(|fact| self.truth.note(fact));
    }

    fn evict(&mut self) {
        let channel = CHANNELS[self.rng.below(5) as usize];
        let names = &self.plan.operations.names;
        let position = self.rng.one_in(2);
        let key = match (self.plan.operations.use_lists, position) {
            (true, true) => names.list_meta(channel),
            (true, false) => names.list(channel),
            (false, true) => names.stream_meta(channel),
            (false, false) => names.stream(channel),
        };
        self.redis.evict(channel, &key);
    }
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug)]
enum Next {
    Shard(usize, usize),
    Client(usize),
    Redis,
}

pub(crate) fn fault_name(fault: Fault) -> &'static str {
    match fault {
        Fault::PubSubCut => "fault_pubsub_cut",
        Fault::PubSubDeaf => "fault_pubsub_deaf",
        Fault::CommandsCut => "fault_commands_cut",
        Fault::Freeze => "fault_freeze",
        Fault::Slow => "fault_slow",
        Fault::Lag => "fault_lag",
        Fault::Double => "fault_double",
        Fault::Away => "fault_away",
        Fault::FailOver => "fault_fail_over",
        Fault::Empty => "fault_empty",
        Fault::Evict => "fault_evict",
        Fault::Kill => "fault_kill",
        Fault::Pause => "fault_pause",
        Fault::Drain => "fault_drain",
        Fault::HomeFull => "fault_home_full",
    }
}
