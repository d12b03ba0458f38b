//! Records to plaintext.

use std::ops::Range;

use super::alert::Alert;
use super::context::Context;
use super::fault::Fault;
use super::records::Records;
use super::seal::tls12_aad;
use super::state::{Role, SEQUENCE_MAX, Way, note};
use super::suite::{Suite, TAG_BYTES};
use super::unfinished::Fragment;
use super::{HEADER_BYTES, PLAIN_BYTES_MAX, RECORDS_WITHOUT_DATA_MAX, SEALED_BYTES_MAX, kind};

/// Handshake messages that may come after the handshake (RFC 8446 4).
mod message {
    pub(super) const HELLO_REQUEST: u8 = 0;
    pub(super) const CLIENT_HELLO: u8 = 1;
    pub(super) const NEW_SESSION_TICKET: u8 = 4;
    pub(super) const KEY_UPDATE: u8 = 24;
}

/// Received data or the end of it, lent until the next call.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<'a> {
    /// Plaintext, not empty: of one record or of several that came together. The caller may overwrite it.
    Data(&'a mut [u8]),
    /// The peer's close_notify: all that it has sent is here. Sending may go on.
    Closed,
}

/// The same, by the place of the data, so that the caller may keep the buffer that it is in.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// In the input.
    Input(Range<usize>),
    /// In this buffer: a record that came in pieces.
    Joined(Vec<u8>, Range<usize>),
    /// See [`Received::Closed`].
    Closed,
}

/// Opens the records of one read of one connection. All of them share one context, which is made with the
/// first whole record. Made anew for each read, also of the same connection.
#[derive(Default)]
pub struct Opener {
    context: Option<Context>,
    /// The connection that `context` belongs to, by its key's bits.
    connection: u32,
    /// A record that came in pieces: its plaintext is lent from here.
    joined: Vec<u8>,
    /// The end behind data that was returned first.
    end: Option<Result<(), Fault>>,
    /// Bytes of the read, and the KeyUpdates in it.
    input_bytes: usize,
    key_updates: usize,
}

/// KeyUpdates in one read at most, beside one for each [`KEY_UPDATE_BYTES_MIN`] of it. Each costs 7 to 18 us, and
/// 28 bytes of the peer: with a byte of data behind it, it would be the dearest input that there is.
const KEY_UPDATES_MAX: usize = 32;
const KEY_UPDATE_BYTES_MIN: usize = 1024;

/// The content of a record.
enum Content {
    Data(Range<usize>),
    /// A message of the protocol, or nothing.
    Other,
    Closed,
}

impl Opener {
    /// One that has read nothing.
    pub const fn new() -> Self {
        Self {
            context: None,
            connection: 0,
            joined: Vec::new(),
            end: None,
            input_bytes: 0,
            key_updates: 0,
        }
    }

