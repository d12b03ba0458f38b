//! Signals: draining at a pace, what is queued goes out first, and an end by force.

use rustix::process::Signal;
use serde_json::json;

use crate::harness::*;

#[test]
fn each_client_gets_3001_and_the_node_ends_with_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let node = Node::open(&["--echo"]);
        let mut clients: Vec<Client> = (0..20).map(|_| node.connected()).collect();
        let mut silent = node.client();
        let mut echo = node.upgraded("/echo");
        // Not even a request: it is answered, too.
        let mut waiting = node.raw();
        node.until_is("connections_open", 23);
        node.signal(signal);
        for client in clients.iter_mut().chain([&mut silent]) {
            client.is_closed(3001, "shutdown");
        }
        assert_eq!(echo.closed(), (3001, "shutdown".to_owned()));
        echo.send(&frame(CLOSE, &close_payload(3001, "")));
        echo.ends();
        drop(echo);
        waiting.send(upgrade(CLIENTS, &[]).as_bytes());
        assert_eq!(waiting.response().status, 503);
        waiting.ends();
        drop(waiting);
        let ended = node.ended();
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
}

#[test]
fn an_idle_node_ends_at_once() {
    let node = Node::open(&[]);
    node.signal(Signal::TERM);
    assert_eq!(node.ended().code, Some(0));
}

#[test]
fn a_connection_that_nobody_uses_is_not_waited_for() {
    // As browsers open them before they need them. Waited for, it would be told that it is late.
    let node = Node::open(&[]);
    let mut unused = node.raw();
    node.until_is("connections_open", 1);
    node.signal(Signal::TERM);
    unused.ends();
    drop(unused);
    assert_eq!(node.ended().code, Some(0));
}

#[test]
fn the_pid_file_is_there_while_the_node_is() {
    let path = std::env::temp_dir().join(format!("roost-it-{}.pid", std::process::id()));
    let node = Node::open(&["--pid_file", path.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", node.pid()));
    // It is held: a second node takes neither the file nor, with its end, the first one's.
    let second = Node::launch(&[], "", "0", &["--pid_file", path.to_str().unwrap()]);
    let ended = second.err().expect("one holder");
    assert!(ended.errors.contains(&format!("held by process {}", node.pid())), "{ended:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", node.pid()));
    node.signal(Signal::TERM);
    assert_eq!(node.ended().code, Some(0));
    assert!(!path.exists());
}

#[test]
fn queued_messages_arrive_before_the_close() {
    const MESSAGES: usize = 40;
    let node =
        Node::open(&["--websocket.write_timeout", "10m", "--client.queue_max_size", "100000000"]);
    let mut client = node.connected();
    client.subscribe("a");
    let mut publisher = node.connected();
    let data = "x".repeat(50_000);
    for _ in 0..MESSAGES {
        let id = publisher.command("publish", json!({"channel": "a", "data": data}));
        publisher.expect(&format!("{{\"id\":{id},\"publish\":{{}}}}"));
    }
    let figures = node.until("queued", |figures| figures["deliveries"] == MESSAGES as u64);
    assert!(figures["queued_bytes"] > 0, "nothing waits: {figures:#?}");
    node.signal(Signal::TERM);
    publisher.is_closed(3001, "shutdown");
    for _ in 0..MESSAGES {
        assert!(client.line().len() > 50_000);
    }
    client.is_closed(3001, "shutdown");
    assert_eq!(node.ended().code, Some(0));
}

#[test]
fn draining_keeps_its_pace_and_refuses_new_connections() {
    // 10 a second over 2 shards: 40 clients take 4 seconds.
    let node = Node::open(&["--drain-rate", "10"]);
    let clients: Vec<Client> = (0..40).map(|_| node.connected()).collect();
    let uptime = node.figures()["uptime_ms"];
    node.signal(Signal::TERM);
    node.until("draining", |figures| figures["closed_shutdown"] > 0);
    let mut raw = node.raw();
    raw.send(upgrade(CLIENTS, &[]).as_bytes());
    assert_eq!(raw.response().status, 503);
    raw.ends();
    drop(raw);
    // Never more closed than the pace allows, each shard's share of it rounded up.
    let threads: Vec<_> = clients
        .into_iter()
        .map(|mut client| std::thread::spawn(move || client.is_closed(3001, "shutdown")))
        .collect();
    let figures = node.until("half drained", |figures| figures["closed_shutdown"] >= 20);
    let took = figures["uptime_ms"] - uptime;
    assert!(figures["closed_shutdown"] <= took / 80 + 4, "{figures:#?} after {took} ms");
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(node.ended().code, Some(0));
}

#[test]
fn a_second_signal_ends_at_once() {
    for second in [Signal::TERM, Signal::INT] {
        // A client that never answers, and ten minutes for it.
        let node = Node::open(&["--shutdown.timeout", "10m", "--close-timeout", "10m"]);
        let mut stuck = node.upgraded(CLIENTS);
        node.signal(Signal::TERM);
        assert_eq!(stuck.closed().0, 3001);
        node.signal(second);
        let ended = node.ended();
        assert_eq!(ended.code, Some(1), "{ended:?}");
    }
}

#[test]
fn the_time_to_drain_is_bounded() {
    let node = Node::open(&["--shutdown.timeout", "1s", "--close-timeout", "10m"]);
    let mut stuck = node.upgraded(CLIENTS);
    node.signal(Signal::TERM);
    assert_eq!(stuck.closed().0, 3001);
    let ended = node.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    // However slow the pace, all are told within that time, also where one shard has more than
    // others.
    let node = Node::open(&["--shutdown.timeout", "2s", "--drain-rate", "1", "--shards", "8"]);
    let mut clients: Vec<Client> = (0..100).map(|_| node.connected()).collect();
    node.signal(Signal::TERM);
    clients.iter_mut().for_each(|client| client.is_closed(3001, "shutdown"));
    assert_eq!(node.ended().code, Some(0));
}

/// It means "read the options again", and nobody is disturbed by that.
#[test]
fn a_hangup_ends_nothing() {
    let node = Node::open(&[]);
    let mut client = node.connected();
    node.signal(Signal::HUP);
    node.figures();
    client.subscribe("a");
}

/// While clients are closed at their pace the listeners stay open: balancers are told, applications are
/// served.
#[test]
fn a_draining_node_says_so_and_serves_its_api() {
    let options = "[http_api]\nkey = \"k\"\n[health]\nenabled = true";
    let node = Node::open_with(options, &["--drain-rate", "1"]);
    let mut kept = node.raw();
    let health = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    kept.send(health.as_bytes());
    assert_eq!(kept.response().status, 200);
    let clients: Vec<Client> = (0..3).map(|_| node.connected()).collect();
    node.signal(Signal::TERM);
    let since = std::time::Instant::now();
    let draining = loop {
        assert!(since.elapsed() < BOUND);
        let mut raw = node.raw();
        raw.send(health.as_bytes());
        let response = raw.response();
        if response.status == 503 {
            break response;
        }
    };
    assert_eq!(draining.body, r#"{"reason":"draining"}"#);
    assert_eq!(draining.header("connection"), Some("close"));
    let body = r#"{"channel":"a","data":1}"#;
    let answer = node.raw().post("/api/publish", &[KEY], body);
    assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"result":{}}"#));
    // A connection that was kept for requests doesn't hold the end up.
    drop(clients);
    assert_eq!(node.ended().code, Some(0));
    kept.ends();
}
