//! How many shards, how many connections on each, and which limit binds first.

use super::facts::Facts;
use crate::base::limits::SHARDS_MAX;

/// Kernel memory of one idle TCP connection registered with epoll, bytes (measured on Linux 6.18).
pub const KERNEL_BYTES_PER_CONNECTION: u64 = 4_000;

/// Kernel memory of what waits there for a client that takes nothing, beside that, bytes (`tools/net/run --only
/// slow`, with the default of `roost.notsent_lowat`).
pub const KERNEL_BYTES_PER_QUEUE: u64 = 21_000;

/// User-space memory of one connection with a token and a subscription, bytes, rounded up.
pub const USER_BYTES_PER_CONNECTION: u64 = 400;

/// The same for TLS beside that: 137 to 201 in the record layer, by the suite, and its place.
pub const TLS_BYTES_PER_CONNECTION: u64 = 224;

/// Bytes of a TLS handshake under way at most: with X25519MLKEM768.
pub const HANDSHAKE_BYTES: u64 = 11_500;

/// Descriptors of its own that each shard keeps free of connections: epoll, listeners, and the
/// accepted socket that is on its way to another shard.
pub const SHARD_DESCRIPTORS_RESERVED: u64 = 32;

/// Connections that automatic planning aims at when no limit is configured.
pub const TARGET_CONNECTIONS_DEFAULT: u64 = 1_000_000;

/// Per cent of each shard's room that stays above its soft limit: the kernel places connections on
/// listeners by hash, a few per cent unevenly, and a shard above its soft limit passes them on.
const HEADROOM_PERCENT: u64 = 3;

/// The operator's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shards {
    /// As many as cores that the process may use.
    Cores,
    /// As `Cores`, grown when one descriptor table for each core is too small for the target.
    Auto,
    /// Exactly so many, 1 to [`SHARDS_MAX`].
    Count(usize),
}

/// How many shards there are and what each may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardPlan {
    /// Threads to start, 1 to [`SHARDS_MAX`].
    pub shards: usize,
    /// Above so many connections a shard passes new ones to the emptiest.
    pub conns_per_shard_soft: usize,
    /// So many connections fit into a shard's descriptor table; at least the soft limit.
    pub conns_per_shard_hard: usize,
    /// Connections that the plan was made for.
    pub target_connections: u64,
}

impl ShardPlan {
    /// Connections that all descriptor tables together hold.
    pub fn connections_max(&self) -> u64 {
        self.shards as u64 * self.conns_per_shard_hard as u64
    }

    /// True when the target fits without counting on perfectly even placement.
    pub fn reaches_target(&self) -> bool {
        self.shards as u64 * self.conns_per_shard_soft as u64 >= self.target_connections
    }

    fn of(shards: usize, target_connections: u64, facts: &Facts) -> Self {
        // Slots are 32-bit numbers, so a table of "unlimited" size ends there.
        let table = facts.table_descriptors_max().min(u64::from(u32::MAX) >> 1);
        // One table has the reserves of all shards, and its rest is shared among them.
        let sharing = if facts.tables_apart { 1 } else { shards as u64 };
        let reserved = descriptors_inherited(shards) + sharing * SHARD_DESCRIPTORS_RESERVED;
        let hard = (table.saturating_sub(reserved) / sharing).max(1);
        let soft = (hard - hard * HEADROOM_PERCENT / 100).max(1);
        Self {
            shards,
            conns_per_shard_soft: soft as usize,
            conns_per_shard_hard: hard as usize,
            target_connections,
        }
    }
}

/// Descriptors that every table starts with, because they are made before the tables part: for each
/// shard a waker and the two ends of the socketpair that passes descriptors; standard streams,
/// signal pipe, control runtime, logs, and what names the process to tools.
pub fn descriptors_inherited(shards: usize) -> u64 {
    3 * shards as u64 + 20
}

