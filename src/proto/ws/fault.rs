//! Faults of a peer, and the close frames that answer them.

use super::utf8::NotUtf8;

/// The fault of the peer that ends the connection (RFC 6455 7.1.7). Shape: 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An RSV bit was set and no extension is in use (5.2).
    ReservedBits,
    /// An opcode of 3-7 or 11-15 (5.2).
    ReservedOpcode(u8),
    /// A client's frame was not masked (5.1).
    Unmasked,
    /// A server's frame was masked (5.1).
    Masked,
    /// A control frame of more than 125 bytes (5.5).
    ControlTooLong,
    /// A control frame without FIN (5.5).
    ControlFragmented,
    /// A continuation frame and no message to continue (5.4).
    ContinuationWithoutStart,
    /// A new message inside a fragmented one (5.4).
    StartInsideMessage,
    /// A length in more bytes than it needs (5.2).
    LengthNotMinimal,
    /// A 64-bit length with its top bit set (5.2).
    LengthTopBit,
    /// A close payload of one byte (5.5.1).
    CloseLength,
    /// A close code that may not be sent (7.4).
    CloseCode(u16),
    /// A close reason that is not UTF-8 (5.5.1).
    CloseReasonNotUtf8,
    /// A text message that is not UTF-8 (8.1).
    TextNotUtf8,
    /// A deflated message that isn't DEFLATE (RFC 7692 7.2.2).
    NotDeflate,
    /// A message longer than [`ReadRules::message_bytes_max`](super::ReadRules::message_bytes_max).
    MessageTooLong {
        /// The length announced so far, over all fragments.
        bytes: u64,
    },
}

impl Fault {
    /// The code for the close frame: 1002, 1007 or 1009 (RFC 6455 7.4.1). The words for it
    /// are [`Fault::reason`]'s.
    pub const fn close_code(self) -> u16 {
        match self {
            Self::ReservedBits
            | Self::ReservedOpcode(_)
            | Self::Unmasked
            | Self::Masked
            | Self::ControlTooLong
            | Self::ControlFragmented
            | Self::ContinuationWithoutStart
            | Self::StartInsideMessage
            | Self::LengthNotMinimal
            | Self::LengthTopBit
            | Self::CloseLength
            | Self::CloseCode(_)
            | Self::CloseReasonNotUtf8 => 1002,
            Self::TextNotUtf8 | Self::NotDeflate => 1007,
            Self::MessageTooLong { .. } => 1009,
        }
    }

    /// Which counter counts it: one name for each close code.
    pub const fn label(self) -> &'static str {
        match self.close_code() {
            1007 => "not_utf8",
            1009 => "message_too_long",
            _ => "protocol_error",
        }
    }

    /// A few words for the close frame, without the facts.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::ReservedBits => "reserved bits set",
            Self::ReservedOpcode(_) => "reserved opcode",
            Self::Unmasked => "frame not masked",
            Self::Masked => "frame masked",
            Self::ControlTooLong => "control frame too long",
            Self::ControlFragmented => "control frame fragmented",
            Self::ContinuationWithoutStart => "nothing to continue",
            Self::StartInsideMessage => "message inside a message",
            Self::LengthNotMinimal => "length not minimal",
            Self::LengthTopBit => "length out of range",
            Self::CloseLength => "close payload of one byte",
            Self::CloseCode(_) => "invalid close code",
            Self::CloseReasonNotUtf8 => "close reason is not UTF-8",
            Self::TextNotUtf8 => "text is not UTF-8",
            Self::NotDeflate => "message can't be inflated",
            Self::MessageTooLong { .. } => "message too long",
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.reason())
    }
}

impl std::error::Error for Fault {}

impl From<NotUtf8> for Fault {
    fn from(_: NotUtf8) -> Self {
        Self::TextNotUtf8
    }
}
