//! Logs and figures: lines that threads of their own write, so that a blocked terminal, a pipe that nobody
//! reads or a slow disk never blocks a shard or the control thread. Lines that find no room are dropped
//! and counted.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use tracing::level_filters::LevelFilter;
use tracing::{Metadata, error};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::base::limits::{FIGURES_WAITING_MAX, LOG_LINES_WAITING_MAX};

/// The messages of a thread that writes lines.
enum Item {
    /// One line, or a few, with their ends.
    Lines(Vec<u8>),
    /// Open the file again, under its name.
    Reopen,
    /// Answer when all before it is written.
    Flush(Sender<()>),
}

/// Where lines go in the end.
enum Sink {
    /// A stream of the process.
    Stream(File),
    /// A file, which may be renamed meanwhile.
    Named(PathBuf, File),
}

impl Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stream(file) | Self::Named(_, file) => file.write_all(bytes),
        }
    }
}

/// A thread that writes lines. Handing it one never waits.
#[derive(Clone)]
pub(super) struct Lines {
    items: Sender<Item>,
    dropped: Arc<AtomicU64>,
    /// A request to reopen the file that came while the queue was full.
    reopens: Arc<AtomicU64>,
}

impl Lines {
    /// Standard error.
    pub(super) fn to_stderr() -> io::Result<Self> {
        let stream = io::stderr().as_fd().try_clone_to_owned()?;
        Self::spawn(Sink::Stream(stream.into()), LOG_LINES_WAITING_MAX)
    }

    /// Standard output, for figures.
    pub(super) fn to_stdout() -> io::Result<Self> {
        let stream = io::stdout().as_fd().try_clone_to_owned()?;
        Self::spawn(Sink::Stream(stream.into()), FIGURES_WAITING_MAX)
    }

    /// A file, at its end.
    fn to_file(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        Self::spawn(Sink::Named(path.to_owned(), file), LOG_LINES_WAITING_MAX)
    }

