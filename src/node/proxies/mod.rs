//! Proxies: calls the application over HTTP for shards (server API, section 6).
//!
//! ```text
//!  shard --Mail::AppCall--> breaker closed? --> room for one more call? --> POST --> Mail::AppReply --> shard
//!                           '- no: failed    '- no: waits its turn      kept-alive connections
//! ```
//! Each endpoint has its own connections, bound and breaker. Whatever happens, each question is answered
//! within its timeout.

mod breaker;
mod connector;
mod wire;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
    TRANSFER_ENCODING,
};
use hyper::{Request, Response, StatusCode};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{info, warn};

pub(super) use self::breaker::State;
use self::breaker::{Breaker, Came, Change, Source};
pub(super) use self::connector::{Connector, TlsFault, connector};
use super::address::{Address, REDIRECTS_MAX, RedirectFault, redirected};
use super::control_mail::ControlMail;
use crate::base::id::ShardId;
use crate::base::limits::PROXY_ANSWER_BYTES_MAX;
use crate::base::notices::Reason;
use crate::base::times::Times;
use crate::edge::proxy::{AppError, ProxyEvent, ProxyOptions, StatusTransform};
use crate::proto::client::ErrorCode;
use crate::session::{Headers, NamedValues, Rules};
use crate::shard::mail::Mail;
use crate::shard::proxies::{AppAnswer, AppCall, AppReply, AppRequest};
use crate::shard::{Fields, NodeState, Notices};

/// How a question ended, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// With a result.
    Result,
    /// With an error of the application's.
    Error,
    /// With a disconnect of the application's.
    Disconnect,
    /// With nothing of that.
    Nothing,
    /// With a status of 4xx that isn't transformed.
    Rejected,
    /// Without an answer that can be understood.
    Failed,
    /// Without an answer in time.
    Timeout,
    /// Not called: the breaker is open.
    Open,
    /// Not called: no turn in time.
    Busy,
    /// Not called: the client's payload isn't JSON.
    NotJson,
}

impl Outcome {
    /// All of them, in order.
    pub(super) const ALL: [Self; 10] = [
        Self::Result,
        Self::Error,
        Self::Disconnect,
        Self::Nothing,
        Self::Rejected,
        Self::Failed,
        Self::Timeout,
        Self::Open,
        Self::Busy,
        Self::NotJson,
    ];

