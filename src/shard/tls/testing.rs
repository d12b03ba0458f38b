//! A shard's driver with TLS on simulated sockets, and clients of it.

use std::num::NonZeroU32;

use super::Secured;
use crate::base::frame::SharedFrame;
use crate::base::id::{ConnKey, ShardId};
use crate::io::sim::{Faults, LinkId, SharedWorld, SimDriver, Sizes, Socket, World};
use crate::io::{Accepted, Completion, Driver, Received, Sent};
use crate::proto::tls::Suite;
use crate::proto::tls::simulated::{Client, Simulated};
use crate::shard::fixture::Plan;
use crate::shard::stats::ShardCounters;

/// The suite of tests that need no other.
pub(super) const SUITE: Suite = Suite::Tls13Aes128Gcm;

/// The driver, and the world that it is in.
pub(super) struct Rig {
    pub(super) driver: Secured<SimDriver>,
    pub(super) world: SharedWorld,
    next: u32,
}

/// A connection at both ends.
pub(super) struct Conn {
    pub(super) key: ConnKey,
    pub(super) socket: Socket,
    pub(super) link: LinkId,
    pub(super) client: Client,
}

impl Rig {
    /// Sockets that hold so many bytes.
    pub(super) fn new(pipe_bytes: usize) -> Self {
        let sizes =
            Sizes { shards: 1, pipe_bytes, read_buffer_bytes: 65_536, passing: 1, events: 100_000 };
        let world = World::new(1, sizes, Faults::NONE);
        let node = Plan { shards: 1, tls: Some(Simulated::settings()), ..Plan::default() }.node();
        let driver = Secured::new(SimDriver::new(&world, ShardId(0)), &node, ShardId(0));
        Self { driver, world, next: 0 }
    }

    pub(super) fn counters(&self) -> &ShardCounters {
        self.driver.tls.as_ref().unwrap().counters()
    }

    /// A client connects; its hello isn't sent.
    pub(super) fn connect(&mut self, suite: Suite) -> Conn {
        let link = self.world.borrow_mut().connect_to(ShardId(0));
        let Accepted::Socket(socket) = self.driver.accept() else { panic!("a connection waits") };
        let key = ConnKey { index: self.next, generation: NonZeroU32::MIN };
        self.next += 1;
        self.driver.watch(key, &socket).unwrap();
        let client = Client::new(suite, u64::from(self.next), 20);
        Conn { key, socket, link, client }
    }

    /// The same, and its handshake is done.
    pub(super) fn open(&mut self, suite: Suite) -> Conn {
        let mut conn = self.connect(suite);
        for _ in 0..3 {
            self.turn();
            self.up(&mut conn);
            assert!(self.read(&conn).is_empty());
            self.down(&mut conn);
        }
        assert!(conn.client.is_open());
        conn
    }

    /// What the client has to send travels.
    pub(super) fn up(&mut self, conn: &mut Conn) {
        let out = conn.client.out();
        let taken = self.world.borrow_mut().write(conn.link, out);
        out.drain(..taken);
    }

    /// What has come to the client is handled.
    pub(super) fn down(&mut self, conn: &mut Conn) {
        let bytes = self.world.borrow_mut().read(conn.link, usize::MAX);
        conn.client.feed(&bytes);
    }

    /// Time passes.
    pub(super) fn advance(&mut self, ms: u64) {
        let now = self.driver.now();
        self.world.borrow_mut().advance_to(now.after(ms));
        self.turn();
    }

    /// A wait of the shard's.
    pub(super) fn turn(&mut self) -> Vec<Completion> {
        let mut completions = Vec::new();
        let now = self.driver.now();
        self.driver.wait(Some(now), &mut completions);
        completions
    }

    /// One read.
    pub(super) fn recv(&mut self, conn: &Conn) -> Result<Vec<u8>, &'static str> {
        match self.driver.recv(conn.key, &conn.socket, 65_536) {
            Received::Bytes { lease, .. } => {
                let bytes = lease.to_vec();
                self.driver.give_back(lease);
                Ok(bytes)
            }
            Received::Blocked => Err("blocked"),
            Received::Taken => Err("taken"),
            Received::Ended => Err("ended"),
            Received::Failed => Err("failed"),
            Received::Refused => Err("refused"),
        }
    }

    /// All that can be read.
    pub(super) fn read(&mut self, conn: &Conn) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            match self.recv(conn) {
                Ok(bytes) => all.extend(bytes),
                Err("taken") => {}
                Err(end) => {
                    assert_eq!(end, "blocked");
                    return all;
                }
            }
        }
    }

    pub(super) fn send(&mut self, conn: &Conn, frames: &[&[u8]], skip: usize) -> Sent {
        let frames: Vec<SharedFrame> = frames.iter().map(|frame| SharedFrame::new(frame)).collect();
        self.driver.send(conn.key, &conn.socket, frames.iter(), skip)
    }

    /// Sends all of these frames, while the client reads. Returns how often the socket was full.
    pub(super) fn send_and_read(&mut self, conn: &mut Conn, frames: &[&[u8]]) -> usize {
        let all = frames.concat();
        let (mut sent, mut blocked) = (0, 0);
        while sent < all.len() {
            match self.send(conn, &[&all], sent) {
                Sent::Bytes(bytes) => sent += bytes,
                Sent::Blocked => {
                    blocked += 1;
                    self.down(conn);
                    self.turn();
                }
                other => panic!("{other:?}"),
            }
        }
        self.down(conn);
        blocked
    }
}
