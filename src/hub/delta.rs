//! Patches between publications: the format of Fossil (client protocol, 21.3). The only file that
//! knows how they are made.
//!
//! A publication is patched once for all its subscribers. Nothing here applies a patch: that is
//! what clients do.
//!
//! The format leaves open how a patch is found. The encoder of the format's origin, which its library has
//! as well, looks at 250 places of the old payload for each byte of the new one; somebody who knows its
//! hash makes each of them cost ten comparisons, and a payload of 32 KiB 65 ms. Hence one of our own, in
//! which each step is bounded: the work grows with the bytes of both payloads, whatever they hold, so that
//! bytes are what a budget can count.

use crate::base::limits::{DELTA_BYTES_MAX, TURN_PATCH_BYTES_MAX};
use crate::base::steps;

/// Bytes that are compared at once, and that a copy from between has at least.
const BLOCK: usize = 16;

/// Bytes of a copy command at most: two numbers of up to 18 bits, and two marks. So a copy is always shorter
/// than what it stands for.
const COMMAND_BYTES_MAX: usize = 4 + 1 + 3 + 1;
const _: () =
    assert!(DELTA_BYTES_MAX <= 1 << 18 && COMMAND_BYTES_MAX < COPY_MIN && COPY_MIN <= BLOCK);

/// Blocks of the old payload that are tried for one place of the new one.
const CANDIDATES_MAX: usize = 4;

/// Bytes that both payloads begin or end with are copied from so many on.
const COPY_MIN: usize = 10;

/// No block.
const NONE: u32 = u32::MAX;

/// The outcome of a request for a patch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Patched {
    /// The patch, which is shorter than what it makes.
    Patch(Box<[u8]>),
    /// None is shorter than the payload, or one of the payloads is longer than [`DELTA_BYTES_MAX`].
    Useless,
    /// This turn has made enough of them: nothing is known about this one.
    OverBudget,
}

/// Makes patches: up to [`TURN_PATCH_BYTES_MAX`] bytes of payloads, old and new, in a turn.
#[derive(Debug)]
pub struct Patcher {
    index: Index,
    /// Bytes that this turn may still look at.
    left: usize,
}

impl Patcher {
    /// One with a whole budget. `seed` keeps strangers from choosing blocks that share a bucket.
    pub fn new(seed: u64) -> Self {
        Self { index: Index { seed: seed | 1, ..Index::default() }, left: TURN_PATCH_BYTES_MAX }
    }

    /// A turn begins: the budget is whole again.
    pub fn begin_turn(&mut self) {
        self.left = TURN_PATCH_BYTES_MAX;
    }

    /// The patch that makes `new` out of `old`.
    ///
    /// Price, in an optimised build: `benches/delta.rs`.
    pub fn patch(&mut self, old: &[u8], new: &[u8]) -> Patched {
        if old.len() > DELTA_BYTES_MAX || new.len() > DELTA_BYTES_MAX {
            return Patched::Useless;
        }
        let Some(left) = self.left.checked_sub(old.len() + new.len()) else {
            return Patched::OverBudget;
        };
        self.left = left;
        let patch = encode(&mut self.index, old, new);
        match patch.len() < new.len() {
            true => Patched::Patch(patch.into_boxed_slice()),
            false => Patched::Useless,
        }
    }
}

/// Whether a patch can go to a JSON connection, as a string (client protocol, 21.2). Patches work
/// on bytes and may cut a character in two; what is no text is sent full there.
pub fn is_text(patch: &[u8]) -> bool {
    simdutf8::basic::from_utf8(patch).is_ok()
}

/// Finds blocks of the old payload by their bytes. Kept from one patch to the next for its memory, at most
/// 256 KiB.
#[derive(Debug, Default)]
struct Index {
    seed: u64,
    /// The first block of each bucket.
    heads: Vec<u32>,
    /// The next block of the same bucket, by block.
    next: Vec<u32>,
}

impl Index {
    /// Takes the blocks of `old`. Of equal ones in a row one is enough.
    fn fill(&mut self, old: &[u8]) {
        let count = old.len() / BLOCK;
        self.heads.clear();
        self.heads.resize((count * 2).next_power_of_two(), NONE);
        self.next.clear();
        self.next.resize(count, NONE);
        // Backwards, so that the first of several is tried first.
        for number in (0..count).rev() {
            steps::take(1);
            let Some(block) = block_at(old, number * BLOCK) else { continue };
            let bucket = self.bucket(block);
            self.next[number] = self.heads[bucket];
            self.heads[bucket] = number as u32;
        }
    }

