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
use super::truth::{Broken, Rule, Truth, broken};

/// Nobody sleeps beside the shards.
struct Awake;

impl Wake for Awake {
    fn wake(&self) {}
}

struct Runner {
    shard: Shard<SimDriver>,
    waits: Option<Option<Millis>>,
    stopped: bool,
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
    at: usize,
    pub(crate) world: SharedWorld,
    state: Arc<NodeState>,
    shards: Vec<Runner>,
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
}

#[expect(clippy::disallowed_methods, reason = "no shard reads it")]
fn zero_of_time() -> std::time::Instant {
    std::time::Instant::now()
}

impl Node {
    /// A new process.
    pub(crate) fn start(plan: &NodesPlan, at: usize, process: u8, now: u64, rng: &mut Rng) -> Self {
        let world = World::new(rng.next_u64(), plan.sizes(at), plan.net.clone());
        world.borrow_mut().advance_to(Millis(now));
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
            names: NameHasher::new(rng.next_u64(), ids.len()),
            crypto: Crypto::Inline,
            memory: Memory::simulated(1 << 40),
            addresses: AddressLimits::new(AddressOptions::default(), rng.next_u64(), 500),
            notices: Notices::new(zero_of_time()),
            tls: None,
        }));
        let seat = |(id, mailbox): (&ShardId, Mailbox), seed| {
            let (letterboxes, outside) = (letterboxes.clone(), outside.clone());
            let seat = Seat { shard: *id, mailbox, letterboxes, outside, seed };
            let driver = SimDriver::new(&world, *id);
            let shard = Shard::new(Arc::clone(&state), seat, driver, || {});
            Runner { shard, waits: None, stopped: false }
        };
        let shards = ids.iter().zip(mailboxes).map(|of| seat(of, rng.next_u64())).collect();
        let lanes = || letterboxes.iter().cloned().map(MailLane::new).collect();
        let (lanes, to_homes) = (lanes(), lanes());
        let of_carrier = Rng::new(rng.next_u64());
        let uid = format!("node{at}.{process}");
        let (operations, bounds) = (plan.operations.clone(), (plan.queue_max, plan.sabotage));
        Self {
            at,
            world,
            state,
            shards,
            mailbox,
            lanes,
            of_broker,
            to_homes,
            carrier: Carrier::new(at, uid, ids.len(), operations, bounds, of_carrier),
            rng: Rng::new(rng.next_u64()),
            next_asker: 1,
            asked: BTreeMap::new(),
            again: Vec::new(),
            orders: BTreeMap::new(),
            paused_until: 0,
            is_draining: false,
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
        for (_, asked) in self.again.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>() {
            self.send(now, asked);
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
        self.send(now, Asked { number, key, channel, data, since: now });
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
        self.asked.is_empty() && self.again.is_empty() && self.orders.is_empty()
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
