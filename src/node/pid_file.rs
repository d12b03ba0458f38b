//! The file that holds the process id while the node runs.
//!
//! It often stands in a folder that others write to, and a node may run as root: no link is followed, nothing
//! but a file of its own is written, and nothing is removed that another node has put there. A lock
//! distinguishes a file that a running node holds from one that was left behind.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::warn;

/// A file with this process's id, locked for as long as it lives.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
    file: File,
}

impl PidFile {
    /// Makes the file, or takes one that nobody holds.
    ///
    /// # Errors
    /// When it is a link, no plain file, held by a running node, or can't be written.
    pub(super) fn write(path: PathBuf) -> io::Result<Self> {
        let at =
            |fault: io::Error| io::Error::new(fault.kind(), format!("{}: {fault}", path.display()));
        let file = Self::open(&path).map_err(at)?;
        Ok(Self { path, file })
    }

    fn open(path: &Path) -> io::Result<File> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            // Not emptied by the open: it may be another file than ours.
            .truncate(false)
            // A pipe would block without the second.
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
            .map_err(|fault| match fault.raw_os_error() {
                Some(libc::ELOOP) => io::Error::other("a symbolic link, which is not followed"),
                _ => fault,
            })?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.nlink() != 1 {
            return Err(io::Error::other("expected a plain file with one name"));
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = Read::by_ref(&mut file).take(PID_BYTES_MAX).read_to_string(&mut holder);
                return Err(io::Error::other(format!("held by process {}", holder.trim())));
            }
            // Some file systems have no locks.
            Err(TryLockError::Error(_)) => {}
        }
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(format!("{}\n", std::process::id()).as_bytes())?;
        Ok(file)
    }

    /// Makes the file as soon as the process gives it up that hands over to this one.
    pub(super) async fn write_when_free(path: PathBuf, slot: Arc<Mutex<Option<Self>>>) {
        for _ in 0..ATTEMPTS {
            match Self::open(&path) {
                Ok(file) => {
                    let written = Self { path, file };
                    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(written);
                    return;
                }
                Err(_) => tokio::time::sleep(ATTEMPT_AGAIN).await,
            }
        }
        if let Err(fault) = Self::write(path) {
            warn!(%fault, "cannot write the pid file");
        }
    }

    /// Another process takes its place, and writes its own id into it.
    pub(super) fn release(self) {}

    /// Removes it, unless another file has taken its place.
    pub(super) fn remove(self) {
        let same = |metadata: &std::fs::Metadata| {
            let own = self.file.metadata();
            own.is_ok_and(|own| (own.dev(), own.ino()) == (metadata.dev(), metadata.ino()))
        };
        let path = self.path.display();
        match std::fs::symlink_metadata(&self.path) {
            Ok(metadata) if same(&metadata) => {
                if let Err(fault) = std::fs::remove_file(&self.path) {
                    warn!(%path, %fault, "cannot remove the pid file");
                }
            }
            Ok(_) => warn!(%path, "the pid file belongs to another process and is kept"),
            Err(fault) => warn!(%path, %fault, "the pid file was removed by another process"),
        }
    }
}

/// Attempts to take a file that another process gives up, and the time between two.
const ATTEMPTS: u32 = 600;
const ATTEMPT_AGAIN: Duration = Duration::from_millis(50);

/// Bytes of a process id in a file at most.
const PID_BYTES_MAX: u64 = 16;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A folder of its own, removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("roost-pid-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn links_are_not_followed() {
        let folder = Folder::new("links");
        let (path, victim) = (folder.0.join("pid"), folder.0.join("victim"));
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        let fault = PidFile::write(path.clone()).unwrap_err();
        assert!(fault.to_string().contains("symbolic link"), "{fault}");
        fs::remove_file(&path).unwrap();
        // One that leads nowhere would make a file there.
        let nowhere = folder.0.join("nowhere");
        std::os::unix::fs::symlink(&nowhere, &path).unwrap();
        assert!(PidFile::write(path.clone()).is_err() && !nowhere.exists());
        fs::remove_file(&path).unwrap();
        fs::hard_link(&victim, &path).unwrap();
        let fault = PidFile::write(path.clone()).unwrap_err();
        assert!(fault.to_string().contains("one name"), "{fault}");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert!(PidFile::write(folder.0.clone()).is_err(), "a folder");
    }

    #[test]
    fn a_file_that_was_left_behind_is_taken_and_one_that_is_held_is_not() {
        let folder = Folder::new("held");
        let path = folder.0.join("pid");
        fs::write(&path, "123456789\nand more").unwrap();
        let held = PidFile::write(path.clone()).unwrap();
        let own = format!("{}\n", std::process::id());
        assert_eq!(fs::read_to_string(&path).unwrap(), own);
        let fault = PidFile::write(path.clone()).unwrap_err();
        assert!(fault.to_string().ends_with(&format!("held by process {}", std::process::id())));
        assert_eq!(fs::read_to_string(&path).unwrap(), own);
        held.remove();
        assert!(!path.exists());
    }

    #[test]
    fn only_its_own_file_is_removed() {
        let folder = Folder::new("own");
        let path = folder.0.join("pid");
        let first = PidFile::write(path.clone()).unwrap();
        fs::remove_file(&path).unwrap();
        let second = PidFile::write(path.clone()).unwrap();
        first.remove();
        assert!(path.exists());
        second.remove();
        assert!(!path.exists());
    }
}
