//! TLS of the load client: rustls shakes hands, the record layer of the node goes on.
//!
//! ```text
//!  Layer (one for each thread)
//!    handshakes: those under way              Key (4 bytes) for each connection, by its index
//!    pool: 73 to 201 bytes for each one behind it
//! ```

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls12Resumption,
    Tls13ClientSessionValue,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, NamedGroup, RootCertStore, SupportedCipherSuite, SupportedProtocolVersion,
};

use crate::proto::tls::handshake::trust::ServerVerifier;
use crate::proto::tls::handshake::{Handshake, prepare_client};
use crate::proto::tls::{Batch, Key, Opener, Pool, Received, Records};

/// How servers are checked, and whether sessions are resumed.
#[derive(Clone, Debug)]
pub(crate) struct TlsFlags<'a> {
    /// Any certificate is accepted.
    pub(crate) insecure: bool,
    /// A file with certificates that sign the server's.
    pub(crate) cacert: Option<&'a Path>,
    /// The text of that file, where it is on another machine.
    pub(crate) pem: Option<&'a str>,
    /// Sessions are resumed.
    pub(crate) resume: bool,
    /// The only suite that is offered.
    pub(crate) suite: Option<&'a str>,
}

/// TLS towards one server.
#[derive(Clone)]
pub(crate) struct Tls {
    config: Arc<ClientConfig>,
    server: ServerName<'static>,
    resume: bool,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tls({:?})", self.server)
    }
}

impl Tls {
    /// For a host, without its port.
    ///
    /// # Errors
    /// Text for the user: the host has no name that certificates have, or certificates can't be read.
    pub(crate) fn new(host: &str, flags: &TlsFlags<'_>) -> Result<Self, String> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let server = ServerName::try_from(host.to_owned())
            .map_err(|_| format!("{host}: not a name of a host"))?;
        let mut config = client_config(flags)?;
        prepare_client(&mut config);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = match flags.resume {
            true => Resumption::store(Arc::new(Sessions::default()))
                .tls12_resumption(Tls12Resumption::SessionIdOrTickets),
            false => Resumption::disabled(),
        };
        Ok(Self { config: Arc::new(config), server, resume: flags.resume })
    }

    /// The same checks for a connection of rustls' own.
    pub(crate) fn plain_config(&self) -> ClientConfig {
        let mut config = ClientConfig::clone(&self.config);
        // Its connections have no record layer of ours behind them, and keep sessions by themselves.
        config.enable_secret_extraction = false;
        config.key_log = Arc::new(rustls::NoKeyLog {});
        config.resumption = Resumption::default();
        // The connector sets its own.
        config.alpn_protocols.clear();
        config
    }

    /// The name that the server's certificate has to have.
    pub(crate) fn server(&self) -> ServerName<'static> {
        self.server.clone()
    }

    fn begin(&self) -> Result<Handshake, String> {
        let server = self.server.clone();
        let begun = match self.resume {
            true => Handshake::client_with_ticket(&self.config, server),
            false => Handshake::client(&self.config, server),
        };
        begun.map_err(|fault| fault.to_string())
    }
}

/// The configuration of a client that connects to no server with TLS.
///
/// # Errors
/// Text for the user.
pub(crate) fn without_servers() -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|fault| fault.to_string())?;
    Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

