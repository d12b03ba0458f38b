//! HTTP on the control thread: requests that a shard hands over, and those of the internal port.
//!
//! ```text
//!  public port:   shard --Mail::Request--> router --Mail::Response--> shard
//!  internal port: a listener of this thread's own --> router
//! ```
//! Which of the endpoints is where is said by [`Routers`].

use std::io::Write;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Extension, State};
use axum::http::header::{ALLOW, CONNECTION, CONTENT_LENGTH, DATE, HOST, TRANSFER_ENCODING};
use axum::http::{HeaderName, Method, Request, Response, StatusCode, Version};
use axum::middleware::{Next, from_fn, from_fn_with_state, map_response};
use axum::response::IntoResponse;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;
use tracing::{debug, warn};

use super::admin::{self, Access};
use super::api::{Answer, Api, Direct};
use super::cluster::{Cluster, Respond};
use super::control_mail::{Bell, ControlMail, Visit};
use super::demo::{self, Snippets};
use super::health::{self, Health};
use super::hooks::Hooks;
use super::listen;
use super::metrics::{self, Metrics};
use super::proxies::Proxies;
use super::responses::{self, Responses};
use super::sender::{self, ClientAddress};
use super::slices::in_slices;
use super::takeover::Gate;
use crate::base::frame::SharedFrame;
use crate::base::id::ShardId;
use crate::base::limits::WEB_ANSWER_BYTES_MAX;
use crate::config::{self, Web};
use crate::proto::http::{self, HttpDate, Reuse};
use crate::shard::NodeState;
use crate::shard::mail::emulation::EmulateElsewhere;
use crate::shard::mail::{Mail, Mailbox, WebRequest};

/// The endpoints and their ports.
pub(super) struct Routers {
    /// Calls of the server API on the public port that need no router, where it is there.
    pub(super) direct: Option<Direct>,
    /// On the public port, behind what shards serve themselves.
    pub(super) public: Router,
    /// On the internal port.
    pub(super) internal: Router,
}

/// Where paths begin that are served on the public port.
pub(super) fn public_paths(web: &Web, has_internal: bool) -> Vec<String> {
    let api = web.api.as_ref().filter(|api| api.external || !has_internal);
    let own =
        [&web.metrics, &web.health, &web.ready].into_iter().flatten().filter(|_| !has_internal);
    let admin = web.admin.as_ref().filter(|admin| admin.is_public(has_internal));
    let admin =
        admin.map(|admin| [format!("{}/", admin.prefix), format!("{}/admin", admin.prefix)]);
    let demo = web.demo.as_ref().map(|_| "/demo".to_owned());
    let paths = api.map(|api| &api.prefix).into_iter().chain(own).cloned();
    paths.chain(admin.into_iter().flatten()).chain(demo).collect()
}

/// The contents of the pages.
pub(super) struct Pages {
    /// The access to the admin page, where there is one.
    pub(super) access: Option<Arc<Access>>,
    /// Its figures of each second.
    pub(super) figures: watch::Sender<Bytes>,
    /// Its figures of the last minutes.
    pub(super) series: Option<Arc<Mutex<admin::Series>>>,
    /// The snippets of the demo page.
    pub(super) snippets: Snippets,
}

