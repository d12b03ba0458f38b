//! The production driver: edge-triggered epoll through mio.
//!
//! Made inside its shard's thread, after the thread has a descriptor table of its own; only the
//! wake-up eventfds and the socketpairs for passing sockets are older than that
//! ([`Switchboard`]), so that their numbers mean the same file in every table.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::event::EventfdFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use super::{Accepted, Completion, Driver, Received, Sent, Wake};
use crate::base::frame::SharedFrame;
use crate::base::id::{ConnKey, ShardId};
use crate::base::limits::TURN_READ_BYTES_MAX;
use crate::base::time::{Millis, UnixSeconds};

/// Frames of one connection that leave in one system call; more go in the next.
const SEND_SLICES_MAX: usize = 64;

/// Kernel events taken in one wait.
const EVENTS_MAX: usize = 1024;

// Generation 0 is never a connection's.
const TOKEN_LISTENER: usize = 0;
const TOKEN_WAKER: usize = 1;
const TOKEN_PASSED: usize = 2;

/// An eventfd: rings a shard's epoll.
struct EventFd(OwnedFd);

impl Wake for EventFd {
    fn wake(&self) {
        // Full (EAGAIN) means that it rings already; nothing else can happen to an open eventfd.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

/// What is shared between the descriptor tables of all shards: made before any of them exists, so
/// that each number means the same file in every table, and never closed while they run.
pub struct Switchboard {
    wakers: Vec<Arc<EventFd>>,
    /// For each shard: where others put sockets, where it takes them.
    passing: Vec<(OwnedFd, OwnedFd)>,
}

impl Switchboard {
    /// Three descriptors for each of `shards`.
    pub fn new(shards: usize) -> io::Result<Arc<Self>> {
        let mut wakers = Vec::with_capacity(shards);
        let mut passing = Vec::with_capacity(shards);
        for _ in 0..shards {
            let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
            wakers.push(Arc::new(EventFd(rustix::event::eventfd(0, flags)?)));
            passing.push(rustix::net::socketpair(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                None,
            )?);
        }
        Ok(Arc::new(Self { wakers, passing }))
    }

    /// The waker of one shard.
    pub fn waker(&self, shard: ShardId) -> Arc<dyn Wake> {
        self.wakers[shard.index()].clone()
    }

    /// Descriptors that every table holds because of this.
    pub fn descriptors(&self) -> usize {
        3 * self.wakers.len()
    }
}

/// The kernel's options for a shard's listener; accepted connections inherit them.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// Addresses to listen on; `[::]` and `0.0.0.0` are two.
    pub addresses: Vec<SocketAddr>,
    /// Connections that may wait to be accepted, in each listener.
    pub backlog: i32,
    /// SO_SNDBUF in bytes, `None` leaves it to the kernel.
    pub send_buffer_bytes: Option<usize>,
    /// TCP_NOTSENT_LOWAT in bytes: unsent bytes beyond it wait with us, where they are counted.
    pub notsent_lowat_bytes: Option<u32>,
}

/// Opens the listeners of one shard (SO_REUSEPORT: the kernel spreads connections over all).
pub fn listen(options: &ListenOptions) -> io::Result<Vec<OwnedFd>> {
    options.addresses.iter().map(|address| listen_one(*address, options)).collect()
}

fn listen_one(address: SocketAddr, options: &ListenOptions) -> io::Result<OwnedFd> {
    use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        // A TCPv6 socket costs 128 B more than a TCPv4 one: v4 clients get their own listener.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    // Finds peers that vanished where no application ping would.
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(120))
        .with_interval(Duration::from_secs(30))
        .with_retries(4);
    socket.set_tcp_keepalive(&keepalive)?;
    if let Some(bytes) = options.send_buffer_bytes {
        socket.set_send_buffer_size(bytes)?;
    }
    if let Some(bytes) = options.notsent_lowat_bytes {
        socket.set_tcp_notsent_lowat(bytes)?;
    }
    socket.bind(&address.into())?;
    socket.listen(options.backlog)?;
    Ok(socket.into())
}

/// The shard's one read buffer, while it is lent.
pub struct Lease {
    buffer: Box<[u8]>,
    len: usize,
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

/// Edge-triggered epoll for one shard.
pub struct Epoll {
    poll: Poll,
    events: Events,
    switchboard: Arc<Switchboard>,
    shard: ShardId,
    listeners: Vec<OwnedFd>,
    /// Which listener is asked next, so that none starves.
    listener_turn: usize,
    passed: Vec<OwnedFd>,
    read_buffer: Option<Box<[u8]>>,
    started: Instant,
    now: Millis,
    unix: UnixSeconds,
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
        for listener in &listeners {
            let fd = listener.as_raw_fd();
            registry.register(&mut SourceFd(&fd), Token(TOKEN_LISTENER), Interest::READABLE)?;
        }
        let waker = switchboard.wakers[shard.index()].0.as_raw_fd();
        registry.register(&mut SourceFd(&waker), Token(TOKEN_WAKER), Interest::READABLE)?;
        let passed = switchboard.passing[shard.index()].1.as_raw_fd();
        registry.register(&mut SourceFd(&passed), Token(TOKEN_PASSED), Interest::READABLE)?;
        let mut driver = Self {
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            switchboard,
            shard,
            listeners,
            listener_turn: 0,
            passed: Vec::new(),
            read_buffer: Some(vec![0; TURN_READ_BYTES_MAX].into_boxed_slice()),
            started,
            now: Millis(0),
            unix: UnixSeconds(0),
        };
        driver.read_clock();
        Ok(driver)
    }

