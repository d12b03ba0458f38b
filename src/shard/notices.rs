//! Log lines about refusals and closes: why a request, a command or a connection ended, and whose it was.
//!
//! `base/notices.rs` has the reasons and their bounds; here is the one place that writes the lines. The
//! writer (`node/log.rs`) hands them to a thread of its own, so that a shard never waits for a disk. A
//! line never has a token, key, password or payload in it: callers pass identities, codes and their own
//! words. Texts of strangers are cut to [`NOTICE_TEXT_CHARS_MAX`] characters; the log's format quotes and
//! escapes them.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::time::Instant;

use tracing::{Level, debug, info};

use crate::base::limits::NOTICE_TEXT_CHARS_MAX;
use crate::base::notices::{Limits, Reason, Subject};
use crate::base::time::Millis;
use crate::proto::client::{Disconnect, ErrorCode};
use crate::proto::http::Refusal;

/// What a line says beside its reason; what is empty or 0 is left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fields<'a> {
    /// Address of the peer.
    pub address: Option<IpAddr>,
    /// The subject of the client's certificate.
    pub certificate: &'a str,
    /// User id.
    pub user: &'a str,
    /// Client id.
    pub client: &'a str,
    /// The channel that it is about.
    pub channel: &'a str,
    /// Status, close code or error code: what the peer is sent.
    pub code: u32,
    /// The detail: which claim, which limit, which field. Formatted only when the line is written.
    pub why: Option<fmt::Arguments<'a>>,
}

/// Writes lines about refusals, a bounded number in a second for each reason.
#[derive(Debug)]
pub struct Notices {
    limits: Limits,
    started: Instant,
}

impl Notices {
    /// `started` is the process's zero of time, as for the shards' drivers.
    pub fn new(started: Instant) -> Self {
        Self { limits: Limits::default(), started }
    }

    /// Writes a line, unless this second has had enough of its reason. `now` is the shard's turn.
    pub fn notice(&self, now: Millis, reason: Reason, fields: &Fields<'_>) {
        if self.is_due(now, reason) {
            write_line(reason, fields);
        }
    }

    /// The same for a connection that has no session: its address is looked up only for a line that is
    /// written.
    pub(super) fn notice_of(
        &self,
        now: Millis,
        reason: Reason,
        address: impl FnOnce() -> Option<IpAddr>,
        code: u32,
        why: fmt::Arguments<'_>,
    ) {
        if self.is_due(now, reason) {
            let fields = Fields { address: address(), code, why: Some(why), ..Fields::default() };
            write_line(reason, &fields);
        }
    }

    /// The same away from shards, where the clock is read for it.
    pub fn notice_now(&self, reason: Reason, fields: &Fields<'_>) {
        self.notice(self.now(), reason, fields);
    }

    /// Writes how many lines were left out of seconds that are over. Called once a second.
    pub fn report_left_out(&self) {
        for (reason, count) in self.limits.overdue(self.now()) {
            write_left_out(reason, count);
        }
    }

    fn now(&self) -> Millis {
        Millis(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Whether a line is to be written now; reports what was left out before it.
    pub(super) fn is_due(&self, now: Millis, reason: Reason) -> bool {
        if !tracing::enabled!(Level::INFO) {
            return false;
        }
        let Some(before) = self.limits.take(reason, now) else { return false };
        if before > 0 {
            write_left_out(reason, before);
        }
        true
    }
}

/// A text of a stranger's, cut.
fn cut(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(NOTICE_TEXT_CHARS_MAX) {
        None => text.into(),
        Some((at, _)) => format!("{}…", &text[..at]).into(),
    }
}

/// A text of a stranger's as part of a detail: cut when it is written.
pub struct Cut<'a>(pub &'a str);

impl fmt::Display for Cut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&cut(self.0))
    }
}

/// Takes so many bytes of what is formatted and drops the rest, so that a detail is as bounded as its
/// parts should be.
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // Four times: a detail may name two texts and has words of its own.
        let room = (4 * NOTICE_TEXT_CHARS_MAX).saturating_sub(self.0.chars().count());
        self.0.extend(text.chars().take(room));
        Ok(())
    }
}

pub(super) fn write_line(reason: Reason, fields: &Fields<'_>) {
    let name = reason.name();
    let some = |text| Some(cut(text)).filter(|text| !text.is_empty());
    let (user, client, channel) = (some(fields.user), some(fields.client), some(fields.channel));
    let (user, client, channel) = (user.as_deref(), client.as_deref(), channel.as_deref());
    let certificate = some(fields.certificate);
    let certificate = certificate.as_deref();
    let address = fields.address.map(|address| address.to_string());
    let address = address.as_deref();
    let code = Some(fields.code).filter(|code| *code > 0);
    let why = fields.why.map(|why| {
        let mut text = Bounded(String::new());
        // It takes everything.
        let _ = text.write_fmt(why);
        text.0
    });
    let why = why.as_deref().filter(|why| !why.is_empty());
    macro_rules! line {
        ($message:literal) => {
            info!(reason = name, code, address, certificate, user, client, channel, why, $message)
        };
    }
    match reason.subject() {
        Subject::Request => line!("request refused"),
        Subject::Connection => line!("connection closed"),
        Subject::Command => line!("command refused"),
        Subject::Subscription => line!("subscription ended"),
        Subject::Api => line!("API request refused"),
        Subject::Proxy => line!("proxy call failed"),
    }
}

