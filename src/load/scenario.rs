//! The steps of the coordinator in each scenario.

use super::api;
use super::figures::Sum;
use super::flags::Scenario;
use super::host;
use super::publisher::{self, Publisher};
use super::report::{self, Slope, Storm, Upgrade, round};
use super::run::{Coordinator, PublisherHandle};
use super::upgrade::Replacement;
use super::worker::Order;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// How long memory is given to settle before it is measured.
const SETTLE: Duration = Duration::from_secs(1);

/// From the order to publish to the first message.
const LEAD: Duration = Duration::from_millis(50);

/// How long each round of pings may take.
const PING_ROUND_MAX: Duration = Duration::from_secs(60);

/// How long arrivals may pause at the end of a run that was interrupted.
const DRAIN_INTERRUPTED: Duration = Duration::from_secs(1);

impl Coordinator {
    /// Opens and closes connections that nobody counts.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        if self.plan.settle == 0 {
            return Ok(());
        }
        let plan = Arc::clone(&self.plan);
        self.order(|index| Order::OpenTo(plan.part_of(plan.settle, index)))?;
        self.wait("settling", None, |sum| sum.pending == 0)?;
        self.order(|_| Order::CloseAll)?;
        self.wait_until("settling", self.origin.elapsed() + SETTLE)
    }

    pub(super) fn open(&mut self) -> Result<(), String> {
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
    pub(super) fn hold_open(&mut self) -> Result<(), String> {
        let plan = Arc::clone(&self.plan);
        let began = self.origin.elapsed();
        let cpu_s = self.usage().map(|usage| usage.cpu_s);
        if plan.pings > 0 {
            let until = began + PING_ROUND_MAX * u32::from(plan.pings);
            let all = |sum: &Sum| sum.pinged >= sum.open;
            if !self.wait("waiting for pings", Some(until), all)? && !self.is_interrupted() {
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
    pub(super) fn measure_memory(&mut self) {
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

    pub(super) fn echo(&mut self) -> Result<(), String> {
        let plan = Arc::clone(&self.plan);
        self.order(|_| Order::Measure)?;
        let cpu_s = self.usage().map(|usage| usage.cpu_s);
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
        self.note_server_cpu(cpu_s);
        let sum = self.sum();
        self.note_rates(began, sending, sum.sent, sum.last_ns);
        Ok(())
    }

    pub(super) fn storm(&mut self) -> Result<(), String> {
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

    pub(super) fn publish(&mut self) -> Result<(), String> {
        self.open_publisher()?;
        let plan = Arc::clone(&self.plan);
        let Some(publisher) = &self.publisher else { return Ok(()) };
        let (orders, live) = (publisher.orders.clone(), Arc::clone(&publisher.live));
        if let Some(window) = &plan.closed_loop {
            let missing = u64::from(plan.connections) - self.sum().open;
            window.set_receivers(self.deliveries(1).saturating_sub(missing) as u32);
        }
        self.order(|_| Order::Measure)?;
        let cpu_s = self.usage().map(|usage| usage.cpu_s);
        let began = self.origin.elapsed() + LEAD;
        // The publisher lives until it gets the order to finish, so the orders arrive.
        let _ = orders.send(publisher::Order::Start(began.as_nanos() as u64));
        let replacement = self.replace_server(&live)?;
        if !self.wait("publishing", None, |_| live.done.load(Relaxed))? {
            let _ = orders.send(publisher::Order::Stop);
        }
        let sent = live.sent.load(Relaxed);
        let expected = self.deliveries(sent);
        self.drain(|sum| sum.received.saturating_sub(sum.duplicated) >= expected)?;
        self.end_replacement(replacement)?;
        self.order(|_| Order::Quiet)?;
        let sending = Duration::from_nanos(live.last_ns.load(Relaxed)).saturating_sub(began);
        let interval = Duration::from_secs_f64(1.0 / plan.rate.unwrap_or(1.0));
        let interval = if plan.closed_loop.is_some() { Duration::ZERO } else { interval };
        self.note_server_cpu(cpu_s);
        let sum = self.sum();
        self.note_rates(began, sending + interval, sent, sum.last_ns);
        Ok(())
    }

    /// Begins to replace the server once half of the messages are published.
    fn replace_server(&mut self, live: &publisher::Live) -> Result<Option<Replacement>, String> {
        let plan = Arc::clone(&self.plan);
        let Some(command) = &plan.replace else { return Ok(None) };
        let half = u64::from(plan.publish / 2);
        self.wait("publishing", None, |_| {
            live.sent.load(Relaxed) >= half || live.done.load(Relaxed)
        })?;
        if self.is_interrupted() {
            return Ok(None);
        }
        self.order(|_| Order::WatchPauses)?;
        Replacement::begin(command).map(Some)
    }

    /// Notes how the command ended. It has as long as the last messages have.
    fn end_replacement(&mut self, replacement: Option<Replacement>) -> Result<(), String> {
        let Some(replacement) = replacement else { return Ok(()) };
        let mut ended = None;
        let until = self.origin.elapsed() + self.plan.drain;
        self.wait("waiting for the command", Some(until), |_| {
            ended = replacement.ended();
            ended.is_some()
        })?;
        if let Some(code) = ended.map(|ended| ended.code).filter(|code| *code != Some(0)) {
            let how = code.map_or_else(
                || "was ended by a signal".to_owned(),
                |code| format!("ended with exit code {code}"),
            );
            self.trouble(&format!("the command of --run {how}"));
        }
        self.report.upgrade = Some(Upgrade {
            exit_code: ended.and_then(|ended| ended.code),
            command_s: ended.map(|ended| round(ended.after.as_secs_f64())),
            ..Upgrade::default()
        });
        Ok(())
    }

    /// Processor time of the server since it was `before`, which is that of the messages.
    fn note_server_cpu(&mut self, before: Option<f64>) {
        let usage = self.usage();
        if let (Some(server), Some(before), Some(usage)) = (&mut self.report.server, before, usage)
        {
            server.messages_cpu_s = Some(round(usage.cpu_s - before));
        }
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
        let (plan, origin, shown) = (Arc::clone(&self.plan), self.origin, Arc::clone(&live));
        let (orders, receiver) = crossbeam_channel::bounded(4);
        let thread = std::thread::Builder::new().name("load-publisher".to_owned());
        let thread = if let Some(api) = plan.api.clone() {
            thread.spawn(move || api::run(plan, api, origin, shown, &receiver))
        } else {
            match Publisher::open(plan, origin, shown) {
                Ok(publisher) => thread.spawn(move || publisher.run(&receiver)),
                Err(error) => {
                    self.trouble(&format!("the publisher could not connect: {error}"));
                    return Ok(());
                }
            }
        };
        let thread = thread.map_err(|error| format!("starting threads: {error}"))?;
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
}
