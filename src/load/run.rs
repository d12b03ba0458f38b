//! The coordinator: starts the threads, leads them through a scenario, and sums up.
//!
//! ```text
//!  settle -> baseline -> open -> pings, hold -> measure memory -> messages | storm -> hold -> judge
//! ```

use super::figures::{self, Busy, Latency, Live, Reasons, Sum};
use super::flags::Scenario;
use super::host::{self, Usage};
use super::plan::Plan;
use super::progress::Progress;
use super::publisher::{self, Publisher};
use super::report::{self, Report, Slope, Storm, Summary, round};
use super::worker::{Order, WAKER, Worker};
use crossbeam_channel::Sender;
use mio::{Poll, Waker};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often figures are looked at. Nothing that is measured depends on it.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How long memory is given to settle before it is measured.
const SETTLE: Duration = Duration::from_secs(1);

/// From the order to publish to the first message.
const LEAD: Duration = Duration::from_millis(50);

/// How long each round of pings may take.
const PING_ROUND_MAX: Duration = Duration::from_secs(60);

/// How long arrivals may pause at the end of a run that was interrupted.
const DRAIN_INTERRUPTED: Duration = Duration::from_secs(1);

/// Sent later than this at the 99th percentile, the schedule was not kept.
const LAG_US_MAX: u64 = 5_000;

/// A thread that ran for this part of the time had no time left.
const BUSY_MAX: f64 = 0.9;

/// One worker, seen from outside.
struct Handle {
    orders: Sender<Order>,
    waker: Waker,
    live: Arc<Live>,
    thread: JoinHandle<Result<figures::Outcome, String>>,
}

/// The publisher, seen from outside.
struct PublisherHandle {
    orders: Sender<publisher::Order>,
    live: Arc<publisher::Live>,
    thread: JoinHandle<publisher::Outcome>,
}

struct Coordinator {
    plan: Arc<Plan>,
    origin: Instant,
    workers: Vec<Handle>,
    publisher: Option<PublisherHandle>,
    /// Orders given so far.
    ordered: u64,
    stop: Arc<AtomicBool>,
    progress: Progress,
    /// What the server's host looked like before the first connection.
    baseline: Baseline,
    report: Report,
    /// When and with how much processor time of the server holding began.
    held: (Duration, f64),
}

#[derive(Clone, Copy, Debug, Default)]
struct Baseline {
    server: Option<Usage>,
    slab_bytes: Option<u64>,
}

/// Runs a scenario. `stop` ends it early with what there is.
///
/// # Errors
/// When it can't even begin, or a thread fails: text for the user. A server that can't be reached
/// is not an error but a report with failed connections.
pub(crate) fn run(plan: Plan, stop: Arc<AtomicBool>) -> Result<Report, String> {
    let plan = Arc::new(plan);
    let origin = Instant::now();
    let workers = start_workers(&plan, origin)?;
    let mut coordinator = Coordinator {
        report: Report {
            scenario: plan.scenario.name(),
            url: plan.url.clone(),
            ..Report::default()
        },
        plan,
        origin,
        workers,
        publisher: None,
        ordered: 0,
        stop,
        progress: Progress::new(),
        baseline: Baseline::default(),
        held: (Duration::ZERO, 0.0),
    };
    let led = coordinator.lead();
    coordinator.progress.finish();
    led?;
    coordinator.finish()
}

/// Makes every epoll descriptor and waker, and then the threads: a descriptor made after tables
/// part is none in the other tables.
fn start_workers(plan: &Arc<Plan>, origin: Instant) -> Result<Vec<Handle>, String> {
    let failed = |error: std::io::Error| format!("starting threads: {error}");
    let mut polls = Vec::with_capacity(plan.threads);
    for _ in 0..plan.threads {
        let poll = Poll::new().map_err(failed)?;
        let waker = Waker::new(poll.registry(), WAKER).map_err(failed)?;
        polls.push((poll, waker));
    }
    let mut handles = Vec::with_capacity(plan.threads);
    for (index, (poll, waker)) in polls.into_iter().enumerate() {
        let (sender, orders) = crossbeam_channel::bounded(16);
        let live = Arc::new(Live::default());
        let worker = Worker {
            plan: Arc::clone(plan),
            share: plan.share(index),
            origin,
            poll,
            orders,
            live: Arc::clone(&live),
        };
        let thread = std::thread::Builder::new()
            .name(format!("load-{index}"))
            .stack_size(256 * 1024)
            .spawn(move || worker.run())
            .map_err(failed)?;
        handles.push(Handle { orders: sender, waker, live, thread });
    }
    Ok(handles)
}

