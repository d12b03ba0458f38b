//! Patches: one that is made is shorter than what it makes, and a receiver that checks everything
//! makes exactly that of it.
//!
//! Input: two bytes that say where the old data ends, then the old and the new data.
#![no_main]

use libfuzzer_sys::fuzz_target;
use roost::hub::delta::{Patched, Patcher, is_text};

const DIGITS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~";

/// The number at the start of `text` and the mark behind it.
fn number(text: &mut &[u8]) -> (usize, u8) {
    let mut number = 0;
    loop {
        let (byte, rest) = text.split_first().expect("a patch that breaks off");
        *text = rest;
        match DIGITS.iter().position(|digit| digit == byte) {
            Some(digit) => number = number * 64 + digit,
            None => return (number, *byte),
        }
    }
}

fn checksum(data: &[u8]) -> usize {
    let words = data.chunks(4).map(|chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        u32::from_be_bytes(word)
    });
    words.fold(0, u32::wrapping_add) as usize
}

/// Does what a patch says, by the client protocol's section 21.3.
fn applied(old: &[u8], mut patch: &[u8]) -> Vec<u8> {
    let (target_len, b'\n') = number(&mut patch) else { panic!("no length in front") };
    let mut new = Vec::new();
    loop {
        match number(&mut patch) {
            (count, b'@') => {
                let (offset, b',') = number(&mut patch) else { panic!("no comma") };
                new.extend_from_slice(&old[offset..offset + count]);
            }
            (count, b':') => {
                let (inserted, rest) = patch.split_at(count);
                new.extend_from_slice(inserted);
                patch = rest;
            }
            (sum, b';') => {
                assert_eq!((new.len(), sum, patch), (target_len, checksum(&new), &[][..]));
                return new;
            }
            (_, mark) => panic!("unknown mark {mark}"),
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((at, data)) = bytes.split_first_chunk() else { return };
    let (old, new) = data.split_at(usize::from(u16::from_le_bytes(*at)) % (data.len() + 1));
    if let Patched::Patch(patch) = Patcher::new(1).patch(old, new) {
        assert!(patch.len() < new.len());
        assert_eq!(applied(old, &patch), new);
        assert_eq!(is_text(&patch), std::str::from_utf8(&patch).is_ok());
    }
});
