//! The gate of the internal port: requests wait there while the shards are frozen, since what they ask for
//! would happen in a process that ends.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;

/// The state of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// Requests wait, and no connection is accepted.
    Held,
    /// Another process answers from now on.
    Closed,
}

/// See the module.
#[derive(Debug)]
pub(in crate::node) struct Gate {
    state: watch::Sender<State>,
    inside: AtomicUsize,
}

/// A request that has passed the gate, until it is answered.
pub(in crate::node) struct Inside<'a>(&'a Gate);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self { state: watch::Sender::new(State::Open), inside: AtomicUsize::new(0) }
    }
}

impl Gate {
    /// Waits until requests are answered here. `None`: another process answers them.
    pub(in crate::node) async fn enter(&self) -> Option<Inside<'_>> {
        let mut states = self.state.subscribe();
        let state = states.wait_for(|state| *state != State::Held).await;
        // The sender lives as long as this does.
        if !state.is_ok_and(|state| *state == State::Open) {
            return None;
        }
        self.inside.fetch_add(1, Ordering::Relaxed);
        Some(Inside(self))
    }

    /// Waits until connections are accepted, and then until they are not.
    pub(in crate::node) async fn accepting(&self) {
        // The sender lives as long as this does.
        let _ = self.state.subscribe().wait_for(|state| *state == State::Open).await;
    }

    /// Waits until connections are not accepted.
    pub(in crate::node) async fn held(&self) {
        let _ = self.state.subscribe().wait_for(|state| *state != State::Open).await;
    }

    /// Requests wait from now on.
    pub(super) fn hold(&self) {
        self.state.send_replace(State::Held);
    }

    /// They are answered again.
    pub(super) fn open(&self) {
        self.state.send_replace(State::Open);
    }

    /// They are refused: another process answers.
    pub(super) fn close(&self) {
        self.state.send_replace(State::Closed);
    }

    /// Requests that have passed and are not answered.
    pub(super) fn inside(&self) -> usize {
        self.inside.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn requests_wait_at_a_gate_that_is_held() {
        let gate = Gate::default();
        let mut context = Context::from_waker(Waker::noop());
        let mut polled = |future: std::pin::Pin<&mut dyn Future<Output = bool>>| match future
            .poll(&mut context)
        {
            Poll::Ready(entered) => Some(entered),
            Poll::Pending => None,
        };
        let enter = || async { gate.enter().await.is_some() };
        assert_eq!(polled(pin!(enter())), Some(true));
        assert_eq!(gate.inside(), 0, "it was answered");
        gate.hold();
        let (mut one, mut other) = (pin!(enter()), pin!(enter()));
        assert_eq!(polled(one.as_mut()), None);
        assert_eq!(polled(other.as_mut()), None);
        gate.open();
        assert_eq!(polled(one.as_mut()), Some(true));
        gate.close();
        assert_eq!(polled(other.as_mut()), Some(false));
    }
}
