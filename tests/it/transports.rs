//! Clients without a WebSocket: responses that go on, server-sent events, their up-link, and one-way
//! connections (client protocol, 1 and 5 to 8).

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::*;

const TRANSPORTS: &str = r#"
[http_stream]
enabled = true
[sse]
enabled = true
[uni_websocket]
enabled = true
[uni_http_stream]
enabled = true
[uni_sse]
enabled = true
[http_api]
key = "k"
[[channel.namespaces]]
name = "kept"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
force_recovery = true
history_size = 100
history_ttl = "10m"
"#;

fn node() -> Node {
    Node::open_with(TRANSPORTS, &[])
}

/// How a connection without a WebSocket is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    HttpStream,
    Sse,
    UniHttpStream,
    UniSse,
}

const TWO_WAY: [Over; 2] = [Over::HttpStream, Over::Sse];
const ONE_WAY: [Over; 2] = [Over::UniHttpStream, Over::UniSse];

impl Over {
    fn path(self) -> &'static str {
        match self {
            Self::HttpStream => "/connection/http_stream",
            Self::Sse => "/connection/sse",
            Self::UniHttpStream => "/connection/uni_http_stream",
            Self::UniSse => "/connection/uni_sse",
        }
    }

    fn is_events(self) -> bool {
        matches!(self, Self::Sse | Self::UniSse)
    }

    /// The request that begins with `asked`.
    fn request(self, asked: &str, headers: &[&str]) -> String {
        if !self.is_events() {
            return post(self.path(), headers, asked);
        }
        let encoded: String = asked.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let path = self.path();
        format!("GET {path}?cf_connect={encoded} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")
    }
}

/// A connection over one of them.
struct Stream {
    over: Over,
    raw: Raw,
    head: Response,
    lines: std::collections::VecDeque<String>,
    /// Chunks that say when an event source comes back.
    retries: Vec<String>,
    /// Of the connect result.
    connect: Value,
}

impl Stream {
    fn open(node: &Node, over: Over, asked: &str, headers: &[&str]) -> Self {
        let mut raw = node.raw();
        raw.send(over.request(asked, headers).as_bytes());
        let head = raw.response();
        assert_eq!(head.status, 200);
        let (lines, retries, connect) = Default::default();
        Self { over, raw, head, lines, retries, connect }
    }

    /// A two-way client that is connected.
    fn connected(node: &Node, over: Over) -> Self {
        let mut stream = Self::open(node, over, "{\"id\":1,\"connect\":{}}", &[]);
        stream.connect = stream.next()["connect"].take();
        stream
    }

    /// The next message or field of an event; `None` at the end of the response.
    fn line(&mut self) -> Option<String> {
        while self.lines.is_empty() {
            let chunk = String::from_utf8(self.raw.chunk()?).unwrap();
            match self.over.is_events() {
                false => {
                    assert!(chunk.ends_with('\n'), "{chunk:?}");
                    self.lines.extend(chunk.lines().map(str::to_owned));
                }
                true if chunk.starts_with("retry: ") => self.retries.push(chunk),
                true => {
                    let whole = chunk.strip_suffix("\n\n").expect("whole events");
                    self.lines.extend(whole.split("\n\n").map(str::to_owned));
                }
            }
        }
        self.lines.pop_front()
    }

    /// The next message.
    fn next(&mut self) -> Value {
        let line = self.line().expect("the response goes on");
        let json = match self.over.is_events() {
            true => line.strip_prefix("data: ").unwrap_or_else(|| panic!("{line}")),
            false => &line,
        };
        serde_json::from_str(json).unwrap()
    }

    /// The id of the next event, which carries nothing else.
    fn id(&mut self) -> String {
        let event = self.line().expect("the response goes on");
        id_of(&event).unwrap_or_else(|| panic!("{event}"))
    }

    /// A request to the up-link with these commands.
    fn emulation(&self, commands: &[Value]) -> String {
        let data = commands.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
        let (session, node) = (&self.connect["session"], &self.connect["node"]);
        json!({"session": session, "node": node, "data": data}).to_string()
    }

    /// Sends a command up.
    fn say(&self, node: &Node, commands: &[Value]) {
        let mut raw = node.raw();
        let answer = raw.post("/emulation", &[], &self.emulation(commands));
        assert_eq!((answer.status, answer.body.as_str()), (204, ""));
    }

    /// Asserts that the connection ends for this reason: a push, the end of the response, the FIN.
    fn is_ended(&mut self, code: u16, reason: &str) {
        let push = json!({"disconnect": {"code": code, "reason": reason}});
        let expected = match TWO_WAY.contains(&self.over) {
            true => json!({"push": push}),
            false => push,
        };
        assert_eq!(self.next(), expected);
        assert_eq!(self.line(), None);
        self.raw.ends();
    }
}

/// The id of an event that carries nothing else.
fn id_of(event: &str) -> Option<String> {
    let id = event.strip_prefix("event: position\nid: ")?.strip_suffix("\ndata:")?;
    Some(id.to_owned())
}