/// Routes by the options.
pub(super) fn routers(
    web: &Web,
    has_internal: bool,
    api: Arc<Api>,
    health: Arc<Health>,
    metrics: Metrics,
    calls: Option<Arc<ArcSwap<config::Api>>>,
    pages: Pages,
) -> Routers {
    let (node, counted) = (Arc::clone(&metrics.node), Arc::clone(&metrics.responses));
    let mut routers = Routers { direct: None, public: Router::new(), internal: Router::new() };
    if let (Some(options), Some(shared)) = (&web.api, calls) {
        let calls = super::api::router(Arc::clone(&api), &options.prefix, Arc::clone(&shared));
        if options.external || !has_internal {
            routers.direct = Some(Direct::new(Arc::clone(&api), &options.prefix, shared));
            routers.public = routers.public.merge(calls.clone());
        }
        routers.internal = routers.internal.merge(calls);
    }
    let Pages { access, figures, series, snippets } = pages;
    if let (Some(options), Some(access)) = (&web.admin, access) {
        let check = || from_fn_with_state(Arc::clone(&node), sender::check_admin);
        let page = admin::router(
            &options.prefix,
            Arc::clone(&access),
            Arc::clone(&api),
            series.unwrap_or_default(),
        );
        let page = page.layer(check());
        if options.is_public(has_internal) {
            // Shards serve its WebSocket.
            routers.public = routers.public.merge(page.clone());
        }
        let websocket = admin::websocket_router(&options.prefix, access, figures).layer(check());
        routers.internal = routers.internal.merge(page).merge(websocket);
    }
    if let Some(demo) = &web.demo {
        routers.public = routers.public.merge(demo::router(demo, snippets));
    }
    let mut own = Router::new();
    if let Some(path) = &web.health {
        own = own.merge(health::router(Arc::clone(&health), path));
    }
    if let Some(path) = &web.ready {
        own = own.merge(health::ready_router(health, path));
    }
    if let Some(path) = &web.metrics {
        own = own.merge(metrics::router(metrics, path));
    }
    match has_internal {
        true => routers.internal = routers.internal.merge(own),
        false => routers.public = routers.public.merge(own),
    }
    // A short answer isn't worth it.
    let gzip = || CompressionLayer::new().compress_when(SizeAbove::new(GZIP_BYTES_MIN));
    let check = from_fn_with_state(node, sender::check);
    let count = || from_fn_with_state(Arc::clone(&counted), responses::count);
    let finished =
        |router: Router| router.layer(count()).layer(map_response(in_slices)).layer(gzip());
    routers.public = finished(routers.public);
    routers.internal = finished(routers.internal).layer(check);
    routers
}

/// What answers the requests of the public port.
pub(super) struct Public {
    pub(super) direct: Option<Direct>,
    pub(super) router: Router,
    pub(super) control_mail: Arc<ControlMail>,
    /// The other nodes, where a broker connects them.
    pub(super) cluster: Option<Arc<Cluster>>,
    /// Its responses.
    pub(super) responses: Arc<Responses>,
}

/// Takes what shards hand over, until the process ends.
pub(super) async fn serve_public(
    public: Public,
    mailbox: Mailbox,
    bell: Arc<Bell>,
    node: Arc<NodeState>,
    (proxies, hooks): (Arc<Proxies>, Option<Arc<Hooks>>),
) {
    let public = Arc::new(public);
    let control_mail = Arc::clone(&public.control_mail);
    let (visited, cluster) = (Arc::clone(&control_mail), public.cluster.clone());
    let date = Arc::new(ArcSwap::from_pointee(HttpDate::at(0)));
    tokio::spawn(keep_date(Arc::clone(&date)));
    let visit = move |from, visit| match visit {
        Visit::Request(request) => {
            let draining = node.draining.load(Ordering::Relaxed);
            let date = **date.load();
            tokio::spawn(answer(Arc::clone(&public), from, request, draining, date));
        }
        Visit::Emulation(emulate) => {
            let (mail, date) = (Arc::clone(&visited), **date.load());
            let draining = node.draining.load(Ordering::Relaxed);
            let respond = respond_to_emulation(&emulate, mail, from, draining, date);
            match &cluster {
                Some(cluster) => cluster.emulate(*emulate, respond),
                None => respond(StatusCode::NOT_FOUND.as_u16()),
            }
        }
        Visit::Events(events) => {
            if let Some(hooks) = &hooks {
                hooks.take(*events);
            }
        }
        Visit::Question(question) => {
            let proxies = Arc::clone(&proxies);
            tokio::spawn(async move { proxies.answer(from, *question).await });
        }
    };
    control_mail.run(mailbox, bell, visit).await;
}

/// Answers a request that came to the public port; `draining` ends the connection behind it.
async fn answer(
    public: Arc<Public>,
    from: ShardId,
    request: Box<WebRequest>,
    draining: bool,
    date: HttpDate,
) {
    let asker = request.asker;
    let (bytes, keep_alive) = public.respond(*request, draining, date).await;
    let bytes = SharedFrame::part(&bytes);
    public.control_mail.post(from, Mail::Response { asker, bytes, keep_alive });
}

