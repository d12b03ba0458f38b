//! Client tokens: JWT (RFC 7519) in the claims of the Centrifugo client protocol.
//!
//! The algorithm comes from the configured keys: a token whose header asks for another one is
//! invalid, and `none` is not an algorithm at all. HMAC keys are here; keys for RSA, ECDSA and JWKS
//! join `TokenKeys::verified`, the one place that turns a token into claims.

use std::collections::HashMap;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use compact_str::CompactString;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::base::time::UnixSeconds;

/// The options under `client.token` (or `client.subscription_token`), as configured.
///
/// An empty text is an option that is not set. Without any key every token is invalid.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TokenOptions {
    /// Secret of HS256, HS384 and HS512.
    pub hmac_secret_key: String,
    /// The secret before the last rotation, still accepted.
    pub hmac_previous_secret_key: String,
    /// When the previous secret stops being accepted, Unix seconds; 0 is never. It also has to be
    /// at least the token's `iat`.
    pub hmac_previous_secret_key_valid_until: i64,
    /// `aud` must contain exactly this.
    pub audience: String,
    /// `iss` must be exactly this.
    pub issuer: String,
    /// Accept any signature. For tests only.
    pub skip_signature: bool,
}

/// Shows which options are set, never a secret.
impl std::fmt::Debug for TokenOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenOptions")
            .field("hmac_secret_key", &!self.hmac_secret_key.is_empty())
            .field("hmac_previous_secret_key", &!self.hmac_previous_secret_key.is_empty())
            .field("valid_until", &self.hmac_previous_secret_key_valid_until)
            .field("audience", &self.audience)
            .field("issuer", &self.issuer)
            .field("skip_signature", &self.skip_signature)
            .finish()
    }
}

/// Keys and rules that tokens are held against, prepared once.
#[derive(Debug)]
pub struct TokenKeys {
    hmac: Option<DecodingKey>,
    hmac_previous: Option<DecodingKey>,
    /// Unix seconds, 0 for ever.
    previous_valid_until: i64,
    /// One for each algorithm of the configured keys; none of them looks at a clock.
    validations: Vec<(Algorithm, Validation)>,
    audience: String,
    issuer: String,
    skip_signature: bool,
}

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFault {
    /// Past `exp` or before `nbf`: the client should fetch a new one (error 109).
    Expired,
    /// Everything else.
    Invalid,
}

/// What a connection token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionClaims {
    /// User id; empty is an anonymous user.
    pub user: CompactString,
    /// When the connection expires, Unix seconds; `None` is never. May already be past: `expire_at`
    /// is not what guards the token.
    pub expire_at: Option<i64>,
    /// `conn_info`: JSON text in one line.
    pub info: Option<Box<[u8]>>,
    /// The token names server-side subscriptions (`channels` or `subs`).
    pub has_subscriptions: bool,
}

/// What a subscription token says. That user, channel and client are the asking ones is checked by
/// [`crate::edge::channels::ChannelRules::may_subscribe`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionClaims {
    /// Must be the connection's user.
    pub user: CompactString,
    /// Must be the channel asked for; never empty.
    pub channel: CompactString,
    /// Must be the client id, unless empty.
    pub client: CompactString,
    /// When the subscription expires, Unix seconds; `None` is never. May already be past.
    pub expire_at: Option<i64>,
    /// `chan_info`: JSON text in one line.
    pub info: Option<Box<[u8]>>,
    /// Data for the subscribe result: JSON text in one line.
    pub data: Option<Box<[u8]>>,
    /// Options that replace those of the namespace.
    pub overrides: Overrides,
}

/// Namespace options that a token replaces; `None` leaves the namespace's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Overrides {
    /// Keep who is here.
    #[serde(deserialize_with = "flag")]
    pub presence: Option<bool>,
    /// Make join and leave events.
    #[serde(deserialize_with = "flag")]
    pub join_leave: Option<bool>,
    /// Send them to all subscribers.
    #[serde(deserialize_with = "flag")]
    pub force_push_join_leave: Option<bool>,
    /// Recovery whether asked for or not.
    #[serde(deserialize_with = "flag")]
    pub force_recovery: Option<bool>,
    /// Position checks whether asked for or not.
    #[serde(deserialize_with = "flag")]
    pub force_positioning: Option<bool>,
}

