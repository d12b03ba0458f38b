//! Replies and errors as JSON (server API, 1.2 and 3).

use std::fmt::Write;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use serde_json::json;

use crate::node::api::calls::{NodeInfo, PresenceStats, Published, Reply};
use crate::node::api::error::{ApiError, Result};
use crate::node::api::read::LISTED_BYTES;
use crate::node::api::work::ENTRY_REPLY_BYTES_MAX;
use crate::node::slices::Slice;
use crate::proto::client::http_status;

impl Serialize for ApiError {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut error = serializer.serialize_struct("Error", 2)?;
        error.serialize_field("code", &self.code())?;
        error.serialize_field("message", &self.to_string())?;
        error.end()
    }
}

impl Serialize for Published {
    /// Nothing for a channel without history.
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut published = serializer.serialize_struct("Published", 2)?;
        if self.offset > 0 {
            published.serialize_field("offset", &self.offset)?;
        }
        if !self.epoch.is_empty() {
            published.serialize_field("epoch", &self.epoch)?;
        }
        published.end()
    }
}

/// The status of an error in transport mode.
pub(super) fn status(error: ApiError) -> u16 {
    http_status(error.code().into())
}

/// An error as a JSON object.
pub(super) fn error(error: ApiError) -> String {
    // A number and a text: nothing in it can fail to be written.
    serde_json::to_string(&error).unwrap_or_default()
}

/// A reply as a JSON object of at most so many bytes.
pub(super) async fn reply(reply: Reply, bytes_max: usize, slice: &mut Slice) -> Result<String> {
    match reply {
        Reply::Published(published) => written(&published),
        Reply::Broadcast(all) => {
            let mut result = String::from(r#"{"responses":["#);
            for (at, published) in all.iter().enumerate() {
                slice.spend(ENTRY_REPLY_BYTES_MAX).await;
                let comma = if at > 0 { "," } else { "" };
                // Writing to a String cannot fail.
                let _ = match published {
                    Ok(published) => {
                        write!(result, r#"{comma}{{"result":{}}}"#, written(published)?)
                    }
                    Err(fault) => write!(result, r#"{comma}{{"error":{}}}"#, error(*fault)),
                };
            }
            result.push_str("]}");
            Ok(result)
        }
        Reply::PresenceStats(PresenceStats { clients, users }) => {
            Ok(format!(r#"{{"num_clients":{clients},"num_users":{users}}}"#))
        }
        Reply::Encoded(body) => {
            String::from_utf8(body.bytes().to_vec()).map_err(|_| ApiError::Internal)
        }
        Reply::Channels(channels) => {
            let mut result = String::from(r#"{"channels":{"#);
            for (at, (name, clients)) in channels.iter().enumerate() {
                slice.spend(name.len() + LISTED_BYTES).await;
                let comma = if at > 0 { "," } else { "" };
                let _ = write!(result, r#"{comma}{}:{{"num_clients":{clients}}}"#, written(name)?);
                // Characters that are escaped take more than they were counted for.
                if result.len() > bytes_max {
                    return Err(ApiError::AnswerTooLong);
                }
            }
            result.push_str("}}");
            Ok(result)
        }
        Reply::Info(info) => {
            let NodeInfo { uid, name, clients, users, channels, subscriptions, uptime, figures } =
                *info;
            let node = json!({
                "uid": uid,
                "name": name,
                "version": env!("CARGO_PKG_VERSION"),
                "num_clients": clients,
                "num_users": users,
                "num_channels": channels,
                "num_subs": subscriptions,
                "uptime": uptime as u64,
                // Counted since the start, which is the interval; gauges as they are.
                "metrics": { "interval": uptime, "items": figures },
            });
            written(&json!({ "nodes": [node] }))
        }
        Reply::Done => Ok("{}".to_owned()),
    }
}

fn written<T: Serialize>(result: &T) -> Result<String> {
    serde_json::to_string(result).map_err(|_| ApiError::Internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn json(of: Reply) -> String {
        reply(of, 100, &mut Slice::default()).await.unwrap()
    }

    #[tokio::test]
    async fn replies_are_objects() {
        let published = Published { offset: 3, epoch: "e".into() };
        let nothing = Published::default();
        let stats = PresenceStats { clients: 2, users: 1 };
        for (reply, expected) in [
            (Reply::Done, "{}"),
            (Reply::Published(published.clone()), r#"{"offset":3,"epoch":"e"}"#),
            (Reply::Published(nothing), "{}"),
            (
                Reply::Broadcast(vec![Ok(published), Err(ApiError::UnknownChannel)]),
                r#"{"responses":[{"result":{"offset":3,"epoch":"e"}},{"error":{"code":102,"message":"unknown channel"}}]}"#,
            ),
            (Reply::PresenceStats(stats), r#"{"num_clients":2,"num_users":1}"#),
            (
                Reply::Channels(vec![("a\"".into(), 1), ("b".into(), 2)]),
                r#"{"channels":{"a\"":{"num_clients":1},"b":{"num_clients":2}}}"#,
            ),
        ] {
            assert_eq!(json(reply).await, expected);
        }
    }

    #[tokio::test]
    async fn names_that_grow_as_they_are_escaped_are_bounded_too() {
        let channels = vec![("\"".repeat(90).into(), 1)];
        let long = reply(Reply::Channels(channels), 100, &mut Slice::default()).await;
        assert_eq!(long.unwrap_err(), ApiError::AnswerTooLong);
    }
}
