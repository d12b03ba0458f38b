//! The live view: a screen of its own on a terminal, while the run goes on.
//!
//! ```text
//!  counters, last second, latencies so far --> lines --> ratatui, at most four times a second
//! ```

use super::progress::Standing;
use super::report::{Summary, Time};
use super::series::Second;
use ratatui::Frame;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen};
use ratatui::crossterm::{cursor, execute};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Sparkline};
use std::io::{Stdout, stdout};
use std::time::{Duration, Instant};

/// How often the screen is drawn at most.
const DRAW_EVERY: Duration = Duration::from_millis(250);

/// Seconds of the small charts.
const CHART_SECONDS: usize = 240;

/// A screen of its own; what was there before comes back at the end.
pub(super) struct View {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    drawn: Option<Instant>,
}

impl View {
    /// Takes the terminal over; nothing where that fails.
    pub(super) fn begin() -> Option<Self> {
        let terminal = Terminal::new(CrosstermBackend::new(stdout())).ok()?;
        execute!(stdout(), EnterAlternateScreen, cursor::Hide).ok()?;
        Some(Self { terminal, drawn: None })
    }

    /// Draws how things stand, if it is time to.
    pub(super) fn show(&mut self, standing: Standing<'_>) {
        if self.drawn.is_some_and(|drawn| drawn.elapsed() < DRAW_EVERY) {
            return;
        }
        self.drawn = Some(Instant::now());
        // A terminal that is gone doesn't end the run.
        let _ = self.terminal.draw(|frame| draw(frame, standing));
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let _ = execute!(stdout(), LeaveAlternateScreen, cursor::Show);
    }
}

fn draw(frame: &mut Frame<'_>, standing: Standing<'_>) {
    let rows =
        [Constraint::Length(13), Constraint::Min(3), Constraint::Min(3), Constraint::Length(1)];
    let [table, rates, latencies, end] = Layout::vertical(rows).areas(frame.area());
    frame.render_widget(Paragraph::new(lines(&standing)), table);
    let recent = |of: fn(&Second) -> u64| -> Vec<u64> {
        let from = standing.seconds.len().saturating_sub(CHART_SECONDS);
        standing.seconds[from..].iter().map(of).collect()
    };
    for (area, title, data, colour) in [
        (rates, " received per second ", recent(|of| of.received), Color::Blue),
        (latencies, " latency p99 ", recent(|of| of.p99_us.unwrap_or_default()), Color::Magenta),
    ] {
        let width = area.width.saturating_sub(2) as usize;
        let data = &data[data.len().saturating_sub(width)..];
        let chart = Sparkline::default().data(data).style(Style::new().fg(colour));
        frame.render_widget(chart.block(Block::bordered().title(title)), area);
    }
    frame.render_widget(Paragraph::new("Ctrl-C ends the run and prints the report"), end);
}

/// The figures as lines.
fn lines(standing: &Standing<'_>) -> Vec<Line<'static>> {
    let Standing { title, phase, left, elapsed, asked, sum, published, missing, .. } = *standing;
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let left = left.map_or_else(String::new, |left| format!(", {} s left", left.as_secs()));
    let line = |name: &'static str, text: String, is_bad: bool| {
        let style = if is_bad { Style::new().fg(Color::Red) } else { Style::new() };
        Line::from(vec![Span::styled(format!(" {name:<13}"), bold), Span::styled(text, style)])
    };
    // The seconds of the newest histograms are not whole yet.
    let last = standing.seconds.last();
    let rate = last.map_or((0, 0), |last| (last.sent, last.received));
    let measured = standing.seconds.iter().rev().find(|of| of.p50_us.is_some());
    let now = measured.map_or_else(Summary::default, |of| Summary {
        p50: of.p50_us,
        p90: of.p90_us,
        p99: of.p99_us,
        p999: of.p999_us,
        max: of.max_us,
        mean: None,
    });
    let cpu = |of: Option<f64>| of.map_or_else(|| "-".to_owned(), |of| format!("{of:.2}"));
    let server = last.and_then(|last| last.server_rss_bytes);
    let server = server.map_or_else(String::new, |bytes| format!(", {:.1} MB", bytes as f64 / 1e6));
    let (failed, dropped) = (sum.failed, sum.dropped);
    vec![
        Line::styled(format!(" {title}"), bold),
        line("phase", format!("{phase}, {} s so far{left}", elapsed.as_secs()), false),
        Line::default(),
        line("open", format!("{} of {asked}, {} under way", sum.open, sum.pending), false),
        line("failed", format!("{failed}, dropped {dropped}"), failed + dropped > 0),
        line("sent", format!("{} ({}/s)", sum.sent + published, rate.0), false),
        line("received", format!("{} ({}/s)", sum.received, rate.1), false),
        line(
            "missing",
            format!("{missing} lost or on their way, {} twice", sum.duplicated),
            sum.duplicated > 0,
        ),
        line("latency", percentiles(&standing.latency), false),
        line("last second", percentiles(&now), false),
        line(
            "server",
            format!("{} processors{server}", cpu(last.and_then(|of| of.server_cpu))),
            false,
        ),
        line(
            "this client",
            format!("{} processors", cpu(last.and_then(|of| of.client_cpu))),
            false,
        ),
    ]
}

fn percentiles(of: &Summary) -> String {
    let text =
        |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |us| Time::us(us).to_string());
    format!(
        "p50 {}, p90 {}, p99 {}, max {}",
        text(of.p50),
        text(of.p90),
        text(of.p99),
        text(of.max)
    )
}

#[cfg(test)]
mod tests {
    use super::super::figures::Sum;
    use super::*;
    use ratatui::backend::TestBackend;

    #[test]
    fn the_screen_has_rates_latencies_and_faults() {
        let sum = Sum { open: 7, failed: 2, sent: 0, received: 40, ..Sum::default() };
        let second = Second {
            received: 30,
            sent: 3,
            p50_us: Some(1500),
            server_cpu: Some(0.25),
            server_rss_bytes: Some(5_000_000),
            ..Second::default()
        };
        let standing = Standing {
            title: "chat ws://h/",
            phase: "talk",
            left: Some(Duration::from_secs(3)),
            elapsed: Duration::from_secs(9),
            asked: 10,
            sum: &sum,
            published: 4,
            missing: 1,
            seconds: &[second],
            latency: Summary { p99: Some(20_000), ..Summary::default() },
        };
        for (width, height) in [(80, 30), (40, 10), (10, 3)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| draw(frame, standing.clone())).unwrap();
            let screen = terminal.backend().to_string();
            if width < 80 {
                continue;
            }
            for expected in [
                "chat ws://h/",
                "talk, 9 s so far, 3 s left",
                "7 of 10, 0 under way",
                "2, dropped 0",
                "4 (3/s)",
                "40 (30/s)",
                "p50 -, p90 -, p99 20.0 ms, max -",
                "p50 1.50 ms",
                "0.25 processors, 5.0 MB",
                "received per second",
            ] {
                assert!(screen.contains(expected), "{expected}:\n{screen}");
            }
        }
    }
}
