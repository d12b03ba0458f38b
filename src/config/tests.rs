use super::*;
use crate::edge::channels::{ChannelRules, DataFormat, Namespace, OWN_CHANNEL, RecoveryMode};
use crate::edge::jwt::TokenOptions;
use crate::proto::ws::DeflateOptions;
use crate::session::PersonalChannel;
use crate::shard::EndpointKind;

fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn sources(environment: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Sources {
    Sources {
        environment: variables(environment),
        flags: flags.iter().map(|&(path, text)| (path, text.to_owned())).collect(),
        ..Default::default()
    }
}

fn full(file: Option<(&str, &str)>, sources: &Sources) -> (Config, Report) {
    let mut report = Report::default();
    let config = resolve(file, sources, &mut report);
    (config, report)
}

fn good(file: Option<(&str, &str)>, sources: &Sources) -> Config {
    let (config, report) = full(file, sources);
    assert_eq!((report.errors, report.unknown), (vec![], vec![]));
    config
}

fn of_toml(text: &str) -> (Config, Report) {
    full(Some(("c.toml", text)), &Sources::default())
}

fn toml(text: &str) -> Report {
    of_toml(text).1
}

fn environment(pairs: &[(&str, &str)]) -> Config {
    good(None, &sources(pairs, &[]))
}

/// Everything in it; the lookup table of the namespaces has no order of its own.
fn text_of(config: &Config) -> String {
    let channels = ChannelRules::new(Default::default(), Vec::new(), Default::default());
    let rest = Config { channels, ..config.clone() };
    format!("{rest:?} {:?} {:?}", config.channels.namespaces(), config.channels.syntax())
}

const TOML: &str = r#"
pid_file = "/run/roost.pid"
[http_server]
port = 9000
[client]
allowed_origins = ["https://*.example.com", "http://localhost:3000"]
ping_interval = "20s"
pong_timeout = -1
[client.token]
hmac_secret_key = "bbe7d157"
[channel.without_namespace]
allow_subscribe_for_client = true
[[channel.namespaces]]
name = "news"
history_size = 10
history_ttl = "60s"
allow_positioning = true
[[channel.namespaces]]
name = "chat.room"
channel_regex = "^[a-z]+$"
[roost]
shards = 4
memory_limit = "12GiB"
"#;

const YAML: &str = r#"
pid_file: /run/roost.pid
http_server:
  port: 9000
client:
  allowed_origins:
    - https://*.example.com
    - http://localhost:3000
  ping_interval: 20s
  pong_timeout: -1
  token:
    hmac_secret_key: bbe7d157
channel:
  without_namespace:
    allow_subscribe_for_client: true
  namespaces:
    - name: news
      history_size: 10
      history_ttl: 60s
      allow_positioning: true
    - name: chat.room
      channel_regex: ^[a-z]+$
roost: {shards: 4, memory_limit: 12GiB}
"#;

const JSON: &str = r#"{
  "pid_file": "/run/roost.pid",
  "http_server": {"port": 9000},
  "client": {
	"allowed_origins": ["https://*.example.com", "http://localhost:3000"],
	"ping_interval": 20000000000,
	"pong_timeout": "-1",
    "token": {"hmac_secret_key": "bbe7d157"}
  },
  "channel": {
    "without_namespace": {"allow_subscribe_for_client": true},
    "namespaces": [
      {"name": "news", "history_size": 10, "history_ttl": "60s", "allow_positioning": true},
      {"name": "chat.room", "channel_regex": "^[a-z]+$"}
    ]
  },
  "roost": {"shards": "4", "memory_limit": 12884901888}
}"#;

#[test]
fn three_formats_give_one_configuration() {
    let all =
        [("c.toml", TOML), ("c.yaml", YAML), ("c.json", JSON), ("file", JSON), ("file", YAML)];
    let configs: Vec<Config> =
        all.iter().map(|&file| good(Some(file), &Sources::default())).collect();
    for config in &configs {
        assert_eq!(text_of(config), text_of(&configs[0]));
        assert_eq!(config.tokens, configs[0].tokens);
    }
    let config = &configs[0];
    assert_eq!(config.http_server.port, 9000);
    assert_eq!(config.client.ping_interval_ms, Some(20_000));
    assert_eq!(config.client.pong_timeout_ms, None);
    assert!(config.origins.allows(Some("https://a.example.com")));
    assert!(!config.origins.allows(Some("https://example.org")));
    assert_eq!(config.tokens.connection.hmac_secret_key, "bbe7d157");
    assert_eq!(config.roost.shards, Shards::Count(4));
    assert_eq!(config.roost.memory_limit, MemoryLimit::Bytes(12 << 30));
    let news = config.channels.resolve("news:x").unwrap();
    assert_eq!((news.history_size, news.history_ttl_ms), (10, 60_000));
    assert_eq!(news.history_meta_ttl_ms, 720 * 3_600_000);
    assert!(news.allow_positioning && !news.allow_subscribe_for_client);
    assert!(config.channels.resolve("x").unwrap().allow_subscribe_for_client);
    assert!(config.channels.resolve("chat.room:A").is_err());
}

#[test]
fn an_idle_timeout_may_be_longer_than_that_of_any_balancer() {
    let (config, report) = of_toml("[roost]\nidle_timeout = \"650s\"");
    assert_eq!((report.errors, config.roost.idle_timeout_ms), (vec![], 650_000));
}

#[test]
fn defaults_are_safe() {
    let config = good(None, &Sources::default());
    assert_eq!(config.http_server.port, 8000);
    assert!(matches!(&config.http_server.at, ListenAt::Ips(addresses) if addresses.len() == 2));
    assert!(!config.client.allow_anonymous && !config.client.insecure);
    assert!(!config.origins.allows(Some("http://localhost")));
    assert_eq!(config.client.ping_interval_ms, Some(25_000));
    assert_eq!(config.client.pong_timeout_ms, Some(8_000));
    assert_eq!(config.client.channel_limit, 128);
    assert_eq!(config.client.queue_bytes_max, 1 << 20);
    assert_eq!(config.client.user_connection_limit, 0);
    assert_eq!(config.client.history_publications_max, 300);
    assert_eq!(config.client.recovery_publications_max, 300);
    assert_eq!((&config.client.personal_channel, &config.rpc.ping), (&None, &None));
    assert_eq!(config.tokens.connection, TokenOptions::default());
    assert_eq!(config.websocket.message_bytes_max, 65_536);
    assert_eq!(config.websocket.write_timeout_ms, 1_000);
    assert_eq!(config.shutdown_timeout_ms, 30_000);
    assert_eq!(config.roost.shards, Shards::Cores);
    assert_eq!(config.roost.memory_limit, MemoryLimit::Percent(80));
    assert!(!config.roost.echo);
    let namespace = config.channels.resolve("x").unwrap();
    assert!(!namespace.allow_subscribe_for_client && !namespace.allow_publish_for_client);
    assert_eq!(namespace.data_format, DataFormat::NotEmpty);
    let nothing = Namespace { history_meta_ttl_ms: 720 * 3_600_000, ..Namespace::default() };
    assert_eq!(format!("{namespace:?}"), format!("{nothing:?}"));
}

#[test]
fn layers_win_in_order() {
    let file = Some(("c.toml", "[http_server]\nport = 1\n"));
    let port =
        |environment: &[_], flags: &[_]| good(file, &sources(environment, flags)).http_server.port;
    let centrifugo = ("CENTRIFUGO_HTTP_SERVER_PORT", "2");
    let roost = ("ROOST_HTTP_SERVER_PORT", "3");
    let flag = ("http_server.port", "4");
    assert_eq!(port(&[], &[]), 1);
    assert_eq!(port(&[centrifugo], &[]), 2);
    assert_eq!(port(&[roost, centrifugo], &[]), 3);
    assert_eq!(port(&[centrifugo, roost], &[flag]), 4);
    assert_eq!(port(&[("ROOST_HTTP_SERVER_PORT", ""), centrifugo], &[]), 2);
    assert_eq!(port(&[("ROOST_HTTP_SERVER_PORT", "")], &[]), 1);
}

