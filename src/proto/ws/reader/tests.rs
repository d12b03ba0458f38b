use super::super::testing::{CLIENT, SERVER, Seen, raw, read};
use super::super::{close_frame, put_frame, put_masked};
use super::*;
use proptest::prelude::*;
use std::io::{self, Cursor, Read, Write};
use tungstenite::protocol::{Role, WebSocket, WebSocketConfig};
use tungstenite::{Bytes, Message};

#[test]
fn whole_frames_are_lent_from_the_input_without_keeping_anything() {
    let mut input = raw(&SERVER, 0x81, b"one");
    let first = input.len();
    input.extend(raw(&SERVER, 0x89, b"two"));
    input.extend(raw(&SERVER, 0x82, b"three"));
    let untouched = input.clone();
    let lies_in = input.as_ptr_range();
    let mut reader = Reader::new();
    let mut at = 0;
    match reader.next(&SERVER, &mut input, &mut at) {
        Ok(Some(Event::Message { kind: MessageKind::Text, data, .. })) => {
            assert_eq!(data, b"one");
            assert!(lies_in.contains(&data.as_ptr()));
        }
        other => panic!("{other:?}"),
    }
    // The caller may stop here and come back with the rest, which is as it came.
    assert_eq!(at, first);
    assert_eq!(input[at..], untouched[at..]);
    assert!(reader.is_idle());
    assert_eq!(reader.next(&SERVER, &mut input, &mut at), Ok(Some(Event::Ping(b"two"))));
    assert!(reader.is_idle());
    let mut rest = untouched[at..].to_vec();
    let mut at = 0;
    let data = &mut b"three"[..].to_vec()[..];
    let expected = Event::Message { kind: MessageKind::Binary, deflated: false, data };
    assert_eq!(reader.next(&SERVER, &mut rest, &mut at), Ok(Some(expected)));
    assert_eq!(reader.next(&SERVER, &mut rest, &mut at), Ok(None));
    assert!(reader.is_idle());
}

#[test]
fn a_frame_whose_header_came_earlier_is_lent_from_the_input_too() {
    let frame = raw(&SERVER, 0x82, &[7; 300]);
    let mut reader = Reader::new();
    let (head, tail) = frame.split_at(5);
    assert_eq!(reader.next(&SERVER, &mut head.to_vec(), &mut 0), Ok(None));
    assert!(!reader.is_idle());
    let mut tail = tail.to_vec();
    let lies_in = tail.as_ptr_range();
    match reader.next(&SERVER, &mut tail, &mut 0) {
        Ok(Some(Event::Message { data, .. })) => assert!(lies_in.contains(&data.as_ptr())),
        other => panic!("{other:?}"),
    }
    assert!(reader.is_idle());
}

#[test]
fn lent_bytes_are_valid_until_the_next_call() {
    let mut frames = raw(&SERVER, 0x01, b"first");
    frames.extend(raw(&SERVER, 0x89, b"ping"));
    frames.extend(raw(&SERVER, 0x80, b"last"));
    let mut reader = Reader::new();
    let mut held = Vec::new();
    let mut events = 0;
    for byte in frames {
        let (mut input, mut at) = ([byte], 0);
        while let Ok(Some(_)) = reader.next(&SERVER, &mut input, &mut at) {
            events += 1;
            assert!(!reader.is_idle());
        }
        assert_eq!(at, 1);
        held.push(reader.bytes_held());
    }
    assert_eq!(events, 2);
    assert_eq!(held.last(), Some(&0), "{held:?}");
    assert!(held[..held.len() - 1].iter().all(|bytes| (1..512).contains(bytes)), "{held:?}");
}

#[test]
fn a_buffer_doubles_but_not_beyond_its_message() {
    let mut reader = Reader::new();
    let frame = raw(&SERVER, 0x82, &[1; 100_000]);
    let mut changes = 0;
    let mut before = 0;
    for piece in frame[..frame.len() - 1].chunks(100) {
        let mut at = 0;
        assert_eq!(reader.next(&SERVER, &mut piece.to_vec(), &mut at), Ok(None));
        changes += usize::from(reader.bytes_held() != before);
        before = reader.bytes_held();
    }
    assert!(changes < 16, "{changes}");
    assert!(before <= 100_000 + size_of::<Partial>(), "{before}");
}

#[test]
fn fragments_of_a_byte_do_not_copy_the_message_each_time() {
    let mut reader = Reader::new();
    let mut changes = 0;
    let mut before = 0;
    for index in 0..10_000 {
        let mut frame = raw(&SERVER, if index == 0 { 2 } else { 0 }, b"x");
        assert_eq!(reader.next(&SERVER, &mut frame, &mut 0), Ok(None));
        changes += usize::from(reader.bytes_held() != before);
        before = reader.bytes_held();
    }
    assert!(changes < 16, "{changes}");
}

