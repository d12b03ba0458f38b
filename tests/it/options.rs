//! Effects of single options that no other test sets.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::*;
use crate::pairs::{Pair, RSA, key_set};
use crate::signatures::endpoint;

/// The status of an upgrade there.
fn status(node: &Node, path: &str) -> u16 {
    let mut raw = node.raw();
    raw.send(upgrade(path, &[]).as_bytes());
    raw.response().status
}

#[test]
fn the_endpoint_may_be_elsewhere() {
    let node = Node::open(&["--websocket.handler_prefix", "/a/socket"]);
    for (path, expected) in [
        ("/a/socket", 101),
        ("/a/socket?format=protobuf", 101),
        (CLIENTS, 404),
        ("/a/socket/b", 404),
        ("/a", 404),
        ("/", 404),
    ] {
        assert_eq!(status(&node, path), expected, "{path}");
    }
    let mut client = Client::open(&node, "/a/socket");
    client.talk("> {\"id\":1,\"connect\":{}}\n< {\"id\":1,\"connect\":{*}}");
    let said = node.errors();
    let scheme = if over_tls() { "wss" } else { "ws" };
    assert!(said.contains(&format!("{scheme}://{}/a/socket\n", node.listens_at())), "{said}");
}

#[test]
fn the_endpoint_may_be_off() {
    let node = Node::open(&["--websocket.disabled", "--echo"]);
    for (path, expected) in [(CLIENTS, 404), (PROTOBUF_CLIENTS, 404), ("/echo", 101)] {
        assert_eq!(status(&node, path), expected, "{path}");
    }
    // The banner names no address for clients; log lines of refused requests name their paths.
    let address = format!("{}{CLIENTS}", node.address());
    assert!(!node.errors().contains(&address), "{}", node.errors());
}

/// Allowed data where no namespace has a format.
#[test]
fn formats_of_all_channels() {
    let object = "[[channel.namespaces]]\nname = \"object\"\npublication_data_format = \
                  \"json_object\"\nallow_publish_for_client = true\n\
                  allow_publish_for_anonymous = true";
    // Bytes, a list, an object, nothing.
    for (format, allowed) in [
        (None, [false, true, true, false]),
        (Some("json"), [false, true, true, false]),
        (Some("json_object"), [false, false, true, false]),
        (Some("binary"), [true, true, true, true]),
    ] {
        let flags = format.map(|format| ["--channel.publication_data_format", format]);
        let node = Node::open_with(object, flags.as_ref().map_or(&[], |flags| &flags[..]));
        let mut client = node.connected_in(Speech::Protobuf);
        let data = [json!("hex:00ff"), json!([1]), json!({}), Value::Null];
        let mut publish = |channel: &str, allowed: [bool; 4]| {
            for (data, allowed) in data.iter().zip(allowed) {
                let mut request = json!({"channel": channel});
                if !data.is_null() {
                    request["data"] = data.clone();
                }
                let answer = client.ask("publish", request);
                let expected = match allowed {
                    true => json!({"publish": {}}),
                    false => json!({"error": {"code": 107, "message": "bad request"}}),
                };
                assert_eq!(answer, expected, "{format:?}: {data} to {channel}");
            }
        };
        // The application may say what it likes where nothing is said.
        publish("a", allowed);
        publish("stream:a", allowed);
        // One that says it has its own way.
        publish("object:a", [false, false, true, false]);
    }
}

