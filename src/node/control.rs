//! The control thread: signals, figures, memory, the end. Never on the path of a message.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tracing::{error, info, warn};

use arc_swap::ArcSwap;

use super::admin::Figures;
use super::broker::Brokers;
use super::certificates::{self, Certificates};
use super::cluster::Cluster;
use super::control_mail::ControlMail;
use super::health::Health;
use super::hooks::Hooks;
use super::log::{Lines, Log};
use super::memory::Watch;
use super::proxies::Proxies;
use super::reload_requests::{Outcome, ReloadRequests, Reply};
use super::service_manager::ServiceManager;
use super::takeover::Outgoing;
use super::{Ended, Reload, Reloaded, memory};
use crate::base::times::Counts;
use crate::config;
use crate::shard::mail::Mail;
use crate::shard::{NamespaceCounters, NodeState};
use crate::sys;

/// The signals that mean something to a node.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    figures: Signal,
    reload: Signal,
    requests: ReloadRequests,
    requested: mpsc::Receiver<Reply>,
}

impl Signals {
    /// Must be made in the runtime, before the descriptor tables part: a handler writes into a pipe.
    pub(super) fn new() -> std::io::Result<Self> {
        let (requests, requested) = ReloadRequests::new();
        Ok(Self {
            requests,
            requested,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            figures: signal(SignalKind::user_defined1())?,
            reload: signal(SignalKind::hangup())?,
        })
    }

    /// For requests to reload that are no signals.
    pub(super) fn reload_requests(&self) -> ReloadRequests {
        self.requests.clone()
    }
}

/// The state of the control thread.
pub(super) struct Control {
    pub(super) node: Arc<NodeState>,
    pub(super) control_mail: Arc<ControlMail>,
    /// The ways to other nodes.
    pub(super) brokers: Arc<Brokers>,
    /// The other nodes, where a broker connects them.
    pub(super) cluster: Option<Arc<Cluster>>,
    pub(super) started: Instant,
    pub(super) drain_rate: u32,
    pub(super) shutdown_timeout: Duration,
    /// Looks after memory.
    pub(super) watch: RefCell<Watch>,
    pub(super) reload: Reload,
    /// Options of the server API, if there is one.
    pub(super) calls: Option<Arc<ArcSwap<config::Api>>>,
    /// Opened again with the options.
    pub(super) log: Log,
    /// Copies of one shard's listeners, so that tools that look into this thread's table name the process.
    pub(super) shown: RefCell<Vec<OwnedFd>>,
    /// Supervises the node, perhaps.
    pub(super) manager: Arc<ServiceManager>,
    /// Standard output, for figures.
    pub(super) output: Lines,
    /// The figures for viewers, once a second.
    pub(super) figures: Figures,
    /// Follow the rules.
    pub(super) proxies: Arc<Proxies>,
    /// Posts its last events before the node ends.
    pub(super) hooks: Option<Arc<Hooks>>,
    /// Looked at once a second, and read again with the options.
    pub(super) certificates: Arc<Certificates>,
    /// Looked at once a second.
    pub(super) health: Arc<Health>,
    /// Hands over to another process, if that may be.
    pub(super) takeover: Option<Outgoing>,
    /// Loop lag at the last report.
    pub(super) lag_told: RefCell<Counts>,
}

/// Why a node serves no longer.
enum Served {
    /// A signal ends it.
    Signalled,
    /// Another process has its connections.
    HandedOver,
}

/// How often figures are looked at, and memory where there is plenty.
const INTERVAL: Duration = Duration::from_secs(1);

/// How often memory is looked at when half of it is in use.
const MEMORY_INTERVAL: Duration = Duration::from_millis(100);

/// How often a draining node looks whether it is done.
const DRAIN_INTERVAL: Duration = Duration::from_millis(10);

impl Control {
    /// Runs the node's life: serve, drain, end.
    pub(super) async fn run(self, mut signals: Signals) -> Ended {
        let ended = match self.serve(&mut signals).await {
            Served::Signalled => self.drain(&mut signals).await,
            Served::HandedOver => {
                self.end_behind_handover().await;
                Ended::HandedOver
            }
        };
        if let Some(hooks) = &self.hooks
            && !matches!(ended, Ended::Cut | Ended::Drained)
        {
            hooks.finish().await;
        }
        // One that has handed over lives on in another process.
        if let Some(cluster) = self.cluster.as_ref().filter(|_| ended != Ended::HandedOver) {
            cluster.end().await;
        }
        ended
    }