#[test]
fn every_fault_has_its_words() {
    let faults = [
        Fault::ReservedBits,
        Fault::ReservedOpcode(3),
        Fault::Unmasked,
        Fault::Masked,
        Fault::ControlTooLong,
        Fault::ControlFragmented,
        Fault::ContinuationWithoutStart,
        Fault::StartInsideMessage,
        Fault::LengthNotMinimal,
        Fault::LengthTopBit,
        Fault::CloseLength,
        Fault::CloseCode(1005),
        Fault::CloseReasonNotUtf8,
        Fault::TextNotUtf8,
        Fault::MessageTooLong { bytes: 1 },
    ];
    for fault in faults {
        let mut out = Vec::new();
        close_frame(&mut out, Some(fault.close_code()), fault.reason());
        let expected = Seen::Close(Some(fault.close_code()), fault.to_string());
        assert_eq!(read(&CLIENT, [&out[..]]), [expected]);
        let label = match fault.close_code() {
            1002 => "protocol_error",
            1007 => "not_utf8",
            1009 => "message_too_long",
            code => panic!("{code}"),
        };
        assert_eq!(fault.label(), label);
    }
}

/// A step of a valid stream: a message in fragments, with control frames behind each of them.
#[derive(Clone, Debug)]
struct Step {
    text: bool,
    fragments: Vec<Vec<u8>>,
    controls: Vec<(bool, Vec<u8>)>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let payload = prop_oneof![
        4 => 0..20usize,
        2 => 120..132usize,
        1 => 65_530..65_540usize,
    ]
    .prop_flat_map(|len| proptest::collection::vec(any::<u8>(), len));
    let text = "\\PC{0,60}".prop_flat_map(|text| {
        let bytes = text.into_bytes();
        (Just(bytes.clone()), 0..=bytes.len(), 0..=bytes.len())
    });
    let control = (any::<bool>(), proptest::collection::vec(any::<u8>(), 0..=125));
    let controls = proptest::collection::vec(control, 0..3);
    let step = prop_oneof![
        (proptest::collection::vec(payload, 1..4), controls.clone())
            .prop_map(|(fragments, controls)| Step { text: false, fragments, controls }),
        // Cut anywhere, in the middle of characters too.
        (text, controls).prop_map(|((bytes, a, b), controls)| {
            let (a, b) = (a.min(b), a.max(b));
            let fragments = vec![bytes[..a].to_vec(), bytes[a..b].to_vec(), bytes[b..].to_vec()];
            Step { text: true, fragments, controls }
        }),
    ];
    proptest::collection::vec(step, 0..6)
}

/// The steps as bytes, and what is to be seen of them.
fn encode(rules: &ReadRules, steps: &[Step]) -> (Vec<u8>, Vec<Seen>) {
    let (mut bytes, mut seen) = (Vec::new(), Vec::new());
    for step in steps {
        let last = step.fragments.len() - 1;
        for (index, fragment) in step.fragments.iter().enumerate() {
            let opcode = if index > 0 { 0 } else { 2 - u8::from(step.text) };
            let fin = if index == last { 0x80 } else { 0 };
            bytes.extend(raw(rules, fin | opcode, fragment));
            if index == last {
                let data = step.fragments.concat();
                seen.push(if step.text { Seen::Text(data) } else { Seen::Binary(data) });
            }
            for (ping, payload) in &step.controls {
                bytes.extend(raw(rules, if *ping { 0x89 } else { 0x8a }, payload));
                let payload = payload.clone();
                seen.push(if *ping { Seen::Ping(payload) } else { Seen::Pong(payload) });
            }
        }
    }
    (bytes, seen)
}

/// `bytes` in pieces whose lengths go round in `lengths`.
fn pieces<'b>(bytes: &'b [u8], lengths: &[usize]) -> Vec<&'b [u8]> {
    let mut rest = bytes;
    let mut pieces = Vec::new();
    for length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, behind) = rest.split_at((*length).clamp(1, rest.len()));
        pieces.push(piece);
        rest = behind;
    }
    pieces
}

