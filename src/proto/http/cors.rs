//! Cross-origin requests to the endpoints that aren't WebSockets (client protocol, 1; the Fetch standard).

use std::fmt::Write;

use super::head::Head;

/// The page that a request comes from, if it is from one: the value of `Origin`.
pub fn origin<'b>(head: &Head<'b>) -> Option<Result<&'b str, NotText>> {
    head.header("origin").map(|value| std::str::from_utf8(value).map_err(|_| NotText))
}

/// An origin that is no text matches no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotText;

/// The header lines that let a page read the answer, for an origin that is allowed.
pub fn cors_headers(head: &Head<'_>, origin: &str) -> String {
    let mut lines = format!(
        "Access-Control-Allow-Origin: {origin}\r\nAccess-Control-Allow-Credentials: true\r\nVary: Origin\r\n"
    );
    let asked = head.header("access-control-request-headers");
    if let Some(Ok(asked)) = asked.map(std::str::from_utf8) {
        // Writing to a String cannot fail.
        let _ = write!(lines, "Access-Control-Allow-Headers: {asked}\r\n");
    }
    lines
}

/// More lines of the answer to a pre-flight request.
pub fn preflight_headers(methods: &str) -> String {
    format!("Access-Control-Max-Age: 300\r\nAccess-Control-Allow-Methods: {methods}\r\n")
}

/// Whether a request comes from a page of the host that it is sent to, whatever the port, or from no page.
/// What else there is to know about an administrator is in the token.
pub fn is_of_own_host(head: &Head<'_>) -> bool {
    let text = |name| head.header(name).map(std::str::from_utf8);
    let host_of = |authority: &str| match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host.to_owned(),
        _ => authority.to_owned(),
    };
    match (text("origin"), text("host")) {
        (None, _) => true,
        (Some(Ok(origin)), Some(Ok(host))) => origin
            .split_once("://")
            .is_some_and(|(_, origin)| host_of(origin).eq_ignore_ascii_case(&host_of(host))),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    #[test]
    fn the_origin_is_echoed() {
        let head = |more: &str| format!("OPTIONS / HTTP/1.1\r\nHost: a\r\n{more}\r\n");
        let plain = head("Origin: https://b\r\n");
        let parsed = parse(plain.as_bytes()).unwrap().unwrap();
        assert_eq!(origin(&parsed), Some(Ok("https://b")));
        let expected = "Access-Control-Allow-Origin: https://b\r\n\
            Access-Control-Allow-Credentials: true\r\nVary: Origin\r\n";
        assert_eq!(cors_headers(&parsed, "https://b"), expected);
        let asking =
            head("Origin: https://b\r\nAccess-Control-Request-Headers: content-type, x\r\n");
        let parsed = parse(asking.as_bytes()).unwrap().unwrap();
        let expected = format!("{expected}Access-Control-Allow-Headers: content-type, x\r\n");
        assert_eq!(cors_headers(&parsed, "https://b"), expected);
        assert_eq!(origin(&parse(head("").as_bytes()).unwrap().unwrap()), None);
    }

    #[test]
    fn pages_of_the_own_host() {
        for (headers, expected) in [
            ("Host: a:8000\r\n", true),
            ("Host: a:8000\r\nOrigin: http://a:8000\r\n", true),
            ("Host: a:8000\r\nOrigin: http://A:9000\r\n", true),
            ("Host: a\r\nOrigin: https://a\r\n", true),
            ("Host: [::1]:8000\r\nOrigin: http://[::1]:8000\r\n", true),
            ("Host: a:8000\r\nOrigin: http://b:8000\r\n", false),
            ("Host: a:8000\r\nOrigin: http://b.a:8000\r\n", false),
            ("Host: a:8000\r\nOrigin: null\r\n", false),
            ("Host: a:8000\r\nOrigin: a\r\n", false),
        ] {
            let request = format!("GET / HTTP/1.1\r\n{headers}\r\n");
            let head = parse(request.as_bytes()).unwrap().unwrap();
            assert_eq!(is_of_own_host(&head), expected, "{headers}");
        }
    }
}
