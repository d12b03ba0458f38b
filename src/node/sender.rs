//! On whose behalf a request comes: what every router of the control thread judges before anything is
//! carried out. Shards judge the requests of the public port by the same rules (`shard/read.rs`); the internal
//! port has only these.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::base::notices::Reason;
use crate::proto::http::SINGLE_HEADERS;
use crate::shard::{Fields, NodeState};

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The address of the client that a request comes from, where it is known: an extension of the request.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientAddress(pub(super) Option<IpAddr>);

/// Refuses requests that say twice on whose behalf they come (400), or mean another host (403).
pub(super) async fn check(
    State(node): State<Arc<NodeState>>,
    request: Request<Body>,
    next: Next,
) -> Response {
    let headers = request.headers();
    let twice = |name: &str| headers.get_all(name).iter().nth(1).is_some();
    let user = &node.rules.client.load().user_id_http_header;
    // The parser of the internal port takes several of these, that of the public one doesn't.
    let single = SINGLE_HEADERS.into_iter().chain(["host"]);
    if single.into_iter().any(twice) || (!user.is_empty() && twice(user)) {
        let why = "a header that may stand once stands more than once";
        return refuse(&node, Reason::HttpMalformed, StatusCode::BAD_REQUEST, why, "");
    }
    match is_of_this_node(&node, headers, false) {
        true => next.run(request).await,
        false => foreign_host(&node, headers),
    }
}

/// The same for the pages of administrators: without a password only the host keeps others out.
pub(super) async fn check_admin(
    State(node): State<Arc<NodeState>>,
    request: Request<Body>,
    next: Next,
) -> Response {
    match is_of_this_node(&node, request.headers(), true) {
        true => next.run(request).await,
        false => foreign_host(&node, request.headers()),
    }
}

/// Whether the web page that sent a request, if one did, may act as a client.
pub(super) fn allows_page(node: &NodeState, headers: &HeaderMap) -> bool {
    let value = |name: HeaderName| headers.get(name).map(|value| value.as_bytes().to_vec());
    let (origin, site) = (value(ORIGIN), value(FETCH_SITE));
    node.rules.origins.load().allows_request(origin.as_deref(), site.as_deref())
}

fn is_of_this_node(node: &NodeState, headers: &HeaderMap, is_admin: bool) -> bool {
    let hosts = &node.options.hosts;
    match headers.get(HOST) {
        None => hosts.admits(None, is_admin),
        // Of several one may be foreign.
        Some(_) => headers.get_all(HOST).iter().all(|h| hosts.admits(Some(h.as_bytes()), is_admin)),
    }
}

/// Refuses a request of a page that may not act as a client.
pub(super) fn foreign_page(node: &NodeState, headers: &HeaderMap) -> Response {
    let origin = headers.get(ORIGIN).map_or("none", text);
    refuse(node, Reason::HttpOrigin, StatusCode::FORBIDDEN, "origin not allowed", origin)
}

fn foreign_host(node: &NodeState, headers: &HeaderMap) -> Response {
    let why = "host not allowed: roost.allowed_hosts names further ones";
    let host = headers.get(HOST).map_or("none", text);
    refuse(node, Reason::HttpHost, StatusCode::FORBIDDEN, why, host)
}

fn refuse(
    node: &NodeState,
    reason: Reason,
    status: StatusCode,
    why: &str,
    given: &str,
) -> Response {
    let sep = if given.is_empty() { "" } else { ": " };
    node.notices.notice_now(
        reason,
        &Fields {
            code: status.as_u16().into(),
            why: Some(format_args!("{why}{sep}{given}")),
            ..Fields::default()
        },
    );
    (status, format!("{why}\n")).into_response()
}

/// As much of a stranger's header as a log line has room for.
fn text(value: &HeaderValue) -> &str {
    let text = value.to_str().unwrap_or("not text");
    // Visible ASCII: every byte is a character.
    text.get(..GIVEN_BYTES_MAX).unwrap_or(text)
}

/// Bytes of a header in a log line at most.
const GIVEN_BYTES_MAX: usize = 128;