/// Plans the shards. `target_connections`: `client.connection_limit` where it is set.
///
/// RLIMIT_NOFILE counts for each shard, since each has its own descriptor table, or once for all where none
/// may have one; [`Facts`] must
/// have been read after the limit was raised as far as it goes. `Auto` takes the fewest shards, not
/// below the cores, that hold the target, and where none do, the number that holds the most.
pub fn plan_shards(wanted: Shards, target_connections: Option<u64>, facts: &Facts) -> ShardPlan {
    let target = target_connections.unwrap_or_else(|| {
        let memory = facts.memory_limit_default_bytes().unwrap_or(u64::MAX);
        TARGET_CONNECTIONS_DEFAULT.min(connections_in(memory))
    });
    let cores = facts.cores().clamp(1, SHARDS_MAX);
    match wanted {
        Shards::Cores => ShardPlan::of(cores, target, facts),
        Shards::Count(count) => ShardPlan::of(count.clamp(1, SHARDS_MAX), target, facts),
        Shards::Auto => {
            let plans = || (cores..=SHARDS_MAX).map(|shards| ShardPlan::of(shards, target, facts));
            plans().find(ShardPlan::reaches_target).unwrap_or_else(|| {
                // Each shard more costs every table three descriptors, so more is not always more.
                plans().fold(ShardPlan::of(cores, target, facts), |best, plan| {
                    if plan.connections_max() > best.connections_max() { plan } else { best }
                })
            })
        }
    }
}

/// Whether shards stay on a CPU each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// Where the process has its CPUs for itself.
    Auto,
    /// Yes.
    On,
    /// No.
    Off,
}

/// The CPUs of the shards, in their order, and why, for the operator. No CPUs: the scheduler chooses.
///
/// A pinned shard keeps its caches, and can't leave a CPU that somebody else is using.
pub fn pin_shards(wanted: Pin, shards: usize, facts: &Facts) -> (Vec<usize>, String) {
    let on_cpus = || {
        let cpus: Vec<usize> = facts.cpus.iter().copied().cycle().take(shards).collect();
        let shown: Vec<String> = cpus.iter().take(8).map(usize::to_string).collect();
        let more = if cpus.len() > shown.len() { ", ..." } else { "" };
        (format!("shards are pinned to CPUs {}{more}", shown.join(", ")), cpus)
    };
    match (wanted, facts.own_cpus()) {
        (Pin::On, _) => {
            let (line, cpus) = on_cpus();
            (cpus, format!("{line}, as roost.pin says"))
        }
        (Pin::Auto, Some(why)) => {
            let (line, cpus) = on_cpus();
            (
                cpus,
                format!(
                    "{line}: the node has its CPUs for itself, since {why} (roost.pin is auto)"
                ),
            )
        }
        (Pin::Auto, None) => {
            let why = "other processes may use its CPUs (roost.pin is auto)";
            (Vec::new(), format!("shards are not pinned to CPUs: {why}"))
        }
        (Pin::Off, _) => {
            (Vec::new(), "shards are not pinned to CPUs, as roost.pin says".to_owned())
        }
    }
}

/// Connections that `bytes` of memory are enough for, kernel included.
pub fn connections_in(bytes: u64) -> u64 {
    bytes / (KERNEL_BYTES_PER_CONNECTION + USER_BYTES_PER_CONNECTION)
}

/// Memory that so many connections need, bytes, kernel included.
pub fn memory_for(connections: u64) -> u64 {
    connections.saturating_mul(KERNEL_BYTES_PER_CONNECTION + USER_BYTES_PER_CONNECTION)
}

/// One limit of the machine in connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// `descriptors`, `open files`, `epoll`, `memory`, `conntrack` or `ports`.
    pub name: &'static str,
    /// Connections that it allows; `None`: it does not bound a server's connections here.
    pub connections: Option<u64>,
    /// Where the number comes from.
    pub reason: String,
    /// Advice for more connections; empty when there is none.
    pub advice: String,
}

/// The capacity by each limit; made by [`capacity`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Every limit, in the order in which it is printed.
    pub limits: Vec<Limit>,
}

impl Capacity {
    /// The limit that is met first, and the connections that it allows.
    pub fn binding(&self) -> Option<(&Limit, u64)> {
        self.limits
            .iter()
            .filter_map(|limit| Some((limit, limit.connections?)))
            .min_by_key(|&(_, connections)| connections)
    }

