//! HDR histograms as other tools read them: the V2 encoding, deflated, and the interval log.
//!
//! ```text
//!  compressed: cookie, length, zlib( cookie, length, offset 0, digits, lowest, highest, ratio 1.0, counts )
//!  counts:     zigzag LEB128; a negative number n stands for -n counts of zero
//! ```

use super::figures::{LATENCY_DIGITS, LATENCY_US_MAX, Latency};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use std::io::{self, Write};

/// Of version 2, with words of one byte.
const COOKIE: u32 = 0x1c84_9303 | 0x10;
const COOKIE_COMPRESSED: u32 = 0x1c84_9304 | 0x10;

/// A histogram as base64 of its compressed encoding.
pub(super) fn encode(latency: &Latency) -> String {
    let plain = encode_plain(latency);
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
    // Writing to a Vec cannot fail.
    let _ = zlib.write_all(&plain);
    let body = zlib.finish().unwrap_or_default();
    let mut out = Vec::with_capacity(body.len() + 8);
    out.extend_from_slice(&COOKIE_COMPRESSED.to_be_bytes());
    out.extend_from_slice(&(body.len() as u32).to_be_bytes());
    out.extend_from_slice(&body);
    STANDARD.encode(out)
}

fn encode_plain(latency: &Latency) -> Vec<u8> {
    let mut counts = Vec::new();
    let mut zeros = 0i64;
    for bucket in latency.iter_all() {
        match bucket.count_at_value() {
            0 => zeros += 1,
            count => {
                if zeros > 0 {
                    put_zigzag(-zeros, &mut counts);
                }
                zeros = 0;
                put_zigzag(count.into(), &mut counts);
            }
        }
    }
    let mut out = Vec::with_capacity(counts.len() + 40);
    out.extend_from_slice(&COOKIE.to_be_bytes());
    out.extend_from_slice(&(counts.len() as u32).to_be_bytes());
    out.extend_from_slice(&0u32.to_be_bytes());
    out.extend_from_slice(&u32::from(LATENCY_DIGITS).to_be_bytes());
    out.extend_from_slice(&1u64.to_be_bytes());
    out.extend_from_slice(&LATENCY_US_MAX.to_be_bytes());
    out.extend_from_slice(&1f64.to_be_bytes());
    out.append(&mut counts);
    out
}

fn put_zigzag(value: i64, out: &mut Vec<u8>) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    // Counts fit into 32 bits, so the ninth byte of the encoding, which is another one, is not reached.
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Writes an interval log, a line for each second in which messages came.
pub(super) struct Log<W: Write> {
    out: W,
}

impl<W: Write> Log<W> {
    /// Begins a log; `start_s` is the time of day of its first moment, seconds since 1970.
    pub(super) fn new(mut out: W, start_s: f64) -> io::Result<Self> {
        writeln!(out, "#[Latencies of roost-load, in microseconds]")?;
        writeln!(out, "#[Histogram log format version 1.3]")?;
        writeln!(out, "#[StartTime: {start_s:.3} (seconds since epoch)]")?;
        writeln!(out, "#[BaseTime: {start_s:.3} (seconds since epoch)]")?;
        writeln!(
            out,
            "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\""
        )?;
        Ok(Self { out })
    }

    /// Adds the histogram of one second.
    pub(super) fn add(&mut self, second: u32, latency: &Latency) -> io::Result<()> {
        let max_ms = latency.max() as f64 / 1e3;
        writeln!(self.out, "{second}.000,1.000,{max_ms:.3},{}", encode(latency))
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures;
    use super::*;
    use flate2::read::ZlibDecoder;
    use std::io::Read;

    /// Value and count of each bucket of an encoded histogram, by another path than the encoder's.
    fn decode(text: &str) -> Vec<(u64, i64)> {
        let bytes = STANDARD.decode(text).unwrap();
        let word =
            |bytes: &[u8], at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((word(&bytes, 0), word(&bytes, 4) as usize), (0x1c84_9314, bytes.len() - 8));
        let mut plain = Vec::new();
        ZlibDecoder::new(&bytes[8..]).read_to_end(&mut plain).unwrap();
        assert_eq!((word(&plain, 0), word(&plain, 4) as usize), (0x1c84_9313, plain.len() - 40));
        assert_eq!((word(&plain, 12), plain[23], word(&plain, 28)), (3, 1, 60_000_000));
        let empty = figures::latency();
        let mut values = empty.iter_all().map(|bucket| bucket.value_iterated_to());
        let (mut found, mut shift, mut raw) = (Vec::new(), 0, 0u64);
        for byte in &plain[40..] {
            raw |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                let value = (raw >> 1) as i64 ^ -((raw & 1) as i64);
                if value < 0 {
                    values.nth((-value - 1) as usize);
                } else {
                    found.push((values.next().unwrap(), value));
                }
                (shift, raw) = (0, 0);
            }
        }
        found
    }

    #[test]
    fn what_is_encoded_is_what_was_recorded() {
        let mut latency = figures::latency();
        for (us, count) in [(0, 2), (1, 1), (900, 300), (5_000, 70_000), (60_000_000, 1)] {
            let _ = latency.record_n(us, count);
        }
        let expected: Vec<(u64, i64)> = latency
            .iter_recorded()
            .map(|bucket| (bucket.value_iterated_to(), bucket.count_at_value().into()))
            .collect();
        assert_eq!(decode(&encode(&latency)), expected);
        assert_eq!(decode(&encode(&figures::latency())), []);
    }

    #[test]
    fn a_log_has_a_line_for_each_second() {
        let mut latency = figures::latency();
        latency.saturating_record(1500);
        let mut out = Vec::new();
        let mut log = Log::new(&mut out, 1_700_000_000.25).unwrap();
        log.add(3, &latency).unwrap();
        log.finish().unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("#[StartTime: 1700000000.250 (seconds since epoch)]"));
        let last = text.lines().last().unwrap();
        // Every encoding of this kind begins with these letters.
        assert!(last.starts_with("3.000,1.000,1.500,HISTFAAA"), "{last}");
    }
}
