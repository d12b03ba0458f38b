//! `--recover`: positions of the connections in their channels, and what coming back brought.
//!
//! ```text
//!  subscribed at 7 of epoch E -> position (7, E)
//!  publication 8              -> position (8, E)
//!  the connection ends        -> connect again, subscribe from (8, E)
//!  recovered                  -> the missed publications are in the reply
//!  not recovered              -> what is missing up to the next message was announced, and is not lost
//! ```

use compact_str::CompactString;
use serde::{Deserialize, Serialize};

/// The position that a reply to a subscribe brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Joined {
    pub(crate) offset: u64,
    pub(crate) epoch: CompactString,
    /// Publications between the requested position and this one are gone.
    pub(crate) is_missing_some: bool,
}

/// What coming back brought, of all connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Returns {
    /// Connections that were made again after the server or an error ended them.
    pub(crate) reconnected: u64,
    /// Subscriptions that the server ended, and that were taken up again over the same connection.
    pub(crate) resubscribed: u64,
    /// Times that the server could not recover everything, and said so.
    pub(crate) unrecovered: u64,
    /// Messages that are missing on a connection for that reason; they don't count as lost.
    pub(crate) announced: u64,
}

impl Returns {
    /// Adds another thread's.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.reconnected += other.reconnected;
        self.resubscribed += other.resubscribed;
        self.unrecovered += other.unrecovered;
        self.announced += other.announced;
    }
}

/// Positions of one thread's connections: 16 bytes each, nothing without `--recover`.
#[derive(Debug)]
pub(crate) struct Positions {
    is_on: bool,
    each: Vec<Position>,
    /// Epochs that were seen; few, since nearly all connections of a channel share one.
    epochs: Vec<CompactString>,
    pub(crate) returns: Returns,
}

#[derive(Clone, Copy, Debug, Default)]
struct Position {
    offset: u64,
    /// Number of its epoch, from 1; 0 before the first subscribe.
    epoch: u32,
    /// The server said that something is missing before the next message.
    has_announced_gap: bool,
}

impl Positions {
    pub(crate) fn new(is_on: bool) -> Self {
        Self { is_on, each: Vec::new(), epochs: Vec::new(), returns: Returns::default() }
    }

    /// Whether connections come back.
    pub(crate) fn is_on(&self) -> bool {
        self.is_on
    }

    fn at(&mut self, index: u32) -> &mut Position {
        let index = index as usize;
        if self.each.len() <= index {
            self.each.resize(index + 1, Position::default());
        }
        &mut self.each[index]
    }

    /// The connection is subscribed.
    pub(crate) fn joined(&mut self, index: u32, joined: &Joined) {
        if !self.is_on {
            return;
        }
        let known = self.epochs.iter().position(|epoch| *epoch == joined.epoch);
        let number = known.unwrap_or_else(|| {
            self.epochs.push(joined.epoch.clone());
            self.epochs.len() - 1
        });
        let position = self.at(index);
        *position = Position {
            offset: joined.offset,
            epoch: number as u32 + 1,
            has_announced_gap: joined.is_missing_some || position.has_announced_gap,
        };
        self.returns.unrecovered += u64::from(joined.is_missing_some);
    }

    /// A publication with this offset came; 0: it has none.
    pub(crate) fn moved(&mut self, index: u32, offset: u64) {
        if self.is_on && offset > 0 {
            self.at(index).offset = offset;
        }
    }

    /// Where to recover from.
    pub(crate) fn of(&self, index: u32) -> Option<(u64, &str)> {
        let position = self.each.get(index as usize)?;
        let epoch = self.epochs.get(position.epoch.checked_sub(1)? as usize)?;
        Some((position.offset, epoch))
    }

    /// Whether what is missing before a message that came was announced; it is not from then on.
    pub(crate) fn take_announced_gap(&mut self, index: u32) -> bool {
        let position = self.each.get_mut(index as usize);
        position.is_some_and(|position| std::mem::take(&mut position.has_announced_gap))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(offset: u64, epoch: &str, is_missing_some: bool) -> Joined {
        Joined { offset, epoch: epoch.into(), is_missing_some }
    }

    #[test]
    fn a_position_follows_publications_and_replies() {
        let mut positions = Positions::new(true);
        assert_eq!(positions.of(3), None);
        positions.joined(3, &joined(7, "e", false));
        assert_eq!(positions.of(3), Some((7, "e")));
        assert_eq!(positions.of(2), None);
        positions.moved(3, 8);
        positions.moved(3, 0);
        assert_eq!(positions.of(3), Some((8, "e")));
        positions.joined(3, &joined(1, "f", false));
        positions.joined(2, &joined(5, "e", false));
        assert_eq!((positions.of(3), positions.of(2)), (Some((1, "f")), Some((5, "e"))));
        assert_eq!(positions.epochs.len(), 2);
    }

    #[test]
    fn a_gap_is_announced_until_the_next_message() {
        let mut positions = Positions::new(true);
        positions.joined(0, &joined(7, "e", false));
        assert!(!positions.take_announced_gap(0));
        positions.joined(0, &joined(1, "f", true));
        // The next reply is about a later gap.
        positions.joined(0, &joined(2, "f", false));
        assert!(positions.take_announced_gap(0));
        assert!(!positions.take_announced_gap(0));
        assert_eq!(positions.returns.unrecovered, 1);
    }

    #[test]
    fn nothing_is_kept_without_the_option() {
        let mut positions = Positions::new(false);
        positions.joined(0, &joined(7, "e", true));
        positions.moved(0, 8);
        assert_eq!(positions.of(0), None);
        assert!(positions.each.is_empty() && positions.epochs.is_empty());
    }
}
