//! Methods of the admin page beyond the server API: namespaces, connections, closes, and the last minutes.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use axum::Json;
use axum::response::{IntoResponse, Response};
use compact_str::CompactString;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::series::Series;
use crate::base::id::ShardId;

use crate::edge::channels::{ChannelRules, Namespace, OWN_CHANNEL, RecoveryMode, SlowPolicy};
use crate::node::api::{Api, ApiError};
use crate::node::inspecting::Found;
use crate::proto::client::Disconnect;
use crate::shard::NodeState;
use crate::shard::mail::{Close, ClosesOf, Inspecting, Seen, SeenSub};

/// Parameters of all these methods.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Params {
    /// What connections are looked for by.
    by: By,
    /// The user, client id, channel or address.
    value: CompactString,
    user: CompactString,
    address: String,
    code: u16,
    limit: u16,
}

/// What connections are looked for by.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum By {
    #[default]
    User,
    Client,
    Channel,
    Address,
    Queues,
    Newest,
}

/// Connections or closes in an answer, where the page doesn't say how many.
const LIMIT: u16 = 50;

/// The same at most.
const LIMIT_MAX: u16 = 100;

/// Answers a command that is one of these; `None` for others.
pub(super) async fn call(api: &Api, series: &Mutex<Series>, body: &[u8]) -> Option<Response> {
    #[derive(Deserialize)]
    struct Command {
        method: String,
        #[serde(default)]
        params: Params,
    }
    let Command { method, params } = serde_json::from_slice(body).ok()?;
    let result = match method.as_str() {
        "namespaces" => Ok(namespaces(&api.rules())),
        "connections" => connections(api, params).await,
        "closes" => closes(api, params).await,
        "series" => Ok(series.lock().unwrap_or_else(PoisonError::into_inner).to_json()),
        _ => return None,
    };
    Some(match result {
        Ok(result) => Json(json!({ "result": result })).into_response(),
        Err(error) => Json(json!({ "error": error })).into_response(),
    })
}

fn limit(given: u16) -> u16 {
    if given == 0 { LIMIT } else { given.min(LIMIT_MAX) }
}

async fn connections(api: &Api, params: Params) -> Result<Value, ApiError> {
    let Params { by, value, user, limit: max, .. } = params;
    // A user may be named by itself, too.
    let value = if value.is_empty() { user } else { value };
    let of = match by {
        By::User => Inspecting::User(value),
        By::Client => Inspecting::Client(value),
        By::Channel => Inspecting::Channel(value),
        By::Address => Inspecting::Address(address(&value)?),
        By::Queues => Inspecting::Queues,
        By::Newest => Inspecting::Newest,
    };
    let Found { connections, found, is_partial } = api.connections(&of, limit(max)).await?;
    let more = is_partial || found > connections.len() as u64;
    let node = api.node();
    let connections = connections.iter().map(|(shard, seen)| connection(node, *shard, seen));
    let connections: Vec<Value> = connections.collect();
    Ok(json!({ "connections": connections, "found": found, "more": more, "partial": is_partial }))
}

/// An address as the node has it.
fn address(text: &str) -> Result<IpAddr, ApiError> {
    let text = text.trim().trim_matches(['[', ']']);
    text.parse().map(|address: IpAddr| address.to_canonical()).map_err(|_| ApiError::BadRequest)
}

async fn closes(api: &Api, params: Params) -> Result<Value, ApiError> {
    let Params { user, address: text, code, limit: max, .. } = params;
    let address = Some(text).filter(|text| !text.is_empty());
    let address = address.map(|text| self::address(&text)).transpose()?;
    let (closes, found) = api.closes(ClosesOf { user, address, code }, limit(max)).await?;
    let node = api.node();
    let closes: Vec<Value> = closes.iter().map(|(shard, of)| close(node, *shard, of)).collect();
    Ok(json!({ "closes": closes, "found": found }))
}

fn close(node: &NodeState, shard: ShardId, close: &Close) -> Value {
    let client = close.was_connected.then(|| node.rules.client_ids.seal(shard, close.conn).text());
    let reason = Disconnect::ALL.iter().find(|of| of.code() == close.code);
    let (name, version) = node.software.name(close.software);
    json!({
        "at": close.at,
        "user": close.user.as_str(),
        "client": client.as_ref().map_or("", |client| client.as_str()),
        "address": close.address,
        "transport": close.transport.name(),
        "name": name,
        "version": version,
        "lasted_s": close.lasted_s,
        "code": close.code,
        "reason": reason.map_or("", |of| of.reason()),
        "by_client": close.by_client,
        "detail": close.detail.as_str(),
    })
}

/// Whether a command is `reload`, which is for the control thread: `roost reload` sends it.
pub(super) fn is_reload(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Command<'a> {
        #[serde(borrow)]
        method: std::borrow::Cow<'a, str>,
    }
    serde_json::from_slice(body).is_ok_and(|Command { method }| method == "reload")
}

