//! From what is set to the typed configuration, with the checks that need more than one option.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use regex_lite::Regex;
use tracing::level_filters::LevelFilter;

use super::hooks;
use super::layers::{Report, Scope, Settings, default};
use super::nats::NatsOptions;
use super::options::{
    Admin, Api, Config, Demo, HttpServer, Internal, Io, ListenAt, Log, MemoryLimit, Pin, Roost,
    Shards, Tokens, Web, WebSocket,
};
use super::redis::brokers;
use super::table;
use super::tls::tls;
use super::transports::{one_way_disconnects, transports};
use super::value::Value;
use crate::edge::address_limits::AddressOptions;
use crate::edge::channels::{
    ChannelRules, ChannelSyntax, DataFormat, Namespace, OWN_CHANNEL, RecoveryMode, SlowPolicy,
};
use crate::edge::jwt::TokenOptions;
use crate::edge::origin::OriginRules;
use crate::edge::proxy::{ClientProxies, ProxyOptions, ProxyTls, RpcRules};
use crate::edge::trusted::TrustedPeers;
use crate::io::sockets::UNIX_PATH_BYTES_MAX;
use crate::proto::http::ForwardedHeader;
use crate::session::{ClientOptions, PersonalChannel};
use crate::shard::AddressSources;

/// Namespaces at most: their index is 16 bits, and one stands for the channels without.
const NAMESPACES_MAX: usize = 65_000;

const PERSONAL_NAMESPACE: &str =
    "client.subscribe_to_user_personal_channel.personal_channel_namespace";
const SINGLE_CONNECTION: &str = "client.subscribe_to_user_personal_channel.single_connection";

/// The typed configuration. What is wrong goes into the report, and then the result is not to be
/// used.
pub(super) fn build(settings: &Settings, report: &mut Report) -> Config {
    let root = &settings.root;
    let proxies = Proxies::new(settings, report);
    let mut taken = Vec::new();
    let transports = transports(root, &mut taken, report);
    let http_server = http_server(root, report);
    let disconnect_events = settings.section(hooks::SECTION).flag("disconnect");
    let channels = channels(settings, &proxies, report);
    let brokers = brokers(settings, report);
    let channels = channels.with_subjects(brokers.nats.as_ref().map(NatsOptions::rules));
    let config = Config {
        tls: tls(settings, http_server.internal.is_some(), report),
        http_server,
        log: Log {
            level: level(&root.text("log.level")),
            file: root.path("log.file"),
            json: root.text("roost.log_format") == "json",
        },
        origins: origins(root, report),
        client: client(root, (proxies.of_clients(report), disconnect_events), report),
        rpc: rpc(settings, &proxies, report),
        tokens: tokens(root, report),
        hooks: hooks::hooks(settings, &channels, report),
        channels,
        websocket: WebSocket {
            enabled: !root.flag("websocket.disabled"),
            handler_prefix: root.text("websocket.handler_prefix"),
            write_timeout_ms: root.ms("websocket.write_timeout"),
            message_bytes_max: root.size("websocket.message_size_limit"),
        },
        transports,
        web: web(root, taken, report),
        shutdown_timeout_ms: root.ms("shutdown.timeout"),
        node_name: root.text("node.name"),
        metrics_interval_ms: root.ms("node.info_metrics_aggregate_interval"),
        pid_file: root.path("pid_file"),
        brokers,
        roost: roost(root, report),
    };
    if let Some(personal) = &config.client.personal_channel {
        check_personal_channel(root, personal, &config.channels, report);
    }
    warn_of_danger(root, report);
    config
}

fn http_server(root: &Scope, report: &mut Report) -> HttpServer {
    const INTERNAL_ADDRESS: &str = "http_server.internal_address";
    const INTERNAL_PORT: &str = "http_server.internal_port";
    let at = listen_at(root, "http_server.address", report);
    let has_own = !root.text(INTERNAL_ADDRESS).is_empty();
    let own = has_own.then(|| listen_at(root, INTERNAL_ADDRESS, report));
    let port = root.text(INTERNAL_PORT);
    let internal = match (&own, port.as_str(), port.parse()) {
        (Some(ListenAt::Unix(path)), _, _) => {
            if at == ListenAt::Unix(path.clone()) {
                let expected = "another socket than http_server.address";
                report.errors.push(root.complaint(INTERNAL_ADDRESS, expected));
            }
            Some(Internal { at: ListenAt::Unix(path.clone()), port: 0 })
        }
        (_, "", _) => None,
        (_, _, Ok(port)) => {
            if own.is_none() && matches!(at, ListenAt::Unix(_)) {
                let expected = "http_server.internal_address beside it: http_server.address is a Unix \
                                socket";
                report.errors.push(root.complaint(INTERNAL_PORT, expected));
            }
            Some(Internal { at: own.unwrap_or_else(|| at.clone()), port })
        }
        (_, _, Err(_)) => {
            report.errors.push(root.complaint(INTERNAL_PORT, "a port, 0 to 65535"));
            None
        }
    };
    let mode = root.text("roost.socket_mode");
    HttpServer {
        at,
        port: root.size("http_server.port") as u16,
        socket_mode: table::socket_mode(&mode).unwrap_or(0o660),
        internal,
    }
}

