//! The wire, sans I/O: bytes in, events and bytes out. Knows no socket, clock or thread.

pub mod client;
pub mod framing;
pub mod http;
pub mod proxy_header;
pub mod tls;
pub mod ws;
