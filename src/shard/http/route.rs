//! From a request head to what answers it: checks that hold for every request, and the way to an endpoint, to
//! the control thread, or to a refusal.

use crate::base::frame::SharedFrame;
use crate::base::id::ConnKey;
use crate::base::notices::Reason;
use crate::io::Driver;
use crate::proto::http::{self, Head, Refusal, Reuse};
use crate::proto::proxy_header::is_proxy_header;
use crate::shard::codec::Codec;
use crate::shard::context::Cx;
use crate::shard::http::bodies::Room;
use crate::shard::http::endpoint::{Endpoint, EndpointKind};
use crate::shard::http::refusals::{Manner, Refused};
use crate::shard::mail::post::Post;
use crate::shard::net::Net;
use crate::shard::net::record::{Phase, Rx};
use crate::shard::notices::Cut;

/// An answer to a request that is read to its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer<'a> {
    /// Whether another request may follow.
    pub(crate) reuse: Reuse,
    pub(crate) status: u16,
    /// Header lines beside those that every answer has.
    pub(crate) headers: &'a str,
    pub(crate) body: &'a [u8],
}

impl<D: Driver> Net<D> {
    /// Bytes of a request head.
    pub(crate) fn head(
        &mut self,
        cx: &Cx,
        codec: &mut Codec,
        post: &mut Post,
        key: ConnKey,
        bytes: &[u8],
    ) {
        if self.awaits_proxy_header(key.index) {
            return self.proxy_header(cx, codec, post, key, bytes);
        }
        let tick = cx.tick();
        let Some(conn) = self.conn(key) else { return };
        if conn.flags.served() && conn.rx.is_none() {
            // It has its time from its first byte on, whenever the last request was.
            conn.since_tick = tick;
        }
        // Usually the whole head comes at once; what comes in pieces is kept until it is whole.
        let Some(mut rx) = conn.rx.take() else {
            return match http::parse(bytes) {
                Ok(None) => {
                    let mut scanned = 0;
                    http::head_complete(bytes, &mut scanned);
                    let rx = Rx { raw: bytes.to_vec(), scanned, ..Rx::default() };
                    conn.rx = Some(Box::new(rx));
                    self.schedule(cx, key.index);
                    self.hold_head(cx, post, key.index, bytes.len());
                }
                Ok(Some(head)) => self.request(cx, codec, post, key, &head, bytes),
                Err(refusal) => self.refuse_head(cx, post, key.index, bytes, refusal),
            };
        };
        rx.raw.extend_from_slice(bytes);
        let len = rx.raw.len();
        if !http::head_complete(&rx.raw, &mut rx.scanned) {
            conn.rx = Some(rx);
            return self.hold_head(cx, post, key.index, len);
        }
        match http::parse(&rx.raw) {
            Ok(None) => {
                conn.rx = Some(rx);
                self.hold_head(cx, post, key.index, len);
            }
            Ok(Some(head)) => self.request(cx, codec, post, key, &head, &rx.raw),
            Err(refusal) => self.refuse_head(cx, post, key.index, &rx.raw, refusal),
        }
    }

    /// So many bytes of a head are kept until it is whole.
    fn hold_head(&mut self, cx: &Cx, post: &mut Post, index: u32, bytes: usize) {
        if !self.hold_unfinished(cx, index, bytes) {
            self.refuse(cx, post, index, Refusal::AddressBytes);
        }
    }

    /// These bytes are no request head.
    fn refuse_head(
        &mut self,
        cx: &Cx,
        post: &mut Post,
        index: u32,
        bytes: &[u8],
        refusal: Refusal,
    ) {
        if !is_proxy_header(bytes) {
            return self.refuse(cx, post, index, refusal);
        }
        // Nobody announced it, so whoever sent it isn't trusted to say who it is.
        cx.counters().proxy_headers_refused.inc();
        let why = format_args!("a PROXY header of a peer that isn't expected to send one");
        let refused = Refused::new(Refusal::Malformed, Manner::default());
        self.refuse_because(
            cx,
            post,
            index,
            &Refused { reason: Reason::HttpProxyHeader, why, ..refused },
        );
    }

