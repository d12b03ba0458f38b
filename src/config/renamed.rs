//! Names that options had in Centrifugo 3 to 5, where most stood flat at the top of a file, and where the same
//! is set today. Suggestions for unknown options and `roost config migrate` read the same table.

/// What became of an old option; a path in the table is a constant, one by a prefix is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate<Path = &'static str> {
    /// It has this path now.
    Moved(Path),
    /// It has no place, and why.
    Gone(&'static str),
}

use Fate::{Gone, Moved};

/// A name from the top of a file and its fate. Those of channels are in [`OF_CHANNELS`], and those made of a
/// prefix and the rest of a name in [`PREFIXES`].
#[rustfmt::skip]
const NAMES: &[(&str, Fate)] = &[
    ("address", Moved("http_server.address")),
    ("port", Moved("http_server.port")),
    ("internal_address", Moved("http_server.internal_address")),
    ("internal_port", Moved("http_server.internal_port")),
    ("tls", Moved("http_server.tls.enabled")),
    ("tls_cert", Moved("http_server.tls.cert_pem")),
    ("tls_key", Moved("http_server.tls.key_pem")),
    ("tls_cert_pem", Moved("http_server.tls.cert_pem")),
    ("tls_key_pem", Moved("http_server.tls.key_pem")),
    ("tls_cert_file", Moved("http_server.tls.cert_pem")),
    ("tls_key_file", Moved("http_server.tls.key_pem")),
    ("tls_client_ca", Moved("http_server.tls.client_ca_pem")),
    ("tls_client_ca_pem", Moved("http_server.tls.client_ca_pem")),
    ("tls_root_ca", Moved("http_server.tls.server_ca_pem")),
    ("tls_server_ca_pem", Moved("http_server.tls.server_ca_pem")),
    ("tls_server_name", Moved("http_server.tls.server_name")),
    ("tls_insecure_skip_verify", Moved("http_server.tls.insecure_skip_verify")),
    ("tls_external", Moved("http_server.tls_external")),
    ("tls_autocert", Moved("http_server.tls_autocert.enabled")),
    ("tls_min_version", Gone("TLS 1.2 and 1.3 are spoken")),
    ("tls_max_version", Gone("TLS 1.2 and 1.3 are spoken")),
    ("http3", Moved("http_server.http3.enabled")),
    ("log_level", Moved("log.level")),
    ("log_file", Moved("log.file")),
    ("name", Moved("node.name")),
    ("node_info_metrics_aggregate_interval", Moved("node.info_metrics_aggregate_interval")),
    ("engine", Moved("engine.type")),
    ("broker", Moved("broker.type")),
    ("presence_manager", Moved("presence_manager.type")),
    ("redis_use_lists", Moved("engine.redis.history_use_lists")),
    ("redis_tls", Moved("engine.redis.tls.enabled")),
    ("redis_tls_skip_verify", Moved("engine.redis.tls.insecure_skip_verify")),
    ("redis_sentinel_tls", Moved("engine.redis.sentinel_tls.enabled")),
    ("redis_sentinels", Moved("engine.redis.sentinel_address")),
    ("redis_master_name", Moved("engine.redis.sentinel_master_name")),
    ("redis_cluster_addrs", Moved("engine.redis.cluster_address")),
    ("redis_url", Moved("engine.redis.address")),
    ("redis_read_timeout", Moved("engine.redis.io_timeout")),
    ("redis_write_timeout", Gone("engine.redis.io_timeout is for reading and writing")),
    ("redis_pubsub_num_workers", Gone("roost.broker_threads has the threads for Redis")),
    ("redis_host", Gone("engine.redis.address has host and port")),
    ("redis_port", Gone("engine.redis.address has host and port")),
    ("redis_streams", Gone("streams are the default; engine.redis.history_use_lists chooses lists")),
    ("redis_history_meta_ttl", Moved("channel.history_meta_ttl")),
    ("memory_history_meta_ttl", Moved("channel.history_meta_ttl")),
    ("history_meta_ttl", Moved("channel.history_meta_ttl")),
    ("global_history_meta_ttl", Moved("channel.history_meta_ttl")),
    ("presence_ttl", Moved("engine.redis.presence_ttl")),
    ("global_presence_ttl", Moved("engine.redis.presence_ttl")),
    ("redis_presence_ttl", Moved("engine.redis.presence_ttl")),
    ("presence_hash_field_ttl", Moved("engine.redis.presence_hash_field_ttl")),
    ("global_presence_hash_field_ttl", Moved("engine.redis.presence_hash_field_ttl")),
    ("redis_presence_hash_field_ttl", Moved("engine.redis.presence_hash_field_ttl")),
    ("global_redis_presence_hash_field_ttl", Moved("engine.redis.presence_hash_field_ttl")),
    ("global_redis_presence_user_mapping", Moved("engine.redis.presence_user_mapping")),
    ("redis_presence_user_mapping", Moved("engine.redis.presence_user_mapping")),
    ("allowed_origins", Moved("client.allowed_origins")),
    ("allow_anonymous_connect_without_token", Moved("client.allow_anonymous_connect_without_token")),
    ("client_anonymous", Moved("client.allow_anonymous_connect_without_token")),
    ("anonymous_connect_without_token", Moved("client.allow_anonymous_connect_without_token")),
    ("disallow_anonymous_connection_tokens", Moved("client.disallow_anonymous_connection_tokens")),
    ("client_message_write_timeout", Moved("websocket.write_timeout")),
    ("client_request_max_size", Moved("websocket.message_size_limit")),
    ("client_user_id_http_header", Moved("client.user_id_http_header")),
    ("client_presence_expire_interval", Moved("engine.redis.presence_ttl")),
    ("client_presence_ping_interval", Moved("client.presence_update_interval")),
    ("client_ping_interval", Moved("client.ping_interval")),
    ("ping_interval", Moved("client.ping_interval")),
    ("pong_timeout", Moved("client.pong_timeout")),
    ("user_subscribe_to_personal", Moved("client.subscribe_to_user_personal_channel.enabled")),
    ("user_personal_channel_namespace", Moved("client.subscribe_to_user_personal_channel.personal_channel_namespace")),
    ("user_personal_single_connection", Moved("client.subscribe_to_user_personal_channel.single_connection")),
    ("separate_subscription_token_config", Moved("client.subscription_token.enabled")),
    ("skip_user_check_in_subscription_token", Gone("a subscription token is for the user whose id it has")),
    ("secret", Moved("client.token.hmac_secret_key")),
    ("insecure", Moved("client.insecure")),
    ("insecure_api", Moved("http_api.insecure")),
    ("insecure_admin", Moved("admin.insecure")),
    ("namespaces", Moved("channel.namespaces")),
    ("rpc_namespaces", Moved("rpc.namespaces")),
    ("rpc_namespace_boundary", Moved("rpc.namespace_boundary")),
    ("rpc_ping", Moved("rpc.ping.enabled")),
    ("rpc_ping_method", Moved("rpc.ping.method")),
    ("api", Gone("http_api.disabled switches the server API off")),
    ("grpc_api", Moved("grpc_api.enabled")),
    ("grpc_api_tls", Moved("grpc_api.tls.enabled")),
    ("admin", Moved("admin.enabled")),
    ("prometheus", Moved("prometheus.enabled")),
    ("health", Moved("health.enabled")),
    ("swagger", Moved("swagger.enabled")),
    ("debug", Moved("debug.enabled")),
    ("dev", Gone("roost serve --dev runs a development node")),
    ("opentelemetry", Moved("opentelemetry.enabled")),
    ("graphite", Moved("graphite.enabled")),
    ("usage_stats_disable", Moved("usage_stats.disabled")),
    ("websocket_disable", Moved("websocket.disabled")),
    ("websocket_ping_interval", Gone("client.ping_interval is for all transports")),
    ("websocket_pong_timeout", Gone("client.pong_timeout is for all transports")),
    ("sse", Moved("sse.enabled")),
    ("http_stream", Moved("http_stream.enabled")),
    ("uni_websocket", Moved("uni_websocket.enabled")),
    ("uni_websocket_ping_interval", Gone("client.ping_interval is for all transports")),
    ("uni_sse", Moved("uni_sse.enabled")),
    ("uni_http_stream", Moved("uni_http_stream.enabled")),
    ("uni_grpc", Moved("uni_grpc.enabled")),
    ("uni_grpc_tls", Moved("uni_grpc.tls.enabled")),
    ("webtransport", Moved("webtransport.enabled")),
    ("shutdown_timeout", Moved("shutdown.timeout")),
    ("shutdown_termination_delay", Gone("the node closes connections at roost.drain_rate")),
    ("gomaxprocs", Gone("roost.shards has the number of threads")),
    ("use_client_protocol_v1_by_default", Gone("version 1 of the client protocol is not spoken")),
    ("disable_client_protocol_v1", Gone("version 1 of the client protocol is not spoken")),
    ("use_unlimited_history_by_default", Gone("a history call without a limit returns positions only")),
    ("v3_use_offset", Gone("offsets are used always")),
    ("connect_proxy_name", Moved("client.proxy.connect")),
    ("refresh_proxy_name", Moved("client.proxy.refresh")),
    ("rpc_proxy_name", Moved("rpc.without_namespace.proxy_name")),
    ("granular_proxy_mode", Gone("proxies have names in `proxies`, without a mode")),
    ("proxy_http_headers", Moved("client.proxy.connect.http_headers")),
    ("proxy_extra_http_headers", Moved("client.proxy.connect.http_headers")),
    ("proxy_static_http_headers", Moved("client.proxy.connect.http.static_headers")),
    ("proxy_binary_encoding", Moved("client.proxy.connect.binary_encoding")),
    ("proxy_include_connection_meta", Moved("client.proxy.connect.include_connection_meta")),
    ("proxy_grpc_metadata", Moved("client.proxy.connect.grpc_metadata")),
    ("proxy_grpc_cert_file", Gone("a proxy is an http:// or https:// URL")),
    ("proxy_grpc_credentials_key", Gone("a proxy is an http:// or https:// URL")),
    ("proxy_grpc_credentials_value", Gone("a proxy is an http:// or https:// URL")),
    ("proxy_grpc_compression", Gone("a proxy is an http:// or https:// URL")),
    ("jwks_public_endpoint", Moved("client.token.jwks_public_endpoint")),
];

