//! The address of a connection's peer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::image::{Broken, Durable, ImageReader, ImageWriter};

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

impl Durable for Peer {
    fn write(&self, out: &mut ImageWriter) {
        match self {
            Self::Ip(IpAddr::V4(address)) => out.bytes(&address.octets()),
            Self::Ip(IpAddr::V6(address)) => out.bytes(&address.octets()),
            Self::Unix => out.bytes(&[]),
        }
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        let bytes = from.bytes()?;
        if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
            return Ok(Self::of(Ipv4Addr::from(octets).into()));
        }
        match <[u8; 16]>::try_from(bytes) {
            Ok(octets) => Ok(Self::of(Ipv6Addr::from(octets).into())),
            Err(_) if bytes.is_empty() => Ok(Self::Unix),
            Err(_) => Err(Broken::Value("an address")),
        }
    }
}

/// The network that counts as one client: an IPv4 address, or the first 64 bits of an IPv6 address, since
/// each host has all addresses of such a network.
pub fn network(address: IpAddr) -> IpAddr {
    const HOST_BITS: u32 = 64;
    match address.to_canonical() {
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() >> HOST_BITS << HOST_BITS).into()
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_an_ipv4_address_or_64_bits_of_an_ipv6_address() {
        for (address, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:0:1:ffff::2", "2001:db8:0:1::"),
        ] {
            let parsed = |text: &str| text.parse::<IpAddr>().unwrap();
            assert_eq!(network(parsed(address)), parsed(expected), "{address}");
        }
    }
}
