//! Subscription tokens, expiry and refresh.

use serde_json::{Value, json};

use crate::harness::*;

const LIMITED: &str = r#"
[[channel.namespaces]]
name = "limited"
allow_user_limited_channels = true
[[channel.namespaces]]
name = "closed"
"#;

fn subscribe(client: &mut Client, channel: &str, claims: Value) {
    subscribe_with(client, channel, &token(claims));
}

fn subscribe_with(client: &mut Client, channel: &str, token: &str) {
    let request = json!({"id": 2, "subscribe": {"channel": channel, "token": token}});
    client.send(&request.to_string());
}

#[test]
fn private_channels() {
    let node = Node::open_with(LIMITED, &[]);
    let hour = now() + 3600;
    let good = r#"< {"id":2,"subscribe":{}}"#;
    let invalid = "x 3500 invalid token";
    let denied = r#"< {"id":2,"error":{"code":103,"message":"permission denied"}}"#;
    for (channel, claims, outcome) in [
        ("$gold", json!({"sub": "42", "channel": "$gold"}), good),
        // A token opens any channel that it is for.
        ("closed:a", json!({"sub": "42", "channel": "closed:a"}), good),
        ("limited:a#7", json!({"sub": "42", "channel": "limited:a#7"}), good),
        (
            "$gold",
            json!({"sub": "42", "channel": "$gold", "exp": hour}),
            r#"< {"id":2,"subscribe":{"expires":true,"ttl":3*}}"#,
        ),
        (
            "$gold",
            json!({"sub": "42", "channel": "$gold", "data": {"x": 1}}),
            r#"< {"id":2,"subscribe":{"data":{"x":1}}}"#,
        ),
        ("$gold", json!({"sub": "42", "channel": "$silver"}), invalid),
        ("$gold", json!({"sub": "7", "channel": "$gold"}), invalid),
        ("$gold", json!({"channel": "$gold"}), invalid),
        ("$gold", json!({"sub": "42", "channel": "$gold", "client": "someone"}), invalid),
        ("$gold", json!({"sub": "42"}), denied),
        (
            "$gold",
            json!({"sub": "42", "channel": "$gold", "exp": now() - 1}),
            r#"< {"id":2,"error":{"code":109,"message":"token expired"}}"#,
        ),
        (
            "$gold",
            json!({"sub": "42", "channel": "$gold", "expire_at": now() - 1}),
            r#"< {"id":2,"error":{"code":110,"message":"expired"}}"#,
        ),
    ] {
        println!("{channel} {claims} {outcome}");
        let mut client = node.connected_as("42");
        subscribe(&mut client, channel, claims);
        client.talk(outcome);
    }
    for token in ["x", &token_by("other", json!({"sub": "42", "channel": "$gold"}))] {
        let mut client = node.connected_as("42");
        subscribe_with(&mut client, "$gold", token);
        client.talk(denied);
    }

    // For one client only: this one.
    let mut client = node.client();
    client.send(&json!({"id": 1, "connect": {"token": token(json!({"sub": "42"}))}}).to_string());
    let reply: Value = serde_json::from_str(&client.line()).unwrap();
    let id = &reply["connect"]["client"];
    subscribe(&mut client, "$gold", json!({"sub": "42", "channel": "$gold", "client": id}));
    client.talk(good);

    // Anonymous users have tokens, too.
    let mut client = node.connected();
    subscribe(&mut client, "$gold", json!({"channel": "$gold"}));
    client.talk(good);
    node.is_healthy();
}

#[test]
fn channels_of_some_users() {
    let node = Node::open_with(LIMITED, &[]);
    for (user, channel, allowed) in [
        ("42", "limited:a#42", true),
        ("42", "limited:a#7,42", true),
        ("42", "limited:a#7#42", true),
        ("42", "limited:a#42#7", false),
        ("42", "limited:a#4", false),
        ("42", "limited:a#", false),
        ("42", "limited:a", false),
        // Where the option is off, it is a letter like any other.
        ("42", "a#7", true),
    ] {
        let mut client = node.connected_as(user);
        client.send(&json!({"id": 2, "subscribe": {"channel": channel}}).to_string());
        client.expect(match allowed {
            true => r#"{"id":2,"subscribe":{}}"#,
            false => r#"{"id":2,"error":{"code":103,"message":"permission denied"}}"#,
        });
    }
}

