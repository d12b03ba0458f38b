//! WebSocket frames: however the bytes come in pieces, the events are the same, and so they are when
//! they are written again; what is held is bounded by what came.
//!
//! Input: a byte of rules (bit 0 masked, bit 1 short messages, the rest how many pieces), a byte for
//! the length of each piece, then the stream; what the pieces leave of it is the last one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use roost::proto::ws::{
    BINARY, CLOSE, Event, Fault, MessageKind, OpCode, PING, PONG, ReadRules, Reader, TEXT,
    put_frame, put_masked,
};

/// An event as its opcode and payload.
type Seen = (OpCode, Vec<u8>);

fn seen(event: Event<'_>) -> Seen {
    match event {
        Event::Message { kind: MessageKind::Text, data, .. } => {
            assert!(std::str::from_utf8(data).is_ok());
            (TEXT, data.to_vec())
        }
        Event::Message { kind: MessageKind::Binary, data, .. } => (BINARY, data.to_vec()),
        Event::Ping(data) => (PING, data.to_vec()),
        Event::Pong(data) => (PONG, data.to_vec()),
        Event::Close { code, reason } => {
            let code = code.into_iter().flat_map(u16::to_be_bytes);
            (CLOSE, code.chain(reason.bytes()).collect())
        }
    }
}

/// All events up to a close or a fault.
fn read<'p>(
    rules: &ReadRules,
    pieces: impl IntoIterator<Item = &'p [u8]>,
) -> (Vec<Seen>, Option<Fault>) {
    let mut reader = Reader::new();
    let mut events = Vec::new();
    let mut came = 0;
    for piece in pieces {
        let mut input = piece.to_vec();
        came += input.len();
        let mut at = 0;
        loop {
            match reader.next(rules, &mut input, &mut at) {
                Ok(Some(event)) => events.push(seen(event)),
                Ok(None) => break,
                Err(fault) => return (events, Some(fault)),
            }
            if matches!(events.last(), Some((CLOSE, _))) {
                return (events, None);
            }
        }
        assert_eq!(at, input.len());
        assert!(reader.bytes_held() <= 2 * came.min(rules.message_bytes_max) + 512);
        assert_eq!(reader.is_idle(), reader.bytes_held() == 0);
    }
    (events, None)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((flags, rest)) = bytes.split_first() else { return };
    let message_bytes_max = if flags & 2 == 0 { 1 << 16 } else { 200 };
    let rules = ReadRules { masked: flags & 1 == 1, deflate: false, message_bytes_max };
    let Some((cuts, stream)) = rest.split_at_checked(usize::from(flags >> 2)) else { return };
    let whole = read(&rules, [stream]);

    let mut rest = stream;
    let mut pieces = Vec::new();
    for cut in cuts {
        let (piece, behind) = rest.split_at(rest.len().min(usize::from(*cut)));
        pieces.push(piece);
        rest = behind;
    }
    pieces.push(rest);
    assert_eq!(read(&rules, pieces), whole);
    assert_eq!(read(&rules, stream.chunks(1)), whole);

    let (events, _) = whole;
    let mut again = Vec::new();
    for (opcode, payload) in &events {
        match rules.masked {
            true => put_masked(&mut again, *opcode, payload, [0x5a, 0, 0xff, 0x81]),
            false => put_frame(&mut again, *opcode, payload),
        }
    }
    assert_eq!(read(&rules, [&again[..]]), (events, None));
});
