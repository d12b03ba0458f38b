//! The header of the PROXY protocol, versions 1 and 2: a balancer that passes TCP on says with it who
//! has connected. It comes once, before everything else.
//!
//! A receiver never guesses whether a header is there: where one is expected, anything else is a fault,
//! and where none is expected, one is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::base::limits::PROXY_HEADER_BYTES_MAX;

/// A header that is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// Who has connected to the balancer. `None`: the balancer itself (a health check), or a peer
    /// without an IP address.
    pub client: Option<IpAddr>,
    /// Length of the header; what follows is the connection's.
    pub bytes: usize,
}

/// Bytes that no header begins with, or that contradict themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed PROXY header")]
pub struct MalformedProxyHeader;

type Result<T> = std::result::Result<T, MalformedProxyHeader>;

const V1: &[u8] = b"PROXY ";

/// A line of version 1 is at most so long, its end included.
const V1_BYTES_MAX: usize = 107;

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, version and command, family and protocol, length.
const V2_BYTES_MIN: usize = 16;

/// Parses the header at the start of `buf`; `None` when its end hasn't arrived.
///
/// # Errors
/// When `buf` doesn't begin with a header, or with one that is longer than
/// [`PROXY_HEADER_BYTES_MAX`]: known with the first byte that says so.
pub fn parse(buf: &[u8]) -> Result<Option<ProxyHeader>> {
    match buf.first() {
        None => Ok(None),
        Some(b'P') => version_1(buf),
        Some(_) => version_2(buf),
    }
}

/// Whether a request begins with a PROXY header.
pub fn is_proxy_header(buf: &[u8]) -> bool {
    buf.starts_with(V1) || buf.starts_with(V2)
}

/// Whether `buf` begins with `prefix`, as far as it goes.
fn may_begin(buf: &[u8], prefix: &[u8]) -> bool {
    let both = buf.len().min(prefix.len());
    buf[..both] == prefix[..both]
}

fn version_1(buf: &[u8]) -> Result<Option<ProxyHeader>> {
    let seen = &buf[..buf.len().min(V1_BYTES_MAX)];
    let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
        let possible = may_begin(seen, V1) && seen.len() < V1_BYTES_MAX;
        return possible.then_some(None).ok_or(MalformedProxyHeader);
    };
    let line = seen[..end].strip_suffix(b"\r").ok_or(MalformedProxyHeader)?;
    let line = std::str::from_utf8(line).map_err(|_| MalformedProxyHeader)?;
    let line = line.strip_prefix("PROXY ").ok_or(MalformedProxyHeader)?;
    let mut fields = line.split(' ');
    let family = fields.next();
    let client = match family {
        // The bytes behind it are ignored.
        Some("UNKNOWN") => None,
        Some("TCP4") => Some(version_1_client::<Ipv4Addr>(fields)?),
        Some("TCP6") => Some(version_1_client::<Ipv6Addr>(fields)?),
        _ => return Err(MalformedProxyHeader),
    };
    Ok(Some(ProxyHeader { client, bytes: end + 1 }))
}

/// Source and destination addresses, source and destination ports.
fn version_1_client<'l, A>(mut fields: impl Iterator<Item = &'l str>) -> Result<IpAddr>
where
    A: std::str::FromStr + Into<IpAddr>,
{
    let mut field = || fields.next().ok_or(MalformedProxyHeader);
    let address = |text: &str| text.parse::<A>().map_err(|_| MalformedProxyHeader);
    let port = |text: &str| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| digits).ok_or(MalformedProxyHeader)
    };
    let client = address(field()?)?;
    address(field()?)?;
    port(field()?)?;
    port(field()?)?;
    match fields.next() {
        None => Ok(client.into().to_canonical()),
        Some(_) => Err(MalformedProxyHeader),
    }
}

