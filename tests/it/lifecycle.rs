//! Connections that come and go leave nothing behind.

use std::net::{SocketAddr, TcpStream};

use socket2::{Domain, Protocol, Socket, Type};

use crate::harness::*;

/// How a connection ends.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// A close frame, then the server's end of stream.
    CloseFrame,
    /// Its end of stream, with both ways closed at once.
    Fin,
    /// A reset.
    Reset,
    /// Its end of stream, while it still reads.
    HalfClosed,
    /// In the middle of a frame.
    Cut,
    /// With commands on their way.
    Busy,
}

const WAYS: [Way; 6] =
    [Way::CloseFrame, Way::Fin, Way::Reset, Way::HalfClosed, Way::Cut, Way::Busy];

/// Threads that open connections.
const THREADS: usize = 4;

/// Connections that one of them has open at a time.
const AT_ONCE: usize = 50;

/// One source address has too few ports for all connections whose ends are still waited for.
fn connect(address: SocketAddr, source: usize) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    let source = [127, 1, (source / 200) as u8, (source % 200) as u8 + 1];
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.into()
}

fn end(mut raw: Raw, way: Way) {
    match way {
        Way::CloseFrame => {
            raw.send(&frame(CLOSE, &close_payload(1000, "")));
            assert_eq!(raw.closed().0, 1000);
            raw.ends();
        }
        Way::Fin => {}
        Way::Reset => raw.reset(),
        Way::HalfClosed => {
            raw.finish();
            raw.ends();
        }
        Way::Cut => raw.send(&frame_header(TEXT, 1000)),
        Way::Busy => {
            raw.send(&frame(TEXT, br#"{"id":3,"publish":{"channel":"a","data":1}}"#));
            raw.send(&frame(TEXT, br#"{"id":4,"unsubscribe":{"channel":"a"}}"#));
            raw.send(&frame(TEXT, br#"{"id":5,"subscribe":{"channel":"b"}}"#));
        }
    }
}

/// So many connections come, connect, subscribe, and go, in every way.
fn wave(node: &Node, connections: usize) {
    let hello = |number: usize| {
        let mut bytes = upgrade(CLIENTS, &[]).into_bytes();
        // A shared channel, and one for itself.
        let commands = format!(
            "{{\"id\":1,\"connect\":{{}}}}\n{{\"id\":2,\"subscribe\":{{\"channel\":\"own-{number}\"}}}}\n\
             {{\"id\":3,\"subscribe\":{{\"channel\":\"all\"}}}}"
        );
        bytes.extend(frame(TEXT, commands.as_bytes()));
        bytes
    };
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                for round in 0..connections / THREADS / AT_ONCE {
                    let first = (round * THREADS + thread) * AT_ONCE;
                    let mut open: Vec<Raw> = (first..first + AT_ONCE)
                        .map(|number| {
                            let source = round % 20 * THREADS + thread;
                            let mut raw = Raw::new(connect(node.address(), source));
                            raw.send(&hello(number));
                            raw
                        })
                        .collect();
                    for raw in &mut open {
                        assert_eq!(raw.response().status, 101);
                        let mut replies = 0;
                        while replies < 3 {
                            let (first, payload) = raw.frame().expect("a reply");
                            assert_eq!(first, TEXT);
                            replies += payload.split(|byte| *byte == b'\n').count();
                        }
                    }
                    for (number, raw) in open.into_iter().enumerate() {
                        end(raw, WAYS[(round + number) % WAYS.len()]);
                    }
                }
            });
        }
    });
}

/// Descriptors in all tables of a process: each shard thread has its own.
fn descriptors(pid: u32) -> Vec<usize> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut counts: Vec<usize> = tasks
        .map(|task| std::fs::read_dir(task.unwrap().path().join("fd")).unwrap().count())
        .collect();
    counts.sort_unstable();
    counts
}

/// Figures that have to be as before when nobody is connected.
const BASELINE: [&str; 12] = [
    "connections_open",
    "connections_leaving",
    "slots_in_use",
    "sessions_open",
    "users",
    "subscriptions",
    "channels_local",
    "channels_home",
    "channels_idle",
    "queues",
    "queued_bytes",
    "clients",
];

