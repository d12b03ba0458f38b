//! The nodes that this one knows: those that have published on the control channel lately.

use std::collections::BTreeMap;

use super::control::Node;
use crate::base::time::Millis;

/// Interval at which a node publishes its state.
pub const PING_MS: u64 = 3_000;
/// Interval at which silent nodes are forgotten.
pub const CLEAN_MS: u64 = 9_000;
/// A node that is silent for longer is forgotten then.
const SILENCE_MAX_MS: u64 = 7_000;
/// States of a node that has ended are ignored for so long: with several servers they may come late.
const ENDED_MS: u64 = 10_000;
/// Nodes at most; more are ignored. Anybody who may publish can invent some.
const PEERS_MAX: usize = 1_024;
/// Bytes of a node's names at most; a node with longer ones is ignored.
const PEER_NAMES_BYTES_MAX: usize = 4_096;
/// Bytes of a node's own data at most; longer ones are left out.
const PEER_DATA_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a node's metrics at most; longer ones are left out.
const PEER_METRICS_BYTES_MAX: usize = 64 * 1024;

/// Nodes by uid, this one not among them.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    nodes: BTreeMap<String, Peer>,
    /// Nodes that have ended lately.
    ended: BTreeMap<String, Millis>,
}

#[derive(Clone, Debug)]
struct Peer {
    node: Node,
    heard: Millis,
}

/// How a state changed the list of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The node is new. It gets the own state as the answer, so that both know each other after one round
    /// trip.
    New,
    /// The node was known.
    Known,
    /// The node has ended, or there are too many, or its names are too long.
    Ignored,
}

impl Peers {
    /// Takes the state of a node.
    pub fn heard(&mut self, now: Millis, mut node: Node) -> Heard {
        let names = node.uid.len() + node.name.len() + node.version.len();
        if names > PEER_NAMES_BYTES_MAX || self.ended.contains_key(&node.uid) {
            return Heard::Ignored;
        }
        let known = self.nodes.get_mut(&node.uid);
        let is_new = known.is_none();
        node.metrics = node.metrics.take_if(|metrics| {
            let bytes = |(name, _): (&String, &f64)| name.len() + size_of::<(String, f64)>();
            metrics.items.iter().map(bytes).sum::<usize>() <= PEER_METRICS_BYTES_MAX
        });
        if node.data.len() > PEER_DATA_BYTES_MAX {
            node.data = Vec::new();
        }
        if let (Some(known), None) = (known, &node.metrics) {
            // Metrics come once a minute, and hold until the next ones.
            node.metrics = known.node.metrics.take();
        }
        if is_new && self.nodes.len() >= PEERS_MAX {
            return Heard::Ignored;
        }
        self.nodes.insert(node.uid.clone(), Peer { node, heard: now });
        if is_new { Heard::New } else { Heard::Known }
    }

    /// A node has ended. Whether it was known.
    pub fn ended(&mut self, now: Millis, uid: &str) -> bool {
        if self.ended.len() < PEERS_MAX {
            self.ended.insert(uid.to_owned(), now);
        }
        self.nodes.remove(uid).is_some()
    }

    /// Forgets silent nodes: their uids.
    pub fn clean(&mut self, now: Millis) -> Vec<String> {
        self.ended.retain(|_, at| now.since(*at) <= ENDED_MS);
        let silent = |peer: &Peer| now.since(peer.heard) > SILENCE_MAX_MS;
        let gone = self.nodes.iter().filter(|(_, peer)| silent(peer)).map(|(uid, _)| uid.clone());
        let gone: Vec<String> = gone.collect();
        self.nodes.retain(|_, peer| !silent(peer));
        gone
    }

    /// All of them, by uid.
    pub fn iter(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().map(|peer| &peer.node)
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether a node is known.
    pub fn contains(&self, uid: &str) -> bool {
        self.nodes.contains_key(uid)
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
        assert_eq!(peers.heard(Millis(0), node("a", None)), Heard::New);
        assert_eq!(peers.heard(Millis(2_500), node("b", None)), Heard::New);
        assert_eq!(peers.heard(Millis(3_000), node("b", None)), Heard::Known);
        assert_eq!(peers.clean(Millis(7_000)), [""; 0]);
        assert_eq!(peers.clean(Millis(9_000)), ["a"]);
        assert!(peers.contains("b") && !peers.contains("a"));
    }

    #[test]
    fn a_late_state_of_an_ended_node_is_ignored() {
        let mut peers = Peers::default();
        peers.heard(Millis(0), node("a", None));
        assert!(peers.ended(Millis(10), "a") && !peers.ended(Millis(10), "a"));
        assert_eq!(peers.heard(Millis(20), node("a", None)), Heard::Ignored);
        assert!(peers.is_empty());
        peers.clean(Millis(10 + ENDED_MS + 1));
        assert_eq!(peers.heard(Millis(20_000), node("a", None)), Heard::New);
    }

    #[test]
    fn nodes_and_their_texts_are_bounded() {
        let mut peers = Peers::default();
        let long = "x".repeat(PEER_NAMES_BYTES_MAX);
        assert_eq!(peers.heard(Millis(0), node(&long, None)), Heard::New);
        let named = Node { name: "y".into(), ..node(&long, None) };
        assert_eq!(peers.heard(Millis(0), named), Heard::Ignored);
        let items = [(long.repeat(100), 1.0)].into();
        let metrics = Some(Metrics { interval: 1.0, items });
        let data = vec![0; PEER_DATA_BYTES_MAX + 1];
        peers.heard(Millis(0), Node { metrics, data, ..node("large", None) });
        let large = peers.iter().find(|node| node.uid == "large").unwrap();
        assert!(large.metrics.is_none() && large.data.is_empty());
        for at in peers.len()..PEERS_MAX {
            assert_eq!(peers.heard(Millis(0), node(&at.to_string(), None)), Heard::New);
        }
        assert_eq!(peers.heard(Millis(0), node("more", None)), Heard::Ignored);
        assert_eq!(peers.heard(Millis(0), node("large", None)), Heard::Known);
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
