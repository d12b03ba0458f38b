//! Responses of the control thread, counted by path and status. Paths are those of the routes, so that no client can
//! make the set grow; what has no route is one of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;

use crate::base::statuses::Statuses;

/// The path of requests that no route takes.
pub(super) const OTHER: &str = "other";

/// See the module. One thread counts, and a lock that nobody else holds costs it little beside a request.
#[derive(Debug, Default)]
pub(super) struct Responses(Mutex<Vec<(Box<str>, Statuses)>>);

impl Responses {
    /// Counts a response to a request for a route.
    pub(super) fn count(&self, route: &str, status: StatusCode) {
        let mut all = self.all();
        let at = all.iter().position(|(known, _)| **known == *route).unwrap_or_else(|| {
            all.push((route.into(), Statuses::default()));
            all.len() - 1
        });
        all[at].1.count(status.as_u16());
    }

    /// Calls `f` with each path, status and number of responses.
    pub(super) fn each(&self, mut f: impl FnMut(&str, Option<u16>, u64)) {
        for (path, statuses) in &*self.all() {
            statuses.each().for_each(|(status, count)| f(path, status, count));
        }
    }

    fn all(&self) -> MutexGuard<'_, Vec<(Box<str>, Statuses)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts the responses of a router.
pub(super) async fn count(
    State(responses): State<Arc<Responses>>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    responses.count(route.as_ref().map_or(OTHER, MatchedPath::as_str), response.status());
    response
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn routes_are_counted_and_paths_of_clients_are_not() {
        let responses = Arc::new(Responses::default());
        let counted = from_fn_with_state(Arc::clone(&responses), count);
        let router = Router::new().route("/api/{method}", get(|| async { "" })).layer(counted);
        for path in ["/api/a", "/api/b", "/c", "/d"] {
            let request = Request::builder().uri(path).body(Body::empty()).unwrap();
            let _ = router.clone().oneshot(request).await.unwrap();
        }
        let mut counted = Vec::new();
        responses.each(|path, status, count| {
            if count > 0 {
                counted.push((path.to_owned(), status, count));
            }
        });
        let route = ("/api/{method}".to_owned(), Some(200), 2);
        assert_eq!(counted, [route, (OTHER.to_owned(), Some(404), 2)]);
    }
}
