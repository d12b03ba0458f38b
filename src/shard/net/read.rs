//! Reading: the input of connections, in order and within the share of a turn.
//!
//! Net yields input and keeps what can't be handled yet; the caller handles messages. So a connection
//! continues in its order: first kept commands, then commands of the separate up-link, then kept bytes,
//! then the socket.

use crate::base::form::Form;
use crate::base::id::ConnKey;
use crate::base::limits::{ECHO_BACKLOG_BYTES, TURN_FRAMES_MAX, TURN_READ_BYTES_MAX};
use crate::io::{Driver, Received};
use crate::proto::ws::{self, Fault, InflateFault, MessageKind, ReadRules, Reader};
use crate::shard::codec::Codec;
use crate::shard::context::Cx;
use crate::shard::flow::Flow;
use crate::shard::mail::emulation::{Emulated, Uptake};
use crate::shard::mail::post::Post;
use crate::shard::net::Net;
use crate::shard::net::record::{Phase, Rx};
use crate::shard::net::send::frame_of;

/// The share of a turn that one connection has left.
pub(crate) struct Budget {
    bytes: usize,
    frames: usize,
}

impl Budget {
    /// A whole share.
    pub(crate) fn of_turn() -> Self {
        Self { bytes: TURN_READ_BYTES_MAX, frames: TURN_FRAMES_MAX }
    }

    /// No share: only kept commands are handled.
    pub(crate) fn nothing() -> Self {
        Self { bytes: 0, frames: 0 }
    }

    /// Whether another frame may be handled.
    pub(crate) fn takes_frame(&self) -> bool {
        self.frames > 0
    }

    /// A frame was handled.
    pub(crate) fn count_frame(&mut self) {
        self.frames -= 1;
    }
}

/// The next input of a connection.
#[derive(Debug)]
pub(crate) enum Input<L> {
    /// Nothing now, or nothing may be read.
    Nothing,
    /// Input that was read before: [`Net::take_leftover`].
    Leftover,
    /// Bytes of the socket.
    Bytes {
        /// They go back by [`Net::give_back`].
        lease: L,
        /// The socket has no more now.
        is_last: bool,
    },
    /// The peer's FIN.
    Ended,
    /// The connection is broken.
    Failed,
    /// The driver has refused the peer's input, and answered it.
    Refused,
}

/// Input that was read before and couldn't be handled then.
#[derive(Debug)]
pub(crate) enum Leftover {
    /// Nothing.
    Nothing,
    /// Commands of a message, handled up to a byte offset.
    Commands {
        /// The message.
        message: Vec<u8>,
        /// The offset.
        at: usize,
    },
    /// Commands that came up the separate up-link.
    Emulated(Emulated),
    /// Bytes behind those of a pause.
    Bytes(Vec<u8>),
}

impl<D: Driver> Net<D> {
    /// Reads the next input of a connection. One that has had its share goes on the list for the next turn.
    pub(crate) fn next_input(
        &mut self,
        cx: &Cx,
        key: ConnKey,
        budget: &mut Budget,
    ) -> Input<D::Lease> {
        let Some(conn) = self.conns.get_mut(key.index as usize) else { return Input::Nothing };
        if conn.generation != key.generation || conn.flags.paused() {
            return Input::Nothing;
        }
        if budget.bytes == 0 || budget.frames == 0 {
            self.mark_ready(key);
            return Input::Nothing;
        }
        if conn.has_leftover() {
            return Input::Leftover;
        }
        let Some(socket) = &conn.socket else { return Input::Nothing };
        // Behind a FIN no further edge comes: read until the end itself is read.
        let ended = conn.flags.ended();
        let mut received = self.driver.recv(key, socket, budget.bytes);
        while ended && matches!(received, Received::Taken) {
            received = self.driver.recv(key, socket, budget.bytes);
        }
        match received {
            Received::Bytes { lease, short } => {
                // The driver may have read ahead more than is left.
                budget.bytes = budget.bytes.saturating_sub(lease.len());
                cx.counters().bytes_received.add(lease.len() as u64);
                Input::Bytes { lease, is_last: short && !ended }
            }
            Received::Blocked | Received::Taken => Input::Nothing,
            Received::Ended => Input::Ended,
            Received::Failed => Input::Failed,
            Received::Refused => Input::Refused,
        }
    }

