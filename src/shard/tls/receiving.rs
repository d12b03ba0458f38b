//! Receiving: the PROXY header, which is plain text, then the handshake, then records.

use std::ops::{DerefMut, Range};

use super::Lease;
use super::conns::{Early, NOBODY, Refused, Tls};
use super::sending::Flushed;
use super::shaking::Step;
use super::waiting::TURN_BEGINNINGS_MAX;
use crate::base::id::ConnKey;
use crate::base::limits::TURN_HANDSHAKES_MAX;
use crate::io::{Driver, Received};
use crate::proto::proxy_header;
use crate::proto::tls::{Fault, Opener, Place};

/// The plain text of one read, and what follows it.
struct Opened {
    data: Data,
    end: Option<End>,
}

enum Data {
    None,
    /// A part of the input.
    Input(Range<usize>),
    Joined(Vec<u8>, Range<usize>),
}

enum End {
    /// The peer's close_notify.
    Closed,
    Fault(Fault),
}

impl Tls {
    /// Reads once from a connection.
    pub(super) fn recv<D: Driver>(
        &mut self,
        inner: &mut D,
        key: ConnKey,
        socket: &D::Socket,
        bytes_max: usize,
    ) -> Received<Lease<D::Lease>> {
        if key.index == NOBODY {
            // There is no state for a handshake, so nothing that it has sent can be read.
            return Received::Blocked;
        }
        let received = self.recv_by_state(inner, key, socket, bytes_max);
        if matches!(received, Received::Failed) {
            self.break_off(key.index);
        }
        received
    }

    fn recv_by_state<D: Driver>(
        &mut self,
        inner: &mut D,
        key: ConnKey,
        socket: &D::Socket,
        bytes_max: usize,
    ) -> Received<Lease<D::Lease>> {
        if self.is_open(key.index) {
            return self.recv_records(inner, key, socket, bytes_max);
        }
        match self.early.get_mut(&key.index) {
            Some(Early::Refused(_)) => self.discard(inner, key, socket, bytes_max),
            Some(Early::Header(_)) => self.recv_header(inner, key, bytes_max, socket),
            Some(Early::Shaking(_)) | None => self.shake(inner, key, socket, bytes_max),
        }
    }

    /// The PROXY header goes to the shard as it is. What is behind it in the same read is the handshake's.
    fn recv_header<D: Driver>(
        &mut self,
        inner: &mut D,
        key: ConnKey,
        bytes_max: usize,
        socket: &D::Socket,
    ) -> Received<Lease<D::Lease>> {
        let (lease, short) = match inner.recv(key, socket, bytes_max) {
            Received::Bytes { lease, short } => (lease, short),
            other => return super::plain(other),
        };
        match self.split_header(key, &lease) {
            None => Received::Bytes { lease: Lease::all(lease), short },
            Some(end) => {
                let has_rest = end < lease.len();
                Received::Bytes {
                    lease: Lease::Lent { lease, data: 0..end },
                    short: short && !has_rest,
                }
            }
        }
    }

    /// The end of the PROXY header in these bytes, which continue it. `None`: all of them are the shard's, since
    /// it isn't whole or malformed.
    fn split_header(&mut self, key: ConnKey, bytes: &[u8]) -> Option<usize> {
        let Some(Early::Header(seen)) = self.early.get_mut(&key.index) else { return None };
        let before = seen.len();
        seen.extend_from_slice(bytes);
        let header = proxy_header::parse(seen).ok().flatten()?;
        let end = header.bytes.saturating_sub(before).min(bytes.len());
        self.early.remove(&key.index);
        if end < bytes.len() {
            self.begin_shaking(key, bytes[end..].to_vec());
        }
        Some(end)
    }

