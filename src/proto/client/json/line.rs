//! One command as a line of JSON: an object with an id and the field of its method.
//!
//! Read by hand, since this is the hot path of clients: a derived struct has a place for each of the twelve
//! requests, a kilobyte that is moved several times for one command. Here only the request that counts is
//! kept. (Untagged enums and `flatten` are no way out: they buffer, and `RawValue` fails in them.)

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use super::super::command::{Command, Request, SendRequest};
use super::fields::Object;

/// See the module.
pub(super) struct Line<'a>(pub(super) Command<'a>);

/// The fields of a command. Requests are in the schema's order: of several the first counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Field {
    Id,
    Connect,
    Ping,
    Subscribe,
    Unsubscribe,
    Publish,
    Presence,
    PresenceStats,
    History,
    Rpc,
    Send,
    Refresh,
    SubRefresh,
    #[serde(other)]
    Unknown,
}

/// `ping`, which has no fields.
#[derive(serde::Deserialize)]
struct Ping {}

/// The requests of a line so far.
struct Requests<'a> {
    first: Field,
    /// That of the field.
    request: Request<'a>,
    /// Alone it counts without an id.
    send: Option<SendRequest<'a>>,
}

impl<'de> Requests<'de> {
    /// Reads the value of a field, and keeps it if it is the first one. `null` is as good as no field.
    #[inline]
    fn read<A: MapAccess<'de>, T: Deserialize<'de>>(
        &mut self,
        map: &mut A,
        field: Field,
        request: impl FnOnce(T) -> Request<'de>,
    ) -> Result<(), A::Error> {
        if let Some(Object(value)) = map.next_value::<Option<Object<T>>>()?
            && field < self.first
        {
            self.first = field;
            self.request = request(value);
        }
        Ok(())
    }

    fn command(self, id: u32) -> Command<'de> {
        let request = match (id, self.send) {
            (0, send) => send.map_or(Request::Pong, Request::Send),
            (_, Some(send)) if Field::Send < self.first => Request::Send(send),
            _ => self.request,
        };
        Command { id, request }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Line<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LineVisitor;

        impl<'de> Visitor<'de> for LineVisitor {
            type Value = Line<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Line<'de>, A::Error> {
                let (mut id, mut seen) = (0, 0u16);
                let mut all =
                    Requests { first: Field::Unknown, request: Request::Unknown, send: None };
                while let Some(field) = map.next_key::<Field>()? {
                    let bit = 1 << field as u16;
                    if seen & bit != 0 && field != Field::Unknown {
                        return Err(A::Error::custom("a field twice"));
                    }
                    seen |= bit;
                    let map = &mut map;
                    match field {
                        Field::Id => id = map.next_value::<Option<u32>>()?.unwrap_or_default(),
                        Field::Connect => all.read(map, field, Request::Connect)?,
                        Field::Ping => all.read(map, field, |Ping {}| Request::Ping)?,
                        Field::Subscribe => all.read(map, field, Request::Subscribe)?,
                        Field::Unsubscribe => all.read(map, field, Request::Unsubscribe)?,
                        Field::Publish => all.read(map, field, Request::Publish)?,
                        Field::Presence => all.read(map, field, Request::Presence)?,
                        Field::PresenceStats => all.read(map, field, Request::PresenceStats)?,
                        Field::History => all.read(map, field, Request::History)?,
                        Field::Rpc => all.read(map, field, Request::Rpc)?,
                        Field::Send => {
                            all.send = map.next_value::<Option<Object<_>>>()?.map(|send| send.0);
                        }
                        Field::Refresh => all.read(map, field, Request::Refresh)?,
                        Field::SubRefresh => all.read(map, field, Request::SubRefresh)?,
                        Field::Unknown => _ = map.next_value::<IgnoredAny>()?,
                    }
                }
                Ok(Line(all.command(id)))
            }
        }
        deserializer.deserialize_map(LineVisitor)
    }
}
