//! The command line of `roost`: flags to configuration to command to exit code.
//!
//! Flags never act. A command that serves or tunes is handed in by the program, so that this module
//! needs neither; everything that can be wrong with options is said, with exit code 2, before.

mod check;
mod flags;
mod token;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::config::{self, ConfigError, Loaded, Sources};
use flags::{Cli, Command, ConfigCommand};

/// The exit code of a mistake in options, files or arguments.
const EXIT_USAGE: u8 = 2;

/// Commands that are somebody else's work.
#[derive(Clone, Copy)]
pub struct Commands {
    /// Runs a node until it is told to stop, with options that may be read again from where they
    /// came.
    pub serve: fn(Loaded, Sources) -> ExitCode,
    /// `roost tune`: connections, apply, folder to write to.
    pub tune: fn(Option<u64>, bool, Option<PathBuf>) -> ExitCode,
}

/// Runs what the process's arguments and environment say.
pub fn run(commands: Commands) -> ExitCode {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    match Cli::try_parse() {
        Ok(cli) => dispatch(cli, environment, commands),
        Err(fault) => {
            // Help and version are no mistakes. Printing fails only where nobody listens.
            let _ = fault.print();
            match fault.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(EXIT_USAGE),
            }
        }
    }
}

fn dispatch(cli: Cli, environment: Vec<(String, String)>, commands: Commands) -> ExitCode {
    let (options, dev) = match cli.command {
        None => (cli.options, cli.dev.then_some(true)),
        Some(Command::Serve(serve)) => (serve.options, Some(serve.dev)),
        Some(Command::Token(arguments)) => return token::run(&arguments, environment),
        Some(Command::Config(ConfigCommand::Check(arguments))) => return check::check(&arguments),
        Some(Command::Config(ConfigCommand::Default { format })) => return check::defaults(format),
        Some(Command::Tune { connections, apply, write }) => {
            return (commands.tune)(connections, apply, write);
        }
        Some(Command::Version) => {
            say(concat!("roost ", env!("CARGO_PKG_VERSION"), "\n"));
            return ExitCode::SUCCESS;
        }
    };
    let sources = Sources { file: options.config, environment, flags: options.set, dev: false };
    // A line such as `roost -c production.json` means that file, and nobody who wrote it wants a node that
    // is open to everybody.
    let dev = dev.unwrap_or_else(|| !config::is_configured(&sources));
    let sources = Sources { dev, ..sources };
    match config::load(&sources) {
        // Its warnings go into its log.
        Ok(loaded) => (commands.serve)(loaded, sources),
        Err(fault) if fault.json_log => refuse_in_json(&fault),
        Err(fault) => refuse(&fault),
    }
}

/// Prints a result. A closed pipe is no failure: its reader has seen enough.
fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
}

/// As the log would have been: one object a line.
fn refuse_in_json(fault: &ConfigError) -> ExitCode {
    let say = |level: &str, message: &str| {
        eprintln!("{}", serde_json::json!({"level": level, "message": message}));
    };
    fault.warnings.iter().for_each(|warning| say("WARN", warning));
    fault.problems.iter().for_each(|problem| say("ERROR", problem));
    ExitCode::from(EXIT_USAGE)
}

fn refuse(fault: &ConfigError) -> ExitCode {
    warn(&fault.warnings);
    for problem in &fault.problems {
        eprintln!("error: {problem}");
    }
    ExitCode::from(EXIT_USAGE)
}
