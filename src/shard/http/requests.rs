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

use crate::base::form::{Form, Framing};
use crate::base::frame::SharedFrame;
use crate::base::id::ConnKey;
use crate::base::limits::LAST_EVENT_ID_BYTES_MAX;
use crate::base::notices::Reason;
use crate::edge::proxy::AppDisconnect;
use crate::io::Driver;
use crate::proto::client::{self, Disconnect, ErrorCode, Push};
use crate::proto::framing;
use crate::proto::http::{self, Head, Reuse};
use crate::proto::ws::DeflateOptions;
use crate::session::{Sub, SubState};
use crate::shard::Shard;
use crate::shard::flow::Flow;
use crate::shard::http::web::Incoming;
use crate::shard::net::record::{NONE, Phase, Rx};
use crate::shard::notices::Cut;

/// Something that shards serve on the public port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its path.
    pub path: String,
    /// What it is.
    pub kind: EndpointKind,
    /// Bytes of a request's body at most.
    pub body_bytes_max: usize,
    /// What a `connect` that fails is answered with, by its code, in place of the response that it would
    /// have begun.
    pub responses: Vec<CodeResponse>,
}

impl Endpoint {
    /// An endpoint without a body and without peculiarities.
    pub fn new(path: &str, kind: EndpointKind) -> Self {
        Self { path: path.to_owned(), kind, body_bytes_max: 0, responses: Vec::new() }
    }
}

/// What an endpoint is (client protocol, 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointKind {
    /// The client protocol over WebSocket.
    WebSocket,
    /// The same for administrators.
    Admin,
    /// A WebSocket whose messages go back.
    Echo,
    /// Pushes over WebSocket.
    UniWebSocket,
    /// The client protocol over an endless response.
    HttpStream,
    /// The client protocol over server-sent events.
    Sse,
    /// Commands for connections of the last two.
    Emulation,
    /// Pushes over an endless response.
    UniHttpStream,
    /// Pushes as server-sent events.
    UniSse,
    /// What was missed, or what comes next: one answer for each request.
    LongPoll,
    /// Nothing: a browser warms up with it.
    Init,
}

impl EndpointKind {
    /// It begins with an upgrade.
    pub fn is_websocket(self) -> bool {
        matches!(self, Self::WebSocket | Self::Admin | Self::Echo | Self::UniWebSocket)
    }

    /// Pushes only.
    fn is_one_way(self) -> bool {
        matches!(self, Self::UniWebSocket | Self::UniHttpStream | Self::UniSse | Self::LongPoll)
    }

    /// Server-sent events.
    pub(crate) fn is_events(self) -> bool {
        matches!(self, Self::Sse | Self::UniSse)
    }

    /// Methods that it takes, beside a pre-flight request.
    fn methods(self) -> &'static str {
        match self {
            Self::HttpStream | Self::Emulation | Self::UniHttpStream => "POST",
            Self::Sse | Self::UniSse | Self::LongPoll => "GET, POST",
            _ => "GET",
        }
    }
}

/// A response in place of a connect error or disconnect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeResponse {
    /// The error's or the disconnect's code.
    pub code: u32,
    /// Status of the response.
    pub status: u16,
    /// Its body.
    pub body: String,
}

/// Options of one-way WebSockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UniWebSocketOptions {
    /// How messages are deflated; `None`: they aren't.
    pub deflate: Option<DeflateOptions>,
    /// Bytes of the client's message at most.
    pub message_bytes_max: usize,
    /// Pushes share frames.
    pub joins: bool,
    /// A push says why the connection ends.
    pub tells_end: bool,
    /// A close frame does.
    pub closes: bool,
}

impl Default for UniWebSocketOptions {
    fn default() -> Self {
        Self {
            deflate: None,
            message_bytes_max: 65_536,
            joins: false,
            tells_end: true,
            closes: true,
        }
    }
}

/// The head of a response that goes out, or is replaced, when its `connect` is decided.
#[derive(Debug)]
pub(crate) struct UnsentHead {
    frame: SharedFrame,
    /// Which of the endpoints.
    endpoint: usize,
    cors: String,
}

impl<D: Driver> Shard<D> {
    /// Header lines that let the page that asks read the answer, if it may.
    pub(crate) fn cors(&self, head: &Head<'_>) -> String {
        match http::origin(head) {
            Some(Ok(origin)) if self.cx.node.rules.origins.load().allows(Some(origin)) => {
                http::cors_headers(head, origin)
            }
            _ => String::new(),
        }
    }

