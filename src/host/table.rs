//! The one table of kernel settings: what N connections need, and why. `roost tune` compares the
//! host with it, and the files in `sysctl/` are printed from it; a test holds them together.

use super::sysctls::spaced;
use std::fmt::Write as _;

/// The number of connections that the files in `sysctl/` are for.
pub const FILES_CONNECTIONS: u64 = 1_000_000;

/// The concern of a setting; one file in `sysctl/` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concern {
    /// Open files and epoll registrations.
    Descriptors,
    /// Ports of outgoing connections, TIME_WAIT.
    Ports,
    /// From the first SYN to `accept`.
    Accept,
    /// Buffers of all TCP sockets.
    TcpMemory,
    /// The firewall's connection table.
    Conntrack,
    /// Closing many connections, replacing a listener.
    Drain,
}

impl Concern {
    /// All of them, in the order of their files.
    pub const ALL: [Self; 6] = [
        Self::Descriptors,
        Self::Ports,
        Self::Accept,
        Self::TcpMemory,
        Self::Conntrack,
        Self::Drain,
    ];

    /// Name of the file in `sysctl/`.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Descriptors => "10-roost-descriptors.conf",
            Self::Ports => "20-roost-ports.conf",
            Self::Accept => "30-roost-accept.conf",
            Self::TcpMemory => "40-roost-tcp-memory.conf",
            Self::Conntrack => "50-roost-conntrack.conf",
            Self::Drain => "60-roost-drain.conf",
        }
    }

    /// The heading of the file, and in the output of `roost tune`.
    pub fn title(self) -> &'static str {
        match self {
            Self::Descriptors => "Descriptors",
            Self::Ports => "Ports and TIME_WAIT",
            Self::Accept => "Accept queues",
            Self::TcpMemory => "TCP memory",
            Self::Conntrack => "Connection tracking",
            Self::Drain => "Draining",
        }
    }

    /// The text that holds for all settings of the concern.
    fn preface(self) -> &'static str {
        match self {
            Self::Descriptors => {
                "RLIMIT_NOFILE is not a sysctl: it counts for each shard, see docs/tuning.md."
            }
            Self::Ports => {
                "A server's connections share its one port. These are for what connects from this \
                 host: a proxy in front of roost, a broker's client, the load client."
            }
            Self::Accept => {
                "When a network comes back, so do all of its clients, within seconds. What does \
                 not fit into a queue is dropped, and waits a second or more to try again."
            }
            Self::TcpMemory => {
                "The memory of idle sockets is not in here (4 KB of slab each), only of what they \
                 have sent or received and nobody has taken yet."
            }
            Self::Conntrack => {
                "Only where a firewall rule tracks connections. The keys exist once the module is \
                 loaded; to have them set at boot, load nf_conntrack in /etc/modules-load.d."
            }
            Self::Drain => "What happens to the clients of a listener or a process that goes away.",
        }
    }
}

/// How much of a setting is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// Each number at least so large; larger ones are left alone.
    AtLeast(Vec<u64>),
    /// This value and no other.
    Exactly(u64),
    /// A range, first and last, that covers this one.
    Covers(u64, u64),
}

impl Need {
    /// True when what the host has is enough.
    pub fn is_met_by(&self, have: &[u64]) -> bool {
        match self {
            Self::AtLeast(need) => {
                have.len() == need.len() && have.iter().zip(need).all(|(have, need)| have >= need)
            }
            Self::Exactly(need) => have == [*need],
            Self::Covers(first, last) => {
                matches!(have, [lowest, highest] if lowest <= first && highest >= last)
            }
        }
    }

    /// The value to set on a host that has `have`: never less than it has, except where the need is
    /// exact. With nothing known of the host: the need itself.
    pub fn to_set(&self, have: &[u64]) -> Vec<u64> {
        match self {
            Self::AtLeast(need) if have.len() == need.len() => {
                have.iter().zip(need).map(|(have, need)| *have.max(need)).collect()
            }
            Self::AtLeast(need) => need.clone(),
            Self::Exactly(need) => vec![*need],
            Self::Covers(first, last) => match have {
                [lowest, highest] => vec![*lowest.min(first), *highest.max(last)],
                _ => vec![*first, *last],
            },
        }
    }

    /// The need in words, for "needs ...".
    pub fn in_words(&self) -> String {
        match self {
            Self::AtLeast(need) => format!("at least {}", spaced(need)),
            Self::Exactly(need) => need.to_string(),
            Self::Covers(first, last) => format!("{first} to {last}"),
        }
    }
}

