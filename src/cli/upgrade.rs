//! `roost upgrade`: starts a new process that takes over all connections of a running node, and says what came
//! of it.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use super::flags::{OptionArgs, flag_of};
use super::{fail, mistaken, refuse, say};
use crate::config::{self, Sources};
use crate::handover::Status;
use crate::node::takeover_status;

/// Arguments of `roost upgrade`.
#[derive(Debug, clap::Args)]
pub(super) struct UpgradeArgs {
    /// The new program; by default the one that runs this command.
    #[arg(long, value_name = "FILE")]
    pub program: Option<PathBuf>,
    /// Time that the new process has to take over.
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = humantime::parse_duration)]
    pub within: Duration,
    /// The options of the new process, as `roost serve` takes them.
    #[command(flatten)]
    pub options: OptionArgs,
}

pub(super) fn run(arguments: &UpgradeArgs, environment: Vec<(String, String)>) -> ExitCode {
    let OptionArgs { config, set } = &arguments.options;
    let (file, flags) = (config.clone(), set.clone());
    let loaded = match config::load(&Sources { file, environment, flags, dev: false }) {
        Ok(loaded) => loaded,
        Err(fault) => return refuse(&fault),
    };
    let Some(socket) = loaded.config.roost.takeover else {
        return mistaken("no way to the node: roost.takeover names no socket");
    };
    let before = match takeover_status(&socket) {
        Ok(Some(status)) => status,
        Ok(None) => return fail(&format!("no node listens at {}", socket.display())),
        Err(why) => return fail(&format!("{}: {why}", socket.display())),
    };
    let started = match start(arguments) {
        Ok(child) => child,
        Err(fault) => return fail(&format!("the new process: {fault}")),
    };
    match await_takeover(started, &socket, arguments.within) {
        Ok(after) => {
            say(&report(&before, &after));
            ExitCode::SUCCESS
        }
        Err(why) => fail(&format!("{why}; process {} goes on", before.pid)),
    }
}

/// Starts the new process, which goes on when this command has ended.
fn start(arguments: &UpgradeArgs) -> std::io::Result<Child> {
    let program = match &arguments.program {
        Some(program) => program.clone(),
        None => std::env::current_exe()?,
    };
    let mut command = Command::new(program);
    command.arg("serve");
    if let Some(file) = &arguments.options.config {
        command.arg("-c").arg(file);
    }
    for (option, text) in &arguments.options.set {
        if let Some(flag) = flag_of(option) {
            command.arg(format!("--{flag}={text}"));
        }
    }
    // A signal of the terminal is for this command alone.
    command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0).spawn()
}

/// Waits until the new process answers at the socket, or has ended.
#[expect(clippy::disallowed_methods, reason = "bounds the wait for another process")]
fn await_takeover(mut child: Child, socket: &Path, within: Duration) -> Result<Status, String> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().map_err(|fault| fault.to_string())? {
            return Err(format!("the new process has ended: {status}; its log has the reason"));
        }
        if let Ok(Some(status)) = takeover_status(socket)
            && status.pid == child.id()
        {
            return Ok(status);
        }
        if began.elapsed() > within {
            // It holds copies of the connections, perhaps.
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("the new process didn't take over within {within:?}"));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// From one look at the socket to the next.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

fn report(before: &Status, after: &Status) -> String {
    let pause_ms = after.pause_us as f64 / 1000.0;
    format!(
        "process {} (version {}) has taken over from process {} (version {}): {} connections, {} bytes \
         of state, a pause of {pause_ms:.1} ms\n",
        after.pid, after.version, before.pid, before.version, after.connections, after.bytes
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_names_both_processes() {
        let before = Status { pid: 1, version: "0.2.0".into(), ..Status::default() };
        let after = Status {
            pid: 2,
            version: "0.3.0".into(),
            takeovers: 1,
            connections: 7,
            pause_us: 12_345,
            bytes: 900,
        };
        assert_eq!(
            report(&before, &after),
            "process 2 (version 0.3.0) has taken over from process 1 (version 0.2.0): 7 connections, \
             900 bytes of state, a pause of 12.3 ms\n"
        );
    }
}
