//! Client addresses that proxies report: `X-Forwarded-For` and `Forwarded` (RFC 7239).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::Head;

/// A header in which proxies name the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`: a list of addresses.
    XForwardedFor,
    /// `Forwarded` (RFC 7239): the parameter `for` of each element.
    Forwarded,
}

/// Who asked each proxy, that of the nearest proxy first. `None`: the proxy doesn't say it (an obfuscated
/// name, `unknown`), or nobody can read it.
pub fn forwarded_hops(head: &Head<'_>, header: ForwardedHeader) -> Vec<Option<IpAddr>> {
    let mut hops = Vec::new();
    match header {
        ForwardedHeader::XForwardedFor => {
            hops.extend(head.list("x-forwarded-for").map(node));
        }
        ForwardedHeader::Forwarded => {
            for value in head.all("forwarded") {
                let elements = split_outside_quotes(value, b',');
                let elements = elements.into_iter().map(<[u8]>::trim_ascii);
                hops.extend(elements.filter(|element| !element.is_empty()).map(forwarded_element));
            }
        }
    }
    hops.reverse();
    hops
}

/// The `for` of an element.
fn forwarded_element(element: &[u8]) -> Option<IpAddr> {
    let mut found = None;
    for pair in split_outside_quotes(element, b';') {
        let pair = pair.trim_ascii();
        if pair.is_empty() {
            continue;
        }
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        let (name, value) = (&pair[..equals], &pair[equals + 1..]);
        if name.eq_ignore_ascii_case(b"for") {
            //= RFC 7239 4: each parameter MUST NOT occur more than once
            if found.is_some() {
                return None;
            }
            found = Some(unquoted(value)?);
        }
    }
    node(&found?)
}

/// A token, or what a quoted string says.
fn unquoted(value: &[u8]) -> Option<Vec<u8>> {
    let Some(quoted) = value.strip_prefix(b"\"") else {
        let is_token = !value.is_empty() && !value.contains(&b'"');
        return is_token.then(|| value.to_vec());
    };
    let mut text = Vec::with_capacity(quoted.len());
    let mut bytes = quoted.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return bytes.next().is_none().then_some(text),
            b'\\' => text.push(*bytes.next()?),
            byte => text.push(*byte),
        }
    }
    None
}

fn split_outside_quotes(bytes: &[u8], separator: u8) -> Vec<&[u8]> {
    let (mut parts, mut from) = (Vec::new(), 0);
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            byte if *byte == separator && !quoted => {
                parts.push(&bytes[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&bytes[from..]);
    parts
}

/// An address, with or without a port; one of IPv6 with or without brackets.
fn node(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let bracketed = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address = match bracketed {
        Some(inner) => inner.parse::<Ipv6Addr>().ok().map(IpAddr::from),
        None => text
            .parse::<IpAddr>()
            .ok()
            .or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip())),
    };
    address.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::http;
    use proptest::prelude::*;

    fn hops(header: ForwardedHeader, lines: &str) -> Vec<String> {
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        let head = http::parse(text.as_bytes()).unwrap().unwrap();
        let shown = |hop: Option<IpAddr>| hop.map_or_else(|| "-".to_owned(), |hop| hop.to_string());
        forwarded_hops(&head, header).into_iter().map(shown).collect()
    }

    #[test]
    fn x_forwarded_for() {
        let table: [(&str, &[&str]); 7] = [
            ("", &[]),
            ("X-Forwarded-For: 203.0.113.7\r\n", &["203.0.113.7"]),
            (
                "x-forwarded-for: 1.1.1.1,2.2.2.2\r\nX-Forwarded-For: 3.3.3.3 , ,\r\n",
                &["3.3.3.3", "2.2.2.2", "1.1.1.1"],
            ),
            (
                "X-Forwarded-For: [2001:db8::1]:80, [2001:db8::2], 2001:db8::3, 4.4.4.4:5\r\n",
                &["4.4.4.4", "2001:db8::3", "2001:db8::2", "2001:db8::1"],
            ),
            ("X-Forwarded-For: ::ffff:1.2.3.4\r\n", &["1.2.3.4"]),
            (
                "X-Forwarded-For: unknown, _x, 1.2.3, [1.2.3.4], 1.2.3.4:\r\n",
                &["-", "-", "-", "-", "-"],
            ),
            ("Forwarded: for=1.1.1.1\r\n", &[]),
        ];
        for (lines, expected) in table {
            assert_eq!(hops(ForwardedHeader::XForwardedFor, lines), expected, "{lines}");
        }
    }

    #[test]
    fn forwarded() {
        let table: [(&str, &[&str]); 12] = [
            ("", &[]),
            ("for=203.0.113.7", &["203.0.113.7"]),
            ("For=\"203.0.113.7:4711\"", &["203.0.113.7"]),
            ("for=\"[2001:db8::1]:4711\"", &["2001:db8::1"]),
            ("for=\"[2001:db8:\\:1]\"", &["2001:db8::1"]),
            ("proto=https;for=1.1.1.1;by=\"_a,b;c\", for=2.2.2.2;", &["2.2.2.2", "1.1.1.1"]),
            ("for=_hidden, for=unknown, for=\"_x:_y\"", &["-", "-", "-"]),
            ("proto=https", &["-"]),
            ("for=1.1.1.1;for=2.2.2.2", &["-"]),
            ("for=\"1.1.1.1", &["-"]),
            ("for=\"1.1.1.1\"x, for", &["-", "-"]),
            ("by=\"\\\",for=9.9.9.9,\";for=1.1.1.1, ,", &["1.1.1.1"]),
        ];
        for (value, expected) in table {
            let lines = format!("Forwarded: {value}\r\n");
            assert_eq!(hops(ForwardedHeader::Forwarded, &lines), expected, "{value}");
        }
    }

    proptest! {
        #[test]
        fn the_nearest_hop_is_the_last_one_behind_forged_ones(
            written in "[ -~]{0,60}",
            v6 in any::<[u16; 8]>(),
        ) {
            // A proxy appends a line of its own: nothing that stands before it can hide it.
            let address = IpAddr::from(v6).to_canonical();
            let node = match address {
                IpAddr::V4(v4) => v4.to_string(),
                IpAddr::V6(v6) => format!("\"[{v6}]\""),
            };
            let lines = format!("Forwarded: {written}\r\nForwarded: for={node}\r\n");
            prop_assert_eq!(&hops(ForwardedHeader::Forwarded, &lines)[0], &address.to_string());
            let lines = format!("X-Forwarded-For: {written}, {address}\r\n");
            prop_assert_eq!(&hops(ForwardedHeader::XForwardedFor, &lines)[0], &address.to_string());
        }
    }
}
