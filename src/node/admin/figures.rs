//! The figures of the admin page, once a second, as a publication in the node's own channel. Nothing is
//! counted or sent while nobody looks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::series::{FIGURES, Series};
use crate::base::bytes::SharedBytes;
use crate::base::times::{Counts, Times};
use crate::edge::channels::OWN_CHANNEL;
use crate::node::certificates::{self, Expiry};
use crate::node::memory;
use crate::node::metrics::Metrics;
use crate::shard::ShardCounters;
use crate::shard::mail::{Mail, Publish};

/// Makes them.
pub(in crate::node) struct Figures {
    metrics: Metrics,
    name: String,
    /// How the node runs, and what limits it: lines for people.
    plan: Vec<String>,
    before: Mutex<Option<Before>>,
    /// The last minutes, where there is a page to show them.
    series: Option<Arc<Mutex<Series>>>,
    /// The last ones, for those whose WebSocket the control thread serves.
    feed: watch::Sender<Bytes>,
}

/// The counters of the last figures.
struct Before {
    at: Instant,
    shards: Vec<Counted>,
    loop_lag: Vec<Counts>,
    fan_out: Vec<Counts>,
}

/// Counters of one shard that grow.
#[derive(Clone, Copy, Default)]
struct Counted {
    accepted: u64,
    closed: u64,
    messages_in: u64,
    messages_out: u64,
    bytes_in: u64,
    bytes_out: u64,
    publications: u64,
    deliveries: u64,
    commands: u64,
}

impl Counted {
    fn of(shard: &ShardCounters) -> Self {
        Self {
            accepted: shard.connections_accepted.get(),
            closed: shard.connections_closed.get(),
            messages_in: shard.messages_received.get(),
            messages_out: shard.messages_sent.get(),
            bytes_in: shard.bytes_received.get(),
            bytes_out: shard.bytes_sent.get(),
            publications: shard.publications.get(),
            deliveries: shard.deliveries.get(),
            commands: shard.commands.get(),
        }
    }

    /// Name and value of each.
    fn each(&self) -> [(&'static str, u64); 9] {
        [
            ("accepted", self.accepted),
            ("closed", self.closed),
            ("messages_in", self.messages_in),
            ("messages_out", self.messages_out),
            ("bytes_in", self.bytes_in),
            ("bytes_out", self.bytes_out),
            ("publications", self.publications),
            ("deliveries", self.deliveries),
            ("commands", self.commands),
        ]
    }

    /// How much of each was added in a second.
    fn rates(&self, before: &Self, seconds: f64) -> Map<String, Value> {
        let pairs = self.each().into_iter().zip(before.each());
        let rate = |now: u64, then: u64| (now.wrapping_sub(then) as f64 / seconds).round();
        pairs.map(|((name, now), (_, then))| (name.to_owned(), rate(now, then).into())).collect()
    }
}

impl Figures {
    /// Of a node of this name.
    pub(in crate::node) fn new(
        metrics: Metrics,
        name: String,
        plan: Vec<String>,
        has_page: bool,
    ) -> Self {
        let feed = watch::Sender::new(Bytes::new());
        let series = has_page.then(Arc::default);
        Self { metrics, name, plan, before: Mutex::default(), series, feed }
    }

    /// The last minutes, where there is a page to show them.
    pub(in crate::node) fn series(&self) -> Option<Arc<Mutex<Series>>> {
        self.series.clone()
    }

    /// Where viewers follow them that no shard serves.
    pub(in crate::node) fn feed(&self) -> watch::Sender<Bytes> {
        self.feed.clone()
    }

