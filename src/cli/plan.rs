//! `roost plan`: what a system of a given size needs, from measured costs.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;

use super::say;
use crate::host::costs::{Costs, Needs, Wanted, needs};
use crate::host::facts::Facts;
use crate::host::plan::grouped;

/// Arguments of `roost plan`.
#[derive(Debug, clap::Args)]
pub(super) struct PlanArgs {
    /// Connections in all.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub connections: u64,
    /// Channels in all.
    #[arg(long, value_name = "C", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub channels: u64,
    /// Subscriptions of each connection.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub subscriptions: u64,
    /// Publications that each channel keeps.
    #[arg(long, value_name = "H", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    pub history: u64,
    /// Bytes of a publication's data.
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = clap::value_parser!(u64).range(..=64_000_000))]
    pub payload: u64,
    /// Channels keep presence.
    #[arg(long)]
    pub presence: bool,
    /// Publications a second, over all channels.
    #[arg(long, value_name = "N", default_value_t = 0.0, value_parser = rate)]
    pub rate: f64,
    /// Clients speak TLS with the node.
    #[arg(long)]
    pub tls: bool,
    /// New connections a second, after an outage for example.
    #[arg(long, value_name = "N", default_value_t = 0.0, value_parser = rate)]
    pub logins: f64,
    /// Interval of pings; 0: none.
    #[arg(long, value_name = "TIME", default_value = "25s", value_parser = interval)]
    pub ping_interval: Duration,
    /// Channels and presence are kept in Redis.
    #[arg(long)]
    pub redis: bool,
    /// Nodes among which connections are divided; more than one keep channels in Redis.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub nodes: u64,
    /// Shards of a node; by default as many as its descriptors or its work want.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=253))]
    pub shards: Option<u16>,
    /// Limit of descriptors of a process; by default this host's.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(64..))]
    pub descriptors: Option<u64>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate >= 0.0);
    rate.ok_or_else(|| "expected a number from 0".to_owned())
}

fn interval(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "expected a duration such as 25s, or 0".to_owned())
}

/// Ports of an address, where this host's are not known.
const PORTS: u64 = 28_232;

pub(super) fn run(arguments: &PlanArgs) -> ExitCode {
    let facts = Facts::read();
    let wanted = Wanted {
        connections: arguments.connections,
        channels: arguments.channels,
        subscriptions: arguments.subscriptions,
        history: arguments.history,
        payload: arguments.payload,
        presence: arguments.presence,
        tls: arguments.tls,
        redis: arguments.redis || arguments.nodes > 1,
        nodes: arguments.nodes,
        rate: arguments.rate,
        logins: arguments.logins,
        ping_interval: arguments.ping_interval.as_secs(),
        shards: arguments.shards.map(usize::from),
        descriptors: arguments.descriptors.unwrap_or_else(|| facts.table_descriptors_max()),
        ports: PORTS,
    };
    let needs = needs(&wanted, &Costs::measured());
    match arguments.json {
        true => say(&format!("{:#}\n", in_json(&needs))),
        false => say(&text(&wanted, &needs)),
    }
    ExitCode::SUCCESS
}

fn in_json(needs: &Needs) -> serde_json::Value {
    let classes: serde_json::Map<_, _> =
        needs.memory.iter().map(|(class, bytes)| ((*class).to_owned(), (*bytes).into())).collect();
    json!({
        "memory": classes,
        "process_bytes": needs.process_bytes,
        "total_bytes": needs.total_bytes,
        "shards": needs.shards,
        "descriptors": needs.descriptors,
        "descriptors_of_shard": needs.descriptors_of_shard,
        "proxy_addresses": needs.addresses,
        "deliveries_per_second": needs.deliveries,
        "bits_out_per_second": needs.bits_out,
        "bits_in_per_second": needs.bits_in,
        "cores": needs.cores,
        "cores_least": needs.cores_least,
        "redis_bytes": needs.redis_bytes,
    })
}

fn text(wanted: &Wanted, needs: &Needs) -> String {
    let each = if wanted.nodes > 1 { "for each of the nodes" } else { "for the node" };
    let mut text = format!("memory {each}\n");
    let mut line = |name: &str, value: String| {
        text += &format!("  {name:<34}{value:>14}\n");
    };
    for (class, bytes) in &needs.memory {
        line(class, size(*bytes));
    }
    line("in all", size(needs.total_bytes));
    line("of it the process (roost.memory_limit", String::new());
    line("  counts the kernel's share, too)", size(needs.process_bytes));
    text += "\ndescriptors, shards, ports\n";
    let mut line = |name: &str, value: String| {
        text += &format!("  {name:<34}{value:>14}\n");
    };
    line("shards (roost.shards)", grouped(needs.shards as u64));
    line("descriptors of a shard's table", grouped(needs.descriptors_of_shard));
    line("descriptors in all", grouped(needs.descriptors));
    line("addresses of a proxy in front", grouped(needs.addresses));
    text += "\neach second\n";
    let mut line = |name: &str, value: String| {
        text += &format!("  {name:<34}{value:>14}\n");
    };
    line("deliveries", grouped(needs.deliveries as u64));
    line("to clients", bits(needs.bits_out));
    line("from clients", bits(needs.bits_in));
    line("cores, messages one by one", format!("{:.2}", needs.cores));
    line("cores, messages in bursts", format!("{:.2}", needs.cores_least));
    if wanted.redis {
        line("memory of Redis", size(needs.redis_bytes));
    }
    text += "\nCosts are measured on one machine (src/host/costs.tsv): memory holds within 10 %, times are\n\
             of that machine. Check the host with `roost tune --connections N`.\n";
    text
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.0} KB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

fn bits(bits: f64) -> String {
    match bits {
        0.0..1e6 => format!("{:.0} kbit/s", bits / 1e3),
        1e6..1e9 => format!("{:.1} Mbit/s", bits / 1e6),
        _ => format!("{:.2} Gbit/s", bits / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_rates_have_units() {
        assert_eq!(
            [size(512), size(12_800_000), size(4_168_000_000)],
            ["1 KB", "12.8 MB", "4.17 GB"]
        );
        assert_eq!(
            [bits(512.0), bits(2.5e6), bits(3e9)],
            ["1 kbit/s", "2.5 Mbit/s", "3.00 Gbit/s"]
        );
        assert!(rate("-1").is_err() && rate("nan").is_err() && rate("1e3").is_ok());
    }
}