/// Claims as they stand in the token.
#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    exp: Option<serde_json::Number>,
    nbf: Option<serde_json::Number>,
    iat: Option<serde_json::Number>,
    aud: Option<OneOrMany>,
    iss: Option<String>,
    expire_at: Option<i64>,
    info: Option<Box<RawValue>>,
    b64info: Option<String>,
    channels: Option<Vec<IgnoredAny>>,
    subs: Option<HashMap<String, IgnoredAny>>,
    channel: Option<String>,
    client: Option<String>,
    data: Option<Box<RawValue>>,
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

impl TokenKeys {
    /// Prepares the keys. Makes aws-lc-rs the one provider of `jsonwebtoken`, which would otherwise
    /// choose at the first token, and panic if a dependency had brought in a second one.
    pub fn new(options: &TokenOptions) -> Self {
        // An error means that it was installed before, by another TokenKeys.
        let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
        let key = |secret: &str| {
            (!secret.is_empty()).then(|| DecodingKey::from_secret(secret.as_bytes()))
        };
        let hmac = key(&options.hmac_secret_key);
        let hmac_previous = key(&options.hmac_previous_secret_key);
        let mut validations = Vec::new();
        if hmac.is_some() || hmac_previous.is_some() {
            for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
                validations.push((algorithm, validation(algorithm)));
            }
        }
        Self {
            hmac,
            hmac_previous,
            previous_valid_until: options.hmac_previous_secret_key_valid_until,
            validations,
            audience: options.audience.clone(),
            issuer: options.issuer.clone(),
            skip_signature: options.skip_signature,
        }
    }

    /// Checks a connection token (client protocol, section 12.1).
    ///
    /// # Errors
    /// [`TokenFault::Expired`] when only the time is wrong, else [`TokenFault::Invalid`]; a token
    /// with a `channel` is a subscription token in the wrong place, and invalid.
    pub fn verify_connection(
        &self,
        token: &str,
        now: UnixSeconds,
    ) -> Result<ConnectionClaims, TokenFault> {
        let claims = self.verified(token, now)?;
        if claims.channel.as_deref().is_some_and(|channel| !channel.is_empty()) {
            return Err(TokenFault::Invalid);
        }
        let info = content(claims.info.as_deref(), claims.b64info.as_deref())?;
        let expire_at = claims.in_time(now)?;
        Ok(ConnectionClaims {
            user: claims.sub.as_deref().unwrap_or_default().into(),
            expire_at,
            info,
            has_subscriptions: claims.channels.is_some_and(|channels| !channels.is_empty())
                || claims.subs.is_some_and(|subs| !subs.is_empty()),
        })
    }

    /// Checks a subscription token (client protocol, section 12.2).
    ///
    /// # Errors
    /// As [`Self::verify_connection`]; a token without a `channel` is invalid.
    pub fn verify_subscription(
        &self,
        token: &str,
        now: UnixSeconds,
    ) -> Result<SubscriptionClaims, TokenFault> {
        let claims = self.verified(token, now)?;
        let channel: CompactString = claims.channel.as_deref().unwrap_or_default().into();
        if channel.is_empty() {
            return Err(TokenFault::Invalid);
        }
        let info = content(claims.info.as_deref(), claims.b64info.as_deref())?;
        let data = content(claims.data.as_deref(), claims.b64data.as_deref())?;
        Ok(SubscriptionClaims {
            user: claims.sub.as_deref().unwrap_or_default().into(),
            channel,
            client: claims.client.as_deref().unwrap_or_default().into(),
            expire_at: claims.in_time(now)?,
            info,
            data,
            overrides: claims.overrides.unwrap_or_default(),
        })
    }

    /// Parses the token and checks signature, `aud` and `iss`, in this order.
    fn verified(&self, token: &str, now: UnixSeconds) -> Result<Claims, TokenFault> {
        let claims = if self.skip_signature {
            jsonwebtoken::dangerous::insecure_decode_claims(token)
                .map_err(|_| TokenFault::Invalid)?
        } else {
            self.signed(token, now)?
        };
        self.for_us(&claims)?;
        Ok(claims)
    }

    /// The claims of a token that one of the keys signed.
    fn signed(&self, token: &str, now: UnixSeconds) -> Result<Claims, TokenFault> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenFault::Invalid)?;
        // RFC 7515 4.1.11: extensions that are critical and not understood make a token invalid.
        if header.crit.is_some() {
            return Err(TokenFault::Invalid);
        }
        let (_, validation) = self
            .validations
            .iter()
            .find(|(algorithm, _)| *algorithm == header.alg)
            .ok_or(TokenFault::Invalid)?;
        let decode = |key| jsonwebtoken::decode::<Claims>(token, key, validation);
        if let Some(key) = &self.hmac
            && let Ok(data) = decode(key)
        {
            return Ok(data.claims);
        }
        let previous = self.hmac_previous.as_ref().ok_or(TokenFault::Invalid)?;
        let until = self.previous_valid_until;
        // The clock decides: `iat` is chosen by whoever still has the old secret.
        if until != 0 && now.0 > until {
            return Err(TokenFault::Invalid);
        }
        let claims = decode(previous).map_err(|_| TokenFault::Invalid)?.claims;
        let issued_late = claims.iat.as_ref().is_some_and(|iat| seconds(iat) > until);
        if until != 0 && issued_late {
            return Err(TokenFault::Invalid);
        }
        Ok(claims)
    }

    fn for_us(&self, claims: &Claims) -> Result<(), TokenFault> {
        let audience_fits = self.audience.is_empty()
            || match &claims.aud {
                None => false,
                Some(OneOrMany::One(audience)) => *audience == self.audience,
                Some(OneOrMany::Many(audiences)) => audiences.contains(&self.audience),
            };
        let issuer_fits = self.issuer.is_empty() || claims.iss.as_ref() == Some(&self.issuer);
        if audience_fits && issuer_fits { Ok(()) } else { Err(TokenFault::Invalid) }
    }
}

