//! The floor that servers are measured against: one thread that does the system calls of a broadcast,
//! an echo or an accept, and as little else as it can.
//!
//! `floor PORT epoll|uring [SECONDS]`. With `epoll` each read and each write is a system call of its own; with
//! `uring` writes (and an echo's reads) go through an io_uring in batches. Paths: `/echo` sends each
//! message back; `/connection/websocket` speaks as much of the client protocol as a load client needs,
//! and gives every subscriber a frame as long as roost's; any other is upgraded and left alone. With SECONDS
//! it sends a ping to each connection of the client protocol that often, and reads what comes back.
//!
//! `floor dial ADDRESS COUNT SOURCE` is a load client: it opens so many connections and holds them.
//!
//! `floor PORT tls CERTIFICATE KEY` shakes hands by rustls; `floor 0 cryptography` prints the nanoseconds
//! of a signature with a key exchange.

mod dial;
mod handshakes;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use serde_json::value::RawValue;
use tungstenite::handshake::derive_accept_key;

const BATCH: usize = 256;
const SLOTS: usize = 64;
const SLOT_BYTES: usize = 4096;

/// Of the same length as what a node tells of a publisher.
const INFO: &str = r#"{"user":"publisher-000000","client":"00000000-0000-4000-8000-000000000000"}"#;

const CONNECTED: &str = r#"{"client":"00000000-0000-4000-8000-000000000000","version":"0.1.0 roost","expires":true,"ttl":86400,"ping":25,"pong":true}"#;

/// How often connections whose ping is due are looked for, as a node does.
const TICK: Duration = Duration::from_millis(100);

/// A ping of the client protocol: an empty command in a text frame.
const PING: &[u8] = b"\x81\x02{}";

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Head,
    Echo,
    Client,
    Idle,
}

struct Conn {
    fd: OwnedFd,
    kind: Kind,
    /// The beginning of a head or frame.
    input: Vec<u8>,
    /// Bytes that a full socket has not taken.
    unsent: Vec<u8>,
}

/// Connections, by descriptor.
struct Conns(Vec<Option<Conn>>);

impl Conns {
    fn get(&self, key: u64) -> Option<&Conn> {
        self.0.get(key as usize)?.as_ref()
    }

    fn get_mut(&mut self, key: u64) -> Option<&mut Conn> {
        self.0.get_mut(key as usize)?.as_mut()
    }

    fn insert(&mut self, key: u64, conn: Conn) {
        if self.0.len() <= key as usize {
            self.0.resize_with(key as usize + 1, || None);
        }
        self.0[key as usize] = Some(conn);
    }
}

struct Floor {
    epoll: OwnedFd,
    listener: OwnedFd,
    conns: Conns,
    /// Bytes for the connection that is being read.
    out: Vec<u8>,
    /// Subscribers, in the order in which they came.
    subscribers: Vec<u64>,
    ring: Option<IoUring>,
    offset: u64,
    /// Ticks from one ping of a connection to its next, if there are any.
    ping_ticks: Option<u64>,
}

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if_eq("dial").is_some() {
        let mut next = || arguments.next().expect("an address, a count and a source address");
        let server = next().parse().expect("an address");
        let count = next().parse().expect("a count");
        raise_descriptors();
        return dial::dial(server, count, next().parse().expect("a source address"));
    }
    let port: u16 = arguments.next().and_then(|port| port.parse().ok()).expect("a port");
    let mode = arguments.next().unwrap_or_default();
    if mode == "cryptography" {
        return handshakes::cryptography().map_err(io::Error::other);
    }
    let ring = match &*mode {
        "uring" => Some(
            IoUring::builder()
                .setup_cqsize(4 * BATCH as u32)
                .setup_single_issuer()
                .setup_coop_taskrun()
                .setup_submit_all()
                .build(BATCH as u32)?,
        ),
        _ => None,
    };
    raise_descriptors();
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let listener = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&listener, true)?;
    // Many of these processes share a port where one has not enough descriptors.
    sockopt::set_socket_reuseport(&listener, true)?;
    sockopt::set_tcp_nodelay(&listener, true)?;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    rustix::net::bind(&listener, &address)?;
    rustix::net::listen(&listener, 65_535)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let listening = epoll::EventData::new_u64(u64::MAX);
    epoll::add(&epoll, &listener, listening, epoll::EventFlags::IN)?;
    println!("listening on {address}");
    if mode == "tls" {
        let mut path = || arguments.next().unwrap_or_default();
        return handshakes::serve(&epoll, &listener, &path(), &path())
            .map_err(|fault| io::Error::other(fault.to_string()));
    }
    let mut floor = Floor {
        epoll,
        listener,
        conns: Conns(Vec::new()),
        out: Vec::new(),
        subscribers: Vec::new(),
        ring,
        offset: 0,
        ping_ticks: arguments.next().map(|seconds| 10 * seconds.parse::<u64>().expect("seconds")),
    };
    floor.run()
}

