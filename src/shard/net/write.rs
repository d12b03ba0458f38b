//! Queueing and writing: what a turn has for a connection leaves in one write.

use crate::base::form::Form;
use crate::base::frame::SharedFrame;
use crate::base::id::ConnKey;
use crate::base::limits::{ECHO_BACKLOG_BYTES, FRAME_JOIN_BYTES_MAX, SENDS_MAX};
use crate::io::{Driver, Sent, Write};
use crate::proto::client::{Disconnect, Reply};
use crate::proto::framing;
use crate::proto::ws::{self, Deflaters};
use crate::shard::Shard;
use crate::shard::codec::Codec;
use crate::shard::net::Net;
use crate::shard::net::conn::Phase;

impl<D: Driver> Shard<D> {
    /// Adds a frame to what waits for a connection. Whether that is too much is asked when the
    /// turn's frames are written; the answer is how many bytes wait now.
    pub(crate) fn enqueue(&mut self, index: u32, frame: SharedFrame) -> usize {
        let Some(conn) = self.net.conns.get_mut(index as usize) else { return 0 };
        if conn.socket.is_none() || conn.flags.finished() {
            return 0;
        }
        if conn.flags.held() {
            return self.hold(index, frame);
        }
        let waits = self.net.outboxes.push(&mut conn.outbox, frame, None);
        if !conn.flags.dirty() {
            conn.flags.set_dirty(true);
            let key = conn.key(index);
            self.net.dirty.push(key);
        }
        waits
    }

    /// Keeps a frame back that has to go behind the reply to `connect`.
    fn hold(&mut self, index: u32, frame: SharedFrame) -> usize {
        let Some(session) = self.session_of(index) else { return 0 };
        let Some(connecting) = session.connecting() else { return 0 };
        connecting.held_bytes += frame.len();
        connecting.held.push(frame);
        let waits = connecting.held_bytes;
        if waits > self.cx.client.queue_bytes_max {
            // It is judged where all are.
            let key = self.net.conns[index as usize].key(index);
            self.net.mark_dirty(key);
        }
        waits
    }

    /// Queues the message in `scratch`. Those that one turn has for a connection share frames, unless
    /// they go deflated.
    pub(crate) fn enqueue_scratch(&mut self, index: u32) {
        let Some(conn) = self.net.conns.get(index as usize) else { return };
        if conn.socket.is_none() || conn.flags.finished() {
            return;
        }
        let (form, held) = (conn.form, conn.flags.held());
        self.cx.node.counters[self.cx.id.index()].messages_sent.add(1);
        let Codec { deflaters, replies, scratch, .. } = &mut self.codec;
        let frame = match held {
            true => Some(frame_of(deflaters, replies, form, scratch)),
            false => deflated_frame_of(deflaters, replies, form, scratch),
        };
        if let Some(frame) = frame {
            self.enqueue(index, frame);
            return;
        }
        let Net { outboxes, conns, .. } = &mut self.net;
        let Codec { scratch, replies, .. } = &mut self.codec;
        let Some(conn) = conns.get_mut(index as usize) else { return };
        let in_flight = conn.flags.sending();
        outboxes.push_message(&mut conn.outbox, scratch, form, in_flight, replies);
        let key = conn.key(index);
        self.net.mark_dirty(key);
    }

    /// Queues a reply.
    pub(crate) fn reply(&mut self, index: u32, id: u32, reply: &Reply<'_>) {
        let encoding = self.net.encoding(index);
        self.codec.scratch.clear();
        encoding.put_reply(&mut self.codec.scratch, id, reply);
        self.enqueue_scratch(index);
    }

    /// Queues a reply with bytes in it that other replies have, too: they are not copied, unless they
    /// are few.
    pub(crate) fn reply_around(
        &mut self,
        index: u32,
        id: u32,
        reply: &Reply<'_>,
        shared: &SharedFrame,
    ) {
        let encoding = self.net.encoding(index);
        self.codec.scratch.clear();
        let at = encoding
            .put_reply(&mut self.codec.scratch, id, reply)
            .unwrap_or(self.codec.scratch.len());
        if shared.len() <= FRAME_JOIN_BYTES_MAX {
            let rest = self.codec.scratch.split_off(at);
            self.codec.scratch.extend_from_slice(shared.bytes());
            self.codec.scratch.extend_from_slice(&rest);
            return self.enqueue_scratch(index);
        }
        let Some(form) = self.net.conns.get(index as usize).map(|conn| conn.form) else { return };
        self.cx.counters().messages_sent.add(1);
        let pieces = self.deflated(form, shared);
        let shared = pieces.as_ref().unwrap_or(shared);
        self.codec.replies.clear();
        if pieces.is_some() {
            return self.reply_in_pieces(index, form, at, shared);
        }
        framing::open(&mut self.codec.replies, form, self.codec.scratch.len() + shared.len());
        self.codec.replies.extend_from_slice(&self.codec.scratch[..at]);
        let head = SharedFrame::new(&self.codec.replies);
        self.codec.scratch.drain(..at);
        framing::close(&mut self.codec.scratch, form);
        let tail = SharedFrame::part(&self.codec.scratch);
        self.enqueue(index, head);
        self.enqueue(index, shared.clone());
        if !tail.is_empty() {
            self.enqueue(index, tail);
        }
    }

