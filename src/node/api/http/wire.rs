//! Parameters of the server API's methods as JSON (server API, sections 1 to 3). Read as `node/json.rs` says.

use std::fmt;

use compact_str::CompactString;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::lists::{List, Texts};
use super::methods;
use crate::base::limits::{API_COMMANDS_MAX, API_ENTRIES_MAX, API_SPARED_MAX, API_TAGS_MAX};
use crate::node::json::{objects, or_default};
use crate::shard::mail::PublishOptions;

/// Makes the parameters of methods that publish: where it goes, and the fields of a publication. They are read
/// in one pass, since most requests of an application are such.
macro_rules! publications {
    ($($name:ident { $to:ident: $type:ty })*) => {
        objects! {
            $(struct $name<'a> {
                $to: $type,
                b64data: String,
                skip_history: bool,
                tags: Texts<API_TAGS_MAX>,
                idempotency_key: CompactString,
                delta: bool,
                version: u64,
                version_epoch: CompactString,
                count_subscribers: bool,
                ;
                data,
            })*
        }

        $(impl<'a> $name<'a> {
            /// Parts the destination from the content.
            pub(super) fn parts(self) -> ($type, Content<'a>) {
                let Self { skip_history, delta, idempotency_key, version, version_epoch, .. } = self;
                let options =
                    PublishOptions { skip_history, delta, idempotency_key, version, version_epoch };
                let Self { $to, b64data, tags, data, count_subscribers: counts, .. } = self;
                ($to, Content { data, b64data, tags, options, counts })
            }
        })*
    };
}

publications! {
    Publish { channel: String }
    // A list that is too long ends the reading.
    Broadcast { channels: List<String, API_ENTRIES_MAX> }
}

/// The content of a publication, whatever it goes to.
#[derive(Debug)]
pub(super) struct Content<'a> {
    pub(super) data: Option<&'a RawValue>,
    /// The same in base64; empty: absent.
    pub(super) b64data: String,
    pub(super) tags: Texts<API_TAGS_MAX>,
    pub(super) options: PublishOptions,
    /// The result has the number of subscribers; for one channel only.
    pub(super) counts: bool,
}

objects! {
    struct Channel {
        channel: String,
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
        all_users: bool,
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
    /// One command of the old form.
    struct Command<'a> {
        id: u64,
        method: Option<Method>,
        ;
        params,
    }
}

/// A batch. Its list of commands is read no further than its bound, and their parameters later.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Batch<'a> {
    #[serde(deserialize_with = "or_default")]
    pub(super) parallel: bool,
    #[serde(borrow, deserialize_with = "or_default")]
    pub(super) commands: List<InBatch<'a>, API_COMMANDS_MAX>,
}

/// A method of the old form, by name or number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Known(&'static str),
    /// A number that no method has.
    UnknownNumber,
    UnknownName,
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
                let number = u32::try_from(number).map_err(E::custom)?;
                Ok(methods::by_number(number).map_or(Method::UnknownNumber, Method::Known))
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Method, E> {
                Ok(methods::by_name(name).map_or(Method::UnknownName, Method::Known))
            }
        }
        deserializer.deserialize_any(NameOrNumber)
    }
}

/// One command of a batch: of the methods that it names the first in the order of their numbers whose
/// parameters aren't `null`. Other fields are skipped; of a name that comes twice the last counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InBatch<'a> {
    /// `null`.
    Absent,
    /// It names no method.
    Unknown,
    Call(&'static str, &'a str),
}

impl<'de: 'a, 'a> Deserialize<'de> for InBatch<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Command;

        impl<'de> Visitor<'de> for Command {
            type Value = InBatch<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a command")
            }

            fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
                Ok(InBatch::Absent)
            }

            fn visit_some<D: Deserializer<'de>>(self, of: D) -> Result<Self::Value, D::Error> {
                of.deserialize_map(self)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut given = [None; methods::METHODS];
                while let Some(method) = map.next_key_seed(MethodName)? {
                    let Some(method) = method else {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    };
                    let params = map.next_value::<&RawValue>()?.get();
                    given[method] = (params != "null").then_some(params);
                }
                let first = methods::names()
                    .zip(given)
                    .find_map(|(name, params)| params.map(|params| InBatch::Call(name, params)));
                Ok(first.unwrap_or(InBatch::Unknown))
            }
        }
        deserializer.deserialize_option(Command)
    }
}

/// A field's name as the place of a method among all names; nothing is kept of another.
struct MethodName;

impl<'de> DeserializeSeed<'de> for MethodName {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for MethodName {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a method")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(methods::names().position(|known| known == name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_of_a_batch_is_one_call() {
        for (json, expected) in [
            ("null", InBatch::Absent),
            ("{}", InBatch::Unknown),
            (r#"{"batch":{},"x":[1,{"publish":2}]}"#, InBatch::Unknown),
            (r#"{"publish":null}"#, InBatch::Unknown),
            (r#"{"x":1,"info": {} }"#, InBatch::Call("info", "{}")),
            (r#"{"info":{},"publish":{"a":1}}"#, InBatch::Call("publish", r#"{"a":1}"#)),
            (r#"{"info":{},"publish":null}"#, InBatch::Call("info", "{}")),
            (r#"{"info":1,"info":2}"#, InBatch::Call("info", "2")),
            (r#"{"inf\u006f":1}"#, InBatch::Call("info", "1")),
        ] {
            assert_eq!(serde_json::from_str::<InBatch<'_>>(json).unwrap(), expected, "{json}");
        }
        for wrong in ["7", "[]", "\"publish\"", r#"{"publish"}"#] {
            assert!(serde_json::from_str::<InBatch<'_>>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_batch_has_a_list_of_commands_or_none() {
        let commands = |json: &str| {
            serde_json::from_str::<Batch<'_>>(json).map(|batch| batch.commands.0.len())
        };
        for (json, expected) in
            [("{}", 0), (r#"{"commands":null}"#, 0), (r#"{"commands":[{}]}"#, 1)]
        {
            assert_eq!(commands(json).unwrap(), expected, "{json}");
        }
        let long = format!(r#"{{"commands":[{}null]}}"#, "null,".repeat(API_COMMANDS_MAX));
        assert!(commands(&long).is_err() && commands(r#"{"commands":{}}"#).is_err());
    }
}