/// # Errors
/// Text for the user: certificates can't be read.
fn client_config(flags: &TlsFlags<'_>) -> Result<ClientConfig, String> {
    let mut provider = aws_lc_rs::default_provider();
    if let Some(name) = flags.suite {
        provider.cipher_suites.retain(|suite| format!("{:?}", suite.suite()) == name);
        if provider.cipher_suites.is_empty() {
            return Err(format!("--suite {name}: there is no such suite"));
        }
    }
    let is_12 = |suite: &SupportedCipherSuite| suite.version().version == TLS12.version;
    let versions: &[&SupportedProtocolVersion] = match provider.cipher_suites.first() {
        Some(suite) if flags.suite.is_some() => {
            if is_12(suite) {
                &[&TLS12]
            } else {
                &[&TLS13]
            }
        }
        _ => &[&TLS13, &TLS12],
    };
    let provider = Arc::new(provider);
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(|fault| fault.to_string())?;
    let verifier = match (flags.insecure, flags.cacert) {
        (true, _) => ServerVerifier::accepting_all(&provider),
        (false, Some(path)) => {
            let fault = |fault: &dyn fmt::Display| format!("--cacert {}: {fault}", path.display());
            let certificates: Result<Vec<_>, _> = match flags.pem {
                Some(pem) => CertificateDer::pem_slice_iter(pem.as_bytes()).collect(),
                None => {
                    CertificateDer::pem_file_iter(path).map_err(|error| fault(&error))?.collect()
                }
            };
            let certificates = certificates.map_err(|error| fault(&error))?;
            ServerVerifier::trusting(&certificates, &provider).map_err(|error| fault(&error))?
        }
        (false, None) => {
            let found = rustls_native_certs::load_native_certs();
            ServerVerifier::trusting_fit(&found.certs, &provider)
                .map_err(|fault| format!("the machine's certificates: {fault}"))?
        }
    };
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Tickets that are kept at most: each resumption uses one and brings one.
const TICKETS_MAX: usize = 4096;

/// Sessions with the one server.
#[derive(Default)]
struct Sessions(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    group: Option<NamedGroup>,
    tls12: Option<Tls12ClientSessionValue>,
    tls13: VecDeque<Tls13ClientSessionValue>,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sessions")
    }
}

impl Sessions {
    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.kept().group = Some(group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.kept().group
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.kept().tls12 = Some(value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.kept().tls12.clone()
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.kept().tls12 = None;
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        let mut kept = self.kept();
        if kept.tls13.len() == TICKETS_MAX {
            kept.tls13.pop_front();
        }
        kept.tls13.push_back(value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.kept().tls13.pop_back()
    }
}

/// What bytes of a server have led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Shaken {
    /// More has to come.
    NotYet,
    /// The handshake is done: the connection may be used.
    Done,
    /// It was done before.
    Before,
}

/// The TLS connections of one thread, by index. Price: 4 bytes for each index, and what [`Pool`] has.
pub(crate) struct Layer {
    tls: Tls,
    pool: Pool,
    keys: Vec<Option<Key>>,
    handshakes: HashMap<u32, Handshake>,
    batch: Batch,
    /// Connections whose handshakes are done, and those that were resumed.
    pub(crate) counts: Counts,
}

/// Handshakes that are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) full: u64,
    pub(crate) resumed: u64,
}

impl Layer {
    pub(crate) fn new(tls: Tls) -> Self {
        Self {
            tls,
            pool: Pool::default(),
            keys: Vec::new(),
            handshakes: HashMap::new(),
            batch: Batch::new(),
            counts: Counts::default(),
        }
    }

    /// Begins the handshake of a connection that is there. Its hello goes out with [`Layer::seal`].
    ///
    /// # Errors
    /// Text for the user.
    pub(crate) fn begin(&mut self, index: u32) -> Result<(), String> {
        self.end(index);
        self.handshakes.insert(index, self.tls.begin()?);
        Ok(())
    }

    /// Forgets a connection.
    pub(crate) fn end(&mut self, index: u32) {
        self.handshakes.remove(&index);
        if let Some(key) = self.keys.get_mut(index as usize).and_then(Option::take) {
            self.pool.remove(key);
        }
    }

