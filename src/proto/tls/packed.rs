//! The state of a connection outside of a pool: how it comes from a handshake, and how it goes to another
//! shard or process.

use zeroize::Zeroize as _;

use super::state::{Role, State, Way, head, note, state_bytes, suite_of};
use super::suite::{IV_BYTES, Suite};
use super::unfinished::Unfinished;
use super::{RECORDS_WITHOUT_DATA_MAX, state};

/// The secrets of one direction, as a handshake yields them.
#[derive(Clone, Copy)]
pub struct Secrets<'a> {
    /// Number of the next record. The handshake's own records count: Finished, tickets.
    pub sequence: u64,
    /// Key of the AEAD.
    pub key: &'a [u8],
    /// IV, 12 bytes.
    pub iv: &'a [u8],
    /// TLS 1.3: the application traffic secret of which both come. TLS 1.2: empty.
    pub traffic_secret: &'a [u8],
}

/// The whole state of one connection's record layer: 73 to 201 bytes, and what is unfinished.
///
/// Who unpacks it goes on with its sequence numbers. Two that do so seal with the same nonces, which gives
/// away both plaintexts and, with AES-GCM, the key that authenticates. So a state that was packed and given
/// away is removed from its pool, or frozen until it is known that nobody has unpacked it.
///
/// The bytes are wiped when it is dropped. They aren't shown by `Debug`.
pub struct Packed(Vec<u8>);

/// The bytes are no state, or secrets don't fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("malformed state of a TLS connection")
    }
}

impl std::error::Error for Malformed {}

impl Packed {
    /// The state of a connection whose handshake has just ended.
    ///
    /// # Errors
    /// A length is wrong, a sequence number is beyond what the key may seal, or TLS 1.3's keys aren't those
    /// of the traffic secrets: with a KeyUpdate they would become keys that the peer doesn't have.
    pub fn new(
        role: Role,
        suite: Suite,
        send: Secrets<'_>,
        receive: Secrets<'_>,
    ) -> Result<Self, Malformed> {
        let mut bytes = Vec::with_capacity(state_bytes(suite));
        bytes.push(head(suite, role));
        for secrets in [send, receive] {
            let Secrets { sequence, key, iv, traffic_secret } = secrets;
            let fit = key.len() == suite.key_bytes()
                && iv.len() == IV_BYTES
                && traffic_secret.len() == suite.secret_bytes()
                && sequence < suite.records_max();
            if !fit {
                bytes.zeroize();
                return Err(Malformed);
            }
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(iv);
            bytes.extend_from_slice(&sequence.to_be_bytes()[1..]);
            bytes.push(0);
            bytes.extend_from_slice(traffic_secret);
        }
        let mut packed = Self(bytes);
        let state = State::of(&mut packed.0).ok_or(Malformed)?;
        let fit = state.keys_fit(Way::Send) && state.keys_fit(Way::Receive);
        if fit { Ok(packed) } else { Err(Malformed) }
    }

    /// The same with bytes that go out before anything is sealed: what the handshake has still to send.
    pub fn with_tail(mut self, unsent: &[u8]) -> Result<Self, Malformed> {
        let (mut state, unfinished) = self.split()?;
        if unsent.is_empty() {
            return Ok(self);
        }
        let mut unfinished = unfinished.unwrap_or_default();
        unfinished.append_tail(unsent);
        state.set_unfinished(true);
        Ok(Self::of(&state, Some(&unfinished)))
    }

