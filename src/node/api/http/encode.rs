//! Replies and errors as JSON (server API, 1.2 and 3).

use std::fmt::Write;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::node::api::calls::{PresenceStats, Published, Reply};
use crate::node::api::error::{ApiError, Result};
use crate::node::api::work::ENTRY_REPLY_BYTES_MAX;
use crate::node::info::{NodeFigures, NodeInfo};
use crate::node::listing::LISTED_BYTES;
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
        let mut published = serializer.serialize_struct("Published", 3)?;
        if self.offset > 0 {
            published.serialize_field("offset", &self.offset)?;
        }
        if !self.epoch.is_empty() {
            published.serialize_field("epoch", &self.epoch)?;
        }
        if let Some(subscribers) = &self.subscribers {
            published.serialize_field("subscribers", subscribers)?;
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
        Reply::Info(nodes) => {
            let nodes: Vec<_> = nodes.into_iter().map(node).collect();
            let result = written(&json!({ "nodes": nodes }))?;
            if result.len() > bytes_max { Err(ApiError::AnswerTooLong) } else { Ok(result) }
        }
        Reply::Done => Ok("{}".to_owned()),
    }
}

/// A node in the result of `info`.
fn node(info: NodeInfo) -> Value {
    let mut node = json!({
        "uid": info.uid,
        "name": info.name,
        "version": info.version,
        "num_clients": info.clients,
        "num_users": info.users,
        "num_channels": info.channels,
        "num_subs": info.subscriptions,
        "uptime": info.uptime as u64,
    });
    if let Some(NodeFigures { interval, items }) = info.figures {
        let items = items.into_iter().map(|(name, value)| (name, number(value)));
        let items: Map<String, Value> = items.collect();
        node["metrics"] = json!({ "interval": interval, "items": items });
    }
    // Other nodes than those of this project may publish anything there.
    if let Ok(data @ Value::Object(_)) = serde_json::from_str(&info.data) {
        node["data"] = data;
    }
    node
}

/// Counters without a point.
fn number(value: f64) -> Value {
    match value.fract() == 0.0 && value.abs() < WHOLE_MAX {
        true => json!(value as i64),
        false => json!(value),
    }
}

/// Numbers below it are exact in both forms.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

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
        let published = Published { offset: 3, epoch: "e".into(), subscribers: None };
        let counted = Published { subscribers: Some(0), ..published.clone() };
        let nothing = Published::default();
        let stats = PresenceStats { clients: 2, users: 1 };
        for (reply, expected) in [
            (Reply::Done, "{}"),
            (Reply::Published(published.clone()), r#"{"offset":3,"epoch":"e"}"#),
            (Reply::Published(nothing), "{}"),
            (Reply::Published(counted), r#"{"offset":3,"epoch":"e","subscribers":0}"#),
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

    #[test]
    fn nodes_are_shown_with_what_they_publish() {
        let items = [("a".to_owned(), 3.0), ("b".to_owned(), 0.5), ("c".to_owned(), f64::NAN)];
        let info = NodeInfo {
            uid: "u".into(),
            name: "n".into(),
            version: "6.9.1 OSS".into(),
            clients: 1,
            users: 2,
            channels: 3,
            subscriptions: 4,
            uptime: 5.9,
            figures: Some(NodeFigures { interval: 60.0, items: items.into() }),
            data: r#"{"roost":"1"}"#.into(),
        };
        let expected = r#"{"uid":"u","name":"n","version":"6.9.1 OSS","num_clients":1,"num_users":2,"num_channels":3,"num_subs":4,"uptime":5,"metrics":{"interval":60.0,"items":{"a":3,"b":0.5,"c":null}},"data":{"roost":"1"}}"#;
        assert_eq!(node(info.clone()), serde_json::from_str::<Value>(expected).unwrap());
        let bare = node(NodeInfo { figures: None, data: "\u{1}".into(), ..info });
        assert!(bare.get("metrics").is_none() && bare.get("data").is_none());
    }

    #[tokio::test]
    async fn names_that_grow_as_they_are_escaped_are_bounded_too() {
        let channels = vec![("\"".repeat(90).into(), 1)];
        let long = reply(Reply::Channels(channels), 100, &mut Slice::default()).await;
        assert_eq!(long.unwrap_err(), ApiError::AnswerTooLong);
    }
}
