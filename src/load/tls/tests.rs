use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::*;
use crate::proto::tls::handshake::prepare_server;

/// A server for `localhost` with a certificate of its own.
struct Server {
    config: Arc<ServerConfig>,
    certificate: String,
    pool: Pool,
    batch: Batch,
}

impl Server {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites.sort_by_key(|suite| !format!("{suite:?}").contains("AES_128"));
        let mut config = ServerConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.ticketer = aws_lc_rs::Ticketer::new().unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        prepare_server(&mut config);
        let config = Arc::new(config);
        Self { config, certificate: certificate.pem(), pool: Pool::default(), batch: Batch::new() }
    }

    /// Shakes hands with a connection of the layer.
    fn accept(&mut self, layer: &mut Layer, index: u32) -> Result<Key, String> {
        let mut handshake = Handshake::server(&self.config).unwrap();
        layer.begin(index)?;
        let mut is_done = false;
        loop {
            let mut out = Vec::new();
            layer.seal(index, &mut out);
            if !out.is_empty() {
                let read = handshake.read(&out, &mut 0);
                is_done |= read.map_err(|fault| fault.to_string())?;
            }
            let to_client = handshake.to_send().to_vec();
            handshake.sent(to_client.len());
            // A client that has no wish for the ticket is done before it.
            let mut at = 0;
            let shaken = layer.shake(index, &to_client, &mut at)?;
            if is_done && shaken != Shaken::NotYet {
                let mut rest = to_client[at..].to_vec();
                let mut opener = Opener::new();
                let data = layer.open(index, &mut opener, &mut rest, &mut 0)?;
                assert_eq!(data, None);
                return Ok(self.pool.insert(handshake.finish().unwrap().packed).unwrap());
            }
        }
    }

    /// What a connection has sent.
    fn read(&mut self, key: &Key, input: &mut [u8]) -> Vec<u8> {
        let mut records = self.pool.records(key).unwrap();
        let (mut opener, mut data, mut at) = (Opener::new(), Vec::new(), 0);
        while let Some(Received::Data(part)) = opener.next(&mut records, input, &mut at).unwrap() {
            data.extend_from_slice(part);
        }
        data
    }

    fn write(&mut self, key: &Key, data: &[u8]) -> Vec<u8> {
        let mut records = self.pool.records(key).unwrap();
        let mut out = Vec::new();
        let mut plain = data;
        while !plain.is_empty() {
            let part = self.batch.seal(&mut records, [plain]).unwrap();
            let bytes = self.batch.bytes(&part);
            records.sent(bytes, bytes.len());
            out.extend_from_slice(bytes);
            plain = &plain[part.plain..];
            self.batch.clear();
        }
        out
    }
}

fn layer(flags: &TlsFlags<'_>) -> Layer {
    Layer::new(Tls::new("localhost", flags).unwrap())
}

const INSECURE: TlsFlags<'static> =
    TlsFlags { insecure: true, cacert: None, pem: None, resume: false, suite: None };

#[test]
fn data_goes_both_ways_in_any_length() {
    let (mut server, mut layer) = (Server::new(), layer(&INSECURE));
    let key = server.accept(&mut layer, 3).unwrap();
    let mut opener = Opener::new();
    for bytes in [1, 1000, 16_384, 16_385, 200_000] {
        let data: Vec<u8> = (0..bytes).map(|at| at as u8).collect();
        let mut out = data.clone();
        layer.seal(3, &mut out);
        assert!(out.len() > bytes && server.read(&key, &mut out) == data, "{bytes}");
        let sealed = server.write(&key, &data);
        let mut received = Vec::new();
        for part in sealed.chunks(1_500) {
            let (mut part, mut at) = (part.to_vec(), 0);
            while let Some(data) = layer.open(3, &mut opener, &mut part, &mut at).unwrap() {
                received.extend_from_slice(data);
            }
        }
        assert!(received == data, "{bytes}");
    }
    // An update of keys that the server requests is answered.
    let mut records = server.pool.records(&key).unwrap();
    assert!(records.update_keys(true));
    let mut update = records.tail().to_vec();
    records.tail_sent(update.len());
    assert_eq!(layer.open(3, &mut opener, &mut update, &mut 0).unwrap(), None);
    let mut out = b"x".to_vec();
    layer.seal(3, &mut out);
    assert_eq!(server.read(&key, &mut out), b"x");
    let mut out = Vec::new();
    layer.close_notify(3, &mut out);
    let mut records = server.pool.records(&key).unwrap();
    let mut opener = Opener::new();
    assert_eq!(opener.next(&mut records, &mut out, &mut 0), Ok(Some(Received::Closed)));
}