/// What sends the answer to a request to the up-link, once its status is there.
fn respond_to_emulation(
    emulate: &EmulateElsewhere,
    control_mail: Arc<ControlMail>,
    from: ShardId,
    draining: bool,
    date: HttpDate,
) -> Respond {
    let (asker, cors) = (emulate.by.asker, emulate.by.cors.clone());
    let reuse = emulate.by.reuse.unless(draining);
    Box::new(move |status| {
        let (headers, content_type, is_head) = (&*cors, "text/plain", false);
        let response = http::Response { status, date, headers, content_type, reuse, is_head };
        let mut bytes = Vec::new();
        response.put(&mut bytes, b"");
        let (bytes, keep_alive) = (SharedFrame::part(&bytes), reuse.is_kept());
        control_mail.post(from, Mail::Response { asker, bytes, keep_alive });
    })
}

/// Keeps the `Date` of answers: none of them reads the clock.
async fn keep_date(date: Arc<ArcSwap<HttpDate>>) {
    loop {
        #[expect(clippy::disallowed_methods, reason = "the date of responses (RFC 9110 6.6.1)")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let second = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        date.store(Arc::new(HttpDate::at(second)));
        tokio::time::sleep(
            Duration::from_secs(1) - Duration::from_nanos(now.subsec_nanos().into()),
        )
        .await;
    }
}

impl Public {
    async fn respond(
        &self,
        request: WebRequest,
        draining: bool,
        date: HttpDate,
    ) -> (Vec<u8>, bool) {
        let WebRequest { head, body, address, .. } = request;
        // The shard has parsed it before.
        let Ok(Some(head)) = http::parse(&head) else { return (Vec::new(), false) };
        let reuse = head.reuse().unless(draining);
        let direct = self.direct.as_ref().and_then(|direct| Some((direct, direct.method(&head)?)));
        let bytes = match direct {
            Some((direct, method)) => {
                let answered = direct.answer(method, &head, &body, address);
                match tokio::time::timeout(ANSWER_TIMEOUT, answered).await {
                    Ok(answer) => {
                        self.responses.count(direct.route(method), answer.status);
                        short(&answer, reuse, date)
                    }
                    Err(_) => {
                        let late = StatusCode::GATEWAY_TIMEOUT.into_response();
                        written(late, false, reuse, date).await
                    }
                }
            }
            // Boxed, since the others' tasks would have to hold it, too.
            None => Box::pin(self.routed(&head, body, address, (reuse, date))).await,
        };
        (bytes, reuse.is_kept())
    }

    async fn routed(
        &self,
        head: &http::Head<'_>,
        body: Box<[u8]>,
        address: Option<IpAddr>,
        (reuse, date): (Reuse, HttpDate),
    ) -> Vec<u8> {
        let is_head = head.method == "HEAD";
        let response = match request_of(head, body.into()) {
            Some(mut request) => {
                request.extensions_mut().insert(ClientAddress(address));
                let routed = self.router.clone().oneshot(request);
                match tokio::time::timeout(ANSWER_TIMEOUT, routed).await {
                    Ok(Ok(response)) => response,
                    Ok(Err(never)) => match never {},
                    Err(_) => StatusCode::GATEWAY_TIMEOUT.into_response(),
                }
            }
            None => StatusCode::BAD_REQUEST.into_response(),
        };
        written(response, is_head, reuse, date).await
    }
}

fn request_of(head: &http::Head<'_>, body: Bytes) -> Option<Request<Body>> {
    let target = match head.query {
        "" => head.path.to_owned(),
        query => format!("{}?{query}", head.path),
    };
    let method = Method::from_bytes(head.method.as_bytes()).ok()?;
    let mut request = Request::builder().method(method).uri(target);
    for (name, value) in head.headers() {
        request = request.header(name, value);
    }
    request.body(Body::from(body)).ok()
}

