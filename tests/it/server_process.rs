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

    /// A server that is to stop has stopped behind this, with all of its threads.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id() as i32).unwrap(), signal).unwrap();
        let began = Instant::now();
        while signal == Signal::STOP && !self.has_stopped() {
            assert!(began.elapsed() < BOUND, "the server does not stop");
            std::thread::yield_now();
        }
    }

    fn has_stopped(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        tasks.flatten().all(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            // Behind the name, which is in brackets.
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
        })
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
