//! Answers that are not 101: refusals, and small whole responses.

use std::io::Write;

use super::date::HttpDate;

/// Why a request is refused, for the whole of the public port. The connection ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Not an HTTP/1 request, or one whose parts contradict each other.
    Malformed,
    /// HTTP/1.1 without exactly one Host, or one that names no host (RFC 9112 3.2).
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
    /// A request to a WebSocket endpoint with another method than GET.
    Method,
    /// Not a WebSocket upgrade: HTTP/1.0, or `Connection` or `Upgrade` don't say so.
    NotUpgrade,
    /// A WebSocket version other than 13.
    WebSocketVersion,
    /// A `Sec-WebSocket-Key` that is not 16 bytes in base64.
    WebSocketKey,
    /// An upgrade with a request body.
    UpgradeBody,
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
    /// The body came too slowly.
    BodyTimeout,
    /// A request to the server API without its key.
    ApiKey,
    /// One with another method than POST.
    ApiMethod,
    /// A limit is met, or the node drains: the client should come back.
    Unavailable,
}

impl Refusal {
    /// Every refusal, for tables of counters.
    pub const ALL: [Self; 26] = [
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
        Self::Origin,
        Self::ForeignHost,
        Self::NotFound,
        Self::BodyTooLong,
        Self::Timeout,
        Self::AddressConnections,
        Self::AddressRate,
        Self::AddressBytes,
        Self::BodyTimeout,
        Self::ApiKey,
        Self::ApiMethod,
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
            | Self::UpgradeBody => 400,
            Self::Origin | Self::ForeignHost => 403,
            Self::NotFound => 404,
            Self::Method | Self::ApiMethod => 405,
            Self::ApiKey => 401,
            Self::Timeout | Self::BodyTimeout => 408,
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
            Self::Origin => "origin",
            Self::ForeignHost => "foreign_host",
            Self::NotFound => "not_found",
            Self::BodyTooLong => "body_too_long",
            Self::Timeout => "timeout",
            Self::AddressConnections => "address_connections",
            Self::AddressRate => "address_rate",
            Self::AddressBytes => "address_bytes",
            Self::BodyTimeout => "body_timeout",
            Self::ApiKey => "api_key",
            Self::ApiMethod => "api_method",
            Self::Unavailable => "unavailable",
        }
    }

    /// The response's body: what the client did, in a line.
    const fn body(self) -> &'static str {
        match self {
            Self::Malformed => "malformed request\n",
            Self::Host => "exactly one valid Host header is required\n",
            Self::Repeated => "a header that may stand once stands more than once\n",
            Self::BodyLength => "the length of the body is unclear\n",
            Self::TransferCoding => "unknown transfer coding\n",
            Self::TargetTooLong => "request line too long\n",
            Self::HeadTooLong => "request head too long\n",
            Self::HeadersTooMany => "too many headers\n",
            Self::Version => "only HTTP/1.1 is supported\n",
            Self::Method | Self::ApiMethod => "method not allowed\n",
            Self::NotUpgrade => "this is a WebSocket endpoint: an upgrade was expected\n",
            Self::WebSocketVersion => "only WebSocket version 13 is spoken here\n",
            Self::WebSocketKey => "Sec-WebSocket-Key must be 16 bytes in base64\n",
            Self::UpgradeBody => "an upgrade has no body\n",
            Self::Origin => "origin not allowed\n",
            Self::ForeignHost => "host not allowed: roost.allowed_hosts names further ones\n",
            Self::NotFound => "not found\n",
            Self::BodyTooLong => "request body too long\n",
            Self::Timeout => "the request took too long\n",
            Self::AddressConnections => "too many connections from this address\n",
            Self::AddressRate => "too many new connections from this address\n",
            Self::AddressBytes => "too many unfinished requests from this address\n",
            Self::BodyTimeout => "the request body came too slowly\n",
            Self::ApiKey => "",
            Self::Unavailable => "try again later\n",
        }
    }

    /// The header that the status requires.
    const fn extra(self) -> &'static str {
        match self {
            //= RFC 9110 15.5.6: a 405 MUST have an Allow header
            Self::Method => "Allow: GET\r\n",
            Self::ApiMethod => "Allow: POST\r\n",
            //= RFC 6455 4.2.2: an answer to a wrong version names the versions understood
            Self::NotUpgrade | Self::WebSocketVersion | Self::WebSocketKey => {
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

/// Allows a client to send the body (RFC 9110 15.2.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Whether a connection serves another request behind a response (RFC 9112 9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// No: the response says `Connection: close`.
    Close,
    /// Yes, as is the rule in HTTP/1.1.
    Keep,
    /// Yes, and the response says so: clients that speak HTTP/1.0 rely on it.
    KeepStated,
}

crate::base::image::durable_enum!(Reuse { Close = 0, Keep = 1, KeepStated = 2 });

impl Reuse {
    /// Another request may follow.
    pub const fn is_kept(self) -> bool {
        !matches!(self, Self::Close)
    }

    /// The same, unless the connection ends for another reason.
    #[must_use]
    pub const fn unless(self, ends: bool) -> Self {
        if ends { Self::Close } else { self }
    }

    /// The header line that says so, if one does.
    pub const fn header(self) -> &'static str {
        match self {
            Self::Close => "Connection: close\r\n",
            Self::Keep => "",
            Self::KeepStated => "Connection: keep-alive\r\n",
        }
    }
}

