//! Reasons for which the node refuses a request, a command or a connection, and how many lines of each
//! go into the log.
//!
//! A stranger can cause refusals without end, so each reason has a bound of its own for the whole node:
//! [`NOTICES_PER_SECOND`] lines, then one line with the number of those left out. Left-out lines cost a
//! few relaxed atomics; nothing is formatted for them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::limits::NOTICES_PER_SECOND;
use super::time::Millis;

/// The log's message for a group of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// An HTTP request, an upgrade among them.
    Request,
    /// A connection that the node closes.
    Connection,
    /// A command that is answered with an error.
    Command,
    /// A subscription that the node ends.
    Subscription,
    /// A call of the server API, or of the admin page.
    Api,
    /// A call of the node to the application.
    Proxy,
}

/// Makes the enum of reasons and its table.
macro_rules! reasons {
    ($($variant:ident = $subject:ident $name:literal, $help:literal;)*) => {
        /// Why something is refused or ended. The text is the `reason` of log lines.
        ///
        /// Shape: 1 byte, an index into [`Limits`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason {
            $(#[doc = $help] $variant,)*
        }

        impl Reason {
            /// Every reason, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The `reason` of log lines.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The subject of log lines.
            pub const fn subject(self) -> Subject {
                match self { $(Self::$variant => Subject::$subject,)* }
            }

            /// The meaning, as in docs/logging.md.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }
        }
    };
}

