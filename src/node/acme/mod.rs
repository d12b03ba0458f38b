//! Certificates from an ACME server (RFC 8555): obtained where they are missing, and renewed when two thirds of
//! their time have gone.
//!
//! ```text
//!  Keeper::run --> due? --> lock in the cache --> order --> challenge --> certificate --> cache
//!      ^                                            |           '- answers.rs: HTTP-01, at a port of its own
//!      |                                            |           '- certificates/challenges.rs: TLS-ALPN-01
//!      '-- later, if it fails: log, /health, a metric <---------------'        handshakes have it from then on
//! ```
//!
//! All of it runs on the control thread, and shards see new settings of handshakes only. Nodes that share the
//! cache renew one after the other: the first one does, and the others read its file.

mod answers;
mod cache;
mod schedule;
mod transport;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use instant_acme::{
    Account, AuthorizationHandle, AuthorizationStatus, ChallengeType, Identifier, Key, NewAccount,
    NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tracing::{info, warn};
use zeroize::Zeroizing;

pub(super) use self::answers::router;
use self::answers::{Answer, Answers};
use self::cache::Cache;
use self::schedule::Schedule;
use self::transport::Transport;
use super::certificates::{Certificates, Challenges, unix_now};
use super::tls::Trust;
use crate::base::rng::Rng;
use crate::config::{Acme, Pem};

/// How often it is looked whether a certificate is due.
const DUE_EVERY: Duration = Duration::from_secs(5);

/// An attempt ends so late.
const ATTEMPT_MAX: Duration = Duration::from_secs(300);

/// A server checks a challenge, and signs, in some seconds.
const RETRIES: RetryPolicy = RetryPolicy::new().timeout(Duration::from_secs(90));

/// The account's key in the cache.
const ACCOUNT: &str = "acme_account+key";

/// An attempt has failed: a text for operators.
type Fault = String;

/// Keeps the certificates of all hosts.
pub(super) struct Keeper {
    certificates: Arc<Certificates>,
    cache: Cache,
    answers: Arc<Answers>,
    transport: Transport,
    account: Option<Account>,
    hosts: HashMap<String, Schedule>,
    rng: Rng,
}

/// The keeper, the listener of HTTP-01 challenges, if they are answered, and its answers.
type Opened = (Keeper, Option<std::net::TcpListener>, Arc<Answers>);

impl Keeper {
    /// The keeper, and the listener of HTTP-01 challenges, if they are answered: that of a process before, or a new
    /// one. `None`: no certificates are obtained.
    ///
    /// # Errors
    /// The cache can't be used, the port is taken, or there is nothing to check the server with.
    pub(super) fn open(
        certificates: Arc<Certificates>,
        seed: u64,
        before: Option<OwnedFd>,
    ) -> io::Result<Option<Opened>> {
        let Some((options, _)) = certificates.acme() else { return Ok(None) };
        let cache = Cache::open(options.cache.clone())?;
        let transport = Transport::new(trust(options.authorities.as_ref())?)?;
        let listener = match (options.http, before) {
            (Some(_), Some(before)) => Some(std::net::TcpListener::from(before)),
            (http, _) => http.map(bind).transpose()?,
        };
        let answers = Arc::new(Answers::new(cache.clone()));
        let keeper = Self {
            certificates,
            cache,
            answers: Arc::clone(&answers),
            transport,
            account: None,
            hosts: HashMap::new(),
            rng: Rng::new(seed),
        };
        Ok(Some((keeper, listener, answers)))
    }

    /// Obtains and renews, until the process ends.
    pub(super) async fn run(mut self) {
        loop {
            // With the options of this moment: a reload may bring other hosts.
            if let Some((options, challenges)) = self.certificates.acme() {
                for host in &options.hosts {
                    self.look(host, &options, &challenges).await;
                }
            }
            tokio::time::sleep(DUE_EVERY).await;
        }
    }

