//! permessage-deflate (RFC 7692) without context takeover: each message is deflated and inflated by itself,
//! so that no connection owns a window, and one compressor for each window size serves a whole shard.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::OpCode;
use super::header::HEADER_BYTES_MAX;
use super::write::{header_bytes, put_deflated_header};
use crate::base::form::{Form, WINDOW_BITS_MAX, WINDOW_BITS_MIN};

/// The end of every deflated message, left out on the wire (RFC 7692 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// Messages of fewer bytes aren't tried: what a deflated one could save is less than its cost.
pub const DEFLATE_BYTES_MIN: usize = 64;

/// How messages are deflated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeflateOptions {
    /// 1 (fast) to 9 (small).
    pub level: u32,
    /// Messages of fewer bytes go plain, and those of fewer than [`DEFLATE_BYTES_MIN`].
    pub bytes_min: usize,
}

/// Compressors, one for each window that is in use, for two-way and for one-way connections.
///
/// Shape: about 0.14 MB (9 bits) to 0.38 MB (15 bits) of heap for each window that was used since the
/// second last [`sweep`](Self::sweep), so 2.8 MB at most.
#[derive(Debug)]
pub struct Deflaters([Set; 2]);

#[derive(Debug)]
struct Set {
    options: DeflateOptions,
    by_window: [Option<Box<Deflater>>; WINDOWS],
}

const WINDOWS: usize = (WINDOW_BITS_MAX - WINDOW_BITS_MIN + 1) as usize;

#[derive(Debug)]
struct Deflater {
    compress: Compress,
    used: bool,
}

impl Deflaters {
    /// For connections both ways, and one way; no compressor is made before it is needed.
    pub fn new(two_way: DeflateOptions, one_way: DeflateOptions) -> Self {
        let set = |options| Set { options, by_window: [const { None }; WINDOWS] };
        Self([set(two_way), set(one_way)])
    }

    /// The compressor for a form, where messages go deflated and have so many bytes.
    fn of(&mut self, form: Form, bytes: usize) -> Option<&mut Compress> {
        let window_bits = form.framing().window_bits()?;
        let Set { options, by_window } = &mut self.0[usize::from(form.is_one_way())];
        if bytes < options.bytes_min.max(DEFLATE_BYTES_MIN) {
            return None;
        }
        let level = Compression::new(options.level.clamp(1, 9));
        let at = usize::from(window_bits - WINDOW_BITS_MIN);
        let deflater = by_window[at].get_or_insert_with(|| {
            let compress = Compress::new_with_window_bits(level, false, window_bits);
            Box::new(Deflater { compress, used: true })
        });
        deflater.used = true;
        Some(&mut deflater.compress)
    }

    /// Appends bytes that are part of a message, deflated by themselves, if the form is a deflated one and
    /// they are shorter so. Pieces make a message one behind another, the last [without its
    /// end](Self::finish).
    pub fn put_piece(&mut self, out: &mut Vec<u8>, form: Form, bytes: &[u8]) -> bool {
        let start = out.len();
        let Some(compress) = self.of(form, bytes.len()) else { return false };
        let fits = deflate(compress, bytes, out, start + bytes.len());
        if !fits {
            out.truncate(start);
        }
        fits
    }

    /// Appends the few bytes before or behind such a piece, as a block that is stored as it is.
    pub fn put_stored(out: &mut Vec<u8>, bytes: &[u8]) {
        for block in bytes.chunks(usize::from(u16::MAX)) {
            //= RFC 1951 3.2.4: no compression, on the boundary of a byte
            let len = block.len() as u16;
            out.push(0);
            out.extend_from_slice(&len.to_le_bytes());
            out.extend_from_slice(&(!len).to_le_bytes());
            out.extend_from_slice(block);
        }
    }

    /// Appends what ends a message of pieces whose last was stored (RFC 7692 7.2.1: an empty block
    /// without its last four bytes).
    pub fn finish(out: &mut Vec<u8>) {
        out.push(0);
    }

