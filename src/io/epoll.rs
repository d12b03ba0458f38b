//! The driver that every kernel has: edge-triggered epoll through mio, and a system call for each
//! read and write.
//!
//! Made inside its shard's thread, after the thread has a descriptor table of its own.

use std::io::{self, ErrorKind, IoSlice};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags};

use super::clock::Clock;
use super::sockets::{self, Switchboard};
use super::timer::Timer;
use super::{Accepted, Completion, Driver, Piece, Received, Sent};
use crate::base::address::Peer;
use crate::base::id::{ConnKey, ShardId};
use crate::base::limits::TURN_READ_BYTES_MAX;
use crate::base::time::{Millis, UnixSeconds};

/// Frames of one connection that leave in one system call; more go in the next.
pub(super) const SEND_PARTS_MAX: usize = 64;

/// Kernel events taken in one wait.
const EVENTS_MAX: usize = 1024;

// Generation 0 is never a connection's.
const TOKEN_LISTENER: usize = 0;
const TOKEN_WAKER: usize = 1;
const TOKEN_PASSED: usize = 2;
const TOKEN_TIMER: usize = 3;

/// A read buffer, while it is lent.
pub struct Lease {
    pub(super) buffer: Box<[u8]>,
    pub(super) len: usize,
}

impl Deref for Lease {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.len]
    }
}

/// The outcome of a poll.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Polled {
    Nothing,
    /// The end of the timer, and nothing else.
    Timer,
    Something,
}

/// Edge-triggered epoll for one shard.
pub struct Epoll {
    poll: Poll,
    events: Events,
    switchboard: Arc<Switchboard>,
    shard: ShardId,
    listeners: Vec<OwnedFd>,
    /// The listener that accepts next, so that none starves.
    listener_turn: usize,
    passed: Vec<OwnedFd>,
    /// The way to the shard of another process.
    link: Option<OwnedFd>,
    /// Other processes may have copies of the sockets.
    shared: bool,
    /// Keys that have ended, where they are listed.
    closed: Option<Vec<ConnKey>>,
    /// What was reported before the first wait.
    drained: Vec<Completion>,
    read_buffer: Option<Box<[u8]>>,
    clock: Clock,
    /// Ends a wait at its moment.
    timer: Timer,
    /// How long the shard had worked before the last wait.
    worked_us: u32,
    /// How long a wait polls before it sleeps, and polls that found nothing.
    spin: Duration,
    empty_polls: u64,
}

impl Epoll {
    /// The driver of `shard`. Call it in the shard's thread after the thread has its own table.
    /// `started` is the process's zero of time.
    pub fn new(
        shard: ShardId,
        switchboard: Arc<Switchboard>,
        listeners: Vec<OwnedFd>,
        started: Instant,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let registry = poll.registry();
        let waker = switchboard.bell(shard).as_raw_fd();
        registry.register(&mut SourceFd(&waker), Token(TOKEN_WAKER), Interest::READABLE)?;
        let passed = switchboard.inlet(shard).as_raw_fd();
        registry.register(&mut SourceFd(&passed), Token(TOKEN_PASSED), Interest::READABLE)?;
        let timer = Timer::new()?;
        let fd = timer.as_fd().as_raw_fd();
        registry.register(&mut SourceFd(&fd), Token(TOKEN_TIMER), Interest::READABLE)?;
        let driver = Self {
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            switchboard,
            shard,
            listeners,
            listener_turn: 0,
            passed: Vec::new(),
            link: None,
            shared: false,
            closed: None,
            drained: Vec::new(),
            read_buffer: Some(vec![0; TURN_READ_BYTES_MAX].into_boxed_slice()),
            clock: Clock::new(started),
            timer,
            worked_us: 0,
            spin: Duration::ZERO,
            empty_polls: 0,
        };
        for at in 0..driver.listeners.len() {
            driver.watch_acceptable(&driver.listeners[at])?;
        }
        Ok(driver)
    }

    /// Reports [`Completion::Acceptable`] when this becomes readable.
    pub(super) fn watch_acceptable(&self, source: &impl AsRawFd) -> io::Result<()> {
        let fd = source.as_raw_fd();
        let registry = self.poll.registry();
        registry.register(&mut SourceFd(&fd), Token(TOKEN_LISTENER), Interest::READABLE)
    }

