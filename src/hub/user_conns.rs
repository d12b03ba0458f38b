//! The connections of a user, counted exactly: kept at the user's home shard, and only where an
//! option requires it (`user_connection_limit`, `single_connection`).

use compact_str::CompactString;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use crate::base::id::{ConnKey, ShardId};
use crate::base::image::{Broken, ImageReader, ImageWriter, kind};

/// A connection of the node.
pub type Place = (ShardId, ConnKey);

/// The connections of the users whose home is this shard.
#[derive(Debug, Default)]
pub struct UserConns {
    by_user: HashMap<CompactString, Vec<Place>, foldhash::fast::RandomState>,
    conns: usize,
}

impl UserConns {
    /// One more connection of a user, unless there are `limit` already (0: no limit). Those that have
    /// to go for it are the answer: all others when there may be a single one.
    pub fn enter(
        &mut self,
        user: &str,
        place: Place,
        limit: usize,
        single: bool,
    ) -> Option<Vec<Place>> {
        let conns = self.by_user.entry(user.into()).or_default();
        // A connection that gives way to the new one leaves room for it.
        if limit > 0 && !single && conns.len() >= limit {
            return None;
        }
        let evicted = if single { conns.clone() } else { Vec::new() };
        conns.push(place);
        self.conns += 1;
        Some(evicted)
    }

    /// A connection has gone.
    pub fn leave(&mut self, user: &str, place: Place) {
        let Entry::Occupied(mut entry) = self.by_user.entry(user.into()) else { return };
        let conns = entry.get_mut();
        if let Some(at) = conns.iter().position(|known| *known == place) {
            conns.swap_remove(at);
            self.conns -= 1;
        }
        if conns.is_empty() {
            entry.remove();
        }
        if self.by_user.is_empty() {
            *self = Self::default();
        }
    }

    /// Writes a record for each user.
    pub fn write(&self, out: &mut ImageWriter) {
        for (user, conns) in &self.by_user {
            out.record(kind::USER, |out| {
                out.field(user);
                out.field(conns);
            });
        }
    }

    /// Reads the next record of these.
    ///
    /// # Errors
    /// It is none.
    pub fn read(&mut self, from: &mut ImageReader<'_>) -> Result<(), Broken> {
        let user: CompactString = from.field("UserConns.user")?;
        let conns: Vec<Place> = from.field("UserConns.conns")?;
        self.conns += conns.len();
        match self.by_user.insert(user, conns) {
            None => Ok(()),
            Some(_) => Err(from.misplaced()),
        }
    }

    /// Connections counted here.
    pub fn len(&self) -> usize {
        self.conns
    }

    /// Nobody is counted.
    pub fn is_empty(&self) -> bool {
        self.conns == 0
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn place(index: u32) -> Place {
        (ShardId(0), ConnKey { index, generation: NonZeroU32::MIN })
    }

    #[test]
    fn the_limit_refuses_and_room_comes_back() {
        let mut conns = UserConns::default();
        let enter = |conns: &mut UserConns, user, index| {
            conns.enter(user, place(index), 2, false).is_some()
        };
        assert!(enter(&mut conns, "a", 1) && enter(&mut conns, "a", 2));
        assert!(!enter(&mut conns, "a", 3) && enter(&mut conns, "b", 4));
        // A refused connection is not there.
        conns.leave("a", place(3));
        conns.leave("a", place(1));
        assert!(enter(&mut conns, "a", 5) && !enter(&mut conns, "a", 6));
        for (user, index) in [("a", 2), ("a", 5), ("b", 4)] {
            conns.leave(user, place(index));
        }
        assert!(conns.is_empty());
    }

    #[test]
    fn a_single_one_makes_the_others_go() {
        let mut conns = UserConns::default();
        assert_eq!(conns.enter("a", place(1), 1, true), Some(vec![]));
        assert_eq!(conns.enter("a", place(2), 1, true), Some(vec![place(1)]));
        conns.leave("a", place(1));
        assert_eq!(conns.enter("a", place(3), 1, true), Some(vec![place(2)]));
        assert_eq!(conns.len(), 2);
    }
}
