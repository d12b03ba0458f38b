//! A scenario as a TOML file: who connects, to which channels, and what happens phase by phase. The commands
//! are such files, built in; a flag of the command line goes before what the file says.
//!
//! ```text
//!  text --toml--> File --flags--> File --plan.rs--> Plan
//!            '---- errors with line and column ----'
//! ```

use super::flags::{Flags, Protocol, Scenario};
use super::mix::Distribution;
use crate::base::form::Transport;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Spanned;

/// The files that are built in, by name.
const BUILT_IN: [(&str, &str); 7] = [
    ("idle", include_str!("scenarios/idle.toml")),
    ("echo", include_str!("scenarios/echo.toml")),
    ("broadcast", include_str!("scenarios/broadcast.toml")),
    ("channels", include_str!("scenarios/channels.toml")),
    ("storm", include_str!("scenarios/storm.toml")),
    ("upgrade", include_str!("scenarios/upgrade.toml")),
    ("chat", include_str!("scenarios/chat.toml")),
];

/// The text of a file that is built in.
pub(super) fn built_in(name: &str) -> Option<&'static str> {
    BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// The names of the files that are built in.
pub(super) fn built_in_names() -> Vec<&'static str> {
    BUILT_IN.iter().map(|(name, _)| *name).collect()
}

/// A scenario file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    /// The name in reports.
    pub(super) name: String,
    pub(super) description: String,
    url: Option<String>,
    /// Where connections with TLS go, if `url` is without.
    pub(super) tls_url: Option<Spanned<String>>,
    protocol: Option<Named<Protocol>>,
    secret: Option<String>,
    size: Option<usize>,
    payload: Option<String>,
    binary: bool,
    window: Option<u32>,
    spin: bool,
    connect_rate: Option<f64>,
    in_flight: Option<u32>,
    connect_timeout: Option<Time>,
    tries: Option<u8>,
    drain: Option<Time>,
    pings: Option<u16>,
    ping_every: Option<Time>,
    settle: Option<u32>,
    fail_if: Vec<String>,
    request: Request,
    tls: TlsFile,
    api: Option<ApiFile>,
    pub(super) channels: Channels,
    pub(super) populations: Vec<Spanned<Population>>,
    pub(super) phases: Vec<Spanned<Phase>>,
}

/// The headers of the requests that open connections.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Request {
    headers: Vec<String>,
    origin: Option<String>,
    cookie: Option<String>,
    subprotocols: Vec<String>,
    user: Option<String>,
    bearer: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TlsFile {
    insecure: bool,
    cacert: Option<PathBuf>,
    resume: bool,
    suite: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ApiFile {
    url: String,
    key: Option<String>,
    retry: Option<Time>,
}

/// The channels of the client protocol.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Channels {
    /// Of one channel, or what the names of several begin with; none: nobody subscribes.
    pub(super) name: Option<String>,
    pub(super) count: Option<u32>,
    /// How subscribers are spread.
    pub(super) subscribers: Distribution,
    /// How messages are spread.
    pub(super) messages: Distribution,
    pub(super) exponent: Option<f64>,
}

/// The use that a population makes of its connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// Receive what is published to their channels.
    #[default]
    Subscribers,
    /// Publish.
    Publishers,
    /// Subscribe, and read nothing while messages are sent.
    SlowReaders,
    /// Subscribe, come back when the connection ends, and recover what was missed.
    Reconnectors,
    /// Receive by one request after another.
    Polls,
    /// Send messages and expect them back.
    Echoes,
    /// Hold a connection without a channel.
    Idle,
}

/// Connections of one kind.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Population {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) connections: Option<u32>,
    pub(super) transport: Option<Named<Transport>>,
    /// Which part of them reads nothing while messages are sent.
    pub(super) slow: Share,
    pub(super) tls: Share,
    pub(super) compression: Share,
    /// Each comes back when its connection ends, and recovers.
    pub(super) recover: bool,
    /// How long each stays before it leaves by itself, and how long it is away.
    pub(super) stay: Option<Range>,
    pub(super) away: Option<Range>,
    /// Echoes: the pause between an answer and the next message.
    pub(super) think: Option<Range>,
    /// How long a token is good.
    pub(super) token_ttl: Option<Time>,
    /// Whether a new token is sent before the old one expires.
    pub(super) refresh: Option<bool>,
}

