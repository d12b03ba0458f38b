//! The run second by second: counters, latencies, memory and processor time.
//!
//! ```text
//!  workers --(second, histogram)--> Recorder: merges those of one second, waits for late ones, then
//!                                   percentiles -> Second; the histogram -> HDR log; forgotten
//! ```
//! Price: about 150 bytes for each second of the run.

use super::figures::{self, Latency, Sum};
use super::hdr::Log;
use super::host::Usage;
use super::report::Summary;
use crossbeam_channel::{Receiver, Sender, unbounded};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Duration;

/// The latencies of one thread in one second since the origin.
pub(crate) type Slice = (u32, Latency);

/// Seconds after which a thread's histogram is there: longer than one waits for events.
const LATE_S: u32 = 3;

/// One second of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Second {
    /// Since the start of the run, from 0.
    pub(crate) second: u32,
    /// Connections that are open at its end.
    pub(crate) open: u64,
    /// Opened, failed and dropped within it.
    pub(crate) opened: u64,
    pub(crate) failed: u64,
    pub(crate) dropped: u64,
    /// Messages within it.
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Of the messages that arrived within it, from the intended send time; nulls without any.
    pub(crate) p50_us: Option<u64>,
    pub(crate) p90_us: Option<u64>,
    pub(crate) p99_us: Option<u64>,
    pub(crate) p999_us: Option<u64>,
    pub(crate) max_us: Option<u64>,
    /// Resident bytes of the server, and its processors in use; null where they are not known.
    pub(crate) server_rss_bytes: Option<u64>,
    pub(crate) server_cpu: Option<f64>,
    /// Processors that this client used, or all agents.
    pub(crate) client_cpu: Option<f64>,
    /// Of each agent.
    pub(crate) agents: Vec<AgentSecond>,
}

/// A second of one agent; in a [`Moment`] what it has counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AgentSecond {
    /// Connections that are open at its end.
    pub(crate) open: u64,
    /// Messages within it.
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

/// The counters of a moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Moment {
    pub(crate) sum: Sum,
    pub(crate) server: Option<Usage>,
    pub(crate) client: Usage,
    pub(crate) agents: Vec<AgentSecond>,
}

/// See the module.
pub(crate) struct Recorder {
    slices: Receiver<Slice>,
    sender: Sender<Slice>,
    waiting: BTreeMap<u32, Latency>,
    pub(crate) seconds: Vec<Second>,
    log: Option<Log<BufWriter<File>>>,
    before: Moment,
    /// All latencies so far.
    pub(crate) total: Latency,
    /// Of those, as of the newest second.
    pub(crate) summary: Summary,
    /// Why the log could not be written.
    pub(crate) fault: Option<String>,
}

impl Recorder {
    /// For a run that begins now, with a log of its histograms if there is a file for it.
    ///
    /// # Errors
    /// The file can't be made: text for the user.
    pub(crate) fn new(log: Option<&Path>, start_s: f64) -> Result<Self, String> {
        let (sender, slices) = unbounded();
        let open = |path: &Path| {
            let file = File::create(path).and_then(|of| Log::new(BufWriter::new(of), start_s));
            file.map_err(|error| format!("--hdr {}: {error}", path.display()))
        };
        Ok(Self {
            slices,
            sender,
            waiting: BTreeMap::new(),
            seconds: Vec::new(),
            log: log.map(open).transpose()?,
            before: Moment::default(),
            total: figures::latency(),
            summary: Summary::default(),
            fault: None,
        })
    }

    /// The run begins, with what the client has used so far.
    pub(crate) fn begin(&mut self, client: Usage) {
        self.before.client = client;
    }

    /// Where workers send their histograms.
    pub(crate) fn sender(&self) -> Sender<Slice> {
        self.sender.clone()
    }

    /// Whether a second is over that was not noted.
    pub(crate) fn is_due(&self, elapsed: Duration) -> bool {
        elapsed.as_secs() > self.seconds.len() as u64
    }

    /// Notes the seconds that are over; several, if nobody looked meanwhile: the last one has it all.
    pub(crate) fn note(&mut self, elapsed: Duration, now: &Moment) {
        let until = elapsed.as_secs() as u32;
        while (self.seconds.len() as u32) < until {
            let second = self.seconds.len() as u32;
            let is_last = second + 1 == until;
            self.seconds.push(Second { second, open: now.sum.open, ..Second::default() });
            if is_last {
                self.count(now);
            }
        }
        self.gather(until.saturating_sub(LATE_S));
        self.summary = Summary::of(&self.total);
    }

