//! Small charts as SVG, coloured by the style sheet of the page that they stand in.

use std::fmt::Write;

/// The picture, in its own units; the page scales it.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 36.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 30.0;

/// A scale from values to places.
#[derive(Clone, Copy, Debug)]
struct Scale {
    from: f64,
    to: f64,
    is_log: bool,
}

impl Scale {
    fn linear(from: f64, to: f64) -> Self {
        Self { from, to: if to > from { to } else { from + 1.0 }, is_log: false }
    }

    /// Whole decades around the values.
    fn log(from: f64, to: f64) -> Self {
        let low = 10f64.powf(from.max(1e-9).log10().floor());
        let high = 10f64.powf(to.max(low).log10().ceil());
        Self { from: low, to: if high > low { high } else { low * 10.0 }, is_log: true }
    }

    /// From 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let share = match self.is_log {
            true => (value.max(self.from) / self.from).log10() / (self.to / self.from).log10(),
            false => (value - self.from) / (self.to - self.from),
        };
        share.clamp(0.0, 1.0)
    }

    /// Round values to draw lines at.
    fn ticks(&self) -> Vec<f64> {
        if self.is_log {
            let decades = (self.to / self.from).log10().round() as i32;
            return (0..=decades).map(|n| self.from * 10f64.powi(n)).collect();
        }
        let raw = (self.to - self.from) / 5.0;
        let power = 10f64.powf(raw.log10().floor());
        let factors = [1.0, 2.0, 5.0, 10.0];
        let step = factors.iter().map(|of| of * power).find(|of| *of >= raw).unwrap_or(raw);
        let first = (self.from / step).ceil() as i64;
        let last = (self.to / step + 1e-9).floor() as i64;
        (first..=last).map(|n| n as f64 * step).collect()
    }
}

/// One line of a chart.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) name: &'static str,
    /// Points from left to right; a gap where nothing was measured.
    pub(super) points: Vec<(f64, Option<f64>)>,
}

/// How values are written.
pub(super) type Label = fn(f64) -> String;

fn x_at(share: f64) -> f64 {
    LEFT + share * (WIDTH - LEFT - RIGHT)
}

fn y_at(share: f64) -> f64 {
    HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
}

fn frame(title: &str, x: Scale, y: Scale, x_label: Label, y_label: Label) -> String {
    let mut out = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\"><g class=\"axes\">"
    );
    // Writing to a String cannot fail.
    for tick in y.ticks() {
        let at = y_at(y.place(tick));
        let _ = write!(
            out,
            "<path d=\"M{LEFT} {at:.1}H{:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            y_label(tick)
        );
    }
    for tick in x.ticks() {
        let at = x_at(x.place(tick));
        let _ = write!(
            out,
            "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - BOTTOM + 18.0,
            x_label(tick)
        );
    }
    out += "</g>";
    out
}

/// Lines over the seconds of a run; nothing without a point.
pub(super) fn lines(title: &str, lines: &[Line], is_log: bool, label: Label) -> Option<String> {
    let of = || lines.iter().flat_map(|line| line.points.iter());
    let values = || of().filter_map(|(_, y)| *y);
    let most = values().fold(f64::MIN, f64::max);
    values().next()?;
    let x = Scale::linear(0.0, of().map(|(x, _)| *x).fold(1.0, f64::max));
    let positive = values().filter(|value| *value > 0.0).fold(f64::MAX, f64::min);
    let y = match is_log && positive < f64::MAX {
        true => Scale::log(positive, most),
        false => Scale::linear(0.0, most * 1.05),
    };
    let mut out = frame(title, x, y, |s| format!("{s} s"), label);
    for (at, line) in lines.iter().enumerate() {
        let _ = write!(out, "<path class=\"line c{at}\" d=\"{}\"/>", path(line, x, y));
    }
    out += "</svg><p class=\"legend\">";
    let is_measured = |line: &Line| line.points.iter().any(|(_, y)| y.is_some());
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| is_measured(line)) {
        let _ = write!(out, "<span class=\"c{at}\">{}</span> ", line.name);
    }
    out += "</p>";
    Some(out)
}

/// A path in whole units: shorter, and finer than any screen.
fn path(line: &Line, x: Scale, y: Scale) -> String {
    let mut out = String::new();
    let mut is_down = false;
    for (n, (px, py)) in line.points.iter().enumerate() {
        let Some(py) = py else {
            is_down = false;
            continue;
        };
        let (px, py) = (x_at(x.place(*px)), y_at(y.place(*py)));
        let _ = write!(out, "{}{px:.1} {py:.0}", if is_down { 'L' } else { 'M' });
        // A point between two gaps is a dot.
        let is_alone = !is_down && line.points.get(n + 1).is_none_or(|(_, y)| y.is_none());
        if is_alone {
            out += "h1";
        }
        is_down = true;
    }
    out
}

/// Bars over values on a logarithmic scale; `bars` are lower end, upper end, count. Counts are on such a scale too,
/// so that single ones show beside millions.
pub(super) fn histogram(title: &str, bars: &[(f64, f64, u64)], label: Label) -> Option<String> {
    let (first, last) = (bars.first()?, bars.last()?);
    let x = Scale::log(first.0, last.1);
    let most = bars.iter().map(|bar| bar.2).max().unwrap_or(1) as f64;
    let y = Scale::log(1.0, most.max(10.0));
    let mut out = frame(title, x, y, label, |count| format!("{count}"));
    for (from, to, count) in bars.iter().filter(|bar| bar.2 > 0) {
        let (left, right) = (x_at(x.place(*from)), x_at(x.place(*to)));
        // One alone has a bar as well.
        let top = y_at(y.place(*count as f64).max(0.015));
        let _ = write!(
            out,
            "<rect class=\"bar\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
            (right - left - 0.5).max(0.8),
            HEIGHT - BOTTOM - top
        );
    }
    Some(out + "</svg>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_have_round_ticks() {
        assert_eq!(Scale::linear(0.0, 97.0).ticks(), [0.0, 20.0, 40.0, 60.0, 80.0]);
        let log = Scale::log(30.0, 4000.0);
        assert_eq!(log.ticks(), [10.0, 100.0, 1000.0, 10_000.0]);
        assert!((log.place(100.0) - 1.0 / 3.0).abs() < 1e-9);
        assert_eq!((log.place(1.0), log.place(1e9)), (0.0, 1.0));
        // A constant has a scale as well.
        assert_eq!(Scale::log(10.0, 10.0).to, 100.0);
    }

    #[test]
    fn a_line_has_a_gap_where_nothing_was_measured() {
        let points = vec![(0.0, Some(1.0)), (1.0, Some(2.0)), (2.0, None), (3.0, Some(1.0))];
        let line = Line { name: "a", points };
        let svg = lines("title", &[line], false, |v| format!("{v}")).unwrap();
        let path = svg.split("line c0\" d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!((path.matches('M').count(), path.matches('L').count()), (2, 1));
        let empty = Line { name: "a", points: vec![(0.0, None)] };
        assert_eq!(lines("title", &[empty], false, |v| format!("{v}")), None);
    }

    #[test]
    fn bars_show_single_counts() {
        let bars = [(10.0, 20.0, 1), (20.0, 40.0, 0), (40.0, 80.0, 1_000_000)];
        let svg = histogram("title", &bars, |v| format!("{v}")).unwrap();
        assert_eq!(svg.matches("<rect").count(), 2);
        assert_eq!(histogram("title", &[], |v| format!("{v}")), None);
    }
}
