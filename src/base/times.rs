//! How long things take: a histogram that one thread writes and any thread reads.

use super::counters::Counter;

/// Buckets: exact below 4 us, then four for each power of two, up to 33 s;
/// what takes longer is in the last.
const BUCKETS: usize = 96;

/// Durations in microseconds, counted in buckets that are at most a quarter wide.
///
/// Shape: 832 bytes, on cache lines of its own.
#[derive(Debug)]
#[repr(align(64))]
pub struct Times {
    buckets: [Counter; BUCKETS],
    total_us: Counter,
}

impl Default for Times {
    fn default() -> Self {
        Self { buckets: [const { Counter::new() }; BUCKETS], total_us: Counter::new() }
    }
}

impl Times {
    /// Counts one. Only the owner may call it.
    pub fn record(&self, us: u32) {
        self.buckets[usize::from(bucket(us))].inc();
        self.total_us.add(us.into());
    }

    /// How many were counted so far.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(Counter::get).sum()
    }

    /// Adds what was counted so far.
    pub fn add_to(&self, counts: &mut Counts) {
        for (sum, bucket) in counts.buckets.iter_mut().zip(&self.buckets) {
            *sum += bucket.get();
        }
        counts.total_us += self.total_us.get();
    }
}

/// Counts of one moment, summed over threads perhaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    buckets: [u64; BUCKETS],
    total_us: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], total_us: 0 }
    }
}

impl Counts {
    /// The values added since an earlier moment.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut counts = self.clone();
        for (count, before) in counts.buckets.iter_mut().zip(&earlier.buckets) {
            *count = count.saturating_sub(*before);
        }
        counts.total_us = counts.total_us.saturating_sub(earlier.total_us);
        counts
    }

    /// Adds others.
    pub fn add(&mut self, others: &Self) {
        for (count, more) in self.buckets.iter_mut().zip(&others.buckets) {
            *count += more;
        }
        self.total_us += others.total_us;
    }

    /// All of them together, microseconds.
    pub fn total_us(&self) -> u64 {
        self.total_us
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// How many took at most so long, but for those in the bucket that it falls into.
    pub fn up_to(&self, us: u64) -> u64 {
        let within = (0..BUCKETS).take_while(|at| upper(*at as u8) <= us);
        within.map(|at| self.buckets[at]).sum()
    }

    /// Microseconds that a share of all, from 0 to 1, took at most: the upper end of a bucket. 0 when
    /// nothing was counted.
    pub fn quantile(&self, share: f64) -> u64 {
        let total = self.count();
        let rank = ((total as f64 * share).ceil() as u64).clamp(1, total.max(1));
        let mut seen = 0;
        for (at, count) in (0u8..).zip(&self.buckets) {
            seen += count;
            if seen >= rank {
                return upper(at);
            }
        }
        0
    }
}

/// The bucket of a duration.
pub fn bucket(us: u32) -> u8 {
    if us < 4 {
        return us as u8;
    }
    let power = us.ilog2();
    let quarter = (us >> (power - 2)) & 3;
    ((4 * (power - 1) + quarter) as u8).min(BUCKETS as u8 - 1)
}

/// The longest duration of a bucket, microseconds.
pub fn upper(bucket: u8) -> u64 {
    let bucket = usize::from(bucket);
    if bucket < 4 {
        return bucket as u64;
    }
    let (power, quarter) = (bucket / 4 + 1, bucket % 4);
    (((5 + quarter) as u64) << (power - 2)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_is_in_a_bucket_at_most_a_quarter_wide() {
        let mut before = None;
        for us in (0..5000).chain((5000..16_000_000).step_by(997)) {
            let (at, end) = (bucket(us), upper(bucket(us)));
            assert!(end >= u64::from(us) && end <= u64::from(us) * 5 / 4 + 1, "{us}: {end}");
            assert!(before.is_none_or(|before| at >= before), "{us}");
            before = Some(at);
        }
        assert_eq!(usize::from(bucket(u32::MAX)), BUCKETS - 1);
    }

    #[test]
    fn quantiles_of_added_values() {
        let (times, mut counts) = (Times::default(), Counts::default());
        assert_eq!(counts.quantile(0.5), 0);
        times.record(1_000_000);
        times.add_to(&mut counts);
        let earlier = counts.clone();
        for us in 0..1000 {
            times.record(us);
        }
        let mut now = Counts::default();
        times.add_to(&mut now);
        let added = now.since(&earlier);
        for (share, exact) in [(0.0, 0), (0.5, 499), (0.99, 989), (1.0, 999)] {
            let found = added.quantile(share);
            assert!((exact..=exact * 5 / 4).contains(&found), "{share}: {found}");
        }
        assert!(now.quantile(1.0) >= 1_000_000);
        assert_eq!((added.count(), added.total_us()), (1000, 499_500));
        assert_eq!((added.up_to(0), added.up_to(511), added.up_to(u64::MAX)), (1, 512, 1000));
    }
}