#[test]
fn forms_of_variables() {
    let config = environment(&[
        ("CENTRIFUGO_CLIENT_TOKEN_HMAC_SECRET_KEY", "secret"),
        ("CENTRIFUGO_CLIENT_ALLOWED_ORIGINS", "http://a http://b"),
        ("CENTRIFUGO_CLIENT_INSECURE", "t"),
        ("CENTRIFUGO_CLIENT_PING_INTERVAL", "-1"),
        ("CENTRIFUGO_CHANNEL_WITHOUT_NAMESPACE_ALLOW_PUBLISH_FOR_CLIENT", "1"),
        ("ROOST_SHARDS", "auto"),
        ("ROOST_DRAIN_RATE", "5"),
        ("ROOST_CONFIG", "elsewhere.toml"),
        ("CENTRIFUGO_VAR_X", "x"),
        ("ROOST_SERVICE_HOST", "10.0.0.1"),
        ("ROOST_PORT", "tcp://10.0.0.1:8000"),
        ("UNRELATED", "x"),
    ]);
    assert_eq!(config.tokens.connection.hmac_secret_key, "secret");
    assert!(config.origins.allows(Some("http://b")));
    assert!(config.client.insecure);
    assert_eq!(config.client.ping_interval_ms, None);
    assert!(config.channels.namespace(0).allow_publish_for_client);
    assert_eq!((config.roost.shards, config.roost.drain_rate), (Shards::Auto, 5));

    // Whole sections as JSON; a variable for one option wins over one for its section.
    let config = environment(&[
        ("CENTRIFUGO_CLIENT", r#"{"insecure": true, "token": {"audience": "a", "issuer": "i"}}"#),
        ("CENTRIFUGO_CLIENT_TOKEN_AUDIENCE", "b"),
        ("CENTRIFUGO_CHANNEL_WITHOUT_NAMESPACE", r#"{"allow_positioning": true}"#),
    ]);
    assert_eq!(config.tokens.connection.audience, "b");
    assert_eq!(config.tokens.connection.issuer, "i");
    assert!(config.client.insecure && config.channels.namespace(0).allow_positioning);
}

#[test]
fn namespaces_in_variables() {
    let config = environment(&[
        ("CENTRIFUGO_CHANNEL_NAMESPACES", "news chat.room my-chat"),
        ("CENTRIFUGO_CHANNEL_NAMESPACES_NEWS_HISTORY_SIZE", "10"),
        ("CENTRIFUGO_CHANNEL_NAMESPACES_NEWS_HISTORY_TTL", "1m"),
        ("CENTRIFUGO_CHANNEL_NAMESPACES_CHAT_ROOM_ALLOW_POSITIONING", "true"),
        ("CENTRIFUGO_CHANNEL_NAMESPACES_MY_CHAT_ALLOW_POSITIONING", "true"),
        ("ROOST_CHANNEL_NAMESPACES_MY_CHAT_ALLOW_POSITIONING", "false"),
    ]);
    assert_eq!(config.channels.resolve("news:x").unwrap().history_size, 10);
    assert!(config.channels.resolve("chat.room:x").unwrap().allow_positioning);
    assert!(!config.channels.resolve("my-chat:x").unwrap().allow_positioning);

    let json = r#"[{"name": "aa", "history_size": 1, "history_ttl": "1s"}, {"name": "bb"}]"#;
    let file = Some(("c.toml", "[[channel.namespaces]]\nname = 'of-file'\n"));
    let config = good(
        file,
        &sources(
            &[
                ("CENTRIFUGO_CHANNEL_NAMESPACES", "cc"),
                ("ROOST_CHANNEL_NAMESPACES", json),
                ("CENTRIFUGO_CHANNEL_NAMESPACES_BB_HISTORY_TTL", "0s"),
            ],
            &[],
        ),
    );
    let names: Vec<_> = config.channels.namespaces().iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["", "aa", "bb", OWN_CHANNEL]);
    assert_eq!(config.channels.resolve("aa:x").unwrap().history_ttl_ms, 1_000);

    // Variables also change the namespaces of a file.
    let changed = [("ROOST_CHANNEL_NAMESPACES_OF_FILE_ALLOW_POSITIONING", "1")];
    let config = good(file, &sources(&changed, &[]));
    assert!(config.channels.resolve("of-file:x").unwrap().allow_positioning);
}

/// The options of the namespaces of the next test.
fn recovering(name: &str) -> Namespace {
    Namespace {
        name: name.into(),
        history_size: 10,
        history_ttl_ms: 60_000,
        history_meta_ttl_ms: 720 * 3_600_000,
        allow_recovery: true,
        force_recovery: true,
        recovery_mode: RecoveryMode::Cache,
        auto_cache_recover: true,
        delta_allowed: true,
        delta_publish: true,
        allow_tags_filter: true,
        presence: true,
        join_leave: true,
        force_push_join_leave: true,
        allow_presence_for_client: true,
        allow_presence_for_subscriber: true,
        allow_presence_for_anonymous: true,
        allow_history_for_client: true,
        allow_history_for_subscriber: true,
        allow_history_for_anonymous: true,
        ..Namespace::default()
    }
}

/// The same as pairs of option and text.
const RECOVERING: &[(&str, &str)] = &[
    ("history_size", "10"),
    ("history_ttl", "60s"),
    ("allow_recovery", "true"),
    ("force_recovery", "true"),
    ("force_recovery_mode", "cache"),
    ("auto_cache_recover", "true"),
    ("allowed_delta_types", "fossil"),
    ("delta_publish", "true"),
    ("allow_tags_filter", "true"),
    ("presence", "true"),
    ("join_leave", "true"),
    ("force_push_join_leave", "true"),
    ("allow_presence_for_client", "true"),
    ("allow_presence_for_subscriber", "true"),
    ("allow_presence_for_anonymous", "true"),
    ("allow_history_for_client", "true"),
    ("allow_history_for_subscriber", "true"),
    ("allow_history_for_anonymous", "true"),
];

#[test]
fn all_ways_to_set_a_namespace_are_one() {
    let lines: String =
        RECOVERING.iter().map(|(option, text)| format!("{option} = '{text}'\n")).collect();
    let toml = format!(
        "[channel.without_namespace]\n{lines}[[channel.namespaces]]\nname = 'my-chat.room'\n{lines}"
    );
    let pairs = RECOVERING.iter().map(|(option, text)| match *option {
        "allowed_delta_types" => format!("{option:?}: [{text:?}]"),
        "history_size" => format!("{option:?}: {text}"),
        _ if *text == "true" => format!("{option:?}: true"),
        _ => format!("{option:?}: {text:?}"),
    });
    let own = pairs.collect::<Vec<_>>().join(", ");
    let list = format!("[{{\"name\": \"my-chat.room\", {own}}}]");
    let section = format!("{{\"without_namespace\": {{{own}}}, \"namespaces\": {list}}}");
    let json = format!("{{\"channel\": {section}}}");
    let each = |prefix: &str| {
        RECOVERING
            .iter()
            .map(|(option, text)| (format!("{prefix}_{}", option.to_uppercase()), text.to_string()))
            .collect::<Vec<_>>()
    };
    let mut named = each("CENTRIFUGO_CHANNEL_WITHOUT_NAMESPACE");
    named.push(("CENTRIFUGO_CHANNEL_NAMESPACES".into(), "my-chat.room".into()));
    named.extend(each("CENTRIFUGO_CHANNEL_NAMESPACES_MY_CHAT_ROOM"));
    let mut listed = each("ROOST_CHANNEL_WITHOUT_NAMESPACE");
    listed.push(("ROOST_CHANNEL_NAMESPACES".into(), list));
    let sections = vec![("CENTRIFUGO_CHANNEL".to_owned(), section)];
    for (file, environment) in [
        (Some(("c.toml", toml.as_str())), vec![]),
        (Some(("c.json", json.as_str())), vec![]),
        (None, named),
        (None, listed),
        (None, sections),
    ] {
        let shown = format!("{file:?} {environment:?}");
        let (config, report) = full(file, &Sources { environment, ..Default::default() });
        let told = (report.errors, report.unknown, report.warnings);
        assert_eq!(told, (vec![], vec![], vec![]), "{shown}");
        for (channel, name, index) in [("x", "", 0), ("my-chat.room:x", "my-chat.room", 1)] {
            let namespace = config.channels.resolve(channel).unwrap();
            let expected = Namespace { index, ..recovering(name) };
            assert_eq!(format!("{namespace:?}"), format!("{expected:?}"), "{shown}");
        }
    }
}

#[test]
fn hooks_have_an_endpoint() {
    let unused = of_toml("").0;
    assert!(unused.hooks.is_none() && !unused.client.disconnect_events);
    let (config, report) = of_toml(
        "[client.hooks]\nendpoint = 'https://a/b'\ndisconnect = true\ntimeout = '2s'\nbatch_size = 7\n\
         queue_max_size = 100000\n[client.hooks.http]\nstatic_headers = {X-Key = 'k'}\n\
         [client.hooks.http.tls]\nenabled = true\nserver_name = 'c'\n\
         [channel.without_namespace]\nroost.state_events = ['vacated']\n",
    );
    assert_eq!(report.errors, Vec::<String>::new());
    let hooks = config.hooks.unwrap();
    assert_eq!((hooks.batch_max, hooks.queue_bytes_max), (7, 100_000));
    assert_eq!((hooks.to.endpoint.as_str(), hooks.to.timeout_ms), ("https://a/b", 2000));
    assert_eq!(hooks.to.static_headers, [("x-key".to_owned(), "k".to_owned())]);
    assert_eq!(hooks.to.tls.unwrap().server_name, "c");
    assert!(config.client.disconnect_events && config.channels.has_state_events());
    let namespace = config.channels.namespace(0);
    assert!(namespace.vacated_events && !namespace.occupied_events);
    for used in [
        "[client.hooks]\ndisconnect = true",
        "[channel.without_namespace]\nroost.state_events = ['occupied']",
    ] {
        let errors = toml(used).errors.join("\n");
        assert!(errors.contains("client.hooks.endpoint: expected a URL"), "{errors}");
    }
}

#[test]
fn limits_personal_channels_and_pings() {
    let text = "[client]\nuser_connection_limit = 3\nhistory_max_publication_limit = 20\n\
                recovery_max_publication_limit = 0\n\
                [client.subscribe_to_user_personal_channel]\nenabled = true\n\
                personal_channel_namespace = 'own'\nsingle_connection = true\n\
                [[channel.namespaces]]\nname = 'own'\npresence = true\n\
                [rpc.ping]\nenabled = true\nmethod = 'are-you-there'\n";
    let of_file = good(Some(("c.toml", text)), &Sources::default());
    let of_environment = environment(&[
        ("CENTRIFUGO_CLIENT_USER_CONNECTION_LIMIT", "3"),
        ("CENTRIFUGO_CLIENT_HISTORY_MAX_PUBLICATION_LIMIT", "20"),
        ("CENTRIFUGO_CLIENT_RECOVERY_MAX_PUBLICATION_LIMIT", "0"),
        ("CENTRIFUGO_CLIENT_SUBSCRIBE_TO_USER_PERSONAL_CHANNEL_ENABLED", "true"),
        (
            "CENTRIFUGO_CLIENT_SUBSCRIBE_TO_USER_PERSONAL_CHANNEL",
            r#"{"personal_channel_namespace": "own", "single_connection": true}"#,
        ),
        ("CENTRIFUGO_CHANNEL_NAMESPACES", "own"),
        ("CENTRIFUGO_CHANNEL_NAMESPACES_OWN_PRESENCE", "1"),
        ("CENTRIFUGO_RPC_PING_ENABLED", "t"),
        ("CENTRIFUGO_RPC_PING_METHOD", "are-you-there"),
    ]);
    for config in [of_file, of_environment] {
        assert_eq!(config.client.user_connection_limit, 3);
        assert_eq!(config.client.history_publications_max, 20);
        assert_eq!(config.client.recovery_publications_max, usize::MAX);
        let personal = PersonalChannel { namespace: "own".into(), single_connection: true };
        assert_eq!(config.client.personal_channel, Some(personal));
        assert_eq!(config.rpc.ping.as_deref(), Some("are-you-there"));
    }
    let config = environment(&[("ROOST_RPC_PING_ENABLED", "true")]);
    assert_eq!(config.rpc.ping.as_deref(), Some("ping"));

    let personal = "client.subscribe_to_user_personal_channel";
    for (options, error) in [
        ("enabled = true", String::new()),
        ("personal_channel_namespace = 'none'\nsingle_connection = true", String::new()),
        (
            "enabled = true\npersonal_channel_namespace = 'none'",
            format!(
                "c.toml:3: {personal}.personal_channel_namespace = \"none\": expected the name of \
                 one of channel.namespaces, or \"\" for none"
            ),
        ),
        (
            "enabled = true\nsingle_connection = true",
            format!(
                "c.toml:3: {personal}.single_connection = true: expected false, or true with \
                 channel.without_namespace.presence, as in Centrifugo"
            ),
        ),
        (
            "single_connection = true\nenabled = true\npersonal_channel_namespace = 'aa'\n\
             [channel.without_namespace]\npresence = true\n[[channel.namespaces]]\nname = 'aa'",
            format!(
                "c.toml:2: {personal}.single_connection = true: expected false, or true with \
                 channel.namespaces[aa].presence, as in Centrifugo"
            ),
        ),
    ] {
        let errors = toml(&format!("[{personal}]\n{options}\n")).errors;
        let expected: Vec<String> =
            Some(error).filter(|error| !error.is_empty()).into_iter().collect();
        assert_eq!(errors, expected, "{options}");
    }
}

#[test]
fn deltas_that_nobody_gets_warn() {
    let history = "history_size = 1\nhistory_ttl = '1s'\n";
    for (options, warning) in [
        (String::new(), ""),
        (format!("{history}allow_positioning = true"), ""),
        (format!("{history}allowed_delta_types = []"), ""),
        (format!("{history}allowed_delta_types = 'fossil'\nallow_recovery = true"), ""),
        (
            "allowed_delta_types = ['fossil']\ndelta_publish = true".into(),
            "c.toml:2: channel.without_namespace.allowed_delta_types = a list of 1: publications go \
             full: a delta needs history_size and history_ttl",
        ),
        (
            format!("{history}delta_publish = true"),
            "c.toml:4: channel.without_namespace.delta_publish = true: publications go full to all \
             but those whose token forces positions: a delta needs one, and no option here grants \
             any",
        ),
    ] {
        let report = toml(&format!("[channel.without_namespace]\n{options}\n"));
        assert_eq!((report.errors, report.unknown), (vec![], vec![]), "{options}");
        let expected: Vec<&str> =
            Some(warning).filter(|text| !text.is_empty()).into_iter().collect();
        assert_eq!(report.warnings, expected, "{options}");
    }
}

#[test]
fn unknown_options_are_named_with_line_and_suggestion() {
    let report = toml(
        "tokn = 1\n[client]\ninsecur = true\n[client.token]\nhmac_key = 'x'\n\
         [[channel.namespaces]]\nname = 'news'\nhistory_sizes = 1\n\n[sockjs]\nenabled = true\n",
    );
    assert_eq!(report.errors, [""; 0]);
    assert_eq!(
        report.unknown,
        [
            "c.toml:1: unknown option tokn",
            "c.toml:3: unknown option client.insecur; did you mean client.insecure?",
            "c.toml:5: unknown option client.token.hmac_key",
            "c.toml:8: unknown option channel.namespaces[news].history_sizes; did you mean \
             history_size?",
            "c.toml:10: unknown option sockjs; it has no place today: SockJS isn't served; http_stream and \
             sse are for clients without WebSocket",
        ]
    );
    let yaml = "client:\n  tokens:\n    x: 1\ntoken_hmac_secret_key: a\n";
    let report = full(Some(("c.yaml", yaml)), &Sources::default()).1;
    assert_eq!(
        report.unknown,
        [
            "c.yaml:2: unknown option client.tokens",
            "c.yaml:4: unknown option token_hmac_secret_key; did you mean \
             client.token.hmac_secret_key?",
        ]
    );
    let pairs = [
        ("ROOST_CLIENT_INSECUR", "true"),
        ("CENTRIFUGO_ROOST_SHARDS", "1"),
        ("CENTRIFUGO_CHANNEL_NAMESPACES_NONE_PRESENCE", "true"),
    ];
    let report = full(None, &sources(&pairs, &[])).1;
    assert_eq!(
        report.unknown,
        [
            "CENTRIFUGO_CHANNEL_NAMESPACES_NONE_PRESENCE: unknown option",
            "CENTRIFUGO_ROOST_SHARDS: unknown option",
            "ROOST_CLIENT_INSECUR: unknown option; did you mean ROOST_CLIENT_INSECURE?",
        ]
    );
}

#[test]
fn all_wrong_values_are_named() {
    let report = toml(
        "[http_server]\nport = 70000\naddress = 'example.com'\n[client]\ninsecure = 'maybe'\n\
         ping_interval = '5s'\nstale_close_delay = 25\nallowed_origins = ['http://[a']\n\
         channel_limit = 0\nnone = 1\n[client.token]\nhmac_secret_key = 12\n[channel]\n\
         publication_data_format = 'xml'\n[roost]\nio = 'kqueue'\nshards = 0\nmemory_limit = '1KB'\n",
    );
    let starts = [
        "c.toml:2: http_server.port = 70000: expected a whole number from 0 to 65535",
        "c.toml:5: client.insecure = \"maybe\": expected true or false",
        "c.toml:7: client.stale_close_delay = 25: expected at least 1ms (a number without a unit",
        "c.toml:9: client.channel_limit = 0: expected a whole number from 1 to",
        "c.toml:12: client.token.hmac_secret_key = ***: expected a text",
        "c.toml:14: channel.publication_data_format = \"xml\": expected one of ",
        "c.toml:16: roost.io = \"kqueue\": expected one of ",
        "c.toml:17: roost.shards = 0: expected \"cores\", \"auto\" or a number from 1 to 253",
        "c.toml:18: roost.memory_limit = \"1KB\": expected bytes, a size such as",
        "c.toml:3: http_server.address = \"example.com\": expected an IP address",
        "c.toml:8: client.allowed_origins = a list of 1: expected globs such as",
        "c.toml:6: client.ping_interval = \"5s\": expected a duration longer than",
    ];
    for (error, start) in report.errors.iter().zip(starts) {
        assert!(error.starts_with(start), "{error}\n{start}");
    }
    assert_eq!(report.errors.len(), starts.len(), "{:#?}", report.errors);

    let pairs = [("ROOST_HTTP_SERVER_PORT", "x"), ("CENTRIFUGO_CLIENT", "{")];
    let report = full(None, &sources(&pairs, &[("client.insecure", "no")])).1;
    assert!(report.errors[0].starts_with("CENTRIFUGO_CLIENT:1:2: "), "{:?}", report.errors);
    assert_eq!(
        report.errors[1..],
        [
            "ROOST_HTTP_SERVER_PORT: http_server.port = \"x\": expected a whole number from 0 to \
             65535",
            "--client.insecure: client.insecure = \"no\": expected true or false",
        ]
    );
}

#[test]
fn syntax_errors_name_the_line_and_not_its_text() {
    for (name, text) in [
        ("c.toml", "[client.token]\nhmac_secret_key = 'hush'\nhmac_secret_key = 'hush'\n"),
        ("c.yaml", "client:\n  token:\n    hmac_secret_key: 'hush\n"),
        ("c.json", "{\n\"client\": {\"token\": {\"hmac_secret_key\": \"hush\"}\n}"),
    ] {
        let errors = full(Some((name, text)), &Sources::default()).1.errors;
        assert_eq!(errors.len(), 1, "{errors:?}");
        let line = errors[0].strip_prefix(&format!("{name}:")).unwrap().split(':').next().unwrap();
        assert!(line.parse::<usize>().unwrap() >= 1, "{errors:?}");
        assert!(!errors[0].contains("hush") && !errors[0].contains('\n'), "{errors:?}");
    }
    let errors = full(Some(("c.yaml", "- a\n")), &Sources::default()).1.errors;
    assert_eq!(errors, ["c.yaml: expected options, not a single value"]);
}

#[test]
fn checks_across_options() {
    let namespace = |options: &str| {
        let text = format!("[[channel.namespaces]]\nname = 'news'\n{options}");
        let errors = toml(&text).errors;
        assert!(errors.len() <= 1, "{errors:?}");
        errors.into_iter().next().unwrap_or_default()
    };
    for (options, expected) in [
        ("history_size = 1\nhistory_ttl = '1s'", ""),
        ("history_size = 1", "channel.namespaces[news].history_ttl: expected more than 0 beside"),
        ("history_ttl = '1s'", "channel.namespaces[news].history_size: expected more than 0"),
        (
            "history_size = 1\nhistory_ttl = '721h'",
            "c.toml:4: channel.namespaces[news].history_ttl = \"721h\": expected at most",
        ),
        ("history_size = 1\nhistory_ttl = '721h'\nhistory_meta_ttl = '1000h'", ""),
        ("channel_regex = '('", "c.toml:3: channel.namespaces[news].channel_regex = \"(\": exp"),
        (
            "allow_recovery = true",
            "c.toml:3: channel.namespaces[news].allow_recovery = true: expected false, or history \
             to recover from: channel.namespaces[news].history_size and history_ttl",
        ),
        (
            "force_recovery = true",
            "c.toml:3: channel.namespaces[news].force_recovery = true: expected false, or history",
        ),
        (
            "force_recovery_mode = 'cache'",
            "c.toml:3: channel.namespaces[news].force_recovery_mode = \"cache\": expected stream, or",
        ),
        ("force_recovery_mode = 'stream'", ""),
        ("force_recovery_mode = ''", ""),
        (
            "force_recovery_mode = 'both'",
            "c.toml:3: channel.namespaces[news].force_recovery_mode = \"both\": expected one of \"\", \
             stream, cache",
        ),
        (
            "force_recovery = true\nhistory_size = 1",
            "channel.namespaces[news].history_ttl: expected more than 0 beside",
        ),
        (
            "history_size = 1\nhistory_ttl = '1s'\nauto_cache_recover = true\n\
             allow_recovery = true\nforce_recovery_mode = 'cache'",
            "c.toml:5: channel.namespaces[news].auto_cache_recover = true: expected false, or \
             force_recovery = true and force_recovery_mode = \"cache\" beside it",
        ),
        (
            "history_size = 1\nhistory_ttl = '1s'\nauto_cache_recover = true\n\
             force_recovery = true",
            "c.toml:5: channel.namespaces[news].auto_cache_recover = true: expected false, or",
        ),
        (
            "history_size = 1\nhistory_ttl = '1s'\nauto_cache_recover = true\n\
             force_recovery = true\nforce_recovery_mode = 'cache'",
            "",
        ),
        (
            "allowed_delta_types = ['fossil', 'bsdiff']",
            "c.toml:3: channel.namespaces[news].allowed_delta_types = a list of 2: expected a list \
             of none or more of fossil",
        ),
        (
            "allowed_delta_types = 'bsdiff'",
            "c.toml:3: channel.namespaces[news].allowed_delta_types = \"bsdiff\": expected a list of",
        ),
        (
            "[[channel.namespaces]]\nname = 'news'",
            "c.toml:3: channel.namespaces: name = \"news\": expected a name that no other",
        ),
        (
            "[[channel.namespaces]]\nname = 'a'",
            "c.toml:3: channel.namespaces: name = \"a\": expected two or more letters",
        ),
        (
            "[[channel.namespaces]]\nname = 'a:b'",
            "c.toml:3: channel.namespaces: name = \"a:b\": expected two or more letters",
        ),
        (
            "[[channel.namespaces]]\nhistory_size = 0",
            "c.toml:3: channel.namespaces: expected a name",
        ),
    ] {
        let error = namespace(options);
        assert!(error.starts_with(expected) && error.is_empty() == expected.is_empty(), "{error}");
    }
}

#[test]
fn an_admin_page_has_a_password() {
    let on = [("admin.enabled", "true")];
    let report = full(None, &sources(&[], &on)).1;
    assert_eq!(
        report.errors,
        ["--admin.enabled: admin.enabled = \"true\": expected false, or true with admin.password"]
    );
    for more in [("admin.password", "x"), ("admin.insecure", "true")] {
        let report = full(None, &sources(&[], &[on[0], more])).1;
        assert_eq!((report.errors, report.warnings.len()), (vec![], usize::from(more.1 == "true")));
    }
    // Of the development node it is on, and a link is printed.
    let dev = Sources { dev: true, ..Sources::default() };
    let (config, report) = full(None, &dev);
    assert_eq!(report.errors, [""; 0]);
    assert!(config.web.admin.is_some() && config.web.demo.is_some());
    let report = toml("[admin]\nenabled = true\npassword = 'x'\nhandler_prefix = 'ops'");
    assert!(
        report.errors[0].starts_with("c.toml:4: admin.handler_prefix = \"ops\": expected a path")
    );
    let report = toml("[[channel.namespaces]]\nname = 'roost.admin'");
    assert!(report.errors[0].contains("the node's own"), "{:?}", report.errors);
}

/// Proxies in each place where they may be set.
const PROXIES: &str = r#"
[client.proxy.connect]
enabled = true
endpoint = "https://app.example.com/connect"
timeout = "3s"
http_headers = ["Cookie"]
[client.proxy.connect.http]
static_headers = { Authorization = "Bearer ${ROOST_VAR_KEY}" }
status_to_code_transforms = [{ status_code = 404, to_error = { code = 404, message = "no" } }]
[client.proxy.connect.roost]
concurrency = 8
[channel.proxy.publish]
endpoint = "http://127.0.0.1:1/publish"
emulated_headers = ["X-Trace"]
[rpc.proxy]
endpoint = "http://127.0.0.1:1/rpc"
[rpc.without_namespace]
proxy_enabled = true
[[rpc.namespaces]]
name = "other"
proxy_enabled = true
proxy_name = "named"
[[rpc.namespaces]]
name = "off"
[[proxies]]
name = "named"
endpoint = "http://127.0.0.1:1/named"
binary_encoding = true
[[channel.namespaces]]
name = "asked"
subscribe_proxy_enabled = true
subscribe_proxy_name = "named"
publish_proxy_enabled = true
"#;

#[test]
fn proxies_of_sections_and_with_names() {
    let variables = [
        ("ROOST_VAR_KEY", "k"),
        ("CENTRIFUGO_CLIENT_PROXY_CONNECT_INCLUDE_CONNECTION_META", "true"),
        ("CENTRIFUGO_PROXIES_NAMED_TIMEOUT", "5s"),
        ("ROOST_CHANNEL_PROXY_PUBLISH_ROOST_BREAKER_FAILURES", "0"),
        ("CENTRIFUGO_CLIENT_PROXY_REFRESH", r#"{"endpoint": "http://a/refresh", "enabled": true}"#),
    ];
    let config = good(Some(("c.toml", PROXIES)), &sources(&variables, &[]));
    let connect = config.client.proxies.connect.as_ref().unwrap();
    assert_eq!((connect.name.as_str(), connect.timeout_ms), ("client.proxy.connect", 3_000));
    assert_eq!(connect.static_headers, [("authorization".to_owned(), "Bearer k".to_owned())]);
    assert_eq!(
        (connect.http_headers.as_slice(), connect.concurrency),
        (&["cookie".to_owned()][..], 8)
    );
    assert_eq!(connect.transforms[0].to_error.as_ref().unwrap().code, 404);
    assert!(connect.include_connection_meta && !connect.binary_encoding);
    assert_eq!(config.client.proxies.refresh.as_ref().unwrap().endpoint, "http://a/refresh");
    assert!(config.client.proxies.http_headers.contains("cookie"));
    assert!(config.client.proxies.emulated_headers.contains("x-trace"));
    let asked = config.channels.resolve("asked:x").unwrap();
    let named = asked.subscribe_proxy.as_ref().unwrap();
    assert_eq!((named.name.as_str(), named.timeout_ms), ("named", 5_000));
    let publish = asked.publish_proxy.as_ref().unwrap();
    assert_eq!((publish.name.as_str(), publish.breaker_failures), ("channel.proxy.publish", 0));
    assert!(asked.sub_refresh_proxy.is_none());
    let rpc = &config.rpc;
    assert_eq!(rpc.without_namespace.as_ref().unwrap().endpoint, "http://127.0.0.1:1/rpc");
    assert_eq!(rpc.namespaces["other"].as_ref().unwrap(), named);
    assert_eq!(rpc.namespaces["off"], None);

    // A list in a variable, as JSON and as names.
    let json =
        r#"[{"name": "aa", "endpoint": "http://a", "http": {"static_headers": {"x": "y"}}}]"#;
    let use_it = ("CENTRIFUGO_CHANNEL_WITHOUT_NAMESPACE_PUBLISH_PROXY_ENABLED", "true");
    let named = ("CENTRIFUGO_CHANNEL_WITHOUT_NAMESPACE_PUBLISH_PROXY_NAME", "aa");
    let config = environment(&[("CENTRIFUGO_PROXIES", json), use_it, named]);
    let proxy = config.channels.namespace(0).publish_proxy.clone().unwrap();
    assert_eq!(proxy.static_headers, [("x".to_owned(), "y".to_owned())]);
    let config = environment(&[
        ("CENTRIFUGO_PROXIES", "aa"),
        ("CENTRIFUGO_PROXIES_AA_ENDPOINT", "http://b"),
        ("CENTRIFUGO_PROXIES_AA_HTTP_STATIC_HEADERS", r#"{"x": "z"}"#),
        use_it,
        named,
    ]);
    let proxy = config.channels.namespace(0).publish_proxy.clone().unwrap();
    assert_eq!((proxy.endpoint.as_str(), proxy.static_headers[0].1.as_str()), ("http://b", "z"));
}

#[test]
fn proxies_with_impossible_endpoints_are_refused() {
    for (options, expected) in [
        ("[client.proxy.connect]\nenabled = true", "client.proxy.connect.endpoint: expected a URL"),
        (
            "[client.proxy.connect]\nendpoint = 'grpc://a'",
            "c.toml:2: client.proxy.connect.endpoint = \"grpc://a\": expected an http://",
        ),
        (
            "[channel.without_namespace]\nsubscribe_proxy_enabled = true",
            "channel.proxy.subscribe.endpoint: expected a URL, since \
             channel.without_namespace.subscribe_proxy_enabled uses it",
        ),
        (
            "[channel.without_namespace]\nsubscribe_proxy_enabled = true\nsubscribe_proxy_name = 'x'",
            "c.toml:3: channel.without_namespace.subscribe_proxy_name = \"x\": expected \"default\"",
        ),
        (
            "[[proxies]]\nname = 'default'\nendpoint = 'http://a'",
            "c.toml:1: proxies: name = \"default\"",
        ),
        (
            "[[proxies]]\nname = 'aa'\nendpoint = 'http://a'\n[[proxies]]\nname = 'aa'\nendpoint = 'http://a'",
            "c.toml:4: proxies: name = \"aa\": expected a name that no other one has",
        ),
        ("[[proxies]]\nname = 'aa'", "proxies[aa].endpoint: expected a URL"),
        (
            "[[proxies]]\nname = 'aa'\nendpoint = 'http://a'\nhttp_headers = ['Host']",
            "c.toml:4: proxies[aa].http_headers = a list of 1: expected names of headers",
        ),
        (
            "[[proxies]]\nname = 'aa'\nendpoint = 'http://a'\nhttp = {static_headers = {a = '${ROOST_VAR_NONE}'}}",
            "c.toml:4: proxies[aa].http.static_headers = ***: expected a value without ROOST_VAR_NONE",
        ),
        (
            "[[proxies]]\nname = 'aa'\nendpoint = 'http://a'\nhttp = {static_headers = {a = 1}}",
            "c.toml:4: proxies[aa].http.static_headers = ***: expected a map of texts",
        ),
        (
            "[[proxies]]\nname = 'aa'\nendpoint = 'http://a'\nhttp = {status_to_code_transforms = [{status_code = 404}]}",
            "c.toml:4: proxies[aa].http.status_to_code_transforms = a list of 1: expected a list of",
        ),
        (
            "[[proxies]]\nname = 'aa'\nendpoint = 'http://a'\ntimeout = '0s'",
            "c.toml:4: proxies[aa].timeout = \"0s\": expected more than 0",
        ),
        (
            "[[proxies]]\nname = 'aa'\nendpoint = 'https://a'\nhttp = {tls = {enabled = true, cert_pem = '-----BEGIN X'}}",
            "c.toml:4: proxies[aa].http.tls.cert_pem",
        ),
    ] {
        let report = toml(options);
        assert_eq!(report.errors.len(), 1, "{options}: {:?}", report.errors);
        assert!(report.errors[0].starts_with(expected), "{options}: {}", report.errors[0]);
    }
}

#[test]
fn a_broker_in_nats_has_its_section() {
    let with = |more: &str| toml(&format!("[broker]\nenabled = true\ntype = 'nats'\n{more}"));
    let report = with("[broker.nats]\nurl = 'nats://u:p@a:1,b'\nprefix = 'x'");
    assert_eq!(report.errors, Vec::<String>::new());
    assert!(
        report.warnings.iter().any(|warning| warning.contains("every node shows its own clients"))
    );
    for (more, path) in [
        ("nats.url = 'ws://a'", "broker.nats.url"),
        ("nats.prefix = 'a b'", "broker.nats.prefix"),
        ("nats.dial_timeout = '0s'", "broker.nats.dial_timeout"),
        ("nats.raw_mode = {enabled = true, prefix = 'a..'}", "broker.nats.raw_mode.prefix"),
        (
            "nats = {raw_mode = {enabled = true}, jetstream = {enabled = true}}",
            "broker.nats.jetstream.enabled",
        ),
        ("nats.raw_mode = {enabled = true}\n[roost]\nnats_interest = 'all'", "roost.nats_interest"),
    ] {
        let report = with(more);
        assert_eq!(report.errors.len(), 1, "{more}: {:?}", report.errors);
        assert!(report.errors[0].contains(path), "{more}: {:?}", report.errors);
    }
    let history = "[channel.without_namespace]\nhistory_size = 1\nhistory_ttl = '1s'";
    let warns = |more: &str| {
        let report = with(&format!("{more}\n{history}"));
        report.warnings.iter().any(|warning| warning.contains("jetstream"))
    };
    assert!(warns("") && !warns("nats.jetstream.enabled = true"));
    let pairs = [("CENTRIFUGO_BROKER_ENABLED", "true"), ("CENTRIFUGO_BROKER_TYPE", "nats")];
    let more = [("CENTRIFUGO_BROKER_NATS_URL", "a:1"), ("CENTRIFUGO_BROKER_NATS_PREFIX", "y")];
    let more = more.into_iter().chain([("ROOST_NATS_INTEREST", "all")]);
    let all: Vec<_> = pairs.into_iter().chain(more).collect();
    let (config, report) = full(None, &sources(&all, &[]));
    assert_eq!(report.errors, Vec::<String>::new());
    let nats = config.brokers.nats.unwrap();
    assert_eq!((&*nats.prefix, nats.takes_all), ("y", true));
}

#[test]
fn presence_by_nodes_needs_a_broker() {
    let presence = "presence_manager = {enabled = true, type = 'nodes'}";
    let (config, report) = of_toml(&format!("engine = {{type = 'redis'}}\n{presence}"));
    assert_eq!((report.errors, report.warnings), (vec![], vec![]));
    assert!(config.brokers.presence_by_nodes && config.brokers.presence.is_none());
    let alone = toml(presence).errors;
    assert!(alone.len() == 1 && alone[0].contains("it needs a broker"), "{alone:?}");
}

#[test]
fn options_that_are_not_built_stop_the_start() {
    for (asks, does_not) in [
        ("engine = {type = 'nats'}", "engine = {type = 'redis'}"),
        ("engine = {type = 'x'}", "engine = {type = 'memory', redis = {prefix = 'x'}}"),
        ("broker = {enabled = true, type = 'x'}", "broker = {enabled = true, type = 'nats'}"),
        ("broker = {enabled = true, type = 'postgres'}", "broker = {enabled = true}"),
        (
            "presence_manager = {enabled = true, type = 'nats'}",
            "presence_manager = {enabled = true, type = 'redis'}",
        ),
        ("client = {token = {jwks = 'x'}}", "client = {token = {jwks = {keys = []}}}"),
        (
            "client = {subscription_token = {enabled = true, hmac_secret_key = 'x', jwks = 'x'}}",
            "client = {subscription_token = {enabled = false, jwks = 'x'}}",
        ),
        ("webtransport = {enabled = true}", "webtransport = {enabled = false}"),
        ("uni_grpc = {enabled = true}", "uni_grpc = {port = 1}"),
        ("consumers = [{name = 'a'}]", "consumers = []"),
        (
            "channel = {without_namespace = {map_clients_presence_channel_prefix = 'pre:'}}",
            "channel = {without_namespace = {map_clients_presence_channel_prefix = ''}}",
        ),
        (
            "channel = {namespaces = [{name = 'aa', map_users_presence_channel_prefix = 'pre:'}]}",
            "channel = {namespaces = [{name = 'aa', subscribe_proxy_name = 'x'}]}",
        ),
        (
            "channel = {namespaces = [{name = 'aa', subscription_type = 'map'}]}",
            "channel = {namespaces = [{name = 'aa', subscription_type = 'stream', map = {}}]}",
        ),
        (
            "channel = {namespaces = [{name = 'aa', subscribe_stream_proxy_enabled = true}]}",
            "channel = {proxy = {subscribe_stream = {endpoint = 'grpc://a'}}}",
        ),
    ] {
        let report = toml(asks);
        assert_eq!(report.errors.len(), 1, "{asks}: {:?}", report.errors);
        assert!(report.errors[0].contains("; expected "), "{}", report.errors[0]);
        let report = toml(does_not);
        assert_eq!((report.errors, report.unknown), (vec![], vec![]), "{does_not}");
    }
    assert_eq!(
        toml("[engine]\ntype = 'nats'").errors,
        [
            "c.toml:2: engine.type = \"nats\": only memory and redis are known; expected \"memory\" or \
          \"redis\""
        ]
    );
    let pairs =
        [("CENTRIFUGO_ENGINE_TYPE", "nats"), ("CENTRIFUGO_ENGINE_REDIS_ADDRESS", "a:1 b:2")];
    let report = full(None, &sources(&pairs, &[])).1;
    assert_eq!((report.errors.len(), report.unknown.len()), (1, 0));
    // The same through a flag; and a later layer may take it back.
    let report = full(None, &sources(&[], &[("uni_grpc.enabled", "true")])).1;
    assert!(report.errors[0].starts_with("--uni_grpc.enabled: uni_grpc.enabled = \"true\": "));
    let report = full(None, &sources(&pairs, &[("engine.type", "memory")])).1;
    assert_eq!(report.errors, [""; 0]);
}

#[test]
fn a_proxy_without_checked_certificates_warns() {
    let proxy = |skip: bool| {
        let report = toml(&format!(
            "[client.proxy.connect]\nenabled = true\nendpoint = 'https://app.test/connect'\n\
             http.tls = {{ enabled = true, insecure_skip_verify = {skip} }}\n"
        ));
        assert_eq!((report.errors, report.unknown), (vec![], vec![]));
        let warnings = report.warnings.into_iter();
        warnings.filter(|warning| warning.contains("insecure_skip_verify")).count()
    };
    assert_eq!((proxy(false), proxy(true)), (0, 1));
}

#[test]
fn harmless_options_warn() {
    let report = toml(
        "[grpc_api]\nenabled = true\n[admin]\nweb_path = 'x'\n[opentelemetry]\n[swagger]\nenabled = false\n\
         [websocket]\nread_buffer_size = 1\n[uni_websocket]\nwrite_timeout = '2s'\n[client]\npresence_update_interval = '5s'\n\
         channel_position_check_delay = '40s'\n",
    );
    assert_eq!((report.errors, report.unknown), (vec![], vec![]));
    let starts = [
        "c.toml:13: client.presence_update_interval = \"5s\": presence is exact and needs no",
        "c.toml:9: websocket.read_buffer_size = 1: ",
        "c.toml:11: uni_websocket.write_timeout = \"2s\": ",
        "c.toml:2: grpc_api.enabled = true: ",
        "c.toml:4: admin.web_path = \"x\": ",
    ];
    for (warning, start) in report.warnings.iter().zip(starts) {
        assert!(warning.starts_with(start), "{warning}\n{start}");
    }
    assert_eq!(report.warnings.len(), starts.len(), "{:#?}", report.warnings);
    let report = toml("[client]\ninsecure = true\n");
    assert_eq!(
        report.warnings,
        ["c.toml:2: client.insecure = true: every client may do everything without a token"]
    );
    let report = toml("[http_api]\ninsecure = true\n");
    assert_eq!(
        report.warnings,
        [
            "c.toml:2: http_api.insecure = true: every client that reaches the server API has full access"
        ]
    );
}

#[test]
fn paths_of_endpoints_are_apart() {
    for (text, expected) in [
        ("[health]\nenabled = true\nhandler_prefix = '/api'", "http_api.handler_prefix"),
        (
            "[health]\nenabled = true\nhandler_prefix = '/metrics'\n[prometheus]\nenabled = true",
            "prometheus.handler_prefix",
        ),
        ("[http_api]\nhandler_prefix = '/connection/websocket'", "websocket.handler_prefix"),
        ("[init]\nenabled = true\nhandler_prefix = '/api'", "init.handler_prefix"),
        (
            "[sse]\nenabled = true\nhandler_prefix = '/s'\n[uni_sse]\nenabled = true\nhandler_prefix = '/s'",
            "sse.handler_prefix",
        ),
        ("[http_api]\nhandler_prefix = '/'", "a path of its own"),
        ("[prometheus]\nenabled = true\nhandler_prefix = '/{x}'", "a path of its own"),
        ("[http_server]\ninternal_port = 'x'", "a port, 0 to 65535"),
        ("[http_server]\ninternal_port = '1'\ninternal_address = 'x'", "an IP address"),
    ] {
        let errors = toml(text).errors;
        assert_eq!(errors.len(), 1, "{text}: {errors:?}");
        assert!(errors[0].contains(expected), "{text}: {}", errors[0]);
    }
    // An endpoint that is off takes no path.
    assert_eq!(toml("[health]\nhandler_prefix = '/api'").errors, [""; 0]);
}

#[test]
fn transports_that_are_on() {
    let (config, report) = of_toml(
        "[websocket]\ncompression = true\ncompression_level = 6\ncompression_min_size = 100\n\
         message_size_limit = 1000\n[http_stream]\nenabled = true\nhandler_prefix = '/hs'\n\
         max_request_body_size = 7\n[emulation]\nhandler_prefix = '/up'\nmax_request_body_size = 8\n\
         [uni_sse]\nenabled = true\nhandler_prefix = '/us'\n[uni_http_stream]\n\
         handler_prefix = '/x'\n[uni_websocket]\nenabled = true\nhandler_prefix = '/uw'\n\
         compression = true\ncompression_level = -2\ncompression_min_size = 9\n\
         message_size_limit = 10\n[uni_sse.connect_code_to_http_response]\nenabled = true\n\
         transforms = [{code = 109, to = {status_code = 401, body = 'x'}}]\n\
         [client.connect_code_to_unidirectional_disconnect]\nenabled = true\n\
         transforms = [{code = 100, to = {code = 4000, reason = 'y'}}]\n[init]\nenabled = true\n\
         handler_prefix = '/i'\n[long_poll]\nenabled = true\nhandler_prefix = '/lp'\n\
         max_request_body_size = 9\ntimeout = '3s'\n",
    );
    assert_eq!((report.errors, report.warnings), (vec![], vec![]));
    let transports = config.transports;
    let shown: Vec<_> = transports
        .endpoints
        .iter()
        .map(|of| (of.path.as_str(), of.kind, of.body_bytes_max, of.responses.len()))
        .collect();
    assert_eq!(
        shown,
        [
            ("/connection/websocket", EndpointKind::WebSocket, 0, 0),
            ("/hs", EndpointKind::HttpStream, 7, 0),
            ("/up", EndpointKind::Emulation, 8, 0),
            ("/uw", EndpointKind::UniWebSocket, 0, 0),
            ("/us", EndpointKind::UniSse, 65_536, 1),
            ("/lp", EndpointKind::LongPoll, 9, 0),
            ("/i", EndpointKind::Init, 0, 0),
        ]
    );
    assert_eq!(transports.deflate, Some(DeflateOptions { level: 6, bytes_min: 100 }));
    assert_eq!((transports.inflated_bytes_max, transports.poll_wait_ms), (10_000, 3_000));
    for timeout in ["900ms", "11m", "0s"] {
        let report = toml(&format!("[long_poll]\ntimeout = '{timeout}'"));
        assert!(report.errors[0].contains("1s to 10m"), "{report:?}");
    }
    let uni = transports.uni_websocket;
    assert_eq!(uni.deflate, Some(DeflateOptions { level: 1, bytes_min: 9 }));
    assert_eq!(
        (uni.message_bytes_max, uni.joins, uni.tells_end, uni.closes),
        (10, false, true, true)
    );
    assert_eq!(config.client.one_way_disconnects[0].1.code, 4000);
    let nothing =
        toml("[uni_sse]\nconnect_code_to_http_response = {transforms = [{code = 1, to = {}}]}");
    assert!(
        nothing.errors[0].contains("a list of {code, to = {status_code, body}}"),
        "{nothing:?}"
    );
    let (config, _) =
        of_toml("[websocket]\nmessage_size_limit = 5\ndecompressed_message_size_limit = 6\n");
    assert_eq!((config.transports.inflated_bytes_max, config.transports.deflate), (6, None));
}

#[test]
fn publications_are_dropped_only_where_nobody_counts_on_them() {
    let of = |options: &str| {
        let file = format!(
            "[[channel.namespaces]]\nname = 'ab'\nhistory_size = 9\nhistory_ttl = '1m'\n{options}\n"
        );
        toml(&file).errors
    };
    for policy in ["drop_oldest", "latest"] {
        for positions in
            ["allow_positioning", "force_positioning", "allow_recovery", "force_recovery"]
        {
            let drops = format!("{positions} = true\nroost.slow_policy = '{policy}'");
            let errors = of(&drops);
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(
                errors[0].starts_with(&format!(
                    "c.toml:6: channel.namespaces[ab].roost.slow_policy = \"{policy}\": expected \
                     disconnect beside channel.namespaces[ab].{positions}"
                )),
                "{errors:?}"
            );
            assert_eq!(of(&format!("{drops}\nforce_recovery_mode = 'cache'")), [""; 0]);
        }
        assert_eq!(of(&format!("roost.slow_policy = '{policy}'")), [""; 0]);
    }
    assert_eq!(of("force_recovery = true\nroost.slow_policy = 'disconnect'"), [""; 0]);
    let errors = of("roost.slow_policy = 'newest'\nroost.write_delay = '2s'");
    assert!(errors[0].contains("expected one of"), "{errors:?}");
    assert!(errors[1].contains("roost.write_delay = \"2s\": expected at most 1s"), "{errors:?}");
}

#[test]
fn development_preset_is_under_everything() {
    let dev = |file, sources: Sources| full(file, &Sources { dev: true, ..sources });
    let (config, report) = dev(None, Sources::default());
    assert_eq!((report.errors, report.unknown, report.warnings), (vec![], vec![], vec![]));
    assert_eq!(config.http_server.at, ListenAt::Ips(vec!["127.0.0.1".parse().unwrap()]));
    assert!(config.client.allow_anonymous);
    assert!(config.origins.allows(Some("http://localhost:3000")));
    assert!(!config.origins.allows(Some("http://localhost.example")));
    assert_eq!(config.tokens.connection.hmac_secret_key, DEV_SECRET);
    assert!(!config.roost.echo);
    let namespace = config.channels.namespace(0);
    assert!(namespace.allow_subscribe_for_anonymous && namespace.allow_publish_for_anonymous);

    let file = "[client]\nallow_anonymous_connect_without_token = false\n\
                [client.token]\nhmac_secret_key = 'own'\n\
                [channel.without_namespace]\nallow_publish_for_client = false\n";
    let own =
        sources(&[("ROOST_CLIENT_ALLOWED_ORIGINS", "http://a")], &[("http_server.port", "1")]);
    let (config, report) = dev(Some(("c.toml", file)), own);
    assert_eq!(report.errors, [""; 0]);
    assert!(!config.client.allow_anonymous);
    assert_eq!(config.tokens.connection.hmac_secret_key, "own");
    assert!(!config.channels.namespace(0).allow_publish_for_client);
    assert!(config.channels.namespace(0).allow_subscribe_for_client);
    assert!(!config.origins.allows(Some("http://any")));
    assert_eq!(config.http_server.port, 1);

    let everywhere = sources(&[], &[("http_server.address", "0.0.0.0")]);
    let (_, report) = dev(None, everywhere);
    assert!(
        report.errors[0].starts_with(
            "--http_server.address: http_server.address = \"0.0.0.0\": expected a loopback"
        ),
        "{:?}",
        report.errors
    );
}

#[test]
fn printed_defaults_are_the_defaults() {
    let expected = text_of(&good(None, &Sources::default()));
    for (name, format) in [
        ("c.toml", PrintFormat::Toml),
        ("c.json", PrintFormat::Json),
        ("c.yaml", PrintFormat::Yaml),
    ] {
        let text = print_defaults(format);
        let (config, report) = full(Some((name, &text)), &Sources::default());
        assert_eq!((report.errors, report.unknown, report.warnings), (vec![], vec![], vec![]));
        assert_eq!(text_of(&config), expected, "{text}");
        for row in table::OPTIONS.iter().filter(|row| row.is_built()) {
            let name = row.path.rsplit('.').next().unwrap();
            assert!(text.contains(name), "{name}");
        }
    }
    let text = print_defaults(PrintFormat::Toml);
    assert!(text.contains("\n# Port to listen on; 0: a free port.\nport = 8000\n"));
    serde_json::from_str::<serde_json::Value>(&print_defaults(PrintFormat::Json)).unwrap();
}

#[test]
fn files_on_disk() {
    let folder = std::env::temp_dir().join(format!("roost-config-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let good = folder.join("good.toml");
    std::fs::write(&good, "[http_server]\nport = 4\nnone = 1\n").unwrap();
    let bad = folder.join("bad.toml");
    std::fs::write(&bad, "[http_server]\nport = 'x'\naddress = 7\nnone = 1\n").unwrap();

    let named = |path: &Path| Sources { file: Some(path.to_owned()), ..Default::default() };
    let loaded = load(&named(&good)).unwrap();
    assert_eq!(loaded.config.http_server.port, 4);
    assert_eq!(loaded.origin.as_deref(), Some(good.as_path()));
    // The unknown option, and that nobody can connect or publish.
    assert_eq!(loaded.warnings.len(), 3, "{:?}", loaded.warnings);
    assert_eq!(load(&named(&bad)).unwrap_err().problems.len(), 2);

    let by_variable = sources(&[("ROOST_CONFIG", good.to_str().unwrap())], &[]);
    let by_variable = Sources { dev: true, ..by_variable };
    assert_eq!(load(&by_variable).unwrap().config.http_server.port, 4);

    let empty = folder.join("empty.toml");
    std::fs::write(&empty, " \n").unwrap();
    for (path, why) in [
        (folder.join("none.toml"), "none.toml: no such file"),
        (empty, "empty.toml: the file is empty"),
        (folder.clone(), ": a folder, expected a file"),
    ] {
        for fault in [load(&named(&path)).unwrap_err(), check(&path, false).unwrap_err()] {
            assert_eq!(fault.problems.len(), 1, "{fault}");
            assert!(fault.problems[0].ends_with(why), "{fault}");
        }
        let by_variable = sources(&[("ROOST_CONFIG", path.to_str().unwrap())], &[]);
        assert!(load(&by_variable).is_err(), "{path:?}");
    }

    assert_eq!(check(&good, false).unwrap().1.len(), 3);
    assert!(
        check(&good, true).unwrap_err().to_string().contains("unknown option http_server.none")
    );
    let error = check(&bad, false).unwrap_err();
    // The unknown option: what else could be said would be about defaults.
    assert_eq!((error.problems.len(), error.warnings.len()), (2, 1));
    assert!(check(&folder.join("none.toml"), false).is_err());
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn public_keys_of_tokens() {
    use base64::Engine;

    use crate::edge::jwt::testing::{Pair, RSA};

    let folder = std::env::temp_dir().join(format!("roost-keys-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (rsa, ecdsa) = (RSA.pem(), Pair::ec("P-521").pem());
    let file = folder.join("key.pem");
    std::fs::write(&file, &rsa).unwrap();
    let packed = base64::engine::general_purpose::STANDARD.encode(&rsa);
    let (start, end) = packed.split_at(70);
    for given in [&rsa, file.to_str().unwrap(), &packed, &format!("{start}\n{end}\n")] {
        let config = environment(&[
            ("CENTRIFUGO_CLIENT_TOKEN_RSA_PUBLIC_KEY", given),
            ("CENTRIFUGO_CLIENT_SUBSCRIPTION_TOKEN_ENABLED", "true"),
            ("CENTRIFUGO_CLIENT_SUBSCRIPTION_TOKEN_ECDSA_PUBLIC_KEY", &ecdsa),
        ]);
        assert_eq!(config.tokens.connection.rsa_public_key, rsa, "{given}");
        assert_eq!(config.tokens.of_subscriptions().ecdsa_public_key, ecdsa);
    }
    std::fs::remove_dir_all(&folder).unwrap();

    let config = environment(&[
        ("ROOST_CLIENT_TOKEN_JWKS_PUBLIC_ENDPOINT", "https://idp/{{realm}}/keys"),
        ("ROOST_CLIENT_TOKEN_ISSUER_REGEX", "^https://idp/(?P<realm>[a-z]+)$"),
        ("ROOST_CLIENT_TOKEN_AUDIENCE_REGEX", "edge"),
        ("ROOST_CLIENT_TOKEN_USER_ID_CLAIM", "user.id"),
    ]);
    let options = &config.tokens.connection;
    assert_eq!(options.jwks_public_endpoint, "https://idp/{{realm}}/keys");
    assert_eq!(
        (options.audience_regex.as_str(), options.user_id_claim.as_str()),
        ("edge", "user.id")
    );

    for (name, given, expected) in [
        ("RSA_PUBLIC_KEY", "none.pem", "rsa_public_key = ***: expected a PEM text, a file"),
        ("RSA_PUBLIC_KEY", &ecdsa, "rsa_public_key = ***: expected an RSA public key"),
        ("ECDSA_PUBLIC_KEY", &rsa, "ecdsa_public_key = ***: expected a public key on P-256"),
        ("JWKS_PUBLIC_ENDPOINT", "x", "jwks_public_endpoint = \"x\": expected a URL"),
        (
            "JWKS_PUBLIC_ENDPOINT",
            "https://idp/{{realm}}",
            "expected {{realm}} to be a group of audience_regex or issuer_regex",
        ),
        ("AUDIENCE_REGEX", "(", "audience_regex = \"(\": expected a regular expression"),
        ("ISSUER_REGEX", "(", "issuer_regex = \"(\": expected a regular expression"),
        ("ISSUER_REGEX", "a", "expected an exact value or a regular expression, not both"),
    ] {
        let variable = format!("ROOST_CLIENT_TOKEN_{name}");
        let mut variables = vec![(variable.as_str(), given)];
        if expected.contains("both") {
            variables.push(("ROOST_CLIENT_TOKEN_ISSUER", "a"));
        }
        let (_, report) = full(None, &sources(&variables, &[]));
        assert_eq!(report.errors.len(), 1, "{name}: {:?}", report.errors);
        let error = &report.errors[0];
        assert!(error.starts_with(&variable) && error.contains(expected), "{error}");
    }
}

#[test]
fn keys_that_mean_nothing() {
    let warnings = |text: &str| toml(text).warnings;
    let subscription = |key: &str| {
        warnings(&format!(
            "client = {{subscription_token = {{enabled = true, {key} = 'http://x'}}}}"
        ))
    };
    assert!(subscription("audience")[0].contains("without a key"));
    assert!(subscription("hmac_secret_key").is_empty());
    assert!(subscription("jwks_public_endpoint").is_empty());
    let pem = crate::edge::jwt::testing::RSA.pem();
    let both = format!(
        "[client.token]\njwks_public_endpoint = 'http://x'\nrsa_public_key = \"\"\"{pem}\"\"\""
    );
    assert!(warnings(&both)[0].starts_with("client.token.rsa_public_key: not used beside"));
}

#[test]
fn a_node_is_configured_by_a_file_or_a_key() {
    let file = Sources { file: Some("production.json".into()), ..Default::default() };
    assert!(is_configured(&file));
    for (variables, flags) in [
        (&[("ROOST_CONFIG", "production.json")][..], &[][..]),
        (&[("CENTRIFUGO_CLIENT_TOKEN_HMAC_SECRET_KEY", "x")], &[]),
        (&[("ROOST_HTTP_API_KEY", "x")], &[]),
        (&[("CENTRIFUGO_CLIENT", "{\"token\": {\"rsa_public_key\": \"x\"}}")], &[]),
        (&[], &[("admin.password", "x")]),
        (&[], &[("client.token.jwks_public_endpoint", "http://a/")]),
    ] {
        assert!(is_configured(&sources(variables, flags)), "{variables:?} {flags:?}");
    }
    for (variables, flags) in [
        (&[][..], &[][..]),
        (&[("ROOST_CONFIG", ""), ("ROOST_HTTP_API_KEY", ""), ("PATH", "/bin")], &[]),
        (&[("ROOST_SHARDS", "2")], &[("http_server.port", "9000"), ("http_api.key", "")]),
    ] {
        assert!(!is_configured(&sources(variables, flags)), "{variables:?} {flags:?}");
    }
}

#[test]
fn a_development_node_with_a_configuration_warns() {
    let folder = std::env::temp_dir().join(format!("roost-dev-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("production.toml");
    std::fs::write(&file, "[http_server]\nport = 4\n").unwrap();
    let warnings = |sources: Sources| load(&Sources { dev: true, ..sources }).unwrap().warnings;
    let with_file = warnings(Sources { file: Some(file), ..Default::default() });
    assert!(with_file[0].starts_with("THIS IS A DEVELOPMENT NODE"), "{with_file:?}");
    assert!(with_file[0].contains("production.toml"), "{with_file:?}");
    let with_key = warnings(sources(&[("ROOST_HTTP_API_KEY", "0123456789abcdef")], &[]));
    assert!(with_key[0].contains("although keys are configured"), "{with_key:?}");
    assert_eq!(warnings(Sources::default()), [""; 0]);
    std::fs::remove_dir_all(&folder).unwrap();
}

/// The advice on a file.
fn advice(text: &str) -> Vec<String> {
    let report = toml(text);
    assert_eq!(report.errors, [""; 0]);
    report.advice
}

/// A node that serves somebody, without weak secrets.
const SERVES: &str = "http_api.key = '0123456789abcdef'\n\
    client.token.hmac_secret_key = '0123456789abcdef0123456789abcdef'\n";

#[test]
fn weak_secrets_are_named_and_never_shown() {
    assert_eq!(advice(SERVES), [""; 0]);
    let serves = "client.allow_anonymous_connect_without_token = true\n\
        channel.without_namespace.allow_publish_for_client = true\n";
    for (option, weak, good, says) in [
        ("client.token.hmac_secret_key", 31, 32, "31 bytes, expected at least 32"),
        ("client.token.hmac_previous_secret_key", 1, 32, "1 byte, expected at least 32"),
        ("client.subscription_token.hmac_secret_key", 1, 32, "1 byte, expected at least 32"),
        ("http_api.key", 15, 16, "15 bytes, expected at least 16"),
        ("admin.secret", 31, 32, "31 bytes, expected at least 32"),
        ("admin.password", 7, 8, "7 characters, expected at least 8"),
    ] {
        let more = match option {
            "admin.secret" => "admin.enabled = true\nadmin.password = 'open sesame'\n",
            "admin.password" => "admin.enabled = true\n",
            "client.subscription_token.hmac_secret_key" => {
                "client.subscription_token.enabled = true\n"
            }
            _ => "",
        };
        let of =
            |length: usize| advice(&format!("{serves}{more}{option} = '{}'", "q".repeat(length)));
        let named = of(weak);
        assert_eq!(named.len(), 1, "{option}: {named:?}");
        assert!(named[0].contains(option) && named[0].contains(says), "{named:?}");
        assert!(!named[0].contains("qq") && !named[0].contains("'q'"), "{named:?}");
        assert_eq!(of(good), [""; 0], "{option}");
    }
    // Keys that nothing is signed with don't matter.
    let unused = "client.subscription_token.hmac_secret_key = 'x'\nadmin.secret = 'x'\nadmin.password = 'x'\n";
    assert_eq!(advice(&format!("{SERVES}{unused}")), [""; 0]);
}

#[test]
fn origins_that_match_nothing_are_named() {
    let named = advice(&format!(
        "{SERVES}client.allowed_origins = ['https://a.example', 'https://b.example/', 'c.example']"
    ));
    assert_eq!(named.len(), 2, "{named:?}");
    assert!(named[0].starts_with("c.toml:3: client.allowed_origins"), "{named:?}");
    assert!(
        named[0].contains("\"https://b.example/\" never matches: an origin has no path"),
        "{named:?}"
    );
    assert!(named[1].contains("\"c.example\" never matches: it has no scheme"), "{named:?}");
    let open = advice(&format!("{SERVES}client.allowed_origins = ['*']\nhttp_api.insecure = true"));
    assert!(open[0].contains("every web page can call the server API"), "{open:?}");
}

#[test]
fn a_node_that_serves_nobody_says_so() {
    let (connect, publish) = ("no client can connect", "nobody can publish");
    let said = |text: &str| {
        let lines = advice(text);
        (lines.iter().any(|l| l.starts_with(connect)), lines.iter().any(|l| l.starts_with(publish)))
    };
    assert_eq!(said(""), (true, true));
    assert_eq!(said(SERVES), (false, false));
    let key = "client.token.hmac_secret_key = '0123456789abcdef0123456789abcdef'\n";
    assert_eq!(said(key), (false, true));
    assert_eq!(said(&format!("{key}websocket.disabled = true")), (true, true));
    assert_eq!(said(&format!("{key}websocket.disabled = true\nsse.enabled = true")), (false, true));
    assert_eq!(said("client.insecure = true"), (false, false));
    assert_eq!(said("client.user_id_http_header = 'X-User'"), (false, true));
    assert_eq!(
        said("client.proxy.connect = {enabled = true, endpoint = 'http://a/'}"),
        (false, true)
    );
    assert_eq!(said(&format!("{key}http_api.insecure = true")), (false, false));
    assert_eq!(said(&format!("{SERVES}http_api.disabled = true")), (false, true));
    let namespace = "[[channel.namespaces]]\nname = 'chat'\nallow_publish_for_subscriber = true";
    assert_eq!(said(&format!("{key}{namespace}")), (false, false));
    assert_eq!(
        said(&format!("{key}admin.enabled = true\nadmin.password = 'open sesame'")),
        (false, false)
    );
}

#[test]
fn listeners_speak_tls_as_their_sections_say() {
    let tls = |text: &str| {
        let mut report = Report::default();
        let config = resolve(Some(("c.toml", text)), &Sources::default(), &mut report);
        (config.tls, report.errors)
    };
    let pair = "enabled = true\ncert_pem = 'a.pem'\nkey_pem = 'a.key'\n";
    let internal = "http_server.internal_port = '9000'\n";
    // The internal port has the options of the public one, its own, or none.
    let both = format!("{internal}[http_server.tls]\n{pair}");
    let (shared, errors) = tls(&both);
    assert_eq!(errors, [""; 0]);
    assert_eq!(shared.internal, shared.public);
    let public = shared.public.unwrap();
    assert_eq!(public.default.unwrap().certificate.path(), Some(Path::new("a.pem")));
    let (external, _) = tls(&format!("http_server.tls_external = true\n{both}"));
    assert!(external.public.is_some() && external.internal.is_none());
    let (own, _) = tls(&format!("{internal}[http_server.internal_tls]\n{pair}"));
    assert!(own.public.is_none() && own.internal.is_some());
    let (none, _) = tls(&format!("[http_server.tls]\n{pair}"));
    assert!(none.internal.is_none(), "there is no internal port");
    let off = tls("[http_server.internal_tls]\nenabled = false\ncert_pem = 'x'\n");
    assert!(off.0.public.is_none() && off.1.is_empty());
    // Certificates by name; the first of them is the default where there is no other.
    let named = "[[roost.tls]]\nname = '*.Example.com'\ncert_pem = 'b.pem'\nkey_pem = 'b.key'\n";
    let (by_name, errors) = tls(&format!("{named}[http_server.tls]\nenabled = true\n"));
    assert_eq!(errors, [""; 0]);
    let public = by_name.public.unwrap();
    assert_eq!(public.by_name[0].0, "*.example.com");
    assert_eq!(public.default, Some(public.by_name[0].1.clone()));
    let (own, errors) = tls("roost.tls_self_signed = true\n");
    assert!(own.public.unwrap().default.is_none() && errors.is_empty());
}

#[test]
fn faults_of_tls_name_their_options() {
    for (text, expected) in [
        ("[http_server.tls]\nenabled = true", "http_server.tls.cert_pem: expected a certificate"),
        (
            "[http_server.tls]\nenabled = true\ncert_pem = 'x'",
            "http_server.tls.key_pem: expected the key of the certificate",
        ),
        (
            "[http_server]\ninternal_port = '1'\n[http_server.internal_tls]\nenabled = true\nkey_pem = 'x'",
            "http_server.internal_tls.cert_pem: expected a certificate",
        ),
        (
            "[[roost.tls]]\nname = 'a b'\ncert_pem = 'x'\nkey_pem = 'x'",
            "c.toml:1: roost.tls: name = \"a b\": expected the name of a host",
        ),
        (
            "[[roost.tls]]\nname = 'a'\ncert_pem = 'x'",
            "c.toml:1: roost.tls[a].key_pem: expected PEM",
        ),
        (
            "[roost]\ntls_ticket_period = '1s'",
            "c.toml:2: roost.tls_ticket_period = \"1s\": expected 1m",
        ),
        (
            "[http_server.tls_autocert]\nenabled = true\nhost_whitelist = ['a.example']",
            "http_server.tls_autocert.cache_dir: expected a directory",
        ),
        (
            "[http_server.tls_autocert]\nenabled = true\ncache_dir = 'x'",
            "http_server.tls_autocert.host_whitelist: expected names of hosts",
        ),
        (
            "[http_server.tls_autocert]\nenabled = true\ncache_dir = 'x'\nhost_whitelist = ['*.a.example']",
            "c.toml:4: http_server.tls_autocert.host_whitelist = a list of 1: expected names of hosts",
        ),
        (
            "[http_server.tls_autocert]\nenabled = true\ncache_dir = 'x'\nhost_whitelist = ['a.example']\n\
             server_name = 'b.example'",
            "c.toml:5: http_server.tls_autocert.server_name = \"b.example\": expected a host of host_whitelist",
        ),
        (
            "[http_server.tls_autocert]\nenabled = true\ncache_dir = 'x'\nhost_whitelist = ['a.example']\n\
             http = true\nhttp_addr = '80'",
            "c.toml:6: http_server.tls_autocert.http_addr = \"80\": expected an IP address and a port",
        ),
    ] {
        let report = toml(text);
        assert_eq!(report.errors.len(), 1, "{text}: {:?}", report.errors);
        assert!(report.errors[0].starts_with(expected), "{text}: {}", report.errors[0]);
    }
    let unused = toml("[[roost.tls]]\nname = 'a'\ncert_pem = 'x'\nkey_pem = 'x'");
    assert!(unused.warnings[0].contains("of no use"), "{:?}", unused.warnings);
    // A variable has the whole list.
    let mut report = Report::default();
    let list = r#"[{"name": "a.example", "cert_pem": "c", "key_pem": "k"}]"#;
    let environment =
        [("ROOST_TLS", list), ("ROOST_TLS_TICKET_PERIOD", "1h"), ("ROOST_TLS_SELF_SIGNED", "1")];
    let environment = environment.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
    let config = resolve(None, &Sources { environment, ..Sources::default() }, &mut report);
    assert_eq!((report.errors, report.unknown), (vec![], vec![]));
    assert_eq!(config.tls.public.unwrap().by_name[0].0, "a.example");
    assert_eq!(config.tls.tickets.period_ms, 3_600_000);
}

/// The faults of a file with an engine in Redis.
fn faults_with_redis(text: &str) -> Vec<String> {
    let report = toml(&format!("engine.type = \"redis\"\n{text}"));
    assert_eq!(report.unknown, [""; 0], "{text}");
    report.errors
}

#[test]
fn options_of_redis_are_read_from_files_and_the_environment() {
    use crate::cluster::servers::{Address, Server};

    let text = r#"
        [engine]
        type = "redis"
        [engine.redis]
        address = ["redis://:secret@a:7000/2", "b:7001"]
        prefix = "p"
        presence_ttl = "30s"
        presence_user_mapping = true
        io_timeout = "2s"
        tls = { enabled = true, insecure_skip_verify = true }
        [broker]
        enabled = true
        type = "redis"
        redis = { cluster_address = ["c:1,d:2"], history_use_lists = true }
        [roost]
        broker_partitions = 32
    "#;
    let (config, report) = of_toml(text);
    assert_eq!(report.errors, [""; 0]);
    let presence = config.brokers.presence.unwrap();
    assert_eq!((presence.presence_ttl_s, presence.presence_users), (30, true));
    assert_eq!((&*presence.prefix, presence.io_timeout_ms), ("p", 2_000));
    let [Server::Single { address, access }, Server::Single { .. }] = &presence.servers[..] else {
        panic!("{presence:?}")
    };
    assert_eq!((address, access.db), (&Address::Tcp("a".into(), 7_000), 2));
    assert!(access.security.as_ref().unwrap().insecure);
    let broker = config.brokers.broker.unwrap();
    let partitions = broker.partitions.as_ref().map(|of| (of.count(), of.is_balanced()));
    assert_eq!((partitions, presence.partitions), (Some((32, true)), None));
    assert!(broker.use_lists && matches!(broker.servers[..], [Server::Cluster { .. }]));
    assert!(report.warnings.iter().any(|warning| warning.contains("insecure_skip_verify")));

    let pairs = [
        ("CENTRIFUGO_ENGINE_TYPE", "redis"),
        ("CENTRIFUGO_ENGINE_REDIS_ADDRESS", "a:1 b:2"),
        ("CENTRIFUGO_ENGINE_REDIS_FORCE_RESP2", "true"),
        ("CENTRIFUGO_ENGINE_REDIS_SENTINEL_TLS_ENABLED", "false"),
    ];
    let (config, report) = full(None, &sources(&pairs, &[]));
    assert_eq!((report.errors, report.unknown), (vec![], vec![]));
    let servers = config.brokers.broker.unwrap().servers;
    let resp2 =
        |server: &Server| matches!(server, Server::Single { access, .. } if access.force_resp2);
    assert!(servers.len() == 2 && servers.iter().all(resp2), "{servers:?}");
    let config = good(None, &Sources::default());
    assert!(config.brokers.broker.is_none() && config.brokers.presence.is_none());
}

#[test]
fn options_of_redis_that_cannot_work_together_are_faults() {
    assert_eq!(faults_with_redis(""), [""; 0]);
    for (text, fault) in [
        ("engine.redis.prefix = ''", "expected a text: the names of all nodes begin with it"),
        ("engine.redis.address = []", "expected at least one address"),
        ("engine.redis.address = ['http://h']", "http:// is not known"),
        ("engine.redis.io_timeout = '0s'", "expected more than 0"),
        ("engine.redis.presence_ttl = '1500ms'", "expected whole seconds, at least one"),
        ("engine.redis.sentinel_address = ['h:1']", "expected the name of the master"),
        (
            "engine.redis = {cluster_address = ['h:1'], db = 1}",
            "expected 0: a Redis Cluster has no other database",
        ),
        (
            "engine.redis.address = ['redis+cluster://h', 'h']",
            "expected either each of them a Cluster",
        ),
        ("roost.broker_partitions = 16", "expected 0 unless channels are in a Redis Cluster"),
        (
            "engine.redis.cluster_address = ['h:1']\nroost.broker_partitions = 17",
            "expected 16, 32, 64, 128 or 256 with balanced tags",
        ),
        (
            "engine.redis = {cluster_address = ['h:1'], force_resp2 = true}\n\
             roost.broker_partitions = 16",
            "expected 0 with force_resp2",
        ),
        (
            "engine.redis.tls = {enabled = true, cert_pem = '-----BEGIN X'}",
            "expected both, or neither",
        ),
        ("engine.redis.tls = {server_name = 'x'}", "has to be that of its address"),
        (
            "channel.without_namespace = {history_size = 1, history_ttl = '1500ms'}",
            "expected whole seconds with a broker in Redis",
        ),
    ] {
        let faults = faults_with_redis(text);
        assert!(faults.iter().any(|found| found.contains(fault)), "{text}: {faults:?}");
    }
    let secret = faults_with_redis("engine.redis.address = ['redis://:secret@h:x']");
    assert!(!secret[0].contains("secret"), "{secret:?}");
}
