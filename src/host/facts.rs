//! The limits of this machine, read once at start.

use super::sysctls::{Reading, Sysctls, Unreadable};
use crate::sys::tables;
use rustix::process::{Resource, getrlimit};

/// Levels of a cgroup tree that are looked at, from the process's own upwards.
const CGROUP_LEVELS_MAX: usize = 32;

/// A cgroup (version 1) limit at or above this means no limit: the kernel spells it as almost 2^63.
const CGROUP_V1_NO_LIMIT_BYTES: u64 = 1 << 60;

/// The limits of the machine, its cgroup and this process. Plain values, so that a test can
/// make any machine up.
#[derive(Clone, Debug)]
pub struct Facts {
    /// CPUs that this process may run on, by number, ascending; never empty.
    pub cpus: Vec<usize>,
    /// CPU time that the cgroup grants, in thousandths of a core; `None`: no quota.
    pub cpu_quota_milli: Option<u64>,
    /// CPUs of the machine that are online, by number.
    pub cpus_online: Reading<Vec<usize>>,
    /// CPUs that the scheduler leaves alone (`isolcpus`), by number.
    pub cpus_isolated: Reading<Vec<usize>>,
    /// The process's cgroup has its CPUs for itself (`cpuset.cpus.partition`).
    pub has_cpu_partition: bool,
    /// Memory of the machine, bytes.
    pub memory_total_bytes: Reading<u64>,
    /// Memory that could be had now without swapping, bytes.
    pub memory_available_bytes: Reading<u64>,
    /// The tightest memory limit of the process's cgroup and those above it; `None`: no limit.
    pub cgroup_memory_max_bytes: Option<u64>,
    /// RLIMIT_NOFILE, soft; `u64::MAX`: unlimited.
    pub nofile_soft: u64,
    /// RLIMIT_NOFILE, hard; `u64::MAX`: unlimited. It counts for each descriptor table.
    pub nofile_hard: u64,
    /// Each shard may have a descriptor table of its own (`unshare(2)`).
    pub tables_apart: bool,
    /// `fs.nr_open`: what RLIMIT_NOFILE can be set to at most.
    pub nr_open: Reading<u64>,
    /// `fs.file-max`: open files of the whole host (root may go past it).
    pub file_max: Reading<u64>,
    /// Files open on the whole host now.
    pub files_open: Reading<u64>,
    /// `fs.epoll.max_user_watches`: sockets that one user may have registered with epoll.
    pub epoll_watches_max: Reading<u64>,
    /// `net.ipv4.ip_local_port_range`: first and last port for outgoing connections.
    pub port_range: Reading<(u64, u64)>,
    /// `net.core.somaxconn`: length of one listener's queue at most.
    pub somaxconn: Reading<u64>,
    /// `net.ipv4.tcp_mem`: pages of TCP buffers on the whole host: low, pressure, high.
    pub tcp_mem_pages: Reading<Vec<u64>>,
    /// `net.netfilter.nf_conntrack_max`; not there when the module is not loaded.
    pub conntrack_max: Reading<u64>,
    /// Connections tracked now; 0 also where no firewall rule tracks them.
    pub conntrack_count: Reading<u64>,
}

impl Facts {
    /// Reads this machine. Never fails: what cannot be read says so.
    pub fn read() -> Self {
        Self::read_from(&Sysctls::host())
    }

    /// The same with files from below another root; limits and affinity are this process's own.
    pub fn read_from(files: &Sysctls) -> Self {
        let nofile = getrlimit(Resource::Nofile);
        let cgroup = files.text("proc/self/cgroup").unwrap_or_default();
        Self {
            cpus: cpus_allowed(),
            cpu_quota_milli: cpu_quota_milli(files, &cgroup),
            cpus_online: cpu_list(files, "online"),
            cpus_isolated: cpu_list(files, "isolated"),
            has_cpu_partition: has_cpu_partition(files, &cgroup),
            memory_total_bytes: meminfo_bytes(files, "MemTotal:"),
            memory_available_bytes: meminfo_bytes(files, "MemAvailable:"),
            cgroup_memory_max_bytes: cgroup_memory_max_bytes(files, &cgroup),
            nofile_soft: nofile.current.unwrap_or(u64::MAX),
            nofile_hard: nofile.maximum.unwrap_or(u64::MAX),
            tables_apart: tables::may_unshare_files(),
            nr_open: files.number("fs.nr_open"),
            file_max: files.number("fs.file-max"),
            files_open: files.number("fs.file-nr"),
            epoll_watches_max: files.number("fs.epoll.max_user_watches"),
            port_range: port_range(files),
            somaxconn: files.number("net.core.somaxconn"),
            tcp_mem_pages: files.numbers("net.ipv4.tcp_mem"),
            conntrack_max: files.number("net.netfilter.nf_conntrack_max"),
            conntrack_count: files.number("net.netfilter.nf_conntrack_count"),
        }
    }

