//! What things cost, as measured (`costs.tsv`), and what a system of a given size needs by that.

use std::collections::HashMap;

use super::plan::SHARD_DESCRIPTORS_RESERVED;
use crate::base::limits::SHARDS_MAX;

const TABLE: &str = include_str!("costs.tsv");

/// The measured costs, by name.
#[derive(Clone, Debug)]
pub struct Costs(HashMap<&'static str, f64>);

impl Costs {
    /// Those of this version. A row that is no row is a fault of the table, which a test finds.
    pub fn measured() -> Self {
        let rows = TABLE.lines().filter(|line| !line.starts_with('#'));
        let row = |line: &'static str| {
            let mut cells = line.split('\t');
            Some((cells.next()?, cells.next()?.parse().ok()?))
        };
        Self(rows.filter_map(row).collect())
    }

    fn of(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(0.0)
    }
}

/// A system to size.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Connections in all.
    pub connections: u64,
    /// Channels in all.
    pub channels: u64,
    /// Subscriptions of each connection.
    pub subscriptions: u64,
    /// Publications that each channel keeps.
    pub history: u64,
    /// Bytes of a payload.
    pub payload: u64,
    /// Channels have presence.
    pub presence: bool,
    /// Clients speak TLS with the node.
    pub tls: bool,
    /// Channels are kept in Redis.
    pub redis: bool,
    /// Nodes among which connections are divided.
    pub nodes: u64,
    /// Messages published a second, in all.
    pub rate: f64,
    /// New connections a second, after an outage for example.
    pub logins: f64,
    /// Seconds between two pings; 0: none.
    pub ping_interval: u64,
    /// Shards of a node, if they are given.
    pub shards: Option<usize>,
    /// Descriptors that a process may have.
    pub descriptors: u64,
    /// Ports that one address of a client or proxy has.
    pub ports: u64,
}