    /// Adds what was counted since the last time to the newest second.
    fn count(&mut self, now: &Moment) {
        let Some(second) = self.seconds.last_mut() else { return };
        let before = std::mem::take(&mut self.before);
        let since = |of: fn(&Sum) -> u64| of(&now.sum).saturating_sub(of(&before.sum));
        second.open = now.sum.open;
        second.opened += since(|sum| sum.opened);
        second.failed += since(|sum| sum.failed);
        second.dropped += since(|sum| sum.dropped);
        second.sent += since(|sum| sum.sent) + since(|sum| sum.published);
        second.received += since(|sum| sum.received);
        second.server_rss_bytes = now.server.map(|of| of.rss_bytes);
        let cpu =
            |now: &Usage, before: &Usage| super::report::round((now.cpu_s - before.cpu_s).max(0.0));
        second.server_cpu = now.server.zip(before.server).map(|(now, before)| cpu(&now, &before));
        second.client_cpu = Some(cpu(&now.client, &before.client));
        let agents = now.agents.iter().enumerate().map(|(at, of)| {
            let before = before.agents.get(at).copied().unwrap_or_default();
            let (sent, received) = (of.sent.saturating_sub(before.sent), of.received);
            AgentSecond { sent, received: received.saturating_sub(before.received), ..*of }
        });
        second.agents = agents.collect();
        self.before = now.clone();
    }

    /// Takes histograms in, and is done with the seconds before `until`.
    fn gather(&mut self, until: u32) {
        for (second, latency) in self.slices.try_iter() {
            // Histograms of equal bounds always fit into each other.
            let _ = self.total.add(&latency);
            match self.waiting.entry(second) {
                std::collections::btree_map::Entry::Vacant(place) => drop(place.insert(latency)),
                std::collections::btree_map::Entry::Occupied(mut of) => {
                    let _ = of.get_mut().add(&latency);
                }
            }
        }
        while let Some(entry) = self.waiting.first_entry().filter(|of| *of.key() < until) {
            let (second, latency) = entry.remove_entry();
            let of = Summary::of(&latency);
            if let Some(noted) = self.seconds.get_mut(second as usize) {
                (noted.p50_us, noted.p90_us, noted.p99_us) = (of.p50, of.p90, of.p99);
                (noted.p999_us, noted.max_us) = (of.p999, of.max);
            }
            if let Some(log) = &mut self.log
                && let Err(error) = log.add(second, &latency)
            {
                self.fault = Some(format!("--hdr: {error}"));
                self.log = None;
            }
        }
    }

    /// The last, unfinished second; all threads have ended.
    pub(crate) fn finish(&mut self, elapsed: Duration, now: &Moment) {
        self.note(elapsed, now);
        let second = self.seconds.len() as u32;
        self.seconds.push(Second { second, ..Second::default() });
        self.count(now);
        self.gather(u32::MAX);
        if let Some(Err(error)) = self.log.take().map(Log::finish) {
            self.fault = Some(format!("--hdr: {error}"));
        }
    }
}

/// The seconds of a run as `--json FILE` has them: a column for each figure, value n for second n.
/// Rows would repeat each name for each second: three times the bytes.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Columns {
    pub(super) open: Vec<u64>,
    pub(super) opened: Vec<u64>,
    pub(super) failed: Vec<u64>,
    pub(super) dropped: Vec<u64>,
    pub(super) sent: Vec<u64>,
    pub(super) received: Vec<u64>,
    pub(super) p50_us: Vec<Option<u64>>,
    pub(super) p90_us: Vec<Option<u64>>,
    pub(super) p99_us: Vec<Option<u64>>,
    pub(super) p999_us: Vec<Option<u64>>,
    pub(super) max_us: Vec<Option<u64>>,
    pub(super) server_rss_bytes: Vec<Option<u64>>,
    pub(super) server_cpu: Vec<Option<f64>>,
    pub(super) client_cpu: Vec<Option<f64>>,
}