    /// A whole request head, which `bytes` begin with.
    fn request(
        &mut self,
        cx: &Cx,
        codec: &mut Codec,
        post: &mut Post,
        key: ConnKey,
        head: &Head<'_>,
        bytes: &[u8],
    ) {
        let (bytes, rest) = bytes.split_at(head.bytes);
        self.hold_unfinished(cx, key.index, 0);
        if let Err(refusal) = self.learn_client(cx, key.index, head) {
            return self.refuse(cx, post, key.index, refusal);
        }
        let node = &cx.node;
        let endpoints = &node.options.endpoints;
        match self.check_sender(cx, head) {
            Ok(()) => {}
            Err(Refusal::ForeignHost) => return self.refuse_host(cx, post, key.index, head),
            Err(refusal) => return self.refuse_request(cx, post, key.index, head, refusal),
        }
        let Some(at) = endpoints.iter().position(|endpoint| endpoint.path == head.path) else {
            return match node.options.is_web(head.path) {
                true => self.collect_web(cx, post, key, head, bytes, rest),
                false if (head.method, head.path) == ("OPTIONS", "*") => {
                    self.answer_about_server(cx, post, key, head, rest);
                }
                false => {
                    let why = format_args!("{} {}", Cut(head.method), Cut(head.path));
                    let refused = Refused::new(Refusal::NotFound, Manner::of(head));
                    self.refuse_because(cx, post, key.index, &Refused { why, ..refused });
                }
            };
        };
        let endpoint = &endpoints[at];
        if endpoint.kind.is_websocket() {
            self.upgrade(cx, codec, post, key, endpoint.kind, head, rest);
        } else if self.check_request(cx, post, key, endpoint, head, rest) {
            let bytes_max = endpoint.body_bytes_max;
            self.collect(cx, post, key, Some(at), Room::Clients, bytes_max, head, bytes, rest);
        }
    }

    /// What is judged of every request on the public port, whatever it is for: that it says once on whose
    /// behalf it comes, and that it means this node.
    fn check_sender(&self, cx: &Cx, head: &Head<'_>) -> Result<(), Refusal> {
        let user = &cx.client.user_id_http_header;
        if !user.is_empty() && head.all(user).nth(1).is_some() {
            return Err(Refusal::Repeated);
        }
        match cx.node.options.hosts.admits(head.header("host"), false) {
            true => Ok(()),
            false => Err(Refusal::ForeignHost),
        }
    }

    /// Refuses a request whose Host isn't this node's.
    pub(crate) fn refuse_host(&mut self, cx: &Cx, post: &mut Post, index: u32, head: &Head<'_>) {
        let host = head.header("host").unwrap_or_default();
        let host = Cut(std::str::from_utf8(host).unwrap_or("not text"));
        let why = format_args!("{host} is not this node's, nor in roost.allowed_hosts");
        let refused = Refused::new(Refusal::ForeignHost, Manner::of(head));
        self.refuse_because(cx, post, index, &Refused { why, ..refused });
    }

    /// Whether the web page that sent a request, if one did, may act as a client.
    pub(crate) fn allows_page(&self, cx: &Cx, head: &Head<'_>) -> bool {
        let origins = cx.node.rules.origins.load();
        origins.allows_request(head.header("origin"), head.header("sec-fetch-site"))
    }

    /// Refuses a request for its `Origin`, and logs that and the allowed ones.
    pub(crate) fn refuse_origin(
        &mut self,
        cx: &Cx,
        post: &mut Post,
        index: u32,
        head: &Head<'_>,
        more: &str,
        allowed: &dyn std::fmt::Display,
    ) {
        let origin = match http::origin(head) {
            None => "none",
            Some(Err(_)) => "not text",
            Some(Ok(origin)) => origin,
        };
        let origin = Cut(origin);
        let why = format_args!("{origin} is not in {allowed}");
        let manner = Manner { headers: more, ..Manner::of(head) };
        let refused = Refused { why, ..Refused::new(Refusal::Origin, manner) };
        self.refuse_because(cx, post, index, &refused);
    }

    /// Refuses a request of a page that may not act as a client.
    pub(crate) fn refuse_page(&mut self, cx: &Cx, post: &mut Post, index: u32, head: &Head<'_>) {
        let node = &cx.node;
        let origins = node.rules.origins.load();
        match head.header("origin") {
            Some(_) => self.refuse_origin(cx, post, index, head, "", &**origins),
            None => {
                let why = format_args!("no Origin, Sec-Fetch-Site of another site or host");
                let refused = Refused::new(Refusal::Origin, Manner::of(head));
                self.refuse_because(cx, post, index, &Refused { why, ..refused });
            }
        }
    }

    /// Header lines that let the page that asks read the answer, if it may.
    pub(crate) fn cors(&self, cx: &Cx, head: &Head<'_>) -> String {
        match http::origin(head) {
            Some(Ok(origin)) if cx.node.rules.origins.load().allows(Some(origin)) => {
                http::cors_headers(head, origin)
            }
            _ => String::new(),
        }
    }

