//! Needs of every driver beside moving bytes: listeners, and the descriptors that connect shards
//! whose descriptor tables are apart.
//!
//! Only the wake-up eventfds and the socketpairs for passing sockets ([`Switchboard`]) are older than
//! the shards' tables, so that their numbers mean the same file in every one.

use std::fmt;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::EventfdFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use socket2::{SockRef, TcpKeepalive};

use super::Wake;
use crate::base::address::Peer;
use crate::base::id::ShardId;

/// An eventfd: rings a shard's epoll.
struct EventFd(OwnedFd);

impl Wake for EventFd {
    fn wake(&self) {
        // Full (EAGAIN) means that it rings already; nothing else can happen to an open eventfd.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

/// Descriptors shared between the tables of all shards: made before any of them exists, so
/// that each number means the same file in every table, and never closed while they run.
pub struct Switchboard {
    wakers: Vec<Arc<EventFd>>,
    /// For each shard: where others put sockets, where it takes them.
    passing: Vec<(OwnedFd, OwnedFd)>,
    /// Where a shard puts copies of its listeners for the main thread, where that takes them.
    showing: (OwnedFd, OwnedFd),
}

impl Switchboard {
    /// Three descriptors for each of `shards`, and two.
    pub fn new(shards: usize) -> io::Result<Arc<Self>> {
        let mut wakers = Vec::with_capacity(shards);
        let mut passing = Vec::with_capacity(shards);
        for _ in 0..shards {
            let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
            wakers.push(Arc::new(EventFd(rustix::event::eventfd(0, flags)?)));
            passing.push(pair()?);
        }
        Ok(Arc::new(Self { wakers, passing, showing: pair()? }))
    }

    /// The waker of one shard.
    pub fn waker(&self, shard: ShardId) -> Arc<dyn Wake> {
        self.wakers[shard.index()].clone()
    }

    /// The descriptor that becomes readable when a shard is woken.
    pub(super) fn bell(&self, shard: ShardId) -> BorrowedFd<'_> {
        self.wakers[shard.index()].0.as_fd()
    }

    /// The bell has been heard: it may ring again.
    pub(super) fn heard(&self, shard: ShardId) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.wakers[shard.index()].0, &mut count);
    }

    /// The descriptor that becomes readable when sockets were passed to a shard.
    pub(super) fn inlet(&self, shard: ShardId) -> BorrowedFd<'_> {
        self.passing[shard.index()].1.as_fd()
    }

    /// Passes a socket to a shard, which then has a descriptor of its own for it.
    pub(super) fn pass(&self, to: ShardId, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        give(&self.passing[to.index()].0, CONNECTION, socket)
    }

    /// Passes a shard the way to its counterpart in another process.
    ///
    /// # Errors
    /// Too many connections wait there.
    pub fn pass_link(&self, to: ShardId, link: BorrowedFd<'_>) -> io::Result<()> {
        Ok(give(&self.passing[to.index()].0, LINK, link)?)
    }

    /// Gives the main thread copies of a shard's listeners.
    pub fn show(&self, listeners: &[OwnedFd]) -> io::Result<()> {
        listeners
            .iter()
            .try_for_each(|listener| Ok(give(&self.showing.0, CONNECTION, listener.as_fd())?))
    }

    /// The copies that shards have given, in the main thread's table.
    pub fn shown(&self) -> Vec<OwnedFd> {
        let mut shown = Vec::new();
        loop {
            let before = shown.len();
            take(&self.showing.1, &mut shown, &mut None);
            if shown.len() == before {
                return shown;
            }
        }
    }

    /// Takes what was passed to a shard, about one socket; none when nothing is left.
    pub(super) fn take(
        &self,
        shard: ShardId,
        sockets: &mut Vec<OwnedFd>,
        link: &mut Option<OwnedFd>,
    ) {
        take(&self.passing[shard.index()].1, sockets, link);
    }

    /// Descriptors that every table holds because of this.
    pub fn descriptors(&self) -> usize {
        3 * self.wakers.len() + 2
    }
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// The descriptor that comes with this byte is a client's connection.
const CONNECTION: u8 = 0;
/// It is the way to the shard of another process.
const LINK: u8 = 1;

/// Sends a descriptor: the receiver gets one of its own.
fn give(into: &OwnedFd, kind: u8, socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let sockets = [socket];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let pushed = control.push(SendAncillaryMessage::ScmRights(&sockets));
    debug_assert!(pushed, "the space is made for one descriptor");
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(into, &[IoSlice::new(&[kind])], &mut control, flags).map(drop)
}

