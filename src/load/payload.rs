//! The stamp of a message: its channel and number, and when it was due and left.

use crate::base::rng::Rng;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, Value};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

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
    template: Option<Arc<Template>>,
    rng: Rng,
}

impl PayloadWriter {
    /// Payloads by a template, or else of `bytes` bytes.
    pub(crate) fn of(bytes: usize, template: Option<&Arc<Template>>) -> Self {
        match template {
            Some(_) => Self { template: template.cloned(), ..Self::new(0) },
            None => Self::new(bytes),
        }
    }

    /// Payloads of `bytes` bytes, or as short as they can be when that is less.
    pub(crate) fn new(bytes: usize) -> Self {
        let (template, rng) = (None, Rng::new(1));
        Self { bytes, records: records(bytes), padding: "x".repeat(bytes), template, rng }
    }

    /// Replaces what is in `out` by the payload: one line of JSON.
    pub(crate) fn write(&mut self, stamp: &Stamp, out: &mut Vec<u8>) {
        if let Some(template) = &self.template {
            return template.write(stamp, &mut self.rng, out);
        }
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

/// The stamp of a payload, when `run` wrote it: it is the payload, or somewhere in it.
pub(crate) fn read(payload: &str, run: u32) -> Option<Stamp> {
    if let Ok(stamp) = serde_json::from_str::<Stamp>(payload) {
        return (stamp.run == run).then_some(stamp);
    }
    let mut found = None;
    read_all(payload, run, |stamp| found = found.or(Some(stamp)));
    found
}

/// The beginning of a stamp as it was written.
const BEGIN: &str = "{\"roost_load\":";

/// Its first key, which stands elsewhere when a server has written the object anew.
const KEY: &str = "roost_load";

/// Each stamp of `run` in a text, one after the other.
pub(crate) fn read_all(text: &str, run: u32, mut each: impl FnMut(Stamp)) {
    find_all(text, run, &mut each);
}

fn find_all(text: &str, run: u32, each: &mut dyn FnMut(Stamp)) {
    let mut rest = text;
    while let Some(at) = rest.find(BEGIN) {
        rest = &rest[at..];
        let stamp = serde_json::Deserializer::from_str(rest).into_iter::<Stamp>().next();
        if let Some(Ok(stamp)) = stamp
            && stamp.run == run
        {
            each(stamp);
        }
        rest = &rest[BEGIN.len()..];
    }
    // Written anew, or in a string: the text is JSON, perhaps behind a few characters of its protocol.
    if !text.contains(BEGIN) && text.contains(KEY) {
        let json = text.find(['{', '[', '"']).map_or("", |at| &text[at..]);
        if let Some(Ok(value)) = serde_json::Deserializer::from_str(json).into_iter().next() {
            walk(&value, run, each);
        }
    }
}

fn walk(value: &Value, run: u32, each: &mut dyn FnMut(Stamp)) {
    match value {
        Value::Object(map) if map.contains_key(KEY) => {
            if let Ok(stamp) = Stamp::deserialize(value)
                && stamp.run == run
            {
                each(stamp);
            }
        }
        Value::Object(map) => map.values().for_each(|value| walk(value, run, each)),
        Value::Array(all) => all.iter().for_each(|value| walk(value, run, each)),
        Value::String(text) if text.contains(KEY) => find_all(text, run, each),
        _ => {}
    }
}

/// The template of a payload.
///
/// ```text
///  {"type":"chat","no":{counter},"text":"{random:40}","meta":{stamp}}
/// ```
#[derive(Clone, Debug)]
pub(crate) struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// What the checks need.
    Stamp,
    /// Number of the message in its channel, or of its connection.
    Counter,
    /// So many letters and digits.
    Random(usize),
    /// Number of the channel, for echoes of the connection.
    Number,
    /// Milliseconds since 1970.
    Timestamp,
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// It has no stamp, or several: text for the user.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let end = after.find('}').unwrap_or(0);
            let piece = match &after[..end] {
                "stamp" => Some(Piece::Stamp),
                "counter" => Some(Piece::Counter),
                "n" => Some(Piece::Number),
                "timestamp" => Some(Piece::Timestamp),
                name => name
                    .strip_prefix("random:")
                    .and_then(|count| count.parse().ok())
                    .filter(|count| *count <= 1 << 20)
                    .map(Piece::Random),
            };
            pieces.push(Piece::Text(before.to_owned()));
            match piece {
                Some(piece) => {
                    pieces.push(piece);
                    rest = &after[end + 1..];
                }
                None => {
                    pieces.push(Piece::Text("{".to_owned()));
                    rest = after;
                }
            }
        }
        pieces.push(Piece::Text(rest.to_owned()));
        match pieces.iter().filter(|of| **of == Piece::Stamp).count() {
            1 => Ok(Self(pieces)),
            _ => Err("a payload has {stamp} once: the checks need it".to_owned()),
        }
    }

    fn write(&self, stamp: &Stamp, rng: &mut Rng, out: &mut Vec<u8>) {
        out.clear();
        let mut short = Vec::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text.as_bytes()),
                Piece::Stamp => {
                    encode(stamp, None, "", &mut short);
                    out.extend_from_slice(&short);
                }
                Piece::Counter => out.extend_from_slice(stamp.sequence.to_string().as_bytes()),
                Piece::Number => out.extend_from_slice(stamp.channel.to_string().as_bytes()),
                Piece::Random(count) => {
                    const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
                    out.extend((0..*count).map(|_| LETTERS[rng.below(36) as usize]));
                }
                Piece::Timestamp => {
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                    out.extend_from_slice(now.as_millis().to_string().as_bytes());
                }
            }
        }
    }
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
    fn a_template_has_counter_random_text_and_a_stamp() {
        let text = r#"{"no":{counter},"of":{n},"text":"{random:9}","at":{timestamp},"m":{stamp}}"#;
        let template = Arc::new(Template::parse(text).unwrap());
        let stamp = Stamp { run: 7, channel: 3, sequence: 12, intended_ns: 1, actual_ns: 5 };
        let mut out = Vec::new();
        PayloadWriter::of(0, Some(&template)).write(&stamp, &mut out);
        let text = std::str::from_utf8(&out).unwrap();
        let value: Value = serde_json::from_str(text).unwrap();
        assert_eq!((&value["no"], &value["of"]), (&12.into(), &3.into()));
        assert_eq!(value["text"].as_str().unwrap().len(), 9);
        assert!(value["at"].as_u64().unwrap() > 1_700_000_000_000);
        assert_eq!(read(text, 7), Some(stamp));
        let in_string = format!("[{}]", serde_json::to_string(text).unwrap());
        assert_eq!(read(&in_string, 7), Some(stamp));
        // Written anew by a server that sorts keys.
        let anew = format!("42{}", serde_json::json!(["message", { "data": value }]));
        assert!(!anew.contains(BEGIN));
        assert_eq!(read(&anew, 7), Some(stamp));
        for wrong in ["", "{counter}", "{stamp}{stamp}"] {
            assert!(Template::parse(wrong).is_err(), "{wrong}");
        }
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
