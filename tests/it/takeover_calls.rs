//! Calls that are under way while a process is replaced: of the application, of the server API, polls. And processes
//! that may not take over, or can't.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};

use crate::harness::*;
use crate::redis::free_port;
use crate::takeover::Socket;

/// A new process takes over from this node, which has these options.
fn replaced(socket: &Socket, old: Node, more: &str) -> Node {
    let new = socket.node(&[], more, &[]).expect("the new process takes over").in_place_of(&old);
    let ended = old.ended();
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    new
}

/// An application that answers when the test says so: each call with its path, and where the answer goes.
fn application() -> (String, Receiver<(String, TcpStream)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, calls) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut lines = Vec::new();
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) == 0 {
                    break;
                }
                match line.trim_end() {
                    "" => break,
                    line => lines.push(line.to_ascii_lowercase()),
                }
            }
            let length = lines.iter().find_map(|line| line.strip_prefix("content-length: "));
            let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
            let whole = reader.read_exact(&mut body).is_ok();
            if let Some(path) = lines.first().and_then(|line| line.split(' ').nth(1))
                && whole
                && sender.send((path.to_owned(), stream)).is_err()
            {
                return;
            }
        }
    });
    (url, calls)
}

fn answer(mut stream: TcpStream, text: &str) {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", text.len());
    // The process that called has perhaps ended.
    let _ = stream.write_all(format!("{head}Connection: close\r\n\r\n{text}").as_bytes());
}

