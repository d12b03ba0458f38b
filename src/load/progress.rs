//! Progress on standard error: a line that changes on a terminal, else one now and then.

use super::figures::Sum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often a line is printed where none can be changed.
const PRINT_EVERY: Duration = Duration::from_secs(5);

/// The line on a terminal, cut to its width. The library's own style shows a position, which a run has none of.
const STYLE: &str = "{spinner} {elapsed} {wide_msg}";

pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    printed: Instant,
    shown: String,
}

/// How things stand, as the line shows them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing<'s> {
    /// The current step.
    pub(crate) phase: &'s str,
    /// Time left of it, where that is known.
    pub(crate) left: Option<Duration>,
    /// Connections to open in all.
    pub(crate) asked: u32,
    /// The counters of the workers.
    pub(crate) sum: &'s Sum,
    /// Messages that the publisher has sent.
    pub(crate) published: u64,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            // A constant that a test parses.
            let style = ProgressStyle::with_template(STYLE);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar, printed: Instant::now(), shown: String::new() }
    }

    /// Shows how things stand, if it is time to.
    pub(crate) fn show(&mut self, standing: Standing<'_>) {
        if self.bar.is_none() && self.printed.elapsed() < PRINT_EVERY {
            return;
        }
        let text = line(standing);
        match &self.bar {
            Some(bar) if text != self.shown => {
                bar.set_message(text.clone());
                self.shown = text;
            }
            Some(_) => {}
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

/// One line for people.
fn line(standing: Standing<'_>) -> String {
    let Standing { phase, left, asked, sum, published } = standing;
    let mut text = format!("{phase}: {} of {asked} open", sum.open);
    for (count, what) in [
        (sum.pending, "to open"),
        (sum.failed, "failed"),
        (sum.dropped, "dropped"),
        (sum.sent + published, "sent"),
        (sum.received, "received"),
        (sum.pinged, "answered their pings"),
    ] {
        if count > 0 {
            text += &format!(", {count} {what}");
        }
    }
    if let Some(left) = left {
        text += &format!(", {} s left", left.as_secs_f64().ceil());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_line_shows_the_phase() {
        let sum = Sum { open: 7, pending: 3, sent: 1, received: 40, ..Sum::default() };
        let left = Some(Duration::from_millis(2_100));
        let standing = Standing { phase: "publishing", left, asked: 10, sum: &sum, published: 4 };
        let expected = "publishing: 7 of 10 open, 3 to open, 5 sent, 40 received, 3 s left";
        assert_eq!(line(standing), expected);
    }

    #[test]
    fn the_style_shows_the_message() {
        assert!(ProgressStyle::with_template(STYLE).is_ok());
        assert!(STYLE.contains("msg}") && !STYLE.contains("{len}"));
    }
}
