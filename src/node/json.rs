//! Objects that others send, read leniently: unknown fields are ignored, and `null` is an absent one, but
//! where any JSON may stand.

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