/// Writes that a connection was ended for a reason of TLS. Not bounded: only for those who debug.
pub(super) fn tls_refused(address: Option<IpAddr>, reason: &str, why: &dyn fmt::Display) {
    let address = address.map(|address| address.to_string());
    debug!(reason, address = address.as_deref(), why = %why, "TLS refused");
}

fn write_left_out(reason: Reason, count: u64) {
    info!(reason = reason.name(), left_out = count, "and {} more", Thousands(count));
}

/// A number with commas between its thousands.
struct Thousands(u64);

impl fmt::Display for Thousands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                f.write_char(',')?;
            }
            f.write_char(digit)?;
        }
        Ok(())
    }
}

/// The reason of a disconnect; codes that aren't the node's own are the application's.
pub(super) fn reason_of_close(code: u16) -> Reason {
    match Disconnect::ALL.iter().find(|disconnect| disconnect.code() == code) {
        Some(disconnect) => match disconnect {
            Disconnect::ConnectionClosed => Reason::CloseConnectionClosed,
            Disconnect::Shutdown => Reason::CloseShutdown,
            Disconnect::InternalError => Reason::CloseInternal,
            Disconnect::ConnectionExpired => Reason::CloseExpired,
            Disconnect::SubscriptionExpired => Reason::CloseSubscriptionExpired,
            Disconnect::Slow => Reason::CloseSlow,
            Disconnect::WriteError => Reason::CloseWriteTimeout,
            Disconnect::InsufficientState => Reason::CloseInsufficientState,
            Disconnect::ForceReconnect => Reason::CloseForceReconnect,
            Disconnect::NoPong => Reason::CloseNoPong,
            Disconnect::TooManyRequests => Reason::CloseTooManyRequests,
            Disconnect::StateInvalidated => Reason::CloseStateInvalidated,
            Disconnect::InvalidToken => Reason::CloseInvalidToken,
            Disconnect::BadRequest => Reason::CloseBadRequest,
            Disconnect::Stale => Reason::CloseStale,
            Disconnect::ForceDisconnect => Reason::CloseForceDisconnect,
            Disconnect::ConnectionLimit => Reason::CloseConnectionLimit,
            Disconnect::ChannelLimit => Reason::CloseChannelLimit,
            Disconnect::InappropriateProtocol => Reason::CloseInappropriateProtocol,
            Disconnect::PermissionDenied => Reason::ClosePermissionDenied,
            Disconnect::NotAvailable => Reason::CloseNotAvailable,
            Disconnect::TooManyErrors => Reason::CloseTooManyErrors,
        },
        None => match code {
            1007 => Reason::CloseUtf8,
            1009 => Reason::CloseTooBig,
            1000..3000 => Reason::CloseProtocol,
            _ => Reason::CloseByApplication,
        },
    }
}

/// The reason of a refused request.
pub(super) fn reason_of_refusal(refusal: Refusal) -> Reason {
    match refusal {
        Refusal::Malformed
        | Refusal::Host
        | Refusal::Repeated
        | Refusal::BodyLength
        | Refusal::TransferCoding
        | Refusal::Version => Reason::HttpMalformed,
        Refusal::TargetTooLong
        | Refusal::HeadTooLong
        | Refusal::HeadersTooMany
        | Refusal::BodyTooLong => Reason::HttpTooLong,
        Refusal::Method
        | Refusal::ApiMethod
        | Refusal::NotUpgrade
        | Refusal::WebSocketVersion
        | Refusal::WebSocketKey
        | Refusal::UpgradeBody => Reason::HttpUpgrade,
        Refusal::Origin => Reason::HttpOrigin,
        Refusal::ForeignHost => Reason::HttpHost,
        Refusal::NotFound => Reason::HttpNotFound,
        Refusal::Timeout | Refusal::BodyTimeout => Reason::HttpTimeout,
        Refusal::ApiKey => Reason::ApiUnauthorized,
        Refusal::AddressConnections => Reason::HttpAddressConnections,
        Refusal::AddressRate => Reason::HttpAddressRate,
        Refusal::AddressBytes => Reason::HttpAddressBytes,
        Refusal::Unavailable => Reason::HttpBusy,
    }
}

