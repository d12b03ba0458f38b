//! Requests with a body, and those that are not for a shard: the socket stays here, the control thread
//! answers.
//!
//! ```text
//!   Head --(body is coming)--> Body --(all of it is here)--> Asked --(Mail::Response)--> Head
//! ```
//! One request of a connection is on its way at a time, so that answers go out in the order of the
//! requests; what was sent behind it waits unread.

use crate::base::frame::SharedFrame;
use crate::base::id::ConnKey;
use crate::base::limits::{ECHO_BACKLOG_BYTES, PAGE_BODY_BYTES_MAX, WEB_BODY_BYTES_MAX};
use crate::base::notices::Reason;
use crate::edge::api_key::GivenKey;
use crate::io::Driver;
use crate::proto::http::{self, BodyReader, Refusal};
use crate::shard::codec::Codec;
use crate::shard::context::Cx;
use crate::shard::http::bodies::{Incoming, Room};
use crate::shard::http::route::Answer;
use crate::shard::mail::post::Post;
use crate::shard::mail::{Asker, CONTROL, Mail, WebRequest};
use crate::shard::net::Net;
use crate::shard::net::record::{Phase, Rx};

impl<D: Driver> Net<D> {
    /// A request for the control thread. The key of the server API is looked at before the body is read, so that
    /// nobody without it makes the node keep one.
    pub(crate) fn collect_web(
        &mut self,
        cx: &Cx,
        post: &mut Post,
        key: ConnKey,
        head: &http::Head<'_>,
        bytes: &[u8],
        rest: &[u8],
    ) {
        cx.counters().web_requests.add(1);
        let access = cx.node.rules.api.load();
        let access = Option::as_ref(&access).filter(|access| access.covers(head.path));
        let is_call = access.is_some();
        // The control thread answers other methods with 405 whoever sends them; they have no body here.
        if is_call && head.method != "POST" && head.body != http::Body::Length(0) {
            return self.refuse_request(cx, post, key.index, head, Refusal::ApiMethod);
        }
        if is_call && head.method == "POST" {
            let given = GivenKey {
                own: head.header("x-api-key"),
                authorization: head.header("authorization"),
                query: head.query,
            };
            if !access.is_some_and(|access| access.allows(given)) {
                return self.refuse_key(cx, post, key, head, rest);
            }
            // The application's: it keeps its place while the body comes.
            return self.collect(
                cx,
                post,
                key,
                None,
                Room::Api,
                WEB_BODY_BYTES_MAX,
                head,
                bytes,
                rest,
            );
        }
        self.collect(cx, post, key, None, Room::Pages, PAGE_BODY_BYTES_MAX, head, bytes, rest);
    }

    /// Answers a call of the server API without its key with 401. The connection serves the next request if nothing
    /// of this one's body is left to be read.
    fn refuse_key(
        &mut self,
        cx: &Cx,
        post: &mut Post,
        key: ConnKey,
        head: &http::Head<'_>,
        rest: &[u8],
    ) {
        let here = match head.body {
            http::Body::Length(length) => usize::try_from(length).ok(),
            http::Body::Chunked => None,
        };
        match here.and_then(|length| rest.get(length..)) {
            Some(rest) => {
                cx.counters().refused_api_key.add(1);
                let why = format_args!("{}", Refusal::ApiKey.label());
                self.log_refusal(cx, key.index, Reason::ApiUnauthorized, 401, why);
                let answer = Answer { reuse: head.reuse(), status: 401, headers: "", body: b"" };
                cx.count_response(None, 401);
                self.answer(cx, post, key, answer, rest);
            }
            None => self.refuse_request(cx, post, key.index, head, Refusal::ApiKey),
        }
    }

    /// A request with a body of at most `bytes_max`, whose head is `bytes`; `rest` came behind it.
    #[expect(clippy::too_many_arguments, reason = "a request, and what is known of it")]
    pub(crate) fn collect(
        &mut self,
        cx: &Cx,
        post: &mut Post,
        key: ConnKey,
        endpoint: Option<usize>,
        room: Room,
        bytes_max: usize,
        head: &http::Head<'_>,
        bytes: &[u8],
        rest: &[u8],
    ) {
        let body = match BodyReader::new(head.body, bytes_max) {
            Ok(body) => body,
            Err(refusal) if endpoint.is_some() => {
                return self.refuse_openly(cx, post, key.index, head, refusal);
            }
            Err(refusal) => return self.refuse_request(cx, post, key.index, head, refusal),
        };
        let incoming = Box::new(Incoming { head: bytes.into(), body, endpoint, room });
        let tick = cx.tick();
        let Some(conn) = self.conn(key) else { return };
        conn.phase = Phase::Body;
        conn.since_tick = tick;
        conn.rx = Some(Box::new(Rx { incoming: Some(incoming), ..Rx::default() }));
        match room {
            Room::Api => self.set_busy(key.index),
            Room::Clients | Room::Pages => self.set_replaceable(key.index),
        }
        self.schedule(cx, key.index);
        self.web_body(cx, post, key, rest);
        //= RFC 9110 10.1.1: who waits for it gets a 100 before it sends the body
        let waits = self.conn(key).is_some_and(|conn| conn.phase == Phase::Body);
        if waits && head.version == 1 && head.has_token("expect", "100-continue") {
            self.enqueue(cx, key.index, SharedFrame::part(http::CONTINUE));
        }
    }

