//! Certificates of the listeners: read and checked at the start, read again when they change.
//!
//! ```text
//!  options --> Listener::read --> settings of handshakes --> ClientHellos from now on
//!    ^             ^     '--> what can't be used: log, /health, a metric; what was good before it stays
//!    |             '--- every 10 s: size and time of each file
//!    '--- SIGHUP
//! ```
//!
//! Connections that exist keep their keys, whatever is read. A file may be written while it is looked at, or
//! a certificate before its key: what is wrong at a look is read once more a second later before it counts.

mod by_name;
mod challenges;
mod listener;
mod pair;
mod self_signed;
mod stamp;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tickets;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::pki_types::CertificateDer;
use tracing::{error, info, warn};
use x509_parser::asn1_rs::{Any, ToDer as _};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

pub(super) use self::challenges::Challenges;
use self::listener::{Listener, Reading};
use self::pair::Pair;
use self::stamp::Stamp;
use self::tickets::TicketKeys;
use crate::config::{Acme, ListenerTls, PairSource, Pem, Tls};
use crate::proto::tls::handshake::ServerSettings;

/// Seconds between two looks at the files.
const LOOK_EVERY: u64 = 10;

/// Seconds before its end from which on a certificate is warned of.
const EXPIRY_WARNING: i64 = 14 * DAY;

const DAY: i64 = 24 * 60 * 60;

/// Suites, key exchanges and signatures of all listeners: TLS 1.3, and of 1.2 what has forward secrecy and
/// authenticated encryption. The first that a client has is taken. AES-128 keeps 64 bytes less for each
/// connection than AES-256, whose SHA-384 also makes handshakes dearer.
pub(super) fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
        ..aws_lc_rs::default_provider()
    }
}

/// The subject of a client's certificate, as logs and the application get it: its attributes from the last
/// to the first, with commas between them (RFC 4514, 2.1).
pub(super) fn subject(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let attributes = parsed.subject().iter().map(|set| {
        let each = set.iter().map(|attribute| {
            let name = x509_parser::objects::oid2abbrev(
                attribute.attr_type(),
                x509_parser::objects::oid_registry(),
            );
            let name = name.map_or_else(|_| attribute.attr_type().to_id_string(), str::to_owned);
            let value = attribute.as_str().map(escaped);
            // A value in another encoding than those of text is its bytes, so that it isn't left out.
            let value = value.unwrap_or_else(|_| hex(attribute.attr_value()));
            format!("{name}={value}")
        });
        each.collect::<Vec<_>>().join("+")
    });
    let mut attributes: Vec<String> = attributes.collect();
    attributes.reverse();
    let mut subject = attributes.join(",");
    if subject.len() > SUBJECT_BYTES_MAX {
        subject.truncate(subject.floor_char_boundary(SUBJECT_BYTES_MAX - CUT.len()));
        subject += CUT;
    }
    Some(subject).filter(|subject| !subject.is_empty())
}

/// The end of a subject that is too long.
const CUT: &str = "...";

/// Bytes of a subject at most, for logs and headers.
const SUBJECT_BYTES_MAX: usize = 512;