/// The reason of an error reply.
pub(super) fn reason_of_error(code: ErrorCode) -> Reason {
    match code {
        ErrorCode::Internal => Reason::ErrorInternal,
        ErrorCode::Unauthorized => Reason::ErrorUnauthorized,
        ErrorCode::UnknownChannel => Reason::ErrorUnknownChannel,
        ErrorCode::PermissionDenied => Reason::ErrorPermissionDenied,
        ErrorCode::MethodNotFound => Reason::ErrorMethodNotFound,
        ErrorCode::AlreadySubscribed => Reason::ErrorAlreadySubscribed,
        ErrorCode::LimitExceeded => Reason::ErrorLimitExceeded,
        ErrorCode::BadRequest => Reason::ErrorBadRequest,
        ErrorCode::NotAvailable => Reason::ErrorNotAvailable,
        ErrorCode::TokenExpired => Reason::ErrorTokenExpired,
        ErrorCode::Expired => Reason::ErrorExpired,
        ErrorCode::TooManyRequests => Reason::ErrorTooManyRequests,
        ErrorCode::UnrecoverablePosition => Reason::ErrorUnrecoverablePosition,
        ErrorCode::ConcurrentPagination => Reason::ErrorConcurrentPagination,
    }
}

pub(super) fn write_ordinary(fields: &Fields<'_>, connected: bool) {
    let (user, client) = (cut(fields.user), cut(fields.client));
    let (user, client) = (&*user, &*client);
    let address = fields.address.map(|address| address.to_string());
    let address = address.as_deref();
    let certificate = Some(cut(fields.certificate)).filter(|subject| !subject.is_empty());
    let certificate = certificate.as_deref();
    match connected {
        true => debug!(address, certificate, user, client, "client connected"),
        false => debug!(address, certificate, user, client, "client disconnected"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::Mutex;

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::base::limits::NOTICES_PER_SECOND;

    /// What is logged, as text or as JSON.
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    pub(crate) fn logged(json: bool, act: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let lines = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_target(false)
            .without_time()
            .with_writer(move || writer.clone());
        let registry = tracing_subscriber::registry();
        match json {
            true => tracing::subscriber::with_default(
                registry.with(lines.json().flatten_event(true)),
                act,
            ),
            false => tracing::subscriber::with_default(registry.with(lines), act),
        }
        String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
    }

    #[expect(clippy::disallowed_methods, reason = "the zero of a test's time")]
    fn notices() -> Notices {
        Notices::new(Instant::now())
    }

    #[test]
    fn a_log_line_has_the_known_fields_only() {
        let fields = Fields {
            address: Some(IpAddr::from([192, 0, 2, 1])),
            user: "42",
            channel: "news",
            code: 103,
            why: Some(format_args!("needs {}", "a token")),
            ..Fields::default()
        };
        let notices = notices();
        let reason = Reason::ErrorPermissionDenied;
        let text = logged(false, || notices.notice(Millis(0), reason, &fields));
        assert_eq!(
            text.trim(),
            "INFO command refused reason=\"error.permission_denied\" code=103 address=\"192.0.2.1\" \
             user=\"42\" channel=\"news\" why=\"needs a token\""
        );
        let text = logged(true, || notices.notice(Millis(0), reason, &fields));
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&line["channel"], &line["code"]), (&"news".into(), &103.into()));
        assert_eq!(line.get("client"), None);
    }

    #[test]
    fn texts_of_strangers_stay_in_their_field_and_are_cut() {
        let user = format!("a\n\u{1b}[2J\" code=1 \u{202e}{}", "x".repeat(5000));
        for json in [false, true] {
            let text = logged(json, || {
                let fields = Fields {
                    user: &user,
                    channel: &user,
                    why: Some(format_args!("{user} {user}")),
                    ..Fields::default()
                };
                notices().notice(Millis(0), Reason::CloseBadRequest, &fields);
            });
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(!text.contains('\u{1b}') && text.len() < 2000, "{text}");
            match json {
                true => {
                    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
                    assert_eq!(line["user"], *cut(&user));
                }
                false => assert!(text.contains(r#"user="a\n\u{1b}[2J\" code=1 "#), "{text}"),
            }
        }
    }

    #[test]
    fn lines_left_out_are_counted_in_the_next_one_and_format_nothing() {
        struct Never;
        impl fmt::Display for Never {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                panic!("formatted although the line is left out")
            }
        }
        let notices = notices();
        let reason = Reason::CloseSlow;
        let text = logged(false, || {
            for _ in 0..NOTICES_PER_SECOND {
                notices.notice(Millis(0), reason, &Fields::default());
            }
            for _ in 0..1204 {
                let why = Some(format_args!("{Never}"));
                notices.notice(Millis(0), reason, &Fields { why, ..Fields::default() });
            }
            notices.notice(Millis(1000), reason, &Fields::default());
        });
        assert_eq!(text.matches("connection closed").count(), 11, "{text}");
        assert!(text.contains("and 1,204 more reason=\"close.slow\" left_out=1204"), "{text}");
    }

    #[test]
    fn every_code_of_the_node_has_a_reason_of_its_own() {
        let closes: std::collections::HashSet<_> =
            Disconnect::ALL.iter().map(|disconnect| reason_of_close(disconnect.code())).collect();
        assert_eq!(closes.len(), Disconnect::ALL.len());
        let errors: std::collections::HashSet<_> =
            ErrorCode::ALL.iter().map(|code| reason_of_error(*code)).collect();
        assert_eq!(errors.len(), ErrorCode::ALL.len());
        assert_eq!(reason_of_close(4001), Reason::CloseByApplication);
    }
}
