//! `roost token`: a JWT to paste into a client.

use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::flags::{Object, TokenArgs};
use super::{EXIT_USAGE, refuse, say, warn};
use crate::config::{self, Config, DEV_SECRET, Sources};
use crate::edge::jwt::{TokenOptions, sign_hs256};

pub(super) fn run(arguments: &TokenArgs, environment: Vec<(String, String)>) -> ExitCode {
    match make(arguments, environment) {
        Ok(token) => {
            say(&format!("{token}\n"));
            ExitCode::SUCCESS
        }
        Err(exit) => exit,
    }
}

/// A token by the key of a configuration; notes and faults are printed.
///
/// # Errors
/// The exit code.
pub(super) fn make(
    arguments: &TokenArgs,
    environment: Vec<(String, String)>,
) -> Result<String, ExitCode> {
    let sources = Sources { file: arguments.config.clone(), environment, ..Default::default() };
    let loaded = config::load(&sources).map_err(|fault| refuse(&fault))?;
    warn(&loaded.warnings);
    // A wall clock before 1970 would make a token that expired; nothing worse.
    #[expect(clippy::disallowed_methods, reason = "a command is run at the time that it is run")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // Somebody who names a file means the key in it.
    let named = arguments.config.is_some() || loaded.origin.is_some();
    let made = token(arguments, &loaded.config, named, now);
    let (token, notes) = made.map_err(|problem| {
        let origin = loaded.origin.as_deref().map_or_else(String::new, shown);
        eprintln!("error: {origin}{problem}");
        ExitCode::from(EXIT_USAGE)
    })?;
    for note in notes {
        eprintln!("note: {note}");
    }
    Ok(token)
}

fn shown(path: &Path) -> String {
    format!("{}: ", path.display())
}

/// The token, and what is to be said about it. Without a key and without a file it is one for the
/// development node.
fn token(
    arguments: &TokenArgs,
    config: &Config,
    named: bool,
    now: u64,
) -> Result<(String, Vec<String>), String> {
    let (section, options) = match (&arguments.channel, &config.tokens.subscription) {
        (Some(_), Some(options)) => ("client.subscription_token", options),
        _ => ("client.token", &config.tokens.connection),
    };
    let mut notes = Vec::new();
    let secret = match options.hmac_secret_key.as_str() {
        "" if named => {
            return Err(format!("{section}.hmac_secret_key is not set: expected a secret"));
        }
        "" => {
            notes.push(
                "no key is configured: this token is good for the development node only".into(),
            );
            DEV_SECRET
        }
        secret => secret,
    };
    let claims = claims(arguments, options, now);
    for (claim, option, expression) in [
        ("aud", "audience_regex", &options.audience_regex),
        ("iss", "issuer_regex", &options.issuer_regex),
    ] {
        if !expression.is_empty() && !claims.contains_key(claim) {
            notes.push(format!("{section}.{option} is set: without --{claim} it doesn't match"));
        }
    }
    let token = sign_hs256(secret, &claims).map_err(|fault| fault.to_string())?;
    Ok((token, notes))
}

/// The claims that the client protocol knows (section 12), and whatever else was given.
fn claims(arguments: &TokenArgs, options: &TokenOptions, now: u64) -> Object {
    let TokenArgs { user, channel, client, ttl, expire_at, info, data, .. } = arguments;
    let mut claims = Object::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            claims.insert(name.into(), value);
        }
    };
    let text = |text: &Option<String>| text.as_deref().map(Value::from);
    let object = |object: &Option<Object>| object.clone().map(Value::Object);
    let configured = |text: &str| (!text.is_empty()).then(|| Value::from(text));
    let some = |texts: &[String]| (!texts.is_empty()).then(|| json!(texts));
    put("sub", Some(user.as_str().into()));
    put("iat", Some(now.into()));
    put("exp", (!ttl.is_zero()).then(|| now.saturating_add(ttl.as_secs().max(1)).into()));
    put("expire_at", expire_at.map(Value::from));
    put("channel", text(channel));
    put("client", text(client));
    put("info", info.clone());
    put("data", data.clone());
    put("override", object(&arguments.overrides));
    put("meta", object(&arguments.meta));
    put("channels", some(&arguments.channels));
    put("subs", object(&arguments.subs));
    put(
        "aud",
        match arguments.aud.as_slice() {
            [] => configured(&options.audience),
            [one] => Some(one.as_str().into()),
            many => some(many),
        },
    );
    put("iss", text(&arguments.iss).or_else(|| configured(&options.issuer)));
    put("jti", text(&arguments.jti));
    if !options.user_id_claim.is_empty() {
        put_user(&mut claims, &options.user_id_claim, user);
    }
    claims.extend(arguments.claims.clone().unwrap_or_default());
    claims
}

