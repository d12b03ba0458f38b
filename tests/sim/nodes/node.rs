//! One node of the simulation: its shards on a network of their own, and what is beside them: the broker thread
//! ([`Carrier`]), and the control side, which publishes and orders as the server API does.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use compact_str::CompactString;
use roost::base::id::{ConnKey, ShardId};
use roost::base::rng::Rng;
use roost::base::time::Millis;
use roost::edge::address_limits::{AddressLimits, AddressOptions};
use roost::hub::names::NameHasher;
use roost::io::sim::{SharedWorld, SimDriver, World};
use roost::io::{Alarm, Wake};
use roost::proto::client::ErrorCode;
use roost::shard::crypto::Crypto;
use roost::shard::mail::{
    AdminCommand, Answer, Asker, BROKER, CONTROL, Mail, MailLane, Mailbox, Order, Outside, Publish,
    PublishOptions,
};
use roost::shard::{Memory, NodeParts, NodeState, Notices, Seat, Shard};

use super::carrier::Carrier;
use super::plan::{CHANNELS, NodesPlan};
use super::redis::Redis;
use super::replace::Next;
use super::truth::{Broken, Rule, Truth, broken};

/// Nobody sleeps beside the shards.
struct Awake;

impl Wake for Awake {
    fn wake(&self) {}
}

pub(super) struct Runner {
    pub(super) shard: Shard<SimDriver>,
    pub(super) waits: Option<Option<Millis>>,
    pub(super) stopped: bool,
}

/// What a process begins with beside its shards.
pub(super) struct Begun {
    pub(super) state: Arc<NodeState>,
    pub(super) seats: Vec<Seat>,
    mailbox: Mailbox,
    lanes: Vec<MailLane>,
    of_broker: Mailbox,
    to_homes: Vec<MailLane>,
    pub(super) carrier: Carrier,
    rng: Rng,
}

/// A publication of the server API that waits for its answer.
#[derive(Clone, Debug)]
struct Asked {
    number: u64,
    key: String,
    channel: &'static str,
    data: Vec<u8>,
    since: u64,
}

/// A process of a node, from its start to its end.
pub(crate) struct Node {
    pub(super) at: usize,
    pub(super) process: u8,
    /// Seed of the hashes of names.
    pub(super) names: u64,
    pub(crate) world: SharedWorld,
    state: Arc<NodeState>,
    pub(super) shards: Vec<Runner>,
    mailbox: Mailbox,
    lanes: Vec<MailLane>,
    /// Mail from and to homes of the broker thread.
    of_broker: Mailbox,
    to_homes: Vec<MailLane>,
    pub(crate) carrier: Carrier,
    rng: Rng,
    next_asker: u32,
    asked: BTreeMap<u32, Asked>,
    /// Publications that failed and are to be made again: when.
    again: Vec<(u64, Asked)>,
    orders: BTreeMap<u32, u64>,
    pub(crate) paused_until: u64,
    pub(crate) is_draining: bool,
    /// The process that is to take this one's place.
    pub(super) next: Option<Box<Next>>,
    /// Orders that wait until it has, or has failed.
    gated: Option<Vec<(String, u16)>>,
}

#[expect(clippy::disallowed_methods, reason = "no shard reads it")]
fn zero_of_time() -> std::time::Instant {
    std::time::Instant::now()
}

