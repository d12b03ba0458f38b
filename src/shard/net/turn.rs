//! Net's part in a turn: waiting for the driver, its completions, and the connections to read.

use crate::base::id::ConnKey;
use crate::base::limits::{TURN_INPUT_BYTES_MAX, TURN_READS_MAX};
use crate::base::time::{Millis, UnixSeconds};
use crate::io::{Completion, Driver};
use crate::shard::context::Cx;
use crate::shard::mail::post::Post;
use crate::shard::net::Net;
use crate::shard::net::record::{NONE, Phase};

/// The reads of a turn.
pub(crate) struct Reads {
    /// Connections that were on the list when the reads began: those that come onto it later wait for the
    /// next turn.
    listed: usize,
    done: usize,
    /// The counter of received bytes, when the reads began.
    bytes_before: u64,
}

impl<D: Driver> Net<D> {
    /// Waits for the driver, at most until then. Returns how long the thread had worked before, microseconds,
    /// if the driver has a clock.
    pub(crate) fn wait(&mut self, until: Option<Millis>) -> Option<u32> {
        self.completions.clear();
        self.completed = 0;
        self.driver.wait(until, &mut self.completions);
        self.driver.worked_us()
    }

    /// Ends the sends that are under way: their completions are the next to be taken.
    pub(crate) fn end_sends(&mut self) {
        self.completions.clear();
        self.completed = 0;
        self.driver.end_sends(&mut self.completions);
    }

    /// The time behind the last wait, by both clocks.
    pub(crate) fn time(&self) -> (Millis, UnixSeconds) {
        (self.driver.now(), self.driver.unix())
    }

    /// Takes completions of the driver, up to a FIN of a peer whose `connect` waits for an answer: returns
    /// its slot. `None` behind the last one.
    pub(crate) fn next_gone(&mut self, cx: &Cx, post: &mut Post) -> Option<u32> {
        while let Some(completion) = self.completions.get(self.completed).copied() {
            self.completed += 1;
            match completion {
                Completion::Acceptable => self.acceptable = true,
                Completion::Passed => self.passed = true,
                Completion::Woken => {}
                Completion::Readable { key, ended } => match self.conn(key) {
                    Some(conn) => {
                        if ended {
                            conn.flags.set_ended(true);
                        }
                        if ended && conn.waits.is_some() && conn.session == NONE {
                            return Some(key.index);
                        }
                        self.mark_ready(key);
                    }
                    None => cx.counters().stale_events.add(1),
                },
                Completion::Writable { key } => {
                    if let Some(conn) = self.conn(key)
                        && conn.flags.blocked()
                    {
                        conn.flags.set_blocked(false);
                        self.mark_dirty(key);
                    }
                }
                Completion::Sent { key, bytes } => self.sent(cx, post, key, bytes),
            }
        }
        None
    }

    /// Begins the reads of a turn.
    pub(crate) fn begin_reads(&self, cx: &Cx) -> Reads {
        let listed = self.ready.len().min(TURN_READS_MAX);
        Reads { listed, done: 0, bytes_before: cx.counters().bytes_received.get() }
    }

    /// The next connection to read; `None` when none is left or the turn has had its input.
    pub(crate) fn next_read(&mut self, cx: &Cx, reads: &mut Reads) -> Option<ConnKey> {
        let ahead = self.driver.fetch_max();
        while reads.done < reads.listed {
            if cx.counters().bytes_received.get() - reads.bytes_before >= TURN_INPUT_BYTES_MAX {
                return None;
            }
            if ahead > 0 && reads.done.is_multiple_of(ahead) {
                self.read_ahead(ahead);
            }
            reads.done += 1;
            let key = self.ready.pop_front()?;
            if let Some(conn) = self.conn(key) {
                conn.flags.set_ready(false);
                return Some(key);
            }
        }
        None
    }

