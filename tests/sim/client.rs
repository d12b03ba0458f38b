//! One client: real bytes over a simulated connection, a random program, and what it knows of what
//! it must be told.

mod acts;
mod asks;
mod hears;
mod over;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};

use roost::base::rng::Rng;
use roost::io::sim::{LinkId, Seen, World};
use roost::proto::http;
use roost::proto::ws::{self, Inflater, Reader};

use crate::checker::History;
use crate::orders::USERS;
use crate::plan::{Kind, Plan, signed_token};
use crate::presence::Snapshot;
use crate::wire::{self, HistoryRequest, SubscribeRequest};
use over::{Answer, UpLink};

pub(crate) use over::Over;

/// The shared scene of all clients.
pub(crate) struct Scene<'a> {
    pub(crate) world: &'a mut World,
    pub(crate) history: &'a mut History,
    pub(crate) plan: &'a Plan,
    pub(crate) phase: Phase,
    pub(crate) draining: bool,
}

/// The phase of the run.
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
    /// With the server-side subscriptions that it must bring.
    Connect(BTreeMap<String, Ask>),
    Subscribe(String, Box<Ask>),
    Unsubscribe(String),
    Publish(usize),
    /// Clients that must be present, and that cannot be, at the time of the request.
    Presence(String, Box<Snapshot>),
    /// Whether the client itself must be there.
    Stats(String, bool),
    History(Box<HistoryRequest>),
    Refresh,
    /// Must fail.
    Refused,
}

/// A subscription as it was asked for.
#[derive(Clone, Debug, Default, PartialEq)]
struct Ask {
    request: SubscribeRequest,
    /// The piece of the history that it wants to go on from.
    from: Option<usize>,
    /// The server makes it.
    server: bool,
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
    /// The server made it.
    server: bool,
    /// Publications are patches, or texts: with the latest one.
    delta: bool,
    base: Option<Vec<u8>>,
    /// It was open when the client asked to leave, and another answer is awaited.
    leaving: bool,
    /// In the end: what was shown.
    shown: Option<Shown>,
}

/// Members of a channel, with their users; then the reported number.
#[derive(Debug)]
struct Shown {
    present: BTreeMap<String, String>,
    counts: Option<(u32, u32)>,
}