    /// Bytes that many replies have, deflated once for all of them; `None` where they go plain.
    fn deflated(&mut self, form: Form, shared: &SharedFrame) -> Option<SharedFrame> {
        form.framing().window_bits()?;
        if let Some(piece) = self.codec.pieces.get(form, shared) {
            return piece;
        }
        self.codec.replies.clear();
        let pays = self.codec.deflaters.put_piece(&mut self.codec.replies, form, shared.bytes());
        let piece = pays.then(|| SharedFrame::part(&self.codec.replies));
        self.codec.pieces.insert(form, shared, piece.clone());
        piece
    }

    /// Queues the message in `scratch` with a deflated piece in it, at `at`.
    fn reply_in_pieces(&mut self, index: u32, form: Form, at: usize, piece: &SharedFrame) {
        let (mut head, mut tail) = (Vec::new(), Vec::new());
        Deflaters::put_stored(&mut head, &self.codec.scratch[..at]);
        Deflaters::put_stored(&mut tail, &self.codec.scratch[at..]);
        Deflaters::finish(&mut tail);
        let bytes = head.len() + piece.len() + tail.len();
        ws::put_deflated_header(&mut self.codec.replies, framing::opcode(form), bytes);
        self.codec.replies.extend_from_slice(&head);
        let head = SharedFrame::new(&self.codec.replies);
        self.enqueue(index, head);
        self.enqueue(index, piece.clone());
        self.enqueue(index, SharedFrame::part(&tail));
    }

    /// Writes to every connection that got something in this turn.
    pub(crate) fn write_dirty(&mut self) {
        let mut dirty = std::mem::take(&mut self.net.dirty);
        for keys in dirty.chunks(SENDS_MAX) {
            self.write_all(keys);
        }
        dirty.clear();
        self.net.over.clear();
        // Closing for slowness may have made some dirty again: they go in the next turn.
        if self.net.dirty.is_empty() {
            self.net.dirty = dirty;
        }
    }

    /// Writes what waits for these connections, with one call of the driver.
    fn write_all(&mut self, keys: &[ConnKey]) {
        let mut writing = std::mem::take(&mut self.net.writing);
        let mut results = std::mem::take(&mut self.net.sent);
        for key in keys {
            let Some(conn) = self.net.conn(*key) else { continue };
            conn.flags.set_dirty(false);
            let (flags, at, open) = (conn.flags, conn.outbox, conn.socket.is_some());
            let waits = self.net.outboxes.get(at).is_some_and(|outbox| !outbox.is_empty());
            if waits && !flags.blocked() && !flags.sending() && open {
                writing.push(*key);
            } else {
                self.after_write(*key);
            }
        }
        let Net { driver, conns, outboxes, .. } = &mut self.net;
        let writes = writing.iter().filter_map(|key| {
            let conn = &conns[key.index as usize];
            let (frames, skip) = outboxes.get(conn.outbox)?.unsent();
            Some(Write { key: *key, socket: conn.socket.as_ref()?, frames, skip })
        });
        driver.send_all(writes, &mut results);
        assert_eq!(results.len(), writing.len(), "each write has an answer");
        for (key, sent) in writing.drain(..).zip(results.drain(..)) {
            if self.wrote(key, sent) {
                self.write(key);
            }
        }
        (self.net.writing, self.net.sent) = (writing, results);
    }

    /// Writes what waits for a connection, as far as its socket takes it.
    pub(crate) fn write(&mut self, key: ConnKey) {
        if self.write_on(key) {
            self.after_write(key);
        }
    }

    /// The same, and nothing of what follows from it. Whether the connection is still there.
    fn write_on(&mut self, key: ConnKey) -> bool {
        loop {
            let Some(conn) = self.net.conns.get(key.index as usize) else { return false };
            if conn.flags.blocked() || conn.flags.sending() {
                return true;
            }
            let (Some(socket), Some(outbox)) = (&conn.socket, self.net.outboxes.get(conn.outbox))
            else {
                return true;
            };
            if outbox.is_empty() {
                return true;
            }
            let (frames, skip) = outbox.unsent();
            let sent = self.net.driver.send(key, socket, frames, skip);
            if !self.wrote(key, sent) {
                return false;
            }
        }
    }

