//! Kinds of options, and their values from text (environment, flags) and from files.

use std::time::Duration;

use super::file_value::{FileValue, Form};

/// The kind of an option's value.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// `true`, `1`, `t`, `false`, `0`, `f`.
    Bool,
    /// A whole number within bounds.
    Integer(i64, i64),
    /// Any text.
    Text,
    /// One of these.
    Choice(&'static [&'static str]),
    /// Several texts; in one text they are separated by spaces.
    List,
    /// The same, each of them one of these.
    Choices(&'static [&'static str]),
    /// Go's text form, or nanoseconds.
    Duration,
    /// The same, and -1 switches off what it times.
    DurationOrOff,
    /// A text or number that the function accepts; the text says what that is.
    Checked(fn(&str) -> bool, &'static str),
    /// Lists and maps that the function accepts; as one text they are JSON. The text says what they are.
    Json(fn(&serde_json::Value) -> bool, &'static str),
    /// Whatever stands there, and below it: something that is not built.
    Any,
}

/// A value of an option.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Bool(bool),
    Integer(i64),
    Text(String),
    List(Vec<String>),
    /// `None` is off.
    Duration(Option<Duration>),
    Json(serde_json::Value),
    /// Of [`Kind::Any`]: whether there is more than nothing, `false`, 0 and empty texts.
    Any(bool),
}

/// Shortest duration but 0: the timers count milliseconds.
const SHORTEST: Duration = Duration::from_millis(1);

impl Kind {
    /// The expected form, for messages and help.
    pub(super) fn expected(self) -> String {
        match self {
            Self::Bool => "true or false".into(),
            Self::Integer(min, max) if max == i64::MAX => format!("a whole number from {min}"),
            Self::Integer(min, max) => format!("a whole number from {min} to {max}"),
            Self::Text => "a text (numbers in quotes)".into(),
            Self::Choice(choices) => format!("one of {}", listed(choices)),
            Self::List => "a list of texts".into(),
            Self::Choices(choices) => format!("a list of none or more of {}", listed(choices)),
            Self::Duration => "a duration such as \"25s\", \"1h30m\" or \"300ms\"".into(),
            Self::DurationOrOff => "a duration such as \"25s\" or \"300ms\", or -1 for off".into(),
            Self::Checked(_, expected) | Self::Json(_, expected) => expected.into(),
            Self::Any => "anything".into(),
        }
    }

    /// The value of a text.
    ///
    /// # Errors
    /// What was expected.
    pub(super) fn of_text(self, text: &str) -> Result<Value, String> {
        let value = match self {
            Self::Bool => match text.to_ascii_lowercase().as_str() {
                "true" | "1" | "t" => Some(Value::Bool(true)),
                "false" | "0" | "f" => Some(Value::Bool(false)),
                _ => None,
            },
            Self::Integer(min, max) => {
                text.parse().ok().filter(|value| (min..=max).contains(value)).map(Value::Integer)
            }
            Self::Text => Some(Value::Text(text.into())),
            Self::Choice(choices) => choices.contains(&text).then(|| Value::Text(text.into())),
            Self::List | Self::Choices(_) => {
                self.list(text.split_whitespace().map(Into::into).collect())
            }
            Self::Duration => return self.duration(text, false),
            Self::DurationOrOff => return self.duration(text, true),
            Self::Checked(check, _) => check(text).then(|| Value::Text(text.into())),
            Self::Json(check, _) => serde_json::from_str(text).ok().filter(check).map(Value::Json),
            Self::Any => Some(Value::Any(!matches!(
                text.to_ascii_lowercase().as_str(),
                "" | "0" | "f" | "false" | "[]" | "{}" | "null"
            ))),
        };
        value.ok_or_else(|| self.expected())
    }

