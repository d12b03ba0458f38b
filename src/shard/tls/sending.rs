//! Sending: frames are sealed when they are sent, many connections in one batch. What a socket doesn't take is
//! the tail, which goes first, unchanged.

use std::iter;

use super::conns::{Early, NOBODY, Notes, Refused, Tls};
use crate::base::id::ConnKey;
use crate::base::limits::{SENDS_MAX, TLS_SEALED_BYTES_MAX};
use crate::io::{Driver, Piece, Sent, Write};
use crate::proto::tls::{Sealed, Unsealed};

/// The outcome of sending a tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flushed {
    /// Nothing is left.
    All,
    /// Something is left, of which the socket has taken some.
    Some,
    /// The socket takes nothing.
    Nothing,
    /// The connection is broken.
    Broken,
}

/// Frames of a connection as far as they are sealed at once. The end of each is noted.
struct Pieces<'e, I> {
    frames: I,
    skip: usize,
    bytes: usize,
    ends: &'e mut Vec<usize>,
}

impl<'f, P: Piece + ?Sized + 'f, I: Iterator<Item = &'f P>> Iterator for Pieces<'_, I> {
    type Item = &'f [u8];

    fn next(&mut self) -> Option<&'f [u8]> {
        let left = TLS_SEALED_BYTES_MAX - self.bytes;
        if left == 0 {
            return None;
        }
        let frame = self.frames.next()?.bytes();
        let piece = frame.get(std::mem::take(&mut self.skip)..).unwrap_or_default();
        let piece = &piece[..piece.len().min(left)];
        self.bytes += piece.len();
        self.ends.push(self.bytes);
        Some(piece)
    }
}

/// Sealed bytes of a connection, which are to be sent.
struct Sealing {
    key: ConnKey,
    sealed: Sealed,
    /// Whether the sealed plain text ends with a piece of at least two bytes, so that one can be withheld and the
    /// frame has still begun to go.
    can_withhold: bool,
}

/// One of the connections of a batch.
struct Batched<'a, S> {
    sealing: Sealing,
    socket: &'a S,
    /// Its place among the results.
    at: usize,
}

impl Tls {
    /// Writes frames without the first `skip` bytes.
    pub(super) fn send<'f, D: Driver, P: Piece + ?Sized + 'f>(
        &mut self,
        inner: &mut D,
        key: ConnKey,
        socket: &D::Socket,
        frames: impl ExactSizeIterator<Item = &'f P>,
        skip: usize,
    ) -> Sent {
        self.batch.clear();
        self.send_one(inner, key, socket, frames, skip)
    }

    fn send_one<'f, D: Driver, P: Piece + ?Sized + 'f>(
        &mut self,
        inner: &mut D,
        key: ConnKey,
        socket: &D::Socket,
        frames: impl ExactSizeIterator<Item = &'f P>,
        skip: usize,
    ) -> Sent {
        if key.index == NOBODY || !self.is_open(key.index) {
            // Without keys nothing can be said, and nobody waits for it: the connection is being ended.
            let bytes: usize = frames.map(|frame| frame.bytes().len()).sum();
            return Sent::Bytes(bytes - skip);
        }
        match self.flush(inner, key, socket) {
            Flushed::All => {}
            // The time of a socket that takes nothing begins anew.
            Flushed::Some => return Sent::Bytes(0),
            Flushed::Nothing => return Sent::Blocked,
            Flushed::Broken => return Sent::Failed,
        }
        match self.seal(key, frames, skip) {
            Err(result) => result,
            Ok(sealing) => {
                let bytes = self.batch.bytes(&sealing.sealed);
                let sent = inner.send(key, socket, iter::once(bytes), 0);
                let result = self.count(&sealing, sent);
                // An answer of the record layer may follow.
                if self.has_tail(key.index) && sent == Sent::Bytes(self.sealed_bytes(&sealing)) {
                    self.flush(inner, key, socket);
                }
                result
            }
        }
    }

    fn sealed_bytes(&self, sealing: &Sealing) -> usize {
        self.batch.bytes(&sealing.sealed).len()
    }

