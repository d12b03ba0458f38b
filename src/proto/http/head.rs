//! The head of a request (RFC 9112 2-3, 6): httparse's, and the checks that it leaves out.

use super::response::{Refusal, Reuse};
use crate::base::limits::{HEAD_BYTES_MAX, HEADERS_MAX};
use httparse::{EMPTY_HEADER, Error, Header, Request, Status};

/// A request head, borrowed from the bytes that it came in.
///
/// Shape: 2 KiB of headers on the stack; nothing on the heap.
#[derive(Clone, Debug)]
pub struct Head<'b> {
    /// The method, as sent: methods are case-sensitive.
    pub method: &'b str,
    /// The target's path, not decoded; begins with `/` unless the target is `*` or an authority.
    pub path: &'b str,
    /// The text behind `?`, not decoded; empty when there is none.
    pub query: &'b str,
    /// 0 or 1: the minor version of HTTP/1.
    pub version: u8,
    /// The bytes behind the head.
    pub body: Body,
    /// Length of the head in bytes, its empty line included.
    pub bytes: usize,
    headers: [Header<'b>; HEADERS_MAX],
    headers_count: usize,
}

/// How a request's body is framed (RFC 9112 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// So many bytes; 0 when nothing is said.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

impl<'b> Head<'b> {
    /// All headers in order, names as sent.
    pub fn headers(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> + '_ {
        self.headers[..self.headers_count].iter().map(|header| (header.name, header.value))
    }

    /// The values of every header of a name, in order. Names match without case.
    pub fn all<'h>(&'h self, name: &'h str) -> impl Iterator<Item = &'b [u8]> + 'h {
        self.headers().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The value of the first header of a name.
    pub fn header(&self, name: &str) -> Option<&'b [u8]> {
        self.all(name).next()
    }

    /// The value of the only header of a name: `None` when there is none, or more than one.
    pub fn single(&self, name: &str) -> Option<&'b [u8]> {
        let mut values = self.all(name);
        values.next().filter(|_| values.next().is_none())
    }

    /// The elements of a comma-separated list, over all headers of that name (RFC 9110 5.6.1).
    pub fn list<'h>(&'h self, name: &'h str) -> impl Iterator<Item = &'b [u8]> + 'h {
        self.all(name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|element| !element.is_empty())
    }

    /// Whether such a list has a token, without case.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.list(name).any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
    }

    /// Whether the connection may be used again after the response (RFC 9112 9.3).
    pub fn reuse(&self) -> Reuse {
        match self.version {
            _ if self.has_token("connection", "close") => Reuse::Close,
            1 => Reuse::Keep,
            _ if self.has_token("connection", "keep-alive") => Reuse::KeepStated,
            _ => Reuse::Close,
        }
    }
}

/// Parses the request head at the start of `buf`; `None` when its end hasn't arrived.
///
/// It starts over each time: call it with the first bytes (they are usually all), then again only
/// when [`head_complete`] says so.
///
/// # Errors
/// 400 for what isn't HTTP or contradicts itself, 414 and 431 for what is too long (`HEAD_BYTES_MAX`,
/// `HEADERS_MAX`), 501 and 505 for codings and versions not spoken here.
pub fn parse(buf: &[u8]) -> Result<Option<Head<'_>>, Refusal> {
    // One empty line before the request is tolerated (RFC 9112 2.2), as httparse does; a flood of
    // them is not.
    let start = empty_line(buf);
    if start > 0 && empty_line(&buf[start..]) > 0 {
        return Err(Refusal::Malformed);
    }
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut request = Request::new(&mut headers);
    let status = match request.parse(&buf[..buf.len().min(HEAD_BYTES_MAX)]) {
        Ok(status) => status,
        Err(Error::TooManyHeaders) => return Err(Refusal::HeadersTooMany),
        Err(Error::Version) => return unknown_version(&buf[start..]),
        Err(_) => return Err(Refusal::Malformed),
    };
    let Status::Complete(bytes) = status else {
        return if buf.len() >= HEAD_BYTES_MAX { Err(too_long(&buf[start..])) } else { Ok(None) };
    };
    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return Err(Refusal::Malformed);
    };
    let headers_count = request.headers.len();
    let (path, query) = split_target(target);
    let mut head =
        Head { method, path, query, version, body: Body::Length(0), bytes, headers, headers_count };
    check_target(&head)?;
    head.body = body(&head)?;
    check_host(&head)?;
    check_single(&head)?;
    Ok(Some(head))
}

