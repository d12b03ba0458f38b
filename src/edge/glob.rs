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
    use super::*;

    #[test]
    fn a_pattern_has_a_bound_when_it_is_prepared() {
        assert!(Glob::new(&"a*".repeat(2048)).is_ok_and(|glob| glob.matches(&"ab".repeat(2048))));
        assert!(Glob::new(&"?".repeat(SIZE_MAX)).is_err());
    }
}
