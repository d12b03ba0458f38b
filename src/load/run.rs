//! The coordinator: starts the threads, leads them through a scenario, and sums up.
//!
//! ```text
//!  settle -> baseline -> phase after phase: open, pings, hold, memory, messages, storm -> hold -> judge
//! ```

use super::agents::{Agents, Party};
use super::connects::ConnectReport;
use super::crew::Crew;
use super::figures::{self, Busy, Latency, Sum, Tally, merge};
use super::hands::{Finished, Hands};
use super::host::{self, Machine, Usage};
use super::plan::{Phase, Plan};
use super::progress::{Progress, Standing};
use super::report::{self, ChannelReport, PopulationReport, Report, Summary, round};
use super::series::{Moment, Recorder, Second};
use super::worker::Order;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often figures are looked at. Nothing that is measured depends on it.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How long a thread may take over an order, once a signal has come.
const ORDER_PATIENCE: Duration = Duration::from_secs(60);

/// Sent later than this at the 99th percentile, the schedule was not kept.
const LAG_US_MAX: u64 = 5_000;

/// A thread that ran for this part of the time had no time left.
const BUSY_MAX: f64 = 0.9;

pub(super) struct Coordinator {
    pub(super) plan: Arc<Plan>,
    pub(super) origin: Instant,
    /// The threads that do the work.
    pub(super) hands: Hands,
    /// Publishers are open.
    pub(super) has_publishers: bool,
    /// Messages while phases send some.
    pub(super) sending: Option<Sending>,
    /// Orders given so far.
    pub(super) ordered: u64,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) progress: Progress,
    recorder: Recorder,
    /// The scenario and its server.
    title: String,
    /// The state of the server's host before the first connection.
    pub(super) baseline: Baseline,
    pub(super) report: Report,
    /// When and with how much processor time of the server holding began.
    pub(super) held: (Duration, f64),
    /// Connections that the newest phase has wanted open.
    pub(super) opened_to: u32,
    /// Seconds in which connections were opened.
    pub(super) open_s: f64,
    /// The memory of the server when the first of two measurements was taken, and connections by then.
    pub(super) slope_from: Option<(u64, u64)>,
    /// Connections that were dropped and are not all back yet.
    pub(super) fallen: Option<Fallen>,
}

/// Connections that were dropped at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fallen {
    pub(super) began: Duration,
    /// Connections that were open by then.
    pub(super) open: u64,
    pub(super) dropped: u64,
}

/// The messages of a run, from the first phase that sends some on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sending {
    pub(super) began: Duration,
    /// Processor time of the server by then.
    pub(super) server_cpu_s: Option<f64>,
    /// When the schedule of the newest phase ends.
    pub(super) until: Duration,
    /// Phases with published messages, and their messages.
    pub(super) phases: u32,
    pub(super) messages: u32,
    /// Echoes are sent.
    pub(super) echoes: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Baseline {
    pub(super) server: Option<Usage>,
    pub(super) slab_bytes: Option<u64>,
}

/// A run that is over.
pub(crate) struct Run {
    pub(crate) report: Report,
    pub(crate) seconds: Vec<Second>,
    /// All latencies, from the intended send time.
    pub(crate) latency: Latency,
}

