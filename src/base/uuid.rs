//! UUIDs as text and as bytes.

/// Length of the text.
pub const TEXT_BYTES: usize = 36;

/// The text of a UUID: lower case.
pub fn to_text(bytes: [u8; 16]) -> [u8; TEXT_BYTES] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = [b'-'; TEXT_BYTES];
    let mut at = 0;
    for byte in bytes {
        if matches!(at, 8 | 13 | 18 | 23) {
            at += 1;
        }
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    text
}

/// The bytes of a text of [`to_text`], of any version: lower case, dashes in place. `None` for any other text.
pub fn from_text(text: &[u8]) -> Option<[u8; 16]> {
    let text: &[u8; TEXT_BYTES] = text.try_into().ok()?;
    let mut bytes = [0; 16];
    let mut digits = 0;
    for (at, &digit) in text.iter().enumerate() {
        let value = match digit {
            b'-' if matches!(at, 8 | 13 | 18 | 23) => continue,
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        // A digit in a dash's place is the 33rd in the end.
        let byte: &mut u8 = bytes.get_mut(digits / 2)?;
        *byte = *byte << 4 | value;
        digits += 1;
    }
    (digits == 32).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_come_back(bytes: [u8; 16]) {
            prop_assert_eq!(from_text(&to_text(bytes)), Some(bytes));
        }

        #[test]
        fn a_text_that_is_read_is_written_alike(text in "[0-9a-fA-F-]{35,37}") {
            if let Some(bytes) = from_text(text.as_bytes()) {
                prop_assert_eq!(&to_text(bytes)[..], text.as_bytes());
            }
        }
    }

    #[test]
    fn other_texts_are_none() {
        let text = to_text([0xab; 16]);
        assert_eq!(&text, b"abababab-abab-abab-abab-abababababab");
        assert_eq!(from_text(&text.to_ascii_uppercase()), None);
        assert_eq!(from_text(&text[1..]), None);
        assert_eq!(from_text(b"abababababababababababababababababab"), None);
        assert_eq!(from_text(b"abababab-abab-abab-abab-ababababab--"), None);
    }
}
