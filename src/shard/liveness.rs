//! Deadlines of connections with their sessions: fired, judged, and carried out on both.

use crate::base::limits::TURN_TIMERS_MAX;
use crate::io::Driver;
use crate::shard::Shard;
use crate::shard::outlets::outlets;

impl<D: Driver> Shard<D> {
    /// Fires the timers that are due, a bounded number in a turn.
    pub(crate) fn fire_timers(&mut self) {
        let mut budget = TURN_TIMERS_MAX;
        while let Some(index) = self.net.next_timer(&self.cx, &mut budget) {
            self.look_before_judging(index);
            self.clients.timer(&mut outlets!(self), &mut self.local, index);
        }
    }

    /// A shard that was busy, or a process that stood still, may not have read yet what came in time, nor the
    /// event that a socket has room: both are tried before the peer is judged.
    fn look_before_judging(&mut self, index: u32) {
        let Some(conn) = self.net.conns.get(index as usize) else { return };
        let key = conn.key(index);
        let session_is_late = self.clients.is_late(&self.cx, conn.session);
        if self.net.is_late(index, session_is_late) {
            self.read(key);
        }
        self.net.try_blocked(&self.cx, &mut self.codec, &mut self.post, index);
        self.after_net();
    }
}
