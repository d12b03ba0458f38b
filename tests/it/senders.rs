//! On whose behalf a request comes: web pages of other sites, host names that were rebound, headers that say it
//! twice. Nothing of a refused request is carried out.

use serde_json::json;

use crate::harness::*;

/// All transports, and an API without a key.
const FILE: &str = r#"
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
[long_poll]
enabled = true
[http_api]
insecure = true
"#;

const COMMANDS: &str =
    "{\"id\":1,\"connect\":{}}\n{\"id\":2,\"publish\":{\"channel\":\"news\",\"data\":0}}";

fn get(path: &str, query: &str, headers: &[&str]) -> String {
    let query: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    format!("GET {path}?cf_connect={query} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")
}

/// A request for each endpoint, and its status when it is allowed.
fn requests(headers: &[&str]) -> Vec<(String, u16)> {
    let publish = json!({"channel": "news", "data": 0}).to_string();
    let mut requests = vec![
        (upgrade(CLIENTS, headers), 101),
        (upgrade("/connection/uni_websocket", headers), 101),
        (post("/connection/http_stream", headers, COMMANDS), 200),
        (get("/connection/sse", COMMANDS, headers), 200),
        (post("/connection/sse", headers, COMMANDS), 200),
        (post("/connection/uni_http_stream", headers, "{}"), 200),
        (get("/connection/uni_sse", "{}", headers), 200),
        // The channel can't be recovered, which is found out behind the sender.
        (get("/connection/long_poll", "{\"subs\":{\"news\":{}}}", headers), 400),
        // No session is in it.
        (post("/emulation", headers, "{}"), 404),
        (post("/api/publish", headers, &publish), 200),
        (post("/api", headers, &format!("{{\"method\":\"publish\",\"params\":{publish}}}")), 200),
    ];
    // Refused from the head alone, before the client would send the body.
    let lines: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    for path in ["/connection/http_stream", "/emulation"] {
        let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{lines}");
        requests.push((format!("{head}Expect: 100-continue\r\nContent-Length: 9\r\n\r\n"), 100));
    }
    requests
}

fn status(node: &Node, request: &str) -> u16 {
    let mut raw = node.raw();
    raw.send(request.as_bytes());
    raw.response().status
}

