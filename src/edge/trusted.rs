//! Which peers are proxies whose word about their clients counts: `roost.trusted_proxies`.

use std::net::IpAddr;
use std::str::FromStr;

use crate::base::address::Peer;

/// The peers of `roost.trusted_proxies`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedPeers {
    networks: Vec<Network>,
    unix: bool,
}

/// An entry that is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}: expected an IP address, a network such as \"10.0.0.0/8\", or \"unix\"")]
pub struct NetworkFault(pub String);

impl TrustedPeers {
    /// From a list of addresses, networks and the word `unix`.
    ///
    /// # Errors
    /// The first entry that is none of them.
    pub fn new(entries: &[String]) -> Result<Self, NetworkFault> {
        let mut trusted = Self::default();
        for entry in entries {
            match entry.as_str() {
                "unix" => trusted.unix = true,
                text => {
                    let network = text.parse().map_err(|()| NetworkFault(entry.clone()))?;
                    trusted.networks.push(network);
                }
            }
        }
        Ok(trusted)
    }

    /// Whether a peer is one of them.
    pub fn trusts(&self, peer: Peer) -> bool {
        match peer {
            Peer::Ip(address) => self.networks.iter().any(|network| network.contains(address)),
            Peer::Unix => self.unix,
        }
    }

    /// The client of a request that `peer` sent, from the hops that it names, the nearest first: the first
    /// that isn't trusted, or the last of all. Where a trusted peer names nobody that can be read, the
    /// client stays `peer`.
    pub fn client(&self, peer: Peer, hops: impl IntoIterator<Item = Option<IpAddr>>) -> Peer {
        let mut client = peer;
        for hop in hops {
            if !self.trusts(client) {
                break;
            }
            match hop {
                Some(address) => client = Peer::of(address),
                None => return peer,
            }
        }
        client
    }
}

/// The addresses that share their first bits with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    /// Its bits, those of IPv4 first and the rest 0.
    bits: u128,
    mask: u128,
    is_ipv6: bool,
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        self.is_ipv6 == address.is_ipv6() && bits(address) & self.mask == self.bits
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl FromStr for Network {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u32>().map_err(drop)?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(drop)?;
        let width = if address.is_ipv6() { 128 } else { 32 };
        let prefix = prefix.unwrap_or(width);
        if prefix > width {
            return Err(());
        }
        let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
        Ok(Self { bits: bits(address) & mask, mask, is_ipv6: address.is_ipv6() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusted(entries: &[&str]) -> TrustedPeers {
        let entries: Vec<String> = entries.iter().map(|entry| (*entry).to_owned()).collect();
        TrustedPeers::new(&entries).unwrap()
    }

    fn ip(text: &str) -> Peer {
        Peer::of(text.parse().unwrap())
    }

    #[test]
    fn networks() {
        let list = trusted(&["10.1.0.0/16", "192.0.2.7", "2001:db8::/32", "::1"]);
        for address in ["10.1.0.0", "10.1.255.255", "192.0.2.7", "::ffff:10.1.2.3", "::1"] {
            assert!(list.trusts(ip(address)), "{address}");
        }
        assert!(list.trusts(ip("2001:db8:ffff::1")));
        for address in ["10.2.0.0", "10.0.255.255", "192.0.2.6", "2001:db9::", "::2", "::"] {
            assert!(!list.trusts(ip(address)), "{address}");
        }
        assert!(!list.trusts(Peer::Unix));
        assert!(trusted(&["unix"]).trusts(Peer::Unix));
        // Everything of a family, and nothing of the other.
        assert!(trusted(&["0.0.0.0/0"]).trusts(ip("255.1.2.3")));
        assert!(!trusted(&["0.0.0.0/0"]).trusts(ip("::1")));
        assert!(trusted(&["::/0"]).trusts(ip("ffff::")));
        for text in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "10.0.0.0/-1", "host"] {
            assert!(TrustedPeers::new(&[text.to_owned()]).is_err(), "{text}");
        }
    }

    #[test]
    fn the_client_is_the_nearest_hop_that_is_not_trusted() {
        let list = trusted(&["10.0.0.0/8", "unix"]);
        let client = |peer: Peer, hops: &[&str]| {
            let hops: Vec<_> = hops.iter().map(|hop| hop.parse().ok()).collect();
            list.client(peer, hops)
        };
        let proxy = ip("10.0.0.1");
        assert_eq!(client(proxy, &["203.0.113.7", "6.6.6.6"]), ip("203.0.113.7"));
        assert_eq!(client(proxy, &["10.0.0.2", "203.0.113.7", "6.6.6.6"]), ip("203.0.113.7"));
        assert_eq!(client(Peer::Unix, &["203.0.113.7"]), ip("203.0.113.7"));
        // A stranger's word doesn't count.
        assert_eq!(client(ip("9.9.9.9"), &["203.0.113.7"]), ip("9.9.9.9"));
        assert_eq!(client(proxy, &[]), proxy);
        assert_eq!(client(proxy, &["_hidden", "203.0.113.7"]), proxy);
        assert_eq!(client(proxy, &["10.0.0.2", "_hidden"]), proxy);
        assert_eq!(client(proxy, &["10.0.0.2", "10.0.0.3"]), ip("10.0.0.3"));
    }
}
