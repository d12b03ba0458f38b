//! The threads against a real server, which each test starts for itself. Without `redis-server` in the path
//! they do nothing, unless `ROOST_TEST_REDIS` is set.

#![expect(
    clippy::disallowed_methods,
    reason = "bounds of waits for a server, and whether a missing one is a fault"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use std::sync::atomic::Ordering;

use super::*;
use crate::base::id::ShardId;
use crate::base::info::ClientInfo;
use crate::cluster::control;
use crate::cluster::control::Message;
use crate::cluster::hash;
use crate::cluster::names::{Layout, Names, Partitions};
use crate::cluster::servers::{Access, Address, Security};
use crate::hub::broker::Ticket;
use crate::hub::broker::{Command, FailureCause, PresenceChange, PresenceUpdate, Publishing};
use crate::hub::history::{Page, Position, Published, Record, Since, StreamOptions};
use crate::node::broker_threads::{Broker, ControlEvent, Prepared, Recipient};
use crate::shard::mail::{Flushed, Mail, MailLane};

/// So long a test waits for an event before it fails.
const PATIENCE: Duration = Duration::from_secs(30);

struct RedisServer {
    folder: PathBuf,
    child: Child,
}

impl RedisServer {
    /// None where there is no such program.
    fn start() -> Option<Self> {
        let found = Process::new("redis-server").arg("--version").output();
        if found.is_err() {
            assert!(std::env::var_os("ROOST_TEST_REDIS").is_none(), "no redis-server");
            eprintln!("skipped: no redis-server");
            return None;
        }
        let made = Process::new("mktemp").arg("-d").output().unwrap().stdout;
        let folder = PathBuf::from(String::from_utf8(made).unwrap().trim());
        let server = Self { child: run_server(&folder), folder };
        // It accepts connections.
        drop(server.client());
        Some(server)
    }

    fn socket(&self) -> String {
        self.folder.join("socket").display().to_string()
    }

    fn client(&self) -> redis::Connection {
        let url = format!("redis+unix://{}", self.socket());
        let began = Instant::now();
        loop {
            let made = redis::Client::open(&*url).and_then(|client| client.get_connection());
            match made {
                Ok(connection) => return connection,
                Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
            }
            std::thread::yield_now();
        }
    }

