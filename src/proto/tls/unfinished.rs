//! The bytes of a connection that is in the middle of something: they exist only meanwhile.

use super::packed::Malformed;
use super::state::{Role, State};
use super::{HEADER_BYTES, SEALED_BYTES_MAX};

/// A tail at most in packed bytes: more than a batch and a few alerts.
const TAIL_BYTES_MAX: usize = 1 << 20;

/// Pieces of records and messages that haven't come whole, and sealed bytes that aren't sent.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    /// The first bytes of a record: its ciphertext, as it came.
    piece: Vec<u8>,
    /// When [`Unfinished::is_late`] has first seen what hasn't come whole, by the caller's clock.
    seen_at: Option<u64>,
    /// Sealed bytes; those before `sent` are sent.
    tail: Vec<u8>,
    sent: usize,
    pub(super) fragment: Fragment,
}

/// The begin of a handshake message: at most the header of a KeyUpdate, which is a byte longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fragment {
    pub(super) bytes: [u8; 4],
    pub(super) len: u8,
    /// Client: bytes of a NewSessionTicket that are still to come. `len` is 0 meanwhile.
    pub(super) skip: u32,
}

impl Fragment {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Unfinished {
    pub(super) fn is_empty(&self) -> bool {
        self.piece.is_empty() && self.tail.is_empty() && self.fragment.is_empty()
    }

    pub(super) fn piece(&self) -> &[u8] {
        &self.piece
    }

    /// The begin of a record. Its time begins, unless it goes on with a message whose time has begun.
    pub(super) fn begin_piece(&mut self, piece: Vec<u8>) {
        if self.fragment.is_empty() {
            self.restart();
        }
        self.piece = piece;
    }

    pub(super) fn piece_mut(&mut self) -> &mut Vec<u8> {
        &mut self.piece
    }

    /// A record that has come whole.
    pub(super) fn take_piece(&mut self) -> Vec<u8> {
        if self.fragment.is_empty() {
            self.restart();
        }
        std::mem::take(&mut self.piece)
    }

    /// The time of what is incomplete begins anew.
    pub(super) fn restart(&mut self) {
        self.seen_at = None;
    }

    /// Whether a record or message has been incomplete for more than `ms_max` since this was first called for
    /// it. Price: none for those who don't call it; so a deadline is late by up to the time between two calls.
    pub(super) fn is_late(&mut self, now: u64, ms_max: u64) -> bool {
        if self.piece.is_empty() && self.fragment.is_empty() {
            self.seen_at = None;
            return false;
        }
        now.saturating_sub(*self.seen_at.get_or_insert(now)) > ms_max
    }

    /// Sealed bytes that are still to be sent.
    pub(super) fn tail(&self) -> &[u8] {
        &self.tail[self.sent..]
    }

    pub(super) fn append_tail(&mut self, sealed: &[u8]) {
        self.tail.reserve_exact(sealed.len());
        self.tail.extend_from_slice(sealed);
    }

    /// `bytes` of the tail are sent. The last ones free it.
    pub(super) fn tail_sent(&mut self, bytes: usize) {
        self.sent = (self.sent + bytes).min(self.tail.len());
        if self.sent == self.tail.len() {
            (self.tail, self.sent) = (Vec::new(), 0);
        }
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.piece.capacity() + self.tail.capacity()
    }

    /// Appends the packed form:
    /// fragment length 1, fragment | skip 4 | piece length 2, piece | tail length 4, tail.
    pub(super) fn pack(&self, out: &mut Vec<u8>) {
        let Fragment { bytes, len, skip } = self.fragment;
        out.push(len);
        out.extend_from_slice(&bytes[..usize::from(len)]);
        out.extend_from_slice(&skip.to_be_bytes());
        // A piece is shorter than a record, 2^14 + 261; a tail is at most some batches.
        out.extend_from_slice(&(self.piece.len() as u16).to_be_bytes());
        out.extend_from_slice(&self.piece);
        out.extend_from_slice(&(self.tail().len() as u32).to_be_bytes());
        out.extend_from_slice(self.tail());
    }

    pub(super) fn packed_bytes(&self) -> usize {
        11 + usize::from(self.fragment.len) + self.piece.len() + self.tail().len()
    }

    /// The pieces in `bytes`, all of which they are.
    pub(super) fn unpack(state: &State<'_>, bytes: &[u8]) -> Result<Self, Malformed> {
        let mut rest = bytes;
        let mut take = |count: usize| {
            let (taken, behind) = rest.split_at_checked(count).ok_or(Malformed)?;
            rest = behind;
            Ok::<_, Malformed>(taken)
        };
        let mut fragment = Fragment { len: take(1)?[0], ..Fragment::default() };
        let begun = take(usize::from(fragment.len))?;
        fragment.bytes.get_mut(..begun.len()).ok_or(Malformed)?.copy_from_slice(begun);
        fragment.skip = take(4)?.iter().fold(0, |skip, byte| skip << 8 | u32::from(*byte));
        let piece_bytes = take(2)?.iter().fold(0, |bytes, byte| bytes << 8 | usize::from(*byte));
        let piece = take(piece_bytes)?.to_vec();
        let tail_bytes = take(4)?.iter().fold(0, |bytes, byte| bytes << 8 | usize::from(*byte));
        if tail_bytes > TAIL_BYTES_MAX {
            return Err(Malformed);
        }
        let tail = take(tail_bytes)?.to_vec();
        let client = state.role() == Role::Client;
        let unfinished = Self { piece, seen_at: None, tail, sent: 0, fragment };
        let valid = rest.is_empty()
            && !unfinished.is_empty()
            && (state.suite().is_tls13() || fragment.is_empty())
            && (fragment.skip == 0 || client && fragment.len == 0 && fragment.skip < 1 << 24)
            && unfinished.piece_is_shorter_than_its_record();
        if valid { Ok(unfinished) } else { Err(Malformed) }
    }

