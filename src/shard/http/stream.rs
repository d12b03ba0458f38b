//! Requests that shards serve themselves: upgrades, responses that go on as long as a client is there, and
//! the up-link of those.
//!
//! ```text
//!   Head --> (Body) --> 200, head of the response --> Client: its messages are the body, in chunks
//!              '------> Mail::Emulate to the shard that has the session --> Mail::Response --> 204, Head
//! ```
//! The session behind all of them is the same. What a transport is different in is its [`Form`]: how
//! messages are framed, and whether anything but pushes is said.

use std::sync::Arc;

use compact_str::CompactString;

use crate::base::form::{Form, Framing};
use crate::base::frame::SharedFrame;
use crate::base::id::ConnKey;
use crate::base::notices::Reason;
use crate::io::Driver;
use crate::proto::http::{self, Head, Reuse};
use crate::proto::{client, framing};
use crate::session::Headers;
use crate::shard::context::Cx;
use crate::shard::http::UnsentHead;
use crate::shard::http::bodies::Incoming;
use crate::shard::http::endpoint::{CodeResponse, Endpoint, EndpointKind};
use crate::shard::http::route::Answer;
use crate::shard::mail::post::Post;
use crate::shard::net::Net;
use crate::shard::net::effects::Effect;
use crate::shard::net::record::{Phase, Rx};

impl<D: Driver> Net<D> {
    /// A request for an endpoint is whole.
    pub(crate) fn serve(
        &mut self,
        cx: &Cx,
        post: &mut Post,
        key: ConnKey,
        at: usize,
        incoming: Incoming,
    ) {
        let node = &cx.node;
        let Some(endpoint) = node.options.endpoints.get(at) else { return };
        let (head, body) = incoming.into_parts();
        // It was parsed before.
        let Ok(Some(head)) = http::parse(&head) else { return };
        if endpoint.kind == EndpointKind::Emulation {
            return self.serve_emulation(cx, post, key, &head, &body);
        }
        let mut message = match first_message(endpoint.kind, &head, body) {
            Ok(message) => message,
            Err(why) => {
                cx.counters().refused_malformed.add(1);
                let text = format_args!("{}", why.trim_end());
                self.log_refusal(cx, key.index, Reason::HttpMalformed, 400, text);
                let more = self.cors(cx, &head);
                let body = why.as_bytes();
                let answer = Answer { reuse: head.reuse(), status: 400, headers: &more, body };
                cx.count_response(Some(at), 400);
                return self.answer(cx, post, key, answer, &[]);
            }
        };
        if let Err(reason) = self.admit(cx) {
            return self.refuse_busy(cx, post, key.index, &head, reason);
        }
        if endpoint.kind == EndpointKind::UniSse
            && let Some(id) = head.header("last-event-id")
        {
            message.push(BEFORE_LAST_EVENT_ID);
            message.extend_from_slice(id);
        }
        match endpoint.kind {
            EndpointKind::LongPoll => self.begin_poll(cx, key, &head),
            _ => self.begin_stream(cx, key, at, endpoint, &head),
        }
        cx.counters().messages_received.add(1);
        self.effect(Effect::Message { key, message });
    }

    /// A request to the up-link is whole.
    fn serve_emulation(
        &mut self,
        cx: &Cx,
        post: &mut Post,
        key: ConnKey,
        head: &Head<'_>,
        body: &[u8],
    ) {
        let cors = self.cors(cx, head);
        let Err(status) = self.emulation(cx, post, key, head, &cors, body) else { return };
        if status != 204 {
            cx.counters().emulations_refused.add(1);
            let (reason, why) = match status {
                503 => (Reason::HttpBusy, "too many emulated requests wait"),
                404 => (Reason::HttpNotFound, "the session is another node's"),
                _ => (Reason::HttpMalformed, "this is no emulated request"),
            };
            self.log_refusal(cx, key.index, reason, status.into(), format_args!("{why}"));
        }
        cx.count_response(cx.endpoint_of(EndpointKind::Emulation), status);
        let answer = Answer { reuse: head.reuse(), status, headers: &cors, body: b"" };
        self.answer(cx, post, key, answer, &[]);
    }

    /// A connection is a client's from here on.
    pub(crate) fn begin_client(&mut self, cx: &Cx, key: ConnKey, form: Form, head: &Head<'_>) {
        self.keep_client_headers(cx, key.index, head);
        let tick = cx.tick();
        if let Some(conn) = self.conn(key) {
            conn.phase = Phase::Client;
            conn.since_tick = tick;
            conn.form = form;
        }
        // It is a client once it is connected.
        self.set_replaceable(key.index);
        self.schedule(cx, key.index);
    }

