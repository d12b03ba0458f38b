//! What a client comes over: frames, or requests and responses; both ways, or one way only. What is said is
//! the same over all of them.

use std::collections::VecDeque;

use flate2::{Compress, Compression, FlushCompress};
use roost::edge::channels::RecoveryMode;
use roost::io::sim::{LinkId, Seen};
use roost::proto::ws;
use roost::shard::{Endpoint, EndpointKind};

use super::{Client, Pending, Phase, Scene, State, What};
use crate::checker::End;
use crate::orders::USERS;
use crate::wire::{self, BarePush, PollAnswer, Push, SubscribeResult, UpRequest};

/// A transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    WebSocket,
    /// With permessage-deflate, and a window of so many bits.
    Deflated(u8),
    HttpStream,
    Sse,
    UniWebSocket,
    UniHttpStream,
    UniSse,
    LongPoll,
}

impl Over {
    /// In frames of RFC 6455.
    pub(crate) fn is_websocket(self) -> bool {
        matches!(self, Self::WebSocket | Self::Deflated(_) | Self::UniWebSocket)
    }

    /// It only listens.
    pub(crate) fn is_one_way(self) -> bool {
        matches!(self, Self::UniWebSocket | Self::UniHttpStream | Self::UniSse | Self::LongPoll)
    }

    /// Commands go in separate requests.
    pub(crate) fn has_up_link(self) -> bool {
        matches!(self, Self::HttpStream | Self::Sse)
    }

    /// In server-sent events.
    fn is_events(self) -> bool {
        matches!(self, Self::Sse | Self::UniSse)
    }

    /// Where it is.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::WebSocket | Self::Deflated(_) => "/connection/websocket",
            Self::HttpStream => "/connection/http_stream",
            Self::Sse => "/connection/sse",
            Self::UniWebSocket => "/connection/uni_websocket",
            Self::UniHttpStream => "/connection/uni_http_stream",
            Self::UniSse => "/connection/uni_sse",
            Self::LongPoll => "/connection/long_poll",
        }
    }

    /// All endpoints that there are for them.
    pub(crate) fn endpoints() -> Vec<Endpoint> {
        let endpoint =
            |path, kind| Endpoint { body_bytes_max: 400_000, ..Endpoint::new(path, kind) };
        [
            (Self::WebSocket, EndpointKind::WebSocket),
            (Self::HttpStream, EndpointKind::HttpStream),
            (Self::Sse, EndpointKind::Sse),
            (Self::UniWebSocket, EndpointKind::UniWebSocket),
            (Self::UniHttpStream, EndpointKind::UniHttpStream),
            (Self::UniSse, EndpointKind::UniSse),
            (Self::LongPoll, EndpointKind::LongPoll),
        ]
        .into_iter()
        .map(|(over, kind)| endpoint(over.path(), kind))
        .chain([endpoint(UP_LINK, EndpointKind::Emulation)])
        .collect()
    }
}

/// Path of the up-link.
const UP_LINK: &str = "/emulation";

/// The head of a response.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    status: u16,
    /// Bytes of its body; without it come chunks.
    length: Option<usize>,
    /// The connection goes with it.
    closes: bool,
}

impl Answer {
    /// The head that bytes begin with, and its length.
    fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, String> {
        let mut headers = [httparse::EMPTY_HEADER; 20];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(bytes).map_err(|fault| format!("no response: {fault}"))?;
        let httparse::Status::Complete(len) = parsed else { return Ok(None) };
        let get = |name: &str| {
            let found = response.headers.iter().find(|of| of.name.eq_ignore_ascii_case(name));
            found.map(|of| std::str::from_utf8(of.value).unwrap_or_default())
        };
        let length = match (get("content-length"), get("transfer-encoding")) {
            (Some(length), None) => Some(length.parse().map_err(|_| "no length")?),
            (None, Some("chunked")) => None,
            (None, None) if response.code == Some(204) => Some(0),
            other => return Err(format!("a body of {other:?}")),
        };
        let closes = get("connection") == Some("close");
        Ok(Some((Self { status: response.code.unwrap_or(0), length, closes }, len)))
    }
}

