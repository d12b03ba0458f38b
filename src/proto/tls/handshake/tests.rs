//! The handshake against rustls' own connections, and the record layer behind it against rustls' own.

use std::io::{Read as _, Write as _};

use proptest::prelude::*;
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConnection, Connection, RootCertStore, ServerConnection, SupportedProtocolVersion,
};

use super::super::testing::End;
use super::super::*;
use super::*;
use crate::sys::memory::{requested_bytes, take_peak_bytes};

const CERTIFICATE: &[u8] = include_bytes!("certificate.pem");
const KEY: &[u8] = include_bytes!("key.pem");

fn provider_of(suite: Suite) -> CryptoProvider {
    let mut provider = default_provider();
    provider.cipher_suites.retain(|one| {
        let name = format!("{:?}", one.suite());
        let aead = match suite {
            Suite::Tls13Aes128Gcm | Suite::Tls12Aes128Gcm => "AES_128_GCM",
            Suite::Tls13Aes256Gcm | Suite::Tls12Aes256Gcm => "AES_256_GCM",
            Suite::Tls13ChaCha20 | Suite::Tls12ChaCha20 => "CHACHA20",
        };
        name.starts_with("TLS13") == suite.is_tls13() && name.contains(aead)
    });
    provider
}

fn server_config(
    provider: CryptoProvider,
    versions: &[&'static SupportedProtocolVersion],
) -> ServerConfig {
    ServerConfig::builder_with_provider(provider.into())
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(CERTIFICATE).unwrap()],
            PrivateKeyDer::from_pem_slice(KEY).unwrap(),
        )
        .unwrap()
}

fn client_config(
    provider: CryptoProvider,
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CERTIFICATE).unwrap()).unwrap();
    ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn versions(suite: Suite) -> [&'static SupportedProtocolVersion; 1] {
    [if suite.is_tls13() { &TLS13 } else { &TLS12 }]
}

fn prepared(mut config: ServerConfig) -> Arc<ServerConfig> {
    prepare_server(&mut config);
    Arc::new(config)
}

fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

/// An end of rustls, with its own record layer.
struct Other {
    connection: Connection,
    read: Vec<u8>,
    closed: bool,
}

impl Other {
    fn client(config: ClientConfig) -> Self {
        Self::client_of(&Arc::new(config))
    }

    fn client_of(config: &Arc<ClientConfig>) -> Self {
        Self::new(ClientConnection::new(Arc::clone(config), localhost()).unwrap().into())
    }

    fn server(config: ServerConfig) -> Self {
        Self::new(ServerConnection::new(Arc::new(config)).unwrap().into())
    }

    fn new(mut connection: Connection) -> Self {
        connection.set_buffer_limit(None);
        Self { connection, read: Vec::new(), closed: false }
    }

    fn read(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            self.connection.read_tls(&mut bytes).unwrap();
            let state = self.connection.process_new_packets()?;
            let from = self.read.len();
            self.read.resize(from + state.plaintext_bytes_to_read(), 0);
            self.connection.reader().read_exact(&mut self.read[from..]).unwrap();
            self.closed |= state.peer_has_closed();
            if self.closed {
                return Ok(());
            }
        }
        Ok(())
    }

    fn write(&mut self, data: &[u8]) {
        self.connection.writer().write_all(data).unwrap();
    }

    fn flush(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while self.connection.wants_write() {
            self.connection.write_tls(&mut out).unwrap();
        }
        out
    }
}

/// Lets both shake hands; the end of this crate reads pieces of at most `cut` bytes. Bytes that came behind
/// the handshake are read by the record layer.
fn established(
    mut handshake: Handshake,
    other: &mut Other,
    cut: usize,
) -> Result<(End, Established), (HandshakeFault, Vec<u8>)> {
    for _ in 0..10 {
        let bytes = handshake.to_send().to_vec();
        handshake.sent(bytes.len());
        // A fault of the other end goes to this one as an alert.
        let _ = other.read(&bytes);
        let bytes = other.flush();
        let mut at = 0;
        while at < bytes.len() {
            let mut from = at;
            let to = bytes.len().min(at + cut);
            match handshake.read(&bytes[..to], &mut from) {
                Err(fault) => return Err((fault, handshake.to_send().to_vec())),
                Ok(false) => at = to,
                Ok(true) => {
                    let established = handshake.finish().map_err(|fault| (fault, Vec::new()))?;
                    // For a look at what else is in it, nobody seals with the first one.
                    let packed = Packed::from_bytes(established.packed.as_bytes()).unwrap();
                    let mut end = End::new(packed);
                    bytes[from..].chunks(cut).for_each(|piece| end.read(piece));
                    other.read(&end.flush_all()).unwrap();
                    return Ok((end, established));
                }
            }
        }
    }
    panic!("the handshake doesn't end");
}

