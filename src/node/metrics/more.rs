//! Metrics of what surrounds the shards' counters: the process, requests, calls of the server API, software of
//! clients, namespaces.

use std::fmt::Error;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::{BOUNDS_US, Histogram, Labels, Metric, Metrics, Values, put_durations};
use crate::base::counters::{Counter, Kind};
use crate::host::process::Process;
use crate::node::responses::OTHER;
use crate::shard::NamespaceCounters;

impl Metrics {
    /// The metrics.
    pub(super) fn more(&self) -> Vec<Metric> {
        let mut metrics = vec![self.build(), self.responses(), self.software(), self.api_errors()];
        metrics.extend(self.process());
        metrics.extend(self.takeovers());
        metrics.extend(self.by_namespace());
        metrics
    }

    /// Histograms.
    pub(super) fn put_more(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        put_durations(
            encoder,
            "roost_ping_round_trip_seconds",
            "Time from a ping to its pong, to within a turn of the loop and a millisecond",
            &self.node.round_trips,
        )?;
        let help = "Duration of calls of the server API, by method";
        let kind = MetricType::Histogram;
        let mut family = encoder.encode_descriptor("roost_api_call_seconds", help, None, kind)?;
        for (method, times) in self.api.times() {
            let histogram = Histogram::of([times], BOUNDS_US, 1e6);
            histogram.put(family.encode_family(&[("method", method)])?)?;
        }
        Ok(())
    }

    fn build(&self) -> Metric {
        let labels = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        let help = "1, with the version of the program";
        Metric::new(Kind::Gauge, "build_info", help, vec![(labels, 1.0)])
    }

    /// Takeovers by new processes. Their counters go on from one process to the next.
    fn takeovers(&self) -> [Metric; 5] {
        let load = |figure: &AtomicU64| figure.load(Ordering::Relaxed) as f64;
        let of = &self.takeover;
        let metric =
            |kind, name, help, value| Metric::new(kind, name, help, vec![(Labels::new(), value)]);
        [
            metric(
                Kind::Counter,
                "takeovers",
                "Processes that have taken over all connections of the one before, since the first start",
                load(&of.takeovers),
            ),
            metric(
                Kind::Counter,
                "takeovers_failed",
                "Attempts of other processes to take over from this one that failed or were refused",
                load(&of.failed),
            ),
            metric(
                Kind::Gauge,
                "takeover_pause_seconds",
                "Time for which no shard served at the last takeover",
                load(&of.pause_us) / 1e6,
            ),
            metric(
                Kind::Gauge,
                "takeover_connections",
                "Connections that came with the last takeover",
                load(&of.connections),
            ),
            metric(
                Kind::Gauge,
                "takeover_bytes",
                "Bytes of state that came with the last takeover",
                load(&of.bytes),
            ),
        ]
    }

    /// Figures of the process by the names that all exporters give them.
    fn process(&self) -> Vec<Metric> {
        let process = Process::read(self.tables_apart);
        let of = |kind, name: &str, help: &str, value: Option<f64>| {
            let values = value.map(|value| (Labels::new(), value)).into_iter().collect();
            Metric { name: format!("process_{name}"), help: help.to_owned(), kind, values }
        };
        let number = |value: Option<u64>| value.map(|value| value as f64);
        let gauge = |name, help, value| of(Kind::Gauge, name, help, value);
        vec![
            of(
                Kind::Counter,
                "cpu_seconds",
                "Time of CPUs that the process has used, in user and kernel mode",
                process.cpu.map(|cpu| cpu.as_secs_f64()),
            ),
            gauge(
                "resident_memory_bytes",
                "Resident memory of the process",
                number(process.resident_bytes),
            ),
            gauge(
                "virtual_memory_bytes",
                "Address space of the process; most of it was never touched",
                number(process.virtual_bytes),
            ),
            gauge(
                "open_fds",
                "Open descriptors in all descriptor tables of the process; missing on kernels before 6.2",
                number(process.open_fds),
            ),
            gauge(
                "max_fds",
                "Descriptors that all descriptor tables of the process may hold",
                number(process.max_fds),
            ),
            gauge(
                "start_time_seconds",
                "Start of the process, in seconds since 1970",
                Some(self.started_unix as f64),
            ),
        ]
    }

