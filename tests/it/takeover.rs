//! A new process takes over the connections of a running node, and everything that can fail on the way.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Instant;

use roost::handover::framing::{Unframer, framed};
use roost::handover::{Hello, Message, Purpose};
use rustix::process::Signal;
use serde_json::json;

use crate::harness::*;
use crate::tunnel;

const MORE: &str = r#"
[websocket]
compression = true
write_timeout = "60s"
[http_stream]
enabled = true
[sse]
enabled = true
[uni_websocket]
enabled = true
[uni_sse]
enabled = true
[http_api]
key = "k"
[admin]
enabled = true
password = "p"
[[channel.namespaces]]
name = "kept"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
allow_history_for_client = true
allow_history_for_anonymous = true
allow_presence_for_client = true
allow_presence_for_anonymous = true
presence = true
force_recovery = true
history_size = 1000
history_ttl = "10m"
"#;

/// The takeover socket of one test, removed with it.
pub(crate) struct Socket(pub(crate) PathBuf);

impl Socket {
    pub(crate) fn new(name: &str) -> Self {
        let name = format!("roost-it-{}-{name}.takeover", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_file(&path);
        Self(path)
    }

    pub(crate) fn flags(&self) -> [String; 2] {
        ["--takeover".to_owned(), self.0.display().to_string()]
    }

    /// Starts a node that takes over, if one listens at the socket.
    pub(crate) fn node(&self, wrapper: &[&str], more: &str, flags: &[&str]) -> Result<Node, Ended> {
        let own = self.flags();
        let own = own.iter().map(String::as_str).chain(flags.iter().copied());
        Node::launch_open(wrapper, more, &own.collect::<Vec<_>>())
    }

    fn first(&self) -> Node {
        self.node(&[], MORE, &[]).expect("the first node starts")
    }

    /// Replaces a node by a new process.
    fn replace(&self, old: Node) -> Node {
        let new = self.node(&[], MORE, &[]).expect("the new process takes over");
        let new = new.in_place_of(&old);
        let ended = old.ended();
        assert_eq!(ended.code, Some(0), "{}", ended.errors);
        new
    }

    /// Connects to the running node as a new process does, and says Hello.
    fn peer(&self, hello: Hello) -> Peer {
        let stream = UnixStream::connect(&self.0).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        let mut peer = Peer { stream, unframer: Unframer::default() };
        peer.send(&Message::Hello(hello));
        peer
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The test itself in the place of a new process.
struct Peer {
    stream: UnixStream,
    unframer: Unframer,
}

impl Peer {
    fn send(&mut self, message: &Message) {
        self.stream.write_all(&framed(message)).unwrap();
    }

    /// The next message; `None` at the end of the stream.
    fn next(&mut self) -> Option<Message> {
        let mut bytes = [0; 4096];
        loop {
            if let Some(message) = self.unframer.next_message().unwrap() {
                return Some(message);
            }
            match self.stream.read(&mut bytes).unwrap() {
                0 => return None,
                count => self.unframer.push(&bytes[..count]),
            }
        }
    }

    fn refused(mut self) -> String {
        match self.next() {
            Some(Message::Refused(why)) => why,
            other => panic!("{other:?}"),
        }
    }
}

/// Subscribes to `kept:room`, and returns the offset.
fn subscribed(client: &mut Client) -> u64 {
    let reply = client.ask("subscribe", json!({"channel": "kept:room"}));
    reply["subscribe"]["offset"].as_u64().unwrap_or(0)
}

/// The next publication of `kept:room`: offset and data.
fn publication(client: &mut Client) -> (u64, serde_json::Value) {
    let push = client.push();
    (push["pub"]["offset"].as_u64().unwrap(), push["pub"]["data"].clone())
}

#[test]
fn websockets_go_on_in_the_new_process() {
    let socket = Socket::new("websockets");
    let mut node = socket.first();
    assert_eq!(std::fs::metadata(&socket.0).unwrap().permissions().mode() & 0o777, 0o600);
    let mut clients: Vec<Client> = BOTH.map(|speech| node.connected_in(speech)).into();
    clients.extend((0..20).map(|_| node.connected()));
    clients.iter_mut().for_each(|client| assert_eq!(subscribed(client), 0));
    for round in 1..=3u64 {
        // A publication before, which some have not read when the node is replaced.
        node.call("publish", json!({"channel": "kept:room", "data": {"round": round}}));
        node = socket.replace(node);
        let figures = node.figures();
        assert_eq!((figures["connections_open"], figures["subscriptions"]), (22, 22));
        node.call("publish", json!({"channel": "kept:room", "data": {"behind": round}}));
        for client in &mut clients {
            assert_eq!(publication(client), (2 * round - 1, json!({"round": round})));
            assert_eq!(publication(client), (2 * round, json!({"behind": round})));
        }
        let presence = node.call("presence_stats", json!({"channel": "kept:room"}));
        assert_eq!(presence["result"]["num_clients"], 22);
    }
    let history = node.call("history", json!({"channel": "kept:room", "limit": 10}));
    assert_eq!(history["result"]["publications"].as_array().unwrap().len(), 6);
    assert_eq!(history["result"]["offset"], 6);
    node.is_healthy();
    // A client that comes back recovers by the position of a node before.
    let epoch = history["result"]["epoch"].as_str().unwrap();
    let request = json!({"channel": "kept:room", "recover": true, "offset": 4, "epoch": epoch});
    let reply = node.connected().ask("subscribe", request)["subscribe"].take();
    assert_eq!(reply["recovered"], true, "{reply}");
    assert_eq!(reply["publications"].as_array().unwrap().len(), 2, "{reply}");
    drop(clients);
    node.until_is("connections_open", 0);
    // The last one drains as any node does, and takes its socket along.
    node.signal(Signal::TERM);
    assert_eq!(node.ended().code, Some(0));
    assert!(!socket.0.exists());
}

/// Half a head, half a frame, a long message of which a client has read nothing, a compressed client, streams, an
/// event source, one-way connections.
#[test]
fn every_transport_goes_on_and_halves_become_wholes() {
    let socket = Socket::new("transports");
    let node = socket.first();
    let mut half_head = node.raw();
    half_head.send(b"GET /connection/websocket HT");
    let mut half_frame = node.upgraded(CLIENTS);
    let command = |text: &str| frame(0x81, text.as_bytes());
    half_frame.send(&command(r#"{"id":1,"connect":{}}"#));
    assert!(half_frame.frame().is_some());
    let subscribe = command(r#"{"id":2,"subscribe":{"channel":"kept:room"}}"#);
    half_frame.send(&subscribe[..9]);
    let mut compressed = node.raw();
    let offer = "Sec-WebSocket-Extensions: permessage-deflate";
    compressed.send(upgrade(CLIENTS, &[offer]).as_bytes());
    assert!(compressed.response().header("sec-websocket-extensions").is_some());
    compressed.send(&command(r#"{"id":1,"connect":{}}"#));
    compressed.send(&command(r#"{"id":2,"subscribe":{"channel":"kept:room"}}"#));
    (0..2).for_each(|_| assert!(compressed.frame().is_some()));
    let body = r#"{"id":1,"connect":{}}"#;
    let mut stream = node.raw();
    let head = stream.post("/connection/http_stream", &[], body);
    assert_eq!(head.status, 200);
    let reply = String::from_utf8(stream.chunk().unwrap()).unwrap();
    let reply: serde_json::Value = serde_json::from_str(reply.trim()).unwrap();
    let (session, of) = (reply["connect"]["session"].clone(), reply["connect"]["node"].clone());
    let mut one_way = node.raw();
    let connect = r#"{"subs":{"kept:room":{}}}"#;
    let target = format!("/connection/uni_sse?cf_connect={}", encoded(connect));
    one_way.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
    assert_eq!(one_way.response().status, 200);
    assert!(one_way.chunk().is_some());

    let node = socket.replace(node);
    half_head.send(b"TP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(half_head.response().status, 400, "no upgrade, but a whole head");
    half_frame.send(&subscribe[9..]);
    let (_, reply) = half_frame.frame().unwrap();
    assert!(String::from_utf8_lossy(&reply).contains("\"id\":2"), "{reply:?}");
    // The up-link of a session of the process before: ids and node stay valid.
    let commands = json!({
        "session": session,
        "node": of,
        "data": r#"{"id":2,"subscribe":{"channel":"kept:room"}}"#,
    });
    let response = node.raw().post("/emulation", &[], &commands.to_string());
    assert_eq!(response.status, 204, "{response:?}");
    until_chunk(&mut stream, "\"id\":2");
    let data = "x".repeat(2000);
    node.call("publish", json!({"channel": "kept:room", "data": {"text": data}}));
    let (_, pushed) = half_frame.frame().unwrap();
    assert!(String::from_utf8_lossy(&pushed).contains(&data));
    let (first, deflated) = compressed.frame().unwrap();
    assert!(first & 0x40 != 0 && deflated.len() < 500, "{first:x} {}", deflated.len());
    until_chunk(&mut stream, &data);
    until_chunk(&mut one_way, &data);
}

/// A handshake whose last message comes while the shards settle is finished, and its connection goes on.
#[test]
fn tls_handshakes_under_way_come_to_their_end() {
    let socket = Socket::new("handshakes");
    let file = socket.0.with_extension("held");
    let more = format!("[roost]\ntls_self_signed = true\n{MORE}");
    let held = format!("TAKEOVER_TEST_FILE={}", file.display());
    let [env, point] = at("hold:old-settling");
    let node = socket.node(&[&env, &held, &point], &more, &[]).expect("the first node starts");
    let name = "localhost".try_into().unwrap();
    let mut client = rustls::ClientConnection::new(tunnel::accepting_all(), name).unwrap();
    let mut stream = std::net::TcpStream::connect(node.listens_at()).unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    client.write_tls(&mut stream).unwrap();
    // The node's part comes whole, and the client's last message stays here.
    while client.is_handshaking() {
        client.read_tls(&mut stream).unwrap();
        client.process_new_packets().unwrap();
    }
    let new = std::thread::scope(|scope| {
        let new = scope.spawn(|| socket.node(&[], &more, &[]).expect("it takes over"));
        until_held(&file);
        while client.wants_write() {
            client.write_tls(&mut stream).unwrap();
        }
        std::fs::remove_file(&file).unwrap();
        new.join().unwrap()
    });
    assert_eq!(node.ended().code, Some(0));
    client.writer().write_all(upgrade(CLIENTS, &[]).as_bytes()).unwrap();
    let mut head = [0; 12];
    rustls::Stream::new(&mut client, &mut stream).read_exact(&mut head).unwrap();
    assert_eq!(head, *b"HTTP/1.1 101");
    drop(new);
}

/// Waits until a process holds at its point.
fn until_held(file: &std::path::Path) {
    let since = Instant::now();
    while !file.exists() {
        assert!(since.elapsed() < BOUND, "it doesn't come to the point");
        std::thread::park_timeout(std::time::Duration::from_millis(5));
    }
}

/// Reads chunks of a response up to one with this text.
fn until_chunk(raw: &mut Raw, text: &str) {
    while !String::from_utf8(raw.chunk().expect("the response goes on")).unwrap().contains(text) {}
}

/// A text as a part of a query.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Clients publish all the time, and read slowly: nothing is lost, doubled or out of order.
#[test]
fn publications_keep_their_order_over_several_processes() {
    let socket = Socket::new("order");
    let mut node = socket.first();
    let mut reader = node.connected();
    subscribed(&mut reader);
    let mut writer = node.connected();
    let data = "y".repeat(5000);
    let mut sent = 0u64;
    for _ in 0..3 {
        for _ in 0..40 {
            sent += 1;
            let request = json!({"channel": "kept:room", "data": {"n": sent, "text": data}});
            writer.command("publish", request);
        }
        node = socket.replace(node);
    }
    for offset in 1..=sent {
        let (at, publication) = publication(&mut reader);
        assert_eq!((at, publication["n"].as_u64()), (offset, Some(offset)));
    }
    let history = node.call("history", json!({"channel": "kept:room", "limit": 0}));
    assert_eq!(history["result"]["offset"], sent);
}

#[test]
fn connections_that_wait_at_the_listener_are_served() {
    if over_tls() {
        // Handshakes that need a second are closed.
        return;
    }
    let socket = Socket::new("queued");
    let node = socket.first();
    let address = node.address();
    let connecting = std::thread::spawn(move || {
        let connect = |_| {
            let mut raw = Raw::new(std::net::TcpStream::connect(address).unwrap());
            raw.send(upgrade(CLIENTS, &[]).as_bytes());
            raw
        };
        (0..300).map(connect).collect::<Vec<Raw>>()
    });
    let node = socket.replace(node);
    for mut raw in connecting.join().unwrap() {
        assert_eq!(raw.response().status, 101);
    }
    node.is_healthy();
}

#[test]
fn ids_and_tokens_of_the_process_before_stay_valid() {
    let socket = Socket::new("ids");
    let node = socket.first();
    let (mut client, result) =
        node.connected_by(Speech::Json, json!({"token": token(json!({"sub": "42"}))}));
    let id = result["client"].as_str().unwrap().to_owned();
    subscribed(&mut client);
    let uid = |node: &Node| node.call("info", json!({}))["result"]["nodes"][0]["uid"].clone();
    let of = uid(&node);
    assert!(of.is_string());
    let login = node.raw().post(
        "/admin/auth",
        &["Content-Type: application/x-www-form-urlencoded"],
        "password=p",
    );
    let token: serde_json::Value = serde_json::from_str(&login.body).unwrap();
    let token = token["token"].as_str().unwrap_or_default().to_owned();
    let node = socket.replace(node);
    assert_eq!(uid(&node), of);
    let disconnect =
        json!({"user": "42", "client": id, "disconnect": {"code": 4100, "reason": "over"}});
    node.call("disconnect", disconnect);
    client.is_closed(4100, "over");
    if !token.is_empty() {
        let header = format!("Authorization: token {token}");
        let answer = node.raw().post("/admin/api", &[&header], r#"{"method":"info","params":{}}"#);
        assert_ne!(answer.status, 401, "{answer:?}");
    }
}

#[test]
fn without_a_running_node_it_is_an_ordinary_start() {
    let socket = Socket::new("ordinary");
    // The file of a node that was killed.
    drop(std::os::unix::net::UnixListener::bind(&socket.0).unwrap());
    let node = socket.first();
    node.is_healthy();
    assert_eq!(std::fs::metadata(&socket.0).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_does_not_fit_is_refused_before_anything_moves() {
    let socket = Socket::new("refused");
    let node = socket.first();
    let mut client = node.connected();
    subscribed(&mut client);
    for (flags, why) in [
        (&["--drain-rate", "77"][..], "options that need a restart have changed: roost.drain_rate"),
        (&["--shards", "3"][..], "3 shards"),
    ] {
        let ended = socket.node(&[], MORE, flags).err().expect("it is refused");
        assert_eq!(ended.code, Some(1));
        assert!(ended.errors.contains(why), "{}", ended.errors);
    }
    let hello = || Hello { shards: 2, ..Hello::new(Purpose::Takeover, "9.9.9") };
    let refused = socket.peer(Hello { protocol: 77, ..hello() }).refused();
    assert!(refused.contains("version 9.9.9 speaks protocol 77"), "{refused}");
    let refused = socket.peer(Hello { image_format: 99, ..hello() }).refused();
    assert!(refused.contains("drain the node"), "{refused}");
    // Whoever says nothing, or something else, is turned away.
    let mut peer = UnixStream::connect(&socket.0).unwrap();
    peer.set_read_timeout(Some(BOUND)).unwrap();
    peer.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    peer.read_to_end(&mut answer).unwrap();
    assert!(!answer.is_empty());
    node.call("publish", json!({"channel": "kept:room", "data": 1}));
    assert_eq!(publication(&mut client), (1, json!(1)));
    // An option that a reload changes may differ.
    let new = socket.node(&[], MORE, &["--log-level", "debug"]).expect("it takes over");
    assert_eq!(node.ended().code, Some(0));
    new.call("publish", json!({"channel": "kept:room", "data": 2}));
    assert_eq!(publication(&mut client), (2, json!(2)));
}

/// The environment that ends or stops a process at a point.
pub(crate) fn at(point: &str) -> [String; 2] {
    ["env".to_owned(), format!("TAKEOVER_TEST_POINT={point}")]
}

#[test]
fn a_new_process_that_dies_before_the_last_message_changes_nothing() {
    let socket = Socket::new("killed");
    let node = socket.first();
    let mut clients: Vec<Client> = (0..10).map(|_| node.connected()).collect();
    clients.iter_mut().for_each(|client| _ = subscribed(client));
    let points =
        ["hello", "welcome", "prepared", "listeners", "part", "copied", "image", "frozen", "ready"];
    for (round, point) in (1..).zip(points) {
        let wrapper = at(&format!("kill:{point}"));
        let ended = socket.node(&wrapper.each_ref().map(String::as_str), MORE, &[]);
        assert_eq!(ended.err().expect("it was killed").code, None, "{point}");
        node.call("publish", json!({"channel": "kept:room", "data": point}));
        for client in &mut clients {
            assert_eq!(publication(client), (round, json!(point)));
        }
        node.is_healthy();
    }
    node.until_is("connections_open", 10);
    // The next one takes over all the same.
    let node = socket.replace(node);
    node.call("publish", json!({"channel": "kept:room", "data": "last"}));
    clients.iter_mut().for_each(|client| assert_eq!(publication(client).1, json!("last")));
}

#[test]
fn a_new_process_that_hangs_is_killed_and_changes_nothing() {
    let socket = Socket::new("hangs");
    let node = socket.first();
    let mut client = node.connected();
    subscribed(&mut client);
    for (round, point) in (1..).zip(["listeners", "part", "copied", "image", "ready"]) {
        let wrapper = at(&format!("stop:{point}"));
        let began = Instant::now();
        let ended = socket.node(&wrapper.each_ref().map(String::as_str), MORE, &[]);
        assert_eq!(ended.err().expect("it was killed").code, None, "{point}");
        assert!(began.elapsed() < BOUND);
        node.call("publish", json!({"channel": "kept:room", "data": point}));
        assert_eq!(publication(&mut client), (round, json!(point)));
    }
    // Its copies of the connection are gone: a close reaches the client.
    node.call("disconnect", json!({"user": ""}));
}

#[test]
fn the_new_process_runs_when_the_one_before_dies_or_hangs_behind_its_decision() {
    for point in ["kill:old-ready", "kill:old-go", "stop:old-frozen", "stop:old-ready"] {
        let socket = Socket::new(&point.replace(':', "-"));
        let wrapper = at(point);
        let node = socket.node(&wrapper.each_ref().map(String::as_str), MORE, &[]);
        let node = node.expect("the first node starts");
        let mut client = node.connected();
        subscribed(&mut client);
        let new = std::thread::scope(|scope| {
            let new = scope.spawn(|| socket.node(&[], MORE, &[]).expect("it takes over"));
            if point.starts_with("stop") {
                until_stopped(node.pid());
                node.signal(Signal::CONT);
            }
            new.join().unwrap()
        });
        let code = node.ended().code;
        assert_eq!(code, if point.starts_with("stop") { Some(0) } else { None }, "{point}");
        new.call("publish", json!({"channel": "kept:room", "data": point}));
        assert_eq!(publication(&mut client), (1, json!(point)));
    }
}

/// Waits until a process is stopped.
pub(crate) fn until_stopped(pid: u32) {
    let since = Instant::now();
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let state = stat.rsplit_once(')').unwrap().1.trim_start();
        if state.starts_with('T') {
            return;
        }
        assert!(since.elapsed() < BOUND, "never stopped");
        std::thread::park_timeout(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a_running_node_that_dies_before_it_has_sent_everything_ends_the_new_process() {
    for point in ["send", "old-copied", "old-all-copied", "sockets"] {
        let socket = Socket::new(&format!("old-dies-{point}"));
        let wrapper = at(&format!("kill:{point}"));
        let node = socket.node(&wrapper.each_ref().map(String::as_str), MORE, &[]);
        let node = node.expect("the first node starts");
        let ended = socket.node(&[], MORE, &[]).err().expect("it ends");
        assert_eq!(ended.code, Some(1), "{point} {}", ended.errors);
        assert!(ended.errors.contains("cannot take over"), "{point} {}", ended.errors);
        assert_eq!(node.ended().code, None, "{point}");
    }
}

/// Behind the first copy, and before the node is frozen: connections that close, on either side, and others that take
/// their slots; messages, half a message, subscriptions that begin and end.
#[test]
fn what_changes_behind_the_first_copy_is_handed_over() {
    let socket = Socket::new("meanwhile");
    let file = socket.0.with_extension("held");
    let held = format!("TAKEOVER_TEST_FILE={}", file.display());
    let [env, point] = at("hold:old-all-copied");
    let node = socket.node(&[&env, &held, &point], MORE, &[]).expect("the first node starts");
    let mut clients: Vec<Client> = (0..20).map(|_| node.connected()).collect();
    clients.iter_mut().for_each(|client| _ = subscribed(client));
    let (mut publisher, mut half) = (node.connected(), node.upgraded(CLIENTS));
    let command = |text: &str| frame(0x81, text.as_bytes());
    half.send(&command(r#"{"id":1,"connect":{}}"#));
    assert!(half.frame().is_some());
    let (publish, later) = (
        command(r#"{"id":2,"publish":{"channel":"kept:room","data":"half"}}"#),
        command(r#"{"id":3,"publish":{"channel":"kept:room","data":"whole"}}"#),
    );
    let new = std::thread::scope(|scope| {
        let new = scope.spawn(|| socket.node(&[], MORE, &[]).expect("it takes over"));
        until_held(&file);
        // The shards go on, and the other process has copies of all sockets.
        for (round, data) in (1..).zip(["one", "two", "three"]) {
            publisher.publish("kept:room", json!(data));
            for client in &mut clients {
                assert_eq!(publication(client), (round, json!(data)));
            }
        }
        // These end: by themselves, and by the node, which their peers notice.
        drop(clients.drain(15..));
        let mut refused = clients.remove(0);
        refused.send("nonsense");
        refused.is_closed(3501, "bad request");
        clients[1].ask("unsubscribe", json!({"channel": "kept:room"}));
        // These come, into the slots of others.
        clients.extend((0..8).map(|_| node.connected()));
        clients.iter_mut().skip(14).for_each(|client| assert_eq!(subscribed(client), 3));
        half.send(&publish[..11]);
        std::fs::remove_file(&file).unwrap();
        new.join().unwrap()
    });
    let new = new.in_place_of(&node);
    let ended = node.ended();
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    new.until_is("connections_open", 24);
    half.send(&publish[11..]);
    half.send(&later);
    let mut unsubscribed = clients.remove(1);
    for client in &mut clients {
        assert_eq!(publication(client), (4, json!("half")));
        assert_eq!(publication(client), (5, json!("whole")));
    }
    assert_eq!(subscribed(&mut unsubscribed), 5);
    let history = new.call("history", json!({"channel": "kept:room", "limit": 10}));
    assert_eq!(history["result"]["publications"].as_array().unwrap().len(), 5);
    // A close that the new process makes reaches the client.
    new.call("disconnect", json!({"user": ""}));
    let mut last = clients.pop().unwrap();
    assert!(matches!(last.next(), Got::Close(..)));
}

/// The test stands between both processes, and cuts the stream behind each of its bytes, in either direction.
#[test]
fn a_stream_that_is_cut_at_any_byte_changes_nothing() {
    let socket = Socket::new("cut");
    let node = socket.first();
    let mut client = node.connected();
    subscribed(&mut client);
    let between = Socket::new("between");
    let whole = 4000;
    let mut cuts: Vec<usize> = (0..24).map(|n| n * 3).collect();
    cuts.extend((100..whole).step_by(211));
    for (round, cut) in (1..).zip(&cuts) {
        let relayed = std::thread::scope(|scope| {
            let relay = scope.spawn(|| relay(&between, &socket, *cut));
            let own = between.flags();
            let new = Node::launch_open(&[], MORE, &own.each_ref().map(String::as_str));
            (relay.join().unwrap(), new.is_ok())
        });
        if relayed.1 {
            assert!(relayed.0, "it has taken over although the stream was cut at {cut}");
            assert_eq!(node.ended().code, Some(0));
            return;
        }
        node.call("publish", json!({"channel": "kept:room", "data": cut}));
        assert_eq!(publication(&mut client), (round, json!(cut)));
    }
    panic!("the stream is longer than {whole} bytes: the cuts are too few");
}

/// The same of the link on which a shard is copied while it runs, and then made whole: it keeps the borders of
/// messages, so that the last one before the cut comes short.
#[test]
fn a_link_that_is_cut_at_any_byte_changes_nothing() {
    let socket = Socket::new("link");
    let shards = ["--shards", "1"];
    let node = socket.node(&[], MORE, &shards).expect("the first node starts");
    let mut client = node.connected();
    subscribed(&mut client);
    let between = Socket::new("between-link");
    let whole = 400;
    for cut in 0..whole {
        let (relayed, new) = std::thread::scope(|scope| {
            let relay = scope.spawn(|| relay_with(&between, &socket, usize::MAX, Some(cut)));
            let own = between.flags();
            let flags = own.iter().map(String::as_str).chain(shards);
            let new = Node::launch_open(&[], MORE, &flags.collect::<Vec<_>>());
            (relay.join().unwrap(), new)
        });
        assert!(relayed, "the stream was not cut");
        node.call("publish", json!({"channel": "kept:room", "data": cut}));
        if new.is_ok() {
            // Listeners, sockets, three rounds with a part each, and the end.
            assert!(cut > 60, "it has taken over although its link was cut at {cut}");
            assert_eq!(node.ended().code, Some(0));
            return;
        }
        assert_eq!(publication(&mut client), (cut as u64 + 1, json!(cut)));
    }
    panic!("the link carries more than {whole} bytes: the cuts are too few");
}

/// Passes bytes and descriptors between both processes, `cut` bytes in all. Whether it was all of them.
fn relay(between: &Socket, socket: &Socket, cut: usize) -> bool {
    relay_with(between, socket, cut, None)
}

/// The same. `cut_links`: messages of links are passed on, too, so many bytes of each.
fn relay_with(between: &Socket, socket: &Socket, cut: usize, cut_links: Option<usize>) -> bool {
    let _ = std::fs::remove_file(&between.0);
    let listener = std::os::unix::net::UnixListener::bind(&between.0).unwrap();
    let (new, _) = listener.accept().unwrap();
    let _ = std::fs::remove_file(&between.0);
    let old = UnixStream::connect(&socket.0).unwrap();
    let ends = [&new, &old];
    let mut left = cut;
    loop {
        for at in ready(ends) {
            let (mut bytes, mut passed) = (vec![0; left.clamp(1, 1024)], Vec::new());
            let from = ends[at].as_fd();
            let received = roost::io::descriptors::receive(from, &mut bytes, &mut passed);
            // A process that ends with bytes unread resets the stream.
            let count = received.unwrap_or(0);
            if count == 0 {
                return true;
            }
            if left == 0 {
                return false;
            }
            // Only the new process passes descriptors by here that are links.
            if let (0, Some(cut)) = (at, cut_links) {
                passed = passed.into_iter().map(|link| relayed_link(link, cut)).collect();
            }
            let passed: Vec<_> = passed.iter().map(|passed| passed.as_fd()).collect();
            let other = ends[1 - at].as_fd();
            if roost::io::descriptors::send(other, &bytes[..count], &passed).is_err() {
                return true;
            }
            left -= count;
        }
    }
}

/// Which of both ends have something to read.
fn ready<F: AsFd>(ends: [&F; 2]) -> Vec<usize> {
    let mut polled = ends.map(|end| rustix::event::PollFd::new(end, rustix::event::PollFlags::IN));
    rustix::event::poll(&mut polled, None).unwrap();
    (0..2).filter(|at| !polled[*at].revents().is_empty()).collect()
}

/// Another link in the place of this one, whose messages go on to it up to `cut` bytes.
fn relayed_link(link: OwnedFd, cut: usize) -> OwnedFd {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let (flags, kind) = (SocketFlags::CLOEXEC, SocketType::SEQPACKET);
    let (given, own) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
    // It ends with the links: at the cut, or when a process has closed one.
    std::thread::spawn(move || {
        let ends = [&link, &own];
        let mut left = cut;
        while left > 0 {
            for at in ready(ends) {
                let (mut bytes, mut passed) = (vec![0; 4096], Vec::new());
                let from = ends[at].as_fd();
                let received = roost::io::descriptors::receive(from, &mut bytes, &mut passed);
                let count = received.unwrap_or(0).min(left);
                let passed: Vec<_> = passed.iter().map(|passed| passed.as_fd()).collect();
                let to = ends[1 - at].as_fd();
                if count == 0 || roost::io::descriptors::send(to, &bytes[..count], &passed).is_err()
                {
                    return;
                }
                left -= count;
            }
        }
    });
    given
}

#[test]
fn both_drivers_hand_over() {
    for io in ["epoll", "uring"] {
        let socket = Socket::new(io);
        let start = || socket.node(&[], MORE, &["--io", io]);
        let node = match start() {
            Ok(node) => node,
            Err(ended) if io == "uring" && ended.errors.contains("io_uring") => return,
            Err(ended) => panic!("{ended:?}"),
        };
        let mut clients: Vec<Client> = (0..50).map(|_| node.connected()).collect();
        clients.iter_mut().for_each(|client| _ = subscribed(client));
        let new = start().expect("it takes over");
        assert_eq!(node.ended().code, Some(0));
        new.is_healthy();
        new.call("publish", json!({"channel": "kept:room", "data": io}));
        clients.iter_mut().for_each(|client| assert_eq!(publication(client), (1, json!(io))));
    }
}

#[test]
fn the_upgrade_command_reports_the_takeover_and_metrics_count_it() {
    let socket = Socket::new("command");
    let node = socket.node(&[], &format!("{MORE}\n[prometheus]\nenabled = true"), &[]).unwrap();
    let mut client = node.connected();
    subscribed(&mut client);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_roost"));
    command.env_clear().arg("upgrade").arg("-c").arg(node.file()).args(socket.flags());
    // The driver of this run, which the running node has too.
    command.envs(std::env::var_os("ROOST_IO").map(|io| ("ROOST_IO", io)));
    command.args(["-a", "127.0.0.1", "-p", "0", "--shards", "2"]);
    let output = command.stderr(std::process::Stdio::null()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.contains(&format!("has taken over from process {}", node.pid())), "{text}");
    assert!(text.contains(": 1 connections, "), "{text}");
    let pid: i32 = text.split(' ').nth(1).unwrap().parse().unwrap();
    let metrics = node.raw();
    let mut metrics = metrics;
    metrics.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
    let metrics = metrics.response().body;
    assert!(metrics.contains("\nroost_takeovers_total 1.0\n"), "{metrics}");
    assert!(metrics.contains("\nroost_takeover_connections 1.0\n"), "{metrics}");
    client.command("publish", json!({"channel": "kept:room", "data": 1}));
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::KILL)
        .unwrap();
    assert_eq!(node.ended().code, Some(0));
    // Nobody listens any more.
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_roost"));
    command.env_clear().arg("upgrade").args(socket.flags());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn the_service_manager_and_the_pid_file_name_the_new_process() {
    let socket = Socket::new("manager");
    let pid_file = Socket::new("pid");
    let inbox = Socket::new("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&inbox.0).unwrap();
    manager.set_read_timeout(Some(BOUND)).unwrap();
    let next = || {
        let mut bytes = [0; 4096];
        let length = manager.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    };
    let variable = format!("NOTIFY_SOCKET={}", inbox.0.display());
    let flags = ["--pid_file", pid_file.0.to_str().unwrap()];
    let start = || socket.node(&["env", &variable], MORE, &flags).expect("it starts");
    let node = start();
    assert!(next().starts_with("READY=1\n"));
    let new = start();
    // The order of these two is not defined: both are true.
    let messages = [next(), next()];
    let has = |text: &str| messages.iter().any(|message| message.starts_with(text));
    assert!(has(&format!("MAINPID={}\n", new.pid())) && has("READY=1\n"), "{messages:?}");
    assert_eq!(node.ended().code, Some(0));
    let since = Instant::now();
    while std::fs::read_to_string(&pid_file.0).unwrap() != format!("{}\n", new.pid()) {
        assert!(since.elapsed() < BOUND, "the pid file names the process before");
        std::thread::park_timeout(std::time::Duration::from_millis(10));
    }
    new.signal(Signal::TERM);
    assert_eq!(new.ended().code, Some(0));
    assert!(!pid_file.0.exists());
}