    /// Keeps the main ones, and publishes all of them if somebody looks. To be called once a second.
    pub(in crate::node) fn publish(&self) {
        let node = &self.metrics.node;
        let (at_shards, here) =
            (node.admins.load(Ordering::Relaxed) > 0, self.feed.receiver_count() > 0);
        let Some(second) = self.second() else { return };
        if let Some(series) = &self.series {
            let values = self.values(&second);
            series.lock().unwrap_or_else(PoisonError::into_inner).push(values);
        }
        if !at_shards && !here {
            return;
        }
        let data = self.figures(second).to_string().into_bytes();
        if here {
            self.feed.send_replace(Bytes::copy_from_slice(&data));
        }
        if !at_shards {
            return;
        }
        let data = data.as_slice().into();
        let hash = node.names.hash(OWN_CHANNEL);
        let namespace = node.rules.channels.load().own().index;
        let publish = Publish {
            channel: OWN_CHANNEL.into(),
            hash,
            namespace,
            asker: None,
            data,
            info: Box::default(),
            tags: SharedBytes::default(),
            is_json: true,
            options: None,
        };
        self.metrics.control_mail.post(node.names.home(hash), Mail::Publish(Box::new(publish)));
    }

    fn before(&self) -> std::sync::MutexGuard<'_, Option<Before>> {
        self.before.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was counted since the last call; `None` without a page.
    fn second(&self) -> Option<Second> {
        self.series.as_ref()?;
        let node = &self.metrics.node;
        let counters = &node.counters;
        let at = Instant::now();
        let now = Before {
            at,
            shards: counters.iter().map(Counted::of).collect(),
            loop_lag: node.loop_lag.iter().map(counts).collect(),
            fan_out: node.fan_out.iter().map(counts).collect(),
        };
        let before = self.before().take();
        let seconds = before.as_ref().map_or(1.0, |before| (at - before.at).as_secs_f64());
        let seconds = seconds.max(0.001);
        // The first time nothing is known of the second before.
        let then = before.as_ref().unwrap_or(&now);
        let second = Second::of(counters, then, &now, seconds);
        *self.before() = Some(now);
        Some(second)
    }

    /// The values of a second that are kept.
    fn values(&self, second: &Second) -> [f64; FIGURES] {
        let node = &self.metrics.node;
        let rate = |name: &str| second.rates.get(name).and_then(Value::as_f64).unwrap_or(0.0);
        let sum = |of: fn(&ShardCounters) -> u64| node.counters.iter().map(of).sum::<u64>() as f64;
        [
            sum(|shard| shard.connections_open.get()),
            node.clients.load(Ordering::Relaxed) as f64,
            rate("messages_in"),
            rate("messages_out"),
            rate("deliveries"),
            rate("publications"),
            rate("bytes_in"),
            rate("bytes_out"),
            rate("accepted"),
            rate("closed"),
            second.fan_out.quantile(0.5) as f64,
            second.fan_out.quantile(0.99) as f64,
            second.lag.quantile(0.5) as f64,
            second.lag.quantile(0.99) as f64,
            memory::rss_bytes().unwrap_or(0) as f64,
            sum(|shard| shard.queued_bytes.get()),
        ]
    }

    fn figures(&self, second: Second) -> Value {
        let Metrics { node, health, started, .. } = &self.metrics;
        let Second { rates, shards, lag, fan_out } = second;
        json!({
            "node": {
                "name": self.name,
                "version": env!("CARGO_PKG_VERSION"),
                "uptime_s": started.elapsed().as_secs(),
                "shards": node.counters.len(),
                "plan": self.plan,
                "fault": health.fault(),
            },
            "totals": self.totals(),
            "rates": rates,
            "latency_us": {
                "loop_lag_p50": lag.quantile(0.5),
                "loop_lag_p99": lag.quantile(0.99),
                "fan_out_p50": fan_out.quantile(0.5),
                "fan_out_p99": fan_out.quantile(0.99),
            },
            "shards": shards,
            "memory": self.memory(),
            "limits": self.limits(),
            "closes": self.by_reason("closed_"),
            "faults": self.by_reason("faults_"),
            "refused": self.by_reason("refused_"),
            "errors": self.by_reason("error_"),
            "proxies": self.proxies(),
            "takeover": self.takeover(),
            "broker": self.broker(),
            "certificates": self.certificates(),
            "software": self.software(),
            "disconnects": self.by_reason("disconnect_"),
            "round_trip_us": self.round_trips(),
        })
    }

