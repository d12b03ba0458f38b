//! Helpers of the tests of this folder: events that own their bytes, frames written by hand.

use super::{Event, Fault, MessageKind, ReadRules, Reader};

/// An [`Event`] or the fault that ended the stream, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
    Fault(Fault),
}

impl Seen {
    fn of(event: Event<'_>) -> Self {
        match event {
            Event::Message { kind: MessageKind::Text, data, .. } => Self::Text(data.to_vec()),
            Event::Message { kind: MessageKind::Binary, data, .. } => Self::Binary(data.to_vec()),
            Event::Ping(data) => Self::Ping(data.to_vec()),
            Event::Pong(data) => Self::Pong(data.to_vec()),
            Event::Close { code, reason } => Self::Close(code, reason.to_string()),
        }
    }
}

pub(super) const SERVER: ReadRules =
    ReadRules { masked: true, deflate: false, message_bytes_max: 1 << 20 };
pub(super) const CLIENT: ReadRules =
    ReadRules { masked: false, deflate: false, message_bytes_max: 1 << 20 };

/// Feeds the pieces as a caller would, up to a close or a fault, and returns what was seen. Checks
/// on the way that what is held is bounded by what came, and that an idle reader holds nothing.
pub(super) fn read<'p>(rules: &ReadRules, pieces: impl IntoIterator<Item = &'p [u8]>) -> Vec<Seen> {
    let mut reader = Reader::new();
    let mut seen = Vec::new();
    let mut came = 0;
    for piece in pieces {
        // A copy with no room to spare, so that a read past the end can't go unnoticed.
        let mut input = piece.to_vec();
        let mut at = 0;
        came += input.len();
        loop {
            match reader.next(rules, &mut input, &mut at) {
                Ok(Some(event)) => seen.push(Seen::of(event)),
                Ok(None) => break,
                Err(fault) => {
                    seen.push(Seen::Fault(fault));
                    return seen;
                }
            }
            if let Some(Seen::Close(..)) = seen.last() {
                return seen;
            }
        }
        assert_eq!(at, input.len(), "all of the input is taken");
        assert!(reader.bytes_held() <= 2 * came.min(rules.message_bytes_max) + 512);
        assert_eq!(reader.is_idle(), reader.bytes_held() == 0);
    }
    seen
}

/// A frame from its first byte and its payload, masked as the rules want it, with minimal length.
pub(super) fn raw(rules: &ReadRules, first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mask_bit = if rules.masked { 0x80 } else { 0 };
    match payload.len() {
        len @ 0..126 => out.push(mask_bit | len as u8),
        len @ 126..65536 => {
            out.push(mask_bit | 126);
            out.extend((len as u16).to_be_bytes());
        }
        len => {
            out.push(mask_bit | 127);
            out.extend((len as u64).to_be_bytes());
        }
    }
    if rules.masked {
        let key = [0xa1, 0x5e, payload.len() as u8, first];
        out.extend(key);
        out.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    } else {
        out.extend(payload);
    }
    out
}
