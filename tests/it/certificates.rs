//! Certificates of the internal port, which the control thread serves: read at the start and again at SIGHUP. And
//! those of clients.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::json;

use crate::addresses::application;
use crate::harness::{BOUND, CLIENTS, Node, Raw, TEXT, frame, over_tls, upgrade};
use crate::tunnel;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("roost-it-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A new certificate for `localhost`, in the two files of the options.
    fn new_pair(&self) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(self.path("cert.pem"), certificate.pem()).unwrap();
        std::fs::write(self.path("key.pem"), key.serialize_pem()).unwrap();
        CertificateDer::from_pem_slice(certificate.pem().as_bytes()).unwrap()
    }

    /// The options of an internal port with these files.
    fn options(&self) -> String {
        format!(
            "[http_server]\ninternal_port = \"0\"\n[http_server.internal_tls]\nenabled = true\n\
             cert_pem = \"{}\"\nkey_pem = \"{}\"\n[prometheus]\nenabled = true\n[health]\nenabled = true\n",
            self.path("cert.pem").display(),
            self.path("key.pem").display()
        )
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// A connection to the internal port that accepts this certificate alone.
fn connect(node: &Node, certificate: &CertificateDer<'static>) -> Stream {
    let errors = node.errors();
    let line = errors.lines().find(|line| line.contains("internal endpoints are at")).unwrap();
    connect_to(line.rsplit("https://").next().unwrap().parse().unwrap(), certificate)
}

fn connect_to(address: SocketAddr, certificate: &CertificateDer<'static>) -> Stream {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    StreamOwned::new(connection, TcpStream::connect(address).unwrap())
}

/// The answer to a request that goes over a kept connection: all that has come when `end` has.
fn get(stream: &mut Stream, path: &str, end: &str) -> Result<String, std::io::Error> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut buffer = [0; 16 * 1024];
    while !String::from_utf8_lossy(&answer).contains(end) {
        match stream.read(&mut buffer)? {
            0 => break,
            count => answer.extend_from_slice(&buffer[..count]),
        }
    }
    Ok(String::from_utf8(answer).unwrap())
}

/// A node whose internal port speaks TLS keeps its certificate while the files are wrong, and says so; a new
/// pair is served to new connections, and those that exist don't notice.
#[test]
fn the_internal_port_speaks_tls_and_reads_its_certificate_again() {
    let folder = Folder::new("internal-tls");
    let first = folder.new_pair();
    let options = folder.options();
    let node = Node::start(&options, &[]);
    let mut kept = connect(&node, &first);
    assert!(get(&mut kept, "/health", "}").unwrap().ends_with("\r\n\r\n{}"));

    let second = folder.new_pair();
    std::fs::write(folder.path("key.pem"), "nonsense").unwrap();
    node.reload(&options, "TLS: what was read before stays in use");
    let mut stream = connect(&node, &first);
    let health = get(&mut stream, "/health", "}").unwrap();
    assert!(health.starts_with("HTTP/1.1 200 ") && health.contains("\"errors\":["), "{health}");
    assert!(health.contains("http_server.internal_tls.cert_pem: its key: "), "{health}");
    let metrics = get(&mut connect(&node, &first), "/metrics", "\nroost_tls_faults 1.0\n").unwrap();
    let expiry = "roost_tls_certificate_expiry_seconds{name=\"localhost\",option=\"http_server.internal_tls.cert_pem\"} ";
    assert!(metrics.contains(expiry), "{metrics}");
    assert!(get(&mut connect(&node, &second), "/health", "}").is_err());

    let second = folder.new_pair();
    node.reload(&options, "TLS: certificates and keys were read again");
    assert!(get(&mut connect(&node, &second), "/health", "}").unwrap().ends_with("{}"));
    assert!(get(&mut connect(&node, &first), "/health", "}").is_err());
    assert!(get(&mut kept, "/health", "}").unwrap().ends_with("{}"));
}

/// The node looks at the files by itself.
#[test]
fn a_changed_certificate_is_read_without_a_signal() {
    let folder = Folder::new("changed-tls");
    let first = folder.new_pair();
    let node = Node::start(&folder.options(), &[]);
    assert!(get(&mut connect(&node, &first), "/health", "}").unwrap().ends_with("{}"));
    let second = folder.new_pair();
    node.until_logged(&["TLS: certificates and keys were read again"]);
    assert!(get(&mut connect(&node, &second), "/health", "}").unwrap().ends_with("{}"));
}

