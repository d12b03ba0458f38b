//! Client tokens: JWT (RFC 7519) in the claims of the Centrifugo client protocol (section 12).
//!
//! ```text
//!  token -> parts -> signature -> aud, iss -> claims (by kind) -> time
//!              |         |
//!              |         '-- HMAC: here. Others: None, and a pool asks `check_signature`
//!              '-- JWKS: `kid` and the endpoint that follows from aud and iss choose the key
//! ```
//! The algorithm comes from the keys: a token whose header names one that no key is for is
//! invalid, and `none` is not an algorithm at all. Called by shards, who may not be kept for the tens of
//! microseconds that an RSA or EC signature takes, and by the threads that check those. Knows no
//! network: the caller that learns that a key set is unknown fetches and installs it.

mod claims;
mod endpoint;
mod keys;
mod sign;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub(crate) use self::claims::one_line;
pub use self::sign::{Signer, sign_hs256};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use compact_str::CompactString;
use serde::Deserialize;

use self::claims::{Claims, Header, Parts};
use self::endpoint::{Endpoint, Expected, Groups};
use self::keys::{KeySet, PublicKey, Secret};
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
    /// Public key of RS256, RS384 and RS512: PEM text. Not used beside `jwks_public_endpoint`.
    pub rsa_public_key: String,
    /// Public key of ES256, ES384 or ES512, by its curve: PEM text. Not used beside
    /// `jwks_public_endpoint`.
    pub ecdsa_public_key: String,
    /// URL of a JWK Set (RFC 7517) with the public keys; `{{name}}` stands for a group of one of the
    /// expressions below.
    pub jwks_public_endpoint: String,
    /// `aud` must contain exactly this.
    pub audience: String,
    /// One of `aud` must match this.
    pub audience_regex: String,
    /// `iss` must be exactly this.
    pub issuer: String,
    /// `iss` must match this.
    pub issuer_regex: String,
    /// Where the user id is instead of in `sub`: a claim, or a path with "." between its levels.
    pub user_id_claim: String,
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
            .field("rsa_public_key", &!self.rsa_public_key.is_empty())
            .field("ecdsa_public_key", &!self.ecdsa_public_key.is_empty())
            .field("jwks_public_endpoint", &!self.jwks_public_endpoint.is_empty())
            .field("audience", &self.audience)
            .field("audience_regex", &self.audience_regex)
            .field("issuer", &self.issuer)
            .field("issuer_regex", &self.issuer_regex)
            .field("user_id_claim", &self.user_id_claim)
            .field("skip_signature", &self.skip_signature)
            .finish()
    }
}

impl TokenOptions {
    /// True when some key is set.
    pub fn has_key(&self) -> bool {
        [
            &self.hmac_secret_key,
            &self.hmac_previous_secret_key,
            &self.rsa_public_key,
            &self.ecdsa_public_key,
            &self.jwks_public_endpoint,
        ]
        .iter()
        .any(|key| !key.is_empty())
    }

    /// Everything that keeps [`TokenKeys::new`] from making keys of these options.
    pub fn faults(&self) -> Vec<KeyFault> {
        let mut faults = Vec::new();
        self.prepare(&mut faults);
        faults
    }

    /// All that is made of the options; a part with a fault is left out.
    fn prepare(&self, faults: &mut Vec<KeyFault>) -> Prepared {
        fn noted<T>(
            faults: &mut Vec<KeyFault>,
            option: &'static str,
            result: Result<T, String>,
        ) -> Option<T> {
            result.map_err(|expected| faults.push(KeyFault { option, expected })).ok()
        }
        let mut public = Vec::new();
        if !self.rsa_public_key.is_empty() {
            let keys = PublicKey::of_rsa_pem(&self.rsa_public_key);
            public.extend(noted(faults, "rsa_public_key", keys).into_iter().flatten());
        }
        if !self.ecdsa_public_key.is_empty() {
            let key = PublicKey::of_ecdsa_pem(&self.ecdsa_public_key);
            public.extend(noted(faults, "ecdsa_public_key", key));
        }
        let audience = Expected::new(&self.audience, &self.audience_regex);
        let audience = noted(faults, "audience_regex", audience);
        let issuer = Expected::new(&self.issuer, &self.issuer_regex);
        let issuer = noted(faults, "issuer_regex", issuer);
        let endpoint = match (&audience, &issuer) {
            // Names can't be looked up in what isn't an expression.
            (Some(audience), Some(issuer)) if !self.jwks_public_endpoint.is_empty() => {
                let endpoint = Endpoint::new(&self.jwks_public_endpoint, audience, issuer);
                noted(faults, "jwks_public_endpoint", endpoint)
            }
            _ => None,
        };
        Prepared {
            public,
            endpoint,
            audience: audience.unwrap_or(Expected::Anything),
            issuer: issuer.unwrap_or(Expected::Anything),
        }
    }
}

