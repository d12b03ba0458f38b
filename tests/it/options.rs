//! What single options do that nothing else here turns.

use crate::harness::*;

/// The status of an upgrade there.
fn status(node: &Node, path: &str) -> u16 {
    let mut raw = node.raw();
    raw.send(upgrade(path, &[]).as_bytes());
    raw.response().status
}

#[test]
fn the_endpoint_may_be_off() {
    let node = Node::open(&["--websocket.disabled", "--echo"]);
    for (path, expected) in [(CLIENTS, 404), (PROTOBUF_CLIENTS, 404), ("/echo", 101)] {
        assert_eq!(status(&node, path), expected, "{path}");
    }
    assert!(!node.errors().contains(CLIENTS), "{}", node.errors());
}
