//! The configuration as typed sections.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use tracing::level_filters::LevelFilter;

use super::hooks::Hooks;
use super::redis::Brokers;
use super::tls::Tls;
use super::transports::Transports;
use crate::edge::address_limits::AddressOptions;
use crate::edge::api_key::ApiAccess;
use crate::edge::channels::ChannelRules;
use crate::edge::jwt::TokenOptions;
use crate::edge::origin::OriginRules;
use crate::edge::proxy::RpcRules;
use crate::io::sockets::{Address, UnixAddress};
use crate::session::ClientOptions;
use crate::shard::AddressSources;

/// The whole configuration. Durations are milliseconds.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub http_server: HttpServer,
    /// TLS of the listeners.
    pub tls: Tls,
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
    /// Where events go that the application gets notice of, if they do.
    pub hooks: Option<Hooks>,
    /// How long closing all connections may take.
    pub shutdown_timeout_ms: u64,
    /// Name of the node; empty: make one.
    pub node_name: String,
    /// Time between two publications of the metrics to other nodes.
    pub metrics_interval_ms: u64,
    /// File for the process id.
    pub pid_file: Option<PathBuf>,
    /// What is kept outside of this node.
    pub brokers: Brokers,
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
    pub(super) fn is_seen_from_outside(&self) -> bool {
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
    /// Metrics have Centrifugo's names, too.
    pub centrifugo_names: bool,
    /// Path of the health check, where there is one.
    pub health: Option<String>,
    /// Path of the readiness check, where there is one.
    pub ready: Option<String>,
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
    /// Bytes of the newest publications of channels that a broker keeps.
    pub broker_window_bytes: usize,
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
    /// The node isn't healthy either while the broker makes it unready.
    pub health_broker: bool,
    /// Start although the broker is unreachable.
    pub start_without_broker: bool,
    /// `SO_SNDBUF`; 0: the kernel adjusts it to the congestion window.
    pub send_buffer_bytes: usize,
    /// `TCP_NOTSENT_LOWAT`; 0: leave it.
    pub notsent_lowat_bytes: usize,
    /// How long a shard polls before it sleeps, microseconds.
    pub spin_us: u64,
    /// Connections come to the shard on whose CPU their packets arrive.
    pub incoming_cpu: bool,
    /// How clients' addresses become known.
    pub addresses: AddressSources,
    /// The limits of an address.
    pub address_limits: AddressOptions,
    /// Socket at which another process takes over.
    pub takeover: Option<PathBuf>,
}

/// `roost.shards`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shards {
    /// One for each core that the process may use.
    Cores,
    /// As many, and more when the descriptor limit requires it.
    Auto,
    /// 1 to 253.
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
