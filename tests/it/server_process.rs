//! A server that a test has started: its process and its folder end with the test.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::BOUND;

pub(crate) struct ServerProcess {
    pub(crate) child: Child,
    pub(crate) folder: PathBuf,
}

impl ServerProcess {
    /// Runs a server in a folder of its own.
    pub(crate) fn run(run: impl FnOnce(&PathBuf) -> Child) -> Self {
        let made = Command::new("mktemp").arg("-d").output().unwrap().stdout;
        let folder = PathBuf::from(String::from_utf8(made).unwrap().trim());
        Self { child: run(&folder), folder }
    }

    /// Waits until it answers; false when it has ended before.
    pub(crate) fn listens(&mut self, answers: impl Fn() -> bool) -> bool {
        let began = Instant::now();
        while !answers() {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(began.elapsed() < BOUND, "the server does not listen");
            std::thread::park_timeout(Duration::from_millis(5));
        }
        true
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id() as i32).unwrap(), signal).unwrap();
    }

    pub(crate) fn end(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
