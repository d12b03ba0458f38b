//! What a node of this project publishes about itself beside the given fields, and what of another node's
//! state deserves a warning.

use serde::{Deserialize, Serialize};

use crate::cluster::control::Node;
use crate::cluster::hash::fnv1a64;
use crate::cluster::servers::{Address, Server};

/// The version that this node publishes.
pub(super) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " roost");

/// The own data of a node, as JSON in [`Node::data`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OwnData {
    /// The version of this program.
    pub(super) roost: String,
    /// Resident memory over open connections.
    #[serde(default)]
    pub(super) bytes_per_connection: u64,
    /// The list of servers, as a hash: nodes whose lists differ look for channels at different servers.
    #[serde(default)]
    pub(super) servers: String,
}

impl OwnData {
    /// That of another node; `None` if it is no node of this project.
    pub(super) fn of(node: &Node) -> Option<Self> {
        serde_json::from_slice(&node.data).ok()
    }

    /// As JSON.
    pub(super) fn text(&self) -> String {
        // Texts and a number: nothing in it can fail to be written.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A hash of a list of servers, in their order. One server is one place for all channels, by whatever name.
pub(super) fn hash_of_servers(servers: &[Server]) -> String {
    if let [_] = servers {
        return "one".to_owned();
    }
    let addresses = |all: &[Address]| {
        let mut all: Vec<_> = all.iter().map(text_of).collect();
        all.sort();
        all.join(",")
    };
    let place = |server: &Server| match server {
        Server::Single { address, access } => format!("{}/{}", text_of(address), access.db),
        Server::Sentinel { sentinels, master, access, .. } => {
            format!("{master}@{}/{}", addresses(sentinels), access.db)
        }
        Server::Cluster { seeds, .. } => format!("cluster@{}", addresses(seeds)),
    };
    let all: Vec<_> = servers.iter().map(place).collect();
    format!("{:016x}", fnv1a64(all.join(" ").as_bytes()))
}

fn text_of(address: &Address) -> String {
    match address {
        Address::Tcp(host, port) => format!("{host}:{port}"),
        Address::Unix(path) => path.clone(),
    }
}

/// Why a node can't be mixed with this one, or only in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Misfit {
    #[error(
        "its list of servers differs: channels are looked for at different servers, so publications, \
         histories and presence are split"
    )]
    OtherServers,
    #[error(
        "its version names channels of a Redis Cluster differently: live messages are lost between it and \
         newer nodes; it needs at least 6.6.0"
    )]
    ClusterNames,
    #[error(
        "its version drops publications of channels with delta compression; it needs at least 5.4.0"
    )]
    NoDeltas,
}

/// What is wrong with a node beside this one, with this hash of servers, on a Redis Cluster or not.
pub(super) fn misfits(node: &Node, servers: &str, is_redis_cluster: bool) -> Vec<Misfit> {
    if let Some(own) = OwnData::of(node) {
        let differs = !own.servers.is_empty() && own.servers != servers;
        return differs.then_some(Misfit::OtherServers).into_iter().collect();
    }
    let Some(version) = version_of(&node.version) else { return Vec::new() };
    let cluster_names = is_redis_cluster && version < [6, 6, 0];
    let no_deltas = version < [5, 4, 0];
    let misfits = [(cluster_names, Misfit::ClusterNames), (no_deltas, Misfit::NoDeltas)];
    misfits.into_iter().filter(|(is, _)| *is).map(|(_, misfit)| misfit).collect()
}

/// The numbers of a version such as `6.5.2 OSS`. `None` for others, such as `0.0.0` of a build without one.
fn version_of(text: &str) -> Option<[u32; 3]> {
    let numbers = text.trim_start_matches('v').split([' ', '-', '+']).next()?;
    let mut numbers = numbers.split('.').map(str::parse);
    let version = [numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?];
    (version != [0; 3]).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::servers::Access;

    fn single(host: &str, db: i64) -> Server {
        let access = Access { db, ..Access::default() };
        Server::Single { address: Address::Tcp(host.into(), 6379), access }
    }

    fn node(version: &str, data: &str) -> Node {
        Node { version: version.into(), data: data.into(), ..Node::default() }
    }

    #[test]
    fn lists_of_servers_are_compared_in_their_order() {
        let of = |servers: &[Server]| hash_of_servers(servers);
        let (a, b) = (single("a", 0), single("b", 0));
        assert_eq!(of(std::slice::from_ref(&a)), of(std::slice::from_ref(&b)));
        let both = of(&[a.clone(), b.clone()]);
        assert_eq!(both, of(&[a.clone(), b.clone()]));
        for other in [&[b.clone(), a.clone()][..], &[a.clone(), single("b", 1)], &[a, b.clone(), b]]
        {
            assert_ne!(both, of(other));
        }
        let sentinel = |names: [&str; 2]| Server::Sentinel {
            sentinels: names.map(|name| Address::Tcp(name.into(), 1)).to_vec(),
            master: "m".into(),
            sentinel_access: Access::default(),
            access: Access::default(),
        };
        let (one, two) = (sentinel(["x", "y"]), sentinel(["y", "x"]));
        assert_eq!(of(&[one.clone(), single("a", 0)]), of(&[two, single("a", 0)]));
        assert_ne!(of(&[one.clone(), one]), both);
    }

    #[test]
    fn nodes_that_do_not_fit_are_found() {
        let own = OwnData { roost: "1".into(), bytes_per_connection: 1, servers: "x".into() };
        let of = |node: &Node| misfits(node, "x", true);
        assert_eq!(of(&node("0.1.0 roost", &own.text())), []);
        let other = OwnData { servers: "y".into(), ..own };
        assert_eq!(of(&node("0.1.0 roost", &other.text())), [Misfit::OtherServers]);
        assert_eq!(of(&node("0.1.0 roost", r#"{"roost":"1"}"#)), []);
        assert_eq!(of(&node("6.5.2 OSS", "")), [Misfit::ClusterNames]);
        assert_eq!(of(&node("v5.3.9", "x")), [Misfit::ClusterNames, Misfit::NoDeltas]);
        for fits in ["6.6.0 OSS", "6.9.1 PRO", "7.0.0-rc1", "0.0.0 OSS", "dev", ""] {
            assert_eq!(of(&node(fits, "")), [], "{fits}");
        }
        assert_eq!(misfits(&node("6.5.2 OSS", ""), "x", false), []);
    }
}