impl Coordinator {
    fn lead(&mut self) -> Result<(), String> {
        // Once this is carried out every thread has its own table, and the publisher's socket will
        // be in none of them.
        self.order(|_| Order::OpenTo(0))?;
        self.settle()?;
        self.baseline =
            Baseline { server: self.plan.pid.and_then(Usage::of), slab_bytes: host::slab_bytes() };
        if let (Some(pid), None) = (self.plan.pid, self.baseline.server) {
            return Err(format!("--pid {pid}: no such process"));
        }
        self.open()?;
        if self.sum().open == 0 {
            self.trouble("no connection was opened");
            return Ok(());
        }
        self.hold_open()?;
        self.measure_memory();
        let plan = Arc::clone(&self.plan);
        match plan.scenario {
            Scenario::Echo => self.echo()?,
            Scenario::Storm => self.storm()?,
            Scenario::Idle | Scenario::Broadcast | Scenario::Channels => {}
        }
        if plan.publish > 0 {
            self.publish()?;
            let until = self.origin.elapsed() + plan.hold;
            self.wait_until("holding", until)?;
        }
        Ok(())
    }

    /// Opens and closes connections that nobody counts.
    fn settle(&mut self) -> Result<(), String> {
        if self.plan.settle == 0 {
            return Ok(());
        }
        let plan = Arc::clone(&self.plan);
        self.order(|index| Order::OpenTo(plan.part_of(plan.settle, index)))?;
        self.wait("settling", None, |sum| sum.pending == 0)?;
        self.order(|_| Order::CloseAll)?;
        self.wait_until("settling", self.origin.elapsed() + SETTLE)
    }

    fn open(&mut self) -> Result<(), String> {
        let plan = Arc::clone(&self.plan);
        let mut open_s = 0.0;
        let mut from = None;
        let first = plan.rss_from.filter(|&count| count < plan.connections);
        for total in first.into_iter().chain([plan.connections]) {
            let began = self.origin.elapsed();
            self.order(|index| Order::OpenTo(plan.part_of(total, index)))?;
            self.wait("opening", None, |sum| sum.pending == 0)?;
            let sum = self.sum();
            let ready = Duration::from_nanos(sum.ready_ns).max(began);
            open_s += (ready - began).as_secs_f64();
            if total < plan.connections {
                self.wait_until("settling", self.origin.elapsed() + SETTLE)?;
                from = self.usage().map(|usage| (sum.open, usage.rss_bytes));
            }
        }
        let sum = self.sum();
        self.report.connect_rate = round(sum.opened as f64 / open_s.max(1e-9));
        self.report.connections.asked = plan.connections;
        if self.usage().is_some() {
            let slope = from.map(|(from, rss_bytes)| Slope {
                from,
                to: sum.open,
                // Until the second measurement, what the first was.
                bytes_per_connection: rss_bytes as f64,
            });
            self.report.server = Some(report::Server { slope, ..report::Server::default() });
        }
        Ok(())
    }

    /// Holds what is open: for the pings, for --hold, and for the whole duration of `idle`.
    fn hold_open(&mut self) -> Result<(), String> {
        let plan = Arc::clone(&self.plan);
        let began = self.origin.elapsed();
        let cpu_s = self.usage().map(|usage| usage.cpu_s);
        if plan.pings > 0 {
            let until = began + PING_ROUND_MAX * u32::from(plan.pings);
            let all = |sum: &Sum| sum.pinged >= sum.open;
            if !self.wait("waiting for pings", Some(until), all)? {
                let sum = self.sum();
                let missing = sum.open.saturating_sub(sum.pinged);
                self.trouble(&format!(
                    "{missing} connections were not pinged {} times",
                    plan.pings
                ));
            }
        }
        let mut hold = plan.hold;
        if plan.scenario == Scenario::Idle {
            hold = hold.max(plan.duration);
        } else if self.report.server.is_some() {
            hold = hold.max(SETTLE);
        }
        self.wait_until("holding", self.origin.elapsed() + hold)?;
        let held = self.origin.elapsed() - began;
        self.held = (held, 0.0);
        if let (Some(before), Some(after)) = (cpu_s, self.usage()) {
            self.held.1 = after.cpu_s - before;
        }
        self.report.duration_s = round(held.as_secs_f64());
        Ok(())
    }