// A new reason is one row in its group, with the same row in docs/logging.md.
reasons! {
    // HTTP requests on the public port.
    HttpMalformed = Request "http.malformed", "not HTTP/1, or a head that contradicts itself";
    HttpTooLong = Request "http.too_long", "request line, head or body over its bound: 413, 414, 431";
    HttpTimeout = Request "http.timeout", "head or body did not arrive in time: 408";
    HttpNotFound = Request "http.not_found", "no endpoint at that path: 404";
    HttpUpgrade = Request "http.upgrade", "not a valid WebSocket upgrade: 400, 405";
    HttpOrigin = Request "http.origin", "the Origin isn't in client.allowed_origins: 403";
    HttpHost = Request "http.host", "the Host isn't this node's, where only that is served: 403";
    HttpDraining = Request "http.draining", "the node is shutting down: 503";
    HttpMemory = Request "http.memory", "over roost.memory_limit: 503";
    HttpFull = Request "http.full", "no shard has room for one more connection: 503";
    HttpConnectionLimit = Request "http.connection_limit", "client.connection_limit is reached: 503";
    HttpConnectionRate = Request "http.connection_rate", "client.connection_rate_limit is reached: 503";
    HttpBusy = Request "http.busy", "too many unanswered requests of this kind: 503";
    HttpAddressConnections = Request "http.address_connections", "roost.connections_per_address is reached: 429";
    HttpAddressRate = Request "http.address_rate", "roost.connection_rate_per_address is reached: 429";
    HttpAddressBytes = Request "http.address_bytes", "roost.unfinished_bytes_per_address is reached: 429";
    HttpProxyHeader = Request "http.proxy_header", "a missing PROXY header, or an unexpected one: a close, 400";

    // Connections that the node closes, by close code.
    CloseProtocol = Connection "close.protocol_error", "1002: violation of RFC 6455";
    CloseUtf8 = Connection "close.invalid_utf8", "1007: text that isn't UTF-8, or data that doesn't inflate";
    CloseTooBig = Connection "close.message_too_big", "1009: a message over its size limit";
    CloseConnectionClosed = Connection "close.connection_closed", "3000: closed by an API call";
    CloseShutdown = Connection "close.shutdown", "3001: the node drains";
    CloseInternal = Connection "close.internal", "3004: an error of the node";
    CloseExpired = Connection "close.connection_expired", "3005: the connection's token has expired";
    CloseSubscriptionExpired = Connection "close.subscription_expired", "3006: a server-side subscription has expired";
    CloseSlow = Connection "close.slow", "3008: more than client.queue_max_size queued for the client";
    CloseWriteTimeout = Connection "close.write_timeout", "3009: the socket accepted nothing for websocket.write_timeout";
    CloseInsufficientState = Connection "close.insufficient_state", "3010: publications of a server-side subscription are lost";
    CloseForceReconnect = Connection "close.force_reconnect", "3011: the client has to reconnect";
    CloseNoPong = Connection "close.no_pong", "3012: no pong within client.pong_timeout";
    CloseTooManyRequests = Connection "close.too_many_requests", "3013: too many requests";
    CloseStateInvalidated = Connection "close.state_invalidated", "3014: the state is no longer valid";
    CloseInvalidToken = Connection "close.invalid_token", "3500: the token is not accepted";
    CloseBadRequest = Connection "close.bad_request", "3501: a message that violates the client protocol";
    CloseStale = Connection "close.stale", "3502: no connect command within client.stale_close_delay";
    CloseForceDisconnect = Connection "close.force_disconnect", "3503: closed by the application";
    CloseConnectionLimit = Connection "close.connection_limit", "3504: client.user_connection_limit is reached";
    CloseChannelLimit = Connection "close.channel_limit", "3505: client.channel_limit is reached";
    CloseInappropriateProtocol = Connection "close.inappropriate_protocol", "3506: binary data for a JSON client";
    ClosePermissionDenied = Connection "close.permission_denied", "3507: not allowed";
    CloseNotAvailable = Connection "close.not_available", "3508: the feature is not available";
    CloseTooManyErrors = Connection "close.too_many_errors", "3509: too many errors";
    CloseByApplication = Connection "close.application", "a code of the application, by proxy or API";
    CloseMemory = Connection "close.memory", "over roost.memory_limit, and this connection had the largest queue: reset";
    CloseIdle = Connection "close.idle", "no input for roost.idle_timeout, or no close frame in time";

    // Commands that are answered with an error, by its code.
    ErrorInternal = Command "error.internal", "100: temporary, the client retries";
    ErrorUnauthorized = Command "error.unauthorized", "101: unauthorized";
    ErrorUnknownChannel = Command "error.unknown_channel", "102: no such namespace";
    ErrorPermissionDenied = Command "error.permission_denied", "103: no option of the namespace allows it";
    ErrorMethodNotFound = Command "error.method_not_found", "104: no such method";
    ErrorAlreadySubscribed = Command "error.already_subscribed", "105: already subscribed";
    ErrorLimitExceeded = Command "error.limit_exceeded", "106: a limit is reached";
    ErrorBadRequest = Command "error.bad_request", "107: the command is invalid";
    ErrorNotAvailable = Command "error.not_available", "108: the namespace doesn't have this feature";
    ErrorTokenExpired = Command "error.token_expired", "109: the token has expired, or is not valid yet";
    ErrorExpired = Command "error.expired", "110: the expiry is in the past";
    ErrorTooManyRequests = Command "error.too_many_requests", "111: too many requests";
    ErrorUnrecoverablePosition = Command "error.unrecoverable_position", "112: history doesn't reach back so far";
    ErrorConcurrentPagination = Command "error.concurrent_pagination", "113: concurrent pagination";
    ErrorApplication = Command "error.application", "an error code of the application";

    // Subscriptions that the node ends.
    EndExpired = Subscription "unsubscribe.expired", "2501: the subscription has expired";
    EndInsufficientState = Subscription "unsubscribe.insufficient_state", "2500: publications are lost, the client recovers";

    // Server API and admin page.
    ApiUnauthorized = Api "api.unauthorized", "401: no key, or a wrong one";
    ApiBadRequest = Api "api.bad_request", "400: the body is not valid for the method";
    ApiError = Api "api.error", "a method that is answered with an error";
    AdminUnauthorized = Api "admin.unauthorized", "a wrong password or token";

    // Calls to the application.
    ProxyFailed = Proxy "proxy.failed", "no answer, or an invalid one";
    ProxyBreaker = Proxy "proxy.circuit_open", "not called: the circuit breaker is open";
}

/// The bound of one reason: a second and the lines in it, and the lines left out since the last one.
#[derive(Debug, Default)]
struct Limit {
    /// Upper half: the second, plus one; lower half: lines in it.
    window: AtomicU64,
    left_out: AtomicU64,
}

/// The bounds of all reasons of a node. All threads share them, without a lock.
#[derive(Debug)]
pub struct Limits {
    limits: Vec<Limit>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { limits: Reason::ALL.iter().map(|_| Limit::default()).collect() }
    }
}

impl Limits {
    /// Takes a line of this reason: `None` when it is to be left out, else how many were left out
    /// before it, which a line of its own reports.
    pub fn take(&self, reason: Reason, now: Millis) -> Option<u64> {
        let limit = self.limits.get(reason as usize)?;
        let second = now.0 / 1000 + 1;
        let mut window = limit.window.load(Relaxed);
        loop {
            let (at, lines) = (window >> 32, window & 0xffff_ffff);
            // Clocks of shards differ by a turn: an earlier second counts as the present one.
            let next = match second > at {
                true => second << 32 | 1,
                false if lines < NOTICES_PER_SECOND => window + 1,
                false => {
                    limit.left_out.fetch_add(1, Relaxed);
                    return None;
                }
            };
            match limit.window.compare_exchange_weak(window, next, Relaxed, Relaxed) {
                Ok(_) if second > at => return Some(limit.left_out.swap(0, Relaxed)),
                Ok(_) => return Some(0),
                Err(current) => window = current,
            }
        }
    }

