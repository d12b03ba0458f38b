//! Options of a node's shards, and how many connections and slots these give a shard.

use crate::base::address::Peer;
use crate::base::limits::TURN_ACCEPTS_MAX;
use crate::edge::host::HostRules;
use crate::edge::trusted::TrustedPeers;
use crate::proto::http::ForwardedHeader;
use crate::proto::ws::DeflateOptions;
use crate::shard::http::endpoint::{Endpoint, UniWebSocketOptions};

/// Options of a node's shards. Times in milliseconds.
#[derive(Clone, Debug)]
pub struct Options {
    /// Soft limit of a shard's connections: above it, new ones go to the least loaded shard.
    pub conns_soft: u32,
    /// Hard limit of a shard's connections.
    pub conns_max: u32,
    /// Time for a whole request head.
    pub handshake_timeout_ms: u64,
    /// Time for the peer's close frame or FIN after those of the node.
    pub close_timeout_ms: u64,
    /// Time in which a full socket has to accept some bytes. The connection is reset then.
    pub write_timeout_ms: u64,
    /// Silence after which an echo connection is pinged; closed after the same time without an answer.
    pub idle_timeout_ms: u64,
    /// Size limit of a client's message, bytes.
    pub message_bytes_max: usize,
    /// Size limit of a client's compressed message after inflation, bytes.
    pub inflated_bytes_max: usize,
    /// Paths that shards serve themselves; the control thread serves the others.
    pub endpoints: Vec<Endpoint>,
    /// Compression for two-way WebSockets whose clients offer it; `None`: off.
    pub deflate: Option<DeflateOptions>,
    /// Options of one-way WebSockets.
    pub uni_websocket: UniWebSocketOptions,
    /// Longest wait of a poll without publications. The real one is up to an eighth shorter, so that
    /// clients spread.
    pub poll_wait_ms: u64,
    /// How long a shard polls before it sleeps, microseconds.
    pub spin_us: u64,
    /// One shard accepts for all and passes each connection to the least loaded one.
    pub one_accepts: bool,
    /// The listeners are a service manager's and outlive the node: one that drains leaves what waits
    /// there to the next process.
    pub listeners_stay: bool,
    /// Sources of clients' addresses.
    pub addresses: AddressSources,
    /// Path prefixes that the control thread serves on the public port. A prefix covers itself and the
    /// paths below it; `/` covers only itself.
    pub web: Vec<String>,
    /// Limit of channels kept only for their history.
    pub channels_idle_max: usize,
    /// Limit of unanswered requests to one home.
    pub requests_unanswered_max: u32,
    /// Limit of deliveries in one turn.
    pub turn_deliveries_max: u32,
    /// Limit of connections that orders reach in one turn.
    pub turn_ordered_max: usize,
    /// Host names under which the node is reachable.
    pub hosts: HostRules,
    /// The keeper of channels: histories and positions.
    pub broker: Broker,
    /// The keeper of presence.
    pub presence: Presence,
    /// Seconds for which a broker keeps an entry of presence that is not refreshed.
    pub presence_ttl_s: u32,
    /// Bytes of the newest publications of channels that a broker keeps, in all homes together: recoveries are
    /// answered from there. 0: none are kept.
    pub broker_window_bytes: usize,
    /// Subscriptions out of position for good that end at once; more are spread over some seconds.
    pub lapsed_batch: usize,
    /// TLS handshakes under way at most: one more ends the one that has been under way for longest.
    pub tls_handshakes_max: usize,
}

/// The keeper of histories and positions of channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Broker {
    /// The memory of the channels' homes: this node is alone.
    #[default]
    Memory,
    /// A broker that several nodes share. Homes send [`Mail::Command`](crate::shard::mail::Mail::Command) to
    /// [`BROKER`](crate::shard::mail::BROKER) and get
    /// [`Mail::BrokerEvent`](crate::shard::mail::Mail::BrokerEvent).
    Remote,
}

/// The keeper of presence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Presence {
    /// The one of channels.
    #[default]
    WithChannels,
    /// The memory of the channels' homes, though a broker keeps the channels: each node knows its own clients.
    Memory,
    /// A broker of its own: [`PRESENCE_BROKER`](crate::shard::mail::PRESENCE_BROKER).
    Apart,
}

impl Options {
    /// Whether the control thread serves a path.
    pub(crate) fn is_web(&self, path: &str) -> bool {
        self.web.iter().any(|prefix| {
            path.strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') && prefix != "/")
        })
    }

    /// Places of a shard for connections: those of clients, and the spare ones.
    pub(crate) fn places_max(&self) -> usize {
        self.conns_max as usize + CONNS_SPARE
    }

    /// Slots of a shard: one for each place, and some for dead connections that leave in the same turn.
    pub(crate) fn slots_max(&self) -> usize {
        self.places_max() + TURN_ACCEPTS_MAX
    }
}

/// Places beyond those of clients: in them requests are read, health checks and API calls answered, and
/// clients refused.
const CONNS_SPARE: usize = 64;

/// Sources of clients' addresses beside the socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressSources {
    /// Connections of trusted peers begin with a PROXY header.
    pub proxy_protocol: bool,
    /// The request header in which trusted peers name the client.
    pub header: Option<ForwardedHeader>,
    /// Trusted peers.
    pub trusted: TrustedPeers,
}

impl AddressSources {
    /// Whether any peer may name a client's address.
    pub(crate) fn forwards(&self) -> bool {
        self.proxy_protocol || self.header.is_some()
    }

    /// Whether this peer may.
    pub(crate) fn forwards_for(&self, peer: Peer) -> bool {
        self.forwards() && self.trusted.trusts(peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::fixture::Plan;

    #[test]
    fn a_prefix_covers_itself_and_the_paths_below_it() {
        let mut options = Plan::default().options;
        options.web = vec!["/".to_owned(), "/admin".to_owned()];
        let served = ["/", "/admin", "/admin/a", "/administrator", "/a", ""];
        let served = served.map(|path| options.is_web(path));
        assert_eq!(served, [true, true, true, false, false, false]);
    }

    #[test]
    fn a_shard_has_spare_places_and_slots_for_the_dead_of_a_turn() {
        let mut options = Plan::default().options;
        options.conns_max = 10;
        assert_eq!(options.places_max(), 10 + CONNS_SPARE);
        assert_eq!(options.slots_max(), 10 + CONNS_SPARE + TURN_ACCEPTS_MAX);
    }
}
