//! Limits that a run has to keep, as `p99>50ms` in `--fail-if`: a figure of the report, a comparison, a value.

use serde::Serialize;
use std::time::Duration;

use super::report::{Report, Summary};

/// A condition under which a run has failed.
#[derive(Clone, Debug)]
pub(super) struct Threshold {
    text: String,
    figure: Figure,
    comparison: Comparison,
    /// In the unit of the figure: microseconds, seconds, or a number.
    value: f64,
}

/// The outcome of a threshold.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Judged {
    /// As it was written.
    pub(crate) condition: String,
    /// The measured figure: microseconds for latencies, else its own unit; null when it was not measured.
    pub(crate) value: Option<f64>,
    /// The run has failed by it. A figure that was not measured can't be judged, which fails as well.
    pub(crate) holds: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Above,
    AtLeast,
    Below,
    AtMost,
    Equal,
    Unequal,
}

/// Longest first: `>=` is no `>`.
const COMPARISONS: [(&str, Comparison); 6] = [
    (">=", Comparison::AtLeast),
    ("<=", Comparison::AtMost),
    ("==", Comparison::Equal),
    ("!=", Comparison::Unequal),
    (">", Comparison::Above),
    ("<", Comparison::Below),
];

/// A figure of the report.
#[derive(Clone, Copy, Debug)]
struct Figure {
    name: &'static str,
    unit: Unit,
    of: fn(&Report) -> Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Microseconds,
    Seconds,
    Number,
}

const fn figure(name: &'static str, unit: Unit, of: fn(&Report) -> Option<f64>) -> Figure {
    Figure { name, unit, of }
}

/// Each figure that can be judged.
const FIGURES: [Figure; 22] = [
    figure("p50", Unit::Microseconds, |of| time(of.latency_us.p50)),
    figure("p90", Unit::Microseconds, |of| time(of.latency_us.p90)),
    figure("p99", Unit::Microseconds, |of| time(of.latency_us.p99)),
    figure("p99.9", Unit::Microseconds, |of| time(of.latency_us.p999)),
    figure("max", Unit::Microseconds, |of| time(of.latency_us.max)),
    figure("mean", Unit::Microseconds, |of| of.latency_us.mean),
    figure("raw.p99", Unit::Microseconds, |of| time(of.latency_raw_us.p99)),
    figure("raw.max", Unit::Microseconds, |of| time(of.latency_raw_us.max)),
    figure("pause.p99", Unit::Microseconds, |of| time(pause(of)?.p99)),
    figure("pause.max", Unit::Microseconds, |of| time(pause(of)?.max)),
    figure("failed", Unit::Number, |of| number(of.connections.failed)),
    figure("dropped", Unit::Number, |of| number(of.connections.dropped)),
    figure("opened", Unit::Number, |of| number(of.connections.opened)),
    figure("sent", Unit::Number, |of| number(of.messages.sent)),
    figure("received", Unit::Number, |of| number(of.messages.received)),
    figure("lost", Unit::Number, |of| number(of.messages.lost)),
    figure("duplicated", Unit::Number, |of| number(of.messages.duplicated)),
    figure("out_of_order", Unit::Number, |of| number(of.messages.out_of_order)),
    figure("connect_rate", Unit::Number, |of| Some(of.connect_rate)),
    figure("sent_rate", Unit::Number, |of| Some(of.rate.sent)),
    figure("received_rate", Unit::Number, |of| Some(of.rate.received)),
    figure("back", Unit::Seconds, |of| Some(of.storm?.back_s)),
];

fn time(us: Option<u64>) -> Option<f64> {
    us.map(|us| us as f64)
}

fn number(count: u64) -> Option<f64> {
    Some(count as f64)
}

fn pause(report: &Report) -> Option<&Summary> {
    report.upgrade.as_ref().map(|of| &of.pause_us)
}

impl Threshold {
    /// Reads a condition.
    ///
    /// # Errors
    /// It is none: text for the user.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let condition: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let place = condition.find(['<', '>', '=', '!']);
        let (name, rest) = condition.split_at(place.ok_or("a figure, a comparison and a value")?);
        let found = COMPARISONS.iter().find_map(|(sign, comparison)| {
            rest.strip_prefix(sign).map(|value| (*comparison, value))
        });
        let (comparison, value) = found.ok_or("one of > >= < <= == !=")?;
        let figure = FIGURES.iter().find(|of| of.name == name).ok_or_else(|| {
            let names: Vec<&str> = FIGURES.iter().map(|of| of.name).collect();
            format!("no figure {name:?}: one of {}", names.join(", "))
        })?;
        let value = match figure.unit {
            Unit::Number => value.parse().ok().filter(|of: &f64| of.is_finite()),
            Unit::Microseconds => humantime::parse_duration(value).ok().map(us),
            Unit::Seconds => humantime::parse_duration(value).ok().map(|of| us(of) / 1e6),
        };
        let value = value.ok_or(match figure.unit {
            Unit::Number => "the value is a number",
            Unit::Microseconds | Unit::Seconds => "the value is a time, as in 50ms",
        })?;
        Ok(Self { text: text.to_owned(), figure: *figure, comparison, value })
    }

    /// Whether a run has failed by it.
    pub(super) fn judge(&self, report: &Report) -> Judged {
        let value = (self.figure.of)(report);
        let holds = value.is_none_or(|value| match self.comparison {
            Comparison::Above => value > self.value,
            Comparison::AtLeast => value >= self.value,
            Comparison::Below => value < self.value,
            Comparison::AtMost => value <= self.value,
            Comparison::Equal => value == self.value,
            Comparison::Unequal => value != self.value,
        });
        Judged { condition: self.text.clone(), value, holds }
    }
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(condition: &str, report: &Report) -> bool {
        Threshold::parse(condition).unwrap().judge(report).holds
    }

    #[test]
    fn figures_are_held_against_values() {
        let mut report = Report::default();
        report.latency_us.p99 = Some(50_000);
        report.messages.lost = 2;
        report.rate.received = 999.5;
        for (condition, expected) in [
            ("p99>50ms", false),
            ("p99>=50ms", true),
            ("p99 > 49ms", true),
            ("p99<1s", true),
            ("lost>0", true),
            ("lost == 2", true),
            ("lost!=2", false),
            ("received_rate<1000", true),
            ("received_rate<=999", false),
        ] {
            assert_eq!(holds(condition, &report), expected, "{condition}");
        }
    }

    #[test]
    fn a_figure_that_was_not_measured_fails() {
        let judged = Threshold::parse("pause.max>1s").unwrap().judge(&Report::default());
        let condition = "pause.max>1s".to_owned();
        assert_eq!(judged, Judged { condition, value: None, holds: true });
    }

    #[test]
    fn conditions_that_are_none_are_named() {
        for (condition, expected) in [
            ("p99", "a figure, a comparison and a value"),
            ("p98>1ms", "no figure \"p98\": one of p50"),
            ("p99=1ms", "one of >"),
            ("p99>fast", "the value is a time"),
            ("lost>some", "the value is a number"),
        ] {
            let error = Threshold::parse(condition).unwrap_err();
            assert!(error.contains(expected), "{condition}: {error}");
        }
    }
}
