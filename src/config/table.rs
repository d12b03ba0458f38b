//! All options: the one place that knows their names, kinds, defaults and what is built of them.
//! Flags, names in the environment, `config default` and `config check` are made from it.
//!
//! Names, kinds and defaults are those of a Centrifugo configuration (client protocol, section 26),
//! and `roost.*` are roost's own.

use std::sync::LazyLock;

use super::transports::{DisconnectTransform, ResponseTransform};
use super::value::{Kind, bytes};
use crate::edge::proxy::StatusTransform;

/// An option.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opt {
    /// Path from the root, or from the namespace.
    pub path: &'static str,
    /// What its value has to be.
    pub kind: Kind,
    /// Default, as TOML.
    pub default: &'static str,
    /// What is built of it.
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

/// What roost does about an option.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Class {
    /// What it says.
    Built,
    /// Nothing, since it has a meaning only beside an option that is refused, or none here. The text is the
    /// argument for that.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "for readers, and the test that wants an argument")
    )]
    Silent(&'static str),
    /// Warns: neither safety nor delivery change without it. The text is the argument for that, and the
    /// warning.
    Harmless(&'static str),
    /// Stops: without it the node would be less safe or lose what its owner asked for.
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

const TLS: &str = "TLS isn't built yet; end it in front of roost";
const STREAM: &str = "stream proxies need gRPC, which isn't built yet";
const GRPC: &str = "means something beside a grpc:// endpoint only, which is refused";
const KEYS: &str = "only jwks_public_endpoint is built yet";
const TRANSPORT: &str = "this transport isn't built yet";
const BROKER: &str = "only the memory broker is built yet";
const MAP: &str = "map subscriptions aren't built yet";
const GONE: &str = "nothing answers there but 404: it lets nobody in, and no message depends on it";

// Arguments of rows that are accepted in silence.
const SWITCHED_OFF: &str = "means something beside enabled = true only, which is refused";
const STREAMS: &str =
    "means something beside subscribe_stream_proxy_enabled only, which is refused";
const TYPED: &str = "means something beside another subscription_type only, which is refused";
const BROKER_OFF: &str = "means something beside another type than memory only, which is refused";

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
    opt("pid_file", Text, "\"\"", Built, "File to write the process id to."),

    opt("http_server.address", Text, "\"\"", Built, "IP address to listen on, or \"unix:\" and the path of a socket; empty: all addresses."),
    opt("http_server.port", PORT, "8000", Built, "Port to listen on; 0: one that is free."),
    opt("http_server.internal_address", Text, "\"\"", Built, "IP address of the internal port, or \"unix:\" and the path of a socket; empty: http_server.address."),
    opt("http_server.internal_port", Text, "\"\"", Built, "Port for the server API, metrics, health and the admin page with its WebSocket instead of the public one; empty: they are there."),
    other("http_server.tls.enabled", Bool, "false", Refused(TLS)),
    other("http_server.tls", Any, "", Silent(SWITCHED_OFF)),
    other("http_server.tls_autocert.enabled", Bool, "false", Refused(TLS)),
    other("http_server.tls_autocert", Any, "", Silent(SWITCHED_OFF)),
    other("http_server.tls_external", Bool, "false", Silent("says which port http_server.tls is for, and that is refused")),
    // The internal port would carry keys and the admin page in plain text.
    other("http_server.internal_tls.enabled", Bool, "false", Refused(TLS)),
    other("http_server.internal_tls", Any, "", Silent(SWITCHED_OFF)),
    other("http_server.http3.enabled", Bool, "false", Refused(TLS)),
    other("http_server.h2c_external", Bool, "false", Harmless("clients use HTTP/1.1, over which every transport works")),

    opt("log.level", Choice(&["none", "trace", "debug", "info", "warn", "error"]), "\"info\"", Built, "Least severe messages to log."),
    opt("log.file", Text, "\"\"", Built, "File to log to; empty: standard error."),

    opt("client.allowed_origins", List, "[]", Built, "Web pages that may connect: globs over the Origin header; \"*\" is all, none is only those without the header."),
    opt("client.allow_anonymous_connect_without_token", Bool, "false", Built, "Clients without a token may connect, with an empty user id."),
    opt("client.disallow_anonymous_connection_tokens", Bool, "false", Built, "Refuse tokens with an empty user id."),
    opt("client.ping_interval", DurationOrOff, "\"25s\"", Built, "How often the server pings a client; -1 is never."),
    opt("client.pong_timeout", DurationOrOff, "\"8s\"", Built, "How long the pong may take, less than the interval; -1: no pongs wanted."),
    opt("client.expired_close_delay", Duration, "\"25s\"", Built, "How long a client may take to refresh an expired connection."),
    opt("client.expired_sub_close_delay", Duration, "\"25s\"", Built, "The same for an expired subscription."),
    opt("client.stale_close_delay", Duration, "\"10s\"", Built, "How long an open connection may take to send its connect command."),
    opt("client.channel_limit", SIZE, "128", Built, "Subscriptions of one connection at most."),
    opt("client.queue_max_size", SIZE, "1048576", Built, "Bytes that may wait for one client before it is closed as slow."),
    opt("client.connection_limit", COUNT, "0", Built, "Connected clients of this node at most; 0: as many as the machine holds. Connections that were opened and aren't connected yet don't count."),
    opt("client.connection_rate_limit", COUNT, "0", Built, "New connections per second at most; 0: no limit."),
    opt("client.user_connection_limit", LIMIT, "0", Built, "Connections of one user to this node at most; 0: no limit."),
    opt("client.concurrency", Integer(0, 64), "0", Built, "Questions to the application that one client may have at a time; 0 and 1: one, and its commands stay in their order."),
    opt("client.history_max_publication_limit", LIMIT, "300", Built, "Publications in one answer to a history call at most; 0: no limit."),
    opt("client.recovery_max_publication_limit", LIMIT, "300", Built, "Publications that one subscription recovers at most; 0: no limit."),
    opt("client.connect_include_server_time", Bool, "false", Built, "Tell clients the server's time when they connect."),
    opt("client.user_id_http_header", Text, "\"\"", Built, "Request header that names the user of a client without a token; set by a proxy that is trusted."),
    opt("client.insecure", Bool, "false", Built, "No token and no permission is needed for anything. For tests only."),
    opt("client.insecure_skip_token_signature_verify", Bool, "false", Built, "Take tokens whatever their signature. For tests only."),
    other("client.presence_update_interval", Duration, "\"27s\"", Harmless("presence is exact, nothing has to be refreshed")),
    other("client.channel_position_check_delay", Duration, "\"40s\"", Harmless("gaps are noticed as they happen")),
    other("client.channel_position_max_time_lag", Duration, "\"0s\"", Harmless("gaps are noticed as they happen")),

    opt("client.connect_code_to_unidirectional_disconnect.enabled", Bool, "false", Built, "Close one-way connections whose connect fails with codes of your own."),
    opt("client.connect_code_to_unidirectional_disconnect.transforms", Json(is_disconnects, DISCONNECTS), "[]", Built, "Which errors, and with what."),

    opt("client.subscribe_to_user_personal_channel.enabled", Bool, "false", Built, "Subscribe each user that has an id to its own channel, #user, as it connects."),
    opt("client.subscribe_to_user_personal_channel.personal_channel_namespace", Text, "\"\"", Built, "Namespace of these channels; empty: none."),
    opt("client.subscribe_to_user_personal_channel.single_connection", Bool, "false", Built, "A user's new connection closes its older ones; with presence there."),

    opt("client.token.hmac_secret_key", Text, "\"\"", Built, "Secret of the clients' tokens (HS256, HS384, HS512)."),
    opt("client.token.hmac_previous_secret_key", Text, "\"\"", Built, "The secret before the last change, still accepted."),
    opt("client.token.hmac_previous_secret_key_valid_until", COUNT, "0", Built, "Until when, Unix seconds; 0: for ever."),
    opt("client.token.audience", Text, "\"\"", Built, "What a token's aud has to contain."),
    opt("client.token.issuer", Text, "\"\"", Built, "What a token's iss has to be."),
    opt("client.token.audience_regex", Text, "\"\"", Built, "Regular expression that one of a token's aud has to match, in place of audience."),
    opt("client.token.issuer_regex", Text, "\"\"", Built, "Regular expression that a token's iss has to match, in place of issuer."),
    opt("client.token.rsa_public_key", Text, "\"\"", Built, "Public key of the clients' tokens (RS256, RS384, RS512): PEM, a file with it, or base64 of it."),
    opt("client.token.ecdsa_public_key", Text, "\"\"", Built, "The same for ES256, ES384 or ES512, by its curve."),
    opt("client.token.jwks_public_endpoint", Text, "\"\"", Built, "URL of a JWK Set with public keys (RSA, EC, Ed25519), chosen by kid; {{name}} is a group of audience_regex or issuer_regex."),
    opt("client.token.user_id_claim", Text, "\"\"", Built, "Claim with the user id instead of sub: a name, or a path with \".\" between its levels."),
    other("client.token.jwks", Any, "", Refused(KEYS)),

    opt("client.subscription_token.enabled", Bool, "false", Built, "Subscription tokens have the keys below instead of those of client.token."),
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

    opt("channel.max_length", Integer(1, 65_535), "255", Built, "Bytes of a channel's name at most."),
    opt("channel.private_prefix", Text, "\"$\"", Built, "Begins the names of channels that need a subscription token; empty: there are none."),
    opt("channel.namespace_boundary", Text, "\":\"", Built, "Ends the namespace in a channel's name."),
    opt("channel.user_boundary", Text, "\"#\"", Built, "Begins the users in the name of a user-limited channel."),
    opt("channel.user_separator", Text, "\",\"", Built, "Between these users."),
    opt("channel.history_meta_ttl", Duration, "\"720h\"", Built, "How long a channel's offset and epoch are kept after its last publication."),
    opt("channel.publication_data_format", FORMAT, "\"\"", Built, "What may be published: \"\" is JSON from clients and all but nothing from the application, json, json_object, binary."),
    other("channel.proxy", Any, "", Silent("its sections have tables of their own; the rest is of stream proxies, which are refused")),

    opt("websocket.disabled", Bool, "false", Built, "Switch the WebSocket endpoint off."),
    opt("websocket.handler_prefix", PATH, "\"/connection/websocket\"", Built, "Path of the endpoint."),
    opt("websocket.write_timeout", Duration, "\"1000ms\"", Built, "How long a write may wait for a client that takes nothing."),
    opt("websocket.message_size_limit", SIZE, "65536", Built, "Bytes of a client's message at most."),
    opt("websocket.compression", Bool, "false", Built, "Deflate messages for clients that offer permessage-deflate, where that makes them shorter."),
    opt("websocket.compression_min_size", COUNT, "0", Built, "Messages of fewer bytes go plain, and those of fewer than 64."),
    opt("websocket.compression_level", LEVEL, "1", Built, "1 is fast, 9 small."),
    opt("websocket.decompressed_message_size_limit", COUNT, "0", Built, "Bytes of a client's message at most when it is inflated; 0: ten times message_size_limit."),
    other("websocket.read_buffer_size", COUNT, "0", Harmless("connections own no buffers")),
    other("websocket.write_buffer_size", COUNT, "0", Harmless("connections own no buffers")),
    other("websocket.use_write_buffer_pool", Bool, "false", Harmless("connections own no buffers")),

    opt("shutdown.timeout", Duration, "\"30s\"", Built, "How long closing all connections may take in all."),

    opt("rpc.namespace_boundary", Text, "\":\"", Built, "Ends the namespace in a method's name."),
    opt("rpc.ping.enabled", Bool, "false", Built, "Answer an RPC method with {} here, so that clients can measure the round trip."),
    opt("rpc.ping.method", Text, "\"ping\"", Built, "Which method that is."),

    opt("node.name", Text, "\"\"", Built, "Name of this node; empty: one from host name and port."),
    other("node.info_metrics_aggregate_interval", Duration, "\"60s\"", Silent("figures are counted as they are asked for")),

    opt("roost.shards", Checked(is_shards, SHARDS), "\"cores\"", Built, "Threads that hold connections: \"cores\" (those that it may use), \"auto\" (more where the descriptor limit asks for it) or a number."),
    opt("roost.io", Choice(&["auto", "epoll", "uring"]), "\"epoll\"", Built, "The driver: a system call for each read and write, or batches of them through io_uring; auto takes io_uring where the kernel has it."),
    opt("roost.pin", Choice(&["auto", "on", "off"]), "\"auto\"", Built, "Whether each shard's thread stays on a CPU: auto where the node has its CPUs for itself (isolated ones, a cgroup's partition, an affinity mask smaller than the machine). Beside busy processes a pinned shard stalls."),
    opt("roost.turn_deliveries", Integer(64, 65_536), "512", Built, "Deliveries in one turn of a shard's loop: fewer let new connections wait less, more cost less."),
    opt("roost.log_format", Choice(&["text", "json"]), "\"text\"", Built, "How messages are logged: as lines of text, or each as a JSON object."),
    opt("roost.allowed_hosts", List, "[]", Built, "Host names, without a port, under which a development node or an admin page without a password may be reached, beside localhost and the node's own addresses."),
    opt("roost.demo", Bool, "false", Built, "Serve /demo, a page on which two clients talk."),
    opt("roost.demo_sdk", Text, "\"\"", Built, "File with the JavaScript SDK for it (centrifuge.js); empty: fetched once from the npm registry."),
    opt("roost.echo", Bool, "false", Built, "Serve /echo, a plain WebSocket echo for conformance and load tests."),
    opt("roost.drain_rate", COUNT, "10000", Built, "Connections closed per second when the node stops; 0: evenly over shutdown.timeout."),
    opt("roost.memory_limit", Checked(is_memory, MEMORY), "\"80%\"", Built, "Memory that the node may use: bytes, \"12GiB\" or a share of the machine or its cgroup. History ends a sixteenth below it; over it what grows is refused."),
    opt("roost.channels_max", SIZE, "4000000", Built, "Channels at most; beyond, the oldest without subscribers is forgotten."),
    opt("roost.handshake_timeout", Duration, "\"10s\"", Built, "How long a request may take to arrive."),
    opt("roost.idle_timeout", Duration, "\"2m\"", Built, "An HTTP connection that is kept for another request is closed after so long without one. Behind a load balancer that pools connections it has to be longer than that one's own idle timeout (600 s with some), so that the balancer closes first. An `/echo` connection that is silent for so long is pinged, and closed when it stays silent."),
    opt("roost.close_timeout", Duration, "\"5s\"", Built, "How long to wait for the answer to a close."),
    opt("roost.health_loop_lag", Duration, "\"1s\"", Built, "A node whose loops' p99 lag of a second is longer is not healthy; 0: whatever it is."),
    opt("roost.health_connections", Integer(1, 100), "100", Built, "Nor is one that has so many percent of the connections that it may have."),
    opt("roost.send_buffer", BUFFER, "65536", Built, "Bytes of a connection's send buffer in the kernel (SO_SNDBUF); 0: what the kernel thinks."),
    opt("roost.notsent_lowat", BUFFER, "16384", Built, "Unsent bytes in it at which a connection counts as blocked (TCP_NOTSENT_LOWAT); 0: what the kernel thinks."),
    opt("roost.socket_mode", Checked(is_socket_mode, SOCKET_MODE), "\"0660\"", Built, "Mode of the file of a Unix socket: who may write to it may connect."),
    opt("roost.proxy_protocol", Bool, "false", Built, "Connections of trusted_proxies begin with a PROXY header (version 1 or 2), which names the client; one without it is closed."),
    opt("roost.trusted_proxies", List, r#"["127.0.0.0/8", "::1", "unix"]"#, Built, "Peers that may name their clients: addresses and networks; \"unix\": those of a Unix socket. Of use with proxy_protocol and client_address_header only."),
    opt("roost.client_address_header", Choice(&["", "X-Forwarded-For", "Forwarded"]), "\"\"", Built, "Header of a request in which trusted_proxies name the client: the last address in it that isn't trusted; empty: none is believed."),
    opt("roost.connections_per_address", Integer(0, 1 << 31), "0", Built, "Connections of one address, or of one IPv6 network of 64 bits, at a time; more are answered with 429. 0: no limit."),
    opt("roost.connection_rate_per_address", Integer(0, 10_000), "0", Built, "New connections of one address in a second, that many at once; more are answered with 429. 0: no limit."),
    opt("roost.unfinished_bytes_per_address", Integer(0, 1 << 39), "0", Built, "Bytes that one address may have here of requests that are not whole; more are answered with 429. 0: no limit."),
    opt("roost.signature_checks_per_address", Integer(0, 1 << 31), "0", Built, "Unanswered checks of RSA, EC or Ed25519 token signatures of one address, or of one IPv6 network of 64 bits; above it error 111, which is temporary. 0: no limit."),
    other("roost.takeover", Text, "\"\"", Refused("live upgrade isn't built yet")),

    other("engine.type", Text, "\"memory\"", Refused(BROKER)),
    other("engine", Any, "", Silent(BROKER_OFF)),
    other("broker.enabled", Bool, "false", Silent(BROKER_OFF)),
    other("broker.type", Text, "\"memory\"", RefusedWith("broker.enabled", BROKER)),
    other("broker", Any, "", Silent(BROKER_OFF)),
    other("presence_manager.enabled", Bool, "false", Silent(BROKER_OFF)),
    other("presence_manager.type", Text, "\"memory\"", RefusedWith("presence_manager.enabled", BROKER)),
    other("presence_manager", Any, "", Silent(BROKER_OFF)),
    other("map_broker.type", Text, "\"memory\"", Harmless("map subscriptions alone use it, and a namespace with some is refused")),
    other("map_broker", Any, "", Silent(TYPED)),
    other("controller.enabled", Bool, "false", Refused("several nodes aren't built yet")),
    other("controller", Any, "", Silent(SWITCHED_OFF)),


    opt("http_stream.enabled", Bool, "false", Built, "Serve the client protocol over an endless response, for clients that can't have a WebSocket."),
    opt("http_stream.handler_prefix", PATH, "\"/connection/http_stream\"", Built, "Path of the endpoint."),
    opt("http_stream.max_request_body_size", SIZE, "65536", Built, "Bytes of a request's body at most."),
    opt("sse.enabled", Bool, "false", Built, "The same as server-sent events."),
    opt("sse.handler_prefix", PATH, "\"/connection/sse\"", Built, "Path of the endpoint."),
    opt("sse.max_request_body_size", SIZE, "65536", Built, "Bytes of a request's body at most."),
    opt("emulation.handler_prefix", PATH, "\"/emulation\"", Built, "Path of the up-link of http_stream and sse, which is there with either of them."),
    opt("emulation.max_request_body_size", SIZE, "65536", Built, "Bytes of a request's body at most."),
    opt("uni_websocket.enabled", Bool, "false", Built, "Serve pushes over WebSocket, to clients that send nothing but a connect request."),
    opt("uni_websocket.handler_prefix", PATH, "\"/connection/uni_websocket\"", Built, "Path of the endpoint."),
    opt("uni_websocket.compression", Bool, "false", Built, "As in websocket."),
    opt("uni_websocket.compression_min_size", COUNT, "0", Built, "As in websocket."),
    opt("uni_websocket.compression_level", LEVEL, "1", Built, "As in websocket."),
    opt("uni_websocket.message_size_limit", SIZE, "65536", Built, "Bytes of the connect request at most."),
    opt("uni_websocket.join_push_messages", Bool, "false", Built, "Pushes share frames, one a line."),
    opt("uni_websocket.disable_closing_handshake", Bool, "false", Built, "No close frame says why a connection ends."),
    opt("uni_websocket.disable_disconnect_push", Bool, "false", Built, "No push says why a connection ends."),
    other("uni_websocket.write_timeout", Duration, "\"1000ms\"", Harmless("websocket.write_timeout counts for all: how long a socket that takes nothing is kept")),
    other("uni_websocket.decompressed_message_size_limit", COUNT, "0", Harmless("message_size_limit bounds the connect request, deflated or not")),
    other("uni_websocket.read_buffer_size", COUNT, "0", Harmless("connections own no buffers")),
    other("uni_websocket.write_buffer_size", COUNT, "0", Harmless("connections own no buffers")),
    other("uni_websocket.use_write_buffer_pool", Bool, "false", Harmless("connections own no buffers")),
    opt("uni_sse.enabled", Bool, "false", Built, "Serve pushes as server-sent events: an ordinary EventSource is a client."),
    opt("uni_sse.handler_prefix", PATH, "\"/connection/uni_sse\"", Built, "Path of the endpoint."),
    opt("uni_sse.max_request_body_size", SIZE, "65536", Built, "Bytes of a request's body at most."),
    opt("uni_sse.connect_code_to_http_response.enabled", Bool, "false", Built, "Answer some errors and disconnects of the connect with a status."),
    opt("uni_sse.connect_code_to_http_response.transforms", Json(is_responses, RESPONSES), "[]", Built, "Which, and with what."),
    opt("uni_http_stream.enabled", Bool, "false", Built, "Serve pushes over an endless response, one a line."),
    opt("uni_http_stream.handler_prefix", PATH, "\"/connection/uni_http_stream\"", Built, "Path of the endpoint."),
    opt("uni_http_stream.max_request_body_size", SIZE, "65536", Built, "Bytes of a request's body at most."),
    opt("uni_http_stream.connect_code_to_http_response.enabled", Bool, "false", Built, "Answer some errors and disconnects of the connect with a status."),
    opt("uni_http_stream.connect_code_to_http_response.transforms", Json(is_responses, RESPONSES), "[]", Built, "Which, and with what."),
    opt("long_poll.enabled", Bool, "false", Built, "Answer requests with what was missed in channels, or with what comes next."),
    opt("long_poll.handler_prefix", PATH, "\"/connection/long_poll\"", Built, "Path of the endpoint."),
    opt("long_poll.max_request_body_size", SIZE, "65536", Built, "Bytes of a request's body at most."),
    opt("long_poll.timeout", Duration, "\"25s\"", Built, "How long a request waits for publications at most, 1s to 10m."),
    other("uni_grpc.enabled", Bool, "false", Refused(TRANSPORT)),
    other("uni_grpc.port", PORT, "11000", Silent(SWITCHED_OFF)),
    other("uni_grpc", Any, "", Silent(SWITCHED_OFF)),
    other("webtransport.enabled", Bool, "false", Refused(TRANSPORT)),
    other("webtransport", Any, "", Silent(SWITCHED_OFF)),

    opt("http_api.disabled", Bool, "false", Built, "Switch the server API off."),
    opt("http_api.handler_prefix", PATH, "\"/api\"", Built, "Where its paths begin."),
    opt("http_api.key", Text, "\"\"", Built, "Its key; without one every call is answered with 401."),
    opt("http_api.error_mode", Choice(&["", "default", "transport"]), "\"\"", Built, "transport: errors are HTTP statuses, too."),
    opt("http_api.insecure", Bool, "false", Built, "No key is needed. For tests only."),
    opt("http_api.external", Bool, "false", Built, "On the public port although there is an internal one."),
    // An API that is absent is no less safe than one that asks for a key, and an application that calls it
    // gets a refused connection, never a success.
    other("grpc_api.enabled", Bool, "false", Harmless("nothing listens on grpc_api.port: applications call the server API over HTTP (http_api)")),
    other("grpc_api.port", PORT, "10000", Silent("means something beside grpc_api.enabled only, which warns")),
    other("grpc_api", Any, "", Silent("means something beside grpc_api.enabled only, which warns")),
    opt("admin.enabled", Bool, "false", Built, "Serve the admin page."),
    opt("admin.handler_prefix", Checked(is_prefix, "a path that begins with \"/\", or \"\""), "\"\"", Built, "Where its paths begin: the page is at this and \"/\"."),
    opt("admin.password", Text, "\"\"", Built, "What opens it."),
    opt("admin.secret", Text, "\"\"", Built, "Signs what a browser has once it is in; empty: another one with each start."),
    opt("admin.insecure", Bool, "false", Built, "It is open without a password. Only where nobody else comes."),
    opt("admin.external", Bool, "false", Built, "On the public port although there is an internal one."),
    other("admin.web_path", Text, "\"\"", Harmless("the page is part of the program")),
    other("admin.web_proxy_address", Text, "\"\"", Harmless("the page is part of the program")),
    opt("prometheus.enabled", Bool, "false", Built, "Serve metrics in Prometheus's text format."),
    opt("prometheus.handler_prefix", PATH, "\"/metrics\"", Built, "Path of them."),
    other("prometheus", Any, "", Silent("says which metrics there are beside ours; none lets anybody in or changes a delivery")),
    opt("health.enabled", Bool, "false", Built, "Say by status 200 or 503 whether this node can serve."),
    opt("health.handler_prefix", PATH, "\"/health\"", Built, "Path of that."),
    other("swagger.enabled", Bool, "false", Harmless(GONE)),
    other("swagger", Any, "", Silent("means something beside swagger.enabled only, which warns")),
    other("debug.enabled", Bool, "false", Harmless(GONE)),
    other("debug", Any, "", Silent("means something beside debug.enabled only, which warns")),
    opt("init.enabled", Bool, "false", Built, "Answer {} to a browser that warms up its connection."),
    opt("init.handler_prefix", PATH, "\"/connection/init\"", Built, "Path of that."),
    other("opentelemetry", Any, "", Harmless("no traces are exported; metrics and the log are there")),
    other("graphite", Any, "", Harmless("metrics are there for Prometheus (prometheus.enabled), and are not pushed to Graphite")),
    other("usage_stats", Any, "", Silent("the node reports to nobody")),
    // What they would have published would be lost without a word.
    other("consumers", Any, "", Refused("consumers aren't built yet")),
    other("shared_poll", Any, "", Silent(TYPED)),
];

/// Options of a namespace and of `channel.without_namespace`.
#[rustfmt::skip]
static NAMESPACE: &[Opt] = &[
    opt("name", Text, "\"\"", Built, "What stands before the boundary in its channels' names."),
    opt("allow_subscribe_for_client", Bool, "false", Built, "Clients may subscribe without a subscription token."),
    opt("allow_subscribe_for_anonymous", Bool, "false", Built, "... and so may clients without a user id."),
    opt("allow_publish_for_client", Bool, "false", Built, "Clients may publish."),
    opt("allow_publish_for_subscriber", Bool, "false", Built, "Clients that are subscribed may publish."),
    opt("allow_publish_for_anonymous", Bool, "false", Built, "... and so may clients without a user id."),
    opt("allow_history_for_client", Bool, "false", Built, "Clients may read the history."),
    opt("allow_history_for_subscriber", Bool, "false", Built, "Clients that are subscribed may."),
    opt("allow_history_for_anonymous", Bool, "false", Built, "... and so may clients without a user id."),
    opt("allow_presence_for_client", Bool, "false", Built, "Clients may ask who is here."),
    opt("allow_presence_for_subscriber", Bool, "false", Built, "Clients that are subscribed may."),
    opt("allow_presence_for_anonymous", Bool, "false", Built, "... and so may clients without a user id."),
    opt("allow_user_limited_channels", Bool, "false", Built, "Channels named room#u1,u2 are for the users named only."),
    opt("history_size", LIMIT, "0", Built, "Publications to keep; with history_ttl."),
    opt("history_ttl", Duration, "\"0s\"", Built, "How long to keep them."),
    opt("history_meta_ttl", Duration, "\"0s\"", Built, "How long to keep offset and epoch after the last; 0: channel.history_meta_ttl."),
    opt("allow_positioning", Bool, "false", Built, "Subscriptions whose gaps are noticed, for clients that ask."),
    opt("force_positioning", Bool, "false", Built, "... for all."),
    opt("allow_recovery", Bool, "false", Built, "Subscriptions that get back what they missed, for clients that ask; with history."),
    opt("force_recovery", Bool, "false", Built, "... for all."),
    opt("force_recovery_mode", Choice(&["", "stream", "cache"]), "\"stream\"", Built, "What they get back: stream is all that they missed, cache the latest publication."),
    opt("auto_cache_recover", Bool, "false", Built, "In the mode cache the latest comes with every subscribe; with force_recovery."),
    opt("allowed_delta_types", Choices(&["fossil"]), "[]", Built, "Kinds of delta that clients may ask for: fossil; with history and positions."),
    opt("delta_publish", Bool, "false", Built, "Every publication goes as a delta to those who asked for it."),
    opt("allow_tags_filter", Bool, "false", Built, "Clients may filter publications by tags."),
    opt("presence", Bool, "false", Built, "Keep who is here."),
    opt("join_leave", Bool, "false", Built, "Tell who comes and goes, to clients that ask and may ask who is here."),
    opt("force_push_join_leave", Bool, "false", Built, "... to all."),
    opt("channel_regex", Text, "\"\"", Built, "Expression that the name after the namespace has to match."),
    opt("publication_data_format", FORMAT, "\"\"", Built, "As in channel; \"\" is what is said there."),
    opt("subscribe_proxy_enabled", Bool, "false", Built, "Ask the application whether a client may subscribe."),
    opt("subscribe_proxy_name", Text, "\"default\"", Built, "Which proxy asks: default is channel.proxy.subscribe, others stand in proxies."),
    opt("publish_proxy_enabled", Bool, "false", Built, "Ask the application whether, and what, a client publishes."),
    opt("publish_proxy_name", Text, "\"default\"", Built, "As above; default is channel.proxy.publish."),
    opt("sub_refresh_proxy_enabled", Bool, "false", Built, "Ask the application about subscriptions that expire, instead of the client."),
    opt("sub_refresh_proxy_name", Text, "\"default\"", Built, "As above; default is channel.proxy.sub_refresh."),
    other("subscribe_stream_proxy_enabled", Bool, "false", Refused(STREAM)),
    other("subscribe_stream_proxy_name", Text, "\"default\"", Silent(STREAMS)),
    other("subscribe_stream_proxy_bidirectional", Bool, "false", Silent(STREAMS)),
    other("subscription_type", Text, "\"stream\"", Refused("only subscriptions of the type stream are built yet")),
    other("map", Any, "", Silent(TYPED)),
    other("shared_poll", Any, "", Silent(TYPED)),
    other("map_clients_presence_channel_prefix", Text, "\"\"", Refused(MAP)),
    other("map_users_presence_channel_prefix", Text, "\"\"", Refused(MAP)),
    opt("roost.write_delay", Duration, "\"0s\"", Built, "Publications wait so long for others to go out with them, at most 1s."),
    opt("roost.slow_policy", Choice(&["disconnect", "drop_oldest", "latest"]), "\"disconnect\"", Built, "A client that is too slow: closed with 3008, loses the oldest of what waits for it, or has only the newest publication of a channel waiting. The last two where nobody has a position, or with force_recovery_mode = \"cache\"."),
    opt("roost.compression", Bool, "true", Built, "Publications go deflated to clients that have agreed on compression (websocket.compression)."),
];

/// Options of a proxy, by which the application is asked (server API, section 6).
#[rustfmt::skip]
static PROXY: &[Opt] = &[
    opt("name", Text, "\"\"", Built, "What *_proxy_name says, and metrics."),
    opt("enabled", Bool, "false", Built, "Ask it."),
    opt("endpoint", Checked(is_endpoint, "an http:// or https:// URL"), "\"\"", Built, "URL that calls are posted to; `user:password@` in it is sent as Basic authorization."),
    opt("timeout", Duration, "\"1s\"", Built, "How long a call may take, waiting for its turn included."),
    opt("http_headers", List, "[]", Built, "Headers of the client's request to take over."),
    opt("emulated_headers", List, "[]", Built, "Headers from the client's connect command to take over; http_headers win."),
    opt("binary_encoding", Bool, "false", Built, "Payloads go as base64 in b64data and b64info."),
    opt("include_connection_meta", Bool, "false", Built, "Send the meta of the connection."),
    opt("http.static_headers", Json(is_text_map, "a map of texts"), "{}", Built, "Headers of each call; ${CENTRIFUGO_VAR_X} and ${ROOST_VAR_X} stand for variables."),
    opt("http.status_to_code_transforms", Json(is_transforms, "a list of {status_code, to_error = {code, message, temporary}} or {status_code, to_disconnect = {code, reason}}"), "[]", Built, "What statuses other than 200 mean to the client."),
    opt("http.tls.enabled", Bool, "false", Built, "Use the options below; an https:// URL needs none of them."),
    opt("http.tls.server_ca_pem", Text, "\"\"", Built, "Certificates that sign the application's, or are it, instead of the machine's: PEM, a file with them, or base64 of it."),
    opt("http.tls.server_name", Text, "\"\"", Built, "Name in the application's certificate, when it isn't that in the URL."),
    opt("http.tls.cert_pem", Text, "\"\"", Built, "Certificate to show the application."),
    opt("http.tls.key_pem", Text, "\"\"", Built, "Its private key."),
    opt("http.tls.insecure_skip_verify", Bool, "false", Built, "Take any certificate of the application: anybody between here and there can read and answer its calls. For tests only."),
    other("http.tls.client_ca_pem", Text, "\"\"", Silent("servers check their clients by it, and a proxy is called as a client")),
    opt("roost.concurrency", Integer(1, 65_535), "256", Built, "Calls at a time; others wait."),
    opt("roost.breaker_failures", COUNT, "10", Built, "Failures of an endpoint within ten seconds, if they are half of its calls, after which it isn't asked for a while; 0: it always is. Timeouts, no connection, statuses of 5xx and answers not as agreed are failures, those of 4xx are not."),
    opt("roost.breaker_pause", Duration, "\"2s\"", Built, "How long it isn't asked before some calls try it."),
    other("grpc_metadata", List, "[]", Silent(GRPC)),
    other("grpc", Any, "", Harmless(GRPC)),
];

/// Options of an RPC namespace and of `rpc.without_namespace`.
#[rustfmt::skip]
static RPC_NAMESPACE: &[Opt] = &[
    opt("name", Text, "\"\"", Built, "What stands before the boundary in its methods."),
    opt("proxy_enabled", Bool, "false", Built, "Calls go to the application."),
    opt("proxy_name", Text, "\"default\"", Built, "Through which proxy: default is rpc.proxy, others stand in proxies."),
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
        vec![
            place(
                plain,
                "Channels whose names have no namespace.",
                "",
                all_but(NAMESPACE, &["name"]),
            ),
            list(
                "channel.namespaces",
                "Channels of one namespace, with its name.",
                plain,
                NAMESPACE,
            ),
            place(
                connect,
                "The application is asked who a connection without a token belongs to.",
                "",
                switched,
            ),
            place(
                "client.proxy.refresh",
                "... whether a connection that expires goes on.",
                connect,
                switched,
            ),
            place("channel.proxy.subscribe", "... whether a client may subscribe.", connect, event),
            place(
                "channel.proxy.publish",
                "... whether, and what, a client publishes.",
                connect,
                event,
            ),
            place(
                "channel.proxy.sub_refresh",
                "... whether a subscription that expires goes on.",
                connect,
                event,
            ),
            place("rpc.proxy", "... what a call returns.", connect, event),
            place(
                calls,
                "Methods whose names have no namespace.",
                "",
                all_but(RPC_NAMESPACE, &["name"]),
            ),
            list(
                "rpc.namespaces",
                "Methods of one namespace, with its name.",
                calls,
                RPC_NAMESPACE,
            ),
            list(
                "proxies",
                "Other proxies, by the names that namespaces say.",
                connect,
                all_but(PROXY, &["enabled"]),
            ),
        ]
    });
    &PLACES
}

