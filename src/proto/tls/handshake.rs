//! The handshake, by rustls: with [`trust`] the only file of the record layer that knows it.
//!
//! ```text
//!  bytes read --> Handshake::read --> false: more has to come
//!                    |    '---------> true: Handshake::finish --> Established --> Pool::insert
//!                    |                input[at..] is the record layer's
//!                    '--> to_send: hellos, certificates, tickets; the alert that answers a fault
//! ```
//!
//! rustls gets one record at a time and no byte behind it. It would open what follows Finished, and with a
//! KeyUpdate there its keys would move past the secrets that this file has. Fragments of one message stay in
//! the buffer until the message is whole.
//!
//! rustls' interfaces hand out keys and IVs, but not the traffic secrets that a KeyUpdate needs. Those come
//! by its key log, in the thread that processes the record. [`Packed::new`] compares both.
//!
//! rustls reads the clock (tickets, certificates) and draws random numbers. Nothing else here does.

pub mod trust;

use std::cell::RefCell;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{NoServerSessionStorage, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{
    ClientConfig, CommonState, ConnectionTrafficSecrets, Error, ExtractedSecrets, HandshakeKind,
    KeyLog, ProtocolVersion, ServerConfig,
};
use zeroize::Zeroize as _;

use super::HEADER_BYTES;
use super::packed::{Packed, Secrets};
use super::state::Role;
use super::suite::Suite;

/// Bytes that are kept of a peer's handshake at most: an unfinished message, with the record that brings the rest of
/// it. A hello has 300 to 2,000 bytes, a client's certificates some thousand.
pub const HANDSHAKE_BYTES_MAX: usize = 32 * 1024;

/// Fits a server's configuration for [`Handshake::server`]: secrets are handed out, and what the record
/// layer doesn't know is off. The server's order of suites counts, so that clients which prefer AES-256 don't
/// cost 64 bytes more each.
pub fn prepare_server(config: &mut ServerConfig) {
    config.enable_secret_extraction = true;
    config.key_log = Arc::new(SecretCapture);
    config.ignore_client_order = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    config.max_early_data_size = 0;
    config.send_half_rtt_data = false;
}

/// Fits a client's configuration for [`Handshake::client`].
pub fn prepare_client(config: &mut ClientConfig) {
    config.enable_secret_extraction = true;
    config.key_log = Arc::new(SecretCapture);
    config.enable_early_data = false;
}

/// A handshake, from its first byte to the keys. A record layer goes on with what it yields.
pub trait Handshaking {
    /// Goes on with `input[*at..]`; `*at` moves behind what is taken. Returns whether the handshake is done:
    /// the rest of the input is sealed data.
    ///
    /// # Errors
    /// The handshake has failed: its alert is to be sent, then the connection ends.
    fn read(&mut self, input: &[u8], at: &mut usize) -> Result<bool, HandshakeFault>;
    /// Bytes for the peer.
    fn to_send(&self) -> &[u8];
    /// The first `bytes` of them are sent.
    fn sent(&mut self, bytes: usize);
    /// Bytes of heap beside the library's own.
    fn heap_bytes(&self) -> usize;
    /// The keys and facts, when [`Handshaking::read`] has returned `true`.
    ///
    /// # Errors
    /// The handshake isn't done, or its secrets don't fit together: the connection has to end.
    fn finish(self: Box<Self>) -> Result<Established, HandshakeFault>;
}

/// Begins a server's handshakes.
pub trait BeginHandshake: Send + Sync {
    /// The handshake of a connection that was accepted. To be made with its first byte.
    ///
    /// # Errors
    /// The settings can't be used.
    fn begin(&self) -> Result<Box<dyn Handshaking>, HandshakeFault>;
    /// The subject of a client's certificate, as logs and the application get it.
    fn subject(&self, certificate: &CertificateDer<'_>) -> Option<String>;
}

/// A certificate, as rustls has it.
pub type Certificate<'c> = CertificateDer<'c>;

/// Reads the subject of a certificate.
pub type ReadSubject = fn(&CertificateDer<'_>) -> Option<String>;

/// The settings of a TLS listener: certificates, suites, tickets. Handshakes that have begun go on with the
/// settings that they began with. Cheap to clone.
#[derive(Clone)]
pub struct ServerSettings(Arc<dyn BeginHandshake>);

/// Settings of rustls.
struct RustlsServer {
    config: Arc<ServerConfig>,
    subject: Option<ReadSubject>,
}

impl ServerSettings {
    /// The settings of rustls, which are prepared by [`prepare_server`].
    pub fn new(mut config: ServerConfig) -> Self {
        prepare_server(&mut config);
        Self(Arc::new(RustlsServer { config: Arc::new(config), subject: None }))
    }

    /// The same, with the subjects of clients' certificates.
    pub fn with_subjects(mut config: ServerConfig, subject: ReadSubject) -> Self {
        prepare_server(&mut config);
        Self(Arc::new(RustlsServer { config: Arc::new(config), subject: Some(subject) }))
    }

    /// Other handshakes than rustls': a simulation's.
    pub fn of(begin: Arc<dyn BeginHandshake>) -> Self {
        Self(begin)
    }

    /// See [`BeginHandshake::begin`].
    ///
    /// # Errors
    /// The settings can't be used.
    pub fn begin(&self) -> Result<Box<dyn Handshaking>, HandshakeFault> {
        self.0.begin()
    }

    /// See [`BeginHandshake::subject`].
    pub fn subject(&self, certificate: &CertificateDer<'_>) -> Option<String> {
        self.0.subject(certificate)
    }
}

impl std::fmt::Debug for ServerSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerSettings")
    }
}

impl BeginHandshake for RustlsServer {
    fn begin(&self) -> Result<Box<dyn Handshaking>, HandshakeFault> {
        Ok(Box::new(Handshake::server(&self.config)?))
    }

    fn subject(&self, certificate: &CertificateDer<'_>) -> Option<String> {
        self.subject.and_then(|subject| subject(certificate))
    }
}

impl Handshaking for Handshake {
    fn read(&mut self, input: &[u8], at: &mut usize) -> Result<bool, HandshakeFault> {
        Handshake::read(self, input, at)
    }

    fn to_send(&self) -> &[u8] {
        Handshake::to_send(self)
    }

    fn sent(&mut self, bytes: usize) {
        Handshake::sent(self, bytes);
    }

    fn heap_bytes(&self) -> usize {
        Handshake::heap_bytes(self)
    }

    fn finish(self: Box<Self>) -> Result<Established, HandshakeFault> {
        Handshake::finish(*self)
    }
}

/// A handshake that is under way: 2 KB from the first byte on, 4.5 KB while it waits, 7 to 11 KB at most.
pub struct Handshake {
    peer: Peer,
    /// What rustls hasn't let go of: fragments of a message, and the begin of a record.
    incoming: Vec<u8>,
    /// Bytes of the record that `incoming` ends with, if it isn't whole.
    record: usize,
    outgoing: Vec<u8>,
    sent: usize,
    secrets: TrafficSecrets,
    /// Whether nothing more is read: done, or failed.
    ended: Option<bool>,
    /// One more record is read behind Finished of TLS 1.3: the server's ticket.
    ticket: Ticket,
}

/// A client's wish for the ticket that a server of TLS 1.3 sends behind Finished.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ticket {
    Unwanted,
    Wanted,
    Awaited,
}

