//! `roost reload`: has a running node read its options again, and says whether it did.
//!
//! The admin API answers with the outcome. A signal has no answer: then the options are checked first, as the
//! node will, and the signal is sent to the process that holds the pid file, or by systemd.

use std::path::Path;
use std::process::{Command, ExitCode};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::admin::{AccessArgs, Admin};
use super::target::{Target, TargetArgs};
use super::{fail, say, unfound, warn};
use crate::config;
use crate::node::check_certificates;

/// Arguments of `roost reload`.
#[derive(Debug, clap::Args)]
pub(super) struct ReloadArgs {
    /// Reload this unit of systemd.
    #[arg(long, value_name = "UNIT", conflicts_with_all = ["pid", "password", "token", "url"])]
    pub systemd: Option<String>,
    /// Send SIGHUP to this process.
    #[arg(long, value_name = "PID", conflicts_with_all = ["password", "token", "url"])]
    pub pid: Option<i32>,
    /// Access.
    #[command(flatten)]
    pub access: AccessArgs,
    /// Which node.
    #[command(flatten)]
    pub target: TargetArgs,
}

pub(super) fn run(arguments: &ReloadArgs, environment: Vec<(String, String)>) -> ExitCode {
    if let Some(unit) = &arguments.systemd {
        return by_systemd(unit);
    }
    let target = match Target::find(&arguments.target, environment) {
        Ok(target) => target,
        Err(fault) => return unfound(fault),
    };
    if let Some(pid) = arguments.pid {
        return by_signal(&target, pid);
    }
    let has_admin = target.config.web.admin.is_some() || target.has_url();
    match (&target.config.pid_file, has_admin) {
        (_, true) => by_admin(&target, &arguments.access),
        (Some(file), false) => match pid_in(file) {
            Ok(pid) => by_signal(&target, pid),
            Err(fault) => fail(&fault),
        },
        (None, false) => fail(
            "no way to the node: admin.enabled is false and pid_file is empty in the configuration; \
             name its process with --pid, or its unit with --systemd",
        ),
    }
}

fn by_admin(target: &Target, access: &AccessArgs) -> ExitCode {
    let outcome = Admin::enter(target, access).and_then(|admin| admin.call("reload"));
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(fault) => return fail(&fault),
    };
    let texts = |name: &str| -> Vec<String> {
        let list = outcome[name].as_array().map_or(&[][..], Vec::as_slice);
        list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    warn(&texts("warnings"));
    let problems = texts("problems");
    if !problems.is_empty() {
        problems.iter().for_each(|problem| eprintln!("error: {problem}"));
        return fail("the reload failed: nothing is changed");
    }
    say("reloaded\n");
    let changed = texts("changed");
    if changed.is_empty() {
        say("no option that a reload changes has changed\n");
    }
    changed.iter().for_each(|option| say(&format!("in effect: {option}\n")));
    for section in texts("needs_restart") {
        say(&format!("needs a restart: {section}\n"));
    }
    ExitCode::SUCCESS
}

/// Checks the options as the node will, and signals.
fn by_signal(target: &Target, pid: i32) -> ExitCode {
    if let Err(faults) = check_certificates(&target.config.tls) {
        faults.lines().for_each(|fault| eprintln!("error: {fault}"));
        return fail("the options can't be used: the node is not signalled");
    }
    // They were good when the command began; what a node reads is what is there now.
    if let Err(fault) = config::load(&target.sources) {
        return super::refuse(&fault);
    }
    let process = Pid::from_raw(pid).filter(|_| pid > 1);
    let Some(process) = process else { return fail(&format!("{pid} is no process of a node")) };
    match kill_process(process, Signal::HUP) {
        Ok(()) => {
            say(&format!(
                "the options are good, and process {pid} reads them now; its log has the outcome\n"
            ));
            ExitCode::SUCCESS
        }
        Err(fault) => fail(&format!("process {pid}: {fault}")),
    }
}

/// The process that holds a pid file.
fn pid_in(file: &Path) -> Result<i32, String> {
    let said = |what: &str| format!("{}: {what}", file.display());
    let opened = std::fs::File::open(file).map_err(|fault| match fault.kind() {
        std::io::ErrorKind::NotFound => said("no such file: no node with this configuration runs"),
        _ => said(&fault.to_string()),
    })?;
    // A node holds a lock on it for as long as it lives; without one, the number may be another process's.
    if opened.try_lock_shared().is_ok() {
        return Err(said("no running node holds it"));
    }
    let text = std::fs::read_to_string(file).map_err(|fault| said(&fault.to_string()))?;
    text.trim().parse().map_err(|_| said("expected a process id"))
}

fn by_systemd(unit: &str) -> ExitCode {
    match Command::new("systemctl").args(["reload", "--", unit]).status() {
        Ok(status) if status.success() => {
            say(&format!("{unit}: reloaded\n"));
            ExitCode::SUCCESS
        }
        Ok(status) => {
            fail(&format!("systemctl reload {unit}: {status}; the journal has the reason"))
        }
        Err(fault) => fail(&format!("systemctl: {fault}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_that_nobody_holds_is_no_node() {
        let path = std::env::temp_dir().join(format!("roost-pid-{}", std::process::id()));
        std::fs::write(&path, "12\n").unwrap();
        assert!(pid_in(&path).unwrap_err().contains("no running node"));
        let held = std::fs::File::open(&path).unwrap();
        held.lock().unwrap();
        assert_eq!(pid_in(&path), Ok(12));
        std::fs::remove_file(&path).unwrap();
        assert!(pid_in(&path).unwrap_err().contains("no such file"));
    }
}
