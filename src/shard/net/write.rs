//! Writing: frames that a turn has queued for a connection leave in one write.

use crate::base::id::ConnKey;
use crate::base::limits::ECHO_BACKLOG_BYTES;
use crate::io::{Driver, Sent, Write};
use crate::session::WaitsFor;
use crate::shard::codec::Codec;
use crate::shard::context::Cx;
use crate::shard::mail::post::Post;
use crate::shard::net::Net;
use crate::shard::net::effects::Effect;
use crate::shard::net::record::{Flags, Phase};

impl<D: Driver> Net<D> {
    /// Begins to write what the turn has queued by taking the list of connections.
    pub(crate) fn take_dirty(&mut self) -> Vec<ConnKey> {
        std::mem::take(&mut self.dirty)
    }

    /// The turn's writes are over. Closing for slowness may have made some connections dirty again: they are
    /// written in the next turn.
    pub(crate) fn end_writes(&mut self, mut dirty: Vec<ConnKey>) {
        dirty.clear();
        self.over.clear();
        if self.dirty.is_empty() {
            self.dirty = dirty;
        }
    }

    /// Puts a connection on the list for the next [`Self::send_listed`]. False: it has gone, or nothing can be
    /// written to it now.
    pub(crate) fn list_to_write(&mut self, key: ConnKey) -> bool {
        let Some(conn) = self.conn(key) else { return false };
        conn.flags.set_dirty(false);
        let (flags, at, open) = (conn.flags, conn.queue, conn.socket.is_some());
        let waits = self.queues.get(at).is_some_and(|queue| !queue.is_empty());
        let may = waits && !flags.blocked() && !flags.sending() && open;
        if may {
            self.writing.push(key);
        }
        may
    }

    /// Writes to the listed connections with one call of the driver. The results are to be taken by
    /// [`Self::take_sent`], in the same order.
    pub(crate) fn send_listed(&mut self) {
        let Self { driver, conns, queues, writing, sent, .. } = self;
        let writes = writing.iter().filter_map(|key| {
            let conn = &conns[key.index as usize];
            let (frames, skip) = queues.get(conn.queue)?.unsent();
            Some(Write { key: *key, socket: conn.socket.as_ref()?, frames, skip })
        });
        driver.send_all(writes, sent);
        assert_eq!(sent.len(), writing.len(), "each write has a result");
    }

    /// Handles the result `at` of [`Self::send_listed`]: what still waits is written as far as the socket takes
    /// it. False behind the last one.
    pub(crate) fn take_sent(
        &mut self,
        cx: &Cx,
        codec: &mut Codec,
        post: &mut Post,
        at: usize,
    ) -> bool {
        let (Some(key), Some(sent)) = (self.writing.get(at).copied(), self.sent.get(at).copied())
        else {
            self.writing.clear();
            self.sent.clear();
            return false;
        };
        if self.wrote(cx, post, key, sent) {
            self.write(cx, codec, post, key);
        }
        true
    }

    /// Writes what waits for a connection, as far as its socket takes it.
    pub(crate) fn write(&mut self, cx: &Cx, codec: &mut Codec, post: &mut Post, key: ConnKey) {
        if self.write_on(cx, post, key) {
            self.after_write(cx, codec, post, key);
        }
    }

    /// Writes what waits for a connection whose socket is closed next: the close sends the FIN, so nothing here does.
    pub(crate) fn write_last(&mut self, cx: &Cx, post: &mut Post, key: ConnKey) {
        self.write_on(cx, post, key);
    }

    /// Draws the consequences of how much still waits for a connection.
    pub(crate) fn after_write(
        &mut self,
        cx: &Cx,
        codec: &mut Codec,
        post: &mut Post,
        key: ConnKey,
    ) {
        let Some(conn) = self.conn(key) else { return };
        let (phase, flags, at) = (conn.phase, conn.flags, conn.queue);
        let waits = self.waits_for(key.index, flags, at);
        if waits == 0 {
            if let Some(conn) = self.conns.get_mut(key.index as usize) {
                self.queues.release(&mut conn.queue);
            }
            if phase == Phase::Lingering && !flags.finished() {
                self.finish(key.index);
            }
        }
        match phase {
            Phase::Client if waits > cx.client.queue_bytes_max => self.limit_queue(cx, post, key),
            Phase::Echo if flags.paused() && waits < ECHO_BACKLOG_BYTES as usize => {
                self.resume(key);
            }
            Phase::Head if flags.paused() && waits < ECHO_BACKLOG_BYTES as usize => {
                self.next_web_request(cx, codec, post, key);
            }
            _ => {}
        }
    }