/// A stretch of the run.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Phase {
    pub(super) name: String,
    pub(super) duration: Option<Time>,
    /// Which part of all connections is open at the end; with a duration they open evenly over it.
    pub(super) open: Option<Share>,
    /// Messages published per second: one rate, or a ramp from one to another.
    pub(super) rate: Option<Rate>,
    /// Messages published.
    pub(super) publish: Option<u32>,
    /// Echoes are sent: at this rate over all connections, or as the populations say.
    pub(super) echo: Option<Echo>,
    /// Which part of the connections breaks off at the beginning, to come back at once.
    pub(super) drop: Option<Share>,
    /// Connections that leave and come back at once, per second.
    pub(super) churn: Option<f64>,
    /// A command that runs beside the phase, from its middle on.
    pub(super) run: Option<String>,
}

/// Whether echoes are sent, and how.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum Echo {
    /// `true`: each connection sends again when its message has come back.
    Closed(bool),
    /// By a schedule.
    Open(Rate),
}

/// A value that the command line has as well.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String", bound = "")]
pub(super) struct Named<T: ValueEnum>(pub(super) T);

impl<T: ValueEnum> TryFrom<String> for Named<T> {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        T::from_str(&text, false).map(Named).map_err(|_| {
            let known = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
            let names: Vec<String> = known.map(|of| of.get_name().to_owned()).collect();
            format!("{text:?}: one of {}", names.join(", "))
        })
    }
}

/// A time, as in "1m30s".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Time(pub(super) Duration);

impl TryFrom<String> for Time {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let fault = |error| format!("{text:?}: {error} (like 10s, 1m30s, 300ms)");
        humantime::parse_duration(&text).map(Time).map_err(fault)
    }
}

/// From 0 to 1; `true` is all, `false` none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(try_from = "RawShare")]
pub(super) struct Share(pub(super) f64);

#[derive(Deserialize)]
#[serde(untagged)]
enum RawShare {
    Whole(bool),
    Part(f64),
}

impl TryFrom<RawShare> for Share {
    type Error = String;

    fn try_from(raw: RawShare) -> Result<Self, String> {
        match raw {
            RawShare::Whole(whole) => Ok(Self(f64::from(u8::from(whole)))),
            RawShare::Part(part @ 0.0..=1.0) => Ok(Self(part)),
            RawShare::Part(part) => Err(format!("a share is from 0 to 1, not {part}")),
        }
    }
}

/// Per second: one rate, or a ramp.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "RawRate")]
pub(super) struct Rate {
    pub(super) from: f64,
    pub(super) to: f64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawRate {
    One(f64),
    Ramp([f64; 2]),
}

impl TryFrom<RawRate> for Rate {
    type Error = String;

    fn try_from(raw: RawRate) -> Result<Self, String> {
        let (from, to) = match raw {
            RawRate::One(rate) => (rate, rate),
            RawRate::Ramp([from, to]) => (from, to),
        };
        let fits = |rate: f64| (0.0..=1e9).contains(&rate);
        match fits(from) && fits(to) && from + to > 0.0 {
            true => Ok(Self { from, to }),
            false => Err("a rate is above 0 and at most a billion a second; a ramp has two".into()),
        }
    }
}

/// A time that is drawn: one, or evenly between two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawRange")]
pub(crate) struct Range {
    pub(crate) from: Duration,
    pub(crate) to: Duration,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawRange {
    One(String),
    Two([String; 2]),
}

impl TryFrom<RawRange> for Range {
    type Error = String;

    fn try_from(raw: RawRange) -> Result<Self, String> {
        let (from, to) = match raw {
            RawRange::One(one) => (one.clone(), one),
            RawRange::Two([from, to]) => (from, to),
        };
        let (from, to) = (Time::try_from(from)?.0, Time::try_from(to)?.0);
        match from <= to {
            true => Ok(Self { from, to }),
            false => Err("a range begins with its shorter time".to_owned()),
        }
    }
}

impl Range {
    /// The time for a random number.
    pub(crate) fn draw(&self, random: u64) -> Duration {
        let share = random as f64 / u64::MAX as f64;
        self.from + (self.to - self.from).mul_f64(share)
    }
}

/// A scenario file that can't be used, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileError {
    path: PathBuf,
    /// Line and column, from 1.
    place: Option<(usize, usize)>,
    text: String,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some((line, column)) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.text)
    }
}

