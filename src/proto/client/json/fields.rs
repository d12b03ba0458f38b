//! Fields of JSON objects as this protocol has them: `null` is absent, an array is no object. They know no
//! command; `command.rs` names them at its fields.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::base::filter::FilterNode;

/// A `T` that must be a JSON object: a derived struct alone would take an array of its fields too.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// A string that borrows from the frame unless it had escapes.
#[derive(serde::Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// A map with values that may be `null`, which leaves the key out.
struct Entries<'de, V>(Vec<(Text<'de>, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Entries<'de, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for EntriesVisitor<V> {
            type Value = Entries<'de, V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                // At most one entry for four bytes of the frame, which has its own limit.
                let mut entries = Vec::new();
                while let Some((key, value)) = map.next_entry::<Text<'de>, Option<V>>()? {
                    if let Some(value) = value {
                        entries.push((key, value));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor(PhantomData))
    }
}

/// A value where `null` is the same as nothing.
pub(crate) fn absent<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// A string where `null` is the same as nothing.
pub(crate) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Cow<'de, str>, D::Error> {
    Ok(Option::<Text<'de>>::deserialize(deserializer)?.map(|text| text.0).unwrap_or_default())
}

/// A value that may be missing; `null` is one.
pub(crate) fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(deserializer).map(Some)
}

/// An object that may be `null` or missing.
pub(crate) fn object<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|object| object.0))
}

/// Objects by name, or nothing. Of a name that comes twice the last counts.
pub(crate) fn objects<'de, D, T>(deserializer: D) -> Result<BTreeMap<Cow<'de, str>, T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let map = Option::<Entries<'de, Object<T>>>::deserialize(deserializer)?;
    Ok(map.into_iter().flat_map(|map| map.0).map(|(key, value)| (key.0, value.0)).collect())
}

/// Strings by name, or nothing. Of a name that comes twice the last counts.
pub(crate) fn texts<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<Cow<'de, str>, Cow<'de, str>>, D::Error> {
    let map = Option::<Entries<'de, Text<'de>>>::deserialize(deserializer)?;
    Ok(map.into_iter().flat_map(|map| map.0).map(|(key, value)| (key.0, value.0)).collect())
}

/// A tag filter: an object that may be `null` or missing.
pub(crate) fn filter<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<FilterNode>, D::Error> {
    /// A node with the rules of this protocol: `null` is absent, an array is no node.
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Node {
        #[serde(deserialize_with = "absent")]
        op: String,
        #[serde(deserialize_with = "absent")]
        key: String,
        #[serde(deserialize_with = "absent")]
        cmp: String,
        #[serde(deserialize_with = "absent")]
        val: String,
        #[serde(deserialize_with = "absent")]
        vals: Vec<String>,
        #[serde(deserialize_with = "absent")]
        nodes: Vec<Object<Self>>,
    }

    impl From<Node> for FilterNode {
        fn from(node: Node) -> Self {
            let Node { op, key, cmp, val, vals, nodes } = node;
            Self { op, key, cmp, val, vals, nodes: nodes.into_iter().map(|n| n.0.into()).collect() }
        }
    }

    Ok(object::<D, Node>(deserializer)?.map(Into::into))
}

/// The number of batches of signed keys.
pub(crate) fn track<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    #[derive(serde::Deserialize)]
    struct Batch<'a> {
        #[serde(borrow, default, rename = "signature", deserialize_with = "text")]
        _signature: Cow<'a, str>,
        #[serde(borrow, default, rename = "items", deserialize_with = "absent")]
        _items: Vec<Object<Item<'a>>>,
    }

    #[derive(serde::Deserialize)]
    struct Item<'a> {
        #[serde(borrow, default, rename = "key", deserialize_with = "text")]
        _key: Cow<'a, str>,
        #[serde(default, rename = "version", deserialize_with = "absent")]
        _version: u64,
    }

    Ok(absent::<D, Vec<Object<Batch<'de>>>>(deserializer)?.len())
}

/// The number of keys.
pub(crate) fn untrack<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    Ok(absent::<D, Vec<Text<'de>>>(deserializer)?.len())
}
