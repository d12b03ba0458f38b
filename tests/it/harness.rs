//! A node under test, and clients of it: raw bytes, and tungstenite as a counterpart that shares
//! no frame code with the server's data path. Clients speak JSON, or Protobuf by a table of the tests'
//! own.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Error, Message, WebSocket};

use crate::{protobuf, tunnel};

/// Nothing that is awaited may take longer.
pub(crate) const BOUND: Duration = Duration::from_secs(20);

/// Where clients connect to.
pub(crate) const CLIENTS: &str = "/connection/websocket";

/// Where those connect to that speak Protobuf.
pub(crate) const PROTOBUF_CLIENTS: &str = "/connection/websocket?format=protobuf";

/// The encoding of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speech {
    Json,
    Protobuf,
}

/// Both encodings of the client protocol.
pub(crate) const BOTH: [Speech; 2] = [Speech::Json, Speech::Protobuf];

/// The options of every node unless a test overrides them: everything open to every client, and pings too
/// far away to get between the lines of a transcript.
const OPEN: &str = r#"
[client]
allowed_origins = ["*"]
allow_anonymous_connect_without_token = true
ping_interval = "10m"
[client.token]
hmac_secret_key = "secret"
[channel.without_namespace]
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
[[channel.namespaces]]
name = "stream"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
allow_positioning = true
history_size = 100
history_ttl = "10m"
"#;

/// The header with the key `k` of the server API.
pub(crate) const KEY: &str = "X-API-Key: k";

/// The figures of a node, by name.
pub(crate) type Figures = BTreeMap<String, u64>;

/// Whether nodes listen with TLS and clients come through tunnels. Tests of bytes as the kernel has them, and of
/// answers that a connection without keys can't have, leave themselves out then.
pub(crate) fn over_tls() -> bool {
    std::env::var_os("ROOST_IT_TLS").is_some()
}

/// A running node. It is killed when it is dropped.
pub(crate) struct Node {
    child: Child,
    address: SocketAddr,
    /// The same without a tunnel.
    listens_at: SocketAddr,
    figures: Mutex<Receiver<String>>,
    errors: Arc<Mutex<String>>,
    file: PathBuf,
}

/// The result of a program that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its exit code; `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    /// All of its standard error.
    pub(crate) errors: String,
}

impl Node {
    /// A node that is open to everybody, with these flags.
    pub(crate) fn open(flags: &[&str]) -> Self {
        Self::start(OPEN, flags)
    }

    /// The same, with more in its file.
    pub(crate) fn open_with(more: &str, flags: &[&str]) -> Self {
        Self::start(&format!("{OPEN}\n{more}"), flags)
    }

    /// The same behind a wrapper; an error when it ended before it listened.
    pub(crate) fn launch_open(wrapper: &[&str], more: &str, flags: &[&str]) -> Result<Self, Ended> {
        Self::launch(wrapper, &format!("{OPEN}\n{more}"), "0", flags)
    }

    /// Clients find it where they found the process before, whose connections it has taken over.
    pub(crate) fn in_place_of(self, before: &Self) -> Self {
        assert_eq!(self.listens_at, before.listens_at);
        self
    }

    /// A node with this file alone.
    pub(crate) fn start(file: &str, flags: &[&str]) -> Self {
        match Self::launch(&[], file, "0", flags) {
            Ok(node) => node,
            Err(ended) => panic!("did not start: {ended:?}"),
        }
    }

    /// Runs `wrapper roost serve -c FILE ...`; an error when it ended before it listened.
    pub(crate) fn launch(
        wrapper: &[&str],
        file: &str,
        port: &str,
        flags: &[&str],
    ) -> Result<Self, Ended> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("roost-it-{}-{number}.toml", std::process::id());
        let path = std::env::temp_dir().join(name);
        // A file without a byte is a fault.
        std::fs::write(&path, if file.is_empty() { "# all defaults" } else { file }).unwrap();