fn namespaces(rules: &ChannelRules) -> Value {
    let all = rules.namespaces().iter().filter(|namespace| namespace.name != OWN_CHANNEL);
    let all: Vec<Value> = all
        .map(|namespace| json!({ "name": namespace.name.as_str(), "options": options(namespace) }))
        .collect();
    json!({ "namespaces": all })
}

/// The options of a namespace that are not the default.
fn options(namespace: &Namespace) -> Map<String, Value> {
    let n = namespace;
    let flags = [
        ("allow_subscribe_for_client", n.allow_subscribe_for_client),
        ("allow_subscribe_for_anonymous", n.allow_subscribe_for_anonymous),
        ("allow_publish_for_client", n.allow_publish_for_client),
        ("allow_publish_for_subscriber", n.allow_publish_for_subscriber),
        ("allow_publish_for_anonymous", n.allow_publish_for_anonymous),
        ("allow_history_for_client", n.allow_history_for_client),
        ("allow_history_for_subscriber", n.allow_history_for_subscriber),
        ("allow_history_for_anonymous", n.allow_history_for_anonymous),
        ("allow_presence_for_client", n.allow_presence_for_client),
        ("allow_presence_for_subscriber", n.allow_presence_for_subscriber),
        ("allow_presence_for_anonymous", n.allow_presence_for_anonymous),
        ("allow_user_limited_channels", n.allow_user_limited_channels),
        ("allow_positioning", n.allow_positioning),
        ("force_positioning", n.force_positioning),
        ("allow_recovery", n.allow_recovery),
        ("force_recovery", n.force_recovery),
        ("auto_cache_recover", n.auto_cache_recover),
        ("delta_publish", n.delta_publish),
        ("allow_tags_filter", n.allow_tags_filter),
        ("presence", n.presence),
        ("join_leave", n.join_leave),
        ("force_push_join_leave", n.force_push_join_leave),
    ];
    let proxies = [
        ("subscribe_proxy", &n.subscribe_proxy),
        ("publish_proxy", &n.publish_proxy),
        ("sub_refresh_proxy", &n.sub_refresh_proxy),
    ];
    let mut options = Map::new();
    let mut put = |name: &str, value: Value| options.insert(name.to_owned(), value);
    flags.iter().filter(|(_, on)| *on).for_each(|(name, _)| _ = put(name, true.into()));
    for (name, proxy) in proxies {
        if let Some(proxy) = proxy {
            put(name, proxy.name.as_str().into());
        }
    }
    if n.history_size > 0 {
        put("history_size", n.history_size.into());
        put("history_ttl", format!("{}s", n.history_ttl_ms as f64 / 1000.0).into());
    }
    if n.recovery_mode == RecoveryMode::Cache {
        put("force_recovery_mode", "cache".into());
    }
    if n.delta_allowed {
        put("allowed_delta_types", "fossil".into());
    }
    if let Some(regex) = &n.channel_regex {
        put("channel_regex", regex.as_str().into());
    }
    if n.write_delay_ms > 0 {
        put("roost.write_delay", format!("{}ms", n.write_delay_ms).into());
    }
    match n.slow_policy {
        SlowPolicy::Disconnect => {}
        SlowPolicy::DropOldest => _ = put("roost.slow_policy", "drop_oldest".into()),
        SlowPolicy::Latest => _ = put("roost.slow_policy", "latest".into()),
    }
    options
}

fn connection(node: &NodeState, shard: ShardId, seen: &Seen) -> Value {
    let subscription = |sub: &SeenSub| {
        json!({
            "channel": sub.channel.as_str(),
            "state": if sub.live { "live" } else { "joining" },
            "server": sub.server,
            "positioned": sub.positioned,
        })
    };
    let (name, version) = node.software.name(seen.software);
    json!({
        "client": seen.client.as_str(),
        "user": seen.user.as_str(),
        "address": seen.address,
        "shard": shard.0,
        "transport": seen.form.transport().name(),
        "protocol": if seen.form.is_protobuf() { "protobuf" } else { "json" },
        "name": name,
        "version": version,
        "age_s": seen.age_s,
        "round_trip_ms": seen.round_trip_ms,
        "paused": seen.paused,
        "queued_bytes": seen.queued_bytes,
        "unanswered": seen.unanswered,
        "expires": Some(seen.expires).filter(|at| *at > 0),
        "num_subscriptions": seen.subscriptions,
        "subscriptions": seen.named.iter().map(subscription).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_any_form() {
        let v4 = IpAddr::from([192, 0, 2, 1]);
        for text in ["192.0.2.1", " 192.0.2.1 ", "::ffff:192.0.2.1", "[::ffff:192.0.2.1]"] {
            assert_eq!(address(text), Ok(v4), "{text}");
        }
        assert_eq!(address("host"), Err(ApiError::BadRequest));
    }

    #[test]
    fn an_answer_is_bounded() {
        assert_eq!([0, 7, 65_535].map(limit), [LIMIT, 7, LIMIT_MAX]);
    }
}
