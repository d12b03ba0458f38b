//! Calls out of JSON (server API, section 3).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::wire;
use crate::edge::jwt::Overrides;
use crate::hub::history::Since;
use crate::node::api::calls::{
    BroadcastCall, Call, Content, DisconnectCall, HistoryCall, Keyed, Payload, PublishCall,
    RefreshCall, SubscribeCall, UnsubscribeCall,
};
use crate::node::api::error::{ApiError, Result};
use crate::node::json::flaw;
use crate::node::orders::Target;

/// Parameters can't be read as those of the method: the reason, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BadParams(pub(super) String);

/// Reads a JSON object. Absent parameters are an empty one.
pub(super) fn parse<'a, T: Deserialize<'a>>(params: &'a str) -> std::result::Result<T, BadParams> {
    let params = if params.is_empty() { "{}" } else { params };
    // An array would do for a struct, too.
    match params.trim_ascii_start().starts_with('{') {
        true => serde_json::from_str(params).map_err(|fault| BadParams(flaw(params, &fault))),
        false => Err(BadParams("no JSON object".to_owned())),
    }
}

/// A call, or the error that is its answer: of the right types, and yet not fit for the method.
pub(super) type Decoded = Result<Call>;

/// Reads the parameters of a method; `None` when there is no such method.
pub(super) fn call(method: &str, params: &str) -> Option<std::result::Result<Decoded, BadParams>> {
    let channel = |params| parse(params).map(|wire::Channel { channel }| channel);
    Some(match method {
        "publish" => parse(params).map(|params: wire::Publish<'_>| {
            let (channel, of) = params.parts();
            let counts = of.counts;
            content(of).map(|content| Call::Publish(PublishCall { channel, content, counts }))
        }),
        "broadcast" => parse(params).map(|params: wire::Broadcast<'_>| {
            let (channels, of) = params.parts();
            let channels = channels.0;
            content(of).map(|content| Call::Broadcast(BroadcastCall { channels, content }))
        }),
        "subscribe" => parse(params).map(subscribe),
        "unsubscribe" => parse(params).map(|params: wire::Unsubscribe| {
            let wire::Unsubscribe { channel, user, client, session } = params;
            let target = target(user, client, session);
            Ok(Call::Unsubscribe(UnsubscribeCall { target, channel }))
        }),
        "disconnect" => parse(params).map(|params| Ok(disconnect(params))),
        "refresh" => parse(params).map(refresh),
        "presence" => channel(params).map(|channel| Ok(Call::Presence(channel))),
        "presence_stats" => channel(params).map(|channel| Ok(Call::PresenceStats(channel))),
        "history" => parse(params).map(|params: wire::History| {
            let wire::History { channel, limit, since: from, reverse } = params;
            let since = from.map(since);
            Ok(Call::History(HistoryCall { channel, limit, since, reverse }))
        }),
        "history_remove" => channel(params).map(|channel| Ok(Call::HistoryRemove(channel))),
        "channels" => parse(params).map(|wire::Pattern { pattern }| Ok(Call::Channels(pattern))),
        "info" => Ok(Ok(Call::Info)),
        "rpc" => parse(params).map(|wire::Rpc { method }| Ok(Call::Rpc(method))),
        "map_publish" | "map_remove" => parse(params).map(|params| Ok(Call::MapKey(keyed(params)))),
        "map_read_state" | "map_read_stream" | "map_stats" | "map_clear" => {
            parse(params).map(|params| Ok(Call::Map(keyed(params))))
        }
        "shared_poll_publish" => parse(params).map(|params| Ok(Call::SharedPoll(keyed(params)))),
        _ => return None,
    })
}

/// A payload given as JSON or, when that is not empty, in base64.
fn payload(json: Option<&RawValue>, b64: &str) -> Result<Payload> {
    match b64 {
        "" => Payload::json(json.map_or("", RawValue::get)),
        _ => Payload::bytes(&STANDARD.decode(b64).map_err(|_| ApiError::BadRequest)?),
    }
}

