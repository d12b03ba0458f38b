//! NATS as the broker of several nodes: subjects, payloads, its protocol and JetStream, as values.
//!
//! ```text
//!  subjects::Subjects ----> subjects of channels and of messages between nodes
//!  payload ----> bytes of a message of a channel
//!  protocol::Op <---- bytes of the connection;   protocol::put_* ----> bytes
//!  streams ----> requests to JetStream, and its answers
//! ```
//! Nodes of Centrifugo v6 use the same subjects and payloads, but for JetStream. Nothing here knows a connection, a
//! clock or a thread: that is `node/nats`.

pub mod payload;
pub mod protocol;
pub mod streams;
pub mod subjects;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl Place {
    /// `host:port`, the port 4222 by default; an IPv6 address is in brackets. `None` for other texts.
    pub fn read(text: &str) -> Option<Self> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
            _ => (text, 4_222),
        };
        let host = host.trim_matches(['[', ']']);
        let is_host = !host.is_empty() && !host.contains([' ', '/', '@']) && port > 0;
        is_host.then(|| Self { host: host.to_owned(), port })
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_hosts_with_ports() {
        let at = |host: &str, port| Some(Place { host: host.into(), port });
        for (text, place) in [
            ("127.0.0.1:7000", at("127.0.0.1", 7_000)),
            ("nats.test", at("nats.test", 4_222)),
            ("[::1]:7000", at("::1", 7_000)),
            ("[::1]", at("::1", 4_222)),
            ("h:x", None),
            ("h:0", None),
            (":1", None),
            ("a b", None),
        ] {
            assert_eq!(Place::read(text), place, "{text}");
        }
        assert_eq!(Place::read("[::1]:1").unwrap().to_string(), "[::1]:1");
    }
}