/// A server of this crate and a client of rustls, or the other way round.
fn connected(suite: Suite, role: Role, cut: usize) -> (End, Other) {
    let provider = || provider_of(suite);
    let versions = versions(suite);
    let (handshake, mut other) = match role {
        Role::Server => {
            let config = prepared(server_config(provider(), &versions));
            let client = Other::client(client_config(provider(), &versions));
            (Handshake::server(&config).unwrap(), client)
        }
        Role::Client => {
            let mut config = client_config(provider(), &versions);
            prepare_client(&mut config);
            let server = Other::server(server_config(provider(), &versions));
            (Handshake::client(&Arc::new(config), localhost()).unwrap(), server)
        }
    };
    let (mut end, established) = established(handshake, &mut other, cut).unwrap();
    assert_eq!((end.records().suite(), end.records().role()), (suite, role));
    assert!(!established.resumed);
    (end, other)
}

/// Data in both directions, and an end on both sides.
fn talk_and_close(mut end: End, mut other: Other) {
    for round in 0..3 {
        let data = vec![round; 20_000];
        other.read(&end.write(&[&data], usize::MAX).unwrap().0).unwrap();
        other.write(&data);
        end.read(&other.flush());
    }
    end.records().close_notify();
    other.read(&end.flush_all()).unwrap();
    other.connection.send_close_notify();
    end.read(&other.flush());
    assert!(other.closed && end.closed);
    assert_eq!((end.fault, other.read.len()), (None, 60_000));
    assert_eq!(end.read[end.read.len() - 20_000..], [2; 20_000]);
    assert!(end.records().is_idle());
}

#[test]
fn all_suites_in_both_roles_and_any_pieces() {
    for suite in Suite::ALL {
        for role in [Role::Server, Role::Client] {
            for cut in [1, 7, 500, usize::MAX / 2] {
                let (end, other) = connected(suite, role, cut);
                talk_and_close(end, other);
            }
        }
    }
}

#[test]
fn an_idle_connection_is_as_small_as_documented() {
    for suite in Suite::ALL {
        let (mut end, _other) = connected(suite, Role::Server, usize::MAX / 2);
        let bytes = [137, 201, 169, 73, 105, 105][suite as usize];
        assert_eq!(end.pack().as_bytes().len(), bytes);
        assert_eq!(end.pool.unfinished_bytes(), 0);
    }
}

#[test]
fn data_and_key_updates_behind_finished_are_the_record_layers() {
    for suite in Suite::ALL {
        let mut config = server_config(provider_of(suite), &versions(suite));
        config.ticketer = Ticketer::new().unwrap();
        let config = prepared(config);
        let mut client = Other::client(client_config(provider_of(suite), &versions(suite)));
        let mut server = Handshake::server(&config).unwrap();
        assert!(!server.read(&client.flush(), &mut 0).unwrap());
        client.read(server.to_send()).unwrap();
        server.sent(usize::MAX);
        let mut behind = client.flush();
        if !suite.is_tls13() {
            // In TLS 1.2 the client waits for the server's Finished.
            let mut at = 0;
            assert!(server.read(&behind, &mut at).unwrap() && at == behind.len());
            client.read(server.to_send()).unwrap();
            server.sent(usize::MAX);
            behind.clear();
        }
        for round in 0..3_u8 {
            client.write(&[round; 5000]);
            behind.extend(client.flush());
            if suite.is_tls13() {
                client.connection.refresh_traffic_keys().unwrap();
                behind.extend(client.flush());
            }
        }
        let mut at = 0;
        if suite.is_tls13() {
            assert!(server.read(&behind, &mut at).unwrap());
        }
        // The ticket hasn't been sent yet: it is the tail.
        let ticket = server.to_send().len();
        assert_eq!(ticket > 0, suite.is_tls13());
        let established = server.finish().unwrap();
        let mut end = End::new(established.packed);
        assert_eq!(end.records().tail().len(), ticket);
        end.read(&behind[at..]);
        assert_eq!((end.read.len(), end.fault), (15_000, None));
        client.read(&end.flush_all()).unwrap();
        client.read(&end.write(&[b"with keys of now"], usize::MAX).unwrap().0).unwrap();
        assert_eq!(client.read, b"with keys of now");
    }
}

