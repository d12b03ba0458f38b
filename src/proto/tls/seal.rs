//! Plaintext to records.

use super::context::{Context, Unspecified};
use super::records::{Records, key_update};
use super::state::{State, Way, note};
use super::suite::{Suite, TAG_BYTES};
use super::{HEADER_BYTES, PLAIN_BYTES_MAX, VERSION, kind};

/// Frames of at most so many bytes are joined in one record, by a copy. A record of its own costs 210 ns and
/// 22 bytes on the wire, copying 1 KiB 30 ns.
pub(super) const JOINED_BYTES_MAX: usize = 1024;

/// The reason why no data can be sealed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsealed {
    /// Sealed bytes are there: [`Records::tail`] goes out first.
    TailFirst,
    /// [`Records::sent`] hasn't been called for what was sealed last.
    InBatch,
    /// close_notify or an alert was sealed.
    Ended,
    /// TLS 1.2: the key has sealed as much as it may ([`Records::is_worn`] says so before).
    KeyWorn,
}

impl std::fmt::Display for Unsealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TailFirst => "sealed bytes have to be sent first",
            Self::InBatch => "sealed bytes are in a batch",
            Self::Ended => "the connection has ended",
            Self::KeyWorn => "the key has sealed as much as it may",
        })
    }
}

impl std::error::Error for Unsealed {}

/// The plaintext of a record.
#[derive(Clone, Copy)]
pub(super) enum Plain<'a> {
    /// Elsewhere: sealed out of place, so a frame that many share isn't copied.
    Apart(&'a [u8]),
    /// This many bytes are in their place in the record.
    InPlace(usize),
}

/// Where the plaintext of a record begins.
pub(super) const fn plain_at(suite: Suite) -> usize {
    HEADER_BYTES + suite.explicit_bytes()
}

/// Writes one record to the begin of `out`. Returns its length. The sequence number moves on before the key
/// is used, so that no fault in between can bring a nonce again.
pub(super) fn put_record(
    state: &mut State<'_>,
    context: &Context,
    kind: u8,
    plain: Plain<'_>,
    out: &mut [u8],
) -> Result<usize, Unspecified> {
    let suite = state.suite();
    let plain_bytes = match plain {
        Plain::Apart(bytes) => bytes.len(),
        Plain::InPlace(bytes) => bytes,
    };
    let bytes = plain_bytes + suite.overhead_bytes();
    let out = out.get_mut(..bytes).ok_or(Unspecified)?;
    let (sequence, nonce) = (state.sequence(Way::Send), state.nonce(Way::Send));
    if sequence >= suite.records_max() {
        return Err(Unspecified);
    }
    state.set_sequence(Way::Send, sequence + 1);

    // At most 2^14 and a few bytes.
    let length = ((bytes - HEADER_BYTES) as u16).to_be_bytes();
    let outer = if suite.is_tls13() { kind::DATA } else { kind };
    let header = [outer, VERSION[0], VERSION[1], length[0], length[1]];
    let (head, body) = out.split_at_mut(plain_at(suite));
    head[..HEADER_BYTES].copy_from_slice(&header);
    head[HEADER_BYTES..].copy_from_slice(&nonce[nonce.len() - suite.explicit_bytes()..]);

    let tls12 = tls12_aad(sequence, header, plain_bytes);
    let (aad, extra): (&[u8], &[u8]) =
        if suite.is_tls13() { (&header, &[kind]) } else { (&tls12, &[]) };
    match plain {
        Plain::Apart(plain) => context.seal(nonce, aad, plain, extra, body)?,
        Plain::InPlace(_) => context.seal_in_place(nonce, aad, extra, body)?,
    }
    Ok(bytes)
}

/// Additional data of TLS 1.2 (RFC 5246 6.2.3.3): number, type and version of the record as it is, length
/// of the plaintext.
pub(super) fn tls12_aad(sequence: u64, header: [u8; HEADER_BYTES], plain_bytes: usize) -> [u8; 13] {
    let mut aad = [0; 13];
    aad[..8].copy_from_slice(&sequence.to_be_bytes());
    aad[8..11].copy_from_slice(&header[..3]);
    // At most 2^14.
    aad[11..].copy_from_slice(&(plain_bytes as u16).to_be_bytes());
    aad
}

