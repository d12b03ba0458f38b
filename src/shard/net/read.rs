//! Reading: from bytes to requests and messages.

use std::sync::Arc;

use crate::base::form::{Form, Framing};
use crate::base::frame::SharedFrame;
use crate::base::id::ConnKey;
use crate::base::limits::{ECHO_BACKLOG_BYTES, TURN_FRAMES_MAX, TURN_READ_BYTES_MAX};
use crate::base::notices::Reason;
use crate::io::{Driver, Received};
use crate::proto::client::{self, Encoding};
use crate::proto::http::{self, Refusal};
use crate::proto::proxy_header::is_proxy_header;
use crate::proto::ws::{self, Event, Fault, InflateFault, MessageKind, ReadRules, Reader};
use crate::shard::Shard;
use crate::shard::clients::aside::Admin;
use crate::shard::flow::Flow;
use crate::shard::http::bodies::Room;
use crate::shard::http::refusals::Manner;
use crate::shard::http::requests::EndpointKind;
use crate::shard::net::record::{Phase, Rx};
use crate::shard::net::send::frame_of;
use crate::shard::notices::Cut;

/// What one connection may still have in this turn.
pub(crate) struct Budget {
    bytes: usize,
    frames: usize,
}

impl<D: Driver> Shard<D> {
    /// Handles what a connection has to read, until there is nothing more, it is paused, or it has
    /// had its share of the turn.
    pub(crate) fn read(&mut self, key: ConnKey) {
        let mut budget = Budget { bytes: TURN_READ_BYTES_MAX, frames: TURN_FRAMES_MAX };
        loop {
            let Some(conn) = self.net.conns.get_mut(key.index as usize) else { return };
            if conn.generation != key.generation || conn.flags.paused() {
                return;
            }
            if budget.bytes == 0 || budget.frames == 0 {
                self.net.mark_ready(key);
                return;
            }
            let leftover = conn.rx.as_ref().is_some_and(|rx| rx.has_leftover());
            if leftover && conn.phase != Phase::Head {
                self.read_leftover(key, &mut budget);
                continue;
            }
            let Some(socket) = &conn.socket else { return };
            let ended = conn.flags.ended();
            match self.net.driver.recv(key, socket, budget.bytes) {
                Received::Bytes { mut lease, short } => {
                    // What was read ahead may be more than is left.
                    budget.bytes = budget.bytes.saturating_sub(lease.len());
                    self.cx.counters().bytes_received.add(lease.len() as u64);
                    self.handle_bytes(key, &mut lease, &mut budget);
                    self.net.driver.give_back(lease);
                    // Behind a FIN no further edge comes: read until the end itself is read.
                    let done = short && !ended;
                    let more = self.net.conn(key).is_some_and(|conn| {
                        conn.rx.as_ref().is_some_and(|rx| rx.has_leftover())
                            && conn.phase != Phase::Head
                    });
                    if done && !more {
                        return;
                    }
                }
                Received::Blocked => return,
                Received::Ended => {
                    // The peer may have closed one way only: what this turn has for it goes out.
                    self.write(key);
                    if self.net.conn(key).is_some() {
                        self.notice_gone(key.index);
                        self.release(key.index, false);
                    }
                    return;
                }
                Received::Failed => {
                    self.notice_gone(key.index);
                    self.release(key.index, false);
                    return;
                }
            }
        }
    }

    /// Goes on with what was read before.
    fn read_leftover(&mut self, key: ConnKey, budget: &mut Budget) {
        let Some(rx) = self.net.conn(key).and_then(|conn| conn.rx.as_mut()) else { return };
        if !rx.commands.is_empty() {
            let commands = std::mem::take(&mut rx.commands);
            let at = std::mem::take(&mut rx.commands_at);
            match self.message(key.index, &commands[at..]) {
                Flow::Pause(handled) => {
                    if let Some(rx) = self.net.conn(key).and_then(|conn| conn.rx.as_mut()) {
                        rx.commands = commands;
                        rx.commands_at = at + handled;
                    }
                }
                _ => {
                    let rx = self.net.conn(key).and_then(|conn| conn.rx.as_mut());
                    if let Some(by) = rx.and_then(|rx| rx.waiting.take()) {
                        self.answer_emulated(by, 204);
                    }
                    self.drop_empty_rx(key);
                }
            }
            return;
        }
        if let Some(emulated) = rx.emulated.pop_front() {
            self.handle_emulated(key, emulated);
            return self.drop_empty_rx(key);
        }
        let mut raw = std::mem::take(&mut rx.raw);
        self.handle_bytes(key, &mut raw, budget);
        self.drop_empty_rx(key);
    }

