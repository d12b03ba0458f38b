//! One client: real bytes over a simulated connection, a random program, and what it knows of what
//! it must be told.

use std::collections::{BTreeMap, VecDeque};

use roost::base::rng::Rng;
use roost::edge::jwt::Signer;
use roost::io::sim::{LinkId, Seen, World};
use roost::proto::http;
use roost::proto::ws::{self, Event, ReadRules, Reader};
use serde_json::Value;

use crate::checker::{End, History};
use crate::plan::{Kind, PATH, Plan, SECRET};

/// What every client may look at.
pub(crate) struct Scene<'a> {
    pub(crate) world: &'a mut World,
    pub(crate) history: &'a mut History,
    pub(crate) plan: &'a Plan,
    pub(crate) phase: Phase,
    pub(crate) draining: bool,
}

/// What the run is about at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Everything may go wrong.
    Faults,
    /// Nothing goes wrong any more: who behaves connects again, subscribes, publishes.
    Heal,
    /// Nobody does anything but what is asked of it.
    Quiet,
    /// All go.
    Leave,
}

/// A command that waits for its reply.
#[derive(Clone, Debug)]
struct Pending {
    what: What,
    /// Error codes that may come instead.
    errors: &'static [u64],
    sent: u64,
}

#[derive(Clone, Debug, PartialEq)]
enum What {
    Connect,
    Subscribe(String),
    Unsubscribe(String),
    Publish(usize),
    /// Must fail.
    Refused,
}

/// A channel, as the client sees it.
#[derive(Debug, Default)]
struct Channel {
    /// It has asked for it last, not asked to leave.
    wanted: bool,
    /// The replies say that it is subscribed: this piece of the history is its own.
    open: Option<usize>,
    /// The server ended a subscription of it, so that either side may be ahead.
    told: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Without a connection; tries again then, if ever.
    Offline { until: Option<u64> },
    /// The upgrade is asked for.
    Upgrading,
    /// WebSocket is open, `connect` isn't answered.
    Connecting,
    /// Connected.
    Online,
    /// It has closed; the rest of what the server says is still read.
    Leaving,
}

/// Moments without an answer after which something is wrong, in milliseconds.
const PATIENCE_MS: u64 = 40_000;

pub(crate) struct Client {
    index: usize,
    pub(crate) kind: Kind,
    rng: Rng,
    user: Option<String>,
    state: State,
    since: u64,
    link: Option<LinkId>,
    out: VecDeque<u8>,
    head: Vec<u8>,
    reader: Reader,
    key: [u8; 16],
    next_id: u32,
    pending: BTreeMap<u32, Pending>,
    channels: BTreeMap<String, Channel>,
    echoes: VecDeque<Vec<u8>>,
    act_at: u64,
    read_at: u64,
    /// A hostile act was done: this code is the answer.
    expected: Option<u16>,
    frozen: bool,
    /// It has met this connection's close frame.
    closed: Option<u16>,
    /// What it did itself makes other ends possible.
    left: bool,
    /// Frame ping and pong instead of the protocol's.
    frame_ping: bool,
    pub(crate) log: Vec<String>,
}

impl Client {
    pub(crate) fn new(index: usize, kind: Kind, mut rng: Rng, now: u64) -> Self {
        let user = rng.one_in(2).then(|| format!("user{}", rng.below(4)));
        let until = Some(now + rng.below(500));
        Self {
            index,
            kind,
            user,
            state: State::Offline { until },
            since: now,
            link: None,
            out: VecDeque::new(),
            head: Vec::new(),
            reader: Reader::new(),
            key: [index as u8; 16],
            next_id: index as u32 * 1_000_000 + 1,
            pending: BTreeMap::new(),
            channels: BTreeMap::new(),
            echoes: VecDeque::new(),
            act_at: 0,
            read_at: 0,
            expected: None,
            frozen: false,
            closed: None,
            left: false,
            frame_ping: rng.one_in(8),
            rng,
            log: Vec::new(),
        }
    }

    fn say(&mut self, scene: &Scene<'_>, text: impl Into<String>) {
        self.log.push(format!("{} {}", scene.world.now().0, text.into()));
        if self.log.len() > 60 {
            self.log.remove(0);
        }
    }

