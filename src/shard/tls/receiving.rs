//! Receiving: the PROXY header, which is plain text, then the handshake, then records.

use std::ops::{DerefMut, Range};

use super::Lease;
use super::conns::{Early, NOBODY, Refused, Tls};
use super::sending::Flushed;
use super::shaking::Step;
use crate::base::id::ConnKey;
use crate::io::{Driver, Received};
use crate::proto::proxy_header;
use crate::proto::tls::{Fault, Opener, Place};

/// Reads of a connection that is refused in one turn; more in the next.
const DISCARDS_MAX: usize = 16;

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
            if self.steps == 0 {
                self.again.push(key);
                return Received::Blocked;
            }
            if !self.flush_handshake(inner, key, socket) {
                return Received::Failed;
            }
            if let Some(unread) = self.take_unread(key.index) {
                match self.step(inner, key, socket, &unread) {
                    Step::More => continue,
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
                Step::More => inner.give_back(lease),
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

    /// Returns what was opened. `None`: nothing, and the connection goes on.
    fn deliver<D: Driver>(
        &mut self,
        inner: &mut D,
        key: ConnKey,
        socket: &D::Socket,
        lease: D::Lease,
        Opened { data, end }: Opened,
        short: bool,
    ) -> Option<Received<Lease<D::Lease>>> {
        // Behind the data comes an end: the next read has it.
        let short = short && end.is_none();
        self.end_with(inner, key, socket, end);
        match data {
            Data::None => {
                inner.give_back(lease);
                None
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
        for _ in 0..DISCARDS_MAX {
            match inner.recv(key, socket, bytes_max) {
                Received::Bytes { lease, .. } => inner.give_back(lease),
                other => return super::plain(other),
            }
        }
        self.again.push(key);
        Received::Blocked
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
            self.take_fault(key, fault);
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