    /// Obtains a certificate, if it is time.
    async fn look(&mut self, host: &str, options: &Acme, challenges: &Challenges) {
        let option = Acme::option(host);
        let rng = &mut self.rng;
        let schedule = self.hosts.entry(host.to_owned()).or_insert_with(|| Schedule::new(rng));
        let is_due = |schedule: &Schedule, certificates: &Certificates| {
            schedule.is_due(certificates.validity(&option), unix_now())
        };
        if !is_due(schedule, &self.certificates) {
            return;
        }
        let lock = match self.cache.lock(host) {
            Ok(Some(lock)) => lock,
            // Another node obtains it.
            Ok(None) => return,
            Err(fault) => return self.failed(host, &format!("cannot lock the cache: {fault}")),
        };
        // Another node may have obtained it since the last look at the files.
        self.certificates.read_now(unix_now());
        if !self.hosts.get(host).is_some_and(|schedule| is_due(schedule, &self.certificates)) {
            return;
        }
        info!(host, server = options.directory, "ACME: a certificate is requested");
        let attempt = tokio::time::timeout(ATTEMPT_MAX, self.obtain(host, options, challenges));
        match attempt.await.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
            Ok(()) => {
                self.hosts.remove(host);
                self.certificates.obtained(&option, Ok(()), unix_now());
                info!(host, "ACME: the certificate is in use");
            }
            Err(fault) => self.failed(host, &fault),
        }
        drop(lock);
    }

    fn failed(&mut self, host: &str, fault: &str) {
        // The next attempt finds the server and the account anew.
        self.account = None;
        let wait = self
            .hosts
            .get_mut(host)
            .map_or(0, |schedule| schedule.failed(unix_now(), &mut self.rng));
        warn!(host, fault, seconds = wait, "ACME: no certificate; the next attempt follows");
        let result = Err(fault.to_owned());
        self.certificates.obtained(&Acme::option(host), result, unix_now());
    }

    async fn obtain(
        &mut self,
        host: &str,
        options: &Acme,
        challenges: &Challenges,
    ) -> Result<(), Fault> {
        let account = self.account(options).await?;
        let hosts = [Identifier::Dns(host.to_owned())];
        let mut order = account.new_order(&NewOrder::new(&hosts)).await.map_err(text)?;
        let failures = self.hosts.get(host).map_or(0, Schedule::failures);
        let kinds = kinds(options, failures);
        let answers = self.answer(&mut order, host, &kinds, challenges).await?;
        let status = order.poll_ready(&RETRIES).await.map_err(text)?;
        if status != OrderStatus::Ready {
            return Err(refusal(&mut order).await);
        }
        drop(answers);
        let key = KeyPair::generate().map_err(text)?;
        let mut params = CertificateParams::new(vec![host.to_owned()]).map_err(text)?;
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key).map_err(text)?;
        order.finalize_csr(request.der()).await.map_err(text)?;
        let chain = order.poll_certificate(&RETRIES).await.map_err(text)?;
        let pem = Zeroizing::new(format!("{}{chain}", *Zeroizing::new(key.serialize_pem())));
        self.certificates.check_pair(host, &pem)?;
        self.cache.write(host, &pem).map_err(text)
    }

    /// The account of the cache, or a new one.
    async fn account(&mut self, options: &Acme) -> Result<Account, Fault> {
        if let Some(account) = &self.account {
            return Ok(account.clone());
        }
        let builder = Account::builder_with_http(Box::new(self.transport.clone()));
        let directory = options.directory.clone();
        let account = match self.cache.read(ACCOUNT).map_err(text)? {
            Some(pem) => {
                let key = account_key(&pem)?;
                builder.create_from_key(key, directory).await.map_err(text)?.0
            }
            None => {
                let email = options.email.as_ref().map(|email| format!("mailto:{email}"));
                let new = NewAccount {
                    contact: &email.as_deref().into_iter().collect::<Vec<_>>(),
                    terms_of_service_agreed: true,
                    only_return_existing: false,
                };
                let (account, made) = builder.create(&new, directory, None).await.map_err(text)?;
                let pem = cache::pem("PRIVATE KEY", made.private_key().secret_pkcs8_der());
                self.cache.write(ACCOUNT, &pem).map_err(text)?;
                info!(account = account.id(), "ACME: there is an account now");
                account
            }
        };
        self.account = Some(account.clone());
        Ok(account)
    }

    /// Makes the answers to an order's challenges, and lets the server check them. They hold until the result is
    /// dropped.
    async fn answer<'c>(
        &self,
        order: &mut Order,
        host: &str,
        kinds: &[ChallengeType],
        challenges: &'c Challenges,
    ) -> Result<Vec<UnderWay<'c>>, Fault> {
        let mut under_way = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(text)?;
            match authorization.status {
                AuthorizationStatus::Pending => {}
                // Of an earlier order.
                AuthorizationStatus::Valid => continue,
                _ => return Err(reason(&authorization)),
            }
            let has = |kind: &&ChallengeType| {
                authorization.challenges.iter().any(|challenge| challenge.r#type == **kind)
            };
            let Some(kind) = kinds.iter().find(has).cloned() else {
                return Err("the server has no challenge that can be answered".to_owned());
            };
            let is_http = kind == ChallengeType::Http01;
            let Some(mut challenge) = authorization.challenge(kind) else { continue };
            let key_authorization = challenge.key_authorization();
            under_way.push(if is_http {
                let answer = self.answers.add(&challenge.token, key_authorization.as_str());
                UnderWay::Http(answer.map_err(text)?)
            } else {
                challenges.insert(host, key_authorization.digest().as_ref())?;
                UnderWay::Handshake(Handshakes { challenges, host: host.to_owned() })
            });
            challenge.set_ready().await.map_err(text)?;
        }
        Ok(under_way)
    }
}

