//! Bytes that a driver has read before the shard requests them.

use std::collections::VecDeque;

use super::Received;
use crate::base::id::ConnKey;

/// Answers of reads, by connection, until the shard requests them.
pub(super) struct Ahead<L>(VecDeque<(ConnKey, Received<L>)>);

impl<L> Ahead<L> {
    pub(super) fn new() -> Self {
        Self(VecDeque::new())
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is one of a connection.
    pub(super) fn has(&self, key: ConnKey) -> bool {
        self.position(key).is_some()
    }

    /// Adds one, behind all others.
    pub(super) fn push(&mut self, key: ConnKey, received: Received<L>) {
        self.0.push_back((key, received));
    }

    /// The answers from index `first` on, to be filled in.
    pub(super) fn since(&mut self, first: usize) -> impl Iterator<Item = &mut Received<L>> {
        self.0.range_mut(first..).map(|(_, received)| received)
    }

    /// Takes the first.
    pub(super) fn pop(&mut self) -> Option<(ConnKey, Received<L>)> {
        self.0.pop_front()
    }

    /// Takes that of a connection: usually it is the first.
    pub(super) fn take(&mut self, key: ConnKey) -> Option<Received<L>> {
        let at = self.position(key)?;
        self.0.remove(at).map(|(_, received)| received)
    }

    /// Gives that of a connection, if there is one, another key.
    pub(super) fn rename(&mut self, old: ConnKey, new: ConnKey) {
        if let Some(at) = self.position(old) {
            self.0[at].0 = new;
        }
    }

    /// After a new wait, leftovers no longer prove that the socket is drained:
    /// epoll may have reported a newer edge, taken for one of the leftovers.
    pub(super) fn age(&mut self) {
        self.0.retain_mut(|(_, received)| match received {
            Received::Bytes { short, .. } => {
                *short = false;
                true
            }
            Received::Blocked | Received::Taken => false,
            Received::Ended | Received::Failed | Received::Refused => true,
        });
    }

    fn position(&self, key: ConnKey) -> Option<usize> {
        self.0.iter().position(|(known, _)| *known == key)
    }
}
