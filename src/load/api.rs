//! Publishing through a server's HTTP API instead of a connection: the same schedule, on a thread
//! with its own descriptor table and its own tokio runtime; nothing of either leaves the thread.
//!
//! ```text
//!  schedule --due--> channel's turn --free, and fewer than --in-flight--> POST <api>/publish
//!                        ^------------- answered ---------------------------'
//! ```
//!
//! A server numbers publications as requests arrive, and requests on two connections overtake each
//! other. So a channel has at most one request under way, and several channels have several. What
//! is due meanwhile waits, with its intended time: that the server was slow is in the latency.

use super::figures::{self, Busy, Latency, Reasons};
use super::hub::Hub;
use super::output::plain;
use super::payload::{PayloadWriter, Stamp};
use super::plan::Plan;
use super::publisher::{LOOK_EVERY, Live, Order, Outcome, Schedule, Schedules};
use super::speech;
use super::target::Api;
use super::tls;
use crate::sys::tables;
use crossbeam_channel::{Receiver, TryRecvError};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustix::event::Timespec;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::{JoinError, JoinSet};

/// An answer's body is at most this long; a longer one is refused.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Of an error's message, so much is reported.
const MESSAGE_CHARS_MAX: usize = 200;

/// Messages that fall due in one turn, at most; the rest in the next.
const TURN_DUE_MAX: u32 = 4096;

/// Idle connections are given up after so long: before a server would, in the middle of a request.
const IDLE_MAX: Duration = Duration::from_secs(15);

/// Before a publish that failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Publishes as ordered until [`Order::Finish`]. For a thread of its own, which leaves the
/// process's descriptor table.
pub(crate) fn run(
    plan: Arc<Plan>,
    api: Api,
    origin: Instant,
    live: Arc<Live>,
    orders: &Receiver<Order>,
) -> Outcome {
    let channels = plan.channels.len();
    let begun = begin().and_then(|runtime| {
        let running = {
            // Timers and sockets belong to the runtime that is entered when they are made.
            let _entered = runtime.enter();
            Running::new(plan, api, origin, Arc::clone(&live)).map_err(|error| plain(&error))?
        };
        Ok(runtime.block_on(running.drive(orders)))
    });
    begun.unwrap_or_else(|error| {
        let mut reasons = Reasons::default();
        reasons.add(&format!("publisher: {error}"));
        let mut finished = 0;
        while let Ok(Order::Start { .. } | Order::Stop) = orders.recv() {
            finished += 1;
            live.finished.store(finished, Relaxed);
        }
        let sent = vec![0; channels];
        Outcome { sent, lag: figures::latency(), reasons, busy: Busy::default() }
    })
}

/// Leaves the process's table, and only then makes descriptors.
fn begin() -> Result<tokio::runtime::Runtime, String> {
    tables::block_signals().map_err(|error| format!("blocking signals: {error}"))?;
    tables::unshare_files().map_err(|error| format!("a table of its own: {error}"))?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("starting a runtime: {error}"))
}

/// Why a message was not published, as far as is known.
#[derive(Debug)]
enum Failure {
    /// Refused, or the request came to nothing; the text says which and why.
    Known(String),
    /// No answer in time: it may be published yet.
    Late,
}

struct Running {
    plan: Arc<Plan>,
    api: Api,
    origin: Instant,
    live: Arc<Live>,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    alarm: Alarm,
    /// Requests under way: the channel, and what became of it.
    requests: JoinSet<(u32, Result<(), Failure>)>,
    turns: Turns,
    payloads: PayloadWriter,
    payload: Vec<u8>,
    sent: Vec<u32>,
    lag: Latency,
    reasons: Reasons,
    /// Whether publishing goes on.
    open: bool,
}