impl SubscriptionClaims {
    /// True when the subscription's own expiry is past, which is error 110.
    pub fn is_past(&self, now: UnixSeconds) -> bool {
        self.expire_at.is_some_and(|at| at <= now.0)
    }
}

impl Claims {
    /// Checks `exp` and `nbf`, without leeway (RFC 7519 4.1.4: not on or after `exp`; 4.1.5: not
    /// before `nbf`), and returns when what the token opens expires.
    fn in_time(&self, now: UnixSeconds) -> Result<Option<i64>, TokenFault> {
        let exp = self.exp.as_ref().map(seconds);
        let nbf = self.nbf.as_ref().map(seconds);
        if exp.is_some_and(|exp| now.0 >= exp) || nbf.is_some_and(|nbf| now.0 < nbf) {
            return Err(TokenFault::Expired);
        }
        Ok(match self.expire_at {
            Some(0) => None,
            Some(at) => Some(at),
            None => exp,
        })
    }
}

/// Makes tokens of one secret, HS256. Its header is encoded and its key prepared once, since a load
/// client signs a token for each of a million connections.
#[derive(Clone)]
pub struct Signer {
    key: hmac::Key,
    header: String,
}

impl Signer {
    /// A signer with this secret.
    pub fn new(secret: &str) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()),
            header: URL_SAFE_NO_PAD.encode(br#"{"alg":"HS256","typ":"JWT"}"#),
        }
    }

    /// A connection token: `sub` and, unless `None`, `exp` in Unix seconds.
    pub fn connection_token(&self, user: &str, exp: Option<i64>) -> String {
        #[derive(Serialize)]
        struct Connection<'a> {
            sub: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            exp: Option<i64>,
        }
        self.sign(&Connection { sub: user, exp }).unwrap_or_default()
    }

    /// A token with these claims.
    ///
    /// # Errors
    /// When the claims can't be written as JSON.
    pub fn sign(&self, claims: &impl Serialize) -> Result<String, serde_json::Error> {
        let claims = serde_json::to_vec(claims)?;
        let mut token = String::with_capacity(self.header.len() + claims.len() * 4 / 3 + 48);
        token.push_str(&self.header);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = hmac::sign(&self.key, token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }
}

