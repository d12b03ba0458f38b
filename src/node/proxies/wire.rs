//! The body of a call, and of its answer (server API, section 6).

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use compact_str::CompactString;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::base::tags::Tags;
use crate::edge::jwt::{ConnectionClaims, Overrides, SubOptions, one_line};
use crate::edge::proxy::{AppDisconnect, AppError, ProxyEvent};
use crate::node::json::{flaw, objects};
use crate::shard::mail::PublishOptions;
use crate::shard::proxies::{AppAnswer, AppCall, AppRequest, AppResult};

/// A payload that goes as JSON isn't JSON.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotJson;

#[derive(Debug, Default, Serialize)]
struct Call<'a> {
    client: &'a str,
    transport: &'static str,
    protocol: &'static str,
    encoding: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    channels: &'a [CompactString],
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    b64data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    meta: Option<&'a RawValue>,
}

fn given(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// The body of a call.
///
/// # Errors
/// A payload would have to be JSON and isn't.
pub(super) fn body(question: &AppCall) -> Result<Vec<u8>, NotJson> {
    let binary = question.proxy.binary_encoding;
    let mut call = Call {
        client: &question.client,
        transport: question.form.transport().name(),
        protocol: if question.form.is_protobuf() { "protobuf" } else { "json" },
        encoding: if binary { "binary" } else { "json" },
        user: Some(&question.user),
        ..Call::default()
    };
    if !question.meta.is_empty() {
        call.meta = Some(raw(&question.meta)?);
    }
    let data = match &question.call {
        AppRequest::Connect { data, name, version, channels } => {
            call.user = None;
            (call.name, call.version) = (given(name), given(version));
            call.channels = channels;
            data
        }
        AppRequest::Subscribe { channel, data } | AppRequest::Publish { channel, data } => {
            call.channel = Some(channel);
            data
        }
        AppRequest::Rpc { method, data } => {
            call.method = Some(method);
            data
        }
        AppRequest::SubRefresh { channel, .. } => {
            call.channel = Some(channel);
            return written(&call);
        }
        AppRequest::Refresh => return written(&call),
    };
    match (data.is_empty(), binary) {
        (true, _) => {}
        (false, true) => call.b64data = Some(STANDARD.encode(data)),
        (false, false) => call.data = Some(raw(data)?),
    }
    written(&call)
}

fn written(call: &Call<'_>) -> Result<Vec<u8>, NotJson> {
    serde_json::to_vec(call).map_err(|_| NotJson)
}

fn raw(bytes: &[u8]) -> Result<&RawValue, NotJson> {
    serde_json::from_slice(bytes).map_err(|_| NotJson)
}

objects! {
    struct Answer<'a> {
        error: Option<AppError>,
        disconnect: Option<AppDisconnect>,
        ;
        result,
    }
    /// The fields of all results. Each event looks at its own.
    struct Fields<'a> {
        user: CompactString,
        expire_at: i64,
        b64info: String,
        b64data: String,
        channels: Vec<CompactString>,
        expired: bool,
        r#override: Overrides,
        skip_history: bool,
        tags: BTreeMap<String, String>,
        idempotency_key: CompactString,
        delta: bool,
        version: u64,
        version_epoch: CompactString,
        ;
        info,
        data,
        meta,
        subs,
    }
    struct SubFields<'a> {
        expire_at: i64,
        b64info: String,
        b64data: String,
        r#override: Overrides,
        ;
        info,
        data,
    }
}

