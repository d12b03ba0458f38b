//! The plan made of a scenario file and the flags: checked, with defaults filled in, spread over threads.

use super::figures::Published;
use super::file::{self, Echo, File, Population as FilePopulation, Range, Rate, Role, Source};
use super::flags::{Flags, Packed, Protocol, Scenario, Threads};
use super::headers::{Headers, numbered};
use super::hub::Hub;
use super::mix::{Distribution, Mix, Zipf};
use super::pace::Segment;
use super::payload::{PayloadWriter, Stamp, Template};
use super::profile::Profile;
use super::report::Requested;
use super::target::{self, Api, Target};
use super::threshold::Threshold;
use super::tls::Tls;
use super::window::{WINDOW_MAX, Window};
use crate::base::form::Transport;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use toml::Spanned;

/// Descriptors that a thread's table holds beside its connections: the standard three, the
/// publishers, files of /proc, and two for each thread (its epoll and its waker), which all tables
/// have because they are made before tables part.
const SPARE_DESCRIPTORS: u64 = 32;
const SPARE_DESCRIPTORS_PER_THREAD: u64 = 2;

/// Connections that share one loopback source address. A quarter of the default port range: the
/// kernel's search for a free port gets slow when a range fills up.
const CONNECTIONS_PER_SOURCE: u32 = 7_000;

/// Connections from which another thread is worth it.
const CONNECTIONS_PER_THREAD: u32 = 500;

/// Payloads are at most this long: 16 MiB.
const PAYLOAD_BYTES_MAX: usize = 16 << 20;

/// Threads at most.
const THREADS_MAX: usize = 1024;

/// Messages of one phase at most.
const MESSAGES_MAX: f64 = (u32::MAX / 2) as f64;

/// Messages per second, where nothing says how many.
const RATE: f64 = 10.0;

/// How long messages are published, where nothing says so.
const DURATION: Duration = Duration::from_secs(10);

/// Handshakes under way, where nothing says how many.
pub(super) const IN_FLIGHT: u32 = 512;

/// A command line or a scenario that makes no sense: where it says what, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct PlanError(String);

pub(super) fn wrong<T>(text: impl Into<String>) -> Result<T, PlanError> {
    Err(PlanError(text.into()))
}

/// Connections of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Population {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) connections: u32,
    pub(crate) target: Target,
    pub(crate) transport: Transport,
    /// WebSockets request compression.
    pub(crate) compression: bool,
    /// They speak the client protocol.
    pub(crate) centrifugo: bool,
    /// They speak one of texts.
    pub(crate) profile: Option<&'static Profile>,
    /// They subscribe by a request for events.
    pub(crate) hub: Option<Hub>,
    /// Path of the up-link.
    pub(crate) up_path: String,
    /// Messages are published to them.
    pub(crate) receives: bool,
    /// They read nothing while messages are sent.
    pub(crate) is_slow: bool,
    /// Connections and subscriptions that end are taken up again.
    pub(crate) recovers: bool,
    /// How long each stays, and how long it is away.
    pub(crate) stay: Option<Range>,
    pub(crate) away: Range,
    /// Echoes: the pause before the next message.
    pub(crate) think: Option<Range>,
    pub(crate) token_ttl: Option<Duration>,
    /// A new token is sent before the old one expires.
    pub(crate) refreshes: bool,
}

/// A stretch of the run.
#[derive(Clone, Debug)]
pub(crate) struct Phase {
    pub(crate) name: String,
    pub(crate) duration: Option<Duration>,
    /// Connections that are to be open at its end.
    pub(crate) open: Option<u32>,
    /// Which part of the connections breaks off.
    pub(crate) drop: Option<f64>,
    /// Connections that leave per second.
    pub(crate) churn: Option<f64>,
    /// Messages that are published.
    pub(crate) messages: Option<Segment>,
    /// Messages that are echoed.
    pub(crate) echo: Option<EchoPace>,
    /// The command that replaces the server when half of the messages are published.
    pub(crate) run: Option<String>,
}

/// When echoes are sent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum EchoPace {
    /// When the message before has come back.
    Closed,
    /// By a schedule over all connections.
    Open(Segment),
}

impl Phase {
    /// Whether messages are sent.
    pub(crate) fn sends(&self) -> bool {
        self.messages.is_some() || self.echo.is_some()
    }

    /// What the scenario has for it.
    pub(crate) fn requested(&self) -> Requested {
        let Self { duration, open, messages, echo, .. } = *self;
        let is_open = |of: &Segment| of.from + of.to > 0.0;
        let echoed = match echo {
            Some(EchoPace::Open(segment)) => Some(segment),
            _ => None,
        };
        let sent = messages.or(echoed).filter(is_open);
        Requested {
            duration_s: duration.map(|of| of.as_secs_f64()),
            open,
            messages: sent.map(|of| of.count),
            rate: sent.map(|of| [of.from, of.to]),
        }
    }

    /// Whether it only waits.
    pub(crate) fn only_holds(&self) -> bool {
        !self.sends() && self.open.is_none() && self.drop.is_none() && self.churn.is_none()
    }
}

/// All that threads need to know, read-only.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The name of the scenario.
    pub(crate) name: String,
    /// Where publishers go.
    pub(crate) target: Target,
    /// TLS of the connections that have it.
    pub(crate) tls: Option<Tls>,
    /// Request headers of the connections.
    pub(super) headers: Headers,
    /// Conditions under which the run has failed.
    pub(super) thresholds: Vec<Threshold>,
    /// Path of WebSockets, which is where a connection of ours publishes.
    pub(crate) websocket_path: String,
    /// The endpoint to publish through; nothing for connections.
    pub(crate) api: Option<Api>,
    pub(crate) connections: u32,
    pub(crate) populations: Vec<Population>,
    mix: Option<Arc<Mix>>,
    pub(crate) phases: Vec<Phase>,
    /// Connections that publish.
    pub(crate) publishers: u32,
    /// Publishers speak the client protocol.
    pub(crate) centrifugo: bool,
    /// Publishers speak one of texts.
    pub(crate) profile: Option<&'static Profile>,
    /// Raw messages go in binary frames.
    pub(crate) is_binary: bool,
    pub(super) template: Option<Arc<Template>>,
    pub(crate) secret: Option<String>,
    /// Names by number; empty when nobody subscribes.
    pub(crate) channels: Vec<String>,
    /// The channels of messages, where they are not published to by turns.
    messages: Option<Arc<Zipf>>,
    /// How many get the messages of each channel.
    pub(crate) receivers: Arc<[u32]>,
    /// Messages of each channel so far.
    pub(crate) published: Arc<Published>,
    /// The highest rate of all phases; nothing where a message waits for others to come back.
    pub(crate) rate: Option<f64>,
    pub(crate) payload_bytes: usize,
    /// Messages of a connection in flight, for echo.
    pub(crate) window: u32,
    /// The window by which a broadcast without a rate publishes.
    pub(crate) closed_loop: Option<Arc<Window>>,
    pub(crate) spin: bool,
    pub(crate) threads: usize,
    pub(crate) pid: Option<u32>,
    pub(crate) connect_rate: Option<f64>,
    /// Of one thread.
    pub(crate) in_flight: u32,
    pub(crate) connect_timeout: Duration,
    pub(crate) tries: u8,
    pub(crate) drain: Duration,
    pub(crate) hold: Duration,
    pub(crate) pings: u16,
    /// How often each connection is pinged.
    pub(crate) ping_every: Option<Duration>,
    /// Standard output is for the result alone.
    pub(crate) is_quiet: bool,
    /// Where the histograms of each second go.
    pub(crate) hdr: Option<PathBuf>,
    pub(crate) settle: u32,
    pub(crate) rss_from: Option<u32>,
    /// Marks the messages of this run.
    pub(crate) run: u32,
    /// The part of this machine.
    pub(crate) place: Place,
}

