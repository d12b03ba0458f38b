use super::*;

fn migrated(name: &str, text: &str) -> Migrated {
    migrate_text(name, text, None).unwrap_or_else(|fault| panic!("{fault}"))
}

/// The node itself takes the result.
fn is_usable(options: &Value) {
    for format in [PrintFormat::Toml, PrintFormat::Yaml, PrintFormat::Json] {
        let name = match format {
            PrintFormat::Toml => "a.toml",
            PrintFormat::Yaml => "a.yaml",
            PrintFormat::Json => "a.json",
        };
        let text = print_options(options, format).unwrap();
        let read = tree::parse(name, &text).unwrap_or_else(|fault| panic!("{fault}: {text}"));
        assert_eq!(read.json(), *options, "{text}");
        let mut report = crate::config::layers::Report::default();
        crate::config::resolve(
            Some((name, &text)),
            &crate::config::Sources::default(),
            &mut report,
        );
        assert_eq!((&report.errors, &report.unknown), (&vec![], &vec![]), "{text}");
    }
}

/// A file of version 5, as its documentation builds one up.
const FIVE: &str = r#"{
  "token_hmac_secret_key": "bbe7d157-a253-4094-9759-06a8236543f9",
  "api_key": "d7627bb6-2292-4911-82e1-615c0ed3eebb",
  "admin": true,
  "admin_password": "d0683813-0916-4c49-979f-0e08a686b727",
  "admin_secret": "4e9eafcf-0120-4ddd-b668-8dc40072c78e",
  "allowed_origins": ["https://example.com"],
  "port": 9000,
  "internal_port": 9001,
  "engine": "redis",
  "redis_address": "127.0.0.1:6379,127.0.0.1:6380",
  "redis_tls": true,
  "redis_tls_insecure_skip_verify": true,
  "log_level": "debug",
  "ping_interval": "20s",
  "client_channel_limit": 256,
  "allow_subscribe_for_client": true,
  "history_size": 10,
  "history_ttl": "300s",
  "proxy_connect_endpoint": "http://localhost:3000/connect",
  "proxy_connect_timeout": "2s",
  "proxy_subscribe_endpoint": "http://localhost:3000/subscribe",
  "proxy_http_headers": ["Cookie", "Authorization"],
  "health": true,
  "prometheus": true,
  "sse": true,
  "websocket_compression": true,
  "sockjs": true,
  "shutdown_timeout": "10s",
  "typo_option": 1,
  "namespaces": [
    {"name": "chat", "presence": true, "join_leave": true, "force_recovery": true,
     "history_size": 50, "history_ttl": "10m", "allow_publish_for_subscriber": true,
     "proxy_subscribe": true}
  ]
}"#;

#[test]
fn a_file_of_version_5() {
    let Migrated { options, moved, left, .. } = migrated("c.json", FIVE);
    assert_eq!(
        options,
        json!({
            "http_server": {"port": 9000, "internal_port": "9001"},
            "client": {
                "token": {"hmac_secret_key": "bbe7d157-a253-4094-9759-06a8236543f9"},
                "allowed_origins": ["https://example.com"],
                "ping_interval": "20s",
                "channel_limit": 256,
                "proxy": {"connect": {
                    "enabled": true,
                    "endpoint": "http://localhost:3000/connect",
                    "timeout": "2s",
                    "http_headers": ["Cookie", "Authorization"],
                }},
            },
            "http_api": {"key": "d7627bb6-2292-4911-82e1-615c0ed3eebb"},
            "admin": {
                "enabled": true,
                "password": "d0683813-0916-4c49-979f-0e08a686b727",
                "secret": "4e9eafcf-0120-4ddd-b668-8dc40072c78e",
            },
            "engine": {
                "type": "redis",
                "redis": {
                    "address": ["127.0.0.1:6379", "127.0.0.1:6380"],
                    "tls": {"enabled": true, "insecure_skip_verify": true},
                },
            },
            "log": {"level": "debug"},
            "channel": {
                "without_namespace": {
                    "allow_subscribe_for_client": true, "history_size": 10, "history_ttl": "300s",
                },
                "proxy": {"subscribe": {
                    "endpoint": "http://localhost:3000/subscribe",
                    "http_headers": ["Cookie", "Authorization"],
                }},
                "namespaces": [{
                    "name": "chat", "presence": true, "join_leave": true, "force_recovery": true,
                    "history_size": 50, "history_ttl": "10m", "allow_publish_for_subscriber": true,
                    "subscribe_proxy_enabled": true,
                }],
            },
            "health": {"enabled": true},
            "prometheus": {"enabled": true},
            "sse": {"enabled": true},
            "websocket": {"compression": true},
            "shutdown": {"timeout": "10s"},
        })
    );
    is_usable(&options);
    assert!(
        moved.contains(&"c.json:2: token_hmac_secret_key -> client.token.hmac_secret_key".into())
    );
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left[0].starts_with("c.json:28: sockjs: SockJS isn't served"), "{left:?}");
    assert!(left[1].starts_with("c.json:30: typo_option: no version has this option"), "{left:?}");
}

const THREE: &str = r#"
v3_use_offset = true
token_hmac_secret_key = "my-secret-0123456789-0123456789-01"
client_anonymous = true
allowed_origins = ["*"]
presence = true
join_leave = true

[[namespaces]]
name = "public"
anonymous = true
publish = true
history_size = 10
history_ttl = "5m"
recover = true

[[namespaces]]
name = "private"
protected = true
presence = true
presence_disable_for_client = true
publish = true
subscribe_to_publish = true
"#;

