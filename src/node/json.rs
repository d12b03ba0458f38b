//! Objects that others send, read leniently: unknown fields are ignored, and `null` is an absent one, but
//! where any JSON may stand.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// A field that may be absent or `null`.
pub(super) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Any JSON, `null` among it.
pub(super) fn any<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// The fault of JSON that was not understood: the field and the types, with line and column. Never a
/// word of it but the names of its fields, since the rest may be a payload.
pub(super) fn flaw(text: &str, fault: &serde_json::Error) -> String {
    let at = format!("line {}, column {}", fault.line(), fault.column());
    if !fault.is_data() {
        return format!("not JSON ({at})");
    }
    let said = fault.to_string();
    // "invalid type: string \"...\", expected a sequence at line 1 column 9": without the value.
    let given = said.strip_prefix("invalid type: ").and_then(|rest| rest.split([' ', ',']).next());
    let wanted = said.rsplit_once(", expected ").map(|(_, wanted)| wanted);
    let wanted = wanted.map(|wanted| wanted.split(" at line ").next().unwrap_or(wanted));
    let what = match (given, wanted) {
        (Some(given), Some(wanted)) => format!("{given} where {wanted} is expected"),
        (None, Some(wanted)) => format!("a value where {wanted} is expected"),
        _ => "not as agreed".to_owned(),
    };
    let offset: usize =
        text.split_inclusive('\n').take(fault.line().saturating_sub(1)).map(str::len).sum();
    match field_at(text, text, offset + fault.column()) {
        Some(field) => format!("{field}: {what} ({at})"),
        None => format!("{what} ({at})"),
    }
}

/// The path of the field whose value holds the byte at `offset` of `text`; `object` is a part of that.
fn field_at(text: &str, object: &str, offset: usize) -> Option<String> {
    let fields: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(object).ok()?;
    let holds = |value: &RawValue| {
        let begin = (value.get().as_ptr() as usize).checked_sub(text.as_ptr() as usize);
        begin.is_some_and(|begin| (begin..=begin + value.get().len()).contains(&offset))
    };
    let (name, value) = fields.into_iter().find(|(_, value)| holds(value))?;
    Some(match field_at(text, value.get(), offset) {
        Some(inner) => format!("{name}.{inner}"),
        None => name.into_owned(),
    })
}

/// Makes structs whose fields may all be absent or `null`; those behind a lone `;` are any JSON.
macro_rules! objects {
    ($($(#[$attr:meta])* struct $name:ident $(<$life:lifetime>)? {
        $($field:ident: $type:ty,)*
        $(; $($json:ident,)*)?
    })*) => {$(
        $(#[$attr])*
        #[derive(Clone, Debug, Default, serde::Deserialize)]
        #[serde(default)]
        pub(super) struct $name $(<$life>)? {
            $(
                #[serde(deserialize_with = "crate::node::json::or_default")]
                pub(super) $field: $type,
            )*
            $($(
                #[serde(borrow, deserialize_with = "crate::node::json::any")]
                pub(super) $json: Option<&'a serde_json::value::RawValue>,
            )*)?
        }
    )*};
}

pub(super) use objects;

#[cfg(test)]
mod tests {
    use super::*;

    objects! {
        struct Outer<'a> {
            channel: String,
            limit: u32,
            tags: BTreeMap<String, String>,
            ;
            data,
        }
    }

    #[test]
    fn a_flaw_names_field_and_types_and_no_value() {
        for (text, expected) in [
            (
                r#"{"channel": 7}"#,
                "channel: integer where a string is expected (line 1, column 13)",
            ),
            (
                r#"{"limit": "secret, expected x"}"#,
                "limit: string where u32 is expected (line 1, column 30)",
            ),
            ("{\n\"limit\": -1}", "limit: a value where u32 is expected (line 2, column 11)"),
            (r#"{"tags": {"a": "b", "c": ["secret"]}}"#, "tags.c: "),
            (
                r#"{"data": {"channel": 1}, "channel": {}}"#,
                "channel: map where a string is expected",
            ),
            (r#"{"channel": "#, "not JSON (line 1, column 12)"),
            ("secret", "not JSON (line 1, column 1)"),
        ] {
            let fault = serde_json::from_str::<Outer<'_>>(text).unwrap_err();
            let said = flaw(text, &fault);
            assert!(said.starts_with(expected), "{said:?} of {text}");
            assert!(!said.contains("secret"), "{said}");
        }
    }
}
