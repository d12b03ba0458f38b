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
}
