//! The upgrade to WebSocket (RFC 6455 4.2), and the choice of the client protocol's format.

use super::head::{Body, Head};
use super::query::query_param;
use super::response::Refusal;
use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use tungstenite::handshake::derive_accept_key;

/// Bytes of a `Sec-WebSocket-Accept`: a SHA-1 digest in base64.
pub(super) const ACCEPT_BYTES: usize = 28;

/// Bytes of a `Sec-WebSocket-Key`: 16 in base64.
const KEY_BYTES: usize = 24;

/// Like other servers: bits behind the 16th byte needn't be zero.
const KEY_BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// A request to upgrade that is in order. Shape: 29 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upgrade {
    /// The value of `Sec-WebSocket-Accept`, ASCII.
    pub accept: [u8; ACCEPT_BYTES],
    /// The first subprotocol of the client's list that is known here.
    pub protocol: Option<Subprotocol>,
}

/// The subprotocols that are known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subprotocol {
    /// `centrifuge-json`
    CentrifugeJson,
    /// `centrifuge-protobuf`
    CentrifugeProtobuf,
}

impl Subprotocol {
    /// The name as it is negotiated.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CentrifugeJson => "centrifuge-json",
            Self::CentrifugeProtobuf => "centrifuge-protobuf",
        }
    }

    fn of(name: &[u8]) -> Option<Self> {
        [Self::CentrifugeJson, Self::CentrifugeProtobuf]
            .into_iter()
            .find(|known| known.name().as_bytes() == name)
    }
}

/// The format in which a connection speaks the client protocol, for life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// JSON in text frames.
    Json,
    /// Protobuf in binary frames.
    Protobuf,
}

/// Checks that a request is an upgrade to WebSocket. Origin and limits are the caller's.
///
/// # Errors
/// 405 for another method than GET, else 400: [`Refusal::NotUpgrade`], [`Refusal::WebSocketVersion`],
/// [`Refusal::WebSocketKey`], [`Refusal::UpgradeBody`].
pub fn upgrade(head: &Head<'_>) -> Result<Upgrade, Refusal> {
    //= RFC 6455 4.2.1: GET, HTTP/1.1 or higher, Upgrade, Connection, key, version 13
    if head.method != "GET" {
        return Err(Refusal::Method);
    }
    if head.version != 1
        || !head.has_token("connection", "upgrade")
        || !head.has_token("upgrade", "websocket")
    {
        return Err(Refusal::NotUpgrade);
    }
    if head.single("sec-websocket-version").map(<[u8]>::trim_ascii) != Some(b"13") {
        return Err(Refusal::WebSocketVersion);
    }
    let key = head.single("sec-websocket-key").map_or(&[][..], <[u8]>::trim_ascii);
    if !is_key(key) {
        return Err(Refusal::WebSocketKey);
    }
    // Its bytes would be read as frames.
    if head.body != Body::Length(0) {
        return Err(Refusal::UpgradeBody);
    }
    let protocol = head.list("sec-websocket-protocol").find_map(Subprotocol::of);
    Ok(Upgrade { accept: accept(key), protocol })
}

/// The format by the query (`format` or `cf_protocol`) or by the subprotocol; JSON else.
pub fn format(query: &str, protocol: Option<Subprotocol>) -> Format {
    let asked = ["format", "cf_protocol"]
        .iter()
        .any(|name| query_param(query, name).is_some_and(|value| value == "protobuf"));
    match asked || protocol == Some(Subprotocol::CentrifugeProtobuf) {
        true => Format::Protobuf,
        false => Format::Json,
    }
}

/// Appends the 101 response. It names a subprotocol only when one was offered and is known:
/// browsers fail the connection over one that they didn't offer.
pub fn put_switching(out: &mut Vec<u8>, upgrade: &Upgrade) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Accept: ",
    );
    out.extend_from_slice(&upgrade.accept);
    if let Some(protocol) = upgrade.protocol {
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(protocol.name().as_bytes());
    }
    out.extend_from_slice(b"\r\n\r\n");
}

/// The accept value for a key as it stands in the header (RFC 6455 4.2.2).
pub(super) fn accept(key: &[u8]) -> [u8; ACCEPT_BYTES] {
    let mut accept = [0; ACCEPT_BYTES];
    // Base64 of 20 bytes is 28 characters.
    accept.copy_from_slice(derive_accept_key(key).as_bytes());
    accept
}

fn is_key(key: &[u8]) -> bool {
    let mut nonce = [0; 18];
    key.len() == KEY_BYTES && KEY_BASE64.decode_slice(key, &mut nonce) == Ok(16)
}
