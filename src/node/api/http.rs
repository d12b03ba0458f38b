//! The server API over HTTP (server API, section 1): keys, both URL forms, batches, errors.

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, post};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Api;
use super::methods::{self, BadParams, Called, PARALLEL_MAX};
use super::wire::{self, ApiError};
use crate::base::limits::WEB_BODY_BYTES_MAX;
use crate::config;
use crate::node::sender;

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const ERROR_MODE: HeaderName = HeaderName::from_static("x-centrifugo-error-mode");

#[derive(Clone)]
struct Shared {
    api: Arc<Api>,
    options: Arc<ArcSwap<config::Api>>,
}

/// Routes of the API.
pub(in crate::node) fn router(
    api: Arc<Api>,
    prefix: &str,
    options: Arc<ArcSwap<config::Api>>,
) -> Router {
    let shared = Shared { api, options };
    // Another method is 405 whoever asks.
    let guarded = |route: MethodRouter<Shared>| {
        route.route_layer(middleware::from_fn_with_state(shared.clone(), check_key))
    };
    Router::new()
        .route(&format!("{prefix}/batch"), guarded(post(batch)))
        .route(&format!("{prefix}/{{method}}"), guarded(post(method)))
        .route(&format!("{prefix}/"), guarded(post(old_form)))
        .route(prefix, guarded(post(old_form)))
        .layer(DefaultBodyLimit::max(WEB_BODY_BYTES_MAX))
        .with_state(shared.clone())
}