    /// Memory of the server while all connections are open and idle, against the baseline.
    fn measure_memory(&mut self) {
        let (open, usage) = (self.sum().open, self.usage());
        let (Some(server), Some(usage)) = (&mut self.report.server, usage) else { return };
        let grown = |now: u64, then: u64| now as f64 - then as f64;
        let baseline = self.baseline.server.unwrap_or_default();
        let growth = grown(usage.rss_bytes, baseline.rss_bytes);
        server.rss_bytes_per_connection = Some(round(growth / open as f64));
        if let (Some(before), Some(now)) = (self.baseline.slab_bytes, host::slab_bytes())
            && host::is_local(self.plan.target.address.ip())
        {
            // Both ends of each connection are in this kernel.
            let bytes = grown(now, before) / (2 * open) as f64;
            server.kernel_bytes_per_connection = Some(round(bytes));
        }
        if let Some(slope) = &mut server.slope {
            slope.to = open;
            let growth = usage.rss_bytes as f64 - slope.bytes_per_connection;
            let more = open.saturating_sub(slope.from).max(1);
            slope.bytes_per_connection = round(growth / more as f64);
        }
        if self.held.0 >= SETTLE {
            let minutes = self.held.0.as_secs_f64() / 60.0;
            server.idle_cpu_s_per_min = Some(round(self.held.1 / minutes));
        }
    }

    fn echo(&mut self) -> Result<(), String> {
        let plan = Arc::clone(&self.plan);
        self.order(|_| Order::Measure)?;
        let began = self.origin.elapsed();
        let until = began + plan.duration;
        self.order(|_| Order::Echo(until.as_nanos() as u64))?;
        self.wait_until("echo", until)?;
        let sending = self.origin.elapsed() - began;
        if self.stop.load(Relaxed) {
            // Quiet also stops the clock of processor time; here that is no matter.
            self.order(|_| Order::Quiet)?;
        }
        self.drain(|sum| sum.received.saturating_sub(sum.duplicated) >= sum.sent)?;
        if !self.stop.load(Relaxed) {
            self.order(|_| Order::Quiet)?;
        }
        let sum = self.sum();
        self.note_rates(began, sending, sum.sent, sum.last_ns);
        Ok(())
    }

    fn storm(&mut self) -> Result<(), String> {
        let before = self.sum();
        let began = self.origin.elapsed();
        self.order(|_| Order::DropShare)?;
        // Some may be back already: counted from what is to be open.
        let plan = Arc::clone(&self.plan);
        let dropped = (0..plan.connections).filter(|&global| plan.is_dropped(global)).count();
        self.wait("storm", None, |sum| sum.pending == 0)?;
        let after = self.sum();
        let ready = Duration::from_nanos(after.ready_ns).max(began);
        let back_s = (ready - began).as_secs_f64();
        let lost = before.open.saturating_sub(after.open);
        let dropped = (dropped as u64).min(before.open);
        let back = dropped.saturating_sub(lost);
        self.report.storm = Some(Storm { dropped, back, back_s: round(back_s) });
        self.report.duration_s = round(back_s);
        Ok(())
    }

    fn publish(&mut self) -> Result<(), String> {
        self.open_publisher()?;
        let plan = Arc::clone(&self.plan);
        let Some(publisher) = &self.publisher else { return Ok(()) };
        let (orders, live) = (publisher.orders.clone(), Arc::clone(&publisher.live));
        self.order(|_| Order::Measure)?;
        let began = self.origin.elapsed() + LEAD;
        // The publisher lives until it is told to finish, so the orders arrive.
        let _ = orders.send(publisher::Order::Start(began.as_nanos() as u64));
        if !self.wait("publishing", None, |_| live.done.load(Relaxed))? {
            let _ = orders.send(publisher::Order::Stop);
        }
        let sent = live.sent.load(Relaxed);
        let expected = self.deliveries(sent);
        self.drain(|sum| sum.received.saturating_sub(sum.duplicated) >= expected)?;
        self.order(|_| Order::Quiet)?;
        let sending = Duration::from_nanos(live.last_ns.load(Relaxed)).saturating_sub(began);
        let interval = Duration::from_secs_f64(1.0 / plan.rate.unwrap_or(1.0));
        let sum = self.sum();
        self.note_rates(began, sending + interval, sent, sum.last_ns);
        Ok(())
    }

