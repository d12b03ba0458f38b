//! Options of every layer: read from a file, the environment and flags, checked, and handed out as
//! typed sections. Nothing below this layer reads a configuration.
//!
//! ```text
//!  file (TOML, YAML, JSON) -> tree --.
//!  CENTRIFUGO_... , ROOST_... -------+--> layers (one table of options) --> build --> Config
//!  flags ----------------------------'            |
//!                                                 '--> errors (exit code 2), warnings
//! ```
//!
//! Every problem of a configuration is named at once, each with option, value and what was expected.
//! Options fall in classes (`table::Class`): what is built; what is harmless and isn't, which
//! warns; and what changes safety or delivery and isn't, which stops the start.

mod advice;
mod build;
mod json;
mod layers;
mod names;
mod print;
pub(crate) mod table;
#[cfg(test)]
mod tests;
mod transports;
mod tree;
pub(crate) mod value;

/// What `docs/configuration.md` and `docs/limits.md` are written from.
#[cfg(test)]
pub(crate) mod documented {
    use super::names;
    use super::table::Class;
    pub(crate) use super::table::{OPTIONS, Opt, Place, places};

    /// The variable of an option or of a section.
    pub(crate) fn variable(path: &str) -> Option<String> {
        names::prefixed("ROOST_", path)
    }

    /// What the node does about an option without effect that is set, and the reason; `None` for
    /// options that have one, and those that are accepted in silence.
    pub(crate) fn answer(row: &Opt) -> Option<(&'static str, &'static str)> {
        match row.class {
            Class::Built | Class::Silent(_) => None,
            Class::Harmless(why) => Some(("warning", why)),
            Class::Refused(why) => Some(("refused", why)),
            Class::RefusedWith(_, why) => Some(("refused", why)),
        }
    }
}

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use tracing::level_filters::LevelFilter;

use crate::edge::address_limits::AddressOptions;
use crate::edge::api_key::ApiAccess;
use crate::edge::channels::ChannelRules;
use crate::edge::jwt::TokenOptions;
use crate::edge::origin::OriginRules;
use crate::edge::proxy::RpcRules;
use crate::io::sockets::{Address, UnixAddress};
use crate::session::ClientOptions;
use crate::shard::AddressSources;
use layers::{Report, Settings};
pub use print::{PrintFormat, print_defaults};
pub use transports::Transports;

/// The file that is read when none is named and this one is there.
pub const DEFAULT_FILE: &str = "config.json";

/// Secret of the development node, for tokens on one machine only.
pub const DEV_SECRET: &str = "roost-dev-secret";

/// Bytes of a configuration file at most; more is refused.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// The defaults of the development node.
const DEV_PRESET: &[(&str, &str)] = &[
    ("http_server.address", "127.0.0.1"),
    // Pages of this machine only: any other page in the developer's browser could publish, too.
    (
        "client.allowed_origins",
        "http://localhost http://localhost:* https://localhost https://localhost:* \
         http://127.0.0.1 http://127.0.0.1:*",
    ),
    ("client.allow_anonymous_connect_without_token", "true"),
    ("client.token.hmac_secret_key", DEV_SECRET),
    ("admin.enabled", "true"),
    ("roost.demo", "true"),
    ("websocket.compression", "true"),
    ("http_stream.enabled", "true"),
    ("sse.enabled", "true"),
    ("uni_websocket.enabled", "true"),
    ("uni_http_stream.enabled", "true"),
    ("uni_sse.enabled", "true"),
    ("long_poll.enabled", "true"),
    ("channel.without_namespace.allow_subscribe_for_client", "true"),
    ("channel.without_namespace.allow_subscribe_for_anonymous", "true"),
    ("channel.without_namespace.allow_publish_for_client", "true"),
    ("channel.without_namespace.allow_publish_for_anonymous", "true"),
];

/// The whole configuration. Durations are milliseconds.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub http_server: HttpServer,
    /// Where to log, and what.
    pub log: Log,
    /// Rules and limits of connections.
    pub client: ClientOptions,
    /// Web pages that may connect.
    pub origins: OriginRules,
    /// The keys and claims that tokens are checked against.
    pub tokens: Tokens,
    /// Namespaces and names of channels.
    pub channels: ChannelRules,
    /// The WebSocket endpoint.
    pub websocket: WebSocket,
    /// Endpoints of clients.
    pub transports: Transports,
    /// The endpoints of the control thread.
    pub web: Web,
    /// The answering side of RPC calls.
    pub rpc: RpcRules,
    /// How long closing all connections may take.
    pub shutdown_timeout_ms: u64,
    /// Name of the node; empty: make one.
    pub node_name: String,
    /// File for the process id.
    pub pid_file: Option<PathBuf>,
    /// roost's own options.
    pub roost: Roost,
}