/// The client's position in a channel after a subscription: channel, epoch and offset.
#[derive(Clone, Debug)]
struct Had {
    segment: usize,
    epoch: String,
    offset: u64,
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

/// Clients remember what they sent and heard.
pub(crate) static TALKATIVE: AtomicBool = AtomicBool::new(false);

/// Moments without an answer after which something is wrong, in milliseconds.
const PATIENCE_MS: u64 = 40_000;

/// The transport of a client: clients that follow the protocol, in one way or another, over anything.
fn over(kind: Kind, rng: &mut Rng, plan: &Plan) -> Over {
    let window = 9 + rng.below(7) as u8;
    let both = [Over::Deflated(window), Over::Deflated(window), Over::HttpStream, Over::Sse];
    let one =
        [Over::UniWebSocket, Over::UniHttpStream, Over::UniSse, Over::LongPoll, Over::LongPoll];
    let drawn = match kind {
        Kind::Normal | Kind::Flaky | Kind::Slow if rng.one_in(2) => &one[..],
        Kind::Normal | Kind::Flaky | Kind::Slow | Kind::Mute | Kind::Frozen => &both[..],
        _ => return Over::WebSocket,
    };
    let drawn = drawn[rng.below(drawn.len() as u64) as usize];
    // Up-links are connections, too.
    match rng.below(5) {
        0 | 1 => Over::WebSocket,
        _ if drawn.has_up_link() && plan.crowded => Over::WebSocket,
        _ => drawn,
    }
}

pub(crate) struct Client {
    index: usize,
    pub(crate) kind: Kind,
    rng: Rng,
    user: Option<String>,
    /// A token for the user that was signed before.
    signed: Option<&'static str>,
    over: Over,
    /// Speaks Protobuf.
    protobuf: bool,
    /// Channels that the server subscribes it to: by its token, or as it says itself.
    server: Vec<String>,
    by_token: bool,
    /// The personal one is beside them.
    personal: Option<String>,
    /// The id by which others know this connection.
    id: String,
    /// User and client id of its last poll.
    last_poll: Option<(String, String)>,
    /// Its positions in channels, across connections.
    had: BTreeMap<String, Had>,
    /// When it asked who is there although nobody comes and goes any more.
    counts_since: Option<u64>,
    /// It may be shown what is no JSON.
    risks_binary: bool,
    state: State,
    since: u64,
    link: Option<LinkId>,
    out: VecDeque<u8>,
    head: Vec<u8>,
    reader: Reader,
    inflater: Inflater,
    /// The response that goes on, and what it began with is asked.
    answer: Option<Answer>,
    has_begun: bool,
    /// An event source was told when to come back.
    has_retry: bool,
    /// A poll was answered, and its connection goes with it.
    in_order: bool,
    /// A poll was turned away, and none was answered since.
    turned_away: bool,
    /// The last id that it returns to its event source.
    last_id: String,
    /// For the up-link.
    up: UpLink,
    session: String,
    node: String,
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
    /// It has met this connection's close frame, or a push in its place.
    closed: Option<u16>,
    /// A push has said that the close frame comes.
    told: Option<u16>,
    /// Its own actions make other ends possible.
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
    pub(crate) fn new(
        index: usize,
        kind: Kind,
        mut rng: Rng,
        now: u64,
        storm: bool,
        plan: &Plan,
    ) -> Self {
        let named = rng.one_in(2) || kind == Kind::Stranger;
        let user = named.then(|| match (plan.counts_users(), kind) {
            (_, Kind::Stranger) => "stranger".to_owned(),
            (false, _) => format!("user{}", rng.below(USERS)),
            // Nobody takes the place of one that must be served.
            (true, Kind::Normal) => format!("user{index}"),
            (true, _) => format!("crowd{}", rng.below(2)),
        });
        let signed = user.as_ref().filter(|_| plan.signed && rng.one_in(2));
        let signed = signed.and_then(|user| signed_token(user));
        let plain = [Kind::Normal, Kind::Flaky, Kind::Slow, Kind::Mute, Kind::Frozen];
        let plain = plain.contains(&kind);
        let count = if plain && rng.one_in(3) { 1 + rng.below(2) } else { 0 };
        let at = |rng: &mut Rng| rng.below(plan.channels.len() as u64) as usize;
        let mut server: Vec<String> =
            (0..count).map(|_| plan.channels[at(&mut rng)].clone()).collect();
        server.sort();
        server.dedup();
        let personal = user.as_ref().filter(|_| plan.client.personal_channel.is_some());
        let personal = personal.map(|user| format!("mine:#{user}"));
        let until = Some(now + rng.below(if storm { 1 } else { 500 }));
        let over = match over(kind, &mut rng, plan) {
            // Without a channel it would have nothing to wait for.
            Over::LongPoll if !plan.channels.iter().any(|of| plan.can_be_polled(of)) => {
                Over::UniHttpStream
            }
            over => over,
        };
        if over.is_one_way() {
            // It says at the beginning what it wants to have.
            server.clone_from(&plan.channels);
            server.retain(|channel| over != Over::LongPoll || plan.can_be_polled(channel));
        }
        let speaks_protobuf = !over.is_one_way() && over != Over::Sse;
        Self {
            index,
            kind,
            by_token: signed.is_none() && rng.one_in(2),
            user,
            signed,
            over,
            protobuf: plain && speaks_protobuf && rng.one_in(3),
            server,
            personal,
            id: String::new(),
            last_poll: None,
            had: BTreeMap::new(),
            counts_since: None,
            risks_binary: false,
            state: State::Offline { until },
            since: now,
            link: None,
            out: VecDeque::new(),
            head: Vec::new(),
            reader: Reader::new(),
            inflater: Inflater::default(),
            answer: None,
            has_begun: false,
            has_retry: false,
            in_order: false,
            turned_away: false,
            last_id: String::new(),
            up: UpLink::default(),
            session: String::new(),
            node: String::new(),
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
            told: None,
            left: false,
            shut_at: None,
            refusal: None,
            frame_ping: over.is_websocket() && !over.is_one_way() && rng.one_in(8),
            rng,
            log: Vec::new(),
        }
    }

    fn say(&mut self, scene: &Scene<'_>, text: impl Into<String>) {
        self.note(format!("{} {}", scene.world.now().0, text.into()));
    }

    fn note(&mut self, text: String) {
        self.log.push(text);
        if self.log.len() > 200 {
            self.log.remove(0);
        }
    }

    pub(crate) fn show(&self) {
        let Self { index, kind, state, over, id, .. } = self;
        println!("client {index} ({kind:?}, {state:?}, {over:?}) {id}");
        self.log.iter().for_each(|line| println!("    {line}"));
    }

