//! GET over HTTP, for the few things that a node fetches by itself.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION};
use hyper::{Request, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use super::address::{Address, REDIRECTS_MAX, RedirectFault, redirected};
use super::tls::{self, Trust};

/// Why something was not to be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchFault {
    #[error("invalid URL: {0}")]
    Address(#[from] hyper::http::Error),
    #[error("{0}{cause}", cause = causes(.0))]
    Request(#[from] legacy::Error),
    #[error("expected status 200, not {0}")]
    Status(StatusCode),
    #[error(transparent)]
    Redirect(#[from] RedirectFault),
    #[error("cannot read the answer: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
}

/// The errors behind one that says little itself.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |cause| cause.source())
        .map(|cause| format!(": {cause}"))
        .collect()
}

/// An HTTP client. Connections are not kept: requests are rare.
#[derive(Clone)]
pub(super) enum Client {
    /// Without TLS, and so without the machine's certificates.
    Plain(legacy::Client<HttpConnector, Empty<Bytes>>),
    /// With both.
    Tls(legacy::Client<HttpsConnector<HttpConnector>, Empty<Bytes>>),
}

impl Client {
    /// One for `http://` only.
    pub(super) fn plain() -> Self {
        Self::Plain(builder().build(HttpConnector::new()))
    }

    /// One for `https://`, too, of servers with these certificates.
    ///
    /// # Errors
    /// There are no certificates to check servers with.
    pub(super) fn secure(trust: Trust) -> std::io::Result<Self> {
        Ok(Self::Tls(builder().build(connector(trust)?)))
    }

    /// The body that stands at the address, of so many bytes at most. Redirects of the same origin are
    /// followed: an address that moves elsewhere is to be configured.
    pub(super) async fn get(
        &self,
        url: &str,
        accept: &str,
        bytes_max: usize,
    ) -> Result<Bytes, FetchFault> {
        let Address { mut uri, authorization } = Address::parse(url)?;
        for _ in 0..=REDIRECTS_MAX {
            let mut request = Request::get(uri.clone()).header(ACCEPT, accept).body(Empty::new())?;
            if let Some(basic) = &authorization {
                request.headers_mut().insert(AUTHORIZATION, basic.clone());
            }
            let response = match self {
                Self::Plain(client) => client.request(request).await?,
                Self::Tls(client) => client.request(request).await?,
            };
            match response.status().as_u16() {
                200 => {
                    let body = Limited::new(response.into_body(), bytes_max);
                    return Ok(body.collect().await.map_err(FetchFault::Body)?.to_bytes());
                }
                301 | 302 | 307 | 308 => uri = redirected(&uri, response.headers())?,
                _ => return Err(FetchFault::Status(response.status())),
            }
        }
        Err(RedirectFault::TooMany.into())
    }
}

/// The connector of a client for `https://`, too.
///
/// # Errors
/// There are no certificates to check servers with.
pub(super) fn connector(trust: Trust) -> std::io::Result<HttpsConnector<HttpConnector>> {
    let config = tls::client_config(trust).map_err(std::io::Error::other)?;
    let builder = HttpsConnectorBuilder::new().with_tls_config(config.with_no_client_auth());
    Ok(builder.https_or_http().enable_http1().build())
}

/// A client that keeps no connections.
pub(super) fn builder() -> legacy::Builder {
    let mut builder = legacy::Client::builder(TokioExecutor::new());
    builder.pool_max_idle_per_host(0);
    builder
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    use super::*;
    use crate::node::tls::testing::{AUTHORITY, serve_once};

    /// Accepted by proxies, too.
    #[tokio::test]
    async fn a_trusted_certificate_is_good_itself() {
        let authority = CertificateDer::from_pem_slice(AUTHORITY.as_bytes()).unwrap();
        let client = Client::secure(Trust::Certificates(vec![authority])).unwrap();
        let address = serve_once("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
        let url = format!("https://localhost:{}/keys", address.port());
        let body = client.get(&url, "application/json", 100).await;
        assert_eq!(body.unwrap(), "{}");
        // Under another name it isn't.
        let address = serve_once("");
        let url = format!("https://127.0.0.1:{}/keys", address.port());
        let refused = client.get(&url, "application/json", 100).await;
        assert!(matches!(refused, Err(FetchFault::Request(_))), "{refused:?}");
    }
}
