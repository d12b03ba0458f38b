//! Counts: what a thread shows while it runs, and what it hands over at the end.

use super::connects::Steps;
use super::publisher;
use super::recovery::Returns;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// The figures of one worker for the coordinator. Written by the worker once a turn, read by anyone;
/// figures of one moment need not fit together.
#[derive(Debug, Default)]
pub(crate) struct Live {
    /// Connections that are established, subscribed where they should be, and not closed.
    pub(crate) open: AtomicU64,
    /// Connections that were established at least once.
    pub(crate) opened: AtomicU64,
    /// Connections that were given up.
    pub(crate) failed: AtomicU64,
    /// Connections that were open and that the other side, or an error, ended.
    pub(crate) dropped: AtomicU64,
    /// Connections that were to be open but have not got so far, failed ones left out.
    pub(crate) pending: AtomicU64,
    /// Messages that were sent by this thread.
    pub(crate) sent: AtomicU64,
    /// Messages of ours that arrived, duplicates and all.
    pub(crate) received: AtomicU64,
    /// The duplicates among them.
    pub(crate) duplicated: AtomicU64,
    /// Messages that were published while their receiver was away on purpose, or not there yet.
    pub(crate) absent: AtomicU64,
    /// Connections that have answered all requested pings.
    pub(crate) pinged: AtomicU64,
    /// Bytes that were handed to sockets, since messages began.
    pub(crate) bytes_sent: AtomicU64,
    /// Bytes that came out of them.
    pub(crate) bytes_received: AtomicU64,
    /// When the last message of ours arrived, nanoseconds since the origin.
    pub(crate) last_ns: AtomicU64,
    /// When the last requested connection came up, nanoseconds since the origin.
    pub(crate) ready_ns: AtomicU64,
    /// Connections that joined while messages of another machine were sent, and got none so far.
    pub(crate) joining: AtomicU64,
    /// Number of the newest order that was carried out.
    pub(crate) order: AtomicU64,
}

/// The sum of all workers' [`Live`], and of all publishers'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sum {
    pub(crate) open: u64,
    pub(crate) opened: u64,
    pub(crate) failed: u64,
    pub(crate) dropped: u64,
    pub(crate) pending: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) duplicated: u64,
    pub(crate) absent: u64,
    pub(crate) pinged: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) joining: u64,
    /// The latest of all.
    pub(crate) last_ns: u64,
    /// The latest of all.
    pub(crate) ready_ns: u64,
    /// The smallest of all.
    pub(crate) order: u64,
    /// Messages of publishers, their arrivals if nobody drops, and when the last of them was written.
    pub(crate) published: u64,
    pub(crate) expected: u64,
    pub(crate) published_ns: u64,
    /// Orders to publish that all publishers have carried out.
    pub(crate) finished: u32,
}

impl Sum {
    /// Of nobody.
    pub(crate) fn none() -> Self {
        Self { order: u64::MAX, finished: u32::MAX, ..Self::default() }
    }

    /// Adds another machine's.
    pub(crate) fn add(&mut self, other: &Self) {
        self.open += other.open;
        self.opened += other.opened;
        self.failed += other.failed;
        self.dropped += other.dropped;
        self.pending += other.pending;
        self.sent += other.sent;
        self.received += other.received;
        self.duplicated += other.duplicated;
        self.absent += other.absent;
        self.pinged += other.pinged;
        self.bytes_sent += other.bytes_sent;
        self.bytes_received += other.bytes_received;
        self.joining += other.joining;
        self.last_ns = self.last_ns.max(other.last_ns);
        self.ready_ns = self.ready_ns.max(other.ready_ns);
        self.order = self.order.min(other.order);
        self.published += other.published;
        self.expected += other.expected;
        self.published_ns = self.published_ns.max(other.published_ns);
        self.finished = self.finished.min(other.finished);
    }

    /// The machine is gone with all that was open there, or on its way.
    pub(crate) fn abandon(&mut self) {
        self.dropped += std::mem::take(&mut self.open);
        self.failed += std::mem::take(&mut self.pending);
        (self.joining, self.order, self.finished) = (0, u64::MAX, u32::MAX);
    }