    /// What came of a write. Whether there is more to do for the connection.
    fn wrote(&mut self, key: ConnKey, sent: Sent) -> bool {
        let index = key.index;
        let Some(conn) = self.net.conn(key) else { return false };
        let at = conn.outbox;
        self.cx.counters().writes.add(1);
        match sent {
            Sent::Bytes(bytes) => {
                self.cx.counters().bytes_sent.add(bytes as u64);
                self.net.outboxes.advance(at, bytes);
                if let Some(outbox) = self.net.outboxes.get_mut(at) {
                    outbox.blocked_tick = None;
                }
            }
            Sent::Blocked => {
                self.cx.counters().writes_blocked.add(1);
                self.net.conns[index as usize].flags.set_blocked(true);
                self.waits_for_socket(index, at);
            }
            Sent::Pending => {
                // A peer that takes nothing is one whose send doesn't end.
                self.net.conns[index as usize].flags.set_sending(true);
                if let Some(outbox) = self.net.outboxes.get_mut(at) {
                    outbox.set_in_flight(true);
                }
                self.waits_for_socket(index, at);
            }
            Sent::Failed => {
                self.release(index, true);
                return false;
            }
        }
        true
    }

    /// The time of a write that doesn't get through begins, unless it has begun.
    fn waits_for_socket(&mut self, index: u32, outbox: u32) {
        let tick = self.cx.tick();
        if let Some(outbox) = self.net.outboxes.get_mut(outbox) {
            outbox.blocked_tick.get_or_insert(tick);
        }
        self.schedule(index);
    }

    /// A send that took its time has ended.
    pub(crate) fn sent(&mut self, key: ConnKey, bytes: Option<u32>) {
        let Some(conn) = self.net.conn(key) else { return };
        conn.flags.set_sending(false);
        let at = conn.outbox;
        if let Some(outbox) = self.net.outboxes.get_mut(at) {
            outbox.set_in_flight(false);
        }
        match bytes {
            Some(bytes) => {
                self.cx.counters().bytes_sent.add(u64::from(bytes));
                self.net.outboxes.advance(at, bytes as usize);
                if let Some(outbox) = self.net.outboxes.get_mut(at)
                    && bytes > 0
                {
                    outbox.blocked_tick = None;
                }
                self.net.mark_dirty(key);
            }
            None => self.release(key.index, true),
        }
    }

    /// What follows from how much still waits.
    fn after_write(&mut self, key: ConnKey) {
        self.judge_queue(key, true);
    }

    /// The same. `may_try`: the socket of one for which too much waits may have room by now, and was not tried.
    fn judge_queue(&mut self, key: ConnKey, may_try: bool) {
        let queue_bytes_max = self.cx.client.queue_bytes_max;
        let Some(conn) = self.net.conn(key) else { return };
        let (phase, flags, at) = (conn.phase, conn.flags, conn.outbox);
        let held = match flags.held() {
            true => self.session_of(key.index).and_then(|s| Some(s.connecting()?.held_bytes)),
            false => None,
        };
        let waits =
            self.net.outboxes.get(at).map_or(0, |outbox| outbox.bytes()) + held.unwrap_or(0);
        if waits == 0 {
            if let Some(conn) = self.net.conns.get_mut(key.index as usize) {
                self.net.outboxes.release(&mut conn.outbox);
            }
            if phase == Phase::Lingering && !flags.finished() {
                self.finish(key.index);
            }
        }
        match phase {
            // What a send is about stays until it ends; then it is asked again.
            Phase::Client
                if waits > queue_bytes_max
                    && !flags.sending()
                    && (held.is_some() || !self.made_room(key.index, at)) =>
            {
                if may_try && flags.blocked() {
                    // The news of it is behind others that this turn has no time for.
                    self.net.conns[key.index as usize].flags.set_blocked(false);
                    if self.write_on(key) {
                        self.judge_queue(key, false);
                    }
                    return;
                }
                self.cx.counters().closed_slow.add(1);
                let over = self.net.over.iter().find(|(conn, _)| *conn == key.index);
                if let Some((_, namespace)) = over {
                    self.slow_in(*namespace).closed.add(1);
                }
                self.net.outboxes.drop_unsent(at);
                self.disconnect(key.index, Disconnect::Slow);
            }
            Phase::Echo if flags.paused() && waits < ECHO_BACKLOG_BYTES as usize => {
                self.resume(key)
            }
            Phase::Head if flags.paused() && waits < ECHO_BACKLOG_BYTES as usize => {
                self.next_web_request(key);
            }
            _ => {}
        }
    }

    /// Reads a connection again that was paused.
    pub(crate) fn resume(&mut self, key: ConnKey) {
        if let Some(conn) = self.net.conn(key) {
            conn.flags.set_paused(false);
            self.net.mark_ready(key);
        }
    }
}

/// A message as a frame of a form: deflated if it goes so and that pays.
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

/// The same, if it goes deflated.
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