/// One token with these claims, HS256.
///
/// # Errors
/// When the claims can't be written as JSON.
pub fn sign_hs256(secret: &str, claims: &impl Serialize) -> Result<String, serde_json::Error> {
    Signer::new(secret).sign(claims)
}

/// The library's own checks of claims are off: they read the clock, allow a minute of leeway,
/// insist on `exp` and pass over an absent `aud`.
fn validation(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation
}

/// A NumericDate (RFC 7519 2) in whole seconds; fractions are cut, what is out of range saturates.
fn seconds(number: &serde_json::Number) -> i64 {
    number.as_i64().unwrap_or_else(|| number.as_f64().unwrap_or(f64::MAX) as i64)
}

/// JSON of a claim, or what its base64 form holds, which has to be JSON as long as connections
/// speak JSON only. In one line, since the protocol separates messages by line feeds.
fn content(
    json: Option<&RawValue>,
    encoded: Option<&str>,
) -> Result<Option<Box<[u8]>>, TokenFault> {
    let mut bytes = match (json, encoded) {
        (_, Some(encoded)) if !encoded.is_empty() => {
            let bytes = STANDARD.decode(encoded).map_err(|_| TokenFault::Invalid)?;
            serde_json::from_slice::<&RawValue>(&bytes).map_err(|_| TokenFault::Invalid)?;
            bytes
        }
        (Some(json), _) => json.get().as_bytes().to_vec(),
        (None, _) => return Ok(None),
    };
    // Inside a JSON text a bare line feed can only be white space between tokens.
    for byte in bytes.iter_mut().filter(|byte| matches!(**byte, b'\n' | b'\r')) {
        *byte = b' ';
    }
    Ok(Some(bytes.into_boxed_slice()))
}

