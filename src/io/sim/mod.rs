//! The simulated driver: a network and a clock made of one seed, under which whole shards run.
//!
//! ```text
//!  client --write--> [ in flight, late, in segments ] --> readable --recv--> shard
//!  client <--read--- readable <-- [ in flight, late ] <--- bounded buffer <--send-- shard
//! ```
//! A [`World`] holds both directions of every connection, the listeners, and the queues in which
//! shards pass sockets. Nothing happens by itself: whoever runs the simulation moves the clock
//! ([`World::advance_to`]), plays the clients, and lets a shard have its turn when
//! [`World::is_ready`] says that a wait of it would return. Readiness is edge-triggered with the
//! same promises as epoll, and no more: an event reports what is true when it is taken, one event may
//! stand for several edges, and events for connections that are gone do come.

mod ends;
mod world;

pub use self::ends::{ClientEnd, MakeEnd};
pub use self::world::{Event, Faults, LinkId, Seen, SharedWorld, Sizes, World};

use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::time::Duration;

use super::ahead::Ahead;
use super::{Accepted, Completion, Driver, Piece, Received, Sent};
use crate::base::address::Peer;
use crate::base::id::{ConnKey, ShardId};
use crate::base::time::{Millis, UnixSeconds};

/// The server's end of a connection. Closed when it is dropped, as a descriptor is.
pub struct Socket {
    at: u32,
    world: SharedWorld,
    /// It goes on living elsewhere: another shard has it.
    passed: bool,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.passed {
            self.world.borrow_mut().close(self.at, None, false);
        }
    }
}

/// Bytes that were read.
pub struct Lease(Vec<u8>);

impl Deref for Lease {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// The driver of one shard in a [`World`].
pub struct SimDriver {
    world: SharedWorld,
    shard: usize,
    now: Millis,
    unix: UnixSeconds,
    /// What its clock is ahead of the world's, milliseconds.
    clock: i64,
    /// The one read buffer is with the shard.
    lent: bool,
    /// Bytes read ahead.
    ahead: Ahead<Lease>,
}

impl SimDriver {
    /// The driver of `shard`.
    pub fn new(world: &SharedWorld, shard: ShardId) -> Self {
        Self::with_clock(world, shard, 0)
    }

    /// The same with a clock that is so many milliseconds ahead of the world's: that of a process which
    /// began at another moment.
    pub fn with_clock(world: &SharedWorld, shard: ShardId, clock: i64) -> Self {
        let now = Millis(world.borrow().now().0.saturating_add_signed(clock));
        let unix = world.borrow().unix();
        Self {
            world: Rc::clone(world),
            shard: shard.index(),
            now,
            unix,
            clock,
            lent: false,
            ahead: Ahead::new(),
        }
    }

    fn socket(&self, at: u32) -> Socket {
        Socket { at, world: Rc::clone(&self.world), passed: false }
    }
}

impl Driver for SimDriver {
    type Socket = Socket;
    type Lease = Lease;

    fn now(&self) -> Millis {
        self.now
    }

    fn unix(&self) -> UnixSeconds {
        self.unix
    }

    fn wait(&mut self, until: Option<Millis>, completions: &mut Vec<Completion>) {
        let mut world = self.world.borrow_mut();
        let until = until.map(|at| Millis(at.0.saturating_add_signed(-self.clock)));
        let ready = world.is_ready(ShardId(self.shard as u8), until);
        assert!(ready, "shard {} would sleep: who runs the world lets it wait", self.shard);
        world.wait(self.shard, completions);
        self.ahead.age();
        self.now = Millis(world.now().0.saturating_add_signed(self.clock));
        self.unix = world.unix();
    }

    fn spin_for(&mut self, _: Duration) {}

    fn accept(&mut self) -> Accepted<Socket> {
        let accepted = self.world.borrow_mut().accept(self.shard);
        match accepted {
            Accepted::Socket(at) => Accepted::Socket(self.socket(at)),
            Accepted::Blocked => Accepted::Blocked,
            Accepted::Failed => Accepted::Failed,
            Accepted::Full => Accepted::Full,
        }
    }

    fn take_passed(&mut self) -> Option<Socket> {
        let at = self.world.borrow_mut().take_passed(self.shard)?;
        Some(self.socket(at))
    }

    fn pass(&mut self, to: ShardId, mut socket: Socket) -> Result<(), Socket> {
        if !self.world.borrow_mut().pass(to.index(), socket.at) {
            return Err(socket);
        }
        socket.passed = true;
        Ok(())
    }