    /// Whether it has something to do now.
    pub(crate) fn is_ready(&self, world: &World) -> bool {
        let now = world.now().0;
        let Some(link) = self.link else {
            return matches!(self.state, State::Offline { until: Some(until) } if until <= now);
        };
        if self.frozen {
            return world.look(link) == Seen::Reset;
        }
        (!self.out.is_empty() && world.has_room(link))
            || (world.look(link) != Seen::Nothing && self.read_at <= now)
            || (self.acts() && self.act_at <= now)
    }

    /// When it has something to do by itself.
    pub(crate) fn next_at(&self, world: &World) -> Option<u64> {
        let Some(link) = self.link else {
            return match self.state {
                State::Offline { until } => until,
                _ => None,
            };
        };
        if self.frozen {
            return None;
        }
        let read = (world.look(link) != Seen::Nothing).then_some(self.read_at);
        let act = self.acts().then_some(self.act_at);
        [read, act].into_iter().flatten().min()
    }

    fn acts(&self) -> bool {
        matches!(self.state, State::Online | State::Connecting)
    }

    /// Whether it must be served whatever else happens.
    pub(crate) fn is_served(&self) -> bool {
        self.kind == Kind::Normal
    }

    pub(crate) fn is_online(&self) -> bool {
        self.state == State::Online
    }

    pub(crate) fn unanswered(&self) -> usize {
        self.pending.len()
    }

    pub(crate) fn is_subscribed(&self, channel: &str) -> bool {
        self.channels.get(channel).is_some_and(|channel| channel.open.is_some())
    }

    /// Does some of what there is to do.
    pub(crate) fn step(&mut self, scene: &mut Scene<'_>) -> Result<(), String> {
        let result = self.step_inside(scene);
        result.map_err(|fault| {
            let (kind, state) = (self.kind, self.state);
            let log = self.log.join("\n    ");
            format!("client {} ({kind:?}, {state:?}): {fault}\n    {log}", self.index)
        })
    }

    fn step_inside(&mut self, scene: &mut Scene<'_>) -> Result<(), String> {
        let now = scene.world.now().0;
        let Some(link) = self.link else {
            self.begin(scene);
            return Ok(());
        };
        self.flush(scene, link);
        if self.frozen {
            if scene.world.look(link) == Seen::Reset {
                self.lost(scene);
            }
            return Ok(());
        }
        if self.read_at <= now {
            match scene.world.look(link) {
                Seen::Nothing => {}
                Seen::Bytes(_) => {
                    let max = match self.kind {
                        Kind::Slow => 1 + self.rng.below(400) as usize,
                        _ if self.rng.one_in(3) => 1 + self.rng.below(500) as usize,
                        _ => 1 << 20,
                    };
                    let bytes = scene.world.read(link, max);
                    if self.kind == Kind::Slow && scene.phase == Phase::Faults {
                        self.read_at = now + self.rng.below(2_500);
                    }
                    self.handle_bytes(scene, bytes)?;
                }
                Seen::Ended => return self.ended(scene, link, "end"),
                Seen::Reset => return self.ended(scene, link, "reset"),
            }
        }
        if self.link.is_some() && self.acts() && self.act_at <= now {
            self.act_at = now + 1 + self.rng.below(scene.plan.think_ms * 2);
            match scene.phase {
                Phase::Faults => self.act(scene),
                Phase::Heal => self.heal(scene),
                Phase::Quiet => {}
                Phase::Leave => self.leave(scene),
            }
        }
        if let Some(link) = self.link {
            self.flush(scene, link);
        }
        Ok(())
    }

    fn flush(&mut self, scene: &mut Scene<'_>, link: LinkId) {
        if self.out.is_empty() {
            return;
        }
        let bytes = self.out.make_contiguous();
        let count = match self.rng.one_in(4) {
            true => 1 + self.rng.below(bytes.len() as u64) as usize,
            false => bytes.len(),
        };
        let taken = scene.world.write(link, &bytes[..count]);
        self.out.drain(..taken);
    }

