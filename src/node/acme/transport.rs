//! Requests to an ACME server, by the HTTP client of the node.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Limited;
use hyper::Request;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};

use crate::node::fetch;
use crate::node::tls::Trust;

/// Bytes of an answer at most: chains have some thousand.
const ACME_ANSWER_BYTES_MAX: usize = 1 << 20;

/// An answer begins so soon.
const ACME_ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// An HTTP client for servers with these certificates. Connections are not kept.
#[derive(Clone)]
pub(super) struct Transport {
    client: legacy::Client<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>,
}

impl Transport {
    /// # Errors
    /// There are no certificates to check servers with.
    pub(super) fn new(trust: Trust) -> io::Result<Self> {
        Ok(Self { client: fetch::builder().build(fetch::connector(trust)?) })
    }
}

impl HttpClient for Transport {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let answer = self.client.request(request);
        Box::pin(async move {
            let answer = tokio::time::timeout(ACME_ANSWER_TIMEOUT, answer).await;
            let answer = answer.map_err(|_| Error::Str("an answer in time"))?;
            let answer = answer.map_err(|fault| Error::Other(Box::new(fault)))?;
            Ok(BytesResponse::from(answer.map(|body| Limited::new(body, ACME_ANSWER_BYTES_MAX))))
        })
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    use super::*;
    use crate::node::tls::testing::{AUTHORITY, serve_once};

    #[tokio::test]
    async fn a_server_needs_a_certificate_of_a_trusted_authority() {
        let authority = CertificateDer::from_pem_slice(AUTHORITY.as_bytes()).unwrap();
        let trusting = Transport::new(Trust::Certificates(vec![authority])).unwrap();
        for (host, answers) in [("localhost", true), ("127.0.0.1", false)] {
            let address = serve_once("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
            let url = format!("https://{host}:{}/directory", address.port());
            let request = Request::get(url).body(BodyWrapper::default()).unwrap();
            let answer = trusting.request(request).await;
            assert_eq!(answer.is_ok(), answers, "{host}");
        }
    }
}
