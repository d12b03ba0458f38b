//! Histories in JetStream, seen by clients of two nodes. Each test starts a server for itself; they do nothing
//! without one of version 2.11 or newer, unless `ROOST_TEST_NATS` is set.

use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{BOUND, Client, Node};
use crate::nats::{NatsServer, file_with, node_with};
use crate::redis::{data, subscribe};

/// Namespaces with history.
pub(crate) const NAMESPACES: &str = r#"
[broker.nats.jetstream]
enabled = true
STORAGE
[[channel.namespaces]]
name = "stream"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_history_for_client = true
allow_history_for_anonymous = true
force_positioning = true
force_recovery = true
history_size = 10
history_ttl = "10m"
allowed_delta_types = ["fossil"]
[[channel.namespaces]]
name = "cache"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
force_recovery = true
force_recovery_mode = "cache"
history_size = 1
history_ttl = "10m"
[[channel.namespaces]]
name = "short"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
force_recovery = true
history_size = 10
history_ttl = "1s"
"#;

/// The version that histories need is there.
pub(crate) fn newest() -> Option<()> {
    let program = std::env::var("ROOST_NATS_SERVER").unwrap_or_else(|_| "nats-server".to_owned());
    let version = Command::new(&program).arg("--version").output().ok()?.stdout;
    let version = String::from_utf8_lossy(&version).into_owned();
    let minor = version.split('.').nth(1).and_then(|part| part.parse().ok()).unwrap_or(0);
    if !version.contains("v2.") || minor < 11 {
        assert!(std::env::var_os("ROOST_TEST_NATS").is_none(), "no nats-server of 2.11: {version}");
        eprintln!("skipped: no nats-server of 2.11");
        return None;
    }
    Some(())
}

/// A server with JetStream.
pub(crate) fn server() -> Option<NatsServer> {
    newest()?;
    NatsServer::start(&["-js"])
}

fn node_of(server: &NatsServer, storage: &str) -> Node {
    let storage = format!("storage = \"{storage}\"");
    node_with(server, &NAMESPACES.replace("STORAGE", &storage))
}

fn pair(storage: &str) -> Option<(NatsServer, Node, Node)> {
    let server = server()?;
    let (a, b) = (node_of(&server, storage), node_of(&server, storage));
    Some((server, a, b))
}

fn publish(node: &Node, channel: &str, data: impl Into<Value>) -> Value {
    let answer = node.call("publish", json!({"channel": channel, "data": data.into()}));
    assert!(answer["error"].is_null(), "{answer}");
    answer["result"].clone()
}

