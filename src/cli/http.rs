//! HTTP to a running node, for commands: one request on a connection of its own, without a runtime.
//!
//! An image has no curl, and a health check runs each few seconds: a request costs one thread, one socket
//! and no pool.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use httparse::{EMPTY_HEADER, Status};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

/// Bytes of an answer at most. Metrics of a node with many namespaces are the longest.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Headers of an answer at most.
const HEADERS_MAX: usize = 64;

/// Where a node listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// Host and port; a name is resolved for each request.
    Tcp(String, u16),
    /// A socket's file.
    Unix(PathBuf),
}

/// One way to a node.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    pub at: At,
    /// TLS, with the certificates that are accepted; `None`: without TLS.
    pub tls: Option<Arc<ClientConfig>>,
    /// The listener expects a PROXY header of its peers.
    pub proxy_header: bool,
    pub timeout: Duration,
}

/// A connection of any kind.
pub(super) trait Stream: Read + Write + Send {
    /// Bounds each read.
    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()>;
}

impl Stream for TcpStream {
    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(timeout))
    }
}

impl Stream for UnixStream {
    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(timeout))
    }
}

impl<S: Stream> Stream for StreamOwned<ClientConnection, S> {
    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.sock.set_read_timeout(timeout)
    }
}

/// A connection of any kind, boxed.
pub(super) struct Connection(Box<dyn Stream>);

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Connection {
    pub(super) fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.0.set_read_timeout(timeout)
    }
}

/// A request.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Request<'a> {
    pub path: &'a str,
    /// Name and value of each further header.
    pub headers: &'a [(&'a str, &'a str)],
    /// A request with a body is a POST.
    pub body: Option<&'a [u8]>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_owned()
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.at {
            At::Tcp(..) => write!(f, "{}://{}", self.scheme(), self.host()),
            At::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Endpoint {
    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// The `Host` of requests.
    pub(super) fn host(&self) -> String {
        match &self.at {
            At::Tcp(host, port) if host.contains(':') => format!("[{host}]:{port}"),
            At::Tcp(host, port) => format!("{host}:{port}"),
            At::Unix(_) => "localhost".to_owned(),
        }
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// Text for the user: `ADDRESS: what failed`.
    pub(super) fn request(&self, request: Request<'_>) -> Result<Answer, String> {
        let said = |fault: io::Error| format!("{self}: {}", plain(&fault));
        let mut stream = self.connect().map_err(said)?;
        stream.write_all(&self.head(request)).map_err(said)?;
        stream.write_all(request.body.unwrap_or_default()).map_err(said)?;
        stream.flush().map_err(said)?;
        let mut bytes = Vec::new();
        match (&mut stream).take(ANSWER_BYTES_MAX).read_to_end(&mut bytes) {
            Ok(_) => {}
            // Some peers end TLS without a closing alert; whether the answer is whole is seen below.
            Err(fault) if fault.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(fault) => return Err(said(fault)),
        }
        answer(&bytes).map_err(|fault| format!("{self}: {fault}"))
    }

    fn head(&self, request: Request<'_>) -> Vec<u8> {
        let method = if request.body.is_some() { "POST" } else { "GET" };
        let mut head = format!(
            "{method} {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: roost/{}\r\nConnection: close\r\n",
            request.path,
            self.host(),
            env!("CARGO_PKG_VERSION"),
        );
        for (name, value) in request.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if let Some(body) = request.body {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        (head + "\r\n").into_bytes()
    }

    /// A connection, with TLS where the listener speaks it.
    ///
    /// # Errors
    /// It was refused, or took too long.
    pub(super) fn connect(&self) -> io::Result<Connection> {
        match &self.at {
            At::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_write_timeout(Some(self.timeout))?;
                stream.set_read_timeout(Some(self.timeout))?;
                self.secured(stream, "localhost")
            }
            At::Tcp(host, port) => {
                let stream = self.dial(host, *port)?;
                stream.set_write_timeout(Some(self.timeout))?;
                stream.set_read_timeout(Some(self.timeout))?;
                self.secured(stream, host)
            }
        }
    }

    fn dial(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let mut last = io::Error::other("the name has no address");
        let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
        for address in addresses {
            match TcpStream::connect_timeout(&address, self.timeout) {
                Ok(stream) => return Ok(stream),
                Err(fault) => last = fault,
            }
        }
        Err(last)
    }

    fn secured<S: Stream + 'static>(&self, mut stream: S, host: &str) -> io::Result<Connection> {
        if self.proxy_header {
            // Of a connection that is the proxy's own, as health checks are.
            stream.write_all(b"PROXY UNKNOWN\r\n")?;
        }
        let Some(config) = &self.tls else { return Ok(Connection(Box::new(stream))) };
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let tls = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        Ok(Connection(Box::new(StreamOwned::new(tls, stream))))
    }
}

/// A fault of the system, without its number.
fn plain(fault: &io::Error) -> String {
    match fault.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "no answer in time".to_owned(),
        io::ErrorKind::ConnectionRefused => "the connection is refused".to_owned(),
        io::ErrorKind::NotFound => "no such socket".to_owned(),
        _ => {
            let text = fault.to_string();
            text.split(" (os error").next().unwrap_or_default().to_owned()
        }
    }
}

/// Reads a whole answer.
fn answer(bytes: &[u8]) -> Result<Answer, String> {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(bytes) {
        Ok(Status::Complete(head)) => head,
        Ok(Status::Partial) if bytes.is_empty() => {
            return Err("the connection was closed without an answer".to_owned());
        }
        _ => return Err("the answer is not HTTP/1.1; is it another port, or TLS?".to_owned()),
    };
    let header = |name: &str| {
        let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let rest = &bytes[head..];
    let status = response.code.unwrap_or_default();
    if header("transfer-encoding").is_some_and(|of| of.eq_ignore_ascii_case("chunked")) {
        let body = chunks(rest).ok_or("the answer ends too early")?;
        return Ok(Answer { status, body });
    }
    let body = match header("content-length").map(str::parse::<usize>) {
        Some(Ok(length)) => rest.get(..length).ok_or("the answer ends too early")?,
        Some(Err(_)) => return Err("an answer of unknown length".to_owned()),
        None => rest,
    };
    Ok(Answer { status, body: body.to_vec() })
}

/// The content of chunks; `None` when the last one is missing.
fn chunks(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let Ok(Status::Complete((start, size))) = httparse::parse_chunk_size(bytes) else {
            return None;
        };
        if size == 0 {
            return Some(body);
        }
        let end = start.checked_add(usize::try_from(size).ok()?)?;
        body.extend_from_slice(bytes.get(start..end)?);
        bytes = bytes.get(end + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole_or_refused() {
        let read =
            |text: &str| answer(text.as_bytes()).map(|answer| (answer.status, answer.text()));
        let good = |status, text: &str| Ok((status, text.to_owned()));
        for (text, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", good(200, "{}")),
            ("HTTP/1.1 503 Gone\r\n\r\nrest", good(503, "rest")),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n",
                good(200, "abcd"),
            ),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
        for text in [
            "",
            "SSH-2.0-x\r\n",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn hosts_as_requests_have_them() {
        let host = |at| {
            let (tls, timeout) = (None, Duration::ZERO);
            Endpoint { at, tls, proxy_header: false, timeout }.host()
        };
        assert_eq!(host(At::Tcp("::1".into(), 80)), "[::1]:80");
        assert_eq!(host(At::Tcp("a.example".into(), 80)), "a.example:80");
        assert_eq!(host(At::Unix("/run/roost".into())), "localhost");
    }
}
