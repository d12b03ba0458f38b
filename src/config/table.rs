//! All options: the one place that knows their names, kinds, defaults and what is built of them.
//! Flags, names in the environment, `config default` and `config check` are made from it.
//!
//! Names, kinds and defaults are those of a Centrifugo configuration (client protocol, section 26),
//! and `roost.*` are roost's own.

use std::sync::LazyLock;

use super::transforms::{DisconnectTransform, ResponseTransform};
use super::value::{Kind, bytes};
use crate::edge::proxy::StatusTransform;

/// An option.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opt {
    /// Path from the root, or from the namespace.
    pub path: &'static str,
    /// The kind of its value.
    pub kind: Kind,
    /// Default, as TOML.
    pub default: &'static str,
    /// How much of it is built.
    pub class: Class,
    /// One sentence.
    pub doc: &'static str,
}

/// A section whose options stand in a table of their own, since there are several like it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Path from the root.
    pub path: &'static str,
    /// One sentence.
    pub about: &'static str,
    /// Path of the section that has the same options, and is printed with them; or nothing.
    pub like: &'static str,
    /// Its options.
    pub rows: &'static [Opt],
    /// It is a list of such sections, each with a name.
    pub is_list: bool,
}

/// The effect of an option on roost.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Class {
    /// It has its documented effect.
    Built,
    /// Nothing, since it has a meaning only beside an option that is refused, or none here. The text is the
    /// argument for that.
    Silent(&'static str),
    /// Warns: neither safety nor delivery change without it. The text is the argument for that, and the
    /// warning.
    Harmless(&'static str),
    /// Stops: without it the node would be less safe, or lose messages.
    Refused(&'static str),
    /// Stops, if this other option is true.
    RefusedWith(&'static str, &'static str),
}

use Class::{Built, Harmless, Refused, RefusedWith, Silent};
use Kind::{
    Any, Bool, Checked, Choice, Choices, Duration, DurationOrOff, Integer, Json, List, Text,
};

const COUNT: Kind = Integer(0, i64::MAX);
const SIZE: Kind = Integer(1, i32::MAX as i64);
const LIMIT: Kind = Integer(0, i32::MAX as i64);
const LEVEL: Kind = Integer(-2, 9);
const RESPONSES: &str = "a list of {code, to = {status_code, body}}";
const DISCONNECTS: &str = "a list of {code, to = {code, reason}}";
const PORT: Kind = Integer(0, 65_535);

const HTTP3: &str = "HTTP/3 isn't built yet; clients use HTTP/1.1 over TLS";
const SERVER_SIDE: &str = "clients verify servers with it, and a listener is a server";
const STREAM: &str = "stream proxies need gRPC, which isn't built yet";
const GRPC: &str = "has an effect only with a grpc:// endpoint, which is refused";
const KEYS: &str = "only jwks_public_endpoint is built yet";
const TRANSPORT: &str = "this transport isn't built yet";
const MAP: &str = "map subscriptions aren't built yet";
const GONE: &str = "the path answers 404; neither access nor delivery depends on it";

// Arguments of rows that are accepted in silence.
const SWITCHED_OFF: &str = "has an effect only with enabled = true, which is refused";
const STREAMS: &str = "has an effect only with subscribe_stream_proxy_enabled, which is refused";
const TYPED: &str = "has an effect only with another subscription_type, which is refused";

const fn opt(
    path: &'static str,
    kind: Kind,
    default: &'static str,
    class: Class,
    doc: &'static str,
) -> Opt {
    Opt { path, kind, default, class, doc }
}

/// Something that isn't built and has no documentation here.
const fn other(path: &'static str, kind: Kind, default: &'static str, class: Class) -> Opt {
    Opt { path, kind, default, class, doc: "" }
}

/// Options from the root. Those of one section stand together.
#[rustfmt::skip]
pub(crate) static OPTIONS: &[Opt] = &[
    opt("pid_file", Text, "\"\"", Built, "File for the process id; it is locked while the node runs."),

    opt("http_server.address", Text, "\"\"", Built, "IP address to listen on, or \"unix:\" and the path of a socket; empty: all addresses."),
    opt("http_server.port", PORT, "8000", Built, "Port to listen on; 0: a free port."),
    opt("http_server.internal_address", Text, "\"\"", Built, "IP address of the internal port, or \"unix:\" and the path of a socket; empty: http_server.address."),
    opt("http_server.internal_port", Text, "\"\"", Built, "Port for the server API, metrics, health and the admin page with its WebSocket, instead of the public port; empty: they are on the public port."),
    opt("http_server.tls_external", Bool, "false", Built, "Use http_server.tls at the public port only: the internal port then speaks TLS with internal_tls, or none."),
    opt("http_server.tls_autocert.enabled", Bool, "false", Built, "Obtain certificates of the public port from an ACME server (Let's Encrypt and others), and renew them."),
    opt("http_server.tls_autocert.host_whitelist", List, "[]", Built, "Names of the hosts that certificates are obtained for, one each; there has to be one at least."),
    opt("http_server.tls_autocert.cache_dir", Text, "\"\"", Built, "Directory for the account's key, certificates and their keys; several nodes may share it. Required."),
    opt("http_server.tls_autocert.email", Text, "\"\"", Built, "Address that the ACME server may write to."),
    opt("http_server.tls_autocert.server_name", Text, "\"\"", Built, "Host whose certificate clients get that name none; empty: the first of host_whitelist."),
    opt("http_server.tls_autocert.http", Bool, "false", Built, "Answer HTTP-01 challenges at http_addr, and send other requests there to https. Without it, TLS-ALPN-01 challenges at the public port are used, which has to be reached at port 443."),
    opt("http_server.tls_autocert.http_addr", Text, "\":80\"", Built, "Address and port of that listener, such as \":80\" or \"192.0.2.1:80\"."),
    other("http_server.http3.enabled", Bool, "false", Refused(HTTP3)),
    other("http_server.h2c_external", Bool, "false", Harmless("clients use HTTP/1.1, over which every transport works")),

    opt("http_server.tls.enabled", Bool, "false", Built, "Speak TLS at the public port, and at the internal port unless tls_external or internal_tls.enabled is on."),
    opt("http_server.tls.cert_pem", Text, "\"\"", Built, "Certificate, and those that it is signed by: PEM, a file with it, or its base64. Files are read again at SIGHUP and when they change."),
    opt("http_server.tls.key_pem", Text, "\"\"", Built, "Private key of that certificate, in the same form; one of P-256 is the fastest."),
    opt("http_server.tls.client_ca_pem", Text, "\"\"", Built, "Authorities, in the same form: each client then needs a certificate that one of them has signed."),
    other("http_server.tls.server_ca_pem", Text, "\"\"", Silent(SERVER_SIDE)),
    other("http_server.tls.server_name", Text, "\"\"", Silent(SERVER_SIDE)),
    other("http_server.tls.insecure_skip_verify", Bool, "false", Silent(SERVER_SIDE)),

    opt("http_server.internal_tls.enabled", Bool, "false", Built, "Speak TLS at the internal port with the options of this section."),
    opt("http_server.internal_tls.cert_pem", Text, "\"\"", Built, "As in http_server.tls."),
    opt("http_server.internal_tls.key_pem", Text, "\"\"", Built, "As in http_server.tls."),
    opt("http_server.internal_tls.client_ca_pem", Text, "\"\"", Built, "As in http_server.tls."),
    other("http_server.internal_tls.server_ca_pem", Text, "\"\"", Silent(SERVER_SIDE)),
    other("http_server.internal_tls.server_name", Text, "\"\"", Silent(SERVER_SIDE)),
    other("http_server.internal_tls.insecure_skip_verify", Bool, "false", Silent(SERVER_SIDE)),

    opt("log.level", Choice(&["none", "trace", "debug", "info", "warn", "error"]), "\"info\"", Built, "Minimum level of log messages."),
    opt("log.file", Text, "\"\"", Built, "File to log to; empty: standard error."),

    opt("client.allowed_origins", List, "[]", Built, "Web pages that may connect: globs over the Origin header. \"*\" allows all; an empty list allows only requests without the header."),
    opt("client.allow_anonymous_connect_without_token", Bool, "false", Built, "Clients without a token may connect, with an empty user id."),
    opt("client.disallow_anonymous_connection_tokens", Bool, "false", Built, "Refuse tokens with an empty user id."),
    opt("client.ping_interval", DurationOrOff, "\"25s\"", Built, "Interval of the server's pings to a client; -1: no pings."),
    opt("client.pong_timeout", DurationOrOff, "\"8s\"", Built, "Time that a client has to answer a ping, less than the interval; -1: no pongs required."),
    opt("client.expired_close_delay", Duration, "\"25s\"", Built, "Time that a client has to refresh an expired connection before it is closed."),
    opt("client.expired_sub_close_delay", Duration, "\"25s\"", Built, "Time that a client has to refresh an expired subscription before it ends."),
    opt("client.stale_close_delay", Duration, "\"10s\"", Built, "Time that an open connection has to send its connect command."),
    opt("client.channel_limit", SIZE, "128", Built, "Maximum number of subscriptions of a connection."),
    opt("client.queue_max_size", SIZE, "1048576", Built, "Maximum bytes queued for a client; above it the client is closed as slow."),
    opt("client.connection_limit", COUNT, "0", Built, "Maximum number of connected clients of this node; 0: as many as the machine holds. Open connections that have not sent connect do not count."),
    opt("client.connection_rate_limit", COUNT, "0", Built, "Maximum number of new connections per second; 0: no limit."),
    opt("client.user_connection_limit", LIMIT, "0", Built, "Maximum number of connections of one user to this node, whatever it has to others; 0: no limit."),
    opt("client.concurrency", Integer(0, 64), "0", Built, "Proxy calls that one client may have in flight. 0 or 1: one, which keeps its commands in order."),
    opt("client.history_max_publication_limit", LIMIT, "300", Built, "Maximum number of publications in one answer to a history call; 0: no limit."),
    opt("client.recovery_max_publication_limit", LIMIT, "300", Built, "Maximum number of publications that one subscription recovers; 0: no limit."),
    opt("client.connect_include_server_time", Bool, "false", Built, "Send the server's time in the reply to connect."),
    opt("client.user_id_http_header", Text, "\"\"", Built, "Request header with the user id of a client without a token; only behind a trusted proxy that sets it."),
    opt("client.insecure", Bool, "false", Built, "No token and no permission is needed for anything. For tests only."),
    opt("client.insecure_skip_token_signature_verify", Bool, "false", Built, "Accept tokens without verifying their signature. For tests only."),
    other("client.presence_update_interval", Duration, "\"27s\"", Harmless("presence is exact and needs no refresh")),
    other("client.channel_position_check_delay", Duration, "\"40s\"", Harmless("gaps are detected when they happen")),
    other("client.channel_position_max_time_lag", Duration, "\"0s\"", Harmless("gaps are detected when they happen")),

    opt("client.connect_code_to_unidirectional_disconnect.enabled", Bool, "false", Built, "Close one-way connections whose connect fails with configured codes."),
    opt("client.connect_code_to_unidirectional_disconnect.transforms", Json(is_disconnects, DISCONNECTS), "[]", Built, "Errors to replace, each with its code and reason."),

    opt("client.subscribe_to_user_personal_channel.enabled", Bool, "false", Built, "Subscribe each user with an id to its personal channel, #user, when it connects."),
    opt("client.subscribe_to_user_personal_channel.personal_channel_namespace", Text, "\"\"", Built, "Namespace of personal channels; empty: none."),
    opt("client.subscribe_to_user_personal_channel.single_connection", Bool, "false", Built, "A new connection of a user closes the older ones to the same node; needs presence in that namespace."),

    opt("client.token.hmac_secret_key", Text, "\"\"", Built, "Secret that signs client tokens (HS256, HS384, HS512)."),
    opt("client.token.hmac_previous_secret_key", Text, "\"\"", Built, "Previous secret, still accepted after a rotation."),
    opt("client.token.hmac_previous_secret_key_valid_until", COUNT, "0", Built, "End of its validity, Unix seconds; 0: no end."),
    opt("client.token.audience", Text, "\"\"", Built, "Audience that the aud of a token has to contain."),
    opt("client.token.issuer", Text, "\"\"", Built, "Issuer that the iss of a token has to be."),
    opt("client.token.audience_regex", Text, "\"\"", Built, "Regular expression that one aud of a token has to match; replaces audience."),
    opt("client.token.issuer_regex", Text, "\"\"", Built, "Regular expression that the iss of a token has to match; replaces issuer."),
    opt("client.token.rsa_public_key", Text, "\"\"", Built, "Public key of client tokens (RS256, RS384, RS512): PEM, a file with it, or its base64."),
    opt("client.token.ecdsa_public_key", Text, "\"\"", Built, "Public key of client tokens (ES256, ES384 or ES512, by its curve): PEM, a file with it, or its base64."),
    opt("client.token.jwks_public_endpoint", Text, "\"\"", Built, "URL of a JWK Set with public keys (RSA, EC, Ed25519), selected by kid; {{name}} is a group of audience_regex or issuer_regex."),
    opt("client.token.user_id_claim", Text, "\"\"", Built, "Claim with the user id instead of sub: a name, or a path with \".\" between levels."),
    other("client.token.jwks", Any, "", Refused(KEYS)),

    opt("client.subscription_token.enabled", Bool, "false", Built, "Subscription tokens use the keys of this section instead of those of client.token."),
    opt("client.subscription_token.hmac_secret_key", Text, "\"\"", Built, "As in client.token."),
    opt("client.subscription_token.hmac_previous_secret_key", Text, "\"\"", Built, "As in client.token."),
    opt("client.subscription_token.hmac_previous_secret_key_valid_until", COUNT, "0", Built, "As in client.token."),
    opt("client.subscription_token.audience", Text, "\"\"", Built, "As in client.token."),
    opt("client.subscription_token.issuer", Text, "\"\"", Built, "As in client.token."),
    opt("client.subscription_token.audience_regex", Text, "\"\"", Built, "As in client.token."),
    opt("client.subscription_token.issuer_regex", Text, "\"\"", Built, "As in client.token."),
    opt("client.subscription_token.rsa_public_key", Text, "\"\"", Built, "As in client.token."),
    opt("client.subscription_token.ecdsa_public_key", Text, "\"\"", Built, "As in client.token."),
    opt("client.subscription_token.jwks_public_endpoint", Text, "\"\"", Built, "As in client.token."),
    opt("client.subscription_token.user_id_claim", Text, "\"\"", Built, "As in client.token."),
    other("client.subscription_token.jwks", Any, "", RefusedWith("client.subscription_token.enabled", KEYS)),

    opt("channel.max_length", Integer(1, 65_535), "255", Built, "Maximum bytes of a channel name."),
    opt("channel.private_prefix", Text, "\"$\"", Built, "Prefix of channels that need a subscription token; empty: no such prefix."),
    opt("channel.namespace_boundary", Text, "\":\"", Built, "Separator behind the namespace in a channel name."),
    opt("channel.user_boundary", Text, "\"#\"", Built, "Separator before the list of users in the name of a user-limited channel."),
    opt("channel.user_separator", Text, "\",\"", Built, "Separator between these users."),
    opt("channel.history_meta_ttl", Duration, "\"720h\"", Built, "Time for which offset and epoch of a channel are kept after its last publication."),
    opt("channel.publication_data_format", FORMAT, "\"\"", Built, "Allowed data of publications: json, json_object, binary, or \"\": JSON from clients, anything but empty data from the application."),
    other("channel.proxy", Any, "", Silent("its sections have tables of their own; the rest belongs to stream proxies, which are refused")),

    opt("websocket.disabled", Bool, "false", Built, "Disable the WebSocket endpoint."),
    opt("websocket.handler_prefix", PATH, "\"/connection/websocket\"", Built, "Path of the endpoint."),
    opt("websocket.write_timeout", Duration, "\"1000ms\"", Built, "Time after which a client whose socket accepts no bytes is closed."),
    opt("websocket.message_size_limit", SIZE, "65536", Built, "Maximum bytes of a client's message."),
    opt("websocket.compression", Bool, "false", Built, "Compress messages for clients that offer permessage-deflate, where that makes them shorter."),
    opt("websocket.compression_min_size", COUNT, "0", Built, "Messages of fewer bytes are sent plain, as are all below 64 bytes."),
    opt("websocket.compression_level", LEVEL, "1", Built, "Compression level: 1 is fastest, 9 smallest."),
    opt("websocket.decompressed_message_size_limit", COUNT, "0", Built, "Maximum bytes of a client's message after decompression; 0: ten times message_size_limit."),
    other("websocket.read_buffer_size", COUNT, "0", Harmless("connections own no buffers")),
    other("websocket.write_buffer_size", COUNT, "0", Harmless("connections own no buffers")),
    other("websocket.use_write_buffer_pool", Bool, "false", Harmless("connections own no buffers")),

    opt("shutdown.timeout", Duration, "\"30s\"", Built, "Maximum time to close all connections at shutdown."),

    opt("rpc.namespace_boundary", Text, "\":\"", Built, "Separator behind the namespace in a method name."),
    opt("rpc.ping.enabled", Bool, "false", Built, "Answer an RPC method with {}, so that clients can measure the round trip."),
    opt("rpc.ping.method", Text, "\"ping\"", Built, "Name of that method."),

    opt("node.name", Text, "\"\"", Built, "Name of this node; empty: host name and port."),
    opt("node.info_metrics_aggregate_interval", Duration, "\"60s\"", Built, "Time between two publications of this node's metrics to other nodes, for their `info`."),

    opt("roost.shards", Checked(is_shards, SHARDS), "\"cores\"", Built, "Threads that hold connections: \"cores\" (as many as usable cores), \"auto\" (more where the descriptor limit requires it) or a number."),
    opt("roost.io", Choice(&["auto", "epoll", "uring"]), "\"epoll\"", Built, "I/O driver: epoll (a system call for each read and write), uring (batches of them through io_uring), or auto: io_uring where the kernel has it."),
    opt("roost.pin", Choice(&["auto", "on", "off"]), "\"auto\"", Built, "Pin each shard's thread to a CPU. auto: only where the node has its CPUs for itself (isolated CPUs, a cgroup partition, an affinity mask smaller than the machine). Beside busy processes a pinned shard stalls."),
    opt("roost.turn_deliveries", Integer(64, 65_536), "512", Built, "Deliveries in one turn of a shard's loop: a lower value shortens the wait of new connections, a higher one costs less CPU."),
    opt("roost.log_format", Choice(&["text", "json"]), "\"text\"", Built, "Format of log lines: text or JSON objects."),
    opt("roost.allowed_hosts", List, "[]", Built, "Host names, without a port, that a development node or an admin page without a password accepts, beside localhost and the node's own addresses."),
    opt("roost.demo", Bool, "false", Built, "Serve /demo, a page on which two clients talk."),
    opt("roost.demo_sdk", Text, "\"\"", Built, "File with the JavaScript SDK for that page (centrifuge.js); empty: fetched once from the npm registry."),
    opt("roost.echo", Bool, "false", Built, "Serve /echo, a plain WebSocket echo for conformance and load tests."),
    opt("roost.drain_rate", COUNT, "10000", Built, "Connections closed per second at shutdown; 0: evenly over shutdown.timeout."),
    opt("roost.memory_limit", Checked(is_memory, MEMORY), "\"80%\"", Built, "Memory that the node may use: bytes, \"12GiB\" or a share of the machine or its cgroup. History ends a sixteenth below it; above it everything that grows is refused."),
    opt("roost.channels_max", SIZE, "4000000", Built, "Maximum number of channels; above it the oldest without subscribers is forgotten."),
    opt("roost.handshake_timeout", Duration, "\"10s\"", Built, "Time that a request has to arrive completely."),
    opt("roost.idle_timeout", Duration, "\"2m\"", Built, "Idle time after which a kept HTTP connection is closed. Behind a load balancer that pools connections it has to be longer than the balancer's own idle timeout (600 s with some), so that the balancer closes first. An `/echo` connection that is silent for that time is pinged, and closed if it stays silent."),
    opt("roost.close_timeout", Duration, "\"5s\"", Built, "Time to wait for the answer to a close frame."),
    opt("roost.health_loop_lag", Duration, "\"1s\"", Built, "/health answers 503 while the p99 of a loop's lag within a second is longer; 0: no limit."),
    opt("roost.health_connections", Integer(1, 100), "100", Built, "/health answers 503 when this percentage of the connection limit is reached."),
    opt("roost.health_broker", Bool, "false", Built, "/health answers 503 while /ready does for the broker's sake: for a load balancer that knows one check only."),
    opt("roost.ready_prefix", PATH, "\"/ready\"", Built, "Path of the readiness check, which is there with health.enabled: like /health, and 503 while the broker is unreachable, doesn't deliver, or is being subscribed again."),
    opt("roost.start_without_broker", Bool, "false", Built, "Start although the broker is unreachable: clients connect, and requests that need it get errors that are temporary. Otherwise the node ends."),
    opt("roost.send_buffer", BUFFER, "0", Built, "Bytes of a connection's send buffer in the kernel (SO_SNDBUF), which bound the bytes on their way to a client; 0: as many as the congestion window of the connection needs."),
    opt("roost.notsent_lowat", BUFFER, "16384", Built, "Unsent bytes in that buffer at which a connection counts as blocked (TCP_NOTSENT_LOWAT); 0: the kernel's default."),
    opt("roost.spin", Integer(0, 1_000_000), "0", Built, "Microseconds that a shard polls before it sleeps (busy polling): a message that comes meanwhile is answered some microseconds earlier, and a shard with little to do takes a whole core. 0: it sleeps at once."),
    opt("roost.incoming_cpu", Bool, "false", Built, "A new connection comes to the shard on whose CPU its packets arrive (SO_INCOMING_CPU), where shards are pinned: for a network card with a receive queue for each CPU. With one queue all connections would come to one shard. false: the kernel spreads them evenly."),
    opt("roost.socket_mode", Checked(is_socket_mode, SOCKET_MODE), "\"0660\"", Built, "Mode of the file of a Unix socket: processes that may write to it may connect."),
    opt("roost.proxy_protocol", Bool, "false", Built, "Connections of trusted_proxies begin with a PROXY header (version 1 or 2) with the client's address; connections without one are closed."),
    opt("roost.trusted_proxies", List, r#"["127.0.0.0/8", "::1", "unix"]"#, Built, "Peers that may report client addresses: addresses and networks; \"unix\": peers of a Unix socket. Only effective with proxy_protocol or client_address_header."),
    opt("roost.client_address_header", Choice(&["", "X-Forwarded-For", "Forwarded"]), "\"\"", Built, "Request header in which trusted_proxies report the client: its last address that is not trusted; empty: no header."),
    opt("roost.connections_per_address", Integer(0, 1 << 31), "0", Built, "Maximum number of connections of one address, or of one IPv6 network of 64 bits; more are answered with 429. 0: no limit."),
    opt("roost.connection_rate_per_address", Integer(0, 10_000), "0", Built, "Rate limit of new connections of one address per second, that many at once; more are answered with 429. 0: no limit."),
    opt("roost.unfinished_bytes_per_address", Integer(0, 1 << 39), "0", Built, "Maximum bytes of incomplete requests of one address; more are answered with 429. 0: no limit."),
    opt("roost.signature_checks_per_address", Integer(0, 1 << 31), "0", Built, "Unanswered checks of RSA, EC or Ed25519 token signatures of one address, or of one IPv6 network of 64 bits; above it error 111, which is temporary. 0: no limit."),
    opt("roost.broker_threads", Integer(1, 64), "1", Built, "Threads for the connections to Redis or NATS."),
    opt("roost.broker_partitions", Integer(0, 4096), "0", Built, "Partitions of the channels in a Redis Cluster of version 7: the messages of each go by sharded PUB/SUB, which only the owner of its slot carries, so that more masters carry more messages. A node has a connection for each partition and shard. The same on all nodes. 0: ordinary PUB/SUB, which every node of the Cluster carries."),
    opt("roost.broker_partition_tags", Choice(&["balanced", "numbers"]), "\"balanced\"", Built, "Hash tags of these partitions: balanced ones divide the slots evenly (16, 32, 64, 128 or 256 partitions); with numbers some masters may have none. The same on all nodes."),
    opt("roost.broker_window", Integer(0, 1 << 40), "67108864", Built, "Bytes of the newest publications of channels in Redis that the node keeps: clients that come back are answered from there, without a read. 0: none."),
    opt("roost.nats_interest", Choice(&["channels", "all"]), "\"channels\"", Built, "Subscriptions at NATS: one of each channel that has subscribers here, which costs about 7 KB here and 1 KB at the server, or one of all channels: then every publication comes to this node, whoever it is for. Patterns have one of their own in any case."),
    opt("roost.acme_directory", Text, "\"https://acme-v02.api.letsencrypt.org/directory\"", Built, "Directory of the ACME server of http_server.tls_autocert."),
    opt("roost.acme_ca_pem", Text, "\"\"", Built, "Authorities of that server's own certificate: PEM, a file with it, or its base64; empty: those of this machine."),
    opt("roost.tls_self_signed", Bool, "false", Built, "Speak TLS at the public port with a certificate that the node makes at its start and that nobody has signed: for trials. Its fingerprint is printed."),
    opt("roost.tls_ticket_keys", Text, "\"\"", Built, "File with keys of TLS session tickets, so that clients resume at any node that has it: a line of base64 of 32 bytes each; the first seals, all open. It is read again when it changes. Empty: keys of the node's own, a new one each tls_ticket_period."),
    opt("roost.tls_ticket_period", Duration, "\"12h\"", Built, "Time for which one key of the node's own seals TLS session tickets; they are accepted for twice as long."),
    opt("roost.tls_handshakes_max", Integer(16, 1_000_000), "16384", Built, "Maximum number of TLS handshakes under way, of 5 to 11 KB each; one more ends the one that has been under way for longest."),
    opt("roost.takeover", Text, "\"\"", Built, "Path of a Unix socket at which a new process takes over all connections of the running node, such as one of a new version: the same user starts `roost serve` with the same path. If no node listens there, it is an ordinary start. Empty: none."),

    opt("engine.type", Text, "\"memory\"", Built, "Where channels and presence are kept: memory: in this node; redis: in Redis, for all nodes."),
    other("engine.nats", Any, "", Silent("no engine has these options")),
    opt("broker.enabled", Bool, "false", Built, "Keep channels elsewhere than the engine does."),
    opt("broker.type", Text, "\"memory\"", Built, "Where: memory, redis or nats."),
    other("broker.redisnats", Any, "", Silent("has an effect only with broker.type = \"redisnats\", which is refused")),
    other("broker.postgres", Any, "", Silent("has an effect only with broker.type = \"postgres\", which is refused")),
    opt("presence_manager.enabled", Bool, "false", Built, "Keep presence elsewhere than the engine does."),
    opt("presence_manager.type", Text, "\"memory\"", Built, "Where: memory; redis; or nodes: each node keeps its own clients, and presence is a question to all nodes, without a store."),
    other("map_broker.type", Text, "\"memory\"", Harmless("map subscriptions alone use it, and a namespace with some is refused")),
    other("map_broker", Any, "", Silent(TYPED)),
    other("controller.enabled", Bool, "false", Refused("messages among nodes go over the engine or the broker")),
    other("controller", Any, "", Silent(SWITCHED_OFF)),


    opt("http_stream.enabled", Bool, "false", Built, "Serve the client protocol over a streaming HTTP response, for clients without a WebSocket."),
    opt("http_stream.handler_prefix", PATH, "\"/connection/http_stream\"", Built, "Path of the endpoint."),
    opt("http_stream.max_request_body_size", SIZE, "65536", Built, "Maximum bytes of a request body."),
    opt("sse.enabled", Bool, "false", Built, "Serve the client protocol over server-sent events, for clients without a WebSocket."),
    opt("sse.handler_prefix", PATH, "\"/connection/sse\"", Built, "Path of the endpoint."),
    opt("sse.max_request_body_size", SIZE, "65536", Built, "Maximum bytes of a request body."),
    opt("emulation.handler_prefix", PATH, "\"/emulation\"", Built, "Path of the up-link of http_stream and sse; served with either of them."),
    opt("emulation.max_request_body_size", SIZE, "65536", Built, "Maximum bytes of a request body."),
    opt("uni_websocket.enabled", Bool, "false", Built, "Serve pushes over WebSocket to clients that send only a connect request."),
    opt("uni_websocket.handler_prefix", PATH, "\"/connection/uni_websocket\"", Built, "Path of the endpoint."),
    opt("uni_websocket.compression", Bool, "false", Built, "As in websocket."),
    opt("uni_websocket.compression_min_size", COUNT, "0", Built, "As in websocket."),
    opt("uni_websocket.compression_level", LEVEL, "1", Built, "As in websocket."),
    opt("uni_websocket.message_size_limit", SIZE, "65536", Built, "Maximum bytes of the connect request."),
    opt("uni_websocket.join_push_messages", Bool, "false", Built, "Pushes share frames, one a line."),
    opt("uni_websocket.disable_closing_handshake", Bool, "false", Built, "End connections without a close frame."),
    opt("uni_websocket.disable_disconnect_push", Bool, "false", Built, "End connections without a disconnect push."),
    other("uni_websocket.write_timeout", Duration, "\"1000ms\"", Harmless("websocket.write_timeout holds for all sockets that accept nothing")),
    other("uni_websocket.decompressed_message_size_limit", COUNT, "0", Harmless("message_size_limit bounds the connect request, deflated or not")),
    other("uni_websocket.read_buffer_size", COUNT, "0", Harmless("connections own no buffers")),
    other("uni_websocket.write_buffer_size", COUNT, "0", Harmless("connections own no buffers")),
    other("uni_websocket.use_write_buffer_pool", Bool, "false", Harmless("connections own no buffers")),
    opt("uni_sse.enabled", Bool, "false", Built, "Serve pushes as server-sent events: an ordinary EventSource is a client."),
    opt("uni_sse.handler_prefix", PATH, "\"/connection/uni_sse\"", Built, "Path of the endpoint."),
    opt("uni_sse.max_request_body_size", SIZE, "65536", Built, "Maximum bytes of a request body."),
    opt("uni_sse.connect_code_to_http_response.enabled", Bool, "false", Built, "Answer some errors and disconnects of the connect with an HTTP status."),
    opt("uni_sse.connect_code_to_http_response.transforms", Json(is_responses, RESPONSES), "[]", Built, "Codes to replace, each with its response."),
    opt("uni_http_stream.enabled", Bool, "false", Built, "Serve pushes over a streaming HTTP response, one a line."),
    opt("uni_http_stream.handler_prefix", PATH, "\"/connection/uni_http_stream\"", Built, "Path of the endpoint."),
    opt("uni_http_stream.max_request_body_size", SIZE, "65536", Built, "Maximum bytes of a request body."),
    opt("uni_http_stream.connect_code_to_http_response.enabled", Bool, "false", Built, "Answer some errors and disconnects of the connect with an HTTP status."),
    opt("uni_http_stream.connect_code_to_http_response.transforms", Json(is_responses, RESPONSES), "[]", Built, "Codes to replace, each with its response."),
    opt("long_poll.enabled", Bool, "false", Built, "Answer requests with the publications missed in their channels, or with the next ones."),
    opt("long_poll.handler_prefix", PATH, "\"/connection/long_poll\"", Built, "Path of the endpoint."),
    opt("long_poll.max_request_body_size", SIZE, "65536", Built, "Maximum bytes of a request body."),
    opt("long_poll.timeout", Duration, "\"25s\"", Built, "Maximum wait of a request for publications, 1s to 10m."),
    other("uni_grpc.enabled", Bool, "false", Refused(TRANSPORT)),
    other("uni_grpc.port", PORT, "11000", Silent(SWITCHED_OFF)),
    other("uni_grpc", Any, "", Silent(SWITCHED_OFF)),
    other("webtransport.enabled", Bool, "false", Refused(TRANSPORT)),
    other("webtransport", Any, "", Silent(SWITCHED_OFF)),

    opt("http_api.disabled", Bool, "false", Built, "Disable the server API."),
    opt("http_api.handler_prefix", PATH, "\"/api\"", Built, "Prefix of its paths."),
    opt("http_api.key", Text, "\"\"", Built, "Key of the server API; without one every call is answered with 401."),
    opt("http_api.error_mode", Choice(&["", "default", "transport"]), "\"\"", Built, "transport: errors are HTTP statuses too."),
    opt("http_api.insecure", Bool, "false", Built, "Accept calls without a key. For tests only."),
    opt("http_api.external", Bool, "false", Built, "Serve it on the public port even with an internal one."),
    // An API that is absent is no less safe than one that requires a key, and an application that calls it
    // gets a refused connection, never a success.
    other("grpc_api.enabled", Bool, "false", Harmless("nothing listens on grpc_api.port: applications call the server API over HTTP (http_api)")),
    other("grpc_api.port", PORT, "10000", Silent("has an effect only with grpc_api.enabled, which warns")),
    other("grpc_api", Any, "", Silent("has an effect only with grpc_api.enabled, which warns")),
    opt("admin.enabled", Bool, "false", Built, "Serve the admin page."),
    opt("admin.handler_prefix", Checked(is_prefix, "a path that begins with \"/\", or \"\""), "\"\"", Built, "Prefix of its paths: the page is at this and \"/\"."),
    opt("admin.password", Text, "\"\"", Built, "Password of the page."),
    opt("admin.secret", Text, "\"\"", Built, "Secret that signs the tokens of the page; empty: a new one with each start."),
    opt("admin.insecure", Bool, "false", Built, "Open the page without a password. Only on hosts that nobody else reaches."),
    opt("admin.external", Bool, "false", Built, "Serve it on the public port even with an internal one."),
    other("admin.web_path", Text, "\"\"", Harmless("the page is part of the program")),
    other("admin.web_proxy_address", Text, "\"\"", Harmless("the page is part of the program")),
    opt("prometheus.enabled", Bool, "false", Built, "Serve metrics in Prometheus's text format."),
    opt("prometheus.handler_prefix", PATH, "\"/metrics\"", Built, "Path of the metrics."),
    opt("prometheus.centrifugo_names", Bool, "false", Built, "Serve metrics under Centrifugo's names too, for boards and alerts that were made for it."),
    other("prometheus", Any, "", Silent("selects further metrics; none affects access or delivery")),
    opt("health.enabled", Bool, "false", Built, "Report by status 200 or 503 whether this node can serve."),
    opt("health.handler_prefix", PATH, "\"/health\"", Built, "Path of the health check."),
    other("dev.enabled", Bool, "false", Harmless("roost serve --dev runs a development node")),
    other("enable_unreleased_features", Bool, "false", Harmless("each feature that is built is on, or has an option of its own")),
    other("swagger.enabled", Bool, "false", Harmless(GONE)),
    other("swagger", Any, "", Silent("has an effect only with swagger.enabled, which warns")),
    other("debug.enabled", Bool, "false", Harmless(GONE)),
    other("debug", Any, "", Silent("has an effect only with debug.enabled, which warns")),
    opt("init.enabled", Bool, "false", Built, "Answer {} to a browser that warms up its connection."),
    opt("init.handler_prefix", PATH, "\"/connection/init\"", Built, "Path of that endpoint."),
    other("opentelemetry", Any, "", Harmless("no traces are exported; metrics and the log are there")),
    other("graphite", Any, "", Harmless("metrics are there for Prometheus (prometheus.enabled), and are not pushed to Graphite")),
    other("usage_stats", Any, "", Silent("the node sends no reports")),
    // Their publications would be lost without a word.
    other("consumers", Any, "", Refused("consumers aren't built yet")),
    other("shared_poll", Any, "", Silent(TYPED)),
];

/// Options of a namespace and of `channel.without_namespace`.
#[rustfmt::skip]
static NAMESPACE: &[Opt] = &[
    opt("name", Text, "\"\"", Built, "Prefix of the names of its channels, before the boundary."),
    opt("allow_subscribe_for_client", Bool, "false", Built, "Clients may subscribe without a subscription token."),
    opt("allow_subscribe_for_anonymous", Bool, "false", Built, "Clients without a user id may subscribe too."),
    opt("allow_publish_for_client", Bool, "false", Built, "Clients may publish."),
    opt("allow_publish_for_subscriber", Bool, "false", Built, "Subscribed clients may publish."),
    opt("allow_publish_for_anonymous", Bool, "false", Built, "Clients without a user id may publish too."),
    opt("allow_history_for_client", Bool, "false", Built, "Clients may read the history."),
    opt("allow_history_for_subscriber", Bool, "false", Built, "Subscribed clients may read the history."),
    opt("allow_history_for_anonymous", Bool, "false", Built, "Clients without a user id may read the history too."),
    opt("allow_presence_for_client", Bool, "false", Built, "Clients may read the presence."),
    opt("allow_presence_for_subscriber", Bool, "false", Built, "Subscribed clients may read the presence."),
    opt("allow_presence_for_anonymous", Bool, "false", Built, "Clients without a user id may read the presence too."),
    opt("allow_user_limited_channels", Bool, "false", Built, "Channels with names like room#u1,u2 are for the named users only."),
    opt("history_size", LIMIT, "0", Built, "Publications to keep; needs history_ttl."),
    opt("history_ttl", Duration, "\"0s\"", Built, "Time for which publications are kept."),
    opt("history_meta_ttl", Duration, "\"0s\"", Built, "Time for which offset and epoch are kept after the last publication; 0: channel.history_meta_ttl."),
    opt("allow_positioning", Bool, "false", Built, "Detect gaps in subscriptions of clients that request it."),
    opt("force_positioning", Bool, "false", Built, "Detect gaps in all subscriptions."),
    opt("allow_recovery", Bool, "false", Built, "Recover missed publications for clients that request it; needs history."),
    opt("force_recovery", Bool, "false", Built, "Recover missed publications for all clients; needs history."),
    opt("force_recovery_mode", Choice(&["", "stream", "cache"]), "\"stream\"", Built, "Recovered publications: stream: all that were missed; cache: the latest one."),
    opt("auto_cache_recover", Bool, "false", Built, "In cache mode send the latest publication with every subscribe; needs force_recovery."),
    opt("allowed_delta_types", Choices(&["fossil"]), "[]", Built, "Delta types that clients may request: fossil; needs history and positions."),
    opt("delta_publish", Bool, "false", Built, "Send every publication as a delta to clients that requested it."),
    opt("allow_tags_filter", Bool, "false", Built, "Clients may filter publications by tags."),
    opt("presence", Bool, "false", Built, "Keep the presence of channels: the list of their subscribers."),
    opt("join_leave", Bool, "false", Built, "Send join and leave events to clients that request them and may read the presence."),
    opt("force_push_join_leave", Bool, "false", Built, "Send join and leave events to all clients."),
    opt("channel_regex", Text, "\"\"", Built, "Regular expression that the name after the namespace has to match."),
    opt("publication_data_format", FORMAT, "\"\"", Built, "As in channel; \"\": the value there."),
    opt("subscribe_proxy_enabled", Bool, "false", Built, "The application decides by a proxy call whether a client may subscribe."),
    opt("subscribe_proxy_name", Text, "\"default\"", Built, "Proxy of these calls: default is channel.proxy.subscribe, other names are in proxies."),
    opt("publish_proxy_enabled", Bool, "false", Built, "The application decides by a proxy call whether a client may publish, and what."),
    opt("publish_proxy_name", Text, "\"default\"", Built, "Proxy of these calls: default is channel.proxy.publish, other names are in proxies."),
    opt("sub_refresh_proxy_enabled", Bool, "false", Built, "The application renews expiring subscriptions by a proxy call, instead of the client."),
    opt("sub_refresh_proxy_name", Text, "\"default\"", Built, "Proxy of these calls: default is channel.proxy.sub_refresh, other names are in proxies."),
    other("subscribe_stream_proxy_enabled", Bool, "false", Refused(STREAM)),
    other("subscribe_stream_proxy_name", Text, "\"default\"", Silent(STREAMS)),
    other("subscribe_stream_proxy_bidirectional", Bool, "false", Silent(STREAMS)),
    other("subscription_type", Text, "\"stream\"", Refused("only subscriptions of the type stream are built yet")),
    other("map", Any, "", Silent(TYPED)),
    other("shared_poll", Any, "", Silent(TYPED)),
    other("map_clients_presence_channel_prefix", Text, "\"\"", Refused(MAP)),
    other("map_users_presence_channel_prefix", Text, "\"\"", Refused(MAP)),
    opt("roost.write_delay", Duration, "\"0s\"", Built, "Time that a publication waits for others to leave with it, at most 1s."),
    opt("roost.slow_policy", Choice(&["disconnect", "drop_oldest", "latest"]), "\"disconnect\"", Built, "Policy for slow clients. disconnect: close with 3008; drop_oldest: drop the oldest queued publications; latest: keep only the newest publication of a channel queued. The last two only where no client has a position, or with force_recovery_mode = \"cache\"."),
    opt("roost.state_events", Choices(&["occupied", "vacated"]), "[]", Built, "Events posted to client.hooks.endpoint: occupied: the channel got its first subscriber on this node; vacated: it lost the last one."),
    opt("roost.history_time", Bool, "false", Built, "Keep the time of each publication (4 bytes; with Redis none, its payloads have it): history results have `time`, in milliseconds, and the admin page shows it."),
    opt("roost.subscribed_at", Bool, "false", Built, "Keep the time of each subscription (4 bytes for each client in the channel's presence): presence results, join and leave events have `subscribed_at`, in seconds since 1970, and the admin page shows it."),
    opt("roost.compression", Bool, "true", Built, "Compress publications for clients that negotiated compression (websocket.compression)."),
];

/// Options of a proxy, by which the application is called (server API, section 6).
#[rustfmt::skip]
static PROXY: &[Opt] = &[
    opt("name", Text, "\"\"", Built, "Name used by *_proxy_name and in metrics."),
    opt("enabled", Bool, "false", Built, "Call this proxy."),
    opt("endpoint", Checked(is_endpoint, "an http:// or https:// URL"), "\"\"", Built, "URL that calls are posted to; `user:password@` in it is sent as Basic authorization."),
    opt("timeout", Duration, "\"1s\"", Built, "Timeout of a call, including the wait for a turn."),
    opt("http_headers", List, "[]", Built, "Headers of the client's request to pass on."),
    opt("emulated_headers", List, "[]", Built, "Headers of the client's connect command to pass on; http_headers win."),
    opt("binary_encoding", Bool, "false", Built, "Send payloads as base64 in b64data and b64info."),
    opt("include_connection_meta", Bool, "false", Built, "Send the meta of the connection."),
    opt("http.static_headers", Json(is_text_map, "a map of texts"), "{}", Built, "Headers of each call; ${CENTRIFUGO_VAR_X} and ${ROOST_VAR_X} are replaced by environment variables."),
    opt("http.status_to_code_transforms", Json(is_transforms, "a list of {status_code, to_error = {code, message, temporary}} or {status_code, to_disconnect = {code, reason}}"), "[]", Built, "Errors or disconnects for clients by HTTP status, for statuses other than 200."),
    opt("http.tls.enabled", Bool, "false", Built, "Use the options of this section; an https:// URL alone needs none of them."),
    opt("http.tls.server_ca_pem", Text, "\"\"", Built, "Certificates that sign the application's, or are it, instead of those of the machine: PEM, a file with them, or their base64."),
    opt("http.tls.server_name", Text, "\"\"", Built, "Name in the application's certificate, if it differs from the URL."),
    opt("http.tls.cert_pem", Text, "\"\"", Built, "Client certificate for the application."),
    opt("http.tls.key_pem", Text, "\"\"", Built, "Private key of that certificate."),
    opt("http.tls.insecure_skip_verify", Bool, "false", Built, "Accept any certificate of the application: everybody between roost and the application can read and answer its calls. For tests only."),
    other("http.tls.client_ca_pem", Text, "\"\"", Silent("servers verify clients with it, and roost is a client of the application")),
    opt("roost.concurrency", Integer(1, 65_535), "256", Built, "Maximum number of calls in flight; others wait for a turn."),
    opt("roost.breaker_failures", COUNT, "10", Built, "Circuit breaker: failures of an endpoint within ten seconds, if they are half of its calls, after which it is not called for a while; 0: no circuit breaker. Timeouts, failed connections, statuses of 5xx and invalid answers are failures, statuses of 4xx are not."),
    opt("roost.breaker_pause", Duration, "\"2s\"", Built, "Time for which the circuit stays open before some calls probe the endpoint."),
    other("grpc_metadata", List, "[]", Silent(GRPC)),
    other("grpc", Any, "", Harmless(GRPC)),
];

/// Options of the hooks, by which the application gets events (server API, section 6).
#[rustfmt::skip]
static HOOKS: &[Opt] = &[
    opt("endpoint", Checked(is_endpoint, "an http:// or https:// URL"), "\"\"", Built, "URL that events are posted to; `user:password@` in it is sent as Basic authorization. A status of 2xx acknowledges a batch, any other answer has it sent again."),
    opt("timeout", Duration, "\"5s\"", Built, "Timeout of a post; the batch is sent again after it."),
    opt("disconnect", Bool, "false", Built, "Send an event for each connected client that ends, with its code and reason."),
    opt("batch_size", Integer(1, 10_000), "500", Built, "Maximum number of events in one post."),
    opt("queue_max_size", Integer(65_536, 1 << 32), "16777216", Built, "Maximum bytes of events that wait to be acknowledged; above it new events are lost and counted."),
    opt("http.static_headers", Json(is_text_map, "a map of texts"), "{}", Built, "Headers of each post; ${CENTRIFUGO_VAR_X} and ${ROOST_VAR_X} are replaced by environment variables."),
    opt("http.tls.enabled", Bool, "false", Built, "Use the options of this section; an https:// URL alone needs none of them."),
    opt("http.tls.server_ca_pem", Text, "\"\"", Built, "Certificates that sign the application's, or are it, instead of those of the machine: PEM, a file with them, or their base64."),
    opt("http.tls.server_name", Text, "\"\"", Built, "Name in the application's certificate, if it differs from the URL."),
    opt("http.tls.cert_pem", Text, "\"\"", Built, "Client certificate for the application."),
    opt("http.tls.key_pem", Text, "\"\"", Built, "Private key of that certificate."),
    opt("http.tls.insecure_skip_verify", Bool, "false", Built, "Accept any certificate of the application. For tests only."),
    other("http.tls.client_ca_pem", Text, "\"\"", Silent("servers verify clients with it, and roost is a client of the application")),
];

/// Options of an RPC namespace and of `rpc.without_namespace`.
#[rustfmt::skip]
static RPC_NAMESPACE: &[Opt] = &[
    opt("name", Text, "\"\"", Built, "Prefix of the names of its methods, before the boundary."),
    opt("proxy_enabled", Bool, "false", Built, "Send calls to the application."),
    opt("proxy_name", Text, "\"default\"", Built, "Proxy of these calls: default is rpc.proxy, other names are in proxies."),
];

/// Options of a use of Redis.
#[rustfmt::skip]
static REDIS: &[Opt] = &[
    opt("prefix", Text, "\"centrifugo\"", Built, "Prefix of all keys and PUB/SUB names; the same for all nodes of a system."),
    opt("address", List, "[\"redis://127.0.0.1:6379\"]", Built, "Server: host and port, or a URL (redis, rediss, unix, redis+sentinel, redis+cluster) with user, password, database, and options of this section in its query. Channels are divided among several, whose order is the same for all nodes."),
    opt("connect_timeout", Duration, "\"1s\"", Built, "Timeout of a new connection."),
    opt("io_timeout", Duration, "\"4s\"", Built, "Timeout of a reply; commands that were not sent by then fail, too."),
    opt("db", LIMIT, "0", Built, "Number of the database. Messages go to all databases of a server."),
    opt("user", Text, "\"\"", Built, "User; empty: the default one."),
    opt("password", Text, "\"\"", Built, "Password."),
    opt("client_name", Text, "\"\"", Built, "Name of the connections in the server's list of clients."),
    opt("force_resp2", Bool, "false", Built, "Use version 2 of the protocol instead of 3."),
    opt("cluster_address", List, "[]", Built, "Some nodes of a Redis Cluster, with commas between them; several such lists are several Clusters. It wins over sentinel_address and address."),
    opt("sentinel_address", List, "[]", Built, "Sentinels that know the master, with commas between them; several such lists are several masters. It wins over address."),
    opt("sentinel_master_name", Text, "\"\"", Built, "Name of the master."),
    opt("sentinel_user", Text, "\"\"", Built, "User for the Sentinels."),
    opt("sentinel_password", Text, "\"\"", Built, "Password for the Sentinels."),
    opt("sentinel_client_name", Text, "\"\"", Built, "Name of the connections to the Sentinels."),
    opt("history_use_lists", Bool, "false", Built, "Keep histories in lists instead of streams: less memory, no versions."),
    opt("presence_ttl", Duration, "\"60s\"", Built, "Time for which a client counts as present after its node has last said so."),
    opt("presence_hash_field_ttl", Bool, "false", Built, "Entries of presence expire by themselves; needs Redis 7.4 or Valkey 9, and the same on all nodes."),
    opt("presence_user_mapping", Bool, "false", Built, "Count users beside clients, so that presence_stats is cheap; the same on all nodes."),
    opt("tls.enabled", Bool, "false", Built, "Use TLS."),
    opt("tls.server_ca_pem", Text, "\"\"", Built, "Certificates that sign the server's, instead of those of the machine: PEM, a file with them, or their base64."),
    opt("tls.cert_pem", Text, "\"\"", Built, "Client certificate."),
    opt("tls.key_pem", Text, "\"\"", Built, "Private key of that certificate."),
    opt("tls.insecure_skip_verify", Bool, "false", Built, "Accept any certificate of the server. For tests only."),
    opt("sentinel_tls.enabled", Bool, "false", Built, "Use TLS to the Sentinels."),
    opt("sentinel_tls.server_ca_pem", Text, "\"\"", Built, "As in tls."),
    opt("sentinel_tls.cert_pem", Text, "\"\"", Built, "As in tls."),
    opt("sentinel_tls.key_pem", Text, "\"\"", Built, "As in tls."),
    opt("sentinel_tls.insecure_skip_verify", Bool, "false", Built, "As in tls."),
    other("tls.server_name", Text, "\"\"", Refused("the name in the server's certificate has to be that of its address")),
    other("sentinel_tls.server_name", Text, "\"\"", Refused("the name in the server's certificate has to be that of its address")),
    other("tls", Any, "", Silent("servers verify clients with the rest of it, and roost is a client")),
    other("sentinel_tls", Any, "", Silent("servers verify clients with the rest of it, and roost is a client")),
    other("replica_client", Any, "", Harmless("commands go to masters alone")),
];

/// Options of NATS.
#[rustfmt::skip]
static NATS: &[Opt] = &[
    opt("url", Text, "\"nats://localhost:4222\"", Built, "Servers of one cluster, with commas between them: host and port, or URLs (nats, tls) with user and password or a token. Other servers of the cluster are learned from them."),
    opt("prefix", Text, "\"centrifugo\"", Built, "Prefix of all subjects; the same for all nodes of a system."),
    opt("dial_timeout", Duration, "\"1s\"", Built, "Timeout of a new connection."),
    opt("write_timeout", Duration, "\"1s\"", Built, "Timeout of the server to take what is sent; then the connection is made anew."),
    opt("allow_wildcards", Bool, "false", Built, "Clients may subscribe to patterns: * stands for a token of a name (between dots), > for all that follow. Else such names are refused."),
    opt("raw_mode.enabled", Bool, "false", Built, "Messages of channels are the data of publications alone, for other programs on NATS: no tags, publishers, joins, leaves and deltas."),
    opt("raw_mode.prefix", Text, "\"\"", Built, "Prefix of the subjects of channels in raw mode."),
    opt("raw_mode.channel_replacements", Json(is_text_map, "a map of texts"), "{}", Built, "Parts of names that are replaced in subjects in raw mode: {\":\": \".\"} makes news.a of news:a."),
    opt("jetstream.enabled", Bool, "false", Built, "Keep histories in JetStream, in a stream for each namespace with history: recovery, cache mode, deltas, idempotency keys and versions. Needs nats-server 2.11 or newer."),
    opt("jetstream.storage", Choice(&["file", "memory"]), "\"file\"", Built, "Where new streams are kept."),
    opt("jetstream.replicas", Integer(1, 5), "1", Built, "Servers that keep each stream."),
    opt("jetstream.max_bytes", Integer(0, 1 << 50), "0", Built, "Bytes of each stream at most: publications that have no room get errors that are temporary. 0: no bound."),
    opt("jetstream.manage_streams", Bool, "true", Built, "Make streams, and change them as namespaces say. Else they have to be there: the node doesn't use one that does not fit."),
    opt("tls.enabled", Bool, "false", Built, "Use TLS, whatever the server wants."),
    opt("tls.server_ca_pem", Text, "\"\"", Built, "Certificates that sign the server's, instead of those of the machine: PEM, a file with them, or their base64."),
    opt("tls.cert_pem", Text, "\"\"", Built, "Client certificate."),
    opt("tls.key_pem", Text, "\"\"", Built, "Private key of that certificate."),
    opt("tls.insecure_skip_verify", Bool, "false", Built, "Accept any certificate of the server. For tests only."),
    other("tls.server_name", Text, "\"\"", Refused("the name in the server's certificate has to be that of its address")),
    other("tls", Any, "", Silent("servers verify clients with the rest of it, and roost is a client")),
];

/// Options of a certificate for a host.
#[rustfmt::skip]
static CERTIFICATE: &[Opt] = &[
    opt("name", Text, "\"\"", Built, "Name of the host, by which clients choose it (SNI): \"example.com\", or \"*.example.com\" for all with one label more. The names in the certificate choose it, too, where no other certificate has them."),
    opt("cert_pem", Text, "\"\"", Built, "As http_server.tls.cert_pem."),
    opt("key_pem", Text, "\"\"", Built, "As http_server.tls.key_pem."),
];

/// All places that have tables of their own, in the order in which they are printed.
pub(crate) fn places() -> &'static [Place] {
    static PLACES: LazyLock<Vec<Place>> = LazyLock::new(|| {
        let place = |path, about, like, rows| Place { path, about, like, rows, is_list: false };
        let list = |path, about, like, rows| Place { path, about, like, rows, is_list: true };
        let switched = all_but(PROXY, &["name"]);
        let event = all_but(PROXY, &["name", "enabled"]);
        let (plain, connect) = ("channel.without_namespace", "client.proxy.connect");
        let calls = "rpc.without_namespace";
        let mut all = vec![
            place(plain, "Channels without a namespace.", "", all_but(NAMESPACE, &["name"])),
            list(
                "channel.namespaces",
                "Channels of one namespace, with its name.",
                plain,
                NAMESPACE,
            ),
            place(
                connect,
                "Proxy call of the application for each connection without a token: it identifies the user.",
                "",
                switched,
            ),
            place(
                "client.proxy.refresh",
                "Proxy call that renews an expiring connection.",
                connect,
                switched,
            ),
            place(
                "channel.proxy.subscribe",
                "Proxy call that decides whether a client may subscribe.",
                connect,
                event,
            ),
            place(
                "channel.proxy.publish",
                "Proxy call that decides whether a client may publish, and what.",
                connect,
                event,
            ),
            place(
                "channel.proxy.sub_refresh",
                "Proxy call that renews an expiring subscription.",
                connect,
                event,
            ),
            place("rpc.proxy", "Proxy call that answers an RPC.", connect, event),
            place(calls, "Methods without a namespace.", "", all_but(RPC_NAMESPACE, &["name"])),
            list(
                "rpc.namespaces",
                "Methods of one namespace, with its name.",
                calls,
                RPC_NAMESPACE,
            ),
            list(
                "proxies",
                "Other proxies, by the names that namespaces use.",
                connect,
                all_but(PROXY, &["enabled"]),
            ),
        ];
        let about = "Events that the application gets notice of, posted at least once.";
        all.push(place("client.hooks", about, "", HOOKS));
        all.push(list("roost.tls", "Certificates of further hosts, by name.", "", CERTIFICATE));
        all.extend(broker_places());
        all
    });
    &PLACES
}

/// Uses of Redis and NATS.
fn broker_places() -> [Place; 4] {
    let place = |path, about, like, rows| Place { path, about, like, rows, is_list: false };
    [
        place(
            "engine.redis",
            "Redis for channels and presence, with engine.type = \"redis\".",
            "",
            REDIS,
        ),
        place(
            "broker.redis",
            "Redis for channels, with broker.enabled and broker.type = \"redis\".",
            "engine.redis",
            all_but(REDIS, PRESENCE_ROWS),
        ),
        place(
            "presence_manager.redis",
            "Redis for presence, with presence_manager.enabled and its type = \"redis\".",
            "engine.redis",
            all_but(REDIS, &["history_use_lists"]),
        ),
        place(
            "broker.nats",
            "NATS for channels, with broker.enabled and broker.type = \"nats\".",
            "",
            NATS,
        ),
    ]
}

const PRESENCE_ROWS: &[&str] =
    &["presence_ttl", "presence_hash_field_ttl", "presence_user_mapping"];

/// Called once for each of few tables: what it leaks is part of the program.
fn all_but(rows: &[Opt], paths: &[&str]) -> &'static [Opt] {
    let kept = rows.iter().filter(|row| !paths.contains(&row.path));
    Vec::leak(kept.copied().collect())
}

const FORMAT: Kind = Choice(&["", "json", "json_object", "binary"]);
const BUFFER: Kind = Integer(0, 1 << 30);
const PATH: Kind = Checked(is_path, "a path that begins with \"/\"");
const SHARDS: &str = "\"cores\", \"auto\" or a number from 1 to 253";
const MEMORY: &str = "bytes, a size such as \"12GiB\" (at least 16MiB), or a share such as \"80%\"";

/// The meaning of `text` under `roost.socket_mode`: permissions in octal digits.
pub(super) fn socket_mode(text: &str) -> Option<u32> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777)
}

