//! Logs: to standard error or a file, by a thread of their own, so that a blocked terminal never
//! blocks a shard.

use std::path::Path;

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};

/// Begins to log: to `file`, else to standard error. Keep what it returns until the end: dropping it
/// writes out what waits. Call it before any shard starts, since its thread uses the process's
/// descriptor table.
///
/// # Errors
/// When the file can't be opened.
pub(super) fn init(level: LevelFilter, file: Option<&Path>) -> std::io::Result<WorkerGuard> {
    let (writer, guard) = match file {
        Some(path) => {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
            NonBlockingBuilder::default().finish(file)
        }
        None => NonBlockingBuilder::default().finish(std::io::stderr()),
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(file.is_none() && std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .with_writer(writer)
        .init();
    Ok(guard)
}
