//! Algorithms, and the keys that say what a token was signed by.
//!
//! A key is prepared once, and for one algorithm: an RSA key stands here once for each of its three.
//! So no header can make a key be used for what it isn't, and an RSA key's text is never a secret.

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::hmac;
use aws_lc_rs::rsa::{PublicEncryptingKey, PublicKeyComponents};
use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use serde::Deserialize;
use serde_json::value::RawValue;

/// Keys of one key set at most; more is no key set.
pub(super) const SET_KEYS_MAX: usize = 512;

/// Bits of an RSA key.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Signature algorithms of tokens (RFC 7518 3.1, RFC 8037 3.1); `none` is not among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Rs384,
    Rs512,
    Es256,
    Es384,
    Es512,
    EdDsa,
}

use Algorithm::*;

/// The names as they stand in headers.
const NAMES: [(&str, Algorithm); 10] = [
    ("HS256", Hs256),
    ("HS384", Hs384),
    ("HS512", Hs512),
    ("RS256", Rs256),
    ("RS384", Rs384),
    ("RS512", Rs512),
    ("ES256", Es256),
    ("ES384", Es384),
    ("ES512", Es512),
    ("EdDSA", EdDsa),
];

const RSA: [(Algorithm, &signature::RsaParameters); 3] = [
    (Rs256, &signature::RSA_PKCS1_2048_8192_SHA256),
    (Rs384, &signature::RSA_PKCS1_2048_8192_SHA384),
    (Rs512, &signature::RSA_PKCS1_2048_8192_SHA512),
];

/// Curves, each with its one algorithm (RFC 7518 3.4).
const CURVES: [(&str, Algorithm, &dyn VerificationAlgorithm); 3] = [
    ("P-256", Es256, &signature::ECDSA_P256_SHA256_FIXED),
    ("P-384", Es384, &signature::ECDSA_P384_SHA384_FIXED),
    ("P-521", Es512, &signature::ECDSA_P521_SHA512_FIXED),
];

impl Algorithm {
    /// The algorithm of a header's `alg`.
    pub(super) fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, algorithm)| *algorithm)
    }

    /// True when the key that verifies a signature can also make one.
    pub(super) fn is_hmac(self) -> bool {
        matches!(self, Hs256 | Hs384 | Hs512)
    }
}

/// A secret, prepared for the three HMAC algorithms.
#[derive(Debug)]
pub(super) struct Secret([(Algorithm, hmac::Key); 3]);

impl Secret {
    /// `None` for no secret: an empty key would sign for everybody.
    pub(super) fn new(secret: &str) -> Option<Self> {
        let key = |algorithm| hmac::Key::new(algorithm, secret.as_bytes());
        (!secret.is_empty()).then(|| {
            Self([
                (Hs256, key(hmac::HMAC_SHA256)),
                (Hs384, key(hmac::HMAC_SHA384)),
                (Hs512, key(hmac::HMAC_SHA512)),
            ])
        })
    }

    /// Whether this secret made the signature. Takes the same time for all wrong ones.
    pub(super) fn has_signed(&self, algorithm: Algorithm, text: &str, signature: &[u8]) -> bool {
        self.0
            .iter()
            .find(|(own, _)| *own == algorithm)
            .is_some_and(|(_, key)| hmac::verify(key, text.as_bytes(), signature).is_ok())
    }
}

/// A public key, for one algorithm.
#[derive(Debug)]
pub(super) struct PublicKey {
    algorithm: Algorithm,
    key: ParsedPublicKey,
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.algorithm == other.algorithm && self.key.as_ref() == other.key.as_ref()
    }
}

impl PublicKey {
    /// The RSA key of a PEM text, once for each algorithm. An error says what was expected.
    pub(super) fn of_rsa_pem(pem: &str) -> Result<Vec<Self>, String> {
        let expected = || "an RSA public key of 2048 to 8192 bits as PEM".to_owned();
        let key = DecodingKey::from_rsa_pem(pem.as_bytes()).map_err(|_| expected())?;
        let der = key.try_get_as_bytes().map_err(|_| expected())?;
        Self::of_rsa(|parameters| ParsedPublicKey::new(parameters, der).ok()).ok_or_else(expected)
    }

    /// The key of a PEM text on one of the three curves. An error says what was expected.
    pub(super) fn of_ecdsa_pem(pem: &str) -> Result<Self, String> {
        let expected = || "a public key on P-256, P-384 or P-521 as PEM".to_owned();
        let key = DecodingKey::from_ec_pem(pem.as_bytes()).map_err(|_| expected())?;
        let point = key.try_get_as_bytes().map_err(|_| expected())?;
        // Points of the three curves have different lengths: it is on one of them at most.
        CURVES
            .iter()
            .find_map(|(_, algorithm, parameters)| {
                let key = ParsedPublicKey::new(*parameters, point).ok()?;
                Some(Self { algorithm: *algorithm, key })
            })
            .ok_or_else(expected)
    }

