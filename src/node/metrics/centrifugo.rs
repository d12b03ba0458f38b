//! Metrics once more by Centrifugo's names (`prometheus.centrifugo_names`), so that boards and alerts that were made
//! for it work. A metric that has no counterpart here is left out, and a label without one is empty.
//!
//! These are written as text: their counters have no `_total` at the end, which the encoder of the others adds.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::Ordering;

use super::{BOUNDS_US, Histogram, Metrics};
use crate::base::form::Transport;
use crate::base::statuses::Statuses;
use crate::base::times::{Counts, Times};
use crate::edge::proxy::ProxyEvent;
use crate::node::proxies::Outcome;
use crate::shard::EndpointKind;
use crate::shard::mail::Method;

/// Labels of Centrifugo's metrics that hold here in one form only.
const ONE_NAMESPACE: (&str, &str) = ("channel_namespace", "");

/// Quantiles of summaries.
const QUANTILES: [f64; 3] = [0.5, 0.99, 0.999];

/// The text of these metrics.
pub(super) fn text(metrics: &Metrics, is_open: bool) -> String {
    let mut page =
        Page { out: String::new(), counter: if is_open { "unknown" } else { "counter" } };
    let sums = Sums::of(metrics);
    page.node(metrics, &sums);
    page.connections(metrics, &sums);
    page.commands(metrics, &sums);
    page.transports(metrics, &sums);
    page.api(metrics);
    page.proxies(metrics);
    page.out
}

