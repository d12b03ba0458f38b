//! `roost top`: a terminal view of what the admin page shows, over the admin API of a running node.
//!
//! The node publishes its figures once a second to whoever looks, and this is one viewer more: nothing is
//! requested of it beside. The terminal is drawn when figures came, a key was pressed or its size changed, at
//! most ten times a second.

mod view;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
#[cfg(test)]
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::admin::{AccessArgs, Admin, Figures};
use super::target::{Target, TargetArgs};
use super::{fail, mistaken, say, unfound};
use view::View;

/// Arguments of `roost top`.
#[derive(Debug, clap::Args)]
pub(super) struct TopArgs {
    /// Print one frame as text, and end.
    #[arg(long)]
    pub once: bool,
    /// Use no colours; so does the variable NO_COLOR.
    #[arg(long)]
    pub no_color: bool,
    /// Columns of the frame of --once.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(40..=500))]
    pub columns: u16,
    /// Lines of the frame of --once.
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u16).range(10..=500))]
    pub lines: u16,
    /// Access.
    #[command(flatten)]
    pub access: AccessArgs,
    /// Which node.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Time of one wait for figures, and so between two looks at the keyboard.
const WAIT: Duration = Duration::from_millis(100);

/// Waits for figures of `--once`: they come once a second, and the first have no rates.
const WAITS_MAX: usize = 100;

pub(super) fn run(arguments: &TopArgs, environment: Vec<(String, String)>) -> ExitCode {
    let plain = arguments.no_color
        || environment.iter().any(|(name, value)| name == "NO_COLOR" && !value.is_empty());
    let target = match Target::find(&arguments.target, environment) {
        Ok(target) => target,
        Err(fault) => return unfound(fault),
    };
    if !arguments.once && !std::io::stdout().is_terminal() {
        return mistaken("standard output is no terminal: --once prints one frame");
    }
    let entered = Admin::enter(&target, &arguments.access)
        .and_then(|admin| Ok((admin.endpoint.to_string(), admin.figures()?)));
    let (address, mut figures) = match entered {
        Ok(entered) => entered,
        Err(fault) => return fail(&fault),
    };
    if let Err(fault) = figures.wait_at_most(WAIT) {
        return fail(&fault);
    }
    let mut view = View::new(address, plain);
    let ended = match arguments.once {
        true => once(&mut figures, &mut view, (arguments.columns, arguments.lines)),
        false => watch(&mut figures, &mut view),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => fail(&fault),
    }
}

/// Prints the second figures: the first of a viewer may have no rates.
fn once(
    figures: &mut Figures,
    view: &mut View,
    (columns, lines): (u16, u16),
) -> Result<(), String> {
    let mut seen = 0;
    for _ in 0..WAITS_MAX {
        let Some(data) = figures.next()? else { continue };
        view.take(data);
        seen += 1;
        if seen == 2 {
            say(&frame(view, columns, lines));
            return Ok(());
        }
    }
    Err("the node sends no figures".to_owned())
}

/// A frame as text, without empty ends of lines and of the frame.
fn frame(view: &View, columns: u16, lines: u16) -> String {
    // A backend in memory has no faults.
    let Ok(mut terminal) = Terminal::new(TestBackend::new(columns, lines));
    let Ok(_) = terminal.draw(|frame| view.draw(frame));
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for y in 0..lines {
        let line: String = (0..columns).map(|x| buffer[(x, y)].symbol()).collect();
        text += line.trim_end();
        text.push('\n');
    }
    text.trim_end().to_owned() + "\n"
}

/// Draws until the end: by a key, a signal or the node.
fn watch(figures: &mut Figures, view: &mut View) -> Result<(), String> {
    let ends = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
        signal_hook::flag::register(signal, Arc::clone(&ends))
            .map_err(|fault| fault.to_string())?;
    }
    // From here on a panic restores the terminal, too.
    let mut terminal = ratatui::try_init().map_err(|fault| format!("the terminal: {fault}"))?;
    let mut step = || -> Result<bool, String> {
        let said = |fault: std::io::Error| format!("the terminal: {fault}");
        let mut is_new = false;
        while event::poll(Duration::ZERO).map_err(said)? {
            is_new = true;
            if let Event::Key(key) = event::read().map_err(said)?
                && key.kind != KeyEventKind::Release
                && !press(view, key)
            {
                return Ok(false);
            }
        }
        if let Some(data) = figures.next()? {
            is_new = true;
            view.take(data);
        }
        if is_new || view.is_fresh() {
            terminal.draw(|frame| view.draw(frame)).map_err(said)?;
            view.drawn();
        }
        Ok(!ends.load(Ordering::Relaxed))
    };
    let ended = loop {
        match step() {
            Ok(true) => {}
            Ok(false) => break Ok(()),
            Err(fault) => break Err(fault),
        }
    };
    ratatui::restore();
    ended
}

