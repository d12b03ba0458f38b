//! One connection of a thread of its own, with or without TLS.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use super::output::plain;
use super::tls::{Layer, Tls};
use crate::proto::tls::Opener;

/// The index of its TLS among one.
const ONLY: u32 = 0;

/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;

/// A stream of bytes.
pub(super) struct Stream {
    socket: TcpStream,
    tls: Option<Layer>,
    /// Sealed bytes that the socket has not taken.
    sealed: Vec<u8>,
    /// Received data that nobody has read.
    unread: Vec<u8>,
}

impl Stream {
    /// Shakes hands, if it is TLS; the socket has to be a blocking one.
    ///
    /// # Errors
    /// Text for the user.
    pub(super) fn new(socket: TcpStream, tls: Option<&Tls>) -> Result<Self, String> {
        let tls = tls.cloned().map(Layer::new);
        let mut stream = Self { socket, tls, sealed: Vec::new(), unread: Vec::new() };
        if let Some(tls) = &mut stream.tls {
            tls.begin(ONLY)?;
        }
        let mut input = vec![0; READ_BYTES];
        while stream.tls.as_ref().is_some_and(|tls| !tls.is_done(ONLY)) {
            stream.flush().map_err(|error| plain(&error))?;
            match stream.socket.read(&mut input).map_err(|error| plain(&error))? {
                0 => return Err("the server ended the connection in the TLS handshake".to_owned()),
                count => stream.received(&mut input[..count]).map_err(|error| error.to_string())?,
            }
        }
        stream.flush().map_err(|error| plain(&error))?;
        Ok(stream)
    }

    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        self.socket.set_nonblocking(true)
    }

    /// Whether bytes wait for the socket that [`Write::write`] has taken.
    pub(super) fn is_blocked(&self) -> bool {
        !self.sealed.is_empty()
    }

    /// Whether data waits to be read that the socket doesn't show any more.
    pub(super) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    fn received(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        let mut at = 0;
        let mut opener = Opener::new();
        let mut result = tls.shake(ONLY, bytes, &mut at).map(|_| ());
        while result.is_ok() {
            match tls.open(ONLY, &mut opener, bytes, &mut at) {
                Ok(Some(data)) => self.unread.extend_from_slice(data),
                Ok(None) => break,
                Err(fault) => result = Err(fault),
            }
        }
        // Handshakes go on, and an alert says what was wrong.
        let mut out = Vec::new();
        tls.seal(ONLY, &mut out);
        self.sealed.append(&mut out);
        match self.flush() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
        result.map_err(io::Error::other)
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.tls.is_none() {
            return self.socket.read(buffer);
        }
        let mut input = vec![0; READ_BYTES];
        while self.unread.is_empty() {
            match self.socket.read(&mut input)? {
                0 => return Ok(0),
                count => self.received(&mut input[..count])?,
            }
        }
        let count = self.unread.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.unread[..count]);
        self.unread.drain(..count);
        Ok(count)
    }
}

impl Write for Stream {
    /// With TLS all of it is taken or nothing: what is sealed has to go out.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.flush()?;
        let Some(tls) = &mut self.tls else { return self.socket.write(bytes) };
        let mut out = bytes.to_vec();
        tls.seal(ONLY, &mut out);
        self.sealed = out;
        match self.flush() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Some(tls) = self.tls.as_mut().filter(|_| self.sealed.is_empty()) {
            tls.seal(ONLY, &mut self.sealed);
        }
        while !self.sealed.is_empty() {
            let count = self.socket.write(&self.sealed)?;
            self.sealed.drain(..count);
        }
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