/// An answer to a challenge, until it is dropped.
#[expect(dead_code, reason = "they are held for what they do when they are dropped")]
enum UnderWay<'c> {
    Http(Answer),
    Handshake(Handshakes<'c>),
}

struct Handshakes<'c> {
    challenges: &'c Challenges,
    host: String,
}

impl Drop for Handshakes<'_> {
    fn drop(&mut self) {
        self.challenges.remove(&self.host);
    }
}

/// The challenges that can be answered, and the one to try first: another one behind each failure.
fn kinds(options: &Acme, failures: u32) -> Vec<ChallengeType> {
    let http = options.http.map(|_| ChallengeType::Http01);
    let handshake = options.tls_alpn.then_some(ChallengeType::TlsAlpn01);
    let mut kinds: Vec<_> = http.into_iter().chain(handshake).collect();
    if !kinds.is_empty() {
        let first = failures as usize % kinds.len();
        kinds.rotate_left(first);
    }
    kinds
}

/// Why the server doesn't let the order pass.
async fn refusal(order: &mut Order) -> Fault {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let refreshed = authorization.refresh().await.is_ok();
        if refreshed && authorization.status != AuthorizationStatus::Valid {
            return reason(&authorization);
        }
    }
    "the server refuses the order".to_owned()
}

fn reason(authorization: &AuthorizationHandle<'_>) -> Fault {
    let mut problems = authorization.challenges.iter().filter_map(|one| one.error.as_ref());
    match problems.next() {
        Some(problem) => format!("the challenge failed: {problem}"),
        None => format!("the server's authorization is {:?}", authorization.status),
    }
}

/// An error and its causes.
fn text(fault: impl std::error::Error) -> Fault {
    format!("{fault}{}", super::fetch::causes(&fault))
}