/// Called once for each of few tables: what it leaks is part of the program.
fn all_but(rows: &[Opt], paths: &[&str]) -> &'static [Opt] {
    let kept = rows.iter().filter(|row| !paths.contains(&row.path));
    Vec::leak(kept.copied().collect())
}

const FORMAT: Kind = Choice(&["", "json", "json_object", "binary"]);
const BUFFER: Kind = Integer(0, 1 << 30);
const PATH: Kind = Checked(is_path, "a path that begins with \"/\"");
const SHARDS: &str = "\"cores\", \"auto\" or a number from 1 to 255";
const MEMORY: &str = "bytes, a size such as \"12GiB\" (at least 16MiB), or a share such as \"80%\"";

/// What `text` means under `roost.socket_mode`: permissions in octal digits.
pub(super) fn socket_mode(text: &str) -> Option<u32> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777)
}

fn is_socket_mode(text: &str) -> bool {
    socket_mode(text).is_some()
}

const SOCKET_MODE: &str = "permissions in octal digits, \"0660\" for example";

/// What `text` means under `roost.shards`: `Some(0)` stands for a word.
pub(super) fn shards(text: &str) -> Option<u8> {
    match text {
        "cores" | "auto" => Some(0),
        number => number.parse().ok().filter(|&count| count > 0),
    }
}

/// What `text` means under `roost.memory_limit`: bytes, or a share in percent.
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
        for rows in [OPTIONS, NAMESPACE, PROXY, RPC_NAMESPACE] {
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
        "broker",
        "client.subscription_token.jwks",
        "client.token.jwks",
        "consumers",
        "controller",
        "engine",
        "http_server.http3",
        "http_server.internal_tls",
        "http_server.tls",
        "http_server.tls_autocert",
        "map_clients_presence_channel_prefix",
        "map_users_presence_channel_prefix",
        "presence_manager",
        "roost.takeover",
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
        let tables = [OPTIONS, NAMESPACE, PROXY, RPC_NAMESPACE];
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
            let by_type = matches!(row.path, "broker.enabled" | "presence_manager.enabled");
            assert!(by_type || !matches!(row.class, Silent(_)), "{} is silent", row.path);
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
