//! TLS between a shard and its driver: the shard reads and writes plain text, the sockets carry records.
//!
//! ```text
//!   Net <--plain text-- Secured<D> <--records-- D: epoll, io_uring, simulation
//!                          | receiving.rs   PROXY header, handshake, records
//!                          | shaking.rs     handshakes, from their first bytes to the keys
//!                          | waiting.rs     handshakes that wait for a turn with a step to spare
//!                          | sending.rs     frames of a turn in one batch; tails; close_notify
//!                          '-- conns.rs     what is kept for a connection, by its slot
//! ```
//!
//! [`Secured`] is a [`Driver`] itself, so nothing above it knows of TLS, and without TLS each call passes
//! straight through. Idle connections keep a key of 4 bytes in a table by slot, and their slot of the
//! [`Pool`](crate::proto::tls::Pool).
//!
//! Frames that are sealed are gone for the shard, also if the socket took only a part of them: the rest is
//! the *tail*, which goes first, unchanged. But the last byte of the last sealed frame is *withheld* from the
//! shard's count until the tail has gone. So that frame is one that has begun to go, which no slow policy
//! touches, the connection waits for its socket like any other, and its FIN comes behind the tail.

mod conns;
mod image;
mod receiving;
mod sending;
mod shaking;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod waiting;

use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;
use std::time::Duration;

use self::conns::Tls;
use crate::base::address::Peer;
use crate::base::id::{ConnKey, ShardId};
use crate::base::time::{Millis, UnixSeconds};
use crate::io::{Accepted, Completion, Driver, Piece, Received, Sent, Write};
use crate::shard::node_state::NodeState;

/// A driver whose connections speak TLS, if the node's public listeners do.
pub struct Secured<D: Driver> {
    inner: D,
    /// `None`: all connections are plain.
    tls: Option<Box<Tls>>,
}

impl<D: Driver> Secured<D> {
    /// The driver of a shard of this node.
    pub fn new(inner: D, node: &Arc<NodeState>, shard: ShardId) -> Self {
        let tls = node.tls.is_some().then(|| Box::new(Tls::new(Arc::clone(node), shard)));
        Self { inner, tls }
    }
}

/// Bytes that were read.
pub enum Lease<L> {
    /// A part of what the driver has read.
    Lent {
        /// What the driver has read.
        lease: L,
        /// The plain text in it.
        data: Range<usize>,
    },
    /// A record that came in pieces, and what came behind it.
    Joined {
        /// The buffer.
        buffer: Vec<u8>,
        /// The plain text in it.
        data: Range<usize>,
    },
}

impl<L: DerefMut<Target = [u8]>> Lease<L> {
    fn all(lease: L) -> Self {
        let data = 0..lease.len();
        Self::Lent { lease, data }
    }
}

impl<L: DerefMut<Target = [u8]>> Deref for Lease<L> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Lent { lease, data } => &lease[data.clone()],
            Self::Joined { buffer, data } => &buffer[data.clone()],
        }
    }
}

impl<L: DerefMut<Target = [u8]>> DerefMut for Lease<L> {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Lent { lease, data } => &mut lease[data.clone()],
            Self::Joined { buffer, data } => &mut buffer[data.clone()],
        }
    }
}

/// What a plain connection has read.
fn plain<L: DerefMut<Target = [u8]>>(received: Received<L>) -> Received<Lease<L>> {
    match received {
        Received::Bytes { lease, short } => Received::Bytes { lease: Lease::all(lease), short },
        Received::Blocked => Received::Blocked,
        Received::Taken => Received::Taken,
        Received::Ended => Received::Ended,
        Received::Failed => Received::Failed,
        Received::Refused => Received::Refused,
    }
}

impl<D: Driver> Driver for Secured<D> {
    type Socket = D::Socket;
    type Lease = Lease<D::Lease>;

    fn now(&self) -> Millis {
        self.inner.now()
    }

    fn worked_us(&self) -> Option<u32> {
        self.inner.worked_us()
    }

    fn unix(&self) -> UnixSeconds {
        self.inner.unix()
    }

    fn wait(&mut self, until: Option<Millis>, completions: &mut Vec<Completion>) {
        let Some(tls) = &mut self.tls else { return self.inner.wait(until, completions) };
        let until = if tls.has_work() { Some(self.inner.now()) } else { until };
        let from = completions.len();
        self.inner.wait(until, completions);
        tls.begin_turn(completions, from);
    }

    fn spin_for(&mut self, time: Duration) {
        self.inner.spin_for(time);
    }

    fn accept(&mut self) -> Accepted<D::Socket> {
        self.inner.accept()
    }

    fn take_passed(&mut self) -> Option<D::Socket> {
        self.inner.take_passed()
    }

    fn pass(&mut self, to: ShardId, socket: D::Socket) -> Result<(), D::Socket> {
        // Only new connections are passed, which have no state yet.
        self.inner.pass(to, socket)
    }

    fn peer(&self, socket: &D::Socket) -> Option<Peer> {
        self.inner.peer(socket)
    }

    fn watch(&mut self, key: ConnKey, socket: &D::Socket) -> std::io::Result<()> {
        self.inner.watch(key, socket)
    }

    fn adopt(&mut self, key: ConnKey, socket: &D::Socket) -> std::io::Result<()> {
        self.inner.adopt(key, socket)
    }

    fn forget(&mut self, key: ConnKey, socket: Option<D::Socket>) {
        if let Some(tls) = &mut self.tls {
            tls.forget(key);
        }
        self.inner.forget(key, socket);
    }