async fn check_key(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let options = shared.options.load_full();
    if has_key(&options, &request) {
        return next.run(request).await;
    }
    if !options.insecure {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    // Without a key any web page in a browser that reaches the node could call it: a simple request is
    // carried out, although the page can't read the answer.
    if !sender::allows_page(&shared.api.node, request.headers()) {
        return (StatusCode::FORBIDDEN, "origin not allowed\n").into_response();
    }
    next.run(request).await
}

/// Whether the request brings the key: in a header of its own, as authorization, or in the query. A
/// wrong header of its own leaves only the query.
fn has_key(options: &config::Api, request: &Request) -> bool {
    let Some(key) = &options.key else { return false };
    let is_key = |given: &[u8]| {
        aws_lc_rs::constant_time::verify_slices_are_equal(given, key.as_bytes()).is_ok()
    };
    let given = match request.headers().get(API_KEY) {
        Some(own) => Some(own.as_bytes()),
        None => request.headers().get(AUTHORIZATION).and_then(|value| {
            let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("apikey").then(|| key.trim().as_bytes())
        }),
    };
    if given.is_some_and(is_key) {
        return true;
    }
    #[derive(Deserialize)]
    struct InQuery {
        api_key: String,
    }
    let query = Query::<InQuery>::try_from_uri(request.uri());
    query.is_ok_and(|Query(InQuery { api_key })| is_key(api_key.as_bytes()))
}

fn json(body: String) -> Response {
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}

fn bad_request() -> Response {
    (StatusCode::BAD_REQUEST, "Bad Request").into_response()
}

/// What came of one call, as a response.
fn response(called: Called, transport_errors: bool) -> Response {
    match called {
        Ok(Ok(result)) => json(format!(r#"{{"result":{result}}}"#)),
        Ok(Err(error)) if transport_errors => {
            let status = StatusCode::from_u16(error.status());
            let body = serde_json::to_string(&error).unwrap_or_default();
            (status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), json(body)).into_response()
        }
        Ok(Err(error)) => json(format!(r#"{{"error":{}}}"#, written(&error))),
        Err(BadParams) => bad_request(),
    }
}

fn written(error: &ApiError) -> String {
    // Numbers and text: nothing in it can fail to be written.
    serde_json::to_string(error).unwrap_or_default()
}

async fn method(
    State(shared): State<Shared>,
    Path(method): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Ok(params) = std::str::from_utf8(&body) else { return bad_request() };
    // An empty body is no object.
    if params.trim_ascii().is_empty() {
        return match methods::names().any(|name| name == method) {
            true => bad_request(),
            false => StatusCode::NOT_FOUND.into_response(),
        };
    }
    let Some(called) = shared.api.call(&method, params).await else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let asked = headers.get(ERROR_MODE).is_some_and(|mode| mode == "transport");
    response(called, asked || shared.options.load().transport_errors)
}

/// Many commands, one after another, each answered in its place (server API, 1.4).
async fn old_form(State(shared): State<Shared>, body: Bytes) -> Response {
    answer_old_form(&shared.api, &body).await
}

/// The same, of somebody who may.
pub(in crate::node) async fn answer_old_form(api: &Api, body: &[u8]) -> Response {
    if api.is_draining() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let commands = serde_json::Deserializer::from_slice(body).into_iter::<&RawValue>();
    let commands =
        commands.map(|command| methods::parse::<wire::Command<'_>>(command.ok()?.get()).ok());
    let Some(commands) = commands.collect::<Option<Vec<_>>>() else { return bad_request() };
    if commands.is_empty() {
        return bad_request();
    }
    let mut replies = Vec::with_capacity(commands.len());
    for wire::Command { id, method, params } in commands {
        let name = method.as_ref().and_then(methods::name_of);
        let params = params.map_or("", RawValue::get);
        let params = if params == "null" { "" } else { params };
        let called = match name {
            Some(name) => api.call(name, params).await,
            None => None,
        };
        let body = match called.unwrap_or(Ok(Err(ApiError::NOT_FOUND))) {
            Ok(Ok(result)) => format!(r#""result":{result}"#),
            Ok(Err(error)) => format!(r#""error":{}"#, written(&error)),
            Err(BadParams) => format!(r#""error":{}"#, written(&ApiError::BAD_REQUEST)),
        };
        replies.push(match id {
            0 => format!("{{{body}}}"),
            id => format!(r#"{{"id":{id},{body}}}"#),
        });
    }
    json(replies.join("\n"))
}

/// One command of a batch: the method's name and its parameters.
async fn in_batch(api: &Api, command: &RawValue) -> Result<String, BadParams> {
    type Fields<'a> = std::collections::BTreeMap<std::borrow::Cow<'a, str>, &'a RawValue>;
    if command.get() == "null" {
        return Ok(format!(r#"{{"error":{}}}"#, written(&ApiError::BAD_REQUEST)));
    }
    let fields: Fields<'_> = serde_json::from_str(command.get()).map_err(|_| BadParams)?;
    let known = methods::names().filter_map(|name| {
        let params = fields.get(name).filter(|params| params.get() != "null")?;
        Some((name, params.get()))
    });
    let Some((name, params)) = known.into_iter().next() else {
        return Ok(format!(r#"{{"error":{}}}"#, written(&ApiError::NOT_FOUND)));
    };
    Ok(match api.call(name, params).await.unwrap_or(Ok(Err(ApiError::NOT_FOUND)))? {
        Ok(result) => format!(r#"{{"{name}":{result}}}"#),
        Err(error) => format!(r#"{{"error":{}}}"#, written(&error)),
    })
}

async fn batch(State(shared): State<Shared>, body: Bytes) -> Response {
    let batch = std::str::from_utf8(&body).ok().and_then(|body| methods::parse(body).ok());
    let Some(wire::Batch { parallel, commands }) = batch else { return bad_request() };
    let commands: Option<Vec<&RawValue>> = match commands {
        None => Some(Vec::new()),
        Some(list) if list.get() == "null" => Some(Vec::new()),
        Some(list) => serde_json::from_str(list.get()).ok(),
    };
    let Some(commands) = commands else { return bad_request() };
    let mut replies = Vec::with_capacity(commands.len());
    let at_once = if parallel { PARALLEL_MAX } else { 1 };
    for commands in commands.chunks(at_once) {
        let called = commands.iter().map(|command| in_batch(&shared.api, command));
        for reply in futures_util::future::join_all(called).await {
            match reply {
                Ok(reply) => replies.push(reply),
                Err(BadParams) => return bad_request(),
            }
        }
    }
    json(format!(r#"{{"replies":[{}]}}"#, replies.join(",")))
}
