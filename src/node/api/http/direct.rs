//! Calls that came to the public port, answered without the router.
//!
//! A publish is the hot path of an application. The router's layers (matching of paths, header maps, boxed
//! services, compression) take as many instructions as all the rest of it, and decide nothing for a plain
//! call with a valid key. Everything else, each refusal and each answer that may be compressed among it,
//! goes through the router, which is the one that knows.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::answer::Answer;
use super::methods;
use super::{Shared, has_key};
use crate::config;
use crate::edge::api_key::GivenKey;
use crate::node::api::{Api, CALLER};
use crate::proto::http::Head;

/// See the module.
#[derive(Clone)]
pub(in crate::node) struct Direct {
    shared: Shared,
    /// Where paths of the API begin, with a slash at the end.
    prefix: Arc<str>,
    /// The routes of these calls, as the router has them: of a method, and of a batch.
    routes: [Arc<str>; 2],
}

impl Direct {
    /// The API of a node, below `prefix`.
    pub(in crate::node) fn new(
        api: Arc<Api>,
        prefix: &str,
        options: Arc<ArcSwap<config::Api>>,
    ) -> Self {
        let routes = ["{method}", "batch"].map(|last| format!("{prefix}/{last}").into());
        Self { shared: Shared { api, options }, prefix: format!("{prefix}/").into(), routes }
    }

    /// Whether this answers a request, and by which method; `None`: the router does.
    pub(in crate::node) fn method(&self, head: &Head<'_>) -> Option<&'static str> {
        let name = head.path.strip_prefix(&*self.prefix).filter(|_| head.method == "POST")?;
        let method = match name {
            // No answer to it is long enough to be compressed.
            "publish" => "publish",
            _ if head.header("accept-encoding").is_some() => return None,
            "batch" => "batch",
            _ => methods::names().find(|known| *known == name)?,
        };
        let given = GivenKey {
            own: head.header("x-api-key"),
            authorization: head.header("authorization"),
            query: head.query,
        };
        has_key(&self.shared.options.load(), given).then_some(method)
    }

    /// The route of a method, for counters.
    pub(in crate::node) fn route(&self, method: &str) -> &str {
        &self.routes[usize::from(method == "batch")]
    }

    /// Carries out a call of a method that [`Self::method`] has named.
    pub(in crate::node) async fn answer(
        &self,
        method: &'static str,
        head: &Head<'_>,
        body: &[u8],
        address: Option<IpAddr>,
    ) -> Answer {
        let asks_status = head.header("x-centrifugo-error-mode") == Some(b"transport");
        let answered = async {
            match method {
                "batch" => super::answer_batch(&self.shared.api, body).await,
                _ => super::answer_method(&self.shared, method, body, asks_status).await,
            }
        };
        CALLER.scope(address, answered).await
    }
}
