//! The certificate of a handshake, by the host that the client names (SNI).

use std::collections::HashMap;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::challenges::{self, Challenges};
use super::pair::Pair;

/// Certificates by names: an exact one first, then a wildcard for one label, then the default.
#[derive(Debug)]
pub(super) struct ByName {
    /// `None`: it is still to be obtained, and handshakes that need it fail.
    default: Option<Arc<CertifiedKey>>,
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what follows `*.`.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
    /// Those of challenges of an ACME server, if that is used.
    challenges: Option<Arc<Challenges>>,
}

impl ByName {
    /// `named`: certificates by configured names. The names that certificates have themselves count where no
    /// configured one is the same, and the default's before the others'.
    pub(super) fn new(
        default: Option<&Pair>,
        named: &[(String, Arc<Pair>)],
        challenges: Option<Arc<Challenges>>,
    ) -> Self {
        let certified = default.map(|default| Arc::clone(&default.certified));
        let (exact, wildcard) = (HashMap::new(), HashMap::new());
        let mut all = Self { default: certified, exact, wildcard, challenges };
        for (name, pair) in named {
            all.add(name, pair);
        }
        for pair in default.into_iter().chain(named.iter().map(|(_, pair)| &**pair)) {
            pair.names.iter().for_each(|name| all.add(name, pair));
        }
        all
    }

    fn add(&mut self, name: &str, pair: &Pair) {
        let (names, name) = match name.strip_prefix("*.") {
            Some(rest) => (&mut self.wildcard, rest),
            None => (&mut self.exact, name),
        };
        names.entry(name.to_owned()).or_insert_with(|| Arc::clone(&pair.certified));
    }

    fn of(&self, name: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        let Some(name) = name else { return self.default.as_ref() };
        // rustls has made it lower case, and has checked that it is a DNS name.
        let name = name.trim_end_matches('.');
        let wildcard = || name.split_once('.').and_then(|(_, rest)| self.wildcard.get(rest));
        self.exact.get(name).or_else(wildcard).or(self.default.as_ref())
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let protocols = hello.alpn();
        if let Some(challenges) = &self.challenges
            && protocols.is_some_and(challenges::is_challenge)
        {
            return challenges.certificate(hello.server_name()?);
        }
        self.of(hello.server_name()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::pair;
    use super::*;

    #[test]
    fn the_certificate_is_chosen_by_the_name_of_the_host() {
        let default = Arc::new(pair(&["default.example", "also.example"]));
        let exact = Arc::new(pair(&["a.example.com", "b.example.com"]));
        let wildcard = Arc::new(pair(&["*.example.com", "also.example"]));
        let named = [
            ("a.example.com".to_owned(), Arc::clone(&exact)),
            ("*.example.com".to_owned(), Arc::clone(&wildcard)),
        ];
        let by_name = ByName::new(Some(&default), &named, None);
        for (name, expected) in [
            (None, &default),
            (Some("other.example"), &default),
            (Some("a.example.com"), &exact),
            // In the certificate, and not in the options.
            (Some("b.example.com"), &exact),
            (Some("c.example.com"), &wildcard),
            (Some("c.example.com."), &wildcard),
            // A wildcard is one label.
            (Some("d.c.example.com"), &default),
            (Some("example.com"), &default),
            (Some("also.example"), &default),
        ] {
            assert!(Arc::ptr_eq(by_name.of(name).unwrap(), &expected.certified), "{name:?}");
        }
        let without = ByName::new(None, &named, None);
        assert!(without.of(None).is_none() && without.of(Some("other.example")).is_none());
        assert!(without.of(Some("a.example.com")).is_some());
    }
}