/// The verdict on a request line whose version is none that is supported; `None` while its end hasn't arrived.
fn unknown_version<'b>(buf: &[u8]) -> Result<Option<Head<'b>>, Refusal> {
    let Some(end) = buf.iter().position(|byte| *byte == b'\n') else {
        return if buf.len() >= HEAD_BYTES_MAX { Err(Refusal::TargetTooLong) } else { Ok(None) };
    };
    let line = buf[..end].strip_suffix(b"\r").unwrap_or(&buf[..end]);
    let version = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    //= RFC 9110 15.6.6: 505 is for a major version that isn't supported
    Err(match version.strip_prefix(b"HTTP/") {
        Some([major, b'.', minor])
            if major.is_ascii_digit() && minor.is_ascii_digit() && *major != b'1' =>
        {
            Refusal::Version
        }
        _ => Refusal::Malformed,
    })
}

/// Origin and absolute form begin with `/` by now; `*` is for OPTIONS alone, an authority for CONNECT.
fn check_target(head: &Head<'_>) -> Result<(), Refusal> {
    //= RFC 9112 3.2: 400 to an invalid request line
    match (head.method, head.path) {
        ("CONNECT", _) | ("OPTIONS", "*") => Ok(()),
        (_, path) if path.starts_with('/') => Ok(()),
        _ => Err(Refusal::Malformed),
    }
}

/// Whether [`parse`] would have an answer for `buf`: the end of a head is there, or it is too long.
///
/// `scanned` is 0 for the first call and remembers how far was looked, so that a head that comes
/// byte by byte is looked at once in all.
pub fn head_complete(buf: &[u8], scanned: &mut usize) -> bool {
    // The end is a line feed, then an empty line: at most 3 bytes, of which 2 were seen before.
    let from = scanned.saturating_sub(2).min(buf.len());
    *scanned = buf.len();
    buf.len() >= HEAD_BYTES_MAX
        || (from..buf.len()).any(|at| buf[at] == b'\n' && empty_line(&buf[at + 1..]) > 0)
}

/// Length of the line end that `bytes` begins with; 0 for none, or for a CR without its LF.
fn empty_line(bytes: &[u8]) -> usize {
    match bytes {
        [b'\n', ..] => 1,
        [b'\r', b'\n', ..] => 2,
        _ => 0,
    }
}

fn too_long(buf: &[u8]) -> Refusal {
    match buf[..HEAD_BYTES_MAX.min(buf.len())].contains(&b'\n') {
        true => Refusal::HeadTooLong,
        false => Refusal::TargetTooLong,
    }
}

/// Path and query of a target in origin form or absolute form (RFC 9112 3.2).
fn split_target(target: &str) -> (&str, &str) {
    let local = match target.split_once("://") {
        Some((scheme, rest))
            if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") =>
        {
            let authority = rest.find(['/', '?']).unwrap_or(rest.len());
            match &rest[authority..] {
                "" => "/",
                local => local,
            }
        }
        _ => target,
    };
    match local.split_once('?').unwrap_or((local, "")) {
        ("", query) => ("/", query),
        parts => parts,
    }
}

fn body(head: &Head<'_>) -> Result<Body, Refusal> {
    let mut length = None;
    //= RFC 9112 6.3: several or invalid Content-Length values are unrecoverable errors
    for value in head.all("content-length") {
        let digits = value.trim_ascii();
        let valid = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
        let parsed =
            std::str::from_utf8(digits).ok().filter(|_| valid).and_then(|d| d.parse().ok());
        if parsed.is_none() || length.is_some() {
            return Err(Refusal::BodyLength);
        }
        length = parsed;
    }
    if head.header("transfer-encoding").is_none() {
        return Ok(Body::Length(length.unwrap_or(0)));
    }
    //= RFC 9112 6.1: both headers, or a coding in HTTP/1.0, may be an attempt at smuggling
    if length.is_some() || head.version == 0 {
        return Err(Refusal::BodyLength);
    }
    let mut codings = head.list("transfer-encoding");
    match (codings.next(), codings.next()) {
        (Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Body::Chunked),
        _ => Err(Refusal::TransferCoding),
    }
}

