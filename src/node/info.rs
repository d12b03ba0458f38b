//! A node's identity and figures, as `info` has them and as nodes publish them to each other.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::cluster::control;
use crate::shard::{NodeState, ShardCounters};

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct NodeInfo {
    pub(super) uid: String,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) clients: u64,
    pub(super) users: u64,
    pub(super) channels: u64,
    pub(super) subscriptions: u64,
    /// Seconds since the start.
    pub(super) uptime: f64,
    /// Counters and gauges, if they are known.
    pub(super) figures: Option<NodeFigures>,
    /// What nodes of this project publish beside that, a JSON object; empty for none.
    pub(super) data: String,
}

/// Counters of the last seconds, and gauges.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct NodeFigures {
    /// The seconds.
    pub(super) interval: f64,
    pub(super) items: BTreeMap<String, f64>,
}

impl NodeInfo {
    /// This node's. Users are those of the last count; counters are those since the start.
    pub(super) fn of(node: &NodeState, name: &str, started: Instant) -> Self {
        let sum = |of: fn(&ShardCounters) -> u64| node.counters.iter().map(of).sum::<u64>();
        let homes = sum(|shard| shard.channels_home.get());
        let mut items = BTreeMap::new();
        for shard in &node.counters {
            shard.each(|name, value| *items.entry(name.to_owned()).or_insert(0.0) += value as f64);
        }
        let uptime = started.elapsed().as_secs_f64();
        Self {
            uid: node.rules.node_id.clone(),
            name: name.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            clients: node.clients.load(Ordering::Relaxed),
            users: node.users.load(Ordering::Relaxed),
            channels: homes.saturating_sub(sum(|shard| shard.channels_idle.get())),
            subscriptions: sum(|shard| shard.subscriptions.get()),
            uptime,
            figures: Some(NodeFigures { interval: uptime, items }),
            data: String::new(),
        }
    }

    /// Another node's, as it has published it.
    pub(super) fn of_peer(node: &control::Node) -> Self {
        let figures = node.metrics.as_ref().map(|metrics| NodeFigures {
            interval: metrics.interval,
            items: metrics.items.clone(),
        });
        Self {
            uid: node.uid.clone(),
            name: node.name.clone(),
            version: node.version.clone(),
            clients: node.num_clients.into(),
            users: node.num_users.into(),
            channels: node.num_channels.into(),
            subscriptions: node.num_subs.into(),
            uptime: node.uptime.into(),
            figures,
            data: String::from_utf8(node.data.clone()).unwrap_or_default(),
        }
    }

    /// As it is published to other nodes.
    pub(super) fn into_message(self, with_metrics: bool) -> control::Node {
        let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let metrics = self.figures.filter(|_| with_metrics);
        control::Node {
            uid: self.uid,
            name: self.name,
            version: self.version,
            num_clients: count(self.clients),
            num_users: count(self.users),
            num_channels: count(self.channels),
            num_subs: count(self.subscriptions),
            uptime: self.uptime as u32,
            metrics: metrics
                .map(|NodeFigures { interval, items }| control::Metrics { interval, items }),
            data: self.data.into_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_see_what_a_node_publishes() {
        let figures = NodeFigures { interval: 2.0, items: [("turns".to_owned(), 3.0)].into() };
        let info = NodeInfo {
            uid: "u".into(),
            name: "n".into(),
            version: "1".into(),
            clients: 1,
            users: 2,
            channels: 3,
            subscriptions: 4,
            uptime: 5.0,
            figures: Some(figures),
            data: "{}".into(),
        };
        assert_eq!(NodeInfo::of_peer(&info.clone().into_message(true)), info);
        let short = NodeInfo { figures: None, ..info.clone() };
        assert_eq!(NodeInfo::of_peer(&info.clone().into_message(false)), short);
        let many = NodeInfo { clients: u64::MAX, ..info };
        assert_eq!(many.into_message(false).num_clients, u32::MAX);
    }
}