/// A whole response, but for its body's bytes.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// Its status code.
    pub status: u16,
    /// When it was made.
    pub date: HttpDate,
    /// More header lines, each with its line end.
    pub headers: &'a str,
    /// The media type of the body.
    pub content_type: &'a str,
    /// Whether another request may follow.
    pub reuse: Reuse,
    /// It answers a HEAD: the head is as for a GET, the body is left out (RFC 9110 9.3.2).
    pub is_head: bool,
}

impl Response<'_> {
    /// Appends the response; one with the status 204 has no body.
    pub fn put(&self, out: &mut Vec<u8>, body: &[u8]) {
        let Self { status, date, headers, content_type, reuse, is_head } = self;
        let reason = reason_phrase(*status);
        // Writing to a Vec cannot fail.
        let _ = write!(out, "HTTP/1.1 {status} {reason}\r\nDate: {date}\r\n{headers}");
        //= RFC 9110 8.6: no Content-Length in a 204
        if *status != 204 {
            let length = body.len();
            let _ = write!(out, "Content-Type: {content_type}\r\nContent-Length: {length}\r\n");
        }
        let _ = write!(out, "{}\r\n", reuse.header());
        if *status != 204 && !is_head {
            out.extend_from_slice(body);
        }
    }
}

/// Appends the whole answer to a refused request, with whole header lines more. The caller closes after
/// it. `is_head`: the request was a HEAD.
pub fn put_refusal(out: &mut Vec<u8>, refusal: Refusal, more: &str, date: HttpDate, is_head: bool) {
    let response = Response {
        status: refusal.status(),
        date,
        headers: &[refusal.extra(), more].concat(),
        content_type: "text/plain",
        reuse: Reuse::Close,
        is_head,
    };
    response.put(out, refusal.body().as_bytes());
}

/// Appends an answer that makes an event source come back after `retry_ms`. In place of a 503: event
/// sources give up for good on any status but 200 (HTML standard, 9.2.3).
pub fn put_event_source_retry(out: &mut Vec<u8>, retry_ms: u64, more: &str, date: HttpDate) {
    let response = Response {
        status: 200,
        date,
        headers: &["Cache-Control: no-store\r\n", more].concat(),
        content_type: EVENT_STREAM,
        reuse: Reuse::Close,
        is_head: false,
    };
    response.put(out, format!("retry: {retry_ms}\n\n").as_bytes());
}

/// The media type of server-sent events as responses state it.
pub const EVENT_STREAM: &str = "text/event-stream; charset=utf-8";

