//! Hooks: posts events to the application, at least once and in the order of each channel and connection
//! (server API, section 6).
//!
//! ```text
//!  shards --Mail::AppEvents--> queue (bounded bytes) --batch--> POST --2xx--> dropped from the queue
//!                                 ^                              '--else--> the same batch again, later
//!                                 '- no room: lost, counted, and the next batch says how many
//! ```
//! One batch is on its way at a time: a later one would overtake it when it has to be sent again. A batch that
//! was not acknowledged is sent again with the same ids, so that the application recognises events it has seen.
//! The queue lives in memory: events that wait when the process dies are lost, those of a drain are sent while
//! [`FINISH`] lasts.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::address::Address;
use super::fetch;
use super::proxies::{Connector, TlsFault, connector, response_body, static_headers};
use crate::base::rng::Rng;
use crate::config;
use crate::shard::mail::{AppEvent, AppEvents};

/// What happened to events so far.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// Acknowledged ones, by kind: disconnect, occupied, vacated.
    pub(super) delivered: [AtomicU64; 3],
    /// Those for which the queue had no room.
    pub(super) lost: AtomicU64,
    /// Posts that were acknowledged, and posts that were not.
    pub(super) posts: [AtomicU64; 2],
}

/// The kinds of events in the order of [`Figures::delivered`].
pub(super) const KINDS: [&str; 3] = ["disconnect", "occupied", "vacated"];

/// See the module.
pub(super) struct Hooks {
    options: config::Hooks,
    address: Address,
    client: legacy::Client<Connector, Full<Bytes>>,
    /// The node's name, as in `info`.
    node: String,
    /// Makes ids of events unique among the lives of all nodes.
    node_id: String,
    queue: Mutex<Queue>,
    /// An event has come.
    more: Notify,
    pub(super) figures: Figures,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<Waiting>,
    bytes: usize,
    /// Number of the next event.
    next: u64,
    /// Lost ones that no batch has reported.
    lost: u64,
    /// A line of the log has reported that there is no room.
    is_full_logged: bool,
}

struct Waiting {
    number: u64,
    time_ms: u64,
    event: AppEvent,
}

/// The body of a post.
#[derive(Serialize)]
struct Batch<'a> {
    node: &'a str,
    /// Events lost before these, since the last batch that was acknowledged.
    lost: u64,
    events: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    id: String,
    event: &'static str,
    /// When the node recorded it, Unix milliseconds.
    time: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<&'a str>,
    #[serde(flatten)]
    connection: Option<Connection<'a>>,
}

#[derive(Serialize)]
struct Connection<'a> {
    client: &'a str,
    user: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    code: u16,
    reason: &'a str,
}

/// A batch on its way: its body, and how much of the queue it is.
struct Posted {
    body: Bytes,
    events: usize,
    lost: u64,
}