    /// Connected clients by name and version of their software, the most frequent ones first.
    fn software(&self) -> Vec<Value> {
        let node = &self.metrics.node;
        let clients = node.software.ids().map(|id| {
            let sum: u64 = node.software_clients.iter().map(|shard| shard.of(id).get()).sum();
            (sum, node.software.name(id))
        });
        let mut clients: Vec<_> = clients.filter(|(sum, _)| *sum > 0).collect();
        clients.sort_by_key(|(sum, _)| std::cmp::Reverse(*sum));
        let json = |(clients, (name, version))| json!({ "name": name, "version": version, "clients": clients });
        clients.into_iter().map(json).collect()
    }

    /// Quantiles of the round trips of pings since the start.
    fn round_trips(&self) -> Value {
        let mut all = Counts::default();
        self.metrics.node.round_trips.iter().for_each(|times| times.add_to(&mut all));
        json!({ "count": all.count(), "p50": all.quantile(0.5), "p99": all.quantile(0.99) })
    }

    fn totals(&self) -> Value {
        let node = &self.metrics.node;
        let sum = |of: fn(&ShardCounters) -> u64| node.counters.iter().map(of).sum::<u64>();
        json!({
            "connections": sum(|shard| shard.connections_open.get()),
            "clients": node.clients.load(Ordering::Relaxed),
            "users": node.users.load(Ordering::Relaxed),
            "subscriptions": sum(|shard| shard.subscriptions.get()),
            "channels": sum(|shard| shard.channels_home.get()),
            "queued_bytes": sum(|shard| shard.queued_bytes.get()),
            "history_publications": sum(|shard| shard.history_publications.get()),
            "history_bytes": sum(|shard| shard.history_bytes.get()),
        })
    }

    fn memory(&self) -> Value {
        let mut classes: Map<String, Value> = Map::new();
        for (class, bytes) in self.metrics.memory_classes() {
            classes.insert(class.to_owned(), bytes.into());
        }
        json!({
            "limit": self.metrics.node.memory.limit(),
            "bytes_per_connection": self.metrics.bytes_per_connection(),
            "classes": classes,
        })
    }

    fn limits(&self) -> Vec<Value> {
        let used = |name| match name {
            "clients" => self.metrics.node.clients.load(Ordering::Relaxed),
            "memory_bytes" => self.metrics.used_bytes(),
            _ => self.metrics.open(),
        };
        let limits = self.metrics.limits();
        limits
            .iter()
            .map(|(name, limit)| json!({ "name": name, "used": used(name), "limit": limit }))
            .collect()
    }

    /// Sums of the counters whose names begin so, by the rest of the name; those that are not 0.
    fn by_reason(&self, beginning: &str) -> Map<String, Value> {
        let mut sums: Map<String, Value> = Map::new();
        for counters in &self.metrics.node.counters {
            counters.each(|name, value| {
                let Some(reason) = name.strip_prefix(beginning).filter(|_| value > 0) else {
                    return;
                };
                let sum = sums.get(reason).and_then(Value::as_u64).unwrap_or(0);
                sums.insert(reason.to_owned(), (sum + value).into());
            });
        }
        sums
    }

    /// Certificates with the days until their end, and what could not be read.
    fn certificates(&self) -> Value {
        let now = certificates::unix_now();
        let certificates = &self.metrics.certificates;
        let each = certificates.expiries().into_iter().map(|Expiry { name, option, not_after }| {
            let days = (not_after - now).div_euclid(24 * 60 * 60);
            json!({ "name": name, "option": option, "not_after": not_after, "days": days })
        });
        json!({ "list": each.collect::<Vec<_>>(), "errors": certificates.faults() })
    }