/// Appends the head of a response whose body goes on and on: in chunks, or to the end of the connection for
/// HTTP/1.0. Proxies are told not to keep any of it (client protocol, 5 and 6). The connection ends with the
/// response, and the head says so: a proxy that pools connections would send its next request into the end.
pub fn put_stream_head(
    out: &mut Vec<u8>,
    content_type: &str,
    more: &str,
    chunked: bool,
    date: HttpDate,
) {
    let framing = if chunked { "Transfer-Encoding: chunked\r\n" } else { "" };
    let close = Reuse::Close.header();
    // Writing to a Vec cannot fail.
    let _ = write!(
        out,
        "HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Type: {content_type}\r\n\
        X-Accel-Buffering: no\r\n\
        Cache-Control: private, no-cache, no-store, must-revalidate, max-age=0\r\nPragma: no-cache\r\n\
        Expire: 0\r\n{more}{framing}{close}\r\n"
    );
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
            put_refusal(&mut out, refusal, "", HttpDate::at(0), false);
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
            let allowed = match refusal {
                Refusal::Method => Some("GET"),
                Refusal::ApiMethod => Some("POST"),
                _ => None,
            };
            assert_eq!(header("Allow"), allowed);
            let versions = [Refusal::NotUpgrade, Refusal::WebSocketVersion, Refusal::WebSocketKey];
            let expected = versions.contains(&refusal).then_some("13");
            assert_eq!(header("Sec-WebSocket-Version"), expected);
            assert!(out.len() > head || refusal == Refusal::ApiKey);
            assert_eq!(header("Date"), Some("Thu, 01 Jan 1970 00:00:00 GMT"));
            // The answer to a HEAD is the same head, alone.
            let mut bare = Vec::new();
            put_refusal(&mut bare, refusal, "", HttpDate::at(0), true);
            assert_eq!(bare, out[..head]);
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
        let response = |status, reuse, is_head| {
            let date = HttpDate::at(1);
            let (headers, content_type) = ("X: y\r\n", "text/plain");
            let mut out = Vec::new();
            Response { status, date, headers, content_type, reuse, is_head }.put(&mut out, b"{}");
            String::from_utf8(out).unwrap()
        };
        let before = |status: &str| {
            format!("HTTP/1.1 {status}\r\nDate: Thu, 01 Jan 1970 00:00:01 GMT\r\nX: y\r\n")
        };
        let typed = "Content-Type: text/plain\r\nContent-Length: 2\r\n";
        for (status, reuse, is_head, expected) in [
            (200, Reuse::Keep, false, format!("{}{typed}\r\n{{}}", before("200 OK"))),
            (200, Reuse::Keep, true, format!("{}{typed}\r\n", before("200 OK"))),
            (
                200,
                Reuse::KeepStated,
                false,
                format!("{}{typed}Connection: keep-alive\r\n\r\n{{}}", before("200 OK")),
            ),
            (
                404,
                Reuse::Close,
                false,
                format!("{}{typed}Connection: close\r\n\r\n{{}}", before("404 Not Found")),
            ),
            (204, Reuse::Keep, false, format!("{}\r\n", before("204 No Content"))),
            (
                204,
                Reuse::Close,
                true,
                format!("{}Connection: close\r\n\r\n", before("204 No Content")),
            ),
        ] {
            assert_eq!(response(status, reuse, is_head), expected);
        }
    }

    #[test]
    fn streams_say_that_their_connection_ends_with_them() {
        for chunked in [true, false] {
            let mut out = Vec::new();
            put_stream_head(&mut out, EVENT_STREAM, "", chunked, HttpDate::at(0));
            let text = String::from_utf8(out).unwrap();
            assert!(text.contains("\r\nConnection: close\r\n"), "{text}");
            assert!(text.contains("\r\nDate: "), "{text}");
            assert_eq!(text.contains("\r\nTransfer-Encoding: chunked\r\n"), chunked, "{text}");
        }
    }

    #[test]
    fn an_event_source_is_sent_away_with_a_stream_that_ends() {
        let mut out = Vec::new();
        put_event_source_retry(&mut out, 4321, "Vary: Origin\r\n", HttpDate::at(0));
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(text.contains("\r\nContent-Type: text/event-stream"), "{text}");
        assert!(text.contains("\r\nVary: Origin\r\n"), "{text}");
        assert!(text.contains("\r\nConnection: close\r\n"), "{text}");
        assert!(text.ends_with("\r\n\r\nretry: 4321\n\n"), "{text}");
    }
}