fn content(content: wire::Content<'_>) -> Result<Content> {
    let payload = payload(content.data, &content.b64data)?;
    let tags = content.tags.0.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    Content::new(payload, tags, content.options)
}

fn target(user: String, client: String, session: String) -> Target {
    let (user, client, session) = (user.into(), client.into(), session.into());
    Target { user, client, session, all_users: false }
}

fn since(wire::Since { offset, epoch }: wire::Since) -> Since {
    Since { offset, epoch: epoch.into() }
}

fn subscribe(params: wire::Subscribe<'_>) -> Decoded {
    let value = |setting: Option<wire::Setting>| setting.map(|setting| setting.value);
    let overrides = params.r#override;
    Ok(Call::Subscribe(Box::new(SubscribeCall {
        target: target(params.user, params.client, params.session),
        channel: params.channel,
        info: payload(params.info, &params.b64info)?,
        data: payload(params.data, &params.b64data)?,
        expire_at: params.expire_at,
        overrides: Overrides {
            presence: value(overrides.presence),
            join_leave: value(overrides.join_leave),
            force_recovery: value(overrides.force_recovery),
            force_positioning: value(overrides.force_positioning),
            force_push_join_leave: value(overrides.force_push_join_leave),
        },
        since: params.recover_since.map(since),
    })))
}

fn disconnect(params: wire::Disconnect) -> Call {
    let wire::Disconnect { user, disconnect, client, whitelist, session, all_users } = params;
    let wire::Reason { code, reason } = disconnect.unwrap_or_default();
    Call::Disconnect(DisconnectCall {
        target: Target { all_users, ..target(user, client, session) },
        code,
        reason,
        spare: whitelist.0.into_iter().map(Into::into).collect(),
    })
}

fn refresh(params: wire::Refresh<'_>) -> Decoded {
    let wire::Refresh { user, client, expired, expire_at, session, info, b64info } = params;
    let info = payload(info, &b64info)?;
    Ok(Call::Refresh(RefreshCall {
        target: target(user, client, session),
        expired,
        expire_at,
        info,
    }))
}

fn keyed(wire::Keyed { channel, key, version }: wire::Keyed) -> Keyed {
    Keyed { channel, key, version }
}

#[cfg(test)]
mod tests {
    use super::super::methods;
    use super::*;

    fn read(method: &str, params: &str) -> Decoded {
        call(method, params).unwrap().unwrap()
    }

    #[test]
    fn every_method_reads_absent_parameters() {
        for name in methods::names() {
            assert!(read(name, "").is_ok(), "{name}");
            assert!(call(name, "[]").unwrap().is_err() || name == "info", "{name}");
        }
        assert!(call("batch", "{}").is_none());
    }

    #[test]
    fn a_payload_is_json_or_base64() {
        let bytes = |params: &str| match read("publish", params)? {
            Call::Publish(publish) => Ok::<_, ApiError>(publish.content),
            other => panic!("{other:?}"),
        };
        let json = bytes(r#"{"channel":"a","data":{"a":1}}"#).unwrap();
        assert_eq!((&*json.data, json.is_json), (&br#"{"a":1}"#[..], true));
        let binary = bytes(r#"{"channel":"a","data":1,"b64data":"AAE="}"#).unwrap();
        assert_eq!((&*binary.data, binary.is_json), (&[0u8, 1][..], false));
        assert_eq!(bytes(r#"{"b64data":"*"}"#).unwrap_err(), ApiError::BadRequest);
    }

    #[test]
    fn a_code_of_zero_is_the_usual_disconnect() {
        for (params, code, reason) in [
            (r#"{"user":"42"}"#, 0, ""),
            (r#"{"user":"42","disconnect":{"code":4000,"reason":"x"}}"#, 4000, "x"),
        ] {
            let Ok(Call::Disconnect(read)) = read("disconnect", params) else { panic!("{params}") };
            assert_eq!(
                (read.code, read.reason.as_str(), read.target.user.as_str()),
                (code, reason, "42")
            );
        }
    }
}
