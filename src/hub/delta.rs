//! Patches between publications: the format of Fossil (client protocol, 21.3). The only file that
//! knows who makes them.
//!
//! A publication is patched once for all its subscribers. Nothing here applies a patch: that is
//! what clients do.

use crate::base::limits::DELTA_BYTES_MAX;

/// The patch that makes `new` out of `old`; `None` when it is not shorter than `new`, or when one
/// of them is longer than [`DELTA_BYTES_MAX`]: then `new` is sent full.
///
/// Price: for each byte of `new` up to 250 places of `old` are tried, so it grows with the length
/// and not with its square. Of 256 KiB, in an optimised build: 0.5 ms when one byte changed, 4 to
/// 15 ms when a document changed all over, and 140 ms at worst (data made for it: all blocks of
/// `old` in one bucket and nothing that matches). For 64 KiB, what a client may send by default,
/// 35 ms. 1 MiB can take 0.9 s, in which a shard does nothing else: hence the bound.
pub fn patch(old: &[u8], new: &[u8]) -> Option<Vec<u8>> {
    if old.len() > DELTA_BYTES_MAX || new.len() > DELTA_BYTES_MAX {
        return None;
    }
    // The other way round than one would say it: the target comes first.
    let patch = fossil_delta::delta(new, old);
    (patch.len() < new.len()).then_some(patch)
}

/// Whether a patch can go to a JSON connection, as a string (client protocol, 21.2). Patches work
/// on bytes and may cut a character in two; what is no text is sent full there.
pub fn is_text(patch: &[u8]) -> bool {
    simdutf8::basic::from_utf8(patch).is_ok()
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
        assert_eq!(patch(COUNT_1, COUNT_2).unwrap(), b"y\nV@0,1:2T@W,1bsENX;");
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
    fn what_is_too_long_is_sent_full() {
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
