//! The plan made of the flags: checked, with defaults filled in, spread over threads.

use super::flags::{Flags, Protocol, Scenario, Threads};
use super::headers::{Headers, numbered};
use super::payload::{PayloadWriter, Stamp};
use super::threshold::Threshold;
use super::tls::Tls;
use super::window::{WINDOW_MAX, Window};
use crate::base::form::Transport;
use clap::ValueEnum;
use hyper::header::HeaderValue;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;
use tungstenite::http::Uri;

/// Descriptors that a thread's table holds beside its connections: the standard three, the
/// publisher, files of /proc, and two for each thread (its epoll and its waker), which all tables
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

/// A command line that makes no sense: what it says, what was wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct PlanError(String);

fn wrong<T>(text: impl Into<String>) -> Result<T, PlanError> {
    Err(PlanError(text.into()))
}

/// Where the connections go.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    /// For the `Host` header.
    pub(crate) host: String,
    /// Path and query.
    pub(crate) path: String,
    /// TLS, if the server speaks it.
    pub(crate) tls: Option<Tls>,
}

/// The HTTP API to publish through.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    /// Of `publish`; the host in it is an address.
    pub(crate) uri: Uri,
    /// The host as the user named it.
    pub(crate) host: HeaderValue,
    pub(crate) key: HeaderValue,
    /// Requests under way at most.
    pub(crate) in_flight: usize,
    /// How long a publish that fails is tried again.
    pub(crate) retry: Option<Duration>,
    /// TLS, if the server speaks it.
    pub(crate) tls: Option<Tls>,
}

/// All that threads need to know, read-only.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) scenario: Scenario,
    pub(crate) target: Target,
    /// Request headers of the connections.
    pub(super) headers: Headers,
    /// Conditions under which the run has failed.
    pub(super) thresholds: Vec<Threshold>,
    pub(crate) transport: Transport,
    /// WebSockets request compression.
    pub(crate) compression: bool,
    /// Path of WebSockets, which is where a connection of ours publishes.
    pub(crate) websocket_path: String,
    /// Path of the up-link.
    pub(crate) up_path: String,
    /// The endpoint to publish through; nothing for one more connection.
    pub(crate) api: Option<Api>,
    pub(crate) connections: u32,
    pub(crate) centrifugo: bool,
    pub(crate) secret: Option<String>,
    /// Names by number; empty when nobody subscribes.
    pub(crate) channels: Vec<String>,
    /// Connections and subscriptions that end are taken up again.
    pub(crate) recover: bool,
    pub(crate) drop_share: f64,
    pub(crate) slow_share: f64,
    /// The command that replaces the server when half of the messages are published.
    pub(crate) replace: Option<String>,
    /// Messages to publish, over all channels; 0 for none.
    pub(crate) publish: u32,
    /// Of publishing, or of echo when it is open-loop.
    pub(crate) rate: Option<f64>,
    pub(crate) payload_bytes: usize,
    /// Messages of a connection in flight, for echo.
    pub(crate) window: u32,
    /// The window by which a broadcast without a rate publishes.
    pub(crate) closed_loop: Option<Arc<Window>>,
    pub(crate) spin: bool,
    pub(crate) duration: Duration,
    pub(crate) threads: usize,
    pub(crate) pid: Option<u32>,
    pub(crate) json: bool,
    pub(crate) connect_rate: Option<f64>,
    /// Of one thread.
    pub(crate) in_flight: u32,
    pub(crate) connect_timeout: Duration,
    pub(crate) tries: u8,
    pub(crate) drain: Duration,
    pub(crate) hold: Duration,
    pub(crate) pings: u16,
    pub(crate) settle: u32,
    pub(crate) rss_from: Option<u32>,
    /// Marks the messages of this process.
    pub(crate) run: u32,
}

/// The connections of one thread: `base..base + count` of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) base: u32,
    pub(crate) count: u32,
}

