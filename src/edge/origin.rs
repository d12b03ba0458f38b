//! Which web pages may open a connection: `client.allowed_origins` against the `Origin` header.

use super::glob::Glob;

/// The patterns of `client.allowed_origins`, prepared once.
///
/// A pattern is a [`Glob`] over the whole lower-cased origin. `*` as the only pattern allows every
/// origin.
#[derive(Clone, Debug, Default)]
pub struct OriginRules {
    /// As configured, for people.
    patterns: Vec<String>,
    all: bool,
    exact: Vec<String>,
    // Linear in the length of the origin whatever the pattern: an origin is a stranger's text.
    globs: Vec<Glob>,
}

/// A pattern that is not a glob.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pattern:?}: {fault}")]
pub struct PatternFault {
    /// The pattern as configured.
    pub pattern: String,
    /// The fault.
    pub fault: &'static str,
}

impl OriginRules {
    /// Prepares the patterns.
    ///
    /// # Errors
    /// The first pattern that has an unfinished set, choice or escape.
    pub fn new(patterns: &[String]) -> Result<Self, PatternFault> {
        let mut rules = Self { patterns: patterns.to_vec(), ..Self::default() };
        for pattern in patterns {
            let lower = pattern.to_lowercase();
            if lower == "*" {
                rules.all = true;
            } else if lower.contains(['*', '?', '[', ']', '{', '}', '\\']) {
                let fault = |fault| PatternFault { pattern: pattern.clone(), fault };
                rules.globs.push(Glob::new(&lower).map_err(fault)?);
            } else {
                rules.exact.push(lower);
            }
        }
        Ok(rules)
    }

    /// True when a request with this `Origin` header may become a connection; refused is HTTP 403.
    ///
    /// No header is no browser, and allowed. The host of the request doesn't matter: an origin is
    /// allowed by the list only. A header that is not UTF-8 is to be given as its lossy form.
    pub fn allows(&self, origin: Option<&str>) -> bool {
        let Some(origin) = origin else { return true };
        if self.all {
            return true;
        }
        if self.exact.is_empty() && self.globs.is_empty() {
            return false;
        }
        let origin = origin.to_lowercase();
        self.exact.contains(&origin) || self.globs.iter().any(|glob| glob.matches(&origin))
    }

    /// True when a request with these headers, `Origin` and `Sec-Fetch-Site`, may be carried out; refused
    /// is HTTP 403, since the browser carries out what the page sends even where it withholds the answer.
    ///
    /// `Origin` decides where there is one. Requests that a browser sends without it (images, scripts,
    /// forms of older browsers) have only the other header, which says whether the page is of another
    /// site or of another host of this site; which page it is can't be known, so only `*` allows those.
    pub fn allows_request(&self, origin: Option<&[u8]>, fetch_site: Option<&[u8]>) -> bool {
        let Some(origin) = origin else {
            let foreign = fetch_site.map(<[u8]>::trim_ascii).is_some_and(|site| {
                site.eq_ignore_ascii_case(b"cross-site") || site.eq_ignore_ascii_case(b"same-site")
            });
            return self.all || !foreign;
        };
        // An origin that isn't text matches no pattern.
        std::str::from_utf8(origin).is_ok_and(|origin| self.allows(Some(origin)))
    }
}

/// The patterns, as configured.
impl std::fmt::Display for OriginRules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.patterns.is_empty() {
            return f.write_str("client.allowed_origins, which is empty");
        }
        write!(f, "client.allowed_origins ({})", self.patterns.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(patterns: &[&str]) -> OriginRules {
        let patterns: Vec<String> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        OriginRules::new(&patterns).unwrap()
    }

    #[test]
    fn table() {
        for (patterns, origin, allowed) in [
            (&[][..], None, true),
            (&[], Some("https://a.example"), false),
            (&[], Some(""), false),
            (&["*"], Some("null"), true),
            (&["*"], None, true),
            (&["https://a.example"], None, true),
            (&["https://a.example"], Some("https://a.example"), true),
            (&["https://A.example"], Some("HTTPS://a.EXAMPLE"), true),
            (&["https://a.example"], Some("https://a.example.evil"), false),
            (&["https://a.example"], Some("https://aXexample"), false),
            (&["https://*.a.example"], Some("https://x.y.a.example"), true),
            (&["https://*.a.example"], Some("https://a.example"), false),
            (&["https://*.a.example"], Some("https://x.a.example\n.evil"), false),
            (&["x", "http://localhost:*"], Some("http://localhost:3000"), true),
            (&["http://host?"], Some("http://host1"), true),
            (&["http://host?"], Some("http://host"), false),
            (&["http://host[0-3]"], Some("http://host2"), true),
            (&["http://host[!0-3]"], Some("http://host2"), false),
            (&["http{,s}://{a,b*}.example"], Some("https://bcd.example"), true),
            (&["http{,s}://{a,b*}.example"], Some("https://c.example"), false),
            (&[r"http://\*"], Some("http://*"), true),
            (&[r"http://\*"], Some("http://x"), false),
            (&["(a|b)+"], Some("(a|b)+"), true),
            (&["(a|b)+*"], Some("ab"), false),
        ] {
            assert_eq!(rules(patterns).allows(origin), allowed, "{patterns:?} {origin:?}");
        }
    }

    #[test]
    fn malformed_patterns_are_named() {
        for pattern in ["http://[a", "http://{a", r"a\", "[", "[z-a]"] {
            let fault = OriginRules::new(&[pattern.to_owned()]).unwrap_err();
            assert_eq!(fault.pattern, pattern);
        }
    }

    /// The definition of `*` and `?`, word for word.
    fn naive(glob: &[char], text: &[char]) -> bool {
        match glob.split_first() {
            None => text.is_empty(),
            Some(('*', rest)) => (0..=text.len()).any(|skip| naive(rest, &text[skip..])),
            Some(('?', rest)) => text.split_first().is_some_and(|(_, tail)| naive(rest, tail)),
            Some((char, rest)) => {
                text.split_first().is_some_and(|(first, tail)| first == char && naive(rest, tail))
            }
        }
    }

    proptest! {
        #[test]
        fn globs_match_like_their_definition(glob in "[ab.*?]{0,8}", text in "[ab.]{0,8}") {
            let letters = |text: &str| text.chars().collect::<Vec<_>>();
            let expected = naive(&letters(&glob), &letters(&text));
            let glob = [glob];
            prop_assert_eq!(OriginRules::new(&glob).unwrap().allows(Some(&text)), expected);
        }

        #[test]
        fn no_pattern_panics(glob in "[a-c*?{}\\[\\]!^,\\\\&~-]{0,10}", text in "[a-c-]{0,6}") {
            if let Ok(rules) = OriginRules::new(&[glob]) {
                rules.allows(Some(&text));
            }
        }
    }
}
