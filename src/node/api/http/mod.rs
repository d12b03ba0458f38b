//! The server API over HTTP (server API, section 1): keys, both URL forms, batches, statuses of errors.
//! `decode` makes calls out of JSON, `encode` writes replies. Requests come through a router, or past it
//! (`direct`).

mod answer;
mod decode;
mod direct;
mod encode;
mod lists;
mod methods;
mod wire;

pub(in crate::node) use self::answer::Answer;
pub(in crate::node) use self::direct::Direct;

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, post};
use serde_json::value::RawValue;

use self::decode::{BadParams, Decoded};
use self::wire::InBatch;
use super::calls::Call;
use super::error::{ApiError, Result};
use super::publish::PARALLEL_MAX;
use super::read::Format;
use super::work::{REPLY_BYTES_MAX, Work};
use super::{Api, CALLER};
use crate::base::limits::{WEB_ANSWER_BYTES_MAX, WEB_BODY_BYTES_MAX};
use crate::base::notices::Reason;
use crate::config;
use crate::edge::api_key::GivenKey;
use crate::node::sender::{self, ClientAddress};
use crate::node::slices::Slice;
use crate::proto::client::Encoding;
use crate::shard::Cut;

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
    // Another method is 405 for every sender.
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
    let address = request.extensions().get().and_then(|ClientAddress(address)| *address);
    CALLER.scope(address, with_key(&shared, request, next)).await
}

async fn with_key(shared: &Shared, request: Request, next: Next) -> Response {
    let options = shared.options.load_full();
    if has_key(&options, given_key(&request)) {
        return next.run(request).await;
    }
    if !options.insecure {
        let why = format_args!("no key, or not http_api.key: {}", Cut(request.uri().path()));
        shared.api.refused(Reason::ApiUnauthorized, 401, why);
        return StatusCode::UNAUTHORIZED.into_response();
    }
    // Without a key any web page in a browser that reaches the node could call it: a simple request is
    // carried out, although the page can't read the answer.
    if !sender::allows_page(&shared.api.node, request.headers()) {
        return sender::foreign_page(&shared.api.node, request.headers());
    }
    next.run(request).await
}

fn given_key(request: &Request) -> GivenKey<'_> {
    let header = |name| request.headers().get(name).map(HeaderValue::as_bytes);
    GivenKey {
        own: header(API_KEY),
        authorization: header(AUTHORIZATION),
        query: request.uri().query().unwrap_or_default(),
    }
}

fn has_key(options: &config::Api, given: GivenKey<'_>) -> bool {
    options.key.as_ref().is_some_and(|key| given.is(key))
}

/// 400, and a line in the log that says what is wrong.
fn bad_body(api: &Api, why: std::fmt::Arguments<'_>) -> Answer {
    api.refused(Reason::ApiBadRequest, 400, why);
    Answer::bad_request()
}

/// Carries out a call that was read. Its result has at most so many bytes.
async fn carry_out(api: &Api, call: Call, bytes_max: usize, slice: &mut Slice) -> Result<String> {
    let method = call.method();
    let format = Format { encoding: Encoding::Json, bytes_max };
    let reply = api.call(call, format).await?;
    let written = encode::reply(reply, bytes_max, slice).await;
    written.inspect_err(|error| api.refused_call(method, *error))
}

async fn method(
    State(shared): State<Shared>,
    Path(method): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let asks_status = headers.get(ERROR_MODE).is_some_and(|mode| mode == "transport");
    answer_method(&shared, &method, &body, asks_status).await
}

/// Carries out the call of one method. With `asks_status` an error is a status of HTTP.
async fn answer_method(shared: &Shared, method: &str, body: &[u8], asks_status: bool) -> Answer {
    let Ok(params) = std::str::from_utf8(body) else {
        return bad_body(&shared.api, format_args!("{}: not UTF-8", Cut(method)));
    };
    // An empty body is no object.
    if params.trim_ascii().is_empty() {
        return match methods::names().any(|name| name == method) {
            true => bad_body(&shared.api, format_args!("{method}: an empty body")),
            false => Answer::bare(StatusCode::NOT_FOUND),
        };
    }
    let read = match decode::call(method, params) {
        Some(Ok(read)) => read,
        Some(Err(BadParams(why))) => {
            return bad_body(&shared.api, format_args!("{method}: {why}"));
        }
        None => {
            let why = format_args!("{}: no such method", Cut(method));
            shared.api.refused(Reason::ApiError, 404, why);
            return Answer::bare(StatusCode::NOT_FOUND);
        }
    };
    let mut slice = Slice::default();
    slice.spend(body.len()).await;
    let called = match read {
        Ok(call) => carry_out(&shared.api, call, RESULT_BYTES_MAX, &mut slice).await,
        Err(error) => {
            shared.api.refused_call(method, error);
            Err(error)
        }
    };
    Answer::of_call(called, asks_status || shared.options.load().transport_errors)
}

