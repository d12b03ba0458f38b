//! What came of publishes that had a key, so that one that is sent again does nothing.

use std::collections::VecDeque;

use compact_str::CompactString;
use hashbrown::HashMap;

use super::history::Position;
use crate::base::time::Millis;

/// A publish is known by its channel and its key.
type Name = (CompactString, CompactString);

/// Results of publishes with a key, for a time. At most so many: beyond that the oldest is forgotten,
/// and a publish with its key would be a new one.
#[derive(Debug)]
pub struct Results {
    by_name: HashMap<Name, Position, foldhash::fast::RandomState>,
    /// In the order in which they end.
    ends: VecDeque<(Millis, Name)>,
    count_max: usize,
}

impl Results {
    /// None yet.
    pub fn new(count_max: usize) -> Self {
        Self { by_name: HashMap::default(), ends: VecDeque::new(), count_max: count_max.max(1) }
    }

    /// What came of a publish with this key, if that is not too long ago.
    pub fn get(&mut self, now: Millis, channel: &str, key: &str) -> Option<Position> {
        self.expire(now);
        self.by_name.get(&(channel.into(), key.into())).copied()
    }

    /// A publish with this key was taken.
    pub fn insert(&mut self, now: Millis, channel: &str, key: &str, position: Position) {
        self.expire(now);
        let name: Name = (channel.into(), key.into());
        if self.by_name.insert(name.clone(), position).is_some() {
            return;
        }
        self.ends.push_back((now.after(KEPT_MS), name));
        if self.ends.len() > self.count_max
            && let Some((_, oldest)) = self.ends.pop_front()
        {
            self.by_name.remove(&oldest);
        }
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// None are kept.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Forgets those whose time is over.
    pub fn expire(&mut self, now: Millis) {
        while self.ends.front().is_some_and(|(end, _)| *end <= now)
            && let Some((_, name)) = self.ends.pop_front()
        {
            self.by_name.remove(&name);
        }
        if self.ends.is_empty() && self.ends.capacity() > 0 {
            (self.by_name, self.ends) = (HashMap::default(), VecDeque::new());
        }
    }
}

/// Milliseconds that a result is kept (server API, 3 publish).
const KEPT_MS: u64 = 5 * 60 * 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_end_by_time_and_by_number() {
        let position = |offset| Position { offset, epoch: None };
        let mut results = Results::new(2);
        results.insert(Millis(0), "a", "k", position(1));
        assert_eq!(results.get(Millis(1), "a", "k"), Some(position(1)));
        assert_eq!(results.get(Millis(1), "b", "k"), None);
        assert_eq!(results.get(Millis(1), "a", "l"), None);
        assert_eq!(results.get(Millis(KEPT_MS - 1), "a", "k"), Some(position(1)));
        assert_eq!(results.get(Millis(KEPT_MS), "a", "k"), None);
        assert!(results.is_empty());
        for (at, key) in ["x", "y", "z"].into_iter().enumerate() {
            results.insert(Millis(at as u64), "a", key, position(at as u64));
        }
        assert_eq!(results.len(), 2);
        assert_eq!(results.get(Millis(3), "a", "x"), None);
        assert_eq!(results.get(Millis(3), "a", "z"), Some(position(2)));
        results.expire(Millis(KEPT_MS + 2));
        assert!(results.is_empty());
    }
}
