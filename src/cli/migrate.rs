//! `roost config migrate`: a configuration of Centrifugo 3 to 5 as one of today.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{EXIT_FAILED, EXIT_USAGE, fail, init, say};
use crate::config::{self, ConfigError, Migrated, PrintFormat, Version};

/// Arguments of `roost config migrate`.
#[derive(Debug, clap::Args)]
pub(super) struct MigrateArgs {
    /// Configuration of Centrifugo 3, 4, 5 or 6 (JSON, YAML or TOML), or a file of variables (.env).
    pub file: PathBuf,
    /// File to write, which only its owner may read; by default standard output.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Overwrite that file.
    #[arg(long, requires = "output")]
    pub force: bool,
    /// Format of the result; by default that of the output, or of the file.
    #[arg(long, value_name = "FORMAT", value_parser = super::flags::print_format())]
    pub format: Option<PrintFormat>,
    /// Version of the file; by default found by its names.
    #[arg(long, value_name = "VERSION", value_parser = ["3", "4", "5", "6"])]
    pub from: Option<String>,
    /// The file holds variables, a NAME=VALUE each line.
    #[arg(long)]
    pub env: bool,
    /// Print only what has no place.
    #[arg(short, long)]
    pub quiet: bool,
    /// Exit code 1 when an option has no place.
    #[arg(long)]
    pub strict: bool,
}

pub(super) fn run(arguments: &MigrateArgs) -> ExitCode {
    let extension = arguments.file.extension().and_then(|extension| extension.to_str());
    let is_env = arguments.env || extension == Some("env") || arguments.file.ends_with(".env");
    let (text, report) = match if is_env { of_variables(arguments) } else { of_file(arguments) } {
        Ok(translated) => translated,
        Err(fault) => {
            eprintln!("error: {fault}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match &arguments.output {
        None => say(&text),
        Some(output) => {
            if let Err(fault) = init::write(output, &text, arguments.force) {
                let exists = fault.kind() == std::io::ErrorKind::AlreadyExists;
                let hint = if exists { "; --force overwrites it" } else { "" };
                return fail(&format!("{}: {fault}{hint}", output.display()));
            }
        }
    }
    if !arguments.quiet {
        report.moved.iter().chain(&report.added).for_each(|line| eprintln!("{line}"));
    }
    report.left.iter().for_each(|line| eprintln!("no place: {line}"));
    let (moved, left) = (report.moved.len(), report.left.len());
    eprintln!(
        "{}: {moved} renamed, {} added, {left} without a place",
        arguments.file.display(),
        report.added.len()
    );
    if !is_env {
        judge(arguments);
    }
    if arguments.strict && left > 0 { ExitCode::from(EXIT_FAILED) } else { ExitCode::SUCCESS }
}

fn of_file(arguments: &MigrateArgs) -> Result<(String, Migrated), String> {
    let version = arguments.from.as_deref().map(|version| match version {
        "3" => Version::Three,
        _ => Version::FourOrFive,
    });
    let migrated = config::migrate(&arguments.file, version)?;
    let named = arguments.output.as_ref().unwrap_or(&arguments.file);
    let format = arguments.format.unwrap_or_else(|| format_of(named));
    let text = config::print_options(&migrated.options, format)?;
    Ok((text, migrated))
}

fn of_variables(arguments: &MigrateArgs) -> Result<(String, Migrated), String> {
    let name = arguments.file.display().to_string();
    let text =
        std::fs::read_to_string(&arguments.file).map_err(|fault| format!("{name}: {fault}"))?;
    Ok(config::migrate_variables(&name, &text))
}

/// The format that a file's name stands for.
pub(super) fn format_of(file: &std::path::Path) -> PrintFormat {
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("json") => PrintFormat::Json,
        Some("yaml" | "yml") => PrintFormat::Yaml,
        _ => PrintFormat::Toml,
    }
}

/// Says what a node makes of the result, where it was written.
fn judge(arguments: &MigrateArgs) {
    let Some(output) = &arguments.output else {
        eprintln!("check it: roost config check FILE");
        return;
    };
    match config::check(output, false) {
        Ok((_, warnings)) => super::warn(&warnings),
        Err(ConfigError { problems, warnings, .. }) => {
            super::warn(&warnings);
            problems.iter().for_each(|problem| eprintln!("a node refuses: {problem}"));
        }
    }
}
