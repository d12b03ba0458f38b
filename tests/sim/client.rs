//! One client: real bytes over a simulated connection, a random program, and what it knows of what
//! it must be told.

mod acts;
mod hears;

use std::collections::{BTreeMap, VecDeque};

use roost::base::rng::Rng;
use roost::edge::jwt::Signer;
use roost::io::sim::{LinkId, Seen, World};
use roost::proto::http;
use roost::proto::ws::{self, Reader};

use crate::checker::History;
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
    /// When it sent its FIN without having closed before: the server has to end it then.
    shut_at: Option<u64>,
    /// The status that its request must be refused with.
    refusal: Option<u16>,
    /// Frame ping and pong instead of the protocol's.
    frame_ping: bool,
    pub(crate) log: Vec<String>,
}

impl Client {
    pub(crate) fn new(index: usize, kind: Kind, mut rng: Rng, now: u64, storm: bool) -> Self {
        let user = rng.one_in(2).then(|| format!("user{}", rng.below(4)));
        let until = Some(now + rng.below(if storm { 1 } else { 500 }));
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
            shut_at: None,
            refusal: None,
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
        self.shut_at = None;
        self.act_at = 0;
        let mut request = Vec::new();
        let target = match self.kind {
            Kind::Echo => "/echo".to_owned(),
            _ if self.frame_ping => format!("{PATH}?cf_ws_frame_ping_pong=true"),
            _ => PATH.to_owned(),
        };
        http::put_upgrade_request(&mut request, "sim", &target, &self.key, None, &[]);
        self.refusal = None;
        if self.kind == Kind::Lost {
            let (status, text) = self.no_upgrade();
            self.refusal = Some(status);
            request = text.into_bytes();
        }
        if self.kind == Kind::Loris {
            let count = self.rng.below(request.len() as u64) as usize;
            request.truncate(count);
        }
        self.out.extend(request);
        self.say(scene, "connects");
        // What is sent before the answer is there must be understood, too.
        if self.rng.one_in(4)
            && !matches!(self.kind, Kind::Echo | Kind::Stale | Kind::Loris | Kind::Lost)
        {
            self.send_connect(scene);
        }
    }

    /// A request that is refused, and with what.
    fn no_upgrade(&mut self) -> (u16, String) {
        match self.rng.below(6) {
            0 => (404, "GET /nowhere HTTP/1.1\r\nHost: sim\r\n\r\n".into()),
            1 => (405, format!("POST {PATH} HTTP/1.1\r\nHost: sim\r\n\r\n")),
            2 => (400, format!("GET {PATH} HTTP/1.1\r\nHost: sim\r\n\r\n")),
            3 => (400, format!("GET {PATH} HTTP/1.1\r\n\r\n")),
            4 => (400, "nonsense\r\n\r\n".into()),
            _ => (431, format!("GET {PATH} HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(17_000))),
        }
    }

    fn send_connect(&mut self, scene: &mut Scene<'_>) {
        let now = scene.world.unix().0;
        let signer = Signer::new(SECRET);
        let mut errors: &'static [u64] = &[];
        let token = match (&self.user, self.kind) {
            (_, Kind::Stranger) => match self.rng.below(3) {
                0 => {
                    self.expected = Some(3500);
                    Signer::new("another secret").connection_token("u", None)
                }
                1 => {
                    // An error, and then we are expected to go.
                    errors = &[109];
                    signer.connection_token("u", Some(now - 1))
                }
                _ => {
                    self.expected = Some(3005);
                    errors = &[109];
                    signer.connection_token("u", Some(now + 2))
                }
            },
            (Some(user), _) => signer.connection_token(user, None),
            (None, _) => String::new(),
        };
        let id = self.number(scene, What::Connect, errors);
        let mut message = format!(r#"{{"id":{id},"connect":{{"token":"{token}"}}}}"#);
        let stranger = self.kind == Kind::Stranger;
        if self.rng.one_in(2) && scene.phase < Phase::Leave && !stranger {
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
        let least = if scene.plan.pad_bytes > 10_000 { scene.plan.pad_bytes / 2 } else { 0 };
        let pad = least + self.rng.below(scene.plan.pad_bytes - least + 1);
        let pad = "x".repeat(pad as usize);
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

    /// Whether something that must have happened hasn't.
    pub(crate) fn check_patience(&self, now: u64, plan: &Plan) -> Result<(), String> {
        if plan.roomy && self.link.is_some() && self.shut_at.is_some_and(|at| now > at + 1_000) {
            return Err(format!("client {} sent its FIN, and nothing happens", self.index));
        }
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
