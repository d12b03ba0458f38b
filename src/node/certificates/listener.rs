//! The certificates of one listener, and the settings of its handshakes.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use super::by_name::ByName;
use super::challenges::{self, Challenges};
use super::pair::{self, Pair};
use super::self_signed;
use super::tickets::{TicketKeys, Tickets};
use crate::config::{ListenerTls, PairSource, Pem};

/// The protocols that a listener speaks (RFC 7301), the preferred one first. Who offers others only gets
/// no_application_protocol; who offers none gets HTTP/1.1.
const PROTOCOLS: &[&[u8]] = &[b"http/1.1"];

/// The certificates that a listener uses.
#[derive(Debug)]
pub(super) struct Listener {
    /// `None`: it is still to be obtained.
    pub(super) default: Option<Arc<Pair>>,
    pub(super) by_name: Vec<(String, Arc<Pair>)>,
    authorities: Option<Authorities>,
}

/// Authorities of client certificates.
#[derive(Clone, Debug)]
struct Authorities {
    verifier: Arc<dyn ClientCertVerifier>,
}

/// What reading needs, and what it finds wrong.
pub(super) struct Reading<'a> {
    pub(super) provider: &'a Arc<CryptoProvider>,
    /// The names that a self-signed certificate has beside the usual ones.
    pub(super) addresses: &'a [String],
    /// Unix time.
    pub(super) now: i64,
    pub(super) faults: Vec<String>,
}

impl Reading<'_> {
    fn fault(&mut self, option: &str, fault: &str) {
        let fault = format!("{option}: {fault}");
        if !self.faults.contains(&fault) {
            self.faults.push(fault);
        }
    }

    /// Reads one certificate. What can't be used is a fault, and the one before it stays, if there is one.
    fn pair(&mut self, source: &PairSource, before: Option<&Listener>) -> Option<Arc<Pair>> {
        let before = before.and_then(|before| before.pair(&source.option));
        match Pair::read(source, self.provider) {
            Ok(pair)
                if pair.not_after < self.now && before.is_some_and(|b| b.not_after >= self.now) =>
            {
                self.fault(&source.option, "the certificate has expired");
                before.cloned()
            }
            Ok(pair) => Some(Arc::new(pair)),
            // It is obtained, or obtained again: that has faults of its own.
            Err(_) if source.is_obtained => before.cloned(),
            Err(fault) => {
                self.fault(&source.option, &fault);
                before.cloned()
            }
        }
    }

    fn self_signed(&mut self, before: Option<&Listener>) -> Option<Arc<Pair>> {
        if let Some(pair) = before.and_then(|before| before.pair(self_signed::OPTION)) {
            return Some(Arc::clone(pair));
        }
        match self_signed::make(self.addresses, self.now, self.provider) {
            Ok(pair) => Some(Arc::new(pair)),
            Err(fault) => {
                self.fault(self_signed::OPTION, &fault);
                None
            }
        }
    }
}

impl Listener {
    /// Reads the certificates of a listener. `None`: it can't have these options, since one has nothing that
    /// was good before.
    pub(super) fn read(
        options: &ListenerTls,
        before: Option<&Self>,
        reading: &mut Reading<'_>,
    ) -> Option<Self> {
        let default = match &options.default {
            Some(source) => reading.pair(source, before),
            None => reading.self_signed(before),
        };
        let named = options.by_name.iter();
        // One of a further host that can't be read is left out: the others are served.
        let by_name: Vec<_> = named
            .filter_map(|(name, source)| Some((name.clone(), reading.pair(source, before)?)))
            .collect();
        let authorities = match &options.client_ca {
            None => None,
            Some(pem) => match Authorities::read(pem, reading.provider) {
                Ok(authorities) => Some(authorities),
                Err(fault) => {
                    reading.fault(&format!("{}.client_ca_pem", options.section), &fault);
                    // Without any, everybody would get in.
                    Some(before?.authorities.clone()?)
                }
            },
        };
        let may_be_missing = options.default.as_ref().is_some_and(|source| source.is_obtained);
        if default.is_none() && !may_be_missing {
            return None;
        }
        Some(Self { default, by_name, authorities })
    }

    /// All certificates, each once.
    pub(super) fn pairs(&self) -> Vec<&Arc<Pair>> {
        let mut pairs: Vec<&Arc<Pair>> = self.default.iter().collect();
        for (_, pair) in &self.by_name {
            if !pairs.iter().any(|other| other.option == pair.option) {
                pairs.push(pair);
            }
        }
        pairs
    }

    pub(super) fn pair(&self, option: &str) -> Option<&Arc<Pair>> {
        self.pairs().into_iter().find(|pair| pair.option == option)
    }

    /// The settings of handshakes with these certificates.
    ///
    /// # Errors
    /// rustls refuses them.
    pub(super) fn config(
        &self,
        keys: &Arc<TicketKeys>,
        provider: &Arc<CryptoProvider>,
        challenges: Option<&Arc<Challenges>>,
    ) -> Result<ServerConfig, String> {
        let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_safe_default_protocol_versions()
            .map_err(|fault| fault.to_string())?;
        let builder = match &self.authorities {
            None => builder.with_no_client_auth(),
            Some(authorities) => {
                builder.with_client_cert_verifier(Arc::clone(&authorities.verifier))
            }
        };
        let challenges = challenges.filter(|_| self.authorities.is_none());
        let by_name = ByName::new(self.default.as_deref(), &self.by_name, challenges.cloned());
        let mut config = builder.with_cert_resolver(Arc::new(by_name));
        // A resumed session has the client's certificate from its ticket, and nothing checks that again: one that
        // has expired would count for as long as its owner resumes. So these have full handshakes only.
        if self.authorities.is_none() {
            config.ticketer = Arc::new(Tickets::new(Arc::clone(keys)));
        }
        config.alpn_protocols = PROTOCOLS.iter().map(|protocol| protocol.to_vec()).collect();
        config.alpn_protocols.extend(challenges.map(|_| challenges::PROTOCOL.to_vec()));
        config.ignore_client_order = true;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 1;
        config.max_early_data_size = 0;
        Ok(config)
    }
}

impl Authorities {
    fn read(pem: &Pem, provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let text = pair::read_pem(pem)?;
        let mut roots = RootCertStore::empty();
        for certificate in pair::certificates(&text)? {
            roots.add(certificate).map_err(|fault| fault.to_string())?;
        }
        let builder =
            WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(provider));
        let verifier = builder.build().map_err(|fault| fault.to_string())?;
        Ok(Self { verifier })
    }
}
