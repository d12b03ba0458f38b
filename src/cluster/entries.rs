//! Which presence entries a node has made: a set for each node, so that others can remove the entries of a node
//! that died, and announce the leaves.
//!
//! ```text
//!  P.roost.node.UID   set of  "+" or "-"  CLIENT  NUL  CHANNEL      ("+": its leave is announced)
//!
//!  the node:    SADD with each entry, SREM with each leave, EXPIRE each minute
//!  the others,  once the node is forgotten:
//!     SPOP 128 --> for each: HGET --> remove the entry, announce the leave
//!          '--> SPOP 128 --> ...
//! ```
//! SPOP gives each member to one node only, so all nodes that are left share the work, and no leave is announced
//! twice. A node that dies meanwhile loses up to 128 leaves; the entries expire anyway. The set is beside the
//! keys that all nodes share, and never in `ClientInfo`: nodes of Centrifugo don't know it, so nobody announces
//! the leaves of their clients.
//!
//! A node may be taken for dead and go on, as after a pause of the machine. It hears of it
//! ([`ENTRIES_REMOVED`]), and enters all again.

use compact_str::CompactString;

use super::operations::{Awaited, Operations, Reply, Request, Settled};
use crate::hub::broker::{BrokerEvent, PresenceChange, PresenceUpdate};

/// The operation of a notification to a node: others have removed its presence entries.
pub const ENTRIES_REMOVED: &str = "roost.entries_removed";

/// Entries of a dead node that are removed between two looks at the queue.
const TAKEN_MAX: &str = "128";

/// The set of a node that has ended without a word is kept for so long, in seconds.
const SET_TTL_S: &str = "600";

/// A member of the set.
fn member(announces: bool, client: &str, channel: &str) -> Vec<u8> {
    let flag = if announces { "+" } else { "-" };
    [flag, client, "\0", channel].concat().into()
}

/// The parts of a member: whether the leave is announced, client, channel. `None` for one that is malformed.
fn parts(member: &[u8]) -> Option<(bool, &str, &str)> {
    let text = std::str::from_utf8(member).ok()?;
    let (flag, rest) = text.split_at_checked(1)?;
    let (client, channel) = rest.split_once('\0')?;
    match flag {
        "+" => Some((true, client, channel)),
        "-" => Some((false, client, channel)),
        _ => None,
    }
}

impl Operations {
    /// The changes of the set of node `uid` that go with an update of presence.
    pub fn entries_of_update(&self, uid: &str, update: &PresenceUpdate) -> Vec<Request> {
        let key = || Vec::from(self.names.entries_of_node(uid));
        let (mut added, mut removed) = (vec![key()], vec![key()]);
        for (change, info) in &update.changes {
            let Some(info) = crate::base::info::ClientInfo::unpack(info) else { continue };
            let of = |announces| member(announces, info.client, &update.channel);
            match change {
                PresenceChange::Enter { announces } => added.push(of(*announces)),
                PresenceChange::Refresh => {}
                // Whichever it was.
                PresenceChange::Leave => removed.extend([of(true), of(false)]),
            }
        }
        let mut requests = Vec::new();
        if added.len() > 1 {
            requests.push(Request::Plain { name: "SADD", arguments: added });
            requests.push(self.keep_entries(uid));
        }
        if removed.len() > 1 {
            requests.push(Request::Plain { name: "SREM", arguments: removed });
        }
        requests
    }

    /// The set of node `uid` is kept for another while.
    pub fn keep_entries(&self, uid: &str) -> Request {
        let arguments = vec![self.names.entries_of_node(uid).into(), SET_TTL_S.into()];
        Request::Plain { name: "EXPIRE", arguments }
    }

    /// Takes entries of a node that is dead.
    pub fn take_entries(&self, uid: &str) -> (Request, Awaited) {
        let arguments = vec![self.names.entries_of_node(uid).into(), TAKEN_MAX.into()];
        (Request::Plain { name: "SPOP", arguments }, Awaited::Taken { uid: uid.into() })
    }

    /// Reads entries that were taken; then the next ones are taken.
    pub(super) fn orphans(&self, uid: &str, members: &[Reply]) -> Settled {
        if members.is_empty() {
            return Settled::Nothing;
        }
        let mut requests = Vec::with_capacity(members.len() + 1);
        for member in members {
            let Reply::Bytes(member) = member else { continue };
            let Some((announces, client, channel)) = parts(member) else { continue };
            let arguments = vec![self.names.presence(channel).into(), client.into()];
            let awaited = Awaited::Orphan { channel: CompactString::from(channel), announces };
            requests.push((Request::Plain { name: "HGET", arguments }, awaited));
        }
        requests.push(self.take_entries(uid));
        Settled::Several(vec![], requests)
    }

