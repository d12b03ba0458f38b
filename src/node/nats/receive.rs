//! All subscriptions of a thread, received from by one task: those with messages are polled, however many there are.
//!
//! The crate gives each subscription a channel, and drops messages that find it full. So what is there is taken in one
//! turn, before the client reads on.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use async_nats::Subscriber;
use futures_util::StreamExt as _;
use futures_util::future::{AbortHandle, Abortable};
use futures_util::stream::{FuturesUnordered, futures_unordered};

use super::{Shared, news};

/// Where messages come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The channel of this number.
    Channel(u64),
    /// Any channel.
    All,
    /// Other nodes.
    Control,
    /// Replies to requests.
    Replies,
    /// The thread itself.
    Probes,
    /// The running process of a takeover.
    Fences,
}

type All = FuturesUnordered<Abortable<Receiving>>;

/// All subscriptions.
#[derive(Default)]
pub(super) struct Subscriptions {
    all: RefCell<All>,
    /// Subscriptions of the connection before. They free their memory one by one as it is needed again:
    /// freed at once, that of a million would go back to the system, and each page be asked for anew a
    /// moment later.
    ended: RefCell<Option<futures_unordered::IntoIter<Abortable<Receiving>>>>,
    /// Wakes the task when one is added.
    waker: RefCell<Option<Waker>>,
}

impl Subscriptions {
    /// Takes the messages of one from now on, until it is aborted.
    pub(super) fn add(
        &self,
        shared: &Rc<Shared>,
        source: Source,
        subscriber: Subscriber,
    ) -> AbortHandle {
        let (handle, registration) = AbortHandle::new_pair();
        let receiving = Receiving { shared: shared.clone(), source, subscriber };
        self.all.borrow_mut().push(Abortable::new(receiving, registration));
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
        handle
    }

    /// Takes all messages that are there.
    pub(super) fn poll(&self, cx: &mut Context<'_>) {
        self.waker.replace(Some(cx.waker().clone()));
        let mut all = self.all.borrow_mut();
        // Those that have ended say so by what they have come to.
        while let Poll::Ready(Some(_)) = all.poll_next_unpin(cx) {}
    }

    /// Ends all of them: their connection has ended.
    pub(super) fn end(&self) {
        let ended = self.all.take();
        if !ended.is_empty() {
            *self.ended.borrow_mut() = Some(ended.into_iter());
        }
    }

    /// Makes room for another one.
    pub(super) fn make_room(&self) {
        let mut ended = self.ended.borrow_mut();
        if ended.as_mut().is_some_and(|ended| ended.next().is_none()) {
            *ended = None;
        }
    }

    /// No other ones follow.
    pub(super) fn forget(&self) {
        self.ended.take();
    }
}

/// One subscription: ends with its connection.
struct Receiving {
    shared: Rc<Shared>,
    source: Source,
    subscriber: Subscriber,
}

impl Future for Receiving {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        while let Poll::Ready(message) = self.subscriber.poll_next_unpin(cx) {
            match message {
                Some(message) => news::take(&self.shared, self.source, message),
                None => {
                    self.shared.news.borrow_mut().has_ended = true;
                    return Poll::Ready(());
                }
            }
        }
        Poll::Pending
    }
}
