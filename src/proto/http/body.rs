//! The body of a request (RFC 9112 6 and 7.1), collected whole, up to a bound.

use super::head::Body;
use super::response::Refusal;
use crate::base::image::{Broken, Durable, ImageReader, ImageWriter};
use httparse::{InvalidChunkSize, Status};

/// A body on its way in.
///
/// Shape: what has come of it so far; a chunked one is kept without its chunks' marks.
#[derive(Debug)]
pub struct BodyReader {
    state: State,
    bytes: Vec<u8>,
    bytes_max: usize,
    /// The beginning of a line of a chunked body.
    line: Vec<u8>,
    /// Lines of the trailer so far, in bytes.
    trailer_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes are to come.
    Length(usize),
    /// The line with a chunk's size.
    Size,
    /// So many bytes of a chunk are to come.
    Chunk(usize),
    /// The line end behind a chunk.
    ChunkEnd,
    /// Trailer fields, up to an empty line.
    Trailer,
    Done,
}

impl Durable for State {
    fn write(&self, out: &mut ImageWriter) {
        let (number, left) = match self {
            Self::Length(left) => (0u8, *left),
            Self::Size => (1, 0),
            Self::Chunk(left) => (2, *left),
            Self::ChunkEnd => (3, 0),
            Self::Trailer => (4, 0),
            Self::Done => (5, 0),
        };
        out.field(&(number, left));
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        Ok(match <(u8, usize)>::read(from)? {
            (0, left) => Self::Length(left),
            (1, 0) => Self::Size,
            (2, left) => Self::Chunk(left),
            (3, 0) => Self::ChunkEnd,
            (4, 0) => Self::Trailer,
            (5, 0) => Self::Done,
            _ => return Err(Broken::Value("the state of a body")),
        })
    }
}

impl Durable for BodyReader {
    fn write(&self, out: &mut ImageWriter) {
        let Self { state, bytes, bytes_max, line, trailer_bytes } = self;
        out.field(state);
        out.field(bytes);
        out.field(bytes_max);
        out.field(line);
        out.field(trailer_bytes);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        let read = Self {
            state: from.field("BodyReader.state")?,
            bytes: from.field("BodyReader.bytes")?,
            bytes_max: from.field("BodyReader.bytes_max")?,
            line: from.field("BodyReader.line")?,
            trailer_bytes: from.field("BodyReader.trailer_bytes")?,
        };
        let left = match read.state {
            State::Length(left) | State::Chunk(left) => left,
            _ => 0,
        };
        let room = read.bytes_max.checked_sub(read.bytes.len());
        match room.is_some_and(|room| left <= room) && read.line.len() <= LINE_BYTES_MAX {
            true => Ok(read),
            false => Err(Broken::Value("a body")),
        }
    }
}

impl BodyReader {
    /// A body of which nothing has come.
    ///
    /// # Errors
    /// [`Refusal::BodyTooLong`] when it is said to be longer than `bytes_max`.
    pub fn new(body: Body, bytes_max: usize) -> Result<Self, Refusal> {
        let state = match body {
            Body::Length(0) => State::Done,
            Body::Length(length) => match usize::try_from(length) {
                Ok(length) if length <= bytes_max => State::Length(length),
                _ => return Err(Refusal::BodyTooLong),
            },
            Body::Chunked => State::Size,
        };
        let (bytes, line) = (Vec::new(), Vec::new());
        Ok(Self { state, bytes, bytes_max, line, trailer_bytes: 0 })
    }

    /// Takes what is the body's of `input`: so many bytes. The rest is the next request's.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] for broken chunks, [`Refusal::BodyTooLong`] beyond the bound.
    pub fn take(&mut self, input: &[u8]) -> Result<usize, Refusal> {
        let mut at = 0;
        while self.state != State::Done && at < input.len() {
            let rest = &input[at..];
            at += match self.state {
                State::Length(left) | State::Chunk(left) => self.take_data(rest, left),
                State::Size | State::ChunkEnd | State::Trailer => self.take_line(rest)?,
                State::Done => 0,
            };
        }
        Ok(at)
    }