/// The content of an answer with status 200.
///
/// # Errors
/// The invalid part of it: the field and the types.
pub(super) fn answer(event: ProxyEvent, body: &[u8]) -> Result<AppAnswer, String> {
    // A list would do for an object, too.
    let is_object = |text: &str| text.trim_ascii_start().starts_with('{');
    let body = std::str::from_utf8(body).map_err(|_| "not UTF-8")?;
    if !is_object(body) {
        return Err("no JSON object".to_owned());
    }
    let Answer { result, error, disconnect } =
        serde_json::from_str(body).map_err(|fault| flaw(body, &fault))?;
    // Both are not looked at where the application decides about something that goes on.
    if !matches!(event, ProxyEvent::Refresh | ProxyEvent::SubRefresh) {
        if let Some(disconnect) = disconnect {
            let disconnect = Some(disconnect).filter(AppDisconnect::is_valid);
            return Ok(AppAnswer::Disconnect(
                disconnect.ok_or("disconnect: a code outside 3000 to 4999")?,
            ));
        }
        if let Some(error) = error {
            let error = Some(error).filter(AppError::is_valid);
            return Ok(AppAnswer::Error(error.ok_or("error: a code below 100")?));
        }
    }
    match present(result) {
        None => Ok(AppAnswer::Nothing),
        Some(result) if !is_object(result.get()) => Err("result: no object".to_owned()),
        Some(result) => {
            let text = result.get();
            let fields = serde_json::from_str(text);
            let fields = fields.map_err(|fault| format!("result.{}", flaw(text, &fault)))?;
            Ok(AppAnswer::Result(Box::new(self::result(event, &fields)?)))
        }
    }
}

fn present(json: Option<&RawValue>) -> Option<&RawValue> {
    json.filter(|json| json.get() != "null")
}

/// A payload in JSON or, when that is not empty, in base64.
fn payload(json: Option<&RawValue>, b64: &str) -> Result<Option<Box<[u8]>>, String> {
    match b64 {
        "" => Ok(present(json).map(one_line)),
        _ => match STANDARD.decode(b64) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(_) => Err("b64info or b64data: not base64".to_owned()),
        },
    }
}

/// 0 and less is never.
fn expiry(at: i64) -> Option<i64> {
    (at > 0).then_some(at)
}

