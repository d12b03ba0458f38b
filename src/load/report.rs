//! The result: one JSON object for programs, a few lines for people, and the verdict.

use super::clock::ClockReport;
use super::connects::ConnectReport;
use super::figures::{Latency, Reasons};
use super::file::Role;
use super::host::Machine;
use super::plan::Population;
use super::recovery::Returns;
use super::search::Found;
use super::series::{AgentColumns, Columns, Second};
use super::threshold::Judged;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::collections::BTreeMap;
use std::{fmt, io};

/// The version of the object that `--json` writes. It grows when a reader of the one before would
/// misread it: 2 has the seconds in columns, 1 (which names no version) in rows.
pub(super) const VERSION: u64 = 2;

/// What `--json` writes; only files have the seconds and the histogram.
#[derive(Serialize)]
struct Whole<'a> {
    version: u64,
    #[serde(flatten)]
    report: &'a Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<Columns>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    agent_seconds: Vec<AgentColumns>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_hdr: Option<String>,
}

impl<'a> Whole<'a> {
    fn of(report: &'a Report) -> Self {
        let (seconds, agent_seconds, latency_hdr) = (None, Vec::new(), None);
        Self { version: VERSION, report, seconds, agent_seconds, latency_hdr }
    }
}

/// One line for each key, and for each array: a column of an hour is not 3600 lines.
#[derive(Default)]
struct Lines<'a> {
    pretty: PrettyFormatter<'a>,
}

impl Formatter for Lines<'_> {
    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.pretty.begin_object(out)
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.pretty.end_object(out)
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.pretty.begin_object_key(out, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.pretty.begin_object_value(out)
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.pretty.end_object_value(out)
    }
}

