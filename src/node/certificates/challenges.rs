//! Certificates that answer TLS-ALPN-01 challenges of an ACME server (RFC 8737).
//!
//! The server connects to the public port for a host, offers `acme-tls/1` alone, and expects a certificate of
//! nobody's with the digest of what it has sent. The handshake is all: it closes the connection behind it.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

/// The protocol that such a connection offers.
pub(super) const PROTOCOL: &[u8] = b"acme-tls/1";

/// Whether a client that offers these protocols is an ACME server.
pub(super) fn is_challenge<'p>(mut protocols: impl Iterator<Item = &'p [u8]>) -> bool {
    protocols.next() == Some(PROTOCOL) && protocols.next().is_none()
}

/// The challenges that are under way, by host. Shards read them in handshakes of ACME servers only.
#[derive(Debug, Default)]
pub(in crate::node) struct Challenges {
    by_host: ArcSwap<HashMap<String, Arc<CertifiedKey>>>,
}

impl Challenges {
    /// Answers challenges for this host from now on. `digest`: SHA-256 of the key authorization.
    ///
    /// # Errors
    /// The certificate can't be made.
    pub(in crate::node) fn insert(&self, host: &str, digest: &[u8]) -> Result<(), String> {
        let certified = Arc::new(make(host, digest)?);
        let mut by_host = HashMap::clone(&self.by_host.load());
        by_host.insert(host.to_owned(), certified);
        self.by_host.store(Arc::new(by_host));
        Ok(())
    }

    /// Answers none any more.
    pub(in crate::node) fn remove(&self, host: &str) {
        let mut by_host = HashMap::clone(&self.by_host.load());
        if by_host.remove(host).is_some() {
            self.by_host.store(Arc::new(by_host));
        }
    }

    /// The answer for a host. `None`: there is no challenge, and the handshake fails.
    pub(super) fn certificate(&self, host: &str) -> Option<Arc<CertifiedKey>> {
        self.by_host.load().get(host).cloned()
    }
}

fn make(host: &str, digest: &[u8]) -> Result<CertifiedKey, String> {
    // The library asserts it.
    if digest.len() != 32 {
        return Err("a digest of another length than SHA-256 has".to_owned());
    }
    let key = KeyPair::generate().map_err(|fault| fault.to_string())?;
    let mut params =
        CertificateParams::new(vec![host.to_owned()]).map_err(|fault| fault.to_string())?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key).map_err(|fault| fault.to_string())?;
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = any_ecdsa_type(&der).map_err(|fault| fault.to_string())?;
    // Not `CertifiedKey::from_der`, which reads the certificate: it has an extension that is critical and unknown.
    Ok(CertifiedKey::new(vec![certificate.der().clone()], key))
}

#[cfg(test)]
mod tests {
    use x509_parser::certificate::X509Certificate;
    use x509_parser::prelude::FromDer;

    use super::*;

    #[test]
    fn a_challenge_has_a_certificate_with_its_digest_until_it_is_over() {
        let challenges = Challenges::default();
        let digest: Vec<u8> = (0..32).collect();
        challenges.insert("chat.example.com", &digest).unwrap();
        assert!(challenges.insert("chat.example.com", &digest[1..]).is_err());
        assert!(challenges.certificate("other.example.com").is_none());
        let certified = challenges.certificate("chat.example.com").unwrap();
        let (_, parsed) = X509Certificate::from_der(&certified.cert[0]).unwrap();
        let extension =
            parsed.extensions().iter().find(|e| e.oid.to_id_string() == "1.3.6.1.5.5.7.1.31");
        let extension = extension.unwrap();
        assert!(extension.critical);
        // An octet string with the digest (RFC 8737, 3).
        assert_eq!(extension.value, [&[4, 32], &digest[..]].concat());
        challenges.remove("chat.example.com");
        assert!(challenges.certificate("chat.example.com").is_none());
    }

    #[test]
    fn only_who_offers_the_protocol_alone_is_an_acme_server() {
        let is = |protocols: &[&'static [u8]]| is_challenge(protocols.iter().copied());
        assert!(is(&[b"acme-tls/1"]));
        assert!(!is(&[b"acme-tls/1", b"http/1.1"]) && !is(&[b"http/1.1"]) && !is(&[]));
    }
}
