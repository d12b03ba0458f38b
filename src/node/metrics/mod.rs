//! Metrics in Prometheus's text format: counters of all shards as they are, read without stopping any.
//!
//! Counters whose names begin alike (`closed_X`, `error_X`) are one metric with a label; what says more for
//! each shard has the label `shard`; the others are summed.

mod centrifugo;
mod more;

use std::collections::BTreeMap;
use std::fmt::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::Router;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::admin_refusals::AdminRefusals;
use super::api::ApiFigures;
use super::broker::Brokers;
use super::certificates::{self, Certificates, Expiry};
use super::cluster::{Cluster, Counters, Labelled};
use super::control_mail::ControlMail;
use super::health::Health;
use super::hooks::{self, Hooks};
use super::memory;
use super::proxies::{Endpoint, Outcome, Proxies, State};
use super::responses::Responses;
use super::takeover::TakeoverFigures;
use crate::base::counters::Kind;
use crate::base::form::Transport;
use crate::base::times::{Counts, Times};
use crate::edge::proxy::ProxyEvent;
use crate::hub::subscribers::Subscriber;
use crate::session::Session;
use crate::shard::mail::Method;
use crate::shard::{CONN_BYTES, NodeState, ShardCounters};

/// Groups of counters that are one metric with a label: beginning of the counters' names, the metric,
/// the label, the help text.
#[rustfmt::skip]
const BY_LABEL: &[(&str, &str, &str, &str)] = &[
    ("closed_", "connections_closed_by_node", "reason", "Connections that the node closed, by reason"),
    ("faults_", "client_faults", "reason", "Connections closed because of invalid input of the client, by reason"),
    ("broker_gaps_", "broker_gaps", "cause", "Gaps that the history of the broker could not close, by cause"),
    ("refused_", "requests_refused", "reason", "Requests refused by shards, by reason"),
    ("shed_", "memory_given_up", "what", "Released because the node was over its memory limit, or history over its share of it"),
    ("short_", "memory_refused", "what", "Refused because memory was short, by kind"),
    ("busy_", "requests_unavailable", "reason", "Requests refused as temporarily unavailable (503), by reason"),
    ("replaced_", "connections_replaced", "state", "Idle connections closed to make room for new ones, by state"),
    ("tls_handshakes_1_", "tls_handshakes", "kind", "TLS handshakes that have succeeded, by version and whether a ticket was used"),
    ("tls_failed_", "tls_handshakes_failed", "reason", "TLS handshakes that failed, by reason"),
    ("tls_record_faults_", "tls_record_faults", "reason", "TLS connections closed because of an invalid record, by reason"),
    ("method_", "client_commands", "method", "Commands of clients, by method"),
    ("error_", "client_errors", "code", "Commands of clients answered with an error, by code"),
    ("disconnect_", "disconnects", "code", "Sessions that the node ended, by code of the disconnect"),
    ("unsubscribe_", "unsubscribes", "code", "Subscriptions that ended before their connections, by code; client: the client has unsubscribed"),
];

/// Counters with a label for each shard.
const BY_SHARD: &[&str] =
    &["connections_open", "subscriptions", "deliveries", "queued_bytes", "mail_full", "turns"];

/// A subscriber in its channel's list. That of a session with one subscription is part of the session.
const SUBSCRIPTION_BYTES: u64 = size_of::<Subscriber>() as u64;

/// Bounds of histograms of durations, microseconds.
const BOUNDS_US: &[u64] = &[
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000,
];

/// Bounds of histograms of numbers.
const BOUNDS_COUNT: &[u64] = &[1, 10, 100, 1_000, 10_000, 100_000, 1_000_000];

