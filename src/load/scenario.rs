//! The steps of the coordinator: what it does in each phase of a scenario.

use super::figures::Sum;
use super::host;
use super::pace::Segment;
use super::plan::{Phase, picked};
use super::report::{self, PhaseReport, Slope, Upgrade, round};
use super::run::{Coordinator, Fallen, Sending};
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

/// How long arrivals may pause at the end of a run whose connections leave: how many are to come is not known.
const DRAIN_RESTLESS: Duration = Duration::from_secs(2);

impl Coordinator {
    /// Opens and closes connections that nobody counts.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        if self.plan.settle == 0 {
            return Ok(());
        }
        let plan = Arc::clone(&self.plan);
        let over = Duration::ZERO;
        self.order(|index| Order::OpenTo { target: plan.part_of(plan.settle, index), over })?;
        self.wait("settling", None, |sum| sum.pending == 0)?;
        self.order(|_| Order::CloseAll)?;
        self.wait_until("settling", self.origin.elapsed() + SETTLE)
    }

    /// Runs a phase. `more`: messages follow in a later one.
    pub(super) fn phase(&mut self, phase: &Phase, more: bool) -> Result<(), String> {
        let began = self.origin.elapsed();
        let before = self.sum();
        if phase.only_holds() {
            self.hold_open(phase)?;
        }
        if let Some(share) = phase.drop.filter(|_| !phase.sends()) {
            self.storm(share)?;
        }
        if let Some(share) = phase.drop.filter(|_| phase.sends()) {
            self.drop_share(share)?;
        }
        if let Some(rate) = phase.churn {
            let plan = Arc::clone(&self.plan);
            let until = began + phase.duration.unwrap_or_default();
            let until_ns = until.as_nanos() as u64;
            self.order(|index| Order::Churn { rate: rate * plan.weight(index), until_ns })?;
        }
        if let Some(count) = phase.open {
            match phase.duration {
                None => self.open(count)?,
                Some(over) => self.ramp(count, over)?,
            }
        }
        if phase.sends() && !self.is_interrupted() {
            self.send(phase, more)?;
        } else if phase.churn.is_some() || (phase.open.is_some() && phase.duration.is_some()) {
            self.wait_until(&phase.name, began + phase.duration.unwrap_or_default())?;
        }
        if let Some(count) = phase.open.filter(|_| phase.duration.is_some() && !more) {
            self.wait_for_all(count)?;
        }
        // It may take longer than the messages.
        self.wait_for_fallen()?;
        let after = self.sum();
        self.report.phases.push(PhaseReport {
            name: phase.name.clone(),
            began_s: round(began.as_secs_f64()),
            duration_s: round((self.origin.elapsed() - began).as_secs_f64()),
            open: after.open,
            sent: (after.sent + after.published).saturating_sub(before.sent + before.published),
            received: after.received.saturating_sub(before.received),
            requested: phase.requested(),
        });
        Ok(())
    }

    /// Opens connections up to this number as soon as it goes, or closes those behind it.
    fn open(&mut self, count: u32) -> Result<(), String> {
        let plan = Arc::clone(&self.plan);
        if u64::from(count) < self.sum().open {
            return self.ramp(count, Duration::ZERO);
        }
        self.opened_to = count;
        let over = Duration::ZERO;
        let first = plan.rss_from.filter(|&first| first < count);
        for total in first.into_iter().chain([count]) {
            let began = self.origin.elapsed();
            self.order(|index| Order::OpenTo { target: plan.part_of(total, index), over })?;
            self.wait_for_all(total)?;
            let sum = self.sum();
            let ready = Duration::from_nanos(sum.ready_ns).max(began);
            self.open_s += (ready - began).as_secs_f64();
            if total < count {
                self.wait_until("settling", self.origin.elapsed() + SETTLE)?;
                self.slope_from = self.usage().map(|usage| (sum.open, usage.rss_bytes));
            }
        }
        self.note_opened();
        Ok(())
    }

    /// Waits until the first `count` connections are open, or have failed. Where connections come and go all the
    /// time, it is enough that each was open once.
    fn wait_for_all(&mut self, count: u32) -> Result<(), String> {
        let is_restless = self.plan.populations.iter().any(|of| of.stay.is_some());
        self.wait("opening", None, |sum| {
            sum.pending == 0 || is_restless && sum.opened + sum.failed >= u64::from(count)
        })?;
        Ok(())
    }

    /// Begins to open or to close connections, evenly over a time.
    fn ramp(&mut self, count: u32, over: Duration) -> Result<(), String> {
        let plan = Arc::clone(&self.plan);
        let before = std::mem::replace(&mut self.opened_to, count);
        let target = |index| plan.part_of(count, index);
        if u64::from(count) < self.sum().open {
            // Those that are under way would stay open.
            self.wait_for_all(before)?;
            return self.order(|index| Order::CloseTo { target: target(index), over });
        }
        self.order(|index| Order::OpenTo { target: target(index), over })?;
        self.open_s += over.as_secs_f64();
        self.note_opened();
        Ok(())
    }

    fn note_opened(&mut self) {
        let sum = self.sum();
        if self.usage().is_some() {
            let slope = self.slope_from.map(|(from, rss_bytes)| Slope {
                from,
                to: sum.open,
                // Until the second measurement, what the first was.
                bytes_per_connection: rss_bytes as f64,
            });
            self.report.server = Some(report::Server { slope, ..report::Server::default() });
        }
    }

    /// Holds what is open: for the pings, for --hold, and for the duration of the phase. The first time, the
    /// server's memory is measured at the end of it.
    fn hold_open(&mut self, phase: &Phase) -> Result<(), String> {
        let plan = Arc::clone(&self.plan);
        let began = self.origin.elapsed();
        let cpu_s = self.usage().map(|usage| usage.cpu_s);
        let is_first = self.held.0.is_zero();
        if plan.pings > 0 && is_first {
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
        let hold = match phase.duration {
            Some(duration) => plan.hold.max(duration),
            None if self.report.server.is_some() => plan.hold.max(SETTLE),
            None => plan.hold,
        };
        self.wait_until("holding", self.origin.elapsed() + hold)?;
        if !is_first {
            return Ok(());
        }
        let held = self.origin.elapsed() - began;
        self.held = (held, 0.0);
        if let (Some(before), Some(after)) = (cpu_s, self.usage()) {
            self.held.1 = after.cpu_s - before;
        }
        self.report.duration_s = round(held.as_secs_f64());
        if !self.is_interrupted() && self.sending.is_none() {
            self.measure_memory();
        }
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
            && self.hands.is_here()
            && host::is_local(self.plan.populations[0].target.address.ip())
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

    fn storm(&mut self, share: f64) -> Result<(), String> {
        self.drop_share(share)?;
        self.wait_for_fallen()?;
        self.report.duration_s = self.report.storm.map_or(0.0, |storm| storm.back_s);
        Ok(())
    }

    /// Has connections dropped, which are dialled again at once.
    fn drop_share(&mut self, share: f64) -> Result<(), String> {
        let (open, began) = (self.sum().open, self.origin.elapsed());
        self.order(|_| Order::DropShare(share))?;
        // Some may be back already: counted from what is to be open.
        let dropped = (0..self.plan.connections).filter(|&global| picked(global, share)).count();
        self.fallen = Some(Fallen { began, open, dropped: (dropped as u64).min(open) });
        Ok(())
    }

    /// Waits until those that were dropped are back, if any were, and notes it.
    fn wait_for_fallen(&mut self) -> Result<(), String> {
        let Some(fallen) = self.fallen else { return Ok(()) };
        let restless = self.plan.populations.iter().any(|of| of.stay.is_some());
        // Where connections come and go by themselves, some are always under way.
        let until = restless.then(|| fallen.began + self.plan.connect_timeout);
        self.wait("storm", until, |sum| sum.pending == 0)?;
        self.note_back();
        Ok(())
    }

    /// Notes that those that were dropped are back, or given up.
    pub(super) fn note_back(&mut self) {
        let Some(fallen) = self.fallen.take() else { return };
        let after = self.sum();
        let ready = Duration::from_nanos(after.ready_ns).max(fallen.began);
        let storm = self.report.storm.get_or_insert_default();
        storm.dropped += fallen.dropped;
        storm.back += fallen.dropped.saturating_sub(fallen.open.saturating_sub(after.open));
        storm.back_s = round(storm.back_s.max((ready - fallen.began).as_secs_f64()));
    }

    /// Sends the messages of a phase.
    fn send(&mut self, phase: &Phase, more: bool) -> Result<(), String> {
        let plan = Arc::clone(&self.plan);
        if phase.messages.is_some() && !self.has_publishers {
            if let Some(fault) = self.hands.open_publishers()? {
                self.trouble(&fault);
                return Ok(());
            }
            self.has_publishers = true;
        }
        let is_first = self.sending.is_none();
        if is_first {
            if let Some(window) = &plan.closed_loop {
                let missing = u64::from(plan.connections) - self.sum().open;
                let receivers: u64 = plan.receivers.iter().map(|of| u64::from(*of)).sum();
                window.set_receivers(receivers.saturating_sub(missing) as u32);
            }
            self.order(|_| Order::Measure)?;
        }
        let server_cpu_s = self.usage().map(|usage| usage.cpu_s);
        let mut began = self.origin.elapsed() + self.hands.lead();
        if phase.messages.is_some() && is_first {
            began += LEAD;
        }
        let first = Sending { began, server_cpu_s, until: began, ..Sending::default() };
        let mut sending = self.sending.unwrap_or(first);
        // A phase begins when the one before it ends, to the microsecond.
        let is_late = !self.hands.is_here() || self.origin.elapsed() >= sending.until + LEAD;
        let start = if is_late { began } else { sending.until };
        let start = if is_first { began } else { start };
        if let Some(pace) = phase.echo {
            sending.echoes = true;
            sending.until = start + phase.duration.unwrap_or_default();
            let until_ns = sending.until.as_nanos() as u64;
            self.order_at(start, |_| Order::Echo { pace, until_ns })?;
        }
        self.sending = Some(sending);
        if let Some(segment) = phase.messages {
            return self.publish(phase, segment.starting(start.as_nanos() as u64), more);
        }
        let until = sending.until;
        self.wait_until(&phase.name, until)?;
        Ok(())
    }

    /// Publishes the messages of a phase.
    fn publish(&mut self, phase: &Phase, segment: Segment, more: bool) -> Result<(), String> {
        let Some(sending) = &mut self.sending else { return Ok(()) };
        let first = sending.messages;
        sending.phases += 1;
        sending.messages = first.wrapping_add(segment.count);
        let end = Duration::from_nanos(segment.end_ns());
        sending.until = sending.until.max(end);
        let (phases, until) = (sending.phases, sending.until);
        let before = self.sum().published;
        self.hands.start_publishing(segment, first);
        let is_done = |sum: &Sum| sum.finished >= phases;
        let mut replacement = None;
        if let Some(command) = &phase.run {
            let half = before + u64::from(segment.count / 2);
            self.wait("publishing", None, |sum| sum.published >= half || is_done(sum))?;
            if !self.is_interrupted() {
                self.order(|_| Order::WatchPauses)?;
                replacement = Some(Replacement::begin(command)?);
            }
        }
        if more && phase.run.is_none() {
            // What is late leaves in the phases that follow.
            self.wait_until(&phase.name, until)?;
        } else {
            self.wait("publishing", None, is_done)?;
        }
        self.end_replacement(replacement)
    }

    /// Waits for the last messages, if some were sent, and notes rates.
    pub(super) fn end_messages(&mut self) -> Result<(), String> {
        let Some(sending) = self.sending.take() else { return Ok(()) };
        if self.is_interrupted() {
            self.hands.stop_publishing();
        }
        let now = self.origin.elapsed();
        if self.stop.load(Relaxed) && sending.echoes {
            // Quiet also stops the clock of processor time; here that is no matter.
            self.order(|_| Order::Quiet)?;
        }
        self.drain(|sum| {
            let arrived = sum.received.saturating_sub(sum.duplicated) + sum.absent;
            arrived >= sum.expected + sum.sent
        })?;
        if !(self.stop.load(Relaxed) && sending.echoes) {
            self.order(|_| Order::Quiet)?;
        }
        let published = Duration::from_nanos(self.sum().published_ns);
        let interval = match self.plan.rate.filter(|_| self.plan.closed_loop.is_none()) {
            Some(rate) if sending.phases > 0 => Duration::from_secs_f64(1.0 / rate),
            _ => Duration::ZERO,
        };
        let echoed = if sending.echoes { now.min(sending.until.max(sending.began)) } else { now };
        let end = if sending.echoes { published.max(echoed) } else { published };
        self.note_server_cpu(sending.server_cpu_s);
        let sum = self.sum();
        let sent = sum.published + sum.sent;
        let span = end.saturating_sub(sending.began);
        self.note_rates(sending.began, span + interval, sent, sum.last_ns);
        let hold = if sending.phases > 0 { self.plan.hold } else { Duration::ZERO };
        self.wait_until("holding", self.origin.elapsed() + hold)
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

    /// Waits until what was sent has arrived, or nothing has for the time of --drain.
    fn drain(&mut self, arrived: impl Fn(&Sum) -> bool) -> Result<(), String> {
        let stopped = self.stop.swap(false, Relaxed);
        let patience = match stopped {
            true => DRAIN_INTERRUPTED.min(self.plan.drain),
            false if self.plan.is_restless() => DRAIN_RESTLESS.min(self.plan.drain),
            false => self.plan.drain,
        };
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
