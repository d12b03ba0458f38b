//! Descriptors that a service manager has opened and passed to this process (socket activation).

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The descriptors of `LISTEN_FDS` with their names (`LISTEN_FDNAMES`). None unless `LISTEN_PID` is this
/// process, and none at a second call.
///
/// Call it before this process opens files that it keeps: one at a number that the manager announces
/// but has not passed would have two owners.
///
/// # Errors
/// A variable that is no number, a number without a file, another count of names.
pub fn take_passed() -> io::Result<Vec<(OwnedFd, String)>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let passed = sd_notify::listen_fds_with_names()?;
    // SAFETY: each number has an open file, which `listen_fds_with_names` has marked close-on-exec. By
    // the protocol it is this process's and has no owner in it, and the flag above lets each number
    // through once.
    let own = |(number, name)| (unsafe { OwnedFd::from_raw_fd(number) }, name);
    Ok(passed.map(own).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_was_passed_nothing_takes_nothing() {
        for _ in 0..2 {
            assert!(take_passed().unwrap().is_empty());
        }
    }
}