/// Those that may be made twice are; those that may not fail with a temporary error, and are made once.
#[test]
fn calls_of_the_application_are_made_again_or_answered_with_an_error() {
    let socket = Socket::new("calls");
    let (url, calls) = application();
    let more = format!(
        "[client.proxy.connect]\nenabled = true\nendpoint = \"{url}/connect\"\ntimeout = \"60s\"\n\
         [rpc.proxy]\nendpoint = \"{url}/rpc\"\ntimeout = \"60s\"\n\
         [rpc.without_namespace]\nproxy_enabled = true\n\
         [channel.proxy.subscribe]\nendpoint = \"{url}/subscribe\"\ntimeout = \"60s\"\n\
         [[channel.namespaces]]\nname = \"asked\"\nsubscribe_proxy_enabled = true\n"
    );
    let node = socket.node(&[], &more, &[]).expect("the first node starts");
    let connect = r#"{"result":{"user":"ann"}}"#;
    let connected = || {
        let mut client = node.client();
        client.command("connect", json!({}));
        let (path, stream) = calls.recv_timeout(BOUND).unwrap();
        assert_eq!(path, "/connect");
        answer(stream, connect);
        assert!(client.line().contains("\"connect\""));
        client
    };
    let (mut rpc, mut subscribing) = (connected(), connected());
    let mut connecting = node.client();
    let id = rpc.command("rpc", json!({"method": "m", "data": {}}));
    let (path, held_rpc) = calls.recv_timeout(BOUND).unwrap();
    assert_eq!(path, "/rpc");
    subscribing.command("subscribe", json!({"channel": "asked:a"}));
    let (path, held_subscribe) = calls.recv_timeout(BOUND).unwrap();
    assert_eq!(path, "/subscribe");
    connecting.command("connect", json!({}));
    let (path, held_connect) = calls.recv_timeout(BOUND).unwrap();
    assert_eq!(path, "/connect");
    let new = replaced(&socket, node, &more);
    let reply: Value = serde_json::from_str(&rpc.line()).unwrap();
    assert_eq!(reply["id"], id);
    assert_eq!(
        (&reply["error"]["code"], &reply["error"]["temporary"]),
        (&json!(100), &json!(true))
    );
    let mut paths = BTreeSet::new();
    for _ in 0..2 {
        let (path, stream) = calls.recv_timeout(BOUND).unwrap();
        let text = if path == "/connect" { connect } else { r#"{"result":{}}"# };
        answer(stream, text);
        assert!(paths.insert(path));
    }
    assert_eq!(paths, ["/connect", "/subscribe"].map(String::from).into());
    assert!(connecting.line().contains("\"connect\""));
    assert!(subscribing.line().contains("\"subscribe\""));
    // Late answers go nowhere.
    [held_rpc, held_subscribe, held_connect].into_iter().for_each(|of| answer(of, "{}"));
    assert!(calls.try_recv().is_err(), "the rpc was called once");
    assert_eq!(new.figures()["connections_open"], 3);
}

/// Each call of the server API is answered, or refused with 503 and has had no effect; those whose connection ends
/// without an answer may have had one.
#[test]
fn calls_of_the_server_api_have_the_effect_that_they_report() {
    let more = "[http_api]\nkey = \"k\"\n[http_server]\ninternal_port = \"INTERNAL\"\n\
                [[channel.namespaces]]\nname = \"kept\"\nhistory_size = 10000\nhistory_ttl = \"10m\"\n\
                allow_subscribe_for_client = true\nallow_subscribe_for_anonymous = true\n";
    for is_internal in [false, true] {
        let socket = Socket::new(if is_internal { "api-internal" } else { "api" });
        let port = free_port().to_string();
        let more = match is_internal {
            true => more.replace("INTERNAL", &port),
            false => more.replace("[http_server]\ninternal_port = \"INTERNAL\"\n", ""),
        };
        let node = socket.node(&[], &more, &[]).expect("the first node starts");
        let address = match is_internal {
            true => format!("127.0.0.1:{port}").parse().unwrap(),
            false => node.listens_at(),
        };
        let mut reader = node.connected();
        reader.subscribe("kept:a");
        let ends = AtomicBool::new(false);
        let (own, (done, unknown)) = std::thread::scope(|scope| {
            let calling = scope.spawn(|| publish_until(address, &ends));
            let own = (0..3).fold(node, |node, _| replaced(&socket, node, &more));
            ends.store(true, Ordering::Relaxed);
            (own, calling.join().unwrap())
        });
        assert!(done.len() > 10, "{done:?}");
        let mut got = BTreeSet::new();
        let last = *done.last().unwrap();
        let mut offset = 0;
        while got.last().is_none_or(|newest| *newest < last) {
            let push = reader.push();
            offset += 1;
            assert_eq!(push["pub"]["offset"], offset, "{push}");
            assert!(got.insert(push["pub"]["data"].as_u64().unwrap()), "twice: {push}");
        }
        for number in 1..=last {
            match (done.contains(&number), unknown.contains(&number)) {
                (true, _) => assert!(got.contains(&number), "{number} is lost"),
                (false, true) => {}
                (false, false) => assert!(!got.contains(&number), "{number} was refused"),
            }
        }
        drop(own);
    }
}

/// Publishes numbers, one connection each. Those that were acknowledged, and those of which nothing is known.
fn publish_until(
    address: std::net::SocketAddr,
    ends: &AtomicBool,
) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let (mut done, mut unknown) = (BTreeSet::new(), BTreeSet::new());
    let mut number = 0;
    while !ends.load(Ordering::Relaxed) {
        number += 1;
        let body = json!({"channel": "kept:a", "data": number}).to_string();
        let Ok(mut stream) = TcpStream::connect(address) else { continue };
        stream.set_read_timeout(Some(BOUND)).unwrap();
        stream
            .write_all(post("/api/publish", &[KEY, "Connection: close"], &body).as_bytes())
            .unwrap();
        let mut text = String::new();
        let read = stream.read_to_string(&mut text);
        match text.split(' ').nth(1) {
            Some("200") => assert!(text.contains("\"offset\"") && done.insert(number), "{text}"),
            Some("503") => {}
            _ => assert!(unknown.insert(number), "{text} {read:?}"),
        }
    }
    (done, unknown)
}

