//! JSON as RFC 8259 has it, with the line of every value: no comments, no trailing commas, no key twice, no
//! NaN. A reader that is more lenient than the original's would let a file pass that fails there.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::file_value::{Entry, FileValue, Form};

/// The tree of a JSON text.
///
/// # Errors
/// `LINE:COLUMN: message`, without a piece of the text but keys.
pub(super) fn parse(text: &str) -> Result<FileValue, String> {
    let reader = Reader { text };
    // Looks over the whole text once, so that the first fault of it is found and each value below is sound.
    let whole: &RawValue = serde_json::from_str(text).map_err(|fault| {
        let at = match fault.is_eof() {
            true => text.len(),
            false => offset(text, fault.line(), fault.column()),
        };
        reader.fault(at, &reader.words(&fault))
    })?;
    reader.node(whole.get())
}

/// The offset of a line and column (bytes, from 1) as serde_json counts them.
fn offset(text: &str, line: usize, column: usize) -> usize {
    let start = match line {
        0 | 1 => 0,
        _ => text.match_indices('\n').nth(line - 2).map_or(text.len(), |(at, _)| at + 1),
    };
    (start + column.saturating_sub(1)).min(text.len())
}

/// A JSON text, and what positions in it are.
struct Reader<'t> {
    text: &'t str,
}

impl<'t> Reader<'t> {
    /// The offset of a piece of the text.
    fn offset(&self, piece: &str) -> usize {
        (piece.as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize).min(self.text.len())
    }

    fn position(&self, offset: usize) -> (usize, usize) {
        let before = &self.text.as_bytes()[..offset];
        let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines = before.iter().filter(|byte| **byte == b'\n').count();
        (lines + 1, String::from_utf8_lossy(&before[start..]).chars().count() + 1)
    }

    fn fault(&self, offset: usize, message: &str) -> String {
        let (line, column) = self.position(offset);
        format!("{line}:{column}: {message}")
    }

    /// A fault of the reader, in the words of a file.
    fn words(&self, fault: &serde_json::Error) -> String {
        let at = offset(self.text, fault.line(), fault.column());
        let rest = self.text.get(at..).unwrap_or_default();
        let before = self.text.get(..at).unwrap_or_default().trim_end();
        let said = fault.to_string();
        // "message at line 1 column 2": the position stands in front here.
        let message = said.rsplit_once(" at line ").map_or(said.as_str(), |(message, _)| message);
        if rest.starts_with(['/', '#']) {
            return "JSON has no comments".to_owned();
        }
        if rest.starts_with("NaN") || rest.trim_start_matches('-').starts_with("Infinity") {
            return "NaN and Infinity are no JSON numbers".to_owned();
        }
        if message.contains("trailing comma")
            || (before.ends_with(',') && rest.starts_with(['}', ']']))
        {
            return "a comma with nothing behind it".to_owned();
        }
        if fault.is_eof() {
            return "the file ends too early".to_owned();
        }
        message.to_owned()
    }

    fn node(&self, piece: &'t str) -> Result<FileValue, String> {
        let at = self.offset(piece);
        let line = self.position(at).0;
        let fault = |fault: serde_json::Error| self.fault(at, &self.words_of_value(&fault));
        let form = match piece.as_bytes().first() {
            Some(b'{') => {
                let members = serde_json::Deserializer::from_str(piece)
                    .deserialize_map(Members)
                    .map_err(fault)?;
                Form::Map(self.entries(members)?)
            }
            Some(b'[') => {
                let items = serde_json::Deserializer::from_str(piece)
                    .deserialize_seq(Items)
                    .map_err(fault)?;
                Form::List(items.into_iter().map(|item| self.node(item)).collect::<Result<_, _>>()?)
            }
            Some(b'"') => Form::Text(serde_json::from_str(piece).map_err(fault)?),
            Some(b't') => Form::Bool(true),
            Some(b'f') => Form::Bool(false),
            Some(b'n') => Form::Null,
            _ => number(piece).ok_or_else(|| self.fault(at, "a number that is too large"))?,
        };
        Ok(FileValue { line, form })
    }

    fn words_of_value(&self, fault: &serde_json::Error) -> String {
        let said = fault.to_string();
        said.rsplit_once(" at line ").map_or(said.as_str(), |(message, _)| message).to_owned()
    }

    fn entries(&self, members: Vec<(Cow<'t, str>, &'t str)>) -> Result<Vec<Entry>, String> {
        let mut keys = HashSet::new();
        let mut entries = Vec::with_capacity(members.len());
        for (key, value) in members {
            // A key with escapes is a copy; its value stands behind it.
            let at = match &key {
                Cow::Borrowed(key) => self.offset(key).saturating_sub(1),
                Cow::Owned(_) => self.offset(value),
            };
            if !keys.insert(key.clone()) {
                return Err(self.fault(at, &format!("the key {key:?} is there twice")));
            }
            let line = self.position(at).0;
            entries.push(Entry { key: key.into_owned(), line, value: self.node(value)? });
        }
        Ok(entries)
    }
}