/// The machines of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Room {
    /// Descriptors of one table, at least.
    pub(crate) descriptors: u64,
    /// Processors of one machine, at most.
    pub(crate) processors: usize,
    pub(crate) machines: usize,
}

impl From<u64> for Room {
    /// This machine alone.
    fn from(descriptors: u64) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
        Self { descriptors, processors, machines: 1 }
    }
}

/// One machine of those of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Its number, from 0.
    pub(crate) machine: usize,
    pub(crate) machines: usize,
}

/// The connections of one thread: `base..base + count` of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) base: u32,
    pub(crate) count: u32,
}

impl Plan {
    /// Checks scenario and flags, and fills in what they leave open. `room` are the machines, or the limit of
    /// descriptors of this one, `run` any number that other runs don't have. Looks the host's name up.
    pub(crate) fn new(
        mut flags: Flags,
        room: impl Into<Room>,
        run: u32,
    ) -> Result<Self, PlanError> {
        let room = room.into();
        let file = read_file(&mut flags)?;
        let parts = Parts::new(&file, &flags)?;
        let (channels, populations) = (parts.channels, parts.populations);
        let connections = populations.iter().map(|of| of.connections).sum();
        let publishes = parts.phases.iter().any(|of| of.messages.is_some());
        let count = channels.len() as u32;
        let mix = mix(&populations, count, zipf(&file, file.channels.subscribers, count));
        let messages = zipf(&file, file.channels.messages, count);
        let api = target::api(&flags, &channels, publishes)?;
        let publishers = publishers(&file, count, api.is_some(), room.machines)?;
        let threads = threads(&flags, connections, parts.closed_loop.is_some(), room)?;
        let (template, profile) = (template(&flags, !channels.is_empty())?, profile(&flags));
        let rate = rate(&parts.phases, parts.closed_loop.is_some());
        let tls = populations.iter().find_map(|of| of.target.tls.clone());
        let mut plan = Self {
            name: file.name,
            target: parts.main,
            tls,
            headers: parts.headers,
            thresholds: parts.thresholds,
            websocket_path: parts.websocket_path,
            api,
            connections,
            populations,
            mix,
            phases: parts.phases,
            publishers,
            centrifugo: parts.centrifugo,
            profile,
            is_binary: flags.binary,
            template,
            secret: flags.secret,
            published: Arc::new(Published::new(channels.len().max(1))),
            receivers: Arc::new([]),
            channels,
            messages,
            rate,
            payload_bytes: flags.size.unwrap_or(128),
            window: flags.window.unwrap_or(1),
            closed_loop: parts.closed_loop,
            spin: flags.spin,
            threads,
            pid: flags.pid,
            connect_rate: flags.connect_rate,
            in_flight: (flags.in_flight.unwrap_or(IN_FLIGHT) / threads as u32).max(4),
            connect_timeout: flags.connect_timeout.unwrap_or(DURATION),
            tries: flags.tries.unwrap_or(4).max(1),
            drain: flags.drain.unwrap_or(DURATION),
            hold: flags.hold,
            pings: flags.pings.unwrap_or_default(),
            ping_every: flags.ping_every.filter(|every| !every.is_zero()),
            is_quiet: matches!(flags.json, Some(None)),
            hdr: flags.hdr.clone(),
            settle: flags.settle.unwrap_or_default().min(connections),
            rss_from: flags.rss_from,
            run,
            place: Place { machine: 0, machines: room.machines },
        };
        plan.receivers = plan.count_receivers();
        Ok(plan)
    }

    /// How many connections get the messages of each channel, if nobody drops.
    fn count_receivers(&self) -> Arc<[u32]> {
        let mut receivers = vec![0; self.channels.len().max(1)];
        for global in 0..self.connections {
            let of = self.population(global);
            if of.receives && !of.is_slow {
                receivers[self.channel_of(global) as usize] += 1;
            }
        }
        receivers.into()
    }

    /// The URL that connections are made to: `--url`, with the path of the transport.
    pub(crate) fn used_url(&self) -> String {
        let Population { transport, target, .. } = &self.populations[0];
        let scheme = if *transport == Transport::WebSocket { "ws" } else { "http" };
        let Target { host, path, tls, .. } = target;
        let secure = if tls.is_some() { "s" } else { "" };
        format!("{scheme}{secure}://{host}{path}")
    }

    /// The number of the population of connection `global`.
    pub(crate) fn population_number(&self, global: u32) -> usize {
        self.mix.as_ref().map_or(0, |mix| mix.population(global))
    }

    /// The population of connection `global`.
    pub(crate) fn population(&self, global: u32) -> &Population {
        match &self.mix {
            None => &self.populations[0],
            Some(mix) => &self.populations[mix.population(global)],
        }
    }

    /// Bytes of the payload of message number `sequence`: as requested, or as many as the checks need.
    pub(crate) fn written_bytes(&self, sequence: u64) -> usize {
        let duration: Duration = self.phases.iter().filter_map(|of| of.duration).sum();
        let now_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let stamp = Stamp {
            run: self.run,
            channel: 0,
            sequence: u32::try_from(sequence).unwrap_or(u32::MAX),
            intended_ns: now_ns,
            actual_ns: now_ns,
        };
        let mut payload = Vec::new();
        PayloadWriter::of(self.payload_bytes, self.template.as_ref()).write(&stamp, &mut payload);
        payload.len()
    }

    /// Path and query for connection `number`.
    pub(crate) fn path_of(&self, number: u32) -> String {
        numbered(&self.population(number).target.path, number)
    }

