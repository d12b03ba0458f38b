//! `roost token`: a JWT to paste into a client.

use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::flags::TokenArgs;
use super::{EXIT_USAGE, refuse, say, warn};
use crate::config::{self, Config, DEV_SECRET, Sources};
use crate::edge::jwt::{TokenOptions, sign_hs256};

/// The claims that the client protocol knows, section 12.
#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    iat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    info: Option<&'a serde_json::Value>,
    #[serde(skip_serializing_if = "str::is_empty")]
    aud: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    iss: &'a str,
}

pub(super) fn run(arguments: TokenArgs, environment: Vec<(String, String)>) -> ExitCode {
    let sources = Sources { file: arguments.config.clone(), environment, ..Default::default() };
    let loaded = match config::load(&sources) {
        Ok(loaded) => loaded,
        Err(fault) => return refuse(&fault),
    };
    warn(&loaded.warnings);
    // A wall clock before 1970 would make a token that expired; nothing worse.
    #[expect(clippy::disallowed_methods, reason = "a command is run at the time that it is run")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // Somebody who names a file means the key in it.
    let named = arguments.config.is_some() || loaded.origin.is_some();
    match token(&arguments, &loaded.config, named, now) {
        Ok((token, note)) => {
            if let Some(note) = note {
                eprintln!("note: {note}");
            }
            say(&format!("{token}\n"));
            ExitCode::SUCCESS
        }
        Err(problem) => {
            let origin = loaded.origin.as_deref().map_or_else(String::new, shown);
            eprintln!("error: {origin}{problem}");
            ExitCode::from(EXIT_USAGE)
        }
    }
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
) -> Result<(String, Option<&'static str>), String> {
    let (section, options) = match (&arguments.channel, &config.tokens.subscription) {
        (Some(_), Some(options)) => ("client.subscription_token", options),
        _ => ("client.token", &config.tokens.connection),
    };
    let (secret, note) = match options.hmac_secret_key.as_str() {
        "" if named => {
            return Err(format!("{section}.hmac_secret_key is not set: expected a secret"));
        }
        "" => (
            DEV_SECRET,
            Some("no key is configured: this token is good for the development node only"),
        ),
        secret => (secret, None),
    };
    let TokenOptions { audience, issuer, .. } = options;
    let ttl = arguments.ttl.as_secs();
    let claims = Claims {
        sub: &arguments.user,
        iat: now,
        exp: (!arguments.ttl.is_zero()).then(|| now.saturating_add(ttl.max(1))),
        channel: arguments.channel.as_deref(),
        client: arguments.client.as_deref(),
        info: arguments.info.as_ref(),
        aud: audience,
        iss: issuer,
    };
    match sign_hs256(secret, &claims) {
        Ok(token) => Ok((token, note)),
        Err(fault) => Err(fault.to_string()),
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
        TokenArgs {
            user: "42".into(),
            channel: None,
            client: None,
            ttl: Duration::from_secs(600),
            info: None,
            config: None,
        }
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
        let keys = TokenKeys::new(&config.tokens.connection);
        let info = Some(serde_json::json!({"name": "Ann"}));
        let (text, note) = token(&TokenArgs { info, ..arguments() }, &config, false, NOW).unwrap();
        assert_eq!(note, None);
        let now = UnixSeconds(NOW as i64);
        let claims = keys.verify_connection(&text, now).unwrap();
        assert_eq!((claims.user.as_str(), claims.expire_at), ("42", Some(now.0 + 600)));
        assert_eq!(claims.info.as_deref(), Some(&br#"{"name":"Ann"}"#[..]));
        let later = UnixSeconds(now.0 + 600);
        assert_eq!(keys.verify_connection(&text, later), Err(TokenFault::Expired));

        let ever = TokenArgs { ttl: Duration::ZERO, ..arguments() };
        let (text, _) = token(&ever, &config, false, NOW).unwrap();
        assert_eq!(keys.verify_connection(&text, now).unwrap().expire_at, None);

        let channel = Some("$gold".into());
        let client = Some("c1".into());
        let (text, _) =
            token(&TokenArgs { channel, client, ..arguments() }, &config, false, NOW).unwrap();
        let keys = TokenKeys::new(config.tokens.of_subscriptions());
        let claims = keys.verify_subscription(&text, now).unwrap();
        assert_eq!((claims.channel.as_str(), claims.client.as_str()), ("$gold", "c1"));
    }

    #[test]
    fn without_a_key() {
        let config = config(&[]);
        let (text, note) = token(&arguments(), &config, false, NOW).unwrap();
        assert!(note.is_some());
        let dev = TokenOptions { hmac_secret_key: DEV_SECRET.into(), ..Default::default() };
        let now = UnixSeconds(NOW as i64);
        assert!(TokenKeys::new(&dev).verify_connection(&text, now).is_ok());
        let problem = token(&arguments(), &config, true, NOW).unwrap_err();
        assert_eq!(problem, "client.token.hmac_secret_key is not set: expected a secret");
    }
}
