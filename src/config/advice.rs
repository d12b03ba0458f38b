//! Warnings about a configuration that can be used but hardly is what its owner meant: secrets that can be
//! guessed, origins that match nothing, a node that serves nobody.

use super::layers::{Scope, Settings};
use super::options::Config;
use crate::edge::channels::Namespace;
use crate::shard::EndpointKind;

/// Bytes of a secret that signs HS256: as many as the digest has (RFC 7518, 3.2).
const HS256_BYTES: usize = 32;

/// Bytes of the key of the server API, which a stranger may try as often as the network lets it.
const API_KEY_BYTES: usize = 16;

/// Characters of a password that a person types; wrong ones are answered late.
const PASSWORD_CHARS: usize = 8;

/// All warnings, a line each. `settings` say where an option was set.
pub(super) fn advice(settings: &Settings, config: &Config) -> Vec<String> {
    let root = &settings.root;
    let mut lines = weak_secrets(root);
    lines.extend(origins(root));
    lines.extend(nobody_connects(config));
    lines.extend(nobody_publishes(config));
    lines
}

fn weak_secrets(root: &Scope) -> Vec<String> {
    let of_section = |section: &'static str| {
        ["hmac_secret_key", "hmac_previous_secret_key"].map(|name| format!("{section}.{name}"))
    };
    let mut signing: Vec<String> = of_section("client.token").into();
    if root.flag("client.subscription_token.enabled") {
        signing.extend(of_section("client.subscription_token"));
    }
    if root.flag("admin.enabled") {
        signing.push("admin.secret".to_owned());
    }
    let mut lines = Vec::new();
    let mut judge = |path: &str, length: usize, unit: &str, least: usize, why: &str| {
        // A development node has a secret of its own, for tokens on one machine only.
        let preset = root.setting(path).is_none_or(|setting| setting.is_preset());
        if length > 0 && length < least && !preset {
            let unit = if length == 1 { unit.trim_end_matches('s') } else { unit };
            lines.push(
                root.remark(path, &format!("{length} {unit}, expected at least {least}: {why}")),
            );
        }
    };
    for path in signing {
        let why = "a shorter secret can be found from one signature (HS384 wants 48, HS512 64; RFC 7518, 3.2)";
        judge(&path, root.text(&path).len(), "bytes", HS256_BYTES, why);
    }
    if !root.flag("http_api.disabled") {
        let why = "a guessed one grants full access";
        judge("http_api.key", root.text("http_api.key").len(), "bytes", API_KEY_BYTES, why);
    }
    if root.flag("admin.enabled") {
        let chars = root.text("admin.password").chars().count();
        let why = "a guessed one grants full access";
        judge("admin.password", chars, "characters", PASSWORD_CHARS, why);
    }
    lines
}

fn origins(root: &Scope) -> Vec<String> {
    let path = "client.allowed_origins";
    let origins = root.list(path);
    let never = origins.iter().filter_map(|origin| {
        let why = matches_nothing(origin)?;
        Some(root.remark(path, &format!("{origin:?} never matches: {why}")))
    });
    let mut lines: Vec<String> = never.collect();
    if root.flag("http_api.insecure") && origins.iter().any(|origin| origin == "*") {
        lines.push(root.remark(
            path,
            "\"*\" beside http_api.insecure: every web page can call the server API",
        ));
    }
    lines
}

