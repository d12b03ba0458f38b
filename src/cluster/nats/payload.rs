//! The payload of a message of a channel: a Protobuf `Push` {channel 2, pub 4, join 5 {info 1}, leave 6 {info 1}}.
//! In raw mode it is the data alone.
//!
//! A publication may have a position of its own, with the epoch in a tag: so write nodes that keep their history
//! elsewhere. Anybody who may publish at that server writes these bytes.

use crate::base::info::ClientInfo;
use crate::base::tags::Tags;
use crate::hub::broker::{Entry, Publishing};
use crate::hub::history::{Epoch, Published, Record};
use crate::proto::client::nodes::{NodePublication, put_client_info, read_client_info};
use crate::proto::client::{info_is_json, is_json};

/// The tag with the epoch of a publication that has a position.
const EPOCH_TAG: &str = "__centrifugo_epoch";

// Fields of a `Push` with their wire types.
const CHANNEL: u8 = 2 << 3 | 2;
const PUBLICATION: u8 = 4 << 3 | 2;
const JOIN: u8 = 5 << 3 | 2;
const LEAVE: u8 = 6 << 3 | 2;

/// The field `info` of a join or leave.
const INFO: u8 = 1 << 3 | 2;

/// A message of a channel.
#[derive(Clone, Debug)]
pub enum Message {
    /// A publication, with the life of its stream where it has a position.
    Publication(Option<Epoch>, Entry),
    /// A client joined: its packed info.
    Join(Box<[u8]>),
    /// A client left: its packed info.
    Leave(Box<[u8]>),
}

/// Bytes that are no payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// No message in Protobuf.
    #[error("not a message in Protobuf")]
    Protobuf,
    /// Neither a publication nor a client that joins or leaves.
    #[error("a message without content")]
    Empty,
}

/// The payload of a publication.
pub fn publication(publishing: &Publishing, now_ms: u64) -> Vec<u8> {
    let Published { data, info, tags, .. } = publishing.record.published();
    let mut inner = Vec::with_capacity(data.len() + info.len() + tags.len() + 32);
    NodePublication {
        data: data.into(),
        info: info.into(),
        tags: tags.into(),
        delta: publishing.delta,
        time_ms: now_ms,
        version: publishing.version,
        ..<_>::default()
    }
    .put(&mut inner);
    push(&publishing.channel, PUBLICATION, &inner)
}

/// The payload of a client that joins or leaves.
pub fn presence(channel: &str, joined: bool, packed: &[u8]) -> Vec<u8> {
    let mut info = Vec::new();
    put_client_info(&mut info, packed);
    let mut inner = Vec::with_capacity(info.len() + 4);
    put_field(&mut inner, INFO, &info);
    push(channel, if joined { JOIN } else { LEAVE }, &inner)
}

/// Reads a payload.
///
/// # Errors
/// It is none.
pub fn read(bytes: &[u8]) -> Result<Message, Malformed> {
    read_at(bytes, None)
}

/// The same with the place of a publication in its stream, where that is known: its offset, and the one before it.
///
/// # Errors
/// It is none.
pub fn read_at(bytes: &[u8], place: Option<(u64, u64)>) -> Result<Message, Malformed> {
    let mut found = None;
    fields(bytes, |key, value| {
        if let PUBLICATION | JOIN | LEAVE = key {
            found = found.or(Some((key, value)));
        }
    })?;
    let (key, inner) = found.ok_or(Malformed::Empty)?;
    if key == PUBLICATION {
        return entry(inner, place).map(|(epoch, entry)| Message::Publication(epoch, entry));
    }
    let mut info = None;
    fields(inner, |key, value| info = info.or_else(|| (key == INFO).then_some(value)))?;
    let info = read_client_info(info.ok_or(Malformed::Empty)?).map_err(|_| Malformed::Protobuf)?;
    Ok(if key == JOIN { Message::Join(info) } else { Message::Leave(info) })
}

