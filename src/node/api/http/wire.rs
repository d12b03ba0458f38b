//! Parameters of the server API's methods as JSON (server API, sections 1 to 3). Read as `node/json.rs` says.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::decode;
use super::lists::{List, Texts};
use crate::base::limits::{API_COMMANDS_MAX, API_ENTRIES_MAX, API_SPARED_MAX, API_TAGS_MAX};
use crate::node::json::objects;

objects! {
    /// Common fields of publish and broadcast.
    struct Content<'a> {
        b64data: String,
        skip_history: bool,
        tags: Texts<API_TAGS_MAX>,
        idempotency_key: String,
        delta: bool,
        version: u64,
        version_epoch: String,
        ;
        data,
    }
    struct Channel {
        channel: String,
    }
    struct Channels {
        channels: List<String, API_ENTRIES_MAX>,
    }
    struct Subscribe<'a> {
        channel: String,
        user: String,
        expire_at: i64,
        b64info: String,
        client: String,
        b64data: String,
        recover_since: Option<Since>,
        r#override: Overrides,
        session: String,
        ;
        info,
        data,
    }
    struct Overrides {
        presence: Option<Setting>,
        join_leave: Option<Setting>,
        force_recovery: Option<Setting>,
        force_positioning: Option<Setting>,
        force_push_join_leave: Option<Setting>,
    }
    struct Setting {
        value: bool,
    }
    struct Unsubscribe {
        channel: String,
        user: String,
        client: String,
        session: String,
    }
    struct Disconnect {
        user: String,
        disconnect: Option<Reason>,
        client: String,
        whitelist: List<String, API_SPARED_MAX>,
        session: String,
    }
    struct Reason {
        code: u32,
        reason: String,
    }
    struct Refresh<'a> {
        user: String,
        client: String,
        expired: bool,
        expire_at: i64,
        session: String,
        b64info: String,
        ;
        info,
    }
    struct History {
        channel: String,
        limit: i64,
        since: Option<Since>,
        reverse: bool,
    }
    struct Since {
        offset: u64,
        epoch: String,
    }
    struct Pattern {
        pattern: String,
    }
    struct Rpc {
        method: String,
    }
    /// Fields that decide what becomes of a call to a map or a polled channel.
    struct Keyed {
        channel: String,
        key: String,
        version: u64,
    }
    struct Batch<'a> {
        parallel: bool,
        ;
        commands,
    }
    /// One command of the old form.
    struct Command<'a> {
        id: u64,
        method: Option<Method>,
        ;
        params,
    }
}

/// Commands of a batch, each still to be read.
pub(super) type Commands<'a> = List<&'a RawValue, API_COMMANDS_MAX>;

/// A method of the old form, by name or number.
#[derive(Clone, Debug)]
pub(super) enum Method {
    Number(u32),
    Name(String),
}

// By hand, since a derived untagged one first keeps all that is there, a list of millions, too.
impl<'de> Deserialize<'de> for Method {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrNumber;

        impl Visitor<'_> for NameOrNumber {
            type Value = Method;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name or number of a method")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Method, E> {
                u32::try_from(number).map(Method::Number).map_err(E::custom)
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Method, E> {
                Ok(Method::Name(name.to_owned()))
            }
        }
        deserializer.deserialize_any(NameOrNumber)
    }
}

/// One command of a batch: the methods that it names, in its order, with their parameters. Other fields
/// are not kept.
#[derive(Debug, Default)]
pub(super) struct InBatch<'a>(pub(super) Vec<(&'static str, &'a RawValue)>);

impl<'de> Deserialize<'de> for InBatch<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = InBatch<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a command")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut known: Vec<(&'static str, &RawValue)> = Vec::new();
                while let Some(name) = map.next_key::<Cow<'de, str>>()? {
                    let value = map.next_value::<&RawValue>()?;
                    let Some(name) = decode::names().find(|known| *known == name) else {
                        continue;
                    };
                    known.retain(|(before, _)| *before != name);
                    known.push((name, value));
                }
                Ok(InBatch(known))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}