    /// The head of a response that goes on, and the connection as a client's.
    fn begin_stream(
        &mut self,
        cx: &Cx,
        key: ConnKey,
        at: usize,
        endpoint: &Endpoint,
        head: &Head<'_>,
    ) {
        let kind = endpoint.kind;
        let chunked = head.version == 1;
        let framing = match (kind.is_events(), chunked) {
            (false, true) => Framing::Stream,
            (false, false) => Framing::BareStream,
            (true, true) => Framing::Events,
            (true, false) => Framing::BareEvents,
        };
        let form = match kind.is_one_way() {
            true => Form::one_way(framing),
            false => Form::new(framing, kind == EndpointKind::HttpStream && is_binary(head)),
        };
        let content_type = match (kind.is_events(), form.is_protobuf()) {
            (true, _) => http::EVENT_STREAM,
            (false, true) => "application/octet-stream",
            (false, false) => "application/json",
        };
        let cors = self.cors(cx, head);
        let mut out = Vec::new();
        http::put_stream_head(&mut out, content_type, &cors, chunked, self.date(cx));
        if kind.is_events() {
            // Without it all event sources of a node that ends would come back in the same second.
            let retry_ms = self.retry_ms();
            framing::put_raw(&mut out, form, format!("retry: {retry_ms}\n\n").as_bytes());
        }
        // A part, so that it goes out even when what stands behind it is too much and is dropped.
        let frame = SharedFrame::part(&out);
        cx.counters().streams.add(1);
        cx.count_response(Some(at), 200);
        self.begin_client(cx, key, form, head);
        if let Some(conn) = self.conn(key) {
            conn.rx = None;
        }
        match endpoint.responses.is_empty() {
            true => _ = self.enqueue(cx, key.index, frame),
            false => {
                let unsent = UnsentHead { frame, endpoint: at, cors };
                self.http.heads.insert(key.index, unsent);
            }
        }
    }

    /// Keeps of a client's request what is needed when it connects: the user that a header names, and the
    /// headers that proxies take over.
    pub(crate) fn keep_client_headers(&mut self, cx: &Cx, index: u32, head: &Head<'_>) {
        let user = named_user(cx, head);
        let headers = forwarded_headers(cx, head);
        if user.is_some() || headers.is_some() {
            self.effect(Effect::Client { index, user, headers });
        }
    }

    /// What came on a connection whose response goes on: requests behind it are never answered, since the
    /// connection ends with that response.
    pub(crate) fn behind_stream(&mut self, cx: &Cx, bytes: &[u8]) {
        cx.counters().bytes_ignored.add(bytes.len() as u64);
    }

    /// Sends the head of a response, if it waited.
    pub(crate) fn send_head(&mut self, cx: &Cx, index: u32) {
        if self.http.heads.is_empty() {
            return;
        }
        if let Some(unsent) = self.http.heads.remove(&index) {
            self.enqueue(cx, index, unsent.frame);
        }
    }

    /// Answers a `connect` that failed with a whole response, if the endpoint has one for that code. The
    /// caller takes its session apart, if there is one.
    pub(crate) fn answer_code(&mut self, cx: &Cx, post: &mut Post, index: u32, code: u32) -> bool {
        if self.http.heads.is_empty() {
            return false;
        }
        let node = &cx.node;
        let responses = self
            .http
            .heads
            .get(&index)
            .and_then(|unsent| Some(&node.options.endpoints.get(unsent.endpoint)?.responses));
        let found = responses.and_then(|all| all.iter().find(|response| response.code == code));
        let Some(response) = found else { return false };
        let Some(unsent) = self.http.heads.remove(&index) else { return false };
        // The answer takes the place of the reply to `connect`: nothing is held for that any more.
        self.take_held(index);
        let CodeResponse { status, body, .. } = response;
        cx.count_response(Some(unsent.endpoint), *status);
        let kind = if client::is_json(body.as_bytes()) { "application/json" } else { "text/plain" };
        let answer = http::Response {
            status: *status,
            date: self.date(cx),
            headers: &unsent.cors,
            content_type: kind,
            reuse: Reuse::Close,
            is_head: false,
        };
        let mut out = Vec::new();
        answer.put(&mut out, body.as_bytes());
        self.enqueue(cx, index, SharedFrame::new(&out));
        self.linger(cx, post, index);
        true
    }