impl Begun {
    /// A process of a node; its names are hashed with that seed.
    pub(super) fn new(
        plan: &NodesPlan,
        (at, process): (usize, u8),
        world: &SharedWorld,
        names: u64,
        rng: &mut Rng,
    ) -> Self {
        let ids: Vec<ShardId> = (0..plan.shards[at]).map(|at| ShardId(at as u8)).collect();
        let (letterboxes, mailboxes): (Vec<_>, Vec<_>) = ids
            .iter()
            .map(|id| {
                let alarm = Alarm::new(world.borrow().waker(*id));
                Mailbox::new(plan.mailbox_batches, alarm)
            })
            .unzip();
        let beside = || Mailbox::new(plan.mailbox_batches, Alarm::new(Arc::new(Awake)));
        let ((control, mailbox), (broker, of_broker)) = (beside(), beside());
        let outside = Outside { control, broker: Some(broker), presence: None };
        let state = Arc::new(NodeState::new(NodeParts {
            rules: plan.rules(at, process),
            options: plan.options.clone(),
            names: NameHasher::new(names, ids.len()),
            crypto: Crypto::Inline,
            memory: Memory::simulated(1 << 40),
            addresses: AddressLimits::new(AddressOptions::default(), rng.next_u64(), 500),
            notices: Notices::new(zero_of_time()),
            tls: None,
        }));
        let seat = |(id, mailbox): (&ShardId, Mailbox)| {
            let (letterboxes, outside) = (letterboxes.clone(), outside.clone());
            Seat { shard: *id, mailbox, letterboxes, outside, seed: rng.next_u64() }
        };
        let seats = ids.iter().zip(mailboxes).map(seat).collect();
        let lanes = || letterboxes.iter().cloned().map(MailLane::new).collect();
        let (lanes, to_homes) = (lanes(), lanes());
        let of_carrier = Rng::new(rng.next_u64());
        let uid = format!("node{at}.{process}");
        let (operations, bounds) = (plan.operations.clone(), (plan.queue_max, plan.sabotage));
        let mut carrier = Carrier::new(at, uid, ids.len(), operations, bounds, of_carrier);
        carrier.kind = plan.kind;
        let rng = Rng::new(rng.next_u64());
        Self { state, seats, mailbox, lanes, of_broker, to_homes, carrier, rng }
    }
}

impl Node {
    /// A new process.
    pub(crate) fn start(plan: &NodesPlan, at: usize, process: u8, now: u64, rng: &mut Rng) -> Self {
        let world = World::new(rng.next_u64(), plan.sizes(at), plan.net.clone());
        world.borrow_mut().advance_to(Millis(now));
        let names = rng.next_u64();
        let begun = Begun::new(plan, (at, process), &world, names, rng);
        let Begun { state, seats, mailbox, lanes, of_broker, to_homes, carrier, rng } = begun;
        let shards = seats.into_iter().map(|seat| {
            let driver = SimDriver::new(&world, seat.shard);
            let shard = Shard::new(Arc::clone(&state), seat, driver, || {});
            Runner { shard, waits: None, stopped: false }
        });
        Self {
            at,
            process,
            names,
            shards: shards.collect(),
            world,
            state,
            mailbox,
            lanes,
            of_broker,
            to_homes,
            carrier,
            rng,
            next_asker: 1,
            asked: BTreeMap::new(),
            again: Vec::new(),
            orders: BTreeMap::new(),
            paused_until: 0,
            is_draining: false,
            next: None,
            gated: None,
        }
    }

    /// Shards that can have a turn now.
    pub(crate) fn ready(&mut self, now: u64) -> Vec<usize> {
        if self.paused_until > now {
            return Vec::new();
        }
        let mut ready = Vec::new();
        for (at, runner) in self.shards.iter_mut().enumerate().filter(|(_, of)| !of.stopped) {
            let until = *runner.waits.get_or_insert_with(|| runner.shard.wait_until());
            if self.world.borrow().is_ready(ShardId(at as u8), until) {
                ready.push(at);
            }
        }
        ready
    }

    pub(crate) fn turn(&mut self, at: usize) {
        let runner = &mut self.shards[at];
        let until = runner.waits.take().flatten();
        runner.stopped = !runner.shard.turn_after(until);
    }

    /// When there is something to do.
    pub(crate) fn next_at(&self, redis: &Redis) -> u64 {
        let waits = self.shards.iter().filter_map(|runner| runner.waits.flatten());
        let mut next = waits.map(|until| until.0).min().unwrap_or(u64::MAX);
        if let Some(at) = self.world.borrow().next_arrival() {
            next = next.min(at.0);
        }
        next = next.min(self.carrier.next_at(redis).unwrap_or(u64::MAX));
        next = self.again.iter().map(|(at, _)| *at).fold(next, u64::min);
        if self.next.is_some() {
            next = 0;
        }
        next.max(self.paused_until)
    }