    /// Adds up what the workers show.
    pub(crate) fn of<'a>(all: impl IntoIterator<Item = &'a Live>) -> Self {
        let mut sum = Self::none();
        for live in all {
            sum.open += live.open.load(Relaxed);
            sum.opened += live.opened.load(Relaxed);
            sum.failed += live.failed.load(Relaxed);
            sum.dropped += live.dropped.load(Relaxed);
            sum.pending += live.pending.load(Relaxed);
            sum.sent += live.sent.load(Relaxed);
            sum.received += live.received.load(Relaxed);
            sum.duplicated += live.duplicated.load(Relaxed);
            sum.absent += live.absent.load(Relaxed);
            sum.pinged += live.pinged.load(Relaxed);
            sum.bytes_sent += live.bytes_sent.load(Relaxed);
            sum.bytes_received += live.bytes_received.load(Relaxed);
            sum.joining += live.joining.load(Relaxed);
            sum.last_ns = sum.last_ns.max(live.last_ns.load(Relaxed));
            sum.ready_ns = sum.ready_ns.max(live.ready_ns.load(Relaxed));
            sum.order = sum.order.min(live.order.load(Relaxed));
        }
        sum
    }
}

/// Messages of each channel that were handed to the server so far. Written by publishers, read by workers when
/// a connection joins while messages are sent: it gets those that follow.
#[derive(Debug)]
pub(crate) struct Published(Box<[AtomicU32]>);

impl Published {
    pub(crate) fn new(channels: usize) -> Self {
        Self((0..channels).map(|_| AtomicU32::new(0)).collect())
    }

    /// Message `sequence` of a channel leaves.
    pub(crate) fn set(&self, channel: u32, sequence: u32) {
        self.0[channel as usize].store(sequence, Relaxed);
    }

    /// Messages of a channel so far.
    pub(crate) fn of(&self, channel: u32) -> u32 {
        self.0.get(channel as usize).map_or(0, |count| count.load(Relaxed))
    }
}

/// Why connections failed or ended, and how many for each reason. Bounded: a server that has a new
/// text each time doesn't fill the memory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Reasons(BTreeMap<String, u64>);

/// Reasons that are counted separately; all further ones are counted together.
const REASONS_MAX: usize = 32;

impl Reasons {
    /// Counts one more.
    pub(crate) fn add(&mut self, reason: &str) {
        self.add_many(reason, 1);
    }

    fn add_many(&mut self, reason: &str, count: u64) {
        if let Some(known) = self.0.get_mut(reason) {
            *known += count;
            return;
        }
        let reason = if self.0.len() < REASONS_MAX { reason } else { "other reasons" };
        *self.0.entry(reason.to_owned()).or_default() += count;
    }

    /// Adds another thread's.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (reason, count) in &other.0 {
            self.add_many(reason, *count);
        }
    }

    /// All of them.
    pub(crate) fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Each reason with its count, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(reason, count)| (reason.as_str(), *count))
    }
}

/// Microseconds from 1 to a minute, to three digits; longer ones count as a minute. 68 KiB of
/// address space, of which what was never counted is never touched.
pub(crate) type Latency = Histogram<u32>;

pub(crate) const LATENCY_US_MAX: u64 = 60_000_000;
pub(crate) const LATENCY_DIGITS: u8 = 3;

/// An empty histogram.
pub(crate) fn latency() -> Latency {
    // Fails only for bounds that make no sense (low 0, high below twice low, over 5 digits).
    Histogram::new_with_bounds(1, LATENCY_US_MAX, LATENCY_DIGITS)
        .expect("constant bounds are valid")
}

/// Adds `one` to `all`.
pub(crate) fn merge(all: &mut Latency, one: &Latency) {
    // Histograms of equal bounds always fit into each other.
    let _ = all.add(one);
}

