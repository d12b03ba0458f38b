//! One certificate with its chain and key, as handshakes use it, and what is known of it.

use std::sync::Arc;

use ::aws_lc_rs::digest::{SHA256, digest};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use zeroize::Zeroizing;

use crate::config::{PairSource, Pem};

/// Bytes of a PEM file at most: a chain has some thousand.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// Bits of an RSA key above which a signature takes a shard's time noticeably: 2 ms with 3,072 bits and 4 to 5 ms
/// with 4,096, where one of 2,048 takes 0.5 ms and ECDSA with P-256 0.03 ms.
const RSA_BITS_CHEAP: usize = 2048;

/// A certificate that is in use.
#[derive(Debug)]
pub(super) struct Pair {
    /// The option that it came from.
    pub(super) option: String,
    /// What handshakes use.
    pub(super) certified: Arc<CertifiedKey>,
    /// Names of hosts in the certificate, lower case.
    pub(super) names: Vec<String>,
    /// The name for people: the first of them, else the subject.
    pub(super) name: String,
    /// Its first second, Unix time.
    pub(super) not_before: i64,
    /// Its last second, Unix time.
    pub(super) not_after: i64,
    /// Bits of its key, if that is an RSA key that costs much time.
    pub(super) slow_rsa_bits: Option<usize>,
}

impl Pair {
    /// Reads a certificate and its key.
    ///
    /// # Errors
    /// One of them can't be read, or they don't belong to each other.
    pub(super) fn read(source: &PairSource, provider: &CryptoProvider) -> Result<Self, String> {
        let text = read_pem(&source.certificate)?;
        let chain = certificates(&text)?;
        let key_text = read_pem(&source.key).map_err(|fault| format!("its key: {fault}"))?;
        let key = PrivateKeyDer::from_pem_slice(key_text.as_bytes())
            .map_err(|fault| format!("its key: {}{fault}", of_file(&source.key)))?;
        Self::new(source.option.clone(), chain, key, provider)
    }

    /// The same of what was read.
    ///
    /// # Errors
    /// The certificate can't be read, or the key isn't its key.
    pub(super) fn new(
        option: String,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        provider: &CryptoProvider,
    ) -> Result<Self, String> {
        let certified =
            CertifiedKey::from_der(chain, key, provider).map_err(|fault| match fault {
                rustls::Error::InconsistentKeys(_) => "the key is another certificate's".to_owned(),
                fault => fault.to_string(),
            })?;
        let end_entity = certified.end_entity_cert().map_err(|fault| fault.to_string())?;
        let (_, parsed) =
            X509Certificate::from_der(end_entity).map_err(|fault| fault.to_string())?;
        check_chain(&parsed, &certified.cert[1..])?;
        let names = names(&parsed);
        let name = names.first().cloned().unwrap_or_else(|| parsed.subject().to_string());
        let not_before = parsed.validity().not_before.timestamp();
        let not_after = parsed.validity().not_after.timestamp();
        let slow_rsa_bits = match parsed.public_key().parsed() {
            Ok(PublicKey::RSA(key)) => Some(key.key_size()).filter(|bits| *bits > RSA_BITS_CHEAP),
            _ => None,
        };
        let certified = Arc::new(certified);
        Ok(Self { option, names, name, not_before, not_after, slow_rsa_bits, certified })
    }

    /// SHA-256 of the certificate, as browsers and `openssl x509 -fingerprint` show it.
    pub(super) fn fingerprint(&self) -> String {
        let bytes = self.certified.cert.first().map_or(&[][..], AsRef::as_ref);
        let digest = digest(&SHA256, bytes);
        digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
    }
}

/// Each certificate of a chain has to be readable, and signed by the next one as far as names show that:
/// clients refuse other chains, some of them without a word.
fn check_chain(
    end_entity: &X509Certificate<'_>,
    others: &[CertificateDer<'static>],
) -> Result<(), String> {
    let mut issuer = end_entity.issuer().as_raw().to_vec();
    for (at, der) in others.iter().enumerate() {
        let number = at + 2;
        let (_, parsed) = X509Certificate::from_der(der)
            .map_err(|fault| format!("certificate {number} of the chain: {fault}"))?;
        if parsed.subject().as_raw() != issuer {
            return Err(format!(
                "certificate {number} of the chain has not signed the one before it"
            ));
        }
        issuer = parsed.issuer().as_raw().to_vec();
    }
    Ok(())
}

/// Names of hosts in a certificate.
fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let names = extension.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    names.collect()
}

/// All certificates of a PEM text: at least one.
///
/// # Errors
/// One of them can't be read, or there is none.
pub(super) fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|fault| fault.to_string())?;
    if all.is_empty() { Err("no certificate in it".to_owned()) } else { Ok(all) }
}

/// The text of a PEM option. It may be a key, so it is wiped.
///
/// # Errors
/// The file can't be read, or is too long.
pub(super) fn read_pem(pem: &Pem) -> Result<Zeroizing<String>, String> {
    match pem {
        Pem::Text(text) => Ok(Zeroizing::new(text.clone())),
        Pem::File(path) => {
            let fault = |fault: std::io::Error| format!("{}: {fault}", path.display());
            if std::fs::metadata(path).map_err(fault)?.len() > PEM_BYTES_MAX {
                return Err(format!("{}: more than {PEM_BYTES_MAX} bytes", path.display()));
            }
            std::fs::read_to_string(path).map(Zeroizing::new).map_err(fault)
        }
    }
}

fn of_file(pem: &Pem) -> String {
    pem.path().map_or_else(String::new, |path| format!("{}: ", path.display()))
}