impl Running {
    fn new(plan: Arc<Plan>, api: Api, origin: Instant, live: Arc<Live>) -> io::Result<Self> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.enforce_http(false);
        let secured = HttpsConnectorBuilder::new();
        // Without TLS no server is to be checked.
        let connector = match &api.tls {
            Some(tls) => secured
                .with_tls_config(tls.plain_config())
                .https_or_http()
                .with_server_name_resolver(FixedServerNameResolver::new(tls.server()))
                .enable_http1()
                .wrap_connector(connector),
            None => secured
                .with_tls_config(tls::without_servers().map_err(io::Error::other)?)
                .https_or_http()
                .enable_http1()
                .wrap_connector(connector),
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(api.in_flight)
            .build(connector);
        Ok(Self {
            client,
            alarm: Alarm::new()?,
            requests: JoinSet::new(),
            turns: Turns::new(plan.channels.len(), api.in_flight),
            payloads: PayloadWriter::of(plan.payload_bytes, plan.template.as_ref()),
            payload: Vec::new(),
            sent: vec![0; plan.channels.len()],
            lag: figures::latency(),
            reasons: Reasons::default(),
            open: true,
            plan,
            api,
            origin,
            live,
        })
    }

    async fn drive(mut self, orders: &Receiver<Order>) -> Outcome {
        let mut schedules = Schedules::new(&self.plan, 0);
        let (mut busy, mut busy_from) = (Busy::default(), None);
        loop {
            match orders.try_recv() {
                Ok(Order::Start { segment, first }) => {
                    busy_from.get_or_insert_with(Busy::of_this_thread);
                    schedules.push(segment, first);
                }
                Ok(Order::Stop) => schedules.stop(),
                Ok(Order::Finish) | Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {}
            }
            if let Some(schedule) = &mut schedules.current {
                self.publish_due(schedule);
                if !self.open || (schedule.is_done() && self.turns.due == 0) {
                    schedules.next();
                    busy = Busy::of_this_thread().since(busy_from.unwrap_or_default());
                }
            }
            if schedules.current.is_some() || self.requests.is_empty() {
                self.live.finished.store(schedules.finished, Relaxed);
            }
            self.exchange(schedules.current.as_ref()).await;
        }
        Outcome { sent: self.sent, lag: self.lag, reasons: self.reasons, busy }
    }

    fn now_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// Begins the requests that are due and whose channels are free.
    fn publish_due(&mut self, schedule: &mut Schedule) {
        let now_ns = self.now_ns();
        for _ in 0..TURN_DUE_MAX {
            let intended_ns = schedule.next_ns();
            if schedule.is_done() || intended_ns > now_ns {
                break;
            }
            // Its lateness is ours only if no answer is waited for.
            if self.turns.add_due(schedule.channel(), intended_ns) {
                self.lag.saturating_record(((now_ns - intended_ns) / 1000).max(1));
            }
            schedule.advance();
        }
        while self.open
            && let Some((channel, intended_ns)) = self.turns.begin()
        {
            self.begin_request(channel, intended_ns);
        }
    }