    /// The value of a node that is not null.
    ///
    /// # Errors
    /// What was expected.
    pub(super) fn of_node(self, node: &FileValue) -> Result<Value, String> {
        match (self, &node.form) {
            (Self::Any, _) => Ok(Value::Any(says_something(node))),
            (Self::Json(check, _), Form::List(_) | Form::Map(_)) => {
                Some(node.json()).filter(check).map(Value::Json).ok_or_else(|| self.expected())
            }
            (_, Form::Text(text)) => self.of_text(text),
            (Self::Bool, Form::Bool(value)) => Ok(Value::Bool(*value)),
            (
                Self::Integer(..) | Self::Duration | Self::DurationOrOff | Self::Checked(..),
                Form::Integer(value),
            ) => self.of_text(&value.to_string()),
            (Self::List | Self::Choices(_), Form::List(items)) => items
                .iter()
                .map(|item| match &item.form {
                    Form::Text(text) => Some(text.clone()),
                    _ => None,
                })
                .collect::<Option<_>>()
                .and_then(|items| self.list(items))
                .ok_or_else(|| self.expected()),
            _ => Err(self.expected()),
        }
    }

    fn list(self, items: Vec<String>) -> Option<Value> {
        let good = match self {
            Self::Choices(choices) => items.iter().all(|item| choices.contains(&item.as_str())),
            _ => true,
        };
        good.then_some(Value::List(items))
    }

    fn duration(self, text: &str, off: bool) -> Result<Value, String> {
        if off && text == "-1" {
            return Ok(Value::Duration(None));
        }
        let duration = match text.parse::<u64>() {
            Ok(nanoseconds) => Duration::from_nanos(nanoseconds),
            Err(_) => humantime::parse_duration(text).map_err(|_| self.expected())?,
        };
        if !duration.is_zero() && duration < SHORTEST {
            return Err(format!(
                "at least 1ms (a number without a unit is nanoseconds); {}",
                self.expected()
            ));
        }
        Ok(Value::Duration(Some(duration)))
    }
}

impl Value {
    /// True for a value that requests nothing: false, 0, off and empty.
    pub(super) fn is_nothing(&self) -> bool {
        match self {
            Self::Bool(value) | Self::Any(value) => !value,
            Self::Integer(value) => *value == 0,
            Self::Text(text) => text.is_empty(),
            Self::List(items) => items.is_empty(),
            Self::Duration(duration) => duration.is_none_or(|duration| duration.is_zero()),
            Self::Json(json) => match json {
                serde_json::Value::Array(items) => items.is_empty(),
                serde_json::Value::Object(fields) => fields.is_empty(),
                _ => true,
            },
        }
    }
}

/// Choices for a message; the empty one is seen, too.
fn listed(choices: &[&str]) -> String {
    let shown = |choice: &&str| if choice.is_empty() { "\"\"".into() } else { choice.to_string() };
    choices.iter().map(shown).collect::<Vec<String>>().join(", ")
}

/// True when something in the node is more than a default.
fn says_something(node: &FileValue) -> bool {
    match &node.form {
        Form::Null => false,
        Form::Bool(value) => *value,
        Form::Integer(value) => *value != 0,
        Form::Float(value) => *value != 0.0,
        Form::Text(text) => !text.is_empty(),
        Form::List(items) => !items.is_empty(),
        Form::Map(entries) => entries.iter().any(|entry| says_something(&entry.value)),
    }
}

