//! URLs as they may be printed.

/// A URL without its credentials; any other text as it is.
pub fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_not_shown() {
        for (url, seen) in [
            ("http://user:pass@a:1/x@y", "http://a:1/x@y"),
            ("http://us@er:pass@a", "http://a"),
            ("http://a/x@y?z=a@b", "http://a/x@y?z=a@b"),
            ("a@b", "a@b"),
        ] {
            assert_eq!(without_credentials(url), seen);
        }
    }
}
