//! TLS of the listeners: sections `http_server.tls`, `http_server.internal_tls` and `roost.tls`.
//!
//! What is read here is where certificates and keys are. The node reads them, now and again later, since
//! they change while it runs.

use std::collections::HashSet;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::layers::{Report, Scope, Settings};

/// TLS of all listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Of the public port, if it speaks TLS.
    pub public: Option<ListenerTls>,
    /// Of the internal port, if there is one and it speaks TLS.
    pub internal: Option<ListenerTls>,
    /// Tickets of all of them.
    pub tickets: TicketOptions,
    /// Handshakes of the public port that may be under way at a time.
    pub handshakes_max: usize,
    /// How certificates of the public port are obtained, if they are.
    pub acme: Option<Acme>,
}

/// Certificates from an ACME server (RFC 8555): section `http_server.tls_autocert`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acme {
    /// One certificate each.
    pub hosts: Vec<String>,
    /// Where keys and certificates are kept.
    pub cache: PathBuf,
    /// For messages of the server's operators.
    pub email: Option<String>,
    /// The listener of HTTP-01 challenges, if they are answered.
    pub http: Option<SocketAddr>,
    /// The public port may answer TLS-ALPN-01 challenges: its clients need no certificates.
    pub tls_alpn: bool,
    /// The URL of the server's directory.
    pub directory: String,
    /// Authorities of the server's own certificate; `None`: the machine's.
    pub authorities: Option<Pem>,
}

impl Tls {
    /// These options for a node that runs with others: what needs a restart stays. That is whether a listener
    /// speaks TLS, whether certificates are obtained, and how, other than for which hosts.
    #[must_use]
    pub fn in_place_of(self, running: &Self) -> Self {
        let acme = self.acme.zip(running.acme.as_ref()).map(|(acme, running)| Acme {
            hosts: acme.hosts,
            email: acme.email,
            tls_alpn: acme.tls_alpn,
            ..running.clone()
        });
        let listener = |tls: Option<ListenerTls>, running: &Option<ListenerTls>| {
            let running = running.as_ref()?;
            let tls = tls.and_then(|tls| tls.obtained_by(acme.as_ref()));
            Some(tls.unwrap_or_else(|| running.clone()))
        };
        let public = listener(self.public, &running.public);
        let internal = listener(self.internal, &running.internal);
        Self { public, internal, acme, ..self }
    }
}

impl Acme {
    /// The file with the certificate of a host, its chain and its key.
    pub fn file(&self, host: &str) -> PathBuf {
        self.cache.join(host)
    }

    /// The name of a host's certificate, for messages and metrics.
    pub fn option(host: &str) -> String {
        format!("{AUTOCERT}[{host}]")
    }

    fn pair(&self, host: &str) -> PairSource {
        let file = Pem::File(self.file(host));
        PairSource {
            option: Self::option(host),
            certificate: file.clone(),
            key: file,
            is_obtained: true,
        }
    }
}

/// TLS of one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerTls {
    /// The section, for messages.
    pub section: &'static str,
    /// For clients that name no host, or one that no certificate is for. `None`: one that the node makes
    /// for itself and that nobody has signed.
    pub default: Option<PairSource>,
    /// By names of hosts.
    pub by_name: Vec<(String, PairSource)>,
    /// Authorities of the certificates that clients need; `None`: clients need none.
    pub client_ca: Option<Pem>,
}

impl ListenerTls {
    /// The same with files of this ACME client. Without one, there are no pairs to be obtained; `None`: not even
    /// one for clients that name no host.
    fn obtained_by(mut self, acme: Option<&Acme>) -> Option<Self> {
        let pairs = self.default.iter_mut().chain(self.by_name.iter_mut().map(|(_, pair)| pair));
        for pair in pairs.filter(|pair| pair.is_obtained) {
            if let (Some(acme), Some(host)) = (acme, pair.certificate.file_name()) {
                *pair = acme.pair(&host);
            }
        }
        let is_there = |pair: &PairSource| !pair.is_obtained || acme.is_some();
        self.by_name.retain(|(_, pair)| is_there(pair));
        let has_default = self.default.as_ref().is_none_or(is_there);
        has_default.then_some(self)
    }
}

/// A certificate with its chain, and its private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairSource {
    /// The option of the certificate, for messages.
    pub option: String,
    /// The certificate, then those that it is signed by.
    pub certificate: Pem,
    /// Its key.
    pub key: Pem,
    /// The node obtains it: until it has, there is none.
    pub is_obtained: bool,
}

/// A PEM text, or where it is.
#[derive(Clone, PartialEq, Eq)]
pub enum Pem {
    /// The text, as it is in the option or as base64 there.
    Text(String),
    /// A file with it.
    File(PathBuf),
}

