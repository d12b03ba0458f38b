//! `roost-load` against servers that behave, and against servers that don't: what it counts must be
//! exactly what they did.

#![expect(clippy::disallowed_methods, reason = "test servers have a thread for each connection")]

use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;
use tungstenite::Message;
use tungstenite::handshake::derive_accept_key;
use tungstenite::handshake::server::{Request, Response};
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};

/// A client of a [`Server`].
struct Peer {
    /// Its place in the order of arrival, from 0.
    number: usize,
    stream: Mutex<TcpStream>,
    /// The state that a test keeps about it.
    notes: Mutex<HashMap<&'static str, Value>>,
}

impl Peer {
    fn send(&self, text: &str) {
        self.send_frame(Frame::message(text.to_owned(), OpCode::Data(Data::Text), true));
    }

    fn send_frame(&self, frame: Frame) {
        let mut bytes = Vec::new();
        frame.format(&mut bytes).unwrap();
        // The client may be gone already.
        let _ = self.stream.lock().unwrap().write_all(&bytes);
    }

    fn close(&self) {
        let _ = self.stream.lock().unwrap().shutdown(Shutdown::Both);
    }

    fn note(&self, key: &'static str) -> Value {
        self.notes.lock().unwrap().get(key).cloned().unwrap_or_default()
    }

    fn set_note(&self, key: &'static str, value: impl Into<Value>) {
        self.notes.lock().unwrap().insert(key, value.into());
    }
}

/// A WebSocket server of tungstenite's, one thread for each connection.
struct Server {
    port: u16,
    peers: Arc<Mutex<Vec<Arc<Peer>>>>,
}

impl Server {
    /// Starts one that does `on_text` with each text that a peer sends; the list has all peers.
    fn start(on_text: impl Fn(&Arc<Peer>, &str, &[Arc<Peer>]) + Send + Sync + 'static) -> Self {
        Self::start_on("127.0.0.1", "", on_text)
    }

    /// The same at another address of this machine; it speaks first, unless the greeting is empty.
    fn start_on(
        ip: &str,
        greeting: &'static str,
        on_text: impl Fn(&Arc<Peer>, &str, &[Arc<Peer>]) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let peers: Arc<Mutex<Vec<Arc<Peer>>>> = Arc::default();
        let on_text = Arc::new(on_text);
        let all = Arc::clone(&peers);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (all, on_text) = (Arc::clone(&all), Arc::clone(&on_text));
                thread::spawn(move || serve(stream.unwrap(), greeting, &all, &*on_text));
            }
        });
        Self { port, peers }
    }

    fn url(&self, path: &str) -> String {
        format!("ws://127.0.0.1:{}{path}", self.port)
    }
}

/// The reaction of a server to a text: its sender, the text, and all connections.
type OnText = dyn Fn(&Arc<Peer>, &str, &[Arc<Peer>]);

#[expect(clippy::result_large_err, reason = "tungstenite's callback has this error")]
fn serve(stream: TcpStream, greeting: &str, all: &Mutex<Vec<Arc<Peer>>>, on_text: &OnText) {
    let writer = stream.try_clone().unwrap();
    let peer = {
        let mut all = all.lock().unwrap();
        let (number, notes) = (all.len(), Mutex::default());
        let peer = Arc::new(Peer { number, stream: Mutex::new(writer), notes });
        all.push(Arc::clone(&peer));
        peer
    };
    let request = |request: &Request, mut response: Response| {
        peer.set_note("request", request_of(request));
        // The last one that was requested.
        let requested = request.headers().get("sec-websocket-protocol");
        if let Some(last) = requested.and_then(|all| all.to_str().ok()?.split(", ").last()) {
            response.headers_mut().insert("sec-websocket-protocol", last.parse().unwrap());
        }
        Ok(response)
    };
    let Ok(mut socket) = tungstenite::accept_hdr(stream, request) else { return };
    if !greeting.is_empty() {
        peer.send(greeting);
    }
    while let Ok(message) = socket.read() {
        match message {
            Message::Text(text) => {
                let all = all.lock().unwrap().clone();
                on_text(&peer, text.as_str(), &all);
            }
            Message::Pong(_) => {
                let pongs = peer.note("pongs").as_u64().unwrap_or(0);
                peer.set_note("pongs", pongs + 1);
            }
            _ => {}
        }
    }
}

/// Path and headers of a request.
fn request_of(request: &Request) -> Value {
    let headers = request.headers().iter();
    let headers: HashMap<&str, &str> =
        headers.map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    json!({ "path": request.uri().to_string(), "headers": headers })
}

fn echo_server() -> Server {
    Server::start(|peer, text, _| peer.send(text))
}

/// Broadcasts what it gets, passing it to each receiver through `pass`: number of the receiver, number
/// of the message from 1, and its text; what is returned is sent.
fn broadcast_server(
    pass: impl Fn(&Arc<Peer>, usize, &str) -> Vec<String> + Send + Sync + 'static,
) -> Server {
    let count = AtomicUsize::new(0);
    Server::start(move |from, text, all| {
        let number = count.fetch_add(1, SeqCst) + 1;
        for peer in all.iter().filter(|peer| peer.number != from.number) {
            for text in pass(peer, number, text) {
                peer.send(&text);
            }
        }
    })
}