    fn piece_is_shorter_than_its_record(&self) -> bool {
        let announced = |bytes: &[u8]| usize::from(u16::from_be_bytes([bytes[3], bytes[4]]));
        match self.piece.get(..HEADER_BYTES) {
            None => true,
            Some(header) => {
                let bytes = announced(header);
                bytes <= SEALED_BYTES_MAX && self.piece.len() < HEADER_BYTES + bytes
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::{head, state_bytes};
    use super::super::suite::Suite;
    use super::*;

    fn unpack(suite: Suite, role: Role, bytes: &[u8]) -> Result<Unfinished, Malformed> {
        let mut state = vec![0; state_bytes(suite)];
        state[0] = head(suite, role);
        Unfinished::unpack(&State::of(&mut state).unwrap(), bytes)
    }

    #[test]
    fn only_the_unsent_part_of_a_tail_is_packed() {
        let mut unfinished = Unfinished::default();
        unfinished.append_tail(b"sealed");
        unfinished.tail_sent(4);
        let mut packed = Vec::new();
        unfinished.pack(&mut packed);
        assert_eq!(packed, b"\0\0\0\0\0\0\0\0\0\0\x02ed");
        assert_eq!(packed.len(), unfinished.packed_bytes());
        let unpacked = unpack(Suite::Tls12ChaCha20, Role::Server, &packed).unwrap();
        assert_eq!(unpacked.tail(), b"ed");
        unfinished.tail_sent(2);
        assert_eq!((unfinished.is_empty(), unfinished.heap_bytes()), (true, 0));
    }

    #[test]
    fn a_record_is_late_by_its_own_time() {
        let mut unfinished = Unfinished::default();
        unfinished.append_tail(b"sealed");
        assert!(!unfinished.is_late(1_000_000, 0), "nothing is incomplete");
        unfinished.begin_piece(vec![23]);
        assert!(!unfinished.is_late(5_000, 10_000));
        assert!(!unfinished.is_late(15_000, 10_000));
        assert!(unfinished.is_late(15_001, 10_000));
        // The next one has a time of its own, also where nobody looked between the two.
        assert_eq!(unfinished.take_piece(), [23]);
        unfinished.begin_piece(vec![23, 3]);
        assert!(!unfinished.is_late(15_002, 10_000));
        // The begin of a message goes on in the next record, and so does its time.
        unfinished.take_piece();
        unfinished.fragment = Fragment { len: 1, ..Fragment::default() };
        assert!(!unfinished.is_late(20_000, 10_000));
        unfinished.begin_piece(vec![23]);
        assert!(unfinished.is_late(30_001, 10_000));
    }

    #[test]
    fn packed_bytes_that_no_connection_has_are_refused() {
        let suite = Suite::Tls13Aes128Gcm;
        let wrong: [&[u8]; 9] = [
            b"",
            // Nothing unfinished.
            b"\0\0\0\0\0\0\0\0\0\0\0",
            // A fragment of five bytes.
            b"\x05abcde\0\0\0\0\0\0\0\0\0\0",
            // A server that skips a ticket.
            b"\0\0\0\0\x01\0\0\0\0\0\0",
            // A piece that is a whole record, and one of a record that is too long.
            b"\0\0\0\0\0\0\x06\x17\x03\x03\0\x01x\0\0\0\0",
            b"\0\0\0\0\0\0\x05\x17\x03\x03\xff\xff\0\0\0\0",
            // A tail that is cut, one that is too long, and bytes behind it.
            b"\0\0\0\0\0\0\0\0\0\0\x02x",
            b"\0\0\0\0\0\0\0\xff\0\0\0",
            b"\0\0\0\0\0\0\0\0\0\0\x01xy",
        ];
        for bytes in wrong {
            assert_eq!(unpack(suite, Role::Server, bytes).unwrap_err(), Malformed, "{bytes:?}");
        }
        let fragment = b"\x02\x18\0\0\0\0\0\0\0\0\0\0\0";
        assert!(unpack(suite, Role::Server, fragment).is_ok());
        assert!(unpack(Suite::Tls12Aes128Gcm, Role::Server, fragment).is_err());
        assert!(unpack(suite, Role::Client, b"\0\0\0\0\x01\0\0\0\0\0\0").is_ok());
    }
}
