//! `roost tune`: this host against what N connections need, line by line.

use super::cards::{self, Card, Interrupt, Queue};
use super::facts::Facts;
use super::plan::{self, Shards, grouped, plan_shards};
use super::sysctls::{Sysctls, Unreadable, spaced};
use super::table::{Concern, Row, file_text, rows_of, wrapped};
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Compares this host with what `connections` need (default: 1,000,000, or what its memory holds),
/// and prints every line as `ok`, `low` or `can't be read` with the reason, and the command where
/// something is low. `apply` sets what is low, as far as it goes, and says what it could not set
/// and why. `write` puts the sysctl files for so many connections (default 1,000,000) into a
/// directory instead.
///
/// Exit code: 0 when nothing is low (any more), 1 when something is, or when files or output could
/// not be written. What cannot be read counts as nothing: a module that is not loaded limits nobody.
pub fn run(connections: Option<u64>, apply: bool, write: Option<PathBuf>) -> ExitCode {
    let done = match write {
        Some(dir) => {
            let connections = connections.unwrap_or(super::table::FILES_CONNECTIONS);
            write_files(&dir, connections, &mut io::stdout().lock()).map(|()| 0)
        }
        None => {
            let tune = Tune::new(Sysctls::host(), Facts::read(), connections, apply);
            tune.print(&mut io::stdout().lock())
        }
    };
    match done {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        // A reader that went away (`roost tune | head`) needs no report.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("roost tune: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes the file of each concern into `dir`, which is made if it is not there.
fn write_files(dir: &Path, connections: u64, out: &mut impl Write) -> io::Result<()> {
    let named = |path: &Path, error: io::Error| {
        io::Error::new(error.kind(), format!("{}: {error}", path.display()))
    };
    std::fs::create_dir_all(dir).map_err(|error| named(dir, error))?;
    for concern in Concern::ALL {
        let path = dir.join(concern.file_name());
        std::fs::write(&path, file_text(concern, connections))
            .map_err(|error| named(&path, error))?;
        writeln!(out, "{}", path.display())?;
    }
    Ok(())
}

/// Connections for each hash chain of the kernel, on average, that are no reason to say something.
const CONNECTIONS_PER_CHAIN_MAX: u64 = 2;

/// How a line came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Ok,
    Set,
    Low,
    Unread,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Set => "set",
            Self::Low => "low",
            Self::Unread => "can't be read",
        }
    }
}

/// One line of the comparison.
struct Line {
    verdict: Verdict,
    /// The compared setting, its value and its required value.
    what: String,
    reason: String,
    /// The command or file line that mends it; empty for none.
    command: String,
    /// Why it could not be set; empty where nothing was tried or it was.
    refused: String,
}

/// One run over one host.
struct Tune {
    files: Sysctls,
    facts: Facts,
    connections: u64,
    apply: bool,
}

impl Tune {
    fn new(files: Sysctls, facts: Facts, connections: Option<u64>, apply: bool) -> Self {
        let connections = connections
            .unwrap_or_else(|| plan_shards(Shards::Auto, None, &facts).target_connections);
        Self { files, facts, connections, apply }
    }

    /// Prints everything; gives the number of lines that are low at the end.
    fn print(&self, out: &mut impl Write) -> io::Result<usize> {
        writeln!(out, "This host against {} connections:", grouped(self.connections))?;
        let mut low = 0;
        let mut unread = 0;
        let mut section = |out: &mut dyn Write, title: &str, lines: Vec<Line>| {
            writeln!(out, "\n{title}")?;
            for line in lines {
                low += usize::from(line.verdict == Verdict::Low);
                unread += usize::from(line.verdict == Verdict::Unread);
                print_line(out, &line)?;
            }
            io::Result::Ok(())
        };
        section(out, "This process and this machine", self.machine())?;
        for concern in Concern::ALL {
            section(out, concern.title(), rows_of(concern).map(|row| self.compare(row)).collect())?;
        }
        section(out, "Network cards", self.cards())?;
        writeln!(out, "\n{low} low, {unread} can't be read")?;
        if low > 0 && !self.apply {
            writeln!(out, "`roost tune --connections {} --apply` sets them.", self.connections)?;
        }
        if self.apply {
            writeln!(
                out,
                "What was set is gone after a reboot: `--write /etc/sysctl.d` keeps it."
            )?;
        }
        Ok(low)
    }