/// The prepared options, apart from the secrets.
struct Prepared {
    public: Vec<PublicKey>,
    endpoint: Option<Endpoint>,
    audience: Expected,
    issuer: Expected,
}

/// An option, or a fetched key set, of which no keys can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{option}: expected {expected}")]
pub struct KeyFault {
    /// The option's name in its section, such as `rsa_public_key`.
    pub option: &'static str,
    /// The expected value.
    pub expected: String,
}

/// Keys and rules that tokens are held against. They may be replaced while tokens are being checked.
#[derive(Debug)]
pub struct TokenKeys {
    current: ArcSwap<Keys>,
    /// How often they were replaced.
    replaced: AtomicU64,
}

/// Keys and rules of one configuration, prepared once.
#[derive(Debug)]
struct Keys {
    hmac: Option<Secret>,
    hmac_previous: Option<Secret>,
    /// Unix seconds, 0 for ever.
    previous_valid_until: i64,
    /// Of the PEM options; without a meaning beside `endpoint`.
    public: Vec<PublicKey>,
    endpoint: Option<Endpoint>,
    /// By URL. Read for each token with a public key, replaced a few times an hour.
    sets: ArcSwap<BTreeMap<String, Arc<KeySet>>>,
    generation: AtomicU64,
    audience: Expected,
    issuer: Expected,
    user_id_claim: String,
    skip_signature: bool,
}

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFault {
    /// Past `exp` or before `nbf`: the client should fetch a new one (error 109).
    Expired(&'static str),
    /// Everything else.
    Invalid(&'static str),
}

impl TokenFault {
    /// The part of the token that is wrong and how, for the log: a claim's or header's name first.
    /// Never a word of the token itself.
    pub fn flaw(self) -> &'static str {
        match self {
            Self::Expired(flaw) | Self::Invalid(flaw) => flaw,
        }
    }
}

/// The outcome of a signature check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    /// One of the keys made it, and `aud` and `iss` fit.
    Good {
        /// The token's `exp`, Unix seconds: nobody has to remember it for longer.
        until: Option<i64>,
    },
    /// It is not to be accepted.
    Bad,
    /// No key with the token's `kid` is known: the key set has to be fetched.
    Unknown {
        /// Where its key set is.
        url: String,
    },
}

/// The claims of a connection token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionClaims {
    /// User id; empty is an anonymous user.
    pub user: CompactString,
    /// When the connection expires, Unix seconds; `None` is never. May already be past: `expire_at`
    /// is not what guards the token.
    pub expire_at: Option<i64>,
    /// `conn_info`: JSON text in one line, or any bytes when it came as base64.
    pub info: Option<Box<[u8]>>,
    /// `meta`: the text of a JSON object in one line, for proxies.
    pub meta: Option<Box<[u8]>>,
    /// Server-side subscriptions, by name and each name once: `subs`, or `channels` where that names
    /// none. Names are not checked.
    pub subs: Vec<(CompactString, SubOptions)>,
}

/// The claims of a token about a subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubOptions {
    /// `chan_info`: JSON text in one line, or any bytes when it came as base64.
    pub info: Option<Box<[u8]>>,
    /// Data for the subscribe result: as `info`.
    pub data: Option<Box<[u8]>>,
    /// Options that replace those of the namespace.
    pub overrides: Overrides,
    /// When it expires, Unix seconds; `None` is never. Tokens don't say it here.
    pub expire_at: Option<i64>,
}

/// The claims of a subscription token. User, channel and client are compared with the connection's by
/// [`crate::edge::channels::ChannelRules::may_subscribe`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionClaims {
    /// Must be the connection's user.
    pub user: CompactString,
    /// Must be the requested channel; never empty.
    pub channel: CompactString,
    /// Must be the client id, unless empty.
    pub client: CompactString,
    /// When the subscription expires, Unix seconds; `None` is never. May already be past.
    pub expire_at: Option<i64>,
    /// `chan_info`: JSON text in one line, or any bytes when it came as base64.
    pub info: Option<Box<[u8]>>,
    /// Data for the subscribe result: as `info`.
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
    /// Recovery, requested or not.
    #[serde(deserialize_with = "flag")]
    pub force_recovery: Option<bool>,
    /// Position checks, requested or not.
    #[serde(deserialize_with = "flag")]
    pub force_positioning: Option<bool>,
}

