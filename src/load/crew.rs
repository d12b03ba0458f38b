//! The threads of one machine: workers with connections, and publishers.
//!
//! ```text
//!  orders, one for each worker -> channel, waker -> worker    -> Live  -> Sum
//!  segments                    -> channel        -> publisher -> Live  -> Sum
//! ```

use super::api;
use super::figures::{self};
use super::figures::{Live, Sum, Tally};
use super::pace::Segment;
use super::plan::Plan;
use super::publisher::{self, Publisher};
use super::series::Slice;
use super::worker::{Order, WAKER, Worker};
use crossbeam_channel::Sender;
use mio::{Poll, Waker};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// One worker, seen from outside.
struct Handle {
    orders: Sender<Order>,
    waker: Waker,
    thread: JoinHandle<Result<figures::Outcome, String>>,
}

/// A publisher, seen from outside.
struct PublisherHandle {
    orders: Sender<publisher::Order>,
    thread: JoinHandle<publisher::Outcome>,
}

/// The figures that threads show while they run; for any thread to read.
#[derive(Clone, Default)]
pub(super) struct Lives {
    workers: Vec<Arc<Live>>,
    publishers: Arc<Mutex<Vec<Arc<publisher::Live>>>>,
}

impl Lives {
    /// Their values now.
    pub(super) fn sum(&self) -> Sum {
        let mut sum = Sum::of(self.workers.iter().map(|live| &**live));
        let publishers = self.publishers.lock().unwrap_or_else(PoisonError::into_inner);
        sum.published = publishers.iter().map(|live| live.sent.load(Relaxed)).sum();
        sum.expected = publishers.iter().map(|live| live.expected.load(Relaxed)).sum();
        let last = publishers.iter().map(|live| live.last_ns.load(Relaxed)).max();
        sum.published_ns = last.unwrap_or_default();
        let finished = publishers.iter().map(|live| live.finished.load(Relaxed)).min();
        sum.finished = finished.unwrap_or(u32::MAX);
        sum
    }
}

/// See the module.
pub(super) struct Crew {
    plan: Arc<Plan>,
    origin: Instant,
    workers: Vec<Handle>,
    publishers: Vec<PublisherHandle>,
    pub(super) lives: Lives,
    /// Measurements of publishers that have ended.
    tally: Tally,
}

