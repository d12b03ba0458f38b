//! The admin page's endpoints, and the WebSocket that it is told figures over. The page itself is tested in
//! a browser (`tools/browser`).

use std::net::TcpStream;

use serde_json::{Value, json};

use crate::harness::*;

const OPTIONS: &str = r#"
[admin]
enabled = true
password = "open sesame"
[http_api]
insecure = true
[[channel.namespaces]]
name = "seen"
presence = true
history_size = 10
history_ttl = "10m"
allow_subscribe_for_client = true
"#;

const FORM: &str = "Content-Type: application/x-www-form-urlencoded";
const JSON: &str = "Content-Type: application/json";
const SOCKET: &str = "/admin/websocket";

/// A token for these credentials.
fn enter(raw: &mut Raw, credentials: &str) -> Result<String, u16> {
    let response = raw.post("/admin/auth", &[FORM], credentials);
    match response.status {
        200 => {
            let answer: Value = serde_json::from_str(&response.body).unwrap();
            Ok(answer["token"].as_str().unwrap().to_owned())
        }
        status => Err(status),
    }
}

fn ask(raw: &mut Raw, token: &str, method: &str, params: Value) -> Value {
    let body = json!({"method": method, "params": params}).to_string();
    let response = raw.post("/admin/api", &[JSON, &format!("Authorization: token {token}")], &body);
    assert_eq!(response.status, 200, "{method}: {response:?}");
    serde_json::from_str(&response.body).unwrap()
}

fn get(raw: &mut Raw, path: &str, headers: &str) -> Response {
    raw.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").as_bytes());
    raw.response()
}

#[test]
fn nothing_is_there_without_the_option() {
    let node = Node::open(&[]);
    for path in ["/", "/admin/init", "/admin/page.js", "/demo", SOCKET] {
        assert_eq!(get(&mut node.raw(), path, "").status, 404, "{path}");
    }
    assert!(node.errors().contains("admin page: off"), "{}", node.errors());
}

#[test]
fn the_page_and_its_files_keep_others_out() {
    let node = Node::open_with(OPTIONS, &[]);
    let mut raw = node.raw();
    for (path, kind, part) in [
        ("/", "text/html; charset=utf-8", "admin/page.js"),
        ("/admin/page.js", "text/javascript; charset=utf-8", "WebSocket"),
        ("/admin/page.css", "text/css; charset=utf-8", "color-scheme"),
    ] {
        let response = get(&mut raw, path, "");
        assert_eq!((response.status, response.header("content-type")), (200, Some(kind)), "{path}");
        assert!(response.body.contains(part), "{path}");
        for (name, part) in [
            ("content-security-policy", "default-src 'none'"),
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
        ] {
            let value = response.header(name).unwrap_or_default();
            assert!(value.contains(part), "{path}: {name}: {value}");
        }
    }
    assert_eq!(get(&mut raw, "/admin", "").status, 404);
    assert_eq!(get(&mut raw, "/admin/auth", "").status, 405);
    assert_eq!(raw.post("/admin/auth", &[JSON], "{}").status, 415);
    assert_eq!(get(&mut raw, "/page.html", "").status, 404);
    assert!(node.errors().contains("/, with admin.password"), "{}", node.errors());
}

#[test]
fn a_password_opens_it_and_nothing_else_does() {
    let node = Node::open_with(OPTIONS, &[]);
    let mut raw = node.raw();
    let init = |raw: &mut Raw, token: &str| -> Value {
        let response = get(raw, "/admin/init", &format!("Authorization: token {token}\r\n"));
        serde_json::from_str(&response.body).unwrap()
    };
    assert_eq!(
        init(&mut raw, ""),
        json!({
            "insecure": false, "edition": "oss", "version": env!("CARGO_PKG_VERSION"),
            "authenticated": false
        })
    );
    for credentials in ["password=", "password=open+sesam", "", "link=", "link=x"] {
        assert_eq!(enter(&mut raw, credentials), Err(400), "{credentials}");
    }
    let token = enter(&mut raw, "password=open+sesame").unwrap();
    assert_eq!(init(&mut raw, &token)["authenticated"], true);
    let info = ask(&mut raw, &token, "info", json!({}));
    assert_eq!(info["result"]["nodes"][0]["version"], env!("CARGO_PKG_VERSION"));
    let unknown = json!({"method": "nothing"}).to_string();
    let headers = [JSON, &format!("Authorization: token {token}")];
    assert_eq!(raw.post("/admin/api", &headers, &unknown).status, 400);
    // A client's token is no token of the page, whatever its signature.
    let body = r#"{"method":"info"}"#;
    for wrong in
        ["", "x", &token[1..], &crate::harness::token(json!({"sub": "", "aud": "roost-admin"}))]
    {
        let header = format!("Authorization: token {wrong}");
        assert_eq!(raw.post("/admin/api", &[JSON, &header], body).status, 401, "{wrong}");
    }
    let header = format!("Authorization: bearer {token}");
    assert_eq!(raw.post("/admin/api", &[JSON, &header], body).status, 401);
    let good = format!("Authorization: token {token}");
    // A body that a form of another page could send isn't read.
    let foreign = ["Origin: http://b", "Content-Type: text/plain", &good];
    assert_eq!(raw.post("/admin/api", &foreign, body).status, 415);
    assert_eq!(raw.post("/admin/api", &[JSON, &good], &"x".repeat(2 << 20)).status, 413);
}