    /// One row of the table against the host, and set on request.
    fn compare(&self, row: &Row) -> Line {
        let need = (row.need)(self.connections);
        let have = match self.files.numbers(row.key) {
            Ok(have) => have,
            Err(Unreadable(why)) => {
                return Line {
                    verdict: Verdict::Unread,
                    what: format!("{}, needs {}", row.key, need.in_words()),
                    reason: row.reason.to_owned(),
                    command: String::new(),
                    refused: why,
                };
            }
        };
        let mut line = Line {
            verdict: Verdict::Ok,
            what: format!("{} = {}, needs {}", row.key, spaced(&have), need.in_words()),
            reason: row.reason.to_owned(),
            command: String::new(),
            refused: String::new(),
        };
        if need.is_met_by(&have) {
            return line;
        }
        let value = need.to_set(&have);
        line.verdict = Verdict::Low;
        line.command = format!("sysctl -w {}", assignment(row.key, &value));
        if self.apply {
            // The kernel may round what it takes, so the value is read back, not believed.
            let after = self.files.set(row.key, &value).and_then(|()| self.files.numbers(row.key));
            match after {
                Ok(after) if need.is_met_by(&after) => {
                    line.verdict = Verdict::Set;
                    line.command.clear();
                    line.what = format!("{} = {}, was {}", row.key, spaced(&after), spaced(&have));
                }
                Ok(after) => line.refused = format!("the kernel made it {}", spaced(&after)),
                Err(Unreadable(why)) => line.refused = why,
            }
        }
        line
    }

    /// Limits that no sysctl of a running kernel sets: descriptors of each shard, memory, the kernel's table of
    /// connections.
    fn machine(&self) -> Vec<Line> {
        vec![self.descriptors(), self.memory(), self.connection_table()]
    }

    /// The hash table in which the kernel finds the connection of each packet.
    fn connection_table(&self) -> Line {
        let need = self.connections / CONNECTIONS_PER_CHAIN_MAX;
        let line = |verdict, what| Line {
            verdict,
            what,
            reason:
                "Hash chains of the kernel's table of connections (8 B each). Each packet looks \
                     through one of them, and each look is at memory that no cache holds. The size \
                     follows the memory as the kernel starts, up to 524,288."
                    .to_owned(),
            command: String::new(),
            refused: String::new(),
        };
        let text = self.files.text("proc/sys/net/ipv4/tcp_ehash_entries");
        let chains = match text.map(|text| text.parse::<i64>()) {
            Ok(Ok(chains)) => chains,
            other => {
                let mut line = line(
                    Verdict::Unread,
                    format!("net.ipv4.tcp_ehash_entries, needs at least {need}"),
                );
                line.refused = match other {
                    Err(Unreadable(why)) => why,
                    Ok(_) => "net.ipv4.tcp_ehash_entries is not a number".to_owned(),
                };
                return line;
            }
        };
        // Below zero in a network namespace that has none of its own.
        let shared = if chains < 0 { " (the host's)" } else { "" };
        let chains = chains.unsigned_abs();
        let what = format!("net.ipv4.tcp_ehash_entries = {chains}{shared}, needs at least {need}");
        if chains >= need {
            return line(Verdict::Ok, what);
        }
        let mut line = line(Verdict::Low, what);
        let wanted = self.connections.next_power_of_two();
        line.command = format!(
            "thash_entries={wanted} on the kernel's command line; for a container, on its host before \
             it starts: sysctl -w net.ipv4.tcp_child_ehash_entries={wanted}"
        );
        if self.apply {
            line.refused =
                "its size is fixed as the kernel, or the network namespace, starts".to_owned();
        }
        line
    }

