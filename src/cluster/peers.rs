//! The nodes that this one knows: those that have said something on the control channel lately.

use std::collections::BTreeMap;

use super::control::Node;
use crate::base::time::Millis;

/// Interval at which a node says that it is there.
pub const PING_MS: u64 = 3_000;
/// Interval at which silent nodes are forgotten.
pub const CLEAN_MS: u64 = 9_000;
/// A node that is silent for longer is forgotten then.
const SILENCE_MAX_MS: u64 = 7_000;

/// Nodes by uid, this one not among them.
#[derive(Clone, Debug, Default)]
pub struct Peers(BTreeMap<String, Peer>);

#[derive(Clone, Debug)]
struct Peer {
    node: Node,
    heard: Millis,
}

impl Peers {
    /// A node said its state. True when it is new: it is answered with the own state, so that both know each
    /// other after one round trip.
    pub fn heard(&mut self, now: Millis, mut node: Node) -> bool {
        let known = self.0.get_mut(&node.uid);
        let is_new = known.is_none();
        if let (Some(known), None) = (known, &node.metrics) {
            // Metrics come once a minute, and hold until the next ones.
            node.metrics = known.node.metrics.take();
        }
        self.0.insert(node.uid.clone(), Peer { node, heard: now });
        is_new
    }

    /// A node said that it ends.
    pub fn ended(&mut self, uid: &str) {
        self.0.remove(uid);
    }

    /// Forgets silent nodes: their uids.
    pub fn clean(&mut self, now: Millis) -> Vec<String> {
        let silent = |peer: &Peer| now.since(peer.heard) > SILENCE_MAX_MS;
        let gone = self.0.iter().filter(|(_, peer)| silent(peer)).map(|(uid, _)| uid.clone());
        let gone: Vec<String> = gone.collect();
        self.0.retain(|_, peer| !silent(peer));
        gone
    }

    /// All of them, by uid.
    pub fn iter(&self) -> impl Iterator<Item = &Node> {
        self.0.values().map(|peer| &peer.node)
    }

    /// Whether a node is known.
    pub fn contains(&self, uid: &str) -> bool {
        self.0.contains_key(uid)
    }
}

#[cfg(test)]
mod tests {
    use super::super::control::Metrics;
    use super::*;

    fn node(uid: &str, interval: Option<f64>) -> Node {
        let metrics = interval.map(|interval| Metrics { interval, ..<_>::default() });
        Node { uid: uid.into(), metrics, ..<_>::default() }
    }

    #[test]
    fn a_silent_node_is_forgotten() {
        let mut peers = Peers::default();
        assert!(peers.heard(Millis(0), node("a", None)));
        assert!(peers.heard(Millis(2_500), node("b", None)));
        assert!(!peers.heard(Millis(3_000), node("b", None)));
        assert_eq!(peers.clean(Millis(7_000)), [""; 0]);
        assert_eq!(peers.clean(Millis(9_000)), ["a"]);
        assert!(peers.contains("b") && !peers.contains("a"));
        peers.ended("b");
        assert_eq!(peers.iter().count(), 0);
    }

    #[test]
    fn metrics_hold_until_the_next_ones() {
        let mut peers = Peers::default();
        let interval =
            |peers: &Peers| peers.iter().next().unwrap().metrics.as_ref().unwrap().interval;
        peers.heard(Millis(0), node("a", Some(60.0)));
        peers.heard(Millis(1), node("a", None));
        assert_eq!(interval(&peers), 60.0);
        peers.heard(Millis(2), node("a", Some(30.0)));
        assert_eq!(interval(&peers), 30.0);
    }
}
