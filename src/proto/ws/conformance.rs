//! The ground of the Autobahn test suite's sections 1 to 7, 9 and 10, as tables: what is sent, what
//! must be seen. Each row is read in both roles, whole, cut in two everywhere, and byte by byte.

use super::testing::{CLIENT, SERVER, Seen, raw, read};
use super::{Fault, ReadRules, Reader};

const FIN: u8 = 0x80;
const MORE: u8 = 0x00;
const CONT: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Frames as first byte and payload.
type Frames<'a> = &'a [(u8, &'a [u8])];

fn text(data: impl AsRef<[u8]>) -> Seen {
    Seen::Text(data.as_ref().to_vec())
}

fn binary(data: impl AsRef<[u8]>) -> Seen {
    Seen::Binary(data.as_ref().to_vec())
}

fn ping(data: impl AsRef<[u8]>) -> Seen {
    Seen::Ping(data.as_ref().to_vec())
}

fn pong(data: impl AsRef<[u8]>) -> Seen {
    Seen::Pong(data.as_ref().to_vec())
}

fn fault(fault: Fault) -> Seen {
    Seen::Fault(fault)
}

/// One row, in every role and every cut.
fn check(case: &str, frames: Frames<'_>, expected: &[Seen]) {
    for rules in [&SERVER, &CLIENT] {
        let bytes: Vec<u8> =
            frames.iter().flat_map(|(first, payload)| raw(rules, *first, payload)).collect();
        let what = format!("case {case}, masked {}", rules.masked);
        assert_eq!(read(rules, [&bytes[..]]), expected, "{what}");
        assert_eq!(read(rules, bytes.chunks(1)), expected, "{what}, byte by byte");
        assert_eq!(read(rules, bytes.chunks(997)), expected, "{what}, in chops of 997");
        let cuts = if bytes.len() > 1000 { bytes.len() / 7 + 1 } else { 1 };
        for cut in (0..bytes.len()).step_by(cuts) {
            let (head, tail) = bytes.split_at(cut);
            assert_eq!(read(rules, [head, tail]), expected, "{what}, cut at {cut}");
        }
    }
}

#[test]
fn section_1_framing() {
    for len in [0, 1, 125, 126, 127, 128, 65535, 65536] {
        let letters = vec![b'*'; len];
        check(&format!("1.1, {len}"), &[(FIN | TEXT, &letters)], &[text(&letters)]);
        let bytes = vec![0xfe; len];
        check(&format!("1.2, {len}"), &[(FIN | BINARY, &bytes)], &[binary(&bytes)]);
    }
}

#[test]
fn section_2_pings_and_pongs() {
    let full = [0xfe; 125];
    let long = [0xfe; 126];
    let table: &[(&str, Frames<'_>, &[Seen])] = &[
        ("2.1", &[(FIN | PING, b"")], &[ping("")]),
        ("2.2", &[(FIN | PING, b"Hello, world!")], &[ping("Hello, world!")]),
        ("2.3", &[(FIN | PING, b"\x00\xff\xfe\xfd")], &[ping(b"\x00\xff\xfe\xfd")]),
        ("2.4", &[(FIN | PING, &full)], &[ping(full)]),
        ("2.5", &[(FIN | PING, &long)], &[fault(Fault::ControlTooLong)]),
        ("2.7", &[(FIN | PONG, b"")], &[pong("")]),
        ("2.8", &[(FIN | PONG, b"unasked")], &[pong("unasked")]),
        (
            "2.9",
            &[(FIN | PONG, b"unasked"), (FIN | PING, b"payload")],
            &[pong("unasked"), ping("payload")],
        ),
        (
            "2.10",
            &[(FIN | PING, b"0"), (FIN | PING, b"1"), (FIN | PING, b""), (FIN | PING, b"3")],
            &[ping("0"), ping("1"), ping(""), ping("3")],
        ),
        ("pong of 126", &[(FIN | PONG, &long)], &[fault(Fault::ControlTooLong)]),
    ];
    for (case, frames, expected) in table {
        check(case, frames, expected);
    }
}

#[test]
fn section_3_reserved_bits() {
    for rsv in 1..8u8 {
        for opcode in [CONT, TEXT, BINARY, CLOSE, PING, PONG] {
            let first = FIN | rsv << 4 | opcode;
            check(
                &format!("3, rsv {rsv}, opcode {opcode}"),
                &[(FIN | TEXT, b"before"), (first, b"x"), (FIN | PING, b"after")],
                &[text("before"), fault(Fault::ReservedBits)],
            );
        }
    }
}

#[test]
fn section_4_reserved_opcodes() {
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        for payload in [&b""[..], b"reserved"] {
            check(
                &format!("4, opcode {opcode}"),
                &[(FIN | TEXT, b"before"), (FIN | opcode, payload), (FIN | PING, b"")],
                &[text("before"), fault(Fault::ReservedOpcode(opcode))],
            );
        }
    }
}

#[test]
fn section_5_fragmentation() {
    let lone = fault(Fault::ContinuationWithoutStart);
    let table: &[(&str, Frames<'_>, &[Seen])] = &[
        (
            "5.1",
            &[(MORE | PING, b"frag"), (FIN | CONT, b"ment")],
            &[fault(Fault::ControlFragmented)],
        ),
        ("5.2", &[(MORE | PONG, b"frag")], &[fault(Fault::ControlFragmented)]),
        ("5.2 close", &[(MORE | CLOSE, b"")], &[fault(Fault::ControlFragmented)]),
        ("5.3", &[(MORE | TEXT, b"frag1"), (FIN | CONT, b"frag2")], &[text("frag1frag2")]),
        (
            "5.6",
            &[(MORE | TEXT, b"frag1"), (FIN | PING, b"ping"), (FIN | CONT, b"frag2")],
            &[ping("ping"), text("frag1frag2")],
        ),
        ("5.9", &[(FIN | CONT, b"lone"), (FIN | TEXT, b"next")], std::slice::from_ref(&lone)),
        ("5.12", &[(MORE | CONT, b"lone"), (FIN | TEXT, b"next")], std::slice::from_ref(&lone)),
        (
            "5.15",
            &[
                (MORE | TEXT, b"frag1"),
                (FIN | CONT, b"frag2"),
                (MORE | CONT, b"frag3"),
                (FIN | TEXT, b"frag4"),
            ],
            &[text("frag1frag2"), lone.clone()],
        ),
        (
            "5.18",
            &[(MORE | TEXT, b"frag1"), (FIN | TEXT, b"frag2")],
            &[fault(Fault::StartInsideMessage)],
        ),
        (
            "5.18 binary",
            &[(MORE | BINARY, b""), (MORE | BINARY, b"frag2")],
            &[fault(Fault::StartInsideMessage)],
        ),
        (
            "5.19",
            &[
                (MORE | TEXT, b"frag1"),
                (MORE | CONT, b"frag2"),
                (FIN | PING, b"ping1"),
                (MORE | CONT, b"frag3"),
                (MORE | CONT, b"frag4"),
                (FIN | PING, b"ping2"),
                (FIN | CONT, b"frag5"),
            ],
            &[ping("ping1"), ping("ping2"), text("frag1frag2frag3frag4frag5")],
        ),
        (
            "empty fragments",
            &[(MORE | BINARY, b""), (MORE | CONT, b""), (FIN | CONT, b"")],
            &[binary("")],
        ),
        (
            "close between fragments",
            &[(MORE | TEXT, b"frag1"), (FIN | CLOSE, b"\x03\xe8"), (FIN | CONT, b"frag2")],
            &[Seen::Close(Some(1000), String::new())],
        ),
        (
            "messages follow",
            &[(MORE | TEXT, b"a"), (FIN | CONT, b"b"), (FIN | BINARY, b"c"), (FIN | TEXT, b"d")],
            &[text("ab"), binary("c"), text("d")],
        ),
    ];
    for (case, frames, expected) in table {
        check(case, frames, expected);
    }
}

#[test]
fn section_6_utf8() {
    let valid: [&[u8]; 20] = [
        b"",
        b"Hello-\xc2\xb5@\xc3\x9f\xc3\xb6\xc3\xa4\xc3\xbc\xc3\xa0\xc3\xa1-UTF-8!!",
        b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5",
        b"\x00",
        b"\xc2\x80",
        b"\xe0\xa0\x80",
        b"\xf0\x90\x80\x80",
        b"\x7f",
        b"\xdf\xbf",
        b"\xef\xbf\xbf",
        b"\xf4\x8f\xbf\xbf",
        b"\xed\x9f\xbf",
        b"\xee\x80\x80",
        b"\xef\xbf\xbd",
        b"\xef\xbf\xbe",
        b"\xf0\x9f\xbf\xbe",
        b"\xf0\x9f\xbf\xbf",
        b"\xf4\x8f\xbf\xbe",
        b"\xef\xbb\xbfmark",
        b"\xf3\xaf\xbf\xbf",
    ];
    for bytes in valid {
        check(&format!("6 {bytes:02x?}"), &[(FIN | TEXT, bytes)], &[text(bytes)]);
        // 6.2.3, 6.2.4: a fragment for each byte.
        let mut frames: Vec<(u8, &[u8])> = vec![(MORE | TEXT, b"")];
        frames.extend(bytes.chunks(1).map(|byte| (MORE | CONT, byte)));
        frames.push((FIN | CONT, b""));
        check(&format!("6.2 {bytes:02x?}"), &frames, &[text(bytes)]);
    }

    let invalid: [&[u8]; 34] = [
        b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
        b"\xf8\x88\x80\x80\x80",
        b"\xfc\x84\x80\x80\x80\x80",
        b"\xf7\xbf\xbf\xbf",
        b"\xfb\xbf\xbf\xbf\xbf",
        b"\xfd\xbf\xbf\xbf\xbf\xbf",
        b"\xf4\x90\x80\x80",
        b"\x80",
        b"\xbf",
        b"\x80\xbf",
        b"\x80\xbf\x80",
        b"\xc0 \xc1 \xc2 ",
        b"\xe0 \xe1 ",
        b"\xf0 \xf1 ",
        b"\xc0",
        b"\xe0\x80",
        b"\xf0\x80\x80",
        b"\xdf",
        b"\xef\xbf",
        b"\xf7\xbf\xbf",
        b"\xfe",
        b"\xff",
        b"\xfe\xfe\xff\xff",
        b"\xc0\xaf",
        b"\xe0\x80\xaf",
        b"\xf0\x80\x80\xaf",
        b"\xc1\xbf",
        b"\xe0\x9f\xbf",
        b"\xf0\x8f\xbf\xbf",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xed\xbf\xbf",
        b"\xed\xa0\x80\xed\xb0\x80",
        b"\xf4\x8f\xbf",
    ];
    for bytes in invalid {
        let expected = [fault(Fault::TextNotUtf8)];
        check(&format!("6 {bytes:02x?}"), &[(FIN | TEXT, bytes)], &expected);
        let mut frames: Vec<(u8, &[u8])> = vec![(MORE | TEXT, b"good")];
        frames.extend(bytes.chunks(1).map(|byte| (MORE | CONT, byte)));
        frames.push((FIN | CONT, b""));
        check(&format!("6.2 {bytes:02x?}"), &frames, &expected);
        check("binary is not text", &[(FIN | BINARY, bytes)], &[binary(bytes)]);
    }
}

#[test]
fn section_6_4_fails_fast() {
    // The fault comes with the byte that breaks the text: in a fragment, and inside of one frame.
    let (good, bad, rest) = (b"\xce\xba\xe1\xbd\xb9", b"\xf4\x90\x80\x80", b"edited");
    let frames = [
        raw(&SERVER, MORE | TEXT, good),
        raw(&SERVER, MORE | CONT, bad),
        raw(&SERVER, FIN | CONT, rest),
    ];
    assert_eq!(read(&SERVER, [&frames[0][..]]), []);
    let expected = [fault(Fault::TextNotUtf8)];
    assert_eq!(read(&SERVER, [&frames[0][..], &frames[1]]), expected);
    // 6 bytes of header and 2 of payload: f4 90.
    assert_eq!(read(&SERVER, [&frames[0][..], &frames[1][..7]]), []);
    assert_eq!(read(&SERVER, [&frames[0][..], &frames[1][..8]]), expected);

    let one = raw(&SERVER, FIN | TEXT, &[&good[..], bad, rest].concat());
    let breaks = 6 + good.len() + 1;
    assert_eq!(read(&SERVER, [&one[..breaks]]), []);
    assert_eq!(read(&SERVER, [&one[..=breaks]]), expected);
    assert_eq!(read(&SERVER, one[..=breaks].chunks(1)), expected);
}

#[test]
fn section_7_closing() {
    let longest = [b"\x03\xe8".as_slice(), &[b'*'; 123]].concat();
    let too_long = [b"\x03\xe8".as_slice(), &[b'*'; 124]].concat();
    let close = |code, reason: &str| Seen::Close(code, reason.to_string());
    let table: &[(&str, Frames<'_>, &[Seen])] = &[
        (
            "7.1.1",
            &[(FIN | TEXT, b"Hello"), (FIN | CLOSE, b"\x03\xe8")],
            &[text("Hello"), close(Some(1000), "")],
        ),
        ("7.1.2", &[(FIN | CLOSE, b""), (FIN | CLOSE, b"")], &[close(None, "")]),
        ("7.1.3", &[(FIN | CLOSE, b""), (FIN | PING, b"")], &[close(None, "")]),
        ("7.3.1", &[(FIN | CLOSE, b"")], &[close(None, "")]),
        ("7.3.2", &[(FIN | CLOSE, b"a")], &[fault(Fault::CloseLength)]),
        ("7.3.4", &[(FIN | CLOSE, b"\x03\xe8Hello")], &[close(Some(1000), "Hello")]),
        ("7.3.5", &[(FIN | CLOSE, &longest)], &[close(Some(1000), &"*".repeat(123))]),
        ("7.3.6", &[(FIN | CLOSE, &too_long)], &[fault(Fault::ControlTooLong)]),
        (
            "7.5.1",
            &[(FIN | CLOSE, b"\x03\xe8\xce\xba\xed\xa0\x80")],
            &[fault(Fault::CloseReasonNotUtf8)],
        ),
    ];
    for (case, frames, expected) in table {
        check(case, frames, expected);
    }
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999]
    {
        check("7.7", &[(FIN | CLOSE, &u16::to_be_bytes(code))], &[close(Some(code), "")]);
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535] {
        let expected = [fault(Fault::CloseCode(code))];
        check("7.9, 7.13", &[(FIN | CLOSE, &u16::to_be_bytes(code))], &expected);
    }
}

#[test]
fn sections_9_and_10_long_messages() {
    let long: Vec<u8> = (0..1u32 << 20).map(|i| b'a' + (i % 23) as u8).collect();
    for rules in [SERVER, CLIENT] {
        for (fragment, chop) in [(1 << 20, 65536), (65536, 4096), (1300, 65536), (64, 60000)] {
            let mut bytes = Vec::new();
            let count = long.len().div_ceil(fragment);
            for (index, piece) in long.chunks(fragment).enumerate() {
                let opcode = if index == 0 { TEXT } else { CONT };
                let fin = if index + 1 == count { FIN } else { MORE };
                bytes.extend(raw(&rules, fin | opcode, piece));
            }
            let seen = read(&rules, bytes.chunks(chop));
            assert!(seen == [text(&long)], "fragments of {fragment}, chops of {chop}");
        }
    }
}

#[test]
fn masking_and_lengths_by_role() {
    let close_codes = |seen: &[Seen]| match seen {
        [Seen::Fault(fault)] => (*fault, fault.close_code()),
        _ => panic!("{seen:?}"),
    };
    let table: [(&ReadRules, Vec<u8>, Fault); 6] = [
        (&SERVER, raw(&CLIENT, FIN | TEXT, b"bare"), Fault::Unmasked),
        (&SERVER, raw(&CLIENT, FIN | PING, b""), Fault::Unmasked),
        (&CLIENT, raw(&SERVER, FIN | TEXT, b"masked"), Fault::Masked),
        (&CLIENT, vec![0x81, 126, 0, 125], Fault::LengthNotMinimal),
        (&CLIENT, vec![0x81, 127, 0, 0, 0, 0, 0, 0, 255, 255], Fault::LengthNotMinimal),
        (&CLIENT, vec![0x81, 127, 128, 0, 0, 0, 0, 0, 0, 0], Fault::LengthTopBit),
    ];
    for (rules, bytes, expected) in table {
        assert_eq!(close_codes(&read(rules, [&bytes[..]])), (expected, 1002), "{bytes:02x?}");
        assert_eq!(close_codes(&read(rules, bytes.chunks(1))), (expected, 1002), "{bytes:02x?}");
    }
}

#[test]
fn a_message_too_long_is_found_by_its_header() {
    let rules = ReadRules { masked: false, deflate: false, message_bytes_max: 100 };
    let fits = raw(&rules, FIN | TEXT, &[b'x'; 100]);
    assert_eq!(read(&rules, [&fits[..]]), [text([b'x'; 100])]);

    // The header alone is enough, and nothing is reserved for it.
    let mut header = raw(&rules, FIN | TEXT, &[b'x'; 101]);
    header.truncate(2);
    let expected = Fault::MessageTooLong { bytes: 101 };
    assert_eq!(read(&rules, [&header[..]]), [fault(expected)]);
    assert_eq!((expected.close_code(), expected.label()), (1009, "message_too_long"));
    let expected = Fault::MessageTooLong { bytes: i64::MAX as u64 };
    let header = [0x82, 127, 0x7f, 255, 255, 255, 255, 255, 255, 255];
    assert_eq!(read(&rules, [&header[..]]), [fault(expected)]);

    // Over fragments, with control frames that don't count.
    let frames = [
        raw(&rules, MORE | BINARY, &[1; 60]),
        raw(&rules, FIN | PING, &[2; 125]),
        raw(&rules, MORE | CONT, &[3; 40]),
        raw(&rules, MORE | CONT, &[]),
        raw(&rules, FIN | CONT, &[4; 1])[..2].to_vec(),
    ];
    let expected = [ping([2; 125]), fault(Fault::MessageTooLong { bytes: 101 })];
    assert_eq!(read(&rules, frames.iter().map(Vec::as_slice)), expected);
}

#[test]
fn an_announced_length_reserves_nothing() {
    let rules = ReadRules { masked: true, deflate: false, message_bytes_max: 1 << 40 };
    let mut input = vec![0x82, 0xff, 0, 0, 0, 0x7f, 0, 0, 0, 0, 1, 2, 3, 4, 99];
    let mut reader = Reader::new();
    let mut at = 0;
    assert_eq!(reader.next(&rules, &mut input, &mut at), Ok(None));
    assert_eq!(at, input.len());
    assert!(reader.bytes_held() < 256, "{}", reader.bytes_held());
}