#[test]
fn requests_of_foreign_pages_are_refused_everywhere() {
    let node = Node::open_with(FILE, &["--client.allowed_origins", "https://app.example"]);
    let mut subscriber = node.connected();
    subscriber.subscribe("news");
    for headers in [
        &["Origin: https://evil.example"][..],
        &["Origin: https://evil.example", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"],
        &["Origin: null"],
        &["Origin: \u{fffd}"],
        // As an image or a script is asked for.
        &["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"],
        &["sec-fetch-site: Cross-Site"],
        // Another host of the same site may be anybody's.
        &["Sec-Fetch-Site: same-site"],
        &["Origin: https://evil.example", "Sec-Fetch-Site: same-origin"],
    ] {
        for (request, _) in requests(headers) {
            assert_eq!(status(&node, &request), 403, "{request}");
        }
    }
    node.until_logged(&["http.origin", "https://evil.example is not in", "https://app.example"]);
    // Nothing of it was carried out: the next publication is one that may be.
    node.call("publish", json!({"channel": "news", "data": "last"}));
    assert_eq!(subscriber.push()["pub"]["data"], "last");
    for headers in [
        &[][..],
        &["Origin: https://app.example", "Sec-Fetch-Site: cross-site"],
        &["Sec-Fetch-Site: same-origin"],
        // The user typed the address.
        &["Sec-Fetch-Site: none"],
    ] {
        for (request, expected) in requests(headers) {
            assert_eq!(status(&node, &request), expected, "{request}");
        }
    }
    let open = Node::open_with(FILE, &[]);
    for (request, expected) in requests(&["Sec-Fetch-Site: cross-site"]) {
        assert_eq!(status(&open, &request), expected, "every page is allowed: {request}");
    }
}

#[test]
fn headers_of_the_sender_stand_once() {
    let node = Node::open_with(FILE, &["--client.user_id_http_header", "X-User"]);
    let before = node.figures()["refused_repeated"];
    let mut refused = 0;
    for twice in [
        ["Origin: https://app.example", "Origin: https://app.example"],
        ["Origin: https://app.example", "origin: https://evil.example"],
        ["X-User: ann", "x-user: bob"],
        ["X-User: ann", "X-User:"],
        ["X-API-Key: k", "X-API-KEY: l"],
        ["Authorization: apikey k", "Authorization: apikey k"],
        ["Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site"],
    ] {
        for (request, _) in requests(&twice) {
            assert_eq!(status(&node, &request), 400, "{request}");
            refused += 1;
        }
    }
    assert_eq!(node.figures()["refused_repeated"], before + refused);
    node.is_healthy();
}

#[test]
fn a_development_node_is_reached_by_names_of_this_machine_only() {
    let at =
        |request: &str, host: &str| request.replace("Host: localhost", &format!("Host: {host}"));
    let node = Node::start("roost.allowed_hosts = [\"dev.example\"]", &["--dev"]);
    let pages = ["/", "/admin/init", "/admin/page.js", "/demo", "/health", "/nowhere"];
    let pages = pages.map(|path| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    let all = || requests(&[]).into_iter().map(|(request, _)| request).chain(pages.clone());
    for foreign in ["evil.example", "localhost.evil.example", "192.168.1.2:8000", ""] {
        for request in all() {
            assert_eq!(status(&node, &at(&request, foreign)), 403, "{foreign} {request}");
        }
    }
    assert!(node.figures()["refused_host"] > 0);
    node.until_logged(&["http.host", "evil.example is not this node's"]);
    for own in ["localhost:8000", "127.0.0.1", "127.0.0.1:1", "[::1]:8000", "dev.example:8000"] {
        for request in all() {
            assert_ne!(status(&node, &at(&request, own)), 403, "{own} {request}");
        }
    }
}

#[test]
fn an_admin_page_without_a_password_is_reached_by_names_of_this_machine_only() {
    let file = "[admin]\nenabled = true\ninsecure = true\n[client]\ninsecure = true";
    let node = Node::start(file, &[]);
    let get = |path: &str, host: &str| {
        status(&node, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
    };
    let call = |host: &str| {
        let headers = ["Content-Type: application/json"];
        let request = post("/admin/api", &headers, "{\"method\":\"info\"}");
        status(&node, &request.replace("Host: localhost", &format!("Host: {host}")))
    };
    let socket = |host: &str| {
        let request = upgrade("/admin/websocket", &[]);
        status(&node, &request.replace("Host: localhost", &format!("Host: {host}")))
    };
    for path in ["/", "/admin/init", "/admin/page.js"] {
        assert_eq!((get(path, "evil.example"), get(path, "127.0.0.1")), (403, 200), "{path}");
    }
    assert_eq!((call("evil.example"), call("localhost")), (403, 200));
    assert_eq!((socket("evil.example"), socket("localhost")), (403, 101));
    // Clients come by whatever name the node has.
    let client = upgrade(CLIENTS, &[]).replace("Host: localhost", "Host: rt.example");
    assert_eq!(status(&node, &client), 101);
}

#[test]
fn the_internal_port_judges_senders_too() {
    let file = format!("{FILE}[admin]\nenabled = true\ninsecure = true\n");
    let flags =
        ["--http_server.internal_port", "0", "--client.allowed_origins", "https://app.example"];
    let node = Node::open_with(&file, &flags);
    let errors = node.errors();
    let (_, rest) = errors.split_once("internal endpoints are at http://").unwrap();
    let address = rest.lines().next().unwrap().to_owned();
    let status = |request: &str| {
        let mut raw = Raw::new(std::net::TcpStream::connect(&address).unwrap());
        raw.send(request.as_bytes());
        raw.response().status
    };
    let publish = json!({"channel": "news", "data": 0}).to_string();
    for (headers, expected) in [
        (&[][..], 200),
        (&["Origin: https://app.example"], 200),
        (&["Origin: https://evil.example"], 403),
        (&["Sec-Fetch-Site: cross-site"], 403),
        (&["Origin: https://app.example", "Origin: https://app.example"], 400),
        (&["X-API-Key: k", "X-API-Key: k"], 400),
        (&["Host: localhost"], 400),
    ] {
        assert_eq!(status(&post("/api/publish", headers, &publish)), expected, "{headers:?}");
    }
    let page = |host: &str| status(&format!("GET /admin/init HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    assert_eq!((page("evil.example"), page("localhost")), (403, 200));
}