    /// Takes bytes of [`Packed::as_bytes`], of this process or another. Secrets aren't derived again: that
    /// would cost 3 us each.
    ///
    /// # Errors
    /// They are no state of this format.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut packed = Self(bytes.to_vec());
        packed.split()?;
        Ok(packed)
    }

    /// The bytes: secrets, to be kept from everybody.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The suite that the first byte names.
    pub fn suite(&self) -> Option<Suite> {
        suite_of(*self.0.first()?)
    }

    /// Of a state in its slot.
    pub(super) fn of(state: &State<'_>, unfinished: Option<&Unfinished>) -> Self {
        let more = unfinished.map_or(0, Unfinished::packed_bytes);
        // As long as it will be: a vector that grows leaves secrets behind.
        let mut bytes = Vec::with_capacity(state.bytes().len() + more);
        bytes.extend_from_slice(state.bytes());
        if let Some(unfinished) = unfinished {
            unfinished.pack(&mut bytes);
        }
        Self(bytes)
    }

    /// The state and the unfinished pieces.
    pub(super) fn split(&mut self) -> Result<(State<'_>, Option<Unfinished>), Malformed> {
        let suite = self.suite().ok_or(Malformed)?;
        let (bytes, rest) = self.0.split_at_mut_checked(state_bytes(suite)).ok_or(Malformed)?;
        let state = State::of(bytes).ok_or(Malformed)?;
        let (send, receive) = (state.notes(Way::Send), state.notes(Way::Receive));
        let notes_fit = send & !(note::SEND & !note::IN_BATCH) == 0
            && (state.suite().is_tls13() || send & note::ANSWER_DUE == 0)
            && receive & !(note::CLOSED | note::WITHOUT_DATA) == 0
            && receive & note::WITHOUT_DATA <= RECORDS_WITHOUT_DATA_MAX;
        // A key may have been at its limit when it was packed, but not beyond.
        let within = state.sequence(Way::Send) <= suite.records_max()
            && state.sequence(Way::Receive) <= state::SEQUENCE_MAX;
        if !notes_fit || !within {
            return Err(Malformed);
        }
        let unfinished = match state.is_unfinished() {
            true => Some(Unfinished::unpack(&state, rest)?),
            false if rest.is_empty() => None,
            false => return Err(Malformed),
        };
        Ok((state, unfinished))
    }
}

impl Drop for Packed {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packed({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::pair;
    use super::*;

    #[test]
    fn secrets_of_wrong_lengths_or_of_another_generation_are_refused() {
        let suite = Suite::Tls13Aes128Gcm;
        let (packed, _) = pair(suite);
        let bytes = packed.as_bytes();
        let of = |at: usize| Secrets {
            sequence: 0,
            key: &bytes[at..at + 16],
            iv: &bytes[at + 16..at + 28],
            traffic_secret: &bytes[at + 36..at + 68],
        };
        let (send, receive) = (of(1), of(69));
        assert!(Packed::new(Role::Server, suite, send, receive).is_ok());
        let new = |send| Packed::new(Role::Server, suite, send, receive).is_ok();
        assert!(!new(Secrets { key: &send.key[1..], ..send }));
        assert!(!new(Secrets { iv: &send.iv[1..], ..send }));
        assert!(!new(Secrets { traffic_secret: &[], ..send }));
        assert!(!new(Secrets { sequence: 1 << 24, ..send }));
        assert!(!new(Secrets { traffic_secret: receive.traffic_secret, ..send }));
        assert!(!new(Secrets { iv: receive.iv, ..send }));
        assert!(Packed::new(Role::Server, Suite::Tls12Aes128Gcm, send, receive).is_err());
    }

    #[test]
    fn bytes_that_are_no_state_are_refused() {
        let (packed, _) = pair(Suite::Tls12Aes128Gcm);
        let good = packed.as_bytes().to_vec();
        assert!(Packed::from_bytes(&good).is_ok());
        assert!(Packed::from_bytes(&good[..72]).is_err());
        assert!(Packed::from_bytes(&[&good[..], &[0]].concat()).is_err());
        assert!(Packed::from_bytes(&[]).is_err());
        // Byte 36 holds the notes to send, 72 those to receive; 29 to 35 are the sequence number.
        let refused = [(0, 0), (0, 0xff), (0, good[0] | 0b1_0000), (36, 4), (36, 8), (36, 16)];
        for (at, byte) in refused.into_iter().chain([(72, 0x40), (72, 33), (29, 1)]) {
            let mut bytes = good.clone();
            bytes[at] = byte;
            assert!(Packed::from_bytes(&bytes).is_err(), "{at}: {byte}");
        }
    }

    #[test]
    fn debug_shows_no_secrets() {
        let (packed, _) = pair(Suite::Tls13ChaCha20);
        assert_eq!(format!("{packed:?}"), "Packed(169 bytes)");
    }
}
