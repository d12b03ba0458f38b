//! A connection to a server, made by the crate `async-nats`: one client is one connection.
//!
//! The crate keeps commands for a server that is away and subscribes again by itself. Neither fits: a publication that
//! was answered with an error must not appear a minute later, and a channel is to be read again when its subscription
//! was away. So a client never connects twice: behind the first connection its servers are replaced by [`NOWHERE`],
//! which ends it, and all that it had queued, as soon as the connection ends. The next client is this node's affair.

use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event, PublishErrorKind, ServerInfo};
use futures_util::FutureExt as _;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::unconstrained;

use super::Settings;
use crate::cluster::nats::{Credentials, Place};
use crate::cluster::servers::Security;
use crate::node::tls::{Trust, client_config};

/// Nobody can listen there.
const NOWHERE: &str = "nats://127.0.0.1:0";

/// Commands that a client holds at most. They are bounded in bytes before they come there.
const COMMANDS_MAX: usize = 1 << 20;

/// Messages of one subscription that wait at most; memory is taken as they come. Beyond that the crate drops
/// messages ([`Event::SlowConsumer`]). It reads 8 MiB at most before the thread takes what came, so there are fewer.
const MESSAGES_MAX: usize = 1 << 20;

/// News of the crate that it keeps at most; of others there is no sign.
pub(super) const EVENTS_MAX: usize = 128;

/// Why there is no connection, or none any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreachable {
    #[error("{0}")]
    Connect(#[from] async_nats::ConnectError),
    #[error("{0}")]
    Subscribe(#[from] async_nats::SubscribeError),
    #[error("the server does not take what is sent")]
    Timeout,
    #[error("the connection has ended")]
    Closed,
    #[error("the server answers no probe")]
    Silent,
    #[error("messages came faster than they were taken, and some were dropped")]
    Slow,
    /// The server has said so.
    #[error("{0}")]
    Refused(String),
    #[error("TLS: {0}")]
    Tls(String),
}

/// A connection that has been greeted.
pub(super) struct Link {
    pub(super) client: Client,
    pub(super) info: ServerInfo,
    /// News of the client, until it has ended.
    pub(super) events: Receiver<Event>,
}

impl Link {
    /// The server can do what the options want.
    pub(super) fn check(&self, settings: &Settings) -> Result<(), Unreachable> {
        if settings.streams.is_none() {
            return Ok(());
        }
        if !self.client.is_server_compatible(2, 11, 0) {
            let version = &self.info.version;
            let fault = format!(
                "history on JetStream needs nats-server 2.11 or newer, and this is {version}"
            );
            return Err(Unreachable::Refused(fault));
        }
        if !self.info.jetstream {
            return Err(Unreachable::Refused("JetStream is off at this server".to_owned()));
        }
        Ok(())
    }
}

/// How connections are made.
pub(super) struct Dialer {
    options: ConnectOptions,
}

impl Dialer {
    /// # Errors
    /// The certificates can't be used.
    pub(super) fn new(
        security: Option<&Security>,
        timeout: Duration,
        probe_interval: Duration,
        name: &str,
    ) -> Result<Self, Unreachable> {
        let mut options = ConnectOptions::new()
            .name(name)
            .connection_timeout(timeout)
            .ping_interval(probe_interval)
            .client_capacity(COMMANDS_MAX)
            .subscription_capacity(MESSAGES_MAX)
            .ignore_discovered_servers()
            .max_reconnects(1);
        if let Some(security) = security {
            let config = tls_config(security).map_err(Unreachable::Tls)?;
            options = options.tls_client_config(config).require_tls(true);
        }
        Ok(Self { options })
    }

    /// Connects to a server.
    pub(super) async fn dial(
        &self,
        place: &Place,
        credentials: &Credentials,
    ) -> Result<Link, Unreachable> {
        let Credentials { user, password, token } = credentials;
        let mut options = self.options.clone();
        if !user.is_empty() {
            options = options.user_and_password(user.clone(), password.clone());
        }
        if !token.is_empty() {
            options = options.token(token.clone());
        }
        let (sender, events) = channel(EVENTS_MAX);
        let options = options.event_callback(move |event| {
            // The thread takes them in each turn. Its end is seen without them.
            let _ = sender.try_send(event);
            std::future::ready(())
        });
        let client = options.connect(place.to_string()).await?;
        client.set_server_pool(NOWHERE).await.map_err(|_| Unreachable::Closed)?;
        let info = client.server_info();
        Ok(Link { client, info, events })
    }
}

/// Does at once what waits only for room in the client; `None`: it has none.
pub(super) fn at_once<F: Future>(command: F) -> Option<F::Output> {
    // Not a turn of its own for each few commands.
    unconstrained(command).now_or_never()
}

/// A message that was not sent can't be sent at all: it is too long, or no subject.
pub(super) fn is_impossible(kind: PublishErrorKind) -> bool {
    kind != PublishErrorKind::Send
}

fn tls_config(security: &Security) -> Result<ClientConfig, String> {
    let trust = match &security.authorities {
        _ if security.insecure => Trust::Anybody,
        None => Trust::Machine,
        Some(pem) => Trust::Certificates(certificates(pem)?),
    };
    let builder = client_config(trust)?;
    let Some((cert, key)) = &security.identity else { return Ok(builder.with_no_client_auth()) };
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|fault| format!("key_pem: {fault}"))?;
    builder.with_client_auth_cert(certificates(cert)?, key).map_err(|fault| fault.to_string())
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|fault| fault.to_string())?;
    if all.is_empty() { Err("no certificate in it".to_owned()) } else { Ok(all) }
}