/// rustls' end of the connection. Boxed: a handshake is short, and who waits for one needs no room for it.
enum Peer {
    Server(Box<UnbufferedServerConnection>),
    Client(Box<UnbufferedClientConnection>),
}

/// The result of a handshake.
#[derive(Debug)]
pub struct Established {
    /// The record layer goes on here. Its tail is what the handshake still has to send.
    pub packed: Packed,
    /// The protocol of ALPN.
    pub protocol: Option<Box<[u8]>>,
    /// The peer's own certificate, which rustls has checked as the configuration says.
    pub certificate: Option<CertificateDer<'static>>,
    /// Whether a ticket was used in place of a certificate.
    pub resumed: bool,
}

/// The reason why a handshake has failed. The alert for the peer is in [`Handshake::to_send`].
#[derive(Debug)]
pub enum HandshakeFault {
    /// rustls refuses what the peer has sent, or has no suite, version or certificate for it.
    Refused(Error),
    /// A message of more than [`HANDSHAKE_BYTES_MAX`].
    TooLong,
    /// The peer has closed, or an earlier fault has ended the handshake.
    Closed,
    /// The configuration isn't prepared, or secrets don't fit together.
    Secrets,
}

impl HandshakeFault {
    /// The name of a counter: one for each reason.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Refused(Error::InvalidMessage(_)) => "malformed",
            Self::Refused(Error::PeerIncompatible(_)) => "incompatible",
            Self::Refused(Error::PeerMisbehaved(_)) => "misbehaved",
            Self::Refused(Error::AlertReceived(_)) => "peer_alert",
            Self::Refused(Error::InvalidCertificate(_) | Error::NoCertificatesPresented) => {
                "certificate"
            }
            Self::Refused(Error::NoApplicationProtocol) => "protocol",
            Self::Refused(Error::DecryptError) => "decrypt",
            Self::Refused(_) => "refused",
            Self::TooLong => "too_long",
            Self::Closed => "closed",
            Self::Secrets => "inconsistent",
        }
    }
}

