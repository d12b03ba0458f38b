//! What the server says, as values that an encoding writes. They borrow; nothing here is kept.

/// Result of `connect`.
///
/// Payloads here and below are JSON text, checked where they came from outside; an encoder takes
/// them as they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectResult<'a> {
    /// Client id.
    pub client: &'a str,
    /// Version of the server, which SDKs only show.
    pub version: &'a str,
    /// The connection expires, and the client is the one to refresh it.
    pub expires: bool,
    /// Seconds until then.
    pub ttl: u32,
    /// From the connect proxy.
    pub data: Option<&'a [u8]>,
    /// Server-side subscriptions, by channel.
    pub subs: &'a [(&'a str, SubscribeResult<'a>)],
    /// Seconds between pings; 0 without pings.
    pub ping: u32,
    /// Pongs are wanted.
    pub pong: bool,
    /// Secret of the up-link, for transports that have a separate one; else `""`.
    pub session: &'a str,
    /// This node, for transports with a separate up-link; else `""`.
    pub node: &'a str,
    /// Unix milliseconds, or 0.
    pub time: i64,
}

/// Result of `subscribe`, stream type.
#[derive(Clone, Copy, Debug, Default)]
pub struct SubscribeResult<'a> {
    /// The subscription expires, and the client is the one to refresh it.
    pub expires: bool,
    /// Seconds until then.
    pub ttl: u32,
    /// Recovery is on.
    pub recoverable: bool,
    /// The stream's life, with `positioned`.
    pub epoch: &'a str,
    /// What was missed, oldest first, with `recovered`.
    pub publications: &'a [Publication<'a>],
    /// What was missed is all here.
    pub recovered: bool,
    /// Where the client stands, with `positioned`.
    pub offset: u64,
    /// Positions are checked.
    pub positioned: bool,
    /// From the token or the proxy.
    pub data: Option<&'a [u8]>,
    /// The request asked for recovery.
    pub was_recovering: bool,
    /// Delta was granted.
    pub delta: bool,
}

/// One publication, in a push or in a list.
#[derive(Clone, Copy, Debug, Default)]
pub struct Publication<'a> {
    /// The payload.
    pub data: &'a [u8],
    /// Who published: an encoded ClientInfo (see [`put_client_info`](super::put_client_info)).
    pub info: Option<&'a [u8]>,
    /// Place in the stream, from 1; 0 without history.
    pub offset: u64,
    /// Names of values for filters.
    pub tags: &'a [(&'a str, &'a str)],
    /// The stream's life: only on the live push with offset 1, never in a list.
    pub epoch: Option<&'a str>,
}

impl Publication<'_> {
    /// Nothing in it: what [`Default`] gives, for constants.
    pub const DEFAULT: Self = Self { data: b"", info: None, offset: 0, tags: &[], epoch: None };
}
