//! `roost-load compare A.json B.json`: whether a run was better or worse than another one.
//!
//! A figure of each second (rate, median, 99th percentile) is a sample. Of the samples of a run the median is
//! taken, with the interval in which it lies in 95 % of the resamplings (bootstrap). Two runs differ in a figure
//! when their intervals don't touch and their medians are further apart than the tolerance.

use super::report::{Time, VERSION};
use super::series::Columns;
use crate::base::rng::Rng;
use serde::Deserialize;
use std::fmt;
use std::path::Path;

/// Resamplings of each figure.
const RESAMPLINGS: usize = 1000;

/// Seconds with messages that a run needs at least.
const SECONDS_MIN: usize = 5;

/// Medians that are nearer to each other are equal.
const TOLERANCE: f64 = 0.05;

/// What is read of a report.
#[derive(Debug, Deserialize)]
struct Run {
    scenario: String,
    url: String,
    connections: Connections,
    messages: Messages,
    #[serde(skip)]
    seconds: Vec<Second>,
}

/// The version of a report's format; the first one names none.
#[derive(Debug, Deserialize)]
struct Format {
    version: Option<u64>,
}

/// The seconds of version 1.
#[derive(Debug, Deserialize)]
struct InRows {
    seconds: Vec<Second>,
}

/// The seconds since version 2.
#[derive(Debug, Deserialize)]
struct InColumns {
    seconds: Columns,
}

#[derive(Debug, Deserialize)]
struct Connections {
    failed: u64,
    dropped: u64,
}

#[derive(Debug, Deserialize)]
struct Messages {
    lost: u64,
    duplicated: u64,
    out_of_order: u64,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Second {
    received: u64,
    p50_us: Option<u64>,
    p99_us: Option<u64>,
    server_cpu: Option<f64>,
    server_rss_bytes: Option<u64>,
}

/// A median and its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Estimate {
    median: f64,
    low: f64,
    high: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Better,
    Worse,
    Equal,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Better => "better",
            Self::Worse => "WORSE",
            Self::Equal => "equal",
        })
    }
}

/// A figure of each second.
struct Figure {
    name: &'static str,
    of: fn(&Second) -> Option<f64>,
    is_more_better: bool,
    show: fn(f64) -> String,
}

fn number(value: f64) -> String {
    format!("{value:.0}")
}

fn time(value: f64) -> String {
    Time::us(value as u64).to_string()
}

const FIGURES: [Figure; 5] = [
    Figure {
        name: "received per second",
        of: |of| Some(of.received as f64),
        is_more_better: true,
        show: number,
    },
    Figure {
        name: "latency p50",
        of: |of| of.p50_us.map(|of| of as f64),
        is_more_better: false,
        show: time,
    },
    Figure {
        name: "latency p99",
        of: |of| of.p99_us.map(|of| of as f64),
        is_more_better: false,
        show: time,
    },
    Figure {
        name: "server processors",
        of: |of| of.server_cpu,
        is_more_better: false,
        show: |value| format!("{value:.2}"),
    },
    Figure {
        name: "server memory",
        of: |of| of.server_rss_bytes.map(|of| of as f64),
        is_more_better: false,
        show: |value| format!("{:.1} MB", value / 1e6),
    },
];

/// The samples of a figure: of seconds with messages, without the first and the last, which are not whole.
fn samples(run: &Run, figure: &Figure) -> Vec<f64> {
    let is_used = |second: &Second| second.received > 0;
    let first = run.seconds.iter().position(is_used).map_or(0, |at| at + 1);
    let last = run.seconds.iter().rposition(is_used).unwrap_or(0);
    let whole = run.seconds.get(first..last).unwrap_or_default();
    whole.iter().filter(|second| is_used(second)).filter_map(figure.of).collect()
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_unstable_by(f64::total_cmp);
    let half = samples.len() / 2;
    match samples.len() % 2 {
        0 => (samples[half - 1] + samples[half]) / 2.0,
        _ => samples[half],
    }
}