    fn drain_adopted(&mut self) {
        self.inner.drain_adopted();
    }

    fn share(&mut self, lists_closed: bool) {
        self.inner.share(lists_closed);
    }

    fn take_closed(&mut self) -> Vec<ConnKey> {
        self.inner.take_closed()
    }

    fn end_sends(&mut self, completions: &mut Vec<Completion>) {
        let from = completions.len();
        self.inner.end_sends(completions);
        if let Some(tls) = &mut self.tls {
            tls.take_completions(completions, from);
        }
    }

    fn take_ahead(&mut self) -> Option<(ConnKey, Received<Self::Lease>)> {
        match &mut self.tls {
            None => self.inner.take_ahead().map(|(key, received)| (key, plain(received))),
            Some(tls) => tls.take_ahead(&mut self.inner),
        }
    }

    fn rename(&mut self, old: ConnKey, new: ConnKey, socket: &D::Socket) -> std::io::Result<()> {
        self.inner.rename(old, new, socket)?;
        if let Some(tls) = &mut self.tls {
            tls.rename(old, new);
        }
        Ok(())
    }

    fn fetch_max(&self) -> usize {
        self.inner.fetch_max()
    }

    fn fetch<'a>(&mut self, next: impl Iterator<Item = (ConnKey, &'a D::Socket)>)
    where
        D::Socket: 'a,
    {
        self.inner.fetch(next);
    }

    fn recv(
        &mut self,
        key: ConnKey,
        socket: &D::Socket,
        bytes_max: usize,
    ) -> Received<Self::Lease> {
        match &mut self.tls {
            None => plain(self.inner.recv(key, socket, bytes_max)),
            Some(tls) => tls.recv(&mut self.inner, key, socket, bytes_max),
        }
    }

    fn give_back(&mut self, lease: Self::Lease) {
        if let Lease::Lent { lease, .. } = lease {
            self.inner.give_back(lease);
        }
    }

    fn send<'f, P: Piece + ?Sized + 'f>(
        &mut self,
        key: ConnKey,
        socket: &D::Socket,
        frames: impl ExactSizeIterator<Item = &'f P>,
        skip: usize,
    ) -> Sent {
        match &mut self.tls {
            None => self.inner.send(key, socket, frames, skip),
            Some(tls) => tls.send(&mut self.inner, key, socket, frames, skip),
        }
    }

    fn send_all<'a, P, F>(
        &mut self,
        writes: impl Iterator<Item = Write<'a, D::Socket, F>>,
        sent: &mut Vec<Sent>,
    ) where
        P: Piece + ?Sized + 'a,
        F: ExactSizeIterator<Item = &'a P>,
        D::Socket: 'a,
    {
        match &mut self.tls {
            None => self.inner.send_all(writes, sent),
            Some(tls) => tls.send_all(&mut self.inner, writes, sent),
        }
    }

    fn finish(&mut self, key: ConnKey, socket: &D::Socket) {
        match &mut self.tls {
            None => self.inner.finish(key, socket),
            Some(tls) => tls.finish(&mut self.inner, key, socket),
        }
    }

    fn close(&mut self, key: ConnKey, socket: D::Socket, reset: bool) {
        if let Some(tls) = &mut self.tls {
            tls.close(&mut self.inner, key, &socket, reset);
        }
        self.inner.close(key, socket, reset);
    }

    fn close_listener(&mut self) {
        self.inner.close_listener();
    }

    fn listeners(&self) -> Vec<&D::Socket> {
        self.inner.listeners()
    }

    fn take_accepted(&mut self) -> Option<D::Socket> {
        self.inner.take_accepted()
    }

    fn take_link(&mut self) -> Option<D::Socket> {
        self.inner.take_link()
    }

    fn has_work(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.has_work())
    }

    fn expect_proxy_header(&mut self, key: ConnKey, seen: &[u8]) {
        if let Some(tls) = &mut self.tls {
            tls.expect_proxy_header(key, seen);
        }
    }

    fn next_worn(&mut self) -> Option<ConnKey> {
        self.tls.as_mut().and_then(|tls| tls.worn.pop())
    }

    fn next_late(&mut self) -> Option<u32> {
        self.tls.as_mut().and_then(|tls| tls.late.pop())
    }

    fn client_name(&self, key: ConnKey) -> Option<&str> {
        self.tls.as_ref()?.names.get(&key.index).map(|name| &**name)
    }

    fn housekeeping(&mut self, is_awaited: &dyn Fn(u32) -> bool) {
        if let Some(tls) = &mut self.tls {
            tls.housekeeping(self.inner.now(), is_awaited);
        }
    }

    fn has_spare(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.has_spare())
    }

    fn set_gauges(&self) {
        if let Some(tls) = &self.tls {
            tls.set_gauges();
        }
    }

    fn left(&self) -> Vec<(&'static str, usize)> {
        self.tls.as_ref().map_or_else(Vec::new, |tls| tls.left())
    }

    fn unpackable(&self) -> Vec<ConnKey> {
        self.tls.as_ref().map_or_else(Vec::new, |tls| tls.handshakes())
    }

    fn own_sends(&self) -> usize {
        self.tls.as_ref().map_or(0, |tls| tls.own_sends())
    }

    fn pack(&mut self, key: ConnKey) -> Option<Vec<u8>> {
        self.tls.as_mut()?.pack(key)
    }

    fn unpack(&mut self, key: ConnKey, packed: &[u8]) -> bool {
        self.tls.as_mut().is_some_and(|tls| tls.unpack(key, packed))
    }
}
