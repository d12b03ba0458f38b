//! Access to the server API: one key, given in one of three ways (server API, section 1).
//!
//! Shards decide by the head of a request, before they read its body; the control thread decides for its own
//! port. Both ask here, so that they can't differ.

/// The credentials of the server API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiAccess {
    /// Where its paths begin, without a slash at the end.
    pub prefix: String,
    /// The key; `None`: nobody has one.
    pub key: Option<String>,
    /// No key is needed.
    pub insecure: bool,
}

/// Where a request may carry the key.
#[derive(Clone, Copy, Debug, Default)]
pub struct GivenKey<'a> {
    /// `X-API-Key`.
    pub own: Option<&'a [u8]>,
    /// `Authorization`, its scheme included.
    pub authorization: Option<&'a [u8]>,
    /// The query, not decoded: `api_key`.
    pub query: &'a str,
}

impl ApiAccess {
    /// Whether a path is one of the API's.
    pub fn covers(&self, path: &str) -> bool {
        path.strip_prefix(self.prefix.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Whether a request may call the API.
    pub fn allows(&self, given: GivenKey<'_>) -> bool {
        self.insecure || self.key.as_ref().is_some_and(|key| given.is(key))
    }
}

impl GivenKey<'_> {
    /// Whether the key is given: in the header of its own, else as authorization; or in the query. An empty header
    /// counts as none: proxies that clear one leave it so. Takes the same time whatever differs.
    pub fn is(&self, key: &str) -> bool {
        let is_key = |given: &[u8]| {
            aws_lc_rs::constant_time::verify_slices_are_equal(given, key.as_bytes()).is_ok()
        };
        let own = self.own.map(<[u8]>::trim_ascii).filter(|own| !own.is_empty());
        let given = own.or_else(|| {
            let authorization = self.authorization?;
            let space = authorization.iter().position(|byte| *byte == b' ')?;
            let (scheme, key) = authorization.split_at(space);
            scheme.eq_ignore_ascii_case(b"apikey").then(|| key.trim_ascii())
        });
        if given.is_some_and(is_key) {
            return true;
        }
        let mut pairs = form_urlencoded::parse(self.query.as_bytes());
        pairs.any(|(name, value)| name == "api_key" && is_key(value.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_may_be_in_three_places() {
        for (own, authorization, query, expected) in [
            (Some("secret"), None, "", true),
            (None, Some("apikey secret"), "", true),
            (None, Some("APIKEY  secret "), "", true),
            (None, None, "a=b&api_key=secret", true),
            (None, None, "api_key=%73ecret", true),
            // An empty header hides nothing, a wrong one hides the authorization but not the query.
            (Some(""), Some("apikey secret"), "", true),
            (Some(" "), None, "api_key=secret", true),
            (Some("wrong"), Some("apikey secret"), "", false),
            (Some("wrong"), None, "api_key=secret", true),
            (None, None, "", false),
            (Some(""), None, "", false),
            (Some("secre"), None, "", false),
            (Some("secrets"), None, "", false),
            (Some("Secret"), None, "", false),
            (None, Some("secret"), "", false),
            (None, Some("Bearer secret"), "", false),
            (None, Some("apikey"), "", false),
            (None, None, "apikey=secret", false),
        ] {
            let given = GivenKey {
                own: own.map(str::as_bytes),
                authorization: authorization.map(str::as_bytes),
                query,
            };
            assert_eq!(given.is("secret"), expected, "{own:?} {authorization:?} {query}");
            let access = |key: Option<&str>, insecure| ApiAccess {
                prefix: "/api".into(),
                key: key.map(Into::into),
                insecure,
            };
            assert_eq!(access(Some("secret"), false).allows(given), expected);
            assert!(!access(None, false).allows(given));
            assert!(access(None, true).allows(given));
        }
    }

    #[test]
    fn paths_of_the_api() {
        let access = ApiAccess { prefix: "/api".into(), ..ApiAccess::default() };
        for (path, expected) in [
            ("/api", true),
            ("/api/", true),
            ("/api/publish", true),
            ("/apix", false),
            ("/", false),
        ] {
            assert_eq!(access.covers(path), expected, "{path}");
        }
    }
}