    /// The share of thread `index`, as even as it goes; they follow each other without a gap.
    pub(crate) fn share(&self, index: usize) -> Share {
        let at = |index: usize| part(self.connections, index, self.threads);
        Share { base: at(index), count: at(index + 1) - at(index) }
    }

    /// Of the first `total` connections to be open, how many are thread `index`'s: `total` in all.
    pub(crate) fn part_of(&self, total: u32, index: usize) -> u32 {
        if total >= self.connections {
            return self.share(index).count;
        }
        part(total, index + 1, self.threads) - part(total, index, self.threads)
    }

    /// The threads of this machine, by their numbers among those of all machines.
    pub(crate) fn own_threads(&self) -> std::ops::Range<usize> {
        let each = self.threads / self.place.machines;
        self.place.machine * each..(self.place.machine + 1) * each
    }

    /// The threads of machine `machine`.
    pub(crate) fn threads_of(&self, machine: usize) -> std::ops::Range<usize> {
        let each = self.threads / self.place.machines;
        machine * each..(machine + 1) * each
    }

    /// The connections of machine `machine`.
    pub(crate) fn connections_of(&self, machine: usize) -> u32 {
        self.threads_of(machine).map(|index| self.share(index).count).sum()
    }

    /// The publishers of machine `machine`.
    pub(crate) fn publishers_of(&self, machine: usize) -> impl Iterator<Item = u32> + use<> {
        let machines = self.place.machines;
        (0..self.publishers).filter(move |number| *number as usize % machines == machine)
    }

    /// The publishers of this machine.
    pub(crate) fn own_publishers(&self) -> impl Iterator<Item = u32> + use<> {
        self.publishers_of(self.place.machine)
    }

    /// The machine that publishes to channel `channel`.
    pub(crate) fn publishing_machine(&self, channel: u32) -> usize {
        (channel % self.publishers.max(1)) as usize % self.place.machines
    }

    /// Whether another machine publishes to channel `channel`.
    pub(crate) fn is_published_elsewhere(&self, channel: u32) -> bool {
        self.publishing_machine(channel) != self.place.machine
    }

    /// The part of all connections that thread `index` has.
    pub(crate) fn weight(&self, index: usize) -> f64 {
        f64::from(self.share(index).count) / f64::from(self.connections)
    }

    /// The number of the channel that connection `global` is subscribed to; 0 without channels.
    pub(crate) fn channel_of(&self, global: u32) -> u32 {
        match &self.mix {
            None => global.checked_rem(self.channels.len() as u32).unwrap_or_default(),
            Some(mix) => mix.channel(global),
        }
    }

    /// The number of the channel that message `n` of the run is published to.
    pub(crate) fn channel_of_message(&self, n: u32) -> u32 {
        match &self.messages {
            None => n.checked_rem(self.channels.len() as u32).unwrap_or_default(),
            Some(zipf) => zipf.rank_of(n),
        }
    }

    /// Whether connection `global` is one of those that stop reading.
    pub(crate) fn is_slow(&self, global: u32) -> bool {
        self.population(global).is_slow
    }

    /// Whether connections leave on purpose while messages are sent.
    pub(crate) fn is_restless(&self) -> bool {
        let leave = self.phases.iter().any(|of| of.churn.is_some() || of.drop.is_some());
        leave || self.populations.iter().any(|of| of.stay.is_some())
    }

    /// Whether some population echoes.
    pub(crate) fn has_echoes(&self) -> bool {
        self.populations.iter().any(|of| of.role == Role::Echoes)
    }

    /// The address that connection `global` comes from: on loopback one for every few thousand, so
    /// that ports don't run out; anywhere else, the kernel's choice.
    pub(crate) fn source(&self, global: u32) -> Option<Ipv4Addr> {
        let address = self.population(global).target.address.ip();
        if !matches!(address, IpAddr::V4(ip) if ip.is_loopback()) {
            return None;
        }
        // Runs that follow each other begin elsewhere, away from ports in TIME_WAIT.
        let n = (self.run % 50_000) + global / CONNECTIONS_PER_SOURCE;
        let octet = |n: u32| (n % 250 + 1) as u8;
        Some(Ipv4Addr::new(127, octet(n / 62_500 + 1), octet(n / 250), octet(n)))
    }
}

/// The scenario with what the flags say, and the flags with what it says.
fn read_file(flags: &mut Flags) -> Result<File, PlanError> {
    check_numbers(flags)?;
    let mut file = file_of(flags)?;
    file.fill(flags);
    file.apply(flags);
    check_numbers(flags)?;
    Ok(file)
}

/// What a plan is made of.
struct Parts {
    headers: Headers,
    thresholds: Vec<Threshold>,
    main: Target,
    populations: Vec<Population>,
    websocket_path: String,
    centrifugo: bool,
    channels: Vec<String>,
    closed_loop: Option<Arc<Window>>,
    phases: Vec<Phase>,
}

impl Parts {
    fn new(file: &File, flags: &Flags) -> Result<Self, PlanError> {
        let headers = Headers::new(flags).map_err(PlanError)?;
        let thresholds = thresholds(flags)?;
        let Some(url) = flags.url.clone() else {
            return wrong("--url: where the server is, as ws://host:port/path");
        };
        let mut main = target::target("--url", &url, &["ws", "http"], flags)?;
        let tls_url = file.tls_url.as_ref().map(|of| of.get_ref().as_str());
        let mut secure = match tls_url {
            Some(url) => Some(target::target("tls_url", url, &["ws", "http"], flags)?),
            None => None,
        };
        if let Some(host) = &headers.host {
            main.host.clone_from(host);
            secure.iter_mut().for_each(|of| of.host.clone_from(host));
        }
        let mut populations = Vec::new();
        for of in file.clients() {
            populations.extend(split(of, &main, secure.as_ref(), flags)?);
        }
        let (websocket_path, centrifugo) = publisher_paths(flags, file, &main, &populations)?;
        let hub = Hub::of(flags.protocol);
        let channels = channels(file, centrifugo || profile(flags).is_some() || hub.is_some());
        for of in &mut populations {
            of.receives = of.receives && !(of.centrifugo && channels.is_empty());
        }
        let connections = populations.iter().map(|of| of.connections).sum();
        let closed_loop = closed_loop(flags, file)?;
        let unpaced = closed_loop.as_ref().map(|_| flags.scenario == Scenario::Broadcast);
        let phases = phases(file, connections, unpaced)?;
        let publishes = phases.iter().any(|of| of.messages.is_some());
        check_channels(flags, file, &channels, &populations, publishes, centrifugo)?;
        Ok(Self {
            headers,
            thresholds,
            main,
            populations,
            websocket_path,
            centrifugo,
            channels,
            closed_loop,
            phases,
        })
    }
}

