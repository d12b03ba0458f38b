//! Writing frames: unmasked and final for a server, masked for the load client.

use super::close::CLOSE_REASON_BYTES_MAX;
use super::header::HEADER_BYTES_MAX;
use super::{CLOSE, OpCode, TEXT, mask};
use crate::base::frame::SharedFrame;
use tungstenite::protocol::frame::FrameHeader;

/// Appends the header of a final, unmasked frame with `len` payload bytes, in the minimal form.
pub fn put_header(out: &mut Vec<u8>, opcode: OpCode, len: usize) {
    put(out, opcode, len, None, false);
}

/// The same for a payload that is deflated: RSV1 is set (RFC 7692 6).
pub fn put_deflated_header(out: &mut Vec<u8>, opcode: OpCode, len: usize) {
    put(out, opcode, len, None, true);
}

/// Bytes of such headers.
pub(super) fn header_bytes(len: usize) -> usize {
    match len {
        0..=125 => 2,
        126..=65_535 => 4,
        _ => 10,
    }
}

/// Appends a whole frame, final and unmasked. Control payloads are at most
/// [`super::CONTROL_BYTES_MAX`] bytes; longer ones are the caller's mistake.
pub fn put_frame(out: &mut Vec<u8>, opcode: OpCode, payload: &[u8]) {
    debug_assert!(matches!(opcode, OpCode::Data(_)) || payload.len() <= super::CONTROL_BYTES_MAX);
    out.reserve(HEADER_BYTES_MAX + payload.len());
    put_header(out, opcode, payload.len());
    out.extend_from_slice(payload);
}

/// The payload of a whole unmasked frame, as [`put_frame`] makes it.
pub fn payload(frame: &[u8]) -> &[u8] {
    let header = match frame.get(1) {
        Some(0..=125) => 2,
        Some(126) => 4,
        _ => 10,
    };
    frame.get(header..).unwrap_or_default()
}

/// A whole frame, final and unmasked, to be shared by connections. Two copies of the payload:
/// where that counts, [`put_frame`] into a scratch buffer and share that.
pub fn frame(opcode: OpCode, payload: &[u8]) -> SharedFrame {
    let mut out = Vec::new();
    put_frame(&mut out, opcode, payload);
    SharedFrame::new(&out)
}

/// [`frame`] of a text message; `payload` is UTF-8 by the caller's word.
pub fn text_frame(payload: &[u8]) -> SharedFrame {
    frame(TEXT, payload)
}

/// Appends an unmasked close frame: empty without a code (the reason is then left out), else the
/// code and the reason, cut at a character to [`CLOSE_REASON_BYTES_MAX`] bytes.
pub fn close_frame(out: &mut Vec<u8>, code: Option<u16>, reason: &str) {
    let Some(code) = code else { return put_header(out, CLOSE, 0) };
    let reason = &reason[..reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX)];
    put_header(out, CLOSE, 2 + reason.len());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

/// Appends a whole frame, final and masked with `key`, as a client sends it (RFC 6455 5.3).
pub fn put_masked(out: &mut Vec<u8>, opcode: OpCode, payload: &[u8], key: [u8; 4]) {
    out.reserve(HEADER_BYTES_MAX + payload.len());
    put(out, opcode, payload.len(), Some(key), false);
    let start = out.len();
    out.extend_from_slice(payload);
    mask(&mut out[start..], key, 0);
}

fn put(out: &mut Vec<u8>, opcode: OpCode, len: usize, mask: Option<[u8; 4]>, rsv1: bool) {
    let header = FrameHeader { is_final: true, rsv1, rsv2: false, rsv3: false, opcode, mask };
    // Writing to a Vec cannot fail, and nothing else in `format` can.
    let _ = header.format(len as u64, out);
}

#[cfg(test)]
mod tests {
    use super::super::{BINARY, CONTINUATION, PING, PONG};
    use super::*;

    #[test]
    fn a_payload_comes_back() {
        for len in [0, 1, 125, 126, 65535, 65536] {
            let message = vec![b'a'; len];
            assert_eq!(payload(text_frame(&message).bytes()), message, "{len}");
        }
        assert!(payload(&[]).is_empty());
    }

    #[test]
    fn headers_are_minimal_at_every_boundary() {
        let table: [(usize, &[u8]); 8] = [
            (0, &[0x82, 0]),
            (1, &[0x82, 1]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (65535, &[0x82, 126, 255, 255]),
            (65536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
            (0x1234_5678, &[0x82, 127, 0, 0, 0, 0, 0x12, 0x34, 0x56, 0x78]),
            (i64::MAX as usize, &[0x82, 127, 0x7f, 255, 255, 255, 255, 255, 255, 255]),
        ];
        for (len, expected) in table {
            let mut out = Vec::new();
            put_header(&mut out, BINARY, len);
            assert_eq!(out, expected, "{len}");
        }
        for (opcode, first) in
            [(CONTINUATION, 0x80), (TEXT, 0x81), (CLOSE, 0x88), (PING, 0x89), (PONG, 0x8a)]
        {
            let mut out = Vec::new();
            put_header(&mut out, opcode, 0);
            assert_eq!(out, [first, 0]);
        }
    }

    #[test]
    fn frames_of_the_rfc() {
        // RFC 6455 5.7.
        assert_eq!(text_frame(b"Hello").bytes(), b"\x81\x05Hello");
        let mut out = b"before".to_vec();
        put_masked(&mut out, TEXT, b"Hello", [0x37, 0xfa, 0x21, 0x3d]);
        assert_eq!(out, b"before\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");
        assert_eq!(frame(PONG, b"Hello").bytes(), b"\x8a\x05Hello");
    }

    #[test]
    fn close_reasons_fit_and_end_with_a_whole_character() {
        let close = |code, reason: &str| {
            let mut out = Vec::new();
            close_frame(&mut out, code, reason);
            out
        };
        assert_eq!(close(None, "ignored"), b"\x88\x00");
        assert_eq!(close(Some(1000), ""), b"\x88\x02\x03\xe8");
        assert_eq!(close(Some(3001), "shutdown"), b"\x88\x0a\x0b\xb9shutdown");
        let full = "x".repeat(CLOSE_REASON_BYTES_MAX);
        assert_eq!(close(Some(1000), &full)[..2], [0x88, 125]);
        assert_eq!(close(Some(1000), &(full.clone() + "y")), close(Some(1000), &full));
        // 122 bytes and a character of two: the character goes.
        let split = "x".repeat(122) + "é";
        assert_eq!(close(Some(1000), &split)[1], 124);
    }
}