/// Version 3 allowed what its successors want a permission for.
#[test]
fn a_file_of_version_3() {
    let Migrated { options, added, left, .. } = migrated("c.toml", THREE);
    let namespaces = options["channel"]["namespaces"].as_array().unwrap();
    assert_eq!(
        namespaces[0],
        json!({
            "name": "public", "history_size": 10, "history_ttl": "5m", "force_recovery": true,
            "allow_subscribe_for_client": true, "allow_subscribe_for_anonymous": true,
            "allow_publish_for_client": true, "allow_publish_for_anonymous": true,
            "allow_history_for_subscriber": true, "allow_history_for_anonymous": true,
            "allow_user_limited_channels": true,
        })
    );
    assert_eq!(
        namespaces[1],
        json!({
            "name": "private", "presence": true, "allow_publish_for_subscriber": true,
            "allow_user_limited_channels": true,
        })
    );
    assert_eq!(
        options["channel"]["without_namespace"],
        json!({
            "presence": true, "join_leave": true, "force_push_join_leave": true,
            "allow_subscribe_for_client": true, "allow_presence_for_subscriber": true,
            "allow_user_limited_channels": true,
        })
    );
    assert_eq!(options["client"]["allow_anonymous_connect_without_token"], json!(true));
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(left[0].contains("v3_use_offset"), "{left:?}");
    let line = "added channel.namespaces[public].allow_subscribe_for_client = true";
    assert!(added.iter().any(|added| added.contains(line)), "{added:?}");
    is_usable(&options);
}

/// Version 4 with proxies by name, in YAML.
#[test]
fn a_file_of_version_4() {
    let text = "\
granular_proxy_mode: true
token_rsa_public_key: /etc/key.pem
proxies:
  - name: backend
    endpoint: http://localhost:3000/events
    timeout: 500ms
    http_headers: [Cookie]
    static_http_headers: {X-Node: one}
  - name: stream
    endpoint: grpc://localhost:12000
connect_proxy_name: backend
rpc_proxy_name: backend
namespaces:
  - name: chat
    subscribe_proxy_name: backend
rpc_namespaces:
  - name: user
    rpc_proxy_name: backend
redis_sentinel_address: [\"a:26379\", \"b:26379\"]
redis_sentinel_master_name: main
engine: redis
http3: true
tls_min_version: tls13
";
    let Migrated { options, left, .. } = migrated("c.yaml", text);
    let backend = json!({
        "endpoint": "http://localhost:3000/events", "timeout": "500ms", "http_headers": ["Cookie"],
        "http": {"static_headers": {"X-Node": "one"}},
    });
    let mut connect = backend.clone();
    connect["enabled"] = true.into();
    let mut named = backend.clone();
    named["name"] = "backend".into();
    assert_eq!(options["client"]["proxy"]["connect"], connect);
    assert_eq!(options["proxies"], json!([named]));
    assert_eq!(
        options["channel"]["namespaces"],
        json!([{
            "name": "chat", "subscribe_proxy_name": "backend", "subscribe_proxy_enabled": true,
        }])
    );
    assert_eq!(
        options["rpc"],
        json!({
            "without_namespace": {"proxy_enabled": true, "proxy_name": "backend"},
            "namespaces": [{"name": "user", "proxy_enabled": true, "proxy_name": "backend"}],
        })
    );
    assert_eq!(options["engine"]["redis"]["sentinel_address"], json!(["a:26379,b:26379"]));
    let left = left.join("\n");
    for part in [
        "c.yaml:9: proxies: grpc://localhost:12000",
        "granular_proxy_mode",
        "http3",
        "tls_min_version",
    ] {
        assert!(left.contains(part), "{part}: {left}");
    }
}

/// A file of today stays as it is.
#[test]
fn a_file_of_version_6() {
    let text = r#"{"http_server":{"port":8001},"client":{"token":{"hmac_secret_key":"s"}},
        "engine":{"type":"redis","redis":{"address":["a:1"]}},"admin":{"enabled":false},
        "proxies":[{"name":"p","endpoint":"http://a.example"}],
        "channel":{"namespaces":[{"name":"a","presence":true}]},"pid_file":"/run/a.pid"}"#;
    let Migrated { options, moved, left, added } = migrated("c.json", text);
    let given: Value = serde_json::from_str(text).unwrap();
    assert_eq!(options, given);
    assert_eq!((moved.len(), left.len(), added.len()), (0, 0, 0), "{moved:?} {left:?}");
}

#[test]
fn variables_of_old_names() {
    let text = "\
# of a container
CENTRIFUGO_TOKEN_HMAC_SECRET_KEY=abc
export CENTRIFUGO_ALLOWED_ORIGINS=\"http://a.example http://b.example\"
CENTRIFUGO_NAMESPACES='[{\"name\":\"chat\",\"proxy_publish\":true}]'
CENTRIFUGO_ADMIN=true
CENTRIFUGO_CLIENT_TOKEN_AUDIENCE=today
CENTRIFUGO_SOCKJS=true
PATH=/bin
";
    let (out, report) = migrate_variables("env", text);
    assert_eq!(
        out,
        "\
# of a container
CENTRIFUGO_CLIENT_TOKEN_HMAC_SECRET_KEY=abc
CENTRIFUGO_CLIENT_ALLOWED_ORIGINS=\"http://a.example http://b.example\"
CENTRIFUGO_CHANNEL_NAMESPACES='[{\"name\":\"chat\",\"publish_proxy_enabled\":true}]'
CENTRIFUGO_ADMIN_ENABLED=true
CENTRIFUGO_CLIENT_TOKEN_AUDIENCE=today
PATH=/bin
"
    );
    assert_eq!(report.left.len(), 1, "{report:?}");
    assert!(report.left[0].starts_with("env:7: sockjs"), "{report:?}");
    assert_eq!(report.moved.len(), 4, "{report:?}");
}