/// The flags for another machine, with the text of the files in them.
///
/// # Errors
/// As [`Plan::new`].
pub(crate) fn pack(flags: &Flags) -> Result<Flags, PlanError> {
    let mut packed = flags.clone();
    let scenario = text_of(flags)?;
    read_file(&mut packed)?;
    let read = |flag: &str, path: &Path| {
        std::fs::read_to_string(path).or_else(|error| {
            wrong(format!("{flag} {}: {}", path.display(), super::output::plain(&error)))
        })
    };
    let payload = packed.payload.as_deref().map(template_text).transpose()?;
    let cacert = packed.cacert.as_deref().map(|path| read("--cacert", path)).transpose()?;
    Ok(Flags { packed: Some(Packed { scenario, payload, cacert }), ..flags.clone() })
}

/// The scenario file that a command means: its path, and its text.
fn text_of(flags: &Flags) -> Result<(String, String), PlanError> {
    if let Some(packed) = &flags.packed {
        return Ok(packed.scenario.clone());
    }
    Ok(match (flags.scenario, &flags.operands[..]) {
        (Scenario::Run, [path]) => match std::fs::read_to_string(path) {
            Ok(text) => (path.clone(), text),
            Err(error) => match file::built_in(path) {
                Some(text) => (path.clone(), text.to_owned()),
                None => return wrong(format!("{path}: {}", super::output::plain(&error))),
            },
        },
        (Scenario::Run, _) => return wrong("run needs one FILE"),
        (_, [operand, ..]) => return wrong(format!("{operand}: only `run` has a file")),
        (scenario, []) => {
            let name = scenario.name();
            (name.to_owned(), file::built_in(name).unwrap_or_default().to_owned())
        }
    })
}

/// The scenario that a command means.
fn file_of(flags: &Flags) -> Result<File, PlanError> {
    let (path, text) = text_of(flags)?;
    let source = Source { path: Path::new(&path), text: &text };
    let mut file = File::parse(source).map_err(|error| PlanError(error.to_string()))?;
    if file.name.is_empty() {
        let stem = Path::new(&path).file_stem().unwrap_or_default();
        file.name = stem.to_string_lossy().into_owned();
    }
    Ok(file)
}

fn part(total: u32, index: usize, threads: usize) -> u32 {
    (u64::from(total) * index as u64 / threads as u64) as u32
}

/// Picks `share` of all numbers, evenly spread.
pub(crate) fn picked(n: u32, share: f64) -> bool {
    let at = |n: f64| (n * share).floor();
    at(f64::from(n) + 1.0) > at(f64::from(n))
}

fn check_numbers(flags: &Flags) -> Result<(), PlanError> {
    for (name, share) in [("--drop-share", flags.drop_share), ("--slow-share", flags.slow_share)] {
        if let Some(share) = share.filter(|share| !(0.0..=1.0).contains(share)) {
            return wrong(format!("{name}: a share is from 0 to 1, not {share}"));
        }
    }
    for (name, rate) in [("--rate", flags.rate), ("--connect-rate", flags.connect_rate)] {
        if rate.is_some_and(|rate| !(rate.is_finite() && rate > 0.0 && rate <= 1e9)) {
            return wrong(format!("{name}: a rate is above 0 and at most a billion a second"));
        }
    }
    for (name, count) in [("--connections", flags.connections), ("--channels", flags.channels)] {
        if count == Some(0) {
            return wrong(format!("{name}: at least 1"));
        }
    }
    match (flags.scenario, &flags.run) {
        (Scenario::Upgrade, None) => return wrong("upgrade needs --run COMMAND"),
        (Scenario::Upgrade | Scenario::Run, Some(_)) | (_, None) => {}
        (other, Some(_)) => return wrong(format!("--run: not for {}", other.name())),
    }
    if flags.window.is_some_and(|window| window == 0 || window > 10_000) {
        return wrong("--window: from 1 to 10000");
    }
    if flags.size.is_some_and(|size| size > PAYLOAD_BYTES_MAX) {
        return wrong(format!("--size: at most {PAYLOAD_BYTES_MAX}"));
    }
    if (flags.scenario, flags.publish.is_some()) == (Scenario::Echo, true) {
        return wrong("--publish: echo publishes nothing; use --duration");
    }
    Ok(())
}

fn thresholds(flags: &Flags) -> Result<Vec<Threshold>, PlanError> {
    let parse = |text: &String| {
        Threshold::parse(text).or_else(|error| wrong(format!("--fail-if {text}: {error}")))
    };
    flags.fail_if.iter().map(parse).collect()
}

/// The populations that one of a file comes to: its parts are slow, speak TLS and compress, or don't.
fn split(
    of: &FilePopulation,
    main: &Target,
    secure: Option<&Target>,
    flags: &Flags,
) -> Result<Vec<Population>, PlanError> {
    let hub = Hub::of(flags.protocol);
    let usual = match of.role {
        Role::Polls => Transport::LongPoll,
        _ if hub.is_some() => Transport::Sse,
        _ => Transport::WebSocket,
    };
    let transport = of.transport.map_or(usual, |of| of.0);
    if hub.is_some() && (transport != Transport::Sse || of.role == Role::Echoes) {
        return wrong("--protocol mercure, nchan: subscribers of server-sent events only");
    }
    if of.compression.0 > 0.0 && transport != Transport::WebSocket {
        return wrong("--compression: only WebSockets can be compressed");
    }
    let parts = parts(of);
    let several = parts.len() > 1;
    let of_part = |(connections, slow, tls, compression): Part| {
        let mut target = match secure {
            Some(secure) if tls => secure.clone(),
            _ => main.clone(),
        };
        if tls && target.tls.is_none() {
            return wrong("tls: wss:// in url or tls_url");
        }
        let url = flags.url.as_deref().unwrap_or_default();
        let centrifugo = centrifugo(flags, of.role, transport, &target)?;
        let paths = target::paths(url, transport, hub, &target.path)?;
        target.path = paths.own;
        let marks = [(slow, "slow"), (tls, "TLS"), (compression, "compressed")];
        let marks = marks.iter().filter(|(has, _)| *has && several).map(|(_, mark)| *mark);
        let name: Vec<&str> = std::iter::once(of.name.as_str()).chain(marks).collect();
        let now = Range { from: Duration::ZERO, to: Duration::ZERO };
        Ok(Population {
            name: name.join(", "),
            role: of.role,
            connections,
            target,
            transport,
            compression,
            centrifugo,
            profile: profile(flags).filter(|_| of.role != Role::Echoes),
            hub,
            up_path: paths.up,
            receives: of.role != Role::Echoes && (of.role != Role::Idle || !centrifugo),
            is_slow: slow || of.role == Role::SlowReaders,
            recovers: of.recover || of.role == Role::Reconnectors,
            stay: of.stay,
            away: of.away.unwrap_or(now),
            think: of.think,
            token_ttl: of.token_ttl.map(|of| of.0),
            refreshes: of.refresh.unwrap_or(true),
        })
    };
    parts.into_iter().map(of_part).collect()
}

