//! Other layouts than one server: several, a Cluster, Sentinels; and the bytes that others in the same Redis
//! read and write, held against those captured from real nodes.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::{BOUND, Node};
use crate::nodes::reach_each_other;
use crate::protobuf::unhex;
use crate::redis::{RedisServer, data, free_port, node, node_with, subscribe};

/// What works in each layout, over two nodes.
fn works(engine: &str) {
    let (a, b) = (node_with(engine), node_with(engine));
    for number in 0..12 {
        let channel = format!("stream:{number}");
        let mut client = a.connected();
        subscribe(&mut client, 2, json!({"channel": channel}));
        for n in 1..=3 {
            let answer = b.call("publish", json!({"channel": channel, "data": n}));
            assert_eq!(answer["result"]["offset"], n, "{answer}");
        }
        assert_eq!(data(&mut client, &channel, 3), [1, 2, 3]);
        let room = format!("room:{number}");
        subscribe(&mut client, 3, json!({"channel": room}));
        client.push();
        let stats = b.call("presence_stats", json!({"channel": room}));
        assert_eq!(stats["result"]["num_clients"], 1);
        let plain = format!("plain{number}");
        subscribe(&mut client, 4, json!({"channel": plain}));
        // The order of one publisher is kept without a history, too.
        (0..20).for_each(|n| drop(b.call("publish", json!({"channel": plain, "data": n}))));
        assert_eq!(data(&mut client, &plain, 20), (0..20).collect::<Vec<_>>());
    }
    reach_each_other(&a, &b);
    reach_each_other(&b, &a);
}

#[test]
fn channels_of_several_servers_are_divided_among_them() {
    let Some(servers) =
        [(), ()].map(|()| RedisServer::start(&[])).into_iter().collect::<Option<Vec<_>>>()
    else {
        return;
    };
    let addresses: Vec<String> =
        servers.iter().map(|server| format!("\"127.0.0.1:{}\"", server.port)).collect();
    works(&format!("engine.redis.address = [{}]", addresses.join(", ")));
    for server in &servers {
        let keys: Vec<String> = server.query("KEYS centrifugo.stream.stream:*");
        assert!((1..12).contains(&keys.len()), "{keys:?}");
    }
}

/// Three masters that have each a third of the slots, and a replica of the first one if that is wished.
fn cluster(has_replica: bool) -> Option<Vec<RedisServer>> {
    let mut servers = Vec::new();
    let mut buses = Vec::new();
    // A master that is silent for so long has failed for the others: no pause of a busy machine may look so,
    // and a failover waits for it.
    let (count, timeout_ms) = if has_replica { (4, "4000") } else { (3, "15000") };
    for _ in 0..count {
        let bus = free_port().to_string();
        let timeout = ["--cluster-node-timeout", timeout_ms];
        let flags = ["--cluster-enabled", "yes", "--cluster-port", &bus, timeout[0], timeout[1]];
        servers.push(RedisServer::start(&flags)?);
        buses.push(bus);
    }
    for (server, range) in servers.iter().zip(["0 5460", "5461 10922", "10923 16383"]) {
        let _: String = server.query(&format!("CLUSTER ADDSLOTSRANGE {range}"));
    }
    for (server, bus) in servers.iter().zip(&buses).skip(1) {
        let meet = format!("CLUSTER MEET 127.0.0.1 {} {bus}", server.port);
        let _: String = servers[0].query(&meet);
    }
    let since = Instant::now();
    for server in &servers {
        let is_ready = || {
            let info: String = server.query("CLUSTER INFO");
            // A link that isn't there yet loses what is published.
            let nodes: String = server.query("CLUSTER NODES");
            info.contains("cluster_state:ok")
                && info.contains(&format!("cluster_known_nodes:{count}"))
                && nodes
                    .lines()
                    .all(|node| !node.contains("handshake") && node.contains(" connected"))
        };
        while !is_ready() {
            assert!(since.elapsed() < BOUND, "the Cluster does not come up");
        }
    }
    if has_replica {
        let id: String = servers[0].query("CLUSTER MYID");
        let _: String = servers[3].query(&format!("CLUSTER REPLICATE {id}"));
        let is_linked = || {
            let info: String = servers[3].query("INFO replication");
            info.contains("master_link_status:up")
        };
        while !is_linked() {
            assert!(since.elapsed() < BOUND, "the replica does not follow");
        }
    }
    Some(servers)
}