    /// Connects.
    fn begin(&mut self, scene: &mut Scene<'_>) {
        let Some(link) = scene.world.connect() else {
            self.state = State::Offline { until: None };
            return;
        };
        self.state = State::Upgrading;
        self.since = scene.world.now().0;
        self.link = Some(link);
        self.out.clear();
        self.head.clear();
        self.reader = Reader::new();
        self.expected = None;
        self.closed = None;
        self.left = false;
        self.act_at = 0;
        let mut request = Vec::new();
        let target = match self.kind {
            Kind::Echo => "/echo".to_owned(),
            _ if self.frame_ping => format!("{PATH}?cf_ws_frame_ping_pong=true"),
            _ => PATH.to_owned(),
        };
        http::put_upgrade_request(&mut request, "sim", &target, &self.key, None, &[]);
        if self.kind == Kind::Loris {
            let count = self.rng.below(request.len() as u64) as usize;
            request.truncate(count);
        }
        self.out.extend(request);
        self.say(scene, "connects");
        // What is sent before the answer is there must be understood, too.
        if self.rng.one_in(4) && !matches!(self.kind, Kind::Echo | Kind::Stale | Kind::Loris) {
            self.send_connect(scene);
        }
    }

    fn send_connect(&mut self, scene: &mut Scene<'_>) {
        let id = self.number(scene, What::Connect, &[]);
        let token = match &self.user {
            Some(user) => Signer::new(SECRET).connection_token(user, None),
            None => String::new(),
        };
        let mut message = format!(r#"{{"id":{id},"connect":{{"token":"{token}"}}}}"#);
        if self.rng.one_in(2) && scene.phase < Phase::Leave {
            // As SDKs do it: connect and the first subscriptions in one frame.
            let channel = self.any_channel(scene.plan);
            message.push('\n');
            message.push_str(&self.subscribe(scene, &channel));
        }
        self.text(&message);
    }

    fn number(&mut self, scene: &Scene<'_>, what: What, errors: &'static [u64]) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        self.pending.insert(id, Pending { what, errors, sent: scene.history.step });
        id
    }

    fn any_channel(&mut self, plan: &Plan) -> String {
        plan.channels[self.rng.below(plan.channels.len() as u64) as usize].clone()
    }

