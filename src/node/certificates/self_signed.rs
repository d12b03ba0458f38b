//! A certificate that nobody has signed, for trials on one machine or in one network.

use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::pair::Pair;

/// How long it holds, days: browsers refuse server certificates of more than 398.
const DAYS: u64 = 365;

/// The option that requests it.
pub(super) const OPTION: &str = "roost.tls_self_signed";

/// Makes one for this machine: `localhost`, loopback addresses, the machine's name, and `addresses`. `now`: Unix
/// time.
///
/// # Errors
/// The library refuses.
pub(super) fn make(
    addresses: &[String],
    now: i64,
    provider: &CryptoProvider,
) -> Result<Pair, String> {
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy().to_ascii_lowercase();
    let is_name = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
    };
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    names.extend(is_name(&host).then_some(host));
    names.extend(addresses.iter().cloned());
    names.dedup();
    let key = KeyPair::generate().map_err(|fault| fault.to_string())?;
    let mut params = CertificateParams::new(names).map_err(|fault| fault.to_string())?;
    params.distinguished_name.push(rcgen::DnType::CommonName, "roost, self-signed");
    // Clocks of clients may be late.
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now.unsigned_abs());
    params.not_before = now - Duration::from_hours(24);
    params.not_after = now + Duration::from_hours(24 * DAYS);
    let certificate = params.self_signed(&key).map_err(|fault| fault.to_string())?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Pair::new(OPTION.to_owned(), vec![certificate.der().clone()], key, provider)
}
