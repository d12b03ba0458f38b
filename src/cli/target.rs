//! The running node that a command is for: by its configuration, or by a URL.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::flags::ShortOptionArgs;
use super::http::{At, Endpoint};
use crate::base::address::Peer;
use crate::config::{self, Config, ConfigError, Internal, ListenAt, Sources};
use crate::node::tls::{Trust, client_config};

/// Arguments that say which node is meant.
#[derive(Debug, Default, clap::Args)]
pub(super) struct TargetArgs {
    /// Address of the node, http://HOST:PORT, https://HOST:PORT or unix:/PATH; by default that of its
    /// configuration.
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Time to wait for a connection and for an answer.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = timeout)]
    pub timeout: Duration,
    /// Authorities that may have signed the certificate of --url, a PEM file; by default the machine's.
    #[arg(long, value_name = "FILE", requires = "url")]
    pub ca: Option<PathBuf>,
    /// Accept any certificate of --url.
    #[arg(long, requires = "url")]
    pub insecure: bool,
    /// The configuration that the node was started with.
    #[command(flatten)]
    pub options: ShortOptionArgs,
}

fn timeout(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(timeout) if !timeout.is_zero() => Ok(timeout),
        _ => Err("expected a duration such as 500ms or 3s".to_owned()),
    }
}

/// The port of a node that serves something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    /// That of clients.
    Public,
    /// The internal one if there is one, else the public one.
    Internal,
}

/// A command could not find its node.
#[derive(Debug)]
pub(super) enum TargetFault {
    /// The configuration can't be used.
    Config(ConfigError),
    /// Text for the user.
    Usage(String),
}

impl From<String> for TargetFault {
    fn from(text: String) -> Self {
        Self::Usage(text)
    }
}

/// The node, by configuration or URL.
pub(super) struct Target {
    pub config: Config,
    /// What it was read from, to be read once more.
    pub sources: Sources,
    url: Option<Given>,
    timeout: Duration,
}

/// An address that was given as a URL.
struct Given {
    at: At,
    tls: Option<Arc<ClientConfig>>,
    /// The secret in the link to the admin page of a development node.
    link: Option<String>,
}

impl Target {
    /// Reads the configuration, if there is one, and the URL.
    ///
    /// # Errors
    /// One of them can't be used.
    pub(super) fn find(
        arguments: &TargetArgs,
        environment: Vec<(String, String)>,
    ) -> Result<Self, TargetFault> {
        let options = arguments.options.0.clone();
        let sources = Sources { file: options.config, environment, flags: options.set, dev: false };
        let is_dev = !config::is_configured(&sources);
        let sources = Sources { dev: is_dev, ..sources };
        let loaded = config::load(&sources).map_err(TargetFault::Config)?;
        let url = arguments.url.as_deref().map(|url| given(url, arguments)).transpose()?;
        Ok(Self { config: loaded.config, sources, url, timeout: arguments.timeout })
    }

    /// Its address was given as a URL.
    pub(super) fn has_url(&self) -> bool {
        self.url.is_some()
    }

    /// The secret of a link to the admin page, where one was given.
    pub(super) fn link(&self) -> Option<String> {
        self.url.as_ref()?.link.clone()
    }

    /// Ways to a port, to be tried in this order.
    ///
    /// # Errors
    /// Text for the user: the port isn't known, or TLS can't be used.
    pub(super) fn endpoints(&self, port: Port) -> Result<Vec<Endpoint>, String> {
        if let Some(Given { at, tls, .. }) = &self.url {
            let (at, tls, timeout) = (at.clone(), tls.clone(), self.timeout);
            return Ok(vec![Endpoint { at, tls, proxy_header: false, timeout }]);
        }
        let server = &self.config.http_server;
        let internal = server.internal.as_ref().filter(|_| port == Port::Internal);
        let is_secure = match internal {
            Some(_) => self.config.tls.internal.is_some(),
            None => self.config.tls.public.is_some(),
        };
        // The addresses are those of this machine, as its own configuration has them: the name in the
        // certificate is another one, and no authority says more.
        let tls = is_secure.then(|| tls(Trust::Anybody)).transpose()?;
        let at = match internal {
            Some(Internal { at, port }) => places(at, *port, "http_server.internal_port")?,
            None => places(&server.at, server.port, "http_server.port")?,
        };
        let sources = &self.config.roost.addresses;
        let expects_header = |at: &At| {
            let peer = match at {
                At::Tcp(host, _) => host.parse().ok().map(Peer::of),
                At::Unix(_) => Some(Peer::Unix),
            };
            let is_trusted = peer.is_some_and(|peer| sources.trusted.trusts(peer));
            internal.is_none() && sources.proxy_protocol && is_trusted
        };
        let endpoint = |at: At| Endpoint {
            proxy_header: expects_header(&at),
            at,
            tls: tls.clone(),
            timeout: self.timeout,
        };
        Ok(at.into_iter().map(endpoint).collect())
    }

    /// The first of these ways that leads to something.
    ///
    /// # Errors
    /// What the last one came to.
    pub(super) fn try_each<T>(
        &self,
        port: Port,
        attempt: impl Fn(&Endpoint) -> Result<T, String>,
    ) -> Result<T, String> {
        let mut last = Err("no address".to_owned());
        for endpoint in self.endpoints(port)? {
            last = attempt(&endpoint);
            if last.is_ok() {
                break;
            }
        }
        last
    }
}