fn start(args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roost-load"));
    command.args(args.split_whitespace()).arg("--json");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs `roost-load`, and returns its exit code and its JSON line.
fn load(args: &str) -> (i32, Value) {
    result(&start(args).output().unwrap())
}

fn result(output: &Output) -> (i32, Value) {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let line = stdout.lines().last().unwrap_or_else(|| panic!("no output; stderr:\n{stderr}"));
    let value: Value = serde_json::from_str(line).unwrap();
    println!("{value:#}\n{stderr}");
    (output.status.code().unwrap(), value)
}

#[track_caller]
fn assert_messages(result: &Value, expected: Value) {
    assert_eq!(result["messages"], expected);
}

fn all_fine(sent: u64, received: u64) -> Value {
    json!({ "sent": sent, "received": received, "lost": 0, "duplicated": 0, "out_of_order": 0 })
}

#[test]
fn echo_keeps_its_window_and_loses_nothing() {
    let server = echo_server();
    let url = server.url("/echo");
    let (code, result) =
        load(&format!("echo --url {url} --connections 20 --window 3 --duration 300ms --threads 2"));
    assert_eq!(code, 0);
    let sent = result["messages"]["sent"].as_u64().unwrap();
    assert!(sent >= 60);
    assert_messages(&result, all_fine(sent, sent));
    assert_eq!(
        result["connections"],
        json!({ "asked": 20, "opened": 20, "failed": 0, "dropped": 0 })
    );
    for key in ["p50", "p90", "p99", "p999", "max", "mean"] {
        assert!(result["latency_us"][key].is_number());
        assert!(result["latency_raw_us"][key].is_number());
    }
    assert_eq!(result["server"], Value::Null);
    assert!(result["client"]["rss_bytes"].as_u64().unwrap() > 0);
}

#[test]
fn messages_larger_than_any_buffer_come_back_whole() {
    let server = echo_server();
    let url = server.url("/echo");
    let (code, result) = load(&format!(
        "echo --url {url} --connections 3 --window 2 --size 3000000 --duration 200ms"
    ));
    assert_eq!(code, 0);
    let sent = result["messages"]["sent"].as_u64().unwrap();
    assert!(sent >= 6);
    assert_messages(&result, all_fine(sent, sent));
}

#[test]
fn echo_by_schedule_keeps_to_the_schedule() {
    let server = echo_server();
    let url = server.url("/echo");
    let line = format!("echo --url {url} --connections 10 --rate 1000 --duration 500ms --size 300");
    let (code, result) = load(&line);
    assert_eq!(code, 0);
    // A thread's last message may fall on either side of the end.
    let sent = result["messages"]["sent"].as_u64().unwrap();
    assert!((490..=501).contains(&sent), "{sent}");
    assert_messages(&result, all_fine(sent, sent));
}

#[test]
fn broadcast_over_raw_websocket_is_counted_exactly() {
    let server = broadcast_server(|_, _, text| vec![text.to_owned()]);
    let url = server.url("/");
    let (code, result) = load(&format!(
        "broadcast --url {url} --connections 30 --publish 50 --rate 2000 --size 200"
    ));
    assert_eq!(code, 0);
    assert_messages(&result, all_fine(50, 1500));
    assert_eq!(result["scenario"], "broadcast");
    assert_eq!(result["url"], url);
    assert!(result["rate"]["received"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_server_that_is_replaced_shows_the_pause_of_each_client() {
    // The server stands still from the moment that the command has made a file.
    let directory = std::env::temp_dir().join(format!("roost-load-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join("replaced");
    let (seen, paused) = (file.clone(), AtomicUsize::new(0));
    let server = broadcast_server(move |_, _, text| {
        if seen.exists() && paused.swap(1, SeqCst) == 0 {
            thread::sleep(Duration::from_millis(300));
        }
        vec![text.to_owned()]
    });
    let url = server.url("/");
    let args = format!("upgrade --url {url} --connections 10 --publish 400 --rate 400");
    let run = |command: String| result(&start(&args).args(["--run", &command]).output().unwrap());
    let (code, fine) = run(format!("touch {}", file.display()));
    assert_eq!(code, 0);
    assert_messages(&fine, all_fine(400, 4000));
    assert_eq!(fine["upgrade"]["exit_code"], 0);
    let p50 = fine["upgrade"]["pause_us"]["p50"].as_u64().unwrap();
    assert!(p50 >= 290_000, "{p50}");
    std::fs::remove_dir_all(&directory).unwrap();
    let (code, failed) = run("exit 7".to_owned());
    assert_eq!((code, &failed["upgrade"]["exit_code"]), (1, &json!(7)));
    assert_messages(&failed, all_fine(400, 4000));
}

#[test]
fn requests_have_headers_credentials_and_a_query_of_their_own() {
    let server = echo_server();
    let mut command = start(&format!(
        "echo --url {} --connections 3 --duration 100ms --cookie session={{n}} --origin https://a.example \
         --user me:secret --subprotocol first --subprotocol second",
        server.url("/feed?user={n}")
    ));
    let (code, _) = result(&command.args(["--header", "X-Tenant: t {n}"]).output().unwrap());
    assert_eq!(code, 0);
    let peers = server.peers.lock().unwrap();
    let mut paths: Vec<String> = Vec::new();
    for peer in peers.iter() {
        let request = peer.note("request");
        let path = request["path"].as_str().unwrap().to_owned();
        let number = path.strip_prefix("/feed?user=").unwrap();
        let headers = &request["headers"];
        assert_eq!(headers["cookie"], format!("session={number}"));
        assert_eq!(headers["x-tenant"], format!("t {number}"));
        assert_eq!(headers["origin"], "https://a.example");
        assert_eq!(headers["authorization"], "Basic bWU6c2VjcmV0");
        assert_eq!(headers["sec-websocket-protocol"], "first, second");
        paths.push(path);
    }
    paths.sort_unstable();
    assert_eq!(paths, ["/feed?user=0", "/feed?user=1", "/feed?user=2"]);
}

#[test]
fn a_condition_that_holds_is_an_exit_code_of_its_own() {
    let server = echo_server();
    let url = server.url("/");
    let run = |conditions: &[&str]| {
        let mut command = start(&format!("echo --url {url} --connections 2 --duration 100ms"));
        let flags = conditions.iter().flat_map(|of| ["--fail-if", of]);
        result(&command.args(flags).output().unwrap())
    };
    let (code, fine) = run(&["lost>0", "p99>1m"]);
    assert_eq!(code, 0);
    assert_eq!(fine["thresholds"][0], json!({"condition": "lost>0", "value": 0.0, "holds": false}));
    let (code, failed) = run(&["lost>0", "received < 1000000000"]);
    assert_eq!((code, &failed["thresholds"][1]["holds"]), (99, &json!(true)));
    let wrong = start(&format!("echo --url {url} --fail-if p98>1ms")).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("no figure \"p98\""));
}

#[test]
fn lost_messages_are_counted_and_fail_the_run() {
    // The last one is lost as well: nothing after it shows the gap.
    let server = broadcast_server(|_, number, text| match number % 7 {
        0 => vec![],
        _ => vec![text.to_owned()],
    });
    let url = server.url("/");
    let (code, result) = load(&format!(
        "broadcast --url {url} --connections 10 --publish 49 --rate 2000 --drain 300ms"
    ));
    assert_eq!(code, 1);
    assert_messages(
        &result,
        json!({ "sent": 49, "received": 420, "lost": 70, "duplicated": 0, "out_of_order": 0 }),
    );
}

#[test]
fn duplicates_are_distinguished_from_new_messages() {
    let server = broadcast_server(|peer, number, text| match (peer.number, number) {
        (3, 5) => vec![text.to_owned(); 3],
        _ => vec![text.to_owned()],
    });
    let url = server.url("/");
    let (code, result) =
        load(&format!("broadcast --url {url} --connections 10 --publish 20 --rate 2000"));
    assert_eq!(code, 1);
    assert_messages(
        &result,
        json!({ "sent": 20, "received": 202, "lost": 0, "duplicated": 2, "out_of_order": 0 }),
    );
}

#[test]
fn late_messages_are_out_of_order_and_not_lost() {
    // One receiver gets message 4 after 6.
    let server = broadcast_server(|peer, number, text| match (peer.number, number) {
        (0, 4) => {
            peer.set_note("kept", text);
            vec![]
        }
        (0, 6) => vec![text.to_owned(), peer.note("kept").as_str().unwrap().to_owned()],
        _ => vec![text.to_owned()],
    });
    let url = server.url("/");
    let (code, result) =
        load(&format!("broadcast --url {url} --connections 5 --publish 20 --rate 2000"));
    assert_eq!(code, 1);
    assert_messages(
        &result,
        json!({ "sent": 20, "received": 100, "lost": 0, "duplicated": 0, "out_of_order": 1 }),
    );
}

#[test]
fn faults_of_all_kinds_in_one_run_are_told_apart() {
    // Each receiver loses 5 and the last one, gets 8 twice, and 12 behind 13.
    let server = broadcast_server(|peer, number, text| match number {
        5 | 30 => vec![],
        8 => vec![text.to_owned(); 2],
        12 => {
            peer.set_note("kept", text);
            vec![]
        }
        13 => vec![text.to_owned(), peer.note("kept").as_str().unwrap().to_owned()],
        _ => vec![text.to_owned()],
    });
    let url = server.url("/");
    let conditions = ["lost>8", "lost>7", "duplicated>3", "out_of_order>4", "out_of_order>3"];
    let mut command = start(&format!(
        "broadcast --url {url} --connections 4 --publish 30 --rate 1000 --drain 300ms"
    ));
    let flags = conditions.iter().flat_map(|of| ["--fail-if", of]);
    let (code, result) = result(&command.args(flags).output().unwrap());
    assert_eq!(code, 99);
    assert_messages(
        &result,
        json!({ "sent": 30, "received": 116, "lost": 8, "duplicated": 4, "out_of_order": 4 }),
    );
    let holds = conditions.map(|of| {
        let all = result["thresholds"].as_array().unwrap();
        all.iter().find(|row| row["condition"] == of).unwrap()["holds"].as_bool().unwrap()
    });
    assert_eq!(holds, [false, true, true, false, true]);
}

#[test]
fn a_dropped_connection_is_counted_with_its_missed_messages() {
    let server = broadcast_server(|peer, number, text| {
        if (peer.number, number) == (2, 11) {
            peer.close();
            return vec![];
        }
        vec![text.to_owned()]
    });
    let url = server.url("/");
    let (code, result) = load(&format!(
        "broadcast --url {url} --connections 5 --publish 20 --rate 500 --drain 300ms"
    ));
    assert_eq!(code, 1);
    assert_eq!(result["connections"]["dropped"], 1);
    assert_messages(
        &result,
        json!({ "sent": 20, "received": 90, "lost": 10, "duplicated": 0, "out_of_order": 0 }),
    );
}

#[test]
fn a_close_frame_is_reported_with_its_code() {
    let server = broadcast_server(|peer, _, _| {
        let close = CloseFrame { code: 3001.into(), reason: "shutdown".into() };
        peer.send_frame(Frame::close(Some(close)));
        vec![]
    });
    let url = server.url("/");
    let (code, result) =
        load(&format!("broadcast --url {url} --connections 3 --publish 1 --drain 300ms"));
    assert_eq!(code, 1);
    assert_eq!(result["connections"]["dropped"], 3);
    assert_eq!(result["reasons"], json!({ "closed by the server: 3001 shutdown": 3 }));
}

#[test]
fn the_slow_ones_read_nothing_and_miss_nothing_that_counts() {
    let server = broadcast_server(|_, _, text| vec![text.to_owned()]);
    let url = server.url("/");
    let (code, result) = load(&format!(
        "broadcast --url {url} --connections 10 --publish 20 --rate 2000 --slow-share 0.3"
    ));
    assert_eq!(code, 0);
    assert_messages(&result, all_fine(20, 140));
}

#[test]
fn fragments_and_pings_of_rfc_6455_are_understood() {
    let server = broadcast_server(|peer, _, text| {
        let (head, tail) = text.as_bytes().split_at(20);
        peer.send_frame(Frame::message(head.to_vec(), OpCode::Data(Data::Text), false));
        peer.send_frame(Frame::ping(b"hi".to_vec()));
        peer.send_frame(Frame::message(tail.to_vec(), OpCode::Data(Data::Continue), true));
        vec![]
    });
    let url = server.url("/");
    let (code, result) = load(&format!(
        "broadcast --url {url} --connections 5 --publish 10 --rate 100 --hold 200ms"
    ));
    assert_eq!(code, 0);
    assert_messages(&result, all_fine(10, 50));
    let peers = server.peers.lock().unwrap();
    let pongs: u64 = peers.iter().filter_map(|peer| peer.note("pongs").as_u64()).sum();
    assert_eq!(pongs, 50);
}

/// A server of the client protocol: checks tokens, keeps subscriptions, joins two pushes in a frame.
fn client_protocol_server() -> Server {
    Server::start(|peer, text, all| {
        for line in text.split('\n') {
            let command: Value = serde_json::from_str(line).unwrap();
            let id = command["id"].clone();
            if command == json!({}) {
                // A pong: the next ping follows, three in all.
                let pongs = peer.note("pongs").as_u64().unwrap_or(0) + 1;
                peer.set_note("pongs", pongs);
                if pongs < 3 {
                    peer.send("{}");
                }
            } else if let Some(connect) = command.get("connect") {
                let user = user_of(connect["token"].as_str().unwrap());
                peer.set_note("user", user);
                peer.send(
                    &json!({ "id": id, "connect": { "client": "x", "ping": 25 } }).to_string(),
                );
            } else if let Some(subscribe) = command.get("subscribe") {
                if subscribe["channel"] == "secret" {
                    let error = json!({ "code": 103, "message": "permission denied" });
                    peer.send(&json!({ "id": id, "error": error }).to_string());
                    return;
                }
                peer.set_note("channel", subscribe["channel"].clone());
                // The reply and a ping in one frame.
                peer.send(&format!("{}\n{{}}", json!({ "id": id, "subscribe": {} })));
            } else if let Some(publish) = command.get("publish") {
                push(publish, all);
                peer.send(&json!({ "id": id, "publish": {} }).to_string());
            }
        }
    })
}

/// Pushes a publication to those that are subscribed to its channel, and another one with it.
fn push(publish: &Value, all: &[Arc<Peer>]) {
    let push = json!({ "push": {
        "channel": publish["channel"], "pub": { "data": publish["data"], "offset": 1 }
    } });
    let other = json!({ "push": { "channel": "c", "pub": { "data": "other" } } });
    for peer in all.iter().filter(|peer| peer.note("channel") == publish["channel"]) {
        peer.send(&format!("{push}\n{other}"));
    }
}

fn user_of(token: &str) -> String {
    use jsonwebtoken::{Algorithm, DecodingKey, Validation};
    let mut rules = Validation::new(Algorithm::HS256);
    rules.required_spec_claims.clear();
    let key = DecodingKey::from_secret(b"s3cret");
    let claims = jsonwebtoken::decode::<Value>(token, &key, &rules).unwrap().claims;
    claims["sub"].as_str().unwrap().to_owned()
}

#[test]
fn channels_over_the_client_protocol() {
    let server = client_protocol_server();
    let url = server.url("/connection/websocket");
    let (code, result) = load(&format!(
        "channels --url {url} --connections 12 --channels 3 --secret s3cret --publish 31 \
         --rate 1000 --pings 2 --threads 3"
    ));
    assert_eq!(code, 0);
    // 31 messages in turn: 11, 10 and 10 to four subscribers each.
    assert_messages(&result, all_fine(31, 124));
    let peers = server.peers.lock().unwrap();
    let mut users: Vec<String> =
        peers.iter().map(|peer| peer.note("user").as_str().unwrap().to_owned()).collect();
    users.sort();
    users.dedup();
    assert_eq!(users.len(), 13, "each connection and the publisher have a user of their own");
    assert!(users.iter().all(|user| user.len() == 16));
    let in_channel = peers.iter().filter(|peer| peer.note("channel") == "load-1").count();
    assert_eq!(in_channel, 4);
}

/// A request to an [`Api`].
struct Asked {
    /// Its place in the order of arrival, from 1.
    number: usize,
    /// The first line.
    line: String,
    /// Names in lower case.
    headers: HashMap<String, String>,
    body: Value,
}

/// An HTTP server API with keep-alive, one thread for each connection.
struct Api {
    port: u16,
    connections: Arc<AtomicUsize>,
}

/// Status and body of an answer; nothing ends the connection without one.
type Answer = Option<(u16, String)>;

impl Api {
    /// Starts one that answers each request as `answer` says.
    fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let (accepted, count) = (Arc::clone(&connections), Arc::new(AtomicUsize::new(0)));
        let answer = Arc::new(answer);
        thread::spawn(move || {
            for stream in listener.incoming() {
                accepted.fetch_add(1, SeqCst);
                let (count, answer) = (Arc::clone(&count), Arc::clone(&answer));
                thread::spawn(move || Self::serve(stream.unwrap(), &count, &*answer));
            }
        });
        Self { port, connections }
    }

    /// Starts one that pushes to the subscribers of a [`client_protocol_server`], and does
    /// `answer` before that. It refuses with 401 without the key `k`.
    fn of(
        server: &Server,
        answer: impl Fn(&Asked) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let peers = Arc::clone(&server.peers);
        Self::start(move |asked| {
            if asked.headers.get("x-api-key").is_none_or(|key| key != "k") {
                return Some((401, String::new()));
            }
            if let Some(answer) = answer(asked) {
                return answer;
            }
            push(&asked.body, &peers.lock().unwrap().clone());
            Some((200, json!({ "result": {} }).to_string()))
        })
    }

    fn serve(stream: TcpStream, count: &AtomicUsize, answer: &dyn Fn(&Asked) -> Answer) {
        let mut writer = stream.try_clone().unwrap();
        let mut reader = BufReader::new(stream);
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match reader.read_until(b'\n', &mut head) {
                    Ok(1..) => {}
                    _ => return,
                }
            }
            let head = String::from_utf8(head).unwrap();
            let (line, fields) = head.split_once("\r\n").unwrap();
            let fields = fields.lines().filter_map(|field| field.split_once(": "));
            let headers: HashMap<String, String> =
                fields.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
            let mut body = vec![0; headers["content-length"].parse().unwrap()];
            reader.read_exact(&mut body).unwrap();
            let body = serde_json::from_slice(&body).unwrap();
            let number = count.fetch_add(1, SeqCst) + 1;
            let asked = Asked { number, line: line.to_owned(), headers, body };
            let Some((status, body)) = answer(&asked) else { return };
            let length = body.len();
            let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n{body}");
            if writer.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }

    fn flags(&self) -> String {
        format!("--api-url http://127.0.0.1:{}/api --api-key k", self.port)
    }
}

#[test]
fn publishing_through_the_api_is_counted_exactly() {
    let server = client_protocol_server();
    let api = Api::of(&server, |asked| {
        assert_eq!(asked.line, "POST /api/publish HTTP/1.1");
        assert_eq!(asked.headers["content-type"], "application/json");
        assert!(asked.headers["host"].starts_with("127.0.0.1:"));
        let body = asked.body.as_object().unwrap();
        assert_eq!(body.keys().collect::<Vec<_>>(), ["channel", "data"]);
        None
    });
    let (url, flags) = (server.url("/connection/websocket"), api.flags());
    let (code, result) = load(&format!(
        "channels --url {url} {flags} --connections 12 --channels 3 --secret s3cret --publish 31 \
         --rate 2000 --size 300"
    ));
    assert_eq!(code, 0);
    assert_messages(&result, all_fine(31, 124));
    assert_eq!(result["reasons"], json!({}));
    // Nobody but the subscribers came to the server itself.
    assert_eq!(server.peers.lock().unwrap().len(), 12);

    let (code, result) = load(&format!(
        "storm --url {url} {flags} --connections 8 --secret s3cret --subscribe c --publish 6"
    ));
    assert_eq!(code, 0);
    assert_messages(&result, all_fine(6, 48));
}

#[test]
fn connections_to_the_api_are_kept() {
    let server = client_protocol_server();
    let api = Api::of(&server, |_| None);
    let (url, flags) = (server.url("/connection/websocket"), api.flags());
    let (code, result) = load(&format!(
        "broadcast --url {url} {flags} --connections 2 --secret s3cret --publish 300 --rate 100000"
    ));
    assert_eq!(code, 0);
    assert_messages(&result, all_fine(300, 600));
    let connections = api.connections.load(SeqCst);
    assert!(connections <= 3, "{connections} connections for 300 requests");
}

#[test]
fn a_channel_has_one_request_under_way_and_several_channels_have_several() {
    let server = client_protocol_server();
    // How many requests each channel has had; the first of the first channel gets no answer before
    // the other channels have had 15, which they only do if it holds nobody up.
    let counts: (Mutex<HashMap<String, usize>>, Condvar) = Default::default();
    let api = Api::of(&server, move |asked| {
        let (counts, more) = &counts;
        let mut counts = counts.lock().unwrap();
        let count = counts.entry(asked.body["channel"].as_str().unwrap().to_owned()).or_default();
        *count += 1;
        more.notify_all();
        if asked.body["channel"] == "load-0" && *count == 1 {
            let missing = |counts: &mut HashMap<_, usize>| counts.values().sum::<usize>() < 16;
            let counts = more.wait_while(counts, missing).unwrap();
            if counts["load-0"] > 1 {
                return Some(Some((500, "two of a channel".to_owned())));
            }
        }
        None
    });
    let (url, flags) = (server.url("/connection/websocket"), api.flags());
    let (code, result) = load(&format!(
        "channels --url {url} {flags} --connections 8 --channels 4 --secret s3cret --publish 40 \
         --rate 100000"
    ));
    assert_eq!(code, 0);
    assert_messages(&result, all_fine(40, 80));

    let (now, most) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let api = Api::start(move |_| {
        seen.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
        thread::yield_now();
        now.fetch_sub(1, SeqCst);
        Some((200, json!({ "result": {} }).to_string()))
    });
    let flags = api.flags();
    load(&format!(
        "channels --url {url} {flags} --connections 4 --channels 4 --secret s3cret --publish 40 \
         --rate 100000 --in-flight 1 --drain 10ms"
    ));
    assert_eq!(most.load(SeqCst), 1);
}

#[test]
fn a_wrong_key_is_named_and_its_messages_are_lost() {
    let server = client_protocol_server();
    let api = Api::of(&server, |_| None);
    let (url, port) = (server.url("/connection/websocket"), api.port);
    let (code, result) = load(&format!(
        "broadcast --url {url} --api-url http://127.0.0.1:{port}/api --api-key wrong \
         --connections 3 --secret s3cret --publish 20 --rate 2000 --drain 100ms"
    ));
    assert_eq!(code, 1);
    assert_eq!(result["reasons"], json!({ "publish refused: status 401": 20 }));
    assert_messages(
        &result,
        json!({ "sent": 20, "received": 0, "lost": 60, "duplicated": 0, "out_of_order": 0 }),
    );
}

#[test]
fn errors_of_the_api_are_counted_by_kind() {
    let server = client_protocol_server();
    let error = json!({ "code": 102, "message": "unknown channel" });
    let api = Api::of(&server, move |asked| match asked.number {
        2 | 5 => Some(Some((200, json!({ "error": error }).to_string()))),
        6 => Some(Some((404, error.to_string()))),
        8 => Some(Some((500, "oh".to_owned()))),
        9 => Some(Some((200, "{}".to_owned()))),
        10 => Some(None),
        _ => None,
    });
    let (url, flags) = (server.url("/connection/websocket"), api.flags());
    let (code, result) = load(&format!(
        "broadcast --url {url} {flags} --connections 3 --secret s3cret --publish 20 --rate 2000 \
         --drain 300ms"
    ));
    assert_eq!(code, 1);
    assert_eq!(
        result["reasons"],
        json!({
            "publish refused: 102 unknown channel": 3,
            "publish refused: status 500": 1,
            "publish refused: an answer with neither result nor error": 1,
            "publish failed: connection closed before message completed": 1,
        })
    );
    assert_messages(
        &result,
        json!({ "sent": 20, "received": 42, "lost": 18, "duplicated": 0, "out_of_order": 0 }),
    );
}

#[test]
fn a_slow_api_does_not_move_the_schedule() {
    let server = client_protocol_server();
    let peers = Arc::clone(&server.peers);
    // It pushes input at once; but the first answer takes long.
    let api = Api::start(move |asked| {
        push(&asked.body, &peers.lock().unwrap().clone());
        if asked.number == 1 {
            thread::sleep(Duration::from_millis(400));
        }
        Some((200, json!({ "result": {} }).to_string()))
    });
    let (url, flags) = (server.url("/connection/websocket"), api.flags());
    let (code, result) = load(&format!(
        "broadcast --url {url} {flags} --connections 2 --secret s3cret --publish 50 --rate 1000"
    ));
    assert_eq!(code, 0);
    assert_messages(&result, all_fine(50, 100));
    // All but the first were meant to leave within 50 ms, and could not before 400 ms.
    let mean = |key: &str| result[key]["mean"].as_f64().unwrap();
    assert!(result["latency_us"]["p50"].as_u64().unwrap() >= 350_000);
    assert!(mean("latency_us") - mean("latency_raw_us") >= 300_000.0);
}

#[test]
fn an_api_that_is_not_there_or_does_not_answer_ends_the_run() {
    let server = client_protocol_server();
    let url = server.url("/connection/websocket");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let line = format!(
        "broadcast --url {url} --connections 2 --secret s3cret --publish 5 --rate 1000 \
         --api-url http://127.0.0.1:{port}/api --api-key k --drain 50ms --connect-timeout 500ms"
    );
    // Nobody accepts.
    let (code, result) = load(&line);
    assert_eq!(code, 1);
    assert_eq!(result["reasons"], json!({ "publisher: the API did not answer in time": 1 }));
    assert_eq!(result["messages"]["sent"], 1);

    drop(listener);
    let (code, result) = load(&line);
    assert_eq!(code, 1);
    assert_eq!(result["reasons"], json!({ "publish failed: connection refused": 5 }));
    assert_eq!(result["messages"]["lost"], 10);
}

/// One channel with a history, whose server ends subscriptions and connections.
#[derive(Default)]
struct Stream {
    epoch: usize,
    kept: Vec<Value>,
    accepted: Vec<Value>,
}

impl Stream {
    fn reply(&self, subscribe: &Value) -> Value {
        let mut reply = json!({ "epoch": self.epoch.to_string(), "offset": self.kept.len() });
        if subscribe["recover"] == true {
            let is_known = subscribe["epoch"] == reply["epoch"];
            let from = subscribe["offset"].as_u64().unwrap() as usize;
            reply["was_recovering"] = true.into();
            reply["recovered"] = is_known.into();
            if is_known {
                reply["publications"] = self.kept[from..].to_vec().into();
            }
        }
        reply
    }

    /// Pushes a publication, and then does what the test is about.
    fn publish(&mut self, request: &Value, all: &[Arc<Peer>]) {
        // The answer to this one was lost: it comes a second time.
        if self.accepted.contains(&request["idempotency_key"]) {
            return;
        }
        self.accepted.push(request["idempotency_key"].clone());
        let publication = json!({ "data": request["data"], "offset": self.kept.len() + 1 });
        self.kept.push(publication.clone());
        let push = json!({ "push": { "channel": "c", "pub": publication } });
        for peer in all.iter().filter(|peer| peer.note("channel") == "c") {
            peer.send(&push.to_string());
        }
        match self.accepted.len() {
            5 => all[0].close(),
            10 => {
                let end = json!({ "code": 2500, "reason": "insufficient state" });
                all[1].send(&json!({ "push": { "channel": "c", "unsubscribe": end } }).to_string());
            }
            // What comes back to this stream knows nothing of the last.
            15 => {
                (self.epoch, self.kept) = (1, Vec::new());
                all[2].set_note("channel", "none");
            }
            18 => all[2].close(),
            _ => return,
        }
        for peer in all {
            // Until it has subscribed again.
            if [5, 10].contains(&self.accepted.len()) && peer.number == self.accepted.len() / 5 - 1
            {
                peer.set_note("channel", "none");
            }
        }
    }
}

#[test]
fn connections_come_back_and_recover() {
    let stream: Arc<Mutex<Stream>> = Arc::default();
    let of_clients = Arc::clone(&stream);
    let server = Server::start(move |peer, text, _| {
        for line in text.split('\n') {
            let command: Value = serde_json::from_str(line).unwrap();
            let id = command["id"].clone();
            if command.get("connect").is_some() {
                peer.send(&json!({ "id": id, "connect": { "client": "x" } }).to_string());
            } else if let Some(subscribe) = command.get("subscribe") {
                let stream = of_clients.lock().unwrap();
                let reply = stream.reply(subscribe);
                peer.set_note("channel", "c");
                peer.send(&json!({ "id": id, "subscribe": reply }).to_string());
            }
        }
    });
    let peers = Arc::clone(&server.peers);
    let api = Api::start(move |asked| {
        assert!(asked.body["idempotency_key"].is_string());
        let all = peers.lock().unwrap().clone();
        stream.lock().unwrap().publish(&asked.body, &all);
        match asked.number {
            7 => None,
            9 => Some((200, json!({ "error": { "code": 100, "message": "later" } }).to_string())),
            _ => Some((200, json!({ "result": {} }).to_string())),
        }
    });
    let (url, flags) = (server.url("/connection/websocket"), api.flags());
    let (code, result) = load(&format!(
        "broadcast --url {url} {flags} --retry 5s --recover --connections 3 --secret s3cret \
         --subscribe c --publish 40 --rate 100 --drain 500ms"
    ));
    assert_eq!(code, 0, "{result}");
    // The third one had 15 messages, and the next after those that it can't recover.
    let returns = &result["returns"];
    assert_eq!((&returns["reconnected"], &returns["resubscribed"]), (&json!(2), &json!(1)));
    // Another one may come back too late, too, on a machine with much to do.
    assert!(returns["unrecovered"].as_u64().unwrap() >= 1, "{result}");
    let announced = returns["announced"].as_u64().unwrap();
    assert!(announced >= 3, "{result}");
    assert_messages(&result, all_fine(40, 120 - announced));
}

#[test]
fn a_refused_subscription_fails_the_connection_with_its_reason() {
    let server = client_protocol_server();
    let url = server.url("/connection/websocket");
    let (code, result) = load(&format!(
        "idle --url {url} --connections 4 --secret s3cret --subscribe secret --duration 10ms"
    ));
    assert_eq!(code, 1);
    assert_eq!(
        result["connections"],
        json!({ "asked": 4, "opened": 0, "failed": 4, "dropped": 0 })
    );
    assert_eq!(result["reasons"], json!({ "subscribe refused: 103 permission denied": 4 }));
}

#[test]
fn after_a_storm_all_are_back_and_get_everything() {
    let server = client_protocol_server();
    let url = server.url("/connection/websocket");
    let (code, result) = load(&format!(
        "storm --url {url} --connections 40 --secret s3cret --subscribe c --drop-share 0.25 \
         --publish 5 --rate 500 --threads 2"
    ));
    assert_eq!(code, 0);
    assert_eq!(result["storm"]["dropped"], 10);
    assert_eq!(result["storm"]["back"], 10);
    assert_eq!(
        result["connections"],
        json!({ "asked": 40, "opened": 40, "failed": 0, "dropped": 0 })
    );
    assert_messages(&result, all_fine(5, 200));
    // 40, 10 again, and the publisher.
    assert_eq!(server.peers.lock().unwrap().len(), 51);
}

#[test]
fn memory_and_time_of_a_server_on_this_machine() {
    let server = echo_server();
    let (url, pid) = (server.url("/echo"), std::process::id());
    let (code, result) = load(&format!(
        "idle --url {url} --connections 60 --settle 10 --rss-from 20 --pid {pid} --duration 1s"
    ));
    assert_eq!(code, 0);
    let server_of_it = &result["server"];
    assert!(server_of_it["rss_bytes"].as_u64().unwrap() > 0);
    for key in ["rss_bytes_per_connection", "kernel_bytes_per_connection", "cpu_s"] {
        assert!(server_of_it[key].is_number(), "{key}");
    }
    assert_eq!(server_of_it["slope"]["from"], 20);
    assert_eq!(server_of_it["slope"]["to"], 60);
    // The ten that came and went are not counted, but they were there.
    assert_eq!(result["connections"]["opened"], 60);
    assert_eq!(server.peers.lock().unwrap().len(), 70);
    assert_eq!(result["latency_us"]["p50"], Value::Null);
}

#[test]
fn a_server_that_refuses_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    drop(listener);
    let (code, result) = load(&format!("idle --url {url} --connections 3 --tries 2"));
    assert_eq!(code, 1);
    assert_eq!(result["connections"]["failed"], 3);
    assert_eq!(result["reasons"], json!({ "connection refused": 3 }));

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let (code, result) = load(&format!("idle --url {url} --connections 3"));
    assert_eq!(code, 1);
    assert_eq!(result["reasons"], json!({ "upgrade: status 403 instead of 101": 3 }));
}

#[test]
fn command_lines_that_make_no_sense_end_with_2() {
    for (args, expected) in [
        ("idle", "--url"),
        ("idle --url wss://127.0.0.1/ --cacert /missing", "/missing"),
        ("nothing --url ws://127.0.0.1/", "nothing"),
        ("idle --url ws://127.0.0.1/ --duration ten", "--duration"),
        ("idle --url ws://127.0.0.1/ --connections 100000 --threads 1", "threads"),
        ("broadcast --url ws://127.0.0.1/ --api-url http://a", "--api-key"),
        ("idle --url ws://127.0.0.1/connection/websocket --recover", "--recover"),
        ("idle --url ws://127.0.0.1/ --retry 1s", "--api-url"),
        (
            "broadcast --url ws://127.0.0.1/connection/websocket --api-key k \
             --api-url https://127.0.0.1/api --cacert /missing",
            "/missing",
        ),
        (
            "idle --url ws://127.0.0.1/connection/websocket --api-key k \
             --api-url http://127.0.0.1/api",
            "not for idle",
        ),
    ] {
        let output = start(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(expected), "{args}: {stderr}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_signal_ends_it_early_with_a_partial_report() {
    let opened = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&opened);
    let server = Server::start(move |peer, text, _| {
        seen.fetch_add(1, SeqCst);
        peer.send(text);
    });
    let url = server.url("/echo");
    let child = start(&format!("echo --url {url} --connections 5 --duration 10m")).spawn().unwrap();
    while opened.load(SeqCst) < 100 {
        thread::yield_now();
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let (code, result) = result(&child.wait_with_output().unwrap());
    assert_eq!(code, 130);
    assert_eq!(result["interrupted"], true);
    let sent = result["messages"]["sent"].as_u64().unwrap();
    assert!(sent >= 100);
    assert_messages(&result, all_fine(sent, sent));
}

#[test]
fn a_signal_ends_threads_that_have_more_to_do_than_they_can() {
    let tokens = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&tokens);
    let server = Server::start(move |peer, text, _| {
        // An echo, or the client protocol.
        for line in text.split('\n') {
            seen.fetch_add(1, SeqCst);
            let command: Value = serde_json::from_str(line).unwrap();
            let id = &command["id"];
            match command.get("connect").or_else(|| command.get("refresh")) {
                Some(_) => {
                    peer.send(&json!({ "id": id, "connect": { "client": "x" } }).to_string())
                }
                None => peer.send(text),
            }
        }
    });
    let file = scenarios::Scenario::new(
        "refreshes",
        &format!(
            "url = \"{}\"\nsecret = \"{}\"\n[[populations]]\nname = \"all\"\nrole = \"idle\"\n\
             connections = 2\ntoken_ttl = \"1ns\"\n[[phases]]\nopen = 1.0\nduration = \"10m\"\n",
            server.url("/connection/websocket"),
            "s".repeat(32),
        ),
    );
    let echo =
        format!("echo --url {} --connections 2 --duration 10m --ping-every 1ns", server.url("/"));
    for args in [echo, format!("run {}", file.path())] {
        tokens.store(0, SeqCst);
        let child = start(&args).spawn().unwrap();
        while tokens.load(SeqCst) < 2 {
            thread::yield_now();
        }
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let (code, result) = result(&child.wait_with_output().unwrap());
        assert_eq!((code, &result["interrupted"]), (130, &json!(true)), "{args}");
    }
}

#[test]
fn a_signal_before_all_are_open_ends_it_with_the_figures_so_far() {
    let server = echo_server();
    let args = format!("echo --url {} --connections 1000 --connect-rate 20", server.url("/echo"));
    let child = start(&args).spawn().unwrap();
    while server.peers.lock().unwrap().len() < 5 {
        thread::yield_now();
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    let (code, result) = result(&output);
    assert_eq!((code, &result["interrupted"]), (130, &Value::Bool(true)));
    let opened = result["connections"]["opened"].as_u64().unwrap();
    assert!((5..1000).contains(&opened), "{opened}");
    // Expected ends are no problems.
    assert_eq!((&result["messages"]["sent"], &result["server"]), (&0.into(), &Value::Null));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("INTERRUPTED") && !said.contains("FAILED"), "{said}");
}

#[test]
fn the_report_names_the_settings() {
    let server = echo_server();
    let url = server.url("/echo");
    let http = url.replace("ws://", "http://");
    let (code, result) =
        load(&format!("echo --url {http} --connections 2 --size 1 --rate 20 --duration 500ms"));
    assert_eq!(code, 0);
    assert_eq!(result["url"], url);
    assert_eq!(
        (&result["transport"], &result["interrupted"]),
        (&"websocket".into(), &false.into())
    );
    assert_eq!(result["rate"]["asked"], 20.0);
    // No payload is shorter than what the checks need.
    assert!(result["payload_bytes"].as_u64().unwrap() > 50, "{result}");
    assert_eq!(result["server"], Value::Null);
}

/// Accepts, upgrades and holds connections, one thread for all.
fn holding_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read(&mut buffer) {
                    Ok(count @ 1..) => head.extend_from_slice(&buffer[..count]),
                    _ => break,
                }
            }
            let head = String::from_utf8(head).unwrap();
            let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "));
            let accept = derive_accept_key(key.unwrap_or_default().as_bytes());
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                 Connection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
            );
            let _ = stream.write_all(answer.as_bytes());
            held.push(stream);
        }
    });
    port
}