    /// Cores' worth of time that this process may use: its CPUs, or the cgroup's quota rounded up
    /// where that is less. At least 1.
    pub fn cores(&self) -> usize {
        let quota = self.cpu_quota_milli.map_or(u64::MAX, |milli| milli.div_ceil(1000));
        self.cpus.len().min(usize::try_from(quota).unwrap_or(usize::MAX)).max(1)
    }

    /// Why this process has its CPUs for itself; `None`: others may use them, as far as one can tell.
    pub fn own_cpus(&self) -> Option<&'static str> {
        let isolated = self.cpus_isolated.as_deref().unwrap_or_default();
        let online = self.cpus_online.as_ref().map_or(0, Vec::len);
        if self.cores() < self.cpus.len() {
            // A quota is a share of CPUs that neighbours have shares of, too.
            None
        } else if self.cpus.iter().all(|cpu| isolated.contains(cpu)) {
            Some("they are isolated from the scheduler")
        } else if self.has_cpu_partition {
            Some("its cgroup is a partition of CPUs")
        } else if self.cpus.len() < online {
            Some("its affinity mask or cpuset is smaller than the machine")
        } else {
            None
        }
    }

    /// Memory that there is for this process: the machine's, or the cgroup's limit where that is
    /// less. `None`: neither can be read.
    pub fn memory_bytes(&self) -> Option<u64> {
        let total = self.memory_total_bytes.as_ref().ok().copied();
        match (total, self.cgroup_memory_max_bytes) {
            (Some(total), Some(limit)) => Some(total.min(limit)),
            (total, limit) => total.or(limit),
        }
    }

    /// The default of `roost.memory_limit`: 80 % of [`Self::memory_bytes`].
    pub fn memory_limit_default_bytes(&self) -> Option<u64> {
        self.memory_bytes().map(|bytes| bytes / 10 * 8)
    }

    /// Descriptors that one table can hold: the hard RLIMIT_NOFILE, or `fs.nr_open` if that is less.
    pub fn table_descriptors_max(&self) -> u64 {
        self.nofile_hard.min(self.nr_open.as_ref().copied().unwrap_or(u64::MAX))
    }
}

fn cpus_allowed() -> Vec<usize> {
    let cpus: Vec<usize> = rustix::thread::sched_getaffinity(None)
        .map(|set| (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
        .unwrap_or_default();
    if cpus.is_empty() {
        return (0..std::thread::available_parallelism().map_or(1, usize::from)).collect();
    }
    cpus
}

/// CPUs of a list such as `0-3,8`.
fn cpu_list(files: &Sysctls, name: &str) -> Reading<Vec<usize>> {
    let path = format!("sys/devices/system/cpu/{name}");
    let text = files.text(&path)?;
    cpus_of_list(&text).ok_or_else(|| Unreadable(format!("/{path} is no list of CPUs")))
}

/// The CPUs of such a list; `None` where it is none.
pub(super) fn cpus_of_list(text: &str) -> Option<Vec<usize>> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        (last < rustix::thread::CpuSet::MAX_CPU).then_some(first..=last)
    };
    let ranges = text.split(',').filter(|part| !part.is_empty()).map(range);
    let ranges: Option<Vec<_>> = ranges.collect();
    Some(ranges?.into_iter().flatten().collect())
}

/// Only the cgroup itself says it: what is below a partition shares its CPUs.
fn has_cpu_partition(files: &Sysctls, cgroup: &str) -> bool {
    let Some(path) = cgroup_path(cgroup, "") else { return false };
    let path = path.trim_matches('/');
    let file = format!("{}/{path}/cpuset.cpus.partition", v2_mount(files));
    matches!(files.text(&file).as_deref(), Ok("root" | "isolated"))
}

fn meminfo_bytes(files: &Sysctls, field: &str) -> Reading<u64> {
    let text = files.text("proc/meminfo")?;
    text.lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map(|kib| kib.saturating_mul(1024))
        .ok_or_else(|| Unreadable(format!("/proc/meminfo has no {field}")))
}

fn port_range(files: &Sysctls) -> Reading<(u64, u64)> {
    let numbers = files.numbers("net.ipv4.ip_local_port_range")?;
    match numbers[..] {
        [first, last] => Ok((first, last)),
        _ => Err(Unreadable("net.ipv4.ip_local_port_range is not two numbers".to_owned())),
    }
}

/// The process's directory in the hierarchy of `controller` (version 1) or in the one hierarchy of
/// version 2 (`""`), from the text of `/proc/self/cgroup`: lines `id:controllers:path`.
fn cgroup_path<'a>(cgroup: &'a str, controller: &str) -> Option<&'a str> {
    cgroup.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        controllers.split(',').any(|name| name == controller).then_some(path)
    })
}

