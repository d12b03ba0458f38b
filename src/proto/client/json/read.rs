//! JSON commands: a line of a text frame in, a [`Command`] out. The fields are declared with the
//! values, in `command.rs`; what is peculiar to JSON is here.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::super::command::{Command, ConnectRequest, EmulationRequest};
use super::super::malformed::Malformed;
use super::fields::{Object, text};
use super::line::Line;

/// Reads one command: one JSON object. Unknown fields are ignored.
pub(crate) fn parse(line: &str) -> Result<Command<'_>, Malformed> {
    if line.is_empty() {
        return Err(Malformed::Blank);
    }
    match serde_json::from_str::<Line<'_>>(line) {
        Ok(Line(command)) => Ok(command),
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
