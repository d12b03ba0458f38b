//! Requests to a server that are not sent yet, in order.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cluster::operations::{Awaited, Request};

/// A request on its way.
#[derive(Debug)]
pub(super) struct Queued {
    /// The home that it comes from.
    pub home: usize,
    /// The request.
    pub request: Request,
    /// What its reply means.
    pub awaited: Awaited,
    /// When it came.
    pub since: Instant,
    /// It was refused since its script was not known.
    pub again: bool,
    /// It was sent on an earlier connection, whose reply is lost.
    pub resent: bool,
    /// Bytes that leave the thread's account with it.
    pub cost: usize,
}

impl Queued {
    /// A request that has just come. `cost`: its bytes in the account of the thread.
    pub(super) fn new(home: usize, request: Request, awaited: Awaited, cost: usize) -> Self {
        Self { home, request, awaited, since: Instant::now(), again: false, resent: false, cost }
    }
}

/// The queue.
pub(super) struct Queue {
    waiting: RefCell<VecDeque<Queued>>,
    /// Requests may come: there is a connection, or there soon is.
    pub is_open: Cell<bool>,
    /// The server answers late.
    pub is_late: Cell<bool>,
    pub pushed: Notify,
    bytes: Arc<AtomicUsize>,
}

impl Queue {
    /// An open one, whose bytes are in an account.
    pub(super) fn new(bytes: Arc<AtomicUsize>) -> Self {
        let (waiting, pushed) = (RefCell::default(), Notify::new());
        Self { waiting, is_open: Cell::new(true), is_late: Cell::new(false), pushed, bytes }
    }

    /// Commands of homes are taken; else they fail at once.
    pub(super) fn takes_commands(&self) -> bool {
        self.is_open.get() && !self.is_late.get()
    }

    pub(super) fn push(&self, queued: Queued) {
        self.waiting.borrow_mut().push_back(queued);
        self.pushed.notify_one();
    }

    /// Puts requests back before all others, in their order.
    pub(super) fn put_back(&self, again: Vec<Queued>) {
        let mut waiting = self.waiting.borrow_mut();
        again.into_iter().rev().for_each(|queued| waiting.push_front(queued));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    /// The next ones, up to a number and a sum of bytes, at least one.
    pub(super) fn batch(&self, count_max: usize, bytes_max: usize) -> Vec<Queued> {
        let mut waiting = self.waiting.borrow_mut();
        let (mut count, mut bytes) = (0, 0);
        while count < count_max.min(waiting.len()) && (count == 0 || bytes < bytes_max) {
            bytes += waiting[count].request.bytes();
            count += 1;
        }
        waiting.drain(..count).collect()
    }

    /// All of them.
    pub(super) fn drain(&self) -> Vec<Queued> {
        self.waiting.borrow_mut().drain(..).collect()
    }

    /// A request is settled.
    pub(super) fn settled(&self, cost: usize) {
        self.bytes.fetch_sub(cost, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queued(home: usize, bytes: usize) -> Queued {
        let request = Request::Plain { name: "PING", arguments: vec![vec![0; bytes]] };
        let awaited = Awaited::Nothing;
        Queued {
            home,
            request,
            awaited,
            since: Instant::now(),
            again: false,
            resent: false,
            cost: 1,
        }
    }

    #[test]
    fn batches_are_bounded_and_in_order() {
        let bytes = Arc::new(AtomicUsize::new(5));
        let queue = Queue::new(bytes.clone());
        (0..5).for_each(|home| queue.push(queued(home, 1_000)));
        let homes = |batch: &[Queued]| batch.iter().map(|queued| queued.home).collect::<Vec<_>>();
        let first = queue.batch(2, usize::MAX);
        assert_eq!(homes(&first), [0, 1]);
        assert_eq!(homes(&queue.batch(9, 1)), [2]);
        queue.put_back(first);
        assert_eq!(homes(&queue.batch(9, usize::MAX)), [0, 1, 3, 4]);
        assert!(queue.is_empty() && queue.batch(9, 9).is_empty());
        queue.settled(2);
        assert_eq!(bytes.load(Ordering::Relaxed), 3);
        assert!(queue.takes_commands());
        queue.is_late.set(true);
        assert!(!queue.takes_commands());
    }
}
