//! The population and the channel of each connection, where they are not the same for all or by turns.
//!
//! Populations are spread evenly over the numbers of the connections, so that each thread has its share of
//! each of them, and so has each part of a ramp. Price: 5 bytes for each connection, only in scenarios that
//! have several populations or channels of unequal size.

use crate::base::rng::Rng;
use serde::Deserialize;

/// How subscribers, or messages, are spread over channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Distribution {
    /// By turns: as even as it goes.
    #[default]
    Uniform,
    /// The channel of rank r with a weight of 1 / r^exponent.
    Zipf,
}

/// A distribution by rank, as the running sums of its weights, scaled to 64 bits.
#[derive(Clone, Debug)]
pub(crate) struct Zipf(Box<[u64]>);

impl Zipf {
    pub(crate) fn new(ranks: u32, exponent: f64) -> Self {
        let weights: Vec<f64> = (1..=ranks).map(|rank| f64::from(rank).powf(-exponent)).collect();
        let total: f64 = weights.iter().sum();
        let mut sum = 0.0;
        let mut sums: Vec<u64> = weights
            .iter()
            .map(|weight| {
                sum += weight;
                (sum / total * u64::MAX as f64) as u64
            })
            .collect();
        // Rounding must not leave anything behind the last rank.
        if let Some(last) = sums.last_mut() {
            *last = u64::MAX;
        }
        Self(sums.into())
    }

    /// The rank of number `n`, from 0: the same for the same number.
    pub(crate) fn rank_of(&self, n: u32) -> u32 {
        let at = Rng::new(u64::from(n)).next_u64();
        self.0.partition_point(|sum| *sum < at) as u32
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Mix {
    population: Box<[u8]>,
    channel: Box<[u32]>,
}

impl Mix {
    /// Spreads populations of these sizes over their sum, and each by itself over the channels.
    pub(crate) fn new(sizes: &[u32], channels: u32, zipf: Option<&Zipf>) -> Self {
        let total: u32 = sizes.iter().sum();
        let mut taken = vec![0u32; sizes.len()];
        let mut population = Vec::with_capacity(total as usize);
        let mut channel = Vec::with_capacity(total as usize);
        for number in 0..total {
            // The population that is furthest behind its share.
            let due = |of: usize| {
                f64::from(sizes[of]) * f64::from(number + 1) / f64::from(total)
                    - f64::from(taken[of])
            };
            let open = (0..sizes.len()).filter(|of| taken[*of] < sizes[*of]);
            let of = open.max_by(|a, b| due(*a).total_cmp(&due(*b)).then(b.cmp(a))).unwrap_or(0);
            population.push(of as u8);
            channel.push(match zipf {
                Some(zipf) => zipf.rank_of(number),
                None => taken[of].checked_rem(channels).unwrap_or_default(),
            });
            taken[of] += 1;
        }
        Self { population: population.into(), channel: channel.into() }
    }

    /// The number of the population of connection `global`.
    pub(crate) fn population(&self, global: u32) -> usize {
        self.population[global as usize].into()
    }

    /// The number of its channel.
    pub(crate) fn channel(&self, global: u32) -> u32 {
        self.channel[global as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn populations_are_spread_over_all_numbers() {
        let mix = Mix::new(&[600, 300, 100], 3, None);
        for (from, to) in [(0, 100), (450, 550), (900, 1000)] {
            let count = |of| (from..to).filter(|n| mix.population(*n) == of).count();
            assert!((59..=61).contains(&count(0)) && (29..=31).contains(&count(1)), "{from}");
        }
        // Each population is spread over all channels.
        for of in 0..3 {
            let all: Vec<u32> = (0..1000).filter(|n| mix.population(*n) == of).collect();
            for channel in 0..3 {
                let count = all.iter().filter(|n| mix.channel(**n) == channel).count();
                assert!(count.abs_diff(all.len() / 3) <= 1, "{of} {channel}");
            }
        }
    }

    #[test]
    fn ranks_follow_the_law() {
        let zipf = Zipf::new(100, 1.0);
        let mut counts = [0u32; 100];
        (0..100_000).for_each(|n| counts[zipf.rank_of(n) as usize] += 1);
        // The harmonic number of 100 is 5.187.
        for rank in [0, 1, 9] {
            let expected = 100_000.0 / 5.187 / (rank + 1) as f64;
            let found = f64::from(counts[rank]);
            assert!((found / expected - 1.0).abs() < 0.1, "rank {rank}: {found}, not {expected}");
        }
        assert!(counts.iter().all(|count| *count > 0));
        let even = Zipf::new(4, 0.0);
        let first = (0..4000).filter(|n| even.rank_of(*n) == 0).count();
        assert!((900..1100).contains(&first), "{first}");
    }
}
