//! A JWT for each connection, signed when it connects and not kept.

use jsonwebtoken::{EncodingKey, Header};
use serde::Serialize;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Signs tokens with HS256.
pub(crate) struct Signer {
    header: Header,
    key: EncodingKey,
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<u64>,
}

impl Signer {
    /// A signer with the server's HMAC key.
    pub(crate) fn new(secret: &str) -> Self {
        Self { header: Header::default(), key: EncodingKey::from_secret(secret.as_bytes()) }
    }

    /// A token for `user`, good for `ttl`, or without an end.
    ///
    /// # Errors
    /// The fault of the signing library, as text; no input can cause it.
    pub(crate) fn sign(&self, user: &str, ttl: Option<Duration>) -> Result<String, String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let exp = ttl.map(|ttl| (now + ttl).as_secs());
        jsonwebtoken::encode(&self.header, &Claims { sub: user, exp }, &self.key)
            .map_err(|error| format!("signing a token: {error}"))
    }
}

/// The user id of connection `global`: 16 bytes, like user-00000000042.
pub(crate) fn user_id(global: u32) -> String {
    format!("user-{global:011}")
}

/// The user id of a connection that publishes: 16 bytes as well, for the first ten.
pub(crate) fn publisher_id(number: u32) -> String {
    format!("user-publisher-{number}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{Algorithm, DecodingKey, Validation};

    #[test]
    fn user_ids_have_sixteen_bytes() {
        assert_eq!(user_id(42), "user-00000000042");
        assert_eq!(user_id(u32::MAX).len(), 16);
        assert_eq!(publisher_id(0).len(), 16);
    }

    #[test]
    fn a_token_names_its_user_and_is_good_for_the_key() {
        let token = Signer::new("secret").sign(&user_id(42), None).unwrap();
        let mut rules = Validation::new(Algorithm::HS256);
        rules.required_spec_claims.clear();
        let decode = |secret: &[u8]| {
            let key = DecodingKey::from_secret(secret);
            jsonwebtoken::decode::<serde_json::Value>(&token, &key, &rules)
        };
        let claims = decode(b"secret").unwrap().claims;
        assert_eq!(claims, serde_json::json!({ "sub": "user-00000000042" }));
        assert!(decode(b"another").is_err());
    }
}