/// Why no `Origin` that a browser sends matches a pattern, if so. An origin is `scheme://host` or
/// `scheme://host:port`, without the scheme's own port, or `null` (RFC 6454, 6.2).
fn matches_nothing(pattern: &str) -> Option<&'static str> {
    let lower = pattern.to_lowercase();
    let is_glob = |text: &str| text.contains(['*', '?', '[', ']', '{', '}', '\\']);
    if lower.is_empty() {
        return Some("it is empty");
    }
    let in_one_text = lower.matches("://").count() > 1 && !lower.contains('{');
    if in_one_text || lower.contains(char::is_whitespace) || lower.contains(';') {
        return Some("several origins in one text; each is an element of the list");
    }
    if lower.contains(',') && !lower.contains('{') {
        return Some("several origins in one text; each is an element of the list");
    }
    let Some((scheme, host)) = lower.split_once("://") else {
        // A pattern that begins with a wildcard may match the scheme by it.
        let literal = lower.split(['*', '?', '[', '{', '\\']).next().unwrap_or_default();
        let may_begin =
            literal.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-".contains(&byte));
        let known = lower == "null" || (is_glob(&lower) && may_begin);
        return (!known).then_some("it has no scheme, such as https://");
    };
    if host.contains('/') && !lower.contains('{') {
        return Some("an origin has no path and no slash at its end");
    }
    if host.is_empty() {
        return Some("it has no host");
    }
    if host.contains(['@', '#']) {
        return Some("an origin has a host and a port only");
    }
    if (scheme == "https" && host.ends_with(":443")) || (scheme == "http" && host.ends_with(":80"))
    {
        return Some("browsers leave the scheme's own port out");
    }
    (!host.is_ascii()).then_some("browsers send such a host in its ASCII form (xn--)")
}

/// Clients need an endpoint, and something that says who they are.
fn nobody_connects(config: &Config) -> Option<String> {
    let client = &config.client;
    // The up-link and the answer to a browser that warms up let nobody in.
    let leads_in = |kind| !matches!(kind, EndpointKind::Emulation | EndpointKind::Init);
    let serves = config.transports.endpoints.iter().any(|endpoint| leads_in(endpoint.kind));
    let admits = client.insecure
        || client.allow_anonymous
        || !client.user_id_http_header.is_empty()
        || client.proxies.connect.is_some()
        || config.tokens.connection.has_key()
        || config.tokens.connection.skip_signature;
    match (serves, admits) {
        (false, _) => Some(
            "no client can connect: websocket.disabled is true, and no other transport is enabled"
                .to_owned(),
        ),
        (_, false) => Some(
            "no client can connect: there is no key in client.token, no client.proxy.connect, no \
             client.user_id_http_header, and client.allow_anonymous_connect_without_token is false"
                .to_owned(),
        ),
        _ => None,
    }
}

/// Publications come from the server API, from the admin page or from clients.
fn nobody_publishes(config: &Config) -> Option<String> {
    let api = config.web.api.as_ref().is_some_and(|api| api.insecure || api.key.is_some());
    let may_publish = |namespace: &Namespace| {
        namespace.allow_publish_for_client
            || namespace.allow_publish_for_subscriber
            || namespace.allow_publish_for_anonymous
            || namespace.publish_proxy.is_some()
    };
    let by_clients = config.client.insecure || config.channels.namespaces().iter().any(may_publish);
    let nobody = !api && config.web.admin.is_none() && !by_clients;
    nobody.then(|| {
        "nobody can publish: the server API has no http_api.key, and no namespace lets clients publish".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::matches_nothing;

    #[test]
    fn origins_that_no_browser_sends_are_named() {
        for pattern in [
            "https://example.com",
            "https://*.example.com",
            "http://localhost:*",
            "*",
            "*.example.com",
            "http*",
            "null",
            "capacitor://localhost",
            "https://{a,b}.example.com",
            "{https://a.example,https://b.example}",
            "https://example.com:8443",
            "http://[::1]:3000",
            "https://example.com{,/}",
            "HTTPS://EXAMPLE.COM",
        ] {
            assert_eq!(matches_nothing(pattern), None, "{pattern}");
        }
        for (pattern, why) in [
            ("", "empty"),
            ("https://example.com/", "path"),
            ("https://example.com/app", "path"),
            ("https://*/app", "path"),
            ("example.com", "scheme"),
            ("localhost:3000", "scheme"),
            ("example.*", "scheme"),
            ("https://a.example,https://b.example", "several"),
            ("https://a.example, https://b.example", "several"),
            ("https://a.example https://b.example", "several"),
            ("https://a.example;https://b.example", "several"),
            ("a.example,b.example", "several"),
            ("https://", "no host"),
            ("https://user@example.com", "host and a port"),
            ("https://example.com:443", "own port"),
            ("http://example.com:80", "own port"),
            ("https://bücher.example", "ASCII"),
        ] {
            let said = matches_nothing(pattern).unwrap_or_else(|| panic!("{pattern:?} is taken"));
            assert!(said.contains(why), "{pattern}: {said}");
        }
    }
}