    /// Goes on with a handshake.
    fn shake<D: Driver>(
        &mut self,
        inner: &mut D,
        key: ConnKey,
        socket: &D::Socket,
        bytes_max: usize,
    ) -> Received<Lease<D::Lease>> {
        loop {
            // New ones leave steps to those that have begun.
            let has_begun = self.early.contains_key(&key.index);
            let reserved = TURN_HANDSHAKES_MAX - TURN_BEGINNINGS_MAX;
            if self.steps <= if has_begun { 0 } else { reserved } {
                self.waiting.push(key, has_begun);
                return Received::Blocked;
            }
            if !self.flush_handshake(inner, key, socket) {
                return Received::Failed;
            }
            if let Some(unread) = self.take_unread(key.index) {
                match self.step(inner, key, socket, &unread) {
                    Step::More => continue,
                    Step::Broken => return Received::Failed,
                    Step::Refused => return self.discard(inner, key, socket, bytes_max),
                    Step::Done(at) => {
                        let end = unread.len();
                        return self.recv_behind(inner, key, socket, (unread, at..end), bytes_max);
                    }
                }
            }
            let (mut lease, short) = match inner.recv(key, socket, bytes_max) {
                Received::Bytes { lease, short } => (lease, short),
                Received::Ended => {
                    self.shaking_ended(key.index);
                    return Received::Ended;
                }
                other => return super::plain(other),
            };
            match self.step(inner, key, socket, &lease) {
                Step::More => {
                    inner.give_back(lease);
                    if short {
                        return Received::Taken;
                    }
                }
                Step::Broken => {
                    inner.give_back(lease);
                    return Received::Failed;
                }
                Step::Refused => {
                    inner.give_back(lease);
                    return self.discard(inner, key, socket, bytes_max);
                }
                Step::Done(at) => {
                    let opened = self.open(key.index, &mut lease, at);
                    let received = self.deliver(inner, key, socket, lease, opened, short);
                    return match received {
                        Some(received) => received,
                        None => self.recv_records(inner, key, socket, bytes_max),
                    };
                }
            }
        }
    }

    /// Goes on with records, of which the first are in `unread`.
    fn recv_behind<D: Driver>(
        &mut self,
        inner: &mut D,
        key: ConnKey,
        socket: &D::Socket,
        (mut unread, rest): (Vec<u8>, Range<usize>),
        bytes_max: usize,
    ) -> Received<Lease<D::Lease>> {
        let Opened { data, end } = self.open(key.index, &mut unread, rest.start);
        self.end_with(inner, key, socket, end);
        let (buffer, data) = match data {
            Data::None => return self.recv(inner, key, socket, bytes_max),
            Data::Input(data) => (unread, data),
            Data::Joined(buffer, data) => (buffer, data),
        };
        Received::Bytes { lease: Lease::Joined { buffer, data }, short: false }
    }

    /// Reads records until there is plain text.
    fn recv_records<D: Driver>(
        &mut self,
        inner: &mut D,
        key: ConnKey,
        socket: &D::Socket,
        bytes_max: usize,
    ) -> Received<Lease<D::Lease>> {
        if !self.notes.is_empty()
            && self.notes.contains_key(&key.index)
            && self.flush(inner, key, socket) == Flushed::Broken
        {
            return Received::Failed;
        }
        loop {
            match self.records(key.index) {
                Some(records) if records.peer_has_closed() => return Received::Ended,
                Some(_) => {}
                None => return self.discard(inner, key, socket, bytes_max),
            }
            if self.has_read_enough(key.index) {
                self.again.push(key);
                return Received::Blocked;
            }
            let (mut lease, short) = match inner.recv(key, socket, bytes_max) {
                Received::Bytes { lease, short } => (lease, short),
                Received::Ended => {
                    self.counters().tls_truncated.add(1);
                    return Received::Ended;
                }
                other => return super::plain(other),
            };
            let opened = self.open(key.index, &mut lease, 0);
            if let Some(received) = self.deliver(inner, key, socket, lease, opened, short) {
                return received;
            }
        }
    }

    /// Opens all records in `input[at..]`.
    fn open(&mut self, index: u32, input: &mut [u8], mut at: usize) -> Opened {
        let mut opened = Opened { data: Data::None, end: None };
        let Some(mut records) = self.records(index) else { return opened };
        let mut opener = Opener::new();
        loop {
            match opener.next_place(&mut records, input, &mut at) {
                Ok(None) => return opened,
                Ok(Some(Place::Input(found))) => opened.data.append(input, found),
                Ok(Some(Place::Joined(buffer, data))) => opened.data = Data::Joined(buffer, data),
                Ok(Some(Place::Closed)) => {
                    opened.end = Some(End::Closed);
                    return opened;
                }
                Err(fault) => {
                    opened.end = Some(End::Fault(fault));
                    return opened;
                }
            }
        }
    }