/// Takes about one connection that was sent, and the link if it is in front of it; none when nothing is left.
fn take(from: &OwnedFd, sockets: &mut Vec<OwnedFd>, link: &mut Option<OwnedFd>) {
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0u8; 1];
        let mut data = [IoSliceMut::new(&mut byte)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let Ok(message) = rustix::net::recvmsg(from, &mut data, &mut control, flags) else {
            return;
        };
        for ancillary in control.drain() {
            match ancillary {
                RecvAncillaryMessage::ScmRights(passed) if byte == [LINK] => *link = passed.last(),
                RecvAncillaryMessage::ScmRights(passed) => sockets.extend(passed),
                _ => {}
            }
        }
        // A message without its socket: this table was full, and the kernel closed it. Others
        // may be behind it, and no further edge reports them.
        if !sockets.is_empty() || message.bytes == 0 {
            return;
        }
    }
}

/// Where a listener stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A port of TCP.
    Ip(SocketAddr),
    /// A socket in the file system.
    Unix(UnixAddress),
}

/// A Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixAddress {
    /// Its file.
    pub path: PathBuf,
    /// Mode of the file: who may write to it may connect.
    pub mode: u32,
}

/// Bytes of a Unix socket's path at most: `sun_path` without its final zero.
pub const UNIX_PATH_BYTES_MAX: usize = 107;

impl Address {
    /// That of TCP, if it is one.
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "{address}"),
            Self::Unix(address) => write!(f, "unix:{}", address.path.display()),
        }
    }
}

/// The kernel's options for a shard's listener; accepted connections inherit them.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// Addresses to listen on; `[::]` and `0.0.0.0` are two.
    pub addresses: Vec<Address>,
    /// Connections that may wait to be accepted, in each listener.
    pub backlog: i32,
    /// SO_SNDBUF in bytes, `None` leaves it to the kernel.
    pub send_buffer_bytes: Option<usize>,
    /// TCP_NOTSENT_LOWAT in bytes: unsent bytes beyond it wait with us, where they are counted.
    pub notsent_lowat_bytes: Option<u32>,
    /// A shard's listeners prefer connections whose packets arrive on its CPU (SO_INCOMING_CPU). Only where
    /// shards are pinned.
    pub incoming_cpu: bool,
}

/// Opens the listeners of one shard (SO_REUSEPORT: the kernel spreads connections over all).
pub fn listen(options: &ListenOptions) -> io::Result<Vec<OwnedFd>> {
    let listen = |address: &Address| match address {
        Address::Ip(address) => listen_one(*address, options),
        Address::Unix(address) => listen_unix(address, options.backlog),
    };
    options.addresses.iter().map(listen).collect()
}

/// Has the kernel choose these listeners of their SO_REUSEPORT groups for connections whose packets arrive on `cpu`;
/// `None` leaves the choice to the hash of both addresses again.
///
/// Where no listener of a group has the CPU, the hash decides. Where several have it, each gets its share.
pub fn prefer_cpu(listeners: &[OwnedFd], cpu: Option<usize>) -> io::Result<()> {
    // The kernel's word for none is -1.
    let wanted = cpu.unwrap_or(usize::MAX);
    for listener in listeners.iter().map(SockRef::from) {
        if listener.cpu_affinity()? != wanted {
            listener.set_cpu_affinity(wanted)?;
        }
    }
    Ok(())
}

