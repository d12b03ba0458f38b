//! Queueing: frames, messages and replies for one connection. Nothing is written here; the turn's frames
//! leave together, in `write.rs`.
//!
//! While the flag `held` is set, frames go to a side table instead of the send queue: a client gets the
//! reply to its `connect` before anything else. Only connections that wait for that reply have an entry.

use crate::base::form::Form;
use crate::base::frame::SharedFrame;
use crate::base::limits::FRAME_JOIN_BYTES_MAX;
use crate::io::Driver;
use crate::proto::client::{self, Push, Reply};
use crate::proto::framing;
use crate::proto::ws::{self, Deflaters};
use crate::shard::codec::Codec;
use crate::shard::context::Cx;
use crate::shard::net::Net;

impl<D: Driver> Net<D> {
    /// Queues a frame and returns the bytes that wait for the connection then. The limit is checked when
    /// the turn's frames are written, so that a socket with room gets its chance first.
    pub(crate) fn enqueue(&mut self, cx: &Cx, index: u32, frame: SharedFrame) -> usize {
        let Some(conn) = self.conns.get_mut(index as usize) else { return 0 };
        if conn.socket.is_none() || conn.flags.finished() {
            return 0;
        }
        if conn.flags.held() {
            return self.hold(cx, index, frame);
        }
        let waits = self.queues.push(&mut conn.queue, frame, None);
        if !conn.flags.dirty() {
            conn.flags.set_dirty(true);
            let key = conn.key(index);
            self.dirty.push(key);
        }
        waits
    }

    /// Keeps a frame for the time behind the reply to `connect`.
    fn hold(&mut self, cx: &Cx, index: u32, frame: SharedFrame) -> usize {
        let held = self.held.entry(index).or_default();
        held.bytes += frame.len();
        held.frames.push(frame);
        let waits = held.bytes;
        if waits > cx.client.queue_bytes_max
            && let Some(conn) = self.conns.get(index as usize)
        {
            // The limit is checked in one place, which looks at dirty connections only.
            let key = conn.key(index);
            self.mark_dirty(key);
        }
        waits
    }

    /// From now on frames for a connection are held, until [`Self::take_held`].
    pub(crate) fn begin_holding(&mut self, index: u32) {
        if let Some(conn) = self.conns.get_mut(index as usize) {
            conn.flags.set_held(true);
        }
    }

    /// Frames go to the send queue again. Returns those that were held: the caller queues them behind the
    /// reply, or drops them with the session that they were for.
    pub(crate) fn take_held(&mut self, index: u32) -> Vec<SharedFrame> {
        if let Some(conn) = self.conns.get_mut(index as usize) {
            conn.flags.set_held(false);
        }
        if self.held.is_empty() {
            return Vec::new();
        }
        self.held.remove(&index).unwrap_or_default().frames
    }

    /// Bytes in the send queue of a connection.
    pub(crate) fn queued_for(&self, index: u32) -> usize {
        let queue = self.conns.get(index as usize).and_then(|conn| self.queues.get(conn.queue));
        queue.map_or(0, |queue| queue.bytes())
    }

    /// Bytes that are held for a connection.
    pub(crate) fn held_bytes(&self, index: u32) -> usize {
        self.held.get(&index).map_or(0, |held| held.bytes)
    }

    /// Queues the message in `codec.scratch`. Messages that one turn has for a connection share frames,
    /// unless they are deflated.
    pub(crate) fn enqueue_scratch(&mut self, cx: &Cx, codec: &mut Codec, index: u32) {
        let Some(conn) = self.conns.get(index as usize) else { return };
        if conn.socket.is_none() || conn.flags.finished() {
            return;
        }
        let (form, held) = (conn.form, conn.flags.held());
        cx.counters().messages_sent.add(1);
        let Codec { deflaters, replies, scratch, .. } = codec;
        let frame = match held {
            true => Some(frame_of(deflaters, replies, form, scratch)),
            false => deflated_frame_of(deflaters, replies, form, scratch),
        };
        if let Some(frame) = frame {
            self.enqueue(cx, index, frame);
            return;
        }
        let Some(conn) = self.conns.get_mut(index as usize) else { return };
        let in_flight = conn.flags.sending();
        self.queues.push_message(&mut conn.queue, scratch, form, in_flight, replies);
        let key = conn.key(index);
        self.mark_dirty(key);
    }

    /// Queues a push for one connection alone. A poll has no pushes, only its answer.
    pub(crate) fn push(
        &mut self,
        cx: &Cx,
        codec: &mut Codec,
        index: u32,
        channel: &str,
        push: &Push<'_>,
    ) {
        let form = self.form(index);
        debug_assert!(!form.is_poll(), "a push for a poll");
        codec.scratch.clear();
        client::put_push(&mut codec.scratch, form, channel, push);
        self.enqueue_scratch(cx, codec, index);
    }

    /// Queues a reply.
    pub(crate) fn reply(
        &mut self,
        cx: &Cx,
        codec: &mut Codec,
        index: u32,
        id: u32,
        reply: &Reply<'_>,
    ) {
        let encoding = self.encoding(index);
        codec.scratch.clear();
        encoding.put_reply(&mut codec.scratch, id, reply);
        self.enqueue_scratch(cx, codec, index);
    }