/// Connections of a part of a population, and whether they are slow, speak TLS and compress.
type Part = (u32, bool, bool, bool);

/// The parts of a population that have connections.
fn parts(of: &FilePopulation) -> Vec<Part> {
    let mut parts: Vec<Part> = vec![(of.connections(), false, false, false)];
    for (at, share) in [of.slow.0, of.tls.0, of.compression.0].into_iter().enumerate() {
        parts = parts
            .into_iter()
            .flat_map(|part| {
                let with = (f64::from(part.0) * share).round() as u32;
                let (mut yes, mut no) = (part, part);
                (yes.0, no.0) = (with, part.0 - with);
                *[&mut yes.1, &mut yes.2, &mut yes.3][at] = true;
                [no, yes]
            })
            .filter(|part| part.0 > 0)
            .collect();
    }
    parts
}

/// Whether a population speaks the client protocol.
fn centrifugo(
    flags: &Flags,
    role: Role,
    transport: Transport,
    target: &Target,
) -> Result<bool, PlanError> {
    let protocol = flags.protocol.unwrap_or(Protocol::Auto);
    let path = target.path.split('?').next().unwrap_or_default();
    match (protocol, role) {
        (Protocol::Mercure | Protocol::Nchan, _) => Ok(false),
        _ if transport != Transport::WebSocket => {
            if !matches!(protocol, Protocol::Auto | Protocol::Centrifugo) || role == Role::Echoes {
                return wrong("raw messages go over WebSockets only: --transport websocket");
            }
            Ok(true)
        }
        (Protocol::Centrifugo, Role::Echoes) if flags.scenario == Scenario::Echo => {
            wrong("echo speaks raw WebSocket only: --protocol raw")
        }
        (Protocol::Raw | Protocol::SocketIo | Protocol::Pusher | Protocol::Nats, _) => Ok(false),
        (_, Role::Echoes) => Ok(false),
        (Protocol::Centrifugo, _) => Ok(true),
        (Protocol::Auto, _) => Ok(path.trim_end_matches('/').ends_with("/connection/websocket")),
    }
}

fn profile(flags: &Flags) -> Option<&'static Profile> {
    Profile::of(flags.protocol.unwrap_or(Protocol::Auto))
}

/// The text of a template, which may be in a file.
fn template_text(text: &str) -> Result<String, PlanError> {
    let Some(path) = text.strip_prefix('@') else { return Ok(text.to_owned()) };
    std::fs::read_to_string(path)
        .or_else(|error| wrong(format!("--payload {text}: {}", super::output::plain(&error))))
}

/// The payload's template, if there is one. What the client protocol carries has to be JSON.
fn template(flags: &Flags, has_channels: bool) -> Result<Option<Arc<Template>>, PlanError> {
    let text = match (&flags.packed, &flags.payload) {
        (Some(Packed { payload: Some(text), .. }), _) => text.clone(),
        (None, Some(text)) => template_text(text)?,
        (_, None) | (Some(_), Some(_)) => return Ok(None),
    };
    let template = Template::parse(&text).or_else(|fault| wrong(format!("--payload: {fault}")))?;
    let template = Arc::new(template);
    let stamp = Stamp { run: 1, channel: 1, sequence: 1, intended_ns: 1, actual_ns: 1 };
    let mut written = Vec::new();
    PayloadWriter::of(0, Some(&template)).write(&stamp, &mut written);
    let is_json = has_channels && Hub::of(flags.protocol).is_none();
    if is_json && serde_json::from_slice::<serde_json::Value>(&written).is_err() {
        return wrong("--payload: the protocol carries JSON, and this is none");
    }
    Ok(Some(template))
}

/// Where publishers connect to, and whether they speak the client protocol.
fn publisher_paths(
    flags: &Flags,
    file: &File,
    main: &Target,
    populations: &[Population],
) -> Result<(String, bool), PlanError> {
    let Some(first) = populations.iter().find(|of| of.role != Role::Echoes) else {
        let has_channels = file.channels.count.unwrap_or(1) > 1 || flags.subscribe.is_some();
        for (name, used) in [
            ("--subscribe and --channels", has_channels),
            ("--secret", flags.secret.is_some()),
            ("--pings", flags.pings.unwrap_or_default() > 0),
        ] {
            if used {
                return wrong(format!("{name} needs the client protocol: --protocol centrifugo"));
            }
        }
        return Ok((main.path.clone(), false));
    };
    let url = flags.url.as_deref().unwrap_or_default();
    let paths = target::paths(url, first.transport, first.hub, &main.path)?;
    if first.hub.is_some() && flags.secret.is_some() {
        return wrong("--secret needs the client protocol; hubs take --bearer and --api-key");
    }
    if !first.centrifugo && first.profile.is_none() && first.hub.is_none() {
        for (name, used) in [
            ("channels", flags.scenario == Scenario::Channels),
            ("--subscribe", flags.subscribe.is_some()),
            ("--channels", file.channels.count.unwrap_or(1) > 1),
            ("--secret", flags.secret.is_some()),
        ] {
            if used {
                return wrong(format!("{name} needs the client protocol: --protocol centrifugo"));
            }
        }
    }
    Ok((paths.websocket, first.centrifugo))
}

fn channels(file: &File, centrifugo: bool) -> Vec<String> {
    let Some(name) = file.channels.name.as_ref().filter(|_| centrifugo) else { return Vec::new() };
    match file.channels.count.unwrap_or(1) {
        1 => vec![name.to_owned()],
        count => (0..count).map(|n| format!("{name}-{n}")).collect(),
    }
}

/// Contradictions of channels with the rest.
fn check_channels(
    flags: &Flags,
    file: &File,
    channels: &[String],
    populations: &[Population],
    publishes: bool,
    centrifugo: bool,
) -> Result<(), PlanError> {
    let connections: u32 = populations.iter().map(|of| of.connections).sum();
    if file.channels.count.unwrap_or(1) > connections {
        return wrong("--channels: more channels than connections");
    }
    if Hub::of(flags.protocol).is_some() && channels.is_empty() {
        return wrong("--protocol mercure, nchan: a channel is needed: --subscribe NAME");
    }
    if publishes && centrifugo && channels.is_empty() {
        return wrong("--publish needs a channel: --subscribe NAME");
    }
    let polls = populations.iter().any(|of| of.transport == Transport::LongPoll);
    let is_named = flags.subscribe.is_some()
        || flags.scenario == Scenario::Run && file.channels.name.is_some();
    if polls && !is_named {
        return wrong("--transport long_poll needs a channel: --subscribe NAME");
    }
    let recover = |of: &Population| of.transport != Transport::WebSocket || channels.is_empty();
    if populations.iter().any(|of| of.recovers && recover(of)) {
        return wrong("--recover needs a channel, and WebSockets");
    }
    if populations.iter().any(|of| of.token_ttl.is_some()) && flags.secret.is_none() {
        return wrong("token_ttl needs the key that tokens are signed with: secret");
    }
    Ok(())
}

