//! Who a connection's client is.
//!
//! A connection that a client made itself costs nothing: its address is asked of the kernel when
//! somebody wants it. What the kernel doesn't know is remembered by slot.

use std::net::IpAddr;

use super::*;

/// What is known of clients' addresses beside the kernel.
#[derive(Default)]
pub(super) struct Addresses {
    /// Addresses that aren't those of the socket, by slot.
    remembered: BySlot<IpAddr>,
}

impl Addresses {
    /// A connection is gone.
    pub(super) fn forget(&mut self, index: u32) {
        if !self.remembered.is_empty() {
            self.remembered.remove(&index);
        }
    }
}

impl<D: Driver> Shard<D> {
    /// The address of a connection's client. `None`: it has none (a Unix socket), or the connection was
    /// reset or closed.
    pub(super) fn client_address(&self, index: u32) -> Option<IpAddr> {
        if let Some(address) = self.addresses.remembered.get(&index) {
            return Some(*address);
        }
        let socket = self.conns.get(index as usize)?.socket.as_ref()?;
        self.driver.peer(socket)?.ip()
    }
}