    /// Whether this key is for that algorithm.
    pub(super) fn is_for(&self, algorithm: Algorithm) -> bool {
        self.algorithm == algorithm
    }

    /// Whether this key made the signature: tens of microseconds.
    pub(super) fn has_signed(&self, algorithm: Algorithm, text: &str, signature: &[u8]) -> bool {
        self.algorithm == algorithm && self.key.verify_sig(text.as_bytes(), signature).is_ok()
    }

    fn of_rsa(
        parse: impl Fn(&'static signature::RsaParameters) -> Option<ParsedPublicKey>,
    ) -> Option<Vec<Self>> {
        let mut keys = Vec::with_capacity(RSA.len());
        for (algorithm, parameters) in RSA {
            let key = parse(parameters)?;
            // Checked here, since the library does it as late as at a signature.
            let der = key.as_der().ok()?;
            let bits = PublicEncryptingKey::from_der(der.as_ref()).ok()?.key_size_bits();
            if !RSA_BITS.contains(&bits) {
                return None;
            }
            keys.push(Self { algorithm, key });
        }
        Some(keys)
    }
}

/// The keys of one JWKS endpoint.
#[derive(Debug, Default)]
pub(super) struct KeySet {
    /// With their `kid`.
    keys: Vec<(String, PublicKey)>,
}

/// A key as it stands in a set (RFC 7517 4, RFC 7518 6, RFC 8037 2).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    used_for: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Reads a JWK Set (RFC 7517 5). Keys without a `kid`, for other ends, of other kinds and with
    /// content that makes no key are skipped, as section 5 there requires.
    ///
    /// # Errors
    /// The expected form.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Set<'a> {
            #[serde(borrow)]
            keys: Vec<&'a RawValue>,
        }
        let set: Set<'_> = serde_json::from_slice(json)
            .map_err(|fault| format!("a JSON object with a list of keys: {fault}"))?;
        if set.keys.len() > SET_KEYS_MAX {
            return Err(format!("at most {SET_KEYS_MAX} keys, not {}", set.keys.len()));
        }
        let mut keys = Vec::new();
        for text in set.keys {
            let Ok(jwk) = serde_json::from_str::<Jwk>(text.get()) else { continue };
            let Some(kid) = jwk.kid.clone() else { continue };
            keys.extend(jwk.keys().into_iter().map(|key| (kid.clone(), key)));
        }
        Ok(Self { keys })
    }

    /// The keys with this `kid`.
    pub(super) fn of<'a>(&'a self, kid: &'a str) -> impl Iterator<Item = &'a PublicKey> {
        self.keys.iter().filter(move |(own, _)| own == kid).map(|(_, key)| key)
    }

    /// True when no key of `older` has gone.
    pub(super) fn has_all_of(&self, older: &Self) -> bool {
        older.keys.iter().all(|key| self.keys.contains(key))
    }

    /// How many keys there are.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }
}

impl Jwk {
    /// Its use here, if any.
    fn keys(&self) -> Vec<PublicKey> {
        let signs = self.used_for.as_deref().is_none_or(|used_for| used_for == "sig");
        let verifies = self.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        if !signs || !verifies {
            return Vec::new();
        }
        let mut keys = self.all().unwrap_or_default();
        if let Some(alg) = &self.alg {
            // RFC 9864 2.2 names EdDSA by its curve.
            let name = if alg == "Ed25519" { "EdDSA" } else { alg };
            keys.retain(|key| Algorithm::named(name) == Some(key.algorithm));
        }
        keys
    }

    fn all(&self) -> Option<Vec<PublicKey>> {
        let bytes = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_deref()?).ok();
        match self.kty.as_str() {
            "RSA" => {
                let components = PublicKeyComponents { n: bytes(&self.n)?, e: bytes(&self.e)? };
                PublicKey::of_rsa(|parameters| components.to_parsed_public_key(parameters).ok())
            }
            "EC" => {
                let curve = self.crv.as_deref()?;
                let (_, algorithm, parameters) =
                    CURVES.into_iter().find(|(name, ..)| *name == curve)?;
                // SEC 1 2.3.3: 4 stands before an uncompressed point.
                let (x, y) = (bytes(&self.x)?, bytes(&self.y)?);
                let point = [&[4], &x[..], &y[..]].concat();
                let key = ParsedPublicKey::new(parameters, point).ok()?;
                Some(vec![PublicKey { algorithm, key }])
            }
            "OKP" if self.crv.as_deref() == Some("Ed25519") => {
                let key = ParsedPublicKey::new(&signature::ED25519, bytes(&self.x)?).ok()?;
                Some(vec![PublicKey { algorithm: EdDsa, key }])
            }
            _ => None,
        }
    }
}
