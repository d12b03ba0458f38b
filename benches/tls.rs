//! The record layer of TLS beside the bare AEAD: sealing and opening by size. Each record is another
//! connection's, as in a fan-out, so contexts are made anew and states come from memory.
//! Wall times of a busy machine are noise: compare with the bare AEAD of the same run.

use aws_lc_rs::aead::CHACHA20_POLY1305;
use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use roost::proto::tls::handshake::{Handshake, prepare_client, prepare_server};
use roost::proto::tls::{Batch, Opener, Packed, Pool, Received, Suite};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedCipherSuite};
use std::hint::black_box;
use std::sync::Arc;

const CERTIFICATE: &[u8] = include_bytes!("../src/proto/tls/handshake/certificate.pem");
const KEY: &[u8] = include_bytes!("../src/proto/tls/handshake/key.pem");

const SIZES: [usize; 4] = [132, 174, 1000, 16_000];
const CONNECTIONS: usize = 4096;

const SUITES: [(&str, SupportedCipherSuite, &Algorithm); 3] = [
    ("AES-128", cipher_suite::TLS13_AES_128_GCM_SHA256, &AES_128_GCM),
    ("AES-256", cipher_suite::TLS13_AES_256_GCM_SHA384, &AES_256_GCM),
    ("ChaCha20", cipher_suite::TLS13_CHACHA20_POLY1305_SHA256, &CHACHA20_POLY1305),
];

struct Configs(Arc<ServerConfig>, Arc<ClientConfig>);

impl Configs {
    fn new(suite: SupportedCipherSuite) -> Self {
        let provider = || {
            let kx_groups = vec![kx_group::X25519];
            Arc::new(CryptoProvider { cipher_suites: vec![suite], kx_groups, ..default_provider() })
        };
        let certificate = CertificateDer::from_pem_slice(CERTIFICATE).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], PrivateKeyDer::from_pem_slice(KEY).unwrap())
            .unwrap();
        prepare_server(&mut server);
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        prepare_client(&mut client);
        Self(Arc::new(server), Arc::new(client))
    }

    /// The states of a server and its client.
    fn shake_hands(&self) -> (Packed, Packed) {
        let name = ServerName::try_from("localhost").unwrap();
        let mut server = Handshake::server(&self.0).unwrap();
        let mut client = Handshake::client(&self.1, name).unwrap();
        let (mut server_is_done, mut client_is_done) = (false, false);
        while !(server_is_done && client_is_done) {
            let bytes = client.to_send().to_vec();
            client.sent(bytes.len());
            server_is_done = server.read(&bytes, &mut 0).unwrap();
            let bytes = server.to_send().to_vec();
            server.sent(bytes.len());
            client_is_done = client.read(&bytes, &mut 0).unwrap();
        }
        (server.finish().unwrap().packed, client.finish().unwrap().packed)
    }
}

fn bare(algorithm: &'static Algorithm, number: usize) -> LessSafeKey {
    let mut key = vec![0; algorithm.key_len()];
    key[..8].copy_from_slice(&number.to_ne_bytes());
    LessSafeKey::new(UnboundKey::new(algorithm, &key).unwrap())
}

/// The same bytes as a record: out of place, with the inner type.
fn bare_seal(key: &LessSafeKey, nonce: u64, plain: &[u8], out: &mut [u8]) {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&nonce.to_be_bytes());
    let (sealed, tail) = out[..plain.len() + 17].split_at_mut(plain.len());
    let nonce = Nonce::assume_unique_for_key(bytes);
    key.seal_out_of_place_scatter(nonce, Aad::from([0; 5]), plain, sealed, &[23], tail).unwrap();
}

/// Full and resumed handshakes of TLS 1.3, both ends in memory, beside what they can't do without: a signature
/// of P-256, and a key exchange by X25519 at each end.
fn handshake(c: &mut Criterion) {
    let mut group = c.benchmark_group("handshake");
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
    let signer = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref()).unwrap();
    group.bench_function("P-256, one signature", |b| {
        b.iter(|| signer.sign(&random, black_box(b"message")).unwrap());
    });
    let peer = EphemeralPrivateKey::generate(&X25519, &random).unwrap();
    let peer = UnparsedPublicKey::new(&X25519, peer.compute_public_key().unwrap());
    group.bench_function("X25519, one end", |b| {
        b.iter(|| {
            let own = EphemeralPrivateKey::generate(&X25519, &random).unwrap();
            black_box(own.compute_public_key().unwrap());
            agree_ephemeral(own, black_box(&peer), Unspecified, |_| Ok(())).unwrap();
        });
    });
    let configs = Configs::new(SUITES[0].1);
    group.bench_function("AES-128, both ends", |b| b.iter(|| configs.shake_hands()));
    group.finish();
}

