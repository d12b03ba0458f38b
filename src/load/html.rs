//! `--html`: the report as one page that needs nothing else, not even a script.

use super::figures::Latency;
use super::report::{PhaseReport, Report, Summary, Time};
use super::series::Second;
use super::svg::{self, Line};
use std::fmt::Write;

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1c1e21;--soft:#667;--rule:#dde;--paper:#fff;--bad:#b3261e;--good:#1b7f3b;
--c0:#1f6feb;--c1:#d9730d;--c2:#8250df;--c3:#b3261e;--c4:#1b7f3b}
@media (prefers-color-scheme:dark){:root{--ink:#e6e8eb;--soft:#99a;--rule:#334;--paper:#15171a;--bad:#ff8a80;
--good:#6fdc8c;--c0:#6ea8fe;--c1:#ffb067;--c2:#c7a4ff;--c3:#ff8a80;--c4:#6fdc8c}}
@media print{:root{--ink:#000;--soft:#444;--rule:#bbb;--paper:#fff;--bad:#900;--good:#050;--c0:#1f6feb;--c1:#c60;
--c2:#8250df;--c3:#b00;--c4:#060}section{break-inside:avoid}.wide td,.wide th{white-space:normal!important}}
*{box-sizing:border-box}body{margin:0 auto;max-width:60rem;padding:1rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}h1{font-size:1.5rem;margin:.5rem 0;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:2rem 0 .5rem}p{margin:.3rem 0}.soft{color:var(--soft)}.bad{color:var(--bad);font-weight:600}
.good{color:var(--good);font-weight:600}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.25rem .5rem;border-bottom:1px solid var(--rule);vertical-align:top}
th:first-child,td:first-child{text-align:left}th{color:var(--soft);font-weight:500}
.wide{overflow-x:auto;margin:.5rem 0}.wide td,.wide th{white-space:nowrap}summary{cursor:pointer}svg{width:100%;height:auto;display:block}.axes path{stroke:var(--rule);stroke-width:1}
.axes text{fill:var(--soft);font-size:11px}.line{fill:none;stroke-width:1.5;stroke-linejoin:round}
.line.c0{stroke:var(--c0)}.line.c1{stroke:var(--c1)}.line.c2{stroke:var(--c2)}.line.c3{stroke:var(--c3)}
.line.c4{stroke:var(--c4)}.bar{fill:var(--c0)}.legend span{margin-right:1rem;font-size:.85rem}
.legend span:before{content:'\\25CF\\00A0'}span.c0:before{color:var(--c0)}span.c1:before{color:var(--c1)}
span.c2:before{color:var(--c2)}span.c3:before{color:var(--c3)}span.c4:before{color:var(--c4)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.5rem}
.tiles div{border:1px solid var(--rule);border-radius:.4rem;padding:.5rem .7rem}.tiles b{display:block;font-size:1.15rem}
@media (max-width:40rem){.axes text{font-size:18px}.line{stroke-width:3}body{padding:.6rem;font-size:15px}th,td{padding:.2rem .3rem;font-size:.85rem}}
";

/// The page.
pub(super) fn page(report: &Report, seconds: &[Second], latency: &Latency) -> String {
    let title = format!("{} {}", escape(&report.scenario), escape(&report.url));
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{title}</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n"
    );
    verdict(&mut out, report);
    tiles(&mut out, report);
    phases(&mut out, report);
    latencies(&mut out, report, latency);
    over_time(&mut out, seconds);
    connects(&mut out, report);
    faults(&mut out, report);
    resources(&mut out, report, seconds);
    agents(&mut out, report);
    machine(&mut out, report);
    out += "</body></html>\n";
    out
}

/// Text as HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn us(value: f64) -> String {
    Time::us(value as u64).to_string()
}

fn count(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.1} M", value / 1e6),
        value if value >= 1e4 => format!("{:.0} k", value / 1e3),
        value if value == value.floor() => format!("{value}"),
        value => format!("{value:.1}"),
    }
}

fn mb(value: f64) -> String {
    format!("{:.0} MB", value / 1e6)
}

fn processors(value: f64) -> String {
    format!("{value:.2}")
}

// Writing to a String cannot fail, here and below.

