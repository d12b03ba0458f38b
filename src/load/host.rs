//! Figures of the kernel about processes and memory of this machine.

use serde::{Deserialize, Serialize};
use std::fs;
use std::net::IpAddr;

/// Memory and processor time of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// Resident bytes.
    pub(crate) rss_bytes: u64,
    /// User and system time since its start, seconds.
    pub(crate) cpu_s: f64,
}

impl Usage {
    /// Of process `pid`; `None` when it isn't there.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let rss_bytes = kilobytes(&status, "VmRSS:")? * 1024;
        let ticks_per_s = rustix::param::clock_ticks_per_second() as f64;
        Some(Self { rss_bytes, cpu_s: cpu_ticks(&stat)? as f64 / ticks_per_s })
    }

    /// Of this process.
    pub(crate) fn own() -> Self {
        Self::of(std::process::id()).unwrap_or_default()
    }
}

/// The machine that this process runs on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) name: String,
    /// Version of the kernel.
    pub(crate) kernel: String,
    /// Model of the processors, and how many this process may use.
    pub(crate) processor: String,
    pub(crate) processors: usize,
    pub(crate) memory_bytes: u64,
}

impl Machine {
    pub(crate) fn this() -> Self {
        let system = rustix::system::uname();
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            name: system.nodename().to_string_lossy().into_owned(),
            kernel: system.release().to_string_lossy().into_owned(),
            processor: model.map_or_else(String::new, |(_, name)| name.trim().to_owned()),
            processors: std::thread::available_parallelism().map_or(1, |n| n.get()),
            memory_bytes: kilobytes(&memory, "MemTotal:").unwrap_or_default() * 1024,
        }
    }
}

/// Bytes of the kernel's slab caches, in which sockets live; `None` where that is unknown.
pub(crate) fn slab_bytes() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    Some(kilobytes(&info, "Slab:")? * 1024)
}

/// Whether `address` is one of this machine: something here can be bound to it.
pub(crate) fn is_local(address: IpAddr) -> bool {
    std::net::UdpSocket::bind((address, 0)).is_ok()
}

/// The number behind `name`, in lines like `VmRSS:    1234 kB`.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// User and system ticks, fields 14 and 15 of /proc/PID/stat. Field 2, the name, is in parentheses
/// and may have anything in it.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_spaces_and_parentheses() {
        let stat = "12 (a) b (c) S 1 1 1 0 -1 4194560 100 0 0 0 70 30 0 0 20 0 1 0 5 6 7";
        assert_eq!(cpu_ticks(stat), Some(100));
        assert_eq!(cpu_ticks("12 (a"), None);
    }

    #[test]
    fn lines_of_kilobytes() {
        assert_eq!(kilobytes("VmHWM:\t 9 kB\nVmRSS:\t  1234 kB\n", "VmRSS:"), Some(1234));
        assert_eq!(kilobytes("VmHWM:\t 9 kB\n", "VmRSS:"), None);
    }

    #[test]
    fn this_process_is_there() {
        let usage = Usage::own();
        assert!(usage.rss_bytes > 100_000);
        assert_eq!(Usage::of(u32::MAX), None);
        assert!(slab_bytes().is_some_and(|bytes| bytes > 0));
    }

    #[test]
    fn the_machine_has_a_kernel_and_memory() {
        let machine = Machine::this();
        assert!(machine.kernel.contains('.') && machine.memory_bytes > 1 << 20);
        assert!(machine.processors >= 1);
    }

    #[test]
    fn addresses_of_this_machine() {
        assert!(is_local([127, 9, 9, 9].into()));
        assert!(!is_local([203, 0, 113, 7].into()));
    }
}