/// A value as RFC 4514 2.4 writes it; what no header may have is left out.
fn escaped(value: &str) -> String {
    let value: String = value.chars().filter(|c| !c.is_control()).collect();
    let mut out = String::with_capacity(value.len());
    for (at, c) in value.char_indices() {
        let at_end = at == 0 && matches!(c, ' ' | '#') || at + 1 == value.len() && c == ' ';
        if at_end || matches!(c, '"' | '+' | ',' | ';' | '<' | '>' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// A value that is no text: `#`, then its BER encoding (RFC 4514 2.4).
fn hex(value: &Any<'_>) -> String {
    let bytes = value.to_der_vec().unwrap_or_default();
    let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
    std::iter::once("#".to_owned()).chain(digits).collect()
}

/// The certificates of a node.
pub(super) struct Certificates {
    provider: Arc<CryptoProvider>,
    tickets: Arc<TicketKeys>,
    /// Of the ACME server, if certificates are obtained.
    challenges: Option<Arc<Challenges>>,
    /// Of the public listeners, if they speak TLS.
    public: Option<Arc<ArcSwap<ServerSettings>>>,
    /// Of the internal port, if it speaks TLS.
    internal: Option<Arc<ArcSwap<ServerConfig>>>,
    state: Mutex<State>,
    /// Attempts to obtain one that succeeded, and that failed.
    obtained: AtomicU64,
    not_obtained: AtomicU64,
}

struct State {
    options: Tls,
    /// Names of a self-signed certificate.
    addresses: Vec<String>,
    public: Option<Listener>,
    private: Option<Listener>,
    /// The files as they were when they were read.
    stamps: Vec<(PathBuf, Stamp)>,
    faults: Vec<String>,
    /// Why a certificate could not be obtained, by option.
    not_obtained: BTreeMap<String, String>,
    /// A look found faults, which the next one has to confirm.
    unconfirmed: bool,
    looks: u64,
    /// When the node's own ticket key was made, Unix time.
    rotated: i64,
    /// When a certificate's end was last warned of, by option.
    warned: HashMap<String, i64>,
}

/// The end of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expiry {
    /// The first name in the certificate.
    pub(super) name: String,
    /// Its option.
    pub(super) option: String,
    /// Its last second, Unix time.
    pub(super) not_after: i64,
}

impl Certificates {
    /// Reads all of them. `addresses`: what a self-signed certificate names; `now`: Unix time.
    ///
    /// # Errors
    /// Each that can't be used, a line each.
    pub(super) fn open(options: Tls, addresses: Vec<String>, now: i64) -> Result<Self, String> {
        let provider = Arc::new(provider());
        let tickets = TicketKeys::random(options.tickets.period_ms).map_err(|f| f.to_string())?;
        let mut state = State {
            stamps: stamps(&options),
            options,
            addresses,
            public: None,
            private: None,
            faults: Vec::new(),
            not_obtained: BTreeMap::new(),
            unconfirmed: false,
            looks: 0,
            rotated: now,
            warned: HashMap::new(),
        };
        let tickets = Arc::new(tickets);
        let challenges = state.options.acme.as_ref().map(|_| Arc::default());
        let mut faults = state.read(&provider, &tickets, now);
        let configs = state.configs(&provider, &tickets, challenges.as_ref(), &mut faults);
        if !faults.is_empty() {
            return Err(faults.join("\n"));
        }
        state.warn_of_keys();
        let (public, internal) = configs;
        let public = public.map(|config| Arc::new(ArcSwap::from_pointee(settings(config))));
        let internal = internal.map(|config| Arc::new(ArcSwap::from_pointee(config)));
        let state = Mutex::new(state);
        let (obtained, not_obtained) = Default::default();
        Ok(Self { provider, tickets, challenges, public, internal, state, obtained, not_obtained })
    }

    /// The node's own ticket keys, and since when the first of them seals, Unix time. None where they come
    /// from a file.
    pub(super) fn ticket_keys(&self) -> (Vec<[u8; 32]>, i64) {
        let state = self.state();
        match TicketPeriod::of(&state.options).own {
            true => (self.tickets.secrets(), state.rotated),
            false => (Vec::new(), state.rotated),
        }
    }

    /// Goes on with the ticket keys of the process before, unless they come from a file.
    pub(super) fn inherit_ticket_keys(&self, keys: &[[u8; 32]], since: i64) {
        let mut state = self.state();
        if TicketPeriod::of(&state.options).own && !keys.is_empty() {
            self.tickets.inherit(keys);
            state.rotated = since;
        }
    }

    /// The settings of the public listeners' handshakes.
    pub(super) fn public(&self) -> Option<Arc<ArcSwap<ServerSettings>>> {
        self.public.clone()
    }

    /// The settings of the internal port's handshakes.
    pub(super) fn internal(&self) -> Option<Arc<ArcSwap<ServerConfig>>> {
        self.internal.clone()
    }

    /// To be called once a second: reads what has changed, changes ticket keys, warns of ends.
    pub(super) fn look(&self, now: i64) {
        let mut state = self.state();
        state.looks += 1;
        let is_confirming = state.unconfirmed;
        if !is_confirming && !state.looks.is_multiple_of(LOOK_EVERY) {
            return;
        }
        self.rotate(&mut state, now);
        state.warn_of_ends(now);
        let stamps = stamps(&state.options);
        if !is_confirming && stamps == state.stamps {
            return;
        }
        state.stamps = stamps;
        self.read_again(&mut state, now, is_confirming);
    }

    /// Reads everything again, with these options.
    pub(super) fn reload(&self, options: Tls, now: i64) {
        let mut state = self.state();
        state.options = options.in_place_of(&state.options);
        self.tickets.set_period(state.options.tickets.period_ms);
        state.stamps = stamps(&state.options);
        self.read_again(&mut state, now, true);
    }

    /// Handshakes that begin after the return, and after a line in the log, have what was read.
    fn read_again(&self, state: &mut State, now: i64, faults_count: bool) {
        let mut faults = state.read(&self.provider, &self.tickets, now);
        state.unconfirmed = !faults.is_empty() && !faults_count;
        let challenges = self.challenges.as_ref();
        let (public, internal) =
            state.configs(&self.provider, &self.tickets, challenges, &mut faults);
        let is_new = public.is_some() || internal.is_some();
        if let (Some(running), Some(config)) = (&self.internal, internal) {
            running.store(Arc::new(config));
        }
        if let (Some(running), Some(config)) = (&self.public, public) {
            running.store(Arc::new(settings(config)));
        }
        if !state.unconfirmed {
            for fault in &faults {
                error!(fault, "TLS: what was read before stays in use");
            }
            if faults.is_empty() && is_new {
                info!("TLS: certificates and keys were read again");
            }
            state.faults = faults;
            state.warn_of_keys();
        }
    }

    fn rotate(&self, state: &mut State, now: i64) {
        let TicketPeriod { own, seconds } = TicketPeriod::of(&state.options);
        // A clock that was set back begins a period anew.
        let is_due = now - state.rotated >= seconds || now < state.rotated;
        if own && is_due {
            state.rotated = now;
            self.tickets.rotate();
        }
    }

    /// What can't be used: the ones before are in use. Then what could not be obtained.
    pub(super) fn faults(&self) -> Vec<String> {
        let state = self.state();
        let not_obtained = state.not_obtained.iter();
        let not_obtained = not_obtained.map(|(option, fault)| format!("{option}: {fault}"));
        state.faults.iter().cloned().chain(not_obtained).collect()
    }

    /// Attempts to obtain certificates, by their outcome.
    pub(super) fn attempts(&self) -> [(&'static str, u64); 2] {
        [("obtained", &self.obtained), ("failed", &self.not_obtained)]
            .map(|(outcome, count)| (outcome, count.load(Ordering::Relaxed)))
    }

    /// How certificates are obtained, if they are, by the options of this moment.
    pub(super) fn acme(&self) -> Option<(Acme, Arc<Challenges>)> {
        Some((self.state().options.acme.clone()?, self.challenges.clone()?))
    }

    /// The first and the last second of a certificate that is in use, Unix time.
    pub(super) fn validity(&self, option: &str) -> Option<(i64, i64)> {
        let state = self.state();
        let pair = state.public.as_ref()?.pair(option)?;
        Some((pair.not_before, pair.not_after))
    }

    /// Reads the files that have changed, without waiting for the next look.
    pub(super) fn read_now(&self, now: i64) {
        let mut state = self.state();
        let stamps = stamps(&state.options);
        if stamps != state.stamps {
            state.stamps = stamps;
            self.read_again(&mut state, now, false);
        }
    }

    /// The result of an attempt to obtain a certificate: it lies in its file, or there is a fault.
    pub(super) fn obtained(&self, option: &str, result: Result<(), String>, now: i64) {
        let mut state = self.state();
        match result {
            Ok(()) => {
                self.obtained.fetch_add(1, Ordering::Relaxed);
                state.not_obtained.remove(option);
                state.stamps = stamps(&state.options);
                self.read_again(&mut state, now, true);
            }
            Err(fault) => {
                self.not_obtained.fetch_add(1, Ordering::Relaxed);
                state.not_obtained.insert(option.to_owned(), fault);
            }
        }
    }

    /// Reads a certificate and its key as text, whoever they are from.
    ///
    /// # Errors
    /// They can't be used.
    pub(super) fn check_pair(&self, host: &str, pem: &str) -> Result<(), String> {
        let text = || Pem::Text(pem.to_owned());
        let option = Acme::option(host);
        let source = PairSource { option, certificate: text(), key: text(), is_obtained: true };
        let pair = Pair::read(&source, &self.provider)?;
        match pair.names.iter().any(|name| name == host) {
            true => Ok(()),
            false => Err("the certificate is for other hosts".to_owned()),
        }
    }

    /// The ends of all certificates in use.
    pub(super) fn expiries(&self) -> Vec<Expiry> {
        let state = self.state();
        let mut expiries: Vec<Expiry> = Vec::new();
        for Pair { name, option, not_after, .. } in state.pairs().into_iter().map(|pair| &**pair) {
            if !expiries.iter().any(|other| other.option == *option) {
                let (name, option) = (name.clone(), option.clone());
                expiries.push(Expiry { name, option, not_after: *not_after });
            }
        }
        expiries
    }

    /// The fingerprint of the certificate that the node has made for itself, if it has.
    pub(super) fn self_signed(&self) -> Option<String> {
        let state = self.state();
        let pair = state.pairs().into_iter().find(|pair| pair.option == self_signed::OPTION);
        pair.map(|pair| pair.fingerprint())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long the node's own ticket key seals.
struct TicketPeriod {
    /// It has some of its own.
    own: bool,
    seconds: i64,
}

impl TicketPeriod {
    fn of(options: &Tls) -> Self {
        let seconds = i64::try_from(options.tickets.period_ms / 1000).unwrap_or(i64::MAX);
        Self { own: options.tickets.keys.is_none(), seconds }
    }
}

fn settings(config: ServerConfig) -> ServerSettings {
    ServerSettings::with_subjects(config, subject)
}

impl State {
    /// Reads all files. Returns what is wrong.
    fn read(
        &mut self,
        provider: &Arc<CryptoProvider>,
        tickets: &TicketKeys,
        now: i64,
    ) -> Vec<String> {
        let addresses = &self.addresses;
        let mut reading = Reading { provider, addresses, now, faults: Vec::new() };
        let listeners =
            [(&self.options.public, &mut self.public), (&self.options.internal, &mut self.private)];
        for (options, listener) in listeners {
            let Some(options) = options else { continue };
            if let Some(read) = Listener::read(options, listener.as_ref(), &mut reading) {
                *listener = Some(read);
            }
        }
        let mut faults = reading.faults;
        if let Some(path) = self.options.tickets.keys.as_ref().filter(|_| self.is_on())
            && let Err(fault) = tickets.read(path)
        {
            faults.push(format!("roost.tls_ticket_keys: {fault}"));
        }
        faults
    }

    /// The settings of the public listeners and of the internal one.
    fn configs(
        &self,
        provider: &Arc<CryptoProvider>,
        tickets: &Arc<TicketKeys>,
        challenges: Option<&Arc<Challenges>>,
        faults: &mut Vec<String>,
    ) -> (Option<ServerConfig>, Option<ServerConfig>) {
        let mut config = |listener: &Option<Listener>, challenges| {
            let config = listener.as_ref()?.config(tickets, provider, challenges);
            config.map_err(|fault| faults.push(fault)).ok()
        };
        (config(&self.public, challenges), config(&self.private, None))
    }

    /// Files of private keys and of ticket keys that other users may read, with their modes.
    fn exposed(&self) -> Vec<(&Path, u32)> {
        let listeners = [&self.options.public, &self.options.internal];
        let keys = listeners.into_iter().flatten().flat_map(pairs);
        let mut files: Vec<&Path> = keys.filter_map(|pair| pair.key.path()).collect();
        files.extend(self.options.tickets.keys.as_deref());
        files.sort_unstable();
        files.dedup();
        let exposed =
            files.into_iter().filter_map(|path| Some((path, stamp::open_to_others(path)?)));
        exposed.collect()
    }

    fn is_on(&self) -> bool {
        self.options.public.is_some() || self.options.internal.is_some()
    }

    fn pairs(&self) -> Vec<&Arc<Pair>> {
        let listeners = [&self.public, &self.private];
        listeners.into_iter().flatten().flat_map(Listener::pairs).collect()
    }

    /// Says once a day which certificates end soon.
    fn warn_of_ends(&mut self, now: i64) {
        let ends: Vec<_> = self
            .pairs()
            .into_iter()
            .filter(|pair| pair.not_after - now < EXPIRY_WARNING)
            .map(|pair| (pair.option.clone(), pair.name.clone(), pair.not_after))
            .collect();
        for (option, name, not_after) in ends {
            let last = self.warned.get(&option).copied().unwrap_or(i64::MIN);
            if now.saturating_sub(last) < DAY {
                continue;
            }
            self.warned.insert(option.clone(), now);
            let days = (not_after - now).div_euclid(DAY);
            match not_after < now {
                true => error!(option, name, "TLS: a certificate has expired"),
                false => warn!(option, name, days, "TLS: a certificate expires soon"),
            }
        }
    }

    /// Warns of keys that cost much time, and of those that others may read.
    fn warn_of_keys(&self) {
        for (path, mode) in self.exposed() {
            let (path, mode) = (path.display().to_string(), format!("{mode:04o}"));
            warn!(path, mode, "TLS: other users may read this file of private or ticket keys");
        }
        for pair in self.pairs() {
            if let Some(bits) = pair.slow_rsa_bits {
                let option = &pair.option;
                warn!(
                    option,
                    bits,
                    "TLS: each handshake signs with this RSA key for milliseconds, in which its shard \
                     does nothing else; an ECDSA key (P-256) signs a hundred times faster"
                );
            }
        }
    }
}

/// The certificates that a listener's options name.
fn pairs(listener: &ListenerTls) -> impl Iterator<Item = &PairSource> {
    listener.default.iter().chain(listener.by_name.iter().map(|(_, pair)| pair))
}

/// The files that the options name, as they are now.
fn stamps(options: &Tls) -> Vec<(PathBuf, Stamp)> {
    let mut paths = Vec::new();
    for listener in [&options.public, &options.internal].into_iter().flatten() {
        for pair in pairs(listener) {
            paths.extend([&pair.certificate, &pair.key].into_iter().filter_map(Pem::path));
        }
        paths.extend(listener.client_ca.as_ref().and_then(Pem::path));
    }
    paths.extend(options.tickets.keys.as_deref());
    paths.sort_unstable();
    paths.dedup();
    paths.into_iter().map(|path| (path.to_path_buf(), Stamp::of(path))).collect()
}

/// The time by the wall clock, Unix seconds.
#[expect(clippy::disallowed_methods, reason = "the times of certificates and tickets")]
pub(super) fn unix_now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}

/// Reads the certificates that options name, without a node.
///
/// # Errors
/// Each that can't be used, a line each.
pub fn check(options: &Tls) -> Result<(), String> {
    Certificates::open(options.clone(), Vec::new(), unix_now()).map(|_| ())
}
