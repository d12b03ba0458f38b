//! The byte form of a message that has begun.

use super::{Incoming, MessageKind, OpCode, Partial, Reader};
use crate::base::image::{Broken, Durable, ImageReader, ImageWriter, durable, durable_enum};

durable_enum!(MessageKind { Text = 0, Binary = 1 });

durable!(Incoming { opcode, fin, key, taken, len });

// The next call ends the loan of an event in any case.
durable!(Partial { head, head_len, frame, kind, deflated, message, utf8, control } anew {
    lent: None,
});

impl Durable for OpCode {
    fn write(&self, out: &mut ImageWriter) {
        out.field(&u8::from(*self));
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        match u8::read(from)? {
            opcode @ (0..=2 | 8..=10) => Ok(Self::from(opcode)),
            _ => Err(Broken::Value("an opcode")),
        }
    }
}

impl Durable for Reader {
    fn write(&self, out: &mut ImageWriter) {
        debug_assert!(self.0.as_ref().is_none_or(|partial| partial.lent.is_none()));
        out.field(&self.0);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        let partial: Option<Box<Partial>> = from.field("Reader.partial")?;
        let is_sound = partial.as_ref().is_none_or(|partial| {
            usize::from(partial.head_len) < partial.head.len()
                && partial.frame.is_none_or(|frame| frame.taken <= frame.len)
        });
        if is_sound { Ok(Self(partial)) } else { Err(Broken::Value("a message that has begun")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time::Millis;
    use crate::proto::ws::{Event, ReadRules};

    fn again(reader: &Reader) -> Reader {
        let mut out = ImageWriter::new(Millis(0));
        out.record(2, |out| out.field(reader));
        let image = out.finish();
        let mut from = ImageReader::new(&image, Millis(0)).unwrap();
        from.next_record().unwrap();
        let again = Reader::read(&mut from).unwrap();
        assert_eq!(from.next_record(), Ok(None));
        again
    }

    /// Frames of a client whose mask is zeros but for its last byte.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first, 0x80 | payload.len() as u8, 0, 0, 0, 1];
        frame.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at % 4 == 3)));
        frame
    }

    #[test]
    fn a_message_goes_on_in_another_reader_behind_any_byte() {
        let rules = ReadRules { masked: true, deflate: true, message_bytes_max: 1000 };
        let mut stream = Vec::new();
        // A text in three fragments, its characters cut; a ping between; a deflated binary message.
        let text = "žluťoučký kůň";
        let (one, rest) = text.as_bytes().split_at(4);
        let (two, three) = rest.split_at(5);
        stream.extend(frame(0x01, one));
        stream.extend(frame(0x89, b"ping"));
        stream.extend(frame(0x00, two));
        stream.extend(frame(0x80, three));
        stream.extend(frame(0xc2, b"deflated"));
        let events = |cut: usize| {
            let mut reader = Reader::new();
            let mut found = Vec::new();
            for piece in [&stream[..cut], &stream[cut..]] {
                let mut piece = piece.to_vec();
                let mut at = 0;
                while let Some(event) = reader.next(&rules, &mut piece, &mut at).unwrap() {
                    found.push(match event {
                        Event::Message { kind, deflated, data } => {
                            format!("{kind:?} {deflated} {data:?}")
                        }
                        other => format!("{other:?}"),
                    });
                }
                reader = again(&reader);
            }
            assert!(reader.is_idle());
            found
        };
        let whole = events(0);
        assert_eq!(whole.len(), 3);
        for cut in 1..stream.len() {
            assert_eq!(events(cut), whole, "cut behind {cut} bytes");
        }
    }
}