/// Puts the user where the node looks for it. What stands in the way makes room.
fn put_user(claims: &mut Object, path: &str, user: &str) {
    let Some((first, rest)) = path.split_once('.') else {
        claims.insert(path.into(), user.into());
        return;
    };
    let inner = claims.entry(first).or_insert_with(|| json!({}));
    if !inner.is_object() {
        *inner = json!({});
    }
    if let Value::Object(inner) = inner {
        put_user(inner, rest, user);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::time::UnixSeconds;
    use crate::edge::jwt::{TokenFault, TokenKeys};

    const NOW: u64 = 1_700_000_000;

    fn arguments() -> TokenArgs {
        TokenArgs { user: "42".into(), ttl: Duration::from_secs(600), ..Default::default() }
    }

    fn config(variables: &[(&str, &str)]) -> Config {
        let environment = variables.iter().map(|&(name, text)| (name.into(), text.into()));
        let sources =
            Sources { environment: environment.collect(), dev: true, ..Default::default() };
        let mut config = config::load(&sources).unwrap().config;
        if config.tokens.connection.hmac_secret_key == DEV_SECRET {
            config.tokens.connection.hmac_secret_key.clear();
        }
        config
    }

    #[test]
    fn the_node_takes_its_own_tokens() {
        let config = config(&[
            ("ROOST_CLIENT_TOKEN_HMAC_SECRET_KEY", "secret"),
            ("ROOST_CLIENT_TOKEN_AUDIENCE", "edge"),
            ("ROOST_CLIENT_TOKEN_ISSUER", "app"),
            ("ROOST_CLIENT_SUBSCRIPTION_TOKEN_ENABLED", "true"),
            ("ROOST_CLIENT_SUBSCRIPTION_TOKEN_HMAC_SECRET_KEY", "other"),
        ]);
        let keys = TokenKeys::new(&config.tokens.connection).unwrap();
        let info = Some(serde_json::json!({"name": "Ann"}));
        let (text, notes) = token(&TokenArgs { info, ..arguments() }, &config, false, NOW).unwrap();
        assert!(notes.is_empty());
        let now = UnixSeconds(NOW as i64);
        let claims = keys.connection(&text, now).unwrap().unwrap();
        assert_eq!((claims.user.as_str(), claims.expire_at), ("42", Some(now.0 + 600)));
        assert_eq!(claims.info.as_deref(), Some(&br#"{"name":"Ann"}"#[..]));
        let later = UnixSeconds(now.0 + 600);
        assert!(matches!(keys.connection(&text, later), Some(Err(TokenFault::Expired(_)))));

        let ever = TokenArgs { ttl: Duration::ZERO, ..arguments() };
        let (text, _) = token(&ever, &config, false, NOW).unwrap();
        assert_eq!(keys.connection(&text, now).unwrap().unwrap().expire_at, None);

        let channel = Some("$gold".into());
        let client = Some("c1".into());
        let (text, _) =
            token(&TokenArgs { channel, client, ..arguments() }, &config, false, NOW).unwrap();
        let keys = TokenKeys::new(config.tokens.of_subscriptions()).unwrap();
        let claims = keys.subscription(&text, now).unwrap().unwrap();
        assert_eq!((claims.channel.as_str(), claims.client.as_str()), ("$gold", "c1"));
    }

    #[test]
    fn without_a_key() {
        let config = config(&[]);
        let (text, notes) = token(&arguments(), &config, false, NOW).unwrap();
        assert_eq!(notes.len(), 1);
        let dev = TokenOptions { hmac_secret_key: DEV_SECRET.into(), ..Default::default() };
        let now = UnixSeconds(NOW as i64);
        assert!(TokenKeys::new(&dev).unwrap().connection(&text, now).unwrap().is_ok());
        let problem = token(&arguments(), &config, true, NOW).unwrap_err();
        assert_eq!(problem, "client.token.hmac_secret_key is not set: expected a secret");
    }

    fn object(text: &str) -> Option<Object> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn all_claims_are_written() {
        let config = config(&[("ROOST_CLIENT_TOKEN_HMAC_SECRET_KEY", "secret")]);
        let keys = TokenKeys::new(&config.tokens.connection).unwrap();
        let now = UnixSeconds(NOW as i64);
        let connection = TokenArgs {
            expire_at: Some(7),
            meta: object(r#"{"m":1}"#),
            channels: vec!["a".into(), "b".into()],
            subs: object(r#"{"b":{"data":[2]}}"#),
            ..arguments()
        };
        let (text, _) = token(&connection, &config, false, NOW).unwrap();
        let claims = keys.connection(&text, now).unwrap().unwrap();
        assert_eq!(claims.expire_at, Some(7));
        assert_eq!(claims.meta.as_deref(), Some(&br#"{"m":1}"#[..]));
        let names: Vec<_> = claims.subs.iter().map(|(name, _)| name.as_str()).collect();
        // Where both are named the options count.
        assert_eq!(names, ["b"]);
        assert_eq!(claims.subs[0].1.data.as_deref(), Some(&b"[2]"[..]));

        let subscription = TokenArgs {
            channel: Some("news".into()),
            expire_at: Some(0),
            data: Some(json!({"d": 1})),
            overrides: object(r#"{"presence":{"value":true}}"#),
            ..arguments()
        };
        let (text, _) = token(&subscription, &config, false, NOW).unwrap();
        let claims = keys.subscription(&text, now).unwrap().unwrap();
        assert_eq!(claims.expire_at, None);
        assert_eq!(claims.data.as_deref(), Some(&br#"{"d":1}"#[..]));
        assert_eq!(claims.overrides.presence, Some(true));
    }

    #[test]
    fn claims_by_name() {
        let options = |user_id_claim: &str| TokenOptions {
            audience: "edge".into(),
            issuer: "app".into(),
            user_id_claim: user_id_claim.into(),
            ..Default::default()
        };
        let ever = || TokenArgs { ttl: Duration::ZERO, ..arguments() };
        for (given, claim, expected) in [
            (ever(), "", json!({"sub": "42", "iat": NOW, "aud": "edge", "iss": "app"})),
            (
                TokenArgs {
                    aud: vec!["x".into()],
                    iss: Some("y".into()),
                    jti: Some("z".into()),
                    ..ever()
                },
                "",
                json!({"sub": "42", "iat": NOW, "aud": "x", "iss": "y", "jti": "z"}),
            ),
            (
                TokenArgs {
                    aud: vec!["x".into(), "y".into()],
                    claims: object(r#"{"sub":"7","iss":"w","nbf":1,"b64info":"AA=="}"#),
                    ..ever()
                },
                "",
                json!({
                    "sub": "7", "iat": NOW, "aud": ["x", "y"], "iss": "w", "nbf": 1,
                    "b64info": "AA=="
                }),
            ),
            (
                TokenArgs { meta: object(r#"{"m":1}"#), ..ever() },
                "meta.user.id",
                json!({
                    "sub": "42", "iat": NOW, "aud": "edge", "iss": "app",
                    "meta": {"m": 1, "user": {"id": "42"}}
                }),
            ),
        ] {
            assert_eq!(Value::Object(claims(&given, &options(claim), NOW)), expected);
        }
    }

    #[test]
    fn tokens_without_required_claims_are_refused() {
        let config = config(&[
            ("ROOST_CLIENT_TOKEN_HMAC_SECRET_KEY", "secret"),
            ("ROOST_CLIENT_TOKEN_AUDIENCE_REGEX", "edge"),
            ("ROOST_CLIENT_TOKEN_ISSUER_REGEX", "app"),
        ]);
        let given = TokenArgs { iss: Some("app".into()), ..arguments() };
        let (_, notes) = token(&given, &config, false, NOW).unwrap();
        assert_eq!(notes, ["client.token.audience_regex is set: without --aud it doesn't match"]);
    }
}