    /// Lets the driver read from the next `count` connections.
    fn read_ahead(&mut self, count: usize) {
        let Self { driver, ready, conns, .. } = self;
        driver.fetch(ready.iter().take(count).filter_map(|key| {
            let conn = conns.get(key.index as usize)?;
            let reads = conn.generation == key.generation && !conn.flags.paused();
            Some((*key, conn.socket.as_ref().filter(|_| reads)?))
        }));
    }

    /// Whether something is to be done at once.
    pub(crate) fn has_work(&self) -> bool {
        !self.ready.is_empty()
            || self.acceptable
            || self.passed
            || !self.dirty.is_empty()
            || self.http.has_answered()
            || self.driver.has_work()
    }

    /// Takes a connected client whose TLS keys will soon seal no more.
    pub(crate) fn next_worn(&mut self) -> Option<ConnKey> {
        while let Some(key) = self.driver.next_worn() {
            if self.conn(key).is_some_and(|conn| conn.phase == Phase::Client) {
                return Some(key);
            }
        }
        None
    }

    /// Whether there are no connections, not even closed ones, and nothing of earlier ones is to be given back.
    pub(crate) fn is_empty(&self) -> bool {
        self.conns.is_empty() && !self.driver.has_spare()
    }

    /// The next moment at which something is due without a completion.
    pub(crate) fn next_due(&self, now: Millis) -> Option<Millis> {
        let drain = self.draining.is_some().then(|| now.after(DRAIN_STEP_MS));
        let accept = self.accept_again_at.map(|at| at.max(now));
        [drain, accept, self.wheel.next_deadline()].into_iter().flatten().min()
    }

    /// Bytes in all send queues.
    pub(crate) fn queued_bytes(&self) -> u64 {
        self.queues.bytes()
    }

    /// Refuses the connections that wait in the listener, and closes it.
    pub(crate) fn close_listener(&mut self, cx: &Cx) {
        self.refuse_waiting(cx);
        self.driver.close_listener();
    }
}

/// Milliseconds between two steps of a drain.
const DRAIN_STEP_MS: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::fixture::{Plan, Wired};

    #[test]
    fn bytes_of_a_client_make_its_connection_one_to_read() {
        let mut of = Wired::new(Plan::default());
        let (link, key) = of.connect_client();
        of.world.borrow_mut().write(link, b"x");
        of.after(1);
        let now = of.net.time().0;
        of.net.wait(Some(now));
        assert!(of.net.next_gone(&of.cx, &mut of.posts.post).is_none() && of.net.has_work());
        let mut reads = of.net.begin_reads(&of.cx);
        assert_eq!(of.net.next_read(&of.cx, &mut reads), Some(key));
        assert_eq!(of.net.next_read(&of.cx, &mut reads), None);
        assert_eq!(of.end(), []);
    }

    #[test]
    fn a_peer_that_goes_while_its_connect_waits_is_named() {
        use crate::session::WaitsFor;
        let mut of = Wired::new(Plan::default());
        let (link, key) = of.connect_client();
        of.net.conn(key).unwrap().waits = Some(WaitsFor::Application);
        of.world.borrow_mut().shut(link);
        of.after(1);
        let now = of.net.time().0;
        of.net.wait(Some(now));
        assert_eq!(of.net.next_gone(&of.cx, &mut of.posts.post), Some(key.index));
        assert_eq!(of.net.next_gone(&of.cx, &mut of.posts.post), None);
        assert_eq!(of.end(), []);
    }

    #[test]
    fn an_idle_shard_waits_for_its_next_deadline() {
        let mut of = Wired::new(Plan::default());
        assert!(of.net.is_empty() && of.net.leavers() == 0);
        assert_eq!(of.net.next_due(of.cx.now), None);
        of.connect();
        assert!(of.net.next_due(of.cx.now).is_some_and(|at| at > of.cx.now), "a request head");
        of.net.drain(&of.cx, 1);
        assert_eq!(of.net.next_due(of.cx.now), Some(of.cx.now.after(DRAIN_STEP_MS)));
        assert_eq!(of.end(), []);
    }
}