    /// A request for an endpoint that is no WebSocket: whether its body is to be read. If not, it is answered.
    pub(crate) fn check_request(
        &mut self,
        key: ConnKey,
        endpoint: &Endpoint,
        head: &Head<'_>,
        rest: &[u8],
    ) -> bool {
        let methods = endpoint.kind.methods();
        let has_body = head.body != http::Body::Length(0);
        let preflight = head.method == "OPTIONS" && endpoint.kind != EndpointKind::Init;
        if preflight && !has_body {
            let more = self.cors(head) + &http::preflight_headers(&format!("{methods}, OPTIONS"));
            self.answer(key, head.reuse(), 204, &more, b"", rest);
            return false;
        }
        if !methods.split(", ").any(|method| method == head.method) {
            let more = format!("{}Allow: {methods}, OPTIONS\r\n", self.cors(head));
            self.cx.counters().refused_upgrade.add(1);
            let why = format_args!("{} is not among {methods}", Cut(head.method));
            self.notice(key.index, Reason::HttpUpgrade, 405, "", why);
            let is_head = head.method == "HEAD";
            let body = b"method not allowed\n";
            let out = self.response(Reuse::Close, 405, &more, body, is_head);
            self.net.enqueue(&self.cx, key.index, SharedFrame::new(&out));
            self.linger(key.index);
            return false;
        }
        // A browser sends simple requests without a pre-flight, and withholds only the answer.
        if endpoint.kind != EndpointKind::Init && !self.allows_page(head) {
            self.refuse_page(key.index, head);
            return false;
        }
        if endpoint.kind == EndpointKind::Init && !has_body {
            let more = self.cors(head);
            self.answer(key, head.reuse(), 200, &more, b"{}", rest);
            return false;
        }
        true
    }

    /// Answers a request that is read to its end, behind which `rest` came; the next may follow.
    pub(crate) fn answer(
        &mut self,
        key: ConnKey,
        reuse: Reuse,
        status: u16,
        more: &str,
        body: &[u8],
        rest: &[u8],
    ) {
        let reuse = reuse.unless(self.life.draining.is_some());
        let out = self.response(reuse, status, more, body, false);
        if let Some(conn) = self.net.conn(key) {
            conn.phase = Phase::Asked;
            conn.flags.set_paused(true);
            if !rest.is_empty() {
                conn.rx.get_or_insert_default().raw.extend_from_slice(rest);
            }
        }
        self.net.set_busy(key.index);
        self.net.enqueue(&self.cx, key.index, SharedFrame::new(&out));
        match reuse.is_kept() {
            true => self.net.answered.push(key),
            false => self.linger(key.index),
        }
    }

    /// A whole response. `is_head`: the request was a HEAD.
    pub(crate) fn response(
        &mut self,
        reuse: Reuse,
        status: u16,
        headers: &str,
        body: &[u8],
        is_head: bool,
    ) -> Vec<u8> {
        let content_type = if body.starts_with(b"{") { "application/json" } else { "text/plain" };
        let date = self.net.date(&self.cx);
        let mut out = Vec::new();
        http::Response { status, date, headers, content_type, reuse, is_head }.put(&mut out, body);
        out
    }

    /// Answers `OPTIONS *`, which is about the server as a whole (RFC 9110 9.3.7). One with a body ends the
    /// connection, since nobody reads that.
    pub(crate) fn answer_about_server(&mut self, key: ConnKey, head: &Head<'_>, rest: &[u8]) {
        let reuse = head.reuse().unless(head.body != http::Body::Length(0));
        self.answer(key, reuse, 200, "Allow: GET, HEAD, POST, OPTIONS\r\n", b"", rest);
    }

    /// Goes on with what was sent behind requests that were answered at once. One request of each connection
    /// in a turn: thousands may be there, and one that called for the next would need a stack for all.
    pub(crate) fn go_on_answered(&mut self) {
        for key in std::mem::take(&mut self.net.answered) {
            self.request_done(key);
        }
    }