    fn bucket(&self, block: u128) -> usize {
        let (low, high) =
            (block as u64 ^ self.seed, (block >> 64) as u64 ^ self.seed.rotate_left(32));
        let product = u128::from(low) * u128::from(high | 1);
        let mixed = (product as u64 ^ (product >> 64) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 32) as usize & (self.heads.len() - 1)
    }

    /// Places in the old payload where blocks begin that may be equal to this one.
    fn candidates(&self, block: u128) -> impl Iterator<Item = usize> {
        let first = self.heads[self.bucket(block)];
        let numbers =
            std::iter::successors(Some(first), |number| self.next.get(*number as usize).copied());
        numbers
            .take_while(|number| *number != NONE)
            .take(CANDIDATES_MAX)
            .map(|number| number as usize * BLOCK)
    }
}

fn block_at(bytes: &[u8], at: usize) -> Option<u128> {
    let block: &[u8; BLOCK] = bytes.get(at..)?.first_chunk()?;
    Some(u128::from_ne_bytes(*block))
}

/// Bytes that two slices have in common at their beginnings.
fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let blocks = a.as_chunks::<BLOCK>().0.iter().zip(b.as_chunks::<BLOCK>().0);
    let whole = blocks.take_while(|(a, b)| a == b).count() * BLOCK;
    steps::take(whole / BLOCK + 1);
    let rest = a[whole..].iter().zip(&b[whole..]);
    whole + rest.take(BLOCK).take_while(|(a, b)| a == b).count()
}

/// Bytes that two slices have in common at their ends.
fn common_suffix(a: &[u8], b: &[u8]) -> usize {
    let blocks = a.as_rchunks::<BLOCK>().1.iter().rev().zip(b.as_rchunks::<BLOCK>().1.iter().rev());
    let whole = blocks.take_while(|(a, b)| a == b).count() * BLOCK;
    steps::take(whole / BLOCK + 1);
    let (a, b) = (&a[..a.len() - whole], &b[..b.len() - whole]);
    whole + a.iter().rev().zip(b.iter().rev()).take(BLOCK).take_while(|(a, b)| a == b).count()
}

/// A patch, whatever its length.
///
/// What both begin and end with is found at once, as most changes are small. Between, at each place of
/// `new` the blocks of `old` that hold the same 16 bytes are tried, [`CANDIDATES_MAX`] at most, and the longest
/// copy is taken. A copy is always taken, and `new` goes on behind it, so that what candidates cost is
/// at most their number for each byte.
fn encode(index: &mut Index, old: &[u8], new: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(new.len().min(1024) + 32);
    put_number(&mut out, new.len());
    out.push(b'\n');
    let enough = |len: usize| if len >= COPY_MIN { len } else { 0 };
    let head = enough(common_prefix(old, new));
    let tail = enough(common_suffix(old, &new[head..]));
    let end = new.len() - tail;
    if head > 0 {
        put_copy(&mut out, 0, head);
    }
    // All of `new` before `written` is in the patch.
    let (mut at, mut written) = (head, head);
    if end - head >= BLOCK && old.len() >= BLOCK {
        index.fill(old);
        // How far a place of `old` is from the same in `new`: more of the last copy is likely there.
        let mut shift = 0_isize;
        while let Some(block) = block_at(&new[..end], at) {
            steps::take(1);
            let mut best = (0, 0, 0);
            let same =
                at.checked_add_signed(shift).filter(|from| block_at(old, *from) == Some(block));
            for from in same.into_iter().chain(index.candidates(block)) {
                steps::take(1);
                if block_at(old, from) != Some(block) {
                    continue;
                }
                let ahead = BLOCK + common_prefix(&old[from + BLOCK..], &new[at + BLOCK..end]);
                let behind = common_suffix(&old[..from], &new[written..at]);
                if ahead + behind > best.2 {
                    best = (from - behind, at - behind, ahead + behind);
                }
            }
            let (from, to, len) = best;
            if len == 0 {
                at += 1;
                continue;
            }
            put_literal(&mut out, &new[written..to]);
            put_copy(&mut out, from, len);
            (at, written) = (to + len, to + len);
            shift = from as isize - to as isize;
        }
    }
    put_literal(&mut out, &new[written..end]);
    if tail > 0 {
        put_copy(&mut out, old.len() - tail, tail);
    }
    put_number(&mut out, checksum(new) as usize);
    out.push(b';');
    out
}

fn put_copy(out: &mut Vec<u8>, from: usize, len: usize) {
    put_number(out, len);
    out.push(b'@');
    put_number(out, from);
    out.push(b',');
}

fn put_literal(out: &mut Vec<u8>, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_number(out, bytes.len());
        out.push(b':');
        out.extend_from_slice(bytes);
    }
}

