//! Who may see the admin page: a password or, in the development node, a token that works once.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use serde::Serialize;
use tokio::sync::Semaphore;
use tracing::warn;

use crate::base::time::UnixSeconds;
use crate::config;
use crate::edge::jwt::{TokenKeys, TokenOptions, sign_hs256};
use crate::session::AdminRules;
use crate::shard::Node;

/// Why nobody gets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The password is wrong.
    Wrong,
    /// Too many were wrong just now: this one wasn't looked at.
    TooMany,
}

/// See the module.
pub(in crate::node) struct Access {
    node: Arc<Node>,
    password: Option<String>,
    secret: String,
    one_time: Mutex<Option<String>>,
    /// Each wrong password holds a place for a while.
    tries: Semaphore,
}

/// What tokens of the page are held against.
///
/// # Errors
/// When the keys can't be made.
pub(in crate::node) fn admin_rules(admin: &config::Admin) -> std::io::Result<AdminRules> {
    let options = TokenOptions {
        hmac_secret_key: admin.secret.clone(),
        audience: AUDIENCE.to_owned(),
        ..TokenOptions::default()
    };
    let keys = TokenKeys::new(&options).map_err(std::io::Error::other)?;
    Ok(AdminRules { keys, insecure: admin.insecure })
}

impl Access {
    /// As the options say.
    pub(in crate::node) fn new(node: Arc<Node>, admin: &config::Admin) -> Self {
        Self {
            node,
            password: admin.password.clone(),
            secret: admin.secret.clone(),
            one_time: Mutex::new(admin.one_time.clone()),
            tries: Semaphore::new(TRIES_MAX),
        }
    }

    /// Everybody may.
    pub(super) fn insecure(&self) -> bool {
        self.node.rules.admin.as_ref().is_some_and(|admin| admin.insecure)
    }

    /// Whether a token is good.
    pub(super) fn admits(&self, token: &str) -> bool {
        self.insecure()
            || self
                .node
                .rules
                .admin
                .as_ref()
                .is_some_and(|admin| matches!(admin.keys.connection(token, now()), Some(Ok(_))))
    }

    /// A token, for a password or for what works once. A wrong one is answered late, so that they can't be
    /// tried quickly.
    pub(super) async fn enter(&self, password: &str, one_time: &str) -> Result<String, Refused> {
        let Ok(place) = self.tries.try_acquire() else { return Err(Refused::TooMany) };
        if self.is_password(password) || self.takes_one_time(one_time) {
            return Ok(self.token());
        }
        warn!("a wrong password for the admin page");
        tokio::time::sleep(WRONG_DELAY).await;
        drop(place);
        Err(Refused::Wrong)
    }

    fn is_password(&self, given: &str) -> bool {
        let password = self.password.as_deref();
        password.is_some_and(|password| is_equal(password, given))
    }

    fn takes_one_time(&self, given: &str) -> bool {
        let mut one_time = self.one_time.lock().unwrap_or_else(PoisonError::into_inner);
        one_time.take_if(|one_time| is_equal(one_time, given)).is_some()
    }

    fn token(&self) -> String {
        #[derive(Serialize)]
        struct Claims {
            sub: &'static str,
            aud: &'static str,
            exp: i64,
        }
        let exp = now().0 + TOKEN_TTL_S;
        // Texts and a number: nothing in it can fail to be written.
        sign_hs256(&self.secret, &Claims { sub: "", aud: AUDIENCE, exp }).unwrap_or_default()
    }
}

fn is_equal(a: &str, b: &str) -> bool {
    verify_slices_are_equal(a.as_bytes(), b.as_bytes()).is_ok()
}

#[expect(clippy::disallowed_methods, reason = "a token's expiry is by the wall clock")]
fn now() -> UnixSeconds {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    UnixSeconds(since.map_or(0, |since| since.as_secs() as i64))
}

/// What tokens of the page are for: those of clients can't be used in their place, whatever the secret.
const AUDIENCE: &str = "roost-admin";

/// A browser has to come with the password again after so many seconds.
const TOKEN_TTL_S: i64 = 12 * 3_600;

/// A wrong password is answered so late.
pub(super) const WRONG_DELAY: Duration = Duration::from_secs(1);

/// So many may be waiting for that; others are not looked at.
const TRIES_MAX: usize = 8;