fn verdict(out: &mut String, report: &Report) {
    let problems = report.problems();
    let failed: Vec<String> = report
        .thresholds
        .iter()
        .filter(|of| of.holds)
        .map(|of| match of.value {
            Some(value) => format!("{}: it is {value}", of.condition),
            None => format!("{}: it was not measured", of.condition),
        })
        .chain(problems)
        .collect();
    if report.interrupted {
        *out += "<p class=\"bad\">A signal ended the run early: these are the figures so far.</p>";
    }
    if failed.is_empty() {
        *out += "<p class=\"good\">No message was lost, and no condition failed.</p>";
    }
    for text in failed {
        let _ = write!(out, "<p class=\"bad\">{}</p>", escape(&text));
    }
    if let Some(bottleneck) = report.bottleneck_text() {
        let _ = write!(
            out,
            "<p class=\"bad\">{bottleneck}; the figures are not the server's limit.</p>"
        );
    }
}

fn tiles(out: &mut String, report: &Report) {
    *out += "<section class=\"tiles\">";
    let Report { connections, messages, rate, latency_us, .. } = report;
    let time = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |of| us(of as f64));
    for (name, value) in [
        ("connections", format!("{} of {}", connections.opened, connections.asked)),
        ("opened per second", count(report.connect_rate)),
        ("sent", format!("{} ({}/s)", messages.sent, count(rate.sent))),
        ("received", format!("{} ({}/s)", messages.received, count(rate.received))),
        ("lost", messages.lost.to_string()),
        ("latency p50", time(latency_us.p50)),
        ("latency p99", time(latency_us.p99)),
        ("latency max", time(latency_us.max)),
    ] {
        let _ = write!(out, "<div><span class=\"soft\">{name}</span><b>{value}</b></div>");
    }
    *out += "</section>\n";
}

fn phases(out: &mut String, report: &Report) {
    *out += "<section><h2>Requested and run</h2><div class=\"wide\"><table><tr><th>phase</th>\
             <th>requested</th><th>took</th><th>open</th><th>messages requested</th><th>sent</th>\
             <th>received</th></tr>";
    for phase in &report.phases {
        let PhaseReport { name, duration_s, open, sent, received, requested, .. } = phase;
        let time = requested.duration_s.map_or_else(|| "-".to_owned(), |s| Time::s(s).to_string());
        let messages = match (requested.messages, requested.rate) {
            (Some(n), Some([from, to])) if from == to => format!("{n} at {}/s", count(from)),
            (Some(n), Some([from, to])) => format!("{n}, {} to {}/s", count(from), count(to)),
            (Some(n), None) => n.to_string(),
            (None, _) => "-".to_owned(),
        };
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{time}</td><td>{}</td><td>{open}</td><td>{messages}</td><td>{sent}</td>\
             <td>{received}</td></tr>",
            escape(name),
            Time::s(*duration_s)
        );
    }
    *out += "</table></div>";
    *out += "<div class=\"wide\"><table><tr><th>population</th><th>connections</th><th>transport</th>\
             <th>latency p50</th><th>p99</th><th>max</th></tr>";
    for of in &report.populations {
        let tls = if of.tls { ", TLS" } else { "" };
        let compressed = if of.compression { ", compressed" } else { "" };
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}{tls}{compressed}</td>{}</tr>",
            escape(&of.name),
            of.connections,
            of.transport,
            cells(&of.latency_us)
        );
    }
    *out += "</table></div></section>\n";
}

/// Median, 99th percentile and maximum as cells.
fn cells(of: &Summary) -> String {
    [of.p50, of.p99, of.max].into_iter().fold(String::new(), |mut out, value| {
        let _ = match value {
            Some(value) => write!(out, "<td>{}</td>", us(value as f64)),
            None => write!(out, "<td>-</td>"),
        };
        out
    })
}

