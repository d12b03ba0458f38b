//! The command line of `roost`: flags to configuration to command to exit code.
//!
//! Flags never act. A command that serves or tunes is handed in by the program, so that this module
//! needs neither; everything that can be wrong with options is said, with exit code 2, before.

mod admin;
mod centrifugo;
mod check;
mod documents;
mod flags;
mod health;
mod http;
mod init;
mod migrate;
mod plan;
#[cfg(test)]
mod reference;
mod reload;
mod short_help;
mod status;
mod target;
mod token;
mod top;
mod upgrade;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches};

use crate::config::{self, ConfigError, Loaded, Sources};
use flags::{Cli, Command, ConfigCommand, OptionArgs};
use target::TargetFault;

/// The exit code when a command could not do its work, or a node is not healthy.
const EXIT_FAILED: u8 = 1;

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

/// The whole command line, for whatever is generated from it: completions, man pages, documentation.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs what the process's arguments and environment say.
pub fn run(commands: Commands) -> ExitCode {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let arguments: Vec<_> = std::env::args_os().collect();
    let command = short_help::in_place(command(), &arguments);
    let parsed = command.try_get_matches_from(&arguments);
    match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
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
    let Cli { dev, options: first, command } = cli;
    let (options, dev) = match command {
        None => (first, dev.then_some(true)),
        Some(Command::Serve(serve)) => (serve.options.after(first), Some(serve.dev || dev)),
        Some(command) => return other(command, first, environment, commands),
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

/// Commands that run no node. `first` are the options in front of the command.
fn other(
    command: Command,
    first: OptionArgs,
    environment: Vec<(String, String)>,
    commands: Commands,
) -> ExitCode {
    match command {
        Command::Health(mut arguments) => {
            precede(&mut arguments.target.options.0, first);
            health::run(&arguments, environment)
        }
        Command::Status(mut arguments) => {
            precede(&mut arguments.target.options.0, first);
            status::run(&arguments, environment)
        }
        Command::Top(mut arguments) => {
            precede(&mut arguments.target.options.0, first);
            top::run(&arguments, environment)
        }
        Command::Reload(mut arguments) => {
            precede(&mut arguments.target.options.0, first);
            reload::run(&arguments, environment)
        }
        Command::Upgrade(mut arguments) => {
            precede(&mut arguments.options, first);
            upgrade::run(&arguments, environment)
        }
        Command::Token(mut arguments) if first.set.is_empty() => {
            arguments.config = arguments.config.or(first.config);
            token::run(&arguments, environment)
        }
        _ if !first.is_empty() => {
            mistaken(&format!("{} has no effect on this command", first.first()))
        }
        command => without_node(command, environment, commands),
    }
}

/// Commands that have no options of a node in front of them.
fn without_node(
    command: Command,
    environment: Vec<(String, String)>,
    commands: Commands,
) -> ExitCode {
    match command {
        Command::Config(ConfigCommand::Check(arguments)) => check::check(&arguments),
        Command::Config(ConfigCommand::Default { format }) => check::defaults(format),
        Command::Completions { shell, program } => documents::completions(shell, program),
        Command::Man { folder } => documents::man(&folder),
        Command::Config(ConfigCommand::Init(arguments)) => init::run(&arguments),
        Command::Config(ConfigCommand::Migrate(arguments)) => migrate::run(&arguments),
        Command::Config(ConfigCommand::Explain { name }) => match config::explain(&name) {
            Ok(text) => {
                say(&text);
                ExitCode::SUCCESS
            }
            Err(fault) => mistaken(&fault),
        },
        Command::Theirs(command) => centrifugo::run(command, environment),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Tune { connections, apply, write } => (commands.tune)(connections, apply, write),
        Command::Version => {
            say(concat!("roost ", env!("CARGO_PKG_VERSION"), "\n"));
            ExitCode::SUCCESS
        }
        Command::Serve(_)
        | Command::Health(_)
        | Command::Status(_)
        | Command::Top(_)
        | Command::Reload(_)
        | Command::Upgrade(_)
        | Command::Token(_) => unreachable!("they take options of a node, and went another way"),
    }
}

/// Puts options that stood in front of a command below its own.
fn precede(options: &mut OptionArgs, first: OptionArgs) {
    *options = std::mem::take(options).after(first);
}

/// Reports a mistake of the command line.
fn mistaken(text: &str) -> ExitCode {
    eprintln!("error: {text}");
    ExitCode::from(EXIT_USAGE)
}

/// Reports that a command could not do its work.
fn fail(text: &str) -> ExitCode {
    eprintln!("error: {text}");
    ExitCode::from(EXIT_FAILED)
}

/// Reports that a command has no node to turn to.
fn unfound(fault: TargetFault) -> ExitCode {
    match fault {
        TargetFault::Config(fault) => refuse(&fault),
        TargetFault::Usage(text) => mistaken(&text),
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
