//! Presence by survey: the answer of a node about its own clients in a channel.
//!
//! | bytes | content |
//! | --- | --- |
//! | 1 | 0; 1: there are more than these |
//! | of a list: length, `ClientInfo` | one for each client |
//! | of counts: 4, then 8 for each user | clients, and the hashes of their users |
//!
//! Users of several nodes are counted once, so their hashes go along and not their number.

use std::collections::BTreeSet;

use super::hash::fnv1a64;
use crate::base::info::ClientInfo;
use crate::proto::client::nodes::{put_client_info, read_client_info};

/// Bytes of one answer at most: what a server of NATS carries by default, with room for the rest of a message.
pub const ANSWER_BYTES_MAX: usize = 768 << 10;

/// Bytes that are no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an answer about presence")]
pub struct NoAnswer;

/// The clients of several nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Packed infos, one for each client.
    pub infos: Vec<Box<[u8]>>,
    /// Some node has more.
    pub is_partial: bool,
}

/// Their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Clients.
    pub clients: u32,
    /// Hashes of users.
    pub users: BTreeSet<u64>,
    /// Some node has more.
    pub is_partial: bool,
}

/// The answer with the clients themselves, from packed infos.
pub fn put_members(infos: &[Box<[u8]>], bytes_max: usize) -> Vec<u8> {
    let mut data = vec![0];
    let mut info = Vec::new();
    for packed in infos {
        info.clear();
        put_client_info(&mut info, packed);
        if data.len() + info.len() + 4 > bytes_max {
            data[0] = 1;
            break;
        }
        data.extend_from_slice(&(info.len() as u32).to_le_bytes());
        data.extend_from_slice(&info);
    }
    data
}

/// The answer with their numbers.
pub fn put_counts(infos: &[Box<[u8]>], bytes_max: usize) -> Vec<u8> {
    let mut data = vec![0];
    data.extend_from_slice(&(infos.len() as u32).to_le_bytes());
    let users = infos.iter().filter_map(|packed| ClientInfo::unpack(packed));
    let users: BTreeSet<u64> = users.map(|info| fnv1a64(info.user.as_bytes())).collect();
    for user in users {
        if data.len() + 8 > bytes_max {
            data[0] = 1;
            break;
        }
        data.extend_from_slice(&user.to_le_bytes());
    }
    data
}

impl Members {
    /// Adds the answer of a node.
    ///
    /// # Errors
    /// It is none.
    pub fn add(&mut self, data: &[u8]) -> Result<(), NoAnswer> {
        let (is_partial, mut rest) = flag(data)?;
        while !rest.is_empty() {
            let (length, behind) = rest.split_first_chunk::<4>().ok_or(NoAnswer)?;
            let length = u32::from_le_bytes(*length) as usize;
            let (info, behind) = behind.split_at_checked(length).ok_or(NoAnswer)?;
            self.infos.push(read_client_info(info).map_err(|_| NoAnswer)?);
            rest = behind;
        }
        self.is_partial |= is_partial;
        Ok(())
    }
}

impl Counts {
    /// Adds the answer of a node.
    ///
    /// # Errors
    /// It is none.
    pub fn add(&mut self, data: &[u8]) -> Result<(), NoAnswer> {
        let (is_partial, rest) = flag(data)?;
        let (clients, rest) = rest.split_first_chunk::<4>().ok_or(NoAnswer)?;
        let (users, odd) = rest.as_chunks::<8>();
        if !odd.is_empty() {
            return Err(NoAnswer);
        }
        self.clients = self.clients.saturating_add(u32::from_le_bytes(*clients));
        self.users.extend(users.iter().map(|user| u64::from_le_bytes(*user)));
        self.is_partial |= is_partial;
        Ok(())
    }
}

fn flag(data: &[u8]) -> Result<(bool, &[u8]), NoAnswer> {
    match data.split_first() {
        Some((flag @ (0 | 1), rest)) => Ok((*flag == 1, rest)),
        _ => Err(NoAnswer),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn infos(all: &[(&str, &str)]) -> Vec<Box<[u8]>> {
        let info = |(user, client): &(&str, &str)| {
            ClientInfo { user, client, conn_info: b"{}", ..<_>::default() }.pack()
        };
        all.iter().map(info).collect()
    }

    #[test]
    fn users_of_several_nodes_count_once() {
        let (a, b) = (infos(&[("ann", "1"), ("bob", "2")]), infos(&[("ann", "3")]));
        let (mut members, mut counts) = (Members::default(), Counts::default());
        for infos in [&a, &b, &infos(&[])] {
            members.add(&put_members(infos, ANSWER_BYTES_MAX)).unwrap();
            counts.add(&put_counts(infos, ANSWER_BYTES_MAX)).unwrap();
        }
        assert_eq!(members, Members { infos: [a, b].concat(), is_partial: false });
        assert_eq!((counts.clients, counts.users.len(), counts.is_partial), (3, 2, false));
    }

    #[test]
    fn an_answer_without_room_says_so() {
        let all = infos(&[("ann", "1"), ("bob", "2"), ("cat", "3")]);
        let mut members = Members::default();
        members.add(&put_members(&all, 40)).unwrap();
        assert!(members.is_partial && members.infos.len() == 2, "{members:?}");
        let mut counts = Counts::default();
        counts.add(&put_counts(&all, 20)).unwrap();
        assert_eq!((counts.clients, counts.users.len(), counts.is_partial), (3, 1, true));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = Members::default().add(&bytes);
            let _ = Counts::default().add(&bytes);
        }
    }
}