    /// Bytes of a request's body, and of what may come behind it.
    pub(crate) fn web_body(&mut self, cx: &Cx, post: &mut Post, key: ConnKey, bytes: &[u8]) {
        let no_memory = cx.node.memory.is_short();
        let no_room = post.is_full(CONTROL);
        let Some(rx) = self.conn(key).and_then(|conn| conn.rx.as_mut()) else { return };
        let Some(incoming) = rx.incoming.as_mut() else { return };
        let room = incoming.room;
        let before = incoming.body.len();
        let taken = incoming.body.take(bytes);
        let (is_whole, held) = (incoming.body.is_done(), incoming.bytes());
        let came = incoming.body.len() - before;
        if is_whole && let Ok(taken) = taken {
            rx.raw.extend_from_slice(&bytes[taken..]);
        }
        let bodies = &mut self.http.bodies;
        let short = no_memory || bodies.is_full(room) || room != Room::Clients && no_room;
        if taken.is_ok() && !is_whole {
            bodies.add(room, came);
        }
        let refused = match taken {
            Ok(_) if is_whole || short => None,
            Ok(_) if self.hold_unfinished(cx, key.index, held) => return,
            Ok(_) => Some(Refusal::AddressBytes),
            Err(refusal) => Some(refusal),
        };
        let rx = self.conn(key).and_then(|conn| conn.rx.as_mut());
        let Some(incoming) = rx.and_then(|rx| rx.incoming.take()) else { return };
        // Whole or refused, it is unfinished no more.
        let counted = if taken.is_ok() && !is_whole { incoming.body.len() } else { before };
        self.http.bodies.remove(room, counted);
        self.hold_unfinished(cx, key.index, 0);
        match (refused, incoming.endpoint) {
            (Some(refusal), _) => self.refuse_body(cx, post, key.index, &incoming, refusal),
            _ if !is_whole => {
                let reason = if no_memory { Reason::HttpMemory } else { Reason::HttpBusy };
                self.refuse_body_busy(cx, post, key.index, &incoming, reason);
            }
            (None, Some(at)) => self.serve(cx, post, key, at, *incoming),
            (None, None) => self.ask_control(cx, post, key, *incoming),
        }
    }

    /// The request is whole.
    fn ask_control(&mut self, cx: &Cx, post: &mut Post, key: ConnKey, incoming: Incoming) {
        let Some(credits) = post.spend(CONTROL, 1) else {
            return self.refuse_body_busy(cx, post, key.index, &incoming, Reason::HttpBusy);
        };
        if let Some(conn) = self.conn(key) {
            conn.phase = Phase::Asked;
            conn.flags.set_paused(true);
        }
        self.set_busy(key.index);
        let asker = Asker { credits, ..Asker::of(key) };
        let address = self.client_address(key.index);
        let (head, body) = incoming.into_parts();
        let body = body.into();
        post.send(cx, CONTROL, Mail::Request(Box::new(WebRequest { asker, head, body, address })));
    }

    /// Requests that another thread has get no answer from there any more.
    pub(crate) fn give_up_requests(&mut self, cx: &Cx, post: &mut Post) {
        let conns = self.conns.iter().filter(|(_, conn)| conn.phase == Phase::Asked);
        let keys: Vec<ConnKey> = conns.map(|(index, conn)| conn.key(index as u32)).collect();
        for key in keys {
            let reuse = http::Reuse::Close;
            let answer = Answer { reuse, status: 503, headers: "", body: b"" };
            cx.count_response(None, 503);
            self.answer(cx, post, key, answer, b"");
        }
    }

    /// A body that isn't whole is given up.
    pub(crate) fn forget_body(&mut self, incoming: &Incoming) {
        self.http.bodies.remove(incoming.room, incoming.body.len());
    }

