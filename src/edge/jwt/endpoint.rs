//! Required values of `aud` and `iss`, and the address of the key set that follows from them.

use std::borrow::Cow;

use regex_lite::Regex;

/// Bytes of what stands for a name in an address.
const VALUE_BYTES_MAX: usize = 255;

/// The required value of a claim.
#[derive(Debug)]
pub(super) enum Expected {
    Anything,
    Exactly(String),
    /// Found anywhere in it, unless the expression is anchored.
    Matching(Regex),
}

/// Names and values of a regular expression's groups, of a claim that matched.
pub(super) type Groups<'a> = Vec<(&'a str, String)>;

impl Expected {
    /// From the two options for a claim.
    ///
    /// # Errors
    /// The requirement that the regular expression misses.
    pub(super) fn new(exact: &str, regex: &str) -> Result<Self, String> {
        match (exact, regex) {
            ("", "") => Ok(Self::Anything),
            (exact, "") => Ok(Self::Exactly(exact.into())),
            ("", regex) => Regex::new(regex)
                .map(Self::Matching)
                .map_err(|fault| format!("a regular expression without Unicode classes: {fault}")),
            _ => Err("an exact value or a regular expression, not both".into()),
        }
    }

    /// Whether one of the values fits; the first that does gives the groups.
    pub(super) fn fits<'a, 'v>(
        &'a self,
        mut values: impl Iterator<Item = &'v str>,
        groups: &mut Groups<'a>,
    ) -> bool {
        match self {
            Self::Anything => true,
            Self::Exactly(expected) => values.any(|value| value == expected),
            Self::Matching(regex) => {
                let Some(captures) = values.find_map(|value| regex.captures(value)) else {
                    return false;
                };
                groups.extend(
                    regex
                        .capture_names()
                        .flatten()
                        .filter_map(|name| Some((name, captures.name(name)?.as_str().to_owned()))),
                );
                true
            }
        }
    }

    /// The names of its groups.
    fn names(&self) -> impl Iterator<Item = &str> {
        let regex = match self {
            Self::Matching(regex) => Some(regex),
            _ => None,
        };
        regex.into_iter().flat_map(|regex| regex.capture_names().flatten())
    }
}

/// The address of a key set, with names of groups as `{{name}}`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// The text before each name, and the name.
    named: Vec<(String, String)>,
    rest: String,
}

impl Endpoint {
    /// Reads the option; the names have to be groups of one of the expressions.
    ///
    /// # Errors
    /// The expected form.
    pub(super) fn new(text: &str, audience: &Expected, issuer: &Expected) -> Result<Self, String> {
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let is_url = host
            .is_some_and(|host| !host.is_empty() && !host.starts_with(['/', '?', '#']))
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_url {
            return Err("a URL that begins with https:// or http://".into());
        }
        let mut named = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (name, behind) =
                after.split_once("}}").ok_or("the name of a group between {{ and }}")?;
            match audience.names().chain(issuer.names()).filter(|own| *own == name).count() {
                1 => {}
                0 => {
                    return Err(format!(
                        "{{{{{name}}}}} to be a group of audience_regex or issuer_regex"
                    ));
                }
                _ => return Err(format!("{{{{{name}}}}} to be a group of one expression only")),
            }
            named.push((before.to_owned(), name.to_owned()));
            rest = behind;
        }
        Ok(Self { named, rest: rest.to_owned() })
    }

    /// The address for these groups. `None` when a group has no part in the match, or has something
    /// in it that would make the address another one than was meant.
    pub(super) fn url(&self, groups: &Groups<'_>) -> Option<Cow<'_, str>> {
        if self.named.is_empty() {
            return Some(Cow::Borrowed(&self.rest));
        }
        let mut url = String::new();
        for (before, name) in &self.named {
            let (_, value) = groups.iter().find(|(own, _)| own == name)?;
            if !is_harmless(value) {
                return None;
            }
            url.push_str(before);
            url.push_str(value);
        }
        url.push_str(&self.rest);
        Some(Cow::Owned(url))
    }

    /// True when it is fetched over TLS.
    pub(super) fn is_secure(&self) -> bool {
        let start = self.named.first().map_or(&self.rest, |(before, _)| before);
        start.starts_with("https://")
    }
}

/// RFC 3986 2.3: unreserved characters mean the same wherever they stand, but dots alone are steps in
/// a path (5.2.4).
fn is_harmless(value: &str) -> bool {
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte);
    (1..=VALUE_BYTES_MAX).contains(&value.len())
        && value.bytes().all(unreserved)
        && value.bytes().any(|byte| byte != b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matching(regex: &str) -> Expected {
        Expected::new("", regex).unwrap()
    }

    #[test]
    fn addresses() {
        let issuer = matching(r"^https://idp\.example/(?P<realm>[^/]+)(?:/(?P<part>.*))?$");
        let audience = matching("^(?P<app>.*)-edge$");
        let endpoint = Endpoint::new("https://i/{{realm}}/{{app}}.json", &audience, &issuer);
        let endpoint = endpoint.unwrap();
        assert!(endpoint.is_secure());
        for (iss, aud, expected) in [
            ("https://idp.example/r1", "shop-edge", Some("https://i/r1/shop.json")),
            ("https://idp.example/a~b_c.d-e", "s-edge", Some("https://i/a~b_c.d-e/s.json")),
            ("https://idp.example/..", "s-edge", None),
            ("https://idp.example/r", "..-edge", None),
            ("https://idp.example/r", "-edge", None),
            ("https://idp.example/r%2f", "s-edge", None),
            ("https://idp.example/r?x", "s-edge", None),
            ("https://idp.example/r", "é-edge", None),
            ("https://idp.example/r", &format!("{}-edge", "x".repeat(256)), None),
        ] {
            let mut groups = Groups::new();
            assert!(issuer.fits([iss].into_iter(), &mut groups), "{iss}");
            assert!(audience.fits(["x", aud].into_iter(), &mut groups), "{aud}");
            assert_eq!(endpoint.url(&groups).as_deref(), expected, "{iss} {aud}");
        }
        // A group that has no part in the match.
        let endpoint = Endpoint::new("http://i/{{part}}", &Expected::Anything, &issuer).unwrap();
        let mut groups = Groups::new();
        assert!(issuer.fits(["https://idp.example/r"].into_iter(), &mut groups));
        assert_eq!(endpoint.url(&groups), None);
        assert!(!endpoint.is_secure());
        let plain = Endpoint::new("http://i/keys", &Expected::Anything, &Expected::Anything);
        assert_eq!(plain.unwrap().url(&Groups::new()).as_deref(), Some("http://i/keys"));
    }

    #[test]
    fn malformed_endpoints_are_refused() {
        let (one, two) = (matching("(?P<a>x)(?P<b>y)"), matching("(?<b>x)"));
        for (text, expected) in [
            ("", "https://"),
            ("ftp://a", "https://"),
            ("https://", "https://"),
            ("https:///keys", "https://"),
            ("http://a b", "https://"),
            ("{{a}}://x", "https://"),
            ("http://x/{{a", "between"),
            ("http://x/{{c}}", "{{c}} to be a group of audience_regex"),
            ("http://x/{{b}}", "one expression only"),
        ] {
            let fault = Endpoint::new(text, &one, &two).unwrap_err();
            assert!(fault.contains(expected), "{text}: {fault}");
        }
        assert!(Endpoint::new("http://x/{{a}}", &one, &two).is_ok());
        assert!(Expected::new("a", "b").is_err() && Expected::new("", "(").is_err());
    }
}