impl Plan {
    /// Checks the flags and fills in what they leave open. `descriptors` is the limit of one table,
    /// `run` any number that other runs don't have. Looks the host's name up.
    pub(crate) fn new(flags: Flags, descriptors: u64, run: u32) -> Result<Self, PlanError> {
        check_numbers(&flags)?;
        let headers = Headers::new(&flags).map_err(PlanError)?;
        let thresholds = thresholds(&flags)?;
        let mut target = target("--url", &flags.url, &["ws", "http"], &flags)?;
        if let Some(host) = &headers.host {
            target.host.clone_from(host);
        }
        let paths = paths(&flags, &target.path)?;
        target.path = paths.own;
        let centrifugo = centrifugo(&flags, &target)?;
        let channels = channels(&flags, centrifugo);
        let publish = publish(&flags)?;
        if publish > 0 && centrifugo && channels.is_empty() {
            return wrong("--publish needs a channel: --subscribe NAME");
        }
        if flags.recover && (channels.is_empty() || flags.transport != Transport::WebSocket) {
            return wrong("--recover needs a channel, and WebSockets");
        }
        let api = api(&flags, &channels, publish)?;
        let threads = threads(&flags, descriptors)?;
        let closed_loop = closed_loop(&flags, api.is_some())?;
        let rate = match flags.scenario {
            Scenario::Echo => flags.rate,
            _ if closed_loop.is_some() => None,
            _ => flags.rate.or(Some(10.0)),
        };
        Ok(Self {
            scenario: flags.scenario,
            target,
            headers,
            thresholds,
            transport: flags.transport,
            compression: flags.compression,
            websocket_path: paths.websocket,
            up_path: paths.up,
            api,
            connections: flags.connections,
            centrifugo,
            secret: flags.secret,
            channels,
            recover: flags.recover,
            drop_share: flags.drop_share,
            slow_share: flags.slow_share,
            replace: flags.run,
            publish,
            rate,
            payload_bytes: flags.size,
            window: flags.window.unwrap_or(1),
            closed_loop,
            spin: flags.spin,
            duration: flags.duration,
            threads,
            pid: flags.pid,
            json: flags.json,
            connect_rate: flags.connect_rate,
            in_flight: (flags.in_flight / threads as u32).max(4),
            connect_timeout: flags.connect_timeout,
            tries: flags.tries.max(1),
            drain: flags.drain,
            hold: flags.hold,
            pings: flags.pings,
            settle: flags.settle.min(flags.connections),
            rss_from: flags.rss_from,
            run,
        })
    }

    /// The URL that connections are made to: `--url`, with the path of the transport.
    pub(crate) fn used_url(&self) -> String {
        let scheme = if self.transport == Transport::WebSocket { "ws" } else { "http" };
        let Target { host, path, tls, .. } = &self.target;
        let secure = if tls.is_some() { "s" } else { "" };
        format!("{scheme}{secure}://{host}{path}")
    }

    /// Bytes of the payload of message number `sequence`: as requested, or as many as the checks need.
    pub(crate) fn written_bytes(&self, sequence: u64) -> usize {
        let now_ns = u64::try_from(self.duration.as_nanos()).unwrap_or(u64::MAX);
        let stamp = Stamp {
            run: self.run,
            channel: 0,
            sequence: u32::try_from(sequence).unwrap_or(u32::MAX),
            intended_ns: now_ns,
            actual_ns: now_ns,
        };
        let mut payload = Vec::new();
        PayloadWriter::new(self.payload_bytes).write(&stamp, &mut payload);
        payload.len()
    }