#[test]
fn a_poll_that_waits_is_answered_to_come_back() {
    let socket = Socket::new("poll");
    let more = "[long_poll]\nenabled = true\n[http_api]\nkey = \"k\"\n[[channel.namespaces]]\n\
                name = \"kept\"\nallow_subscribe_for_client = true\n\
                allow_subscribe_for_anonymous = true\nforce_recovery = true\nhistory_size = 5\n\
                history_ttl = \"10m\"\n";
    let node = socket.node(&[], more, &[]).expect("the first node starts");
    let get = |request: &Value| {
        let encoded: String =
            request.to_string().bytes().map(|byte| format!("%{byte:02x}")).collect();
        format!("GET /connection/long_poll?cf_connect={encoded} HTTP/1.1\r\nHost: a\r\n\r\n")
    };
    let mut raw = node.raw();
    raw.send(get(&json!({"subs": {"kept:a": {}}})).as_bytes());
    let first: Value = serde_json::from_str(&raw.response().body).unwrap();
    let position = |reply: &Value| {
        let sub = &reply["subs"]["kept:a"];
        json!({"subs": {"kept:a": {"recover": true, "offset": sub["offset"], "epoch": sub["epoch"]}}})
    };
    let request = position(&first);
    let before = node.figures()["clients_long_poll"];
    raw.send(get(&request).as_bytes());
    node.until("the poll waits", |figures| figures["clients_long_poll"] > before);
    let new = replaced(&socket, node, more);
    let response = raw.response();
    assert_eq!(response.status, 200, "{response:?}");
    let returned: Value = serde_json::from_str(&response.body).unwrap();
    new.call("publish", json!({"channel": "kept:a", "data": 1}));
    let again = if returned["subs"]["kept:a"].is_null() { request } else { position(&returned) };
    // On the same connection, which has gone over.
    raw.send(get(&again).as_bytes());
    let response = raw.response();
    let next: Value = serde_json::from_str(&response.body).unwrap();
    assert!(response.body.contains("\"data\":1"), "{next}");
}

#[test]
fn a_client_that_does_not_read_keeps_its_queue() {
    let socket = Socket::new("slow");
    let more = "[http_api]\nkey = \"k\"\n";
    let flags = ["--client.queue_max_size", "4194304", "--websocket.write_timeout", "60s"];
    let mut node = socket.node(&[], more, &flags).expect("the first node starts");
    let mut slow = node.connected();
    slow.subscribe("news");
    let data = "z".repeat(20_000);
    let mut sent = 0;
    for _ in 0..2 {
        // More than the kernel takes: the rest waits in the queue, and goes over with it.
        for _ in 0..100 {
            sent += 1;
            node.call("publish", json!({"channel": "news", "data": {"n": sent, "text": data}}));
        }
        let new = socket.node(&[], more, &flags).expect("the new process takes over");
        assert_eq!(node.ended().code, Some(0));
        node = new;
    }
    for number in 1..=sent {
        assert_eq!(slow.push()["pub"]["data"]["n"], number);
    }
}

#[test]
fn the_listener_of_challenges_goes_over() {
    let socket = Socket::new("acme");
    let port = free_port();
    let folder = std::env::temp_dir().join(format!("roost-it-acme-{}", std::process::id()));
    let more = format!(
        "[http_server.tls_autocert]\nenabled = true\nhost_whitelist = [\"localhost\"]\n\
         cache_dir = \"{}\"\nhttp = true\nhttp_addr = \"127.0.0.1:{port}\"\n\
         [roost]\nacme_directory = \"https://127.0.0.1:1/\"\n",
        folder.display()
    );
    if over_tls() {
        return;
    }
    let node = socket.node(&[], &more, &[]);
    let node = match node {
        Ok(node) => node,
        Err(ended) => panic!("{}", ended.errors),
    };
    let asks = || {
        let mut raw = Raw::new(TcpStream::connect(("127.0.0.1", port)).unwrap());
        raw.send(b"GET /.well-known/acme-challenge/none HTTP/1.1\r\nHost: localhost\r\n\r\n");
        raw.response().status
    };
    let before = asks();
    let new = socket.node(&[], &more, &[]).expect("it takes over");
    assert_eq!(node.ended().code, Some(0));
    assert_eq!(asks(), before);
    drop(new);
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn a_process_of_another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can run a program as another user");
        return;
    }
    let socket = Socket::new("user");
    let node = socket.node(&[], "", &[]).expect("the first node starts");
    let mut client = node.connected();
    let nobody = ["setpriv", "--reuid", "65534", "--clear-groups"];
    let connect = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n\
                   print(s.recv(4096))";
    let run = || {
        let mut command = std::process::Command::new(nobody[0]);
        command.args(&nobody[1..]).args(["/usr/bin/python3", "-c", connect]).arg(&socket.0);
        command.output().expect("setpriv and python3")
    };
    let kept_out = run();
    let errors = String::from_utf8_lossy(&kept_out.stderr).into_owned();
    assert!(errors.contains("PermissionError"), "the file has mode 0600: {errors}");
    // Even where the file lets it in.
    std::fs::set_permissions(&socket.0, std::fs::Permissions::from_mode(0o666)).unwrap();
    let refused = run();
    let answer = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(answer.contains("runs as user 65534"), "{answer} {refused:?}");
    node.until_logged(&["takeover refused", "runs as user 65534"]);
    client.subscribes_once();
    node.is_healthy();
}