/// A response as it goes over a connection (RFC 9112 4 and 6).
async fn written(response: Response<Body>, is_head: bool, reuse: Reuse, date: HttpDate) -> Vec<u8> {
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, WEB_ANSWER_BYTES_MAX).await;
    let (status, body) = match body {
        Ok(body) => (parts.status, body),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, Bytes::new()),
    };
    let own: [HeaderName; 4] = [CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION, DATE];
    let headers = parts.headers.iter().filter(|(name, _)| !own.contains(name));
    let headers = headers.map(|(name, value)| (name.as_str(), value.as_bytes()));
    //= RFC 9110 8.6: none with 1xx and 204; the answer to a HEAD says what a GET would bring
    let said = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    let length = said.filter(|_| is_head).and_then(|length| length.parse().ok());
    let length = length.unwrap_or(body.len());
    let mut out = Vec::with_capacity(256 + body.len());
    put_head(&mut out, status, headers, (length, reuse, date));
    if !is_head {
        out.extend_from_slice(&body);
    }
    out
}

/// The answer to a call that needed no router.
fn short(answer: &Answer, reuse: Reuse, date: HttpDate) -> Vec<u8> {
    let Answer { status, content_type, body } = answer;
    let kind = content_type.map(|kind| ("content-type", kind.as_bytes()));
    // As the router's layer says it of all that it would compress for those who take that.
    let varies = (body.len() >= usize::from(GZIP_BYTES_MIN)).then_some(("vary", ACCEPT_ENCODING));
    let mut out = Vec::with_capacity(256 + body.len());
    put_head(&mut out, *status, kind.into_iter().chain(varies), (body.len(), reuse, date));
    out.extend_from_slice(body.as_bytes());
    out
}

const ACCEPT_ENCODING: &[u8] = b"accept-encoding";

/// Appends the head of a response: its own headers, and those of the connection.
fn put_head<'h>(
    out: &mut Vec<u8>,
    status: StatusCode,
    headers: impl Iterator<Item = (&'h str, &'h [u8])>,
    (length, reuse, date): (usize, Reuse, HttpDate),
) {
    let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| out.extend_from_slice(part));
    let reason = status.canonical_reason().unwrap_or("");
    put(&[b"HTTP/1.1 ", status.as_str().as_bytes(), b" ", reason.as_bytes(), b"\r\n"]);
    for (name, value) in headers {
        put(&[name.as_bytes(), b": ", value, b"\r\n"]);
    }
    // Writing to a Vec cannot fail.
    let _ = write!(out, "Date: {date}\r\n");
    if status != StatusCode::NO_CONTENT {
        let _ = write!(out, "Content-Length: {length}\r\n");
    }
    let _ = write!(out, "{}\r\n", reuse.header());
}

/// Serves a router on listeners of this thread's own, until the process ends.
pub(super) async fn listen(
    listeners: Vec<Listener>,
    router: Router,
    tls: Option<Arc<ArcSwap<ServerConfig>>>,
    gate: Arc<Gate>,
) {
    let router = router.layer(from_fn_with_state(Arc::clone(&gate), through_gate));
    let room = Arc::new(Semaphore::new(INTERNAL_CONNECTIONS_MAX));
    let each = listeners
        .into_iter()
        .map(|listener| (listener, router.clone(), Arc::clone(&room), tls.clone()))
        .map(|(listener, router, room, tls)| accept(listener, router, room, tls, &gate));
    futures_util::future::join_all(each).await;
}

/// Requests wait while the shards of this process can't carry them out. Where another process does by now, the
/// client is to send its request again.
async fn through_gate(
    State(gate): State<Arc<Gate>>,
    request: Request<Body>,
    next: Next,
) -> Response<Body> {
    match gate.enter().await {
        Some(_inside) => next.run(request).await,
        None => (StatusCode::SERVICE_UNAVAILABLE, [(CONNECTION, "close")]).into_response(),
    }
}

/// A request to the internal port has as long as one to the public port, its body included.
async fn in_time(request: Request<Body>, next: Next) -> Response<Body> {
    let answered = tokio::time::timeout(ANSWER_TIMEOUT, next.run(request)).await;
    answered.unwrap_or_else(|_| StatusCode::REQUEST_TIMEOUT.into_response())
}

