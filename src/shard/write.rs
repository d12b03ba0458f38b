//! Queueing and writing: what a turn has for a connection leaves in one write.

use super::*;
use crate::io::Sent;
use crate::proto::client::Disconnect;

impl<D: Driver> Shard<D> {
    /// Adds a frame to what waits for a connection. Whether that is too much is asked when the
    /// turn's frames are written.
    pub(super) fn enqueue(&mut self, index: u32, frame: SharedFrame) {
        let Some(conn) = self.conns.get_mut(index as usize) else { return };
        if conn.socket.is_none() || conn.flags.finished() {
            return;
        }
        self.outboxes.push(&mut conn.outbox, frame);
        if !conn.flags.dirty() {
            conn.flags.set_dirty(true);
            let key = conn.key(index);
            self.dirty.push(key);
        }
    }

    /// Queues the message in `scratch`. Those that one turn has for a connection share text frames.
    pub(super) fn enqueue_scratch(&mut self, index: u32) {
        let Some(conn) = self.conns.get_mut(index as usize) else { return };
        if conn.socket.is_none() || conn.flags.finished() {
            return;
        }
        let in_flight = conn.flags.sending();
        self.outboxes.push_message(&mut conn.outbox, &self.scratch, in_flight, &mut self.replies);
        let key = conn.key(index);
        self.mark_dirty(key);
    }

    /// Writes to every connection that got something in this turn.
    pub(super) fn write_dirty(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for key in dirty.drain(..) {
            let Some(conn) = self.conn(key) else { continue };
            conn.flags.set_dirty(false);
            self.write(key);
        }
        // Closing for slowness may have made some dirty again: they go in the next turn.
        if self.dirty.is_empty() {
            self.dirty = dirty;
        }
    }

    /// Writes what waits for a connection, as far as its socket takes it.
    pub(super) fn write(&mut self, key: ConnKey) {
        loop {
            let Some(conn) = self.conns.get(key.index as usize) else { return };
            if conn.flags.blocked() || conn.flags.sending() {
                break;
            }
            let at = conn.outbox;
            let (Some(socket), Some(outbox)) = (&conn.socket, self.outboxes.get(at)) else { break };
            if outbox.is_empty() {
                break;
            }
            let (frames, skip) = outbox.unsent();
            let sent = self.driver.send(key, socket, frames, skip);
            self.counters().writes.add(1);
            match sent {
                Sent::Bytes(bytes) => {
                    self.counters().bytes_sent.add(bytes as u64);
                    self.outboxes.advance(at, bytes);
                    if let Some(outbox) = self.outboxes.get_mut(at) {
                        outbox.blocked_tick = None;
                    }
                }
                Sent::Blocked => {
                    self.counters().writes_blocked.add(1);
                    self.conns[key.index as usize].flags.set_blocked(true);
                    self.waits_for_socket(key.index, at);
                }
                Sent::Pending => {
                    // A peer that takes nothing is one whose send doesn't end.
                    self.conns[key.index as usize].flags.set_sending(true);
                    self.waits_for_socket(key.index, at);
                }
                Sent::Failed => {
                    self.release(key.index, true);
                    return;
                }
            }
        }
        self.after_write(key);
    }

    /// The time of a write that doesn't get through begins, unless it has begun.
    fn waits_for_socket(&mut self, index: u32, outbox: u32) {
        let tick = self.tick();
        if let Some(outbox) = self.outboxes.get_mut(outbox) {
            outbox.blocked_tick.get_or_insert(tick);
        }
        self.schedule(index);
    }

    /// A send that took its time has ended.
    pub(super) fn sent(&mut self, key: ConnKey, bytes: Option<u32>) {
        let Some(conn) = self.conn(key) else { return };
        conn.flags.set_sending(false);
        let at = conn.outbox;
        match bytes {
            Some(bytes) => {
                self.counters().bytes_sent.add(u64::from(bytes));
                self.outboxes.advance(at, bytes as usize);
                if let Some(outbox) = self.outboxes.get_mut(at)
                    && bytes > 0
                {
                    outbox.blocked_tick = None;
                }
                self.mark_dirty(key);
            }
            None => self.release(key.index, true),
        }
    }

    /// What follows from how much still waits.
    fn after_write(&mut self, key: ConnKey) {
        let queue_bytes_max = self.node.rules.client.queue_bytes_max;
        let Some(conn) = self.conn(key) else { return };
        let (phase, paused, finished) = (conn.phase, conn.flags.paused(), conn.flags.finished());
        let sending = conn.flags.sending();
        let at = conn.outbox;
        let waits = self.outboxes.get(at).map_or(0, |outbox| outbox.bytes());
        if waits == 0 {
            if let Some(conn) = self.conns.get_mut(key.index as usize) {
                self.outboxes.release(&mut conn.outbox);
            }
            if phase == Phase::Lingering && !finished {
                self.finish(key.index);
            }
        }
        match phase {
            // What a send is about stays until it ends; then it is asked again.
            Phase::Client if waits > queue_bytes_max && !sending => {
                self.counters().closed_slow.add(1);
                self.outboxes.drop_unsent(at);
                self.disconnect(key.index, Disconnect::Slow);
            }
            Phase::Echo if paused && waits < ECHO_BACKLOG_BYTES as usize => self.resume(key),
            _ => {}
        }
    }

    /// Reads a connection again that was paused.
    pub(super) fn resume(&mut self, key: ConnKey) {
        if let Some(conn) = self.conn(key) {
            conn.flags.set_paused(false);
            self.mark_ready(key);
        }
    }

    /// The node is short of memory: the largest queue here goes.
    pub(super) fn give_up_largest(&mut self) {
        let largest = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.socket.is_some())
            .map(|(index, conn)| {
                let waits = self.outboxes.get(conn.outbox).map_or(0, |outbox| outbox.bytes());
                let kept = conn.rx.as_ref().map_or(0, |rx| {
                    rx.raw.capacity() + rx.commands.capacity() + rx.reader.bytes_held()
                });
                (waits + kept, index as u32)
            })
            .max();
        if let Some((bytes, index)) = largest
            && bytes >= GIVE_UP_BYTES_MIN
        {
            self.counters().closed_memory.add(1);
            self.release(index, true);
        }
    }
}

/// Closing a connection with less than this doesn't help against a shortage of memory.
const GIVE_UP_BYTES_MIN: usize = 64 * 1024;
