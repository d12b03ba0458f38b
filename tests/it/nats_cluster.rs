//! A NATS cluster of three whose streams have three replicas: the leader of a stream is killed, or stands still, under
//! a publisher that never stops. What was taken comes to all subscribers once and in order.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Client, Node};
use crate::nats::{NatsServer, OPTIONS};
use crate::nats_history::{NAMESPACES, newest};
use crate::redis::{free_port, subscribe};

/// Servers elect a leader within 9 s, and find out before that one is gone.
const ELECTED: Duration = Duration::from_secs(60);

/// Three servers of one cluster.
struct Cluster(Vec<NatsServer>);

impl Cluster {
    fn start() -> Option<Self> {
        newest()?;
        let routes: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let all = routes.iter().map(|port| format!("nats://127.0.0.1:{port}"));
        let all = all.collect::<Vec<_>>().join(",");
        let start = |(at, port): (usize, &u16)| {
            let (name, own) = (format!("s{at}"), format!("nats://127.0.0.1:{port}"));
            let flags = ["-js", "-n", &name, "--cluster_name", "c", "--cluster", &own];
            NatsServer::start(&[&flags[..], &["--routes", &all]].concat())
        };
        routes.iter().enumerate().map(start).collect::<Option<_>>().map(Self)
    }

    fn urls(&self) -> String {
        let url = |server: &NatsServer| format!("nats://127.0.0.1:{}", server.port);
        self.0.iter().map(url).collect::<Vec<_>>().join(",")
    }

    fn node(&self) -> Node {
        // More than is published meanwhile.
        let namespaces = NAMESPACES
            .replace("STORAGE", "storage = \"file\"\nreplicas = 3")
            .replace("history_size = 10\n", "history_size = 100000\n");
        let broker = "broker.enabled = true\nbroker.type = \"nats\"";
        let section = format!("[broker.nats]\nurl = \"{}\"", self.urls());
        Node::start(&format!("{broker}\n{OPTIONS}\n{section}\n{namespaces}"), &[])
    }

    /// The server that leads the stream, as another one says.
    fn leader(&self) -> usize {
        let since = Instant::now();
        loop {
            let info = self.0.iter().find_map(|server| {
                let reply =
                    server.try_client()?.try_request("$JS.API.STREAM.INFO.centrifugo-stream")?;
                let info: Value = serde_json::from_slice(&reply).ok()?;
                info["cluster"]["leader"].as_str()?.strip_prefix('s')?.parse().ok()
            });
            if let Some(leader) = info {
                return leader;
            }
            assert!(since.elapsed() < ELECTED, "no leader");
        }
    }
}

/// Publishes number after number, each until it is taken.
fn publish_all(node: &Node, ends: &AtomicBool, taken: &AtomicU64) {
    for number in 1.. {
        let last = ends.load(Ordering::Relaxed);
        let data = if last { json!("end") } else { json!(number) };
        let key = format!("k{number}");
        let params = json!({"channel": "stream:x", "data": data, "idempotency_key": key});
        let since = Instant::now();
        while !node.call("publish", params.clone())["error"].is_null() {
            assert!(since.elapsed() < ELECTED, "{number} is never taken");
            std::thread::park_timeout(Duration::from_millis(5));
        }
        taken.store(number, Ordering::Relaxed);
        if last {
            return;
        }
    }
}

/// Waits until so many more were taken.
fn until_taken(taken: &AtomicU64, more: u64) {
    let (since, from) = (Instant::now(), taken.load(Ordering::Relaxed));
    while taken.load(Ordering::Relaxed) < from + more {
        assert!(since.elapsed() < ELECTED, "nothing is taken");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Each number once and in order, to the end: how many.
fn gets_all(client: &mut Client) -> u64 {
    for number in 1.. {
        let push = client.push();
        assert!(push["unsubscribe"].is_null(), "{push}");
        if push["pub"]["data"] == "end" {
            return number - 1;
        }
        assert_eq!(push["pub"]["data"], number, "{push}");
    }
    unreachable!()
}

/// Every server goes through it once, the leader first.
fn with_a_lost_leader(lose: impl Fn(&mut NatsServer), back: impl Fn(&mut NatsServer)) {
    let Some(mut cluster) = Cluster::start() else { return };
    let nodes = [cluster.node(), cluster.node()];
    let (ends, taken) = (AtomicBool::new(false), AtomicU64::new(0));
    let since = Instant::now();
    let params = json!({"channel": "stream:other", "data": 0});
    while !nodes.iter().all(|node| node.call("publish", params.clone())["error"].is_null()) {
        assert!(since.elapsed() < ELECTED, "the cluster is not ready");
    }
    let mut clients: Vec<Client> = nodes.iter().map(Node::connected).collect();
    for client in &mut clients {
        subscribe(client, 2, json!({"channel": "stream:x"}));
    }
    std::thread::scope(|scope| {
        scope.spawn(|| publish_all(&nodes[1], &ends, &taken));
        until_taken(&taken, 20);
        for _ in 0..2 {
            let leader = cluster.leader();
            lose(&mut cluster.0[leader]);
            until_taken(&taken, 20);
            back(&mut cluster.0[leader]);
            until_taken(&taken, 20);
        }
        ends.store(true, Ordering::Relaxed);
    });
    let counts: Vec<u64> = clients.iter_mut().map(gets_all).collect();
    assert!(counts[0] >= 100 && counts[0] == counts[1], "{counts:?}");
    nodes.iter().for_each(Node::is_healthy);
}

#[test]
fn the_leader_of_a_stream_is_killed() {
    with_a_lost_leader(NatsServer::end, NatsServer::restart);
}

#[test]
fn the_leader_of_a_stream_stands_still() {
    with_a_lost_leader(|server| server.signal(Signal::STOP), |server| server.signal(Signal::CONT));
}