#[test]
fn a_session_over_a_response_and_its_up_link() {
    let node = node();
    for over in TWO_WAY {
        let mut ann = Stream::connected(&node, over);
        let kind =
            if over.is_events() { "text/event-stream; charset=utf-8" } else { "application/json" };
        assert_eq!(ann.head.header("content-type"), Some(kind));
        for (name, value) in [
            ("x-accel-buffering", "no"),
            ("cache-control", "private, no-cache, no-store, must-revalidate, max-age=0"),
            ("pragma", "no-cache"),
            ("expire", "0"),
            ("connection", "close"),
            ("transfer-encoding", "chunked"),
        ] {
            assert_eq!(ann.head.header(name), Some(value), "{over:?}");
        }
        let connect = ann.connect.clone();
        assert_eq!((&connect["ping"], &connect["pong"]), (&json!(600), &json!(true)));
        let ids = [&connect["client"], &connect["session"], &connect["node"]];
        let ids = ids.map(|id| id.as_str().expect("a UUID").to_owned());
        assert!(ids.iter().all(|id| like(id, "*-*-4*-*-*") && id.len() == 36), "{ids:?}");
        assert!(ids[0] != ids[1] && ids[1] != ids[2]);

        let channel = format!("kept:{over:?}");
        ann.say(&node, &[json!({"id": 2, "subscribe": {"channel": channel}})]);
        let reply = ann.next();
        assert_eq!(reply["subscribe"]["recoverable"], true);
        let epoch = &reply["subscribe"]["epoch"];
        // Several commands in one request are handled in order; replies come down the stream.
        ann.say(
            &node,
            &[
                json!({"id": 3, "publish": {"channel": channel, "data": {"text": "a\r\n"}}}),
                json!({"id": 4, "publish": {"channel": channel, "data": [2]}}),
                json!({"id": 5, "history": {"channel": "none:x"}}),
            ],
        );
        let mut got: Vec<Value> = (0..5).map(|_| ann.next()).collect();
        got.sort_by_key(|message| message["id"].as_u64());
        let offsets = got[..2].iter().map(|push| push["push"]["pub"]["offset"].as_u64());
        assert!(offsets.eq([Some(1), Some(2)]), "{got:?}");
        assert_eq!(got[0]["push"]["pub"]["epoch"], *epoch);
        assert_eq!(got[2..4], [json!({"id": 3, "publish": {}}), json!({"id": 4, "publish": {}})]);
        assert_eq!(got[4]["error"]["code"], 102);
        // Nobody else can close it, and with the session as its secret it is closed.
        let other = json!({"user": "", "session": ids[0]});
        assert_eq!(node.call("disconnect", other), json!({"result": {}}));
        let own =
            json!({"user": "", "session": ids[1], "disconnect": {"code": 4000, "reason": "go"}});
        assert_eq!(node.call("disconnect", own), json!({"result": {}}));
        ann.is_ended(4000, "go");
        // Input of the up-link is accepted now, and has no effect.
        ann.say(&node, &[json!({"id": 6, "publish": {"channel": channel, "data": 1}})]);
    }
    node.until_is("slots_in_use", 0);
    node.until_is("clients", 0);
}

#[test]
fn payloads_with_line_ends_stay_whole() {
    let node = node();
    for over in [Over::HttpStream, Over::Sse] {
        let mut ann = Stream::connected(&node, over);
        ann.say(&node, &[json!({"id": 2, "subscribe": {"channel": "lines"}})]);
        ann.next();
        let mut raw = node.raw();
        // White space of all kinds between the tokens of a payload.
        let body = "{\"channel\":\"lines\",\"data\":{\r\"a\"\r\n:\n\t1 }}";
        assert_eq!(raw.post("/api/publish", &[KEY], body).status, 200);
        assert_eq!(ann.next()["push"]["pub"]["data"], json!({"a": 1}), "{over:?}");
    }
}

#[test]
fn pongs_come_up_the_up_link() {
    let flags = ["--client.ping_interval", "300ms", "--client.pong_timeout", "200ms"];
    let node = Node::open_with(TRANSPORTS, &flags);
    for over in TWO_WAY {
        let mut ann = Stream::connected(&node, over);
        for _ in 0..2 {
            assert_eq!(ann.next(), json!({}));
            ann.say(&node, &[json!({})]);
        }
        assert_eq!(ann.next(), json!({}));
        ann.is_ended(3012, "no pong");
    }
    for over in ONE_WAY {
        let mut bob = Stream::open(&node, over, "{}", &[]);
        let connect = bob.next()["connect"].take();
        assert!(
            connect["ping"].is_number() && connect["pong"].is_null() && connect["node"].is_null()
        );
        for _ in 0..3 {
            assert_eq!(bob.next(), json!({}), "{over:?}");
        }
    }
}

#[test]
fn commands_of_the_first_body_wait_for_connect_and_go_on() {
    let node = node();
    for over in TWO_WAY {
        let asked = "{\"id\":1,\"connect\":{}}\n{\"id\":2,\"subscribe\":{\"channel\":\"a\"}}\n\
                     {\"id\":3,\"publish\":{\"channel\":\"a\",\"data\":1}}\n";
        let mut ann = Stream::open(&node, over, asked, &[]);
        assert!(ann.next()["connect"].is_object());
        let mut got: Vec<Value> = (0..3).map(|_| ann.next()).collect();
        got.sort_by_key(|message| message["id"].as_u64());
        assert_eq!(got[0]["push"]["pub"]["data"], 1);
        assert_eq!(got[1..], [json!({"id": 2, "subscribe": {}}), json!({"id": 3, "publish": {}})]);
    }
}