fn seal(c: &mut Criterion) {
    let mut group = c.benchmark_group("seal");
    for (name, suite, algorithm) in SUITES {
        let configs = Configs::new(suite);
        let mut pool = Pool::default();
        let keys: Vec<_> =
            (0..CONNECTIONS).map(|_| pool.insert(configs.shake_hands().0).unwrap()).collect();
        let mut batch = Batch::new();
        let mut out = vec![0; 20_000];
        for bytes in SIZES {
            let frame = vec![b'x'; bytes];
            group.throughput(Throughput::Bytes(bytes as u64));
            let kept = bare(algorithm, 0);
            let mut number = 0;
            group.bench_function(BenchmarkId::new(format!("{name}, bare, key kept"), bytes), |b| {
                b.iter(|| {
                    number += 1;
                    bare_seal(&kept, number, black_box(&frame), &mut out);
                });
            });
            group.bench_function(BenchmarkId::new(format!("{name}, bare, new key"), bytes), |b| {
                b.iter(|| {
                    number += 1;
                    let key = bare(algorithm, number as usize % CONNECTIONS);
                    bare_seal(&key, number, black_box(&frame), &mut out);
                });
            });
            let mut next = 0;
            group.bench_function(BenchmarkId::new(format!("{name}, record layer"), bytes), |b| {
                b.iter(|| {
                    next = (next + 1) % CONNECTIONS;
                    if batch.is_full() {
                        batch.clear();
                    }
                    let mut records = pool.records(&keys[next]).unwrap();
                    let sealed = batch.seal(&mut records, [black_box(&frame[..])]).unwrap();
                    let bytes = batch.bytes(&sealed);
                    records.sent(bytes, bytes.len());
                });
            });
        }
    }
    // 16 messages for one connection, which small ones share a record for.
    let mut pool = Pool::default();
    let configs = Configs::new(SUITES[0].1);
    let key = pool.insert(configs.shake_hands().0).unwrap();
    let mut batch = Batch::new();
    let frame = [b'x'; 128];
    group.throughput(Throughput::Elements(16));
    group.bench_function("AES-128, record layer, 16 frames of 128 B", |b| {
        b.iter(|| {
            batch.clear();
            let mut records = pool.records(&key).unwrap();
            let sealed = batch.seal(&mut records, [black_box(&frame[..]); 16]).unwrap();
            let bytes = batch.bytes(&sealed);
            records.sent(bytes, bytes.len());
        });
    });
    group.finish();
}

fn open(c: &mut Criterion) {
    let mut group = c.benchmark_group("open");
    for (name, suite, algorithm) in SUITES {
        let (server, client) = Configs::new(suite).shake_hands();
        assert!(matches!(server.as_bytes()[0] & 7, 0..=2), "{:?}", Suite::ALL);
        for bytes in SIZES {
            let frame = vec![b'x'; bytes];
            group.throughput(Throughput::Bytes(bytes as u64));
            let key = bare(algorithm, 0);
            let mut sealed = vec![0; bytes + 17];
            bare_seal(&key, 1, &frame, &mut sealed);
            let mut nonce = [0; 12];
            nonce[11] = 1;
            group.bench_function(BenchmarkId::new(format!("{name}, bare, new key"), bytes), |b| {
                b.iter_batched_ref(
                    || sealed.clone(),
                    |sealed| {
                        let nonce = Nonce::assume_unique_for_key(nonce);
                        let key = bare(algorithm, 0);
                        key.open_in_place(nonce, Aad::from([0; 5]), sealed).unwrap();
                    },
                    BatchSize::SmallInput,
                );
            });
            // A copy of the sender for each size: nothing of it is sent.
            let mut pool = Pool::default();
            let sender = Packed::from_bytes(client.as_bytes()).unwrap();
            let sender = pool.insert(sender).unwrap();
            let mut batch = Batch::new();
            let mut records = pool.records(&sender).unwrap();
            let sealed = batch.seal(&mut records, [&frame[..]]).unwrap();
            let record = batch.bytes(&sealed).to_vec();
            group.bench_function(BenchmarkId::new(format!("{name}, record layer"), bytes), |b| {
                b.iter_batched_ref(
                    || {
                        let mut pool = Pool::default();
                        let state = Packed::from_bytes(server.as_bytes()).unwrap();
                        let key = pool.insert(state).unwrap();
                        (pool, key, record.clone())
                    },
                    |(pool, key, input)| {
                        let mut records = pool.records(key).unwrap();
                        let mut opener = Opener::new();
                        let received = opener.next(&mut records, input, &mut 0).unwrap();
                        assert!(
                            matches!(received, Some(Received::Data(data)) if data.len() == bytes)
                        );
                    },
                    BatchSize::SmallInput,
                );
            });
        }
    }
    group.finish();
}

criterion_group!(tls, handshake, seal, open);
criterion_main!(tls);