impl std::fmt::Display for HandshakeFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(fault) => write!(f, "TLS handshake: {fault}"),
            Self::TooLong => f.write_str("TLS handshake: message too long"),
            Self::Closed => f.write_str("TLS handshake: closed by the peer"),
            Self::Secrets => f.write_str("TLS handshake: secrets don't fit together"),
        }
    }
}

impl std::error::Error for HandshakeFault {}

/// The next step, as rustls has it.
enum Step {
    Again,
    More,
    Done,
}

impl Handshake {
    /// The handshake of a connection that was accepted. To be made with its first byte.
    ///
    /// # Errors
    /// rustls can't use the configuration.
    pub fn server(config: &Arc<ServerConfig>) -> Result<Self, HandshakeFault> {
        let server = UnbufferedServerConnection::new(Arc::clone(config));
        Ok(Self::new(Peer::Server(Box::new(server.map_err(HandshakeFault::Refused)?))))
    }

    /// The handshake of a connection that was made. Its hello is in [`Handshake::to_send`].
    ///
    /// # Errors
    /// rustls can't use the configuration.
    pub fn client(
        config: &Arc<ClientConfig>,
        server: ServerName<'static>,
    ) -> Result<Self, HandshakeFault> {
        let client = UnbufferedClientConnection::new(Arc::clone(config), server);
        let mut handshake =
            Self::new(Peer::Client(Box::new(client.map_err(HandshakeFault::Refused)?)));
        handshake.process()?;
        Ok(handshake)
    }

    /// The same, which in TLS 1.3 isn't done before the server has sent a ticket: rustls keeps it in the
    /// configuration's store of sessions. For servers that send one right behind the handshake, as a node
    /// does; with others the handshake waits for their next record, and fails if that is no ticket.
    ///
    /// # Errors
    /// rustls can't use the configuration.
    pub fn client_with_ticket(
        config: &Arc<ClientConfig>,
        server: ServerName<'static>,
    ) -> Result<Self, HandshakeFault> {
        Ok(Self { ticket: Ticket::Wanted, ..Self::client(config, server)? })
    }

    fn new(peer: Peer) -> Self {
        Self {
            ticket: Ticket::Unwanted,
            peer,
            incoming: Vec::new(),
            record: 0,
            outgoing: Vec::new(),
            sent: 0,
            secrets: TrafficSecrets::NONE,
            ended: None,
        }
    }

