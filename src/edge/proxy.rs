//! The options of a proxy: an endpoint of the application that is called (server API,
//! section 6). [`ProxyEvent`] lists the events of calls.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;

/// The events that the application decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyEvent {
    /// The user of a connection without a token.
    Connect,
    /// Whether a connection that expires goes on.
    Refresh,
    /// Whether a client may subscribe.
    Subscribe,
    /// Whether, and what, a client publishes.
    Publish,
    /// A call of the client's.
    Rpc,
    /// Whether a subscription that expires goes on.
    SubRefresh,
}

impl ProxyEvent {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Connect, Self::Refresh, Self::Subscribe, Self::Publish, Self::Rpc, Self::SubRefresh];

    /// As options and metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Refresh => "refresh",
            Self::Subscribe => "subscribe",
            Self::Publish => "publish",
            Self::Rpc => "rpc",
            Self::SubRefresh => "sub_refresh",
        }
    }
}

/// An endpoint, and how it is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ProxyOptions {
    /// Its name in `proxies`, or the path of its section.
    pub name: String,
    /// URL, `http://` or `https://`.
    pub endpoint: String,
    /// For a whole call, waiting for its turn included.
    pub timeout_ms: u64,
    /// Headers of the client's request to take over, lower case.
    pub http_headers: Vec<String>,
    /// Headers from the client's connect command to take over, lower case.
    pub emulated_headers: Vec<String>,
    /// Headers of each call.
    pub static_headers: Vec<(String, String)>,
    /// Payloads go as base64.
    pub binary_encoding: bool,
    /// The meta of the connection goes with it.
    pub include_connection_meta: bool,
    /// The meaning of statuses other than 200.
    pub transforms: Vec<StatusTransform>,
    /// Certificates, where they are not the machine's.
    pub tls: Option<ProxyTls>,
    /// Calls at a time.
    pub concurrency: u32,
    /// Failures below which the circuit never opens, however many of the calls fail; 0: it never opens.
    pub breaker_failures: u32,
    /// How long it isn't.
    pub breaker_pause_ms: u64,
}

/// Certificates of an endpoint. PEM text.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ProxyTls {
    /// The authorities of its certificate; empty: those of the machine.
    pub server_ca_pem: String,
    /// The name in it; empty: that in the URL.
    pub server_name: String,
    /// The certificate that the node presents; empty: none.
    pub cert_pem: String,
    /// Its private key.
    pub key_pem: String,
    /// Its certificate isn't checked.
    pub skip_verify: bool,
}

impl std::fmt::Debug for ProxyTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProxyTls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// The meaning of a status other than 200 for the client: an error or a disconnect.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusTransform {
    /// The status.
    pub status_code: u16,
    /// An error.
    #[serde(default)]
    pub to_error: Option<AppError>,
    /// A disconnect.
    #[serde(default)]
    pub to_disconnect: Option<AppDisconnect>,
}

impl StatusTransform {
    /// One of both is there, with a code that a client may see.
    pub fn is_valid(&self) -> bool {
        match (&self.to_error, &self.to_disconnect) {
            (Some(error), None) => error.is_valid(),
            (None, Some(disconnect)) => disconnect.is_valid(),
            _ => false,
        }
    }
}

/// An error of the application's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
pub struct AppError {
    /// 100 and above: those below are the clients' own.
    pub code: u32,
    /// For people.
    pub message: String,
    /// The client may try again.
    pub temporary: bool,
}

impl AppError {
    /// A client may see it.
    pub fn is_valid(&self) -> bool {
        self.code >= ERROR_CODE_MIN
    }
}

/// A disconnect of the application's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
pub struct AppDisconnect {
    /// A close code, 3000 to 4999.
    pub code: u16,
    /// At most 123 bytes of it go out (RFC 6455 5.5.1).
    pub reason: String,
}

impl AppDisconnect {
    /// A client may see it.
    pub fn is_valid(&self) -> bool {
        (3000..5000).contains(&self.code)
    }
}

/// Errors below are the clients' own (client protocol, section 25).
const ERROR_CODE_MIN: u32 = 100;

/// Which proxies sessions ask, and what they keep for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientProxies {
    /// The user of a connection without a token.
    pub connect: Option<Arc<ProxyOptions>>,
    /// Connections that expire.
    pub refresh: Option<Arc<ProxyOptions>>,
    /// Names of headers that some proxy takes over from requests, lower case.
    pub http_headers: BTreeSet<String>,
    /// The same of those from connect commands.
    pub emulated_headers: BTreeSet<String>,
}

