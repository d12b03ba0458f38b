//! A connection at work: what comes, channels that are to be subscribed, and errors.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use async_nats::{Event, ServerError, SubscribeErrorKind};
use compact_str::CompactString;
use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;
use tokio::task::unconstrained;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::client::{EVENTS_MAX, Unreachable};
use super::pending::Pending;
use super::receive::Source;
use super::{Figures, Shared, history, news};
use crate::node::log_limit::LogLimit;

/// Channels that are subscribed at once where the server may refuse them: all of them, and the crate keeps as many
/// errors.
const SUBSCRIBED_AT_ONCE: usize = EVENTS_MAX / 2;

/// The same while the server refuses none: groups grow until then.
const SUBSCRIBED_AT_ONCE_MAX: usize = 2_048;

/// Subscriptions that were refused are tried again so often, and so many of them.
const REFUSED_AGAIN: Duration = Duration::from_secs(1);
const REFUSED_AT_ONCE: usize = SUBSCRIBED_AT_ONCE;

/// How often the age of the oldest probe is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Lines about errors of the server.
static ERRORS: LogLimit = LogLimit::new();

/// Serves until the connection ends: why.
pub(super) async fn serve(shared: &Rc<Shared>, events: &mut Receiver<Event>) -> Unreachable {
    shared.figures.heard(shared.at, 0, 1);
    let began = Instant::now();
    let mut resubscribing = Resubscribing { shared, since: Some(began) };
    tokio::select! {
        // All that is there is taken in one turn.
        error = unconstrained(receive(shared, events, &mut resubscribing)) => error,
        error = subscribe(shared) => error,
        error = watch(shared) => error,
        error = history::look_after(shared) => error,
    }
}

/// The figure of channels that are not all delivered yet.
struct Resubscribing<'a> {
    shared: &'a Shared,
    since: Option<Instant>,
}