fn latencies(out: &mut String, report: &Report, latency: &Latency) {
    let bars: Vec<(f64, f64, u64)> = bars(latency);
    if let Some(chart) = svg::histogram("Latency histogram", &bars, us) {
        let _ = write!(
            out,
            "<section><h2>Latency, from the intended send time</h2><div class=\"chart\">{chart}</div>"
        );
        *out += "<p class=\"soft\">Both scales are logarithmic: time from left to right, messages upwards.</p>\
                 <div class=\"wide\"><table><tr><th></th><th>p50</th><th>p90</th><th>p99</th><th>p99.9</th>\
                 <th>max</th><th>mean</th></tr>";
        for (name, of) in [
            ("intended", &report.latency_us),
            ("from the actual send time", &report.latency_raw_us),
        ] {
            let _ = write!(out, "<tr><td>{name}</td>");
            for value in [of.p50, of.p90, of.p99, of.p999, of.max, of.mean.map(|of| of as u64)] {
                let _ = write!(out, "<td>{}</td>", us(value.unwrap_or_default() as f64));
            }
            *out += "</tr>";
        }
        *out += "</table></div>";
        if !report.channels.is_empty() {
            *out += "<details><summary>By channel</summary><div class=\"wide\"><table><tr><th>channel</th><th>received</th><th>p50</th><th>p99</th>\
                     <th>max</th></tr>";
            for of in &report.channels {
                let (name, cells) = (escape(&of.name), cells(&of.latency_us));
                let _ = write!(out, "<tr><td>{name}</td><td>{}</td>{cells}</tr>", of.received);
            }
            *out += "</table></div></details>";
        }
        *out += "</section>\n";
    }
}

/// Counts in steps of a tenth of a decade and less: 24 in each.
fn bars(latency: &Latency) -> Vec<(f64, f64, u64)> {
    const STEPS: f64 = 24.0;
    let mut bars: Vec<(f64, f64, u64)> = Vec::new();
    for bucket in latency.iter_recorded() {
        let value = bucket.value_iterated_to().max(1) as f64;
        let step = (value.log10() * STEPS).floor();
        let (from, to) = (10f64.powf(step / STEPS), 10f64.powf((step + 1.0) / STEPS));
        match bars.last_mut().filter(|last| last.0 == from) {
            Some(last) => last.2 += u64::from(bucket.count_at_value()),
            None => bars.push((from, to, bucket.count_at_value().into())),
        }
    }
    bars
}

fn over_time(out: &mut String, seconds: &[Second]) {
    let line = |name, of: fn(&Second) -> Option<f64>| Line {
        name,
        points: seconds.iter().map(|second| (second.second.into(), of(second))).collect(),
    };
    let charts = [
        (
            "Messages per second",
            svg::lines(
                "Messages per second",
                &[
                    line("sent", |of| Some(of.sent as f64)),
                    line("received", |of| Some(of.received as f64)),
                ],
                false,
                count,
            ),
        ),
        (
            "Latency over time",
            svg::lines(
                "Latency over time",
                &[
                    line("p50", |of| of.p50_us.map(|of| of as f64)),
                    line("p90", |of| of.p90_us.map(|of| of as f64)),
                    line("p99", |of| of.p99_us.map(|of| of as f64)),
                    line("max", |of| of.max_us.map(|of| of as f64)),
                ],
                true,
                us,
            ),
        ),
        (
            "Connections",
            svg::lines(
                "Connections",
                &[
                    line("open", |of| Some(of.open as f64)),
                    line("opened per second", |of| Some(of.opened as f64)),
                    line("failed per second", |of| Some(of.failed as f64)),
                    line("dropped per second", |of| Some(of.dropped as f64)),
                ],
                false,
                count,
            ),
        ),
    ];
    for (title, chart) in charts {
        if let Some(chart) = chart {
            let _ = writeln!(
                out,
                "<section><h2>{title}</h2><div class=\"chart\">{chart}</div></section>"
            );
        }
    }
}

fn connects(out: &mut String, report: &Report) {
    let of = &report.connect_us;
    if of.total.max.is_none() {
        return;
    }
    *out += "<section><h2>Time to connect</h2><div class=\"wide\"><table><tr><th>step</th><th>p50</th>\
             <th>p99</th><th>max</th></tr>";
    for (name, of) in [
        ("TCP", &of.tcp),
        ("TLS", &of.tls),
        ("upgrade", &of.upgrade),
        ("protocol", &of.protocol),
        ("all of it", &of.total),
        ("ping round trip", &report.ping_us),
    ] {
        if of.max.is_some() {
            let _ = write!(out, "<tr><td>{name}</td>{}</tr>", cells(of));
        }
    }
    *out += "</table></div></section>\n";
}