    /// Appends a message as a frame with RSV1 set, if that is shorter than the plain frame; else nothing.
    pub fn put_frame(
        &mut self,
        out: &mut Vec<u8>,
        opcode: OpCode,
        form: Form,
        message: &[u8],
    ) -> bool {
        let Some(compress) = self.of(form, message.len()) else { return false };
        // Behind the longest header; the real one is put in its place afterwards.
        let start = out.len();
        let body = start + HEADER_BYTES_MAX;
        out.resize(body, 0);
        // Output longer than the message needs no end.
        let fits = deflate(compress, message, out, body + message.len());
        let bytes = (out.len() - body).saturating_sub(TAIL.len());
        let plain = message.len() + header_bytes(message.len());
        if !fits || bytes + header_bytes(bytes) >= plain {
            out.truncate(start);
            return false;
        }
        debug_assert!(out.ends_with(&TAIL));
        out.truncate(body + bytes);
        let mut header = Vec::with_capacity(HEADER_BYTES_MAX);
        put_deflated_header(&mut header, opcode, bytes);
        let gap = HEADER_BYTES_MAX - header.len();
        out[start + gap..body].copy_from_slice(&header);
        out.drain(start..start + gap);
        true
    }

    /// Lets go of those that nobody used since the last time.
    pub fn sweep(&mut self) {
        for deflater in self.0.iter_mut().flat_map(|set| &mut set.by_window) {
            if !deflater.as_mut().is_some_and(|deflater| std::mem::take(&mut deflater.used)) {
                *deflater = None;
            }
        }
    }

    /// Windows with a compressor.
    pub fn len(&self) -> usize {
        self.0.iter().flat_map(|set| set.by_window.iter().flatten()).count()
    }

    /// No compressor is there.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Appends all of `message`, deflated and flushed. False when it is longer than `end` then.
///
/// There is room for the longest that it can get (a literal takes 9 bits at most in the fixed code of level 1):
/// a level-1 compressor of zlib-rs 0.6 that is called with a full output panics.
fn deflate(compress: &mut Compress, message: &[u8], out: &mut Vec<u8>, end: usize) -> bool {
    compress.reset();
    out.reserve(message.len() + message.len() / 4 + 1024);
    let done = compress.compress_vec(message, out, FlushCompress::Sync).is_ok()
        && compress.total_in() == message.len() as u64;
    debug_assert!(done && out.len() < out.capacity(), "all of it is there");
    done && out.len() <= end
}

/// Inflates messages of clients, whatever window they used.
#[derive(Debug, Default)]
pub struct Inflater(Option<Box<Decompress>>);

/// Why a message can't be inflated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InflateFault {
    /// It isn't what RFC 1951 says.
    Malformed,
    /// It is longer than it may be.
    TooLong,
}

impl Inflater {
    /// Appends the message that `deflated` is, at most `bytes_max` bytes of it.
    ///
    /// # Errors
    /// See [`InflateFault`]; what was appended so far stays.
    pub fn inflate(
        &mut self,
        deflated: &[u8],
        bytes_max: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), InflateFault> {
        let inflate = self.0.get_or_insert_with(|| Box::new(Decompress::new(false)));
        inflate.reset(false);
        let start = out.len();
        for mut input in [deflated, &TAIL] {
            while !input.is_empty() {
                let left = bytes_max - (out.len() - start);
                // One byte more than may be, so that it is seen.
                let room = (4 * input.len()).clamp(64, INFLATE_STEP_BYTES).min(left + 1);
                out.reserve_exact(room.saturating_sub(out.capacity() - out.len()));
                let before = (inflate.total_in(), out.len());
                let status = inflate
                    .decompress_vec(input, out, FlushDecompress::Sync)
                    .map_err(|_| InflateFault::Malformed)?;
                if out.len() - start > bytes_max {
                    return Err(InflateFault::TooLong);
                }
                let taken = (inflate.total_in() - before.0) as usize;
                input = &input[taken..];
                match status {
                    //= RFC 7692 7.2.3.4: a block may say that it is the last, and more may follow
                    Status::StreamEnd => inflate.reset(false),
                    _ if taken == 0 && out.len() == before.1 => {
                        return Err(InflateFault::Malformed);
                    }
                    _ => {}
                }
            }
        }
        // The rest of the window has to come out.
        loop {
            let left = bytes_max - (out.len() - start);
            out.reserve(64.min(left + 1));
            let before = out.len();
            let full = out.capacity();
            let ended = inflate.decompress_vec(&[], out, FlushDecompress::Sync);
            if out.len() - start > bytes_max {
                return Err(InflateFault::TooLong);
            }
            if ended.is_err() || out.len() == before || out.len() < full {
                return Ok(());
            }
        }
    }
}

