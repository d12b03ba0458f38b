//! Bytes to events: the reading half of RFC 6455.

mod image;

use super::fault::Fault;
use super::header::{self, HEADER_BYTES_MAX, Header};
use super::rules::ReadRules;
use super::utf8::Utf8;
use super::{BINARY, CLOSE, CONTINUATION, OpCode, PING, PONG, TEXT, close, mask};
use std::ops::Range;

/// Text or binary (RFC 6455 5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// UTF-8, checked.
    Text,
    /// Any bytes.
    Binary,
}

/// The received data, unmasked, lent until the next call.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole message, its fragments joined. The bytes are the caller's to overwrite.
    Message {
        /// Text or binary.
        kind: MessageKind,
        /// The payload is deflated (RFC 7692), without its tail.
        deflated: bool,
        /// The payload; valid UTF-8 if text and not deflated.
        data: &'a mut [u8],
    },
    /// A ping: to be answered with a pong of the same payload, at most 125 bytes.
    Ping(&'a [u8]),
    /// A pong, solicited or not.
    Pong(&'a [u8]),
    /// The peer closes. What follows this in the input means nothing any more.
    Close {
        /// The peer's code, valid on the wire; `None` for an empty close frame.
        code: Option<u16>,
        /// The peer's reason, at most 123 bytes.
        reason: &'a str,
    },
}

/// Reads one connection's frames. Shape: one pointer, null between messages.
///
/// ```text
///           header and payload whole in the input, not a fragment: lent from there
///   idle ---------------------------------------------------------------------------> event
///     '--> kept (Partial): part of a header | part of a payload | earlier fragments --> event
///              ^-------------------------- next() gives back what was lent, then frees ----'
/// ```
#[derive(Debug, Default)]
pub struct Reader(Option<Box<Partial>>);

const _: () = assert!(size_of::<Reader>() == 8);
const _: () = assert!(size_of::<Fault>() <= 16);
const _: () = assert!(size_of::<Partial>() <= 128);

/// An unfinished message. Exists from its first byte to the call after the last.
#[derive(Debug, Default)]
struct Partial {
    /// Start of a header: `head[..head_len]`, empty while in a payload.
    head: [u8; HEADER_BYTES_MAX],
    head_len: u8,
    /// The frame whose payload is arriving.
    frame: Option<Incoming>,
    /// The message that the fragments belong to: its kind, its bytes so far, its text's check.
    kind: Option<MessageKind>,
    deflated: bool,
    message: Vec<u8>,
    utf8: Utf8,
    /// Payload of a control frame that arrives in pieces, between fragments or alone.
    control: Vec<u8>,
    /// The bytes that the last call lent from here, and that the next one drops.
    lent: Option<Lent>,
}

/// A frame after its header.
#[derive(Clone, Copy, Debug)]
struct Incoming {
    opcode: OpCode,
    fin: bool,
    key: [u8; 4],
    /// Payload bytes that have arrived, of `len` in all.
    taken: usize,
    len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lent {
    Control,
    Message,
}

/// An event whose bytes are not borrowed yet.
struct Found {
    opcode: OpCode,
    deflated: bool,
    place: Place,
}

enum Place {
    Input(Range<usize>),
    Control,
    Message,
}

impl Reader {
    /// A reader that has kept nothing.
    pub const fn new() -> Self {
        Self(None)
    }

    /// Whether nothing is kept. What the last event lent is kept until the next call.
    pub fn is_idle(&self) -> bool {
        self.0.is_none()
    }

    /// Bytes of heap that are kept.
    pub fn bytes_held(&self) -> usize {
        self.0.as_ref().map_or(0, |partial| {
            size_of::<Partial>() + partial.message.capacity() + partial.control.capacity()
        })
    }

    /// The next event of the stream that goes on with `input[*at..]`; `*at` moves behind what was
    /// taken. `None`: all of the input is taken, and what is unfinished in it is kept.
    ///
    /// A frame that lies whole in the input is unmasked in place and lent from there, without a
    /// copy; what came in pieces is lent from the reader, which lets go of it with the next call
    /// (with no new input, too). Input behind `*at` is untouched, so the caller may keep it and
    /// come back with it later. After a close event or a fault there is nothing more to call for.
    ///
    /// # Errors
    /// The first thing that the peer may not do. [`Fault::close_code`] says how to answer.
    ///
    /// Bounds: holds at most twice what has come of a message, never what is only announced, and
    /// in no case more than [`ReadRules::message_bytes_max`] and a few hundred bytes.
    pub fn next<'a>(
        &'a mut self,
        rules: &ReadRules,
        input: &'a mut [u8],
        at: &mut usize,
    ) -> Result<Option<Event<'a>>, Fault> {
        if self.is_idle() && *at == input.len() {
            return Ok(None);
        }
        self.take_back();
        let Some(Found { opcode, deflated, place }) = self.find(rules, input, at)? else {
            return Ok(None);
        };
        let data: &mut [u8] = match (place, self.0.as_deref_mut()) {
            (Place::Input(range), _) => &mut input[range],
            (Place::Control, Some(partial)) => {
                partial.lent = Some(Lent::Control);
                &mut partial.control
            }
            (Place::Message, Some(partial)) => {
                partial.lent = Some(Lent::Message);
                &mut partial.message
            }
            // Only a partial finds these.
            (Place::Control | Place::Message, None) => &mut [],
        };
        Ok(Some(match opcode {
            PING => Event::Ping(data),
            PONG => Event::Pong(data),
            CLOSE => {
                let (code, reason) = close::parse(data)?;
                Event::Close { code, reason }
            }
            TEXT => Event::Message { kind: MessageKind::Text, deflated, data },
            _ => Event::Message { kind: MessageKind::Binary, deflated, data },
        }))
    }

    /// Ends the loan of the last event, and frees the partial if that was all it was for.
    pub fn take_back(&mut self) {
        let Some(partial) = self.0.as_deref_mut() else { return };
        match partial.lent.take() {
            None => return,
            Some(Lent::Control) => partial.control = Vec::new(),
            Some(Lent::Message) => {
                partial.message = Vec::new();
                partial.kind = None;
            }
        }
        self.free_if_empty();
    }

    fn free_if_empty(&mut self) {
        if self.0.as_ref().is_some_and(|p| {
            p.head_len == 0 && p.frame.is_none() && p.kind.is_none() && p.lent.is_none()
        }) {
            self.0 = None;
        }
    }

    fn find(
        &mut self,
        rules: &ReadRules,
        input: &mut [u8],
        at: &mut usize,
    ) -> Result<Option<Found>, Fault> {
        loop {
            if let Some(partial) = self.0.as_deref_mut()
                && let Some(frame) = &mut partial.frame
            {
                let start = *at;
                *at += (frame.len - frame.taken).min(input.len() - start);
                let piece = &mut input[start..*at];
                if rules.masked {
                    mask(piece, frame.key, frame.taken);
                }
                frame.taken += piece.len();
                let frame = *frame;
                match partial.take_payload(rules, frame, piece)? {
                    Some(found) => return Ok(Some(found)),
                    None if frame.taken < frame.len => return Ok(None),
                    None => continue,
                }
            }
            let Some(header) = self.read_header(rules, input, at)? else { return Ok(None) };
            let len = self.check_in_context(rules, &header)?;
            let end = at.checked_add(len).filter(|end| *end <= input.len());
            if let Some(end) = end
                && (header.opcode == PING
                    || header.opcode == PONG
                    || header.opcode == CLOSE
                    || header.fin && header.opcode != CONTINUATION)
            {
                let range = *at..end;
                *at = end;
                let payload = &mut input[range.clone()];
                if rules.masked {
                    mask(payload, header.key, 0);
                }
                let deflated = header.deflated;
                if header.opcode == TEXT
                    && !deflated
                    && simdutf8::basic::from_utf8(payload).is_err()
                {
                    return Err(Fault::TextNotUtf8);
                }
                self.free_if_empty();
                let place = Place::Input(range);
                return Ok(Some(Found { opcode: header.opcode, deflated, place }));
            }
            self.0.get_or_insert_default().begin(&header, len);
        }
    }

    /// The header at `*at`, joined with what was kept of it; `None` when the input ends inside.
    fn read_header(
        &mut self,
        rules: &ReadRules,
        input: &[u8],
        at: &mut usize,
    ) -> Result<Option<Header>, Fault> {
        let rest = &input[*at..];
        let kept = self.0.as_ref().map_or(0, |partial| usize::from(partial.head_len));
        if kept == 0 {
            if let Some(header) = header::parse(rest, rules)? {
                *at += header.bytes;
                return Ok(Some(header));
            }
            *at = input.len();
            if !rest.is_empty() {
                // The parser wants no more than 14 bytes, so it has seen fewer.
                let partial = self.0.get_or_insert_default();
                partial.head[..rest.len()].copy_from_slice(rest);
                partial.head_len = rest.len() as u8;
            }
            return Ok(None);
        }
        let Some(partial) = self.0.as_deref_mut() else { return Ok(None) };
        let joined = HEADER_BYTES_MAX.min(kept + rest.len());
        partial.head[kept..joined].copy_from_slice(&rest[..joined - kept]);
        match header::parse(&partial.head[..joined], rules)? {
            Some(header) => {
                partial.head_len = 0;
                *at += header.bytes - kept;
                Ok(Some(header))
            }
            None => {
                partial.head_len = joined as u8;
                *at = input.len();
                Ok(None)
            }
        }
    }

    /// The validity of a header depends on its message. Returns the length of the payload.
    fn check_in_context(&self, rules: &ReadRules, header: &Header) -> Result<usize, Fault> {
        if matches!(header.opcode, OpCode::Control(_)) {
            return Ok(header.len as usize);
        }
        let message = self.0.as_ref().filter(|partial| partial.kind.is_some());
        //= RFC 6455 5.4: fragments of one message are not interleaved with another's
        match (message, header.opcode) {
            (None, CONTINUATION) => return Err(Fault::ContinuationWithoutStart),
            (Some(_), TEXT | BINARY) => return Err(Fault::StartInsideMessage),
            _ => {}
        }
        let held = message.map_or(0, |partial| partial.message.len());
        // held <= message_bytes_max and len < 2^63.
        let bytes = held as u64 + header.len;
        if bytes > rules.message_bytes_max as u64 {
            return Err(Fault::MessageTooLong { bytes });
        }
        Ok(header.len as usize)
    }
}

