//! Methods of the admin page beyond the server API: namespaces, and the connections of a user.

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::edge::channels::{ChannelRules, Namespace, OWN_CHANNEL, RecoveryMode, SlowPolicy};
use crate::node::api::Api;
use crate::shard::mail::{Inspected, Seen, SeenSub};

/// Answers a command that is one of these; `None` for others.
pub(super) async fn call(api: &Api, body: &[u8]) -> Option<Response> {
    #[derive(Deserialize)]
    struct Command {
        method: String,
        #[serde(default)]
        params: Params,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Params {
        user: String,
    }
    let command: Command = serde_json::from_slice(body).ok()?;
    let result = match command.method.as_str() {
        "namespaces" => Ok(namespaces(&api.rules())),
        "connections" => api.connections(&command.params.user).await.map(connections),
        _ => return None,
    };
    Some(match result {
        Ok(result) => Json(json!({ "result": result })).into_response(),
        Err(error) => Json(json!({ "error": error })).into_response(),
    })
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

fn connections(of_shards: Vec<Inspected>) -> Value {
    let more = of_shards.iter().any(|inspected| inspected.more);
    let each = (0u16..).zip(of_shards);
    let all: Vec<Value> = each
        .flat_map(|(shard, inspected)| {
            inspected.connections.into_iter().map(move |seen| connection(shard, &seen))
        })
        .collect();
    json!({ "connections": all, "more": more })
}

fn connection(shard: u16, seen: &Seen) -> Value {
    let subscription = |sub: &SeenSub| {
        json!({
            "channel": sub.channel.as_str(),
            "state": if sub.live { "live" } else { "joining" },
            "server": sub.server,
            "positioned": sub.positioned,
        })
    };
    json!({
        "client": seen.client.as_str(),
        "address": seen.address,
        "shard": shard,
        "transport": seen.form.transport().name(),
        "protocol": if seen.form.is_protobuf() { "protobuf" } else { "json" },
        "paused": seen.paused,
        "queued_bytes": seen.queued_bytes,
        "unanswered": seen.unanswered,
        "expires": Some(seen.expires).filter(|at| *at > 0),
        "num_subscriptions": seen.subscriptions,
        "subscriptions": seen.named.iter().map(subscription).collect::<Vec<_>>(),
    })
}
