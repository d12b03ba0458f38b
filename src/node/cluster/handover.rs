//! This node among the others while another process takes its place: the same node to them, which is never silent and
//! does not end.

use super::{Cluster, LISTS_MAX, State};
use crate::cluster::control::{Command, Message, Node};
use crate::handover::Others;

/// Control connections that have not delivered the fence of an attempt: what comes before it is this process's.
#[derive(Debug, Default)]
pub(super) struct Fence {
    key: u64,
    left: usize,
}

impl Fence {
    pub(super) fn arrive(&mut self, key: u64) {
        if key == self.key {
            self.left = self.left.saturating_sub(1);
        }
    }
}

impl Cluster {
    /// The fence of this attempt is to come from so many servers.
    pub(in crate::node) fn await_fence(&self, key: u64, servers: usize) {
        self.state().fence = Fence { key, left: servers };
    }

    /// The process goes on.
    pub(in crate::node) fn forget_fence(&self) {
        self.state().fence = Fence::default();
    }

    /// Everything between this node and others that is under way, and how much of it.
    pub(in crate::node) fn unsettled(&self) -> [(&'static str, usize); 4] {
        let State { outbox, incoming, fence, .. } = &*self.state();
        [
            ("messages to other nodes", outbox.len()),
            ("commands of other nodes", incoming.len()),
            ("lists for other nodes", LISTS_MAX - self.lists.available_permits()),
            ("fences of the control connections", fence.left),
        ]
    }

    /// What the other process has to know.
    pub(in crate::node) fn others(&self) -> Others {
        let state = self.state();
        let bytes = |node: &Node| {
            Command { uid: node.uid.clone(), message: Message::Node(node.clone()) }.write()
        };
        let nodes = state.membership.peers().iter().map(bytes).collect();
        Others { nodes, surveys: state.surveys.last() }
    }

    /// Goes on from what the other process knew. One that can't be read is heard of within seconds.
    pub(in crate::node) fn inherit(&self, known: &Others) {
        let now = self.now();
        let mut state = self.state();
        state.surveys.follow(known.surveys);
        for bytes in &known.nodes {
            if let Ok(Command { message: Message::Node(node), .. }) = Command::read(bytes)
                && node.uid != self.uid()
            {
                state.membership.heard(now, node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_of_another_attempt_is_not_counted() {
        let mut fence = Fence { key: 7, left: 2 };
        fence.arrive(6);
        assert_eq!(fence.left, 2);
        (0..3).for_each(|_| fence.arrive(7));
        assert_eq!(fence.left, 0);
    }
}
