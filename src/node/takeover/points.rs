//! Named points at which tests end or stop a process in the middle of a takeover. A release build has none.

/// Passes the point: a debug build that the environment names it to ends there (`kill:NAME`), stops until it is
/// continued (`stop:NAME`), or holds the thread: it makes the file that the environment names, and waits until
/// that is gone (`hold:NAME`).
#[cfg(debug_assertions)]
#[expect(clippy::disallowed_methods, reason = "a switch of tests, not an option")]
pub(super) fn pass(name: &str) {
    use rustix::process::{Signal, getpid, kill_process};
    let Ok(point) = std::env::var("TAKEOVER_TEST_POINT") else { return };
    let Some((what, of)) = point.split_once(':') else { return };
    if of == name && what == "hold" {
        let Ok(file) = std::env::var("TAKEOVER_TEST_FILE") else { return };
        let made = std::fs::write(&file, "");
        while made.is_ok() && std::path::Path::new(&file).exists() {
            std::thread::park_timeout(std::time::Duration::from_millis(2));
        }
        return;
    }
    let signal = match what {
        "kill" => Signal::KILL,
        _ => Signal::STOP,
    };
    if of == name {
        // A process may send itself any signal.
        let _ = kill_process(getpid(), signal);
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
pub(super) fn pass(_: &str) {}