    /// Bytes that were collected so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Nothing was collected.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// All of it is there.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The collected bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn take_data(&mut self, input: &[u8], left: usize) -> usize {
        let taken = input.len().min(left);
        self.bytes.extend_from_slice(&input[..taken]);
        self.state = match (self.state, left - taken) {
            (State::Chunk(_), 0) => State::ChunkEnd,
            (State::Chunk(_), left) => State::Chunk(left),
            (_, 0) => State::Done,
            (_, left) => State::Length(left),
        };
        taken
    }

    /// Takes up to the end of a line, and goes by what it says when it is whole.
    fn take_line(&mut self, input: &[u8]) -> Result<usize, Refusal> {
        let end = input.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(input.len(), |end| end + 1);
        self.line.extend_from_slice(&input[..taken]);
        if self.line.len() > LINE_BYTES_MAX {
            return Err(Refusal::Malformed);
        }
        if end.is_none() {
            return Ok(taken);
        }
        let line = std::mem::take(&mut self.line);
        self.state = match self.state {
            // A size without a digit would be taken for 0.
            State::Size if !line[0].is_ascii_hexdigit() => return Err(Refusal::Malformed),
            State::Size => match httparse::parse_chunk_size(&line) {
                Ok(Status::Complete((_, 0))) => State::Trailer,
                Ok(Status::Complete((_, size))) => match usize::try_from(size) {
                    Ok(size) if size <= self.bytes_max - self.bytes.len() => State::Chunk(size),
                    _ => return Err(Refusal::BodyTooLong),
                },
                Ok(Status::Partial) | Err(InvalidChunkSize) => return Err(Refusal::Malformed),
            },
            State::ChunkEnd if is_empty(&line) => State::Size,
            State::Trailer if is_empty(&line) => State::Done,
            State::Trailer => {
                self.trailer_bytes += line.len();
                if self.trailer_bytes > TRAILER_BYTES_MAX {
                    return Err(Refusal::HeadTooLong);
                }
                State::Trailer
            }
            _ => return Err(Refusal::Malformed),
        };
        Ok(taken)
    }
}

fn is_empty(line: &[u8]) -> bool {
    matches!(line, b"\r\n" | b"\n")
}

/// A line with a chunk's size and extensions, or of the trailer, at most.
const LINE_BYTES_MAX: usize = 1024;