    /// Lines for people, without line ends: what binds first and what to do, then each limit.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::with_capacity(self.limits.len() + 1);
        if let Some((limit, connections)) = self.binding() {
            let advice = if limit.advice.is_empty() {
                String::new()
            } else {
                format!("; for more: {}", limit.advice)
            };
            lines.push(format!(
                "up to {} connections; {} binds first{advice}",
                grouped(connections),
                limit.name
            ));
        }
        lines.extend(self.limits.iter().map(|limit| {
            let connections = limit.connections.map_or_else(|| "no bound".to_owned(), grouped);
            format!("  {:<12} {connections:>13}  {}", limit.name, limit.reason)
        }));
        lines
    }
}

/// What a connection takes of the memory, in words.
fn memory_reason(limit_bytes: u64, handshakes: Option<u64>) -> String {
    let (megabytes, plain) =
        (grouped(limit_bytes / 1_000_000), KERNEL_BYTES_PER_CONNECTION + USER_BYTES_PER_CONNECTION);
    let Some(handshakes) = handshakes else {
        return format!(
            "{megabytes} MB, {plain} B for each connection (kernel {KERNEL_BYTES_PER_CONNECTION}, here \
             {USER_BYTES_PER_CONNECTION})"
        );
    };
    format!(
        "{megabytes} MB, {} B for each connection (kernel {KERNEL_BYTES_PER_CONNECTION}, here \
         {USER_BYTES_PER_CONNECTION}, TLS {TLS_BYTES_PER_CONNECTION}); up to {} handshakes under way take {} \
         MB of it",
        plain + TLS_BYTES_PER_CONNECTION,
        grouped(handshakes),
        grouped(handshakes.saturating_mul(HANDSHAKE_BYTES) / 1_000_000)
    )
}

/// The capacity by each limit of the machine under this plan.
///
/// `handshakes`: TLS handshakes that may be under way, if connections are those of TLS.
pub fn capacity(
    facts: &Facts,
    plan: &ShardPlan,
    memory_limit_bytes: u64,
    handshakes: Option<u64>,
) -> Capacity {
    let mut limits = vec![
        Limit {
            name: "descriptors",
            connections: Some(plan.connections_max()),
            reason: match facts.tables_apart {
                true => format!(
                    "{} shards, each with a table of its own of {} descriptors (hard RLIMIT_NOFILE)",
                    plan.shards,
                    facts.table_descriptors_max()
                ),
                false => format!(
                    "{} shards share one table of {} descriptors (hard RLIMIT_NOFILE): unshare(2) is \
                     forbidden here",
                    plan.shards,
                    facts.table_descriptors_max()
                ),
            },
            advice: if !facts.tables_apart {
                "a higher hard limit (LimitNOFILE=, ulimit -Hn), or a seccomp profile that allows \
                 unshare(2)"
                    .to_owned()
            } else if !plan.reaches_target() && plan.shards < SHARDS_MAX {
                "--shards auto, or a higher hard limit (LimitNOFILE=, ulimit -Hn)".to_owned()
            } else if plan.shards < SHARDS_MAX {
                // This is what `auto` would aim at: it takes no more shards by itself.
                "a number for --shards, or a higher hard limit (LimitNOFILE=, ulimit -Hn)"
                    .to_owned()
            } else {
                "a higher hard limit (LimitNOFILE=, ulimit -Hn)".to_owned()
            },
        },
        Limit {
            name: "memory",
            connections: Some(match handshakes {
                None => connections_in(memory_limit_bytes),
                Some(_) => {
                    memory_limit_bytes
                        / (KERNEL_BYTES_PER_CONNECTION
                            + USER_BYTES_PER_CONNECTION
                            + TLS_BYTES_PER_CONNECTION)
                }
            }),
            reason: memory_reason(memory_limit_bytes, handshakes),
            advice: "more memory, or a higher roost.memory_limit".to_owned(),
        },
    ];
    limits.push(match (&facts.file_max, &facts.files_open) {
        (Ok(max), Ok(open)) => Limit {
            name: "open files",
            connections: Some(max.saturating_sub(*open)),
            reason: format!("fs.file-max {max} for the whole host, {open} open now"),
            advice: "roost tune".to_owned(),
        },
        (Err(why), _) | (_, Err(why)) => unknown("open files", &why.0),
    });
    limits.push(match &facts.epoll_watches_max {
        Ok(max) => Limit {
            name: "epoll",
            connections: Some(*max),
            reason: "fs.epoll.max_user_watches, for all processes of this user".to_owned(),
            advice: "roost tune".to_owned(),
        },
        Err(why) => unknown("epoll", &why.0),
    });
    limits.push(match (&facts.conntrack_max, &facts.conntrack_count) {
        // Loaded but idle: no rule tracks connections, so none takes an entry.
        (Ok(max), Ok(0)) => Limit {
            name: "conntrack",
            connections: None,
            reason: format!("nothing is tracked now; with a rule that tracks: {max}"),
            advice: String::new(),
        },
        (Ok(max), Ok(count)) => Limit {
            name: "conntrack",
            connections: Some(max.saturating_sub(*count)),
            reason: format!("nf_conntrack_max {max}, {count} tracked now"),
            advice: "roost tune, or a NOTRACK rule for the port".to_owned(),
        },
        (Err(why), _) | (_, Err(why)) => unknown("conntrack", &why.0),
    });
    limits.push(Limit {
        name: "ports",
        connections: None,
        reason: ports_reason(facts),
        advice: String::new(),
    });
    Capacity { limits }
}