/// The version of a publication; 0 for none.
pub fn version(bytes: &[u8]) -> u64 {
    let mut version = 0;
    let read = fields(bytes, |key, value| {
        if key == PUBLICATION {
            version = NodePublication::read(value).map_or(0, |read| read.version);
        }
    });
    read.map_or(0, |()| version)
}

/// A publication of raw mode.
pub fn raw(data: &[u8]) -> Entry {
    let published = Published { data, is_json: is_json(data), ..Published::default() };
    let record = Record::new(0, &published);
    Entry { after: 0, time_ms: 0, delta: false, source: None, record }
}

fn entry(bytes: &[u8], place: Option<(u64, u64)>) -> Result<(Option<Epoch>, Entry), Malformed> {
    let read = NodePublication::read(bytes).map_err(|_| Malformed::Protobuf)?;
    let tags = Tags::packed(&read.tags);
    let epoch =
        tags.iter().find(|(name, _)| *name == EPOCH_TAG).map(|(_, epoch)| Epoch::from(epoch));
    let epoch = epoch.filter(|_| read.offset > 0);
    let others;
    let tags: &[u8] = match &epoch {
        Some(_) => {
            others = Tags::pack(tags.iter().filter(|(name, _)| *name != EPOCH_TAG));
            &others
        }
        None => &read.tags,
    };
    let infos = ClientInfo::unpack(&read.info);
    let published = Published {
        data: &read.data,
        info: &read.info,
        tags,
        is_json: is_json(&read.data) && infos.is_none_or(|info| info_is_json(&info)),
        time: 0,
    };
    let own = (read.offset, read.offset.saturating_sub(1));
    let (offset, after) = place.or_else(|| epoch.is_some().then_some(own)).unwrap_or_default();
    let entry = Entry {
        after,
        time_ms: read.time_ms,
        delta: read.delta,
        source: None,
        record: Record::new(offset, &published),
    };
    Ok((epoch, entry))
}

fn push(channel: &str, key: u8, inner: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(channel.len() + inner.len() + 16);
    put_field(&mut out, CHANNEL, channel.as_bytes());
    put_field(&mut out, key, inner);
    out
}

fn put_field(out: &mut Vec<u8>, key: u8, bytes: &[u8]) {
    out.push(key);
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(bytes);
}

/// Calls `each` with every field that has a length, by its key of one byte; others are passed over.
fn fields<'a>(mut bytes: &'a [u8], mut each: impl FnMut(u8, &'a [u8])) -> Result<(), Malformed> {
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        match key & 7 {
            0 => _ = varint(&mut bytes)?,
            1 => _ = taken(&mut bytes, 8)?,
            2 => {
                let length = varint(&mut bytes)?;
                let value =
                    taken(&mut bytes, usize::try_from(length).map_err(|_| Malformed::Protobuf)?)?;
                if let Ok(key) = u8::try_from(key) {
                    each(key, value);
                }
            }
            5 => _ = taken(&mut bytes, 4)?,
            _ => return Err(Malformed::Protobuf),
        }
    }
    Ok(())
}