    /// A request for an endpoint is whole.
    pub(crate) fn serve(&mut self, key: ConnKey, at: usize, incoming: Incoming) {
        let node = Arc::clone(&self.cx.node);
        let Some(endpoint) = node.options.endpoints.get(at) else { return };
        let (head, body) = incoming.into_parts();
        // It was parsed before.
        let Ok(Some(head)) = http::parse(&head) else { return };
        if endpoint.kind == EndpointKind::Emulation {
            let cors = self.cors(&head);
            return match self.emulation(key, &head, &cors, &body) {
                Ok(()) => {}
                Err(status) => {
                    if status != 204 {
                        self.cx.counters().emulations_refused.add(1);
                        let (reason, why) = match status {
                            503 => (Reason::HttpBusy, "too many emulated requests wait"),
                            404 => (Reason::HttpNotFound, "the session is another node's"),
                            _ => (Reason::HttpMalformed, "this is no emulated request"),
                        };
                        let code = status.into();
                        self.notice(key.index, reason, code, "", format_args!("{why}"));
                    }
                    self.answer(key, head.reuse(), status, &cors, b"", &[]);
                }
            };
        }
        let asked = match head.method {
            "GET" => {
                http::query_param(head.query, "cf_connect").map(|text| text.into_owned().into())
            }
            _ => Some(body),
        };
        let bad = |why: &'static str| Err::<Vec<u8>, _>(why);
        let asked = match asked {
            None if endpoint.kind == EndpointKind::Sse => bad("cf_connect is missing\n"),
            Some(body) if endpoint.kind == EndpointKind::UniHttpStream && body.is_empty() => {
                bad("the connect request is missing\n")
            }
            asked if endpoint.kind.is_one_way() => {
                let asked = asked.unwrap_or_default();
                match std::str::from_utf8(&asked).map(client::connect_request) {
                    Ok(Ok(_)) => Ok(asked),
                    _ => bad("this is no connect request\n"),
                }
            }
            asked => Ok(asked.unwrap_or_default()),
        };
        let mut asked = match asked {
            Ok(asked) => asked,
            Err(why) => {
                self.cx.counters().refused_malformed.add(1);
                let text = format_args!("{}", why.trim_end());
                self.notice(key.index, Reason::HttpMalformed, 400, "", text);
                let more = self.cors(&head);
                return self.answer(key, head.reuse(), 400, &more, why.as_bytes(), &[]);
            }
        };
        if let Err(reason) = self.admit() {
            return self.refuse_busy(key.index, &head, reason);
        }
        if endpoint.kind == EndpointKind::UniSse
            && let Some(id) = head.header("last-event-id")
        {
            asked.push(BEFORE_LAST_EVENT_ID);
            asked.extend_from_slice(id);
        }
        match endpoint.kind {
            EndpointKind::LongPoll => self.begin_poll(key, &head),
            _ => self.begin_stream(key, at, endpoint, &head),
        }
        self.first_message(key, &asked);
    }

    /// A connection is a client's from here on.
    pub(crate) fn begin_client(&mut self, key: ConnKey, form: Form, head: &Head<'_>) {
        self.keep_client_headers(key.index, head);
        let tick = self.cx.tick();
        if let Some(conn) = self.net.conn(key) {
            conn.phase = Phase::Client;
            conn.since_tick = tick;
            conn.form = form;
        }
        // It is a client once it is connected.
        self.net.set_replaceable(key.index);
        self.schedule(key.index);
    }

    /// The head of a response that goes on, and the connection as a client's.
    fn begin_stream(&mut self, key: ConnKey, at: usize, endpoint: &Endpoint, head: &Head<'_>) {
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
        let cors = self.cors(head);
        let mut out = Vec::new();
        http::put_stream_head(&mut out, content_type, &cors, chunked, self.net.date(&self.cx));
        if kind.is_events() {
            // Without it all event sources of a node that ends would come back in the same second.
            let retry_ms = self.retry_ms();
            framing::put_raw(&mut out, form, format!("retry: {retry_ms}\n\n").as_bytes());
        }
        // A part, so that it goes out even when what stands behind it is too much and is dropped.
        let frame = SharedFrame::part(&out);
        self.cx.counters().streams.add(1);
        self.begin_client(key, form, head);
        if let Some(conn) = self.net.conn(key) {
            conn.rx = None;
        }
        match endpoint.responses.is_empty() {
            true => _ = self.net.enqueue(&self.cx, key.index, frame),
            false => {
                let unsent = UnsentHead { frame, endpoint: at, cors };
                self.net.heads.insert(key.index, unsent);
            }
        }
    }

