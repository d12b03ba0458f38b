//! A token's three parts, and its claims as they stand in it.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use compact_str::CompactString;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::keys::Algorithm;
use super::{Overrides, SubOptions, TokenFault};
use crate::base::time::UnixSeconds;

/// A token in its compact form (RFC 7515 7.1), taken apart.
pub(super) struct Parts<'a> {
    /// The signed part: header and payload as they came.
    pub(super) signed: &'a str,
    header: &'a str,
    payload: &'a str,
    signature: &'a str,
}

/// The fields of a header that have a meaning here.
pub(super) struct Header {
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<String>,
}

impl<'a> Parts<'a> {
    pub(super) fn split(token: &'a str) -> Result<Self, TokenFault> {
        let three = TokenFault::Invalid("not three parts with dots between them");
        let (signed, signature) = token.rsplit_once('.').ok_or(three)?;
        // A fourth part would be one with a dot in it, which base64 doesn't have.
        let (header, payload) = signed.split_once('.').ok_or(three)?;
        Ok(Self { signed, header, payload, signature })
    }

    pub(super) fn header(&self) -> Result<Header, TokenFault> {
        #[derive(Deserialize)]
        struct Fields {
            alg: String,
            kid: Option<String>,
            crit: Option<IgnoredAny>,
        }
        let fields: Fields = serde_json::from_slice(&decode(self.header, "header: not base64url")?)
            .map_err(|_| {
                TokenFault::Invalid("header: no JSON object with alg and a text as kid")
            })?;
        // RFC 7515 4.1.11: extensions that are critical and not understood make a token invalid.
        if fields.crit.is_some() {
            return Err(TokenFault::Invalid("crit: critical extensions aren't supported"));
        }
        let unknown = TokenFault::Invalid("alg: not a supported algorithm");
        let algorithm = Algorithm::named(&fields.alg).ok_or(unknown)?;
        Ok(Header { algorithm, kid: fields.kid })
    }

    /// JSON, if it is a token.
    pub(super) fn payload(&self) -> Result<String, TokenFault> {
        let bytes = decode(self.payload, "claims: not base64url")?;
        String::from_utf8(bytes).map_err(|_| TokenFault::Invalid("claims: not UTF-8"))
    }

    pub(super) fn signature(&self) -> Result<Vec<u8>, TokenFault> {
        decode(self.signature, "signature: not base64url")
    }
}

fn decode(part: &str, flaw: &'static str) -> Result<Vec<u8>, TokenFault> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenFault::Invalid(flaw))
}

/// The claim that keeps a payload from being read: looked for only then.
fn flaw_of(payload: &str) -> &'static str {
    fn is<'a, T: Deserialize<'a>>(value: &'a RawValue) -> bool {
        serde_json::from_str::<Option<T>>(value.get()).is_ok()
    }
    type Check = fn(&RawValue) -> bool;
    const CLAIMS: [(&str, Check, &str); 13] = [
        ("exp", |value| is::<serde_json::Number>(value), "exp: not a number"),
        ("nbf", |value| is::<serde_json::Number>(value), "nbf: not a number"),
        ("iat", |value| is::<serde_json::Number>(value), "iat: not a number"),
        ("aud", |value| is::<OneOrMany>(value), "aud: no text and no list of texts"),
        ("iss", |value| is::<String>(value), "iss: not a text"),
        ("expire_at", |value| is::<i64>(value), "expire_at: not a whole number"),
        ("b64info", |value| is::<String>(value), "b64info: not a text"),
        ("channels", |value| is::<Vec<String>>(value), "channels: no list of texts"),
        (
            "subs",
            |value| is::<BTreeMap<String, Option<SubClaims<'_>>>>(value),
            "subs: not as agreed",
        ),
        ("channel", |value| is::<String>(value), "channel: not a text"),
        ("client", |value| is::<String>(value), "client: not a text"),
        ("b64data", |value| is::<String>(value), "b64data: not a text"),
        ("override", |value| is::<Overrides>(value), "override: not as agreed"),
    ];
    let Ok(fields) = serde_json::from_str::<BTreeMap<String, &RawValue>>(payload) else {
        return "claims: not a JSON object";
    };
    let wrong = CLAIMS
        .iter()
        .find(|(name, is_good, _)| fields.get(*name).is_some_and(|value| !is_good(value)));
    wrong.map_or("claims: a claim stands there twice", |(_, _, flaw)| flaw)
}