    /// Polls once.
    fn poll_events(&mut self, timeout: Option<Duration>) -> Polled {
        match self.poll.poll(&mut self.events, timeout) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::Interrupted => self.events.clear(),
            // Only a broken epoll descriptor gives anything else: the shard could never go on.
            Err(e) => panic!("epoll_wait: {e}"),
        }
        let mut events = self.events.iter();
        match (events.next(), events.next()) {
            (None, _) => Polled::Nothing,
            (Some(event), None) if event.token().0 == TOKEN_TIMER => {
                self.timer.ended();
                Polled::Timer
            }
            _ => Polled::Something,
        }
    }

    /// Polls from `now` on without sleeping, until something has happened or the time to spin is over, which
    /// ends at `until` at the latest. Returns when that was, or `None` when something has happened.
    fn spin(&mut self, mut now: Duration, until: Option<Duration>) -> Option<Duration> {
        let end = until.unwrap_or(Duration::MAX).min(now + self.spin);
        while now < end {
            if self.poll_events(Some(Duration::ZERO)) == Polled::Something {
                return None;
            }
            self.empty_polls += 1;
            now = self.clock.look();
        }
        Some(now)
    }

    /// Waits from `now` on until something has happened, or until that moment. A wait with a moment needs no
    /// timer of its own in the kernel while the one of an earlier wait ends no later: that one is much cheaper
    /// to leave than to set.
    fn sleep(&mut self, mut now: Duration, until: Option<Duration>) {
        loop {
            let left = until.map(|until| until.saturating_sub(now));
            let by_timer = match (left, until) {
                (Some(left), Some(until)) => !left.is_zero() && self.timer.ends_by(until, left),
                _ => true,
            };
            if self.poll_events(if by_timer { None } else { left }) != Polled::Timer {
                return;
            }
            now = self.clock.look();
            if until.is_some_and(|until| until <= now) {
                return;
            }
        }
    }

    /// Polls that have found nothing, of waits that spin.
    #[cfg(test)]
    pub(crate) fn empty_polls(&self) -> u64 {
        self.empty_polls
    }

    /// What the last poll has brought.
    fn take_events(&mut self, completions: &mut Vec<Completion>) {
        for event in &self.events {
            match event.token().0 {
                TOKEN_LISTENER => completions.push(Completion::Acceptable),
                TOKEN_WAKER => {
                    self.switchboard.heard(self.shard);
                    completions.push(Completion::Woken);
                }
                TOKEN_PASSED => completions.push(Completion::Passed),
                TOKEN_TIMER => self.timer.ended(),
                token => {
                    let Some(key) = ConnKey::unpack(token as u64) else { continue };
                    let ended = event.is_read_closed() || event.is_error();
                    // Writable first: what waits goes out before an answer is added to it.
                    if event.is_writable() {
                        completions.push(Completion::Writable { key });
                    }
                    if event.is_readable() || ended {
                        completions.push(Completion::Readable { key, ended });
                    }
                }
            }
        }
    }
}

/// Ends a connection of whose socket there may be copies: closing one copy of several does nothing.
fn end_connection(socket: &OwnedFd, reset: bool) {
    // Without a peer it resets a connection over TCP; one over a Unix socket has none to reset.
    if !reset || rustix::net::connect_unspec(socket).is_err() {
        let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
    }
}

impl Driver for Epoll {
    type Socket = OwnedFd;
    type Lease = Lease;

    fn now(&self) -> Millis {
        self.clock.now()
    }

    fn worked_us(&self) -> Option<u32> {
        Some(self.worked_us)
    }

    fn unix(&self) -> UnixSeconds {
        self.clock.unix()
    }

    fn wait(&mut self, until: Option<Millis>, completions: &mut Vec<Completion>) {
        let now = self.clock.look();
        self.worked_us = self.clock.worked_us(now);
        let until = if self.drained.is_empty() { until } else { Some(self.clock.now()) };
        let until = until.map(|until| Duration::from_millis(until.0));
        if let Some(now) = self.spin(now, until) {
            self.sleep(now, until);
        }
        self.clock.read();
        if !self.drained.is_empty() {
            completions.append(&mut std::mem::take(&mut self.drained));
        }
        self.take_events(completions);
    }

    fn spin_for(&mut self, time: Duration) {
        self.spin = time;
    }