#[test]
fn an_idle_connection_costs_the_client_at_most_200_bytes() {
    roost::sys::tables::raise_nofile();
    let rss = |connections: u32| {
        let port = holding_server();
        let (code, result) = load(&format!(
            "idle --url ws://127.0.0.1:{port}/ --connections {connections} --threads 1 \
             --duration 100ms --connect-timeout 60s"
        ));
        assert_eq!(code, 0);
        assert_eq!(result["connections"]["opened"], connections);
        result["client"]["rss_bytes"].as_f64().unwrap()
    };
    let (few, many) = (1_000, 7_000);
    let slope = (rss(many) - rss(few)) / f64::from(many - few);
    println!("{slope:.1} bytes of user memory for each idle connection");
    assert!(slope <= 200.0, "{slope:.1} bytes for each connection");
}

/// A node, which is killed in the end.
struct Node {
    child: std::process::Child,
    address: String,
}

impl Node {
    /// With every transport, pings every second, and channels that are recovered.
    fn start(more: &str) -> Self {
        let file = format!(
            "[client]\nallow_anonymous_connect_without_token = true\nping_interval = \"1s\"\n\
             pong_timeout = \"900ms\"\n[http_stream]\nenabled = true\n[sse]\nenabled = true\n\
             [long_poll]\nenabled = true\ntimeout = \"1s\"\n[channel.without_namespace]\n\
             allow_subscribe_for_client = true\nallow_subscribe_for_anonymous = true\n\
             allow_publish_for_client = true\nallow_publish_for_anonymous = true\n\
             force_recovery = true\nhistory_size = 1000\nhistory_ttl = \"10m\"\n{more}"
        );
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, SeqCst);
        let name = format!("roost-load-{}-{number}.toml", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, file).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_roost"));
        command.arg("serve").arg("-c").arg(&path).args(["-a", "127.0.0.1", "-p", "0"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = log.find_map(|line| {
            let line = line.ok()?;
            Some(line.split_once("listening on ")?.1.split(' ').next()?.to_owned())
        });
        // Its further output is read, so that it never waits for that.
        thread::spawn(move || log.for_each(drop));
        let _ = std::fs::remove_file(path);
        Self { child, address: line.expect("the node listens") }
    }

    fn url(&self) -> String {
        format!("ws://{}/connection/websocket", self.address)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn every_transport_is_measured_and_pinged() {
    let node = Node::start("[websocket]\ncompression = true\n");
    let url = node.url();
    let mut bytes = std::collections::BTreeMap::new();
    for transport in ["websocket", "websocket --compression", "sse", "http_stream", "long_poll"] {
        let pings = if transport == "long_poll" { "" } else { "--pings 2" };
        let (code, result) = load(&format!(
            "broadcast --url {url} --transport {transport} {pings} --connections 100 --publish 40 \
             --rate 200 --size 2000 --subscribe news --drain 20s"
        ));
        assert_eq!(code, 0, "{transport}");
        assert_messages(&result, all_fine(40, 4000));
        let name = transport.split(' ').next().unwrap();
        assert_eq!(result["transport"], name);
        assert_eq!(result["compression"], transport != name);
        assert_eq!(result["reasons"], json!({}));
        let received = result["bytes"]["received"].as_f64().unwrap();
        assert_eq!(result["bytes"]["per_message"], (received / 4.0).round() / 1000.0);
        bytes.insert(transport, received / 4000.0);
    }
    for (transport, each) in &bytes {
        let expected =
            if transport.contains("compression") { 300.0..1500.0 } else { 2000.0..2400.0 };
        // Each poll has its own head, and one answer may have several.
        let expected = if *transport == "long_poll" { 2000.0..3000.0 } else { expected };
        assert!(expected.contains(each), "{bytes:?}");
    }
    // All of them again, after some were dropped.
    for transport in ["sse", "http_stream", "long_poll"] {
        let (code, result) = load(&format!(
            "storm --url {url} --transport {transport} --connections 40 --drop-share 0.5 \
             --publish 5 --subscribe storm"
        ));
        assert_eq!(code, 0, "{transport}");
        assert_messages(&result, all_fine(5, 200));
        assert_eq!(result["storm"]["back"], 20);
    }
}

#[test]
fn a_server_that_does_not_compress_or_has_no_such_transport_is_named() {
    let node = Node::start("");
    let url = node.url();
    let (code, result) =
        load(&format!("idle --url {url} --compression --connections 3 --duration 10ms"));
    assert_eq!((code, &result["connections"]["failed"]), (1, &json!(3)));
    assert_eq!(result["reasons"], json!({"the server doesn't compress": 3}));
    let (code, result) = load(&format!(
        "idle --url http://{}/x/connection/sse --transport sse --connections 2 --duration 10ms",
        node.address
    ));
    assert_eq!((code, &result["connections"]["failed"]), (1, &json!(2)));
    assert_eq!(result["reasons"], json!({"request: status 404": 2}));
    // Losses of polls are reported.
    let (code, result) = load(&format!(
        "idle --url {url} --transport long_poll --connections 2 --subscribe none:x --duration 10ms"
    ));
    assert_eq!(code, 1);
    assert_eq!(result["reasons"], json!({"connect refused: 102 unknown channel": 2}));
}

#[path = "load/agents.rs"]
mod agents;
#[path = "load/hubs.rs"]
mod hubs;
#[path = "load/scenarios.rs"]
mod scenarios;