    /// Removes an entry of a dead node, whose packed info this is.
    pub(super) fn orphan(&self, channel: &str, announces: bool, info: Box<[u8]>) -> Settled {
        let removal = self.presence_update(channel, &[&(PresenceChange::Leave, info.clone())]);
        let channel = CompactString::from(channel);
        let event = announces.then_some(BrokerEvent::Orphaned { channel, info });
        Settled::Several(event.into_iter().collect(), vec![(removal, Awaited::Nothing)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::info::ClientInfo;
    use crate::cluster::names::{Layout, Names};
    use crate::cluster::operations::Fresh;
    use crate::proto::client::nodes::put_client_info;

    fn operations() -> Operations {
        Operations {
            names: Names::new("p", Layout::Cluster),
            use_lists: false,
            presence_ttl_s: 60,
            presence_users: false,
            presence_field_ttl: false,
        }
    }

    fn info(client: &str) -> Box<[u8]> {
        ClientInfo { user: "u", client, conn_info: b"{}", ..<_>::default() }.pack()
    }

    fn words(request: &Request) -> Vec<String> {
        let Request::Plain { name, arguments } = request else { panic!("{request:?}") };
        let arguments = arguments.iter().map(|of| String::from_utf8_lossy(of).into_owned());
        std::iter::once((*name).to_owned()).chain(arguments).collect()
    }

    #[test]
    fn members_keep_their_parts() {
        for (announces, client, channel) in [(true, "c", "a:b"), (false, "", ""), (true, "c", "\0")]
        {
            let member = member(announces, client, channel);
            assert_eq!(parts(&member), Some((announces, client, channel)));
        }
        for malformed in [&b""[..], b"+c", b"xc\0a", b"+\xff\0a", "é\0".as_bytes()] {
            assert_eq!(parts(malformed), None, "{malformed:?}");
        }
    }

    #[test]
    fn the_set_follows_the_changes() {
        let enter = |announces| PresenceChange::Enter { announces };
        let changes = vec![
            (enter(true), info("1")),
            (enter(false), info("2")),
            (PresenceChange::Refresh, info("3")),
            (PresenceChange::Leave, info("4")),
        ];
        let update = PresenceUpdate { channel: "news".into(), ticket: None, changes };
        let requests = operations().entries_of_update("n", &update);
        let words: Vec<_> = requests.iter().map(words).collect();
        let key = "p.roost.node.n";
        assert_eq!(words[0], ["SADD", key, "+1\0news", "-2\0news"]);
        assert_eq!(words[1], ["EXPIRE", key, "600"]);
        assert_eq!(words[2], ["SREM", key, "+4\0news", "-4\0news"]);
        let changes = vec![(PresenceChange::Refresh, info("3"))];
        let update = PresenceUpdate { channel: "news".into(), ticket: None, changes };
        assert!(operations().entries_of_update("n", &update).is_empty());
    }

    #[test]
    fn entries_of_a_dead_node_are_removed_and_announced() {
        let operations = operations();
        let fresh = Fresh { now_ms: 0, epoch: "e" };
        let (request, taken) = operations.take_entries("n");
        assert_eq!(words(&request), ["SPOP", "p.roost.node.n", "128"]);
        let none = operations.settle(taken.clone(), Reply::List(Vec::new()), fresh);
        assert!(matches!(none, Settled::Nothing));
        let members = ["+1\0news", "malformed"].map(|of| Reply::Bytes(of.into()));
        let settled = operations.settle(taken, Reply::List(members.into()), fresh);
        let Settled::Several(events, mut requests) = settled else { panic!("{settled:?}") };
        assert!(events.is_empty());
        assert_eq!(words(&requests.pop().unwrap().0)[0], "SPOP");
        let (request, orphan) = requests.pop().unwrap();
        assert_eq!(words(&request), ["HGET", "p.presence.data.{news}", "1"]);
        assert!(requests.is_empty());
        // Expired already.
        let gone = operations.settle(orphan.clone(), Reply::Nil, fresh);
        assert!(matches!(gone, Settled::Nothing));
        let mut message = Vec::new();
        put_client_info(&mut message, &info("1"));
        let settled = operations.settle(orphan, Reply::Bytes(message), fresh);
        let Settled::Several(events, requests) = settled else { panic!("{settled:?}") };
        let [BrokerEvent::Orphaned { channel, info: of }] = &events[..] else {
            panic!("{events:?}")
        };
        assert_eq!((channel.as_str(), of), ("news", &info("1")));
        assert!(matches!(requests[0].0, Request::Script { .. }));
    }
}