/// A histogram on its way between machines: value and count of each bucket that has some, one after the other.
pub(crate) mod sparse {
    use super::{Latency, latency};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(of: &Latency, out: S) -> Result<S::Ok, S::Error> {
        let buckets = of.iter_recorded();
        let pairs: Vec<(u64, u32)> =
            buckets.map(|of| (of.value_iterated_to(), of.count_at_value())).collect();
        pairs.serialize(out)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Latency, D::Error> {
        let mut of = latency();
        for (value, count) in Vec::<(u64, u32)>::deserialize(from)? {
            of.saturating_record_n(value, count);
        }
        Ok(of)
    }

    /// Several of them.
    pub(crate) mod each {
        use super::{Deserialize, Deserializer, Latency, Serialize, Serializer};

        #[derive(Serialize, Deserialize)]
        struct One(#[serde(with = "super")] Latency);

        #[derive(Serialize)]
        struct Lent<'a>(#[serde(with = "super")] &'a Latency);

        pub(crate) fn serialize<S: Serializer>(of: &[Latency], out: S) -> Result<S::Ok, S::Error> {
            out.collect_seq(of.iter().map(Lent))
        }

        pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Vec<Latency>, D::Error> {
            Ok(Vec::<One>::deserialize(from)?.into_iter().map(|of| of.0).collect())
        }
    }
}

/// How busy a thread was between two moments, from the kernel's scheduler.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Busy {
    /// Nanoseconds on a processor.
    pub(crate) run_ns: u64,
    /// Nanoseconds it could have run but had to wait for one.
    pub(crate) wait_ns: u64,
}

impl Busy {
    /// The calling thread's figures since it began; zeros where the kernel doesn't tell.
    pub(crate) fn of_this_thread() -> Self {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        let mut numbers = text.split_ascii_whitespace().map_while(|word| word.parse().ok());
        let (run_ns, wait_ns) =
            (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
        Self { run_ns, wait_ns }
    }

    /// The values added since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            run_ns: self.run_ns.saturating_sub(earlier.run_ns),
            wait_ns: self.wait_ns.saturating_sub(earlier.wait_ns),
        }
    }
}

/// The results that a worker hands over at its end.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// From the actual send time; those from the intended one went second by second.
    pub(crate) latency_raw: Latency,
    /// By population and by channel, where there are several of them.
    pub(crate) by_population: Vec<Latency>,
    pub(crate) by_channel: Vec<Latency>,
    /// On the way to open connections, and of pings.
    pub(crate) steps: Steps,
    /// The longest latency of each connection while the server was replaced.
    pub(crate) pauses: Option<Latency>,
    /// How late messages left for reasons of our own.
    pub(crate) lag: Latency,
    /// Messages that never came to a connection that should have had them.
    pub(crate) lost: u64,
    /// Messages that came after a later one.
    pub(crate) out_of_order: u64,
    /// Messages that were published while their receiver was away on purpose, or not there yet.
    pub(crate) absent: u64,
    /// Tokens that were replaced before they expired.
    pub(crate) refreshed: u64,
    /// Connections that left on purpose.
    pub(crate) left: u64,
    /// Of connections that came back.
    pub(crate) returns: Returns,
    /// Why connections failed or ended.
    pub(crate) reasons: Reasons,
    /// While messages were measured.
    pub(crate) busy: Busy,
}

/// The results of one machine, or of all.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Tally {
    #[serde(with = "sparse")]
    pub(crate) latency_raw: Latency,
    #[serde(with = "sparse::each")]
    pub(crate) by_population: Vec<Latency>,
    #[serde(with = "sparse::each")]
    pub(crate) by_channel: Vec<Latency>,
    pub(crate) steps: Steps,
    #[serde(with = "sparse")]
    pub(crate) pauses: Latency,
    #[serde(with = "sparse")]
    pub(crate) lag: Latency,
    pub(crate) lost: u64,
    pub(crate) out_of_order: u64,
    pub(crate) absent: u64,
    pub(crate) refreshed: u64,
    pub(crate) left: u64,
    pub(crate) returns: Returns,
    pub(crate) reasons: Reasons,
    /// Of each thread.
    pub(crate) busy: Vec<Busy>,
    /// How often publishing went wrong.
    pub(crate) publish_faults: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            latency_raw: latency(),
            by_population: Vec::new(),
            by_channel: Vec::new(),
            steps: Steps::default(),
            pauses: latency(),
            lag: latency(),
            lost: 0,
            out_of_order: 0,
            absent: 0,
            refreshed: 0,
            left: 0,
            returns: Returns::default(),
            reasons: Reasons::default(),
            busy: Vec::new(),
            publish_faults: 0,
        }
    }
}

