//! The protocol between a client and a server of NATS: lines that end with CR LF, with bytes behind some.
//!
//! | from the server | content |
//! | --- | --- |
//! | `INFO {...}` | the server and what it can do |
//! | `MSG subject sid [reply] bytes` | a message, its bytes in the next line |
//! | `HMSG subject sid [reply] header-bytes bytes` | the same with headers before the bytes |
//! | `PING`, `PONG`, `+OK`, `-ERR '...'` | |

use std::fmt::Write as _;

use serde::Deserialize;

/// Bytes of a line at most: `INFO` names all servers of a cluster.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Bytes of a message at most: what a server can be configured to carry.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// A message of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// The server and what it can do, in JSON.
    Info(&'a [u8]),
    /// A message.
    Message(Message<'a>),
    /// Wants a `PONG`.
    Ping,
    /// All that came before the `PING` is carried out.
    Pong,
    /// An error, without its quotes. The connection may end behind it.
    Error(&'a str),
    /// Means nothing.
    Ok,
}

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its subject.
    pub subject: &'a str,
    /// The subscription.
    pub sid: u64,
    /// Its headers, with their first line; empty for none.
    pub headers: Headers<'a>,
    /// Its content.
    pub payload: &'a [u8],
}

/// The headers of a message, as they came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers<'a>(&'a str);

impl<'a> Headers<'a> {
    /// The status that stands for a reply of the server itself; `None` for an ordinary message.
    pub fn status(&self) -> Option<u16> {
        let first = self.0.split("\r\n").next()?.strip_prefix(VERSION)?;
        first.trim_start().split(' ').next()?.parse().ok()
    }

    /// The value of a header.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        let lines = self.0.split("\r\n").skip(1);
        let value = |line: &'a str| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        };
        lines.filter_map(value).next()
    }

    /// The number in a header.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Begins headers.
const VERSION: &str = "NATS/1.0";

/// Bytes that are not this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A line without end.
    #[error("a line without end")]
    Line,
    /// A line that begins with no known word.
    #[error("an unknown line")]
    Word,
    /// A message whose line can't be read.
    #[error("a message whose line is malformed")]
    Message,
    /// A message of more bytes than any server carries.
    #[error("a message that is too long")]
    Length,
}

/// The first operation in these bytes, and how many of them it takes; `None` when more have to come.
///
/// # Errors
/// They are not this protocol: nothing behind them can be read.
pub fn next(bytes: &[u8]) -> Result<Option<(Op<'_>, usize)>, Malformed> {
    let searched = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let Some(end) = searched.iter().position(|byte| *byte == b'\n') else {
        return if bytes.len() < LINE_BYTES_MAX { Ok(None) } else { Err(Malformed::Line) };
    };
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    let taken = end + 1;
    let at = line.iter().position(|byte| matches!(byte, b' ' | b'\t')).unwrap_or(line.len());
    let (word, rest) = (&line[..at], line[at..].trim_ascii());
    let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
    let op = if is("MSG") {
        return message(bytes, taken, rest, false);
    } else if is("HMSG") {
        return message(bytes, taken, rest, true);
    } else if is("PONG") {
        Op::Pong
    } else if is("PING") {
        Op::Ping
    } else if is("+OK") {
        Op::Ok
    } else if is("-ERR") {
        Op::Error(text(rest)?.trim_matches('\''))
    } else if is("INFO") {
        Op::Info(rest)
    } else {
        return Err(Malformed::Word);
    };
    Ok(Some((op, taken)))
}

/// A message: its line is `rest`, its bytes begin at `start`.
fn message<'a>(
    bytes: &'a [u8],
    start: usize,
    rest: &'a [u8],
    has_headers: bool,
) -> Result<Option<(Op<'a>, usize)>, Malformed> {
    let mut parts = text(rest)?.split_ascii_whitespace();
    let mut all = [""; 5];
    let mut count = 0;
    for part in &mut parts {
        *all.get_mut(count).ok_or(Malformed::Message)? = part;
        count += 1;
    }
    // Subject, sid, reply if there is one, and one or two lengths.
    let lengths = 1 + usize::from(has_headers);
    if !(count == 2 + lengths || count == 3 + lengths) {
        return Err(Malformed::Message);
    }
    let number = |part: &str| part.parse::<u64>().map_err(|_| Malformed::Message);
    let length = number(all[count - 1])?;
    let header = if has_headers { number(all[count - 2])? } else { 0 };
    if length > MESSAGE_BYTES_MAX as u64 {
        return Err(Malformed::Length);
    }
    if header > length {
        return Err(Malformed::Message);
    }
    let (length, header) = (length as usize, header as usize);
    let Some(content) = bytes.get(start..start + length) else { return Ok(None) };
    let Some(end) = bytes.get(start + length..start + length + 2) else { return Ok(None) };
    if end != b"\r\n" {
        return Err(Malformed::Message);
    }
    let headers = Headers(std::str::from_utf8(&content[..header]).unwrap_or_default());
    let (subject, sid) = (all[0], number(all[1])?);
    let message = Message { subject, sid, headers, payload: &content[header..] };
    Ok(Some((Op::Message(message), start + length + 2)))
}

fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed::Message)
}

/// The server, as it says itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Info {
    /// Its version.
    pub version: String,
    /// Its name.
    pub server_name: String,
    /// Bytes of a message at most.
    pub max_payload: u64,
    /// It needs TLS.
    pub tls_required: bool,
    /// Messages have headers.
    pub headers: bool,
    /// It has JetStream.
    pub jetstream: bool,
    /// Other servers of its cluster, `host:port`.
    pub connect_urls: Vec<String>,
    /// It is about to end.
    pub ldm: bool,
}

impl Info {
    /// Reads it.
    ///
    /// # Errors
    /// It is not that.
    pub fn read(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    /// Its version is this one or a later one.
    pub fn is_at_least(&self, major: u64, minor: u64) -> bool {
        let mut parts = self.version.split(['.', '-']).map(|part| part.parse::<u64>().unwrap_or(0));
        let own = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        own >= (major, minor)
    }
}

/// Credentials of a connection.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// User; empty: none.
    pub user: String,
    /// Password.
    pub password: String,
    /// A token instead of both; empty: none.
    pub token: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Appends `CONNECT`.
pub fn put_connect(out: &mut Vec<u8>, credentials: &Credentials, name: &str, is_secure: bool) {
    let mut options = serde_json::json!({
        "verbose": false, "pedantic": false, "tls_required": is_secure, "name": name,
        "lang": "rust", "version": env!("CARGO_PKG_VERSION"), "protocol": 1, "echo": true,
        "headers": true, "no_responders": true,
    });
    let Credentials { user, password, token } = credentials;
    if !user.is_empty() {
        (options["user"], options["pass"]) = (user.as_str().into(), password.as_str().into());
    }
    if !token.is_empty() {
        options["auth_token"] = token.as_str().into();
    }
    out.extend_from_slice(format!("CONNECT {options}\r\n").as_bytes());
}

/// Appends `PUB`.
pub fn put_publish(out: &mut Vec<u8>, subject: &str, payload: &[u8]) {
    out.reserve(subject.len() + payload.len() + 24);
    out.extend_from_slice(b"PUB ");
    out.extend_from_slice(subject.as_bytes());
    put_number(out, b" ", payload.len() as u64);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

/// Appends `PUB` or `HPUB` with a subject for replies. Values of headers have no line feeds.
pub fn put_request(
    out: &mut Vec<u8>,
    subject: &str,
    reply: &str,
    headers: &[(&str, &str)],
    payload: &[u8],
) {
    if headers.is_empty() {
        out.extend_from_slice(format!("PUB {subject} {reply} {}\r\n", payload.len()).as_bytes());
    } else {
        let mut lines = format!("{VERSION}\r\n");
        for (name, value) in headers {
            // A text grows as needed, so there is no error.
            let _ = write!(lines, "{name}: {value}\r\n");
        }
        lines.push_str("\r\n");
        let (header, all) = (lines.len(), lines.len() + payload.len());
        out.extend_from_slice(
            format!("HPUB {subject} {reply} {header} {all}\r\n{lines}").as_bytes(),
        );
    }
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

/// Appends `SUB`.
pub fn put_subscribe(out: &mut Vec<u8>, subject: &str, sid: u64) {
    out.extend_from_slice(b"SUB ");
    out.extend_from_slice(subject.as_bytes());
    put_number(out, b" ", sid);
    out.extend_from_slice(b"\r\n");
}

/// Appends `UNSUB`.
pub fn put_unsubscribe(out: &mut Vec<u8>, sid: u64) {
    put_number(out, b"UNSUB ", sid);
    out.extend_from_slice(b"\r\n");
}

fn put_number(out: &mut Vec<u8>, before: &[u8], number: u64) {
    out.extend_from_slice(before);
    let mut digits = [0; 20];
    let (mut at, mut rest) = (digits.len(), number);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn messages_are_read_with_and_without_reply_and_headers() {
        let bytes = b"MSG a.b 9 5\r\nhe\nlo\r\nHMSG a 10 _INBOX.1 38 40\r\nNATS/1.0\r\nNats-Sequence: 7\r\nX:  y \r\n\r\n{}\r\nrest";
        let (op, taken) = next(bytes).unwrap().unwrap();
        let Op::Message(message) = op else { panic!("{op:?}") };
        assert_eq!((message.subject, message.sid, message.payload), ("a.b", 9, &b"he\nlo"[..]));
        assert!(message.headers.is_empty() && message.headers.status().is_none());
        let (op, more) = next(&bytes[taken..]).unwrap().unwrap();
        let Op::Message(message) = op else { panic!("{op:?}") };
        assert_eq!((message.sid, message.payload), (10, &b"{}"[..]));
        assert_eq!(message.headers.number("nats-sequence"), Some(7));
        assert_eq!((message.headers.get("X"), message.headers.get("Y")), (Some("y"), None));
        assert_eq!(&bytes[taken + more..], b"rest");
        for end in 0..taken {
            assert_eq!(next(&bytes[..end]), Ok(None), "{end}");
        }
    }

    #[test]
    fn a_status_is_read() {
        let bytes = b"HMSG _INBOX.1 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\nHMSG _INBOX.1 1 28 28\r\nNATS/1.0 404 Not Found  \r\n\r\n\r\n";
        let mut statuses = Vec::new();
        let mut rest = &bytes[..];
        while let Some((Op::Message(message), taken)) = next(rest).unwrap() {
            statuses.push(message.headers.status());
            rest = &rest[taken..];
        }
        assert_eq!(statuses, [Some(503), Some(404)]);
    }

    #[test]
    fn what_is_not_the_protocol_is_refused() {
        for bytes in [
            &b"HELLO\r\n"[..],
            b"MSG a 1\r\n",
            b"MSG a 1 r x y z\r\n",
            b"MSG a x 2\r\n..\r\n",
            b"MSG a 1 -2\r\n",
            b"MSG a 1 99999999999\r\n",
            b"MSG a 1 2\r\nabcd",
            b"HMSG a 1 5 2\r\nab\r\n",
            b"\r\n",
        ] {
            assert!(next(bytes).is_err(), "{:?}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(next(&vec![b'a'; LINE_BYTES_MAX]), Err(Malformed::Line));
    }

    /// The lines that a real server and a real node exchanged.
    #[test]
    fn captured_lines_are_read_and_written() {
        let lines = include_str!("../../../tests/vectors/nats/wire.jsonl").lines();
        let (mut read, mut written) = (0, 0);
        for line in lines {
            let value: Value = serde_json::from_str(line).unwrap();
            let Some(text) = value["line"].as_str() else { continue };
            let payload = value["payload_hex"].as_str().unwrap_or_default();
            let pair = |at: usize| u8::from_str_radix(&payload[at..at + 2], 16).unwrap();
            let payload: Vec<u8> = (0..payload.len()).step_by(2).map(pair).collect();
            if value["dir"] == "s2c" {
                let mut bytes = format!("{text}\r\n").into_bytes();
                if text.starts_with("MSG") {
                    bytes.extend(payload.iter().chain(b"\r\n"));
                }
                let (_, taken) = next(&bytes).unwrap().unwrap();
                assert_eq!(taken, bytes.len(), "{line}");
                read += 1;
                continue;
            }
            let words: Vec<&str> = text.split_ascii_whitespace().collect();
            let mut out = Vec::new();
            match words[..] {
                ["SUB", subject, sid] => put_subscribe(&mut out, subject, sid.parse().unwrap()),
                ["UNSUB", sid] => put_unsubscribe(&mut out, sid.parse().unwrap()),
                ["PUB", subject, _] => put_publish(&mut out, subject, &payload),
                _ => continue,
            }
            let out = String::from_utf8_lossy(&out).into_owned();
            let first: Vec<&str> = out.lines().next().unwrap().split_ascii_whitespace().collect();
            assert_eq!(first, words, "{line}");
            written += 1;
        }
        assert!(read > 20 && written > 10, "{read} {written}");
    }

    #[test]
    fn requests_have_headers_and_their_lengths() {
        let mut out = Vec::new();
        put_request(&mut out, "s", "_INBOX.1", &[("A", "b")], b"{}");
        put_request(&mut out, "s", "_INBOX.2", &[], b"{}");
        let text =
            "HPUB s _INBOX.1 18 20\r\nNATS/1.0\r\nA: b\r\n\r\n{}\r\nPUB s _INBOX.2 2\r\n{}\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), text);
    }

    #[test]
    fn versions_are_compared_by_number() {
        let info = |version: &str| Info { version: version.into(), ..Info::default() };
        assert!(info("2.11.0").is_at_least(2, 11) && info("2.15.1-RC.1").is_at_least(2, 11));
        assert!(info("3.0").is_at_least(2, 11));
        assert!(!info("2.9.10").is_at_least(2, 11) && !info("").is_at_least(2, 11));
    }

    #[test]
    fn credentials_are_part_of_connect_and_of_no_log() {
        let credentials =
            Credentials { user: "u".into(), password: "secret".into(), token: "".into() };
        let mut out = Vec::new();
        put_connect(&mut out, &credentials, "n", false);
        let json = out.strip_prefix(b"CONNECT ").unwrap();
        let options: Value = serde_json::from_slice(json).unwrap();
        assert_eq!((&options["user"], &options["pass"]), (&"u".into(), &"secret".into()));
        assert!(options["auth_token"].is_null());
        assert!(!format!("{credentials:?}").contains("secret"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in "(MSG |HMSG |-ERR |INFO )?[a-z0-9 .\r\n]{0,40}") {
            let mut rest = bytes.as_bytes();
            while let Ok(Some((_, taken))) = next(rest) {
                prop_assert!(taken > 0);
                rest = &rest[taken..];
            }
        }
    }
}