/// Room that a batch needs so that at least one record fits: the longest, and a KeyUpdate before it.
pub(super) const ROOM_BYTES_MIN: usize = PLAIN_BYTES_MAX + 29 + HEADER_BYTES + 5 + 1 + TAG_BYTES;

/// Plaintext that was sealed, and the bytes that it became.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) plain: usize,
    pub(super) sealed: usize,
}

impl Records<'_> {
    /// Seals frames into `out`, as many as fit in whole records. A frame is cut only where it is longer than
    /// a record.
    pub(super) fn seal<'f>(
        &mut self,
        frames: impl IntoIterator<Item = &'f [u8]>,
        out: &mut [u8],
    ) -> Result<Taken, Unsealed> {
        if self.state.has(note::IN_BATCH) {
            return Err(Unsealed::InBatch);
        }
        if self.state.has(note::ENDED) {
            return Err(Unsealed::Ended);
        }
        if !self.tail().is_empty() {
            return Err(Unsealed::TailFirst);
        }
        if self.key_is_spent() && !self.suite().is_tls13() {
            return Err(Unsealed::KeyWorn);
        }
        let mut taken = Taken::default();
        // Without a key nothing was sealed; with a part of it, that part is sound.
        if self.seal_frames(frames, out, &mut taken).is_err() {
            self.state.note(note::FAILED | note::ENDED);
        }
        if taken.sealed > 0 {
            self.state.note(note::IN_BATCH);
        }
        Ok(taken)
    }

    fn seal_frames<'f>(
        &mut self,
        frames: impl IntoIterator<Item = &'f [u8]>,
        out: &mut [u8],
        taken: &mut Taken,
    ) -> Result<(), Unspecified> {
        let suite = self.suite();
        let mut frames = frames.into_iter().filter(|frame| !frame.is_empty()).peekable();
        let Some(mut frame) = frames.next() else { return Ok(()) };
        let mut context = Context::of(&self.state, Way::Send)?;
        loop {
            if self.key_is_spent() || self.state.has(note::ANSWER_DUE) {
                if !suite.is_tls13() || taken.sealed + ROOM_BYTES_MIN > out.len() {
                    return Ok(());
                }
                taken.sealed += self.put_key_update(&context, &mut out[taken.sealed..])?;
                context = Context::of(&self.state, Way::Send)?;
            }
            let out = &mut out[taken.sealed..];
            let (record, rest) = frame.split_at(frame.len().min(PLAIN_BYTES_MAX));
            if record.len() + suite.overhead_bytes() > out.len() {
                return Ok(());
            }
            // Small frames that follow come into the same record.
            let plain_max = PLAIN_BYTES_MAX.min(out.len() - suite.overhead_bytes());
            let joins = |bytes: usize, next: &&[u8]| {
                next.len() <= JOINED_BYTES_MAX && bytes + next.len() <= plain_max
            };
            let mut plain = Plain::Apart(record);
            if record.len() <= JOINED_BYTES_MAX
                && frames.peek().is_some_and(|next| joins(record.len(), next))
            {
                let body = &mut out[plain_at(suite)..];
                body[..record.len()].copy_from_slice(record);
                let mut bytes = record.len();
                while let Some(next) = frames.next_if(|next| joins(bytes, next)) {
                    body[bytes..bytes + next.len()].copy_from_slice(next);
                    bytes += next.len();
                }
                plain = Plain::InPlace(bytes);
            }
            taken.sealed += put_record(&mut self.state, &context, kind::DATA, plain, out)?;
            taken.plain += match plain {
                Plain::Apart(plain) => plain.len(),
                Plain::InPlace(bytes) => bytes,
            };
            frame = match rest {
                [] => match frames.next() {
                    Some(next) => next,
                    None => return Ok(()),
                },
                rest => rest,
            };
        }
    }

    fn put_key_update(&mut self, context: &Context, out: &mut [u8]) -> Result<usize, Unspecified> {
        let plain = key_update(false);
        let bytes =
            put_record(&mut self.state, context, kind::HANDSHAKE, Plain::Apart(&plain), out)?;
        self.state.update_keys(Way::Send).ok_or(Unspecified)?;
        self.state.clear(note::ANSWER_DUE);
        Ok(bytes)
    }
}
