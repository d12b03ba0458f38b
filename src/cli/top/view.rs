//! What `roost top` draws: a node's figures, as tables of text.

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table};
use serde_json::Value;

use crate::host::plan::grouped;

/// Columns of the table of shards: title, name in the figures, and whether it is a time.
const COLUMNS: &[(&str, &str, bool)] = &[
    ("open", "connections", false),
    ("in/s", "messages_in", false),
    ("out/s", "messages_out", false),
    ("bytes out/s", "bytes_out", false),
    ("queued", "queued_bytes", false),
    ("mail", "mailbox_batches", false),
    ("lag p99", "loop_lag_p99_us", true),
    ("fan-out p99", "fan_out_p99_us", true),
];

/// The state of the view.
pub(super) struct View {
    address: String,
    is_plain: bool,
    figures: Option<Value>,
    is_paused: bool,
    has_help: bool,
    /// 0: by number of the shard; else by a column, from 1.
    sort: usize,
    is_reversed: bool,
    is_fresh: bool,
}

impl View {
    pub(super) fn new(address: String, is_plain: bool) -> Self {
        Self {
            address,
            is_plain,
            figures: None,
            is_paused: false,
            has_help: false,
            sort: 0,
            is_reversed: false,
            is_fresh: true,
        }
    }

    /// Takes figures, unless it is paused.
    pub(super) fn take(&mut self, figures: Value) {
        if !self.is_paused {
            self.figures = Some(figures);
        }
    }

    /// It has never been drawn.
    pub(super) fn is_fresh(&self) -> bool {
        self.is_fresh
    }

    pub(super) fn drawn(&mut self) {
        self.is_fresh = false;
    }

    pub(super) fn pause(&mut self) {
        self.is_paused = !self.is_paused;
    }

    pub(super) fn help(&mut self) {
        self.has_help = !self.has_help;
    }

    pub(super) fn sort_by_next(&mut self) {
        self.sort = (self.sort + 1) % (COLUMNS.len() + 1);
    }

    pub(super) fn sort_by_last(&mut self) {
        self.sort = (self.sort + COLUMNS.len()) % (COLUMNS.len() + 1);
    }

    pub(super) fn reverse(&mut self) {
        self.is_reversed = !self.is_reversed;
    }

    /// Without colours, what is bad is bold.
    fn bad(&self) -> Style {
        let style = Style::new().add_modifier(Modifier::BOLD);
        if self.is_plain { style } else { style.fg(Color::Red) }
    }

    fn title(&self) -> Style {
        let style = Style::new().add_modifier(Modifier::BOLD);
        if self.is_plain { style } else { style.fg(Color::Cyan) }
    }

    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let Some(figures) = &self.figures else {
            let text = format!("{}: waiting for figures", self.address);
            return frame.render_widget(Paragraph::new(text), frame.area());
        };
        let shards = figures["shards"].as_array().map_or(0, Vec::len) as u16;
        let [head, tiles, shard_table, lower, foot] = Layout::vertical([
            Constraint::Length(2),
            Constraint::Length(6),
            Constraint::Max(shards.saturating_add(3)),
            Constraint::Min(0),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(self.head(figures), head);
        let [totals, rates, times] = thirds(tiles);
        frame.render_widget(self.block("now", totals_of(figures)), totals);
        frame.render_widget(self.block("each second", rates_of(figures)), rates);
        frame.render_widget(self.block("latency", times_of(figures)), times);
        frame.render_widget(self.shards(figures), shard_table);
        let [memory, ends, refusals] = thirds(lower);
        frame.render_widget(self.block("memory and limits", limits_of(figures)), memory);
        frame.render_widget(self.block("closed, by reason", counts_of(figures, &["closes"])), ends);
        let faults = counts_of(figures, &["refused", "errors", "faults"]);
        frame.render_widget(self.block("refused, errors, faults", faults), refusals);
        frame.render_widget(self.foot(), foot);
    }

    fn head(&self, figures: &Value) -> Paragraph<'_> {
        let node = &figures["node"];
        let text = |name: &str| node[name].as_str().unwrap_or_default().to_owned();
        let uptime = humantime::format_duration(Duration::from_secs(number(&node["uptime_s"])));
        let uptime = uptime.to_string();
        let uptime = uptime.split(' ').take(2).collect::<Vec<_>>().join(" ");
        let mut first = vec![Span::styled(text("name"), self.title())];
        if self.is_paused {
            // In front of the rest, which a narrow terminal cuts off.
            first.push(Span::styled("  paused", self.bad()));
        }
        let rest = format!("  roost {}  up {uptime}  {}", text("version"), self.address);
        first.push(Span::raw(rest));
        let second = match node["fault"].as_str() {
            Some(fault) => Line::from(Span::styled(format!("not healthy: {fault}"), self.bad())),
            None => Line::from("healthy"),
        };
        Paragraph::new(vec![Line::from(first), second])
    }

