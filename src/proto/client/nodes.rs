//! Publications and clients in Protobuf as nodes exchange them: fields that no client gets (time, version)
//! are there, and the position may be missing, since it is known from elsewhere.

use std::borrow::Cow;

use prost::Message as _;

use super::schema;
use crate::base::info::ClientInfo;
use crate::base::tags::Tags;

/// Bytes that are not the message that they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message in Protobuf")]
pub struct NotProtobuf;

/// A publication between nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePublication<'a> {
    /// The payload.
    pub data: Cow<'a, [u8]>,
    /// The publisher, packed (`base::info`); empty for the server.
    pub info: Cow<'a, [u8]>,
    /// Tags, packed (`base::tags`).
    pub tags: Cow<'a, [u8]>,
    /// Its channel wants deltas though it has no history.
    pub delta: bool,
    /// When its node published it, in Unix milliseconds; 0: not known.
    pub time_ms: u64,
    /// The version that the application gave; 0: none.
    pub version: u64,
    /// Its offset; 0: it stands elsewhere.
    pub offset: u64,
    /// The life of its stream; empty: it stands elsewhere.
    pub epoch: Cow<'a, str>,
}

impl<'a> NodePublication<'a> {
    /// Reads a `Publication`. Where it has neither publisher nor tags, as most have, nothing is copied.
    ///
    /// # Errors
    /// It is none.
    pub fn read(bytes: &'a [u8]) -> Result<Self, NotProtobuf> {
        Self::read_plain(bytes).map_or_else(|| Self::read_all(bytes), Ok)
    }

    /// Reads one of payload, numbers and epoch alone; `None` for any other, and for one that is malformed.
    fn read_plain(mut bytes: &'a [u8]) -> Option<Self> {
        let mut publication = Self::default();
        while !bytes.is_empty() {
            match varint(&mut bytes)? {
                DATA => publication.data = measured(&mut bytes)?.into(),
                OFFSET => publication.offset = varint(&mut bytes)?,
                DELTA => publication.delta = varint(&mut bytes)? != 0,
                TIME => {
                    let time = varint(&mut bytes)?.cast_signed();
                    publication.time_ms = u64::try_from(time).unwrap_or(0);
                }
                EPOCH => {
                    publication.epoch = std::str::from_utf8(measured(&mut bytes)?).ok()?.into();
                }
                VERSION => publication.version = varint(&mut bytes)?,
                _ => return None,
            }
        }
        Some(publication)
    }

    fn read_all(bytes: &[u8]) -> Result<Self, NotProtobuf> {
        let message = schema::Publication::decode(bytes).map_err(|_| NotProtobuf)?;
        let info = message.info.map_or_else(Vec::new, |info| pack(&info).into_vec());
        let tags = message.tags.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        Ok(Self {
            data: message.data.into(),
            info: info.into(),
            tags: Tags::pack(tags).into_vec().into(),
            delta: message.delta,
            time_ms: u64::try_from(message.time).unwrap_or(0),
            version: message.version,
            offset: message.offset,
            epoch: message.epoch.into(),
        })
    }
}

// Fields of a `Publication` with their wire types.
const DATA: u64 = 4 << 3 | 2;
const OFFSET: u64 = 6 << 3;
const DELTA: u64 = 8 << 3;
const TIME: u64 = 9 << 3;
const EPOCH: u64 = 14 << 3 | 2;
const VERSION: u64 = 16 << 3;

/// Takes a number off the front; `None` where it has no end, or no room in 64 bits.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    let (byte, rest) = bytes.split_first()?;
    *bytes = rest;
    (*byte <= 1).then_some(number | u64::from(*byte) << 63)
}

/// Takes bytes with their length before them off the front.
fn measured<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(varint(bytes)?).ok()?;
    let (measured, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(measured)
}

impl NodePublication<'_> {
    /// Appends it as a `Publication`.
    pub fn put(&self, out: &mut Vec<u8>) {
        let tags = Tags::packed(&self.tags);
        let message = schema::Publication {
            data: self.data.to_vec(),
            info: ClientInfo::unpack(&self.info).map(|info| message_of(&info)),
            offset: self.offset,
            tags: tags.iter().map(|(name, value)| (name.into(), value.into())).collect(),
            delta: self.delta,
            time: i64::try_from(self.time_ms).unwrap_or(i64::MAX),
            epoch: self.epoch.clone().into_owned(),
            version: self.version,
            ..<_>::default()
        };
        out.reserve(message.encoded_len());
        // A vector grows as needed, so there is no error.
        let _ = message.encode(out);
    }
}