/// A message grows by so many bytes at most before it is looked at again.
const INFLATE_STEP_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::super::{BINARY, TEXT};
    use super::*;
    use crate::base::form::Framing;
    use proptest::prelude::*;

    /// Payload of a deflated frame.
    fn body(frame: &[u8]) -> &[u8] {
        assert_eq!(frame[0] & 0xf0, 0xc0, "FIN and RSV1");
        super::super::payload(frame)
    }

    fn deflaters(level: u32) -> Deflaters {
        let options = DeflateOptions { level, bytes_min: 0 };
        Deflaters::new(options, options)
    }

    fn window(bits: u8) -> Form {
        Form::new(Framing::deflate(bits), false)
    }

    fn inflated(deflated: &[u8], bytes_max: usize) -> Result<Vec<u8>, InflateFault> {
        let mut out = Vec::new();
        Inflater::default().inflate(deflated, bytes_max, &mut out).map(|()| out)
    }

    #[test]
    fn examples_of_the_rfc() {
        let hello = Ok(b"Hello".to_vec());
        // RFC 7692 7.2.3.1, 7.2.3.3 (not compressed), 7.2.3.4 (last block), 7.2.3.5 (two blocks)
        for example in [
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..],
            &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
            &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00],
        ] {
            assert_eq!(inflated(example, 5), hello, "{example:x?}");
            assert_eq!(inflated(example, 4), Err(InflateFault::TooLong), "{example:x?}");
        }
        assert_eq!(inflated(&[0x00], 9), Ok(Vec::new()));
        assert_eq!(inflated(&[], 9), Ok(Vec::new()));
        assert_eq!(inflated(&[0xff, 0xff, 0xff], 9), Err(InflateFault::Malformed));
    }

    #[test]
    fn a_bomb_is_as_long_as_it_may_be() {
        let mut compress = Compress::new(Compression::best(), false);
        let mut bomb = Vec::new();
        assert!(deflate(&mut compress, &vec![0; 8 << 20], &mut bomb, usize::MAX));
        let mut out = Vec::new();
        let verdict = Inflater::default().inflate(&bomb, 100_000, &mut out);
        assert_eq!(verdict, Err(InflateFault::TooLong));
        assert!(out.len() <= 100_001 && out.capacity() < 300_000, "{}", out.capacity());
    }

    #[test]
    fn messages_that_compression_makes_longer_stay_plain() {
        let mut deflaters = deflaters(1);
        let mut out = b"before".to_vec();
        let mut rng = crate::base::rng::Rng::new(1);
        let random: Vec<u8> = (0..1000).map(|_| rng.next_u64() as u8).collect();
        assert!(!deflaters.put_frame(&mut out, BINARY, window(15), &random));
        assert!(!deflaters.put_frame(&mut out, TEXT, window(15), &[b'x'; DEFLATE_BYTES_MIN - 1]));
        assert_eq!(out, b"before");
        assert!(deflaters.put_frame(&mut out, TEXT, window(15), &[b'x'; DEFLATE_BYTES_MIN]));
        assert!(out.starts_with(b"before\xc1"));
    }

    #[test]
    fn pieces_make_a_message() {
        let mut deflaters = deflaters(1);
        let list = "[{\"data\":{\"text\":\"hello\"}}]".repeat(100);
        let (mut head, mut list_piece, mut tail) = (Vec::new(), Vec::new(), Vec::new());
        Deflaters::put_stored(&mut head, b"{\"id\":1,");
        assert!(deflaters.put_piece(&mut list_piece, window(9), list.as_bytes()));
        assert!(!deflaters.put_piece(&mut tail, Form::JSON, list.as_bytes()));
        Deflaters::put_stored(&mut tail, b"}");
        Deflaters::finish(&mut tail);
        let whole = inflated(&[head, list_piece, tail].concat(), 10_000).unwrap();
        assert_eq!(whole, format!("{{\"id\":1,{list}}}").as_bytes());
        let mut long = Vec::new();
        Deflaters::put_stored(&mut long, &[b'x'; 70_000]);
        Deflaters::finish(&mut long);
        assert_eq!(inflated(&long, 70_000), Ok(vec![b'x'; 70_000]));
    }

    #[test]
    fn unused_compressors_go() {
        let mut deflaters = deflaters(1);
        let mut out = Vec::new();
        for bits in [9, 12, 15] {
            assert!(deflaters.put_frame(&mut out, TEXT, window(bits), &[b'x'; 500]));
        }
        assert_eq!(deflaters.len(), 3);
        deflaters.sweep();
        assert!(deflaters.put_frame(&mut out, TEXT, window(12), &[b'x'; 500]));
        deflaters.sweep();
        assert_eq!(deflaters.len(), 1);
        deflaters.sweep();
        assert!(deflaters.is_empty());
    }

    #[test]
    fn a_message_that_gets_longer_leaves_no_state() {
        let mut rng = crate::base::rng::Rng::new(7);
        let mut deflaters = deflaters(1);
        let mut frame = Vec::new();
        for len in [70, 1000, 60_000, 131_072, 300_000] {
            for bits in [9, 12, 15] {
                // Much shorter, nearly as long, about as long, longer.
                for mask in [0x03, 0x0f, 0x3f, 0x7b, 0x7f, 0xef] {
                    let random: Vec<u8> = (0..len).map(|_| rng.next_u64() as u8 & mask).collect();
                    frame.clear();
                    deflaters.put_frame(&mut frame, BINARY, window(bits), &random);
                }
                frame.clear();
                let random: Vec<u8> = (0..len).map(|_| rng.next_u64() as u8).collect();
                assert!(!deflaters.put_frame(&mut frame, BINARY, window(bits), &random));
                let text = b"the same again and again, ".repeat(len / 20);
                assert!(deflaters.put_frame(&mut frame, BINARY, window(bits), &text));
                assert_eq!(inflated(body(&frame), text.len()), Ok(text));
                frame.clear();
            }
        }
    }

    proptest! {
        // Through every window and level, in any order, messages come back; and a window that is as small
        // as was agreed is enough to read them.
        #[test]
        fn messages_come_back(
            level in 1..10u32,
            messages in proptest::collection::vec(
                (9..16u8, proptest::collection::vec(0..6u8, 0..4), 0..20_000usize), 1..12,
            ),
        ) {
            let mut deflaters = deflaters(level);
            let mut inflater = Inflater::default();
            for (bits, pattern, len) in messages {
                let mut rng = crate::base::rng::Rng::new(len as u64);
                let message: Vec<u8> = (0..len)
                    .map(|at| match pattern.get(at % 7) {
                        Some(byte) => *byte,
                        None => b'a' + (rng.next_u64() % 9) as u8,
                    })
                    .collect();
                let mut frame = Vec::new();
                if !deflaters.put_frame(&mut frame, BINARY, window(bits), &message) {
                    continue;
                }
                let mut out = Vec::new();
                prop_assert_eq!(inflater.inflate(body(&frame), len, &mut out), Ok(()));
                prop_assert_eq!(&out, &message);
                let mut small = Decompress::new_with_window_bits(false, bits);
                let input = [body(&frame), &TAIL].concat();
                let mut out = Vec::with_capacity(len + 64);
                small.decompress_vec(&input, &mut out, FlushDecompress::Sync).unwrap();
                prop_assert_eq!(&out, &message);
            }
        }

        #[test]
        fn any_bytes_are_inflated_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            max in 0..5000usize,
        ) {
            let mut out = Vec::new();
            let mut inflater = Inflater::default();
            let _ = inflater.inflate(&bytes, max, &mut out);
            prop_assert!(out.len() <= max + 1);
            // It is as good as new afterwards.
            out.clear();
            let hello = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
            prop_assert_eq!(inflater.inflate(&hello, 5, &mut out), Ok(()));
        }
    }
}
