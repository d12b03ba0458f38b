//! A configuration file as a tree with line numbers, whatever its format.
//!
//! TOML by `toml`, YAML by `serde-saphyr`, JSON by `serde_json` ([`super::json`]). Their faults are said in
//! the words of a file, not of a library's options.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use toml::de::{DeTable, DeValue};

use super::file_value::{Entry, FileValue, Form};

/// Formats of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Toml,
    Yaml,
    Json,
}

/// The tree of a file, its format from the extension of `name` or else from the text. A file
/// without content is an empty map.
///
/// # Errors
/// `LINE:COLUMN: message`. Never a piece of the text but keys, since values may be secrets.
pub(super) fn parse(name: &str, text: &str) -> Result<FileValue, String> {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    let format = match extension.as_deref() {
        Some("toml") => Format::Toml,
        Some("json") => Format::Json,
        Some("yaml" | "yml") => Format::Yaml,
        _ if text.trim_start().starts_with('{') => Format::Json,
        _ if DeTable::parse(text).is_ok() => Format::Toml,
        _ => Format::Yaml,
    };
    parse_as(format, text)
}

/// The tree of a JSON text, as environment variables hold them.
///
/// # Errors
/// As [`parse`].
pub(super) fn parse_json(text: &str) -> Result<FileValue, String> {
    parse_as(Format::Json, text)
}

fn parse_as(format: Format, text: &str) -> Result<FileValue, String> {
    let empty = || FileValue { line: 1, form: Form::Map(Vec::new()) };
    if text.trim().is_empty() {
        return Ok(empty());
    }
    match format {
        Format::Toml => {
            let lines = Lines::new(text);
            let table = DeTable::parse(text).map_err(|fault| {
                let start = fault.span().map_or(0, |span| span.start);
                let message = match fault.message() {
                    "duplicate key" => "a key that is there twice",
                    message => message,
                };
                format!("{}:{}: {message}", lines.line(start), lines.column(start))
            })?;
            Ok(FileValue { line: 1, form: Form::Map(lines.entries(table.get_ref())) })
        }
        Format::Json => super::json::parse(text),
        Format::Yaml => {
            // `yes` and `no` are texts, as in YAML 1.2 and in Go's reader.
            let options = serde_saphyr::options! { strict_booleans: true };
            let root: Located =
                serde_saphyr::from_str_with_options(text, options).map_err(|fault| {
                    let (line, column) = fault
                        .location()
                        .map_or((1, 1), |location| (location.line(), location.column()));
                    format!("{line}:{column}: {}", yaml_words(fault.without_snippet()))
                })?;
            let node = root.0;
            Ok(if node.form == Form::Null { empty() } else { node })
        }
    }
}

/// A fault of the YAML reader, in the words of a file: its own speak of options of the library.
fn yaml_words(fault: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error;
    match fault {
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("the key {key:?} is there twice")
        }
        Error::DuplicateMappingKey { .. } => "a key that is there twice".to_owned(),
        Error::MultipleDocuments { .. } => "more than one document; only one is read".to_owned(),
        Error::Eof { .. } => "the file ends too early".to_owned(),
        fault => {
            let said = fault.render_with_formatter(&serde_saphyr::UserMessageFormatter);
            // The position stands in front here, and what follows a line may be a piece of the text.
            let said = said.lines().next().unwrap_or_default();
            let words = said.split(" at line ").next().unwrap_or_default();
            words.strip_prefix("error: ").unwrap_or(words).to_owned()
        }
    }
}

/// Line numbers of byte offsets.
struct Lines(Vec<usize>);

impl Lines {
    fn new(text: &str) -> Self {
        Self(text.bytes().enumerate().filter(|&(_, b)| b == b'\n').map(|(at, _)| at).collect())
    }

    fn line(&self, offset: usize) -> usize {
        self.0.partition_point(|&end| end < offset) + 1
    }

    /// From 1, in bytes.
    fn column(&self, offset: usize) -> usize {
        match self.0.partition_point(|&end| end < offset) {
            0 => offset + 1,
            line => offset - self.0[line - 1],
        }
    }