/// Reads what a node counts.
#[derive(Clone)]
pub(super) struct Metrics {
    pub(super) node: Arc<NodeState>,
    pub(super) control_mail: Arc<ControlMail>,
    pub(super) health: Arc<Health>,
    pub(super) proxies: Arc<Proxies>,
    /// Figures of takeovers.
    pub(super) takeover: Arc<TakeoverFigures>,
    /// Events for the application, where there is an endpoint.
    pub(super) hooks: Option<Arc<Hooks>>,
    pub(super) brokers: Arc<Brokers>,
    pub(super) admin_refusals: Arc<AdminRefusals>,
    pub(super) certificates: Arc<Certificates>,
    /// The other nodes, where a broker connects them.
    pub(super) cluster: Option<Arc<Cluster>>,
    /// Dropped lines: of the log, and of SIGUSR1's figures.
    pub(super) lines_dropped: [Arc<AtomicU64>; 2],
    pub(super) started: Instant,
    /// The same in seconds since 1970.
    pub(super) started_unix: i64,
    /// What the server API counts.
    pub(super) api: Arc<ApiFigures>,
    /// Responses of the control thread.
    pub(super) responses: Arc<Responses>,
    /// Each shard has a descriptor table of its own.
    pub(super) tables_apart: bool,
    /// Metrics have Centrifugo's names, too.
    pub(super) centrifugo_names: bool,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

/// The labels of a value.
type Labels = Vec<(&'static str, String)>;

/// Values, each under labels of its own.
type Values = Vec<(Labels, f64)>;

/// One metric.
struct Metric {
    name: String,
    help: String,
    kind: Kind,
    values: Values,
}

impl Metric {
    fn new(kind: Kind, name: &str, help: &str, values: Values) -> Self {
        let help = help.trim().trim_end_matches('.').to_owned();
        Self { name: format!("roost_{name}"), help, kind, values }
    }

    fn gauge(name: &str, help: &str, value: f64) -> Self {
        Self::new(Kind::Gauge, name, help, vec![(Labels::new(), value)])
    }

    fn put(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let kind = match self.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
        };
        let mut metric = encoder.encode_descriptor(&self.name, &self.help, None, kind)?;
        for (labels, value) in &self.values {
            match labels.is_empty() {
                true => put_value(&mut metric, self.kind, *value)?,
                false => put_value(&mut metric.encode_family(labels)?, self.kind, *value)?,
            }
        }
        Ok(())
    }
}

fn put_value(metric: &mut MetricEncoder<'_>, kind: Kind, value: f64) -> Result<(), Error> {
    match kind {
        Kind::Counter => metric.encode_counter::<NoLabelSet, _, u64>(&value, None),
        Kind::Gauge => metric.encode_gauge(&value),
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let brokers = self.of_brokers().into_iter().chain(self.of_broker_commands());
        let metrics =
            self.counters().into_iter().chain(self.others()).chain(self.more()).chain(brokers);
        metrics.into_iter().try_for_each(|metric| metric.put(&mut encoder))?;
        put_durations(
            &mut encoder,
            "roost_loop_lag_seconds",
            "Duration of turns of the shards' loops: new readiness waits that long",
            &self.node.loop_lag,
        )?;
        put_durations(
            &mut encoder,
            "roost_fan_out_seconds",
            "Time from a publication at its home to the write for its last subscriber on a shard",
            &self.node.fan_out,
        )?;
        encoder
            .encode_descriptor(
                "roost_fan_out_subscribers",
                "Subscribers of a publication on a shard",
                None,
                MetricType::Histogram,
            )
            .and_then(|family| {
                Histogram::of(&self.node.fan_out_size, BOUNDS_COUNT, 1.0).put(family)
            })?;
        put_command_durations(&mut encoder, &self.node.commands)?;
        self.put_more(&mut encoder)?;
        let help = "Time from a command of this node to the broker's answer";
        Histogram::of(self.brokers.latency(), BOUNDS_US, 1e6).put(encoder.encode_descriptor(
            "roost_broker_latency_seconds",
            help,
            None,
            MetricType::Histogram,
        )?)?;
        put_proxy_durations(&mut encoder, &self.proxies.endpoints())
    }
}

/// How long the application took, by proxy.
fn put_proxy_durations(
    encoder: &mut DescriptorEncoder<'_>,
    endpoints: &[Arc<Endpoint>],
) -> Result<(), Error> {
    let help = "Duration of proxy calls, including the wait for a turn";
    let kind = MetricType::Histogram;
    let mut family = encoder.encode_descriptor("roost_proxy_seconds", help, None, kind)?;
    for endpoint in endpoints {
        let labels = [("proxy", endpoint.options.name.as_str())];
        let histogram = Histogram::of([&endpoint.durations], BOUNDS_US, 1e6);
        histogram.put(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// How long commands waited for their answers, by method.
fn put_command_durations(
    encoder: &mut DescriptorEncoder<'_>,
    of_shards: &[[Times; Method::NAMES.len()]],
) -> Result<(), Error> {
    let help = "Latency of commands of clients, to within a turn of the loop and a millisecond";
    let kind = MetricType::Histogram;
    let mut family = encoder.encode_descriptor("roost_command_seconds", help, None, kind)?;
    for (at, name) in Method::NAMES.into_iter().enumerate() {
        let histogram = Histogram::of(of_shards.iter().map(|of| &of[at]), BOUNDS_US, 1e6);
        histogram.put(family.encode_family(&[("method", name)])?)?;
    }
    Ok(())
}

/// Measured values, in buckets.
struct Histogram {
    sum: f64,
    count: u64,
    buckets: Vec<(f64, u64)>,
}

impl Histogram {
    /// The values of all of them, as so many parts of a unit.
    fn of<'t>(times: impl IntoIterator<Item = &'t Times>, bounds: &[u64], parts: f64) -> Self {
        let mut counts = Counts::default();
        times.into_iter().for_each(|times| times.add_to(&mut counts));
        let bounds = bounds.iter().map(|bound| (*bound as f64 / parts, counts.up_to(*bound)));
        let mut before = 0;
        let mut buckets: Vec<(f64, u64)> = bounds
            .map(|(bound, up_to)| (bound, up_to - std::mem::replace(&mut before, up_to)))
            .collect();
        buckets.push((f64::INFINITY, counts.count() - before));
        Self { sum: counts.total_us() as f64 / parts, count: counts.count(), buckets }
    }

    fn put(&self, mut encoder: MetricEncoder<'_>) -> Result<(), Error> {
        encoder.encode_histogram::<NoLabelSet>(self.sum, self.count, &self.buckets, None)
    }
}

/// The values of all shards, as one histogram.
fn put_durations(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    of_shards: &[Times],
) -> Result<(), Error> {
    let histogram = Histogram::of(of_shards, BOUNDS_US, 1e6);
    histogram.put(encoder.encode_descriptor(name, help, None, MetricType::Histogram)?)
}

impl Metrics {
    /// The counters of shards.
    fn counters(&self) -> Vec<Metric> {
        let shards = &self.node.counters;
        let mut values: Vec<Vec<u64>> = Vec::with_capacity(shards.len());
        for counters in shards {
            let mut of_shard = Vec::with_capacity(ShardCounters::FIGURES.len());
            counters.each(|_, value| of_shard.push(value));
            values.push(of_shard);
        }
        let mut metrics = vec![self.by_transport()];
        let mut labelled: BTreeMap<&str, Values> = BTreeMap::new();
        for (at, figure) in ShardCounters::FIGURES.iter().enumerate() {
            let sum = match figure.name {
                // One may have connections on several shards.
                "users" => self.node.users.load(Ordering::Relaxed),
                _ => values.iter().map(|of_shard| of_shard[at]).sum::<u64>(),
            };
            let sum = sum as f64;
            let found = BY_LABEL.iter().find_map(|(beginning, name, label, _)| {
                Some((*name, *label, figure.name.strip_prefix(beginning)?))
            });
            if let Some((name, label, of)) = found {
                labelled.entry(name).or_default().push((vec![(label, of.to_owned())], sum));
                continue;
            }
            let values = match BY_SHARD.contains(&figure.name) {
                true => (values.iter().enumerate())
                    .map(|(shard, of)| (vec![("shard", shard.to_string())], of[at] as f64))
                    .collect(),
                false => vec![(Labels::new(), sum)],
            };
            metrics.push(Metric::new(figure.kind, figure.name, figure.help, values));
        }
        metrics.extend(BY_LABEL.iter().filter_map(|(_, name, _, help)| {
            Some(Metric::new(Kind::Counter, name, help, labelled.remove(name)?))
        }));
        metrics
    }

    /// Open connections by what they speak, for each shard.
    fn by_transport(&self) -> Metric {
        let shards = self.node.counters.iter().enumerate();
        let values = shards.flat_map(|(shard, counters)| {
            let each = Transport::ALL
                .map(|transport| (transport.name(), counters.clients(transport).get()));
            let clients: u64 = each.iter().map(|(_, count)| count).sum();
            let others = counters.connections_open.get().saturating_sub(clients);
            each.into_iter().chain([("http", others)]).map(move |(transport, count)| {
                let labels =
                    vec![("transport", transport.to_owned()), ("shard", shard.to_string())];
                (labels, count as f64)
            })
        });
        let help =
            "Open connections: clients by their transport, and others (requests, pages, /echo)";
        Metric::new(Kind::Gauge, "connections", help, values.collect())
    }

    /// Connections that are open.
    pub(super) fn open(&self) -> u64 {
        self.node.open.iter().map(|open| u64::from(open.load(Ordering::Relaxed))).sum()
    }

    /// Bytes that count towards the memory limit.
    pub(super) fn used_bytes(&self) -> u64 {
        self.node.memory.used()
    }

    /// Resident bytes over open connections.
    pub(super) fn bytes_per_connection(&self) -> u64 {
        memory::rss_bytes().unwrap_or(0) / self.open().max(1)
    }

    /// Where memory goes, bytes: `resident` is all of the process, `kernel_sockets` beside it.
    pub(super) fn memory_classes(&self) -> [(&'static str, u64); 11] {
        let sum = |of: fn(&ShardCounters) -> u64| self.node.counters.iter().map(of).sum::<u64>();
        [
            ("resident", memory::rss_bytes().unwrap_or(0)),
            ("allocated", self.node.memory.allocated()),
            ("kernel_sockets", memory::kernel_bytes(self.open(), sum(|shard| shard.queues.get()))),
            ("connections", sum(|shard| shard.slots_in_use.get()) * CONN_BYTES as u64),
            ("sessions", sum(|shard| shard.sessions_open.get()) * size_of::<Session>() as u64),
            ("subscriptions", sum(|shard| shard.subscriptions.get()) * SUBSCRIPTION_BYTES),
            ("history", sum(|shard| shard.history_bytes.get())),
            ("filters", sum(|shard| shard.filters_bytes.get())),
            ("queues", sum(|shard| shard.queued_bytes.get())),
            ("mailboxes", sum(|shard| shard.mailbox_bytes.get())),
            ("closes", sum(|shard| shard.closes_bytes.get())),
        ]
    }

    /// The limits; 0 for none.
    pub(super) fn limits(&self) -> [(&'static str, u64); 3] {
        let node = &self.node;
        [
            ("connections", u64::from(node.options.conns_max) * node.open.len() as u64),
            ("clients", node.rules.client.load().connection_limit),
            ("memory_bytes", self.node.memory.limit()),
        ]
    }

    /// Metrics of the connections to the brokers: zero on a node that keeps all itself.
    fn of_brokers(&self) -> Vec<Metric> {
        let figures = self.brokers.figures();
        let of = |name: &str| figures.get(name).copied().unwrap_or_default() as f64;
        let gauge = |name, help, value| Metric::gauge(name, help, value);
        let counter =
            |name, help, of| Metric::new(Kind::Counter, name, help, vec![(Labels::new(), of)]);
        let by = |label: &'static str, values: &[(&str, &str)]| -> Values {
            let value = |(name, figure): &(&str, &str)| (vec![(label, (*name).into())], of(figure));
            values.iter().map(value).collect()
        };
        let connects = [("command", "redis_connects"), ("pubsub", "redis_pubsub_connects")];
        let lost = [
            ("delivery", "redis_deliveries_lost"),
            ("announcement", "redis_announcements_lost"),
            ("control", "redis_control_lost"),
        ];
        vec![
            Metric::new(
                Kind::Counter,
                "broker_connects",
                "Connections made to the broker, the first ones too, by kind",
                by("kind", &connects),
            ),
            counter(
                "broker_connects_failed",
                "Attempts to connect to the broker that failed",
                of("redis_connects_failed"),
            ),
            gauge(
                "broker_servers_away",
                "Servers of the broker without a connection for commands",
                of("redis_servers_away"),
            ),
            gauge(
                "broker_resubscribing",
                "PUB/SUB connections that do not deliver all channels yet",
                of("redis_resubscribing"),
            ),
            gauge(
                "broker_resubscribe_seconds",
                "Time that the last complete subscription of a PUB/SUB connection took",
                of("redis_resubscribe_ms") / 1e3,
            ),
            gauge(
                "broker_probe_age_seconds",
                "Time since the most silent PUB/SUB connection delivered anything, its own probes too",
                self.brokers.probe_age().as_secs_f64(),
            ),
            gauge(
                "broker_queue_bytes",
                "Bytes of commands that wait for the broker",
                of("redis_queue_bytes"),
            ),
            Metric::new(
                Kind::Counter,
                "broker_lost",
                "Messages of the broker for which this node had no room, by kind; channels of lost deliveries are read again",
                by("kind", &lost),
            ),
        ]
    }

    /// What the brokers have sent and refused.
    fn of_broker_commands(&self) -> Vec<Metric> {
        let figures = self.brokers.figures();
        let of = |name: &str| figures.get(name).copied().unwrap_or_default() as f64;
        let counter =
            |name, help, of| Metric::new(Kind::Counter, name, help, vec![(Labels::new(), of)]);
        vec![
            counter("broker_messages", "PUB/SUB messages of the broker", of("redis_messages")),
            counter(
                "broker_malformed",
                "PUB/SUB messages of the broker that are malformed",
                of("redis_malformed"),
            ),
            counter(
                "broker_commands_refused",
                "Commands that failed without being sent: the broker is away, or too many wait",
                of("redis_refused"),
            ),
            counter(
                "broker_replies_lost",
                "Commands whose replies are missing: they may have taken effect",
                of("redis_replies_lost"),
            ),
            counter("broker_errors", "Errors in replies of the broker", of("redis_errors")),
            counter(
                "broker_slow_consumers",
                "Times that a server of NATS dropped messages since this node took them too slowly",
                of("nats_slow_consumers"),
            ),
            counter(
                "broker_probes_missed",
                "PUB/SUB connections made anew since their probes did not come",
                of("redis_probes_missed"),
            ),
        ]
    }

    /// The node's size, age and health.
    fn of_the_process(&self) -> Vec<Metric> {
        let (node, gauge) = (&self.node, Metric::gauge);
        let bytes_each = self.bytes_per_connection() as f64;
        vec![
            gauge("bytes_per_connection", "Resident memory over open connections", bytes_each),
            gauge("clients", "Connected clients", node.clients.load(Ordering::Relaxed) as f64),
            gauge("shards", "Threads that hold connections", node.counters.len() as f64),
            gauge(
                "uptime_seconds",
                "Seconds since the start",
                self.started.elapsed().as_secs_f64(),
            ),
            gauge(
                "loop_lag_p99_seconds",
                "p99 of the duration of turns in the last second",
                self.health.loop_lag_p99_us() as f64 / 1e6,
            ),
            gauge(
                "healthy",
                "1 while /health answers 200, else 0",
                f64::from(self.health.fault().is_none()),
            ),
            gauge(
                "ready",
                "1 while /ready answers 200, else 0",
                f64::from(self.health.unready().is_none()),
            ),
            gauge(
                "api_questions",
                "Unanswered questions of the control thread to shards",
                self.control_mail.unanswered() as f64,
            ),
        ]
    }

    /// Metrics of the node as a whole.
    fn others(&self) -> Vec<Metric> {
        let class = |(class, bytes): (&str, u64)| (vec![("class", class.to_owned())], bytes as f64);
        let limit = |(limit, of): (&str, u64)| (vec![("limit", limit.to_owned())], of as f64);
        let dropped = |(of, count): (&&str, &Arc<AtomicU64>)| {
            (vec![("of", (*of).to_owned())], count.load(Ordering::Relaxed) as f64)
        };
        let refused = |(why, count): (&str, u64)| (vec![("reason", why.to_owned())], count as f64);
        let memory = self.memory_classes();
        let limits = self.limits();
        let mut metrics = self.of_the_process();
        metrics.extend([
            Metric::new(
                Kind::Gauge,
                "memory_bytes",
                "Memory by class: resident is the whole process, allocated its part in use; the others are parts of \
                 that, but kernel_sockets, an estimate of the kernel's memory for the sockets",
                memory.map(class).to_vec(),
            ),
            Metric::new(
                Kind::Gauge,
                "limits",
                "Configured and computed limits; 0: no limit",
                limits.map(limit).to_vec(),
            ),
            Metric::new(
                Kind::Counter,
                "admin_refused",
                "Passwords and tokens of the admin page that were refused, by reason",
                self.admin_refusals.counts().map(refused).to_vec(),
            ),
            Metric::new(
                Kind::Counter,
                "lines_dropped",
                "Lines of the log or of SIGUSR1 dropped because their output accepted nothing",
                ["log", "figures"].iter().zip(&self.lines_dropped).map(dropped).collect(),
            ),
        ]);
        metrics.extend(self.proxies());
        metrics.extend(of_hooks(self.hooks.as_deref()));
        metrics.extend(self.tls());
        metrics.extend(match &self.cluster {
            Some(cluster) => nodes(cluster.known(), cluster.counters()),
            None => nodes(1, &Counters::default()),
        });
        metrics
    }

    /// Ends and faults of certificates.
    fn tls(&self) -> Vec<Metric> {
        let now = certificates::unix_now();
        let expiries = self.certificates.expiries();
        let left = |Expiry { name, option, not_after }: &Expiry| {
            let labels = vec![("name", name.clone()), ("option", option.clone())];
            (labels, (not_after - now) as f64)
        };
        vec![
            Metric::new(
                Kind::Gauge,
                "tls_certificate_expiry_seconds",
                "Seconds until a certificate expires, by its first name and its option; below 0: since it has",
                expiries.iter().map(left).collect(),
            ),
            Metric::gauge(
                "tls_faults",
                "Certificates, keys and authorities that could not be used when they were read: the ones before \
                 them are in use",
                self.certificates.faults().len() as f64,
            ),
            Metric::new(
                Kind::Counter,
                "tls_acme_attempts",
                "Attempts to obtain a certificate from the ACME server, by outcome",
                (self.certificates.attempts().into_iter())
                    .map(|(outcome, count)| (vec![("outcome", outcome.to_owned())], count as f64))
                    .collect(),
            ),
        ]
    }

    /// How the application answers, by proxy and event.
    fn proxies(&self) -> Vec<Metric> {
        let endpoints = self.proxies.endpoints();
        // Not every proxy has every event: events that never happened are left out.
        let mut calls = Values::new();
        for endpoint in &endpoints {
            for event in ProxyEvent::ALL {
                let counts = Outcome::ALL.map(|outcome| (outcome, endpoint.count(event, outcome)));
                if counts.iter().all(|(_, count)| *count == 0) {
                    continue;
                }
                calls.extend(counts.into_iter().map(|(outcome, count)| {
                    let labels = vec![
                        ("proxy", endpoint.options.name.clone()),
                        ("event", event.name().to_owned()),
                        ("outcome", outcome.name().to_owned()),
                    ];
                    (labels, count as f64)
                }));
            }
        }
        let gauge = |name: &str, help: &str, of: fn(&Endpoint) -> f64| {
            let value = |endpoint: &Arc<Endpoint>| {
                (vec![("proxy", endpoint.options.name.clone())], of(endpoint))
            };
            Metric::new(Kind::Gauge, name, help, endpoints.iter().map(value).collect())
        };
        vec![
            Metric::new(Kind::Counter, "proxy_calls", "Proxy calls, by outcome", calls),
            gauge("proxy_in_flight", "Proxy calls in flight", |endpoint| {
                endpoint.in_flight() as f64
            }),
            gauge(
                "proxy_circuit",
                "State of the circuit breaker: 0 closed; 1 half-open, some calls probe the endpoint; 2 open, no calls",
                |endpoint| match endpoint.state() {
                    State::Closed => 0.0,
                    State::HalfOpen => 1.0,
                    State::Open => 2.0,
                },
            ),
        ]
    }
}

/// Messages between nodes.
fn nodes(known: usize, counters: &Counters) -> Vec<Metric> {
    let [sent, failed, received] = counters.messages();
    let counter = |name: &str, help: &str, label: &'static str, of: Labelled| {
        let value = |(value, count): (&str, u64)| (vec![(label, value.to_owned())], count as f64);
        Metric::new(Kind::Counter, name, help, of.into_iter().map(value).collect())
    };
    let plain = |name: &str, help: &str, count: &AtomicU64| {
        let values = vec![(Labels::new(), count.load(Ordering::Relaxed) as f64)];
        Metric::new(Kind::Counter, name, help, values)
    };
    vec![
        Metric::gauge("cluster_nodes", "Known nodes, this one included", known as f64),
        counter("cluster_messages_sent", "Messages sent to other nodes, by kind", "kind", sent),
        counter(
            "cluster_messages_failed",
            "Messages to other nodes that were not sent, or perhaps not, by kind",
            "kind",
            failed,
        ),
        counter("cluster_messages_received", "Messages of other nodes, by kind", "kind", received),
        plain(
            "cluster_commands_refused",
            "Commands of other nodes that this node could not carry out",
            &counters.orders_refused,
        ),
        plain(
            "cluster_nodes_forgotten",
            "Nodes forgotten because they were silent",
            &counters.forgotten,
        ),
        plain(
            "cluster_presence_partial",
            "Answers about presence that lack clients of some node, with presence_manager.type = nodes",
            &counters.presence_partial,
        ),
        counter(
            "cluster_surveys",
            "Questions of this node to others, by outcome",
            "outcome",
            counters.surveys(),
        ),
        counter(
            "cluster_survey_answers",
            "Answers of this node to questions of others, by code: 0 answered, 1 failed, 2 invalid or no \
             such session, 3 unknown question, 4 no room",
            "code",
            counters.answers(),
        ),
    ]
}

/// Answers at `path`.
pub(super) fn router(metrics: Metrics, path: &str) -> Router {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(metrics.clone()));
    let registry = Arc::new((registry, metrics));
    let answer = move |headers: HeaderMap| {
        let registry = Arc::clone(&registry);
        async move { response(&registry, &headers) }
    };
    Router::new().route(path, get(answer))
}

/// In the format of OpenMetrics for those who ask for it, else in the older one.
fn response((registry, metrics): &(Registry, Metrics), headers: &HeaderMap) -> Response {
    let mut out = String::new();
    if text::encode(&mut out, registry).is_err() {
        return axum::http::StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let wanted = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or("");
    let is_open = wanted.contains("application/openmetrics-text");
    let more = match metrics.centrifugo_names {
        true => centrifugo::text(metrics, is_open),
        false => String::new(),
    };
    if is_open {
        out.insert_str(out.len() - END.len(), &more);
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        return ([(CONTENT_TYPE, kind)], out).into_response();
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], older(&out) + &more)
        .into_response()
}

/// The last line of OpenMetrics.
const END: &str = "# EOF\n";

/// In the older format a counter's description carries the name that its values have.
fn older(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 4096);
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let counter = |line: &str| {
            let rest = line.strip_prefix("# TYPE ")?;
            Some(rest.strip_suffix(" counter")?.to_owned())
        };
        // HELP stands before TYPE.
        let described = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' '));
        match (described, lines.peek().and_then(|next| counter(next)), counter(line)) {
            (Some((name, help)), Some(of), _) if name == of => {
                out += &format!("# HELP {name}_total {help}\n");
            }
            (_, _, Some(name)) => out += &format!("# TYPE {name}_total counter\n"),
            _ if line == "# EOF" => {}
            _ => {
                out += line;
                out.push('\n');
            }
        }
    }
    out
}

