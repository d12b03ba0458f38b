//! Logs: to standard error or a file, by a thread of their own, so that a blocked terminal never
//! blocks a shard.

use std::path::PathBuf;

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;

/// Options of the section `log`.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// `none`, `trace`, `debug`, `info`, `warn`, `error`.
    pub level: String,
    /// A file instead of standard error.
    pub file: Option<PathBuf>,
}

/// Begins to log. Keep what it returns until the end: dropping it writes out what waits. Call it
/// before any shard starts, since its thread uses the process's descriptor table.
///
/// # Errors
/// When the file can't be opened.
pub fn init(options: &LogOptions) -> std::io::Result<WorkerGuard> {
    let level = match options.level.as_str() {
        "none" => LevelFilter::OFF,
        "trace" => LevelFilter::TRACE,
        "debug" => LevelFilter::DEBUG,
        "warn" => LevelFilter::WARN,
        "error" | "fatal" => LevelFilter::ERROR,
        _ => LevelFilter::INFO,
    };
    let (writer, guard) = match &options.file {
        Some(path) => {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
            NonBlockingBuilder::default().finish(file)
        }
        None => NonBlockingBuilder::default().finish(std::io::stderr()),
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(options.file.is_none() && std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .with_writer(writer)
        .init();
    Ok(guard)
}
