//! Owners of the slots of a Redis Cluster, as the reply to `CLUSTER SLOTS` names them.

use std::ops::RangeInclusive;

use crate::cluster::operations::Reply;
use crate::cluster::servers::Address;

/// A range of slots, and the master that owns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owned {
    pub(super) slots: RangeInclusive<u16>,
    pub(super) master: Address,
}

/// Reads the reply of the node at `asked`. A range whose master has no known address is left out.
pub(super) fn owners(reply: &Reply, asked: &Address) -> Vec<Owned> {
    let Reply::List(ranges) = reply else { return Vec::new() };
    ranges.iter().filter_map(|range| owned(range, asked)).collect()
}

/// `[first, last, [host, port, ...], replicas...]`
fn owned(range: &Reply, asked: &Address) -> Option<Owned> {
    let Reply::List(parts) = range else { return None };
    let [Reply::Int(first), Reply::Int(last), Reply::List(master), ..] = &parts[..] else {
        return None;
    };
    let [host, Reply::Int(port), ..] = &master[..] else { return None };
    let host = match (host, asked) {
        (Reply::Bytes(host), _) if !host.is_empty() => std::str::from_utf8(host).ok()?,
        // It does not know its own address, or says that it is the one by which it was reached.
        (Reply::Bytes(_) | Reply::Nil, Address::Tcp(host, _)) => host,
        _ => return None,
    };
    if host == "?" {
        return None;
    }
    let slots = u16::try_from(*first).ok()?..=u16::try_from(*last).ok()?;
    Some(Owned { slots, master: Address::Tcp(host.into(), u16::try_from(*port).ok()?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Reply {
        Reply::Bytes(text.into())
    }

    fn range(first: i64, last: i64, host: Reply, port: i64) -> Reply {
        let node = |host, port| Reply::List(vec![host, Reply::Int(port), bytes("an id")]);
        let replica = node(bytes("10.0.0.9"), 9);
        Reply::List(vec![Reply::Int(first), Reply::Int(last), node(host, port), replica])
    }

    #[test]
    fn each_range_has_its_master() {
        let asked = Address::Tcp("seed".into(), 1);
        let reply = Reply::List(vec![
            range(0, 5_460, bytes("10.0.0.1"), 7_000),
            range(5_461, 5_461, bytes(""), 7_001),
            range(5_462, 10_922, Reply::Nil, 7_002),
            range(10_923, 16_383, bytes("?"), 7_003),
        ]);
        let of = |slots, host: &str, port| Owned { slots, master: Address::Tcp(host.into(), port) };
        let expected = [
            of(0..=5_460, "10.0.0.1", 7_000),
            of(5_461..=5_461, "seed", 7_001),
            of(5_462..=10_922, "seed", 7_002),
        ];
        assert_eq!(owners(&reply, &asked), expected);
    }

    #[test]
    fn malformed_replies_name_nobody() {
        let asked = Address::Tcp("seed".into(), 1);
        for reply in [
            Reply::Nil,
            Reply::List(vec![Reply::Int(1)]),
            Reply::List(vec![Reply::List(vec![Reply::Int(1), Reply::Int(2)])]),
            Reply::List(vec![range(-1, 5, bytes("h"), 1)]),
            Reply::List(vec![range(0, 1 << 20, bytes("h"), 1)]),
            Reply::List(vec![range(0, 1, bytes("h"), 1 << 20)]),
        ] {
            assert_eq!(owners(&reply, &asked), []);
        }
    }
}