/// A server's connections share its one port: ports run out on the side that connects.
fn ports_reason(facts: &Facts) -> String {
    let here = match facts.port_range {
        Ok((first, last)) => {
            format!(" (a proxy or load client on this host: {})", (last + 1).saturating_sub(first))
        }
        Err(_) => String::new(),
    };
    format!("of this server; one client address, so one proxy, can open 64,512 at most{here}")
}

fn unknown(name: &'static str, why: &str) -> Limit {
    Limit {
        name,
        connections: None,
        reason: format!("can't be read: {why}"),
        advice: String::new(),
    }
}

/// A number with commas between the thousands.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::facts::tests::machine;
    use crate::host::sysctls::Unreadable;

    #[test]
    fn auto_grows_with_the_target_under_a_small_descriptor_limit() {
        let auto = |target, nofile| plan_shards(Shards::Auto, Some(target), &machine(nofile));
        let million = auto(1_000_000, 20_000);
        assert!((52..=54).contains(&million.shards), "{million:?}");
        assert!(million.reaches_target());
        let two = auto(2_000_000, 20_000);
        assert!((103..=110).contains(&two.shards), "{two:?}");
        // Few connections, or a large table: one shard for each core.
        assert_eq!(auto(20_000, 20_000).shards, 2);
        assert_eq!(auto(1_000_000, 1_048_576).shards, 2);
        assert_eq!(auto(1_000_000, u64::MAX).shards, 2);
    }

    #[test]
    fn one_table_for_all_shards_counts_once() {
        let mut facts = machine(20_000);
        facts.tables_apart = false;
        for shards in [1, 2, 8, SHARDS_MAX] {
            let plan = plan_shards(Shards::Count(shards), None, &facts);
            let used = plan.connections_max()
                + descriptors_inherited(shards)
                + shards as u64 * SHARD_DESCRIPTORS_RESERVED;
            assert!(used <= 20_000, "{plan:?}");
        }
        // More shards bring nothing.
        assert_eq!(plan_shards(Shards::Auto, Some(1_000_000), &facts).shards, 2);
        let plan = plan_shards(Shards::Cores, None, &facts);
        let descriptors = &capacity(&facts, &plan, u64::MAX, None).limits[0];
        assert!(descriptors.reason.contains("unshare(2) is forbidden"), "{descriptors:?}");
        assert!(descriptors.advice.contains("seccomp"), "{descriptors:?}");
    }

    #[test]
    fn auto_takes_the_most_that_there_is_when_the_target_is_out_of_reach() {
        let facts = machine(1024);
        let plan = plan_shards(Shards::Auto, Some(1_000_000), &facts);
        assert!(!plan.reaches_target());
        for shards in 1..=SHARDS_MAX {
            let other = plan_shards(Shards::Count(shards), None, &facts);
            assert!(other.connections_max() <= plan.connections_max(), "{other:?} {plan:?}");
        }
    }

    #[test]
    fn every_plan_fits_its_descriptor_table() {
        for nofile in [1, 64, 256, 1024, 4096, 20_000, 1_048_576] {
            for wanted in [Shards::Cores, Shards::Auto, Shards::Count(0), Shards::Count(1000)] {
                let plan = plan_shards(wanted, None, &machine(nofile));
                assert!((1..=SHARDS_MAX).contains(&plan.shards));
                assert!(plan.conns_per_shard_soft >= 1);
                assert!(plan.conns_per_shard_soft <= plan.conns_per_shard_hard);
                let used = plan.conns_per_shard_hard as u64
                    + descriptors_inherited(plan.shards)
                    + SHARD_DESCRIPTORS_RESERVED;
                assert!(used <= nofile || plan.conns_per_shard_hard == 1, "{nofile} {plan:?}");
            }
        }
    }

    #[test]
    fn without_a_limit_the_target_is_a_million_or_bounded_by_memory() {
        let mut facts = machine(20_000);
        assert_eq!(plan_shards(Shards::Auto, None, &facts).target_connections, 1_000_000);
        facts.cgroup_memory_max_bytes = Some(1_100_000_000);
        assert_eq!(plan_shards(Shards::Auto, None, &facts).target_connections, 200_000);
    }

    #[test]
    fn the_tightest_limit_binds_and_says_so_first() {
        let mut facts = machine(20_000);
        facts.epoll_watches_max = Ok(5_000_000);
        facts.conntrack_max = Err(Unreadable("not there".to_owned()));
        let plan = plan_shards(Shards::Cores, None, &facts);
        let first = |facts: &Facts, memory| {
            let capacity = capacity(facts, &plan, memory, None);
            capacity.binding().map(|(limit, connections)| (limit.name, connections))
        };
        let table = 2 * (20_000 - 26 - 32);
        assert_eq!(first(&facts, 19_000_000_000), Some(("descriptors", table)));
        assert_eq!(first(&facts, 44_000_000), Some(("memory", 10_000)));
        facts.file_max = Ok(9_000);
        assert_eq!(first(&facts, 44_000_000), Some(("open files", 8_000)));
        // A conntrack table binds only while something is tracked.
        facts.conntrack_max = Ok(500);
        facts.conntrack_count = Ok(0);
        assert_eq!(first(&facts, 44_000_000), Some(("open files", 8_000)));
        facts.conntrack_count = Ok(100);
        assert_eq!(first(&facts, 44_000_000), Some(("conntrack", 400)));
        let secure = capacity(&facts, &plan, 46_240_000, Some(16_384));
        let memory = secure.limits.iter().find(|limit| limit.name == "memory").unwrap();
        assert_eq!(memory.connections, Some(10_000));
        assert!(memory.reason.contains("4624 B for each connection"), "{}", memory.reason);
        assert!(memory.reason.ends_with("up to 16,384 handshakes under way take 188 MB of it"));
        let lines = capacity(&facts, &plan, 44_000_000, None).lines();
        assert!(lines[0].starts_with("up to 400 connections; conntrack binds first; for more:"));
        assert!(lines.iter().any(|line| line.contains("ports") && line.contains("no bound")));
    }

    #[test]
    fn more_shards_are_advised_only_where_they_help() {
        let facts = machine(20_000);
        let advice = |wanted| {
            let plan = plan_shards(wanted, None, &facts);
            capacity(&facts, &plan, 19_000_000_000, None).limits[0].advice.clone()
        };
        assert!(advice(Shards::Cores).starts_with("--shards auto"));
        assert!(advice(Shards::Auto).starts_with("a number for --shards"));
        assert!(advice(Shards::Count(SHARDS_MAX)).starts_with("a higher hard limit"));
    }

    #[test]
    fn shards_are_pinned_where_the_cpus_are_the_node_s_own() {
        let mut facts = machine(20_000);
        facts.cpus = vec![2, 3];
        facts.cpus_online = Ok(vec![2, 3]);
        let pin = |wanted, facts: &Facts| pin_shards(wanted, 3, facts);
        assert_eq!(pin(Pin::On, &facts).0, [2, 3, 2]);
        let (cpus, why) = pin(Pin::Auto, &facts);
        assert!(cpus.is_empty() && why.contains("are not pinned") && why.contains("auto"), "{why}");
        facts.cpus_online = Ok((0..4).collect());
        let (cpus, why) = pin(Pin::Auto, &facts);
        assert!(cpus == [2, 3, 2] && why.contains("pinned to CPUs 2, 3, 2: "), "{why}");
        assert!(pin(Pin::Off, &facts).0.is_empty());
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(12_345_678), "12,345,678");
    }
}