/// Runs a scenario. `stop` ends it early with what there is.
///
/// # Errors
/// When it can't even begin, or a thread fails: text for the user. A server that can't be reached
/// is not an error but a report with failed connections.
pub(crate) fn run(plan: Plan, party: Option<Party>, stop: Arc<AtomicBool>) -> Result<Run, String> {
    let plan = Arc::new(plan);
    let now = SystemTime::now();
    let start_s = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let plan_is_quiet = plan.is_quiet;
    let mut recorder = Recorder::new(plan.hdr.as_deref(), start_s)?;
    let origin = Instant::now();
    let hands = match party {
        None => Hands::Here(Box::new(Crew::start(&plan, origin, &recorder.sender())?)),
        Some(party) => {
            let agents = Agents::start(&plan, party, origin, &recorder.sender());
            Hands::Agents(Box::new(agents))
        }
    };
    recorder.begin(hands.usage());
    let mut coordinator = Coordinator {
        report: Report {
            scenario: plan.name.clone(),
            url: plan.used_url(),
            transport: plan.populations[0].transport.name(),
            compression: plan.populations[0].compression,
            populations: plan.populations.iter().map(PopulationReport::of).collect(),
            rate: report::Rate { asked: plan.rate, ..report::Rate::default() },
            connections: report::Connections {
                asked: plan.connections,
                ..report::Connections::default()
            },
            started: humantime::format_rfc3339_seconds(now).to_string(),
            machine: Machine::this(),
            ..Report::default()
        },
        recorder,
        title: format!("{} {}", plan.name, plan.used_url()),
        plan,
        origin,
        hands,
        has_publishers: false,
        sending: None,
        ordered: 0,
        stop,
        progress: Progress::new(plan_is_quiet),
        baseline: Baseline::default(),
        held: (Duration::ZERO, 0.0),
        opened_to: 0,
        open_s: 0.0,
        slope_from: None,
        fallen: None,
    };
    let led = coordinator.lead();
    coordinator.progress.finish();
    led?;
    coordinator.report.interrupted = coordinator.stop.load(Relaxed);
    coordinator.finish()
}

impl Coordinator {
    fn lead(&mut self) -> Result<(), String> {
        // Once this is carried out every thread has its own table, and the publisher's socket will
        // be in none of them.
        self.order(|_| Order::OpenTo { target: 0, over: Duration::ZERO })?;
        self.settle()?;
        self.baseline =
            Baseline { server: self.plan.pid.and_then(Usage::of), slab_bytes: host::slab_bytes() };
        if let (Some(pid), None) = (self.plan.pid, self.baseline.server) {
            return Err(format!("--pid {pid}: no such process"));
        }
        let address = self.plan.target.address.ip();
        if let Some(pid) = self.plan.pid.filter(|_| !host::is_local(address)) {
            return Err(format!(
                "--pid {pid}: the server at {address} is no process of this machine"
            ));
        }
        let plan = Arc::clone(&self.plan);
        let last = plan.phases.iter().rposition(Phase::sends);
        for (index, phase) in plan.phases.iter().enumerate() {
            if self.is_interrupted() {
                break;
            }
            self.phase(phase, last.is_some_and(|last| index < last))?;
            if self.sum().open == 0 && phase.open.is_some_and(|count| count > 0) {
                if !self.is_interrupted() {
                    self.trouble("no connection was opened");
                }
                break;
            }
            if Some(index) == last {
                self.end_messages()?;
            }
        }
        // The phases were interrupted.
        self.end_messages()
    }

    /// Ends all threads and sums up.
    fn finish(mut self) -> Result<Run, String> {
        let usage = self.usage();
        let own = self.hands.usage();
        let Finished { tally, bottleneck, agents, troubles } =
            self.hands.finish(self.report.duration_s)?;
        if tally.publish_faults > 0 {
            let faults = tally.publish_faults;
            self.report.troubles.push(format!("publishing went wrong ({faults} times)"));
        }
        self.report.troubles.extend(troubles);
        let sum = self.hands.sum();
        let agent_seconds = self.hands.seconds();
        let now = Moment { sum, server: usage, client: own, agents: agent_seconds };
        self.recorder.finish(self.origin.elapsed(), &now);
        self.report.troubles.extend(self.recorder.fault.take());
        let latency = std::mem::replace(&mut self.recorder.total, figures::latency());
        self.note_counts(&sum);
        self.note_usage(own, usage);
        let report = &mut self.report;
        report.messages.lost = tally.lost;
        report.messages.out_of_order = tally.out_of_order;
        let Tally { left, absent, refreshed, .. } = tally;
        report.churn = report::Churn { left, absent, refreshed };
        if self.plan.populations.iter().any(|of| of.recovers) {
            report.returns = Some(tally.returns);
        }
        note_split(&tally, &self.plan, report);
        report.explain(&tally.reasons);
        report.latency_us = Summary::of(&latency);
        if let [only] = &mut report.populations[..] {
            only.latency_us = Summary::of(&latency);
            report.transports = [(only.transport, Summary::of(&latency))].into();
        }
        report.latency_raw_us = Summary::of(&tally.latency_raw);
        if let Some(upgrade) = &mut report.upgrade {
            upgrade.pause_us = Summary::of(&tally.pauses);
        }
        report.bottleneck = bottleneck;
        report.latency_uncertainty_us = super::agents::uncertainty_us(&agents);
        report.agents = agents;
        let judged = self.plan.thresholds.iter().map(|of| of.judge(&self.report)).collect();
        self.report.thresholds = judged;
        let seconds = std::mem::take(&mut self.recorder.seconds);
        Ok(Run { report: self.report, seconds, latency })
    }

