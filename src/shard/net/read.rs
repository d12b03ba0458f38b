//! Reading: from bytes to requests and messages.

use crate::base::form::Form;
use crate::base::id::ConnKey;
use crate::base::limits::{ECHO_BACKLOG_BYTES, TURN_FRAMES_MAX, TURN_READ_BYTES_MAX};
use crate::io::{Driver, Received};
use crate::proto::client::{self, Encoding};
use crate::proto::ws::{self, Event, Fault, InflateFault, MessageKind, ReadRules, Reader};
use crate::shard::Shard;
use crate::shard::codec::Codec;
use crate::shard::context::Cx;
use crate::shard::flow::Flow;
use crate::shard::net::Net;
use crate::shard::net::record::Phase;
use crate::shard::net::send::frame_of;
use crate::shard::outlets::outlets;

/// What one connection may still have in this turn.
pub(crate) struct Budget {
    bytes: usize,
    frames: usize,
}

impl<D: Driver> Net<D> {
    fn drop_empty_rx(&mut self, key: ConnKey) {
        if let Some(conn) = self.conn(key)
            && conn.rx.as_ref().is_some_and(|rx| rx.is_empty())
        {
            conn.rx = None;
        }
    }

    /// Inflates a message of a client.
    fn inflate(
        &mut self,
        cx: &Cx,
        codec: &mut Codec,
        index: u32,
        kind: MessageKind,
        deflated: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let options = &cx.node.options;
        let bytes_max = match self.form(index).is_one_way() {
            true => options.uni_websocket.message_bytes_max,
            false => options.inflated_bytes_max,
        };
        codec.inflater.inflate(deflated, bytes_max, out).map_err(|fault| match fault {
            InflateFault::Malformed => Fault::NotDeflate,
            InflateFault::TooLong => Fault::MessageTooLong { bytes: bytes_max as u64 + 1 },
        })?;
        cx.counters().messages_inflated.add(1);
        if kind == MessageKind::Text && simdutf8::basic::from_utf8(out).is_err() {
            return Err(Fault::TextNotUtf8);
        }
        Ok(())
    }

    /// A peer that doesn't take its echoes isn't read further; it is never closed as slow.
    fn echo_flow(&mut self, index: u32) -> Flow {
        let Some(conn) = self.conns.get_mut(index as usize) else { return Flow::End };
        let waits = self.queues.get(conn.queue).map_or(0, |queue| queue.bytes());
        if conn.phase != Phase::Echo || waits < ECHO_BACKLOG_BYTES as usize {
            return Flow::On;
        }
        conn.flags.set_paused(true);
        Flow::Pause(0)
    }
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
                    self.net.write(&self.cx, &mut self.codec, &mut self.post, key);
                    self.after_net();
                    if self.net.conn(key).is_some() {
                        self.clients.notice_gone(&outlets!(self), key.index);
                        self.net.release(&self.cx, &mut self.post, key.index, false);
                    }
                    return;
                }
                Received::Failed => {
                    self.clients.notice_gone(&outlets!(self), key.index);
                    self.net.release(&self.cx, &mut self.post, key.index, false);
                    return;
                }
            }
        }
    }

    /// Handles kept commands of a connection; its socket isn't read.
    pub(crate) fn handle_kept(&mut self, key: ConnKey) {
        self.read_leftover(key, &mut Budget { bytes: 0, frames: 0 });
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
                        self.net.answer_emulated(&self.cx, &mut self.post, by, 204);
                    }
                    self.net.drop_empty_rx(key);
                }
            }
            return;
        }
        if let Some(emulated) = rx.emulated.pop_front() {
            self.handle_emulated(key, emulated);
            return self.net.drop_empty_rx(key);
        }
        let mut raw = std::mem::take(&mut rx.raw);
        self.handle_bytes(key, &mut raw, budget);
        self.net.drop_empty_rx(key);
    }

    /// What a client began with: a frame of commands, or a connect request.
    pub(crate) fn first_message(&mut self, key: ConnKey, message: &[u8]) {
        if let Flow::Pause(handled) = self.message(key.index, message)
            && let Some(conn) = self.net.conn(key)
        {
            let rx = conn.rx.get_or_insert_default();
            rx.commands = message[handled..].to_vec();
        }
    }

    fn handle_bytes(&mut self, key: ConnKey, bytes: &mut [u8], budget: &mut Budget) {
        let tick = self.cx.tick();
        let Some(conn) = self.net.conn(key) else { return };
        if conn.flags.deaf() {
            return;
        }
        match conn.phase {
            Phase::Head => {
                self.net.head(&self.cx, &mut self.codec, &mut self.post, key, bytes);
                self.after_net();
            }
            Phase::Body => {
                self.net.web_body(&self.cx, &mut self.post, key, bytes);
                self.after_net();
            }
            Phase::Asked | Phase::Lingering | Phase::Leaving => {}
            Phase::Client if conn.form.is_poll() => self.net.behind_poll(key, bytes),
            Phase::Client | Phase::Unusable if !conn.form.framing().is_websocket() => {
                self.net.behind_stream(&self.cx, bytes);
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
                Err(fault) => {
                    return self.clients.fault(
                        &mut outlets!(self),
                        &mut self.local,
                        key.index,
                        fault,
                    );
                }
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
                self.clients.peer_closed(&mut outlets!(self), &mut self.local, index, code);
                Flow::End
            }
            // Ours is out: all but the peer's close frame is too late.
            _ if phase == Phase::Closing => Flow::On,
            Event::Ping(payload) => {
                self.net.enqueue(&self.cx, index, ws::frame(ws::PONG, payload));
                self.net.echo_flow(index)
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
                let flow = match self.net.inflate(
                    &self.cx,
                    &mut self.codec,
                    index,
                    kind,
                    data,
                    &mut inflated,
                ) {
                    Ok(()) => self.whole_message(index, kind, &inflated, left),
                    Err(fault) => {
                        self.clients.fault(&mut outlets!(self), &mut self.local, index, fault);
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
        self.net.echo_flow(index)
    }

    /// A message of the client protocol, or what is left of one.
    pub(crate) fn message(&mut self, index: u32, data: &[u8]) -> Flow {
        if self.net.form(index).is_one_way() {
            return self.one_way_message(index, data);
        }
        if self.net.encoding(index) == Encoding::Protobuf {
            return self.clients.commands(
                &mut outlets!(self),
                &mut self.local,
                index,
                client::binary_commands(data),
            );
        }
        // Text frames were checked as they came; a binary one may hold anything.
        match simdutf8::basic::from_utf8(data) {
            Ok(text) => self.clients.commands(
                &mut outlets!(self),
                &mut self.local,
                index,
                client::commands(text),
            ),
            Err(_) => self.clients.bad_request(
                &mut outlets!(self),
                &mut self.local,
                index,
                "text that is not UTF-8",
            ),
        }
    }
}

/// A scratch buffer that grew beyond this for one large message is not kept.
const SCRATCH_BYTES_MAX: usize = 256 * 1024;
