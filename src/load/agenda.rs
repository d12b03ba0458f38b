//! What one thread's connections do at a time of their own: leave, come back, send after a pause, refresh
//! a token. Price: 24 bytes for each entry, at most one or two for a connection of a population that has such
//! times, nothing for others.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The act that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Act {
    /// Close the connection on purpose, and come back after a while.
    Leave,
    /// Open it again.
    Return,
    /// Send the next message.
    Send,
    /// Send a new token before the old one expires.
    Refresh,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Agenda(BinaryHeap<Reverse<(u64, u32, u32, Act)>>);

impl Agenda {
    /// Connection `index` is to act at `due_ns`, if its generation is still this one.
    pub(crate) fn push(&mut self, due_ns: u64, index: u32, generation: u32, act: Act) {
        self.0.push(Reverse((due_ns, index, generation, act)));
    }

    /// The next one that is due: when it was, connection, generation, act.
    pub(crate) fn pop_due(&mut self, now_ns: u64) -> Option<(u64, u32, u32, Act)> {
        let Reverse((due_ns, ..)) = self.0.peek()?;
        if *due_ns > now_ns {
            return None;
        }
        self.0.pop().map(|Reverse(entry)| entry)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// When something is due next.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        self.0.peek().map(|Reverse((due_ns, ..))| *due_ns)
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acts_come_in_the_order_of_their_times() {
        let mut agenda = Agenda::default();
        agenda.push(30, 1, 1, Act::Leave);
        agenda.push(10, 2, 1, Act::Send);
        assert_eq!((agenda.next_ns(), agenda.pop_due(9)), (Some(10), None));
        assert_eq!(agenda.pop_due(40), Some((10, 2, 1, Act::Send)));
        assert_eq!(agenda.pop_due(40), Some((30, 1, 1, Act::Leave)));
        assert_eq!((agenda.pop_due(40), agenda.next_ns()), (None, None));
    }
}