    /// How often `sent` messages, in turn to each channel, should arrive if nobody drops.
    fn deliveries(&self, sent: u64) -> u64 {
        let plan = &self.plan;
        let channels = plan.channels.len().max(1) as u64;
        let subscribers = (0..plan.connections).filter(|&global| !plan.is_slow(global));
        subscribers
            .map(|global| {
                let channel = u64::from(plan.channel_of(global));
                sent / channels + u64::from(channel < sent % channels)
            })
            .sum()
    }

    fn open_publisher(&mut self) -> Result<(), String> {
        let live = Arc::new(publisher::Live::default());
        let opened = Publisher::open(Arc::clone(&self.plan), self.origin, Arc::clone(&live));
        let publisher = match opened {
            Ok(publisher) => publisher,
            Err(error) => {
                self.trouble(&format!("the publisher could not connect: {error}"));
                return Ok(());
            }
        };
        let (orders, receiver) = crossbeam_channel::bounded(4);
        let thread = std::thread::Builder::new()
            .name("load-publisher".to_owned())
            .spawn(move || publisher.run(&receiver))
            .map_err(|error| format!("starting threads: {error}"))?;
        self.publisher = Some(PublisherHandle { orders, live, thread });
        Ok(())
    }

    /// Waits until what was sent has arrived, or nothing has for the time of --drain.
    fn drain(&mut self, arrived: impl Fn(&Sum) -> bool) -> Result<(), String> {
        let stopped = self.stop.swap(false, Relaxed);
        let patience =
            if stopped { DRAIN_INTERRUPTED.min(self.plan.drain) } else { self.plan.drain };
        let mut last = (self.sum().received, Instant::now());
        self.wait("waiting for the last messages", None, |sum| {
            if sum.received != last.0 {
                last = (sum.received, Instant::now());
            }
            arrived(sum) || last.1.elapsed() >= patience
        })?;
        if stopped {
            self.stop.store(true, Relaxed);
        }
        Ok(())
    }

    fn note_rates(&mut self, began: Duration, sending: Duration, sent: u64, last_ns: u64) {
        let span = Duration::from_nanos(last_ns).saturating_sub(began).max(sending);
        let received = self.sum().received;
        let per_s = |count: u64, span: Duration| round(count as f64 / span.as_secs_f64().max(1e-9));
        self.report.messages.sent = sent;
        self.report.rate.sent = per_s(sent, sending);
        self.report.rate.received = per_s(received, span);
        self.report.duration_s = round(span.as_secs_f64());
    }

    /// Ends all threads and sums up.
    fn finish(mut self) -> Result<Report, String> {
        let sum = self.sum();
        let usage = self.usage();
        let own = Usage::own();
        let mut reasons = Reasons::default();
        let mut lag = figures::latency();
        let mut busy = Vec::new();
        let mut sent = vec![0; self.plan.channels.len().max(1)];
        if let Some(publisher) = self.publisher.take() {
            let _ = publisher.orders.send(publisher::Order::Finish);
            let outcome =
                publisher.thread.join().map_err(|_| "the publisher panicked".to_owned())?;
            sent = outcome.sent;
            merge(&mut lag, &outcome.lag);
            for (reason, count) in outcome.reasons.iter() {
                self.report.troubles.push(format!("{reason} ({count} times)"));
            }
            busy.push(outcome.busy);
        }
        let sent: Arc<[u32]> = sent.into();
        for worker in &self.workers {
            let _ = worker.orders.send(Order::Finish(Arc::clone(&sent)));
            let _ = worker.waker.wake();
        }
        let (mut latency, mut latency_raw) = (figures::latency(), figures::latency());
        for worker in self.workers.drain(..) {
            let outcome = worker.thread.join().map_err(|_| "a thread panicked".to_owned())??;
            merge(&mut latency, &outcome.latency);
            merge(&mut latency_raw, &outcome.latency_raw);
            merge(&mut lag, &outcome.lag);
            reasons.merge(&outcome.reasons);
            busy.push(outcome.busy);
            self.report.messages.lost += outcome.lost;
            self.report.messages.out_of_order += outcome.out_of_order;
        }
        let report = &mut self.report;
        report.explain(&reasons);
        report.connections.opened = sum.opened;
        report.connections.failed = sum.failed;
        report.connections.dropped = sum.dropped;
        report.messages.received = sum.received;
        report.messages.duplicated = sum.duplicated;
        report.latency_us = Summary::of(&latency);
        report.latency_raw_us = Summary::of(&latency_raw);
        report.bottleneck = bottleneck(&busy, &lag, report.duration_s);
        report.client = report::Client { rss_bytes: own.rss_bytes, cpu_s: round(own.cpu_s) };
        if let (Some(server), Some(usage)) = (&mut report.server, usage) {
            server.rss_bytes = usage.rss_bytes;
            server.cpu_s = round(usage.cpu_s - self.baseline.server.unwrap_or_default().cpu_s);
        }
        if sum.opened + sum.failed < u64::from(self.plan.connections) && sum.opened > 0 {
            report.troubles.push("interrupted before all connections were open".to_owned());
        }
        Ok(self.report)
    }

