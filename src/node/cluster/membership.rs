//! This node among the others: the known ones, when the own state is due, and when silent ones are forgotten.
//! Time is an argument.

use std::time::Duration;

use crate::base::time::Millis;
use crate::cluster::control::Node;
use crate::cluster::peers::{CLEAN_MS, Heard, PING_MS, Peers};

/// See the module.
pub(super) struct Membership {
    peers: Peers,
    /// Servers whose control messages arrive.
    listening: usize,
    next_ping: Millis,
    next_metrics: Millis,
    next_clean: Millis,
    metrics_interval_ms: u64,
}

/// What is due now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// The own state is to be published.
    pub(super) ping: bool,
    /// With the metrics.
    pub(super) with_metrics: bool,
    /// Nodes that are known no more.
    pub(super) forgotten: Vec<String>,
}

impl Membership {
    /// No other node is known; the own state is due at once.
    pub(super) fn new(metrics_interval: Duration) -> Self {
        Self {
            peers: Peers::default(),
            listening: 0,
            next_ping: Millis(0),
            next_metrics: Millis(0),
            next_clean: Millis(CLEAN_MS),
            metrics_interval_ms: metrics_interval.as_millis() as u64,
        }
    }

    /// Messages of one more server arrive from now on. The own state is due, since an answer to an earlier one
    /// may be lost.
    pub(super) fn listens(&mut self, now: Millis) {
        self.listening += 1;
        self.next_ping = now;
    }

    /// Messages of one server don't arrive any more.
    pub(super) fn is_interrupted(&mut self) {
        self.listening = self.listening.saturating_sub(1);
    }

    /// Messages of at least one server arrive.
    pub(super) fn is_listening(&self) -> bool {
        self.listening > 0
    }

    /// What has become due. It is not due again.
    pub(super) fn due(&mut self, now: Millis) -> Due {
        let mut due = Due::default();
        if now >= self.next_ping {
            (due.ping, self.next_ping) = (true, now.after(PING_MS));
            if now >= self.next_metrics {
                (due.with_metrics, self.next_metrics) = (true, now.after(self.metrics_interval_ms));
            }
        }
        if now >= self.next_clean {
            due.forgotten = self.peers.clean(now);
            self.next_clean = now.after(CLEAN_MS);
        }
        due
    }

    /// Another node has published its state.
    pub(super) fn heard(&mut self, now: Millis, node: Node) -> Heard {
        self.peers.heard(now, node)
    }

    /// Another node has ended. Whether it was known.
    pub(super) fn ended(&mut self, now: Millis, uid: &str) -> bool {
        self.peers.ended(now, uid)
    }

    /// The other nodes.
    pub(super) fn peers(&self) -> &Peers {
        &self.peers
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet, VecDeque};

    use super::*;

    const NODES: [&str; 3] = ["a", "b", "c"];

    /// Nodes on one control channel, with a time of their own.
    struct World {
        now: Millis,
        nodes: BTreeMap<&'static str, Membership>,
        /// Sender, receiver or all, and what is said: `None` is a Shutdown.
        messages: VecDeque<(&'static str, Option<&'static str>, bool)>,
    }

    impl World {
        fn new() -> Self {
            Self { now: Millis(0), nodes: BTreeMap::new(), messages: VecDeque::new() }
        }

        fn join(&mut self, name: &'static str) {
            let mut node = Membership::new(Duration::from_secs(60));
            // A process that starts later has a later time here; only differences count.
            node.next_clean = self.now.after(CLEAN_MS);
            node.listens(self.now);
            self.nodes.insert(name, node);
        }

        fn end(&mut self, name: &'static str) {
            self.nodes.remove(name);
            self.messages.push_back((name, None, false));
        }

        /// All messages arrive; the answers, too.
        fn deliver(&mut self) {
            while let Some((from, to, is_state)) = self.messages.pop_front() {
                let mut answers = Vec::new();
                for (name, node) in &mut self.nodes {
                    if *name == from || to.is_some_and(|to| to != *name) {
                        continue;
                    }
                    if !is_state {
                        node.ended(self.now, from);
                        continue;
                    }
                    let state = Node { uid: from.into(), ..Node::default() };
                    if node.heard(self.now, state) == Heard::New {
                        answers.push((*name, Some(from), true));
                    }
                }
                self.messages.extend(answers);
            }
        }

        /// So much later, in steps of half a second.
        fn pass(&mut self, ms: u64) {
            let end = self.now.after(ms);
            loop {
                for (name, node) in &mut self.nodes {
                    if node.due(self.now).ping {
                        self.messages.push_back((name, None, true));
                    }
                }
                self.deliver();
                if self.now >= end {
                    return;
                }
                self.now = self.now.after(500);
            }
        }

        fn known_to(&self, name: &str) -> BTreeSet<&str> {
            self.nodes[name].peers().iter().map(|node| node.uid.as_str()).collect()
        }
    }

    #[test]
    fn a_joining_node_is_known_and_knows_all_after_a_round_trip() {
        let mut world = World::new();
        world.join("a");
        world.join("b");
        world.pass(5_250);
        world.join("c");
        world.pass(0);
        for name in NODES {
            let others: BTreeSet<_> = NODES.into_iter().filter(|other| *other != name).collect();
            assert_eq!(world.known_to(name), others, "{name}");
        }
    }

    #[test]
    fn a_killed_node_is_forgotten_and_one_that_ends_at_once() {
        let mut world = World::new();
        NODES.into_iter().for_each(|name| world.join(name));
        world.pass(4_000);
        world.end("c");
        world.deliver();
        assert_eq!(world.known_to("a"), ["b"].into());
        world.nodes.remove("b");
        world.pass(3_000);
        assert_eq!(world.known_to("a"), ["b"].into(), "not silent for long enough");
        world.pass(13_000);
        assert!(world.known_to("a").is_empty());
    }

    #[test]
    fn states_are_due_every_three_seconds_and_metrics_once_in_their_interval() {
        let mut node = Membership::new(Duration::from_secs(7));
        let mut pings = Vec::new();
        for ms in (0..20_000).step_by(500) {
            let due = node.due(Millis(ms));
            if due.ping {
                pings.push((ms, due.with_metrics));
            }
        }
        let expected = [0, 3, 6, 9, 12, 15, 18].map(|s| (s * 1_000, [0, 9, 18].contains(&s)));
        assert_eq!(pings, expected);
    }

    #[test]
    fn a_connection_that_listens_again_makes_the_state_due() {
        let mut node = Membership::new(Duration::from_secs(60));
        assert!(node.due(Millis(0)).ping && !node.is_listening());
        node.listens(Millis(10));
        assert!(node.is_listening());
        assert_eq!(node.due(Millis(10)), Due { ping: true, ..Due::default() });
        assert!(!node.due(Millis(500)).ping);
        node.is_interrupted();
        node.is_interrupted();
        assert!(!node.is_listening());
    }
}