/// Opens a Unix listener. There is no SO_REUSEPORT for these: one shard opens it for all.
///
/// # Errors
/// Also where a file has the path.
pub fn listen_unix(address: &UnixAddress, backlog: i32) -> io::Result<OwnedFd> {
    use socket2::{Domain, SockAddr, Socket, Type};
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    socket.bind(&SockAddr::unix(&address.path)?)?;
    // Nobody can connect before it listens.
    fs::set_permissions(&address.path, fs::Permissions::from_mode(address.mode))?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

fn listen_one(address: SocketAddr, options: &ListenOptions) -> io::Result<OwnedFd> {
    use socket2::{Domain, Protocol, Socket, Type};
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
    set_inherited(SockRef::from(&socket), options)?;
    socket.bind(&address.into())?;
    socket.listen(options.backlog)?;
    Ok(socket.into())
}

/// Gives a listener that another process has opened the options of an own one.
pub fn adopt(listener: &OwnedFd, options: &ListenOptions) -> io::Result<()> {
    let socket = SockRef::from(listener);
    socket.set_nonblocking(true)?;
    if socket.local_addr()?.as_socket().is_some() {
        set_inherited(SockRef::from(listener), options)?;
    }
    socket.listen(options.backlog)
}

/// Silence of a peer after which the kernel sends probes.
const KEEPALIVE_TIME: Duration = Duration::from_secs(120);
/// Time between two probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// Unanswered probes after which the connection is closed.
const KEEPALIVE_RETRIES: u32 = 4;
/// Time after which a connection is closed whose peer acknowledges nothing of what was sent to it. As long as
/// all probes: with a shorter one a single lost probe would close an idle connection (tcp(7)).
const USER_TIMEOUT: Duration = Duration::from_secs(120 + 4 * 30);

/// Sets what accepted connections inherit from their listener.
fn set_inherited(socket: SockRef<'_>, options: &ListenOptions) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    // Finds peers that vanished where no application ping would: those of one-way transports.
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    socket.set_tcp_keepalive(&keepalive)?;
    // There are no probes while something was sent and not acknowledged. The kernel itself gives up after a
    // quarter of an hour (net.ipv4.tcp_retries2); the same time as for a peer that got nothing is enough.
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    if let Some(bytes) = options.send_buffer_bytes {
        socket.set_send_buffer_size(bytes)?;
    }
    if let Some(bytes) = options.notsent_lowat_bytes {
        socket.set_tcp_notsent_lowat(bytes)?;
    }
    Ok(())
}

/// The other end of a connected socket; `None` once it was reset.
pub(super) fn peer(socket: &OwnedFd) -> Option<Peer> {
    let address = rustix::net::getpeername(socket).ok()??;
    match address.address_family() {
        AddressFamily::UNIX => Some(Peer::Unix),
        _ => SocketAddr::try_from(address).ok().map(|address| Peer::of(address.ip())),
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
    fn an_accepted_connection_has_the_timeouts_of_its_listener() {
        let options = ListenOptions {
            addresses: vec![Address::Ip(SocketAddr::from(([127, 0, 0, 1], 0)))],
            backlog: 64,
            send_buffer_bytes: None,
            notsent_lowat_bytes: None,
            incoming_cpu: false,
        };
        let listeners = listen(&options).unwrap();
        let address = SockRef::from(&listeners[0]).local_addr().unwrap().as_socket().unwrap();
        let _client = std::net::TcpStream::connect(address).unwrap();
        let accepted = rustix::net::accept(&listeners[0]).unwrap();
        let accepted = SockRef::from(&accepted);
        assert_eq!(accepted.tcp_user_timeout().unwrap(), Some(Duration::from_secs(240)));
        let probes =
            KEEPALIVE_TIME + KEEPALIVE_INTERVAL * accepted.tcp_keepalive_retries().unwrap();
        assert_eq!(probes, USER_TIMEOUT);
    }

    /// Connections of loopback arrive on the CPU that has sent them.
    #[test]
    fn a_connection_comes_to_the_listener_of_the_cpu_on_which_it_arrives() {
        let allowed = rustix::thread::sched_getaffinity(None).unwrap();
        let cpus: Vec<usize> = (0..rustix::thread::CpuSet::MAX_CPU)
            .filter(|&cpu| allowed.is_set(cpu))
            .take(2)
            .collect();
        let [first, second] = cpus[..] else { return };
        let mut options = ListenOptions {
            addresses: vec![Address::Ip(SocketAddr::from(([127, 0, 0, 1], 0)))],
            backlog: 64,
            send_buffer_bytes: None,
            notsent_lowat_bytes: None,
            incoming_cpu: true,
        };
        let one = listen(&options).unwrap();
        let address = SockRef::from(&one[0]).local_addr().unwrap().as_socket().unwrap();
        options.addresses = vec![Address::Ip(address)];
        let two = listen(&options).unwrap();
        let accepted = |listeners: &[OwnedFd]| {
            std::iter::from_fn(|| rustix::net::accept(&listeners[0]).ok()).count()
        };
        let connect_from = |cpu: usize| {
            let mut set = rustix::thread::CpuSet::new();
            set.set(cpu);
            rustix::thread::sched_setaffinity(None, &set).unwrap();
            let clients: Vec<_> =
                (0..20).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
            drop(clients);
            (accepted(&one), accepted(&two))
        };
        prefer_cpu(&one, Some(first)).unwrap();
        prefer_cpu(&two, Some(second)).unwrap();
        assert_eq!(connect_from(first), (20, 0));
        assert_eq!(connect_from(second), (0, 20));
        // The other way round, as by a process that takes over.
        prefer_cpu(&one, Some(second)).unwrap();
        prefer_cpu(&two, Some(first)).unwrap();
        assert_eq!(connect_from(second), (20, 0));
        prefer_cpu(&one, None).unwrap();
        prefer_cpu(&two, None).unwrap();
        let (to_one, to_two) = connect_from(first);
        assert!(to_one > 0 && to_two > 0, "{to_one} {to_two}");
    }

    #[test]
    fn a_socket_that_got_lost_doesn_t_hide_the_next_one() {
        let switchboard = Switchboard::new(1).unwrap();
        let shard = ShardId(0);
        // As it arrives where no descriptor was free.
        let flags = SendFlags::DONTWAIT;
        rustix::net::send(&switchboard.passing[0].0, &[0], flags).unwrap();
        let socket = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        switchboard.pass(shard, socket.as_fd()).unwrap();
        for passed in [1, 0] {
            let mut sockets = Vec::new();
            switchboard.take(shard, &mut sockets, &mut None);
            assert_eq!(sockets.len(), passed);
        }
    }
}
