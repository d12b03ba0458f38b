//! A client of the simulation of several nodes: the real protocol over WebSocket, connections to any node, and
//! its places in channels, which it carries from one node to the other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use roost::base::rng::Rng;
use roost::edge::jwt::Signer;
use roost::io::sim::{LinkId, Seen, SharedWorld};
use roost::proto::http;
use roost::proto::ws::{self, Event, ReadRules, Reader};

use super::plan::{BY_TOKEN, CHANNELS, NodesPlan, Sabotage};
use super::redis::number_in;
use super::truth::{Broken, Place, Rule, Truth, broken};
use crate::plan::SECRET;
use crate::wire::{
    ChannelRequest, Command, ConnectRequest, HistoryRequest, Publication, PublishRequest, Push,
    Reply, StreamPosition, SubscribeRequest, SubscribeResult, replies,
};

/// The phase of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Clients come, go and publish; things go wrong.
    Faults,
    /// Nothing goes wrong any more: all connect and subscribe.
    Heal,
    /// Only what is requested of clients.
    Quiet,
    /// All go.
    Leave,
}

/// What all clients share.
pub(crate) struct Scene<'a> {
    pub(crate) now: u64,
    pub(crate) phase: Phase,
    pub(crate) plan: &'a NodesPlan,
    pub(crate) truth: &'a mut Truth,
    /// Nodes that take connections, with their networks.
    pub(crate) nodes: &'a [(usize, SharedWorld)],
    /// Disconnects that were ordered, by code: the user.
    pub(crate) orders: &'a BTreeMap<u16, String>,
    /// A node is drained, or was.
    pub(crate) drains: bool,
    /// Redis or a node has been in trouble a short while ago.
    pub(crate) is_troubled: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum What {
    Connect,
    Subscribe(&'static str),
    Unsubscribe(&'static str),
    Publish(u64),
    Presence(&'static str),
    /// The newest first?
    History(&'static str, bool),
}

#[derive(Clone, Debug)]
struct Pending {
    what: What,
    since: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Off,
    /// The subscribe was sent; with a place to recover from.
    Asked {
        recovers: bool,
    },
    On,
    Leaving,
}

/// A channel, as the client sees it.
#[derive(Debug, Default)]
struct Sub {
    state: State,
    place: Option<Place>,
    /// Numbers that came in this subscription.
    seen: BTreeSet<u64>,
    /// Publications are patches or texts: with the latest text.
    base: Option<Vec<u8>>,
    is_delta: bool,
    /// Other clients: whether their latest event was a join.
    others: BTreeMap<String, bool>,
    retry_at: u64,
    attempts: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connection {
    Offline { until: u64 },
    Upgrading,
    Connecting,
    Online,
}

pub(crate) struct Client {
    index: usize,
    rng: Rng,
    user: String,
    protobuf: bool,
    is_slow: bool,
    /// Its token names [`BY_TOKEN`].
    is_by_token: bool,
    connection: Connection,
    since: u64,
    pub(crate) node: usize,
    world: Option<SharedWorld>,
    link: Option<LinkId>,
    out: VecDeque<u8>,
    head: Vec<u8>,
    reader: Reader,
    pub(crate) id: String,
    next_id: u32,
    pending: BTreeMap<u32, Pending>,
    subs: BTreeMap<&'static str, Sub>,
    act_at: u64,
    read_at: u64,
    /// Members that a presence request has shown last, by channel.
    pub(crate) shown: BTreeMap<&'static str, BTreeSet<String>>,
    /// It keeps its messages to show them.
    is_talkative: bool,
    pub(crate) log: VecDeque<String>,
}

/// Time for any answer, without pauses of nodes.
pub(crate) const PATIENCE_MS: u64 = 40_000;

impl Client {
    pub(crate) fn new(index: usize, mut rng: Rng, plan: &NodesPlan, now: u64, log: bool) -> Self {
        Self {
            index,
            user: format!("user{}", rng.below(4)),
            protobuf: rng.one_in(2),
            is_slow: index < plan.slow_clients,
            is_by_token: rng.one_in(4),
            connection: Connection::Offline { until: now + rng.below(500) },
            since: now,
            node: 0,
            world: None,
            link: None,
            out: VecDeque::new(),
            head: Vec::new(),
            reader: Reader::new(),
            id: String::new(),
            next_id: 1,
            pending: BTreeMap::new(),
            subs: CHANNELS.iter().map(|channel| (*channel, Sub::default())).collect(),
            act_at: 0,
            read_at: 0,
            shown: BTreeMap::new(),
            rng,
            is_talkative: log,
            log: VecDeque::new(),
        }
    }

    fn say(&mut self, now: u64, text: impl FnOnce() -> String) {
        if self.is_talkative {
            self.log.push_back(format!("{now} {}", text()));
            if self.log.len() > 300 {
                self.log.pop_front();
            }
        }
    }

    pub(crate) fn show(&self) -> String {
        let lines: Vec<_> = self.log.iter().map(String::as_str).collect();
        let Self { index, connection, node, id, subs, .. } = self;
        format!(
            "client {index} {connection:?} node {node} {id} {subs:?}\n    {}",
            lines.join("\n    ")
        )
    }

    /// When there is something to do.
    pub(crate) fn next_at(&self) -> u64 {
        let (Some(world), Some(link)) = (&self.world, self.link) else {
            return match self.connection {
                Connection::Offline { until } => until,
                _ => u64::MAX,
            };
        };
        let world = world.borrow();
        if !self.out.is_empty() && world.has_room(link) {
            return 0;
        }
        let read = if world.look(link) == Seen::Nothing { u64::MAX } else { self.read_at };
        if self.connection == Connection::Online { read.min(self.act_at) } else { read }
    }

    /// Whether it has all of its channels.
    pub(crate) fn is_settled(&self) -> bool {
        self.connection == Connection::Online
            && self.pending.is_empty()
            && self.subs.values().all(|sub| sub.state == State::On)
    }

    pub(crate) fn is_offline(&self) -> bool {
        self.link.is_none()
    }

    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether its subscription of a channel has the newest publication.
    pub(crate) fn has_newest(&self, channel: &str, newest: u64) -> bool {
        let sub = &self.subs[channel];
        match &sub.place {
            Some(place) if NodesPlan::has_history(channel) => place.latest.contains(&newest),
            _ => sub.seen.contains(&newest),
        }
    }

    /// It comes back.
    pub(crate) fn return_at(&mut self, at: u64) {
        if self.link.is_none() {
            self.connection = Connection::Offline { until: at };
        }
    }

    /// Its node has died.
    pub(crate) fn lose_node(&mut self, now: u64) {
        if self.link.is_some() {
            self.say(now, || "its node is gone".into());
            self.gone(now);
        }
    }

    /// It waits for too long.
    pub(crate) fn check_patience(&self, now: u64, still: u64) -> Result<(), Broken> {
        let is_late = |since: u64| now > since + PATIENCE_MS + still;
        let waits = matches!(self.connection, Connection::Upgrading | Connection::Connecting);
        if waits && is_late(self.since) {
            return broken(Rule::Answer, format!("client {} waits: {}", self.index, self.show()));
        }
        match self.pending.values().find(|pending| is_late(pending.since)) {
            Some(pending) => {
                broken(Rule::Answer, format!("no answer to {pending:?}: {}", self.show()))
            }
            None => Ok(()),
        }
    }

    pub(crate) fn step(&mut self, scene: &mut Scene<'_>) -> Result<(), Broken> {
        self.step_inside(scene).map_err(|(rule, text)| (rule, format!("{text}\n{}", self.show())))
    }

    fn step_inside(&mut self, scene: &mut Scene<'_>) -> Result<(), Broken> {
        let (Some(world), Some(link)) = (self.world.clone(), self.link) else {
            if scene.phase < Phase::Leave {
                self.connect(scene);
            } else {
                self.connection = Connection::Offline { until: u64::MAX };
            }
            return Ok(());
        };
        self.flush(&world, link);
        if self.read_at <= scene.now {
            let seen = world.borrow().look(link);
            match seen {
                Seen::Nothing => {}
                Seen::Bytes(_) => {
                    let max =
                        if self.is_slow && scene.phase == Phase::Faults { 300 } else { 1 << 20 };
                    let bytes = world.borrow_mut().read(link, max);
                    if self.is_slow && scene.phase == Phase::Faults {
                        self.read_at = scene.now + self.rng.below(600);
                    }
                    self.bytes(scene, bytes)?;
                }
                Seen::Ended | Seen::Reset => {
                    self.say(scene.now, || format!("{seen:?}"));
                    self.gone(scene.now);
                    return Ok(());
                }
            }
        }
        if self.connection == Connection::Online && self.act_at <= scene.now {
            self.act_at = scene.now + 1 + self.rng.below(scene.plan.think_ms * 2);
            match scene.phase {
                Phase::Faults => self.act(scene),
                Phase::Heal | Phase::Quiet => self.subscribe_all(scene),
                Phase::Leave => self.leave(scene.now),
            }
        }
        if self.link.is_some() {
            self.flush(&world, link);
        }
        Ok(())
    }

    fn flush(&mut self, world: &SharedWorld, link: LinkId) {
        if !self.out.is_empty() {
            let taken = world.borrow_mut().write(link, self.out.make_contiguous());
            self.out.drain(..taken);
        }
    }

    /// The connection has ended.
    fn gone(&mut self, now: u64) {
        self.connection = Connection::Offline { until: now + self.rng.below(600) };
        (self.link, self.world) = (None, None);
        self.pending.clear();
        self.id.clear();
        for sub in self.subs.values_mut() {
            (sub.state, sub.retry_at, sub.attempts) = (State::Off, 0, 0);
            sub.seen.clear();
            sub.others.clear();
        }
    }

    fn connect(&mut self, scene: &mut Scene<'_>) {
        let later = Connection::Offline { until: scene.now + 200 };
        self.connection = later;
        if scene.nodes.is_empty() {
            return;
        }
        let (node, world) = scene.nodes[self.rng.below(scene.nodes.len() as u64) as usize].clone();
        let Some(link) = world.borrow_mut().connect() else { return };
        self.say(scene.now, || format!("connects to node {node}"));
        (self.node, self.link, self.world) = (node, Some(link), Some(world));
        (self.connection, self.since) = (Connection::Upgrading, scene.now);
        self.out.clear();
        self.head.clear();
        self.reader = Reader::new();
        let format = if self.protobuf { "?format=protobuf" } else { "" };
        let target = format!("/connection/websocket{format}");
        let mut request = Vec::new();
        http::put_upgrade_request(&mut request, "sim", &target, &[7; 16], None, &[]);
        self.out.extend(request);
    }

    fn send(&mut self, scene: &Scene<'_>, what: What, mut command: Command) {
        let id = self.next_id;
        self.next_id += 1;
        command.id = id;
        self.pending.insert(id, Pending { what, since: scene.now });
        self.say(scene.now, || format!("> {}", serde_json::to_string(&command).unwrap()));
        let message = command.encode(self.protobuf);
        self.message(&message);
    }

    fn send_connect(&mut self, scene: &Scene<'_>) {
        let signer = Signer::new(SECRET);
        let mut connect = ConnectRequest::default();
        if self.is_by_token {
            let claims = serde_json::json!({"sub": self.user, "channels": [BY_TOKEN]});
            connect.token = signer.sign(&claims).unwrap();
            let request = self.request(BY_TOKEN);
            if request.recover {
                connect.subs.insert(BY_TOKEN.into(), request);
            }
        } else {
            connect.token = signer.connection_token(&self.user, None);
        }
        let connect = Some(connect);
        self.send(scene, What::Connect, Command { connect, ..Default::default() });
    }

    fn message(&mut self, message: &[u8]) {
        let opcode = if self.protobuf { ws::BINARY } else { ws::TEXT };
        let mut frame = Vec::new();
        ws::put_masked(&mut frame, opcode, message, [1, 2, 3, 4]);
        self.out.extend(frame);
    }

    fn act(&mut self, scene: &mut Scene<'_>) {
        if self.pending.len() > 20 {
            return;
        }
        if self.rng.one_in(60) {
            return self.leave(scene.now);
        }
        for _ in 0..=self.rng.below(2) {
            let channel = CHANNELS[self.rng.below(CHANNELS.len() as u64) as usize];
            match self.rng.below(12) {
                0..=4 => self.subscribe(scene, channel),
                5 => self.unsubscribe(scene, channel),
                6..=9 => drop(self.publish(scene, channel)),
                10 => self.ask_presence(scene, channel),
                _ => self.read_history(scene, channel),
            }
        }
    }

    fn subscribe_all(&mut self, scene: &mut Scene<'_>) {
        CHANNELS.iter().for_each(|channel| self.subscribe(scene, channel));
    }

    /// It ends the connection: with a close frame, or without one.
    pub(crate) fn leave(&mut self, now: u64) {
        let (Some(world), Some(link)) = (self.world.clone(), self.link) else { return };
        self.say(now, || "leaves".into());
        if self.rng.one_in(2) {
            world.borrow_mut().reset(link);
        } else {
            world.borrow_mut().shut(link);
        }
        self.gone(now);
    }

    /// The request for a channel, from the place that it has there.
    fn request(&mut self, channel: &'static str) -> SubscribeRequest {
        let mut request = SubscribeRequest { channel: channel.into(), ..Default::default() };
        if channel.starts_with("delta") && self.rng.one_in(2) {
            request.delta = "fossil".into();
        }
        let Some(sub) = self.subs.get_mut(channel) else { return request };
        if let (true, Some(place)) = (NodesPlan::recovers(channel), &sub.place) {
            request.recover = true;
            (request.epoch, request.offset) = (place.epoch.clone(), place.offset);
        }
        sub.state = State::Asked { recovers: request.recover };
        sub.base = None;
        sub.seen.clear();
        sub.others.clear();
        request
    }

    fn is_of_token(&self, channel: &str) -> bool {
        self.is_by_token && channel == BY_TOKEN
    }

    fn subscribe(&mut self, scene: &mut Scene<'_>, channel: &'static str) {
        let is_of_token = self.is_of_token(channel);
        let Some(sub) = self.subs.get_mut(channel) else { return };
        if sub.state != State::Off || scene.now < sub.retry_at || is_of_token {
            return;
        }
        let request = self.request(channel);
        let command = Command { subscribe: Some(request), ..Default::default() };
        self.send(scene, What::Subscribe(channel), command);
    }

    fn unsubscribe(&mut self, scene: &mut Scene<'_>, channel: &'static str) {
        let is_of_token = self.is_of_token(channel);
        let Some(sub) = self.subs.get_mut(channel) else { return };
        if sub.state != State::On || is_of_token {
            return;
        }
        sub.state = State::Leaving;
        let unsubscribe = Some(ChannelRequest { channel: channel.into() });
        self.send(scene, What::Unsubscribe(channel), Command { unsubscribe, ..Default::default() });
    }

    /// Publishes: the publication's number.
    pub(crate) fn publish(&mut self, scene: &mut Scene<'_>, channel: &'static str) -> u64 {
        let number = scene.truth.make(channel, "");
        let pad = "x".repeat(self.rng.below(200) as usize);
        let data = format!(r#"{{"n":{number},"by":"{}","pad":"{pad}"}}"#, self.index).into_bytes();
        let publish = Some(PublishRequest { channel: channel.into(), data });
        self.send(scene, What::Publish(number), Command { publish, ..Default::default() });
        number
    }

    pub(crate) fn ask_presence(&mut self, scene: &mut Scene<'_>, channel: &'static str) {
        let presence = Some(ChannelRequest { channel: channel.into() });
        self.send(scene, What::Presence(channel), Command { presence, ..Default::default() });
    }

    fn read_history(&mut self, scene: &mut Scene<'_>, channel: &'static str) {
        if !NodesPlan::has_history(channel) {
            return;
        }
        let limit = [-1, 0, 1, 5][self.rng.below(4) as usize];
        let reverse = self.rng.one_in(2);
        let place = self.subs[channel].place.as_ref().filter(|place| place.offset > 0);
        let since = place
            .filter(|_| reverse && self.rng.one_in(2))
            .map(|place| StreamPosition { offset: place.offset, epoch: String::new() });
        // Backwards from the newest one is how nodes read, see `Carrier::check_read`.
        let reverse = since.is_some();
        let request = HistoryRequest { channel: channel.into(), limit, since, reverse };
        self.send(
            scene,
            What::History(channel, reverse),
            Command { history: Some(request), ..Default::default() },
        );
    }

    fn bytes(&mut self, scene: &mut Scene<'_>, mut bytes: Vec<u8>) -> Result<(), Broken> {
        if self.connection == Connection::Upgrading {
            self.head.extend_from_slice(&bytes);
            match http::parse_upgrade_response(&self.head, &[7; 16]) {
                Ok(None) => return Ok(()),
                Ok(Some(len)) => {
                    bytes = self.head.split_off(len);
                    self.connection = Connection::Connecting;
                    self.send_connect(scene);
                }
                // A node that is drained, or about to end.
                Err(http::UpgradeRefused::Status(503)) if scene.drains => {
                    self.leave(scene.now);
                    return Ok(());
                }
                Err(fault) => return broken(Rule::Connection, format!("no upgrade: {fault}")),
            }
        }
        let mut reader = std::mem::take(&mut self.reader);
        let rules = ReadRules { masked: false, deflate: false, message_bytes_max: 1 << 24 };
        let mut at = 0;
        loop {
            match reader.next(&rules, &mut bytes, &mut at) {
                Ok(Some(Event::Message { data, .. })) => {
                    let data = data.to_vec();
                    for (_, reply) in
                        replies(self.protobuf, &data).map_err(|of| (Rule::Answer, of))?
                    {
                        self.reply(scene, reply)?;
                        if self.link.is_none() {
                            return Ok(());
                        }
                    }
                }
                Ok(Some(Event::Close { code, .. })) => {
                    return self.closed(scene, code.unwrap_or(1005));
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(fault) => return broken(Rule::Answer, format!("{fault}")),
            }
        }
        self.reader = reader;
        Ok(())
    }

    /// The server closes the connection.
    fn closed(&mut self, scene: &mut Scene<'_>, code: u16) -> Result<(), Broken> {
        self.say(scene.now, || format!("closed with {code}"));
        let may = match code {
            3001 => scene.drains,
            // Too slow, or no pong in time.
            3008 | 3012 => self.is_slow || scene.is_troubled,
            // A gap in a subscription that the server made.
            3010 if self.is_by_token => {
                scene.truth.count("told");
                if scene.plan.keeps_all() {
                    scene.truth.needless.get_or_insert_with(|| format!("closed with {code}"));
                }
                true
            }
            code => scene.orders.get(&code) == Some(&self.user),
        };
        if !may {
            return broken(Rule::Connection, format!("closed with {code}"));
        }
        self.leave(scene.now);
        Ok(())
    }

    fn reply(&mut self, scene: &mut Scene<'_>, reply: Reply) -> Result<(), Broken> {
        if reply == Reply::default() {
            let pong = Command::default().encode(self.protobuf);
            self.message(&pong);
            return Ok(());
        }
        self.say(scene.now, || {
            // Patches in Protobuf are no JSON.
            let json = serde_json::to_string(&reply).unwrap_or_else(|_| format!("{reply:?}"));
            format!("< {json}")
        });
        if let Some(push) = reply.push {
            return self.push(scene, push);
        }
        if scene.plan.sabotage == Some(Sabotage::DropReply) && self.rng.one_in(30) {
            return Ok(());
        }
        let Some(pending) = self.pending.remove(&reply.id) else {
            return broken(Rule::Answer, format!("nobody waits for {reply:?}"));
        };
        if let Some(mut error) = reply.error {
            error.temporary &= scene.plan.sabotage != Some(Sabotage::PermanentError);
            if (error.code, error.temporary) != (100, true) {
                return broken(Rule::Temporary, format!("{pending:?} failed: {error:?}"));
            }
            if !scene.is_troubled {
                return broken(Rule::Temporary, format!("{pending:?} failed without a reason"));
            }
            scene.truth.count("temporary_errors");
            if scene.plan.sabotage == Some(Sabotage::CloseConnection) {
                return self.closed(scene, 3004);
            }
            return self.failed(scene, pending.what);
        }
        match pending.what {
            What::Connect => {
                let result = reply.connect.unwrap_or_default();
                self.id = result.client;
                (self.connection, self.act_at) = (Connection::Online, scene.now);
                let mut subs = result.subs;
                match (subs.remove(BY_TOKEN), self.is_by_token) {
                    (Some(result), true) => self.subscribed(scene, BY_TOKEN, result),
                    (None, false) => Ok(()),
                    (sub, _) => broken(Rule::Answer, format!("by its token: {sub:?}")),
                }
            }
            What::Subscribe(channel) => {
                self.subscribed(scene, channel, reply.subscribe.unwrap_or_default())
            }
            What::Unsubscribe(channel) => {
                let forgets = self.rng.one_in(2);
                if let Some(sub) = self.subs.get_mut(channel) {
                    sub.state = State::Off;
                    sub.place = sub.place.take().filter(|_| !forgets);
                }
                Ok(())
            }
            What::Publish(number) => {
                scene.truth.count("acknowledged");
                scene.truth.acknowledged(number)
            }
            What::Presence(channel) => {
                let present = reply.presence.unwrap_or_default().presence;
                self.shown.insert(channel, present.into_keys().collect());
                Ok(())
            }
            What::History(channel, reverse) => {
                let mut history = reply.history.unwrap_or_default();
                scene.truth.place(channel, &history.epoch, history.offset)?;
                if reverse {
                    history.publications.reverse();
                }
                let offsets: Vec<u64> = history.publications.iter().map(|of| of.offset).collect();
                let is_right = offsets.windows(2).all(|pair| pair[0] < pair[1])
                    && offsets.last().is_none_or(|last| *last <= history.offset);
                if !is_right {
                    let text = format!("{channel}: {offsets:?} at {}", history.offset);
                    return broken(Rule::Recovery, text);
                }
                Ok(())
            }
        }
    }

    /// A temporary error: it tries again later.
    fn failed(&mut self, scene: &mut Scene<'_>, what: What) -> Result<(), Broken> {
        match what {
            What::Subscribe(channel) => {
                if let Some(sub) = self.subs.get_mut(channel) {
                    sub.state = State::Off;
                    sub.attempts += 1;
                    sub.retry_at = scene.now + self.rng.below(200 << sub.attempts.min(4));
                }
                Ok(())
            }
            What::Connect | What::Unsubscribe(_) => {
                broken(Rule::Temporary, format!("{what:?} needs no broker"))
            }
            What::Publish(_) | What::Presence(_) | What::History(..) => Ok(()),
        }
    }

    fn subscribed(
        &mut self,
        scene: &mut Scene<'_>,
        channel: &'static str,
        mut result: SubscribeResult,
    ) -> Result<(), Broken> {
        let sabotage = scene.plan.sabotage;
        let Some(sub) = self.subs.get_mut(channel) else { return Ok(()) };
        let recovers = sub.state == State::Asked { recovers: true };
        (sub.state, sub.attempts) = (State::On, 0);
        sub.is_delta = result.delta;
        if !NodesPlan::has_history(channel) {
            return Ok(());
        }
        let begin = scene.truth.place(channel, &result.epoch, result.offset)?;
        if recovers && !result.recovered && sabotage == Some(Sabotage::FalseRecovery) {
            result.recovered = true;
        }
        if !recovers || !result.recovered {
            if recovers {
                scene.truth.count("unrecovered");
                let missing =
                    sub.place.as_ref().map_or(0, |place| begin.offset.saturating_sub(place.offset));
                let may_miss = channel.starts_with("small") || !scene.plan.keeps_all();
                if !may_miss && missing <= scene.plan.recovered_max(channel) {
                    let text = || {
                        let now = scene.now;
                        format!("{now} client {} {channel} {:?}: {result:?}", self.index, sub.place)
                    };
                    scene.truth.needless.get_or_insert_with(text);
                }
            }
            sub.place = Some(begin);
            return Ok(());
        }
        scene.truth.count("recovered");
        let Some(place) = &mut sub.place else { return Ok(()) };
        if place.epoch != result.epoch {
            let text = format!("{channel} recovers in another epoch: {place:?}, {result:?}");
            return broken(Rule::Recovery, text);
        }
        // Epoch and offset can't show that the stream went back and was written anew while it was away.
        let mut excused = scene.truth.is_lost(&place.latest);
        if excused {
            scene.truth.count("unnoticed_rewinds");
        }
        // The result has the offset of the request: publications follow it.
        if place.offset != begin.offset {
            let text = format!("{channel} has all up to {place:?} and goes on at {begin:?}");
            return broken(Rule::Recovery, text);
        }
        for publication in &result.publications {
            let data = text_of(&mut sub.base, sub.is_delta, self.protobuf, publication)?;
            let number = number_of(&data)?;
            scene.truth.check(place, publication.offset, number, excused)?;
            sub.seen.insert(number);
            excused = false;
        }
        if excused {
            place.latest.extend(begin.latest);
        }
        Ok(())
    }

    fn push(&mut self, scene: &mut Scene<'_>, push: Push) -> Result<(), Broken> {
        if let Some(disconnect) = push.disconnect {
            return self.closed(scene, disconnect.code as u16);
        }
        let Some((channel, _)) = self.subs.get_key_value(push.channel.as_str()) else {
            return broken(Rule::Answer, format!("{push:?} for no channel"));
        };
        let channel = *channel;
        if let Some(publication) = &push.r#pub {
            return self.publication(scene, channel, publication);
        }
        let Some(sub) = self.subs.get_mut(channel) else { return Ok(()) };
        if let Some(unsubscribe) = push.unsubscribe {
            scene.truth.count("told");
            if unsubscribe.code != 2500 {
                return broken(Rule::Connection, format!("{channel}: {unsubscribe:?}"));
            }
            if scene.plan.keeps_all() && !channel.starts_with("small") {
                let text = || format!("{channel} at {:?} got {unsubscribe:?}", sub.place);
                scene.truth.needless.get_or_insert_with(text);
            }
            // The reply to its own unsubscribe still comes.
            if sub.state != State::Leaving {
                (sub.state, sub.retry_at) = (State::Off, 0);
            }
            return Ok(());
        }
        for (event, joined) in [(push.join, true), (push.leave, false)] {
            let Some(info) = event.and_then(|event| event.info) else { continue };
            scene.truth.count("events");
            let repeats = scene.plan.sabotage == Some(Sabotage::RepeatJoin);
            for _ in 0..=u32::from(repeats) {
                let before = sub.others.insert(info.client.clone(), joined);
                if before == Some(joined) && scene.plan.keeps_events() {
                    let text = format!("{channel}: {} joined or left twice: {joined}", info.client);
                    scene.truth.repeated_event.get_or_insert(text);
                }
            }
        }
        Ok(())
    }

    fn publication(
        &mut self,
        scene: &mut Scene<'_>,
        channel: &'static str,
        publication: &Publication,
    ) -> Result<(), Broken> {
        let sabotage = scene.plan.sabotage;
        let Some(sub) = self.subs.get_mut(channel) else { return Ok(()) };
        if !matches!(sub.state, State::On | State::Leaving) {
            return broken(
                Rule::Answer,
                format!("{channel}: {publication:?} without a subscription"),
            );
        }
        let data = text_of(&mut sub.base, sub.is_delta, self.protobuf, publication)?;
        let number = number_of(&data)?;
        let drops = match sabotage {
            Some(Sabotage::DropPublication) => self.rng.one_in(20),
            Some(Sabotage::DropLastPublications) => scene.phase == Phase::Quiet,
            _ => false,
        };
        if drops {
            return Ok(());
        }
        let times = if sabotage == Some(Sabotage::RepeatPublication) { 2 } else { 1 };
        for _ in 0..times {
            scene.truth.count("deliveries");
            match &mut sub.place {
                Some(place) if NodesPlan::has_history(channel) => {
                    scene.truth.check(place, publication.offset, number, false)?;
                }
                _ if !sub.seen.insert(number) => {
                    return broken(Rule::Twice, format!("{channel}: {number} comes twice"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The data of a publication, which may be a patch. In JSON, texts and patches are strings.
fn text_of(
    base: &mut Option<Vec<u8>>,
    is_delta: bool,
    protobuf: bool,
    publication: &Publication,
) -> Result<Vec<u8>, Broken> {
    let mut data = publication.data.clone();
    if !is_delta {
        return Ok(data);
    }
    if !protobuf {
        let text: Result<String, _> = serde_json::from_slice(&data);
        data = text.map_err(|_| (Rule::Chain, format!("no string: {publication:?}")))?.into_bytes();
    }
    if publication.delta {
        let patched = base.as_ref().and_then(|base| fossil_delta::apply(base, &data).ok());
        data =
            patched.ok_or_else(|| (Rule::Chain, format!("no patch of that: {publication:?}")))?;
    }
    *base = Some(data.clone());
    Ok(data)
}

fn number_of(data: &[u8]) -> Result<u64, Broken> {
    number_in(data).ok_or_else(|| (Rule::Chain, format!("{:?}", String::from_utf8_lossy(data))))
}
