//! Where connections and publishers go: the server's address, its paths by transport, its HTTP API.

use super::flags::{Flags, Scenario};
use super::hub::{self, Hub};
use super::plan::{IN_FLIGHT, PlanError, wrong};
use super::tls::Tls;
use crate::base::form::Transport;
use clap::ValueEnum;
use hyper::header::HeaderValue;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;
use tungstenite::http::Uri;

/// Where the connections go.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    /// For the `Host` header.
    pub(crate) host: String,
    /// Path and query.
    pub(crate) path: String,
    /// TLS, if the server speaks it.
    pub(crate) tls: Option<Tls>,
}

/// The HTTP API to publish through.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    /// Of `publish`, or of each channel of a hub; the host in it is an address.
    uris: Vec<Uri>,
    pub(crate) hub: Option<Hub>,
    /// The host as the user named it.
    pub(crate) host: HeaderValue,
    pub(crate) key: Option<HeaderValue>,
    /// Requests under way at most.
    pub(crate) in_flight: usize,
    /// How long a publish that fails is tried again.
    pub(crate) retry: Option<Duration>,
    /// TLS, if the server speaks it.
    pub(crate) tls: Option<Tls>,
}

impl Api {
    /// Where messages of channel `channel` are published.
    pub(crate) fn uri(&self, channel: u32) -> &Uri {
        self.uris.get(channel as usize).unwrap_or(&self.uris[0])
    }
}

/// Where connections of a transport, publishers and up-links go.
pub(super) struct Paths {
    pub(super) own: String,
    pub(super) websocket: String,
    pub(super) up: String,
}

/// Paths of the transport, from the one that the URL has.
pub(super) fn paths(
    url: &str,
    transport: Transport,
    hub: Option<Hub>,
    path: &str,
) -> Result<Paths, PlanError> {
    if let Some(hub) = hub {
        let own = hub.subscribe_path(path).or_else(wrong)?;
        return Ok(Paths { own, websocket: String::new(), up: String::new() });
    }
    if transport == Transport::WebSocket {
        let path = path.to_owned();
        return Ok(Paths { own: path.clone(), websocket: path, up: String::new() });
    }
    if path.contains('?') {
        return wrong(format!("--url {}: a query has no place in it", url));
    }
    let (base, last) = path.rsplit_once('/').unwrap_or(("", path));
    if !Transport::value_variants().iter().any(|of| of.name() == last) {
        return wrong(format!(
            "--url {}: --transport {} needs a path like /connection/{}",
            url,
            transport.name(),
            transport.name()
        ));
    }
    let prefix = base.strip_suffix("/connection").unwrap_or(base);
    Ok(Paths {
        own: format!("{base}/{}", transport.name()),
        websocket: format!("{base}/websocket"),
        up: format!("{prefix}/emulation"),
    })
}

/// Reads the URL of a flag; `schemes` are the ones without TLS, and with an `s` behind them those with TLS.
pub(super) fn target(
    flag: &str,
    url: &str,
    schemes: &[&str],
    flags: &Flags,
) -> Result<Target, PlanError> {
    let uri: Uri = match url.parse() {
        Ok(uri) => uri,
        Err(error) => return wrong(format!("{flag} {url}: {error}")),
    };
    let is_secure = match uri.scheme_str() {
        Some(found) if schemes.contains(&found) => false,
        Some(found) if found.strip_suffix('s').is_some_and(|of| schemes.contains(&of)) => true,
        _ => return wrong(format!("{flag} {url}: must begin with {0}:// or {0}s://", schemes[0])),
    };
    let Some(host) = uri.host().filter(|host| !host.is_empty()) else {
        return wrong(format!("{flag} {url}: no host"));
    };
    let usual_port = if is_secure { 443 } else { 80 };
    let port = uri.port_u16().unwrap_or(usual_port);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let found: Vec<SocketAddr> = match (bare, port).to_socket_addrs() {
        Ok(found) => found.collect(),
        Err(error) => return wrong(format!("{flag} {url}: {error}")),
    };
    // IPv4 first: only there loopback has more than one source address.
    let address = found.iter().find(|address| address.is_ipv4()).or_else(|| found.first());
    let Some(&address) = address else { return wrong(format!("{flag} {url}: no address")) };
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let tls = is_secure.then(|| Tls::new(bare, &flags.tls())).transpose();
    let tls = tls.or_else(|fault| wrong(format!("{flag} {url}: {fault}")))?;
    let host = if port == usual_port { host.to_owned() } else { format!("{host}:{port}") };
    Ok(Target { address, host, path, tls })
}