    /// Cards: on which CPUs their packets arrive, and which queue each CPU sends by.
    fn cards(&self) -> Vec<Line> {
        let cards = match cards::read(&self.files) {
            Ok(cards) if !cards.is_empty() => cards,
            other => {
                let none = "no interface has a device of its own (a container: look at its host)";
                return vec![Line {
                    verdict: Verdict::Unread,
                    what: "network cards".to_owned(),
                    reason: "Queues of a card decide which CPU does the work of a packet."
                        .to_owned(),
                    command: String::new(),
                    refused: other.map_or_else(|Unreadable(why)| why, |_| none.to_owned()),
                }];
            }
        };
        let lines_of =
            |card: &Card| [self.interrupts(card), Some(self.receive(card)), self.transmit(card)];
        cards.iter().flat_map(lines_of).flatten().collect()
    }

    /// The CPUs that take the interrupts of a card with several queues. They are not set: a daemon such as
    /// irqbalance may own them, and drivers refuse where the kernel manages them.
    fn interrupts(&self, card: &Card) -> Option<Line> {
        let wanted = card.interrupts.len().min(self.facts.cpus.len());
        if wanted < 2 {
            return None;
        }
        let taking: BTreeSet<usize> =
            card.interrupts.iter().flat_map(|interrupt| interrupt.cpus.iter().copied()).collect();
        let low = taking.len() < wanted;
        let spread = card.interrupts.iter().zip(self.facts.cpus.iter().cycle());
        let command = |(interrupt, cpu): (&Interrupt, &usize)| {
            format!("echo {cpu} > /proc/irq/{}/smp_affinity_list", interrupt.number)
        };
        Some(Line {
            verdict: if low { Verdict::Low } else { Verdict::Ok },
            what: format!(
                "{}: CPUs that take its {} receive interrupts = {}, needs {wanted}",
                card.name,
                card.interrupts.len(),
                taking.len()
            ),
            reason: "A CPU that takes the interrupts of several queues is full while others wait."
                .to_owned(),
            command: if low {
                spread.map(command).collect::<Vec<_>>().join("; ")
            } else {
                String::new()
            },
            refused: match self.apply && low {
                true => "a daemon such as irqbalance may own the interrupts".to_owned(),
                false => String::new(),
            },
        })
    }

    /// The CPUs that packets of each receive queue come to.
    fn receive(&self, card: &Card) -> Line {
        let queues = card.receive.len();
        let line = |verdict| Line {
            verdict,
            what: format!(
                "{}: receive queues = {queues}, CPUs = {}",
                card.name,
                self.facts.cpus.len()
            ),
            reason: "Packets of a queue are worked on by the CPU of its interrupt, or by those of \
                     its rps_cpus. With fewer queues than CPUs one is full while others wait; more \
                     queues (ethtool -L) are better than rps_cpus where the card has them."
                .to_owned(),
            command: String::new(),
            refused: String::new(),
        };
        if queues >= self.facts.cpus.len() {
            return line(Verdict::Ok);
        }
        let all = cards::mask(self.facts.cpus.iter().copied());
        let masks = card.receive.iter().map(|queue| (queue, all.clone())).collect();
        self.masks(line(Verdict::Low), masks)
    }

    /// The queue that each CPU sends by, where there are several.
    fn transmit(&self, card: &Card) -> Option<Line> {
        let queues = card.transmit.len();
        if queues < 2 {
            return None;
        }
        let line = Line {
            verdict: Verdict::Low,
            what: format!(
                "{}: transmit queues = {queues}, CPUs = {}",
                card.name,
                self.facts.cpus.len()
            ),
            reason: "CPUs that send by one queue wait for its lock; xps_cpus gives each its own."
                .to_owned(),
            command: String::new(),
            refused: String::new(),
        };
        let cpus = |at: usize| self.facts.cpus.iter().copied().skip(at).step_by(queues);
        let masks = card.transmit.iter().enumerate();
        // A queue beyond the CPUs has none to itself, and any mask is as good.
        let masks = masks.map(|(at, queue)| (queue, cards::mask(cpus(at % self.facts.cpus.len()))));
        Some(self.masks(line, masks.collect()))
    }

