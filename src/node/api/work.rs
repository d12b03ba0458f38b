//! Bounds of a request to the server API, decided before anything of it is carried out.

use crate::base::limits::{
    API_BROADCAST_BYTES_MAX, API_COMMANDS_MAX, API_ENTRIES_MAX, WEB_ANSWER_BYTES_MAX,
};

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
pub(in crate::node) fn is_nested_deeper(json: &str, max: usize) -> bool {
    // Most have fewer brackets than that, and counting those is much faster.
    brackets(json.as_bytes()) > max && nesting(json) > max
}

/// How many brackets open. Sums of one byte let the compiler count sixteen bytes at a time.
fn brackets(json: &[u8]) -> usize {
    let opens = |byte: &u8| u8::from(byte | 0x20 == b'{');
    let chunks = json.chunks(usize::from(u8::MAX));
    chunks.map(|chunk| usize::from(chunk.iter().map(opens).sum::<u8>())).sum()
}

/// The work of one request: of all its calls together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::node) struct Work {
    /// Calls.
    pub(in crate::node) commands: usize,
    /// Entries of all their lists.
    pub(in crate::node) entries: usize,
    /// Bytes of payloads, once for each channel that they go to.
    pub(in crate::node) bytes: usize,
}

impl Work {
    /// A call that only has a reply.
    pub(in crate::node) const COMMAND: Self = Self { commands: 1, entries: 0, bytes: 0 };

    /// Adds the work of another call; `None` when the sum is too much for a request.
    #[must_use]
    pub(in crate::node) fn with(self, more: Self) -> Option<Self> {
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
    pub(in crate::node) fn reply_bytes(&self) -> usize {
        self.commands * REPLY_BYTES_MAX + self.entries * ENTRY_REPLY_BYTES_MAX
    }
}

/// Bytes of a reply without content of a channel at most: a position or an error, with its id.
pub(in crate::node) const REPLY_BYTES_MAX: usize = 256;

/// Bytes of the reply to one channel of a broadcast at most.
pub(in crate::node) const ENTRY_REPLY_BYTES_MAX: usize = 128;

// So the answer to a request that was admitted always fits.
const _: () = assert!(
    (API_COMMANDS_MAX + 1) * REPLY_BYTES_MAX + API_ENTRIES_MAX * ENTRY_REPLY_BYTES_MAX
        <= WEB_ANSWER_BYTES_MAX
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_brackets_of_a_long_text_are_counted() {
        let json = "[{x}]".repeat(1_000);
        assert_eq!(brackets(json.as_bytes()), 2_000);
        assert_eq!(brackets(&[b'{'; 1_021]), 1_021);
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