/// Options of channels, which stood at the top of a file for channels without a namespace, and in a namespace:
/// old name, and name in the namespace today.
#[rustfmt::skip]
const OF_CHANNELS: &[(&str, Fate)] = &[
    ("recover", Moved("force_recovery")),
    ("history_recover", Moved("force_recovery")),
    ("position", Moved("force_positioning")),
    ("history_lifetime", Moved("history_ttl")),
    ("anonymous", Moved("allow_subscribe_for_anonymous")),
    ("publish", Moved("allow_publish_for_client")),
    ("subscribe_to_publish", Moved("allow_publish_for_subscriber")),
    ("protected", Moved("allow_subscribe_for_client")),
    ("presence_disable_for_client", Moved("allow_presence_for_client")),
    ("history_disable_for_client", Moved("allow_history_for_client")),
    ("user_limited", Moved("allow_user_limited_channels")),
    ("proxy_subscribe", Moved("subscribe_proxy_enabled")),
    ("proxy_publish", Moved("publish_proxy_enabled")),
    ("proxy_sub_refresh", Moved("sub_refresh_proxy_enabled")),
    ("proxy_subscribe_stream", Moved("subscribe_stream_proxy_enabled")),
    ("proxy_subscribe_stream_bidirectional", Moved("subscribe_stream_proxy_bidirectional")),
    ("subscribe_stream_bidirectional", Moved("subscribe_stream_proxy_bidirectional")),
    ("allow_client_history", Moved("allow_history_for_client")),
    ("allow_client_presence", Moved("allow_presence_for_client")),
    ("server_side", Gone("channels without allow_subscribe_for_client are for the server's subscriptions")),
];

