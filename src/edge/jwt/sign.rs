//! Makes tokens: for `roost token`, the load client and tests.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;

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