    /// Goes on with `input[*at..]`; `*at` moves behind what is taken. Returns whether the handshake is done:
    /// the rest of the input is sealed data.
    ///
    /// # Errors
    /// The handshake has failed: its alert is to be sent, then the connection ends.
    pub fn read(&mut self, input: &[u8], at: &mut usize) -> Result<bool, HandshakeFault> {
        if let Some(done) = self.ended {
            return if done { Ok(true) } else { Err(HandshakeFault::Closed) };
        }
        let result = self.read_records(input, at);
        self.ended = match result {
            Ok(false) => None,
            Ok(true) => Some(true),
            Err(_) => Some(false),
        };
        result
    }

    fn read_records(&mut self, input: &[u8], at: &mut usize) -> Result<bool, HandshakeFault> {
        while *at < input.len() {
            let missing = self.missing();
            let came = &input[*at..input.len().min(*at + missing)];
            if self.incoming.len() + came.len() > HANDSHAKE_BYTES_MAX {
                return Err(HandshakeFault::TooLong);
            }
            // No more than has come: many handshakes may be unfinished.
            self.incoming.reserve_exact(came.len());
            self.incoming.extend_from_slice(came);
            self.record += came.len();
            *at += came.len();
            // With a whole header rustls finds out whether that is TLS at all.
            if came.len() < missing {
                return Ok(false);
            }
            let header_only = self.record == HEADER_BYTES;
            let is_whole = !header_only || self.missing() == 0;
            if is_whole {
                self.record = 0;
            }
            if self.process()? && !self.awaits_ticket(is_whole) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a ticket has to come, now that the handshake is done. `is_whole`: rustls has got a whole record.
    fn awaits_ticket(&mut self, is_whole: bool) -> bool {
        let is_tls13 = self.peer.state().protocol_version() == Some(ProtocolVersion::TLSv1_3);
        self.ticket = match self.ticket {
            Ticket::Wanted if is_tls13 => Ticket::Awaited,
            Ticket::Awaited if !is_whole => Ticket::Awaited,
            _ => Ticket::Unwanted,
        };
        self.ticket == Ticket::Awaited
    }

    /// Bytes that the header or the record still has to get.
    fn missing(&self) -> usize {
        let begin = &self.incoming[self.incoming.len() - self.record..];
        match begin.first_chunk::<HEADER_BYTES>() {
            None => HEADER_BYTES - self.record,
            Some(header) => {
                let bytes = usize::from(u16::from_be_bytes([header[3], header[4]]));
                HEADER_BYTES + bytes - self.record
            }
        }
    }

    /// Bytes for the peer.
    pub fn to_send(&self) -> &[u8] {
        &self.outgoing[self.sent..]
    }

    /// The first `bytes` of them are sent.
    pub fn sent(&mut self, bytes: usize) {
        self.sent = (self.sent + bytes).min(self.outgoing.len());
        if self.sent == self.outgoing.len() {
            (self.outgoing, self.sent) = (Vec::new(), 0);
        }
    }

    /// Bytes of heap beside rustls' own.
    pub fn heap_bytes(&self) -> usize {
        self.incoming.capacity() + self.outgoing.capacity()
    }

    /// The keys and facts, when [`Handshake::read`] has returned `true`. rustls is dropped with that.
    ///
    /// # Errors
    /// The handshake isn't done, or its secrets don't fit together: the connection has to end.
    pub fn finish(self) -> Result<Established, HandshakeFault> {
        let Self { peer, incoming, outgoing, sent, secrets, ended, .. } = self;
        // Of what is left rustls has made nothing.
        if ended != Some(true) || !incoming.is_empty() {
            return Err(HandshakeFault::Secrets);
        }
        let state = peer.state();
        let version = state.protocol_version();
        let protocol = state.alpn_protocol().map(Box::from);
        let resumed = state.handshake_kind() == Some(HandshakeKind::Resumed);
        let certificate = state.peer_certificates().and_then(|chain| chain.first().cloned());
        // The second half would keep 869 bytes, and can be neither packed nor given to another process.
        let extracted = match peer {
            Peer::Server(server) => server
                .dangerous_into_kernel_connection()
                .map(|(extracted, _)| (Role::Server, extracted)),
            Peer::Client(client) => client
                .dangerous_into_kernel_connection()
                .map(|(extracted, _)| (Role::Client, extracted)),
        };
        let (role, extracted) = extracted.map_err(|_| HandshakeFault::Secrets)?;
        let packed = pack(role, version, &extracted, &secrets)
            .and_then(|packed| packed.with_tail(&outgoing[sent..]).ok());
        let packed = packed.ok_or(HandshakeFault::Secrets)?;
        Ok(Established { packed, protocol, certificate, resumed })
    }

    /// Lets rustls work until it needs more or is done. With a fault its alert goes to `outgoing`.
    fn process(&mut self) -> Result<bool, HandshakeFault> {
        loop {
            let step = match self.step() {
                Ok(step) => step,
                Err(fault) => {
                    // rustls may panic when it processes input behind a fault. It doesn't look at any while
                    // it has something to write.
                    while self.peer.state().wants_write() && self.step().is_ok() {}
                    return Err(fault);
                }
            };
            match step {
                Step::Again => {}
                Step::More => return Ok(false),
                Step::Done => return Ok(!self.peer.state().is_handshaking()),
            }
        }
    }

    fn step(&mut self) -> Result<Step, HandshakeFault> {
        let (discard, step) = match &mut self.peer {
            Peer::Server(server) => {
                let status = server.process_tls_records(&mut self.incoming);
                handle(status, &mut self.outgoing)
            }
            Peer::Client(client) => {
                let status = client.process_tls_records(&mut self.incoming);
                handle(status, &mut self.outgoing)
            }
        };
        self.secrets.take_captured();
        self.incoming.drain(..discard.min(self.incoming.len()));
        if self.incoming.is_empty() {
            self.incoming = Vec::new();
        }
        step
    }
}

impl Peer {
    fn state(&self) -> &CommonState {
        match self {
            Self::Server(server) => server,
            Self::Client(client) => client,
        }
    }
}

impl std::fmt::Debug for Handshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handshake")
            .field("incoming", &self.incoming.len())
            .field("to_send", &self.to_send().len())
            .finish_non_exhaustive()
    }
}