        let words = wrapper.iter().copied().chain([env!("CARGO_BIN_EXE_roost"), "serve", "-c"]);
        let mut words = words.map(String::from).collect::<Vec<_>>();
        words.push(path.display().to_string());
        if !flags.contains(&"-a") {
            words.extend(["-a", "127.0.0.1"].map(String::from));
        }
        words.extend(["-p", port].map(String::from));
        if !flags.contains(&"--shards") {
            words.extend(["--shards", "2"].map(String::from));
        }
        words.extend(flags.iter().map(|flag| flag.to_string()));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear();
        // The whole suite passes with either driver: ROOST_IO=uring cargo test --test it
        command.envs(std::env::var_os("ROOST_IO").map(|io| ("ROOST_IO", io)));
        // And over TLS: ROOST_IT_TLS=1 cargo test --test it
        if over_tls() {
            command.env("ROOST_TLS_SELF_SIGNED", "true");
            // Tests speak to the internal port without a tunnel.
            command.env("ROOST_HTTP_SERVER_TLS_EXTERNAL", "true");
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();

        let errors = Arc::new(Mutex::new(String::new()));
        let (lines_of_errors, log) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let kept = Arc::clone(&errors);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                *kept.lock().unwrap() += &format!("{line}\n");
                let _ = lines_of_errors.send(line);
            }
        });
        let (lines_of_figures, figures) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = lines_of_figures.send(line);
            }
        });

        let mut node = Self {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            listens_at: SocketAddr::from(([127, 0, 0, 1], 0)),
            figures: Mutex::new(figures),
            errors,
            file: path,
        };
        loop {
            match log.recv_timeout(BOUND) {
                Ok(line) => {
                    if let Some((_, rest)) = line.split_once("listening on ") {
                        let address = rest.split(' ').next().unwrap();
                        if !address.starts_with("unix:") {
                            node.address = address.parse().unwrap();
                            node.listens_at = node.address;
                            if over_tls() {
                                node.through_tls();
                            }
                        }
                        return Ok(node);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Err(node.ended()),
                Err(RecvTimeoutError::Timeout) => panic!("neither listens nor ends"),
            }
        }
    }

    /// From here on its clients come through a tunnel over TLS.
    pub(crate) fn through_tls(&mut self) {
        self.address = tunnel::open(self.listens_at, tunnel::accepting_all());
    }

    /// Where it listens, whatever its clients come through.
    pub(crate) fn listens_at(&self) -> SocketAddr {
        self.listens_at
    }

    /// Where clients find it.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard error so far.
    pub(crate) fn errors(&self) -> String {
        self.errors.lock().unwrap().clone()
    }

    /// Waits until a line of its standard error has all of `words`, and returns it.
    pub(crate) fn until_logged(&self, words: &[&str]) -> String {
        let since = Instant::now();
        loop {
            let errors = self.errors();
            let found = errors.lines().find(|line| words.iter().all(|word| line.contains(word)));
            if let Some(line) = found {
                return line.to_owned();
            }
            assert!(since.elapsed() < BOUND, "never logged {words:?}: {errors}");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Puts another file in the place of its own and has it read; waits until it says `answer`.
    pub(crate) fn reload(&self, file: &str, answer: &str) {
        let before = self.errors().len();
        std::fs::write(&self.file, file).unwrap();
        self.signal(Signal::HUP);
        let since = Instant::now();
        while !self.errors()[before..].contains(answer) {
            assert!(since.elapsed() < BOUND, "never said {answer:?}: {}", self.errors());
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Has its options read again from a file that is gone; waits until it says `answer`.
    pub(crate) fn reload_without_file(&self, answer: &str) {
        std::fs::remove_file(&self.file).unwrap();
        let before = self.errors().len();
        self.signal(Signal::HUP);
        let since = Instant::now();
        while !self.errors()[before..].contains(answer) {
            assert!(since.elapsed() < BOUND, "never said {answer:?}: {}", self.errors());
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// The file with its options.
    pub(crate) fn file(&self) -> &std::path::Path {
        &self.file
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Its figures now: the sums over all shards.
    pub(crate) fn figures(&self) -> Figures {
        let lines = self.figures.lock().unwrap();
        self.signal(Signal::USR1);
        let line = lines.recv_timeout(BOUND).expect("no figures");
        serde_json::from_str(&line).unwrap()
    }

    /// Polls the figures until they are as wanted. Gauges are refreshed once a second.
    pub(crate) fn until(&self, what: &str, mut wanted: impl FnMut(&Figures) -> bool) -> Figures {
        let since = Instant::now();
        loop {
            let figures = self.figures();
            if wanted(&figures) {
                return figures;
            }
            assert!(since.elapsed() < BOUND, "never {what}: {figures:#?}");
            // Between two questions of a poll, not instead of an event.
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Waits until one figure has this value.
    pub(crate) fn until_is(&self, name: &str, value: u64) -> Figures {
        self.until(&format!("{name} = {value}"), |figures| figures[name] == value)
    }

    /// Waits until it ends by itself.
    pub(crate) fn ended(mut self) -> Ended {
        let since = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(since.elapsed() < BOUND, "does not end: {}", self.errors());
            std::thread::park_timeout(Duration::from_millis(5));
        };
        self.left(status)
    }

    fn left(&self, status: ExitStatus) -> Ended {
        // The reading thread ends with the pipe.
        let since = Instant::now();
        while Arc::strong_count(&self.errors) > 1 && since.elapsed() < BOUND {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        Ended { code: status.code(), errors: self.errors() }
    }

    /// A client of the client protocol that has not said anything yet.
    pub(crate) fn client(&self) -> Client {
        Client::open(self, CLIENTS)
    }

    /// The same in one of the encodings.
    pub(crate) fn client_in(&self, speech: Speech) -> Client {
        match speech {
            Speech::Json => Client::open(self, CLIENTS),
            Speech::Protobuf => Client::open(self, PROTOBUF_CLIENTS),
        }
    }

    /// A client that is connected, anonymously.
    pub(crate) fn connected(&self) -> Client {
        self.connected_in(Speech::Json)
    }

    /// The same in one of the encodings.
    pub(crate) fn connected_in(&self, speech: Speech) -> Client {
        self.connected_by(speech, json!({})).0
    }

    /// A client that is connected with a token for this user.
    pub(crate) fn connected_as(&self, user: &str) -> Client {
        let token = token(json!({ "sub": user }));
        self.connected_by(Speech::Json, json!({ "token": token })).0
    }

    /// A client that is connected by this request, and the result.
    pub(crate) fn connected_by(&self, speech: Speech, request: Value) -> (Client, Value) {
        let mut client = self.client_in(speech);
        client.send(&json!({"id": 1, "connect": request}).to_string());
        let reply = client.expect("{\"id\":1,\"connect\":{*}}");
        let mut reply: Value = serde_json::from_str(&reply).unwrap();
        (client, reply["connect"].take())
    }

    /// A TCP connection and nothing more.
    pub(crate) fn raw(&self) -> Raw {
        Raw::new(TcpStream::connect(self.address).unwrap())
    }

    /// A raw connection that is upgraded at `path`.
    pub(crate) fn upgraded(&self, path: &str) -> Raw {
        let mut raw = self.raw();
        raw.send(upgrade(path, &[]).as_bytes());
        assert_eq!(raw.response().status, 101);
        raw
    }

    /// Calls a method of the server API, which has to be answered with 200, and returns the answer.
    pub(crate) fn call(&self, method: &str, params: Value) -> Value {
        let response = self.raw().post(&format!("/api/{method}"), &[KEY], &params.to_string());
        assert_eq!(response.status, 200, "{method}: {response:?}");
        assert_eq!(response.header("content-type"), Some("application/json"));
        serde_json::from_str(&response.body).unwrap()
    }

    /// Asserts that a client that comes now is served, end to end.
    pub(crate) fn is_healthy(&self) {
        let mut client = self.connected();
        let channel = format!("health-{}", client.socket.get_ref().local_addr().unwrap().port());
        client.talk(&format!(
            "> {{\"id\":2,\"subscribe\":{{\"channel\":\"{channel}\"}}}}\n\
             < {{\"id\":2,\"subscribe\":{{}}}}"
        ));
        client.pub_sub(&channel, 3);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.file);
    }
}

/// A token of the nodes' secret, signed by a library that is not the server's own code.
pub(crate) fn token(claims: Value) -> String {
    token_by("secret", claims)
}

/// The same with any secret.
pub(crate) fn token_by(secret: &str, claims: Value) -> String {
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
}

/// Unix seconds.
pub(crate) fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

/// A good request to upgrade, with more headers.
pub(crate) fn upgrade(path: &str, headers: &[&str]) -> String {
    let mut request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    );
    for header in headers {
        request += &format!("{header}\r\n");
    }
    request + "\r\n"
}

/// A request with a body.
pub(crate) fn post(path: &str, headers: &[&str], body: &str) -> String {
    let mut request =
        format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n", body.len());
    for header in headers {
        request += &format!("{header}\r\n");
    }
    request + "\r\n" + body
}

pub(crate) const TEXT: u8 = 0x81;
pub(crate) const BINARY: u8 = 0x82;
pub(crate) const CLOSE: u8 = 0x88;
pub(crate) const PING: u8 = 0x89;
pub(crate) const PONG: u8 = 0x8a;

/// A client's frame: `first` is FIN, reserved bits and opcode.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = frame_header(first, payload.len());
    frame.extend(KEY);
    frame.extend(payload.iter().zip(KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// A masked frame's header without the key, in as few bytes as may be.
pub(crate) fn frame_header(first: u8, len: usize) -> Vec<u8> {
    let mut header = vec![first];
    match len {
        0..=125 => header.push(0x80 | len as u8),
        126..=0xffff => {
            header.push(0x80 | 126);
            header.extend((len as u16).to_be_bytes());
        }
        _ => {
            header.push(0x80 | 127);
            header.extend((len as u64).to_be_bytes());
        }
    }
    header
}

/// A close frame's payload.
pub(crate) fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes()[..], reason.as_bytes()].concat()
}

/// The head of an HTTP response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    /// As long as the head says.
    pub(crate) bytes: Vec<u8>,
    /// The same as text.
    pub(crate) body: String,
}

impl Response {
    /// The value of a header that is there at most once.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(n, _)| n == name);
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} twice: {self:?}");
        value
    }
}

/// A TCP connection that is read and written as bytes.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    unread: VecDeque<u8>,
}

impl Raw {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(BOUND)).unwrap();
        stream.set_write_timeout(Some(BOUND)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, unread: VecDeque::new() }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Reads more; false at the end of the stream, be it in order or by a reset.
    fn fill(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.unread.extend(&buffer[..count]);
                true
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("nothing comes: {error}; unread {:?}", self.unread),
        }
    }

    fn take(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.unread.len() < count {
            if !self.fill() {
                return None;
            }
        }
        Some(self.unread.drain(..count).collect())
    }

    /// The next response's head, and its body if it has a length.
    pub(crate) fn response(&mut self) -> Response {
        self.response_or_end().unwrap_or_else(|| panic!("ended without one: {:?}", self.unread))
    }

    /// The same; `None` when the stream ends before it.
    pub(crate) fn response_or_end(&mut self) -> Option<Response> {
        let end = loop {
            let unread = self.unread.make_contiguous();
            if let Some(at) = unread.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.fill() {
                return None;
            }
        };
        let head = String::from_utf8(self.take(end).unwrap()).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap();
        assert!(status.starts_with("HTTP/1.1 "), "{status}");
        let status = status[9..12].parse().unwrap();
        let split = |line: &str| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_ascii_lowercase(), value.to_owned())
        };
        let headers = lines.map(split).collect();
        let mut response = Response { status, headers, bytes: Vec::new(), body: String::new() };
        if let Some(length) = response.header("content-length") {
            response.bytes = self.take(length.parse().unwrap()).expect("the whole body");
            response.body = String::from_utf8_lossy(&response.bytes).into_owned();
        }
        Some(response)
    }

    /// Calls a method of the server API, and returns the whole answer.
    pub(crate) fn post(&mut self, path: &str, headers: &[&str], body: &str) -> Response {
        self.send(post(path, headers, body).as_bytes());
        self.response()
    }

    /// The next frame of the server: first byte and payload. `None` at the end of the stream.
    pub(crate) fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let head = self.take(2)?;
        assert_eq!(head[1] & 0x80, 0, "a server's frames are not masked");
        let len = match head[1] {
            126 => u16::from_be_bytes(self.take(2)?.try_into().unwrap()).into(),
            127 => u64::from_be_bytes(self.take(8)?.try_into().unwrap()),
            len => u64::from(len),
        };
        Some((head[0], self.take(usize::try_from(len).unwrap())?))
    }

    /// The next chunk of a response; `None` for the last one, which is empty.
    pub(crate) fn chunk(&mut self) -> Option<Vec<u8>> {
        let end = loop {
            let unread = self.unread.make_contiguous();
            if let Some(at) = unread.windows(2).position(|two| two == b"\r\n") {
                break at;
            }
            assert!(self.fill(), "ended inside a chunk: {:?}", self.unread);
        };
        let size = String::from_utf8(self.take(end + 2).unwrap()).unwrap();
        let size = usize::from_str_radix(size.trim_end(), 16).unwrap();
        let mut chunk = self.take(size + 2).expect("the whole chunk");
        assert_eq!(chunk.split_off(size), b"\r\n");
        (size > 0).then_some(chunk)
    }

    /// All that comes until the stream ends.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        while self.fill() {}
        self.unread.drain(..).collect()
    }

    /// The next frame, which has to be a close frame: its code and reason.
    pub(crate) fn closed(&mut self) -> (u16, String) {
        let (first, payload) = self.frame().expect("a close frame");
        assert_eq!(first, CLOSE, "{payload:?}");
        let code = u16::from_be_bytes([payload[0], payload[1]]);
        (code, String::from_utf8(payload[2..].to_vec()).unwrap())
    }

    /// Asserts that the stream ends here.
    pub(crate) fn ends(&mut self) {
        let more = !self.unread.is_empty() || self.fill();
        assert!(!more, "more came: {:?}", self.unread);
    }

    /// Sends the end of our stream.
    pub(crate) fn finish(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Closes with a reset instead of an end.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// A message to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Got {
    /// A message of the client protocol.
    Line(String),
    /// A ping frame of RFC 6455.
    PingFrame,
    /// A close frame, and then the end of the stream.
    Close(u16, String),
    /// The end of the stream without a close frame.
    Lost,
}

