//! Reads files, with a bound.

use std::path::Path;

/// Bytes of a configuration file at most; more is refused.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// The text of a file of options, or of one that an option names.
///
/// # Errors
/// It cannot be read, or is too long.
pub(super) fn read(path: &Path) -> std::io::Result<String> {
    let length = std::fs::metadata(path)?.len();
    if length > FILE_BYTES_MAX {
        let fault = format!("{length} bytes are too many for a configuration");
        return Err(std::io::Error::other(fault));
    }
    std::fs::read_to_string(path)
}