/// Does what rustls' state says. Returns how many bytes of the input it has let go of, too.
fn handle<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    outgoing: &mut Vec<u8>,
) -> (usize, Result<Step, HandshakeFault>) {
    let step = match status.state {
        Err(fault) => Err(HandshakeFault::Refused(fault)),
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            let at = outgoing.len();
            // rustls says how much room it needs.
            if let Err(EncodeError::InsufficientSize(needed)) = data.encode(&mut []) {
                outgoing.resize(at + needed.required_size, 0);
                if data.encode(&mut outgoing[at..]).is_err() {
                    outgoing.truncate(at);
                }
            }
            Ok(Step::Again)
        }
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Ok(Step::Again)
        }
        Ok(ConnectionState::BlockedHandshake) => Ok(Step::More),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Step::Done),
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Err(HandshakeFault::Closed),
        // Data comes behind the handshake, which ends before rustls sees it; early data is off.
        Ok(_) => Err(HandshakeFault::Secrets),
    };
    (status.discard, step)
}

/// The state of the record layer. `None`: a suite that it doesn't have, or secrets that don't fit.
fn pack(
    role: Role,
    version: Option<ProtocolVersion>,
    extracted: &ExtractedSecrets,
    secrets: &TrafficSecrets,
) -> Option<Packed> {
    let tls13 = match version? {
        ProtocolVersion::TLSv1_3 => true,
        ProtocolVersion::TLSv1_2 => false,
        _ => return None,
    };
    let (suite, key, iv) = parts(&extracted.tx.1, tls13)?;
    let (other, peer_key, peer_iv) = parts(&extracted.rx.1, tls13)?;
    let bytes = suite.secret_bytes();
    let (send, receive) = match role {
        Role::Server => (&secrets.server[..bytes], &secrets.client[..bytes]),
        Role::Client => (&secrets.client[..bytes], &secrets.server[..bytes]),
    };
    let send = Secrets { sequence: extracted.tx.0, key, iv, traffic_secret: send };
    let sequence = extracted.rx.0;
    let receive = Secrets { sequence, key: peer_key, iv: peer_iv, traffic_secret: receive };
    (suite == other).then(|| Packed::new(role, suite, send, receive).ok()).flatten()
}