    fn note_counts(&mut self, sum: &Sum) {
        let report = &mut self.report;
        if self.open_s > 0.0 {
            report.connect_rate = round(sum.opened as f64 / self.open_s);
        }
        report.connections.opened = sum.opened;
        report.connections.failed = sum.failed;
        report.connections.dropped = sum.dropped;
        report.messages.received = sum.received;
        report.messages.duplicated = sum.duplicated;
        if report.messages.sent > 0 {
            report.payload_bytes = Some(self.plan.written_bytes(report.messages.sent));
        }
        report.bytes.sent = sum.bytes_sent;
        report.bytes.received = sum.bytes_received;
        let each = sum.bytes_received as f64 / sum.received as f64;
        report.bytes.per_message = (sum.received > 0).then(|| round(each));
    }

    /// Memory and processor time of this client and of the server.
    fn note_usage(&mut self, own: Usage, usage: Option<Usage>) {
        let report = &mut self.report;
        report.client = report::Client { rss_bytes: own.rss_bytes, cpu_s: round(own.cpu_s) };
        if let (Some(server), Some(usage)) = (&mut report.server, usage) {
            server.rss_bytes = Some(usage.rss_bytes);
            let before = self.baseline.server.unwrap_or_default().cpu_s;
            server.cpu_s = Some(round(usage.cpu_s - before));
        }
    }

    /// The user wants it to end, or nobody is left to go on.
    pub(super) fn is_interrupted(&self) -> bool {
        self.stop.load(Relaxed) || self.hands.is_gone()
    }

    pub(super) fn trouble(&mut self, text: &str) {
        self.report.troubles.push(text.to_owned());
    }

    pub(super) fn usage(&self) -> Option<Usage> {
        self.plan.pid.and_then(Usage::of)
    }

    pub(super) fn sum(&self) -> Sum {
        self.hands.sum()
    }

    /// Gives each worker an order, and waits until all have carried it out.
    pub(super) fn order(&mut self, order: impl Fn(usize) -> Order) -> Result<(), String> {
        self.order_at(Duration::ZERO, order)
    }