    /// Goes on with the handshake of a connection, if it isn't done. `*at` moves behind what was taken.
    ///
    /// # Errors
    /// Text for the user: it has failed. The alert goes out with [`Layer::seal`].
    pub(crate) fn shake(
        &mut self,
        index: u32,
        input: &[u8],
        at: &mut usize,
    ) -> Result<Shaken, String> {
        let Some(handshake) = self.handshakes.get_mut(&index) else { return Ok(Shaken::Before) };
        if !handshake.read(input, at).map_err(|fault| fault.to_string())? {
            return Ok(Shaken::NotYet);
        }
        let Some(handshake) = self.handshakes.remove(&index) else { return Ok(Shaken::Before) };
        let established = handshake.finish().map_err(|fault| fault.to_string())?;
        match established.resumed {
            true => self.counts.resumed += 1,
            false => self.counts.full += 1,
        }
        let key = self.pool.insert(established.packed).map_err(|_| "too many connections")?;
        if self.keys.len() <= index as usize {
            self.keys.resize_with(index as usize + 1, || None);
        }
        self.keys[index as usize] = Some(key);
        Ok(Shaken::Done)
    }

    /// Whether a connection's handshake is done.
    pub(crate) fn is_done(&self, index: u32) -> bool {
        self.keys.get(index as usize).is_some_and(Option::is_some)
    }

    fn records(&mut self, index: u32) -> Option<Records<'_>> {
        self.pool.records(self.keys.get(index as usize)?.as_ref()?)
    }

    /// The next data that a connection has received, in `input[*at..]`.
    ///
    /// # Errors
    /// Text for the user: the connection has ended.
    pub(crate) fn open<'a>(
        &mut self,
        index: u32,
        opener: &'a mut Opener,
        input: &'a mut [u8],
        at: &mut usize,
    ) -> Result<Option<&'a mut [u8]>, String> {
        let Some(mut records) = self.records(index) else { return Ok(None) };
        match opener.next(&mut records, input, at) {
            Ok(Some(Received::Data(data))) => Ok(Some(data)),
            Ok(None) => Ok(None),
            Ok(Some(Received::Closed)) => Err("the server ended the connection".to_owned()),
            Err(fault) => Err(format!("TLS: {fault}")),
        }
    }

    /// Replaces what is to be written by what goes over the socket: what the layer has to say itself, and
    /// then the sealed bytes. They have to be written in this order, and each once. Nothing is sealed before
    /// the handshake is done, so nothing may be written by then.
    pub(crate) fn seal(&mut self, index: u32, out: &mut Vec<u8>) {
        if let Some(handshake) = self.handshakes.get_mut(&index) {
            debug_assert!(out.is_empty(), "written before the handshake is done");
            out.clear();
            out.extend_from_slice(handshake.to_send());
            handshake.sent(out.len());
            return;
        }
        let key = self.keys.get(index as usize).and_then(Option::as_ref);
        let Some(mut records) = key.and_then(|key| self.pool.records(key)) else { return };
        if out.is_empty() && records.tail().is_empty() {
            return;
        }
        let mut sealed = Vec::with_capacity(out.len() + 64);
        let mut plain = &out[..];
        loop {
            while !records.tail().is_empty() {
                sealed.extend_from_slice(records.tail());
                records.tail_sent(records.tail().len());
            }
            if plain.is_empty() {
                break;
            }
            // A connection that has ended seals nothing more, and is about to be closed.
            let Ok(part) = self.batch.seal(&mut records, [plain]) else { break };
            let bytes = self.batch.bytes(&part);
            records.sent(bytes, bytes.len());
            sealed.extend_from_slice(bytes);
            plain = &plain[part.plain..];
            self.batch.clear();
        }
        *out = sealed;
    }

    /// What ends a connection behind everything else.
    pub(crate) fn close_notify(&mut self, index: u32, out: &mut Vec<u8>) {
        if let Some(mut records) = self.records(index) {
            records.close_notify();
            out.extend_from_slice(records.tail());
            records.tail_sent(records.tail().len());
        }
    }

    /// Heap of connections that are idle, bytes.
    #[cfg(test)]
    fn idle_bytes(&self) -> usize {
        self.pool.slot_bytes()
            + self.pool.unfinished_bytes()
            + self.keys.capacity() * size_of::<Option<Key>>()
    }
}

#[cfg(test)]
mod tests;
