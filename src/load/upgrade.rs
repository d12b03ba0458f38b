//! A server that is replaced while it is used: the command that does it, and how long clients waited.
//!
//! ```text
//!  first half of the messages -> command begins -> second half, and pauses -> last messages -> verdict
//! ```
//! The pause of a client is the longest latency of its messages since the command began, from the intended
//! send time: a server that stands still can't hide it, however seldom a client gets a message.

use super::figures::{self, Latency};
use crossbeam_channel::{Receiver, bounded};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The end of the command: its exit code (none when a signal ended it), and how long it ran.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) code: Option<i32>,
    pub(super) after: Duration,
}

/// The command that replaces the server, while it runs. One that goes on, since it is the new server itself,
/// outlives this process.
#[derive(Debug)]
pub(super) struct Replacement {
    ended: Receiver<Ended>,
}

impl Replacement {
    /// Runs `command` in a shell. Its output goes to standard error.
    ///
    /// # Errors
    /// When it can't be started: text for the user.
    pub(super) fn begin(command: &str) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("--run: {error}");
        let began = Instant::now();
        let mut child = Command::new("/bin/sh")
            .args(["-c", command])
            .stdin(Stdio::null())
            .stdout(std::io::stderr())
            .spawn()
            .map_err(failed)?;
        let (sender, ended) = bounded(1);
        std::thread::Builder::new()
            .name("load-run".to_owned())
            .spawn(move || {
                let code = child.wait().ok().and_then(|status| status.code());
                // Nobody waits any more when the run was shorter than the command.
                let _ = sender.send(Ended { code, after: began.elapsed() });
            })
            .map_err(failed)?;
        Ok(Self { ended })
    }

    /// How it ended; nothing while it runs.
    pub(super) fn ended(&self) -> Option<Ended> {
        self.ended.try_recv().ok()
    }
}

/// The longest latency of each connection of a thread, in microseconds; 0: no message came. 4 bytes each, and
/// only in this scenario.
#[derive(Debug)]
pub(super) struct Pauses(Vec<u32>);

impl Pauses {
    pub(super) fn new(connections: usize) -> Self {
        Self(vec![0; connections])
    }

    /// A message has come to a connection after so long.
    pub(super) fn record(&mut self, index: u32, us: u64) {
        if let Some(longest) = self.0.get_mut(index as usize) {
            *longest = (*longest).max(u32::try_from(us).unwrap_or(u32::MAX));
        }
    }

    /// One value for each connection that got a message.
    pub(super) fn histogram(&self) -> Latency {
        let mut all = figures::latency();
        self.0.iter().filter(|us| **us > 0).for_each(|us| all.saturating_record((*us).into()));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_latency_of_each_connection_counts() {
        let mut pauses = Pauses::new(3);
        for (index, us) in [(0, 5), (0, 900), (0, 7), (2, u64::MAX), (9, 1)] {
            pauses.record(index, us);
        }
        let all = pauses.histogram();
        assert_eq!((all.len(), all.min()), (2, 900));
    }

    #[test]
    fn a_command_ends_with_its_exit_code() {
        let replacement = Replacement::begin("exit 3").unwrap();
        let ended = replacement.ended.recv().unwrap();
        assert_eq!(ended.code, Some(3));
        assert!(replacement.ended().is_none());
    }
}
