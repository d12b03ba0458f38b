//! The node.
use roost::edge::channels::*;
use roost::session::*;
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let shards: usize = std::env::var("SHARDS").ok().and_then(|s| s.parse().ok()).unwrap_or(2);
    roost::sys::tables::raise_nofile();
    let ns = Namespace { allow_subscribe_for_client: true, allow_subscribe_for_anonymous: true, allow_publish_for_client: true, allow_publish_for_anonymous: true, ..Namespace::default() };
    let _g = roost::node::init_log(&Default::default()).unwrap();
    let keys = roost::edge::jwt::TokenKeys::new(&roost::edge::jwt::TokenOptions { hmac_secret_key: "secret".into(), ..Default::default() });
    let settings = roost::node::Settings {
        shards,
        cpus: vec![0, 1],
        listen: roost::io::epoll::ListenOptions { addresses: vec!["127.0.0.1:8000".parse().unwrap()], backlog: 65535, send_buffer_bytes: None, notsent_lowat_bytes: None },
        rules: Rules {
            client: ClientOptions { insecure: false, allow_anonymous: true, disallow_anonymous_tokens: false, user_id_http_header: String::new(), ping_interval_ms: Some(25000), pong_timeout_ms: Some(8000), stale_close_delay_ms: Some(10000), expired_close_delay_ms: 25000, expired_sub_close_delay_ms: 25000, channel_limit: 128, queue_bytes_max: 1 << 20, connection_limit: 0, connection_rate_limit: 0, include_server_time: false, version: "0.1".into() },
            keys, subscription_keys: None,
            channels: ChannelRules::new(ns, vec![], ChannelSyntax::default()),
            origins: roost::edge::origin::OriginRules::new(&["*".to_string()]).unwrap(),
            client_ids: roost::edge::client_id::ClientIdSealer::new(&[1; 32]),
        },
        options: roost::shard::Options { conns_soft: 19000, conns_max: 19800, handshake_timeout_ms: 10000, close_timeout_ms: 5000, write_timeout_ms: 1000, idle_timeout_ms: 120000, message_bytes_max: 17 << 20, websocket_path: Some("/connection/websocket".into()), echo: true, channels_idle_max: 100000, requests_unanswered_max: 4096, turn_deliveries_max: 2048 },
        drain_rate: 10000,
        shutdown_timeout: std::time::Duration::from_secs(30),
        memory_limit_bytes: 18 << 30,
        greeting: Box::new(|a| format!("listening on {}\n", a[0])),
    };
    roost::node::run(settings).unwrap();
}
