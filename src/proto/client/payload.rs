//! What a payload may be.

use serde::de::IgnoredAny;
use serde_json::value::RawValue;

/// True when `data` is one JSON value in UTF-8: only then may it go to a JSON connection (another
/// one is closed with 3506). Looks at every byte; keeps nothing; nesting costs no stack.
pub fn is_json(data: &[u8]) -> bool {
    // The parser does not look at the encoding of strings that it skips.
    simdutf8::basic::from_utf8(data)
        .is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok())
}

/// What a namespace takes as publications: option `publication_data_format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DataFormat {
    /// `""`: anything but nothing.
    #[default]
    NotEmpty,
    /// `json`: any JSON value.
    Json,
    /// `json_object`: a JSON object.
    JsonObject,
    /// `binary`: anything.
    Binary,
}

impl DataFormat {
    /// Reads the option's value; `None` for a word that it doesn't know.
    pub fn from_option(value: &str) -> Option<Self> {
        Some(match value {
            "" => Self::NotEmpty,
            "json" => Self::Json,
            "json_object" => Self::JsonObject,
            "binary" => Self::Binary,
            _ => return None,
        })
    }

    /// May these bytes be published? If not: [`ErrorCode::BadRequest`](super::ErrorCode).
    pub fn accepts(self, data: &[u8]) -> bool {
        match self {
            Self::Binary => true,
            Self::NotEmpty => !data.is_empty(),
            Self::Json => is_json(data),
            Self::JsonObject => data.trim_ascii_start().starts_with(b"{") && is_json(data),
        }
    }

    /// The same for a payload that came in a JSON command, and so is JSON: one byte is looked at.
    pub fn accepts_json(self, data: Option<&RawValue>) -> bool {
        match self {
            Self::Binary => true,
            Self::NotEmpty | Self::Json => data.is_some(),
            // Raw values carry no white space around them.
            Self::JsonObject => data.is_some_and(|data| data.get().starts_with('{')),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_told_from_other_bytes() {
        for json in ["{}", "[]", "null", "0", "-1.5e3", "\"\"", "true", " {\"a\":[1,{}]}\n"] {
            assert!(is_json(json.as_bytes()), "{json}");
        }
        for other in [
            &b""[..],
            b" ",
            b"{",
            b"{}{}",
            b"{} x",
            b"nul",
            b"01",
            b"'a'",
            b"{a:1}",
            b"[1,]",
            b"\"a\nb\"",
            b"\"\xff\"",
            b"\xef\xbb\xbf{}",
            b"\x00",
            b"NaN",
        ] {
            assert!(!is_json(other), "{other:?}");
        }
    }

    #[test]
    fn deep_nesting_needs_no_stack() {
        let deep = "[".repeat(1 << 20) + &"]".repeat(1 << 20);
        assert!(is_json(deep.as_bytes()));
        assert!(!is_json(&deep.as_bytes()[..deep.len() - 1]));
    }

    #[test]
    fn formats_take_what_they_say() {
        use DataFormat::{Binary, Json, JsonObject, NotEmpty};
        let rows: [(&[u8], [bool; 4]); 6] = [
            // "", json, json_object, binary
            (b"", [false, false, false, true]),
            (b"{}", [true, true, true, true]),
            (b" {\"a\":1}", [true, true, true, true]),
            (b"[1]", [true, true, false, true]),
            (b"{", [true, false, false, true]),
            (b"\xff", [true, false, false, true]),
        ];
        for (data, wanted) in rows {
            let got = [NotEmpty, Json, JsonObject, Binary].map(|format| format.accepts(data));
            assert_eq!(got, wanted, "{data:?}");
            let Ok(raw) = serde_json::from_slice::<&RawValue>(data) else { continue };
            let got =
                [NotEmpty, Json, JsonObject, Binary].map(|format| format.accepts_json(Some(raw)));
            assert_eq!(got, wanted, "{data:?}");
        }
        assert_eq!(
            [NotEmpty, Json, JsonObject, Binary].map(|format| format.accepts_json(None)),
            [false, false, false, true]
        );
    }

    #[test]
    fn options_are_read() {
        assert_eq!(DataFormat::from_option(""), Some(DataFormat::NotEmpty));
        assert_eq!(DataFormat::from_option("json"), Some(DataFormat::Json));
        assert_eq!(DataFormat::from_option("json_object"), Some(DataFormat::JsonObject));
        assert_eq!(DataFormat::from_option("binary"), Some(DataFormat::Binary));
        assert_eq!(DataFormat::from_option("JSON"), None);
    }
}
