//! Answers that are not 101: refusals, and small whole responses.

use std::io::Write;

/// Why a request is refused, for the whole of the public port. The connection ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Not an HTTP/1 request, or one whose parts contradict each other.
    Malformed,
    /// HTTP/1.1 without exactly one Host (RFC 9112 3.2).
    Host,
    /// A header that decides on whose behalf the request comes, more than once.
    Repeated,
    /// Content-Length that is no number or several, or beside Transfer-Encoding (RFC 9112 6.3).
    BodyLength,
    /// A transfer coding other than chunked (RFC 9112 6.1).
    TransferCoding,
    /// A request line longer than the bound of a head.
    TargetTooLong,
    /// A head longer than `HEAD_BYTES_MAX`.
    HeadTooLong,
    /// More than `HEADERS_MAX` headers.
    HeadersTooMany,
    /// Another version than HTTP/1.0 or 1.1, the preface of HTTP/2 among them.
    Version,
    /// A WebSocket endpoint asked with another method than GET.
    Method,
    /// Not a WebSocket upgrade: HTTP/1.0, or `Connection` or `Upgrade` don't say so.
    NotUpgrade,
    /// A WebSocket version other than 13.
    WebSocketVersion,
    /// A `Sec-WebSocket-Key` that is not 16 bytes in base64.
    WebSocketKey,
    /// An upgrade with a request body.
    UpgradeBody,
    /// The binary form of the client protocol, which is not built yet.
    Protobuf,
    /// The `Origin` is not allowed, or the request is another site's.
    Origin,
    /// The `Host` is not this node's, where only that is served.
    ForeignHost,
    /// Nothing lives at this path.
    NotFound,
    /// A body longer than its bound.
    BodyTooLong,
    /// The head didn't arrive in time.
    Timeout,
    /// The client's address has as many connections as it may.
    AddressConnections,
    /// The client's address makes connections too fast.
    AddressRate,
    /// The client's address has too many bytes of unfinished requests here.
    AddressBytes,
    /// A limit is met, or the node drains: the client should come back.
    Unavailable,
}

impl Refusal {
    /// Every refusal, for tables of counters.
    pub const ALL: [Self; 24] = [
        Self::Malformed,
        Self::Host,
        Self::Repeated,
        Self::BodyLength,
        Self::TransferCoding,
        Self::TargetTooLong,
        Self::HeadTooLong,
        Self::HeadersTooMany,
        Self::Version,
        Self::Method,
        Self::NotUpgrade,
        Self::WebSocketVersion,
        Self::WebSocketKey,
        Self::UpgradeBody,
        Self::Protobuf,
        Self::Origin,
        Self::ForeignHost,
        Self::NotFound,
        Self::BodyTooLong,
        Self::Timeout,
        Self::AddressConnections,
        Self::AddressRate,
        Self::AddressBytes,
        Self::Unavailable,
    ];

    /// The status code.
    pub const fn status(self) -> u16 {
        match self {
            Self::Malformed
            | Self::Host
            | Self::Repeated
            | Self::BodyLength
            | Self::NotUpgrade
            | Self::WebSocketVersion
            | Self::WebSocketKey
            | Self::UpgradeBody
            | Self::Protobuf => 400,
            Self::Origin | Self::ForeignHost => 403,
            Self::NotFound => 404,
            Self::Method => 405,
            Self::Timeout => 408,
            Self::BodyTooLong => 413,
            Self::TargetTooLong => 414,
            Self::HeadTooLong | Self::HeadersTooMany => 431,
            Self::AddressConnections | Self::AddressRate | Self::AddressBytes => 429,
            Self::TransferCoding => 501,
            Self::Unavailable => 503,
            Self::Version => 505,
        }
    }