    /// The same for many connections: all are sealed, then sent.
    pub(super) fn send_all<'a, D: Driver, P, F>(
        &mut self,
        inner: &mut D,
        writes: impl Iterator<Item = Write<'a, D::Socket, F>>,
        sent: &mut Vec<Sent>,
    ) where
        P: Piece + ?Sized + 'a,
        F: ExactSizeIterator<Item = &'a P>,
        D::Socket: 'a,
    {
        self.batch.clear();
        let mut batched: Vec<Batched<'a, D::Socket>> = Vec::with_capacity(SENDS_MAX);
        for Write { key, socket, frames, skip } in writes {
            let at = sent.len();
            sent.push(Sent::Blocked);
            if self.batch.is_full() || batched.len() == SENDS_MAX {
                self.send_batch(inner, &mut batched, sent);
            }
            let is_idle = self.records(key.index).is_some_and(|records| records.is_idle());
            if !is_idle {
                sent[at] = self.send_one(inner, key, socket, frames, skip);
                continue;
            }
            match self.seal(key, frames, skip) {
                Ok(sealing) => batched.push(Batched { sealing, socket, at }),
                Err(result) => sent[at] = result,
            }
        }
        self.send_batch(inner, &mut batched, sent);
    }

    fn send_batch<D: Driver>(
        &mut self,
        inner: &mut D,
        batched: &mut Vec<Batched<'_, D::Socket>>,
        sent: &mut [Sent],
    ) {
        let mut results = std::mem::take(&mut self.results);
        let batch = &self.batch;
        let writes = batched.iter().map(|Batched { sealing, socket, .. }| Write {
            key: sealing.key,
            socket: *socket,
            frames: iter::once(batch.bytes(&sealing.sealed)),
            skip: 0,
        });
        inner.send_all(writes, &mut results);
        for (Batched { sealing, at, socket }, result) in batched.drain(..).zip(results.drain(..)) {
            sent[at] = self.count(&sealing, result);
            if result == Sent::Bytes(self.sealed_bytes(&sealing))
                && self.has_tail(sealing.key.index)
            {
                self.flush(inner, sealing.key, socket);
            }
        }
        self.results = results;
        self.batch.clear();
    }

    /// Seals the begin of a connection's frames into the batch.
    ///
    /// # Errors
    /// There is nothing to be sent, or nothing can be.
    fn seal<'f, P: Piece + ?Sized + 'f>(
        &mut self,
        key: ConnKey,
        frames: impl Iterator<Item = &'f P>,
        skip: usize,
    ) -> Result<Sealing, Sent> {
        let withheld = self.notes(key.index).withheld;
        let skip = skip + usize::from(withheld);
        let mut ends = std::mem::take(&mut self.ends);
        ends.clear();
        self.batch_used = true;
        let Some((mut records, batch)) = self.records_and_batch(key.index) else {
            return Err(Sent::Failed);
        };
        let sealed = batch.seal(&mut records, Pieces { frames, skip, bytes: 0, ends: &mut ends });
        let is_worn = records.is_worn();
        let result = match sealed {
            Ok(sealed) if !sealed.is_empty() => {
                let plain = sealed.plain;
                let begin = ends.iter().rev().find(|end| **end < plain).copied().unwrap_or(0);
                Ok(Sealing { key, sealed, can_withhold: plain >= begin + 2 })
            }
            // What was left of the frames was the withheld byte.
            Ok(_) if withheld => {
                self.set_notes(key.index, Notes { withheld: false, ..self.notes(key.index) });
                Err(Sent::Bytes(1))
            }
            Err(Unsealed::TailFirst) => Err(Sent::Bytes(0)),
            // The key has sealed as much as it may, or the library fails.
            Ok(_) | Err(_) => Err(Sent::Failed),
        };
        self.ends = ends;
        if is_worn && !self.worn.contains(&key) {
            self.worn.push(key);
        }
        result
    }

    /// Counts what the driver has taken of sealed bytes; the rest is the tail. Returns what is sent for the shard.
    fn count(&mut self, sealing: &Sealing, sent: Sent) -> Sent {
        let Sealing { key, sealed, can_withhold } = sealing;
        let index = key.index;
        let before = self.notes(index);
        let length = self.batch.bytes(sealed).len();
        let taken = if let Sent::Bytes(taken) = sent { taken.min(length) } else { 0 };
        let rest_is_sent = taken == length;
        if let Some((mut records, batch)) = self.records_and_batch(index) {
            records.sent(batch.bytes(sealed), taken);
        }
        if sent == Sent::Failed {
            return Sent::Failed;
        }
        let withheld = !rest_is_sent && *can_withhold;
        let in_flight = sent == Sent::Pending;
        self.set_notes(index, Notes { withheld, in_flight, ..before });
        Sent::Bytes(usize::from(before.withheld) + sealed.plain - usize::from(withheld))
    }

    /// Sends the tail of a connection, and the FIN if it follows.
    pub(super) fn flush<D: Driver>(
        &mut self,
        inner: &mut D,
        key: ConnKey,
        socket: &D::Socket,
    ) -> Flushed {
        let mut notes = self.notes(key.index);
        if notes.in_flight {
            return Flushed::Nothing;
        }
        let mut has_sent = false;
        loop {
            let Some(mut records) = self.records(key.index) else { return Flushed::All };
            let tail = records.tail();
            if tail.is_empty() {
                break;
            }
            match inner.send(key, socket, iter::once(tail), 0) {
                Sent::Bytes(bytes) => {
                    records.tail_sent(bytes);
                    has_sent = true;
                }
                Sent::Failed => return Flushed::Broken,
                result => {
                    notes.in_flight = result == Sent::Pending;
                    self.set_notes(key.index, notes);
                    return if has_sent { Flushed::Some } else { Flushed::Nothing };
                }
            }
        }
        if std::mem::take(&mut notes.finishing) {
            inner.finish(key, socket);
        }
        if !self.notes.is_empty() {
            self.set_notes(key.index, notes);
        }
        Flushed::All
    }

    /// Sends the answer to a refused connection, and the FIN if it follows.
    pub(super) fn flush_refused<D: Driver>(
        &mut self,
        inner: &mut D,
        key: ConnKey,
        socket: &D::Socket,
    ) {
        let Some(Early::Refused(refused)) = self.early.get_mut(&key.index) else { return };
        while !refused.in_flight && !refused.unsent.is_empty() {
            match inner.send(key, socket, iter::once(&*refused.unsent), 0) {
                Sent::Bytes(bytes) => _ = refused.unsent.drain(..bytes),
                Sent::Blocked => return,
                Sent::Pending => refused.in_flight = true,
                Sent::Failed => refused.unsent.clear(),
            }
        }
        if !refused.in_flight {
            refused.unsent = Vec::new();
            if std::mem::take(&mut refused.finishing) {
                inner.finish(key, socket);
            }
        }
    }

    /// Sends close_notify behind the tail, then the FIN.
    pub(super) fn finish<D: Driver>(&mut self, inner: &mut D, key: ConnKey, socket: &D::Socket) {
        if self.is_open(key.index) && key.index != NOBODY {
            if let Some(mut records) = self.records(key.index) {
                records.close_notify();
            }
            let notes = Notes { finishing: true, ..self.notes(key.index) };
            self.notes.insert(key.index, notes);
            if self.flush(inner, key, socket) == Flushed::Broken {
                self.set_notes(key.index, Notes { finishing: false, ..notes });
            }
            return;
        }
        if let Some(Early::Shaking(_)) = self.early.get(&key.index) {
            self.end_shaking(key);
        }
        match self.early.get_mut(&key.index) {
            Some(Early::Refused(Refused { finishing, .. })) => {
                *finishing = true;
                self.flush_refused(inner, key, socket);
            }
            _ => inner.finish(key, socket),
        }
    }

    /// Forgets a connection that is closed now. The peer gets a close_notify, as far as the socket takes it.
    pub(super) fn close<D: Driver>(
        &mut self,
        inner: &mut D,
        key: ConnKey,
        socket: &D::Socket,
        reset: bool,
    ) {
        if key.index == NOBODY {
            return;
        }
        if !reset && !self.notes(key.index).in_flight && self.is_open(key.index) {
            if let Some(mut records) = self.records(key.index) {
                records.close_notify();
            }
            self.flush(inner, key, socket);
        }
        if let Some(of) = self.take_key(key.index) {
            self.pool.remove(of);
        }
        self.names.remove(&key.index);
        self.forget_early(key.index);
        self.waiting.remove(key.index);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Rig, SUITE};
    use super::*;
    use crate::base::frame::SharedFrame;
    use crate::io::Completion;
    use crate::io::sim::Seen;
    use crate::proto::tls::Suite;

    #[test]
    fn one_byte_is_withheld_until_the_tail_has_gone() {
        let mut rig = Rig::new(1000);
        let mut conn = rig.open(SUITE);
        // Both frames are sealed, and the last byte of the second isn't counted.
        assert_eq!(rig.send(&conn, &[&[b'x'; 3000], &[b'y'; 500]], 0), Sent::Bytes(3499));
        let left = &[b'y'; 500];
        assert_eq!(rig.send(&conn, &[left], 499), Sent::Blocked);
        rig.down(&mut conn);
        assert_eq!(
            rig.send(&conn, &[left], 499),
            Sent::Bytes(0),
            "it goes on, and isn't at its end"
        );
        while rig.send(&conn, &[left, b"more"], 499) == Sent::Blocked
            || rig.driver.left().iter().any(|(what, count)| what.contains("middle") && *count > 0)
        {
            rig.down(&mut conn);
        }
        rig.down(&mut conn);
        assert_eq!(conn.client.plain().len(), 3504);
        assert!(conn.client.plain().ends_with(b"ymore"));
    }

    #[test]
    fn a_last_byte_alone_is_not_withheld_since_its_frame_has_not_begun() {
        let mut rig = Rig::new(1000);
        let mut conn = rig.open(SUITE);
        assert_eq!(rig.send(&conn, &[&[b'x'; 3000], b"]"], 0), Sent::Bytes(3001));
        // The shard has nothing to send any more: the tail goes with reads.
        for _ in 0..5 {
            rig.down(&mut conn);
            let readable = Completion::Readable { key: conn.key, ended: false };
            if rig.turn().contains(&readable) {
                assert!(rig.read(&conn).is_empty());
            }
        }
        assert_eq!(conn.client.plain().len(), 3001);
    }

    #[test]
    fn a_batch_goes_to_many_connections() {
        let mut rig = Rig::new(1 << 20);
        let mut conns: Vec<_> = (0..300).map(|_| rig.open(SUITE)).collect();
        let frame = SharedFrame::new(&[b'x'; 1000]);
        let mut sent = Vec::new();
        let writes = conns.iter().map(|conn| Write {
            key: conn.key,
            socket: &conn.socket,
            frames: iter::once(&frame),
            skip: 0,
        });
        rig.driver.send_all(writes, &mut sent);
        assert_eq!(sent, vec![Sent::Bytes(1000); 300]);
        for conn in &mut conns {
            rig.down(conn);
            assert_eq!(conn.client.plain().len(), 1000);
        }
    }

    #[test]
    fn the_fin_comes_behind_the_tail_and_a_close_notify() {
        let mut rig = Rig::new(1000);
        let mut conn = rig.open(SUITE);
        assert_eq!(rig.send(&conn, &[&[b'x'; 3000], b"]"], 0), Sent::Bytes(3001));
        rig.driver.finish(conn.key, &conn.socket);
        for _ in 0..9 {
            rig.down(&mut conn);
            rig.turn();
            let _ = rig.recv(&conn);
        }
        assert_eq!((conn.client.plain().len(), conn.client.is_closed), (3001, true));
        assert_eq!(rig.world.borrow().look(conn.link), Seen::Ended);
        rig.driver.close(conn.key, conn.socket, false);
        assert!(rig.driver.left().iter().all(|(_, count)| *count == 0));
    }

    #[test]
    fn a_worn_key_is_reported() {
        let mut rig = Rig::new(1 << 20);
        let mut conn = rig.open(Suite::Tls12Aes128Gcm);
        let mut packed = rig.driver.pack(conn.key).unwrap();
        // The number of the next record, behind flags, name, head, key and IV.
        packed[3 + 1 + 16 + 12..][..7].copy_from_slice(&((1u64 << 24) - 65_537).to_be_bytes()[1..]);
        rig.driver.forget(conn.key, None);
        assert!(rig.driver.unpack(conn.key, &packed));
        rig.send(&conn, &[b"one more"], 0);
        assert_eq!(rig.driver.next_worn(), Some(conn.key));
        rig.send(&conn, &[b"and another"], 0);
        assert_eq!((rig.driver.next_worn(), rig.driver.next_worn()), (Some(conn.key), None));
        rig.down(&mut conn);
        // The numbers of TLS 1.2 are in the records' authenticated data: the client has others.
        assert!(conn.client.fault.is_some());
    }
}
