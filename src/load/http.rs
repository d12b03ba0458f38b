//! Connections without a WebSocket: requests and responses as SDKs have them over `http_stream`, `sse` and
//! `long_poll` (client protocol, 5 to 7).
//!
//! ```text
//!  POST or GET with connect and subscribe --> 200, chunks of replies and pushes ...
//!  pongs of all connections of a thread --> one connection to /emulation, pipelined
//!  GET with positions --> one answer --> GET with the positions of that answer ...
//! ```

use super::dial;
use super::hub;
use super::output::{plain, write_some};
use super::plan::{Plan, Population};
use super::speech;
use super::tls::{Layer, Tls};
use crate::base::form::Transport;
use crate::base::limits::HEAD_BYTES_MAX;
use crate::proto::tls::Opener;
use compact_str::CompactString;
use httparse::{EMPTY_HEADER, Response, Status};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};

/// Bytes of one message, chunk or answer that a server may send.
pub(crate) const BODY_BYTES_MAX: usize = 32 << 20;

/// The state of such a connection beside its record.
#[derive(Debug, Default)]
pub(crate) struct Side {
    /// Its name on the up-link.
    pub(crate) session: CompactString,
    pub(crate) node: CompactString,
    /// Where it stands in its channel, if it polls.
    pub(crate) position: Option<(u64, CompactString)>,
    /// A line of a stream of events that is not whole.
    pub(crate) line: Vec<u8>,
}

/// Appends the request that a connection begins with: `message` is a frame of commands, or a connect request.
pub(crate) fn put_request(plan: &Plan, number: u32, message: &[u8], out: &mut Vec<u8>) {
    let population = plan.population(number);
    let (host, path) = (&population.target.host, &population.target.path);
    let headers = headers(plan, number);
    if population.hub.is_some() {
        let channel = plan.channels.get(plan.channel_of(number) as usize);
        let path = hub::placed(&plan.path_of(number), channel.map_or("", String::as_str));
        // Writing to a Vec cannot fail.
        let _ = write!(
            out,
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n{headers}\r\n"
        );
        return;
    }
    if population.transport == Transport::HttpStream {
        return put_post(host, path, &headers, message, out);
    }
    let asked: String = form_urlencoded::byte_serialize(message).collect();
    // Writing to a Vec cannot fail.
    let _ = write!(out, "GET {path}?cf_connect={asked} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n");
}

/// The headers of the flags, each on its line.
fn headers(plan: &Plan, number: u32) -> String {
    plan.headers.of(number).into_iter().fold(String::new(), |mut text, (name, value)| {
        for part in [name, ": ", &value, "\r\n"] {
            text.push_str(part);
        }
        text
    })
}

/// Appends a request with a body.
fn put_post(host: &str, path: &str, headers: &str, body: &[u8], out: &mut Vec<u8>) {
    let length = body.len();
    // Writing to a Vec cannot fail.
    let _ = write!(
        out,
        "POST {path} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: {length}\r\n\r\n"
    );
    out.extend_from_slice(body);
}

/// The beginning of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Its bytes.
    pub(crate) bytes: usize,
    pub(crate) status: u16,
    /// Bytes of the body; `None` when it comes in chunks, or ends with the connection.
    pub(crate) length: Option<usize>,
    pub(crate) is_chunked: bool,
}

/// Reads the head that `bytes` begin with; `None` when its end hasn't come.
///
/// # Errors
/// It is none: what is wrong with it.
pub(crate) fn head(bytes: &[u8]) -> Result<Option<Head>, &'static str> {
    let mut headers = [EMPTY_HEADER; 32];
    let mut response = Response::new(&mut headers);
    let len = match response.parse(bytes) {
        Ok(Status::Complete(len)) => len,
        Ok(Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
        _ => return Err("the answer is not an HTTP/1.1 response"),
    };
    let get = |name: &str| {
        let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| header.value)
    };
    let status = response.code.unwrap_or_default();
    let length = match get("content-length") {
        Some(length) => {
            let length = std::str::from_utf8(length).ok().and_then(|length| length.parse().ok());
            let length: Option<usize> = length.filter(|length| *length <= BODY_BYTES_MAX);
            Some(length.ok_or("an answer that is too long, or of unknown length")?)
        }
        None if status == 204 => Some(0),
        None => None,
    };
    let chunked = get("transfer-encoding").is_some_and(|of| of.eq_ignore_ascii_case(b"chunked"));
    Ok(Some(Head { bytes: len, status, length, is_chunked: chunked && length.is_none() }))
}

