//! The text that a node shows once it listens: its limits, and where its pages and endpoints are.

use super::demo::Snippets;
use crate::config::{self, Config, DEV_SECRET};
use crate::io::sockets::Address;

/// The parts of the text that are known before the node listens.
pub(super) struct Greeting {
    from: String,
    shards: usize,
    limits: String,
    /// Path of WebSockets, where they are on.
    websocket: Option<String>,
    echo: bool,
    insecure: bool,
    admin: Option<config::Admin>,
    demo: bool,
    /// A development node.
    dev: bool,
    /// Its tokens are signed with the secret that everybody knows.
    dev_secret: bool,
    snippets: Snippets,
    /// The internal port speaks TLS.
    internal_tls: bool,
    /// Fingerprint of a certificate that the node has made for itself.
    fingerprint: Option<String>,
}

impl Greeting {
    /// That of a node with options `from` somewhere.
    pub(super) fn new(
        config: &Config,
        from: &str,
        (shards, limits): (usize, &[String]),
        snippets: Snippets,
        (dev, fingerprint): (bool, Option<String>),
    ) -> Self {
        let websocket = &config.websocket;
        Self {
            from: from.to_owned(),
            shards,
            limits: limits.join("\n"),
            websocket: websocket.enabled.then(|| websocket.handler_prefix.clone()),
            echo: config.roost.echo,
            insecure: config.client.insecure,
            admin: config.web.admin.clone(),
            demo: config.web.demo.is_some(),
            dev,
            dev_secret: config.tokens.connection.hmac_secret_key == DEV_SECRET,
            snippets,
            internal_tls: config.tls.internal.is_some(),
            fingerprint,
        }
    }

    /// The text of a node that listens at public addresses and internal ones.
    pub(super) fn text(&self, addresses: &[Address], internal: &[Address]) -> String {
        let mut lines =
            vec![format!("roost {}, options from {}", env!("CARGO_PKG_VERSION"), self.from)];
        lines.push(self.limits.clone());
        if self.insecure {
            lines.push("client.insecure is on: every client has full access".to_owned());
        }
        if let Some(first) = addresses.first().map(host_of) {
            self.put_pages(&mut lines, &first, internal);
        }
        for address in internal {
            let scheme = secured("http", self.internal_tls);
            lines.push(format!("internal endpoints are at {scheme}://{}", host_of(address)));
        }
        if let Some(fingerprint) = &self.fingerprint {
            lines.push(format!(
                "TLS with a certificate that nobody has signed; its SHA-256 fingerprint is\n{fingerprint}"
            ));
        }
        for address in addresses {
            let mode = match address {
                Address::Ip(_) => String::new(),
                Address::Unix(unix) => {
                    format!(
                        " (mode {:04o}); it needs no port, and options of TCP are of no use",
                        unix.mode
                    )
                }
            };
            lines.push(format!("listening on {address} with {} shards{mode}", self.shards));
        }
        lines.join("\n") + "\n"
    }

    /// Where clients connect, and the pages.
    fn put_pages(&self, lines: &mut Vec<String>, first: &str, internal: &[Address]) {
        let is_secure = self.snippets.is_secure;
        let (http, ws) = (secured("http", is_secure), secured("ws", is_secure));
        let url = self.websocket.as_ref().map(|path| format!("{ws}://{first}{path}"));
        lines.push(match &url {
            Some(url) => format!("clients connect to {url}"),
            None => "websocket.disabled is on: no client can connect".to_owned(),
        });
        if self.echo {
            lines.push(format!("echo is at {ws}://{first}/echo"));
        }
        let on_internal = self.admin.as_ref().is_some_and(|admin| !admin.external);
        let page_at = internal.first().filter(|_| on_internal).map(host_of);
        let page = match page_at {
            Some(at) => format!("{}://{at}", secured("http", self.internal_tls)),
            None => format!("{http}://{first}"),
        };
        lines.push(admin_line(self.admin.as_ref(), &page));
        if self.demo {
            lines.push(format!(
                "demo: {http}://{first}/demo, clients that talk, with presence and recovery"
            ));
        }
        if self.dev && url.is_some() {
            lines.push(format!(
                "development node: anonymous clients may subscribe and publish. A page of your own, to be\n\
                 opened from {http}://localhost or {http}://127.0.0.1:\n\n{}",
                self.snippets.html(first)
            ));
            if let Some(curl) = self.snippets.curl(first) {
                lines.push(format!("publish from a shell, while it is open:\n\n{curl}\n"));
            }
        }
        if self.dev && self.dev_secret {
            lines.push("`roost token --user 42` prints a token for it".to_owned());
        }
    }
}