/// `{"value": true}` as a flag.
fn flag<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    #[derive(Deserialize)]
    struct Value {
        value: bool,
    }
    Ok(Option::<Value>::deserialize(deserializer)?.map(|flag| flag.value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: UnixSeconds = UnixSeconds(1_700_000_000);
    const PLAIN: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiI0MiJ9.\
                         79CVgMIG_JB921dVUeJDWNJubJojFodH3-XtC_1C408";
    const GOLD: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.\
                        eyJzdWIiOiI0MiIsImNoYW5uZWwiOiIkZ29sZCJ9.\
                        81YXj8b_s_YPRjLD-miSj2TZW8MsdOeIDqCdikgZKbI";

    fn keys(secret: &str) -> TokenKeys {
        TokenKeys::new(&TokenOptions { hmac_secret_key: secret.into(), ..Default::default() })
    }

    fn token(claims: &serde_json::Value) -> String {
        sign_hs256("secret", claims).unwrap()
    }

    fn with_header(header: &str, claims: &str, secret: &str) -> String {
        let message =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&key, message.as_bytes()));
        format!("{message}.{signature}")
    }

    #[test]
    fn published_vectors() {
        let claims = keys("secret").verify_connection(PLAIN, NOW).unwrap();
        assert_eq!(
            claims,
            ConnectionClaims {
                user: "42".into(),
                expire_at: None,
                info: None,
                has_subscriptions: false
            }
        );
        let claims = keys("secret").verify_subscription(GOLD, NOW).unwrap();
        assert_eq!((claims.user.as_str(), claims.channel.as_str()), ("42", "$gold"));
        assert_eq!(Signer::new("secret").connection_token("42", None), PLAIN);
    }

    #[test]
    fn each_kind_only_in_its_place() {
        let keys = keys("secret");
        assert_eq!(keys.verify_connection(GOLD, NOW), Err(TokenFault::Invalid));
        assert_eq!(keys.verify_subscription(PLAIN, NOW), Err(TokenFault::Invalid));
    }

    #[test]
    fn what_is_not_signed_by_us_is_invalid() {
        let none = format!(
            "{}.{}.",
            URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#),
            URL_SAFE_NO_PAD.encode(r#"{"sub":"42"}"#)
        );
        let header = r#"{"alg":"HS256","crit":["b64"],"b64":true}"#;
        let cases = [
            ("other secret", sign_hs256("other", &json!({"sub": "42"})).unwrap()),
            ("none", none),
            ("changed signature", format!("{}A", &PLAIN[..PLAIN.len() - 1])),
            ("no signature", PLAIN.rsplit_once('.').unwrap().0.to_owned() + "."),
            ("two parts", PLAIN.rsplit_once('.').unwrap().0.to_owned()),
            ("empty", String::new()),
            ("text", "not a token".to_owned()),
            ("rsa header over an hmac", with_header(r#"{"alg":"RS256"}"#, "{}", "secret")),
            ("header says more than the mac", with_header(r#"{"alg":"HS512"}"#, "{}", "secret")),
            ("unknown algorithm", with_header(r#"{"alg":"HS257"}"#, "{}", "secret")),
            ("critical extension", with_header(header, "{}", "secret")),
            ("claims are no object", with_header(r#"{"alg":"HS256"}"#, "[]", "secret")),
            ("user is a number", token(&json!({"sub": 42}))),
            ("exp is a text", token(&json!({"sub": "42", "exp": "1800000000"}))),
            ("base64 is none", token(&json!({"b64info": "%"}))),
            ("base64 is not JSON", token(&json!({"b64info": STANDARD.encode("a\nb")}))),
        ];
        for (name, token) in cases {
            let verdict = keys("secret").verify_connection(&token, NOW);
            assert_eq!(verdict, Err(TokenFault::Invalid), "{name}");
        }
        assert_eq!(keys("").verify_connection(PLAIN, NOW), Err(TokenFault::Invalid), "no key");
        let empty = with_header(r#"{"alg":"HS256"}"#, r#"{"sub":"42"}"#, "");
        assert_eq!(keys("").verify_connection(&empty, NOW), Err(TokenFault::Invalid), "empty key");
    }

    #[test]
    fn time_table() {
        use TokenFault::{Expired, Invalid};
        let now = NOW.0;
        for (claims, expected) in [
            (json!({}), Ok(None)),
            (json!({"exp": now + 1}), Ok(Some(now + 1))),
            (json!({"exp": now as f64 + 1.5}), Ok(Some(now + 1))),
            (json!({"exp": 1e300}), Ok(Some(i64::MAX))),
            (json!({"exp": now}), Err(Expired)),
            (json!({"exp": now - 1}), Err(Expired)),
            (json!({"exp": 0}), Err(Expired)),
            (json!({"exp": -5}), Err(Expired)),
            (json!({"nbf": now}), Ok(None)),
            (json!({"nbf": now + 1}), Err(Expired)),
            (json!({"exp": now + 9, "expire_at": 0}), Ok(None)),
            (json!({"exp": now + 9, "expire_at": now + 3}), Ok(Some(now + 3))),
            (json!({"expire_at": now - 3}), Ok(Some(now - 3))),
            (json!({"exp": now - 1, "expire_at": 0}), Err(Expired)),
            (json!({"exp": null, "nbf": null}), Ok(None)),
            (json!({"iat": now + 100}), Ok(None)),
            // Everything else is looked at before the time.
            (json!({"exp": now - 1, "channel": "c"}), Err(Invalid)),
        ] {
            let verdict = keys("secret").verify_connection(&token(&claims), NOW);
            assert_eq!(verdict.map(|claims| claims.expire_at), expected, "{claims}");
        }
        let forged = sign_hs256("other", &json!({"exp": now - 1})).unwrap();
        assert_eq!(keys("secret").verify_connection(&forged, NOW), Err(Invalid));
    }

    #[test]
    fn all_hmac_sizes() {
        let encoding = jsonwebtoken::EncodingKey::from_secret(b"secret");
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let header = jsonwebtoken::Header::new(algorithm);
            let token = jsonwebtoken::encode(&header, &json!({"sub": "u"}), &encoding).unwrap();
            assert_eq!(keys("secret").verify_connection(&token, NOW).unwrap().user, "u");
        }
    }

    #[test]
    fn audience_and_issuer_are_exact() {
        let any = keys("secret");
        let keys = TokenKeys::new(&TokenOptions {
            hmac_secret_key: "secret".into(),
            audience: "edge".into(),
            issuer: "app".into(),
            ..Default::default()
        });
        for (claims, accepted) in [
            (json!({"aud": "edge", "iss": "app"}), true),
            (json!({"aud": ["x", "edge"], "iss": "app"}), true),
            (json!({"aud": "edge"}), false),
            (json!({"iss": "app"}), false),
            (json!({"aud": "edge2", "iss": "app"}), false),
            (json!({"aud": [], "iss": "app"}), false),
            (json!({"aud": "edge", "iss": "App"}), false),
        ] {
            let verdict = keys.verify_connection(&token(&claims), NOW);
            assert_eq!(verdict.is_ok(), accepted, "{claims}");
        }
        assert!(any.verify_connection(&token(&json!({"aud": "any"})), NOW).is_ok());
    }

    #[test]
    fn rotation_of_the_secret() {
        let keys = |until: i64| {
            TokenKeys::new(&TokenOptions {
                hmac_secret_key: "new".into(),
                hmac_previous_secret_key: "secret".into(),
                hmac_previous_secret_key_valid_until: until,
                ..Default::default()
            })
        };
        let old = |iat: i64| token(&json!({"sub": "u", "iat": iat}));
        for (until, iat, accepted) in [
            (0, NOW.0 + 1_000, true),
            (NOW.0, NOW.0 - 9, true),
            (NOW.0 + 5, NOW.0 + 6, false),
            (NOW.0 - 1, NOW.0 - 9, false),
        ] {
            let verdict = keys(until).verify_connection(&old(iat), NOW);
            assert_eq!(verdict.is_ok(), accepted, "until {until}, iat {iat}");
        }
        let new = sign_hs256("new", &json!({"sub": "u"})).unwrap();
        assert!(keys(1).verify_connection(&new, NOW).is_ok());
    }

    #[test]
    fn unsigned_tokens_only_where_asked_for() {
        let keys = TokenKeys::new(&TokenOptions { skip_signature: true, ..Default::default() });
        let forged = sign_hs256("whatever", &json!({"sub": "u"})).unwrap();
        assert_eq!(keys.verify_connection(&forged, NOW).unwrap().user, "u");
        let late = sign_hs256("whatever", &json!({"exp": 1})).unwrap();
        assert_eq!(keys.verify_connection(&late, NOW), Err(TokenFault::Expired));
    }

    #[test]
    fn content_of_claims() {
        let claims = json!({
            "sub": "u", "channel": "news", "client": "c1", "info": {"a": 1},
            "b64data": STANDARD.encode("{\n \"b\": 2}"), "subs": {},
            "override": {"force_positioning": {"value": true}, "presence": {"value": false}}
        });
        let claims = keys("secret").verify_subscription(&token(&claims), NOW).unwrap();
        assert_eq!(claims.client, "c1");
        assert_eq!(claims.info.as_deref(), Some(&br#"{"a":1}"#[..]));
        assert_eq!(claims.data.as_deref(), Some(&br#"{  "b": 2}"#[..]));
        assert_eq!(claims.overrides.force_positioning, Some(true));
        assert_eq!(claims.overrides.presence, Some(false));
        assert_eq!(claims.overrides.join_leave, None);

        for (claims, expected) in [
            (json!({"channels": ["a"]}), true),
            (json!({"subs": {"a": {}}}), true),
            (json!({"channels": [], "subs": {}}), false),
        ] {
            let verdict = keys("secret").verify_connection(&token(&claims), NOW).unwrap();
            assert_eq!(verdict.has_subscriptions, expected, "{claims}");
        }
        let spread = with_header(r#"{"alg":"HS256"}"#, "{\"info\": {\"a\":\r\n1}}", "secret");
        let claims = keys("secret").verify_connection(&spread, NOW).unwrap();
        assert_eq!(claims.info.as_deref(), Some(&b"{\"a\":  1}"[..]));
    }

    #[test]
    fn debug_shows_no_secret() {
        let options = TokenOptions { hmac_secret_key: "hush".into(), ..Default::default() };
        assert!(!format!("{options:?} {:?}", TokenKeys::new(&options)).contains("hush"));
    }
}