/// The result of a run. The keys are those that the JSON line has; figures that a scenario doesn't
/// have are null or 0.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) scenario: String,
    /// Where the connections were made to.
    pub(crate) url: String,
    /// A signal ended the run early: the figures are those so far.
    pub(crate) interrupted: bool,
    pub(crate) connections: Connections,
    /// Connections opened per second.
    pub(crate) connect_rate: f64,
    pub(crate) messages: Messages,
    /// Of a message's payload as it was written; null when none was.
    pub(crate) payload_bytes: Option<usize>,
    pub(crate) rate: Rate,
    /// The transport of the connections, and whether they are compressed.
    pub(crate) transport: &'static str,
    pub(crate) compression: bool,
    /// On the connections, above TCP; from the first message on, where messages were sent.
    pub(crate) bytes: Bytes,
    /// From the intended send time.
    pub(crate) latency_us: Summary,
    /// From the actual send time.
    pub(crate) latency_raw_us: Summary,
    /// From the first message (idle: from the last connection; storm: from the drop) to the end.
    pub(crate) duration_s: f64,
    pub(crate) client: Client,
    /// Of the process that --pid names.
    pub(crate) server: Option<Server>,
    /// Why the figures say more about this client than about the server.
    pub(crate) bottleneck: Option<&'static str>,
    /// Only in a storm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) storm: Option<Storm>,
    /// Only where the server was replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) upgrade: Option<Upgrade>,
    /// Only with --recover.
    pub(crate) returns: Option<Returns>,
    /// How long connections took to open, step by step; microseconds.
    pub(crate) connect_us: ConnectReport,
    /// Round trips of pings, with --ping-every.
    pub(crate) ping_us: Summary,
    /// Latency by transport.
    pub(crate) transports: BTreeMap<&'static str, Summary>,
    /// Of several channels the first ones.
    pub(crate) channels: Vec<ChannelReport>,
    /// When the run began, and where.
    pub(crate) started: String,
    pub(crate) machine: Machine,
    /// Connections that left on purpose.
    pub(crate) churn: Churn,
    /// Who connected.
    pub(crate) populations: Vec<PopulationReport>,
    /// What happened, phase by phase.
    pub(crate) phases: Vec<PhaseReport>,
    /// Why connections or messages failed, with counts.
    pub(crate) reasons: BTreeMap<String, u64>,
    /// The machines that the load came from, where it was not this one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) agents: Vec<AgentReport>,
    /// How far latencies between agents may be off, since two clocks are in them; null where none are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) latency_uncertainty_us: Option<f64>,
    /// Conditions of --fail-if.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) thresholds: Vec<Judged>,
    /// Only with --search.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) search: Option<Found>,
    /// Problems besides connections and messages; each makes the exit code 1.
    #[serde(skip)]
    pub(crate) troubles: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Connections {
    pub(crate) asked: u32,
    pub(crate) opened: u64,
    pub(crate) failed: u64,
    /// Ended by the server or an error after they were open.
    pub(crate) dropped: u64,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Messages {
    /// Published, or sent to be echoed.
    pub(crate) sent: u64,
    /// Arrived, on all connections, duplicates included.
    pub(crate) received: u64,
    /// Should have arrived on a connection and did not.
    pub(crate) lost: u64,
    /// Arrived once more than they should.
    pub(crate) duplicated: u64,
    /// Arrived after a later one of their channel.
    pub(crate) out_of_order: u64,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Rate {
    /// Of the schedule; null when the next message waits for others to come back.
    pub(crate) asked: Option<f64>,
    pub(crate) sent: f64,
    pub(crate) received: f64,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Bytes {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Received for each message that arrived.
    pub(crate) per_message: Option<f64>,
}

/// Microseconds; nulls when nothing was measured.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Summary {
    pub(crate) p50: Option<u64>,
    pub(crate) p90: Option<u64>,
    pub(crate) p99: Option<u64>,
    pub(crate) p999: Option<u64>,
    pub(crate) max: Option<u64>,
    pub(crate) mean: Option<f64>,
}

impl Summary {
    pub(crate) fn of(latency: &Latency) -> Self {
        if latency.is_empty() {
            return Self::default();
        }
        // Buckets are reported by their upper end; the largest value itself bounds them.
        let at = |quantile| Some(latency.value_at_quantile(quantile).min(latency.max()));
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: Some(latency.max()),
            mean: Some(round(latency.mean())),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Client {
    pub(crate) rss_bytes: u64,
    pub(crate) cpu_s: f64,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Server {
    /// At the end; null if it was gone.
    pub(crate) rss_bytes: Option<u64>,
    /// From before the first connection to when all were open and held.
    pub(crate) rss_bytes_per_connection: Option<f64>,
    /// Slab growth of this host in the same time over sockets, both ends; null if the server is
    /// elsewhere.
    pub(crate) kernel_bytes_per_connection: Option<f64>,
    /// From before the first connection to the end; null if it was gone.
    pub(crate) cpu_s: Option<f64>,
    /// While connections were only held; null if they were not, for a second at least.
    pub(crate) idle_cpu_s_per_min: Option<f64>,
    /// Processor time while messages were sent and arrived, seconds.
    pub(crate) messages_cpu_s: Option<f64>,
    /// With --rss-from.
    pub(crate) slope: Option<Slope>,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Slope {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) bytes_per_connection: f64,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Storm {
    /// Connections that were dropped on purpose.
    pub(crate) dropped: u64,
    /// The connections among them that are back.
    pub(crate) back: u64,
    /// From the drop until the last one was back.
    pub(crate) back_s: f64,
}

/// Connections that left and came back as the scenario has it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Churn {
    /// How often one left.
    pub(crate) left: u64,
    /// Messages that were published while their receiver was away on purpose, or not there yet: they don't
    /// count as lost.
    pub(crate) absent: u64,
    /// Tokens that were replaced before they expired.
    pub(crate) refreshed: u64,
}

/// Connections of one kind, as the scenario has them.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct PopulationReport {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) connections: u32,
    pub(crate) transport: &'static str,
    pub(crate) tls: bool,
    pub(crate) compression: bool,
    pub(crate) latency_us: Summary,
}

/// One of several channels.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct ChannelReport {
    pub(crate) name: String,
    pub(crate) received: u64,
    pub(crate) latency_us: Summary,
}

impl PopulationReport {
    pub(crate) fn of(population: &Population) -> Self {
        let Population { name, role, connections, transport, compression, target, .. } = population;
        Self {
            name: name.clone(),
            role: *role,
            connections: *connections,
            transport: transport.name(),
            tls: target.tls.is_some(),
            compression: *compression,
            latency_us: Summary::default(),
        }
    }
}

/// One agent, and its part.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct AgentReport {
    pub(crate) name: String,
    pub(crate) machine: Machine,
    /// Connections that it was to open, and which part of all they are.
    pub(crate) connections: u32,
    pub(crate) share: f64,
    /// Connections of it that publish.
    pub(crate) publishers: u32,
    pub(crate) opened: u64,
    pub(crate) failed: u64,
    pub(crate) dropped: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Null when it was gone before it could judge.
    pub(crate) lost: Option<u64>,
    pub(crate) latency_us: Summary,
    /// Messages come from other agents too: their latency is corrected by the offsets of both clocks.
    pub(crate) is_latency_corrected: bool,
    pub(crate) client: Client,
    pub(crate) bottleneck: Option<&'static str>,
    pub(crate) clock: ClockReport,
    /// Why it was gone before the end.
    pub(crate) fault: Option<String>,
}

impl fmt::Display for AgentReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, connections, share, publishers, opened, sent, received, .. } = self;
        write!(f, "{name}: {connections} connections ({:.0} %), ", share * 100.0)?;
        if *publishers > 0 {
            write!(f, "{publishers} publishers, ")?;
        }
        write!(f, "{opened} opened, {sent} sent, {received} received")?;
        match self.lost {
            Some(lost) => write!(f, ", {lost} lost")?,
            None => write!(f, ", not judged")?,
        }
        if let Some(p99) = self.latency_us.p99 {
            write!(f, ", p99 {}", Time::us(p99))?;
            if self.is_latency_corrected {
                write!(f, " (corrected)")?;
            }
        }
        let ClockReport { offset_us, uncertainty_us, .. } = self.clock;
        let sign = if offset_us < 0.0 { '-' } else { '+' };
        let offset = Time { us: offset_us.abs() };
        write!(f, "; clock {sign}{offset} within {}", Time { us: uncertainty_us })?;
        match &self.fault {
            Some(fault) => write!(f, "; GONE: {fault}"),
            None => Ok(()),
        }
    }
}