/// Where the admin page is, and who gets in.
fn admin_line(admin: Option<&config::Admin>, at: &str) -> String {
    let Some(admin) = admin else {
        return "admin page: off; admin.enabled and admin.password switch it on".to_owned();
    };
    let url = format!("{at}{}/", admin.prefix);
    match (&admin.link, &admin.password) {
        _ if admin.insecure => {
            format!("admin page: {url}, WITHOUT a password: open to every client that reaches it")
        }
        (Some(link), None) => format!("admin page: {url}#link={link} (works until the node ends)"),
        _ => format!("admin page: {url}, with admin.password"),
    }
}

/// The scheme of a port that speaks TLS, or of one that doesn't.
fn secured(scheme: &str, is_secure: bool) -> String {
    if is_secure { format!("{scheme}s") } else { scheme.to_owned() }
}

/// An address as URLs have it; a Unix socket's as nginx writes it: its path stands between colons.
fn host_of(address: &Address) -> String {
    match address {
        Address::Ip(address) => address.to_string(),
        Address::Unix(_) => format!("{address}:"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting() -> Greeting {
        Greeting {
            from: "no file".to_owned(),
            shards: 2,
            limits: "a limit".to_owned(),
            websocket: Some("/connection/websocket".to_owned()),
            echo: false,
            insecure: false,
            admin: None,
            demo: false,
            dev: false,
            dev_secret: true,
            snippets: Snippets::default(),
            internal_tls: false,
            fingerprint: None,
        }
    }

    #[test]
    fn a_node_names_its_addresses_and_pages() {
        let public = [Address::Ip("127.0.0.1:8000".parse().unwrap())];
        let internal = [Address::Ip("127.0.0.1:9000".parse().unwrap())];
        let text = greeting().text(&public, &internal);
        let expected = format!(
            "roost {}, options from no file\na limit\n\
             clients connect to ws://127.0.0.1:8000/connection/websocket\n\
             admin page: off; admin.enabled and admin.password switch it on\n\
             internal endpoints are at http://127.0.0.1:9000\n\
             listening on 127.0.0.1:8000 with 2 shards\n",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(text, expected);
        let closed = Greeting { websocket: None, dev: true, ..greeting() }.text(&public, &[]);
        assert!(closed.contains("no client can connect") && closed.contains("roost token"));
    }

    #[test]
    fn a_node_with_tls_names_schemes_and_the_fingerprint_of_its_own_certificate() {
        let public = [Address::Ip("127.0.0.1:8000".parse().unwrap())];
        let internal = [Address::Ip("127.0.0.1:9000".parse().unwrap())];
        let snippets = Snippets { is_secure: true, ..greeting().snippets };
        let fingerprint = Some("AB:CD".to_owned());
        let greeting =
            Greeting { snippets, internal_tls: true, fingerprint, demo: true, ..greeting() };
        let text = greeting.text(&public, &internal);
        for expected in [
            "clients connect to wss://127.0.0.1:8000/connection/websocket\n",
            "demo: https://127.0.0.1:8000/demo",
            "internal endpoints are at https://127.0.0.1:9000\n",
            "\nAB:CD\n",
        ] {
            assert!(text.contains(expected), "{text}");
        }
    }
}