    /// Reads the socket of a connection once, whatever its place in a turn.
    pub(crate) fn receive(&mut self, key: ConnKey) -> Option<Received<D::Lease>> {
        let conn = self.conns.get(key.index as usize)?;
        let socket = conn.socket.as_ref().filter(|_| conn.generation == key.generation)?;
        Some(self.driver.recv(key, socket, TURN_READ_BYTES_MAX))
    }

    /// Gives bytes of [`Self::next_input`] back to the driver.
    pub(crate) fn give_back(&mut self, lease: D::Lease) {
        self.driver.give_back(lease);
    }

    /// Whether input that was read before waits.
    pub(crate) fn has_leftover(&mut self, key: ConnKey) -> bool {
        self.conn(key).is_some_and(|conn| conn.has_leftover())
    }

    /// Takes the first part of the input that was read before.
    pub(crate) fn take_leftover(&mut self, key: ConnKey) -> Leftover {
        let Some(rx) = self.conn(key).and_then(|conn| conn.rx.as_mut()) else {
            return Leftover::Nothing;
        };
        if !rx.commands.is_empty() {
            let at = std::mem::take(&mut rx.commands_at);
            return Leftover::Commands { message: std::mem::take(&mut rx.commands), at };
        }
        match rx.emulated.pop_front() {
            Some(emulated) => Leftover::Emulated(emulated),
            None => Leftover::Bytes(std::mem::take(&mut rx.raw)),
        }
    }

    /// Keeps the commands of a message until the awaited answer has come; they are handled up to `at`.
    pub(crate) fn keep_commands(&mut self, key: ConnKey, message: Vec<u8>, at: usize) {
        if let Some(conn) = self.conn(key) {
            let rx = conn.rx.get_or_insert_default();
            (rx.commands, rx.commands_at) = (message, at);
        }
    }

    /// The kept commands are handled: a request of the separate up-link that brought them is answered.
    pub(crate) fn commands_done(&mut self, cx: &Cx, post: &mut Post, key: ConnKey) {
        let rx = self.conn(key).and_then(|conn| conn.rx.as_mut());
        if let Some(by) = rx.and_then(|rx| rx.waiting.take()) {
            self.answer_emulated(cx, post, by, Uptake::Taken);
        }
    }

    /// Frees the record of input when nothing of it is left.
    pub(crate) fn drop_empty_rx(&mut self, key: ConnKey) {
        if let Some(conn) = self.conn(key)
            && conn.rx.as_ref().is_some_and(|rx| rx.is_empty())
        {
            conn.rx = None;
        }
    }

    /// Handles bytes of a connection that aren't WebSocket frames, which may have effects. True: they are
    /// frames, and the caller has to handle them.
    pub(crate) fn take_bytes(
        &mut self,
        cx: &Cx,
        codec: &mut Codec,
        post: &mut Post,
        key: ConnKey,
        bytes: &mut [u8],
    ) -> bool {
        let Some(conn) = self.conn(key) else { return false };
        if conn.flags.deaf() {
            return false;
        }
        match conn.phase {
            Phase::Head => self.head(cx, codec, post, key, bytes),
            Phase::Body => self.web_body(cx, post, key, bytes),
            Phase::Asked | Phase::Lingering | Phase::Leaving => {}
            Phase::Client if conn.form.is_poll() => self.behind_poll(key, bytes),
            Phase::Client | Phase::Unusable if !conn.form.framing().is_websocket() => {
                self.behind_stream(cx, bytes);
            }
            Phase::Echo => {
                conn.since_tick = cx.tick();
                conn.flags.set_probed(false);
                return true;
            }
            Phase::Client | Phase::Unusable | Phase::Closing => return true,
        }
        false
    }

    /// The rules of a connection's WebSocket frames.
    pub(crate) fn read_rules(&self, cx: &Cx, index: u32) -> ReadRules {
        let form = self.form(index);
        let options = &cx.node.options;
        ReadRules {
            masked: true,
            deflate: form.framing().window_bits().is_some(),
            message_bytes_max: match form.is_one_way() {
                true => options.uni_websocket.message_bytes_max,
                false => options.message_bytes_max,
            },
        }
    }