/// Beginnings of old names, and of the paths of today; the rest of the name stays as it is. The longest first.
#[rustfmt::skip]
const PREFIXES: &[(&str, &str)] = &[
    ("proxy_subscribe_stream_", "channel.proxy.subscribe_stream."),
    ("redis_sentinel_tls_", "engine.redis.sentinel_tls."),
    ("subscription_token_", "client.subscription_token."),
    ("proxy_sub_refresh_", "channel.proxy.sub_refresh."),
    ("uni_http_stream_", "uni_http_stream."),
    ("proxy_subscribe_", "channel.proxy.subscribe."),
    ("proxy_connect_", "client.proxy.connect."),
    ("proxy_refresh_", "client.proxy.refresh."),
    ("proxy_publish_", "channel.proxy.publish."),
    ("opentelemetry_", "opentelemetry."),
    ("uni_websocket_", "uni_websocket."),
    ("webtransport_", "webtransport."),
    ("tls_autocert_", "http_server.tls_autocert."),
    ("grpc_api_tls_", "grpc_api.tls."),
    ("uni_grpc_tls_", "uni_grpc.tls."),
    ("http_stream_", "http_stream."),
    ("prometheus_", "prometheus."),
    ("redis_tls_", "engine.redis.tls."),
    ("emulation_", "emulation."),
    ("websocket_", "websocket."),
    ("proxy_rpc_", "rpc.proxy."),
    ("graphite_", "graphite."),
    ("uni_grpc_", "uni_grpc."),
    ("grpc_api_", "grpc_api."),
    ("swagger_", "swagger."),
    ("channel_", "channel."),
    ("uni_sse_", "uni_sse."),
    ("client_", "client."),
    ("health_", "health."),
    ("redis_", "engine.redis."),
    ("admin_", "admin."),
    ("debug_", "debug."),
    ("token_", "client.token."),
    ("nats_", "broker.nats."),
    ("api_", "http_api."),
    ("sse_", "sse."),
];