/// What each node of it needs, and Redis.
#[derive(Clone, Debug, PartialEq)]
pub struct Needs {
    /// Name and bytes of each class of memory; the kernel's share is the last.
    pub memory: Vec<(&'static str, u64)>,
    /// Resident memory of the process.
    pub process_bytes: u64,
    /// That and the kernel's share.
    pub total_bytes: u64,
    /// Threads that hold connections.
    pub shards: usize,
    /// Descriptors of the process.
    pub descriptors: u64,
    /// Descriptors of one table, when each shard has its own.
    pub descriptors_of_shard: u64,
    /// Addresses that a proxy in front needs for its connections to a node.
    pub addresses: u64,
    /// Deliveries a second.
    pub deliveries: f64,
    /// Bits a second towards clients.
    pub bits_out: f64,
    /// Bits a second from clients.
    pub bits_in: f64,
    /// Cores for deliveries one by one, as they are when messages come alone.
    pub cores: f64,
    /// Cores when messages come in bursts and share writes.
    pub cores_least: f64,
    /// Memory of Redis, where there is one.
    pub redis_bytes: u64,
}

/// Sizes one node of a system.
pub fn needs(wanted: &Wanted, costs: &Costs) -> Needs {
    let nodes = wanted.nodes.max(1);
    let connections = wanted.connections.div_ceil(nodes);
    // A channel has subscribers on all nodes, and without Redis there is one node.
    let channels = wanted.channels;
    let subscribers_each = wanted.connections * wanted.subscriptions / channels.max(1);
    let cpu = cpu_of(wanted, costs, connections, subscribers_each);
    let shards = shards_for(wanted, connections, cpu.most);
    let memory = memory_of(wanted, costs, (connections, channels, shards));
    let process_bytes = memory.iter().filter(|(class, _)| *class != KERNEL).map(|(_, b)| b).sum();
    let total_bytes = memory.iter().map(|(_, bytes)| bytes).sum();
    let reserved = SHARD_DESCRIPTORS_RESERVED * shards as u64;
    Needs {
        process_bytes,
        total_bytes,
        shards,
        descriptors: connections + reserved,
        descriptors_of_shard: connections.div_ceil(shards as u64) * 103 / 100
            + SHARD_DESCRIPTORS_RESERVED,
        addresses: connections.div_ceil(wanted.ports.max(1)),
        deliveries: cpu.deliveries,
        bits_out: 8.0 * cpu.bytes_out,
        bits_in: 8.0 * cpu.bytes_in,
        cores: cpu.most,
        cores_least: cpu.least,
        redis_bytes: redis_of(wanted, costs),
        memory,
    }
}

const KERNEL: &str = "kernel: sockets";

fn bytes(count: u64, each: f64) -> u64 {
    (count as f64 * each) as u64
}

fn memory_of(
    wanted: &Wanted,
    costs: &Costs,
    (connections, channels, shards): (u64, u64, usize),
) -> Vec<(&'static str, u64)> {
    let further = connections * wanted.subscriptions.saturating_sub(1);
    let entries = connections * wanted.subscriptions;
    let records = channels * wanted.history;
    let record = (wanted.payload as f64 + costs.of("record_bytes")) * costs.of("resident_share");
    let kept_here = if wanted.redis { 0 } else { records };
    let process = costs.of("process_bytes") + shards as f64 * costs.of("shard_bytes");
    let mut classes = vec![
        ("process and shards", process as u64),
        ("clients", bytes(connections, costs.of("client_bytes"))),
        ("further subscriptions", bytes(further, costs.of("subscription_bytes"))),
        ("channels", bytes(channels.saturating_sub(1), costs.of("channel_bytes"))),
    ];
    if wanted.presence && !wanted.redis {
        classes.push(("presence", bytes(entries, costs.of("presence_bytes"))));
    }
    if wanted.tls {
        classes.push(("TLS", bytes(connections, costs.of("tls_bytes"))));
    }
    classes.push(("history", bytes(kept_here, record)));
    classes.push((KERNEL, bytes(connections, costs.of("kernel_bytes"))));
    classes.retain(|(_, bytes)| *bytes > 0);
    classes
}

/// Processor time and bytes of a second.
struct Cpu {
    deliveries: f64,
    bytes_out: f64,
    bytes_in: f64,
    most: f64,
    least: f64,
}

fn cpu_of(wanted: &Wanted, costs: &Costs, connections: u64, subscribers: u64) -> Cpu {
    let nodes = wanted.nodes.max(1) as f64;
    let deliveries = wanted.rate * subscribers as f64 / nodes;
    let share = if wanted.tls { costs.of("tls_delivery_share") } else { 1.0 };
    let pings = match wanted.ping_interval {
        0 => 0.0,
        seconds => connections as f64 / seconds as f64,
    };
    let logins = if wanted.tls { wanted.logins / nodes } else { 0.0 };
    let other_us = pings * costs.of("ping_us") + logins * costs.of("handshake_us");
    let most = (deliveries * costs.of("delivery_us") * share + other_us) / 1e6;
    let least = (deliveries * costs.of("burst_delivery_us") * share + other_us) / 1e6;
    let record = if wanted.tls { costs.of("tls_record_bytes") } else { 0.0 };
    let packet = costs.of("packet_bytes") + record;
    let each = wanted.payload as f64 + costs.of("envelope_bytes") + packet;
    // Each ping and each pong is a frame of a few bytes, and what comes is acknowledged.
    let ping = packet + 4.0;
    Cpu {
        deliveries,
        bytes_out: deliveries * each + pings * (ping + costs.of("packet_bytes")),
        bytes_in: deliveries * costs.of("packet_bytes") + pings * (ping + 4.0),
        most,
        least,
    }
}

/// As many as cores that are needed, or as descriptor tables; one may be half full of work.
fn shards_for(wanted: &Wanted, connections: u64, cores: f64) -> usize {
    if let Some(shards) = wanted.shards {
        return shards.clamp(1, SHARDS_MAX);
    }
    let room = wanted.descriptors.saturating_sub(SHARD_DESCRIPTORS_RESERVED).max(1);
    let tables = (connections * 103 / 100).div_ceil(room);
    let busy = (cores / 0.5).ceil() as u64;
    (tables.max(busy).max(1) as usize).min(SHARDS_MAX)
}

fn redis_of(wanted: &Wanted, costs: &Costs) -> u64 {
    if !wanted.redis {
        return 0;
    }
    // Redis allocates the first block of a stream as a whole.
    let record = wanted.payload as f64 + costs.of("redis_record_bytes");
    let stream = (wanted.history as f64 * record).max(costs.of("redis_block_bytes"));
    let entries = if wanted.presence { wanted.connections * wanted.subscriptions } else { 0 };
    let streams = if wanted.history > 0 { wanted.channels } else { 0 };
    bytes(streams, costs.of("redis_channel_bytes") + stream)
        + bytes(entries, costs.of("redis_presence_bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::plan::KERNEL_BYTES_PER_CONNECTION;

    fn wanted(connections: u64) -> Wanted {
        Wanted {
            connections,
            channels: 1,
            subscriptions: 1,
            history: 0,
            payload: 128,
            presence: false,
            tls: false,
            redis: false,
            nodes: 1,
            rate: 0.0,
            logins: 0.0,
            ping_interval: 25,
            shards: None,
            descriptors: 1_000_000,
            ports: 28_232,
        }
    }

    #[test]
    fn the_table_is_whole() {
        let rows: Vec<&str> = TABLE.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(Costs::measured().0.len(), rows.len());
        for row in rows {
            let cells: Vec<&str> = row.split('\t').collect();
            assert_eq!(cells.len(), 5, "{row}");
            assert!(cells[1].parse::<f64>().is_ok_and(|value| value > 0.0), "{row}");
            let has_source = cells[3].starts_with("tools/") || cells[3] == "by definition";
            assert!(matches!(cells[2], "B" | "us" | "1") && has_source, "{row}");
        }
    }

    #[test]
    fn every_cost_that_is_used_is_in_the_table() {
        let source = include_str!("costs.rs");
        let used = source.split("costs.of(\"").skip(1).filter_map(|rest| rest.split('"').next());
        let costs = Costs::measured();
        for name in used.filter(|name| !name.contains(')')) {
            assert!(costs.0.contains_key(name), "{name}");
        }
    }

    #[test]
    fn more_needs_more() {
        let costs = Costs::measured();
        let total = |wanted: &Wanted| needs(wanted, &costs).total_bytes;
        let small = total(&wanted(1_000));
        let base = needs(&wanted(1_000_000), &costs);
        assert!(base.total_bytes > small);
        // The bound of memory that a node keeps counts with the same.
        assert_eq!(costs.of("kernel_bytes"), KERNEL_BYTES_PER_CONNECTION as f64);
        let kernel = base.memory.last().unwrap();
        assert_eq!(*kernel, (KERNEL, 4_000_000_000));
        assert_eq!(base.total_bytes - base.process_bytes, kernel.1);
        for more in [
            Wanted { tls: true, ..wanted(1_000_000) },
            Wanted { presence: true, ..wanted(1_000_000) },
            Wanted { channels: 10_000, history: 100, ..wanted(1_000_000) },
            Wanted { subscriptions: 3, ..wanted(1_000_000) },
        ] {
            assert!(total(&more) > base.total_bytes, "{more:?}");
        }
    }

    #[test]
    fn shards_come_from_descriptors_or_from_work() {
        let costs = Costs::measured();
        let shards = |wanted: Wanted| needs(&wanted, &costs).shards;
        assert_eq!(shards(wanted(20_000)), 1);
        assert_eq!(shards(Wanted { descriptors: 20_000, ..wanted(100_000) }), 6);
        assert_eq!(shards(Wanted { shards: Some(3), ..wanted(100_000) }), 3);
        assert!(shards(Wanted { rate: 10.0, ..wanted(100_000) }) > 4);
    }

    #[test]
    fn redis_keeps_histories_and_presence() {
        let costs = Costs::measured();
        let with = Wanted { redis: true, presence: true, history: 10, channels: 5, ..wanted(100) };
        let without = Wanted { redis: false, ..with.clone() };
        let (with, without) = (needs(&with, &costs), needs(&without, &costs));
        assert!(with.redis_bytes > 0 && without.redis_bytes == 0);
        assert!(with.process_bytes < without.process_bytes);
    }

    #[test]
    fn a_delivery_has_its_bytes_and_its_time() {
        let costs = Costs::measured();
        let sent = needs(&Wanted { rate: 1.0, ping_interval: 0, ..wanted(1_000) }, &costs);
        assert_eq!(sent.deliveries, 1_000.0);
        assert_eq!(sent.bits_out, 8.0 * 1_000.0 * (128.0 + 51.0 + 66.0));
        assert!(sent.cores > sent.cores_least && sent.cores < 0.01);
    }
}
