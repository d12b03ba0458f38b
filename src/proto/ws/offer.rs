//! A client's offer of permessage-deflate, and the accepted part of it (RFC 7692 5 and 7.1).

use std::io::Write;

use crate::base::form::{WINDOW_BITS_MAX, WINDOW_BITS_MIN};

/// permessage-deflate as it is agreed: always without context takeover, both ways.
///
/// Shape: 3 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deflate {
    /// Bits of the window that the server deflates with, 9 to 15.
    pub server_window_bits: u8,
    /// The client requested that limit, so the answer names it.
    pub server_named: bool,
    /// Bits of the client's window at most, where it named some.
    pub client_window_bits: Option<u8>,
}

impl Deflate {
    /// The first offer that can be taken of those in `Sec-WebSocket-Extensions` headers.
    ///
    /// Declined is one with an unknown parameter, a parameter twice or with a value that it can't have, and
    /// one for which the server's window would have to be of 8 bits: zlib has no such.
    pub fn choose<'h>(headers: impl Iterator<Item = &'h [u8]>) -> Option<Self> {
        headers
            .filter_map(|header| std::str::from_utf8(header).ok())
            .flat_map(|header| header.split(','))
            .find_map(Self::of)
    }

    /// An offer, if it can be taken.
    fn of(offer: &str) -> Option<Self> {
        let mut parts = offer.split(';').map(str::trim);
        if !parts.next()?.eq_ignore_ascii_case("permessage-deflate") {
            return None;
        }
        let mut agreed = Self {
            server_window_bits: WINDOW_BITS_MAX,
            server_named: false,
            client_window_bits: None,
        };
        let mut seen = Vec::new();
        for part in parts {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name.trim(), Some(unquoted(value.trim())?)),
                None => (part, None),
            };
            let name = name.to_ascii_lowercase();
            match (name.as_str(), value) {
                ("server_no_context_takeover" | "client_no_context_takeover", None) => {}
                ("server_max_window_bits", Some(value)) => {
                    agreed.server_window_bits = bits(value)?;
                    agreed.server_named = true;
                }
                ("client_max_window_bits", None) => {}
                ("client_max_window_bits", Some(value)) => {
                    agreed.client_window_bits = Some(bits(value)?);
                }
                _ => return None,
            }
            if seen.contains(&name) {
                return None;
            }
            seen.push(name);
        }
        (agreed.server_window_bits >= WINDOW_BITS_MIN).then_some(agreed)
    }

    /// Appends what the answer says of it: the value of `Sec-WebSocket-Extensions`.
    pub fn put_answer(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(
            b"permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        );
        // Writing to a Vec cannot fail.
        if self.server_named {
            let _ = write!(out, "; server_max_window_bits={}", self.server_window_bits);
        }
        if let Some(bits) = self.client_window_bits {
            let _ = write!(out, "; client_max_window_bits={bits}");
        }
    }
}

/// 8 to 15, without leading zeros (RFC 7692 7.1.2).
fn bits(value: &str) -> Option<u8> {
    let number: u8 = value.parse().ok()?;
    (value.len() == number.to_string().len() && (8..=WINDOW_BITS_MAX).contains(&number))
        .then_some(number)
}

fn unquoted(value: &str) -> Option<&str> {
    match value.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"'),
        None => Some(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers() {
        const PLAIN: &str =
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        let answer = |more: &str| Some(format!("{PLAIN}{more}"));
        for (offer, expected) in [
            ("permessage-deflate", answer("")),
            ("Permessage-Deflate; client_max_window_bits", answer("")),
            ("permessage-deflate;client_max_window_bits=10", answer("; client_max_window_bits=10")),
            ("permessage-deflate; client_max_window_bits=8", answer("; client_max_window_bits=8")),
            (
                "permessage-deflate; server_max_window_bits=\"9\"; server_no_context_takeover",
                answer("; server_max_window_bits=9"),
            ),
            (
                "permessage-deflate; server_max_window_bits=15",
                answer("; server_max_window_bits=15"),
            ),
            ("permessage-deflate; server_max_window_bits=8", None),
            ("permessage-deflate; server_max_window_bits=8, permessage-deflate", answer("")),
            ("permessage-deflate; server_max_window_bits", None),
            ("permessage-deflate; server_max_window_bits=16", None),
            ("permessage-deflate; server_max_window_bits=09", None),
            ("permessage-deflate; server_max_window_bits=+9", None),
            ("permessage-deflate; server_max_window_bits=\"9", None),
            ("permessage-deflate; client_max_window_bits=7", None),
            ("permessage-deflate; server_no_context_takeover=1", None),
            ("permessage-deflate; x", None),
            ("permessage-deflate; client_max_window_bits; client_max_window_bits", None),
            ("x-webkit-deflate-frame, permessage-deflate", answer("")),
            ("permessage-bzip2", None),
            ("", None),
        ] {
            let chosen = Deflate::choose([offer.as_bytes()].into_iter());
            let said = chosen.map(|deflate| {
                let mut out = Vec::new();
                deflate.put_answer(&mut out);
                String::from_utf8(out).unwrap()
            });
            assert_eq!(said, expected, "{offer}");
        }
        let headers = [&b"x"[..], b"permessage-deflate; server_max_window_bits=12"];
        let chosen = Deflate::choose(headers.into_iter()).unwrap();
        assert_eq!(chosen.server_window_bits, 12);
    }
}