    /// Returns what was opened. `None`: nothing, and there may be more to read.
    fn deliver<D: Driver>(
        &mut self,
        inner: &mut D,
        key: ConnKey,
        socket: &D::Socket,
        lease: D::Lease,
        Opened { data, end }: Opened,
        short: bool,
    ) -> Option<Received<Lease<D::Lease>>> {
        // Both shares of a turn are counted in bytes as they came: the rest is the plain text's, and the shard counts
        // that itself.
        let plain_bytes = data.len();
        self.count_read(key.index, lease.len());
        let beside = lease.len().saturating_sub(plain_bytes);
        self.counters().bytes_received.add(beside as u64);
        // Behind the data comes an end: the next read has it.
        let short = short && end.is_none();
        self.end_with(inner, key, socket, end);
        match data {
            Data::None => {
                inner.give_back(lease);
                short.then_some(Received::Taken)
            }
            Data::Input(data) => {
                Some(Received::Bytes { lease: Lease::Lent { lease, data }, short })
            }
            Data::Joined(buffer, data) => {
                inner.give_back(lease);
                Some(Received::Bytes { lease: Lease::Joined { buffer, data }, short })
            }
        }
    }

    /// Draws the consequences of what was opened: answers of the record layer go out, and a fault ends the
    /// connection.
    fn end_with<D: Driver>(
        &mut self,
        inner: &mut D,
        key: ConnKey,
        socket: &D::Socket,
        end: Option<End>,
    ) {
        match end {
            Some(End::Fault(fault)) => self.record_fault(inner, key, socket, fault),
            Some(End::Closed) | None => {
                // A broken socket is found by the read that follows.
                if self.has_tail(key.index) {
                    self.flush(inner, key, socket);
                }
            }
        }
    }

    /// Throws the input of a refused connection away.
    fn discard<D: Driver>(
        &mut self,
        inner: &mut D,
        key: ConnKey,
        socket: &D::Socket,
        bytes_max: usize,
    ) -> Received<Lease<D::Lease>> {
        self.flush_refused(inner, key, socket);
        if let Some(Early::Refused(Refused { is_announced, .. })) = self.early.get_mut(&key.index)
            && !std::mem::replace(is_announced, true)
        {
            return Received::Refused;
        }
        // One read a turn.
        match inner.recv(key, socket, bytes_max) {
            Received::Bytes { lease, .. } => {
                self.counters().bytes_received.add(lease.len() as u64);
                inner.give_back(lease);
                self.again.push(key);
                Received::Blocked
            }
            other => super::plain(other),
        }
    }

    /// Takes a read out that the driver has made and nobody has requested.
    pub(super) fn take_ahead<D: Driver>(
        &mut self,
        inner: &mut D,
    ) -> Option<(ConnKey, Received<Lease<D::Lease>>)> {
        loop {
            let (key, received) = inner.take_ahead()?;
            let (mut lease, short) = match received {
                Received::Bytes { lease, short } => (lease, short),
                other => return Some((key, super::plain(other))),
            };
            if self.is_open(key.index) {
                let opened = self.open(key.index, &mut lease, 0);
                if let Some(received) = self.keep_opened(inner, key, lease, opened, short) {
                    return Some((key, received));
                }
                continue;
            }
            let end = match self.early.get_mut(&key.index) {
                Some(Early::Refused(_)) => lease.len(),
                Some(Early::Header(_)) => self.split_header(key, &lease).unwrap_or(lease.len()),
                Some(Early::Shaking(shaking)) => {
                    shaking.unread.extend_from_slice(&lease);
                    0
                }
                None => {
                    self.begin_shaking(key, lease.to_vec());
                    0
                }
            };
            let is_refused = matches!(self.early.get(&key.index), Some(Early::Refused(_)));
            if end == 0 || is_refused {
                self.again.push(key);
                inner.give_back(lease);
                continue;
            }
            let lease = Lease::Lent { lease, data: 0..end };
            return Some((key, Received::Bytes { lease, short }));
        }
    }

    /// As [`Self::deliver`], without a socket: answers wait for the next read.
    fn keep_opened<D: Driver>(
        &mut self,
        inner: &mut D,
        key: ConnKey,
        lease: D::Lease,
        Opened { data, end }: Opened,
        short: bool,
    ) -> Option<Received<Lease<D::Lease>>> {
        if let Some(End::Fault(fault)) = end {
            self.take_fault(key.index, fault);
        }
        let notes = self.notes(key.index);
        self.set_notes(key.index, notes);
        self.again.push(key);
        let lease = match data {
            Data::None => {
                inner.give_back(lease);
                return None;
            }
            Data::Input(data) => Lease::Lent { lease, data },
            Data::Joined(buffer, data) => {
                inner.give_back(lease);
                Lease::Joined { buffer, data }
            }
        };
        Some(Received::Bytes { lease, short })
    }
}

