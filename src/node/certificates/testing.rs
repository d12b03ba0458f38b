//! Certificates that tests make.

use rcgen::{BasicConstraints, CertificateParams, DnType, DnValue, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::pair::Pair;
use super::provider;

/// A certificate for these names and its key, as PEM.
pub(super) fn pem(names: &[&str]) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
    (params.unwrap().self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// The same as handshakes use it.
pub(super) fn pair(names: &[&str]) -> Pair {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
    let certificate = params.unwrap().self_signed(&key).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Pair::new("test".to_owned(), vec![certificate.der().clone()], key, &provider()).unwrap()
}

/// An authority as PEM, and what it has signed: a certificate with this subject, and its key.
pub(super) fn signed<V: Clone + Into<DnValue>>(
    subject: &[(DnType, V)],
) -> (String, String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "authority");
    let authority = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let own = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    for (kind, value) in subject {
        params.distinguished_name.push(kind.clone(), value.clone());
    }
    let signed = params.signed_by(&own, &issuer).unwrap();
    (authority.pem(), signed.pem(), own.serialize_pem())
}