/// One step of a conversation with rustls.
#[derive(Clone, Debug)]
enum Step {
    Send(Vec<usize>, usize),
    OtherSends(usize),
    Update(bool),
    OtherUpdates,
    Flush(usize),
    Arrive(usize),
    OtherReads(usize),
    Pass,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let length = || prop_oneof![6 => 1..400_usize, 1 => 1..50_000_usize];
    let bytes = || prop_oneof![2 => 0..100_usize, 1 => 0..30_000_usize, 2 => Just(usize::MAX)];
    let step = prop_oneof![
        4 => (prop::collection::vec(length(), 0..4), bytes()).prop_map(|(a, b)| Step::Send(a, b)),
        4 => length().prop_map(Step::OtherSends),
        1 => any::<bool>().prop_map(Step::Update),
        1 => Just(Step::OtherUpdates),
        3 => bytes().prop_map(Step::Flush),
        6 => bytes().prop_map(Step::Arrive),
        6 => bytes().prop_map(Step::OtherReads),
        1 => Just(Step::Pass),
    ];
    prop::collection::vec(step, 1..25)
}

struct Conversation {
    end: End,
    other: Other,
    /// Bytes on their way to the other end, and to this one.
    there: Vec<u8>,
    here: Vec<u8>,
    sent: Vec<u8>,
    other_sent: Vec<u8>,
    written: u8,
    updates: u8,
}