pub(super) fn api(
    flags: &Flags,
    channels: &[String],
    publishes: bool,
) -> Result<Option<Api>, PlanError> {
    let hub = Hub::of(flags.protocol);
    let url = match (&flags.api_url, hub) {
        (Some(url), _) => url.as_str(),
        (None, Some(Hub::Mercure)) if publishes => flags.url.as_deref().unwrap_or_default(),
        (None, Some(Hub::Nchan)) if publishes => {
            return wrong("--protocol nchan: --api-url http://host:port/path/{channel}");
        }
        (None, None) if flags.api_key.is_some() => return wrong("--api-key needs --api-url"),
        (None, _) => return Ok(None),
    };
    if hub.is_none() && flags.api_key.is_none() {
        return wrong("--api-url needs --api-key");
    }
    match flags.scenario {
        _ if hub.is_some() => {}
        Scenario::Broadcast | Scenario::Channels | Scenario::Upgrade | Scenario::Run => {}
        Scenario::Storm if publishes => {}
        Scenario::Storm => return wrong("--api-url: a storm publishes only with --publish"),
        other => return wrong(format!("--api-url: not for {}", other.name())),
    }
    if channels.is_empty() {
        return wrong("--api-url needs the client protocol: --protocol centrifugo");
    }
    let schemes: &[&str] = if hub.is_some() { &["http", "ws"] } else { &["http"] };
    let target = target("--api-url", url, schemes, flags)?;
    let (uris, Ok(host)) =
        (uris(url, &target, hub, channels)?, HeaderValue::from_str(&target.host))
    else {
        return wrong(format!("--api-url {url}: not a URL"));
    };
    let key = flags.api_key.as_ref().map(|key| match hub {
        Some(_) => HeaderValue::from_str(&format!("Bearer {key}")),
        None => HeaderValue::from_str(key),
    });
    let Ok(mut key) = key.transpose() else {
        return wrong("--api-key: has characters that no header can have");
    };
    key.iter_mut().for_each(|key| key.set_sensitive(true));
    let in_flight = (flags.in_flight.unwrap_or(IN_FLIGHT) as usize).clamp(1, channels.len());
    let tls = target.tls;
    Ok(Some(Api { uris, hub, host, key, in_flight, retry: flags.retry, tls }))
}

/// Where messages are published: one for all channels, or with a hub one for each.
fn uris(
    url: &str,
    target: &Target,
    hub: Option<Hub>,
    channels: &[String],
) -> Result<Vec<Uri>, PlanError> {
    let paths: Vec<String> = match hub {
        None if target.path.contains('?') => {
            return wrong(format!("--api-url {url}: a query has no place in it"));
        }
        None => vec![format!("{}/publish", target.path.trim_end_matches('/'))],
        Some(hub) => {
            let path = hub.publish_path(&target.path).or_else(wrong)?;
            channels.iter().map(|channel| hub::placed(&path, channel)).collect()
        }
    };
    let scheme = if target.tls.is_some() { "https" } else { "http" };
    let build = |path: &String| {
        let uri = Uri::builder().scheme(scheme).authority(target.address.to_string());
        let uri = uri.path_and_query(path.as_str()).build();
        uri.or_else(|_| wrong(format!("--api-url {url}: not a URL")))
    };
    paths.iter().map(build).collect()
}
