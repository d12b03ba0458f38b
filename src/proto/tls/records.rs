//! The record layer of one connection, in its place in a pool.

use super::alert::Alert;
use super::context::Context;
use super::fault::Fault;
use super::packed::Packed;
use super::pool::UnfinishedByKey;
use super::seal::{self, Plain};
use super::state::{Role, State, Way, note};
use super::suite::Suite;
use super::unfinished::{Fragment, Unfinished};
use super::{HEADER_BYTES, RECORDS_SPARE, RECORDS_WORN, kind};

/// Longest record that this layer seals by itself: an alert or a KeyUpdate.
const CONTROL_BYTES_MAX: usize = HEADER_BYTES + 8 + 5 + 1 + super::TAG_BYTES;

/// KeyUpdate (RFC 8446 4.6.3): type 24, a length of 1, whether the peer shall update as well.
pub(super) const fn key_update(requested: bool) -> [u8; 5] {
    [24, 0, 0, 1, requested as u8]
}

/// The record layer of one connection. Opening is [`Opener`](super::Opener)'s, sealing data
/// [`Batch`](super::Batch)'s; here is the rest.
///
/// ```text
///   open --(close_notify)--> peer closed        reading and sending end apart from each other
///     |  '---(Batch::seal)--> in batch --(sent)--> open
///     |--(close_notify, alert)--> ended         nothing is sealed behind that
///     '--(fault)--> failed and ended            nothing is opened behind that either
/// ```
pub struct Records<'p> {
    pub(super) state: State<'p>,
    pub(super) key: u32,
    unfinished: &'p mut UnfinishedByKey,
}

impl<'p> Records<'p> {
    pub(super) fn new(state: State<'p>, key: u32, unfinished: &'p mut UnfinishedByKey) -> Self {
        Self { state, key, unfinished }
    }

    /// Version and AEAD.
    pub fn suite(&self) -> Suite {
        self.state.suite()
    }

    /// The end of the handshake that this is.
    pub fn role(&self) -> Role {
        self.state.role()
    }

    /// Sealed bytes that have to be sent before anything else is sealed.
    pub fn tail(&self) -> &[u8] {
        self.pieces().map_or(&[], Unfinished::tail)
    }

    /// The first `bytes` of the tail are sent. Behind the last one a KeyUpdate that was requested follows, so
    /// there may be a new tail.
    pub fn tail_sent(&mut self, bytes: usize) {
        if let Some(pieces) = self.pieces_mut() {
            pieces.tail_sent(bytes);
            self.settle();
        }
        self.answer();
    }

    /// Ends what [`Batch::seal`](super::Batch::seal) began: of the sealed bytes the first `sent` are sent.
    /// The others become the tail.
    pub fn sent(&mut self, sealed: &[u8], sent: usize) {
        self.state.clear(note::IN_BATCH);
        match sealed.get(sent..) {
            None | Some([]) => self.answer(),
            Some(rest) => self.append_tail(rest),
        }
    }

    /// Whether nothing is kept beside the slot.
    pub fn is_idle(&self) -> bool {
        !self.state.is_unfinished()
    }

    /// Bytes of heap beside the slot: a piece of a record, a tail.
    pub fn heap_bytes(&self) -> usize {
        self.pieces().map_or(0, Unfinished::heap_bytes)
    }

    /// TLS 1.2, which can't change keys: the key will soon seal no more, so the connection should be closed
    /// with a reason for which clients connect again. 2^16 records may still be sealed when it is noticed.
    pub fn is_worn(&self) -> bool {
        let suite = self.suite();
        !suite.is_tls13() && self.state.sequence(Way::Send) >= suite.records_max() - RECORDS_WORN
    }

    /// Whether nothing can be sealed any more: close_notify or an alert was sealed.
    pub fn has_ended(&self) -> bool {
        self.state.has(note::ENDED)
    }

    /// Whether a fault has ended the connection: nothing is opened any more.
    pub fn has_failed(&self) -> bool {
        self.state.has(note::FAILED)
    }

    /// Whether the peer's close_notify has come. End of stream without it is a broken connection.
    pub fn peer_has_closed(&self) -> bool {
        self.state.notes(Way::Receive) & note::CLOSED != 0
    }

    /// Seals close_notify behind the tail. Nothing is sealed behind it; the peer may still send.
    pub fn close_notify(&mut self) {
        self.alert(Alert::CLOSE_NOTIFY);
    }

