//! UTF-8 (RFC 3629) checked as the bytes arrive.

use crate::base::image::{Broken, Durable, ImageReader, ImageWriter};

/// The rest of a text between two pieces of it: the start of a character, at most 3 bytes.
///
/// Invariant: `carry[..len]` is the proper prefix of at least one valid character, so a text is
/// refused with the first byte that no continuation can mend, and nothing is looked at twice.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Utf8 {
    carry: [u8; 3],
    len: u8,
}

impl Durable for Utf8 {
    fn write(&self, out: &mut ImageWriter) {
        out.bytes(&self.carry[..usize::from(self.len)]);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        // Taken in as a text is: what is whole, or no beginning of a character, is refused.
        let (bytes, mut utf8) = (from.bytes()?, Self::default());
        match utf8.push(bytes) {
            Ok(()) if usize::from(utf8.len) == bytes.len() => Ok(utf8),
            _ => Err(Broken::Value("the beginning of a character")),
        }
    }
}

/// The text can't become valid any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotUtf8;

impl Utf8 {
    /// Takes the next piece of the text.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), NotUtf8> {
        if self.len > 0 {
            bytes = self.complete(bytes)?;
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let Err(error) = simdutf8::compat::from_utf8(bytes) else { return Ok(()) };
        if error.error_len().is_some() {
            return Err(NotUtf8);
        }
        let tail = &bytes[error.valid_up_to()..];
        self.carry[..tail.len()].copy_from_slice(tail);
        self.len = tail.len() as u8;
        Ok(())
    }

    /// The text ends here: nothing may be left over.
    pub(super) fn finish(&self) -> Result<(), NotUtf8> {
        if self.len == 0 { Ok(()) } else { Err(NotUtf8) }
    }

    /// Completes the character begun earlier from `bytes`, which has at least a byte, or adds all
    /// of them to it. Returns the bytes behind the character.
    fn complete<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], NotUtf8> {
        let had = usize::from(self.len);
        // The invariant makes carry[0] a lead byte of two to four bytes.
        let width = match self.carry[0] {
            0xf0.. => 4,
            0xe0.. => 3,
            _ => 2,
        };
        let (mine, rest) = bytes.split_at(bytes.len().min(width - had));
        let mut character = [0; 4];
        character[..had].copy_from_slice(&self.carry[..had]);
        character[had..had + mine.len()].copy_from_slice(mine);
        let character = &character[..had + mine.len()];
        match std::str::from_utf8(character) {
            Ok(_) => self.len = 0,
            Err(error) if error.error_len().is_none() => {
                self.carry[..character.len()].copy_from_slice(character);
                self.len = character.len() as u8;
            }
            Err(_) => return Err(NotUtf8),
        }
        Ok(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The index of the byte at which a text fed byte by byte is refused; `None` if never.
    fn refused_at(bytes: &[u8]) -> Option<usize> {
        let mut utf8 = Utf8::default();
        bytes.iter().position(|byte| utf8.push(&[*byte]).is_err())
    }

    fn is_text(pieces: &[&[u8]]) -> bool {
        let mut utf8 = Utf8::default();
        pieces.iter().all(|piece| utf8.push(piece).is_ok()) && utf8.finish().is_ok()
    }

    #[test]
    fn refuses_at_the_first_byte_that_cannot_be_mended() {
        // Prefix, and the index of the byte that breaks it.
        let table: [(&[u8], Option<usize>); 16] = [
            (b"\xce\xba\xe1\xbd\xb9", None),
            (b"\xf4\x8f\xbf\xbf", None),
            (b"\xf4\x90\x80\x80", Some(1)),
            (b"\xed\xa0\x80", Some(1)),
            (b"\xed\xbf\xbf", Some(1)),
            (b"\xed\x9f\xbf", None),
            (b"\xe0\x80\x80", Some(1)),
            (b"\xe0\xa0\x80", None),
            (b"\xf0\x80\x80\x80", Some(1)),
            (b"\xf0\x90\x80\x80", None),
            (b"\xc0\xaf", Some(0)),
            (b"\xc1\xbf", Some(0)),
            (b"\xf5\x80\x80\x80", Some(0)),
            (b"\xff", Some(0)),
            (b"\x80", Some(0)),
            (b"\xf0\x9f\x98a", Some(3)),
        ];
        for (bytes, expected) in table {
            assert_eq!(refused_at(bytes), expected, "{bytes:02x?}");
        }
    }

    #[test]
    fn an_unfinished_character_is_no_text() {
        for bytes in [&b"\xce"[..], b"a\xe1\xbd", b"\xf4", b"\xf4\x8f\xbf"] {
            assert_eq!(refused_at(bytes), None, "{bytes:02x?}");
            assert!(!is_text(&[bytes]), "{bytes:02x?}");
        }
    }

    #[test]
    fn every_scalar_value_passes_whole_and_cut() {
        for character in '\0'..=char::MAX {
            let mut room = [0; 4];
            let bytes = character.encode_utf8(&mut room).as_bytes();
            assert!(is_text(&[bytes]), "{character:?}");
            for cut in 1..bytes.len() {
                let (head, tail) = bytes.split_at(cut);
                assert!(is_text(&[head, tail]), "{character:?} cut at {cut}");
            }
        }
    }

    proptest! {
        #[test]
        fn agrees_with_std_however_it_is_cut(
            pieces in proptest::collection::vec(
                prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..4),
                    "\\PC{0,40}".prop_map(String::into_bytes),
                    proptest::sample::select(vec![
                        vec![0xf0], vec![0x9f, 0x98], vec![0x80], vec![0xe1, 0xbd], vec![0xb9], vec![0xc3],
                    ]),
                ],
                0..12,
            )
        ) {
            let whole = pieces.concat();
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(is_text(&pieces), std::str::from_utf8(&whole).is_ok());
        }
    }
}