    /// The next data of the stream that goes on with `input[*at..]`; `*at` moves behind what is taken.
    /// Records that lie whole in the input are opened in place, and their plaintexts moved together.
    ///
    /// `None`: all of the input is taken, and the begin of a record in it is kept. To be called until then,
    /// or until an end: only then a KeyUpdate that was requested is in the tail.
    ///
    /// # Errors
    /// The fault that ends the connection; data before it has been returned. The alert for the peer is in
    /// the tail.
    ///
    /// Bounds: holds what has come of one record, at most twice 2^14 + 261 bytes.
    pub fn next<'a>(
        &'a mut self,
        records: &mut Records<'_>,
        input: &'a mut [u8],
        at: &mut usize,
    ) -> Result<Option<Received<'a>>, Fault> {
        Ok(match self.next_place(records, input, at)? {
            None => None,
            Some(Place::Closed) => Some(Received::Closed),
            Some(Place::Input(data)) => Some(Received::Data(&mut input[data])),
            Some(Place::Joined(joined, data)) => {
                self.joined = joined;
                Some(Received::Data(&mut self.joined[data]))
            }
        })
    }

    /// The same as [`Opener::next`], and the data isn't lent.
    ///
    /// # Errors
    /// The same.
    pub fn next_place(
        &mut self,
        records: &mut Records<'_>,
        input: &mut [u8],
        at: &mut usize,
    ) -> Result<Option<Place>, Fault> {
        self.joined = Vec::new();
        if self.connection != records.key {
            *self = Self { connection: records.key, ..Self::new() };
        }
        self.input_bytes = self.input_bytes.max(input.len());
        if let Some(end) = self.end.take() {
            *at = input.len();
            return end.map(|()| Some(Place::Closed));
        }
        if records.state.has(note::FAILED | note::IN_BATCH) {
            debug_assert!(!records.state.has(note::IN_BATCH), "reading inside a batch");
            return Err(Fault::Ended);
        }
        if records.peer_has_closed() {
            *at = input.len();
            return Ok(None);
        }
        match self.open_input(records, input, at) {
            Ok(Opened::Joined(data)) => {
                Ok(Some(Place::Joined(std::mem::take(&mut self.joined), data)))
            }
            Ok(Opened::Input(data)) if !data.is_empty() => Ok(Some(Place::Input(data))),
            Ok(Opened::Input(_)) => match self.end.take() {
                Some(end) => end.map(|()| Some(Place::Closed)),
                None => {
                    records.answer();
                    Ok(None)
                }
            },
            Err(fault) => {
                records.fail(fault);
                Err(fault)
            }
        }
    }

    fn open_input(
        &mut self,
        records: &mut Records<'_>,
        input: &mut [u8],
        at: &mut usize,
    ) -> Result<Opened, Fault> {
        if records.pieces().is_some_and(|pieces| !pieces.piece().is_empty()) {
            if !self.join(records, input, at)? {
                return Ok(Opened::Input(0..0));
            }
            let mut joined = std::mem::take(&mut self.joined);
            let content = self.open_record(records, &mut joined)?;
            self.joined = joined;
            match content {
                Content::Data(data) => return Ok(Opened::Joined(data)),
                Content::Closed => self.end = Some(Ok(())),
                Content::Other => {}
            }
        }
        let mut data = 0..0;
        while self.end.is_none() && *at < input.len() {
            let rest = &mut input[*at..];
            let whole = record_bytes(records.suite(), rest);
            let bytes = match whole {
                Ok(Some(bytes)) if bytes <= rest.len() => bytes,
                Ok(_) => {
                    records.pieces_begun().begin_piece(rest.to_vec());
                    *at = input.len();
                    break;
                }
                Err(fault) => {
                    self.end_with(records, fault);
                    break;
                }
            };
            match self.open_record(records, &mut rest[..bytes]) {
                Ok(Content::Data(plain)) => {
                    let plain = *at + plain.start..*at + plain.end;
                    if data.is_empty() {
                        data = plain;
                    } else {
                        let bytes = plain.len();
                        input.copy_within(plain, data.end);
                        data.end += bytes;
                    }
                }
                Ok(Content::Other) => {}
                Ok(Content::Closed) => self.end = Some(Ok(())),
                Err(fault) => self.end_with(records, fault),
            }
            *at += bytes;
        }
        if self.end.is_some() {
            *at = input.len();
        }
        Ok(Opened::Input(data))
    }

    /// The fault comes behind the data before it; its alert is sealed now.
    fn end_with(&mut self, records: &mut Records<'_>, fault: Fault) {
        records.fail(fault);
        self.end = Some(Err(fault));
    }

    /// Goes on with the record whose begin is kept. Returns whether it is whole: in `joined`.
    fn join(
        &mut self,
        records: &mut Records<'_>,
        input: &[u8],
        at: &mut usize,
    ) -> Result<bool, Fault> {
        let suite = records.suite();
        let Some(pieces) = records.pieces_mut() else { return Ok(false) };
        loop {
            let have = pieces.piece().len();
            let bytes = record_bytes(suite, pieces.piece())?;
            if bytes == Some(have) {
                self.joined = pieces.take_piece();
                records.settle();
                return Ok(true);
            }
            // To the end of the header, then to the end of the record.
            let missing = bytes.unwrap_or(HEADER_BYTES) - have;
            let came = &input[*at..input.len().min(*at + missing)];
            if came.is_empty() {
                return Ok(false);
            }
            append(pieces.piece_mut(), came, bytes.unwrap_or(HEADER_BYTES));
            *at += came.len();
        }
    }

    /// Opens one whole record in place.
    fn open_record(
        &mut self,
        records: &mut Records<'_>,
        record: &mut [u8],
    ) -> Result<Content, Fault> {
        let suite = records.suite();
        let Some((header, body)) = record.split_first_chunk_mut::<HEADER_BYTES>() else {
            return Err(Fault::BadRecordMac);
        };
        let sequence = records.state.sequence(Way::Receive);
        if sequence >= SEQUENCE_MAX {
            return Err(Fault::Internal);
        }
        let mut nonce = records.state.nonce(Way::Receive);
        let explicit = suite.explicit_bytes();
        // The lengths are checked with the header.
        let plain_bytes =
            body.len().checked_sub(explicit + TAG_BYTES).ok_or(Fault::BadRecordMac)?;
        let (sent, sealed) = body.split_at_mut(explicit);
        let fixed = nonce.len() - explicit;
        nonce[fixed..].copy_from_slice(sent);
        let tls12 = tls12_aad(sequence, *header, plain_bytes);
        let aad: &[u8] = if suite.is_tls13() { header } else { &tls12 };
        let context = match &mut self.context {
            Some(context) => context,
            none => {
                let context = Context::of(&records.state, Way::Receive);
                none.insert(context.map_err(|_| Fault::Internal)?)
            }
        };
        context.open(nonce, aad, sealed).map_err(|_| Fault::BadRecordMac)?;
        records.state.set_sequence(Way::Receive, sequence + 1);

        let plain = &sealed[..plain_bytes];
        let (kind, plain) = match suite.is_tls13() {
            true => without_padding(plain)?,
            false => (header[0], plain),
        };
        let content = HEADER_BYTES + explicit..HEADER_BYTES + explicit + plain.len();
        match kind {
            kind::DATA => records.data(content),
            kind::ALERT => records.alert_received(plain),
            kind::HANDSHAKE => {
                if records.handshake(plain)? {
                    self.context = None;
                    self.key_updates += 1;
                    if self.key_updates > KEY_UPDATES_MAX + self.input_bytes / KEY_UPDATE_BYTES_MIN
                    {
                        return Err(Fault::TooManyWithoutData);
                    }
                }
                Ok(Content::Other)
            }
            other => Err(Fault::UnexpectedRecord(other)),
        }
    }
}