impl Partial {
    fn begin(&mut self, header: &Header, len: usize) {
        let kind = match header.opcode {
            TEXT => Some(MessageKind::Text),
            BINARY => Some(MessageKind::Binary),
            _ => None,
        };
        if kind.is_some() {
            (self.kind, self.deflated) = (kind, header.deflated);
        }
        self.frame = Some(Incoming {
            opcode: header.opcode,
            fin: header.fin,
            key: header.key,
            taken: 0,
            len,
        });
    }

    /// Adds a piece of the current frame's payload, unmasked; `frame` counts it as taken.
    fn take_payload(
        &mut self,
        rules: &ReadRules,
        frame: Incoming,
        piece: &[u8],
    ) -> Result<Option<Found>, Fault> {
        let whole = frame.taken == frame.len;
        if whole {
            self.frame = None;
        }
        if matches!(frame.opcode, OpCode::Control(_)) {
            self.control.extend_from_slice(piece);
            let (opcode, place) = (frame.opcode, Place::Control);
            return Ok(whole.then_some(Found { opcode, deflated: false, place }));
        }
        if self.kind == Some(MessageKind::Text) && !self.deflated {
            self.utf8.push(piece)?;
        }
        // How long the message can still get: to the end of this frame if that is its last.
        let bytes_max = match frame.fin {
            true => self.message.len() + piece.len() + (frame.len - frame.taken),
            false => rules.message_bytes_max,
        };
        append(&mut self.message, piece, bytes_max);
        if !(whole && frame.fin) {
            return Ok(None);
        }
        self.utf8.finish()?;
        let opcode = if self.kind == Some(MessageKind::Text) { TEXT } else { BINARY };
        Ok(Some(Found { opcode, deflated: self.deflated, place: Place::Message }))
    }
}

/// Appends to a buffer that doubles, but not beyond `bytes_max`: what has come decides how much is
/// reserved, what was announced only bounds it.
fn append(buffer: &mut Vec<u8>, piece: &[u8], bytes_max: usize) {
    let bytes = buffer.len() + piece.len();
    if bytes > buffer.capacity() {
        let capacity = (2 * bytes).max(64).min(bytes_max).max(bytes);
        buffer.reserve_exact(capacity - buffer.len());
    }
    buffer.extend_from_slice(piece);
}

#[cfg(test)]
mod tests;
