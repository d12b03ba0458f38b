//! Bounds of requests to the server API. Each is decided while a request is read, before anything of it
//! is carried out.
//!
//! A list stops being read at its bound, so a request of 16 MiB never becomes millions of values. What
//! several commands of one request need together is added up in [`Work`].

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::base::limits::{
    API_BROADCAST_BYTES_MAX, API_COMMANDS_MAX, API_ENTRIES_MAX, WEB_ANSWER_BYTES_MAX,
};

/// A list of at most `MAX` values.
#[derive(Clone, Debug)]
pub(super) struct List<T, const MAX: usize>(pub(super) Vec<T>);

impl<T, const MAX: usize> Default for List<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Values<T, const MAX: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Values<T, MAX> {
            type Value = List<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX} values")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = seq.next_element()? {
                    if values.len() == MAX {
                        return Err(A::Error::invalid_length(MAX + 1, &self));
                    }
                    values.push(value);
                }
                Ok(List(values))
            }
        }
        deserializer.deserialize_seq(Values(PhantomData))
    }
}

/// Names and texts, at most `MAX` of them; of a name that comes twice the last counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Texts<const MAX: usize>(pub(super) BTreeMap<String, String>);

impl<'de, const MAX: usize> Deserialize<'de> for Texts<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs<const MAX: usize>;

        impl<'de, const MAX: usize> Visitor<'de> for Pairs<MAX> {
            type Value = Texts<MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an object of at most {MAX} texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut texts = BTreeMap::new();
                while let Some((name, value)) = map.next_entry()? {
                    if texts.len() == MAX {
                        return Err(A::Error::invalid_length(MAX + 1, &self));
                    }
                    texts.insert(name, value);
                }
                Ok(Texts(texts))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// How deep arrays and objects of a JSON text are nested. The text has to be JSON.
fn nesting(json: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    let (mut in_text, mut is_escaped) = (false, false);
    for byte in json.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = in_text,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Whether a JSON text is nested deeper than `max`.
pub(super) fn is_nested_deeper(json: &str, max: usize) -> bool {
    // Most have fewer brackets than that, and counting those is much faster.
    brackets(json.as_bytes()) > max && nesting(json) > max
}

/// How many brackets open. Sums of one byte let the compiler count sixteen bytes at a time.
fn brackets(json: &[u8]) -> usize {
    let opens = |byte: &u8| u8::from(byte | 0x20 == b'{');
    let chunks = json.chunks(usize::from(u8::MAX));
    chunks.map(|chunk| usize::from(chunk.iter().map(opens).sum::<u8>())).sum()
}

/// What the commands of one request amount to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// Commands.
    pub(super) commands: usize,
    /// Entries of all their lists.
    pub(super) entries: usize,
    /// Bytes of payloads, once for each channel that they go to.
    pub(super) bytes: usize,
}

impl Work {
    /// A command that only has a reply.
    pub(super) const COMMAND: Self = Self { commands: 1, entries: 0, bytes: 0 };

    /// Adds the work of another command; `None` when all together is too much for a request.
    #[must_use]
    pub(super) fn with(self, more: Self) -> Option<Self> {
        let sum = Self {
            commands: self.commands + more.commands,
            entries: self.entries + more.entries,
            bytes: self.bytes.saturating_add(more.bytes),
        };
        sum.is_bounded().then_some(sum)
    }

    fn is_bounded(&self) -> bool {
        self.commands <= API_COMMANDS_MAX
            && self.entries <= API_ENTRIES_MAX
            && self.bytes <= API_BROADCAST_BYTES_MAX
    }

    /// Bytes of the answer that replies without content of channels take at most.
    pub(super) fn reply_bytes(&self) -> usize {
        self.commands * REPLY_BYTES_MAX + self.entries * ENTRY_REPLY_BYTES_MAX
    }
}

/// Bytes of a reply without content of a channel at most: a position or an error, with its id.
pub(super) const REPLY_BYTES_MAX: usize = 256;

/// Bytes of the reply to one channel of a broadcast at most.
pub(super) const ENTRY_REPLY_BYTES_MAX: usize = 128;

// So the answer to a request that was admitted always fits.
const _: () = assert!(
    (API_COMMANDS_MAX + 1) * REPLY_BYTES_MAX + API_ENTRIES_MAX * ENTRY_REPLY_BYTES_MAX
        <= WEB_ANSWER_BYTES_MAX
);

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;
    use serde::de::IntoDeserializer;
    use serde::de::value::{Error, SeqDeserializer};

    use super::*;

    #[test]
    fn a_list_is_read_no_further_than_its_bound() {
        let taken = Cell::new(0);
        let endless = (0u32..1_000_000).inspect(|_| taken.set(taken.get() + 1));
        let list: Result<List<u32, 10>, Error> =
            List::deserialize(SeqDeserializer::new(endless).into_deserializer());
        assert!(list.is_err());
        assert_eq!(taken.get(), 11);
        let list: List<u32, 10> = serde_json::from_str("[1,2,3,4,5,6,7,8,9,10]").unwrap();
        assert_eq!(list.0.len(), 10);
        for wrong in ["{}", "7", "[\"a\"]"] {
            assert!(serde_json::from_str::<List<u32, 10>>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn all_brackets_of_a_long_text_are_counted() {
        let json = "[{x}]".repeat(1_000);
        assert_eq!(brackets(json.as_bytes()), 2_000);
        assert_eq!(brackets(&[b'{'; 1_021]), 1_021);
    }

    #[test]
    fn texts_are_bounded() {
        let texts: Texts<2> = serde_json::from_str(r#"{"a":"1","b":"2"}"#).unwrap();
        assert_eq!(texts.0["b"], "2");
        assert!(serde_json::from_str::<Texts<2>>(r#"{"a":"1","b":"2","c":"3"}"#).is_err());
    }

    #[test]
    fn work_is_added_up() {
        let one = Work { commands: 1, entries: API_ENTRIES_MAX, bytes: 0 };
        assert!(Work::default().with(one).is_some());
        assert!(one.with(Work { entries: 1, ..Work::default() }).is_none());
        assert!(one.with(Work { bytes: API_BROADCAST_BYTES_MAX + 1, ..Work::default() }).is_none());
        let most = Work { commands: API_COMMANDS_MAX, ..Work::default() };
        assert!(most.with(Work { commands: 1, ..Work::default() }).is_none());
    }

    /// JSON of any shape, and how deep it is.
    fn nested() -> impl Strategy<Value = (String, usize)> {
        let leaf = "[\\[\\]{}\"\\\\a]{0,6}"
            .prop_map(|text| (serde_json::to_string(&text).expect("a text is JSON"), 0));
        leaf.prop_recursive(6, 64, 4, |inner| {
            (proptest::collection::vec(inner, 0..4), any::<bool>()).prop_map(|(inner, list)| {
                let depth = inner.iter().map(|(_, depth)| depth + 1).max().unwrap_or(1);
                let parts = inner.iter().map(|(json, _)| json.as_str());
                let json = match list {
                    true => format!("[{}]", parts.collect::<Vec<_>>().join(" , ")),
                    false => {
                        let fields = parts.map(|json| format!("\"k[\\\"\":{json}"));
                        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
                    }
                };
                (json, depth)
            })
        })
    }

    proptest! {
        #[test]
        fn nesting_is_counted((json, depth) in nested(), max in 0usize..8) {
            prop_assert_eq!(nesting(&json), depth);
            prop_assert_eq!(is_nested_deeper(&json, max), depth > max);
        }
    }
}
