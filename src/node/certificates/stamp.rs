//! Facts of a file without reading it: whether it has changed, and who may read it.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Size, time and number of a file, behind symbolic links; `None` where it can't be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp(Option<(u64, i64, i64, u64)>);

impl Stamp {
    pub(super) fn of(path: &Path) -> Self {
        let file = std::fs::metadata(path).ok();
        Self(file.map(|file| (file.len(), file.mtime(), file.mtime_nsec(), file.ino())))
    }
}

/// The mode of a file that its group or all users may read; `None` for others.
pub(super) fn open_to_others(path: &Path) -> Option<u32> {
    let mode = std::fs::metadata(path).ok()?.mode() & 0o7777;
    (mode & 0o044 != 0).then_some(mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_written_or_replaced_has_another_stamp() {
        let path = std::env::temp_dir().join(format!("roost-stamp-{}", std::process::id()));
        let none = Stamp::of(&path);
        std::fs::write(&path, "a").unwrap();
        let first = Stamp::of(&path);
        assert_ne!(first, none);
        assert_eq!(Stamp::of(&path), first);
        std::fs::write(&path, "ab").unwrap();
        let longer = Stamp::of(&path);
        assert_ne!(longer, first);
        let other = path.with_extension("new");
        std::fs::write(&other, "ab").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_ne!(Stamp::of(&path), longer);
        std::fs::remove_file(path).unwrap();
    }
}