    fn drop_empty_rx(&mut self, key: ConnKey) {
        if let Some(conn) = self.net.conn(key)
            && conn.rx.as_ref().is_some_and(|rx| rx.is_empty())
        {
            conn.rx = None;
        }
    }

    fn handle_bytes(&mut self, key: ConnKey, bytes: &mut [u8], budget: &mut Budget) {
        let tick = self.cx.tick();
        let Some(conn) = self.net.conn(key) else { return };
        if conn.flags.deaf() {
            return;
        }
        match conn.phase {
            Phase::Head => self.head(key, bytes),
            Phase::Body => self.web_body(key, bytes),
            Phase::Asked | Phase::Lingering | Phase::Leaving => {}
            Phase::Client if conn.form.is_poll() => self.behind_poll(key, bytes),
            Phase::Client | Phase::Unusable if !conn.form.framing().is_websocket() => {
                self.behind_stream(bytes);
            }
            Phase::Echo | Phase::Client | Phase::Unusable | Phase::Closing => {
                if conn.phase == Phase::Echo {
                    conn.since_tick = tick;
                    conn.flags.set_probed(false);
                }
                self.frames(key, bytes, budget);
            }
        }
    }

    /// Bytes of a request head.
    pub(crate) fn head(&mut self, key: ConnKey, bytes: &[u8]) {
        if self.net.addresses.awaits_header(key.index) {
            return self.proxy_header(key, bytes);
        }
        let tick = self.cx.tick();
        let Some(conn) = self.net.conn(key) else { return };
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
                    self.schedule(key.index);
                    self.hold_head(key.index, bytes.len());
                }
                Ok(Some(head)) => self.request(key, &head, bytes),
                Err(refusal) => self.refuse_head(key.index, bytes, refusal),
            };
        };
        rx.raw.extend_from_slice(bytes);
        let len = rx.raw.len();
        if !http::head_complete(&rx.raw, &mut rx.scanned) {
            conn.rx = Some(rx);
            return self.hold_head(key.index, len);
        }
        match http::parse(&rx.raw) {
            Ok(None) => {
                conn.rx = Some(rx);
                self.hold_head(key.index, len);
            }
            Ok(Some(head)) => self.request(key, &head, &rx.raw),
            Err(refusal) => self.refuse_head(key.index, &rx.raw, refusal),
        }
    }

    /// So many bytes of a head are kept until it is whole.
    fn hold_head(&mut self, index: u32, bytes: usize) {
        if !self.hold_unfinished(index, bytes) {
            self.refuse(index, Refusal::AddressBytes);
        }
    }

    /// These bytes are no request head.
    fn refuse_head(&mut self, index: u32, bytes: &[u8], refusal: Refusal) {
        if !is_proxy_header(bytes) {
            return self.refuse(index, refusal);
        }
        // Nobody announced it, so whoever sent it isn't trusted to say who it is.
        self.cx.counters().proxy_headers_refused.inc();
        let why = format_args!("a PROXY header of a peer that isn't expected to send one");
        self.refuse_because(index, Refusal::Malformed, Reason::HttpProxyHeader, "", why);
    }

    /// A whole request head, which `bytes` begin with.
    fn request(&mut self, key: ConnKey, head: &http::Head<'_>, bytes: &[u8]) {
        let (bytes, rest) = bytes.split_at(head.bytes);
        self.hold_unfinished(key.index, 0);
        if let Err(refusal) = self.learn_client(key.index, head) {
            return self.refuse(key.index, refusal);
        }
        let node = Arc::clone(&self.cx.node);
        let endpoints = &node.options.endpoints;
        match self.check_sender(head) {
            Ok(()) => {}
            Err(Refusal::ForeignHost) => return self.refuse_host(key.index, head),
            Err(refusal) => return self.refuse_request(key.index, head, refusal),
        }
        let Some(at) = endpoints.iter().position(|endpoint| endpoint.path == head.path) else {
            return match node.options.is_web(head.path) {
                true => self.collect_web(key, head, bytes, rest),
                false if (head.method, head.path) == ("OPTIONS", "*") => {
                    self.answer_about_server(key, head, rest);
                }
                false => {
                    let (refusal, reason) = (Refusal::NotFound, Reason::HttpNotFound);
                    let why = format_args!("{} {}", Cut(head.method), Cut(head.path));
                    self.refuse_because(key.index, refusal, reason, Manner::of(head), why);
                }
            };
        };
        let endpoint = &endpoints[at];
        if endpoint.kind.is_websocket() {
            self.upgrade(key, endpoint.kind, head, rest);
        } else if self.check_request(key, endpoint, head, rest) {
            let bytes_max = endpoint.body_bytes_max;
            self.collect(key, Some(at), Room::Clients, bytes_max, head, bytes, rest);
        }
    }

    /// What is judged of every request on the public port, whatever it is for: that it says once on whose
    /// behalf it comes, and that it means this node.
    fn check_sender(&self, head: &http::Head<'_>) -> Result<(), Refusal> {
        let user = &self.cx.client.user_id_http_header;
        if !user.is_empty() && head.all(user).nth(1).is_some() {
            return Err(Refusal::Repeated);
        }
        match self.cx.node.options.hosts.admits(head.header("host"), false) {
            true => Ok(()),
            false => Err(Refusal::ForeignHost),
        }
    }

    /// Whether the web page that sent a request, if one did, may act as a client.
    pub(crate) fn allows_page(&self, head: &http::Head<'_>) -> bool {
        let origins = self.cx.node.rules.origins.load();
        origins.allows_request(head.header("origin"), head.header("sec-fetch-site"))
    }

    /// A request for a WebSocket.
    fn upgrade(&mut self, key: ConnKey, kind: EndpointKind, head: &http::Head<'_>, rest: &[u8]) {
        let node = Arc::clone(&self.cx.node);
        let (admin, echo) = (kind == EndpointKind::Admin, kind == EndpointKind::Echo);
        let one_way = kind == EndpointKind::UniWebSocket;
        let client = !admin && !echo;
        let upgrade = match http::upgrade(head) {
            Ok(upgrade) => upgrade,
            Err(refusal) => return self.refuse_request(key.index, head, refusal),
        };
        if admin && !node.options.hosts.admits(head.header("host"), true) {
            return self.refuse_host(key.index, head);
        }
        if admin && !http::is_of_own_host(head) {
            return self.refuse_origin(key.index, head, "", &"the host of the admin page");
        }
        if client && !self.allows_page(head) {
            return self.refuse_page(key.index, head);
        }
        let asked = http::query_param(head.query, "cf_connect").filter(|_| one_way);
        if asked.as_ref().is_some_and(|asked| client::connect_request(asked).is_err()) {
            return self.refuse(key.index, Refusal::Malformed);
        }
        let admitted = match client {
            true => self.admit(),
            false => self.takes_no_clients().map_or_else(|| self.has_client_place(), Err),
        };
        if let Err(reason) = admitted {
            return self.refuse_busy(key.index, head, reason);
        }
        match echo {
            true => self.net.set_busy(key.index),
            // It is a client once it is connected.
            false => self.net.set_replaceable(key.index),
        }
        self.cx.counters().upgrades.add(1);
        let options = &node.options;
        let deflate = if one_way { options.uni_websocket.deflate } else { options.deflate };
        let deflate = upgrade.deflate.filter(|_| deflate.is_some() && !admin);
        let framing = match deflate {
            Some(deflate) => Framing::deflate(deflate.server_window_bits),
            None if one_way && !options.uni_websocket.joins => Framing::WebSocketSingle,
            None => Framing::WebSocket,
        };
        let format = http::format(head.query, upgrade.protocol);
        let form = match one_way {
            true => Form::one_way(framing),
            false => Form::new(framing, !echo && format == http::Format::Protobuf),
        };
        let frame_ping = !echo
            && !one_way
            && http::query_param(head.query, "cf_ws_frame_ping_pong").is_some_and(|v| v == "true");
        if client {
            self.keep_client_headers(key.index, head);
        } else if admin {
            self.clients.asides.entry(key.index).admin = Some(Admin::Upgraded);
        }
        let mut answer = std::mem::take(&mut self.codec.replies);
        answer.clear();
        // Two-way WebSocket without a subprotocol in the request gets none in the answer.
        let protocol = upgrade.protocol.filter(|_| !echo && !one_way);
        let date = self.net.date(&self.cx);
        http::put_switching(&mut answer, &http::Upgrade { protocol, deflate, ..upgrade }, date);
        // A part, so that it goes out even when what stands behind it is too much and is dropped: no
        // close frame could be read without it.
        let frame = SharedFrame::part(&answer);
        self.codec.replies = answer;
        let tick = self.cx.tick();
        if let Some(conn) = self.net.conn(key) {
            conn.phase = if echo { Phase::Echo } else { Phase::Client };
            conn.form = form;
            conn.flags.set_frame_ping(frame_ping);
            if echo {
                conn.since_tick = tick;
            }
            // What came behind the head is handled when the turn comes back to this connection.
            conn.rx = Rx::behind(rest);
            if let Some(asked) = asked {
                // An empty request is one, too.
                let asked = if asked.is_empty() { "{}".into() } else { asked };
                conn.rx.get_or_insert_default().commands = asked.into_owned().into_bytes();
                self.net.mark_ready(key);
            }
        }
        self.net.enqueue(&self.cx, key.index, frame);
        self.schedule(key.index);
    }

    /// Refuses a request for its `Origin`, and logs that and the allowed ones.
    pub(crate) fn refuse_origin(
        &mut self,
        index: u32,
        head: &http::Head<'_>,
        more: &str,
        allowed: &dyn std::fmt::Display,
    ) {
        let origin = match http::origin(head) {
            None => "none",
            Some(Err(_)) => "not text",
            Some(Ok(origin)) => origin,
        };
        let (refusal, reason) = (Refusal::Origin, Reason::HttpOrigin);
        let origin = Cut(origin);
        let why = format_args!("{origin} is not in {allowed}");
        let manner = Manner { headers: more, ..Manner::of(head) };
        self.refuse_because(index, refusal, reason, manner, why);
    }

    /// Refuses a request of a page that may not act as a client.
    pub(crate) fn refuse_page(&mut self, index: u32, head: &http::Head<'_>) {
        let node = Arc::clone(&self.cx.node);
        let origins = node.rules.origins.load();
        match head.header("origin") {
            Some(_) => self.refuse_origin(index, head, "", &**origins),
            None => {
                let why = format_args!("no Origin, Sec-Fetch-Site of another site or host");
                let manner = Manner::of(head);
                self.refuse_because(index, Refusal::Origin, Reason::HttpOrigin, manner, why);
            }
        }
    }

    /// Refuses a request whose Host isn't this node's.
    fn refuse_host(&mut self, index: u32, head: &http::Head<'_>) {
        let host = head.header("host").unwrap_or_default();
        let host = Cut(std::str::from_utf8(host).unwrap_or("not text"));
        let why = format_args!("{host} is not this node's, nor in roost.allowed_hosts");
        let manner = Manner::of(head);
        self.refuse_because(index, Refusal::ForeignHost, Reason::HttpHost, manner, why);
    }

    /// Why no client may begin a session now, if so.
    pub(crate) fn takes_no_clients(&self) -> Option<Reason> {
        if self.life.draining.is_some() {
            return Some(Reason::HttpDraining);
        }
        self.cx.node.memory.is_short().then_some(Reason::HttpMemory)
    }

    /// Bytes of WebSocket frames.
    fn frames(&mut self, key: ConnKey, bytes: &mut [u8], budget: &mut Budget) {
        let form = self.net.form(key.index);
        let options = &self.cx.node.options;
        let rules = ReadRules {
            masked: true,
            deflate: form.framing().window_bits().is_some(),
            message_bytes_max: match form.is_one_way() {
                true => options.uni_websocket.message_bytes_max,
                false => options.message_bytes_max,
            },
        };
        let mut kept = self.net.conn(key).and_then(|conn| conn.rx.take());
        let mut reader = kept.as_mut().map_or_else(Reader::new, |rx| {
            debug_assert!(!rx.has_leftover());
            std::mem::take(&mut rx.reader)
        });
        let mut at = 0;
        let mut commands = Vec::new();
        while budget.frames > 0 {
            let event = match reader.next(&rules, bytes, &mut at) {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(fault) => return self.fault(key.index, fault),
            };
            budget.frames -= 1;
            match self.event(key.index, event, &mut commands) {
                Flow::On | Flow::Defer(_) | Flow::Skip => {}
                Flow::Pause(_) => break,
                // The peer's close frame may be behind it.
                Flow::End if self.net.conn(key).is_some_and(|c| c.phase == Phase::Closing) => {}
                Flow::End => return,
            }
        }
        // A message that was lent from the reader is done with: this frees it.
        if at == bytes.len() {
            let _ = reader.next(&rules, &mut [], &mut 0);
        }
        let left = &bytes[at..];
        if reader.is_idle() && left.is_empty() && commands.is_empty() {
            return;
        }
        let mut rx = kept.unwrap_or_default();
        rx.reader = reader;
        rx.commands = commands;
        rx.raw.clear();
        rx.raw.extend_from_slice(left);
        if let Some(conn) = self.net.conn(key) {
            conn.rx = Some(rx);
        }
    }

    fn event(&mut self, index: u32, event: Event<'_>, left: &mut Vec<u8>) -> Flow {
        let Some(conn) = self.net.conns.get_mut(index as usize) else { return Flow::End };
        let phase = conn.phase;
        match event {
            Event::Close { code, .. } => {
                self.peer_closed(index, code);
                Flow::End
            }
            // Ours is out: all but the peer's close frame is too late.
            _ if phase == Phase::Closing => Flow::On,
            Event::Ping(payload) => {
                self.net.enqueue(&self.cx, index, ws::frame(ws::PONG, payload));
                self.echo_flow(index)
            }
            Event::Pong(_) => {
                if conn.flags.frame_ping()
                    && let Some(session) = self.clients.sessions.get_mut(conn.session as usize)
                {
                    session.flags.set_pong_due(false);
                    self.cx.counters().pongs.add(1);
                }
                Flow::On
            }
            Event::Message { kind, deflated, data } => {
                if !deflated {
                    return self.whole_message(index, kind, data, left);
                }
                let mut inflated = std::mem::take(&mut self.codec.inflated);
                inflated.clear();
                let flow = match self.inflate(index, kind, data, &mut inflated) {
                    Ok(()) => self.whole_message(index, kind, &inflated, left),
                    Err(fault) => {
                        self.fault(index, fault);
                        Flow::End
                    }
                };
                if inflated.capacity() <= SCRATCH_BYTES_MAX {
                    self.codec.inflated = inflated;
                }
                flow
            }
        }
    }

    /// Inflates a message of a client.
    fn inflate(
        &mut self,
        index: u32,
        kind: MessageKind,
        deflated: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let options = &self.cx.node.options;
        let bytes_max = match self.net.form(index).is_one_way() {
            true => options.uni_websocket.message_bytes_max,
            false => options.inflated_bytes_max,
        };
        self.codec.inflater.inflate(deflated, bytes_max, out).map_err(|fault| match fault {
            InflateFault::Malformed => Fault::NotDeflate,
            InflateFault::TooLong => Fault::MessageTooLong { bytes: bytes_max as u64 + 1 },
        })?;
        self.cx.counters().messages_inflated.add(1);
        if kind == MessageKind::Text && simdutf8::basic::from_utf8(out).is_err() {
            return Err(Fault::TextNotUtf8);
        }
        Ok(())
    }

    fn whole_message(
        &mut self,
        index: u32,
        kind: MessageKind,
        data: &[u8],
        left: &mut Vec<u8>,
    ) -> Flow {
        let Some(conn) = self.net.conns.get(index as usize) else { return Flow::End };
        let (form, is_echo) = (conn.form, conn.phase == Phase::Echo);
        self.cx.counters().messages_received.add(1);
        if !is_echo {
            let flow = self.message(index, data);
            left.extend_from_slice(flow.unhandled(data).unwrap_or_default());
            return flow;
        }
        self.cx.counters().messages_sent.add(1);
        // A text is one again, whatever its form is otherwise.
        let form = Form::new(form.framing(), kind == MessageKind::Binary);
        let frame = frame_of(&mut self.codec.deflaters, &mut self.codec.replies, form, data);
        if self.codec.replies.capacity() > SCRATCH_BYTES_MAX {
            self.codec.replies = Vec::new();
        }
        self.net.enqueue(&self.cx, index, frame);
        self.echo_flow(index)
    }

    /// A peer that doesn't take its echoes isn't read further; it is never closed as slow.
    fn echo_flow(&mut self, index: u32) -> Flow {
        let Some(conn) = self.net.conns.get_mut(index as usize) else { return Flow::End };
        let waits = self.net.queues.get(conn.queue).map_or(0, |queue| queue.bytes());
        if conn.phase != Phase::Echo || waits < ECHO_BACKLOG_BYTES as usize {
            return Flow::On;
        }
        conn.flags.set_paused(true);
        Flow::Pause(0)
    }

    /// A message of the client protocol, or what is left of one.
    pub(crate) fn message(&mut self, index: u32, data: &[u8]) -> Flow {
        if self.net.form(index).is_one_way() {
            return self.one_way_message(index, data);
        }
        if self.net.encoding(index) == Encoding::Protobuf {
            return self.commands(index, client::binary_commands(data));
        }
        // Text frames were checked as they came; a binary one may hold anything.
        match simdutf8::basic::from_utf8(data) {
            Ok(text) => self.commands(index, client::commands(text)),
            Err(_) => self.bad_request(index, "text that is not UTF-8"),
        }
    }
}

/// A scratch buffer that grew beyond this for one large message is not kept.
const SCRATCH_BYTES_MAX: usize = 256 * 1024;
