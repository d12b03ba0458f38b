//! The client protocol as pure functions: frames to commands, results to replies, in JSON and in
//! Protobuf.
//!
//! The session calls it; it knows no connection, no channel's state and no transport framing. What
//! is asked and said are values that no encoding owns ([`command`], [`reply`]); payloads alone are
//! as they came.
//!
//! ```text
//! text frame ---commands()---------> Command{id, Request}  ...session, hub...  Reply --put_reply()--> bytes
//! binary frame --binary_commands()---^  '--> Malformed: close 3501             Push  --put_push()---> bytes
//! ```

pub mod codes;
pub mod command;
mod frame;
mod json;
mod malformed;
pub mod nodes;
mod protobuf;
pub mod reply;
#[allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    reason = "made by a tool, of all messages: those of features that are not built, too"
)]
pub(crate) mod schema;
#[cfg(test)]
mod tests;

pub use codes::{Disconnect, ErrorCode, Unsubscribed, comes_back, http_status};
pub use command::{
    ChannelRequest, Command, ConnectRequest, EmulationRequest, HistoryRequest, Payload,
    PublishRequest, RefreshRequest, Request, RpcRequest, SendRequest, StreamPosition,
    SubRefreshRequest, SubscribeRequest,
};
pub use frame::{Commands, binary_commands, commands};
pub use json::is_json;
pub use malformed::Malformed;
pub use reply::{
    Body, ConnectResult, DataForm, Publication, Push, Reply, SubscribePush, SubscribeResult,
};

use crate::base::form::Form;
use crate::base::info::ClientInfo;

/// True when what is known of a client can be shown to a JSON connection (section 2.1).
pub fn info_is_json(info: &ClientInfo<'_>) -> bool {
    [info.conn_info, info.chan_info].iter().all(|part| part.is_empty() || is_json(part))
}

impl From<Form> for Encoding {
    fn from(form: Form) -> Self {
        if form.is_protobuf() { Self::Protobuf } else { Self::Json }
    }
}

/// Appends `"channel":{"offset":N,"epoch":"E"}`: a member of the `subs` of a connect request that asks for
/// what was missed.
pub fn put_position(out: &mut Vec<u8>, channel: &str, epoch: &str, offset: u64) {
    json::put_position(out, channel, epoch, offset);
}

/// Reads what a one-way connection begins with (section 8); nothing is a request without fields.
///
/// # Errors
/// It isn't one.
pub fn connect_request(text: &str) -> Result<ConnectRequest<'_>, Malformed> {
    json::connect_request(text)
}

/// Reads the body of a request to the up-link (section 7).
///
/// # Errors
/// It isn't one.
pub fn emulation_request(
    body: &[u8],
    encoding: Encoding,
) -> Result<EmulationRequest<'_>, Malformed> {
    match encoding {
        Encoding::Json => {
            let text = std::str::from_utf8(body);
            json::emulation_request(text.map_err(|_| Malformed::Json { column: 0 })?)
        }
        Encoding::Protobuf => protobuf::emulation_request(body),
    }
}

/// The text of a JSON string literal, in which nodes send commands to each other; `None` for anything else.
pub fn text_of_literal(literal: &[u8]) -> Option<String> {
    serde_json::from_slice(literal).ok()
}

/// A text as a JSON string literal.
pub fn literal_of_text(text: &str) -> Vec<u8> {
    // Nothing about a text can fail to be written.
    serde_json::to_vec(text).unwrap_or_default()
}

/// Appends a push as a connection of that form reads it: in a Reply, bare where nothing else is said
/// (section 8), or only the publication for the list of an answer.
pub fn put_push(out: &mut Vec<u8>, form: Form, channel: &str, push: &Push<'_>) {
    match (form.is_one_way(), push) {
        (false, _) => Encoding::from(form).put_push(out, channel, push),
        (true, Push::Publication(publication)) if form.is_poll() => {
            // The answer names the epoch.
            json::put_publication(out, &Publication { epoch: None, ..*publication });
        }
        (true, _) => json::put_bare_push(out, channel, push),
    }
}

/// Appends a connect result, alone: the answer to a poll, which has the position of every channel.
pub fn put_connect_result(out: &mut Vec<u8>, result: &ConnectResult<'_>) {
    json::put_connect_result(out, result);
}

/// How a connection writes the client protocol, for life (protocol, section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// One JSON object a line; the caller joins lines with `\n`.
    Json,
    /// Protobuf messages, each with its length in front; the caller joins them with nothing.
    Protobuf,
}

impl Encoding {
    /// A ping: the Reply with nothing in it (section 3).
    pub const fn ping(self) -> &'static [u8] {
        match self {
            Self::Json => b"{}",
            Self::Protobuf => &[0],
        }
    }

    /// Appends one Reply: JSON without line feed, Protobuf with its length in front.
    ///
    /// Returns where the bytes of a [`Body::Elsewhere`] belong, as an index into `out` as it is then;
    /// `None` when there are none.
    pub fn put_reply(self, out: &mut Vec<u8>, id: u32, reply: &Reply<'_>) -> Option<usize> {
        match self {
            Self::Json => json::put_reply(out, id, reply),
            Self::Protobuf => protobuf::put_reply(out, id, reply),
        }
    }

    /// Appends one Reply that carries a push, as [`put_reply`](Self::put_reply) does. `channel` is
    /// `""` for those that have none (section 9.4).
    pub fn put_push(self, out: &mut Vec<u8>, channel: &str, push: &Push<'_>) {
        match self {
            Self::Json => json::put_push(out, channel, push),
            Self::Protobuf => protobuf::put_push(out, channel, push),
        }
    }

    /// Appends the list of a [`SubscribeResult`], to be its `publications`; nothing when there are
    /// none.
    pub fn put_publications<'p>(
        self,
        out: &mut Vec<u8>,
        publications: impl IntoIterator<Item = Publication<'p>>,
    ) {
        match self {
            Self::Json => json::put_publications(out, publications),
            Self::Protobuf => protobuf::put_publications(out, publications),
        }
    }

    /// Appends a whole HistoryResult, to be the body of a [`Reply::History`].
    pub fn put_history<'p>(
        self,
        out: &mut Vec<u8>,
        publications: impl IntoIterator<Item = Publication<'p>>,
        epoch: &str,
        offset: u64,
    ) {
        match self {
            Self::Json => json::put_history(out, publications, epoch, offset),
            Self::Protobuf => protobuf::put_history(out, publications, epoch, offset),
        }
    }

    /// Appends a whole PresenceResult, to be the body of a [`Reply::Presence`]. Its keys are the
    /// client ids, each of which comes once.
    pub fn put_presence<'p>(
        self,
        out: &mut Vec<u8>,
        entries: impl IntoIterator<Item = ClientInfo<'p>>,
    ) {
        match self {
            Self::Json => json::put_presence(out, entries),
            Self::Protobuf => protobuf::put_presence(out, entries),
        }
    }
}
