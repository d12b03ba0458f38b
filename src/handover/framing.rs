//! Messages in a stream of bytes: each with its length before it, four bytes, little endian.

use super::Message;
use crate::base::image::Broken;

/// Bytes of a message at most. The largest one names the options of a node.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

const LENGTH_BYTES: usize = 4;

/// The bytes of a message as they go into the stream.
pub fn framed(message: &Message) -> Vec<u8> {
    let body = message.to_bytes();
    let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
    bytes.extend_from_slice(&body);
    bytes
}

/// Takes messages out of a stream, however its bytes are cut.
#[derive(Debug, Default)]
pub struct Unframer {
    bytes: Vec<u8>,
}

impl Unframer {
    /// Takes more bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next message, if all of it is there.
    ///
    /// # Errors
    /// The bytes can't become a message: the stream has to be closed.
    pub fn next_message(&mut self) -> Result<Option<Message>, Broken> {
        let Some((length, rest)) = self.bytes.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > MESSAGE_BYTES_MAX {
            return Err(Broken::Value("the length of a message"));
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let message = Message::from_bytes(body)?;
        self.bytes.drain(..LENGTH_BYTES + length);
        Ok(Some(message))
    }

    /// Nothing of a message has come that is not whole.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::messages::tests::examples;
    use super::*;

    #[test]
    fn messages_come_out_of_a_stream_however_it_is_cut() {
        let stream: Vec<u8> = examples().iter().flat_map(framed).collect();
        for step in [1, 2, 3, 7, 64, stream.len()] {
            let mut unframer = Unframer::default();
            let mut found = Vec::new();
            for bytes in stream.chunks(step) {
                unframer.push(bytes);
                while let Some(message) = unframer.next_message().unwrap() {
                    found.push(message);
                }
            }
            assert_eq!(found, examples(), "{step}");
            assert!(unframer.is_empty());
        }
    }

    #[test]
    fn a_length_is_bounded_before_its_bytes_have_come() {
        let mut unframer = Unframer::default();
        unframer.push(&(MESSAGE_BYTES_MAX as u32 + 1).to_le_bytes());
        assert!(unframer.next_message().is_err());
        let mut unframer = Unframer::default();
        unframer.push(&(MESSAGE_BYTES_MAX as u32).to_le_bytes());
        assert_eq!(unframer.next_message(), Ok(None));
        let mut unframer = Unframer::default();
        unframer.push(&[3, 0, 0, 0, b'a', b'b', b'c']);
        assert!(unframer.next_message().is_err());
    }
}