/// The chunk that `bytes` begin with: where its content is, and where the next one begins. `None` when it isn't
/// all here.
///
/// # Errors
/// It is none.
pub(crate) fn chunk(bytes: &[u8]) -> Result<Option<(std::ops::Range<usize>, usize)>, &'static str> {
    match httparse::parse_chunk_size(bytes) {
        Ok(Status::Complete((start, size))) => {
            let size = usize::try_from(size).ok().filter(|size| *size <= BODY_BYTES_MAX);
            let end = start + size.ok_or("a chunk that is too long")?;
            Ok((bytes.len() >= end + 2).then_some((start..end, end + 2)))
        }
        Ok(Status::Partial) => Ok(None),
        Err(_) => Err("a chunk that is none"),
    }
}

/// The index of the up-link among the connections of its thread.
pub(crate) const UP_LINK: u32 = u32::MAX - 1;

/// The index of its TLS among one.
const ONLY: u32 = 0;

/// The one connection that a thread's pongs go over.
#[derive(Default)]
pub(crate) struct UpLink {
    fd: Option<OwnedFd>,
    generation: u32,
    /// It is there: bytes may be written.
    up: bool,
    out: Vec<u8>,
    input: Vec<u8>,
    tls: Option<Layer>,
    /// The connection whose server it goes to: that of the newest push.
    number: u32,
    tls_of: Option<Tls>,
    /// Sealed bytes that the socket has not taken.
    sealed: Vec<u8>,
}

impl UpLink {
    /// Sends commands for a connection, behind those of others.
    pub(crate) fn push(&mut self, plan: &Plan, number: u32, side: &Side, commands: &str) {
        let population = plan.population(number);
        self.tls_of = population.target.tls.clone();
        self.number = number;
        let body = speech::emulation(&side.session, &side.node, commands);
        // The connection of all that a thread has: its headers are those of the first one.
        let headers = headers(plan, 0);
        let Population { target, up_path, .. } = population;
        put_post(&target.host, up_path, &headers, body.as_bytes(), &mut self.out);
    }

