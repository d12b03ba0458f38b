//! The byte form of connections: records with their generations, send queues, unfinished input, addresses,
//! and requests that wait. Sockets go beside it, by slot; timers are set anew from the deadlines.

use std::num::NonZeroU32;
use std::sync::atomic::Ordering;

use zeroize::Zeroize as _;

use super::Net;
use super::places::Replaceable;
use super::queue::SendQueue;
use super::record::{Conn, Flags, NONE, Phase, Rx};
use crate::base::filling::Filling;
use crate::base::form::Form;
use crate::base::id::ConnKey;
use crate::base::image::{Broken, Durable, ImageReader, ImageWriter, Slots, durable, kind};
use crate::base::rng::Rng;
use crate::io::Driver;
use crate::shard::context::Cx;
use crate::shard::http::bodies::Incoming;
use crate::shard::http::{Poll, UnsentHead};
use crate::shard::mail::emulation::Emulated;

/// A connection's record, without what is made anew: links, timer, places of queue and input.
struct ConnImage {
    generation: NonZeroU32,
    since_tick: u32,
    session: Option<u32>,
    phase: Phase,
    form: Form,
    flags: Flags,
    /// Its commands wait for an answer: they are handled once more.
    waits: bool,
}

durable!(ConnImage { generation, session, phase, form, flags, waits } ticks { since_tick });

/// Unfinished input of a connection.
struct RxImage {
    reader: crate::proto::ws::Reader,
    commands: Vec<u8>,
    raw: Vec<u8>,
    incoming: Option<Box<Incoming>>,
    emulated: std::collections::VecDeque<Emulated>,
}

durable!(RxImage { reader, commands, raw, incoming, emulated });

impl From<Box<Rx>> for RxImage {
    fn from(rx: Box<Rx>) -> Self {
        // A head is searched again from its beginning; requests of the up-link are answered.
        let Rx {
            mut reader,
            mut commands,
            commands_at,
            raw,
            scanned: _,
            incoming,
            emulated,
            waiting: _,
        } = *rx;
        reader.take_back();
        commands.drain(..commands_at.min(commands.len()));
        Self { reader, commands, raw, incoming, emulated }
    }
}

impl From<RxImage> for Rx {
    fn from(image: RxImage) -> Self {
        let RxImage { reader, commands, raw, incoming, emulated } = image;
        Self { reader, commands, raw, incoming, emulated, ..Self::default() }
    }
}

impl<D: Driver> Net<D> {
    /// Writes which connections there are. The end of their table.
    pub(crate) fn write_head(&self, out: &mut ImageWriter) -> usize {
        out.record(kind::NET, |out| {
            out.field(&self.next_generation);
            out.field(&Slots::of(self.conns.iter().map(|(at, _)| at)));
            out.field(&self.replaceable.order());
        });
        if self.conns.is_empty() { 0 } else { self.slots_last() + 1 }
    }

    /// Writes the connection of a slot, if it has changed since it was written, and keeps what it is written from.
    pub(crate) fn write_conn(&mut self, out: &mut ImageWriter, index: u32, before: &mut u64) {
        let Self { conns, queues, driver, .. } = self;
        let Some(conn) = conns.get_mut(index as usize) else { return };
        out.unit(before, |out| {
            out.record(kind::CONN, |out| {
                out.field(&index);
                out.field(&image_of(conn));
            });
            if let Some(queue) = queues.get(conn.queue)
                && !queue.is_empty()
            {
                out.record(kind::QUEUE, |out| {
                    out.field(&index);
                    out.field(queue);
                });
            }
            if let Some(rx) = conn.rx.take() {
                let image = RxImage::from(rx);
                out.record(kind::INPUT, |out| {
                    out.field(&index);
                    out.field(&image);
                });
                conn.rx = Some(Box::new(Rx::from(image)));
            }
            if let Some(mut packed) = driver.pack(conn.key(index)) {
                out.record(kind::TLS, |out| {
                    out.field(&index);
                    out.field(&packed);
                });
                packed.zeroize();
            }
        });
    }

    /// Whether the connection of a slot can be written while its shard runs: it is in the middle of nothing. What
    /// was read of one and isn't handled changes when it is written.
    pub(crate) fn is_writable(&self, index: u32) -> bool {
        self.conns.get(index as usize).is_some_and(|conn| {
            conn.rx.is_none()
                && !matches!(conn.phase, Phase::Leaving | Phase::Asked)
                && !conn.flags.sending()
                && !conn.flags.held()
        })
    }

