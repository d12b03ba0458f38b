//! The broker threads alone against a Redis of this machine, beside what that Redis does for a client that
//! only writes prepared bytes and counts replies, measured in the same run.
//!
//! ```sh
//! cargo bench --bench redis
//! ```
//! Needs `redis-server` in the path. With `--test` the numbers are small.

#![expect(clippy::disallowed_methods, reason = "it measures, and waits for another process")]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use roost::base::id::ShardId;
use roost::cluster::names::{Layout, Names};
use roost::cluster::operations::Operations;
use roost::cluster::scripts::Script;
use roost::cluster::servers::{Access, Address, Server};
use roost::hub::broker::{BrokerEvent, Command, Publishing, Ticket};
use roost::hub::history::{Published, Record, StreamOptions};
use roost::node::broker_threads::{Broker, ControlEvent, Events, Prepared};
use roost::node::redis::Settings;
use roost::shard::mail::{Flushed, Mail, MailLane};

#[global_allocator]
static ALLOCATOR: roost::sys::memory::Counted = roost::sys::memory::Counted;

/// Commands of one call of the server API.
const BATCH: u64 = 100;
/// Such calls that wait for their answers.
const CALLS: u64 = 8;
const NAMES: usize = 512;
const DATA: &[u8] = &[b'1'; 128];

struct RedisServer {
    folder: PathBuf,
    child: Child,
}

