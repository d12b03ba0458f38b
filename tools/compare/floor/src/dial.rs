//! The floor of a load client: connections that are upgraded and held, and nothing else.

use std::io::{self, Read as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Connections that wait for their 101 at the same time.
const WINDOW: usize = 64;

const REQUEST: &[u8] = b"GET /idle HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";

/// Opens `count` connections from one address, says so, and holds them until the standard input ends.
pub fn dial(server: SocketAddr, count: usize, source: Ipv4Addr) -> io::Result<()> {
    let mut dialer = Dialer { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, server, source };
    let mut opened: Vec<Option<OwnedFd>> = Vec::new();
    let (mut dialled, mut open) = (0, 0);
    let mut events = Vec::with_capacity(WINDOW);
    let mut buffer = [0; 1024];
    while open < count {
        while dialled < count && dialled - open < WINDOW {
            let socket = dialer.connect()?;
            let key = socket.as_raw_fd() as usize;
            if opened.len() <= key {
                opened.resize_with(key + 1, || None);
            }
            opened[key] = Some(socket);
            dialled += 1;
        }
        events.clear();
        epoll::wait(&dialer.epoll, spare_capacity(&mut events), None)?;
        for event in &events {
            let Some(Some(socket)) = opened.get(event.data.u64() as usize) else { continue };
            let flags = event.flags;
            if flags.contains(epoll::EventFlags::IN) {
                let (_, bytes) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT)?;
                if !buffer[..bytes].starts_with(b"HTTP/1.1 101") {
                    return Err(io::Error::other("the answer to an upgrade is not 101"));
                }
                open += 1;
            } else {
                let sent = rustix::net::send(socket, REQUEST, SendFlags::NOSIGNAL)?;
                assert_eq!(sent, REQUEST.len(), "an empty socket takes a request");
            }
        }
    }
    println!("open {open}");
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

struct Dialer {
    epoll: OwnedFd,
    server: SocketAddr,
    source: Ipv4Addr,
}

impl Dialer {
    /// Begins to connect. The epoll says when that is done, and when the answer is there.
    fn connect(&mut self) -> io::Result<OwnedFd> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (family, kind) = (AddressFamily::INET, SocketType::STREAM);
        let socket = rustix::net::socket_with(family, kind, flags, None)?;
        // One address has ports for all connections of this process, chosen by the kernel as it connects.
        bind_address_no_port(&socket);
        rustix::net::bind(&socket, &SocketAddrV4::new(self.source, 0))?;
        match rustix::net::connect(&socket, &self.server) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let interest = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        let key = epoll::EventData::new_u64(socket.as_raw_fd() as u64);
        epoll::add(&self.epoll, &socket, key, interest)?;
        Ok(socket)
    }
}

fn bind_address_no_port(socket: &OwnedFd) {
    let on: libc::c_int = 1;
    let bytes = size_of::<libc::c_int>() as libc::socklen_t;
    let option = libc::IP_BIND_ADDRESS_NO_PORT;
    // SAFETY: the pointer is to a live value of the size that is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            option,
            (&raw const on).cast(),
            bytes,
        )
    };
    assert_eq!(result, 0, "IP_BIND_ADDRESS_NO_PORT is older than Linux 4.2");
}