#[test]
fn messages_of_a_cluster_are_sharded_and_a_failover_loses_none() {
    let Some(mut servers) = cluster(true) else { return };
    let engine = format!(
        "engine.redis = {{ cluster_address = \"127.0.0.1:{}\", io_timeout = \"1s\" }}\n\
         roost.broker_partitions = 16",
        servers[1].port
    );
    works(&engine);
    let (a, b) = (node_with(&engine), node_with(&engine));
    // A channel of the master that ends, and one of another.
    let of_first = |server: &RedisServer, channel: &str| {
        let carried: Vec<String> = server.query("PUBSUB SHARDCHANNELS *.client.*");
        carried.iter().any(|name| name.ends_with(channel))
    };
    let mut client = a.connected();
    let names: Vec<String> = (0..12).map(|number| format!("stream:failover{number}")).collect();
    for (id, channel) in (2..).zip(&names) {
        subscribe(&mut client, id, json!({"channel": channel}));
    }
    let moves = names.iter().find(|channel| of_first(&servers[0], channel)).unwrap();
    let stays = names.iter().find(|channel| !of_first(&servers[0], channel)).unwrap();
    let publish = |channel: &str, n: u64| {
        let since = Instant::now();
        while !b.call("publish", json!({"channel": channel, "data": n}))["error"].is_null() {
            assert!(since.elapsed() < BOUND, "never taken");
            std::thread::park_timeout(std::time::Duration::from_millis(20));
        }
    };
    let mut clients = [moves, stays].map(|channel| {
        let mut client = a.connected();
        subscribe(&mut client, 2, json!({"channel": channel}));
        publish(channel, 1);
        assert_eq!(data(&mut client, channel, 1), [1]);
        client
    });
    let since = Instant::now();
    let copied = |server: &RedisServer| {
        let info: String = server.query("INFO replication");
        info.lines().find_map(|line| line.strip_prefix("master_repl_offset:").map(str::to_owned))
    };
    while copied(&servers[0]) != copied(&servers[3]) {
        assert!(since.elapsed() < BOUND, "it is not copied");
    }
    servers[0].end();
    (2..=5).for_each(|n| publish(moves, n));
    publish(stays, 2);
    let mut follow = |at: usize, channel: &str, end: u64| {
        let mut last = 1;
        while last != end {
            // A publication whose reply was lost may be there twice.
            let next = data(&mut clients[at], channel, 1)[0].as_u64().unwrap();
            assert!(next == last || next == last + 1, "{last} {next}");
            last = next;
        }
    };
    follow(0, moves, 5);
    follow(1, stays, 2);
}

#[test]
fn a_cluster_of_three_keeps_the_channels() {
    let Some(servers) = cluster(false) else { return };
    let engine = format!("engine.redis.cluster_address = \"127.0.0.1:{}\"", servers[1].port);
    works(&engine);
    let keys: Vec<String> = servers[0].query("KEYS centrifugo.stream.{stream:*}");
    assert!((1..12).contains(&keys.len()), "{keys:?}");
    // The keys of such a channel would be in different slots.
    let node = node_with(&engine);
    let answer = node.call("publish", json!({"channel": "}x", "data": 1}));
    assert!(answer["error"]["code"].is_number(), "{answer}");
    let mut client = node.connected();
    let answer = client.ask("publish", json!({"channel": "}x", "data": 1}));
    assert_eq!(answer["error"]["code"], 108, "{answer}");
    // One that is configured as a single server would be half of a system.
    let single = format!(
        "engine.type = \"redis\"\nengine.redis.address = \"127.0.0.1:{}\"",
        servers[0].port
    );
    let ended = Node::launch(&[], &single, "0", &[]).err().expect("it is a Cluster");
    assert!(ended.errors.contains("cluster_address"), "{ended:?}");
}