    /// As metrics name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Result => "result",
            Self::Error => "error",
            Self::Disconnect => "disconnect",
            Self::Nothing => "nothing",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Open => "open",
            Self::Busy => "busy",
            Self::NotJson => "not_json",
        }
    }

    fn of(answer: &AppAnswer) -> Self {
        match answer {
            AppAnswer::Result(_) => Self::Result,
            AppAnswer::Error(_) => Self::Error,
            AppAnswer::Disconnect(_) => Self::Disconnect,
            AppAnswer::Nothing => Self::Nothing,
            AppAnswer::Failed => Self::Failed,
        }
    }
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("no answer in time")]
    Timeout,
    #[error("{0}{cause}", cause = super::fetch::causes(.0))]
    Request(#[from] legacy::Error),
    #[error("expected status 200, not {0}")]
    Status(StatusCode),
    #[error(transparent)]
    Redirect(#[from] RedirectFault),
    #[error("cannot read the answer: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("invalid answer: {0}")]
    Answer(String),
    #[error("cannot build the request: {0}")]
    Call(#[from] hyper::http::Error),
}

impl Fault {
    /// The verdict about the endpoint.
    fn came(&self) -> Came {
        match self {
            Self::Status(status) if status.is_client_error() => Came::Rejection,
            Self::Request(fault) if fault.is_connect() => Came::Unreachable,
            // The client's data cannot be posted: nothing was sent.
            Self::Call(_) => Came::GivenUp,
            _ => Came::Failure,
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Timeout => Outcome::Timeout,
            Self::Status(status) if status.is_client_error() => Outcome::Rejected,
            _ => Outcome::Failed,
        }
    }
}

/// All endpoints.
pub(super) struct Proxies {
    control_mail: Arc<ControlMail>,
    node: Arc<NodeState>,
    endpoints: Mutex<Endpoints>,
}

type ByOptions = HashMap<Arc<ProxyOptions>, Arc<Endpoint>>;

#[derive(Default)]
struct Endpoints {
    /// The endpoints that the rules name.
    named: ByOptions,
    /// The endpoints that they named before: calls of them may be on their way.
    before: ByOptions,
}

impl Proxies {
    /// The endpoints that the rules name.
    ///
    /// # Errors
    /// One of them has certificates that can't be used.
    pub(super) fn new(
        control_mail: Arc<ControlMail>,
        node: Arc<NodeState>,
    ) -> Result<Self, TlsFault> {
        let proxies = Self { control_mail, node, endpoints: Mutex::default() };
        proxies.follow(&proxies.node.rules)?;
        Ok(proxies)
    }

    /// Takes over which endpoints the rules name by now. Those that stay keep what they know.
    ///
    /// # Errors
    /// As [`Self::new`]; then all stays as it is.
    pub(super) fn follow(&self, rules: &Rules) -> Result<(), TlsFault> {
        let named = rules.proxies();
        let mut endpoints = self.lock();
        let mut next = HashMap::new();
        for options in named {
            let endpoint = match endpoints.get(&options) {
                Some(known) => known,
                None => Arc::new(Endpoint::new(Arc::clone(&options))?),
            };
            next.insert(options, endpoint);
        }
        endpoints.before = std::mem::replace(&mut endpoints.named, next);
        Ok(())
    }

    /// All endpoints by name, for metrics.
    pub(super) fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        let mut all: Vec<_> = self.lock().named.values().cloned().collect();
        all.sort_by(|a, b| a.options.name.cmp(&b.options.name));
        all
    }

    /// Answers a question of a shard's, whatever happens.
    pub(super) async fn answer(&self, from: ShardId, question: AppCall) {
        let endpoint = self.lock().get(&question.proxy);
        let answer = match endpoint {
            Some(endpoint) => {
                let source = Source::new(question.address, from, question.asker.conn);
                endpoint.ask(&question, source, &self.node.notices).await
            }
            None => AppAnswer::Failed,
        };
        let local = match question.call {
            AppRequest::SubRefresh { local, .. } => local,
            _ => 0,
        };
        let (asker, ticket, event) = (question.asker, question.ticket, question.call.event());
        self.control_mail
            .post(from, Mail::AppReply(Box::new(AppReply { asker, local, ticket, event, answer })));
    }

    fn lock(&self) -> MutexGuard<'_, Endpoints> {
        // One thread uses it, and a panic ends the process.
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Endpoints {
    fn get(&self, options: &Arc<ProxyOptions>) -> Option<Arc<Endpoint>> {
        self.named.get(options).or_else(|| self.before.get(options)).cloned()
    }
}

/// One endpoint, its connections and what is known of it.
pub(super) struct Endpoint {
    pub(super) options: Arc<ProxyOptions>,
    address: Address,
    client: legacy::Client<Connector, Full<Bytes>>,
    room: Semaphore,
    breaker: Mutex<Breaker>,
    outcomes: [[AtomicU64; Outcome::ALL.len()]; ProxyEvent::ALL.len()],
    in_flight: AtomicU64,
    /// How long calls took that were made.
    pub(super) durations: Times,
}

impl Endpoint {
    fn new(options: Arc<ProxyOptions>) -> Result<Self, TlsFault> {
        let concurrency = options.concurrency as usize;
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(concurrency.min(IDLE_MAX))
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_timer(TokioTimer::new())
            .build(connector(&options)?);
        let pause = Duration::from_millis(options.breaker_pause_ms);
        let address = Address::parse(&options.endpoint)
            .map_err(|fault| TlsFault::of(&options.name, &fault))?;
        Ok(Self {
            client,
            address,
            room: Semaphore::new(concurrency),
            breaker: Mutex::new(Breaker::new(options.breaker_failures, pause)),
            outcomes: Default::default(),
            in_flight: AtomicU64::new(0),
            durations: Times::default(),
            options,
        })
    }

    /// How its breaker stands.
    pub(super) fn state(&self) -> State {
        self.breaker().state(Instant::now())
    }

    /// Calls on their way.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// How many questions about an event ended so.
    pub(super) fn count(&self, event: ProxyEvent, outcome: Outcome) -> u64 {
        self.outcomes[event as usize][outcome as usize].load(Ordering::Relaxed)
    }

    /// Questions so far.
    pub(super) fn questions(&self) -> u64 {
        self.sum(|_| true)
    }

    /// Of them, those that the application did not answer.
    pub(super) fn failures(&self) -> u64 {
        use Outcome::{Busy, Failed, Open, Timeout};
        self.sum(|outcome| matches!(outcome, Failed | Timeout | Open | Busy))
    }

    fn sum(&self, counts: fn(Outcome) -> bool) -> u64 {
        let wanted = Outcome::ALL.into_iter().filter(|outcome| counts(*outcome));
        wanted.flat_map(|outcome| ProxyEvent::ALL.map(|event| self.count(event, outcome))).sum()
    }

    async fn ask(&self, question: &AppCall, source: Source, notices: &Notices) -> AppAnswer {
        let event = question.call.event();
        let failed = |reason, why: std::fmt::Arguments<'_>| {
            let (name, event) = (&self.options.name, event.name());
            let channel = match &question.call {
                AppRequest::Subscribe { channel, .. }
                | AppRequest::Publish { channel, .. }
                | AppRequest::SubRefresh { channel, .. } => channel.as_str(),
                _ => "",
            };
            let (user, client) = (question.user.as_str(), question.client.as_str());
            let fields = Fields { user, client, channel, ..Fields::default() };
            let why = Some(format_args!("proxy {name:?}, {event}: {why}"));
            notices.notice_now(reason, &Fields { why, ..fields });
        };
        let (outcome, answer) = self.outcome(event, question, source, failed).await;
        self.outcomes[event as usize][outcome as usize].fetch_add(1, Ordering::Relaxed);
        answer
    }

    async fn outcome(
        &self,
        event: ProxyEvent,
        question: &AppCall,
        source: Source,
        failed: impl Fn(Reason, std::fmt::Arguments<'_>),
    ) -> (Outcome, AppAnswer) {
        let began = Instant::now();
        let Ok(body) = wire::body(question) else {
            let code = ErrorCode::BadRequest;
            let (message, temporary) = (code.message().to_owned(), code.temporary());
            let error = AppError { code: code.code().into(), message, temporary };
            return (Outcome::NotJson, AppAnswer::Error(error));
        };
        let Some(permit) = self.breaker().admits(source, began) else {
            failed(Reason::ProxyBreaker, format_args!("not called"));
            return (Outcome::Open, AppAnswer::Failed);
        };
        let until = began + Duration::from_millis(self.options.timeout_ms);
        let Ok(Ok(_place)) = tokio::time::timeout_at(until, self.room.acquire()).await else {
            // The calls that hold the places show the state of the endpoint.
            self.breaker().ended(&permit, Came::GivenUp, Instant::now());
            let most = self.options.concurrency;
            failed(Reason::ProxyFailed, format_args!("no turn in time among {most} calls"));
            return (Outcome::Busy, AppAnswer::Failed);
        };
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let called = tokio::time::timeout_at(until, self.call(event, question, body)).await;
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        let us = u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX);
        self.durations.record(us);
        let name = &self.options.name;
        let called = called.unwrap_or(Err(Fault::Timeout));
        let came = called.as_ref().map_or_else(Fault::came, |_| Came::Answer);
        match (self.breaker().ended(&permit, came, Instant::now()), &called) {
            (Change::Opened, Err(fault)) => {
                let pause_ms = self.options.breaker_pause_ms;
                warn!(name, %fault, pause_ms, "proxy calls fail: circuit open, no calls until the pause is over");
            }
            (Change::Closed, _) => info!(name, "proxy calls succeed again: circuit closed"),
            _ => {}
        }
        match called {
            Ok(answer) => (Outcome::of(&answer), answer),
            Err(fault) => {
                failed(Reason::ProxyFailed, format_args!("{fault}"));
                (fault.outcome(), AppAnswer::Failed)
            }
        }
    }

    async fn call(
        &self,
        event: ProxyEvent,
        question: &AppCall,
        body: Vec<u8>,
    ) -> Result<AppAnswer, Fault> {
        let mut headers = headers(question);
        if let Some(basic) = &self.address.authorization
            && !headers.contains_key(AUTHORIZATION)
        {
            headers.insert(AUTHORIZATION, basic.clone());
        }
        let (mut uri, body) = (self.address.uri.clone(), Bytes::from(body));
        let mut redirects = 0;
        let response = loop {
            let mut request = Request::post(uri.clone()).body(Full::new(body.clone()))?;
            *request.headers_mut() = headers.clone();
            let response = self.client.request(request).await?;
            let status = response.status();
            let is_redirect =
                matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
            // The only ones after which a POST stays one (RFC 9110 15.4.8, 15.4.9).
            if !is_redirect || self.transform(status).is_some() {
                break response;
            }
            redirects += 1;
            if redirects > REDIRECTS_MAX {
                return Err(RedirectFault::TooMany.into());
            }
            uri = redirected(&uri, response.headers())?;
        };
        let status = response.status();
        if status != StatusCode::OK {
            let transform = self.transform(status).ok_or(Fault::Status(status))?;
            return Ok(match (&transform.to_disconnect, &transform.to_error) {
                (Some(disconnect), _) => AppAnswer::Disconnect(disconnect.clone()),
                (None, Some(error)) => AppAnswer::Error(error.clone()),
                (None, None) => return Err(Fault::Status(status)),
            });
        }
        let body = response_body(response).await.map_err(Fault::Body)?;
        wire::answer(event, &body).map_err(Fault::Answer)
    }

    fn transform(&self, status: StatusCode) -> Option<&StatusTransform> {
        self.options.transforms.iter().find(|of| of.status_code == status.as_u16())
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body of a response, of [`PROXY_ANSWER_BYTES_MAX`] at most.
pub(super) async fn response_body(
    response: Response<Incoming>,
) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    let (head, body) = response.into_parts();
    let has_end =
        head.headers.contains_key(CONTENT_LENGTH) || head.headers.contains_key(TRANSFER_ENCODING);
    let mut body = Limited::new(body, PROXY_ANSWER_BYTES_MAX);
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data)),
            // A server that ends its answer with the connection may do so without TLS's word of it (RFC 8446
            // 6.1). What was cut off is no JSON, so nothing is taken for an answer that isn't one.
            Err(fault) if !has_end && is_end_of_stream(&*fault) => break,
            Err(fault) => return Err(fault),
        }
    }
    Ok(bytes)
}