    /// Compares masks of queues with what they should have, and sets those that have none on request. A mask that
    /// somebody chose stays.
    fn masks(&self, mut line: Line, wanted: Vec<(&Queue, String)>) -> Line {
        let (mut commands, mut set) = (Vec::new(), 0);
        for (queue, mask) in wanted {
            match &queue.cpus {
                Ok(cpus) if !cpus.is_empty() => continue,
                Ok(_) => {}
                Err(Unreadable(why)) => {
                    line.verdict = Verdict::Unread;
                    line.refused.clone_from(why);
                    return line;
                }
            }
            if self.apply {
                match self.files.write(&queue.file, &mask) {
                    Ok(()) => {
                        set += 1;
                        continue;
                    }
                    Err(Unreadable(why)) => line.refused = why,
                }
            }
            commands.push(format!("echo {mask} > /{}", queue.file));
        }
        line.verdict = match (commands.is_empty(), set) {
            (false, _) => Verdict::Low,
            (true, 0) => Verdict::Ok,
            (true, _) => Verdict::Set,
        };
        line.command = commands.join("; ");
        line
    }

    fn descriptors(&self) -> Line {
        let table = self.facts.table_descriptors_max();
        let plan = plan_shards(Shards::Auto, Some(self.connections), &self.facts);
        let fits = plan.reaches_target();
        let hold = if fits { "hold" } else { "hold only" };
        Line {
            verdict: if fits { Verdict::Ok } else { Verdict::Low },
            what: format!(
                "RLIMIT_NOFILE, hard = {table}: {} shards (--shards auto) {hold} {} connections",
                plan.shards,
                grouped(plan.connections_max())
            ),
            reason: "The limit counts for each shard, since each has a descriptor table of its \
                     own. Shards beyond the cores cost a little memory and switching between \
                     them; a higher limit makes them unnecessary."
                .to_owned(),
            command: if fits {
                String::new()
            } else {
                "LimitNOFILE=1048576 in the systemd unit, or ulimit -Hn 1048576 as root".to_owned()
            },
            refused: if self.apply && !fits {
                "the limit of a running process is set by its parent".to_owned()
            } else {
                String::new()
            },
        }
    }

    fn memory(&self) -> Line {
        let need = plan::memory_for(self.connections);
        let reason = format!(
            "Each connection takes {} B in the kernel and {} B here; messages, queues and history \
             come on top, and a load client on this host takes as much again.",
            plan::KERNEL_BYTES_PER_CONNECTION,
            plan::USER_BYTES_PER_CONNECTION
        );
        let megabytes = |bytes: u64| format!("{} MB", grouped(bytes / 1_000_000));
        let Some(have) = self.facts.memory_limit_default_bytes() else {
            return Line {
                verdict: Verdict::Unread,
                what: format!("memory, needs {}", megabytes(need)),
                reason,
                command: String::new(),
                refused: "neither /proc/meminfo nor a cgroup limit can be read".to_owned(),
            };
        };
        let of = match self.facts.cgroup_memory_max_bytes {
            Some(limit) if Some(limit) == self.facts.memory_bytes() => "the cgroup's limit",
            _ => "the machine's memory",
        };
        let low = have < need;
        let holds = grouped(plan::connections_in(have));
        Line {
            verdict: if low { Verdict::Low } else { Verdict::Ok },
            what: format!(
                "memory = {} (80 % of {of}), needs {}; it holds {holds} connections",
                megabytes(have),
                megabytes(need)
            ),
            reason,
            command: if low {
                "more memory, or MemoryMax= of the unit or container".to_owned()
            } else {
                String::new()
            },
            refused: String::new(),
        }
    }
}

fn print_line(out: &mut dyn Write, line: &Line) -> io::Result<()> {
    const INDENT: &str = "                 ";
    writeln!(out, "  {:<13}  {}", line.verdict.word(), line.what)?;
    let mut more = |text: &str| out.write_all(wrapped(text, INDENT, 100).as_bytes());
    if !line.refused.is_empty() {
        let said = if line.verdict == Verdict::Unread { "" } else { "could not be set: " };
        more(&format!("{said}{}", line.refused))?;
    }
    more(&line.reason)?;
    if !line.command.is_empty() {
        writeln!(out, "{INDENT}-> {}", line.command)?;
    }
    Ok(())
}

