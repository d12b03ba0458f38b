//! Reading and writing `/proc` and `/sys` below a root that tests can move.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Bytes of one file under `/proc` or `/sys` that are looked at; more is not a value of ours.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// A value, or why there is none.
pub type Reading<T> = Result<T, Unreadable>;

/// Why a value cannot be read, in words for an operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(pub String);

/// The files of a host, or of a directory that stands for one in a test.
#[derive(Clone, Debug)]
pub struct Sysctls {
    root: PathBuf,
}

impl Sysctls {
    /// This machine.
    pub fn host() -> Self {
        Self::under("/")
    }

    /// A directory that holds `proc/` and `sys/` as this machine's root does.
    pub fn under(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// A file's text without white space around it; `path` is relative to the root.
    pub fn text(&self, path: &str) -> Reading<String> {
        use io::Read as _;
        let mut text = String::new();
        fs::File::open(self.root.join(path))
            .and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text))
            .map_err(|error| Unreadable(in_words(path, &error)))?;
        Ok(text.trim().to_owned())
    }

    /// The numbers of one sysctl, `net.ipv4.tcp_mem` for example, as it lists them (at least one).
    pub fn numbers(&self, key: &str) -> Reading<Vec<u64>> {
        let text = self.text(&file_of(key))?;
        let numbers: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
        match numbers {
            Ok(numbers) if !numbers.is_empty() => Ok(numbers),
            _ => Err(Unreadable(format!("{key} holds {text:?}, which is not a list of numbers"))),
        }
    }

    /// The first number of one sysctl.
    pub fn number(&self, key: &str) -> Reading<u64> {
        // `numbers` never gives an empty list.
        self.numbers(key).map(|numbers| numbers[0])
    }

    /// Sets one sysctl. The kernel may round or refuse: read it back.
    pub fn set(&self, key: &str, numbers: &[u64]) -> Result<(), Unreadable> {
        self.write(&file_of(key), &spaced(numbers))
    }

    /// Writes a file that is there; `path` is relative to the root.
    pub fn write(&self, path: &str, text: &str) -> Result<(), Unreadable> {
        // Not `fs::write`: that would create the file where there is none.
        fs::File::options()
            .write(true)
            .truncate(true)
            .open(self.root.join(path))
            .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()))
            .map_err(|error| Unreadable(in_words(path, &error)))
    }

    /// Names of a directory's entries, sorted, at most `max` of them; `path` is relative to the root.
    pub fn list(&self, path: &str, max: usize) -> Reading<Vec<String>> {
        let entries = fs::read_dir(self.root.join(path))
            .map_err(|error| Unreadable(in_words(path, &error)))?;
        let names =
            entries.take(max).filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort_unstable();
        Ok(names)
    }

    /// True when there is such a file or directory; `path` is relative to the root.
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.root.join(path).exists()
    }
}

/// Numbers as a sysctl file spells them.
pub fn spaced(numbers: &[u64]) -> String {
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
}

fn file_of(key: &str) -> String {
    format!("proc/sys/{}", key.replace('.', "/"))
}

fn in_words(path: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            format!("/{path} is not there (module not loaded, or not seen from this container)")
        }
        io::ErrorKind::PermissionDenied => format!("/{path}: no permission (root is needed)"),
        io::ErrorKind::ReadOnlyFilesystem => {
            format!("/{path} is read-only (a container: set it on the host)")
        }
        io::ErrorKind::InvalidInput => format!("/{path}: the kernel refuses this value"),
        _ => format!("/{path}: {error}"),
    }
}
