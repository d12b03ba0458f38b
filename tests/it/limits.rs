//! Limits of connections: who comes when the node is full gets 503, and nobody else suffers.

use serde_json::{Value, json};

use crate::delivery::publish_until;
use crate::harness::*;

/// Asks for an upgrade.
fn status(node: &Node) -> (u16, Raw) {
    let mut raw = node.raw();
    raw.send(upgrade(CLIENTS, &[]).as_bytes());
    (raw.response().status, raw)
}

/// Asks for an upgrade, and connects if there is one.
fn client_status(node: &Node) -> (u16, Raw) {
    let (answer, mut raw) = status(node);
    if answer == 101 {
        raw.send(&frame(TEXT, br#"{"id":1,"connect":{}}"#));
        let reply = String::from_utf8(raw.frame().unwrap().1).unwrap();
        assert!(reply.contains("\"client\""), "{reply}");
    }
    (answer, raw)
}

#[test]
fn connection_limit() {
    let node = Node::open(&["--client.connection_limit", "3", "--echo"]);
    let mut clients: Vec<Client> = (0..3).map(|_| node.connected()).collect();
    for _ in 0..5 {
        let (answer, mut raw) = status(&node);
        assert_eq!(answer, 503);
        raw.ends();
    }
    let figures = node.figures();
    assert_eq!((figures["refused_unavailable"], figures["clients"]), (5, 3));
    clients[0].subscribe("a");
    clients[0].pub_sub("a", 2);
    // One goes, one may come.
    clients.pop().unwrap().close();
    node.until_is("clients", 2);
    clients.push(node.connected());
    assert_eq!(status(&node).0, 503);
    // A refused one took nobody's place, also when it was refused for another reason.
    drop(clients);
    node.until_is("clients", 0);
    for _ in 0..3 {
        let mut raw = node.raw();
        raw.send(upgrade(CLIENTS, &[]).replace("GET", "PUT").as_bytes());
        assert_eq!(raw.response().status, 405);
    }
    let _clients: Vec<Client> = (0..3).map(|_| node.connected()).collect();
}

#[test]
fn connection_rate_limit() {
    const RATE: u64 = 20;
    let node = Node::open(&["--client.connection_rate_limit", "20"]);
    let mut answers = vec![];
    let mut open = vec![];
    let before = node.figures()["uptime_ms"];
    for _ in 0..RATE * 5 {
        let (answer, raw) = status(&node);
        answers.push(answer);
        open.push(raw);
    }
    let seconds = (node.figures()["uptime_ms"] - before) / 1000 + 2;
    let good = answers.iter().filter(|status| **status == 101).count() as u64;
    assert!(good >= RATE.min(answers.len() as u64), "{answers:?}");
    assert!(good <= RATE * seconds, "{good} within {seconds} s");
    assert!(answers.iter().all(|status| [101, 503].contains(status)), "{answers:?}");
    // Connected clients are served.
    let mut first = open.swap_remove(0);
    first.send(&frame(TEXT, br#"{"id":1,"connect":{}}"#));
    assert_eq!(first.frame().unwrap().0, TEXT);
    // And a second later others come in again.
    node.until("in again", |_| status(&node).0 == 101);
}

/// A small descriptor limit makes small shards. All of them fill up, wherever the kernel sends the
/// connections; what doesn't fit gets 503; those that are there don't notice.
#[test]
fn a_full_shard_passes_connections_to_one_with_room() {
    let node = limited("150");
    let hard = node.soft_and_hard_limits();
    assert_eq!(hard, (150, 150), "the soft limit is raised at start");

    let mut first = node.connected();
    first.subscribe("a");
    let mut clients = vec![];
    let fill = |clients: &mut Vec<Raw>| {
        loop {
            let (answer, raw) = client_status(&node);
            if answer == 503 {
                break;
            }
            assert_eq!(answer, 101);
            clients.push(raw);
            assert!(clients.len() < 300, "more than the limit allows");
        }
        // Both shards are as full as one can be.
        let per_shard = (clients.len() + 1) as u64 / 2;
        assert!(per_shard > 80, "only {per_shard} in each of 2 shards");
        node.figures()
    };
    // Connections that came to the first to be full went to the other. Now and then the kernel fills
    // both at the same time; ten times in a row it doesn't.
    let mut figures = fill(&mut clients);
    for _ in 0..10 {
        if figures["connections_passed"] > 0 {
            break;
        }
        clients.clear();
        node.until_is("slots_in_use", 1);
        figures = fill(&mut clients);
    }
    assert!(figures["connections_passed"] > 0, "{figures:#?}");
    let open = figures["connections_open"];

    // A storm of those who don't fit.
    for _ in 0..100 {
        let (answer, mut raw) = status(&node);
        assert_eq!(answer, 503);
        raw.ends();
    }
    first.pub_sub("a", 2);
    let figures = node.until("settled", |figures| figures["connections_open"] <= open);
    assert!(figures["connections_refused_full"] >= 100);
    assert_eq!(figures["accept_failed"], 0);
    for raw in &mut clients {
        raw.send(&frame(PING, b"alive"));
        assert_eq!(raw.frame(), Some((PONG, b"alive".to_vec())));
    }

    // Room again.
    clients.truncate(50);
    node.until("room", |figures| figures["slots_in_use"] <= 51);
    let more: Vec<Client> = (0..50).map(|_| node.connected()).collect();
    first.pub_sub("a", 3);
    drop((more, clients, first));
    node.until_is("slots_in_use", 0);
}

/// More connections than descriptors at once: those that say nothing lose their places to others, the oldest
/// first, so that everybody is served meanwhile. The loop neither spins nor dies.
#[test]
fn sockets_that_say_nothing_lock_nobody_out() {
    let node = limited("120");
    let health = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut silent: Vec<Raw> = (0..400).map(|_| node.raw()).collect();
    node.until("full", |figures| figures["replaced_head"] > 0);
    // Both shards, as far as chance wants it.
    for _ in 0..10 {
        let mut raw = node.raw();
        raw.send(health.as_bytes());
        assert_eq!(raw.response().status, 200);
        assert_eq!(node.raw().post("/api/info", &[KEY], "{}").status, 200);
        node.is_healthy();
        silent.extend((0..20).map(|_| node.raw()));
    }
    // The oldest went, without a word; the youngest is there.
    assert_eq!(silent[0].rest(), b"");
    let last = silent.last_mut().unwrap();
    last.send(health.as_bytes());
    assert_eq!(last.response().status, 200);
    let figures = node.figures();
    assert_eq!((figures["connections_refused_full"], figures["accept_failed"]), (0, 0));
    drop(silent);
    node.until_is("slots_in_use", 0);
}

/// Connections that were opened and never connected, and those that close, take nobody's place either.
#[test]
fn unconnected_sockets_are_not_clients() {
    let node = Node::open(&["--client.connection_limit", "2", "--close-timeout", "10m"]);
    let stale: Vec<Raw> = (0..10).map(|_| node.upgraded(CLIENTS)).collect();
    assert_eq!(node.figures()["clients"], 0);
    let mut first = node.connected();
    // One that is being closed, and doesn't answer that.
    let mut closing = node.upgraded(CLIENTS);
    closing.send(&frame(TEXT, br#"{"id":1,"connect":{}}"#));
    node.until_is("clients", 2);
    assert_eq!(status(&node).0, 503);
    closing.send(&frame(TEXT, b"{"));
    node.until_is("clients", 1);
    let second = node.connected();
    assert_eq!(status(&node).0, 503);
    // The limit holds for those that came in before it was reached.
    let mut late = stale;
    let late = late.last_mut().unwrap();
    late.send(&frame(TEXT, br#"{"id":1,"connect":{}}"#));
    let (_, reply) = late.frame().unwrap();
    let reply = String::from_utf8(reply).unwrap();
    assert!(reply.contains("\"code\":111") && reply.contains("\"temporary\":true"), "{reply}");
    assert_eq!(node.figures()["clients"], 2);
    first.subscribe("a");
    first.pub_sub("a", 2);
    drop(second);
    node.until_is("clients", 1);
}

/// A node full of clients answers health checks and the application.
#[test]
fn places_for_requests_are_reserved() {
    // Without keys there is no answer: over TLS these are closed.
    if over_tls() {
        return;
    }
    let node = limited("120");
    let mut clients: Vec<Raw> = Vec::new();
    let mut refused = 0;
    while refused < 20 {
        let (answer, raw) = client_status(&node);
        match answer {
            101 => clients.push(raw),
            other => {
                assert_eq!(other, 503);
                refused += 1;
            }
        }
        assert!(clients.len() < 300, "more than the limit allows");
    }
    for _ in 0..20 {
        let mut raw = node.raw();
        raw.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
        // It is answered, and says that the node takes no more clients.
        assert_eq!(raw.response().body, r#"{"reason":"at the connection limit"}"#);
        let publish = r#"{"channel":"a","data":1}"#;
        assert_eq!(node.raw().post("/api/publish", &[KEY], publish).status, 200);
    }
    let figures = node.figures();
    assert!(figures["busy_places"] >= 20, "{figures:#?}");
    for client in &mut clients {
        client.send(&frame(PING, b"alive"));
        assert_eq!(client.frame(), Some((PONG, b"alive".to_vec())));
    }
}

/// Over its limit of memory a node takes nobody in, and the largest queue goes; then it goes on.
#[test]
fn memory_limit() {
    let node = Node::open(&["--memory-limit", "16MiB"]);
    node.until("over it", |_| status(&node).0 == 503);

    let node = Node::open(&[
        "--memory-limit",
        "96MiB",
        "--client.queue_max_size",
        "1000000000",
        "--websocket.write_timeout",
        "10m",
    ]);
    let mut small = node.connected();
    small.subscribe("small");
    let mut stuck = node.upgraded(CLIENTS);
    stuck.send(&frame(TEXT, br#"{"id":1,"connect":{}}"#));
    stuck.send(&frame(TEXT, br#"{"id":2,"subscribe":{"channel":"a"}}"#));
    node.until_is("subscriptions", 2);
    publish_until(&node, "closed_memory", "a");
    let figures =
        node.until("gone", |figures| figures["queued_bytes"] == 0 && figures["sessions_open"] == 1);
    assert_eq!(figures["closed_memory"], 1);
    small.pub_sub("small", 2);
    node.until("under it again", |_| status(&node).0 == 101);
    node.is_healthy();
}

/// History grows up to the limit of memory and not beyond it: what was not used for longest goes, and others
/// are served meanwhile.
#[test]
fn history_keeps_to_the_memory_limit() {
    const LIMIT: u64 = 128 << 20;
    let node = Node::open_with(KEPT, &["--memory-limit", "128MiB", "--shards", "2"]);
    let mut publisher = node.connected();
    let data = "x".repeat(60_000);
    let mut refused = 0;
    for channel in 0..4000 {
        let request = json!({"channel": format!("kept:{channel}"), "data": data});
        let reply = publisher.ask("publish", request);
        match reply["error"]["code"].as_u64() {
            None => {}
            Some(100) => refused += 1,
            Some(_) => panic!("{reply}"),
        }
        if channel % 1000 == 999 {
            assert_eq!(status(&node).0, 101);
            node.is_healthy();
        }
    }
    let figures = node.figures();
    assert!(refused < 100, "{refused} of 4000 were refused");
    assert!(figures["shed_channels"] > 1000, "{figures:?}");
    assert!(figures["rss_bytes"] < LIMIT + LIMIT / 8, "{figures:?}");
    // It isn't forgotten before it has to be, and the latest is there.
    assert!(figures["history_bytes"] > LIMIT / 3, "{figures:?}");
    let kept = publisher.ask("history", json!({"channel": "kept:3998", "limit": 1}));
    let last = publisher.ask("history", json!({"channel": "kept:3999", "limit": 1}));
    let count = |reply: &Value| reply["history"]["publications"].as_array().map_or(0, Vec::len);
    assert!(count(&kept) + count(&last) > 0, "what was published last isn't there");
}

/// Clients that only read, or subscribe and leave, push out no channel that holds something.
#[test]
fn readers_push_out_nobody() {
    let node = Node::open_with(KEPT, &["--channels-max", "20", "--shards", "1"]);
    let mut client = node.connected();
    for channel in 0..10 {
        client.publish(&format!("kept:{channel}"), json!(channel));
    }
    let mut epoch = None;
    for other in 0..100 {
        let name = format!("kept:other{}", other % 50);
        let history = client.ask("history", json!({"channel": name, "limit": 1}));
        let subscribed = client.ask("subscribe", json!({"channel": name, "positioned": true}));
        client.ask("unsubscribe", json!({"channel": name}));
        let told = &subscribed["subscribe"]["epoch"];
        assert_eq!(&history["history"]["epoch"], told);
        if other % 50 == 0 {
            assert_eq!(epoch.get_or_insert_with(|| told.clone()), told);
        }
    }
    node.until("only those that hold something are there", |figures| {
        (figures["channels_home"], figures["history_publications"]) == (10, 10)
    });
    // And it goes on from there.
    client.publish("kept:other0", json!("first"));
    let request = json!({"channel": "kept:other0", "recoverable": true, "recover": true, "epoch": epoch, "offset": 0});
    let reply = client.ask("subscribe", request);
    assert_eq!(reply["subscribe"]["recovered"], true, "{reply}");
    assert_eq!(reply["subscribe"]["publications"][0]["data"], "first", "{reply}");
}

/// A filter has a bound, and so have those of a connection.
#[test]
fn filters_of_a_connection() {
    let node = Node::open_with(
        "[[channel.namespaces]]\nname = \"tags\"\nallow_tags_filter = true\n\
         allow_subscribe_for_client = true\nallow_subscribe_for_anonymous = true",
        &["--shards", "1"],
    );
    let mut client = node.connected();
    let subscribe = |client: &mut Client, channel: usize, vals: Vec<String>| {
        let filter = json!({"key": "k", "cmp": "in", "vals": vals});
        client.ask("subscribe", json!({"channel": format!("tags:{channel}"), "tf": filter}))
    };
    let vals = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>();
    let reply = subscribe(&mut client, 0, vals(5000));
    assert_eq!(reply["error"]["code"], 107, "{reply}");
    let refused = (0..100).position(|channel| {
        let reply = subscribe(&mut client, channel, vals(256));
        assert!(reply["error"].is_null() || reply["error"]["code"] == 106, "{reply}");
        !reply["error"].is_null()
    });
    // Equal ones count each time.
    let refused = refused.expect("100 large filters are too many");
    assert!((5..50).contains(&refused), "{refused}");
    node.until("equal ones are kept once", |figures| {
        (1..30_000).contains(&figures["filters_bytes"])
    });
    client.ask("unsubscribe", json!({"channel": "tags:0"}));
    let reply = subscribe(&mut client, refused, vals(256));
    assert!(reply["error"].is_null(), "{reply}");
    client.close();
    node.until_is("filters_bytes", 0);
}

/// A namespace with history that everybody may use.
const KEPT: &str = "[[channel.namespaces]]\nname = \"kept\"\nhistory_size = 10\n\
                    history_ttl = \"1h\"\nallow_positioning = true\nallow_recovery = true\n\
                    allow_publish_for_client = true\nallow_publish_for_anonymous = true\n\
                    allow_subscribe_for_client = true\nallow_subscribe_for_anonymous = true\n\
                    allow_history_for_client = true\nallow_history_for_anonymous = true";

/// Streams that nobody is subscribed to are kept for their history, so many at most: the oldest
/// goes, and begins anew with another epoch.
#[test]
fn channels_max() {
    let node = Node::open(&["--channels-max", "10", "--shards", "1"]);
    let mut client = node.connected();
    let mut position = |channel: usize| {
        let name = format!("stream:{channel}");
        let request = json!({"channel": name, "positioned": true});
        let id = client.command("subscribe", request);
        let reply = client.expect(&format!("{{\"id\":{id},\"subscribe\":{{*}}}}"));
        let id = client.command("unsubscribe", json!({"channel": name}));
        client.expect(&format!("{{\"id\":{id},\"unsubscribe\":{{}}}}"));
        let reply: Value = serde_json::from_str(&reply).unwrap();
        let offset = reply["subscribe"]["offset"].as_u64().unwrap_or(0);
        (offset, reply["subscribe"]["epoch"].as_str().unwrap().to_owned())
    };
    let mut publisher = node.connected();
    let mut publish = |channel: usize| {
        let request = json!({"channel": format!("stream:{channel}"), "data": 1});
        let id = publisher.command("publish", request);
        publisher.expect(&format!("{{\"id\":{id},\"publish\":{{}}}}"));
    };
    publish(0);
    let first = position(0);
    assert_eq!(first.0, 1);
    for channel in 1..100 {
        publish(channel);
    }
    let figures = node.until("settled", |figures| figures["channels_idle"] <= 10);
    assert_eq!((figures["channels_home"], figures["channels_idle"]), (10, 10));
    assert_eq!(position(99).0, 1);
    let again = position(0);
    assert_eq!(again.0, 0);
    assert_ne!(again.1, first.1, "a new life of the stream has a new epoch");
}

/// History with a time is dropped when it is over, without any request.
#[test]
fn history_ends_with_its_time() {
    let short = "[[channel.namespaces]]\nname = \"short\"\nallow_publish_for_client = true\n\
                 allow_publish_for_anonymous = true\n\
                 history_size = 5\nhistory_ttl = \"100ms\"\nhistory_meta_ttl = \"200ms\"";
    let node = Node::open_with(short, &[]);
    let mut client = node.connected();
    for channel in 0..50 {
        let request = json!({"channel": format!("short:{channel}"), "data": 1});
        let id = client.command("publish", request);
        client.expect(&format!("{{\"id\":{id},\"publish\":{{}}}}"));
    }
    assert_eq!(node.figures()["publications"], 50);
    node.until_is("channels_home", 0);
}

fn limited(descriptors: &str) -> Node {
    let script = format!("ulimit -Sn 64; ulimit -Hn {descriptors}; exec \"$0\" \"$@\"");
    let file = r#"
        client.allow_anonymous_connect_without_token = true
        http_api.key = "k"
        health.enabled = true
        [channel.without_namespace]
        allow_subscribe_for_client = true
        allow_subscribe_for_anonymous = true
        allow_publish_for_client = true
        allow_publish_for_anonymous = true
    "#;
    Node::launch(&["sh", "-c", &script], file, "0", &["--shards", "2"]).unwrap()
}

impl Node {
    fn soft_and_hard_limits(&self) -> (u64, u64) {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", self.pid())).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let numbers: Vec<u64> =
            line.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
        (numbers[0], numbers[1])
    }
}