    fn trouble(&mut self, text: &str) {
        self.report.troubles.push(text.to_owned());
    }

    fn usage(&self) -> Option<Usage> {
        self.plan.pid.and_then(Usage::of)
    }

    fn sum(&self) -> Sum {
        Sum::of(self.workers.iter().map(|worker| &*worker.live))
    }

    /// Gives each worker an order, and waits until all have carried it out.
    fn order(&mut self, order: impl Fn(usize) -> Order) -> Result<(), String> {
        for (index, worker) in self.workers.iter().enumerate() {
            // A worker that is gone is noticed below.
            let _ = worker.orders.send(order(index));
            let _ = worker.waker.wake();
        }
        self.ordered += 1;
        loop {
            let sum = self.sum();
            if sum.order >= self.ordered {
                return Ok(());
            }
            self.check_workers()?;
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// A worker that ended before its time takes its reason along.
    fn check_workers(&mut self) -> Result<(), String> {
        let Some(index) = self.workers.iter().position(|worker| worker.thread.is_finished()) else {
            return Ok(());
        };
        match self.workers.swap_remove(index).thread.join() {
            Ok(Ok(_)) => Err("a thread ended early".to_owned()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err("a thread panicked".to_owned()),
        }
    }

    fn wait_until(&mut self, phase: &str, until: Duration) -> Result<(), String> {
        self.wait(phase, Some(until), |_| false).map(|_| ())
    }

    /// Waits until `done` says so (true), or until that time since the origin, or until the user
    /// wants to stop (false).
    fn wait(
        &mut self,
        phase: &str,
        until: Option<Duration>,
        mut done: impl FnMut(&Sum) -> bool,
    ) -> Result<bool, String> {
        loop {
            let sum = self.sum();
            let publisher = self.publisher.as_ref();
            let published = publisher.map_or(0, |publisher| publisher.live.sent.load(Relaxed));
            if done(&sum) {
                return Ok(true);
            }
            self.progress.show(phase, &sum, published);
            let left = until.map(|until| until.saturating_sub(self.origin.elapsed()));
            if left.is_some_and(|left| left.is_zero()) || self.stop.load(Relaxed) {
                return Ok(false);
            }
            self.check_workers()?;
            std::thread::sleep(left.unwrap_or(LOOK_EVERY).min(LOOK_EVERY));
        }
    }
}

fn merge(all: &mut Latency, one: &Latency) {
    // Histograms of equal bounds always fit into each other.
    let _ = all.add(one);
}

/// Whether the client itself limited what was measured, over `span_s` seconds.
fn bottleneck(busy: &[Busy], lag: &Latency, span_s: f64) -> Option<&'static str> {
    let span_ns = span_s * 1e9;
    if span_ns > 0.0 {
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
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
        assert_eq!(bottleneck(&[half], &calm, 1.0), None);
        assert_eq!(bottleneck(&[half, full], &calm, 1.0), Some("client_cpu"));
        assert_eq!(bottleneck(&[half, waits], &calm, 1.0), Some("shared_cpu"));
        assert_eq!(bottleneck(&[half], &late, 1.0), Some("schedule_lag"));
        assert_eq!(bottleneck(&[], &calm, 0.0), None);
    }
}