impl TokenKeys {
    /// Prepares the keys. A JWKS endpoint has none yet.
    ///
    /// # Errors
    /// The first option that makes no key; [`TokenOptions::faults`] has all of them.
    pub fn new(options: &TokenOptions) -> Result<Self, KeyFault> {
        let current = ArcSwap::from_pointee(Keys::new(options)?);
        Ok(Self { current, replaced: AtomicU64::new(0) })
    }

    /// Takes other options. What was fetched from a JWKS endpoint stays when that is the same.
    ///
    /// # Errors
    /// As [`Self::new`]; the keys stay what they are.
    pub fn replace(&self, options: &TokenOptions) -> Result<(), KeyFault> {
        let keys = Keys::new(options)?;
        let older = self.current.load();
        if keys.endpoint == older.endpoint {
            keys.sets.store(older.sets.load_full());
            keys.generation.store(older.generation.load(Ordering::Acquire), Ordering::Release);
        }
        self.current.store(Arc::new(keys));
        self.replaced.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Checks a connection token (client protocol, section 12.1), when that is cheap: its signature
    /// is an HMAC, signatures are skipped, or it fails whatever its signature is: one that is expired, too. `None` when the
    /// signature has to be checked first, by [`Self::check_signature`] and away from the shard.
    ///
    /// # Errors
    /// [`TokenFault::Expired`] when only the time is wrong, else [`TokenFault::Invalid`]; a token
    /// with a `channel` is a subscription token in the wrong place, and invalid.
    pub fn connection(
        &self,
        token: &str,
        now: UnixSeconds,
    ) -> Option<Result<ConnectionClaims, TokenFault>> {
        self.current.load().verdict(token, now, Keys::connection_of)
    }

    /// Checks a subscription token (client protocol, section 12.2), as [`Self::connection`] does.
    ///
    /// # Errors
    /// As there; a token without a `channel` is invalid.
    pub fn subscription(
        &self,
        token: &str,
        now: UnixSeconds,
    ) -> Option<Result<SubscriptionClaims, TokenFault>> {
        self.current.load().verdict(token, now, Keys::subscription_of)
    }

    /// Checks a connection token whose signature is known to be good.
    ///
    /// # Errors
    /// As [`Self::connection`].
    pub fn connection_signed(
        &self,
        token: &str,
        now: UnixSeconds,
    ) -> Result<ConnectionClaims, TokenFault> {
        self.current.load().claims_of(&Parts::split(token)?, now, Keys::connection_of)
    }

    /// Checks a subscription token whose signature is known to be good.
    ///
    /// # Errors
    /// As [`Self::subscription`].
    pub fn subscription_signed(
        &self,
        token: &str,
        now: UnixSeconds,
    ) -> Result<SubscriptionClaims, TokenFault> {
        self.current.load().claims_of(&Parts::split(token)?, now, Keys::subscription_of)
    }

    /// Checks the signature of a token, with `aud` and `iss`, and nothing else: tens of
    /// microseconds, for a thread that nobody waits in.
    pub fn check_signature(&self, token: &str, now: UnixSeconds) -> Checked {
        self.current.load().checked(token, now).unwrap_or(Checked::Bad)
    }

    /// A number that changes whenever a key that was good may not be any more. A cache of good tokens
    /// reads it before it requests a check, and drops entries of another number.
    pub fn generation(&self) -> u64 {
        // Read first: keys that came later are newer than what it says, never older.
        let replaced = self.replaced.load(Ordering::Acquire);
        replaced << 32 | self.current.load().generation.load(Ordering::Acquire) & 0xffff_ffff
    }

    /// Whether there is a JWKS endpoint, and whether it is fetched over TLS.
    pub fn fetches_keys(&self) -> Option<bool> {
        self.current.load().endpoint.as_ref().map(Endpoint::is_secure)
    }

    /// Takes the key set that stands at `url`, a JWK Set of at most 512 keys, and says how many of
    /// them can be used. It replaces an older one.
    ///
    /// # Errors
    /// It is no key set; an older one stays.
    pub fn install_keys(&self, url: &str, jwks_json: &[u8]) -> Result<usize, KeyFault> {
        self.current.load().install_keys(url, jwks_json)
    }

    /// Forgets the key set of `url`.
    pub fn forget_keys(&self, url: &str) {
        self.current.load().forget_keys(url);
    }
}

impl Keys {
    fn new(options: &TokenOptions) -> Result<Self, KeyFault> {
        let mut faults = Vec::new();
        let prepared = options.prepare(&mut faults);
        if let Some(fault) = faults.into_iter().next() {
            return Err(fault);
        }
        let Prepared { public, endpoint, audience, issuer } = prepared;
        Ok(Self {
            hmac: Secret::new(&options.hmac_secret_key),
            hmac_previous: Secret::new(&options.hmac_previous_secret_key),
            previous_valid_until: options.hmac_previous_secret_key_valid_until,
            public,
            endpoint,
            sets: ArcSwap::default(),
            generation: AtomicU64::new(0),
            audience,
            issuer,
            user_id_claim: options.user_id_claim.clone(),
            skip_signature: options.skip_signature,
        })
    }