#[test]
fn subscription_tokens_may_have_their_own_keys() {
    let own = "[client.subscription_token]\nenabled = true\nhmac_secret_key = \"own\"";
    let node = Node::open_with(own, &[]);
    let claims = json!({"sub": "42", "channel": "$gold"});
    let mut client = node.connected_as("42");
    subscribe_with(&mut client, "$gold", &token(claims.clone()));
    client.expect(r#"{"id":2,"error":{"code":103,*}}"#);
    subscribe_with(&mut client, "$gold", &token_by("own", claims));
    client.expect(r#"{"id":2,"subscribe":{}}"#);
}

/// A node that looks at expiry often.
const HASTY: &[&str] = &[
    "--client.ping_interval",
    "200ms",
    "--client.pong_timeout",
    "-1",
    "--client.expired_close_delay",
    "1s",
    "--client.expired_sub_close_delay",
    "1s",
];

/// The next message that is no ping.
fn next(client: &mut Client) -> Got {
    loop {
        match client.next() {
            Got::Line(line) if line == "{}" => {}
            other => return other,
        }
    }
}

fn connect(node: &Node, claims: Value) -> Client {
    let mut client = node.client();
    client.send(&json!({"id": 1, "connect": {"token": token(claims)}}).to_string());
    match next(&mut client) {
        Got::Line(line) if like(&line, "{\"id\":1,\"connect\":{*}}") => client,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_connection_expires_unless_it_is_refreshed() {
    let node = Node::open(HASTY);
    let soon = now() + 2;
    let mut refreshed = connect(&node, json!({"sub": "42", "exp": soon}));
    let mut endless = connect(&node, json!({"sub": "42", "exp": soon}));
    let mut expiring = connect(&node, json!({"sub": "42", "exp": soon}));

    let later = token(json!({"sub": "42", "exp": now() + 3600}));
    refreshed.send(&json!({"id": 2, "refresh": {"token": later}}).to_string());
    let Got::Line(line) = next(&mut refreshed) else { panic!() };
    assert!(like(&line, r#"{"id":2,"refresh":{"expires":true,"ttl":3*}}"#), "{line}");
    let never = token(json!({"sub": "42"}));
    endless.send(&json!({"id": 2, "refresh": {"token": never}}).to_string());
    assert_eq!(next(&mut endless), Got::Line(r#"{"id":2,"refresh":{}}"#.into()));

    assert_eq!(next(&mut expiring), Got::Close(3005, "connection expired".into()));
    assert!(now() > soon, "closed before its time and the delay were over");
    for mut client in [refreshed, endless] {
        client.send(r#"{"id":9,"rpc":{}}"#);
        let Got::Line(line) = next(&mut client) else { panic!() };
        assert!(line.starts_with(r#"{"id":9,"error":"#), "{line}");
    }
    assert_eq!(node.figures()["closed_expired"], 1);
}

#[test]
fn refreshing_wrongly() {
    let node = Node::open(&[]);
    let hour = now() + 3600;
    for (claims, outcome) in [
        (json!({"sub": "7", "exp": hour}), "x 3500 invalid token"),
        (json!({"sub": "42", "exp": now() - 1}), "x 3005 connection expired"),
        (json!({"sub": "42", "channels": ["a"]}), "x 3010 insufficient state"),
        (
            json!({"sub": "42", "expire_at": now() - 1}),
            r#"< {"id":2,"error":{"code":110,"message":"expired"}}"#,
        ),
    ] {
        let mut client = connect(&node, json!({"sub": "42", "exp": hour}));
        client.send(&json!({"id": 2, "refresh": {"token": token(claims)}}).to_string());
        client.talk(outcome);
    }
    let mut client = connect(&node, json!({"sub": "42"}));
    let other = token_by("other", json!({"sub": "42"}));
    client.send(&json!({"id": 2, "refresh": {"token": other}}).to_string());
    client.talk("x 3500 invalid token");
}

#[test]
fn a_subscription_expires_unless_it_is_refreshed() {
    let node = Node::open(HASTY);
    let soon = now() + 2;
    let claims = |exp: i64| json!({"sub": "42", "channel": "$gold", "exp": exp});
    let mut clients = [0, 1].map(|_| {
        let mut client = connect(&node, json!({"sub": "42"}));
        subscribe(&mut client, "$gold", claims(soon));
        let Got::Line(line) = next(&mut client) else { panic!() };
        assert!(like(&line, r#"{"id":2,"subscribe":{"expires":true,"ttl":*}}"#), "{line}");
        client
    });
    let refresh = |token: &str| {
        json!({"id": 3, "sub_refresh": {"channel": "$gold", "token": token}}).to_string()
    };
    // An expired token is to be tried again with a new one; the old expiry goes on.
    for client in &mut clients {
        client.send(&refresh(&token(claims(now() - 1))));
        let Got::Line(line) = next(client) else { panic!() };
        let again = r#"{"id":3,"error":{"code":109,"message":"token expired","temporary":true}}"#;
        assert_eq!(line, again);
    }
    let [mut refreshed, mut expiring] = clients;
    refreshed.send(&refresh(&token(claims(now() + 3600))));
    let Got::Line(line) = next(&mut refreshed) else { panic!() };
    assert!(like(&line, r#"{"id":3,"sub_refresh":{"expires":true,"ttl":3*}}"#), "{line}");

    let ended = r#"{"push":{"channel":"$gold","unsubscribe":{"code":2501,"reason":"subscription expired"}}}"#;
    assert_eq!(next(&mut expiring), Got::Line(ended.into()));
    assert!(now() > soon, "ended before its time and the delay were over");
    // It may come back with a new token.
    subscribe(&mut expiring, "$gold", claims(now() + 3600));
    let Got::Line(line) = next(&mut expiring) else { panic!() };
    assert!(line.starts_with(r#"{"id":2,"subscribe":{"expires":true,"#), "{line}");
    node.until_is("subscriptions", 2);
}

#[test]
fn refreshing_a_subscription_wrongly() {
    let node = Node::open(&[]);
    let good = json!({"sub": "42", "channel": "$gold", "exp": now() + 3600});
    for (token, outcome) in [
        ("".into(), r#"< {"id":3,"error":{"code":107,"message":"bad request"}}"#),
        ("x".into(), "x 3500 invalid token"),
        (token(json!({"sub": "42", "channel": "$silver"})), "x 3500 invalid token"),
        (token(json!({"sub": "7", "channel": "$gold"})), "x 3500 invalid token"),
        (token(json!({"sub": "42", "channel": "$gold", "client": "x"})), "x 3500 invalid token"),
        (
            token(json!({"sub": "42", "channel": "$gold", "expire_at": now() - 1})),
            r#"< {"id":3,"error":{"code":110,"message":"expired"}}"#,
        ),
    ] {
        let mut client = node.connected_as("42");
        subscribe(&mut client, "$gold", good.clone());
        client.expect(r#"{"id":2,"subscribe":{"expires":true,*}}"#);
        let request = json!({"id": 3, "sub_refresh": {"channel": "$gold", "token": token}});
        client.send(&request.to_string());
        client.talk(outcome);
    }
}
