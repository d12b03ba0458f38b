//! Writing: frames that a turn has queued for a connection leave in one write.

use crate::base::id::ConnKey;
use crate::base::limits::{ECHO_BACKLOG_BYTES, SENDS_MAX};
use crate::io::{Driver, Sent, Write};
use crate::proto::client::Disconnect;
use crate::shard::Shard;
use crate::shard::net::Net;
use crate::shard::net::record::Phase;

impl<D: Driver> Shard<D> {
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
            let (flags, at, open) = (conn.flags, conn.queue, conn.socket.is_some());
            let waits = self.net.queues.get(at).is_some_and(|queue| !queue.is_empty());
            if waits && !flags.blocked() && !flags.sending() && open {
                writing.push(*key);
            } else {
                self.after_write(*key);
            }
        }
        let Net { driver, conns, queues, .. } = &mut self.net;
        let writes = writing.iter().filter_map(|key| {
            let conn = &conns[key.index as usize];
            let (frames, skip) = queues.get(conn.queue)?.unsent();
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
            let (Some(socket), Some(queue)) = (&conn.socket, self.net.queues.get(conn.queue))
            else {
                return true;
            };
            if queue.is_empty() {
                return true;
            }
            let (frames, skip) = queue.unsent();
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
        let at = conn.queue;
        self.cx.counters().writes.add(1);
        match sent {
            Sent::Bytes(bytes) => {
                self.cx.counters().bytes_sent.add(bytes as u64);
                self.net.queues.advance(at, bytes);
                if let Some(queue) = self.net.queues.get_mut(at) {
                    queue.blocked_tick = None;
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
                if let Some(queue) = self.net.queues.get_mut(at) {
                    queue.set_in_flight(true);
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
    fn waits_for_socket(&mut self, index: u32, queue: u32) {
        let tick = self.cx.tick();
        if let Some(queue) = self.net.queues.get_mut(queue) {
            queue.blocked_tick.get_or_insert(tick);
        }
        self.schedule(index);
    }

    /// A send that took its time has ended.
    pub(crate) fn sent(&mut self, key: ConnKey, bytes: Option<u32>) {
        let Some(conn) = self.net.conn(key) else { return };
        conn.flags.set_sending(false);
        let at = conn.queue;
        if let Some(queue) = self.net.queues.get_mut(at) {
            queue.set_in_flight(false);
        }
        match bytes {
            Some(bytes) => {
                self.cx.counters().bytes_sent.add(u64::from(bytes));
                self.net.queues.advance(at, bytes as usize);
                if let Some(queue) = self.net.queues.get_mut(at)
                    && bytes > 0
                {
                    queue.blocked_tick = None;
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
        let (phase, flags, at) = (conn.phase, conn.flags, conn.queue);
        let held = flags.held().then(|| self.net.held_bytes(key.index));
        let waits = self.net.queues.get(at).map_or(0, |queue| queue.bytes()) + held.unwrap_or(0);
        if waits == 0 {
            if let Some(conn) = self.net.conns.get_mut(key.index as usize) {
                self.net.queues.release(&mut conn.queue);
            }
            if phase == Phase::Lingering && !flags.finished() {
                self.net.finish(key.index);
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
                self.net.queues.drop_unsent(at);
                self.disconnect(key.index, Disconnect::Slow);
            }
            Phase::Echo if flags.paused() && waits < ECHO_BACKLOG_BYTES as usize => {
                self.net.resume(key)
            }
            Phase::Head if flags.paused() && waits < ECHO_BACKLOG_BYTES as usize => {
                self.next_web_request(key);
            }
            _ => {}
        }
    }
}

impl<D: Driver> Net<D> {
    /// Reads a connection again that was paused.
    pub(crate) fn resume(&mut self, key: ConnKey) {
        if let Some(conn) = self.conn(key) {
            conn.go_on();
            self.mark_ready(key);
        }
    }

    /// All is sent: the FIN.
    pub(crate) fn finish(&mut self, index: u32) {
        let Some(conn) = self.conns.get_mut(index as usize) else { return };
        conn.flags.set_finished(true);
        let key = conn.key(index);
        if let Some(socket) = &conn.socket {
            self.driver.finish(key, socket);
        }
    }
}
