//! Tokens whose signatures are checked away from the shards: RSA, EC and Ed25519, with keys from
//! files and from a JWKS endpoint.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::harness::*;
use crate::pairs::{Pair, RSA, key_set};

const FILE: &str = r#"
[channel.without_namespace]
allow_subscribe_for_client = true
allow_publish_for_client = true
"#;

/// A node that asks this endpoint for keys.
fn node(url: &str, flags: &[&str]) -> Node {
    Node::start(&format!("client.token.jwks_public_endpoint = \"{url}\"\n{FILE}"), flags)
}

/// An endpoint with this key set, and how often it was asked.
pub(crate) fn endpoint(keys: String) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let head = BufReader::new(stream.try_clone().unwrap()).lines();
            let lines: Vec<String> =
                head.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            assert_eq!(lines[0], "GET /keys HTTP/1.1");
            counter.fetch_add(1, Ordering::SeqCst);
            let length = keys.len();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n");
            let answer = format!("{head}connection: close\r\n\r\n{keys}");
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    (url, asked)
}

/// A `connect` with this token, and what an SDK sends in the same frame.
fn connect_and_more(token: &str, more: &str) -> String {
    format!("{}\n{more}", json!({"id": 1, "connect": {"token": token}}))
}

#[test]
fn keys_of_an_endpoint() {
    let pairs = [
        ("RS256", Pair::rsa()),
        ("ES256", Pair::ec("P-256")),
        ("ES384", Pair::ec("P-384")),
        ("ES512", Pair::ec("P-521")),
        ("EdDSA", Pair::ed()),
    ];
    let keys: Vec<Value> = pairs.iter().map(|(kid, pair)| pair.jwk(kid)).collect();
    let (url, asked) = endpoint(key_set(&keys));
    let node = node(&url, &["--shards", "3"]);
    let header = |alg: &str, kid: &str| json!({"alg": alg, "kid": kid});
    for (alg, pair) in &pairs {
        let claims = json!({"sub": "42", "info": {"alg": alg}});
        let good = pair.token(&header(alg, alg), &claims);
        let gold = json!({"sub": "42", "channel": "$gold"});
        let gold = pair.token(&header(alg, alg), &gold);
        for speech in BOTH {
            // All in one frame: what is behind `connect` waits for it; a subscription token is checked
            // in the same way. Different homes answer.
            let more = [
                json!({"id": 2, "subscribe": {"channel": "a"}}),
                json!({"id": 3, "subscribe": {"channel": "$gold", "token": gold}}),
            ];
            let more = more.map(|command| command.to_string()).join("\n");
            let mut client = node.client_in(speech);
            client.send(&connect_and_more(&good, &more));
            client.expect("{\"id\":1,\"connect\":{*}}");
            let mut lines = [client.line(), client.line()];
            lines.sort();
            assert_eq!(lines, [2, 3].map(|id| format!("{{\"id\":{id},\"subscribe\":{{}}}}")));
            client.command("subscribe", json!({"channel": "$silver", "token": gold}));
            client.is_closed(3500, "invalid token");
        }
        // Another key of that name; another algorithm than the key's; times.
        let (name, other) = &pairs[usize::from(*alg == "RS256")];
        let mut forged = vec![other.token(&header(name, alg), &claims)];
        let (body, signature) = good.rsplit_once('.').unwrap();
        forged.push(format!("{body}.{}", signature.to_uppercase()));
        forged.push(format!("{body}."));
        for token in forged {
            let mut client = node.client();
            client.send(&connect_and_more(&token, "{\"id\":2,\"rpc\":{}}"));
            client.is_closed(3500, "invalid token");
        }
        for claims in
            [json!({"sub": "42", "exp": now() - 1}), json!({"sub": "42", "nbf": now() + 600})]
        {
            let old = pair.token(&header(alg, alg), &claims);
            let mut client = node.client();
            client.send(&connect_and_more(&old, "{\"id\":2,\"rpc\":{}}"));
            client.expect(r#"{"id":1,"error":{"code":109,"message":"token expired"}}"#);
        }
        // A refresh goes the same way.
        let (mut client, _) = node.connected_by(Speech::Json, json!({"token": good}));
        let new = pair.token(&header(alg, alg), &json!({"sub": "42", "exp": now() + 600}));
        let answer = client.ask("refresh", json!({"token": new}));
        assert_eq!(answer["refresh"]["expires"], true, "{answer}");
        client.command("refresh", json!({"token": format!("{body}.")}));
        client.is_closed(3500, "invalid token");
    }
    // Nothing made it ask twice.
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[test]
fn keys_of_the_configuration() {
    let pairs = [("RS256", "rsa", Pair::rsa()), ("ES256", "ecdsa", Pair::ec("P-256"))];
    for (alg, option, pair) in &pairs {
        let pem = pair.pem().replace('\n', "\\n");
        let file = format!("client.token.{option}_public_key = \"{pem}\"\n{FILE}");
        let node = Node::start(&file, &[]);
        let token = pair.token(&json!({ "alg": alg }), &json!({"sub": "42"}));
        for speech in BOTH {
            let mut client = node.client_in(speech);
            let more = "{\"id\":2,\"subscribe\":{\"channel\":\"a\"}}";
            client.send(&connect_and_more(&token, more));
            client.talk("< {\"id\":1,\"connect\":{*}}\n< {\"id\":2,\"subscribe\":{}}");
        }
        // Signed with the public key as if it were a secret.
        let forged = token_by(&pair.pem(), json!({"sub": "42"}));
        let connect = json!({"id": 1, "connect": {"token": forged}});
        node.client().talk(&format!("> {connect}\nx 3500 invalid token"));
    }
}

/// A client whose connection comes from an address of this machine.
fn client_from(address: &str, node: &Node) -> Client {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let from: Ipv4Addr = address.parse().unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&node.address().into()).unwrap();
    Client::over(socket.into(), CLIENTS, &[])
}

/// An address with as many open checks as it may have is refused at once; others aren't.
#[test]
fn checks_of_one_address_are_bounded() {
    // The endpoint keeps its peer waiting, so that checks stay open until the test wants their end.
    let pair = Pair::rsa();
    let keys = key_set(&[pair.jwk("a")]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let node = node(&url, &["--shards", "2", "--signature-checks-per-address", "2"]);
    let token =
        |user: &str| pair.token(&json!({"alg": "RS256", "kid": "a"}), &json!({"sub": user}));
    let connects = |from: &str, user: &str| {
        let mut client = client_from(from, &node);
        client.send(&connect_and_more(&token(user), ""));
        client
    };
    let mut waiting = vec![connects("127.0.0.1", "1"), connects("127.0.0.1", "2")];
    node.until_is("tokens_checked", 2);
    let error = r#"{"id":1,"error":{"code":111,"message":"too many requests","temporary":true}}"#;
    connects("127.0.0.1", "3").expect(error);
    waiting.push(connects("127.0.0.2", "4"));
    node.until_is("tokens_checked", 3);
    let (mut stream, _) = listener.accept().unwrap();
    let length = keys.len();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n");
    stream.write_all(format!("{head}connection: close\r\n\r\n{keys}").as_bytes()).unwrap();
    for mut client in waiting {
        client.expect("{\"id\":1,\"connect\":{*}}");
    }
    // Their places are free again.
    connects("127.0.0.1", "5").expect("{\"id\":1,\"connect\":{*}}");
    assert_eq!(node.figures()["tokens_refused_address"], 1);
    node.until_logged(&["error.too_many_requests", "127.0.0.1", "signature_checks_per_address"]);
}

/// Without keys nobody can tell whether a token is good: the client shall try again.
#[test]
fn an_endpoint_that_is_down() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    drop(listener);
    let node = node(&url, &[]);
    let token = RSA.token(&json!({"alg": "RS256", "kid": "a"}), &json!({"sub": "42"}));
    let mut client = node.client();
    client.send(&connect_and_more(&token, "{\"id\":2,\"rpc\":{}}"));
    client.expect(
        r#"{"id":1,"error":{"code":100,"message":"internal server error","temporary":true}}"#,
    );
    assert_eq!(node.figures()["tokens_remembered"], 0);
}

/// A client with an expired token may ask again and again: its signature is never looked at.
#[test]
fn an_expired_token_costs_no_signature() {
    let (url, _) = endpoint(key_set(&[RSA.jwk("a")]));
    let node = node(&url, &[]);
    let token = |claims| RSA.token(&json!({"alg": "RS256", "kid": "a"}), &claims);
    let mut late = node.client();
    let expired = token(json!({"sub": "42", "exp": now() - 10}));
    late.send(&connect_and_more(&expired, "{\"id\":2,\"rpc\":{}}"));
    late.expect(r#"{"id":1,"error":{"code":109,"message":"token expired"*}}"#);
    assert_eq!(node.figures()["tokens_checked"], 0);
    let mut client = node.client();
    let expired = token(json!({"sub": "42", "channel": "a", "exp": now() - 10}));
    let subscribe =
        |id| format!(r#"{{"id":{id},"subscribe":{{"channel":"a","token":"{expired}"}}}}"#);
    let subscribes: Vec<String> = (2..=50).map(subscribe).collect();
    client.send(&connect_and_more(&token(json!({"sub": "42"})), &subscribes.join("\n")));
    client.expect(r#"{"id":1,"connect":{"client":"*"*}}"#);
    for id in 2..=50 {
        client
            .expect(&format!(r#"{{"id":{id},"error":{{"code":109,"message":"token expired"*}}}}"#));
    }
    assert_eq!(node.figures()["tokens_checked"], 1);
}

/// All come back with the tokens that they had: nobody pays for a signature twice.
#[test]
fn a_storm_of_known_tokens() {
    const CLIENTS: usize = 200;
    let (url, asked) = endpoint(key_set(&[RSA.jwk("a")]));
    let node = node(&url, &["--shards", "3"]);
    let token = |user: usize| {
        let claims = json!({"sub": user.to_string(), "exp": now() + 3600});
        RSA.token(&json!({"alg": "RS256", "kid": "a"}), &claims)
    };
    let tokens: Vec<String> = (0..3).map(token).collect();
    let storm = |count: usize| {
        let mut clients: Vec<Client> =
            (0..count).map(|number| node.client_in(BOTH[number % 2])).collect();
        let more = "{\"id\":2,\"subscribe\":{\"channel\":\"a\"}}";
        for (number, client) in clients.iter_mut().enumerate() {
            client.send(&connect_and_more(&tokens[number % tokens.len()], more));
        }
        for client in &mut clients {
            client.expect("{\"id\":1,\"connect\":{\"client\":\"*\",*\"expires\":true,*}}");
            client.expect("{\"id\":2,\"subscribe\":{}}");
        }
    };
    storm(tokens.len());
    let before = node.figures();
    assert_eq!((before["tokens_checked"], before["tokens_known"]), (3, 0));
    storm(CLIENTS);
    let after = node.figures();
    assert_eq!((after["tokens_checked"], after["tokens_known"]), (3, CLIENTS as u64));
    node.until_is("tokens_remembered", 3);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    node.until_is("slots_in_use", 0);
}