/// One phase as it ran.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct PhaseReport {
    pub(crate) name: String,
    /// Since the start of the run.
    pub(crate) began_s: f64,
    pub(crate) duration_s: f64,
    /// Connections that were open at its end.
    pub(crate) open: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) requested: Requested,
}

/// What the scenario has for a phase; nulls where nothing.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Requested {
    pub(crate) duration_s: Option<f64>,
    /// Connections to be open at its end.
    pub(crate) open: Option<u32>,
    /// Messages to be published.
    pub(crate) messages: Option<u32>,
    /// Messages per second at its beginning and at its end.
    pub(crate) rate: Option<[f64; 2]>,
}

/// The replacement of the server.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Upgrade {
    /// Of the command; null while it goes on, or when a signal ended it.
    pub(crate) exit_code: Option<i32>,
    /// How long the command ran; null while it goes on.
    pub(crate) command_s: Option<f64>,
    /// The longest latency of each connection since the command began: percentiles over connections.
    pub(crate) pause_us: Summary,
}

impl Server {
    /// The known figures, on one line; nothing without any.
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.rss_bytes.map(|bytes| format!("{:.1} MB", bytes as f64 / 1e6)));
        parts.extend(self.cpu_s.map(|cpu_s| format!("{cpu_s:.2} CPU s")));
        let per_connection = [
            ("", self.rss_bytes_per_connection),
            ("kernel ", self.kernel_bytes_per_connection),
            ("slope ", self.slope.map(|slope| slope.bytes_per_connection)),
        ];
        // Memory that shrank meanwhile says nothing of connections.
        let told = per_connection.into_iter().filter_map(|(name, bytes)| {
            let bytes = bytes.filter(|bytes| *bytes > 0.0)?;
            Some(format!("{name}{bytes:.0} B/connection"))
        });
        parts.extend(told);
        match parts.is_empty() {
            true => Ok(()),
            false => writeln!(f, "  server       {}", parts.join(", ")),
        }
    }
}

/// A time for people: in the unit that leaves one to three digits before the point.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time {
    us: f64,
}

impl Time {
    pub(super) fn us(us: u64) -> Self {
        Self { us: us as f64 }
    }

