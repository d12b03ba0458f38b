use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::hmac;
use aws_lc_rs::signature::KeyPair;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::testing::{Pair, RSA, key_set, pem};
use super::*;

const NOW: UnixSeconds = UnixSeconds(1_700_000_000);
const PLAIN: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiI0MiJ9.\
                     79CVgMIG_JB921dVUeJDWNJubJojFodH3-XtC_1C408";
const GOLD: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.\
                    eyJzdWIiOiI0MiIsImNoYW5uZWwiOiIkZ29sZCJ9.\
                    81YXj8b_s_YPRjLD-miSj2TZW8MsdOeIDqCdikgZKbI";

fn keys(secret: &str) -> TokenKeys {
    keys_of(TokenOptions { hmac_secret_key: secret.into(), ..Default::default() })
}

fn keys_of(options: TokenOptions) -> TokenKeys {
    TokenKeys::new(&options).unwrap()
}

/// A verdict without its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Expired,
    Invalid,
}

impl From<TokenFault> for Fault {
    fn from(fault: TokenFault) -> Self {
        assert!(fault.flaw().contains(": ") || fault.flaw().starts_with("not "), "{fault:?}");
        match fault {
            TokenFault::Expired(_) => Self::Expired,
            TokenFault::Invalid(_) => Self::Invalid,
        }
    }
}

/// The verdicts as a shard comes to them that checks signatures itself.
impl TokenKeys {
    fn verify_connection(&self, token: &str, now: UnixSeconds) -> Result<ConnectionClaims, Fault> {
        let Some(verdict) = self.connection(token, now) else {
            return match self.check_signature(token, now) {
                Checked::Good { .. } => Ok(self.connection_signed(token, now)?),
                Checked::Bad | Checked::Unknown { .. } => Err(Fault::Invalid),
            };
        };
        Ok(verdict?)
    }

    fn verify_subscription(
        &self,
        token: &str,
        now: UnixSeconds,
    ) -> Result<SubscriptionClaims, Fault> {
        let Some(verdict) = self.subscription(token, now) else {
            return match self.check_signature(token, now) {
                Checked::Good { .. } => Ok(self.subscription_signed(token, now)?),
                Checked::Bad | Checked::Unknown { .. } => Err(Fault::Invalid),
            };
        };
        Ok(verdict?)
    }
}

fn token(claims: &Value) -> String {
    sign_hs256("secret", claims).unwrap()
}

fn with_header(header: &str, claims: &str, secret: &str) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
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
            meta: None,
            subs: vec![]
        }
    );
    let claims = keys("secret").verify_subscription(GOLD, NOW).unwrap();
    assert_eq!((claims.user.as_str(), claims.channel.as_str()), ("42", "$gold"));
    assert_eq!(Signer::new("secret").connection_token("42", None), PLAIN);
}

#[test]
fn each_kind_only_in_its_place() {
    let keys = keys("secret");
    assert_eq!(keys.verify_connection(GOLD, NOW), Err(Fault::Invalid));
    assert_eq!(keys.verify_subscription(PLAIN, NOW), Err(Fault::Invalid));
}