/// Where the data is.
enum Opened {
    Joined(Range<usize>),
    Input(Range<usize>),
}

/// Length of the record that begins so, with its header. `None`: the header hasn't come whole.
fn record_bytes(suite: Suite, begin: &[u8]) -> Result<Option<usize>, Fault> {
    let Some(&kind) = begin.first() else { return Ok(None) };
    //= RFC 8446 5: after the handshake all records are protected, and look like application data
    let expected = match suite.is_tls13() {
        true => kind == kind::DATA,
        false => matches!(kind, kind::ALERT | kind::HANDSHAKE | kind::DATA),
    };
    if !expected {
        return Err(Fault::UnexpectedRecord(kind));
    }
    let Some(header) = begin.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let bytes = usize::from(u16::from_be_bytes([header[3], header[4]]));
    let bytes_max = match suite.is_tls13() {
        true => SEALED_BYTES_MAX,
        // Whatever is longer has too much plaintext.
        false => PLAIN_BYTES_MAX + suite.explicit_bytes() + TAG_BYTES,
    };
    if bytes > bytes_max {
        return Err(Fault::RecordOverflow);
    }
    if bytes < suite.overhead_bytes() - HEADER_BYTES {
        return Err(Fault::BadRecordMac);
    }
    Ok(Some(HEADER_BYTES + bytes))
}

/// Content type and content of a TLSInnerPlaintext (RFC 8446 5.2).
fn without_padding(inner: &[u8]) -> Result<(u8, &[u8]), Fault> {
    if inner.len() > PLAIN_BYTES_MAX + 1 {
        return Err(Fault::RecordOverflow);
    }
    let end = inner.iter().rposition(|byte| *byte != 0).ok_or(Fault::NoContentType)?;
    Ok((inner[end], &inner[..end]))
}

/// Appends to a buffer that doubles: what has come decides how much is reserved, what was announced only
/// bounds it.
fn append(buffer: &mut Vec<u8>, came: &[u8], bytes_max: usize) {
    let bytes = buffer.len() + came.len();
    if bytes > buffer.capacity() {
        buffer.reserve_exact((2 * bytes).min(bytes_max).max(bytes) - buffer.len());
    }
    buffer.extend_from_slice(came);
}

