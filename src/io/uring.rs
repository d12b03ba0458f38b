//! The driver for io_uring: what a turn reads and sends goes through the ring in batches, a system
//! call for a few hundred connections instead of one for each.
//!
//! ```text
//!  idle connections, mail, the ring itself --> epoll --> readiness
//!  connections to read next  --fetch-->     one submission --> small buffers, until recv asks
//!  what a turn has to send   --send_all-->  one submission --> answers, in order
//!  listeners                 --multishot accept--> connections, until accept asks
//! ```
//! Readiness is epoll's, through the driver beside this one: it costs an idle connection 208 bytes of
//! the kernel where a poll in the ring costs 256, and a receive that waits in the ring 864. All
//! sockets are non-blocking, so that every operation ends as it is submitted: nothing is in flight
//! between two calls, no buffer is held and no connection's slot has to wait for a cancellation. Only
//! accepting goes on by itself; it ends with [`Driver::close_listener`].

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::ahead::Ahead;
use super::epoll::{Epoll, Lease, SEND_PARTS_MAX};
use super::sockets::Switchboard;
use super::{Accepted, Completion, Driver, Piece, Received, Sent, Write};
use crate::base::address::Peer;
use crate::base::id::{ConnKey, ShardId};
use crate::base::time::{Millis, UnixSeconds};
use crate::sys::uring::Ring;

/// Connections read ahead at once, and buffers for them.
const FETCH_MAX: usize = 64;

/// Bytes of such a buffer: what is longer is read on into the large one.
const FETCH_BYTES: usize = 4096;

/// Why this machine has no io_uring for us, or nothing when it has.
///
/// # Errors
/// Text for the operator.
pub fn probe() -> Result<(), String> {
    let ring = Ring::new().map_err(|fault| match Errno::from_io_error(&fault) {
        Some(Errno::NOSYS) => "the kernel has no io_uring".to_owned(),
        Some(Errno::PERM) => {
            "io_uring is forbidden here, by a seccomp filter or kernel.io_uring_disabled".to_owned()
        }
        Some(Errno::INVAL) => "the kernel's io_uring is older than Linux 6.0".to_owned(),
        _ => format!("io_uring cannot be set up: {fault}"),
    })?;
    match ring.missing() {
        Ok(None) => Ok(()),
        Ok(Some(name)) => Err(format!("the kernel's io_uring lacks {name}")),
        Err(fault) => Err(format!("the features of io_uring cannot be read: {fault}")),
    }
}

/// io_uring for one shard.
pub struct Uring {
    /// Reports readiness, and does everything that is not done in batches.
    epoll: Epoll,
    ring: Ring,
    /// With whether the ring accepts from it.
    listeners: Vec<(OwnedFd, bool)>,
    /// Buffers that are free.
    buffers: Vec<Box<[u8]>>,
    /// Bytes read ahead.
    ahead: Ahead<Lease>,
    results: Vec<i32>,
}

impl Uring {
    /// The driver of `shard`. Call it in the shard's thread after the thread has its own table.
    /// `started` is the process's zero of time.
    pub fn new(
        shard: ShardId,
        switchboard: Arc<Switchboard>,
        listeners: Vec<OwnedFd>,
        started: Instant,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(shard, switchboard, Vec::new(), started)?;
        let ring = Ring::new()?;
        epoll.watch_acceptable(&ring.as_fd())?;
        Ok(Self {
            epoll,
            ring,
            listeners: listeners.into_iter().map(|listener| (listener, false)).collect(),
            buffers: (0..FETCH_MAX).map(|_| vec![0; FETCH_BYTES].into_boxed_slice()).collect(),
            ahead: Ahead::new(),
            results: Vec::new(),
        })
    }