    /// Queues a reply with bytes in it that other replies have, too. They are copied only where a copy is
    /// cheaper than a frame of their own.
    pub(crate) fn reply_around(
        &mut self,
        cx: &Cx,
        codec: &mut Codec,
        index: u32,
        id: u32,
        reply: &Reply<'_>,
        shared: &SharedFrame,
    ) {
        let encoding = self.encoding(index);
        codec.scratch.clear();
        let at = encoding.put_reply(&mut codec.scratch, id, reply).unwrap_or(codec.scratch.len());
        if shared.len() <= FRAME_JOIN_BYTES_MAX {
            let rest = codec.scratch.split_off(at);
            codec.scratch.extend_from_slice(shared.bytes());
            codec.scratch.extend_from_slice(&rest);
            return self.enqueue_scratch(cx, codec, index);
        }
        let Some(form) = self.conns.get(index as usize).map(|conn| conn.form) else { return };
        cx.counters().messages_sent.add(1);
        let pieces = deflated_piece(codec, form, shared);
        let frames = match pieces {
            Some(piece) => around_piece(codec, form, at, piece),
            None => around_shared(codec, form, at, shared.clone()),
        };
        for frame in frames {
            if !frame.is_empty() {
                self.enqueue(cx, index, frame);
            }
        }
    }
}

/// Bytes that many replies have, deflated once for all of them; `None` where they go plain.
fn deflated_piece(codec: &mut Codec, form: Form, shared: &SharedFrame) -> Option<SharedFrame> {
    form.framing().window_bits()?;
    if let Some(piece) = codec.pieces.get(form, shared) {
        return piece;
    }
    codec.replies.clear();
    let pays = codec.deflaters.put_piece(&mut codec.replies, form, shared.bytes());
    let piece = pays.then(|| SharedFrame::part(&codec.replies));
    codec.pieces.insert(form, shared, piece.clone());
    piece
}

/// The message in `codec.scratch` with plain bytes in it, at `at`: a head, the bytes, and a tail.
fn around_shared(
    codec: &mut Codec,
    form: Form,
    at: usize,
    shared: SharedFrame,
) -> [SharedFrame; 3] {
    codec.replies.clear();
    framing::open(&mut codec.replies, form, codec.scratch.len() + shared.len());
    codec.replies.extend_from_slice(&codec.scratch[..at]);
    let head = SharedFrame::new(&codec.replies);
    codec.scratch.drain(..at);
    framing::close(&mut codec.scratch, form);
    [head, shared, SharedFrame::part(&codec.scratch)]
}

/// The same with a deflated piece: what stands around it goes as stored blocks.
fn around_piece(codec: &mut Codec, form: Form, at: usize, piece: SharedFrame) -> [SharedFrame; 3] {
    codec.replies.clear();
    let (mut head, mut tail) = (Vec::new(), Vec::new());
    Deflaters::put_stored(&mut head, &codec.scratch[..at]);
    Deflaters::put_stored(&mut tail, &codec.scratch[at..]);
    Deflaters::finish(&mut tail);
    let bytes = head.len() + piece.len() + tail.len();
    ws::put_deflated_header(&mut codec.replies, framing::opcode(form), bytes);
    codec.replies.extend_from_slice(&head);
    [SharedFrame::new(&codec.replies), piece, SharedFrame::part(&tail)]
}

/// A message as a frame of a form: deflated if the form is and that makes it shorter.
pub(crate) fn frame_of(
    deflaters: &mut Deflaters,
    scratch: &mut Vec<u8>,
    form: Form,
    message: &[u8],
) -> SharedFrame {
    deflated_frame_of(deflaters, scratch, form, message).unwrap_or_else(|| {
        scratch.clear();
        framing::put(scratch, form, message);
        SharedFrame::new(scratch)
    })
}

/// The same, or `None` where the message isn't to be deflated.
fn deflated_frame_of(
    deflaters: &mut Deflaters,
    scratch: &mut Vec<u8>,
    form: Form,
    message: &[u8],
) -> Option<SharedFrame> {
    scratch.clear();
    let opcode = framing::opcode(form);
    deflaters.put_frame(scratch, opcode, form, message).then(|| SharedFrame::new(scratch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::fixture::{Plan, Wired};

    #[test]
    fn frames_are_held_until_the_reply_has_gone() {
        let mut of = Wired::new(Plan::default());
        let (link, key) = of.connect_client();
        of.net.begin_holding(key.index);
        assert_eq!(of.net.enqueue(&of.cx, key.index, SharedFrame::new(b"later")), 5);
        assert_eq!(of.net.held_bytes(key.index), 5);
        assert_eq!(of.received(link), "");
        let held = of.net.take_held(key.index);
        of.net.enqueue(&of.cx, key.index, SharedFrame::new(b"reply "));
        for frame in held {
            of.net.enqueue(&of.cx, key.index, frame);
        }
        assert_eq!(of.received(link), "reply later");
        assert_eq!(of.end(), []);
    }

    #[test]
    fn held_frames_go_with_their_connection() {
        let mut of = Wired::new(Plan::default());
        let (_, key) = of.connect_client();
        of.net.begin_holding(key.index);
        of.net.enqueue(&of.cx, key.index, SharedFrame::new(b"never"));
        assert_eq!(of.end(), []);
    }

    #[test]
    fn shared_bytes_stand_in_the_middle_of_a_reply() {
        let mut of = Wired::new(Plan::default());
        let (link, key) = of.connect_client();
        for bytes in [3, 3000] {
            let list = format!("[{}]", "1".repeat(bytes));
            let shared = SharedFrame::part(list.as_bytes());
            let reply = Reply::History(client::Body::Elsewhere(shared.len()));
            of.net.reply_around(&of.cx, &mut of.codec, key.index, 7, &reply, &shared);
            let received = of.received(link);
            assert!(received.contains("\"id\":7") && received.contains(&list), "{received}");
        }
        assert_eq!(of.net.enqueue(&of.cx, key.index + 1, SharedFrame::new(b"x")), 0, "nobody");
        assert_eq!(of.end(), []);
    }
}