impl Data {
    fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Input(data) | Self::Joined(_, data) => data.len(),
        }
    }

    /// Adds what lies in the input behind what is there already.
    fn append(&mut self, input: &[u8], found: Range<usize>) {
        match self {
            Self::None => *self = Self::Input(found),
            Self::Joined(buffer, data) => {
                buffer.truncate(data.end);
                buffer.extend_from_slice(&input[found]);
                data.end = buffer.len();
            }
            // The opener moves all of an input together.
            Self::Input(data) => debug_assert!(false, "{data:?} and {found:?}"),
        }
    }
}

/// A lease can be written to: what is opened is opened in place.
const _: fn() = || {
    fn is_writable<L: DerefMut<Target = [u8]>>() {}
    is_writable::<Lease<Vec<u8>>>();
};

#[cfg(test)]
mod tests {
    use super::super::testing::{Rig, SUITE};
    use super::*;
    use crate::io::Sent;

    #[test]
    fn what_is_read_in_pieces_is_returned_once_and_in_order() {
        let mut rig = Rig::new(100_000);
        let mut conn = rig.open(SUITE);
        let sent: Vec<u8> = (0..30_000u32).map(|number| number as u8).collect();
        conn.client.write(&sent);
        let out = std::mem::take(conn.client.out());
        let mut read = Vec::new();
        for piece in out.chunks(7001) {
            rig.world.borrow_mut().write(conn.link, piece);
            rig.turn();
            read.extend(rig.read(&conn));
        }
        assert!(read == sent);
    }

    #[test]
    fn a_close_notify_of_the_client_is_the_end_and_a_fin_alone_is_counted() {
        let mut rig = Rig::new(1 << 20);
        let mut conn = rig.open(SUITE);
        conn.client.write(b"last");
        conn.client.close();
        rig.up(&mut conn);
        rig.turn();
        assert_eq!(rig.recv(&conn), Ok(b"last".to_vec()));
        assert_eq!(rig.recv(&conn), Err("ended"));
        assert_eq!(rig.counters().tls_truncated.get(), 0);
        let other = rig.open(SUITE);
        rig.world.borrow_mut().shut(other.link);
        rig.turn();
        assert_eq!(rig.recv(&other), Err("ended"));
        assert_eq!(rig.counters().tls_truncated.get(), 1);
    }

    #[test]
    fn a_proxy_header_comes_first_in_plain_text() {
        let mut rig = Rig::new(1 << 20);
        for cut in [4, 40, 60] {
            let mut conn = rig.connect(SUITE);
            rig.driver.expect_proxy_header(conn.key, &[]);
            let header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 443\r\n";
            let first = [&header[..], conn.client.out()].concat();
            conn.client.out().clear();
            let mut read = Vec::new();
            for piece in [&first[..cut], &first[cut..]] {
                rig.world.borrow_mut().write(conn.link, piece);
                rig.turn();
                read.extend(rig.read(&conn));
            }
            assert_eq!(read, header);
            for _ in 0..2 {
                rig.down(&mut conn);
                rig.up(&mut conn);
                rig.turn();
                assert_eq!(rig.read(&conn), b"");
            }
            assert!(conn.client.is_open() && rig.driver.unpackable().is_empty());
        }
    }

    #[test]
    fn a_key_update_that_was_requested_is_answered_and_sealing_goes_on() {
        let mut rig = Rig::new(1000);
        let mut conn = rig.open(SUITE);
        assert!(matches!(rig.send(&conn, &[&[b'x'; 2000]], 0), Sent::Bytes(1999)));
        conn.client.update_keys(true);
        conn.client.write(b"under the new keys");
        rig.up(&mut conn);
        rig.turn();
        assert_eq!(rig.read(&conn), b"under the new keys");
        let all = [b'x'; 2000];
        let mut sent = 1999;
        while sent < 2000 {
            rig.down(&mut conn);
            if let Sent::Bytes(bytes) = rig.send(&conn, &[&all], sent) {
                sent += bytes;
            }
        }
        rig.send_and_read(&mut conn, &[&[b'y'; 3000]]);
        assert_eq!((conn.client.plain().len(), conn.client.fault), (5000, None));
    }
}