fn lengths() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(prop_oneof![3 => 1..20usize, 1 => 1..5000usize], 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_valid_stream_gives_its_events_however_it_is_cut(
        steps in steps(),
        masked: bool,
        lengths in lengths(),
    ) {
        let rules = if masked { SERVER } else { CLIENT };
        let (bytes, expected) = encode(&rules, &steps);
        prop_assert!(read(&rules, [&bytes[..]]) == expected);
        prop_assert!(read(&rules, pieces(&bytes, &lengths)) == expected);
        prop_assert!(read(&rules, bytes.chunks(1)) == expected);
        if bytes.len() < 600 {
            for cut in 0..bytes.len() {
                let (head, tail) = bytes.split_at(cut);
                prop_assert!(read(&rules, [head, tail]) == expected, "cut at {}", cut);
            }
        }
    }

    #[test]
    fn a_damaged_stream_ends_the_same_however_it_is_cut(
        steps in steps(),
        masked: bool,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        lengths in lengths(),
    ) {
        let rules = ReadRules { masked, deflate: false, message_bytes_max: 70_000 };
        let (mut bytes, _) = encode(&rules, &steps);
        for (index, byte) in &damage {
            if !bytes.is_empty() {
                let at = index.index(bytes.len().min(200));
                bytes[at] ^= byte;
            }
        }
        let whole = read(&rules, [&bytes[..]]);
        prop_assert!(read(&rules, pieces(&bytes, &lengths)) == whole);
        prop_assert!(read(&rules, bytes.chunks(1)) == whole);
    }

    #[test]
    fn random_bytes_are_refused_or_kept_within_bounds(
        bytes in proptest::collection::vec(any::<u8>(), 0..2000),
        opcode in 0..3u8,
        masked: bool,
        lengths in lengths(),
    ) {
        let rules = ReadRules { masked, deflate: false, message_bytes_max: 1000 };
        // A lawful start lets the rest get further.
        let mut bytes = bytes;
        if let [first, second, ..] = &mut bytes[..] {
            *first = *first & 0x80 | opcode;
            *second = *second & 0x7f | u8::from(masked) << 7;
        }
        let whole = read(&rules, [&bytes[..]]);
        prop_assert_eq!(read(&rules, pieces(&bytes, &lengths)), whole);
    }

    #[test]
    fn frames_of_tungstenite_are_read(
        messages in proptest::collection::vec(message(), 0..6),
        masked: bool,
        lengths in lengths(),
    ) {
        let (rules, role) = if masked { (SERVER, Role::Client) } else { (CLIENT, Role::Server) };
        let mut socket = WebSocket::from_raw_socket(Pipe::default(), role, None);
        for message in &messages {
            socket.send(message.clone()).unwrap();
        }
        let close = tungstenite::protocol::CloseFrame { code: 3001.into(), reason: "bye".into() };
        socket.close(Some(close)).unwrap();
        let written = &socket.get_ref().written;
        let mut expected: Vec<Seen> = messages.iter().map(seen).collect();
        expected.push(Seen::Close(Some(3001), "bye".to_string()));
        prop_assert_eq!(read(&rules, pieces(written, &lengths)), expected);
    }

    #[test]
    fn frames_are_read_by_tungstenite(
        messages in proptest::collection::vec(message(), 0..6),
        masked: bool,
        key: [u8; 4],
    ) {
        let mut out = Vec::new();
        for message in &messages {
            let (opcode, data) = match message {
                Message::Text(text) => (TEXT, text.as_bytes()),
                Message::Binary(data) => (BINARY, &data[..]),
                Message::Ping(data) => (PING, &data[..]),
                Message::Pong(data) => (PONG, &data[..]),
                _ => unreachable!(),
            };
            if masked {
                put_masked(&mut out, opcode, data, key);
            } else {
                put_frame(&mut out, opcode, data);
            }
        }
        let role = if masked { Role::Server } else { Role::Client };
        if !masked {
            close_frame(&mut out, Some(1013), "later");
        }
        let pipe = Pipe { input: Cursor::new(out), written: Vec::new() };
        let config = WebSocketConfig::default().accept_unmasked_frames(false);
        let mut socket = WebSocket::from_raw_socket(pipe, role, Some(config));
        for message in &messages {
            prop_assert_eq!(&socket.read().unwrap(), message);
        }
        if !masked {
            match socket.read().unwrap() {
                Message::Close(Some(frame)) => {
                    prop_assert_eq!(u16::from(frame.code), 1013);
                    prop_assert_eq!(frame.reason.as_str(), "later");
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

fn message() -> impl Strategy<Value = Message> {
    let bytes = |max| proptest::collection::vec(any::<u8>(), 0..=max).prop_map(Bytes::from);
    prop_oneof![
        "\\PC{0,80}".prop_map(Message::text),
        bytes(400).prop_map(Message::Binary),
        bytes(70_000).prop_map(Message::Binary),
        bytes(125).prop_map(Message::Ping),
        bytes(125).prop_map(Message::Pong),
    ]
}

fn seen(message: &Message) -> Seen {
    match message {
        Message::Text(text) => Seen::Text(text.as_bytes().to_vec()),
        Message::Binary(data) => Seen::Binary(data.to_vec()),
        Message::Ping(data) => Seen::Ping(data.to_vec()),
        Message::Pong(data) => Seen::Pong(data.to_vec()),
        _ => unreachable!(),
    }
}

/// A connection in memory, for the counterpart.
#[derive(Default)]
struct Pipe {
    input: Cursor<Vec<u8>>,
    written: Vec<u8>,
}

impl Read for Pipe {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.input.read(room)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.written.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