#[test]
fn an_idle_connection_keeps_at_most_200_bytes() {
    const COUNT: usize = 512;
    let (mut server, mut layer) = (Server::new(), layer(&INSECURE));
    for index in 0..COUNT as u32 {
        let key = server.accept(&mut layer, index).unwrap();
        let mut out = b"hello".to_vec();
        layer.seal(index, &mut out);
        assert_eq!(server.read(&key, &mut out), b"hello");
    }
    assert!(layer.handshakes.is_empty());
    let each = layer.idle_bytes() / COUNT;
    assert!(each <= 200, "{each} bytes");
    assert_eq!(layer.counts, Counts { full: COUNT as u64, resumed: 0 });
    (0..COUNT as u32).for_each(|index| layer.end(index));
    assert!(layer.pool.is_empty());
}

#[test]
fn sessions_are_resumed_where_that_is_requested() {
    let mut server = Server::new();
    for (resume, expected) in
        [(true, Counts { full: 1, resumed: 5 }), (false, Counts { full: 6, resumed: 0 })]
    {
        let mut layer = layer(&TlsFlags { resume, ..INSECURE });
        for index in 0..6 {
            let key = server.accept(&mut layer, index).unwrap();
            let mut out = b"hello".to_vec();
            layer.seal(index, &mut out);
            assert_eq!(server.read(&key, &mut out), b"hello");
        }
        assert_eq!(layer.counts, expected);
    }
}

#[test]
fn one_suite_alone_is_offered_where_that_is_requested() {
    let mut server = Server::new();
    for (suite, bytes) in [
        ("TLS13_AES_128_GCM_SHA256", 137),
        ("TLS13_AES_256_GCM_SHA384", 201),
        ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", 73),
    ] {
        let mut layer = layer(&TlsFlags { suite: Some(suite), ..INSECURE });
        server.accept(&mut layer, 0).unwrap();
        // One chunk of slots of this length: none of the others fills one as well.
        assert_eq!(layer.pool.slot_bytes() % bytes, 0, "{suite}");
        assert_eq!(layer.pool.slot_bytes() / bytes, 32 * 1024 / bytes, "{suite}");
    }
    let fault = Tls::new("localhost", &TlsFlags { suite: Some("x"), ..INSECURE }).unwrap_err();
    assert_eq!(fault, "--suite x: there is no such suite");
}

#[test]
fn servers_are_checked_unless_told_otherwise() {
    let mut server = Server::new();
    let flags = TlsFlags { insecure: false, ..INSECURE };
    let fault = server.accept(&mut layer(&flags), 0).unwrap_err();
    assert!(fault.contains("invalid peer certificate"), "{fault}");
    let path = std::env::temp_dir().join(format!("roost-load-{}.pem", std::process::id()));
    std::fs::write(&path, &server.certificate).unwrap();
    let flags = TlsFlags { cacert: Some(&path), ..flags };
    let fault =
        Tls::new("localhost", &TlsFlags { cacert: Some(Path::new("/missing")), ..flags.clone() });
    assert!(fault.unwrap_err().starts_with("--cacert /missing: "));
    // It is an authority's, as `openssl req -x509` makes them.
    server.accept(&mut layer(&flags), 0).unwrap();
    let mut other = Layer::new(Tls::new("example.com", &flags).unwrap());
    let fault = server.accept(&mut other, 0).unwrap_err();
    assert!(fault.contains("not valid for name"), "{fault}");
    std::fs::remove_file(path).unwrap();
}
