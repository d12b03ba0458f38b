//! Faults that end a connection, and the alerts that answer them.

use super::alert::Alert;

/// The reason why no more records of a connection are read. Shape: 2 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A record that the key doesn't open: changed, repeated, left out, or another key's.
    BadRecordMac,
    /// A record, or its plaintext, longer than 2^14 bytes and what may be added (RFC 8446 5.2,
    /// RFC 5246 6.2).
    RecordOverflow,
    /// A record of a content type that may not come after the handshake. Plaintext alerts and
    /// change_cipher_spec are among them.
    UnexpectedRecord(u8),
    /// A handshake message of a type that may not come after the handshake.
    UnexpectedMessage(u8),
    /// TLS 1.3: a plaintext of zeros alone (RFC 8446 5.4).
    NoContentType,
    /// An alert or handshake record without content (RFC 8446 5.1).
    EmptyRecord,
    /// An alert that isn't two bytes.
    AlertLength,
    /// A record between those of one handshake message (RFC 8446 5.1).
    Interleaved,
    /// A KeyUpdate of another length than one byte.
    KeyUpdateLength,
    /// A KeyUpdate with another value than 0 and 1 (RFC 8446 4.6.3).
    KeyUpdateValue,
    /// Bytes behind a KeyUpdate in its record, where the keys change (RFC 8446 5.1).
    KeyUpdateNotLast,
    /// More than [`RECORDS_WITHOUT_DATA_MAX`](super::RECORDS_WITHOUT_DATA_MAX) in a row.
    TooManyWithoutData,
    /// A record or message that hasn't come whole in its time.
    Late,
    /// TLS 1.2: the client begins another handshake.
    Renegotiation,
    /// The peer ends the connection with this alert.
    PeerAlert(Alert),
    /// The sequence numbers are used up, or the library fails.
    Internal,
    /// An earlier fault has ended the connection.
    Ended,
}

const _: () = assert!(size_of::<Fault>() == 2);

impl Fault {
    /// The alert for the peer. `None`: it gets none, since it sent one, or got one before.
    pub const fn alert(self) -> Option<Alert> {
        match self {
            Self::BadRecordMac => Some(Alert::BAD_RECORD_MAC),
            Self::RecordOverflow => Some(Alert::RECORD_OVERFLOW),
            Self::UnexpectedRecord(_)
            | Self::UnexpectedMessage(_)
            | Self::NoContentType
            | Self::EmptyRecord
            | Self::Interleaved
            | Self::KeyUpdateNotLast
            | Self::TooManyWithoutData => Some(Alert::UNEXPECTED_MESSAGE),
            Self::AlertLength | Self::KeyUpdateLength => Some(Alert::DECODE_ERROR),
            Self::KeyUpdateValue => Some(Alert::ILLEGAL_PARAMETER),
            // There is no alert for it.
            Self::Late => Some(Alert::CLOSE_NOTIFY),
            Self::Renegotiation => Some(Alert::NO_RENEGOTIATION),
            Self::Internal => Some(Alert::INTERNAL_ERROR),
            Self::PeerAlert(_) | Self::Ended => None,
        }
    }

    /// The name of a counter: one for each reason.
    pub const fn label(self) -> &'static str {
        match self {
            Self::BadRecordMac => "bad_record_mac",
            Self::RecordOverflow => "record_overflow",
            Self::UnexpectedRecord(_)
            | Self::UnexpectedMessage(_)
            | Self::NoContentType
            | Self::EmptyRecord
            | Self::Interleaved => "unexpected_message",
            Self::AlertLength => "alert",
            Self::KeyUpdateLength | Self::KeyUpdateValue | Self::KeyUpdateNotLast => "key_update",
            Self::TooManyWithoutData => "without_data",
            Self::Late => "late",
            Self::Renegotiation => "renegotiation",
            Self::PeerAlert(_) => "peer_alert",
            Self::Internal => "internal",
            Self::Ended => "ended",
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::BadRecordMac => f.write_str("record is not authentic"),
            Self::RecordOverflow => f.write_str("record too long"),
            Self::UnexpectedRecord(kind) => write!(f, "unexpected record of type {kind}"),
            Self::UnexpectedMessage(kind) => write!(f, "unexpected handshake message {kind}"),
            Self::NoContentType => f.write_str("record without content type"),
            Self::EmptyRecord => f.write_str("record without content"),
            Self::AlertLength => f.write_str("malformed alert"),
            Self::Interleaved => f.write_str("record inside a handshake message"),
            Self::KeyUpdateLength => f.write_str("KeyUpdate of a wrong length"),
            Self::KeyUpdateValue => f.write_str("KeyUpdate with a wrong value"),
            Self::KeyUpdateNotLast => f.write_str("KeyUpdate doesn't end its record"),
            Self::TooManyWithoutData => f.write_str("too many records without data"),
            Self::Late => f.write_str("record incomplete for too long"),
            Self::Renegotiation => f.write_str("renegotiation refused"),
            Self::PeerAlert(alert) => write!(f, "peer sent alert {alert:?}"),
            Self::Internal => f.write_str("internal fault"),
            Self::Ended => f.write_str("connection has ended"),
        }
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_are_those_of_the_specifications() {
        let alert = |fault: Fault| fault.alert().map(Alert::name);
        let expected = [
            (Fault::BadRecordMac, Some("bad_record_mac")),
            (Fault::RecordOverflow, Some("record_overflow")),
            (Fault::UnexpectedRecord(20), Some("unexpected_message")),
            (Fault::UnexpectedMessage(1), Some("unexpected_message")),
            (Fault::NoContentType, Some("unexpected_message")),
            (Fault::EmptyRecord, Some("unexpected_message")),
            (Fault::AlertLength, Some("decode_error")),
            (Fault::Interleaved, Some("unexpected_message")),
            (Fault::KeyUpdateLength, Some("decode_error")),
            (Fault::KeyUpdateValue, Some("illegal_parameter")),
            (Fault::KeyUpdateNotLast, Some("unexpected_message")),
            (Fault::TooManyWithoutData, Some("unexpected_message")),
            (Fault::Late, Some("close_notify")),
            (Fault::Renegotiation, Some("no_renegotiation")),
            (Fault::PeerAlert(Alert(40)), None),
            (Fault::Internal, Some("internal_error")),
            (Fault::Ended, None),
        ];
        for (fault, name) in expected {
            assert_eq!(alert(fault), name, "{fault}");
            assert!(!fault.label().is_empty());
        }
    }
}