    /// Responses of shards and of the control thread. A status that never occurred is left out.
    fn responses(&self) -> Metric {
        let mut values = Values::new();
        let mut put = |path: &str, status: Option<u16>, count: u64| {
            if count > 0 {
                let status = status.map_or_else(|| "other".to_owned(), |status| status.to_string());
                values.push((vec![("path", path.to_owned()), ("status", status)], count as f64));
            }
        };
        let endpoints = &self.node.options.endpoints;
        let paths = endpoints.iter().map(|endpoint| endpoint.path.as_str()).chain([OTHER]);
        for (at, path) in paths.enumerate() {
            let mut sums: Vec<(Option<u16>, u64)> = Vec::new();
            for of_shard in &self.node.responses {
                for (slot, (status, count)) in of_shard[at].each().enumerate() {
                    match sums.get_mut(slot) {
                        Some((_, sum)) => *sum += count,
                        None => sums.push((status, count)),
                    }
                }
            }
            if path == OTHER {
                self.responses.each(|path, status, count| match (path, sums.iter_mut()) {
                    (OTHER, mut sums) => {
                        if let Some((_, sum)) = sums.find(|(known, _)| *known == status) {
                            *sum += count;
                        }
                    }
                    _ => put(path, status, count),
                });
            }
            sums.into_iter().for_each(|(status, count)| put(path, status, count));
        }
        let help = "Responses to HTTP requests, WebSocket upgrades among them, by path and status";
        Metric::new(Kind::Counter, "http_requests", help, values)
    }

    /// Connected clients by their own words.
    fn software(&self) -> Metric {
        let node = &self.node;
        let values = node.software.ids().map(|id| {
            let sum: u64 = node.software_clients.iter().map(|shard| shard.of(id).get()).sum();
            let (name, version) = node.software.name(id);
            (vec![("name", name.to_owned()), ("version", version.to_owned())], sum as f64)
        });
        let help = "Connected clients by the name and version of their software, as they say it; other: the \
                    table is full, or the text is unusual";
        Metric::new(Kind::Gauge, "clients_by_software", help, values.collect())
    }

    /// Errors of the server API. A code that never occurred is left out.
    fn api_errors(&self) -> Metric {
        let errors = self.api.errors().filter(|(_, _, count)| *count > 0);
        let values = errors.map(|(method, code, count)| {
            (vec![("method", method.to_owned()), ("code", code.to_string())], count as f64)
        });
        let help = "Calls of the server API answered with an error, by method and code";
        Metric::new(Kind::Counter, "api_errors", help, values.collect())
    }

    /// Names of the namespaces that have counters of their own; the last is of those that came later.
    pub(super) fn namespaces(&self) -> Vec<String> {
        let channels = self.node.rules.channels.load();
        let count = self.node.namespaces.first().map_or(0, Vec::len);
        let names = channels.namespaces().iter().take(count.saturating_sub(1));
        names.map(|of| of.name.to_string()).chain(["(later)".to_owned()]).collect()
    }

    /// A counter of namespaces, by namespace.
    pub(super) fn of_namespaces(
        &self,
        name: &str,
        help: &str,
        count: fn(&NamespaceCounters) -> &Counter,
    ) -> Metric {
        let values = self.namespaces().into_iter().enumerate().map(|(at, namespace)| {
            let sum: u64 = self.node.namespaces.iter().map(|shard| count(&shard[at]).get()).sum();
            (vec![("namespace", namespace)], sum as f64)
        });
        Metric::new(Kind::Counter, name, help, values.collect())
    }

    fn by_namespace(&self) -> Vec<Metric> {
        let of = |name, help, count| self.of_namespaces(name, help, count);
        vec![
            of("namespace_publications", "Publications accepted by homes, by namespace", |of| {
                &of.publications
            }),
            of(
                "namespace_deliveries",
                "Deliveries queued for subscribers, by namespace of the channel",
                |of| &of.deliveries,
            ),
            of("slow_clients_closed", "Clients closed as too slow, by namespace", |of| &of.closed),
            of(
                "publications_dropped",
                "Publications dropped for slow clients, oldest first, by namespace",
                |of| &of.dropped,
            ),
            of(
                "publications_conflated",
                "Queued publications replaced by a newer one, by namespace",
                |of| &of.conflated,
            ),
        ]
    }
}