/// The answering side of a client's `rpc` (client protocol, section 18).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RpcRules {
    /// This one is answered with `{}`.
    pub ping: Option<String>,
    /// Ends the namespace in a method's name.
    pub boundary: String,
    /// Methods without a namespace.
    pub without_namespace: Option<Arc<ProxyOptions>>,
    /// Namespaces; those without a proxy, too.
    pub namespaces: BTreeMap<String, Option<Arc<ProxyOptions>>>,
}

/// The way of a call.
#[derive(Debug, PartialEq, Eq)]
pub enum RpcTarget<'r> {
    /// An empty answer.
    Ping,
    /// The application is called.
    Proxy(&'r Arc<ProxyOptions>),
    /// Its namespace is not configured.
    NotFound,
    /// Nobody answers it.
    NotAvailable,
}

impl RpcRules {
    /// The answering side of a method.
    pub fn target(&self, method: &str) -> RpcTarget<'_> {
        if self.ping.as_deref() == Some(method) {
            return RpcTarget::Ping;
        }
        let mut proxies = self.namespaces.values().chain([&self.without_namespace]);
        if proxies.all(Option::is_none) {
            // Where `ping` is a method, there are calls, and others are none of them.
            return match self.ping {
                Some(_) => RpcTarget::NotFound,
                None => RpcTarget::NotAvailable,
            };
        }
        let namespace = match self.boundary.as_str() {
            "" => None,
            boundary => method.split_once(boundary).map(|(namespace, _)| namespace),
        };
        let proxy = match namespace {
            None => Some(&self.without_namespace),
            Some(namespace) => self.namespaces.get(namespace),
        };
        match proxy {
            None => RpcTarget::NotFound,
            Some(None) => RpcTarget::NotAvailable,
            Some(Some(proxy)) => RpcTarget::Proxy(proxy),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_have_an_answering_side() {
        let rules = RpcRules {
            ping: Some("ping".into()),
            boundary: ":".into(),
            namespaces: [("off".to_owned(), None)].into(),
            ..RpcRules::default()
        };
        assert_eq!(rules.target("ping"), RpcTarget::Ping);
        let without_ping = RpcRules { ping: None, ..rules.clone() };
        for method in ["pong", "off:x", "none:x"] {
            assert_eq!(rules.target(method), RpcTarget::NotFound, "{method}");
            assert_eq!(without_ping.target(method), RpcTarget::NotAvailable, "{method}");
        }
        let proxy = |name: &str| {
            let transforms = Vec::new();
            Arc::new(ProxyOptions {
                name: name.into(),
                endpoint: String::new(),
                timeout_ms: 1,
                http_headers: Vec::new(),
                emulated_headers: Vec::new(),
                static_headers: Vec::new(),
                binary_encoding: false,
                include_connection_meta: false,
                transforms,
                tls: None,
                concurrency: 1,
                breaker_failures: 0,
                breaker_pause_ms: 0,
            })
        };
        let rules = RpcRules {
            without_namespace: Some(proxy("without")),
            namespaces: [("off".to_owned(), None), ("on".to_owned(), Some(proxy("on")))].into(),
            ..rules
        };
        for (method, expected) in [
            ("ping", "ping"),
            ("x", "without"),
            ("", "without"),
            ("on:x", "on"),
            ("on:", "on"),
            ("off:x", "not available"),
            ("none:x", "not found"),
            (":x", "not found"),
        ] {
            let target = match rules.target(method) {
                RpcTarget::Ping => "ping",
                RpcTarget::Proxy(proxy) => &proxy.name,
                RpcTarget::NotFound => "not found",
                RpcTarget::NotAvailable => "not available",
            };
            assert_eq!(target, expected, "{method}");
        }
        let no_boundary = RpcRules { boundary: String::new(), ..rules };
        assert!(matches!(no_boundary.target("none:x"), RpcTarget::Proxy(_)));
    }

    #[test]
    fn transforms_say_one_thing_that_a_client_may_see() {
        let error = |code| AppError { code, ..AppError::default() };
        let disconnect = |code| AppDisconnect { code, reason: String::new() };
        for (to_error, to_disconnect, valid) in [
            (Some(error(404)), None, true),
            (Some(error(99)), None, false),
            (None, Some(disconnect(4500)), true),
            (None, Some(disconnect(1000)), false),
            (None, Some(disconnect(5000)), false),
            (Some(error(404)), Some(disconnect(4500)), false),
            (None, None, false),
        ] {
            let transform = StatusTransform { status_code: 404, to_error, to_disconnect };
            assert_eq!(transform.is_valid(), valid, "{transform:?}");
        }
    }
}
