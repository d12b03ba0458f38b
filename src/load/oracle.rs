//! The oracle: were a channel's messages seen once each, and in order?
//!
//! ```text
//!  next = 5          got 5: expected          -> next 6
//!                    got 8: 6..8 are missing  -> next 9, a gap is kept while it is open
//!                    got 6: a late one        -> out of order, 7 still missing
//!                    got 6: seen before       -> duplicated
//!  the end at 10     9, 10 never came, 7 never came: 3 lost
//! ```

/// Ranges of missing numbers that one connection remembers; more than that and the oldest is
/// given up as lost (late ones of it would then count as duplicated). Stays below 1 KiB.
const RANGES_MAX: usize = 64;

/// The verdict about a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The next one, or one beyond it.
    New,
    /// One that was missing: it came after a later one.
    Late,
    /// One that had been seen.
    Duplicate,
}

/// The seen numbers of one sequence at one receiver. 16 bytes; heap only while a gap is open.
#[derive(Debug)]
pub(crate) struct Sequence {
    next: u32,
    gap: Option<Box<Gap>>,
}

/// Numbers that were skipped: ranges, end excluded, rising, not touching.
#[derive(Debug, Default)]
struct Gap {
    missing: Vec<(u32, u32)>,
    given_up: u32,
}

impl Default for Sequence {
    fn default() -> Self {
        Self { next: 1, gap: None }
    }
}

impl Sequence {
    /// Takes note of number `sequence`, from 1.
    pub(crate) fn see(&mut self, sequence: u32) -> Verdict {
        if sequence < self.next {
            return self.see_old(sequence);
        }
        if sequence > self.next {
            let gap = self.gap.get_or_insert_default();
            if gap.missing.len() == RANGES_MAX {
                let (from, to) = gap.missing.remove(0);
                gap.given_up += to - from;
            }
            gap.missing.push((self.next, sequence));
        }
        self.next = sequence.saturating_add(1);
        Verdict::New
    }

    /// Leaves out what is missing before number `sequence`: the receiver knows that it is. Returns how many.
    pub(crate) fn skip_to(&mut self, sequence: u32) -> u32 {
        let skipped = sequence.saturating_sub(self.next);
        self.next = self.next.max(sequence);
        skipped
    }

    /// How many of the numbers 1 to `last` never came.
    pub(crate) fn lost(&self, last: u32) -> u64 {
        let tail = (u64::from(last) + 1).saturating_sub(u64::from(self.next));
        let Some(gap) = &self.gap else { return tail };
        let missing: u64 = gap.missing.iter().map(|(from, to)| u64::from(to - from)).sum();
        tail + missing + u64::from(gap.given_up)
    }

    fn see_old(&mut self, sequence: u32) -> Verdict {
        let Some(gap) = &mut self.gap else { return Verdict::Duplicate };
        let at = gap.missing.partition_point(|&(_, to)| to <= sequence);
        let Some(&(from, to)) = gap.missing.get(at).filter(|(from, _)| *from <= sequence) else {
            return Verdict::Duplicate;
        };
        match (from == sequence, to == sequence + 1) {
            (true, true) => drop(gap.missing.remove(at)),
            (true, false) => gap.missing[at].0 = sequence + 1,
            (false, true) => gap.missing[at].1 = sequence,
            (false, false) => {
                gap.missing[at].1 = sequence;
                gap.missing.insert(at + 1, (sequence + 1, to));
            }
        }
        if gap.missing.is_empty() && gap.given_up == 0 {
            self.gap = None;
        }
        Verdict::Late
    }
}

const _: () = assert!(size_of::<Sequence>() == 16);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;
    use std::collections::HashSet;

    #[test]
    fn in_order_nothing_is_kept() {
        let mut sequence = Sequence::default();
        for n in 1..1000 {
            assert_eq!(sequence.see(n), Verdict::New);
        }
        assert!(sequence.gap.is_none());
        assert_eq!(sequence.lost(999), 0);
        assert_eq!(sequence.lost(1009), 10);
    }

    #[test]
    fn the_picture_above() {
        let mut sequence = Sequence::default();
        for n in [1, 2, 3, 4, 5, 8] {
            assert_eq!(sequence.see(n), Verdict::New);
        }
        assert_eq!(sequence.see(6), Verdict::Late);
        assert_eq!(sequence.see(6), Verdict::Duplicate);
        assert_eq!(sequence.see(5), Verdict::Duplicate);
        assert_eq!(sequence.lost(10), 3);
        assert_eq!(sequence.see(7), Verdict::Late);
        assert!(sequence.gap.is_none(), "a closed gap is given back");
    }

    #[test]
    fn announced_gaps_are_not_lost() {
        let mut sequence = Sequence::default();
        sequence.see(1);
        assert_eq!(sequence.skip_to(5), 3);
        assert_eq!(sequence.see(5), Verdict::New);
        assert_eq!(sequence.skip_to(3), 0);
        assert_eq!(sequence.lost(6), 1);
        assert_eq!(sequence.see(3), Verdict::Duplicate);
    }

    #[test]
    fn agrees_with_a_set_of_all_numbers_seen() {
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let (mut sequence, mut seen, mut highest) = (Sequence::default(), HashSet::new(), 0);
            for _ in 0..100 {
                let n = 1 + rng.below(80) as u32;
                let expected = match (seen.insert(n), n > highest) {
                    (false, _) => Verdict::Duplicate,
                    (true, true) => Verdict::New,
                    (true, false) => Verdict::Late,
                };
                assert_eq!(sequence.see(n), expected, "seed {seed}");
                highest = highest.max(n);
                let lost = (1..=100).filter(|n| !seen.contains(n)).count() as u64;
                assert_eq!(sequence.lost(100), lost, "seed {seed}");
            }
        }
    }

    #[test]
    fn gaps_are_bounded_and_still_counted_as_lost() {
        let mut sequence = Sequence::default();
        for n in 1..=1000 {
            sequence.see(2 * n);
        }
        let gap = sequence.gap.as_ref().unwrap();
        assert_eq!(gap.missing.len(), RANGES_MAX);
        assert_eq!(sequence.lost(2000), 1000);
    }
}
