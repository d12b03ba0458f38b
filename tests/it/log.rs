//! The log says why a request, a command or a connection was refused, and whose it was.

use serde_json::json;

use crate::harness::*;

#[test]
fn a_refused_origin_is_logged_with_the_allowed_ones() {
    let file = "client.allowed_origins = [\"https://good.example\"]";
    let node = Node::start(file, &[]);
    let mut raw = node.raw();
    raw.send(upgrade(CLIENTS, &["Origin: https://evil.example\u{1b}[2J"]).as_bytes());
    assert_eq!(raw.response().status, 400);
    node.until_logged(&["http.malformed", "code=400"]);
    let mut raw = node.raw();
    raw.send(upgrade(CLIENTS, &["Origin: https://evil.example"]).as_bytes());
    assert_eq!(raw.response().status, 403);
    let line = node.until_logged(&["request refused", "reason=\"http.origin\"", "code=403"]);
    assert!(line.contains("https://evil.example is not in client.allowed_origins"), "{line}");
    assert!(line.contains("(https://good.example)"), "{line}");
}

#[test]
fn a_flood_of_refusals_is_ten_lines_a_second_and_a_number() {
    let node = Node::open(&[]);
    for _ in 0..100 {
        let mut raw = node.raw();
        raw.send(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(raw.response().status, 404);
    }
    // Nothing more of the kind comes, and the number does all the same.
    node.until("all requests are accounted for", |_| {
        let errors = node.errors();
        let lines = errors.lines().filter(|line| line.contains("http.not_found"));
        let counts = lines.map(|line| match line.split_once("left_out=") {
            Some((_, count)) => count.trim().parse::<u64>().unwrap(),
            None => 1,
        });
        counts.sum::<u64>() == 100
    });
    let written = node.errors().matches("request refused").count();
    assert!(written < 100, "{}", node.errors());
}

#[test]
fn ordinary_connects_and_disconnects_are_logged_at_debug_only() {
    let node = Node::open(&["--log.level", "debug"]);
    let client = node.connected_as("42");
    let line = node.until_logged(&["client connected", "user=\"42\"", "client="]);
    assert!(line.contains("DEBUG"), "{line}");
    client.close();
    node.until_logged(&["client disconnected", "user=\"42\"", "client="]);

    let node = Node::open(&[]);
    node.connected_as("42").close();
    let mut raw = node.raw();
    raw.send(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n");
    node.until_logged(&["http.not_found"]);
    assert!(!node.errors().contains("client connected"));
}

#[test]
fn a_refused_token_is_logged_with_its_claim_and_never_with_the_token() {
    let node = Node::open(&[]);
    let late = json!({"sub": "42", "exp": now() - 60});
    let elsewhere = json!({"sub": "42", "channel": "news"});
    for (token, words) in [
        (token(json!({"sub": 42})), ["close.invalid_token", "code=3500", "sub: not a text"]),
        (token(elsewhere), ["close.invalid_token", "code=3500", "channel: a subscription token"]),
        (token_by("no", json!({})), ["close.invalid_token", "code=3500", "signature: "]),
        (token(late), ["error.token_expired", "code=109", "exp: past"]),
    ] {
        let mut client = node.client();
        client.send(&json!({"id": 1, "connect": {"token": token}}).to_string());
        let line = node.until_logged(&words);
        assert!(line.contains("address=\"127.0.0.1\""), "{line}");
        let payload = token.split('.').nth(1).unwrap();
        assert!(!node.errors().contains(payload), "{line}");
    }
}

#[test]
fn errors_of_commands_are_logged_with_channel_user_and_option() {
    let file = r#"
[client]
channel_limit = 1
allowed_origins = ["*"]
[client.token]
hmac_secret_key = "secret"
[[channel.namespaces]]
name = "open"
allow_subscribe_for_client = true
"#;
    let node = Node::start(file, &[]);
    let mut client = node.connected_as("42");
    for (method, channel, words) in [
        (
            "subscribe",
            "news",
            ["error.permission_denied", "code=103", "allow_subscribe_for_client"],
        ),
        ("subscribe", "no:x", ["error.unknown_channel", "code=102", "no namespace of that name"]),
        ("subscribe", "é", ["error.bad_request", "code=107", "the name is not ASCII"]),
        ("history", "open:x", ["error.not_available", "code=108", "history_size"]),
        ("presence", "open:x", ["error.not_available", "code=108", "presence is off"]),
        ("publish", "open:x", ["error.permission_denied", "code=103", "allow_publish_for_client"]),
    ] {
        let mut request = json!({"channel": channel});
        if method == "publish" {
            request["data"] = json!({"secret": "payload"});
        }
        client.ask(method, request);
        let line = node.until_logged(&words);
        let channel = format!("channel={channel:?}");
        let who = ["command refused", "user=\"42\"", "client=\"", "address=\"", &channel];
        assert!(who.iter().all(|word| line.contains(word)), "{line}");
    }
    client.subscribe("open:x");
    client.ask("subscribe", json!({"channel": "open:x"}));
    node.until_logged(&["error.already_subscribed", "code=105"]);
    client.ask("subscribe", json!({"channel": "open:y"}));
    node.until_logged(&["error.limit_exceeded", "code=106", "client.channel_limit"]);
    assert!(!node.errors().contains("payload"));
    // Both its own fault and its own end.
    client.send("{\"id\": 9, \"send\": {}}");
    node.until_logged(&["connection closed", "close.not_available", "code=3508", "user=\"42\""]);
}

#[test]
fn errors_from_the_home_of_a_channel_are_logged_with_the_channel() {
    let file = r#"
[client]
allowed_origins = ["*"]
queue_max_size = 20_000
[client.token]
hmac_secret_key = "secret"
[[channel.namespaces]]
name = "kept"
allow_subscribe_for_client = true
allow_history_for_client = true
allow_presence_for_client = true
presence = true
history_size = 10
history_ttl = "10m"
"#;
    let node = Node::start(file, &[]);
    let mut client = node.connected_as("42");
    let who = ["user=\"42\"", "client=\"", "address=\"", "channel=\"kept:a\""];
    let since = json!({"offset": 1, "epoch": "elsewhere"});
    let error = client.ask("history", json!({"channel": "kept:a", "limit": 1, "since": since}));
    assert_eq!(error["error"]["code"], 112);
    let line = node.until_logged(&["error.unrecoverable_position", "code=112"]);
    assert!(line.contains("history") && who.iter().all(|word| line.contains(word)), "{line}");
    // The presence of these is longer than what may wait for a client.
    let info = "x".repeat(7_000);
    let present: Vec<_> = (0..3)
        .map(|_| {
            let token = token(json!({"sub": "43", "info": {"i": info}}));
            let (mut client, _) = node.connected_by(Speech::Json, json!({"token": token}));
            client.subscribe("kept:a");
            client
        })
        .collect();
    let error = client.ask("presence", json!({"channel": "kept:a"}));
    assert_eq!(error["error"]["code"], 106, "{} are there", present.len());
    let line = node.until_logged(&["error.limit_exceeded", "code=106"]);
    assert!(line.contains("presence") && who.iter().all(|word| line.contains(word)), "{line}");
}

#[test]
fn refused_api_requests_are_logged_with_method_and_field() {
    let node = Node::open_with("[http_api]\nkey = \"k\"", &[]);
    let mut raw = node.raw();
    assert_eq!(raw.post("/api/publish", &[], "{}").status, 401);
    node.until_logged(&["api.unauthorized", "code=401", "address="]);
    for (path, body, words) in [
        (
            "/api/publish",
            "{\"channel\": 1}",
            ["code=400", "publish: channel: integer where a string"],
        ),
        ("/api/publish", "[", ["code=400", "publish: no JSON object"]),
        (
            "/api/broadcast",
            "{\"channels\": \"x\"}",
            ["code=400", "broadcast: channels: string where"],
        ),
        ("/api/batch", "[]", ["code=400", "batch: no JSON object"]),
    ] {
        let mut raw = node.raw();
        assert_eq!(raw.post(path, &[KEY], body).status, 400, "{path} {body}");
        let first = ["API request refused", "api.bad_request", "address=\"127.0.0.1\""];
        node.until_logged(&[&first[..], &words].concat());
    }
    let mut raw = node.raw();
    let body = "{\"channel\": \"no:x\", \"data\": {\"a-payload\": 1}}";
    assert_eq!(raw.post("/api/publish", &[KEY], body).status, 200);
    node.until_logged(&["api.error", "code=102", "publish: unknown channel"]);
    assert!(!node.errors().contains("a-payload"));
}

#[test]
fn sighup_opens_the_log_file_again() {
    let path = std::env::temp_dir().join(format!("roost-it-log-{}", std::process::id()));
    let text = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default();
    let node = Node::open(&["--log.file", path.to_str().unwrap()]);
    // The start and its warnings are there, too.
    node.until("the start is in the file", |_| text(&path).contains("listening on"));
    let old = path.with_extension("1");
    std::fs::rename(&path, &old).unwrap();
    node.signal(rustix::process::Signal::HUP);
    node.until("the new file has a line", |_| text(&path).contains("options reloaded"));
    assert!(!text(&old).contains("options reloaded"));
    std::fs::remove_file(&old).unwrap();
    std::fs::remove_file(&path).unwrap();
}

/// Every line is one JSON object.
fn all_json(text: &str) -> Vec<serde_json::Value> {
    let lines: Vec<_> = text.lines().map(serde_json::from_str).collect();
    assert!(lines.iter().all(|line: &Result<serde_json::Value, _>| line.is_ok()), "{text}");
    lines.into_iter().map(Result::unwrap).collect()
}

#[test]
fn a_json_log_is_json_from_the_first_line_to_the_last() {
    let more = "[client]\ninsecure = true";
    let node = Node::start(more, &["--log-format", "json"]);
    node.until_logged(&["client.insecure"]);
    let start = node.until_logged(&["listening on"]);
    let start: serde_json::Value = serde_json::from_str(&start).unwrap();
    assert_eq!(start["addresses"], node.listens_at().to_string());
    assert_eq!((&start["shards"], &start["insecure"]), (&json!(2), &json!(true)));
    node.signal(rustix::process::Signal::TERM);
    let ended = node.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(all_json(&ended.errors).len() > 2, "{ended:?}");
}

#[test]
fn a_start_that_fails_says_so_in_json_too() {
    let json_log = ["--log-format", "json"];
    for (file, code) in [("nonsense", 2), ("client.ping_interval = \"soon\"", 2)] {
        let Err(ended) = Node::launch(&[], file, "0", &json_log) else { panic!("it started") };
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert!(all_json(&ended.errors).iter().any(|line| line["level"] == "ERROR"), "{ended:?}");
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let Err(ended) = Node::launch(&[], "", &port, &json_log) else { panic!("it started") };
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let lines = all_json(&ended.errors);
    let said =
        |line: &serde_json::Value| line["message"].as_str().unwrap().contains("cannot listen");
    assert!(lines.iter().any(|line| line["level"] == "ERROR" && said(line)), "{ended:?}");
}
