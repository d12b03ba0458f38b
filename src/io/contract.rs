//! The contract that the shard relies on, tested with each driver that runs on a real kernel.

use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use super::epoll::Epoll;
use super::sockets::{Address, ListenOptions, Switchboard, UnixAddress, listen};
use super::uring::Uring;
use super::{Accepted, Completion, Driver, Received, Sent, Write};
use crate::base::address::Peer;
use crate::base::frame::SharedFrame;
use crate::base::id::{ConnKey, ShardId};

type Make<D> = fn(ShardId, Arc<Switchboard>, Vec<OwnedFd>, Instant) -> std::io::Result<D>;

/// A driver of one shard, and where it listens.
struct Rig<D> {
    driver: D,
    address: SocketAddr,
    switchboard: Arc<Switchboard>,
    told: Vec<Completion>,
}

impl<D: Driver<Socket = OwnedFd>> Rig<D> {
    fn new(make: Make<D>) -> Self {
        let switchboard = Switchboard::new(2).unwrap();
        let options = ListenOptions {
            addresses: vec![Address::Ip(SocketAddr::from(([127, 0, 0, 1], 0)))],
            backlog: 64,
            // Little, so that it is full soon.
            send_buffer_bytes: Some(4096),
            notsent_lowat_bytes: None,
            incoming_cpu: false,
        };
        let listeners = listen(&options).unwrap();
        let address = rustix::net::getsockname(&listeners[0]).unwrap().try_into().unwrap();
        #[expect(clippy::disallowed_methods, reason = "the driver's zero of time")]
        let started = Instant::now();
        let driver = make(ShardId(0), Arc::clone(&switchboard), listeners, started).unwrap();
        Self { driver, address, switchboard, told: Vec::new() }
    }

    /// Waits until the driver reports such a completion.
    fn until(&mut self, mut wanted: impl FnMut(&Completion) -> bool) -> Completion {
        loop {
            if let Some(at) = self.told.iter().position(&mut wanted) {
                return self.told.swap_remove(at);
            }
            self.driver.wait(None, &mut self.told);
        }
    }

    fn accept(&mut self) -> OwnedFd {
        loop {
            match self.driver.accept() {
                Accepted::Socket(socket) => return socket,
                Accepted::Blocked => {
                    self.until(|told| *told == Completion::Acceptable);
                }
                Accepted::Failed | Accepted::Full => panic!("not accepted"),
            }
        }
    }

    /// A client, and its connection under key `index`.
    fn connect(&mut self, index: u32) -> (TcpStream, ConnKey, OwnedFd) {
        let client = TcpStream::connect(self.address).unwrap();
        let socket = self.accept();
        let key = key(index);
        self.driver.watch(key, &socket).unwrap();
        (client, key, socket)
    }

    fn until_readable(&mut self, key: ConnKey) -> bool {
        match self.until(|told| matches!(told, Completion::Readable { key: of, .. } if *of == key))
        {
            Completion::Readable { ended, .. } => ended,
            _ => unreachable!(),
        }
    }

    /// The bytes of a first read; `None` at the end.
    fn recv(&mut self, key: ConnKey, socket: &OwnedFd) -> Option<(Vec<u8>, bool)> {
        match self.driver.recv(key, socket, usize::MAX) {
            Received::Bytes { lease, short } => {
                let bytes = lease.to_vec();
                self.driver.give_back(lease);
                Some((bytes, short))
            }
            Received::Blocked => Some((Vec::new(), true)),
            Received::Ended => None,
            Received::Failed | Received::Refused | Received::Taken => panic!("failed"),
        }
    }

    /// So many bytes, which are there or come.
    fn recv_all(&mut self, key: ConnKey, socket: &OwnedFd, count: usize) -> Vec<u8> {
        let mut got = Vec::new();
        while got.len() < count {
            let (bytes, short) = self.recv(key, socket).unwrap();
            got.extend(bytes);
            if short && got.len() < count {
                self.until_readable(key);
            }
        }
        got
    }
}