    /// The body of a request took too long.
    pub(crate) fn body_is_late(&mut self, cx: &Cx, post: &mut Post, index: u32) {
        let rx = self.at_mut(index).and_then(|conn| conn.rx.as_mut());
        let Some(incoming) = rx.and_then(|rx| rx.incoming.take()) else { return };
        self.forget_body(&incoming);
        self.refuse_body(cx, post, index, &incoming, Refusal::BodyTimeout);
    }

    /// A request is answered: by the control thread, by another shard, or here.
    pub(crate) fn web_response(
        &mut self,
        cx: &Cx,
        codec: &mut Codec,
        post: &mut Post,
        key: ConnKey,
        bytes: SharedFrame,
        keep_alive: bool,
    ) {
        if self.conn(key).is_none_or(|conn| conn.phase != Phase::Asked) {
            return;
        }
        self.enqueue(cx, key.index, bytes);
        match keep_alive {
            true => self.request_done(cx, codec, post, key),
            false => self.linger(cx, post, key.index),
        }
    }

    /// The answer to a request is on its way: the next may come.
    pub(crate) fn request_done(
        &mut self,
        cx: &Cx,
        codec: &mut Codec,
        post: &mut Post,
        key: ConnKey,
    ) {
        let tick = cx.tick();
        let Some(conn) = self.conn(key) else { return };
        if conn.phase != Phase::Asked {
            return;
        }
        conn.phase = Phase::Head;
        conn.flags.set_served(true);
        conn.since_tick = tick;
        self.request_of_client_done(cx, key.index);
        self.set_replaceable(key.index);
        self.next_web_request(cx, codec, post, key);
        self.schedule(cx, key.index);
    }

    /// Goes on with what was sent behind a request, unless its answers aren't taken.
    pub(crate) fn next_web_request(
        &mut self,
        cx: &Cx,
        codec: &mut Codec,
        post: &mut Post,
        key: ConnKey,
    ) {
        if self.conn(key).is_none() {
            return;
        }
        if self.queued_for(key.index) >= ECHO_BACKLOG_BYTES as usize {
            return;
        }
        let rx = self.conn(key).and_then(|conn| conn.rx.take());
        let raw = rx.map(|rx| rx.raw).filter(|raw| !raw.is_empty());
        self.resume(key);
        if let Some(raw) = raw {
            self.head(cx, codec, post, key, &raw);
        }
    }

    /// Nothing of this connection is on its way any more: bodies, commands.
    pub(crate) fn forget_rx(&mut self, cx: &Cx, post: &mut Post, rx: Option<Box<Rx>>) {
        let Some(mut rx) = rx else { return };
        self.forget_emulated(cx, post, &mut rx);
        if let Some(incoming) = rx.incoming {
            self.http.bodies.remove(incoming.room, incoming.body.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::fixture::{Plan, Wired};

    fn of_pages() -> Wired {
        let mut plan = Plan::default();
        plan.options.web = vec!["/".into(), "/page".into()];
        Wired::new(plan)
    }

    #[test]
    fn a_whole_request_goes_to_the_control_thread_and_its_answer_comes_back() {
        let mut of = of_pages();
        let (link, key) = of.connect();
        of.request(key, "POST /page HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab");
        assert_eq!(
            (of.net.http.bodies.bytes(), of.net.form(key.index)),
            (2, crate::base::form::Form::JSON)
        );
        of.request(key, "cd");
        assert_eq!(of.net.http.bodies.bytes(), 0);
        assert!(of.net.conn(key).is_some_and(|conn| conn.phase == Phase::Asked));
        let Wired { net, cx, codec, posts, .. } = &mut of;
        net.web_response(cx, codec, &mut posts.post, key, SharedFrame::new(b"answer"), true);
        assert_eq!(of.received(link), "answer");
        assert!(of.net.conn(key).is_some_and(|conn| conn.phase == Phase::Head));
        assert_eq!(of.end(), []);
    }

    #[test]
    fn a_body_that_is_too_late_or_too_long_is_refused() {
        let mut of = of_pages();
        let (link, key) = of.connect();
        of.request(key, "POST /page HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab");
        of.net.body_is_late(&of.cx, &mut of.posts.post, key.index);
        assert!(of.received(link).starts_with("HTTP/1.1 408 "));
        let (link, key) = of.connect();
        of.request(key, "POST /page HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n");
        assert!(of.received(link).starts_with("HTTP/1.1 413 "));
        assert_eq!(of.end(), []);
    }
}
