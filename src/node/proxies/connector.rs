//! Connections to an endpoint, with TLS where its URL says so.

use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::edge::proxy::{ProxyOptions, ProxyTls};
use crate::node::tls::{self, Trust};

pub(in crate::node) type Connector = HttpsConnector<HttpConnector>;

/// Certificates of a proxy can't be used.
#[derive(Debug, thiserror::Error)]
#[error("the certificates of the proxy {name}: {why}")]
pub(in crate::node) struct TlsFault {
    pub(super) name: String,
    pub(super) why: String,
}

impl TlsFault {
    /// The endpoint with this name can't be used.
    pub(in crate::node) fn of(name: &str, why: &dyn std::fmt::Display) -> Self {
        Self { name: name.to_owned(), why: why.to_string() }
    }
}

/// For one endpoint.
pub(in crate::node) fn connector(options: &ProxyOptions) -> Result<Connector, TlsFault> {
    let fault = |why: String| TlsFault { name: options.name.clone(), why };
    let mut http = HttpConnector::new();
    http.set_nodelay(true);
    http.enforce_http(false);
    let none = ProxyTls {
        server_ca_pem: String::new(),
        server_name: String::new(),
        cert_pem: String::new(),
        key_pem: String::new(),
        skip_verify: false,
    };
    let is_secure = options.endpoint.starts_with("https:");
    let tls = options.tls.as_ref().unwrap_or(&none);
    let config = config(tls, is_secure).map_err(fault)?;
    let builder = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http();
    let builder = match tls.server_name.as_str() {
        "" => builder,
        name => {
            let name =
                ServerName::try_from(name.to_owned()).map_err(|why| fault(why.to_string()))?;
            builder.with_server_name_resolver(FixedServerNameResolver::new(name))
        }
    };
    Ok(builder.enable_http1().wrap_connector(http))
}

fn config(tls: &ProxyTls, is_secure: bool) -> Result<ClientConfig, String> {
    let trust = match tls.server_ca_pem.as_str() {
        _ if tls.skip_verify => Trust::Anybody,
        // The machine's are read only where they are needed.
        "" if is_secure => Trust::Machine,
        "" => Trust::Nobody,
        pem => Trust::Certificates(certificates(pem)?),
    };
    let builder = tls::client_config(trust)?;
    if tls.cert_pem.is_empty() {
        return Ok(builder.with_no_client_auth());
    }
    let key = PrivateKeyDer::from_pem_slice(tls.key_pem.as_bytes());
    let key = key.map_err(|fault| format!("key_pem: {fault}"))?;
    let chain = certificates(&tls.cert_pem)?;
    builder.with_client_auth_cert(chain, key).map_err(|fault| fault.to_string())
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = all.map_err(|fault| fault.to_string())?;
    if all.is_empty() { Err("no certificate in it".to_owned()) } else { Ok(all) }
}