fn key(index: u32) -> ConnKey {
    ConnKey { index, generation: NonZeroU32::MIN }
}

fn frame(byte: u8, len: usize) -> SharedFrame {
    SharedFrame::new(&vec![byte; len])
}

fn every_connection_is_accepted<D: Driver<Socket = OwnedFd>>(make: Make<D>) {
    let mut rig = Rig::new(make);
    // One that comes while the driver sleeps.
    assert!(matches!(rig.driver.accept(), Accepted::Blocked));
    let address = rig.address;
    #[expect(clippy::disallowed_methods, reason = "connects while this thread waits")]
    let client = std::thread::spawn(move || TcpStream::connect(address).unwrap());
    rig.until(|told| *told == Completion::Acceptable);
    rig.accept();
    client.join().unwrap();
    for _ in 0..3 {
        let clients: Vec<_> = (0..20).map(|_| TcpStream::connect(rig.address).unwrap()).collect();
        let sockets: Vec<_> = clients.iter().map(|_| rig.accept()).collect();
        assert!(matches!(rig.driver.accept(), Accepted::Blocked));
        drop((clients, sockets));
    }
    rig.driver.close_listener();
    assert!(TcpStream::connect(rig.address).is_err());
}

fn what_is_read_ahead_is_read<D: Driver<Socket = OwnedFd>>(make: Make<D>) {
    let mut rig = Rig::new(make);
    let mut conns: Vec<_> = (0..5).map(|index| rig.connect(index)).collect();
    let long = vec![b'l'; 100_000];
    // Little, nothing, an end behind bytes, more than a buffer holds, a connection that is closed.
    conns[0].0.write_all(b"zero").unwrap();
    conns[2].0.write_all(b"two").unwrap();
    conns[2].0.shutdown(std::net::Shutdown::Write).unwrap();
    conns[4].0.write_all(b"four").unwrap();
    for index in [0, 2, 4] {
        rig.until_readable(key(index));
    }
    let mut client = conns[3].0.try_clone().unwrap();
    #[expect(clippy::disallowed_methods, reason = "writes more than the socket takes")]
    let writer = std::thread::spawn(move || client.write_all(&long).unwrap());
    rig.until_readable(key(3));
    let at_once = rig.driver.fetch_max();
    rig.driver.fetch(conns.iter().map(|(_, key, socket)| (*key, socket)));
    assert_eq!(rig.driver.fetch_max(), at_once, "buffers are lent");
    // Bytes that were fetched and not read stay; they are not fetched twice.
    rig.driver.fetch(conns.iter().map(|(_, key, socket)| (*key, socket)));

    let (_client, four, socket) = conns.pop().unwrap();
    rig.driver.close(four, socket, true);
    let (_client, three, socket) = conns.pop().unwrap();
    let mut got = Vec::new();
    while got.len() < 100_000 {
        let (bytes, short) = rig.recv(three, &socket).unwrap();
        got.extend(bytes);
        if short && got.len() < 100_000 {
            rig.until_readable(three);
        }
    }
    assert!(got.iter().all(|byte| *byte == b'l'));
    writer.join().unwrap();
    let (_client, two, socket) = conns.pop().unwrap();
    assert_eq!(rig.recv(two, &socket).unwrap().0, b"two");
    assert_eq!(rig.recv(two, &socket), None);
    let (_client, one, socket) = conns.pop().unwrap();
    assert_eq!(rig.recv(one, &socket), Some((Vec::new(), true)));
    let (mut client, zero, socket) = conns.pop().unwrap();
    client.write_all(b" and more").unwrap();
    rig.until_readable(zero);
    // In one piece or in two.
    let mut got = rig.recv(zero, &socket).unwrap().0;
    got.extend(rig.recv(zero, &socket).unwrap().0);
    assert_eq!(got, b"zero and more");
    // The slot of the one that was closed has another tenant.
    let (mut client, four, socket) = rig.connect(4);
    client.write_all(b"new").unwrap();
    rig.until_readable(four);
    rig.driver.fetch([(four, &socket)].into_iter());
    assert_eq!(rig.recv(four, &socket).unwrap().0, b"new");
}