    /// Seals an alert behind the tail, unless one is there already. Nothing is sealed behind it but what
    /// follows a user_canceled. To be called between batches.
    pub fn alert(&mut self, alert: Alert) {
        debug_assert!(!self.state.has(note::IN_BATCH), "an alert inside a batch");
        if self.state.has(note::ENDED | note::IN_BATCH) {
            return;
        }
        self.append_record(kind::ALERT, &[alert.level(), alert.0]);
        if alert != Alert::USER_CANCELED {
            self.state.note(note::ENDED);
            self.state.clear(note::ANSWER_DUE);
        }
    }

    /// TLS 1.3: changes the own keys, and the peer's by a request if `requested`. Seals the KeyUpdate behind
    /// the tail. Returns whether it did: not in TLS 1.2, behind an alert and inside of a batch.
    pub fn update_keys(&mut self, requested: bool) -> bool {
        if !self.suite().is_tls13() || self.state.has(note::ENDED | note::IN_BATCH) {
            return false;
        }
        self.append_record(kind::HANDSHAKE, &key_update(requested));
        self.state.clear(note::ANSWER_DUE);
        if self.state.update_keys(Way::Send).is_none() {
            self.state.note(note::ENDED | note::FAILED);
        }
        true
    }

    /// The whole state as bytes, for another pool or process. This one must not be used meanwhile and not
    /// behind it, unless the bytes are dropped unread: see [`Packed`]. `None`: sealed bytes are in a batch.
    pub fn pack(&self) -> Option<Packed> {
        let in_batch = self.state.has(note::IN_BATCH);
        (!in_batch).then(|| Packed::of(&self.state, self.pieces()))
    }

    /// Seals the KeyUpdate that the peer has requested. It has to go out before further data (RFC 8446
    /// 4.6.3). It waits until the tail is sent, so one that requests and doesn't read gets one and not many.
    pub(super) fn answer(&mut self) {
        let due = self.state.has(note::ANSWER_DUE) && !self.state.has(note::IN_BATCH);
        if due && self.tail().is_empty() {
            self.update_keys(false);
        }
    }

    /// The time of an incomplete record begins anew: see [`Pool::late`](super::Pool::late).
    pub fn restart(&mut self) {
        if let Some(pieces) = self.pieces_mut() {
            pieces.restart();
        }
    }

    /// A fault ends the connection: the peer gets its alert, if it hasn't got one.
    pub fn fail(&mut self, fault: Fault) {
        if let (Some(alert), false) = (fault.alert(), self.state.has(note::IN_BATCH)) {
            self.alert(alert);
        }
        self.state.note(note::FAILED | note::ENDED);
        self.state.clear(note::ANSWER_DUE);
        if let Some(pieces) = self.pieces_mut() {
            pieces.take_piece();
            pieces.fragment = Fragment::default();
            self.settle();
        }
    }

    fn append_record(&mut self, kind: u8, plain: &[u8]) {
        let mut record = [0; CONTROL_BYTES_MAX];
        let sealed = Context::of(&self.state, Way::Send).and_then(|key| {
            seal::put_record(&mut self.state, &key, kind, Plain::Apart(plain), &mut record)
        });
        match sealed {
            Ok(bytes) => self.append_tail(&record[..bytes]),
            // The key has sealed as much as it may, or the library fails: there is no alert without a key.
            Err(_) => self.state.note(note::FAILED | note::ENDED),
        }
    }

    fn append_tail(&mut self, sealed: &[u8]) {
        self.pieces_begun().append_tail(sealed);
    }

    pub(super) fn pieces(&self) -> Option<&Unfinished> {
        let unfinished = self.state.is_unfinished();
        unfinished.then(|| self.unfinished.get(&self.key)).flatten()
    }

    pub(super) fn pieces_mut(&mut self) -> Option<&mut Unfinished> {
        let unfinished = self.state.is_unfinished();
        unfinished.then(|| self.unfinished.get_mut(&self.key)).flatten()
    }

    /// The pieces, which exist from now on. [`Records::settle`] has to follow if none is left.
    pub(super) fn pieces_begun(&mut self) -> &mut Unfinished {
        self.state.set_unfinished(true);
        self.unfinished.entry(self.key).or_default()
    }

    /// Lets go of the pieces if all are gone.
    pub(super) fn settle(&mut self) {
        if self.pieces().is_some_and(Unfinished::is_empty) {
            self.unfinished.remove(&self.key);
            self.state.set_unfinished(false);
        }
    }

    /// TLS 1.3: whether the key has to be replaced before it seals another record.
    pub(super) fn key_is_spent(&self) -> bool {
        self.state.sequence(Way::Send) >= self.suite().records_max() - RECORDS_SPARE
    }
}

impl std::fmt::Debug for Records<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records")
            .field("suite", &self.suite())
            .field("role", &self.role())
            .field("tail", &self.tail().len())
            .finish_non_exhaustive()
    }
}