/// The connection for what a client says whose own request has no end.
#[derive(Debug, Default)]
pub(super) struct UpLink {
    link: Option<LinkId>,
    out: VecDeque<u8>,
    head: Vec<u8>,
    /// Messages that are to be sent: one request at a time, so that they stay in order.
    queue: VecDeque<Vec<u8>>,
    /// A request isn't answered.
    busy: bool,
}

impl UpLink {
    /// Whether messages wait for those before them.
    pub(super) fn is_behind(&self) -> bool {
        !self.queue.is_empty()
    }
}

/// Whether there may be no room for a request of the up-link.
fn may_be_refused(scene: &Scene<'_>) -> bool {
    let few = scene.plan.options.requests_unanswered_max < 100;
    few || !scene.plan.roomy || scene.plan.crowded || scene.draining
}

/// A message as it stands deflated in a frame (RFC 7692 7.2.1).
fn deflate(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 100);
    let mut compress = Compress::new_with_window_bits(Compression::fast(), false, 9);
    compress.compress_vec(message, &mut out, FlushCompress::Sync).unwrap();
    assert!(out.ends_with(&[0, 0, 0xff, 0xff]));
    out.truncate(out.len() - 4);
    out
}

impl Client {
    /// A message in frames, in fragments perhaps, deflated perhaps.
    pub(super) fn framed(&mut self, message: &[u8]) {
        let mut frames = Vec::new();
        let opcode = if self.protobuf { ws::BINARY } else { ws::TEXT };
        let key = (self.rng.next_u64() as u32).to_be_bytes();
        let deflated = matches!(self.over, Over::Deflated(_)) && self.rng.one_in(2);
        let deflated = deflated.then(|| deflate(message));
        let message = deflated.as_deref().unwrap_or(message);
        if self.rng.one_in(6) && message.len() > 1 {
            let at = 1 + self.rng.below(message.len() as u64 - 1) as usize;
            let (first, second) = message.split_at(at);
            ws::put_masked(&mut frames, opcode, first, key);
            frames[0] &= 0x7f;
            if self.rng.one_in(2) {
                ws::put_masked(&mut frames, ws::PING, b"between", key);
            }
            ws::put_masked(&mut frames, ws::CONTINUATION, second, key);
        } else {
            ws::put_masked(&mut frames, opcode, message, key);
        }
        if deflated.is_some() {
            frames[0] |= 0x40;
        }
        self.out.extend(frames);
    }

    /// A message where there are no frames: the request that all begins with, or one of the up-link.
    pub(super) fn requested(&mut self, message: &[u8]) {
        if self.has_begun {
            self.up.queue.push_back(message.to_vec());
            return;
        }
        self.has_begun = true;
        let path = self.over.path();
        let by_query = match self.over {
            Over::Sse => true,
            Over::UniSse | Over::LongPoll => self.rng.one_in(2),
            _ => false,
        };
        let request = match by_query {
            true => {
                let asked: String = form_urlencoded::byte_serialize(message).collect();
                let accept = match self.over.is_events() && self.rng.one_in(2) {
                    true => "Accept: text/event-stream\r\n",
                    false => "",
                };
                let line = format!("GET {path}?cf_connect={asked} HTTP/1.1\r\n");
                format!("{line}Host: sim\r\n{accept}\r\n").into_bytes()
            }
            false => self.post(path, message),
        };
        let request = match std::mem::take(&mut self.last_id) {
            id if id.is_empty() => request,
            id => {
                let text = String::from_utf8(request).unwrap_or_default();
                let (line, rest) = text.split_once("\r\n").unwrap_or_default();
                format!("{line}\r\nLast-Event-ID: {id}\r\n{rest}").into_bytes()
            }
        };
        self.out.extend(request);
    }