    fn peer(&self, socket: &Socket) -> Option<Peer> {
        self.world.borrow().peer(socket.at)
    }

    fn watch(&mut self, key: ConnKey, socket: &Socket) -> std::io::Result<()> {
        let watched = self.world.borrow_mut().watch(self.shard, key, socket.at);
        watched.then_some(()).ok_or_else(|| std::io::ErrorKind::OutOfMemory.into())
    }

    fn adopt(&mut self, key: ConnKey, socket: &Socket) -> std::io::Result<()> {
        self.world.borrow_mut().adopt(self.shard, key, socket.at);
        Ok(())
    }

    fn end_sends(&mut self, completions: &mut Vec<Completion>) {
        self.world.borrow_mut().end_sends(self.shard, completions);
    }

    fn take_ahead(&mut self) -> Option<(ConnKey, Received<Lease>)> {
        let taken = self.ahead.pop()?;
        self.lent |= matches!(taken.1, Received::Bytes { .. });
        Some(taken)
    }

    fn rename(&mut self, old: ConnKey, new: ConnKey, socket: &Socket) -> std::io::Result<()> {
        let renamed = self.world.borrow_mut().rename(self.shard, old, new, socket.at);
        if renamed {
            self.ahead.rename(old, new);
        }
        renamed.then_some(()).ok_or_else(|| std::io::ErrorKind::OutOfMemory.into())
    }

    fn fetch_max(&self) -> usize {
        self.world.borrow().fetch_max()
    }

