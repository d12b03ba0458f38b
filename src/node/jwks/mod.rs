//! Fetches the key sets of JWKS endpoints, on the control thread.
//!
//! ```text
//!  Ask --> a fetch in progress? --> wait  --.
//!             |  fetched just now? ---------+--> Again, to the pool
//!             '- no: GET, 5 s, 1 MiB -------'
//! ```
//! Any client can make a node fetch keys, with a token that nobody signed. So an endpoint has one
//! fetch at a time and one in ten seconds, and only so many are known at once; the first to be
//! forgotten are those that gave no keys.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::Sender;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::crypto_pool::{Again, Ask, Endpoint, KeySource};
use super::fetch::{Client, FetchFault};
use super::tls::Trust;
use crate::base::url::without_credentials;
use crate::edge::jwt::KeyFault;
use crate::session::Rules;
use crate::shard::signatures::SignatureJob;

/// Bytes of a key set at most.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Types that a key set may have.
const ACCEPTED: &str = "application/jwk-set+json, application/json";

/// Endpoints known at once; tokens of others wait for a place.
const ENDPOINTS_MAX: usize = 64;

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// From the end of a fetch until an unknown key causes the next one.
    pub(super) retry: Duration,
    /// From the end of a fetch until keys are fetched again unasked.
    pub(super) refresh: Duration,
    /// For a whole fetch, names and connecting included.
    pub(super) timeout: Duration,
}

impl Pace {
    /// That of a node.
    pub(super) const NODE: Self = Self {
        retry: Duration::from_secs(10),
        refresh: Duration::from_secs(3_600),
        timeout: Duration::from_secs(5),
    };
}