#[test]
fn passwords_cannot_be_tried_quickly() {
    let node = Node::open_with(&format!("{OPTIONS}[prometheus]\nenabled = true\n"), &[]);
    let mut tries: Vec<Raw> = (0..9).map(|_| node.raw()).collect();
    let send = |tries: &mut [Raw]| {
        let request = post("/admin/auth", &[FORM], "password=x");
        tries.iter_mut().for_each(|raw| raw.send(request.as_bytes()));
    };
    // Eight wait for their answer, a second late; the ninth within that second is refused. A busy
    // machine may need longer to send them: then they are sent again.
    let refused = loop {
        send(&mut tries);
        let responses: Vec<_> = tries.iter_mut().map(Raw::response).collect();
        assert!(responses.iter().all(|response| matches!(response.status, 400 | 429)));
        if let Some(refused) = responses.into_iter().find(|response| response.status == 429) {
            break refused;
        }
    };
    assert_eq!(refused.header("retry-after"), Some("1"));
    // The right one is never kept waiting, and never refused.
    send(&mut tries);
    assert!(enter(&mut node.raw(), "password=open+sesame").is_ok());
    tries.iter_mut().for_each(|raw| assert!(matches!(raw.response().status, 400 | 429)));
    let logged = node.until_logged(&["a wrong password for the admin page"]);
    assert!(logged.contains("127.0.0.1"), "{logged}");
    let bad = node.raw().post("/admin/api", &[JSON, "Authorization: token x"], "{}");
    assert_eq!(bad.status, 401);
    let metrics = get(&mut node.raw(), "/metrics", "").body;
    let refused = |reason: &str| {
        let name = format!("roost_admin_refused_total{{reason=\"{reason}\"}} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&name)).unwrap();
        value.parse::<f64>().unwrap()
    };
    assert_eq!(refused("token"), 1.0);
    assert!(refused("password") >= 8.0 && refused("too_many_passwords") >= 1.0, "{metrics}");
}

#[test]
fn the_development_node_prints_a_link_that_works_until_it_ends() {
    let node = Node::start("", &["--dev"]);
    let errors = node.errors();
    let (_, rest) = errors.split_once("#link=").expect("a link");
    let secret = rest.split_once(' ').unwrap().0;
    let mut raw = node.raw();
    let token = enter(&mut raw, &format!("link={secret}")).unwrap();
    assert!(enter(&mut node.raw(), &format!("link={secret}")).is_ok(), "in another tab");
    assert_eq!(enter(&mut raw, &format!("link={}", &secret[1..])), Err(400));
    assert!(ask(&mut raw, &token, "info", json!({}))["error"].is_null());
    assert_eq!(get(&mut raw, "/demo", "").status, 200);
    // The page with the API's key is for this machine only.
    let snippets = |raw: &mut Raw, host: &str| {
        raw.send(format!("GET /demo/snippet.json HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes());
        raw.response().body
    };
    assert!(snippets(&mut raw, "127.0.0.1:8000").contains("X-API-Key"));
    assert!(!snippets(&mut raw, "evil.example:8000").contains("X-API-Key"));
}

#[test]
fn figures_need_a_token() {
    let node = Node::open_with(OPTIONS, &["--shards", "2"]);
    let mut raw = node.raw();
    let token = enter(&mut raw, "password=open+sesame").unwrap();
    let connect = |token: &str| format!("{{\"id\":1,\"connect\":{{\"token\":\"{token}\"}}}}");
    for wrong in ["", "x", &crate::harness::token(json!({"sub": "u"}))] {
        let mut client = Client::open(&node, SOCKET);
        client.send(&connect(wrong));
        client.is_closed(3500, "invalid token");
    }
    let foreign = upgrade(SOCKET, &["Origin: http://elsewhere"]);
    let mut stranger = node.raw();
    stranger.send(foreign.as_bytes());
    assert_eq!(stranger.response().status, 403);
    let mut admin = Client::open(&node, SOCKET);
    let reply = admin.ask("connect", json!({"token": token}));
    assert!(reply["connect"]["subs"]["roost.admin"].is_object(), "{reply}");
    let mut ann = node.connected_as("ann");
    ann.ask("subscribe", json!({"channel": "seen:a"}));
    let figures = loop {
        let figures = admin.push()["pub"]["data"].take();
        if figures["totals"]["clients"] == 1 {
            break figures;
        }
    };
    assert_eq!(figures["shards"].as_array().unwrap().len(), 2);
    assert!(figures["totals"]["connections"].as_u64() >= Some(3));
    assert!(figures["node"]["fault"].is_null(), "{figures}");
    assert!(figures["memory"]["classes"]["resident"].as_u64() > Some(0));
    assert!(
        figures["limits"].as_array().unwrap().iter().any(|limit| limit["name"] == "connections")
    );
    // Nobody else can name its channel: no client, no token, no application.
    let refused = ann.ask("subscribe", json!({"channel": "roost.admin"}));
    assert_eq!(refused["error"]["code"], 102, "{refused}");
    let claims = json!({"sub": "u", "channels": ["roost.admin"]});
    let (mut other, reply) = (node.client(), crate::harness::token(claims));
    let reply = other.ask("connect", json!({"token": reply}));
    assert_eq!(reply["error"]["code"], 102, "{reply}");
    let answer = raw.post("/api/publish", &[], r#"{"channel":"roost.admin","data":1}"#).body;
    assert!(answer.contains("102"), "{answer}");
    let answer = raw.post("/api/channels", &[], "{}").body;
    assert_eq!(answer, r#"{"result":{"channels":{"seen:a":{"num_clients":1}}}}"#);
    // An administrator is connected and has a session, but is neither a client nor a user.
    let counted = node.until("both are connected", |figures| figures["sessions_open"] == 2);
    assert_eq!((counted["clients_websocket"], counted["users"]), (1, 1));
    let info: Value = serde_json::from_str(&raw.post("/api/info", &[], "{}").body).unwrap();
    let counts = &info["result"]["nodes"][0];
    assert_eq!((&counts["num_clients"], &counts["num_users"]), (&json!(1), &json!(1)));
    drop(admin);
}

#[test]
fn connections_of_a_user_and_namespaces() {
    let node = Node::open_with(OPTIONS, &["--shards", "2"]);
    let mut raw = node.raw();
    let token = enter(&mut raw, "password=open+sesame").unwrap();
    let mut anns: Vec<Client> = (0..3).map(|_| node.connected_as("ann")).collect();
    for ann in &mut anns {
        ann.ask("subscribe", json!({"channel": "seen:a"}));
    }
    let _bob = node.connected_as("bob");
    let found = ask(&mut raw, &token, "connections", json!({"user": "ann"}));
    let found = found["result"].clone();
    assert_eq!(found["more"], false);
    let all = found["connections"].as_array().unwrap();
    assert!(all.iter().all(|connection| connection["address"] == "127.0.0.1"), "{found}");
    assert_eq!(all.len(), 3);
    for seen in all {
        assert_eq!((&seen["protocol"], &seen["queued_bytes"]), (&json!("json"), &json!(0)));
        let sub =
            json!({"channel": "seen:a", "state": "live", "server": false, "positioned": false});
        assert_eq!(seen["subscriptions"], json!([sub]));
    }
    let client = all[0]["client"].clone();
    let closed = ask(&mut raw, &token, "disconnect", json!({"user": "ann", "client": client}));
    assert!(closed["error"].is_null());
    let found = ask(&mut raw, &token, "connections", json!({"user": "ann"}));
    assert_eq!(found["result"]["connections"].as_array().unwrap().len(), 2);
    let none = ask(&mut raw, &token, "connections", json!({"user": "nobody"}));
    let nothing = json!({"connections": [], "found": 0, "more": false, "partial": false});
    assert_eq!(none["result"], nothing);
    let namespaces = ask(&mut raw, &token, "namespaces", json!({}));
    let names: Vec<&str> = namespaces["result"]["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|namespace| namespace["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["", "stream", "seen"]);
    assert_eq!(namespaces["result"]["namespaces"][2]["options"]["history_size"], 10);
}

/// Users of the connections that are found.
fn found(raw: &mut Raw, token: &str, params: Value) -> Vec<String> {
    let found = ask(raw, token, "connections", params);
    let all = found["result"]["connections"].as_array().unwrap_or_else(|| panic!("{found}"));
    all.iter().map(|connection| connection["user"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn connections_are_found_by_channel_client_address_and_age() {
    let node = Node::open_with(OPTIONS, &["--shards", "2"]);
    let mut raw = node.raw();
    let token = enter(&mut raw, "password=open+sesame").unwrap();
    let mut ann = node.connected_as("ann");
    ann.ask("subscribe", json!({"channel": "seen:a"}));
    let _bob = node.connected_as("bob");
    let by = |raw: &mut Raw, by: &str, value: &str| {
        let mut users = found(raw, &token, json!({"by": by, "value": value}));
        users.sort();
        users
    };
    assert_eq!(by(&mut raw, "channel", "seen:a"), ["ann"]);
    assert_eq!(by(&mut raw, "channel", "seen:b"), [""; 0]);
    assert_eq!(by(&mut raw, "address", "127.0.0.1"), ["ann", "bob"]);
    assert_eq!(by(&mut raw, "address", "192.0.2.1"), [""; 0]);
    assert_eq!(by(&mut raw, "newest", ""), ["ann", "bob"]);
    assert_eq!(by(&mut raw, "queues", ""), [""; 0]);
    let all = ask(&mut raw, &token, "connections", json!({"user": "ann"}));
    let seen = &all["result"]["connections"][0];
    assert_eq!(seen["transport"], "websocket");
    assert!(seen["age_s"].is_number() && seen["round_trip_ms"].is_null(), "{seen}");
    assert_eq!(by(&mut raw, "client", seen["client"].as_str().unwrap()), ["ann"]);
    let wrong = ask(&mut raw, &token, "connections", json!({"by": "address", "value": "host"}));
    assert_eq!(wrong["error"]["code"], 107);
    // More than are wanted: the newest of them, and how many there are.
    let one = ask(&mut raw, &token, "connections", json!({"by": "newest", "limit": 1}));
    assert_eq!((&one["result"]["found"], &one["result"]["more"]), (&json!(2), &json!(true)));
}

#[test]
fn closes_are_remembered_with_their_reason() {
    let node = Node::open_with(OPTIONS, &["--shards", "2"]);
    let mut raw = node.raw();
    let token = enter(&mut raw, "password=open+sesame").unwrap();
    let mut ann = node.connected_as("ann");
    ask(&mut raw, &token, "disconnect", json!({"user": "ann"}));
    let Got::Close(3503, _) = ann.next() else { panic!("not closed by the API") };
    let closes =
        |raw: &mut Raw, params: Value| ask(raw, &token, "closes", params)["result"].clone();
    let of_ann = closes(&mut raw, json!({"user": "ann"}));
    assert_eq!(of_ann["found"], 1);
    let close = &of_ann["closes"][0];
    assert_eq!((&close["code"], &close["reason"]), (&json!(3503), &json!("force disconnect")));
    assert_eq!((&close["by_client"], &close["address"]), (&json!(false), &json!("127.0.0.1")));
    assert!(close["client"].as_str().is_some_and(|client| client.len() == 36), "{close}");
    assert_eq!(closes(&mut raw, json!({"user": "bob"}))["found"], 0);
    assert_eq!(closes(&mut raw, json!({"address": "127.0.0.1", "code": 3503}))["found"], 1);
    assert_eq!(closes(&mut raw, json!({"code": 3000}))["found"], 0);
}

#[test]
fn the_last_minutes_are_there_before_anybody_looks() {
    let node = Node::open_with(OPTIONS, &[]);
    let mut raw = node.raw();
    let token = enter(&mut raw, "password=open+sesame").unwrap();
    let _ann = node.connected_as("ann");
    let mut series = Value::Null;
    node.until("a second with the client", |_| {
        series = ask(&mut raw, &token, "series", json!({}))["result"].clone();
        let clients = series["series"]["clients"].as_array();
        clients.and_then(|all| all.last()).and_then(Value::as_f64) == Some(1.0)
    });
    assert_eq!(series["step_s"], 1);
    assert_eq!(series["seconds"], series["series"]["loop_lag_p99"].as_array().unwrap().len());
}

#[test]
fn without_a_password_it_says_so() {
    let insecure = OPTIONS.replace("password = \"open sesame\"", "insecure = true");
    let node = Node::open_with(&insecure, &[]);
    let mut raw = node.raw();
    let body = get(&mut raw, "/admin/init", "").body;
    assert!(
        body.contains(r#""insecure":true"#) && body.contains(r#""authenticated":true"#),
        "{body}"
    );
    assert!(ask(&mut raw, "", "info", json!({}))["error"].is_null());
    let mut admin = Client::open(&node, SOCKET);
    assert!(admin.ask("connect", json!({}))["connect"]["subs"].is_object());
    let errors = node.errors();
    assert!(errors.contains("WITHOUT a password") && errors.contains("admin.insecure"), "{errors}");
}

#[test]
fn it_can_be_elsewhere() {
    let more = "\n[http_server]\ninternal_port = \"0\"";
    let node = Node::open_with(&format!("{OPTIONS}{more}"), &[]);
    assert_eq!(get(&mut node.raw(), "/", "").status, 404);
    let errors = node.errors();
    let line = errors.lines().find(|line| line.contains("internal endpoints are at")).unwrap();
    let address = line.rsplit("http://").next().unwrap().trim();
    let mut raw = Raw::new(TcpStream::connect(address).unwrap());
    assert_eq!(get(&mut raw, "/", "").status, 200);
    // Its WebSocket is with it, and nowhere else; over a connection that had other requests, too.
    let token = enter(&mut raw, "password=open+sesame").unwrap();
    let mut public = node.raw();
    public.send(upgrade(SOCKET, &[]).as_bytes());
    assert_eq!(public.response().status, 404);
    raw.send(upgrade(SOCKET, &["Origin: http://elsewhere"]).as_bytes());
    assert_eq!(raw.response().status, 403);
    assert_eq!(get(&mut raw, SOCKET, "").status, 400);
    let mut admin = Client::over(raw.stream, SOCKET, &[]);
    assert!(admin.ask("connect", json!({"token": token}))["connect"]["subs"].is_object());
    assert!(admin.push()["pub"]["data"]["totals"].is_object());
    let mut stranger = Client::over(TcpStream::connect(address).unwrap(), SOCKET, &[]);
    stranger.send(r#"{"id":1,"connect":{"token":"x"}}"#);
    stranger.is_closed(3500, "invalid token");

    let options = OPTIONS.replace("[admin]", "[admin]\nhandler_prefix = \"/ops\"\nsecret = \"s\"");
    let node = Node::open_with(&options, &[]);
    let mut raw = node.raw();
    assert_eq!(get(&mut raw, "/ops/", "").status, 200);
    assert_eq!(get(&mut raw, "/ops/admin/page.js", "").status, 200);
    assert_eq!(get(&mut node.raw(), "/", "").status, 404);
    let response = raw.post("/ops/admin/auth", &[FORM], "password=open+sesame");
    let answer: Value = serde_json::from_str(&response.body).unwrap();
    let mut admin = Client::open(&node, "/ops/admin/websocket");
    let claims = json!({"sub": "", "aud": "roost-admin", "exp": now() + 60});
    assert!(admin.ask("connect", json!({"token": answer["token"]}))["connect"]["subs"].is_object());
    // With a secret of its own a token holds for the next start, too.
    let mut admin = Client::open(&node, "/ops/admin/websocket");
    assert!(
        admin.ask("connect", json!({"token": token_by("s", claims)}))["connect"]["subs"]
            .is_object()
    );
    let claims = json!({"sub": "", "aud": "roost-admin", "exp": now() - 1});
    let mut late = Client::open(&node, "/ops/admin/websocket");
    late.send(&format!("{{\"id\":1,\"connect\":{{\"token\":\"{}\"}}}}", token_by("s", claims)));
    late.is_closed(3500, "invalid token");
}

#[test]
fn long_answers_are_compressed_on_request() {
    let node = Node::open_with(OPTIONS, &[]);
    let mut raw = node.raw();
    let plain = get(&mut raw, "/admin/page.js", "");
    assert_eq!(plain.header("content-encoding"), None);
    let length: usize = plain.header("content-length").unwrap().parse().unwrap();
    let gzip = "Accept-Encoding: gzip\r\n";
    let packed = get(&mut raw, "/admin/page.js", gzip);
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    assert_eq!(packed.header("vary"), Some("accept-encoding"));
    let bytes = &packed.bytes;
    assert!(
        bytes.starts_with(&[0x1f, 0x8b]) && bytes.len() < length / 2,
        "{} of {length}",
        bytes.len()
    );
    let mut inflated = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&**bytes), &mut inflated)
        .unwrap();
    assert_eq!(inflated, plain.body);
    // A short answer is sent as it is.
    let short = get(&mut raw, "/admin/init", gzip);
    assert_eq!((short.status, short.header("content-encoding")), (200, None));
}
