//! What a request to the server API comes to: a status and a text, whatever carries it.

use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::encode;
use crate::node::api::error::{ApiError, Result};

/// Status, content type and body of a response.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::node) struct Answer {
    pub(in crate::node) status: StatusCode,
    pub(in crate::node) content_type: Option<&'static str>,
    pub(in crate::node) body: String,
}

impl Answer {
    /// A status alone.
    pub(super) fn bare(status: StatusCode) -> Self {
        Self { status, content_type: None, body: String::new() }
    }

    /// JSON, with status 200.
    pub(super) fn json(body: String) -> Self {
        Self { status: StatusCode::OK, content_type: Some("application/json"), body }
    }

    /// 400.
    pub(super) fn bad_request() -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            content_type: Some("text/plain; charset=utf-8"),
            body: "Bad Request".to_owned(),
        }
    }

    /// The result of one call.
    pub(super) fn of_call(called: Result<String>, transport_errors: bool) -> Self {
        match called {
            Ok(result) => Self::json(["{\"result\":", &result, "}"].concat()),
            Err(error) if transport_errors => {
                Self { status: status(error), ..Self::json(encode::error(error)) }
            }
            Err(error) => Self::json(["{\"error\":", &encode::error(error), "}"].concat()),
        }
    }
}

fn status(error: ApiError) -> StatusCode {
    StatusCode::from_u16(encode::status(error)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let content_type =
            self.content_type.map(|kind| [(CONTENT_TYPE, HeaderValue::from_static(kind))]);
        match content_type {
            Some(kind) => (self.status, kind, self.body).into_response(),
            None => self.status.into_response(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_in_the_body_or_in_the_status() {
        let error = || Err(ApiError::UnknownChannel);
        let body = r#"{"code":102,"message":"unknown channel"}"#;
        let inside = Answer::of_call(error(), false);
        assert_eq!(inside, Answer::json(format!(r#"{{"error":{body}}}"#)));
        let outside = Answer::of_call(error(), true);
        assert_eq!((outside.status.as_u16(), outside.body.as_str()), (404, body));
        let result = Answer::of_call(Ok("{}".to_owned()), true);
        assert_eq!(result, Answer::json(r#"{"result":{}}"#.to_owned()));
    }
}