/// The median of at least one sample. Repeatable: the random numbers are always the same.
fn estimate(samples: &[f64]) -> Estimate {
    let mut rng = Rng::new(1);
    let mut drawn = vec![0.0; samples.len()];
    let mut medians: Vec<f64> = (0..RESAMPLINGS)
        .map(|_| {
            for place in &mut drawn {
                *place = samples[rng.below(samples.len() as u64) as usize];
            }
            median(&mut drawn)
        })
        .collect();
    medians.sort_unstable_by(f64::total_cmp);
    Estimate {
        median: median(&mut samples.to_vec()),
        low: medians[RESAMPLINGS * 25 / 1000],
        high: medians[RESAMPLINGS * 975 / 1000 - 1],
    }
}

fn judge(a: Estimate, b: Estimate, is_more_better: bool) -> Verdict {
    let overlap = a.low <= b.high && b.low <= a.high;
    let change = (b.median - a.median).abs() / a.median.abs().max(f64::MIN_POSITIVE);
    match (b.median > a.median) == is_more_better {
        _ if overlap || change <= TOLERANCE => Verdict::Equal,
        true => Verdict::Better,
        false => Verdict::Worse,
    }
}

/// The table of two runs, and whether the second one is worse in something.
///
/// # Errors
/// A file is no report with seconds, or a run is too short: text for the user.
pub(super) fn compare(a: &Path, b: &Path) -> Result<(String, bool), String> {
    let (a, b) = (read(a)?, read(b)?);
    let mut out = format!("A  {} {}\nB  {} {}\n\n", a.scenario, a.url, b.scenario, b.url);
    let mut is_worse = false;
    out += &format!("{:<22}{:>28}{:>28}{:>9}  verdict\n", "median (95 %)", "A", "B", "change");
    for figure in &FIGURES {
        let (of_a, of_b) = (samples(&a, figure), samples(&b, figure));
        if of_a.len() < SECONDS_MIN || of_b.len() < SECONDS_MIN {
            continue;
        }
        let (of_a, of_b) = (estimate(&of_a), estimate(&of_b));
        let verdict = judge(of_a, of_b, figure.is_more_better);
        is_worse |= verdict == Verdict::Worse;
        let show = |of: Estimate| {
            let [median, low, high] = [of.median, of.low, of.high].map(figure.show);
            format!("{median} ({low}..{high})")
        };
        let change = (of_b.median / of_a.median.max(f64::MIN_POSITIVE) - 1.0) * 100.0;
        let (show_a, show_b) = (show(of_a), show(of_b));
        out += &format!("{:<22}{show_a:>28}{show_b:>28}{change:>+8.1}%  {verdict}\n", figure.name);
    }
    for (name, of_a, of_b) in [
        ("failed", a.connections.failed, b.connections.failed),
        ("dropped", a.connections.dropped, b.connections.dropped),
        ("lost", a.messages.lost, b.messages.lost),
        ("duplicated", a.messages.duplicated, b.messages.duplicated),
        ("out of order", a.messages.out_of_order, b.messages.out_of_order),
    ] {
        let verdict = match of_b.cmp(&of_a) {
            std::cmp::Ordering::Less => Verdict::Better,
            std::cmp::Ordering::Equal => Verdict::Equal,
            std::cmp::Ordering::Greater => Verdict::Worse,
        };
        is_worse |= verdict == Verdict::Worse;
        out += &format!("{name:<22}{of_a:>28}{of_b:>28}{:>9}  {verdict}\n", "");
    }
    let verdict = if is_worse { "B is worse than A" } else { "B is not worse than A" };
    Ok((format!("{out}\n{verdict}\n"), is_worse))
}

/// A report of this version or of one before.
fn parse(text: &[u8]) -> Result<Run, String> {
    fn of<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, String> {
        let parsed = serde_json::from_slice(text);
        parsed.map_err(|error| format!("not a report of --json FILE: {error}"))
    }
    let Format { version } = of(text)?;
    let mut run: Run = of(text)?;
    run.seconds = match version {
        None => of::<InRows>(text)?.seconds,
        Some(VERSION) => rows(&of::<InColumns>(text)?.seconds)?,
        Some(other) => {
            return Err(format!(
                "a report of version {other}: this release compares those of version {VERSION}, \
                 and those before that name none"
            ));
        }
    };
    Ok(run)
}