    #[expect(clippy::disallowed_methods, reason = "the one place where a shard reads the clock")]
    fn read_clock(&mut self) {
        self.now = Millis(self.started.elapsed().as_millis() as u64);
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        self.unix = UnixSeconds(unix.map_or(0, |d| d.as_secs() as i64));
    }
}

impl Driver for Epoll {
    type Socket = OwnedFd;
    type Lease = Lease;

    fn now(&self) -> Millis {
        self.now
    }

    fn unix(&self) -> UnixSeconds {
        self.unix
    }

    fn wait(&mut self, until: Option<Millis>, completions: &mut Vec<Completion>) {
        let timeout = until.map(|until| Duration::from_millis(until.since(self.now)));
        match self.poll.poll(&mut self.events, timeout) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            // Only a broken epoll descriptor gives anything else: the shard could never go on.
            Err(e) => panic!("epoll_wait: {e}"),
        }
        self.read_clock();
        for event in &self.events {
            match event.token().0 {
                TOKEN_LISTENER => completions.push(Completion::Acceptable),
                TOKEN_WAKER => {
                    let mut count = [0; 8];
                    let _ = rustix::io::read(
                        &self.switchboard.wakers[self.shard.index()].0,
                        &mut count,
                    );
                    completions.push(Completion::Woken);
                }
                TOKEN_PASSED => completions.push(Completion::Passed),
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
        if let Some(socket) = self.passed.pop() {
            return Some(socket);
        }
        let from = &self.switchboard.passing[self.shard.index()].1;
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut byte = [0u8; 1];
            let mut data = [IoSliceMut::new(&mut byte)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let message = rustix::net::recvmsg(from, &mut data, &mut control, flags).ok()?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(sockets) = message {
                    self.passed.extend(sockets);
                }
            }
            // A message without its socket: this table was full, and the kernel closed it. Others
            // may be behind it, and no further edge tells of them.
            if !self.passed.is_empty() || message.bytes == 0 {
                return self.passed.pop();
            }
        }
    }

    fn pass(&mut self, to: ShardId, socket: OwnedFd) -> Result<(), OwnedFd> {
        let into = &self.switchboard.passing[to.index()].0;
        let sockets = [socket.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let pushed = control.push(SendAncillaryMessage::ScmRights(&sockets));
        debug_assert!(pushed, "the space is made for one descriptor");
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::sendmsg(into, &[IoSlice::new(&[0])], &mut control, flags) {
            Ok(_) => Ok(()),
            Err(_) => Err(socket),
        }
    }

    fn watch(&mut self, key: ConnKey, socket: &OwnedFd) -> io::Result<()> {
        let fd = socket.as_raw_fd();
        self.poll.registry().register(
            &mut SourceFd(&fd),
            Token(key.pack() as usize),
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

    fn send<'f>(
        &mut self,
        _key: ConnKey,
        socket: &OwnedFd,
        mut frames: impl ExactSizeIterator<Item = &'f SharedFrame>,
        skip: usize,
    ) -> Sent {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let result = if frames.len() == 1 {
            let Some(frame) = frames.next() else { return Sent::Bytes(0) };
            rustix::net::send(socket, &frame.bytes()[skip..], flags)
        } else {
            let mut slices = [IoSlice::new(&[]); SEND_SLICES_MAX];
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

    fn finish(&mut self, socket: &OwnedFd) {
        // Fails only when the peer has reset the connection, which the next read tells.
        let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Write);
    }

    fn close(&mut self, _key: ConnKey, socket: OwnedFd, reset: bool) {
        if reset {
            let _ = rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
        }
        // The last descriptor of a file takes its epoll registration with it.
        drop(socket);
    }

    fn close_listener(&mut self) {
        self.listeners.clear();
    }
}

/// Borrows the descriptors of `switchboard` that shard `shard` has no use for: the receiving ends
/// of the others.
pub fn unneeded(switchboard: &Switchboard, shard: ShardId) -> impl Iterator<Item = BorrowedFd<'_>> {
    let others = switchboard.passing.iter().enumerate();
    others.filter(move |(at, _)| *at != shard.index()).map(|(_, pair)| pair.1.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_got_lost_doesn_t_hide_the_next_one() {
        let switchboard = Switchboard::new(1).unwrap();
        let shard = ShardId(0);
        #[expect(clippy::disallowed_methods, reason = "the driver's zero of time")]
        let started = Instant::now();
        let mut driver = Epoll::new(shard, Arc::clone(&switchboard), Vec::new(), started).unwrap();
        // As it arrives where no descriptor was free.
        let flags = SendFlags::DONTWAIT;
        rustix::net::send(&switchboard.passing[0].0, &[0], flags).unwrap();
        let socket = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        assert!(driver.pass(shard, socket).is_ok());
        assert!(driver.take_passed().is_some());
        assert!(driver.take_passed().is_none());
    }
}