#[test]
fn tokens_of_other_signers_are_invalid() {
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
        ("info is no JSON", with_header(r#"{"alg":"HS256"}"#, r#"{"info":{}"#, "secret")),
        ("meta is no object", token(&json!({"meta": [1]}))),
        ("meta is a text", token(&json!({"meta": "{}"}))),
        ("channels are no texts", token(&json!({"channels": [1]}))),
        ("base64 in subs is none", token(&json!({"subs": {"a": {"b64data": "%"}}}))),
        ("a flag is none", token(&json!({"subs": {"a": {"override": {"presence": true}}}}))),
        ("kid is a number", with_header(r#"{"alg":"HS256","kid":1}"#, "{}", "secret")),
        ("four parts", format!("{PLAIN}.x")),
    ];
    for (name, token) in cases {
        let verdict = keys("secret").verify_connection(&token, NOW);
        assert_eq!(verdict, Err(Fault::Invalid), "{name}");
    }
    assert_eq!(keys("").verify_connection(PLAIN, NOW), Err(Fault::Invalid), "no key");
    let empty = with_header(r#"{"alg":"HS256"}"#, r#"{"sub":"42"}"#, "");
    assert_eq!(keys("").verify_connection(&empty, NOW), Err(Fault::Invalid), "empty key");
}

#[test]
fn a_fault_says_which_claim_it_is() {
    let keys = keys_of(TokenOptions {
        hmac_secret_key: "secret".into(),
        audience: "us".into(),
        issuer: "idp".into(),
        ..Default::default()
    });
    let with = |more: Value| {
        let mut claims = json!({"sub": "42", "aud": "us", "iss": "idp"});
        let more = more.as_object().unwrap().clone();
        claims.as_object_mut().unwrap().extend(more);
        token(&claims)
    };
    for (token, claim) in [
        (with(json!({"sub": 42})), "sub"),
        (with(json!({"exp": "soon"})), "exp"),
        (with(json!({"exp": 1})), "exp"),
        (with(json!({"nbf": NOW.0 + 60})), "nbf"),
        (with(json!({"nbf": []})), "nbf"),
        (with(json!({"aud": "others"})), "aud"),
        (with(json!({"aud": 1})), "aud"),
        (with(json!({"iss": "other"})), "iss"),
        (with(json!({"channel": "news"})), "channel"),
        (with(json!({"channel": 1})), "channel"),
        (with(json!({"expire_at": 1.5})), "expire_at"),
        (with(json!({"channels": "news"})), "channels"),
        (with(json!({"subs": []})), "subs"),
        (with(json!({"meta": 1})), "meta"),
        (with(json!({"b64info": "%"})), "b64info"),
        (sign_hs256("other", &json!({})).unwrap(), "signature"),
        (with_header(r#"{"alg":"none"}"#, "{}", "secret"), "alg"),
        (with_header(r#"{"alg":"RS256"}"#, "{}", "secret"), "alg"),
        (with_header(r#"{"alg":"HS256","crit":[]}"#, "{}", "secret"), "crit"),
        (with_header("{", "{}", "secret"), "header"),
        (with_header(r#"{"alg":"HS256"}"#, "[]", "secret"), "claims"),
    ] {
        let fault = keys.connection(&token, NOW).unwrap().unwrap_err();
        assert_eq!(fault.flaw().split_once(':').unwrap().0, claim, "{fault:?}");
    }
    let fault = keys.subscription(&with(json!({})), NOW).unwrap().unwrap_err();
    assert!(fault.flaw().starts_with("channel: missing"), "{fault:?}");
}

#[test]
fn time_table() {
    use Fault::{Expired, Invalid};
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
    let keys = keys_of(TokenOptions {
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
        keys_of(TokenOptions {
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
fn unsigned_tokens_need_skip_signature() {
    let keys = keys_of(TokenOptions { skip_signature: true, ..Default::default() });
    let forged = sign_hs256("whatever", &json!({"sub": "u"})).unwrap();
    assert_eq!(keys.verify_connection(&forged, NOW).unwrap().user, "u");
    let late = sign_hs256("whatever", &json!({"exp": 1})).unwrap();
    assert_eq!(keys.verify_connection(&late, NOW), Err(Fault::Expired));
}

#[test]
fn content_of_claims() {
    let claims = json!({
        "sub": "u", "channel": "news", "client": "c1", "info": {"a": 1},
        "b64data": STANDARD.encode([0, 10, 255]),
        "override": {"force_positioning": {"value": true}, "presence": {"value": false}}
    });
    let claims = keys("secret").verify_subscription(&token(&claims), NOW).unwrap();
    assert_eq!(claims.client, "c1");
    assert_eq!(claims.info.as_deref(), Some(&br#"{"a":1}"#[..]));
    assert_eq!(claims.data.as_deref(), Some(&[0, 10, 255][..]));
    assert_eq!(claims.overrides.force_positioning, Some(true));
    assert_eq!(claims.overrides.presence, Some(false));
    assert_eq!(claims.overrides.join_leave, None);

    let spread =
        with_header(r#"{"alg":"HS256"}"#, "{\"info\": {\"a\":\r\n1},\"meta\":{\n}}", "secret");
    let claims = keys("secret").verify_connection(&spread, NOW).unwrap();
    assert_eq!(claims.info.as_deref(), Some(&b"{\"a\":  1}"[..]));
    assert_eq!(claims.meta.as_deref(), Some(&b"{ }"[..]));

    let nothing = json!({
        "sub": null, "info": null, "b64info": null, "meta": null, "channels": null, "subs": null,
        "channel": null, "data": null, "override": null, "aud": null, "iss": null, "expire_at": null
    });
    let claims = keys("secret").verify_connection(&token(&nothing), NOW).unwrap();
    let same = keys("secret").verify_connection(&token(&json!({})), NOW).unwrap();
    assert_eq!(claims, same);
    assert_eq!(claims.info, None);
}

#[test]
fn server_side_subscriptions() {
    let plain = |name: &str| (name.into(), SubOptions::default());
    let full = SubOptions {
        info: Some(b"[1]"[..].into()),
        data: Some(b"\n\0"[..].into()),
        overrides: Overrides { join_leave: Some(true), ..Default::default() },
        ..SubOptions::default()
    };
    let options = json!({
        "info": [1], "b64data": STANDARD.encode("\n\0"),
        "override": {"join_leave": {"value": true}, "presence": null}
    });
    for (claims, expected) in [
        (json!({"channels": ["b", "a", "b"]}), vec![plain("a"), plain("b")]),
        (json!({"subs": {"b": null, "a": {}}}), vec![plain("a"), plain("b")]),
        (json!({"channels": [], "subs": {}}), vec![]),
        (json!({"channels": ["a"], "subs": {}}), vec![plain("a")]),
        // Channels that only the list names would be more than the token's `subs` grant.
        (json!({"channels": ["x", "c"], "subs": {"x": options}}), vec![("x".into(), full)]),
    ] {
        let verdict = keys("secret").verify_connection(&token(&claims), NOW).unwrap();
        assert_eq!(verdict.subs, expected, "{claims}");
    }
}

#[test]
fn where_the_user_is() {
    use Fault::Invalid;
    let claims = json!({
        "sub": "sub", "name": "ann", "number": 42, "real": -1.50, "flag": true, "none": null,
        "realm": {"user": {"id": "deep"}, "text": "x"}, "https://example.com/id": "url"
    });
    for (path, expected) in [
        ("", Ok("sub")),
        ("sub", Ok("sub")),
        ("name", Ok("ann")),
        ("number", Ok("42")),
        ("real", Ok("-1.5")),
        ("flag", Err(Invalid)),
        ("realm", Err(Invalid)),
        ("none", Ok("")),
        ("other", Ok("")),
        ("realm.user.id", Ok("deep")),
        ("realm.user.id.more", Ok("")),
        ("realm.user", Err(Invalid)),
        ("realm.text", Ok("x")),
        ("realm.", Ok("")),
        ("https://example.com/id", Ok("url")),
    ] {
        let keys = keys_of(TokenOptions {
            hmac_secret_key: "secret".into(),
            user_id_claim: path.into(),
            ..Default::default()
        });
        let verdict = keys.verify_connection(&token(&claims), NOW).map(|claims| claims.user);
        assert_eq!(verdict, expected.map(CompactString::from), "{path}");
    }
    // Two numbers that are one as a float.
    let keys = keys_of(TokenOptions {
        hmac_secret_key: "secret".into(),
        user_id_claim: "id".into(),
        ..Default::default()
    });
    let header = r#"{"alg":"HS256"}"#;
    let large = with_header(header, r#"{"id":123456789012345678901234567890}"#, "secret");
    let user = keys.verify_connection(&large, NOW).unwrap().user;
    assert_eq!(user, "123456789012345678901234567890");
}

#[test]
fn audience_and_issuer_by_expression() {
    let keys = keys_of(TokenOptions {
        hmac_secret_key: "secret".into(),
        audience_regex: "^edge-[0-9]+$".into(),
        issuer_regex: "app".into(),
        ..Default::default()
    });
    for (claims, accepted) in [
        (json!({"aud": "edge-1", "iss": "app"}), true),
        (json!({"aud": ["x", "edge-22"], "iss": "the app of ours"}), true),
        (json!({"aud": "edge-", "iss": "app"}), false),
        (json!({"aud": "edge-1 ", "iss": "app"}), false),
        (json!({"aud": "edge-1"}), false),
        (json!({"iss": "app"}), false),
        (json!({"aud": ["edge-1"], "iss": "ap"}), false),
    ] {
        let verdict = keys.verify_connection(&token(&claims), NOW);
        assert_eq!(verdict.is_ok(), accepted, "{claims}");
    }
}

/// One pair of each kind with the algorithms that it is for.
fn pairs() -> [(Pair, &'static [&'static str]); 5] {
    [
        (Pair::rsa(), &["RS256", "RS384", "RS512"]),
        (Pair::ec("P-256"), &["ES256"]),
        (Pair::ec("P-384"), &["ES384"]),
        (Pair::ec("P-521"), &["ES512"]),
        (Pair::ed(), &["EdDSA"]),
    ]
}

const ALL: [&str; 10] =
    ["HS256", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA", "PS256", "none"];

fn of_pem(pair: &Pair) -> TokenKeys {
    let (rsa, ecdsa) = match pair {
        Pair::Rsa(_) => (pair.pem(), String::new()),
        _ => (String::new(), pair.pem()),
    };
    keys_of(TokenOptions { rsa_public_key: rsa, ecdsa_public_key: ecdsa, ..Default::default() })
}

#[test]
fn public_keys() {
    for ((pair, algorithms), (other, _)) in pairs().into_iter().zip(pairs()).take(4) {
        let keys = of_pem(&pair);
        for alg in ALL {
            let header = json!({"alg": alg, "typ": "JWT", "kid": "any"});
            let good = pair.token(&header, &json!({"sub": "u", "exp": NOW.0 + 9}));
            let verdict = keys.verify_connection(&good, NOW);
            if !algorithms.contains(&alg) {
                assert_eq!(verdict, Err(Fault::Invalid), "{alg}");
                assert_eq!(keys.check_signature(&good, NOW), Checked::Bad, "{alg}");
                // Known without looking at the signature.
                assert!(keys.connection(&good, NOW).is_some(), "{alg}");
                continue;
            }
            assert_eq!(verdict.unwrap().user, "u", "{alg}");
            assert_eq!(keys.connection(&good, NOW), None, "{alg}");
            let until = Some(NOW.0 + 9);
            assert_eq!(keys.check_signature(&good, NOW), Checked::Good { until }, "{alg}");

            let by_other = other.token(&header, &json!({"sub": "u"}));
            assert_eq!(keys.connection(&by_other, NOW), None, "{alg}");
            assert_eq!(keys.check_signature(&by_other, NOW), Checked::Bad, "{alg}");
            let (signed, _) = good.rsplit_once('.').unwrap();
            let (_, signature) = by_other.rsplit_once('.').unwrap();
            for signature in ["", "AA", signature] {
                let token = format!("{signed}.{signature}");
                assert_eq!(keys.check_signature(&token, NOW), Checked::Bad, "{alg}");
            }

            // Late or wrong, whatever the signature is: nothing is left to be checked.
            let late = pair.token(&header, &json!({"exp": NOW.0}));
            assert!(
                matches!(keys.connection(&late, NOW), Some(Err(TokenFault::Expired(_)))),
                "{alg}"
            );
            assert_eq!(keys.verify_connection(&late, NOW), Err(Fault::Expired), "{alg}");
            let early = pair.token(&header, &json!({"nbf": NOW.0 + 1}));
            assert_eq!(keys.verify_connection(&early, NOW), Err(Fault::Expired), "{alg}");
            let misplaced = pair.token(&header, &json!({"channel": "c", "exp": 1}));
            assert!(matches!(keys.connection(&misplaced, NOW), Some(Err(_))), "{alg}");
            assert_eq!(keys.verify_connection(&misplaced, NOW), Err(Fault::Invalid), "{alg}");
            assert_eq!(keys.verify_subscription(&misplaced, NOW), Err(Fault::Expired), "{alg}");
        }
    }
}

/// RFC 8725 2.1: a public key is known to all, and must never be taken as a secret.
#[test]
fn a_public_key_is_no_secret() {
    for (pair, _) in pairs().into_iter().take(4) {
        let pem = pair.pem();
        let keys = of_pem(&pair);
        for secret in [pem.as_str(), pem.trim_end()] {
            let forged = sign_hs256(secret, &json!({"sub": "u"})).unwrap();
            assert_eq!(keys.verify_connection(&forged, NOW), Err(Fault::Invalid));
            assert_eq!(keys.check_signature(&forged, NOW), Checked::Bad);
        }
    }
}

#[test]
fn secrets_beside_public_keys() {
    let keys = keys_of(TokenOptions {
        hmac_secret_key: "secret".into(),
        rsa_public_key: RSA.pem(),
        ecdsa_public_key: Pair::ec("P-256").pem(),
        ..Default::default()
    });
    assert!(keys.verify_connection(PLAIN, NOW).is_ok());
    assert_eq!(keys.check_signature(PLAIN, NOW), Checked::Good { until: None });
    let token = RSA.token(&json!({"alg": "RS256"}), &json!({}));
    assert!(keys.verify_connection(&token, NOW).is_ok());
    assert_eq!(keys.fetches_keys(), None);
}

#[test]
fn forms_of_public_keys() {
    let Pair::Rsa(pair) = &*RSA else { unreachable!() };
    let token = RSA.token(&json!({"alg": "RS512"}), &json!({}));
    // The form of RFC 8017 A.1.1, without the algorithm around it.
    let bare = pem("RSA PUBLIC KEY", pair.public_key().as_ref());
    let keys = keys_of(TokenOptions { rsa_public_key: bare, ..Default::default() });
    assert!(keys.verify_connection(&token, NOW).is_ok());

    let private = pem("PRIVATE KEY", pair.as_der().unwrap().as_ref());
    let ecdsa = Pair::ec("P-256").pem();
    let set = |name: &'static str, text: &str| {
        let mut options = TokenOptions::default();
        let field = match name {
            "rsa_public_key" => &mut options.rsa_public_key,
            "ecdsa_public_key" => &mut options.ecdsa_public_key,
            "audience_regex" => &mut options.audience_regex,
            "issuer_regex" => &mut options.issuer_regex,
            _ => &mut options.jwks_public_endpoint,
        };
        *field = text.to_owned();
        options
    };
    for (name, text) in [
        ("rsa_public_key", "x"),
        ("rsa_public_key", &pem("PUBLIC KEY", b"x")),
        ("rsa_public_key", &private),
        ("rsa_public_key", &ecdsa),
        ("ecdsa_public_key", &RSA.pem()),
        ("ecdsa_public_key", &Pair::ed().pem()),
        ("audience_regex", "("),
        ("issuer_regex", "["),
        ("jwks_public_endpoint", "keys"),
        ("jwks_public_endpoint", "http://x/{{none}}"),
    ] {
        let fault = TokenKeys::new(&set(name, text)).unwrap_err();
        assert_eq!(fault.option, name, "{text}");
        assert!(!fault.to_string().contains("PRIVATE"), "{fault}");
    }
    let all = TokenOptions { rsa_public_key: "x".into(), ..set("issuer_regex", "(") };
    let all = TokenOptions { audience: "a".into(), audience_regex: "a".into(), ..all };
    let names: Vec<_> = all.faults().iter().map(|fault| fault.option).collect();
    assert_eq!(names, ["rsa_public_key", "audience_regex", "issuer_regex"]);
}

const URL: &str = "https://idp.example/keys";

fn of_jwks() -> TokenKeys {
    keys_of(TokenOptions {
        hmac_secret_key: "secret".into(),
        jwks_public_endpoint: URL.into(),
        ..Default::default()
    })
}

#[test]
fn key_sets() {
    let pairs = pairs();
    let kids = ["rsa", "p256", "p384", "p521", "ed"];
    let keys = of_jwks();
    assert_eq!(keys.fetches_keys(), Some(true));
    let token = |at: usize, alg: &str, kid: &str| {
        pairs[at].0.token(&json!({"alg": alg, "kid": kid}), &json!({"sub": "u"}))
    };
    let unknown = Checked::Unknown { url: URL.into() };
    assert_eq!(keys.check_signature(&token(0, "RS256", "rsa"), NOW), unknown);

    let set: Vec<Value> = pairs.iter().zip(kids).map(|((pair, _), kid)| pair.jwk(kid)).collect();
    assert_eq!(keys.install_keys(URL, key_set(&set).as_bytes()), Ok(7));
    for (at, (_, algorithms)) in pairs.iter().enumerate() {
        for alg in ALL {
            let good = token(at, alg, kids[at]);
            let expected = algorithms.contains(&alg);
            assert_eq!(keys.verify_connection(&good, NOW).is_ok(), expected, "{alg} {at}");
            if expected {
                let other = token(at, alg, kids[(at + 1) % 5]);
                assert_eq!(keys.check_signature(&other, NOW), Checked::Bad, "{alg}");
                let new = token(at, alg, "new");
                assert_eq!(keys.check_signature(&new, NOW), unknown, "{alg}");
            }
        }
    }
    // Without a kid, and with a secret.
    let (pair, _) = &pairs[1];
    let nameless = pair.token(&json!({"alg": "ES256"}), &json!({}));
    assert!(matches!(keys.connection(&nameless, NOW), Some(Err(_))));
    assert_eq!(keys.verify_connection(&nameless, NOW), Err(Fault::Invalid));
    assert_eq!(keys.check_signature(&nameless, NOW), Checked::Bad);
    assert!(keys.verify_connection(PLAIN, NOW).is_ok());
}

#[test]
fn which_keys_of_a_set_are_used() {
    let (one, two) = (Pair::ec("P-256"), Pair::ec("P-256"));
    let with = |pair: &Pair, fields: Value| {
        let mut jwk = pair.jwk("k");
        jwk.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        jwk
    };
    let token = one.token(&json!({"alg": "ES256", "kid": "k"}), &json!({}));
    let good = Checked::Good { until: None };
    let unknown = Checked::Unknown { url: URL.into() };
    for (set, usable, expected) in [
        (vec![one.jwk("k")], 1, &good),
        (vec![two.jwk("k")], 1, &Checked::Bad),
        (vec![two.jwk("k"), one.jwk("k")], 2, &good),
        (vec![RSA.jwk("k"), one.jwk("k")], 4, &good),
        (vec![with(&one, json!({"use": "sig", "alg": "ES256", "key_ops": ["verify"]}))], 1, &good),
        (vec![with(&one, json!({"use": "enc"}))], 0, &unknown),
        (vec![with(&one, json!({"key_ops": ["sign"]}))], 0, &unknown),
        (vec![with(&one, json!({"alg": "ES384"}))], 0, &unknown),
        (vec![with(&one, json!({"crv": "P-384"}))], 0, &unknown),
        (vec![with(&one, json!({"crv": "secp256k1"}))], 0, &unknown),
        (vec![with(&one, json!({"x": "AA"}))], 0, &unknown),
        (vec![with(&one, json!({"y": "?"}))], 0, &unknown),
        (vec![with(&one, json!({"kid": null}))], 0, &unknown),
        (vec![json!({"kty": "oct", "kid": "k", "k": "c2VjcmV0"}), one.jwk("k")], 1, &good),
        (vec![json!("x"), json!(null), json!({"kty": 1}), one.jwk("k")], 1, &good),
        (vec![], 0, &unknown),
    ] {
        let keys = of_jwks();
        let text = key_set(&set);
        assert_eq!(keys.install_keys(URL, text.as_bytes()), Ok(usable), "{text}");
        assert_eq!(keys.check_signature(&token, NOW), *expected, "{text}");
    }
    // A symmetric key of a set is no secret of ours.
    let keys = of_jwks();
    let oct = json!({"kty": "oct", "kid": "k", "k": URL_SAFE_NO_PAD.encode("other")});
    keys.install_keys(URL, key_set(&[oct]).as_bytes()).unwrap();
    let forged = with_header(r#"{"alg":"HS256","kid":"k"}"#, "{}", "other");
    assert_eq!(keys.verify_connection(&forged, NOW), Err(Fault::Invalid));
    // The names of EdDSA.
    let ed = Pair::ed();
    let token = ed.token(&json!({"alg": "EdDSA", "kid": "k"}), &json!({}));
    for alg in ["EdDSA", "Ed25519"] {
        let set = key_set(&[with(&ed, json!({"alg": alg}))]);
        assert_eq!(keys.install_keys(URL, set.as_bytes()), Ok(1));
        assert_eq!(keys.check_signature(&token, NOW), good, "{alg}");
    }
}

#[test]
fn malformed_key_sets_are_refused() {
    let keys = of_jwks();
    let pair = Pair::ed();
    keys.install_keys(URL, key_set(&[pair.jwk("k")]).as_bytes()).unwrap();
    let many = key_set(&vec![json!({}); 513]);
    for text in ["", "{}", "[]", "{\"keys\":{}}", "{\"keys\":[}", "<html>", &many] {
        let fault = keys.install_keys(URL, text.as_bytes()).unwrap_err();
        assert_eq!(fault.option, "jwks_public_endpoint", "{text}");
    }
    assert!(keys.install_keys(URL, &[0xff]).is_err());
    // The older one stays.
    let token = pair.token(&json!({"alg": "EdDSA", "kid": "k"}), &json!({}));
    assert_eq!(keys.check_signature(&token, NOW), Checked::Good { until: None });
    assert_eq!(keys.generation(), 0);
}

#[test]
fn a_generation_ends_with_any_key() {
    let keys = of_jwks();
    let (one, two) = (Pair::ed().jwk("1"), Pair::ec("P-256").jwk("2"));
    let renamed = {
        let mut jwk = one.clone();
        jwk["kid"] = json!("3");
        jwk
    };
    let both = [two, one];
    let [just_two, just_one] = [&both[..1], &both[1..]];
    let steps: [(&str, &[Value], u64); 8] = [
        (URL, just_one, 0),
        (URL, just_one, 0),
        (URL, &both, 0),
        ("https://other", just_two, 0),
        (URL, just_one, 1),
        (URL, &[renamed], 2),
        (URL, &[], 3),
        (URL, just_one, 3),
    ];
    for (at, (url, set, expected)) in steps.into_iter().enumerate() {
        keys.install_keys(url, key_set(set).as_bytes()).unwrap();
        assert_eq!(keys.generation(), expected, "step {at}");
    }
    keys.forget_keys("https://other");
    assert_eq!(keys.generation(), 4);
    keys.forget_keys("https://other");
    assert_eq!(keys.generation(), 4);
}

#[test]
fn key_sets_by_issuer() {
    let keys = keys_of(TokenOptions {
        jwks_public_endpoint: "https://idp/{{realm}}/keys".into(),
        issuer_regex: "^https://idp/(?P<realm>[^/]+)$".into(),
        ..Default::default()
    });
    let pair = Pair::ed();
    let header = json!({"alg": "EdDSA", "kid": "k"});
    let token = |realm: &str| {
        pair.token(&header, &json!({"sub": "u", "iss": format!("https://idp/{realm}")}))
    };
    let url = |realm: &str| format!("https://idp/{realm}/keys");
    assert_eq!(keys.check_signature(&token("a"), NOW), Checked::Unknown { url: url("a") });
    keys.install_keys(&url("a"), key_set(&[pair.jwk("k")]).as_bytes()).unwrap();
    assert!(keys.verify_connection(&token("a"), NOW).is_ok());
    // The keys of one realm are nothing in another one.
    assert_eq!(keys.check_signature(&token("b"), NOW), Checked::Unknown { url: url("b") });
    for realm in ["", "..", "a b", "a%2fb", "a?", "@x"] {
        assert_eq!(keys.check_signature(&token(realm), NOW), Checked::Bad, "{realm}");
    }
}

proptest! {
    #[test]
    fn no_text_is_a_token(text in ".*", parts in prop::array::uniform3(any::<Vec<u8>>())) {
        let keys = every_kind();
        let made = parts.map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
        for token in [text, made] {
            prop_assert!(keys.verify_connection(&token, NOW).is_err());
            prop_assert!(keys.verify_subscription(&token, NOW).is_err());
            prop_assert_eq!(keys.check_signature(&token, NOW), Checked::Bad);
            prop_assert!(keys.connection_signed(&token, NOW).is_err());
        }
    }

    #[test]
    fn no_changed_token_is_good(
        which in 0usize..3,
        at in any::<prop::sample::Index>(),
        byte in prop::sample::select(b"AZaz09-_.={\"".as_slice()),
    ) {
        let keys = every_kind();
        let mut token = SIGNED[which].clone().into_bytes();
        let at = at.index(token.len());
        prop_assume!(token[at] != byte);
        token[at] = byte;
        let token = String::from_utf8(token).unwrap();
        prop_assert!(keys.verify_connection(&token, NOW).is_err(), "{}", token);
    }

    #[test]
    fn no_claims_panic(text in "\\{(\"(sub|exp|aud|info|subs|a)\":([0-9]{0,3}|\"x\"|\\[|\\{|\\}|null),?)*\\}") {
        let token = with_header(r#"{"alg":"HS256"}"#, &text, "secret");
        let verdict = keys("secret").verify_connection(&token, NOW);
        if serde_json::from_str::<Value>(&text).is_err() {
            prop_assert_eq!(verdict, Err(Fault::Invalid));
        }
    }

    #[test]
    fn no_key_set_panics(text in ".*") {
        let keys = of_jwks();
        let _ = keys.install_keys(URL, text.as_bytes());
        prop_assert!(keys.verify_connection(PLAIN, NOW).is_ok());
    }
}

static EC: std::sync::LazyLock<Pair> = std::sync::LazyLock::new(|| Pair::ec("P-256"));

static SIGNED: std::sync::LazyLock<[String; 3]> = std::sync::LazyLock::new(|| {
    let claims = json!({"sub": "42", "exp": NOW.0 + 60});
    [
        token(&claims),
        RSA.token(&json!({"alg": "RS256"}), &claims),
        EC.token(&json!({"alg": "ES256"}), &claims),
    ]
});

/// All kinds of keys at once, those that made [`SIGNED`].
fn every_kind() -> TokenKeys {
    let keys = keys_of(TokenOptions {
        hmac_secret_key: "secret".into(),
        rsa_public_key: RSA.pem(),
        ecdsa_public_key: EC.pem(),
        ..Default::default()
    });
    for token in SIGNED.iter() {
        assert!(keys.verify_connection(token, NOW).is_ok());
    }
    keys
}

#[test]
fn debug_shows_no_secret() {
    let options = TokenOptions { hmac_secret_key: "hush".into(), ..Default::default() };
    assert!(!format!("{options:?} {:?}", TokenKeys::new(&options)).contains("hush"));
}