/// The columns as the seconds that they are of.
fn rows(columns: &Columns) -> Result<Vec<Second>, String> {
    let row = |at: usize| {
        Some(Second {
            received: *columns.received.get(at)?,
            p50_us: *columns.p50_us.get(at)?,
            p99_us: *columns.p99_us.get(at)?,
            server_cpu: *columns.server_cpu.get(at)?,
            server_rss_bytes: *columns.server_rss_bytes.get(at)?,
        })
    };
    let rows = (0..columns.received.len()).map(row).collect::<Option<_>>();
    rows.ok_or_else(|| "not a report of --json FILE: columns of unequal length".to_owned())
}

fn read(path: &Path) -> Result<Run, String> {
    let shown = path.display();
    let text = std::fs::read(path).map_err(|error| format!("{shown}: {error}"))?;
    let run = parse(&text).map_err(|error| format!("{shown}: {error}"))?;
    match samples(&run, &FIGURES[0]).len() {
        SECONDS_MIN.. => Ok(run),
        count => Err(format!("{shown}: {count} whole seconds with messages are too few")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_holds_the_median_and_shrinks_with_samples() {
        let mut rng = Rng::new(7);
        let mut draw = |count: usize| -> Vec<f64> {
            (0..count).map(|_| 100.0 + rng.below(1000) as f64 / 50.0).collect()
        };
        let (few, many) = (estimate(&draw(10)), estimate(&draw(1000)));
        for of in [few, many] {
            assert!(of.low <= of.median && of.median <= of.high, "{of:?}");
            assert!(of.low <= 110.5 && of.high >= 109.5, "{of:?}");
        }
        assert!(many.high - many.low < few.high - few.low);
        assert_eq!(estimate(&[3.0; 8]), Estimate { median: 3.0, low: 3.0, high: 3.0 });
    }

    #[test]
    fn reports_with_rows_and_with_columns_are_read_and_newer_ones_refused() {
        let of = |rest: &str| {
            let text = format!(
                r#"{{"scenario":"echo","url":"u","connections":{{"failed":0,"dropped":0}},
                "messages":{{"lost":0,"duplicated":0,"out_of_order":0}},{rest}}}"#
            );
            parse(text.as_bytes())
        };
        let rows = of(r#""seconds":[{"second":0,"received":7,"p50_us":3,"p99_us":null,
            "server_cpu":0.5,"server_rss_bytes":9}]"#);
        let seconds = [Second { received: 7, p50_us: Some(3), server_cpu: Some(0.5), ..zero() }];
        let seconds = seconds.map(|of| Second { server_rss_bytes: Some(9), ..of });
        assert_eq!(rows.unwrap().seconds, seconds);
        let row = super::super::series::Second {
            received: 7,
            p50_us: Some(3),
            server_cpu: Some(0.5),
            server_rss_bytes: Some(9),
            ..Default::default()
        };
        let mut columns = Columns::of(&[row]);
        let with = |columns: &Columns, version: u64| {
            let columns = serde_json::to_string(columns).unwrap();
            of(&format!(r#""version":{version},"seconds":{columns}"#))
        };
        assert_eq!(with(&columns, VERSION).unwrap().seconds, seconds);
        let newer = with(&columns, VERSION + 1).unwrap_err();
        assert!(newer.starts_with("a report of version 3: this release compares"), "{newer}");
        columns.p99_us.clear();
        let torn = with(&columns, VERSION).unwrap_err();
        assert!(torn.ends_with("columns of unequal length"), "{torn}");
    }

    fn zero() -> Second {
        let (p50_us, p99_us, server_cpu, server_rss_bytes) = (None, None, None, None);
        Second { received: 0, p50_us, p99_us, server_cpu, server_rss_bytes }
    }

    #[test]
    fn runs_differ_when_intervals_are_apart_and_by_more_than_the_tolerance() {
        let of = |median: f64, by: f64| Estimate { median, low: median - by, high: median + by };
        assert_eq!(judge(of(100.0, 1.0), of(120.0, 1.0), false), Verdict::Worse);
        assert_eq!(judge(of(100.0, 1.0), of(120.0, 1.0), true), Verdict::Better);
        assert_eq!(judge(of(100.0, 15.0), of(120.0, 15.0), false), Verdict::Equal);
        assert_eq!(judge(of(100.0, 1.0), of(104.0, 1.0), false), Verdict::Equal);
    }
}
