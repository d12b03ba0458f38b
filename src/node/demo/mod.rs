//! `/demo`: a page on which two clients talk, with the SDK that applications use.
//!
//! The SDK is not part of this program: it comes from a file, or once from the npm registry, whose copy has
//! to have the digest that is written here. Where neither is there, on a machine without a way to the
//! registry, the page uses a small client of its own (`client.js`) and says so.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use flate2::read::GzDecoder;
use serde_json::json;
use tokio::sync::OnceCell;
use tracing::{info, warn};

use super::fetch::{Client, FetchFault};
use super::pages;
use super::tls::Trust;
use crate::config::{self, Config, DEV_SECRET};
use crate::shard::EndpointKind;

/// The parts of the page that depend on options: snippets, endpoints and the link to the admin page.
#[derive(Clone, Debug, Default)]
pub(super) struct Snippets {
    /// Path of the clients' WebSocket.
    pub(super) websocket_path: String,
    /// Transports that the page offers beside it, by the SDK's name, with their paths.
    pub(super) streams: Vec<(&'static str, String)>,
    /// Path of the requests in which clients of those send commands.
    pub(super) emulation_path: String,
    /// Path of the admin page, with the link that opens it.
    pub(super) admin: Option<String>,
    /// Tokens are signed with the secret of development nodes, so the page may make some of its own.
    pub(super) has_dev_secret: bool,
    /// Path of the method that publishes, and the key for it, where there is one.
    pub(super) publish: Option<(String, String)>,
    /// The public port speaks TLS.
    pub(super) is_secure: bool,
}

impl Snippets {
    /// Those of a node with these options. Keys and links are shown by development nodes alone: only this
    /// machine reaches one.
    pub(super) fn new(config: &Config, dev: bool) -> Self {
        let endpoints = &config.transports.endpoints;
        let path = |kind: EndpointKind| {
            endpoints.iter().find(|endpoint| endpoint.kind == kind).map(|found| found.path.clone())
        };
        let streams = [("http_stream", EndpointKind::HttpStream), ("sse", EndpointKind::Sse)];
        let streams = streams.into_iter().filter_map(|(name, kind)| Some((name, path(kind)?)));
        let api = config.web.api.as_ref().filter(|_| dev);
        let has_internal = config.http_server.internal.is_some();
        let admin = config.web.admin.as_ref().filter(|admin| dev && admin.is_public(has_internal));
        Self {
            websocket_path: config.websocket.handler_prefix.clone(),
            streams: streams.collect(),
            emulation_path: path(EndpointKind::Emulation).unwrap_or_default(),
            admin: admin.map(|admin| match &admin.link {
                Some(link) => format!("{}/#link={link}", admin.prefix),
                None => format!("{}/", admin.prefix),
            }),
            has_dev_secret: dev && config.tokens.connection.hmac_secret_key == DEV_SECRET,
            publish: api
                .and_then(|api| Some((format!("{}/publish", api.prefix), api.key.clone()?))),
            is_secure: config.tls.public.is_some(),
        }
    }

    /// A page that does what the demo does; `host` has the port in it.
    pub(super) fn html(&self, host: &str) -> String {
        format!(
            "<!doctype html>\n\
             <script src=\"{scheme}://{host}/demo/centrifuge.js\"></script>\n\
             <input id=\"text\" placeholder=\"say something\">\n\
             <ul id=\"list\"></ul>\n\
             <script>\n  \
               const client = new Centrifuge('{socket}://{host}{path}');\n  \
               const chat = client.newSubscription('demo');\n  \
               chat.on('publication', ({{ data }}) => {{\n    \
                 const item = document.createElement('li');\n    \
                 item.textContent = `${{data.from}}: ${{data.text}}`;\n    \
                 document.getElementById('list').append(item);\n  \
               }});\n  \
               document.getElementById('text').addEventListener('change', ({{ target }}) => {{\n    \
                 chat.publish({{ from: 'me', text: target.value }});\n    \
                 target.value = '';\n  \
               }});\n  \
               chat.subscribe();\n  \
               client.connect();\n\
             </script>\n",
            path = self.websocket_path,
            scheme = self.scheme(),
            socket = if self.is_secure { "wss" } else { "ws" },
        )
    }

    /// A shell command that publishes.
    pub(super) fn curl(&self, host: &str) -> Option<String> {
        let (path, key) = self.publish.as_ref()?;
        let (scheme, insecure) = (self.scheme(), if self.is_secure { "-k " } else { "" });
        Some(format!(
            "curl {insecure}-H 'X-API-Key: {key}' -d '{{\"channel\": \"demo\", \"data\": {{\"from\": \"curl\", \
             \"text\": \"hello\"}}}}' {scheme}://{host}{path}"
        ))
    }

    fn scheme(&self) -> &'static str {
        if self.is_secure { "https" } else { "http" }
    }
}

#[derive(Clone)]
struct Shared {
    file: Option<PathBuf>,
    sdk: Arc<OnceCell<Bytes>>,
    snippets: Snippets,
}