/// A client of the client protocol, on tungstenite.
pub(crate) struct Client {
    pub(crate) socket: WebSocket<TcpStream>,
    speech: Speech,
    lines: VecDeque<String>,
    next_id: u32,
}

impl Client {
    /// Upgrades at a path, with a query perhaps.
    pub(crate) fn open(node: &Node, path: &str) -> Self {
        Self::open_with(node, path, &[])
    }

    /// The same, with more request headers.
    pub(crate) fn open_with(node: &Node, path: &str, headers: &[(&'static str, &str)]) -> Self {
        Self::over(TcpStream::connect(node.address).unwrap(), path, headers)
    }

    /// The same over a connection that is there.
    pub(crate) fn over(stream: TcpStream, path: &str, headers: &[(&'static str, &str)]) -> Self {
        stream.set_read_timeout(Some(BOUND)).unwrap();
        stream.set_write_timeout(Some(BOUND)).unwrap();
        stream.set_nodelay(true).unwrap();
        let address = stream.peer_addr().unwrap();
        let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let (socket, _) = tungstenite::client::client(request, stream).unwrap();
        let speech = if path == PROTOBUF_CLIENTS { Speech::Protobuf } else { Speech::Json };
        Self { socket, speech, lines: VecDeque::new(), next_id: 1000 }
    }

    /// Sends one frame of commands, one a line.
    pub(crate) fn send(&mut self, text: &str) {
        let message = match self.speech {
            Speech::Json => Message::text(text),
            Speech::Protobuf => Message::binary(protobuf::commands(text)),
        };
        self.socket.send(message).unwrap();
    }

    /// The next message.
    pub(crate) fn next(&mut self) -> Got {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Got::Line(line);
            }
            match self.socket.read() {
                Ok(Message::Text(text)) if self.speech == Speech::Json => {
                    // Several messages in one frame are joined by line feeds, without one behind.
                    assert!(!text.is_empty() && !text.ends_with('\n'), "{text:?}");
                    self.lines.extend(text.split('\n').map(String::from));
                    assert!(self.lines.len() <= 16, "{} in a frame", self.lines.len());
                }
                Ok(Message::Binary(bytes)) if self.speech == Speech::Protobuf => {
                    assert!(!bytes.is_empty());
                    self.lines.extend(protobuf::replies(&bytes));
                    assert!(self.lines.len() <= 16, "{} in a frame", self.lines.len());
                }
                Ok(Message::Ping(_)) => return Got::PingFrame,
                Ok(Message::Close(frame)) => {
                    let frame = frame.expect("the server's closes have a code");
                    // tungstenite has answered; the server ends the stream then.
                    let end = self.socket.read();
                    let closed = matches!(end, Err(Error::ConnectionClosed));
                    assert!(closed, "{end:?} behind {frame:?}");
                    let _ = self.socket.get_ref().shutdown(Shutdown::Both);
                    return Got::Close(frame.code.into(), frame.reason.to_string());
                }
                Ok(other) => panic!("{other:?}"),
                Err(Error::Io(error)) if error.kind() != ErrorKind::ConnectionReset => {
                    panic!("nothing comes: {error}")
                }
                Err(_) => return Got::Lost,
            }
        }
    }

    /// The next message.
    pub(crate) fn line(&mut self) -> String {
        match self.next() {
            Got::Line(line) => line,
            other => panic!("{other:?} instead of a message"),
        }
    }

    /// The next message, which has to be like `pattern`, where `*` is anything.
    pub(crate) fn expect(&mut self, pattern: &str) -> String {
        match self.next() {
            Got::Line(line) if like(&line, pattern) => line,
            other => panic!("\n     got {other:?}\nexpected {pattern}\n"),
        }
    }

    /// The server closes now, with this code and reason.
    pub(crate) fn is_closed(&mut self, code: u16, reason: &str) {
        assert_eq!(self.next(), Got::Close(code, reason.to_owned()));
    }

    /// Holds a conversation to a transcript. `> ` is a frame that is sent, with `\n` for a line
    /// feed in it; `< ` is a message that has to come, `*` standing for anything; `x CODE REASON`
    /// is the server's close.
    pub(crate) fn talk(&mut self, transcript: &str) {
        for line in transcript.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (mark, rest) = line.split_once(' ').unwrap_or((line, ""));
            match mark {
                ">" => self.send(&rest.replace("\\n", "\n")),
                "<" => drop(self.expect(rest)),
                "x" => {
                    let (code, reason) = rest.split_once(' ').unwrap();
                    self.is_closed(code.parse().unwrap(), reason);
                }
                _ => panic!("not a line of a transcript: {line}"),
            }
        }
    }

    /// Sends a command that gets the next free id, and returns that.
    pub(crate) fn command(&mut self, name: &str, request: Value) -> u32 {
        self.next_id += 1;
        self.send(&json!({"id": self.next_id, name: request}).to_string());
        self.next_id
    }

    /// Asks, and returns the answer without its id: `{"error":...}` or a named result. Nothing else
    /// comes in between.
    pub(crate) fn ask(&mut self, name: &str, request: Value) -> Value {
        let id = self.command(name, request);
        let line = self.expect(&format!("{{\"id\":{id},*}}"));
        let mut reply: Value = serde_json::from_str(&line).unwrap();
        reply.as_object_mut().unwrap().remove("id");
        reply
    }

    /// The next message, which is a push: its body.
    pub(crate) fn push(&mut self) -> Value {
        let line = self.expect("{\"push\":{*}}");
        let mut push: Value = serde_json::from_str(&line).unwrap();
        push["push"].take()
    }

    /// Publishes, and waits for the answer. Nothing else comes in between.
    pub(crate) fn publish(&mut self, channel: &str, data: Value) {
        let answer = self.ask("publish", json!({"channel": channel, "data": data}));
        assert_eq!(answer, json!({"publish": {}}));
    }

    /// Subscribes without a token.
    pub(crate) fn subscribe(&mut self, channel: &str) {
        let id = self.command("subscribe", json!({"channel": channel}));
        self.expect(&format!("{{\"id\":{id},\"subscribe\":{{*}}}}"));
    }

    /// Publishes to a channel that it is subscribed to, and gets it and the answer, in any order.
    pub(crate) fn pub_sub(&mut self, channel: &str, id: u32) {
        self.send(&json!({"id": id, "publish": {"channel": channel, "data": id}}).to_string());
        let mut got = [self.line(), self.line()];
        got.sort();
        assert_eq!(got[0], format!("{{\"id\":{id},\"publish\":{{}}}}"));
        let push =
            format!("{{\"push\":{{\"channel\":\"{channel}\",\"pub\":{{\"data\":{id},*}}}}}}");
        assert!(like(&got[1], &push), "{} is not {push}", got[1]);
    }

    /// Closes in order, from our side.
    pub(crate) fn close(mut self) {
        let code = CloseCode::Normal;
        let frame = tungstenite::protocol::CloseFrame { code, reason: "".into() };
        self.socket.close(Some(frame)).unwrap();
        loop {
            match self.socket.read() {
                Ok(_) => {}
                Err(Error::ConnectionClosed) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Whether a text is like a pattern, in which `*` stands for any text.
pub(crate) fn like(text: &str, pattern: &str) -> bool {
    let mut pieces = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(pieces.next().unwrap_or("")) else { return false };
    let mut pieces: Vec<&str> = pieces.collect();
    let Some(last) = pieces.pop() else { return rest.is_empty() };
    for piece in pieces {
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

#[test]
fn patterns() {
    for (text, pattern, expected) in [
        ("abc", "abc", true),
        ("abc", "ab", false),
        ("abc", "*", true),
        ("abc", "a*c", true),
        ("ac", "a*c", true),
        ("abcd", "a*c", false),
        ("aXbYc", "a*b*c", true),
        ("aXcYb", "a*b*c", false),
    ] {
        assert_eq!(like(text, pattern), expected, "{text} {pattern}");
    }
}