/// The window by which a broadcast without a rate publishes.
fn closed_loop(flags: &Flags, file: &File) -> Result<Option<Arc<Window>>, PlanError> {
    let publishes = |of: &Spanned<file::Phase>| of.get_ref().publishes();
    let has_rate = file.phases.iter().any(|of| of.get_ref().rate.is_some());
    let (Some(window), false) = (flags.window, has_rate) else {
        return match (flags.window, flags.scenario) {
            (None, _) | (_, Scenario::Echo | Scenario::Broadcast | Scenario::Run) => Ok(None),
            (Some(_), _) if flags.rate.is_some() => Ok(None),
            (Some(_), other) => wrong(format!("--window: not for {}", other.name())),
        };
    };
    match flags.scenario {
        Scenario::Echo => return Ok(None),
        Scenario::Run if !file.phases.iter().any(publishes) => return Ok(None),
        _ if flags.api_url.is_some() => return wrong("--window: not with --api-url"),
        _ if window > WINDOW_MAX => return wrong(format!("--window: at most {WINDOW_MAX}")),
        _ => {}
    }
    match Window::new(window) {
        Ok(window) => Ok(Some(Arc::new(window))),
        Err(error) => wrong(format!("--window: {error}")),
    }
}

/// The phases that do something. `unpaced`: messages leave by a window, in phases that publish so many, or
/// (true) in the last one as well.
fn phases(file: &File, connections: u32, unpaced: Option<bool>) -> Result<Vec<Phase>, PlanError> {
    let mut phases = Vec::new();
    for (at, of) in file.phases.iter().map(Spanned::get_ref).enumerate() {
        if of.publish == Some(0) {
            continue;
        }
        let duration = of.duration.map(|of| of.0);
        let empty = || wrong("run needs a command: --run");
        let run = match &of.run {
            Some(command) if command.is_empty() => return empty(),
            run => run.clone(),
        };
        let echo = match of.echo {
            Some(Echo::Open(rate)) => Some(EchoPace::Open(segment(Some(rate), None, duration)?)),
            Some(Echo::Closed(_)) => Some(EchoPace::Closed),
            None => None,
        };
        let is_unpaced =
            unpaced.is_some_and(|last| of.publish.is_some() || last && at + 1 == file.phases.len());
        let messages = if is_unpaced {
            let span_s = duration.unwrap_or(DURATION).as_secs_f64();
            let count = of.publish.unwrap_or(u32::MAX / 2);
            Some(Segment { start_ns: 0, from: 0.0, to: 0.0, span_s, count })
        } else if of.publishes() {
            Some(segment(of.rate, of.publish, duration)?)
        } else {
            None
        };
        let name = if of.name.is_empty() { format!("{}", at + 1) } else { of.name.clone() };
        phases.push(Phase {
            name,
            duration,
            open: of.open.map(|of| (f64::from(connections) * of.0).round() as u32),
            drop: of.drop.map(|of| of.0),
            churn: of.churn,
            messages,
            echo,
            run,
        });
    }
    Ok(phases)
}

/// The messages of a phase.
fn segment(
    rate: Option<Rate>,
    count: Option<u32>,
    duration: Option<Duration>,
) -> Result<Segment, PlanError> {
    let Rate { from, to } = rate.unwrap_or(Rate { from: RATE, to: RATE });
    if let Some(count) = count {
        return Ok(Segment::constant(to, count));
    }
    let span_s = duration.unwrap_or(DURATION).as_secs_f64();
    if (from + to) / 2.0 * span_s > MESSAGES_MAX {
        return wrong("--rate times --duration: more than two billion messages");
    }
    if from != to {
        return Ok(Segment::ramp(from, to, span_s));
    }
    Ok(Segment::constant(to, ((to * span_s).ceil() as u32).max(1)))
}

/// The highest rate of all phases.
fn rate(phases: &[Phase], is_closed: bool) -> Option<f64> {
    let of = phases.iter().flat_map(|of| {
        let echo = match of.echo {
            Some(EchoPace::Open(segment)) => Some(segment),
            _ => None,
        };
        of.messages.into_iter().chain(echo)
    });
    let most = of.map(|of| of.from.max(of.to)).fold(0.0, f64::max);
    let sends_echoes = phases.iter().any(|of| of.echo.is_some());
    let fallback = if sends_echoes { None } else { Some(RATE) };
    if most > 0.0 {
        Some(most)
    } else if is_closed {
        None
    } else {
        fallback
    }
}

/// Publishers of channels. Several machines have one each, where there are channels enough.
fn publishers(file: &File, channels: u32, by_api: bool, machines: usize) -> Result<u32, PlanError> {
    let of = file.populations.iter().map(Spanned::get_ref);
    let count: u32 =
        of.filter(|of| of.role == Role::Publishers).map(FilePopulation::connections).sum();
    match count {
        0 if by_api => Ok(1),
        0 => Ok((machines as u32).min(channels.max(1))),
        count if by_api && count > 1 => wrong("publishers: one, with --api-url"),
        // The order of a channel's messages is that of one connection.
        count if count > channels.max(1) => wrong("publishers: more publishers than channels"),
        count => Ok(count),
    }
}

/// The law by which subscribers or messages are spread, if it is one.
fn zipf(file: &File, of: Distribution, channels: u32) -> Option<Arc<Zipf>> {
    let exponent = file.channels.exponent.unwrap_or(1.0);
    let is_zipf = of == Distribution::Zipf && channels > 1;
    is_zipf.then(|| Arc::new(Zipf::new(channels, exponent)))
}

/// Populations and channels by connection, where they are not all the same or by turns.
fn mix(populations: &[Population], channels: u32, zipf: Option<Arc<Zipf>>) -> Option<Arc<Mix>> {
    if populations.len() == 1 && zipf.is_none() {
        return None;
    }
    let sizes: Vec<u32> = populations.iter().map(|of| of.connections).collect();
    Some(Arc::new(Mix::new(&sizes, channels, zipf.as_deref())))
}

