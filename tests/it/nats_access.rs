//! How a node gets in at a NATS: TLS with the server's certificate checked, certificates of clients, users, tokens.
//! Options of Centrifugo name no others.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;

use crate::harness::{Ended, Node};
use crate::nats::{NatsServer, OPTIONS};
use crate::redis::{data, subscribe};

/// An authority, and certificates that it has signed.
struct Certificates(PathBuf);

impl Certificates {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("roost-it-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let own = Self(folder);
        for authority in ["ca", "other"] {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let certificate = params.self_signed(&key).unwrap();
            std::fs::write(own.path(&format!("{authority}.pem")), certificate.pem()).unwrap();
            let issuer = Issuer::new(params, key);
            for part in ["server", "client"] {
                let key = KeyPair::generate().unwrap();
                let names = vec!["localhost".to_owned()];
                let params = CertificateParams::new(names).unwrap();
                let certificate = params.signed_by(&key, &issuer).unwrap();
                let file = |kind: &str| own.path(&format!("{authority}-{part}-{kind}.pem"));
                std::fs::write(file("cert"), certificate.pem()).unwrap();
                std::fs::write(file("key"), key.serialize_pem()).unwrap();
            }
        }
        own
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A server with TLS.
    fn server(&self, more: &[&str]) -> Option<NatsServer> {
        let (cert, key) = (self.text("ca-server-cert.pem"), self.text("ca-server-key.pem"));
        let mut flags = vec!["--tls", "--tlscert", &cert, "--tlskey", &key];
        flags.extend(more);
        NatsServer::start(&flags)
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A node at this address, with more options of the section.
fn launch(url: &str, more: &str) -> Result<Node, Ended> {
    let broker = "broker.enabled = true\nbroker.type = \"nats\"";
    let file = format!("{broker}\n{OPTIONS}\n[broker.nats]\nurl = \"{url}\"\n{more}");
    Node::launch(&[], &file, "0", &[])
}

/// Publications come back from the server.
fn works(url: &str, more: &str) {
    let node = launch(url, more).unwrap_or_else(|ended| panic!("{url} {more}: {ended:?}"));
    let mut client = node.connected();
    subscribe(&mut client, 2, json!({"channel": "x"}));
    assert_eq!(node.call("publish", json!({"channel": "x", "data": 1})), json!({"result": {}}));
    assert_eq!(data(&mut client, "x", 1), [1]);
}

fn is_refused(url: &str, more: &str, why: &str) {
    let Err(ended) = launch(url, more) else { panic!("{url} {more}: it started") };
    assert!(ended.errors.to_lowercase().contains(why), "{url} {more}: {}", ended.errors);
}

fn tls(authority: &Path, more: &str) -> String {
    format!("[broker.nats.tls]\nenabled = true\nserver_ca_pem = {authority:?}\n{more}")
}

#[test]
fn tls_is_spoken_and_the_server_is_checked() {
    let certificates = Certificates::new("nats-tls");
    let Some(server) = certificates.server(&[]) else { return };
    let at = |host: &str| format!("nats://{host}:{}", server.port);
    let authority = certificates.path("ca.pem");
    works(&at("localhost"), &tls(&authority, ""));
    // The scheme wants TLS, too, with the authorities of the machine.
    is_refused(&at("localhost").replace("nats:", "tls:"), "", "certificate");
    is_refused(&at("localhost"), &tls(&certificates.path("other.pem"), ""), "certificate");
    is_refused(&at("127.0.0.1"), &tls(&authority, ""), "certificate");
    is_refused(&at("localhost"), "[broker.nats.tls]\nenabled = true", "certificate");
    // Unless nothing is to be checked.
    let unchecked = "insecure_skip_verify = true";
    works(&at("127.0.0.1"), &tls(&certificates.path("other.pem"), unchecked));
    // A server without TLS, where it is wanted.
    let Some(plain) = NatsServer::start(&[]) else { return };
    let url = format!("nats://localhost:{}", plain.port);
    is_refused(&url, &tls(&authority, ""), "corrupt message");
}

#[test]
fn the_server_checks_the_certificate_of_the_node() {
    let certificates = Certificates::new("nats-mtls");
    let authority = certificates.text("ca.pem");
    let Some(server) = certificates.server(&["--tlsverify", "--tlscacert", &authority]) else {
        return;
    };
    let url = format!("nats://localhost:{}", server.port);
    let own = |authority: &str| {
        let file = |kind: &str| certificates.path(&format!("{authority}-client-{kind}.pem"));
        let (cert, key) = (file("cert"), file("key"));
        tls(&certificates.path("ca.pem"), &format!("cert_pem = {cert:?}\nkey_pem = {key:?}"))
    };
    works(&url, &own("ca"));
    is_refused(&url, &own("other"), "alert");
    is_refused(&url, &tls(&certificates.path("ca.pem"), ""), "alert");
}

#[test]
fn a_token_is_that_of_the_url() {
    let Some(server) = NatsServer::start(&["--auth", "s3cr3t word"]) else { return };
    let url = |token: &str| format!("nats://{token}127.0.0.1:{}", server.port);
    works(&url("s3cr3t%20word@"), "");
    for wrong in ["", "another@", "u:s3cr3t%20word@"] {
        is_refused(&url(wrong), "", "authorization violation");
    }
}

#[test]
fn users_are_those_of_the_url_and_their_rights_are_kept_to() {
    let name = format!("roost-it-nats-users-{}", std::process::id());
    let file = std::env::temp_dir().join(name);
    // What the documentation says that a node needs, and no more.
    let rights = "permissions: { publish: [\"p.client.>\", \"p.control\", \"p.node.>\", \"p.roost.probe.>\"], \
                  subscribe: [\"p.client.>\", \"p.control\", \"p.node.>\", \"p.roost.probe.>\"] }";
    let config =
        format!("authorization {{ users = [ {{ user: u, password: \"p w\", {rights} }} ] }}");
    std::fs::write(&file, config).unwrap();
    let server = NatsServer::start(&["-c", &file.display().to_string()]);
    std::fs::remove_file(&file).unwrap();
    let Some(server) = server else { return };
    let url = |user: &str| format!("nats://{user}127.0.0.1:{}", server.port);
    works(&url("u:p%20w@"), "prefix = \"p\"");
    is_refused(&url("u:wrong@"), "prefix = \"p\"", "authorization violation");
    is_refused(&url(""), "prefix = \"p\"", "authorization violation");
}
