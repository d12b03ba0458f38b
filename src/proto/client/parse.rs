//! JSON commands: a text frame in, [`Command`]s out.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use super::codes::Disconnect;
use super::command::{
    ChannelRequest, Command, ConnectRequest, HistoryRequest, PublishRequest, RefreshRequest,
    Request, RpcRequest, SendRequest, SubRefreshRequest, SubscribeRequest,
};

/// A frame that is not a batch of commands. The peer is closed with [`Disconnect::BadRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// An empty frame, or a blank line in one.
    #[error("blank line where a command should be")]
    Blank,
    /// Not JSON, not an object, a field of the wrong type, a number out of range, a field twice.
    #[error("not a command, at byte {column} of its line")]
    Json {
        /// Where in the line, from 1.
        column: usize,
    },
}

impl Malformed {
    /// What the peer is told.
    pub fn disconnect(self) -> Disconnect {
        Disconnect::BadRequest
    }
}

/// The commands of one text frame, in order: joined by `\n`, one more `\n` at the end allowed.
///
/// Nothing is looked at before it is asked for, so the commands before a malformed one come first.
pub fn commands(frame: &str) -> Commands<'_> {
    Commands { frame, consumed: 0, ended: false }
}

/// Iterator over the commands of a frame; see [`commands`]. Ends after the first error.
#[derive(Clone, Debug)]
pub struct Commands<'a> {
    frame: &'a str,
    /// `consumed <= frame.len()`, and always just behind a line feed, at the start or at the end.
    consumed: usize,
    ended: bool,
}

impl<'a> Commands<'a> {
    /// Bytes of the frame that the commands so far took, with the line feed behind each.
    ///
    /// To pause, keep `&frame[consumed..]` unless [`is_done`](Self::is_done), and give it to
    /// [`commands`] again: the rest yields what would have followed here.
    pub fn consumed(&self) -> usize {
        self.consumed
    }

    /// True when nothing more will come.
    pub fn is_done(&self) -> bool {
        self.ended
    }
}

impl<'a> Iterator for Commands<'a> {
    type Item = Result<Command<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let rest = &self.frame[self.consumed..];
        let line = match rest.as_bytes().iter().position(|&byte| byte == b'\n') {
            Some(at) => {
                self.consumed += at + 1;
                &rest[..at]
            }
            None => {
                self.consumed = self.frame.len();
                rest
            }
        };
        let command = parse(line);
        self.ended = self.consumed == self.frame.len() || command.is_err();
        Some(command)
    }
}

/// Reads one command: one JSON object. Unknown fields are ignored.
pub fn parse(line: &str) -> Result<Command<'_>, Malformed> {
    if line.is_empty() {
        return Err(Malformed::Blank);
    }
    match serde_json::from_str::<Object<Wire<'_>>>(line) {
        Ok(Object(wire)) => Ok(wire.command()),
        Err(error) => Err(Malformed::Json { column: error.column() }),
    }
}

/// A Command as it stands in JSON. One struct of options: `RawValue` fails at run time inside
/// untagged enums and `flatten`, which buffer.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Wire<'a> {
    #[serde(deserialize_with = "absent")]
    id: u32,
    #[serde(borrow)]
    connect: Option<Object<ConnectRequest<'a>>>,
    ping: Option<Object<Empty>>,
    #[serde(borrow)]
    subscribe: Option<Object<SubscribeRequest<'a>>>,
    #[serde(borrow)]
    unsubscribe: Option<Object<ChannelRequest<'a>>>,
    #[serde(borrow)]
    publish: Option<Object<PublishRequest<'a>>>,
    #[serde(borrow)]
    presence: Option<Object<ChannelRequest<'a>>>,
    #[serde(borrow)]
    presence_stats: Option<Object<ChannelRequest<'a>>>,
    #[serde(borrow)]
    history: Option<Object<HistoryRequest<'a>>>,
    #[serde(borrow)]
    rpc: Option<Object<RpcRequest<'a>>>,
    #[serde(borrow)]
    send: Option<Object<SendRequest<'a>>>,
    #[serde(borrow)]
    refresh: Option<Object<RefreshRequest<'a>>>,
    #[serde(borrow)]
    sub_refresh: Option<Object<SubRefreshRequest<'a>>>,
}

impl<'a> Wire<'a> {
    fn command(self) -> Command<'a> {
        let id = self.id;
        Command { id, request: if id == 0 { self.unnumbered() } else { self.request() } }
    }

    /// Without an id nothing but a `send` is a request.
    fn unnumbered(self) -> Request<'a> {
        match self.send {
            Some(Object(send)) => Request::Send(send),
            None => Request::Pong,
        }
    }

    /// The first in the schema's order.
    fn request(self) -> Request<'a> {
        if let Some(Object(request)) = self.connect {
            Request::Connect(request)
        } else if self.ping.is_some() {
            Request::Ping
        } else if let Some(Object(request)) = self.subscribe {
            Request::Subscribe(request)
        } else if let Some(Object(request)) = self.unsubscribe {
            Request::Unsubscribe(request)
        } else if let Some(Object(request)) = self.publish {
            Request::Publish(request)
        } else if let Some(Object(request)) = self.presence {
            Request::Presence(request)
        } else if let Some(Object(request)) = self.presence_stats {
            Request::PresenceStats(request)
        } else if let Some(Object(request)) = self.history {
            Request::History(request)
        } else if let Some(Object(request)) = self.rpc {
            Request::Rpc(request)
        } else if let Some(Object(request)) = self.send {
            Request::Send(request)
        } else if let Some(Object(request)) = self.refresh {
            Request::Refresh(request)
        } else if let Some(Object(request)) = self.sub_refresh {
            Request::SubRefresh(request)
        } else {
            Request::Unknown
        }
    }
}

/// A request without fields.
#[derive(serde::Deserialize)]
struct Empty {}

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
pub(super) fn absent<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// A string where `null` is the same as nothing.
pub(super) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Cow<'de, str>, D::Error> {
    Ok(Option::<Text<'de>>::deserialize(deserializer)?.map(|text| text.0).unwrap_or_default())
}

/// An object that may be `null` or missing.
pub(super) fn object<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|object| object.0))
}

/// [`ConnectRequest::subs`]. Of a key that comes twice the last counts.
pub(super) fn subs<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<Cow<'de, str>, SubscribeRequest<'de>>, D::Error> {
    let map = Option::<Entries<'de, Object<SubscribeRequest<'de>>>>::deserialize(deserializer)?;
    Ok(map.into_iter().flat_map(|map| map.0).map(|(key, value)| (key.0, value.0)).collect())
}

/// [`ConnectRequest::headers`]. Of a key that comes twice the last counts.
pub(super) fn headers<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<Cow<'de, str>, Cow<'de, str>>, D::Error> {
    let map = Option::<Entries<'de, Text<'de>>>::deserialize(deserializer)?;
    Ok(map.into_iter().flat_map(|map| map.0).map(|(key, value)| (key.0, value.0)).collect())
}
