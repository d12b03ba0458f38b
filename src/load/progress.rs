//! What is going on, on standard error: a line that changes on a terminal, else one now and then.

use super::figures::Sum;
use indicatif::{ProgressBar, ProgressDrawTarget};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often a line is printed where none can be changed.
const PRINT_EVERY: Duration = Duration::from_secs(5);

pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    printed: Instant,
    shown: String,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar, printed: Instant::now(), shown: String::new() }
    }

    /// Shows how things stand, if it is time to.
    pub(crate) fn show(&mut self, phase: &str, sum: &Sum, published: u64) {
        if self.bar.is_none() && self.printed.elapsed() < PRINT_EVERY {
            return;
        }
        let sent = sum.sent + published;
        let mut text = format!("{phase}: {} open", sum.open);
        for (count, what) in [
            (sum.pending, "to open"),
            (sum.failed, "failed"),
            (sum.dropped, "dropped"),
            (sent, "sent"),
            (sum.received, "received"),
            (sum.pinged, "answered their pings"),
        ] {
            if count > 0 {
                text += &format!(", {count} {what}");
            }
        }
        match &self.bar {
            Some(bar) => bar.set_message(text),
            None => {
                self.printed = Instant::now();
                if text != self.shown {
                    eprintln!("{text}");
                    self.shown = text;
                }
            }
        }
    }

    /// Takes the changing line away.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