/// Many commands, one after another, each answered in its place (server API, 1.4).
async fn old_form(State(shared): State<Shared>, body: Bytes) -> Answer {
    answer_old_form(&shared.api, &body).await
}

/// Reads the command of the old form. Parameters that can't be read are an error in its place.
fn read_old(api: &Api, command: &wire::Command<'_>) -> Decoded {
    let Some(wire::Method::Known(name)) = command.method else { return Err(ApiError::NotFound) };
    let params = command.params.map_or("", RawValue::get);
    let params = if params == "null" { "" } else { params };
    match decode::call(name, params).ok_or(ApiError::NotFound)? {
        Ok(read) => read.inspect_err(|error| api.refused_call(name, *error)),
        Err(BadParams(why)) => {
            api.refused(Reason::ApiBadRequest, 107, format_args!("{name}: {why}"));
            Err(ApiError::BadRequest)
        }
    }
}

/// The same, without a look at the key.
pub(in crate::node) async fn answer_old_form(api: &Api, body: &[u8]) -> Answer {
    if api.is_draining() {
        return Answer::bare(StatusCode::SERVICE_UNAVAILABLE);
    }
    let mut slice = Slice::default();
    // All are read before the first is carried out.
    let (mut commands, mut work) = (Vec::new(), Work::default());
    for command in serde_json::Deserializer::from_slice(body).into_iter::<&RawValue>() {
        let Ok(command) = command else { return bad_body(api, format_args!("not JSON")) };
        slice.spend(command.get().len()).await;
        let command = match decode::parse::<wire::Command<'_>>(command.get()) {
            Ok(command) => command,
            Err(BadParams(why)) => return bad_body(api, format_args!("a command: {why}")),
        };
        // A name that is no method's can't be read; of a number that isn't, the reply says so.
        if command.method == Some(wire::Method::UnknownName) {
            return bad_body(api, format_args!("method: no such method"));
        }
        let read = read_old(api, &command);
        let of_call = read.as_ref().map(Call::work);
        let of_call = of_call.unwrap_or(Work::COMMAND);
        let Some(sum) = work.with(of_call) else {
            return bad_body(api, format_args!("more than one request may carry out"));
        };
        work = sum;
        commands.push((command.id, read));
    }
    if commands.is_empty() {
        return bad_body(api, format_args!("no command"));
    }
    let mut room = Room::beside(work);
    let mut replies = Vec::with_capacity(commands.len());
    for (id, read) in commands {
        slice.spend(COMMAND_STEPS).await;
        let called = match read {
            Ok(call) => carry_out(api, call, room.left(), &mut slice).await,
            Err(error) => Err(error),
        };
        let body = match room.taken(called) {
            Ok(result) => format!(r#""result":{result}"#),
            Err(error) => format!(r#""error":{}"#, encode::error(error)),
        };
        replies.push(match id {
            0 => format!("{{{body}}}"),
            id => format!(r#"{{"id":{id},{body}}}"#),
        });
    }
    Answer::json(replies.join("\n"))
}

/// Reads a command of a batch: the method that it names and its call, or an error in its place.
fn read_in_batch(
    api: &Api,
    command: InBatch<'_>,
) -> std::result::Result<Result<(&'static str, Call)>, BadParams> {
    let (name, params) = match command {
        InBatch::Absent => return Ok(Err(ApiError::BadRequest)),
        InBatch::Unknown => return Ok(Err(ApiError::NotFound)),
        InBatch::Call(name, params) => (name, params),
    };
    let Some(read) = decode::call(name, params) else { return Ok(Err(ApiError::NotFound)) };
    let read = read?.inspect_err(|error| api.refused_call(name, *error));
    Ok(read.map(|call| (name, call)))
}

async fn batch(State(shared): State<Shared>, body: Bytes) -> Answer {
    answer_batch(&shared.api, &body).await
}

/// Carries out the commands of a batch.
async fn answer_batch(api: &Api, body: &[u8]) -> Answer {
    let mut slice = Slice::default();
    let Ok(text) = std::str::from_utf8(body) else {
        return bad_body(api, format_args!("batch: not UTF-8"));
    };
    let wire::Batch { parallel, commands } = match decode::parse(text) {
        Ok(batch) => batch,
        Err(BadParams(why)) => return bad_body(api, format_args!("batch: {why}")),
    };
    slice.spend(body.len()).await;
    // All are read before the first is carried out.
    let (mut read, mut work) = (Vec::with_capacity(commands.0.len()), Work::default());
    for command in commands.0 {
        let bytes = if let InBatch::Call(_, params) = command { params.len() } else { 0 };
        slice.spend(bytes + COMMAND_STEPS).await;
        let command = match read_in_batch(api, command) {
            Ok(command) => command,
            Err(BadParams(why)) => return bad_body(api, format_args!("batch: {why}")),
        };
        let of_call = command.as_ref().map(|(_, call)| call.work());
        let of_call = of_call.unwrap_or(Work::COMMAND);
        let Some(sum) = work.with(of_call) else {
            return bad_body(api, format_args!("batch: more than one request may do"));
        };
        work = sum;
        read.push(command);
    }
    let mut room = Room::beside(work);
    let mut body = String::with_capacity(REPLIES_BEGIN.len() + work.reply_bytes() / 4);
    body.push_str(REPLIES_BEGIN);
    if parallel {
        carry_out_together(api, read, &mut room, &mut slice, &mut body).await;
    } else {
        // Each waits for the one before it.
        for command in read {
            let left = room.left();
            let (name, called) = carry_out_in_batch(api, command, left, &mut slice).await;
            slice.spend(COMMAND_STEPS).await;
            put_reply(&mut body, name, room.taken(called));
        }
    }
    body.push_str("]}");
    Answer::json(body)
}

/// Carries out the commands of a batch side by side, so many at a time.
async fn carry_out_together(
    api: &Api,
    read: Vec<Result<(&'static str, Call)>>,
    room: &mut Room,
    slice: &mut Slice,
    body: &mut String,
) {
    let mut read = read.into_iter();
    loop {
        let left = room.left();
        let calls = read.by_ref().take(PARALLEL_MAX).map(async |command| {
            // Each has a slice of its own: they go on side by side.
            carry_out_in_batch(api, command, left, &mut Slice::default()).await
        });
        let called = futures_util::future::join_all(calls).await;
        if called.is_empty() {
            break;
        }
        slice.spend(called.len() * COMMAND_STEPS).await;
        for (name, called) in called {
            put_reply(body, name, room.taken(called));
        }
    }
}

async fn carry_out_in_batch(
    api: &Api,
    command: Result<(&'static str, Call)>,
    bytes_max: usize,
    slice: &mut Slice,
) -> (&'static str, Result<String>) {
    match command {
        Ok((name, call)) => (name, carry_out(api, call, bytes_max, slice).await),
        Err(error) => ("", Err(error)),
    }
}

/// Adds a reply to those of a batch. Only one that has no method's name is always an error.
fn put_reply(body: &mut String, method: &str, called: Result<String>) {
    if body.len() > REPLIES_BEGIN.len() {
        body.push(',');
    }
    let error = called.as_ref().err().map(|error| encode::error(*error));
    let (name, result) = match (&called, &error) {
        (Ok(result), _) => (method, result.as_str()),
        (_, error) => ("error", error.as_deref().unwrap_or_default()),
    };
    for part in ["{\"", name, "\":", result, "}"] {
        body.push_str(part);
    }
}

/// How the answer to a batch begins.
const REPLIES_BEGIN: &str = r#"{"replies":["#;

/// How much room the answer to a request has for what is kept in channels, beside the replies whose length
/// is known.
struct Room {
    left: usize,
}

impl Room {
    fn beside(work: Work) -> Self {
        Self { left: RESULT_BYTES_MAX.saturating_sub(work.reply_bytes()) }
    }

    /// Bytes that the next result may take.
    fn left(&self) -> usize {
        self.left.max(REPLY_BYTES_MAX)
    }

    /// Takes the room of a result, which becomes an error where there is none.
    fn taken(&mut self, called: Result<String>) -> Result<String> {
        let result = called?;
        // The others were counted before.
        let Some(more) = result.len().checked_sub(REPLY_BYTES_MAX) else { return Ok(result) };
        match self.left.checked_sub(more) {
            Some(left) => {
                self.left = left;
                Ok(result)
            }
            None => Err(ApiError::AnswerTooLong),
        }
    }
}

/// Bytes of a result at most: what stands around it is in the answer, too.
const RESULT_BYTES_MAX: usize = WEB_ANSWER_BYTES_MAX - REPLY_BYTES_MAX;

/// A command takes as long as so many bytes do to be read.
const COMMAND_STEPS: usize = 256;