    /// Opens it if it is needed, and writes.
    ///
    /// # Errors
    /// Text for the user: it can't be used. What was to be sent is forgotten.
    pub(crate) fn drive(&mut self, plan: &Plan, registry: &Registry) -> Result<(), String> {
        if self.out.is_empty() && self.sealed.is_empty() {
            return Ok(());
        }
        if self.fd.is_none() {
            self.generation = self.generation.wrapping_add(1);
            let token = Token((self.generation as usize) << 32 | UP_LINK as usize);
            let both = Interest::READABLE | Interest::WRITABLE;
            let dialled = dial::dial(plan, self.number).and_then(|(socket, up)| {
                registry.register(&mut SourceFd(&socket.as_raw_fd()), token, both)?;
                self.up = up;
                Ok(OwnedFd::from(socket))
            });
            self.fd = Some(dialled.map_err(|error| self.fail(&plain(&error)))?);
            self.tls = self.tls_of.clone().map(Layer::new);
            if let Some(tls) = &mut self.tls {
                tls.begin(ONLY).map_err(|error| self.fail(&error))?;
            }
        }
        if self.up { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<(), String> {
        let unsent = match &mut self.tls {
            None => &mut self.out,
            Some(tls) => {
                let mut out = Vec::new();
                if tls.is_done(ONLY) {
                    std::mem::swap(&mut out, &mut self.out);
                }
                tls.seal(ONLY, &mut out);
                self.sealed.append(&mut out);
                &mut self.sealed
            }
        };
        let written = write_some(self.fd.as_ref(), unsent).map(|count| drop(unsent.drain(..count)));
        written.map_err(|error| self.fail(&plain(&error.into())))
    }

    /// Takes bytes off the socket.
    fn received(&mut self, bytes: &mut [u8]) -> Result<(), String> {
        let Some(tls) = &mut self.tls else {
            self.input.extend_from_slice(bytes);
            return self.answers();
        };
        let mut at = 0;
        let mut opener = Opener::new();
        let mut result = tls.shake(ONLY, bytes, &mut at).map(|_| ());
        while result.is_ok() {
            match tls.open(ONLY, &mut opener, bytes, &mut at) {
                Ok(Some(data)) => self.input.extend_from_slice(data),
                Ok(None) => break,
                Err(fault) => result = Err(fault),
            }
        }
        self.write()?;
        result.map_err(|fault| self.fail(&fault))?;
        self.answers()
    }

    /// Whether an event is about this connection.
    pub(crate) fn is(&self, generation: u32) -> bool {
        self.fd.is_some() && self.generation == generation
    }

    /// It can be written to, or something has come.
    ///
    /// # Errors
    /// As [`Self::drive`]; or an answer that is none to commands that were taken.
    pub(crate) fn ready(&mut self, buffer: &mut [u8]) -> Result<(), String> {
        self.up = true;
        while let Some(fd) = &self.fd {
            match rustix::io::read(fd, &mut *buffer) {
                Ok(0) => {
                    // Kept alive for long enough.
                    self.fd = None;
                    self.input.clear();
                    (self.tls, self.sealed) = (None, Vec::new());
                }
                Ok(count) => {
                    self.received(&mut buffer[..count])?;
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.fail(&plain(&error.into()))),
            }
        }
        Ok(())
    }

    fn answers(&mut self) -> Result<(), String> {
        loop {
            let found = head(&self.input).map_err(|fault| self.fail(fault))?;
            let Some(Head { bytes, status, length, .. }) = found else { return Ok(()) };
            let end = bytes + length.unwrap_or_default();
            if self.input.len() < end {
                return Ok(());
            }
            self.input.drain(..end);
            if status != 204 {
                return Err(self.fail(&format!("answered with {status}")));
            }
        }
    }

    fn fail(&mut self, reason: &str) -> String {
        *self = Self { generation: self.generation, ..Self::default() };
        format!("up-link: {reason}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_and_chunks() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        let bytes = whole.len() - 2;
        let expected = Head { bytes, status: 200, length: Some(2), is_chunked: false };
        assert_eq!(head(whole), Ok(Some(expected)));
        assert_eq!(head(&whole[..20]), Ok(None));
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let found = head(chunked).unwrap().unwrap();
        assert_eq!((found.bytes, found.length), (chunked.len(), None));
        let endless = head(b"HTTP/1.1 200 OK\r\n\r\n").unwrap().unwrap();
        assert_eq!((found.is_chunked, endless.is_chunked), (true, false));
        assert!(head(b"nonsense\r\n\r\n").is_err());
        assert_eq!(chunk(b"3\r\nabc\r\n0\r\n"), Ok(Some((3..6, 8))));
        for part in [&b"3\r\nab"[..], b"3\r\nabc\r", b"3", b""] {
            assert_eq!(chunk(part), Ok(None), "{part:?}");
        }
        assert!(chunk(b"x\r\n").is_err());
        // A body without a bound is not awaited.
        assert!(chunk(b"2000001\r\n").is_err() && chunk(b"ffffffffffffffff\r\n").is_err());
        assert!(head(b"HTTP/1.1 200 OK\r\nContent-Length: 33554433\r\n\r\n").is_err());
        let endless = [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'x'; HEAD_BYTES_MAX]].concat();
        assert!(head(&endless).is_err());
    }
}
