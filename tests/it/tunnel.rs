//! A tunnel to a node over TLS, by rustls: clients speak plain text to it. With `ROOST_IT_TLS=1` each node of
//! the suite listens with TLS, and its clients come through one.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustls::client::WantsClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, ConfigBuilder, DigitallySignedStruct, Error, SignatureScheme,
};
use socket2::{Domain, Socket, Type};

/// Bytes that are read at once.
const PIECE_BYTES: usize = 16 * 1024;

/// Opens a tunnel to this address: where it listens.
pub(crate) fn open(node: SocketAddr, config: Arc<ClientConfig>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(client), config) = (client, Arc::clone(&config)) else { return };
            std::thread::spawn(move || {
                let Ok(socket) = connect(&client, node) else { return };
                // An end without order is one for the client, too.
                if Tunnel::new(client, socket, config).run().is_err() {}
            });
        }
    });
    address
}

/// A connection from the client's own address, which the node limits and logs.
fn connect(client: &TcpStream, node: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(node), Type::STREAM, None)?;
    let from = client.peer_addr()?.ip();
    if from.is_ipv4() == node.is_ipv4() {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    socket.connect(&node.into())?;
    Ok(socket.into())
}

/// A client's configuration that accepts any certificate.
pub(crate) fn accepting_all() -> Arc<ClientConfig> {
    Arc::new(builder().with_no_client_auth())
}

/// The same of a client that shows a certificate.
pub(crate) fn showing(
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> Arc<ClientConfig> {
    Arc::new(builder().with_client_auth_cert(vec![certificate], key).unwrap())
}

fn builder() -> ConfigBuilder<ClientConfig, WantsClientCert> {
    ClientConfig::builder_with_provider(default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAll))
}

struct Tunnel {
    client: TcpStream,
    socket: TcpStream,
    tls: ClientConnection,
    /// Plain text for the client.
    plain: Vec<u8>,
    client_ended: bool,
    node_ended: bool,
    fin_sent: bool,
}

impl Tunnel {
    fn new(client: TcpStream, socket: TcpStream, config: Arc<ClientConfig>) -> Self {
        for stream in [&client, &socket] {
            stream.set_nonblocking(true).unwrap();
            stream.set_nodelay(true).unwrap();
        }
        // A client that doesn't read is one for the node: little is kept on the way.
        rustix::net::sockopt::set_socket_send_buffer_size(&client, 16 * 1024).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let tls = ClientConnection::new(config, name).unwrap();
        let plain = Vec::new();
        Self { client, socket, tls, plain, client_ended: false, node_ended: false, fin_sent: false }
    }

    fn run(mut self) -> std::io::Result<()> {
        while !(self.client_ended && self.node_ended && self.plain.is_empty()) {
            self.wait();
            self.carry_to_node()?;
            self.carry_from_node()?;
            self.carry_to_client()?;
        }
        Ok(())
    }

    fn wait(&self) {
        let mut of_client = PollFlags::empty();
        // What the node doesn't take isn't read of the client, and the other way around.
        if !self.client_ended && !self.tls.wants_write() {
            of_client |= PollFlags::IN;
        }
        let mut of_node = PollFlags::empty();
        if !self.plain.is_empty() {
            of_client |= PollFlags::OUT;
        } else if !self.node_ended {
            of_node |= PollFlags::IN;
        }
        if self.tls.wants_write() {
            of_node |= PollFlags::OUT;
        }
        // One that nothing is wanted of isn't waited for: a socket that has ended reports that each time.
        let sockets = [(&self.client, of_client), (&self.socket, of_node)];
        let wanted = sockets.into_iter().filter(|(_, events)| !events.is_empty());
        let mut sockets: Vec<_> = wanted.map(|(socket, of)| PollFd::new(socket, of)).collect();
        poll(&mut sockets, None).unwrap();
    }

    fn carry_to_node(&mut self) -> std::io::Result<()> {
        let mut piece = [0; PIECE_BYTES];
        if !self.client_ended && !self.tls.wants_write() && !self.tls.is_handshaking() {
            match self.client.read(&mut piece) {
                Ok(0) => {
                    self.client_ended = true;
                    self.tls.send_close_notify();
                }
                Ok(count) => self.tls.writer().write_all(&piece[..count])?,
                Err(fault) if fault.kind() == ErrorKind::WouldBlock => {}
                // Its reset is one for the node, too.
                Err(fault) => {
                    reset(&self.socket);
                    return Err(fault);
                }
            }
        }
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(fault) if fault.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return self.broken(),
            }
        }
        if self.client_ended && !std::mem::replace(&mut self.fin_sent, true) {
            let _ = self.socket.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    fn carry_from_node(&mut self) -> std::io::Result<()> {
        if self.node_ended || !self.plain.is_empty() {
            return Ok(());
        }
        match self.tls.read_tls(&mut self.socket) {
            Ok(0) => self.node_ended = true,
            Ok(_) => {}
            Err(fault) if fault.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(_) => return self.broken(),
        }
        let Ok(state) = self.tls.process_new_packets() else {
            // The node is to get the alert.
            let _ = self.tls.write_tls(&mut self.socket);
            let _ = self.socket.shutdown(Shutdown::Write);
            return Err(ErrorKind::InvalidData.into());
        };
        let mut plain = vec![0; state.plaintext_bytes_to_read()];
        self.tls.reader().read_exact(&mut plain)?;
        self.plain = plain;
        self.node_ended |= state.peer_has_closed();
        Ok(())
    }

    fn carry_to_client(&mut self) -> std::io::Result<()> {
        while !self.plain.is_empty() {
            match self.client.write(&self.plain) {
                Ok(count) => _ = self.plain.drain(..count),
                Err(fault) if fault.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(fault) => {
                    reset(&self.socket);
                    return Err(fault);
                }
            }
        }
        if self.node_ended {
            let _ = self.client.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    fn broken(&mut self) -> std::io::Result<()> {
        reset(&self.client);
        Err(ErrorKind::ConnectionReset.into())
    }
}

fn reset(stream: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

/// Accepts each certificate whose owner has the key.
#[derive(Debug)]
struct AcceptAll;

impl ServerCertVerifier for AcceptAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let of = default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &of)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let of = default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &of)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}
