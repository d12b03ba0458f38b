//! Numbers and words of errors, disconnects and unsubscribes: one table for each. The session takes
//! the peer's words from here; nothing else in the program writes one of these numbers.

/// Makes an enum of a code table: the variant, its number, its words.
macro_rules! codes {
    ($(#[$attr:meta])* $name:ident, $text_doc:literal, $text:ident {
        $($variant:ident = $code:literal, $words:literal;)*
    }) => {
        $(#[$attr])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum $name {
            $(#[doc = $words] $variant = $code,)*
        }

        impl $name {
            /// Every row of the table, by rising code.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The number on the wire.
            pub fn code(self) -> u16 {
                self as u16
            }

            #[doc = $text_doc]
            pub fn $text(self) -> &'static str {
                match self {
                    $(Self::$variant => $words,)*
                }
            }
        }
    };
}

codes! {
    /// The `error` of a Reply: the command failed, the connection lives on.
    ///
    /// Shape: 2 bytes. Codes below 100 are the SDKs' own and are never sent; 400 to 1999 belong to
    /// the application.
    ErrorCode, "The `message` on the wire.", message {
        Internal = 100, "internal server error";
        Unauthorized = 101, "unauthorized";
        UnknownChannel = 102, "unknown channel";
        PermissionDenied = 103, "permission denied";
        MethodNotFound = 104, "method not found";
        AlreadySubscribed = 105, "already subscribed";
        LimitExceeded = 106, "limit exceeded";
        BadRequest = 107, "bad request";
        NotAvailable = 108, "not available";
        TokenExpired = 109, "token expired";
        Expired = 110, "expired";
        TooManyRequests = 111, "too many requests";
        UnrecoverablePosition = 112, "unrecoverable position";
        ConcurrentPagination = 113, "concurrent pagination";
    }
}

impl ErrorCode {
    /// True where the SDK shall try again by itself.
    pub fn temporary(self) -> bool {
        matches!(self, Self::Internal | Self::TooManyRequests | Self::ConcurrentPagination)
    }
}

/// Whether clients come back by themselves after a disconnect with this code.
pub fn comes_back(code: u16) -> bool {
    matches!(code, 3000..3500 | 4000..4500)
}

/// The HTTP status of an answer that is an error: of the server API in transport mode (server API, 1.2), and
/// of a connect request that is answered whole. 500 for errors of the application's own.
pub fn http_status(error: u32) -> u16 {
    match error {
        101 | 109 | 110 => 401,
        103 => 403,
        102 | 104 => 404,
        107 | 108 => 400,
        111 => 429,
        112 => 416,
        113 => 409,
        _ => 500,
    }
}

codes! {
    /// Why a connection is closed by us: status and reason of the close frame.
    ///
    /// Shape: 2 bytes. SDKs reconnect with backoff after 3000-3499 and 4000-4499, and stop for good
    /// after 3500-3999 and 4500-4999; the application's own are 4000-4999.
    Disconnect, "Reason as plain text, at most 123 bytes (RFC 6455 5.5).", reason {
        // Internal: the socket is gone, so no close frame is sent.
        ConnectionClosed = 3000, "connection closed";
        Shutdown = 3001, "shutdown";
        InternalError = 3004, "internal server error";
        ConnectionExpired = 3005, "connection expired";
        SubscriptionExpired = 3006, "subscription expired";
        Slow = 3008, "slow";
        WriteError = 3009, "write error";
        InsufficientState = 3010, "insufficient state";
        ForceReconnect = 3011, "force reconnect";
        NoPong = 3012, "no pong";
        TooManyRequests = 3013, "too many requests";
        StateInvalidated = 3014, "state invalidated";
        InvalidToken = 3500, "invalid token";
        BadRequest = 3501, "bad request";
        Stale = 3502, "stale";
        ForceDisconnect = 3503, "force disconnect";
        ConnectionLimit = 3504, "connection limit";
        ChannelLimit = 3505, "channel limit";
        InappropriateProtocol = 3506, "inappropriate protocol";
        PermissionDenied = 3507, "permission denied";
        NotAvailable = 3508, "not available";
        TooManyErrors = 3509, "too many errors";
    }
}

codes! {
    /// Why one subscription was ended by us: the body of an `unsubscribe` push.
    ///
    /// Shape: 2 bytes. After 2000-2499 the subscription is over; after 2500-2999 the SDK subscribes
    /// again at once.
    Unsubscribed, "The `reason` on the wire.", reason {
        Server = 2000, "server unsubscribe";
        InsufficientState = 2500, "insufficient state";
        Expired = 2501, "subscription expired";
        StateInvalidated = 2502, "state invalidated";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_pinned() {
        let table: Vec<_> =
            ErrorCode::ALL.iter().map(|e| (e.code(), e.message(), e.temporary())).collect();
        assert_eq!(
            table,
            [
                (100, "internal server error", true),
                (101, "unauthorized", false),
                (102, "unknown channel", false),
                (103, "permission denied", false),
                (104, "method not found", false),
                (105, "already subscribed", false),
                (106, "limit exceeded", false),
                (107, "bad request", false),
                (108, "not available", false),
                (109, "token expired", false),
                (110, "expired", false),
                (111, "too many requests", true),
                (112, "unrecoverable position", false),
                (113, "concurrent pagination", true),
            ]
        );
    }

    #[test]
    fn disconnects_are_pinned() {
        let table: Vec<_> = Disconnect::ALL.iter().map(|d| (d.code(), d.reason())).collect();
        assert_eq!(
            table,
            [
                (3000, "connection closed"),
                (3001, "shutdown"),
                (3004, "internal server error"),
                (3005, "connection expired"),
                (3006, "subscription expired"),
                (3008, "slow"),
                (3009, "write error"),
                (3010, "insufficient state"),
                (3011, "force reconnect"),
                (3012, "no pong"),
                (3013, "too many requests"),
                (3014, "state invalidated"),
                (3500, "invalid token"),
                (3501, "bad request"),
                (3502, "stale"),
                (3503, "force disconnect"),
                (3504, "connection limit"),
                (3505, "channel limit"),
                (3506, "inappropriate protocol"),
                (3507, "permission denied"),
                (3508, "not available"),
                (3509, "too many errors"),
            ]
        );
    }

    #[test]
    fn unsubscribes_are_pinned() {
        let table: Vec<_> = Unsubscribed::ALL.iter().map(|u| (u.code(), u.reason())).collect();
        assert_eq!(
            table,
            [
                (2000, "server unsubscribe"),
                (2500, "insufficient state"),
                (2501, "subscription expired"),
                (2502, "state invalidated"),
            ]
        );
    }

    #[test]
    fn reasons_fit_a_close_frame() {
        for disconnect in Disconnect::ALL {
            assert!(disconnect.reason().len() <= 123, "{disconnect:?}");
        }
    }
}
