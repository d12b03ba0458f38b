//! Bodies of requests: however they are cut they are the same, and never longer than their bound.
//!
//! Input: a byte that says what frames the body, one that says where it is cut, then the bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use roost::proto::http::{Body, BodyReader, Refusal};

/// Bytes of a body at most, here.
const BYTES_MAX: usize = 300;

/// The collected bytes, the length of their input, and whether all is there.
fn read(body: Body, pieces: &[&[u8]]) -> Result<(Vec<u8>, usize, bool), Refusal> {
    let mut reader = BodyReader::new(body, BYTES_MAX)?;
    let mut taken = 0;
    for piece in pieces {
        let of_piece = reader.take(piece)?;
        assert!(of_piece == piece.len() || reader.is_done());
        taken += of_piece;
        if reader.is_done() {
            break;
        }
    }
    let done = reader.is_done();
    Ok((reader.into_bytes(), taken, done))
}

fuzz_target!(|bytes: &[u8]| {
    let [framing, cut, bytes @ ..] = bytes else { return };
    let body = match framing {
        0..=99 => Body::Chunked,
        length => Body::Length(u64::from(*length) * 3),
    };
    let (beginning, rest) = bytes.split_at(bytes.len() * usize::from(*cut) / 255);
    let whole = read(body, &[bytes]);
    assert_eq!(read(body, &[beginning, rest]), whole);
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(read(body, &single), whole);
    if let Ok((collected, taken, done)) = whole {
        assert!(collected.len() <= BYTES_MAX && taken <= bytes.len());
        assert!(done || taken == bytes.len());
    }
});