    /// What the client began with: a frame of commands, or a connect request.
    fn first_message(&mut self, key: ConnKey, message: &[u8]) {
        self.cx.counters().messages_received.add(1);
        if let Some(left) = self.message(key.index, message).unhandled(message)
            && let Some(conn) = self.net.conn(key)
        {
            let rx = conn.rx.get_or_insert_default();
            rx.commands = left.to_vec();
        }
    }

    /// What is kept of a client's request until it connects.
    pub(crate) fn keep_client_headers(&mut self, index: u32, head: &Head<'_>) {
        let client = Arc::clone(&self.cx.client);
        let user = &client.user_id_http_header;
        if !user.is_empty()
            && let Some(Ok(user)) = head.header(user).map(std::str::from_utf8)
            && !user.is_empty()
        {
            self.clients.asides.entry(index).header_user = user.into();
        }
        self.keep_headers(index, head);
    }

    /// What came on a connection whose response goes on: requests behind it are never answered, since the
    /// connection ends with that response.
    pub(crate) fn behind_stream(&mut self, bytes: &[u8]) {
        self.cx.counters().bytes_ignored.add(bytes.len() as u64);
    }

    /// The connect request of a one-way client; what comes behind it means nothing.
    pub(crate) fn one_way_message(&mut self, index: u32, message: &[u8]) -> Flow {
        let Some(conn) = self.net.conns.get(index as usize) else { return Flow::End };
        if conn.session != NONE || conn.phase != Phase::Client {
            return Flow::On;
        }
        let mut parts = message.splitn(2, |byte| *byte == BEFORE_LAST_EVENT_ID);
        let text = parts.next().map(std::str::from_utf8);
        let id = parts.next().map(std::str::from_utf8);
        let Some(Ok(Ok(mut request))) = text.map(|text| text.map(client::connect_request)) else {
            return self.bad_request(index, "this is no connect request");
        };
        // An id that is none of ours says nothing.
        let positions = id.and_then(Result::ok).map(|id| format!("{{\"subs\":{id}}}"));
        let positions = positions.as_deref().unwrap_or_default();
        if let Ok(positions) = client::connect_request(positions) {
            for (channel, mut position) in positions.subs {
                position.recover = true;
                let asked = request.subs.entry(channel).or_default();
                if !asked.recover {
                    (asked.recover, asked.offset, asked.epoch) =
                        (true, position.offset, position.epoch);
                }
            }
        }
        if self.net.form(index).is_poll() {
            crate::shard::http::polls::as_poll(&mut request);
        }
        self.cx.counters().method_connect.inc();
        let result = self.connect(index, 0, &request);
        self.finish_command(index, 0, "", result)
    }

    /// Sends the head of a response, if it waited.
    pub(crate) fn send_head(&mut self, index: u32) {
        if self.net.heads.is_empty() {
            return;
        }
        if let Some(unsent) = self.net.heads.remove(&index) {
            self.net.enqueue(&self.cx, index, unsent.frame);
        }
    }

    /// Answers a `connect` that failed with a whole response, if the endpoint has one for that code.
    pub(crate) fn answer_code(&mut self, index: u32, code: u32) -> bool {
        if self.net.heads.is_empty() {
            return false;
        }
        let node = Arc::clone(&self.cx.node);
        let responses = self
            .net
            .heads
            .get(&index)
            .and_then(|unsent| Some(&node.options.endpoints.get(unsent.endpoint)?.responses));
        let found = responses.and_then(|all| all.iter().find(|response| response.code == code));
        let Some(response) = found else { return false };
        let Some(unsent) = self.net.heads.remove(&index) else { return false };
        // The answer takes the place of the reply to `connect`: nothing is held for that any more.
        self.net.take_held(index);
        self.detach(index);
        let CodeResponse { status, body, .. } = response;
        let kind = if client::is_json(body.as_bytes()) { "application/json" } else { "text/plain" };
        let answer = http::Response {
            status: *status,
            date: self.net.date(&self.cx),
            headers: &unsent.cors,
            content_type: kind,
            reuse: Reuse::Close,
            is_head: false,
        };
        let mut out = Vec::new();
        answer.put(&mut out, body.as_bytes());
        self.net.enqueue(&self.cx, index, SharedFrame::new(&out));
        self.linger(index);
        true
    }