/// Section `http_server`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpServer {
    /// Where to.
    pub at: ListenAt,
    /// 0: one that is free. Of no use with a Unix socket.
    pub port: u16,
    /// Mode of the files of Unix sockets.
    pub socket_mode: u32,
    /// Where the control thread listens by itself, if it does.
    pub internal: Option<Internal>,
}

/// The internal port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Internal {
    /// Where to.
    pub at: ListenAt,
    /// 0: one that is free. Of no use with a Unix socket.
    pub port: u16,
}

/// Addresses to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAt {
    /// At least one. Both unspecified addresses stand for an empty option, both loopback ones for
    /// `localhost`; then the second may fail to bind where the machine has no IPv6.
    Ips(Vec<IpAddr>),
    /// A Unix socket.
    Unix(PathBuf),
}

impl ListenAt {
    /// Whether other machines reach it.
    fn is_seen_from_outside(&self) -> bool {
        !self.ips().iter().all(IpAddr::is_loopback)
    }

    /// Its IP addresses: none for a Unix socket.
    pub fn ips(&self) -> &[IpAddr] {
        match self {
            Self::Ips(addresses) => addresses,
            Self::Unix(_) => &[],
        }
    }

    /// As listeners take it.
    pub fn addresses(&self, port: u16, mode: u32) -> Vec<Address> {
        match self {
            Self::Ips(addresses) => {
                let at = |address: &IpAddr| Address::Ip(SocketAddr::new(*address, port));
                addresses.iter().map(at).collect()
            }
            Self::Unix(path) => vec![Address::Unix(UnixAddress { path: path.clone(), mode })],
        }
    }
}

/// Sections `http_api`, `prometheus`, `health` and `admin`: what the control thread serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Web {
    /// The server API, unless it is disabled.
    pub api: Option<Api>,
    /// Path of the metrics, where there are some.
    pub metrics: Option<String>,
    /// Path of the health check, where there is one.
    pub health: Option<String>,
    /// The admin page, where there is one.
    pub admin: Option<Admin>,
    /// The demo page, where there is one.
    pub demo: Option<Demo>,
}

/// Section `admin`.
#[derive(Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where its paths begin, without a slash at the end.
    pub prefix: String,
    /// The password, if it has one.
    pub password: Option<String>,
    /// Signs tokens; empty: one that is made at the start.
    pub secret: String,
    /// It is open to everybody.
    pub insecure: bool,
    /// On the public port even beside an internal one.
    pub external: bool,
    /// Opens it, as long as the node runs; of the development node.
    pub link: Option<String>,
}

impl Admin {
    /// It is on the public port.
    pub fn is_public(&self, has_internal: bool) -> bool {
        self.external || !has_internal
    }
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// The demo page: `roost.demo`, `roost.demo_sdk`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demo {
    /// File with the SDK; `None`: it is fetched.
    pub sdk: Option<PathBuf>,
}

/// Section `http_api`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    /// Where its paths begin, without a slash at the end.
    pub prefix: String,
    /// The key; `None`: nobody has one.
    pub key: Option<String>,
    /// No key is needed.
    pub insecure: bool,
    /// Errors are statuses.
    pub transport_errors: bool,
    /// On the public port even beside an internal one.
    pub external: bool,
}

impl Api {
    /// The access to it.
    pub fn access(&self) -> ApiAccess {
        ApiAccess { prefix: self.prefix.clone(), key: self.key.clone(), insecure: self.insecure }
    }
}

/// Section `log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Least severe level that is logged.
    pub level: LevelFilter,
    /// `None` is standard error.
    pub file: Option<PathBuf>,
    /// Each message is a JSON object; `roost.log_format`.
    pub json: bool,
}

/// Sections `client.token` and `client.subscription_token`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Of connection tokens.
    pub connection: TokenOptions,
    /// Of subscription tokens, where they have their own.
    pub subscription: Option<TokenOptions>,
}

impl Tokens {
    /// The keys and claims that subscription tokens are checked against.
    pub fn of_subscriptions(&self) -> &TokenOptions {
        self.subscription.as_ref().unwrap_or(&self.connection)
    }
}

/// Section `websocket`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebSocket {
    /// Not `websocket.disabled`.
    pub enabled: bool,
    /// Path, begins with `/`.
    pub handler_prefix: String,
    /// A blocked write, before disconnect 3009.
    pub write_timeout_ms: u64,
    /// Of a client's message, before close 1009.
    pub message_bytes_max: usize,
}