    /// Bytes that wait for a connection, those behind the reply to `connect` included.
    fn waits_for(&self, index: u32, flags: Flags, at: u32) -> usize {
        let queued = self.queues.get(at).map_or(0, |queue| queue.bytes());
        match flags.held() {
            true => queued + self.held_bytes(index),
            false => queued,
        }
    }

    /// A client for which more waits than may is closed, unless dropping publications makes room, or its
    /// socket takes some.
    fn limit_queue(&mut self, cx: &Cx, post: &mut Post, key: ConnKey) {
        if self.is_over(cx, key) {
            let Some(conn) = self.conn(key) else { return };
            if conn.flags.blocked() {
                // The socket may have room by now: the event that reports it is behind others, for which
                // this turn has no time.
                conn.flags.set_blocked(false);
                if !self.write_on(cx, post, key) || !self.still_over(cx, key) {
                    return;
                }
            }
            self.close_as_slow(cx, key);
        }
    }

    /// Whether too much waits for a client although everything was dropped that may be. Nothing is dropped
    /// while a driver has the frames: the question comes up again when that send has ended.
    fn is_over(&mut self, cx: &Cx, key: ConnKey) -> bool {
        let Some(conn) = self.conn(key) else { return false };
        let (flags, at) = (conn.flags, conn.queue);
        self.waits_for(key.index, flags, at) > cx.client.queue_bytes_max
            && !flags.sending()
            && (flags.held() || !self.made_room(cx, key.index, at))
    }

    /// The same after another attempt to write, which may have emptied the queue.
    fn still_over(&mut self, cx: &Cx, key: ConnKey) -> bool {
        let Some(conn) = self.conns.get_mut(key.index as usize) else { return false };
        if self.queues.get(conn.queue).is_some_and(|queue| queue.is_empty()) {
            self.queues.release(&mut conn.queue);
        }
        self.is_over(cx, key)
    }

    /// Drops what hasn't begun to go, and has the client closed with 3008.
    fn close_as_slow(&mut self, cx: &Cx, key: ConnKey) {
        let Some(at) = self.conn(key).map(|conn| conn.queue) else { return };
        cx.counters().closed_slow.add(1);
        let over = self.over.iter().find(|(conn, _)| *conn == key.index);
        if let Some((_, namespace)) = over {
            cx.of_namespace(*namespace).closed.add(1);
        }
        self.queues.drop_unsent(at);
        self.effects.push_back(Effect::Slow(key.index));
    }

    /// The same, and nothing of what follows from it. Whether the connection is still there.
    fn write_on(&mut self, cx: &Cx, post: &mut Post, key: ConnKey) -> bool {
        loop {
            let Some(conn) = self.conns.get(key.index as usize) else { return false };
            if conn.flags.blocked() || conn.flags.sending() {
                return true;
            }
            let (Some(socket), Some(queue)) = (&conn.socket, self.queues.get(conn.queue)) else {
                return true;
            };
            if queue.is_empty() {
                return true;
            }
            let (frames, skip) = queue.unsent();
            let sent = self.driver.send(key, socket, frames, skip);
            if !self.wrote(cx, post, key, sent) {
                return false;
            }
        }
    }