impl Crew {
    /// Starts the workers of this machine's part of the plan. Makes every epoll descriptor and waker, and then the
    /// threads: a descriptor made after tables part is none in the other tables.
    ///
    /// # Errors
    /// Text for the user.
    pub(super) fn start(
        plan: &Arc<Plan>,
        origin: Instant,
        slices: &Sender<Slice>,
    ) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("starting threads: {error}");
        let mut polls = Vec::new();
        for _ in plan.own_threads() {
            let poll = Poll::new().map_err(failed)?;
            let waker = Waker::new(poll.registry(), WAKER).map_err(failed)?;
            polls.push((poll, waker));
        }
        let (mut workers, mut lives) = (Vec::with_capacity(polls.len()), Lives::default());
        for (index, (poll, waker)) in plan.own_threads().zip(polls) {
            let (sender, orders) = crossbeam_channel::bounded(16);
            let live = Arc::new(Live::default());
            lives.workers.push(Arc::clone(&live));
            let worker = Worker {
                plan: Arc::clone(plan),
                share: plan.share(index),
                origin,
                poll,
                orders,
                live,
                slices: slices.clone(),
            };
            let thread = std::thread::Builder::new()
                .name(format!("load-{index}"))
                .stack_size(256 * 1024)
                .spawn(move || worker.run())
                .map_err(failed)?;
            workers.push(Handle { orders: sender, waker, thread });
        }
        let (plan, publishers, tally) = (Arc::clone(plan), Vec::new(), Tally::default());
        Ok(Self { plan, origin, workers, publishers, lives, tally })
    }

    /// Gives each worker its order, by its number among those of all machines.
    pub(super) fn order(&self, order: impl Fn(usize) -> Order) {
        for (index, worker) in self.plan.own_threads().zip(&self.workers) {
            // A worker that is gone is noticed by `check`.
            let _ = worker.orders.send(order(index));
            let _ = worker.waker.wake();
        }
    }

    /// Whether all threads still run.
    ///
    /// # Errors
    /// A worker that ended before its time takes its reason along.
    pub(super) fn check(&mut self) -> Result<(), String> {
        // It waits for the order to finish: before that, only a panic ends it.
        if self.publishers.iter().any(|publisher| publisher.thread.is_finished()) {
            return Err("the publisher panicked".to_owned());
        }
        let Some(index) = self.workers.iter().position(|worker| worker.thread.is_finished()) else {
            return Ok(());
        };
        match self.workers.swap_remove(index).thread.join() {
            Ok(Ok(_)) => Err("a thread ended early".to_owned()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err("a thread panicked".to_owned()),
        }
    }

    /// Opens the publishers of this machine's part. Returns what went wrong: then there are none.
    ///
    /// # Errors
    /// A thread can't be started: text for the user.
    pub(super) fn open_publishers(&mut self) -> Result<Option<String>, String> {
        for number in self.plan.own_publishers() {
            let live = Arc::new(publisher::Live::default());
            let (plan, origin, shown) = (Arc::clone(&self.plan), self.origin, Arc::clone(&live));
            let (orders, receiver) = crossbeam_channel::bounded(64);
            let thread = std::thread::Builder::new().name(format!("load-publisher-{number}"));
            let thread = if let Some(api) = plan.api.clone() {
                thread.spawn(move || api::run(plan, api, origin, shown, &receiver))
            } else {
                match Publisher::open(plan, number, origin, shown) {
                    Ok(publisher) => thread.spawn(move || publisher.run(&receiver)),
                    Err(error) => {
                        self.publishers.clear();
                        self.lives.publishers().clear();
                        return Ok(Some(format!("the publisher could not connect: {error}")));
                    }
                }
            };
            let thread = thread.map_err(|error| format!("starting threads: {error}"))?;
            self.publishers.push(PublisherHandle { orders, thread });
            self.lives.publishers().push(live);
        }
        Ok(None)
    }

    /// Gives each publisher its order; one lives until it gets the order to finish, so they arrive.
    pub(super) fn publish(&self, order: publisher::Order) {
        for publisher in &self.publishers {
            let _ = publisher.orders.send(order);
        }
    }

    /// Has the publishers publish these messages; `first`: messages of all publishers before them.
    pub(super) fn start_publishing(&self, segment: Segment, first: u32) {
        self.publish(publisher::Order::Start { segment, first });
    }

    /// Ends the publishers. Returns what they have sent, by channel.
    ///
    /// # Errors
    /// One panicked.
    pub(super) fn end_publishers(&mut self) -> Result<Vec<u32>, String> {
        let mut sent = vec![0; self.plan.channels.len().max(1)];
        for publisher in self.publishers.drain(..) {
            let _ = publisher.orders.send(publisher::Order::Finish);
            let outcome =
                publisher.thread.join().map_err(|_| "the publisher panicked".to_owned())?;
            sent.iter_mut().zip(&outcome.sent).for_each(|(all, one)| *all += one);
            self.tally.add_publisher(&outcome);
        }
        Ok(sent)
    }

    /// Ends the workers, which judge what came, given how many messages each channel had.
    ///
    /// # Errors
    /// One failed: text for the user.
    pub(super) fn finish(&mut self, sent: Vec<u32>) -> Result<Tally, String> {
        let sent: Arc<[u32]> = sent.into();
        self.order(|_| Order::Finish(Arc::clone(&sent)));
        for worker in self.workers.drain(..) {
            let outcome = worker.thread.join().map_err(|_| "a thread panicked".to_owned())??;
            self.tally.add(&outcome);
        }
        Ok(std::mem::take(&mut self.tally))
    }
}

impl Lives {
    fn publishers(&self) -> std::sync::MutexGuard<'_, Vec<Arc<publisher::Live>>> {
        self.publishers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