    fn install_keys(&self, url: &str, jwks_json: &[u8]) -> Result<usize, KeyFault> {
        let set = KeySet::parse(jwks_json)
            .map_err(|expected| KeyFault { option: "jwks_public_endpoint", expected })?;
        let set = Arc::new(set);
        let older = self.sets.rcu(|sets| {
            let mut sets = BTreeMap::clone(sets);
            sets.insert(url.to_owned(), Arc::clone(&set));
            sets
        });
        if older.get(url).is_some_and(|older| !set.has_all_of(older)) {
            self.generation.fetch_add(1, Ordering::Release);
        }
        Ok(set.len())
    }

    fn forget_keys(&self, url: &str) {
        let older = self.sets.rcu(|sets| {
            let mut sets = BTreeMap::clone(sets);
            sets.remove(url);
            sets
        });
        if older.contains_key(url) {
            self.generation.fetch_add(1, Ordering::Release);
        }
    }

    fn verdict<T>(
        &self,
        token: &str,
        now: UnixSeconds,
        kind: Kind<T>,
    ) -> Option<Result<T, TokenFault>> {
        let parts = match Parts::split(token) {
            Ok(parts) => parts,
            Err(fault) => return Some(Err(fault)),
        };
        let later = match self.signed_here(&parts, now) {
            Ok(later) => later,
            Err(fault) => return Some(Err(fault)),
        };
        match self.claims_of(&parts, now, kind) {
            Ok(_) if later => None,
            // An expired token grants nothing, whatever its signature: checking that would waste time.
            verdict => Some(verdict),
        }
    }

    /// Checks the signature if that is cheap; true when it isn't and has to be done.
    fn signed_here(&self, parts: &Parts<'_>, now: UnixSeconds) -> Result<bool, TokenFault> {
        if self.skip_signature {
            return Ok(false);
        }
        let header = parts.header()?;
        if header.algorithm.is_hmac() {
            self.signed_by_secret(parts, &header, now)?;
            return Ok(false);
        }
        match self.endpoint {
            Some(_) if header.kid.is_none() => {
                Err(TokenFault::Invalid("kid: missing, keys of a JWKS endpoint are chosen by it"))
            }
            None if !self.public.iter().any(|key| key.is_for(header.algorithm)) => {
                Err(TokenFault::Invalid("alg: no key for this algorithm is configured"))
            }
            _ => Ok(true),
        }
    }

    fn signed_by_secret(
        &self,
        parts: &Parts<'_>,
        header: &Header,
        now: UnixSeconds,
    ) -> Result<(), TokenFault> {
        let signature = parts.signature()?;
        let made_by = |secret: &Option<Secret>| {
            secret
                .as_ref()
                .is_some_and(|secret| secret.has_signed(header.algorithm, parts.signed, &signature))
        };
        if made_by(&self.hmac) {
            return Ok(());
        }
        let until = self.previous_valid_until;
        // The clock decides: the holder of the old secret chooses `iat`.
        if !made_by(&self.hmac_previous) {
            return Err(TokenFault::Invalid(match (&self.hmac, &self.hmac_previous) {
                (None, None) => "alg: no key for this algorithm is configured",
                _ => "signature: not made with the configured secret",
            }));
        }
        if until != 0 && now.0 > until {
            return Err(TokenFault::Invalid("signature: the previous secret is no longer valid"));
        }
        let payload = parts.payload()?;
        let issued_late = Claims::parse(&payload)?.issued_at().is_some_and(|iat| iat > until);
        match until != 0 && issued_late {
            true => Err(TokenFault::Invalid("iat: later than the previous secret was valid")),
            false => Ok(()),
        }
    }

