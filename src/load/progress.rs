//! Progress: the live view where standard output is a terminal; else on standard error a line that changes, or
//! one now and then.

use super::figures::Sum;
use super::report::Summary;
use super::series::Second;
use super::view::View;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often a line is printed where none can be changed.
const PRINT_EVERY: Duration = Duration::from_secs(5);

/// The line on a terminal, cut to its width. The library's own style shows a position, which a run has none of.
const STYLE: &str = "{spinner} {elapsed} {wide_msg}";

pub(crate) struct Progress {
    view: Option<View>,
    bar: Option<ProgressBar>,
    printed: Instant,
    shown: String,
}

/// How things stand, as the line shows them.
#[derive(Clone, Debug)]
pub(crate) struct Standing<'s> {
    /// The scenario and its server.
    pub(crate) title: &'s str,
    /// The current step.
    pub(crate) phase: &'s str,
    /// Time left of it, where that is known.
    pub(crate) left: Option<Duration>,
    /// Since the start of the run.
    pub(crate) elapsed: Duration,
    /// Connections to open in all.
    pub(crate) asked: u32,
    /// The counters of the workers.
    pub(crate) sum: &'s Sum,
    /// Messages that the publisher has sent.
    pub(crate) published: u64,
    /// Messages that have not arrived so far: on their way, or lost.
    pub(crate) missing: u64,
    /// The run second by second.
    pub(crate) seconds: &'s [Second],
    /// Latencies so far.
    pub(crate) latency: Summary,
}

impl Progress {
    /// `quiet`: standard output is for the result alone.
    pub(crate) fn new(quiet: bool) -> Self {
        let is_terminal = std::io::stdout().is_terminal() && !quiet;
        let view = if is_terminal { View::begin() } else { None };
        let bar = (view.is_none() && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            // A constant that a test parses.
            let style = ProgressStyle::with_template(STYLE);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { view, bar, printed: Instant::now(), shown: String::new() }
    }

    /// Shows how things stand, if it is time to.
    pub(crate) fn show(&mut self, standing: Standing<'_>) {
        if let Some(view) = &mut self.view {
            return view.show(standing);
        }
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
    pub(crate) fn finish(&mut self) {
        self.view = None;
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// One line for people.
fn line(standing: Standing<'_>) -> String {
    let Standing { phase, left, asked, sum, published, .. } = standing;
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
        let standing = Standing {
            title: "",
            phase: "publishing",
            left,
            elapsed: Duration::ZERO,
            asked: 10,
            sum: &sum,
            published: 4,
            missing: 0,
            seconds: &[],
            latency: Summary::default(),
        };
        let expected = "publishing: 7 of 10 open, 3 to open, 5 sent, 40 received, 3 s left";
        assert_eq!(line(standing), expected);
    }

    #[test]
    fn the_style_shows_the_message() {
        assert!(ProgressStyle::with_template(STYLE).is_ok());
        assert!(STYLE.contains("msg}") && !STYLE.contains("{len}"));
    }
}