impl Conversation {
    fn data(&mut self, bytes: usize) -> Vec<u8> {
        self.written = self.written.wrapping_add(1);
        (0..bytes).map(|at| self.written.wrapping_mul(31).wrapping_add(at as u8)).collect()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Send(lengths, bytes) => {
                let frames: Vec<Vec<u8>> =
                    lengths.into_iter().map(|bytes| self.data(bytes)).collect();
                let lent: Vec<&[u8]> = frames.iter().map(|frame| &frame[..]).collect();
                if let Ok((bytes, plain)) = self.end.write(&lent, bytes) {
                    self.there.extend(bytes);
                    self.sent.extend_from_slice(&frames.concat()[..plain]);
                }
            }
            Step::OtherSends(bytes) => {
                let data = self.data(bytes);
                self.other.write(&data);
                self.other_sent.extend(data);
                self.here.extend(self.other.flush());
            }
            // Both ends bound updates between data.
            Step::Update(_) | Step::OtherUpdates if self.updates == 12 => {}
            Step::Update(requested) => {
                self.updates += u8::from(self.end.records().update_keys(requested));
            }
            Step::OtherUpdates => {
                let updated = self.other.connection.refresh_traffic_keys().is_ok();
                assert_eq!(updated, self.end.records().suite().is_tls13());
                self.updates += u8::from(updated);
                self.here.extend(self.other.flush());
            }
            Step::Flush(bytes) => {
                let sent = self.end.flush(bytes);
                self.there.extend(sent);
            }
            Step::Arrive(bytes) => {
                let came: Vec<u8> = self.here.drain(..bytes.min(self.here.len())).collect();
                self.end.read(&came);
            }
            Step::OtherReads(bytes) => {
                let came: Vec<u8> = self.there.drain(..bytes.min(self.there.len())).collect();
                self.other.read(&came).unwrap();
                self.here.extend(self.other.flush());
            }
            Step::Pass => self.end.pass(),
        }
        assert_eq!(self.end.fault, None);
    }

    fn finish(mut self) {
        for _ in 0..4 {
            let tail = self.end.flush_all();
            self.there.extend(tail);
            self.step(Step::OtherReads(usize::MAX));
            self.step(Step::Arrive(usize::MAX));
        }
        let (end, other) = (&mut self.end, &mut self.other);
        assert!(other.read == self.sent && end.read == self.other_sent, "streams differ");
        end.records().close_notify();
        other.read(&end.flush_all()).unwrap();
        other.connection.send_close_notify();
        end.read(&other.flush());
        assert!(other.closed && end.closed && end.records().is_idle());
        assert_eq!((end.pool.unfinished(), end.fault), (0, None));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn conversations_with_rustls_record_layer_arrive_whole(
        suite in prop::sample::select(Suite::ALL.to_vec()),
        server in any::<bool>(),
        cut in prop_oneof![1..200_usize, Just(usize::MAX / 2)],
        steps in steps(),
    ) {
        let role = if server { Role::Server } else { Role::Client };
        let (end, other) = connected(suite, role, cut);
        let mut conversation = Conversation {
            end,
            other,
            there: Vec::new(),
            here: Vec::new(),
            sent: Vec::new(),
            other_sent: Vec::new(),
            written: 0,
            updates: 0,
        };
        steps.into_iter().for_each(|step| conversation.step(step));
        conversation.finish();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_end_in_a_fault_or_wait_for_more(
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        hello in any::<bool>(),
        cut in 1..50_usize,
    ) {
        let config = prepared(server_config(default_provider(), &[&TLS13, &TLS12]));
        let mut server = Handshake::server(&config).unwrap();
        if hello {
            // A record of a hello, with some bytes of it changed.
            let mut good = Other::client(client_config(default_provider(), &[&TLS13])).flush();
            for pair in bytes.chunks_exact(2) {
                let at = usize::from(pair[0]) % good.len();
                good[at] ^= pair[1];
            }
            bytes = good;
        }
        for piece in bytes.chunks(cut) {
            match server.read(piece, &mut 0) {
                Ok(done) => prop_assert!(!done),
                Err(_) => break,
            }
        }
        prop_assert!(server.finish().is_err());
    }
}

/// The alert in a plaintext record.
fn alert(bytes: &[u8]) -> Option<Alert> {
    match bytes {
        [21, 3, _, 0, 2, _, alert] => Some(Alert(*alert)),
        _ => None,
    }
}

#[test]
fn plain_text_gets_an_alert() {
    let config = prepared(server_config(default_provider(), &[&TLS13, &TLS12]));
    for cut in [1, 5, 100] {
        let mut server = Handshake::server(&config).unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let fault = request.chunks(cut).find_map(|piece| server.read(piece, &mut 0).err());
        assert_eq!(fault.map(|fault| fault.label()), Some("malformed"));
        assert!(alert(server.to_send()).is_some(), "{:?}", server.to_send());
    }
}

#[test]
fn wrong_versions_get_protocol_version() {
    for (ours, theirs) in [(&TLS13, &TLS12), (&TLS12, &TLS13)] {
        let config = prepared(server_config(default_provider(), &[ours]));
        let mut client = Other::client(client_config(default_provider(), &[theirs]));
        let server = Handshake::server(&config).unwrap();
        let (fault, bytes) = established(server, &mut client, 100).unwrap_err();
        assert_eq!(fault.label(), "incompatible", "{fault}");
        assert_eq!(alert(&bytes), Some(Alert(70)));
    }
}

#[test]
fn protocols_are_chosen_or_refused() {
    let mut config = server_config(default_provider(), &[&TLS13]);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let config = prepared(config);
    for (offered, chosen) in [(&["h2", "http/1.1"][..], true), (&["h2"], false)] {
        let mut client = client_config(default_provider(), &[&TLS13]);
        client.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
        let mut client = Other::client(client);
        match established(Handshake::server(&config).unwrap(), &mut client, 100) {
            Ok((_, established)) => {
                assert!(chosen && established.protocol.as_deref() == Some(b"http/1.1"));
            }
            Err((fault, bytes)) => {
                assert!(!chosen && fault.label() == "protocol");
                let alert = rustls::AlertDescription::NoApplicationProtocol;
                assert_eq!(client.read(&bytes), Err(Error::AlertReceived(alert)));
            }
        }
    }
}

#[test]
fn key_exchanges_and_hello_retry_requests() {
    let provider = |groups: &[&'static dyn SupportedKxGroup]| CryptoProvider {
        kx_groups: groups.to_vec(),
        ..default_provider()
    };
    let (x25519, p256) = (kx_group::X25519, kx_group::SECP256R1);
    let hybrid = kx_group::X25519MLKEM768;
    let cases: [(&[&'static dyn SupportedKxGroup], &[_]); 4] = [
        (&[hybrid], &[hybrid]),
        (&[p256], &[p256]),
        (&[x25519], &[p256, x25519]),
        (&[p256], &[hybrid, p256]),
    ];
    for (ours, theirs) in cases {
        for cut in [1, usize::MAX / 2] {
            let config = prepared(server_config(provider(ours), &[&TLS13]));
            let mut client = Other::client(client_config(provider(theirs), &[&TLS13]));
            let server = Handshake::server(&config).unwrap();
            let (end, _) = established(server, &mut client, cut).unwrap();
            let retried = HandshakeKind::FullWithHelloRetryRequest;
            let kind = client.connection.handshake_kind();
            assert_eq!(kind == Some(retried), theirs[0].name() != ours[0].name());
            talk_and_close(end, client);
        }
    }
}

#[test]
fn tickets_resume() {
    for suite in Suite::ALL {
        let mut config = server_config(provider_of(suite), &versions(suite));
        config.ticketer = Ticketer::new().unwrap();
        let config = prepared(config);
        let client_config = Arc::new(client_config(provider_of(suite), &versions(suite)));
        for round in 0..3 {
            let mut client = Other::client_of(&client_config);
            let server = Handshake::server(&config).unwrap();
            let (end, established) = established(server, &mut client, 300).unwrap();
            assert_eq!(established.resumed, round > 0, "{suite:?}");
            talk_and_close(end, client);
        }
    }
}

#[test]
fn the_servers_order_of_suites_counts() {
    let mut ours = default_provider();
    ours.cipher_suites.sort_by_key(|suite| !format!("{suite:?}").contains("AES_128"));
    let config = prepared(server_config(ours, &[&TLS13, &TLS12]));
    for (version, expected) in [(&TLS13, Suite::Tls13Aes128Gcm), (&TLS12, Suite::Tls12Aes128Gcm)] {
        // Its default begins with AES-256.
        let mut client = Other::client(client_config(default_provider(), &[version]));
        let server = Handshake::server(&config).unwrap();
        let (mut end, _) = established(server, &mut client, 100).unwrap();
        assert_eq!(end.records().suite(), expected);
    }
}

#[test]
fn an_unprepared_configuration_yields_no_keys() {
    let config = Arc::new(server_config(default_provider(), &[&TLS13]));
    let mut client = Other::client(client_config(default_provider(), &[&TLS13]));
    let server = Handshake::server(&config).unwrap();
    let (fault, _) = established(server, &mut client, 100).unwrap_err();
    assert_eq!(fault.label(), "inconsistent");
    // With keys, but without the secrets of which they come.
    let mut config = server_config(default_provider(), &[&TLS13]);
    config.enable_secret_extraction = true;
    let mut client = Other::client(client_config(default_provider(), &[&TLS13]));
    let server = Handshake::server(&Arc::new(config)).unwrap();
    let (fault, _) = established(server, &mut client, 100).unwrap_err();
    assert_eq!(fault.label(), "inconsistent");
}

#[test]
fn a_hello_in_many_records_is_put_together_and_a_message_without_end_is_not() {
    let config = prepared(server_config(default_provider(), &[&TLS13]));
    let mut client = Other::client(client_config(default_provider(), &[&TLS13]));
    let hello = client.flush();
    let mut server = Handshake::server(&config).unwrap();
    for piece in hello[HEADER_BYTES..].chunks(40) {
        let record = [&[22, 3, 1, 0, piece.len() as u8][..], piece].concat();
        assert!(!server.read(&record, &mut 0).unwrap());
    }
    client.read(server.to_send()).unwrap();
    server.sent(usize::MAX);
    assert!(server.read(&client.flush(), &mut 0).unwrap());

    let mut server = Handshake::server(&config).unwrap();
    let record = [&[22, 3, 1, 0x40, 0][..], &[1, 0xff, 0xff, 0xff], &[0; 0x4000 - 4]].concat();
    let fault = (0..6).find_map(|_| server.read(&record, &mut 0).err());
    assert!(fault.is_some() && server.heap_bytes() < 256 * 1024, "{server:?}");
}

#[test]
fn a_client_that_refuses_the_certificate_ends_the_handshake() {
    for version in [&TLS13, &TLS12] {
        let config = prepared(server_config(default_provider(), &[version]));
        let mut client = client_config(default_provider(), &[version]);
        let nobody = RootCertStore::empty();
        client = ClientConfig::builder_with_provider(client.crypto_provider().clone())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(nobody)
            .with_no_client_auth();
        let server = Handshake::server(&config).unwrap();
        let (fault, _) = established(server, &mut Other::client(client), 100).unwrap_err();
        assert_eq!(fault.label(), "peer_alert", "{fault}");
    }
}

#[test]
fn secrets_are_taken_out_of_the_key_log_at_once() {
    let (end, other) = connected(Suite::Tls13Aes256Gcm, Role::Server, usize::MAX / 2);
    CAPTURED.with_borrow(|captured| {
        assert_eq!((captured.client, captured.server), ([0; 48], [0; 48]));
    });
    talk_and_close(end, other);
}

/// Bytes of Rust's heap that a server's handshake has in the end: at most, while it waits for Finished, behind it.
fn heap_of_a_handshake(group: &'static dyn SupportedKxGroup) -> [i64; 3] {
    let provider = || CryptoProvider { kx_groups: vec![group], ..default_provider() };
    let mut config = server_config(provider(), &[&TLS13]);
    config.ticketer = Ticketer::new().unwrap();
    let config = prepared(config);
    let mut of = [0; 3];
    // The first one makes what all share.
    for _ in 0..2 {
        let mut client = Other::client(client_config(provider(), &[&TLS13]));
        let (hello, begin) = (client.flush(), requested_bytes());
        take_peak_bytes();
        let mut server = Box::new(Handshake::server(&config).unwrap());
        assert!(!server.read(&hello, &mut 0).unwrap());
        let mut peak = take_peak_bytes() - begin;
        let answer = server.to_send().to_vec();
        server.sent(usize::MAX);
        let waiting = requested_bytes() - begin - answer.capacity() as i64;
        client.read(&answer).unwrap();
        let finished = client.flush();
        let before = requested_bytes();
        take_peak_bytes();
        assert!(server.read(&finished, &mut 0).unwrap());
        server.sent(usize::MAX);
        let established = server.finish().unwrap();
        peak = peak.max(take_peak_bytes() - before + waiting);
        let mut pool = Pool::default();
        pool.insert(established.packed).unwrap();
        drop((established.protocol, established.certificate));
        // What is left is the pool's, but for the server's own part of the conversation.
        let left = requested_bytes() - before + waiting - pool.slot_bytes() as i64;
        of = [peak, waiting, left - size_of::<Box<[u8]>>() as i64 * 4];
    }
    of
}

#[test]
fn the_heap_of_a_handshake_is_bounded_and_given_back() {
    for (group, peak_max) in [(kx_group::X25519, 7500), (kx_group::X25519MLKEM768, 11_500)] {
        let [peak, waiting, left] = heap_of_a_handshake(group);
        assert!(peak <= peak_max, "{:?}: {peak} bytes at most", group.name());
        assert!(waiting <= 4800, "{:?}: {waiting} bytes while it waits", group.name());
        assert_eq!(left, 0, "{:?}: bytes behind it", group.name());
    }
}

#[test]
fn nothing_is_held_before_the_first_byte_and_behind_the_last() {
    let config = prepared(server_config(default_provider(), &[&TLS13]));
    let mut client = Other::client(client_config(default_provider(), &[&TLS13]));
    let mut server = Handshake::server(&config).unwrap();
    assert_eq!(server.heap_bytes(), 0);
    server.read(&client.flush(), &mut 0).unwrap();
    client.read(server.to_send()).unwrap();
    server.sent(usize::MAX);
    assert_eq!(server.heap_bytes(), 0);
    assert!(server.read(&client.flush(), &mut 0).unwrap());
    client.read(server.to_send()).unwrap();
    server.sent(usize::MAX);
    assert_eq!(server.heap_bytes(), 0);
}
