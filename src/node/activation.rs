//! Socket activation: listeners that a service manager has opened, such as those of `roost.socket`.
//!
//! | name (`FileDescriptorName=`) | port |
//! | --- | --- |
//! | `public`, the name of a socket unit, or none | the public one; replaces `http_server.address` and `port` |
//! | `internal` | the internal one; needs `http_server.internal_port`, and replaces it |
//!
//! The listeners of an address are dealt out to the shards. With as many as there are shards (the same
//! `ListenStream=` several times, and `ReusePort=yes`) each shard accepts its own connections. With fewer
//! some shards have none: a shard that has one passes each connection to the emptiest shard, as with a
//! Unix socket. A shard can't open more by itself, since SO_REUSEPORT joins sockets of one user only, and
//! these are the manager's.
//!
//! A node that ends stops accepting from them at once: what waits there is for the next process.

use std::io::{Error, Result};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use socket2::{SockRef, Type};

use super::StartFault;
use super::listen::Listener;
use crate::base::id::ShardId;
use crate::io::sockets::{self, Address, ListenOptions, UnixAddress};
use crate::sys;

/// The listeners that were passed, by port.
#[derive(Default)]
pub(super) struct Activated {
    /// Of the public port.
    pub(super) public: PassedListeners,
    /// Of the internal port.
    pub(super) internal: PassedListeners,
}

/// Listeners, each with its address, in the order in which they were passed.
#[derive(Default)]
pub(super) struct PassedListeners(Vec<(OwnedFd, Address)>);

impl Activated {
    /// Takes what was passed to this process.
    pub(super) fn take() -> std::result::Result<Self, StartFault> {
        let taken = sys::activation::take_passed().and_then(Self::new);
        taken.map_err(|source| StartFault::System { what: "LISTEN_FDS", source })
    }

    fn new(passed: Vec<(OwnedFd, String)>) -> Result<Self> {
        let mut activated = Self::default();
        for (listener, name) in passed {
            let port = match name.as_str() {
                // systemd's words for a descriptor without a name, and its default.
                "public" | "unknown" | "" => &mut activated.public,
                name if name.ends_with(".socket") => &mut activated.public,
                "internal" => &mut activated.internal,
                _ => return Err(wrong(&name, "is neither `public` nor `internal`")),
            };
            let address = address_of(&listener, &name)?;
            port.0.push((listener, address));
        }
        Ok(activated)
    }
}

/// The address that a descriptor listens at.
fn address_of(listener: &OwnedFd, name: &str) -> Result<Address> {
    let socket = SockRef::from(listener);
    if !socket.r#type().is_ok_and(|of| of == Type::STREAM) || !socket.is_listener().unwrap_or(false)
    {
        return Err(wrong(name, "is no listener of TCP or of a Unix socket (Accept=no)"));
    }
    let local = socket.local_addr()?;
    if let Some(address) = local.as_socket() {
        return Ok(Address::Ip(address));
    }
    // One without a file is in the abstract name space.
    let path = local.as_pathname().unwrap_or_else(|| std::path::Path::new("@")).to_owned();
    // The manager has set the mode.
    Ok(Address::Unix(UnixAddress { path, mode: 0 }))
}

fn wrong(name: &str, why: &str) -> Error {
    Error::other(format!("the passed descriptor {name:?} {why}"))
}

impl PassedListeners {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each address once.
    pub(super) fn addresses(&self) -> Vec<Address> {
        let mut addresses = Vec::new();
        for (_, address) in &self.0 {
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        addresses
    }

    /// Whether each shard has a listener of each address.
    pub(super) fn suffice(&self, shards: usize) -> bool {
        let of = |address| self.0.iter().filter(|(_, other)| other == address).count();
        self.addresses().iter().all(|address| of(address) >= shards)
    }

    /// Gives them the options that connections inherit.
    pub(super) fn prepare(&self, options: &ListenOptions) -> Result<()> {
        self.0.iter().try_for_each(|(listener, _)| sockets::adopt(listener, options))
    }

    /// A shard's copies of its listeners, in the table of the calling thread.
    pub(super) fn of_shard(&self, shard: ShardId, shards: usize) -> Result<Vec<OwnedFd>> {
        let mut copies = Vec::new();
        for address in self.addresses() {
            let same = self.0.iter().filter(|(_, other)| *other == address);
            let own = same.enumerate().filter(|(at, _)| at % shards == shard.index());
            for (_, (listener, _)) in own {
                copies.push(listener.as_fd().try_clone_to_owned()?);
            }
        }
        Ok(copies)
    }

    /// Their numbers, which are the same in each table that parts from the process's.
    pub(super) fn numbers(&self) -> Vec<RawFd> {
        self.0.iter().map(|(listener, _)| listener.as_raw_fd()).collect()
    }

    /// For the control thread.
    pub(super) fn into_listeners(self) -> Vec<Listener> {
        let listener = |(listener, address)| match address {
            Address::Ip(_) => Listener::Tcp(OwnedFd::into(listener)),
            Address::Unix(_) => Listener::Unix(OwnedFd::into(listener)),
        };
        self.0.into_iter().map(listener).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    fn listener() -> (OwnedFd, Address) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Ip(listener.local_addr().unwrap());
        (listener.into(), address)
    }

    #[test]
    fn names_choose_the_port() {
        let (names, all): (Vec<_>, Vec<_>) = ["public", "roost.socket", "unknown", "internal"]
            .map(|name| (name, listener()))
            .into_iter()
            .unzip();
        let addresses: Vec<_> = all.iter().map(|(_, address)| address.clone()).collect();
        let passed = all.into_iter().map(|(fd, _)| fd).zip(names.into_iter().map(String::from));
        let activated = Activated::new(passed.collect()).unwrap();
        assert_eq!(activated.public.addresses(), addresses[..3]);
        assert_eq!(activated.internal.addresses(), addresses[3..]);
        assert_eq!(activated.internal.into_listeners().len(), 1);
        let fault = Activated::new(vec![(listener().0, "metrics".into())]).err().unwrap();
        assert!(fault.to_string().contains("neither"), "{fault}");
    }

    #[test]
    fn a_descriptor_that_does_not_listen_is_a_fault() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let fault = Activated::new(vec![(socket.into(), "public".into())]).err().unwrap();
        assert!(fault.to_string().contains("no listener"), "{fault}");
    }

    #[test]
    fn listeners_are_dealt_out_to_the_shards() {
        let (first, address) = listener();
        let mut passed = PassedListeners(vec![(first, address.clone())]);
        let of = |passed: &PassedListeners, shards: u8| -> Vec<usize> {
            let of = |at| passed.of_shard(ShardId(at), shards.into()).unwrap().len();
            (0..shards).map(of).collect()
        };
        assert!(passed.suffice(1) && !passed.suffice(2));
        assert_eq!(of(&passed, 2), [1, 0]);
        let copy = passed.0[0].0.try_clone().unwrap();
        passed.0.push((copy, address));
        assert!(passed.suffice(2) && !passed.suffice(3));
        assert_eq!((of(&passed, 2), of(&passed, 1)), (vec![1, 1], vec![2]));
        // One address with enough, and another without.
        let other = listener();
        passed.0.push(other);
        assert!(!passed.suffice(2));
        assert_eq!(of(&passed, 2), [2, 1]);
        assert_eq!((passed.addresses().len(), passed.numbers().len()), (2, 3));
    }
}
