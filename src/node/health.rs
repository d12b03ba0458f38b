//! Whether a node can serve: the health and readiness checks of a load balancer.
//!
//! | check | 503 |
//! | --- | --- |
//! | `/health` | the node itself can't serve: restarting or relieving it may help |
//! | `/ready` | the same, or its broker is away: other nodes may be better off |
//!
//! A broker that is away is away for all nodes, most often: a balancer that then takes all of them out, or an
//! orchestrator that restarts them, would close every connection for nothing. So `/health` stays 200 and names
//! the fault, unless `roost.health_broker` is set.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Map, Value};

use super::broker::Brokers;
use super::certificates::Certificates;
use crate::base::times::Counts;
use crate::shard::NodeState;

/// Beyond what a node is not healthy.
#[derive(Clone, Copy, Debug)]
pub struct Thresholds {
    /// p99 of how long turns worked in a second, microseconds; `None`: whatever it is.
    pub loop_lag_us: Option<u64>,
    /// Connections, of those that may be, in percent.
    pub connections_percent: u64,
    /// A fault of the broker.
    pub broker: bool,
}

/// The thresholds, checked once a second.
pub(super) struct Health {
    brokers: Arc<Brokers>,
    node: Arc<NodeState>,
    thresholds: Thresholds,
    certificates: Arc<Certificates>,
    counted: Mutex<Counts>,
    loop_lag_p99_us: AtomicU64,
}

impl Health {
    /// Nothing was looked at yet.
    pub(super) fn new(
        node: Arc<NodeState>,
        thresholds: Thresholds,
        certificates: Arc<Certificates>,
        brokers: Arc<Brokers>,
    ) -> Self {
        let (counted, loop_lag_p99_us) = (Mutex::default(), AtomicU64::new(0));
        Self { node, thresholds, certificates, counted, loop_lag_p99_us, brokers }
    }

    /// What is wrong with the broker, if anything.
    pub(super) fn broker_fault(&self) -> Option<&'static str> {
        self.brokers.fault()
    }

    /// Why the node is not ready, if it isn't.
    pub(super) fn unready(&self) -> Option<&'static str> {
        self.own_fault().or_else(|| self.broker_fault())
    }

    /// Why the node is not healthy, if it isn't.
    pub(super) fn fault(&self) -> Option<&'static str> {
        let broker = || self.broker_fault().filter(|_| self.thresholds.broker);
        self.own_fault().or_else(broker)
    }

    /// Looks at what happened since the last time.
    pub(super) fn look(&self) {
        let mut counts = Counts::default();
        self.node.loop_lag.iter().for_each(|times| times.add_to(&mut counts));
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let added = counts.since(&counted);
        *counted = counts;
        self.loop_lag_p99_us.store(added.quantile(0.99), Ordering::Relaxed);
    }

    /// p99 of how long turns of all shards worked in the last second, microseconds.
    pub(super) fn loop_lag_p99_us(&self) -> u64 {
        self.loop_lag_p99_us.load(Ordering::Relaxed)
    }

    /// Why the node by itself can't serve, if it can't.
    fn own_fault(&self) -> Option<&'static str> {
        let Self { node, thresholds, .. } = self;
        let open =
            node.open.iter().map(|open| u64::from(open.load(Ordering::Relaxed))).sum::<u64>();
        let clients = node.clients.load(Ordering::Relaxed);
        let room = u64::from(node.options.conns_max) * node.open.len() as u64;
        let limit = node.rules.client.load().connection_limit;
        // Connections that do nothing for a client give way to others.
        let replaceable = node.counters.iter().map(|of| of.connections_replaceable.get());
        let busy = open.saturating_sub(replaceable.sum());
        let is_full = |count: u64, of: u64| count * 100 >= of * thresholds.connections_percent;
        if node.draining.load(Ordering::Relaxed) {
            Some("draining")
        } else if node.memory.is_short() {
            Some("over the memory limit")
        } else if thresholds.loop_lag_us.is_some_and(|max| self.loop_lag_p99_us() > max) {
            Some("the loops lag")
        } else if is_full(busy, room) || limit > 0 && is_full(clients, limit) {
            Some("at the connection limit")
        } else {
            None
        }
    }
}

/// The health check at a path: 200, or 503 with a reason. Certificates that can't be read are listed under
/// `errors`: the ones before them are in use, so the node can serve. A fault of the broker stands under `broker`.
pub(super) fn router(health: Arc<Health>, path: &str) -> Router {
    let answer = move || {
        let (fault, errors) = (health.fault(), health.certificates.faults());
        let broker = health.broker_fault();
        async move { response(fault, &errors, broker) }
    };
    Router::new().route(path, get(answer))
}

/// The readiness check at a path: 200 `{}`, or 503 with a reason.
pub(super) fn ready_router(health: Arc<Health>, path: &str) -> Router {
    let answer = move || {
        let unready = health.unready();
        async move { response(unready, &[], None) }
    };
    Router::new().route(path, get(answer))
}

fn response(
    fault: Option<&'static str>,
    errors: &[String],
    broker: Option<&'static str>,
) -> Response {
    let mut body = Map::new();
    if let Some(why) = fault {
        body.insert("reason".to_owned(), why.into());
    }
    if let Some(why) = broker {
        body.insert("broker".to_owned(), why.into());
    }
    if !errors.is_empty() {
        body.insert("errors".to_owned(), errors.into());
    }
    let status = if fault.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = Value::Object(body).to_string();
    (status, [(CONTENT_TYPE, "application/json")], body).into_response()
}