    /// Writes what is small, once all connections are written.
    pub(crate) fn write_rest(&self, out: &mut ImageWriter) {
        self.addresses.write_image(out);
        for (index, poll) in &self.http.polls {
            out.record(kind::POLL, |out| {
                out.field(index);
                out.field(poll);
            });
        }
        for (index, head) in &self.http.heads {
            out.record(kind::HEAD, |out| {
                out.field(index);
                out.field(head);
            });
        }
    }

    /// The connection of a slot, if it has a socket.
    pub(crate) fn key_at(&self, index: u32) -> Option<ConnKey> {
        let conn = self.conns.get(index as usize).filter(|conn| conn.socket.is_some())?;
        Some(conn.key(index))
    }

    /// The socket of a connection.
    pub(crate) fn socket(&self, key: ConnKey) -> Option<&D::Socket> {
        let conn = self.conns.get(key.index as usize)?;
        conn.socket.as_ref().filter(|_| conn.generation == key.generation)
    }

    /// The sockets of all connections, by their keys.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = (ConnKey, &D::Socket)> {
        let each = self.conns.iter();
        each.filter_map(|(index, conn)| Some((conn.key(index as u32), conn.socket.as_ref()?)))
    }

    /// The same, and the connections end without them.
    pub(crate) fn into_sockets(self) -> Vec<(ConnKey, D::Socket)> {
        let Self { mut conns, .. } = self;
        let each = conns.iter_mut();
        each.filter_map(|(index, conn)| Some((conn.key(index as u32), conn.socket.take()?)))
            .collect()
    }

    /// What keeps this group from being written. Looks at every connection.
    pub(crate) fn unsettled(&self) -> [(&'static str, usize); 10] {
        let count = |is: fn(&Conn<D::Socket>) -> bool| {
            self.conns.iter().filter(|(_, conn)| is(conn)).count()
        };
        [
            ("leaving connections", self.leaving_count as usize),
            ("frames held for a reply", self.held.len()),
            ("connections to write", self.dirty.len()),
            ("requests just answered", self.http.answered.len()),
            ("consequences of requests", self.effects.len()),
            ("TLS handshakes", self.driver.unpackable().len()),
            ("sends under way", count(|conn| conn.flags.sending())),
            ("TLS sends under way", self.driver.own_sends()),
            ("requests not answered", count(|conn| conn.phase == Phase::Asked)),
            ("polls", self.http.polls.values().filter(|poll| poll.has_begun()).count()),
        ]
    }
}

fn image_of<S>(conn: &Conn<S>) -> ConnImage {
    let Conn { generation, since_tick, session, phase, form, mut flags, waits, .. } = *conn;
    // Lists of a turn, and what is found out by a write.
    flags.set_dirty(false);
    flags.set_blocked(false);
    flags.set_waiting(false);
    ConnImage {
        generation,
        since_tick,
        session: Some(session).filter(|session| *session != NONE),
        phase,
        form,
        flags,
        waits: waits.is_some(),
    }
}

/// Connections that are read from an image. Sockets and records come in any order; a connection of which only
/// one of both has come is [`Phase::Leaving`].
pub(crate) struct NetReader<D: Driver> {
    slots: Option<Slots>,
    conns: Filling<Conn<D::Socket>>,
    /// The connection whose record came last: those of its parts follow.
    last: Option<ConnKey>,
    net: Net<D>,
}

/// No connection, in a table that is filled.
fn placeholder<S>() -> Conn<S> {
    let conn = Conn::new(None, NonZeroU32::MIN, 0);
    Conn { phase: Phase::Leaving, ..conn }
}

impl<D: Driver> NetReader<D> {
    /// No connections.
    pub(crate) fn new(cx: &Cx, driver: D, rng: Rng) -> Self {
        let mut net = Net::new(cx, driver, rng);
        let conns = Filling::new(cx.node.options.slots_max(), placeholder);
        // It gets that table in the end.
        net.conns = slab::Slab::new();
        Self { slots: None, conns, last: None, net }
    }

