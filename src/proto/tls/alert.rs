//! Alerts (RFC 8446 6, RFC 5246 7.2).

/// The description of an alert. Shape: 1 byte, its number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Alert(pub u8);

impl Alert {
    /// The sender has no more data.
    pub const CLOSE_NOTIFY: Self = Self(0);
    /// A record or message that may not come now.
    pub const UNEXPECTED_MESSAGE: Self = Self(10);
    /// A record that isn't authentic.
    pub const BAD_RECORD_MAC: Self = Self(20);
    /// A record that is too long.
    pub const RECORD_OVERFLOW: Self = Self(22);
    /// A field that is wrong.
    pub const ILLEGAL_PARAMETER: Self = Self(47);
    /// A message that can't be parsed.
    pub const DECODE_ERROR: Self = Self(50);
    /// A fault of the sender of the alert.
    pub const INTERNAL_ERROR: Self = Self(80);
    /// The sender gives up for a reason that isn't the protocol's; a close_notify follows.
    pub const USER_CANCELED: Self = Self(90);
    /// TLS 1.2: another handshake on this connection is refused.
    pub const NO_RENEGOTIATION: Self = Self(100);

    /// Warning (1) or fatal (2), as both versions have it for what is sent here.
    pub(super) const fn level(self) -> u8 {
        match self {
            Self::CLOSE_NOTIFY | Self::USER_CANCELED | Self::NO_RENEGOTIATION => 1,
            _ => 2,
        }
    }

    /// The name of the specifications, for logs.
    pub const fn name(self) -> &'static str {
        match self.0 {
            0 => "close_notify",
            10 => "unexpected_message",
            20 => "bad_record_mac",
            21 => "decryption_failed",
            22 => "record_overflow",
            30 => "decompression_failure",
            40 => "handshake_failure",
            42 => "bad_certificate",
            43 => "unsupported_certificate",
            44 => "certificate_revoked",
            45 => "certificate_expired",
            46 => "certificate_unknown",
            47 => "illegal_parameter",
            48 => "unknown_ca",
            49 => "access_denied",
            50 => "decode_error",
            51 => "decrypt_error",
            70 => "protocol_version",
            71 => "insufficient_security",
            80 => "internal_error",
            86 => "inappropriate_fallback",
            90 => "user_canceled",
            100 => "no_renegotiation",
            109 => "missing_extension",
            110 => "unsupported_extension",
            112 => "unrecognized_name",
            113 => "bad_certificate_status_response",
            115 => "unknown_psk_identity",
            116 => "certificate_required",
            120 => "no_application_protocol",
            _ => "unknown",
        }
    }
}

impl std::fmt::Debug for Alert {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_alerts_are_warnings() {
        let warnings: Vec<u8> = (0..=255).filter(|number| Alert(*number).level() == 1).collect();
        assert_eq!(warnings, [0, 90, 100]);
    }

    #[test]
    fn names_and_numbers_are_shown() {
        assert_eq!(format!("{:?}", Alert::NO_RENEGOTIATION), "no_renegotiation (100)");
        assert_eq!(format!("{:?}", Alert(99)), "unknown (99)");
    }
}