    fn run<T: redis::FromRedisValue>(&self, command: &str) -> T {
        let mut words = command.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        for word in words {
            command.arg(word);
        }
        command.query(&mut self.client()).unwrap()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    fn end(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn restart_empty(&mut self) {
        self.child = run_server(&self.folder);
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn run_server(folder: &Path) -> Child {
    Process::new("redis-server")
        .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
        .arg(folder.join("socket"))
        .arg("--dir")
        .arg(folder)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[derive(Clone)]
struct Sink(Sender<(usize, BrokerEvent)>, Sender<ControlEvent>);

impl Events for Sink {
    fn take(&self, home: usize, events: Vec<BrokerEvent>) {
        for event in events {
            let _ = self.0.send((home, event));
        }
    }

    fn control(&self, events: Vec<ControlEvent>) {
        for event in events {
            let _ = self.1.send(event);
        }
    }

    fn flush(&self) -> bool {
        false
    }

    fn has_room(&self, _: usize) {}
}

/// A broker whose events go to a sink, and the lane of home 0 to it.
fn started(settings: Settings, sink: Sink) -> (Broker, RefCell<MailLane>) {
    let prepared = Prepared::new(settings).unwrap();
    let lane = RefCell::new(MailLane::new(prepared.letterbox(0)));
    (prepared.start(move |_| sink.clone()).unwrap(), lane)
}

struct TestNode {
    broker: Broker,
    lane: RefCell<MailLane>,
    passed: RefCell<Vec<BrokerEvent>>,
    events: Receiver<(usize, BrokerEvent)>,
    control: Receiver<ControlEvent>,
}

fn settings(server: &RedisServer) -> Settings {
    let address = Address::Unix(server.socket());
    let server = Server::Single { address, access: Access::default() };
    Settings { homes: 2, ..settings_of(server) }
}

fn settings_of(server: Server) -> Settings {
    Settings {
        servers: vec![server],
        operations: Operations {
            names: Names::new("p", Layout::Plain),
            use_lists: false,
            presence_ttl_s: 60,
            presence_users: false,
            presence_field_ttl: false,
        },
        has_channels: true,
        uid: "n".into(),
        homes: 1,
        threads: 1,
        queue_bytes_max: 16 << 20,
        connect_timeout: Duration::from_secs(5),
        io_timeout: Duration::from_secs(10),
        late_after: Duration::from_secs(5),
        probe_interval: Duration::from_secs(5),
    }
}

impl TestNode {
    /// A node that has its connection.
    fn start(settings: Settings) -> Self {
        let (sender, events) = channel();
        let (control_sender, control) = channel();
        let sink = Sink(sender, control_sender);
        let (broker, lane) = started(settings, sink);
        let node = Self { broker, lane, passed: RefCell::default(), events, control };
        node.wait(|event| matches!(event, BrokerEvent::Connected).then_some(()));
        node
    }

    /// The next event of a kind; others before it wait.
    fn wait<T>(&self, of: impl Fn(&BrokerEvent) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        let mut passed = self.passed.borrow_mut();
        let known = passed.iter().enumerate().find_map(|(at, event)| Some((at, of(event)?)));
        if let Some((at, found)) = known {
            passed.remove(at);
            return found;
        }
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Ok((_, event)) = self.events.recv_timeout(left) else { panic!("{passed:?}") };
            if let Some(found) = of(&event) {
                return found;
            }
            passed.push(event);
        }
    }

    fn send(&self, command: Command) {
        self.send_all([command]);
    }

    /// Sends commands of home 0 as one batch.
    fn send_all(&self, commands: impl IntoIterator<Item = Command>) {
        let lane = &mut *self.lane.borrow_mut();
        commands.into_iter().for_each(|of| lane.push(Mail::Command(Box::new(of))));
        assert_eq!(lane.flush(ShardId(0)), Flushed::Gone);
    }

    fn listen(&self, channel: &str) {
        self.send(Command::Listen { channel: channel.into() });
        self.wait(|event| matches!(event, BrokerEvent::Listening { .. }).then_some(()));
    }

    fn published(&self) -> Position {
        self.wait(|event| match event {
            BrokerEvent::Published { position, .. } => Some(position.clone()),
            BrokerEvent::Failed { .. } => panic!("{event:?}"),
            _ => None,
        })
    }

    fn delivered(&self) -> Delivered {
        self.wait(|event| match event {
            BrokerEvent::Delivered(delivered) => Some((**delivered).clone()),
            _ => None,
        })
    }

    fn publish(&self, channel: &str) -> Position {
        self.send(publish(channel, b"{}"));
        self.published()
    }

    /// Publishes again while it fails: the server was away, or is busy with what came before.
    fn publish_until_taken(&self, channel: &str) {
        let is_taken = || {
            self.send(publish(channel, b"{}"));
            self.wait(|event| match event {
                BrokerEvent::Published { .. } => Some(true),
                BrokerEvent::Failed { .. } => Some(false),
                _ => None,
            })
        };
        while !is_taken() {}
    }

    fn read(&self, channel: &str, page: Page) -> (Position, Vec<u64>) {
        let (ticket, channel, meta_ttl_ms) = (Ticket(2), channel.into(), 1_000_000);
        self.send(Command::Read { ticket, channel, page, meta_ttl_ms, expects: None });
        self.history()
    }

    fn history(&self) -> (Position, Vec<u64>) {
        self.wait(|event| match event {
            BrokerEvent::History { top, entries, .. } => {
                let offsets = entries.iter().map(|entry| entry.record.offset()).collect();
                Some((top.clone(), offsets))
            }
            _ => None,
        })
    }

    fn failed(&self) -> FailureCause {
        self.wait(|event| match event {
            BrokerEvent::Failed { cause, .. } => Some(*cause),
            _ => None,
        })
    }
}

use crate::hub::broker::Delivered;

fn publishing(channel: &str, data: &[u8]) -> Publishing {
    Publishing {
        ticket: Ticket(1),
        channel: channel.into(),
        record: Record::new(0, &Published { data, is_json: true, ..<_>::default() }),
        options: StreamOptions { size: 3, ttl_ms: 300_000, meta_ttl_ms: 3_600_000 },
        idempotency_key: "".into(),
        version: 0,
        version_epoch: "".into(),
        delta: false,
    }
}

fn publish(channel: &str, data: &[u8]) -> Command {
    Command::Publish(Box::new(publishing(channel, data)))
}

fn page(since: Option<u64>, limit: usize, reverse: bool) -> Page {
    Page { since: since.map(|offset| Since { offset, epoch: "".into() }), limit, reverse }
}

fn histories(use_lists: bool) {
    let Some(server) = RedisServer::start() else { return };
    let mut settings = settings(&server);
    settings.operations.use_lists = use_lists;
    let (a, b) = (TestNode::start(settings.clone()), TestNode::start(settings));
    b.listen("c");
    // A read makes the epoch that publications have.
    let (empty, _) = b.read("c", page(None, 0, false));
    assert_eq!(empty.offset, 0);
    for offset in 1..=5 {
        let position = a.publish("c");
        assert_eq!(position, Position { offset, epoch: empty.epoch.clone() });
        let delivered = b.delivered();
        assert_eq!((delivered.epoch, delivered.entry.after), (empty.epoch.clone(), offset - 1));
        assert_eq!(delivered.entry.record.published().data, b"{}");
        assert!(delivered.entry.time_ms > 0 && delivered.entry.record.published().is_json);
    }
    for (wanted, expected) in [
        (page(None, 0, false), &[][..]),
        (page(None, 100, false), &[3, 4, 5]),
        (page(None, 2, false), &[3, 4]),
        (page(None, 2, true), &[5, 4]),
        (page(Some(4), 9, false), &[5]),
        (page(Some(5), 9, true), &[4, 3]),
        (page(Some(1), 9, true), &[]),
        (page(Some(9), 9, false), &[]),
    ] {
        let (top, offsets) = b.read("c", wanted.clone());
        assert_eq!((top.offset, &offsets[..]), (5, expected), "{wanted:?}");
    }
    let keys = ["p.stream.c", "p.stream.meta.c"];
    let keys = if use_lists { ["p.list.c", "p.list.meta.c"] } else { keys };
    let ttl: i64 = server.run(&format!("TTL {}", keys[0]));
    assert!((290..=300).contains(&ttl), "{ttl}");
    // The latest read.
    let ttl: i64 = server.run(&format!("TTL {}", keys[1]));
    assert!((990..=1_000).contains(&ttl), "{ttl}");
    // A key does its work once, and all get the first answer.
    let mut once = publishing("c", b"{}");
    once.idempotency_key = "k".into();
    for _ in 0..2 {
        a.send(Command::Publish(Box::new(once.clone())));
        assert_eq!(a.published().offset, 6);
    }
    let ttl: i64 = server.run("TTL p.result.c.k");
    assert!((290..=300).contains(&ttl), "{ttl}");
    // What is dropped leaves its position.
    a.send(Command::Drop { ticket: Ticket(3), channel: "c".into() });
    a.wait(|event| matches!(event, BrokerEvent::Done { .. }).then_some(()));
    let (top, offsets) = a.read("c", page(None, 9, false));
    assert_eq!((top.offset, offsets), (6, vec![]));
    assert_eq!(a.publish("c").offset, 7);
    // A stream that went back has another epoch afterwards, once.
    let epoch = empty.epoch.unwrap();
    let renew = || Command::Renew {
        ticket: Ticket(4),
        channel: "c".into(),
        epoch: epoch.clone(),
        meta_ttl_ms: 1_000_000,
    };
    a.send(renew());
    let (renewed, newest) = a.history();
    assert_eq!((renewed.offset, newest), (7, vec![7]));
    assert_ne!(renewed.epoch, Some(epoch.clone()));
    b.send(renew());
    assert_eq!(b.history().0, renewed);
}

#[test]
fn histories_in_streams_are_shared_by_nodes() {
    histories(false);
}

#[test]
fn histories_in_lists_are_shared_by_nodes() {
    histories(true);
}

#[test]
fn publications_without_history_and_deltas_are_delivered() {
    let Some(server) = RedisServer::start() else { return };
    for use_lists in [false, true] {
        let mut settings = settings(&server);
        settings.operations.use_lists = use_lists;
        let node = TestNode::start(settings);
        node.listen("c");
        let mut plain = publishing("c", b"{}");
        plain.options = StreamOptions::default();
        for key in ["", "k", "k"] {
            plain.idempotency_key = format!("{key}{}", if use_lists { "l" } else { "" }).into();
            if key.is_empty() {
                plain.idempotency_key = "".into();
            }
            node.send(Command::Publish(Box::new(plain.clone())));
            assert_eq!(node.published(), Position { offset: 0, epoch: None });
        }
        // Two of them, since the key was used; the next ones have a position.
        let first = [node.delivered(), node.delivered()];
        assert!(first.iter().all(|delivered| delivered.epoch.is_none()), "{first:?}");
        let mut delta = publishing(if use_lists { "l" } else { "d" }, b"[1]");
        delta.delta = true;
        node.listen(&delta.channel);
        for offset in 1..=3 {
            node.send(Command::Publish(Box::new(delta.clone())));
            let delivered = node.delivered();
            assert!(delivered.entry.delta && delivered.epoch.is_some(), "{delivered:?}");
            assert_eq!(delivered.entry.record.offset(), offset);
            assert_eq!(delivered.entry.record.published().data, b"[1]");
        }
        assert_eq!(node.broker.figures().malformed.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn versions_are_compared_as_numbers() {
    let Some(server) = RedisServer::start() else { return };
    let node = TestNode::start(settings(&server));
    let offset = |version: u64, life: &str| {
        let versioned =
            Publishing { version, version_epoch: life.into(), ..publishing("c", b"{}") };
        node.send(Command::Publish(Box::new(versioned)));
        node.published().offset
    };
    assert_eq!(offset(9, ""), 1);
    assert_eq!(offset(9, ""), 1);
    assert_eq!(offset(10, ""), 2);
    assert_eq!(offset(9, ""), 2);
    assert_eq!(offset(1, "another"), 3);
    assert_eq!(offset((1 << 53) + 1, "another"), 4);
    assert_eq!(offset(1 << 53, "another"), 4);
    assert_eq!(offset((1 << 53) + 2, "another"), 5);
}

#[test]
fn presence_is_kept_by_client_and_user() {
    let Some(server) = RedisServer::start() else { return };
    for presence_users in [false, true] {
        let mut settings = settings(&server);
        settings.operations.presence_users = presence_users;
        let node = TestNode::start(settings);
        let channel = format!("c{presence_users}");
        let info = |user: &str, client: &str| {
            ClientInfo { user, client, conn_info: b"{}", ..<_>::default() }.pack()
        };
        let update = |changes| {
            let channel = channel.as_str().into();
            node.send(Command::Presence(Box::new(PresenceUpdate {
                channel,
                ticket: None,
                changes,
            })));
        };
        let counts = || {
            let channel = channel.as_str().into();
            node.send(Command::Members { ticket: Ticket(1), channel, counts: true });
            node.wait(|event| match event {
                BrokerEvent::MemberCounts { clients, users, .. } => Some((*clients, *users)),
                _ => None,
            })
        };
        let (enter, leave) = (PresenceChange::Enter { announces: true }, PresenceChange::Leave);
        update(vec![(enter, info("u", "1")), (enter, info("u", "2")), (enter, info("v", "3"))]);
        assert_eq!(counts(), (3, 2));
        update(vec![(enter, info("u", "1")), (leave, info("v", "3")), (leave, info("v", "4"))]);
        assert_eq!(counts(), (2, 1));
        let key = format!("p.presence.data.{channel}");
        let ttl: i64 = server.run(&format!("TTL {key}"));
        assert!((50..=60).contains(&ttl), "{ttl}");
        // Another node removed an entry: the home hears of it, and writes it anew.
        let removed: i64 = server.run(&format!("HDEL {key} 2"));
        assert_eq!(removed, 1);
        update(vec![(PresenceChange::Refresh, info("u", "2"))]);
        let missing = node.wait(|event| match event {
            BrokerEvent::EntriesMissing { channel } => Some(channel.clone()),
            _ => None,
        });
        assert_eq!(missing, channel.as_str());
        let refresh = PresenceChange::Refresh;
        update(vec![(enter, info("u", "2"))]);
        update(vec![(refresh, info("u", "1")), (refresh, info("u", "2"))]);
        node.send(Command::Members {
            ticket: Ticket(1),
            channel: channel.as_str().into(),
            counts: false,
        });
        let mut infos = node.wait(|event| match event {
            BrokerEvent::Members { infos, .. } => Some(infos.clone()),
            _ => None,
        });
        infos.sort();
        assert_eq!(infos, [info("u", "1"), info("u", "2")]);
        // Entries whose time is over count no more.
        let expiry = format!("p.presence.expire.{channel}");
        let _: i64 = server.run(&format!("ZADD {expiry} 1 1 1 2"));
        let _: i64 = server.run(&format!("ZADD p.presence.user.expire.{channel} 1 u"));
        assert_eq!(counts(), (0, 0));
    }
}

#[test]
fn killed_connections_are_made_anew() {
    let Some(server) = RedisServer::start() else { return };
    let node = TestNode::start(settings(&server));
    node.listen("c");
    let killed: i64 = server.run("CLIENT KILL TYPE pubsub");
    assert_eq!(killed, 3, "one for each home, and one for control");
    node.wait(|event| matches!(event, BrokerEvent::Interrupted { .. }).then_some(()));
    node.wait(|event| matches!(event, BrokerEvent::Listening { .. }).then_some(()));
    node.publish("c");
    // The command connections, too. Only what was under way may fail.
    let _: i64 = server.run("CLIENT KILL TYPE normal SKIPME yes");
    node.publish_until_taken("d");
    assert!(node.broker.figures().connects.load(Ordering::Relaxed) >= 2);
    let unlisten = Command::Unlisten { channel: "c".into() };
    node.send(unlisten);
    let began = Instant::now();
    while !server.run::<Vec<String>>("PUBSUB CHANNELS p.client.*").is_empty() {
        assert!(began.elapsed() < PATIENCE);
    }
}

#[test]
fn a_frozen_server_fails_commands_in_time() {
    let Some(server) = RedisServer::start() else { return };
    let mut settings = settings(&server);
    settings.io_timeout = Duration::from_millis(300);
    settings.connect_timeout = Duration::from_millis(300);
    let node = TestNode::start(settings);
    server.signal(Signal::STOP);
    // Several writes, and some more that wait.
    node.send_all((0..2_600).map(|_| publish("c", b"{}")));
    (0..2_600).for_each(|_| assert_eq!(node.failed(), FailureCause::Unavailable));
    // The first attempt to connect fails as well.
    node.wait(|event| matches!(event, BrokerEvent::Lost).then_some(()));
    node.send(publish("c", b"{}"));
    assert_eq!(node.failed(), FailureCause::Unavailable);
    server.signal(Signal::CONT);
    node.wait(|event| matches!(event, BrokerEvent::Connected).then_some(()));
    node.publish_until_taken("d");
    assert_eq!(node.broker.queued_bytes(), 0);
}

#[test]
fn a_server_that_comes_back_empty_is_used_again() {
    let Some(mut server) = RedisServer::start() else { return };
    let node = TestNode::start(settings(&server));
    node.listen("c");
    let before = node.publish("c");
    assert_eq!(node.delivered().epoch, before.epoch);
    server.end();
    node.wait(|event| matches!(event, BrokerEvent::Lost).then_some(()));
    node.send(publish("c", b"{}"));
    assert_eq!(node.failed(), FailureCause::Unavailable);
    server.restart_empty();
    node.wait(|event| matches!(event, BrokerEvent::Connected).then_some(()));
    node.listen("c");
    let after = node.publish("c");
    assert_eq!(after.offset, 1);
    assert_ne!(after.epoch, before.epoch);
    assert_eq!(node.delivered().epoch, after.epoch);
}

#[test]
fn a_server_that_answers_late_counts_as_away_until_it_answers_soon() {
    let Some(server) = RedisServer::start() else { return };
    let late_after = Duration::from_millis(100);
    let node = TestNode::start(Settings { late_after, ..settings(&server) });
    assert_eq!(node.publish("c").offset, 1);
    let away = |count| {
        let began = Instant::now();
        while node.broker.figures().servers_away.load(Ordering::Relaxed) != count {
            assert!(began.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
    };
    // Shorter than the time after which the connection would be given up.
    let _: () = server.run("CLIENT PAUSE 8000 WRITE");
    node.send(publish("c", b"{}"));
    away(1);
    assert_eq!(node.broker.fault(), Some("the broker is unreachable"));
    node.send(publish("c", b"{}"));
    assert_eq!(node.failed(), FailureCause::Unavailable);
    let connects = node.broker.figures().connects.load(Ordering::Relaxed);
    let _: () = server.run("CLIENT UNPAUSE");
    // The command under way gets its reply; new ones fail until the server replies in time.
    assert_eq!(node.published().offset, 2);
    away(0);
    assert_eq!(node.publish("c").offset, 3);
    assert_eq!(node.broker.figures().connects.load(Ordering::Relaxed), connects);
}

#[test]
fn the_fault_of_the_broker_is_known() {
    let Some(mut server) = RedisServer::start() else { return };
    let probe_interval = Duration::from_millis(200);
    let settings = Settings { probe_interval, ..settings(&server) };
    assert_eq!(check(&settings), Ok(()));
    let node = TestNode::start(settings.clone());
    node.listen("a");
    let until = |expected: Option<&str>| {
        let began = Instant::now();
        while node.broker.fault() != expected {
            assert!(began.elapsed() < PATIENCE, "{:?}", node.broker.fault());
            std::thread::yield_now();
        }
    };
    until(None);
    server.signal(Signal::STOP);
    until(Some("the broker does not deliver"));
    server.signal(Signal::CONT);
    until(None);
    server.end();
    until(Some("the broker is unreachable"));
    let error = check(&settings).unwrap_err();
    assert!(error.starts_with("server 0 ("), "{error}");
    server.restart_empty();
    until(None);
}

#[test]
fn forgotten_scripts_and_malformed_payloads_do_no_harm() {
    let Some(server) = RedisServer::start() else { return };
    let node = TestNode::start(settings(&server));
    node.listen("c");
    let _: () = server.run("SCRIPT FLUSH");
    node.send_all((0..20).map(|_| publish("c", b"{}")));
    let offsets: Vec<u64> = (0..20).map(|_| node.published().offset).collect();
    assert_eq!(offsets, (1..=20).collect::<Vec<_>>());
    for payload in ["__d1:7:ep:3:abc", "__x__", "__d1:7:ep:0:", "\u{1}"] {
        let _: i64 = server.run(&format!("PUBLISH p.client.c {payload}"));
    }
    let position = node.publish("c");
    let seen = std::iter::repeat_with(|| node.delivered()).find(|d| d.epoch == position.epoch);
    assert!(seen.is_some());
    let began = Instant::now();
    while node.broker.figures().malformed.load(Ordering::Relaxed) < 4 {
        assert!(began.elapsed() < PATIENCE);
    }
}

#[test]
fn a_full_queue_fails_commands_and_keeps_wishes() {
    let Some(server) = RedisServer::start() else { return };
    let mut settings = settings(&server);
    settings.queue_bytes_max = 2_000;
    let node = TestNode::start(settings);
    server.signal(Signal::STOP);
    node.send_all((0..50).map(|_| publish("c", &[b'1'; 100])));
    assert_eq!(node.failed(), FailureCause::Unavailable);
    let refused = node.broker.figures().refused.load(Ordering::Relaxed);
    assert!(refused > 30, "{refused}");
    server.signal(Signal::CONT);
    let is_published = |event: &BrokerEvent| match event {
        BrokerEvent::Published { position, .. } => Some(position.offset),
        _ => None,
    };
    assert_eq!(node.wait(is_published), 1);
    node.listen("c");
}

#[test]
fn channels_are_divided_among_servers() {
    let (Some(one), Some(two)) = (RedisServer::start(), RedisServer::start()) else { return };
    let mut settings = settings(&one);
    let address = Address::Unix(two.socket());
    settings.servers.push(Server::Single { address, access: Access::default() });
    let node = TestNode::start(settings);
    for number in 0..20 {
        let channel = format!("c{number}");
        node.listen(&channel);
        node.publish(&channel);
        assert_eq!(node.delivered().channel, channel);
    }
    let counts = [&one, &two].map(|server| server.run::<i64>("DBSIZE"));
    // Stream and position of each channel.
    assert_eq!(counts[0] + counts[1], 40);
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

/// Servers that listen on TCP ports of this machine.
struct TcpServers {
    folder: PathBuf,
    children: Vec<Child>,
    ports: Vec<u16>,
}

impl TcpServers {
    /// As many as there are lists of arguments, each on a port that was free.
    fn start(all: &[&[&str]]) -> Option<Self> {
        let one = RedisServer::start()?;
        drop(one);
        let made = Process::new("mktemp").arg("-d").output().unwrap().stdout;
        let folder = PathBuf::from(String::from_utf8(made).unwrap().trim());
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let held: Vec<_> = (0..2 * all.len()).map(|_| free()).collect();
        let port = |at: usize| held[at].local_addr().unwrap().port();
        let numbers: Vec<u16> = (0..held.len()).map(port).collect();
        drop(held);
        let (ports, buses) = numbers.split_at(all.len());
        let mut children = Vec::new();
        for (at, arguments) in all.iter().enumerate() {
            let own = folder.join(at.to_string());
            std::fs::create_dir(&own).unwrap();
            let child = Process::new("redis-server")
                .args(["--save", "", "--bind", "127.0.0.1", "--dir"])
                .arg(&own)
                .args(["--cluster-port", &buses[at].to_string()])
                .args(["--port", &ports[at].to_string()])
                // The later one counts.
                .args(arguments.iter().map(|word| word.replace("PORT", &ports[at].to_string())))
                .stdout(Stdio::null())
                .spawn();
            children.push(child.unwrap());
        }
        Some(Self { folder, children, ports: ports.to_vec() })
    }

    fn run<T: redis::FromRedisValue>(&self, at: usize, command: &[&str]) -> T {
        let url = format!("redis://127.0.0.1:{}", self.ports[at]);
        let began = Instant::now();
        loop {
            let mut words = redis::cmd(command[0]);
            for word in &command[1..] {
                words.arg(*word);
            }
            let made = redis::Client::open(&*url).and_then(|client| client.get_connection());
            match made.and_then(|mut connection| words.query(&mut connection)) {
                Ok(reply) => return reply,
                Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
            }
            std::thread::yield_now();
        }
    }

    fn address(&self, at: usize) -> Address {
        Address::Tcp("127.0.0.1".into(), self.ports[at])
    }
}

impl Drop for TcpServers {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Two channels through a broker, each of them published, read and delivered.
fn works(node: &TestNode) {
    for number in 0..8 {
        let channel = format!("channel {number}");
        node.listen(&channel);
        assert_eq!(node.publish(&channel).offset, 1);
        assert_eq!(node.delivered().channel, channel);
        assert_eq!(node.read(&channel, page(None, 9, false)).1, [1]);
    }
}

/// A Cluster of two, each with half of the slots, and the settings of a node that uses it.
fn cluster(layout: Layout) -> Option<(TcpServers, Settings)> {
    let cluster: &[&str] = &["--cluster-enabled", "yes"];
    let servers = TcpServers::start(&[cluster, cluster])?;
    for (at, range) in [(0, ["0", "8191"]), (1, ["8192", "16383"])] {
        let _: String = servers.run(at, &["CLUSTER", "ADDSLOTSRANGE", range[0], range[1]]);
    }
    let bus: Vec<String> = servers.run(1, &["CONFIG", "GET", "cluster-port"]);
    let port = servers.ports[1].to_string();
    let _: String = servers.run(0, &["CLUSTER", "MEET", "127.0.0.1", &port, &bus[1]]);
    let began = Instant::now();
    for at in [0, 1] {
        while !servers.run::<String>(at, &["CLUSTER", "INFO"]).contains("cluster_state:ok") {
            assert!(began.elapsed() < PATIENCE);
        }
    }
    let seeds = vec![servers.address(0), servers.address(1)];
    let mut settings = settings_of(Server::Cluster { seeds, access: Access::default() });
    settings.operations.names = Names::new("p", layout);
    Some((servers, settings))
}

/// Many publications at once, while a node listens: those of a channel stay in their order.
fn keeps_the_order(node: &TestNode) {
    node.listen("order");
    for batch in 0..3 {
        let numbers = batch * 1_000..(batch + 1) * 1_000;
        node.send_all(numbers.flat_map(|number| {
            let other = format!("other{}", number % 7);
            [publish("order", format!("{number}").as_bytes()), publish(&other, b"{}")]
        }));
    }
    for number in 0..3_000 {
        let delivered = node.delivered();
        let text = String::from_utf8(delivered.entry.record.published().data.to_vec()).unwrap();
        assert_eq!(text, number.to_string());
    }
    // A later publication is not to be taken for one of these.
    (0..6_000).for_each(|_| _ = node.published());
}

#[test]
fn a_cluster_gets_each_command_at_the_owner_of_its_slot() {
    let Some((servers, settings)) = cluster(Layout::Cluster) else { return };
    let node = TestNode::start(settings);
    works(&node);
    let keys = [0, 1].map(|at| servers.run::<i64>(at, &["DBSIZE"]));
    assert!(keys[0] > 0 && keys[1] > 0 && keys[0] + keys[1] == 16, "{keys:?}");
    node.send(publish("}x", b"{}"));
    assert_eq!(node.failed(), FailureCause::Unsupported);
    keeps_the_order(&node);
}

#[test]
fn sharded_messages_go_by_the_owner_of_their_slot_and_follow_it() {
    let layout = Layout::Sharded(Partitions::balanced(16).unwrap());
    let Some((servers, settings)) = cluster(layout) else { return };
    let names = settings.operations.names.clone();
    check(&settings).unwrap();
    let node = TestNode::start(Settings { homes: 2, ..settings });
    works(&node);
    keeps_the_order(&node);
    // Each server carries the channels of its slots alone, and none by ordinary PUB/SUB.
    let carried =
        |at: usize| servers.run::<Vec<String>>(at, &["PUBSUB", "SHARDCHANNELS", "p.client.*"]);
    for (at, half) in [(0, 0..8_192), (1, 8_192..16_384)] {
        let carried = carried(at);
        assert!(
            carried.iter().all(|name| half.contains(&hash::slot(name.as_bytes()))),
            "{carried:?}"
        );
    }
    assert_eq!(carried(0).len() + carried(1).len(), 9);
    for at in [0, 1] {
        let ordinary: Vec<String> = servers.run(at, &["PUBSUB", "CHANNELS", "p.client.*"]);
        assert_eq!(ordinary, [""; 0]);
    }
    // The slot of a channel moves, with its keys.
    let channel = (0..)
        .map(|number| format!("moves {number}"))
        .find(|channel| hash::slot(names.messages(channel).as_bytes()) < 8_192);
    let channel = channel.unwrap();
    node.listen(&channel);
    assert_eq!(node.publish(&channel).offset, 1);
    node.delivered();
    move_slot(&servers, hash::slot(names.messages(&channel).as_bytes()));
    node.wait(|event| match event {
        BrokerEvent::Interrupted { channel: of } => (*of == channel).then_some(()),
        _ => None,
    });
    node.wait(|event| match event {
        BrokerEvent::Listening { channel: of } => (*of == channel).then_some(()),
        _ => None,
    });
    node.publish_until_taken(&channel);
    let delivered = node.delivered();
    assert_eq!((&delivered.channel, delivered.entry.record.offset()), (&channel.into(), 2));
    assert!(carried(1).len() > 1);
}

/// Moves a slot and its keys from the first server to the second one.
fn move_slot(servers: &TcpServers, slot: u16) {
    let slot = slot.to_string();
    let ids = [0, 1].map(|at| servers.run::<String>(at, &["CLUSTER", "MYID"]));
    let _: String = servers.run(1, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &ids[0]]);
    let _: String = servers.run(0, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &ids[1]]);
    let port = servers.ports[1].to_string();
    let keys: Vec<String> = servers.run(0, &["CLUSTER", "GETKEYSINSLOT", &slot, "1000"]);
    for key in keys {
        let _: String = servers.run(0, &["MIGRATE", "127.0.0.1", &port, &key, "0", "5000"]);
    }
    for at in [1, 0] {
        let _: String = servers.run(at, &["CLUSTER", "SETSLOT", &slot, "NODE", &ids[1]]);
    }
}

#[test]
fn a_server_that_takes_no_writes_is_away() {
    let Some(server) = RedisServer::start() else { return };
    let settings = Settings { homes: 1, ..settings(&server) };
    let node = TestNode::start(settings.clone());
    node.publish("c");
    let _: String = server.run("REPLICAOF 127.0.0.1 1");
    let began = Instant::now();
    // The first command shows it.
    node.send(publish("c", b"{}"));
    node.failed();
    node.wait(|event| matches!(event, BrokerEvent::Lost).then_some(()));
    assert_eq!(node.broker.fault(), Some("the broker is unreachable"));
    node.send(publish("c", b"{}"));
    assert_eq!(node.failed(), FailureCause::Unavailable);
    let fault = check(&settings).unwrap_err();
    assert!(fault.contains("READONLY"), "{fault}");
    let _: String = server.run("REPLICAOF NO ONE");
    node.wait(|event| matches!(event, BrokerEvent::Connected).then_some(()));
    assert_eq!(node.publish("c").offset, 2);
    assert!(began.elapsed() < PATIENCE);
}

#[test]
fn sentinels_name_the_master() {
    let Some(servers) = TcpServers::start(&[&[]]) else { return };
    let made = Process::new("mktemp").args(["--suffix", ".conf"]).output().unwrap().stdout;
    let file = PathBuf::from(String::from_utf8(made).unwrap().trim());
    let text = format!("sentinel monitor m 127.0.0.1 {} 1\n", servers.ports[0]);
    std::fs::write(&file, text).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let child = Process::new("redis-server")
        .arg(&file)
        .args(["--sentinel", "--bind", "127.0.0.1", "--port", &port.to_string()])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // Ended with the others.
    let mut servers = servers;
    servers.children.push(child);
    let sentinel = Server::Sentinel {
        sentinels: vec![Address::Tcp("127.0.0.1".into(), port)],
        master: "m".into(),
        sentinel_access: Access::default(),
        access: Access::default(),
    };
    works(&TestNode::start(settings_of(sentinel)));
    let _ = std::fs::remove_file(file);
}

#[test]
fn users_and_both_versions_of_the_protocol_work() {
    let Some(servers) = TcpServers::start(&[&[]]) else { return };
    let _: String =
        servers.run(0, &["ACL", "SETUSER", "u", "on", ">pw", "~p.*", "&p.*", "+@all", "-@admin"]);
    for force_resp2 in [false, true] {
        let access = Access {
            user: "u".into(),
            password: "pw".into(),
            force_resp2,
            client_name: "roost".into(),
            ..Access::default()
        };
        let address = servers.address(0);
        works(&TestNode::start(settings_of(Server::Single { address, access })));
        let _: String = servers.run(0, &["FLUSHALL"]);
    }
}

#[test]
fn tls_is_spoken_and_certificates_are_checked() {
    let authority =
        concat!(env!("CARGO_MANIFEST_DIR"), "/src/proto/tls/handshake/trust/authority.pem");
    let authority_key =
        concat!(env!("CARGO_MANIFEST_DIR"), "/src/proto/tls/handshake/trust/authority_key.pem");
    let made = Process::new("mktemp").arg("-d").output().unwrap().stdout;
    let folder = PathBuf::from(String::from_utf8(made).unwrap().trim());
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    let signed = Process::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-days", "2", "-subj", "/CN=redis", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-CA", authority, "-CAkey", authority_key, "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .output();
    let Ok(signed) = signed else { return eprintln!("skipped: no openssl") };
    assert!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));
    let (cert, key) = (cert.display().to_string(), key.display().to_string());
    let arguments = [
        "--port",
        "0",
        "--tls-port",
        "PORT",
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        authority,
        "--tls-auth-clients",
        "no",
    ];
    let Some(servers) = TcpServers::start(&[&arguments]) else { return };
    let of = |prefix: &str, host: &str, authorities: Option<&str>, insecure| {
        let authorities = authorities.map(|file| std::fs::read(file).unwrap());
        let security = Some(Security { authorities, insecure, ..Security::default() });
        let access = Access { security, ..Access::default() };
        let address = Address::Tcp(host.into(), servers.ports[0]);
        let mut settings = settings_of(Server::Single { address, access });
        settings.operations.names = Names::new(prefix, Layout::Plain);
        settings
    };
    works(&TestNode::start(of("p", "localhost", Some(authority), false)));
    let other = concat!(env!("CARGO_MANIFEST_DIR"), "/src/proto/tls/handshake/trust/other.pem");
    // Without checks: another name, another authority, and those of the machine.
    for (prefix, host, authorities) in [
        ("a", "127.0.0.1", Some(authority)),
        ("b", "localhost", Some(other)),
        ("c", "localhost", None),
    ] {
        works(&TestNode::start(of(prefix, host, authorities, true)));
    }
    let (sender, events) = channel();
    let sink = Sink(sender, channel().0);
    let (broker, _lane) = started(of("p", "localhost", Some(other), false), sink);
    let began = Instant::now();
    while broker.figures().connects_failed.load(Ordering::Relaxed) < 2 {
        assert!(began.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    assert!(events.try_recv().is_err(), "connected to a server with an unknown certificate");
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn entries_of_a_dead_node_are_removed_and_announced_once() {
    let Some(server) = RedisServer::start() else { return };
    let [dead, b, c] = ["dead", "b", "c"]
        .map(|uid| TestNode::start(Settings { uid: uid.into(), ..settings(&server) }));
    let info =
        |client: &str| ClientInfo { user: "u", client, conn_info: b"{}", ..<_>::default() }.pack();
    let enter = |node: &TestNode, channel: &str, clients: &[String], announces| {
        let changes = clients.iter().map(|of| (PresenceChange::Enter { announces }, info(of)));
        let (channel, changes) = (channel.into(), changes.collect());
        node.send(Command::Presence(Box::new(PresenceUpdate { channel, ticket: None, changes })));
    };
    let members = |node: &TestNode, channel: &str| {
        node.send(Command::Members { ticket: Ticket(1), channel: channel.into(), counts: false });
        node.wait(|event| match event {
            BrokerEvent::Members { infos, .. } => Some(infos.clone()),
            _ => None,
        })
    };
    let clients: Vec<String> = (0..300).map(|client| format!("c{client}")).collect();
    enter(&dead, "large", &clients, true);
    enter(&dead, "silent", &clients[..2], false);
    enter(&dead, "large", &clients[..1], true);
    enter(&b, "large", &["of b".to_owned()], true);
    let changes = vec![(PresenceChange::Leave, info("c7"))];
    let update = PresenceUpdate { channel: "large".into(), ticket: None, changes };
    dead.send(Command::Presence(Box::new(update)));
    // What the other node entered comes over a connection of its own.
    for node in [&dead, &b] {
        assert!((0..1000).any(|_| members(node, "large").len() == 300));
    }
    for node in [&b, &c] {
        node.broker.notify_removed("dead");
        node.broker.take_entries("dead");
    }
    // It is alive: it hears of it.
    let removed = |event: &BrokerEvent| matches!(event, BrokerEvent::EntriesRemoved).then_some(());
    dead.wait(removed);
    let mut left = std::collections::BTreeSet::new();
    let began = Instant::now();
    while left.len() < 299 {
        assert!(began.elapsed() < PATIENCE, "{} of 299", left.len());
        for (_, event) in b.events.try_iter().chain(c.events.try_iter()) {
            if let BrokerEvent::Orphaned { channel, info } = event {
                assert_eq!(channel, "large");
                assert!(left.insert(ClientInfo::unpack(&info).unwrap().client.to_owned()));
            }
        }
        std::thread::yield_now();
    }
    assert!(!left.contains("c7") && !left.contains("of b"));
    while !members(&c, "silent").is_empty() {
        assert!(began.elapsed() < PATIENCE);
    }
    assert_eq!(members(&c, "large"), [info("of b")]);
    let keys: Vec<String> = server.run("KEYS p.roost.node.*");
    assert_eq!(keys, ["p.roost.node.b"]);
    let ttl: i64 = server.run("TTL p.roost.node.b");
    assert!((500..=600).contains(&ttl), "{ttl}");
}

#[test]
fn messages_go_to_all_other_nodes_or_to_one() {
    let Some(mut server) = RedisServer::start() else { return };
    let nodes = ["a", "b", "c"]
        .map(|uid| TestNode::start(Settings { uid: uid.into(), ..settings(&server) }));
    let next = |node: &TestNode| node.control.recv_timeout(PATIENCE).unwrap();
    for node in &nodes {
        assert_eq!(next(node), ControlEvent::Listening);
    }
    let [a, b, c] = &nodes;
    let sent = |ticket| ControlEvent::Sent { ticket: Ticket(ticket), is_sent: true };
    // In the order in which they were sent, and not to the sender.
    for (ticket, message) in [(1, Message::Shutdown), (2, Message::Refresh(<_>::default()))] {
        a.broker.send_control(Recipient::All, Ticket(ticket), message.clone());
        assert_eq!(next(a), sent(ticket));
        let expected = Box::new(control::Command { uid: "a".into(), message });
        for node in [b, c] {
            assert_eq!(next(node), ControlEvent::Message(expected.clone()));
        }
    }
    b.broker.send_control(Recipient::Node("c".into()), Ticket(3), Message::Shutdown);
    assert_eq!(next(b), sent(3));
    let expected = control::Command { uid: "b".into(), message: Message::Shutdown };
    let expected = Box::new(expected);
    assert_eq!(next(c), ControlEvent::Message(expected));
    // Malformed ones are counted.
    let _: i64 = server.run("PUBLISH p.control \u{1}");
    let began = Instant::now();
    while a.broker.figures().malformed.load(Ordering::Relaxed) == 0 {
        assert!(began.elapsed() < PATIENCE);
    }
    server.end();
    a.wait(|event| matches!(event, BrokerEvent::Lost).then_some(()));
    a.broker.send_control(Recipient::All, Ticket(4), Message::Shutdown);
    let failed = ControlEvent::Sent { ticket: Ticket(4), is_sent: false };
    while next(a) != failed {}
}

#[tokio::test]
async fn the_settings_of_a_server_are_known() {
    let Some(server) = RedisServer::start() else { return };
    let settings = settings(&server);
    for policy in ["noeviction", "allkeys-lru"] {
        let _: () = server.run(&format!("CONFIG SET maxmemory-policy {policy}"));
        let link = wire::Link::connect(&settings.servers[0], settings.io_timeout);
        let mut link = link.await.unwrap();
        assert_eq!(link.setting("maxmemory-policy").await.as_deref(), Some(policy));
        assert_eq!(link.setting("stream-node-max-bytes").await.as_deref(), Some("4096"));
    }
}
