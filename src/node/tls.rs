//! TLS towards servers that the node or a command of `roost` calls: proxies, token keys, running nodes.
//!
//! All of them have one rule: a certificate is accepted that a trusted one has signed, and a trusted one
//! itself. `openssl req -x509` marks its certificates as authorities, which elsewhere can't be a server's.

use std::sync::Arc;

use ::aws_lc_rs::digest::{SHA256, digest};
use rustls::CertificateError::Other;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WantsClientCert, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

/// The certificates that servers may have.
pub enum Trust {
    /// Servers with certificates signed by the machine's authorities.
    Machine,
    /// Servers with certificates signed by these.
    Certificates(Vec<CertificateDer<'static>>),
    /// None: for endpoints without TLS.
    Nobody,
    /// Any (`http.tls.insecure_skip_verify`), if the server has its key.
    Anybody,
}

/// Begins the configuration of a client; a certificate of its own is still to be said.
///
/// # Errors
/// No certificate to check servers with can be used.
pub fn client_config(trust: Trust) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|fault| fault.to_string())?;
    let anchors = match trust {
        Trust::Nobody => return Ok(builder.with_root_certificates(RootCertStore::empty())),
        Trust::Anybody => None,
        Trust::Certificates(certificates) => Some(Anchors::of(&certificates, &provider)?),
        Trust::Machine => Some(Anchors::of_machine(&provider)?),
    };
    let verifier = Arc::new(Verifier { provider, anchors });
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier))
}

/// Trusted certificates.
#[derive(Debug)]
struct Anchors {
    /// Checks everything. A trusted certificate itself passes all of it but being an authority.
    usual: Arc<WebPkiServerVerifier>,
    /// SHA-256 of each trusted certificate: the machine may have 150 of them.
    digests: Vec<[u8; 32]>,
}

impl Anchors {
    /// These, all of which have to be fit for it.
    fn of(
        certificates: &[CertificateDer<'static>],
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates {
            roots.add(certificate.clone()).map_err(|fault| fault.to_string())?;
        }
        Self::new(roots, certificates, provider)
    }

    /// The usable certificates of the machine.
    fn of_machine(provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        let (fit, _) = roots.add_parsable_certificates(found.certs.iter().cloned());
        if fit == 0 {
            let faults = found.errors.iter().map(|fault| format!(": {fault}"));
            return Err(format!("the machine has none{}", faults.collect::<String>()));
        }
        Self::new(roots, &found.certs, provider)
    }

    fn new(
        roots: RootCertStore,
        certificates: &[CertificateDer<'_>],
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let digests = certificates.iter().map(sha256).collect();
        let provider = Arc::clone(provider);
        let usual = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build();
        Ok(Self { usual: usual.map_err(|fault| fault.to_string())?, digests })
    }
}

fn sha256(certificate: &CertificateDer<'_>) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, certificate).as_ref());
    bytes
}

/// Whether a certificate is refused since it is an authority's. That is looked at behind its times, so
/// they are good.
fn is_authority(fault: &Error) -> bool {
    let Error::InvalidCertificate(Other(fault)) = fault else { return false };
    let fault = fault.0.downcast_ref::<webpki::Error>();
    fault.is_some_and(|fault| matches!(fault, webpki::Error::CaUsedAsEndEntity))
}

/// Checks who a server is by its certificate, and that it has the certificate's key.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    /// `None`: any certificate is accepted.
    anchors: Option<Anchors>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(Anchors { usual, digests }) = &self.anchors else {
            return Ok(ServerCertVerified::assertion());
        };
        let verified =
            usual.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let Err(fault) = &verified else { return verified };
        if !is_authority(fault) || !digests.contains(&sha256(end_entity)) {
            return verified;
        }
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
pub(super) mod testing {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener};

    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject;
    use rustls::{ServerConfig, ServerConnection, Stream};

    use super::*;

    /// Self-signed and marked as an authority, for `localhost`, as `openssl req -x509` makes it.
    pub(in crate::node) const AUTHORITY: &str = include_str!("testing/authority.pem");

    /// A server with that certificate. It answers one request, if the client accepts the certificate.
    #[expect(clippy::disallowed_methods, reason = "a server of a test")]
    pub(in crate::node) fn serve_once(answer: &'static str) -> SocketAddr {
        let certificate = CertificateDer::from_pem_slice(AUTHORITY.as_bytes()).unwrap();
        let key = include_bytes!("testing/authority_key.pem");
        let key = PrivateKeyDer::from_pem_slice(key).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut tls = ServerConnection::new(Arc::new(config)).unwrap();
            let mut stream = Stream::new(&mut tls, &mut socket);
            // A refused certificate ends the connection here.
            if stream.read(&mut [0; 4096]).is_ok() {
                let _ = stream.write_all(answer.as_bytes());
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        });
        address
    }
}

#[cfg(test)]
mod tests {
    use rustls::CertificateError::{Expired, NotValidForNameContext, NotValidYet, UnknownIssuer};
    use rustls::pki_types::pem::PemObject;
    use std::time::Duration;

    use super::testing::AUTHORITY;
    use super::*;

    /// The same made anew: another key under the same names.
    const OTHER: &str = include_str!("testing/other.pem");

    fn certificate(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    #[test]
    fn a_configured_certificate_is_good_itself_where_name_and_times_are() {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let anchors = Some(Anchors::of(&[certificate(AUTHORITY)], &provider).unwrap());
        let verifier = Verifier { provider, anchors };
        let verify = |pem, name, at| {
            let name = ServerName::try_from(name).unwrap();
            let now = UnixTime::since_unix_epoch(Duration::from_secs(at));
            let verified = verifier.verify_server_cert(&certificate(pem), &[], &name, &[], now);
            verified.map(|_| ()).map_err(|fault| match fault {
                Error::InvalidCertificate(why) => why,
                other => panic!("{other}"),
            })
        };
        // It is good from 2026 to 2126.
        let now = 1_900_000_000;
        assert_eq!(verify(AUTHORITY, "localhost", now), Ok(()));
        let refused = [
            verify(AUTHORITY, "example.com", now),
            verify(AUTHORITY, "localhost", 1_000_000_000),
            verify(AUTHORITY, "localhost", 6_000_000_000),
            verify(OTHER, "localhost", now),
        ];
        for (at, refused) in refused.into_iter().enumerate() {
            let fault = refused.unwrap_err();
            let is_expected = match at {
                0 => matches!(fault, NotValidForNameContext { .. }),
                1 => matches!(
                    fault,
                    NotValidYet | rustls::CertificateError::NotValidYetContext { .. }
                ),
                2 => matches!(fault, Expired | rustls::CertificateError::ExpiredContext { .. }),
                _ => {
                    fault == UnknownIssuer
                        || is_authority(&Error::InvalidCertificate(fault.clone()))
                }
            };
            assert!(is_expected, "{at}: {fault:?}");
        }
    }
}