#[test]
fn a_stream_in_protobuf() {
    let node = node();
    let kind = "Content-Type: application/octet-stream";
    // connect {} with id 1, subscribe {channel: "test"} with id 2 (client protocol, 27).
    let asked = b"\x04\x08\x01\x22\x00\x0a\x08\x02\x2a\x06\x0a\x04test";
    let mut raw = node.raw();
    let head = format!(
        "POST /connection/http_stream HTTP/1.1\r\nHost: localhost\r\n{kind}\r\nContent-Length: {}\r\n\r\n",
        asked.len()
    );
    raw.send(&[head.as_bytes(), asked].concat());
    assert_eq!(raw.response().header("content-type"), Some("application/octet-stream"));
    let first = raw.chunk().unwrap();
    let message = usize::from(first[0]) + (usize::from(first[1]) << 7) - 0x80;
    assert_eq!(first[2..6], [0x08, 1, 0x2a, first[5]], "a reply with a connect result");
    let text = String::from_utf8_lossy(&first).into_owned();
    // The two ids of 36 bytes: session (9) and node (10).
    let session_at = first.windows(2).position(|two| two == [0x4a, 36]).unwrap() + 2;
    let node_at = first.windows(2).position(|two| two == [0x52, 36]).unwrap() + 2;
    let id = |at: usize| String::from_utf8(first[at..at + 36].to_vec()).unwrap();
    let (session, name) = (id(session_at), id(node_at));
    // Whole messages only, however many share a chunk.
    let mut rest = first[2 + message..].to_vec();
    while rest.is_empty() {
        rest = raw.chunk().unwrap();
    }
    assert_eq!(rest, b"\x04\x08\x02\x32\x00", "{text}");
    // EmulationRequest {node, session, data: publish {channel: "test", data: {}}, id 3}.
    let publish = b"\x0e\x08\x03\x3a\x0a\x0a\x04test\x12\x02{}";
    let mut body = vec![0x0a, 36];
    body.extend(name.as_bytes());
    body.extend([0x12, 36]);
    body.extend(session.as_bytes());
    body.extend([0x1a, publish.len() as u8]);
    body.extend(publish);
    let send = |kind: &str, body: &[u8]| {
        let head = format!(
            "POST /emulation HTTP/1.1\r\nHost: localhost\r\n{kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut raw = node.raw();
        raw.send(&[head.as_bytes(), body].concat());
        raw.response().status
    };
    assert_eq!(send(kind, &body), 204);
    let mut got = Vec::new();
    let reply = b"\x04\x08\x03\x42\x00";
    let has = |got: &[u8], part: &[u8]| got.windows(part.len()).any(|found| found == part);
    // The reply and the push, in whatever order.
    while !(has(&got, reply) && has(&got, b"\x04test")) {
        got.extend(raw.chunk().unwrap());
    }
    // JSON commands for it are none.
    let json = json!({"session": session, "node": name, "data": "{}"}).to_string();
    assert_eq!(send("Content-Type: application/json", json.as_bytes()), 400);
    assert_eq!(send(kind, json.as_bytes()), 400);
}

#[test]
fn http_1_0_gets_bodies_without_chunks() {
    let node = node();
    for over in [Over::HttpStream, Over::Sse, Over::UniHttpStream, Over::UniSse] {
        let asked = if TWO_WAY.contains(&over) { "{\"id\":1,\"connect\":{}}" } else { "{}" };
        let mut raw = node.raw();
        raw.send(over.request(asked, &[]).replace("HTTP/1.1", "HTTP/1.0").as_bytes());
        let head = raw.response();
        assert_eq!((head.status, head.header("transfer-encoding")), (200, None));
        assert_eq!(head.header("connection"), Some("close"));
        node.until_is("sessions_open", 1);
        assert_eq!(node.call("disconnect", json!({"user": ""})), json!({"result": {}}));
        let body = String::from_utf8(raw.rest()).unwrap();
        let (start, end) = match over.is_events() {
            true => ("retry: ", "}\n\n"),
            false => ("{", "}\n"),
        };
        assert!(body.starts_with(start) && body.ends_with(end), "{over:?}: {body:?}");
        assert!(body.contains("\"connect\":{") && body.contains("\"disconnect\":{"), "{body:?}");
    }
}

#[test]
fn one_way_connections_get_pushes() {
    let node = node();
    for over in ONE_WAY {
        let channel = format!("kept:{over:?}");
        let token = token(json!({"sub": "ann", "channels": [channel]}));
        let asked = json!({"token": token, "name": "device"}).to_string();
        let mut ann = Stream::open(&node, over, &asked, &[]);
        let connect = ann.next()["connect"].take();
        let sub = &connect["subs"][&channel];
        assert_eq!(sub["recoverable"], true);
        let epoch = sub["epoch"].as_str().unwrap().to_owned();
        if over.is_events() {
            assert_eq!(ann.id(), json!({&channel: {"epoch": epoch}}).to_string());
        }
        let mut bob = node.connected_as("bob");
        bob.publish(&channel, json!("x"));
        let push = json!({"channel": channel, "pub": {
            "data": "x", "offset": 1, "epoch": epoch,
            "info": {"user": "bob", "client": "?"},
        }});
        let mut got = ann.next();
        got["pub"]["info"]["client"] = json!("?");
        assert_eq!(got, push);
        if over.is_events() {
            let id: Value = serde_json::from_str(&ann.id()).unwrap();
            assert_eq!(id, json!({&channel: {"offset": 1, "epoch": epoch}}));
        }
        let user = json!({"user": "ann"});
        let with = |key: &str, value: Value| {
            let mut all = user.clone();
            all[key] = value;
            all
        };
        node.call("subscribe", with("channel", json!("plain")));
        assert_eq!(ann.next(), json!({"channel": "plain", "subscribe": {}}));
        node.call("unsubscribe", with("channel", json!("plain")));
        let unsubscribe = json!({"code": 2000, "reason": "server unsubscribe"});
        assert_eq!(ann.next(), json!({"channel": "plain", "unsubscribe": unsubscribe}));
        node.call("refresh", with("expire_at", json!(now() + 100)));
        assert!(ann.next()["refresh"]["ttl"].as_u64().unwrap() <= 100);
        node.call("disconnect", user.clone());
        ann.is_ended(3503, "force disconnect");
    }
}

#[test]
fn an_event_source_comes_back_with_its_last_id() {
    let node = node();
    let channels = ["kept:a", "kept:b\"", "live"];
    let subs = |channels: &[&str]| -> Value {
        channels.iter().map(|channel| ((*channel).to_owned(), json!({}))).collect()
    };
    let asked = json!({"subs": subs(&channels)}).to_string();
    let publish = |channel: &str, data: Value| {
        node.call("publish", json!({"channel": channel, "data": data}));
    };
    publish("kept:a", json!(1));
    let mut first = Stream::open(&node, Over::UniSse, &asked, &[]);
    first.next();
    let begun = first.id();
    publish("kept:a", json!(2));
    assert_eq!(first.next()["pub"]["data"], 2);
    let id = first.id();
    // A channel without history has no place in it.
    publish("live", json!("x"));
    first.next();
    assert_eq!(first.id(), id);
    for n in 3..6 {
        publish("kept:a", json!(n));
    }
    publish("kept:b\"", json!("y"));
    // The sent messages are behind the positions of its id.
    let mut seen = vec![json!(2)];
    while seen.len() < 5 {
        let line = first.line().unwrap();
        match id_of(&line) {
            Some(_) => {}
            None => {
                let push: Value = serde_json::from_str(&line["data: ".len()..]).unwrap();
                seen.push(push["pub"]["data"].clone());
            }
        }
    }
    let last = first.id();
    drop(first);
    node.until_is("sessions_open", 0);
    publish("kept:a", json!("missed"));
    let come_back = |id: &str| {
        let header = format!("Last-Event-ID: {id}");
        let mut again = Stream::open(&node, Over::UniSse, &asked, &[&header]);
        again.next()["connect"]["subs"].take()
    };
    let data = |sub: &Value| -> Vec<Value> {
        let publications = sub["publications"].as_array();
        publications.into_iter().flatten().map(|of| of["data"].clone()).collect()
    };
    let subs = come_back(&begun);
    assert_eq!(subs["kept:a"]["recovered"], true);
    assert_eq!(data(&subs["kept:a"]), [json!(2), json!(3), json!(4), json!(5), json!("missed")]);
    assert_eq!(data(&subs["kept:b\""]), [json!("y")]);
    let subs = come_back(&id);
    assert_eq!(data(&subs["kept:a"]).len(), 4);
    let subs = come_back(&last);
    assert_eq!((data(&subs["kept:a"]), data(&subs["kept:b\""])), (vec![json!("missed")], vec![]));
    // An id of another life, of no life, and none of ours.
    let subs = come_back(&begun.replace("epoch\":\"", "epoch\":\"x"));
    assert_eq!((&subs["kept:a"]["recovered"], data(&subs["kept:a"]).len()), (&Value::Null, 0));
    for nonsense in ["17", "{\"kept:a\":7}", "{", "{\"other:x\":{}}", "\u{1}"] {
        let header = format!("Last-Event-ID: {nonsense}");
        let mut raw = node.raw();
        raw.send(Over::UniSse.request(&asked, &[&header]).as_bytes());
        let status = raw.response().status;
        assert!(status == 200 || (status == 400 && nonsense == "\u{1}"), "{nonsense:?}: {status}");
    }
}

#[test]
fn a_one_way_websocket() {
    let file = "[[channel.namespaces]]\nname = \"kept\"\nallow_subscribe_for_client = true\n\
                allow_subscribe_for_anonymous = true\n";
    let node = Node::open_with(
        &format!("[uni_websocket]\nenabled = true\n[http_api]\nkey = \"k\"\n{file}"),
        &["--client.ping_interval", "300ms", "--client.pong_timeout", "100ms"],
    );
    let mut ann = Client::open(&node, "/connection/uni_websocket");
    ann.send("{\"subs\":{\"news\":{}}}");
    let text = ann.expect("{\"connect\":{*}}");
    let connect: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(connect["connect"]["subs"], json!({"news": {}}));
    assert!(like(connect["connect"]["session"].as_str().unwrap(), "*-*-4*-*-*"));
    // More from it means nothing; pings come both ways, and no answer is needed.
    ann.send("anything");
    let mut seen = Vec::new();
    while seen.len() < 4 {
        match ann.next() {
            Got::Line(line) => {
                assert_eq!(line, "{}");
                seen.push("message");
            }
            Got::PingFrame => seen.push("frame"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, ["message", "frame", "message", "frame"]);
    for n in 0..3 {
        node.call("publish", json!({"channel": "news", "data": n}));
    }
    let mut data = Vec::new();
    while data.len() < 3 {
        if let Got::Line(line) = ann.next()
            && line != "{}"
        {
            // One push in each message.
            let push: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(push["channel"], "news");
            data.push(push["pub"]["data"].clone());
        }
    }
    assert_eq!(data, [0, 1, 2]);
    node.call("disconnect", json!({"user": ""}));
    let end = loop {
        match ann.next() {
            Got::Line(line) if line != "{}" => break line,
            Got::Close(..) | Got::Lost => panic!("no push before the end"),
            _ => {}
        }
    };
    assert_eq!(end, "{\"disconnect\":{\"code\":3503,\"reason\":\"force disconnect\"}}");
    ann.is_closed(3503, "force disconnect");
    // The connect request in the URL, and one that is none.
    let mut bob = Client::open(&node, "/connection/uni_websocket?cf_connect=%7B%7D");
    bob.expect("{\"connect\":{*}}");
    let mut bad = Client::open(&node, "/connection/uni_websocket");
    bad.send("[]");
    bad.expect("{\"disconnect\":{\"code\":3501,\"reason\":\"bad request\"}}");
    bad.is_closed(3501, "bad request");
    // One in the URL that is none is refused before there is a WebSocket.
    for asked in ["%5B%5D", "x", "%7B%22token%22%3A1%7D"] {
        let path = format!("/connection/uni_websocket?cf_connect={asked}");
        let mut raw = node.raw();
        raw.send(upgrade(&path, &[]).as_bytes());
        assert_eq!(raw.response().status, 400, "{asked}");
    }
    // A close with a code of RFC 6455 is in the close frame only.
    let mut long = Client::open(&node, "/connection/uni_websocket?cf_connect=");
    long.expect("{\"connect\":{*}}");
    long.send(&"x".repeat(65_537));
    let end = loop {
        match long.next() {
            Got::Line(line) => assert_eq!(line, "{}"),
            Got::PingFrame => {}
            end => break end,
        }
    };
    assert!(matches!(end, Got::Close(1009, _)), "{end:?}");
    // Both ends said by options that switch them off.
    let flags = ["[uni_websocket]\nenabled = true\ndisable_disconnect_push = true\n\
                  disable_closing_handshake = true\njoin_push_messages = true\n"];
    let node = Node::open_with(&(flags[0].to_owned() + "[http_api]\nkey = \"k\"\n"), &[]);
    let mut eve = Client::open(&node, "/connection/uni_websocket?cf_connect=");
    eve.expect("{\"connect\":{*}}");
    node.call("disconnect", json!({"user": ""}));
    assert_eq!(eve.next(), Got::Lost);
}

#[test]
fn errors_of_a_one_way_connect() {
    let transforms = "
[client]
allow_anonymous_connect_without_token = false
[client.connect_code_to_unidirectional_disconnect]
enabled = true
transforms = [{code = 102, to = {code = 4102, reason = 'no such'}}]
[uni_http_stream.connect_code_to_http_response]
enabled = true
transforms = [{code = 109, to = {status_code = 401, body = '{\"expired\":true}'}}, {code = 3500, to = {status_code = 403}}]
";
    let base = "[uni_http_stream]\nenabled = true\n[uni_sse]\nenabled = true\n[uni_websocket]\nenabled = true\n\
                [client.token]\nhmac_secret_key = \"secret\"\n";
    let expired = json!({"token": token(json!({"sub": "a", "exp": 1}))}).to_string();
    let nowhere = json!({"token": token(json!({"sub": "a", "channels": ["nope:x"]}))}).to_string();
    let forged = json!({"token": token_by("other", json!({"sub": "a"}))}).to_string();
    let node = Node::start(&(base.to_owned() + transforms), &[]);
    for (asked, code, reason) in [
        (&expired, 3005, "connection expired"),
        (&nowhere, 4102, "no such"),
        (&forged, 3500, "invalid token"),
        (&"{}".to_owned(), 3501, "bad request"),
    ] {
        let mut stream = Stream::open(&node, Over::UniSse, asked, &[]);
        stream.is_ended(code, reason);
        let mut socket = Client::open(&node, "/connection/uni_websocket");
        socket.send(asked);
        socket.expect("{\"disconnect\":*}");
        socket.is_closed(code, reason);
    }
    let answer = |asked: &str| {
        let mut raw = node.raw();
        let answer = raw.post("/connection/uni_http_stream", &[], asked);
        (answer.status, answer.body)
    };
    assert_eq!(answer(&expired), (401, "{\"expired\":true}".into()));
    assert_eq!(answer(&forged), (403, String::new()));
    // A code without a response of its own goes the usual way.
    Stream::open(&node, Over::UniHttpStream, &nowhere, &[]).is_ended(4102, "no such");
    let good = json!({"token": token(json!({"sub": "a"}))}).to_string();
    let mut stream = Stream::open(&node, Over::UniHttpStream, &good, &[]);
    assert!(stream.next()["connect"].is_object());
    drop(stream);
    node.until_is("slots_in_use", 0);
    node.until_is("clients", 0);
}

#[test]
fn errors_of_a_two_way_connect() {
    let node =
        Node::open_with(&(TRANSPORTS.to_owned() + "[roost]\nclose_timeout = \"300ms\"\n"), &[]);
    for over in TWO_WAY {
        let expired = token(json!({"sub": "a", "exp": 1}));
        let asked = json!({"id": 1, "connect": {"token": expired}}).to_string();
        let asked = asked + "\n{\"id\":2,\"subscribe\":{\"channel\":\"a\"}}";
        let mut stream = Stream::open(&node, over, &asked, &[]);
        assert_eq!(stream.next()["error"]["code"], 109);
        // The client is to close; if it doesn't, the response ends.
        assert_eq!(stream.line(), None);
        stream.raw.ends();
        for (asked, code, reason) in [
            ("{\"id\":1,\"connect\":{\"token\":\"x\"}}", 3500, "invalid token"),
            ("{\"id\":1,\"subscribe\":{\"channel\":\"a\"}}", 3501, "bad request"),
            ("{", 3501, "bad request"),
            ("", 3501, "bad request"),
        ] {
            Stream::open(&node, over, asked, &[]).is_ended(code, reason);
        }
    }
    node.is_healthy();
}

#[test]
fn requests_that_are_none() {
    let node = node();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let long = "x".repeat(65_537);
    let status = |request: String| {
        let mut raw = node.raw();
        raw.send(request.as_bytes());
        raw.response()
    };
    for (request, expected, allow) in [
        (get("/connection/http_stream"), 405, Some("POST, OPTIONS")),
        (get("/connection/uni_http_stream"), 405, Some("POST, OPTIONS")),
        (get("/emulation"), 405, Some("POST, OPTIONS")),
        (get("/connection/sse").replace("GET", "PUT"), 405, Some("GET, POST, OPTIONS")),
        (get("/connection/sse"), 400, None),
        (get("/connection/uni_sse?cf_connect=%5B%5D"), 400, None),
        (get("/connection/uni_sse?cf_connect=%7B%22token%22%3A1%7D"), 400, None),
        (get("/connection/sse/x"), 404, None),
        (post("/connection/uni_http_stream", &[], ""), 400, None),
        (post("/connection/uni_http_stream", &[], "1"), 400, None),
        (post("/connection/uni_http_stream", &[], "{\"subs\":[]}"), 400, None),
        (post("/connection/uni_sse", &[], "{"), 400, None),
        (post("/connection/http_stream", &[], &long), 413, None),
        (post("/connection/sse", &[], &long), 413, None),
        (post("/emulation", &[], &long), 413, None),
        (post("/emulation", &[], "{"), 400, None),
        (post("/emulation", &[], "[]"), 400, None),
        (post("/emulation", &[], "{\"session\":1}"), 400, None),
        (post("/emulation", &[], "{}"), 404, None),
        (post("/emulation", &[], "{\"node\":\"other\"}"), 404, None),
        (post("/emulation", &["Transfer-Encoding: chunked"], "{}"), 400, None),
    ] {
        let answer = status(request.clone());
        let shown = &request[..request.len().min(80)];
        assert_eq!((answer.status, answer.header("allow")), (expected, allow), "{shown}");
    }
    // A session that nobody has, of this node.
    let ann = Stream::connected(&node, Over::HttpStream);
    let own = ann.connect["node"].as_str().unwrap();
    for session in [
        "",
        "x",
        ann.connect["client"].as_str().unwrap(),
        &ann.connect["session"].as_str().unwrap().to_uppercase(),
    ] {
        let body = json!({"node": own, "session": session, "data": "{"}).to_string();
        let mut raw = node.raw();
        assert_eq!(raw.post("/emulation", &[], &body).status, 204, "{session}");
    }
    node.is_healthy();
}

#[test]
fn commands_that_are_none_close_their_own_connection() {
    let node = node();
    for over in TWO_WAY {
        for data in [json!("{"), json!(""), json!("{}\n\n{}"), json!("{\"id\":2,\"connect\":{}}")] {
            let mut ann = Stream::connected(&node, over);
            let (own, session) = (&ann.connect["node"], &ann.connect["session"]);
            let body = json!({"node": own, "session": session, "data": data}).to_string();
            let mut raw = node.raw();
            assert_eq!(raw.post("/emulation", &[], &body).status, 204);
            ann.is_ended(3501, "bad request");
        }
    }
    node.is_healthy();
}

#[test]
fn requests_to_the_up_link_share_a_connection() {
    let node = node();
    let mut ann = Stream::connected(&node, Over::HttpStream);
    ann.say(&node, &[json!({"id": 2, "subscribe": {"channel": "a"}})]);
    ann.next();
    let mut raw = node.raw();
    // Pipelined: all are answered, in order, and so handled.
    let requests: String = (0..20)
        .map(|n| {
            let publish = json!({"id": n + 3, "publish": {"channel": "a", "data": n}});
            post("/emulation", &[], &ann.emulation(&[publish]))
        })
        .collect();
    raw.send(requests.as_bytes());
    for _ in 0..20 {
        let answer = raw.response();
        assert_eq!((answer.status, answer.header("connection")), (204, None));
    }
    let mut data = Vec::new();
    while data.len() < 20 {
        let message = ann.next();
        if let Some(value) = message["push"]["pub"]["data"].as_u64() {
            data.push(value);
        }
    }
    assert!(data.into_iter().eq(0..20));
    let mut ann = Stream::connected(&node, Over::HttpStream);
    // A refused one between two, and other endpoints of the port on the same connection.
    let good = post("/emulation", &[], &ann.emulation(&[json!({"id": 30, "rpc": {}})]));
    let other = post("/emulation", &[], "{}");
    let health = "GET /connection/init HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let preflight = "OPTIONS /emulation HTTP/1.1\r\nHost: localhost\r\n\r\n";
    raw.send([&good, &other, preflight, &good, health].concat().as_bytes());
    let statuses: Vec<u16> = (0..5).map(|_| raw.response().status).collect();
    assert_eq!(statuses, [204, 404, 204, 204, 404]);
    raw.ends();
    // Very many at once take no more of the node than a few.
    let mut raw = node.raw();
    let many = "OPTIONS /emulation HTTP/1.1\r\nHost: a\r\n\r\n".repeat(5_000);
    let mut sender = raw.stream.try_clone().unwrap();
    let sending =
        std::thread::spawn(move || std::io::Write::write_all(&mut sender, many.as_bytes()));
    for _ in 0..5_000 {
        assert_eq!(raw.response().status, 204);
    }
    sending.join().unwrap().unwrap();
    // A client that requests it gets the end behind the answer.
    let mut raw = node.raw();
    raw.send(post("/emulation", &["Connection: close"], &ann.emulation(&[])).as_bytes());
    assert_eq!(raw.response().header("connection"), Some("close"));
    raw.ends();
    assert_eq!([ann.next()["id"].take(), ann.next()["id"].take()], [30, 30]);
    ann.is_ended(3501, "bad request");
}

#[test]
fn requests_in_pieces_are_the_same() {
    let node = node();
    let publish = |id: u32| json!({"id": id, "publish": {"channel": "a", "data": "x".repeat(50)}});
    let mut raw = node.raw();
    let body = "{\"id\":1,\"connect\":{}}\n{\"id\":2,\"subscribe\":{\"channel\":\"a\"}}";
    for byte in post("/connection/http_stream", &[], body).as_bytes() {
        raw.send(&[*byte]);
    }
    let head = raw.response();
    assert_eq!(head.status, 200);
    let (lines, retries, connect) = Default::default();
    let mut ann = Stream { over: Over::HttpStream, raw, head, lines, retries, connect };
    ann.connect = ann.next()["connect"].take();
    ann.next();
    // Chunked, with an expectation.
    let body = ann.emulation(&[publish(3)]);
    let mut raw = node.raw();
    let head = "POST /emulation HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\
                Expect: 100-continue\r\n\r\n";
    raw.send(head.as_bytes());
    assert_eq!(raw.response().status, 100);
    for part in body.as_bytes().chunks(7) {
        raw.send(format!("{:x}\r\n", part.len()).as_bytes());
        raw.send(part);
        raw.send(b"\r\n");
    }
    raw.send(b"0\r\n\r\n");
    assert_eq!(raw.response().status, 204);
    let got = [ann.next(), ann.next()];
    assert!(got.iter().any(|message| message["id"] == 3), "{got:?}");
}

#[test]
fn pages_of_other_origins() {
    let node = Node::open_with(
        &(TRANSPORTS.to_owned() + "[init]\nenabled = true\n"),
        &["--client.allowed_origins", "https://app.example"],
    );
    for (origin, allowed) in [("https://app.example", true), ("https://evil.example", false)] {
        let origin_header = format!("Origin: {origin}");
        let check = |answer: &Response| {
            let expected = allowed.then_some(origin);
            assert_eq!(answer.header("access-control-allow-origin"), expected);
            let credentials = answer.header("access-control-allow-credentials");
            assert_eq!(credentials, allowed.then_some("true"));
        };
        let status = |allowed_status| if allowed { allowed_status } else { 403 };
        for over in [Over::HttpStream, Over::Sse, Over::UniHttpStream, Over::UniSse] {
            let asked = if TWO_WAY.contains(&over) { "{\"id\":1,\"connect\":{}}" } else { "{}" };
            let mut raw = node.raw();
            raw.send(over.request(asked, &[&origin_header]).as_bytes());
            let answer = raw.response();
            assert_eq!(answer.status, status(200), "{over:?}");
            check(&answer);
        }
        let mut raw = node.raw();
        for path in ["/connection/http_stream", "/emulation"] {
            raw.send(
                format!(
                    "OPTIONS {path} HTTP/1.1\r\nHost: localhost\r\n{origin_header}\r\n\
                     Access-Control-Request-Headers: content-type\r\n\r\n"
                )
                .as_bytes(),
            );
            let answer = raw.response();
            assert_eq!(answer.status, 204);
            check(&answer);
            assert_eq!(answer.header("access-control-max-age"), Some("300"));
            assert_eq!(answer.header("access-control-allow-methods"), Some("POST, OPTIONS"));
            let headers = answer.header("access-control-allow-headers");
            assert_eq!(headers, allowed.then_some("content-type"));
        }
        let init =
            format!("GET /connection/init HTTP/1.1\r\nHost: localhost\r\n{origin_header}\r\n\r\n");
        raw.send(init.as_bytes());
        let answer = raw.response();
        assert_eq!((answer.status, answer.body.as_str()), (200, "{}"));
        check(&answer);
        // Refusals can be read, too.
        let answer = raw.post("/emulation", &[&origin_header], "{}");
        assert_eq!(answer.status, status(404));
        check(&answer);
        let answer = node.raw().post("/emulation", &[&origin_header], &"x".repeat(70_000));
        assert_eq!(answer.status, status(413));
        check(&answer);
    }
}

#[test]
fn limits_and_the_end_of_the_node() {
    let node = Node::open_with(TRANSPORTS, &["--client.connection_limit", "2"]);
    let mut ann = Stream::connected(&node, Over::HttpStream);
    let mut bob = Stream::open(&node, Over::UniSse, "{}", &[]);
    bob.next();
    let mut raw = node.raw();
    raw.send(Over::Sse.request("{\"id\":1,\"connect\":{}}", &[]).as_bytes());
    assert_eq!(raw.response().status, 503);
    raw.ends();
    // A client that sends on its response is not listened to, and one that leaves makes room.
    ann.raw.send(&vec![b'x'; 100_000]);
    node.until("what came to be ignored", |figures| figures["bytes_ignored"] == 100_000);
    bob.raw.finish();
    node.until_is("clients", 1);
    let mut eve = Stream::connected(&node, Over::Sse);
    node.signal(Signal::TERM);
    ann.is_ended(3001, "shutdown");
    eve.is_ended(3001, "shutdown");
    drop((ann, bob, eve));
    assert_eq!(node.ended().code, Some(0));
}

#[test]
fn a_slow_reader_ends_with_3008() {
    let node = Node::open_with(TRANSPORTS, &["--client.queue_max_size", "100000"]);
    for over in [Over::HttpStream, Over::UniSse] {
        let channel = format!("slow-{over:?}");
        let asked = match over {
            Over::HttpStream => format!(
                "{{\"id\":1,\"connect\":{{}}}}\n{{\"id\":2,\"subscribe\":{{\"channel\":\"{channel}\"}}}}"
            ),
            _ => json!({"subs": {&channel: {}}}).to_string(),
        };
        let before = node.figures()["closed_slow"];
        let mut slow = Stream::open(&node, over, &asked, &[]);
        node.until("the subscription", |figures| figures["subscriptions"] >= 1);
        let data = "x".repeat(60_000);
        let mut raw = node.raw();
        let body = json!({"channel": channel, "data": data}).to_string();
        while node.figures()["closed_slow"] == before {
            assert_eq!(raw.post("/api/publish", &[KEY], &body).status, 200);
        }
        // A message that had begun is whole, then comes the end.
        let mut last = Value::Null;
        while let Some(line) = slow.line() {
            let json = line.strip_prefix("data: ").unwrap_or(&line);
            if id_of(json).is_none() {
                last = serde_json::from_str(json).expect("whole messages");
            }
        }
        let end = json!({"code": 3008, "reason": "slow"});
        let push = if over == Over::HttpStream { &last["push"] } else { &last };
        assert_eq!(push["disconnect"], end, "{over:?}");
        slow.raw.ends();
        node.until_is("sessions_open", 0);
    }
}

/// The milliseconds of a `retry:` line.
fn retry_ms(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("retry: "));
    line.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}

#[test]
fn event_sources_get_a_retry_time() {
    let node = node();
    for (over, asked) in [(Over::UniSse, "{}"), (Over::Sse, "{\"id\":1,\"connect\":{}}")] {
        let mut all = std::collections::BTreeSet::new();
        for _ in 0..8 {
            let mut stream = Stream::open(&node, over, asked, &["Accept: text/event-stream"]);
            stream.line().expect("a connect");
            assert_eq!(stream.retries.len(), 1, "once, before all else");
            let ms = retry_ms(&stream.retries[0]);
            assert!((1_000..10_000).contains(&ms), "{ms}");
            all.insert(ms);
        }
        assert!(all.len() > 1, "{over:?}: not all in the same second");
    }
    // Other responses that go on have none.
    let mut stream = Stream::open(&node, Over::UniHttpStream, "{}", &[]);
    assert!(stream.line().is_some_and(|line| line.starts_with('{')));
}

#[test]
fn an_event_source_survives_a_refusal() {
    let node = Node::open_with(TRANSPORTS, &["--client.connection_limit", "1"]);
    let client = node.connected();
    let origin = "Origin: http://localhost";
    for over in [Over::UniSse, Over::Sse] {
        let before = node.figures()["busy_connection_limit"];
        let mut raw = node.raw();
        let accept = "Accept: text/event-stream";
        raw.send(over.request("{\"id\":1,\"connect\":{}}", &[accept, origin]).as_bytes());
        let answer = raw.response();
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
        assert!(answer.header("content-type").unwrap().starts_with("text/event-stream"));
        assert_eq!(answer.header("access-control-allow-origin"), Some("http://localhost"));
        assert!((1_000..10_000).contains(&retry_ms(&answer.body)), "{}", answer.body);
        raw.ends();
        assert_eq!(node.figures()["busy_connection_limit"], before + 1);
        // A client that is no event source gets a status.
        let mut raw = node.raw();
        raw.send(over.request("{\"id\":1,\"connect\":{}}", &["Accept: */*"]).as_bytes());
        assert_eq!(raw.response().status, 503);
    }
    // A request that is wrong stays so.
    let mut raw = node.raw();
    raw.send(
        "GET /connection/uni_sse?cf_connect=%5B HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n"
            .as_bytes(),
    );
    assert_eq!(raw.response().status, 400);
    drop(client);
}

/// While a node drains, and when its listener closes in the end, event sources come back later.
#[test]
fn an_event_source_survives_a_drain() {
    let flags = ["--drain-rate", "1", "--shards", "1"];
    let node = Node::open_with(TRANSPORTS, &flags);
    let clients: Vec<Client> = (0..3).map(|_| node.connected()).collect();
    node.signal(Signal::TERM);
    node.until("draining", |figures| figures["closed_shutdown"] > 0);
    let request = Over::UniSse.request("{}", &["Accept: text/event-stream"]);
    let mut raw = node.raw();
    raw.send(request.as_bytes());
    let answer = raw.response();
    assert_eq!(answer.status, 200);
    retry_ms(&answer.body);
    let mut raw = node.raw();
    raw.send(Over::UniSse.request("{}", &[]).as_bytes());
    assert_eq!(raw.response().status, 503);
    assert_eq!(node.figures()["busy_draining"], 2);
    drop(clients);
    assert_eq!(node.ended().code, Some(0));
}

#[test]
fn responses_that_go_on_say_that_their_connection_ends() {
    let node = node();
    for over in [Over::HttpStream, Over::Sse, Over::UniHttpStream, Over::UniSse] {
        for version in ["HTTP/1.1", "HTTP/1.0"] {
            let request = over.request("{}", &[]).replace("HTTP/1.1", version);
            let mut raw = node.raw();
            raw.send(request.as_bytes());
            let head = raw.response();
            assert_eq!(head.header("connection"), Some("close"), "{over:?} {version}");
            assert!(head.header("date").is_some());
        }
    }
}

#[test]
fn a_head_that_does_not_come_and_a_body_that_does_not() {
    let more = TRANSPORTS.to_owned() + "[roost]\nhandshake_timeout = \"300ms\"\n";
    let node = Node::open_with(&more, &[]);
    let mut raw = node.raw();
    raw.send(b"POST /emulation HTTP/1.1\r\nHost: loc");
    assert_eq!(raw.response().status, 408);
    let mut raw = node.raw();
    raw.stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    raw.send(b"POST /emulation HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{");
    assert_eq!(raw.response().status, 408);
    node.until_is("slots_in_use", 0);
}

#[test]
fn the_next_request_has_its_time_from_its_first_byte_on() {
    let more = TRANSPORTS.to_owned() + "[roost]\nhandshake_timeout = \"500ms\"\n";
    let node = Node::open_with(&more, &[]);
    let request = "OPTIONS /emulation HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut raw = node.raw();
    raw.send(request.as_bytes());
    assert_eq!(raw.response().status, 204);
    // Another one tells when that time is over.
    let late = || {
        let mut late = node.raw();
        late.send(b"OPTIONS /emu");
        assert_eq!(late.response().status, 408);
    };
    late();
    let (first, second) = request.split_at(10);
    raw.send(first.as_bytes());
    // The node has seen it when it has answered somebody who came behind it on each shard.
    for _ in 0..8 {
        let mut other = node.raw();
        other.send(request.as_bytes());
        assert_eq!(other.response().status, 204);
    }
    raw.send(second.as_bytes());
    assert_eq!(raw.response().status, 204);
    // It isn't without an end.
    raw.send(first.as_bytes());
    assert_eq!(raw.response().status, 408);
}
