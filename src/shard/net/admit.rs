//! Admission: whether one more client may come, its place among those that count, and whose place is taken
//! when none is left.

use std::sync::atomic::Ordering;

use crate::base::notices::Reason;
use crate::io::Driver;
use crate::session::WaitsFor;
use crate::shard::context::Cx;
use crate::shard::mail::post::Post;
use crate::shard::net::Net;
use crate::shard::net::record::Phase;

impl<D: Driver> Net<D> {
    /// Why no client may begin a session now, if so.
    pub(crate) fn takes_no_clients(&self, cx: &Cx) -> Option<Reason> {
        if self.draining.is_some() {
            return Some(Reason::HttpDraining);
        }
        cx.node.memory.is_short().then_some(Reason::HttpMemory)
    }

    /// Whether one more client may come. It is counted when it is connected.
    ///
    /// # Errors
    /// Why not now.
    pub(crate) fn admit(&mut self, cx: &Cx) -> Result<(), Reason> {
        if let Some(reason) = self.takes_no_clients(cx) {
            return Err(reason);
        }
        let client = &cx.client;
        if client.connection_rate_limit > 0 {
            let second = cx.now.0 / 1000;
            if !cx.node.client_rate.admit(second, client.connection_rate_limit) {
                return Err(Reason::HttpConnectionRate);
            }
        }
        if client.connection_limit > 0
            && cx.node.clients.load(Ordering::Relaxed) >= client.connection_limit
        {
            return Err(Reason::HttpConnectionLimit);
        }
        self.has_client_place(cx)
    }

    /// Whether a client finds a place on this shard.
    ///
    /// # Errors
    /// When others have them all.
    pub(crate) fn has_client_place(&self, cx: &Cx) -> Result<(), Reason> {
        match self.is_full_of_clients(cx) {
            true => Err(Reason::HttpFull),
            false => Ok(()),
        }
    }

    /// A connection is a client's from now on, until [`leave_client_place`](Self::leave_client_place): it counts for
    /// `client.connection_limit`. The limit is held here, since many may have been admitted before one of them
    /// connects.
    ///
    /// # Errors
    /// Why not now.
    pub(crate) fn take_client_place(&mut self, cx: &Cx, index: u32) -> Result<(), Reason> {
        let limit = cx.client.connection_limit;
        let taken = self.has_client_place(cx).and_then(|()| {
            let before = cx.node.clients.fetch_add(1, Ordering::Relaxed);
            if limit > 0 && before >= limit {
                cx.node.clients.fetch_sub(1, Ordering::Relaxed);
                return Err(Reason::HttpConnectionLimit);
            }
            Ok(())
        });
        if let Err(reason) = taken {
            self.count_busy(cx, reason);
            return Err(reason);
        }
        if let Some(conn) = self.conns.get_mut(index as usize) {
            conn.flags.set_counted(true);
            let transport = conn.form.transport();
            cx.counters().clients(transport).add(1);
        }
        Ok(())
    }