/// Text and name of a file, for errors in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl Source<'_> {
    /// What is wrong at these bytes.
    pub(super) fn error(
        &self,
        at: Option<std::ops::Range<usize>>,
        text: impl Into<String>,
    ) -> FileError {
        let place = at.map(|at| {
            let before = &self.text[..self.text.floor_char_boundary(at.start)];
            let line = before.rsplit('\n').next().unwrap_or_default();
            (before.matches('\n').count() + 1, line.chars().count() + 1)
        });
        FileError { path: self.path.to_owned(), place, text: text.into() }
    }
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// It is no TOML, has keys that no scenario has or values that make no sense: text with line and column.
    pub(super) fn parse(source: Source<'_>) -> Result<Self, FileError> {
        let file: Self = toml::from_str(source.text)
            .map_err(|error| source.error(error.span(), error.message().trim()))?;
        file.check(source)?;
        Ok(file)
    }

    /// What no key by itself shows.
    fn check(&self, source: Source<'_>) -> Result<(), FileError> {
        if self.populations.is_empty() || self.phases.is_empty() {
            return Err(source.error(None, "a scenario has [[populations]] and [[phases]]"));
        }
        if self.populations.len() > 32 {
            return Err(source.error(None, "at most 32 populations"));
        }
        for population in &self.populations {
            if let Some(fault) = population.get_ref().fault(self.tls_url.is_some()) {
                return Err(source.error(Some(population.span()), fault));
            }
        }
        for phase in &self.phases {
            if let Some(fault) = phase.get_ref().fault() {
                return Err(source.error(Some(phase.span()), fault));
            }
        }
        Ok(())
    }

    /// Fills in what the command line leaves open.
    pub(super) fn fill(&self, flags: &mut Flags) {
        fn or<T: Clone>(flag: &mut Option<T>, of: &Option<T>) {
            if flag.is_none() {
                flag.clone_from(of);
            }
        }
        fn or_all(flag: &mut Vec<String>, of: &[String]) {
            if flag.is_empty() {
                *flag = of.to_vec();
            }
        }
        let time = |of: Option<Time>| of.map(|of| of.0);
        or(&mut flags.url, &self.url);
        or(&mut flags.protocol, &self.protocol.map(|of| of.0));
        or(&mut flags.secret, &self.secret);
        or(&mut flags.size, &self.size);
        or(&mut flags.payload, &self.payload);
        flags.binary |= self.binary;
        or(&mut flags.window, &self.window);
        flags.spin |= self.spin;
        or(&mut flags.connect_rate, &self.connect_rate);
        or(&mut flags.in_flight, &self.in_flight);
        or(&mut flags.connect_timeout, &time(self.connect_timeout));
        or(&mut flags.tries, &self.tries);
        or(&mut flags.drain, &time(self.drain));
        or(&mut flags.pings, &self.pings);
        or(&mut flags.ping_every, &time(self.ping_every));
        or(&mut flags.settle, &self.settle);
        // Conditions add up: a file's own ones hold in each run.
        flags.fail_if.extend_from_slice(&self.fail_if);
        let Request { headers, origin, cookie, subprotocols, user, bearer } = &self.request;
        or_all(&mut flags.header, headers);
        or_all(&mut flags.subprotocol, subprotocols);
        or(&mut flags.origin, origin);
        or(&mut flags.cookie, cookie);
        if flags.user.is_none() && flags.bearer.is_none() {
            (flags.user, flags.bearer) = (user.clone(), bearer.clone());
        }
        let TlsFile { insecure, cacert, resume, suite } = &self.tls;
        flags.insecure |= insecure;
        flags.resume |= resume;
        or(&mut flags.cacert, cacert);
        or(&mut flags.suite, suite);
        if let Some(ApiFile { url, key, retry }) = &self.api {
            or(&mut flags.api_url, &Some(url.clone()));
            or(&mut flags.api_key, key);
            or(&mut flags.retry, &time(*retry));
        }
    }

    /// Takes over what the command line says of channels, populations and phases.
    pub(super) fn apply(&mut self, flags: &Flags) {
        let channels = &mut self.channels;
        channels.name = flags.subscribe.clone().or_else(|| channels.name.take());
        channels.count = flags.channels.or(channels.count);
        let is_quiet = matches!(flags.scenario, Scenario::Idle | Scenario::Storm);
        if is_quiet && flags.channels.unwrap_or(1) > 1 && channels.name.is_none() {
            channels.name = Some("load".to_owned());
        }
        self.resize(flags.connections);
        for population in self.populations.iter_mut().map(Spanned::get_mut) {
            population.recover |= flags.recover;
            if let Some(transport) = flags.transport {
                population.transport = Some(Named(transport));
            }
            if flags.compression {
                population.compression = Share(1.0);
            }
            if let Some(share) = flags.slow_share {
                population.slow = Share(share);
            }
        }
        for phase in self.phases.iter_mut().map(Spanned::get_mut) {
            if let (Some(drop), Some(share)) = (&mut phase.drop, flags.drop_share) {
                *drop = Share(share);
            }
            if let (Some(run), Some(command)) = (&mut phase.run, &flags.run) {
                run.clone_from(command);
            }
            if phase.publishes() && flags.publish.is_some() {
                phase.publish = flags.publish;
                // A window has both.
                phase.duration = phase.duration.filter(|_| flags.window.is_some());
            }
        }
        self.rescale(flags);
    }

    /// Connections in all, spread over populations as before.
    fn resize(&mut self, connections: Option<u32>) {
        let total: u64 = self.clients().map(|of| u64::from(of.connections())).sum();
        let Some(connections) = connections.map(u64::from) else { return };
        let (mut before, mut given) = (0, 0);
        for population in self.populations.iter_mut().map(Spanned::get_mut) {
            if population.role != Role::Publishers {
                before += u64::from(population.connections());
                let until = connections * before / total.max(1);
                population.connections = Some((until - given) as u32);
                given = until;
            }
        }
    }

    /// Rates and durations of the command line: those of the only phase that has some, or of all, in proportion.
    fn rescale(&mut self, flags: &Flags) {
        let phases = || self.phases.iter().map(Spanned::get_ref);
        let most = phases().filter_map(|of| of.rate).map(|of| of.from.max(of.to));
        let most = most.fold(0.0, f64::max);
        let whole: Duration = phases().filter_map(|of| of.duration).map(|of| of.0).sum();
        for phase in self.phases.iter_mut().map(Spanned::get_mut) {
            if let Some(rate) = flags.rate {
                if let Some(of) = &mut phase.rate {
                    let factor = if most == of.to { rate / most } else { rate / most.max(1e-9) };
                    *of = Rate { from: of.from * factor, to: of.to * factor };
                }
                if phase.echo.is_some() {
                    phase.echo = Some(Echo::Open(Rate { from: rate, to: rate }));
                }
            } else if flags.window.is_some() && phase.echo.is_none() {
                // A window without a rate: the next message leaves when the one so many before it has come.
                phase.rate = phase.rate.filter(|_| flags.scenario != Scenario::Broadcast);
            }
            if let (Some(duration), Some(of)) = (flags.duration, &mut phase.duration) {
                let share = of.0.as_secs_f64() / whole.as_secs_f64().max(1e-9);
                of.0 = if of.0 == whole { duration } else { duration.mul_f64(share) };
            }
        }
    }

    /// The populations that are no publishers.
    pub(super) fn clients(&self) -> impl Iterator<Item = &Population> {
        self.populations.iter().map(Spanned::get_ref).filter(|of| of.role != Role::Publishers)
    }
}

