//! NATS as the broker of several nodes: subjects, payloads and JetStream, as values.
//!
//! ```text
//!  subjects::Subjects ----> subjects of channels and of messages between nodes
//!  payload ----> bytes of a message of a channel
//!  streams ----> requests to JetStream, and its answers
//! ```
//! Nodes of Centrifugo v6 use the same subjects and payloads, but for JetStream. Nothing here knows a connection, a
//! clock or a thread: that is `node/nats`, and the protocol is the crate `async-nats`.

pub mod payload;
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

/// Credentials of a connection.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// User; empty: none.
    pub user: String,
    /// Password.
    pub password: String,
    /// A token instead of both; empty: none.
    pub token: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_part_of_no_log() {
        let (password, token) = ("secret".to_owned(), "secret".to_owned());
        let credentials = Credentials { user: "u".to_owned(), password, token };
        let text = format!("{credentials:?}");
        assert!(text.contains("\"u\"") && !text.contains("secret"), "{text}");
    }

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