fn version_2(buf: &[u8]) -> Result<Option<ProxyHeader>> {
    if !may_begin(buf, V2) {
        return Err(MalformedProxyHeader);
    }
    let Some((fixed, rest)) = buf.split_at_checked(V2_BYTES_MIN) else { return Ok(None) };
    let (version, command) = (fixed[12] >> 4, fixed[12] & 15);
    let (family, protocol) = (fixed[13] >> 4, fixed[13] & 15);
    let len = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let addresses_len = match family {
        0 => 0,
        1 => 12,
        2 => 36,
        3 => 216,
        _ => return Err(MalformedProxyHeader),
    };
    let bytes = V2_BYTES_MIN + len;
    // A local connection's addresses are to be ignored, however long.
    let is_local = command == 0;
    let fits = is_local || len >= addresses_len;
    if version != 2 || command > 1 || protocol > 2 || !fits || bytes > PROXY_HEADER_BYTES_MAX {
        return Err(MalformedProxyHeader);
    }
    let Some(addresses) = rest.get(..len) else { return Ok(None) };
    // The TLVs behind the addresses are of no use here.
    let client = match family {
        1 if !is_local => addresses.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        2 if !is_local => addresses.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
        _ => None,
    };
    Ok(Some(ProxyHeader { client: client.map(|client| client.to_canonical()), bytes }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn client(buf: &[u8]) -> Option<Option<String>> {
        let header = parse(buf).ok()??;
        Some(header.client.map(|client| client.to_string()))
    }

    fn v2(command: u8, family: u8, addresses: &[u8], tlvs: &[u8]) -> Vec<u8> {
        let mut header = V2.to_vec();
        header.extend([0x20 | command, family << 4 | 1]);
        header.extend(((addresses.len() + tlvs.len()) as u16).to_be_bytes());
        header.extend(addresses);
        header.extend(tlvs);
        header
    }

    fn v4_addresses() -> Vec<u8> {
        [&[203, 0, 113, 7, 127, 0, 0, 1][..], &[1, 2, 3, 4]].concat()
    }

    #[test]
    fn version_1_lines() {
        let known = |text: &str| Some(Some(text.to_owned()));
        let longest = "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
                       ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
        assert_eq!(longest.len(), V1_BYTES_MAX);
        let table = [
            ("PROXY TCP4 203.0.113.7 127.0.0.1 4711 80\r\n", known("203.0.113.7")),
            ("PROXY TCP6 2001:db8::7 ::1 4711 80\r\nGET", known("2001:db8::7")),
            ("PROXY TCP6 ::ffff:203.0.113.7 ::1 4711 80\r\n", known("203.0.113.7")),
            ("PROXY UNKNOWN\r\n", Some(None)),
            ("PROXY UNKNOWN whatever it is\r\n", Some(None)),
            (longest, Some(None)),
        ];
        for (text, expected) in table {
            assert_eq!(client(text.as_bytes()), expected, "{text}");
        }
        for text in [
            "PROXY TCP4 203.0.113.7 127.0.0.1 4711 80\n",
            "PROXY TCP4 203.0.113.7 127.0.0.1 4711\r\n",
            "PROXY TCP4 203.0.113.7 127.0.0.1 4711 80 9\r\n",
            "PROXY TCP4 203.0.113.7  127.0.0.1 4711 80\r\n",
            "PROXY TCP4 203.0.113.7 127.0.0.1 65536 80\r\n",
            "PROXY TCP4 203.0.113.7 127.0.0.1 +1 80\r\n",
            "PROXY TCP4 2001:db8::7 ::1 4711 80\r\n",
            "PROXY TCP6 203.0.113.7 127.0.0.1 4711 80\r\n",
            "PROXY TCP4 203.0.113.007 127.0.0.1 4711 80\r\n",
            "PROXY UDP4 203.0.113.7 127.0.0.1 4711 80\r\n",
            "PROXY \r\n",
            "PROXYTCP4 203.0.113.7 127.0.0.1 4711 80\r\n",
            "proxy TCP4 203.0.113.7 127.0.0.1 4711 80\r\n",
            "GET / HTTP/1.1\r\n",
            "POST",
            "\r\nGET",
        ] {
            assert_eq!(parse(text.as_bytes()), Err(MalformedProxyHeader), "{text}");
        }
        let endless = [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 200]].concat();
        assert_eq!(parse(&endless[..V1_BYTES_MAX - 1]), Ok(None));
        assert_eq!(parse(&endless[..V1_BYTES_MAX]), Err(MalformedProxyHeader));
    }

    #[test]
    fn version_2_headers() {
        let v4 = v4_addresses();
        let known = Some(Some("203.0.113.7".to_owned()));
        assert_eq!(client(&v2(1, 1, &v4, b"")), known);
        assert_eq!(client(&v2(1, 1, &v4, &[4, 0, 3, 1, 2, 3])), known, "TLVs are skipped");
        let v6 = [&Ipv6Addr::LOCALHOST.octets()[..], &[0; 20]].concat();
        assert_eq!(client(&v2(1, 2, &v6, b"")), Some(Some("::1".to_owned())));
        assert_eq!(client(&v2(1, 3, &[0; 216], b"")), Some(None), "a Unix socket");
        assert_eq!(client(&v2(1, 0, b"", b"")), Some(None), "an unspecified family");
        assert_eq!(client(&v2(0, 0, b"", b"")), Some(None), "a health check");
        assert_eq!(client(&v2(0, 1, &v4, b"")), Some(None), "its addresses are ignored");
        let longest = v2(1, 1, &v4, &vec![0; PROXY_HEADER_BYTES_MAX - 28]);
        assert_eq!(client(&longest), known);
        let longer = v2(1, 1, &v4, &vec![0; PROXY_HEADER_BYTES_MAX - 27]);
        assert_eq!(parse(&longer[..16]), Err(MalformedProxyHeader));
        let broken = |at: usize, value: u8| {
            let mut header = v2(1, 1, &v4, b"");
            header[at] = value;
            parse(&header)
        };
        for (at, value) in [(0, b'\n'), (11, b'\r'), (12, 0x11), (12, 0x22), (13, 0x41)] {
            assert_eq!(broken(at, value), Err(MalformedProxyHeader), "{at}: {value}");
        }
        assert_eq!(broken(13, 0x13), Err(MalformedProxyHeader), "an unknown protocol");
        assert_eq!(broken(15, 11), Err(MalformedProxyHeader), "too short for its family");
    }

    #[test]
    fn a_request_that_begins_with_a_header_is_recognised() {
        assert!(is_proxy_header(b"PROXY TCP4 1.1.1.1 2.2.2.2 3 4\r\n"));
        assert!(is_proxy_header(&v2(0, 0, b"", b"")));
        assert!(!is_proxy_header(b"GET / HTTP/1.1\r\n"));
        assert!(!is_proxy_header(b"\r\nGET / HTTP/1.1\r\n"));
    }

    fn headers() -> impl Strategy<Value = Vec<u8>> {
        let v1 = (any::<[u8; 4]>(), any::<[u16; 8]>(), any::<u16>(), 0..3).prop_map(
            |(v4, v6, port, kind)| {
                let (v4, v6) = (Ipv4Addr::from(v4), Ipv6Addr::from(v6));
                match kind {
                    0 => format!("PROXY TCP4 {v4} {v4} {port} 80\r\n"),
                    1 => format!("PROXY TCP6 {v6} {v6} {port} 80\r\n"),
                    _ => format!("PROXY UNKNOWN {v6}\r\n"),
                }
                .into_bytes()
            },
        );
        let v2 = (0..2u8, 0..4u8, any::<u8>(), proptest::collection::vec(any::<u8>(), 0..100))
            .prop_map(|(command, family, fill, tlvs)| {
                let addresses = vec![fill; [0, 12, 36, 216][usize::from(family)]];
                v2(command, family, &addresses, &tlvs)
            });
        prop_oneof![v1, v2]
    }

    proptest! {
        #[test]
        fn a_header_is_whole_at_its_last_byte_and_not_before(
            header in headers(),
            behind in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            for end in 0..header.len() {
                prop_assert_eq!(parse(&header[..end]), Ok(None));
            }
            let all = [header.clone(), behind].concat();
            let whole = parse(&all).unwrap().unwrap();
            prop_assert_eq!(whole.bytes, header.len());
            prop_assert_eq!(parse(&header), Ok(Some(whole)));
        }

        #[test]
        fn any_input_is_bounded(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            match parse(&bytes) {
                Ok(Some(header)) => prop_assert!(header.bytes <= bytes.len()),
                Ok(None) => prop_assert!(bytes.len() < PROXY_HEADER_BYTES_MAX),
                Err(_) => {}
            }
        }
    }
}