fn result(event: ProxyEvent, fields: &Fields<'_>) -> Result<AppResult, String> {
    let mut subs: BTreeMap<CompactString, SubOptions> = BTreeMap::new();
    for channel in &fields.channels {
        subs.insert(channel.clone(), SubOptions::default());
    }
    if let Some(given) = present(fields.subs) {
        let given: BTreeMap<CompactString, Option<SubFields<'_>>> =
            serde_json::from_str(given.get())
                .map_err(|fault| format!("result.subs.{}", flaw(given.get(), &fault)))?;
        for (channel, fields) in given {
            let fields = fields.unwrap_or_default();
            let options = SubOptions {
                info: payload(fields.info, &fields.b64info)?,
                data: payload(fields.data, &fields.b64data)?,
                overrides: fields.r#override,
                expire_at: expiry(fields.expire_at),
            };
            subs.insert(channel, options);
        }
    }
    let meta = match present(fields.meta) {
        Some(meta) if !meta.get().starts_with('{') => {
            return Err("result.meta: no object".to_owned());
        }
        meta => meta.map(one_line),
    };
    let tags = fields.tags.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    Ok(AppResult {
        claims: ConnectionClaims {
            user: fields.user.clone(),
            expire_at: expiry(fields.expire_at),
            info: payload(fields.info, &fields.b64info)?,
            meta,
            subs: subs.into_iter().collect(),
        },
        data: match (event, fields.data) {
            // It is the client's answer, and `null` is one.
            (ProxyEvent::Rpc, Some(data)) if fields.b64data.is_empty() => Some(one_line(data)),
            (_, data) => payload(data, &fields.b64data)?,
        },
        expired: fields.expired,
        overrides: fields.r#override,
        tags: if fields.tags.is_empty() { Box::default() } else { Tags::pack(tags) },
        options: PublishOptions {
            skip_history: fields.skip_history,
            delta: fields.delta,
            idempotency_key: fields.idempotency_key.clone(),
            version: fields.version,
            version_epoch: fields.version_epoch.clone(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        use ProxyEvent::{Connect, Refresh, Rpc};
        let seen = |event, text: &str| match answer(event, text.as_bytes()) {
            Ok(AppAnswer::Result(_)) => "result".to_owned(),
            Ok(AppAnswer::Error(error)) => format!("error {}", error.code),
            Ok(AppAnswer::Disconnect(disconnect)) => format!("disconnect {}", disconnect.code),
            Ok(AppAnswer::Nothing) => "nothing".to_owned(),
            Ok(AppAnswer::Failed) | Err(_) => "failed".to_owned(),
        };
        let wrong = answer(Connect, br#"{"result":{"user":7}}"#).unwrap_err();
        assert!(wrong.starts_with("result.user: integer where a string"), "{wrong}");
        for (event, text, expected) in [
            (Connect, "{}", "nothing"),
            (Connect, r#"{"result":null,"error":null}"#, "nothing"),
            (Connect, r#"{"result":{}}"#, "result"),
            (Connect, r#"{"result":{"user":null,"unknown":1}}"#, "result"),
            (Rpc, r#"{"error":{"code":1000,"message":"x"}}"#, "error 1000"),
            (Rpc, r#"{"error":{"code":99}}"#, "failed"),
            (
                Rpc,
                r#"{"result":{},"error":{"code":400},"disconnect":{"code":4500}}"#,
                "disconnect 4500",
            ),
            (Rpc, r#"{"disconnect":{"code":1000}}"#, "failed"),
            (Refresh, r#"{"error":{"code":1000}}"#, "nothing"),
            (Refresh, r#"{"result":{"expired":true}}"#, "result"),
            (Connect, "", "failed"),
            (Connect, "[]", "failed"),
            (Connect, r#"{"result":[]}"#, "failed"),
            (Connect, r#"{"result":7}"#, "failed"),
            (Connect, r#"{"result":{"user":7}}"#, "failed"),
            (Connect, r#"{"result":{"meta":[]}}"#, "failed"),
            (Connect, r#"{"result":{"b64info":"?"}}"#, "failed"),
            (Connect, r#"{"result":{"subs":{"a":{"b64data":"?"}}}}"#, "failed"),
            (Connect, "<html>", "failed"),
        ] {
            assert_eq!(seen(event, text), expected, "{text}");
        }
        let data = |event, text: &str| match answer(event, text.as_bytes()) {
            Ok(AppAnswer::Result(result)) => result.data.map(|data| data.into_vec()),
            other => panic!("{other:?}"),
        };
        let null = r#"{"result":{"data":null}}"#;
        assert_eq!(data(Rpc, null), Some(b"null".to_vec()));
        assert_eq!(data(Rpc, r#"{"result":{"data":null,"b64data":"AP8="}}"#), Some(vec![0, 255]));
        assert_eq!(data(Rpc, r#"{"result":{}}"#), None);
        assert_eq!(data(Connect, null), None);
        let text = r#"{"result":{"user":"u","expire_at":9,"info":{"a":
            1},"b64data":"AP8=","channels":["x","y"],"subs":{"y":{"data":[1],"expire_at":7},"z":null},
            "meta":{"m":1},"override":{"presence":{"value":true}},"tags":{"t":"v"},"version":3}}"#;
        let Ok(AppAnswer::Result(result)) = answer(Connect, text.as_bytes()) else { panic!() };
        let claims = &result.claims;
        assert_eq!((claims.user.as_str(), claims.expire_at), ("u", Some(9)));
        assert!(!claims.info.as_ref().unwrap().contains(&b'\n'));
        assert_eq!(result.data.as_deref(), Some(&b"\0\xff"[..]));
        assert_eq!(claims.meta.as_deref(), Some(&br#"{"m":1}"#[..]));
        let names: Vec<_> = claims.subs.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["x", "y", "z"]);
        assert_eq!(claims.subs[1].1.expire_at, Some(7));
        assert_eq!(claims.subs[1].1.data.as_deref(), Some(&b"[1]"[..]));
        assert_eq!(result.overrides.presence, Some(true));
        assert_eq!(result.options.version, 3);
        assert!(!result.tags.is_empty());
    }
}
