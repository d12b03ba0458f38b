//! Query strings, as browsers and SDKs write them.

use std::borrow::Cow;

/// The first value of a parameter, decoded as browsers do (WHATWG URL, 5.1): `%XX` to bytes, `+` to a space; what
/// is no escape stays, what isn't UTF-8 becomes U+FFFD. `None` when there is no such name. A name without
/// `=` has the value "".
pub fn query_param<'q>(query: &'q str, name: &str) -> Option<Cow<'q, str>> {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs.find_map(|(key, value)| (key == name).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::query_param;

    #[test]
    fn parameters() {
        let table = [
            ("", "format", None),
            ("format=protobuf", "format", Some("protobuf")),
            ("a=1&format=protobuf&b", "format", Some("protobuf")),
            ("a=1&format=protobuf&b", "b", Some("")),
            ("format=json&format=protobuf", "format", Some("json")),
            ("xformat=a&formatx=b", "format", None),
            ("%66ormat=x", "format", Some("x")),
            ("q=a+b%20c%2Bd", "q", Some("a b c+d")),
            ("q=%E2%82%ac=1", "q", Some("€=1")),
            ("q=%", "q", Some("%")),
            ("q=%4g", "q", Some("%4g")),
            ("q=%ff", "q", Some("\u{fffd}")),
            ("&&=x&", "", Some("x")),
        ];
        for (query, name, expected) in table {
            assert_eq!(query_param(query, name).as_deref(), expected, "{query} {name}");
        }
    }
}