/// A number: whole where it is one and fits.
fn number(piece: &str) -> Option<Form> {
    if let Ok(whole) = piece.parse::<i64>() {
        return Some(Form::Integer(whole));
    }
    let number: serde_json::Number = serde_json::from_str(piece).ok()?;
    if number.is_u64() {
        return Some(Form::Text(piece.to_owned()));
    }
    number.as_f64().filter(|number| number.is_finite()).map(Form::Float)
}

/// The members of an object: keys, and values as they stand.
struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(Cow<'de, str>, &'de str)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(Key(key)) = map.next_key()? {
            let value: &'de RawValue = map.next_value()?;
            members.push((key, value.get()));
        }
        Ok(members)
    }
}

/// A key, borrowed where it has no escapes.
struct Key<'de>(Cow<'de, str>);

impl<'de> serde::Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// The items of a list as they stand.
struct Items;

impl<'de> Visitor<'de> for Items {
    type Value = Vec<&'de str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<&'de RawValue>()? {
            items.push(item.get());
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn leniencies_are_faults_with_line_and_column() {
        for (text, expected) in [
            ("{\"a\": 1,}", "1:9: a comma with nothing behind it"),
            ("{\n  \"a\": [1, 2,\n  ]\n}", "3:3: a comma with nothing behind it"),
            ("{\n  // why\n  \"a\": 1\n}", "2:3: JSON has no comments"),
            ("{\"a\": 1 # why\n}", "1:9: JSON has no comments"),
            ("{\"a\": /* why */ 1}", "1:7: JSON has no comments"),
            ("{\"a\": NaN}", "1:7: NaN and Infinity are no JSON numbers"),
            ("{\"a\": Infinity}", "1:7: NaN and Infinity are no JSON numbers"),
            ("{\"a\": 1,\n \"b\": 2,\n \"a\": 3}", "3:2: the key \"a\" is there twice"),
            ("{\"x\": {\"a\": 1, \"\\u0061\": 3}}", "1:26: the key \"a\" is there twice"),
            ("{\"x\": [{\"k\": 1, \"k\": 2}]}", "1:17: the key \"k\" is there twice"),
            ("{\"a\": 1e999}", "1:7: a number that is too large"),
            ("{\"a\": 1", "1:8: the file ends too early"),
        ] {
            assert_eq!(parse(text).unwrap_err(), expected, "{text}");
        }
        for text in
            ["{a: 1}", "{'a': 1}", "{\"a\": yes}", "{\"a\": 01}", "{\"a\": .5}", "{} {}", "a: 1"]
        {
            let fault = parse(text).unwrap_err();
            let mut parts = fault.splitn(3, ':');
            let number = |part: Option<&str>| part.unwrap().parse::<usize>().unwrap();
            assert_eq!(number(parts.next()), 1, "{fault}");
            assert!(number(parts.next()) >= 1, "{fault}");
            assert!(!fault.contains(" at line "), "{fault}");
        }
    }

    #[test]
    fn values() {
        let text = "{\"a\": [null, true, -7, 1.5, \"x\\n\\ud83d\\ude00\", 18446744073709551615], \"b\\t\": {}}";
        let Form::Map(entries) = parse(text).unwrap().form else { panic!() };
        let Form::List(items) = &entries[0].value.form else { panic!() };
        let forms: Vec<_> = items.iter().map(|item| item.form.clone()).collect();
        assert_eq!(
            forms,
            [
                Form::Null,
                Form::Bool(true),
                Form::Integer(-7),
                Form::Float(1.5),
                Form::Text("x\n\u{1f600}".to_owned()),
                Form::Text("18446744073709551615".to_owned()),
            ]
        );
        assert_eq!((entries[1].key.as_str(), &entries[1].value.form), ("b\t", &Form::Map(vec![])));
    }

    proptest! {
        #[test]
        fn json_is_read_as_serde_json_reads_it(text in "[\\[\\]{}\",:a0-9e.\\\\ \n-]{0,24}") {
            let theirs = serde_json::from_str::<serde_json::Value>(&text);
            match (parse(&text), theirs) {
                (Ok(node), Ok(value)) => {
                    // Whole numbers beyond 63 bits are texts here, and there is one zero.
                    let longest = text.split(|c: char| !c.is_ascii_digit()).map(str::len).max();
                    if longest < Some(19) && !text.contains("-0") {
                        prop_assert_eq!(node.json(), value);
                    }
                }
                // Keys that are there twice, and texts that a number was too large for.
                (Err(fault), Ok(_)) => prop_assert!(fault.contains("twice"), "{fault}"),
                (Ok(_), Err(fault)) => prop_assert!(false, "{fault}"),
                (Err(_), Err(_)) => {}
            }
        }
    }
}