fn is_socket_mode(text: &str) -> bool {
    socket_mode(text).is_some()
}

const SOCKET_MODE: &str = "permissions in octal digits, \"0660\" for example";

/// The meaning of `text` under `roost.shards`: `Some(0)` stands for a word.
pub(super) fn shards(text: &str) -> Option<u8> {
    match text {
        "cores" | "auto" => Some(0),
        number => number.parse().ok().filter(|&count| count > 0),
    }
}

/// The meaning of `text` under `roost.memory_limit`: bytes, or a share in percent.
pub(super) fn memory(text: &str) -> Option<Result<u64, u8>> {
    match text.strip_suffix('%') {
        Some(share) => share.parse().ok().filter(|share| (1..=100).contains(share)).map(Err),
        None => bytes(text).filter(|&bytes| bytes >= 16 << 20).map(Ok),
    }
}

fn is_shards(text: &str) -> bool {
    shards(text).is_some()
}

fn is_memory(text: &str) -> bool {
    memory(text).is_some()
}

fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'?')
}

fn is_prefix(text: &str) -> bool {
    text.is_empty() || is_path(text) && !text.ends_with('/')
}

fn is_endpoint(text: &str) -> bool {
    let uri: Result<hyper::Uri, _> = text.parse();
    text.is_empty()
        || uri.is_ok_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()
        })
}