    pub(super) fn s(s: f64) -> Self {
        Self { us: s * 1e6 }
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, unit) = match self.us {
            us if us < 999.5 => return write!(f, "{us:.0} us"),
            us if us < 999_500.0 => (us / 1e3, "ms"),
            us if us < 120e6 => (us / 1e6, "s"),
            us => (us / 60e6, "min"),
        };
        let decimals = match value {
            value if value < 9.995 => 2,
            value if value < 99.95 => 1,
            _ => 0,
        };
        write!(f, "{value:.decimals$} {unit}")
    }
}

/// To three decimals: enough for every figure here, and readable.
pub(crate) fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

impl Report {
    /// Takes over the reasons.
    pub(crate) fn explain(&mut self, reasons: &Reasons) {
        for (reason, count) in reasons.iter() {
            *self.reasons.entry(reason.to_owned()).or_default() += count;
        }
    }

    /// The problems, one line each; none if every message arrived.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = self.troubles.clone();
        for (count, what) in [
            (self.connections.failed, "connections could not be opened"),
            (self.connections.dropped, "connections were dropped"),
            (self.messages.lost, "messages were lost"),
            (self.messages.duplicated, "messages were duplicated"),
            (self.messages.out_of_order, "messages came out of order"),
        ] {
            if count > 0 {
                problems.push(format!("{count} {what}"));
            }
        }
        problems
    }

    /// Whether a condition of --fail-if holds.
    pub(crate) fn fails(&self) -> bool {
        self.thresholds.iter().any(|of| of.holds)
    }

    /// Why the figures say more about this client than about the server.
    pub(super) fn bottleneck_text(&self) -> Option<&'static str> {
        self.bottleneck.map(|bottleneck| match bottleneck {
            CLIENT_CPU => "this client was out of processor time",
            SHARED_CPU => "this client waited for processors that others used",
            _ => "this client sent later than its schedule",
        })
    }

    /// For programs, with what happened second by second and the histogram of all latencies.
    pub(crate) fn json_with(&self, seconds: &[Second], latency: &Latency) -> String {
        let whole = Whole {
            seconds: Some(Columns::of(seconds)),
            agent_seconds: AgentColumns::of_all(seconds),
            latency_hdr: Some(super::hdr::encode(latency)),
            ..Whole::of(self)
        };
        let mut out = Vec::new();
        // As below.
        let _ = whole.serialize(&mut Serializer::with_formatter(&mut out, Lines::default()));
        out.push(b'\n');
        String::from_utf8(out).unwrap_or_default()
    }

    /// Whether this client itself was out of time, whatever the server did.
    pub(super) fn bottleneck_is_own(&self) -> bool {
        matches!(self.bottleneck, Some(CLIENT_CPU | SHARED_CPU))
    }

    /// The one line for programs.
    pub(crate) fn json(&self) -> String {
        // Numbers, strings and a map with string keys: nothing that JSON can't say.
        serde_json::to_string(&Whole::of(self)).unwrap_or_default()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, messages, rate, client, .. } = self;
        writeln!(f, "{} {}", self.scenario, self.url)?;
        if self.interrupted {
            writeln!(f, "  INTERRUPTED: the figures are those so far")?;
        }
        let compressed = if self.compression { ", compressed" } else { "" };
        writeln!(f, "  transport    {}{compressed}", self.transport)?;
        writeln!(
            f,
            "  connections  {} of {} opened ({:.0}/s), {} failed, {} dropped",
            connections.opened,
            connections.asked,
            self.connect_rate,
            connections.failed,
            connections.dropped
        )?;
        if let Some(storm) = &self.storm {
            let Storm { dropped, back, back_s } = storm;
            writeln!(
                f,
                "  storm        {dropped} dropped, {back} back after {}",
                Time::s(*back_s)
            )?;
        }
        if let Some(Upgrade { exit_code, command_s, pause_us }) = &self.upgrade {
            let ended = match (exit_code, command_s) {
                (Some(code), Some(s)) => format!("command ended with {code} after {}", Time::s(*s)),
                (None, Some(s)) => format!("a signal ended the command after {}", Time::s(*s)),
                (_, None) => "command goes on".to_owned(),
            };
            write!(f, "  upgrade      {ended}")?;
            if let Summary { p50: Some(p50), p99: Some(p99), max: Some(max), .. } = pause_us {
                let [p50, p99, max] = [*p50, *p99, *max].map(Time::us);
                write!(f, "; pause of a client p50 {p50}, p99 {p99}, max {max}")?;
            }
            writeln!(f)?;
        }
        if let Some(returns) = &self.returns {
            let Returns { reconnected, resubscribed, unrecovered, announced } = returns;
            writeln!(
                f,
                "  returns      {reconnected} connections, {resubscribed} subscriptions; {unrecovered} not \
                 recovered, {announced} messages missing that were announced"
            )?;
        }
        let Churn { left, absent, refreshed } = self.churn;
        if left + absent + refreshed > 0 {
            writeln!(
                f,
                "  churn        {left} left on purpose, {absent} messages published while away, \
                 {refreshed} tokens refreshed"
            )?;
        }
        if messages.sent > 0 {
            writeln!(
                f,
                "  messages     {} sent ({:.0}/s), {} received ({:.0}/s), {} lost, {} duplicated, \
                 {} out of order",
                messages.sent,
                rate.sent,
                messages.received,
                rate.received,
                messages.lost,
                messages.duplicated,
                messages.out_of_order
            )?;
        }
        if let Some(bytes) = self.payload_bytes {
            match rate.asked {
                Some(asked) => writeln!(f, "  payload      {bytes} B, {asked}/s asked for")?,
                None => writeln!(f, "  payload      {bytes} B, as fast as they come back")?,
            }
        }
        if messages.received > 0 {
            let each = self.bytes.received as f64 / messages.received as f64;
            let received = self.bytes.received as f64 / 1e6;
            writeln!(f, "  bytes        {received:.1} MB received, {each:.1} B a message")?;
        }
        for (name, summary) in
            [("latency", &self.latency_us), ("latency raw", &self.latency_raw_us)]
        {
            if let Summary { p50: Some(p50), p99: Some(p99), max: Some(max), .. } = summary {
                let [p50, p99, max] = [*p50, *p99, *max].map(Time::us);
                writeln!(f, "  {name:<12} p50 {p50}, p99 {p99}, max {max}")?;
            }
        }
        for (name, summary) in [("connect", &self.connect_us.total), ("ping", &self.ping_us)] {
            if let Summary { p50: Some(p50), p99: Some(p99), max: Some(max), .. } = summary {
                let [p50, p99, max] = [*p50, *p99, *max].map(Time::us);
                writeln!(f, "  {name:<12} p50 {p50}, p99 {p99}, max {max}")?;
            }
        }
        if self.duration_s > 0.0 {
            writeln!(f, "  duration     {}", Time::s(self.duration_s))?;
        }
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let clients = if self.agents.is_empty() { "this client" } else { "all agents" };
        writeln!(f, "  {clients:<12} {:.1} MB, {:.2} CPU s", mb(client.rss_bytes), client.cpu_s)?;
        for agent in &self.agents {
            writeln!(f, "  agent        {agent}")?;
        }
        if let Some(us) = self.latency_uncertainty_us {
            let us = Time { us };
            writeln!(
                f,
                "  clocks       latencies between agents are corrected by the offsets, to within {us}"
            )?;
        }
        if let Some(server) = &self.server {
            server.write(f)?;
        }
        for (reason, count) in &self.reasons {
            writeln!(f, "  {count} x {reason}")?;
        }
        if let Some(why) = self.bottleneck_text() {
            writeln!(f, "  WARNING: {why}; the figures are not the server's limit")?;
        }
        for Judged { condition, value, .. } in self.thresholds.iter().filter(|of| of.holds) {
            match value {
                Some(value) => writeln!(f, "  FAILED: {condition}, and it is {value}")?,
                None => writeln!(f, "  FAILED: {condition}, and it was not measured")?,
            }
        }
        if let Some(found) = &self.search {
            write!(f, "{found}")?;
        }
        for problem in self.problems() {
            writeln!(f, "  FAILED: {problem}")?;
        }
        Ok(())
    }
}