    /// Takes the reader of a connection's frames, with a frame that has begun, and the record that it goes
    /// back to.
    pub(crate) fn take_reader(&mut self, key: ConnKey) -> (Option<Box<Rx>>, Reader) {
        let mut kept = self.conn(key).and_then(|conn| conn.rx.take());
        let reader = kept.as_mut().map_or_else(Reader::new, |rx| {
            debug_assert!(!rx.has_leftover());
            std::mem::take(&mut rx.reader)
        });
        (kept, reader)
    }

    /// Whether a close frame of the node is out, and the peer's is awaited.
    pub(crate) fn is_closing(&mut self, key: ConnKey) -> bool {
        self.conn(key).is_some_and(|conn| conn.phase == Phase::Closing)
    }

    /// Answers a ping frame.
    pub(crate) fn answer_ping(&mut self, cx: &Cx, index: u32, payload: &[u8]) -> Flow {
        self.enqueue(cx, index, ws::frame(ws::PONG, payload));
        self.echo_flow(index)
    }

    /// Sends a message of an echo connection back.
    pub(crate) fn echo(
        &mut self,
        cx: &Cx,
        codec: &mut Codec,
        index: u32,
        kind: MessageKind,
        data: &[u8],
    ) -> Flow {
        cx.counters().messages_sent.add(1);
        // A text goes back as text, whatever the form is otherwise.
        let form = Form::new(self.form(index).framing(), kind == MessageKind::Binary);
        let frame = frame_of(&mut codec.deflaters, &mut codec.replies, form, data);
        if codec.replies.capacity() > SCRATCH_BYTES_MAX {
            codec.replies = Vec::new();
        }
        self.enqueue(cx, index, frame);
        self.echo_flow(index)
    }

    /// Inflates a compressed message of a client.
    pub(crate) fn inflate(
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

    /// A peer that doesn't read its echoes isn't read further; it is never closed as slow.
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

/// A scratch buffer that grew beyond this for one large message is not kept.
pub(crate) const SCRATCH_BYTES_MAX: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::fixture::{Plan, Wired};

    #[test]
    fn input_comes_in_its_order_and_within_the_share_of_a_turn() {
        let mut of = Wired::new(Plan::default());
        let (link, key) = of.connect_client();
        of.world.borrow_mut().write(link, b"socket");
        of.after(1);
        let rx = Rx { commands: b"kept".to_vec(), raw: b"behind".to_vec(), ..Rx::default() };
        of.net.conn(key).unwrap().rx = Some(Box::new(rx));
        let mut budget = Budget::of_turn();
        assert!(matches!(of.net.next_input(&of.cx, key, &mut budget), Input::Leftover));
        let Leftover::Commands { message, at: 0 } = of.net.take_leftover(key) else { panic!() };
        of.net.keep_commands(key, message, 2);
        let kept = of.net.take_leftover(key);
        assert!(matches!(kept, Leftover::Commands { at: 2, .. }), "{kept:?}");
        assert!(matches!(of.net.take_leftover(key), Leftover::Bytes(raw) if raw == b"behind"));
        of.net.drop_empty_rx(key);
        let Input::Bytes { lease, .. } = of.net.next_input(&of.cx, key, &mut budget) else {
            panic!("the socket has bytes")
        };
        assert_eq!(&lease[..], b"socket");
        of.net.give_back(lease);
        let mut spent = Budget { bytes: 0, frames: 1 };
        assert!(matches!(of.net.next_input(&of.cx, key, &mut spent), Input::Nothing));
        assert!(of.net.conn(key).is_some_and(|conn| conn.flags.ready()), "the next turn reads it");
        assert_eq!(of.end(), []);
    }

    #[test]
    fn an_echo_connection_that_reads_nothing_is_paused() {
        let mut of = Wired::new(Plan::default());
        let (_, key) = of.connect();
        of.net.conn(key).unwrap().phase = Phase::Echo;
        let data = vec![b'x'; ECHO_BACKLOG_BYTES as usize];
        let flow = of.net.echo(&of.cx, &mut of.codec, key.index, MessageKind::Text, &data);
        assert_eq!(flow, Flow::Pause(0));
        let mut budget = Budget::of_turn();
        assert!(matches!(of.net.next_input(&of.cx, key, &mut budget), Input::Nothing));
        assert_eq!(of.end(), []);
    }
}
