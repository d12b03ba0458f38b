//! The upgrade to WebSocket (RFC 6455 4.2), and the choice of the client protocol's format.

use std::io::Write as _;

use super::date::HttpDate;
use super::head::{Body, Head};
use super::query::query_param;
use super::response::Refusal;
use crate::proto::ws::Deflate;
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

/// A request to upgrade that is in order. Shape: 34 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upgrade {
    /// The value of `Sec-WebSocket-Accept`, ASCII.
    pub accept: [u8; ACCEPT_BYTES],
    /// The first subprotocol of the client's list that is known here.
    pub protocol: Option<Subprotocol>,
    /// permessage-deflate, as it could be agreed on.
    pub deflate: Option<Deflate>,
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
    let deflate = Deflate::choose(head.all("sec-websocket-extensions"));
    Ok(Upgrade { accept: accept(key), protocol, deflate })
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
pub fn put_switching(out: &mut Vec<u8>, upgrade: &Upgrade, date: HttpDate) {
    // Writing to a Vec cannot fail.
    let _ = write!(
        out,
        "HTTP/1.1 101 Switching Protocols\r\nDate: {date}\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Accept: ",
    );
    out.extend_from_slice(&upgrade.accept);
    if let Some(protocol) = upgrade.protocol {
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(protocol.name().as_bytes());
    }
    if let Some(deflate) = upgrade.deflate {
        out.extend_from_slice(b"\r\nSec-WebSocket-Extensions: ");
        deflate.put_answer(out);
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

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;
    use tungstenite::handshake::machine::TryParse;
    use tungstenite::handshake::server::create_response;
    use tungstenite::http::Request;

    /// The example of RFC 6455 1.3.
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const ACCEPT: &[u8; ACCEPT_BYTES] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
    const GOOD: [&str; 5] = [
        "Host: a",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ];

    fn request(line: &str, headers: &[&str]) -> String {
        format!("{line}\r\n{}\r\n\r\n", headers.join("\r\n"))
    }

    fn outcome(request: &str) -> Result<Upgrade, Refusal> {
        parse(request.as_bytes())?.ok_or(Refusal::Malformed).and_then(|head| upgrade(&head))
    }

    #[test]
    fn requests() {
        let line = "GET /connection/websocket HTTP/1.1";
        let plain = Ok(Upgrade { accept: *ACCEPT, protocol: None, deflate: None });
        let deflate = Deflate::choose([&b"permessage-deflate"[..]].into_iter());
        assert_eq!(outcome(&request(line, &GOOD)), plain);

        // One header of a good request replaced (by name), or one more.
        let table = [
            ("Connection: keep-alive, UPGRADE", plain),
            ("Connection: close", Err(Refusal::NotUpgrade)),
            ("Connection: upgraded", Err(Refusal::NotUpgrade)),
            ("Upgrade: WebSocket", plain),
            ("Upgrade: h2c, websocket", plain),
            ("Upgrade: h2c", Err(Refusal::NotUpgrade)),
            ("Upgrade: websockets", Err(Refusal::NotUpgrade)),
            ("Sec-WebSocket-Version:  13 ", plain),
            ("Sec-WebSocket-Version: 8", Err(Refusal::WebSocketVersion)),
            ("Sec-WebSocket-Version: 13, 8", Err(Refusal::WebSocketVersion)),
            ("Sec-WebSocket-Version: 013", Err(Refusal::WebSocketVersion)),
            ("Sec-WebSocket-Key:", Err(Refusal::WebSocketKey)),
            ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ", Err(Refusal::WebSocketKey)),
            ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=!", Err(Refusal::WebSocketKey)),
            ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j", Err(Refusal::WebSocketKey)),
            ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQAA", Err(Refusal::WebSocketKey)),
            (
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQAAdGhlIHNhbXBsZSBub25jZQ==",
                Err(Refusal::WebSocketKey),
            ),
            ("Content-Length: 0", plain),
            ("Content-Length: 5", Err(Refusal::UpgradeBody)),
            ("Transfer-Encoding: chunked", Err(Refusal::UpgradeBody)),
            ("Origin: https://elsewhere", plain),
            (
                "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
                Ok(Upgrade { accept: *ACCEPT, protocol: None, deflate }),
            ),
        ];
        for (header, expected) in table {
            let name = header.split(':').next().unwrap();
            let mut headers: Vec<&str> =
                GOOD.into_iter().filter(|good| !good.starts_with(name)).collect();
            headers.push(header);
            assert_eq!(outcome(&request(line, &headers)), expected, "{header}");
        }

        // One header left out, or given twice.
        let missing = [
            Refusal::Host,
            Refusal::NotUpgrade,
            Refusal::NotUpgrade,
            Refusal::WebSocketVersion,
            Refusal::WebSocketKey,
        ];
        let twice = [
            Err(Refusal::Host),
            plain,
            plain,
            Err(Refusal::WebSocketVersion),
            Err(Refusal::WebSocketKey),
        ];
        for (index, refusal) in missing.into_iter().enumerate() {
            let mut headers = GOOD.to_vec();
            headers.remove(index);
            assert_eq!(outcome(&request(line, &headers)), Err(refusal), "without {}", GOOD[index]);
            let mut headers = GOOD.to_vec();
            headers.push(GOOD[index]);
            assert_eq!(outcome(&request(line, &headers)), twice[index], "twice {}", GOOD[index]);
        }

        for (line, refusal) in [
            ("POST / HTTP/1.1", Refusal::Method),
            ("get / HTTP/1.1", Refusal::Method),
            ("CONNECT a:1 HTTP/1.1", Refusal::Method),
            ("GET / HTTP/1.0", Refusal::NotUpgrade),
        ] {
            assert_eq!(outcome(&request(line, &GOOD)), Err(refusal), "{line}");
        }
    }

    #[test]
    fn tokens_may_be_spread_over_headers() {
        let mut headers = vec!["Connection: keep-alive", "Upgrade: h2c"];
        headers.extend(GOOD);
        assert!(outcome(&request("GET / HTTP/1.1", &headers)).is_ok());
    }

    #[test]
    fn bits_behind_the_sixteenth_byte_are_tolerated() {
        let mut headers = GOOD.to_vec();
        headers[4] = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZR==";
        assert!(outcome(&request("GET / HTTP/1.1", &headers)).is_ok());
    }

    #[test]
    fn the_first_known_subprotocol_is_chosen_and_named() {
        let json = Some(Subprotocol::CentrifugeJson);
        let protobuf = Some(Subprotocol::CentrifugeProtobuf);
        let table: [(&[&str], Option<Subprotocol>, Format); 7] = [
            (&[], None, Format::Json),
            (&["centrifuge-protobuf"], protobuf, Format::Protobuf),
            (&["centrifuge-json, centrifuge-protobuf"], json, Format::Json),
            (&["x", "centrifuge-protobuf , centrifuge-json"], protobuf, Format::Protobuf),
            (&["chat"], None, Format::Json),
            (&["Centrifuge-Json"], None, Format::Json),
            (&[""], None, Format::Json),
        ];
        for (offers, expected, format_expected) in table {
            let offers: Vec<String> =
                offers.iter().map(|offer| format!("Sec-WebSocket-Protocol: {offer}")).collect();
            let headers: Vec<&str> =
                GOOD.into_iter().chain(offers.iter().map(String::as_str)).collect();
            let upgrade = outcome(&request("GET / HTTP/1.1", &headers)).unwrap();
            assert_eq!(upgrade.protocol, expected, "{offers:?}");
            assert_eq!(format("", upgrade.protocol), format_expected, "{offers:?}");

            let mut out = Vec::new();
            put_switching(&mut out, &upgrade, HttpDate::at(0));
            let (_, response) =
                tungstenite::handshake::client::Response::try_parse(&out).unwrap().unwrap();
            assert_eq!(response.status(), 101);
            let named = response.headers().get("sec-websocket-protocol");
            assert_eq!(named.map(|v| v.to_str().unwrap()), expected.map(Subprotocol::name));
            assert_eq!(response.headers()["sec-websocket-accept"], &ACCEPT[..]);
            assert_eq!(response.headers()["upgrade"], "websocket");
            assert_eq!(response.headers()["connection"], "Upgrade");
        }
    }

    #[test]
    fn formats() {
        for (query, protocol, expected) in [
            ("", None, Format::Json),
            ("format=protobuf", None, Format::Protobuf),
            ("cf_protocol=protobuf", None, Format::Protobuf),
            ("a=b&format=proto%62uf", Some(Subprotocol::CentrifugeJson), Format::Protobuf),
            ("format=json", Some(Subprotocol::CentrifugeProtobuf), Format::Protobuf),
            ("format=Protobuf", None, Format::Json),
            ("xformat=protobuf", None, Format::Json),
        ] {
            assert_eq!(format(query, protocol), expected, "{query}");
        }
    }

    #[test]
    fn tungstenite_agrees() {
        let request = request("GET / HTTP/1.1", &GOOD);
        let (bytes, theirs) = Request::<()>::try_parse(request.as_bytes()).unwrap().unwrap();
        let head = parse(request.as_bytes()).unwrap().unwrap();
        assert_eq!(bytes, head.bytes);
        let response = create_response(&theirs).unwrap();
        let ours = upgrade(&head).unwrap();
        assert_eq!(response.headers()["sec-websocket-accept"], &ours.accept[..]);
        assert_eq!(KEY.len(), KEY_BYTES);
    }
}