impl Client {
    /// Asks something: the connection lives.
    fn subscribes_once(&mut self) {
        let answer = self.ask("subscribe", json!({"channel": "alive"}));
        assert!(answer["subscribe"].is_object(), "{answer}");
    }
}

/// The new process has too few descriptors, or too little memory: the running one goes on.
#[test]
fn a_process_without_room_does_not_take_over() {
    let socket = Socket::new("room");
    let node = socket.node(&[], "", &[]).expect("the first node starts");
    let mut clients: Vec<Client> = (0..60).map(|_| node.connected()).collect();
    for limit in ["--nofile=48", "--nofile=80", "--as=50000000"] {
        let ended = socket.node(&["prlimit", limit], "", &[]).err();
        let ended = ended.unwrap_or_else(|| panic!("it takes over with {limit}"));
        assert_ne!(ended.code, Some(0), "{limit}: {}", ended.errors);
        clients.iter_mut().for_each(Client::subscribes_once);
        for client in &mut clients {
            let reply = client.ask("unsubscribe", json!({"channel": "alive"}));
            assert!(reply["unsubscribe"].is_object(), "{reply}");
        }
    }
    let new = socket.node(&[], "", &[]).expect("with enough of both it does");
    assert_eq!(node.ended().code, Some(0));
    clients.iter_mut().for_each(Client::subscribes_once);
    new.is_healthy();
}

#[test]
fn a_takeover_is_seen_on_the_admin_page_and_in_both_logs() {
    let socket = Socket::new("seen");
    let more = "[admin]\nenabled = true\ninsecure = true\n";
    let node = socket.node(&[], more, &[]).expect("the first node starts");
    let mut admin = Client::open(&node, "/admin/websocket");
    assert!(admin.ask("connect", json!({}))["connect"]["subs"].is_object());
    assert!(admin.push()["pub"]["data"]["takeover"].is_null());
    let mut client = node.connected();
    let new = socket.node(&[], more, &[]).expect("the new process takes over");
    let old = node.ended();
    for phase in [
        "another process takes over",
        "all shards have settled",
        "shard has sent its state",
        "handed over",
    ] {
        assert!(old.errors.contains(phase), "{phase}: {}", old.errors);
    }
    new.until_logged(&["shard runs", "pause_us"]);
    new.until_logged(&["took over the connections", "connections", "bytes", "pause_us"]);
    let shown = loop {
        let mut figures = admin.push()["pub"]["data"].take();
        if !figures["takeover"].is_null() {
            break figures["takeover"].take();
        }
    };
    assert_eq!((&shown["count"], &shown["failed"]), (&json!(1), &json!(0)), "{shown}");
    assert_eq!(shown["connections"], 2, "{shown}");
    assert!(shown["pause_us"].as_u64() > Some(0) && shown["at"].as_i64() > Some(1 << 30));
    client.subscribes_once();
}

/// An age goes on: what was kept before the new process began ends when it would have ended.
#[test]
fn history_ends_at_its_time_whatever_takes_over() {
    let socket = Socket::new("ages");
    let more = "[http_api]\nkey = \"k\"\n[[channel.namespaces]]\nname = \"short\"\n\
                history_size = 5\nhistory_ttl = \"2s\"\n";
    let node = socket.node(&[], more, &[]).expect("the first node starts");
    node.call("publish", json!({"channel": "short:a", "data": 1}));
    let published = std::time::Instant::now();
    let kept = |node: &Node| {
        let history = node.call("history", json!({"channel": "short:a", "limit": -1}));
        history["result"]["publications"].as_array().map_or(0, Vec::len)
    };
    assert_eq!(kept(&node), 1);
    let mut node = node;
    // Each process is younger than the publication.
    while kept(&node) > 0 {
        assert!(published.elapsed() < BOUND, "it never ends");
        let new = socket.node(&[], more, &[]).expect("the new process takes over");
        assert_eq!(node.ended().code, Some(0));
        node = new;
    }
}