/// Each option of `client.subscription_token` is for these tokens alone: connections go on by
/// `client.token`, whose key opens no channel.
#[test]
fn subscription_tokens_have_a_set_of_their_own() {
    let (ec, other_ec, other_rsa) = (Pair::ec("P-256"), Pair::ec("P-256"), Pair::rsa());
    let (url, _) = endpoint(key_set(&[RSA.jwk("a")]));
    let pem = |pair: &Pair| pair.pem().replace('\n', "\\n");
    let claims = |more: Value| {
        let mut claims = json!({"sub": "42", "channel": "$gold"});
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        claims
    };
    let rsa = |pair: &Pair| pair.token(&json!({"alg": "RS256", "kid": "a"}), &claims(json!({})));
    let ecdsa = |pair: &Pair| pair.token(&json!({"alg": "ES256"}), &claims(json!({})));
    let own = |more: Value| token_by("own", claims(more));
    let before = |more: Value| token_by("before", claims(more));
    let (past, future) = (now() - 10, now() + 3600);
    let hmac = |more: &str| format!("hmac_secret_key = \"own\"\n{more}");
    let rotated = |until: i64| {
        hmac(&format!(
            "hmac_previous_secret_key = \"before\"\n\
             hmac_previous_secret_key_valid_until = {until}"
        ))
    };
    for (options, good, bad) in [
        (
            format!("rsa_public_key = \"{}\"", pem(&RSA)),
            vec![rsa(&RSA)],
            vec![rsa(&other_rsa), ecdsa(&ec), own(json!({}))],
        ),
        (
            format!("ecdsa_public_key = \"{}\"", pem(&ec)),
            vec![ecdsa(&ec)],
            vec![ecdsa(&other_ec), rsa(&RSA), own(json!({}))],
        ),
        (
            format!("jwks_public_endpoint = \"{url}\""),
            vec![rsa(&RSA)],
            vec![rsa(&other_rsa), own(json!({}))],
        ),
        (
            hmac("hmac_previous_secret_key = \"before\""),
            vec![own(json!({})), before(json!({}))],
            vec![],
        ),
        (rotated(past), vec![own(json!({}))], vec![before(json!({}))]),
        (
            rotated(future),
            vec![own(json!({})), before(json!({"iat": past}))],
            vec![before(json!({"iat": future + 1}))],
        ),
        (
            hmac("audience = \"us\""),
            vec![own(json!({"aud": "us"})), own(json!({"aud": ["them", "us"]}))],
            vec![own(json!({})), own(json!({"aud": "use"}))],
        ),
        (
            hmac("issuer = \"me\""),
            vec![own(json!({"iss": "me"}))],
            vec![own(json!({})), own(json!({"iss": "men"}))],
        ),
        (
            hmac("audience_regex = '^us'"),
            vec![own(json!({"aud": "use"}))],
            vec![own(json!({})), own(json!({"aud": "them"}))],
        ),
        (
            hmac("issuer_regex = '^me'"),
            vec![own(json!({"iss": "men"}))],
            vec![own(json!({})), own(json!({"iss": "you"}))],
        ),
        (hmac("user_id_claim = 'uid'"), vec![own(json!({"sub": "7", "uid": "42"}))], vec![]),
    ] {
        let more = format!("[client.subscription_token]\nenabled = true\n{options}");
        let node = Node::open_with(&more, &[]);
        let ask = |token: &str| {
            let mut client = node.connected_as("42");
            client.ask("subscribe", json!({"channel": "$gold", "token": token}))
        };
        for token in &good {
            assert_eq!(ask(token), json!({"subscribe": {}}), "{options}");
        }
        let denied = json!({"error": {"code": 103, "message": "permission denied"}});
        for token in bad.iter().chain([&token(claims(json!({})))]) {
            assert_eq!(ask(token), denied, "{options}");
        }
        if options.contains("user_id_claim") {
            let mut client = node.connected_as("42");
            let token = own(json!({"uid": "7"}));
            client.command("subscribe", json!({"channel": "$gold", "token": token}));
            client.is_closed(3500, "invalid token");
        }
    }
}

/// Lines of the log, each with its level: a fetch of keys begins (debug), fails (warn), and the node
/// ends (info).
const LINES: [&str; 3] = ["fetching keys", "key fetch failed", "drained"];