/// As many descriptors as the hard limit allows.
fn raise_descriptors() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live struct of the right type in both calls.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
}

impl Floor {
    fn run(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(1024);
        let mut buffer = vec![0; 64 * 1024];
        let mut slots = vec![0; SLOTS * SLOT_BYTES];
        let mut ready = Vec::new();
        let mut tick = Instant::now();
        let mut number = 0;
        loop {
            events.clear();
            let wait = self.ping_ticks.map(|_| tick.saturating_duration_since(Instant::now()));
            let wait = wait.map(|wait| wait.try_into().expect("at most a tick"));
            match epoll::wait(&self.epoll, spare_capacity(&mut events), wait.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(ticks) = self.ping_ticks
                && tick <= Instant::now()
            {
                self.ping(number % ticks, ticks);
                tick += TICK;
                number += 1;
            }
            ready.clear();
            for event in &events {
                let key = event.data.u64();
                if key == u64::MAX {
                    self.accept();
                    continue;
                }
                let flags = event.flags;
                if flags.contains(epoll::EventFlags::OUT) {
                    self.send_rest(key);
                }
                if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP) {
                    ready.push(key);
                }
            }
            if self.ring.is_some() {
                for keys in ready.chunks(SLOTS) {
                    self.read_batch(keys, &mut slots);
                }
            } else {
                for key in &ready {
                    self.read(*key, &mut buffer);
                }
            }
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        while let Ok(fd) = rustix::net::accept_with(&self.listener, flags) {
            let key = fd.as_raw_fd() as u64;
            let interest = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
            if epoll::add(&self.epoll, &fd, epoll::EventData::new_u64(key), interest).is_ok() {
                let conn = Conn { fd, kind: Kind::Head, input: Vec::new(), unsent: Vec::new() };
                self.conns.insert(key, conn);
            }
        }
    }

    fn read(&mut self, key: u64, buffer: &mut [u8]) {
        loop {
            let Some(conn) = self.conns.get(key) else { return };
            match rustix::net::recv(&conn.fd, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return self.close(key),
                Ok((_, count)) => {
                    let mut out = std::mem::take(&mut self.out);
                    out.clear();
                    let good = self.take(key, &mut buffer[..count], &mut out);
                    self.send(key, &out);
                    self.out = out;
                    if !good {
                        return self.close(key);
                    }
                    if count < buffer.len() {
                        return;
                    }
                }
                Err(Errno::WOULDBLOCK | Errno::INTR) => return,
                Err(_) => return self.close(key),
            }
        }
    }

    /// Reads from many with one system call, and answers them with one.
    fn read_batch(&mut self, keys: &[u64], slots: &mut [u8]) {
        let fds: Vec<i32> = keys.iter().map(|key| *key as i32).collect();
        let parts = slots.chunks_exact_mut(SLOT_BYTES).map(|slot| (slot.as_mut_ptr(), SLOT_BYTES));
        let entries = fds.iter().zip(parts).map(|(fd, (at, len))| {
            opcode::Recv::new(types::Fd(*fd), at, len as u32).flags(libc::MSG_DONTWAIT).build()
        });
        let results = submit(self.ring.as_mut(), entries);
        let mut outs = Vec::with_capacity(keys.len());
        for ((key, result), slot) in
            keys.iter().zip(results).zip(slots.chunks_exact_mut(SLOT_BYTES))
        {
            let mut out = Vec::new();
            match result {
                1.. => {
                    if !self.take(*key, &mut slot[..result as usize], &mut out) {
                        self.close(*key);
                        continue;
                    }
                    if result as usize == SLOT_BYTES {
                        let mut rest = vec![0; SLOT_BYTES];
                        self.send(*key, &std::mem::take(&mut out));
                        self.read(*key, &mut rest);
                    }
                }
                0 => self.close(*key),
                _ if -result == libc::EAGAIN => {}
                _ => self.close(*key),
            }
            if !out.is_empty() && self.conns.get(*key).is_some() {
                outs.push((*key, out));
            }
        }
        let sends: Vec<(u64, &[u8])> = outs.iter().map(|(key, out)| (*key, &out[..])).collect();
        self.send_batch(&sends);
    }

    /// Handles what came. False when the connection is over.
    fn take(&mut self, key: u64, bytes: &mut [u8], out: &mut Vec<u8>) -> bool {
        let Some(conn) = self.conns.get_mut(key) else { return false };
        if conn.kind != Kind::Head && conn.input.is_empty() {
            let (kept, good) = self.frames(key, bytes, out);
            if let Some(conn) = self.conns.get_mut(key) {
                conn.input.extend_from_slice(&bytes[kept..]);
            }
            return good;
        }
        conn.input.extend_from_slice(bytes);
        let mut input = std::mem::take(&mut conn.input);
        if conn.kind == Kind::Head {
            let mut headers = [httparse::EMPTY_HEADER; 32];
            let mut request = httparse::Request::new(&mut headers);
            let length = match request.parse(&input) {
                Ok(httparse::Status::Complete(length)) => length,
                Ok(httparse::Status::Partial) => {
                    conn.input = input;
                    return true;
                }
                Err(_) => return false,
            };
            let key_header = "sec-websocket-key";
            let mut named = request.headers.iter();
            let Some(header) = named.find(|header| header.name.eq_ignore_ascii_case(key_header))
            else {
                return false;
            };
            out.extend_from_slice(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                  Connection: Upgrade\r\nSec-WebSocket-Accept: ",
            );
            out.extend_from_slice(derive_accept_key(header.value).as_bytes());
            out.extend_from_slice(b"\r\n\r\n");
            conn.kind = match request.path {
                Some("/echo") => Kind::Echo,
                Some("/connection/websocket") => Kind::Client,
                _ => Kind::Idle,
            };
            input.drain(..length);
        }
        let (kept, good) = self.frames(key, &mut input, out);
        if let Some(conn) = self.conns.get_mut(key) {
            conn.input.extend_from_slice(&input[kept..]);
        }
        good
    }

    /// Handles whole frames. How many bytes that was, and whether the connection goes on.
    fn frames(&mut self, key: u64, bytes: &mut [u8], out: &mut Vec<u8>) -> (usize, bool) {
        let kind = self.conns.get(key).map_or(Kind::Idle, |conn| conn.kind);
        let mut at = 0;
        while bytes.len() - at >= 6 {
            let (opcode, short) = (bytes[at] & 15, usize::from(bytes[at + 1] & 127));
            let (head, length) = match short {
                126 if bytes.len() - at < 8 => break,
                126 => (8, usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]))),
                127 => return (at, false),
                short => (6, short),
            };
            if bytes.len() - at < head + length {
                break;
            }
            let mut mask = [0; 4];
            mask.copy_from_slice(&bytes[at + head - 4..at + head]);
            let payload = &mut bytes[at + head..at + head + length];
            for (byte, place) in payload.iter_mut().zip(0..) {
                *byte ^= mask[place & 3];
            }
            match (opcode, kind) {
                (8, _) => return (at, false),
                (1 | 2, Kind::Echo) => {
                    put_frame(out, bytes[at] & 15, &bytes[at + head..][..length])
                }
                (1, Kind::Client) => {
                    let text = bytes[at + head..][..length].to_vec();
                    self.commands(key, &text, out);
                }
                _ => {}
            }
            at += head + length;
        }
        (at, true)
    }

    fn commands(&mut self, key: u64, text: &[u8], out: &mut Vec<u8>) {
        #[derive(Default)]
        struct Publish {
            channel: String,
            data: String,
        }
        for line in text.split(|byte| *byte == b'\n') {
            let Ok(command) = serde_json::from_slice::<HashMap<String, &RawValue>>(line) else {
                continue;
            };
            let id = command.get("id").map_or("0", |id| id.get());
            if command.contains_key("connect") {
                // As long as a node's: TCP acknowledges differently what was answered differently.
                let reply = format!("{{\"id\":{id},\"connect\":{CONNECTED}}}");
                put_frame(out, 1, reply.as_bytes());
            } else if command.contains_key("subscribe") {
                put_frame(out, 1, format!("{{\"id\":{id},\"subscribe\":{{}}}}").as_bytes());
                self.subscribers.push(key);
            } else if let Some(request) = command.get("publish")
                && let Ok(mut fields) =
                    serde_json::from_str::<HashMap<String, &RawValue>>(request.get())
            {
                let field = |fields: &mut HashMap<String, &RawValue>, name| {
                    fields.remove(name).map_or(String::new(), |value| value.get().to_owned())
                };
                let publish = Publish {
                    channel: field(&mut fields, "channel"),
                    data: field(&mut fields, "data"),
                };
                put_frame(out, 1, format!("{{\"id\":{id},\"publish\":{{}}}}").as_bytes());
                self.offset += 1;
                let push = format!(
                    "{{\"push\":{{\"channel\":{},\"pub\":{{\"data\":{},\"info\":{INFO},\
                     \"offset\":{}}}}}}}",
                    publish.channel, publish.data, self.offset
                );
                let mut frame = Vec::new();
                put_frame(&mut frame, 1, push.as_bytes());
                self.broadcast(&frame);
            }
        }
    }

    /// The floor itself: one send for each subscriber.
    fn broadcast(&mut self, frame: &[u8]) {
        let subscribers = std::mem::take(&mut self.subscribers);
        if self.ring.is_some() {
            for keys in subscribers.chunks(BATCH) {
                let sends: Vec<_> = keys.iter().map(|key| (*key, frame)).collect();
                self.send_batch(&sends);
            }
        } else {
            for key in &subscribers {
                self.send(*key, frame);
            }
        }
        self.subscribers = subscribers;
        self.subscribers.retain(|key| self.conns.get(*key).is_some());
    }

    /// A ping to each client whose descriptor leaves this rest.
    fn ping(&mut self, rest: u64, ticks: u64) {
        let keys: Vec<u64> = (rest..self.conns.0.len() as u64)
            .step_by(ticks as usize)
            .filter(|key| self.conns.get(*key).is_some_and(|conn| conn.kind == Kind::Client))
            .collect();
        for keys in keys.chunks(BATCH) {
            if self.ring.is_some() {
                let sends: Vec<_> = keys.iter().map(|key| (*key, PING)).collect();
                self.send_batch(&sends);
            } else {
                for key in keys {
                    self.send(*key, PING);
                }
            }
        }
    }

    fn send(&mut self, key: u64, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if bytes.is_empty() {
            return;
        }
        if !conn.unsent.is_empty() {
            return conn.unsent.extend_from_slice(bytes);
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(&conn.fd, bytes, flags) {
            Ok(count) => conn.unsent.extend_from_slice(&bytes[count..]),
            Err(Errno::WOULDBLOCK | Errno::INTR) => conn.unsent.extend_from_slice(bytes),
            Err(_) => self.close(key),
        }
    }

    fn send_batch(&mut self, sends: &[(u64, &[u8])]) {
        let mut free = Vec::with_capacity(sends.len());
        for (key, bytes) in sends {
            match self.conns.get_mut(*key) {
                Some(conn) if !conn.unsent.is_empty() => conn.unsent.extend_from_slice(bytes),
                Some(_) => free.push((*key, *bytes)),
                None => {}
            }
        }
        let entries = free.iter().map(|(key, bytes)| {
            opcode::Send::new(types::Fd(*key as i32), bytes.as_ptr(), bytes.len() as u32)
                .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
                .build()
        });
        let results = submit(self.ring.as_mut(), entries);
        for ((key, bytes), result) in free.into_iter().zip(results) {
            let Some(conn) = self.conns.get_mut(key) else { continue };
            match result {
                0.. => conn.unsent.extend_from_slice(&bytes[result as usize..]),
                _ if -result == libc::EAGAIN => conn.unsent.extend_from_slice(bytes),
                _ => self.close(key),
            }
        }
    }

    fn send_rest(&mut self, key: u64) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.unsent.is_empty() {
            return;
        }
        let unsent = std::mem::take(&mut conn.unsent);
        self.send(key, &unsent);
    }

    fn close(&mut self, key: u64) {
        if let Some(conn) = self.conns.0.get_mut(key as usize) {
            *conn = None;
        }
    }
}

/// Runs operations that end as they are submitted, and returns their answers in order.
fn submit(
    ring: Option<&mut IoUring>,
    entries: impl Iterator<Item = io_uring::squeue::Entry>,
) -> Vec<i32> {
    let Some(ring) = ring else { return Vec::new() };
    let mut count = 0;
    for (entry, number) in entries.zip(0..) {
        // SAFETY: what the entries point at outlives this call, and every completion is awaited.
        unsafe { ring.submission().push(&entry.user_data(number)) }.expect("at most a batch");
        count += 1;
    }
    let mut results = vec![0; count];
    let mut left = count;
    while left > 0 {
        match ring.submit_and_wait(left) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            Err(error) => panic!("io_uring_enter: {error}"),
        }
        for completion in ring.completion() {
            results[completion.user_data() as usize] = completion.result();
            left -= 1;
        }
    }
    results
}

fn put_frame(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    out.push(0x80 | opcode);
    match payload.len() {
        length @ 0..=125 => out.push(length as u8),
        length @ 126..=65535 => {
            out.push(126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}