    #[expect(clippy::disallowed_methods, reason = "the one thread that may wait for such a stream")]
    fn spawn(sink: Sink, waiting_max: usize) -> io::Result<Self> {
        let (items, inlet) = bounded(waiting_max);
        let lines = Self { items, dropped: Arc::default(), reopens: Arc::default() };
        let (dropped, reopens) = (Arc::clone(&lines.dropped), Arc::clone(&lines.reopens));
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write_all(sink, &inlet, &dropped, &reopens))?;
        Ok(lines)
    }

    /// Hands over lines; drops and counts them where there is no room.
    pub(super) fn say(&self, lines: impl Into<Vec<u8>>) {
        if self.items.try_send(Item::Lines(lines.into())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines that were dropped: there was no room, or they could not be written.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// The counter of dropped lines, for metrics.
    pub(super) fn dropped_counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.dropped)
    }

    /// Opens the file again, if it is one: it was renamed, and the name is free for a new one.
    fn reopen(&self) {
        self.reopens.fetch_add(1, Ordering::Release);
        if let Err(TrySendError::Full(_)) = self.items.try_send(Item::Reopen) {
            // The thread looks before its next line.
        }
    }

    /// Waits until all lines so far are written, at most for `bound`: what they go to may be blocked.
    pub(super) fn flush(&self, bound: Duration) {
        #[expect(clippy::disallowed_methods, reason = "a bound on the end of the process")]
        let until = Instant::now() + bound;
        let (done, when_done) = bounded(1);
        if self.items.send_deadline(Item::Flush(done), until).is_ok() {
            let _ = when_done.recv_deadline(until);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

/// The thread: writes until nobody can send it anything any more.
fn write_all(mut sink: Sink, items: &Receiver<Item>, dropped: &AtomicU64, reopens: &AtomicU64) {
    let mut reopened = 0;
    for item in items {
        let wanted = reopens.load(Ordering::Acquire);
        if let Sink::Named(path, file) = &mut sink
            && wanted != reopened
        {
            match open(path) {
                Ok(new) => *file = new,
                Err(fault) => {
                    // Into the old file, which is all that there is.
                    let _ = writeln!(file, "{}: not opened again: {fault}", path.display());
                }
            }
        }
        reopened = wanted;
        match item {
            Item::Lines(lines) if sink.write(&lines).is_err() => {
                dropped.fetch_add(1, Ordering::Relaxed);
            }
            Item::Lines(_) | Item::Reopen => {}
            // The requester may have given up.
            Item::Flush(done) => _ = done.try_send(()),
        }
    }
}

/// One event of the log is handed over as a whole.
impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.say(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// The running log.
#[derive(Clone)]
pub(super) struct Log {
    level: reload::Handle<LevelFilter, Registry>,
    lines: Lines,
    /// Standard error, where people see what a node says of itself.
    console: Lines,
    json: bool,
    has_file: bool,
}

impl Log {
    /// Logs messages of at least this level from here on.
    pub(super) fn set_level(&self, level: LevelFilter) {
        // Fails only when the log is gone.
        let _ = self.level.reload(level);
    }

    /// Opens `log.file` again.
    pub(super) fn reopen(&self) {
        self.lines.reopen();
    }

    /// Lines of the log that were dropped.
    pub(super) fn dropped(&self) -> u64 {
        self.lines.dropped()
    }

    /// The counter of dropped lines, for metrics.
    pub(super) fn dropped_counter(&self) -> Arc<AtomicU64> {
        self.lines.dropped_counter()
    }

    /// Whether people are shown more than events: where the log is JSON, only on a terminal that has no part
    /// of it.
    pub(super) fn has_banner(&self) -> bool {
        let is_terminal = || io::IsTerminal::is_terminal(&io::stderr());
        !self.json || self.has_file && is_terminal()
    }

    /// Text for people, on standard error.
    pub(super) fn show(&self, text: String) {
        self.console.say(text);
    }

    /// Says why the node doesn't start: in the log, and on standard error if that isn't the log.
    pub(super) fn fatal(&self, fault: &dyn std::fmt::Display) {
        error!("{fault}");
        if self.has_file {
            self.console.say(last_line(self.json, fault));
        }
    }

    /// Waits until all that was logged is written, at most [`FLUSH_BOUND`].
    pub(super) fn flush(&self) {
        self.lines.flush(FLUSH_BOUND);
        if self.has_file {
            self.console.flush(FLUSH_BOUND);
        }
    }
}

/// Says why the node doesn't start where there is no log.
pub(super) fn fatal_without(json: bool, fault: &dyn std::fmt::Display) {
    eprint!("{}", last_line(json, fault));
}

fn last_line(json: bool, fault: &dyn std::fmt::Display) -> String {
    match json {
        true => {
            format!("{}\n", serde_json::json!({"level": "ERROR", "message": fault.to_string()}))
        }
        false => format!("error: {fault}\n"),
    }
}

/// The end of a node waits so long at most for a log that takes nothing.
const FLUSH_BOUND: Duration = Duration::from_secs(1);

/// Begins to log: to `file`, else to standard error, as text or each message as a JSON object. Call it
/// before any shard starts, since its threads use the process's descriptor table.
///
/// # Errors
/// When the file can't be opened.
pub(super) fn init(level: LevelFilter, file: Option<&Path>, json: bool) -> io::Result<Log> {
    let console = Lines::to_stderr()?;
    let lines = match file {
        Some(path) => Lines::to_file(path)?,
        None => console.clone(),
    };
    let (level, handle) = reload::Layer::new(level);
    let layer = fmt::layer()
        .with_ansi(!json && file.is_none() && io::IsTerminal::is_terminal(&io::stderr()))
        .with_target(false)
        .with_writer(lines.clone());
    let layer = match json {
        true => layer.json().flatten_event(true).boxed(),
        false => layer.boxed(),
    };
    tracing_subscriber::registry().with(level).with(filter_fn(is_roosts)).with(layer).init();
    Ok(Log { level: handle, lines, console, json, has_file: file.is_some() })
}

/// The client of NATS logs each of its connections, and as an error that it makes no second one. The broker says what
/// operators need of that.
fn is_roosts(metadata: &Metadata<'_>) -> bool {
    !metadata.target().starts_with("async_nats")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const BOUND: Duration = Duration::from_secs(20);

    #[test]
    fn a_pipe_that_nobody_reads_drops_lines_and_blocks_nobody() {
        let (mut reader, writer) = io::pipe().unwrap();
        let sink = Sink::Stream(std::os::fd::OwnedFd::from(writer).into());
        let lines = Lines::spawn(sink, 4).unwrap();
        // More than a pipe and the queue hold.
        let line = vec![b'x'; 64 * 1024];
        for _ in 0..100 {
            lines.say(line.clone());
        }
        assert!(lines.dropped() >= 90, "{}", lines.dropped());
        // Gives up.
        lines.flush(Duration::from_millis(10));
        let written = 100 - lines.dropped();
        drop(lines);
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert_eq!(all.len() as u64, written * line.len() as u64);
    }

    #[test]
    fn a_renamed_file_is_left_and_a_new_one_begun() {
        let name = format!("roost-log-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let old = path.with_extension("1");
        let lines = Lines::to_file(&path).unwrap();
        lines.say("before\n");
        lines.flush(BOUND);
        std::fs::rename(&path, &old).unwrap();
        lines.say("between\n");
        lines.flush(BOUND);
        lines.reopen();
        lines.say("behind\n");
        lines.flush(BOUND);
        let text = |path: &Path| std::fs::read_to_string(path).unwrap();
        assert_eq!((text(&old), text(&path)), ("before\nbetween\n".into(), "behind\n".into()));
        std::fs::remove_file(&old).unwrap();
        std::fs::remove_file(&path).unwrap();
    }
}
