//! What the kernel counts of this process: time of its CPUs, memory, descriptors.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

/// Ticks of `/proc/self/stat` in a second: the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Figures of this process. What can't be read is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Process {
    /// Time of CPUs, in user and kernel mode.
    pub cpu: Option<Duration>,
    /// Bytes of address space.
    pub virtual_bytes: Option<u64>,
    /// Bytes of memory in use.
    pub resident_bytes: Option<u64>,
    /// Open descriptors, in all tables.
    pub open_fds: Option<u64>,
    /// Descriptors at most, in all tables.
    pub max_fds: Option<u64>,
}

impl Process {
    /// Reads them. `tables_apart`: each thread named `shard-N` has a descriptor table of its own.
    pub fn read(tables_apart: bool) -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let pages = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let mut pages = pages.split_ascii_whitespace().map(|pages| pages.parse::<u64>().ok());
        let page = rustix::param::page_size() as u64;
        let mut bytes = || Some(pages.next()?? * page);
        let (virtual_bytes, resident_bytes) = (bytes(), bytes());
        let (open_fds, tables) = match tables_apart {
            true => descriptors_of_threads(),
            false => (open_in("/proc/self"), 1),
        };
        let limit = getrlimit(Resource::Nofile).current;
        Self {
            cpu: cpu(&stat),
            virtual_bytes,
            resident_bytes,
            open_fds,
            max_fds: limit.map(|limit| limit.saturating_mul(tables)),
        }
    }
}

/// The fields 14 and 15 of `/proc/self/stat`. The second field is the name, which may have any byte in it.
fn cpu(stat: &str) -> Option<Duration> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let ticks = ticks()? + ticks()?;
    Some(Duration::from_secs_f64(ticks as f64 / TICKS_PER_SECOND))
}

/// Open descriptors of the process's table and of the tables of shards, and the number of all these tables.
fn descriptors_of_threads() -> (Option<u64>, u64) {
    let (mut open, mut tables) = (open_in("/proc/self"), 1);
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if name.starts_with("shard-") {
            tables += 1;
            open = open.and_then(|open| Some(open + open_in(&task.path().to_string_lossy())?));
        }
    }
    (open, tables)
}

/// Descriptors in the table of a task. The kernel says the number as the size of the directory (since 6.2; before,
/// the size is 0): a directory with a million entries is not read for it.
fn open_in(task: &str) -> Option<u64> {
    fs::metadata(format!("{task}/fd")).ok().map(|fd| fd.size()).filter(|count| *count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_stat_are_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20";
        assert_eq!(cpu(stat), Some(Duration::from_secs(3)));
        assert_eq!(cpu("7 (cut"), None);
    }

    #[test]
    fn this_process_has_figures() {
        let process = Process::read(true);
        assert!(process.resident_bytes.unwrap() > 1 << 20, "{process:?}");
        assert!(process.virtual_bytes > process.resident_bytes && process.max_fds.unwrap() > 0);
        assert!(process.cpu.is_some());
        let open = open_in("/proc/self");
        let held = fs::File::open("/proc/self/stat").unwrap();
        // Other tests open files meanwhile; without a count of the kernel both are unknown.
        assert_eq!(open_in("/proc/self").is_some(), open.is_some());
        drop(held);
    }
}