/// `key=value` for a shell: quoted where there are several numbers.
fn assignment(key: &str, value: &[u64]) -> String {
    if value.len() == 1 {
        format!("{key}={}", value[0])
    } else {
        format!("{key}=\"{}\"", spaced(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::cards::tests::put_card;
    use crate::host::facts::tests::{FakeHost, machine};
    use crate::host::table::ROWS;

    /// A host with every key of the table at 0, but conntrack's, whose module is not loaded.
    fn poor_host(name: &str) -> FakeHost {
        let host = FakeHost::new(name, &[]);
        for row in ROWS.iter().filter(|row| row.concern != Concern::Conntrack) {
            let zeros = vec![0; (row.need)(1).to_set(&[]).len()];
            let path = format!("proc/sys/{}", row.key.replace('.', "/"));
            host.put(&path, &spaced(&zeros));
        }
        host
    }

    fn tune(host: &FakeHost, connections: u64, apply: bool) -> (usize, String) {
        let facts = machine(20_000);
        let mut out = Vec::new();
        let low = Tune::new(host.files(), facts, Some(connections), apply).print(&mut out).unwrap();
        (low, String::from_utf8(out).unwrap())
    }

    #[test]
    fn each_line_is_ok_low_or_unread_and_low_ones_have_a_command() {
        let host = poor_host("lines");
        host.put("proc/sys/net/core/somaxconn", "70000");
        let (low, text) = tune(&host, 1_000_000, false);
        assert_eq!(low, ROWS.len() - 2 - 1, "{text}");
        assert!(
            text.contains("  ok             net.core.somaxconn = 70000, needs at least 62500\n")
        );
        assert!(text.contains("  low            net.ipv4.tcp_migrate_req = 0, needs 1\n"));
        assert!(text.contains("-> sysctl -w net.ipv4.tcp_migrate_req=1\n"), "{text}");
        assert!(text.contains("-> sysctl -w net.ipv4.tcp_mem=\"1000000 1500000 2000000\"\n"));
        assert!(text.contains("  can't be read  net.netfilter.nf_conntrack_max, needs"));
        assert!(text.contains("RLIMIT_NOFILE, hard = 20000: 53 shards"), "{text}");
        assert!(text.contains("12 low, 4 can't be read"), "{text}");
    }

    #[test]
    fn apply_raises_low_values_and_a_second_run_changes_nothing() {
        let host = poor_host("apply");
        host.put("proc/sys/net/ipv4/tcp_mem", "7 8 9000000");
        let (low, text) = tune(&host, 1_000_000, true);
        assert_eq!(low, 0, "{text}");
        assert!(text.contains("  set            net.core.somaxconn = 62500, was 0\n"), "{text}");
        let mem = host.files().numbers("net.ipv4.tcp_mem");
        assert_eq!(mem, Ok(vec![1_000_000, 1_500_000, 9_000_000]));
        let (low, text) = tune(&host, 1_000_000, true);
        assert_eq!(low, 0);
        assert!(!text.contains("  set  "), "{text}");
        // No file is made for a key that the kernel does not have.
        assert!(host.files().number("net.netfilter.nf_conntrack_max").is_err());
    }

    #[test]
    fn values_that_cannot_be_set_stay_low_with_a_reason() {
        let host = poor_host("refused");
        // Descriptors and memory are nobody's to set from here.
        let mut facts = machine(1_024);
        facts.memory_total_bytes = Ok(1_000_000_000);
        let mut out = Vec::new();
        let tune = Tune::new(host.files(), facts, Some(1_000_000), true);
        assert_eq!(tune.print(&mut out).unwrap(), 2);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("hold only"), "{text}");
        assert!(text.contains("could not be set: the limit of a running process"), "{text}");
        assert!(text.contains("memory = 800 MB (80 % of the machine's memory), needs 4,400 MB"));
    }

    #[test]
    fn a_table_of_connections_with_long_chains_is_low_and_fixed() {
        let host = poor_host("chains");
        let file = "proc/sys/net/ipv4/tcp_ehash_entries";
        host.put(file, "262144");
        let (_, text) = tune(&host, 1_000_000, false);
        assert!(text.contains(
            "  low            net.ipv4.tcp_ehash_entries = 262144, needs at least 500000\n"
        ));
        assert!(text.contains("-> thash_entries=1048576 on the kernel's command line"), "{text}");
        let (low, text) = tune(&host, 1_000_000, true);
        assert_eq!(low, 1);
        assert!(text.contains("could not be set: its size is fixed"), "{text}");
        let (_, text) = tune(&host, 500_000, false);
        assert!(text.contains("  ok             net.ipv4.tcp_ehash_entries = 262144, needs"));
        // A network namespace that uses the host's.
        host.put(file, "-262144");
        let (_, text) = tune(&host, 1_000_000, false);
        assert!(
            text.contains("  low            net.ipv4.tcp_ehash_entries = 262144 (the host's), ")
        );
    }

    #[test]
    fn packets_of_a_card_go_to_all_cpus() {
        let host = poor_host("card");
        put_card(&host, 1);
        let (_, text) = tune(&host, 1_000_000, false);
        assert!(text.contains("  low            eth0: receive queues = 1, CPUs = 2\n"), "{text}");
        assert!(text.contains("-> echo 3 > /sys/class/net/eth0/queues/rx-0/rps_cpus\n"), "{text}");
        assert!(!text.contains("transmit"), "{text}");
        let (low, text) = tune(&host, 1_000_000, true);
        assert!(text.contains("  set            eth0: receive queues = 1"), "{text}");
        assert_eq!((low, rps(&host)), (0, Ok("3".to_owned())));
        // A mask that somebody chose stays.
        host.put("sys/class/net/eth0/queues/rx-0/rps_cpus", "2");
        let (_, text) = tune(&host, 1_000_000, true);
        assert!(text.contains("  ok             eth0: receive queues = 1"), "{text}");
        assert_eq!(rps(&host), Ok("2".to_owned()));
    }

    fn rps(host: &FakeHost) -> Result<String, Unreadable> {
        host.files().text("sys/class/net/eth0/queues/rx-0/rps_cpus")
    }

    #[test]
    fn a_card_with_a_queue_for_each_cpu_spreads_by_itself() {
        let host = poor_host("queues");
        put_card(&host, 4);
        let (low, text) = tune(&host, 1_000_000, true);
        assert!(text.contains("  ok             eth0: receive queues = 4, CPUs = 2\n"), "{text}");
        assert!(text.contains(
            "  low            eth0: CPUs that take its 4 receive interrupts = 1, needs 2\n"
        ));
        assert!(
            text.contains("-> echo 0 > /proc/irq/31/smp_affinity_list; echo 1 > /proc/irq/32/")
        );
        assert!(text.contains("could not be set: a daemon such as irqbalance"), "{text}");
        assert!(text.contains("  set            eth0: transmit queues = 4"), "{text}");
        let xps = |queue: usize| {
            host.files().text(&format!("sys/class/net/eth0/queues/tx-{queue}/xps_cpus")).unwrap()
        };
        assert_eq!([0, 1, 2, 3].map(xps), ["1", "2", "1", "2"]);
        assert_eq!((low, rps(&host)), (1, Ok("0".to_owned())));
        host.put("proc/irq/32/smp_affinity_list", "1");
        assert_eq!(tune(&host, 1_000_000, true).0, 0);
    }

    #[test]
    fn files_are_written_for_the_wanted_connections() {
        let host = FakeHost::new("write", &[]);
        let dir = host.path().join("sysctl.d");
        let mut out = Vec::new();
        write_files(&dir, 2_000_000, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap().lines().count(), Concern::ALL.len());
        let text = std::fs::read_to_string(dir.join("40-roost-tcp-memory.conf")).unwrap();
        assert!(text.contains("\nnet.ipv4.tcp_mem = 2000000 3000000 4000000\n"), "{text}");
        // A file where the directory should be.
        let error = write_files(&dir.join("40-roost-tcp-memory.conf"), 1, &mut Vec::new());
        assert!(error.unwrap_err().to_string().contains("40-roost-tcp-memory.conf"));
    }
}