    /// A name for counters.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Host => "host",
            Self::Repeated => "repeated_header",
            Self::BodyLength => "body_length",
            Self::TransferCoding => "transfer_coding",
            Self::TargetTooLong => "target_too_long",
            Self::HeadTooLong => "head_too_long",
            Self::HeadersTooMany => "headers_too_many",
            Self::Version => "http_version",
            Self::Method => "method",
            Self::NotUpgrade => "not_upgrade",
            Self::WebSocketVersion => "websocket_version",
            Self::WebSocketKey => "websocket_key",
            Self::UpgradeBody => "upgrade_body",
            Self::Protobuf => "protobuf",
            Self::Origin => "origin",
            Self::ForeignHost => "foreign_host",
            Self::NotFound => "not_found",
            Self::BodyTooLong => "body_too_long",
            Self::Timeout => "timeout",
            Self::AddressConnections => "address_connections",
            Self::AddressRate => "address_rate",
            Self::AddressBytes => "address_bytes",
            Self::Unavailable => "unavailable",
        }
    }

    /// The response's body: what the client did, in a line.
    const fn body(self) -> &'static str {
        match self {
            Self::Malformed => "malformed request\n",
            Self::Host => "exactly one Host header is required\n",
            Self::Repeated => "a header that may stand once stands more than once\n",
            Self::BodyLength => "the length of the body is unclear\n",
            Self::TransferCoding => "unknown transfer coding\n",
            Self::TargetTooLong => "request line too long\n",
            Self::HeadTooLong => "request head too long\n",
            Self::HeadersTooMany => "too many headers\n",
            Self::Version => "only HTTP/1.1 is spoken here\n",
            Self::Method => "method not allowed\n",
            Self::NotUpgrade => "this is a WebSocket endpoint: an upgrade was expected\n",
            Self::WebSocketVersion => "only WebSocket version 13 is spoken here\n",
            Self::WebSocketKey => "Sec-WebSocket-Key must be 16 bytes in base64\n",
            Self::UpgradeBody => "an upgrade has no body\n",
            Self::Protobuf => "Protobuf isn't spoken here yet: use JSON\n",
            Self::Origin => "origin not allowed\n",
            Self::ForeignHost => "host not allowed: roost.allowed_hosts names further ones\n",
            Self::NotFound => "not found\n",
            Self::BodyTooLong => "request body too long\n",
            Self::Timeout => "the request took too long\n",
            Self::AddressConnections => "too many connections from this address\n",
            Self::AddressRate => "too many new connections from this address\n",
            Self::AddressBytes => "too many unfinished requests from this address\n",
            Self::Unavailable => "try again later\n",
        }
    }

    /// What the status demands to be said in a header.
    const fn extra(self) -> &'static str {
        match self {
            //= RFC 9110 15.5.6: a 405 MUST have an Allow header
            Self::Method => "Allow: GET\r\n",
            //= RFC 6455 4.2.2: an answer to a wrong version names the versions understood
            Self::NotUpgrade | Self::WebSocketVersion | Self::WebSocketKey | Self::Protobuf => {
                "Sec-WebSocket-Version: 13\r\n"
            }
            Self::AddressConnections | Self::AddressRate | Self::AddressBytes => {
                "Retry-After: 1\r\n"
            }
            _ => "",
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.body().trim_end())
    }
}

impl std::error::Error for Refusal {}

/// Tells a client that it may send the body (RFC 9110 15.2.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Appends the whole answer to a refused request, with whole header lines more. The caller closes after
/// it.
pub fn put_refusal(out: &mut Vec<u8>, refusal: Refusal, more: &str) {
    let extra = [refusal.extra(), more].concat();
    put(out, refusal.status(), &extra, "text/plain", refusal.body().as_bytes(), false);
}

/// Appends a whole response with more header lines, each with its end; without a body for 204.
pub fn put_answer(
    out: &mut Vec<u8>,
    status: u16,
    more: &str,
    content_type: &str,
    body: &[u8],
    keep_alive: bool,
) {
    if status != 204 {
        return put(out, status, more, content_type, body, keep_alive);
    }
    //= RFC 9110 8.6: no Content-Length in a 204
    let close = if keep_alive { "" } else { "Connection: close\r\n" };
    // Writing to a Vec cannot fail.
    let _ = write!(out, "HTTP/1.1 204 {}\r\n{more}{close}\r\n", reason_phrase(204));
}