/// Why a batch was not acknowledged.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("no answer in time")]
    Timeout,
    #[error("{0}{cause}", cause = fetch::causes(.0))]
    Request(#[from] legacy::Error),
    #[error("expected status 2xx, not {0}")]
    Status(hyper::StatusCode),
    #[error("cannot build the request: {0}")]
    Call(#[from] hyper::http::Error),
}

impl Hooks {
    /// Posts events of the node with this name and id.
    ///
    /// # Errors
    /// The certificates of the endpoint can't be used.
    pub(super) fn new(
        options: config::Hooks,
        node: String,
        node_id: String,
    ) -> Result<Self, TlsFault> {
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_timer(TokioTimer::new())
            .build(connector(&options.to)?);
        let address = Address::parse(&options.to.endpoint)
            .map_err(|fault| TlsFault::of(&options.to.name, &fault))?;
        Ok(Self {
            options,
            address,
            client,
            node,
            node_id,
            queue: Mutex::default(),
            more: Notify::new(),
            figures: Figures::default(),
        })
    }

    /// Takes events of a shard.
    pub(super) fn take(&self, events: AppEvents) {
        #[expect(clippy::disallowed_methods, reason = "the time of events, for the application")]
        let time_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time_ms = u64::try_from(time_ms.as_millis()).unwrap_or(u64::MAX);
        let mut queue = self.lock();
        let mut lost = events.lost;
        for event in events.events {
            let bytes = event.bytes();
            if queue.bytes + bytes > self.options.queue_bytes_max {
                lost += 1;
                continue;
            }
            queue.bytes += bytes;
            let number = queue.next;
            queue.next += 1;
            queue.events.push_back(Waiting { number, time_ms, event });
        }
        queue.lost += lost;
        if lost > 0 {
            self.figures.lost.fetch_add(lost, Ordering::Relaxed);
            if !std::mem::replace(&mut queue.is_full_logged, true) {
                let (waiting, bytes) = (queue.events.len(), queue.bytes);
                warn!(lost, waiting, bytes, "the queue of hook events is full: events are lost");
            }
        }
        drop(queue);
        self.more.notify_one();
    }

    /// Events that wait, and their bytes.
    pub(super) fn waiting(&self) -> (usize, usize) {
        let queue = self.lock();
        (queue.events.len(), queue.bytes)
    }

    /// Posts what comes until the process ends. `seed` spreads the retries of several nodes.
    pub(super) async fn run(self: Arc<Self>, seed: u64) {
        let mut rng = Rng::new(seed);
        loop {
            let Some(posted) = self.batch() else {
                self.more.notified().await;
                // Others of the same moment go along.
                sleep(LINGER).await;
                continue;
            };
            self.post_until_acknowledged(&posted, &mut rng).await;
            self.acknowledged(&posted);
        }
    }

    /// Waits, when the node ends, until all events are posted, at most [`FINISH`]. The last ones may still come: a
    /// channel is vacated by mail to its home, behind the end of the last connection.
    pub(super) async fn finish(&self) {
        let until = Instant::now() + FINISH;
        let mut empty_since = Instant::now();
        while empty_since.elapsed() < FINISH_QUIET && Instant::now() < until {
            sleep(FINISH_LOOK).await;
            if self.lock().has_some() {
                empty_since = Instant::now();
            }
        }
        let (waiting, _) = self.waiting();
        if waiting > 0 {
            warn!(waiting, "the node ends with hook events that are not delivered");
        }
    }

    async fn post_until_acknowledged(&self, posted: &Posted, rng: &mut Rng) {
        let mut pause = RETRY_MIN;
        let mut failures = 0u32;
        loop {
            let of = Duration::from_millis(self.options.to.timeout_ms);
            let came = timeout(of, self.post(posted.body.clone())).await;
            let Err(fault) = came.unwrap_or(Err(Fault::Timeout)) else { break };
            self.figures.posts[1].fetch_add(1, Ordering::Relaxed);
            failures += 1;
            if failures == 1 {
                let (waiting, _) = self.waiting();
                warn!(%fault, waiting, "hook events are not delivered: they are sent again");
            }
            // Half of the pause at least, so that nodes that failed together don't return together.
            let spread = rng.below(u64::try_from(pause.as_millis()).unwrap_or(1).max(2) / 2);
            sleep(pause / 2 + Duration::from_millis(spread)).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
        self.figures.posts[0].fetch_add(1, Ordering::Relaxed);
        if failures > 0 {
            info!(failures, "hook events are delivered again");
        }
    }

    async fn post(&self, body: Bytes) -> Result<(), Fault> {
        let mut headers: HeaderMap = static_headers(&self.options.to).collect();
        if let Some(basic) = &self.address.authorization {
            headers.entry(AUTHORIZATION).or_insert_with(|| basic.clone());
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut request = Request::post(self.address.uri.clone()).body(Full::new(body))?;
        *request.headers_mut() = headers;
        let response = self.client.request(request).await?;
        let status = response.status();
        // Read to its end, so that the connection serves the next batch.
        let _ = response_body(response).await;
        if status.is_success() { Ok(()) } else { Err(Fault::Status(status)) }
    }

    /// The next batch, if anything is to be posted. It stays in the queue.
    fn batch(&self) -> Option<Posted> {
        let queue = self.lock();
        if !queue.has_some() {
            return None;
        }
        let some = queue.events.iter().take(self.options.batch_max);
        let events: Vec<_> = some.map(|waiting| self.entry(waiting)).collect();
        let (count, lost) = (events.len(), queue.lost);
        let batch = Batch { node: &self.node, lost, events };
        // Texts and numbers under names: nothing in it can fail to be written.
        let body = Bytes::from(serde_json::to_vec(&batch).unwrap_or_default());
        Some(Posted { body, events: count, lost })
    }

    fn entry<'a>(&self, Waiting { number, time_ms, event }: &'a Waiting) -> Entry<'a> {
        let (channel, connection) = match event {
            AppEvent::Occupied(channel) | AppEvent::Vacated(channel) => (Some(&**channel), None),
            AppEvent::Disconnect { client, user, address, code, reason } => {
                let address = address.map(|address| address.to_string());
                (None, Some(Connection { client, user, address, code: *code, reason }))
            }
        };
        let id = format!("{}-{number}", self.node_id);
        Entry { id, event: event.name(), time: *time_ms, channel, connection }
    }

    fn acknowledged(&self, posted: &Posted) {
        let mut queue = self.lock();
        for _ in 0..posted.events {
            let Some(Waiting { event, .. }) = queue.events.pop_front() else { break };
            queue.bytes -= event.bytes();
            let kind = KINDS.iter().position(|kind| *kind == event.name()).unwrap_or(0);
            self.figures.delivered[kind].fetch_add(1, Ordering::Relaxed);
        }
        queue.lost -= posted.lost;
        queue.is_full_logged &= queue.lost > 0;
        if queue.events.is_empty() {
            queue.events.shrink_to(IDLE_EVENTS);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // One thread uses it, and a panic ends the process.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn has_some(&self) -> bool {
        !self.events.is_empty() || self.lost > 0
    }
}

/// Time that the first event waits for others to leave with it.
const LINGER: Duration = Duration::from_millis(20);

/// Pause before a batch is sent again: at first, and at most.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(20);

/// Time that a node which ends gives its last events.
const FINISH: Duration = Duration::from_secs(5);

/// So long no event has to come before there are no more.
const FINISH_QUIET: Duration = Duration::from_millis(100);
const FINISH_LOOK: Duration = Duration::from_millis(20);

/// Less than the five seconds after which Node's servers close idle connections.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// Places of the queue that stay when it is empty.
const IDLE_EVENTS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::proxy::ProxyOptions;

    fn hooks(batch_max: usize, queue_bytes_max: usize) -> Hooks {
        let to = ProxyOptions {
            name: "client.hooks".into(),
            endpoint: "http://127.0.0.1:9/".into(),
            ..ProxyOptions::default()
        };
        let options = config::Hooks { to, batch_max, queue_bytes_max };
        Hooks::new(options, "node-1".into(), "uid".into()).unwrap()
    }

    fn events(list: impl IntoIterator<Item = AppEvent>, lost: u64) -> AppEvents {
        let mut events = AppEvents::default();
        events.events.extend(list);
        events.lost = lost;
        events
    }

    fn occupied(channel: &str) -> AppEvent {
        AppEvent::Occupied(channel.into())
    }

    fn body(posted: &Posted) -> serde_json::Value {
        serde_json::from_slice(&posted.body).unwrap()
    }

    #[tokio::test]
    async fn a_batch_stays_until_it_is_acknowledged_and_keeps_its_ids() {
        let hooks = hooks(2, 1 << 20);
        assert!(hooks.batch().is_none());
        hooks.take(events(["a", "b", "c"].map(occupied), 0));
        let first = hooks.batch().unwrap();
        assert_eq!(hooks.batch().unwrap().body, first.body, "the same again");
        let list = body(&first);
        assert_eq!(list["node"], "node-1");
        assert_eq!(list["events"][0]["id"], "uid-0");
        assert_eq!(
            (&list["events"][1]["channel"], &list["events"][1]["event"]),
            (&"b".into(), &"occupied".into())
        );
        assert_eq!(list["events"].as_array().unwrap().len(), 2);
        hooks.acknowledged(&first);
        let second = hooks.batch().unwrap();
        assert_eq!(body(&second)["events"][0]["id"], "uid-2");
        hooks.acknowledged(&second);
        assert_eq!(hooks.waiting(), (0, 0));
        assert_eq!(hooks.figures.delivered[1].load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn a_full_queue_loses_new_events_and_the_next_batch_reports_them() {
        let hooks = hooks(10, 2 * occupied("a").bytes());
        hooks.take(events(["a", "b", "c"].map(occupied), 4));
        let posted = hooks.batch().unwrap();
        assert_eq!(body(&posted)["lost"], 5);
        // One that comes while the batch is on its way is of the next one.
        hooks.take(events([occupied("d")], 0));
        hooks.acknowledged(&posted);
        let posted = hooks.batch().unwrap();
        assert_eq!((posted.events, &body(&posted)["lost"]), (0, &1.into()));
        hooks.acknowledged(&posted);
        assert!(hooks.batch().is_none());
        assert_eq!(hooks.figures.lost.load(Ordering::Relaxed), 6);
    }

    #[tokio::test]
    async fn a_disconnect_has_its_client_and_its_code() {
        let hooks = hooks(10, 1 << 20);
        let event = AppEvent::Disconnect {
            client: "c".into(),
            user: "alice".into(),
            address: Some("::1".parse().unwrap()),
            code: 3000,
            reason: "connection closed".into(),
        };
        hooks.take(events([event], 0));
        let entry = &body(&hooks.batch().unwrap())["events"][0];
        let mut entry = entry.clone();
        assert!(entry["time"].as_u64().unwrap() > 1_600_000_000_000);
        entry.as_object_mut().unwrap().remove("time");
        let expected = serde_json::json!({
            "id": "uid-0", "event": "disconnect", "client": "c", "user": "alice", "address": "::1",
            "code": 3000, "reason": "connection closed",
        });
        assert_eq!(entry, expected);
    }
}
