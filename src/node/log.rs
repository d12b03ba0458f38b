//! Logs: to standard error or a file, by a thread of their own, so that a blocked terminal never
//! blocks a shard.

use std::path::Path;

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

/// The running log. Keep it until the end: dropping it writes out what waits.
pub(super) struct Log {
    level: reload::Handle<LevelFilter, Registry>,
    _guard: WorkerGuard,
}

impl Log {
    /// Logs messages of at least this level from here on.
    pub(super) fn set_level(&self, level: LevelFilter) {
        // Fails only when the log is gone.
        let _ = self.level.reload(level);
    }
}

/// Begins to log: to `file`, else to standard error, as text or each message as a JSON object. Call it before any shard starts, since its thread uses the process's
/// descriptor table.
///
/// # Errors
/// When the file can't be opened.
pub(super) fn init(level: LevelFilter, file: Option<&Path>, json: bool) -> std::io::Result<Log> {
    let (writer, guard) = match file {
        Some(path) => {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
            NonBlockingBuilder::default().finish(file)
        }
        None => NonBlockingBuilder::default().finish(std::io::stderr()),
    };
    let (level, handle) = reload::Layer::new(level);
    let lines = fmt::layer()
        .with_ansi(!json && file.is_none() && std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .with_writer(writer);
    let lines = match json {
        true => lines.json().flatten_event(true).boxed(),
        false => lines.boxed(),
    };
    tracing_subscriber::registry().with(level).with(lines).init();
    Ok(Log { level: handle, _guard: guard })
}