    fn checked(&self, token: &str, now: UnixSeconds) -> Result<Checked, TokenFault> {
        let parts = Parts::split(token)?;
        let payload = parts.payload()?;
        let claims = Claims::parse(&payload)?;
        let good = Checked::Good { until: claims.expires_at() };
        if !self.signed_here(&parts, now)? {
            self.for_us(&claims)?;
            return Ok(good);
        }
        let Header { algorithm, kid } = parts.header()?;
        let signature = parts.signature()?;
        let made_by = |key: &PublicKey| key.has_signed(algorithm, parts.signed, &signature);
        let groups = self.for_us(&claims)?;
        let signed = match &self.endpoint {
            None => self.public.iter().any(made_by),
            Some(endpoint) => {
                let kid = kid.ok_or(TokenFault::Invalid("kid: missing"))?;
                let url = endpoint.url(&groups).ok_or(TokenFault::Invalid("iss or aud: no URL"))?;
                let sets = self.sets.load();
                let set = sets.get(&*url).filter(|set| set.of(&kid).next().is_some());
                let Some(set) = set else { return Ok(Checked::Unknown { url: url.into_owned() }) };
                set.of(&kid).any(made_by)
            }
        };
        Ok(if signed { good } else { Checked::Bad })
    }

    /// All checks but that of the signature.
    fn claims_of<T>(
        &self,
        parts: &Parts<'_>,
        now: UnixSeconds,
        kind: Kind<T>,
    ) -> Result<T, TokenFault> {
        let payload = parts.payload()?;
        let claims = Claims::parse(&payload)?;
        self.for_us(&claims)?;
        kind(self, &claims, now)
    }

    /// Whether `aud` and `iss` are what they have to be.
    fn for_us(&self, claims: &Claims<'_>) -> Result<Groups<'_>, TokenFault> {
        let mut groups = Groups::new();
        if !self.audience.fits(claims.audiences(), &mut groups) {
            return Err(TokenFault::Invalid("aud: missing, or not the configured audience"));
        }
        if !self.issuer.fits(claims.iss.as_deref().into_iter(), &mut groups) {
            return Err(TokenFault::Invalid("iss: missing, or not the configured issuer"));
        }
        Ok(groups)
    }

    fn connection_of(
        &self,
        claims: &Claims<'_>,
        now: UnixSeconds,
    ) -> Result<ConnectionClaims, TokenFault> {
        if claims.channel.as_deref().is_some_and(|channel| !channel.is_empty()) {
            return Err(TokenFault::Invalid("channel: a subscription token, no connection token"));
        }
        Ok(ConnectionClaims {
            user: claims.user(&self.user_id_claim)?,
            info: claims.info()?,
            meta: claims.meta()?,
            subs: claims.subs()?,
            // The last check: a fault of time implies that all other claims are good.
            expire_at: claims.in_time(now)?,
        })
    }

    fn subscription_of(
        &self,
        claims: &Claims<'_>,
        now: UnixSeconds,
    ) -> Result<SubscriptionClaims, TokenFault> {
        let channel: CompactString = claims.channel.as_deref().unwrap_or_default().into();
        if channel.is_empty() {
            return Err(TokenFault::Invalid("channel: missing, no subscription token"));
        }
        let SubOptions { info, data, overrides, .. } = claims.own_options()?;
        Ok(SubscriptionClaims {
            user: claims.user(&self.user_id_claim)?,
            channel,
            client: claims.client.as_deref().unwrap_or_default().into(),
            info,
            data,
            overrides,
            expire_at: claims.in_time(now)?,
        })
    }
}

/// The checks of the claims of one kind of token, the time last.
type Kind<T> = fn(&Keys, &Claims<'_>, UnixSeconds) -> Result<T, TokenFault>;

impl SubscriptionClaims {
    /// True when the subscription's own expiry is past, which is error 110.
    pub fn is_past(&self, now: UnixSeconds) -> bool {
        self.expire_at.is_some_and(|at| at <= now.0)
    }
}

/// `{"value": true}` as a flag.
fn flag<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    #[derive(Deserialize)]
    struct Value {
        value: bool,
    }
    Ok(Option::<Value>::deserialize(deserializer)?.map(|flag| flag.value))
}