/// All lines of the trailer at most; they are read and thrown away.
const TRAILER_BYTES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(body: Body, pieces: &[&[u8]], max: usize) -> Result<(Vec<u8>, usize, bool), Refusal> {
        let mut reader = BodyReader::new(body, max)?;
        let mut taken = 0;
        for piece in pieces {
            taken += reader.take(piece)?;
        }
        let done = reader.is_done();
        Ok((reader.into_bytes(), taken, done))
    }

    #[test]
    fn a_body_goes_on_in_another_reader_behind_any_byte() {
        use crate::base::image::{Durable, ImageReader, ImageWriter};
        use crate::base::time::Millis;

        let again = |reader: &BodyReader| {
            let mut out = ImageWriter::new(Millis(0));
            out.record(2, |out| out.field(reader));
            let image = out.finish();
            let mut from = ImageReader::new(&image, Millis(0)).unwrap();
            from.next_record().unwrap();
            BodyReader::read(&mut from).unwrap()
        };
        let chunked = b"4;x=y\r\nWiki\r\n6\r\npedia \r\n0\r\nA: b\r\n\r\nnext".to_vec();
        for (body, input, expected) in [
            (Body::Chunked, chunked, b"Wikipedia ".to_vec()),
            (Body::Length(5), b"12345next".to_vec(), b"12345".to_vec()),
        ] {
            for cut in 0..input.len() {
                let mut reader = again(&BodyReader::new(body, 100).unwrap());
                let mut taken = reader.take(&input[..cut]).unwrap();
                reader = again(&reader);
                taken += reader.take(&input[taken..]).unwrap();
                assert!(again(&reader).is_done(), "cut behind {cut} bytes");
                assert_eq!(&input[taken..], b"next");
                assert_eq!(reader.into_bytes(), expected);
            }
        }
    }

    #[test]
    fn bodies_by_length() {
        let whole = |text: &str| Ok((text.as_bytes().to_vec(), text.len(), true));
        assert_eq!(read(Body::Length(0), &[b"GET"], 9), whole(""));
        assert_eq!(read(Body::Length(3), &[b"abcGET"], 3), whole("abc"));
        assert_eq!(read(Body::Length(3), &[b"a", b"b", b"cd"], 3), whole("abc"));
        assert_eq!(read(Body::Length(3), &[b"ab"], 3), Ok((b"ab".to_vec(), 2, false)));
        assert_eq!(read(Body::Length(4), &[], 3), Err(Refusal::BodyTooLong));
        assert_eq!(read(Body::Length(u64::MAX), &[], usize::MAX - 1), Err(Refusal::BodyTooLong));
    }

    #[test]
    fn chunked_bodies() {
        let text: &[u8] = b"3\r\nabc\r\nA;x=\"y\"\r\n0123456789\r\n0\r\nX: y\r\n\r\n";
        let whole = (b"abc0123456789".to_vec(), text.len(), true);
        assert_eq!(read(Body::Chunked, &[text, b"GET"], 13), Ok(whole.clone()));
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(read(Body::Chunked, &bytes, 13), Ok(whole));
        assert_eq!(read(Body::Chunked, &[b"0\r\n\r\n"], 0), Ok((Vec::new(), 5, true)));
        let long = "x".repeat(LINE_BYTES_MAX + 1);
        let trailer = format!("0\r\n{}", "X: y\r\n".repeat(TRAILER_BYTES_MAX));
        let table: [(&[u8], Refusal); 8] = [
            (b"\r\n", Refusal::Malformed),
            (b"x\r\n", Refusal::Malformed),
            (b"-1\r\n", Refusal::Malformed),
            (b"fffffffffffffffff\r\n", Refusal::Malformed),
            (b"3\r\nabcd\r\n", Refusal::Malformed),
            (b"ffffffffffffffff\r\n", Refusal::BodyTooLong),
            (long.as_bytes(), Refusal::Malformed),
            (trailer.as_bytes(), Refusal::HeadTooLong),
        ];
        for (text, refusal) in table {
            assert_eq!(read(Body::Chunked, &[text], 1 << 20), Err(refusal), "{text:?}");
        }
        assert_eq!(read(Body::Chunked, &[text], 12), Err(Refusal::BodyTooLong));
    }

    proptest! {
        // However it is cut, it is the same body.
        #[test]
        fn cuts_do_not_matter(
            chunks in proptest::collection::vec(1..40usize, 0..6),
            cuts in proptest::collection::vec(1..30usize, 1..20),
        ) {
            let mut text = Vec::new();
            let mut whole = Vec::new();
            for (number, size) in (b'a'..).zip(&chunks) {
                text.extend(format!("{size:x}\r\n").as_bytes());
                text.extend(vec![number; *size]);
                whole.extend(vec![number; *size]);
                text.extend(b"\r\n");
            }
            text.extend(b"0\r\n\r\n");
            let bytes = text.len();
            text.extend(b"next");
            let mut reader = BodyReader::new(Body::Chunked, whole.len()).unwrap();
            let mut at = 0;
            for cut in cuts.iter().cycle() {
                let end = (at + cut).min(text.len());
                at += reader.take(&text[at..end]).unwrap();
                if reader.is_done() {
                    break;
                }
            }
            prop_assert_eq!(at, bytes);
            prop_assert_eq!(reader.into_bytes(), whole);
        }
    }
}
