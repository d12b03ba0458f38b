//! JSON commands: a line of a text frame in, a [`Command`] out. The fields are declared with the
//! values, in `command.rs`; what is peculiar to JSON is here.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::super::command::{
    Command, ConnectRequest, EmulationRequest, Envelope, Payload, SubscribeRequest,
};
use super::super::frame::Malformed;
use crate::base::filter::FilterNode;

/// Reads one command: one JSON object. Unknown fields are ignored.
pub(crate) fn parse(line: &str) -> Result<Command<'_>, Malformed> {
    if line.is_empty() {
        return Err(Malformed::Blank);
    }
    match serde_json::from_str::<Object<Envelope<'_>>>(line) {
        Ok(Object(envelope)) => Ok(envelope.command()),
        Err(error) => Err(Malformed::Json { column: error.column() }),
    }
}

/// See [`connect_request`](super::super::connect_request).
pub(crate) fn connect_request(text: &str) -> Result<ConnectRequest<'_>, Malformed> {
    if text.is_empty() {
        return Ok(ConnectRequest::default());
    }
    match serde_json::from_str::<Object<ConnectRequest<'_>>>(text) {
        Ok(Object(request)) => Ok(request),
        Err(error) => Err(Malformed::Json { column: error.column() }),
    }
}

/// See [`emulation_request`](super::super::emulation_request).
pub(crate) fn emulation_request(text: &str) -> Result<EmulationRequest<'_>, Malformed> {
    match serde_json::from_str::<Object<JsonEmulation<'_>>>(text) {
        Ok(Object(JsonEmulation { node, session, data })) => {
            let data = match data {
                Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
                Cow::Owned(text) => Cow::Owned(text.into_bytes()),
            };
            Ok(EmulationRequest { node, session, data })
        }
        Err(error) => Err(Malformed::Json { column: error.column() }),
    }
}

/// Commands stand in a text here.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct JsonEmulation<'a> {
    #[serde(borrow, deserialize_with = "text")]
    node: Cow<'a, str>,
    #[serde(borrow, deserialize_with = "text")]
    session: Cow<'a, str>,
    #[serde(borrow, deserialize_with = "text")]
    data: Cow<'a, str>,
}

/// True when `data` is one JSON text: what a JSON connection can be shown (protocol, section 2.1).
/// Costs no stack, however deep it is nested.
pub fn is_json(data: &[u8]) -> bool {
    std::str::from_utf8(data).is_ok_and(|text| serde_json::from_str::<&RawValue>(text).is_ok())
}

impl<'de: 'a, 'a> Deserialize<'de> for Payload<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        Ok(Self(Cow::Borrowed(raw.get().as_bytes())))
    }
}

/// A `T` that must be a JSON object: a derived struct alone would take an array of its fields too.
struct Object<T>(T);

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

/// A payload that may be missing; `null` is one.
pub(crate) fn payload<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Payload<'de>>, D::Error> {
    Payload::deserialize(deserializer).map(Some)
}

/// An object that may be `null` or missing.
pub(crate) fn object<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|object| object.0))
}

/// [`subs`](super::super::ConnectRequest::subs) of a connect. Of a key that comes twice the last counts.
pub(crate) fn subs<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<Cow<'de, str>, SubscribeRequest<'de>>, D::Error> {
    let map = Option::<Entries<'de, Object<SubscribeRequest<'de>>>>::deserialize(deserializer)?;
    Ok(map.into_iter().flat_map(|map| map.0).map(|(key, value)| (key.0, value.0)).collect())
}

/// [`headers`](super::super::ConnectRequest::headers) of a connect. Of a key that comes twice the last counts.
pub(crate) fn headers<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<Cow<'de, str>, Cow<'de, str>>, D::Error> {
    let map = Option::<Entries<'de, Text<'de>>>::deserialize(deserializer)?;
    Ok(map.into_iter().flat_map(|map| map.0).map(|(key, value)| (key.0, value.0)).collect())
}

/// [`SubscribeRequest::tf`], an object that may be `null` or missing.
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

/// How many there are in [`SubRefreshRequest::track`](super::super::SubRefreshRequest::track).
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

/// How many there are in [`SubRefreshRequest::untrack`](super::super::SubRefreshRequest::untrack).
pub(crate) fn untrack<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    Ok(absent::<D, Vec<Text<'de>>>(deserializer)?.len())
}
