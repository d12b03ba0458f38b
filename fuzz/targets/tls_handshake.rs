//! Bytes of a client before the handshake is done: no panic, and the same end however they come in pieces.
//! The record layer's part; rustls' own parsers are fuzzed there.
//!
//! Input: a byte for the length of pieces, then the bytes.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use roost::proto::tls::handshake::{HANDSHAKE_BYTES_MAX, Handshake, prepare_server};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

const CERTIFICATE: &[u8] = include_bytes!("../../src/proto/tls/handshake/certificate.pem");
const KEY: &[u8] = include_bytes!("../../src/proto/tls/handshake/key.pem");

static CONFIG: LazyLock<Arc<ServerConfig>> = LazyLock::new(|| {
    let mut config = ServerConfig::builder_with_provider(default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(CERTIFICATE).unwrap()],
            PrivateKeyDer::from_pem_slice(KEY).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    prepare_server(&mut config);
    config.into()
});

/// The fault's reason, how much was answered (random numbers differ, lengths of certificates' signatures
/// nearly), and whether that ends with an alert.
fn read<'p>(pieces: impl Iterator<Item = &'p [u8]>) -> (Option<&'static str>, bool) {
    let mut handshake = Handshake::server(&CONFIG).unwrap();
    let mut end = None;
    for piece in pieces {
        match handshake.read(piece, &mut 0) {
            // Nobody guesses a Finished.
            Ok(done) => assert!(!done),
            Err(fault) => {
                end = Some(fault.label());
                break;
            }
        }
        let answered = handshake.to_send().len();
        assert!(handshake.heap_bytes() <= 2 * (HANDSHAKE_BYTES_MAX + 20_000) + 2 * answered);
    }
    let answered = !handshake.to_send().is_empty();
    if end.is_some() {
        assert!(handshake.read(b"more", &mut 0).is_err());
    }
    assert!(handshake.finish().is_err());
    (end, answered)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((piece, stream)) = bytes.split_first() else { return };
    let whole = read([stream].into_iter());
    assert_eq!(read(stream.chunks(usize::from(*piece) + 1)), whole);
});