    fn post(&mut self, path: &str, body: &[u8]) -> Vec<u8> {
        let kind = match self.protobuf {
            true => "Content-Type: application/octet-stream\r\n",
            false => "",
        };
        let head = format!("POST {path} HTTP/1.1\r\nHost: sim\r\n{kind}");
        let mut request = head.into_bytes();
        match self.rng.one_in(3) {
            false => {
                request.extend(format!("Content-Length: {}\r\n\r\n", body.len()).bytes());
                request.extend(body);
            }
            true => {
                request.extend(b"Transfer-Encoding: chunked\r\n\r\n");
                let size = 1 + self.rng.below(body.len().max(1) as u64) as usize;
                for chunk in body.chunks(size) {
                    request.extend(format!("{:x}\r\n", chunk.len()).bytes());
                    request.extend(chunk);
                    request.extend(b"\r\n");
                }
                request.extend(b"0\r\n\r\n");
            }
        }
        request
    }

    /// Whether the up-link has something to do.
    pub(super) fn is_up_ready(&self, world: &roost::io::sim::World) -> bool {
        let starts = !self.up.busy && !self.up.queue.is_empty() && self.state == State::Online;
        starts
            || self.up.link.is_some_and(|link| {
                !self.up.out.is_empty() && world.has_room(link) || world.look(link) != Seen::Nothing
            })
    }

    /// Sends what is to go up, and reads what comes of it.
    pub(super) fn step_up(&mut self, scene: &mut Scene<'_>) -> Result<(), String> {
        if !self.up.busy
            && self.state == State::Online
            && let Some(message) = self.up.queue.pop_front()
        {
            let Some(link) = self.up.link.or_else(|| scene.world.connect()) else { return Ok(()) };
            self.up.link = Some(link);
            self.up.busy = true;
            let (node, session) = (self.node.clone(), self.session.clone());
            let body = UpRequest { node, session, data: message }.encode(self.protobuf);
            let request = self.post(UP_LINK, &body);
            self.up.out.extend(request);
        }
        let Some(link) = self.up.link else { return Ok(()) };
        if !self.up.out.is_empty() {
            let taken = scene.world.write(link, self.up.out.make_contiguous());
            self.up.out.drain(..taken);
        }
        match scene.world.look(link) {
            Seen::Nothing => Ok(()),
            Seen::Bytes(_) => {
                let bytes = scene.world.read(link, 1 << 20);
                self.up.head.extend(bytes);
                let Some((answer, len)) = Answer::parse(&self.up.head)? else { return Ok(()) };
                let len = len + answer.length.ok_or("an answer without an end")?;
                if self.up.head.len() < len {
                    return Ok(());
                }
                self.up.head.drain(..len);
                if !std::mem::take(&mut self.up.busy) {
                    return Err("an answer to nothing".into());
                }
                match answer.status {
                    204 => Ok(()),
                    // As SDKs do it: nobody knows what was handled.
                    408 | 429 | 503 if may_be_refused(scene) => {
                        self.give_up(scene);
                        Ok(())
                    }
                    other => Err(format!("the up-link answered {other}")),
                }
            }
            Seen::Ended | Seen::Reset => {
                let broken = std::mem::take(&mut self.up.busy);
                self.drop_up(scene);
                if broken {
                    self.give_up(scene);
                }
                Ok(())
            }
        }
    }

    /// Without an up-link it begins anew.
    fn give_up(&mut self, scene: &mut Scene<'_>) {
        let Some(link) = self.link else { return };
        self.say(scene, "has no up-link");
        self.left = true;
        scene.world.reset(link);
        self.lost(scene);
    }

    /// The up-link goes.
    pub(super) fn drop_up(&mut self, scene: &mut Scene<'_>) {
        let UpLink { link, .. } = std::mem::take(&mut self.up);
        if let Some(link) = link {
            scene.world.shut(link);
            scene.world.reset(link);
        }
    }