/// Certificates of an ACME server stay in the directory of the start: the files of another one count with a
/// restart, as the log says.
#[test]
fn another_directory_of_the_acme_client_needs_a_restart() {
    // This node has certificates of its own.
    if over_tls() {
        return;
    }
    let folder = Folder::new("acme-directory");
    let write = |directory: &str| {
        let certificate = folder.new_pair();
        let read = |name: &str| std::fs::read_to_string(folder.path(name)).unwrap();
        std::fs::create_dir_all(folder.path(directory)).unwrap();
        let file = folder.path(directory).join("localhost");
        std::fs::write(file, read("key.pem") + &read("cert.pem")).unwrap();
        certificate
    };
    let options = |directory: &str| {
        format!(
            "[http_server.tls_autocert]\nenabled = true\nhost_whitelist = [\"localhost\"]\n\
             cache_dir = \"{}\"\n[roost]\nacme_directory = \"https://127.0.0.1:1/\"\n\
             acme_ca_pem = \"{}\"\n[health]\nenabled = true\n",
            folder.path(directory).display(),
            folder.path("cert.pem").display(),
        )
    };
    let (first, second) = (write("first"), write("second"));
    let node = Node::open_with(&options("first"), &[]);
    let health = |certificate| {
        get(&mut connect_to(node.listens_at(), certificate), "/health", "}").map(|_| ())
    };
    assert!(health(&first).is_ok());
    node.reload(&options("second"), "options reloaded");
    node.until_logged(&["changed section needs a restart", "tls_autocert"]);
    assert!(health(&first).is_ok() && health(&second).is_err());
    // A renewal is read where the node writes them.
    let renewed = write("first");
    node.reload(&options("second"), "TLS: certificates and keys were read again");
    assert!(health(&renewed).is_ok() && health(&first).is_err());
}

/// A start with a pair that doesn't belong together ends, and so does the check of the file.
#[test]
fn a_key_of_another_certificate_stops_the_start() {
    let folder = Folder::new("wrong-tls");
    folder.new_pair();
    let key = std::fs::read(folder.path("key.pem")).unwrap();
    folder.new_pair();
    std::fs::write(folder.path("key.pem"), key).unwrap();
    let ended = Node::launch(&[], &folder.options(), "0", &[]).err().unwrap();
    assert_eq!(ended.code, Some(1));
    let expected = "http_server.internal_tls.cert_pem: the key is another certificate's";
    assert!(ended.errors.contains(expected), "{}", ended.errors);
    let file = folder.path("roost.toml");
    std::fs::write(&file, folder.options()).unwrap();
    let checked = |file: &Path| {
        let mut roost = std::process::Command::new(env!("CARGO_BIN_EXE_roost"));
        roost.args(["config", "check"]).arg(file).output().unwrap()
    };
    let output = checked(&file);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains(expected), "{output:?}");
    folder.new_pair();
    assert_eq!(checked(&file).status.code(), Some(0));
}

/// The node alone says which certificate a client has shown, also where that has no subject.
#[test]
fn a_client_cannot_name_the_subject_of_its_certificate() {
    // This node has certificates of its own.
    if over_tls() {
        return;
    }
    let folder = Folder::new("client-subjects");
    folder.new_pair();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(folder.path("clients.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, key);
    let (port, calls) = application();
    let file = |name: &str| folder.path(name).display().to_string();
    let options = format!(
        "[http_server.tls]\nenabled = true\ncert_pem = \"{}\"\nkey_pem = \"{}\"\nclient_ca_pem = \"{}\"\n\
         [client.proxy.connect]\nenabled = true\nendpoint = \"http://127.0.0.1:{port}/\"\n\
         http_headers = [\"X-Client-Cert-Subject\", \"X-Other\"]\n\
         emulated_headers = [\"X-Client-Cert-Subject\"]\n",
        file("cert.pem"),
        file("key.pem"),
        file("clients.pem"),
    );
    let node = Node::open_with(&options, &[]);
    for (common_name, expected) in [(Some("client 1"), Some("cn=client 1")), (None, None)] {
        let own = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        if let Some(name) = common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        let certificate = params.signed_by(&own, &issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.serialize_der()));
        let config = tunnel::showing(certificate.der().clone(), key);
        let tunnel = tunnel::open(node.listens_at(), config);
        let mut raw = Raw::new(TcpStream::connect(tunnel).unwrap());
        let forged = ["X-Client-Cert-Subject: CN=admin", "X-Other: passes"];
        raw.send(upgrade(CLIENTS, &forged).as_bytes());
        assert_eq!(raw.response().status, 101);
        let headers = json!({"X-Client-Cert-Subject": "CN=admin"});
        let connect = json!({"id": 1, "connect": {"headers": headers}}).to_string();
        raw.send(&frame(TEXT, connect.as_bytes()));
        assert!(raw.frame().is_some());
        let head = calls.recv_timeout(BOUND).unwrap();
        let of = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        assert_eq!(of("x-client-cert-subject:"), expected, "{head}");
        assert_eq!(of("x-other:"), Some("passes"), "{head}");
    }
}