fn what_was_read_ahead_hides_nothing_that_came_later<D: Driver<Socket = OwnedFd>>(make: Make<D>) {
    let mut rig = Rig::new(make);
    let (mut empty, empty_key, empty_socket) = rig.connect(0);
    let (mut more, more_key, more_socket) = rig.connect(1);
    more.write_all(b"some").unwrap();
    rig.until_readable(more_key);
    rig.driver.fetch([(empty_key, &empty_socket), (more_key, &more_socket)].into_iter());
    empty.write_all(b"now").unwrap();
    more.write_all(b"more").unwrap();
    rig.until_readable(empty_key);
    rig.until_readable(more_key);
    assert_eq!(rig.recv(empty_key, &empty_socket), Some((b"now".to_vec(), true)));
    let mut got = Vec::new();
    loop {
        let (bytes, short) = rig.recv(more_key, &more_socket).unwrap();
        got.extend(bytes);
        if short {
            break;
        }
    }
    assert_eq!(got, b"somemore");
}

fn a_full_socket_is_told_and_goes_on<D: Driver<Socket = OwnedFd>>(make: Make<D>) {
    let mut rig = Rig::new(make);
    let (mut full, full_key, full_socket) = rig.connect(0);
    let (mut other, other_key, other_socket) = rig.connect(1);
    let (gone, gone_key, gone_socket) = rig.connect(2);
    rig.driver.finish(gone_key, &gone_socket);
    let frames = [frame(b'a', 70_000), frame(b'b', 1), frame(b'c', 3_000_000)];
    let mut skip = 69_990;
    let mut first = 0;
    let mut written = 0;
    let mut sent = Vec::new();
    loop {
        let few = &frames[1..2];
        sent.clear();
        let writes = [
            Write { key: full_key, socket: &full_socket, frames: frames[first..].iter(), skip },
            Write { key: other_key, socket: &other_socket, frames: few.iter(), skip: 0 },
            Write { key: gone_key, socket: &gone_socket, frames: few.iter(), skip: 0 },
        ];
        rig.driver.send_all(writes.into_iter(), &mut sent);
        assert_eq!(sent[1..], [Sent::Bytes(1), Sent::Failed]);
        let Sent::Bytes(bytes) = sent[0] else { break };
        written += bytes;
        skip += bytes;
        while first < frames.len() && skip >= frames[first].len() {
            skip -= frames[first].len();
            first += 1;
        }
    }
    assert_eq!(sent[0], Sent::Blocked);
    assert!(written > 11, "the second and third frame have begun: {written}");
    let mut bytes = [0; 1];
    other.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, *b"b");

    let mut got = vec![0; written];
    full.read_exact(&mut got).unwrap();
    rig.until(|told| *told == Completion::Writable { key: full_key });
    let expected = || frames.iter().flat_map(|frame| frame.bytes()).skip(69_990);
    assert!(got.iter().eq(expected().take(written)), "bytes in order");
    let again = rig.driver.send(full_key, &full_socket, frames[first..].iter(), skip);
    assert!(matches!(again, Sent::Bytes(1..)), "{again:?}");
    drop(gone);
}