fn taken<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], Malformed> {
    let (taken, rest) = bytes.split_at_checked(count).ok_or(Malformed::Protobuf)?;
    *bytes = rest;
    Ok(taken)
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = taken(bytes, 1)?[0];
        number |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Malformed::Protobuf)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::hub::broker::Ticket;
    use crate::hub::history::StreamOptions;

    fn unhex(text: &str) -> Vec<u8> {
        let pair = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(pair).collect()
    }

    fn vectors() -> impl Iterator<Item = Value> {
        let lines = include_str!("../../../tests/vectors/redis/push-vectors.jsonl").lines();
        let values = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
        values.filter(|vector| vector["push"].is_object())
    }

    #[test]
    fn payloads_are_read_as_in_the_vectors() {
        let mut read_of_each = [0; 3];
        for vector in vectors() {
            let message = read(&unhex(vector["hex"].as_str().unwrap())).unwrap();
            let push = &vector["push"];
            let bytes = |value: &Value| STANDARD.decode(value.as_str().unwrap()).unwrap();
            let (kind, info) = match message {
                Message::Publication(epoch, entry) => {
                    let publication = &push["pub"];
                    let published = entry.record.published();
                    assert_eq!(published.data, bytes(&publication["data"]));
                    assert_eq!(entry.delta, publication["delta"] == true);
                    let number =
                        |name: &str| publication[name].as_str().map_or(0, |n| n.parse().unwrap());
                    assert_eq!(
                        (entry.record.offset(), entry.time_ms),
                        (number("offset"), number("time"))
                    );
                    let with_epoch = publication["tags"][EPOCH_TAG].as_str();
                    assert_eq!(epoch.as_ref().map(Epoch::as_str), with_epoch);
                    let tags = Tags::packed(published.tags).iter().count();
                    let all = publication["tags"].as_object().map_or(0, serde_json::Map::len);
                    assert_eq!(tags, all - usize::from(with_epoch.is_some()));
                    let info = published.info.to_vec();
                    (0, publication["info"].is_object().then_some(info))
                }
                Message::Join(info) => (1, Some(info.into_vec())),
                Message::Leave(info) => (2, Some(info.into_vec())),
            };
            read_of_each[kind] += 1;
            if let Some(info) = info {
                let info = ClientInfo::unpack(&info).unwrap();
                assert_eq!((info.user, info.client), ("alice", "cid"));
                assert_eq!(info.conn_info, b"{\"n\":1}");
            }
        }
        assert_eq!(read_of_each, [3, 1, 1]);
    }

    #[test]
    fn payloads_are_written_as_in_the_vectors() {
        for vector in vectors() {
            let expected = unhex(vector["hex"].as_str().unwrap());
            let written = match read(&expected).unwrap() {
                // Others write these.
                Message::Publication(Some(_), _) => continue,
                Message::Publication(None, entry) => {
                    let publishing = Publishing {
                        ticket: Ticket(1),
                        channel: "plain".into(),
                        record: entry.record.clone(),
                        options: StreamOptions::default(),
                        idempotency_key: "".into(),
                        version: 0,
                        version_epoch: "".into(),
                        delta: entry.delta,
                    };
                    publication(&publishing, entry.time_ms)
                }
                Message::Join(info) => presence("plain", true, &info),
                Message::Leave(info) => presence("plain", false, &info),
            };
            assert_eq!(written, expected, "{vector}");
        }
    }

    /// The client messages that real nodes sent.
    #[test]
    fn captured_payloads_are_read() {
        let mut read_some = 0;
        for line in include_str!("../../../tests/vectors/nats/client-messages.jsonl").lines() {
            let value: Value = serde_json::from_str(line).unwrap();
            let payload = unhex(value["payload_hex"].as_str().unwrap());
            let message = read(&payload).unwrap_or_else(|error| panic!("{error}: {line}"));
            let is_publication = matches!(message, Message::Publication(..));
            assert_eq!(is_publication, line.contains("\"pub\""), "{line}");
            read_some += 1;
        }
        assert!(read_some > 10);
    }

    #[test]
    fn what_is_no_payload_is_refused() {
        for bytes in [
            &b""[..],
            b"\x12\x01a",
            b"\x22",
            b"\x22\x05a",
            b"\x22\x02\x22\x09",
            b"\x2a\x00",
            b"\x0b",
        ] {
            assert!(read(bytes).is_err(), "{bytes:?}");
        }
        assert_eq!(raw(b"{}").record.published().data, b"{}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(
            prop_oneof![proptest::sample::select(&b"\x12\x22\x2a\x32\x0a\x01\x02\x80\xff"[..]), any::<u8>()], 0..40,
        )) {
            let _ = read(&bytes);
        }
    }
}
