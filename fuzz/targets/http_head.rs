//! Request heads: a beginning of one has no other answer than the whole, and an upgrade that is
//! accepted is answered with what a client accepts.
//!
//! Input: a byte that says where the head is cut, then the head.
#![no_main]

use libfuzzer_sys::fuzz_target;
use roost::proto::http::{
    Body, HttpDate, Refusal, format, head_complete, parse, put_refusal, put_switching, query_param,
    upgrade,
};

/// The compared parts of a head.
type Outline<'a> = (&'a str, &'a str, &'a str, u8, Body, usize, usize);

fn outline(bytes: &[u8]) -> Result<Option<Outline<'_>>, Refusal> {
    Ok(parse(bytes)?.map(|head| {
        let headers = head.headers().count();
        (head.method, head.path, head.query, head.version, head.body, head.bytes, headers)
    }))
}

fuzz_target!(|bytes: &[u8]| {
    let Some((cut, bytes)) = bytes.split_first() else { return };
    let beginning = &bytes[..bytes.len() * usize::from(*cut) / 255];
    let whole = outline(bytes);
    match outline(beginning) {
        Ok(None) => {}
        sooner => assert_eq!(sooner, whole),
    }
    let mut scanned = 0;
    if !head_complete(beginning, &mut scanned) {
        assert!(!matches!(outline(beginning), Ok(Some(_))));
        assert!(head_complete(bytes, &mut scanned) || !matches!(whole, Ok(Some(_))));
    }
    let date = HttpDate::at(0);
    match parse(bytes) {
        Ok(None) => {}
        Err(refusal) => put_refusal(&mut Vec::new(), refusal, "", date, false),
        Ok(Some(head)) => {
            assert!(head.bytes <= bytes.len());
            assert!(head_complete(&bytes[..head.bytes], &mut 0));
            query_param(head.query, "format");
            if let Ok(upgrade) = upgrade(&head) {
                format(head.query, upgrade.protocol);
                let mut answer = Vec::new();
                put_switching(&mut answer, &upgrade, date);
                assert!(answer.ends_with(b"\r\n\r\n") && answer.is_ascii());
            }
        }
    }
});