fn faults(out: &mut String, report: &Report) {
    if report.reasons.is_empty() {
        return;
    }
    *out += "<section><h2>Errors by reason</h2><table><tr><th>reason</th><th>count</th></tr>";
    for (reason, count) in &report.reasons {
        let _ = write!(out, "<tr><td>{}</td><td>{count}</td></tr>", escape(reason));
    }
    *out += "</table></section>\n";
}

fn resources(out: &mut String, report: &Report, seconds: &[Second]) {
    let line = |name, of: fn(&Second) -> Option<f64>| Line {
        name,
        points: seconds.iter().map(|second| (second.second.into(), of(second))).collect(),
    };
    let memory = [line("server", |of| of.server_rss_bytes.map(|of| of as f64))];
    if let Some(chart) = svg::lines("Memory of the server", &memory, false, mb) {
        let _ = writeln!(
            out,
            "<section><h2>Memory of the server</h2><div class=\"chart\">{chart}</div></section>"
        );
    }
    let cpu = [line("this client", |of| of.client_cpu), line("server", |of| of.server_cpu)];
    if let Some(chart) = svg::lines("Processors in use", &cpu, false, processors) {
        let _ = writeln!(
            out,
            "<section><h2>Processors in use</h2><div class=\"chart\">{chart}</div></section>"
        );
    }
    if let Some(server) = &report.server
        && let Some(bytes) = server.rss_bytes_per_connection
    {
        let _ = write!(out, "<p>Server: {bytes:.0} bytes of memory for each connection.</p>");
    }
}

fn agents(out: &mut String, report: &Report) {
    if report.agents.is_empty() {
        return;
    }
    *out += "<section><h2>Agents</h2><div class=\"wide\"><table><tr><th>agent</th><th>connections</th>\
             <th>opened</th><th>dropped</th><th>publishers</th><th>sent</th><th>received</th><th>lost</th></tr>";
    for of in &report.agents {
        let share = of.share * 100.0;
        let lost = of.lost.map_or_else(|| "-".to_owned(), |lost| lost.to_string());
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{} ({share:.0} %)</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{}</td><td>{lost}</td></tr>",
            escape(&of.name),
            of.connections,
            of.opened,
            of.dropped,
            of.publishers,
            of.sent,
            of.received
        );
    }
    // A table of its own: one of all columns is wider than paper.
    *out += "</table></div><div class=\"wide\"><table><tr><th>agent</th><th>latency p50</th><th>p99</th>\
             <th>max</th><th>clock</th><th>CPU s</th></tr>";
    for of in &report.agents {
        let corrected = if of.is_latency_corrected { "*" } else { "" };
        let _ = write!(
            out,
            "<tr><td>{}{corrected}</td>{}<td>{} within {}</td><td>{:.1}</td></tr>",
            escape(&of.name),
            cells(&of.latency_us),
            signed(of.clock.offset_us),
            us(of.clock.uncertainty_us),
            of.client.cpu_s
        );
    }
    *out += "</table></div>";
    if let Some(uncertainty) = report.latency_uncertainty_us {
        let _ = write!(
            out,
            "<p class=\"soft\">* Messages come from other agents too: their latency is corrected by the offsets \
             of the clocks, to within {}.</p>",
            us(uncertainty)
        );
    }
    for of in &report.agents {
        let fault =
            of.fault.as_ref().map(|fault| format!("<p class=\"bad\">gone: {}</p>", escape(fault)));
        let _ = write!(
            out,
            "<p class=\"soft\">{}: {}, {} processors ({}), {} of memory, Linux {}</p>{}",
            escape(&of.name),
            escape(&of.machine.name),
            of.machine.processors,
            escape(&of.machine.processor),
            mb(of.machine.memory_bytes as f64),
            escape(&of.machine.kernel),
            fault.unwrap_or_default()
        );
    }
    *out += "</section>\n";
}

/// A difference of clocks, microseconds.
fn signed(value: f64) -> String {
    let sign = if value < 0.0 { "-" } else { "+" };
    format!("{sign}{}", us(value.abs()))
}

