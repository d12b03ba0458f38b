//! The results of publishes with a key, so that a repeated one does nothing.

use std::collections::VecDeque;

use compact_str::CompactString;
use hashbrown::HashMap;

use super::history::Position;
use crate::base::heap::HeapBytes;
use crate::base::image::{Broken, ImageReader, ImageWriter, kind};
use crate::base::time::Millis;

/// A publish is known by its channel and its key.
type Name = (CompactString, CompactString);

/// Results of publishes with a key, for a time. At most so many, of so many bytes: beyond that the oldest is
/// forgotten, and a publish with its key would be a new one.
#[derive(Debug)]
pub struct Results {
    by_name: HashMap<Name, Position, foldhash::fast::RandomState>,
    /// In the order in which they end.
    ends: VecDeque<(Millis, Name)>,
    count_max: usize,
    bytes_max: usize,
    /// Bytes of all names, and of what stands beside them.
    bytes: usize,
}

/// The bytes of a result: its name is there twice.
fn bytes_of(name: &Name) -> usize {
    let entry = size_of::<(Name, Position)>() + size_of::<(Millis, Name)>();
    entry + 2 * name.heap_bytes()
}

impl Results {
    /// None yet.
    pub fn new(count_max: usize, bytes_max: usize) -> Self {
        let count_max = count_max.max(1);
        Self { by_name: HashMap::default(), ends: VecDeque::new(), count_max, bytes_max, bytes: 0 }
    }

    /// The result of a publish with this key, if that is not too long ago.
    pub fn get(&mut self, now: Millis, channel: &str, key: &str) -> Option<Position> {
        self.expire(now);
        self.by_name.get(&(channel.into(), key.into())).cloned()
    }

    /// A publish with this key was taken.
    pub fn insert(&mut self, now: Millis, channel: &str, key: &str, position: Position) {
        self.expire(now);
        let name: Name = (channel.into(), key.into());
        if self.by_name.insert(name.clone(), position).is_some() {
            return;
        }
        self.bytes += bytes_of(&name);
        self.ends.push_back((now.after(KEPT_MS), name));
        // The newest stays, however long its key is.
        while self.ends.len() > 1
            && (self.ends.len() > self.count_max || self.bytes > self.bytes_max)
        {
            self.pop();
        }
    }

    /// Forgets the oldest. Its bytes.
    fn pop(&mut self) -> Option<usize> {
        let (_, name) = self.ends.pop_front()?;
        self.by_name.remove(&name);
        let bytes = bytes_of(&name);
        self.bytes -= bytes;
        Some(bytes)
    }

    /// Forgets the oldest until that gives `bytes` back, `count` of them at most. How many there were, and
    /// how many bytes.
    pub fn forget_oldest(&mut self, bytes: usize, count: usize) -> (usize, usize) {
        let (mut forgotten, mut given) = (0, 0);
        while given < bytes
            && forgotten < count
            && let Some(bytes) = self.pop()
        {
            forgotten += 1;
            given += bytes;
        }
        self.free_when_empty();
        (forgotten, given)
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
        while self.ends.front().is_some_and(|(end, _)| *end <= now) {
            self.pop();
        }
        self.free_when_empty();
    }

    /// Writes a record for each result, the first to end first.
    pub fn write(&self, out: &mut ImageWriter) {
        for (end, name) in &self.ends {
            let Some(position) = self.by_name.get(name) else { continue };
            out.record(kind::RESULT, |out| {
                out.field(end);
                out.field(name);
                out.field(position);
            });
        }
    }

    /// Reads the next record of these.
    ///
    /// # Errors
    /// It is none.
    pub fn read(&mut self, from: &mut ImageReader<'_>) -> Result<(), Broken> {
        let end: Millis = from.field("Result.end")?;
        let name: Name = from.field("Result.name")?;
        let position = from.field("Result.position")?;
        if self.by_name.insert(name.clone(), position).is_some() {
            return Err(from.misplaced());
        }
        self.bytes += bytes_of(&name);
        self.ends.push_back((end, name));
        Ok(())
    }

    fn free_when_empty(&mut self) {
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
        let mut results = Results::new(2, usize::MAX);
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
        assert_eq!(results.bytes, 0);
    }

    #[test]
    fn results_end_by_their_bytes() {
        let position = |offset| Position { offset, epoch: None };
        let mut results = Results::new(100, 10_000);
        for at in 0..10 {
            let key = at.to_string().repeat(1000);
            results.insert(Millis(0), "a", &key, position(at));
            assert!(results.bytes <= 10_000);
        }
        assert_eq!(results.len(), 4);
        let (forgotten, given) = results.forget_oldest(1, 9);
        assert!(forgotten == 1 && given > 2000);
        let key = "9".repeat(1000);
        assert_eq!(results.get(Millis(1), "a", &key), Some(position(9)));
        assert_eq!(results.forget_oldest(usize::MAX, 9).0, 3);
        assert_eq!(results.bytes, 0);
        // One alone is kept, however long its key is.
        results.insert(Millis(1), "a", &"k".repeat(20_000), position(1));
        assert_eq!(results.len(), 1);
    }
}
