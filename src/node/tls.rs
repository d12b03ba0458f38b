//! TLS towards servers that the node or a command of `roost` calls: proxies, token keys, running nodes. Which of
//! them are accepted: [`ServerVerifier`].

use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};

use crate::proto::tls::handshake::trust::ServerVerifier;

/// The certificates that servers may have.
pub enum Trust {
    /// Servers with certificates signed by the machine's authorities.
    Machine,
    /// Servers with certificates signed by these.
    Certificates(Vec<CertificateDer<'static>>),
    /// None: for endpoints without TLS.
    Nobody,
    /// Any (`http.tls.insecure_skip_verify`), if the server has its key.
    Anybody,
}

/// Begins the configuration of a client; a certificate of its own is still to be said.
///
/// # Errors
/// No certificate to check servers with can be used.
pub fn client_config(trust: Trust) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|fault| fault.to_string())?;
    let verifier = match trust {
        Trust::Nobody => return Ok(builder.with_root_certificates(RootCertStore::empty())),
        Trust::Anybody => ServerVerifier::accepting_all(&provider),
        Trust::Certificates(certificates) => ServerVerifier::trusting(&certificates, &provider)?,
        Trust::Machine => {
            let found = rustls_native_certs::load_native_certs();
            ServerVerifier::trusting_fit(&found.certs, &provider).map_err(|fault| {
                let faults = found.errors.iter().map(|fault| format!(": {fault}"));
                format!("the machine's certificates: {fault}{}", faults.collect::<String>())
            })?
        }
    };
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier))
}

#[cfg(test)]
pub(super) mod testing {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener};

    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject;
    use rustls::{ServerConfig, ServerConnection, Stream};

    use super::*;

    /// Self-signed and marked as an authority, for `localhost`, as `openssl req -x509` makes it.
    pub(in crate::node) const AUTHORITY: &str =
        include_str!("../proto/tls/handshake/trust/authority.pem");

    /// A server with that certificate. It answers one request, if the client accepts the certificate.
    #[expect(clippy::disallowed_methods, reason = "a server of a test")]
    pub(in crate::node) fn serve_once(answer: &'static str) -> SocketAddr {
        let certificate = CertificateDer::from_pem_slice(AUTHORITY.as_bytes()).unwrap();
        let key = include_bytes!("../proto/tls/handshake/trust/authority_key.pem");
        let key = PrivateKeyDer::from_pem_slice(key).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut tls = ServerConnection::new(Arc::new(config)).unwrap();
            let mut stream = Stream::new(&mut tls, &mut socket);
            // A refused certificate ends the connection here.
            if stream.read(&mut [0; 4096]).is_ok() {
                let _ = stream.write_all(answer.as_bytes());
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        });
        address
    }
}