/// Takes a key; false ends the view.
fn press(view: &mut View, key: KeyEvent) -> bool {
    let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return false,
        KeyCode::Char('c' | 'd') if is_control => return false,
        KeyCode::Char('p' | ' ') => view.pause(),
        KeyCode::Char('s') | KeyCode::Right => view.sort_by_next(),
        KeyCode::Left => view.sort_by_last(),
        KeyCode::Char('r') => view.reverse(),
        KeyCode::Char('?' | 'h') => view.help(),
        _ => {}
    }
    true
}

/// Figures of a node, for tests of this module.
#[cfg(test)]
fn example() -> Value {
    serde_json::json!({
        "node": {"name": "edge_8000", "version": "0.1.0", "uptime_s": 93_784, "shards": 2, "plan": [],
                 "fault": null},
        "totals": {"connections": 1_000_000, "clients": 999_000, "users": 5_000, "subscriptions": 2_000_000,
                   "channels": 12_345, "queued_bytes": 1_048_576, "history_publications": 10,
                   "history_bytes": 2_048},
        "rates": {"accepted": 10.0, "closed": 5.0, "messages_in": 100.0, "messages_out": 20_000.0,
                  "bytes_in": 5_000.0, "bytes_out": 3_000_000.0, "publications": 50.0,
                  "deliveries": 20_000.0, "commands": 100.0},
        "latency_us": {"loop_lag_p50": 30, "loop_lag_p99": 900, "fan_out_p50": 400, "fan_out_p99": 2_500},
        "shards": [
            {"connections": 600_000, "subscriptions": 1, "queued_bytes": 7, "mailbox_batches": 1,
             "messages_in": 60.0, "messages_out": 5_000.0, "loop_lag_p99_us": 900, "fan_out_p99_us": 800},
            {"connections": 400_000, "subscriptions": 2, "queued_bytes": 9, "mailbox_batches": 0,
             "messages_in": 40.0, "messages_out": 15_000.0, "loop_lag_p99_us": 100, "fan_out_p99_us": 900},
        ],
        "memory": {"limit": 8_589_934_592_u64, "bytes_per_connection": 420,
                   "classes": {"connections": 300_000_000, "history": 100_000}},
        "limits": [{"name": "clients", "used": 999_000, "limit": 2_000_000}],
        "closes": {"gone": 7, "slow": 3}, "faults": {}, "refused": {"origin": 2}, "errors": {},
        "proxies": [], "broker": null,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> View {
        let mut view = View::new("http://127.0.0.1:8000".to_owned(), true);
        view.take(example());
        view
    }

    #[test]
    fn a_frame_has_what_the_admin_page_has() {
        let text = frame(&seen(), 100, 40);
        for part in [
            "edge_8000",
            "0.1.0",
            "http://127.0.0.1:8000",
            "1,000,000",
            "clients",
            "20,000",
            "900 us",
            "2.5 ms",
            "gone",
            "origin",
            "clients 999,000 of 2,000,000",
            "600,000",
            "400,000",
        ] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }

    #[test]
    fn every_size_can_be_drawn() {
        for (columns, lines) in [(1, 1), (20, 5), (40, 10), (80, 24), (300, 100)] {
            frame(&seen(), columns, lines);
        }
        // Before the first figures, and with others than expected.
        let mut view = View::new("a".to_owned(), false);
        assert!(frame(&view, 80, 24).contains("waiting"));
        view.take(serde_json::json!({"shards": 5, "node": []}));
        frame(&view, 80, 24);
    }

    #[test]
    fn keys_sort_pause_and_end() {
        let key = |code| KeyEvent::new(code, KeyModifiers::NONE);
        let mut view = seen();
        let first = |view: &View| {
            let text = frame(view, 100, 40);
            let line = text.lines().find(|line| line.starts_with("shard ")).unwrap_or_default();
            line.contains("600,000")
        };
        // By number of shard at first, then by connections, the most in front.
        assert!(first(&view));
        assert!(press(&mut view, key(KeyCode::Char('s'))));
        assert!(first(&view));
        assert!(press(&mut view, key(KeyCode::Char('r'))));
        assert!(!first(&view));
        assert!(press(&mut view, key(KeyCode::Char('p'))));
        view.take(serde_json::json!({}));
        let text = frame(&view, 100, 40);
        assert!(text.contains("paused") && text.contains("edge_8000"), "{text}");
        // A terminal that is narrower than the line shows it all the same.
        assert!(frame(&view, 30, 40).contains("paused"));
        assert!(press(&mut view, key(KeyCode::Char('?'))));
        assert!(frame(&view, 100, 40).contains("next column"));
        for code in [KeyCode::Char('q'), KeyCode::Esc] {
            assert!(!press(&mut view, key(code)));
        }
        assert!(!press(&mut view, KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
    }
}