/// Claims as they stand in the token; null is absent.
#[derive(Deserialize)]
pub(super) struct Claims<'a> {
    #[serde(borrow)]
    sub: Option<&'a RawValue>,
    exp: Option<serde_json::Number>,
    nbf: Option<serde_json::Number>,
    iat: Option<serde_json::Number>,
    aud: Option<OneOrMany>,
    pub(super) iss: Option<String>,
    expire_at: Option<i64>,
    #[serde(borrow)]
    info: Option<&'a RawValue>,
    b64info: Option<String>,
    #[serde(borrow)]
    meta: Option<&'a RawValue>,
    channels: Option<Vec<String>>,
    #[serde(borrow)]
    subs: Option<BTreeMap<String, Option<SubClaims<'a>>>>,
    pub(super) channel: Option<String>,
    pub(super) client: Option<String>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    b64data: Option<String>,
    #[serde(rename = "override")]
    overrides: Option<Overrides>,
    /// The whole text that this was read from.
    #[serde(skip)]
    payload: &'a str,
}

/// What stands under a channel in `subs`, and beside `channel` in a subscription token.
#[derive(Deserialize)]
struct SubClaims<'a> {
    #[serde(borrow)]
    info: Option<&'a RawValue>,
    b64info: Option<String>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    b64data: Option<String>,
    #[serde(rename = "override")]
    overrides: Option<Overrides>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl<'a> Claims<'a> {
    pub(super) fn parse(payload: &'a str) -> Result<Self, TokenFault> {
        let claims: Self =
            serde_json::from_str(payload).map_err(|_| TokenFault::Invalid(flaw_of(payload)))?;
        Ok(Self { payload, ..claims })
    }

    /// The audiences.
    pub(super) fn audiences(&self) -> impl Iterator<Item = &str> {
        let audiences = match &self.aud {
            None => &[],
            Some(OneOrMany::One(audience)) => std::slice::from_ref(audience),
            Some(OneOrMany::Many(audiences)) => audiences.as_slice(),
        };
        audiences.iter().map(String::as_str)
    }

    /// The user id: `sub`, or what stands at `path`.
    pub(super) fn user(&self, path: &str) -> Result<CompactString, TokenFault> {
        let value = if path.is_empty() { self.sub } else { find(self.payload, path) };
        let Some(value) = value.map(RawValue::get) else { return Ok(CompactString::default()) };
        match value.as_bytes().first() {
            Some(b'"') => serde_json::from_str::<String>(value)
                .map(CompactString::from)
                .map_err(|_| TokenFault::Invalid("sub: not a text")),
            // As it is written: two large numbers would be one as a float.
            Some(b'-' | b'0'..=b'9') if !path.is_empty() => Ok(value.into()),
            _ if path.is_empty() => Err(TokenFault::Invalid("sub: not a text")),
            _ => Err(TokenFault::Invalid("user_id_claim: neither a text nor a number")),
        }
    }

    /// `iat` in whole seconds.
    pub(super) fn issued_at(&self) -> Option<i64> {
        self.iat.as_ref().map(seconds)
    }

    /// `exp` in whole seconds.
    pub(super) fn expires_at(&self) -> Option<i64> {
        self.exp.as_ref().map(seconds)
    }

    /// `info`, `data` and `override` of the token itself.
    pub(super) fn own_options(&self) -> Result<SubOptions, TokenFault> {
        Ok(SubOptions {
            info: content(self.info, self.b64info.as_deref(), B64INFO)?,
            data: content(self.data, self.b64data.as_deref(), B64DATA)?,
            overrides: self.overrides.unwrap_or_default(),
            expire_at: None,
        })
    }

    /// `info` of the connection.
    pub(super) fn info(&self) -> Result<Option<Box<[u8]>>, TokenFault> {
        content(self.info, self.b64info.as_deref(), B64INFO)
    }

    /// `meta`, an object.
    pub(super) fn meta(&self) -> Result<Option<Box<[u8]>>, TokenFault> {
        match self.meta {
            Some(meta) if !meta.get().starts_with('{') => {
                Err(TokenFault::Invalid("meta: not a JSON object"))
            }
            meta => Ok(meta.map(one_line)),
        }
    }

    /// `subs`, or `channels` where that names none, by name.
    pub(super) fn subs(&self) -> Result<Vec<(CompactString, SubOptions)>, TokenFault> {
        let mut all: BTreeMap<&str, Option<&SubClaims<'_>>> = BTreeMap::new();
        if let Some(subs) = &self.subs {
            all.extend(subs.iter().map(|(channel, claims)| (channel.as_str(), claims.as_ref())));
        }
        if all.is_empty() {
            all.extend(self.channels.iter().flatten().map(|channel| (channel.as_str(), None)));
        }
        let options = |claims: Option<&SubClaims<'_>>| {
            let Some(claims) = claims else { return Ok(SubOptions::default()) };
            Ok(SubOptions {
                info: content(claims.info, claims.b64info.as_deref(), B64INFO)?,
                data: content(claims.data, claims.b64data.as_deref(), B64DATA)?,
                overrides: claims.overrides.unwrap_or_default(),
                expire_at: None,
            })
        };
        all.into_iter().map(|(channel, claims)| Ok((channel.into(), options(claims)?))).collect()
    }

    /// Checks `exp` and `nbf`, without leeway (RFC 7519 4.1.4: not on or after `exp`; 4.1.5: not
    /// before `nbf`), and returns when what the token opens expires.
    pub(super) fn in_time(&self, now: UnixSeconds) -> Result<Option<i64>, TokenFault> {
        let exp = self.expires_at();
        let nbf = self.nbf.as_ref().map(seconds);
        if exp.is_some_and(|exp| now.0 >= exp) {
            return Err(TokenFault::Expired("exp: past"));
        }
        if nbf.is_some_and(|nbf| now.0 < nbf) {
            return Err(TokenFault::Expired("nbf: not reached yet"));
        }
        Ok(match self.expire_at {
            Some(0) => None,
            Some(at) => Some(at),
            None => exp,
        })
    }
}

