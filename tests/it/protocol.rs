//! The client protocol, as transcripts: what is sent (`>`), what has to come (`<`), and how the
//! server closes (`x`). See `Client::talk`.

use serde_json::json;

use crate::harness::*;

/// Differences of namespaces.
const NAMESPACES: &str = r#"
[[channel.namespaces]]
name = "closed"
[[channel.namespaces]]
name = "users"
allow_subscribe_for_client = true
allow_publish_for_client = true
[[channel.namespaces]]
name = "member"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_subscriber = true
allow_publish_for_anonymous = true
[[channel.namespaces]]
name = "limited"
allow_user_limited_channels = true
allow_subscribe_for_client = true
[[channel.namespaces]]
name = "regex"
channel_regex = '^[a-c]+$'
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
[[channel.namespaces]]
name = "object"
publication_data_format = "json_object"
allow_publish_for_client = true
allow_publish_for_anonymous = true
[[channel.namespaces]]
name = "any"
publication_data_format = "binary"
allow_publish_for_client = true
allow_publish_for_anonymous = true
[[channel.namespaces]]
name = "forced"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
force_positioning = true
history_size = 2
history_ttl = "10m"
"#;

#[test]
fn conversations() {
    let node = Node::open_with(NAMESPACES, &["--client.channel_limit", "3"]);
    let talk = |transcript: &str| {
        for speech in BOTH {
            println!("{speech:?}: {transcript}");
            node.client_in(speech).talk(transcript);
        }
    };

    // The first one of the specification, in one frame; the reply to connect comes first.
    talk(
        r#"> {"id":1,"connect":{"name":"js"}}\n{"id":2,"subscribe":{"channel":"stream:a","flag":1}}
           < {"id":1,"connect":{"client":"*-*-4*-*-*","version":"*","ping":600,"pong":true}}
           < {"id":2,"subscribe":{}}
           > {"id":5,"subscribe":{"channel":"nope:x"}}
           < {"id":5,"error":{"code":102,"message":"unknown channel"}}"#,
    );

    // Subscribe: the order of checks, and that each fault leaves the connection as it was.
    let long = "x".repeat(256);
    talk(&format!(
        r#"> {{"id":1,"connect":{{}}}}
           < {{"id":1,"connect":{{*}}}}
           > {{"id":2,"subscribe":{{"channel":"{long}"}}}}
           < {{"id":2,"error":{{"code":107,"message":"bad request"}}}}
           > {{"id":3,"subscribe":{{"channel":"nope:{long}"}}}}
           < {{"id":3,"error":{{"code":107,"message":"bad request"}}}}
           > {{"id":4,"subscribe":{{"channel":"a"}}}}
           < {{"id":4,"subscribe":{{}}}}
           > {{"id":5,"subscribe":{{"channel":"a"}}}}
           < {{"id":5,"error":{{"code":105,"message":"already subscribed"}}}}
           > {{"id":6,"subscribe":{{"channel":"b"}}}}\n{{"id":7,"subscribe":{{"channel":"b"}}}}
           < {{"id":7,"error":{{"code":105,"message":"already subscribed"}}}}
           < {{"id":6,"subscribe":{{}}}}
           > {{"id":8,"subscribe":{{"channel":"c"}}}}
           < {{"id":8,"subscribe":{{}}}}
           > {{"id":9,"subscribe":{{"channel":"nope:d"}}}}
           < {{"id":9,"error":{{"code":106,"message":"limit exceeded"}}}}
           > {{"id":10,"subscribe":{{"channel":"a"}}}}
           < {{"id":10,"error":{{"code":105,"message":"already subscribed"}}}}
           > {{"id":11,"unsubscribe":{{"channel":"c"}}}}
           < {{"id":11,"unsubscribe":{{}}}}
           > {{"id":12,"subscribe":{{"channel":"nope:d"}}}}
           < {{"id":12,"error":{{"code":102,"message":"unknown channel"}}}}
           > {{"id":13,"subscribe":{{"channel":"grün"}}}}
           < {{"id":13,"error":{{"code":107,"message":"bad request"}}}}
           > {{"id":14,"subscribe":{{"channel":"regex:abd"}}}}
           < {{"id":14,"error":{{"code":107,"message":"bad request"}}}}
           > {{"id":15,"subscribe":{{"channel":"a","type":4}}}}
           < {{"id":15,"error":{{"code":108,"message":"not available"}}}}
           > {{"id":16,"subscribe":{{"channel":"d","type":1}}}}
           < {{"id":16,"error":{{"code":103,"message":"permission denied"}}}}
           > {{"id":17,"subscribe":{{"channel":"d","tf":{{"op":"eq","key":"a","val":"b"}}}}}}
           < {{"id":17,"error":{{"code":107,"message":"bad request"}}}}
           > {{"id":18,"subscribe":{{"channel":"closed:d"}}}}
           < {{"id":18,"error":{{"code":103,"message":"permission denied"}}}}
           > {{"id":19,"subscribe":{{"channel":"users:d"}}}}
           < {{"id":19,"error":{{"code":103,"message":"permission denied"}}}}
           > {{"id":20,"subscribe":{{"channel":"limited:d#7"}}}}
           < {{"id":20,"error":{{"code":103,"message":"permission denied"}}}}
           > {{"id":21,"subscribe":{{"channel":"$d"}}}}
           < {{"id":21,"error":{{"code":103,"message":"permission denied"}}}}
           > {{"id":22,"subscribe":{{"channel":"regex:abc","delta":"fossil"}}}}
           < {{"id":22,"subscribe":{{}}}}"#,
    ));

    // Commands that close the connection instead.
    for (command, code, reason) in [
        (r#"{"id":2,"subscribe":{}}"#, 3501, "bad request"),
        (r#"{"id":2,"subscribe":{"channel":"a","delta":"xdelta"}}"#, 3501, "bad request"),
        (r#"{"id":2,"unsubscribe":{}}"#, 3501, "bad request"),
        (r#"{"id":2,"publish":{"data":1}}"#, 3501, "bad request"),
        (r#"{"id":2,"presence":{}}"#, 3501, "bad request"),
        (r#"{"id":2,"presence_stats":{}}"#, 3501, "bad request"),
        (r#"{"id":2,"history":{}}"#, 3501, "bad request"),
        (r#"{"id":2,"sub_refresh":{"token":"x"}}"#, 3501, "bad request"),
        (r#"{"id":2,"refresh":{}}"#, 3501, "bad request"),
        (r#"{"id":2,"refresh":{"token":"x"}}"#, 3500, "invalid token"),
        (r#"{"id":2,"connect":{}}"#, 3501, "bad request"),
        (r#"{"id":2,"ping":{}}"#, 3501, "bad request"),
        (r#"{"id":2}"#, 3501, "bad request"),
        (r#"{"id":2,"dance":{}}"#, 3501, "bad request"),
        // A pong that nobody waits for.
        ("{}", 3501, "bad request"),
        (r#"{"subscribe":{"channel":"a"}}"#, 3501, "bad request"),
        (r#"{"send":{"data":1}}"#, 3508, "not available"),
        (r#"{"id":2,"send":{"data":1}}"#, 3508, "not available"),
    ] {
        talk(&format!(
            r#"> {{"id":1,"connect":{{}}}}
               < {{"id":1,"connect":{{*}}}}
               > {command}
               x {code} {reason}"#,
        ));
    }

    // Features that are not on.
    talk(
        r#"> {"id":1,"connect":{}}
           < {"id":1,"connect":{*}}
           > {"id":2,"presence":{"channel":"a"}}
           < {"id":2,"error":{"code":108,"message":"not available"}}
           > {"id":3,"presence_stats":{"channel":"a"}}
           < {"id":3,"error":{"code":108,"message":"not available"}}
           > {"id":4,"history":{"channel":"a","limit":10}}
           < {"id":4,"error":{"code":108,"message":"not available"}}
           > {"id":5,"rpc":{"method":"m","data":{}}}
           < {"id":5,"error":{"code":108,"message":"not available"}}
           > {"id":6,"presence":{"channel":"nope:a"}}
           < {"id":6,"error":{"code":102,"message":"unknown channel"}}
           > {"id":7,"unsubscribe":{"channel":"never"}}
           < {"id":7,"unsubscribe":{}}
           > {"id":8,"sub_refresh":{"channel":"never","token":"x"}}
           < {"id":8,"error":{"code":103,"message":"permission denied"}}"#,
    );

    // Permissions to publish.
    talk(
        r#"> {"id":1,"connect":{}}
           < {"id":1,"connect":{*}}
           > {"id":2,"publish":{"channel":"a","data":{"b":[1,"c"]}}}
           < {"id":2,"publish":{}}
           > {"id":3,"publish":{"channel":"closed:a","data":1}}
           < {"id":3,"error":{"code":103,"message":"permission denied"}}
           > {"id":4,"publish":{"channel":"users:a","data":1}}
           < {"id":4,"error":{"code":103,"message":"permission denied"}}
           > {"id":5,"publish":{"channel":"nope:a","data":1}}
           < {"id":5,"error":{"code":102,"message":"unknown channel"}}
           > {"id":6,"publish":{"channel":"member:a","data":1}}
           < {"id":6,"error":{"code":103,"message":"permission denied"}}
           > {"id":7,"subscribe":{"channel":"member:a"}}
           < {"id":7,"subscribe":{}}
           > {"id":8,"publish":{"channel":"a"}}
           < {"id":8,"error":{"code":107,"message":"bad request"}}
           > {"id":9,"publish":{"channel":"object:a","data":[1]}}
           < {"id":9,"error":{"code":107,"message":"bad request"}}
           > {"id":10,"publish":{"channel":"object:a","data":{}}}
           < {"id":10,"publish":{}}
           > {"id":11,"publish":{"channel":"any:a"}}
           < {"id":11,"publish":{}}
           > {"id":12,"publish":{"channel":"closed:a"}}
           < {"id":12,"error":{"code":107,"message":"bad request"}}"#,
    );
    let mut member = node.connected();
    member.subscribe("member:a");
    member.pub_sub("member:a", 2);
    let mut user = node.connected_as("42");
    user.talk(
        r#"> {"id":2,"publish":{"channel":"users:a","data":1}}
           < {"id":2,"publish":{}}
           > {"id":3,"subscribe":{"channel":"users:a"}}
           < {"id":3,"subscribe":{}}"#,
    );

    node.is_healthy();
}

#[test]
fn connecting() {
    let file = |more: &str| {
        format!(
            "client.token.hmac_secret_key = \"secret\"\nclient.allowed_origins = [\"*\"]\n{more}"
        )
    };
    let hour = now() + 3600;
    let connect = |claims: serde_json::Value| {
        json!({"id": 1, "connect": {"token": token(claims)}}).to_string()
    };
    let nobody = r#"{"id":1,"connect":{}}"#.to_owned();
    let good = r#"< {"id":1,"connect":{"client":"*","version":"*","ping":25,"pong":true}}"#;
    let expires =
        r#"< {"id":1,"connect":{"client":"*","version":"*","expires":true,"ttl":3*,"ping":25,*}}"#;
    let denied = "x 3501 bad request";
    let invalid = "x 3500 invalid token";
    let old = r#"< {"id":1,"error":{"code":109,"message":"token expired"}}"#;
    let anonymous = "client.allow_anonymous_connect_without_token = true";
    let insecure = "client.insecure = true";
    let strict = "client.disallow_anonymous_connection_tokens = true";
    let audience = "client.token.audience = \"us\"\nclient.token.issuer = \"me\"";
    let rotated = "client.token.hmac_previous_secret_key = \"before\"";
    let header = "client.user_id_http_header = \"X-User\"";
    // The secret of the specification's vectors.
    let vector = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiI0MiJ9.\
                  79CVgMIG_JB921dVUeJDWNJubJojFodH3-XtC_1C408";
    let by = |secret, claims| {
        json!({"id": 1, "connect": {"token": token_by(secret, claims)}}).to_string()
    };

    for (options, cases) in [
        (
            "",
            vec![
                (nobody.clone(), denied),
                (connect(json!({"sub": "42"})), good),
                (json!({"id": 1, "connect": {"token": vector}}).to_string(), good),
                (connect(json!({"sub": "42", "exp": hour, "info": {"name": "A"}})), expires),
                (connect(json!({})), good),
                (connect(json!({"sub": "42", "exp": now() - 1})), old),
                (connect(json!({"sub": "42", "nbf": hour})), old),
                (connect(json!({"sub": "42", "exp": hour, "expire_at": 0})), good),
                (
                    connect(json!({"sub": "42", "expire_at": now() - 1})),
                    r#"< {"id":1,"error":{"code":110,"message":"expired"}}"#,
                ),
                (connect(json!({"sub": "42", "channel": "a"})), invalid),
                (by("other", json!({"sub": "42"})), invalid),
                (json!({"id": 1, "connect": {"token": "x"}}).to_string(), invalid),
                (
                    // {"alg":"none"}
                    json!({"id": 1, "connect": {"token": "eyJhbGciOiJub25lIn0.eyJzdWIiOiI0MiJ9."}})
                        .to_string(),
                    invalid,
                ),
                (r#"{"connect":{}}"#.into(), denied),
                (r#"{"id":1,"subscribe":{"channel":"a"}}"#.into(), denied),
                (r#"{"id":1,"publish":{"channel":"a","data":1}}"#.into(), denied),
                ("{}".into(), denied),
            ],
        ),
        (
            anonymous,
            vec![
                (nobody.clone(), good),
                (connect(json!({"sub": "42", "exp": now() - 1})), old),
                (json!({"id": 1, "connect": {"token": "x"}}).to_string(), invalid),
            ],
        ),
        (
            insecure,
            vec![
                (nobody.clone(), good),
                // None is needed; one that is given has to be good. The connection doesn't expire.
                (connect(json!({"sub": "42", "exp": now() - 1})), old),
                (json!({"id": 1, "connect": {"token": "x"}}).to_string(), invalid),
                (connect(json!({"sub": "42", "exp": hour})), good),
            ],
        ),
        (
            strict,
            vec![
                (connect(json!({"sub": ""})), "x 3507 permission denied"),
                (connect(json!({"sub": "42"})), good),
            ],
        ),
        (
            audience,
            vec![
                (connect(json!({"sub": "42", "aud": "us", "iss": "me"})), good),
                (connect(json!({"sub": "42", "aud": ["them", "us"], "iss": "me"})), good),
                (connect(json!({"sub": "42", "aud": "them", "iss": "me"})), invalid),
                (connect(json!({"sub": "42", "aud": "us"})), invalid),
            ],
        ),
        (
            rotated,
            vec![
                (connect(json!({"sub": "42"})), good),
                (by("before", json!({"sub": "42"})), good),
                (by("other", json!({"sub": "42"})), invalid),
            ],
        ),
        (header, vec![(nobody.clone(), denied)]),
    ] {
        let node = Node::start(&file(options), &[]);
        for (command, outcome) in cases {
            println!("{options}: {command} {outcome}");
            node.client().talk(&format!("> {command}\n{outcome}"));
        }
        node.until_is("slots_in_use", 0);
    }
}

/// Expiries behind what clients can count: `ttl` says a year, and nothing is closed for them.
#[test]
fn expiries_far_away() {
    let node = Node::open(&["--client.ping_interval", "300ms", "--client.pong_timeout", "100ms"]);
    let year = 31_536_000;
    for at in [now() + year + 10, 9_999_999_999, now() * 1000, i64::MAX] {
        let (mut client, result) = node
            .connected_by(Speech::Json, json!({"token": token(json!({"sub": "42", "exp": at}))}));
        assert_eq!((&result["expires"], &result["ttl"]), (&json!(true), &json!(year)), "{at}");
        let token = token(json!({"sub": "42", "channel": "$a", "exp": at}));
        let asked = |id: u32, name: &str| {
            let token = &token;
            json!({"id": id, name: {"channel": "$a", "token": token}}).to_string()
        };
        let ttl = format!("\"expires\":true,\"ttl\":{year}");
        for (id, name) in [(2, "subscribe"), (3, "sub_refresh")] {
            client.send(&asked(id, name));
            let begin = format!("{{\"id\":{id},");
            let answer = loop {
                match client.next() {
                    Got::Line(line) if line.starts_with(&begin) => break line,
                    Got::Line(line) if line == "{}" => client.send("{}"),
                    other => panic!("{other:?}"),
                }
            };
            assert!(answer.contains(&ttl), "{at}: {answer}");
        }
        // Two pings later it is still there.
        for _ in 0..2 {
            assert_eq!(client.next(), Got::Line("{}".into()));
            client.send("{}");
        }
    }
}

#[test]
fn a_header_may_name_the_user() {
    let node = Node::open_with("", &["--client.user_id_http_header", "X-User"]);
    // Anonymous clients are allowed there, and then the header never counts.
    let mut client = Client::open_with(&node, CLIENTS, &[("X-User", "7")]);
    client.talk("> {\"id\":1,\"connect\":{}}\n< {\"id\":1,\"connect\":{*}}");
    client.subscribe("a");
    client.send(r#"{"id":2,"publish":{"channel":"a","data":1}}"#);
    let pushes = [client.line(), client.line()].join("");
    assert!(like(&pushes, "*\"info\":{\"user\":\"\",\"client\":*"), "{pushes}");

    let node = Node::start(
        "client.user_id_http_header = \"X-User\"\nclient.insecure = false\n\
         [channel.without_namespace]\nallow_subscribe_for_client = true\n\
         allow_publish_for_client = true",
        &[],
    );
    let mut client = Client::open_with(&node, CLIENTS, &[("X-User", "7")]);
    client.talk("> {\"id\":1,\"connect\":{}}\n< {\"id\":1,\"connect\":{*}}");
    client.subscribe("a");
    client.send(r#"{"id":2,"publish":{"channel":"a","data":1}}"#);
    let pushes = [client.line(), client.line()].join("");
    assert!(like(&pushes, "*\"info\":{\"user\":\"7\",\"client\":*"), "{pushes}");
    // Without it, nobody.
    node.client().talk("> {\"id\":1,\"connect\":{}}\nx 3501 bad request");
}

#[test]
fn a_connect_that_fails_leaves_nothing_but_to_close() {
    let node = Node::open(&["--close-timeout", "300ms"]);
    let old = token(json!({"sub": "42", "exp": now() - 1}));
    let connect = format!(r#"{{"id":1,"connect":{{"token":"{old}"}}}}"#);
    let error = r#"{"id":1,"error":{"code":109,"message":"token expired"}}"#;
    // The rest of that frame is not looked at; a further one is a fault.
    let mut client = node.client();
    client.talk(&format!(
        "> {connect}\\n{{\"id\":2,\"subscribe\":{{\"channel\":\"a\"}}}}\\nnonsense
         < {error}
         > {{\"id\":3,\"subscribe\":{{\"channel\":\"a\"}}}}
         x 3501 bad request"
    ));
    // The client closes.
    let mut client = node.client();
    client.talk(&format!("> {connect}\n< {error}"));
    client.close();
    // Or it doesn't, and the time is up.
    let mut client = node.client();
    client.talk(&format!("> {connect}\n< {error}"));
    assert_eq!(client.next(), Got::Lost);
    node.until_is("slots_in_use", 0);
}

#[test]
fn several_commands_in_a_frame_and_several_messages_back() {
    let node = Node::open(&[]);
    let mut raw = node.upgraded(CLIENTS);
    // A line feed behind the last one is fine.
    let batch = concat!(
        "{\"id\":1,\"connect\":{}}\n",
        "{\"id\":2,\"subscribe\":{\"channel\":\"nope:a\"}}\n",
        "{\"id\":3,\"rpc\":{}}\n",
        "{\"id\":4,\"unsubscribe\":{\"channel\":\"a\"}}\n",
    );
    raw.send(&frame(TEXT, batch.as_bytes()));
    let mut text = String::new();
    while text.lines().count() < 4 {
        let (first, payload) = raw.frame().unwrap();
        assert_eq!(first, TEXT);
        text += &(String::from_utf8(payload).unwrap() + "\n");
    }
    let expected = concat!(
        "{\"id\":1,\"connect\":{*}}\n",
        "{\"id\":2,\"error\":{\"code\":102,*}}\n",
        "{\"id\":3,\"error\":{\"code\":108,*}}\n",
        "{\"id\":4,\"unsubscribe\":{}}\n",
    );
    assert!(like(&text, expected), "{text}");

    // Commands in a binary frame count as well: the format was negotiated, not the opcode.
    let mut raw = node.upgraded(CLIENTS);
    raw.send(&frame(BINARY, br#"{"id":1,"connect":{}}"#));
    assert_eq!(raw.frame().unwrap().0, TEXT);

    // Ids are the client's business.
    node.connected().talk(
        r#"> {"id":4294967295,"rpc":{}}\n{"id":1,"rpc":{}}\n{"id":1,"rpc":{}}
           < {"id":4294967295,"error":{*}}
           < {"id":1,"error":{*}}
           < {"id":1,"error":{*}}"#,
    );
}

#[test]
fn positions() {
    let node = Node::open_with(NAMESPACES, &[]);
    let mut publisher = node.connected();
    let mut publish = |channel: &str, data: u32| {
        let id = publisher.command("publish", json!({"channel": channel, "data": data}));
        publisher.expect(&format!("{{\"id\":{id},\"publish\":{{}}}}"));
    };

    // A stream that has not begun: its epoch comes with offset 1, and then no more.
    let mut early = node.connected();
    early.talk(
        r#"> {"id":2,"subscribe":{"channel":"stream:a"}}
           < {"id":2,"subscribe":{}}"#,
    );
    let mut asked = node.connected();
    asked.send(r#"{"id":2,"subscribe":{"channel":"stream:a","positioned":true}}"#);
    let reply = asked.expect(r#"{"id":2,"subscribe":{"epoch":"*","positioned":true}}"#);
    let epoch = reply.split('"').nth(7).unwrap().to_owned();
    assert!(!epoch.is_empty() && epoch != "_", "{reply}");
    publish("stream:a", 7);
    publish("stream:a", 8);
    for client in [&mut early, &mut asked] {
        client.expect(&format!(
            r#"{{"push":{{"channel":"stream:a","pub":{{"data":7,"info":*,"offset":1,"epoch":"{epoch}"}}}}}}"#
        ));
        let second = client.expect(r#"{"push":{"channel":"stream:a","pub":{"data":8,*}}}"#);
        assert!(second.ends_with(r#","offset":2}}}"#), "{second}");
    }
    // A later one learns where the stream is.
    node.connected().talk(&format!(
        r#"> {{"id":2,"subscribe":{{"channel":"stream:a","positioned":true}}}}
           < {{"id":2,"subscribe":{{"epoch":"{epoch}","offset":2,"positioned":true}}}}"#
    ));
    // Forced, without being asked; the offset goes on beyond what is kept.
    for data in 0..5 {
        publish("forced:a", data);
    }
    node.connected().talk(
        r#"> {"id":2,"subscribe":{"channel":"forced:a"}}
           < {"id":2,"subscribe":{"epoch":"*","offset":5,"positioned":true}}"#,
    );
    // Without history there are no offsets, for any client.
    let mut plain = node.connected();
    plain.talk(
        r#"> {"id":2,"subscribe":{"channel":"a","positioned":true,"recoverable":true}}
           < {"id":2,"subscribe":{}}
           > {"id":3,"publish":{"channel":"a","data":{"x": 1 }}}"#,
    );
    let mut got = [plain.line(), plain.line()];
    got.sort();
    assert_eq!(got[0], r#"{"id":3,"publish":{}}"#);
    let expected =
        r#"{"push":{"channel":"a","pub":{"data":{"x": 1 },"info":{"user":"","client":"*"}}}}"#;
    assert!(like(&got[1], expected), "{}", got[1]);
}

#[test]
fn a_publication_names_its_publisher() {
    let node = Node::open(&[]);
    let claims = json!({"sub": "4\"2", "info": {"name": "Ann"}});
    let mut client = node.client();
    client.send(&json!({"id": 1, "connect": {"token": token(claims)}}).to_string());
    let reply: serde_json::Value = serde_json::from_str(&client.line()).unwrap();
    let id = reply["connect"]["client"].as_str().unwrap().to_owned();
    client.subscribe("a");
    let mut other = node.connected();
    other.subscribe("a");
    client.send(r#"{"id":3,"publish":{"channel":"a","data":"line\nfeed"}}"#);
    let push: serde_json::Value = serde_json::from_str(&other.line()).unwrap();
    assert_eq!(
        push,
        json!({"push": {"channel": "a", "pub": {
            "data": "line\nfeed",
            "info": {"user": "4\"2", "client": id, "conn_info": {"name": "Ann"}},
        }}})
    );
}

#[test]
fn after_unsubscribing_nothing_more_comes() {
    let node = Node::open(&[]);
    let mut client = node.connected();
    client.talk(
        r#"> {"id":2,"subscribe":{"channel":"a"}}\n{"id":3,"unsubscribe":{"channel":"a"}}\n{"id":4,"subscribe":{"channel":"a"}}
           < {"id":2,"subscribe":{}}
           < {"id":3,"unsubscribe":{}}
           < {"id":4,"subscribe":{}}"#,
    );
    client.pub_sub("a", 5);
    client.talk(
        r#"> {"id":6,"unsubscribe":{"channel":"a"}}
           < {"id":6,"unsubscribe":{}}
           > {"id":7,"publish":{"channel":"a","data":1}}
           < {"id":7,"publish":{}}
           > {"id":8,"rpc":{}}
           < {"id":8,"error":{*}}"#,
    );
    // The home goes first, and the shard of the subscriber when the home has confirmed.
    node.until_is("channels_home", 0);
    let figures = node.until_is("channels_local", 0);
    assert_eq!(figures["subscriptions"], 0);
}

/// The checks of a subscribe come in an order, and the first that fails is the answer (section 14).
#[test]
fn checks_of_a_subscribe() {
    let node = Node::open_with(NAMESPACES, &["--client.channel_limit", "2"]);
    let long = "x".repeat(256);
    let closed = None;
    for speech in BOTH {
        // Requests that break two rules: what they are answered with by a client that is subscribed
        // to `a`, and by one that has no room for more.
        for (request, one, full) in [
            (json!({"channel": "", "type": 4}), closed, closed),
            (json!({"type": 1}), closed, closed),
            (json!({"channel": "", "delta": "xdelta"}), closed, closed),
            // The type before delta and names.
            (json!({"channel": "b", "type": 4, "delta": "xdelta"}), Some(108), Some(108)),
            (json!({"channel": "a", "type": 4}), Some(108), Some(108)),
            (json!({"channel": long, "type": 4}), Some(108), Some(108)),
            (json!({"channel": "nope:a", "type": 4}), Some(108), Some(108)),
            // Delta before names.
            (json!({"channel": long, "delta": "xdelta"}), closed, closed),
            (json!({"channel": "a", "delta": "xdelta"}), closed, closed),
            (json!({"channel": "nope:a", "delta": "xdelta"}), closed, closed),
            // Length, then whether it is there, then whether there is room.
            (json!({"channel": long, "type": 1}), Some(107), Some(107)),
            (json!({"channel": "a", "type": 1}), Some(105), Some(105)),
            (json!({"channel": "a", "token": "x"}), Some(105), Some(105)),
            (json!({"channel": "a", "tf": {"cmp": "near"}}), Some(105), Some(105)),
            (json!({"channel": "nope:a"}), Some(102), Some(106)),
            (json!({"channel": "grün"}), Some(107), Some(106)),
            (json!({"channel": "b", "type": 1}), Some(103), Some(106)),
            (json!({"channel": "$b"}), Some(103), Some(106)),
            // Namespace, name, type.
            (json!({"channel": "nope:grün", "type": 1}), Some(102), Some(106)),
            (json!({"channel": "nope:a", "type": 1}), Some(102), Some(106)),
            (json!({"channel": "grün", "type": 2}), Some(107), Some(106)),
            (json!({"channel": "regex:abd", "type": 3}), Some(107), Some(106)),
            (json!({"channel": "regex:abd", "token": "x"}), Some(107), Some(106)),
            // Permission before filters.
            (json!({"channel": "b", "token": "x", "tf": {"cmp": "near"}}), Some(103), Some(106)),
            (json!({"channel": "closed:b", "tf": {"cmp": "near"}}), Some(103), Some(106)),
            (json!({"channel": "b", "tf": {"cmp": "near"}}), Some(107), Some(106)),
        ] {
            for (channels, expected) in [(&["a"][..], one), (&["a", "x"], full)] {
                let mut client = node.connected_in(speech);
                channels.iter().for_each(|channel| client.subscribe(channel));
                let id = client.command("subscribe", request.clone());
                match (client.next(), expected) {
                    (Got::Line(line), Some(code)) => {
                        let error = format!("{{\"id\":{id},\"error\":{{\"code\":{code},*}}}}");
                        assert!(like(&line, &error), "{request}: {line}, not {code}");
                    }
                    (got, _) => {
                        let close = Got::Close(3501, "bad request".into());
                        assert_eq!((&got, expected), (&close, None), "{request}");
                    }
                }
            }
        }
    }
}

/// Subscription types and requests that are not built are answered, and cost nothing.
#[test]
fn other_types() {
    let node = Node::open(&[]);
    for speech in BOTH {
        node.connected_in(speech).talk(
            r#"> {"id":2,"subscribe":{"channel":"a","type":1,"phase":2,"limit":10}}
               < {"id":2,"error":{"code":103,"message":"permission denied"}}
               > {"id":3,"subscribe":{"channel":"a","type":2}}
               < {"id":3,"error":{"code":103,"message":"permission denied"}}
               > {"id":4,"subscribe":{"channel":"a","type":3}}
               < {"id":4,"error":{"code":103,"message":"permission denied"}}
               > {"id":5,"subscribe":{"channel":"a","type":4}}
               < {"id":5,"error":{"code":108,"message":"not available"}}
               > {"id":6,"sub_refresh":{"channel":"a","type":1,"track":[{"signature":"x","items":[{"key":"k","version":1}]}]}}
               < {"id":6,"error":{"code":103,"message":"permission denied"}}
               > {"id":7,"subscribe":{"channel":"a"}}
               < {"id":7,"subscribe":{}}
               > {"id":8,"sub_refresh":{"channel":"a","type":1,"track":[{"signature":"x","items":[{"key":"k","version":1}]}]}}
               < {"id":8,"error":{"code":108,"message":"not available"}}
               > {"id":9,"sub_refresh":{"channel":"a","type":2,"untrack":["k"]}}
               < {"id":9,"error":{"code":108,"message":"not available"}}
               > {"id":10,"publish":{"channel":"a","type":1,"key":"k","data":1}}
               < {"id":10,"error":{"code":108,"message":"not available"}}
               > {"id":11,"publish":{"channel":"a","type":1,"key":"k","removed":true}}
               < {"id":11,"error":{"code":108,"message":"not available"}}
               > {"id":12,"publish":{"channel":"nope:a","type":1,"key":"k","data":1}}
               < {"id":12,"error":{"code":102,"message":"unknown channel"}}
               > {"id":13,"unsubscribe":{"channel":"a"}}
               < {"id":13,"unsubscribe":{}}"#,
        );
    }
    assert_eq!(node.figures()["publications"], 0);
}

/// Of several requests in one command the first counts, in the schema's order.
#[test]
fn several_requests_in_a_command() {
    let node = Node::open(&[]);
    for speech in BOTH {
        node.client_in(speech).talk(
            r#"> {"id":1,"subscribe":{"channel":"a"},"connect":{}}
               < {"id":1,"connect":{*}}
               > {"id":2,"publish":{"channel":"a","data":1},"unsubscribe":{"channel":"a"},"subscribe":{"channel":"a"}}
               < {"id":2,"subscribe":{}}
               > {"id":3,"presence":{"channel":"a"},"unsubscribe":{"channel":"b"},"publish":{"channel":"a","data":1}}
               < {"id":3,"unsubscribe":{}}
               > {"id":4,"rpc":{},"history":{"channel":"nope:a"},"presence":{"channel":"a"}}
               < {"id":4,"error":{"code":108,"message":"not available"}}
               > {"id":5,"rpc":{},"history":{"channel":"nope:a"}}
               < {"id":5,"error":{"code":102,"message":"unknown channel"}}
               > {"id":6,"send":{"data":1},"rpc":{}}
               < {"id":6,"error":{"code":108,"message":"not available"}}
               > {"id":7,"refresh":{"token":"x"},"send":{"data":1}}
               x 3508 not available"#,
        );
        for (command, code, reason) in [
            (r#"{"id":2,"subscribe":{"channel":"a"},"ping":{}}"#, 3501, "bad request"),
            (r#"{"id":2,"subscribe":{"channel":"a"},"connect":{}}"#, 3501, "bad request"),
            (
                r#"{"id":2,"sub_refresh":{"channel":"a"},"refresh":{"token":"x"}}"#,
                3500,
                "invalid token",
            ),
        ] {
            let mut client = node.connected_in(speech);
            client.talk(&format!("> {command}\nx {code} {reason}"));
        }
    }
}

/// A subscribe in flight is undone by an unsubscribe behind it, whatever it was to be.
#[test]
fn a_subscribe_that_is_taken_back() {
    let more = "[[channel.namespaces]]\nname = \"all\"\nhistory_size = 10\nhistory_ttl = \"10m\"\n\
                force_recovery = true\npresence = true\njoin_leave = true\n\
                force_push_join_leave = true\nallow_tags_filter = true\n\
                allow_subscribe_for_client = true\nallow_subscribe_for_anonymous = true\n\
                allow_presence_for_client = true\nallow_presence_for_anonymous = true\n\
                allow_publish_for_client = true\nallow_publish_for_anonymous = true";
    let node = Node::open_with(more, &["--shards", "3"]);
    let mut publisher = node.connected();
    for speech in BOTH {
        for number in 0..5 {
            let channel = format!("all:{number}");
            publisher.publish(&channel, json!(1));
            let mut client = node.connected_in(speech);
            let subscribe = json!({
                "channel": channel, "recover": true, "flag": number, "offset": number,
                "tf": {"key": "k", "cmp": "nex"},
            });
            client.send(&format!(
                "{}\n{}\n{}",
                json!({"id": 2, "subscribe": subscribe}),
                json!({"id": 3, "unsubscribe": {"channel": channel}}),
                json!({"id": 4, "unsubscribe": {"channel": channel}}),
            ));
            // Each is answered; the second unsubscribe has nothing to wait for.
            let mut lines = [client.line(), client.line(), client.line()];
            lines.sort();
            assert!(lines[0].starts_with("{\"id\":2,"), "{lines:?}");
            assert_eq!(
                lines[1..],
                ["{\"id\":3,\"unsubscribe\":{}}", "{\"id\":4,\"unsubscribe\":{}}"]
            );
            let answer = client.ask("presence_stats", json!({"channel": channel}));
            assert_eq!(answer, json!({"presence_stats": {"num_clients": 0, "num_users": 0}}));
            // Nothing is delivered.
            client.publish(&channel, json!(2));
            assert_eq!(client.ask("rpc", json!({}))["error"]["code"], 108);
        }
    }
    let figures = node.until("all gone", |figures| {
        (figures["subscriptions"], figures["channels_local"], figures["filters"]) == (0, 0, 0)
    });
    assert_eq!(figures["gaps_told"], 0);
}

/// Everything is allowed, but what isn't on, and private channels.
#[test]
fn insecure() {
    let file = r#"
        client.insecure = true
        client.token.hmac_secret_key = "secret"
        [[channel.namespaces]]
        name = "full"
        presence = true
        join_leave = true
        history_size = 10
        history_ttl = "10m"
        allow_user_limited_channels = true
    "#;
    let node = Node::start(file, &[]);
    for speech in BOTH {
        let channel = format!("full:{speech:?}");
        let mut client = node.connected_in(speech);
        client.talk(&format!(
            r#"> {{"id":2,"subscribe":{{"channel":"a","positioned":true,"join_leave":true}}}}
               < {{"id":2,"subscribe":{{}}}}
               > {{"id":3,"subscribe":{{"channel":"{channel}","recoverable":true,"join_leave":true}}}}
               < {{"id":3,"subscribe":{{"recoverable":true,"epoch":"*","positioned":true}}}}
               < {{"push":{{"channel":"{channel}","join":{{"info":{{"user":"","client":"*"}}}}}}}}
               > {{"id":4,"presence_stats":{{"channel":"{channel}"}}}}
               < {{"id":4,"presence_stats":{{"num_clients":1,"num_users":1}}}}
               > {{"id":5,"history":{{"channel":"{channel}"}}}}
               < {{"id":5,"history":{{"publications":[],"epoch":"*","offset":0}}}}
               > {{"id":6,"subscribe":{{"channel":"{channel}#7"}}}}
               < {{"id":6,"subscribe":{{}}}}
               > {{"id":7,"presence":{{"channel":"a"}}}}
               < {{"id":7,"error":{{"code":108,"message":"not available"}}}}
               > {{"id":8,"history":{{"channel":"a"}}}}
               < {{"id":8,"error":{{"code":108,"message":"not available"}}}}
               > {{"id":9,"subscribe":{{"channel":"$a"}}}}
               < {{"id":9,"error":{{"code":103,"message":"permission denied"}}}}
               > {{"id":10,"subscribe":{{"channel":"nope:a"}}}}
               < {{"id":10,"error":{{"code":102,"message":"unknown channel"}}}}
               > {{"id":11,"publish":{{"channel":"b","data":1}}}}
               < {{"id":11,"publish":{{}}}}"#
        ));
        // No token is needed, but one that is given has to be good, its expiry too.
        let old =
            json!({"id": 1, "connect": {"token": token(json!({"sub": "42", "exp": now() - 10}))}});
        let expired = r#"< {"id":1,"error":{"code":109,"message":"token expired"}}"#;
        node.client_in(speech).talk(&format!("> {old}\n{expired}"));
        let bad = json!({"id": 1, "connect": {"token": token_by("other", json!({"sub": "42"}))}});
        node.client_in(speech).talk(&format!("> {bad}\nx 3500 invalid token"));
    }
}

#[test]
fn calls() {
    let node = Node::open_with("[rpc.ping]\nenabled = true\nmethod = \"echo?\"", &[]);
    for speech in BOTH {
        node.connected_in(speech).talk(
            r#"> {"id":2,"rpc":{"method":"echo?","data":{"a":1}}}
               < {"id":2,"rpc":{}}
               > {"id":3,"rpc":{"method":"echo"}}
               < {"id":3,"error":{"code":104,"message":"method not found"}}
               > {"id":4,"rpc":{}}
               < {"id":4,"error":{"code":104,"message":"method not found"}}
               > {"send":{"data":1}}
               x 3508 not available"#,
        );
    }
}