#[test]
fn the_master_that_sentinels_name_is_used_also_when_it_is_another_one() {
    let Some(mut master) = RedisServer::start(&[]) else { return };
    let port = master.port.to_string();
    let Some(replica) = RedisServer::start(&["--replicaof", "127.0.0.1", &port]) else { return };
    let config = std::env::temp_dir().join(format!("roost-it-sentinel-{}", std::process::id()));
    let text = format!(
        "sentinel monitor m 127.0.0.1 {port} 1\nsentinel down-after-milliseconds m 500\n\
         sentinel failover-timeout m 2000\n"
    );
    std::fs::write(&config, text).unwrap();
    let Some(sentinel) = RedisServer::start_sentinel(&config) else { return };
    let since = Instant::now();
    loop {
        let replicas: redis::Value = sentinel.query("SENTINEL REPLICAS m");
        if matches!(&replicas, redis::Value::Array(all) if !all.is_empty()) {
            break;
        }
        assert!(since.elapsed() < BOUND, "the replica is not seen");
    }
    let engine = format!(
        "engine.redis = {{ sentinel_address = \"127.0.0.1:{}\", sentinel_master_name = \"m\", \
         io_timeout = \"1s\", connect_timeout = \"1s\" }}",
        sentinel.port
    );
    let (a, b) = (node_with(&engine), node_with(&engine));
    let mut client = a.connected();
    subscribe(&mut client, 2, json!({"channel": "stream:x"}));
    let publish = |n: u64| {
        let since = Instant::now();
        while !b.call("publish", json!({"channel": "stream:x", "data": n}))["error"].is_null() {
            assert!(since.elapsed() < BOUND, "never taken");
            std::thread::park_timeout(std::time::Duration::from_millis(20));
        }
    };
    publish(1);
    assert_eq!(data(&mut client, "stream:x", 1), [1]);
    // The replica has it as well.
    while replica.query::<Option<u64>>("HGET centrifugo.stream.meta.stream:x s") != Some(1) {
        assert!(since.elapsed() < BOUND, "it is not copied");
    }
    master.end();
    publish(2);
    publish(3);
    let mut last = 1;
    while last != 3 {
        let next = data(&mut client, "stream:x", 1)[0].as_u64().unwrap();
        assert!(next == last || next == last + 1, "{last} {next}");
        last = next;
    }
    let _ = std::fs::remove_file(&config);
}

/// Lines of a capture.
fn captured() -> impl Iterator<Item = Value> {
    let text = include_str!("../vectors/redis/standalone-pubsub.jsonl");
    text.lines().map(|line| serde_json::from_str(line).unwrap())
}

