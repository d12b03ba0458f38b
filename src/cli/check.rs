//! `roost config check` and `roost config default`.

use std::process::ExitCode;

use super::flags::CheckArgs;
use super::{refuse, say, warn};
use crate::config::{self, ConfigError, PrintFormat};
use crate::node::check_certificates;

/// Says what is wrong with a file, and in its last line how much; exit code 2 when it can't be used.
pub(super) fn check(arguments: &CheckArgs) -> ExitCode {
    // Certificates are files of their own, which a node reads again while it runs.
    let checked = config::check(&arguments.file, arguments.strict);
    let checked = checked.and_then(|(config, warnings)| match check_certificates(&config.tls) {
        Ok(()) => Ok(warnings),
        Err(faults) => {
            let file = arguments.file.display();
            let problems = faults.lines().map(|fault| format!("{file}: {fault}")).collect();
            Err(ConfigError { problems, warnings, json_log: false })
        }
    });
    let (exit, verdict, errors, warnings) = match checked {
        Ok(warnings) => {
            warn(&warnings);
            (ExitCode::SUCCESS, "good", 0, warnings.len())
        }
        Err(fault) => (refuse(&fault), "not usable", fault.problems.len(), fault.warnings.len()),
    };
    let (errors, warnings) = (counted(errors, "error"), counted(warnings, "warning"));
    say(&format!("{}: {verdict}: {errors}, {warnings}\n", arguments.file.display()));
    exit
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Prints all options.
pub(super) fn defaults(format: PrintFormat) -> ExitCode {
    say(&config::print_defaults(format));
    ExitCode::SUCCESS
}
