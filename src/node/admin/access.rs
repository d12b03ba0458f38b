//! Access to the admin page: a password or, in the development node, the secret of a link.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use serde::Serialize;

use crate::base::notices::Reason;
use crate::base::time::UnixSeconds;
use crate::config;
use crate::edge::jwt::{TokenKeys, TokenOptions, sign_hs256};
use crate::node::admin_refusals::{AdminRefusals, Refused};
use crate::node::reload_requests::ReloadRequests;
use crate::session::AdminRules;
use crate::shard::{Fields, NodeState};

/// See the module.
pub(in crate::node) struct Access {
    node: Arc<NodeState>,
    password: Option<String>,
    secret: String,
    /// The secret in the link of a development node, as long as it runs.
    link: Option<String>,
    delayed: Mutex<Delayed>,
    refusals: Arc<AdminRefusals>,
    reload: ReloadRequests,
}

/// Wrong passwords whose answers wait, by the address that they came from; unknown ones are one.
#[derive(Debug, Default)]
struct Delayed {
    by_address: HashMap<Option<IpAddr>, usize>,
    all: usize,
}

impl Delayed {
    /// Takes a place; false when the address, or all together, have too many.
    fn begin(&mut self, address: Option<IpAddr>) -> bool {
        let known = self.by_address.get(&address).copied().unwrap_or(0);
        let has_place = known < TRIES_MAX && self.all < TRIES_IN_ALL_MAX;
        if has_place {
            self.by_address.insert(address, known + 1);
            self.all += 1;
        }
        has_place
    }

    fn end(&mut self, address: Option<IpAddr>) {
        if let Some(count) = self.by_address.get_mut(&address) {
            self.all -= 1;
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&address);
            }
        }
    }
}

/// A place among the delayed, given back also when the client doesn't wait for the answer.
struct Place<'a> {
    access: &'a Access,
    address: Option<IpAddr>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.access.delayed().end(self.address);
    }
}

/// The key of the page's tokens.
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
    pub(in crate::node) fn new(
        node: Arc<NodeState>,
        admin: &config::Admin,
        refusals: Arc<AdminRefusals>,
        reload: ReloadRequests,
    ) -> Self {
        Self {
            node,
            refusals,
            reload,
            password: admin.password.clone(),
            secret: admin.secret.clone(),
            link: admin.link.clone(),
            delayed: Mutex::default(),
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

    /// A token, for the password or for the link's secret. The right one is never kept waiting, whatever others
    /// try; a wrong one is answered late, or with a refusal when its address has too many of them.
    pub(super) async fn enter(
        &self,
        password: &str,
        link: &str,
        address: Option<IpAddr>,
    ) -> Result<String, Refused> {
        let is_right = |secret: &Option<String>, given: &str| {
            secret.as_deref().is_some_and(|secret| is_equal(secret, given))
        };
        if is_right(&self.password, password) | is_right(&self.link, link) {
            return Ok(self.token());
        }
        if !self.delayed().begin(address) {
            self.refused(address, Refused::TooMany);
            return Err(Refused::TooMany);
        }
        self.refused(address, Refused::Wrong);
        let place = Place { access: self, address };
        tokio::time::sleep(WRONG_DELAY).await;
        drop(place);
        Err(Refused::Wrong)
    }

    /// For those who are in: has the options read again.
    pub(super) fn reload_requests(&self) -> &ReloadRequests {
        &self.reload
    }

    /// Counts and logs a refusal.
    pub(super) fn refused(&self, address: Option<IpAddr>, why: Refused) {
        self.refusals.add(why);
        let code = why.status().into();
        let why = Some(match why {
            Refused::Token => format_args!("a wrong or expired token of the admin page"),
            _ => format_args!("a wrong password for the admin page"),
        });
        let fields = Fields { address, code, why, ..Fields::default() };
        self.node.notices.notice_now(Reason::AdminUnauthorized, &fields);
    }

    fn delayed(&self) -> MutexGuard<'_, Delayed> {
        // One thread uses it, and a panic ends the process.
        self.delayed.lock().unwrap_or_else(PoisonError::into_inner)
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

/// The audience of the page's tokens: tokens of clients can't be used in their place, whatever the secret.
const AUDIENCE: &str = "roost-admin";

/// A browser has to come with the password again after so many seconds.
const TOKEN_TTL_S: i64 = 12 * 3_600;

/// A wrong password is answered so late.
pub(super) const WRONG_DELAY: Duration = Duration::from_secs(1);

/// So many of one address may be waiting for that; others are refused at once.
const TRIES_MAX: usize = 8;

/// The same of all addresses.
const TRIES_IN_ALL_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_by_reason() {
        let refusals = AdminRefusals::default();
        for why in [Refused::Wrong, Refused::Token, Refused::Wrong] {
            refusals.add(why);
        }
        let expected = [("password", 2), ("too_many_passwords", 0), ("token", 1)];
        assert_eq!(refusals.counts(), expected);
        for (at, why) in Refused::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, at);
        }
    }

    #[test]
    fn wrong_passwords_are_counted_by_address() {
        let address = |last: u8| Some(IpAddr::from([10, 0, 0, last]));
        let mut delayed = Delayed::default();
        assert!((0..TRIES_MAX).all(|_| delayed.begin(address(1))));
        assert!(!delayed.begin(address(1)));
        assert!(delayed.begin(address(2)) && delayed.begin(None));
        delayed.end(address(1));
        assert!(delayed.begin(address(1)));
        for at in 0..=u8::MAX {
            let _ = delayed.begin(address(at));
        }
        assert_eq!(delayed.all, TRIES_IN_ALL_MAX);
        for at in 0..=u8::MAX {
            (0..TRIES_MAX).for_each(|_| delayed.end(address(at)));
        }
        delayed.end(None);
        assert!(delayed.by_address.is_empty() && delayed.all == 0);
    }
}