    /// The reasons whose second is over and of which lines were left out, with their number: reported
    /// although no further refusal comes. Called about once a second.
    pub fn overdue(&self, now: Millis) -> impl Iterator<Item = (Reason, u64)> {
        let second = now.0 / 1000 + 1;
        let all = Reason::ALL.iter().copied().zip(&self.limits);
        all.filter_map(move |(reason, limit)| {
            let is_over = second > limit.window.load(Relaxed) >> 32;
            let left_out = if is_over { limit.left_out.swap(0, Relaxed) } else { 0 };
            (left_out > 0).then_some((reason, left_out))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const REASON: Reason = Reason::HttpOrigin;

    #[test]
    fn a_second_has_its_lines_and_the_next_says_how_many_were_left_out() {
        let limits = Limits::default();
        for _ in 0..NOTICES_PER_SECOND {
            assert_eq!(limits.take(REASON, Millis(5)), Some(0));
        }
        for at in [5, 6, 999] {
            assert_eq!(limits.take(REASON, Millis(at)), None);
        }
        // Other reasons have their own bound.
        assert_eq!(limits.take(Reason::HttpTimeout, Millis(999)), Some(0));
        assert_eq!(limits.take(REASON, Millis(1000)), Some(3));
        assert_eq!(limits.take(REASON, Millis(1001)), Some(0));
    }

    #[test]
    fn lines_left_out_are_reported_when_nothing_more_comes() {
        let limits = Limits::default();
        for _ in 0..NOTICES_PER_SECOND + 1204 {
            limits.take(REASON, Millis(2500));
        }
        assert_eq!(limits.overdue(Millis(2999)).count(), 0);
        assert_eq!(limits.overdue(Millis(3000)).collect::<Vec<_>>(), [(REASON, 1204)]);
        assert_eq!(limits.overdue(Millis(9000)).count(), 0);
    }

    #[test]
    fn a_clock_that_is_behind_opens_no_second() {
        let limits = Limits::default();
        assert_eq!(limits.take(REASON, Millis(7000)), Some(0));
        let taken = (0..100).filter(|_| limits.take(REASON, Millis(6999)).is_some()).count();
        assert_eq!(taken as u64, NOTICES_PER_SECOND - 1);
    }

    #[test]
    fn the_document_has_every_reason() {
        let document = include_str!("../../docs/logging.md");
        let rows = document.lines().filter(|line| {
            let name = line.strip_prefix("| `").and_then(|rest| rest.split('`').next());
            name.is_some_and(|name| name.contains('.'))
        });
        let expected = Reason::ALL.iter().map(|r| format!("| `{}` | {} |", r.name(), r.help()));
        assert_eq!(rows.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    }

    #[test]
    fn names_are_unique_and_safe_to_search_for() {
        let names: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        for name in names {
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b"._0123456789".contains(&b)));
        }
        for (at, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, at);
        }
    }

    #[test]
    fn threads_together_keep_the_bound_and_lose_no_count() {
        let limits = Limits::default();
        let taken = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let line = limits.take(REASON, Millis(1));
                        taken.fetch_add(line.is_some().into(), Relaxed);
                    }
                });
            }
        });
        assert_eq!(taken.into_inner(), NOTICES_PER_SECOND);
        let left_out: u64 = limits.overdue(Millis(1000)).map(|(_, count)| count).sum();
        assert_eq!(left_out, 4000 - NOTICES_PER_SECOND);
    }

    proptest! {
        /// Lines and reported numbers add up to what happened, and no second has more than its lines.
        #[test]
        fn nothing_is_lost(steps in proptest::collection::vec((0u64..700, any::<bool>()), 1..400)) {
            let limits = Limits::default();
            let (mut now, mut lines, mut reported, mut taken) = (0, 0u64, 0u64, 0u64);
            let mut by_second = std::collections::BTreeMap::new();
            for (pause, look) in steps {
                now += pause / 50;
                if look {
                    reported += limits.overdue(Millis(now)).map(|(_, count)| count).sum::<u64>();
                }
                taken += 1;
                if let Some(before) = limits.take(REASON, Millis(now)) {
                    lines += 1;
                    reported += before;
                    *by_second.entry(now / 1000).or_insert(0) += 1;
                }
            }
            reported += limits.overdue(Millis(now + 1000)).map(|(_, count)| count).sum::<u64>();
            prop_assert_eq!(lines + reported, taken);
            prop_assert!(by_second.values().all(|lines| *lines <= NOTICES_PER_SECOND));
        }
    }
}