fn listen_at(root: &Scope, path: &str, report: &mut Report) -> ListenAt {
    let text = root.text(path);
    if let Some(socket) = text.strip_prefix("unix:") {
        let fault = match socket.len() {
            0 => Some("a path behind \"unix:\"".to_owned()),
            len if len > UNIX_PATH_BYTES_MAX => {
                Some(format!("a path of at most {UNIX_PATH_BYTES_MAX} bytes, it has {len}"))
            }
            _ if socket.starts_with('@') || socket.contains('\0') => {
                Some("the path of a file: abstract sockets have no owner".to_owned())
            }
            _ => None,
        };
        if let Some(expected) = fault {
            report.errors.push(root.complaint(path, &expected));
        }
        return ListenAt::Unix(socket.into());
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(&text);
    let addresses = match bare {
        "" => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        "localhost" => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        address => address.parse::<IpAddr>().map(|address| vec![address]).unwrap_or_default(),
    };
    if addresses.is_empty() {
        let expected = "an IP address such as \"127.0.0.1\" or \"::1\", \"unix:\" and the path of a \
                        socket, or \"\" for all addresses";
        report.errors.push(root.complaint(path, expected));
    }
    ListenAt::Ips(addresses)
}

fn web(root: &Scope, mut taken: Vec<(&str, String)>, report: &mut Report) -> Web {
    let path = |section: &str| {
        let path = root.text(&format!("{section}.handler_prefix"));
        root.flag(&format!("{section}.enabled")).then_some(path)
    };
    let web = Web {
        api: (!root.flag("http_api.disabled")).then(|| Api {
            prefix: root.text("http_api.handler_prefix").trim_end_matches('/').to_owned(),
            key: Some(root.text("http_api.key")).filter(|key| !key.is_empty()),
            insecure: root.flag("http_api.insecure"),
            transport_errors: root.text("http_api.error_mode") == "transport",
            external: root.flag("http_api.external"),
        }),
        metrics: path("prometheus"),
        centrifugo_names: root.flag("prometheus.centrifugo_names"),
        health: path("health"),
        ready: path("health").map(|_| root.text("roost.ready_prefix")),
        admin: root.flag("admin.enabled").then(|| Admin {
            prefix: root.text("admin.handler_prefix"),
            password: Some(root.text("admin.password")).filter(|password| !password.is_empty()),
            secret: root.text("admin.secret"),
            insecure: root.flag("admin.insecure"),
            external: root.flag("admin.external"),
            link: None,
        }),
        demo: root.flag("roost.demo").then(|| Demo { sdk: root.path("roost.demo_sdk") }),
    };
    let own = [
        ("http_api.handler_prefix", web.api.as_ref().map(|api| api.prefix.clone())),
        ("prometheus.handler_prefix", web.metrics.clone()),
        ("health.handler_prefix", web.health.clone()),
        ("roost.ready_prefix", web.ready.clone()),
        ("admin.handler_prefix", web.admin.as_ref().map(|admin| format!("{}/admin", admin.prefix))),
        ("roost.demo", web.demo.as_ref().map(|_| "/demo".to_owned())),
    ];
    for (option, path) in own {
        let Some(path) = path else { continue };
        let odd = path.contains(['{', '}', '*']) || path.is_empty();
        if let Some((other, _)) = taken.iter().find(|(_, other)| *other == path) {
            report.errors.push(root.complaint(option, &format!("another path than {other}")));
        } else if odd {
            report.errors.push(root.complaint(option, "a path of its own, without {, } and *"));
        }
        taken.push((option, path));
    }
    web
}

fn client(
    root: &Scope,
    (proxies, disconnect_events): (ClientProxies, bool),
    report: &mut Report,
) -> ClientOptions {
    let (interval, timeout) =
        (root.duration("client.ping_interval"), root.duration("client.pong_timeout"));
    if let (Some(interval), Some(timeout)) = (interval, timeout)
        && timeout >= interval
    {
        let expected = format!(
            "a duration longer than client.pong_timeout, which is {timeout}ms (here: {interval}ms)"
        );
        report.errors.push(root.complaint("client.ping_interval", &expected));
    }
    ClientOptions {
        proxies,
        one_way_disconnects: one_way_disconnects(root),
        allow_anonymous: root.flag("client.allow_anonymous_connect_without_token"),
        disallow_anonymous_tokens: root.flag("client.disallow_anonymous_connection_tokens"),
        ping_interval_ms: interval,
        // Without pings there is nothing to answer.
        pong_timeout_ms: timeout.filter(|_| interval.is_some()),
        expired_close_delay_ms: root.ms("client.expired_close_delay"),
        expired_sub_close_delay_ms: root.ms("client.expired_sub_close_delay"),
        stale_close_delay_ms: Some(root.ms("client.stale_close_delay")).filter(|ms| *ms > 0),
        channel_limit: root.size("client.channel_limit"),
        queue_bytes_max: root.size("client.queue_max_size"),
        connection_limit: root.count("client.connection_limit"),
        connection_rate_limit: root.count("client.connection_rate_limit"),
        user_connection_limit: root.size("client.user_connection_limit") as u32,
        history_publications_max: limit(root.size("client.history_max_publication_limit")),
        recovery_publications_max: limit(root.size("client.recovery_max_publication_limit")),
        personal_channel: root.flag("client.subscribe_to_user_personal_channel.enabled").then(
            || PersonalChannel {
                namespace: root.text(PERSONAL_NAMESPACE).into(),
                single_connection: root.flag(SINGLE_CONNECTION),
            },
        ),
        include_server_time: root.flag("client.connect_include_server_time"),
        user_id_http_header: root.text("client.user_id_http_header").to_ascii_lowercase(),
        insecure: root.flag("client.insecure"),
        concurrency: root.size("client.concurrency") as u32,
        disconnect_events,
        version: format!("{} roost", env!("CARGO_PKG_VERSION")),
    }
}

fn origins(root: &Scope, report: &mut Report) -> OriginRules {
    OriginRules::new(&root.list("client.allowed_origins")).unwrap_or_else(|fault| {
        let expected = format!("globs such as \"https://*.example.com\": {fault}");
        report.errors.push(root.complaint("client.allowed_origins", &expected));
        OriginRules::default()
    })
}

/// 0 is no limit.
fn limit(count: usize) -> usize {
    if count == 0 { usize::MAX } else { count }
}

fn check_personal_channel(
    root: &Scope,
    personal: &PersonalChannel,
    channels: &ChannelRules,
    report: &mut Report,
) {
    // The first one is that of the channels without a namespace, and its name is empty.
    let namespace = channels.namespaces().iter().find(|one| one.name == personal.namespace);
    let Some(namespace) = namespace else {
        let expected = "the name of one of channel.namespaces, or \"\" for none";
        report.errors.push(root.complaint(PERSONAL_NAMESPACE, expected));
        return;
    };
    // Older connections are found without presence here. Centrifugo finds them by it and asks for
    // it, and a file that passes here should pass there.
    if personal.single_connection && !namespace.presence {
        let wanted = match namespace.name.as_str() {
            "" => "channel.without_namespace.presence".to_owned(),
            name => format!("channel.namespaces[{name}].presence"),
        };
        let expected = format!("false, or true with {wanted}, as in Centrifugo");
        report.errors.push(root.complaint(SINGLE_CONNECTION, &expected));
    }
}

fn tokens(root: &Scope, report: &mut Report) -> Tokens {
    let connection = token_options(root, "client.token", report);
    let subscription = root
        .flag("client.subscription_token.enabled")
        .then(|| token_options(root, "client.subscription_token", report));
    if subscription.as_ref().is_some_and(|tokens| !tokens.has_key()) {
        report.warnings.push(
            "client.subscription_token.enabled = true: without a key under \
             client.subscription_token no subscription token is accepted"
                .into(),
        );
    }
    Tokens { connection, subscription }
}

fn token_options(root: &Scope, section: &str, report: &mut Report) -> TokenOptions {
    let path = |name: &str| format!("{section}.{name}");
    let text = |name: &str| root.text(&path(name));
    let mut key = |name: &str| match pem(&text(name)) {
        Ok(pem) => pem,
        Err(expected) => {
            report.errors.push(root.complaint(&path(name), &expected));
            String::new()
        }
    };
    let options = TokenOptions {
        rsa_public_key: key("rsa_public_key"),
        ecdsa_public_key: key("ecdsa_public_key"),
        hmac_secret_key: text("hmac_secret_key"),
        hmac_previous_secret_key: text("hmac_previous_secret_key"),
        hmac_previous_secret_key_valid_until: root
            .integer(&path("hmac_previous_secret_key_valid_until")),
        jwks_public_endpoint: text("jwks_public_endpoint"),
        audience: text("audience"),
        audience_regex: text("audience_regex"),
        issuer: text("issuer"),
        issuer_regex: text("issuer_regex"),
        user_id_claim: text("user_id_claim"),
        skip_signature: root.flag("client.insecure_skip_token_signature_verify"),
    };
    for fault in options.faults() {
        report.errors.push(root.complaint(&path(fault.option), &fault.expected));
    }
    for name in ["rsa_public_key", "ecdsa_public_key"] {
        if !options.jwks_public_endpoint.is_empty() && !text(name).is_empty() {
            report.warnings.push(format!(
                "{}: not used beside {}",
                path(name),
                path("jwks_public_endpoint")
            ));
        }
    }
    options
}

/// PEM text: as it is given, of a file, or out of base64. An error says what was expected.
pub(super) fn pem(given: &str) -> Result<String, String> {
    const BEGIN: &str = "-----BEGIN";
    if given.is_empty() || given.contains(BEGIN) {
        return Ok(given.to_owned());
    }
    let packed: String = given.split_ascii_whitespace().collect();
    let decoded = STANDARD.decode(packed).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    if let Some(pem) = decoded.filter(|text| text.contains(BEGIN)) {
        return Ok(pem);
    }
    super::files::read(Path::new(given))
        .map_err(|fault| format!("a PEM text, a file with one, or base64 of one: {fault}"))
}

/// Names in a list match `^[-a-zA-Z0-9_.]{2,}$` (client protocol, section 13), each once.
fn check_names(settings: &Settings, list: &str, report: &mut Report) {
    let mut names = HashSet::new();
    let good = |name: &str| {
        name.len() >= 2
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    for (origin, scope) in settings.list(list) {
        let name = scope.name();
        if !good(name) {
            report.errors.push(format!(
                "{origin}: {list}: name = {name:?}: expected two or more letters, digits, \"-\", \
                 \"_\" or \".\""
            ));
        }
        if name == OWN_CHANNEL {
            report.errors.push(format!(
                "{origin}: {list}: name = {name:?}: expected another name: this one is the node's own"
            ));
        }
        if !names.insert(name) {
            report.errors.push(format!(
                "{origin}: {list}: name = {name:?}: expected a name that no other one has"
            ));
        }
    }
}

fn channels(settings: &Settings, proxies: &Proxies<'_>, report: &mut Report) -> ChannelRules {
    let root = &settings.root;
    check_names(settings, "channel.namespaces", report);
    let namespaces = settings.list("channel.namespaces");
    if namespaces.len() > NAMESPACES_MAX {
        report.errors.push(format!("channel.namespaces: expected at most {NAMESPACES_MAX}"));
    }
    let syntax = ChannelSyntax {
        length_max: root.size("channel.max_length"),
        private_prefix: root.text("channel.private_prefix"),
        namespace_boundary: root.text("channel.namespace_boundary"),
        user_boundary: root.text("channel.user_boundary"),
        user_separator: root.text("channel.user_separator"),
    };
    let without_namespace = settings.section("channel.without_namespace");
    let without_namespace = namespace(root, without_namespace, proxies, report);
    let namespaces = namespaces.iter();
    let namespaces = namespaces.map(|(_, scope)| namespace(root, scope, proxies, report)).collect();
    ChannelRules::new(without_namespace, namespaces, syntax)
}

fn namespace(root: &Scope, scope: &Scope, proxies: &Proxies<'_>, report: &mut Report) -> Namespace {
    let history_ttl_ms = scope.ms("history_ttl");
    let history_meta_ttl_ms = match scope.ms("history_meta_ttl") {
        0 => root.ms("channel.history_meta_ttl"),
        own => own,
    };
    let history_size = scope.size("history_size");
    if (history_size > 0) != (history_ttl_ms > 0) {
        let (missing, other) = match history_size {
            0 => ("history_size", "history_ttl"),
            _ => ("history_ttl", "history_size"),
        };
        let expected = format!("more than 0 beside {}", scope.full(other));
        report.errors.push(scope.complaint(missing, &expected));
    }
    if history_ttl_ms > history_meta_ttl_ms {
        let expected = format!("at most history_meta_ttl, which is {history_meta_ttl_ms}ms");
        report.errors.push(scope.complaint("history_ttl", &expected));
    }
    check_recovery(scope, report);
    let slow_policy = slow_policy(scope, report);
    if scope.ms("roost.write_delay") > WRITE_DELAY_MS_MAX {
        report.errors.push(scope.complaint("roost.write_delay", "at most 1s"));
    }
    let state_events = scope.list("roost.state_events");
    let namespace = Namespace {
        name: scope.name().into(),
        index: 0,
        history_size: history_size as u32,
        history_ttl_ms,
        history_meta_ttl_ms,
        allow_positioning: scope.flag("allow_positioning"),
        force_positioning: scope.flag("force_positioning"),
        allow_recovery: scope.flag("allow_recovery"),
        force_recovery: scope.flag("force_recovery"),
        recovery_mode: match scope.text("force_recovery_mode").as_str() {
            "cache" => RecoveryMode::Cache,
            _ => RecoveryMode::Stream,
        },
        auto_cache_recover: scope.flag("auto_cache_recover"),
        delta_allowed: !scope.list("allowed_delta_types").is_empty(),
        delta_publish: scope.flag("delta_publish"),
        allow_tags_filter: scope.flag("allow_tags_filter"),
        presence: scope.flag("presence"),
        join_leave: scope.flag("join_leave"),
        force_push_join_leave: scope.flag("force_push_join_leave"),
        occupied_events: state_events.iter().any(|event| event == "occupied"),
        vacated_events: state_events.iter().any(|event| event == "vacated"),
        allow_presence_for_client: scope.flag("allow_presence_for_client"),
        allow_presence_for_subscriber: scope.flag("allow_presence_for_subscriber"),
        allow_presence_for_anonymous: scope.flag("allow_presence_for_anonymous"),
        allow_subscribe_for_client: scope.flag("allow_subscribe_for_client"),
        allow_subscribe_for_anonymous: scope.flag("allow_subscribe_for_anonymous"),
        allow_publish_for_client: scope.flag("allow_publish_for_client"),
        allow_publish_for_subscriber: scope.flag("allow_publish_for_subscriber"),
        allow_publish_for_anonymous: scope.flag("allow_publish_for_anonymous"),
        allow_history_for_client: scope.flag("allow_history_for_client"),
        allow_history_for_subscriber: scope.flag("allow_history_for_subscriber"),
        allow_history_for_anonymous: scope.flag("allow_history_for_anonymous"),
        allow_user_limited_channels: scope.flag("allow_user_limited_channels"),
        channel_regex: channel_regex(scope, report),
        data_format: match scope.text("publication_data_format").as_str() {
            "" => data_format(&root.text("channel.publication_data_format")),
            own => data_format(own),
        },
        slow_policy,
        write_delay_ms: scope.ms("roost.write_delay"),
        uncompressed: !scope.flag("roost.compression"),
        history_time: scope.flag("roost.history_time"),
        subscribed_at: scope.flag("roost.subscribed_at"),
        subscribe_proxy: proxies.of_namespace(scope, "subscribe", report),
        publish_proxy: proxies.of_namespace(scope, "publish", report),
        sub_refresh_proxy: proxies.of_namespace(scope, "sub_refresh", report),
    };
    warn_of_delta(root, scope, &namespace, report);
    namespace
}

/// All proxies, those of sections and those with names.
struct Proxies<'s> {
    settings: &'s Settings,
    named: HashMap<&'s str, Arc<ProxyOptions>>,
    /// The proxies of sections, as far as they have an endpoint.
    sections: HashMap<&'static str, Arc<ProxyOptions>>,
}

/// Sections with a proxy.
const PROXY_SECTIONS: &[&str] = &[
    "client.proxy.connect",
    "client.proxy.refresh",
    "channel.proxy.subscribe",
    "channel.proxy.publish",
    "channel.proxy.sub_refresh",
    "rpc.proxy",
];

/// Headers that say how a message is framed, or where it goes: a call has its own.
const HEADERS_OF_CALLS: &[&str] =
    &["connection", "content-length", "host", "te", "trailer", "transfer-encoding", "upgrade"];

impl<'s> Proxies<'s> {
    fn new(settings: &'s Settings, report: &mut Report) -> Self {
        check_names(settings, "proxies", report);
        let mut named = HashMap::new();
        for (origin, scope) in settings.list("proxies") {
            if scope.name() == "default" {
                report.errors.push(format!(
                    "{origin}: proxies: name = \"default\": expected another name: this one is that \
                     of the section of each event"
                ));
            }
            if scope.text("endpoint").is_empty() {
                report.errors.push(scope.complaint("endpoint", "a URL"));
            }
            let options = proxy(settings, scope, scope.name(), report);
            named.insert(scope.name(), Arc::new(options));
        }
        let sections = PROXY_SECTIONS.iter().filter_map(|path| {
            let scope = settings.section(path);
            let has_endpoint = !scope.text("endpoint").is_empty();
            has_endpoint.then(|| (*path, Arc::new(proxy(settings, scope, path, report))))
        });
        let sections = sections.collect();
        Self { settings, named, sections }
    }

    /// The proxy of a section, where `wanted` says that it is used.
    fn of_section(
        &self,
        path: &str,
        wanted: impl FnOnce() -> String,
        report: &mut Report,
    ) -> Option<Arc<ProxyOptions>> {
        let found = self.sections.get(path).cloned();
        if found.is_none() {
            let expected = format!("a URL, since {} uses it", wanted());
            report.errors.push(self.settings.section(path).complaint("endpoint", &expected));
        }
        found
    }

    /// The proxy that `scope` names for an event: `EVENT_proxy_enabled` and `EVENT_proxy_name`, whose
    /// default is a section.
    fn named_by(
        &self,
        scope: &Scope,
        (enabled, name): (&str, &str),
        section: &str,
        report: &mut Report,
    ) -> Option<Arc<ProxyOptions>> {
        if !scope.flag(enabled) {
            return None;
        }
        let named = scope.text(name);
        if named == "default" {
            return self.of_section(section, || scope.full(enabled), report);
        }
        let found = self.named.get(named.as_str()).cloned();
        if found.is_none() {
            report.errors.push(scope.complaint(name, "\"default\", or the name of one of proxies"));
        }
        found
    }

    fn of_namespace(
        &self,
        scope: &Scope,
        event: &str,
        report: &mut Report,
    ) -> Option<Arc<ProxyOptions>> {
        let (enabled, name) = (format!("{event}_proxy_enabled"), format!("{event}_proxy_name"));
        self.named_by(scope, (&enabled, &name), &format!("channel.proxy.{event}"), report)
    }

    fn of_clients(&self, report: &mut Report) -> ClientProxies {
        let mut of_event = |path: &str| {
            let enabled = self.settings.section(path).flag("enabled");
            enabled.then(|| self.of_section(path, || format!("{path}.enabled"), report)).flatten()
        };
        let (connect, refresh) =
            (of_event("client.proxy.connect"), of_event("client.proxy.refresh"));
        let all = || self.named.values().chain(self.sections.values());
        let headers = |of: fn(&ProxyOptions) -> &[String]| -> BTreeSet<String> {
            all().flat_map(|proxy| of(proxy)).cloned().collect()
        };
        ClientProxies {
            connect,
            refresh,
            http_headers: headers(|proxy| &proxy.http_headers),
            emulated_headers: headers(|proxy| &proxy.emulated_headers),
        }
    }
}

fn rpc(settings: &Settings, proxies: &Proxies<'_>, report: &mut Report) -> RpcRules {
    let root = &settings.root;
    check_names(settings, "rpc.namespaces", report);
    let mut of = |scope: &Scope| {
        proxies.named_by(scope, ("proxy_enabled", "proxy_name"), "rpc.proxy", report)
    };
    RpcRules {
        ping: root.flag("rpc.ping.enabled").then(|| root.text("rpc.ping.method")),
        boundary: root.text("rpc.namespace_boundary"),
        without_namespace: of(settings.section("rpc.without_namespace")),
        namespaces: settings
            .list("rpc.namespaces")
            .iter()
            .map(|(_, scope)| (scope.name().to_owned(), of(scope)))
            .collect(),
    }
}

fn proxy(settings: &Settings, scope: &Scope, name: &str, report: &mut Report) -> ProxyOptions {
    let mut names = |path: &str| -> Vec<String> {
        let names: Vec<String> =
            scope.list(path).iter().map(|name| name.to_ascii_lowercase()).collect();
        if let Some(odd) = names.iter().find(|name| !may_be_sent(name)) {
            let expected = format!("names of headers that a call may have, not {odd:?}");
            report.errors.push(scope.complaint(path, &expected));
        }
        names
    };
    let (http_headers, emulated_headers) = (names("http_headers"), names("emulated_headers"));
    let timeout_ms = scope.ms("timeout");
    if timeout_ms == 0 {
        report.errors.push(scope.complaint("timeout", "more than 0"));
    }
    ProxyOptions {
        name: name.to_owned(),
        endpoint: scope.text("endpoint"),
        timeout_ms,
        http_headers,
        emulated_headers,
        static_headers: static_headers(settings, scope, report),
        binary_encoding: scope.flag("binary_encoding"),
        include_connection_meta: scope.flag("include_connection_meta"),
        transforms: serde_json::from_value(scope.json("http.status_to_code_transforms"))
            .unwrap_or_default(),
        tls: endpoint_tls(scope, report),
        concurrency: scope.size("roost.concurrency") as u32,
        breaker_failures: u32::try_from(scope.count("roost.breaker_failures")).unwrap_or(0),
        breaker_pause_ms: scope.ms("roost.breaker_pause"),
    }
}

/// The certificates of an endpoint, where they are not the machine's.
pub(super) fn endpoint_tls(scope: &Scope, report: &mut Report) -> Option<ProxyTls> {
    let tls = scope.flag("http.tls.enabled").then(|| {
        let mut pem = |name: &str| {
            let path = format!("http.tls.{name}");
            pem(&scope.text(&path)).unwrap_or_else(|expected| {
                report.errors.push(scope.complaint(&path, &expected));
                String::new()
            })
        };
        ProxyTls {
            server_ca_pem: pem("server_ca_pem"),
            server_name: scope.text("http.tls.server_name"),
            cert_pem: pem("cert_pem"),
            key_pem: pem("key_pem"),
            skip_verify: scope.flag("http.tls.insecure_skip_verify"),
        }
    });
    if tls.as_ref().is_some_and(|tls| tls.cert_pem.is_empty() != tls.key_pem.is_empty()) {
        let expected = format!("both, or neither of it and {}", scope.full("http.tls.key_pem"));
        report.errors.push(scope.complaint("http.tls.cert_pem", &expected));
    }
    if tls.as_ref().is_some_and(|tls| tls.skip_verify) {
        let danger = "anybody between here and the application can read and answer its calls";
        report.warnings.push(scope.remark("http.tls.insecure_skip_verify", danger));
    }
    tls
}

fn may_be_sent(name: &str) -> bool {
    hyper::header::HeaderName::from_bytes(name.as_bytes()).is_ok()
        && !HEADERS_OF_CALLS.contains(&name)
}

/// The headers of each call.
pub(super) fn static_headers(
    settings: &Settings,
    scope: &Scope,
    report: &mut Report,
) -> Vec<(String, String)> {
    const PATH: &str = "http.static_headers";
    let given: HashMap<String, String> =
        serde_json::from_value(scope.json(PATH)).unwrap_or_default();
    let mut headers = Vec::new();
    for (name, value) in given {
        let name = name.to_ascii_lowercase();
        match with_variables(&value, &settings.variables) {
            Err(variable) => {
                let expected = format!("a value without {variable}, or that variable to be set");
                report.errors.push(scope.complaint(PATH, &expected));
            }
            Ok(value)
                if may_be_sent(&name) && hyper::header::HeaderValue::from_str(&value).is_ok() =>
            {
                headers.push((name, value));
            }
            Ok(_) => {
                let expected = format!("headers that a call may have, unlike {name:?}");
                report.errors.push(scope.complaint(PATH, &expected));
            }
        }
    }
    headers.sort();
    headers
}

/// A text with `${VARIABLE}` replaced. An error is the name of one that isn't set.
fn with_variables(text: &str, variables: &HashMap<String, String>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("${") {
        let Some((name, after)) = behind.split_once('}') else { break };
        out += before;
        out += variables.get(name).ok_or_else(|| name.to_owned())?;
        rest = after;
    }
    Ok(out + rest)
}

/// Publications may be dropped only where nobody counts on each of them.
fn slow_policy(scope: &Scope, report: &mut Report) -> SlowPolicy {
    let policy = match scope.text("roost.slow_policy").as_str() {
        "drop_oldest" => SlowPolicy::DropOldest,
        "latest" => SlowPolicy::Latest,
        _ => SlowPolicy::Disconnect,
    };
    if policy.drops() && scope.text("force_recovery_mode") != "cache" {
        let positions =
            ["allow_positioning", "force_positioning", "allow_recovery", "force_recovery"];
        if let Some(path) = positions.into_iter().find(|path| scope.flag(path)) {
            let expected = format!(
                "disconnect beside {}, whose subscribers are to miss nothing, or \
                 force_recovery_mode = \"cache\"",
                scope.full(path)
            );
            report.errors.push(scope.complaint("roost.slow_policy", &expected));
        }
    }
    policy
}

/// Longest `roost.write_delay`: longer ones are a schedule, not a batch.
const WRITE_DELAY_MS_MAX: u64 = 1000;

/// Recovery reads the history, and the cache is its end.
fn check_recovery(scope: &Scope, report: &mut Report) {
    let is_cache = scope.text("force_recovery_mode") == "cache";
    // One of the two without the other was found before.
    if scope.size("history_size") == 0 && scope.ms("history_ttl") == 0 {
        for (path, wants, instead) in [
            ("allow_recovery", scope.flag("allow_recovery"), "false"),
            ("force_recovery", scope.flag("force_recovery"), "false"),
            ("force_recovery_mode", is_cache, "stream"),
        ] {
            if wants {
                let size = scope.full("history_size");
                let expected =
                    format!("{instead}, or history to recover from: {size} and history_ttl");
                report.errors.push(scope.complaint(path, &expected));
            }
        }
    }
    if scope.flag("auto_cache_recover") && !(is_cache && scope.flag("force_recovery")) {
        let expected =
            "false, or force_recovery = true and force_recovery_mode = \"cache\" beside it";
        report.errors.push(scope.complaint("auto_cache_recover", expected));
    }
}

/// Without history and positions all publications go full: more bytes, nothing lost (section 21.2).
fn warn_of_delta(root: &Scope, scope: &Scope, namespace: &Namespace, report: &mut Report) {
    let path = if namespace.delta_allowed {
        "allowed_delta_types"
    } else if namespace.delta_publish {
        "delta_publish"
    } else {
        return;
    };
    let positions = namespace.force_positioning
        || namespace.allow_positioning
        || namespace.force_recovery
        || namespace.allow_recovery
        || namespace.allow_history_for_client
        || namespace.allow_history_for_subscriber
        || root.flag("client.insecure");
    if namespace.history_size == 0 {
        let why = "publications go full: a delta needs history_size and history_ttl";
        report.warnings.push(scope.remark(path, why));
    } else if !positions {
        let why = "publications go full to all but those whose token forces positions: a delta \
                   needs one, and no option here grants any";
        report.warnings.push(scope.remark(path, why));
    }
}

fn channel_regex(scope: &Scope, report: &mut Report) -> Option<Regex> {
    let text = scope.text("channel_regex");
    if text.is_empty() {
        return None;
    }
    match Regex::new(&text) {
        Ok(regex) => Some(regex),
        Err(fault) => {
            let expected = format!("a regular expression without Unicode classes: {fault}");
            report.errors.push(scope.complaint("channel_regex", &expected));
            None
        }
    }
}

fn data_format(text: &str) -> DataFormat {
    match text {
        "json" => DataFormat::Json,
        "json_object" => DataFormat::JsonObject,
        "binary" => DataFormat::Binary,
        _ => DataFormat::NotEmpty,
    }
}

/// Host names as they stand in a `Host` header, without its port.
fn allowed_hosts(root: &Scope, report: &mut Report) -> Vec<String> {
    let names = root.list("roost.allowed_hosts");
    let is_name = |name: &String| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    if !names.iter().all(is_name) {
        let expected = "host names such as \"dev.example.com\", without a scheme, a port or \"*\"";
        report.errors.push(root.complaint("roost.allowed_hosts", expected));
    }
    names.iter().map(|name| name.to_ascii_lowercase()).collect()
}

/// How clients' addresses become known.
fn address_sources(root: &Scope, report: &mut Report) -> AddressSources {
    const TRUSTED: &str = "roost.trusted_proxies";
    let trusted = TrustedPeers::new(&root.list(TRUSTED)).unwrap_or_else(|fault| {
        report.errors.push(root.complaint(TRUSTED, &fault.to_string()));
        TrustedPeers::default()
    });
    AddressSources {
        proxy_protocol: root.flag("roost.proxy_protocol"),
        header: match root.text("roost.client_address_header").as_str() {
            "X-Forwarded-For" => Some(ForwardedHeader::XForwardedFor),
            "Forwarded" => Some(ForwardedHeader::Forwarded),
            _ => None,
        },
        trusted,
    }
}

fn roost(root: &Scope, report: &mut Report) -> Roost {
    let io = match root.text("roost.io").as_str() {
        "auto" => Io::Auto,
        "uring" => Io::Uring,
        _ => Io::Epoll,
    };
    let shards = root.text("roost.shards");
    Roost {
        shards: match (shards.as_str(), table::shards(&shards)) {
            ("auto", _) => Shards::Auto,
            (_, None | Some(0)) => Shards::Cores,
            (_, Some(count)) => Shards::Count(count),
        },
        io,
        pin: match root.text("roost.pin").as_str() {
            "on" => Pin::On,
            "off" => Pin::Off,
            _ => Pin::Auto,
        },
        turn_deliveries: root.integer("roost.turn_deliveries") as u32,
        broker_window_bytes: root.size("roost.broker_window"),
        allowed_hosts: allowed_hosts(root, report),
        echo: root.flag("roost.echo"),
        drain_rate: root.count("roost.drain_rate"),
        memory_limit: match table::memory(&root.text("roost.memory_limit")) {
            Some(Ok(bytes)) => MemoryLimit::Bytes(bytes),
            Some(Err(percent)) => MemoryLimit::Percent(percent),
            None => MemoryLimit::Percent(80),
        },
        channels_max: root.size("roost.channels_max"),
        handshake_timeout_ms: root.ms("roost.handshake_timeout"),
        idle_timeout_ms: root.ms("roost.idle_timeout"),
        close_timeout_ms: root.ms("roost.close_timeout"),
        health_loop_lag_ms: root.ms("roost.health_loop_lag"),
        health_connections: root.count("roost.health_connections") as u8,
        health_broker: root.flag("roost.health_broker"),
        start_without_broker: root.flag("roost.start_without_broker"),
        send_buffer_bytes: root.size("roost.send_buffer"),
        notsent_lowat_bytes: root.size("roost.notsent_lowat"),
        spin_us: root.count("roost.spin"),
        incoming_cpu: root.flag("roost.incoming_cpu"),
        addresses: address_sources(root, report),
        address_limits: AddressOptions {
            connections: root.count("roost.connections_per_address") as u32,
            connections_per_second: root.count("roost.connection_rate_per_address") as u32,
            unfinished_bytes: root.count("roost.unfinished_bytes_per_address"),
            signature_checks: root.count("roost.signature_checks_per_address") as u32,
        },
        takeover: takeover(root, report),
    }
}

/// The path of the takeover socket.
fn takeover(root: &Scope, report: &mut Report) -> Option<PathBuf> {
    let path = root.path("roost.takeover")?;
    if path.as_os_str().len() > UNIX_PATH_BYTES_MAX {
        let expected = format!("a path of at most {UNIX_PATH_BYTES_MAX} bytes");
        report.errors.push(root.complaint("roost.takeover", &expected));
    }
    Some(path)
}

fn level(text: &str) -> LevelFilter {
    match text {
        "none" => LevelFilter::OFF,
        "trace" => LevelFilter::TRACE,
        "debug" => LevelFilter::DEBUG,
        "warn" => LevelFilter::WARN,
        "error" => LevelFilter::ERROR,
        _ => LevelFilter::INFO,
    }
}

fn warn_of_danger(root: &Scope, report: &mut Report) {
    for (path, danger) in [
        ("client.insecure", "every client may do everything without a token"),
        ("client.insecure_skip_token_signature_verify", "anybody can make a token for any user"),
        ("http_api.insecure", "every client that reaches the server API has full access"),
        ("admin.insecure", "every client that reaches the admin page has full access"),
    ] {
        if root.flag(path) {
            let origin = root.setting(path).map_or("", |setting| setting.origin.as_str());
            report.warnings.push(format!("{origin}: {path} = true: {danger}"));
        }
    }
}

/// Values by path. A path or kind that the table doesn't have is a fault of this file, and the
/// first test that builds a configuration meets it.
impl Scope {
    fn value(&self, path: &str) -> Value {
        match self.setting(path) {
            Some(setting) => setting.value.clone(),
            None => self
                .row(path)
                .and_then(default)
                .unwrap_or_else(|| unreachable!("{path} is no option with a default")),
        }
    }

    pub(super) fn flag(&self, path: &str) -> bool {
        self.value(path) == Value::Bool(true)
    }

    pub(super) fn integer(&self, path: &str) -> i64 {
        match self.value(path) {
            Value::Integer(value) => value,
            other => unreachable!("{path} is {other:?}"),
        }
    }

    /// The kinds of these options have no negative numbers.
    fn count(&self, path: &str) -> u64 {
        self.integer(path).unsigned_abs()
    }

    pub(super) fn size(&self, path: &str) -> usize {
        usize::try_from(self.count(path)).unwrap_or(usize::MAX)
    }

    pub(super) fn text(&self, path: &str) -> String {
        match self.value(path) {
            Value::Text(text) => text,
            other => unreachable!("{path} is {other:?}"),
        }
    }

    pub(super) fn path(&self, path: &str) -> Option<PathBuf> {
        Some(self.text(path)).filter(|text| !text.is_empty()).map(PathBuf::from)
    }

    pub(super) fn list(&self, path: &str) -> Vec<String> {
        match self.value(path) {
            Value::List(items) => items,
            other => unreachable!("{path} is {other:?}"),
        }
    }

    pub(super) fn json(&self, path: &str) -> serde_json::Value {
        match self.value(path) {
            Value::Json(json) => json,
            other => unreachable!("{path} is {other:?}"),
        }
    }

    /// Milliseconds; `None` is off, which 0 means too.
    fn duration(&self, path: &str) -> Option<u64> {
        Some(self.ms(path)).filter(|&ms| ms > 0)
    }

    /// Milliseconds, 0 for off.
    pub(super) fn ms(&self, path: &str) -> u64 {
        match self.value(path) {
            Value::Duration(duration) => {
                duration.map_or(0, |value| u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
            }
            other => unreachable!("{path} is {other:?}"),
        }
    }
}
