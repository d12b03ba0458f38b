//! Which sessions of a shard belong to a user: a table of chain heads; the links are in the
//! sessions themselves. About 5 bytes a user here, 8 in each session.

use hashbrown::HashTable;

/// No session.
pub const NONE: u32 = u32::MAX;

/// A session's place in the chain of its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserLinks {
    /// The next session of the same user.
    pub next: u32,
    /// The one before.
    pub prev: u32,
}

impl Default for UserLinks {
    fn default() -> Self {
        Self { next: NONE, prev: NONE }
    }
}

/// Where the sessions are: their user ids, hashes and links.
pub trait Sessions {
    /// The hash of a session's user id.
    fn user_hash(&self, session: u32) -> u64;
    /// Whether two sessions have the same user.
    fn same_user(&self, a: u32, b: u32) -> bool;
    /// A session's links.
    fn links(&mut self, session: u32) -> &mut UserLinks;
}

/// Users with sessions on this shard.
#[derive(Default)]
pub struct Users {
    heads: HashTable<u32>,
}

impl Users {
    /// Distinct users.
    pub fn len(&self) -> usize {
        self.heads.len()
    }

    /// No user is here.
    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// The first session of the user who `eq` recognises; follow the links for the others.
    pub fn first(&self, hash: u64, eq: impl FnMut(&u32) -> bool) -> Option<u32> {
        self.heads.find(hash, eq).copied()
    }

    /// Adds a session to its user.
    pub fn insert(&mut self, session: u32, sessions: &mut impl Sessions) {
        let hash = sessions.user_hash(session);
        match self.heads.find_mut(hash, |head| sessions.same_user(*head, session)) {
            Some(head) => {
                *sessions.links(session) = UserLinks { next: *head, prev: NONE };
                sessions.links(*head).prev = session;
                *head = session;
            }
            None => {
                *sessions.links(session) = UserLinks::default();
                self.heads.insert_unique(hash, session, |head| sessions.user_hash(*head));
            }
        }
    }

    /// Takes a session out.
    pub fn remove(&mut self, session: u32, sessions: &mut impl Sessions) {
        let UserLinks { next, prev } = std::mem::take(sessions.links(session));
        if next != NONE {
            sessions.links(next).prev = prev;
        }
        if prev != NONE {
            sessions.links(prev).next = next;
            return;
        }
        let hash = sessions.user_hash(session);
        if let Ok(mut head) = self.heads.find_entry(hash, |head| *head == session) {
            if next == NONE {
                head.remove();
            } else {
                *head.get_mut() = next;
            }
        }
        if self.heads.is_empty() {
            self.heads = HashTable::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Table(Vec<(u64, UserLinks)>);

    impl Sessions for Table {
        fn user_hash(&self, session: u32) -> u64 {
            self.0[session as usize].0
        }
        fn same_user(&self, a: u32, b: u32) -> bool {
            self.0[a as usize].0 == self.0[b as usize].0
        }
        fn links(&mut self, session: u32) -> &mut UserLinks {
            &mut self.0[session as usize].1
        }
    }

    fn of_user(users: &Users, table: &mut Table, user: u64) -> Vec<u32> {
        let mut found = Vec::new();
        let mut at = users.first(user, |head| table.0[*head as usize].0 == user);
        while let Some(session) = at {
            found.push(session);
            let next = table.links(session).next;
            at = (next != NONE).then_some(next);
        }
        found.sort_unstable();
        found
    }

    #[test]
    fn every_order_of_leaving_keeps_the_others() {
        for first in 0..3 {
            for second in 0..3 {
                let mut table = Table((0..6).map(|n| (n / 3, UserLinks::default())).collect());
                let mut users = Users::default();
                (0..6).for_each(|session| users.insert(session, &mut table));
                assert_eq!(users.len(), 2);
                let mut left = vec![0, 1, 2];
                for gone in [first, second] {
                    if let Some(at) = left.iter().position(|s| *s == gone) {
                        left.remove(at);
                        users.remove(gone, &mut table);
                    }
                    assert_eq!(of_user(&users, &mut table, 0), left);
                    assert_eq!(of_user(&users, &mut table, 1), [3, 4, 5]);
                }
                left.into_iter().for_each(|session| users.remove(session, &mut table));
                (3..6).for_each(|session| users.remove(session, &mut table));
                assert!(users.is_empty());
            }
        }
    }
}