/// The smallest of what `read` finds in the process's cgroup directory and those above it. Within
/// a container the path is often one of the host's: only the top exists then, and it is the
/// container's own.
fn tightest(mount: &str, path: &str, read: impl Fn(&str) -> Option<u64>) -> Option<u64> {
    std::path::Path::new(path.trim_start_matches('/'))
        .ancestors()
        .take(CGROUP_LEVELS_MAX)
        .chain([std::path::Path::new("")])
        .filter_map(|level| read(&format!("{mount}/{}", level.display())))
        .min()
}

/// Where the version 2 hierarchy is mounted: alone, or beside version 1.
fn v2_mount(files: &Sysctls) -> &'static str {
    if files.exists("sys/fs/cgroup/unified") { "sys/fs/cgroup/unified" } else { "sys/fs/cgroup" }
}

fn cgroup_memory_max_bytes(files: &Sysctls, cgroup: &str) -> Option<u64> {
    let number = |path: String| files.text(&path).ok()?.parse::<u64>().ok();
    let v2 = cgroup_path(cgroup, "").and_then(|path| {
        // "max" is not a number: no limit.
        tightest(v2_mount(files), path, |dir| number(format!("{dir}/memory.max")))
    });
    let v1 = cgroup_path(cgroup, "memory").and_then(|path| {
        tightest("sys/fs/cgroup/memory", path, |dir| {
            number(format!("{dir}/memory.limit_in_bytes"))
                .filter(|&bytes| bytes < CGROUP_V1_NO_LIMIT_BYTES)
        })
    });
    v2.into_iter().chain(v1).min()
}