    fn subscribe(&mut self, scene: &Scene<'_>, channel: &str) -> String {
        let known = self.channels.entry(channel.to_owned()).or_default();
        let errors: &[u64] = if known.wanted || known.told { &[105] } else { &[] };
        known.wanted = true;
        let id = self.number(scene, What::Subscribe(channel.to_owned()), errors);
        let positioned = self.rng.one_in(2);
        format!(r#"{{"id":{id},"subscribe":{{"channel":"{channel}","positioned":{positioned}}}}}"#)
    }

    fn unsubscribe(&mut self, scene: &Scene<'_>, channel: &str) -> String {
        self.channels.entry(channel.to_owned()).or_default().wanted = false;
        let id = self.number(scene, What::Unsubscribe(channel.to_owned()), &[]);
        format!(r#"{{"id":{id},"unsubscribe":{{"channel":"{channel}"}}}}"#)
    }

    fn publish(&mut self, scene: &mut Scene<'_>, channel: &str) -> String {
        let publication = scene.history.publish(channel);
        let id = self.number(scene, What::Publish(publication), &[]);
        let pad = "x".repeat(self.rng.below(scene.plan.pad_bytes + 1) as usize);
        format!(
            r#"{{"id":{id},"publish":{{"channel":"{channel}","data":{{"n":{publication},"pad":"{pad}"}}}}}}"#
        )
    }

    /// A command that must be answered with an error.
    fn refused(&mut self, scene: &Scene<'_>) -> String {
        let (body, errors): (&str, &'static [u64]) = match self.rng.below(6) {
            0 => (r#""publish":{"channel":"deny:x","data":{}}"#, &[103]),
            1 => (r#""subscribe":{"channel":"deny:x"}"#, &[103]),
            2 => (r#""subscribe":{"channel":"nowhere:x"}"#, &[102]),
            3 => (r#""history":{"channel":"hist:a"}"#, &[108]),
            4 => (r#""rpc":{"data":{}}"#, &[108]),
            _ => (r#""publish":{"channel":"plain"}"#, &[107]),
        };
        let id = self.number(scene, What::Refused, errors);
        format!(r#"{{"id":{id},{body}}}"#)
    }

    /// One text message, sometimes in fragments.
    fn text(&mut self, message: &str) {
        let mut frames = Vec::new();
        let key = (self.rng.next_u64() as u32).to_be_bytes();
        if self.rng.one_in(6) && message.len() > 1 {
            let at = 1 + self.rng.below(message.len() as u64 - 1) as usize;
            let (first, second) = message.as_bytes().split_at(at);
            ws::put_masked(&mut frames, ws::TEXT, first, key);
            frames[0] &= 0x7f;
            if self.rng.one_in(2) {
                ws::put_masked(&mut frames, ws::PING, b"between", key);
            }
            ws::put_masked(&mut frames, ws::CONTINUATION, second, key);
        } else {
            ws::put_masked(&mut frames, ws::TEXT, message.as_bytes(), key);
        }
        self.out.extend(frames);
    }

    fn frame(&mut self, opcode: ws::OpCode, payload: &[u8]) {
        let mut frame = Vec::new();
        ws::put_masked(&mut frame, opcode, payload, [1, 2, 3, 4]);
        self.out.extend(frame);
    }

    // ---- What it does.

    fn act(&mut self, scene: &mut Scene<'_>) {
        if self.state == State::Connecting {
            if self.kind != Kind::Stale && !self.pending.values().any(|p| p.what == What::Connect) {
                self.send_connect(scene);
            }
            return;
        }
        match self.kind {
            Kind::Echo => return self.act_echo(scene),
            Kind::Frozen if self.rng.one_in(10) => {
                self.say(scene, "freezes");
                self.frozen = true;
                self.left = true;
                return;
            }
            Kind::Hostile if self.expected.is_none() && self.rng.one_in(8) => {
                return self.attack(scene);
            }
            Kind::Flaky if self.rng.one_in(8) => return self.flake(scene),
            _ if self.rng.one_in(60) && self.kind == Kind::Normal => return self.leave(scene),
            _ => {}
        }
        if self.expected.is_some() || self.pending.len() > 100 {
            return;
        }
        let mut batch = Vec::new();
        for _ in 0..=self.rng.below(4) {
            let channel = self.any_channel(scene.plan);
            batch.push(match self.rng.below(20) {
                0..=5 => self.subscribe(scene, &channel),
                6..=8 => self.unsubscribe(scene, &channel),
                9..=18 => self.publish(scene, &channel),
                _ => self.refused(scene),
            });
        }
        self.send_batch(batch);
    }

    fn send_batch(&mut self, batch: Vec<String>) {
        // Below the bound of a message.
        if self.rng.one_in(2) && batch.iter().map(String::len).sum::<usize>() < 60_000 {
            let end = if self.rng.one_in(4) { "\n" } else { "" };
            self.text(&(batch.join("\n") + end));
        } else {
            for message in batch {
                self.text(&message);
            }
        }
    }

    fn act_echo(&mut self, scene: &mut Scene<'_>) {
        if self.rng.one_in(20) {
            return self.leave(scene);
        }
        let payload = vec![b'e'; self.rng.below(scene.plan.pad_bytes + 20) as usize];
        self.frame(ws::BINARY, &payload);
        self.echoes.push_back(payload);
    }

    /// Breaks a rule whose answer is known.
    fn attack(&mut self, scene: &mut Scene<'_>) {
        let id = self.next_id;
        self.next_id += 1;
        let code = match self.rng.below(10) {
            0 => {
                self.out.extend(*b"\x81\x02{}");
                1002
            }
            1 => {
                self.out.extend(*b"\xf1\x80\0\0\0\0");
                1002
            }
            2 => {
                self.frame(ws::TEXT, b"\xff\xfe");
                1007
            }
            3 => {
                self.out.extend(*b"\x82\xff\0\0\0\0\x7f\xff\xff\xff\0\0\0\0");
                1009
            }
            4 => {
                self.frame(ws::TEXT, b"nonsense");
                3501
            }
            5 => {
                self.frame(ws::TEXT, b"");
                3501
            }
            6 => {
                self.frame(ws::TEXT, br#"{"send":{"data":{}}}"#);
                // Behind it a pong is due to be seen, or not.
                3508
            }
            7 => {
                self.frame(ws::TEXT, format!(r#"{{"id":{id},"connect":{{}}}}"#).as_bytes());
                3501
            }
            8 => {
                self.frame(ws::TEXT, b"{}\n{}");
                3501
            }
            _ => {
                self.frame(ws::TEXT, format!(r#"{{"id":{id},"subscribe":{{}}}}"#).as_bytes());
                3501
            }
        };
        self.say(scene, format!("does what is answered with {code}"));
        self.expected = Some(code);
        self.since = scene.world.now().0;
    }

    /// Goes in one of the ways in which connections go.
    fn flake(&mut self, scene: &mut Scene<'_>) {
        let Some(link) = self.link else { return };
        if self.rng.one_in(2) {
            // In the middle of a frame.
            let message = self.publish(scene, "plain");
            let mut frame = Vec::new();
            ws::put_masked(&mut frame, ws::TEXT, message.as_bytes(), [9; 4]);
            frame.truncate(1 + self.rng.below(frame.len() as u64) as usize);
            self.out.extend(frame);
            self.flush(scene, link);
        }
        self.out.clear();
        self.left = true;
        match self.rng.below(3) {
            0 => {
                self.say(scene, "resets");
                scene.world.reset(link);
                self.lost(scene);
            }
            1 => {
                self.say(scene, "sends a FIN");
                scene.world.shut(link);
                self.state = State::Leaving;
                self.since = scene.world.now().0;
            }
            _ => {
                self.say(scene, "goes half-way and stays");
                scene.world.shut(link);
                self.frozen = true;
                scene.world.reset(link);
            }
        }
    }

    /// Closes as RFC 6455 wants it.
    pub(crate) fn leave(&mut self, scene: &mut Scene<'_>) {
        if self.state == State::Leaving || self.closed.is_some() {
            return;
        }
        self.say(scene, "closes");
        self.frame(ws::CLOSE, &1000u16.to_be_bytes());
        self.state = State::Leaving;
        self.since = scene.world.now().0;
        self.left = true;
    }

    /// From now on nothing goes wrong here either.
    pub(crate) fn behave(&mut self, scene: &mut Scene<'_>) {
        self.read_at = 0;
        if self.is_served() {
            if let State::Offline { until: None } = self.state {
                self.state = State::Offline { until: Some(scene.world.now().0) };
            }
        } else if let Some(link) = self.link.filter(|_| self.kind != Kind::Mute && !self.frozen) {
            self.left = true;
            scene.world.reset(link);
        } else if self.link.is_none() {
            self.state = State::Offline { until: None };
        }
    }

    /// Goes for good.
    pub(crate) fn go(&mut self, scene: &mut Scene<'_>) {
        match self.link {
            None => self.state = State::Offline { until: None },
            Some(_) if self.acts() && self.kind == Kind::Normal => self.leave(scene),
            // The server has to find out by itself.
            Some(_) if self.frozen => {}
            Some(link) => {
                self.left = true;
                scene.world.reset(link);
            }
        }
    }

    /// Subscribes to everything, then publishes now and then.
    fn heal(&mut self, scene: &mut Scene<'_>) {
        if self.state == State::Connecting {
            return self.act(scene);
        }
        if self.kind != Kind::Normal || self.pending.len() > 10 {
            return;
        }
        for channel in scene.plan.channels.clone() {
            let asked = self
                .channels
                .get(&channel)
                .is_some_and(|c| c.open.is_some() || (c.wanted && !c.told));
            let asks = self.pending.values().any(|p| p.what == What::Subscribe(channel.clone()));
            if !asked && !asks {
                let message = self.subscribe(scene, &channel);
                self.text(&message);
            }
        }
        if self.rng.one_in(4) {
            let channel = self.any_channel(scene.plan);
            let message = self.publish(scene, &channel);
            self.text(&message);
        }
    }

    /// Publishes once to each channel: all must get it.
    pub(crate) fn publish_to_all(&mut self, scene: &mut Scene<'_>) {
        for channel in scene.plan.channels.clone() {
            let message = self.publish(scene, &channel);
            self.text(&message);
        }
    }

    // ---- What comes.

    fn handle_bytes(&mut self, scene: &mut Scene<'_>, bytes: Vec<u8>) -> Result<(), String> {
        let mut bytes = bytes;
        if self.state == State::Upgrading {
            self.head.extend_from_slice(&bytes);
            match http::parse_upgrade_response(&self.head, &self.key) {
                Ok(None) => return Ok(()),
                Ok(Some(len)) => {
                    bytes = self.head.split_off(len);
                    self.head.clear();
                    let echo = self.kind == Kind::Echo;
                    self.state = if echo { State::Online } else { State::Connecting };
                    self.since = scene.world.now().0;
                    self.say(scene, "upgraded");
                }
                Err(http::UpgradeRefused::Status(status)) => return self.refused_by(scene, status),
                Err(fault) => return Err(format!("{fault}: {:?}", self.head)),
            }
        } else if !self.head.is_empty() {
            // The body of a refusal.
            return Ok(());
        }
        let mut reader = std::mem::take(&mut self.reader);
        let rules = ReadRules { masked: false, message_bytes_max: 1 << 24 };
        let mut at = 0;
        loop {
            match reader.next(&rules, &mut bytes, &mut at) {
                Ok(Some(event)) => {
                    if self.closed.is_some() {
                        return Err("something came behind the close frame".into());
                    }
                    self.handle_event(scene, event)?;
                }
                Ok(None) => break,
                Err(fault) => return Err(format!("the server broke RFC 6455: {fault}")),
            }
        }
        self.reader = reader;
        Ok(())
    }

    fn refused_by(&mut self, scene: &mut Scene<'_>, status: u16) -> Result<(), String> {
        self.say(scene, format!("refused with {status}"));
        let expected = match status {
            503 => scene.plan.crowded || scene.draining,
            408 => self.kind == Kind::Loris || !scene.plan.roomy,
            _ => false,
        };
        if !expected {
            return Err(format!("refused with {status}"));
        }
        // The body, and then the end, are read.
        self.state = State::Leaving;
        self.left = true;
        if let Some(link) = self.link {
            scene.world.shut(link);
        }
        Ok(())
    }

    fn handle_event(&mut self, scene: &mut Scene<'_>, event: Event<'_>) -> Result<(), String> {
        match event {
            Event::Message { data, .. } if self.kind == Kind::Echo => {
                match self.echoes.pop_front() {
                    Some(sent) if sent == *data => Ok(()),
                    _ => Err("an echo of something else".into()),
                }
            }
            Event::Message { data, .. } => {
                let text = std::str::from_utf8(data).map_err(|_| "not UTF-8")?.to_owned();
                for line in text.split('\n') {
                    self.handle_reply(scene, line)
                        .map_err(|fault| format!("{fault}, in {}", &line[..line.len().min(300)]))?;
                }
                Ok(())
            }
            Event::Ping(payload) => {
                let payload = payload.to_vec();
                if self.kind != Kind::Mute && self.state != State::Leaving {
                    self.frame(ws::PONG, &payload);
                }
                Ok(())
            }
            Event::Pong(_) => Ok(()),
            Event::Close { code, .. } => {
                self.say(scene, format!("closed with {code:?}"));
                self.closed = Some(code.unwrap_or(1005));
                if !self.left {
                    self.frame(ws::CLOSE, &code.unwrap_or(1000).to_be_bytes());
                }
                self.state = State::Leaving;
                self.since = scene.world.now().0;
                self.check_close(scene, code.unwrap_or(1005))
            }
        }
    }

    fn check_close(&self, scene: &Scene<'_>, code: u16) -> Result<(), String> {
        let tight = !scene.plan.roomy;
        let slow = tight || self.kind == Kind::Slow;
        let may = match code {
            1000 => self.left,
            3001 => scene.draining,
            3008 => slow,
            3012 => slow || self.kind == Kind::Mute,
            3502 => slow || self.kind == Kind::Stale,
            other => self.expected == Some(other),
        };
        if may { Ok(()) } else { Err(format!("closed with {code}")) }
    }

    fn handle_reply(&mut self, scene: &mut Scene<'_>, line: &str) -> Result<(), String> {
        let reply: Value = serde_json::from_str(line).map_err(|fault| fault.to_string())?;
        if line == "{}" {
            if !matches!(self.kind, Kind::Mute) && self.state != State::Leaving {
                if self.frame_ping {
                    return Err("a ping of the protocol, though frames were asked for".into());
                }
                self.text("{}");
            }
            return Ok(());
        }
        if let Some(push) = reply.get("push") {
            return self.handle_push(scene, push);
        }
        let id = reply["id"].as_u64().ok_or("no id")? as u32;
        let pending = self.pending.remove(&id).ok_or("a reply that nobody waits for")?;
        if let Some(error) = reply.get("error") {
            let code = error["code"].as_u64().unwrap_or(0);
            if !pending.errors.contains(&code) {
                return Err(format!("{pending:?} failed"));
            }
            return Ok(());
        }
        let has = |name: &str| reply.get(name).is_some_and(Value::is_object);
        match pending.what {
            What::Connect if has("connect") => {
                if self.state == State::Connecting {
                    self.state = State::Online;
                }
                self.since = scene.world.now().0;
                Ok(())
            }
            What::Subscribe(channel) if has("subscribe") => {
                let result = &reply["subscribe"];
                let positioned = result["positioned"].as_bool().unwrap_or(false);
                let start = positioned.then(|| {
                    let epoch = result["epoch"].as_str().unwrap_or_default().to_owned();
                    (epoch, result["offset"].as_u64().unwrap_or(0))
                });
                if positioned != start.as_ref().is_some_and(|(epoch, _)| !epoch.is_empty()) {
                    return Err("positioned without an epoch".into());
                }
                if channel.starts_with("pos:") && !positioned && self.wants(&channel) {
                    return Err("not positioned, though all are".into());
                }
                let opened = scene.history.opened(self.index, &channel, pending.sent, start);
                let known = self.channels.entry(channel).or_default();
                if known.open.replace(opened).is_some() {
                    return Err("subscribed twice".into());
                }
                Ok(())
            }
            What::Unsubscribe(channel) if has("unsubscribe") => {
                if let Some(open) =
                    self.channels.get_mut(&channel).and_then(|channel| channel.open.take())
                {
                    scene.history.ended(open, End::Gone);
                }
                Ok(())
            }
            What::Publish(publication) if has("publish") => {
                scene.history.acked(publication);
                Ok(())
            }
            other => Err(format!("{other:?} was answered with something else")),
        }
    }

    /// No unsubscribe of this channel is on its way.
    fn wants(&self, channel: &str) -> bool {
        !self.pending.values().any(|p| p.what == What::Unsubscribe(channel.to_owned()))
    }

    fn handle_push(&mut self, scene: &mut Scene<'_>, push: &Value) -> Result<(), String> {
        let channel = push["channel"].as_str().ok_or("no channel")?;
        let known = self.channels.get_mut(channel).ok_or("a channel it never asked for")?;
        let open = known.open.ok_or("a channel that it isn't subscribed to")?;
        if let Some(publication) = push.get("pub") {
            let number = publication["data"]["n"].as_u64().ok_or("no number")? as usize;
            let offset = publication["offset"].as_u64().unwrap_or(0);
            if publication["info"]["client"].as_str().is_none_or(str::is_empty) {
                return Err("nobody published it".into());
            }
            return scene.history.delivered(open, number, offset);
        }
        let code = push["unsubscribe"]["code"].as_u64().ok_or("an unknown push")?;
        if code != 2500 {
            return Err(format!("unsubscribed with {code}"));
        }
        known.open = None;
        known.told = true;
        known.wanted = false;
        scene.history.ended(open, End::Told);
        Ok(())
    }

    /// The connection has come to its end, from the server's side.
    fn ended(&mut self, scene: &mut Scene<'_>, link: LinkId, how: &str) -> Result<(), String> {
        self.say(scene, how);
        let told = self.closed.is_some() || self.left;
        let injected = scene.world.is_injected(link);
        let slow = !scene.plan.roomy || self.kind == Kind::Slow;
        if how == "end" {
            scene.world.shut(link);
        }
        let patient = self.kind == Kind::Echo && scene.world.now().0 > self.since + 2_000;
        self.lost(scene);
        if !told && !injected && !slow && !patient {
            return Err(format!("the connection came to its {how}, and nobody said why"));
        }
        Ok(())
    }

    /// There is no connection any more.
    fn lost(&mut self, scene: &mut Scene<'_>) {
        for channel in std::mem::take(&mut self.channels).into_values() {
            if let Some(open) = channel.open {
                scene.history.ended(open, End::Gone);
            }
        }
        self.pending.clear();
        self.echoes.clear();
        self.link = None;
        self.frozen = false;
        let now = scene.world.now().0;
        let again = match scene.phase {
            Phase::Faults => !scene.draining,
            Phase::Heal | Phase::Quiet => self.is_served() && !scene.draining,
            Phase::Leave => false,
        };
        let until = again.then(|| now + 1 + self.rng.below(1_000));
        self.state = State::Offline { until };
    }

    /// Whether something that must have happened hasn't.
    pub(crate) fn check_patience(&self, now: u64) -> Result<(), String> {
        let waits = match self.state {
            State::Upgrading | State::Connecting | State::Leaving => true,
            State::Online => self.expected.is_some() || self.kind == Kind::Mute,
            State::Offline { .. } => false,
        };
        if waits && !self.frozen && now > self.since + PATIENCE_MS {
            return Err(format!(
                "client {} ({:?}) waits since {} in {:?}\n    {}",
                self.index,
                self.kind,
                self.since,
                self.state,
                self.log.join("\n    ")
            ));
        }
        Ok(())
    }
}
