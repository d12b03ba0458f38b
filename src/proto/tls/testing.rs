//! For tests: secrets that two ends share, a record of all nonces, records of any content, and ends that talk.

use std::cell::Cell;

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce, UnboundKey};

use super::*;
use crate::proto::tls::state::{State, Way};

thread_local! {
    static PAIRS: Cell<u64> = const { Cell::new(0) };
}

/// For tests that let copies of one state go on, each in a world of its own.
pub(super) fn forget_uses() {
    nonces::watch();
}

/// How many records this thread has sealed.
pub(super) fn records_sealed() -> usize {
    nonces::sealed()
}

/// The states of a server and its client. Each pair of a thread has secrets of its own.
pub(super) fn pair(suite: Suite) -> (Packed, Packed) {
    let number = PAIRS.with(|pairs| pairs.replace(pairs.get() + 1));
    simulated::pair(suite, number).unwrap()
}

/// Seals any content as an end would, written from the specifications and apart from `seal.rs`. Begins with
/// the keys and numbers that the end has now.
pub(super) struct Forger {
    bytes: Vec<u8>,
}

impl Forger {
    pub(super) fn of(packed: &Packed) -> Self {
        let suite = packed.suite().unwrap();
        let mut bytes = packed.as_bytes()[..state::state_bytes(suite)].to_vec();
        bytes[0] &= !0b1_0000;
        Self { bytes }
    }

    fn state(&mut self) -> State<'_> {
        State::of(&mut self.bytes).unwrap()
    }

    pub(super) fn update_keys(&mut self) {
        self.state().update_keys(Way::Send).unwrap();
    }

    /// A record of this content type; of TLS 1.3 with so many zeros as padding.
    pub(super) fn record(&mut self, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
        let tls13 = self.state().suite().is_tls13();
        let mut inner = content.to_vec();
        if tls13 {
            inner.push(kind);
            inner.resize(inner.len() + padding, 0);
        }
        self.inner(kind, &inner)
    }

    /// A record with this plaintext.
    pub(super) fn inner(&mut self, kind: u8, inner: &[u8]) -> Vec<u8> {
        let mut state = self.state();
        let suite = state.suite();
        let sequence = state.sequence(Way::Send);
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&sequence.to_be_bytes());
        nonce.iter_mut().zip(state.iv(Way::Send)).for_each(|(byte, iv)| *byte ^= iv);
        let explicit = &nonce[12 - suite.explicit_bytes()..];
        let length = (explicit.len() + inner.len() + 16) as u16;
        let outer = if suite.is_tls13() { 23 } else { kind };
        let mut record = vec![outer, 3, 3];
        record.extend(length.to_be_bytes());
        let aad = if suite.is_tls13() {
            record.clone()
        } else {
            let length = (inner.len() as u16).to_be_bytes();
            [&sequence.to_be_bytes()[..], &[outer, 3, 3], &length].concat()
        };
        let key = LessSafeKey::new(UnboundKey::new(suite.aead(), state.key(Way::Send)).unwrap());
        let nonce = Nonce::assume_unique_for_key(nonce);
        let mut sealed = inner.to_vec();
        key.seal_in_place_append_tag(nonce, Aad::from(aad), &mut sealed).unwrap();
        state.set_sequence(Way::Send, sequence + 1);
        [&record[..], explicit, &sealed].concat()
    }
}

/// One end of a connection, with what it has read.
#[derive(Debug)]
pub(super) struct End {
    pub(super) pool: Pool,
    key: Option<Key>,
    pub(super) read: Vec<u8>,
    pub(super) closed: bool,
    pub(super) fault: Option<Fault>,
    batch: Batch,
}

impl End {
    pub(super) fn new(packed: Packed) -> Self {
        let mut pool = Pool::default();
        let key = Some(pool.insert(packed).unwrap());
        let batch = Batch::new();
        Self { pool, key, read: Vec::new(), closed: false, fault: None, batch }
    }

    pub(super) fn records(&mut self) -> Records<'_> {
        self.pool.records(self.key.as_ref().unwrap()).unwrap()
    }

    /// Reads bytes that come in one piece. Stops with an end.
    pub(super) fn read(&mut self, bytes: &[u8]) {
        let mut input = bytes.to_vec();
        let mut at = 0;
        let mut opener = Opener::new();
        let mut records = self.pool.records(self.key.as_ref().unwrap()).unwrap();
        loop {
            match opener.next(&mut records, &mut input, &mut at) {
                Ok(Some(Received::Data(data))) => {
                    assert!(!data.is_empty());
                    self.read.extend_from_slice(data);
                }
                Ok(Some(Received::Closed)) => self.closed = true,
                Ok(None) => break,
                Err(fault) => {
                    self.fault.get_or_insert(fault);
                    return;
                }
            }
        }
        assert_eq!(at, input.len());
    }

    /// Seals frames, of which the socket takes `sent` bytes at once. Returns those, and how much plaintext
    /// was sealed.
    pub(super) fn write(
        &mut self,
        frames: &[&[u8]],
        sent: usize,
    ) -> Result<(Vec<u8>, usize), Unsealed> {
        let mut records = self.pool.records(self.key.as_ref().unwrap()).unwrap();
        let sealed = self.batch.seal(&mut records, frames.iter().copied())?;
        let bytes = self.batch.bytes(&sealed);
        let sent = sent.min(bytes.len());
        let out = bytes[..sent].to_vec();
        records.sent(bytes, sent);
        self.batch.clear();
        Ok((out, sealed.plain))
    }

    /// Sends so much of the tail.
    pub(super) fn flush(&mut self, bytes: usize) -> Vec<u8> {
        let mut records = self.records();
        let tail = records.tail();
        let out = tail[..bytes.min(tail.len())].to_vec();
        records.tail_sent(out.len());
        out
    }

    /// Sends all of the tail, and what follows it.
    pub(super) fn flush_all(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while !self.records().tail().is_empty() {
            out.extend(self.flush(usize::MAX));
        }
        out
    }

    /// To another pool, as bytes.
    pub(super) fn pass(&mut self) {
        let packed = self.pool.take(self.key.take().unwrap()).unwrap();
        assert!(self.pool.is_empty() && self.pool.unfinished() == 0);
        self.pool = Pool::default();
        let packed = Packed::from_bytes(packed.as_bytes()).unwrap();
        self.key = Some(self.pool.insert(packed).unwrap());
    }

    pub(super) fn pack(&mut self) -> Packed {
        self.records().pack().unwrap()
    }
}

/// A server and its client.
pub(super) fn ends(suite: Suite) -> (End, End) {
    let (server, client) = pair(suite);
    (End::new(server), End::new(client))
}