impl RedisServer {
    fn start() -> Option<Self> {
        Process::new("redis-server").arg("--version").output().ok()?;
        let made = Process::new("mktemp").arg("-d").output().ok()?.stdout;
        let folder = PathBuf::from(String::from_utf8(made).ok()?.trim());
        let child = Process::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
            .arg(folder.join("socket"))
            .arg("--dir")
            .arg(&folder)
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        while UnixStream::connect(folder.join("socket")).is_err() {
            thread::sleep(Duration::from_millis(5));
        }
        Some(Self { folder, child })
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[derive(Default)]
struct Figures {
    connected: AtomicBool,
    listening: AtomicU64,
    published: AtomicU64,
    delivered: AtomicU64,
}

#[derive(Clone, Default)]
struct Counted(Arc<Figures>);

impl std::ops::Deref for Counted {
    type Target = Figures;

    fn deref(&self) -> &Figures {
        &self.0
    }
}

impl Events for Counted {
    fn take(&self, _: usize, events: Vec<BrokerEvent>) {
        for event in &events {
            let counter = match event {
                BrokerEvent::Connected => {
                    self.connected.store(true, Ordering::Relaxed);
                    continue;
                }
                BrokerEvent::Listening { .. } => &self.listening,
                BrokerEvent::Published { .. } => &self.published,
                BrokerEvent::Delivered(_) => &self.delivered,
                BrokerEvent::Failed { .. } | BrokerEvent::Lost => panic!("{event:?}"),
                _ => continue,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn control(&self, _: Vec<ControlEvent>) {}

    fn flush(&self) -> bool {
        false
    }

    fn has_room(&self, _: usize) {}
}

/// The broker of a node, and its home.
struct Node {
    lane: MailLane,
    counted: Counted,
    _broker: Broker,
}

impl Node {
    fn send(&mut self, commands: impl Iterator<Item = Command>) {
        commands.for_each(|command| self.lane.push(Mail::Command(Box::new(command))));
        while self.lane.flush(ShardId(0)) == Flushed::Full {
            thread::sleep(Duration::from_micros(100));
        }
    }
}

fn until(counter: &AtomicU64, count: u64) {
    while counter.load(Ordering::Relaxed) < count {
        thread::sleep(Duration::from_micros(100));
    }
}

fn node(server: &RedisServer) -> Node {
    let address = Address::Unix(server.socket().display().to_string());
    let settings = Settings {
        servers: vec![Server::Single { address, access: Access::default() }],
        operations: Operations {
            names: Names::new("p", Layout::Plain),
            use_lists: false,
            presence_ttl_s: 60,
            presence_users: false,
            presence_field_ttl: false,
        },
        has_channels: true,
        uid: "bench".into(),
        homes: 1,
        threads: 1,
        queue_bytes_max: 64 << 20,
        connect_timeout: Duration::from_secs(5),
        io_timeout: Duration::from_secs(30),
        late_after: Duration::from_secs(30),
        probe_interval: Duration::from_secs(30),
    };
    let counted = Counted::default();
    let prepared = Prepared::new(settings).unwrap();
    let lane = MailLane::new(prepared.letterbox(0));
    let events = counted.clone();
    let broker = prepared.start(move |_| events.clone()).unwrap();
    while !counted.connected.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(1));
    }
    Node { lane, counted, _broker: broker }
}

fn encoded(words: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        out.extend(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend(b"\r\n");
    }
    out
}

fn ask(socket: &Path, words: &[&[u8]]) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(&encoded(words)).unwrap();
    let mut reply = vec![0; 4096];
    let count = stream.read(&mut reply).unwrap();
    reply.truncate(count);
    reply
}

/// Writes commands on one thread and reads on this one until the mark has come so often.
fn pump(socket: &Path, commands: Vec<u8>, mark: u8, count: u64) -> Duration {
    let mut stream = UnixStream::connect(socket).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let began = Instant::now();
    let writing = thread::spawn(move || writer.write_all(&commands).unwrap());
    count_marks(&mut stream, mark, count);
    writing.join().unwrap();
    began.elapsed()
}

fn count_marks(stream: &mut UnixStream, mark: u8, count: u64) {
    let mut buffer = vec![0; 256 << 10];
    let mut seen = 0;
    while seen < count {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "closed after {seen} of {count}");
        seen += buffer[..read].iter().filter(|byte| **byte == mark).count() as u64;
    }
}

fn publishes(server: &RedisServer, count: u64) -> [f64; 2] {
    let mut node = node(server);
    let counted = node.counted.clone();
    let channel = |number: u64| format!("c{}", number % 100);
    let publishing = |number: u64| Publishing {
        ticket: Ticket(number),
        channel: channel(number).into(),
        record: Record::new(0, &Published { data: DATA, is_json: true, ..<_>::default() }),
        options: StreamOptions { size: 10, ttl_ms: 300_000, meta_ttl_ms: 2_592_000_000 },
        idempotency_key: "".into(),
        version: 0,
        version_epoch: "".into(),
        delta: false,
    };
    let began = Instant::now();
    for call in 0..count / BATCH {
        until(&counted.published, (call * BATCH).saturating_sub(CALLS * BATCH));
        let commands = (0..BATCH).map(|number| publishing(call * BATCH + number));
        node.send(commands.map(|one| Command::Publish(Box::new(one))));
    }
    until(&counted.published, count / BATCH * BATCH);
    let ours = count as f64 / began.elapsed().as_secs_f64();
    drop(node);
    let sha = ask(&server.socket(), &[b"SCRIPT", b"LOAD", Script::PublishStream.text().as_bytes()]);
    let sha = std::str::from_utf8(&sha).unwrap().lines().nth(1).unwrap();
    let mut commands = Vec::new();
    for number in 0..count {
        let channel = channel(number);
        let keys = ["stream", "stream.meta", "result"].map(|kind| format!("p.{kind}.{channel}"));
        let name = format!("p.client.{channel}");
        let words: [&[u8]; 17] = [
            b"EVALSHA",
            sha.as_bytes(),
            b"3",
            keys[0].as_bytes(),
            keys[1].as_bytes(),
            keys[2].as_bytes(),
            DATA,
            b"10",
            b"300",
            name.as_bytes(),
            b"2592000",
            b"abcdefgh",
            b"publish",
            b"",
            b"",
            b"0",
            b"",
        ];
        commands.extend(encoded(&words));
    }
    let floor = count as f64 / pump(&server.socket(), commands, b'*', count).as_secs_f64();
    [ours, floor]
}

fn fan_in(server: &RedisServer, count: u64) -> [f64; 2] {
    let channels: Vec<String> = (0..100).map(|number| format!("f{number}")).collect();
    let mut payload = Vec::new();
    payload.extend([0x22, 0x80, 0x01]);
    payload.extend_from_slice(DATA);
    let name = |number: u64| format!("p.client.{}", channels[(number % 100) as usize]);
    let commands = || -> Vec<u8> {
        let one = |number| encoded(&[b"PUBLISH", name(number).as_bytes(), &payload]);
        (0..count).flat_map(one).collect()
    };
    let mut node = node(server);
    let counted = node.counted.clone();
    let wishes = channels.iter().map(|channel| Command::Listen { channel: channel.into() });
    node.send(wishes);
    until(&counted.listening, 100);
    let (began, socket, prepared) = (Instant::now(), server.socket(), commands());
    let publisher = thread::spawn(move || pump(&socket, prepared, b':', count));
    until(&counted.delivered, count);
    let ours = count as f64 / began.elapsed().as_secs_f64();
    publisher.join().unwrap();
    drop(node);
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    let names: Vec<String> = (0..100).map(name).collect();
    let mut words: Vec<&[u8]> = vec![b"SUBSCRIBE"];
    words.extend(names.iter().map(|name| name.as_bytes()));
    stream.write_all(&encoded(&words)).unwrap();
    count_marks(&mut stream, b'*', 100);
    let (began, socket, prepared) = (Instant::now(), server.socket(), commands());
    let publisher = thread::spawn(move || pump(&socket, prepared, b':', count));
    count_marks(&mut stream, b'*', count);
    let floor = count as f64 / began.elapsed().as_secs_f64();
    publisher.join().unwrap();
    [ours, floor]
}

/// Seconds until all channels are subscribed again after the connection was killed, and the seconds of a
/// client that subscribes to as many.
fn resubscription(server: &RedisServer, count: u64) -> [f64; 2] {
    let mut node = node(server);
    let counted = node.counted.clone();
    let wishes = (0..count).map(|number| Command::Listen { channel: format!("r{number}").into() });
    node.send(wishes);
    until(&counted.listening, count);
    ask(&server.socket(), &[b"CLIENT", b"KILL", b"TYPE", b"pubsub"]);
    let began = Instant::now();
    until(&counted.listening, 2 * count);
    let ours = began.elapsed().as_secs_f64();
    drop(node);
    let names: Vec<String> = (0..count).map(|number| format!("p.client.s{number}")).collect();
    let mut commands = Vec::new();
    for some in names.chunks(NAMES) {
        let mut words: Vec<&[u8]> = vec![b"SUBSCRIBE"];
        words.extend(some.iter().map(|name| name.as_bytes()));
        commands.extend(encoded(&words));
    }
    [ours, pump(&server.socket(), commands, b'*', count).as_secs_f64()]
}

fn main() {
    let Some(server) = RedisServer::start() else {
        println!("no redis-server: nothing is measured");
        return;
    };
    let is_test = std::env::args().any(|argument| argument == "--test");
    let of = |full: u64| if is_test { full / 100 } else { full };
    let rounds = if is_test { 1 } else { 3 };
    let mut rows: Vec<[[f64; 2]; 3]> = Vec::new();
    for _ in 0..rounds {
        rows.push([
            publishes(&server, of(400_000)),
            fan_in(&server, of(2_000_000)),
            resubscription(&server, of(1_000_000)),
        ]);
    }
    println!("| what | broker thread | floor | ratio |\n| --- | --- | --- | --- |");
    for (at, what) in
        ["publishes with history/s", "messages in/s", "resubscription, s"].into_iter().enumerate()
    {
        let median = |side: usize| {
            let mut values: Vec<f64> = rows.iter().map(|row| row[at][side]).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let (ours, floor) = (median(0), median(1));
        println!("| {what} | {ours:.2} | {floor:.2} | {:.2} |", ours / floor);
    }
}
