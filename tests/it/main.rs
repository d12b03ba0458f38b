//! The real program, from outside: started on a free port of loopback, asked over sockets, told by
//! signals, watched by its own figures and by `/proc`.
//!
//! Nothing here waits for time to pass: every answer is awaited with a bound, and figures are
//! polled until they are as expected, with a bound.
#![expect(clippy::disallowed_methods, reason = "clocks bound what is awaited; threads are clients")]

mod addresses;
mod admin;
mod api;
mod bad_input;
mod certificates;
mod command_line;
mod compression;
mod delivery;
mod harness;
mod history;
mod hooks;
mod http;
mod lifecycle;
mod limits;
mod liveness;
mod log;
mod nats;
mod nats_access;
mod nats_cluster;
mod nats_history;
mod nodes;
mod operations;
mod options;
#[path = "../../src/edge/jwt/testing.rs"]
mod pairs;
mod payloads;
mod polls;
mod presence;
mod presence_nodes;
mod protobuf;
mod protocol;
mod proxies;
mod ready;
mod redis;
mod redis_faults;
mod redis_layouts;
mod reload;
mod senders;
mod server_process;
mod server_subs;
mod service_manager;
mod shutdown;
mod signatures;
mod slow;
mod start;
mod takeover;
mod takeover_calls;
mod takeover_nats;
mod takeover_redis;
mod takeover_shared;
mod tls;
mod tls_node;
mod tokens;
mod transports;
mod tunnel;
mod unix_socket;
mod vectors;
mod websocket;
