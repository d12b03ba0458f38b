//! Drivers: what moves bytes and wakes shards, behind one contract.
//!
//! A shard is generic over its [`Driver`] and doesn't know which one runs it: [`epoll`] (mio) or
//! [`uring`] (io_uring) in production, [`sim`] (a simulated network and clock with a seed) in tests. The contract is shaped
//! for completions, so that a driver whose operations end later fits behind it too:
//!
//! - `recv` lends a buffer and the shard gives it back; who owns the buffer is the driver's affair.
//! - What a turn sends is handed over in batches, and the connections that it will read next are
//!   named beforehand, so that a driver may do many of them in one system call.
//! - A send may be answered by [`Sent::Pending`]: the frames stay in the connection's outbox,
//!   unchanged, until a [`Completion::Sent`] with the same key arrives, and the slot isn't reused
//!   before.
//! - waking a shard and passing a socket to another one belong to the contract, since both are
//!   different in a simulation.
//!
//! The shard owns each connection's socket; the driver keeps nothing for an idle connection.

mod ahead;
mod clock;
pub mod descriptors;
pub mod epoll;
pub mod sim;
pub mod sockets;
mod timer;
pub mod uring;

#[cfg(test)]
mod contract;

use std::ops::DerefMut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::base::address::Peer;
use crate::base::frame::SharedFrame;
use crate::base::id::{ConnKey, ShardId};
use crate::base::time::{Millis, UnixSeconds};

/// The reports of a driver after a wait. Stale keys are normal: the shard looks each one up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// Bytes, or the end, can be read. `ended`: the peer has sent its FIN or an error is pending,
    /// so reading has to go on until it says so (no further edge will come).
    Readable {
        /// The connection.
        key: ConnKey,
        /// The stream has ended behind what can be read.
        ended: bool,
    },
    /// There is room to write again after [`Sent::Blocked`].
    Writable {
        /// The connection.
        key: ConnKey,
    },
    /// A send that was [`Sent::Pending`] has ended.
    Sent {
        /// The connection.
        key: ConnKey,
        /// Bytes written, or the connection is broken.
        bytes: Option<u32>,
    },
    /// The listener has connections to accept.
    Acceptable,
    /// The shard was woken: look into the mailbox.
    Woken,
    /// Another shard has passed sockets.
    Passed,
}

/// The outcome of an accept.
pub enum Accepted<S> {
    /// A new connection.
    Socket(S),
    /// Nothing waits.
    Blocked,
    /// This one failed (the peer is gone); there may be more.
    Failed,
    /// No descriptor is free in this table.
    Full,
}

/// The outcome of a read.
pub enum Received<L> {
    /// Bytes, lent until [`Driver::give_back`]. `short`: fewer came than were asked for, so that the
    /// socket is drained unless the stream has ended behind them.
    Bytes {
        /// The bytes.
        lease: L,
        /// The socket had no more at that moment.
        short: bool,
    },
    /// Nothing to read now.
    Blocked,
    /// The driver took the bytes for itself, and the socket had no more at that moment: it is drained unless the
    /// stream has ended behind it.
    Taken,
    /// The peer has closed its side.
    Ended,
    /// The connection is broken.
    Failed,
    /// The driver doesn't accept the input of the peer, and has answered it as far as there is an answer. The
    /// connection is to be ended: its FIN goes out, and what still comes is thrown away.
    Refused,
}

/// The outcome of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// So many bytes went out; fewer than asked means that the socket is full and a
    /// [`Completion::Writable`] will follow.
    Bytes(usize),
    /// Nothing went out; a [`Completion::Writable`] will follow.
    Blocked,
    /// A [`Completion::Sent`] will follow.
    Pending,
    /// The connection is broken.
    Failed,
}

/// Bytes that a driver sends: a frame that many connections share, or a part of a buffer.
pub trait Piece {
    /// The bytes.
    fn bytes(&self) -> &[u8];
}

impl Piece for SharedFrame {
    fn bytes(&self) -> &[u8] {
        SharedFrame::bytes(self)
    }
}

impl Piece for [u8] {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// The frames to write to one connection.
pub struct Write<'a, S, F> {
    /// The connection.
    pub key: ConnKey,
    /// Its socket.
    pub socket: &'a S,
    /// The frames, at least one.
    pub frames: F,
    /// Bytes of the first that have left already.
    pub skip: usize,
}

/// Moves bytes for one shard. See the module for the rules.
pub trait Driver {
    /// An open connection.
    type Socket;
    /// Bytes lent to the shard.
    type Lease: DerefMut<Target = [u8]>;