/// Events for the application; zeros where there is no endpoint.
fn of_hooks(of: Option<&Hooks>) -> [Metric; 5] {
    let none = hooks::Figures::default();
    let figures = of.map_or(&none, |hooks| &hooks.figures);
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    let events = hooks::KINDS.iter().zip(&figures.delivered);
    let events = events.map(|(kind, of)| (vec![("event", (*kind).to_owned())], count(of)));
    let posts = ["acknowledged", "failed"].iter().zip(&figures.posts);
    let posts = posts.map(|(outcome, of)| (vec![("outcome", (*outcome).to_owned())], count(of)));
    let lost = vec![(Labels::new(), count(&figures.lost))];
    let (waiting, bytes) = of.map_or((0, 0), Hooks::waiting);
    [
        Metric::new(
            Kind::Counter,
            "hook_events",
            "Events acknowledged by client.hooks.endpoint, by kind",
            events.collect(),
        ),
        Metric::new(
            Kind::Counter,
            "hook_events_lost",
            "Events for client.hooks.endpoint that were lost, since its queue was full",
            lost,
        ),
        Metric::new(
            Kind::Counter,
            "hook_posts",
            "Posts to client.hooks.endpoint; a failed one is repeated",
            posts.collect(),
        ),
        Metric::gauge(
            "hook_events_waiting",
            "Events that client.hooks.endpoint has not acknowledged",
            waiting as f64,
        ),
        Metric::gauge("hook_bytes_waiting", "Bytes of these events", bytes as f64),
    ]
}