    /// The same, where the order is to be carried out by agents at a moment.
    pub(super) fn order_at(
        &mut self,
        at: Duration,
        order: impl Fn(usize) -> Order,
    ) -> Result<(), String> {
        self.hands.order(at, order);
        self.ordered += 1;
        let mut ends_since = None;
        loop {
            let sum = self.sum();
            if sum.order >= self.ordered {
                return Ok(());
            }
            self.hands.check()?;
            let is_ending = self.stop.load(Relaxed);
            if is_ending && ends_since.get_or_insert_with(Instant::now).elapsed() > ORDER_PATIENCE {
                return Err("a signal came, and a thread of this client does not react".to_owned());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    pub(super) fn wait_until(&mut self, phase: &str, until: Duration) -> Result<(), String> {
        self.wait(phase, Some(until), |_| false).map(|_| ())
    }

    /// Waits until `done` says so (true), or until that time since the origin, or until the user
    /// wants to stop (false).
    pub(super) fn wait(
        &mut self,
        phase: &str,
        until: Option<Duration>,
        mut done: impl FnMut(&Sum) -> bool,
    ) -> Result<bool, String> {
        loop {
            let sum = self.sum();
            if self.recorder.is_due(self.origin.elapsed()) {
                let (server, client) = (self.usage(), self.hands.usage());
                let now = Moment { sum, server, client, agents: self.hands.seconds() };
                self.recorder.note(self.origin.elapsed(), &now);
            }
            if sum.pending == 0 {
                self.note_back();
            }
            if done(&sum) {
                return Ok(true);
            }
            let left = until.map(|until| until.saturating_sub(self.origin.elapsed()));
            let asked = self.plan.connections;
            let arrived = sum.received.saturating_sub(sum.duplicated) + sum.absent;
            self.progress.show(Standing {
                title: &self.title,
                phase,
                left,
                elapsed: self.origin.elapsed(),
                asked,
                sum: &sum,
                published: sum.published,
                missing: (sum.expected + sum.sent).saturating_sub(arrived),
                seconds: &self.recorder.seconds,
                latency: self.recorder.summary.clone(),
            });
            if left.is_some_and(|left| left.is_zero()) || self.is_interrupted() {
                return Ok(false);
            }
            self.hands.check()?;
            std::thread::sleep(left.unwrap_or(LOOK_EVERY).min(LOOK_EVERY));
        }
    }
}

/// Connections, populations and channels into the report; the only population has all latencies.
fn note_split(tally: &Tally, plan: &Plan, report: &mut Report) {
    report.connect_us = ConnectReport::of(&tally.steps);
    report.ping_us = Summary::of(&tally.steps.ping);
    let mut by_transport: BTreeMap<&str, Latency> = BTreeMap::new();
    for (of, latency) in report.populations.iter_mut().zip(&tally.by_population) {
        of.latency_us = Summary::of(latency);
        merge(by_transport.entry(of.transport).or_insert_with(figures::latency), latency);
    }
    report.transports = by_transport.iter().map(|(name, of)| (*name, Summary::of(of))).collect();
    let channels = plan.channels.iter().zip(&tally.by_channel);
    report.channels = channels
        .map(|(name, of)| ChannelReport {
            name: name.clone(),
            received: of.len(),
            latency_us: Summary::of(of),
        })
        .collect();
}

/// Whether a client limited what was measured, over `span_s` seconds.
pub(super) fn bottleneck(tally: &Tally, span_s: f64, processors: usize) -> Option<&'static str> {
    let Tally { busy, lag, .. } = tally;
    let span_ns = span_s * 1e9;
    if span_ns > 0.0 {
        let total: f64 = busy.iter().map(|busy| busy.run_ns as f64).sum();
        let ran = |busy: &Busy| busy.run_ns as f64 / span_ns;
        let wanted = |busy: &Busy| (busy.run_ns + busy.wait_ns) as f64 / span_ns;
        if busy.iter().any(|busy| ran(busy) > BUSY_MAX)
            || total / processors as f64 / span_ns > BUSY_MAX
        {
            return Some(report::CLIENT_CPU);
        }
        if busy.iter().any(|busy| wanted(busy) > BUSY_MAX) {
            return Some(report::SHARED_CPU);
        }
    }
    let lag_us = lag.value_at_quantile(0.99);
    (!lag.is_empty() && lag_us > LAG_US_MAX).then_some(report::SCHEDULE_LAG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_says_when_it_was_the_limit() {
        let (calm, mut late) = (figures::latency(), figures::latency());
        late.saturating_record(LAG_US_MAX * 2);
        let half = Busy { run_ns: 500_000_000, wait_ns: 0 };
        let full = Busy { run_ns: 950_000_000, wait_ns: 0 };
        let waits = Busy { run_ns: 500_000_000, wait_ns: 450_000_000 };
        let bottleneck = |busy: &[Busy], lag: &Latency, span_s| {
            let tally = Tally { busy: busy.to_vec(), lag: lag.clone(), ..Tally::default() };
            bottleneck(&tally, span_s, 2)
        };
        assert_eq!(bottleneck(&[half], &calm, 1.0), None);
        assert_eq!(bottleneck(&[half, full], &calm, 1.0), Some("client_cpu"));
        assert_eq!(bottleneck(&[half, waits], &calm, 1.0), Some("shared_cpu"));
        assert_eq!(bottleneck(&[half], &late, 1.0), Some("schedule_lag"));
        assert_eq!(bottleneck(&[], &calm, 0.0), None);
    }
}