    /// The `connect` of a one-way client is an error: no reply can say so, it is closed for it (client
    /// protocol, 8).
    pub(crate) fn one_way_error(&mut self, index: u32, code: u32) {
        if self.answer_code(index, code) {
            return;
        }
        let client = Arc::clone(&self.cx.client);
        let special = client.one_way_disconnects.iter().find(|(of, _)| *of == code);
        if let Some((_, AppDisconnect { code, reason })) = special {
            return self.end_session(index, *code, reason);
        }
        let known = |error: ErrorCode| u32::from(error.code()) == code;
        let why = match code {
            _ if known(ErrorCode::TokenExpired) || known(ErrorCode::Expired) => {
                Disconnect::ConnectionExpired
            }
            _ if known(ErrorCode::TooManyRequests) => Disconnect::TooManyRequests,
            _ if known(ErrorCode::PermissionDenied) => Disconnect::PermissionDenied,
            _ => Disconnect::InternalError,
        };
        self.disconnect(index, why);
    }

    /// Ends a response: says why, and that nothing more comes.
    pub(crate) fn end_stream(&mut self, index: u32, code: u16, reason: &str) {
        if self.answer_code(index, code.into()) {
            return;
        }
        // Before the head, which would be held, and dropped with the session.
        self.net.take_held(index);
        self.send_head(index);
        self.detach(index);
        self.push(index, "", &Push::Disconnect { code, reason });
        self.finish_response(index);
    }

    /// Nothing more comes in a response, and on its connection.
    pub(crate) fn finish_response(&mut self, index: u32) {
        let mut end = Vec::new();
        framing::end(&mut end, self.net.form(index));
        if !end.is_empty() {
            self.net.enqueue(&self.cx, index, SharedFrame::new(&end));
        }
        self.linger(index);
    }

    /// Tells event sources that got publications in this turn, or have just connected, where they are: if they
    /// lose the connection, they come back with that. Polls that got some are answered.
    pub(crate) fn mark_positions(&mut self) {
        let mut to_mark = std::mem::take(&mut self.net.to_mark);
        // One that got something of several channels is told once.
        to_mark.sort_unstable_by_key(|key| key.index);
        to_mark.dedup();
        for key in to_mark.drain(..) {
            self.mark_position(key);
        }
        if self.net.to_mark.is_empty() {
            self.net.to_mark = to_mark;
        }
    }

    fn mark_position(&mut self, key: ConnKey) {
        let Some(conn) = self.net.conn(key) else { return };
        let (form, at) = (conn.form, conn.session);
        if form.is_poll() {
            return self.answer_poll(key.index);
        }
        let Some(session) = self.clients.sessions.get(at as usize) else { return };
        if session.extra.as_ref().is_some_and(|extra| extra.connecting.is_some()) {
            // It is told where it is when it is told what it has.
            return;
        }
        // An event of a type and with (no) data, since some sources forget the id of what is no event.
        let mut id = b"event: position\nid: {".to_vec();
        let empty = id.len();
        let live = |sub: &&Sub| sub.flags.recoverable() && sub.state == SubState::Live;
        for sub in session.subs.as_slice().iter().filter(live) {
            let Some((name, epoch, offset)) = self.local.locals.position(sub.channel, sub.place)
            else {
                continue;
            };
            let before = id.len();
            if before > empty {
                id.push(b',');
            }
            client::put_position(&mut id, name, epoch.as_str(), offset);
            if id.len() > LAST_EVENT_ID_BYTES_MAX {
                // It comes back in a header: the rest begins anew then.
                self.cx.node.counters[self.cx.id.index()].positions_left_out.inc();
                id.truncate(before);
                break;
            }
        }
        if id.len() == empty {
            return;
        }
        id.extend_from_slice(b"}\ndata:\n\n");
        let mut out = Vec::new();
        framing::put_raw(&mut out, form, &id);
        self.net.enqueue(&self.cx, key.index, SharedFrame::new(&out));
    }
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
const BEFORE_LAST_EVENT_ID: u8 = 0;

impl Rx {
    /// What a request for an endpoint leaves for the next one.
    pub(crate) fn behind(rest: &[u8]) -> Option<Box<Self>> {
        (!rest.is_empty()).then(|| Box::new(Self { raw: rest.to_vec(), ..Self::default() }))
    }
}
