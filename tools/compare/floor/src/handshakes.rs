//! The floors of TLS handshakes: the cryptography that none can do without, and rustls in a bare accept loop.

use std::io::Read as _;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use aws_lc_rs::agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use rustix::time::{ClockId, clock_gettime};
use rustls::crypto::aws_lc_rs::{Ticketer, cipher_suite, default_provider, kx_group};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::{ServerConfig, ServerConnection};

/// Prints the processor time of a P-256 signature with an X25519 exchange, in nanoseconds: the median of rounds,
/// since the same core does other work, too.
pub fn cryptography() -> Result<(), Unspecified> {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)?;
    let signer = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref());
    let signer = signer.map_err(|_| Unspecified)?;
    let peer = EphemeralPrivateKey::generate(&X25519, &random)?.compute_public_key()?;
    let peer = UnparsedPublicKey::new(&X25519, peer);
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let before = cpu_ns();
        for _ in 0..PER_ROUND {
            std::hint::black_box(signer.sign(&random, b"message")?);
            let own = EphemeralPrivateKey::generate(&X25519, &random)?;
            std::hint::black_box(own.compute_public_key()?);
            agree_ephemeral(own, &peer, Unspecified, |_| Ok(()))?;
        }
        rounds.push((cpu_ns() - before) / PER_ROUND);
    }
    rounds.sort_unstable();
    println!("{}", rounds[rounds.len() / 2]);
    Ok(())
}

const ROUNDS: usize = 101;
const PER_ROUND: i64 = 100;

fn cpu_ns() -> i64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// A connection until its peer closes it.
struct Conn {
    fd: OwnedFd,
    tls: ServerConnection,
}

/// Shakes hands at a listener until the process is ended.
pub fn serve(
    epoll: &OwnedFd,
    listener: &OwnedFd,
    certificate: &str,
    key: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    let config = Arc::new(config(certificate, key)?);
    let mut conns: Vec<Option<Conn>> = Vec::new();
    let mut events = Vec::with_capacity(1024);
    let mut buffer = vec![0; 64 * 1024];
    let mut out = Vec::new();
    loop {
        events.clear();
        match epoll::wait(epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            let at = event.data.u64();
            if at == u64::MAX {
                accept(epoll, listener, &config, &mut conns)?;
                continue;
            }
            let slot = &mut conns[at as usize];
            if let Some(conn) = slot
                && !read(conn, &mut buffer, &mut out)
            {
                *slot = None;
            }
        }
    }
}

/// As a node has it: AES-128 first, one stateless ticket.
fn config(certificate: &str, key: &str) -> Result<ServerConfig, Box<dyn std::error::Error>> {
    let mut provider = default_provider();
    provider.cipher_suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256];
    provider.kx_groups = vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1];
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate)?.collect();
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain?, PrivateKeyDer::from_pem_file(key)?)?;
    config.ticketer = Ticketer::new()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    Ok(config)
}

fn accept(
    epoll: &OwnedFd,
    listener: &OwnedFd,
    config: &Arc<ServerConfig>,
    conns: &mut Vec<Option<Conn>>,
) -> Result<(), Box<dyn std::error::Error>> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    while let Ok(fd) = rustix::net::accept_with(listener, flags) {
        let at = fd.as_raw_fd() as usize;
        let interest = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(epoll, &fd, epoll::EventData::new_u64(at as u64), interest)?;
        if conns.len() <= at {
            conns.resize_with(at + 1, || None);
        }
        conns[at] = Some(Conn { fd, tls: ServerConnection::new(Arc::clone(config))? });
    }
    Ok(())
}

/// Reads once, and answers. False when the connection is over.
fn read(conn: &mut Conn, buffer: &mut [u8], out: &mut Vec<u8>) -> bool {
    let count = match rustix::net::recv(&conn.fd, &mut *buffer, RecvFlags::DONTWAIT) {
        Ok((_, 0)) => return false,
        Ok((_, count)) => count,
        Err(Errno::WOULDBLOCK | Errno::INTR) => return true,
        Err(_) => return false,
    };
    let mut input = &buffer[..count];
    while !input.is_empty() {
        if conn.tls.read_tls(&mut input).is_err() || conn.tls.process_new_packets().is_err() {
            return false;
        }
    }
    let mut plain = [0; 1024];
    while matches!(conn.tls.reader().read(&mut plain), Ok(1..)) {}
    out.clear();
    while conn.tls.wants_write() {
        if conn.tls.write_tls(out).is_err() {
            return false;
        }
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    out.is_empty() || rustix::net::send(&conn.fd, out, flags) == Ok(out.len())
}
