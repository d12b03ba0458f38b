//! The connection's half of every ending: what is queued goes out, then the FIN, then the socket is closed,
//! and the record waits on the list of leaving connections until nobody counts on it any more.

use std::sync::atomic::Ordering;

use crate::io::Driver;
use crate::shard::context::Cx;
use crate::shard::mail::post::Post;
use crate::shard::net::Net;
use crate::shard::net::record::{NONE, Phase};

impl<D: Driver> Net<D> {
    /// Lets what is queued out, sends the FIN, and waits for the peer's: closing at once with bytes
    /// unread would reset the connection and destroy what the peer has not read yet.
    pub(crate) fn linger(&mut self, cx: &Cx, post: &mut Post, index: u32) {
        let tick = cx.tick();
        let Some(conn) = self.conns.get_mut(index as usize) else { return };
        if conn.socket.is_none() {
            return;
        }
        conn.phase = Phase::Lingering;
        conn.since_tick = tick;
        conn.flags.set_deaf(true);
        conn.go_on();
        let rx = conn.rx.take();
        let key = conn.key(index);
        self.forget_rx(cx, post, rx);
        self.leave_client_place(cx, index);
        self.set_replaceable(index);
        self.mark_ready(key);
        self.mark_dirty(key);
        self.schedule(cx, index);
    }

    /// Closes the socket and frees what the connection had. The slot is free when all homes are
    /// told.
    pub(crate) fn release(&mut self, cx: &Cx, post: &mut Post, index: u32, reset: bool) {
        let Some(conn) = self.conns.get_mut(index as usize) else { return };
        let Some(socket) = conn.socket.take() else { return };
        let key = conn.key(index);
        let rx = conn.rx.take();
        conn.phase = Phase::Leaving;
        self.queues.release(&mut conn.queue);
        self.take_held(index);
        self.wheel.remove(&mut self.conns, index);
        self.forget_address(cx, index);
        self.set_busy(index);
        self.driver.close(key, socket, reset);
        self.forget_rx(cx, post, rx);
        cx.node.open[cx.id.index()].fetch_sub(1, Ordering::Relaxed);
        self.leave_client_place(cx, index);
        self.http.forget(index);
        cx.counters().connections_open.sub(1);
        cx.counters().connections_closed.add(1);
        self.leaving.push_back(&mut self.conns, index);
        self.leaving_count += 1;
    }

    /// Closes connections whose TLS handshakes are under way: those have no byte form.
    pub(crate) fn give_up_handshakes(&mut self, cx: &Cx, post: &mut Post) {
        for key in self.driver.unpackable() {
            if self.conn(key).is_some() {
                self.release(cx, post, key.index, true);
            }
        }
    }

    /// Closed connections whose slots are not free yet.
    pub(crate) fn leavers(&self) -> usize {
        self.leaving_count as usize
    }

    /// Takes the closed connection that has waited longest. Its slot is to be freed by [`Self::free_slot`].
    pub(crate) fn next_leaver(&mut self) -> Option<u32> {
        let index = self.leaving.pop_front(&mut self.conns)?;
        self.leaving_count -= 1;
        Some(index)
    }

    /// Frees the slot of a closed connection. One whose session is not over, since a home has no room for
    /// the mail, waits behind the others; false then.
    pub(crate) fn free_slot(&mut self, index: u32) -> bool {
        let is_over = self.conns.get(index as usize).is_none_or(|conn| conn.session == NONE);
        match is_over {
            true => _ = self.conns.try_remove(index as usize),
            false => {
                self.leaving.push_back(&mut self.conns, index);
                self.leaving_count += 1;
            }
        }
        is_over
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

#[cfg(test)]
mod tests {
    use crate::base::frame::SharedFrame;
    use crate::io::sim::Seen;
    use crate::shard::fixture::{Plan, Wired};

    #[test]
    fn queued_bytes_go_out_before_the_fin() {
        let mut of = Wired::new(Plan::default());
        let (link, key) = of.connect_client();
        of.net.enqueue(&of.cx, key.index, SharedFrame::new(b"last words"));
        of.net.linger(&of.cx, &mut of.posts.post, key.index);
        assert_eq!(of.received(link), "last words");
        assert_eq!(of.world.borrow().look(link), Seen::Ended);
        assert!(of.world.borrow().is_held(link), "the peer's end is awaited");
        of.net.release(&of.cx, &mut of.posts.post, key.index, false);
        assert!(!of.world.borrow().is_held(link));
        assert_eq!((of.net.connections(), of.net.leaving_count), (0, 1));
        assert_eq!(of.end(), []);
    }
}
