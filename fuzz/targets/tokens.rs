//! Tokens: however the claims are, what the two ways of checking say agrees, no token is good for
//! both kinds, and a signature decides and nothing else of the token does.
//!
//! Input: a line each of header (JSON), claims (JSON), signature (base64) and key set (JSON). All of
//! it is taken as one token, too.
#![no_main]

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use roost::base::time::UnixSeconds;
use roost::edge::jwt::{Checked, Signer, TokenFault, TokenKeys, TokenOptions};
use serde_json::value::RawValue;

const NOW: UnixSeconds = UnixSeconds(1_700_000_000);
const SECRET: &str = "secret";

fn keys(options: TokenOptions) -> TokenKeys {
    TokenKeys::new(&options).expect("keys of constants")
}

static SIGNER: LazyLock<Signer> = LazyLock::new(|| Signer::new(SECRET));

/// A secret, an RSA and an EC key.
static KEYS: LazyLock<TokenKeys> = LazyLock::new(|| {
    keys(TokenOptions {
        hmac_secret_key: SECRET.to_owned(),
        hmac_previous_secret_key: "older".to_owned(),
        hmac_previous_secret_key_valid_until: NOW.0 + 1,
        rsa_public_key: include_str!("../keys/rsa.pem").to_owned(),
        ecdsa_public_key: include_str!("../keys/ec.pem").to_owned(),
        ..TokenOptions::default()
    })
});

/// Any signature will do.
static OPEN: LazyLock<TokenKeys> =
    LazyLock::new(|| keys(TokenOptions { skip_signature: true, ..TokenOptions::default() }));

/// A key set whose address follows from the token.
static FETCHED: LazyLock<TokenKeys> = LazyLock::new(|| {
    keys(TokenOptions {
        jwks_public_endpoint: "https://{{tenant}}.example/{{app}}".to_owned(),
        audience_regex: "^app-(?P<app>.+)$".to_owned(),
        issuer_regex: "^(?P<tenant>[a-z]+)$".to_owned(),
        user_id_claim: "user.id".to_owned(),
        ..TokenOptions::default()
    })
});

fn check(keys: &TokenKeys, token: &str) {
    let connection = keys.connection(token, NOW);
    let subscription = keys.subscription(token, NOW);
    let signed = keys.connection_signed(token, NOW);
    assert!(signed.is_err() || keys.subscription_signed(token, NOW).is_err());
    if let Some(verdict @ (Ok(_) | Err(TokenFault::Expired(_)))) = &connection {
        assert_eq!(verdict, &signed);
    }
    // An expired token may be refused before its signature is looked at.
    if let Some(Ok(_)) = &connection {
        assert!(matches!(keys.check_signature(token, NOW), Checked::Good { .. }));
    }
    if let Some(verdict @ (Ok(_) | Err(TokenFault::Expired(_)))) = &subscription {
        assert_eq!(verdict, &keys.subscription_signed(token, NOW));
    }
    if connection.is_none() {
        assert!(!matches!(signed, Err(TokenFault::Invalid(_))));
    }
}

/// A token of these claims is what it is without any signature, and nothing with a wrong one.
fn check_signed(claims: &RawValue) {
    let Ok(token) = SIGNER.sign(&claims) else { return };
    assert_eq!(KEYS.connection(&token, NOW), OPEN.connection(&token, NOW));
    assert_eq!(KEYS.subscription(&token, NOW), OPEN.subscription(&token, NOW));
    let Some((signed, signature)) = token.rsplit_once('.') else { return };
    let other = if signature.starts_with('A') { "B" } else { "A" };
    let forged = format!("{signed}.{other}{}", &signature[1..]);
    assert!(matches!(KEYS.connection(&forged, NOW), Some(Err(TokenFault::Invalid(_)))));
    assert_eq!(KEYS.check_signature(&forged, NOW), Checked::Bad);
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut lines = text.splitn(4, '\n');
    let mut line = || lines.next().unwrap_or_default();
    let (header, claims, signature, key_set) = (line(), line(), line(), line());
    let part = |json: &str| URL_SAFE_NO_PAD.encode(json);
    let token = format!("{}.{}.{signature}", part(header), part(claims));
    for token in [text, &token] {
        for keys in [&*KEYS, &*OPEN, &*FETCHED] {
            check(keys, token);
        }
    }
    if let Ok(claims) = serde_json::from_str(claims) {
        check_signed(claims);
    }
    if let Checked::Unknown { url } = FETCHED.check_signature(&token, NOW) {
        if FETCHED.install_keys(&url, key_set.as_bytes()).is_ok() {
            FETCHED.check_signature(&token, NOW);
        }
        FETCHED.forget_keys(&url);
    }
});