/// The checks of each head by shards, for requests to the internal port: exactly one valid `Host` (RFC 9112 3.2),
/// and `OPTIONS *`, which is about the server as a whole.
async fn check_head(request: Request<Body>, next: Next) -> Response<Body> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let valid = match (hosts.next(), hosts.next()) {
        (Some(host), None) => http::is_host(host.as_bytes()),
        (None, _) => request.version() == Version::HTTP_10,
        _ => false,
    };
    if !valid {
        return StatusCode::BAD_REQUEST.into_response();
    }
    match (request.method(), request.uri().path()) {
        (&Method::OPTIONS, "*") => [(ALLOW, "GET, HEAD, POST, OPTIONS")].into_response(),
        _ => next.run(request).await,
    }
}

/// A listener of the runtime.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Makes one the runtime's: call it inside of it.
    pub(super) fn new(listener: listen::Listener) -> std::io::Result<Self> {
        Ok(match listener {
            listen::Listener::Tcp(listener) => Self::Tcp(TcpListener::from_std(listener)?),
            listen::Listener::Unix(listener) => Self::Unix(UnixListener::from_std(listener)?),
        })
    }
}

async fn accept(
    listener: Listener,
    router: Router,
    room: Arc<Semaphore>,
    tls: Option<Arc<ArcSwap<ServerConfig>>>,
    gate: &Gate,
) {
    loop {
        // More than these wait in the kernel.
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        let router = router.clone();
        // Of this moment: a connection may come long after the one before it.
        let acceptor = || tls.as_ref().map(|tls| TlsAcceptor::from(tls.load_full()));
        // Connections that come while the gate is held wait in the kernel, for this process or the next.
        gate.accepting().await;
        let accepted = async {
            match &listener {
                Listener::Tcp(listener) => listener.accept().await.map(|(stream, peer)| {
                    let _ = stream.set_nodelay(true);
                    let (peer, rest) = (peer.ip().to_canonical(), (place, acceptor()));
                    serve_accepted(stream, Some(peer), router, rest);
                }),
                Listener::Unix(listener) => listener
                    .accept()
                    .await
                    .map(|(stream, _)| serve_accepted(stream, None, router, (place, acceptor()))),
            }
        };
        let accepted = tokio::select! {
            biased;
            () = gate.held() => continue,
            accepted = accepted => accepted,
        };
        if let Err(fault) = accepted {
            warn!(%fault, "cannot accept a connection on the internal port");
            tokio::time::sleep(ACCEPT_AGAIN).await;
        }
    }
}

/// Serves one connection to the internal port, behind its handshake where that port speaks TLS.
fn serve_accepted<S>(
    stream: S,
    peer: Option<IpAddr>,
    router: Router,
    (place, tls): (OwnedSemaphorePermit, Option<TlsAcceptor>),
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Some(tls) = tls else { return serve_connection(stream, peer, router, place) };
    tokio::spawn(async move {
        match tokio::time::timeout(HEAD_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(stream)) => serve_connection(stream, peer, router, place),
            Ok(Err(fault)) => debug!(%fault, "TLS handshake at the internal port failed"),
            Err(_) => debug!("TLS handshake at the internal port was not done in time"),
        }
    });
}

/// Serves one connection to the internal port, until it ends.
fn serve_connection<S>(stream: S, peer: Option<IpAddr>, router: Router, place: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = router.layer(from_fn(in_time)).layer(Extension(ClientAddress(peer)));
    let service = TowerToHyperService::new(service.layer(from_fn(check_head)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::spawn(async move {
        if let Err(fault) = connection.await {
            debug!(%fault, "connection to the internal port failed");
        }
        drop(place);
    });
}

/// Answers of so many bytes are compressed for those who take that.
const GZIP_BYTES_MIN: u16 = 1024;

/// A request to the control thread is answered so soon, or with 504.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The head of a request to the internal port has to be there so soon.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// From a failed accept to the next.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Connections to the internal port at a time.
const INTERNAL_CONNECTIONS_MAX: usize = 1024;
