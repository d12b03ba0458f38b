//! PROXY headers: a beginning of one has no other answer than the whole, and nothing that isn't one grows
//! beyond the bound. The headers in which proxies name clients: whatever they say, the hop that the last
//! proxy adds is the nearest.
//!
//! Input: a byte that says where the header is cut, then the header.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use roost::base::limits::PROXY_HEADER_BYTES_MAX;
use roost::proto::http::{self, ForwardedHeader, forwarded_hops};
use roost::proto::proxy_header::{is_proxy_header, parse};

fuzz_target!(|bytes: &[u8]| {
    let Some((cut, bytes)) = bytes.split_first() else { return };
    let beginning = &bytes[..bytes.len() * usize::from(*cut) / 255];
    let whole = parse(bytes);
    match parse(beginning) {
        Ok(None) => {}
        sooner => assert_eq!(sooner, whole),
    }
    match whole {
        Ok(Some(header)) => {
            assert!(header.bytes <= bytes.len() && header.bytes <= PROXY_HEADER_BYTES_MAX);
            assert!(is_proxy_header(bytes));
        }
        Ok(None) => assert!(bytes.len() < PROXY_HEADER_BYTES_MAX),
        Err(_) => {}
    }
    let added = IpAddr::from([203, 0, 113, 7]);
    for (name, header, value) in [
        ("X-Forwarded-For", ForwardedHeader::XForwardedFor, "203.0.113.7"),
        ("Forwarded", ForwardedHeader::Forwarded, "for=203.0.113.7"),
    ] {
        let mut request = format!("GET / HTTP/1.1\r\nHost: x\r\n{name}: ").into_bytes();
        request.extend(bytes.iter().map(|byte| if *byte < b' ' { b' ' } else { *byte }));
        request.extend(format!("\r\n{name}: {value}\r\n\r\n").as_bytes());
        if let Ok(Some(head)) = http::parse(&request) {
            assert_eq!(forwarded_hops(&head, header).first(), Some(&Some(added)));
        }
    }
});
