//! Patterns over whole texts: `*` any text, `?` one character, `[a-z]` and `[!a-z]` one character of a
//! set, `{a,b}` one of several, `\` takes the next character as it is.

use regex_lite::{Regex, RegexBuilder};

/// A pattern, prepared once. Matching is linear in the text, whatever the pattern.
#[derive(Clone, Debug)]
pub struct Glob(Regex);

impl Glob {
    /// Prepares a pattern.
    ///
    /// # Errors
    /// The unfinished or malformed part of it, or that it would be too large.
    pub fn new(pattern: &str) -> Result<Self, &'static str> {
        let regex = RegexBuilder::new(&translate(pattern)?).size_limit(SIZE_MAX).build();
        regex.map(Self).map_err(|_| "a set of characters is malformed, or the pattern too large")
    }

    /// Whether it matches all of a text.
    pub fn matches(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

/// A pattern that matches this text alone.
pub fn escape(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for char in text.chars() {
        if matches!(char, '\\' | '*' | '?' | '[' | ']' | '{' | '}' | ',') {
            pattern.push('\\');
        }
        pattern.push(char);
    }
    pattern
}

/// The only text that a pattern matches, where it has no wildcard.
pub fn literal_of(pattern: &str) -> Option<String> {
    let mut text = String::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(char) = chars.next() {
        match char {
            '*' | '?' | '[' | '{' => return None,
            '\\' => text.push(chars.next()?),
            other => text.push(other),
        }
    }
    Some(text)
}

/// Bytes of a prepared pattern at most, about.
const SIZE_MAX: usize = 1 << 20;

/// The glob as a regular expression over the whole text.
fn translate(glob: &str) -> Result<String, &'static str> {
    let mut regex = String::from(r"(?s)\A");
    let mut depth = 0;
    let mut chars = glob.chars();
    while let Some(char) = chars.next() {
        match char {
            '*' => regex.push_str(".*"),
            '?' => regex.push('.'),
            '\\' => literal(&mut regex, chars.next().ok_or("ends in the middle of an escape")?),
            '[' => set(&mut regex, &mut chars)?,
            '{' => {
                depth += 1;
                regex.push_str("(?:");
            }
            '}' if depth > 0 => {
                depth -= 1;
                regex.push(')');
            }
            ',' if depth > 0 => regex.push('|'),
            other => literal(&mut regex, other),
        }
    }
    if depth > 0 {
        return Err("'{' without '}'");
    }
    regex.push_str(r"\z");
    Ok(regex)
}

/// The class behind `[`, up to its `]`.
fn set(regex: &mut String, chars: &mut std::str::Chars<'_>) -> Result<(), &'static str> {
    regex.push('[');
    if chars.as_str().starts_with(['!', '^']) {
        chars.next();
        regex.push('^');
    }
    let mut members = 0;
    loop {
        match chars.next().ok_or("'[' without ']'")? {
            ']' if members > 0 => break,
            '-' => regex.push('-'),
            '\\' => literal(regex, chars.next().ok_or("ends in the middle of an escape")?),
            other => literal(regex, other),
        }
        members += 1;
    }
    regex.push(']');
    Ok(())
}

fn literal(regex: &mut String, char: char) {
    let mut buffer = [0; 4];
    regex.push_str(&regex_lite::escape(char.encode_utf8(&mut buffer)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_escaped_text_is_matched_alone(text in "[a*?\\[\\]{},!:\\\\ä-]{0,12}", other in "[a*?\\[{,ä]{0,4}") {
            let pattern = escape(&text);
            let glob = Glob::new(&pattern).unwrap();
            prop_assert!(glob.matches(&text));
            prop_assert_eq!(glob.matches(&other), other == text);
            prop_assert_eq!(literal_of(&pattern), Some(text));
        }
    }

    #[test]
    fn patterns_with_wildcards_have_no_literal() {
        for pattern in ["a*", "?", "[ab]", "{a,b}", "a\\"] {
            assert_eq!(literal_of(pattern), None, "{pattern}");
        }
        assert_eq!(literal_of("a:b,c}").as_deref(), Some("a:b,c}"));
        assert_eq!(literal_of("a\\*").as_deref(), Some("a*"));
    }

    #[test]
    fn a_pattern_has_a_bound_when_it_is_prepared() {
        assert!(Glob::new(&"a*".repeat(2048)).is_ok_and(|glob| glob.matches(&"ab".repeat(2048))));
        assert!(Glob::new(&"?".repeat(SIZE_MAX)).is_err());
    }
}
