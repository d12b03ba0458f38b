//! On whose behalf a request comes: what every router of the control thread judges before anything is
//! carried out. Shards judge the requests of the public port by the same rules (`shard/read.rs`); the internal
//! port has only these.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName, Request, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::proto::http::SINGLE_HEADERS;
use crate::shard::Node;

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Refuses requests that say twice on whose behalf they come (400), or mean another host (403).
pub(super) async fn check(
    State(node): State<Arc<Node>>,
    request: Request<Body>,
    next: Next,
) -> Response {
    let headers = request.headers();
    let twice = |name: &str| headers.get_all(name).iter().nth(1).is_some();
    let user = &node.rules.client.load().user_id_http_header;
    if SINGLE_HEADERS.into_iter().any(twice) || (!user.is_empty() && twice(user)) {
        let why = "a header that may stand once stands more than once\n";
        return (StatusCode::BAD_REQUEST, why).into_response();
    }
    match is_of_this_node(&node, headers, false) {
        true => next.run(request).await,
        false => foreign_host(),
    }
}

/// The same for the pages of administrators: without a password only the host keeps others out.
pub(super) async fn check_admin(
    State(node): State<Arc<Node>>,
    request: Request<Body>,
    next: Next,
) -> Response {
    match is_of_this_node(&node, request.headers(), true) {
        true => next.run(request).await,
        false => foreign_host(),
    }
}

/// Whether the web page that sent a request, if one did, may act as a client.
pub(super) fn allows_page(node: &Node, headers: &HeaderMap) -> bool {
    let value = |name: HeaderName| headers.get(name).map(|value| value.as_bytes().to_vec());
    let (origin, site) = (value(ORIGIN), value(FETCH_SITE));
    node.rules.origins.load().allows_request(origin.as_deref(), site.as_deref())
}

fn is_of_this_node(node: &Node, headers: &HeaderMap, is_admin: bool) -> bool {
    let hosts = &node.options.hosts;
    match headers.get(HOST) {
        None => hosts.admits(None, is_admin),
        // Of several one may be foreign.
        Some(_) => headers.get_all(HOST).iter().all(|h| hosts.admits(Some(h.as_bytes()), is_admin)),
    }
}

fn foreign_host() -> Response {
    let why = "host not allowed: roost.allowed_hosts names further ones\n";
    (StatusCode::FORBIDDEN, why).into_response()
}