    async fn serve(&self, signals: &mut Signals) -> Served {
        let mut every = tokio::time::interval(INTERVAL);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut soon = tokio::time::interval(MEMORY_INTERVAL);
        soon.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let memory = &self.node.memory;
            let is_scarce = memory.used() > memory.limit() / 2;
            tokio::select! {
                _ = signals.terminate.recv() => return Served::Signalled,
                _ = signals.interrupt.recv() => return Served::Signalled,
                stream = self.takeover_requested() => {
                    if self.hand_over(stream).await {
                        return Served::HandedOver;
                    }
                }
                _ = signals.figures.recv() => self.print_figures(),
                _ = signals.reload.recv() => drop(self.reload()),
                Some(reply) = signals.requested.recv() => {
                    // A client that is gone needs no answer.
                    let _ = reply.send(self.reload());
                }
                _ = soon.tick(), if is_scarce => self.watch_memory(),
                _ = every.tick() => {
                    self.watch_memory();
                    self.node.notices.report_left_out();
                    self.health.look();
                    self.certificates.look(certificates::unix_now());
                    self.figures.publish();
                }
            }
        }
    }

    /// Reads the options again, between two messages to the service manager.
    fn reload(&self) -> Outcome {
        self.manager.reloading();
        let outcome = self.read_again();
        self.manager.reloaded();
        outcome
    }

    /// Takes what may change of the options. When something is wrong all stays as it is.
    fn read_again(&self) -> Outcome {
        // Whatever the options are by now: its owner may have renamed the file.
        self.log.reopen();
        let reloaded = match (self.reload)() {
            Ok(reloaded) => reloaded,
            Err(problems) => {
                let problems: Vec<String> = problems.lines().map(str::to_owned).collect();
                for problem in &problems {
                    error!(problem, "reload failed: nothing is changed");
                }
                return Outcome { problems, ..Outcome::default() };
            }
        };
        let Reloaded {
            channels,
            tokens,
            client,
            rpc,
            origins,
            api,
            tls,
            changed,
            needs_start,
            warnings,
        } = reloaded;
        for warning in &warnings {
            warn!(warning, "warning about the reloaded options");
        }
        let rules = &self.node.rules;
        rules.client.store(Arc::new(rules.client.load().with_limits_of(&client).0));
        rules.origins.store(Arc::new(origins));
        rules.rpc.store(Arc::new(rpc));
        if let (Some(calls), Some(config::Api { key, insecure, transport_errors, .. })) =
            (&self.calls, api)
        {
            let running = config::Api::clone(&calls.load());
            let api = config::Api { key, insecure, transport_errors, ..running };
            rules.api.store(Arc::new(Some(api.access())));
            calls.store(Arc::new(api));
        }
        let sets = [
            (Some(&rules.keys), Some(&tokens.connection)),
            (rules.subscription_keys.as_ref(), tokens.subscription.as_ref()),
        ];
        for (keys, options) in sets {
            let replaced = match (keys, options) {
                (Some(keys), Some(options)) => keys.replace(options).map_err(|f| f.to_string()),
                (None, None) => Ok(()),
                _ => Err("client.subscription_token.enabled needs a restart".to_owned()),
            };
            if let Err(fault) = replaced {
                warn!(fault, "reload: token keys are not changed");
            }
        }
        let older = rules.channels.load();
        rules.channels.store(Arc::new(channels.in_place_of(&older)));
        self.brokers.follow(&rules.channels.load_full());
        if let Err(fault) = self.proxies.follow(rules) {
            warn!(%fault, "reload: calls of this proxy fail");
        }
        self.certificates.reload(tls, certificates::unix_now());
        info!("options reloaded");
        for option in &changed {
            info!(option, "changed option is in effect");
        }
        for section in &needs_start {
            warn!(section, "changed section needs a restart");
        }
        Outcome { problems: Vec::new(), changed, needs_restart: needs_start, warnings }
    }

    /// Orders every shard to close its connections at the set pace, and waits.
    async fn drain(&self, signals: &mut Signals) -> Ended {
        self.node.draining.store(true, Ordering::Relaxed);
        let open = self.open();
        let rate = self.pace(open);
        info!(connections = open, per_second = rate, "draining");
        self.manager.stopping(open, self.shutdown_timeout);
        for (shard, here) in self.control_mail.shards().zip(&self.node.open) {
            // By what is there: the kernel doesn't spread connections evenly, and a fuller shard at
            // the pace of the others would not be done in time.
            let here = u64::from(here.load(Ordering::Relaxed));
            let share = rate.saturating_mul(here).div_ceil(open.max(1)).max(1);
            let per_second = u32::try_from(share).unwrap_or(u32::MAX);
            self.control_mail.post(shard, Mail::Drain { per_second });
        }
        let deadline = tokio::time::sleep(self.shutdown_timeout);
        tokio::pin!(deadline);
        let mut every = tokio::time::interval(DRAIN_INTERVAL);
        let shards = self.node.open.len() as u32;
        while self.node.drained.load(Ordering::Acquire) < shards {
            tokio::select! {
                _ = every.tick() => {}
                _ = signals.figures.recv() => self.print_figures(),
                () = &mut deadline => {
                    warn!(connections = self.open(), "drain timed out: remaining connections are dropped");
                    return Ended::TimedOut;
                }
                _ = signals.terminate.recv() => return self.cut(),
                _ = signals.interrupt.recv() => return self.cut(),
            }
        }
        // A listener is closed when the last of its copies is.
        self.shown.take();
        if let Some(hooks) = &self.hooks {
            // Shards that have stopped report nothing.
            hooks.finish().await;
        }
        self.control_mail.shards().for_each(|shard| self.control_mail.post(shard, Mail::Stop));
        self.control_mail.sent().await;
        info!("drained");
        Ended::Drained
    }

    fn cut(&self) -> Ended {
        warn!(connections = self.open(), "second signal: the node ends at once");
        Ended::Cut
    }

    /// Connections to close in a second: as configured, faster when the time to drain would not be
    /// enough for all of them.
    fn pace(&self, open: u64) -> u64 {
        let millis = self.shutdown_timeout.as_millis().max(1) as u64;
        let needed = open.saturating_mul(1000).div_ceil(millis.saturating_mul(4).div_ceil(5));
        u64::from(self.drain_rate).max(needed).max(1)
    }

    fn open(&self) -> u64 {
        self.node.open.iter().map(|open| u64::from(open.load(Ordering::Relaxed))).sum()
    }

    fn watch_memory(&self) {
        let memory = &self.node.memory;
        let queues = self.node.counters.iter().map(|shard| shard.queues.get()).sum();
        let sockets = memory::kernel_bytes(self.open(), queues);
        let looked = self.watch.borrow_mut().look(memory, memory::rss_bytes(), sockets);
        if looked.collect {
            memory.collect();
            sys::memory::collect();
        }
        if looked.collect || memory.used() > memory.history_max() {
            // A shard that sleeps may have something to give.
            self.control_mail.ring();
        }
        let (used, limit) = (memory.used(), memory.limit());
        match looked.short {
            Some(true) => warn!(
                used,
                limit,
                "over the memory limit: new connections, subscriptions and publications are refused"
            ),
            Some(false) => info!(used, limit, "below the memory limit again"),
            None => {}
        }
    }

    /// All figures of all shards, summed, as one JSON line on standard output.
    fn print_figures(&self) {
        let slow = self.slow();
        let mut sums = BTreeMap::new();
        for counters in &self.node.counters {
            counters.each(|name, value| *sums.entry(name).or_insert(0u64) += value);
        }
        sums.extend(self.loop_lag());
        sums.extend(self.brokers.figures());
        sums.insert("shards", self.node.counters.len() as u64);
        sums.insert("clients", self.node.clients.load(Ordering::Relaxed));
        sums.insert("uptime_ms", self.started.elapsed().as_millis() as u64);
        sums.insert("rss_bytes", memory::rss_bytes().unwrap_or(0));
        sums.insert("memory_limit_bytes", self.node.memory.limit());
        sums.insert("memory_used_bytes", self.node.memory.used());
        sums.insert("allocated_bytes", self.node.memory.allocated());
        sums.extend(slow.iter().map(|(name, closes)| (name.as_str(), *closes)));
        sums.insert("log_lines_dropped", self.log.dropped());
        sums.insert("figures_lines_dropped", self.output.dropped());
        // Numbers under names: nothing in it can fail to be written.
        let line = serde_json::to_string(&sums).unwrap_or_default();
        self.output.say(line + "\n");
    }

    /// How long turns of all shards worked since the line before.
    fn loop_lag(&self) -> [(&'static str, u64); 4] {
        let mut counts = Counts::default();
        self.node.loop_lag.iter().for_each(|times| times.add_to(&mut counts));
        let added = counts.since(&self.lag_told.replace(counts.clone()));
        [
            ("loop_lag_us_p50", added.quantile(0.5)),
            ("loop_lag_us_p99", added.quantile(0.99)),
            ("loop_lag_us_p999", added.quantile(0.999)),
            ("loop_lag_us_max", added.quantile(1.0)),
        ]
    }

    /// Counters of slow clients by namespace, where there are any.
    fn slow(&self) -> BTreeMap<String, u64> {
        let channels = self.node.rules.channels.load();
        let namespaces = channels.namespaces();
        let mut slow = BTreeMap::new();
        for counters in &self.node.namespaces {
            for (at, NamespaceCounters { closed, dropped, conflated, .. }) in
                counters.iter().enumerate()
            {
                let later = at + 1 == counters.len();
                let namespace = if later { "(later)" } else { namespaces[at].name.as_str() };
                for (what, counter) in
                    [("closed_slow", closed), ("dropped_oldest", dropped), ("conflated", conflated)]
                {
                    if counter.get() > 0 {
                        // Names of namespaces are letters, digits and "-_.": nothing to escape.
                        let name = format!("{what}{{namespace=\"{namespace}\"}}");
                        *slow.entry(name).or_insert(0) += counter.get();
                    }
                }
            }
        }
        slow
    }
}