impl Columns {
    pub(super) fn of(seconds: &[Second]) -> Self {
        fn column<T>(seconds: &[Second], of: fn(&Second) -> T) -> Vec<T> {
            seconds.iter().map(of).collect()
        }
        Self {
            open: column(seconds, |of| of.open),
            opened: column(seconds, |of| of.opened),
            failed: column(seconds, |of| of.failed),
            dropped: column(seconds, |of| of.dropped),
            sent: column(seconds, |of| of.sent),
            received: column(seconds, |of| of.received),
            p50_us: column(seconds, |of| of.p50_us),
            p90_us: column(seconds, |of| of.p90_us),
            p99_us: column(seconds, |of| of.p99_us),
            p999_us: column(seconds, |of| of.p999_us),
            max_us: column(seconds, |of| of.max_us),
            server_rss_bytes: column(seconds, |of| of.server_rss_bytes),
            server_cpu: column(seconds, |of| of.server_cpu),
            client_cpu: column(seconds, |of| of.client_cpu),
        }
    }
}

/// The same of one agent.
#[derive(Debug, Default, Serialize)]
pub(super) struct AgentColumns {
    open: Vec<u64>,
    sent: Vec<u64>,
    received: Vec<u64>,
}

impl AgentColumns {
    /// Of each agent that takes part.
    pub(super) fn of_all(seconds: &[Second]) -> Vec<Self> {
        let count = seconds.iter().map(|of| of.agents.len()).max().unwrap_or(0);
        let of_one = |at: usize| {
            let of = |figure: fn(&AgentSecond) -> u64| {
                seconds.iter().map(|of| of.agents.get(at).map_or(0, figure)).collect()
            };
            Self { open: of(|of| of.open), sent: of(|of| of.sent), received: of(|of| of.received) }
        };
        (0..count).map(of_one).collect()
    }
}

/// Writes one line for each second; of each agent three columns at the end.
pub(super) fn write_csv(
    out: &mut impl Write,
    seconds: &[Second],
    agents: &[&str],
) -> std::io::Result<()> {
    write!(
        out,
        "second,open,opened,failed,dropped,sent,received,p50_us,p90_us,p99_us,p999_us,max_us,\
         server_rss_bytes,server_cpu,client_cpu"
    )?;
    for name in agents {
        // A quote is two in a quoted field.
        let name = name.replace('"', "\"\"");
        write!(out, ",\"open {name}\",\"sent {name}\",\"received {name}\"")?;
    }
    writeln!(out)?;
    for of in seconds {
        let or = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
        let or_cpu = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
        write!(
            out,
            "{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}",
            of.second,
            of.open,
            of.opened,
            of.failed,
            of.dropped,
            of.sent,
            of.received,
            or(of.p50_us),
            or(of.p90_us),
            or(of.p99_us),
            or(of.p999_us),
            or(of.max_us),
            or(of.server_rss_bytes),
            or_cpu(of.server_cpu),
            or_cpu(of.client_cpu)
        )?;
        for at in 0..agents.len() {
            let AgentSecond { open, sent, received } =
                of.agents.get(at).copied().unwrap_or_default();
            write!(out, ",{open},{sent},{received}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(received: u64, open: u64) -> Moment {
        let sum = Sum { received, open, published: received / 10, ..Sum::default() };
        Moment { sum, ..Moment::default() }
    }

    #[test]
    fn each_second_has_what_came_within_it() {
        let mut recorder = Recorder::new(None, 0.0).unwrap();
        let sender = recorder.sender();
        for (second, us) in [(0, 100), (2, 300), (0, 200)] {
            let mut latency = figures::latency();
            latency.saturating_record(us);
            sender.send((second, latency)).unwrap();
        }
        let at = Duration::from_millis;
        assert!(!recorder.is_due(at(900)) && recorder.is_due(at(1000)));
        recorder.note(at(1000), &moment(50, 3));
        // Nobody looked for two seconds.
        recorder.note(at(3100), &moment(90, 4));
        recorder.finish(at(3500), &moment(100, 4));
        let counts: Vec<_> =
            recorder.seconds.iter().map(|of| (of.sent, of.received, of.open)).collect();
        assert_eq!(counts, [(5, 50, 3), (0, 0, 4), (4, 40, 4), (1, 10, 4)]);
        let of = &recorder.seconds;
        assert_eq!((of[0].p50_us, of[0].max_us, of[1].p50_us), (Some(100), Some(200), None));
        assert_eq!((of[2].p99_us, recorder.total.len()), (Some(300), 3));
        let mut csv = Vec::new();
        write_csv(&mut csv, &recorder.seconds, &[]).unwrap();
        let csv = String::from_utf8(csv).unwrap();
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!((lines.len(), lines[1]), (5, "0,3,0,0,0,5,50,100,200,200,200,200,,,0"));
        let columns = |line: &&str| line.split(',').count() == 15;
        assert!(lines.iter().all(columns));
    }
}
