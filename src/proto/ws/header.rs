//! Frame headers (RFC 6455 5.2), strictly: tungstenite's parser, and each check that it leaves out.

use super::fault::Fault;
use super::rules::ReadRules;
use std::io::Cursor;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::OpCode;

/// Bytes of a frame header at most: 2, the 64-bit length, the masking key.
pub const HEADER_BYTES_MAX: usize = 14;

/// Bytes of a control frame's payload at most (RFC 6455 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// A header that passed every check which needs nothing but the header and the role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) fin: bool,
    pub(super) opcode: OpCode,
    /// RSV1: the message is deflated.
    pub(super) deflated: bool,
    /// Payload bytes; at most 125 for control frames.
    pub(super) len: u64,
    /// Zeros for a frame that isn't masked, which makes unmasking do nothing.
    pub(super) key: [u8; 4],
    /// How long the header itself was.
    pub(super) bytes: usize,
}

/// Parses the header at the start of `bytes`; `None` when its end hasn't arrived.
///
/// A header that the first two bytes forbid is refused as soon as they are there.
pub(super) fn parse(bytes: &[u8], rules: &ReadRules) -> Result<Option<Header>, Fault> {
    let &[first, second, ..] = bytes else { return Ok(None) };
    check_first_two(first, second, rules)?;

    let mut cursor = Cursor::new(bytes);
    let (header, len) = match FrameHeader::parse(&mut cursor) {
        Ok(Some(parsed)) => parsed,
        Ok(None) => return Ok(None),
        // A reserved opcode is all that this parser refuses, and that was refused above.
        Err(_) => return Err(Fault::ReservedOpcode(first & 0x0f)),
    };
    //= RFC 6455 5.2: the minimal number of bytes MUST be used; the most significant bit MUST be 0
    match second & 0x7f {
        126 if len < 126 => return Err(Fault::LengthNotMinimal),
        127 if len <= u64::from(u16::MAX) => return Err(Fault::LengthNotMinimal),
        127 if len >> 63 != 0 => return Err(Fault::LengthTopBit),
        _ => {}
    }
    Ok(Some(Header {
        fin: header.is_final,
        opcode: header.opcode,
        deflated: header.rsv1,
        len,
        key: header.mask.unwrap_or_default(),
        bytes: cursor.position() as usize,
    }))
}

fn check_first_two(first: u8, second: u8, rules: &ReadRules) -> Result<(), Fault> {
    let opcode = first & 0x0f;
    //= RFC 6455 5.2: RSV bits MUST be 0 unless an extension is negotiated
    //= RFC 7692 6: RSV1 belongs to the first frame of a data message
    let allowed = if rules.deflate && matches!(opcode, 1 | 2) { 0x40 } else { 0 };
    if first & 0x70 & !allowed != 0 {
        return Err(Fault::ReservedBits);
    }
    //= RFC 6455 5.2: an unknown opcode MUST fail the connection
    if !matches!(opcode, 0..=2 | 8..=10) {
        return Err(Fault::ReservedOpcode(opcode));
    }
    //= RFC 6455 5.1: client frames are masked, server frames are not
    if (second & 0x80 != 0) != rules.masked {
        return Err(if rules.masked { Fault::Unmasked } else { Fault::Masked });
    }
    //= RFC 6455 5.5: control frames have at most 125 bytes and are not fragmented
    if opcode >= 8 {
        if second & 0x7f > CONTROL_BYTES_MAX as u8 {
            return Err(Fault::ControlTooLong);
        }
        if first & 0x80 == 0 {
            return Err(Fault::ControlFragmented);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The verdict on two bytes, written from the RFC's list and not from the code above.
    fn verdict(first: u8, second: u8, masked: bool) -> Option<Fault> {
        let (fin, rsv, opcode) = (first >> 7, first >> 4 & 7, first & 15);
        let (mask, len) = (second >> 7, second & 127);
        if rsv != 0 {
            Some(Fault::ReservedBits)
        } else if (3..8).contains(&opcode) || opcode > 10 {
            Some(Fault::ReservedOpcode(opcode))
        } else if masked && mask == 0 {
            Some(Fault::Unmasked)
        } else if !masked && mask == 1 {
            Some(Fault::Masked)
        } else if opcode >= 8 && len > 125 {
            Some(Fault::ControlTooLong)
        } else if opcode >= 8 && fin == 0 {
            Some(Fault::ControlFragmented)
        } else {
            None
        }
    }

    #[test]
    fn every_pair_of_first_bytes_in_both_roles() {
        for masked in [true, false] {
            let rules = ReadRules { masked, deflate: false, message_bytes_max: 1 << 20 };
            for first in 0..=u8::MAX {
                for second in 0..=u8::MAX {
                    // A length that is minimal and lawful in each of the three forms.
                    let mut bytes = vec![first, second];
                    let (extra, len): (&[u8], u64) = match second & 127 {
                        126 => (&[1, 0], 256),
                        127 => (&[0, 0, 0, 0, 0, 1, 0, 0], 65536),
                        n => (&[], u64::from(n)),
                    };
                    bytes.extend(extra);
                    let key = if second >= 128 { [1, 2, 3, 4] } else { [0; 4] };
                    if second >= 128 {
                        bytes.extend(key);
                    }
                    let expected = match verdict(first, second, masked) {
                        Some(fault) => Err(fault),
                        None => Ok(Some(Header {
                            fin: first >= 128,
                            opcode: OpCode::from(first & 15),
                            deflated: false,
                            len,
                            key,
                            bytes: bytes.len(),
                        })),
                    };
                    let what = format!("{first:02x} {second:02x} masked {masked}");
                    assert_eq!(parse(&bytes, &rules), expected, "{what}");
                    // Every shorter piece is unfinished, or refused for the same reason.
                    for cut in 0..bytes.len() {
                        let expected = if cut < 2 { Ok(None) } else { expected.map(|_| None) };
                        assert_eq!(parse(&bytes[..cut], &rules), expected, "{what} cut {cut}");
                    }
                }
            }
        }
    }

    #[test]
    fn lengths_are_minimal_and_below_the_top_bit() {
        let rules = ReadRules { masked: false, deflate: false, message_bytes_max: usize::MAX };
        let parse = |bytes: &[u8]| parse(bytes, &rules).map(|header| header.map(|h| h.len));
        for len in 0..=u16::MAX {
            let [a, b] = len.to_be_bytes();
            let expected =
                if len < 126 { Err(Fault::LengthNotMinimal) } else { Ok(Some(len.into())) };
            assert_eq!(parse(&[0x82, 126, a, b]), expected, "{len}");
            let expected = Err(Fault::LengthNotMinimal);
            assert_eq!(parse(&[0x82, 127, 0, 0, 0, 0, 0, 0, a, b]), expected, "{len}");
        }
        for (len, expected) in [
            (0x1_0000, Ok(Some(0x1_0000))),
            (i64::MAX as u64, Ok(Some(i64::MAX as u64))),
            (1 << 63, Err(Fault::LengthTopBit)),
            (u64::MAX, Err(Fault::LengthTopBit)),
        ] {
            let mut bytes = vec![0x82, 127];
            bytes.extend(len.to_be_bytes());
            assert_eq!(parse(&bytes), expected, "{len}");
        }
    }
}