fn is_end_of_stream(fault: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(fault), |fault| fault.source()).any(|fault| {
        let fault = fault.downcast_ref::<std::io::Error>();
        fault.is_some_and(|fault| fault.kind() == std::io::ErrorKind::UnexpectedEof)
    })
}

/// A header; `None` for one whose name or value is not valid.
fn header(name: &str, value: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    Some((name, HeaderValue::from_bytes(value).ok()?))
}

/// The headers of each call of an endpoint.
pub(super) fn static_headers(
    options: &ProxyOptions,
) -> impl Iterator<Item = (HeaderName, HeaderValue)> + '_ {
    options.static_headers.iter().filter_map(|(name, value)| header(name, value.as_bytes()))
}

/// Headers of a call: the static ones, then those of the client, those of its request last.
fn headers(question: &AppCall) -> HeaderMap {
    let options = &question.proxy;
    let mut headers = HeaderMap::new();
    let kept = |of: fn(&Headers) -> &NamedValues, wanted: &[String]| {
        let kept = question.headers.as_deref().map(of).into_iter().flatten();
        let wanted = kept.filter(|(name, _)| wanted.iter().any(|wanted| wanted == name));
        wanted.filter_map(|(name, value)| header(name, value)).collect::<Vec<_>>()
    };
    for (name, value) in
        static_headers(options).chain(kept(|of| &of.emulated, &options.emulated_headers))
    {
        headers.insert(name, value);
    }
    // A request may have several of a name: together they take the place of what was there.
    let http = kept(|of| &of.http, &options.http_headers);
    http.iter().for_each(|(name, _)| _ = headers.remove(name));
    for (name, value) in http {
        headers.append(name, value);
    }
    // Unless the client's request has said it, and that is taken over.
    if let Some(address) = question.address
        && let Ok(value) = HeaderValue::from_str(&address.to_string())
    {
        for name in [X_FORWARDED_FOR, X_REAL_IP] {
            headers.entry(name).or_insert_with(|| value.clone());
        }
    }
    // The node has checked it: nothing that a client says takes its place, also where the subject is empty.
    if let Some(subject) = &question.certificate {
        headers.remove(X_CLIENT_CERT_SUBJECT);
        let value = HeaderValue::from_bytes(subject.as_bytes()).ok();
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            headers.insert(X_CLIENT_CERT_SUBJECT, value);
        }
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers
}

/// Where applications look for the client's address.
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// The subject of the client's certificate, where the node requires one.
const X_CLIENT_CERT_SUBJECT: HeaderName = HeaderName::from_static("x-client-cert-subject");

/// Idle connections that are kept for one endpoint at most.
const IDLE_MAX: usize = 255;

/// For how long: less than the five seconds after which Node's servers close theirs.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