    /// Bytes of a response.
    pub(super) fn handle_http(
        &mut self,
        scene: &mut Scene<'_>,
        bytes: &[u8],
    ) -> Result<(), String> {
        self.head.extend_from_slice(bytes);
        loop {
            let Some(answer) = self.answer else {
                let Some((answer, len)) = Answer::parse(&self.head)? else { return Ok(()) };
                self.head.drain(..len);
                self.answer = Some(answer);
                continue;
            };
            if self.over == Over::LongPoll {
                let length = answer.length.ok_or("chunks")?;
                if self.head.len() < length {
                    return Ok(());
                }
                let body: Vec<u8> = self.head.drain(..length).collect();
                self.answer = None;
                self.polled(scene, answer, &body)?;
                if self.link.is_none() || self.left {
                    return Ok(());
                }
                continue;
            }
            // An event source that should come back later has a stream that ends.
            let sent_away = self.over.is_events() && answer.length.is_some();
            let status = if sent_away { 503 } else { answer.status };
            if status != 200 {
                // The body, and then the end, are read.
                let told = self.left;
                return if told { Ok(()) } else { self.refused_by(scene, status) };
            }
            if self.state == State::Upgrading {
                self.state = State::Connecting;
                self.since = scene.world.now().0;
            }
            let Some(line) = self.head.windows(2).position(|two| two == b"\r\n") else {
                return Ok(());
            };
            let size = std::str::from_utf8(&self.head[..line]).map_err(|_| "no size")?;
            let size = usize::from_str_radix(size, 16).map_err(|_| format!("no size: {size:?}"))?;
            if self.head.len() < line + 2 + size + 2 {
                return Ok(());
            }
            let rest = self.head.split_off(line + 2 + size + 2);
            let mut chunk = std::mem::replace(&mut self.head, rest);
            if !chunk.ends_with(b"\r\n") {
                return Err("a chunk without an end".into());
            }
            chunk.truncate(chunk.len() - 2);
            self.chunk(scene, &chunk[line + 2..])?;
            if self.link.is_none() {
                return Ok(());
            }
        }
    }

    /// A chunk: whole messages.
    fn chunk(&mut self, scene: &mut Scene<'_>, chunk: &[u8]) -> Result<(), String> {
        if chunk.is_empty() {
            let told = self.closed.is_some() || self.left;
            return if told {
                Ok(())
            } else {
                Err("the response ends, and nobody said why".into())
            };
        }
        if self.closed.is_some() {
            return Err("something came behind the disconnect".into());
        }
        if self.protobuf {
            return self.messages(scene, chunk);
        }
        if self.over.is_events() && chunk.starts_with(b"retry: ") {
            let began = std::mem::replace(&mut self.has_retry, true);
            return if began { Err("another time to come back".into()) } else { Ok(()) };
        }
        let end: &[u8] = if self.over.is_events() { b"\n\n" } else { b"\n" };
        let whole = chunk.strip_suffix(end).ok_or("not whole messages in a chunk")?;
        let text = std::str::from_utf8(whole).map_err(|_| "a chunk that is no text")?;
        for message in text.split(if self.over.is_events() { "\n\n" } else { "\n" }) {
            let message = match (self.over.is_events(), message.strip_prefix("data: ")) {
                (false, _) => message,
                (true, Some(data)) => data,
                (true, None) => {
                    self.position(scene, message)?;
                    continue;
                }
            };
            self.messages(scene, message.as_bytes())?;
        }
        Ok(())
    }