    fn begin_request(&mut self, channel: u32, intended_ns: u64) {
        let count = &mut self.sent[channel as usize];
        *count += 1;
        let sequence = *count;
        let (run, actual_ns) = (self.plan.run, self.now_ns());
        let stamp = Stamp { run, channel, sequence, intended_ns, actual_ns };
        self.payloads.write(&stamp, &mut self.payload);
        let key = self.api.retry.map(|_| format!("{run}-{channel}-{sequence}"));
        let mut body = Vec::with_capacity(self.payload.len() + 128);
        let name = &self.plan.channels[channel as usize];
        let hub = self.api.hub;
        match hub {
            None => speech::put_api_publish(name, &self.payload, key.as_deref(), &mut body),
            Some(hub) => body = hub.body(name, &self.payload),
        }
        let mut request = Request::new(Full::from(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.api.uri(channel).clone();
        let headers = request.headers_mut();
        headers.insert(header::HOST, self.api.host.clone());
        let content_type = hub.map_or("application/json", Hub::content_type);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(key) = self.api.key.clone() {
            headers.insert(if hub.is_some() { header::AUTHORIZATION } else { API_KEY }, key);
        }
        let (client, patience) = (self.client.clone(), self.plan.connect_timeout);
        let retry = self.api.retry;
        self.requests.spawn(async move {
            let began = Instant::now();
            loop {
                let asked = ask(client.clone(), request.clone(), hub);
                let result = match tokio::time::timeout(patience, asked).await {
                    Err(_) => Err(Failure::Late),
                    Ok(answer) => answer.map_err(Failure::Known),
                };
                if result.is_ok() || retry.is_none_or(|retry| began.elapsed() >= retry) {
                    return (channel, result);
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        });
        self.plan.published.set(channel, sequence);
        self.live.note(&self.plan, channel, actual_ns);
    }

    /// Waits for the next message's time, an order, or answers.
    async fn exchange(&mut self, schedule: Option<&Schedule>) {
        let next = schedule.filter(|schedule| !schedule.is_done());
        let until = next.map_or(LOOK_EVERY, |schedule| {
            Duration::from_nanos(schedule.next_ns().saturating_sub(self.now_ns())).min(LOOK_EVERY)
        });
        let ended = tokio::select! {
            Some(ended) = self.requests.join_next() => Some(ended),
            () = self.alarm.wait(until) => None,
        };
        let mut next = ended;
        while let Some(ended) = next {
            self.note(ended);
            next = self.requests.try_join_next();
        }
    }

    fn note(&mut self, ended: Result<(u32, Result<(), Failure>), JoinError>) {
        match ended {
            Ok((channel, Ok(()))) => self.turns.end(channel),
            Ok((channel, Err(Failure::Known(reason)))) => {
                self.reasons.add(&reason);
                self.turns.end(channel);
            }
            // It may be published after whatever came next: so nothing comes next.
            Ok((_, Err(Failure::Late))) => {
                self.open = false;
                self.reasons.add("publisher: the API did not answer in time");
            }
            Err(error) => {
                self.open = false;
                self.reasons.add(&format!("publisher: {error}"));
            }
        }
    }
}

/// Sends a request, and reads what became of it.
async fn ask(
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    request: Request<Full<Bytes>>,
    hub: Option<Hub>,
) -> Result<(), String> {
    let failed = |cause: String| format!("publish failed: {cause}");
    let response = client.request(request).await.map_err(|error| failed(cause(&error)))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| failed(cause(&*error)))?.to_bytes();
    if hub.is_some() && status.is_success() {
        return Ok(());
    }
    judge(status, &body).map_err(|reason| format!("publish refused: {reason}"))
}

/// The root cause of an error.
fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut bottom = error;
    while let Some(source) = bottom.source() {
        bottom = source;
    }
    bottom.downcast_ref::<io::Error>().map_or_else(|| bottom.to_string(), plain)
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct ApiError {
    code: u32,
    #[serde(default)]
    message: String,
}

impl ApiError {
    fn text(&self) -> String {
        let message: String = self.message.chars().take(MESSAGE_CHARS_MAX).collect();
        format!("{} {message}", self.code)
    }
}

/// Whether an answer says that the message was published; else why not. Errors come with status
/// 200 in an `error`, or with another status as the whole body if the server is set so.
fn judge(status: StatusCode, body: &[u8]) -> Result<(), String> {
    if status != StatusCode::OK {
        let error = serde_json::from_slice::<ApiError>(body);
        return Err(error.map_or_else(|_| format!("status {}", status.as_u16()), |e| e.text()));
    }
    match serde_json::from_slice::<Answer<'_>>(body) {
        Ok(Answer { error: Some(error), .. }) => Err(error.text()),
        Ok(Answer { result: Some(_), .. }) => Ok(()),
        Ok(_) => Err("an answer with neither result nor error".to_owned()),
        Err(_) => Err("an answer that is no JSON object".to_owned()),
    }
}

/// Whose turn it is: in the order in which messages fell due, one request for each channel.
/// Price: 33 bytes and, while it is ready, 4 for each channel; 8 for each message that is due.
#[derive(Debug)]
struct Turns {
    /// The intended times of messages that are due and not under way, for each channel.
    waiting: Vec<VecDeque<u64>>,
    /// Whether a request is under way, for each channel.
    busy: Vec<bool>,
    /// Channels with messages due and no request under way: each once.
    ready: VecDeque<u32>,
    in_flight: usize,
    in_flight_max: usize,
    /// All messages that are due and not under way.
    due: u64,
}

impl Turns {
    fn new(channels: usize, in_flight_max: usize) -> Self {
        Self {
            waiting: vec![VecDeque::new(); channels],
            busy: vec![false; channels],
            ready: VecDeque::new(),
            in_flight: 0,
            in_flight_max,
            due: 0,
        }
    }

    /// One more message is due. Returns whether it can leave at once.
    fn add_due(&mut self, channel: u32, intended_ns: u64) -> bool {
        let index = channel as usize;
        self.due += 1;
        self.waiting[index].push_back(intended_ns);
        let free = !self.busy[index] && self.waiting[index].len() == 1;
        if free {
            self.ready.push_back(channel);
        }
        free && self.in_flight + self.ready.len() <= self.in_flight_max
    }

    /// The channel whose next message is to leave now, and when it was due; its request is then under way.
    fn begin(&mut self) -> Option<(u32, u64)> {
        if self.in_flight >= self.in_flight_max {
            return None;
        }
        let channel = self.ready.pop_front()?;
        self.busy[channel as usize] = true;
        // A channel is ready only while something waits.
        let intended_ns = self.waiting[channel as usize].pop_front().unwrap_or_default();
        self.due -= 1;
        self.in_flight += 1;
        Some((channel, intended_ns))
    }

    /// A channel's request was answered, or is not going to be.
    fn end(&mut self, channel: u32) {
        self.busy[channel as usize] = false;
        self.in_flight -= 1;
        if !self.waiting[channel as usize].is_empty() {
            self.ready.push_back(channel);
        }
    }
}

/// A timer to the nanosecond: the runtime's own goes by the millisecond, which is more than an
/// answer takes.
struct Alarm(AsyncFd<OwnedFd>);

impl Alarm {
    fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe, for types whose descriptor may change; this one's can't"
        )]
        let fd = AsyncFd::with_interest(fd, Interest::READABLE)?;
        Ok(Self(fd))
    }

    async fn wait(&self, after: Duration) {
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Zero would switch it off.
        let nanos = after.subsec_nanos().max(u32::from(after.is_zero()));
        let value = Timespec { tv_sec: after.as_secs() as i64, tv_nsec: nanos.into() };
        let value = Itimerspec { it_interval: never, it_value: value };
        let fd = self.0.get_ref();
        if rustix::time::timerfd_settime(fd, TimerfdTimerFlags::empty(), &value).is_err() {
            return tokio::time::sleep(after).await;
        }
        while let Ok(mut ready) = self.0.readable().await {
            // Setting it took back what had expired before: such readiness has nothing to read.
            let expired = rustix::io::read(fd, &mut [0; 8]).is_ok();
            ready.clear_ready();
            if expired {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_has_one_request_and_all_together_a_bounded_number() {
        let mut turns = Turns::new(3, 2);
        let begin = |turns: &mut Turns| turns.begin().map(|(channel, _)| channel);
        assert!(turns.add_due(0, 10));
        assert!(turns.add_due(1, 11));
        assert!(!turns.add_due(2, 12), "two are all that may be under way");
        assert!(!turns.add_due(0, 13));
        assert_eq!([begin(&mut turns), begin(&mut turns)], [Some(0), Some(1)]);
        assert_eq!(begin(&mut turns), None);
        turns.end(0);
        assert_eq!(turns.begin(), Some((2, 12)), "2 waited longer than 0");
        assert_eq!(begin(&mut turns), None);
        turns.end(1);
        assert_eq!([turns.begin(), turns.begin()], [Some((0, 13)), None]);
        assert_eq!(turns.due, 0);
        turns.end(0);
        assert!(!turns.add_due(2, 14), "its request is still under way");
        assert_eq!(turns.begin(), None);
        turns.end(2);
        assert_eq!(turns.begin(), Some((2, 14)));
    }

    #[test]
    fn answers_are_distinguished() {
        let message = "x".repeat(5000);
        let long = format!(r#"{{"error":{{"code":1,"message":"{message}"}}}}"#);
        for (status, body, expected) in [
            (200, r#"{"result":{}}"#, Ok(())),
            (200, r#"{"result":{"offset":1,"epoch":"e"}}"#, Ok(())),
            (
                200,
                r#"{"error":{"code":102,"message":"unknown channel"}}"#,
                Err("102 unknown channel"),
            ),
            (404, r#"{"code":102,"message":"unknown channel"}"#, Err("102 unknown channel")),
            (401, "", Err("status 401")),
            (400, "Bad Request", Err("status 400")),
            (200, "{}", Err("an answer with neither result nor error")),
            (200, "", Err("an answer that is no JSON object")),
            (200, &long, Err(&format!("1 {}", &message[..MESSAGE_CHARS_MAX]))),
        ] {
            let judged = judge(StatusCode::from_u16(status).unwrap(), body.as_bytes());
            assert_eq!(judged.as_ref().map_err(String::as_str), expected.as_ref().map_err(|e| *e));
        }
    }
}