/// One setting: a line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Which file it belongs to.
    pub concern: Concern,
    /// As `sysctl` spells it.
    pub key: &'static str,
    /// The need of so many connections.
    pub need: fn(u64) -> Need,
    /// Why, in a sentence or two.
    pub reason: &'static str,
}

/// Queues between the first SYN and `accept`: a sixteenth of all clients at once.
fn queue(connections: u64) -> Need {
    Need::AtLeast(vec![(connections / 16).clamp(4_096, 65_535)])
}

/// Every setting that matters, those of one concern together.
pub const ROWS: &[Row] = &[
    Row {
        concern: Concern::Descriptors,
        key: "fs.file-max",
        need: |n| Need::AtLeast(vec![2 * n + 65_536]),
        reason: "Open files of the whole host: one for each connection, as many again for a proxy \
                 or load client beside it, and the rest of the system. Only root may go past it.",
    },
    Row {
        concern: Concern::Descriptors,
        key: "fs.nr_open",
        need: |_| Need::AtLeast(vec![1_048_576]),
        reason: "What RLIMIT_NOFILE can be set to at most. It counts for each shard's own table, \
                 so this is enough for 1,000,000 connections on one shard.",
    },
    Row {
        concern: Concern::Descriptors,
        key: "fs.epoll.max_user_watches",
        need: |n| Need::AtLeast(vec![3 * n + 65_536]),
        reason: "Sockets that one user may have registered with epoll: those of a node, the same \
                 in a process that takes it over, and clients on the same host. The default \
                 follows the memory, and is too small for 1,000,000 below 14 GB.",
    },
    Row {
        concern: Concern::Ports,
        key: "net.ipv4.ip_local_port_range",
        need: |_| Need::Covers(1_024, 65_535),
        reason: "From one address to one address and port there are only so many connections as \
                 ports in this range: 28,232 by default, 64,512 with this. Keep ports that \
                 something listens on out of it with net.ipv4.ip_local_reserved_ports.",
    },
    Row {
        concern: Concern::Ports,
        key: "net.ipv4.tcp_tw_reuse",
        need: |_| Need::Exactly(1),
        reason: "A port in TIME_WAIT may be taken again for an outgoing connection after one \
                 second, safe with timestamps. The default, 2, does so on loopback only.",
    },
    Row {
        concern: Concern::Ports,
        key: "net.ipv4.tcp_max_tw_buckets",
        need: |n| Need::AtLeast(vec![n.max(65_536)]),
        reason: "Whoever closes first holds a TIME_WAIT entry of about 256 B for 60 s; a drain \
                 closes all in less. Above this entries vanish early, and the kernel log fills.",
    },
    Row {
        concern: Concern::Accept,
        key: "net.core.somaxconn",
        need: queue,
        reason: "Length of one listener's queue at most: connections that are complete and wait \
                 for accept. Each shard has a listener, so the queues of all shards add up.",
    },
    Row {
        concern: Concern::Accept,
        key: "net.ipv4.tcp_max_syn_backlog",
        need: queue,
        reason: "Connections whose handshake is under way, for each listener, where SYN cookies \
                 are off.",
    },
    Row {
        concern: Concern::Accept,
        key: "net.ipv4.tcp_syncookies",
        need: |_| Need::AtLeast(vec![1]),
        reason: "When the queue is full the handshake goes on without one, instead of dropping \
                 the SYN: a flood does not lock clients out.",
    },
    Row {
        concern: Concern::Accept,
        key: "net.core.netdev_max_backlog",
        need: |n| Need::AtLeast(vec![(n / 16).clamp(1_000, 16_384)]),
        reason: "Packets that wait for one CPU between a network device (loopback and containers \
                 too) and TCP. A message to everyone makes as many packets in one burst, and a \
                 dropped one is late by 200 ms or more.",
    },
    Row {
        concern: Concern::TcpMemory,
        key: "net.ipv4.tcp_mem",
        need: |n| Need::AtLeast(vec![n.max(65_536), (n + n / 2).max(98_304), (2 * n).max(131_072)]),
        reason: "Pages (4 KB) of all TCP buffers: low, pressure, high. A socket with one byte \
                 waiting is charged a page, so a message to everyone takes a page each until it \
                 is acknowledged, and another while answers wait. Above high the kernel drops.",
    },
    Row {
        concern: Concern::Conntrack,
        key: "net.netfilter.nf_conntrack_max",
        need: |n| Need::AtLeast(vec![(n + n / 4).max(65_536)]),
        reason: "Tracked connections; one more is dropped. A quarter is for those that have closed \
                 and are remembered for up to two minutes. About 300 B each: a NOTRACK rule for \
                 roost's port is the better answer.",
    },
    Row {
        concern: Concern::Conntrack,
        key: "net.netfilter.nf_conntrack_buckets",
        need: |n| Need::AtLeast(vec![(n / 4).max(16_384)]),
        reason: "Hash chains of that table, 8 B each. About four entries a chain keep the look-up, \
                 which each packet pays, short.",
    },
    Row {
        concern: Concern::Drain,
        key: "net.ipv4.tcp_migrate_req",
        need: |_| Need::Exactly(1),
        reason: "When one listener of a group closes, what waits in its queue moves to another. \
                 Without it those clients get a reset (207 of 400 in a measurement).",
    },
    Row {
        concern: Concern::Drain,
        key: "net.ipv4.tcp_max_orphans",
        need: |n| Need::AtLeast(vec![(n / 4).max(65_536)]),
        reason: "Sockets that are closed and still have something to deliver, a close frame for \
                 one. Above this they are reset, and the frame is lost.",
    },
];