impl Resubscribing<'_> {
    fn look(&mut self) {
        if self.shared.is_ready.get()
            && self.shared.interests.borrow().missing() == 0
            && let Some(since) = self.since.take()
        {
            let figures = &self.shared.figures;
            figures.resubscribe_ms.store(since.elapsed().as_millis() as u64, Ordering::Relaxed);
            figures.resubscribing.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Resubscribing<'_> {
    fn drop(&mut self) {
        if self.since.is_none() {
            Figures::add(&self.shared.figures.resubscribing, 1);
        }
    }
}

/// Takes what comes, and delivers it.
async fn receive(
    shared: &Rc<Shared>,
    events: &mut Receiver<Event>,
    resubscribing: &mut Resubscribing<'_>,
) -> Unreachable {
    let mut known = Vec::new();
    loop {
        poll_fn(|cx| {
            shared.subscriptions.poll(cx);
            match events.poll_recv_many(cx, &mut known, EVENTS_MAX) {
                // The client is no more.
                Poll::Ready(0) => shared.news.borrow_mut().has_ended = true,
                Poll::Ready(_) => {}
                Poll::Pending if shared.news.borrow().is_empty() => return Poll::Pending,
                Poll::Pending => {}
            }
            Poll::Ready(())
        })
        .await;
        // An error comes before the probe behind it, but by the task of the crate that hands on its news: all tasks
        // that were woken before have had their turn behind this.
        tokio::task::yield_now().await;
        while let Ok(event) = events.try_recv() {
            known.push(event);
        }
        if known.len() >= EVENTS_MAX {
            // The crate has room for so many: there may have been more.
            shared.with_output(|output| output.refusals.doubt(output.groups.last()));
        }
        let mut end = None;
        for event in known.drain(..) {
            end = hear(shared, event).or(end);
        }
        if shared.news.borrow().has_ended {
            return end.unwrap_or(Unreachable::Closed);
        }
        if let Some(end) = end {
            return end;
        }
        shared.figures.heard(shared.at, 0, 1);
        news::deliver(shared, || resubscribing.look());
        shared.probe();
    }
}

/// News of the client: why the connection has ended, if it has.
fn hear(shared: &Shared, event: Event) -> Option<Unreachable> {
    let figures = &shared.figures;
    let text = match event {
        Event::Disconnected | Event::Closed => return Some(Unreachable::Closed),
        // Messages are missing: channels are read again on a connection of their own.
        Event::SlowConsumer(_) => {
            Figures::add(&figures.slow_consumers, 1);
            return Some(Unreachable::Slow);
        }
        Event::ServerError(ServerError::Other(text)) => text,
        Event::ServerError(error) => error.to_string(),
        Event::Connected
        | Event::LameDuckMode
        | Event::Draining
        // Of attempts to connect.
        | Event::ClientError(_) => return None,
    };
    Figures::add(&figures.errors, 1);
    let lowercase = text.to_ascii_lowercase();
    if lowercase.starts_with("slow consumer") {
        Figures::add(&figures.slow_consumers, 1);
        tracing::warn!(
            "nats: the server has dropped messages for this node, since it was too slow: channels with \
             history are read again, of others publications are lost"
        );
        return Some(Unreachable::Slow);
    }
    if lowercase.starts_with("maximum subscriptions exceeded") {
        if shared.settings.takes_all && !shared.interests.borrow().has_all() {
            return Some(Unreachable::Refused(text));
        }
        shared.with_output(|output| output.refusals.limit(output.groups.last()));
    }
    if let Some(subject) = refused(&text) {
        if shared.settings.takes_all && subject == shared.settings.subjects.all() {
            return Some(Unreachable::Refused(text));
        }
        if subject == shared.probes {
            return Some(Unreachable::Refused(text));
        }
        shared.with_output(|output| output.refusals.add(subject, output.groups.last()));
    }
    if let Some(left_out) = ERRORS.admit() {
        tracing::warn!(left_out, "nats: {text}");
    }
    None
}

/// The subject that an error says is not permitted.
fn refused(text: &str) -> Option<&str> {
    let is_refusal = text.to_ascii_lowercase().starts_with("permissions violation");
    let (_, subject) = text.split_once('"').filter(|_| is_refusal)?;
    Some(subject.trim_end_matches('"'))
}

/// How many channels are subscribed at once.
struct Pace {
    count: usize,
    /// Groups that the server has not confirmed.
    under_way: VecDeque<oneshot::Receiver<bool>>,
}

impl Pace {
    fn new() -> Self {
        Self { count: SUBSCRIBED_AT_ONCE, under_way: VecDeque::new() }
    }

    /// Waits until so many groups are under way at most.
    async fn settle(&mut self, mut left: usize) {
        while self.under_way.len() > left
            && let Some(group) = self.under_way.pop_front()
        {
            // Without an answer the connection has ended.
            if group.await.unwrap_or(false) {
                self.count = (self.count * 2).min(SUBSCRIBED_AT_ONCE_MAX);
            } else {
                // Errors of those behind it may be missing, too.
                (self.count, left) = (SUBSCRIBED_AT_ONCE, 0);
            }
        }
    }
}

/// Subscribes channels, some at a time: the next ones when the server has confirmed these. While it refuses none, one
/// group is made as it carries out the one before.
async fn subscribe(shared: &Rc<Shared>) -> Unreachable {
    let mut pace = Pace::new();
    loop {
        let is_at_limit = shared.is_at_limit.get();
        let count = if is_at_limit { 1 } else { pace.count };
        let wanted = match shared.is_ready.get() {
            true => shared.interests.borrow_mut().next(count),
            false => Vec::new(),
        };
        if wanted.is_empty() {
            if !pace.under_way.is_empty() {
                pace.settle(0).await;
            } else {
                shared.is_at_limit.set(false);
                if shared.is_ready.get() {
                    shared.subscriptions.forget();
                }
                shared.wanted.notified().await;
            }
            continue;
        }
        let is_full = wanted.len() == count && !is_at_limit;
        let numbers = match subscribe_group(shared, wanted).await {
            Ok(numbers) => numbers,
            Err(error) => return error,
        };
        let is_alone = numbers.len() == 1 && pace.under_way.is_empty();
        pace.under_way.push_back(probe_behind(shared, numbers, is_alone));
        pace.settle(usize::from(is_full)).await;
        if shared.is_at_limit.get() && !is_at_limit {
            pace.settle(0).await;
            // Subscriptions that were made have ended before they are made once more, one by one.
            for _ in 0..2 {
                let _ = probe_behind(shared, Vec::new(), false).await;
            }
        }
    }
}

/// Sends these subscriptions. The numbers of those that are sent.
async fn subscribe_group(
    shared: &Rc<Shared>,
    wanted: Vec<(u64, CompactString)>,
) -> Result<Vec<u64>, Unreachable> {
    let client = shared.client().ok_or(Unreachable::Closed)?;
    let mut numbers = Vec::with_capacity(wanted.len());
    for (number, channel) in wanted {
        let subject = shared.settings.subjects.messages(&channel);
        shared.subscriptions.make_room();
        match client.subscribe(subject).await {
            Ok(subscriber) => {
                let source = Source::Channel(number);
                let handle = shared.subscriptions.add(shared, source, subscriber);
                if shared.interests.borrow_mut().subscribed(number, handle) {
                    numbers.push(number);
                }
            }
            // It stays without an answer, and its subscribers get an error.
            Err(error) if error.kind() == SubscribeErrorKind::InvalidSubject => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(numbers)
}

/// The answer: whether the server has carried out all of these subscriptions.
fn probe_behind(shared: &Shared, numbers: Vec<u64>, is_alone: bool) -> oneshot::Receiver<bool> {
    let (done, all) = oneshot::channel();
    shared.with_output(|output| output.groups.add(Pending::Listening { numbers, is_alone, done }));
    shared.probe();
    all
}

/// Sends probes, and ends when the server answers none, or does not take them.
async fn watch(shared: &Rc<Shared>) -> Unreachable {
    let settings = &shared.settings;
    let probe_interval = settings.probe_interval;
    let mut looks = interval(LOOK.min(probe_interval / 2));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut probed, mut retried) = (Instant::now(), Instant::now());
    loop {
        looks.tick().await;
        if probed.elapsed() >= probe_interval {
            probed = Instant::now();
            shared.with_output(|output| output.groups.probe());
        }
        if retried.elapsed() >= REFUSED_AGAIN {
            retried = Instant::now();
            if shared.interests.borrow_mut().retry(REFUSED_AT_ONCE) {
                shared.wanted.notify_one();
            }
        }
        shared.probe();
        let oldest = shared.with_output(|output| output.groups.oldest()).flatten();
        let age = oldest.map_or(Duration::ZERO, |since| since.elapsed());
        if age > 2 * probe_interval {
            Figures::add(&shared.figures.probes_missed, 1);
            return Unreachable::Silent;
        }
        let late = shared.requests.borrow_mut().expire(false);
        shared.fail(late, |home, event| shared.events.take(home, vec![event]));
        if age > probe_interval && !shared.is_late.replace(true) {
            tracing::warn!("nats: the server answers late: commands fail until it has");
        }
        let Some(client) = shared.client() else { return Unreachable::Closed };
        match timeout(settings.write_timeout, client.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Unreachable::Closed,
            Err(_) => return Unreachable::Timeout,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn groups_grow_until_the_server_refuses_one() {
        let mut pace = Pace::new();
        let add = |pace: &mut Pace, are_made| {
            let (done, all) = oneshot::channel();
            pace.under_way.push_back(all);
            done.send(are_made).unwrap();
        };
        (0..20).for_each(|_| add(&mut pace, true));
        pace.settle(1).await;
        assert_eq!((pace.count, pace.under_way.len()), (SUBSCRIBED_AT_ONCE_MAX, 1));
        add(&mut pace, false);
        add(&mut pace, true);
        pace.settle(1).await;
        assert!(pace.under_way.is_empty(), "no other one is made before all are answered");
        assert!(pace.count <= 2 * SUBSCRIBED_AT_ONCE);
    }

    #[test]
    fn a_refusal_names_its_subject() {
        for (text, subject) in [
            ("Permissions Violation for Subscription to \"p.client.a\"", Some("p.client.a")),
            ("permissions violation for publish to \"p.client.b\"", Some("p.client.b")),
            ("Permissions Violation", None),
            ("Maximum Subscriptions Exceeded \"x\"", None),
        ] {
            assert_eq!(refused(text), subject, "{text}");
        }
    }
}
