//! What all sessions of a node go by: one object, made from the configuration.

use std::sync::Arc;

use arc_swap::ArcSwap;
use compact_str::CompactString;

use crate::base::limits::ANSWER_BYTES_MAX;
use crate::edge::api_key::ApiAccess;
use crate::edge::channels::{ChannelRules, ChannelSyntax};
use crate::edge::client_id::ClientIdSealer;
use crate::edge::jwt::TokenKeys;
use crate::edge::origin::OriginRules;
use crate::edge::proxy::{AppDisconnect, ClientProxies, ProxyOptions, RpcRules};

/// Declares the options of clients once: their types, and for each whether it may change while sessions live
/// (`live`) or holds until the node ends (`fixed`). `config/build.rs` is where they come from.
macro_rules! client_options {
    ($(#[$attr:meta])* pub struct $name:ident {
        $($(#[$doc:meta])* $life:ident $field:ident: $type:ty,)*
    }) => {
        $(#[$attr])*
        pub struct $name {
            $($(#[$doc])* pub $field: $type,)*
        }

        impl $name {
            /// These with the live options of others. The second value is whether the fixed ones are equal,
            /// too.
            pub fn with_limits_of(&self, others: &Self) -> (Self, bool) {
                let taken = Self {
                    $($field: client_options!(@$life self, others).$field.clone(),)*
                };
                let all = taken == *others;
                (taken, all)
            }
        }
    };
    (@live $own:expr, $others:expr) => { $others };
    (@fixed $own:expr, $others:expr) => { $own };
}

client_options! {
    /// Options of the section `client` that a session asks for. Times in milliseconds.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct ClientOptions {
        /// Everybody may do everything (development).
        fixed insecure: bool,
        /// Clients without a token are anonymous instead of refused.
        fixed allow_anonymous: bool,
        /// A token without a user is refused.
        fixed disallow_anonymous_tokens: bool,
        /// A request header that names the user, lower case; empty for none.
        fixed user_id_http_header: String,
        /// Pings go so often; `None` for no pings.
        fixed ping_interval_ms: Option<u64>,
        /// A pong has to come so soon; `None` when no pong is wanted.
        fixed pong_timeout_ms: Option<u64>,
        /// A connection has to be connected so soon after the upgrade; `None` for no limit.
        live stale_close_delay_ms: Option<u64>,
        /// An expired connection is closed so long after its expiry.
        live expired_close_delay_ms: u64,
        /// An expired subscription ends so long after its expiry.
        live expired_sub_close_delay_ms: u64,
        /// Subscriptions of one client at most.
        live channel_limit: usize,
        /// Bytes that wait for one client at most: beyond it, close 3008.
        live queue_bytes_max: usize,
        /// Connections of the node at most, 0 for no limit.
        live connection_limit: u64,
        /// New connections of the node in a second at most, 0 for no limit.
        live connection_rate_limit: u64,
        /// Connections of one user on the node at most, 0 for no limit: beyond it, close 3504. Doesn't
        /// count for anonymous users.
        fixed user_connection_limit: u32,
        /// Publications in an answer to `history` at most; `usize::MAX` for no limit.
        live history_publications_max: usize,
        /// Publications that a subscription recovers at most; `usize::MAX` for no limit.
        live recovery_publications_max: usize,
        /// The channel that every user is subscribed to, if they are.
        fixed personal_channel: Option<PersonalChannel>,
        /// The connect reply carries the time.
        live include_server_time: bool,
        /// The server's version in the connect reply.
        fixed version: String,
        /// Proxies for the events of connections.
        live proxies: ClientProxies,
        /// Close codes and reasons for one-way connections whose `connect` ends with an error of that code.
        live one_way_disconnects: Vec<(u32, AppDisconnect)>,
        /// Proxy calls that one client may have in flight; 0 and 1: one, which keeps its commands in order.
        live concurrency: u32,
        /// The application gets an event for each connection that ends, `client.hooks.disconnect`.
        fixed disconnect_events: bool,
    }
}

impl ClientOptions {
    /// Bytes of one answer at most: as much as may wait for a client, with room for the rest of the reply.
    pub fn answer_bytes_max(&self) -> usize {
        (self.queue_bytes_max - self.queue_bytes_max / 8).min(ANSWER_BYTES_MAX)
    }

    /// A new connection of a user takes the place of the older ones.
    pub fn single_connection(&self) -> bool {
        self.personal_channel.as_ref().is_some_and(|personal| personal.single_connection)
    }
}

/// A server-side subscription that each user has to a channel of its own; anonymous ones have none.
/// Client protocol, section 20.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PersonalChannel {
    /// Its namespace; empty for the channels without one.
    pub namespace: CompactString,
    /// A new connection closes the older ones of its user with 3504.
    pub single_connection: bool,
}

/// Everything that decides what a session may do. Shared by all shards; channels, keys, origins, proxies and
/// the limits of clients may be replaced while the node runs.
pub struct Rules {
    /// Options of the section `client`.
    pub client: ArcSwap<ClientOptions>,
    /// Keys of connection tokens.
    pub keys: TokenKeys,
    /// Keys of subscription tokens, when they have their own.
    pub subscription_keys: Option<TokenKeys>,
    /// Namespaces and their options.
    pub channels: ArcSwap<ChannelRules>,
    /// Who may watch the node, where somebody may.
    pub admin: Option<AdminRules>,
    /// Who may call the server API; `None` where there is none.
    pub api: ArcSwap<Option<ApiAccess>>,
    /// Which web pages may connect.
    pub origins: ArcSwap<OriginRules>,
    /// Makes client ids.
    pub client_ids: ClientIdSealer,
    /// Makes ids of sessions, with a key of its own: they are secrets.
    pub session_ids: ClientIdSealer,
    /// Id of the node, for clients with a separate up-link.
    pub node_id: String,
    /// Who answers the calls of clients.
    pub rpc: ArcSwap<RpcRules>,
}

/// What admin connections are held against.
pub struct AdminRules {
    /// Keys of their tokens.
    pub keys: TokenKeys,
    /// They need none.
    pub insecure: bool,
}

impl Rules {
    /// All proxies that they name, each once.
    pub fn proxies(&self) -> Vec<Arc<ProxyOptions>> {
        let (client, rpc, channels) = (self.client.load(), self.rpc.load(), self.channels.load());
        let of_client = [&client.proxies.connect, &client.proxies.refresh];
        let of_rpc = rpc.namespaces.values().chain([&rpc.without_namespace]);
        let of_channels = channels
            .namespaces()
            .iter()
            .flat_map(|of| [&of.subscribe_proxy, &of.publish_proxy, &of.sub_refresh_proxy]);
        let mut all: Vec<Arc<ProxyOptions>> = Vec::new();
        for proxy in of_client.into_iter().chain(of_rpc).chain(of_channels).flatten() {
            if !all.contains(proxy) {
                all.push(Arc::clone(proxy));
            }
        }
        all
    }
}

impl PersonalChannel {
    /// The channel of a user whose id is not empty: `#user`, or `namespace:#user`.
    pub fn channel(&self, user: &str, syntax: &ChannelSyntax) -> String {
        let ChannelSyntax { namespace_boundary, user_boundary, .. } = syntax;
        match self.namespace.as_str() {
            "" => format!("{user_boundary}{user}"),
            namespace => format!("{namespace}{namespace_boundary}{user_boundary}{user}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn personal_channels() {
        let other = ChannelSyntax {
            namespace_boundary: "/".into(),
            user_boundary: "@".into(),
            ..ChannelSyntax::default()
        };
        for (namespace, user, syntax, expected) in [
            ("", "42", &ChannelSyntax::default(), "#42"),
            ("personal", "42", &ChannelSyntax::default(), "personal:#42"),
            ("personal", "a,b", &ChannelSyntax::default(), "personal:#a,b"),
            ("", "42", &other, "@42"),
            ("personal", "42", &other, "personal/@42"),
        ] {
            let personal = PersonalChannel { namespace: namespace.into(), ..Default::default() };
            assert_eq!(personal.channel(user, syntax), expected);
        }
    }
}