#[test]
fn messages_of_real_nodes_reach_clients() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let node = node_with(&format!(
        "engine.redis.address = \"127.0.0.1:{}\"\n\
         [[channel.namespaces]]\nname = \"hist\"\nallow_subscribe_for_client = true\n\
         allow_subscribe_for_anonymous = true\nforce_recovery = true\nforce_positioning = true\n\
         history_size = 10\nhistory_ttl = \"300s\"",
        server.port
    ));
    let mut clients = BTreeMap::new();
    for channel in ["plain", "hist:x"] {
        if channel == "hist:x" {
            let _: u64 = server.query("HSET centrifugo.stream.meta.hist:x e DmDdeOrz");
        }
        let mut client = node.connected();
        subscribe(&mut client, 2, json!({"channel": channel}));
        clients.insert(channel, client);
    }
    let mut count = 0;
    for line in captured() {
        let (step, name) = (line["step"].as_str().unwrap(), line["channel"].as_str().unwrap());
        // Later steps are about what histories keep, and other channels.
        if step == "api-history-forward-limit2" {
            break;
        }
        let payload = unhex(line["payload_hex"].as_str().unwrap());
        let mut publish = redis::cmd("PUBLISH");
        let _: u64 = publish.arg(name).arg(payload).query(&mut server.connection()).unwrap();
        let Some(channel) = name.strip_prefix("centrifugo.client.") else { continue };
        let Some(client) = clients.get_mut(channel) else { continue };
        let push = client.push();
        let of = &line["decoded"]["publication"];
        let seen = &push["pub"];
        let expected: Value = serde_json::from_str(of["data_text"].as_str().unwrap()).unwrap();
        assert_eq!(seen["data"], expected, "{step}: {push} {line}");
        assert_eq!(seen["tags"], of["tags"], "{step}: {push} {line}");
        assert_eq!(seen["info"]["user"], of["info"]["user"], "{step}: {push} {line}");
        count += 1;
    }
    assert_eq!(count, 12);
}

#[test]
fn keys_and_their_lifetimes_are_those_of_real_nodes() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let node = node(&server);
    let mut client = node.connected_as("ann");
    subscribe(&mut client, 2, json!({"channel": "room:x"}));
    client.push();
    subscribe(&mut client, 3, json!({"channel": "stream:x"}));
    let once =
        |channel: &str| json!({"channel": channel, "data": {"n": 4}, "idempotency_key": "k"});
    node.call("publish", once("stream:x"));
    node.call("publish", once("plain"));
    let version = json!({"channel": "stream:v", "data": 1, "version": 5, "version_epoch": "e"});
    node.call("publish", version);
    let mut keys: Vec<String> = server.query("KEYS *");
    keys.retain(|key| !key.starts_with("centrifugo.roost."));
    keys.sort();
    let mut found = Vec::new();
    for key in keys {
        let kind: String = server.query(&format!("TYPE {key}"));
        let ttl: i64 = server.query(&format!("TTL {key}"));
        // The second may change in between.
        let rounded =
            [60, 300, 600, 2_592_000].into_iter().find(|of| (of - 5..=*of).contains(&ttl));
        found.push(format!("{key} {kind} {}", rounded.unwrap_or(ttl)));
    }
    assert_eq!(
        found,
        [
            "centrifugo.presence.data.room:x hash 60",
            "centrifugo.presence.expire.room:x zset 60",
            "centrifugo.result.plain.k hash 300",
            "centrifugo.result.stream:x.k hash 300",
            "centrifugo.stream.meta.stream:v hash 2592000",
            "centrifugo.stream.meta.stream:x hash 2592000",
            "centrifugo.stream.stream:v stream 600",
            "centrifugo.stream.stream:x stream 600",
        ]
    );
    let meta: BTreeMap<String, String> = server.query("HGETALL centrifugo.stream.meta.stream:v");
    assert_eq!((&*meta["s"], &*meta["v"], &*meta["ve"], meta["e"].len()), ("1", "5", "e", 8));
    let entries: redis::Value = server.query("XRANGE centrifugo.stream.stream:x - +");
    let redis::Value::Array(entries) = entries else { panic!("{entries:?}") };
    let redis::Value::Array(entry) = &entries[0] else { panic!("{entries:?}") };
    assert_eq!(entry[0], redis::Value::BulkString(b"1-0".to_vec()));
    let redis::Value::Array(fields) = &entry[1] else { panic!("{entry:?}") };
    assert_eq!((fields.len(), &fields[0]), (2, &redis::Value::BulkString(b"d".to_vec())));
    let redis::Value::BulkString(bytes) = &fields[1] else { panic!("{fields:?}") };
    // Data, and the time in milliseconds, as in each captured publication.
    assert!(bytes.starts_with(b"\x22\x07{\"n\":4}\x48"), "{bytes:?}");
}