/// A number of bytes: `1048576`, `512MiB`, `12GB`, `1G` (1024 for one letter and `iB`).
pub(super) fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return None,
    };
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let ms = |ms| Ok(Value::Duration(Some(Duration::from_millis(ms))));
        let text = |text: &str| Ok(Value::Text(text.into()));
        for (kind, given, expected) in [
            (Kind::Bool, "true", Ok(Value::Bool(true))),
            (Kind::Bool, "1", Ok(Value::Bool(true))),
            (Kind::Bool, "t", Ok(Value::Bool(true))),
            (Kind::Bool, "False", Ok(Value::Bool(false))),
            (Kind::Bool, "0", Ok(Value::Bool(false))),
            (Kind::Bool, "yes", Err(())),
            (Kind::Integer(0, 65_535), "8000", Ok(Value::Integer(8000))),
            (Kind::Integer(0, 65_535), "65536", Err(())),
            (Kind::Integer(0, 65_535), "-1", Err(())),
            (Kind::Integer(0, 65_535), "8k", Err(())),
            (Kind::Text, "x y", text("x y")),
            (Kind::Choice(&["a", "b"]), "b", text("b")),
            (Kind::Choice(&["a", "b"]), "B", Err(())),
            (Kind::List, "a  b", Ok(Value::List(vec!["a".into(), "b".into()]))),
            (Kind::Choices(&["a", "b"]), " b a", Ok(Value::List(vec!["b".into(), "a".into()]))),
            (Kind::Choices(&["a", "b"]), " ", Ok(Value::List(vec![]))),
            (Kind::Choices(&["a", "b"]), "a c", Err(())),
            (Kind::Choices(&["a", "b"]), "[\"a\"]", Err(())),
            (Kind::Duration, "25s", ms(25_000)),
            (Kind::Duration, "1h30m", ms(5_400_000)),
            (Kind::Duration, "1m30.5s", ms(90_500)),
            (Kind::Duration, "720h", ms(2_592_000_000)),
            (Kind::Duration, "300ms", ms(300)),
            (Kind::Duration, "0", ms(0)),
            (Kind::Duration, "0s", ms(0)),
            (Kind::Duration, "25000000000", ms(25_000)),
            (Kind::Duration, "25", Err(())),
            (Kind::Duration, "10us", Err(())),
            (Kind::Duration, "-1", Err(())),
            (Kind::Duration, "soon", Err(())),
            (Kind::DurationOrOff, "-1", Ok(Value::Duration(None))),
            (Kind::DurationOrOff, "-2", Err(())),
            (Kind::Any, "false", Ok(Value::Any(false))),
            (Kind::Any, "redis", Ok(Value::Any(true))),
        ] {
            assert_eq!(kind.of_text(given).map_err(|_| ()), expected, "{kind:?} {given:?}");
        }
    }

    #[test]
    fn nodes() {
        let node = |form| FileValue { line: 1, form };
        assert_eq!(
            Kind::DurationOrOff.of_node(&node(Form::Integer(-1))),
            Ok(Value::Duration(None))
        );
        assert_eq!(Kind::Bool.of_node(&node(Form::Text("true".into()))), Ok(Value::Bool(true)));
        assert!(Kind::Bool.of_node(&node(Form::Integer(1))).is_err());
        assert!(Kind::Text.of_node(&node(Form::Integer(1))).is_err());
        assert!(Kind::Integer(0, 9).of_node(&node(Form::Float(1.0))).is_err());
        assert!(Kind::List.of_node(&node(Form::List(vec![node(Form::Integer(1))]))).is_err());
        let list = |text: &str| node(Form::List(vec![node(Form::Text(text.into()))]));
        let choices = Kind::Choices(&["a"]);
        assert_eq!(choices.of_node(&list("a")), Ok(Value::List(vec!["a".into()])));
        assert_eq!(choices.of_node(&list("b")), Err("a list of none or more of a".into()));
        assert!(choices.of_node(&node(Form::List(vec![node(Form::Integer(1))]))).is_err());
        assert_eq!(Kind::Choice(&["", "a"]).expected(), "one of \"\", a");
        assert_eq!(Kind::Any.of_node(&node(Form::Map(Vec::new()))), Ok(Value::Any(false)));
    }

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("12GiB", Some(12 << 30)),
            ("12 GB", Some(12_000_000_000)),
            ("1g", Some(1 << 30)),
            ("1048576", Some(1_048_576)),
            ("", None),
            ("GiB", None),
            ("1.5GiB", None),
            ("99999999TiB", None),
            ("1x", None),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
    }
}