/// Why a key set was not to be had.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error(transparent)]
    Fetch(#[from] FetchFault),
    #[error(transparent)]
    Keys(#[from] KeyFault),
}

/// One that can ask the endpoints of these rules.
///
/// # Errors
/// One of them needs TLS, and the machine has no certificates to check servers with.
pub(super) fn client(rules: &Rules) -> std::io::Result<Client> {
    let sets = [Some(&rules.keys), rules.subscription_keys.as_ref()];
    let secure = sets.into_iter().flatten().any(|keys| keys.fetches_keys() == Some(true));
    if secure { Client::secure(Trust::Machine) } else { Ok(Client::plain()) }
}

/// Fetches what jobs ask for, and again what it has.
pub(super) struct Fetcher<K> {
    keys: Arc<K>,
    client: Client,
    asks: UnboundedReceiver<Ask>,
    again: Sender<Again>,
    pace: Pace,
    known: Known,
    fetches: JoinSet<(Endpoint, Result<Bytes, Fault>)>,
}

impl<K: KeySource> Fetcher<K> {
    /// An endpoint that was not fetched yet.
    pub(super) fn new(
        keys: Arc<K>,
        client: Client,
        asks: UnboundedReceiver<Ask>,
        again: Sender<Again>,
        pace: Pace,
    ) -> Self {
        let known = Known { endpoints: BTreeMap::new(), pace };
        Self { keys, client, asks, again, pace, known, fetches: JoinSet::new() }
    }

    /// Works until nobody can ask any more.
    pub(super) async fn run(mut self) {
        while self.step().await {}
    }

    /// The next thing to do, once there is one. False when nothing can come any more.
    async fn step(&mut self) -> bool {
        let refresh = self.known.next_refresh();
        tokio::select! {
            ask = self.asks.recv() => match ask {
                Some(ask) => self.ask(ask),
                None => return false,
            },
            Some(fetched) = self.fetches.join_next() => match fetched {
                Ok((endpoint, result)) => self.fetched(&endpoint, result),
                // Only a panic of its own ends a fetch so; a release has aborted by then.
                Err(fault) => warn!(%fault, "key fetch aborted"),
            },
            () = until(refresh) => {
                for endpoint in self.known.refresh(Instant::now()) {
                    self.fetch(endpoint);
                }
            }
        }
        true
    }

    fn ask(&mut self, ask: Ask) {
        let endpoint = ask.endpoint.clone();
        match self.known.ask(ask, Instant::now()) {
            Asked::Waits => {}
            Asked::Answered(again) => self.send(again),
            Asked::Fetch { forgotten } => {
                if let Some(Endpoint { kind, url }) = forgotten {
                    self.keys.keys(kind).forget_keys(&url);
                }
                self.fetch(endpoint);
            }
        }
    }

    fn fetch(&mut self, endpoint: Endpoint) {
        let client = self.client.clone();
        let timeout = self.pace.timeout;
        debug!(url = without_credentials(&endpoint.url), "fetching keys");
        self.fetches.spawn(async move {
            let result = match tokio::time::timeout(
                timeout,
                client.get(&endpoint.url, ACCEPTED, BODY_BYTES_MAX),
            )
            .await
            {
                Ok(result) => result.map_err(Fault::from),
                Err(_) => Err(Fault::Timeout(timeout)),
            };
            (endpoint, result)
        });
    }

    fn fetched(&mut self, endpoint: &Endpoint, result: Result<Bytes, Fault>) {
        let Endpoint { kind, url } = endpoint;
        let installed =
            result.and_then(|body| Ok(self.keys.keys(*kind).install_keys(url, &body)?));
        let shown = without_credentials(url);
        match &installed {
            Ok(0) => warn!(url = shown, "the key set has no usable key"),
            Ok(keys) => debug!(url = shown, keys, "keys fetched"),
            Err(fault) => warn!(url = shown, %fault, "key fetch failed"),
        }
        for again in self.known.fetched(endpoint, installed.is_ok(), Instant::now()) {
            self.send(again);
        }
    }

    fn send(&self, again: Again) {
        // Fails only when the pool has ended, and with it the node.
        let _ = self.again.send(again);
    }
}

/// Waits for a moment, for ever when there is none.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// The known endpoints: decides which is fetched, and when. Time is an argument.
struct Known {
    endpoints: BTreeMap<Endpoint, State>,
    pace: Pace,
}

/// An endpoint.
#[derive(Default)]
struct State {
    /// A fetch is in progress.
    running: bool,
    /// Jobs that wait for that.
    waiting: Vec<SignatureJob>,
    /// End of the last fetch.
    fetched_at: Option<Instant>,
    /// The last fetch gave nothing.
    failed: bool,
    /// Some fetch gave keys.
    has_keys: bool,
}

/// The way of a job.
enum Asked {
    /// Its endpoint is being fetched already.
    Waits,
    /// The known keys have to suffice.
    Answered(Again),
    /// It waits, and its endpoint is to be fetched now. Another one had to make room.
    Fetch { forgotten: Option<Endpoint> },
}

impl Known {
    fn ask(&mut self, ask: Ask, now: Instant) -> Asked {
        let Ask { job, endpoint } = ask;
        let retry = self.pace.retry;
        let mut forgotten = None;
        if !self.endpoints.contains_key(&endpoint) && self.endpoints.len() >= ENDPOINTS_MAX {
            forgotten = self.make_room(now);
            if forgotten.is_none() {
                debug!(url = without_credentials(&endpoint.url), "too many key endpoints");
                return Asked::Answered(Again::Unavailable(job));
            }
        }
        let state = self.endpoints.entry(endpoint).or_default();
        if state.running {
            state.waiting.push(job);
            return Asked::Waits;
        }
        if !state.is_due(retry, now) {
            let again = if state.failed { Again::Unavailable } else { Again::Check };
            return Asked::Answered(again(job));
        }
        state.running = true;
        state.waiting.push(job);
        Asked::Fetch { forgotten }
    }

    /// Forgets an endpoint that may be fetched again by now: one without keys, else the one fetched
    /// longest ago. So at most as many as there are places are fetched within the time to retry.
    fn make_room(&mut self, now: Instant) -> Option<Endpoint> {
        let retry = self.pace.retry;
        let (endpoint, _) = self
            .endpoints
            .iter()
            .filter(|(_, state)| !state.running && state.is_due(retry, now))
            .min_by_key(|(_, state)| (state.has_keys, state.fetched_at))?;
        let endpoint = endpoint.clone();
        self.endpoints.remove(&endpoint);
        Some(endpoint)
    }

    /// Takes note of a fetch; what becomes of the jobs that waited.
    fn fetched(&mut self, endpoint: &Endpoint, good: bool, now: Instant) -> Vec<Again> {
        let Some(state) = self.endpoints.get_mut(endpoint) else { return Vec::new() };
        state.running = false;
        state.fetched_at = Some(now);
        state.failed = !good;
        state.has_keys |= good;
        let again = if good { Again::Check } else { Again::Unavailable };
        std::mem::take(&mut state.waiting).into_iter().map(again).collect()
    }

    /// When keys are to be fetched again unasked.
    fn next_refresh(&self) -> Option<Instant> {
        let refresh = self.pace.refresh;
        self.endpoints.values().filter_map(|state| state.refresh_at(refresh)).min()
    }

    /// The endpoints that are to be fetched again now.
    fn refresh(&mut self, now: Instant) -> Vec<Endpoint> {
        let refresh = self.pace.refresh;
        let mut due = Vec::new();
        for (endpoint, state) in &mut self.endpoints {
            if state.refresh_at(refresh).is_some_and(|at| at <= now) {
                state.running = true;
                due.push(endpoint.clone());
            }
        }
        due
    }
}

impl State {
    /// Whether an unknown key may cause a fetch.
    fn is_due(&self, retry: Duration, now: Instant) -> bool {
        self.fetched_at.is_none_or(|at| now.saturating_duration_since(at) >= retry)
    }

    fn refresh_at(&self, refresh: Duration) -> Option<Instant> {
        (self.has_keys && !self.running).then_some(self.fetched_at? + refresh)
    }
}

#[cfg(test)]
mod tests;
