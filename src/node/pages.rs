//! Common parts of pages: types, and headers that keep other origins out.

use axum::http::HeaderValue;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::response::Response;

pub(super) const HTML: &str = "text/html; charset=utf-8";
pub(super) const JS: &str = "text/javascript; charset=utf-8";
pub(super) const CSS: &str = "text/css; charset=utf-8";

/// Scripts and styles of this host only, and nothing of what others may embed or frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                      connect-src 'self' ws: wss:; form-action 'none'; base-uri 'none'; \
                      frame-ancestors 'none'";

/// A response that pages of others may load: with this policy instead.
#[derive(Clone)]
pub(super) struct Shared(pub(super) HeaderValue);

/// Puts the headers on a response that all pages have, and what they load.
pub(super) async fn guard(mut response: Response) -> Response {
    let own: [(HeaderName, &str); 7] = [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in own {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    if let Some(Shared(policy)) = response.extensions_mut().remove() {
        response.headers_mut().insert("cross-origin-resource-policy", policy);
    }
    response
}
