//! Names of options: as variables, the nearest to a wrong one, and how values are shown.

use super::file_value::{FileValue, Form};
use crate::base::url::without_credentials;

/// The part behind `ROOST_` or `CENTRIFUGO_` in the variable of a path or of a namespace.
pub(super) fn variable(path: &str) -> String {
    path.to_uppercase().replace(['.', '-'], "_")
}

/// The whole variable of an option: roost's own section is not named twice, and Centrifugo has none.
pub(super) fn prefixed(prefix: &str, path: &str) -> Option<String> {
    match path.strip_prefix("roost.") {
        Some(own) => (prefix == "ROOST_").then(|| format!("ROOST_{}", variable(own))),
        None => Some(format!("{prefix}{}", variable(path))),
    }
}

/// Variables with our prefixes that are not options: which file to read, what is only put into
/// texts, and those that Kubernetes and Docker set for a service of that name.
pub(super) fn is_not_ours(name: &str, text: &str) -> bool {
    name == "CONFIG"
        || name.starts_with("VAR_")
        || name.contains("SERVICE_HOST")
        || name.contains("SERVICE_PORT")
        || name.contains("_TCP")
        || text.starts_with("tcp://")
}

/// `; did you mean NAME?`, or nothing when no name is near.
///
/// Near is a small edit distance, or a name that ends in the unknown one: before version 6
/// Centrifugo's options had no sections.
pub(super) fn nearest<'a>(
    unknown: &str,
    known: impl Iterator<Item = &'a str>,
    separator: &str,
) -> String {
    let flat = |name: &str| name.to_lowercase().replace(separator, "_");
    let wanted = flat(unknown);
    let distance_max = (wanted.len() / 4).clamp(1, 3);
    let best = known
        .filter_map(|name| {
            let candidate = flat(name);
            let ends = candidate.strip_suffix(&wanted).is_some_and(|rest| rest.ends_with('_'));
            let far = if ends { distance_max } else { distance(&wanted, &candidate) };
            (far <= distance_max).then_some((far, name))
        })
        .min_by_key(|(far, _)| *far);
    best.map(|(_, name)| format!("; did you mean {name}?")).unwrap_or_default()
}

/// Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// A value for a message. Secrets are hidden, long values cut.
pub(super) fn show(path: &str, node: &FileValue) -> String {
    match &node.form {
        _ if is_secret(path) => "***".into(),
        Form::Null => "null".into(),
        Form::Bool(value) => value.to_string(),
        Form::Integer(value) => value.to_string(),
        Form::Float(value) => value.to_string(),
        Form::Text(text) => show_text(path, text),
        Form::List(items) => format!("a list of {}", items.len()),
        Form::Map(_) => "a section".into(),
    }
}

/// The same of a text.
pub(super) fn show_text(path: &str, text: &str) -> String {
    const CHARS_MAX: usize = 60;
    if is_secret(path) {
        return "***".into();
    }
    // An endpoint may have a password in it.
    let text = &without_credentials(text);
    match text.char_indices().nth(CHARS_MAX) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", &text[..end]),
    }
}

fn is_secret(path: &str) -> bool {
    let name = path.rsplit('.').next().unwrap_or(path);
    // With the wrong one of two keys a private key stands where a public one should be.
    name.contains("secret")
        || name.contains("password")
        || matches!(name, "key" | "key_pem" | "static_headers")
        || name.ends_with("_public_key")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions() {
        let known =
            ["client.insecure", "client.token.hmac_secret_key", "http_server.port", "pid_file"];
        for (unknown, expected) in [
            ("client.insecur", "; did you mean client.insecure?"),
            ("client.Insecure", "; did you mean client.insecure?"),
            ("client_insecure", "; did you mean client.insecure?"),
            ("hmac_secret_key", "; did you mean client.token.hmac_secret_key?"),
            ("token_hmac_secret_key", "; did you mean client.token.hmac_secret_key?"),
            ("pid", ""),
            ("sockjs", ""),
            ("http_server.sport", "; did you mean http_server.port?"),
        ] {
            assert_eq!(nearest(unknown, known.into_iter(), "."), expected, "{unknown}");
        }
    }

    #[test]
    fn distances() {
        for (a, b, expected) in [("", "abc", 3), ("abc", "abc", 0), ("kitten", "sitting", 3)] {
            assert_eq!(distance(a, b), expected);
            assert_eq!(distance(b, a), expected);
        }
    }

    #[test]
    fn secrets_stay_secret() {
        assert_eq!(show_text("client.token.hmac_secret_key", "hush"), "***");
        assert_eq!(show_text("admin.password", "hush"), "***");
        assert_eq!(show_text("http_api.key", "hush"), "***");
        assert_eq!(show_text("http.static_headers", "{\"authorization\": \"hush\"}"), "***");
        assert_eq!(show_text("client.token.rsa_public_key", "hush"), "***");
        assert_eq!(show_text("client.token.audience", "x"), "\"x\"");
        assert!(show_text("node.name", &"x".repeat(100)).ends_with("\"..."));
    }
}
