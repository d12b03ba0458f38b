//! `roost config check` and `roost config default`.

use std::process::ExitCode;

use super::flags::CheckArgs;
use super::{refuse, say, warn};
use crate::config::{self, PrintFormat};

/// Says what is wrong with a file; exit code 2 when it can't be used.
pub(super) fn check(arguments: &CheckArgs) -> ExitCode {
    match config::check(&arguments.file, arguments.strict) {
        Ok(warnings) => {
            warn(&warnings);
            say(&format!("{}: good\n", arguments.file.display()));
            ExitCode::SUCCESS
        }
        Err(fault) => refuse(&fault),
    }
}

/// Prints all options.
pub(super) fn defaults(format: PrintFormat) -> ExitCode {
    say(&config::print_defaults(format));
    ExitCode::SUCCESS
}