/// Section `roost`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roost {
    /// How many shards.
    pub shards: Shards,
    /// Which driver.
    pub io: Io,
    /// Whether shards stay on a CPU each.
    pub pin: Pin,
    /// Deliveries in one turn.
    pub turn_deliveries: u32,
    /// Host names of a node that checks them, lower case.
    pub allowed_hosts: Vec<String>,
    /// Serve `/echo`.
    pub echo: bool,
    /// Connections closed per second when draining; 0: evenly over the shutdown timeout.
    pub drain_rate: u64,
    /// Memory of the process.
    pub memory_limit: MemoryLimit,
    /// Channel records of the node.
    pub channels_max: usize,
    /// From accepting to a complete request head.
    pub handshake_timeout_ms: u64,
    /// Silence of an echo connection, before it is pinged.
    pub idle_timeout_ms: u64,
    /// From a close frame to its answer.
    pub close_timeout_ms: u64,
    /// Loop lag beyond which the node isn't healthy; 0: none.
    pub health_loop_lag_ms: u64,
    /// Connections, percent of what may be, from which on it isn't.
    pub health_connections: u8,
    /// `SO_SNDBUF`; 0: leave it.
    pub send_buffer_bytes: usize,
    /// `TCP_NOTSENT_LOWAT`; 0: leave it.
    pub notsent_lowat_bytes: usize,
    /// How clients' addresses become known.
    pub addresses: AddressSources,
    /// The limits of an address.
    pub address_limits: AddressOptions,
}

/// `roost.shards`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shards {
    /// One for each core that the process may use.
    Cores,
    /// As many, and more when the descriptor limit requires it.
    Auto,
    /// 1 to 255.
    Count(u8),
}

/// `roost.pin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// Where the node has its CPUs for itself.
    Auto,
    /// Yes.
    On,
    /// No.
    Off,
}

/// `roost.io`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// io_uring where there is one, else epoll.
    Auto,
    /// epoll.
    Epoll,
    /// io_uring.
    Uring,
}

/// `roost.memory_limit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryLimit {
    /// So many bytes.
    Bytes(u64),
    /// A share of the machine or its cgroup, 1 to 100.
    Percent(u8),
}

/// A configuration that may be used.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The warnings for its owner, a line each.
    pub warnings: Vec<String>,
    /// The file that it came from, if one was read.
    pub origin: Option<PathBuf>,
}

/// A configuration that can't be used: everything that is wrong with it. The process exits with 2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.join("\n"))]
pub struct ConfigError {
    /// At least one, a line each.
    pub problems: Vec<String>,
    /// Further remarks, a line each.
    pub warnings: Vec<String>,
    /// `roost.log_format` is `json`, as far as that is known.
    pub json_log: bool,
}

/// Where a configuration comes from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file named on the command line; else `ROOST_CONFIG` names one, else [`DEFAULT_FILE`] is
    /// read if it is there (but not by the development node).
    pub file: Option<PathBuf>,
    /// All variables.
    pub environment: Vec<(String, String)>,
    /// Flags, as pairs of path and text.
    pub flags: Vec<(&'static str, String)>,
    /// Put the development preset under it all.
    pub dev: bool,
}

/// Reads, checks and builds.
///
/// # Errors
/// Everything that is wrong. A named file that isn't there, or has nothing in it, is: it may be in the
/// middle of being replaced, and the defaults would take all that it grants from a running node.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let mut report = Report::default();
    let file = chosen_file(sources);
    let text = file.as_ref().and_then(|(path, named)| match read_options(path) {
        Ok(text) => Some((path.clone(), text)),
        Err(fault) if fault.kind() == std::io::ErrorKind::NotFound && !named => None,
        Err(fault) => {
            report.errors.push(unreadable(path, &fault));
            None
        }
    });
    let name = text.as_ref().map(|(path, _)| path.display().to_string());
    let text = name.as_deref().zip(text.as_ref().map(|(_, text)| text.as_str()));
    let config = resolve(text, sources, &mut report);
    if sources.dev {
        report.advice.extend(warn_of_development(sources, name.as_deref()));
    }
    let closed = report.close(false);
    let warnings = closed.map_err(|f| ConfigError { json_log: config.log.json, ..f })?;
    Ok(Loaded { config, warnings, origin: name.map(PathBuf::from) })
}

/// A development node is what nobody means who has written a configuration.
fn warn_of_development(sources: &Sources, file: Option<&str>) -> Option<String> {
    let open =
        "anonymous clients may connect, subscribe and publish unless the options say otherwise";
    if let Some(file) = file {
        return Some(format!(
            "THIS IS A DEVELOPMENT NODE, with the options of {file}: {open}; without --dev it is a node \
             by that file alone"
        ));
    }
    if is_configured(sources) {
        return Some(format!(
            "THIS IS A DEVELOPMENT NODE, although keys are configured: {open}; without --dev it is a \
             node by its options alone"
        ));
    }
    Path::new(DEFAULT_FILE).exists().then(|| {
        format!("{DEFAULT_FILE} is here, and a development node doesn't read it: roost -c {DEFAULT_FILE}")
    })
}