    /// Time, read at the end of each [`Driver::wait`].
    fn now(&self) -> Millis;
    /// How long the shard worked between the last two waits, microseconds: so long had to wait what
    /// became ready meanwhile. Nothing for a driver without a clock.
    fn worked_us(&self) -> Option<u32> {
        None
    }
    /// The same moment by the wall clock, for tokens.
    fn unix(&self) -> UnixSeconds;
    /// Waits for something to happen, at most until `until` (`None`: as long as it takes), and
    /// appends what happened to `completions`.
    fn wait(&mut self, until: Option<Millis>, completions: &mut Vec<Completion>);
    /// How long each wait polls before it sleeps: processor time for the microseconds of a wake-up. Nothing
    /// for a driver that doesn't sleep. Each driver says so itself: one around another has to pass it on.
    fn spin_for(&mut self, time: Duration);
    /// Takes one waiting connection from the listener.
    fn accept(&mut self) -> Accepted<Self::Socket>;
    /// Takes one connection that another shard has passed.
    fn take_passed(&mut self) -> Option<Self::Socket>;
    /// Passes a new connection to another shard; gives it back when that shard's queue is full.
    fn pass(&mut self, to: ShardId, socket: Self::Socket) -> Result<(), Self::Socket>;
    /// The other end of an open connection, read from the kernel. `None` once the connection was reset.
    fn peer(&self, socket: &Self::Socket) -> Option<Peer>;
    /// Begins to report completions for `socket` under `key`.
    fn watch(&mut self, key: ConnKey, socket: &Self::Socket) -> std::io::Result<()>;
    /// The same for a socket that a driver before this one has watched under this key. What that one has
    /// reported may be reported again.
    ///
    /// # Errors
    /// It can't be watched.
    fn adopt(&mut self, key: ConnKey, socket: &Self::Socket) -> std::io::Result<()> {
        self.watch(key, socket)
    }
    /// Forgets a connection, and closes this process's copy of its socket: it goes on in another process, or came
    /// from one that has closed it. Its peer notices nothing.
    fn forget(&mut self, key: ConnKey, socket: Option<Self::Socket>) {
        let _ = (key, socket);
    }
    /// Takes what the kernel has reported of adopted sockets so far. That they are writable is of no use, since each
    /// with something to send is tried; all else comes with the next [`Driver::wait`].
    fn drain_adopted(&mut self) {}
    /// From here on another process may have copies of the sockets: [`Driver::close`] ends the connection itself,
    /// which the last copy would do otherwise. `lists_closed`: keys that end are listed for
    /// [`Driver::take_closed`].
    fn share(&mut self, lists_closed: bool) {
        let _ = lists_closed;
    }
    /// Takes the keys that have ended, by a close or by another key, while they are listed.
    fn take_closed(&mut self) -> Vec<ConnKey> {
        Vec::new()
    }
    /// Ends each send that is [`Sent::Pending`]: its completion is appended, with the bytes that have left.
    fn end_sends(&mut self, completions: &mut Vec<Completion>) {
        let _ = completions;
    }
    /// Takes out a read that [`Driver::fetch`] has made and nobody has requested.
    fn take_ahead(&mut self) -> Option<(ConnKey, Received<Self::Lease>)> {
        None
    }
    /// From here on completions of a connection come under another key: its session has ended, and
    /// what is kept for the old key must not find the next one. What was read ahead, and what a send
    /// that is [`Sent::Pending`] comes to, goes over to the new key.
    ///
    /// # Errors
    /// The connection can't be watched under that key: it is to be closed, and the old key counts.
    fn rename(&mut self, old: ConnKey, new: ConnKey, socket: &Self::Socket) -> std::io::Result<()>;
    /// Connections that [`Driver::fetch`] can take at once, always as many; 0 for a driver that doesn't read ahead.
    fn fetch_max(&self) -> usize {
        0
    }
    /// These are read next. A driver may read from them now, in one system call, what
    /// [`Driver::recv`] then gives; bytes that are not requested stay until they are, or until the close, and
    /// behind the next wait it doesn't say any more that the socket is drained.
    fn fetch<'a>(&mut self, next: impl Iterator<Item = (ConnKey, &'a Self::Socket)>)
    where
        Self::Socket: 'a,
    {
        let _ = next;
    }
    /// Reads once, at most `bytes_max` bytes and at most what a lease holds.
    fn recv(
        &mut self,
        key: ConnKey,
        socket: &Self::Socket,
        bytes_max: usize,
    ) -> Received<Self::Lease>;
    /// Takes a lent buffer back.
    fn give_back(&mut self, lease: Self::Lease);
    /// Writes `frames` without the first `skip` bytes, as much as the socket takes in one call.
    fn send<'f, P: Piece + ?Sized + 'f>(
        &mut self,
        key: ConnKey,
        socket: &Self::Socket,
        frames: impl ExactSizeIterator<Item = &'f P>,
        skip: usize,
    ) -> Sent;
    /// The same for many connections, each at most once: appends to `sent` what came of each, in
    /// order.
    fn send_all<'a, P, F>(
        &mut self,
        writes: impl Iterator<Item = Write<'a, Self::Socket, F>>,
        sent: &mut Vec<Sent>,
    ) where
        P: Piece + ?Sized + 'a,
        F: ExactSizeIterator<Item = &'a P>,
        Self::Socket: 'a,
    {
        for Write { key, socket, frames, skip } in writes {
            sent.push(self.send(key, socket, frames, skip));
        }
    }
    /// Ends the sending side of a connection, and goes on reading: a FIN, and with TLS a `close_notify`
    /// (RFC 8446, 6.1) before it.
    fn finish(&mut self, key: ConnKey, socket: &Self::Socket);
    /// Closes a connection; no completion for `key` follows. `reset`: throw away what is unsent.
    fn close(&mut self, key: ConnKey, socket: Self::Socket, reset: bool);
    /// Closes the listener. What waits in its queue was accepted before.
    fn close_listener(&mut self);
    /// The listeners, for a process that goes on accepting from them.
    fn listeners(&self) -> Vec<&Self::Socket> {
        Vec::new()
    }
    /// Takes one connection that was accepted and not taken yet, and accepts no more until the next
    /// [`Driver::accept`].
    fn take_accepted(&mut self) -> Option<Self::Socket> {
        None
    }
    /// Takes the way to the shard of another process that was passed here ([`sockets::Switchboard::pass_link`]).
    fn take_link(&mut self) -> Option<Self::Socket> {
        None
    }

    /// Whether the driver has work of its own: the next wait returns at once.
    fn has_work(&self) -> bool {
        false
    }
    /// A PROXY header comes first on this connection, in plain text, also where TLS follows. `seen` has come of
    /// it.
    fn expect_proxy_header(&mut self, key: ConnKey, seen: &[u8]) {
        let _ = (key, seen);
    }
    /// Takes a connection whose keys will soon seal no more: it is to be closed with a reason for which its
    /// client connects again.
    fn next_worn(&mut self) -> Option<ConnKey> {
        None
    }
    /// Takes the slot of a connection that housekeeping has ended. It is to be read: that says so.
    fn next_late(&mut self) -> Option<u32> {
        None
    }
    /// The name in the certificate that the client of a connection has shown; empty where the certificate has
    /// none.
    fn client_name(&self, key: ConnKey) -> Option<&str> {
        let _ = key;
        None
    }
    /// Once a second: ends connections whose input is incomplete for too long, and gives memory back that a burst
    /// has left. `is_awaited`: whether all has been read of a connection, by its slot, and more would be.
    fn housekeeping(&mut self, is_awaited: &dyn Fn(u32) -> bool) {
        let _ = is_awaited;
    }
    /// Whether there is memory to give back although there are no connections.
    fn has_spare(&self) -> bool {
        false
    }
    /// Sets the gauges that are cheaper to read off than to keep.
    fn set_gauges(&self) {}
    /// Everything that has to be empty when all connections have gone, and how much is in it.
    fn left(&self) -> Vec<(&'static str, usize)> {
        Vec::new()
    }
    /// Connections whose state can't be packed, since a handshake is under way.
    fn unpackable(&self) -> Vec<ConnKey> {
        Vec::new()
    }
    /// Sends under way of which the connection doesn't know: it counts their bytes as sent. Each ends with
    /// [`Driver::end_sends`].
    fn own_sends(&self) -> usize {
        0
    }
    /// The state that the driver keeps for a connection, as bytes. Either these or the connection go on, never
    /// both: bytes that are not the state of the last moment must never be used.
    fn pack(&mut self, key: ConnKey) -> Option<Vec<u8>> {
        let _ = key;
        None
    }
    /// Takes over what [`Driver::pack`] has returned. False: the bytes are not such a state, or the driver
    /// keeps none.
    fn unpack(&mut self, key: ConnKey, packed: &[u8]) -> bool {
        let _ = (key, packed);
        false
    }
}

/// Wakes a shard that waits in [`Driver::wait`], from any thread.
pub trait Wake: Send + Sync {
    /// Makes the shard's wait return with [`Completion::Woken`].
    fn wake(&self);
}

/// A shard's alarm: coalesces many wake-ups into one.
///
/// The shard arms it before it looks into its mailbox for the last time and waits; a sender rings
/// after it has put its mail in. So either the shard sees the mail, or the sender sees it armed.
#[derive(Clone)]
pub struct Alarm {
    armed: Arc<AtomicBool>,
    wake: Arc<dyn Wake>,
}

impl Alarm {
    /// An alarm that rings `wake`.
    pub fn new(wake: Arc<dyn Wake>) -> Self {
        Self { armed: Arc::new(AtomicBool::new(false)), wake }
    }

    /// By the shard, before its last look into the mailbox.
    pub fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }

    /// By the shard, when it is awake.
    pub fn disarm(&self) {
        self.armed.store(false, Ordering::SeqCst);
    }

    /// By a sender, after it has sent: one system call for each time that the shard sleeps.
    pub fn ring(&self) {
        if self.armed.swap(false, Ordering::SeqCst) {
            self.wake.wake();
        }
    }
}