    /// Messages of a frame or a chunk.
    pub(super) fn messages(&mut self, scene: &mut Scene<'_>, data: &[u8]) -> Result<(), String> {
        self.quote("<", data);
        let in_message = |fault: String, bytes: &[u8]| {
            format!("{fault}, in {}", String::from_utf8_lossy(&bytes[..bytes.len().min(300)]))
        };
        if self.over.is_one_way() {
            for line in data.split(|byte| *byte == b'\n') {
                let push: BarePush = serde_json::from_slice(line)
                    .map_err(|fault| in_message(fault.to_string(), line))?;
                self.handle_bare(scene, push).map_err(|fault| in_message(fault, line))?;
            }
            return Ok(());
        }
        for (bytes, reply) in wire::replies(self.protobuf, data)? {
            self.handle_reply(scene, reply).map_err(|fault| in_message(fault, &bytes))?;
        }
        Ok(())
    }

    /// A push without a reply around it.
    fn handle_bare(&mut self, scene: &mut Scene<'_>, push: BarePush) -> Result<(), String> {
        if push == BarePush::default() {
            return Ok(());
        }
        if let Some(result) = push.connect {
            let Some(Pending { what: What::Connect(asked), sent, .. }) = self.only_pending() else {
                return Err("connected, and never asked for that".into());
            };
            return self.connected(scene, &asked, result, sent);
        }
        if let Some(disconnect) = push.disconnect {
            return self.disconnected(scene, disconnect.code);
        }
        let BarePush { channel, r#pub, join, leave, unsubscribe, .. } = push;
        let push = Push { channel, r#pub, join, leave, unsubscribe, disconnect: None };
        self.handle_push(scene, push)
    }

    /// The pending request: one at most.
    fn only_pending(&mut self) -> Option<Pending> {
        self.pending.pop_first().map(|(_, pending)| pending)
    }

    /// Told by a push that the connection ends.
    pub(super) fn disconnected(&mut self, scene: &mut Scene<'_>, code: u32) -> Result<(), String> {
        self.say(scene, format!("told of {code}"));
        let code = u16::try_from(code).map_err(|_| "no code")?;
        match self.over {
            // The close frame is behind it.
            Over::UniWebSocket => self.told = Some(code),
            Over::WebSocket | Over::Deflated(_) => return Err("a push for a close".into()),
            _ => {
                self.closed = Some(code);
                self.state = State::Leaving;
                self.since = scene.world.now().0;
            }
        }
        self.check_close(scene, code)
    }

    /// An event that says where the client is: never ahead of what it has.
    fn position(&mut self, scene: &mut Scene<'_>, event: &str) -> Result<(), String> {
        let id =
            event.strip_prefix("event: position\nid: ").and_then(|id| id.strip_suffix("\ndata:"));
        let id = id.filter(|_| self.over == Over::UniSse).ok_or("an event of another kind")?;
        let places: wire::Positions =
            serde_json::from_str(id).map_err(|fault| fault.to_string())?;
        for (channel, place) in places {
            let known = self.channels.get(&channel).and_then(|known| known.open);
            let open = known.ok_or("the position of a channel that it hasn't")?;
            let at = scene.history.position(open);
            let dropped = scene.plan.namespace(&channel).slow_policy.drops();
            if at != Some((place.epoch.clone(), place.offset)) && !dropped {
                return Err(format!("{channel}: {place:?} is not where it is: {at:?}"));
            }
        }
        Ok(())
    }

    /// A poll is answered.
    fn polled(&mut self, scene: &mut Scene<'_>, answer: Answer, body: &[u8]) -> Result<(), String> {
        self.quote("<", body);
        let text = String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
        self.turned_away = !body.starts_with(b"{");
        if self.turned_away {
            return self.refused_by(scene, answer.status);
        }
        let result: PollAnswer =
            serde_json::from_slice(body).map_err(|fault| format!("{fault} in {text}"))?;
        let Some(Pending { what: What::Connect(asked), sent, .. }) = self.only_pending() else {
            return Err("an answer to no poll".into());
        };
        if answer.status == 429 && scene.plan.crowded {
            self.turned_away = true;
            return self.refused_by(scene, 503);
        }
        if answer.status == 500 && result.error.as_ref().is_some_and(|error| error.code == 100) {
            // The node is short of memory, which an application that is slow in a takeover can bring about: the
            // `connect` of a poll is handled once more, and history may have grown meanwhile.
            self.turned_away = true;
            return self.refused_by(scene, 500);
        }
        if let Some(disconnect) = result.disconnect {
            self.disconnected(scene, disconnect.code)?;
        } else if answer.status != 200 || result.error.is_some() {
            return Err(format!("{} {text}", answer.status));
        } else {
            self.state = State::Online;
            let user = self.user.clone().unwrap_or_default();
            scene.history.presence.named(&result.client, &user)?;
            self.last_poll = Some((user, result.client));
            if !result.subs.keys().eq(asked.keys()) {
                return Err(format!("the subscriptions are {:?}", result.subs.keys()));
            }
            for (channel, mut result) in result.subs {
                // The answer says where to go on; what it begins with is where the list begins.
                let (ask, list) = (&asked[&channel], std::mem::take(&mut result.publications));
                let top = (result.epoch.clone(), result.offset);
                result.offset = match (result.recovered, list.first()) {
                    (true, _) => ask.request.offset,
                    (false, Some(first)) => first.offset - 1,
                    (false, None) => result.offset,
                };
                if let Some(open) = self.channels.entry(channel.clone()).or_default().open.take() {
                    self.close(scene, &channel, open, End::Gone);
                }
                self.answered(scene, &channel, ask, result, list, sent)
                    .and_then(|()| match self.stands_at(scene, &channel) {
                        Some(at) if at == top => Ok(()),
                        other => {
                            Err(format!("{channel}: the answer says {top:?}, it has {other:?}"))
                        }
                    })
                    .map_err(|fault| format!("{fault}, in {text}"))?;
                if let Some(open) = self.channels.get(&channel).and_then(|known| known.open) {
                    self.stands(scene, &channel, open);
                }
            }
        }
        if answer.closes || self.state == State::Leaving || scene.phase == Phase::Leave {
            self.left = true;
            self.in_order = true;
            self.state = State::Leaving;
            self.since = scene.world.now().0;
            if !answer.closes
                && let Some(link) = self.link
            {
                scene.world.shut(link);
            }
            return Ok(());
        }
        self.since = scene.world.now().0;
        self.has_begun = false;
        self.has_retry = false;
        self.change_user(scene);
        self.send_connect(scene);
        Ok(())
    }

    /// The next poll over this connection is another user's, as behind a proxy.
    fn change_user(&mut self, scene: &Scene<'_>) {
        // Publications of a personal channel belong to one user.
        if scene.plan.counts_users() || scene.plan.client.personal_channel.is_some() {
            return;
        }
        let number = self.rng.below(USERS + 1);
        self.user = (number < USERS).then(|| format!("user{number}"));
        self.signed = None;
    }

    /// One channel of an answer: a subscription, with a list of what is new.
    fn answered(
        &mut self,
        scene: &mut Scene<'_>,
        channel: &str,
        ask: &super::Ask,
        result: SubscribeResult,
        list: Vec<wire::Publication>,
        sent: u64,
    ) -> Result<(), String> {
        let latest = scene.plan.namespace(channel).recovery_mode == RecoveryMode::Cache;
        // Of a cache any latest one may come, with its own place.
        let mut list = list.into_iter();
        let first = if latest && result.recovered { list.next() } else { None };
        let publications = first.into_iter().collect();
        let result = SubscribeResult { publications, ..result };
        self.opened(scene, channel.to_owned(), ask, result, sent)?;
        for publication in list {
            self.take(scene, channel, publication)?;
        }
        Ok(())
    }

    fn stands_at(&self, scene: &Scene<'_>, channel: &str) -> Option<(String, u64)> {
        scene.history.position(self.channels.get(channel)?.open?)
    }
}