/// Connections of a population that doesn't say how many.
const CONNECTIONS: u32 = 100;

impl Population {
    pub(super) fn connections(&self) -> u32 {
        self.connections.unwrap_or(if self.role == Role::Publishers { 1 } else { CONNECTIONS })
    }

    fn fault(&self, has_tls_url: bool) -> Option<String> {
        let is_echo = self.role == Role::Echoes;
        let transport = self.transport.map(|of| of.0);
        let fault = match self.role {
            _ if self.connections == Some(0) => "connections: at least 1",
            Role::Publishers if self.connections() > 64 => "connections: at most 64 publishers",
            Role::Polls if transport.is_some_and(|of| of != Transport::LongPoll) => {
                "polls: the transport is long_poll"
            }
            _ if self.think.is_some() && !is_echo => "think: only for echoes",
            _ if self.away.is_some() && self.stay.is_none() => "away: only with stay",
            _ if self.refresh.is_some() && self.token_ttl.is_none() => {
                "refresh: only with token_ttl"
            }
            _ if self.tls.0 > 0.0 && self.tls.0 < 1.0 && !has_tls_url => {
                "tls: a part of them needs tls_url"
            }
            _ => return None,
        };
        Some(fault.to_owned())
    }
}

impl Phase {
    /// Whether messages are published.
    pub(super) fn publishes(&self) -> bool {
        self.rate.is_some() || self.publish.is_some()
    }