/// An account's key: PKCS#8, or SEC 1 as Go's programs write it.
fn account_key(pem: &str) -> Result<(Key, PrivateKeyDer<'static>), Fault> {
    let fault = |why: String| format!("{ACCOUNT} in the cache: {why}");
    let key =
        PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|why| fault(why.to_string()))?;
    let pkcs8 = match key {
        PrivateKeyDer::Pkcs8(pkcs8) => pkcs8,
        other => {
            let der = other.secret_der();
            let pair = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, der)
                .map_err(|why| fault(why.to_string()))?;
            let pkcs8 = pair.to_pkcs8v1().map_err(|_| fault("no key of P-256".to_owned()))?;
            PrivatePkcs8KeyDer::from(pkcs8.as_ref().to_vec())
        }
    };
    let key = Key::from_pkcs8_der(pkcs8.clone_key()).map_err(|why| fault(why.to_string()))?;
    Ok((key, PrivateKeyDer::Pkcs8(pkcs8)))
}

/// The certificates that the server may have.
fn trust(authorities: Option<&Pem>) -> io::Result<Trust> {
    let Some(pem) = authorities else { return Ok(Trust::Machine) };
    let read;
    let pem = match pem {
        Pem::Text(text) => text,
        Pem::File(path) => {
            read = std::fs::read_to_string(path)?;
            &read
        }
    };
    let certificates =
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|why| io::Error::other(why.to_string()))?;
    Ok(Trust::Certificates(certificates))
}

/// The listener of HTTP-01 challenges. All addresses are those of IPv4, where there is no IPv6.
fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let bound = std::net::TcpListener::bind(address).or_else(|fault| {
        let is_all = address.is_ipv6() && address.ip().is_unspecified();
        match fault.kind() {
            io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => Err(fault),
            _ if !is_all => Err(fault),
            _ => std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())),
        }
    });
    let listener =
        bound.map_err(|fault| io::Error::new(fault.kind(), format!("{address}: {fault}")))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::KeyPair as _;

    use super::*;

    fn options(http: bool, tls_alpn: bool) -> Acme {
        Acme {
            hosts: vec!["a.example".to_owned()],
            cache: "cache".into(),
            email: None,
            http: http.then(|| "127.0.0.1:80".parse().unwrap()),
            tls_alpn,
            directory: "https://acme.example/directory".to_owned(),
            authorities: None,
        }
    }

    #[test]
    fn each_failure_tries_another_challenge() {
        use ChallengeType::{Http01, TlsAlpn01};
        assert_eq!(kinds(&options(true, true), 0), [Http01, TlsAlpn01]);
        assert_eq!(kinds(&options(true, true), 1), [TlsAlpn01, Http01]);
        assert_eq!(kinds(&options(true, true), 2), [Http01, TlsAlpn01]);
        assert_eq!(kinds(&options(false, true), 3), [TlsAlpn01]);
        assert_eq!(kinds(&options(true, false), 3), [Http01]);
        assert_eq!(kinds(&options(false, false), 3), []);
    }

    #[test]
    fn an_account_key_is_read_in_both_of_its_forms() {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let pkcs8 = pair.to_pkcs8v1().unwrap();
        let key = account_key(&cache::pem("PRIVATE KEY", pkcs8.as_ref())).unwrap();
        let sec1 =
            aws_lc_rs::encoding::AsDer::<aws_lc_rs::encoding::EcPrivateKeyRfc5915Der<'_>>::as_der(
                &pair.private_key(),
            );
        let same = account_key(&cache::pem("EC PRIVATE KEY", sec1.unwrap().as_ref())).unwrap();
        for (_, key) in [key, same] {
            assert_eq!(
                EcdsaKeyPair::from_private_key_der(
                    &ECDSA_P256_SHA256_FIXED_SIGNING,
                    key.secret_der()
                )
                .unwrap()
                .public_key()
                .as_ref(),
                pair.public_key().as_ref()
            );
        }
        assert!(account_key("").is_err());
    }

    #[test]
    fn a_port_that_is_taken_is_a_fault_with_its_address() {
        let first = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let taken = first.local_addr().unwrap();
        let fault = bind(taken).unwrap_err();
        assert!(fault.to_string().contains(&taken.to_string()), "{fault}");
    }
}