    /// The broker thread and the control side do what is due.
    pub(crate) fn step_beside(
        &mut self,
        now: u64,
        redis: &mut Redis,
        truth: &mut Truth,
    ) -> Result<(), Broken> {
        if self.paused_until > now {
            return Ok(());
        }
        while let Some(batch) = self.of_broker.take() {
            for mail in batch.mail {
                let Mail::Command(command) = mail else { panic!("the broker got {mail:?}") };
                self.carrier.take(now, batch.from.index(), *command);
            }
        }
        while let Some(batch) = self.mailbox.take() {
            batch.mail.into_iter().try_for_each(|mail| self.answered(now, mail, truth))?;
        }
        if self.carrier.next_at(redis).is_some_and(|at| at <= now) {
            self.carrier.step(now, redis);
        }
        for (home, lane) in self.to_homes.iter_mut().enumerate() {
            for event in self.carrier.events_of(now, home) {
                lane.push(Mail::BrokerEvent(Box::new(event)));
            }
        }
        if let Some(broken) = self.carrier.broken.take() {
            return Err(broken);
        }
        if self.gated.is_none() {
            for (_, asked) in self.again.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>() {
                self.send(now, asked);
            }
        }
        self.lanes.iter_mut().for_each(|lane| _ = lane.flush(CONTROL));
        self.to_homes.iter_mut().for_each(|lane| _ = lane.flush(BROKER));
        Ok(())
    }

    /// The answer to something that the control side requested.
    fn answered(&mut self, now: u64, mail: Mail, truth: &mut Truth) -> Result<(), Broken> {
        match mail {
            Mail::Published { asker, .. } => {
                let Some(asked) = self.asked.remove(&asker.conn.index) else {
                    return broken(Rule::Answer, format!("{asker:?} has two answers"));
                };
                truth.acknowledged(asked.number)
            }
            Mail::Answer { asker, answer: Answer::Error(failure) } => {
                let Some(asked) = self.asked.remove(&asker.conn.index) else {
                    return broken(Rule::Answer, format!("{asker:?} has two answers"));
                };
                if failure.code != ErrorCode::Internal {
                    return broken(Rule::Temporary, format!("{asked:?} failed: {failure:?}"));
                }
                truth.count("api_failed");
                // Whether it took effect is not known: with a key it can be made again.
                if !asked.key.is_empty() {
                    self.again.push((now + 100 + self.rng.below(1_000), asked));
                }
                Ok(())
            }
            Mail::Ordered { asker, .. } => {
                self.orders.remove(&asker.conn.index);
                Ok(())
            }
            mail => broken(Rule::Answer, format!("the control side got {mail:?}")),
        }
    }

    fn asker(&mut self) -> Asker {
        let conn = ConnKey { index: self.next_asker, generation: NonZeroU32::MIN };
        self.next_asker += 1;
        Asker::of(conn)
    }