/// Whether somebody has configured a node: a file is named, or a key is set by variables or flags. Without
/// that, `roost` alone is a development node.
pub fn is_configured(sources: &Sources) -> bool {
    let named =
        sources.environment.iter().any(|(name, path)| name == CONFIG_VARIABLE && !path.is_empty());
    if named || sources.file.is_some() {
        return true;
    }
    let mut settings = Settings::new();
    // Their faults are reported when they are loaded.
    let mut report = Report::default();
    settings.environment(&sources.environment, &mut report);
    settings.flags(&sources.flags, &mut report);
    KEYS.iter()
        .any(|key| settings.root.setting(key).is_some_and(|setting| !setting.value.is_nothing()))
}

/// Options that only a node for others has.
const KEYS: &[&str] = &[
    "admin.password",
    "admin.secret",
    "client.subscription_token.ecdsa_public_key",
    "client.subscription_token.hmac_previous_secret_key",
    "client.subscription_token.hmac_secret_key",
    "client.subscription_token.jwks_public_endpoint",
    "client.subscription_token.rsa_public_key",
    "client.token.ecdsa_public_key",
    "client.token.hmac_previous_secret_key",
    "client.token.hmac_secret_key",
    "client.token.jwks_public_endpoint",
    "client.token.rsa_public_key",
    "http_api.key",
];

/// Names a configuration file.
const CONFIG_VARIABLE: &str = "ROOST_CONFIG";

/// Checks a file by itself, without environment and flags. Returns the warnings.
///
/// # Errors
/// Everything that is wrong, and with `strict` options that nobody knows, too.
pub fn check(file: &Path, strict: bool) -> Result<Vec<String>, ConfigError> {
    let name = file.display().to_string();
    let text = read_options(file).map_err(|fault| ConfigError {
        problems: vec![unreadable(file, &fault)],
        warnings: Vec::new(),
        json_log: false,
    })?;
    let mut report = Report::default();
    resolve(Some((&name, &text)), &Sources::default(), &mut report);
    report.close(strict)
}

/// All layers over each other, checked and built. Only to be used when the report has no errors.
fn resolve(file: Option<(&str, &str)>, sources: &Sources, report: &mut Report) -> Config {
    let mut settings = Settings::new();
    if sources.dev {
        settings.preset(DEV_PRESET, report);
    }
    if let Some((name, text)) = file {
        settings.file(name, text, report);
    }
    settings.environment(&sources.environment, report);
    settings.flags(&sources.flags, report);
    settings.judge(report);
    let config = build::build(&settings, report);
    report.advice.extend(advice::advice(&settings, &config));
    if let Some(Admin { password: None, insecure: false, .. }) = &config.web.admin
        && !sources.dev
    {
        let expected = "false, or true with admin.password";
        report.errors.push(settings.root.complaint("admin.enabled", expected));
    }
    if sources.dev && config.http_server.at.is_seen_from_outside() {
        report.errors.push(settings.root.complaint(
            "http_server.address",
            "a loopback address: the development node is open to everyone who reaches it; use \
             `roost serve` for others",
        ));
    }
    config
}

/// The file to read, and whether somebody named it.
fn chosen_file(sources: &Sources) -> Option<(PathBuf, bool)> {
    if let Some(path) = &sources.file {
        return Some((path.clone(), true));
    }
    let named = sources.environment.iter().find(|(name, _)| name == CONFIG_VARIABLE);
    match named {
        Some((_, path)) if !path.is_empty() => Some((PathBuf::from(path), true)),
        _ if sources.dev => None,
        _ => Some((PathBuf::from(DEFAULT_FILE), false)),
    }
}

/// The text of a configuration file.
fn read_options(path: &Path) -> std::io::Result<String> {
    let text = read(path)?;
    match text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}').is_empty() {
        true => Err(std::io::Error::other("the file is empty")),
        false => Ok(text),
    }
}

fn unreadable(path: &Path, fault: &std::io::Error) -> String {
    let path = path.display();
    match fault.kind() {
        std::io::ErrorKind::NotFound => format!("{path}: no such file"),
        std::io::ErrorKind::IsADirectory => format!("{path}: a folder, expected a file"),
        _ => format!("{path}: {fault}"),
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    let length = std::fs::metadata(path)?.len();
    if length > FILE_BYTES_MAX {
        let fault = format!("{length} bytes are too many for a configuration");
        return Err(std::io::Error::other(fault));
    }
    std::fs::read_to_string(path)
}