/// Reads a `ClientInfo`, and packs it (`base::info`).
///
/// # Errors
/// It is none.
pub fn read_client_info(bytes: &[u8]) -> Result<Box<[u8]>, NotProtobuf> {
    schema::ClientInfo::decode(bytes).map(|info| pack(&info)).map_err(|_| NotProtobuf)
}

/// The packed clients of a whole presence result.
///
/// # Errors
/// It is none.
pub fn read_presence(bytes: &[u8]) -> Result<Vec<Box<[u8]>>, NotProtobuf> {
    let result = schema::PresenceResult::decode(bytes).map_err(|_| NotProtobuf)?;
    Ok(result.presence.values().map(pack).collect())
}

/// Appends a packed client as a `ClientInfo`; nothing for bytes that are no packed client.
pub fn put_client_info(out: &mut Vec<u8>, packed: &[u8]) {
    if let Some(info) = ClientInfo::unpack(packed) {
        // A vector grows as needed, so there is no error.
        let _ = message_of(&info).encode(out);
    }
}

fn pack(info: &schema::ClientInfo) -> Box<[u8]> {
    let schema::ClientInfo { user, client, conn_info, chan_info, subscribed_at } = info;
    let subscribed_at = *subscribed_at;
    ClientInfo { user, client, conn_info, chan_info, subscribed_at }.pack()
}

fn message_of(info: &ClientInfo<'_>) -> schema::ClientInfo {
    schema::ClientInfo {
        user: info.user.into(),
        client: info.client.into(),
        conn_info: info.conn_info.into(),
        chan_info: info.chan_info.into(),
        subscribed_at: info.subscribed_at,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..30)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            data in bytes(),
            client in proptest::option::of(("[a-z]{0,5}", "[0-9a-f-]{1,9}", bytes(), bytes(), any::<u32>())),
            tags in proptest::collection::btree_map("[a-z]{0,4}", ".{0,4}", 0..4),
            delta in any::<bool>(),
            numbers in (0_u64..=i64::MAX as u64, any::<u64>(), any::<u64>()),
            epoch in ".{0,9}",
        ) {
            let info = client.map_or_else(Vec::new, |(user, client, conn_info, chan_info, subscribed_at)| {
                let (conn_info, chan_info) = (&conn_info[..], &chan_info[..]);
                let (user, client) = (&*user, &*client);
                ClientInfo { user, client, conn_info, chan_info, subscribed_at }.pack().into_vec()
            });
            let tags = Tags::pack(tags.iter().map(|(name, value)| (&**name, &**value)));
            let publication = NodePublication {
                data: data.into(),
                info: info.into(),
                tags: tags.into_vec().into(),
                delta,
                time_ms: numbers.0,
                version: numbers.1,
                offset: numbers.2,
                epoch: epoch.into(),
            };
            let mut out = Vec::new();
            publication.put(&mut out);
            prop_assert!(!out.starts_with(b"_"));
            prop_assert_eq!(NodePublication::read(&out), Ok(publication));
        }

        #[test]
        fn plain_publications_are_read_alike(
            bytes in proptest::collection::vec(
                prop_oneof![
                    proptest::sample::select(&b"\x22\x30\x40\x48\x72\x80\x01\x02\x00\xffa"[..]),
                    any::<u8>(),
                ],
                0..14,
            ),
        ) {
            if let Some(publication) = NodePublication::read_plain(&bytes) {
                prop_assert_eq!(NodePublication::read_all(&bytes), Ok(publication));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in bytes()) {
            let _ = NodePublication::read(&bytes);
            let _ = read_client_info(&bytes);
        }
    }

    #[test]
    fn a_client_comes_back() {
        let info = ClientInfo { user: "u", client: "c", conn_info: b"{}", ..<_>::default() }.pack();
        let mut out = Vec::new();
        put_client_info(&mut out, &info);
        assert_eq!(out, b"\x0a\x01u\x12\x01c\x1a\x02{}");
        assert_eq!(read_client_info(&out), Ok(info));
    }
}