/// Names of TLS files in options of TLS: before version 5 they said what they are, today they are PEM or a path.
#[rustfmt::skip]
const TLS_FILES: &[(&str, &str)] = &[
    ("cert", "cert_pem"), ("cert_file", "cert_pem"), ("key", "key_pem"), ("key_file", "key_pem"),
    ("root_ca", "server_ca_pem"), ("root_ca_file", "server_ca_pem"), ("root_ca_pem", "server_ca_pem"),
    ("server_ca", "server_ca_pem"), ("server_ca_file", "server_ca_pem"),
    ("client_ca", "client_ca_pem"), ("client_ca_file", "client_ca_pem"),
    ("skip_verify", "insecure_skip_verify"),
];

/// The fate of an option that stood at the top of a file, or of a flat variable; `None` for one that no version
/// had. `is_known` says whether a path is one of today's.
pub(crate) fn at_top(name: &str, is_known: &dyn Fn(&str) -> bool) -> Option<Fate<String>> {
    if name == "sockjs" || name.starts_with("sockjs_") {
        return Some(Gone(
            "SockJS isn't served; http_stream and sse are for clients without WebSocket",
        ));
    }
    let named = NAMES.iter().find(|(old, _)| *old == name).map(|(_, fate)| fate.owned());
    named.or_else(|| by_prefix(name, is_known).map(Moved))
}

/// The fate of an option of channels, within a namespace.
pub(crate) fn in_namespace(name: &str) -> Option<Fate<String>> {
    OF_CHANNELS.iter().find(|(old, _)| *old == name).map(|(_, fate)| fate.owned())
}

impl Fate {
    fn owned(self) -> Fate<String> {
        match self {
            Moved(path) => Moved(path.to_owned()),
            Gone(why) => Gone(why),
        }
    }
}

/// Whether only version 3 had such an option of channels: all its subscriptions were open where later versions
/// want a permission.
pub(crate) fn is_of_version_3(name: &str) -> bool {
    matches!(
        name,
        "anonymous"
            | "publish"
            | "subscribe_to_publish"
            | "protected"
            | "presence_disable_for_client"
            | "history_disable_for_client"
            | "recover"
            | "position"
            | "client_anonymous"
            | "v3_use_offset"
            | "use_client_protocol_v1_by_default"
            | "disable_client_protocol_v1"
    )
}

fn by_prefix(name: &str, is_known: &dyn Fn(&str) -> bool) -> Option<String> {
    let (rest, section) =
        PREFIXES.iter().find_map(|(old, section)| Some((name.strip_prefix(old)?, *section)))?;
    let renamed = TLS_FILES.iter().find(|(old, _)| section.ends_with("tls.") && *old == rest);
    let rest = renamed.map_or(rest, |(_, new)| new);
    let path = format!("{section}{rest}");
    is_known(&path).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::explain::is_known;

    #[test]
    fn every_name_leads_to_an_option_of_today() {
        for (name, fate) in NAMES {
            match fate {
                Moved(path) => assert!(is_known(path), "{name}: {path}"),
                Gone(why) => assert!(why.split(' ').count() > 3, "{name}: {why}"),
            }
        }
        for (name, fate) in OF_CHANNELS {
            if let Moved(path) = fate {
                assert!(is_known(&format!("channel.without_namespace.{path}")), "{name}: {path}");
            }
        }
        let mut lengths = PREFIXES.iter().map(|(old, _)| old.len());
        let mut last = usize::MAX;
        assert!(lengths.all(|length| std::mem::replace(&mut last, length) >= length));
        let mut names: Vec<_> = NAMES.iter().map(|(name, _)| name).collect();
        names.sort();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn names_of_three_versions() {
        for (name, path) in [
            ("token_hmac_secret_key", "client.token.hmac_secret_key"),
            ("subscription_token_rsa_public_key", "client.subscription_token.rsa_public_key"),
            ("redis_sentinel_master_name", "engine.redis.sentinel_master_name"),
            ("redis_tls_cert_file", "engine.redis.tls.cert_pem"),
            ("client_channel_limit", "client.channel_limit"),
            ("websocket_message_size_limit", "websocket.message_size_limit"),
            ("proxy_connect_endpoint", "client.proxy.connect.endpoint"),
            ("proxy_sub_refresh_timeout", "channel.proxy.sub_refresh.timeout"),
            ("api_key", "http_api.key"),
            ("grpc_api_key", "grpc_api.key"),
            ("admin_password", "admin.password"),
            ("uni_http_stream_handler_prefix", "uni_http_stream.handler_prefix"),
            ("channel_max_length", "channel.max_length"),
            ("nats_url", "broker.nats.url"),
            ("graphite_interval", "graphite.interval"),
        ] {
            assert_eq!(at_top(name, &is_known), Some(Moved(path.to_owned())), "{name}");
        }
        assert!(matches!(at_top("sockjs_url", &is_known), Some(Gone(_))));
        assert_eq!(at_top("client_nothing", &is_known), None);
    }
}
