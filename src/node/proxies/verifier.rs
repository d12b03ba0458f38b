//! Who an endpoint is, by its certificate.

use std::sync::Arc;

use rustls::CertificateError::Other;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// Takes what the configured certificates sign, and the configured certificates themselves: what
/// `openssl req -x509` makes is marked as an authority, and no authority may be a server's certificate
/// elsewhere.
#[derive(Debug)]
pub(super) struct Anchored {
    /// Checks everything; the certificates themselves pass all but being an authority.
    usual: Arc<WebPkiServerVerifier>,
    anchors: Vec<CertificateDer<'static>>,
}

impl Anchored {
    /// One for these certificates.
    pub(super) fn new(
        anchors: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for anchor in &anchors {
            roots.add(anchor.clone()).map_err(|fault| fault.to_string())?;
        }
        let usual = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build();
        Ok(Self { usual: usual.map_err(|fault| fault.to_string())?, anchors })
    }
}

/// Whether a certificate is refused since it is an authority's. That is looked at behind its times, so
/// they are good.
fn is_authority(fault: &Error) -> bool {
    let Error::InvalidCertificate(Other(fault)) = fault else { return false };
    let fault = fault.0.downcast_ref::<webpki::Error>();
    fault.is_some_and(|fault| matches!(fault, webpki::Error::CaUsedAsEndEntity))
}

impl ServerCertVerifier for Anchored {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let usual = self.usual.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        let Err(fault) = &usual else { return usual };
        if !is_authority(fault) || !self.anchors.contains(end_entity) {
            return usual;
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
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

/// Takes any certificate (`http.tls.insecure_skip_verify`), of whoever has its key.
#[derive(Debug)]
pub(super) struct Unchecked(pub(super) Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::CertificateError::{Expired, NotValidForNameContext, NotValidYet, UnknownIssuer};
    use rustls::crypto::aws_lc_rs;
    use rustls::pki_types::pem::PemObject;
    use std::time::Duration;

    use super::*;

    /// Self-signed and marked as an authority, for `localhost`, as `openssl req -x509` makes it.
    const AUTHORITY: &str = include_str!("testing/authority.pem");
    /// The same made anew: another key under the same names.
    const OTHER: &str = include_str!("testing/other.pem");

    fn certificate(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    #[test]
    fn a_configured_certificate_is_good_itself_where_name_and_times_are() {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = Anchored::new(vec![certificate(AUTHORITY)], provider).unwrap();
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
