//! The client's side of the upgrade (RFC 6455 4.1), for the load client.

use super::upgrade::accept;
use crate::base::limits::{HEAD_BYTES_MAX, HEADERS_MAX};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use httparse::{EMPTY_HEADER, Header, Response, Status};

/// Why a server's answer is no upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeRefused {
    /// Another status than 101.
    #[error("status {0} instead of 101")]
    Status(u16),
    /// Not HTTP, or a head beyond the bounds.
    #[error("the answer is not an HTTP/1.1 response")]
    Malformed,
    /// A 101 without `Upgrade: websocket` or `Connection: upgrade`.
    #[error("the answer has no valid Upgrade and Connection headers")]
    NotUpgraded,
    /// The accept value is not that of the key.
    #[error("wrong Sec-WebSocket-Accept")]
    Accept,
}

/// Appends a request to upgrade. `target` is path and query; `key` 16 bytes, random if the server is
/// not trusted; `extra` headers are written as they are, so they must not have line ends.
pub fn put_upgrade_request(
    out: &mut Vec<u8>,
    host: &str,
    target: &str,
    key: &[u8; 16],
    protocol: Option<&str>,
    extra: &[(&str, &str)],
) {
    for part in [
        "GET ",
        target,
        " HTTP/1.1\r\nHost: ",
        host,
        "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: ",
        &STANDARD.encode(key),
        "\r\n",
    ] {
        out.extend_from_slice(part.as_bytes());
    }
    let protocol = protocol.map(|name| ("Sec-WebSocket-Protocol", name));
    for (name, value) in protocol.iter().chain(extra) {
        for part in [name, ": ", value, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Reads the answer to [`put_upgrade_request`]: the length of its head, behind which frames begin;
/// `None` when its end hasn't arrived.
///
/// # Errors
/// See [`UpgradeRefused`]; a status as soon as the head is there.
pub fn parse_upgrade_response(buf: &[u8], key: &[u8; 16]) -> Result<Option<usize>, UpgradeRefused> {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut response = Response::new(&mut headers);
    let bytes = match response.parse(&buf[..buf.len().min(HEAD_BYTES_MAX)]) {
        Ok(Status::Complete(bytes)) => bytes,
        Ok(Status::Partial) if buf.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(Status::Partial) | Err(_) => return Err(UpgradeRefused::Malformed),
    };
    match response.code {
        Some(101) => {}
        Some(status) => return Err(UpgradeRefused::Status(status)),
        None => return Err(UpgradeRefused::Malformed),
    }
    let has = |name: &str, token: &str| {
        all(response.headers, name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|element| element.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    };
    if !has("upgrade", "websocket") || !has("connection", "upgrade") {
        return Err(UpgradeRefused::NotUpgraded);
    }
    let expected = accept(STANDARD.encode(key).as_bytes());
    match all(response.headers, "sec-websocket-accept").next() {
        Some(value) if value.trim_ascii() == expected => Ok(Some(bytes)),
        _ => Err(UpgradeRefused::Accept),
    }
}

fn all<'h>(headers: &'h [Header<'_>], name: &'h str) -> impl Iterator<Item = &'h [u8]> {
    headers.iter().filter(move |h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value)
}

#[cfg(test)]
mod tests {
    use super::super::{parse, put_refusal, put_switching, upgrade};
    use super::*;
    use crate::proto::http::{HttpDate, Refusal, Subprotocol};
    use tungstenite::handshake::machine::TryParse;
    use tungstenite::handshake::server::{create_response, write_response};
    use tungstenite::http::Request;

    const KEY: [u8; 16] = *b"the sample nonce";

    fn asked() -> Vec<u8> {
        let mut out = Vec::new();
        let extra = [("Origin", "https://a"), ("X-Real", "1")];
        put_upgrade_request(&mut out, "a:8000", "/ws?x=1", &KEY, Some("centrifuge-json"), &extra);
        out
    }

    #[test]
    fn our_server_takes_our_request_and_our_client_its_answer() {
        let request = asked();
        let head = parse(&request).unwrap().unwrap();
        assert_eq!((head.path, head.query, head.bytes), ("/ws", "x=1", request.len()));
        assert_eq!(head.header("origin"), Some(&b"https://a"[..]));
        let upgrade = upgrade(&head).unwrap();
        assert_eq!(upgrade.protocol, Some(Subprotocol::CentrifugeJson));
        let mut answer = Vec::new();
        put_switching(&mut answer, &upgrade, HttpDate::at(0));
        let bytes = answer.len();
        for cut in 0..bytes {
            assert_eq!(parse_upgrade_response(&answer[..cut], &KEY), Ok(None), "{cut}");
        }
        answer.extend(b"\x89\x00");
        assert_eq!(parse_upgrade_response(&answer, &KEY), Ok(Some(bytes)));
        assert_eq!(parse_upgrade_response(&answer, &[0; 16]), Err(UpgradeRefused::Accept));
    }

    #[test]
    fn tungstenite_takes_our_request_and_we_its_answer() {
        let (_, request) = Request::<()>::try_parse(&asked()).unwrap().unwrap();
        let mut answer = Vec::new();
        write_response(&mut answer, &create_response(&request).unwrap()).unwrap();
        assert_eq!(parse_upgrade_response(&answer, &KEY), Ok(Some(answer.len())));
    }

    #[test]
    fn answers_that_are_no_upgrade() {
        let mut refusal = Vec::new();
        put_refusal(&mut refusal, Refusal::Unavailable, "", HttpDate::at(0), false);
        let long = [b"HTTP/1.1 101 x\r\nX: ".to_vec(), vec![b'y'; HEAD_BYTES_MAX]].concat();
        let accept = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        let bare = format!("HTTP/1.1 101 x\r\nUpgrade: websocket\r\n{accept}");
        let other = format!("HTTP/1.1 101 x\r\nUpgrade: h2c\r\nConnection: upgrade\r\n{accept}");
        let table: [(&[u8], UpgradeRefused); 6] = [
            (&refusal, UpgradeRefused::Status(503)),
            (b"HTTP/1.1 200 OK\r\n\r\n", UpgradeRefused::Status(200)),
            (b"SSH-2.0-x\r\n", UpgradeRefused::Malformed),
            (&long, UpgradeRefused::Malformed),
            (bare.as_bytes(), UpgradeRefused::NotUpgraded),
            (other.as_bytes(), UpgradeRefused::NotUpgraded),
        ];
        for (answer, expected) in table {
            assert_eq!(parse_upgrade_response(answer, &KEY), Err(expected));
        }
    }
}