    /// The outcome of accepting, if there is one.
    fn accepted(&mut self) -> Option<Accepted<OwnedFd>> {
        let accepted = self.ring.take_accepted()?;
        if !accepted.more
            && let Some((_, accepting)) = self.listeners.get_mut(accepted.listener as usize)
        {
            *accepting = false;
        }
        Some(match accepted.result {
            Ok(socket) => Accepted::Socket(socket),
            Err(fault) => match Errno::from_io_error(&fault) {
                Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => Accepted::Full,
                _ => Accepted::Failed,
            },
        })
    }
}

impl Driver for Uring {
    type Socket = OwnedFd;
    type Lease = Lease;

    fn now(&self) -> Millis {
        self.epoll.now()
    }

    fn worked_us(&self) -> Option<u32> {
        self.epoll.worked_us()
    }

    fn unix(&self) -> UnixSeconds {
        self.epoll.unix()
    }

    fn wait(&mut self, until: Option<Millis>, completions: &mut Vec<Completion>) {
        self.ahead.age();
        // Input that came while a batch ran made no edge.
        let accepted = self.ring.has_accepted();
        let until = if accepted { Some(self.now()) } else { until };
        self.epoll.wait(until, completions);
        if accepted {
            completions.push(Completion::Acceptable);
        }
    }

    fn spin_for(&mut self, time: Duration) {
        self.epoll.spin_for(time);
    }

    fn accept(&mut self) -> Accepted<OwnedFd> {
        if let Some(accepted) = self.accepted() {
            return accepted;
        }
        for (number, (listener, accepting)) in (0..).zip(&mut self.listeners) {
            if !std::mem::replace(accepting, true) {
                self.ring.accept(listener, number);
            }
        }
        self.ring.poll();
        self.accepted().unwrap_or(Accepted::Blocked)
    }

    fn take_passed(&mut self) -> Option<OwnedFd> {
        self.epoll.take_passed()
    }

    fn pass(&mut self, to: ShardId, socket: OwnedFd) -> Result<(), OwnedFd> {
        self.epoll.pass(to, socket)
    }

    fn peer(&self, socket: &OwnedFd) -> Option<Peer> {
        self.epoll.peer(socket)
    }

    fn watch(&mut self, key: ConnKey, socket: &OwnedFd) -> io::Result<()> {
        self.epoll.watch(key, socket)
    }

    fn forget(&mut self, key: ConnKey, socket: Option<OwnedFd>) {
        self.epoll.forget(key, socket);
    }

    fn drain_adopted(&mut self) {
        self.epoll.drain_adopted();
    }

    fn share(&mut self, lists_closed: bool) {
        self.epoll.share(lists_closed);
    }

    fn take_closed(&mut self) -> Vec<ConnKey> {
        self.epoll.take_closed()
    }

    fn rename(&mut self, old: ConnKey, new: ConnKey, socket: &OwnedFd) -> io::Result<()> {
        self.epoll.rename(old, new, socket)?;
        self.ahead.rename(old, new);
        Ok(())
    }

    fn fetch_max(&self) -> usize {
        FETCH_MAX
    }

