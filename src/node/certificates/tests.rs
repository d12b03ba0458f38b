use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::string::BmpString;
use rcgen::{DnType, DnValue};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};

use super::testing::{pem, signed};
use super::*;
use crate::config::TicketOptions;
use crate::node::tls::{Trust, client_config};
use crate::proto::tls::handshake::{Established, Handshake, prepare_client};

/// A folder of one test, removed behind it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("roost-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// A new certificate for these names.
    fn pair(&self, name: &str, names: &[&str]) {
        let (certificate, key) = pem(names);
        self.write(&format!("{name}.pem"), &certificate);
        self.write(&format!("{name}.key"), &key);
    }

    fn source(&self, name: &str) -> PairSource {
        let file = |end: &str| Pem::File(self.path(&format!("{name}.{end}")));
        PairSource {
            option: name.to_owned(),
            certificate: file("pem"),
            key: file("key"),
            is_obtained: false,
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn listener(default: PairSource) -> ListenerTls {
    ListenerTls {
        section: "http_server.tls",
        default: Some(default),
        by_name: Vec::new(),
        client_ca: None,
    }
}

fn options(public: ListenerTls) -> Tls {
    Tls {
        public: Some(public),
        internal: None,
        tickets: TicketOptions { keys: None, period_ms: 60_000 },
        handshakes_max: 100,
        acme: None,
    }
}

fn open(options: Tls) -> (Certificates, Arc<ServerSettings>) {
    let certificates = Certificates::open(options, Vec::new(), unix_now()).unwrap();
    let settings = certificates.public().unwrap().load_full();
    (certificates, settings)
}

/// The settings of the public listeners, if this has changed them.
fn changed(certificates: &Certificates, by: impl FnOnce()) -> Option<Arc<ServerSettings>> {
    let public = certificates.public().unwrap();
    let before = public.load_full();
    by();
    Some(public.load_full()).filter(|after| !Arc::ptr_eq(&before, after))
}

fn looked(certificates: &Certificates, now: i64) -> Option<Arc<ServerSettings>> {
    changed(certificates, || certificates.look(now))
}

fn reloaded(certificates: &Certificates, options: Tls, now: i64) -> Arc<ServerSettings> {
    changed(certificates, || certificates.reload(options, now)).unwrap()
}

/// A handshake with a client that accepts any certificate. Both ends' results.
fn shake(
    settings: &ServerSettings,
    client: &Arc<ClientConfig>,
    name: &str,
) -> Result<(Established, Established), String> {
    let mut server = settings.begin().map_err(|fault| fault.to_string())?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = Handshake::client(client, name).map_err(|fault| fault.to_string())?;
    let (mut server_done, mut client_done) = (false, false);
    while !(server_done && client_done) {
        let to_server = client.to_send().to_vec();
        client.sent(to_server.len());
        if !to_server.is_empty() {
            let fault = |fault: crate::proto::tls::handshake::HandshakeFault| fault.to_string();
            server_done = server.read(&to_server, &mut 0).map_err(fault)?;
        }
        let to_client = server.to_send().to_vec();
        server.sent(to_client.len());
        let mut at = 0;
        client_done = client.read(&to_client, &mut at).map_err(|fault| fault.to_string())?;
        if to_server.is_empty() && to_client.is_empty() && !client_done {
            return Err("neither goes on".to_owned());
        }
    }
    let server = server.finish().map_err(|fault| fault.to_string())?;
    Ok((server, client.finish().map_err(|fault| fault.to_string())?))
}

fn any_client() -> Arc<ClientConfig> {
    let mut config = client_config(Trust::Anybody).unwrap().with_no_client_auth();
    prepare_client(&mut config);
    Arc::new(config)
}

/// The certificate that clients of this name get.
fn served(settings: &ServerSettings, name: &str) -> Vec<u8> {
    let (_, client) = shake(settings, &any_client(), name).unwrap();
    client.certificate.unwrap().to_vec()
}

fn der(path: &Path) -> Vec<u8> {
    CertificateDer::from_pem_file(path).unwrap().to_vec()
}

#[test]
fn a_changed_pair_is_read_and_a_bad_one_keeps_the_one_before() {
    let folder = Folder::new("certificates");
    folder.pair("a", &["a.example"]);
    let (certificates, settings) = open(options(listener(folder.source("a"))));
    let first = der(&folder.path("a.pem"));
    assert_eq!(served(&settings, "a.example"), first);
    let now = unix_now();
    let look = || (0..LOOK_EVERY).find_map(|_| looked(&certificates, now));
    assert!(look().is_none(), "nothing has changed");
    // The key isn't there yet: the next look has to confirm that it is missing.
    folder.pair("b", &["a.example"]);
    fs::copy(folder.path("b.pem"), folder.path("a.pem")).unwrap();
    let settings = look().unwrap();
    assert_eq!(served(&settings, "a.example"), first);
    assert!(certificates.faults().is_empty());
    fs::copy(folder.path("b.key"), folder.path("a.key")).unwrap();
    let settings = looked(&certificates, now).unwrap();
    let second = der(&folder.path("b.pem"));
    assert_eq!(served(&settings, "a.example"), second);
    assert!(certificates.faults().is_empty());
    // It stays wrong.
    folder.write("a.key", "nonsense");
    assert_eq!(served(&look().unwrap(), "a.example"), second);
    assert_eq!(served(&looked(&certificates, now).unwrap(), "a.example"), second);
    let faults = certificates.faults();
    assert!(faults.len() == 1 && faults[0].starts_with("a: its key: "), "{faults:?}");
    // A signal reads it at once.
    folder.pair("a", &["a.example"]);
    let state = options(listener(folder.source("a")));
    let settings = reloaded(&certificates, state, now);
    assert_eq!(served(&settings, "a.example"), der(&folder.path("a.pem")));
    assert!(certificates.faults().is_empty());
}

#[test]
fn a_pair_that_does_not_belong_together_stops_the_start() {
    let folder = Folder::new("pairs");
    folder.pair("a", &["a.example"]);
    folder.pair("b", &["b.example"]);
    let read = |certificate: &str, key: &str| {
        let file = |name: &str| Pem::File(folder.path(name));
        let source = PairSource {
            option: "o".to_owned(),
            certificate: file(certificate),
            key: file(key),
            is_obtained: false,
        };
        Certificates::open(options(listener(source)), Vec::new(), unix_now()).err()
    };
    assert_eq!(read("a.pem", "a.key"), None);
    assert_eq!(read("a.pem", "b.key").as_deref(), Some("o: the key is another certificate's"));
    assert!(read("missing.pem", "a.key").unwrap().contains("missing.pem: No such file"));
    assert!(read("a.pem", "a.pem").unwrap().starts_with("o: its key: "));
    assert_eq!(read("a.key", "a.key").as_deref(), Some("o: no certificate in it"));
    // A chain in the wrong order.
    let (a, b) = (folder.path("a.pem"), folder.path("b.pem"));
    let read_text = |path: &Path| fs::read_to_string(path).unwrap();
    folder.write("chain.pem", &(read_text(&a) + &read_text(&b)));
    let (authority, certificate, key) = signed(&[(DnType::CommonName, "c")]);
    folder.write("good.pem", &(certificate.clone() + &authority));
    folder.write("wrong.pem", &(certificate + &read_text(&a)));
    folder.write("good.key", &key);
    assert_eq!(read("good.pem", "good.key"), None);
    let fault = read("wrong.pem", "good.key").unwrap();
    assert!(
        fault.ends_with("certificate 2 of the chain has not signed the one before it"),
        "{fault}"
    );
}

#[test]
fn a_client_gets_the_certificate_of_the_host_that_it_names() {
    let folder = Folder::new("hosts");
    folder.pair("default", &["default.example"]);
    folder.pair("other", &["x.example.com"]);
    let by_name = vec![("*.example.com".to_owned(), folder.source("other"))];
    let public = ListenerTls { by_name, ..listener(folder.source("default")) };
    let (certificates, settings) = open(options(public.clone()));
    assert_eq!(served(&settings, "a.example.com"), der(&folder.path("other.pem")));
    assert_eq!(served(&settings, "nobody.example"), der(&folder.path("default.pem")));
    let names: Vec<_> = certificates.expiries().into_iter().map(|of| of.name).collect();
    assert_eq!(names, ["default.example", "x.example.com"]);
    // One of them is broken: the other one is read all the same.
    folder.pair("default", &["default.example"]);
    folder.write("other.pem", "nonsense");
    let settings = reloaded(&certificates, options(public), unix_now());
    assert_eq!(served(&settings, "nobody.example"), der(&folder.path("default.pem")));
    assert!(!certificates.faults().is_empty());
    let (_, client) = shake(&settings, &any_client(), "a.example.com").unwrap();
    assert!(client.certificate.is_some());
}

#[test]
fn clients_need_a_certificate_of_the_authorities() {
    let folder = Folder::new("clients");
    folder.pair("a", &["a.example"]);
    let subject = [
        (DnType::CountryName, "DE"),
        (DnType::OrganizationName, "Acme, Inc."),
        (DnType::CommonName, "client 1"),
    ];
    let (authority, certificate, key) = signed(&subject);
    let (_, stranger, strange_key) = signed(&subject);
    let client_ca = Some(Pem::Text(authority));
    let public = ListenerTls { client_ca, ..listener(folder.source("a")) };
    let (certificates, settings) = open(options(public.clone()));
    let client = |certificate: &str, key: &str| {
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let builder = client_config(Trust::Anybody).unwrap();
        let mut config = builder.with_client_auth_cert(chain, key).unwrap();
        prepare_client(&mut config);
        Arc::new(config)
    };
    let own = client(&certificate, &key);
    let (server, _) = shake(&settings, &own, "a.example").unwrap();
    assert_eq!(
        settings.subject(&server.certificate.unwrap()).as_deref(),
        Some("CN=client 1,O=Acme\\, Inc.,C=DE")
    );
    // Each handshake is a full one: a ticket would outlive the certificate.
    assert!(!shake(&settings, &own, "a.example").unwrap().0.resumed);
    assert!(shake(&settings, &any_client(), "a.example").is_err());
    assert!(shake(&settings, &client(&stranger, &strange_key), "a.example").is_err());
    // Without readable authorities nobody else gets in.
    let broken = ListenerTls { client_ca: Some(Pem::Text("-----BEGIN x".into())), ..public };
    let settings = reloaded(&certificates, options(broken), unix_now());
    assert!(shake(&settings, &any_client(), "a.example").is_err());
    assert!(shake(&settings, &own, "a.example").is_ok());
    assert_eq!(certificates.faults().len(), 1);
}

#[test]
fn a_subject_is_text_that_headers_can_have() {
    let subject_of = |attributes: &[(DnType, DnValue)]| {
        let (_, certificate, _) = signed(attributes);
        subject(&CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap())
    };
    let common = |value: &str| subject_of(&[(DnType::CommonName, value.into())]);
    for (value, expected) in [
        ("a,b+c\"d\\e<f>g;h", "CN=a\\,b\\+c\\\"d\\\\e\\<f\\>g\\;h"),
        (" a ", "CN=\\ a\\ "),
        ("#a", "CN=\\#a"),
        // What a header can't have is left out, and doesn't hide what is escaped behind it.
        ("\u{1}#a\r\nX: y", "CN=\\#aX: y"),
        ("\u{e9}", "CN=\u{e9}"),
    ] {
        assert_eq!(common(value).as_deref(), Some(expected), "{value:?}");
    }
    // None, and one that is no text in UTF-8, with its BER encoding.
    assert_eq!(subject_of(&[]), None);
    let bmp = BmpString::try_from("a").unwrap();
    let found = subject_of(&[(DnType::CommonName, DnValue::BmpString(bmp))]);
    assert_eq!(found.as_deref(), Some("CN=#1e020061"));
    let long = common(&"\u{e9}".repeat(400)).unwrap();
    assert!(long.len() <= 512 && long.len() > 506 && long.ends_with("\u{e9}..."), "{long}");
}

#[test]
fn keys_that_other_users_may_read_are_warned_of() {
    let folder = Folder::new("modes");
    folder.pair("a", &["a.example"]);
    folder.write("tickets", &STANDARD.encode([7; 32]));
    let set = |name: &str, mode| {
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(folder.path(name), permissions).unwrap();
    };
    set("a.key", 0o640);
    set("tickets", 0o604);
    let mut options = options(listener(folder.source("a")));
    options.tickets.keys = Some(folder.path("tickets"));
    let (certificates, _) = open(options);
    let exposed = || -> Vec<(PathBuf, u32)> {
        let state = certificates.state();
        state.exposed().into_iter().map(|(path, mode)| (path.to_path_buf(), mode)).collect()
    };
    assert_eq!(exposed(), [(folder.path("a.key"), 0o640), (folder.path("tickets"), 0o604)]);
    set("a.key", 0o600);
    set("tickets", 0o400);
    assert_eq!(exposed(), []);
}

#[test]
fn the_ends_of_certificates_are_warned_of_once_a_day() {
    let folder = Folder::new("ends");
    folder.pair("a", &["a.example"]);
    let (certificates, _) = open(options(listener(folder.source("a"))));
    let end = certificates.expiries()[0].not_after;
    let warned = |now: i64| {
        let mut state = certificates.state();
        let before = state.warned.get("a").copied();
        state.warn_of_ends(now);
        state.warned.get("a").copied() != before
    };
    assert!(!warned(end - 15 * DAY));
    assert!(warned(end - 13 * DAY));
    assert!(!warned(end - 13 * DAY + 60));
    assert!(warned(end - 12 * DAY));
    assert!(warned(end + 1));
}

#[test]
fn a_self_signed_certificate_stays_for_the_life_of_a_node() {
    let public = ListenerTls {
        default: None,
        ..listener(PairSource {
            option: String::new(),
            certificate: Pem::Text(String::new()),
            key: Pem::Text(String::new()),
            is_obtained: false,
        })
    };
    let (certificates, settings) = open(options(public.clone()));
    let first = served(&settings, "localhost");
    let fingerprint = certificates.self_signed().unwrap();
    assert_eq!(fingerprint.len(), 32 * 3 - 1);
    let settings = reloaded(&certificates, options(public), unix_now());
    assert_eq!(served(&settings, "localhost"), first);
    assert_eq!(certificates.self_signed(), Some(fingerprint));
}

#[test]
fn the_nodes_own_ticket_key_is_replaced_each_period() {
    let folder = Folder::new("periods");
    folder.pair("a", &["a.example"]);
    let (certificates, settings) = open(options(listener(folder.source("a"))));
    let client = any_client();
    let resumed =
        |client: &Arc<ClientConfig>| shake(&settings, client, "a.example").unwrap().0.resumed;
    let now = unix_now();
    let look = |now: i64| (0..LOOK_EVERY).for_each(|_| drop(looked(&certificates, now)));
    assert!(!resumed(&client));
    look(now + 59);
    let first = Arc::clone(&certificates.tickets);
    let sealed = tickets::Tickets::new(first);
    let ticket = rustls::server::ProducesTickets::encrypt(&sealed, b"x").unwrap();
    let opens = || rustls::server::ProducesTickets::decrypt(&sealed, &ticket).is_some();
    look(now + 61);
    assert!(opens(), "for two periods");
    look(now + 200);
    assert!(!opens(), "and not for three");
}

#[test]
fn a_certificate_that_is_obtained_may_be_missing_at_first() {
    let folder = Folder::new("obtained");
    let acme = Acme {
        hosts: vec!["chat.example.com".to_owned()],
        cache: folder.0.clone(),
        email: None,
        http: None,
        tls_alpn: true,
        directory: "https://acme.example/directory".to_owned(),
        authorities: None,
    };
    let file = Pem::File(acme.file("chat.example.com"));
    let option = Acme::option("chat.example.com");
    let source = PairSource {
        option: option.clone(),
        certificate: file.clone(),
        key: file,
        is_obtained: true,
    };
    // What was left behind by an accident counts as nothing.
    folder.write("chat.example.com", "-----BEGIN");
    let options = Tls { acme: Some(acme), ..options(listener(source)) };
    let (certificates, settings) = open(options);
    assert!(certificates.faults().is_empty() && certificates.expiries().is_empty());
    assert_eq!(certificates.validity(&option), None);
    let refused = shake(&settings, &any_client(), "chat.example.com").unwrap_err();
    assert!(refused.contains("no server certificate"), "{refused}");
    // A challenge can be answered all the same, and only by its protocol.
    let mut server = ClientConfig::clone(&any_client());
    server.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    let server = Arc::new(server);
    let challenges = certificates.acme().unwrap().1;
    assert!(shake(&settings, &server, "chat.example.com").is_err(), "there is no challenge");
    challenges.insert("chat.example.com", &[7; 32]).unwrap();
    // It has the extension of challenges, which only an ACME server knows.
    let answered = shake(&settings, &server, "chat.example.com").unwrap_err();
    assert!(answered.contains("UnsupportedCriticalExtension"), "{answered}");
    assert!(shake(&settings, &server, "other.example.com").is_err());
    assert!(shake(&settings, &any_client(), "chat.example.com").is_err());
    challenges.remove("chat.example.com");
    let refused = shake(&settings, &server, "chat.example.com").unwrap_err();
    assert!(refused.contains("no server certificate"), "{refused}");

    certificates.obtained(&option, Err("no way".to_owned()), unix_now());
    assert_eq!(certificates.faults(), ["http_server.tls_autocert[chat.example.com]: no way"]);
    let (certificate, key) = pem(&["chat.example.com"]);
    let both = format!("{key}{certificate}");
    assert!(certificates.check_pair("other.example.com", &both).is_err());
    assert!(certificates.check_pair("chat.example.com", &certificate).is_err());
    certificates.check_pair("chat.example.com", &both).unwrap();
    folder.write("chat.example.com", &both);
    let settings =
        changed(&certificates, || certificates.obtained(&option, Ok(()), unix_now())).unwrap();
    assert!(certificates.faults().is_empty() && certificates.validity(&option).is_some());
    assert_eq!(certificates.attempts(), [("obtained", 1), ("failed", 1)]);
    let first = served(&settings, "chat.example.com");
    // Another node has renewed it.
    let (certificate, key) = pem(&["chat.example.com"]);
    folder.write("chat.example.com", &format!("{key}{certificate}"));
    let settings = changed(&certificates, || certificates.read_now(unix_now())).unwrap();
    assert_ne!(served(&settings, "chat.example.com"), first);
    assert!(changed(&certificates, || certificates.read_now(unix_now())).is_none());
}