    fn fault(&self) -> Option<String> {
        let fault = match self {
            Self { publish: Some(_), duration: Some(_), .. } => {
                "publish and duration: one of them, with a rate"
            }
            Self { rate: Some(_), publish: None, duration: None, .. } => {
                "a rate needs a duration, or publish"
            }
            Self { publish: Some(_), rate: Some(rate), .. } if rate.from != rate.to => {
                "a ramp needs a duration"
            }
            Self { echo: Some(_), duration: None, .. } => "echo needs a duration",
            Self { echo: Some(Echo::Closed(false)), .. } => "echo: true, or a rate",
            Self { churn: Some(_), duration: None, .. } => "churn needs a duration",
            Self { churn: Some(rate), .. } if !(*rate > 0.0 && *rate <= 1e6) => {
                "churn: above 0 and at most a million a second"
            }
            Self { run: Some(_), .. } if !self.publishes() => "run needs messages: a rate",
            _ => return None,
        };
        Some(fault.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "[[populations]]\nname = \"all\"\n[[phases]]\nopen = 1.0\n";

    fn parse(text: &str) -> Result<File, String> {
        let source = Source { path: Path::new("a.toml"), text };
        File::parse(source).map_err(|error| error.to_string())
    }

    #[test]
    fn files_that_are_built_in_can_be_read() {
        for (name, text) in BUILT_IN {
            let file = parse(text).unwrap();
            assert_eq!(file.name, name);
            assert!(!file.description.is_empty());
        }
        assert!(parse(MINIMAL).is_ok());
    }

    #[test]
    fn errors_have_line_and_column() {
        for (text, expected) in [
            ("size = \"x\"", "a.toml:5:8: invalid type: string"),
            ("[[phases]]\nopen = 1.5", "a.toml:6:8: a share is from 0 to 1, not 1.5"),
            ("[[phases]]\nduration = \"soon\"", "a.toml:6:12: \"soon\": expected number"),
            ("[[phases]]\nspeed = 1", "a.toml:6:1: unknown field `speed`"),
            ("[[phases]]\nrate = [0, 0]\nduration = \"1s\"", "a.toml:6:8: a rate is above 0"),
            ("[[phases]]\nname = \"x\"\nrate = 3", "a.toml:5:1: a rate needs a duration"),
            ("[[populations]]\nthink = \"1s\"", "a.toml:5:1: think: only for echoes"),
            ("[[populations]]\nstay = [\"9s\", \"1s\"]", "a.toml:6:8: a range begins with"),
            ("[[populations]]\nrole = \"readers\"", "a.toml:6:8: unknown variant `readers`"),
            ("[[populations]]\ntransport = \"tcp\"", "a.toml:6:13: \"tcp\": one of websocket"),
            ("[[populations]]\ntls = 0.5", "a.toml:5:1: tls: a part of them needs tls_url"),
            ("x =", "a.toml:5:4: "),
        ] {
            let error = match text.starts_with('[') || text == "x =" {
                true => parse(&format!("{MINIMAL}{text}\n")).unwrap_err(),
                // A key of the file itself has to stand before all tables.
                false => parse(&format!("\n\n\n\n{text}\n{MINIMAL}")).unwrap_err(),
            };
            assert!(error.starts_with(expected), "{text}: {error}");
        }
        let error = parse("name = \"x\"").unwrap_err();
        assert_eq!(error, "a.toml: a scenario has [[populations]] and [[phases]]");
    }

    #[test]
    fn connections_in_all_are_spread_as_before() {
        let mut file = parse(
            "[[populations]]\nconnections = 100\n[[populations]]\nconnections = 50\n\
             [[populations]]\nrole = \"publishers\"\n[[phases]]\nopen = true\n",
        )
        .unwrap();
        file.resize(Some(1000));
        let sizes: Vec<u32> = file.clients().map(Population::connections).collect();
        assert_eq!(sizes, [666, 334]);
        assert_eq!(file.populations[2].get_ref().connections(), 1);
    }
}