/// What stands at a path in an object, null not counted. A claim whose whole name has dots in it, as
/// names that are URLs have, is found by that name.
fn find<'a>(object: &'a str, path: &str) -> Option<&'a RawValue> {
    let fields: BTreeMap<String, &RawValue> = serde_json::from_str(object).ok()?;
    let value = match (fields.get(path), path.split_once('.')) {
        (Some(value), _) => value,
        // As deep as the option's text has dots.
        (None, Some((first, rest))) => find(fields.get(first)?.get(), rest)?,
        (None, None) => return None,
    };
    (value.get() != "null").then_some(value)
}

/// A NumericDate (RFC 7519 2) in whole seconds; fractions are cut, what is out of range saturates.
fn seconds(number: &serde_json::Number) -> i64 {
    number.as_i64().unwrap_or_else(|| number.as_f64().unwrap_or(f64::MAX) as i64)
}

const B64INFO: &str = "b64info: not base64";
const B64DATA: &str = "b64data: not base64";

/// JSON of a claim, or whatever its base64 form holds.
fn content(
    json: Option<&RawValue>,
    encoded: Option<&str>,
    flaw: &'static str,
) -> Result<Option<Box<[u8]>>, TokenFault> {
    match encoded {
        Some(encoded) if !encoded.is_empty() => {
            let bytes = STANDARD.decode(encoded).map_err(|_| TokenFault::Invalid(flaw))?;
            Ok(Some(bytes.into_boxed_slice()))
        }
        _ => Ok(json.map(one_line)),
    }
}

/// JSON in one line, since the protocol separates messages by line feeds.
pub(crate) fn one_line(json: &RawValue) -> Box<[u8]> {
    let mut bytes = json.get().as_bytes().to_vec();
    // Inside a JSON text a bare line feed can only be white space between tokens.
    for byte in bytes.iter_mut().filter(|byte| matches!(**byte, b'\n' | b'\r')) {
        *byte = b' ';
    }
    bytes.into_boxed_slice()
}