    /// Nothing more comes in a response, and on its connection.
    pub(crate) fn finish_response(&mut self, cx: &Cx, post: &mut Post, index: u32) {
        let mut end = Vec::new();
        framing::end(&mut end, self.form(index));
        if !end.is_empty() {
            self.enqueue(cx, index, SharedFrame::new(&end));
        }
        self.linger(cx, post, index);
    }
}

/// The message that a request begins its client with: a frame of commands, or a connect request.
///
/// # Errors
/// The body of the answer to a request without a usable one.
fn first_message(
    kind: EndpointKind,
    head: &Head<'_>,
    body: Vec<u8>,
) -> Result<Vec<u8>, &'static str> {
    let given = match head.method {
        "GET" => http::query_param(head.query, "cf_connect").map(|text| text.into_owned().into()),
        _ => Some(body),
    };
    match given {
        None if kind == EndpointKind::Sse => Err("cf_connect is missing\n"),
        Some(body) if kind == EndpointKind::UniHttpStream && body.is_empty() => {
            Err("the connect request is missing\n")
        }
        given if kind.is_one_way() => {
            let given = given.unwrap_or_default();
            match std::str::from_utf8(&given).map(client::connect_request) {
                Ok(Ok(_)) => Ok(given),
                _ => Err("this is no connect request\n"),
            }
        }
        given => Ok(given.unwrap_or_default()),
    }
}

/// The user that a request's header names.
fn named_user(cx: &Cx, head: &Head<'_>) -> Option<CompactString> {
    let name = &cx.client.user_id_http_header;
    if name.is_empty() {
        return None;
    }
    let user = std::str::from_utf8(head.header(name)?).ok()?;
    (!user.is_empty()).then(|| user.into())
}

/// The headers of a request that proxies take over.
fn forwarded_headers(cx: &Cx, head: &Head<'_>) -> Option<Arc<Headers>> {
    let wanted = &cx.client.proxies.http_headers;
    if wanted.is_empty() {
        return None;
    }
    let named = head.headers().filter_map(|(name, value)| {
        let name = name.to_ascii_lowercase();
        wanted.contains(&name).then(|| (name.into(), value.into()))
    });
    let http: Vec<_> = named.collect();
    (!http.is_empty()).then(|| Arc::new(Headers { http, emulated: Vec::new() }))
}

/// Whether a request's body is Protobuf.
pub(crate) fn is_binary(head: &Head<'_>) -> bool {
    head.header("content-type").is_some_and(|value| {
        let kind = value.split(|byte| *byte == b';').next().unwrap_or_default();
        kind.trim_ascii().eq_ignore_ascii_case(b"application/octet-stream")
    })
}

/// Stands between a connect request and the id of the last event that its client got: in JSON there is no
/// such byte.
pub(crate) const BEFORE_LAST_EVENT_ID: u8 = 0;

impl Rx {
    /// What a request for an endpoint leaves for the next one.
    pub(crate) fn behind(rest: &[u8]) -> Option<Box<Self>> {
        (!rest.is_empty()).then(|| Box::new(Self { raw: rest.to_vec(), ..Self::default() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::fixture::{Plan, Wired};

    fn of(kind: EndpointKind) -> Wired {
        let mut plan = Plan::default();
        let endpoint = Endpoint { body_bytes_max: 1000, ..Endpoint::new("/x", kind) };
        plan.options.endpoints = vec![endpoint];
        Wired::new(plan)
    }

    #[test]
    fn the_body_of_a_stream_is_its_first_message() {
        let mut of = of(EndpointKind::HttpStream);
        let (link, key) = of.connect();
        of.request(key, "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}");
        assert!(of.received(link).starts_with("HTTP/1.1 200 "));
        assert!(of.net.conn(key).is_some_and(|conn| conn.phase == Phase::Client));
        let effect = of.net.next_effect();
        assert!(
            matches!(&effect, Some(Effect::Message { key: of, message }) if *of == key && message == b"{}"),
            "{effect:?}"
        );
        assert_eq!(of.end(), []);
    }

    #[test]
    fn other_methods_and_empty_requests_are_refused() {
        let mut of = of(EndpointKind::UniHttpStream);
        let (link, key) = of.connect();
        of.request(key, "GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(of.received(link).starts_with("HTTP/1.1 405 "));
        let (link, key) = of.connect();
        of.request(key, "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        assert!(of.received(link).starts_with("HTTP/1.1 400 "));
        assert!(of.net.next_effect().is_none());
        assert_eq!(of.end(), []);
    }
}