/// Durations with their labels.
type Timed<'l, 't> = (Vec<(&'l str, &'l str)>, Vec<&'t Times>);

/// Counters of all shards, summed.
struct Sums(BTreeMap<&'static str, u64>);

impl Sums {
    fn of(metrics: &Metrics) -> Self {
        let mut sums = BTreeMap::new();
        for counters in &metrics.node.counters {
            counters.each(|name, value| *sums.entry(name).or_insert(0) += value);
        }
        Self(sums)
    }

    fn get(&self, name: &str) -> f64 {
        debug_assert!(self.0.contains_key(name), "no counter {name}");
        self.0.get(name).copied().unwrap_or(0) as f64
    }

    /// Counters whose names begin so, by the rest, which is a number.
    fn codes(&self, beginning: &'static str) -> impl Iterator<Item = (&'static str, f64)> {
        self.0.iter().filter_map(move |(name, value)| {
            let code = name.strip_prefix(beginning)?;
            code.parse::<u16>().is_ok().then_some((code, *value as f64))
        })
    }
}

/// The metrics so far.
struct Page {
    out: String,
    /// The type of counters: in OpenMetrics those would need another name.
    counter: &'static str,
}

impl Page {
    fn begin(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a text cannot fail.
        let _ = write!(self.out, "# HELP {name} {help}.\n# TYPE {name} {kind}\n");
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.out += name;
        for (at, (label, of)) in labels.iter().enumerate() {
            let of = of.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.out, "{}{label}=\"{of}\"", if at == 0 { '{' } else { ',' });
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.out, "{end} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.begin(name, "gauge", help);
        self.value(name, &[], value);
    }

    fn counter<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([(&'l str, &'l str); N], f64)>,
    ) {
        self.begin(name, self.counter, help);
        values.into_iter().for_each(|(labels, value)| self.value(name, &labels, value));
    }

    /// Durations, as a histogram and, where boards want it, as a summary too.
    fn durations<'l, 't>(
        &mut self,
        (name, summary): (&str, Option<&str>),
        help: &str,
        values: Vec<Timed<'l, 't>>,
    ) {
        self.begin(name, "histogram", help);
        for (labels, times) in &values {
            let Histogram { sum, count, buckets } =
                Histogram::of(times.iter().copied(), BOUNDS_US, 1e6);
            let mut up_to = 0;
            for (bound, more) in buckets {
                up_to += more;
                let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".to_owned() };
                let labels = [labels.as_slice(), &[("le", &bound)]].concat();
                self.value(&format!("{name}_bucket"), &labels, up_to as f64);
            }
            self.value(&format!("{name}_sum"), labels, sum);
            self.value(&format!("{name}_count"), labels, count as f64);
        }
        let Some(name) = summary else { return };
        self.begin(name, "summary", help);
        for (labels, times) in &values {
            let mut counts = Counts::default();
            times.iter().for_each(|times| times.add_to(&mut counts));
            for quantile in QUANTILES {
                let text = quantile.to_string();
                let labels = [labels.as_slice(), &[("quantile", &text)]].concat();
                self.value(name, &labels, counts.quantile(quantile) as f64 / 1e6);
            }
            self.value(&format!("{name}_sum"), labels, counts.total_us() as f64 / 1e6);
            self.value(&format!("{name}_count"), labels, counts.count() as f64);
        }
    }

    fn node(&mut self, metrics: &Metrics, sums: &Sums) {
        let node = &metrics.node;
        let users = node.users.load(Ordering::Relaxed) as f64;
        let nodes = metrics.cluster.as_ref().map_or(1, |cluster| cluster.known()) as f64;
        for (name, help, value) in [
            ("num_clients", "Connected clients", node.clients.load(Ordering::Relaxed) as f64),
            ("num_users", "Distinct users with connections", users),
            ("num_subscriptions", "Subscriptions", sums.get("subscriptions")),
            ("num_channels", "Channels", sums.get("channels_home") - sums.get("channels_idle")),
            ("num_nodes", "Known nodes, this one included", nodes),
        ] {
            self.gauge(&format!("centrifugo_node_{name}"), help, value);
        }
        self.begin("centrifugo_node_build", "gauge", "1, with the version of the program");
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        self.value("centrifugo_node_build", &version, 1.0);
        let (sent, received) = match &metrics.cluster {
            Some(cluster) => {
                let [sent, _, received] = cluster.counters().messages();
                let sum = |of: Vec<(&str, u64)>| of.iter().map(|(_, count)| *count).sum::<u64>();
                (sum(sent) as f64, sum(received) as f64)
            }
            None => (0.0, 0.0),
        };
        let published = sums.get("publications");
        let arrived = match metrics.brokers.is_empty() {
            true => published,
            false => {
                metrics.brokers.figures().get("redis_messages").copied().unwrap_or_default() as f64
            }
        };
        for (name, help, publications, control) in [
            ("sent", "Messages sent to the broker", published, sent),
            ("received", "Messages received from the broker", arrived, received),
        ] {
            self.counter(
                &format!("centrifugo_node_messages_{name}_count"),
                help,
                [("publication", publications), ("control", control)]
                    .map(|(kind, value)| ([("type", kind), ONE_NAMESPACE], value)),
            );
        }
        let fan_out = node.fan_out.iter().collect();
        self.durations(
            ("centrifugo_node_broadcast_duration_seconds", None),
            "Time from a publication at its home to the write for its last subscriber on a shard",
            vec![(vec![("type", "publication"), ONE_NAMESPACE], fan_out)],
        );
        self.counter::<0>(
            "centrifugo_node_client_connection_limit",
            "Clients refused because of client.connection_limit",
            [([], sums.get("busy_connection_limit"))],
        );
    }

    fn connections(&mut self, metrics: &Metrics, sums: &Sums) {
        let node = &metrics.node;
        let name = "centrifugo_client_connections_inflight";
        self.begin(name, "gauge", "Connected clients, by transport");
        let software = [("client_name", ""), ("client_version", "")];
        for transport in Transport::ALL {
            let clients: u64 = node.counters.iter().map(|of| of.clients(transport).get()).sum();
            let labels = [&[("transport", transport.name())], &software[..]].concat();
            self.value(name, &labels, clients as f64);
        }
        let accepted = |kind: EndpointKind, status: u16| -> f64 {
            let at = node.options.endpoints.iter().position(|endpoint| endpoint.kind == kind);
            let of = |shard: &Vec<Statuses>| -> u64 {
                let counts = at.and_then(|at| shard.get(at)).into_iter().flat_map(Statuses::each);
                counts.filter(|(of, _)| *of == Some(status)).map(|(_, count)| count).sum()
            };
            node.responses.iter().map(of).sum::<u64>() as f64
        };
        self.counter(
            "centrifugo_client_connections_accepted",
            "Connections begun, by transport",
            [
                (Transport::WebSocket, EndpointKind::WebSocket, 101),
                (Transport::HttpStream, EndpointKind::HttpStream, 200),
                (Transport::Sse, EndpointKind::Sse, 200),
                (Transport::UniWebSocket, EndpointKind::UniWebSocket, 101),
                (Transport::UniHttpStream, EndpointKind::UniHttpStream, 200),
                (Transport::UniSse, EndpointKind::UniSse, 200),
            ]
            .map(|(transport, kind, status)| {
                (
                    [("transport", transport.name()), software[0], software[1]],
                    accepted(kind, status),
                )
            }),
        );
        let name = "centrifugo_client_subscriptions_inflight";
        self.begin(name, "gauge", "Subscriptions");
        self.value(name, &[software[0], ONE_NAMESPACE], sums.get("subscriptions"));
        self.counter(
            "centrifugo_client_num_server_disconnects",
            "Sessions that the node ended, by code",
            sums.codes("disconnect_").map(|(code, value)| ([("code", code)], value)),
        );
        self.counter(
            "centrifugo_client_num_server_unsubscribes",
            "Subscriptions that the node ended, by code",
            sums.codes("unsubscribe_")
                .map(|(code, value)| ([("code", code), ONE_NAMESPACE], value)),
        );
        self.durations(
            ("centrifugo_client_ping_pong_duration_seconds", None),
            "Time from a ping to its pong",
            vec![(vec![("transport", "")], node.round_trips.iter().collect())],
        );
    }

    fn commands(&mut self, metrics: &Metrics, sums: &Sums) {
        let of = |at: usize| metrics.node.commands.iter().map(move |shard| &shard[at]).collect();
        let methods = Method::NAMES.into_iter().enumerate();
        self.durations(
            (
                "centrifugo_client_command_duration_seconds_histogram",
                Some("centrifugo_client_command_duration_seconds"),
            ),
            "Latency of commands of clients",
            methods.map(|(at, name)| (vec![("method", name), ONE_NAMESPACE], of(at))).collect(),
        );
        self.counter(
            "centrifugo_client_num_reply_errors",
            "Commands of clients answered with an error, by code",
            sums.codes("error_")
                .map(|(code, value)| ([("method", ""), ("code", code), ONE_NAMESPACE], value)),
        );
        let (all, recovered) = (sums.get("recoveries"), sums.get("recovered"));
        self.counter(
            "centrifugo_client_recover",
            "Subscriptions that requested recovery",
            [("yes", recovered), ("no", all - recovered)]
                .map(|(is, value)| ([("recovered", is), ONE_NAMESPACE], value)),
        );
    }

    /// Messages are not counted by transport.
    fn transports(&mut self, _: &Metrics, sums: &Sums) {
        for (name, help, value) in [
            ("messages_sent", "Messages queued for clients", "messages_sent"),
            ("messages_received", "WebSocket messages received", "messages_received"),
            ("messages_sent_size", "Bytes written to sockets, framing included", "bytes_sent"),
            (
                "messages_received_size",
                "Bytes read from sockets, framing included",
                "bytes_received",
            ),
        ] {
            self.counter(
                &format!("centrifugo_transport_{name}"),
                help,
                [([("transport", ""), ("frame_type", ""), ONE_NAMESPACE], sums.get(value))],
            );
        }
    }

    fn api(&mut self, metrics: &Metrics) {
        let times = metrics.api.times();
        self.durations(
            (
                "centrifugo_api_command_duration_seconds_histogram",
                Some("centrifugo_api_command_duration_seconds"),
            ),
            "Duration of calls of the server API",
            times
                .map(|(method, times)| {
                    (vec![("protocol", "http"), ("method", method)], vec![times])
                })
                .collect(),
        );
        self.counter(
            "centrifugo_api_command_errors_total",
            "Calls of the server API answered with an error",
            metrics.api.errors().filter(|(_, _, count)| *count > 0).map(|(method, _, count)| {
                ([("protocol", "http"), ("method", method)], count as f64)
            }),
        );
    }

    fn proxies(&mut self, metrics: &Metrics) {
        let endpoints = metrics.proxies.endpoints();
        let labels = |name| vec![("protocol", "http"), ("type", ""), ("name", name)];
        self.durations(
            (
                "centrifugo_proxy_duration_seconds_histogram",
                Some("centrifugo_proxy_duration_seconds"),
            ),
            "Duration of proxy calls",
            endpoints.iter().map(|of| (labels(&of.options.name), vec![&of.durations])).collect(),
        );
        let mut errors = Vec::new();
        for endpoint in &endpoints {
            for event in ProxyEvent::ALL {
                let failed = [Outcome::Failed, Outcome::Timeout, Outcome::Rejected]
                    .map(|outcome| endpoint.count(event, outcome));
                let labels = [
                    ("protocol", "http"),
                    ("type", event.name()),
                    ("name", endpoint.options.name.as_str()),
                ];
                errors.push((labels, failed.iter().sum::<u64>() as f64));
            }
        }
        self.counter("centrifugo_proxy_errors", "Proxy calls that failed", errors);
        let name = "centrifugo_proxy_inflight_requests";
        self.begin(name, "gauge", "Proxy calls in flight");
        for endpoint in &endpoints {
            self.value(name, &labels(&endpoint.options.name), endpoint.in_flight() as f64);
        }
    }
}