/// Appends the head of a response whose body goes on and on: in chunks, or to the end of the connection for
/// HTTP/1.0. Proxies are told not to keep any of it (client protocol, 5 and 6).
pub fn put_stream_head(out: &mut Vec<u8>, content_type: &str, more: &str, chunked: bool) {
    let framing = match chunked {
        true => "Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n",
        false => "Connection: close\r\n",
    };
    // Writing to a Vec cannot fail.
    let _ = write!(
        out,
        "HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nX-Accel-Buffering: no\r\n\
        Cache-Control: private, no-cache, no-store, must-revalidate, max-age=0\r\nPragma: no-cache\r\n\
        Expire: 0\r\n{more}{framing}\r\n"
    );
}

/// Appends a whole response with a body. `keep_alive` false says `Connection: close`.
pub fn put_response(
    out: &mut Vec<u8>,
    status: u16,
    content_type: &str,
    body: &[u8],
    keep_alive: bool,
) {
    put(out, status, "", content_type, body, keep_alive);
}

fn put(
    out: &mut Vec<u8>,
    status: u16,
    extra: &str,
    content_type: &str,
    body: &[u8],
    keep_alive: bool,
) {
    // Writing to a Vec cannot fail.
    let _ = write!(
        out,
        "HTTP/1.1 {status} {}\r\n{extra}Content-Type: {content_type}\r\nContent-Length: {}\r\n{}\r\n",
        reason_phrase(status),
        body.len(),
        if keep_alive { "" } else { "Connection: close\r\n" },
    );
    out.extend_from_slice(body);
}

/// RFC 9110 15; empty, which the grammar allows, for codes that nothing here sends.
const fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_whole_responses_that_close() {
        for (index, refusal) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(refusal as usize, index);
            let mut out = b"before".to_vec();
            put_refusal(&mut out, refusal, "");
            let out = out.strip_prefix(b"before").unwrap();
            let mut headers = [httparse::EMPTY_HEADER; 8];
            let mut response = httparse::Response::new(&mut headers);
            let httparse::Status::Complete(head) = response.parse(out).unwrap() else {
                panic!("{refusal:?}: no end of head")
            };
            assert_eq!(response.code, Some(refusal.status()));
            assert!(response.reason.is_some_and(|reason| !reason.is_empty()), "{refusal:?}");
            let header = |name: &str| {
                let found = response.headers.iter().find(|h| h.name == name);
                found.map(|h| std::str::from_utf8(h.value).unwrap())
            };
            assert_eq!(header("Connection"), Some("close"));
            assert_eq!(header("Content-Length"), Some(&*(out.len() - head).to_string()));
            assert_eq!(header("Allow"), (refusal == Refusal::Method).then_some("GET"));
            let versions = [
                Refusal::NotUpgrade,
                Refusal::WebSocketVersion,
                Refusal::WebSocketKey,
                Refusal::Protobuf,
            ];
            let expected = versions.contains(&refusal).then_some("13");
            assert_eq!(header("Sec-WebSocket-Version"), expected);
            assert!(out.len() > head);
        }
    }

    #[test]
    fn labels_are_distinct() {
        let mut labels = Refusal::ALL.map(Refusal::label);
        labels.sort_unstable();
        assert!(labels.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn responses() {
        let mut out = Vec::new();
        put_response(&mut out, 200, "application/json", b"{}", true);
        put_response(&mut out, 404, "text/plain", b"", false);
        let expected = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
            Content-Length: 2\r\n\r\n{}HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\n\
            Content-Length: 0\r\nConnection: close\r\n\r\n";
        assert_eq!(std::str::from_utf8(&out), Ok(expected));
    }
}