#[test]
fn after_100_000_connections_everything_is_as_it_was() {
    // Tunnels have two sockets and a thread for each connection.
    if over_tls() {
        return;
    }
    let node = Node::open(&[]);
    let idle = |figures: &Figures| BASELINE.iter().all(|name| figures[*name] == 0);
    let at_start = descriptors(node.pid());
    assert!(idle(&node.figures()));

    // The first makes the tables grow; behind the second, equal one, nothing may have been added.
    wave(&node, 20_000);
    node.until("as it was", idle);
    wave(&node, 40_000);
    let first = node.until("as it was", idle);
    assert_eq!(descriptors(node.pid()), at_start);
    wave(&node, 40_000);
    let second = node.until("as it was", idle);
    assert_eq!(descriptors(node.pid()), at_start);

    assert_eq!(second["connections_accepted"], 100_000);
    assert_eq!(second["connections_closed"], 100_000);
    assert_eq!(second["upgrades"], 100_000);
    let grown = second["rss_bytes"].saturating_sub(first["rss_bytes"]);
    println!("{} then {}: {grown} bytes more", first["rss_bytes"], second["rss_bytes"]);
    // 13 B a connection: a record that stayed, even the smallest, would be more.
    assert!(grown < 512 * 1024, "{grown} bytes more after 40,000 connections that are gone");
    node.is_healthy();
}

/// While very many come and go, those that stay are served.
#[test]
fn a_storm_beside() {
    // Tunnels have two sockets and a thread for each connection.
    if over_tls() {
        return;
    }
    let node = Node::open(&[]);
    let mut stays = node.connected();
    stays.subscribe("own-7");
    stays.subscribe("beside");
    std::thread::scope(|scope| {
        let storm = scope.spawn(|| wave(&node, 4_000));
        let mut id = 10;
        while !storm.is_finished() {
            stays.pub_sub("beside", id);
            stays.pub_sub("own-7", id);
            id += 1;
        }
    });
    let figures = node.until_is("slots_in_use", 1);
    assert_eq!((figures["closed_slow"], figures["gaps_untold"]), (0, 0));
    stays.pub_sub("own-7", 9);
}

#[test]
fn a_half_closed_peer_is_freed_and_gets_pending_messages() {
    let node = Node::open(&["--echo"]);
    let mut raw = node.upgraded("/echo");
    raw.send(&frame(TEXT, b"last words"));
    raw.finish();
    assert_eq!(raw.frame(), Some((TEXT, b"last words".to_vec())));
    raw.ends();
    // A refusal, a close frame and the answer to a command go out the same way.
    for (path, bytes, first) in [
        ("/echo", frame(CLOSE, b""), CLOSE),
        ("/echo", frame(0x83, b""), CLOSE),
        (CLIENTS, frame(TEXT, br#"{"id":1,"connect":{}}"#), TEXT),
        (CLIENTS, frame(TEXT, b""), CLOSE),
    ] {
        let mut raw = node.upgraded(path);
        raw.send(&bytes);
        raw.finish();
        assert_eq!(raw.frame().expect("an answer").0, first);
        raw.ends();
    }
    let mut raw = node.raw();
    raw.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    raw.finish();
    assert_eq!(raw.response().status, 404);
    raw.ends();
    // In the middle of everything.
    for bytes in [&b"GET / HT"[..], b"", &frame(TEXT, b"cut")[..3]] {
        let mut raw = if bytes.len() > 3 { node.raw() } else { node.upgraded(CLIENTS) };
        raw.send(bytes);
        raw.finish();
        raw.ends();
    }
    node.until_is("slots_in_use", 0);
}

#[test]
fn sessions_that_end_leave_their_channels() {
    let node = Node::open(&["--shards", "3"]);
    let mut stays = node.connected();
    stays.subscribe("room-0");
    let clients: Vec<Client> = (0..30)
        .map(|number| {
            let mut client = node.connected_as(&format!("user-{}", number % 10));
            for room in 0..10 {
                client.subscribe(&format!("room-{}", (number + room) % 15));
            }
            client
        })
        .collect();
    let figures = node.until_is("sessions_open", 31);
    assert_eq!((figures["subscriptions"], figures["users"] >= 11), (301, true));
    assert_eq!(figures["channels_home"], 15);
    drop(clients);
    // Answers of homes may still be on their way when the slots are free.
    let one_each = [
        "slots_in_use",
        "sessions_open",
        "users",
        "subscriptions",
        "channels_home",
        "channels_local",
    ];
    node.until("one left", |figures| one_each.iter().all(|name| figures[*name] == 1));
    stays.pub_sub("room-0", 2);
}
