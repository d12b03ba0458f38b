//! Names of channels as subjects of NATS, and the names that NATS can't carry.
//!
//! A subject is tokens with dots between them. A token is not empty and has no blanks. `*` as a token stands for
//! any one token, `>` as the last token for all that follow.

use std::borrow::Cow;

/// How the names of channels become subjects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubjectRules {
    /// Clients may subscribe to patterns.
    pub wildcards: bool,
    /// Begins all subjects. Empty only where subjects are the names of channels themselves.
    pub prefix: String,
    /// Parts of names that are replaced, the longest ones first.
    replacements: Vec<(String, String)>,
}

/// Characters that make a token a pattern.
const PATTERN: [char; 2] = ['*', '>'];

/// Bytes of a subject at most: a server takes lines of 4 KiB, with other parts beside the subject.
const SUBJECT_BYTES_MAX: usize = 2_048;

impl SubjectRules {
    /// Subjects begin with `prefix`. The order of `replacements` has no meaning.
    pub fn new(wildcards: bool, prefix: &str, replacements: Vec<(String, String)>) -> Self {
        let mut replacements = replacements;
        replacements.retain(|(from, _)| !from.is_empty());
        replacements.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.0.cmp(&b.0)));
        Self { wildcards, prefix: prefix.to_owned(), replacements }
    }

    /// The subject of a channel.
    pub fn subject(&self, channel: &str) -> String {
        let name = self.replaced(channel);
        [&*self.prefix, &*name].concat()
    }

    /// NATS can carry the channel: its name is a subject, or a pattern where these are allowed.
    pub fn carries(&self, channel: &str) -> bool {
        let name = self.replaced(channel);
        let subject = || [&*self.prefix, &*name].concat();
        let is_reserved = self.prefix.is_empty() && is_reserved(&name);
        !is_reserved
            && self.prefix.len() + name.len() <= SUBJECT_BYTES_MAX
            && !name.is_empty()
            && is_subject(&subject())
            && (!name.contains(PATTERN) || self.wildcards && is_pattern(&name))
    }

    /// The name stands for several channels, so that nothing can be published to it.
    pub fn is_pattern(&self, channel: &str) -> bool {
        self.replaced(channel).contains(PATTERN)
    }

    fn replaced<'a>(&self, channel: &'a str) -> Cow<'a, str> {
        if self.replacements.is_empty() {
            return channel.into();
        }
        let mut out = String::with_capacity(channel.len());
        let mut rest = channel;
        while let Some(first) = rest.chars().next() {
            let found = self.replacements.iter().find(|(from, _)| rest.starts_with(from.as_str()));
            let taken = match found {
                Some((from, to)) => {
                    out.push_str(to);
                    from.len()
                }
                None => {
                    out.push(first);
                    first.len_utf8()
                }
            };
            rest = &rest[taken..];
        }
        out.into()
    }
}

/// Subjects of the server itself: who may write there governs it.
fn is_reserved(name: &str) -> bool {
    name.starts_with('$') || name.starts_with("_INBOX") || name.starts_with(PATTERN)
}

fn is_subject(name: &str) -> bool {
    let is_token = |token: &str| {
        !token.is_empty() && !token.chars().any(|of| of.is_whitespace() || of.is_control())
    };
    name.split('.').all(is_token)
}

/// Each `*` is a token of its own, and `>` the last one.
fn is_pattern(name: &str) -> bool {
    let mut tokens = name.split('.').peekable();
    while let Some(token) = tokens.next() {
        let is_whole = match token {
            "*" => true,
            ">" => tokens.peek().is_none(),
            other => !other.contains(PATTERN),
        };
        if !is_whole {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(wildcards: bool) -> SubjectRules {
        SubjectRules::new(wildcards, "p.client.", Vec::new())
    }

    #[test]
    fn names_that_are_no_subjects_are_not_carried() {
        for good in ["news", "news.a", "a:b.c", "$private", "#x", "ünï", "a,b", "-"] {
            assert!(rules(false).carries(good), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "a..b", "a b", "a\tb", "a\r\nPING", "a\0", "a\u{a0}b"] {
            assert!(!rules(false).carries(bad), "{bad:?}");
            assert!(!rules(true).carries(bad), "{bad:?}");
        }
        assert!(!rules(false).carries(&"a".repeat(2_048)));
    }

    #[test]
    fn patterns_are_carried_where_they_are_allowed() {
        for pattern in ["*", ">", "news.*", "news.>", "*.a", "a.*.b"] {
            assert!(!rules(false).carries(pattern) && rules(true).carries(pattern), "{pattern}");
            assert!(rules(true).is_pattern(pattern));
        }
        for bad in ["a*", "a.>.b", "a>", "**", "*>"] {
            assert!(!rules(true).carries(bad), "{bad}");
        }
        assert!(!rules(true).is_pattern("news"));
    }

    #[test]
    fn parts_are_replaced_the_longest_first() {
        let pairs = [(":", "."), ("::", "_"), (" ", "-"), ("", "never")];
        let pairs = pairs.map(|(from, to)| (from.to_owned(), to.to_owned())).to_vec();
        let rules = SubjectRules::new(false, "raw.", pairs);
        assert_eq!(rules.subject("a:b::c d"), "raw.a.b_c-d");
        assert!(rules.carries("a b") && !rules.carries("a:") && !rules.carries(":"));
    }

    #[test]
    fn subjects_of_the_server_are_nobodys_channels() {
        let rules = SubjectRules::new(true, "", Vec::new());
        for name in ["$JS.API.STREAM.PURGE.x", "$SYS.>", "_INBOX.x", ">", "*.API"] {
            assert!(!rules.carries(name), "{name}");
        }
        assert!(rules.carries("news") && rules.carries("news.>"));
    }
}