fn machine(out: &mut String, report: &Report) {
    let of = &report.machine;
    let _ = writeln!(
        out,
        "<section><h2>This client</h2><p>{} processors ({}), {} of memory, Linux {}</p>\
         <p class=\"soft\">roost-load {}, {}; {:.1} MB, {:.2} CPU s; began {}</p></section>",
        of.processors,
        escape(&of.processor),
        mb(of.memory_bytes as f64),
        escape(&of.kernel),
        env!("CARGO_PKG_VERSION"),
        escape(&of.name),
        report.client.rss_bytes as f64 / 1e6,
        report.client.cpu_s,
        escape(&report.started)
    );
}

#[cfg(test)]
mod tests {
    use super::super::figures;
    use super::super::host::Usage;
    use super::super::report::AgentReport;
    use super::super::series::{AgentSecond, Moment, Recorder, write_csv};
    use super::*;
    use crate::base::rng::Rng;
    use std::time::Duration;

    /// Seconds of a run with so many agents, as the recorder has them by a clock that the test moves.
    fn recorded(count: u32, agents: usize) -> (Vec<Second>, Latency) {
        let mut rng = Rng::new(1);
        let mut recorder = Recorder::new(None, 0.0).unwrap();
        let (sender, mut now) = (recorder.sender(), Moment::default());
        now.agents = vec![AgentSecond::default(); agents];
        for second in 0..count {
            let mut latency = figures::latency();
            for _ in 0..50 {
                let most = 1 << rng.below(23);
                latency.saturating_record(1 + rng.below(most));
            }
            sender.send((second, latency)).unwrap();
            now.sum.open = 100_000 + rng.below(1000);
            now.sum.opened += rng.below(100);
            now.sum.published += rng.below(2000);
            now.sum.received += rng.below(2_000_000);
            let rss_bytes = 4_000_000_000 + rng.below(1_000_000_000);
            let cpu_s = f64::from(second) * 1.517;
            now.server = Some(Usage { rss_bytes, cpu_s });
            now.client.cpu_s += 0.7;
            for of in &mut now.agents {
                (of.open, of.received) = (25_000, of.received + rng.below(500_000));
            }
            recorder.note(Duration::from_secs(u64::from(second) + 1), &now);
        }
        recorder.finish(Duration::from_secs(u64::from(count)) + Duration::from_millis(500), &now);
        (recorder.seconds, recorder.total)
    }

    #[test]
    fn reports_of_an_hour_by_seconds_are_below_a_megabyte() {
        let (seconds, latency) = recorded(3600, 4);
        assert_eq!((seconds.len(), latency.len()), (3601, 180_000));
        let mut report = Report { latency_us: Summary::of(&latency), ..Report::default() };
        report.agents.resize_with(4, AgentReport::default);
        let bytes = page(&report, &seconds, &latency).len();
        assert!(bytes < 1_000_000, "html: {bytes}");
        let mut csv = Vec::new();
        write_csv(&mut csv, &seconds, &["10.0.0.1:7400"; 4]).unwrap();
        assert!(csv.len() < 1_000_000, "csv: {}", csv.len());
        let json = report.json_with(&seconds, &latency);
        assert!(json.len() < 1_000_000, "json: {}", json.len());
        // A column is a line.
        assert!(json.lines().any(|line| line.starts_with("    \"received\": [")), "{json:.3000}");
    }

    #[test]
    fn a_page_needs_no_other_file() {
        let (seconds, latency) = recorded(60, 0);
        let mut report = Report { scenario: "a<b".to_owned(), ..Report::default() };
        report.reasons.insert("<script>".to_owned(), 3);
        report.latency_us = Summary::of(&latency);
        let page = page(&report, &seconds, &latency);
        for absent in ["<script", "http://", "https://", "src=", "@import", "url("] {
            assert!(!page.contains(absent), "{absent}");
        }
        assert!(page.contains("a&lt;b") && page.contains("&lt;script&gt;"));
        assert_eq!(page.matches("<svg").count(), 6);
        // Each element that is opened is closed.
        for tag in ["section", "table", "tr", "td", "div", "svg", "g"] {
            let opened = page.matches(&format!("<{tag}>")).count()
                + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }
}