fn a_connection_goes_on_under_another_key<D: Driver<Socket = OwnedFd>>(make: Make<D>) {
    let mut rig = Rig::new(make);
    let (mut client, old, socket) = rig.connect(0);
    client.write_all(b"before").unwrap();
    rig.until_readable(old);
    rig.driver.fetch([(old, &socket)].into_iter());
    client.write_all(b"behind").unwrap();
    let new = ConnKey { generation: NonZeroU32::new(2).unwrap(), ..old };
    rig.driver.rename(old, new, &socket).unwrap();
    rig.told.clear();
    // Bytes read ahead are there, and newer ones are reported once more.
    assert_eq!(rig.recv_all(new, &socket, 12), b"beforebehind");
    rig.until(|told| *told == Completion::Writable { key: new });
    client.write_all(b"later").unwrap();
    assert_eq!(rig.recv_all(new, &socket, 5), b"later");
    drop(client);
    while !rig.until_readable(new) {}
    let of_old = |told: &Completion| match told {
        Completion::Readable { key, .. } | Completion::Writable { key } => *key == old,
        _ => false,
    };
    assert!(!rig.told.iter().any(of_old), "{:?}", rig.told);
    assert_eq!(rig.recv(new, &socket), None);
    rig.driver.close(new, socket, false);
}

fn shards_are_woken_and_pass_sockets<D: Driver<Socket = OwnedFd>>(make: Make<D>) {
    let mut rig = Rig::new(make);
    rig.switchboard.waker(ShardId(0)).wake();
    rig.until(|told| *told == Completion::Woken);
    let mut client = TcpStream::connect(rig.address).unwrap();
    let socket = rig.accept();
    assert!(rig.driver.pass(ShardId(0), socket).is_ok());
    rig.until(|told| *told == Completion::Passed);
    let socket = rig.driver.take_passed().unwrap();
    assert!(rig.driver.take_passed().is_none());
    rig.driver.watch(key(1), &socket).unwrap();
    client.write_all(b"x").unwrap();
    assert!(!rig.until_readable(key(1)));
    assert_eq!(rig.recv(key(1), &socket), Some((b"x".to_vec(), true)));
    drop(client);
    assert!(rig.until_readable(key(1)));
    assert_eq!(rig.recv(key(1), &socket), None);
}

fn the_other_end_is_known_until_it_is_reset<D: Driver<Socket = OwnedFd>>(make: Make<D>) {
    let mut rig = Rig::new(make);
    let (client, key, socket) = rig.connect(0);
    let address = client.local_addr().unwrap().ip();
    assert_eq!(rig.driver.peer(&socket), Some(Peer::Ip(address)));
    socket2::SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(client);
    assert!(rig.until_readable(key));
    assert_eq!(rig.driver.peer(&socket), None);
    let (_client, socket) = UnixStream::pair().unwrap();
    assert_eq!(rig.driver.peer(&socket.into()), Some(Peer::Unix));
}

fn connections_over_a_unix_socket_are_accepted<D: Driver<Socket = OwnedFd>>(make: Make<D>) {
    let name = std::any::type_name::<D>().rsplit(':').next().unwrap();
    let name = format!("roost-contract-{name}-{}", std::process::id());
    let path = std::env::temp_dir().join(name);
    let unix = UnixAddress { path: path.clone(), mode: 0o600 };
    let options = ListenOptions {
        addresses: vec![Address::Unix(unix)],
        backlog: 64,
        send_buffer_bytes: Some(4096),
        notsent_lowat_bytes: Some(4096),
        incoming_cpu: false,
    };
    let switchboard = Switchboard::new(2).unwrap();
    #[expect(clippy::disallowed_methods, reason = "the driver's zero of time")]
    let started = Instant::now();
    let listeners = listen(&options).unwrap();
    assert!(listen(&options).is_err(), "the file is there");
    let driver = make(ShardId(0), Arc::clone(&switchboard), listeners, started).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut rig = Rig { driver, address, switchboard, told: Vec::new() };
    let mut clients: Vec<_> = (0..20).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let sockets: Vec<_> = clients.iter().map(|_| rig.accept()).collect();
    assert!(matches!(rig.driver.accept(), Accepted::Blocked));
    assert_eq!(rig.driver.peer(&sockets[0]), Some(Peer::Unix));
    rig.driver.watch(key(7), &sockets[7]).unwrap();
    clients[7].write_all(b"seven").unwrap();
    rig.until_readable(key(7));
    assert_eq!(rig.recv(key(7), &sockets[7]), Some((b"seven".to_vec(), true)));
    assert_eq!(
        rig.driver.send(key(7), &sockets[7], [&frame(b'a', 9)].into_iter(), 0),
        Sent::Bytes(9)
    );
    let mut bytes = [0; 9];
    clients[7].read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [b'a'; 9]);
    drop(clients);
    rig.driver.close_listener();
    assert!(UnixStream::connect(&path).is_err());
    std::fs::remove_file(path).unwrap();
}