/// Suite, key and IV of one direction.
fn parts(keys: &ConnectionTrafficSecrets, tls13: bool) -> Option<(Suite, &[u8], &[u8])> {
    use ConnectionTrafficSecrets::{Aes128Gcm, Aes256Gcm, Chacha20Poly1305};
    let (suites, key, iv) = match keys {
        Aes128Gcm { key, iv } => ((Suite::Tls13Aes128Gcm, Suite::Tls12Aes128Gcm), key, iv),
        Aes256Gcm { key, iv } => ((Suite::Tls13Aes256Gcm, Suite::Tls12Aes256Gcm), key, iv),
        Chacha20Poly1305 { key, iv } => ((Suite::Tls13ChaCha20, Suite::Tls12ChaCha20), key, iv),
        _ => return None,
    };
    Some((if tls13 { suites.0 } else { suites.1 }, key.as_ref(), iv.as_ref()))
}

/// The two secrets of which TLS 1.3 derives the keys for data: 32 bytes, with SHA-384 48. Zeros until they
/// are known, and in TLS 1.2.
struct TrafficSecrets {
    client: [u8; SECRET_BYTES_MAX],
    server: [u8; SECRET_BYTES_MAX],
}

const SECRET_BYTES_MAX: usize = 48;

thread_local! {
    /// The secrets that rustls has logged since somebody has last taken them. rustls does so in the middle of
    /// processing a record, and the next line of this file takes them.
    static CAPTURED: RefCell<TrafficSecrets> = const { RefCell::new(TrafficSecrets::NONE) };
}

impl TrafficSecrets {
    const NONE: Self = Self { client: [0; SECRET_BYTES_MAX], server: [0; SECRET_BYTES_MAX] };

    /// Takes the secrets that this step has brought, if it has.
    fn take_captured(&mut self) {
        CAPTURED.with_borrow_mut(|captured| {
            for (own, captured) in
                [(&mut self.client, &mut captured.client), (&mut self.server, &mut captured.server)]
            {
                if captured.iter().any(|byte| *byte != 0) {
                    own.copy_from_slice(captured);
                    captured.zeroize();
                }
            }
        });
    }
}

impl Drop for TrafficSecrets {
    fn drop(&mut self) {
        self.client.zeroize();
        self.server.zeroize();
    }
}

/// The key log that hands the secrets over. It writes nothing anywhere.
#[derive(Debug)]
struct SecretCapture;

impl KeyLog for SecretCapture {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        CAPTURED.with_borrow_mut(|captured| {
            let place = match label {
                "CLIENT_TRAFFIC_SECRET_0" => &mut captured.client,
                "SERVER_TRAFFIC_SECRET_0" => &mut captured.server,
                _ => return,
            };
            // Longer ones would not fit the suites; Packed::new refuses what is missing.
            if let Some(place) = place.get_mut(..secret.len()) {
                place.copy_from_slice(secret);
            }
        });
    }

    fn will_log(&self, label: &str) -> bool {
        matches!(label, "CLIENT_TRAFFIC_SECRET_0" | "SERVER_TRAFFIC_SECRET_0")
    }
}

#[cfg(test)]
mod tests;
