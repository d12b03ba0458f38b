//! Answers to HTTP-01 challenges (RFC 8555, 8.3), and the port of plain HTTP that has them. Its other requests
//! are sent on to `https`.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_TYPE, HOST, LOCATION};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;

use super::cache::Cache;

/// Characters of a token at most: servers use 43.
const TOKEN_CHARS_MAX: usize = 256;

/// The challenges that are under way.
pub(in crate::node) struct Answers {
    by_token: Mutex<HashMap<String, String>>,
    /// Here are those of other nodes, too: a server may be led to any of them.
    cache: Cache,
}

impl Answers {
    pub(super) fn new(cache: Cache) -> Self {
        Self { by_token: Mutex::default(), cache }
    }

    /// Answers a challenge, until the result is dropped.
    ///
    /// # Errors
    /// The token isn't one, or the cache can't be written to.
    pub(super) fn add(self: &Arc<Self>, token: &str, answer: &str) -> io::Result<Answer> {
        if !is_token(token) {
            return Err(io::Error::other("the server's token is malformed"));
        }
        self.cache.write(&file(token), answer)?;
        self.by_token().insert(token.to_owned(), answer.to_owned());
        Ok(Answer { answers: Arc::clone(self), token: token.to_owned() })
    }

    fn find(&self, token: &str) -> Option<String> {
        if !is_token(token) {
            return None;
        }
        if let Some(answer) = self.by_token().get(token) {
            return Some(answer.clone());
        }
        self.cache.read(&file(token)).ok().flatten().map(|answer| answer.to_string())
    }

    fn by_token(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.by_token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer, as long as this lives.
pub(super) struct Answer {
    answers: Arc<Answers>,
    token: String,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.answers.by_token().remove(&self.token);
        self.answers.cache.remove(&file(&self.token));
    }
}

fn file(token: &str) -> String {
    format!("{token}+http-01")
}

/// Base64url without padding, so no path leads out of the cache.
fn is_token(token: &str) -> bool {
    (1..=TOKEN_CHARS_MAX).contains(&token.len())
        && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// The port of plain HTTP.
pub(in crate::node) fn router(answers: Arc<Answers>) -> Router {
    Router::new()
        .route("/.well-known/acme-challenge/{token}", any(challenge))
        .fallback(elsewhere)
        .with_state(answers)
}

async fn challenge(
    State(answers): State<Arc<Answers>>,
    Path(token): Path<String>,
    method: Method,
) -> Response {
    if method != Method::GET && method != Method::HEAD {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    match answers.find(&token) {
        Some(answer) => {
            ([(CONTENT_TYPE, HeaderValue::from_static("text/plain"))], answer).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// The same address with `https`, at its usual port.
async fn elsewhere(method: Method, headers: HeaderMap, uri: Uri) -> Response {
    if method != Method::GET && method != Method::HEAD {
        let text = "This port speaks plain HTTP: use https://\n";
        return (StatusCode::BAD_REQUEST, text).into_response();
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let location = headers.get(HOST).and_then(|host| host.to_str().ok()).and_then(|host| {
        HeaderValue::try_from(format!("https://{}{path}", without_port(host))).ok()
    });
    match location {
        Some(location) => (StatusCode::FOUND, [(LOCATION, location)]).into_response(),
        None => StatusCode::BAD_REQUEST.into_response(),
    }
}

/// A host without its port; an address of IPv6 stands in brackets.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt as _;

    use super::super::cache::testing::Folder;
    use super::*;

    async fn get(
        answers: &Arc<Answers>,
        method: &str,
        path: &str,
    ) -> (u16, Option<String>, String) {
        let request = Request::builder().method(method).uri(path);
        let request = request.header(HOST, "chat.example.com:8080").body(Body::empty()).unwrap();
        let response = router(Arc::clone(answers)).oneshot(request).await.unwrap();
        let location = response.headers().get(LOCATION);
        let location = location.map(|location| location.to_str().unwrap().to_owned());
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 1000).await.unwrap();
        (status, location, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_challenge_is_answered_by_each_node_with_the_cache_while_it_is_under_way() {
        let folder = Folder::new("answers");
        let open = || Arc::new(Answers::new(Cache::open(folder.0.clone()).unwrap()));
        let (first, second) = (open(), open());
        let path = "/.well-known/acme-challenge/abc-_1";
        assert_eq!(get(&first, "GET", path).await.0, 404);
        let answer = first.add("abc-_1", "abc-_1.thumbprint").unwrap();
        for answers in [&first, &second] {
            assert_eq!(get(answers, "GET", path).await, (200, None, "abc-_1.thumbprint".into()));
        }
        assert_eq!(get(&first, "POST", path).await.0, 405);
        drop(answer);
        assert_eq!(get(&first, "GET", path).await.0, 404);
        assert_eq!(get(&second, "GET", path).await.0, 404);
        assert!(first.add("../x", "").is_err());
        // Nothing else of the cache can be read.
        std::fs::write(folder.0.join("x+http-01"), "y").unwrap();
        let other = "/.well-known/acme-challenge/..%2Fx";
        assert_eq!(get(&first, "GET", other).await.0, 404);
    }

    #[tokio::test]
    async fn other_requests_are_sent_to_https() {
        let folder = Folder::new("elsewhere");
        let answers = Arc::new(Answers::new(Cache::open(folder.0.clone()).unwrap()));
        let (status, location, _) = get(&answers, "GET", "/path?query=1").await;
        assert_eq!(
            (status, location.as_deref()),
            (302, Some("https://chat.example.com/path?query=1"))
        );
        assert_eq!(get(&answers, "POST", "/").await.0, 400);
        assert_eq!(without_port("[::1]:80"), "[::1]");
        assert_eq!(without_port("[::1]"), "[::1]");
        assert_eq!(without_port("a.example"), "a.example");
    }
}
