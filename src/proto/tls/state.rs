//! The durable state of a connection, as bytes: in a slot of a pool, and packed.
//!
//! ```text
//!  byte 0     format, 3 bits | 1 bit: unfinished pieces behind it | 1 bit: client | suite, 3 bits
//!  to send    key 16 or 32 | IV 12 | sequence number 7 | notes 1 | traffic secret 0, 32 or 48
//!  to receive the same
//! ```
//!
//! | | TLS 1.3 | TLS 1.2 |
//! | --- | --- | --- |
//! | AES-128-GCM | 137 | 73 |
//! | AES-256-GCM | 201 | 105 |
//! | ChaCha20-Poly1305 | 169 | 105 |
//!
//! Keys and IVs could be derived from the secrets for each use. That costs 0.7 us (SHA-384: 2.5 us), more
//! than sealing a small record, and saves 56 bytes.
//!
//! A sequence number has 56 bits in place of 64: at 10 million records a second they last 228 years. The
//! eighth byte holds the notes, so that an idle connection needs nothing beside its slot.

use std::ops::Range;

use aws_lc_rs::hkdf::{KeyType, Prk};
use zeroize::Zeroize as _;

use super::suite::{IV_BYTES, Suite};

/// The format of the bytes. 0 is no format: a free slot begins with it.
pub(super) const FORMAT: u8 = 1;

const SEQUENCE_BYTES: usize = 7;
pub(super) const SEQUENCE_MAX: u64 = (1 << (8 * SEQUENCE_BYTES)) - 1;

const UNFINISHED: u8 = 0b1_0000;
const CLIENT: u8 = 0b1000;
const SUITE: u8 = 0b111;

/// The server or the client of the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// This end has accepted.
    Server,
    /// This end has connected.
    Client,
}

/// One of the two directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Send,
    Receive,
}

/// Notes of the direction [`Way::Send`].
pub(super) mod note {
    /// close_notify or a fatal alert is sealed: nothing is sealed behind it.
    pub(in super::super) const ENDED: u8 = 1;
    /// A fault has ended the connection: nothing is opened any more.
    pub(in super::super) const FAILED: u8 = 2;
    /// The peer has requested a KeyUpdate that is not sealed yet.
    pub(in super::super) const ANSWER_DUE: u8 = 4;
    /// Sealed records are with the caller, who hasn't said how much of them is sent.
    pub(in super::super) const IN_BATCH: u8 = 8;
    pub(in super::super) const SEND: u8 = ENDED | FAILED | ANSWER_DUE | IN_BATCH;
    /// Of [`Way::Receive`](super::Way::Receive): the peer's close_notify has come.
    pub(in super::super) const CLOSED: u8 = 0x80;
    /// Of [`Way::Receive`](super::Way::Receive): how many records without data came in a row.
    pub(in super::super) const WITHOUT_DATA: u8 = 0x3f;
}

/// Bytes of one direction's state.
const fn direction_bytes(suite: Suite) -> usize {
    suite.key_bytes() + IV_BYTES + SEQUENCE_BYTES + 1 + suite.secret_bytes()
}

/// Bytes of a state.
pub(super) const fn state_bytes(suite: Suite) -> usize {
    1 + 2 * direction_bytes(suite)
}

/// The first byte of a state without unfinished pieces.
pub(super) const fn head(suite: Suite, role: Role) -> u8 {
    let client = match role {
        Role::Server => 0,
        Role::Client => CLIENT,
    };
    FORMAT << 5 | client | suite as u8
}

/// The suite that a state's first byte names, if its format is known.
pub(super) fn suite_of(head: u8) -> Option<Suite> {
    (head >> 5 == FORMAT).then(|| Suite::ALL.get(usize::from(head & SUITE)).copied()).flatten()
}

/// A state in its place. Invariant: `bytes` are `state_bytes(suite)` long, and the first is a `head`.
pub(super) struct State<'s> {
    suite: Suite,
    bytes: &'s mut [u8],
}

impl<'s> State<'s> {
    /// The state in `bytes`. `None`: there is none, or it has another length.
    pub(super) fn of(bytes: &'s mut [u8]) -> Option<Self> {
        let suite = suite_of(*bytes.first()?)?;
        (bytes.len() == state_bytes(suite)).then_some(Self { suite, bytes })
    }

    pub(super) fn suite(&self) -> Suite {
        self.suite
    }

    pub(super) fn role(&self) -> Role {
        if self.bytes[0] & CLIENT == 0 { Role::Server } else { Role::Client }
    }