/// The rows of one concern.
pub fn rows_of(concern: Concern) -> impl Iterator<Item = &'static Row> {
    ROWS.iter().filter(move |row| row.concern == concern)
}

/// The text of a concern's file for so many connections.
pub fn file_text(concern: Concern, connections: u64) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "# {}, for {connections} connections.\n\
         # Written by `roost tune --connections {connections} --write DIR`; see docs/tuning.md.\n\
         # It sets what it says even where the host has more: `roost tune` shows that first.",
        concern.title()
    );
    text.push_str(&wrapped(concern.preface(), "# ", 80));
    for row in rows_of(concern) {
        text.push('\n');
        text.push_str(&wrapped(row.reason, "# ", 80));
        // A minus lets `sysctl --system` go on where the key is not there.
        let optional = if concern == Concern::Conntrack { "-" } else { "" };
        let value = spaced(&(row.need)(connections).to_set(&[]));
        let _ = writeln!(text, "{optional}{} = {value}", row.key);
    }
    text
}

/// `text` in lines of at most `width` columns, each with `prefix` before and a line end after it.
pub fn wrapped(text: &str, prefix: &str, width: usize) -> String {
    let mut out = String::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && prefix.len() + line.len() + 1 + word.len() > width {
            let _ = writeln!(out, "{prefix}{line}");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        let _ = writeln!(out, "{prefix}{line}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_committed_files_are_written_from_the_table() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("sysctl");
        for concern in Concern::ALL {
            let text = std::fs::read_to_string(dir.join(concern.file_name())).unwrap_or_default();
            assert!(
                text == file_text(concern, FILES_CONNECTIONS),
                "sysctl/{} differs: run `roost tune --connections {FILES_CONNECTIONS} --write sysctl`",
                concern.file_name()
            );
        }
    }

    #[test]
    fn each_key_is_there_once_with_a_reason_and_a_file() {
        for (index, row) in ROWS.iter().enumerate() {
            assert!(ROWS[index + 1..].iter().all(|other| other.key != row.key), "{}", row.key);
            assert!(row.reason.ends_with('.') && row.reason.len() > 40, "{}", row.key);
        }
        assert_eq!(ROWS.len(), Concern::ALL.iter().flat_map(|&c| rows_of(c)).count());
    }

    #[test]
    fn needs_grow_with_connections_and_are_met_by_the_proposed_values() {
        for row in ROWS {
            for n in [0, 1, 20_000, 1_000_000, 4_000_000] {
                let need = (row.need)(n);
                assert!(need.is_met_by(&need.to_set(&[])), "{} for {n}", row.key);
                let more = (row.need)(2 * n + 1);
                assert!(need.is_met_by(&more.to_set(&[])), "{} for {n}", row.key);
            }
        }
    }

    #[test]
    fn more_generous_values_stay() {
        let at_least = Need::AtLeast(vec![10, 20, 30]);
        assert_eq!(at_least.to_set(&[5, 40, 30]), [10, 40, 30]);
        assert!(!at_least.is_met_by(&[5, 40, 30]));
        assert!(!at_least.is_met_by(&[50]));
        let covers = Need::Covers(1_024, 65_535);
        assert_eq!(covers.to_set(&[32_768, 60_999]), [1_024, 65_535]);
        assert_eq!(covers.to_set(&[1_000, 60_999]), [1_000, 65_535]);
        assert!(covers.is_met_by(&[1_000, 65_535]));
        assert!(!Need::Exactly(1).is_met_by(&[2]));
    }

    #[test]
    fn lines_are_wrapped_between_words() {
        assert_eq!(wrapped("aa bb cc", "# ", 7), "# aa bb\n# cc\n");
        assert_eq!(wrapped("", "# ", 7), "");
        assert_eq!(wrapped("longer-than-that", "# ", 7), "# longer-than-that\n");
    }
}
