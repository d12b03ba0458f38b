//! Query strings, as browsers and SDKs write them.

use std::borrow::Cow;

/// The first value of a parameter, decoded: `%XX` to bytes, `+` to a space. `None` when there is no
/// such name, or what stands there is not percent-encoded UTF-8. A name without `=` has the value "".
pub fn query_param<'q>(query: &'q str, name: &str) -> Option<Cow<'q, str>> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key)? == name).then(|| decode(value)).flatten()
    })
}

/// `None` for a broken escape or what isn't UTF-8. Allocates only when there is something to decode.
fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains(['%', '+']) {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => hex(rest.next()?)? << 4 | hex(rest.next()?)?,
            _ => byte,
        });
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
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
            ("q=%", "q", None),
            ("q=%4", "q", None),
            ("q=%4g", "q", None),
            ("q=%+1", "q", None),
            ("q=%ff", "q", None),
            ("&&=x&", "", Some("")),
        ];
        for (query, name, expected) in table {
            assert_eq!(query_param(query, name).as_deref(), expected, "{query} {name}");
        }
    }
}