    /// Takes the socket of a connection, and has the driver watch it.
    pub(crate) fn socket(
        &mut self,
        cx: &Cx,
        key: ConnKey,
        socket: D::Socket,
    ) -> Result<(), Broken> {
        let at = key.index as usize;
        if at >= cx.node.options.slots_max() {
            return Err(Broken::Value("more connections than the options allow"));
        }
        if self.net.driver.adopt(key, &socket).is_err() {
            return Err(Broken::Value("a socket that can't be watched"));
        }
        match self.conns.get_mut(at) {
            Some(conn) if conn.generation == key.generation => match conn.socket {
                Some(_) => return Err(Broken::Value("a second socket")),
                None => conn.socket = Some(socket),
            },
            _ => {
                self.remove(at);
                let conn = Conn::new(Some(socket), key.generation, 0);
                self.conns.put(at, Conn { phase: Phase::Leaving, ..conn });
            }
        }
        Ok(())
    }

    /// A connection has ended meanwhile.
    pub(crate) fn gone(&mut self, key: ConnKey) {
        let at = key.index as usize;
        if self.conns.get_mut(at).is_some_and(|conn| conn.generation == key.generation) {
            self.remove(at);
        }
    }

    /// What was reported of sockets so far.
    pub(crate) fn drain_driver(&mut self) {
        self.net.driver.drain_adopted();
    }

    /// Removes what has come for a slot.
    fn remove(&mut self, at: usize) {
        if let Some(mut conn) = self.conns.take(at) {
            self.net.queues.release(&mut conn.queue);
            self.net.driver.forget(conn.key(at as u32), conn.socket.take());
        }
    }