/// Addresses of a listener on this machine.
fn places(at: &ListenAt, port: u16, option: &str) -> Result<Vec<At>, String> {
    let addresses = match at {
        ListenAt::Unix(path) => return Ok(vec![At::Unix(path.clone())]),
        ListenAt::Ips(addresses) => addresses,
    };
    if port == 0 {
        return Err(format!("{option} is 0, so the port isn't known: name it with --url"));
    }
    let reached = |address: &IpAddr| match address {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => *address,
    };
    Ok(addresses.iter().map(|address| At::Tcp(reached(address).to_string(), port)).collect())
}

fn tls(trust: Trust) -> Result<Arc<ClientConfig>, String> {
    Ok(Arc::new(client_config(trust)?.with_no_client_auth()))
}

/// Reads `--url`. A path in it is left out, so that the link to an admin page can be given.
fn given(url: &str, arguments: &TargetArgs) -> Result<Given, String> {
    let expected = || {
        let forms = "http://HOST:PORT, https://HOST:PORT or unix:/PATH";
        format!("--url {url:?}: expected {forms}")
    };
    if let Some(path) = url.strip_prefix("unix:") {
        let at = At::Unix(path.into());
        return if path.is_empty() {
            Err(expected())
        } else {
            Ok(Given { at, tls: None, link: None })
        };
    }
    let without_fragment = url.split('#').next().unwrap_or_default();
    let uri: hyper::Uri = without_fragment.parse().map_err(|_| expected())?;
    let (host, is_secure) = match (uri.host(), uri.scheme_str()) {
        (Some(host), Some("https")) => (host, true),
        (Some(host), Some("http")) => (host, false),
        _ => return Err(expected()),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
    let trust = match &arguments.ca {
        _ if arguments.insecure => Trust::Anybody,
        None => Trust::Machine,
        Some(path) => {
            let fault = |fault: &dyn std::fmt::Display| format!("--ca {}: {fault}", path.display());
            let read = CertificateDer::pem_file_iter(path).map_err(|error| fault(&error))?;
            Trust::Certificates(read.collect::<Result<_, _>>().map_err(|error| fault(&error))?)
        }
    };
    let tls = is_secure.then(|| tls(trust)).transpose().map_err(|fault| format!("TLS: {fault}"))?;
    let link = url.split_once("#link=").map(|(_, link)| link.to_owned());
    Ok(Given { at: At::Tcp(host, port), tls, link })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(flags: &[(&'static str, &str)], url: Option<&str>) -> Result<Target, TargetFault> {
        let set = flags.iter().map(|(path, text)| (*path, (*text).to_owned())).collect();
        let options = super::super::flags::OptionArgs { config: None, set };
        let arguments = TargetArgs {
            url: url.map(str::to_owned),
            timeout: Duration::from_secs(1),
            options: ShortOptionArgs(options),
            ..TargetArgs::default()
        };
        Target::find(&arguments, Vec::new())
    }

    fn found(flags: &[(&'static str, &str)], url: Option<&str>, port: Port) -> Vec<String> {
        let target = target(flags, url).unwrap_or_else(|fault| panic!("{fault:?}"));
        target.endpoints(port).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_of_a_configuration() {
        let key = ("http_api.key", "0123456789abcdef");
        for (flags, port, expected) in [
            (&[][..], Port::Public, &["http://127.0.0.1:8000"][..]),
            (&[key], Port::Public, &["http://127.0.0.1:8000", "http://[::1]:8000"]),
            (
                &[("http_server.port", "9000"), ("http_server.address", "127.0.0.1")],
                Port::Internal,
                &["http://127.0.0.1:9000"],
            ),
            (
                &[key, ("http_server.internal_port", "9001"), ("http_server.address", "10.0.0.1")],
                Port::Internal,
                &["http://10.0.0.1:9001"],
            ),
            (
                &[key, ("http_server.internal_port", "9001"), ("http_server.address", "10.0.0.1")],
                Port::Public,
                &["http://10.0.0.1:8000"],
            ),
            (
                &[key, ("http_server.address", "unix:/run/roost.sock")],
                Port::Internal,
                &["unix:/run/roost.sock"],
            ),
            (
                &[key, ("roost.tls_self_signed", "true"), ("http_server.address", "127.0.0.1")],
                Port::Public,
                &["https://127.0.0.1:8000"],
            ),
        ] {
            assert_eq!(found(flags, None, port), expected, "{flags:?}");
        }
        let unknown = target(&[("http_server.port", "0")], None).unwrap();
        assert!(unknown.endpoints(Port::Public).unwrap_err().contains("http_server.port is 0"));
    }

    #[test]
    fn proxy_headers_are_sent_where_they_are_expected() {
        let flags = [
            ("http_api.key", "0123456789abcdef"),
            ("roost.proxy_protocol", "true"),
            ("http_server.address", "127.0.0.1"),
            ("http_server.internal_port", "9001"),
        ];
        let target = target(&flags, None).unwrap();
        let sends = |port| target.endpoints(port).unwrap()[0].proxy_header;
        assert_eq!((sends(Port::Public), sends(Port::Internal)), (true, false));
    }

    #[test]
    fn urls() {
        for (url, expected) in [
            ("http://a.example", "http://a.example:80"),
            ("http://127.0.0.1:8000/#link=abc", "http://127.0.0.1:8000"),
            ("https://[::1]:8443/admin/", "https://[::1]:8443"),
            ("unix:/run/a.sock", "unix:/run/a.sock"),
        ] {
            assert_eq!(found(&[], Some(url), Port::Internal), [expected]);
        }
        for url in ["", "unix:", "a.example:80", "ftp://a.example", "http://"] {
            let fault = target(&[], Some(url)).map(|_| ()).unwrap_err();
            assert!(matches!(fault, TargetFault::Usage(text) if text.contains("--url")), "{url}");
        }
    }
}