    /// The last takeover, and attempts that failed; null where there was neither.
    fn takeover(&self) -> Value {
        let of = &self.metrics.takeover;
        let load = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let (count, failed) = (load(&of.takeovers), load(&of.failed));
        if count == 0 && failed == 0 {
            return Value::Null;
        }
        json!({
            "count": count,
            "failed": failed,
            "at": of.at.load(Ordering::Relaxed),
            "connections": load(&of.connections),
            "bytes": load(&of.bytes),
            "pause_us": load(&of.pause_us),
        })
    }

    /// The broker; null where this node keeps all itself.
    fn broker(&self) -> Value {
        let Metrics { node, brokers, health, .. } = &self.metrics;
        if brokers.is_empty() {
            return Value::Null;
        }
        let figures = brokers.figures();
        let of = |name: &str| figures.get(name).copied().unwrap_or_default();
        let sum = |of: fn(&ShardCounters) -> u64| node.counters.iter().map(of).sum::<u64>();
        let mut latency = Counts::default();
        brokers.latency().for_each(|times| times.add_to(&mut latency));
        json!({
            "fault": health.broker_fault(),
            "servers_away": of("redis_servers_away"),
            "resubscribing": of("redis_resubscribing"),
            "latency_p50_us": latency.quantile(0.5),
            "latency_p99_us": latency.quantile(0.99),
            "probe_age_ms": brokers.probe_age().as_millis() as u64,
            "queue_bytes": of("redis_queue_bytes"),
            "replies_lost": of("redis_replies_lost"),
            "errors": of("redis_errors"),
            "channels": sum(|shard| shard.broker_channels.get()),
            "window_bytes": sum(|shard| shard.broker_window_bytes.get()),
            "repaired": sum(|shard| shard.broker_repaired.get()),
            "timeouts": sum(|shard| shard.broker_timeouts.get()),
            "gaps": self.by_reason("broker_gaps_"),
        })
    }

    fn proxies(&self) -> Vec<Value> {
        let endpoints = self.metrics.proxies.endpoints();
        let told = endpoints.iter().map(|endpoint| {
            json!({
                "name": endpoint.options.name,
                "state": endpoint.state().name(),
                "calls": endpoint.questions(),
                "failures": endpoint.failures(),
                "in_flight": endpoint.in_flight(),
            })
        });
        told.collect()
    }
}

/// What the shards did in the last second: in all, and each.
struct Second {
    rates: Map<String, Value>,
    shards: Vec<Value>,
    lag: Counts,
    fan_out: Counts,
}

impl Second {
    fn of(counters: &[ShardCounters], then: &Before, now: &Before, seconds: f64) -> Self {
        let (mut rates, mut shards) = (Map::new(), Vec::new());
        let (mut lag, mut fan_out) = (Counts::default(), Counts::default());
        for (at, shard) in counters.iter().enumerate() {
            let of_shard = now.shards[at].rates(&then.shards[at], seconds);
            for (name, rate) in &of_shard {
                let sum = rates.get(name).and_then(Value::as_f64).unwrap_or(0.0);
                rates.insert(name.clone(), (sum + rate.as_f64().unwrap_or(0.0)).into());
            }
            let of_lag = now.loop_lag[at].since(&then.loop_lag[at]);
            lag.add(&of_lag);
            let of_fan_out = now.fan_out[at].since(&then.fan_out[at]);
            fan_out.add(&of_fan_out);
            let mut figures = of_shard;
            for (name, value) in [
                ("connections", shard.connections_open.get()),
                ("subscriptions", shard.subscriptions.get()),
                ("queued_bytes", shard.queued_bytes.get()),
                ("mailbox_batches", shard.mailbox_batches.get()),
                ("loop_lag_p99_us", of_lag.quantile(0.99)),
                ("fan_out_p99_us", of_fan_out.quantile(0.99)),
            ] {
                figures.insert(name.to_owned(), value.into());
            }
            shards.push(Value::Object(figures));
        }
        Self { rates, shards, lag, fan_out }
    }
}

fn counts(times: &Times) -> Counts {
    let mut counts = Counts::default();
    times.add_to(&mut counts);
    counts
}