impl Records<'_> {
    fn data(&mut self, content: Range<usize>) -> Result<Content, Fault> {
        if !self.fragment().is_empty() {
            return Err(Fault::Interleaved);
        }
        if content.is_empty() {
            return self.without_data();
        }
        let notes = self.state.notes(Way::Receive);
        self.state.set_notes(Way::Receive, notes & !note::WITHOUT_DATA);
        Ok(Content::Data(content))
    }

    /// Counts a record that brought no data.
    fn without_data(&mut self) -> Result<Content, Fault> {
        let notes = self.state.notes(Way::Receive);
        if notes & note::WITHOUT_DATA >= RECORDS_WITHOUT_DATA_MAX {
            return Err(Fault::TooManyWithoutData);
        }
        self.state.set_notes(Way::Receive, notes + 1);
        Ok(Content::Other)
    }

    fn alert_received(&mut self, content: &[u8]) -> Result<Content, Fault> {
        if !self.fragment().is_empty() {
            return Err(Fault::Interleaved);
        }
        let (level, alert) = match *content {
            [] => return Err(Fault::EmptyRecord),
            [level, alert] => (level, Alert(alert)),
            _ => return Err(Fault::AlertLength),
        };
        let tls13 = self.suite().is_tls13();
        match alert {
            Alert::CLOSE_NOTIFY => {
                let notes = self.state.notes(Way::Receive);
                self.state.set_notes(Way::Receive, notes | note::CLOSED);
                Ok(Content::Closed)
            }
            //= RFC 8446 6: the level is ignored, and all other alerts but user_canceled end the connection
            Alert::USER_CANCELED if tls13 => self.without_data(),
            _ if !tls13 && level == 1 => self.without_data(),
            alert => Err(Fault::PeerAlert(alert)),
        }
    }

    /// Handles a handshake record. Returns whether the keys to receive with have changed.
    fn handshake(&mut self, content: &[u8]) -> Result<bool, Fault> {
        if content.is_empty() {
            return Err(Fault::EmptyRecord);
        }
        self.without_data()?;
        if !self.suite().is_tls13() {
            return match (self.role(), content) {
                (Role::Server, [message::CLIENT_HELLO, ..]) => Err(Fault::Renegotiation),
                // A client may ignore it (RFC 5246 7.4.1.1).
                (Role::Client, [message::HELLO_REQUEST, 0, 0, 0]) => Ok(false),
                (_, [other, ..]) => Err(Fault::UnexpectedMessage(*other)),
                (_, []) => Err(Fault::EmptyRecord),
            };
        }
        let mut rest = content;
        let mut fragment = self.fragment();
        let mut changed = false;
        while !rest.is_empty() {
            let (skipped, behind) = rest.split_at(rest.len().min(fragment.skip as usize));
            // At most `skip`.
            fragment.skip -= skipped.len() as u32;
            rest = behind;
            let Some((byte, behind)) = rest.split_first() else { break };
            if usize::from(fragment.len) < fragment.bytes.len() {
                fragment.bytes[usize::from(fragment.len)] = *byte;
                fragment.len += 1;
                rest = behind;
                self.check_message(&mut fragment)?;
                continue;
            }
            // The byte of a KeyUpdate.
            if !behind.is_empty() {
                return Err(Fault::KeyUpdateNotLast);
            }
            self.keys_updated(*byte)?;
            (fragment, changed, rest) = (Fragment::default(), true, behind);
        }
        self.keep_fragment(fragment);
        Ok(changed)
    }

    /// Checks the header of a handshake message as soon as it says enough.
    fn check_message(&self, fragment: &mut Fragment) -> Result<(), Fault> {
        let [kind, length @ ..] = fragment.bytes;
        let client = self.role() == Role::Client;
        match kind {
            message::KEY_UPDATE => {}
            message::NEW_SESSION_TICKET if client => {}
            other => return Err(Fault::UnexpectedMessage(other)),
        }
        if usize::from(fragment.len) < fragment.bytes.len() {
            return Ok(());
        }
        let length = u32::from_be_bytes([0, length[0], length[1], length[2]]);
        if kind == message::NEW_SESSION_TICKET {
            *fragment = Fragment { skip: length, ..Fragment::default() };
        } else if length != 1 {
            return Err(Fault::KeyUpdateLength);
        }
        Ok(())
    }

    /// The peer has changed its keys, and may request that this end does so.
    fn keys_updated(&mut self, requested: u8) -> Result<(), Fault> {
        if requested > 1 {
            return Err(Fault::KeyUpdateValue);
        }
        self.state.update_keys(Way::Receive).ok_or(Fault::Internal)?;
        if requested == 1 && !self.has_ended() {
            self.state.note(note::ANSWER_DUE);
        }
        Ok(())
    }

    fn fragment(&self) -> Fragment {
        self.pieces().map(|pieces| pieces.fragment).unwrap_or_default()
    }

    fn keep_fragment(&mut self, fragment: Fragment) {
        if !fragment.is_empty() {
            self.pieces_begun().fragment = fragment;
        } else if let Some(pieces) = self.pieces_mut() {
            pieces.fragment = fragment;
            self.settle();
        }
    }
}