    fn entries(&self, table: &DeTable<'_>) -> Vec<Entry> {
        let mut entries: Vec<(usize, Entry)> = table
            .iter()
            .map(|(key, value)| {
                let start = key.span().start;
                let line = self.line(start);
                let value = self.node(value.get_ref(), self.line(value.span().start));
                (start, Entry { key: key.get_ref().to_string(), line, value })
            })
            .collect();
        // The parser sorts by name; problems are better read in the order of the file.
        entries.sort_by_key(|(start, _)| *start);
        entries.into_iter().map(|(_, entry)| entry).collect()
    }

    fn node(&self, value: &DeValue<'_>, line: usize) -> FileValue {
        let form = match value {
            DeValue::Boolean(value) => Form::Bool(*value),
            DeValue::Integer(value) => match i64::from_str_radix(value.as_str(), value.radix()) {
                Ok(value) => Form::Integer(value),
                Err(_) => Form::Text(value.to_string()),
            },
            DeValue::Float(value) => Form::Float(value.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::String(value) => Form::Text(value.to_string()),
            DeValue::Datetime(value) => Form::Text(value.to_string()),
            DeValue::Array(values) => Form::List(
                values
                    .iter()
                    .map(|value| self.node(value.get_ref(), self.line(value.span().start)))
                    .collect(),
            ),
            DeValue::Table(table) => Form::Map(self.entries(table)),
        };
        FileValue { line, form }
    }
}

/// A node as the YAML reader gives it.
struct Located(FileValue);

impl<'de> Deserialize<'de> for Located {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = serde_saphyr::Spanned::<Shape>::deserialize(deserializer)?;
        let line = usize::try_from(spanned.referenced.line()).unwrap_or(0);
        Ok(Self(FileValue { line, form: spanned.value.0 }))
    }
}