fn is_text_map(json: &serde_json::Value) -> bool {
    json.as_object().is_some_and(|map| map.values().all(serde_json::Value::is_string))
}

fn is_responses(json: &serde_json::Value) -> bool {
    serde_json::from_value::<Vec<ResponseTransform>>(json.clone())
        .is_ok_and(|list| list.iter().all(ResponseTransform::is_valid))
}

fn is_disconnects(json: &serde_json::Value) -> bool {
    serde_json::from_value::<Vec<DisconnectTransform>>(json.clone())
        .is_ok_and(|list| list.iter().all(|transform| transform.to.is_valid()))
}

fn is_transforms(json: &serde_json::Value) -> bool {
    serde_json::from_value::<Vec<StatusTransform>>(json.clone())
        .is_ok_and(|list| list.iter().all(StatusTransform::is_valid))
}

impl Opt {
    /// True when it does something.
    pub(crate) fn is_built(&self) -> bool {
        matches!(self.class, Built)
    }

    /// Its flag, without the dashes: the path, but for roost's own the name with dashes. `None` for
    /// what isn't one value.
    pub(crate) fn flag(&self) -> Option<String> {
        if matches!(self.kind, Any) {
            return None;
        }
        Some(match self.path.strip_prefix("roost.") {
            Some(own) => own.replace('_', "-"),
            None => self.path.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn paths_are_unique_and_sections_stand_together() {
        for rows in [OPTIONS, NAMESPACE, PROXY, RPC_NAMESPACE, REDIS, CERTIFICATE] {
            let mut paths = HashSet::new();
            let mut sections = HashSet::new();
            let mut last = "";
            for row in rows {
                assert!(paths.insert(row.path), "{} twice", row.path);
                assert_eq!(row.is_built(), !row.doc.is_empty(), "{}", row.path);
                if row.is_built() {
                    let section = row.path.rsplit_once('.').map_or("", |(section, _)| section);
                    assert!(section == last || sections.insert(section), "{section} is torn");
                    last = section;
                }
            }
        }
    }

    /// Areas of which nothing is built. A row of any other one may not say that something isn't.
    const UNBUILT: &[&str] = &[
        "client.subscription_token.jwks",
        "client.token.jwks",
        "consumers",
        "controller",
        "http_server.http3",
        "map_clients_presence_channel_prefix",
        "map_users_presence_channel_prefix",
        "subscribe_stream_proxy_enabled",
        "subscription_type",
        "uni_grpc",
        "webtransport",
    ];

    #[test]
    fn options_without_effect_are_argued_and_nothing_that_is_built_is_said_to_be_missing() {
        let within = |path: &str, area: &str| {
            path.strip_prefix(area).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let tables = [OPTIONS, NAMESPACE, PROXY, RPC_NAMESPACE, REDIS];
        let rows = || tables.into_iter().flatten();
        for row in rows() {
            let path = row.path;
            let (Silent(why) | Harmless(why) | Refused(why) | RefusedWith(_, why)) = row.class
            else {
                continue;
            };
            assert!(
                why.split(' ').count() >= 3,
                "{path} is accepted or refused without an argument"
            );
            let unbuilt = UNBUILT.iter().any(|area| within(path, area));
            let says_so =
                ["isn't built", "aren't built", "is built yet"].iter().any(|w| why.contains(w));
            assert!(!says_so || unbuilt, "{path} is named unbuilt: {why}");
            let accepted = matches!(row.class, Silent(_) | Harmless(_));
            assert!(!accepted || !says_so, "{path} isn't built, and accepted: {why}");
        }
        for area in UNBUILT {
            let mut own = rows().filter(|row| within(row.path, area)).peekable();
            assert!(own.peek().is_some(), "{area} has no row");
            assert!(own.all(|row| !row.is_built()), "{area} is built");
        }
        // A switch of what isn't there is refused or warns, never ignored.
        for row in rows().filter(|row| row.path.ends_with("enabled") && !row.is_built()) {
            assert!(!matches!(row.class, Silent(_)), "{} is silent", row.path);
        }
    }

    #[test]
    fn conditions_name_options() {
        for row in OPTIONS.iter().chain(NAMESPACE).chain(PROXY) {
            if let RefusedWith(other, _) = row.class {
                assert!(OPTIONS.iter().any(|row| row.path == other), "{other}");
            }
        }
    }

    #[test]
    fn words() {
        for (text, expected) in [
            ("cores", Some(0)),
            ("auto", Some(0)),
            ("1", Some(1)),
            ("255", Some(255)),
            ("0", None),
            ("256", None),
            ("x", None),
        ] {
            assert_eq!(shards(text), expected, "{text}");
        }
        for (text, expected) in [
            ("80%", Some(Err(80))),
            ("0%", None),
            ("101%", None),
            ("16MiB", Some(Ok(16 << 20))),
            ("15MiB", None),
            ("-1", None),
        ] {
            assert_eq!(memory(text), expected, "{text}");
        }
        assert!(is_path("/a/b") && !is_path("a") && !is_path("/a b") && !is_path("/a?b"));
    }
}
