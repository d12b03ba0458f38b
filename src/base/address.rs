//! The address of a connection's peer.

use std::net::IpAddr;

/// The other end of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A host. An IPv4 address is never in its IPv6 form.
    Ip(IpAddr),
    /// A process of this host, over a Unix socket: it has no address.
    Unix,
}

impl Peer {
    /// The peer of an address.
    pub fn of(address: IpAddr) -> Self {
        Self::Ip(address.to_canonical())
    }

    /// Its address, if it has one.
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Ip(address) => Some(address),
            Self::Unix => None,
        }
    }
}