impl Tally {
    /// Adds a worker's.
    pub(crate) fn add(&mut self, of: &Outcome) {
        merge(&mut self.latency_raw, &of.latency_raw);
        merge_each(&mut self.by_population, &of.by_population);
        merge_each(&mut self.by_channel, &of.by_channel);
        self.steps.merge(&of.steps);
        of.pauses.iter().for_each(|of| merge(&mut self.pauses, of));
        merge(&mut self.lag, &of.lag);
        self.lost += of.lost;
        self.out_of_order += of.out_of_order;
        self.absent += of.absent;
        self.refreshed += of.refreshed;
        self.left += of.left;
        self.returns.merge(&of.returns);
        self.reasons.merge(&of.reasons);
        self.busy.push(of.busy);
    }

    /// Adds a publisher's.
    pub(crate) fn add_publisher(&mut self, of: &publisher::Outcome) {
        merge(&mut self.lag, &of.lag);
        self.reasons.merge(&of.reasons);
        self.publish_faults += of.reasons.total();
        self.busy.push(of.busy);
    }

    /// Adds another machine's.
    pub(crate) fn merge(&mut self, of: &Self) {
        merge(&mut self.latency_raw, &of.latency_raw);
        merge_each(&mut self.by_population, &of.by_population);
        merge_each(&mut self.by_channel, &of.by_channel);
        self.steps.merge(&of.steps);
        merge(&mut self.pauses, &of.pauses);
        merge(&mut self.lag, &of.lag);
        self.lost += of.lost;
        self.out_of_order += of.out_of_order;
        self.absent += of.absent;
        self.refreshed += of.refreshed;
        self.left += of.left;
        self.returns.merge(&of.returns);
        self.reasons.merge(&of.reasons);
        self.busy.extend_from_slice(&of.busy);
        self.publish_faults += of.publish_faults;
    }
}

fn merge_each(all: &mut Vec<Latency>, one: &[Latency]) {
    if all.len() < one.len() {
        all.resize_with(one.len(), latency);
    }
    all.iter_mut().zip(one).for_each(|(all, one)| merge(all, one));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_is_the_same_after_a_journey_and_adds_up() {
        let mut tally = Tally::default();
        for us in [1, 999, 70_000, 70_001, 60_000_000] {
            tally.latency_raw.saturating_record(us);
        }
        tally.by_channel = vec![latency(), tally.latency_raw.clone()];
        tally.reasons.add("refused");
        tally.lost = 3;
        let text = serde_json::to_string(&tally).unwrap();
        let mut back: Tally = serde_json::from_str(&text).unwrap();
        assert_eq!(back.latency_raw, tally.latency_raw);
        assert_eq!((back.latency_raw.max(), back.lost), (tally.latency_raw.max(), 3));
        back.merge(&tally);
        assert_eq!((back.by_channel[1].len(), back.by_channel[0].len()), (10, 0));
        assert_eq!((back.lost, back.reasons.total()), (6, 2));
    }

    #[test]
    fn a_machine_that_is_gone_has_dropped_what_was_open() {
        let one = Sum { open: 5, pending: 2, order: 3, published: 7, ..Sum::none() };
        let mut gone = one;
        gone.abandon();
        let mut all = Sum::none();
        all.add(&one);
        all.add(&gone);
        assert_eq!((all.open, all.pending, all.dropped, all.failed), (5, 2, 5, 2));
        assert_eq!((all.order, all.published), (3, 14));
    }

    #[test]
    fn reasons_are_counted_merged_and_bounded() {
        let mut some = Reasons::default();
        some.add("refused");
        let mut more = Reasons::default();
        for _ in 0..2 {
            more.add("refused");
        }
        for n in 0..100 {
            more.add(&format!("reason {n}"));
        }
        some.merge(&more);
        assert_eq!(some.0["refused"], 3);
        assert!(some.0.len() <= REASONS_MAX + 1);
        assert_eq!(some.0.values().sum::<u64>(), 103);
    }

    #[test]
    fn this_threads_time_on_a_processor_is_known() {
        let before = Busy::of_this_thread();
        let mut x = 1_u64;
        while Busy::of_this_thread().since(before).run_ns == 0 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
    }
}