    /// A connection is no client's any more: its session is over, whatever is still to be said on it.
    pub(crate) fn leave_client_place(&mut self, cx: &Cx, index: u32) {
        let Some(conn) = self.conns.get_mut(index as usize) else { return };
        if conn.flags.counted() {
            conn.flags.set_counted(false);
            let transport = conn.form.transport();
            cx.counters().clients(transport).sub(1);
            cx.node.clients.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Counts a request, or a `connect`, that its client may send again later.
    pub(crate) fn count_busy(&self, cx: &Cx, reason: Reason) {
        let counters = cx.counters();
        counters.refused_unavailable.add(1);
        let counter = match reason {
            Reason::HttpDraining => &counters.busy_draining,
            Reason::HttpMemory => &counters.busy_memory,
            Reason::HttpConnectionLimit => &counters.busy_connection_limit,
            Reason::HttpConnectionRate => &counters.busy_rate_limit,
            Reason::HttpFull => {
                counters.connections_refused_full.add(1);
                &counters.busy_places
            }
            _ => &counters.busy_requests,
        };
        counter.add(1);
    }
}

impl<D: Driver> Net<D> {
    /// A connection does nothing for a client from now on: it may lose its place.
    pub(crate) fn set_replaceable(&mut self, index: u32) {
        self.replaceable.insert(index);
    }

    /// A connection keeps its place.
    pub(crate) fn set_busy(&mut self, index: u32) {
        self.replaceable.remove(index);
    }

    /// Connections with a socket.
    pub(crate) fn connections(&self) -> usize {
        self.conns.len() - self.leaving_count as usize
    }

    /// Whether clients have all places that they may take. The places beyond are for requests to be read
    /// in, so that a node full of clients answers health checks and calls of the API.
    pub(crate) fn is_full_of_clients(&self, cx: &Cx) -> bool {
        self.connections() - self.replaceable.len() >= cx.node.options.conns_max as usize
    }

    /// Whether each place is taken, those for requests included.
    pub(crate) fn is_full(&self, cx: &Cx) -> bool {
        self.connections() >= cx.node.options.places_max()
    }
}

impl<D: Driver> Net<D> {
    /// Closes the longest idle connection to make place for another; false where all are busy.
    pub(crate) fn replace_one(&mut self, cx: &Cx, post: &mut Post) -> bool {
        for _ in 0..PENDING_SKIPPED_MAX {
            let Some(index) = self.replaceable.first() else { return false };
            let Some(conn) = self.conns.get(index as usize) else {
                self.replaceable.remove(index);
                continue;
            };
            if matches!(conn.waits, Some(WaitsFor::TokenCheck | WaitsFor::Application)) {
                // Its token is being checked, or the application is asked about it: it isn't idle.
                self.replaceable.insert(index);
                continue;
            }
            let counters = cx.counters();
            let counter = match conn.phase {
                Phase::Head if conn.flags.served() && conn.rx.is_none() => &counters.replaced_kept,
                Phase::Head => &counters.replaced_head,
                Phase::Body => &counters.replaced_body,
                Phase::Client => &counters.replaced_stale,
                _ => &counters.replaced_closing,
            };
            counter.add(1);
            // Without an answer: who has sent nothing would take it for that of its next request, and an event
            // source would give up for good.
            self.release(cx, post, index, false);
            return true;
        }
        false
    }
}

/// Connections looked at to find one whose place may be taken: those that wait for a verdict are passed over.
const PENDING_SKIPPED_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::fixture::{Plan, Wired};

    #[test]
    fn a_client_counts_until_its_session_is_over() {
        let mut plan = Plan::default();
        plan.client.connection_limit = 1;
        let mut of = Wired::new(plan);
        let ((_, a), (_, b)) = (of.connect_client(), of.connect_client());
        assert_eq!(of.net.admit(&of.cx), Ok(()));
        assert_eq!(of.net.take_client_place(&of.cx, a.index), Ok(()));
        assert_eq!(of.net.admit(&of.cx), Err(Reason::HttpConnectionLimit));
        assert_eq!(of.net.take_client_place(&of.cx, b.index), Err(Reason::HttpConnectionLimit));
        of.net.leave_client_place(&of.cx, a.index);
        of.net.leave_client_place(&of.cx, a.index);
        assert_eq!(of.net.take_client_place(&of.cx, b.index), Ok(()));
        assert_eq!(of.end(), []);
    }

    #[test]
    fn a_node_that_drains_takes_no_clients() {
        let mut of = Wired::new(Plan::default());
        of.net.drain(&of.cx, 10);
        assert_eq!(of.net.admit(&of.cx), Err(Reason::HttpDraining));
        of.net.count_busy(&of.cx, Reason::HttpDraining);
        assert_eq!(of.cx.counters().busy_draining.get(), 1);
    }
}