/// [`Report::bottleneck`]: a thread of ours, or all together, used what processor time there was.
pub(crate) const CLIENT_CPU: &str = "client_cpu";
/// [`Report::bottleneck`]: a thread of ours was ready to run most of the time, but had to wait.
pub(crate) const SHARED_CPU: &str = "shared_cpu";
/// [`Report::bottleneck`]: messages left later than scheduled, and not because of the server.
pub(crate) const SCHEDULE_LAG: &str = "schedule_lag";

#[cfg(test)]
mod tests {
    use super::super::figures;
    use super::*;

    #[test]
    fn every_key_is_there_in_every_case() {
        let value: serde_json::Value = serde_json::from_str(&Report::default().json()).unwrap();
        for path in [
            "/scenario",
            "/url",
            "/connections/asked",
            "/connections/opened",
            "/connections/failed",
            "/connections/dropped",
            "/connect_rate",
            "/messages/sent",
            "/messages/received",
            "/messages/lost",
            "/messages/duplicated",
            "/messages/out_of_order",
            "/rate/sent",
            "/rate/received",
            "/latency_us/p50",
            "/latency_us/p90",
            "/latency_us/p99",
            "/latency_us/p999",
            "/latency_us/max",
            "/latency_us/mean",
            "/latency_raw_us/p999",
            "/duration_s",
            "/interrupted",
            "/payload_bytes",
            "/rate/asked",
            "/client/rss_bytes",
            "/client/cpu_s",
            "/server",
            "/returns",
        ] {
            assert!(value.pointer(path).is_some(), "{path}");
        }
        let server = serde_json::to_value(Server::default()).unwrap();
        for key in ["rss_bytes", "rss_bytes_per_connection", "kernel_bytes_per_connection", "cpu_s"]
        {
            assert!(server.get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn percentiles_never_exceed_the_largest() {
        let mut latency = figures::latency();
        for us in [10, 20, 123_457] {
            latency.saturating_record(us);
        }
        let summary = Summary::of(&latency);
        assert_eq!(summary.p50, Some(20));
        assert_eq!(summary.p999, summary.max);
    }

    #[test]
    fn times_have_units_for_people() {
        for (us, text) in [
            (0, "0 us"),
            (999, "999 us"),
            (1_000, "1.00 ms"),
            (12_345, "12.3 ms"),
            (123_456, "123 ms"),
            (999_499, "999 ms"),
            (1_234_567, "1.23 s"),
            (59_900_000, "59.9 s"),
            (300_000_000, "5.00 min"),
        ] {
            assert_eq!(Time::us(us).to_string(), text);
        }
        assert_eq!(Time::s(0.0125).to_string(), "12.5 ms");
    }

    #[test]
    fn the_report_names_settings_and_measured_figures_only() {
        let mut report = Report {
            scenario: "broadcast".to_owned(),
            url: "http://h:1/connection/sse".to_owned(),
            transport: "sse",
            server: Some(Server::default()),
            ..Report::default()
        };
        let text = report.to_string();
        assert!(text.starts_with("broadcast http://h:1/connection/sse\n"), "{text}");
        assert!(text.contains("transport    sse\n"), "{text}");
        for word in ["server", "payload", "INTERRUPTED", "latency", "B/connection"] {
            assert!(!text.contains(word), "{word}: {text}");
        }
        report.interrupted = true;
        report.payload_bytes = Some(128);
        report.rate.asked = Some(10.0);
        report.latency_us = Summary {
            p50: Some(900),
            p99: Some(1_500),
            max: Some(2_000_000),
            ..Summary::default()
        };
        report.server = Some(Server { rss_bytes: Some(5_000_000), ..Server::default() });
        let text = report.to_string();
        assert!(text.contains("INTERRUPTED: the figures are those so far"), "{text}");
        assert!(text.contains("payload      128 B, 10/s asked for"), "{text}");
        assert!(text.contains("p50 900 us, p99 1.50 ms, max 2.00 s"), "{text}");
        assert!(text.contains("server       5.0 MB\n"), "{text}");
    }

    #[test]
    fn lost_messages_are_a_problem() {
        let mut report = Report::default();
        assert!(report.problems().is_empty());
        report.messages.lost = 3;
        report.connections.dropped = 1;
        assert_eq!(report.problems(), ["1 connections were dropped", "3 messages were lost"]);
        assert!(report.to_string().contains("FAILED: 3 messages were lost"));
    }
}