struct Shape(Form);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Shape, E> {
        Ok(Shape(Form::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Shape, E> {
        Ok(Shape(Form::Integer(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Shape, E> {
        Ok(Shape(match i64::try_from(value) {
            Ok(value) => Form::Integer(value),
            Err(_) => Form::Text(value.to_string()),
        }))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Shape, E> {
        Ok(Shape(Form::Float(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Shape, E> {
        Ok(Shape(Form::Text(value.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Shape, E> {
        Ok(Shape(Form::Null))
    }

    fn visit_none<E>(self) -> Result<Shape, E> {
        Ok(Shape(Form::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Shape, D::Error> {
        Shape::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Shape, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element::<Located>()? {
            list.push(item.0);
        }
        Ok(Shape(Form::List(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<Shape, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = items.next_key::<serde_saphyr::Spanned<String>>()? {
            let value = items.next_value::<Located>()?.0;
            let line = usize::try_from(key.referenced.line()).unwrap_or(0);
            map.push(Entry { key: key.value, line, value });
        }
        Ok(Shape(Form::Map(map)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `path line: value` of every leaf.
    fn leaves(node: &FileValue, path: &str, out: &mut Vec<String>) {
        match &node.form {
            Form::Map(entries) => {
                for entry in entries {
                    let path = format!("{path}.{}", entry.key);
                    if matches!(entry.value.form, Form::Map(_) | Form::List(_)) {
                        leaves(&entry.value, &path, out);
                    } else {
                        out.push(format!("{}{path} = {:?}", entry.line, entry.value.form));
                    }
                }
            }
            Form::List(items) => items.iter().for_each(|item| leaves(item, path, out)),
            form => out.push(format!("{}{path} = {form:?}", node.line)),
        }
    }

    #[test]
    fn lines_in_three_formats() {
        let expected = [
            "2.client.insecure = Bool(true)",
            "3.client.port = Integer(-7)",
            "4.client.name = Text(\"a\")",
            "6.list.name = Text(\"x\")",
            "7.list.name = Text(\"y\")",
        ];
        let toml = "[client]\ninsecure = true\nport = -7\nname = 'a'\n\n[[list]]\nname = 'x'\n";
        let yaml =
            "client:\n  insecure: true\n  port: -7\n  name: a\nlist:\n  - name: x\n  - name: y\n";
        let json = "{\"client\":{\n\"insecure\": true,\n\"port\": -7,\n\t\"name\": \"a\"},\n\"list\":\
                    [\n{\"name\": \"x\"},\n{\"name\": \"y\"}]}";
        for (name, text, expected) in [
            ("c.yaml", yaml, &expected[..]),
            ("c.yml", yaml, &expected[..]),
            ("other", yaml, &expected[..]),
            ("c.toml", toml, &expected[..3]),
            ("other.conf", toml, &expected[..3]),
        ] {
            let mut out = Vec::new();
            leaves(&parse(name, text).unwrap(), "", &mut out);
            assert_eq!(out[..expected.len()], *expected, "{name}");
        }
        let mut out = Vec::new();
        leaves(&parse("c.json", json).unwrap(), "", &mut out);
        assert_eq!(
            out,
            [
                "2.client.insecure = Bool(true)",
                "3.client.port = Integer(-7)",
                "4.client.name = Text(\"a\")",
                "6.list.name = Text(\"x\")",
                "7.list.name = Text(\"y\")",
            ]
        );
    }

    #[test]
    fn malformed_files_are_refused() {
        for (name, text) in [
            ("a.toml", "a = "),
            ("a.toml", "a = 1\na = 2"),
            ("a.json", "{\"a\": 1"),
            ("a.json", "a: 1"),
            ("a", "{a: 1}"),
            ("a.json", "{\"a\": 1, \"a\": 2}"),
            ("a.yaml", "a: [1"),
        ] {
            assert!(parse(name, text).is_err(), "{text}");
        }
        for name in ["a.toml", "a.json", "a.yaml", "a"] {
            assert_eq!(parse(name, " \n").unwrap().form, Form::Map(Vec::new()));
        }
        assert_eq!(parse("a.yaml", "# nothing\n").unwrap().form, Form::Map(Vec::new()));
    }

    #[test]
    fn faults_are_said_in_the_words_of_a_file() {
        for (name, text, expected) in [
            ("a.yaml", "a:\n  b: 1\n  b: 2\n", "3:3: the key \"b\" is there twice"),
            ("a.toml", "[a]\nb = 1\nb = 2\n", "3:1: a key that is there twice"),
            ("a.json", "{\"b\": 1, \"b\": 2}", "1:10: the key \"b\" is there twice"),
            ("a.yaml", "a: 1\n---\na: 2\n", "more than one document"),
            ("a.yaml", "a: 'hush\n", ""),
            ("a.yaml", "a: [1\n", ""),
            ("a.yaml", "a: *hush\n", ""),
            ("a.yaml", "a: 1\n b: 2\n", ""),
        ] {
            let fault = parse(name, text).unwrap_err();
            assert!(fault.contains(expected), "{fault}");
            for word in ["Policy", "Options", "from_", "set ", "serde", "deserializ", "\n", "hush"]
            {
                assert!(!fault.contains(word), "{name}: {fault}");
            }
            let mut numbers = fault.splitn(3, ':').map(str::parse::<usize>);
            assert!(numbers.next().unwrap().is_ok() && numbers.next().unwrap().is_ok(), "{fault}");
        }
    }

    #[test]
    fn scalars() {
        let text = "a: null\nb:\nc: \"1\"\nd: 1.5\ne: 25s\nf: yes\ng: 18446744073709551615\n";
        let mut out = Vec::new();
        leaves(&parse("a.yaml", text).unwrap(), "", &mut out);
        assert_eq!(
            out,
            [
                "1.a = Null",
                "2.b = Null",
                "3.c = Text(\"1\")",
                "4.d = Float(1.5)",
                "5.e = Text(\"25s\")",
                "6.f = Text(\"yes\")",
                "7.g = Text(\"18446744073709551615\")",
            ]
        );
    }
}