fn check_host(head: &Head<'_>) -> Result<(), Refusal> {
    //= RFC 9112 3.2: 400 to an HTTP/1.1 request without Host, to any with several, or an invalid one
    let mut hosts = head.all("host");
    match (hosts.next(), hosts.next(), head.version) {
        (Some(host), None, _) if is_host(host) => Ok(()),
        (None, None, 0) => Ok(()),
        _ => Err(Refusal::Host),
    }
}

/// Headers that decide on whose behalf a request comes. Of two values a proxy in front may have judged one
/// and this node the other, so a second one is refused whatever it says.
pub const SINGLE_HEADERS: [&str; 4] = ["authorization", "origin", "sec-fetch-site", "x-api-key"];

fn check_single(head: &Head<'_>) -> Result<(), Refusal> {
    let mut seen = [false; SINGLE_HEADERS.len()];
    for (name, _) in head.headers() {
        let at = SINGLE_HEADERS.iter().position(|single| single.eq_ignore_ascii_case(name));
        if let Some(at) = at
            && std::mem::replace(&mut seen[at], true)
        {
            return Err(Refusal::Repeated);
        }
    }
    Ok(())
}

/// Whether the value of a `Host` is a host, with a port perhaps (RFC 9110 7.2, RFC 3986 3.2.2). Empty is valid:
/// clients send it for targets without an authority.
pub fn is_host(value: &[u8]) -> bool {
    let Ok(value) = std::str::from_utf8(value) else { return false };
    let (host, port) = match value.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else { return false };
            // A zone is for the sender alone (RFC 6874), but some clients leave it in.
            let address = address.split('%').next().unwrap_or_default();
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            ("", port)
        }
        None => value.find(':').map_or((value, ""), |colon| value.split_at(colon)),
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte);
    let port = match port.strip_prefix(':') {
        Some(digits) => {
            digits.bytes().all(|byte| byte.is_ascii_digit())
                && (digits.is_empty() || digits.parse::<u16>().is_ok())
        }
        None => port.is_empty(),
    };
    port && host.bytes().all(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The compared parts of a head.
    fn outline(buf: &[u8]) -> Result<Option<String>, Refusal> {
        Ok(parse(buf)?.map(|head| {
            let Head { method, path, query, version, body, .. } = &head;
            let alive = head.reuse().is_kept();
            format!("{method} {path} ? {query} 1.{version} {body:?} {alive}")
        }))
    }

    #[test]
    fn requests() {
        let ok = |text: &str| Ok(text.to_string());
        let table = [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", ok("GET / ?  1.1 Length(0) true")),
            ("GET / HTTP/1.1\nHost: a\n\n", ok("GET / ?  1.1 Length(0) true")),
            ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", ok("GET / ?  1.1 Length(0) true")),
            ("GET /a?b=c?d HTTP/1.0\r\n\r\n", ok("GET /a ? b=c?d 1.0 Length(0) false")),
            (
                "GET /a HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
                ok("GET /a ?  1.0 Length(0) true"),
            ),
            (
                "GET http://h:1/a?b HTTP/1.1\r\nHost: h\r\nConnection: x, CLOSE\r\n\r\n",
                ok("GET /a ? b 1.1 Length(0) false"),
            ),
            ("GET HTTPS://h?q HTTP/1.1\r\nhost: h\r\n\r\n", ok("GET / ? q 1.1 Length(0) true")),
            ("GET http://h HTTP/1.1\r\nhost: h\r\n\r\n", ok("GET / ?  1.1 Length(0) true")),
            ("OPTIONS * HTTP/1.1\r\nhost: h\r\n\r\n", ok("OPTIONS * ?  1.1 Length(0) true")),
            (
                "GET /?u=http://x/ HTTP/1.1\r\nhost: h\r\n\r\n",
                ok("GET / ? u=http://x/ 1.1 Length(0) true"),
            ),
            (
                "POST /p HTTP/1.1\r\nHost: a\r\ncontent-length: 12\r\n\r\n{",
                ok("POST /p ?  1.1 Length(12) true"),
            ),
            (
                "POST /p HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n",
                ok("POST /p ?  1.1 Chunked true"),
            ),
            ("GET / HTTP/1.1\r\n\r\n", Err(Refusal::Host)),
            ("GET / HTTP/1.1\r\nHost: a\r\nHOST: a\r\n\r\n", Err(Refusal::Host)),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
                Err(Refusal::BodyLength),
            ),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", Err(Refusal::BodyLength)),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n",
                Err(Refusal::BodyLength),
            ),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", Err(Refusal::BodyLength)),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n",
                Err(Refusal::BodyLength),
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                Err(Refusal::BodyLength),
            ),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Err(Refusal::BodyLength)),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
                Err(Refusal::TransferCoding),
            ),
            ("GET / HTTP/1.1\r\nHost: a\r\nOrigin: b\r\nORIGIN: b\r\n\r\n", Err(Refusal::Repeated)),
            ("GET / HTTP/1.0\r\nX-API-Key: b\r\nx-api-key:\r\n\r\n", Err(Refusal::Repeated)),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: b\r\nX: y\r\nauthorization: c\r\n\r\n",
                Err(Refusal::Repeated),
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nSec-Fetch-Site: b\r\nSec-Fetch-Site: c\r\n\r\n",
                Err(Refusal::Repeated),
            ),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Err(Refusal::Version)),
            ("GET / HTTP/3.0\r\nHost: a\r\n\r\n", Err(Refusal::Version)),
            ("GET / HTTP/0.9\n\n", Err(Refusal::Version)),
            ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", Err(Refusal::Malformed)),
            ("GET / HTTP/2\r\nHost: a\r\n\r\n", Err(Refusal::Malformed)),
            ("GET / HTTP/11.1\r\nHost: a\r\n\r\n", Err(Refusal::Malformed)),
            ("GET / http/1.1\r\nHost: a\r\n\r\n", Err(Refusal::Malformed)),
            ("GET /\r\n\r\n", Err(Refusal::Malformed)),
            ("GET / FTP/1.1\r\n\r\n", Err(Refusal::Malformed)),
            ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", Err(Refusal::Malformed)),
            ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", Err(Refusal::Malformed)),
            ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", Err(Refusal::Malformed)),
            ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", Err(Refusal::Malformed)),
            ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", Err(Refusal::Host)),
            ("GET / HTTP/1.0\r\nHost: a b\r\n\r\n", Err(Refusal::Host)),
            ("GET  / HTTP/1.1\r\n\r\n", Err(Refusal::Malformed)),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", Err(Refusal::Malformed)),
            ("GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", Err(Refusal::Malformed)),
            ("GET / HTTP/1.1\r\nHost: a\0\r\n\r\n", Err(Refusal::Malformed)),
            ("GET / HTTP/1.1\r\n: a\r\n\r\n", Err(Refusal::Malformed)),
            ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Err(Refusal::Malformed)),
            ("\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}", Err(Refusal::Malformed)),
            ("{\"id\":1}\n\n", Err(Refusal::Malformed)),
        ];
        for (request, expected) in table {
            let bytes = request.as_bytes();
            assert_eq!(outline(bytes), expected.clone().map(Some), "{request:?}");
            if let Ok(Some(head)) = parse(bytes) {
                assert!(matches!(&request[head.bytes..], "" | "{"), "{request:?}");
            }
            // Cut anywhere: no answer yet, or the same refusal.
            let whole = parse(bytes).map_or(bytes.len(), |head| head.map_or(0, |head| head.bytes));
            let mut scanned = 0;
            for cut in 0..whole {
                let head = &bytes[..cut];
                match outline(head) {
                    Ok(None) => {}
                    other => assert_eq!(other, expected.clone().map(Some), "{request:?} at {cut}"),
                }
                if expected.is_ok() {
                    assert!(!head_complete(head, &mut scanned), "{request:?} at {cut}");
                }
            }
            if expected.is_ok() {
                assert!(head_complete(&bytes[..whole], &mut scanned), "{request:?}");
                assert!(head_complete(bytes, &mut 0), "{request:?}");
            }
        }
    }

    #[test]
    fn hosts() {
        for host in [
            "",
            "a",
            "a:",
            "a:80",
            "a.b-c_d:65535",
            "127.0.0.1:8000",
            "[::1]",
            "[::1]:80",
            "xn--a",
            "[fe80::1%25eth0]:80",
            "a%20b",
            ":80",
        ] {
            assert!(is_host(host.as_bytes()), "{host:?}");
        }
        for host in [
            "a b", "a/b", "a@b", "http://a", "a:b", "a:80:80", "a:65536", "a:-1", "[::1", "::1",
            "[a]", "[::1]a", "a,b c", "a?b", "a#b", "a\\b", "<a>", "\u{e4}", "a\t",
        ] {
            assert!(!is_host(host.as_bytes()), "{host:?}");
        }
        assert!(!is_host(b"\xff"));
    }

    #[test]
    fn connections_that_are_kept() {
        for (version, header, expected) in [
            ("1.1", "", Reuse::Keep),
            ("1.1", "Connection: close\r\n", Reuse::Close),
            ("1.1", "Connection: keep-alive\r\n", Reuse::Keep),
            ("1.0", "", Reuse::Close),
            ("1.0", "Connection: Keep-Alive\r\n", Reuse::KeepStated),
            ("1.0", "Connection: keep-alive, close\r\n", Reuse::Close),
        ] {
            let request = format!("GET / HTTP/{version}\r\nHost: a\r\n{header}\r\n");
            assert_eq!(parse(request.as_bytes()).unwrap().unwrap().reuse(), expected, "{request}");
        }
    }

    #[test]
    fn bounds() {
        let line = "GET / HTTP/1.1\r\nHost: a\r\n";
        let headers = |count: usize| format!("{line}{}\r\n", "X: y\r\n".repeat(count));
        assert!(matches!(parse(headers(HEADERS_MAX - 1).as_bytes()), Ok(Some(_))));
        assert_eq!(outline(headers(HEADERS_MAX).as_bytes()), Err(Refusal::HeadersTooMany));

        let padded = |bytes: usize| {
            let end = "\r\n\r\n";
            format!("{line}X: {}{end}", "y".repeat(bytes - line.len() - 3 - end.len()))
        };
        let fits = padded(HEAD_BYTES_MAX);
        assert!(matches!(parse(fits.as_bytes()), Ok(Some(head)) if head.bytes == HEAD_BYTES_MAX));
        let longer = padded(HEAD_BYTES_MAX + 1);
        assert_eq!(outline(longer.as_bytes()), Err(Refusal::HeadTooLong));
        assert_eq!(outline(&longer.as_bytes()[..HEAD_BYTES_MAX]), Err(Refusal::HeadTooLong));
        assert_eq!(outline(&longer.as_bytes()[..HEAD_BYTES_MAX - 1]), Ok(None));
        assert!(head_complete(&longer.as_bytes()[..HEAD_BYTES_MAX], &mut 0));

        let target = format!("\r\nGET /{}", "a".repeat(HEAD_BYTES_MAX));
        assert_eq!(outline(target.as_bytes()), Err(Refusal::TargetTooLong));
    }

    #[test]
    fn headers_by_name() {
        let buf = b"GET / HTTP/1.1\r\nHost: a\r\nAccept: x , ,y\r\naccept: Z\r\nOne: 1\r\n\r\n";
        let head = parse(buf).unwrap().unwrap();
        assert_eq!(head.header("ACCEPT"), Some(&b"x , ,y"[..]));
        assert_eq!(head.header("none"), None);
        assert_eq!(head.single("accept"), None);
        assert_eq!(head.single("one"), Some(&b"1"[..]));
        assert_eq!(head.list("accept").collect::<Vec<_>>(), [&b"x"[..], b"y", b"Z"]);
        assert!(head.has_token("accept", "z") && !head.has_token("accept", ""));
        assert_eq!(head.headers().count(), 4);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(
            bytes in proptest::collection::vec(
                proptest::sample::select(&b"GET / HTTP/1.1\r\n\n:h0\xff\0"[..]), 0..200,
            ),
        ) {
            let mut scanned = 0;
            for cut in 0..=bytes.len() {
                let verdict = outline(&bytes[..cut]);
                // Input that the scanner does not announce has no head in it.
                if !head_complete(&bytes[..cut], &mut scanned) {
                    prop_assert!(!matches!(verdict, Ok(Some(_))));
                } else {
                    break;
                }
            }
        }
    }
}