    /// Path and query for connection `number`.
    pub(crate) fn path_of(&self, number: u32) -> String {
        numbered(&self.target.path, number)
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

    /// The number of the channel that connection `global` is subscribed to; 0 without channels.
    pub(crate) fn channel_of(&self, global: u32) -> u32 {
        global.checked_rem(self.channels.len() as u32).unwrap_or_default()
    }

    /// Whether connection `global` is one of those that stop reading.
    pub(crate) fn is_slow(&self, global: u32) -> bool {
        picked(global, self.slow_share)
    }

    /// Whether connection `global` is one of those that are dropped in a storm.
    pub(crate) fn is_dropped(&self, global: u32) -> bool {
        picked(global, self.drop_share)
    }

    /// The address that connection `global` comes from: on loopback one for every few thousand, so
    /// that ports don't run out; anywhere else, the kernel's choice.
    pub(crate) fn source(&self, global: u32) -> Option<Ipv4Addr> {
        if !matches!(self.target.address.ip(), IpAddr::V4(ip) if ip.is_loopback()) {
            return None;
        }
        // Runs that follow each other begin elsewhere, away from ports in TIME_WAIT.
        let n = (self.run % 50_000) + global / CONNECTIONS_PER_SOURCE;
        let octet = |n: u32| (n % 250 + 1) as u8;
        Some(Ipv4Addr::new(127, octet(n / 62_500 + 1), octet(n / 250), octet(n)))
    }
}

fn part(total: u32, index: usize, threads: usize) -> u32 {
    (u64::from(total) * index as u64 / threads as u64) as u32
}

/// Picks `share` of all numbers, evenly spread.
fn picked(n: u32, share: f64) -> bool {
    let at = |n: f64| (n * share).floor();
    at(f64::from(n) + 1.0) > at(f64::from(n))
}

fn check_numbers(flags: &Flags) -> Result<(), PlanError> {
    let share = |name: &str, share: f64| match share {
        0.0..=1.0 => Ok(()),
        _ => wrong(format!("{name}: a share is from 0 to 1, not {share}")),
    };
    share("--drop-share", flags.drop_share)?;
    share("--slow-share", flags.slow_share)?;
    for (name, rate) in [("--rate", flags.rate), ("--connect-rate", flags.connect_rate)] {
        if rate.is_some_and(|rate| !(rate.is_finite() && rate > 0.0 && rate <= 1e9)) {
            return wrong(format!("{name}: a rate is above 0 and at most a billion a second"));
        }
    }
    for (name, count) in [("--connections", flags.connections), ("--channels", flags.channels)] {
        if count == 0 {
            return wrong(format!("{name}: at least 1"));
        }
    }
    match (flags.scenario, &flags.run) {
        (Scenario::Upgrade, None) => return wrong("upgrade needs --run COMMAND"),
        (Scenario::Upgrade, Some(_)) | (_, None) => {}
        (other, Some(_)) => return wrong(format!("--run: not for {}", other.name())),
    }
    if flags.window.is_some_and(|window| window == 0 || window > 10_000) {
        return wrong("--window: from 1 to 10000");
    }
    if flags.channels > flags.connections {
        return wrong("--channels: more channels than connections");
    }
    if flags.size > PAYLOAD_BYTES_MAX {
        return wrong(format!("--size: at most {PAYLOAD_BYTES_MAX}"));
    }
    Ok(())
}

/// Where connections of a transport, publishers and up-links go.
struct Paths {
    own: String,
    websocket: String,
    up: String,
}

/// Paths of the transport, from the one that the URL has.
fn paths(flags: &Flags, path: &str) -> Result<Paths, PlanError> {
    let transport = flags.transport;
    if transport == Transport::WebSocket {
        let path = path.to_owned();
        return Ok(Paths { own: path.clone(), websocket: path, up: String::new() });
    }
    if flags.compression {
        return wrong("--compression: only WebSockets can be compressed");
    }
    if path.contains('?') {
        return wrong(format!("--url {}: a query has no place in it", flags.url));
    }
    let (base, last) = path.rsplit_once('/').unwrap_or(("", path));
    if !Transport::value_variants().iter().any(|of| of.name() == last) {
        return wrong(format!(
            "--url {}: --transport {} needs a path like /connection/{}",
            flags.url,
            transport.name(),
            transport.name()
        ));
    }
    let prefix = base.strip_suffix("/connection").unwrap_or(base);
    Ok(Paths {
        own: format!("{base}/{}", transport.name()),
        websocket: format!("{base}/websocket"),
        up: format!("{prefix}/emulation"),
    })
}

/// Reads the URL of a flag; `schemes` are the ones without TLS, and with an `s` behind them those with TLS.
fn target(flag: &str, url: &str, schemes: &[&str], flags: &Flags) -> Result<Target, PlanError> {
    let uri: Uri = match url.parse() {
        Ok(uri) => uri,
        Err(error) => return wrong(format!("{flag} {url}: {error}")),
    };
    let is_secure = match uri.scheme_str() {
        Some(found) if schemes.contains(&found) => false,
        Some(found) if found.strip_suffix('s').is_some_and(|of| schemes.contains(&of)) => true,
        _ => return wrong(format!("{flag} {url}: must begin with {0}:// or {0}s://", schemes[0])),
    };
    let Some(host) = uri.host().filter(|host| !host.is_empty()) else {
        return wrong(format!("{flag} {url}: no host"));
    };
    let usual_port = if is_secure { 443 } else { 80 };
    let port = uri.port_u16().unwrap_or(usual_port);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let found: Vec<SocketAddr> = match (bare, port).to_socket_addrs() {
        Ok(found) => found.collect(),
        Err(error) => return wrong(format!("{flag} {url}: {error}")),
    };
    // IPv4 first: only there loopback has more than one source address.
    let address = found.iter().find(|address| address.is_ipv4()).or_else(|| found.first());
    let Some(&address) = address else { return wrong(format!("{flag} {url}: no address")) };
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let tls = is_secure.then(|| Tls::new(bare, &flags.tls())).transpose();
    let tls = tls.or_else(|fault| wrong(format!("{flag} {url}: {fault}")))?;
    let host = if port == usual_port { host.to_owned() } else { format!("{host}:{port}") };
    Ok(Target { address, host, path, tls })
}

fn api(flags: &Flags, channels: &[String], publish: u32) -> Result<Option<Api>, PlanError> {
    let (Some(url), Some(key)) = (&flags.api_url, &flags.api_key) else { return Ok(None) };
    match flags.scenario {
        Scenario::Broadcast | Scenario::Channels | Scenario::Upgrade => {}
        Scenario::Storm if publish > 0 => {}
        Scenario::Storm => return wrong("--api-url: a storm publishes only with --publish"),
        other => return wrong(format!("--api-url: not for {}", other.name())),
    }
    if channels.is_empty() {
        return wrong("--api-url needs the client protocol: --protocol centrifugo");
    }
    let target = target("--api-url", url, &["http"], flags)?;
    if target.path.contains('?') {
        return wrong(format!("--api-url {url}: a query has no place in it"));
    }
    let path = format!("{}/publish", target.path.trim_end_matches('/'));
    let scheme = if target.tls.is_some() { "https" } else { "http" };
    let uri = Uri::builder().scheme(scheme).authority(target.address.to_string());
    let (Ok(uri), Ok(host)) =
        (uri.path_and_query(path).build(), HeaderValue::from_str(&target.host))
    else {
        return wrong(format!("--api-url {url}: not a URL"));
    };
    let Ok(mut key) = HeaderValue::from_str(key) else {
        return wrong("--api-key: has characters that no header can have");
    };
    key.set_sensitive(true);
    let in_flight = (flags.in_flight as usize).clamp(1, channels.len());
    let tls = target.tls;
    Ok(Some(Api { uri, host, key, in_flight, retry: flags.retry, tls }))
}

fn thresholds(flags: &Flags) -> Result<Vec<Threshold>, PlanError> {
    let parse = |text: &String| {
        Threshold::parse(text).or_else(|error| wrong(format!("--fail-if {text}: {error}")))
    };
    flags.fail_if.iter().map(parse).collect()
}

fn centrifugo(flags: &Flags, target: &Target) -> Result<bool, PlanError> {
    let path = target.path.split('?').next().unwrap_or_default();
    let centrifugo = match (flags.protocol, flags.scenario) {
        _ if flags.transport != Transport::WebSocket => {
            if flags.protocol == Protocol::Raw || flags.scenario == Scenario::Echo {
                return wrong("raw messages go over WebSockets only: --transport websocket");
            }
            if flags.transport == Transport::LongPoll && flags.subscribe.is_none() {
                return wrong("--transport long_poll needs a channel: --subscribe NAME");
            }
            true
        }
        (Protocol::Centrifugo, Scenario::Echo) => {
            return wrong("echo speaks raw WebSocket only: --protocol raw");
        }
        (Protocol::Centrifugo, _) => true,
        (Protocol::Raw, _) | (_, Scenario::Echo) => false,
        (Protocol::Auto, _) => path.trim_end_matches('/').ends_with("/connection/websocket"),
    };
    if !centrifugo {
        for (name, used) in [
            ("channels", flags.scenario == Scenario::Channels),
            ("--subscribe", flags.subscribe.is_some()),
            ("--channels", flags.channels > 1),
            ("--secret", flags.secret.is_some()),
            ("--pings", flags.pings > 0 && flags.scenario == Scenario::Echo),
        ] {
            if used {
                return wrong(format!("{name} needs the client protocol: --protocol centrifugo"));
            }
        }
    }
    Ok(centrifugo)
}

fn channels(flags: &Flags, centrifugo: bool) -> Vec<String> {
    let quiet = matches!(flags.scenario, Scenario::Idle | Scenario::Storm);
    let name = match &flags.subscribe {
        _ if !centrifugo => return Vec::new(),
        Some(name) => name,
        None if quiet && flags.channels == 1 => return Vec::new(),
        None => "load",
    };
    match flags.channels {
        1 => vec![name.to_owned()],
        count => (0..count).map(|n| format!("{name}-{n}")).collect(),
    }
}

/// The window by which a broadcast without a rate publishes.
fn closed_loop(flags: &Flags, by_api: bool) -> Result<Option<Arc<Window>>, PlanError> {
    let (Some(window), None) = (flags.window, flags.rate) else { return Ok(None) };
    match flags.scenario {
        Scenario::Echo => return Ok(None),
        Scenario::Broadcast if by_api => return wrong("--window: not with --api-url"),
        Scenario::Broadcast if window <= WINDOW_MAX => {}
        Scenario::Broadcast => return wrong(format!("--window: at most {WINDOW_MAX}")),
        other => return wrong(format!("--window: not for {}", other.name())),
    }
    match Window::new(window) {
        Ok(window) => Ok(Some(Arc::new(window))),
        Err(error) => wrong(format!("--window: {error}")),
    }
}

fn publish(flags: &Flags) -> Result<u32, PlanError> {
    match (flags.scenario, flags.publish) {
        (Scenario::Echo, Some(_)) => wrong("--publish: echo publishes nothing; use --duration"),
        (Scenario::Echo, None) | (Scenario::Idle | Scenario::Storm, None) => Ok(0),
        (_, Some(count)) => Ok(count),
        // Until the time is over.
        (Scenario::Broadcast, None) if flags.window.is_some() && flags.rate.is_none() => {
            Ok(u32::MAX / 2)
        }
        (Scenario::Broadcast | Scenario::Channels | Scenario::Upgrade, None) => {
            let count = flags.rate.unwrap_or(10.0) * flags.duration.as_secs_f64();
            if count > f64::from(u32::MAX / 2) {
                return wrong("--rate times --duration: more than two billion messages");
            }
            Ok((count.ceil() as u32).max(1))
        }
    }
}

fn threads(flags: &Flags, descriptors: u64) -> Result<usize, PlanError> {
    let connections = u64::from(flags.connections);
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
        Threads::Exactly(threads) if threads > THREADS_MAX.min(flags.connections as usize) => {
            wrong(format!("--threads {threads}: more than connections, or than {THREADS_MAX}"))
        }
        Threads::Exactly(threads) if threads < least => wrong(format!(
            "--threads {threads}: {connections} connections need {least} threads, because the \
             descriptor limit of each is {descriptors}"
        )),
        Threads::Exactly(threads) => Ok(threads),
        Threads::Auto => {
            let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
            let worth = flags.connections.div_ceil(CONNECTIONS_PER_THREAD) as usize;
            Ok(least.max(worth.min(processors)))
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
    fn protocol_channels_and_counts_by_default() {
        let idle = plan("idle --url ws://127.0.0.1:1/connection/websocket").unwrap();
        assert!(idle.centrifugo && idle.channels.is_empty() && idle.publish == 0);
        let raw = plan("broadcast --url ws://127.0.0.1:1/ --rate 3 --duration 2500ms").unwrap();
        assert!(!raw.centrifugo && raw.channels.is_empty());
        assert_eq!(raw.publish, 8);
        let many = plan(
            "channels --url ws://127.0.0.1:1/connection/websocket?x=1 --channels 3 --subscribe n",
        )
        .unwrap();
        assert_eq!(many.channels, ["n-0", "n-1", "n-2"]);
        assert_eq!(many.channel_of(7), 1);
        assert_eq!(many.target.path, "/connection/websocket?x=1");
        assert_eq!(many.target.host, "127.0.0.1:1");
    }

    #[test]
    fn shares_are_exact_and_spread() {
        let plan = plan("idle --url ws://127.0.0.1:1/ --slow-share 0.25 --drop-share 0.1").unwrap();
        assert_eq!((0..1000).filter(|&n| plan.is_slow(n)).count(), 250);
        assert_eq!((0..10).filter(|&n| plan.is_dropped(n)).count(), 1);
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
            assert_eq!(api.uri, uri);
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
            assert_eq!((plan.target.path.as_str(), plan.up_path.as_str()), (own, "/emulation"));
            assert_eq!(
                (plan.websocket_path.as_str(), plan.centrifugo),
                ("/connection/websocket", true)
            );
        }
        let line = "idle --url http://127.0.0.1:1/a/connection/sse --transport sse";
        assert_eq!(plan(line).unwrap().up_path, "/a/emulation");
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