/// Has a node say these, ends it, and returns its standard error behind the greeting.
fn errors_of_a_short_life(flags: &[&str]) -> String {
    // Nobody listens there.
    let file = "client.token.jwks_public_endpoint = \"http://127.0.0.1:1/keys\"";
    let node = Node::start(file, flags);
    let token = RSA.token(&json!({"alg": "RS256", "kid": "a"}), &json!({"sub": "42"}));
    let mut client = node.client();
    client.send(&json!({"id": 1, "connect": {"token": token}}).to_string());
    client.expect("{\"id\":1,\"error\":{\"code\":100,*}}");
    drop(client);
    node.signal(Signal::TERM);
    let ended = node.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let (_, behind) = ended.errors.split_once("listening on ").unwrap();
    behind.split_once('\n').unwrap().1.to_owned()
}

#[test]
fn levels_of_the_log() {
    for (level, expected) in [
        ("none", [false, false, false]),
        ("error", [false, false, false]),
        ("warn", [false, true, false]),
        ("info", [false, true, true]),
        ("debug", [true, true, true]),
    ] {
        let log = errors_of_a_short_life(&["--log.level", level]);
        assert_eq!(LINES.map(|line| log.contains(line)), expected, "{level}: {log}");
        assert_eq!(log.is_empty(), expected == [false; 3], "{level}: {log}");
    }
}

#[test]
fn a_file_for_the_log() {
    let path = std::env::temp_dir().join(format!("roost-it-{}.log", std::process::id()));
    let file = path.to_str().unwrap();
    for runs in 1..=2 {
        assert_eq!(errors_of_a_short_life(&["--log.file", file]), "");
        // Behind what is there.
        let log = std::fs::read_to_string(&path).unwrap();
        let times = LINES.map(|line| log.matches(line).count());
        assert_eq!(times, [0, runs, runs], "{log}");
        assert!(!log.contains('\u{1b}'), "{log}");
    }
    std::fs::remove_file(&path).unwrap();
    // One that can't be written stops the start.
    let Err(ended) = Node::launch(&[], "", "0", &["--log.file", "/nonesuch/log"]) else {
        panic!("it started")
    };
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.errors.contains("the log file"), "{ended:?}");
}

/// Positions are forgotten when nothing was published for so long and nobody is subscribed.
#[test]
fn positions_are_forgotten() {
    let file = r#"
        client.allow_anonymous_connect_without_token = true
        [channel]
        history_meta_ttl = "200ms"
        [[channel.namespaces]]
        name = "brief"
        history_size = 3
        history_ttl = "100ms"
        force_positioning = true
        allow_publish_for_client = true
        allow_publish_for_anonymous = true
        allow_subscribe_for_client = true
        allow_subscribe_for_anonymous = true
        [[channel.namespaces]]
        name = "long"
        history_size = 3
        history_ttl = "100ms"
        history_meta_ttl = "10m"
        force_positioning = true
        allow_publish_for_client = true
        allow_publish_for_anonymous = true
        allow_subscribe_for_client = true
        allow_subscribe_for_anonymous = true
    "#;
    let node = Node::start(file, &[]);
    let subscribe = |channel: &str| {
        let mut client = node.connected();
        let answer = client.ask("subscribe", json!({"channel": channel}));
        let result = &answer["subscribe"];
        let offset = result["offset"].as_u64().unwrap_or(0);
        ((offset, result["epoch"].as_str().unwrap().to_owned()), client)
    };
    let mut publisher = node.connected();
    // Subscribed before anything is published, it has the epoch of all that follows.
    let (((_, forgotten), gone), ((_, here), _stays), ((_, kept), gone_too)) =
        (subscribe("brief:a"), subscribe("brief:b"), subscribe("long:a"));
    for channel in ["brief:a", "brief:b", "long:a"] {
        publisher.publish(channel, json!(1));
    }
    drop((gone, gone_too));
    // Only the first is.
    node.until_is("channels_home", 2);
    node.until_is("history_publications", 0);
    assert_eq!(subscribe("brief:b").0, (1, here));
    assert_eq!(subscribe("long:a").0, (1, kept));
    let ((offset, epoch), _) = subscribe("brief:a");
    assert_eq!(offset, 0);
    assert_ne!(epoch, forgotten, "another life has another epoch");
}