    /// A request for an endpoint that is no WebSocket: whether its body is to be read. If not, it is answered.
    pub(crate) fn check_request(
        &mut self,
        cx: &Cx,
        post: &mut Post,
        key: ConnKey,
        endpoint: &Endpoint,
        head: &Head<'_>,
        rest: &[u8],
    ) -> bool {
        let methods = endpoint.kind.methods();
        let has_body = head.body != http::Body::Length(0);
        let preflight = head.method == "OPTIONS" && endpoint.kind != EndpointKind::Init;
        if preflight && !has_body {
            let more =
                self.cors(cx, head) + &http::preflight_headers(&format!("{methods}, OPTIONS"));
            let answer = Answer { reuse: head.reuse(), status: 204, headers: &more, body: b"" };
            cx.count_response(cx.endpoint_at(head.path), 204);
            self.answer(cx, post, key, answer, rest);
            return false;
        }
        if !methods.split(", ").any(|method| method == head.method) {
            let more = format!("{}Allow: {methods}, OPTIONS\r\n", self.cors(cx, head));
            cx.counters().refused_upgrade.add(1);
            let why = format_args!("{} is not among {methods}", Cut(head.method));
            self.log_refusal(cx, key.index, Reason::HttpUpgrade, 405, why);
            cx.count_response(cx.endpoint_at(head.path), 405);
            let is_head = head.method == "HEAD";
            let body = b"method not allowed\n";
            let out = self.response(cx, Reuse::Close, 405, &more, body, is_head);
            self.enqueue(cx, key.index, SharedFrame::new(&out));
            self.linger(cx, post, key.index);
            return false;
        }
        // A browser sends simple requests without a pre-flight, and withholds only the answer.
        if endpoint.kind != EndpointKind::Init && !self.allows_page(cx, head) {
            self.refuse_page(cx, post, key.index, head);
            return false;
        }
        if endpoint.kind == EndpointKind::Init && !has_body {
            let more = self.cors(cx, head);
            let answer = Answer { reuse: head.reuse(), status: 200, headers: &more, body: b"{}" };
            cx.count_response(cx.endpoint_at(head.path), 200);
            self.answer(cx, post, key, answer, rest);
            return false;
        }
        true
    }

    /// Answers a request that is read to its end, behind which `rest` came; the next may follow.
    pub(crate) fn answer(
        &mut self,
        cx: &Cx,
        post: &mut Post,
        key: ConnKey,
        answer: Answer<'_>,
        rest: &[u8],
    ) {
        let Answer { reuse, status, headers: more, body } = answer;
        let reuse = reuse.unless(self.is_draining());
        let out = self.response(cx, reuse, status, more, body, false);
        if let Some(conn) = self.conn(key) {
            conn.phase = Phase::Asked;
            conn.flags.set_paused(true);
            if !rest.is_empty() {
                conn.rx.get_or_insert_default().raw.extend_from_slice(rest);
            }
        }
        self.set_busy(key.index);
        self.enqueue(cx, key.index, SharedFrame::new(&out));
        match reuse.is_kept() {
            true => self.http.answered.push(key),
            false => self.linger(cx, post, key.index),
        }
    }

    /// A whole response. `is_head`: the request was a HEAD.
    pub(crate) fn response(
        &mut self,
        cx: &Cx,
        reuse: Reuse,
        status: u16,
        headers: &str,
        body: &[u8],
        is_head: bool,
    ) -> Vec<u8> {
        let content_type = if body.starts_with(b"{") { "application/json" } else { "text/plain" };
        let date = self.date(cx);
        let mut out = Vec::new();
        http::Response { status, date, headers, content_type, reuse, is_head }.put(&mut out, body);
        out
    }

    /// Answers `OPTIONS *`, which is about the server as a whole (RFC 9110 9.3.7). One with a body ends the
    /// connection, since nobody reads that.
    pub(crate) fn answer_about_server(
        &mut self,
        cx: &Cx,
        post: &mut Post,
        key: ConnKey,
        head: &Head<'_>,
        rest: &[u8],
    ) {
        let reuse = head.reuse().unless(head.body != http::Body::Length(0));
        let headers = "Allow: GET, HEAD, POST, OPTIONS\r\n";
        let answer = Answer { reuse, status: 200, headers, body: b"" };
        cx.count_response(None, 200);
        self.answer(cx, post, key, answer, rest);
    }
}

#[cfg(test)]
mod tests {
    use crate::shard::fixture::{Plan, Wired};

    #[test]
    fn a_head_may_come_in_pieces() {
        let mut of = Wired::new(Plan::default());
        let (link, key) = of.connect();
        of.request(key, "GET /nothing HTTP/1.1\r\nHo");
        assert_eq!(of.received(link), "");
        of.request(key, "st: localhost\r\n\r\n");
        assert!(of.received(link).starts_with("HTTP/1.1 404 "));
        assert_eq!(of.cx.counters().refused_not_found.get(), 1);
        assert_eq!(of.end(), []);
    }

    #[test]
    fn bytes_that_are_no_head_are_refused() {
        let mut of = Wired::new(Plan::default());
        let (link, key) = of.connect();
        of.request(key, "hello\r\n\r\n");
        assert!(of.received(link).starts_with("HTTP/1.1 400 "));
        let (_, key) = of.connect();
        of.request(key, "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n");
        assert_eq!(of.cx.counters().proxy_headers_refused.get(), 1);
        assert_eq!(of.end(), []);
    }
}
