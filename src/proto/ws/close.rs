//! The payload of a close frame (RFC 6455 5.5.1, 7.4).

use super::fault::Fault;
use super::header::CONTROL_BYTES_MAX;
use tungstenite::protocol::frame::coding::CloseCode;

/// Bytes of a close reason at most: what a control frame holds, less the code.
pub const CLOSE_REASON_BYTES_MAX: usize = CONTROL_BYTES_MAX - 2;

/// Whether a code may be sent in a close frame: 1000-1003, 1007-1014, 3000-4999 (RFC 6455 7.4 and
/// the IANA registry, which has added 1012 to 1014). 1004, 1005, 1006 and 1015 never travel.
pub fn close_code_is_valid(code: u16) -> bool {
    // 1014 "bad gateway" is registered; tungstenite doesn't know it yet.
    code == 1014 || CloseCode::from(code).is_allowed()
}

/// Code and reason of a close frame's unmasked payload.
pub(super) fn parse(payload: &[u8]) -> Result<(Option<u16>, &str), Fault> {
    match *payload {
        [] => Ok((None, "")),
        //= RFC 6455 5.5.1: if there is a body, the first two bytes are a status code
        [_] => Err(Fault::CloseLength),
        [high, low, ref reason @ ..] => {
            let code = u16::from_be_bytes([high, low]);
            if !close_code_is_valid(code) {
                return Err(Fault::CloseCode(code));
            }
            let reason = std::str::from_utf8(reason).map_err(|_| Fault::CloseReasonNotUtf8)?;
            Ok((Some(code), reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_codes_of_the_registry_are_valid() {
        for code in 0..=u16::MAX {
            let expected = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
            assert_eq!(close_code_is_valid(code), expected, "{code}");
        }
    }

    #[test]
    fn payloads() {
        let table = [
            (&b""[..], Ok((None, ""))),
            (b"\x03", Err(Fault::CloseLength)),
            (b"\x03\xe8", Ok((Some(1000), ""))),
            (b"\x0d\xaclost", Ok((Some(3500), "lost"))),
            (b"\x03\xeebye", Err(Fault::CloseCode(1006))),
            (b"\x03\xe8\xff", Err(Fault::CloseReasonNotUtf8)),
        ];
        for (payload, expected) in table {
            assert_eq!(parse(payload), expected, "{payload:02x?}");
        }
    }
}