    /// Publishes as the server API does, with an idempotency key or without.
    pub(crate) fn publish(&mut self, now: u64, truth: &mut Truth) {
        let channel = CHANNELS[self.rng.below(CHANNELS.len() as u64) as usize];
        let key =
            if self.rng.one_in(2) { format!("k{}", self.rng.next_u64()) } else { String::new() };
        let number = truth.make(channel, &key);
        let data = format!(r#"{{"n":{number},"by":"the API of node {}"}}"#, self.at).into_bytes();
        let asked = Asked { number, key, channel, data, since: now };
        match self.gated {
            None => self.send(now, asked),
            Some(_) => self.again.push((now, asked)),
        }
    }

    /// From now on what is requested waits until another process has taken over, or has failed.
    pub(super) fn hold_requests(&mut self) {
        self.gated.get_or_insert_default();
    }

    /// It has: what has waited is done.
    pub(super) fn release_requests(&mut self, now: u64) {
        for (user, code) in self.gated.take().unwrap_or_default() {
            self.disconnect(now, &user, code);
        }
    }

    /// Whether nothing is on its way to shards, brokers or the control side.
    pub(super) fn is_quiet(&self) -> bool {
        let lanes = self.lanes.iter().chain(&self.to_homes).all(MailLane::is_empty);
        let mail = self.mailbox.waiting().0 + self.of_broker.waiting().0;
        let shards = self.shards.iter().all(|runner| runner.shard.unsettled().is_empty());
        let control = self.asked.is_empty() && self.orders.is_empty();
        lanes && mail == 0 && control && self.carrier.is_quiet() && shards
    }

    /// Another process is in the place of this one: its shards, and what is beside them.
    pub(super) fn become_next(&mut self, begun: Begun, shards: Vec<Runner>) -> Carrier {
        let Begun { state, mailbox, lanes, of_broker, to_homes, carrier, .. } = begun;
        (self.state, self.shards, self.mailbox, self.lanes) = (state, shards, mailbox, lanes);
        (self.of_broker, self.to_homes) = (of_broker, to_homes);
        std::mem::replace(&mut self.carrier, carrier)
    }

    fn send(&mut self, now: u64, asked: Asked) {
        let asker = self.asker();
        let hash = self.state.names.hash(asked.channel);
        let key = CompactString::from(asked.key.as_str());
        let options = PublishOptions { idempotency_key: key, ..PublishOptions::default() };
        let publish = Publish {
            channel: asked.channel.into(),
            hash,
            namespace: self.state.rules.channels.load().resolve(asked.channel).unwrap().index,
            asker: Some(asker),
            data: asked.data.as_slice().into(),
            info: Box::default(),
            tags: (&[][..]).into(),
            is_json: true,
            options: Some(Arc::new(options)),
        };
        let home = self.state.names.home(hash).index();
        self.lanes[home].push(Mail::Publish(Box::new(publish)));
        self.asked.insert(asker.conn.index, Asked { since: now, ..asked });
    }

    /// Closes the connections of a user, as an order of the server API that reached this node.
    pub(crate) fn disconnect(&mut self, now: u64, user: &str, code: u16) {
        if let Some(gated) = &mut self.gated {
            return gated.push((user.to_owned(), code));
        }
        for at in 0..self.lanes.len() {
            let asker = self.asker();
            self.orders.insert(asker.conn.index, now);
            let command =
                AdminCommand::Disconnect { code, reason: "again".into(), spare: Vec::new() };
            let (client, session) = (CompactString::default(), CompactString::default());
            let user = user.into();
            let order = Order { asker, user, all_users: false, client, session, command };
            self.lanes[at].push(Mail::Order(Box::new(order)));
        }
    }

    /// Something has waited for its answer for too long.
    pub(crate) fn check_patience(&self, now: u64, patience_ms: u64) -> Result<(), Broken> {
        let is_late = |since: u64| now > since.max(self.paused_until) + patience_ms;
        if let Some(asked) = self.asked.values().find(|asked| is_late(asked.since)) {
            return broken(Rule::Answer, format!("node {}: no answer to {asked:?}", self.at));
        }
        match self.orders.values().find(|since| is_late(**since)) {
            Some(since) => {
                broken(Rule::Answer, format!("node {}: an order of {since} waits", self.at))
            }
            None => Ok(()),
        }
    }

    /// All connections are closed, and no new ones are taken.
    pub(crate) fn drain(&mut self) {
        self.is_draining = true;
        self.lanes.iter_mut().for_each(|lane| lane.push(Mail::Drain { per_second: 50 }));
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.is_draining && self.state.drained.load(Ordering::Acquire) as usize == self.shards.len()
    }

    pub(crate) fn figures(&self) -> BTreeMap<&'static str, u64> {
        let mut sums = BTreeMap::new();
        for counters in &self.state.counters {
            counters.each(|name, value| *sums.entry(name).or_insert(0) += value);
        }
        sums
    }

    /// Whether the control side waits for nothing.
    pub(crate) fn is_settled(&self) -> bool {
        let is_open = self.gated.is_none();
        is_open && self.asked.is_empty() && self.again.is_empty() && self.orders.is_empty()
    }

    /// In the end: nothing is open, counted or listened to.
    pub(crate) fn check_rest(&self) -> Result<(), Broken> {
        for runner in &self.shards {
            if let Err(text) = runner.shard.is_quiescent() {
                return broken(Rule::Rest, format!("node {}: {text}", self.at));
            }
        }
        let figures = self.figures();
        for name in ["sessions_open", "users", "subscriptions", "channels_local", "queued_bytes"] {
            if figures[name] != 0 {
                return broken(Rule::Rest, format!("node {}: {name} {}", self.at, figures[name]));
            }
        }
        for home in 0..self.shards.len() {
            if let Some(channel) = self.carrier.listened(home).next() {
                return broken(Rule::Rest, format!("node {} listens to {channel}", self.at));
            }
        }
        Ok(())
    }
}