    fn fetch<'a>(&mut self, next: impl Iterator<Item = (ConnKey, &'a Socket)>) {
        let mut world = self.world.borrow_mut();
        for (key, socket) in next {
            if !self.ahead.has(key) && world.reads_ahead() {
                assert_eq!(world.watched(socket.at), Some((self.shard, key)));
                self.ahead.push(key, world.recv(socket.at, usize::MAX));
            }
        }
    }

    fn recv(&mut self, key: ConnKey, socket: &Socket, bytes_max: usize) -> Received<Lease> {
        assert!(!self.lent, "the read buffer was not given back");
        assert!(bytes_max > 0, "a read of nothing looks like the end");
        if let Some(received) = self.ahead.take(key) {
            self.lent = matches!(received, Received::Bytes { .. });
            return received;
        }
        let mut world = self.world.borrow_mut();
        let watched = world.watched(socket.at);
        assert_eq!(watched, Some((self.shard, key)), "read under another key");
        let received = world.recv(socket.at, bytes_max);
        self.lent = matches!(received, Received::Bytes { .. });
        received
    }

    fn give_back(&mut self, _lease: Lease) {
        assert!(std::mem::take(&mut self.lent), "given back twice");
    }

    fn send<'f, P: Piece + ?Sized + 'f>(
        &mut self,
        _key: ConnKey,
        socket: &Socket,
        frames: impl ExactSizeIterator<Item = &'f P>,
        skip: usize,
    ) -> Sent {
        assert!(frames.len() > 0, "a write of nothing");
        self.world.borrow_mut().send(socket.at, frames, skip)
    }

    fn finish(&mut self, key: ConnKey, socket: &Socket) {
        let mut world = self.world.borrow_mut();
        let watched = world.watched(socket.at);
        assert!(watched.is_none_or(|(_, watched)| watched == key), "the key of another connection");
        world.finish(socket.at);
    }

    fn close(&mut self, key: ConnKey, socket: Socket, reset: bool) {
        self.ahead.take(key);
        // A connection that was never watched is closed under any key.
        let mut world = self.world.borrow_mut();
        let key = world.watched(socket.at).map(|_| key);
        world.close(socket.at, key, reset);
    }

    fn close_listener(&mut self) {
        self.world.borrow_mut().close_listener(self.shard);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::base::frame::SharedFrame;

    const SIZES: Sizes =
        Sizes { shards: 2, pipe_bytes: 10, read_buffer_bytes: 4, passing: 1, events: 8 };
    const KEY: ConnKey = ConnKey { index: 3, generation: NonZeroU32::MIN };

    /// A client's connection, accepted by shard 0.
    fn accepted() -> (SharedWorld, SimDriver, LinkId, Socket) {
        let world = World::new(1, SIZES, Faults::NONE);
        let mut driver = SimDriver::new(&world, ShardId(0));
        loop {
            let link = world.borrow_mut().connect().unwrap();
            if let Accepted::Socket(socket) = driver.accept() {
                assert_eq!(wait(&mut driver), [Completion::Acceptable]);
                return (world, driver, link, socket);
            }
        }
    }

    fn watched() -> (SharedWorld, SimDriver, LinkId, Socket) {
        let (world, mut driver, link, socket) = accepted();
        driver.watch(KEY, &socket).unwrap();
        (world, driver, link, socket)
    }

    /// The events of a wait, without those that epoll may add.
    fn wait(driver: &mut SimDriver) -> Vec<Completion> {
        let mut completions = Vec::new();
        let now = driver.world.borrow().now();
        driver.wait(Some(now), &mut completions);
        completions.retain(|c| !matches!(c, Completion::Writable { .. }));
        completions
    }

    fn recv(driver: &mut SimDriver, socket: &Socket) -> Option<(Vec<u8>, bool)> {
        match driver.recv(KEY, socket, 100) {
            Received::Bytes { lease, short } => {
                let bytes = lease.to_vec();
                driver.give_back(lease);
                Some((bytes, short))
            }
            _ => None,
        }
    }

    #[test]
    fn an_edge_comes_once_for_new_bytes() {
        let (world, mut driver, link, socket) = watched();
        assert_eq!(wait(&mut driver), []);
        world.borrow_mut().write(link, b"abcdef");
        assert_eq!(wait(&mut driver), [Completion::Readable { key: KEY, ended: false }]);
        assert_eq!(recv(&mut driver, &socket), Some((b"abcd".to_vec(), false)));
        // Two bytes are left, and no edge reports them.
        assert_eq!(wait(&mut driver), []);
        assert_eq!(recv(&mut driver, &socket), Some((b"ef".to_vec(), true)));
        // Data and FIN in one event.
        world.borrow_mut().write(link, b"g");
        world.borrow_mut().shut(link);
        assert_eq!(wait(&mut driver), [Completion::Readable { key: KEY, ended: true }]);
        assert_eq!(wait(&mut driver), []);
        assert_eq!(recv(&mut driver, &socket), Some((b"g".to_vec(), true)));
        assert!(matches!(driver.recv(KEY, &socket, 100), Received::Ended));
    }

    #[test]
    fn writability_is_reported_after_a_full_socket() {
        let (world, mut driver, link, socket) = watched();
        let frame = SharedFrame::new(b"0123456789abcdef");
        let mut send = |skip| driver.send(KEY, &socket, [&frame].into_iter(), skip);
        assert_eq!(send(0), Sent::Bytes(10));
        assert_eq!(send(10), Sent::Blocked);
        assert_eq!(world.borrow().look(link), Seen::Bytes(10));
        assert!(!world.borrow().is_ready(ShardId(0), None));
        assert_eq!(world.borrow_mut().read(link, 3), b"012");
        let mut completions = Vec::new();
        driver.wait(None, &mut completions);
        assert_eq!(completions, [Completion::Writable { key: KEY }]);
        assert_eq!(driver.send(KEY, &socket, [&frame].into_iter(), 10), Sent::Bytes(3));
    }

    #[test]
    fn closing_with_bytes_unread_resets() {
        let (world, mut driver, link, socket) = watched();
        driver.close(KEY, socket, false);
        assert_eq!(world.borrow().look(link), Seen::Ended);
        world.borrow_mut().write(link, b"too late");
        assert_eq!(world.borrow().look(link), Seen::Reset);
    }

    #[test]
    fn a_passed_socket_belongs_to_the_other_shard() {
        let (world, mut driver, link, socket) = accepted();
        assert!(driver.pass(ShardId(1), socket).is_ok());
        assert!(world.borrow().is_held(link));
        let mut other = SimDriver::new(&world, ShardId(1));
        let socket = other.take_passed().unwrap();
        assert!(other.take_passed().is_none());
        drop(socket);
        assert!(!world.borrow().is_held(link));
    }

    #[test]
    fn a_late_send_ends_with_a_completion() {
        let (world, mut driver, link, socket) = watched();
        let late = Faults { late_send_one_in: 1, delay_ms_max: 50, ..Faults::NONE };
        world.borrow_mut().set_faults(late);
        let frame = SharedFrame::new(b"0123456789abcdef");
        assert_eq!(driver.send(KEY, &socket, [&frame].into_iter(), 4), Sent::Pending);
        let at = world.borrow().next_arrival().unwrap();
        assert!(at > world.borrow().now());
        world.borrow_mut().advance_to(at);
        assert_eq!(wait(&mut driver), [Completion::Sent { key: KEY, bytes: Some(10) }]);
        world.borrow_mut().advance_to(at.after(50));
        assert_eq!(world.borrow_mut().read(link, 99), b"456789abcd");
    }
}