impl Pem {
    /// Reads the meaning of an option: the text, base64 of it, or a path.
    fn of(given: &str) -> Self {
        const BEGIN: &str = "-----BEGIN";
        if given.contains(BEGIN) {
            return Self::Text(given.to_owned());
        }
        let packed: String = given.split_ascii_whitespace().collect();
        let decoded = STANDARD.decode(packed).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        match decoded.filter(|text| text.contains(BEGIN)) {
            Some(text) => Self::Text(text),
            None => Self::File(given.into()),
        }
    }

    /// The last part of the file's path, if it is one.
    fn file_name(&self) -> Option<String> {
        Some(self.path()?.file_name()?.to_str()?.to_owned())
    }

    /// The file, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Text(_) => None,
            Self::File(path) => Some(path),
        }
    }
}

/// Without the text, which may be a key.
impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => write!(f, "PEM of {} bytes", text.len()),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Tickets, by which clients resume TLS sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketOptions {
    /// A file with keys that several nodes share; `None`: the node makes its own.
    pub keys: Option<PathBuf>,
    /// How long a key of the node's own seals tickets, milliseconds. They are accepted for twice as long.
    pub period_ms: u64,
}

/// A ticket holds for at most seven days (RFC 8446, 4.6.1), and is accepted for two periods.
const PERIOD_MS: std::ops::RangeInclusive<u64> = 60_000..=302_400_000;

const PERIOD: &str = "roost.tls_ticket_period";

/// Whether the self-signed certificate is used.
const SELF_SIGNED: &str = "roost.tls_self_signed";

/// Certificates from an ACME server.
const AUTOCERT: &str = "http_server.tls_autocert";

const EXTERNAL: &str = "http_server.tls_external";

pub(super) fn tls(settings: &Settings, has_internal: bool, report: &mut Report) -> Tls {
    let root = &settings.root;
    let by_name = by_name(settings, report);
    let self_signed = root.flag(SELF_SIGNED);
    let mut section = |section: &'static str, self_signed: bool| {
        listener(root, section, self_signed, &by_name, report)
    };
    let public = section("http_server.tls", self_signed);
    let own = section("http_server.internal_tls", false);
    let (acme, public) = match acme(root, public.as_ref(), report) {
        Some((acme, name)) => {
            let public = obtained(&acme, &name, public, &by_name);
            (Some(acme), Some(public))
        }
        None => (None, public),
    };
    let shared = public.clone().filter(|_| !root.flag(EXTERNAL));
    let internal = own.or(shared).filter(|_| has_internal);
    if public.is_none() && internal.is_none() && !by_name.is_empty() {
        let (origin, _) = &settings.list("roost.tls")[0];
        report
            .warnings
            .push(format!("{origin}: roost.tls: of no use without http_server.tls.enabled"));
    }
    let period_ms = root.ms(PERIOD);
    if !PERIOD_MS.contains(&period_ms) {
        report.errors.push(root.complaint(PERIOD, "1m to 84h"));
    }
    Tls {
        public,
        internal,
        tickets: TicketOptions { keys: root.path("roost.tls_ticket_keys"), period_ms },
        handshakes_max: root.size("roost.tls_handshakes_max"),
        acme,
    }
}

/// The section of the ACME client, and the host of clients that name none. `None`: it is off.
fn acme(root: &Scope, public: Option<&ListenerTls>, report: &mut Report) -> Option<(Acme, String)> {
    let path = |name: &str| format!("{AUTOCERT}.{name}");
    if !root.flag(&path("enabled")) {
        return None;
    }
    let mut wrong =
        |option: &str, expected: &str| report.errors.push(root.complaint(option, expected));
    let lower = |host: &String| host.to_ascii_lowercase();
    let mut hosts: Vec<String> = root.list(&path("host_whitelist")).iter().map(lower).collect();
    let server_name = lower(&root.text(&path("server_name")));
    if hosts.is_empty() && !server_name.is_empty() {
        hosts.push(server_name.clone());
    }
    let mut seen = HashSet::new();
    hosts.retain(|host| seen.insert(host.clone()));
    if hosts.is_empty() || !hosts.iter().all(|host| is_host_pattern(host) && !host.contains('*')) {
        let expected = "names of hosts, one at least, such as [\"chat.example.com\"]: each has a certificate of its \
                        own, and none is obtained for other names or for wildcards";
        wrong(&path("host_whitelist"), expected);
    }
    if !server_name.is_empty() && !hosts.contains(&server_name) {
        wrong(&path("server_name"), "a host of host_whitelist");
    }
    let cache = root.path(&path("cache_dir"));
    if cache.is_none() {
        let expected = "a directory: without one each start would request all certificates again, and servers \
                        refuse that soon";
        wrong(&path("cache_dir"), expected);
    }
    let address = root.text(&path("http_addr"));
    let http = root.flag(&path("http")).then(|| listener_address(&address));
    if http == Some(None) {
        wrong(&path("http_addr"), "an IP address and a port, or \":\" and a port");
    }
    let tls_alpn = public.is_none_or(|public| public.client_ca.is_none());
    if http.is_none() && !tls_alpn {
        let expected = "true: the public port needs certificates of its clients, so it can't answer challenges";
        wrong(&path("http"), expected);
    }
    let directory = root.text("roost.acme_directory");
    if !directory.starts_with("https://") {
        wrong("roost.acme_directory", "an https:// URL");
    }
    let text = |path: &str| Some(root.text(path)).filter(|text| !text.is_empty());
    let acme = Acme {
        cache: cache.unwrap_or_default(),
        email: text(&path("email")),
        http: http.flatten(),
        tls_alpn,
        directory,
        authorities: text("roost.acme_ca_pem").map(|pem| Pem::of(&pem)),
        hosts,
    };
    let name = if server_name.is_empty() { acme.hosts.first().cloned() } else { Some(server_name) };
    Some((acme, name.unwrap_or_default()))
}