    fn block(&self, title: &'static str, lines: Vec<Line<'static>>) -> Paragraph<'static> {
        let title = Span::styled(title, self.title());
        Paragraph::new(lines).block(Block::new().borders(Borders::TOP).title(title))
    }

    fn shards(&self, figures: &Value) -> Table<'static> {
        let empty = Vec::new();
        let shards = figures["shards"].as_array().unwrap_or(&empty);
        let mut order: Vec<(usize, &Value)> = shards.iter().enumerate().collect();
        if let Some((_, name, _)) = self.sort.checked_sub(1).and_then(|at| COLUMNS.get(at)) {
            order.sort_by_key(|(_, shard)| std::cmp::Reverse(number(&shard[*name])));
        }
        if self.is_reversed {
            order.reverse();
        }
        let rows = order.into_iter().map(|(at, shard)| {
            let cells = COLUMNS.iter().map(|(_, name, is_time)| {
                let value = number(&shard[*name]);
                right(if *is_time { time(value) } else { grouped(value) })
            });
            Row::new([Cell::from(format!("shard {at}"))].into_iter().chain(cells))
        });
        let heads = COLUMNS.iter().enumerate().map(|(at, (title, ..))| {
            let mark = match (self.sort == at + 1, self.is_reversed) {
                (false, _) => "",
                (true, false) => "v",
                (true, true) => "^",
            };
            right(format!("{title}{mark}"))
        });
        let head = Row::new([Cell::from("")].into_iter().chain(heads)).style(self.title());
        let widths =
            [Constraint::Length(9)].into_iter().chain(COLUMNS.iter().map(|_| Constraint::Fill(1)));
        Table::new(rows, widths)
            .header(head)
            .block(Block::new().borders(Borders::TOP).title(Span::styled("shards", self.title())))
    }

    fn foot(&self) -> Paragraph<'static> {
        Paragraph::new(match self.has_help {
            true => {
                "s or right: sort by the next column  left: by the last  r: reverse  p: pause  q: quit"
            }
            false => "q quit  p pause  s sort  r reverse  ? help",
        })
    }
}

fn thirds(area: Rect) -> [Rect; 3] {
    Layout::horizontal([Constraint::Fill(1); 3]).spacing(2).areas(area)
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

/// A figure; rates are rounded.
fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| value.as_f64().map_or(0, |rate| rate.max(0.0) as u64))
}

/// Microseconds in a unit that is easily read.
fn time(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

fn line(name: &str, value: String) -> Line<'static> {
    Line::from(format!("{name:<15}{value:>14}"))
}

fn totals_of(figures: &Value) -> Vec<Line<'static>> {
    let totals = &figures["totals"];
    let of = |name: &str| number(&totals[name]);
    vec![
        line("connections", grouped(of("connections"))),
        line("clients", grouped(of("clients"))),
        line("users", grouped(of("users"))),
        line("channels", grouped(of("channels"))),
        line("subscriptions", grouped(of("subscriptions"))),
    ]
}

fn rates_of(figures: &Value) -> Vec<Line<'static>> {
    let of = |name: &str| number(&figures["rates"][name]);
    vec![
        line("publications", grouped(of("publications"))),
        line("deliveries", grouped(of("deliveries"))),
        line("messages in", grouped(of("messages_in"))),
        line("bytes out", bytes(of("bytes_out"))),
        line("new, closed", format!("{}, {}", grouped(of("accepted")), grouped(of("closed")))),
    ]
}

fn times_of(figures: &Value) -> Vec<Line<'static>> {
    let of = |name: &str| time(number(&figures["latency_us"][name]));
    vec![
        line("loop lag p50", of("loop_lag_p50")),
        line("loop lag p99", of("loop_lag_p99")),
        line("fan-out p50", of("fan_out_p50")),
        line("fan-out p99", of("fan_out_p99")),
        line("queued", bytes(number(&figures["totals"]["queued_bytes"]))),
    ]
}

fn limits_of(figures: &Value) -> Vec<Line<'static>> {
    let memory = &figures["memory"];
    let mut lines = Vec::new();
    for limit in figures["limits"].as_array().into_iter().flatten() {
        let name = limit["name"].as_str().unwrap_or_default();
        let (used, most) = (number(&limit["used"]), number(&limit["limit"]));
        let shown = |value| if name.ends_with("bytes") { bytes(value) } else { grouped(value) };
        lines.push(Line::from(format!("{name} {} of {}", shown(used), shown(most))));
    }
    lines.push(line("per connection", bytes(number(&memory["bytes_per_connection"]))));
    for (class, value) in memory["classes"].as_object().into_iter().flatten() {
        lines.push(line(class, bytes(number(value))));
    }
    lines
}

/// Counts by reason, the largest first.
fn counts_of(figures: &Value, groups: &[&str]) -> Vec<Line<'static>> {
    let mut counts: Vec<(String, u64)> = Vec::new();
    for group in groups {
        let reasons = figures[*group].as_object().into_iter().flatten();
        counts.extend(reasons.map(|(reason, count)| (reason.replace('_', " "), number(count))));
    }
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    if counts.is_empty() {
        return vec![Line::from("none")];
    }
    counts.into_iter().map(|(reason, count)| line(&reason, grouped(count))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_shown_in_units() {
        assert_eq!([time(5), time(2_500), time(3_000_000)], ["5 us", "2.5 ms", "3.0 s"]);
        assert_eq!([bytes(5), bytes(2_048), bytes(5 << 30)], ["5 B", "2.0 KiB", "5.0 GiB"]);
        assert_eq!([number(&2.6.into()), number(&(-1.0).into()), number(&Value::Null)], [2, 0, 0]);
    }
}