/// The threads of all machines: each has as many as the others.
fn threads(
    flags: &Flags,
    connections: u32,
    is_closed: bool,
    room: Room,
) -> Result<usize, PlanError> {
    let Room { descriptors, processors, machines } = room;
    if is_closed && machines > 1 {
        return wrong("--window: not with --agents, unless each connection has its own (echo)");
    }
    if machines > connections as usize {
        return wrong(format!("--agents: more than the {connections} connections"));
    }
    let (count, even) = (connections.div_ceil(machines as u32), connections as usize / machines);
    let connections = u64::from(count);
    let fits = |threads: u64| {
        let spare = SPARE_DESCRIPTORS + SPARE_DESCRIPTORS_PER_THREAD * threads;
        descriptors.saturating_sub(spare).saturating_mul(threads) >= connections
    };
    let Some(least) = (1..=THREADS_MAX).find(|&threads| fits(threads as u64)) else {
        return wrong(format!(
            "--connections {connections}: more than {THREADS_MAX} threads could hold with \
             {descriptors} descriptors each"
        ));
    };
    match flags.threads {
        Threads::Exactly(threads) if threads > THREADS_MAX.min(even) => {
            wrong(format!("--threads {threads}: more than connections, or than {THREADS_MAX}"))
        }
        Threads::Exactly(threads) if threads < least => wrong(format!(
            "--threads {threads}: {connections} connections need {least} threads, because the \
             descriptor limit of each is {descriptors}"
        )),
        Threads::Exactly(threads) => Ok(threads * machines),
        Threads::Auto => {
            let worth = count.div_ceil(CONNECTIONS_PER_THREAD) as usize;
            Ok(least.max(worth.min(processors)) * machines)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::collections::HashMap;

    fn plan(line: &str) -> Result<Plan, String> {
        let flags = Flags::try_parse_from(format!("roost-load {line}").split_whitespace()).unwrap();
        Plan::new(flags, 20_000, 5).map_err(|error| error.to_string())
    }

    #[test]
    fn a_million_fits_under_twenty_thousand_descriptors_each() {
        let plan = plan("idle --url ws://127.0.0.1:8000/echo --connections 1000000").unwrap();
        assert_eq!(plan.threads, 51);
        let mut next = 0;
        let mut sources: HashMap<Ipv4Addr, u32> = HashMap::new();
        for index in 0..plan.threads {
            let share = plan.share(index);
            assert_eq!(share.base, next);
            assert!(u64::from(share.count) + 32 + 2 * 51 <= 20_000);
            next += share.count;
        }
        assert_eq!(next, 1_000_000);
        for global in 0..next {
            *sources.entry(plan.source(global).unwrap()).or_default() += 1;
        }
        assert!(sources.values().all(|&count| count <= CONNECTIONS_PER_SOURCE));
        let parts: u32 = (0..plan.threads).map(|index| plan.part_of(100_000, index)).sum();
        assert_eq!(parts, 100_000);
        assert!((0..51).all(|index| plan.part_of(100_000, index) <= plan.share(index).count));
    }

    #[test]
    fn machines_have_even_parts_of_connections_threads_and_channels() {
        let line = "channels --url ws://127.0.0.1:1/connection/websocket --connections 60001 \
                    --channels 7 --threads 2";
        let flags = |line: &str| {
            Flags::try_parse_from(format!("roost-load {line}").split_whitespace()).unwrap()
        };
        let room = Room { descriptors: 20_000, processors: 8, machines: 3 };
        let mut plan = Plan::new(flags(line), room, 5).unwrap();
        assert_eq!((plan.threads, plan.publishers), (6, 3));
        let parts = [0, 1, 2].map(|machine| plan.connections_of(machine));
        assert_eq!((parts.iter().sum::<u32>(), parts), (60_001, [20_000, 20_000, 20_001]));
        for machine in 0..3 {
            plan.place.machine = machine;
            assert_eq!(plan.own_publishers().collect::<Vec<_>>(), [machine as u32]);
            let own = (0..7).filter(|of| !plan.is_published_elsewhere(*of));
            assert_eq!(own.count(), if machine == 0 { 3 } else { 2 });
        }
        let few = line.replace("60001", "2").replace("--channels 7", "");
        assert!(Plan::new(flags(&few), room, 5).unwrap_err().to_string().contains("--agents"));
        let packed = pack(&flags("idle --url ws://127.0.0.1:1/ --payload {stamp}!")).unwrap();
        let files = packed.packed.unwrap();
        assert_eq!(files.payload.as_deref(), Some("{stamp}!"));
        assert!(files.scenario.1.contains("[[phases]]"));
    }

    #[test]
    fn protocol_channels_and_counts_by_default() {
        let idle = plan("idle --url ws://127.0.0.1:1/connection/websocket").unwrap();
        assert!(idle.centrifugo && idle.channels.is_empty());
        assert!(idle.phases.iter().all(|of| of.messages.is_none()));
        let raw = plan("broadcast --url ws://127.0.0.1:1/ --rate 3 --duration 2500ms").unwrap();
        assert!(!raw.centrifugo && raw.channels.is_empty());
        assert_eq!(raw.phases[2].messages.map(|of| of.count), Some(8));
        let many = plan(
            "channels --url ws://127.0.0.1:1/connection/websocket?x=1 --channels 3 --subscribe n",
        )
        .unwrap();
        assert_eq!(many.channels, ["n-0", "n-1", "n-2"]);
        assert_eq!(many.channel_of(7), 1);
        assert_eq!(many.populations[0].target.path, "/connection/websocket?x=1");
        assert_eq!(many.target.host, "127.0.0.1:1");
    }

    #[test]
    fn shares_are_exact_and_spread() {
        let line = "idle --url ws://127.0.0.1:1/ --connections 1000 --slow-share 0.25";
        let plan = plan(line).unwrap();
        assert_eq!((0..1000).filter(|&n| plan.is_slow(n)).count(), 250);
        assert_eq!((0..100).filter(|&n| plan.is_slow(n)).count(), 25);
        assert_eq!((0..10).filter(|&n| picked(n, 0.1)).count(), 1);
    }

    #[test]
    fn api_requests_go_to_the_address_of_the_api() {
        let line = "channels --url ws://127.0.0.1:1/connection/websocket --channels 3 \
                    --connections 3 --api-key k --api-url";
        for (url, uri) in [
            ("http://127.0.0.1:8000/api", "http://127.0.0.1:8000/api/publish"),
            ("http://127.0.0.1:8000/x/api/", "http://127.0.0.1:8000/x/api/publish"),
            ("http://[::1]/api", "http://[::1]:80/api/publish"),
        ] {
            let api = plan(&format!("{line} {url}")).unwrap().api.unwrap();
            assert_eq!(api.uri(2), uri);
            assert_eq!(api.in_flight, 3);
        }
        let bounded = plan(&format!("{line} http://127.0.0.1:8000/api --in-flight 2")).unwrap();
        assert_eq!(bounded.api.unwrap().in_flight, 2);
    }

    #[test]
    fn transports_have_their_own_paths() {
        for path in ["/connection/websocket", "/connection/sse"] {
            let line = format!("idle --url ws://127.0.0.1:1{path} --transport http_stream");
            let plan = plan(&line).unwrap();
            let own = "/connection/http_stream";
            let of = &plan.populations[0];
            assert_eq!((of.target.path.as_str(), of.up_path.as_str()), (own, "/emulation"));
            assert_eq!(
                (plan.websocket_path.as_str(), plan.centrifugo),
                ("/connection/websocket", true)
            );
        }
        let line = "idle --url http://127.0.0.1:1/a/connection/sse --transport sse";
        assert_eq!(plan(line).unwrap().populations[0].up_path, "/a/emulation");
    }

    /// The plan of a file with this text.
    fn plan_of(text: &str, more: &str) -> Result<Plan, String> {
        let path = std::env::temp_dir().join(format!("roost-load-plan-{}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        let plan = plan(&format!("run {} {more}", path.display()));
        std::fs::remove_file(&path).unwrap();
        plan
    }

    const MIXED: &str = r#"
        url = "ws://127.0.0.1:1/connection/websocket"
        tls_url = "wss://127.0.0.1:2/connection/websocket"
        tls = { insecure = true }
        channels = { name = "c", count = 4, subscribers = "zipf" }
        populations = [
            { name = "a", connections = 80, tls = 0.25, compression = 0.5 },
            { name = "b", connections = 20, role = "slow_readers" },
            { name = "c", connections = 2, role = "publishers" },
        ]
        phases = [
            { open = 0.5, duration = "2s", rate = [0, 10] },
            { rate = 10, duration = "3s" },
            { drop = 0.1 },
        ]
    "#;

    #[test]
    fn populations_are_split_by_shares() {
        let plan = plan_of(MIXED, "").unwrap();
        let sizes: Vec<(&str, u32, bool, bool)> = plan
            .populations
            .iter()
            .map(|of| (of.name.as_str(), of.connections, of.target.tls.is_some(), of.compression))
            .collect();
        let expected = [
            ("a", 30, false, false),
            ("a, compressed", 30, false, true),
            ("a, TLS", 10, true, false),
            ("a, TLS, compressed", 10, true, true),
            ("b", 20, false, false),
        ];
        assert_eq!(sizes, expected);
        assert_eq!((plan.connections, plan.publishers), (100, 2));
        // The slow ones don't count, and the first channel has the most.
        assert_eq!(plan.receivers.iter().sum::<u32>(), 80);
        assert!(plan.receivers[0] > plan.receivers[3], "{:?}", plan.receivers);
        let messages: Vec<u32> =
            plan.phases.iter().filter_map(|of| of.messages).map(|of| of.count).collect();
        assert_eq!((plan.phases[0].open, messages), (Some(50), vec![10, 30]));
    }

    #[test]
    fn the_command_line_goes_before_the_file() {
        let more = "--connections 200 --rate 20 --duration 10s --size 500 --drop-share 0.5";
        let plan = plan_of(MIXED, more).unwrap();
        assert_eq!((plan.connections, plan.payload_bytes), (200, 500));
        let times: Vec<_> = plan.phases.iter().map(|of| of.duration.map(|d| d.as_secs())).collect();
        assert_eq!(times, [Some(4), Some(6), None]);
        assert_eq!((plan.rate, plan.phases[2].drop), (Some(20.0), Some(0.5)));
        assert_eq!(plan.phases[0].messages.map(|of| of.count), Some(40));
    }

    #[test]
    fn contradictions_in_files_are_refused() {
        for (from, to, expected) in [
            ("connections = 2, role", "connections = 5, role", "more publishers than channels"),
            ("count = 4", "count = 101", "more channels than connections"),
            ("tls_url = \"wss", "tls_url = \"ws", "tls: wss:// in url or tls_url"),
            ("connections = 20,", "token_ttl = \"9s\",", "token_ttl needs the key"),
            ("connections = 20,", "tls = 2,", ":8:33: a share is from 0 to 1, not 2"),
        ] {
            assert!(MIXED.contains(from), "{from}");
            let error = plan_of(&MIXED.replace(from, to), "").unwrap_err();
            assert!(error.contains(expected), "{to}: {error}");
        }
        let error = plan("run /missing/file").unwrap_err();
        assert_eq!(error, "/missing/file: no such file or directory");
        assert!(plan("run").unwrap_err().contains("FILE"));
        assert!(plan("idle x --url ws://127.0.0.1:1/").unwrap_err().contains("only `run`"));
    }

    #[test]
    fn contradictory_flags_are_refused() {
        for (line, expected) in [
            ("idle --url wss://127.0.0.1:1/ --cacert /missing", "--cacert /missing: "),
            ("idle --url ftp://h/", "ws://"),
            ("idle --url ws://127.0.0.1:1/x --transport sse", "/connection/sse"),
            ("idle --url ws://127.0.0.1:1/connection/sse?x --transport sse", "query"),
            ("echo --url http://127.0.0.1:1/connection/sse --transport sse", "WebSockets only"),
            ("idle --url http://127.0.0.1:1/connection/sse --transport long_poll", "--subscribe"),
            (
                "idle --url http://127.0.0.1:1/connection/sse --transport sse --compression",
                "--compression",
            ),
            ("idle --url h", "ws://"),
            ("idle --url ws://127.0.0.1:1/ --connections 0", "--connections"),
            ("idle --url ws://127.0.0.1:1/ --drop-share 1.5", "--drop-share"),
            ("idle --url ws://127.0.0.1:1/ --rate -1", "--rate"),
            ("idle --url ws://127.0.0.1:1/ --connections 40000 --threads 2", "need 3 threads"),
            ("echo --url ws://127.0.0.1:1/ --protocol centrifugo", "raw"),
            ("channels --url ws://127.0.0.1:1/ --channels 2", "client protocol"),
            ("A broadcast --api-url ftp://127.0.0.1:1/api", "http://"),
            ("A broadcast --api-url http://127.0.0.1:1/api?x=1", "query"),
            ("A broadcast --api-url http://127.0.0.1:1/api --protocol raw", "client protocol"),
            ("A idle --api-url http://127.0.0.1:1/api --publish 1 --subscribe c", "not for idle"),
            ("A echo --api-url http://127.0.0.1:1/api --protocol raw", "not for echo"),
            ("A storm --api-url http://127.0.0.1:1/api --subscribe c", "--publish"),
        ] {
            let line = line.replace("--rate -1", "--rate=-1");
            let line = match line.strip_prefix("A ") {
                Some(rest) => {
                    format!("{rest} --api-key k --url ws://127.0.0.1:1/connection/websocket")
                }
                None => line,
            };
            let error = plan(&line).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