    /// Reads a record, if it is of this group. Those of a connection follow its own.
    pub(crate) fn record(
        &mut self,
        cx: &Cx,
        found: u8,
        from: &mut ImageReader<'_>,
    ) -> Result<bool, Broken> {
        match (found, self.slots.is_some()) {
            (kind::NET, _) => {
                self.net.next_generation = from.field("Net.next_generation")?;
                self.slots = Some(from.field("Net.slots")?);
                let replaceable: Vec<u32> = from.field("Net.replaceable")?;
                self.net.replaceable = Replaceable::default();
                replaceable.into_iter().for_each(|index| self.net.replaceable.insert(index));
            }
            (kind::CONN, true) => self.conn(from)?,
            (kind::QUEUE, true) => {
                let conn = last_conn(&mut self.conns, self.last, from)?;
                let queue: SendQueue = SendQueue::read(from)?;
                if conn.queue != NONE || queue.is_empty() {
                    return Err(from.misplaced());
                }
                conn.queue = self.net.queues.put(queue);
            }
            (kind::INPUT, true) => {
                let conn = last_conn(&mut self.conns, self.last, from)?;
                let rx = Rx::from(RxImage::read(from)?);
                let endpoints = cx.node.options.endpoints.len();
                let endpoint = rx.incoming.as_ref().and_then(|incoming| incoming.endpoint());
                if conn.rx.is_some() || endpoint.is_some_and(|at| at >= endpoints) {
                    return Err(from.misplaced());
                }
                if let Some((room, bytes)) = rx.incoming.as_ref().map(|of| of.counted()) {
                    self.net.http.bodies.add(room, bytes);
                }
                conn.rx = Some(Box::new(rx));
            }
            (kind::TLS, true) => self.tls(from)?,
            (kind::ADDRESS, true) => self.net.addresses.read(cx, from)?,
            (kind::POLL, true) => {
                let (index, poll) = (u32::read(from)?, Poll::read(from)?);
                self.net.http.polls.insert(index, Box::new(poll));
            }
            (kind::HEAD, true) => {
                let (index, head) = (u32::read(from)?, UnsentHead::read(from)?);
                self.net.http.heads.insert(index, head);
            }
            (
                kind::CONN
                | kind::QUEUE
                | kind::INPUT
                | kind::TLS
                | kind::ADDRESS
                | kind::POLL
                | kind::HEAD,
                _,
            ) => return Err(from.misplaced()),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn tls(&mut self, from: &mut ImageReader<'_>) -> Result<(), Broken> {
        let index = u32::read(from)?;
        let key = self.last.filter(|key| key.index == index).ok_or_else(|| from.misplaced())?;
        let mut packed: Vec<u8> = Vec::read(from)?;
        let is_sound = self.net.driver.unpack(key, &packed);
        packed.zeroize();
        if is_sound { Ok(()) } else { Err(Broken::Value("the TLS of a connection")) }
    }

    /// Reads the record of a connection: what has come for its slot before counts no more, but for the socket of
    /// the same connection.
    fn conn(&mut self, from: &mut ImageReader<'_>) -> Result<(), Broken> {
        let index = u32::read(from)?;
        let slots = self.slots.as_ref().ok_or(Broken::Short)?;
        if index as usize >= slots.bound() {
            return Err(Broken::Value("a slot"));
        }
        let image = ConnImage::read(from)?;
        let ConnImage { generation, since_tick, session, phase, form, mut flags, waits } = image;
        let key = ConnKey { index, generation };
        if phase == Phase::Leaving || flags.sending() || flags.held() {
            return Err(Broken::Value("a connection"));
        }
        if waits {
            flags.set_paused(false);
            flags.set_ready(true);
        }
        let before = self.conns.get_mut(index as usize);
        let mut socket = None;
        match before {
            Some(conn) if conn.generation == generation => {
                if conn.rx.is_some() {
                    return Err(from.misplaced());
                }
                socket = conn.socket.take();
                self.net.queues.release(&mut conn.queue);
                self.net.driver.forget(key, None);
            }
            _ => self.remove(index as usize),
        }
        let conn = Conn::new(socket, generation, since_tick);
        let session = session.unwrap_or(NONE);
        self.conns.put(index as usize, Conn { session, phase, form, flags, ..conn });
        self.last = Some(key);
        Ok(())
    }

    /// All of them. What waits for them is tried to be written.
    pub(crate) fn end(mut self, cx: &Cx) -> Result<Net<D>, Broken> {
        let slots = self.slots.take().ok_or(Broken::Value("a shard without connections"))?;
        let gone: Vec<usize> = self.conns.beside(&slots).collect();
        gone.into_iter().for_each(|at| self.remove(at));
        let Self { conns, mut net, .. } = self;
        net.conns = conns.end(&slots)?;
        let open = net.conns.len();
        if net.slots_last() >= cx.node.options.slots_max() {
            return Err(Broken::Value("more connections than the options allow"));
        }
        let counters = cx.counters();
        counters.connections_open.add(open as u64);
        cx.node.open[cx.id.index()].fetch_add(open as u32, Ordering::Relaxed);
        let (mut listed, mut ready, mut clients) = (Vec::new(), Vec::new(), 0);
        let awaits_header = |index: u32| net.addresses.awaits_header(index);
        for (index, conn) in &mut net.conns {
            let key = conn.key(index as u32);
            if conn.phase == Phase::Leaving {
                return Err(Broken::Value("a socket without a connection"));
            }
            if conn.socket.is_none() {
                return Err(Broken::Value("a connection's socket"));
            }
            if conn.flags.counted() {
                counters.clients(conn.form.transport()).add(1);
                clients += 1;
            }
            if conn.flags.ready() {
                conn.flags.set_ready(false);
                ready.push(key);
            }
            let waits = conn.queue != NONE || conn.phase == Phase::Lingering;
            if waits || awaits_header(key.index) {
                listed.push((key, waits));
            }
        }
        cx.node.clients.fetch_add(clients, Ordering::Relaxed);
        for (key, waits) in listed {
            let Net { driver, conns, addresses, .. } = &mut net;
            if addresses.awaits_header(key.index) {
                let conn = conns.get(key.index as usize);
                let seen = conn.and_then(|conn| conn.rx.as_ref()).map_or(&[][..], |rx| &rx.raw);
                driver.expect_proxy_header(key, seen);
            }
            if waits {
                net.mark_dirty(key);
            }
        }
        ready.into_iter().for_each(|key| net.mark_ready(key));
        (net.acceptable, net.passed) = (true, true);
        Ok(net)
    }
}

/// The connection whose record came last: the one that a record of its parts names.
fn last_conn<'a, S>(
    conns: &'a mut Filling<Conn<S>>,
    last: Option<ConnKey>,
    from: &mut ImageReader<'_>,
) -> Result<&'a mut Conn<S>, Broken> {
    let index = u32::read(from)?;
    let last = last.filter(|key| key.index == index).ok_or_else(|| from.misplaced())?;
    conns.get_mut(last.index as usize).ok_or_else(|| from.misplaced())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::frame::SharedFrame;
    use crate::base::id::ShardId;
    use crate::base::time::Millis;
    use crate::io::sim::{LinkId, SimDriver};
    use crate::shard::fixture::{Plan, Wired};