    /// Sent and received messages, when one run is replayed.
    fn quote(&mut self, mark: &str, bytes: &[u8]) {
        if TALKATIVE.load(Ordering::Relaxed) {
            let shown = wire::shown(self.protobuf, mark, bytes);
            let end = shown.char_indices().nth(500).map_or(shown.len(), |(at, _)| at);
            self.note(format!("    {mark} {}", &shown[..end]));
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
            || self.is_up_ready(world)
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

    /// The user and the client id of its session; of a poll, of the last one that was answered.
    pub(crate) fn session(&self) -> Option<(String, String)> {
        let (user, id) = match &self.last_poll {
            Some(last) => last.clone(),
            None => (self.user.clone().unwrap_or_default(), self.id.clone()),
        };
        (!id.is_empty()).then_some((user, id))
    }

    pub(crate) fn is_online(&self) -> bool {
        self.state == State::Online && !self.turned_away
    }

    /// Commands that wait for their answers; a poll that waits does what it should.
    pub(crate) fn unanswered(&self) -> usize {
        if self.over == Over::LongPoll { 0 } else { self.pending.len() }
    }

    /// Whether it has all of the channels that it is to have.
    pub(crate) fn is_settled(&self, plan: &Plan) -> bool {
        let all = if self.over.is_one_way() { &self.server } else { &plan.channels };
        self.is_online() && all.iter().all(|channel| self.is_subscribed(channel))
    }

    pub(crate) fn is_subscribed(&self, channel: &str) -> bool {
        self.channels.get(channel).is_some_and(|channel| channel.open.is_some())
    }

    /// Does some of what there is to do.
    pub(crate) fn step(&mut self, scene: &mut Scene<'_>) -> Result<(), String> {
        let result = self.step_inside(scene);
        result.map_err(|fault| {
            let (kind, state) = (self.kind, (self.state, self.over));
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
        if !self.frozen {
            self.step_up(scene)?;
        }
        let Some(link) = self.link else { return Ok(()) };
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
        self.state = match self.over {
            Over::LongPoll if self.had.is_empty() => State::Connecting,
            Over::LongPoll => State::Online,
            _ => State::Upgrading,
        };
        self.since = scene.world.now().0;
        self.link = Some(link);
        self.answer = None;
        self.has_begun = false;
        self.has_retry = false;
        self.told = None;
        self.out.clear();
        self.head.clear();
        self.reader = Reader::new();
        self.expected = None;
        self.closed = None;
        self.left = false;
        self.shut_at = None;
        self.act_at = 0;
        self.risks_binary = false;
        self.id.clear();
        let mut request = Vec::new();
        let target = match self.kind {
            Kind::Echo => "/echo".to_owned(),
            _ => {
                let frames = self.frame_ping.then_some("cf_ws_frame_ping_pong=true");
                let format = self.protobuf.then_some("format=protobuf");
                let query: Vec<&str> = frames.into_iter().chain(format).collect();
                format!("{}?{}", self.over.path(), query.join("&"))
            }
        };
        self.refusal = None;
        if !self.over.is_websocket() {
            self.say(scene, "asks");
            return self.send_connect(scene);
        }
        let bits;
        let offer = match self.over {
            Over::Deflated(window) => {
                bits = format!(
                    "permessage-deflate; client_max_window_bits; server_max_window_bits={window}"
                );
                Some(("Sec-WebSocket-Extensions", bits.as_str()))
            }
            _ => None,
        };
        http::put_upgrade_request(&mut request, "sim", &target, &self.key, None, offer.as_slice());
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
        // Commands before the answer must be valid, too.
        if self.rng.one_in(4)
            && !matches!(self.kind, Kind::Echo | Kind::Stale | Kind::Loris | Kind::Lost)
        {
            self.send_connect(scene);
        }
    }

    /// A request that is refused, and with what.
    fn no_upgrade(&mut self) -> (u16, String) {
        let path = Over::WebSocket.path();
        match self.rng.below(6) {
            0 => (404, "GET /nowhere HTTP/1.1\r\nHost: sim\r\n\r\n".into()),
            1 => (405, format!("POST {path} HTTP/1.1\r\nHost: sim\r\n\r\n")),
            2 => (400, format!("GET {path} HTTP/1.1\r\nHost: sim\r\n\r\n")),
            3 => (400, format!("GET {path} HTTP/1.1\r\n\r\n")),
            4 => (400, "nonsense\r\n\r\n".into()),
            _ => (431, format!("GET {path} HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(25_000))),
        }
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

    /// One message.
    fn message(&mut self, message: &[u8]) {
        self.quote(">", message);
        match self.over.is_websocket() {
            true => self.framed(message),
            false => self.requested(message),
        }
    }

    fn frame(&mut self, opcode: ws::OpCode, payload: &[u8]) {
        let mut frame = Vec::new();
        ws::put_masked(&mut frame, opcode, payload, [1, 2, 3, 4]);
        self.out.extend(frame);
    }

    /// Whether something that must have happened hasn't.
    pub(crate) fn check_patience(&self, now: u64, plan: &Plan) -> Result<(), String> {
        // Standstills may follow each other.
        let still = 3 * plan.standstill_ms;
        let is_late = self.shut_at.is_some_and(|at| now > at + 1_000 + still);
        if plan.roomy && self.link.is_some() && is_late {
            return Err(format!("client {} sent its FIN, and nothing happens", self.index));
        }
        let waits = match self.state {
            State::Upgrading | State::Connecting | State::Leaving => true,
            State::Online if self.over == Over::LongPoll => true,
            State::Online => self.expected.is_some() || self.kind == Kind::Mute,
            State::Offline { .. } => false,
        };
        if waits && !self.frozen && now > self.since + PATIENCE_MS + still {
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