/// A number with the format's 64 digits.
fn put_number(out: &mut Vec<u8>, number: usize) {
    const DIGITS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~";
    let digits = (usize::BITS - number.leading_zeros()).div_ceil(6).max(1);
    out.extend((0..digits).rev().map(|digit| DIGITS[(number >> (digit * 6)) & 63]));
}

/// The sum of all words of four bytes, big-endian; zeros behind the last one.
fn checksum(bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<4>();
    let sum = words.iter().fold(0_u32, |sum, word| sum.wrapping_add(u32::from_be_bytes(*word)));
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum.wrapping_add(u32::from_be_bytes(last))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const COUNT_1: &[u8] = br#"{"title":"hello world","count":1,"items":[1,2,3,4,5,6,7,8,9]}"#;
    const COUNT_2: &[u8] = br#"{"title":"hello world","count":2,"items":[1,2,3,4,5,6,7,8,9]}"#;

    fn applied(old: &[u8], patch: &[u8]) -> Vec<u8> {
        fossil_delta::apply(old, patch).unwrap()
    }

    fn patch(old: &[u8], new: &[u8]) -> Option<Box<[u8]>> {
        match Patcher::new(1).patch(old, new) {
            Patched::Patch(patch) => Some(patch),
            Patched::Useless => None,
            Patched::OverBudget => panic!("one patch is always in the budget"),
        }
    }

    /// Blocks whose sums are equal and that have no 16 bytes in common: all of one bucket for the encoder of
    /// the format's origin, and nine bytes of each have to be compared.
    fn crafted(blocks: usize) -> [Vec<u8>; 2] {
        let edge = "#".repeat(15);
        let one = format!("{}b{}`", "a".repeat(9), "a".repeat(5)).repeat(blocks);
        [one, "a".repeat(16 * blocks)].map(|text| format!("\"{edge}{text}{edge}\"").into_bytes())
    }

    #[test]
    fn the_steps_grow_with_the_bytes_of_any_input() {
        let zeros = |blocks: usize| {
            [vec![b'0'; 16 * blocks], [vec![b'0'; 16 * blocks - 1], b"1".to_vec()].concat()]
        };
        let shifted = |blocks: usize| {
            // Equal blocks everywhere, and no two places where they follow each other.
            let row =
                |n: u128| [u128::from_ne_bytes([b'a'; 16]), n].map(u128::to_ne_bytes).concat();
            let rows = 0..blocks as u128;
            [rows.clone().flat_map(row).collect(), rows.map(|n| !n).flat_map(row).collect()]
        };
        let pairs: [&dyn Fn(usize) -> [Vec<u8>; 2]; 3] = [&crafted, &zeros, &shifted];
        for (kind, pair) in pairs.iter().enumerate() {
            let [few, many] = [64, 1024].map(|blocks| {
                let [a, b] = pair(blocks);
                let (_, there) = steps::of(|| patch(&a, &b));
                let (_, back) = steps::of(|| patch(&b, &a));
                let bytes = a.len() + b.len();
                assert!(there.max(back) <= 8 * bytes as u64, "{kind}: {there} {back} of {bytes}");
                there + back
            });
            assert!(many <= 20 * few, "{kind}: {few} and {many}");
        }
    }

    #[test]
    fn a_turn_makes_so_many_patches_and_no_more() {
        let [old, new] = crafted(1024);
        let mut patcher = Patcher::new(1);
        for _ in 0..2 {
            let mut made = 0;
            let ((), steps) = steps::of(|| {
                while patcher.patch(&old, &new) != Patched::OverBudget {
                    made += 1;
                }
            });
            assert_eq!(made, TURN_PATCH_BYTES_MAX / (old.len() + new.len()));
            assert!(steps <= 8 * TURN_PATCH_BYTES_MAX as u64);
            patcher.begin_turn();
        }
    }

    #[test]
    fn patches_are_as_short_as_those_of_the_other_encoder() {
        let table = |rows: usize, changed: usize| -> Vec<u8> {
            let row = |n: usize| {
                let price = if n.is_multiple_of(changed) { n * 37 % 1000 } else { n };
                format!(r#"{{"id":{n},"name":"item {n}","price":{price},"tags":["a","b"]}}"#)
            };
            format!("[{}]", (0..rows).map(row).collect::<Vec<_>>().join(",")).into_bytes()
        };
        let rotated = |mut bytes: Vec<u8>| {
            let at = bytes.len() / 3;
            bytes.rotate_left(at);
            bytes
        };
        for (old, new) in [
            (table(40, 7), table(40, 5)),
            (table(400, 50), table(400, 30)),
            (table(40, 7), rotated(table(40, 7))),
            (table(100, 9), table(90, 9)),
        ] {
            let theirs = fossil_delta::delta(&new, &old).len();
            let ours = patch(&old, &new).unwrap();
            assert_eq!(applied(&old, &ours), new);
            assert!(ours.len() <= theirs + theirs / 8 + 16, "{} and {theirs}", ours.len());
        }
    }

    #[test]
    fn the_vectors_of_the_protocol_apply() {
        let table: [(&[u8], &[u8], &[u8]); 2] = [
            (br#"{"a":1}"#, br#"{"a":2}"#, b"7\n7:{\"a\":2}2qLDtY;"),
            (COUNT_1, COUNT_2, b"y\nV@0,1:2T@W,1bsENX;"),
        ];
        for (old, new, patch) in table {
            assert_eq!(applied(old, patch), new);
        }
    }

    #[test]
    fn a_patch_is_there_when_it_is_shorter() {
        assert_eq!(*patch(COUNT_1, COUNT_2).unwrap(), *b"y\nV@0,1:2T@W,1bsENX;");
        let table: [(&[u8], &[u8]); 6] = [
            (b"", b""),
            (b"", COUNT_1),
            (COUNT_1, b""),
            (COUNT_1, b"{}"),
            (br#"{"a":1}"#, br#"{"a":2}"#),
            (COUNT_1, b"nothing that the other has, to be sure of it"),
        ];
        for (old, new) in table {
            assert_eq!(patch(old, new), None, "{old:?} {new:?}");
        }
    }

    #[test]
    fn payloads_too_long_for_a_patch_are_sent_in_full() {
        let longest = vec![b'x'; DELTA_BYTES_MAX];
        let longer = vec![b'x'; DELTA_BYTES_MAX + 1];
        assert_eq!(applied(&longest, &patch(&longest, &longest).unwrap()), longest);
        assert_eq!(patch(&longest, &longer), None);
        assert_eq!(patch(&longer, &longest), None);
    }

    #[test]
    fn a_patch_that_cuts_a_character_is_no_text() {
        // U+0436 and U+0437 differ in their second byte; the first one is copied.
        let (old, new) = ("a long enough beginning \u{436}", "a long enough beginning \u{437}");
        let cut = patch(old.as_bytes(), new.as_bytes()).unwrap();
        assert_eq!(applied(old.as_bytes(), &cut), new.as_bytes());
        assert!(!is_text(&cut));
        assert!(is_text(&patch(COUNT_1, COUNT_2).unwrap()));
    }

    /// Pieces cut out of `old` at `at`, and others put there.
    fn edited<T: Clone>(old: &[T], edits: &[(usize, usize, Vec<T>)]) -> Vec<T> {
        let mut new = old.to_vec();
        for (at, cut, put) in edits {
            let at = at % (new.len() + 1);
            let end = (at + cut).min(new.len());
            new.splice(at..end, put.iter().cloned());
        }
        new
    }

    fn edits<T: Clone + std::fmt::Debug>(
        of: impl Strategy<Value = T>,
    ) -> impl Strategy<Value = Vec<(usize, usize, Vec<T>)>> {
        let put = proptest::collection::vec(of, 0..30);
        proptest::collection::vec((any::<usize>(), 0..40usize, put), 0..6)
    }

    fn check(old: &[u8], new: &[u8]) -> Result<(), TestCaseError> {
        let Some(patch) = patch(old, new) else { return Ok(()) };
        prop_assert!(patch.len() < new.len());
        prop_assert_eq!(applied(old, &patch), new);
        Ok(())
    }

    proptest! {
        #[test]
        fn edits_of_bytes_go_round(
            old in proptest::collection::vec(any::<u8>(), 0..1500),
            edits in edits(any::<u8>()),
        ) {
            check(&old, &edited(&old, &edits))?;
        }

        // Few different bytes: very many places match.
        #[test]
        fn edits_of_repetitive_bytes_go_round(
            old in proptest::collection::vec(b'a'..=b'b', 0..600),
            times in 1..5usize,
            edits in edits(b'a'..=b'b'),
        ) {
            let old = old.repeat(times);
            check(&old, &edited(&old, &edits))?;
        }

        #[test]
        fn edits_of_texts_go_round(
            old in proptest::collection::vec(
                prop_oneof!["[a-z]", "[\u{430}-\u{44f}]", "[\u{1f600}-\u{1f64f}]"],
                0..400,
            ),
            edits in edits("[\u{430}-\u{44f}]"),
        ) {
            let new = edited(&old, &edits).concat();
            let old = old.concat();
            check(old.as_bytes(), new.as_bytes())?;
        }

        #[test]
        fn unrelated_bytes_go_round(
            old in proptest::collection::vec(any::<u8>(), 0..80),
            new in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            check(&old, &new)?;
        }
    }
}