/// Routes of the page.
pub(super) fn router(demo: &config::Demo, snippets: Snippets) -> Router {
    let shared = Shared { file: demo.sdk.clone(), sdk: Arc::default(), snippets };
    let asset = |kind: &'static str, text: &'static str| {
        get(move || async move { ([(CONTENT_TYPE, kind)], text) })
    };
    Router::new()
        .route("/demo", asset(pages::HTML, include_str!("demo.html")))
        .route("/demo/client.js", asset(pages::JS, include_str!("client.js")))
        .route("/demo/demo.js", asset(pages::JS, include_str!("demo.js")))
        .route(
            "/demo/demo.css",
            asset(pages::CSS, concat!(include_str!("../pages.css"), include_str!("demo.css"))),
        )
        .route("/demo/snippet.json", get(snippet))
        .route("/demo/centrifuge.js", get(sdk))
        .layer(middleware::map_response(pages::guard))
        .with_state(shared)
}

/// The key of the server API and the link to the admin page are for pages of this machine: a page of another
/// host gets neither, since its requests name that host or say where they are from.
async fn snippet(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let is_here = matches!(name, "localhost" | "127.0.0.1" | "[::1]");
    let curl = shared.snippets.curl(host).filter(|_| is_here);
    let Snippets { websocket_path, streams, emulation_path, admin, has_dev_secret, .. } =
        &shared.snippets;
    let streams =
        streams.iter().map(|(transport, path)| json!({ "transport": transport, "path": path }));
    axum::Json(json!({
        "html": shared.snippets.html(host),
        "curl": curl,
        "websocket": websocket_path,
        "streams": streams.collect::<Vec<_>>(),
        "emulation": emulation_path,
        "admin": admin.as_ref().filter(|_| is_here),
        "secret": has_dev_secret.then_some(DEV_SECRET),
    }))
    .into_response()
}

async fn sdk(State(shared): State<Shared>) -> Response {
    let file = shared.file.as_deref();
    match shared.sdk.get_or_try_init(|| load(file)).await {
        Ok(bytes) => {
            // A page from a file has no origin: its script comes from another one.
            let policy = HeaderValue::from_static("cross-origin");
            let mut response = ([(CONTENT_TYPE, pages::JS)], bytes.clone()).into_response();
            response.extensions_mut().insert(pages::Shared(policy));
            response
        }
        Err(fault) => {
            warn!(%fault, "cannot load the SDK of the demo; roost.demo_sdk may name a file with it");
            (StatusCode::SERVICE_UNAVAILABLE, format!("{fault}\n")).into_response()
        }
    }
}

/// Why there is no SDK.
#[derive(Debug, thiserror::Error)]
enum SdkFault {
    #[error("cannot read the file of roost.demo_sdk: {0}")]
    File(std::io::Error),
    #[error("{REGISTRY}{ARCHIVE}: {0}")]
    Fetch(#[from] FetchFault),
    #[error("{REGISTRY}{ARCHIVE}: no answer in time")]
    Timeout,
    #[error("{REGISTRY}{ARCHIVE}: the digest differs")]
    Digest,
    #[error("cannot read the archive: {0}")]
    Archive(std::io::Error),
}

async fn load(file: Option<&std::path::Path>) -> Result<Bytes, SdkFault> {
    if let Some(path) = file {
        return std::fs::read(path).map(Bytes::from).map_err(SdkFault::File);
    }
    let client = Client::secure(Trust::Machine).map_err(SdkFault::Archive)?;
    let url = format!("{REGISTRY}{ARCHIVE}");
    let got = client.get(&url, "application/octet-stream", ARCHIVE_BYTES_MAX);
    let archive = tokio::time::timeout(TIMEOUT, got).await.map_err(|_| SdkFault::Timeout)??;
    let digest = digest::digest(&digest::SHA512, &archive);
    if STANDARD.encode(digest.as_ref()) != SHA512 {
        return Err(SdkFault::Digest);
    }
    info!(url, "SDK of the demo fetched");
    unpack(&archive).map_err(SdkFault::Archive)
}

/// The one file of the archive that pages load.
fn unpack(archive: &[u8]) -> std::io::Result<Bytes> {
    let mut archive = tar::Archive::new(GzDecoder::new(archive));
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.path()?.as_os_str() == FILE {
            let mut bytes = Vec::new();
            entry.by_ref().take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
            return Ok(bytes.into());
        }
    }
    Err(std::io::Error::other(format!("there is no {FILE} in it")))
}

const REGISTRY: &str = "https://registry.npmjs.org/";
/// The SDK that the tests run with.
const ARCHIVE: &str = "centrifuge/-/centrifuge-5.8.0.tgz";
/// Its digest in the registry.
const SHA512: &str =
    "ENH1jz6VeRuGb3yHNhgB0V0SqRKX+iYdtM9Du/E59m484epjNPfsgJw4UbmOmjgSXGEita1UoOXlZ6Ba1ooT1g==";
const FILE: &str = "package/dist/centrifuge.js";
const ARCHIVE_BYTES_MAX: usize = 8 << 20;
const FILE_BYTES_MAX: u64 = 4 << 20;
const TIMEOUT: Duration = Duration::from_secs(20);