    fn accept(&mut self) -> Accepted<OwnedFd> {
        for _ in 0..self.listeners.len() {
            let listener = &self.listeners[self.listener_turn % self.listeners.len()];
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match rustix::net::accept_with(listener, flags) {
                Ok(socket) => return Accepted::Socket(socket),
                Err(Errno::WOULDBLOCK) => self.listener_turn = self.listener_turn.wrapping_add(1),
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    return Accepted::Full;
                }
                Err(_) => return Accepted::Failed,
            }
        }
        Accepted::Blocked
    }

    fn take_passed(&mut self) -> Option<OwnedFd> {
        if self.passed.is_empty() {
            self.switchboard.take(self.shard, &mut self.passed, &mut self.link);
        }
        self.passed.pop()
    }

    fn take_link(&mut self) -> Option<OwnedFd> {
        let mut before = usize::MAX;
        // Connections may be in front of it, and one that nobody has taken: the last one counts.
        while before != self.passed.len() {
            before = self.passed.len();
            self.switchboard.take(self.shard, &mut self.passed, &mut self.link);
        }
        self.link.take()
    }

    fn pass(&mut self, to: ShardId, socket: OwnedFd) -> Result<(), OwnedFd> {
        match self.switchboard.pass(to, socket.as_fd()) {
            Ok(()) => Ok(()),
            Err(_) => Err(socket),
        }
    }

    fn peer(&self, socket: &OwnedFd) -> Option<Peer> {
        sockets::peer(socket)
    }

    fn watch(&mut self, key: ConnKey, socket: &OwnedFd) -> io::Result<()> {
        let fd = socket.as_raw_fd();
        self.poll.registry().register(
            &mut SourceFd(&fd),
            Token(key.pack() as usize),
            Interest::READABLE | Interest::WRITABLE,
        )
    }

    fn forget(&mut self, key: ConnKey, socket: Option<OwnedFd>) {
        if let Some(socket) = socket {
            // Other copies keep the file open, and a registration lasts as long as the file.
            let _ = self.poll.registry().deregister(&mut SourceFd(&socket.as_raw_fd()));
            self.drained.retain(|completion| {
                !matches!(completion, Completion::Readable { key: of, .. } if *of == key)
            });
        }
    }

    fn drain_adopted(&mut self) {
        let mut drained = std::mem::take(&mut self.drained);
        loop {
            let from = drained.len();
            self.poll_events(Some(Duration::ZERO));
            let is_full = self.events.iter().count() >= EVENTS_MAX;
            self.take_events(&mut drained);
            let kept = drained.split_off(from).into_iter();
            drained.extend(kept.filter(|of| !matches!(of, Completion::Writable { .. })));
            if !is_full {
                break;
            }
        }
        self.drained = drained;
    }

    fn share(&mut self, lists_closed: bool) {
        self.shared = true;
        self.closed = lists_closed.then(Vec::new);
    }

    fn take_closed(&mut self) -> Vec<ConnKey> {
        self.closed.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn rename(&mut self, old: ConnKey, new: ConnKey, socket: &OwnedFd) -> io::Result<()> {
        self.closed.iter_mut().for_each(|closed| closed.push(old));
        // Both edges are reported anew, so that none is lost with the old token.
        let fd = socket.as_raw_fd();
        self.poll.registry().reregister(
            &mut SourceFd(&fd),
            Token(new.pack() as usize),
            Interest::READABLE | Interest::WRITABLE,
        )
    }

    fn recv(&mut self, _key: ConnKey, socket: &OwnedFd, bytes_max: usize) -> Received<Lease> {
        // A lease that wasn't given back would leave the shard without its buffer.
        let Some(mut buffer) = self.read_buffer.take() else { return Received::Blocked };
        let want = buffer.len().min(bytes_max);
        match rustix::net::recv(socket, &mut buffer[..want], RecvFlags::DONTWAIT) {
            Ok((_, 0)) => {
                self.read_buffer = Some(buffer);
                Received::Ended
            }
            Ok((_, len)) => Received::Bytes { lease: Lease { buffer, len }, short: len < want },
            Err(errno) => {
                self.read_buffer = Some(buffer);
                match errno {
                    Errno::WOULDBLOCK | Errno::INTR => Received::Blocked,
                    _ => Received::Failed,
                }
            }
        }
    }

    fn give_back(&mut self, lease: Lease) {
        self.read_buffer = Some(lease.buffer);
    }

    fn send<'f, P: Piece + ?Sized + 'f>(
        &mut self,
        _key: ConnKey,
        socket: &OwnedFd,
        mut frames: impl ExactSizeIterator<Item = &'f P>,
        skip: usize,
    ) -> Sent {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let result = if frames.len() == 1 {
            let Some(frame) = frames.next() else { return Sent::Bytes(0) };
            rustix::net::send(socket, &frame.bytes()[skip..], flags)
        } else {
            let mut slices = [IoSlice::new(&[]); SEND_PARTS_MAX];
            let mut count = 0;
            for (slice, frame) in slices.iter_mut().zip(frames) {
                let skip = if count == 0 { skip } else { 0 };
                *slice = IoSlice::new(&frame.bytes()[skip..]);
                count += 1;
            }
            let mut control = SendAncillaryBuffer::default();
            rustix::net::sendmsg(socket, &slices[..count], &mut control, flags)
        };
        match result {
            Ok(bytes) => Sent::Bytes(bytes),
            Err(Errno::WOULDBLOCK | Errno::INTR) => Sent::Blocked,
            Err(_) => Sent::Failed,
        }
    }

    fn finish(&mut self, _key: ConnKey, socket: &OwnedFd) {
        // Fails only when the peer has reset the connection, which the next read reports.
        let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Write);
    }

    fn close(&mut self, key: ConnKey, socket: OwnedFd, reset: bool) {
        if self.shared {
            self.closed.iter_mut().for_each(|closed| closed.push(key));
            end_connection(&socket, reset);
        } else if reset {
            let _ = rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
        }
        // The last descriptor of a file takes its epoll registration with it.
        drop(socket);
    }

    fn close_listener(&mut self) {
        self.listeners.clear();
    }

    fn listeners(&self) -> Vec<&OwnedFd> {
        self.listeners.iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags};

    use super::*;

    fn driver() -> (Epoll, Arc<Switchboard>) {
        let switchboard = Switchboard::new(1).unwrap();
        let of = Arc::clone(&switchboard);
        #[expect(clippy::disallowed_methods, reason = "a zero of time")]
        let driver = Epoll::new(ShardId(0), of, Vec::new(), Instant::now()).unwrap();
        (driver, switchboard)
    }

    /// The timer stays set over waits that end by something else, and a wait that goes on for longer than it
    /// doesn't end with it.
    #[test]
    fn waits_share_a_timer_and_end_at_their_own_moments() {
        let (mut driver, switchboard) = driver();
        let mut told = Vec::new();
        let first = driver.now().after(30);
        switchboard.waker(ShardId(0)).wake();
        driver.wait(Some(first), &mut told);
        assert_eq!((driver.timer.settings, &*told), (1, &[Completion::Woken][..]));
        // A later moment: the same timer, which ends first, then another one.
        let later = first.after(20);
        switchboard.waker(ShardId(0)).wake();
        driver.wait(Some(later), &mut told);
        assert_eq!((driver.timer.settings, told.len()), (1, 2));
        driver.wait(Some(later), &mut told);
        assert!(driver.now() >= later, "{:?} {later:?}", driver.now());
        assert_eq!((driver.timer.settings, told.len()), (2, 2));
        // An earlier moment sets it anew; one that has passed doesn't need it.
        let (far, near) = (driver.now().after(60_000), driver.now().after(5));
        switchboard.waker(ShardId(0)).wake();
        driver.wait(Some(far), &mut told);
        driver.wait(Some(near), &mut told);
        assert!(driver.now() >= near && driver.now() < far);
        driver.wait(Some(near), &mut told);
        assert_eq!((driver.timer.settings, told.len()), (4, 3));
    }

    /// A wait without a moment outlasts the timer of an earlier one.
    #[test]
    fn a_wait_for_as_long_as_it_takes_is_ended_by_no_timer() {
        let (mut driver, switchboard) = driver();
        let mut told = Vec::new();
        switchboard.waker(ShardId(0)).wake();
        driver.wait(Some(driver.now().after(5)), &mut told);
        told.clear();
        let waker = switchboard.waker(ShardId(0));
        let timer = driver.timer.as_fd().try_clone_to_owned().unwrap();
        #[expect(clippy::disallowed_methods, reason = "a thread without descriptors of its own")]
        let ringer = std::thread::spawn(move || {
            let mut ended = [PollFd::new(&timer, PollFlags::IN)];
            rustix::event::poll(&mut ended, None).unwrap();
            waker.wake();
        });
        driver.wait(None, &mut told);
        assert_eq!(&*told, &[Completion::Woken]);
        ringer.join().unwrap();
    }

    /// A wait that spins sees what comes meanwhile, and sleeps for the rest of its time when nothing does.
    #[test]
    fn a_wait_polls_before_it_sleeps() {
        let (mut driver, switchboard) = driver();
        let mut told = Vec::new();
        let soon = |driver: &Epoll| Some(driver.now().after(20));
        driver.wait(soon(&driver), &mut told);
        assert_eq!((driver.empty_polls, told.len()), (0, 0));
        driver.spin_for(Duration::from_millis(5));
        driver.wait(soon(&driver), &mut told);
        let polls = driver.empty_polls;
        assert!(polls > 0 && told.is_empty(), "{polls} {told:?}");
        // An event that is there is found at once, and by one poll.
        switchboard.waker(ShardId(0)).wake();
        driver.wait(soon(&driver), &mut told);
        assert_eq!((driver.empty_polls, &*told), (polls, &[Completion::Woken][..]));
        // A turn that goes on doesn't spin, and is told nothing twice.
        driver.wait(Some(driver.now()), &mut told);
        assert_eq!((driver.empty_polls, told.len()), (polls, 1));
    }
}
