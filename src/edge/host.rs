//! DNS rebinding: under which host names a node without passwords may be reached.
//!
//! A web page whose name resolves to this machine is of the node's own origin for the browser: neither its
//! `Origin` nor CORS reveals it. Only the `Host` header does, since it carries the page's name. An address
//! can't be rebound, so only names have to be known.

use std::net::IpAddr;

/// Which requests have to name this node in their `Host` header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostScope {
    /// None: tokens, keys and origins protect the node.
    #[default]
    Nothing,
    /// The paths of the admin page, which has no password.
    Admin,
    /// All of them, as for a development node.
    Everything,
}

/// The hosts that are this node. `localhost` and the loopback addresses always are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostRules {
    /// Which requests are checked.
    pub scope: HostScope,
    /// Addresses that the node listens on; an unspecified one stands for every address.
    pub addresses: Vec<IpAddr>,
    /// Further names, lower case, without a port.
    pub names: Vec<String>,
}

impl HostRules {
    /// Whether a request may be served. No `Host` is no browser (HTTP/1.0), and allowed.
    pub fn admits(&self, host: Option<&[u8]>, is_admin: bool) -> bool {
        let checked = match self.scope {
            HostScope::Nothing => false,
            HostScope::Admin => is_admin,
            HostScope::Everything => true,
        };
        let Some(host) = host.filter(|_| checked) else { return true };
        std::str::from_utf8(host).is_ok_and(|host| self.knows(host.trim()))
    }

    fn knows(&self, authority: &str) -> bool {
        let host = without_port(authority);
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = bare.parse::<IpAddr>() {
            let address = address.to_canonical();
            return address.is_loopback()
                || self.addresses.iter().any(|own| own.is_unspecified() || *own == address);
        }
        let name = host.strip_suffix('.').unwrap_or(host);
        name.eq_ignore_ascii_case("localhost")
            || self.names.iter().any(|known| known.eq_ignore_ascii_case(name))
    }
}

/// The host of `host:port`; the port may be another one where it is forwarded.
fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port))
            if port.bytes().all(|byte| byte.is_ascii_digit())
                && (!host.contains(':') || host.ends_with(']')) =>
        {
            host
        }
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_node_are_served() {
        let rules = |addresses: &[&str]| HostRules {
            scope: HostScope::Everything,
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            names: vec!["dev.example".to_owned()],
        };
        let loopback = rules(&["127.0.0.1"]);
        for (host, admitted) in [
            ("localhost", true),
            ("localhost:8000", true),
            ("LOCALHOST.:1", true),
            ("127.0.0.1:8000", true),
            ("127.9.9.9", true),
            ("[::1]:8000", true),
            ("[::1]", true),
            ("[::ffff:127.0.0.1]", true),
            ("dev.example:8000", true),
            ("Dev.Example", true),
            ("evil.example:8000", false),
            ("localhost.evil.example", false),
            ("evil.localhost", false),
            ("127.0.0.1.evil.example", false),
            ("evil.example:localhost", false),
            ("192.168.1.2", false),
            ("[::2]", false),
            ("0.0.0.0:8000", false),
            ("", false),
            (":8000", false),
        ] {
            assert_eq!(loopback.admits(Some(host.as_bytes()), false), admitted, "{host}");
        }
        assert!(!loopback.admits(Some(b"localhost\xff"), false));
        assert!(loopback.admits(None, false));
        assert!(rules(&["192.168.1.2"]).admits(Some(b"192.168.1.2:80"), false));
        assert!(rules(&["0.0.0.0", "::"]).admits(Some(b"10.0.0.1"), false));
        assert!(!rules(&["0.0.0.0", "::"]).admits(Some(b"evil.example"), false));
    }

    #[test]
    fn the_scope_says_which_requests_are_checked() {
        for (scope, client, admin) in [
            (HostScope::Nothing, true, true),
            (HostScope::Admin, true, false),
            (HostScope::Everything, false, false),
        ] {
            let rules = HostRules { scope, ..HostRules::default() };
            let admits = |is_admin| rules.admits(Some(b"evil.example"), is_admin);
            assert_eq!((admits(false), admits(true)), (client, admin), "{scope:?}");
        }
    }
}