    /// What came of a write. Whether there is more to do for the connection.
    fn wrote(&mut self, cx: &Cx, post: &mut Post, key: ConnKey, sent: Sent) -> bool {
        let index = key.index;
        let Some(conn) = self.conn(key) else { return false };
        let at = conn.queue;
        cx.counters().writes.add(1);
        match sent {
            Sent::Bytes(bytes) => {
                cx.counters().bytes_sent.add(bytes as u64);
                self.queues.advance(at, bytes);
                if let Some(queue) = self.queues.get_mut(at) {
                    queue.blocked_tick = None;
                }
            }
            Sent::Blocked => {
                cx.counters().writes_blocked.add(1);
                self.conns[index as usize].flags.set_blocked(true);
                self.waits_for_socket(cx, index, at);
            }
            Sent::Pending => {
                // A peer that takes nothing is one whose send doesn't end.
                self.conns[index as usize].flags.set_sending(true);
                if let Some(queue) = self.queues.get_mut(at) {
                    queue.set_in_flight(true);
                }
                self.waits_for_socket(cx, index, at);
            }
            Sent::Failed => {
                self.release(cx, post, index, true);
                return false;
            }
        }
        true
    }

    /// The time of a write that doesn't get through begins, unless it has begun.
    fn waits_for_socket(&mut self, cx: &Cx, index: u32, queue: u32) {
        let tick = cx.tick();
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.blocked_tick.get_or_insert(tick);
        }
        self.schedule(cx, index);
    }

    /// A send that took its time has ended.
    pub(crate) fn sent(&mut self, cx: &Cx, post: &mut Post, key: ConnKey, bytes: Option<u32>) {
        let Some(conn) = self.conn(key) else { return };
        conn.flags.set_sending(false);
        let at = conn.queue;
        if let Some(queue) = self.queues.get_mut(at) {
            queue.set_in_flight(false);
        }
        match bytes {
            Some(bytes) => {
                cx.counters().bytes_sent.add(u64::from(bytes));
                self.queues.advance(at, bytes as usize);
                if let Some(queue) = self.queues.get_mut(at)
                    && bytes > 0
                {
                    queue.blocked_tick = None;
                }
                // While the shard settles, a socket that takes nothing is not tried again: the same send
                // would be under way at the end of each turn.
                if bytes > 0 || !cx.settles {
                    self.mark_dirty(key);
                }
            }
            None => self.release(cx, post, key.index, true),
        }
    }
}

impl<D: Driver> Net<D> {
    /// Stops the commands of a connection, and its reading, until what it waits for is there.
    pub(crate) fn pause(&mut self, cx: &Cx, index: u32, waits: WaitsFor) {
        cx.counters().commands_paused.add(1);
        if let Some(conn) = self.conns.get_mut(index as usize) {
            conn.flags.set_paused(true);
            conn.waits = Some(waits);
        }
    }

    /// Reads a connection again that was paused.
    pub(crate) fn resume(&mut self, key: ConnKey) {
        if let Some(conn) = self.conn(key) {
            conn.go_on();
            self.mark_ready(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::frame::SharedFrame;
    use crate::shard::fixture::{Plan, Wired};

    #[test]
    fn a_full_socket_keeps_the_rest_until_it_has_room() {
        let mut of = Wired::new(Plan::default());
        let (link, key) = of.connect_client();
        of.net.enqueue(&of.cx, key.index, SharedFrame::new(&[b'x'; 6000]));
        let first = of.received(link);
        let conn = of.net.conn(key).unwrap();
        assert!(conn.flags.blocked() && (1..6000).contains(&first.len()));
        conn.flags.set_blocked(false);
        of.net.mark_dirty(key);
        assert_eq!(first.len() + of.received(link).len(), 6000);
        assert_eq!(of.net.queues.in_use(), 0, "an idle connection has no queue");
        assert_eq!(of.end(), []);
    }

    #[test]
    fn a_client_for_which_too_much_waits_is_slow() {
        let mut plan = Plan::default();
        plan.client.queue_bytes_max = 5000;
        let mut of = Wired::new(plan);
        let (_, key) = of.connect_client();
        of.net.enqueue(&of.cx, key.index, SharedFrame::new(&[b'x'; 9000]));
        of.flush();
        assert!(of.net.effects.is_empty(), "its socket has taken some");
        of.net.enqueue(&of.cx, key.index, SharedFrame::new(&[b'y'; 9000]));
        of.flush();
        assert!(
            matches!(of.net.effects.pop_front(), Some(Effect::Slow(index)) if index == key.index)
        );
        assert_eq!(of.cx.counters().closed_slow.get(), 1);
        assert_eq!(of.end(), []);
    }
}
