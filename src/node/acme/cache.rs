//! The files of the ACME client: keys and certificates, of their owner only, replaced as a whole.
//!
//! | file | content |
//! | --- | --- |
//! | `acme_account+key` | the account's key |
//! | `HOST` | a certificate's key, the certificate, its chain |
//! | `TOKEN+http-01` | the answer to a challenge that is under way |
//! | `HOST+lock` | locked while a node obtains the certificate |
//!
//! The names and forms are those of the cache of Go's autocert, so that one can be taken over.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// The directory.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Makes it where it isn't there.
    ///
    /// # Errors
    /// It can't be made, or not be written to.
    pub(super) fn open(folder: PathBuf) -> io::Result<Self> {
        let fault = |fault: io::Error| {
            io::Error::new(fault.kind(), format!("{}: {fault}", folder.display()))
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(fault)?;
        let cache = Self { folder: folder.clone() };
        cache.write(".writable", "").map_err(fault)?;
        cache.remove(".writable");
        Ok(cache)
    }

    /// The content of a file; `None`: it isn't there.
    ///
    /// # Errors
    /// It can't be read.
    pub(super) fn read(&self, name: &str) -> io::Result<Option<Zeroizing<String>>> {
        match fs::read_to_string(self.folder.join(name)) {
            Ok(text) => Ok(Some(Zeroizing::new(text))),
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Writes a file, and puts it in the place of the one before when it is on the disk: readers and power
    /// failures see the one or the other.
    ///
    /// # Errors
    /// It can't be written.
    pub(super) fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let new = self.folder.join(format!(".{name}.{}", std::process::id()));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        let written = file
            .write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&new, self.folder.join(name)))
            .and_then(|()| File::open(&self.folder)?.sync_all());
        if written.is_err() {
            let _ = fs::remove_file(new);
        }
        written
    }

    /// Removes a file, if it is there.
    pub(super) fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.folder.join(name));
    }

    /// The lock of a host among nodes, until it is dropped; `None`: another node has it. One that a killed node
    /// had is free.
    ///
    /// # Errors
    /// The file can't be opened or locked.
    pub(super) fn lock(&self, host: &str) -> io::Result<Option<File>> {
        let path = self.folder.join(format!("{host}+lock"));
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(fault)) => Err(fault),
        }
    }
}

/// Bytes as PEM (RFC 7468).
pub(super) fn pem(label: &str, der: &[u8]) -> Zeroizing<String> {
    let packed = Zeroizing::new(STANDARD.encode(der));
    // Lines of 64 characters, and so never more than twice the length: no copy stays behind a growing string.
    let mut text = Zeroizing::new(String::with_capacity(2 * packed.len() + 2 * label.len() + 64));
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = packed.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// A cache of one test, removed behind it.
    pub(in crate::node::acme) struct Folder(pub(in crate::node::acme) PathBuf);

    impl Folder {
        pub(in crate::node::acme) fn new(name: &str) -> Self {
            let folder = format!("roost-acme-{name}-{}", std::process::id());
            Self(std::env::temp_dir().join(folder))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::testing::Folder;
    use super::*;

    #[test]
    fn files_are_their_owners_and_replaced_as_a_whole() {
        let folder = Folder::new("files");
        let cache = Cache::open(folder.0.join("below")).unwrap();
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(folder.0.join("below")), 0o700);
        assert_eq!(cache.read("a.example").unwrap(), None);
        cache.write("a.example", "first").unwrap();
        let path = folder.0.join("below/a.example");
        assert_eq!(mode(path.clone()), 0o600);
        let number = fs::metadata(&path).unwrap().ino();
        // A reader of the old file goes on with it.
        let reader = File::open(&path).unwrap();
        cache.write("a.example", "second").unwrap();
        assert_ne!(fs::metadata(&path).unwrap().ino(), number);
        assert_eq!(io::read_to_string(reader).unwrap(), "first");
        assert_eq!(cache.read("a.example").unwrap().unwrap().as_str(), "second");
        cache.remove("a.example");
        assert_eq!(cache.read("a.example").unwrap(), None);
        assert_eq!(fs::read_dir(folder.0.join("below")).unwrap().count(), 0);
    }

    #[test]
    fn a_host_is_obtained_by_one_at_a_time() {
        let folder = Folder::new("lock");
        let cache = Cache::open(folder.0.clone()).unwrap();
        let held = cache.lock("a.example").unwrap();
        assert!(held.is_some() && cache.lock("a.example").unwrap().is_none());
        assert!(cache.lock("b.example").unwrap().is_some());
        drop(held);
        assert!(cache.lock("a.example").unwrap().is_some());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_a_fault_with_its_path() {
        let fault = Cache::open("/proc/roost".into()).unwrap_err();
        assert!(fault.to_string().contains("/proc/roost"), "{fault}");
    }
}
