//! Admission: whether one more client may come, and its place among those that count.

use std::sync::atomic::Ordering;

use crate::base::notices::Reason;
use crate::io::Driver;
use crate::shard::context::Cx;
use crate::shard::net::Net;

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