fn cpu_quota_milli(files: &Sysctls, cgroup: &str) -> Option<u64> {
    let milli = |quota: u64, period: u64| (quota.saturating_mul(1000)).checked_div(period);
    let v2 = cgroup_path(cgroup, "").and_then(|path| {
        tightest(v2_mount(files), path, |dir| {
            // "QUOTA PERIOD" in microseconds; the quota is "max" where there is none.
            let text = files.text(&format!("{dir}/cpu.max")).ok()?;
            let (quota, period) = text.split_once(' ')?;
            milli(quota.parse().ok()?, period.parse().ok()?)
        })
    });
    let v1 = cgroup_path(cgroup, "cpu").and_then(|path| {
        tightest("sys/fs/cgroup/cpu", path, |dir| {
            // -1 is no quota, and not a `u64`.
            let quota = files.text(&format!("{dir}/cpu.cfs_quota_us")).ok()?.parse().ok()?;
            let period = files.text(&format!("{dir}/cpu.cfs_period_us")).ok()?.parse().ok()?;
            milli(quota, period)
        })
    });
    v2.into_iter().chain(v1).min()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::path::PathBuf;

    /// A directory that stands for a host's root; gone when dropped.
    pub(crate) struct FakeHost(PathBuf);

    impl FakeHost {
        pub(crate) fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root =
                std::env::temp_dir().join(format!("roost-host-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&root);
            std::fs::create_dir_all(&root).unwrap();
            let host = Self(root);
            for (path, text) in files {
                host.put(path, text);
            }
            host
        }

        pub(crate) fn put(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        pub(crate) fn files(&self) -> Sysctls {
            Sysctls::under(&self.0)
        }

        pub(crate) fn path(&self) -> &std::path::Path {
            &self.0
        }
    }

    impl Drop for FakeHost {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// A machine of 2 cores, 24 GB and a hard limit of `nofile` descriptors.
    pub(crate) fn machine(nofile: u64) -> Facts {
        let host =
            FakeHost::new(&format!("machine-{nofile}-{:?}", std::thread::current().id()), &[]);
        Facts {
            cpus: vec![0, 1],
            cpu_quota_milli: None,
            cpus_online: Ok(vec![0, 1]),
            cpus_isolated: Ok(vec![]),
            has_cpu_partition: false,
            memory_total_bytes: Ok(24_000_000_000),
            memory_available_bytes: Ok(23_000_000_000),
            cgroup_memory_max_bytes: None,
            nofile_soft: 1024,
            nofile_hard: nofile,
            tables_apart: true,
            nr_open: Ok(1_048_576),
            file_max: Ok(2_400_000),
            files_open: Ok(1_000),
            ..Facts::read_from(&host.files())
        }
    }

    #[test]
    fn a_host_of_files_is_read_and_missing_files_are_named() {
        let host = FakeHost::new(
            "read",
            &[
                ("proc/meminfo", "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:  900 kB\n"),
                ("proc/sys/fs/nr_open", "1048576\n"),
                ("proc/sys/fs/file-nr", "580\t0\t2466170\n"),
                ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
                ("proc/sys/fs/file-max", "plenty\n"),
            ],
        );
        let facts = Facts::read_from(&host.files());
        assert_eq!(facts.memory_total_bytes, Ok(1_024_000));
        assert_eq!(facts.memory_available_bytes, Ok(921_600));
        assert_eq!(facts.nr_open, Ok(1_048_576));
        assert_eq!(facts.files_open, Ok(580));
        assert_eq!(facts.port_range, Ok((32_768, 60_999)));
        assert!(facts.file_max.as_ref().unwrap_err().0.contains("plenty"));
        assert!(facts.conntrack_max.as_ref().unwrap_err().0.contains("is not there"));
        assert!(facts.cores() >= 1);
    }

    #[test]
    fn the_tightest_cgroup_limit_above_the_process_counts() {
        let v2 = FakeHost::new(
            "v2",
            &[
                ("proc/self/cgroup", "0::/slice/roost.service\n"),
                ("sys/fs/cgroup/slice/roost.service/memory.max", "max\n"),
                ("sys/fs/cgroup/slice/roost.service/cpu.max", "max 100000\n"),
                ("sys/fs/cgroup/slice/memory.max", "5000000\n"),
                ("sys/fs/cgroup/slice/cpu.max", "150000 100000\n"),
            ],
        );
        let facts = Facts::read_from(&v2.files());
        assert_eq!(facts.cgroup_memory_max_bytes, Some(5_000_000));
        assert_eq!(facts.cpu_quota_milli, Some(1500));

        // A container that sees the host's path but mounts its own cgroup at the top.
        let v1 = FakeHost::new(
            "v1",
            &[
                ("proc/self/cgroup", "9:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n"),
                ("sys/fs/cgroup/unified/cgroup.procs", ""),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "7000000\n"),
                ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
                ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
            ],
        );
        let facts = Facts::read_from(&v1.files());
        assert_eq!(facts.cgroup_memory_max_bytes, Some(7_000_000));
        assert_eq!(facts.cpu_quota_milli, None);

        v1.put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(Facts::read_from(&v1.files()).cgroup_memory_max_bytes, None);
    }

    #[test]
    fn cpus_are_its_own_where_the_machine_says_so() {
        let mut facts = machine(20_000);
        assert_eq!((facts.cores(), facts.own_cpus()), (2, None));
        facts.has_cpu_partition = true;
        assert!(facts.own_cpus().unwrap().contains("partition"));
        facts.has_cpu_partition = false;
        facts.cpus_online = Ok((0..4).collect());
        assert!(facts.own_cpus().unwrap().contains("smaller"));
        facts.cpus_isolated = Ok(vec![0]);
        assert!(facts.own_cpus().unwrap().contains("smaller"));
        facts.cpus_isolated = Ok(vec![0, 1]);
        assert!(facts.own_cpus().unwrap().contains("isolated"));
        facts.cpu_quota_milli = Some(500);
        assert_eq!((facts.cores(), facts.own_cpus()), (1, None));
        facts.cpu_quota_milli = Some(9000);
        assert!(facts.own_cpus().is_some());
        facts.cpus_isolated = Err(Unreadable("gone".to_owned()));
        facts.cpus_online = Err(Unreadable("gone".to_owned()));
        assert_eq!(facts.own_cpus(), None);
    }

    #[test]
    fn lists_of_cpus_and_partitions_are_read() {
        let host = FakeHost::new(
            "cpus",
            &[
                ("proc/self/cgroup", "0::/slice/roost.service\n"),
                ("sys/devices/system/cpu/online", "0-2,8\n"),
                ("sys/devices/system/cpu/isolated", "\n"),
                ("sys/fs/cgroup/slice/roost.service/cpuset.cpus.partition", "isolated\n"),
            ],
        );
        let facts = Facts::read_from(&host.files());
        assert_eq!(facts.cpus_online, Ok(vec![0, 1, 2, 8]));
        assert_eq!(facts.cpus_isolated, Ok(vec![]));
        assert!(facts.has_cpu_partition);
        host.put("sys/fs/cgroup/slice/roost.service/cpuset.cpus.partition", "isolated invalid\n");
        host.put("sys/devices/system/cpu/online", "0-x\n");
        let facts = Facts::read_from(&host.files());
        assert!(facts.cpus_online.is_err() && !facts.has_cpu_partition);
    }

    #[test]
    fn memory_is_the_machines_or_the_cgroups() {
        let mut facts = machine(20_000);
        facts.cgroup_memory_max_bytes = Some(1_000);
        assert_eq!(facts.memory_limit_default_bytes(), Some(800));
        facts.memory_total_bytes = Err(Unreadable("gone".to_owned()));
        assert_eq!(facts.memory_bytes(), Some(1_000));
        facts.cgroup_memory_max_bytes = None;
        assert_eq!(facts.memory_bytes(), None);
    }
}