    pub(super) fn is_unfinished(&self) -> bool {
        self.bytes[0] & UNFINISHED != 0
    }

    pub(super) fn set_unfinished(&mut self, unfinished: bool) {
        self.bytes[0] = self.bytes[0] & !UNFINISHED | if unfinished { UNFINISHED } else { 0 };
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes
    }

    pub(super) fn key(&self, way: Way) -> &[u8] {
        &self.bytes[self.key_at(way)]
    }

    pub(super) fn iv(&self, way: Way) -> &[u8] {
        &self.bytes[self.iv_at(way)]
    }

    /// IV xor sequence number: the nonce of TLS 1.3 and RFC 7905, and the one that is sent with AES-GCM in
    /// TLS 1.2, where any that is used once will do.
    pub(super) fn nonce(&self, way: Way) -> [u8; IV_BYTES] {
        let mut nonce = [0; IV_BYTES];
        nonce.copy_from_slice(self.iv(way));
        for (byte, number) in nonce[4..].iter_mut().zip(self.sequence(way).to_be_bytes()) {
            *byte ^= number;
        }
        nonce
    }

    pub(super) fn sequence(&self, way: Way) -> u64 {
        let mut bytes = [0; 8];
        bytes[1..].copy_from_slice(&self.bytes[self.sequence_at(way)]);
        u64::from_be_bytes(bytes)
    }

    pub(super) fn set_sequence(&mut self, way: Way, sequence: u64) {
        debug_assert!(sequence <= SEQUENCE_MAX);
        let at = self.sequence_at(way);
        self.bytes[at].copy_from_slice(&sequence.to_be_bytes()[1..]);
    }

    pub(super) fn notes(&self, way: Way) -> u8 {
        self.bytes[self.sequence_at(way).end]
    }

    pub(super) fn set_notes(&mut self, way: Way, notes: u8) {
        let at = self.sequence_at(way).end;
        self.bytes[at] = notes;
    }

    /// Whether one of these notes of the direction [`Way::Send`] is there.
    pub(super) fn has(&self, notes: u8) -> bool {
        self.notes(Way::Send) & notes != 0
    }

    pub(super) fn note(&mut self, notes: u8) {
        self.set_notes(Way::Send, self.notes(Way::Send) | notes);
    }

    pub(super) fn clear(&mut self, notes: u8) {
        self.set_notes(Way::Send, self.notes(Way::Send) & !notes);
    }

    /// The next generation of a direction's keys (RFC 8446 7.2). The secret, key and IV of before are
    /// overwritten. `None`: the library fails.
    pub(super) fn update_keys(&mut self, way: Way) -> Option<()> {
        let secret = self.secret_at(way);
        let prk = Prk::new_less_safe(self.suite.hkdf(), &self.bytes[secret.clone()]);
        expand_label(&prk, b"traffic upd", &mut self.bytes[secret])?;
        let (key, iv) = (self.key_at(way), self.iv_at(way));
        let prk = Prk::new_less_safe(self.suite.hkdf(), self.secret(way));
        derive(&prk, self.suite, &mut self.bytes[key.start..iv.end])?;
        self.set_sequence(way, 0);
        Some(())
    }

    /// Whether key and IV are those of the traffic secret. TLS 1.2 has no secret to compare with.
    pub(super) fn keys_fit(&self, way: Way) -> bool {
        if !self.suite.is_tls13() {
            return true;
        }
        let mut derived = [0; 32 + IV_BYTES];
        let derived = &mut derived[..self.suite.key_bytes() + IV_BYTES];
        let prk = Prk::new_less_safe(self.suite.hkdf(), self.secret(way));
        let kept = &self.bytes[self.key_at(way).start..self.iv_at(way).end];
        let fit = derive(&prk, self.suite, derived).is_some()
            && aws_lc_rs::constant_time::verify_slices_are_equal(derived, kept).is_ok();
        derived.zeroize();
        fit
    }

    fn secret(&self, way: Way) -> &[u8] {
        &self.bytes[self.secret_at(way)]
    }

    fn key_at(&self, way: Way) -> Range<usize> {
        let start = match way {
            Way::Send => 1,
            Way::Receive => 1 + direction_bytes(self.suite),
        };
        start..start + self.suite.key_bytes()
    }

    fn iv_at(&self, way: Way) -> Range<usize> {
        let start = self.key_at(way).end;
        start..start + IV_BYTES
    }

    fn sequence_at(&self, way: Way) -> Range<usize> {
        let start = self.iv_at(way).end;
        start..start + SEQUENCE_BYTES
    }

