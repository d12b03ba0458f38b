//! The admin page: one page of HTML, its methods, and its figures of each second.
//!
//! ```text
//!  browser -- GET / ------------------> page (embedded, nothing comes from another origin)
//!          -- POST /admin/auth -------> a token for a password
//!          -- POST /admin/api --------> the server API's methods, and some more
//!          -- WebSocket /admin/websocket --> figures once a second (figures.rs): on the public port from a
//!             shard, on the internal one from the control thread (feed.rs)
//! ```
//! Everything but the page itself needs the token, which is sent in a header: no other page can send it.

mod access;
mod feed;
mod figures;
mod methods;
mod series;

use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Extension, Form, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, ORIGIN, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;

pub(super) use self::access::{Access, admin_rules};
use self::feed::Feed;
pub(super) use self::figures::Figures;
pub(super) use self::series::Series;
use super::admin_refusals::Refused;
use super::api::{Api, answer_old_form};
use super::pages;
use super::sender::ClientAddress;

/// The state of the handlers.
#[derive(Clone)]
struct Shared {
    access: Arc<Access>,
    api: Arc<Api>,
    series: Arc<Mutex<Series>>,
}

/// Routes of the page below `prefix`, but for the WebSocket.
pub(super) fn router(
    prefix: &str,
    access: Arc<Access>,
    api: Arc<Api>,
    series: Arc<Mutex<Series>>,
) -> Router {
    let shared = Shared { access, api, series };
    let asset = |kind: &'static str, text: &'static str| {
        get(move || async move { ([(CONTENT_TYPE, kind)], text) })
    };
    Router::new()
        .route(&format!("{prefix}/"), asset(pages::HTML, include_str!("page.html")))
        .route(&format!("{prefix}/admin/page.js"), asset(pages::JS, include_str!("page.js")))
        .route(
            &format!("{prefix}/admin/page.css"),
            asset(pages::CSS, concat!(include_str!("../pages.css"), include_str!("page.css"))),
        )
        .route(&format!("{prefix}/admin/init"), get(init))
        .route(&format!("{prefix}/admin/auth"), post(auth))
        .route(&format!("{prefix}/admin/api"), post(api_call))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::map_response(pages::guard))
        .with_state(shared)
}

/// The route of the WebSocket, for listeners of the control thread. `figures` is the viewers' publication.
pub(super) fn websocket_router(
    prefix: &str,
    access: Arc<Access>,
    figures: watch::Sender<Bytes>,
) -> Router {
    let feed = Feed::new(access, figures);
    Router::new().route(&websocket_path(prefix), get(feed::websocket)).with_state(feed)
}

/// Where the WebSocket of administrators is.
pub(super) fn websocket_path(prefix: &str) -> String {
    format!("{prefix}/admin/websocket")
}

/// The token that a request brings.
fn token(headers: &HeaderMap) -> &str {
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    given.and_then(|given| given.strip_prefix("token ")).unwrap_or("").trim()
}

async fn init(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    let access = &shared.access;
    Json(json!({
        "insecure": access.insecure(),
        "edition": "oss",
        "version": env!("CARGO_PKG_VERSION"),
        "authenticated": access.admits(token(&headers)),
    }))
    .into_response()
}

#[derive(Deserialize)]
struct Credentials {
    #[serde(default)]
    password: String,
    #[serde(default, alias = "one_time")]
    link: String,
}

async fn auth(
    State(shared): State<Shared>,
    client: Option<Extension<ClientAddress>>,
    Form(given): Form<Credentials>,
) -> Response {
    let address = client.and_then(|Extension(ClientAddress(address))| address);
    match shared.access.enter(&given.password, &given.link, address).await {
        Ok(token) => Json(json!({ "token": token })).into_response(),
        Err(Refused::Wrong | Refused::Token) => StatusCode::BAD_REQUEST.into_response(),
        Err(Refused::TooMany) => {
            let after = access::WRONG_DELAY.as_secs();
            let body = Json(json!({ "retry_after_s": after }));
            (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, after.to_string())], body)
                .into_response()
        }
    }
}

/// The old form of the server API (server API, 1.4 and 4), with methods more.
async fn api_call(
    State(shared): State<Shared>,
    client: Option<Extension<ClientAddress>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    // Without a password any page could send it, but for a type that a form doesn't have.
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    if headers.contains_key(ORIGIN) && !kind.starts_with("application/json") {
        return StatusCode::UNSUPPORTED_MEDIA_TYPE.into_response();
    }
    if !shared.access.admits(token(&headers)) {
        let address = client.and_then(|Extension(ClientAddress(address))| address);
        shared.access.refused(address, Refused::Token);
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if methods::is_reload(&body) {
        return match shared.access.reload_requests().reload().await {
            Some(outcome) => Json(json!({ "result": outcome })).into_response(),
            None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        };
    }
    if let Some(called) = methods::call(&shared.api, &shared.series, &body).await {
        return called;
    }
    answer_old_form(&shared.api, &body).await.into_response()
}

/// Bytes of a request at most: a test message is small.
const BODY_BYTES_MAX: usize = 1 << 20;
