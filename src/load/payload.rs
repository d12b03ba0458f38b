//! The stamp of a message: its channel and number, and when it was due and left.

use crate::base::rng::Rng;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The part of a payload that is read again. JSON, so that both protocols can carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Stamp {
    /// Which process sent it; messages of others are not ours to judge.
    #[serde(rename = "roost_load")]
    pub(crate) run: u32,
    /// Number of the channel, or of the connection in `echo`.
    #[serde(rename = "c")]
    pub(crate) channel: u32,
    /// Number of the message in its channel, from 1.
    #[serde(rename = "s")]
    pub(crate) sequence: u32,
    /// When the schedule had it leave, nanoseconds since the process's origin.
    #[serde(rename = "i")]
    pub(crate) intended_ns: u64,
    /// When it was written, nanoseconds since the process's origin.
    #[serde(rename = "a")]
    pub(crate) actual_ns: u64,
}

/// A payload as it is written: the stamp and filling up to the requested length, which is records as
/// applications send them (so that it compresses as those do), and a rest.
#[derive(Serialize)]
struct Padded<'a> {
    roost_load: u32,
    c: u32,
    s: u32,
    i: u64,
    a: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    d: Option<&'a RawValue>,
    p: &'a str,
}

/// Writes payloads of one size.
#[derive(Debug)]
pub(crate) struct PayloadWriter {
    bytes: usize,
    records: Option<Box<RawValue>>,
    padding: String,
}

impl PayloadWriter {
    /// Payloads of `bytes` bytes, or as short as they can be when that is less.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { bytes, records: records(bytes), padding: "x".repeat(bytes) }
    }

    /// Replaces what is in `out` by the payload: one line of JSON.
    pub(crate) fn write(&self, stamp: &Stamp, out: &mut Vec<u8>) {
        let records = self.records.as_deref();
        encode(stamp, records, "", out);
        let missing = self.bytes.saturating_sub(out.len());
        if missing > 0 {
            encode(stamp, records, &self.padding[..missing], out);
        }
    }
}

/// As many records as fit into a payload, whatever its stamp.
fn records(bytes: usize) -> Option<Box<RawValue>> {
    let longest = Stamp {
        run: u32::MAX,
        channel: u32::MAX,
        sequence: u32::MAX,
        intended_ns: u64::MAX >> 8,
        actual_ns: u64::MAX >> 8,
    };
    let mut stamp = Vec::new();
    encode(&longest, None, "", &mut stamp);
    let room = bytes.saturating_sub(stamp.len() + r#""d":[],"#.len());
    // The same in each run, so that figures can be compared.
    let mut rng = Rng::new(1);
    let mut list = String::new();
    loop {
        let name: String = (0..6).map(|_| char::from(b'a' + rng.below(26) as u8)).collect();
        let (id, cents, count) = (rng.below(1_000_000), rng.below(1_000_000), rng.below(10_000));
        let side = if rng.one_in(2) { "buy" } else { "sell" };
        let price = cents as f64 / 100.0;
        let record = serde_json::json!({
            "id": id, "name": name, "price": price, "count": count, "side": side
        })
        .to_string();
        if list.len() + record.len() + 1 > room {
            break;
        }
        if !list.is_empty() {
            list.push(',');
        }
        list += &record;
    }
    // Made of what is JSON.
    (!list.is_empty()).then(|| RawValue::from_string(format!("[{list}]")).ok())?
}

fn encode(stamp: &Stamp, records: Option<&RawValue>, padding: &str, out: &mut Vec<u8>) {
    out.clear();
    let padded = Padded {
        roost_load: stamp.run,
        c: stamp.channel,
        s: stamp.sequence,
        i: stamp.intended_ns,
        a: stamp.actual_ns,
        d: records,
        p: padding,
    };
    // Numbers and a string into memory: neither the writer nor the serializer can fail.
    let _ = serde_json::to_writer(out, &padded);
}

/// The stamp of a payload, when `run` wrote it.
pub(crate) fn read(payload: &str, run: u32) -> Option<Stamp> {
    serde_json::from_str::<Stamp>(payload).ok().filter(|stamp| stamp.run == run)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_has_its_length_and_reads_back() {
        let stamp =
            Stamp { run: 7, channel: 999, sequence: 12345, intended_ns: 1 << 40, actual_ns: 5 };
        let mut out = b"what was there".to_vec();
        for bytes in [100, 128, 170, 200, 1000, 65536] {
            PayloadWriter::new(bytes).write(&stamp, &mut out);
            assert_eq!(out.len(), bytes);
            assert_eq!(read(std::str::from_utf8(&out).unwrap(), 7), Some(stamp));
        }
        PayloadWriter::new(1).write(&stamp, &mut out);
        assert!(out.len() < 100);
        assert_eq!(read(std::str::from_utf8(&out).unwrap(), 7), Some(stamp));
    }

    #[test]
    fn payloads_of_others_are_not_ours() {
        let mut out = Vec::new();
        let stamp = Stamp { run: 7, channel: 0, sequence: 1, intended_ns: 2, actual_ns: 3 };
        PayloadWriter::new(0).write(&stamp, &mut out);
        let text = std::str::from_utf8(&out).unwrap();
        assert_eq!(read(text, 8), None);
        for foreign in ["", "{}", "7", "null", "\"x\"", "{\"c\":1}", "[1,2]", "hello"] {
            assert_eq!(read(foreign, 7), None, "{foreign}");
        }
    }
}
