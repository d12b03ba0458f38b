//! Which servers a client accepts: those that have a certificate of their host that a trusted one has signed, or
//! that is a trusted one itself. `openssl req -x509` marks its certificates as authorities, which elsewhere can't
//! be a server's.

use std::sync::Arc;

use ::aws_lc_rs::digest::{SHA256, digest};
use rustls::CertificateError::Other;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

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

    /// Those of them that are fit for it.
    fn of_fit(
        certificates: &[CertificateDer<'static>],
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        match roots.add_parsable_certificates(certificates.iter().cloned()) {
            (0, _) => Err("none that can be used".to_owned()),
            _ => Self::new(roots, certificates, provider),
        }
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

/// Checks a server's certificate for its host, and that the server has the certificate's key.
#[derive(Debug)]
pub struct ServerVerifier {
    provider: Arc<CryptoProvider>,
    /// `None`: any certificate is accepted.
    anchors: Option<Anchors>,
}

impl ServerVerifier {
    /// Accepts what these have signed, and these.
    ///
    /// # Errors
    /// One of them can't be used.
    pub fn trusting(
        certificates: &[CertificateDer<'static>],
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<Self>, String> {
        Ok(Self::of(Some(Anchors::of(certificates, provider)?), provider))
    }

    /// The same, without those that can't be used: a machine has some.
    ///
    /// # Errors
    /// None of them can be used.
    pub fn trusting_fit(
        certificates: &[CertificateDer<'static>],
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<Self>, String> {
        Ok(Self::of(Some(Anchors::of_fit(certificates, provider)?), provider))
    }

    /// Accepts any certificate.
    pub fn accepting_all(provider: &Arc<CryptoProvider>) -> Arc<Self> {
        Self::of(None, provider)
    }

    fn of(anchors: Option<Anchors>, provider: &Arc<CryptoProvider>) -> Arc<Self> {
        Arc::new(Self { provider: Arc::clone(provider), anchors })
    }
}

impl ServerCertVerifier for ServerVerifier {
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
mod tests {
    use rustls::CertificateError::{Expired, NotValidForNameContext, NotValidYet, UnknownIssuer};
    use rustls::pki_types::pem::PemObject;
    use std::time::Duration;

    use rustls::crypto::aws_lc_rs;

    use super::*;

    /// Self-signed and marked as an authority, for `localhost`, as `openssl req -x509` makes it.
    const AUTHORITY: &str = include_str!("trust/authority.pem");

    /// The same made anew: another key under the same names.
    const OTHER: &str = include_str!("trust/other.pem");

    fn certificate(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    #[test]
    fn a_configured_certificate_is_good_itself_where_name_and_times_are() {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = ServerVerifier::trusting(&[certificate(AUTHORITY)], &provider).unwrap();
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
    #[test]
    fn a_certificate_that_is_unfit_is_refused_or_left_out() {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let unfit = CertificateDer::from(vec![0x30, 0]);
        let both = [unfit.clone(), certificate(AUTHORITY)];
        assert!(ServerVerifier::trusting(&both, &provider).is_err());
        assert!(ServerVerifier::trusting_fit(&both, &provider).is_ok());
        let fault = ServerVerifier::trusting_fit(&[unfit], &provider).unwrap_err();
        assert_eq!(fault, "none that can be used");
    }
}