    fn secret_at(&self, way: Way) -> Range<usize> {
        let start = self.sequence_at(way).end + 1;
        start..start + self.suite.secret_bytes()
    }
}

/// Key and IV of a traffic secret (RFC 8446 7.3), one behind the other.
pub(super) fn derive(prk: &Prk, suite: Suite, key_and_iv: &mut [u8]) -> Option<()> {
    let (key, iv) = key_and_iv.split_at_mut_checked(suite.key_bytes())?;
    expand_label(prk, b"key", key)?;
    expand_label(prk, b"iv", iv)
}

/// HKDF-Expand-Label with an empty context (RFC 8446 7.1).
pub(super) fn expand_label(prk: &Prk, label: &[u8], out: &mut [u8]) -> Option<()> {
    const PREFIX: &[u8] = b"tls13 ";
    // At most 48 and 17.
    let (length, label_bytes) = (out.len() as u16, (PREFIX.len() + label.len()) as u8);
    let info = [&length.to_be_bytes()[..], &[label_bytes], PREFIX, label, &[0]];
    prk.expand(&info, OutputBytes(out.len())).ok()?.fill(out).ok()
}

/// A length, as the library takes it.
struct OutputBytes(usize);

impl KeyType for OutputBytes {
    fn len(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_the_documented_lengths() {
        assert_eq!(Suite::ALL.map(state_bytes), [137, 201, 169, 73, 105, 105]);
    }

    #[test]
    fn fields_do_not_overlap_and_fill_the_state() {
        for suite in Suite::ALL {
            let mut bytes = vec![0; state_bytes(suite)];
            bytes[0] = head(suite, Role::Server);
            let state = State::of(&mut bytes).unwrap();
            let mut end = 1;
            for way in [Way::Send, Way::Receive] {
                assert_eq!(state.key_at(way).start, end);
                assert_eq!(state.sequence_at(way).end + 1, state.secret_at(way).start);
                end = state.secret_at(way).end;
            }
            assert_eq!(end, state.bytes().len());
        }
    }

    #[test]
    fn fields_keep_what_is_set() {
        for (suite, role) in Suite::ALL.into_iter().zip([Role::Client, Role::Server].repeat(3)) {
            let mut bytes = vec![0; state_bytes(suite)];
            bytes[0] = head(suite, role);
            let mut state = State::of(&mut bytes).unwrap();
            assert_eq!((state.suite(), state.role()), (suite, role));
            state.set_sequence(Way::Send, SEQUENCE_MAX);
            state.set_sequence(Way::Receive, 7);
            state.note(note::ENDED | note::ANSWER_DUE);
            state.clear(note::ENDED);
            state.set_notes(Way::Receive, 3);
            state.set_unfinished(true);
            assert_eq!((state.suite(), state.role()), (suite, role));
            assert_eq!(
                (state.sequence(Way::Send), state.sequence(Way::Receive)),
                (SEQUENCE_MAX, 7)
            );
            assert_eq!((state.notes(Way::Send), state.notes(Way::Receive)), (note::ANSWER_DUE, 3));
            assert!(state.is_unfinished() && !state.has(note::ENDED));
            state.set_unfinished(false);
            assert!(!state.is_unfinished());
        }
    }

    #[test]
    fn unknown_formats_and_suites_are_no_state() {
        for head in [0, 1 << 5 | 6, 1 << 5 | 7, 2 << 5, 7 << 5] {
            assert_eq!(suite_of(head), None, "{head:#x}");
            assert!(State::of(&mut [head; 137]).is_none());
        }
        assert!(State::of(&mut [head(Suite::Tls13Aes128Gcm, Role::Server); 136]).is_none());
        assert!(State::of(&mut []).is_none());
    }

    /// The server's handshake secret of the trace in RFC 8448 3, and the key and IV that it gives.
    #[test]
    fn keys_are_derived_as_in_the_published_trace() {
        let secret = hex("b67b7d690cc16c4e75e54213cb2d37b4e9c912bcded9105d42befd59d391ad38");
        let prk = Prk::new_less_safe(Suite::Tls13Aes128Gcm.hkdf(), &secret);
        let mut derived = [0; 28];
        derive(&prk, Suite::Tls13Aes128Gcm, &mut derived).unwrap();
        assert_eq!(derived[..16], hex("3fce516009c21727d0f2e4e86ee403bc"));
        assert_eq!(derived[16..], hex("5d313eb2671276ee13000b30"));
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> =
            text.bytes().map(|c| (c as char).to_digit(16).unwrap() as u8).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }
}