    /// Writes the connections and reads them again, by a clock that is ahead.
    fn replace(of: &mut Wired, ahead: u64) -> (Vec<u8>, Result<(), Broken>) {
        let mut out = ImageWriter::new(of.cx.now);
        for index in 0..of.net.write_head(&mut out) as u32 {
            of.net.write_conn(&mut out, index, &mut 0);
        }
        of.net.write_rest(&mut out);
        let sockets: Vec<ConnKey> = of.net.sockets().map(|(key, _)| key).collect();
        let sockets = sockets.into_iter().filter_map(|key| {
            let conn = of.net.conns.get_mut(key.index as usize)?;
            Some((key, conn.socket.take()?))
        });
        let sockets: Vec<_> = sockets.collect();
        let image = out.finish();
        of.cx.node.open[0].store(0, Ordering::Relaxed);
        of.cx.now = of.cx.now.after(ahead);
        let clock = of.cx.now.0 as i64 - of.world.borrow().now().0 as i64;
        let driver = SimDriver::with_clock(&of.world, ShardId(0), clock);
        let mut reader = NetReader::new(&of.cx, driver, Rng::new(3));
        for (key, socket) in sockets {
            reader.socket(&of.cx, key, socket).unwrap();
        }
        let mut from = ImageReader::new(&image, of.cx.now).unwrap();
        while let Some(found) = from.next_record().unwrap() {
            match reader.record(&of.cx, found, &mut from) {
                Ok(taken) => assert!(taken),
                Err(broken) => return (image, Err(broken)),
            }
        }
        match reader.end(&of.cx) {
            Ok(net) => of.net = net,
            Err(broken) => return (image, Err(broken)),
        }
        (image, Ok(()))
    }

    fn frame_for(of: &mut Wired, links: &[(LinkId, ConnKey)], bytes: &[u8]) {
        let frame = SharedFrame::new(bytes);
        for (_, key) in links {
            of.net.enqueue(&of.cx, key.index, frame.clone());
        }
    }

    #[test]
    fn connections_go_on_with_their_queues_and_halves() {
        let mut of = Wired::new(Plan::default());
        let clients: Vec<_> = (0..4).map(|_| of.connect_client()).collect();
        let (half, key) = of.connect();
        of.request(key, "GET / HT");
        // More than their sockets take: the frame is in the image once.
        frame_for(&mut of, &clients, &[b'x'; 10_000]);
        of.flush();
        of.net.dirty.clear();
        let (image, thawed) = replace(&mut of, 1_000_000);
        thawed.unwrap();
        assert!(image.len() < 10_600, "{}", image.len());
        assert_eq!(of.net.conns[key.index as usize].rx.as_ref().unwrap().raw, b"GET / HT");
        assert_eq!(of.net.conns[key.index as usize].key(key.index), key);
        let clock = of.cx.now.0 - of.world.borrow().now().0;
        for (link, _) in &clients {
            let mut got = 0;
            for _ in 0..9 {
                of.flush();
                let now = of.world.borrow().now().after(1);
                of.world.borrow_mut().advance_to(now);
                of.cx.now = Millis(now.0 + clock);
                got += of.world.borrow_mut().read(*link, usize::MAX).len();
                let keys: Vec<ConnKey> = clients.iter().map(|(_, key)| *key).collect();
                for key in keys {
                    if let Some(conn) = of.net.conn(key) {
                        conn.flags.set_blocked(false);
                    }
                    of.net.mark_dirty(key);
                }
            }
            assert_eq!(got, 10_000);
        }
        assert!(of.world.borrow().is_held(half));
        // The next tenant has a generation that none had.
        let before: Vec<_> = of.net.conns.iter().map(|(_, conn)| conn.generation).collect();
        let (_, key) = of.connect();
        assert!(before.iter().all(|generation| *generation < key.generation));
    }

    #[test]
    fn deadlines_keep_their_distance() {
        let mut of = Wired::new(Plan::default());
        let (_, key) = of.connect();
        of.after(300);
        let left = |of: &Wired| {
            let deadline = of.net.deadline(&of.cx, key.index, None).unwrap();
            u64::from(deadline) * 100 - of.cx.now.0 / 100 * 100
        };
        let before = left(&of);
        replace(&mut of, 70_000).1.unwrap();
        assert_eq!(left(&of), before);
    }

    #[test]
    fn what_can_not_be_is_refused() {
        let mut of = Wired::new(Plan::default());
        let (_, key) = of.connect();
        of.net.conns[key.index as usize].phase = Phase::Leaving;
        assert_eq!(replace(&mut of, 0).1, Err(Broken::Value("a connection")));
        let mut of = Wired::new(Plan::default());
        of.connect();
        of.net.conns[0].socket = None;
        assert_eq!(replace(&mut of, 0).1, Err(Broken::Value("a connection's socket")));
    }
}
