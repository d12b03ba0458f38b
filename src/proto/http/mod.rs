//! HTTP/1.1 (RFC 9112) as far as a shard needs it, sans I/O: the head of a request, the upgrade to
//! WebSocket (RFC 6455 4.2), refusals, small responses and the heads of
//! endless ones; and the client's side of the upgrade.
//!
//! ```text
//!  bytes --> parse --> Head --> upgrade --> Upgrade --> put_switching
//!              '----------'--------'--> Refusal --> put_refusal, then close
//! ```
//!
//! It must not know sockets, time, routes, origins, limits other than those of a head.

mod body;
mod client;
mod cors;
mod date;
mod forwarded;
mod head;
mod media;
mod query;
mod response;
mod upgrade;

pub use self::body::BodyReader;
pub use self::client::{UpgradeRefused, parse_upgrade_response, put_upgrade_request};
pub use self::cors::{cors_headers, is_of_own_host, origin, preflight_headers};
pub use self::date::{DateCache, HttpDate};
pub use self::forwarded::{ForwardedHeader, forwarded_hops};
pub use self::head::{Body, Head, SINGLE_HEADERS, head_complete, is_host, parse};
pub use self::media::takes_events;
pub use self::query::query_param;
pub use self::response::{
    CONTINUE, EVENT_STREAM, Refusal, Response, Reuse, put_event_source_retry, put_refusal,
    put_stream_head,
};
pub use self::upgrade::{Format, Subprotocol, Upgrade, format, put_switching, upgrade};