/// TLS of the public port with certificates that are obtained. One that is configured beside them is for
/// clients that name no host or another one.
fn obtained(
    acme: &Acme,
    server_name: &str,
    public: Option<ListenerTls>,
    by_name: &[(String, PairSource)],
) -> ListenerTls {
    let mut public = public.unwrap_or_else(|| ListenerTls {
        section: "http_server.tls",
        default: Some(acme.pair(server_name)),
        by_name: by_name.to_vec(),
        client_ca: None,
    });
    // Configured names come first: they are there at the start.
    let taken: HashSet<String> = public.by_name.iter().map(|(name, _)| name.clone()).collect();
    let free = acme.hosts.iter().filter(|host| !taken.contains(*host));
    public.by_name.extend(free.map(|host| (host.clone(), acme.pair(host))));
    public
}

/// An address to listen on; without an IP address, all of them.
fn listener_address(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix(':') {
        Some(port) => Some(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port.parse().ok()?))),
        None => text.parse().ok(),
    }
}

/// The section of one listener. `None`: it doesn't speak TLS.
fn listener(
    root: &Scope,
    section: &'static str,
    self_signed: bool,
    by_name: &[(String, PairSource)],
    report: &mut Report,
) -> Option<ListenerTls> {
    let path = |name: &str| format!("{section}.{name}");
    if !root.flag(&path("enabled")) && !self_signed {
        return None;
    }
    let text = |name: &str| root.text(&path(name));
    let (certificate, key) = (text("cert_pem"), text("key_pem"));
    let pair = |option: String| PairSource {
        option,
        certificate: Pem::of(&certificate),
        key: Pem::of(&key),
        is_obtained: false,
    };
    let default = match (certificate.is_empty(), key.is_empty()) {
        (false, false) if self_signed => {
            let expected = "nothing, or no roost.tls_self_signed";
            report.errors.push(root.complaint(&path("cert_pem"), expected));
            None
        }
        (false, false) => Some(pair(path("cert_pem"))),
        (true, true) if self_signed => None,
        // The first of those by name takes the place.
        (true, true) if !by_name.is_empty() => Some(by_name[0].1.clone()),
        (true, _) => {
            let expected = "a certificate: PEM, a file with it, or base64 of it";
            report.errors.push(root.complaint(&path("cert_pem"), expected));
            None
        }
        (false, true) => {
            let expected = "the key of the certificate: PEM, a file with it, or base64 of it";
            report.errors.push(root.complaint(&path("key_pem"), expected));
            None
        }
    };
    let client_ca = Some(text("client_ca_pem")).filter(|text| !text.is_empty());
    let client_ca = client_ca.map(|text| Pem::of(&text));
    Some(ListenerTls { section, default, by_name: by_name.to_vec(), client_ca })
}

