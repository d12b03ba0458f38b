//! A connection to a server: made, with TLS where that is wanted, and greeted.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Settings;
use crate::cluster::nats::Place;
use crate::cluster::nats::protocol::{self, Credentials, Info, Malformed, Op};
use crate::cluster::servers::Security;
use crate::node::tls::{Trust, client_config};

/// Why there is no connection, or none any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreachable {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("no answer in time")]
    Timeout,
    #[error("closed by the server")]
    Closed,
    #[error("the server answers no PING")]
    Silent,
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("its INFO can't be read: {0}")]
    Info(serde_json::Error),
    /// The server has said so.
    #[error("{0}")]
    Refused(String),
    #[error("TLS: {0}")]
    Tls(String),
}

/// A stream to a server, with or without TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// A connection that has been greeted.
pub(super) struct Link {
    pub(super) stream: Box<dyn Stream>,
    /// Bytes that came and are not read.
    pub(super) input: BytesMut,
    pub(super) info: Info,
}

impl Link {
    /// The server can do what the options want.
    pub(super) fn check(&self, settings: &Settings) -> Result<(), Unreachable> {
        if settings.streams.is_none() {
            return Ok(());
        }
        if !self.info.is_at_least(2, 11) {
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
    tls: Option<TlsConnector>,
    timeout: Duration,
    name: String,
}

impl Dialer {
    /// # Errors
    /// The certificates can't be used.
    pub(super) fn new(
        security: Option<&Security>,
        timeout: Duration,
        name: &str,
    ) -> Result<Self, Unreachable> {
        let config = security.map(tls_config).transpose().map_err(Unreachable::Tls)?;
        let tls = config.map(|config| TlsConnector::from(Arc::new(config)));
        Ok(Self { tls, timeout, name: name.to_owned() })
    }

    /// Connects to a server.
    pub(super) async fn dial(
        &self,
        place: &Place,
        credentials: &Credentials,
    ) -> Result<Link, Unreachable> {
        let made = tokio::time::timeout(self.timeout, self.greet(place, credentials)).await;
        made.map_err(|_| Unreachable::Timeout)?
    }

    async fn greet(&self, place: &Place, credentials: &Credentials) -> Result<Link, Unreachable> {
        let stream = TcpStream::connect((place.host.as_str(), place.port)).await?;
        stream.set_nodelay(true)?;
        let mut stream: Box<dyn Stream> = Box::new(stream);
        let mut input = BytesMut::new();
        let mut info = read_info(&mut stream, &mut input).await?;
        let is_secure = self.tls.is_some() || info.tls_required;
        if is_secure {
            let tls = match &self.tls {
                Some(tls) => tls.clone(),
                None => {
                    let config = tls_config(&Security::default()).map_err(Unreachable::Tls)?;
                    TlsConnector::from(Arc::new(config))
                }
            };
            let name = ServerName::try_from(place.host.clone());
            let name = name.map_err(|error| Unreachable::Tls(error.to_string()))?;
            input.clear();
            stream = Box::new(tls.connect(name, stream).await?);
        }
        let mut out = Vec::new();
        protocol::put_connect(&mut out, credentials, &self.name, is_secure);
        out.extend_from_slice(b"PING\r\n");
        stream.write_all(&out).await?;
        stream.flush().await?;
        loop {
            while let Some((op, taken)) = protocol::next(&input)? {
                let is_done = match op {
                    Op::Pong => true,
                    Op::Error(text) => return Err(Unreachable::Refused(text.to_owned())),
                    Op::Info(json) => {
                        info = Info::read(json).map_err(Unreachable::Info)?;
                        false
                    }
                    _ => false,
                };
                input.advance(taken);
                if is_done {
                    return Ok(Link { stream, input, info });
                }
            }
            if stream.read_buf(&mut input).await? == 0 {
                return Err(Unreachable::Closed);
            }
        }
    }
}

/// The first line of a server.
async fn read_info(
    stream: &mut Box<dyn Stream>,
    input: &mut BytesMut,
) -> Result<Info, Unreachable> {
    loop {
        if let Some((op, taken)) = protocol::next(input)? {
            let info = match op {
                Op::Info(json) => Info::read(json).map_err(Unreachable::Info)?,
                Op::Error(text) => return Err(Unreachable::Refused(text.to_owned())),
                _ => return Err(Malformed::Word.into()),
            };
            input.advance(taken);
            return Ok(info);
        }
        if stream.read_buf(input).await? == 0 {
            return Err(Unreachable::Closed);
        }
    }
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