fn a_close_ends_a_connection_of_which_others_have_copies<D: Driver<Socket = OwnedFd>>(
    make: Make<D>,
) {
    let mut rig = Rig::new(make);
    rig.driver.share(true);
    let conns = [0, 1].map(|index| rig.connect(index));
    let copies: Vec<_> = conns.iter().map(|(_, _, socket)| socket.try_clone().unwrap()).collect();
    let [(mut gentle, zero, socket), (mut abrupt, one, other)] = conns;
    rig.driver.close(zero, socket, false);
    assert_eq!(gentle.read(&mut [0; 9]).unwrap(), 0);
    rig.driver.close(one, other, true);
    let fault = abrupt.read(&mut [0; 9]).unwrap_err();
    assert_eq!(fault.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!((rig.driver.take_closed(), rig.driver.take_closed()), (vec![zero, one], vec![]));
    drop(copies);
    rig.driver.share(false);
    let (mut client, key, socket) = rig.connect(2);
    rig.driver.close(key, socket, false);
    assert_eq!(client.read(&mut [0; 9]).unwrap(), 0);
    assert_eq!(rig.driver.take_closed(), []);
}

fn an_adopted_connection_reports_what_it_may_read_and_is_forgotten_with_a_copy_open<
    D: Driver<Socket = OwnedFd>,
>(
    make: Make<D>,
) {
    let mut rig = Rig::new(make);
    let conns = [0, 1].map(|index| {
        let (client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        let server: OwnedFd = server.into();
        rig.driver.adopt(key(index), &server).unwrap();
        (client, server)
    });
    let [(mut client, server), (mut other, gone)] = conns;
    client.write_all(b"early").unwrap();
    rig.driver.drain_adopted();
    other.write_all(b"early").unwrap();
    rig.driver.drain_adopted();
    let copy = gone.try_clone().unwrap();
    rig.driver.forget(key(1), Some(gone));
    other.write_all(b"late").unwrap();
    rig.switchboard.waker(ShardId(0)).wake();
    assert!(!rig.until_readable(key(0)));
    rig.until(|told| *told == Completion::Woken);
    // That they are writable was thrown away, and the other is unknown.
    let of_conns = |told: &Completion| {
        matches!(told, Completion::Writable { .. } | Completion::Readable { .. })
    };
    assert!(!rig.told.iter().any(of_conns), "{:?}", rig.told);
    assert_eq!(rig.recv(key(0), &server), Some((b"early".to_vec(), true)));
    drop(copy);
}

macro_rules! contract {
    ($($rule:ident)*) => {
        mod epoll {
            use super::*;
            $(#[test] fn $rule() { super::$rule(Epoll::new); })*
        }
        mod uring {
            use super::*;
            $(#[test] fn $rule() {
                match crate::io::uring::probe() {
                    Ok(()) => super::$rule(Uring::new),
                    Err(why) => eprintln!("skipped: {why}"),
                }
            })*
        }
    };
}

contract! {
    every_connection_is_accepted
    what_is_read_ahead_is_read
    what_was_read_ahead_hides_nothing_that_came_later
    a_full_socket_is_told_and_goes_on
    a_connection_goes_on_under_another_key
    shards_are_woken_and_pass_sockets
    the_other_end_is_known_until_it_is_reset
    connections_over_a_unix_socket_are_accepted
    a_close_ends_a_connection_of_which_others_have_copies
    an_adopted_connection_reports_what_it_may_read_and_is_forgotten_with_a_copy_open
}