    fn fetch<'a>(&mut self, next: impl Iterator<Item = (ConnKey, &'a OwnedFd)>) {
        let Self { ring, buffers, ahead, .. } = self;
        let first = ahead.len();
        let mut sockets = [None; FETCH_MAX];
        let mut count = 0;
        for (key, socket) in next {
            if ahead.has(key) {
                continue;
            }
            let Some(buffer) = buffers.pop() else { break };
            sockets[count] = Some(socket);
            count += 1;
            // Until the answer is there, all of the buffer is lent.
            let lease = Lease { len: buffer.len(), buffer };
            ahead.push(key, Received::Bytes { lease, short: true });
        }
        let mut batch = ring.batch();
        for (socket, entry) in sockets.iter().flatten().zip(ahead.since(first)) {
            if let Received::Bytes { lease, .. } = entry {
                batch.recv(socket.as_fd(), lease);
            }
        }
        batch.run(&mut self.results);
        for (entry, result) in ahead.since(first).zip(&self.results) {
            let Received::Bytes { lease, short } = entry else { continue };
            let answer = match *result {
                0 => Received::Ended,
                bytes @ 1.. => {
                    lease.len = bytes as usize;
                    *short = lease.len < lease.buffer.len();
                    continue;
                }
                errno => match Errno::from_raw_os_error(-errno) {
                    Errno::WOULDBLOCK | Errno::INTR => Received::Blocked,
                    _ => Received::Failed,
                },
            };
            if let Received::Bytes { lease, .. } = std::mem::replace(entry, answer) {
                buffers.push(lease.buffer);
            }
        }
    }

    fn recv(&mut self, key: ConnKey, socket: &OwnedFd, bytes_max: usize) -> Received<Lease> {
        match self.ahead.take(key) {
            Some(received) => received,
            None => self.epoll.recv(key, socket, bytes_max),
        }
    }

    fn take_ahead(&mut self) -> Option<(ConnKey, Received<Lease>)> {
        self.ahead.pop()
    }

    fn give_back(&mut self, lease: Lease) {
        if lease.buffer.len() == FETCH_BYTES {
            self.buffers.push(lease.buffer);
        } else {
            self.epoll.give_back(lease);
        }
    }

    fn send<'f, P: Piece + ?Sized + 'f>(
        &mut self,
        key: ConnKey,
        socket: &OwnedFd,
        frames: impl ExactSizeIterator<Item = &'f P>,
        skip: usize,
    ) -> Sent {
        self.epoll.send(key, socket, frames, skip)
    }

    fn send_all<'a, P, F>(
        &mut self,
        writes: impl Iterator<Item = Write<'a, OwnedFd, F>>,
        sent: &mut Vec<Sent>,
    ) where
        P: Piece + ?Sized + 'a,
        F: ExactSizeIterator<Item = &'a P>,
    {
        let mut batch = self.ring.batch();
        for Write { socket, frames, mut skip, .. } in writes {
            let parts = frames.take(SEND_PARTS_MAX);
            batch.send(
                socket.as_fd(),
                parts.map(|frame| &frame.bytes()[std::mem::take(&mut skip)..]),
            );
        }
        batch.run(&mut self.results);
        sent.extend(self.results.iter().map(|result| match *result {
            bytes @ 0.. => Sent::Bytes(bytes as usize),
            errno => match Errno::from_raw_os_error(-errno) {
                Errno::WOULDBLOCK | Errno::INTR => Sent::Blocked,
                _ => Sent::Failed,
            },
        }));
    }

    fn finish(&mut self, key: ConnKey, socket: &OwnedFd) {
        self.epoll.finish(key, socket);
    }

    fn close(&mut self, key: ConnKey, socket: OwnedFd, reset: bool) {
        if let Some(Received::Bytes { lease, .. }) = self.ahead.take(key) {
            self.buffers.push(lease.buffer);
        }
        self.epoll.close(key, socket, reset);
    }

    fn close_listener(&mut self) {
        for (number, (_, accepting)) in (0..).zip(&self.listeners) {
            if *accepting {
                self.ring.stop_accepting(number);
            }
        }
        // Connections accepted meanwhile are closed, like those that wait at a listener that closes.
        while self.ring.take_accepted().is_some() {}
        self.listeners.clear();
    }

    fn listeners(&self) -> Vec<&OwnedFd> {
        self.listeners.iter().map(|(listener, _)| listener).collect()
    }

    fn take_accepted(&mut self) -> Option<OwnedFd> {
        for (number, (_, accepting)) in (0..).zip(&mut self.listeners) {
            if std::mem::replace(accepting, false) {
                self.ring.stop_accepting(number);
            }
        }
        loop {
            // The end of accepting is among them.
            if let Accepted::Socket(socket) = self.accepted()? {
                return Some(socket);
            }
        }
    }

    fn take_link(&mut self) -> Option<OwnedFd> {
        self.epoll.take_link()
    }
}