/// The list `roost.tls`: certificates by names of hosts.
fn by_name(settings: &Settings, report: &mut Report) -> Vec<(String, PairSource)> {
    let mut seen = HashSet::new();
    let mut pairs = Vec::new();
    for (origin, scope) in settings.list("roost.tls") {
        let name = scope.name().to_ascii_lowercase();
        let mut wrong = |expected: &str| {
            report
                .errors
                .push(format!("{origin}: roost.tls: name = {name:?}: expected {expected}"));
        };
        if !is_host_pattern(&name) {
            wrong("the name of a host, such as \"example.com\" or \"*.example.com\"");
        } else if !seen.insert(name.clone()) {
            wrong("a name that no other one has");
        }
        for option in ["cert_pem", "key_pem"] {
            if scope.text(option).is_empty() {
                let expected = "PEM, a file with it, or base64 of it";
                report.errors.push(format!("{origin}: {}", scope.complaint(option, expected)));
            }
        }
        let pem = |option: &str| Pem::of(&scope.text(option));
        let option = format!("roost.tls[{name}].cert_pem");
        pairs.push((
            name,
            PairSource {
                option,
                certificate: pem("cert_pem"),
                key: pem("key_pem"),
                is_obtained: false,
            },
        ));
    }
    pairs
}

/// A DNS name in its ASCII form, or one whose first label is `*` (RFC 6125, 6.4.3).
fn is_host_pattern(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let (host, is_wildcard) = match name.strip_prefix("*.") {
        Some(rest) => (rest, true),
        None => (name, false),
    };
    host.len() <= 253 && host.split('.').all(is_label) && (!is_wildcard || host.contains('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_hosts() {
        for good in ["example.com", "*.example.com", "localhost", "a-b.c", "xn--bcher-kva.example"]
        {
            assert!(is_host_pattern(good), "{good}");
        }
        for wrong in ["", "*", "*.com", "a..b", "a.*.b", "*a.b", "bücher.example", "a b"] {
            assert!(!is_host_pattern(wrong), "{wrong}");
        }
    }

    #[test]
    fn an_address_without_an_ip_is_all_of_them() {
        assert_eq!(listener_address(":80"), "[::]:80".parse().ok());
        assert_eq!(listener_address("127.0.0.1:8080"), "127.0.0.1:8080".parse().ok());
        for wrong in ["", "80", ":", "localhost:80", ":99999"] {
            assert_eq!(listener_address(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn pem_is_a_text_base64_of_it_or_a_file() {
        let text = "-----BEGIN CERTIFICATE-----\n";
        assert_eq!(Pem::of(text), Pem::Text(text.to_owned()));
        assert_eq!(Pem::of(&STANDARD.encode(text)), Pem::Text(text.to_owned()));
        assert_eq!(Pem::of("cert.pem"), Pem::File("cert.pem".into()));
        assert_eq!(Pem::of("cert.pem").path(), Some(Path::new("cert.pem")));
        // Not the text, which may be a key.
        assert!(!format!("{:?}", Pem::of(text)).contains("BEGIN"));
    }

    fn acme(cache: &str, hosts: &[&str]) -> Acme {
        Acme {
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            cache: cache.into(),
            email: None,
            http: None,
            tls_alpn: true,
            directory: format!("https://{cache}.example/"),
            authorities: None,
        }
    }

    fn options(acme: Option<Acme>, public: Option<ListenerTls>) -> Tls {
        let public = match &acme {
            Some(acme) => Some(obtained(acme, &acme.hosts[0], public, &[])),
            None => public,
        };
        let tickets = TicketOptions { keys: None, period_ms: *PERIOD_MS.start() };
        Tls { internal: public.clone(), public, tickets, handshakes_max: 1, acme }
    }

    fn of_files() -> ListenerTls {
        let file = Pem::File("cert.pem".into());
        let (certificate, key, is_obtained) = (file.clone(), file, false);
        let default = PairSource { option: String::new(), certificate, key, is_obtained };
        let (default, by_name) = (Some(default), Vec::new());
        ListenerTls { section: "http_server.tls", default, by_name, client_ca: None }
    }

    #[test]
    fn hosts_of_the_acme_client_change_and_its_directories_stay() {
        let running = options(Some(acme("old", &["a.example"])), None);
        let new = options(Some(acme("new", &["b.example", "a.example"])), None);
        let mut expected = options(Some(acme("old", &["b.example", "a.example"])), None);
        assert_eq!(new.clone().in_place_of(&running), expected);
        // The internal port has no TLS until a restart, or no port.
        expected.internal = None;
        assert_eq!(new.in_place_of(&Tls { internal: None, ..running }), expected);
    }

    #[test]
    fn an_acme_client_begins_with_a_restart() {
        let running = options(None, Some(of_files()));
        let new = options(Some(acme("new", &["a.example"])), Some(of_files()));
        assert_eq!(new.in_place_of(&running), running);
        let new = options(Some(acme("new", &["a.example"])), None);
        assert_eq!(new.in_place_of(&running), running);
        let obtained = options(Some(acme("old", &["a.example"])), None);
        let stopped = options(None, None).in_place_of(&obtained);
        assert_eq!((&stopped.public, &stopped.acme), (&obtained.public, &None));
    }
}
