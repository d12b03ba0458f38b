//! Input of connections: Net yields bytes and frames; requests go back to it, messages to the commands.
//!
//! ```text
//!  Net::next_input -> bytes -> Net::take_bytes -> requests, bodies, polls: Net's
//!                                    '-> frames -> messages -> commands
//!                          '-> leftovers of earlier input, in their order
//! ```
//! A connection pauses at a command that waits for an answer. The rest of the message and the bytes
//! behind it are kept in its [`Rx`](crate::shard::net::record::Rx); nothing more is read until then.

use crate::base::id::ConnKey;
use crate::io::Driver;
use crate::proto::client::{self, Encoding};
use crate::proto::ws::{Event, MessageKind};
use crate::shard::clients::Clients;
use crate::shard::flow::Flow;
use crate::shard::http::polls::as_poll;
use crate::shard::http::stream::BEFORE_LAST_EVENT_ID;
use crate::shard::local::LocalSide;
use crate::shard::mail::emulation::{Emulate, Emulated};
use crate::shard::net::read::{Budget, Input, Leftover, SCRATCH_BYTES_MAX};
use crate::shard::net::record::{NONE, Phase};
use crate::shard::outlets::Outlets;

impl Clients {
    /// Handles the input of a connection until there is no more, it pauses, or it has had its share of the
    /// turn.
    pub(crate) fn read<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        key: ConnKey,
    ) {
        let mut budget = Budget::of_turn();
        loop {
            match out.net.next_input(out.cx, key, &mut budget) {
                Input::Nothing => return,
                Input::Leftover => self.read_leftover(out, side, key, &mut budget),
                Input::Bytes { mut lease, is_last } => {
                    self.take_bytes(out, side, key, &mut lease, &mut budget);
                    out.net.give_back(lease);
                    if is_last && !out.net.has_leftover(key) {
                        return;
                    }
                }
                Input::Ended => {
                    // The peer may have closed one way only: the frames of this turn go out first.
                    out.net.write_last(out.cx, out.post, key);
                    self.after_net(out, side);
                    if out.net.conn(key).is_some() {
                        self.peer_gone(out, key.index);
                    }
                    return;
                }
                Input::Failed => return self.peer_gone(out, key.index),
                Input::Refused => return self.peer_refused(out, side, key.index),
            }
        }
    }

    /// Handles kept commands of a connection; its socket isn't read.
    pub(crate) fn handle_kept<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        key: ConnKey,
    ) {
        self.read_leftover(out, side, key, &mut Budget::nothing());
    }

    /// Continues with input that was read before.
    fn read_leftover<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        key: ConnKey,
        budget: &mut Budget,
    ) {
        match out.net.take_leftover(key) {
            Leftover::Nothing => return,
            Leftover::Commands { message, at } => {
                let flow = self.message(out, side, key.index, &message[at..]);
                if let Flow::Pause(handled) = flow {
                    return out.net.keep_commands(key, message, at + handled);
                }
                out.net.commands_done(out.cx, out.post, key);
            }
            Leftover::Emulated(emulated) => self.emulated(out, side, key, emulated),
            Leftover::Bytes(mut bytes) => self.take_bytes(out, side, key, &mut bytes, budget),
        }
        out.net.drop_empty_rx(key);
    }

    /// Handles the message that a client's request began with: a frame of commands, or a connect request.
    pub(crate) fn first_message<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        key: ConnKey,
        message: &[u8],
    ) {
        if let Some(left) = self.message(out, side, key.index, message).unhandled(message) {
            out.net.keep_commands(key, left.to_vec(), 0);
        }
    }

    /// Handles commands that came up the separate up-link, unless earlier ones of the connection wait.
    pub(crate) fn take_emulated<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        emulate: Emulate,
    ) {
        if let Some((key, emulated)) = out.net.take_emulated(out.cx, out.post, emulate) {
            self.emulated(out, side, key, emulated);
        }
    }

    /// Handles commands that came up the separate up-link like a message of the connection.
    fn emulated<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        key: ConnKey,
        emulated: Emulated,
    ) {
        out.cx.counters().messages_received.add(1);
        let flow = self.message(out, side, key.index, emulated.commands());
        out.net.emulated_done(out.cx, out.post, key, emulated, flow);
    }

    /// Handles bytes of a connection.
    fn take_bytes<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        key: ConnKey,
        bytes: &mut [u8],
        budget: &mut Budget,
    ) {
        if out.net.take_bytes(out.cx, out.codec, out.post, key, bytes) {
            self.frames(out, side, key, bytes, budget);
        } else {
            self.after_net(out, side);
        }
    }

    /// Handles bytes of WebSocket frames.
    fn frames<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        key: ConnKey,
        bytes: &mut [u8],
        budget: &mut Budget,
    ) {
        let rules = out.net.read_rules(out.cx, key.index);
        let (mut kept, mut reader) = out.net.take_reader(key);
        let mut at = 0;
        let mut commands = Vec::new();
        while budget.takes_frame() {
            let event = match reader.next(&rules, bytes, &mut at) {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(fault) => return self.fault(out, side, key.index, fault),
            };
            budget.count_frame();
            match self.event(out, side, key.index, event, &mut commands) {
                Flow::On | Flow::Defer(_) | Flow::Skip => {}
                Flow::Pause(_) => break,
                // The peer's close frame may be behind it.
                Flow::End if out.net.is_closing(key) => {}
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
        let rx = kept.get_or_insert_default();
        rx.reader = reader;
        rx.commands = commands;
        rx.raw.clear();
        rx.raw.extend_from_slice(left);
        if let Some(conn) = out.net.conn(key) {
            conn.rx = kept;
        }
    }

    /// Handles one frame or whole message. The unhandled rest of a message goes to `left`.
    fn event<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        event: Event<'_>,
        left: &mut Vec<u8>,
    ) -> Flow {
        let Some(conn) = out.net.at(index) else { return Flow::End };
        match event {
            Event::Close { code, .. } => {
                self.peer_closed(out, side, index, code);
                Flow::End
            }
            // The node's close frame is out: all but the peer's is too late.
            _ if conn.phase == Phase::Closing => Flow::On,
            Event::Ping(payload) => out.net.answer_ping(out.cx, index, payload),
            Event::Pong(_) => {
                if conn.flags.frame_ping() {
                    self.pong(out, index);
                }
                Flow::On
            }
            Event::Message { kind, deflated: false, data } => {
                self.whole_message(out, side, index, kind, data, left)
            }
            Event::Message { kind, deflated: true, data } => {
                let mut inflated = std::mem::take(&mut out.codec.inflated);
                inflated.clear();
                let result = out.net.inflate(out.cx, out.codec, index, kind, data, &mut inflated);
                let flow = match result {
                    Ok(()) => self.whole_message(out, side, index, kind, &inflated, left),
                    Err(fault) => {
                        self.fault(out, side, index, fault);
                        Flow::End
                    }
                };
                if inflated.capacity() <= SCRATCH_BYTES_MAX {
                    out.codec.inflated = inflated;
                }
                flow
            }
        }
    }

    fn whole_message<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        kind: MessageKind,
        data: &[u8],
        left: &mut Vec<u8>,
    ) -> Flow {
        let Some(conn) = out.net.at(index) else { return Flow::End };
        let is_echo = conn.phase == Phase::Echo;
        out.cx.counters().messages_received.add(1);
        if is_echo {
            return out.net.echo(out.cx, out.codec, index, kind, data);
        }
        let flow = self.message(out, side, index, data);
        left.extend_from_slice(flow.unhandled(data).unwrap_or_default());
        flow
    }

    /// Handles a message of the client protocol, or the rest of one.
    fn message<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        data: &[u8],
    ) -> Flow {
        if out.net.form(index).is_one_way() {
            return self.one_way_message(out, side, index, data);
        }
        if out.net.encoding(index) == Encoding::Protobuf {
            return self.commands(out, side, index, client::binary_commands(data));
        }
        // Text frames were checked as they came; a binary one may hold anything.
        match simdutf8::basic::from_utf8(data) {
            Ok(text) => self.commands(out, side, index, client::commands(text)),
            Err(_) => self.bad_request(out, side, index, "text that is not UTF-8"),
        }
    }

    /// Handles the connect request of a one-way client; later messages mean nothing.
    fn one_way_message<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        message: &[u8],
    ) -> Flow {
        let Some(conn) = out.net.at(index) else { return Flow::End };
        if conn.session != NONE || conn.phase != Phase::Client {
            return Flow::On;
        }
        let mut parts = message.splitn(2, |byte| *byte == BEFORE_LAST_EVENT_ID);
        let text = parts.next().map(std::str::from_utf8);
        let id = parts.next().map(std::str::from_utf8);
        let Some(Ok(Ok(mut request))) = text.map(|text| text.map(client::connect_request)) else {
            return self.bad_request(out, side, index, "this is no connect request");
        };
        // An id of another server is ignored.
        let positions = id.and_then(Result::ok).map(|id| format!("{{\"subs\":{id}}}"));
        let positions = positions.as_deref().unwrap_or_default();
        if let Ok(positions) = client::connect_request(positions) {
            for (channel, mut position) in positions.subs {
                position.recover = true;
                let requested = request.subs.entry(channel).or_default();
                if !requested.recover {
                    (requested.recover, requested.offset, requested.epoch) =
                        (true, position.offset, position.epoch);
                }
            }
        }
        if out.net.form(index).is_poll() {
            as_poll(&mut request);
        }
        out.cx.counters().method_connect.inc();
        let result = self.connect(out, side, index, 0, &request);
        self.finish_command(out, side, index, 0, "", result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sim::LinkId;
    use crate::proto::ws;
    use crate::shard::fixture::{Plan, Wired};

    /// A client's text frame arrives, and is read.
    fn text(of: &mut Wired, clients: &mut Clients, (link, key): (LinkId, ConnKey), text: &str) {
        let mut frame = Vec::new();
        ws::put_masked(&mut frame, ws::TEXT, text.as_bytes(), [1, 2, 3, 4]);
        arrives(of, clients, (link, key), &frame);
    }

    fn arrives(of: &mut Wired, clients: &mut Clients, to: (LinkId, ConnKey), bytes: &[u8]) {
        of.world.borrow_mut().write(to.0, bytes);
        of.after(1);
        let mut side = LocalSide::new(&of.cx);
        clients.read(&mut of.outlets(), &mut side, to.1);
    }

    #[test]
    fn a_message_becomes_commands_and_their_replies() {
        let mut of = Wired::new(Plan::default());
        let mut clients = Clients::new(&of.cx);
        let (link, key) = of.connect_client();
        text(&mut of, &mut clients, (link, key), r#"{"id":1,"connect":{}}"#);
        assert_eq!(clients.sessions.len(), 1);
        let got = of.received(link);
        assert!(got.contains(r#"{"id":1,"connect":{"client":""#), "{got}");
        assert!(of.net.conn(key).is_some_and(|conn| conn.rx.is_none()), "nothing is kept");
    }

    #[test]
    fn a_frame_in_two_parts_is_kept_until_it_is_whole() {
        let mut of = Wired::new(Plan::default());
        let mut clients = Clients::new(&of.cx);
        let to = of.connect_client();
        let mut frame = Vec::new();
        ws::put_masked(&mut frame, ws::TEXT, br#"{"id":1,"connect":{}}"#, [1, 2, 3, 4]);
        let (first, rest) = frame.split_at(9);
        arrives(&mut of, &mut clients, to, first);
        assert!(of.net.conn(to.1).is_some_and(|conn| conn.rx.is_some()));
        assert_eq!(clients.sessions.len(), 0);
        arrives(&mut of, &mut clients, to, rest);
        assert_eq!(clients.sessions.len(), 1);
    }

    #[test]
    fn text_that_is_no_command_ends_the_connection_with_a_close_frame() {
        let mut of = Wired::new(Plan::default());
        let mut clients = Clients::new(&of.cx);
        let (link, key) = of.connect_client();
        text(&mut of, &mut clients, (link, key), "hello");
        assert!(of.net.conn(key).is_some_and(|conn| conn.phase == Phase::Closing));
        assert_eq!(of.cx.counters().faults_bad_request.get(), 1);
        assert!(of.received(link).contains("bad request"));
    }
}
