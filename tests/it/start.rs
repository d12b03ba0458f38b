//! Starts that fail: what is said, and with which exit code.

use std::net::TcpListener;

use crate::harness::*;

fn refused(file: &str, port: &str, flags: &[&str]) -> Ended {
    match Node::launch(&[], file, port, flags) {
        Ok(node) => panic!("it started: {}", node.errors()),
        Err(ended) => ended,
    }
}

#[test]
fn a_taken_port() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let ended = refused("", &address.port().to_string(), &[]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.errors.contains(&format!("cannot listen on {address}")), "{ended:?}");
}

#[test]
fn two_nodes_on_one_port() {
    let first = Node::open(&[]);
    let port = first.address().port().to_string();
    let ended = refused("", &port, &[]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.errors.contains(&format!("cannot listen on {}", first.address())), "{ended:?}");
    first.is_healthy();
    // As soon as the first has gone it may be had, whatever is left of its connections.
    let client = first.connected();
    drop(first);
    let second = Node::launch(&[], "", &port, &[]);
    assert!(second.is_ok(), "{:?}", second.err());
    drop(client);
}

#[test]
fn wrong_configurations_end_with_2_and_name_the_option() {
    for (file, flags, words) in [
        ("nonsense", &[][..], &["error"][..]),
        ("client.ping_interval = \"soon\"", &[], &["client.ping_interval", "soon"]),
        ("client.ping_interval = \"5s\"", &[], &["client.ping_interval", "client.pong_timeout"]),
        ("engine.type = \"redis\"", &[], &["engine.type", "redis"]),
        ("http_server.tls.enabled = true", &[], &["http_server.tls.enabled"]),
        ("", &["--shards", "0"], &["shards", "0"]),
        ("", &["--io", "uring"], &["io", "uring"]),
        ("", &["--client.channel_limit", "many"], &["client.channel_limit", "many"]),
        ("", &["--no-such-flag"], &["--no-such-flag"]),
        ("channel.without_namespace.history_size = 5", &[], &["history_size", "history_ttl"]),
    ] {
        let ended = refused(file, "0", flags);
        assert_eq!(ended.code, Some(2), "{file} {flags:?}: {ended:?}");
        for word in words {
            assert!(ended.errors.contains(word), "{file} {flags:?}: {ended:?}");
        }
    }
}

#[test]
fn a_configuration_is_judged_before_the_port_is_opened() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let ended = refused("engine.type = \"redis\"", &port, &[]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
}

#[test]
fn it_says_what_binds_first() {
    let node = Node::open(&[]);
    let errors = node.errors();
    assert!(errors.contains("descriptors"), "{errors}");
    assert!(errors.contains(&format!("ws://{}{CLIENTS}", node.address())), "{errors}");
}

#[test]
fn figures_are_one_line_of_json() {
    let node = Node::open(&["--shards", "3"]);
    let figures = node.figures();
    assert_eq!(figures["shards"], 3);
    for name in ["connections_open", "slots_in_use", "queued_bytes", "clients", "rss_bytes"] {
        assert!(figures.contains_key(name), "{name}");
    }
}