fn publish_until_taken(node: &Node, channel: &str, n: u64) {
    let since = Instant::now();
    while !node.call("publish", json!({"channel": channel, "data": n}))["error"].is_null() {
        assert!(since.elapsed() < BOUND, "never taken");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// The data of a page of the history.
fn page(node: &Node, params: Value) -> (Vec<Value>, Value) {
    let answer = node.call("history", params);
    let result = &answer["result"];
    let list = result["publications"].as_array().unwrap_or_else(|| panic!("{answer}"));
    (list.iter().map(|of| of["data"].clone()).collect(), result.clone())
}

fn recover(client: &mut Client, id: u32, channel: &str, position: &Value) -> Value {
    let (offset, epoch) = (&position["offset"], &position["epoch"]);
    subscribe(
        client,
        id,
        json!({"channel": channel, "recover": true, "offset": offset, "epoch": epoch}),
    )
}

fn recovered(result: &Value) -> Vec<Value> {
    assert_eq!(result["recovered"], true, "{result}");
    let list = result["publications"].as_array().cloned().unwrap_or_default();
    list.into_iter().map(|mut of| of["data"].take()).collect()
}

#[test]
fn positions_are_shared_and_missed_publications_come_back() {
    let Some((_server, a, b)) = pair("memory") else { return };
    let mut client = a.connected();
    let begun = subscribe(&mut client, 2, json!({"channel": "stream:x"}));
    assert_eq!(begun["positioned"], true, "{begun}");
    let first = publish(&b, "stream:x", 1);
    assert_eq!(first["epoch"], begun["epoch"]);
    // Of other channels of the stream: offsets of this one are not consecutive.
    publish(&b, "stream:y", 0);
    publish(&a, "stream:z", 0);
    let second = publish(&a, "stream:x", 2);
    assert!(second["offset"].as_u64() > first["offset"].as_u64().map(|offset| offset + 1));
    assert_eq!(data(&mut client, "stream:x", 2), [1, 2]);
    drop(client);
    for n in 3..6 {
        publish(&b, "stream:x", n);
        publish(&b, "stream:y", n);
    }
    // At either node, from any position, also that before the first publication.
    let before = json!({"offset": 0, "epoch": begun["epoch"]});
    for node in [&a, &b] {
        for (position, missed) in [(&second, 3..6), (&first, 2..6), (&before, 1..6)] {
            let mut client = node.connected();
            let result = recover(&mut client, 2, "stream:x", position);
            assert_eq!(recovered(&result), missed.collect::<Vec<u32>>());
        }
    }
    // As many as are kept, and then one more.
    let mut client = a.connected();
    let at = recover(&mut client, 2, "stream:w", &json!({"offset": 0, "epoch": begun["epoch"]}));
    assert_eq!(at["recovered"], true, "{at}");
    let at = publish(&a, "stream:w", 0);
    drop(client);
    (1..11).for_each(|n| drop(publish(&b, "stream:w", n)));
    assert_eq!(recovered(&recover(&mut b.connected(), 2, "stream:w", &at)).len(), 10);
    publish(&b, "stream:w", 11);
    let result = recover(&mut b.connected(), 2, "stream:w", &at);
    assert!(result["recovered"].is_null(), "{result}");
}

#[test]
fn pages_of_the_history_go_both_ways() {
    let Some((_server, a, b)) = pair("file") else { return };
    let tops: Vec<Value> = (1..=5)
        .map(|n| {
            publish(&a, "stream:other", 0);
            publish(&b, "stream:x", n)
        })
        .collect();
    let all = |more: Value| {
        let mut params = json!({"channel": "stream:x", "limit": -1});
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        page(&a, params).0
    };
    assert_eq!(all(json!({})), [1, 2, 3, 4, 5]);
    assert_eq!(all(json!({"limit": 2})), [1, 2]);
    assert_eq!(all(json!({"reverse": true, "limit": 2})), [5, 4]);
    let since = |at: usize| json!({"offset": tops[at]["offset"], "epoch": tops[at]["epoch"]});
    assert_eq!(all(json!({"since": since(1)})), [3, 4, 5]);
    assert_eq!(all(json!({"since": since(1), "limit": 1})), [3]);
    assert_eq!(all(json!({"since": since(3), "reverse": true})), [3, 2, 1]);
    let (none, result) = page(&a, json!({"channel": "stream:x", "limit": 0}));
    assert_eq!((none.len(), &result["offset"]), (0, &tops[4]["offset"]));
    // The size bounds what clients see.
    (6..=14).for_each(|n| drop(publish(&a, "stream:x", n)));
    assert_eq!(all(json!({})), (5..=14).collect::<Vec<u32>>());
    // Removed: the position stays, and goes on.
    assert_eq!(a.call("history_remove", json!({"channel": "stream:x"})), json!({"result": {}}));
    let (list, result) = page(&b, json!({"channel": "stream:x", "limit": -1}));
    assert_eq!((list.len(), &result["epoch"]), (0, &tops[0]["epoch"]));
    let top = json!({"offset": result["offset"], "epoch": result["epoch"]});
    publish(&a, "stream:x", 15);
    assert_eq!(all(json!({})), [15]);
    assert_eq!(recovered(&recover(&mut b.connected(), 2, "stream:x", &top)), [15]);
}

#[test]
fn a_publication_is_taken_once_and_old_versions_never() {
    let Some((_server, a, b)) = pair("memory") else { return };
    let mut client = a.connected();
    subscribe(&mut client, 2, json!({"channel": "stream:x"}));
    let once = json!({"channel": "stream:x", "data": 1, "idempotency_key": "key"});
    assert_eq!(a.call("publish", once.clone()), b.call("publish", once));
    let other = json!({"channel": "stream:y", "data": 1, "idempotency_key": "key"});
    assert!(b.call("publish", other)["result"]["offset"].is_u64());
    let version = |node: &Node, version: u64, epoch: &str| {
        let params = json!({
            "channel": "stream:x", "data": version, "version": version, "version_epoch": epoch,
        });
        node.call("publish", params)["result"]["offset"].as_u64().unwrap()
    };
    let fifth = version(&a, 5, "");
    assert_eq!(version(&b, 4, ""), fifth, "suppressed");
    let top = publish(&a, "stream:x", "unversioned")["offset"].as_u64().unwrap();
    assert_eq!(version(&b, 5, ""), top, "suppressed");
    assert!(version(&b, 1, "another life") > top);
    let skips = json!({"channel": "stream:x", "data": "skips", "skip_history": true});
    assert_eq!(b.call("publish", skips), json!({"result": {}}));
    let all = [json!(1), json!(5), json!("unversioned"), json!(1), json!("skips")];
    assert_eq!(data(&mut client, "stream:x", 5), all);
    assert_eq!(page(&a, json!({"channel": "stream:x", "limit": -1})).0, all[..4]);
}

#[test]
fn the_latest_publication_and_deltas_cross_nodes() {
    let Some((_server, a, b)) = pair("memory") else { return };
    (1..4).for_each(|n| drop(publish(&a, "cache:x", n)));
    let mut client = b.connected();
    let result = subscribe(&mut client, 2, json!({"channel": "cache:x", "recover": true}));
    assert_eq!(recovered(&result), [3]);
    let subscribed = subscribe(&mut client, 3, json!({"channel": "stream:x", "delta": "fossil"}));
    assert_eq!(subscribed["delta"], true);
    let text = |n: u32| json!({"text": "the same words again and again ".repeat(20), "n": n});
    for n in 1..=3 {
        a.call("publish", json!({"channel": "stream:x", "data": text(n), "delta": true}));
        assert_eq!(client.push()["pub"]["delta"] == true, n > 1);
    }
}

#[test]
fn a_history_ends_and_its_position_stays() {
    let Some((_server, a, b)) = pair("memory") else { return };
    let at = publish(&a, "short:x", 1);
    let since = Instant::now();
    while !page(&b, json!({"channel": "short:x", "limit": -1})).0.is_empty() {
        assert!(since.elapsed() < BOUND, "it does not end");
        std::thread::park_timeout(Duration::from_millis(50));
    }
    let result = recover(&mut b.connected(), 2, "short:x", &at);
    assert_eq!(recovered(&result), Vec::<Value>::new());
    assert_eq!(result["offset"], at["offset"]);
}

#[test]
fn a_server_that_is_restarted_loses_nothing_that_was_taken() {
    let Some((mut server, a, b)) = pair("file") else { return };
    let mut clients = [a.connected(), b.connected()];
    for client in &mut clients {
        subscribe(client, 2, json!({"channel": "stream:x"}));
    }
    for n in 0..20 {
        if n == 10 {
            // In order, so that what was taken is in the file.
            server.signal(Signal::TERM);
            server.wait();
            server.restart();
        }
        publish_until_taken(&b, "stream:x", n);
    }
    for client in &mut clients {
        let mut last = None;
        while last != Some(19) {
            let next = data(client, "stream:x", 1)[0].as_u64();
            assert!(
                next == last || next == Some(last.map_or(0, |last| last + 1)),
                "{last:?} {next:?}"
            );
            last = next;
        }
    }
}

/// The server ends the connection of a node that does not read: what it has missed is read from the history, and the
/// log says that the connection has ended.
#[test]
fn a_node_that_stood_still_reads_what_the_server_has_dropped() {
    if newest().is_none() {
        return;
    }
    let file = std::env::temp_dir().join(format!("roost-it-nats-slow-{}", std::process::id()));
    std::fs::write(&file, "max_pending: 1000000\nmax_payload: 1000000").unwrap();
    let server = NatsServer::start(&["-js", "-c", &file.display().to_string()]);
    std::fs::remove_file(&file).unwrap();
    let Some(server) = server else { return };
    let (a, b) = (node_of(&server, "memory"), node_of(&server, "memory"));
    let mut client = a.connected();
    for (id, channel) in [(2, "stream:x"), (3, "plain")] {
        subscribe(&mut client, id, json!({"channel": channel}));
    }
    a.signal(Signal::STOP);
    let mut foreign = server.client();
    // More than sockets have room for.
    for _ in 0..40 {
        foreign.publish("centrifugo.client.plain", &[0xff; 900_000]);
    }
    for n in 0..5 {
        publish(&b, "stream:x", n);
    }
    a.signal(Signal::CONT);
    assert_eq!(data(&mut client, "stream:x", 5), [0, 1, 2, 3, 4]);
    a.until_logged(&["nats: server"]);
    let connects = a.figures()["redis_pubsub_connects"];
    assert!(connects >= 2, "{connects}");
    publish(&b, "stream:x", 5);
    assert_eq!(data(&mut client, "stream:x", 1), [5]);
}

#[test]
fn a_namespace_gets_its_history_by_a_reload() {
    let Some(server) = server() else { return };
    let options = |late: &str| {
        let namespaces = NAMESPACES.replace("STORAGE", "storage = \"memory\"");
        format!("{namespaces}\n[[channel.namespaces]]\nname = \"late\"\n{late}")
    };
    let nodes = [(); 2].map(|()| node_with(&server, &options("")));
    let history =
        |node: &Node, channel: &str| node.call("history", json!({"channel": channel, "limit": -1}));
    publish(&nodes[0], "late:x", 0);
    publish(&nodes[0], "stream:x", 0);
    assert_eq!(history(&nodes[0], "late:x")["error"]["code"], 108);
    let kept = options("history_size = 5\nhistory_ttl = \"10m\"");
    for node in &nodes {
        node.reload(&file_with(&server, &kept), "options reloaded");
    }
    publish_until_taken(&nodes[1], "late:x", 1);
    let since = Instant::now();
    for node in &nodes {
        while history(node, "late:x")["result"]["publications"][0]["data"] != 1 {
            assert!(since.elapsed() < BOUND, "{}", history(node, "late:x"));
        }
        // The others are what they were.
        assert_eq!(history(node, "stream:x")["result"]["publications"][0]["data"], 0);
    }
}

#[test]
fn a_stream_that_is_lost_begins_another_life() {
    let Some((mut server, a, b)) = pair("memory") else { return };
    let mut client = a.connected();
    let begun = subscribe(&mut client, 2, json!({"channel": "stream:x"}));
    publish(&b, "stream:x", 1);
    assert_eq!(data(&mut client, "stream:x", 1), [1]);
    server.end();
    server.restart();
    publish_until_taken(&b, "stream:x", 2);
    let push = client.push();
    assert_eq!(push["unsubscribe"]["code"], 2500, "{push}");
    let again = recover(&mut client, 3, "stream:x", &json!({"offset": 1, "epoch": begun["epoch"]}));
    assert!(again["recovered"].is_null() && again["epoch"] != begun["epoch"], "{again}");
}

#[test]
fn servers_without_what_histories_need_are_refused() {
    let Some(old) = NatsServer::start_old(&["-js"]) else { return };
    let Some(without) = NatsServer::start(&[]) else { return };
    for (server, why) in [(&old, "needs nats-server 2.11 or newer"), (&without, "JetStream is off")]
    {
        let url = format!("127.0.0.1:{}", server.port);
        let section = format!("[broker.nats]\nurl = \"{url}\"\njetstream.enabled = true");
        let file = format!("[broker]\nenabled = true\ntype = \"nats\"\n{section}");
        let Err(ended) = Node::launch(&[], &file, "0", &[]) else { panic!("it started") };
        assert!(ended.errors.contains(why), "{ended:?}");
    }
}

#[test]
fn streams_are_as_namespaces_say_or_left_alone() {
    let Some(server) = server() else { return };
    let left = NAMESPACES.replace("STORAGE", "manage_streams = false");
    let left = node_with(&server, &format!("{left}\n[roost]\nstart_without_broker = true"));
    left.until_logged(&["centrifugo-stream", "stream not found"]);
    let node = node_of(&server, "memory");
    publish(&node, "stream:x", 1);
    let info = server.client().request("$JS.API.STREAM.INFO.centrifugo-stream", b"");
    let info: Value = serde_json::from_slice(&info).unwrap();
    let config = &info["config"];
    // One more than clients see: it shows what the oldest of these follows.
    assert_eq!(
        (&config["max_msgs_per_subject"], &config["storage"]),
        (&json!(11), &json!("memory"))
    );
    assert_eq!(config["republish"]["dest"], "centrifugo.client.>");
    // Now they are there.
    let since = Instant::now();
    while left.call("publish", json!({"channel": "stream:x", "data": 2}))["error"].is_object() {
        assert!(since.elapsed() < BOUND, "it does not use them");
    }
}
